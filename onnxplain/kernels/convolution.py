"""Convolution and its transpose in any number of dimensions, as matrix products over windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

from .. import cpu_kernels, gpu_kernels
from ..arrays import (
    Array,
    Shape,
    checked_shape,
    crop_spatial,
    fold,
    host_ints,
    is_device,
    namespace,
    offsets,
    pad_spatial,
    unfold,
    window_slices,
)
from ..errors import ModelError
from ..threads import each
from . import winograd
from .families import Linear

# Unfolded windows are made for so many bytes at a time: they stay near the cache.
_BLOCK_BYTES = 16 * 2**20
# Planes of depthwise convolutions are swept once per cell of the kernel: they stay in the cache.
_PLANES_BYTES = 2**20


class Windows(NamedTuple):
    """Where the windows of a convolution or pooling lie."""

    kernel: Shape
    strides: Shape
    dilations: Shape
    pads: tuple[tuple[int, int], ...]

    def out(self, spatial: Sequence[int]) -> Shape:
        """Return how many windows fit along each axis."""
        return tuple(
            (n + a + b - d * (k - 1) - 1) // s + 1
            for n, (a, b), k, s, d in zip(
                spatial, self.pads, self.kernel, self.strides, self.dilations, strict=True
            )
        )


def same_pads(
    spatial: Sequence[int], kernel: Shape, strides: Shape, dilations: Shape, lower: bool
) -> tuple[tuple[int, int], ...]:
    """Return the padding of auto_pad SAME_UPPER or SAME_LOWER."""
    pads = []
    for n, k, s, d in zip(spatial, kernel, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        small, large = total // 2, total - total // 2
        pads.append((large, small) if lower else (small, large))
    return tuple(pads)


def pad_pairs(pads: Sequence[int] | None, n: int) -> tuple[tuple[int, int], ...]:
    """Turn ONNX's pads (all begins, then all ends) into pairs per axis."""
    pads = tuple(pads) if pads is not None else (0,) * (2 * n)
    return tuple(zip(pads[:n], pads[n:], strict=True))


def find_windows(kernel_op: object, spatial: Sequence[int], kernel: Sequence[int]) -> Windows:
    """Read strides, dilations, pads and auto_pad of a node for an input of this size."""
    n = len(spatial)
    kernel = tuple(int(k) for k in kernel)
    if len(kernel) != n:
        raise ModelError(f"a kernel of shape {kernel} does not fit an input of {n} dimensions")
    strides = tuple(getattr(kernel_op, "strides", None) or (1,) * n)
    dilations = tuple(getattr(kernel_op, "dilations", None) or (1,) * n)
    auto = getattr(kernel_op, "auto_pad", None) or "NOTSET"
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = same_pads(spatial, kernel, strides, dilations, auto == "SAME_LOWER")
    elif auto == "VALID":
        pads = ((0, 0),) * n
    else:
        pads = pad_pairs(getattr(kernel_op, "pads", None), n)
    return Windows(kernel, strides, dilations, pads)


