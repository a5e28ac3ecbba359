"""Draws sheets with plotly: plots with menus, a slider and texts at the pointer.

A sheet becomes what plotly.js draws, a dict of `data` and `layout`: `described`. Colours that
depend on the background are words that start with @ there, which `LOOKS` translates; a page does so
when it is opened, since only then is it known whether its reader likes dark pages.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np

from ..errors import ArgumentError, MissingPackageError, shown
from .common import (
    PERCENTILES,
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
    thinned,
    wrapped,
)
from .mpl import COLOURS, DARK_COLOURS, MAX_BOXES, RED, SHADES, glaze

Theme: TypeAlias = str | None  # "light", "dark"
Trace: TypeAlias = dict[str, Any]
Pack: TypeAlias = Callable[[np.ndarray, float], Any]

# The names plotly.js knows; each is offered reversed as well.
SCALES = (
    "Blackbody",
    "Bluered",
    "Blues",
    "Cividis",
    "Earth",
    "Electric",
    "Greens",
    "Greys",
    "Hot",
    "Jet",
    "Picnic",
    "Portland",
    "Rainbow",
    "RdBu",
    "Reds",
    "Viridis",
    "YlGnBu",
    "YlOrRd",
)
PERCENTILE_NAMES = ["min", *(f"{p:g}" for p in PERCENTILES[1:-1]), "max"]
PERCENTILE_NAMES[4] = "median"
MAX_VIOLIN = 200  # values a violin is drawn from, evenly spread in their order
MAX_SHOWN_DOTS = 6000  # of a swarm: browsers draw each of them
LEVELS = 11  # of colour in contours: odd, so that one of them is around 0
BAR = 78  # pixels a colour bar takes beside a panel
LETTER = 6.2  # pixels


def _colour_list(colours: Any, steps: int = 20) -> list[list[Any]]:
    """A colour map as plotly writes it: pairs of a place from 0 to 1 and a colour."""
    found = []
    for k in range(steps + 1):
        r, g, b, a = colours(k / steps)
        rgb = f"{255 * r:.0f},{255 * g:.0f},{255 * b:.0f}"
        found.append([k / steps, f"rgb({rgb})" if a == 1 else f"rgba({rgb},{a:.3g})"])
    return found


def _shades(low: float, high: float) -> list[list[Any]]:
    return _colour_list(lambda x: SHADES(low + (high - low) * x), 10)


LOOKS: dict[str, dict[str, Any]] = {
    "light": {
        "@paper": "#ffffff",
        "@text": "#222222",
        "@grid": "#e8e8e8",
        "@edge": "#6b6b6b",
        "@pale": "#e2e2e2",
        "@fill": "#bcbcbc",
        "@red": RED,
        "@positive": _colour_list(COLOURS, 50)[44][1],
        "@negative": _colour_list(COLOURS, 50)[6][1],
        "@colours": _colour_list(COLOURS),
        "@shades": _shades(0.05, 0.88),
    },
    "dark": {
        "@paper": "#16181c",
        "@text": "#e4e4e4",
        "@grid": "#33363c",
        "@edge": "#a0a0a0",
        "@pale": "#3a3d43",
        "@fill": "#62666d",
        "@red": "#ff6b6b",
        "@positive": _colour_list(DARK_COLOURS, 50)[44][1],
        "@negative": _colour_list(DARK_COLOURS, 50)[6][1],
        "@colours": _colour_list(DARK_COLOURS),
        "@shades": _shades(0.25, 1.0),
    },
}


def draw(sheet: Sheet) -> Figure:
    """Make an interactive figure of a sheet."""
    check_plotly("as_plotly=True")
    return Figure(sheet)


def check_plotly(what: str) -> None:
    """Raise if plotly is not there, or too old to take arrays as bytes."""
    try:
        found = version("plotly")
    except PackageNotFoundError:
        found = None
    if found is None or int(found.partition(".")[0]) < 6:
        came = "" if found is None else f", plotly {found} is too old"
        raise MissingPackageError(f"{what} needs plotly{came}: pip install 'onnxplain[plotly]'")


class Figure:
    """An interactive plot.

    `figure[rows, columns]` draws a part of it, with numbers, slices or lists as indices: rows are
    data points, columns output nodes (or methods) and, within each, inputs. Notebooks show it.

    Attributes
    ----------
    sheet : onnxplain.plots.common.Sheet
        The numbers and names that are drawn.
    """

    def __init__(self, sheet: Sheet, theme: Theme = None) -> None:
        self.sheet, self._theme = sheet, theme

    @property
    def figure(self) -> Any:
        """A `plotly.graph_objects.Figure` of the plot, made anew each time, to be changed."""
        from plotly.graph_objects import Figure as PlotlyFigure

        return PlotlyFigure(with_menus(described(self.sheet), self._theme or "light"))

    def theme(self, style: Theme) -> Figure:
        """Draw the plot on a "light" or "dark" background; None: on pages as the reader likes it.

        Raises
        ------
        ArgumentError
            If there is no such background.
        """
        if style not in (None, "light", "dark"):
            raise ArgumentError(
                f"theme is {shown(style)}, expected 'light' or 'dark' for an interactive plot; "
                "the attribute figure is plotly's and takes its templates"
            )
        return Figure(self.sheet, style)

    def __getitem__(self, key: Any) -> Figure:
        return Figure(self.sheet[key], self._theme)

    def __len__(self) -> int:
        return self.sheet.shape[0]

    def __iter__(self) -> Iterator[Figure]:
        return (self[r] for r in range(len(self)))

    def save(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Write a page (.html) that needs nothing else, or a picture of it (.png, .svg, .pdf, ...).

        Pictures need kaleido; `options` go to plotly's `write_image`.

        Raises
        ------
        ArgumentError
            If the file cannot be written, or its ending is none of these.
        MissingPackageError
            If a picture is asked for and kaleido is not there.
        """
        ending = os.path.splitext(path)[1].lower()
        if ending in (".html", ".htm"):
            from .page import plot_page, write_page

            write_page(path, plot_page(described(self.sheet), self._theme))
            return
        if ending not in (".png", ".jpg", ".jpeg", ".webp", ".svg", ".pdf"):
            raise ArgumentError(
                f"cannot save an interactive plot as {os.fspath(path)!r}, expected the ending "
                ".html, or .png, .jpg, .webp, .svg or .pdf for a picture"
            )
        if find_spec("kaleido") is None:
            raise MissingPackageError(
                "a picture of an interactive plot needs kaleido: pip install kaleido; or save the "
                "plot as .html, or draw it with as_plotly=False"
            )
        without = {"updatemenus": [], "sliders": []}
        self.figure.update_layout(without).write_image(path, **options)

    def show(self, *args: Any, **options: Any) -> None:
        """Show the plot in the notebook, or else in the browser; arguments are plotly's."""
        self.figure.show(*args, **options)

    def _repr_mimebundle_(self, *args: Any, **options: Any) -> Any:
        return self.figure._repr_mimebundle_(*args, **options)

    def __repr__(self) -> str:
        rows, columns = self.sheet.shape
        return (
            f"Interactive figure of {rows} x {columns} panels (save('plot.html') writes it, "
            "show() shows it)"
        )


