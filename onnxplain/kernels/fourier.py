"""Discrete Fourier transforms, and the windows and filters that stand before and after them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

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
from .constants import Forward
from .families import Linear
from .routing import following, native_dtype, scatter_add


@dataclass(frozen=True)
class Transform:
    """A Fourier transform of real tensors (..., n, parts): parts are real, or real and imaginary.

    `length` is that of the full spectrum or signal; `onesided` leaves out what is known by
    symmetry: in the result, or (inverse) in what comes in.
    """

    n: int
    parts: int
    length: int
    inverse: bool
    onesided: bool

    @property
    def out(self) -> tuple[int, int]:
        """Length and parts of the result."""
        if self.onesided and not self.inverse:
            return self.length // 2 + 1, 2
        return self.length, 1 if self.onesided else 2

    def apply(self, x: Array) -> Array:
        """Transform (..., n, parts)."""
        fft = namespace(x).fft
        z = _complex(x)
        if self.onesided and self.inverse:
            y = fft.irfft(z, self.length, axis=-1)[..., None]
        elif self.inverse:
            y = _pairs(fft.ifft(z, self.length, axis=-1))
        else:
            y = _pairs(fft.fft(z, self.length, axis=-1)[..., : self.out[0]])
        return self._real_ends(y.astype(x.dtype, copy=False))

    def transpose(self, g: Array) -> Array:
        """Apply the transpose to a signal (..., *out)."""
        xp, fft = namespace(g), namespace(g).fft
        g = self._real_ends(g)
        if self.onesided and self.inverse:
            z = fft.rfft(g[..., 0], axis=-1) * on_device_of(self._multiplicity(g.dtype), g)
        elif self.inverse:
            z = fft.fft(_complex(g), axis=-1) / self.length
        else:
            z = fft.ifft(_complex(g), self.length, axis=-1) * self.length
        missing = self.n - z.shape[-1]
        z = z[..., : self.n]
        if missing > 0:
            z = xp.pad(z, [(0, 0)] * (z.ndim - 1) + [(0, missing)])
        return _pairs(z)[..., : self.parts].astype(g.dtype, copy=False)

    def _real_ends(self, y: Array) -> Array:
        """Make exactly 0 what is no more than rounding: imaginary parts at both ends of a spectrum.

        A relevance divided by such a number would be noise.
        """
        if self.parts == 2:
            return y
        real = np.ones(self.out, y.dtype)
        ends = [0, self.length // 2] if self.length % 2 == 0 else [0]
        real[slice(None) if self.n == 1 else ends, 1:] = 0
        return y * on_device_of(real, y)

    def _multiplicity(self, dtype: np.dtype) -> np.ndarray:
        """Return how often each frequency of half a spectrum is in the whole, over its length."""
        counts = np.full(self.length // 2 + 1, 2.0)
        counts[0] = 1
        if self.length % 2 == 0:
            counts[-1] = 1
        return (counts / self.length).astype(dtype)

    def matrix(self, like: Array) -> Array:
        """Return the map as a tensor (n, parts, *out), exactly 0 where nothing is connected."""
        xp = namespace(like)
        shape = checked_shape((self.n, self.parts, *self.out))
        eye = xp.eye(self.n * self.parts, dtype=like.dtype)
        matrix = self.apply(eye.reshape((-1, self.n, self.parts))).reshape(shape)
        rounding = 64 * np.finfo(like.dtype).eps / (self.length if self.inverse else 1)
        return xp.where(abs(matrix) > rounding, matrix, 0).astype(like.dtype, copy=False)


def _complex(x: Array) -> Array:
    wide = x.astype(np.float32, copy=False) if x.dtype.itemsize < 4 else x
    return wide[..., 0] if wide.shape[-1] == 1 else wide[..., 0] + 1j * wide[..., 1]


def _pairs(z: Array) -> Array:
    xp = namespace(z)
    return xp.concatenate([z.real[..., None], z.imag[..., None]], axis=-1)


def mapped(matrix: Array, f: Any) -> Array:
    """Apply a function to weights; what is not connected stays so."""
    return f(matrix) * (matrix != 0).astype(matrix.dtype)


class Spectral(Linear):
    """A linear map of (..., n, parts) that is a Fourier transform, or a matrix made from one.

    Rules that need weights one by one get the matrix; everything else goes through the transform.
    """

    def through(self, x: Array, w: Any) -> Array:
        """Apply a transform or a matrix to the last two axes."""
        if isinstance(w, Transform):
            return w.apply(x)
        return namespace(x).tensordot(x, w, axes=2)

    def through_back(self, g: Array, w: Any) -> Array:
        """Apply the transpose to the last two axes."""
        if isinstance(w, Transform):
            return w.transpose(g)
        return namespace(g).tensordot(g, w, axes=((-2, -1), (2, 3)))


class DFT(Spectral, op="DFT", since=20):
    """y = the Fourier transform of x along an axis; the last axis holds real and imaginary part."""

    def axis_of(self, inputs: tuple[Array | None, ...]) -> int:
        """Return the axis that is transformed."""
        axis = (*inputs, None, None)[2]
        return -2 if axis is None else host_ints(axis)[0]

    def operand(self, inputs):
        x, length = (*inputs, None)[:2]
        axis = self.axis_of(inputs) % x.ndim
        if axis == x.ndim - 1 or x.shape[-1] not in (1, 2):
            raise ModelError(
                f"{self.op} of {x.shape} along axis {axis}: the last axis holds the real and the "
                "imaginary part, its length is 1 or 2"
            )
        n, parts = x.shape[axis], x.shape[-1]
        if self.onesided and not self.inverse and parts == 2:
            raise ModelError("a onesided DFT is one of real data: the last axis has length 1")
        half = self.onesided and self.inverse
        full = (2 * (n - 1) if half else n) if length is None else host_ints(length)[0]
        if full < 1:
            raise ModelError(f"{self.op} of length {full}")
        transform = Transform(n, parts, full, bool(self.inverse), bool(self.onesided))
        checked_shape((*(m for i, m in enumerate(x.shape[:-1]) if i != axis), *transform.out))
        return x, (axis, transform, x), None

    def split(self, w):
        axis, transform, like = w
        matrix = transform.matrix(like)
        return (axis, positive(matrix), like), (axis, negative(matrix), like)

    def map_weights(self, w, f):
        axis, m, like = w
        matrix = m.matrix(like) if isinstance(m, Transform) else m
        return axis, mapped(matrix, f), like

    def apply(self, x, w):
        axis, m, _ = w
        xp = namespace(x)
        return xp.moveaxis(self.through(xp.moveaxis(x, axis, -2), m), -2, axis)

    def vjp(self, g, shape, w):
        axis, m, _ = w
        xp = namespace(g)
        return xp.moveaxis(self.through_back(xp.moveaxis(g, axis + 1, -2), m), -2, axis + 1)


class DFT17(DFT, op="DFT", since=17):
    """DFT with the axis as an attribute."""

    def axis_of(self, inputs):
        return self.axis


class STFT(Spectral, op="STFT", since=17):
    """y = Fourier transforms of overlapping frames of a signal (n, length, parts), windowed."""

    def operand(self, inputs):
        x, step, window, length = (*inputs, None, None)[:4]
        (step,) = host_ints(step)
        if x.ndim == 2:
            raise ModelError(f"STFT of {x.shape}: expected (rows, length, 1 or 2)")
        parts = x.shape[-1]
        n = window.shape[0] if length is None and window is not None else None
        n = n or (x.shape[1] if length is None else host_ints(length)[0])
        if window is not None and window.shape != (n,):
            raise ModelError(f"a window of shape {window.shape} for frames of length {n}")
        if step < 1 or not 1 <= n <= x.shape[1] or parts not in (1, 2):
            raise ModelError(f"STFT of {x.shape} in frames of {n}, one every {step}")
        count = 1 + (x.shape[1] - n) // step
        transform = Transform(n, parts, n, False, bool(self.onesided) and parts == 1)
        checked_shape((x.shape[0], count, max(n, transform.out[0]), 2))
        index = np.arange(count)[:, None] * step + np.arange(n)
        window = None if window is None else on_device_of(window, x).astype(x.dtype, copy=False)
        return x, (index, window, transform, x), None

    def apply(self, x, w):
        index, window, m, _ = w
        frames = x[:, on_device_of(index, x)]
        return self.through(frames if window is None else frames * window[:, None], m)

    def vjp(self, g, shape, w):
        index, window, m, _ = w
        frames = self.through_back(g, m)
        frames = frames if window is None else frames * window[:, None]
        flat = frames.reshape((*g.shape[:2], index.size, shape[-1]))
        return scatter_add(flat, index.reshape(-1), 2, shape[1])

    def _matrix(self, w: tuple) -> tuple:
        """Return the weights as a matrix that has the window in it."""
        index, window, m, like = w
        if not isinstance(m, Transform):
            return w
        matrix = m.matrix(like)
        if window is not None:
            matrix = matrix * window[:, None, None, None]
        return index, None, matrix, like

    def split(self, w):
        index, _, matrix, like = self._matrix(w)
        return (index, None, positive(matrix), like), (index, None, negative(matrix), like)

    def map_weights(self, w, f):
        index, _, matrix, like = self._matrix(w)
        return index, None, mapped(matrix, f), like


# -- windows and filters --------------------------------------------------------------------------


class Window(Forward):
    """y = a window of the length given: a sum of cosines with these amplitudes."""

    amplitudes: tuple[float, ...] = ()

    def setup(self):
        self.compute_dtype = native_dtype(self.output_datatype)

    def with_dtype(self, dtype: np.dtype) -> Window:
        """Return this kernel with another float type, if it makes floats."""
        return following(self, dtype)

    def forward(self, size):
        (n,) = checked_shape(host_ints(size))
        period = n if self.periodic else n - 1
        angle = 2 * math.pi * np.arange(n) / max(period, 1)
        terms = (a * (-1) ** i * np.cos(i * angle) for i, a in enumerate(self.amplitudes))
        return sum(terms, start=np.zeros(n)).astype(self.compute_dtype)


class HannWindow(Window, op="HannWindow", since=17):
    """y = 1/2 - 1/2 cos."""

    amplitudes = (0.5, 0.5)


class HammingWindow(Window, op="HammingWindow", since=17):
    """y = 25/46 - 21/46 cos."""

    amplitudes = (25 / 46, 21 / 46)


class BlackmanWindow(Window, op="BlackmanWindow", since=17):
    """y = 0.42 - 0.5 cos + 0.08 cos of twice the angle."""

    amplitudes = (0.42, 0.5, 0.08)


class MelWeightMatrix(Forward, op="MelWeightMatrix", since=17):
    """y = triangular filters (frequencies, mel bins), evenly spaced on the mel scale."""

    setup = Window.setup
    with_dtype = Window.with_dtype

    def forward(self, num_mel_bins, dft_length, sample_rate, lower_edge_hertz, upper_edge_hertz):
        given = (num_mel_bins, dft_length, sample_rate, lower_edge_hertz, upper_edge_hertz)
        bins, length, rate, low, high = (to_host(v).item() for v in given)
        if bins < 1 or length < 1 or rate < 1:
            raise ModelError(
                f"{bins} mel bins of a spectrum of {length} at {rate} samples a second"
            )
        shape = checked_shape((length // 2 + 1, bins))
        low, high = (2595 * math.log10(1 + v / 700) for v in (low, high))
        mel = low + (high - low) / (bins + 2) * np.arange(bins + 2)
        hertz = 700 * (10 ** (mel / 2595) - 1)
        edges = ((length + 1) * hertz // rate).astype(int)
        left, middle, right = edges[:-2], edges[1:-1], edges[2:]
        place = np.arange(shape[0])[:, None]
        rise = (place - left) / np.maximum(middle - left, 1)
        fall = (right - place) / np.maximum(right - middle, 1)
        up = np.where((place >= left) & (place <= middle) & (middle > left), rise, 0)
        y = np.where((place >= middle) & (place < right), fall, up)
        y = np.where((place == middle) & (left == middle) & (right == middle), 1, y)
        return y.astype(self.compute_dtype)


__all__ = [
    "DFT",
    "STFT",
    "BlackmanWindow",
    "HammingWindow",
    "HannWindow",
    "MelWeightMatrix",
    "Transform",
]
