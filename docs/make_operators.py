"""Write docs/operators.md, the table of all operators, from the table of kernels.

`python docs/make_operators.py` after an operator was added or changed.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx

from onnxplain import kernels
from onnxplain.errors import OnnxplainError
from onnxplain.graph.expand import body_of
from onnxplain.graph.graph import FAILURES, Node
from onnxplain.graph.quantised import OF_DATA
from onnxplain.graph.sequences import OPS as SEQUENCES
from onnxplain.kernels.control import Control
from onnxplain.kernels.expanded import Expanded
from onnxplain.kernels.expanded import _parsed as parsed

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "operators.md"
OPSET = onnx.defs.onnx_opset_version()
METHODS = ("gradient", "lrp", "deeplift")
HEAD = """# Operators

What each operator does with the three signals, from the table of kernels
(`python docs/make_operators.py` writes this page). The families are explained in
[families.md](families.md), how to add an operator in [extending.md](extending.md).
`onnxplain inspect` says the same for the nodes of a model.

*rule* under LRP is the rule that was chosen for the node; *pass* hands relevance on unchanged.
Remarks say where a method has a convention or is not exact. Operators without a family carry no
signal, or are replaced when a model is read: the rules of those *written with* hold.
"""


def tiers() -> dict[str, list[str]]:
    """Return the operators of ONNX by tier, and those that are in none."""
    sys.path.insert(0, str(ROOT))
    from tests.tiers import OTHERS, TIER_OF, TIERS

    table = {tier: ops.split() for tier, ops in TIERS.items()}
    known = {op for op in kernels.registered_ops() if "." not in op}
    return table | {OTHERS: sorted(known - TIER_OF.keys())}


def inputs_of(op: str, domain: str) -> list[str]:
    """Return the names of the inputs of an operator, two of those that may be any number."""
    if not onnx.defs.has(op, domain):
        return ["", "", ""]
    inputs = onnx.defs.get_schema(op, domain).inputs
    names = [i.name for i in inputs][:4]
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    return names + names[-1:] if inputs and inputs[-1].option == variadic else names


def kernels_of(op: str, domain: str) -> dict[type, tuple[bool, ...]]:
    """Return the classes that serve an operator, each with the fewest inputs that carry data."""
    newest = max(kernels.versions(op, domain))
    found: dict[type, tuple[bool, ...]] = {}
    patterns = itertools.product((True, False), repeat=len(inputs_of(op, domain)))
    for active in sorted(patterns, key=sum):
        cls = kernels.find(op, newest, active, domain)
        if cls is not None and any(active):
            found.setdefault(cls, active)
    return found


def words(cls: type, active: tuple[bool, ...], op: str, domain: str) -> list[tuple]:
    """Return what a kernel says of itself under each method."""
    kernel = cls.__new__(cls)
    attributes = kernels.schema_defaults(op, OPSET, domain)
    try:
        kernel.__init__(attributes, active)
    except (OnnxplainError, *FAILURES):  # it needs attributes that no default can stand for
        vars(kernel).update(attributes | {"active": active, "n_outputs": 1})
    if isinstance(kernel, Control):
        return [(kernel.words(method), True, "") for method in METHODS]
    return [kernel.describe(method) for method in METHODS]


def written_with(cls: type[Expanded]) -> str:
    """Return the operators that take the place of one, where they are always the same."""
    if not cls.text:
        return "written with others"
    nodes = parsed(cls.text, cls.opset).node
    return "written with " + ", ".join(dict.fromkeys(node.op_type for node in nodes))


def row(op: str, domain: str, cls: type, active: tuple[bool, ...], several: bool) -> str:
    """Return a line of the table."""
    if issubclass(cls, Expanded):
        return line(op, remark=written_with(cls))
    said = words(cls, active, op, domain)
    remarks = "; ".join(dict.fromkeys(remark for _, _, remark in said if remark))
    if cls.family == "constant":
        return line(op, remark=remarks)
    names = [name for name, a in zip(inputs_of(op, domain), active, strict=True) if a]
    name = f"{op} of {', '.join(names)}" if several and any(names) else op
    return line(name, cls.family, *(rule or "not defined" for rule, _, _ in said), remark=remarks)


def line(name: str, *cells: str, remark: str = "") -> str:
    """Return the cells of a line as Markdown."""
    return "| " + " | ".join([name, *(cells or [""] * 4), remark]) + " |"


def rows(ops: list[str], domain: str = "") -> Iterator[str]:
    """Return the lines of a table of operators."""
    yield "| operator | family | gradient | LRP | DeepLIFT | remarks |"
    yield "|---|---|---|---|---|---|"
    for op in sorted(ops):
        if op in SEQUENCES:
            yield line(op, remark="taken apart when the graph is read")
        elif op in OF_DATA and not domain:
            yield line(op, remark="written with floats where it carries data")
        elif kernels.versions(op, domain):
            found = kernels_of(op, domain)
            yield from (
                row(op, domain, cls, active, len(found) > 1) for cls, active in found.items()
            )
        elif body_of(Node("", op, ("x",), ("y",), {}, OPSET, domain), {}) is not None:
            yield line(op, remark="written with others, as ONNX defines it")
        else:
            yield line(op, remark=NO_KERNEL.get(op, "no kernel"))


NO_KERNEL = {
    "ZipMap": "left away: probabilities are explained, its keys name the classes",
    "SequenceMap": "taken apart when the graph is read, as ONNX defines it",
    "LinearAttention": "written with others, as ONNX defines it for its attributes",
}


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for tier, ops in tiers().items():
        parts.append(f"## Tier {tier}" if tier[0].isdigit() else "## Others of ONNX")
        domain = "ai.onnx.ml" if tier.startswith("1D") else ""
        parts.append("\n".join(rows(ops, domain)))
    named = (op.rpartition(".") for op in kernels.registered_ops())
    parts.append("## com.microsoft")
    fused = [op for domain, _, op in named if domain == "com.microsoft"]
    parts.append("\n".join(rows(fused, "com.microsoft")))
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
