"""What kernels need of an array library: its namespace, windows, broadcasting, stabilisers.

Arrays are NumPy's or CuPy's. Everything here works on the namespace of its argument, so that data
on a GPU stays there. Signals (gradients, relevances, multipliers) carry one more leading axis than
the tensor they belong to: the explained outputs.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from .errors import ModelError
from .frugal import is_frugal

Array: TypeAlias = Any  # numpy.ndarray or cupy.ndarray
Shape: TypeAlias = tuple[int, ...]

# Larger tensors than this come from files that lie about their sizes.
MAX_ELEMENTS = 2**31


def is_device(x: Any) -> bool:
    """Tell whether `x` is a CuPy array."""
    return type(x) is not np.ndarray and type(x).__module__.partition(".")[0] == "cupy"


def namespace(*arrays: Any) -> Any:
    """Return the array library of the arguments: CuPy if any of them lives on a GPU, else NumPy."""
    for x in arrays:
        if is_device(x):
            import cupy

            return cupy
    return np


def special(x: Array) -> Any:
    """Return the module of special functions (erf, expit) that works on `x`."""
    if is_device(x):
        import cupyx.scipy.special

        return cupyx.scipy.special
    import scipy.special

    return scipy.special


def is_float(dtype: Any) -> bool:
    """Tell whether a NumPy (or ml_dtypes) type holds floating point numbers."""
    dtype = np.dtype(dtype)
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def to_host(x: Array) -> np.ndarray:
    """Return `x` as a NumPy array, copying from the GPU if need be."""
    return x.get() if is_device(x) else np.asarray(x)


def host_ints(x: Array | None) -> list[int] | None:
    """Return a small integer tensor (axes, shapes, pads) as a list."""
    return None if x is None else [int(v) for v in to_host(x).ravel()]


def on_device_of(x: Array, like: Array) -> Array:
    """Return `x` in the array library of `like`."""
    return namespace(like).asarray(x) if is_device(like) and not is_device(x) else x


def checked_shape(shape: Sequence[int]) -> Shape:
    """Return `shape` as a tuple, refusing what no tensor of a real model can have."""
    shape = tuple(int(n) for n in shape)
    if any(n < 0 for n in shape):
        raise ModelError(f"the graph asks for a tensor of negative size {shape}")
    if math.prod(shape) > MAX_ELEMENTS:
        raise ModelError(
            f"the graph asks for a tensor of shape {shape}, "
            f"more than the {MAX_ELEMENTS:,} elements allowed"
        )
    return shape


def stabiliser(dtype: Any) -> float:
    """Return the small number that keeps divisions by zero away: 1e-6, in float64 1e-15."""
    return 1e-15 if np.dtype(dtype) == np.float64 else 1e-6


def stabilise(z: Array, eps: float, at_zero: float = 1.0) -> Array:
    """Return z + eps sign(z), where sign(0) is `at_zero`."""
    xp = namespace(z)
    away = z >= 0 if at_zero > 0 else z > 0
    return z + xp.where(away, z.dtype.type(eps), z.dtype.type(-eps))


def may_hold(mask: Array) -> bool:
    """Tell whether a mask holds anywhere; of one on a GPU it is assumed, not waited for."""
    return is_device(mask) or bool(mask.any())


def divide(a: Array, b: Array, otherwise: Array | float | Callable[[], Array] = 0.0) -> Array:
    """Return a / b, and where b is exactly 0 `otherwise`, or what it makes if it is a function."""
    xp = namespace(a, b)
    zero = b == 0
    if not may_hold(zero):
        return a / b
    there = otherwise() if callable(otherwise) else otherwise
    return xp.where(zero, there, a / xp.where(zero, 1, b))


def finite(x: Array) -> Array:
    """Return x with zeros in the place of infinities and NaN, such as the scores of masked keys."""
    with np.errstate(all="ignore"):
        if not is_device(x) and math.isfinite(x.sum()):  # in one pass that stores nothing
            return x
    xp = namespace(x)
    return xp.where(xp.isfinite(x), x, x.dtype.type(0))


def difference(x: Array, x0: Array) -> Array:
    """Return x - x0, and 0 where both are the same infinity, as masked scores are."""
    xp = namespace(x, x0)
    infinite = xp.isinf(x0)
    if not may_hold(infinite):
        return x - x0
    same = infinite & (x == x0)
    zero = x.dtype.type(0)
    return xp.where(same, zero, x) - xp.where(same, zero, x0)


def hollow(x: Array) -> Array:
    """Return zeros of the same shape and type that take no memory."""
    xp = namespace(x)
    return xp.broadcast_to(xp.zeros((), x.dtype), x.shape)


def positive(x: Array) -> Array:
    """Return max(x, 0)."""
    return _against_zero(namespace(x).maximum, x)


def negative(x: Array) -> Array:
    """Return min(x, 0)."""
    return _against_zero(namespace(x).minimum, x)


_ZEROS = 4096


def _against_zero(choose: Callable[..., Array], x: Array) -> Array:
    """Return the larger or smaller of x and 0: NumPy compares with zeros faster than with one."""
    if type(x) is not np.ndarray or x.size < _ZEROS or not x.flags.c_contiguous:
        return choose(x, x.dtype.type(0))
    y, zeros, n = np.empty(x.shape, x.dtype), np.zeros(_ZEROS, x.dtype), x.size // _ZEROS * _ZEROS
    flat, to = x.reshape(-1), y.reshape(-1)
    choose(flat[:n].reshape(-1, _ZEROS), zeros, out=to[:n].reshape(-1, _ZEROS))
    choose(flat[n:], zeros[: x.size - n], out=to[n:])
    return y


def unbroadcast(g: Array, shape: Shape) -> Array:
    """Sum a signal (outputs, *y) back to the tensor `shape` that was broadcast to y."""
    if g.shape[1:] == shape:
        return g
    extra = g.ndim - 1 - len(shape)
    g = g.sum(axis=tuple(range(1, 1 + extra))) if extra else g
    axes = tuple(i + 1 for i, n in enumerate(shape) if n == 1 and g.shape[i + 1] != 1)
    g = g.sum(axis=axes, keepdims=True) if axes else g
    # A reference of one row stands for all rows: the signal keeps theirs.
    return g if g.shape[1:] == shape else namespace(g).broadcast_to(g, (g.shape[0], *shape))


def lead(x: Array, g: Array) -> Array:
    """Return `x` with axes of length one put in front so that it lines up with the signal `g`."""
    return x.reshape((1,) * (g.ndim - x.ndim) + x.shape)


def fold(g: Array) -> Array:
    """Merge the axes of outputs and batch of a signal: (k, n, ...) to (k n, ...)."""
    return g.reshape((g.shape[0] * g.shape[1], *g.shape[2:]))


def unfold(g: Array, k: int) -> Array:
    """Undo `fold`: (k n, ...) to (k, n, ...)."""
    return g.reshape((k, g.shape[0] // k, *g.shape[1:]))


# -- what is made of weights once -------------------------------------------------------------

DERIVED_BYTES = 40 * 2**20  # larger results are made again each time: memory counts more there
_DERIVED: dict[tuple[int, str], tuple[weakref.ref, Any]] = {}


def derived(w: Array, name: str, make: Callable[[Array], Any]) -> Any:
    """Return make(w), kept under `name` for as long as the array `w` itself lives."""
    if isinstance(w, np.generic):  # NumPy gives numbers for arrays without axes
        return make(w)
    key = (id(w), name)
    found = _DERIVED.get(key)
    if found is not None and found[0]() is w:
        return found[1]
    value = make(w)
    if is_frugal():
        return value
    parts = value if isinstance(value, tuple) else (value,)
    if sum(p.nbytes for p in parts if p is not None) <= DERIVED_BYTES:
        # Bound here: when the interpreter ends, names of the module are gone before arrays are.
        _DERIVED[key] = weakref.ref(w, lambda _, kept=_DERIVED: kept.pop(key, None)), value
    return value


# -- windows ------------------------------------------------------------------------------------


def offsets(kernel: Sequence[int]) -> Iterator[Shape]:
    """Run through the cells of a window in row-major order."""
    return product(*(range(k) for k in kernel))


def window_slices(
    offset: Sequence[int], out: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[slice, ...]:
    """Return the slices of a padded input that hold cell `offset` of every window."""
    return tuple(
        slice(o * d, o * d + (n - 1) * s + 1, s)
        for o, n, s, d in zip(offset, out, strides, dilations, strict=True)
    )


def pad_spatial(x: Array, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Array:
    """Pad the last axes of `x` with a constant; returns `x` itself where nothing is to do."""
    if not any(a or b for a, b in pads):
        return x
    widths = [(0, 0)] * (x.ndim - len(pads)) + [tuple(p) for p in pads]
    return namespace(x).pad(x, widths, constant_values=value)


def crop_spatial(x: Array, pads: Sequence[tuple[int, int]]) -> Array:
    """Cut what `pad_spatial` added."""
    cuts = tuple(slice(a, n - b) for (a, b), n in zip(pads, x.shape[-len(pads) :], strict=True))
    return x[(..., *cuts)]
