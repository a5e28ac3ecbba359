"""Operators that read an image between its pixels: at a grid, in regions, at shifted windows.

What is read is a sum of a few pixels with weights, the taps. For a bilinear reading in two
dimensions there are four, for a bicubic one sixteen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from ..arrays import (
    Array,
    Shape,
    checked_shape,
    host_ints,
    is_device,
    namespace,
    negative,
    on_device_of,
    positive,
    to_host,
)
from ..errors import DataError, ModelError, UnsupportedOpError
from .base import Record, joint_shape
from .convolution import find_windows
from .expanded import Expanded
from .families import Linear
from .routing import same, scatter_add

MAX_SAMPLES = 4096  # of one axis in one cell of a region: more come from files that lie


class Tap(NamedTuple):
    """One pixel of each reading: places (n, readings) in the flat image, and weights."""

    place: Array
    weight: Array


def read(x: Array, taps: Sequence[Tap]) -> Array:
    """Return sum of weight times pixel: x (n, c, pixels) to (n, c, readings)."""
    xp = namespace(x)
    n, c = x.shape[:2]
    rows, channels = xp.arange(n)[:, None, None], xp.arange(c)[:, None]
    return sum(t.weight[:, None] * x[rows, channels, t.place[:, None]] for t in taps)


def read_back(g: Array, taps: Sequence[Tap], pixels: int) -> Array:
    """Return the transpose of `read`: g (outputs, n, c, readings) to (outputs, n, c, pixels)."""
    xp = namespace(g)
    k, n, c, m = g.shape
    first = xp.arange(n)[:, None] * pixels
    total = xp.zeros((k, c, n * pixels), g.dtype)
    for tap in taps:
        place = xp.broadcast_to(first + tap.place, (n, m)).reshape(-1)
        weighted = xp.moveaxis(g * tap.weight[:, None], 1, 2).reshape((k, c, -1))
        total = total + scatter_add(weighted, place, 2, n * pixels)
    return xp.moveaxis(total.reshape((k, c, n, pixels)), 2, 1)


def crossed(axes: Sequence[list[Tap]], shape: Shape) -> Iterator[Tap]:
    """Combine the taps of all axes to those of a flat image of this shape."""
    for taps in product(*axes):
        place, weight = 0, 1
        for n, tap in zip(shape, taps, strict=True):
            place, weight = place * n + tap.place, weight * tap.weight
        yield Tap(place, weight)


def map_taps(taps: Sequence[Tap], f: Any) -> list[Tap]:
    """Apply a function to weights; pixels that are not read stay so."""
    return [Tap(t.place, f(t.weight) * (t.weight != 0).astype(t.weight.dtype)) for t in taps]


def linear_taps(at: Array, n: int) -> list[Tap]:
    """Return the two pixels around each coordinate; there is nothing outside."""
    low = namespace(at).floor(at)
    share = at - low
    return [inside(low, 1 - share, n), inside(low + 1, share, n)]


def inside(place: Array, weight: Array, n: int) -> Tap:
    """Return a tap that weighs nothing where its place is not in the image."""
    xp = namespace(place)
    held = (place >= 0) & (place < n)
    weight = xp.where(held, weight, 0).astype(weight.dtype, copy=False)
    return Tap(xp.where(held, place, 0).astype(np.int64), weight)


@dataclass(frozen=True)
class Line:
    """One axis of an image that is read: `n` pixels, at coordinates p.

    These run from -1 to 1, from the first pixel to the last (`align`) or from edge to edge; they
    count pixels where `align` is None.
    """

    n: int
    mode: str = "linear"
    padding: str = "zeros"
    align: bool | None = None

    @property
    def scale(self) -> float:
        """Pixels per unit of p."""
        return 1.0 if self.align is None else 0.5 * (self.n - 1 if self.align else self.n)

    @property
    def ends(self) -> tuple[float, float]:
        """Where the image ends, in pixels."""
        return (0.0, self.n - 1.0) if self.align else (-0.5, self.n - 0.5)

    def pixel(self, p: Array) -> Array:
        """Return coordinates in pixels; what is no number lies outside."""
        xp = namespace(p)
        at = p if self.align is None else (p + 1) * self.scale - (0.0 if self.align else 0.5)
        return xp.where(xp.isfinite(at), at, -self.n - 4)

    def cell(self, p: Array) -> Array:
        """Number the pieces of p in which a reading is a polynomial."""
        return namespace(p).floor(2 * self.pixel(p))

    def taps(self, p: Array) -> list[Tap]:
        """Return the pixels and weights that make a reading."""
        xp, n = namespace(p), self.n
        at = self.pixel(p)
        if self.mode == "nearest":
            return [self._tap(self._bounded(xp.rint(at)), xp.ones_like(at))]
        at = self._bounded(at)
        if self.mode == "linear":
            return linear_taps(at if self.padding == "zeros" else xp.clip(at, 0, n - 1), n)
        low = xp.floor(at)
        taps = [self._tap(low + i, _keys(abs(at - low - i))) for i in (-1, 0, 1, 2)]
        return taps if self.padding == "zeros" else _merged(taps)

    def slopes(self, p: Array) -> list[Tap]:
        """Return the derivatives of `taps`."""
        xp = namespace(p)
        at = self.pixel(p)
        factor = self.scale * self._padded_slope(at)
        if self.mode == "nearest":
            return [self._tap(self._bounded(xp.rint(at)), xp.zeros_like(at))]
        at = self._bounded(at)
        low = xp.floor(at)
        if self.mode == "linear":
            held = (at >= 0) & (at <= self.n - 1) if self.padding != "zeros" else True
            factor = factor * held
            return [inside(low, -factor, self.n), inside(low + 1, factor, self.n)]
        weights = ((_keys_slope(at - low - i) * factor) for i in (-1, 0, 1, 2))
        return [self._tap(low + i, w) for i, w in zip((-1, 0, 1, 2), weights, strict=True)]

    def _bounded(self, at: Array) -> Array:
        """Return padded coordinates, far ones brought near so that they are whole numbers."""
        return namespace(at).clip(self._padded(at), -4, self.n + 4)

    def _padded(self, at: Array) -> Array:
        """Return coordinates of the image in the place of those outside of it."""
        xp, (low, high) = namespace(at), self.ends
        if self.padding == "zeros":
            return at
        out = (at < low) | (at > high)
        if self.padding == "border":
            return xp.where(out, xp.clip(at, 0, self.n - 1), at)
        turn, period = self._turn(at)
        return xp.where(out, low + xp.minimum(turn, period - turn) if high > low else low, at)

    def _padded_slope(self, at: Array) -> Array:
        xp, (low, high) = namespace(at), self.ends
        one = xp.ones_like(at)
        out = (at < low) | (at > high)
        if self.padding == "zeros":
            return one
        if self.padding == "border" or high == low:
            return xp.where(out, 0, one)
        turn, period = self._turn(at)
        return xp.where(out, xp.where((turn <= period - turn) == (at > low), one, -one), one)

    def _turn(self, at: Array) -> tuple[Array, float]:
        """Return how far a coordinate is on its way there and back, and how long that is."""
        low, high = self.ends
        period = max(2 * (high - low), 1.0)
        return namespace(at).fmod(abs(at - low), period), period

    def _tap(self, place: Array, weight: Array) -> Tap:
        if self.padding == "reflection":
            place = self._padded(place)
        if self.padding != "zeros":
            place = namespace(place).clip(place, 0, self.n - 1)
        return inside(place, weight, self.n)


def _keys(d: Array) -> Array:
    """Weights of cubic convolution at distance d up to 2 (Keys 1981), with a = -0.75."""
    a = -0.75
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return namespace(d).where(d <= 1, near, far)


def _keys_slope(d: Array) -> Array:
    """Derivative of `_keys` of abs(d)."""
    a, xp, e = -0.75, namespace(d), abs(d)
    near = (3 * (a + 2) * e - 2 * (a + 3)) * e
    far = (3 * a * e - 10 * a) * e + 8 * a
    return xp.sign(d) * xp.where(e <= 1, near, far)


def _merged(taps: list[Tap]) -> list[Tap]:
    """Add up the weights of taps that are the same pixel, in the first of them."""
    weights = [t.weight for t in taps]
    for i in range(1, len(taps)):
        for j in range(i):
            moved = weights[i] * (taps[i].place == taps[j].place).astype(weights[i].dtype)
            weights[j], weights[i] = weights[j] + moved, weights[i] - moved
    return [Tap(t.place, w) for t, w in zip(taps, weights, strict=True)]


class Reader:
    """Reads flat images (n, c, pixels) at points, one array (n, readings) per axis.

    A reading is linear in the image and a piecewise polynomial of each coordinate. DeepLIFT is
    exact: image and points share as two factors, the coordinates step from reference to input one
    after the other, in both orders.
    """

    def __init__(self, lines: Sequence[Line]):
        self.lines = lines
        self.shape = tuple(line.n for line in lines)

    def taps(self, points: Sequence[Array], slope: int | None = None) -> list[Tap]:
        """Return the taps of readings, or of their derivatives by one coordinate."""
        pairs = enumerate(zip(self.lines, points, strict=True))
        axes = [line.slopes(p) if i == slope else line.taps(p) for i, (line, p) in pairs]
        return list(crossed(axes, self.shape))

    def gradient(self, g: Array, x: Array, points: Sequence[Array]) -> tuple[Array, list[Array]]:
        """Return the gradients of image and points, of signals (outputs, n, c, readings)."""
        back = read_back(g, self.taps(points), math.prod(self.shape))
        slopes = (read(x, self.taps(points, i)) for i in range(len(points)))
        return back, [(g * slope).sum(axis=2) for slope in slopes]

    def multipliers(
        self, m: Array, x: tuple[Array, Array], points: tuple[Sequence[Array], Sequence[Array]]
    ) -> tuple[Array, list[Array]]:
        """Return the multipliers of image and points; each is given as input and reference."""
        size = math.prod(self.shape)
        back = sum(read_back(0.5 * m, self.taps(p), size) for p in points)
        mean = 0.5 * (x[0] + x[1])
        steps = (self._steps(mean, *points, i) for i in range(len(self.lines)))
        return back, [(m * step).sum(axis=2) for step in steps]

    def _steps(self, x: Array, p: Sequence[Array], p0: Sequence[Array], i: int) -> Array:
        """Return the mean of the secants along a coordinate, the others on either side of it."""
        sides = ((p[:i], p0[i + 1 :]), (p0[:i], p[i + 1 :]))
        return 0.5 * sum(self._secant(x, p[i], p0[i], i, *side) for side in sides)

    def _secant(self, x, p, p0, i, before, after) -> Array:
        xp, line = namespace(p), self.lines[i]
        close = line.cell(p) == line.cell(p0)
        mean, half = 0.5 * (p + p0), 0.5 * (p - p0) / math.sqrt(3)  # exact for cubic polynomials
        slope = 0.5 * sum(
            read(x, self.taps([*before, at, *after], i)) for at in (mean - half, mean + half)
        )
        ends = [read(x, self.taps([*before, at, *after])) for at in (p, p0)]
        step = xp.where(close, 1, p - p0)
        return xp.where(close[:, None], slope, (ends[0] - ends[1]) / step[:, None])


# -- at a grid ------------------------------------------------------------------------------------


class GridSample(Linear, op="GridSample", since=16):
    """y = x read at the points of a grid, whose coordinates run from -1 to 1."""

    def setup(self):
        self.mode = {"bilinear": "linear", "bicubic": "cubic"}.get(self.mode, self.mode)
        if self.mode not in ("nearest", "linear", "cubic"):
            raise ModelError(f"GridSample has no mode {self.mode!r}")
        if self.padding_mode not in ("zeros", "border", "reflection"):
            raise ModelError(f"GridSample has no padding_mode {self.padding_mode!r}")

    def reader(self, spatial: Shape) -> Reader:
        """Return what reads images of this size."""
        align = bool(self.align_corners)
        return Reader([Line(n, self.mode, self.padding_mode, align) for n in spatial])

    def points(self, grid: Array, like: Array) -> list[Array]:
        """Return the coordinates of each axis; the grid has the last axis first."""
        grid = on_device_of(grid, like).astype(like.dtype, copy=False)
        flat = grid.reshape((len(grid), -1, grid.shape[-1]))
        return [flat[..., i] for i in range(grid.shape[-1])][::-1]

    def operand(self, inputs):
        x, grid = inputs
        spatial = x.shape[2:]
        rows = {len(x)} if any(self.active[1:]) else {1, len(x)}  # a constant serves all rows
        if grid.ndim != x.ndim or grid.shape[-1] != len(spatial) or len(grid) not in rows:
            raise ModelError(f"a grid of shape {grid.shape} does not fit an image of {x.shape}")
        out = grid.shape[1:-1]
        checked_shape((*x.shape[:2], *out))
        return x, (out, self.reader(spatial).taps(self.points(grid, x))), None

    def apply(self, x, w):
        out, taps = w
        return read(x.reshape((*x.shape[:2], -1)), taps).reshape((*x.shape[:2], *out))

    def vjp(self, g, shape, w):
        back = read_back(g.reshape((*g.shape[:3], -1)), w[1], math.prod(shape[2:]))
        return back.reshape((g.shape[0], *shape))

    def split(self, w):
        out, taps = w
        up, down = ([Tap(t.place, part(t.weight)) for t in taps] for part in (positive, negative))
        return (out, up), (out, down) if self.mode == "cubic" else None

    def map_weights(self, w, f):
        return w[0], map_taps(w[1], f)


class GridSampleAt(GridSample, op="GridSample", since=16):
    """GridSample at points that depend on the data."""

    family = "product"
    data = (0, 1)

    def gradient(self, rec, g):
        x, grid = rec.inputs
        back = self.reader(x.shape[2:]).gradient(
            g[0].reshape((*g[0].shape[:3], -1)), _flat(x), self.points(grid, x)
        )
        return self._shaped(back, x.shape, grid.shape)

    def deeplift(self, rec, ref, m, rule, parts):
        shapes = [joint_shape(rec, ref, i) for i in (0, 1)]
        xs = [r.inputs[0] for r in (rec, ref)]
        points = [self.points(r.inputs[1], r.inputs[0]) for r in (rec, ref)]
        flat = m[0].reshape((*m[0].shape[:3], -1))
        images = tuple(map(_flat, xs))
        return self._shaped(
            self.reader(shapes[0][2:]).multipliers(flat, images, tuple(points)), *shapes
        )

    def _shaped(self, back: tuple[Array, list[Array]], shape: Shape, grid: Shape) -> tuple:
        to_x, to_points = back
        xp, k = namespace(to_x), to_x.shape[0]
        to_grid = xp.concatenate([p[..., None] for p in to_points[::-1]], axis=-1)
        signals = to_x.reshape((k, *shape)), to_grid.reshape((k, *grid))
        return tuple(s if a else None for s, a in zip(signals, self.active, strict=True))

    def relevance(self, rec, r, rule, note):
        """All to the image: where it is read is no contribution."""
        if not self.active[0]:
            raise UnsupportedOpError(
                f"{self.op} of an image that is constant: points have no relevance"
            )
        x, w, _ = self.operand(rec.inputs)
        return rule.rule.linear(self, x, w, None, rec.outputs[0], r[0], note), None

    def difference_parts(self, rec, ref, parts):
        return None

    def connection(self, rec, g, rule):
        raise UnsupportedOpError(
            f"{self.op} reads at points that depend on the data: connection weights are not "
            "defined for it"
        )

    def describe(self, method):
        words = {
            "gradient": ("slopes of image and points", True, ""),
            "lrp": ("rule", True, "all to the image, a convention"),
            "deeplift": ("midpoint and secants", True, ""),
            "connection": ("", False, "not defined: points that depend on the data"),
        }
        return words[method]


def _flat(x: Array) -> Array:
    return x.reshape((*x.shape[:2], -1))


class AffineGrid(Linear, op="AffineGrid", since=20):
    """y = the points of a regular grid under affine maps x (n, d, d + 1), for GridSample."""

    def operand(self, inputs):
        theta, size = inputs
        n, _, *spatial = checked_shape(host_ints(size))
        if theta.shape != (n, len(spatial), len(spatial) + 1):
            raise ModelError(f"affine maps of shape {theta.shape} for a grid of size {size}")
        checked_shape((n, *spatial, len(spatial) + 1))
        lines = [self._line(m) for m in spatial]
        points = np.stack([*np.meshgrid(*lines, indexing="ij")[::-1], np.ones(spatial)], axis=-1)
        points = points.reshape((-1, len(spatial) + 1)).astype(theta.dtype)
        return theta, (on_device_of(points, theta), tuple(spatial)), None

    def _line(self, n: int) -> np.ndarray:
        if self.align_corners:
            return np.linspace(-1, 1, n) if n > 1 else np.zeros(1)
        return (2 * np.arange(n) + 1) / n - 1

    def split(self, w):
        points, spatial = w
        return (positive(points), spatial), (negative(points), spatial)

    def map_weights(self, w, f):
        return f(w[0]) * (w[0] != 0).astype(w[0].dtype), w[1]

    def apply(self, x, w):
        points, spatial = w
        return (points @ x.swapaxes(1, 2)).reshape((len(x), *spatial, len(spatial)))

    def vjp(self, g, shape, w):
        points, spatial = w
        flat = g.reshape((*g.shape[:2], -1, len(spatial)))
        return flat.swapaxes(2, 3) @ points


# -- in regions -----------------------------------------------------------------------------------


class Regions(NamedTuple):
    """Bilinear readings of regions, as one matrix per axis: (regions, out, pixels)."""

    high: Array
    wide: Array
    image: Array  # the image of each region


class RoiAlign(Linear, op="RoiAlign", since=10):
    """y = regions of images on a small grid: means (or maxima) of bilinear readings in each bin.

    Which regions are looked at is no signal: they are taken as they are.
    """

    def setup(self):
        vars(self).setdefault("coordinate_transformation_mode", "output_half_pixel")
        if self.mode not in ("avg", "max"):
            raise ModelError(f"RoiAlign has no mode {self.mode!r}")

    @classmethod
    def accepts(cls, active):
        return active[0] or not any(active)

    def forward(self, x, rois, batch_indices):
        if self.mode == "avg":
            return super().forward(x, rois, batch_indices)
        return self._maxima(x, rois, batch_indices)

    # -- where it reads ---------------------------------------------------------------------------

    def _samples(self, rois: Array, axis: int, out: int, n: int) -> tuple[Array, Array, Array]:
        """Return coordinates (regions, out, samples) along an axis, which count, and how many."""
        xp = namespace(rois)
        half = self.coordinate_transformation_mode == "half_pixel"
        start, end = (rois[:, i] * self.spatial_scale - 0.5 * half for i in (axis, axis + 2))
        length = end - start if half else xp.maximum(end - start, 1)
        count = xp.full_like(length, self.sampling_ratio) if self.sampling_ratio else None
        count = xp.ceil(length / out) if count is None else count
        most = self.sampling_ratio or int(to_host(count).max(initial=0))
        if most > MAX_SAMPLES:
            raise ModelError(f"it reads {most:,} points per cell, {MAX_SAMPLES:,} are allowed")
        checked_shape((len(rois), out, max(most, 0), n))
        i, bins = xp.arange(most), xp.arange(out)[:, None]
        count = count[:, None, None]
        step = (i + 0.5) / xp.maximum(count, 1)
        at = start[:, None, None] + (bins + step) * (length / out)[:, None, None]
        held = (at >= -1) & (at <= n) & (i < count)
        return xp.clip(at, 0, n - 1).astype(rois.dtype, copy=False), held, count

    def _lines(self, x: Array, rois: Array) -> list[tuple[Array, Array, Array]]:
        rois = on_device_of(rois, x).astype(x.dtype, copy=False)
        return [
            self._samples(rois, 1, self.output_height, x.shape[2]),
            self._samples(rois, 0, self.output_width, x.shape[3]),
        ]

    def _check(self, x: Array, rois: Array, batch_indices: Array) -> None:
        if x.ndim != 4 or rois.shape != (len(batch_indices), 4):
            raise ModelError(
                f"{len(batch_indices)} regions of shape {rois.shape} in images of {x.shape}"
            )
        if is_device(batch_indices) or batch_indices.size == 0:
            return
        low, high = int(batch_indices.min()), int(batch_indices.max())
        if low < 0 or high >= len(x):
            raise DataError(f"RoiAlign wants images {low} to {high} of {len(x)}")

    # -- means ------------------------------------------------------------------------------------

    def operand(self, inputs):
        x, rois, batch_indices = inputs
        self._refuse_maxima()
        self._check(x, rois, batch_indices)
        sides = zip(self._lines(x, rois), x.shape[2:], strict=True)
        high, wide = (_means(*line, n) for line, n in sides)
        return x, Regions(high, wide, batch_indices), None

    def _refuse_maxima(self) -> None:
        if self.mode == "max":
            raise UnsupportedOpError(
                "RoiAlign with mode='max' is computed, not explained; explain tensors before it, "
                "convert(model, outputs=[...])"
            )

    def _blocks(self, w: Regions, channels: int, outputs: int = 1) -> Iterator[slice]:
        """Cut the regions so that the images they read from stay small."""
        per_region = outputs * channels * w.high.shape[-1] * w.wide.shape[-1]
        step = max(1, 2**22 // max(per_region, 1))
        for start in range(0, len(w.image), step):
            yield slice(start, start + step)

    def apply(self, x, w):
        xp = namespace(x)
        shape = (len(w.image), x.shape[1], w.high.shape[1], w.wide.shape[1])
        y = xp.empty(checked_shape(shape), x.dtype)
        for part in self._blocks(w, x.shape[1]):
            images = xp.take(x, on_device_of(w.image[part], x), axis=0)
            y[part] = w.high[part, None] @ images @ w.wide[part, None].swapaxes(2, 3)
        return y

    def vjp(self, g, shape, w):
        back = namespace(g).zeros((g.shape[0], *shape), g.dtype)
        for part in self._blocks(w, shape[1], g.shape[0]):
            images = w.high[part, None].swapaxes(2, 3) @ g[:, part] @ w.wide[part, None]
            back = back + scatter_add(images, w.image[part], 1, shape[0])
        return back

    def split(self, w):
        return w, None  # bilinear weights are not negative

    def map_weights(self, w, f):
        return w._replace(**{k: f(m) * (m != 0).astype(m.dtype) for k, m in self._sides(w)})

    @staticmethod
    def _sides(w: Regions) -> list[tuple[str, Array]]:
        return [("high", w.high), ("wide", w.wide)]

    def deeplift(self, rec, ref, m, rule, parts):
        """Where input and reference look at different regions, the mean of both ways back."""
        if all(same(a, b) for a, b in zip(rec.inputs[1:], ref.inputs[1:], strict=True)):
            return super().deeplift(rec, ref, m, rule, parts)
        if rec.inputs[1].shape != ref.inputs[1].shape:
            raise DataError("RoiAlign looks at another number of regions in the reference")
        shape = joint_shape(rec, ref, 0)
        ways = [self.operand(run.inputs)[1] for run in (rec, ref)]
        return self.at(0, sum(self.vjp(0.5 * m[0], shape, w) for w in ways))

    def describe(self, method):
        if self.mode == "max":
            return ("", False, "not defined for mode='max'")
        words = super().describe(method)
        return (words[0], False, "regions are taken as they are") if self.active[1] else words

    # -- maxima -----------------------------------------------------------------------------------

    def _maxima(self, x: Array, rois: Array, batch_indices: Array) -> Array:
        """Return the largest of all pixels times their weights, sample by sample."""
        self._check(x, rois, batch_indices)
        xp = namespace(x)
        (y, y_held, _), (z, z_held, _) = self._lines(x, rois)
        shape = (len(rois), x.shape[1], self.output_height, self.output_width)
        best = xp.zeros(checked_shape(shape), x.dtype)
        images = on_device_of(batch_indices, x)[:, None, None, None]
        channels = xp.arange(x.shape[1])[:, None, None]
        first = True
        for i, j in product(range(y.shape[2]), range(z.shape[2])):
            lines = (linear_taps(y[:, :, i], x.shape[2]), linear_taps(z[:, :, j], x.shape[3]))
            held = (y_held[:, :, i, None] & z_held[:, None, :, j])[:, None]
            for a, b in product(*lines):
                pixel = x[images, channels, a.place[:, None, :, None], b.place[:, None, None]]
                value = pixel * (a.weight[:, None, :, None] * b.weight[:, None, None])
                value = xp.where(held, value, 0)
                best = value if first else xp.maximum(best, value)
                first = False
        return best.astype(x.dtype, copy=False)


def _means(at: Array, held: Array, count: Array, n: int) -> Array:
    """Return the matrix (regions, out, n) of mean readings at coordinates."""
    xp = namespace(at)
    weights = xp.maximum(1 - abs(at[..., None] - xp.arange(n)), 0)
    weights = weights * held[..., None].astype(at.dtype)
    mean = weights.sum(axis=2) / xp.maximum(count, 1)
    return mean.astype(at.dtype, copy=False)


# -- at shifted windows ---------------------------------------------------------------------------


# A convolution whose windows read x at shifted places is a reading, times a mask, times weights.


class Term(NamedTuple):
    """Readings of shifted windows, and the weights they meet."""

    taps: list[Tap]
    w: Array


class DeformConv(Linear, op="DeformConv", since=19):
    """Convolution whose windows read x at shifted places."""

    def operand(self, inputs):
        x, w, offset, b, mask = (*inputs, None, None)[:5]
        self._check(x, w, offset)
        taps = self.reader(x.shape).taps(self.points(x, w, offset))
        if mask is not None:
            mask = on_device_of(mask, x).reshape((len(x) * self.offset_group, -1))
            taps = [Tap(t.place, t.weight * mask) for t in taps]
        return x, [Term(taps, w)], None if b is None else b.reshape((1, -1, 1, 1))

    def _check(self, x: Array, w: Array, offset: Array) -> None:
        if x.ndim != 4:
            raise UnsupportedOpError("DeformConv is there for images, (n, c, height, width)")
        out, cells = checked_shape(self._out(x.shape, w)), math.prod(w.shape[2:])
        if offset.shape != (len(x), self.offset_group * cells * 2, *out):
            raise ModelError(f"offsets of shape {offset.shape} do not fit windows {(cells, *out)}")
        if x.shape[1] % self.offset_group or x.shape[1] != w.shape[1] * self.group:
            raise ModelError(f"weights of shape {w.shape} do not fit an input of {x.shape}")
        checked_shape((len(x), x.shape[1], cells, *out))

    def reader(self, shape: Shape) -> Reader:
        """Return what reads images of this shape."""
        return Reader([Line(n) for n in shape[2:]])

    def points(self, x: Array, w: Array, offset: Array) -> list[Array]:
        """Return where all windows read, (n offset groups, cells and windows) for each axis."""
        win = find_windows(self, x.shape[2:], w.shape[2:])
        out = offset.shape[2:]
        offset = on_device_of(offset, x).reshape((-1, *win.kernel, 2, *out))
        found = []
        for i in (0, 1):
            steps = np.arange(win.kernel[i])[:, None] * win.dilations[i]
            steps = steps + np.arange(out[i]) * win.strides[i] - win.pads[i][0]
            shape = [1, 1, 1, 1]
            shape[i], shape[i + 2] = steps.shape
            at = offset[:, :, :, i] + on_device_of(steps.reshape(shape).astype(x.dtype), x)
            found.append(at.reshape((len(offset), -1)))
        return found

    def per_offset(self, x: Array) -> Array:
        """Return images whose channels are read at the same places, (n groups, c, pixels)."""
        n, c = x.shape[:2]
        return x.reshape((n * self.offset_group, c // self.offset_group, -1))

    def _columns(self, x: Array, taps: list[Tap], w: Array) -> Array:
        """Return what the windows read: (n, group, cells of a group, windows)."""
        cells = math.prod(w.shape[2:])
        found = read(self.per_offset(x), taps)
        return found.reshape((len(x), self.group, x.shape[1] // self.group * cells, -1))

    def _matrix(self, w: Array) -> Array:
        return w.reshape((self.group, w.shape[0] // self.group, -1))

    def _out(self, x_shape: Shape, w: Array) -> Shape:
        return find_windows(self, x_shape[2:], w.shape[2:]).out(x_shape[2:])

    def apply(self, x, w):
        return sum(self._one(x, term) for term in w)

    def _one(self, x: Array, term: Term) -> Array:
        y = self._matrix(term.w) @ self._columns(x, term.taps, term.w)
        return y.reshape((len(x), -1, *self._out(x.shape, term.w)))

    def vjp(self, g, shape, w):
        return sum(self._one_back(g, shape, term) for term in w)

    def _one_back(self, g: Array, shape: Shape, term: Term) -> Array:
        columns = self.columns_back(g, shape[1], term.w)
        return read_back(columns, term.taps, math.prod(shape[2:])).reshape((len(g), *shape))

    def columns_back(self, g: Array, channels: int, w: Array) -> Array:
        """Take a signal to what was read: (outputs, n offset groups, c, cells and windows)."""
        k, n = g.shape[:2]
        flat = g.reshape((k, n, self.group, g.shape[2] // self.group, -1))
        columns = self._matrix(w).swapaxes(1, 2) @ flat
        return columns.reshape((k, n * self.offset_group, channels // self.offset_group, -1))

    def split(self, w):
        up, down = [], []
        for taps, weight in w:
            signs = [[Tap(t.place, f(t.weight)) for t in taps] for f in (positive, negative)]
            up += [Term(signs[0], positive(weight)), Term(signs[1], negative(weight))]
            down += [Term(signs[0], negative(weight)), Term(signs[1], positive(weight))]
        return up, down

    def map_weights(self, w, f):
        return [Term(map_taps(taps, f), f(weight)) for taps, weight in w]


class DeformConvAt(DeformConv, op="DeformConv", since=19):
    """DeformConv whose shifts or mask depend on the data."""

    family = "product"
    data = (0, 2, 4)

    def gradient(self, rec, g):
        x, w, offset, _, mask = (*rec.inputs, None, None)[:5]
        columns = self.columns_back(g[0], x.shape[1], w)
        reader, points, images = self.reader(x.shape), self.points(x, w, offset), self.per_offset(x)
        to_mask = None
        if mask is not None:
            mask = mask.reshape((len(images), -1))
            to_mask = (columns * read(images, reader.taps(points))).sum(axis=2)
            columns = columns * mask[:, None]
        shapes = [None if v is None else v.shape for v in rec.inputs]
        return self._shaped(shapes, *reader.gradient(columns, images, points), to_mask)

    def deeplift(self, rec, ref, m, rule, parts):
        runs = [self._joint(run, rec, ref) for run in (rec, ref)]
        w, shape = rec.inputs[1], runs[0][0].shape
        columns = self.columns_back(m[0], shape[1], w)
        reader = self.reader(shape)
        points = [self.points(x, w, offset) for x, offset, _ in runs]
        images = [self.per_offset(x) for x, _, _ in runs]
        to_mask = None
        if runs[0][2] is not None:
            masks = [mask.reshape((len(images[0]), -1)) for _, _, mask in runs]
            found = sum(read(*v) for v in zip(images, map(reader.taps, points), strict=True))
            to_mask = (columns * (0.5 * found)).sum(axis=2)
            columns = columns * (0.5 * (masks[0] + masks[1]))[:, None]
        back = reader.multipliers(columns, tuple(images), tuple(points))
        shapes = [None if x is None else joint_shape(rec, ref, i) for i, x in enumerate(rec.inputs)]
        return self._shaped(shapes, *back, to_mask)

    def _joint(self, run: Record, rec: Record, ref: Record) -> list[Array | None]:
        """Return x, offset and mask of a run, one row repeated where the other run has more."""
        inputs = (*run.inputs, None, None)[:5]
        xp = namespace(inputs[0])
        return [
            v if v is None else xp.broadcast_to(v, joint_shape(rec, ref, i))
            for i, v in enumerate(inputs)
            if i in self.data
        ]

    def _shaped(self, shapes, to_x, to_points, to_mask) -> tuple:
        """Return signals in the shapes of the inputs."""
        xp, k, cells = namespace(to_x), len(to_x), math.prod(shapes[1][2:])
        per_cell = (p.reshape((k, to_x.shape[1], cells, 1, -1)) for p in to_points)
        to_offset = xp.concatenate(list(per_cell), axis=3)
        signals = [to_x, None, to_offset, None, to_mask][: len(shapes)]
        return tuple(
            s.reshape((k, *shape)) if a else None
            for s, shape, a in zip(signals, shapes, self.active, strict=True)
        )

    def relevance(self, rec, r, rule, note):
        """All to the image: where it is read, and how much of it, is no contribution."""
        if not self.active[0]:
            raise UnsupportedOpError(f"{self.op} of an image that is constant has no relevance")
        x, w, b = self.operand(rec.inputs)
        back = rule.rule.linear(self, x, w, b, rec.outputs[0], r[0], note)
        return (back, *(None,) * (len(self.active) - 1))

    def difference_parts(self, rec, ref, parts):
        return None

    def connection(self, rec, g, rule):
        raise UnsupportedOpError(
            f"{self.op} reads at places that depend on the data: connection weights are not "
            "defined for it"
        )

    describe = GridSampleAt.describe


# -- with a memory --------------------------------------------------------------------------------


class CausalConvWithState(Expanded, op="CausalConvWithState", since=27):
    """A convolution of each channel with its past, which is given or 0, and the past to come."""

    main = "Conv"
    opset = 24

    def expand(self, writer):
        x, w, b, past = (*writer.inputs, "", "", "")[:4]
        weight = writer.constant(w)
        if weight is None:
            raise UnsupportedOpError("CausalConvWithState with weights that are not constant")
        channels, _, k = weight.shape
        if past:
            padded = writer.node("Concat", past, x, axis=2)
        else:
            padded = writer.node("Pad", x, writer.weight(np.array([0, 0, k - 1, 0, 0, 0])))
        y, state = (*writer.outputs, "")[:2]
        plain = self.activation == "none"
        if y:
            inputs = (padded, w, b) if b else (padded, w)
            found = writer.node("Conv", *inputs, group=channels, output=y if plain else None)
            if not plain:
                writer.node("Swish", found, output=y)
        if state:
            start, end = ([1 - k], [2**31]) if k > 1 else ([0], [0])
            cut = (writer.weight(np.array(v)) for v in (start, end, [2]))
            writer.node("Slice", padded, *cut, output=state)
