"""Kernels for NVIDIA GPUs where an array library would take many launches: windows and their sums.

Convolutions are matrix products of cuBLAS over columns, one launch to make them and one to add them
back; 3 x 3 kernels of stride 1 go by Winograd's F(2, 3). Whatever goes back from windows to an
image is gathered by the cells of the image, so that no two threads write to the same place and
sums have one order. Everything has up to three spatial axes, missing ones have length 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from .arrays import Array, Shape, is_device, namespace

# What is unfolded at a time; a GPU wants large matrices.
_BLOCK_BYTES = 256 * 2**20
_THREADS = 256
_MOST_BLOCKS = 2**16  # threads take several elements where there are more
_WIDE_FROM = 2**30  # elements from which on indices have 64 bits, which divide slowly
_TYPES = {"float32": "float", "float64": "double"}

SOURCE = r"""
#define EACH(t, total) \
    for (INDEX t = (INDEX)blockIdx.x * blockDim.x + threadIdx.x; t < (total); \
         t += (INDEX)blockDim.x * gridDim.x)

// Sizes of an image, a window, the grid of windows; strides, dilations, padding before the image.
#define WINDOWS \
    int D, int H, int W, int KD, int KH, int KW, int OD, int OH, int OW, \
    int SD, int SH, int SW, int ED, int EH, int EW, int PD, int PH, int PW

#define CELLS \
    for (int a = 0; a < KD; ++a) for (int b = 0; b < KH; ++b) for (int e = 0; e < KW; ++e)

// Takes t apart into a plane and a place (i, j, k) of sizes (I, J, K).
#define PLACE(t, I, J, K) \
    const int k = t % (K), j = t / (K) % (J), i = t / (K) / (J) % (I); \
    const INDEX plane = t / (K) / (J) / (I);

// Where cell (a, b, e) of window (i, j, k) lies in the image.
#define CELL_IN_IMAGE \
    const int d = i * SD + a * ED - PD, h = j * SH + b * EH - PH, w = k * SW + e * EW - PW; \
    const bool inside = 0 <= d && d < D && 0 <= h && h < H && 0 <= w && w < W; \
    const INDEX cell = ((INDEX)d * H + h) * W + w;

// Which window has place (i, j, k) of the image as its cell (a, b, e).
#define WINDOW_OF_CELL \
    const int d = i + PD - a * ED, h = j + PH - b * EH, w = k + PW - e * EW; \
    const bool there = 0 <= d && 0 <= h && 0 <= w && d % SD == 0 && h % SH == 0 && w % SW == 0 \
        && d / SD < OD && h / SH < OH && w / SW < OW; \
    const INDEX window = ((INDEX)(d / SD) * OH + h / SH) * OW + w / SW;

// y[channel, cell, image, window] = x[image, channel, where the cell of the window lies]
extern "C" __global__ void to_columns(
    const REAL* x, REAL* y, INDEX total, INDEX images, INDEX channels, WINDOWS)
{
    const INDEX count = (INDEX)OD * OH * OW, size = (INDEX)D * H * W;
    EACH(t, total) {
        PLACE(t, OD, OH, OW)
        const INDEX image = plane % images, channel = plane / images;
        const REAL* from = x + (image * channels + channel) * size;
        REAL* to = y + (channel * KD * KH * KW * images + image) * count + t % count;
        CELLS {
            CELL_IN_IMAGE
            *to = inside ? from[cell] : REAL(0);
            to += images * count;
        }
    }
}

// x[image, channel, place] = the sum of y[channel, cell, image, window] over what lies there
extern "C" __global__ void from_columns(
    const REAL* y, REAL* x, INDEX total, INDEX images, INDEX channels, WINDOWS)
{
    const INDEX count = (INDEX)OD * OH * OW;
    EACH(t, total) {
        PLACE(t, D, H, W)
        const INDEX image = plane / channels, channel = plane % channels;
        const REAL* from = y + (channel * KD * KH * KW * images + image) * count;
        REAL sum = 0;
        CELLS {
            WINDOW_OF_CELL
            if (there) sum += from[window];
            from += images * count;
        }
        x[t] = sum;
    }
}

