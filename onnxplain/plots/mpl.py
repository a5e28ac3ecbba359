"""Plots with matplotlib, without its global state: they work on servers, in threads and tests."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import cbook, colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as MplFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..errors import ArgumentError, OnnxplainError
from .common import Aggregation, Grid, Panel, global_panels, input_kind, instance_panels

COLOURS = colormaps["RdBu_r"].with_extremes(
    bad="0.8"
)  # blue, white, red; safe for the colour-blind
GREY, DARK, RED = "0.8", "0.35", "#d62728"
MAX_BOXES = 64  # longer signals get bands instead of boxes
MAX_OUTLINED = 200  # in longer signals an outline would cover the colours
LONG_NAME = 32
MAX_HEIGHT = 600.0  # inches: beyond it no canvas can be allocated


class Figure:
    """A drawn plot.

    Attributes
    ----------
    figure : matplotlib.figure.Figure
    axes : numpy.ndarray of matplotlib.axes.Axes
        Rows are data points, columns output nodes and, within each node, inputs.
    """

    def __init__(self, figure: MplFigure, axes: np.ndarray) -> None:
        self.figure, self.axes = figure, axes

    def save(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Write the figure to a file whose ending says how: .png, .svg, .pdf, ...

        `options` go to matplotlib's `savefig`; 150 dots per inch are the default.
        """
        ending = os.path.splitext(path)[1][1:].lower()
        known = self.figure.canvas.get_supported_filetypes()
        if "format" not in options and ending not in known:
            raise ArgumentError(
                f"cannot save a figure as {os.fspath(path)!r}, expected one of the endings "
                + ", ".join(f".{name}" for name in known)
            )
        self.figure.savefig(path, **{"dpi": 150, **options})

    def show(self) -> None:
        """Show the figure: in the notebook, or else with the system's image viewer."""
        ipython = sys.modules.get("IPython")
        if ipython is not None and hasattr(ipython.get_ipython(), "kernel"):
            ipython.display.display(self)
            return
        from PIL import Image, ImageShow

        if not ImageShow.show(Image.open(io.BytesIO(self._repr_png_()))):
            raise OnnxplainError("no image viewer found: use save(path) and open the file")

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()

    def __repr__(self) -> str:
        rows, columns = self.axes.shape
        return f"Figure of {rows} x {columns} panels (save(path) writes it, show() shows it)"


def plot(
    method: Any,
    data_idx: int | Sequence[int] = 0,
    output_idx: Any = None,
    output_label: Any = None,
    aggr_channels: Aggregation = "sum",
    same_scale: bool = False,
    show_preds: bool = True,
    ax: Any = None,
) -> Figure:
    """Draw the result of single data points: bars for tables and signals, heat maps for images.

    Rows are data points, columns are output nodes and, in a model with several inputs, the inputs
    of each. Blue is negative, white zero and red positive. Of tables with more than 30 features the
    30 largest are shown, sorted, and the sum of the rest. The box above a picture
    holds the prediction, the sum of the result over all inputs and, if the method has one, the goal
    of the decomposition.

    Parameters
    ----------
    method
        An explained method.
    data_idx
        Data points, counted from 0.
    output_idx, output_label
        Nodes among those explained: one, a list for the first explained output, or a list per
        output of the model. Default: the first explained node.
    aggr_channels
        How channels of signals and images come together: "sum", "mean", "norm" (Euclidean) or a
        function from a vector to a number.
    same_scale
        Use one scale for all inputs of a data point and node.
    show_preds
        Draw the box.
    ax
        Axes to draw into, as many as there are panels; by default a new figure.

    Raises
    ------
    SelectionError
        If a data point or node is not there.
    ArgumentError
        If an argument has a value that is not allowed.

    Examples
    --------
    >>> method.plot(data_idx=[0, 1], output_label="setosa").save("plot.png")  # doctest: +SKIP
    """
    grid = instance_panels(method, data_idx, output_idx, output_label, aggr_channels, same_scale)

    def draw(axes: Axes, panel: Panel, edge: _Edge) -> None:
        DRAW[panel.kind](axes, panel, edge, method.value_name)

    return _figure(grid, len(method.input_names), ax, draw, show_preds)


