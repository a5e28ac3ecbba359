"""Results of which features are taken together: an axis summed away, one-hot columns, superpixels.

Axes are in the order of `input_names` here, as `channels_first_array` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np

from .arrays import to_host
from .errors import ArgumentError, SelectionError, ShapeError, counted, listed, shown
from .names import AxisNames
from .results import (
    batch_size,
    channel_axis,
    channels_first_array,
    input_shape,
    to_user_layout,
)

REST = "others"  # the group of the places that no mask has
REDUCTIONS = ("sum", "mean", "norm")


@dataclass(frozen=True)
class Change:
    """What becomes of one input: its new names, and of arrays (batch, *shape, nodes)."""

    names: AxisNames
    apply: Callable[[np.ndarray], np.ndarray]
    channels_last: bool = False
    data: np.ndarray | None = None  # what plots show beside the values, (batch, features)


@dataclass(frozen=True)
class Cells:
    """Which group every cell of an input is in."""

    numbers: np.ndarray  # (1 or batch, cells)
    names: list[str]


def summed(method: Any, axis: int) -> Any:
    """Return a copy of a method with one axis of all inputs summed away; see `Method.summed`."""
    for names in method.input_names:
        known = isinstance(axis, (int, np.integer)) and not isinstance(axis, bool)
        if not known or not -len(names) <= axis < len(names):
            raise SelectionError(
                f"axis {shown(axis)}: the values have the axes {list(range(len(names)))} "
                "beside those of batch and nodes"
            )
    inputs = range(len(method.input_names))
    away = [_named_axis(method, i, axis) for i in inputs]
    channels = [channel_axis(method, i) for i in inputs]
    changes = {i: _without_axis(method, i, away[i], away[i] == channels[i]) for i in inputs}
    # Without channels the first axis that is left is a place, and stands first.
    gone = any(a == c for a, c in zip(away, channels, strict=True))
    return changed(method, changes, method.channels_first or gone)


def grouped(method: Any, groups: Any, reduce: str = "sum") -> Any:
    """Return a copy of a method with features taken together; see `Method.grouped`."""
    if reduce not in REDUCTIONS:
        known = ", ".join(map(repr, REDUCTIONS))
        raise ArgumentError(f"reduce must be one of {known}, got {shown(reduce)}")
    given = _per_input(method, groups)
    changes = {i: _taken_together(method, i, g, reduce) for i, g in given.items()}
    return changed(method, changes, method.channels_first)


def changed(method: Any, changes: Mapping[int, Change], channels_first: bool) -> Any:
    """Return a copy of a method of which some inputs are changed."""
    inputs = range(len(method.input_names))
    every = {i: changes[i] if i in changes else _unchanged(method, i) for i in inputs}
    other = copy(method)
    other.channels_first = channels_first
    other.channels_last = [change.channels_last for change in every.values()]
    other.input_names = [change.names for change in every.values()]
    other.result = [
        [_applied(method, s, i, every[i], channels_first) for i in inputs]
        for s in range(len(method.result))
    ]
    beside = {i: change.data for i, change in changes.items()}
    other.shown_data = getattr(method, "shown_data", {}) | beside
    return other


def _applied(method: Any, s: int, i: int, change: Change, channels_first: bool) -> Any:
    array = channels_first_array(method, s, i)
    return None if array is None else to_user_layout(change.apply(array), channels_first)


def _unchanged(method: Any, i: int) -> Change:
    names = [list(axis) for axis in method.input_names[i]]
    return Change(names, np.copy, bool(_last(method, i)))


def _last(method: Any, i: int) -> bool:
    return channel_axis(method, i) not in (None, 0)


# ---------------------------------------------------------------- one axis


def _named_axis(method: Any, i: int, axis: int) -> int:
    """The axis of the names of input `i` that an axis of the user's layout is."""
    n = len(method.input_names[i])
    return axis % n if method.channels_first or n < 2 else (axis % n + 1) % n


