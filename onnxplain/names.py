"""Labels of inputs and outputs: defaults, the user's own, and how indices and labels are chosen."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .errors import SelectionError, ShapeError

Shape = tuple[int, ...]
AxisNames = list[list[str]]  # labels of every axis of one input or output

_AXIS_LETTERS = {1: ("X",), 2: ("C", "L"), 3: ("C", "H", "W"), 4: ("C", "D", "H", "W")}
MAX_DEFAULT_OUTPUTS = 10


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
    layers = _nest(names, len(shapes))
    found = [[[str(label) for label in axis] for axis in layer] for layer in layers]
    counts = [tuple(len(axis) for axis in layer) for layer in found]
    if counts != [tuple(s) for s in shapes]:
        raise ShapeError(f"{what}_names have shapes {counts}, the model has {list(shapes)}")
    return found


def _nest(names: Any, layers: int) -> list:
    names = _plain(names)
    depth = _depth(names)
    if depth == 1:
        return [[names]]
    if depth == 2:
        # Two levels are the axes of one layer, or the single axes of several.
        return [names] if layers == 1 else [[axis] for axis in names]
    return names


def _plain(names: Any) -> Any:
    if isinstance(names, str):
        return names
    if isinstance(names, Mapping):
        names = names.values()
    try:
        return [_plain(n) for n in names]
    except TypeError:
        raise SelectionError(
            f"names must be strings in lists, got {type(names).__name__}"
        ) from None


def _depth(names: Any) -> int:
    return 1 + max((_depth(n) for n in names), default=0) if isinstance(names, list) else 0


def stored_names(metadata: Mapping[str, str], key: str, shapes: Sequence[Shape]) -> Any:
    """Return names that a model file carries in its metadata if they fit, else None."""
    try:
        names = json.loads(metadata[key])
        return given_names(names, shapes, key)
    except (KeyError, ValueError, SelectionError):
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


# -- which outputs are explained ------------------------------------------------------------------


def select_outputs(
    output_idx: Any, output_label: Any, shapes: Sequence[Shape], names: Sequence[AxisNames]
) -> list[list[int] | None]:
    """Return, per output of the model, the flat indices of the nodes to explain or None.

    Without a choice these are the first ten nodes of the first output.
    """
    by_index = _per_output(output_idx, len(shapes), "output_idx")
    by_label = _per_output(output_label, len(shapes), "output_label")
    if by_index is None and by_label is None:
        first = min(MAX_DEFAULT_OUTPUTS, math.prod(shapes[0]))
        return [list(range(first)), *[None] * (len(shapes) - 1)]
    chosen = _indices(by_index, shapes) if by_index is not None else None
    labelled = _labelled(by_label, names) if by_label is not None else None
    if chosen is not None and labelled is not None:
        if [_sorted(a) for a in chosen] != [_sorted(b) for b in labelled]:
            raise SelectionError(
                f"output_idx {output_idx!r} and output_label {output_label!r} "
                "denote different nodes; give one of them"
            )
    result = chosen if chosen is not None else labelled or []
    if not any(result):
        raise SelectionError("no output node is selected; leave output_idx away for the first ten")
    return result


def _sorted(values: list[int] | None) -> list[int] | None:
    return None if values is None else sorted(values)


def _per_output(choice: Any, n: int, what: str) -> list | None:
    """Return a list with one entry per output; a plain list of nodes means the first output."""
    if choice is None:
        return None
    if isinstance(choice, (str, int, np.integer)):
        choice = [choice]
    choice = list(choice)
    nested = any(c is None or isinstance(c, (list, np.ndarray, range)) for c in choice)
    layers = choice if nested else [choice]
    if len(layers) > n:
        raise SelectionError(f"{what} has {len(layers)} entries, the model has {n} outputs")
    return [None if c is None else list(np.atleast_1d(c) if not isinstance(c, list) else c)
            for c in layers] + [None] * (n - len(layers))


def _indices(layers: list, shapes: Sequence[Shape]) -> list[list[int] | None]:
    return [
        None if layer is None else [_flat_index(i, shape, j) for i in layer]
        for j, (layer, shape) in enumerate(zip(layers, shapes, strict=True))
    ]


def _flat_index(index: Any, shape: Shape, output: int) -> int:
    n = math.prod(shape)
    if isinstance(index, tuple):
        if len(index) == len(shape) and all(
            isinstance(i, (int, np.integer)) and 0 <= i < m for i, m in zip(index, shape, strict=True)
        ):
            return int(np.ravel_multi_index(index, shape))
        raise SelectionError(f"output_idx {index} denotes no node of an output of shape {shape}")
    if isinstance(index, bool) or not isinstance(index, (int, np.integer)):
        raise SelectionError(
            f"output_idx must hold whole numbers from 0 to {n - 1}, got {index!r}; "
            "names go into output_label"
        )
    if not 0 <= index < n:
        raise SelectionError(
            f"output_idx {index} is out of range: output {output} has {n} nodes, "
            f"0 to {n - 1}"
        )
    return int(index)


def _labelled(layers: list, names: Sequence[AxisNames]) -> list[list[int] | None]:
    return [
        None if layer is None else [_label_index(v, node_labels(axes)) for v in layer]
        for layer, axes in zip(layers, names, strict=True)
    ]


def _label_index(label: Any, labels: list[str]) -> int:
    if not isinstance(label, str) or label not in labels:
        shown = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
        raise SelectionError(f"output_label {label!r} is unknown; the labels are {shown}")
    return labels.index(label)
