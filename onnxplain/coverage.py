"""What can be said about a model without data, and about a walk after it: tables and repr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import to_host
from .errors import ArgumentError, shown
from .walk import Ledger

if TYPE_CHECKING:
    import pandas as pd

    from .converter import Converter
    from .graph.graph import Node

WALKS = {
    "gradient": ("gradient", "grad", "smoothgrad", "integratedgradient", "intgrad"),
    "lrp": ("lrp",),
    "deeplift": ("deeplift", "deepshap"),
    "connection": ("connectionweights", "cw", "connection"),
}
_OF_METHOD = {name: walk for walk, names in WALKS.items() for name in names} | {
    "expectedgradient": "gradient",
    "expgrad": "gradient",
    **dict.fromkeys(("gradcam", "gradcam++", "gradcampp", "gradcamplusplus"), "gradient"),
    **dict.fromkeys(("guidedbackprop", "guided", "deconvnet"), "gradient"),
}


def walk_of(method: str) -> str:
    """Return the pass of the kernels that a method uses."""
    key = str(method).lower().removeprefix("run_").replace("_", "")
    if key not in _OF_METHOD:
        raise ArgumentError(f"no method {shown(method)}; known are {', '.join(sorted(_OF_METHOD))}")
    return _OF_METHOD[key]


def coverage(converter: Converter, method: str | None = None) -> pd.DataFrame:
    """Return a table of how each node is treated; see `Converter.coverage`."""
    import pandas as pd

    walks = list(WALKS) if method is None else [walk_of(method)]
    read = {name for node in converter.graph.nodes for name in node.inputs}
    rows = []
    for node in converter.graph.nodes:
        row: dict[str, Any] = {
            "node": node.name,
            "op": f"{node.domain}.{node.op}" if node.domain else node.op,
            "family": node.kernel.family if any(node.kernel.active) else "constant",
        }
        for walk in walks:
            rule, exact, remark = _words(node, walk, read)
            end = "" if method is not None else f" ({walk})"
            row |= {f"rule{end}": rule, f"exact{end}": exact, f"remark{end}": remark}
        rows.append(row | {"joined": ", ".join(node.joined)})
    return pd.DataFrame(rows)


def _words(node: Node, walk: str, read: set[str]) -> tuple[str, bool, str]:
    """Return what a pass does at a node: rule, whether it is exact, and a remark."""
    if not any(node.kernel.active):
        return ("none", True, "carries no data")
    words, carries = node.kernel.describe(walk), node.kernel.active_outputs()
    if walk != "deeplift" or not any(carries):
        return words
    pairs = zip(node.outputs, carries, strict=False)
    steps = [shown(name) for name, carried in pairs if name in read and not carried]
    if not steps:
        return words
    return (words[0], False, f"{', '.join(steps)}: positions change in steps, no signal passes")


LEDGER_COLUMNS = ("node", "op", "rule", "incoming", "outgoing", "gap")


def ledger_table(books: Sequence[tuple[Ledger, int]], rules: Mapping[str, str]) -> pd.DataFrame:
    """Add the books of all chunks up; sums over instances and explained nodes, gaps as maxima."""
    import pandas as pd

    rows: dict[str, dict[str, Any]] = {}
    for ledger, count in books:
        for entry in ledger.entries:
            row = rows.setdefault(entry.node.name, _empty_row(entry, rules))
            row["incoming"] += _sum(entry.came, count)
            row["outgoing"] += _sum(entry.went, count)
            for what, amount in entry.absorbed.items():
                row[what] = row.get(what, 0.0) + _sum(amount, count)
            gap = np.max(np.abs(_rows(entry.gap, count)), initial=0)
            row["gap"] = float(np.maximum(row["gap"], gap))  # NaN stays to be seen
    table = pd.DataFrame(list(rows.values()), columns=None if rows else LEDGER_COLUMNS)
    absorbed = [c for c in table if c not in LEDGER_COLUMNS]
    table[absorbed] = table[absorbed].fillna(0.0)
    return table.reindex(columns=[c for c in table if c != "gap"] + ["gap"])


def _empty_row(entry: Any, rules: Mapping[str, str]) -> dict[str, Any]:
    return {
        "node": entry.node.name,
        "op": entry.node.op,
        "rule": rules[entry.node.name],
        "incoming": 0.0,
        "outgoing": 0.0,
        "gap": 0.0,
    }


def _rows(amount: Any, count: int) -> np.ndarray:
    """Return an amount on the host, without rows that only fill a fixed batch."""
    amount = to_host(amount)
    return amount[:, :count] if amount.ndim > 1 else amount


def _sum(amount: Any, count: int) -> float:
    return float(np.sum(_rows(amount, count)))


# -- repr -----------------------------------------------------------------------------------------

_AXES = {
    1: ("Feature",),
    2: ("Channels", "Signal length"),
    3: ("Channels", "Image height", "Image width"),
}
_WIDTH = 88


def describe_converter(converter: Converter) -> str:
    """Return what `print(converter)` shows."""
    rule = "-" * _WIDTH
    lines = [
        "-- Converter (onnxplain) ".ljust(_WIDTH, "-"),
        "Fields:",
        f"  input_dim:  {_shapes(converter.input_dim)}",
        f"  output_dim: {_shapes(converter.output_dim)}",
        "  input_names:",
        *_names(converter.input_names, "Input", "Feature", converter.channels_last),
        "  output_names:",
        *_names(converter.output_names, "Output", "Output node/Class"),
        f"  model_as_dict: {'not ' if converter.model_as_dict is None else ''}included",
        f"  model: opset {converter.graph.opset}, {len(converter.raw.nodes)} nodes in the file, "
        f"{len(converter.graph.nodes)} after joining",
    ]
    lines += [f"    {line}" for line in _layers(converter)]
    if converter.skipped_outputs:
        lines.append(f"  not explained (no data): {', '.join(converter.skipped_outputs)}")
    if converter.graph.fixed_batch is not None:
        lines.append(f"  batch size fixed by the file: {converter.graph.fixed_batch}")
    return "\n".join([*lines, rule])


def _shapes(dims: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("(" + ", ".join(map(str, ("*", *dim))) + ")" for dim in dims)


def _names(
    layers: Sequence[Any], what: str, single: str, channels_last: Sequence[bool] = ()
) -> list[str]:
    lines = []
    for i, axes in enumerate(layers):
        if len(layers) > 1:
            lines.append(f"    {what} layer {i + 1}:")
        titles = (single,) if len(axes) == 1 else _AXES.get(len(axes))
        titles = titles or [f"Axis {k + 1}" for k in range(len(axes))]
        titles = [*titles[1:], titles[0]] if any(channels_last[i : i + 1]) else titles
        for title, labels in zip(titles, axes, strict=True):
            lines.append(_cut(f"    - {title} ({len(labels)}): ", labels))
    return lines


def _cut(head: str, labels: Sequence[str]) -> str:
    """Return as many labels as fit into a line, the last one cut if it is long."""
    line, end = head + ", ".join(labels), ", ..."
    if len(line) <= _WIDTH:
        return line
    kept = line[: _WIDTH - len(end)]
    whole = kept.rpartition(", ")[0]
    return whole + end if len(whole) > len(head) else kept.rstrip() + "..."


def _layers(converter: Converter, limit: int = 30) -> list[str]:
    shapes = converter.trial.shapes
    lines = []
    for node in converter.graph.nodes:
        if any(node.kernel.active):
            came = [shapes[n][1:] for n in node.inputs if n in converter.graph.active]
            went = [shapes[node.outputs[0]][1:]] if node.outputs[0] in shapes else []
            what = f"{_short(node.name)} ({_kind(node, converter)})"
            lines.append(f"{len(lines) + 1}. {what}: {_shapes(came)} -> {_shapes(went)}")
    if len(lines) > limit:
        half = limit // 2
        return [*lines[:half], f"... ({len(lines) - 2 * half} more)", *lines[-half:]]
    return lines


def _short(name: str, length: int = 40) -> str:
    """Cut a name in front, where names of nodes differ least."""
    return name if len(name) <= length else "..." + name[3 - length :]


def _kind(node: Node, converter: Converter) -> str:
    """Return innsight's name of a layer where there is one, else the operator."""
    from .methods.lrp import layer_name

    layer = layer_name(node, converter)
    return f"{layer}_Layer" if layer else node.op
