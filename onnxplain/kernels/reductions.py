"""Reductions over axes; the axes are an attribute in old opsets and an input in new ones."""

from __future__ import annotations

import math

import numpy as np

from ..arrays import Array, divide, host_ints, namespace
from ..errors import UnsupportedOpError
from .base import Kernel
from .families import Axis, Linear, Selector


class Reduction(Kernel):
    """What all reductions share: which axes go, and putting them back."""

    data = (0,)

    def _axes(self, x: Array, axes: Array | None) -> tuple[int, ...]:
        """Return the reduced axes, counted from the front."""
        axes = host_ints(axes) if axes is not None else getattr(self, "axes", None)
        if not axes:
            idle = getattr(self, "noop_with_empty_axes", 0)
            return () if idle else tuple(range(x.ndim))
        return tuple(sorted(a % x.ndim for a in axes))

    def _given(self, inputs: tuple[Array | None, ...]) -> tuple[int, ...]:
        return self._axes(inputs[0], inputs[1] if len(inputs) > 1 else None)

    def _restore(self, g: Array, ndim: int, axes: tuple[int, ...]) -> Array:
        """Put reduced axes back into a signal, with length one."""
        if self.keepdims:
            return g
        kept = iter(g.shape[1:])
        return g.reshape((g.shape[0], *(1 if i in axes else next(kept) for i in range(ndim))))

    def _keep(self, y: Array, ndim: int, axes: tuple[int, ...]) -> Array:
        """Put reduced axes back into an output, with length one."""
        return self._restore(y[None], ndim, axes)[0]


class ReduceSum(Reduction, Linear, op="ReduceSum"):
    """y = the sum over axes. All weights are equal and positive: `w` holds the axes."""

    def operand(self, inputs):
        return inputs[0], self._given(inputs), None

    def split(self, w):
        return w, None

    def map_weights(self, w, f):
        return w

    def apply(self, x, w):
        return x.sum(axis=w, keepdims=bool(self.keepdims), dtype=x.dtype) if w else x

    def vjp(self, g, shape, w):
        g = self._restore(g, len(shape), w)
        return namespace(g).broadcast_to(g, (g.shape[0], *shape))


class ReduceMean(ReduceSum, op="ReduceMean"):
    """y = the mean over axes."""

    def apply(self, x, w):
        return x.mean(axis=w, keepdims=bool(self.keepdims)).astype(x.dtype, copy=False) if w else x

    def vjp(self, g, shape, w):
        return super().vjp(g / math.prod(shape[a] for a in w), shape, w)


def _bound(dtype: np.dtype, lowest: bool) -> float | bool:
    """Return the smallest (or largest) value of a type: what an empty maximum is."""
    if dtype.kind == "b":
        return not lowest
    if dtype.kind in "iu":
        return np.iinfo(dtype).min if lowest else np.iinfo(dtype).max
    return -math.inf if lowest else math.inf