// y[plane, window] = the sum of filters[channel, cell] x over the cells
extern "C" __global__ void window_sums(
    const REAL* x, const REAL* filters, REAL* y, INDEX total, INDEX channels, WINDOWS)
{
    const INDEX size = (INDEX)D * H * W;
    EACH(t, total) {
        PLACE(t, OD, OH, OW)
        const REAL* from = x + plane * size;
        const REAL* filter = filters + plane % channels * KD * KH * KW;
        REAL sum = 0;
        CELLS {
            CELL_IN_IMAGE
            if (inside) sum += from[cell] * *filter;
            ++filter;
        }
        y[t] = sum;
    }
}

// The transpose of window_sums.
extern "C" __global__ void window_spread(
    const REAL* y, const REAL* filters, REAL* x, INDEX total, INDEX channels, WINDOWS)
{
    const INDEX count = (INDEX)OD * OH * OW;
    EACH(t, total) {
        PLACE(t, D, H, W)
        const REAL* from = y + plane * count;
        const REAL* filter = filters + plane % channels * KD * KH * KW;
        REAL sum = 0;
        CELLS {
            WINDOW_OF_CELL
            if (there) sum += from[window] * *filter;
            ++filter;
        }
        x[t] = sum;
    }
}

// y[plane, window] = the maximum of the window; NaN stays, padding never wins
extern "C" __global__ void window_maxima(const REAL* x, REAL* y, INDEX total, WINDOWS)
{
    const INDEX size = (INDEX)D * H * W;
    EACH(t, total) {
        PLACE(t, OD, OH, OW)
        const REAL* from = x + plane * size;
        REAL most = (REAL)(-1.0 / 0.0);
        CELLS {
            CELL_IN_IMAGE
            if (inside && (from[cell] > most || from[cell] != from[cell])) most = from[cell];
        }
        y[t] = most;
    }
}

// winners[plane, window] = the first cell of the window that is y, -1 if none is
extern "C" __global__ void window_winners(
    const REAL* x, const REAL* y, int* winners, INDEX total, INDEX x_planes, INDEX y_planes,
    WINDOWS)
{
    const INDEX count = (INDEX)OD * OH * OW, size = (INDEX)D * H * W;
    EACH(t, total) {
        PLACE(t, OD, OH, OW)
        const REAL* from = x + plane % x_planes * size;
        const REAL most = y[plane % y_planes * count + t % count];
        int winner = -1;
        CELLS {
            CELL_IN_IMAGE
            if (inside && winner < 0 && from[cell] == most) winner = (int)cell;
        }
        winners[t] = winner;
    }
}

// x[plane, place] = the sum of y over the windows that the place wins
extern "C" __global__ void send_to_winners(
    const REAL* y, const int* winners, REAL* x, INDEX total, INDEX planes, WINDOWS)
{
    const INDEX count = (INDEX)OD * OH * OW, size = (INDEX)D * H * W;
    EACH(t, total) {
        PLACE(t, D, H, W)
        const REAL* from = y + plane * count;
        const int* winner = winners + plane % planes * count;
        REAL sum = 0;
        CELLS {
            WINDOW_OF_CELL
            if (there && winner[window] == t % size) sum += from[window];
        }
        x[t] = sum;
    }
}

// y[plane, window] = the value of the cell that wins, 0 if none does
extern "C" __global__ void pick_winners(
    const REAL* x, const int* winners, REAL* y, INDEX total, INDEX x_planes, INDEX planes,
    INDEX size, INDEX count)
{
    EACH(t, total) {
        const INDEX plane = t / count, window = t % count;
        const int winner = winners[plane % planes * count + window];
        y[t] = winner < 0 ? REAL(0) : x[plane % x_planes * size + winner];
    }
}

// Winograd's F(2, 3): tiles of 4 x 4 that overlap by 2, (high, wide) of them in an image.
#define TILE(t) \
    const INDEX tile_x = t % wide, tile_y = t / wide % high; \
    const int row = 2 * (int)tile_y - top, column = 2 * (int)tile_x - left;

#define DIFFERENCES(to, d0, d1, d2, d3) \
    to(0) = d0 - d2; to(1) = d1 + d2; to(2) = d2 - d1; to(3) = d1 - d3;

