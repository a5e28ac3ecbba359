"""What is explained: nodes of the outputs, each row's top nodes, or weighted sums of nodes.

An output is flat here, (rows, nodes of the output). Each kind of explained nodes reads their values
from it and makes the signals that a walk back starts from. `names` are its entries in the
`output_idx` of a method: flat indices, "top1", "top2", ..., or names of sums.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .arrays import Array, namespace
from .errors import SelectionError, counted, listed, shown
from .names import AxisNames, Shape, node_labels

MAX_DEFAULT_OUTPUTS = 10


@dataclass(frozen=True)
class Fixed:
    """The same nodes in every row, by their flat index."""

    names: list[int]
    total = 1.0  # what the values change by if all nodes of the output change by one

    def values(self, flat: Array, chosen: None = None) -> Array:
        """Return the values of the explained nodes, (rows, explained)."""
        return flat[:, self.names]

    parts = values  # what a signal that starts from values starts from

    def seed(self, seed: Array, there: slice, start: Array | None, chosen: None = None) -> None:
        """Fill zeros (explained, rows, nodes) with ones, or with parts, at the nodes `there`."""
        xp = namespace(seed)
        nodes = xp.asarray(self.names[there])
        seed[xp.arange(len(seed)), :, nodes] = 1 if start is None else start[:, there].T


@dataclass(frozen=True)
class Top:
    """The nodes with the largest values of each row, ties in their order."""

    names: list[str]
    predicted: bool = False  # by the output of the model, not by what is explained
    total = 1.0

    def rank(self, flat: Array) -> Array:
        """Return the nodes of each row, (rows, explained)."""
        return namespace(flat).argsort(-flat, axis=1, kind="stable")[:, : len(self.names)]

    def values(self, flat: Array, chosen: Array) -> Array:
        """Return the values at the chosen nodes; a single row of `flat` serves all rows."""
        rows = np.arange(len(chosen)) % len(flat)
        return flat[namespace(flat).asarray(rows)[:, None], chosen]

    parts = values

    def seed(self, seed: Array, there: slice, start: Array | None, chosen: Array) -> None:
        """Fill zeros as `Fixed` does, at another node in each row."""
        xp = namespace(seed)
        k, n = xp.arange(seed.shape[0])[:, None], xp.arange(seed.shape[1])[None]
        seed[k, n, chosen[:, there].T] = 1 if start is None else start[:, there].T


@dataclass(frozen=True)
class Sums:
    """Weighted sums of all nodes of an output."""

    names: list[str]
    weights: np.ndarray  # (sums, nodes of the output)

    @property
    def total(self) -> np.ndarray:
        """Return what the sums change by if all nodes change by one."""
        return self.weights.sum(axis=1)

    def _weights(self, like: Array) -> Array:
        return namespace(like).asarray(self.weights, dtype=like.dtype)

    def values(self, flat: Array, chosen: None = None) -> Array:
        """Return the sums, (rows, sums)."""
        return flat @ self._weights(flat).T

    def parts(self, flat: Array, chosen: None = None) -> Array:
        """Return the values that are summed."""
        return flat

    def seed(self, seed: Array, there: slice, start: Array | None, chosen: None = None) -> None:
        """Fill zeros with the weights, or with weight times value, of the sums `there`."""
        weights = self._weights(seed)[there][:, None]
        seed[...] = weights if start is None else weights * start[None]


Nodes: TypeAlias = Fixed | Top | Sums


def select(
    output_idx: Any,
    output_label: Any,
    output_weights: Any,
    shapes: Sequence[Shape],
    names: Sequence[AxisNames],
) -> list[Nodes | None]:
    """Return, per output of the model, what is explained of it or None.

    A list of nodes means the first output, a list of lists one per output. A node is a flat index,
    a tuple with one index or slice per axis, a slice or mask of nodes, or a label; "top3" and
    "predicted" choose nodes row by row. Without a choice these are the first ten nodes of the first
    output.
    """
    if output_weights is not None:
        if output_idx is not None or output_label is not None:
            raise SelectionError(
                "output_weights choose what is explained; leave output_idx and output_label away"
            )
        return _weighted(output_weights, shapes)
    by_index = _per_output(output_idx, shapes, "output_idx")
    by_label = _per_output(output_label, shapes, "output_label")
    if by_index is None and by_label is None:
        first = min(MAX_DEFAULT_OUTPUTS, math.prod(shapes[0]))
        return [Fixed(list(range(first))), *[None] * (len(shapes) - 1)]
    chosen = None if by_index is None else _each(_by_index, by_index, shapes)
    labelled = None if by_label is None else _each(_by_label, by_label, names)
    if chosen is not None and labelled is not None and not _agree(chosen, labelled):
        raise SelectionError(
            f"output_idx {shown(output_idx)} and output_label {shown(output_label)} "
            "denote different nodes; give one of them"
        )
    result = chosen if chosen is not None else labelled or []
    if not any(nodes is not None and nodes.names for nodes in result):
        raise SelectionError("no output node is selected; leave output_idx away for the first ten")
    for nodes, axes in zip(result, names, strict=True):
        _check_once(nodes, axes)
    return [nodes if nodes is not None and nodes.names else None for nodes in result]


def _each(make: Any, layers: list, context: Sequence[Any]) -> list[Nodes | None]:
    return [
        None if layer is None else make(layer, c, f"output {j}")
        for j, (layer, c) in enumerate(zip(layers, context, strict=True))
    ]


def _agree(chosen: list[Nodes | None], labelled: list[Nodes | None]) -> bool:
    def keys(nodes: list[Nodes | None]) -> list[Any]:
        return [None if n is None else sorted(map(str, n.names)) for n in nodes]

    return keys(chosen) == keys(labelled)


def _check_once(nodes: Nodes | None, axes: AxisNames) -> None:
    """A node explained twice would have two results under one label."""
    if not isinstance(nodes, Fixed):
        return
    twice = [n for n, count in Counter(nodes.names).items() if count > 1]
    if twice:
        label = node_labels(axes)[twice[0]]
        raise SelectionError(f"node {twice[0]} ({label}) is selected twice; name each node once")


def _per_output(choice: Any, shapes: Sequence[Shape], what: str) -> list | None:
    """Return a list with one entry per output; a plain list of nodes means the first output."""
    if choice is None:
        return None
    if isinstance(choice, (Mapping, set, frozenset, bytes)):
        raise SelectionError(
            f"{what} is of type {type(choice).__name__}; give a node, a list of nodes, or a list "
            "of lists with one per output"
        )
    if isinstance(choice, tuple) and (len(shapes[0]) > 1 or any(map(_is_range, choice))):
        choice = [choice]  # one place of an output with several axes
    if _is_mask(choice) or not (_is_listing(choice) or isinstance(choice, tuple)):
        choice = [choice]
    choice = list(choice)
    nested = any(c is None or (_is_listing(c) and not _is_mask(c)) for c in choice)
    nested = nested or (len(choice) > 1 and any(map(_is_mask, choice)))
    layers = choice if nested else [choice]
    n = len(shapes)
    if len(layers) > n:
        raise SelectionError(
            f"{what} has {len(layers)} entries, the model has {counted(n, 'output')}"
        )
    return [_nodes(c) for c in layers] + [None] * (n - len(layers))


def _is_listing(choice: Any) -> bool:
    """Tell a list of nodes from a node; tuples and texts are nodes."""
    single = isinstance(choice, (str, bytes, tuple)) or getattr(choice, "ndim", 1) == 0
    return isinstance(choice, Iterable) and not single


def _is_mask(choice: Any) -> bool:
    return getattr(choice, "dtype", None) == np.bool_ and getattr(choice, "ndim", 0) > 0


def _is_range(choice: Any) -> bool:
    return isinstance(choice, slice) or choice is Ellipsis


def _nodes(layer: Any) -> list | None:
    if layer is None:
        return None
    return list(layer) if _is_listing(layer) and not _is_mask(layer) else [layer]


# -- by index -------------------------------------------------------------------------------------


def _by_index(layer: list, shape: Shape, output: str) -> Nodes:
    if any(isinstance(entry, str) for entry in layer):
        return _top(layer, math.prod(shape), output)
    return Fixed([node for entry in layer for node in _indices(entry, shape, output)])


def _top(layer: list, n: int, output: str) -> Top:
    word = layer[0]
    number = word[3:] if isinstance(word, str) and word.startswith("top") else ""
    known = number.isascii() and number.isdigit() and len(number) < 10
    if len(layer) > 1 or not (known or word == "predicted"):
        raise SelectionError(
            f"output_idx {shown(layer if len(layer) > 1 else word)} is no choice of nodes; give "
            '"top1" (or "top3", ...) or "predicted" alone, or whole numbers; '
            "names go into output_label"
        )
    if word == "predicted":
        return Top(["top1"], predicted=True)
    if not 1 <= int(number) <= n:
        raise SelectionError(f"output_idx {word!r}: {output} has {n} nodes; give top1 to top{n}")
    return Top([f"top{i + 1}" for i in range(int(number))])


def _indices(entry: Any, shape: Shape, output: str) -> list[int]:
    """Return the flat indices of a node, a slice, a mask, or a tuple of indices and slices."""
    if _is_mask(entry):
        return _masked(entry, shape, output)
    n = math.prod(shape)
    if isinstance(entry, slice):
        return list(range(n)[_checked_slice(entry)])
    if entry is Ellipsis:
        return list(range(n))
    if isinstance(entry, tuple):
        return _placed(entry, shape, output)
    if not _is_whole(entry):
        raise SelectionError(
            f"output_idx must hold whole numbers from 0 to {n - 1}, got {shown(entry)}; "
            "names go into output_label"
        )
    if not 0 <= entry < n:
        raise SelectionError(
            f"output_idx {entry} is out of range: {output} has {n} nodes, 0 to {n - 1}"
        )
    return [int(entry)]


def _masked(mask: Any, shape: Shape, output: str) -> list[int]:
    if tuple(mask.shape) != tuple(shape):
        raise SelectionError(
            f"output_idx is a mask of shape {tuple(mask.shape)}, {output} has shape {shape}"
        )
    return np.flatnonzero(np.asarray(mask)).tolist()


def _placed(index: tuple, shape: Shape, output: str) -> list[int]:
    axes = _without_ellipsis(index, len(shape))
    if len(axes) != len(shape) or not all(map(_fits, axes, shape)):
        raise SelectionError(
            f"output_idx {shown(index)} denotes no node of {output} of shape {shape}; "
            "give one index (from 0) or slice per axis"
        )
    places = [
        range(n)[_checked_slice(a)] if isinstance(a, slice) else [a]
        for a, n in zip(axes, shape, strict=True)
    ]
    flat = np.ravel_multi_index(np.ix_(*places), shape) if all(map(len, places)) else np.array([])
    return [int(i) for i in flat.ravel()]


def _without_ellipsis(index: tuple, axes: int) -> tuple:
    """Return an index with slices over all for its `...`."""
    if sum(i is Ellipsis for i in index) != 1:
        return index
    at = next(k for k, i in enumerate(index) if i is Ellipsis)
    return (*index[:at], *[slice(None)] * (axes - len(index) + 1), *index[at + 1 :])


def _fits(index: Any, n: int) -> bool:
    return isinstance(index, slice) or (_is_whole(index) and 0 <= index < n)


def _checked_slice(given: slice) -> slice:
    if not all(v is None or _is_whole(v) for v in (given.start, given.stop, given.step)):
        raise SelectionError(f"output_idx {given} must have whole numbers as bounds")
    if given.step == 0:
        raise SelectionError(f"output_idx {given} has step 0; give another step")
    return given


def _is_whole(index: Any) -> bool:
    return isinstance(index, (int, np.integer)) and not isinstance(index, bool)


# -- by label -------------------------------------------------------------------------------------


def _by_label(layer: list, names: AxisNames, output: str) -> Nodes:
    labels = node_labels(names)
    return Fixed([_label_index(label, labels) for label in layer])


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


# -- by weights -----------------------------------------------------------------------------------


def _weighted(given: Any, shapes: Sequence[Shape]) -> list[Nodes | None]:
    layers = list(given) if _one_per_output(given, len(shapes)) else [given]
    if len(layers) > len(shapes):
        raise SelectionError(
            f"output_weights has {len(layers)} entries, the model has "
            f"{counted(len(shapes), 'output')}"
        )
    layers += [None] * (len(shapes) - len(layers))
    if all(layer is None for layer in layers):
        raise SelectionError("output_weights holds no weights; give an array for some output")
    return _each(_sums, layers, shapes)


def _one_per_output(given: Any, n: int) -> bool:
    """Tell a list with weights per output from weights that are written as a list."""
    if not isinstance(given, (list, tuple)):
        return False
    named = any(entry is None or isinstance(entry, Mapping) for entry in given)
    arrays = all(isinstance(entry, (list, tuple, np.ndarray)) for entry in given)
    return named or (arrays and (n > 1 or len(given) == 1))


def _sums(given: Any, shape: Shape, output: str) -> Sums:
    if isinstance(given, Mapping):
        rows = [_matrix(w, shape, output) for w in given.values()]
        if not rows or any(len(row) != 1 for row in rows):
            raise SelectionError(
                f"output_weights of {output}: give one array of shape {shape} per name"
            )
        return Sums([str(name) for name in given], np.concatenate(rows))
    weights = _matrix(given, shape, output)
    return Sums([f"sum{i + 1}" for i in range(len(weights))], weights)


def _matrix(given: Any, shape: Shape, output: str) -> np.ndarray:
    """Return weights as (sums, nodes)."""
    try:
        weights = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise SelectionError(
            f"output_weights of {output} must be numbers in an array, got {shown(given)}"
        ) from None
    n = math.prod(shape)
    if weights.shape in (tuple(shape), (n,)):
        weights = weights.reshape(1, n)
    elif weights.ndim > 1 and len(weights) and weights.shape[1:] in (tuple(shape), (n,)):
        weights = weights.reshape(-1, n)
    else:
        raise SelectionError(
            f"output_weights have shape {weights.shape}, {output} has shape {tuple(shape)}; "
            "give an array of this shape, or several of them stacked on a first axis"
        )
    if not np.isfinite(weights).all():
        raise SelectionError(f"output_weights of {output} hold NaN or infinite values")
    return weights
