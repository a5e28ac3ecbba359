"""Draws sheets with matplotlib, without pyplot: on servers, in threads, and nothing to close."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from matplotlib import colormaps, rc_context, rcParams, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import Colormap, ListedColormap, Normalize, to_hex, to_rgb
from matplotlib.figure import Figure as MplFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..errors import ArgumentError, OnnxplainError, listed, shown
from .common import (
    Panel,
    Sheet,
    box_statistics,
    feature_title,
    info_lines,
    is_lying,
    lanes_of,
    padded,
    shortened,
    swarm,
    wrapped,
)

# Both are safe for the colour-blind and the same for -v as for v; berlin is dark in the middle.
COLOURS = colormaps["RdBu_r"].with_extremes(bad="0.8")
DARK_COLOURS = colormaps["berlin"].with_extremes(bad="0.3")
SHADES = colormaps["plasma"].resampled(256)
RED = "#d62728"
LINES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe and Ito
MAX_BOXES = 64  # longer signals get bands instead of boxes
MAX_OUTLINED = 200  # in longer signals an outline would cover the colours
MAX_LEGEND = 8  # data points named beside boxes
LETTERS = 8.5  # per inch of a panel
MAX_HEIGHT = 600.0  # inches: beyond it no canvas can be allocated
MAX_VECTOR = 2000  # dots: more are written as pixels, also into .svg and .pdf

SHORT_NAMES = {"dark": "dark_background", "light": "default"}

Style: TypeAlias = str | Mapping[str, Any] | None

# matplotlib keeps its settings in one place for all threads.
_settings = threading.RLock()


def draw(sheet: Sheet, ax: Any = None) -> Figure:
    """Draw a sheet into a new figure, or into a caller's axes."""
    return Figure(sheet, ax)


