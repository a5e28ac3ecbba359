"""What a plot shows, without a word about how it is drawn.

A method becomes a `Sheet`: panels in rows and columns that hold every number, name and scale. The
functions of `sheets` make it, a backend draws it. A backend is a module with

    draw(sheet: Sheet) -> object with save(path), show(), theme(style) and [rows, columns]

that reads nothing else: neither the method nor the arguments of `plot`. `mpl` is one; another is
asked for by `as_plotly=True` and gets the same sheet, made with `interactive=True`, which adds what
only menus show: `Panel.percentiles` and `Panel.individuals`. `sheet[0, 1:]` is a sheet again, so
that indexing a picture means drawing a part of its sheet.

The mark of a panel says which picture it is and what `values` (all as float) holds:

| mark  | of a             | values                   | drawn as                                   |
|-------|------------------|--------------------------|--------------------------------------------|
| bars  | table or signal  | (features,), (length,)   | bars from 0, coloured by value             |
| line  | signal           | (length,)                | `picture` (channels, length), coloured     |
| heat  | image            | (height, width)          | heat map, row 0 on top, `picture` below it |
| boxes | table or signal  | (n, features)            | box plots: `box_statistics`                |
| dots  | tables           | (n, features)            | a swarm: `swarm`, coloured by `picture`    |
| steps | tables           | (features,)              | a waterfall from 0 to the sum              |

`values` is None where the input has no path to the output, and NaN where it is not finite. A value
v has the colour v / `scale` of a diverging map that is symmetric about 0; `limits` is the range of
the axis of values, which holds 0. `heading` stands above the first row of a sheet, `row` beside its
first column, `info_lines(panel)` in a box, once where `sheet.opens_group`. Names may be long and
hold any sign: use `shortened` and `wrapped`, and no markup.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from ..errors import ArgumentError, SelectionError

Kind: TypeAlias = Literal["table", "signal", "image"]
Mark: TypeAlias = Literal["bars", "line", "heat", "boxes", "dots", "steps"]
Names: TypeAlias = list[list[str]]  # labels of every axis

PERCENTILES = (0.0, 12.5, 25.0, 37.5, 50.0, 62.5, 75.0, 87.5, 100.0)
MAX_OUTLIERS = 100  # of a box; more would cover each other
MAX_DOTS = 1000  # of a feature in a swarm
LONG_NAME = 32


@dataclass(frozen=True)
class Panel:
    """One picture: what one input says about one output node.

    Attributes
    ----------
    kind, mark, values
        See the module.
    names
        Labels: [features], [positions] or [rows, columns]. For features kept out of many the last
        may stand for the sum of the others.
    title
        What the values are, for their axis: "Contribution", "Relevance (median)".
    data, output, input, method
        Where the values come from, for texts at the pointer: "data_1", "setosa", "Input_1"
        (empty if the model has one input), "LRP".
    heading, row
        Lines above the column, and the label of the row.
    picture
        The input: (channels, length) of a signal, in its own unit; (height, width) of an image,
        grey from 0 (dark) to 1; of dots (n, features) from 0 (low) to 1, NaN without colour.
    channels
        Labels of the channels in the picture of a signal.
    opacity
        Of the strongest pixel of a heat map above a picture; 0: there is no picture.
    reference
        The data point that boxes show in red, by feature.
    individuals
        Data points by label that boxes can show one at a time, `reference` first if there is one.
    percentiles
        (9, height, width), the images at `PERCENTILES` of the data points, on the same scale.
    goal
        What a waterfall should reach.
    info
        Prediction, sum and goal, as far as there are any, and the node where it differs from row to
        row ("top1"); the same for all inputs of a group.
    left_out
        How many features are not shown.
    rest
        Whether the last value is the sum of further features; it has no share in `scale`.
    """

    kind: Kind
    mark: Mark
    values: Any  # an array, or None
    names: Names
    title: str = ""
    data: str = ""
    output: str = ""
    input: str = ""
    method: str = ""
    heading: tuple[str, ...] = ()
    row: str = ""
    picture: Any = None  # an array, or None
    channels: list[str] = field(default_factory=list)
    opacity: float = 0.0
    reference: np.ndarray | None = None
    individuals: dict[str, np.ndarray] = field(default_factory=dict)
    percentiles: np.ndarray | None = None
    goal: float | None = None
    scale: float = 1.0
    limits: tuple[float, float] = (0.0, 0.0)
    info: dict[str, Any] = field(default_factory=dict)
    left_out: int = 0
    rest: bool = False

    @property
    def coloured(self) -> Any:
        """The values whose size sets the colour scale."""
        if self.percentiles is not None:
            return self.percentiles
        return self.values[..., :-1] if self.rest and self.values is not None else self.values


@dataclass(frozen=True)
class Sheet:
    """Panels in rows (data points) and columns (output nodes or methods, in them inputs)."""

    panels: tuple[tuple[Panel, ...], ...]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.panels), len(self.panels[0])

    def __iter__(self) -> Iterator[Panel]:
        return (panel for row in self.panels for panel in row)

    def __getitem__(self, key: Any) -> Sheet:
        """Return some rows and columns; a number keeps its axis, so that a sheet remains."""
        key = key if isinstance(key, tuple) else (key,)
        if len(key) > 2:
            raise SelectionError(f"a plot has rows and columns, got {len(key)} indices")
        rows, columns = (
            _chosen(k, n, axis)
            for k, n, axis in zip(
                (*key, slice(None))[:2], self.shape, ("row", "column"), strict=True
            )
        )
        return Sheet(tuple(tuple(self.panels[r][c] for c in columns) for r in rows))

    def without_info(self) -> Sheet:
        """The same without boxes."""
        return Sheet(tuple(tuple(replace(p, info={}) for p in row) for row in self.panels))

    def opens_group(self, r: int, c: int) -> bool:
        """Whether a panel is the first of its inputs' in the row: it carries their common box."""
        mine = _group(self.panels[r][c])
        return all(_group(panel) != mine for panel in self.panels[r][:c])

    def names_repeat(self, r: int, c: int, axis: Literal["row", "column"]) -> bool:
        """Whether an earlier panel of the row, or the next of the column, has the same names."""
        panel = self.panels[r][c]
        others = self.panels[r][:c] if axis == "row" else [p[c] for p in self.panels[r + 1 : r + 2]]
        return any(p.names == panel.names and p.kind == panel.kind for p in others)


