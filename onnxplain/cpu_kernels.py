"""Convolutions and windows on the processor, compiled by Numba where it is installed.

The same works as in `gpu_kernels`. The extra `compiled` installs Numba; without it, or with
ONNXPLAIN_COMPILED=0, kernels take the way of NumPy. Blocks are cut by the shapes alone, so that
results do not depend on the number of threads.
"""

from __future__ import annotations

import importlib.util
import math
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from .arrays import DERIVED_BYTES, Array, Shape, derived
from .frugal import is_frugal
from .processor import SMALL_PRODUCT, PerformanceAdvice
from .threads import each, know_blas

# Columns of a convolution that are made at a time stay in the cache of a core, but a matrix of
# fewer columns multiplies slowly.
_ROOM_BYTES = 2**20
_FEWEST_COLUMNS, _MOST_COLUMNS = 128, 2048
# Columns of one product: of small matrices as many as need no packing, else as packing pays for.
_FEWEST_SMALL_COLUMNS, _FEWER_COLUMNS, _COLUMNS = 96, 224, 1024
# Work is cut into so many blocks, of so many products or numbers and outputs at least.
_BLOCKS, _FEWEST_OUTPUTS = 8, 64
_FEWEST_PRODUCTS, _FEWEST_NUMBERS = 2**23, 2**18
# Matrices of fewer rows multiply slowly, and Winograd's transforms cost more than they save.
_FEWEST_CHANNELS = 16
# Points at which the polynomials of Winograd's algorithm meet, besides infinity.
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
_TURNED = (0.0, 1.0, -1.0, 2.0, -0.5)
_FEWEST_PLACES, _PLACES_PER_READ = 16, 28
_TYPES = "fd"

Range = tuple[int, int]


def wanted() -> bool:
    """Tell, without loading it, whether Numba is installed and ONNXPLAIN_COMPILED lets it work."""
    installed = importlib.util.find_spec("numba") is not None
    return installed and os.environ.get("ONNXPLAIN_COMPILED") != "0"


@cache
def available() -> bool:
    """Tell whether Numba can be used, and is meant to be."""
    if not wanted():
        return False
    try:
        kept = _loops().KEPT
    except ImportError as error:  # a release of Numba that does not know this one of NumPy
        return _told(f"Numba cannot be loaded ({error})")
    if kept or os.environ.get("ONNXPLAIN_COMPILED") == "1":
        return True
    return _told(
        "Numba finds no folder in which to keep what it compiles, which takes seconds in every "
        "process; name one in NUMBA_CACHE_DIR, or set ONNXPLAIN_COMPILED=1 to wait each time"
    )


def _told(why: str) -> bool:
    message = f"{why}: convolutions run uncompiled; ONNXPLAIN_COMPILED=0 ends this advice"
    warnings.warn(message, PerformanceAdvice, stacklevel=3)
    return False


def serves(x: Any, axes: int) -> bool:
    """Tell whether functions of this module work on `x`, of so many spatial axes."""
    plain = type(x) is np.ndarray and x.dtype.char in _TYPES and x.dtype.isnative
    return plain and 1 <= axes <= 3 and x.size > 0 and not is_frugal() and available()


def load() -> None:
    """Load what is compiled, where it can be used: networks with windows are worth its memory."""
    if available():
        _loops()


def loaded() -> bool:
    """Tell whether functions of this module are at hand already."""
    return _loops.cache_info().currsize > 0 and available()


@cache
def _loops() -> Any:
    import scipy.linalg.cython_blas  # noqa: F401  what Numba multiplies matrices with

    from . import cpu_loops

    know_blas()
    return cpu_loops


@cache
def _tiles() -> Any:
    _loops()
    from . import cpu_winograd

    return cpu_winograd


# -- sizes ----------------------------------------------------------------------------------------


def _three(sizes: Sequence[int], missing: int = 1) -> Shape:
    return (*(missing,) * (3 - len(sizes)), *sizes)


def _windows(image: Sequence[int], out: Sequence[int], win: Any) -> Shape:
    """Return what the loops call `win`."""
    before = _three([a for a, _ in win.pads], 0)
    sizes = (image, win.kernel, out, win.strides, win.dilations)
    return tuple(int(n) for size in (*map(_three, sizes), before) for n in size)