def plot_global(
    method: Any,
    output_idx: Any = None,
    output_label: Any = None,
    data_idx: Any = "all",
    ref_data_idx: int | None = None,
    aggr_channels: Aggregation = "sum",
    preprocess: Callable[[np.ndarray], np.ndarray] | None = abs,
    ax: Any = None,
) -> Figure:
    """Draw how the result spreads over data points: box plots, or the median image.

    Boxes hold the middle half of the data, whiskers reach at most 1.5 times its length further,
    dots are outliers. Signals of more than 64 positions show the same as bands. Of tables with more
    than 30 features the 30 with the largest median are shown. Images of all nodes share one scale.

    Parameters
    ----------
    method
        An explained method; not global connection weights, which depend on no data.
    output_idx, output_label, aggr_channels, ax
        As in `plot`.
    data_idx
        "all" (default) or indices from 0.
    ref_data_idx
        A data point to draw in red, which need not be in `data_idx`; not shown for images.
    preprocess
        Applied to the result before channels come together; default `abs`; None: nothing.

    Raises
    ------
    SelectionError
        If a data point or node is not there.
    ArgumentError
        If an argument has a value that is not allowed.
    """
    grid = global_panels(
        method, output_idx, output_label, data_idx, ref_data_idx, aggr_channels, preprocess
    )

    def draw(axes: Axes, panel: Panel, edge: _Edge) -> None:
        median = f"{method.value_name} (median)"
        title = median if panel.kind == "image" else method.value_name
        DRAW_GLOBAL[panel.kind](axes, panel, edge, title)

    return _figure(grid, len(method.input_names), ax, draw)


def boxplot(method: Any, *args: Any, **options: Any) -> Figure:
    """Draw as `plot_global`; for image inputs, which get no boxes, with a warning."""
    if any(input_kind(method, i) == "image" for i in range(len(method.input_names))):
        warnings.warn(
            "boxplot: images are shown as their median, not as boxes; use plot_global()",
            stacklevel=2,
        )
    return plot_global(method, *args, **options)


# ---------------------------------------------------------------- the figure


@dataclass(frozen=True)
class _Edge:
    """Where in the grid a panel is: what it must carry for its neighbours too."""

    top: bool = True
    bottom: bool = True
    left: bool = True
    names: bool = True  # the first panel of this input in its row


def _figure(
    grid: Grid,
    inputs: int,
    ax: Any,
    draw: Callable[[Axes, Panel, _Edge], None],
    show_preds: bool = False,
) -> Figure:
    own = ax is None
    axes = _new_axes(grid) if own else _given_axes(ax, len(grid), len(grid[0]))
    boxes = show_preds and any(p.info for row in grid for p in row)
    # Boxes of images have their lines below each other; titles stand above the highest box.
    join = "\n" if grid[0][0].kind == "image" else "   "
    pad = 6 if not boxes else 25 if join != "\n" else 47
    for r, row in enumerate(grid):
        for c, panel in enumerate(row):
            edge = _Edge()
            if own:
                edge = _Edge(r == 0, r == len(grid) - 1, c == 0, c < inputs)
            if panel.values is None:
                _unconnected(axes[r, c])
            else:
                draw(axes[r, c], panel, edge)
            if boxes and panel.info:
                _info_box(axes[r, c], panel, join)
            _strips(axes[r, c], panel, edge, pad, own)
    figure = axes[0, 0].figure.canvas.figure
    if own:
        figure.align_ylabels(axes[:, 0])
    return Figure(figure, axes)


def _new_axes(grid: Grid) -> np.ndarray:
    sizes = [_size(panel) for panel in grid[0]]
    widths = [width for width, _ in sizes]
    height = min(max(height for _, height in sizes), MAX_HEIGHT / len(grid))
    layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.06, wspace=0.02)
    figure = MplFigure(figsize=(sum(widths), height * len(grid)), layout=layout)
    FigureCanvasAgg(figure)
    return figure.subplots(len(grid), len(widths), squeeze=False, width_ratios=widths)


def _size(panel: Panel) -> tuple[float, float]:
    """Width and height in inches."""
    if panel.kind == "image":
        height, width = (len(axis) for axis in panel.names)
        return 4.2, 1.1 + 2.8 * min(max(height / width, 0.4), 2.0)
    if panel.kind == "signal":
        return 5.6, 3.0
    return (5.6, 1.4 + 0.22 * len(panel.names[0])) if _lies(panel) else (4.8, 3.4)


def _given_axes(ax: Any, rows: int, columns: int) -> np.ndarray:
    axes = np.array([ax] if isinstance(ax, Axes) else ax, dtype=object)
    if axes.size != rows * columns or not all(isinstance(a, Axes) for a in axes.ravel()):
        raise ArgumentError(
            f"ax has {axes.size} entries, expected {rows * columns} matplotlib axes: the plot has "
            f"{rows} row(s) of data points and {columns} column(s) of output nodes and inputs"
        )
    return axes.reshape(rows, columns)


def _strips(ax: Axes, panel: Panel, edge: _Edge, pad: float, own: bool) -> None:
    """Name the output node and input above the grid and the data point at its left.

    In a caller's axes, where the room at the left is not ours, all of it stands above.
    """
    if edge.top:
        above = [shortened(panel.output, 40), panel.input, "" if own else panel.data]
        title = "\n".join(name for name in above if name)
        ax.set_title(title, pad=pad, fontsize="medium", parse_math=False)
    if own and edge.left and panel.data:
        where: Any = (ax.yaxis.label, "axes fraction") if ax.get_ylabel() else "axes fraction"
        ax.annotate(
            panel.data,
            xy=(0, 0.5),
            xycoords=where,
            xytext=(-7, 0),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="center",
            bbox={"boxstyle": "square,pad=0.3", "facecolor": "0.92", "edgecolor": "none"},
        )