class ReduceMax(Reduction, Selector, op="ReduceMax"):
    """y = the maximum over axes."""

    def _extreme(self, x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
        if x.size == 0:
            return x.max(axis=axes, keepdims=keepdims, initial=self._nothing(x))
        return x.max(axis=axes, keepdims=keepdims)

    def _nothing(self, x: Array) -> float:
        return _bound(x.dtype, lowest=True)

    def forward(self, x, axes=None):
        axes = self._axes(x, axes)
        return self._extreme(x, axes, bool(self.keepdims)) if axes else x

    def _first(self, x: Array, y: Array, axes: tuple[int, ...]) -> Array:
        """Return a mask of the first winner of every group, in row-major order."""
        xp = namespace(x)
        rest = [i for i in range(x.ndim) if i not in axes]
        order = [*rest, *axes]
        moved = (x == self._keep(y, x.ndim, axes)).transpose(order)
        flat = moved.reshape(*(x.shape[i] for i in rest), -1)
        first = xp.arange(flat.shape[-1]) == flat.argmax(axis=-1)[..., None]
        return first.reshape(moved.shape).transpose(np.argsort(order).tolist())

    # The axes may be an input: the selector's helpers get them from the record.
    def gradient(self, rec, g):
        return self._bound(rec).gradient(_alone(rec), g) + self._rest()

    def relevance(self, rec, r, rule, note):
        return self._bound(rec).relevance(_alone(rec), r, rule, note) + self._rest()

    def deeplift(self, rec, ref, m, rule, parts):
        bound = self._bound(rec)
        return bound.deeplift(_alone(rec), _alone(ref), m, rule, parts) + self._rest()

    def connection(self, rec, g, rule):
        return self._bound(rec).connection(_alone(rec), g, rule) + self._rest()

    def _rest(self) -> tuple[None, ...]:
        return (None,) * (len(self.active) - 1)

    def _bound(self, rec) -> BoundExtreme:
        return BoundExtreme(self, self._given(rec.inputs))


def _alone(rec):
    return rec._replace(inputs=rec.inputs[:1])


class BoundExtreme(Selector):
    """A maximum or minimum with its axes fixed."""

    def __init__(self, kernel: ReduceMax, axes: tuple[int, ...]):
        self.op, self.active, self.n_outputs = kernel.op, (True,), 1
        self._kernel, self._axes = kernel, axes

    def forward(self, x):
        kernel = self._kernel
        return kernel._extreme(x, self._axes, bool(kernel.keepdims)) if self._axes else x

    def send(self, g, x, y, shape):
        mask = self._kernel._first(x, y, self._axes)
        return self._kernel._restore(g, x.ndim, self._axes) * mask

    def pick(self, values, x, y):
        masked = values * self._kernel._first(x, y, self._axes)
        return masked.sum(axis=self._axes, keepdims=bool(self._kernel.keepdims))

    def average(self, x):
        return x.mean(axis=self._axes, keepdims=bool(self._kernel.keepdims))

    def average_vjp(self, g, shape):
        g = self._kernel._restore(g, len(shape), self._axes)
        g = g / math.prod(shape[a] for a in self._axes)
        return namespace(g).broadcast_to(g, (g.shape[0], *shape))

    def _cross(self, x, x0, y, y0, m, shape):
        if isinstance(self._kernel, ReduceMin):
            # A minimum is a maximum upside down.
            return super()._cross(-x, -x0, -y, -y0, m, shape)
        return super()._cross(x, x0, y, y0, m, shape)


class ReduceMin(ReduceMax, op="ReduceMin"):
    """y = the minimum over axes."""

    def _extreme(self, x, axes, keepdims):
        if x.size == 0:
            return x.min(axis=axes, keepdims=keepdims, initial=self._nothing(x))
        return x.min(axis=axes, keepdims=keepdims)

    def _nothing(self, x):
        return _bound(x.dtype, lowest=False)


class ReduceProd(Reduction, op="ReduceProd"):
    """y = the product over axes; for shapes and weights, not for data."""

    @classmethod
    def accepts(cls, active):
        return not any(active)

    def forward(self, x, axes=None):
        axes = self._axes(x, axes)
        return x.prod(axis=axes, keepdims=bool(self.keepdims), dtype=x.dtype) if axes else x


class ReduceL2(Reduction, Axis, op="ReduceL2"):
    """y = the root of the sum of squares over axes."""

    def forward(self, x, axes=None):
        axes = self._axes(x, axes)
        if not axes:
            return abs(x)
        if x.dtype.kind != "f":
            squares = (x.astype(np.float64) ** 2).sum(axis=axes, keepdims=bool(self.keepdims))
        else:
            squares = (x * x).sum(axis=axes, keepdims=bool(self.keepdims))
        return namespace(x).sqrt(squares).astype(x.dtype, copy=False)

    def vjp(self, g, x, y, axes=None):
        given = self._axes(x, axes)
        share = divide(x, self._keep(y, x.ndim, given))
        return self._restore(g, x.ndim, given) * share

    def relevance(self, rec, r, rule, note):
        """Shares by squares, which add up to the square of the output."""
        x, y = rec.inputs[0], rec.outputs[0]
        axes = self._given(rec.inputs)
        share = divide(x * x, self._keep(y * y, x.ndim, axes))
        back = self._restore(r[0], x.ndim, axes) * share
        if note is not None:
            note.add("stabiliser", r[0] * (y == 0))
        return self.at(0, back)

    def deeplift(self, rec, ref, m, rule, parts):
        x, x0 = rec.inputs[0], ref.inputs[0]
        axes = self._given(rec.inputs)
        total = self._keep(rec.outputs[0], x.ndim, axes) + self._keep(ref.outputs[0], x.ndim, axes)
        share = divide(x + x0, total)
        return self.at(0, self._restore(m[0], x.ndim, axes) * share)

    def connection(self, rec, g, rule):
        raise UnsupportedOpError(f"{self.op} has no weights: connection weights are not defined")

    def describe(self, method):
        words = {
            "lrp": ("squares", True, "shared by squares, a convention"),
            "connection": ("", False, "not defined: a norm has no weights"),
        }
        return words.get(method) or super().describe(method)


__all__ = ["ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"]
