"""The parts of a report, each a piece of HTML.

Plots are JSON that the page reads when they are asked for. The arrays of images stand in a pool, so
that plots share them: whole numbers of steps, two bytes each, or one where there are
many, deflated.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
import platform
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from ..coverage import LEDGER_COLUMNS
from ..errors import ArgumentError, counted, shown
from ..results import (
    batch_size,
    data_labels,
    decomposition,
    input_shape,
    output_labels,
    selected_outputs,
)
from .common import Panel, Sheet, number
from .page import as_json, asset, scripts
from .plotly import described
from .sheets import (
    beeswarm_sheet,
    compare_sheet,
    global_sheet,
    input_kind,
    instance_sheet,
    waterfall_sheet,
)

Cell = Any  # a text, a number, or a piece of HTML in `Html`

NUMBERS = float, int, np.number
MAX_BOOKED = 1000  # data points: a ledger walks through all of them again
IMAGE_BYTES = 6_000_000  # of all images: more are written with one byte per pixel
LISTED = 8  # entries before the rest is counted
TOP = 3  # predictions of a data point
ALL = "All side by side"
SINGLE_PARTS = "Method", "Data point", "Node", "Plot"
OVERALL_PARTS = "Method", "Node", "Plot"


@dataclass(frozen=True)
class Facts:
    """What a report is about.

    Attributes
    ----------
    arrays
        The data, channels first.
    rows
        The data points that are shown one by one.
    explained, arguments
        Methods by title, and what they were called with; None if they ran before.
    """

    converter: Any
    arrays: Sequence[Any]
    rows: list[int]
    explained: dict[str, Any]
    arguments: dict[str, dict[str, Any] | None]
    title: str
    model_name: str

    @property
    def several(self) -> bool:
        return len(self.converter.input_dim) > 1


class Html(str):
    """A piece of HTML, which is not escaped again."""


# ---------------------------------------------------------------- the page


def report_page(facts: Facts) -> str:
    """The whole page."""
    title = facts.title or f"Explanation of {Path(facts.model_name).name or 'a model'}"
    pool = Pool(_image_pixels(facts))
    parts = {
        "title": escape(title),
        "style": asset("page.css") + asset("report.css"),
        "lead": _lead(facts),
        "model": _model(facts),
        "coverage": _coverage(facts),
        "predictions": _predictions(facts),
        "instances": _plots(
            "instance", ("Method", "Data point", "Node", "Plot"), _singles(facts, pool)
        ),
        "overall": _plots("overall", ("Method", "Node", "Plot"), _many(facts, pool)),
        "checks": _checks(facts),
        "parameters": _parameters(facts),
        "scripts": scripts(),
        "report_script": asset("report.js"),
    }
    return Template(asset("report.html")).substitute(parts, pool=pool.html())


def _lead(facts: Facts) -> str:
    methods = ", ".join(map(escape, facts.explained))
    batch = len(facts.arrays[0])
    points = "1 data point" if batch == 1 else f"{batch:,} data points"
    nodes = {label for method in facts.explained.values() for label, _ in _nodes(method)}
    note = " top1 is the node with the largest prediction." if "top1" in nodes else ""
    return (
        f"<p class='lead'>{methods} for {points}, {len(facts.rows)} of them one by one.{note}</p>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str = "") -> str:
    """A table whose numbers stand at the right."""
    rows = list(rows)
    titles = "".join(
        f"<th scope='col'{_style(column)}>{escape(title)}</th>"
        for title, column in zip(
            head, zip(*rows, strict=True) if rows else [()] * len(head), strict=True
        )
    )
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f"<div class='wide' tabindex='0'><table>{named}<thead><tr>{titles}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _style(cells: Sequence[Cell]) -> str:
    return " class='number'" if any(isinstance(cell, NUMBERS) for cell in cells) else ""


def _cell(value: Cell) -> str:
    if isinstance(value, NUMBERS):
        text = (
            "–"
            if np.isnan(value)
            else f"{value:,}"
            if isinstance(value, int)
            else number(float(value))
        )
        return f"<td class='number'>{text}</td>"
    return f"<td>{_inside(value)}</td>"


def facts_list(pairs: Iterable[tuple[str, Cell]]) -> str:
    """Names and what they are."""
    rows = (f"<dt>{escape(name)}</dt><dd>{_inside(value)}</dd>" for name, value in pairs)
    return f"<dl>{''.join(rows)}</dl>"


def _inside(value: Cell) -> str:
    return value if isinstance(value, Html) else escape(str(value))


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def _code(text: str) -> Html:
    return Html(f"<code>{escape(text)}</code>")


# ---------------------------------------------------------------- the model


def _model(facts: Facts) -> str:
    converter, raw = facts.converter, facts.converter.raw
    weights = raw.initializers.values()
    size = sum(array.nbytes for array in weights)
    pairs: list[tuple[str, Cell]] = [
        ("Model", facts.model_name or "given in memory"),
        ("SHA-256", _code(converter.model_hash)),
        ("Weights", f"{sum(array.size for array in weights):,} numbers, {_bytes(size)}"),
        ("Opset", ", ".join(f"{domain or 'ai.onnx'} {n}" for domain, n in raw.opsets.items())),
        ("Nodes", f"{len(raw.nodes)} in the file, {len(converter.graph.nodes)} after joining"),
    ]
    file = Path(facts.model_name) if facts.model_name else None
    if file is not None and file.is_file():
        pairs.insert(1, ("File size", _bytes(file.stat().st_size)))
        pairs[0] = ("Model", file.name)
    layers = [
        *_layers("input", raw.inputs, converter.input_dim, converter.input_names),
        *_layers(
            "output",
            [spec for spec in raw.outputs if spec.name in converter.graph.outputs],
            converter.output_dim,
            converter.output_names,
        ),
    ]
    if converter.skipped_outputs:
        pairs.append(("Not explained", ", ".join(converter.skipped_outputs)))
    head = ("", "Name", "Type", "Shape of a data point", "Labels")
    return facts_list(pairs) + table(head, layers, "Inputs and outputs")


def _layers(
    what: str, specs: Sequence[Any], dims: Sequence[Any], names: Sequence[Any]
) -> Iterator[Sequence[Cell]]:
    for k, dim in enumerate(dims):
        spec = specs[k] if k < len(specs) else None
        labels = "; ".join(_some(axis) for axis in names[k])
        kind = "" if spec is None else str(spec.dtype)
        shape = " × ".join(map(str, dim)) or "one number"
        yield f"{what} {k + 1}", "" if spec is None else spec.name, kind, shape, labels


def _some(words: Sequence[Any]) -> str:
    found = ", ".join(shown_word(word) for word in words[:LISTED])
    return found if len(words) <= LISTED else f"{found}, … ({len(words)})"


def shown_word(word: Any, length: int = 40) -> str:
    text = str(word)
    return text if len(text) <= length else text[: length - 1] + "…"


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{size:.0f} bytes"
        size /= 1000
    return f"{size:.3g} GB"


# ---------------------------------------------------------------- coverage

GROUPS = ("exact", "by convention", "not exact", "no rule")


def _coverage(facts: Facts) -> str:
    summary, details = [], []
    for title, method in facts.explained.items():
        try:
            nodes = facts.converter.coverage(type(method).__name__)
        except ArgumentError:  # a method that does not walk the graph
            summary.append((title, *["–"] * len(GROUPS)))
            continue
        nodes = nodes[nodes["family"] != "constant"]
        group = np.array([_group(node) for node in nodes.itertuples()], dtype=object)
        summary.append((title, *(int((group == name).sum()) for name in GROUPS)))
        special = nodes[group != "exact"].assign(group=group[group != "exact"])
        if len(special):
            rows = [
                (of, op, rule or "–", remark, len(found), _some(list(found["node"])))
                for (of, op, rule, remark), found in special.groupby(
                    ["group", "op", "rule", "remark"], sort=False
                )
            ]
            head = ("Group", "Operator", "Rule", "Remark", "Nodes", "Names")
            told = f"{title}: {counted(len(special), 'node')} treated otherwise than exactly"
            details.append(_folded(told, table(head, rows)))
    return table(("Method", *GROUPS), summary, "Nodes of the graph by method") + "".join(details)


def _group(node: Any) -> str:
    if not node.rule:
        return "no rule"
    if not node.exact:
        return "not exact"
    return "by convention" if "convention" in node.remark or "Attn" in node.remark else "exact"


# ---------------------------------------------------------------- predictions


def _predictions(facts: Facts) -> str:
    found = facts.converter([x[facts.rows] for x in facts.arrays])
    several = len(found) > 1
    head, columns = ["Data point"], []
    for j, (scores, names) in enumerate(zip(found, facts.converter.output_names, strict=True)):
        place = f"Output {j + 1}" if several else "Prediction"
        flat = np.asarray(scores).reshape(len(facts.rows), -1)
        labels = _node_names(names)
        order = np.argsort(-flat, axis=1, kind="stable")[:, :TOP]
        for rank in range(min(TOP, flat.shape[1])):
            head.append(place if rank == 0 else f"{place}: {('second', 'third')[rank - 1]}")
            columns.append([_score(row, order[n, rank], labels) for n, row in enumerate(flat)])
    labels = data_labels(len(facts.arrays[0]))
    rows = [(labels[b], *(column[n] for column in columns)) for n, b in enumerate(facts.rows)]
    return table(head, rows, "What the model predicts")


def _score(row: np.ndarray, k: int, labels: list[str]) -> Cell:
    if len(row) == 1:
        return float(row[0])
    return Html(f"{escape(shown_word(labels[k]))} <b>{number(float(row[k]))}</b>")


def _node_names(names: Any) -> list[str]:
    from ..names import node_labels

    return [str(label) for label in node_labels(names)]


# ---------------------------------------------------------------- plots


class Pool:
    """Arrays that plots share, each written once, as whole numbers of steps."""

    def __init__(self, pixels: int) -> None:
        self.few = 2 * pixels * 4 / 3 <= IMAGE_BYTES
        self.texts: dict[str, str] = {}

    def pack(self, values: np.ndarray, scale: float) -> dict[str, Any]:
        """Write an image; its values are at most `scale`, grey values (scale 0) are bytes."""
        if values.dtype == np.uint8:
            numbers, step = values, 1.0
        else:
            numbers, step = self._steps(values, scale)
        data = numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()
        name = "a" + hashlib.sha256(data + numbers.dtype.str.encode()).hexdigest()[:16]
        if name not in self.texts:
            self.texts[name] = base64.b64encode(zlib.compress(data)).decode("ascii")
        kind = numbers.dtype.str[1:]
        return {"pool": name, "dtype": kind, "step": step, "width": values.shape[1]}

    def _steps(self, values: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
        kind, most = (np.int16, 32767) if self.few else (np.int8, 127)
        step = (scale or 1.0) / most
        steps = np.rint(np.nan_to_num(values) / step).clip(-most, most)
        return np.where(np.isfinite(values), steps, -most - 1).astype(kind), step

    def html(self) -> str:
        return "\n".join(
            f'<script type="text/plain" id="{name}">{text}</script>'
            for name, text in self.texts.items()
        )


def _image_pixels(facts: Facts) -> int:
    """How many pixels all heat maps of the page have together."""
    total = 0
    for method in facts.explained.values():
        nodes = sum(len(output_labels(method, j)) for j in selected_outputs(method))
        pictures = nodes * (len(facts.rows) + 9)  # and the percentiles
        images = [i for i in range(len(method.input_names)) if len(method.input_names[i]) == 3]
        total += pictures * sum(prod(input_shape(method, i)[-2:]) for i in images)
    return total


def _first(method: Any, rows: list[int]) -> Any:
    """A method with no more than the data points to show one by one, and those before them."""
    few = slice(0, max(rows) + 1)
    other = copy(method)
    other.result = [[x if x is None else x[few] for x in row] for row in method.result]
    for name in ("preds", "decomp_goal", "data", "_top"):
        arrays = vars(method).get(name)
        if isinstance(arrays, list | tuple):
            setattr(other, name, [x if x is None else x[few] for x in arrays])
    return other


def _singles(facts: Facts, pool: Pool) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Plots of single data points, under method, data point, node and kind of plot."""
    labels = data_labels(len(facts.arrays[0]))
    for title, method in facts.explained.items():
        whole = getattr(method, "is_global", False)
        method = method if whole else _first(method, facts.rows)
        for b in [0] if whole else facts.rows:
            for node, place in _nodes(method):
                for kind, sheet in _kinds_of_one(method, b, place):
                    label = "all alike" if whole else labels[b]
                    yield (title, label, node, kind), _figure(sheet, pool)
    yield from _side_by_side(facts, pool)