// v[16, channel, image, tile]: the tiles of the images, transformed along both axes
extern "C" __global__ void winograd_tiles(
    const REAL* x, REAL* v, INDEX total, INDEX images, INDEX channels, int H, int W,
    int top, int left, int high, int wide)
{
    EACH(t, total) {
        TILE(t)
        const INDEX plane = t / wide / high, image = plane % images, channel = plane / images;
        const REAL* from = x + (image * channels + channel) * H * W;
        REAL d[4][4], half[4][4];
        for (int a = 0; a < 4; ++a) for (int b = 0; b < 4; ++b) {
            const int h = row + a, w = column + b;
            const bool inside = 0 <= h && h < H && 0 <= w && w < W;
            d[a][b] = inside ? from[(INDEX)h * W + w] : REAL(0);
        }
        for (int b = 0; b < 4; ++b) {
            #define TO(a) half[a][b]
            DIFFERENCES(TO, d[0][b], d[1][b], d[2][b], d[3][b])
            #undef TO
        }
        for (int a = 0; a < 4; ++a) {
            #define TO(b) v[(4 * a + b) * total + t]
            DIFFERENCES(TO, half[a][0], half[a][1], half[a][2], half[a][3])
            #undef TO
        }
    }
}

// heard[image, tile]: a bit for each of the 2 x 2 outputs that sees anything but zeros
extern "C" __global__ void winograd_heard(
    const REAL* x, unsigned char* heard, INDEX total, INDEX channels, int H, int W,
    int top, int left, int high, int wide)
{
    EACH(t, total) {
        TILE(t)
        const INDEX image = t / wide / high, size = (INDEX)H * W;
        int bits = 0;
        for (int a = 0; a < 4; ++a) for (int b = 0; b < 4; ++b) {
            const int h = row + a, w = column + b;
            if (h < 0 || h >= H || w < 0 || w >= W) continue;
            const REAL* at = x + image * channels * size + (INDEX)h * W + w;
            bool loud = false;
            for (INDEX c = 0; c < channels && !loud; ++c) loud = at[c * size] != 0;
            if (!loud) continue;
            if (a < 3 && b < 3) bits |= 1;
            if (a < 3 && b > 0) bits |= 2;
            if (a > 0 && b < 3) bits |= 4;
            if (a > 0 && b > 0) bits |= 8;
        }
        heard[t] = (unsigned char)bits;
    }
}

