"""Pooling over windows and over everything."""

from __future__ import annotations

import math

import numpy as np

from ..arrays import (
    Array,
    Shape,
    checked_shape,
    crop_spatial,
    divide,
    host_ints,
    is_device,
    namespace,
    offsets,
    pad_spatial,
    window_slices,
)
from ..errors import DataError, ModelError, UnsupportedOpError
from ..fast import for_windows
from .base import joint_shape
from .convolution import Windows, find_windows, pad_pairs
from .families import Axis, Linear, Selector
from .indexing import Moves, lifted
from .routing import pad_or_crop

MAX_NORM = 64  # the largest p of p-norms: their secants have as many terms


def pool_windows(kernel_op: object, spatial: Shape) -> tuple[Windows, Shape]:
    """Return the windows of a pooling and their number; ceil_mode lengthens the end pads."""
    win = find_windows(kernel_op, spatial, kernel_op.kernel_shape)
    if not getattr(kernel_op, "ceil_mode", 0):
        return win, checked_shape(win.out(spatial))
    pads, out = [], []
    for n, (a, b), k, s, d in zip(
        spatial, win.pads, win.kernel, win.strides, win.dilations, strict=True
    ):
        span = d * (k - 1) + 1
        count = -(-(n + a + b - span) // s) + 1
        # A window that would start in the end padding does not count.
        count -= (count - 1) * s >= n + a
        pads.append((a, max(b, (count - 1) * s + span - n - a)))
        out.append(count)
    return win._replace(pads=tuple(pads)), checked_shape(out)


class MaxPool(Selector, op="MaxPool"):
    """y = the maximum of every window; padding never wins."""

    def _padded(self, x: Array) -> tuple[Array, Windows, Shape]:
        win, out = pool_windows(self, x.shape[2:])
        lowest = -math.inf if x.dtype.kind == "f" else int(namespace(x).iinfo(x.dtype).min)
        return pad_spatial(x, win.pads, lowest), win, out

    def _cells(self, win: Windows, out: Shape) -> list[tuple]:
        return [
            (..., *window_slices(o, out, win.strides, win.dilations)) for o in offsets(win.kernel)
        ]

    def forward(self, x):
        y = self._maxima(x)
        return y if self.n_outputs == 1 else (y, self._indices(x, y))

    def _maxima(self, x: Array) -> Array:
        fast = for_windows(x, x.ndim - 2)
        if fast:
            return fast.window_maxima(x, *pool_windows(self, x.shape[2:]))
        padded, win, out = self._padded(x)
        first, *rest = self._cells(win, out)
        y = padded[first].copy()
        for cell in rest:
            namespace(x).maximum(y, padded[cell], out=y)
        return y

    def _indices(self, x: Array, y: Array) -> Array:
        xp = namespace(x)
        shape = x.shape
        if getattr(self, "storage_order", 0):  # spatial axes counted column by column
            shape = (*shape[:2], *shape[:1:-1])
        places = xp.arange(x.size, dtype=xp.int64).reshape(shape)
        if getattr(self, "storage_order", 0):
            places = places.transpose(0, 1, *range(x.ndim - 1, 1, -1))
        return self.pick(places, x, y)

    def _winners(self, x: Array, y: Array):
        """Run through the cells of all windows with a mask of the windows each cell wins."""
        padded, win, out = self._padded(x)
        free = namespace(x).ones(y.shape, bool)
        for cell in self._cells(win, out):
            won = (padded[cell] == y) & free
            free &= ~won
            yield cell, won

    def send(self, g, x, y, shape):
        win, _ = pool_windows(self, shape[2:])
        fast = for_windows(x, len(win.kernel)) and for_windows(g, len(win.kernel))
        if fast:
            return fast.send_to_winners(g, x, y, shape, win)
        spatial = [n + a + b for n, (a, b) in zip(shape[2:], win.pads, strict=True)]
        rows = g.shape[1]
        gx = namespace(g).zeros((g.shape[0], rows, shape[1], *spatial), g.dtype)
        for cell, won in self._winners(x, y):
            gx[cell] += g * won
        return crop_spatial(gx, win.pads)

    def pick(self, values, x, y):
        win, _ = pool_windows(self, x.shape[2:])
        fast = for_windows(x, len(win.kernel)) and for_windows(values, len(win.kernel))
        if fast:
            return fast.pick_winners(values, x, y, win)
        padded = pad_spatial(values, win.pads)
        rows = max(values.shape[0], y.shape[0])
        out = namespace(values).zeros((rows, *y.shape[1:]), values.dtype)
        for cell, won in self._winners(x, y):
            out += padded[cell] * won
        return out

    def average(self, x):
        return _mean_pool(self).apply(x, 1.0)

    def average_vjp(self, g, shape):
        return _mean_pool(self).vjp(g, shape, 1.0)


def _mean_pool(pool: MaxPool) -> AveragePool:
    names = ("kernel_shape", "strides", "dilations", "pads", "auto_pad", "ceil_mode")
    attributes = {name: getattr(pool, name, None) for name in names}
    return AveragePool({**attributes, "count_include_pad": 0}, (True,))


class AveragePool(Linear, op="AveragePool"):
    """y = the mean of every window."""

    def operand(self, inputs):
        return inputs[0], 1.0, None

    def _sum(self, padded: Array, win: Windows, out: Shape) -> Array:
        fast = for_windows(padded, len(out))
        if fast:
            return fast.window_sums(padded, win._replace(pads=((0, 0),) * len(out)), out)
        total = namespace(padded).zeros((*padded.shape[:2], *out), padded.dtype)
        for offset in offsets(win.kernel):
            total += padded[(..., *window_slices(offset, out, win.strides, win.dilations))]
        return total

    def _counts(self, spatial: Shape, win: Windows, out: Shape, like: Array) -> Array:
        """Return how many cells each window averages over."""
        xp = namespace(like)
        if not self.count_include_pad:
            ones = pad_spatial(xp.ones((1, 1, *spatial), like.dtype), win.pads)
            return self._sum(ones, win, out)
        # Padding counts, but not what ceil_mode adds beyond it.
        asked = find_windows(self, spatial, self.kernel_shape).pads
        ones = xp.ones((1, 1, *(n + a + b for n, (a, b) in zip(spatial, asked, strict=True))))
        beyond = [(0, b - c) for (_, b), (_, c) in zip(win.pads, asked, strict=True)]
        return self._sum(pad_spatial(ones.astype(like.dtype), beyond), win, out)

    def apply(self, x, w):
        win, out = pool_windows(self, x.shape[2:])
        total = self._sum(pad_spatial(x, win.pads), win, out)
        return w * (total / self._counts(x.shape[2:], win, out, x))

    def vjp(self, g, shape, w):
        win, out = pool_windows(self, shape[2:])
        spatial = [n + a + b for n, (a, b) in zip(shape[2:], win.pads, strict=True)]
        share = w * g / self._counts(shape[2:], win, out, g)
        fast = for_windows(g, len(out))
        if fast:
            return fast.window_spread(share, (*g.shape[:3], *shape[2:]), win)
        gx = namespace(g).zeros((*g.shape[:3], *spatial), g.dtype)
        for offset in offsets(win.kernel):
            gx[(..., *window_slices(offset, out, win.strides, win.dilations))] += share
        return crop_spatial(gx, win.pads)


class WindowSum(AveragePool):
    """The sum of every window."""

    def _counts(self, spatial, win, out, like):
        return 1


class GlobalAveragePool(Linear, op="GlobalAveragePool"):
    """y = the mean over all spatial axes."""

    def operand(self, inputs):
        return inputs[0], 1.0, None

    def apply(self, x, w):
        return w * x.mean(axis=tuple(range(2, x.ndim)), keepdims=True)

    def vjp(self, g, shape, w):
        xp = namespace(g)
        share = w * g / math.prod(shape[2:])
        return xp.broadcast_to(share, (*g.shape[:3], *shape[2:]))

    def relevance(self, rec, r, rule, note):
        if rule.equal_shares:
            return self.at(0, self.vjp(r[0], rec.inputs[0].shape, 1.0))
        return super().relevance(rec, r, rule, note)


class GlobalMaxPool(Selector, op="GlobalMaxPool"):
    """y = the maximum over all spatial axes."""

    def _axes(self, x: Array) -> tuple[int, ...]:
        return tuple(range(2, x.ndim))

    def forward(self, x):
        return x.max(axis=self._axes(x), keepdims=True)

    def _winner(self, x: Array, y: Array) -> Array:
        """Return a mask of the first maximum of each channel."""
        xp = namespace(x)
        flat = x.reshape(*x.shape[:2], -1)
        first = flat.argmax(axis=-1)[..., None]
        return (xp.arange(flat.shape[-1]) == first).reshape(x.shape)

    def send(self, g, x, y, shape):
        return g * self._winner(x, y)

    def pick(self, values, x, y):
        return (values * self._winner(x, y)).sum(axis=self._axes(x), keepdims=True)

    def average(self, x):
        return x.mean(axis=self._axes(x), keepdims=True)

    def average_vjp(self, g, shape):
        return namespace(g).broadcast_to(
            g / math.prod(shape[2:]), (*g.shape[:2], *shape[1:2], *shape[2:])
        )


class LpPool(Axis, op="LpPool"):
    """y = the p-norm of every window; padding is 0.

    With Y = sum |x|^p the steps x to Y and Y to y have secants that are sums of positive products
    (a^p - b^p = (a - b) sum of a^k b^(p-1-k)), so that nothing cancels.
    """

    def setup(self):
        if not 1 <= self.p <= MAX_NORM:
            raise UnsupportedOpError(f"{self.op} with p={self.p}: expected 1 to {MAX_NORM}")

    def total(self, x: Array) -> Array:
        """Return the sum of every window."""
        return self._sums().apply(x, 1.0)

    def spread(self, g: Array, shape: Shape) -> Array:
        """Return the transpose of `total`."""
        return self._sums().vjp(g, shape, 1.0)

    def _sums(self) -> WindowSum:
        names = ("kernel_shape", "strides", "dilations", "pads", "auto_pad", "ceil_mode")
        attributes = {name: getattr(self, name, None) for name in names}
        return WindowSum(attributes, (True,))

    def forward(self, x):
        total = self.total(abs(x) ** self.p)
        return (total ** (1 / self.p)).astype(x.dtype, copy=False)

    def vjp(self, g, x, y):
        return self._multipliers(g, x, x, y, y, x.shape)

    def deeplift(self, rec, ref, m, rule, parts):
        x, x0, y, y0 = rec.inputs[0], ref.inputs[0], rec.outputs[0], ref.outputs[0]
        return self.at(0, self._multipliers(m[0], x, x0, y, y0, joint_shape(rec, ref, 0)))

    def _multipliers(self, g, x, x0, y, y0, shape):
        a, a0 = abs(x), abs(x0)
        share = self.spread(divide(g, _quotient(y, y0, self.p)), shape)
        return share * (_quotient(a, a0, self.p) * divide(x + x0, a + a0))

    def relevance(self, rec, r, rule, note):
        """Shares by powers, which add up to the power of the output."""
        x = rec.inputs[0]
        power = abs(x) ** self.p
        total = self.total(power)
        if note is not None:
            note.add("stabiliser", r[0] * (total == 0))
        return self.at(0, power * self.spread(divide(r[0], total), x.shape))

    def connection(self, rec, g, rule):
        raise UnsupportedOpError(f"{self.op} has no weights: connection weights are not defined")

    def describe(self, method):
        words = {
            "lrp": ("powers", True, "shared by powers, a convention"),
            "connection": ("", False, "not defined: a norm has no weights"),
        }
        return words.get(method) or super().describe(method)


def _quotient(a: Array, b: Array, p: int) -> Array:
    """Return (a^p - b^p) / (a - b), a^(p-1) p where they are equal."""
    total, power = 0 * b + 1, 1
    for _ in range(p - 1):
        power = power * b
        total = total * a + power
    return total


class GlobalLpPool(LpPool, op="GlobalLpPool"):
    """y = the p-norm over all spatial axes."""

    def total(self, x):
        return x.sum(axis=tuple(range(2, x.ndim)), keepdims=True)

    def spread(self, g, shape):
        return namespace(g).broadcast_to(g, (*g.shape[:3], *shape[2:]))


class MaxUnpool(Moves, op="MaxUnpool", since=9):
    """y = zeros, with x at the places from which a max-pooling took its maxima.

    Places are counted through the whole tensor; each row has those in itself.
    """

    def _shape(self, x: Array) -> Shape:
        n = x.ndim - 2
        pads = pad_pairs(self.pads, n)
        strides = self.strides or (1,) * n
        sizes = zip(x.shape[2:], strides, self.kernel_shape, pads, strict=True)
        spatial = ((m - 1) * s + k - a - b for m, s, k, (a, b) in sizes)
        return checked_shape((*x.shape[:2], *spatial))

    def check(self, x, indices, output_shape=None):
        if indices.shape != x.shape:
            raise ModelError(f"MaxUnpool of {x.shape} with indices of shape {indices.shape}")
        if is_device(indices) or not indices.size:
            return
        size = math.prod(self._shape(x)[1:])
        row = np.arange(len(x)).reshape((-1,) + (1,) * (x.ndim - 1))
        if bool((indices // size != row).any()):
            raise DataError("MaxUnpool wants places outside of the row they come from")

    def move(self, x, indices, output_shape=None):
        x, indices = lifted(x, indices)
        xp, shape = namespace(x), self._shape(x)
        n, size = shape[0], math.prod(shape[1:])
        y = xp.zeros((n, size), x.dtype)
        y[xp.arange(n)[:, None], indices.reshape((n, -1)) % size] = x.reshape((n, -1))
        y = y.reshape(shape)
        if output_shape is None:
            return y
        wanted = checked_shape((n, *host_ints(output_shape)[1:]))
        return pad_or_crop(y, [(0, b - a) for a, b in zip(shape, wanted, strict=True)], 0)

    def ways(self, rec, ref):
        # The shape asked for is that of the longer run; only the places may differ.
        if ref is None or rec.inputs[1] is ref.inputs[1]:
            return super().ways(rec, ref)
        shape = (rec if len(rec.inputs[0]) >= len(ref.inputs[0]) else ref).inputs[2:]
        runs = (run._replace(inputs=(*run.inputs[:2], *shape)) for run in (rec, ref))
        return super().ways(*runs)