def _blocks(rows: int, bytes_per_row: int) -> list[slice]:
    step = max(1, _BLOCK_BYTES // max(bytes_per_row, 1))
    return [slice(i, min(i + step, rows)) for i in range(0, rows, step)]


def _columns(x: Array, win: Windows, out: Shape) -> Array:
    """Return all windows of a padded input as (n, c, cells, windows)."""
    n, c = x.shape[:2]
    cells, count = math.prod(win.kernel), math.prod(out)
    if cells == 1 and all(s == 1 for s in win.strides):
        return x.reshape(n, c, 1, count)
    columns = namespace(x).empty((n, c, cells, *out), x.dtype)
    for i, offset in enumerate(offsets(win.kernel)):
        columns[:, :, i] = x[(..., *window_slices(offset, out, win.strides, win.dilations))]
    return columns.reshape(n, c, cells, count)


def convolve(
    x: Array, w: Array, win: Windows, groups: int, fast: bool = True, bias: Array | None = None
) -> Array:
    """Return the convolution of x (n, c, ...) with w (o, c / groups, ...), plus bias (o)."""
    out = checked_shape(win.out(x.shape[2:]))
    if cpu_kernels.serves(x, len(out)):
        if fast and winograd.is_possible(w, win, groups) and cpu_kernels.winograd_pays(x, w, out):
            return cpu_kernels.winograd(x, w, win.pads, bias)
        return cpu_kernels.convolve(x, w, win, groups, out, bias)
    if fast and winograd.pays(w, win, groups, out):
        y = winograd.convolve(x, w, win.pads)
    elif gpu_kernels.serves(x, len(out)):
        y = gpu_kernels.convolve(x, w, win, groups, out)
    else:
        y = _by_windows(x, w, win, groups, out)
    return y if bias is None else namespace(y).add(y, _along_channels(bias, y.ndim), out=y)


def _along_channels(b: Array, ndim: int) -> Array:
    return b.reshape(1, -1, *(1,) * (ndim - 2))


def _by_windows(x: Array, w: Array, win: Windows, groups: int, out: Shape) -> Array:
    """Unfold all windows and multiply them with the kernels."""
    (n, c), o = x.shape[:2], w.shape[0]
    padded = pad_spatial(x, win.pads)
    if groups == c == o:
        return _depthwise(padded, w, win, out)
    matrix = w.reshape(groups, o // groups, -1)
    y = namespace(x).empty((n, o, *out), x.dtype)
    cells, count = math.prod(win.kernel), math.prod(out)
    for rows in _blocks(n, c * cells * count * x.itemsize):
        columns = _columns(padded[rows], win, out).reshape(-1, groups, c // groups * cells, count)
        y[rows] = (matrix @ columns).reshape(-1, o, *out)
    return y


def _depthwise(padded: Array, w: Array, win: Windows, out: Shape) -> Array:
    """One filter per channel: shifted sums, no matrix product to win from."""
    xp = namespace(padded)
    y = xp.zeros((*padded.shape[:2], *out), padded.dtype)

    def block(part: tuple[slice, slice]) -> None:
        x, total, v = padded[part], y[part], w[part[1]]
        term = xp.empty(total.shape, total.dtype)
        for offset in offsets(win.kernel):
            cells = x[(..., *window_slices(offset, out, win.strides, win.dilations))]
            total += xp.multiply(cells, _per_channel(v, offset), out=term)

    each(block, _plane_blocks(y))
    return y


def _depthwise_back(g: Array, w: Array, win: Windows, gx: Array) -> None:
    """Add the transpose of `_depthwise` to a padded signal."""
    xp, out = namespace(g), g.shape[2:]

    def block(part: tuple[slice, slice]) -> None:
        signal, total, v = g[part], gx[part], w[part[1]]
        term = xp.empty(signal.shape, signal.dtype)
        for offset in offsets(win.kernel):
            where = (..., *window_slices(offset, out, win.strides, win.dilations))
            total[where] += xp.multiply(signal, _per_channel(v, offset), out=term)

    each(block, _plane_blocks(g))


def _per_channel(w: Array, offset: Shape) -> Array:
    return w[(slice(None), 0, *offset)].reshape(-1, *(1,) * (w.ndim - 2))


def _plane_blocks(x: Array) -> list[tuple[slice, slice]]:
    """Cut (n, c, ...) into rows and channels that stay in the cache."""
    n, c = x.shape[:2]
    if is_device(x):
        return [(slice(0, n), slice(0, c))]
    planes = max(1, _PLANES_BYTES // max(x[:1, :1].nbytes, 1))
    channels, rows = min(planes, c), max(1, planes // c)
    return [
        (slice(i, i + rows), slice(j, j + channels))
        for i in range(0, n, rows)
        for j in range(0, c, channels)
    ]


def convolve_back(
    g: Array, shape: Shape, w: Array, win: Windows, groups: int, fast: bool = True
) -> Array:
    """Return the transpose of `convolve`: g (n, o, ...) back to `shape` (n, c, ...)."""
    xp = namespace(g)
    n, c, *spatial = shape
    o, out = g.shape[1], g.shape[2:]
    fast = fast and winograd.is_possible(w, win, groups) and win.out(spatial) == out
    if cpu_kernels.serves(g, len(out)):
        if fast and cpu_kernels.winograd_pays(g, w, shape[2:]):
            pads = [(2 - a, 2 - b) for a, b in win.pads]
            return cpu_kernels.winograd(g, w, pads, turned=True)
        return cpu_kernels.convolve_back(g, shape, w, win, groups)
    if fast and winograd.pays(w, win, groups, shape[2:]):
        return winograd.convolve_back(g, w, win.pads)
    if gpu_kernels.serves(g, len(out)):
        return gpu_kernels.convolve_back(g, shape, w, win, groups)
    padded = [s + a + b for s, (a, b) in zip(spatial, win.pads, strict=True)]
    gx = xp.zeros((n, c, *padded), g.dtype)
    if groups == c == o:
        _depthwise_back(g, w, win, gx)
        return crop_spatial(gx, win.pads)
    matrix = w.reshape(groups, o // groups, -1).swapaxes(1, 2)
    cells, count = math.prod(win.kernel), math.prod(out)
    for rows in _blocks(n, c * cells * count * g.itemsize):
        columns = matrix @ g[rows].reshape(-1, groups, o // groups, count)
        columns = columns.reshape(-1, c, cells, *out)
        for i, offset in enumerate(offsets(win.kernel)):
            where = (..., *window_slices(offset, out, win.strides, win.dilations))
            gx[rows][where] += columns[:, :, i]
        del columns  # before the next ones are made
    return crop_spatial(gx, win.pads)


class Conv(Linear, op="Conv"):
    """Convolution with constant weights (o, c / group, ...) and bias (o)."""

    fast = True  # where there is a way with fewer products
    fresh = True

    def operand(self, inputs):
        x, w, b = (*inputs, None)[:3]
        return x, w, None if b is None else _along_channels(b, x.ndim)

    def _windows(self, shape: Shape, w: Array) -> Windows:
        return find_windows(self, shape[2:], w.shape[2:])

    def apply(self, x, w):
        return convolve(x, w, self._windows(x.shape, w), self.group, self.fast)

    def _shifted(self, x, w, b):
        if b is None or b.size != len(w) or b.dtype != x.dtype:
            return super()._shifted(x, w, b)
        windows = self._windows(x.shape, w)
        return convolve(x, w, windows, self.group, self.fast, b.reshape(-1))

    def vjp(self, g, shape, w):
        shape = (g.shape[0] * g.shape[1], *shape[1:])
        gx = convolve_back(fold(g), shape, w, self._windows(shape, w), self.group, self.fast)
        return unfold(gx, g.shape[0])

    def direct(self):
        kernel = copy(self)
        kernel.fast = False
        return kernel


class ConvTranspose(Linear, op="ConvTranspose"):
    """The transpose of a convolution as a layer; weights (c, o / group, ...)."""

    operand = Conv.operand

    def _geometry(self, spatial: Sequence[int], w: Array) -> tuple[Windows, Shape]:
        """Return the windows of the convolution it transposes, and the output size."""
        n = len(spatial)
        kernel = tuple(w.shape[2:])
        strides = tuple(self.strides or (1,) * n)
        dilations = tuple(self.dilations or (1,) * n)
        extra = tuple(self.output_padding or (0,) * n)
        full = [
            s * (i - 1) + e + d * (k - 1) + 1
            for i, s, e, d, k in zip(spatial, strides, extra, dilations, kernel, strict=True)
        ]
        pads = self._pads(spatial, full, strides)
        out = tuple(f - a - b for f, (a, b) in zip(full, pads, strict=True))
        if self.output_shape:  # may be larger than the windows reach
            out = tuple(self.output_shape)[-n:]
        return Windows(kernel, strides, dilations, pads), checked_shape(out)

    def _pads(self, spatial, full, strides):
        auto = self.auto_pad or "NOTSET"
        if self.output_shape:
            want = tuple(self.output_shape)[-len(full) :]
        elif auto in ("SAME_UPPER", "SAME_LOWER"):
            want = tuple(i * s for i, s in zip(spatial, strides, strict=True))
        else:
            return pad_pairs(None if auto == "VALID" else self.pads, len(full))
        totals = [max(f - w, 0) for f, w in zip(full, want, strict=True)]
        halves = [(t // 2, t - t // 2) for t in totals]
        # output_shape puts the larger half first unless SAME_UPPER is asked for.
        return tuple(halves if auto == "SAME_UPPER" else [(b, a) for a, b in halves])

    def apply(self, x, w):
        win, out = self._geometry(x.shape[2:], w)
        shape = (x.shape[0], w.shape[1] * self.group, *out)
        return convolve_back(x, shape, w, win, self.group)

    def vjp(self, g, shape, w):
        win, _ = self._geometry(shape[2:], w)
        gx = convolve(fold(g), w, win, self.group)
        return unfold(gx[(..., *(slice(0, n) for n in shape[2:]))], g.shape[0])


class Col2Im(Linear, op="Col2Im", since=18):
    """y = an image in which columns (n, c cells, windows) are added where their windows lie."""

    def operand(self, inputs):
        x, image, block = inputs
        return x, (tuple(host_ints(image)), tuple(host_ints(block))), None

    def split(self, w):
        return w, None

    def map_weights(self, w, f):
        return w

    def _windows(self, w: tuple[Shape, Shape], windows: int) -> tuple[Windows, Shape]:
        image, block = w
        win = find_windows(self, image, block)
        out = win.out(image)
        if math.prod(out) != windows or min(out, default=0) < 0:
            raise ModelError(f"Col2Im of {windows} columns, but an image has {out} windows")
        return win, out

    def apply(self, x, w):
        win, out = self._windows(w, x.shape[2])
        n, cells = x.shape[0], math.prod(win.kernel)
        columns = x.reshape((n, x.shape[1] // cells, cells, *out))
        padded = [m + a + b for m, (a, b) in zip(w[0], win.pads, strict=True)]
        y = namespace(x).zeros(checked_shape((*columns.shape[:2], *padded)), x.dtype)
        for i, offset in enumerate(offsets(win.kernel)):
            y[(..., *window_slices(offset, out, win.strides, win.dilations))] += columns[:, :, i]
        return crop_spatial(y, win.pads)

    def vjp(self, g, shape, w):
        win, out = self._windows(w, shape[2])
        columns = _columns(pad_spatial(fold(g), win.pads), win, out)
        return unfold(columns.reshape((columns.shape[0], *shape[1:])), g.shape[0])
