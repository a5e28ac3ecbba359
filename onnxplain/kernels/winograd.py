"""3 x 3 convolutions of stride 1 with 4 products in the place of 9.

Winograd's F(2 x 2, 3 x 3): 4 x 4 tiles of the input and the kernels are transformed, multiplied
element by element (which, summed over channels, is a matrix product for each of 16 places) and
transformed back to 2 x 2 tiles of the output. The transform of the data needs sums only; in
float32 the error is 2 to 3 times that of the direct sum, below 1e-6 of the largest output.

Lavin and Gray (2016), Fast algorithms for convolutional neural networks.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from .. import gpu_kernels
from ..arrays import (
    Array,
    Shape,
    derived,
    is_device,
    may_hold,
    namespace,
    offsets,
    pad_spatial,
)
from ..frugal import is_frugal
from ..threads import each

# Below so many channels the transforms cost more than the products they save.
_FEWEST_CHANNELS = 16
# Tiles transformed at a time: their 16 planes stay near the cache.
_TILES = 512
# Kernels transformed at a time, for the same reason.
_KERNELS = 2**13

_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])

Pads = Sequence[tuple[int, int]]


def is_possible(w: Array, win: Any, groups: int) -> bool:
    """Tell whether a convolution of these windows can be computed so, with channels enough."""
    plain = win.kernel == (3, 3) and win.strides == win.dilations == (1, 1) and groups == 1
    plain = plain and all(0 <= pad <= 2 for pads in win.pads for pad in pads)
    return plain and w.dtype.itemsize >= 4 and min(w.shape[:2]) >= _FEWEST_CHANNELS


def pays(w: Array, win: Any, groups: int, out: Shape) -> bool:
    """Tell whether a convolution of these windows gains by it."""
    tiles = -(-out[0] // 2) * -(-out[1] // 2) if len(out) == 2 else 0
    return is_possible(w, win, groups) and 16 * tiles <= 0.75 * 9 * out[0] * out[1]


def convolve(x: Array, w: Array, pads: Pads) -> Array:
    """Return the convolution of x (n, c, h, w) with w (o, c, 3, 3)."""
    return _correlate(x, derived(w, "winograd", _transformed), pads)


def convolve_back(g: Array, w: Array, pads: Pads) -> Array:
    """Return its transpose: a convolution of g (n, o, h, w) with the kernels turned round."""
    turned = derived(w, "winograd back", lambda v: _transformed(_turned(v)))
    return _correlate(g, turned, [(2 - a, 2 - b) for a, b in pads])


def _turned(w: Array) -> Array:
    return w.swapaxes(0, 1)[..., ::-1, ::-1]


def _transformed(w: Array) -> Array:
    """Return the kernels (o, c, 3, 3) as 16 matrices (16, o, c), computed in float64."""
    xp, (o, c) = namespace(w), w.shape[:2]
    b, matrices = xp.asarray(_KERNEL), xp.empty((16, o, c), w.dtype)
    step = max(1, _KERNELS // c)
    for i in range(0, o, step):
        u = b @ w[i : i + step].astype(np.float64) @ b.T
        matrices[:, i : i + step] = u.transpose(2, 3, 0, 1).reshape(16, -1, c)
    return matrices


def _correlate(x: Array, u: Array, pads: Pads) -> Array:
    if gpu_kernels.serves(x, 2):
        return gpu_kernels.winograd(x, u, pads)
    n, _, h, w = x.shape
    (top, bottom), (left, right) = pads
    out = (h + top + bottom - 2, w + left + right - 2)
    xp = namespace(x)
    y = xp.empty((n, u.shape[1], *out), x.dtype)
    high, wide = -(-out[0] // 2), -(-out[1] // 2)
    most = n * high * wide if is_device(x) else _TILES
    rows = max(1, min(high, most // wide))
    images = max(1, most // (high * wide))

    def block(place: tuple[int, int]) -> None:
        i, row = place
        room = _room(xp, x.dtype)
        some = x[i : i + images].swapaxes(0, 1)
        cells = _phases(some, (2 * row - top, -left), min(rows, high - row), wide, room)
        tiles = _tiles(cells, room)
        products = _products(u, tiles, room("products", *u.shape[:2], tiles.shape[-1]))
        _put(products, y[i : i + images, :, 2 * row : 2 * (row + rows)], room)

    each(block, product(range(0, n, images), range(0, high, rows)))
    _silence(x, y, pads)
    return y


def _products(u: Array, tiles: Array, out: Array) -> Array:
    """Multiply the 16 matrices: side by side where the tiles are too few for several blocks."""
    xp = namespace(u)
    if is_device(u):
        return xp.matmul(u, tiles, out=out)
    each(lambda k: xp.matmul(u[k], tiles[k], out=out[k]), range(len(u)))
    return out


def _silence(x: Array, y: Array, pads: Pads) -> None:
    """Make what comes of zeros only exactly 0: rounding would put it on a side of a kink."""
    quiet = _quiet(x)
    if not may_hold(quiet):
        return
    loud = pad_spatial(~quiet, pads, False)
    high, wide = y.shape[2:]
    heard = loud[:, :high, :wide].copy()
    for i, j in offsets((3, 3)):
        heard |= loud[:, i : i + high, j : j + wide]
    y *= heard[:, None]


def _quiet(x: Array) -> Array:
    """Return where all channels are 0."""
    quiet = x.max(axis=1) == 0
    if may_hold(quiet):
        quiet &= x.min(axis=1) == 0
    return quiet


def _room(xp: Any, dtype: np.dtype) -> _Room:
    """Return this thread's room: new memory would cost more than what is computed in it."""
    if xp is not np or is_frugal():
        return _Room(xp, dtype)
    rooms = vars(_THREAD).setdefault("rooms", {})
    return rooms.setdefault(dtype.name, _Room(xp, dtype))