# ---------------------------------------------------------------- arrays and texts


def typed(values: np.ndarray, scale: float = 1.0) -> Any:
    """An array as plotly.js reads it fastest: bytes, in single precision where that has room."""
    values = np.asarray(values)
    if values.dtype.kind == "f":
        size = np.abs(values[np.isfinite(values)]).max(initial=0)
        values = values.astype("<f4" if 1e-30 < size < 1e30 or size == 0 else "<f8")
    return as_bytes(values)


def as_bytes(values: np.ndarray) -> Any:
    """An array in the type it has; integers have at most 4 bytes."""
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    spec = {
        "dtype": values.dtype.str[1:],
        "bdata": base64.b64encode(values.tobytes()).decode("ascii"),
    }
    if values.ndim > 1:
        spec["shape"] = ", ".join(map(str, values.shape))
    return spec


_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;", "{": "&#123;", "@": "&#64;"}


def _plain(text: str, length: int = 60) -> str:
    """A name that plotly must not read as markup, formula or template."""
    return "".join(_ESCAPES.get(letter, letter) for letter in shortened(text, length))


def _lines(lines: Sequence[str], width: int) -> str:
    parts = [part for line in lines if line for part in wrapped(line, width).split("\n")]
    return "<br>".join(_plain(part) for part in parts)


def _hover(panel: Panel, place: str, value: str) -> str:
    """The text at the pointer: place, value, and where the values come from."""
    told = [panel.data, panel.output, panel.input, panel.method]
    where = " · ".join(_plain(word) for word in dict.fromkeys(told) if word)
    lines = [place, f"{_plain(_unit(panel))}: {value}", where]
    return "<br>".join(line for line in lines if line) + "<extra></extra>"


def _unit(panel: Panel) -> str:
    """What the values are, whichever percentile is shown."""
    return panel.title if panel.percentiles is None else panel.title.rpartition(" (")[0]


# ---------------------------------------------------------------- one panel


@dataclass
class Picture:
    """What one panel adds to a figure.

    Every trace has a role: menus show and hide those of "heat", "box", "violin", ("point", label)
    and ("percentile", k); "" is always there.
    """

    traces: list[tuple[Any, Trace]]
    x: dict[str, Any] = field(default_factory=dict)
    y: dict[str, Any] = field(default_factory=dict)
    colours: dict[str, Any] | None = None  # a colour axis, with a bar unless showscale is False
    shapes: list[dict[str, Any]] = field(default_factory=list)
    texts: list[dict[str, Any]] = field(default_factory=list)
    equal: bool = False  # pixels are squares


def _turned(lies: bool, places: Any, values: Any) -> dict[str, Any]:
    """Where a trace's places and values go: lying bars have values to the right."""
    return {"x": values, "y": places} if lies else {"x": places, "y": values}


def _bars(panel: Panel, pack: Pack) -> Picture:
    values, lies = panel.values, is_lying(panel)
    shares = np.nan_to_num(values / (panel.scale or 1.0)).clip(-1, 1)
    own = slice(0, len(values) - 1) if panel.rest else slice(None)
    places = np.arange(len(values))
    place, value = _place_and_value(panel, lies)
    if panel.kind == "table":
        place = "<b>%{hovertext}</b>"  # the whole name
    common = {"type": "bar", "orientation": "h" if lies else "v"}
    common["hovertemplate"] = _hover(panel, place, value)
    edge = {"width": 0.6 if len(values) <= MAX_BOXES else 0, "color": "@edge"}
    traces = []
    fills: list[tuple[slice, Any]] = [
        (own, {"color": typed(shares[own]), "coloraxis": "coloraxis", "line": edge})
    ]
    if panel.rest:
        fills.append((slice(-1, None), {"color": "@fill", "line": edge}))
    for part, marker in fills:
        trace = common | _turned(lies, places[part].tolist(), typed(values[part]))
        if panel.kind == "table":
            trace["hovertext"] = [_plain(name, 200) for name in panel.names[0][part]]
        traces.append(("", trace | {"marker": marker}))
    colours = {"cmin": -1, "cmax": 1, "colorscale": "@colours", "showscale": False}
    return Picture(traces, *_axes(panel, lies), colours=colours)


def _place_and_value(panel: Panel, lies: bool) -> tuple[str, str]:
    """Texts for the pointer: plotly puts the label for a place where the axis has one."""
    place, value = ("%{y}", "%{x:.4~g}") if lies else ("%{x}", "%{y:.4~g}")
    return (f"<b>{place}</b>" if panel.kind == "table" else f"<b>Position {place}</b>"), value


def _line(panel: Panel, pack: Pack) -> Picture:
    """The course of a signal with dots coloured by its result."""
    positions, lanes = np.arange(len(panel.values)), lanes_of(panel)
    size = float(np.clip(600 / len(positions), 3, 8))
    traces = []
    for channel, y, unit in zip(panel.channels, lanes, np.asarray(panel.picture), strict=True):
        place = f"<b>Position %{{x}}</b>, {_plain(channel)} = %{{customdata:.4~g}}"
        trace = {
            "type": "scatter",
            "mode": "lines+markers",
            "x": typed(positions.astype("i4")),
            "y": typed(y),
            "customdata": typed(unit),
            "line": {"color": "@fill", "width": 1.5},
            "marker": {"color": typed(panel.values), "coloraxis": "coloraxis", "size": size},
            "hovertemplate": _hover(panel, place, "%{marker.color:.4~g}"),
        }
        traces.append(("", trace))
    x, _ = _axes(panel, False)
    y = {"title": "Channel" if len(lanes) > 1 else "Input", "zeroline": False}
    if len(lanes) > 1:
        names = [_plain(name, 16) for name in panel.channels]
        y |= {"tickvals": [-k for k in range(len(lanes))], "ticktext": names}
    return Picture(traces, x, y, colours=_colour_axis(panel, "@colours"))


def _colour_axis(panel: Panel, colours: Any) -> dict[str, Any]:
    scale = panel.scale or 1.0
    bar = {"title": {"text": _plain(panel.title), "side": "right"}, "thickness": 12}
    bar["exponentformat"] = "e"
    return {"cmin": -scale, "cmax": scale, "colorscale": colours, "colorbar": bar}


def _heat(panel: Panel, pack: Pack) -> Picture:
    # Contours are drawn by the same trace, so that both types share what is shown at the pointer.
    images = enumerate([panel.values] if panel.percentiles is None else panel.percentiles)
    traces: list[tuple[Any, Trace]] = []
    for k, image in images:
        z = pack(image, panel.scale)
        trace = {"type": "heatmap", "coloraxis": "coloraxis", "z": z}
        value = "%{z:.4~g}" + _precision(z)
        trace["hovertemplate"] = _hover(panel, "<b>Row %{y}, column %{x}</b>", value)
        traces.append(("heat" if panel.percentiles is None else ("percentile", k), trace))
    if panel.percentiles is not None:
        differences = [np.nansum(np.abs(p - panel.values)) for p in panel.percentiles]
        for k, (_, trace) in enumerate(traces):
            trace["visible"] = k == int(np.argmin(differences))
    colours: Any = "@colours"
    if panel.picture is not None:
        colours = _colour_list(glaze(panel.opacity), 40)
        traces.insert(0, ("", _grey(panel, pack)))
    height, width = panel.values.shape
    x = {"title": "Image Width", "constrain": "domain", "range": [-0.5, width - 0.5]}
    y = {"title": "Image Height", "constrain": "domain", "range": [height - 0.5, -0.5]}
    axes = [
        axis | _positions(names) | {"showgrid": False, "zeroline": False}
        for axis, names in ((x, panel.names[1]), (y, panel.names[0]))
    ]
    equal = 1 / 6 <= height / width <= 6
    return Picture(traces, *axes, colours=_colour_axis(panel, colours), equal=equal)


def _precision(z: dict[str, Any]) -> str:
    """How exact the numbers of an image are, where one byte has to do for each."""
    return f" ± {z['step'] / 2:.1g}" if z["dtype"] == "i1" else ""


def _grey(panel: Panel, pack: Pack) -> Trace:
    picture = (np.asarray(panel.picture) * 255).round().clip(0, 255).astype("u1")
    return {
        "type": "heatmap",
        "z": pack(picture, 0.0),
        "zmin": -64,  # from dark grey, since neither red nor blue is seen on black
        "zmax": 255,
        "colorscale": [[0, "rgb(0,0,0)"], [1, "rgb(255,255,255)"]],
        "showscale": False,
        "hoverinfo": "skip",
    }


def _boxes(panel: Panel, pack: Pack) -> Picture:
    lies, found = is_lying(panel), box_statistics(panel)
    traces: list[tuple[Any, Trace]] = []
    if panel.kind == "signal" and len(found) > MAX_BOXES:
        traces += [("", trace) for trace in _bands(panel, found)]
    else:
        traces += [("box", trace) for trace in _box_traces(panel, found, lies)]
        traces.append(("violin", _violin(panel, lies)))
    for k, (label, values) in enumerate(panel.individuals.items()):
        trace = _point(panel, label, values, lies)
        trace["visible"] = k == 0 and panel.reference is not None
        traces.append((("point", label), trace))
    return Picture(traces, *_axes(panel, lies))


def _box_traces(panel: Panel, found: list[dict[str, Any]], lies: bool) -> list[Trace]:
    """Boxes from their quartiles, and the outliers: all data points would be too many."""
    places = np.arange(len(found))
    names = {
        "q1": "q1",
        "median": "med",
        "q3": "q3",
        "lowerfence": "whislo",
        "upperfence": "whishi",
    }
    parts = {name: typed(np.array([box[key] for box in found])) for name, key in names.items()}
    outliers = np.concatenate([box["fliers"] for box in found])
    owners = np.repeat(places, [len(box["fliers"]) for box in found])
    box = {
        "type": "box",
        "y" if lies else "x": places.tolist(),
        "orientation": "h" if lies else "v",
        "hoverinfo": "x+y",
        "line": {"width": 1.2},
        "fillcolor": "@pale",
        "marker": {"color": "@edge"},
        "width": 0.7,
        "showlegend": False,
        **parts,
    }
    dots = {
        "type": "scatter",
        "mode": "markers",
        "marker": {"color": "@edge", "size": 3, "opacity": 0.6},
        **_turned(lies, typed(owners.astype("i2")), typed(outliers)),
    }
    place, value = _place_and_value(panel, lies)
    dots["hovertemplate"] = _hover(panel, place, value)
    return [box, dots] if len(outliers) else [box]


def _violin(panel: Panel, lies: bool) -> Trace:
    columns = [thinned(np.sort(c[np.isfinite(c)]), MAX_VIOLIN) for c in panel.values.T]
    places = np.repeat(np.arange(len(columns)), [len(column) for column in columns])
    where = _turned(lies, typed(places.astype("i2")), typed(np.concatenate(columns)))
    return where | {
        "type": "violin",
        "orientation": "h" if lies else "v",
        "points": False,
        "spanmode": "hard",
        "scalemode": "width",
        "line": {"width": 1.2, "color": "@edge"},
        "fillcolor": "@pale",
        "width": 0.8,
        "hoverinfo": "x+y",
        "visible": False,
    }


def _bands(panel: Panel, found: list[dict[str, Any]]) -> list[Trace]:
    """Whiskers and quartiles of a long signal as areas, from the lower edge to the upper."""
    edges = [("whislo", None), ("whishi", "@pale"), ("q1", None), ("q3", "@fill"), ("med", None)]
    words = {"whislo": "lower whisker", "whishi": "upper whisker", "med": "median"}
    traces = []
    for key, fill in edges:
        trace = {
            "type": "scatter",
            "mode": "lines",
            "x": typed(np.arange(len(found), dtype="i4")),
            "y": typed(np.array([box[key] for box in found])),
            "line": {"width": 1 if key == "med" else 0, "color": "@text"},
            "hovertemplate": _hover(
                panel, f"<b>Position %{{x}}</b>, {words.get(key, key)}", "%{y:.4~g}"
            ),
        }
        traces.append(trace | ({"fill": "tonexty", "fillcolor": fill} if fill else {}))
    return traces


def _point(panel: Panel, label: str, values: np.ndarray, lies: bool) -> Trace:
    """A single data point in red: a segment across each box, or a line along a long signal."""
    places = np.arange(len(values), dtype="i4")
    _, value = _place_and_value(panel, lies)
    trace = _turned(lies, typed(places), typed(values)) | {"type": "scatter"}
    # Not the place on the axis: plotly would tell the length of the segment with it.
    if panel.kind == "table":
        place = "<b>%{hovertext}</b>"
        trace["hovertext"] = [_plain(name, 200) for name in panel.names[0]]
    else:
        place = "<b>Position %{customdata}</b>"
        trace["customdata"] = trace["x"]
    trace["hovertemplate"] = _hover(replace(panel, data=label), place, value)
    if panel.kind == "signal" and len(values) > MAX_BOXES:
        return trace | {"mode": "lines", "line": {"color": "@red", "width": 1}}
    across = {"type": "constant", "value": 0.35, "thickness": 3, "width": 0, "color": "@red"}
    marker = {"color": "@red", "size": 3}
    return trace | {"mode": "markers", "marker": marker, "error_y" if lies else "error_x": across}


def _dots(panel: Panel, pack: Pack) -> Picture:
    most = max(MAX_SHOWN_DOTS // len(panel.names[0]), 1)
    traces = []
    for k, name in enumerate(panel.names[0]):
        values, offsets, shades = swarm(panel, k)
        kept = thinned(np.arange(len(values)), most)
        plain = np.isnan(shades[kept])
        trace = {
            "type": "scatter",
            "mode": "markers",
            "hovertemplate": _hover(panel, f"<b>{_plain(name, 200)}</b>", "%{x:.4~g}"),
        }
        for part, coloured in ((kept[plain], False), (kept[~plain], True)):
            shade = {"color": typed(shades[part]), "coloraxis": "coloraxis"}
            marker = (shade if coloured else {"color": "@edge"}) | {"size": 4}
            where = {"x": typed(values[part]), "y": typed(k + offsets[part])}
            if len(part):
                traces.append(("", trace | where | {"marker": marker}))
    axes = _axes(panel, True)
    axes[0]["range"] = padded(panel.limits, both=True)
    if panel.picture is None:
        return Picture(traces, *axes)
    ticks = {"tickvals": [0, 1], "ticktext": ["low", "high"], "thickness": 12}
    bar = ticks | {"title": {"text": "Value of the feature", "side": "right"}}
    colours = {"cmin": 0, "cmax": 1, "colorscale": "@shades", "colorbar": bar}
    return Picture(traces, *axes, colours=colours)


def _steps(panel: Panel, pack: Pack) -> Picture:
    values = np.nan_to_num(panel.values)
    ends = np.cumsum(values)
    fill = ["@positive" if value > 0 else "@negative" for value in values]
    if panel.rest:
        fill[-1] = "@fill"
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": typed(values),
        "base": typed(ends - values),
        "y": list(range(len(values))),
        "marker": {"color": fill},
        "customdata": typed(values),
        "text": [f"{value:+.3g}" if value else "0" for value in values],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertext": [_plain(name, 200) for name in panel.names[0]],
        "hovertemplate": _hover(panel, "<b>%{hovertext}</b>", "%{customdata:.4~g}"),
    }
    x, y = _axes(panel, True)
    low, high = panel.limits
    room = 0.24 * (high - low) or 1.0
    x["range"] = [low - room, high + room]
    y["range"] = [len(values) + 0.1, -0.6]
    picture = Picture([("", trace)], x, y)
    _add_end(picture, "sum", float(ends[-1]), "@edge", "dash")
    if panel.goal is not None:
        _add_end(picture, "goal", panel.goal, "@red", "dot")
    return picture


def _add_end(picture: Picture, name: str, value: float, colour: str, dash: str) -> None:
    """A line at the sum or the goal of a waterfall; the goal is named above, the sum below."""
    line = {"color": colour, "width": 1.2, "dash": dash}
    picture.shapes.append(
        {"type": "line", "x0": value, "x1": value, "y0": 0, "y1": 1, "yref": "domain", "line": line}
    )
    top = name == "goal"
    picture.texts.append(
        {
            "text": name,
            "x": value,
            "y": 1 if top else 0,
            "yref": "domain",
            "yanchor": "bottom",
            "xanchor": "left",
            "font": {"size": 10, "color": colour},
        }
    )


DRAW: dict[str, Callable[[Panel, Pack], Picture]] = {
    "bars": _bars,
    "line": _line,
    "heat": _heat,
    "boxes": _boxes,
    "dots": _dots,
    "steps": _steps,
}


# ---------------------------------------------------------------- axes


def _axes(panel: Panel, lies: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The axes x and y of features or positions, and of values."""
    n = len(panel.names[0])
    values = {
        "title": _plain(panel.title),
        "range": padded(panel.limits),
        "zerolinecolor": "@edge",
    }
    if panel.kind == "signal":
        places = {"title": "Signal Length", "range": [-0.5, n - 0.5], **_positions(panel.names[0])}
        return places | {"zeroline": False, "showgrid": False}, values
    names = [_plain(name, 32) for name in panel.names[0]]
    places = {"title": feature_title(panel), "tickvals": list(range(n)), "ticktext": names}
    places |= {"zeroline": False, "showgrid": False}
    if lies:
        return values, places | {"range": [n - 0.4, -0.6]}
    return places | {"range": [-0.6, n - 0.4]}, values


def _positions(names: list[str]) -> dict[str, Any]:
    """Ticks at whole positions: numbers from 0 for default names such as L1, L2, else the names."""
    ticks: dict[str, Any] = {"tickformat": "d", "nticks": 8}
    if len(names) <= 8:
        ticks |= {"dtick": 1, "tick0": 0}
    if names != [f"{names[0][:1]}{k + 1}" for k in range(len(names))]:
        ticks["labelalias"] = {str(k): _plain(name, 12) for k, name in enumerate(names)}
    return ticks


# ---------------------------------------------------------------- the figure


def described(sheet: Sheet, pack: Pack = typed) -> dict[str, Any]:
    """The `data` and `layout` of a sheet, and between which widths it looks well.

    `pack(values, scale)` writes images; with scale 0 they are grey values.
    """
    pictures = [[_picture(panel, pack) for panel in row] for row in sheet.panels]
    grid = _Grid(sheet, pictures)
    data: list[Trace] = []
    roles: list[Any] = []
    layout = _empty_layout(grid)
    for r, row in enumerate(sheet.panels):
        for c, panel in enumerate(row):
            k = r * len(row) + c + 1
            picture = pictures[r][c]
            end = "" if k == 1 else str(k)
            _place_axes(layout, picture, end, grid, r, c)
            layout[f"xaxis{end}"]["showticklabels"] = not _hides_lower(sheet, r, c)
            layout[f"yaxis{end}"]["showticklabels"] = not _hides_left(sheet, r, c)
            _place_colours(layout, picture, end, grid, r, c)
            for role, trace in picture.traces:
                data.append(trace | {"xaxis": f"x{end}", "yaxis": f"y{end}"})
                roles.append(role)
            layout["annotations"] += _strips(sheet, grid, r, c)
            if panel.values is None:
                layout["annotations"].append(_unconnected(end))
    layout |= {"updatemenus": _menus(data, roles, layout), "sliders": _sliders(data, roles, layout)}
    _make_room(layout)
    return {"data": data, "layout": layout, "widths": [grid.least, grid.most]}


def _picture(panel: Panel, pack: Pack) -> Picture:
    if panel.values is None:
        hidden = {"visible": False}
        return Picture([], hidden, hidden)
    return DRAW[panel.mark](panel, pack)


class _Grid:
    """Where panels are, in pixels from the left and the top, of a figure of its natural size."""

    def __init__(self, sheet: Sheet, pictures: list[list[Picture]]) -> None:
        rows, columns = sheet.shape
        sizes = [[_size(panel) for panel in row] for row in sheet.panels]
        bars = [any(_has_bar(row[c]) for row in pictures) for c in range(columns)]
        self.widths = [max(row[c][0] for row in sizes) for c in range(columns)]
        self.heights = [max(height for _, height in row) for row in sizes]
        self.left, self.top = [], []
        at = 0.0
        for c in range(columns):
            at += _label_room(sheet, c) if c else 0
            self.left.append(at)
            at += self.widths[c] + (BAR if bars[c] else 12)
        self.width = at
        at = 0.0
        for r in range(rows):
            at += self._head(sheet, r)
            self.top.append(at)
            at += self.heights[r] + (34 if _has_ticks(sheet, r) else 12)
        self.height = at
        only_images = all(panel.mark == "heat" for panel in sheet)
        self.least = 300 if columns == 1 else int(self.width) + 60  # and the names at the left
        self.most = int(self.width * (1.0 if only_images else 1.6) + 120)

    def _head(self, sheet: Sheet, r: int) -> float:
        """Room above a row for headings and boxes."""
        lines = 0
        for c in range(sheet.shape[1]):
            heading = self.heading(sheet, r, c)
            lines = max(lines, heading.count("<br>") + 1 if heading else 0)
        return 8 + 17 * lines + (6 if any(p.goal is not None for p in sheet.panels[r]) else 0)

    def heading(self, sheet: Sheet, r: int, c: int) -> str:
        """Lines above a panel: node and input in the first row, prediction, sum and goal in all."""
        panel, width = sheet.panels[r][c], int(self.widths[c] / LETTER)
        above = _lines(panel.heading, width) if r == 0 else ""
        box = " · ".join(info_lines(panel)) if sheet.opens_group(r, c) else ""
        told = f"<span style='font-size:11px'>{_lines([box], width + 14)}</span>" if box else ""
        return "<br>".join(part for part in (f"<b>{above}</b>" if above else "", told) if part)

    def x(self, c: int) -> list[float]:
        return _ends(self.left[c], self.widths[c], self.width)

    def y(self, r: int) -> list[float]:
        low, high = _ends(self.top[r], self.heights[r], self.height)
        return [1 - high, 1 - low]


def _ends(start: float, size: float, whole: float) -> list[float]:
    return [round(start / whole, 5), round(min((start + size) / whole, 1), 5)]


def _has_bar(picture: Picture) -> bool:
    return picture.colours is not None and picture.colours.get("showscale", True)


def _label_room(sheet: Sheet, c: int) -> float:
    """Pixels that the labels at the left of a column need."""
    needed = []
    for r, row in enumerate(sheet.panels):
        if _hides_left(sheet, r, c):
            needed.append(14.0)
        elif _names_at_left(row[c]):
            needed.append(20 + LETTER * min(max(map(len, row[c].names[0])), 32))
        else:
            needed.append(56.0)
    return max(needed)


def _has_ticks(sheet: Sheet, r: int) -> bool:
    """Whether any panel of a row has labels at its lower axis."""
    return any(not _hides_lower(sheet, r, c) for c in range(sheet.shape[1]))


def _hides_lower(sheet: Sheet, r: int, c: int) -> bool:
    """Whether the panel below has the same labels at its lower axis."""
    return not _names_at_left(sheet.panels[r][c]) and sheet.names_repeat(r, c, "column")


def _hides_left(sheet: Sheet, r: int, c: int) -> bool:
    """Whether a panel further left has the same labels at its left axis."""
    panel = sheet.panels[r][c]
    return (panel.mark == "heat" or _names_at_left(panel)) and sheet.names_repeat(r, c, "row")


def _names_at_left(panel: Panel) -> bool:
    return panel.mark in ("dots", "steps") or is_lying(panel)


def _size(panel: Panel) -> tuple[float, float]:
    """Width and height of a panel in pixels."""
    n = len(panel.names[0])
    if panel.mark == "heat":
        height, width = (len(axis) for axis in panel.names)
        return 320, 320 * min(max(height / width, 0.3), 2.0)
    if panel.mark == "line":
        return 460, min(max(200, 60 * len(panel.channels)), 1200)
    if panel.mark in ("dots", "steps"):
        return 430, 40 + (30 if panel.mark == "dots" else 26) * n
    if panel.kind == "signal":
        return 420, 220
    return (380, 30 + 21 * n) if is_lying(panel) else (340, 230)


def _empty_layout(grid: _Grid) -> dict[str, Any]:
    return {
        "font": {"color": "@text", "size": 12, "family": "system-ui, sans-serif"},
        "paper_bgcolor": "@paper",
        "plot_bgcolor": "@paper",
        "hoverlabel": {"align": "left", "font": {"size": 12}},
        "height": int(grid.height),
        "margin": {"l": 10, "r": 34, "t": 28, "b": 14},  # buttons of plotly are at the top
        "showlegend": False,
        "barmode": "overlay",
        "bargap": 0.2,
        "dragmode": "zoom",
        "annotations": [],
        "shapes": [],
    }


def _place_axes(
    layout: dict[str, Any], picture: Picture, end: str, grid: _Grid, r: int, c: int
) -> None:
    last_row, first_column = r == len(grid.top) - 1, c == 0
    lines = {"gridcolor": "@grid", "linecolor": "@grid", "automargin": True, "ticks": "outside"}
    lines["tickcolor"] = "@grid"
    for name, axis, domain, titled in (
        ("xaxis", picture.x, grid.x(c), last_row),
        ("yaxis", picture.y, grid.y(r), first_column),
    ):
        own = lines | axis | {"domain": domain, "anchor": f"{'y' if name[0] == 'x' else 'x'}{end}"}
        own["title"] = {"text": axis.get("title", "") if titled else "", "standoff": 6}
        layout[f"{name}{end}"] = own
    if picture.equal:
        layout[f"yaxis{end}"] |= {"scaleanchor": f"x{end}"}
    for shape in picture.shapes:
        layout["shapes"].append(shape | _on(shape, end))
    for text in picture.texts:
        layout["annotations"].append(text | _on(text, end) | {"showarrow": False})


def _on(item: dict[str, Any], end: str) -> dict[str, str]:
    domain = " domain" if item.get("yref") == "domain" else ""
    return {"xref": f"x{end}", "yref": f"y{end}{domain}"}


def _place_colours(
    layout: dict[str, Any], picture: Picture, end: str, grid: _Grid, r: int, c: int
) -> None:
    """Give a panel its colour axis; bars share one, which needs no bar of colours."""
    if picture.colours is None:
        return
    shared = not picture.colours.get("showscale", True)
    name = "coloraxis100000" if shared else f"coloraxis{end}"
    for _, trace in picture.traces:
        owner = trace if "coloraxis" in trace else trace.get("marker", {})
        if "coloraxis" in owner:
            owner["coloraxis"] = name
    if not shared:
        low, high = grid.y(r)
        place = {"x": grid.x(c)[1], "xanchor": "left", "xpad": 6, "y": (low + high) / 2}
        place |= {"len": high - low, "lenmode": "fraction", "ypad": 0, "outlinewidth": 0}
        picture.colours["colorbar"] |= place | {"nticks": 6}
    layout[name] = picture.colours


def _strips(sheet: Sheet, grid: _Grid, r: int, c: int) -> list[dict[str, Any]]:
    """Headings above a panel, and the name of the row at the right of the last one."""
    (left, right), (_, top) = grid.x(c), grid.y(r)
    found = []
    heading = grid.heading(sheet, r, c)
    lift = 6 if sheet.panels[r][c].goal is None else 14
    if heading:
        found.append(
            {"text": heading, "x": (left + right) / 2, "y": top, "yanchor": "bottom"}
            | {"yshift": lift, "xanchor": "center"}
        )
    row = sheet.panels[r][c].row
    if row and c == sheet.shape[1] - 1:
        low, high = grid.y(r)
        text = "<br>".join(_plain(part, 40) for part in reversed(row.split("\n")))
        strip = {"text": text, "x": 1, "y": (low + high) / 2, "xanchor": "left"}
        found.append(strip | {"yanchor": "middle", "textangle": 90, "bgcolor": "@pale"})
    common = {"xref": "paper", "yref": "paper", "showarrow": False}
    return [text | common for text in found]


def _unconnected(end: str) -> dict[str, Any]:
    refs = {"xref": f"x{end} domain", "yref": f"y{end} domain"}
    return refs | {"text": "not connected", "x": 0.5, "y": 0.5, "showarrow": False}


# ---------------------------------------------------------------- menus


def _menus(data: list[Trace], roles: list[Any], layout: dict[str, Any]) -> list[dict[str, Any]]:
    """All menus but that of colours, which pages and notebooks make on their own."""
    heat = [k for k, trace in enumerate(data) if "z" in trace and "coloraxis" in trace]
    menus = []
    if heat:
        menus.append(_image_menu(data, heat, layout))
    boxed = [k for k, role in enumerate(roles) if role in ("box", "violin")]
    if boxed:
        choices = {
            title: {"visible": [roles[k] == role for k in boxed]}
            for title, role in (("Boxplot", "box"), ("Violin", "violin"))
        }
        menus.append(_menu("1D Plot Type", choices, boxed))
    points = [k for k, role in enumerate(roles) if role[:1] == ("point",)]
    if points:
        labels = list(dict.fromkeys(roles[k][1] for k in points))
        choices = {
            label or "None": {"visible": [roles[k][1] == label for k in points]}
            for label in (None, *labels)
        }
        active = any(data[k]["visible"] for k in points)
        menus.append(_menu("Data point", choices, points, int(active)))
    return menus


def _image_menu(data: list[Trace], heat: list[int], layout: dict[str, Any]) -> dict[str, Any]:
    """The choice between pixels and contours, which must not change the range of the axes."""
    axes = [layout[data[k]["coloraxis"]] for k in heat]
    ends = [axis["cmax"] * (1 - 2 / LEVELS) for axis in axes]
    # Above a picture only lines: areas would lie on each other and cover it.
    over = [axis["colorscale"] != "@colours" for axis in axes]
    levels = {
        "autocontour": False,
        "contours.start": [-end for end in ends],
        "contours.end": ends,
        "contours.size": [2 * axis["cmax"] / LEVELS for axis in axes],
        "contours.coloring": ["lines" if lines else "fill" for lines in over],
        "line.width": [2.0 if lines else 0.5 for lines in over],
    }
    ranges = {}
    for k in heat:
        for name in "xy":
            axis = data[k][f"{name}axis"].replace(name, f"{name}axis")
            ranges[f"{axis}.range"] = layout[axis]["range"]
    buttons = [
        {"label": label, "method": "update", "args": [change, ranges, heat]}
        for label, change in (
            ("Heatmap", {"type": "heatmap"}),
            ("Contour", {"type": "contour"} | levels),
        )
    ]
    return {"name": "2D Plot Type", "type": "dropdown", "active": 0, "buttons": buttons}


def _menu(
    name: str, choices: dict[str, dict[str, Any]], traces: list[int], active: int = 0
) -> dict[str, Any]:
    buttons = [
        {"label": label, "method": "restyle", "args": [change, traces]}
        for label, change in choices.items()
    ]
    return {"name": name, "type": "dropdown", "active": active, "buttons": buttons}


def _sliders(data: list[Trace], roles: list[Any], layout: dict[str, Any]) -> list[dict[str, Any]]:
    owned = [k for k, role in enumerate(roles) if role[:1] == ("percentile",)]
    if not owned:
        return []
    axes = dict.fromkeys(data[k]["coloraxis"] for k in owned)
    steps = []
    for p, name in enumerate(PERCENTILE_NAMES):
        titles = {}
        for axis in axes:
            base = layout[axis]["colorbar"]["title"]["text"].rpartition(" (")[0]
            titles[f"{axis}.colorbar.title.text"] = f"{base} ({name}{_percent(name)})"
        visible = {"visible": [roles[k][1] == p for k in owned]}
        steps.append({"label": name, "method": "update", "args": [visible, titles, owned]})
    active = next(roles[k][1] for k in owned if data[k]["visible"])
    return [{"name": "Percentile", "active": active, "steps": steps}]


def _percent(name: str) -> str:
    return "" if name.isalpha() else " %"


def _make_room(layout: dict[str, Any]) -> None:
    layout["height"] += layout["margin"]["t"] + layout["margin"]["b"]


def colour_menu(layout: dict[str, Any]) -> dict[str, Any] | None:
    """The menu of colour scales and their reverses for all colour axes of a layout."""
    axes = {name: layout[name]["colorscale"] for name in layout if name.startswith("coloraxis")}
    if not axes:
        return None
    buttons = []
    for scale in ("Default", *SCALES):
        for reverse in (False, True):
            change: dict[str, Any] = {}
            for axis, default in axes.items():
                change[f"{axis}.colorscale"] = default if scale == "Default" else scale
                change[f"{axis}.reversescale"] = reverse
            label = f"{scale} (rev.)" if reverse else scale
            buttons.append({"label": label, "method": "relayout", "args": [change]})
    return {"name": "Colorscale", "type": "dropdown", "active": 0, "buttons": buttons}


def with_menus(figure: dict[str, Any], theme: str) -> dict[str, Any]:
    """Data and layout for plotly alone, with its own menus and slider in the margins."""
    layout = figure["layout"]
    first = colour_menu(layout)
    menus = [*([first] if first else []), *layout["updatemenus"]]
    margin = dict(layout["margin"])
    margin["t"] += 50 if menus else 0
    margin["b"] += 90 if layout["sliders"] else 0
    place = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "direction": "down"}
    at = 0
    placed = []
    for menu in menus:
        pad = {"l": at, "b": 10}
        placed.append(place | menu | {"pad": pad, "font": {"size": 11}, "bgcolor": "@pale"})
        at += 48 + round(7 * max(len(button["label"]) for button in menu["buttons"]))
    shown_value = {"prefix": "Percentile: ", "font": {"size": 12}}
    sliders = [s | {"pad": {"t": 40}, "currentvalue": shown_value} for s in layout["sliders"]]
    extra = {"updatemenus": placed, "sliders": sliders, "margin": margin}
    extra["height"] = layout["height"] + 50 * bool(menus) + 90 * bool(sliders)
    extra["template"] = {"data": {}, "layout": {}}
    return {
        "data": translated(figure["data"], LOOKS[theme]),
        "layout": translated(layout | extra, LOOKS[theme]),
    }


_WORD = re.compile(r"@[a-z]+")


def translated(part: Any, look: dict[str, Any]) -> Any:
    """A part of a figure with the colours of a look for the words that stand for them."""
    if isinstance(part, dict):
        return {name: translated(entry, look) for name, entry in part.items()}
    if isinstance(part, list | tuple):
        return list(map(partial(translated, look=look), part))
    return look.get(part, part) if isinstance(part, str) and _WORD.fullmatch(part) else part
