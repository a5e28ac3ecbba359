"""What a plot shows, before anything is drawn: selection, channels added up, scales, labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from ..errors import ArgumentError, SelectionError
from ..results import (
    batch_size,
    channels_first_array,
    channels_last,
    data_labels,
    decomposition,
    output_labels,
    predictions,
    selected_outputs,
)

Aggregation: TypeAlias = str | Callable[..., Any]
Kind: TypeAlias = Literal["table", "signal", "image"]

MAX_PANELS = 100
TOP_FEATURES = 30

AGGREGATIONS: dict[str, Callable[..., np.ndarray]] = {
    "sum": np.sum,
    "mean": np.mean,
    "norm": np.linalg.norm,
}


@dataclass(frozen=True)
class Node:
    """An explained node: place of its output in the result, its own place there, its label."""

    s: int
    k: int
    label: str


@dataclass(frozen=True)
class Panel:
    """One picture: what one input says about one output node.

    `values` is (features,), (length,) or (height, width); over several data points it has them as
    first axis, except for images, where it is their median. It is None without a path from input
    to output. `scale` is the absolute value that gets the full colour, `limits` the range shown.
    """

    kind: Kind
    values: np.ndarray | None
    names: list[list[str]]
    output: str
    input: str = ""
    data: str = ""
    reference: np.ndarray | None = None
    scale: float = 1.0
    limits: tuple[float, float] = (0.0, 0.0)
    info: dict[str, float] = field(default_factory=dict)
    left_out: int = 0  # features that are not shown
    rest: bool = False  # whether the last value is the sum of features not shown

    @property
    def coloured(self) -> Any:
        """The values whose size sets the colour scale."""
        return self.values[:-1] if self.rest and self.values is not None else self.values


Grid: TypeAlias = list[list[Panel]]  # rows: data points, columns: nodes, in them inputs


# ---------------------------------------------------------------- what is shown


def instance_panels(
    method: Any,
    data_idx: Any,
    output_idx: Any,
    output_label: Any,
    aggr_channels: Aggregation,
    same_scale: bool,
) -> Grid:
    """The panels of `plot`: one row per data point."""
    rows, nodes = select_data(method, data_idx), select_nodes(method, output_idx, output_label)
    inputs = range(len(method.input_names))
    _check_panels(len(rows), len(nodes) * len(inputs))
    results = _Results(method)
    labels = data_labels(batch_size(method))
    grid = []
    for b in rows:
        row = []
        for node in nodes:
            group = []
            for i in inputs:
                values = results.of(node, i)
                values = None if values is None else add_channels(values[b], 0, aggr_channels)
                panel = _panel(method, node, i, values)
                group.append(replace(panel, data="" if _is_global(method) else labels[b]))
            row += [replace(group[0], info=_info(method, node, b)), *group[1:]]
        grid.append(row)
    together = len(inputs) if same_scale else 1
    return [_scaled(row, together) for row in _shorten(grid, len(inputs), rest=True)]


def global_panels(
    method: Any,
    output_idx: Any,
    output_label: Any,
    data_idx: Any,
    ref_data_idx: int | None,
    aggr_channels: Aggregation,
    preprocess: Callable[[np.ndarray], np.ndarray] | None,
) -> Grid:
    """The panels of `plot_global`: a single row, values over many data points."""
    if _is_global(method):
        raise ArgumentError(
            "plot_global shows how results spread over data, and global connection weights use no "
            "data: use plot(), or run the method with times_input=True and data"
        )
    whole = isinstance(data_idx, str) and data_idx == "all"
    rows = slice(None) if whole else select_data(method, data_idx)
    reference = None
    if ref_data_idx is not None:
        reference = select_data(method, ref_data_idx, "ref_data_idx")
        if len(reference) != 1:
            raise ArgumentError(f"ref_data_idx is one data point, not {ref_data_idx!r}")
    nodes = select_nodes(method, output_idx, output_label)
    inputs = range(len(method.input_names))
    _check_panels(1, len(nodes) * len(inputs))
    results = _Results(method)

    def prepared(node: Node, i: int, chosen: Any) -> np.ndarray | None:
        values = results.of(node, i)
        if values is None or chosen is None:
            return None
        values = _preprocessed(values[chosen], preprocess)
        return add_channels(values, 1, aggr_channels)

    row = []
    for node in nodes:
        for i in inputs:
            values = prepared(node, i, rows)
            panel = _panel(method, node, i, values)
            if panel.kind == "image" and values is not None:
                panel = replace(panel, values=np.median(values, axis=0))
            else:
                against = prepared(node, i, reference)
                panel = replace(panel, reference=None if against is None else against[0])
            row.append(panel)
    (row,) = _shorten([row], len(inputs), rest=False)
    # Images of all nodes share one scale, so that they can be compared.
    images = [p for p in row if p.kind == "image"]
    shared = iter(_scaled(images, max(len(images), 1)))
    return [[next(shared) if p.kind == "image" else _scaled([p], 1)[0] for p in row]]


def input_kind(method: Any, i: int) -> Kind:
    """Whether input `i` is a table, a signal or an image."""
    axes = len(method.input_names[i])
    if axes > 3:
        raise ArgumentError(
            f"Input_{i + 1} has {axes} axes; plots show tables, signals (channels, length) and "
            "images (channels, height, width). Use get_result() and draw a slice of it"
        )
    return ("table", "table", "signal", "image")[axes]  # type: ignore[return-value]


class _Results:
    """The result of each output and input, fetched from its device once."""

    def __init__(self, method: Any) -> None:
        self.method, self.arrays = method, {}

    def of(self, node: Node, i: int) -> np.ndarray | None:
        """Values (batch, *dims) of a node, channels first."""
        if (node.s, i) not in self.arrays:
            array = channels_first_array(self.method, node.s, i)
            if array is not None and channels_last(self.method, i):
                array = np.moveaxis(array, -2, 1)
            self.arrays[node.s, i] = array
        array = self.arrays[node.s, i]
        return None if array is None else array[..., node.k]


def _panel(method: Any, node: Node, i: int, values: np.ndarray | None) -> Panel:
    names = [[str(label) for label in axis] for axis in method.input_names[i]]
    if channels_last(method, i):
        names = [names[-1], *names[:-1]]
    if not names:  # a single number: one bar
        names = [[f"Input_{i + 1}"]]
        values = None if values is None else values[..., None]
    several = len(method.input_names) > 1
    return Panel(
        kind=input_kind(method, i),
        values=values,
        names=names[1:] if len(names) > 1 else names,
        output=node.label,
        input=f"Input_{i + 1}" if several else "",
    )


def _info(method: Any, node: Node, b: int) -> dict[str, float]:
    """Prediction, sum and goal of a data point, as far as the method has them."""
    found = {
        "Pred.:": predictions(method, node.s),
        "Sum:": decomposition(method, node.s, "decomp_sum"),
        "Goal:": decomposition(method, node.s, "decomp_goal"),
    }
    info = {name: float(v[b, node.k]) for name, v in found.items() if v is not None}
    return {name: value for name, value in info.items() if not np.isnan(value)}


def _is_global(method: Any) -> bool:
    return bool(getattr(method, "is_global", False))


def _check_panels(rows: int, columns: int) -> None:
    if rows * columns > MAX_PANELS:
        raise SelectionError(
            f"this plot would have {rows} x {columns} panels, more than {MAX_PANELS}: "
            "choose fewer with data_idx and output_idx"
        )


# ---------------------------------------------------------------- selection


def select_data(method: Any, data_idx: Any, name: str = "data_idx") -> list[int]:
    """Data points as a list of indices, checked."""
    batch = batch_size(method)
    rows = [data_idx] if _is_index(data_idx) else data_idx
    if isinstance(rows, str) or not isinstance(rows, Sequence | np.ndarray):
        raise ArgumentError(f"{name} is {data_idx!r}, expected one index or a list of indices")
    rows = list(rows)
    if not rows:
        raise SelectionError(f"{name} is empty: nothing to show")
    for row in rows:
        if not _is_index(row):
            raise ArgumentError(f"{name} holds {row!r}, expected whole numbers")
        if not 0 <= row < batch:
            raise SelectionError(
                f"{name} is {row}, but the result has {batch} data point(s), counted from 0: "
                f"expected 0 to {batch - 1}"
            )
    return [int(row) for row in rows]


def select_nodes(method: Any, output_idx: Any = None, output_label: Any = None) -> list[Node]:
    """Output nodes, checked against those that were explained; by default the first of them.

    `output_idx` and `output_label` are one node, a list of nodes of the first explained output, or
    a list with one such list, or None, per output of the model.
    """
    by_idx = _places(method, output_idx, "output_idx")
    by_label = _places(method, output_label, "output_label")
    if by_idx is not None and by_label is not None and set(by_idx) != set(by_label):
        raise SelectionError(
            f"output_idx={output_idx!r} and output_label={output_label!r} denote different nodes: "
            "give one of them"
        )
    chosen = by_idx if by_idx is not None else by_label
    chosen = [(0, 0)] if chosen is None else chosen
    if not chosen:
        raise SelectionError("no output node is selected: nothing to show")
    return [Node(s, k, _node_label(method, s, k)) for s, k in chosen]


def _places(method: Any, asked: Any, name: str) -> list[tuple[int, int]] | None:
    """(place of the output in the result, place of the node in it) of each asked node."""
    if asked is None:
        return None
    outputs = selected_outputs(method)
    places = []
    for j, wanted in _per_output(method, asked, name):
        if j not in outputs:
            raise SelectionError(
                f"{name} asks for Output_{j + 1}, which was not explained; explained: "
                + ", ".join(f"Output_{k + 1}" for k in outputs)
            )
        nodes = method.output_idx[j] if name == "output_idx" else output_labels(method, j)
        nodes = [int(n) for n in nodes] if name == "output_idx" else nodes
        for node in wanted:
            if node not in nodes:
                known = ", ".join(map(repr, nodes[:20])) + (", ..." if len(nodes) > 20 else "")
                raise SelectionError(
                    f"{name} {node!r} is not among the explained nodes of Output_{j + 1}: {known}. "
                    f"Run the method with it in {name} to explain it"
                )
            places.append((outputs.index(j), nodes.index(node)))
    return places


def _per_output(method: Any, asked: Any, name: str) -> list[tuple[int, list[Any]]]:
    is_item = _is_index if name == "output_idx" else lambda x: isinstance(x, str)
    if is_item(asked):
        asked = [asked]
    if isinstance(asked, str) or not isinstance(asked, Sequence | np.ndarray):
        raise ArgumentError(f"{name} is {asked!r}, expected {_what(name)} or a list of them")
    asked = list(asked)
    if all(map(is_item, asked)):
        return [(selected_outputs(method)[0], asked)] if asked else []
    if len(asked) > len(method.output_idx):
        raise SelectionError(
            f"{name} has {len(asked)} entries, but the model has {len(method.output_idx)} output(s)"
        )
    chosen = []
    for j, nodes in enumerate(asked):
        if nodes is None:
            continue
        nodes = [nodes] if is_item(nodes) else nodes
        if not isinstance(nodes, Sequence | np.ndarray) or not all(map(is_item, nodes)):
            raise ArgumentError(
                f"{name}[{j}] is {nodes!r}, expected None or a list of {_what(name)}s"
            )
        chosen.append((j, list(nodes)))
    return chosen


def _what(name: str) -> str:
    return "a whole number" if name == "output_idx" else "a label"


def _is_index(x: Any) -> bool:
    return isinstance(x, int | np.integer) and not isinstance(x, bool)


def _node_label(method: Any, s: int, k: int) -> str:
    j = selected_outputs(method)[s]
    label = output_labels(method, j)[k]
    return f"Output_{j + 1}: {label}" if len(method.output_idx) > 1 else label


# ---------------------------------------------------------------- values


def add_channels(values: np.ndarray, axis: int, how: Aggregation) -> np.ndarray:
    """Bring the channels at `axis` together by "sum", "mean", "norm" or a function.

    A function gets the channels of one place and returns a number; one with an argument `axis`, as
    NumPy's have, is called once for all places. Values without channels are returned as they are.
    """
    function = AGGREGATIONS.get(how) if isinstance(how, str) else how
    if not callable(function):
        raise ArgumentError(
            f"aggr_channels is {how!r}, expected 'sum', 'mean', 'norm' or a function"
        )
    if values.ndim <= axis + 1:
        return values
    try:
        joined = function(values, axis=axis)
    except TypeError:
        joined = np.apply_along_axis(function, axis, values)
    joined = np.asarray(joined)
    expected = values.shape[:axis] + values.shape[axis + 1 :]
    if joined.shape != expected:
        raise ArgumentError(
            f"aggr_channels made {joined.shape} of an array {values.shape}, expected {expected}: "
            "the function must return one number for the channels of each place"
        )
    return joined


def _preprocessed(
    values: np.ndarray, preprocess: Callable[[np.ndarray], np.ndarray] | None
) -> np.ndarray:
    if preprocess is None:
        return values
    if not callable(preprocess):
        raise ArgumentError(f"preprocess is {preprocess!r}, expected a function such as abs")
    done = np.asarray(preprocess(values))
    if done.shape != values.shape:
        raise ArgumentError(
            f"preprocess made {done.shape} of an array {values.shape}: "
            "it must work on each number and keep the shape"
        )
    return done


def _scaled(panels: list[Panel], together: int) -> list[Panel]:
    """Give every `together` neighbours one colour scale and one range, which holds 0."""
    scaled = []
    for start in range(0, len(panels), together):
        group = panels[start : start + together]
        limits = _range([v for p in group for v in (p.values, p.reference) if v is not None])
        low, high = _range([p.coloured for p in group if p.values is not None])
        scaled += [replace(p, scale=max(high, -low), limits=limits) for p in group]
    return scaled


def _range(arrays: list[np.ndarray]) -> tuple[float, float]:
    """Least and largest number of all arrays and 0."""
    finite = [v[np.isfinite(v)] for v in arrays]
    low = min([0.0, *(float(v.min()) for v in finite if v.size)])
    return low, max([0.0, *(float(v.max()) for v in finite if v.size)])


def _shorten(grid: Grid, inputs: int, rest: bool) -> Grid:
    """Keep the features of large tables that matter most anywhere in the grid, largest first.

    With `rest`, the others become one more bar, their sum.
    """
    for i in range(inputs):
        panels = [p for row in grid for p in row[i::inputs] if p.values is not None]
        if not panels or panels[0].kind != "table" or len(panels[0].names[0]) <= TOP_FEATURES:
            continue
        weight = np.max([np.abs(_typical(p.values)) for p in panels], axis=0)
        order = np.argsort(-weight, kind="stable")
        for row in grid:
            for c in range(i, len(row), inputs):
                row[c] = _keep(row[c], order[:TOP_FEATURES], order[TOP_FEATURES:], rest)
    return grid


def _typical(values: Any) -> np.ndarray:
    """One value per feature: the median over data points, with NaN last of all."""
    return np.nan_to_num(np.median(values, axis=0) if values.ndim > 1 else values)


def _keep(panel: Panel, best: np.ndarray, others: np.ndarray, rest: bool) -> Panel:
    names = [panel.names[0][k] for k in best]
    if panel.values is None:
        return replace(panel, names=[names])
    values = panel.values[..., best]
    reference = None if panel.reference is None else panel.reference[best]
    if not rest:
        return replace(
            panel, values=values, names=[names], reference=reference, left_out=len(others)
        )
    names.append(f"rest ({len(others)} features)")
    values = np.append(values, np.sum(panel.values[others]))
    return replace(panel, values=values, names=[names], rest=True)
