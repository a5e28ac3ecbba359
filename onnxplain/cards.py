"""What notebooks show of a model or a result: a compact card, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from .errors import shortened
from .results import (
    batch_size,
    channels_first_array,
    decomposition,
    output_labels,
    predictions,
    selected_outputs,
)

ROWS = 5
NAMES = 8

# Colours come from the page around it.
BOX = (
    "border:1px solid rgba(128,128,128,.4);border-radius:6px;padding:.6em .9em;"
    "display:inline-block;max-width:56em;font-size:13px;line-height:1.5"
)
TABLE = "border-collapse:collapse;margin:.3em 0;color:inherit;font-size:inherit"
PALE = "normal;opacity:.7;white-space:nowrap"
CELL = "text-align:left;padding:.1em 1em .1em 0;vertical-align:top;font-weight:"


def method_card(method: Any) -> str:
    """A card of a result: what was explained, and whether the first data points add up."""
    points = "no data" if getattr(method, "is_global", False) else f"{batch_size(method)} rows"
    facts = [("values", f"{method.value_name}, {_ranges(method)}")]
    for j in selected_outputs(method):
        several = len(method.output_idx) > 1
        facts.append(
            (f"nodes of output {j + 1}" if several else "nodes", _few(output_labels(method, j)))
        )
    own = method._describe() if hasattr(method, "_describe") else []
    facts += [tuple(line.lstrip("- ").split(": ", 1)) for line in own if ": " in line]
    return _card(f"{method.method_name} · {points}", facts, *_scores(method))


def _ranges(method: Any) -> str:
    words = []
    for s in range(len(method.result)):
        for i in range(len(method.input_names)):
            array = channels_first_array(method, s, i)
            if array is None:
                words.append("not connected")
                continue
            shape = " × ".join(map(str, method.result[s][i].shape))
            finite = array[np.isfinite(array)]
            ends = f" from {finite.min():.4g} to {finite.max():.4g}" if finite.size else ""
            missing = array.size - finite.size
            words.append(f"{shape}{ends}" + (f" ({missing} not finite)" if missing else ""))
    return "; ".join(words)


def _scores(method: Any) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Prediction, sum and goal of the first data points at their largest explained node."""
    head = ("", "node", "prediction", "sum", "goal")
    pred = predictions(method, 0)
    if pred is None:
        return head, []
    labels = output_labels(method, selected_outputs(method)[0])
    # A plain gradient is not meant to add up to anything.
    fields = () if method.value_name == "Gradient" else ("decomp_sum", "decomp_goal")
    columns = [pred, *(decomposition(method, 0, field) for field in fields)]
    rows = []
    for b, k in enumerate(np.nan_to_num(pred[:ROWS]).argmax(axis=1)):
        numbers = ["–" if c is None else f"{c[b, k]:.4g}" for c in columns]
        rows.append((f"data_{b + 1}", str(labels[k]), *numbers))
    return head[: 2 + len(columns)], rows


def converter_card(converter: Any) -> str:
    """A card of a model: its inputs and outputs, and what it is made of."""
    facts = []
    for what, dims, names in (
        ("input", converter.input_dim, converter.input_names),
        ("output", converter.output_dim, converter.output_names),
    ):
        for k, (dim, axes) in enumerate(zip(dims, names, strict=True)):
            title = f"{what} {k + 1}" if len(dims) > 1 else what
            shape = " × ".join(map(str, dim)) or "one number"
            facts.append((title, f"{shape}: {'; '.join(map(_few, axes))}"))
    weights = converter.raw.initializers.values()
    facts += [
        ("weights", f"{sum(array.size for array in weights):,}"),
        ("nodes", f"{len(converter.graph.nodes)}, opset {converter.graph.opset}"),
        ("SHA-256", converter.model_hash[:16] + "…"),
    ]
    if converter.skipped_outputs:
        facts.append(("not explained", _few(converter.skipped_outputs)))
    return _card("Converter", facts)


def _few(names: Sequence[Any]) -> str:
    words = ", ".join(shortened(str(name), 40) for name in names[:NAMES])
    return words if len(names) <= NAMES else f"{words}, … ({len(names)})"


def _card(
    title: str,
    facts: Iterable[Sequence[str]],
    head: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
) -> str:
    lines = "".join(_row(pair, (PALE, "normal")) for pair in facts)
    table = _row(head, [PALE] * len(head)) if rows else ""
    table += "".join(_row(row, ["normal"] * len(row)) for row in rows)
    tables = "".join(f"<table style='{TABLE}'>{part}</table>" for part in (lines, table) if part)
    return f"<div style='{BOX}'><b>{escape(title)}</b>{tables}</div>"


def _row(cells: Sequence[str], styles: Sequence[str]) -> str:
    tds = (
        f"<td style='{CELL}{style}'>{escape(shortened(str(cell), 300))}</td>"
        for cell, style in zip(cells, styles, strict=True)
    )
    return f"<tr>{''.join(tds)}</tr>"