def _ranges(total: int, step: int) -> list[Range]:
    return [(i, min(i + step, total)) for i in range(0, total, max(step, 1))]


def _parts(total: int, count: float, least: int = 1) -> list[Range]:
    """Cut into `count` ranges, or fewer of at least so many."""
    return _ranges(total, max(least, -(-total // max(int(count), 1))))


_THREAD = threading.local()


def _room(dtype: Any, size: int) -> Array:
    """Return this thread's scratch memory: new memory would cost more than what is done in it."""
    found = getattr(_THREAD, dtype.char, None)
    if found is None or found.size < size:
        found = np.empty(size, dtype)
        setattr(_THREAD, dtype.char, found)
    return found


def _like(x: Array, dtype: np.dtype) -> Array:
    """Return `x` in one piece, as the loops take it."""
    x = np.ascontiguousarray(x, dtype)
    return x if x.flags.writeable else np.asarray(_Borrowed(x))


class _Borrowed:
    """Memory that must not be written to; the loops only read it, but know one kind of array."""

    def __init__(self, x: Array):
        self.x = x
        interface = x.__array_interface__
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


# -- convolution ----------------------------------------------------------------------------------


def _matrices(w: Array, groups: int) -> Array:
    return _like(w, w.dtype).reshape(groups, len(w) // groups, -1)


def convolve(
    x: Array, w: Array, win: Any, groups: int, out: Shape, bias: Array | None = None
) -> Array:
    """Return the convolution of x (n, c, ...) with w (o, c / groups, ...), plus bias (o)."""
    (n, c, *image), o = x.shape, w.shape[0]
    if groups == c == o:
        y = window_sums(x, win, out, w)
        return y if bias is None else np.add(y, bias.reshape(-1, *(1,) * len(out)), out=y)
    if len(out) < 3 and c // groups >= _FEWEST_CHANNELS:
        return _convolve_cells(x, w, win, groups, out, bias)
    y = np.empty((n, o, *out), x.dtype)
    if not y.size:
        return y
    matrices, sizes = _matrices(w, groups).astype(x.dtype, copy=False), _windows(image, out, win)
    flat, to = _like(x, x.dtype).reshape(n, c, -1), y.reshape(n, o, -1)
    cells, (depths, high, wide) = matrices.shape[2], sizes[6:9]
    step = _step(cells, high, wide, x.itemsize)
    images = max(1, step // high)
    places = product(_ranges(n, images), range(depths), _ranges(high, step))
    blocks = -(-n // images) * depths * -(-high // step)
    outputs = _parts(o // groups, _split(y.size * cells) // blocks, _FEWEST_OUTPUTS)
    columns = (cells + o // groups) * min(images, n) * min(step, high) * wide
    needed, more = columns + _span(sizes, min(step, high), wide), _bias(bias, o, x)

    def block(place: tuple[tuple[Range, int, Range], Range]) -> None:
        (rows, depth, windows), part = place
        space = _room(x.dtype, needed)
        _loops().convolve(flat, matrices, more, to, rows, depth, windows, part, sizes, space)

    each(block, product(places, outputs))
    return y


def _bias(bias: Array | None, outputs: int, x: Array) -> Array:
    return np.zeros(outputs, x.dtype) if bias is None else _like(bias, x.dtype)


def _convolve_cells(
    x: Array,
    w: Array,
    win: Any,
    groups: int,
    out: Shape,
    bias: Array | None = None,
    turned: bool = False,
) -> Array:
    """Return a convolution as one product for each cell of the kernels."""
    n, c, *image = x.shape
    kernels = derived(w, f"cells {groups}", lambda v: _by_cell(v, groups))
    kernels = kernels.astype(x.dtype, copy=False)
    cells, cg = kernels.shape[1], c // groups
    og = kernels.shape[3 if turned else 2]
    y, more = np.empty((n, groups * og, *out), x.dtype), _bias(bias, groups * og, x)
    if not y.size:
        return y
    if cells == 1 and out == tuple(image) and all(stride == 1 for stride in win.strides):
        image = out = (math.prod(out),)  # points, in no order
        win = win._replace(kernel=(1,), strides=(1,), dilations=(1,), pads=((0, 0),))
    sizes = _windows(image, out, win)
    flat, to = _like(x, x.dtype).reshape(n, c, -1), y.reshape(n, groups * og, -1)
    high, wide = sizes[7:9]
    blocks = _split(y.size * cells * cg)
    most = _columns(cg * og, n * high * wide // blocks)
    along = _ranges(wide, _even(wide, most))
    rows = _ranges(high, _even(high, max(1, most // along[0][1])))
    images = _ranges(n, max(1, most // (high * wide)))
    places = list(product(images, rows, along))
    outputs = _parts(og, blocks // (2 * len(places)), _FEWEST_OUTPUTS)
    span, count = _span(sizes, rows[0][1], along[0][1]), rows[0][1] * along[0][1]
    needed = (images[0][1] * max(span, count) + 64) * (2 * cg + og)

    def block(place: tuple[tuple[Range, Range, Range], Range]) -> None:
        where, part = place
        space = _room(x.dtype, needed)
        _loops().convolve_cells(flat, kernels, more, to, *where, part, turned, sizes, space)

    each(block, product(places, outputs))
    return y


def _by_cell(w: Array, groups: int) -> Array:
    """Return kernels as matrices (groups, cells, o / groups, c / groups)."""
    o, c, *kernel = w.shape
    cells = w.reshape(groups, o // groups, c, math.prod(kernel))
    return _like(cells.transpose(0, 3, 1, 2), w.dtype)


def _columns(size: int, wanted: int) -> int:
    """Return how many columns to multiply matrices of this size with, `wanted` for few blocks."""
    small = SMALL_PRODUCT // size
    if small >= _FEWEST_SMALL_COLUMNS:
        return min(small, _COLUMNS)
    return min(max(wanted, _FEWER_COLUMNS), _COLUMNS)


def _even(total: int, most: int) -> int:
    """Return the size of parts of at most so many that are about equal."""
    return -(-total // -(-total // most))


def _split(products: int) -> int:
    """Return how many blocks so much work is worth; small work is not cut."""
    return min(_BLOCKS, 1 + products // _FEWEST_PRODUCTS)


def _step(depth: int, high: int, wide: int, itemsize: int) -> int:
    """Return how many rows of windows, of so many numbers each, to unfold at a time."""
    most = max(_FEWEST_COLUMNS, min(_MOST_COLUMNS, _ROOM_BYTES // (depth * itemsize)))
    rows = max(1, most // wide)
    return _even(high, min(rows, high))


def _span(sizes: Shape, rows: int, wide: int) -> int:
    """Return how many numbers of a padded plane so many rows of windows see."""
    (_, kh, kw), (_, sh, sw), (_, eh, ew) = sizes[3:6], sizes[9:12], sizes[12:15]
    return ((rows - 1) * sh + (kh - 1) * eh + 1) * ((wide - 1) * sw + (kw - 1) * ew + 1)


def convolve_back(g: Array, shape: Shape, w: Array, win: Any, groups: int) -> Array:
    """Return the transpose of `convolve`: g (n, o, ...) back to `shape` (n, c, ...)."""
    (n, c, *image), (o, *out) = shape, g.shape[1:]
    if groups == c == o:
        return window_spread(g, shape, win, w)
    straight = all(stride == 1 for stride in win.strides) and c // groups >= _FEWEST_CHANNELS
    if straight and len(out) < 3 and o // groups >= _FEWEST_CHANNELS:
        return _convolve_cells(g, w, _turned_windows(win), groups, tuple(image), turned=True)
    if straight:  # a convolution again, with kernels turned
        turned = derived(w, f"turned {groups}", lambda v: _turned(v, groups))
        return convolve(g, turned, _turned_windows(win), groups, tuple(image))
    gx = np.zeros(shape, g.dtype)
    if not gx.size:
        return gx
    matrices = _matrices(w, groups).astype(g.dtype, copy=False)
    sizes, cells = _windows(image, out, win), math.prod(win.kernel)
    flat, to = _like(g, g.dtype).reshape(n, o, -1), gx.reshape(n, c, -1)
    blocks = _split(g.size * matrices.shape[2]) // n
    channels = _parts(c // groups, blocks, max(1, _FEWEST_OUTPUTS // cells))
    high, wide = sizes[7:9]
    lines = channels[0][1] * cells
    step = min(high, _step(lines, high, wide, g.itemsize))
    needed = (lines + o // groups) * step * wide + _span(sizes, step, wide)

    def block(place: tuple[int, Range]) -> None:
        i, part = place
        space = _room(g.dtype, needed)
        _loops().convolve_back(flat, matrices, to, (i, i + 1), part, step, sizes, space)

    each(block, product(range(n), channels))
    return gx


def _turned(w: Array, groups: int) -> Array:
    """Return the kernels of the transpose, (c, o / groups, ...)."""
    o, c, *kernel = w.shape
    parts = w.reshape(groups, o // groups, c, *kernel).swapaxes(1, 2)
    flipped = np.flip(parts, tuple(range(3, parts.ndim)))
    return np.ascontiguousarray(flipped).reshape(groups * c, o // groups, *kernel)


def winograd_pays(x: Array, w: Array, out: Shape) -> bool:
    """Tell whether Winograd's way beats `convolve` for kernels of 3 x 3 on this output.

    Both compute places that belong to no output, and read their kernels once, which takes as long
    as multiplying some places with them; transforms take as long as some more channels.
    """
    o, c = w.shape[:2]
    high, wide = -(-out[0] // 4), -(-out[1] // 4)
    if 36 * o * c * x.itemsize > DERIVED_BYTES:
        return False
    tiles = len(x) * high * (wide + 1)
    ours = 36 * (tiles + _PLACES_PER_READ) * (1 + 19 / o + 12 / c)
    others = 9 * (len(x) * out[0] * (out[1] + 2) + _PLACES_PER_READ)
    return tiles >= _FEWEST_PLACES and ours <= 0.8 * others


def winograd(
    x: Array, w: Array, pads: Sequence[Range], bias: Array | None = None, turned: bool = False
) -> Array:
    """Return a convolution of x (n, c, h, w) with kernels (o, c, 3, 3), or `turned` ones.

    It is exactly the bias (0 where none is given) where it comes of zeros only: rounding would put
    it on a side of a kink.
    """
    loops = _tiles()
    u = derived(w, "winograd tiles", _transformed).astype(x.dtype, copy=False)
    numbers = _numbers(x.dtype, turned)
    (n, c, h, v), o = x.shape, w.shape[1 if turned else 0]
    (top, bottom), (left, right) = pads
    y = np.empty((n, o, h + top + bottom - 2, v + left + right - 2), x.dtype)
    x, more = _like(x, x.dtype), _bias(bias, o, x)
    high, wide = -(-y.shape[2] // 4), -(-y.shape[3] // 4)
    line = _ranges(wide, _even(wide, loops.PLACES - 1))
    pitch = line[0][1] + 1
    rows = _ranges(high, _even(high, loops.PLACES // pitch))
    images = _ranges(n, max(1, loops.PLACES // (high * pitch)) if len(line) == 1 else 1)
    places = list(product(images, rows, line))
    before = (top, left)
    planes = 4 * (rows[0][1] + 1) * 4 * pitch + 64 * loops.PITCH
    per_channel = 36 * loops.PITCH

    def block(place: tuple[Range, Range, Range]) -> None:
        space = _room(x.dtype, per_channel * (c + o) + planes)
        loops.winograd(x, u, more, y, *place, before, turned, numbers, space)

    def parts(place: tuple[Range, Range, Range]) -> None:
        """Compute a block side by side: first the tiles by channels, then products by outputs."""
        tiles = np.empty((6, c, 6, loops.PITCH), x.dtype)

        def transform(part: Range) -> None:
            room = _room(x.dtype, planes)
            some, where, along = place
            loops.tiles_of(x, tiles, some, part, where, along, before, numbers, room)

        def multiply(part: Range) -> None:
            room = _room(x.dtype, per_channel * (part[1] - part[0]) + planes)
            loops.products_of(u, more, tiles, y, *place, part, turned, numbers, room)

        each(transform, _parts(c, _BLOCKS))
        each(multiply, _parts(o, _BLOCKS, _FEWEST_OUTPUTS))

    if len(places) < _split(36 * c * o * loops.PLACES * len(places)) // 2:
        for place in places:
            parts(place)
    else:
        each(block, places)
    _silence(x, more, y, before)
    return y


def _transformed(w: Array) -> Array:
    """Return kernels (o, c, 3, 3) as (6, 6, o, c), computed in float64."""
    rows = [[p**k / _span_of(p, _POINTS) for k in range(3)] for p in _POINTS]
    at = np.array([*rows, [0, 0, 1]])
    u = np.empty((6, 6, *w.shape[:2]), w.dtype)
    for part, some in ((u[:, :, r : r + 8], w[r : r + 8]) for r in range(0, len(w), 8)):
        part[:] = (at @ some.astype(np.float64) @ at.T).transpose(2, 3, 0, 1)
    return u


def _span_of(point: float, points: Sequence[float]) -> float:
    """Return the product of the distances of a point to the others."""
    return math.prod(point - other for other in points if other != point)


@cache
def _numbers(dtype: np.dtype, turned: bool) -> Array:
    """Return the numbers of the transforms of data and products.

    Kernels turned round, at 1 / p in the place of p, are those at p up to factors, which the way
    back takes in.
    """
    points, ends, moved = _POINTS, [1.0, 1.0], [1.0] * 4
    if turned:
        points = _TURNED
        pairs = zip(_POINTS[1:], points[1:], strict=True)
        ends = [1 / _span_of(0, points), _span_of(0, _POINTS)]
        moved = [_span_of(p, _POINTS) / _span_of(q, points) / p**2 for p, q in pairs]
    a, b = points[3:]
    (zero, infinite), (one, minus, at_a, at_b) = ends, moved
    powers = [f * p**k for f, p in ((at_a, a), (at_b, b)) for k in range(4)]
    numbers = (a, b, a + b, a * b, zero, one, minus, infinite, *powers)
    return np.array(numbers, dtype)


def _silence(x: Array, bias: Array, y: Array, before: Range) -> None:
    """Make y, a convolution of x with kernels of 3 x 3, the bias where it comes of zeros only."""
    plane = x.shape[2] * x.shape[3]

    def block(images: Range) -> None:
        _loops().silence(x, bias, y, images, before, _room(x.dtype, plane))

    each(block, _parts(len(x), min(_BLOCKS, x.size / _FEWEST_NUMBERS)))


# -- elements -------------------------------------------------------------------------------------


def serves_elements(x: Any, *signals: Any) -> bool:
    """Tell whether `clip` works on `x`, `clip_back` on signals for it, without more to load."""
    alike = all(g.dtype == x.dtype and g.shape[1:] == x.shape for g in signals)
    return alike and loaded() and serves(x, 1)


def clip(x: Array, low: Any = None, high: Any = None) -> Array:
    """Return x between two bounds, either of which may be missing."""
    x, y = _like(x, x.dtype), np.empty(x.shape, x.dtype)
    flat, to, bounds = x.reshape(-1), y.reshape(-1), _bounds(x, low, high)
    _each_part(lambda part: _loops().clip(flat, *bounds, to, part), x.size)
    return y


def clip_back(g: Array, x: Array, low: Any = None, high: Any = None) -> Array:
    """Return the signal g (outputs, ...) where x (...) lies between the bounds."""
    g, gx, bounds = _like(g, g.dtype), np.empty(g.shape, g.dtype), _bounds(x, low, high)
    flat, signal, to = _like(x, x.dtype).reshape(-1), g.reshape(len(g), -1), gx.reshape(len(g), -1)
    _each_part(lambda part: _loops().clip_back(signal, flat, *bounds, to, part), x.size)
    return gx


def _bounds(x: Array, low: Any, high: Any) -> tuple[Any, Any]:
    """Return bounds as the loops read them: NaN is none."""
    low, high = (x.dtype.type(np.nan if b is None else np.asarray(b).item()) for b in (low, high))
    return low, high


def _each_part(task: Callable[[Range], Any], size: int) -> None:
    each(task, _parts(size, min(_BLOCKS, size / _FEWEST_NUMBERS)))


# -- planes ---------------------------------------------------------------------------------------


def _planes(x: Array, sizes: Sequence[int]) -> Array:
    """Return an array in one piece, whose first axis counts planes."""
    return _like(x, x.dtype).reshape(-1, *_three(sizes))


def _each_plane(task: Callable[[Range], Any], planes: Array) -> None:
    each(task, _parts(len(planes), min(_BLOCKS, planes.size / _FEWEST_NUMBERS)))


def window_sums(x: Array, win: Any, out: Shape, filters: Array | None = None) -> Array:
    """Return the sums of all windows of x (n, c, ...), weighted by filters (c, 1, ...)."""
    y = np.empty((*x.shape[:2], *out), x.dtype)
    sizes = _windows(x.shape[2:], out, win)
    planes, to, weights = (
        _planes(x, x.shape[2:]),
        y.reshape(-1, *_three(out)),
        _filters(x, win, filters),
    )
    _each_plane(lambda part: _loops().window_sums(planes, weights, to, part, sizes), to)
    return y


def window_spread(g: Array, shape: Shape, win: Any, filters: Array | None = None) -> Array:
    """Return the transpose of `window_sums`: g (..., *out) back to `shape`."""
    axes = len(win.kernel)
    out, image = g.shape[-axes:], shape[-axes:]
    if all(stride == 1 for stride in win.strides):
        planes = g.reshape(-1, *g.shape[-axes - 1 :])  # signals have one more axis
        turned = _turned_filters(filters, axes)
        return window_sums(planes, _turned_windows(win), image, turned).reshape(shape)
    gx = np.empty(shape, g.dtype)
    sizes, signal, weights = _windows(image, out, win), _planes(g, out), _filters(g, win, filters)
    to = gx.reshape(-1, *_three(image))
    _each_plane(lambda part: _loops().window_spread(signal, weights, to, part, sizes), to)
    return gx


def _turned_windows(win: Any) -> Any:
    """Return the windows of the transpose, of stride 1."""
    spans = [d * (k - 1) for k, d in zip(win.kernel, win.dilations, strict=True)]
    return win._replace(
        pads=tuple((s - a, s - b) for s, (a, b) in zip(spans, win.pads, strict=True))
    )


def _turned_filters(filters: Array | None, axes: int) -> Array | None:
    return None if filters is None else np.flip(filters, tuple(range(-axes, 0)))


def _filters(x: Array, win: Any, filters: Array | None) -> Array:
    """Return filters (channels, cells); one of ones, for all channels, if none are given."""
    if filters is None:
        return np.ones((1, math.prod(win.kernel)), x.dtype)
    return _like(filters, x.dtype).reshape(len(filters), -1)


def window_maxima(x: Array, win: Any, out: Shape) -> Array:
    """Return the maximum of every window of x (n, c, ...)."""
    y = np.empty((*x.shape[:2], *out), x.dtype)
    sizes = _windows(x.shape[2:], out, win)
    planes, to = _planes(x, x.shape[2:]), y.reshape(-1, *_three(out))
    _each_plane(lambda part: _loops().window_maxima(planes, to, part, sizes), to)
    return y


def _winners(x: Array, y: Array, win: Any) -> Array:
    """Return the first cell of each window of x that is y, counted through a plane; -1 if none."""
    rows, (c, *out) = max(len(x), len(y)), y.shape[1:]
    winners = np.empty((rows * c, *_three(out)), np.int32)
    sizes = _windows(x.shape[2:], out, win)
    a, b = _planes(x, x.shape[2:]), _planes(y, out)
    _each_plane(lambda part: _loops().window_winners(a, b, winners, part, sizes), winners)
    return winners.reshape(len(winners), -1)


def send_to_winners(g: Array, x: Array, y: Array, shape: Shape, win: Any) -> Array:
    """Return a signal g (outputs, n, c, ...) at the cells that gave the maxima y of x."""
    winners = _winners(x, y, win)
    gx = np.zeros((*g.shape[:2], *shape[1:]), g.dtype)
    signal = _like(g, g.dtype).reshape(-1, winners.shape[1])
    to = gx.reshape(len(signal), -1)
    _each_plane(lambda part: _loops().send_to_winners(signal, winners, to, part), to)
    return gx


def pick_winners(values: Array, x: Array, y: Array, win: Any) -> Array:
    """Return what `values` hold at the cells that gave the maxima y of x."""
    winners = _winners(x, y, win)
    rows = max(len(values), len(winners) // y.shape[1])
    found = np.empty((rows, *y.shape[1:]), values.dtype)
    flat = _like(values, values.dtype).reshape(len(values) * y.shape[1], -1)
    to = found.reshape(rows * y.shape[1], -1)
    _each_plane(lambda part: _loops().pick_winners(flat, winners, to, part), to)
    return found