def _side_by_side(facts: Facts, pool: Pool) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The same data point by all methods that explain its inputs, at a node that all have."""
    methods = {
        title: _first(method, facts.rows)
        for title, method in facts.explained.items()
        if not getattr(method, "is_global", False)
    }
    shapes = {str([input_shape(m, i) for i in range(len(m.input_names))]) for m in methods.values()}
    if len(methods) < 2 or len(shapes) > 1:
        return
    labels = data_labels(len(facts.arrays[0]))
    first = next(iter(methods.values()))
    common = [n for n in _nodes(first) if all(n in list(_nodes(m)) for m in methods.values())]
    for b in facts.rows:
        for node, place in common:
            overlay = any(input_kind(first, i) != "table" for i in range(len(first.input_names)))
            sheet = _over(compare_sheet, methods, b, place, overlay=overlay)
            kind = "Over the input" if overlay else "Values"
            yield (ALL, labels[b], node, kind), _figure(sheet, pool)


def _nodes(method: Any) -> Iterator[tuple[str, list[Any]]]:
    """Labels of explained nodes, and how to select them."""
    outputs = selected_outputs(method)
    for j in outputs:
        for label, entry in zip(output_labels(method, j), method.output_idx[j], strict=True):
            place = f"Output_{j + 1}: {label}" if len(method.output_idx) > 1 else label
            entry = entry if isinstance(entry, str) else int(entry)
            yield place, [[entry] if k == j else None for k in range(len(method.output_idx))]


def _kinds_of_one(method: Any, b: int, place: list[Any]) -> Iterator[tuple[str, Sheet]]:
    kinds = [input_kind(method, i) for i in range(len(method.input_names))]
    if set(kinds) != {"table"}:
        yield "Over the input", _over(instance_sheet, method, b, place, overlay=True)
    over = set(kinds) == {"table"}  # names of features with their values
    yield "Values", _over(instance_sheet, method, b, place, overlay=over)
    if "table" in kinds:
        yield "Waterfall", waterfall_sheet(method, b, place)


def _over(make: Callable[..., Sheet], method: Any, b: int, place: Any, overlay: bool) -> Sheet:
    """A sheet over the input, or without it where the method does not have it."""
    try:
        return make(method, b, place, overlay=overlay)
    except ArgumentError:
        return make(method, b, place)


def _many(facts: Facts, pool: Pool) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Plots of all data points, under method, node and kind of plot."""
    for title, method in facts.explained.items():
        if getattr(method, "is_global", False) or batch_size(method) < 2:
            continue
        kinds = [input_kind(method, i) for i in range(len(method.input_names))]
        for node, place in _nodes(method):
            for kind, preprocess in (("Size of values", abs), ("Values", None)):
                sheet = global_sheet(method, place, preprocess=preprocess, interactive=True)
                yield (title, node, kind), _figure(sheet, pool)
            if "table" in kinds:
                yield (title, node, "Beeswarm"), _figure(beeswarm_sheet(method, place), pool)