// y[image, channel, 2 x 2 outputs of each tile] of products m[16, channel, image, tile]
extern "C" __global__ void winograd_outputs(
    const REAL* m, const unsigned char* heard, REAL* y, INDEX total, INDEX images, INDEX channels,
    int H, int W, int high, int wide)
{
    EACH(t, total) {
        const int tile_x = t % wide, tile_y = t / wide % high;
        const INDEX tiles = (INDEX)high * wide, plane = t / tiles;
        const INDEX image = plane % images, channel = plane / images;
        const int bits = heard[image * tiles + t % tiles];
        REAL half[2][4];
        for (int b = 0; b < 4; ++b) {
            const REAL m0 = m[b * total + t], m1 = m[(4 + b) * total + t];
            const REAL m2 = m[(8 + b) * total + t], m3 = m[(12 + b) * total + t];
            half[0][b] = m1 + m2 + m0;
            half[1][b] = m1 - m2 - m3;
        }
        REAL* to = y + (image * channels + channel) * H * W;
        for (int a = 0; a < 2; ++a) for (int b = 0; b < 2; ++b) {
            const int h = 2 * tile_y + a, w = 2 * tile_x + b;
            if (h >= H || w >= W) continue;
            const REAL sum = b ? half[a][1] - half[a][2] - half[a][3]
                            : half[a][1] + half[a][2] + half[a][0];
            to[(INDEX)h * W + w] = bits >> (2 * a + b) & 1 ? sum : REAL(0);
        }
    }
}
"""

enabled = True  # False: every kernel takes the way of the array library


def serves(x: Array, axes: int) -> bool:
    """Tell whether kernels of this module work on `x`, of so many spatial axes."""
    return enabled and is_device(x) and axes <= 3 and x.dtype.name in _TYPES


# -- launches -------------------------------------------------------------------------------------


def options(dtype: Any, wide: bool) -> tuple[str, ...]:
    """Return the options of the compiler for a type, and indices of 64 bits or 32."""
    return (f"-DREAL={_TYPES[np.dtype(dtype).name]}", f"-DINDEX={'long long' if wide else 'int'}")


@cache
def _kernel(cupy: Any, name: str, dtype: str, wide: bool) -> Any:
    return cupy.RawKernel(SOURCE, name, options=options(dtype, wide))


def _launch(name: str, arrays: Sequence[Array], total: int, *numbers: Any) -> None:
    """Start a thread per element of `total`; the first array tells the type."""
    wide = max(total, *(x.size for x in arrays)) >= _WIDE_FROM
    index = np.int64 if wide else np.int32
    arguments = [index(n) if isinstance(n, int) else n for n in (total, *numbers)]
    blocks = min(-(-total // _THREADS), _MOST_BLOCKS)
    if blocks:
        kernel = _kernel(namespace(*arrays), name, arrays[0].dtype.name, wide)
        kernel((blocks,), (_THREADS,), (*arrays, *arguments))


def _ints(*numbers: int) -> list[Any]:
    """Return arguments that are int whatever the index is."""
    return [np.int32(n) for n in numbers]


def _three(sizes: Sequence[int], missing: int = 1) -> tuple[int, ...]:
    return (*(missing,) * (3 - len(sizes)), *sizes)


def _windows(image: Sequence[int], out: Sequence[int], win: Any) -> list[Any]:
    """Return the arguments WINDOWS of the kernels."""
    before = [a for a, _ in win.pads]
    sizes = (image, win.kernel, out, win.strides, win.dilations)
    return _ints(*(n for size in sizes for n in _three(size)), *_three(before, 0))


def _flat(x: Array) -> Array:
    """Return `x` in one piece, as kernels read it."""
    return namespace(x).ascontiguousarray(x)


def _blocks(rows: int, bytes_per_row: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // max(bytes_per_row, 1))
    return (slice(i, min(i + step, rows)) for i in range(0, rows, step))


# -- convolution ----------------------------------------------------------------------------------


def convolve(x: Array, w: Array, win: Any, groups: int, out: Shape) -> Array:
    """Return the convolution of x (n, c, ...) with w (o, c / groups, ...)."""
    (n, c, *image), o = x.shape, w.shape[0]
    if groups == c == o:
        return window_sums(x, win, out, w)
    xp, cells, count = namespace(x), math.prod(win.kernel), math.prod(out)
    x, matrix = _flat(x), _matrices(w, groups)
    y = xp.empty((n, o, *out), x.dtype)
    for rows in _blocks(n, (c * cells + o) * count * x.itemsize):
        part = x[rows]
        columns = xp.empty((*matrix.shape[:-2], matrix.shape[-1], len(part) * count), x.dtype)
        numbers = (c * len(part) * count, len(part), c)
        _launch("to_columns", (part, columns), *numbers, *_windows(image, out, win))
        y[rows] = (matrix @ columns).reshape(o, len(part), *out).swapaxes(0, 1)
    return y


def convolve_back(g: Array, shape: Shape, w: Array, win: Any, groups: int) -> Array:
    """Return the transpose of `convolve`: g (n, o, ...) back to `shape` (n, c, ...)."""
    (n, c, *image), (o, *out) = shape, g.shape[1:]
    if groups == c == o:
        return window_spread(g, shape, win, w)
    xp, cells, count = namespace(g), math.prod(win.kernel), math.prod(out)
    matrix = _matrices(w, groups).swapaxes(-1, -2)
    gx = xp.empty(shape, g.dtype)
    for rows in _blocks(n, (c * cells + o) * count * g.itemsize):
        part = gx[rows]
        signal = g[rows].swapaxes(0, 1).reshape(*matrix.shape[:-2], matrix.shape[-1], -1)
        columns = _flat(matrix @ signal)
        numbers = (part.size, len(part), c)
        _launch("from_columns", (columns, part), *numbers, *_windows(image, out, win))
    return gx


def _matrices(w: Array, groups: int) -> Array:
    """Return kernels as one matrix, or one per group."""
    shape = (len(w), -1) if groups == 1 else (groups, len(w) // groups, -1)
    return w.reshape(shape)


def winograd(x: Array, u: Array, pads: Sequence[tuple[int, int]]) -> Array:
    """Return a 3 x 3 convolution of x (n, c, h, w) with transformed kernels (16, o, c)."""
    xp, (n, c, h, w), o = namespace(x), x.shape, u.shape[1]
    (top, bottom), (left, right) = pads
    out = (h + top + bottom - 2, w + left + right - 2)
    high, wide = -(-out[0] // 2), -(-out[1] // 2)
    tiles, x = high * wide, _flat(x)
    y = xp.empty((n, o, *out), x.dtype)
    for rows in _blocks(n, 16 * (c + o) * tiles * x.itemsize):
        part, there = x[rows], y[rows]
        k = len(part) * tiles
        v, heard = xp.empty((16, c, k), x.dtype), xp.empty(k, np.uint8)
        place = _ints(h, w, top, left, high, wide)
        _launch("winograd_tiles", (part, v), c * k, len(part), c, *place)
        _launch("winograd_heard", (part, heard), k, c, *place)
        m, numbers = xp.matmul(u, v), (o * k, len(part), o)
        _launch("winograd_outputs", (m, heard, there), *numbers, *_ints(*out, high, wide))
    return y


# -- pooling --------------------------------------------------------------------------------------


def window_sums(x: Array, win: Any, out: Shape, filters: Array | None = None) -> Array:
    """Return the sums of all windows of x (n, c, ...), weighted by filters (c, 1, ...)."""
    xp, (n, c, *image) = namespace(x), x.shape
    y = xp.empty((n, c, *out), x.dtype)
    filters, channels = _filters(x, win, filters)
    _launch("window_sums", (_flat(x), filters, y), y.size, channels, *_windows(image, out, win))
    return y


def window_spread(g: Array, shape: Shape, win: Any, filters: Array | None = None) -> Array:
    """Return the transpose of `window_sums`: g (..., *out) back to `shape`."""
    out, image = g.shape[-len(win.kernel) :], shape[-len(win.kernel) :]
    gx = namespace(g).empty(shape, g.dtype)
    filters, channels = _filters(g, win, filters)
    _launch("window_spread", (_flat(g), filters, gx), gx.size, channels, *_windows(image, out, win))
    return gx


def _filters(x: Array, win: Any, filters: Array | None) -> tuple[Array, int]:
    """Return filters and their number; one of ones, for all channels, if none are given."""
    if filters is None:
        return namespace(x).ones(math.prod(win.kernel), x.dtype), 1
    return _flat(filters), len(filters)


def window_maxima(x: Array, win: Any, out: Shape) -> Array:
    """Return the maximum of every window of x (n, c, ...)."""
    y = namespace(x).empty((*x.shape[:2], *out), x.dtype)
    _launch("window_maxima", (_flat(x), y), y.size, *_windows(x.shape[2:], out, win))
    return y


def _winners(x: Array, y: Array, win: Any) -> Array:
    """Return the first cell of each window of x that is y, counted through a plane; -1 if none."""
    rows, (c, *out) = max(len(x), len(y)), y.shape[1:]
    winners = namespace(x).empty((rows, c, *out), np.int32)
    planes = (len(x) * c, len(y) * c)
    numbers = (winners.size, *planes, *_windows(x.shape[2:], out, win))
    _launch("window_winners", (_flat(x), _flat(y), winners), *numbers)
    return winners


def send_to_winners(g: Array, x: Array, y: Array, shape: Shape, win: Any) -> Array:
    """Return a signal g (outputs, n, c, ...) at the cells that gave the maxima y of x."""
    winners = _winners(x, y, win)
    gx = namespace(g).empty((*g.shape[:2], *shape[1:]), g.dtype)
    planes = len(winners) * shape[1]
    windows = _windows(shape[2:], y.shape[2:], win)
    _launch("send_to_winners", (_flat(g), winners, gx), gx.size, planes, *windows)
    return gx


def pick_winners(values: Array, x: Array, y: Array, win: Any) -> Array:
    """Return what `values` hold at the cells that gave the maxima y of x."""
    winners, (rows, c, *image) = _winners(x, y, win), values.shape
    found = namespace(x).empty((max(rows, len(winners)), *y.shape[1:]), values.dtype)
    numbers = (found.size, rows * c, len(winners) * c, math.prod(image), math.prod(y.shape[2:]))
    _launch("pick_winners", (_flat(values), winners, found), *numbers)
    return found