class Figure:
    """A drawn plot.

    `figure[rows, columns]` draws a part of it anew, with numbers, slices or lists as indices: rows
    are data points, columns output nodes (or methods) and, within each, inputs. Notebooks show it.

    Attributes
    ----------
    figure : matplotlib.figure.Figure
    axes : numpy.ndarray of matplotlib.axes.Axes
        Rows and columns of axes, to add to or change what is drawn.
    sheet : onnxplain.plots.common.Sheet
        The numbers and names that are drawn.
    """

    def __init__(self, sheet: Sheet, ax: Any = None, style: Style = None) -> None:
        with _settings, rc_context(_looks(style)):
            # Ticks come into being when a figure is written, and then need the same settings.
            self._look: Any = {k: v for k, v in rcParams.items() if not k.startswith("backend")}
            self.sheet, self._style = sheet, style
            self.figure, self.axes = _figure(sheet, ax)

    def theme(self, style: Style) -> Figure:
        """Draw the plot in another look.

        Parameters
        ----------
        style : str, dict or None
            "dark", "light", the name of a style of matplotlib ("ggplot", "seaborn-v0_8", ...), or
            settings as in `matplotlib.rcParams`; None for the current ones.

        Raises
        ------
        ArgumentError
            If there is no such style or setting.
        """
        return Figure(self.sheet, style=style)

    def __getitem__(self, key: Any) -> Figure:
        return Figure(self.sheet[key], style=self._style)

    def __len__(self) -> int:
        return self.sheet.shape[0]

    def __iter__(self) -> Iterator[Figure]:
        return (self[r] for r in range(len(self)))

    def save(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Write the figure to a file whose ending says how: .png, .svg, .pdf, ...

        `options` go to matplotlib's `savefig`; 150 dots per inch are the default.
        """
        if "format" not in options:
            self._check_ending(path)
        with self._as_drawn():
            self.figure.savefig(path, **{"dpi": 150, **options})

    def _check_ending(self, path: str | os.PathLike[str]) -> None:
        ending = os.path.splitext(path)[1][1:].lower()
        known = self.figure.canvas.get_supported_filetypes()
        if ending not in known:
            advice = "; a page comes from as_plotly=True" if ending in ("html", "htm") else ""
            raise ArgumentError(
                f"cannot save a figure as {os.fspath(path)!r}, expected one of the endings "
                + ", ".join(f".{name}" for name in known)
                + advice
            )

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
        with self._as_drawn():
            self.figure.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()

    @contextmanager
    def _as_drawn(self) -> Iterator[None]:
        with _settings, rc_context(self._look):
            yield

    def __repr__(self) -> str:
        rows, columns = self.axes.shape
        return f"Figure of {rows} x {columns} panels (save(path) writes it, show() shows it)"


def _looks(style_: Style) -> Any:
    """The settings of a style."""
    if style_ is None:
        return {}
    if isinstance(style_, Mapping):
        return _checked_settings(dict(style_))
    # Only names: matplotlib would also read files and addresses.
    named = SHORT_NAMES.get(style_, style_) if isinstance(style_, str) else None
    if named not in (*style.available, "default"):
        raise ArgumentError(
            f"theme is {shown(style_)}, expected 'dark', 'light', settings of matplotlib, or one "
            f"of {listed(style.available, limit=30)}"
        )
    with rc_context():
        style.use(named)
        return {k: v for k, v in rcParams.items() if not k.startswith("backend")}


def _checked_settings(settings: Any) -> Any:
    try:
        with rc_context(settings):
            return settings
    except (KeyError, ValueError, TypeError) as error:
        raise ArgumentError(f"theme: matplotlib refuses a setting: {error}") from error


# ---------------------------------------------------------------- the figure


@dataclass(frozen=True)
class _Place:
    """Where in the sheet a panel is: what it must carry for its neighbours too."""

    top: bool = True
    bottom: bool = True
    left: bool = True
    legend: bool = True  # no panel to the right is of the same kind
    row_names: bool = True  # no panel to the left has the same names
    column_names: bool = True  # nor the one below
    own: bool = False  # the figure is ours
    lies: bool = False  # bars and boxes of this input lie


def _figure(sheet: Sheet, ax: Any) -> tuple[MplFigure, np.ndarray]:
    own = ax is None
    axes = _new_axes(sheet) if own else _given_axes(ax, *sheet.shape)
    # All panels of an input have one direction, also where only some names are long.
    lying = {panel.input for panel in sheet if is_lying(panel)}
    # Boxes of images have their lines below each other; titles stand above the highest box.
    join = "\n" if all(p.mark == "heat" for p in sheet) else "   "
    most = max(len(panel.info) for panel in sheet)
    pad = 6 if not most else 14 + 11 * (most if join == "\n" else 1)
    for r, row in enumerate(sheet.panels):
        for c, panel in enumerate(row):
            place = _place(sheet, r, c) if own else _Place()
            place = replace(place, lies=panel.kind == "table" and panel.input in lying)
            if panel.values is None:
                _unconnected(axes[r, c])
            else:
                DRAW[panel.mark](axes[r, c], panel, place)
            if panel.info and sheet.opens_group(r, c):
                _info_box(axes[r, c], panel, join)
            _strips(axes[r, c], panel, place, pad)
    figure = axes[0, 0].figure.canvas.figure
    if own:
        figure.align_ylabels(axes[:, 0])
    return figure, axes


def _place(sheet: Sheet, r: int, c: int) -> _Place:
    rows, _ = sheet.shape
    return _Place(
        top=r == 0,
        bottom=r == rows - 1,
        left=c == 0,
        legend=all(p.kind != sheet.panels[r][c].kind for p in sheet.panels[r][c + 1 :]),
        row_names=not sheet.names_repeat(r, c, "row"),
        column_names=not sheet.names_repeat(r, c, "column"),
        own=True,
    )


class _Layout(ConstrainedLayoutEngine):
    """Makes room for labels; where images keep their shape only a second look finds enough."""

    twice = False

    def execute(self, fig: MplFigure) -> None:
        super().execute(fig)
        if self.twice:
            super().execute(fig)


def _new_axes(sheet: Sheet) -> np.ndarray:
    sizes = [[_size(panel) for panel in row] for row in sheet.panels]
    widths = [max(row[c][0] for row in sizes) for c in range(sheet.shape[1])]
    heights = [max(height for _, height in row) for row in sizes]
    figsize = sum(widths), min(sum(heights), MAX_HEIGHT)
    layout = _Layout(w_pad=0.09, h_pad=0.06, wspace=0.02)
    layout.twice = any(panel.mark == "heat" for panel in sheet)
    figure = MplFigure(figsize=figsize, layout=layout)
    FigureCanvasAgg(figure)
    return figure.subplots(*sheet.shape, squeeze=False, width_ratios=widths, height_ratios=heights)


def _size(panel: Panel) -> tuple[float, float]:
    """Width and height in inches."""
    if panel.mark == "heat":
        height, width = (len(axis) for axis in panel.names)
        return 4.2, 1.1 + 2.8 * min(max(height / width, 0.4), 2.0)
    if panel.mark == "dots":
        return 6.4, 1.3 + 0.34 * len(panel.names[0])
    if panel.mark == "steps":
        return 5.8, 1.5 + 0.3 * len(panel.names[0])
    if panel.mark == "line":
        return 6.6, max(3.0, min(1.2 + 0.7 * len(panel.channels), 14.0))
    if panel.kind == "signal":
        return 5.6, 3.0
    return (5.6, 1.4 + 0.22 * len(panel.names[0])) if is_lying(panel) else (4.8, 3.4)


def _given_axes(ax: Any, rows: int, columns: int) -> np.ndarray:
    axes = np.array([ax] if isinstance(ax, Axes) else ax, dtype=object)
    if axes.size != rows * columns or not all(isinstance(a, Axes) for a in axes.ravel()):
        raise ArgumentError(
            f"ax has {axes.size} entries, expected {rows * columns} matplotlib axes: the plot has "
            f"{rows} row(s) and {columns} column(s) of panels"
        )
    return axes.reshape(rows, columns)


def _strips(ax: Axes, panel: Panel, place: _Place, pad: float) -> None:
    """Name the node and input above the columns and the data point at the left of the rows.

    In a caller's axes, where the room at the left is not ours, all of it stands above.
    """
    ink = Ink.on(ax)
    if place.top:
        width = _size(panel)[0] if place.own else ax.get_window_extent().width / ax.figure.dpi
        above = [*panel.heading, "" if place.own else panel.row]
        title = "\n".join(wrapped(line, max(int(LETTERS * width), 12)) for line in above if line)
        ax.set_title(title, pad=pad, fontsize="medium", color=ink.text, parse_math=False)
    if not (place.own and place.left and panel.row):
        return
    where: Any = (ax.yaxis.label, "axes fraction") if ax.get_ylabel() else "axes fraction"
    letters = max(int(LETTERS * _size(panel)[1]), 12)
    ax.annotate(
        "\n".join(shortened(line, letters) for line in panel.row.split("\n")),
        xy=(0, 0.5),
        xycoords=where,
        xytext=(-7, 0),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="center",
        color=ink.text,
        parse_math=False,
        bbox={"boxstyle": "square,pad=0.3", "facecolor": ink.mixed(0.08), "edgecolor": "none"},
    )


def _info_box(ax: Axes, panel: Panel, join: str) -> None:
    """Prediction, sum and goal above the panel, where they hide nothing."""
    ink = Ink.on(ax)
    ax.annotate(
        join.join(shortened(line, 40) for line in info_lines(panel)),
        xy=(0.5, 1),
        xycoords="axes fraction",
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize="small",
        color=ink.text,
        parse_math=False,
        gid="info",
        bbox={
            "boxstyle": "round,pad=0.3",
            "facecolor": ink.mixed(0.04),
            "edgecolor": ink.mixed(0.25),
        },
    )


def _unconnected(ax: Axes) -> None:
    ax.set_axis_off()
    colour = Ink.on(ax).text
    ax.text(
        0.5, 0.5, "not connected", ha="center", va="center", transform=ax.transAxes, color=colour
    )


# ---------------------------------------------------------------- colours


@dataclass(frozen=True)
class Ink:
    """Colours that can be told from the background of the axes."""

    paper: tuple[float, float, float]
    text: str

    @classmethod
    def on(cls, ax: Axes) -> Ink:
        paper = to_rgb(ax.get_facecolor())
        text = rcParams["text.color"]
        if abs(_lightness(to_rgb(text)) - _lightness(paper)) < 0.4:
            text = "black" if _lightness(paper) > 0.5 else "white"
        return cls(paper, text)

    @property
    def dark(self) -> bool:
        return _lightness(self.paper) < 0.5

    @property
    def colours(self) -> Colormap:
        return DARK_COLOURS if self.dark else COLOURS

    def mixed(self, share: float) -> str:
        """The background with a share of the colour of texts."""
        pairs = zip(self.paper, to_rgb(self.text), strict=True)
        mixture: Any = [(1 - share) * p + share * t for p, t in pairs]
        return to_hex(mixture)

    def of(self, values: np.ndarray, scale: float) -> np.ndarray:
        """Colour (n, 4) of each value: blue at -scale, that of the paper at 0, red at +scale."""
        scale = scale or 1.0
        return self.colours(0.5 + 0.5 * np.nan_to_num(values).clip(-scale, scale) / scale)


def _lightness(colour: tuple[float, float, float]) -> float:
    return float(np.dot(colour, (0.2126, 0.7152, 0.0722)))


def glaze(opacity: float) -> Colormap:
    """Blue to red for heat maps above a picture: transparent at 0, not white."""
    size = np.abs(np.linspace(-1, 1, 255))[:, None]
    ends = np.array([COLOURS(0.1), COLOURS(0.9)])
    colours = np.repeat(ends, (127, 128), axis=0)
    colours[:, 3:] = opacity * size**0.7
    return ListedColormap(colours, "glaze").with_extremes(bad=(0, 0, 0, 0))


def _colour_bar(ax: Axes, panel: Panel, colours: Colormap) -> None:
    norm = _norm(panel)
    bar = ax.figure.colorbar(
        ScalarMappable(norm, colours), cax=ax.inset_axes((1.04, 0, 0.05, 1)), label=panel.title
    )
    low, high = panel.limits
    if low < high and (low == 0 or high == 0):  # one sign only: half of the colours
        bar.ax.set_ylim(-panel.scale if low < 0 else 0, panel.scale if high > 0 else 0)
    bar.locator = MaxNLocator(6, steps=[1, 2, 5, 10])
    bar.ax.ticklabel_format(axis="y", scilimits=(-3, 3))


def _norm(panel: Panel) -> Normalize:
    return Normalize(-(panel.scale or 1.0), panel.scale or 1.0)


# ---------------------------------------------------------------- values of one data point


def _bars(ax: Axes, panel: Panel, place: _Place) -> None:
    if panel.kind == "signal":
        _signal_bars(ax, panel, place)
        return
    values, ink = panel.values, Ink.on(ax)
    places = np.arange(len(values))
    fill = ink.of(values, panel.scale)
    if panel.rest:
        fill[-1] = (*to_rgb(ink.mixed(0.25)), 1)
    style = {"color": fill, "edgecolor": ink.mixed(0.65), "linewidth": 0.6}
    if place.lies:
        ax.barh(places, values, **style)
    else:
        ax.bar(places, values, **style)
    _feature_axis(ax, panel, place)


def _signal_bars(ax: Axes, panel: Panel, place: _Place) -> None:
    values, ink = panel.values, Ink.on(ax)
    edges = np.arange(len(values) + 1) - 0.5
    left, right, zero = edges[:-1], edges[1:], np.zeros(len(values))
    height = np.nan_to_num(values)
    corners = [(left, zero), (left, height), (right, height), (right, zero)]
    boxes = np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)
    fill = ink.of(values, panel.scale)
    ax.add_collection(PolyCollection(list(boxes), facecolors=fill, edgecolors=fill, linewidths=0.5))
    if len(values) <= MAX_OUTLINED:  # pale bars vanish on the paper: the outline shows them
        ax.stairs(values, edges, color=ink.mixed(0.65), linewidth=0.6)
    _signal_axis(ax, panel, place)


def _line(ax: Axes, panel: Panel, place: _Place) -> None:
    """The course of a signal with its result as colour; several channels below each other."""
    ink, lanes = Ink.on(ax), lanes_of(panel)
    positions = np.arange(len(panel.values))
    middle = (positions[:-1] + positions[1:]) / 2
    x = np.stack([np.r_[0, middle], positions, np.r_[middle, positions[-1]]], axis=1)
    fill = ink.of(panel.values, panel.scale)
    fill[~np.isfinite(panel.values)] = ink.colours.get_bad()
    for y in lanes:
        between = (y[:-1] + y[1:]) / 2
        y3 = np.stack([np.r_[y[0], between], y, np.r_[between, y[-1]]], axis=1)
        # A grey edge, or what is near 0 would vanish on the paper.
        ax.plot(positions, y, color=ink.mixed(0.4), linewidth=4.2, solid_capstyle="round")
        ax.add_collection(
            LineCollection(list(np.stack([x, y3], axis=-1)), colors=fill, linewidths=3, zorder=2.5)
        )
    ax.set_xlim(-0.5, len(positions) - 0.5)
    ax.margins(y=0.08)
    if len(lanes) > 1:
        labels = [shortened(name, 16) for name in panel.channels]
        ax.set_yticks(-np.arange(len(lanes)), labels, parse_math=False)
    if place.left:
        ax.set_ylabel("Channel" if len(lanes) > 1 else "Input")
    _position_axis(ax, panel, place)
    _colour_bar(ax, panel, ink.colours)


def _heat(ax: Axes, panel: Panel, place: _Place) -> None:
    values: Any = panel.values
    height, width = values.shape
    options: Any = {
        "origin": "upper",
        "interpolation": "nearest",
        "aspect": "equal" if 1 / 6 <= height / width <= 6 else "auto",
    }
    colours = Ink.on(ax).colours
    if panel.picture is not None:
        # From dark grey, since neither red nor blue is seen on black.
        ax.imshow(panel.picture, cmap="gray", norm=Normalize(-0.25, 1), **options)
        colours = glaze(panel.opacity)
    ax.imshow(np.ma.masked_invalid(values), cmap=colours, norm=_norm(panel), **options)
    ax.grid(False)
    _positions(ax.xaxis, panel.names[1])
    _positions(ax.yaxis, panel.names[0])
    ax.tick_params(labelbottom=place.column_names, labelleft=place.row_names)
    if place.bottom:
        ax.set_xlabel("Image Width")
    if place.left:
        ax.set_ylabel("Image Height")
    _colour_bar(ax, panel, colours)


def _steps(ax: Axes, panel: Panel, place: _Place) -> None:
    values, ink = np.nan_to_num(panel.values), Ink.on(ax)
    places = np.arange(len(values))
    ends = np.cumsum(values)
    starts = ends - values
    blue, red = (ink.colours(share) for share in (0.12, 0.88))
    fill: list[Any] = [red if value > 0 else blue for value in values]
    if panel.rest:
        fill[-1] = ink.mixed(0.35)
    ax.barh(places, values, left=starts, color=fill, height=0.7)
    ax.vlines(
        ends[:-1], places[:-1] + 0.35, places[1:] - 0.35, colors=ink.mixed(0.5), linewidths=0.8
    )
    for y, value, end in zip(places, values, ends, strict=True):
        side = 1 if value >= 0 else -1
        ax.annotate(
            f"{value:+.3g}" if value else "0",
            (end, y),
            xytext=(4 * side, 0),
            textcoords="offset points",
            ha="left" if value >= 0 else "right",
            va="center",
            fontsize="small",
            color=ink.text,
            gid="step",
            bbox={"facecolor": (*ink.paper, 0.7), "edgecolor": "none", "pad": 0.5},
        )
    low, high = panel.limits
    room = 0.24 * (high - low) or 1.0
    _lying_names(ax, panel, place)
    ax.set_xlim(low - room, high + room)
    ax.set_ylim(len(values) + 0.1, -0.6)
    _ends(ax, panel, ends[-1])


def _ends(ax: Axes, panel: Panel, total: float) -> None:
    """Lines at the sum and at the goal of a waterfall, named on their far sides."""
    ink = Ink.on(ax)
    ends = [("sum", total, ink.mixed(0.6), "--")]
    if panel.goal is not None:
        ends.append(("goal", panel.goal, RED, ":"))
    least = min(value for _, value, _, _ in ends)
    for k, (name, value, colour, dashes) in enumerate(ends):
        ax.axvline(value, color=colour, linewidth=1.1, linestyle=dashes, zorder=0.5)
        right = value > least or (k > 0 and value == total)
        ax.annotate(
            name,
            (value, 0),
            xycoords=("data", "axes fraction"),
            xytext=(3 if right else -3, 3),
            textcoords="offset points",
            ha="left" if right else "right",
            fontsize="x-small",
            color=colour,
        )


# ---------------------------------------------------------------- values of many data points


def _boxes(ax: Axes, panel: Panel, place: _Place) -> None:
    lies = place.lies
    if panel.kind == "signal" and len(panel.names[0]) > MAX_BOXES:
        _draw_bands(ax, panel)
    else:
        _draw_boxes(ax, panel, lies)
    _draw_individuals(ax, panel, lies)
    if place.legend and ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    if panel.kind == "signal":
        _signal_axis(ax, panel, place)
    else:
        _feature_axis(ax, panel, place)


def _draw_boxes(ax: Axes, panel: Panel, lies: bool) -> None:
    ink = Ink.on(ax)
    places, edge = np.arange(len(panel.names[0])), ink.mixed(0.65)
    ax.bxp(
        box_statistics(panel),
        positions=places,
        widths=0.7,
        orientation="horizontal" if lies else "vertical",
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": ink.mixed(0.2), "edgecolor": edge},
        whiskerprops={"color": edge},
        capprops={"color": edge},
        medianprops={"color": ink.text, "linewidth": 1.5},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": edge, "alpha": 0.5},
    )
    if panel.reference is not None:
        lines = ax.vlines if lies else ax.hlines
        lines(
            panel.reference,
            places - 0.35,
            places + 0.35,
            colors=RED,
            linewidth=2.5,
            zorder=4,
            label=_red_label(panel),
        )


def _draw_bands(ax: Axes, panel: Panel) -> None:
    found, ink = box_statistics(panel), Ink.on(ax)
    low, q1, middle, q3, high = (
        np.array([box[key] for box in found]) for key in ("whislo", "q1", "med", "q3", "whishi")
    )
    places = np.arange(len(found))
    ax.fill_between(places, low, high, color=ink.mixed(0.12), linewidth=0, label="whiskers")
    ax.fill_between(places, q1, q3, color=ink.mixed(0.35), linewidth=0, label="middle half")
    ax.plot(places, middle, color=ink.text, linewidth=0.8, label="median")
    if panel.reference is not None:
        ax.plot(places, panel.reference, color=RED, linewidth=0.8, label=_red_label(panel))


def _red_label(panel: Panel) -> str:
    return next(iter(panel.individuals), "reference")


def _draw_individuals(ax: Axes, panel: Panel, lies: bool) -> None:
    """Single data points as lines over boxes; the reference is there already, in red."""
    lines = [item for item in panel.individuals.items() if item[1] is not panel.reference]
    for k, (label, values) in enumerate(lines):
        x: Any = np.arange(len(values)), values
        ax.plot(
            *(x[::-1] if lies else x),
            color=LINES[k % len(LINES)],
            linewidth=1,
            marker="o" if len(values) <= MAX_BOXES else None,
            markersize=3,
            label=label if k < MAX_LEGEND else None,
            zorder=3.5,
        )


def _dots(ax: Axes, panel: Panel, place: _Place) -> None:
    ink, features = Ink.on(ax), len(panel.names[0])
    pixels = features * len(panel.values) > MAX_VECTOR
    plain = ink.mixed(0.5)
    ends = (0.25, 1.0) if ink.dark else (0.05, 0.88)
    for k in range(features):
        x, offset, shade = swarm(panel, k)
        fill = SHADES(np.interp(np.nan_to_num(shade), (0, 1), ends))
        fill[np.isnan(shade)] = (*to_rgb(plain), 1)
        ax.scatter(x, k + offset, s=9, c=fill, linewidths=0, rasterized=pixels, zorder=2.5)
    ax.grid(False, axis="x")
    ax.hlines(
        np.arange(features),
        0,
        1,
        transform=ax.get_yaxis_transform(),
        colors=ink.mixed(0.12),
        linewidths=0.6,
    )
    _lying_names(ax, panel, place)
    ax.set_xlim(*padded(panel.limits, both=True))
    if panel.picture is None:
        return
    colours = ListedColormap(SHADES(np.linspace(*ends, 256)))
    bar = ax.figure.colorbar(
        ScalarMappable(Normalize(0, 1), colours), cax=ax.inset_axes((1.03, 0, 0.025, 1))
    )
    bar.set_ticks([0, 1], labels=["low", "high"])
    bar.set_label("Value of the feature", labelpad=-14)


DRAW: dict[str, Callable[[Axes, Panel, _Place], None]] = {
    "bars": _bars,
    "line": _line,
    "heat": _heat,
    "boxes": _boxes,
    "dots": _dots,
    "steps": _steps,
}


# ---------------------------------------------------------------- axes


def _feature_axis(ax: Axes, panel: Panel, place: _Place) -> None:
    if place.lies:
        _lying_names(ax, panel, place)
        ax.set_xlim(*padded(panel.limits))
        return
    names = [shortened(name) for name in panel.names[0]]
    ax.axhline(0, color=Ink.on(ax).text, linewidth=0.8)
    turn: dict[str, Any] = {}
    if sum(map(len, names)) > 32:
        turn = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(np.arange(len(names)), names, parse_math=False, **turn)
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.tick_params(labelbottom=place.column_names)
    _value_axis(ax, panel, place)
    if place.bottom:
        ax.set_xlabel(feature_title(panel))


def _lying_names(ax: Axes, panel: Panel, place: _Place) -> None:
    """Features below each other, the first at the top, and values to the right."""
    names = [shortened(name) for name in panel.names[0]]
    ax.axvline(0, color=Ink.on(ax).text, linewidth=0.8)
    ax.set_yticks(np.arange(len(names)), names, fontsize="small", parse_math=False)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.ticklabel_format(axis="x", scilimits=(-3, 3))
    ax.tick_params(labelleft=place.row_names)
    if place.bottom:
        ax.set_xlabel(panel.title)
    if place.left:
        ax.set_ylabel(feature_title(panel))


def _signal_axis(ax: Axes, panel: Panel, place: _Place) -> None:
    ax.axhline(0, color=Ink.on(ax).text, linewidth=0.8)
    ax.set_xlim(-0.5, len(panel.names[0]) - 0.5)
    _position_axis(ax, panel, place)
    _value_axis(ax, panel, place)


def _position_axis(ax: Axes, panel: Panel, place: _Place) -> None:
    _positions(ax.xaxis, panel.names[0])
    ax.tick_params(labelbottom=place.column_names)
    if place.bottom:
        ax.set_xlabel("Signal Length")


def _value_axis(ax: Axes, panel: Panel, place: _Place) -> None:
    ax.set_ylim(*padded(panel.limits))
    ax.ticklabel_format(axis="y", scilimits=(-3, 3))
    if place.left:
        ax.set_ylabel(panel.title)


def _positions(axis: Any, names: list[str]) -> None:
    """Ticks at whole positions: numbers from 0 for default names such as L1, L2, else the names."""
    axis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    if names == [f"{names[0][:1]}{k + 1}" for k in range(len(names))]:
        return

    def name(position: float, _: Any) -> str:
        k = round(position)
        return shortened(names[k], 12) if 0 <= k < len(names) else ""

    axis.set_major_formatter(FuncFormatter(name))