def _figure(sheet: Sheet, pool: Pool) -> dict[str, Any]:
    return described(sheet, pool.pack) | {"alt": _told(sheet)}


def _told(sheet: Sheet) -> str:
    """What a plot shows, in words, for those who do not see it."""
    return ". ".join(_panel_told(panel) for panel in sheet)


def _panel_told(panel: Panel) -> str:
    where = ", ".join(x for x in (panel.method, panel.data, panel.output, panel.input) if x)
    if panel.values is None:
        return f"{where}: not connected"
    if panel.values.ndim > 1 or panel.kind != "table":
        low, high = panel.limits
        return f"{where}: {panel.title} from {number(low)} to {number(high)}"
    order = np.argsort(-np.abs(np.nan_to_num(panel.values)), kind="stable")[:TOP]
    largest = (f"{shown_word(panel.names[0][k])} {number(panel.values[k])}" for k in order)
    return f"{where}: {panel.title}, largest {', '.join(largest)}"


def _plots(
    name: str,
    parts: Sequence[str],
    figures: Iterable[tuple[tuple[str, ...], dict[str, Any]]],
) -> str:
    """Controls to choose a plot, a place for it, and all plots as data."""
    scripts, index = [], {}
    for k, (key, figure) in enumerate(figures):
        index["\n".join(key)] = f"{name}{k}"
        scripts.append(f'<script type="application/json" id="{name}{k}">{as_json(figure)}</script>')
    if not index:
        return "<p>No plot: the methods use no data, or there is a single data point.</p>"
    keys = as_json({"parts": list(parts), "figures": index})
    return (
        f'<div class="chooser" id="{name}"><div class="controls choice"></div>'
        '<div class="plot" aria-live="polite"></div></div>'
        f'<script type="application/json" id="{name}-index">{keys}</script>' + "\n".join(scripts)
    )


