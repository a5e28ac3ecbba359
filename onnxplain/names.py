"""Labels of inputs and outputs: defaults and the user's own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .errors import SelectionError, ShapeError, counted, listed, shown

Shape = tuple[int, ...]
AxisNames = list[list[str]]  # labels of every axis of one input or output

_AXIS_LETTERS = {1: ("X",), 2: ("C", "L"), 3: ("C", "H", "W"), 4: ("C", "D", "H", "W")}
LETTERS_LAST = {2: ("L", "C"), 3: ("H", "W", "C")}  # of inputs that have their channels last


def default_names(shape: Shape, letters: Sequence[str] | None = None) -> AxisNames:
    """Return X1.., C1.. L1.., C1.. H1.. W1.. as innsight has them.

    Examples
    --------
    >>> default_names((2,))
    [['X1', 'X2']]
    """
    letters = letters or _AXIS_LETTERS.get(len(shape)) or [f"A{i + 1}_" for i in range(len(shape))]
    return [[f"{c}{i + 1}" for i in range(n)] for c, n in zip(letters, shape, strict=True)]


def default_output_names(shape: Shape) -> AxisNames:
    """Return Y1.. for a vector, as for inputs otherwise."""
    return default_names(shape, ("Y",)) if len(shape) == 1 else default_names(shape)


def given_names(names: Any, shapes: Sequence[Shape], what: str) -> list[AxisNames]:
    """Bring the user's names into the form layer, axis, label and check their numbers.

    Accepted are a list of labels (one layer, one axis), a list of those (one layer, several axes)
    and a list of these (several layers).
    """
    layers = _nest(_plain(names, f"{what}_names"), len(shapes))
    counts = [tuple(len(axis) for axis in layer) for layer in layers]
    labels = [label for layer in layers for axis in layer for label in axis]
    if counts != [tuple(s) for s in shapes] or not all(isinstance(n, str) for n in labels):
        raise ShapeError(
            f"{what}_names have the shapes {listed(counts)}; the model has "
            f"{listed(map(tuple, shapes))}"
        )
    return layers


def nested_names(names: Any, layers: int | None, what: str) -> list[AxisNames]:
    """Bring names into the form layer, axis, label; their numbers are not looked at.

    Examples
    --------
    >>> nested_names(["age", "fare"], 1, "input_names")
    [[['age', 'fare']]]
    """
    if _is_nested(names) and layers in (None, len(names)):
        return names
    layers = 1 if layers is None else layers
    found = _nest(_plain(names, what), layers)
    if len(found) != layers or not _is_nested(found):
        raise SelectionError(
            f"{what} must hold lists of texts, one per axis, for {counted(layers, 'layer')}; "
            f"got {shown(names)}"
        )
    return found


def _is_nested(names: Any) -> bool:
    layers = names if isinstance(names, list) else [None]
    axes = [axis for layer in layers for axis in (layer if isinstance(layer, list) else [None])]
    return all(isinstance(a, list) and all(isinstance(n, str) for n in a) for a in axes)


def _nest(names: list, layers: int) -> list:
    depth = _depth(names)
    if depth == 1:
        return [[names]]
    if depth == 2:
        # Two levels are the axes of one layer, or the single axes of several.
        return [names] if layers == 1 else [[axis] for axis in names]
    # An axis that is no list counts as one label, so that the counts show what is wrong.
    return [[a if isinstance(a, list) else [a] for a in _listed(layer)] for layer in names]


def _listed(entry: Any) -> list:
    return entry if isinstance(entry, list) else [entry]


def _plain(names: Any, what: str, level: int = 0) -> Any:
    """Return nested lists of strings."""
    if isinstance(names, str) and level > 0:
        return str(names)
    if isinstance(names, Mapping):
        names = names.values()
    single = isinstance(names, (str, bytes)) or getattr(names, "ndim", 1) == 0
    if single or not isinstance(names, Iterable) or level > 3:
        came = repr(names)[:60] if isinstance(names, str) else type(names).__name__
        raise SelectionError(f"{what} must be strings in lists (per axis, per layer), got {came}")
    return [_plain(n, what, level + 1) for n in names]


def _depth(names: Any) -> int:
    return 1 + max((_depth(n) for n in names), default=0) if isinstance(names, list) else 0


def stored_names(metadata: Mapping[str, str], key: str, shapes: Sequence[Shape]) -> Any:
    """Return names that a model file carries in its metadata if they fit, else None."""
    try:
        names = json.loads(metadata[key])
        return given_names(names, shapes, key)
    except (KeyError, ValueError, RecursionError):
        return None


def node_labels(names: AxisNames) -> list[str]:
    """Return one label per element of an output, row-major; axes are joined by a colon.

    Examples
    --------
    >>> node_labels([["C1", "C2"], ["L1"]])
    ['C1:L1', 'C2:L1']
    """
    labels = [""]
    for i, axis in enumerate(names):
        labels = [f"{a}:{b}" if i else b for a in labels for b in axis]
    return labels
