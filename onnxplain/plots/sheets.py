"""From methods to sheets: what is selected, channels added up, features left out, scales."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeAlias

import numpy as np

from ..arrays import to_host
from ..errors import ArgumentError, SelectionError, listed, shown
from ..names import node_labels
from ..results import (
    batch_size,
    channels_first_array,
    channels_last,
    data_labels,
    decomposition,
    input_shape,
    output_labels,
    predictions,
    selected_outputs,
)
from .common import LONG_NAME, PERCENTILES, Kind, Names, Panel, Sheet, is_index, number, shortened

Aggregation: TypeAlias = str | Callable[..., Any]
Preprocess: TypeAlias = Callable[[np.ndarray], np.ndarray] | None
Row: TypeAlias = list[Panel]

MAX_PANELS = 100
TOP_FEATURES = 30
OPACITY = 0.85  # of the strongest pixel above a picture
FEW_SHADES = 5, 95  # percentiles of a feature that get the ends of the colours of a swarm

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


# ---------------------------------------------------------------- one sheet per kind of plot


def instance_sheet(
    method: Any,
    data_idx: Any = 0,
    output_idx: Any = None,
    output_label: Any = None,
    aggr_channels: Aggregation = "sum",
    same_scale: bool = False,
    overlay: bool | float = False,
    max_features: int = TOP_FEATURES,
) -> Sheet:
    """The sheet of `plot`: one row per data point."""
    rows, nodes = _instances(method, data_idx), select_nodes(method, output_idx, output_label)
    reader = _Reader(method, aggr_channels, _opacity(overlay))
    _check_panels(len(rows), len(nodes) * reader.inputs)
    grid = [[panel for node in nodes for panel in reader.group(node, b)] for b in rows]
    grid = _shorten(grid, reader.inputs, _count(max_features), rest=True)
    together = reader.inputs if same_scale else 1
    return _sheet([_scaled(row, together) for row in grid])


def compare_sheet(
    methods: Any,
    data_idx: Any = 0,
    output_idx: Any = None,
    output_label: Any = None,
    aggr_channels: Aggregation = "sum",
    same_scale: bool = False,
    overlay: bool | float = False,
    max_features: int = TOP_FEATURES,
) -> Sheet:
    """The sheet of `compare`: one row per data point and node, one column per method and input."""
    methods, opacity = _titled(methods), _opacity(overlay)
    first = next(iter(methods.values()))
    nodes = select_nodes(first, output_idx, output_label)
    columns = [
        (title, _Reader(method, aggr_channels, opacity), _instances(method, data_idx))
        for title, method in methods.items()
    ]
    count, inputs = len(columns[0][2]), len(first.input_names)
    _check_panels(count * len(nodes), len(columns) * inputs)
    grid = [
        [
            panel
            for title, reader, rows in columns
            for panel in reader.beside(_same_node(first, node, reader), rows[n], title)
        ]
        for n in range(count)
        for node in nodes
    ]
    grid = _shorten(grid, inputs, _count(max_features), rest=True, alike=True)
    return _sheet([_scaled(row, inputs if same_scale else 1) for row in grid])


def global_sheet(
    method: Any,
    output_idx: Any = None,
    output_label: Any = None,
    data_idx: Any = "all",
    ref_data_idx: int | None = None,
    aggr_channels: Aggregation = "sum",
    preprocess: Preprocess = abs,
    individual_data_idx: Any = None,
    individual_max: int = 20,
    percentile: float = 50,
    max_features: int = TOP_FEATURES,
    interactive: bool = False,
) -> Sheet:
    """The sheet of `plot_global`: a single row, values over many data points."""
    _refuse_global(method, "plot_global")
    rows = _many(method, data_idx)
    reference = [] if ref_data_idx is None else _one(method, ref_data_idx, "ref_data_idx")
    singles = _individuals(method, individual_data_idx, individual_max, interactive)
    singles = list(dict.fromkeys([*reference, *singles]))
    nodes = select_nodes(method, output_idx, output_label)
    reader = _Reader(method, aggr_channels)
    _check_panels(1, len(nodes) * reader.inputs)
    _check_percentile(percentile)
    row = []
    for node in nodes:
        for i in range(reader.inputs):
            panel = reader.panel(node, i, reader.prepared(node, i, rows, preprocess))
            if panel.values is None:
                row.append(panel)
            elif panel.kind == "image":
                row.append(_percentile_image(panel, percentile, interactive))
            else:
                drawn = reader.prepared(node, i, singles, preprocess)
                found = {
                    reader.labels[b]: _at_least_1d(x) for b, x in zip(singles, drawn, strict=True)
                }
                red = found[reader.labels[reference[0]]] if reference else None
                row.append(replace(panel, mark="boxes", reference=red, individuals=found))
    (row,) = _shorten([row], reader.inputs, _count(max_features), rest=False)
    # Images of all nodes share one scale, so that they can be compared.
    images = [p for p in row if p.kind == "image"]
    shared = iter(_scaled(images, max(len(images), 1)))
    return _sheet([[next(shared) if p.kind == "image" else _scaled([p], 1)[0] for p in row]])


def beeswarm_sheet(
    method: Any,
    output_idx: Any = None,
    output_label: Any = None,
    data_idx: Any = "all",
    max_features: int = 20,
) -> Sheet:
    """The sheet of `beeswarm`: one column per node."""
    _refuse_global(method, "beeswarm")
    rows, nodes = _many(method, data_idx), select_nodes(method, output_idx, output_label)
    _check_panels(1, len(nodes))
    names, shades = _flat_inputs(method, rows, "beeswarm")
    shades = None if shades is None else _shaded(shades)
    reader = _Reader(method)
    panels = []
    for node in nodes:
        values = reader.flat(node, rows)
        if values is None:
            panels.append(replace(reader.panel(node, 0, None), mark="dots"))
            continue
        best, others = _ranked(np.abs(values).mean(axis=0), _count(max_features))
        panel = replace(
            reader.panel(node, 0, None),
            kind="table",
            mark="dots",
            values=values[:, best],
            names=[[names[k] for k in best]],
            heading=(node.label,),
            picture=None if shades is None else shades[:, best],
        )
        panels.append(_with_rest(panel, values[:, others]))
    return _sheet([_scaled(panels, 1)])


def waterfall_sheet(
    method: Any,
    data_idx: Any = 0,
    output_idx: Any = None,
    output_label: Any = None,
    max_features: int = 10,
) -> Sheet:
    """The sheet of `waterfall`: one row per data point, one column per node."""
    rows, nodes = _instances(method, data_idx), select_nodes(method, output_idx, output_label)
    _check_panels(len(rows), len(nodes))
    names, inputs = _flat_inputs(method, rows, "waterfall")
    reader = _Reader(method)
    grid = []
    for n, b in enumerate(rows):
        row = []
        for node in nodes:
            panel = replace(
                reader.group(node, b)[0], kind="table", mark="steps", input="", values=None
            )
            panel = replace(panel, heading=(node.label,))
            values = reader.flat(node, [b])
            if values is not None:
                best, others = _ranked(np.abs(values[0]), _count(max_features))
                own = names if inputs is None else _with_values(names, inputs[n])
                panel = replace(panel, values=values[0, best], names=[[own[k] for k in best]])
                panel = _with_rest(panel, values[0, others])
            row.append(replace(panel, goal=panel.info.get("Goal")))
        grid.append(row)
    return _sheet([_scaled(row, 1) for row in grid])


def input_kind(method: Any, i: int) -> Kind:
    """Whether input `i` is a table, a signal or an image."""
    axes = len(method.input_names[i])
    if axes > 3:
        raise ArgumentError(
            f"Input_{i + 1} has {axes} axes; plots show tables, signals (channels, length) and "
            "images (channels, height, width). Use get_result() and draw a slice of it"
        )
    return ("table", "table", "signal", "image")[axes]  # type: ignore[return-value]


# ---------------------------------------------------------------- reading a method


class _Reader:
    """The values, names and inputs of a method by node, each array fetched from its device once."""

    def __init__(self, method: Any, how: Aggregation = "sum", opacity: float = 0.0) -> None:
        self.method, self.how, self.opacity = method, how, opacity
        self.inputs, self.labels = len(method.input_names), data_labels(batch_size(method))
        self.kinds: list[Kind] = [input_kind(method, i) for i in range(self.inputs)]
        self.arrays: dict[tuple[int, int], np.ndarray | None] = {}

    def values(self, node: Node, i: int) -> np.ndarray | None:
        """Values (batch, *dims) of a node, channels first."""
        if (node.s, i) not in self.arrays:
            array = channels_first_array(self.method, node.s, i)
            if array is not None and channels_last(self.method, i):
                array = np.moveaxis(array, -2, 1)
            self.arrays[node.s, i] = array
        array = self.arrays[node.s, i]
        return None if array is None else array[..., node.k]

    def prepared(self, node: Node, i: int, rows: Any, preprocess: Preprocess = None) -> Any:
        """Values of some data points, preprocessed, then without channels."""
        values = self.values(node, i)
        if values is None:
            return None
        return add_channels(_preprocessed(values[rows], preprocess), 1, self.how)

    def flat(self, node: Node, rows: Any) -> np.ndarray | None:
        """Values (n, features) of all inputs; signals and images are one feature, their sum."""
        parts = [self._flat_part(node, i, rows) for i in range(self.inputs)]
        known = [part for part in parts if part is not None]
        if not known:
            return None
        widths = [prod(input_shape(self.method, i)) for i in range(self.inputs)]
        widths = [w if kind == "table" else 1 for w, kind in zip(widths, self.kinds, strict=True)]
        filled = [
            np.zeros((len(known[0]), width)) if part is None else part
            for part, width in zip(parts, widths, strict=True)
        ]
        return np.concatenate(filled, axis=1)

    def _flat_part(self, node: Node, i: int, rows: Any) -> np.ndarray | None:
        values = self.values(node, i)
        if values is None:
            return None
        flat = _finite(values[rows].reshape(len(values[rows]), -1))
        return flat if self.kinds[i] == "table" else flat.sum(axis=1, keepdims=True)

    def group(self, node: Node, b: int) -> Row:
        """The panels of all inputs for one data point and node."""
        whole = _is_global(self.method)
        label = "" if whole else self.labels[b]
        info, output = _info(self.method, node, b), _node_of_row(self.method, node, b)
        if output != node.label:
            info = {"Node": output, **info}
        panels = []
        for i in range(self.inputs):
            values = self.prepared(node, i, slice(b, b + 1))
            panel = self.panel(node, i, None if values is None else values[0])
            panel = replace(panel, data=label, output=output, row=label, info=info)
            panels.append(self._over_input(panel, i, b) if self.opacity else panel)
        return panels

    def beside(self, node: Node, b: int, title: str) -> Row:
        """The same to stand beside other methods: the title above, node and data point left."""
        return [
            replace(
                panel,
                method=title,
                heading=(title, *panel.heading[1:]),
                row=f"{panel.data}\n{node.label}".strip(),
            )
            for panel in self.group(node, b)
        ]

    def panel(self, node: Node, i: int, values: np.ndarray | None) -> Panel:
        names = _names(self.method, i)
        if not self.method.input_names[i]:  # a single number: one bar
            values = None if values is None else values[..., None]
        name = _input_label(self.method, i)
        kind = self.kinds[i]
        return Panel(
            kind=kind,
            mark="heat" if kind == "image" else "bars",
            values=None if values is None else _finite(values),
            names=names[1:] if len(names) > 1 else names,
            title=self.method.value_name,
            output=node.label,
            input=name,
            method=getattr(self.method, "method_name", ""),
            heading=(node.label, name) if name else (node.label,),
        )

    def _over_input(self, panel: Panel, i: int, b: int) -> Panel:
        """The panel with the input it is drawn over."""
        data = _inputs(self.method, i)
        if data is None:
            raise ArgumentError(
                "overlay draws over the input, but the method holds no data of the shape that "
                f"input_names[{i}] describe {input_shape(self.method, i)}: use overlay=False"
            )
        if panel.kind == "table":
            return replace(panel, names=[_with_values(panel.names[0], np.atleast_1d(data[b]))])
        if panel.kind == "image":
            return replace(panel, picture=_grey(_finite(data[b])), opacity=self.opacity)
        channels = _names(self.method, i)[0]
        return replace(panel, mark="line", picture=_finite(data[b]), channels=channels)


def _input_label(method: Any, i: int) -> str:
    """How an input is called where there are several, or an inner tensor in its place."""
    layers = getattr(method, "layers", None)
    if layers:
        return str(layers[i])
    return f"Input_{i + 1}" if len(method.input_names) > 1 else ""


def _names(method: Any, i: int) -> Names:
    """Labels of the axes of an input, channels first; of a single number its own."""
    names = [[str(label) for label in axis] for axis in method.input_names[i]]
    if channels_last(method, i):
        names = [names[-1], *names[:-1]]
    return names or [[f"Input_{i + 1}"]]


def _inputs(method: Any, i: int) -> np.ndarray | None:
    """Input `i` (batch, *dims), channels first; None if the method has none of this shape."""
    beside = getattr(method, "shown_data", {})
    if i in beside:  # of an input whose features were grouped
        return beside[i]
    under = getattr(method, "under_maps", None)
    if under is not None:  # maps have one channel, whatever lies under them
        return to_host(under)
    data = getattr(method, "data", None)
    inner = getattr(method, "layers", None)
    if inner or not isinstance(data, list | tuple) or len(data) != len(method.input_names):
        return None
    array = to_host(data[i])
    if (
        array.shape != (batch_size(method), *input_shape(method, i))
        or array.dtype.kind not in "fiub"
    ):
        return None
    return np.moveaxis(array, -1, 1) if channels_last(method, i) else array


def _flat_inputs(method: Any, rows: Any, what: str) -> tuple[list[str], np.ndarray | None]:
    """Names of the features of all inputs, and their inputs (n, features) where there are any.

    As in `_Reader.flat` a signal or an image is one feature; it has NaN as input.
    """
    kinds = [input_kind(method, i) for i in range(len(method.input_names))]
    if "table" not in kinds:
        raise ArgumentError(
            f"{what} shows the features of tables, but the model takes {listed(kinds)}s: "
            "use plot() or plot_global()"
        )
    several, names, columns = len(kinds) > 1, [], []
    n = len(np.arange(batch_size(method))[rows])
    for i, kind in enumerate(kinds):
        if kind != "table":
            names.append(f"Input_{i + 1} (sum)")
            columns.append(np.full((n, 1), np.nan))
            continue
        own, data = _names(method, i)[0], _inputs(method, i)
        names += [f"Input_{i + 1}: {name}" if several else name for name in own]
        known = data is not None
        columns.append(data[rows].reshape(n, -1) if known else np.full((n, len(own)), np.nan))
    inputs = np.concatenate(columns, axis=1).astype(float)
    return names, None if np.isnan(inputs).all() else inputs


def _with_values(names: list[str], values: np.ndarray) -> list[str]:
    """Features with what they are in a data point, as in "age = 31"."""
    return [
        name if np.isnan(value) else f"{shortened(name, LONG_NAME - 9)} = {number(value)}"
        for name, value in zip(names, values, strict=True)
    ]


def _grey(picture: np.ndarray) -> np.ndarray:
    """An image (channels, height, width) as grey values from 0 to 1."""
    grey = picture.mean(axis=0)
    low, high = _range([grey], zero=False)
    return np.nan_to_num((grey - low) / ((high - low) or 1.0))


def _shaded(inputs: np.ndarray) -> np.ndarray:
    """Inputs (n, features) as 0 to 1 per feature; outliers must not take all colours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # features without inputs stay NaN
        low, high = np.nanpercentile(inputs, FEW_SHADES, axis=0)
        few = high <= low
        low, high = (
            np.where(few, np.nanmin(inputs, axis=0), low),
            np.where(few, np.nanmax(inputs, axis=0), high),
        )
    width = np.where(high > low, high - low, 1.0)
    return np.clip((inputs - low) / width, 0, 1)


