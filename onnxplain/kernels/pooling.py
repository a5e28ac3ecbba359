"""Pooling over windows and over everything."""

from __future__ import annotations

import math

from ..arrays import (
    Array,
    Shape,
    checked_shape,
    crop_spatial,
    namespace,
    offsets,
    pad_spatial,
    window_slices,
)
from .convolution import Windows, find_windows
from .families import Linear, Selector


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
        padded, win, out = self._padded(x)
        first, *rest = self._cells(win, out)
        y = padded[first].copy()
        for cell in rest:
            namespace(x).maximum(y, padded[cell], out=y)
        return y if self.n_outputs == 1 else (y, self._indices(x, y))

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
        spatial = [n + a + b for n, (a, b) in zip(shape[2:], win.pads, strict=True)]
        rows = g.shape[1]
        gx = namespace(g).zeros((g.shape[0], rows, shape[1], *spatial), g.dtype)
        for cell, won in self._winners(x, y):
            gx[cell] += g * won
        return crop_spatial(gx, win.pads)

    def pick(self, values, x, y):
        win, _ = pool_windows(self, x.shape[2:])
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
        gx = namespace(g).zeros((*g.shape[:3], *spatial), g.dtype)
        share = w * g / self._counts(shape[2:], win, out, g)
        for offset in offsets(win.kernel):
            gx[(..., *window_slices(offset, out, win.strides, win.dilations))] += share
        return crop_spatial(gx, win.pads)


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
