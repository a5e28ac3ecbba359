"""Reductions over axes; the axes are an attribute in old opsets and an input in new ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arrays import Array, Shape, divide, host_ints, namespace
from ..errors import UnsupportedOpError
from .base import Kernel, joint_shape
from .expanded import Expanded, Writer
from .families import Axis, Linear, Selector
from .normalisation import log_mean

MANY = 128  # factors of a product


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


def grouped(x: Array, axes: tuple[int, ...]) -> Array:
    """Return x with the axes that are reduced as one, the last, in row-major order."""
    rest = [i for i in range(x.ndim) if i not in axes]
    sizes = [x.shape[i] for i in rest]
    return x.transpose([*rest, *axes]).reshape((*sizes, math.prod(x.shape[i] for i in axes)))


def ungrouped(x: Array, shape: Shape, axes: tuple[int, ...]) -> Array:
    """Undo `grouped` for a tensor of this shape."""
    order = [*(i for i in range(len(shape)) if i not in axes), *axes]
    moved = x.reshape(tuple(shape[i] for i in order))
    return moved.transpose([order.index(i) for i in range(len(shape))])


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
        equal = x == self._keep(y, x.ndim, axes)
        flat = grouped(equal, axes)
        first = namespace(x).arange(flat.shape[-1]) == flat.argmax(axis=-1)[..., None]
        return ungrouped(first, equal.shape, axes)

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


class ReduceProd(Reduction, Axis, op="ReduceProd"):
    """y = the product over axes."""

    def forward(self, x, axes=None):
        axes = self._axes(x, axes)
        return x.prod(axis=axes, keepdims=bool(self.keepdims), dtype=x.dtype) if axes else x

    def vjp(self, g, x, y, axes=None):
        given = self._axes(x, axes)
        return self._restore(g, x.ndim, given) * self._others((x, x), given)

    def deeplift(self, rec, ref, m, rule, parts):
        points, axes = (rec.inputs[0], ref.inputs[0]), self._given(rec.inputs)
        shape = joint_shape(rec, ref, 0)
        return self.at(0, self._restore(m[0], len(shape), axes) * self._others(points, axes))

    @staticmethod
    def _others(points: tuple[Array, Array], axes: tuple[int, ...]) -> Array:
        """Return the product of all other factors, as its mean over the way between two points.

        A product is linear in each factor: these are Shapley values of the factors. Of very many
        they would take long: those are multiplied one after the other, each at its midpoint.
        """
        if not axes:
            return namespace(*points).ones_like(points[0] + points[1])
        x, x0 = (grouped(p, axes) for p in points)
        if x.shape[-1] <= MANY:
            found = mean_of_polynomial(product_of_others, x0, x, x.shape[-1] - 1)
        else:
            found = 0.5 * (product_before(x) + product_before(x0)) * product_behind(0.5 * (x + x0))
        return ungrouped(found, np.broadcast_shapes(*(p.shape for p in points)), axes)

    def relevance(self, rec, r, rule, note):
        """Every factor gets the same share (AttnLRP)."""
        x, axes = rec.inputs[0], self._given(rec.inputs)
        share = self._restore(r[0], x.ndim, axes) / math.prod(x.shape[a] for a in axes)
        return self.at(0, namespace(x).broadcast_to(share, (len(share), *x.shape)))

    def connection(self, rec, g, rule):
        raise UnsupportedOpError(f"{self.op} has no weights: connection weights are not defined")

    def describe(self, method):
        words = {
            "lrp": ("equal shares", True, "every factor gets the same (AttnLRP), a convention"),
            "deeplift": ("Shapley", True, ""),
            "connection": ("", False, "not defined: a product has no weights"),
        }
        return words.get(method) or super().describe(method)


def product_before(x: Array) -> Array:
    """Return for each element along the last axis the product of those before it."""
    xp = namespace(x)
    return xp.concatenate([xp.ones_like(x[..., :1]), x[..., :-1]], axis=-1).cumprod(axis=-1)


def product_behind(x: Array) -> Array:
    """Return for each element along the last axis the product of those behind it."""
    return product_before(x[..., ::-1])[..., ::-1]


def product_of_others(x: Array) -> Array:
    """Return for each element along the last axis the product of the others."""
    return product_before(x) * product_behind(x)


def mean_of_polynomial(f: Any, x0: Array, x: Array, degree: int) -> Array:
    """Return the mean of f on the way from x0 to x, where f is a polynomial: exact (Gauss)."""
    nodes, weights = (0.5 * v for v in np.polynomial.legendre.leggauss(degree // 2 + 1))
    middle, way = 0.5 * (x + x0), x - x0
    points = zip(nodes.tolist(), weights.tolist(), strict=True)
    return sum(w * f(middle + t * way) for t, w in points)


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


class ReduceLogSumExp(Reduction, Axis, op="ReduceLogSumExp"):
    """y = log(sum exp(x)) over axes."""

    def forward(self, x, axes=None):
        axes = self._axes(x, axes)
        if not axes:
            return x
        xp = namespace(x)
        z = x if x.dtype.kind == "f" else x.astype(np.float64)
        top = z.max(axis=axes, keepdims=True) if z.size else z.sum(axis=axes, keepdims=True)
        top = xp.where(xp.isfinite(top), top, z.dtype.type(0))
        y = (xp.log(xp.exp(z - top).sum(axis=axes, keepdims=True)) + top).astype(x.dtype)
        return y if self.keepdims else y.squeeze(axes)

    def _log_shares(self, x: Array, y: Array, axes: tuple[int, ...]) -> Array:
        """Return log(exp(x) / sum exp(x))."""
        return x - self._keep(y, x.ndim, axes)

    def vjp(self, g, x, y, axes=None):
        given = self._axes(x, axes)
        share = namespace(x).exp(self._log_shares(x, y, given))
        return self._restore(g, x.ndim, given) * share

    def relevance(self, rec, r, rule, note):
        """Shares by the exponentials, which add up to that of the output."""
        return self.gradient(rec, r)

    def deeplift(self, rec, ref, m, rule, parts):
        """With L the logarithmic mean of both shares, sum L (dx - dy) = 0: shares add up to 1."""
        axes = self._given(rec.inputs)
        p, p0 = (self._log_shares(v.inputs[0], v.outputs[0], axes) for v in (rec, ref))
        mean = log_mean(namespace(p).exp(p), namespace(p0).exp(p0), p - p0)
        share = mean / mean.sum(axis=axes, keepdims=True) if axes else mean * 0 + 1
        return self.at(0, self._restore(m[0], p.ndim, axes) * share)

    def connection(self, rec, g, rule):
        raise UnsupportedOpError(f"{self.op} has no weights: connection weights are not defined")

    def describe(self, method):
        words = {
            "lrp": ("softmax", True, "shared by exponentials, a convention"),
            "connection": ("", False, "not defined: it has no weights"),
        }
        return words.get(method) or super().describe(method)


# -- written with other reductions ----------------------------------------------------------------


class SumOf(Expanded):
    """A function of the sum over axes of functions of the elements."""

    main = "ReduceSum"

    def write_sum(self, writer: Writer, x: str, output: str | None = None) -> str:
        """Write the sum over this node's axes."""
        axes = [writer.inputs[1]] if len(writer.inputs) > 1 else []
        if getattr(self, "axes", None):
            axes = [writer.weight(np.array(self.axes, np.int64))]
        idle = getattr(self, "noop_with_empty_axes", 0)
        keep = self.keepdims
        return writer.node(
            "ReduceSum", x, *axes, output=output, keepdims=keep, noop_with_empty_axes=idle
        )


class ReduceL1(SumOf, op="ReduceL1"):
    """y = the sum of |x| over axes."""

    def expand(self, writer):
        self.write_sum(writer, writer.node("Abs", writer.inputs[0]), writer.outputs[0])


class ReduceSumSquare(SumOf, op="ReduceSumSquare"):
    """y = the sum of squares over axes."""

    def expand(self, writer):
        x = writer.inputs[0]
        self.write_sum(writer, writer.node("Mul", x, x), writer.outputs[0])


class ReduceLogSum(SumOf, op="ReduceLogSum"):
    """y = log(sum x) over axes."""

    def expand(self, writer):
        writer.node("Log", self.write_sum(writer, writer.inputs[0]), output=writer.outputs[0])


__all__ = [
    "ReduceL2",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
]