def _percentile_image(panel: Panel, percentile: float, interactive: bool) -> Panel:
    title = f"{panel.title} (median)" if percentile == 50 else f"{panel.title} ({percentile:g} %)"
    with np.errstate(invalid="ignore"):  # what is not finite is drawn as such
        middle = np.percentile(panel.values, percentile, axis=0)
        every = np.percentile(panel.values, PERCENTILES, axis=0) if interactive else None
    return replace(panel, values=middle, title=title, percentiles=every)


def _node_of_row(method: Any, node: Node, b: int) -> str:
    """The label of a node; of "top1" and its like that of the node it is in this data point."""
    j = selected_outputs(method)[node.s]
    entry = method.output_idx[j][node.k]
    if not isinstance(entry, str) or not re.fullmatch(r"top\d+|predicted", entry):
        return node.label
    labels = node_labels(method.output_names[j])
    every = np.broadcast_to(np.arange(len(labels)), (batch_size(method), len(labels)))
    return labels[int(method.values_of(node.s, every)[b, node.k])]


def _info(method: Any, node: Node, b: int) -> dict[str, Any]:
    """Prediction, sum and goal of a data point, as far as the method has them."""
    found = {
        "Pred.": predictions(method, node.s),
        "Sum": decomposition(method, node.s, "decomp_sum"),
        "Goal": decomposition(method, node.s, "decomp_goal"),
    }
    info = {name: float(v[b, node.k]) for name, v in found.items() if v is not None}
    return {name: value for name, value in info.items() if not np.isnan(value)}


