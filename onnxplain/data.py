"""Check and prepare what a user hands in as data or reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MappingView, Sequence, Set
from typing import Any

import numpy as np

from .arrays import Array, is_device, namespace, to_host
from .errors import ArgumentError, DataError, DtypeError, ShapeError, counted, listed, shown

Shape = tuple[int, ...]
_DTYPES = {"float": np.float32, "double": np.float64}


def float_type(dtype: Any) -> np.dtype:
    """Return the type to compute in: "float" is float32, "double" float64."""
    try:
        found = np.dtype(_DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype)
    except (TypeError, ValueError, SyntaxError):
        found = None
    # NumPy takes None for float64; here it is more likely a slip.
    if dtype is None or found not in (np.float32, np.float64, np.float16):
        raise DtypeError(
            f'dtype must be "float", "double" or a NumPy float type, got {shown(dtype)}'
        )
    return found


def prepare(
    data: Any,
    specs: Sequence[Any],
    input_dim: Sequence[Shape],
    dtype: np.dtype,
    channels_first: bool = True,
    what: str = "data",
    copy: bool = False,
    names: Sequence[Sequence[Sequence[str]]] | None = None,
) -> list[Array]:
    """Return one array per input, channels first, of the type to compute in.

    Parameters
    ----------
    data : array, data frame, or list or dict of these, or an iterator of batches
        One per input of the model, in order or by name; axis 0 are the instances.
    copy : bool, default False
        Share no memory with `data`, so that the result stays when `data` changes. What is mapped
        from a file for reading stays mapped.
    names : list (per input) of list (per axis) of labels, optional
        Columns of a data frame must not be these labels in another order.
    """
    arrays = _as_list(joined(data, what), specs, what)
    if len(arrays) != len(input_dim):
        raise DataError(
            f"{what} holds {counted(len(arrays), 'array')}, the model has "
            f"{counted(len(input_dim), 'input')}: {listed(s.name for s in specs)}; "
            "give a list with one array per input"
        )
    for x, labels in zip(arrays, names or (), strict=False):
        _check_columns(x, labels, what)
    ready = [
        _one(x, spec, dim, dtype, channels_first, f"{what}[{i}]" if len(specs) > 1 else what, copy)
        for i, (x, spec, dim) in enumerate(zip(arrays, specs, input_dim, strict=True))
    ]
    rows = [len(x) for x in ready]
    if len(set(rows)) > 1:
        raise DataError(f"{what} has different numbers of rows per input: {rows}; give the same")
    if rows[0] == 0:
        raise DataError(f"{what} has no rows; give at least one")
    return ready


def is_dask(data: Any) -> bool:
    """Tell a dask array, or several of them, without importing dask."""
    return any(type(x).__module__.startswith("dask.array") for x in leaves(data))


def leaves(data: Any) -> list[Any]:
    """Return the arrays of data: one per input."""
    if isinstance(data, Mapping):
        return list(data.values())
    several = isinstance(data, (list, tuple)) and any(hasattr(x, "shape") for x in data)
    return list(data) if several else [data]


def rows_of(data: Any, rows: Any) -> Any:
    """Return some rows of all inputs; no more than these are read."""
    if isinstance(data, Mapping):
        return {name: rows_of(x, rows) for name, x in data.items()}
    if isinstance(data, (list, tuple)):
        return [rows_of(x, rows) for x in data]
    return data.iloc[rows] if hasattr(data, "iloc") else data[rows]


def is_batches(data: Any) -> bool:
    """Tell an iterator, or what gives one such as a loader of batches, from arrays."""
    if isinstance(data, Iterator):
        return True
    known = hasattr(data, "shape") or hasattr(data, "__getitem__")
    return isinstance(data, Iterable) and not known and not isinstance(data, (Set, MappingView))


def joined(data: Any, what: str) -> Any:
    """Return all batches of an iterator as one; anything else as it is."""
    if not is_batches(data):
        return data
    batches: list[dict[Any, Array]] = []
    for batch in data:
        named = batch if isinstance(batch, Mapping) else dict(enumerate(leaves(batch)))
        batches.append({name: _array(x, what) for name, x in named.items()})
        _check_alike(batches, what)
    if not batches:
        raise DataError(
            f"{what} is an iterator that yields no batches; give one that starts from the "
            "beginning (a generator can be run through only once)"
        )
    parts = {
        name: namespace(x).concatenate([batch[name] for batch in batches])
        for name, x in batches[0].items()
    }
    return parts if isinstance(next(iter(parts)), str) else list(parts.values())


def _check_alike(batches: Sequence[Mapping[Any, Array]], what: str) -> None:
    """Raise as soon as a batch has other arrays, or rows of another shape, than the first."""
    first, now = ({k: x.shape[1:] for k, x in b.items()} for b in (batches[0], batches[-1]))
    if first != now or any(x.ndim == 0 for x in batches[-1].values()):
        raise ShapeError(
            f"batch {len(batches)} of {what} has rows of shape {listed(now.values())}, "
            f"the first batch {listed(first.values())}; all need the same, and an axis of rows"
        )


def _check_columns(x: Any, labels: Sequence[Sequence[str]], what: str) -> None:
    """Refuse a data frame that has the features in another order: values go by position."""
    columns = [str(c) for c in getattr(x, "columns", ())]
    if len(labels) == 1 and columns != list(labels[0]) and sorted(columns) == sorted(labels[0]):
        raise DataError(
            f"the columns of {what} are the model's features in another order "
            f"({listed(columns)}); order them: {what}[converter.input_names[0][0]]"
        )


def _as_list(data: Any, specs: Sequence[Any], what: str) -> list[Any]:
    if data is None:
        raise ArgumentError(f"{what} is missing; give an array with one row per instance")
    if isinstance(data, Mapping):
        names = [s.name for s in specs]
        missing = [name for name in names if name not in data]
        if missing:
            keys = f"its keys are {listed(data)}" if data else "it is empty"
            raise DataError(f"{what} has no entry {shown(missing[0])}; {keys}")
        unknown = [key for key in data if key not in names]
        if unknown:
            raise DataError(
                f"{what} has an entry {shown(unknown[0])}, which is no input of the model; "
                f"its inputs are {listed(names)}"
            )
        return [data[s.name] for s in specs]
    if isinstance(data, (list, tuple)) and (len(specs) > 1 or _holds_arrays(data)):
        return list(data)
    return [data]


def _holds_arrays(data: Sequence[Any]) -> bool:
    return any(hasattr(x, "shape") for x in data)


def _one(
    x: Any, spec: Any, dim: Shape, dtype: np.dtype, channels_first: bool, what: str, copy: bool
) -> Array:
    copy = copy and not _is_mapped(x)
    x = _array(x, what)
    want = dim if channels_first or len(dim) < 2 else (*dim[1:], dim[0])
    if x.ndim != len(want) + 1 or x.shape[1:] != want:
        expected = f"({', '.join(map(str, ('n', *want)))})"
        name = f"input '{spec.name}'" if "[" in what else "the model"
        hint = _shape_hint(x.shape, want, dim, what, channels_first)
        raise ShapeError(f"{what} has shape {x.shape}, {name} expects {expected}{hint}")
    if not channels_first and len(dim) > 1:
        x = namespace(x).moveaxis(x, -1, 1)
    kind = np.dtype(spec.dtype)
    if kind.kind in "iub":
        _check_finite(x, what)
        _check_whole(x, kind, what)
        return x.astype(kind, copy=copy)
    with np.errstate(over="ignore"):
        numbers = x.astype(dtype, copy=copy)
    if not bool(namespace(numbers).isfinite(numbers).all()):
        _check_finite(x, what)
        _check_finite(
            numbers, what, f"values too large for {dtype}", 'use dtype="double" or scale them'
        )
    return numbers


def _is_mapped(x: Any) -> bool:
    """Tell what is mapped from a file for reading: no copy of it is needed."""
    return isinstance(x, np.memmap) and not x.flags.writeable


def _array(x: Any, what: str) -> Array:
    if is_device(x):  # the rows of a chunk go to the GPU that has room for them
        with x.device:
            return to_host(x)
    if x is None:
        raise DataError(f"{what} is None; give an array with one row per instance")
    given = type(x).__name__
    try:
        x = np.asarray(x)
        if x.dtype.kind == "O":
            x = _numbers(x)
    except Exception as error:  # whatever the user's own type raises
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise DtypeError(
            f"{what} of type {given} cannot be made an array of numbers: {reason}"
        ) from error
    if x.dtype.kind not in "fiub":
        raise DtypeError(f"{what} holds values of type {x.dtype}, numbers are expected")
    return x


def _numbers(x: np.ndarray) -> np.ndarray:
    """Return objects (of a data frame, mostly) as numbers; missing values become NaN."""
    if any(isinstance(value, (str, bytes)) for value in x.flat):
        raise TypeError("it holds text, numbers are expected")
    return np.array([_number(value) for value in x.flat], np.float64).reshape(x.shape)


def _number(value: Any) -> float:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return np.nan
    return float(value)


def _check_whole(x: Array, kind: np.dtype, what: str) -> None:
    if x.dtype.kind == "f" and bool((x != namespace(x).rint(x)).any()):
        raise DtypeError(f"{what} must hold whole numbers ({kind}), got fractions")
    low, high = (0, 1) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
    if x.size and (x.min() < low or x.max() > high):
        raise DataError(
            f"{what} holds values from {x.min()} to {x.max()}, {kind} holds {low} to {high}"
        )


def _check_finite(
    x: Array,
    what: str,
    problem: str = "NaN or infinite values",
    advice: str = "fill or drop them before explaining",
) -> None:
    finite = namespace(x).isfinite(x)
    if not bool(finite.all()):
        row = int(finite.reshape(len(x), -1).all(axis=1).argmin())
        raise DataError(f"{what} holds {problem}, first in row {row}; {advice}")


def _shape_hint(shape: Shape, want: Shape, dim: Shape, what: str, channels_first: bool) -> str:
    other = (*dim[1:], dim[0]) if channels_first else dim
    if len(dim) > 1 and shape[1:] == other:
        return f"; channels stand elsewhere: use channels_first={not channels_first}"
    if shape == want:
        return f"; one instance needs a first axis too: {what}[None]"
    return ""
