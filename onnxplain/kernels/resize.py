"""Resize and Upsample: interpolation as one small matrix per axis.

Interpolation is separable, y = (M_1 x M_2 x ...) x with the Kronecker product of one matrix
(outputs x inputs) per axis. Weights are a list of such products (the sum counts): one for the
operator itself, several for its positive or negative part, because a weight of the whole is a
product of the weights of the axes and minus times minus is plus.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from ..arrays import (
    Array,
    checked_shape,
    host_ints,
    namespace,
    negative,
    on_device_of,
    positive,
    to_host,
)
from ..errors import ModelError
from .families import Linear


class Factor(NamedTuple):
    """What happens along one axis: a matrix, or a whole number of copies of each element."""

    axis: int
    matrix: Any


class Line(NamedTuple):
    """One axis to resize: lengths, scale, and the region of interest."""

    axis: int
    n: int
    out: int
    scale: float
    start: float = 0.0
    end: float = 1.0


class Resize(Linear, op="Resize", since=11):
    """y = x on a finer or coarser grid: nearest, linear or cubic interpolation."""

    def setup(self):
        absent = {"axes": None, "antialias": 0, "keep_aspect_ratio_policy": "stretch"}
        vars(self).update({k: v for k, v in absent.items() if k not in vars(self)})

    # -- what the node asks for -----------------------------------------------------------------

    def lines(self, inputs: tuple[Array | None, ...]) -> list[Line]:
        """Return the axes that change."""
        x, roi, scales, sizes = (*inputs, None, None, None)[:4]
        axes = list(range(x.ndim)) if self.axes is None else [a % x.ndim for a in self.axes]
        lengths = [x.shape[a] for a in axes]
        if scales is not None and scales.size:
            scales = to_host(scales)
            # The product in the precision of the file: 0.7 times 10 is 7 there.
            outs = [math.floor(v) for v in scales * np.array(lengths, scales.dtype)]
            scales = [intended(*v) for v in zip(scales, lengths, outs, strict=True)]
        elif sizes is not None and sizes.size:
            scales, outs = self._from_sizes(lengths, host_ints(sizes))
        else:
            raise ModelError("Resize got neither scales nor sizes")
        roi = self._region(roi, len(axes))
        lines = [Line(*line) for line in zip(axes, lengths, outs, scales, *roi, strict=True)]
        return [line for line in lines if not self._unchanged(line)]

    def _from_sizes(self, lengths: list[int], sizes: list[int]) -> tuple[list[float], list[int]]:
        scales = [size / n for n, size in zip(lengths, sizes, strict=True)]
        if self.keep_aspect_ratio_policy == "stretch":
            return scales, sizes
        scale = min(scales) if self.keep_aspect_ratio_policy == "not_larger" else max(scales)
        return [scale] * len(lengths), [math.floor(scale * n + 0.5) for n in lengths]

    def _region(self, roi: Array | None, n: int) -> tuple[list[float], list[float]]:
        if self.coordinate_transformation_mode != "tf_crop_and_resize":
            return [0.0] * n, [1.0] * n
        values = [decimal(v) for v in to_host(roi).ravel()]
        return values[:n], values[n:]

    @staticmethod
    def _unchanged(line: Line) -> bool:
        return line.n == line.out and line.scale == 1 and (line.start, line.end) == (0, 1)

    # -- the operator ---------------------------------------------------------------------------

    def operand(self, inputs):
        x, lines = inputs[0], self.lines(inputs)
        shape = list(x.shape)
        for line in lines:
            shape[line.axis] = line.out
        checked_shape(shape)
        if self.position_of_rows_changes(lines):
            raise ModelError(
                f"Resize would turn {x.shape[0]} rows into {shape[0]}: "
                "the model was exported for another batch size"
            )
        factors = tuple(self._factor(line, x) for line in lines)
        return x, [factors], self._outside(lines, x)

    def position_of_rows_changes(self, lines: list[Line]) -> bool:
        """Tell whether data would be interpolated between rows."""
        return any(self.active) and any(line.axis == 0 for line in lines)

    def _factor(self, line: Line, x: Array) -> Factor:
        at = coordinates(self.coordinate_transformation_mode, line)
        if self.mode == "nearest":
            index = np.clip(self.nearest(at, line), 0, line.n - 1)
            copies = max(line.out // line.n, 1)
            if np.array_equal(index, np.arange(copies * line.n) // copies):
                return Factor(line.axis, copies)
            matrix = np.eye(line.n)[index]
        else:
            matrix = self._weights(at, line)
        if self._extrapolates():
            matrix[(at < 0) | (at > line.n - 1)] = 0
        dtype = x.dtype if np.issubdtype(x.dtype, np.inexact) else np.float64
        return Factor(line.axis, on_device_of(matrix.astype(dtype), x))

    def nearest(self, at: np.ndarray, line: Line) -> np.ndarray:
        """Return the element nearest to each coordinate."""
        rounding = {
            "round_prefer_floor": lambda v: np.ceil(v - 0.5),
            "round_prefer_ceil": lambda v: np.floor(v + 0.5),
            "floor": np.floor,
            "ceil": np.ceil,
        }
        return rounding[self.nearest_mode](at).astype(int)

    def _weights(self, at: np.ndarray, line: Line) -> np.ndarray:
        """Return the matrix of linear or cubic interpolation at the coordinates."""
        reach, kernel = (1, triangle) if self.mode == "linear" else (2, self._cubic)
        # When shrinking, antialiasing stretches the kernel so that no element is passed over.
        stretch = min(line.scale, 1.0) if self.antialias else 1.0
        reach = math.ceil(reach / stretch)
        taps = np.floor(at)[:, None] + np.arange(1 - reach, reach + 1)
        weights = kernel(abs(taps - at[:, None]) * stretch)
        if self.exclude_outside:
            weights = np.where((taps < 0) | (taps >= line.n), 0, weights)
        weights = weights / weights.sum(axis=1, keepdims=True)
        matrix = np.zeros((line.out, line.n))
        rows = np.arange(line.out)[:, None]
        np.add.at(matrix, (rows, np.clip(taps, 0, line.n - 1).astype(int)), weights)
        return matrix

    def _cubic(self, d: np.ndarray) -> np.ndarray:
        """Weights at distance d (Keys 1981, Cubic convolution interpolation)."""
        a = self.cubic_coeff_a
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0))

    def _extrapolates(self) -> bool:
        return self.coordinate_transformation_mode == "tf_crop_and_resize"

    def _outside(self, lines: list[Line], x: Array) -> Array | None:
        """Return the value put where the region leaves the tensor, else None."""
        if not self._extrapolates() or not self.extrapolation_value:
            return None
        inside = np.ones((1,) * x.ndim, bool)
        for line in lines:
            at = coordinates(self.coordinate_transformation_mode, line)
            shape = [line.out if i == line.axis else 1 for i in range(x.ndim)]
            inside = inside & ((at >= 0) & (at <= line.n - 1)).reshape(shape)
        return on_device_of(np.where(inside, 0, self.extrapolation_value).astype(x.dtype), x)

    def forward(self, *inputs):
        x = inputs[0]
        if np.issubdtype(x.dtype, np.inexact):
            return super().forward(*inputs)
        return super().forward(x.astype(np.float64), *inputs[1:]).astype(x.dtype)

    # -- linear algebra ---------------------------------------------------------------------------

    def apply(self, x, w):
        return sum(_through(x, factors) for factors in w)

    def vjp(self, g, shape, w):
        return sum(_back(g, factors, shape) for factors in w)

    def split(self, w):
        signs = ([], [])
        for factors in w:
            halves = [_halves(f) for f in factors]
            for choice in product((0, 1), repeat=len(factors)):
                term = tuple(half[c] for half, c in zip(halves, choice, strict=True))
                if all(f is not None for f in term):
                    signs[sum(choice) % 2].append(term)
        return signs[0] or None, signs[1] or None

    def map_weights(self, w, f):
        # Elements that no weight connects stay unconnected.
        return [
            tuple(
                Factor(axis, m if isinstance(m, int) else f(m) * (m != 0).astype(m.dtype))
                for axis, m in factors
            )
            for factors in w
        ]


class Resize10(Resize, op="Resize", since=10):
    """The first Resize: scales only, coordinates divided by them."""

    def setup(self):
        super().setup()
        self.coordinate_transformation_mode, self.exclude_outside = "asymmetric", 0

    def lines(self, inputs):
        return super().lines((inputs[0], None, inputs[1]))

    def nearest(self, at, line):
        return (np.floor if line.scale >= 1 else np.ceil)(at).astype(int)


class Upsample9(Resize10, op="Upsample", since=9):
    """The forerunner of Resize."""


class Upsample7(Resize10, op="Upsample", since=7):
    """Upsample with the scales as an attribute."""

    def lines(self, inputs):
        return super().lines((inputs[0], np.array(self.scales, np.float32)))


def decimal(v: np.floating) -> float:
    """Return the number that was rounded for the file: 0.2, where float(v) is 0.200000003."""
    return float(str(v))


def intended(scale: np.floating, n: int, out: int) -> float:
    """Return the scale that was rounded for the file.

    With 0.33333334 for 1/3 the coordinates fall short of the elements they should meet.
    """
    return out / n if abs(scale * n - out) <= 1e-6 * out else decimal(scale)


def coordinates(mode: str, line: Line) -> np.ndarray:
    """Return where each output element lies among the input elements."""
    _, n, out, scale, start, end = line
    at = np.arange(out)
    half_pixel = (at + 0.5) / scale - 0.5
    match mode:
        case "half_pixel":
            return half_pixel
        case "half_pixel_symmetric":
            return n / 2 * (1 - out / (scale * n)) + half_pixel
        case "pytorch_half_pixel":
            return half_pixel if out > 1 else np.zeros(out)
        case "align_corners":
            return at * ((n - 1) / (out - 1)) if out > 1 else np.zeros(out)
        case "asymmetric":
            return at / scale
        case "tf_half_pixel_for_nn":
            return half_pixel + 0.5
        case "tf_crop_and_resize":
            step = (end - start) * (n - 1) / (out - 1) if out > 1 else 0
            first = start if out > 1 else 0.5 * (start + end)
            return first * (n - 1) + at * step
    raise ModelError(f"Resize has no coordinate_transformation_mode {mode!r}")


def triangle(d: np.ndarray) -> np.ndarray:
    """Weights of linear interpolation at distance d."""
    return np.maximum(1 - d, 0)


def _through(x: Array, factors: tuple[Factor, ...]) -> Array:
    for axis, m in factors:
        x = namespace(x).repeat(x, m, axis) if isinstance(m, int) else _along(x, m, axis)
    return x


def _back(g: Array, factors: tuple[Factor, ...], shape: tuple[int, ...]) -> Array:
    for axis, m in factors:
        if isinstance(m, int):
            g = g.reshape((*g.shape[: axis + 1], shape[axis], m, *g.shape[axis + 2 :]))
            g = g.sum(axis=axis + 2)
        else:
            g = _along(g, m.T, axis + 1)
    return g


def _along(x: Array, m: Array, axis: int) -> Array:
    """Apply a matrix along one axis."""
    xp = namespace(x)
    if axis == x.ndim - 1:
        return x @ m.T
    if axis == x.ndim - 2:
        return m @ x
    return xp.moveaxis(xp.tensordot(x, m, axes=(axis, 1)), -1, axis)


def _halves(factor: Factor) -> tuple[Factor, Factor | None]:
    """Split by sign; there is no second half where nothing is negative."""
    axis, m = factor
    if isinstance(m, int) or not bool((m < 0).any()):
        return factor, None
    return Factor(axis, positive(m)), Factor(axis, negative(m))