def _finite(values: np.ndarray) -> np.ndarray:
    """Values as float; what is infinite has no place on paper, and is NaN."""
    values = values.astype(float)
    values[~np.isfinite(values)] = np.nan
    return values


def _at_least_1d(x: Any) -> np.ndarray:
    return _finite(np.atleast_1d(x))


def _is_global(method: Any) -> bool:
    return bool(getattr(method, "is_global", False))


def _refuse_global(method: Any, what: str) -> None:
    if _is_global(method):
        raise ArgumentError(
            f"{what} shows how results spread over data, and global connection weights use no "
            "data: use plot(), or run the method with times_input=True and data"
        )


def _check_panels(rows: int, columns: int) -> None:
    if rows * columns > MAX_PANELS:
        raise SelectionError(
            f"this plot would have {rows} x {columns} panels, more than {MAX_PANELS}: "
            "choose fewer with data_idx and output_idx"
        )


# ---------------------------------------------------------------- arguments


def _instances(method: Any, data_idx: Any) -> list[int]:
    """Data points; global connection weights are the same for all, and have one."""
    if not _is_global(method):
        return select_data(method, data_idx)
    if not (is_index(data_idx) and data_idx == 0):
        warnings.warn("data_idx is ignored: global connection weights use no data", stacklevel=5)
    return [0]