def _group(panel: Panel) -> tuple[str, str, str]:
    return panel.data, panel.output, panel.method


def _chosen(key: Any, n: int, axis: str) -> list[int]:
    if isinstance(key, slice):
        chosen = list(range(n))[key]
    else:
        chosen = [key] if is_index(key) else key
    if not isinstance(chosen, list | tuple | range | np.ndarray) or not all(map(is_index, chosen)):
        raise ArgumentError(
            f"a plot is indexed as p[rows, columns] with numbers, slices or lists, not {key!r}"
        )
    if len(chosen) == 0:
        raise SelectionError(f"{axis} {key!r} selects nothing of {n}")
    for k in chosen:
        if not -n <= k < n:
            raise SelectionError(f"{axis} {k} is not there: the plot has {n}, counted from 0")
    return [int(k) % n for k in chosen]


def is_index(x: Any) -> bool:
    return isinstance(x, int | np.integer) and not isinstance(x, bool)


# ---------------------------------------------------------------- texts


def info_lines(panel: Panel) -> list[str]:
    """Lines of the box, such as "Pred.: 0.1235"; none without one."""
    return [
        f"{name}: {value if isinstance(value, str) else number(value)}"
        for name, value in panel.info.items()
    ]


def number(value: float) -> str:
    """Four significant digits, and 0 for what is a rounding error."""
    return f"{round(value, 8) + 0.0:.4g}"


