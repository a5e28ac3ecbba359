"""Check and prepare what a user hands in as data or reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .arrays import Array, is_device, namespace
from .errors import ArgumentError, DataError, DtypeError, ShapeError

Shape = tuple[int, ...]
_DTYPES = {"float": np.float32, "double": np.float64}


def float_type(dtype: Any) -> np.dtype:
    """Return the type to compute in: "float" is float32, "double" float64."""
    try:
        found = np.dtype(_DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype)
    except TypeError:
        found = None
    if found is None or found not in (np.float32, np.float64, np.float16):
        raise DtypeError(f'dtype must be "float", "double" or a NumPy float type, got {dtype!r}')
    return found


def prepare(
    data: Any,
    specs: Sequence[Any],
    input_dim: Sequence[Shape],
    dtype: np.dtype,
    channels_first: bool = True,
    what: str = "data",
    xp: Any = np,
) -> list[Array]:
    """Return one array per input, channels first, of the type to compute in.

    Parameters
    ----------
    data : array, data frame, or list or dict of these
        One per input of the model, in order or by name; axis 0 are the instances.
    """
    arrays = _as_list(data, specs, what)
    if len(arrays) != len(input_dim):
        raise DataError(
            f"{what} holds {len(arrays)} arrays, the model has {len(input_dim)} inputs: "
            f"{', '.join(s.name for s in specs)}"
        )
    ready = [
        _one(x, spec, dim, dtype, channels_first, _called(what, i, len(specs)), xp)
        for i, (x, spec, dim) in enumerate(zip(arrays, specs, input_dim, strict=True))
    ]
    rows = {len(x) for x in ready}
    if len(rows) > 1:
        raise DataError(f"{what} has different numbers of rows: {[len(x) for x in ready]}")
    if rows == {0}:
        raise DataError(f"{what} has no rows")
    return ready


def _called(what: str, i: int, n: int) -> str:
    return what if n == 1 else f"{what}[{i}]"


def _as_list(data: Any, specs: Sequence[Any], what: str) -> list[Any]:
    if data is None:
        raise ArgumentError(f"{what} is missing; give an array with one row per instance")
    if isinstance(data, Mapping):
        missing = [s.name for s in specs if s.name not in data]
        if missing:
            raise DataError(
                f"{what} has no entry {missing[0]!r}; its keys are {', '.join(map(str, data))}"
            )
        return [data[s.name] for s in specs]
    if isinstance(data, (list, tuple)) and (len(specs) > 1 or _holds_arrays(data)):
        return list(data)
    return [data]


def _holds_arrays(data: Sequence[Any]) -> bool:
    return any(hasattr(x, "shape") for x in data)


def _one(
    x: Any, spec: Any, dim: Shape, dtype: np.dtype, channels_first: bool, what: str, xp: Any
) -> Array:
    x = _array(x, what)
    want = dim if channels_first or len(dim) < 2 else (*dim[1:], dim[0])
    if x.ndim != len(want) + 1 or x.shape[1:] != want:
        raise ShapeError(_shape_message(x.shape, want, dim, what, channels_first))
    if not channels_first and len(dim) > 1:
        x = namespace(x).moveaxis(x, -1, 1)
    kind = np.dtype(spec.dtype)
    x = x.astype(dtype if kind.kind not in "iub" else _whole(x, kind, what), copy=False)
    if x.dtype.kind == "f":
        _check_finite(x, what)
    return xp.asarray(x) if xp is not np else x


def _array(x: Any, what: str) -> Array:
    if is_device(x):
        return x
    try:
        x = np.asarray(x)
        if x.dtype.kind == "O":
            x = x.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DtypeError(
            f"{what} of type {type(x).__name__} cannot be made an array of numbers: {error}"
        ) from error
    if x.dtype.kind not in "fiub":
        raise DtypeError(f"{what} holds values of type {x.dtype}, numbers are expected")
    return x


def _whole(x: Array, kind: np.dtype, what: str) -> np.dtype:
    if kind.kind in "iu" and x.dtype.kind == "f" and bool((x != namespace(x).rint(x)).any()):
        raise DtypeError(f"{what} must hold whole numbers ({kind}), got fractions")
    return kind


def _check_finite(x: Array, what: str) -> None:
    finite = namespace(x).isfinite(x)
    if not bool(finite.all()):
        row = int(finite.reshape(len(x), -1).all(axis=1).argmin())
        raise DataError(
            f"{what} holds NaN or infinite values, first in row {row}; "
            "fill or drop them before explaining"
        )


def _shape_message(
    shape: Shape, want: Shape, dim: Shape, what: str, channels_first: bool
) -> str:
    expected = ", ".join(map(str, ("n", *want)))
    message = f"{what} has shape {shape}, the model expects ({expected})"
    other = (*dim[1:], dim[0]) if channels_first else dim
    if len(dim) > 1 and shape[1:] == other:
        message += f"; channels stand elsewhere: use channels_first={not channels_first}"
    elif shape == want:
        message += "; one instance needs a first axis too: data[None]"
    return message