# ---------------------------------------------------------------- do the values add up?


def _checks(facts: Facts) -> str:
    summary, details = [], []
    for title, method in facts.explained.items():
        found = list(_sums(method))
        if not found or method.value_name == "Gradient":
            summary.append((title, "–", "–", "its values are not meant to add up"))
            continue
        gap = max(float(np.max(np.abs(total - goal))) for _, goal, total in found)
        size = max(float(np.max(np.abs(goal))) for _, goal, _ in found)
        summary.append((title, gap, gap / size if size else 0.0, _remark(method, gap, size)))
        rows = list(_sum_rows(facts, found))
        head = ("Data point", "Node", "Goal", "Sum", "Difference")
        details.append(_folded(f"{title}: goal, sum and difference", table(head, rows)))
        details.append(_ledger(title, method))
    head = ("Method", "Largest difference", "Relative to the largest goal", "")
    caption = "Sum of the values, against what it should be, over all data points"
    return table(head, summary, caption) + "".join(details)


def _sums(method: Any) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Labels of nodes, goals and sums (batch, nodes) per explained output."""
    for s, j in enumerate(selected_outputs(method)):
        goal, total = (decomposition(method, s, f) for f in ("decomp_goal", "decomp_sum"))
        if goal is not None and total is not None:
            yield output_labels(method, j), goal, total


def _remark(method: Any, gap: float, size: float) -> Html:
    if np.isnan(gap):
        return Html("<span class='bad'>not finite</span>")
    if gap <= 1e-4 * max(size, 1e-30):
        return Html("<span class='good'>adds up</span>")
    books = type(method).ledger is not _no_ledger()
    return Html("differs by what rules and biases absorb" if books else "differs")


def _sum_rows(facts: Facts, found: Any) -> Iterator[Sequence[Cell]]:
    names = data_labels(len(facts.arrays[0]))
    for b in facts.rows:
        for labels, goal, total in found:
            for k, label in enumerate(labels):
                g, t = float(goal[b, k]), float(total[b, k])
                difference = Html(f"{t - g:.1e}")
                yield names[b], shown_word(label), g, t, difference


def _ledger(title: str, method: Any) -> str:
    """Where relevance was absorbed: the totals, and the nodes that took most."""
    if batch_size(method) > MAX_BOOKED or type(method).ledger is _no_ledger():
        return ""
    books = method.ledger()
    kinds = [column for column in books if column not in LEDGER_COLUMNS]
    taken = books[kinds].abs().sum(axis=1) if kinds else np.abs(books["gap"])
    books = books.assign(taken=taken)
    totals = [(kind, float(books[kind].sum())) for kind in kinds]
    most = books[books["taken"] > 0].nlargest(LISTED, "taken")
    rows = [
        (entry["node"], entry["op"], entry["rule"], *(float(entry[kind]) for kind in kinds))
        for entry in most.to_dict("records")
    ]
    text = f"<p>Largest gap that no node explains: {books['gap'].max():.1e}.</p>"
    if totals:
        text += table(("Absorbed by", "Total over all data points and nodes"), totals)
    if rows:
        text += table(("Node", "Operator", "Rule", *kinds), rows, "Nodes that absorb most")
    return _folded(f"{title}: ledger", text)


def _no_ledger() -> Any:
    from ..methods.base import Method

    return Method.ledger


# ---------------------------------------------------------------- how to get the same again


def _parameters(facts: Facts) -> str:
    parts = []
    for title, method in facts.explained.items():
        rows = [(name, _code(_value(value))) for name, value in _settings(method)]
        parts.append(_folded(title, table(("Argument", "Value"), rows)))
    packages = ("onnxplain", "numpy", "onnx", "scipy", "plotly")
    pairs: list[tuple[str, Cell]] = [
        (
            f"Data {k + 1}" if facts.several else "Data",
            Html(f"{' × '.join(map(str, x.shape))} {x.dtype}, SHA-256 <code>{_digest(x)}</code>"),
        )
        for k, x in enumerate(facts.arrays)
    ]
    pairs.append(("Python", f"{platform.python_version()}, {platform.machine()}"))
    pairs += [(name, _version(name)) for name in packages]
    code = f"<pre><code>{escape(_program(facts))}</code></pre>"
    return "".join(parts) + facts_list(pairs) + code


def _settings(method: Any) -> Iterator[tuple[str, Any]]:
    """Arguments of a method and what they are, as far as it keeps them."""
    for name in list(inspect.signature(type(method)).parameters)[2:]:
        value = vars(method).get(name, inspect.Parameter.empty)
        if value is not inspect.Parameter.empty and name != "verbose":
            yield name, value


def _value(value: Any) -> str:
    if hasattr(value, "shape") and getattr(value, "size", 0) > 1:
        return f"array of shape {tuple(value.shape)}"
    if isinstance(value, list) and any(hasattr(entry, "shape") for entry in value):
        return ", ".join(_value(entry) for entry in value)
    return shown(value, 200)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _digest(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _program(facts: Facts) -> str:
    """The lines that give these numbers again."""
    model = Path(facts.model_name).name or "model.onnx"
    lines = ["import onnxplain as ox", "", f"converter = ox.convert({model!r})"]
    for title, method in facts.explained.items():
        given = facts.arguments[title]
        if given is None:
            given = {n: v for n, v in _settings(method) if v is not None}
        told = "".join(
            f", {name}={_value(value)}" for name, value in given.items() if value is not None
        )
        lines.append(f"ox.{type(method).__name__}(converter, data{told})")
    return "\n".join(lines)
