"""Labels of inputs and outputs: defaults, the user's own, and how indices and labels are chosen."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .errors import SelectionError, ShapeError, counted, listed, shown

Shape = tuple[int, ...]
AxisNames = list[list[str]]  # labels of every axis of one input or output

_AXIS_LETTERS = {1: ("X",), 2: ("C", "L"), 3: ("C", "H", "W"), 4: ("C", "D", "H", "W")}
LETTERS_LAST = {2: ("L", "C"), 3: ("H", "W", "C")}  # of inputs that have their channels last
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
    layers = _nest(_plain(names, f"{what}_names"), len(shapes))
    counts = [tuple(len(axis) for axis in layer) for layer in layers]
    labels = [label for layer in layers for axis in layer for label in axis]
    if counts != [tuple(s) for s in shapes] or not all(isinstance(n, str) for n in labels):
        raise ShapeError(
            f"{what}_names have the shapes {listed(counts)}; the model has "
            f"{listed(map(tuple, shapes))}"
        )
    return layers


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


# -- which outputs are explained ------------------------------------------------------------------


def select_outputs(
    output_idx: Any, output_label: Any, shapes: Sequence[Shape], names: Sequence[AxisNames]
) -> list[list[int] | None]:
    """Return, per output of the model, the flat indices of the nodes to explain or None.

    A list of nodes means the first output, a list of lists one per output. A node is a flat index,
    or a tuple with one index per axis. Without a choice these are the first ten nodes of the first
    output.
    """
    if isinstance(output_idx, tuple) and len(shapes[0]) > 1:
        output_idx = [output_idx]  # one place of an output with several axes
    by_index = _per_output(output_idx, len(shapes), "output_idx")
    by_label = _per_output(output_label, len(shapes), "output_label")
    if by_index is None and by_label is None:
        first = min(MAX_DEFAULT_OUTPUTS, math.prod(shapes[0]))
        return [list(range(first)), *[None] * (len(shapes) - 1)]
    chosen = _indices(by_index, shapes) if by_index is not None else None
    labelled = _labelled(by_label, names) if by_label is not None else None
    if (
        chosen is not None
        and labelled is not None
        and list(map(_sorted, chosen)) != list(map(_sorted, labelled))
    ):
        raise SelectionError(
            f"output_idx {shown(output_idx)} and output_label {shown(output_label)} "
            "denote different nodes; give one of them"
        )
    result = chosen if chosen is not None else labelled or []
    if not any(result):
        raise SelectionError("no output node is selected; leave output_idx away for the first ten")
    for nodes, axes in zip(result, names, strict=True):
        _check_once(nodes, axes)
    return [nodes or None for nodes in result]


def _check_once(nodes: list[int] | None, axes: AxisNames) -> None:
    """A node explained twice would have two results under one label."""
    twice = [n for n, count in Counter(nodes or ()).items() if count > 1]
    if twice:
        label = node_labels(axes)[twice[0]]
        raise SelectionError(f"node {twice[0]} ({label}) is selected twice; name each node once")


def _sorted(values: list[int] | None) -> list[int] | None:
    return None if values is None else sorted(values)


def _per_output(choice: Any, n: int, what: str) -> list | None:
    """Return a list with one entry per output; a plain list of nodes means the first output."""
    if choice is None:
        return None
    if isinstance(choice, (Mapping, set, frozenset, bytes)):
        raise SelectionError(
            f"{what} is of type {type(choice).__name__}; give a node, a list of nodes, or a list "
            "of lists with one per output"
        )
    choice = list(choice) if _is_listing(choice) or isinstance(choice, tuple) else [choice]
    nested = any(c is None or _is_listing(c) for c in choice)
    layers = choice if nested else [choice]
    if len(layers) > n:
        raise SelectionError(
            f"{what} has {len(layers)} entries, the model has {counted(n, 'output')}"
        )
    return [_nodes(c) for c in layers] + [None] * (n - len(layers))


def _is_listing(choice: Any) -> bool:
    """Tell a list of nodes from a node; tuples and texts are nodes."""
    single = isinstance(choice, (str, bytes, tuple)) or getattr(choice, "ndim", 1) == 0
    return isinstance(choice, Iterable) and not single


def _nodes(layer: Any) -> list | None:
    if layer is None:
        return None
    return list(layer) if _is_listing(layer) else [layer]


def _indices(layers: list, shapes: Sequence[Shape]) -> list[list[int] | None]:
    return [
        None if layer is None else [_flat_index(i, shape, f"output {j}") for i in layer]
        for j, (layer, shape) in enumerate(zip(layers, shapes, strict=True))
    ]


def _flat_index(index: Any, shape: Shape, output: str) -> int:
    n = math.prod(shape)
    if isinstance(index, tuple):
        if len(index) == len(shape) and all(
            _is_whole(i) and 0 <= i < m for i, m in zip(index, shape, strict=True)
        ):
            return int(np.ravel_multi_index(index, shape))
        raise SelectionError(
            f"output_idx {shown(index)} denotes no node of {output} of shape {shape}; "
            "give one index per axis, from 0"
        )
    if not _is_whole(index):
        raise SelectionError(
            f"output_idx must hold whole numbers from 0 to {n - 1}, got {shown(index)}; "
            "names go into output_label"
        )
    if not 0 <= index < n:
        raise SelectionError(
            f"output_idx {index} is out of range: {output} has {n} nodes, 0 to {n - 1}"
        )
    return int(index)


def _is_whole(index: Any) -> bool:
    return isinstance(index, (int, np.integer)) and not isinstance(index, bool)


def _labelled(layers: list, names: Sequence[AxisNames]) -> list[list[int] | None]:
    return [
        None if layer is None else [_label_index(v, labels) for v in layer]
        for layer, labels in zip(layers, map(node_labels, names), strict=True)
    ]


def _label_index(label: Any, labels: list[str]) -> int:
    if not isinstance(label, str):
        raise SelectionError(
            f"output_label must hold names, got {shown(label)}; numbers go into output_idx"
        )
    count = labels.count(label)
    if count == 0:
        raise SelectionError(
            f"output_label {shown(label)} is unknown; the labels are {listed(labels)}"
        )
    if count > 1:
        raise SelectionError(
            f"output_label {shown(label)} is the name of {count} nodes; choose by output_idx"
        )
    return labels.index(label)