def _many(method: Any, data_idx: Any) -> Any:
    """Data points as an index; all as a slice, which copies nothing."""
    whole = isinstance(data_idx, str) and data_idx == "all"
    return slice(None) if whole else select_data(method, data_idx)


def _one(method: Any, data_idx: Any, name: str) -> list[int]:
    rows = select_data(method, data_idx, name)
    if len(rows) != 1:
        raise ArgumentError(f"{name} is one data point, not {shown(data_idx)}")
    return rows


def _individuals(method: Any, asked: Any, most: int, interactive: bool) -> list[int]:
    most = _count(most, "individual_max", least=0)
    if asked is None:
        return list(range(min(most, batch_size(method)))) if interactive else []
    return select_data(method, asked, "individual_data_idx")[:most]


def _opacity(overlay: Any) -> float:
    if isinstance(overlay, bool | np.bool_):
        return OPACITY if overlay else 0.0
    if not isinstance(overlay, int | float | np.number) or not 0 < overlay <= 1:
        raise ArgumentError(
            f"overlay is {shown(overlay)}, expected True, False or the opacity of the strongest "
            "value, above 0 and at most 1"
        )
    return float(overlay)


def _count(value: Any, name: str = "max_features", least: int = 1) -> int:
    if not is_index(value) or value < least:
        raise ArgumentError(f"{name} is {shown(value)}, expected a whole number from {least}")
    return int(value)