def shortened(name: str, length: int = LONG_NAME) -> str:
    """A name of at most `length` letters; start and end stay, since endings often differ."""
    name = " ".join(name.split())
    if len(name) <= length:
        return name
    start = max((length - 1) * 2 // 3, 1)
    return f"{name[:start]}…{name[start + 1 - length :] if length > 2 else ''}"


def wrapped(name: str, width: int, lines: int = 2) -> str:
    """A name broken into at most so many lines of so many letters, and shortened to fit."""
    found = textwrap.wrap(shortened(name, width * lines), width) or [""]
    if len(found) > lines:  # breaking between words took more lines than there are
        found = textwrap.wrap(shortened(name, width * lines * 2 // 3), width)
    return "\n".join(found[:lines])


# ---------------------------------------------------------------- many data points


def box_statistics(panel: Panel) -> list[dict[str, Any]]:
    """Per feature `q1`, `med`, `q3`, whiskers `whislo` and `whishi`, and outliers `fliers`.

    Whiskers end at the last data point within 1.5 times the length of the box. Of many outliers
    some are kept, the outermost among them. A feature without finite numbers has NaN.
    """
    return [_box(column[np.isfinite(column)]) for column in np.ascontiguousarray(panel.values.T)]


def _box(x: np.ndarray) -> dict[str, Any]:
    if not x.size:
        return dict.fromkeys(("q1", "med", "q3", "whislo", "whishi"), np.nan) | {"fliers": x}
    q1, med, q3 = np.percentile(x, (25, 50, 75))
    reach = 1.5 * (q3 - q1)
    outside = (x < q1 - reach) | (x > q3 + reach)
    inside = x[~outside]
    # Of few numbers none may lie between a quartile and its whisker.
    low, high = min(q1, inside.min(initial=q1)), max(q3, inside.max(initial=q3))
    fliers = thinned(np.sort(x[outside]), MAX_OUTLIERS)
    return {"q1": q1, "med": med, "q3": q3, "whislo": low, "whishi": high, "fliers": fliers}


def thinned(x: np.ndarray, most: int) -> np.ndarray:
    """At most so many entries, evenly spread; the first and the last stay."""
    if len(x) <= most:
        return x
    return x[np.linspace(0, len(x) - 1, most).round().astype(int)]


def swarm(panel: Panel, feature: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dots of a feature: values, offsets in -0.4 to 0.4 where they are dense, picture."""
    order = np.argsort(panel.values[:, feature], kind="stable")
    order = thinned(order[np.isfinite(panel.values[order, feature])], MAX_DOTS)
    x = panel.values[order, feature]
    shade = np.full(len(x), np.nan) if panel.picture is None else panel.picture[order, feature]
    low, high = panel.limits
    bins = np.floor(100 * (x - low) / ((high - low) or 1.0)).astype(int)
    _, start, place, count = np.unique(
        bins, return_index=True, return_inverse=True, return_counts=True
    )
    # Dots of a bin stand above and below its middle in turn.
    rank = np.arange(len(x)) - start[place]
    layer = (rank + 1) // 2 * np.where(rank % 2, 1, -1)
    room = max(count.max(initial=1), 6)
    return x, 0.8 * layer / room, shade


# ---------------------------------------------------------------- axes


def is_lying(panel: Panel) -> bool:
    """Whether bars should lie because their names would not fit below standing ones."""
    names = panel.names[0]
    return panel.kind == "table" and (len(names) > 12 or max(map(len, names)) > 12)


def feature_title(panel: Panel) -> str:
    """The title of an axis of features, which says if some are left out."""
    if not panel.left_out:
        return "Feature"
    shown = len(panel.names[0])
    return f"Feature ({shown} of {shown + panel.left_out})"


def lanes_of(panel: Panel) -> np.ndarray:
    """Courses (channels, length): one in its own unit, several each in a lane of height 1."""
    picture: Any = panel.picture
    if len(picture) == 1:
        return picture
    low, high = (f(np.nan_to_num(picture), axis=1, keepdims=True) for f in (np.min, np.max))
    width = np.where(high > low, high - low, 1.0)
    return 0.8 * ((picture - low) / width - 0.5) - np.arange(len(picture))[:, None]


def padded(limits: tuple[float, float], both: bool = False) -> tuple[float, float]:
    """Limits with room at their ends, unless the end is 0, where bars stand."""
    low, high = limits
    room = 0.05 * (high - low) or 1.0
    return (
        low - room if both or low < 0 else 0.0,
        high + room if both or high > 0 or low == high else 0.0,
    )