def _info_box(ax: Axes, panel: Panel, join: str) -> None:
    """Prediction, sum and goal above the panel, where they hide nothing."""
    ax.annotate(
        join.join(f"{name} {round(value, 8) + 0.0:.4g}" for name, value in panel.info.items()),
        xy=(0.5, 1),
        xycoords="axes fraction",
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize="small",
        gid="info",
        bbox={"boxstyle": "round,pad=0.3", "facecolor": "0.96", "edgecolor": "0.75"},
    )


def _unconnected(ax: Axes) -> None:
    ax.set_axis_off()
    ax.text(0.5, 0.5, "not connected", ha="center", va="center", transform=ax.transAxes)


# ---------------------------------------------------------------- values of one data point


def _table(ax: Axes, panel: Panel, edge: _Edge, title: str) -> None:
    values: Any = panel.values
    places = np.arange(len(values))
    fill = colours(values, panel.scale)
    if panel.rest:
        fill[-1] = colormaps["Greys"](0.3)
    style = {"color": fill, "edgecolor": DARK, "linewidth": 0.6}
    if _lies(panel):
        ax.barh(places, values, **style)
    else:
        ax.bar(places, values, **style)
    _feature_axis(ax, panel, edge, title)


def _signal(ax: Axes, panel: Panel, edge: _Edge, title: str) -> None:
    values: Any = panel.values
    edges = np.arange(len(values) + 1) - 0.5
    left, right, zero = edges[:-1], edges[1:], np.zeros(len(values))
    height = np.nan_to_num(values)
    corners = [(left, zero), (left, height), (right, height), (right, zero)]
    boxes = np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)
    fill = colours(values, panel.scale)
    ax.add_collection(PolyCollection(list(boxes), facecolors=fill, edgecolors=fill, linewidths=0.5))
    if len(values) <= MAX_OUTLINED:  # pale bars vanish on white paper: the outline shows them
        ax.stairs(values, edges, color=DARK, linewidth=0.6)
    _signal_axis(ax, panel, edge, title)


def _image(ax: Axes, panel: Panel, edge: _Edge, title: str) -> None:
    values: Any = panel.values
    height, width = values.shape
    norm = Normalize(-(panel.scale or 1.0), panel.scale or 1.0)
    aspect = "equal" if 1 / 6 <= height / width <= 6 else "auto"
    ax.imshow(
        np.ma.masked_invalid(values),
        cmap=COLOURS,
        norm=norm,
        origin="upper",
        interpolation="nearest",
        aspect=aspect,
    )
    _positions(ax.xaxis, panel.names[1])
    _positions(ax.yaxis, panel.names[0])
    ax.tick_params(labelbottom=edge.bottom, labelleft=edge.names)
    if edge.bottom:
        ax.set_xlabel("Image Width")
    if edge.left:
        ax.set_ylabel("Image Height")
    bar = ax.figure.colorbar(
        ScalarMappable(norm, COLOURS), cax=ax.inset_axes((1.04, 0, 0.05, 1)), label=title
    )
    low, high = panel.limits
    if low < high and (low == 0 or high == 0):  # one sign only: half of the colours
        bar.ax.set_ylim(-panel.scale if low < 0 else 0, panel.scale if high > 0 else 0)
    bar.ax.ticklabel_format(axis="y", scilimits=(-3, 3))


DRAW: dict[str, Callable[[Axes, Panel, _Edge, str], None]] = {
    "table": _table,
    "signal": _signal,
    "image": _image,
}


# ---------------------------------------------------------------- values of many data points


def _boxes(ax: Axes, panel: Panel, edge: _Edge, title: str) -> None:
    lies = _lies(panel)
    _draw_boxes(ax, panel, lies)
    _feature_axis(ax, panel, edge, title)


def _signal_boxes(ax: Axes, panel: Panel, edge: _Edge, title: str) -> None:
    values: Any = panel.values
    if values.shape[1] <= MAX_BOXES:
        _draw_boxes(ax, panel, lies=False)
    else:
        _draw_bands(ax, panel)
    _signal_axis(ax, panel, edge, title)


