"""Dense layers, matrix products and batch normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from ..arrays import (
    DERIVED_BYTES,
    Array,
    Shape,
    host_ints,
    is_device,
    namespace,
    negative,
    positive,
    unbroadcast,
)
from ..errors import ModelError, UnsupportedOpError
from ..processor import SMALL_PRODUCT
from ..threads import each, splits
from .families import Axis, Linear, Product, Routing
from .reductions import mean_of_polynomial, product_of_others

# Matrix products are cut into so many parts, of so many products and columns at least.
_PARTS, _FEWEST_PRODUCTS, _FEWEST_COLUMNS = 8, 2**22, 64
# With small weights rows are multiplied in parts that OpenBLAS does not pack, unless these have
# fewer rows than so many.
_FEWEST_ROWS = 96
# Bytes of the positive or negative part of large weights that are made at a time.
_SIDE_BYTES = 16 * 2**20


def swap(x: Array) -> Array:
    """Transpose the last two axes."""
    return x.swapaxes(-1, -2)


class Side:
    """The positive or negative part of large weights (in, out), made some columns at a time.

    As a whole it would take as much memory as the weights, which takes longer to get from the
    system than to multiply with.
    """

    def __init__(self, w: Array, part: Callable[[Array], Array]) -> None:
        self.w, self.part = w, part
        self.shape, self.ndim, self.size, self.dtype = w.shape, w.ndim, w.size, w.dtype

    def swapaxes(self, *axes: int) -> Side:
        return Side(self.w.swapaxes(*axes), self.part)

    def __getitem__(self, where: Any) -> Array:
        return self.part(self.w[where])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.part(self.w)


class Sides:
    """How layers with a matrix of weights split it."""

    def split(self, w):
        if is_device(w) or w.ndim != 2 or w.nbytes <= DERIVED_BYTES // 2:
            return super().split(w)
        return Side(w, positive), Side(w, negative)


def product(x: Array, w: Array | Side) -> Array:
    """Return x @ w, by columns of w side by side, or by rows of x, where that pays."""
    if is_device(x) or x.ndim < 2 or w.ndim != 2 or x.shape[-1] != w.shape[0] or not w.size:
        return x @ w
    rows = x.reshape(-1, x.shape[-1])  # one product, not one for each explained output
    y = np.empty((len(rows), w.shape[1]), np.result_type(x, w.dtype))
    count = min(_PARTS, len(rows) * w.size // _FEWEST_PRODUCTS) if splits() else 1
    together = SMALL_PRODUCT // w.size
    if min(together, len(rows)) >= _FEWEST_ROWS:
        _by_rows(rows, np.ascontiguousarray(w), y, min(together, len(rows)), max(count, 1))
    elif count < 2 and not isinstance(w, Side):
        np.matmul(rows, w, out=y)
    else:
        step = max(_FEWEST_COLUMNS, -(-w.shape[1] // max(count, 1)))
        if isinstance(w, Side):
            step = max(1, min(step, _SIDE_BYTES // (len(w.w) * w.dtype.itemsize)))
        parts = [slice(i, i + step) for i in range(0, w.shape[1], step)]
        each(lambda part: np.matmul(rows, w[:, part], out=y[:, part]), parts)
    return y.reshape(*x.shape[:-1], w.shape[1])


def _by_rows(x: Array, w: Array, y: Array, together: int, count: int) -> None:
    """Put x @ w into y, at most so many rows at a time, in `count` parts side by side."""
    together = _dividing(len(x), together)
    n = len(x) // together * together
    stacked, to = (a[:n].reshape(-1, together, a.shape[1]) for a in (x, y))
    step = -(-len(stacked) // count)
    parts = [slice(i, i + step) for i in range(0, len(stacked), step)]
    each(lambda part: np.matmul(stacked[part], w, out=to[part]), parts)
    if n < len(x):
        np.matmul(x[n:], w, out=y[n:])


@lru_cache
def _dividing(n: int, most: int) -> int:
    """Return the largest number up to `most` by which n is divided, `most` if that is small."""
    return next((d for d in range(most, most // 2, -1) if n % d == 0), most)


def back_product(g: Array, w: Array) -> Array:
    """Return g @ w.T; what is the same for all rows, as gradients start, is multiplied once."""
    once = g[tuple(slice(0, 1) if step == 0 else slice(None) for step in g.strides[:-1])]
    gx = product(once, swap(w))
    if once.shape == g.shape:
        return gx
    return namespace(gx).broadcast_to(gx, (*g.shape[:-1], gx.shape[-1]))


def product_of_stacks(a: Array, b: Array) -> Array:
    """Return a @ b of stacks of matrices (attention heads), side by side where that pays."""
    if is_device(a) or min(a.ndim, b.ndim) < 3 or not splits() or a.dtype != b.dtype:
        return a @ b
    shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    count = min(shape[-3], _PARTS, math.prod(shape) * a.shape[-1] // _FEWEST_PRODUCTS)
    if count < 2 or a.shape[-1] != b.shape[-2]:
        return a @ b
    y = np.empty(shape, a.dtype)
    step = -(-shape[-3] // count)

    def block(i: int) -> None:
        some = (..., slice(i, i + step), slice(None), slice(None))
        np.matmul(*(x if x.shape[-3] == 1 else x[some] for x in (a, b)), out=y[some])

    each(block, range(0, shape[-3], step))
    return y


class Gemm(Sides, Linear, op="Gemm"):
    """y = alpha A B + beta C, A with data, B and C constant."""

    fresh = True

    def operand(self, inputs):
        x, w, c = (*inputs, None)[:3]
        w = w.T if self.transB else w
        w = w if self.alpha == 1 else (w * self.alpha).astype(w.dtype, copy=False)
        c = c if c is None or self.beta == 1 else (c * self.beta).astype(c.dtype, copy=False)
        return x, w, c

    def apply(self, x, w):
        return product(x.T if self.transA else x, w)

    def vjp(self, g, shape, w):
        gx = back_product(g, w)
        return swap(gx) if self.transA else gx


class GemmProduct(Product, op="Gemm"):
    """y = alpha A B + beta C with data in both factors and none in C."""

    @classmethod
    def accepts(cls, active):
        return active[0] and active[1] and not any(active[2:])

    def forward(self, a, b, c=None):
        z = self.alpha * ((a.T if self.transA else a) @ (b.T if self.transB else b))
        y = z if c is None else z + self.beta * c
        if y.shape != z.shape:
            raise ModelError(f"a bias of shape {c.shape} does not fit an output of {z.shape}")
        return y.astype(a.dtype, copy=False)

    def back(self, g, a, b, shapes):
        g = self.alpha * g
        ga = g @ (b if self.transB else swap(b))
        gb = swap(a.T if self.transA else a) @ g
        return (swap(ga) if self.transA else ga), (swap(gb) if self.transB else gb)

    def bias(self, rec):
        return None if len(rec.inputs) < 3 or rec.inputs[2] is None else self.beta * rec.inputs[2]


class MatMul(Sides, Linear, op="MatMul"):
    """y = x W, W constant; joined biases come as a third input."""

    fresh = True

    def apply(self, x, w):
        return product(x, w)

    def vjp(self, g, shape, w):
        if w.ndim == 1:
            return unbroadcast(g[..., None] * w, shape)
        if len(shape) == 1:
            return unbroadcast((g[..., None, :] @ swap(w))[..., 0, :], shape)
        return unbroadcast(back_product(g, w), shape)


class MatMulLeft(Linear, op="MatMul"):
    """y = W x, W constant."""

    data = (1,)

    def operand(self, inputs):
        w, x, b = (*inputs, None)[:3]
        return x, w, b

    def apply(self, x, w):
        return w @ x

    def vjp(self, g, shape, w):
        if len(shape) == 1:
            return unbroadcast((swap(w) @ g[..., None])[..., 0], shape)
        if w.ndim == 1:
            return unbroadcast(w[:, None] * g[..., None, :], shape)
        return unbroadcast(swap(w) @ g, shape)


class MatMulProduct(Product, op="MatMul"):
    """y = A B, both with data."""

    def forward(self, a, b):
        return product_of_stacks(a, b)

    def back(self, g, a, b, shapes):
        if a.ndim == 1 and b.ndim == 1:
            g = g[..., None]
            return unbroadcast(g * b, shapes[0]), unbroadcast(g * a, shapes[1])
        if a.ndim == 1:
            ga = (g[..., None, :] @ swap(b))[..., 0, :]
            return unbroadcast(ga, shapes[0]), unbroadcast(a[:, None] * g[..., None, :], shapes[1])
        if b.ndim == 1:
            gb = (swap(a) @ g[..., None])[..., 0]
            return unbroadcast(g[..., None] * b, shapes[0]), unbroadcast(gb, shapes[1])
        ga, gb = product_of_stacks(g, swap(b)), product_of_stacks(swap(a), g)
        return unbroadcast(ga, shapes[0]), unbroadcast(gb, shapes[1])


class Trilu(Routing, op="Trilu", since=14):
    """y = the triangle of x on and above (or below) the k-th diagonal, 0 elsewhere."""

    def _keep(self, x: Array, shape: Shape, k: Array | None) -> Array:
        """Return matrices of this shape, or signals for them, with 0 outside the triangle."""
        xp = namespace(x)
        (first,) = (0,) if k is None else host_ints(k)
        distance = xp.arange(shape[-1]) - xp.arange(shape[-2])[:, None]
        kept = distance >= first if self.upper else distance <= first
        return xp.where(kept, x, x.dtype.type(0))

    def forward(self, x, k=None):
        return self._keep(x, x.shape, k)

    def back(self, g, shape, rec):
        return self._keep(g, shape, rec.inputs[1] if len(rec.inputs) > 1 else None)


class Det(Axis, op="Det", since=11):
    """y = the determinant of each matrix in the last two axes."""

    def forward(self, x):
        return namespace(x).linalg.det(x).astype(x.dtype, copy=False)

    @staticmethod
    def _cofactors(x: Array) -> Array:
        """Return the gradient of the determinant, of matrices without an inverse too.

        From x = U S V' it is det(U) det(V) U S# V', S# with the products of the other values.
        """
        linalg = namespace(x).linalg
        u, s, v = linalg.svd(x)
        sign = (linalg.det(u) * linalg.det(v))[..., None, None]
        return sign * ((u * product_of_others(s)[..., None, :]) @ v)

    def vjp(self, g, x, y):
        return g[..., None, None] * self._cofactors(x)

    def relevance(self, rec, r, rule, note):
        """By contribution: elements times cofactors add up to n determinants.

        Their own sum is divided by: of a singular matrix the determinant is rounding only.
        """
        x = rec.inputs[0]
        parts = x * self._cofactors(x) / x.shape[-1]
        z = parts.sum(axis=(-2, -1))
        d = rule.rule.secure(z)
        s = r[0] / d
        if note is not None:
            note.add("stabiliser", s * (d - z))
        return self.at(0, parts * s[..., None, None])

    def deeplift(self, rec, ref, m, rule, parts):
        """The mean gradient on the way between the points: a polynomial of degree n - 1."""
        x, x0 = rec.inputs[0], ref.inputs[0]
        mean = mean_of_polynomial(self._cofactors, x0, x, x.shape[-1] - 1)
        return self.at(0, m[0][..., None, None] * mean)

    def connection(self, rec, g, rule):
        raise UnsupportedOpError("Det has no weights: connection weights are not defined")

    def describe(self, method):
        words = {
            "lrp": ("by contribution", True, "elements times cofactors, a convention"),
            "connection": ("", False, "not defined: a determinant has no weights"),
        }
        return words.get(method) or super().describe(method)


class BatchNormalization(Linear, op="BatchNormalization", since=7):
    """y = scale (x - mean) / sqrt(var + epsilon) + bias per channel, with stored statistics."""

    diagonal = True
    whole = True

    def setup(self):
        if getattr(self, "training_mode", 0):
            raise UnsupportedOpError(
                "BatchNormalization in training mode depends on the whole batch; "
                "export the model in inference mode"
            )

    def operand(self, inputs):
        x, scale, bias, mean, var = inputs
        xp = namespace(x)
        factor = scale / xp.sqrt(var + var.dtype.type(self.epsilon))
        shift = bias - mean * factor
        along = (1, -1) + (1,) * (x.ndim - 2) if x.ndim > 1 else (-1,)
        w, b = factor.reshape(along), shift.reshape(along)
        return x, w.astype(x.dtype, copy=False), b.astype(x.dtype, copy=False)

    def apply(self, x, w):
        return x * w

    def vjp(self, g, shape, w):
        return unbroadcast(g * w, shape)


class ChannelAffine(Linear, op="ChannelAffine", domain="onnxplain"):
    """y = w x + b, w and b constants: what Sub, Mul, Div and Add by constants are joined to."""

    diagonal = True

    def apply(self, x, w):
        return x * w

    def vjp(self, g, shape, w):
        return unbroadcast(g * w, shape)