_THREAD = threading.local()


class _Room:
    """Arrays that every block of a convolution computes in, so that they stay in the cache."""

    def __init__(self, xp: Any, dtype: Any):
        self.xp, self.dtype, self.arrays = xp, dtype, {}

    def __call__(self, name: str, *shape: int) -> Array:
        """Return an array of this shape; what it holds is left from the last block."""
        size = math.prod(shape)
        if name not in self.arrays or self.arrays[name].size < size:
            self.arrays[name] = self.xp.empty(size, self.dtype)
        return self.arrays[name][:size].reshape(shape)


def _phases(x: Array, first: tuple[int, int], rows: int, wide: int, room: _Room) -> Array:
    """Return even and odd rows and columns apart, (2, 2, c, images, rows + 1, wide + 1), padded.

    `first` is where the first tile begins in x (c, images, h, w): before 0 lies padding.
    """
    cells = room("cells", 2, 2, *x.shape[:2], rows + 1, wide + 1)
    cells.fill(0)
    for a in (0, 1):
        for b in (0, 1):
            (to_r, from_r) = _every_second(first[0] + a, x.shape[2], rows + 1)
            (to_c, from_c) = _every_second(first[1] + b, x.shape[3], wide + 1)
            cells[a, b, :, :, to_r, to_c] = x[:, :, from_r, from_c]
    return cells


def _every_second(start: int, size: int, count: int) -> tuple[slice, slice]:
    """Return which of start, start + 2, ... (count of them) lie in 0..size, and where."""
    low = -(min(start, 0) // 2)
    high = max(low, min(count, (size - start + 1) // 2))
    return slice(low, high), slice(start + 2 * low, max(start + 2 * high - 1, 0), 2)


def _tiles(cells: Array, room: _Room) -> Array:
    """Transform the data to 16 matrices (16, c, tiles).

    Rows of tiles follow each other with one number between them that belongs to none: so that
    neighbours are neighbours in memory, and all sums run over long stretches of it.
    """
    xp = room.xp
    _, _, c, n, rows, wide = cells.shape
    across = room("across", 4, 2, c, n, rows - 1, wide)
    _differences(xp, cells[0], cells[1], across, lambda v: (v[..., :-1, :], v[..., 1:, :]))
    flat = across.reshape(4, 2, c, -1)
    tiles = room("tiles", 4, 4, c, flat.shape[-1])
    tiles[..., -1] = 0
    along = tiles[..., :-1].swapaxes(0, 1)
    _differences(xp, flat[:, 0], flat[:, 1], along, lambda v: (v[..., :-1], v[..., 1:]))
    return tiles.reshape(16, c, -1)


def _differences(xp: Any, even: Array, odd: Array, out: Array, here_and_next: Any) -> None:
    """Put d0 - d2, d1 + d2, d2 - d1, d1 - d3 of four neighbours into `out`."""
    (d0, d2), (d1, d3) = here_and_next(even), here_and_next(odd)
    xp.subtract(d0, d2, out=out[0])
    xp.add(d1, d2, out=out[1])
    xp.subtract(d2, d1, out=out[2])
    xp.subtract(d1, d3, out=out[3])


def _put(m: Array, y: Array, room: _Room) -> None:
    """Transform products (16, o, tiles) back and write them to a part of the output."""
    n, o, height, width = y.shape
    high, wide = -(-height // 2), -(-width // 2)
    two = _sums(m.reshape(4, 4, o, -1), room("two", 2, 4, o, m.shape[-1]), room)
    for a in (0, 1):
        four = _sums(two[a], room("four", 2, o, m.shape[-1]), room)
        part = y[:, :, a::2].swapaxes(0, 1)
        for b in (0, 1):
            tile = four[b].reshape(o, n, high, wide + 1)[:, :, : part.shape[2]]
            part[..., b::2] = tile[..., : (width + 1 - b) // 2]


def _sums(m: Array, out: Array, room: _Room) -> Array:
    """Return m0 + m1 + m2 and m1 - m2 - m3."""
    xp = room.xp
    xp.add(m[1], m[2], out=out[0])
    xp.add(out[0], m[0], out=out[0])
    xp.subtract(m[1], m[2], out=out[1])
    xp.subtract(out[1], m[3], out=out[1])
    return out