def _check_percentile(percentile: Any) -> None:
    is_number = isinstance(percentile, int | float | np.number) and not isinstance(percentile, bool)
    if not is_number or not 0 <= percentile <= 100:
        raise ArgumentError(f"percentile is {shown(percentile)}, expected a number from 0 to 100")


def _titled(methods: Any) -> dict[str, Any]:
    """Methods by their titles, which are made of names and rules unless they are given."""
    if not isinstance(methods, Mapping):
        if not isinstance(methods, Sequence) or isinstance(methods, str):
            raise ArgumentError(
                f"compare takes a list of explained methods or a dict {{title: method}}, not "
                f"{type(methods).__name__}"
            )
        methods = dict(zip(_titles(methods), methods, strict=True))
    if not methods:
        raise SelectionError("compare got no methods: nothing to show")
    first = next(iter(methods.values()))
    for title, method in methods.items():
        if not hasattr(method, "result"):
            raise ArgumentError(f"{title!r} is {shown(method)}, expected an explained method")
        if _shapes(method) != _shapes(first):
            raise ArgumentError(
                f"{title!r} explains inputs {_shapes(method)}, the first method {_shapes(first)}: "
                "compare shows methods of one model"
            )
    return {str(title): method for title, method in methods.items()}


def _titles(methods: Sequence[Any]) -> list[str]:
    names = [_title(m) for m in methods]
    rules = [getattr(m, "rule_name", None) for m in methods]
    names = [
        f"{name} {rule}" if names.count(name) > 1 and isinstance(rule, str) else name
        for name, rule in zip(names, rules, strict=True)
    ]
    return [
        f"{name} ({names[: k + 1].count(name)})" if names.count(name) > 1 else name
        for k, name in enumerate(names)
    ]