def _without_axis(method: Any, i: int, axis: int, is_channel: bool) -> Change:
    names = [list(labels) for k, labels in enumerate(method.input_names[i]) if k != axis]
    last = bool(_last(method, i)) and not is_channel and len(names) > 1
    return Change(names, partial(np.sum, axis=1 + axis), last)


# ---------------------------------------------------------------- groups


def _per_input(method: Any, groups: Any) -> dict[int, Any]:
    """Groups by the number of the input; inputs that stay as they are are left out."""
    n = len(method.input_names)
    if isinstance(groups, str):
        words = {i: groups for i in range(n) if n == 1 or len(method.input_names[i]) > 1}
        if not words:
            raise SelectionError(f"groups={shown(groups)}: no input has channels")
        return words
    if n == 1 and not (isinstance(groups, (list, tuple)) and len(groups) == 1):
        return {0: groups}
    if isinstance(groups, Mapping) and n > 1:
        return {_input_number(key, n): value for key, value in groups.items()}
    if not isinstance(groups, (list, tuple)) or len(groups) != n:
        raise ArgumentError(
            f"the model has {counted(n, 'input')}: give groups as a dict, such as "
            '{"Input_2": ...}, or as a list with one entry per input, None to leave it as it is'
        )
    return {i: value for i, value in enumerate(groups) if value is not None}


def _input_number(key: Any, n: int) -> int:
    labels = [f"Input_{i + 1}" for i in range(n)]
    if key in labels:
        return labels.index(key)
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool) and 0 <= key < n:
        return int(key)
    raise SelectionError(f"groups names input {shown(key)}; the inputs are {listed(labels)}")


def _taken_together(method: Any, i: int, groups: Any, reduce: str) -> Change:
    names, channel = method.input_names[i], channel_axis(method, i)
    if not names:
        raise SelectionError(f"Input_{i + 1} is a single number: there is nothing to group")
    if isinstance(groups, str):
        return _by_word(method, i, groups, reduce)
    if isinstance(groups, Mapping):
        cells = _named(groups, method, i)
    else:
        cells = _labelled(groups, method, i)
    _check_rows(cells, method)
    data = _beside(method, i, cells) if channel is None else None
    return Change([cells.names], partial(_reduced, cells=cells, how=reduce), data=data)


def _by_word(method: Any, i: int, word: str, reduce: str) -> Change:
    """One value per channel, or one per place."""
    names, channel = method.input_names[i], channel_axis(method, i)
    if word not in ("channels", "places"):
        raise ArgumentError(
            f'groups must be "channels", "places", a dict or labels, got {shown(word)}'
        )
    if channel is None:
        raise SelectionError(f"groups={word!r}: Input_{i + 1} has no channels")
    away = tuple(k + 1 for k in range(len(names)) if (k == channel) == (word == "places"))
    apply = partial(_over_axes, axes=away, how=reduce, keep=word == "places")
    if word == "channels":
        return Change([list(names[channel])], apply)
    kept = [[reduce] if k == channel else list(axis) for k, axis in enumerate(names)]
    return Change(kept, apply, bool(_last(method, i)))


def _over_axes(array: np.ndarray, axes: tuple[int, ...], how: str, keep: bool) -> np.ndarray:
    if how == "norm":
        return np.sqrt(np.square(array).sum(axis=axes, keepdims=keep))
    return getattr(array, how)(axis=axes, keepdims=keep)


