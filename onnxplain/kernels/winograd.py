"""3 x 3 convolutions of stride 1 with 4 products in the place of 9.

Winograd's F(2 x 2, 3 x 3): 4 x 4 tiles of the input and the kernels are transformed, multiplied
element by element (which, summed over channels, is a matrix product for each of 16 places) and
transformed back to 2 x 2 tiles of the output. The transform of the data needs sums only; in
float32 the error is 2 to 3 times that of the direct sum, below 1e-6 of the largest output.

Lavin and Gray (2016), Fast algorithms for convolutional neural networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import Array, Shape, derived, is_device, namespace

# Below so many channels the transforms cost more than the products they save.
_FEWEST_CHANNELS = 16
# Tiles transformed at a time: their 16 planes stay near the cache.
_TILES = 512

_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])

Pads = Sequence[tuple[int, int]]


def pays(w: Array, win: Any, groups: int, out: Shape) -> bool:
    """Tell whether a convolution of these windows is one of ours, and gains by it."""
    plain = win.kernel == (3, 3) and win.strides == win.dilations == (1, 1) and groups == 1
    plain = plain and all(0 <= pad <= 2 for pads in win.pads for pad in pads)
    if not plain or w.dtype.itemsize < 4 or min(w.shape[:2]) < _FEWEST_CHANNELS:
        return False
    tiles = -(-out[0] // 2) * -(-out[1] // 2)
    return 16 * tiles <= 0.75 * 9 * out[0] * out[1]


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
    xp = namespace(w)
    b = xp.asarray(_KERNEL)
    u = b @ w.astype(np.float64) @ b.T
    return xp.ascontiguousarray(u.transpose(2, 3, 0, 1).reshape(16, *w.shape[:2]).astype(w.dtype))


def _correlate(x: Array, u: Array, pads: Pads) -> Array:
    n, _, h, w = x.shape
    (top, bottom), (left, right) = pads
    out = (h + top + bottom - 2, w + left + right - 2)
    y = namespace(x).empty((n, u.shape[1], *out), x.dtype)
    high, wide = -(-out[0] // 2), -(-out[1] // 2)
    most = n * high * wide if is_device(x) else _TILES
    rows = max(1, min(high, most // wide))
    images = max(1, most // (high * wide))
    for i in range(0, n, images):
        for row in range(0, high, rows):
            block = _padded(x[i : i + images], 2 * row, min(rows, high - row), wide, (top, left))
            _put(u @ _tiles(block), y[i : i + images, :, 2 * row : 2 * (row + rows)])
    return y


def _padded(x: Array, first: int, rows: int, wide: int, begin: tuple[int, int]) -> Array:
    """Return the input of some rows of tiles, padded, as (c, images, 2 rows + 2, 2 wide + 2)."""
    n, c, h, w = x.shape
    start, left = first - begin[0], begin[1]
    height, width = 2 * rows + 2, 2 * wide + 2
    block = namespace(x).zeros((c, n, height, width), x.dtype)
    low, high, right = max(start, 0), min(start + height, h), min(left + w, width)
    part = x[:, :, low:high, : right - left]
    block[:, :, low - start : high - start, left:right] = part.swapaxes(0, 1)
    return block


def _tiles(block: Array) -> Array:
    """Transform the data: (c, images, height, width) to 16 matrices (16, c, tiles)."""
    xp = namespace(block)
    c, n, height, width = block.shape
    rows = xp.empty((4, c, n, height // 2 - 1, width), block.dtype)
    _differences(xp, block.swapaxes(2, 3), rows.swapaxes(3, 4))
    tiles = xp.empty((4, *rows.shape[:-1], width // 2 - 1), block.dtype)
    _differences(xp, rows, tiles.swapaxes(0, 1))  # places row by row, as in the kernels
    return tiles.reshape(16, c, -1)


def _differences(xp: Any, x: Array, out: Array) -> None:
    """Put d0 - d2, d1 + d2, d2 - d1, d1 - d3 of each four numbers, two apart, into `out`."""
    even, odd = x[..., 0::2], x[..., 1::2]
    xp.subtract(even[..., :-1], even[..., 1:], out=out[0])
    xp.add(odd[..., :-1], even[..., 1:], out=out[1])
    xp.subtract(even[..., 1:], odd[..., :-1], out=out[2])
    xp.subtract(odd[..., :-1], odd[..., 1:], out=out[3])


def _put(m: Array, y: Array) -> None:
    """Transform products (16, o, tiles) back and write them to a part of the output."""
    xp = namespace(m)
    n, o, height, width = y.shape
    high, wide = -(-height // 2), -(-width // 2)
    m = m.reshape(4, 4, o, n, high, wide)
    for a, rows in enumerate(_sums(m)):
        part = y[:, :, a::2].swapaxes(0, 1)
        for b, tile in enumerate(_sums(rows)):
            cells = part[..., b::2]
            xp.copyto(cells, tile[..., : cells.shape[2], : cells.shape[3]])


def _sums(m: Array) -> tuple[Array, Array]:
    """Return m0 + m1 + m2 and m1 - m2 - m3."""
    first = m[1] + m[2]
    first += m[0]
    second = m[1] - m[2]
    second -= m[3]
    return first, second