def _draw_boxes(ax: Axes, panel: Panel, lies: bool) -> None:
    places = np.arange(len(panel.names[0]))
    ax.bxp(
        _statistics(panel),
        positions=places,
        widths=0.7,
        orientation="horizontal" if lies else "vertical",
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": GREY, "edgecolor": DARK},
        whiskerprops={"color": DARK},
        capprops={"color": DARK},
        medianprops={"color": "black", "linewidth": 1.5},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": DARK, "alpha": 0.5},
    )
    if panel.reference is not None:
        lines = ax.vlines if lies else ax.hlines
        lines(panel.reference, places - 0.35, places + 0.35, colors=RED, linewidth=2.5, zorder=4)


def _draw_bands(ax: Axes, panel: Panel) -> None:
    found = _statistics(panel)
    low, q1, middle, q3, high = (
        np.array([box[key] for box in found]) for key in ("whislo", "q1", "med", "q3", "whishi")
    )
    places = np.arange(len(found))
    ax.fill_between(places, low, high, color="0.88", linewidth=0, label="whiskers")
    ax.fill_between(places, q1, q3, color="0.65", linewidth=0, label="middle half")
    ax.plot(places, middle, color="black", linewidth=0.8, label="median")
    if panel.reference is not None:
        ax.plot(places, panel.reference, color=RED, linewidth=0.8, label="reference")
    ax.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def _statistics(panel: Panel) -> list[dict[str, Any]]:
    values: Any = panel.values
    return [cbook.boxplot_stats(column[np.isfinite(column)])[0] for column in values.T]


DRAW_GLOBAL: dict[str, Callable[[Axes, Panel, _Edge, str], None]] = {
    "table": _boxes,
    "signal": _signal_boxes,
    "image": _image,
}


# ---------------------------------------------------------------- axes


def colours(values: np.ndarray, scale: float) -> np.ndarray:
    """Colour (n, 4) of each value: blue at -scale, white at 0, red at +scale."""
    return COLOURS(0.5 + 0.5 * np.nan_to_num(values) / (scale or 1.0))


def shortened(name: str, length: int = LONG_NAME) -> str:
    """A name of at most `length` letters; start and end stay, since endings often differ."""
    if len(name) <= length:
        return name
    start = (length - 1) * 2 // 3
    return f"{name[:start]}…{name[start + 1 - length :]}"


def _lies(panel: Panel) -> bool:
    """Whether the bars of a table lie, because their names would not fit below standing ones."""
    names = panel.names[0]
    return panel.kind == "table" and (len(names) > 12 or max(map(len, names)) > 12)


def _feature_axis(ax: Axes, panel: Panel, edge: _Edge, title: str) -> None:
    names = [shortened(name) for name in panel.names[0]]
    places = np.arange(len(names))
    feature = "Feature"
    if panel.left_out:
        feature = f"Feature ({len(names)} of {len(names) + panel.left_out})"
    if _lies(panel):
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_yticks(places, names, fontsize="small", parse_math=False)
        ax.set_ylim(len(names) - 0.4, -0.6)  # the first feature at the top
        ax.set_xlim(*_padded(panel.limits))
        ax.ticklabel_format(axis="x", scilimits=(-3, 3))
        ax.tick_params(labelleft=edge.names)
        if edge.bottom:
            ax.set_xlabel(title)
        if edge.left:
            ax.set_ylabel(feature)
        return
    ax.axhline(0, color="black", linewidth=0.8)
    turned = sum(map(len, names)) > 32
    turn: dict[str, Any] = {}
    if turned:
        turn = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(places, names, parse_math=False, **turn)
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.tick_params(labelbottom=edge.bottom)
    _value_axis(ax, panel, edge, title)
    if edge.bottom:
        ax.set_xlabel(feature)


def _signal_axis(ax: Axes, panel: Panel, edge: _Edge, title: str) -> None:
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_xlim(-0.5, len(panel.names[0]) - 0.5)
    _positions(ax.xaxis, panel.names[0])
    ax.tick_params(labelbottom=edge.bottom)
    _value_axis(ax, panel, edge, title)
    if edge.bottom:
        ax.set_xlabel("Signal Length")


def _value_axis(ax: Axes, panel: Panel, edge: _Edge, title: str) -> None:
    ax.set_ylim(*_padded(panel.limits))
    ax.ticklabel_format(axis="y", scilimits=(-3, 3))
    if edge.left:
        ax.set_ylabel(title)


def _padded(limits: tuple[float, float]) -> tuple[float, float]:
    low, high = limits
    room = 0.05 * (high - low) or 1.0
    return (low - room if low < 0 else 0.0), (high + room if high > 0 or low == high else 0.0)


def _positions(axis: Any, names: list[str]) -> None:
    """Ticks at whole positions: numbers from 0 for default names such as L1, L2, else the names."""
    axis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    if names == [f"{names[0][:1]}{k + 1}" for k in range(len(names))]:
        return

    def name(position: float, _: Any) -> str:
        k = round(position)
        return shortened(names[k], 12) if 0 <= k < len(names) else ""

    axis.set_major_formatter(FuncFormatter(name))