def _reduced(array: np.ndarray, cells: Cells, how: str) -> np.ndarray:
    """Arrays (batch, *shape, nodes) to (batch, groups, nodes)."""
    rows, count = len(cells.numbers), len(cells.names)
    # Groups of each row: all rows in one, the numbers of each row behind those of the one before.
    numbers = (cells.numbers + count * np.arange(rows)[:, None]).ravel()
    values = array.reshape(len(array) // rows, len(numbers), array.shape[-1])
    if how == "norm":
        values = np.square(values)
    order = np.argsort(numbers, kind="stable")
    present, starts = np.unique(numbers[order], return_index=True)
    found = np.zeros((len(values), rows * count, values.shape[-1]))
    found[:, present] = np.add.reduceat(values[:, order], starts, axis=1, dtype=np.float64)
    if how == "mean":
        found /= np.maximum(np.bincount(numbers, minlength=rows * count), 1)[:, None]
    if how == "norm":
        found = np.sqrt(found)
    return found.reshape(len(array), count, -1).astype(array.dtype)


def _check_rows(cells: Cells, method: Any) -> None:
    rows, batch = len(cells.numbers), batch_size(method)
    if rows not in (1, batch):
        raise ShapeError(f"groups hold labels for {rows} data points, the result has {batch}")


def _beside(method: Any, i: int, cells: Cells) -> np.ndarray | None:
    """What the features of a table are: those that stay alone; NaN for groups."""
    data = _table(method, i)
    if data is None or len(cells.numbers) > 1:
        return None
    numbers = cells.numbers[0]
    alone = np.bincount(numbers)[numbers] == 1
    found = np.full((len(data), len(cells.names)), np.nan)
    found[:, numbers[alone]] = data[:, alone]
    return found


def _table(method: Any, i: int) -> np.ndarray | None:
    beside = getattr(method, "shown_data", {})
    data = getattr(method, "data", None)
    if i in beside:
        return beside[i]
    if data is None or getattr(method, "layers", None) or len(data) != len(method.input_names):
        return None
    table = to_host(data[i])
    return table if table.shape == (batch_size(method), *input_shape(method, i)) else None


# ---------------------------------------------------------------- labels


def _labelled(labels: Any, method: Any, i: int) -> Cells:
    """Groups from a label for every cell, or for every place."""
    try:
        array = np.asarray(labels)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind == "O" and all(isinstance(label, str) for label in array.flat):
        array = array.astype(str)
    if array.dtype.kind not in "iuU":
        raise ArgumentError(
            f"groups of Input_{i + 1} must be a dict or an array of whole numbers or names, got "
            f"{shown(labels)}"
        )
    found, numbers = np.unique(array, return_inverse=True)
    texts = [str(n) if array.dtype.kind == "U" else f"segment_{n}" for n in found.tolist()]
    return Cells(_per_cell(numbers.reshape(array.shape), method, i, "groups"), texts)


def _per_cell(array: np.ndarray, method: Any, i: int, what: str) -> np.ndarray:
    """Something told of every place or cell, maybe for each data point: (1 or batch, cells)."""
    shape, channel = input_shape(method, i), channel_axis(method, i)
    places = tuple(n for k, n in enumerate(shape) if k != channel)
    moved = channel == 0 and not method.channels_first
    user = (*shape[1:], shape[0]) if moved else shape
    if array.shape == user == (batch_size(method), *places):
        raise ShapeError(
            f"{what} of Input_{i + 1} have shape {array.shape}, which may mean one for each "
            f"channel or one for each data point; give shape {(len(array), *user)}"
        )
    if array.shape in (places, user):
        array = array[None]
    if array.shape[1:] == user:
        array = np.moveaxis(array, -1, 1) if moved else array
    elif array.shape[1:] == places and channel is not None:
        array = np.broadcast_to(np.expand_dims(array, 1 + channel), (len(array), *shape))
    else:
        allowed = " or ".join(map(str, dict.fromkeys([places, user])))
        raise ShapeError(
            f"{what} of Input_{i + 1} have shape {array.shape}, expected {allowed}, or that with a "
            "first axis for the data points"
        )
    return array.reshape(len(array), -1)


# ---------------------------------------------------------------- groups by name


def _named(groups: Mapping[Any, Any], method: Any, i: int) -> Cells:
    """Groups from their members: features or positions, or masks of places."""
    names, channel = method.input_names[i], channel_axis(method, i)
    places = [axis for k, axis in enumerate(names) if k != channel]
    if len(places) > 1 or all(_is_mask(mask) and mask.ndim > 1 for mask in groups.values()):
        return _masked(groups, method, i)
    numbers, texts = _members(groups, [str(label) for label in places[0]])
    return Cells(_per_cell(numbers, method, i, "groups"), texts)


def _is_mask(members: Any) -> bool:
    return isinstance(members, np.ndarray) and members.dtype == np.bool_


def _masked(groups: Mapping[Any, Any], method: Any, i: int) -> Cells:
    for name, mask in groups.items():
        if not _is_mask(mask):
            raise ArgumentError(
                f"group {shown(name)} of Input_{i + 1} must be an array of True and False with a "
                f"value per place, got {shown(mask)}"
            )
    masks = [_per_cell(m, method, i, f"group {shown(name)}") for name, m in groups.items()]
    if not masks:
        raise ArgumentError("groups is empty; name at least one group")
    rows = max(map(len, masks))
    stacked = np.stack([np.broadcast_to(m, (rows, m.shape[1])) for m in masks])
    if (stacked.sum(axis=0) > 1).any():
        raise SelectionError(f"groups of Input_{i + 1} overlap; each place can be in one of them")
    texts, free = [str(name) for name in groups], ~stacked.any(axis=0)
    numbers = stacked.argmax(axis=0)
    if free.any():
        numbers[free] = len(texts)
        texts.append(REST)
    return Cells(numbers, texts)


def _members(groups: Mapping[Any, Any], labels: list[str]) -> tuple[np.ndarray, list[str]]:
    """The group of each feature, and the names; features in no group stay alone."""
    owner: dict[int, str] = {}
    for name, members in groups.items():
        for k in _indices(members, labels, str(name)):
            if k in owner:
                raise SelectionError(
                    f"feature {shown(labels[k])} is in the groups {shown(owner[k])} and "
                    f"{shown(str(name))}; each can be in one of them"
                )
            owner[k] = str(name)
    keys = [(owner[k], -1) if k in owner else (label, k) for k, label in enumerate(labels)]
    order = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    texts = [name for name, _ in order]
    clash = set(owner.values()).intersection(name for name, k in order if k >= 0)
    if clash:
        raise SelectionError(
            f"group {shown(min(clash))} has the name of a feature that stays alone; rename it"
        )
    return np.array([order[key] for key in keys]), texts


def _indices(members: Any, labels: list[str], name: str) -> list[int]:
    """Indices of features named by index, label, pattern, range or mask, each once."""
    if _is_mask(members) and members.shape == (len(labels),):
        members = np.flatnonzero(members)
    if isinstance(members, slice):
        members = range(len(labels))[members]
    if isinstance(members, (str, int, np.integer)):
        members = [members]
    try:
        entries = list(members)
    except TypeError:
        entries = []
    if not entries:
        raise ArgumentError(
            f"group {shown(name)} needs features, by name or index, got {shown(members)}"
        )
    return list(dict.fromkeys(k for entry in entries for k in _matches(entry, labels, name)))


def _matches(entry: Any, labels: list[str], name: str) -> Sequence[int]:
    if isinstance(entry, str):
        same = [k for k, label in enumerate(labels) if label == entry]
        found = same or [k for k, label in enumerate(labels) if fnmatchcase(label, entry)]
        if not found:
            raise SelectionError(
                f"group {shown(name)} names {shown(entry)}; the features are {listed(labels)}"
            )
        if len(same) > 1:
            raise SelectionError(
                f"{shown(entry)} is the name of {len(same)} features; give indices for group "
                f"{shown(name)}"
            )
        return found
    whole = isinstance(entry, (int, np.integer)) and not isinstance(entry, (bool, np.bool_))
    if not whole or not 0 <= entry < len(labels):
        raise SelectionError(
            f"group {shown(name)} holds {shown(entry)}, expected names or whole numbers from 0 to "
            f"{len(labels) - 1}"
        )
    return [int(entry)]
