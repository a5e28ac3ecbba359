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
from onnxplain.kernels.control import Control
from onnxplain.kernels.expanded import Expanded

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "operators.md"
OPSET = onnx.defs.onnx_opset_version()
METHODS = ("gradient", "lrp", "deeplift")
OWN = "onnxplain"  # operators that graphs hold once they are read
HEAD = """# Operators

What each operator does with the three signals, from the table of kernels (`python docs/make_operators.py` writes this page).
The families are explained in [families.md](families.md), how to add an operator in [extending.md](extending.md). `onnxplain inspect` says the same for the
nodes of a model.

*rule* under LRP is the rule that was chosen for the node; *pass* hands relevance on unchanged. Remarks say where a method has a convention or is
not exact. Operators without a family carry no signal: they are computed, and what depends on them counts as constant. *Written with others* means that other
operators take the place of this one when a model is read; their rules hold.
"""
"""The tiers are those in which ONNX's own test cases are counted."""


def tiers() -> dict[str, list[str]]:
    """Return the operators of ONNX by tier, and those that are in none."""
    sys.path.insert(0, str(ROOT))
    from tests.tiers import OTHERS, TIER_OF, TIERS

    table = {tier: ops.split() for tier, ops in TIERS.items()}
    known = {op for op in kernels.registered_ops() if "." not in op}
    return table | {OTHERS: sorted(known - TIER_OF.keys())}


def kernels_of(op: str, domain: str = "") -> list[tuple[type, tuple[bool, ...]]]:
    """Return the classes that serve an operator, each with inputs that carry data."""
    versions = kernels.versions(op, domain)
    found: dict[type, tuple[bool, ...]] = {}
    patterns = sorted(itertools.product((True, False), repeat=3), key=sum)
    for active in patterns[1:] + patterns[:1]:
        cls = kernels.find(op, max(versions), active, domain)
        if cls is not None and any(active):
            found.setdefault(cls, active)
    return list(found.items())


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


def row(op: str, domain: str, cls: type, active: tuple[bool, ...], several: bool) -> str:
    """Return a line of the table."""
    name = f"{op}, {sum(active)} inputs with data" if several and sum(active) > 1 else op
    if issubclass(cls, Expanded):
        return f"| {name} | | | | | written with others |"
    if cls.family == "constant":
        return f"| {name} | | | | | {'a step: no signal passes' if cls.blocks else ''} |"
    said = words(cls, active, op, domain)
    remarks = dict.fromkeys(remark for _, _, remark in said if remark)
    cells = [rule if rule else "not defined" for rule, _, _ in said]
    return f"| {name} | {cls.family} | {' | '.join(cells)} | {'; '.join(remarks)} |"


def rows(ops: list[str], domain: str = "") -> Iterator[str]:
    """Return the lines of a table of operators."""
    yield "| operator | family | gradient | LRP | DeepLIFT | remarks |"
    yield "|---|---|---|---|---|---|"
    for op in sorted(ops):
        if kernels.versions(op, domain):
            found = kernels_of(op, domain)
            yield from (row(op, domain, cls, active, len(found) > 1) for cls, active in found)
        elif body_of(Node("", op, ("x",), ("y",), {}, OPSET, domain), {}) is not None:
            yield f"| {op} | | | | | written with others, as ONNX defines it |"
        else:
            yield f"| {op} | | | | | no kernel |"


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for tier, ops in tiers().items():
        parts.append(f"## Tier {tier}" if tier[0].isdigit() else "## Others of ONNX")
        domain = "ai.onnx.ml" if tier.startswith("1D") else ""
        parts.append("\n".join(rows(ops, domain)))
    named = [op.rpartition(".") for op in kernels.registered_ops()]
    parts.append("## com.microsoft")
    parts.append("\n".join(rows([op for domain, _, op in named if domain == "com.microsoft"], "com.microsoft")))
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