def _title(method: Any) -> str:
    return getattr(method, "method_name", type(method).__name__)


def _shapes(method: Any) -> list[tuple[int, ...]]:
    return [input_shape(method, i) for i in range(len(method.input_names))]


def _same_node(first: Any, node: Node, reader: _Reader) -> Node:
    """The node of another method that stands for the same place of the model."""
    method = reader.method
    j = selected_outputs(first)[node.s]
    flat = first.output_idx[j][node.k]
    nodes = method.output_idx[j] if j < len(method.output_idx) else None
    if nodes is None or flat not in list(nodes):
        raise SelectionError(
            f"{_title(method)} has not explained node {flat} of Output_{j + 1} ({node.label}): "
            "run it with the same output_idx"
        )
    return Node(selected_outputs(method).index(j), list(nodes).index(flat), node.label)


# ---------------------------------------------------------------- selection


def select_data(method: Any, data_idx: Any, name: str = "data_idx") -> list[int]:
    """Data points as a list of indices, checked."""
    batch = batch_size(method)
    rows = [data_idx] if is_index(data_idx) else data_idx
    if isinstance(rows, str) or not isinstance(rows, Sequence | np.ndarray):
        raise ArgumentError(f"{name} is {data_idx!r}, expected one index or a list of indices")
    rows = list(rows)
    if not rows:
        raise SelectionError(f"{name} is empty: nothing to show")
    for row in rows:
        if not is_index(row):
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
        nodes = [n if isinstance(n, str) else int(n) for n in nodes]
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
    labelled = name != "output_idx"

    def is_item(x: Any) -> bool:  # "top1" and names of sums are entries of output_idx
        return isinstance(x, str) or (is_index(x) and not labelled)

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


def _sheet(grid: list[Row]) -> Sheet:
    return Sheet(tuple(tuple(row) for row in grid))


def _scaled(panels: Row, together: int) -> Row:
    """Give every `together` neighbours one colour scale and one range, which holds 0."""
    scaled = []
    for start in range(0, len(panels), together):
        group = panels[start : start + together]
        limits = _range([v for p in group for v in _shown_values(p)])
        low, high = _range([p.coloured for p in group if p.values is not None])
        scaled += [replace(p, scale=max(high, -low), limits=limits) for p in group]
    return scaled


def _shown_values(panel: Panel) -> list[np.ndarray]:
    """Everything that must have room on the axis of values."""
    if panel.values is None:
        return []
    if panel.mark == "steps":
        goal = np.array([np.nan if panel.goal is None else panel.goal])
        return [np.nancumsum(panel.values), goal]
    return [panel.values, *panel.individuals.values()]


def _range(arrays: list[np.ndarray], zero: bool = True) -> tuple[float, float]:
    """Least and largest number of all arrays, and of 0."""
    finite = [v[np.isfinite(v)] for v in arrays]
    ends = [float(end) for v in finite if v.size for end in (v.min(), v.max())]
    ends = [*ends, 0.0] if zero or not ends else ends
    return min(ends), max(ends)


# ---------------------------------------------------------------- many features


def _shorten(grid: list[Row], inputs: int, most: int, rest: bool, alike: bool = False) -> list[Row]:
    """Keep the features of large tables that matter most anywhere in the grid, largest first.

    With `rest`, the others become one more bar, their sum. With `alike` all panels have the same
    say, whatever the unit of their values.
    """
    for i in range(inputs):
        panels = [p for row in grid for p in row[i::inputs] if p.values is not None]
        if not panels or panels[0].kind != "table" or len(panels[0].names[0]) <= most:
            continue
        sizes = [np.abs(_typical(p.values)) for p in panels]
        if alike:
            sizes = [size / (size.max() or 1.0) for size in sizes]
        best, others = _ranked(np.max(sizes, axis=0), most)
        for row in grid:
            for c in range(i, len(row), inputs):
                row[c] = _keep(row[c], best, others, rest)
    return grid


def _typical(values: Any) -> np.ndarray:
    """One value per feature: the median over data points, with NaN last of all."""
    return np.nan_to_num(np.median(values, axis=0) if values.ndim > 1 else values)


def _ranked(sizes: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of the largest, in their order, and those of the others."""
    order = np.argsort(-np.nan_to_num(sizes), kind="stable")
    return order[:most], order[most:]


def _keep(panel: Panel, best: np.ndarray, others: np.ndarray, rest: bool) -> Panel:
    kept = replace(panel, names=[[panel.names[0][k] for k in best]])
    if panel.values is None:
        return kept
    kept = replace(
        kept,
        values=panel.values[..., best],
        reference=None if panel.reference is None else panel.reference[best],
        individuals={label: values[best] for label, values in panel.individuals.items()},
        left_out=0 if rest else len(others),
    )
    return _with_rest(kept, panel.values[..., others]) if rest else kept


def _with_rest(panel: Panel, others: np.ndarray) -> Panel:
    """Add the sum of the other features (..., features) as a last one."""
    count = others.shape[-1]
    if count == 0:
        return panel
    total = others.sum(axis=-1, keepdims=True)
    picture = panel.picture
    if picture is not None:
        picture = np.append(picture, np.full((len(picture), 1), np.nan), axis=-1)
    return replace(
        panel,
        values=np.append(panel.values, total, axis=-1),
        names=[[*panel.names[0], f"{count} others" if count > 1 else "1 other"]],
        picture=picture,
        rest=True,
    )
