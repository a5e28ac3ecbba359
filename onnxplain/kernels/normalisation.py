"""Operators that mix an axis: softmax and the normalisations, with DeepLIFT in closed form.

Every closed form writes the difference of the output exactly as a sum of multiples of the
differences of the inputs; at equal points it is the gradient.
"""

from __future__ import annotations

from ..arrays import Array, divide, namespace, unbroadcast
from .arithmetic import Pow
from .base import joint_shape
from .families import Axis


def log_mean(a: Array, b: Array, log_difference: Array) -> Array:
    """Return (a - b) / (log a - log b) for positive a and b, without cancellation."""
    xp = namespace(a, b)
    d = -abs(log_difference)
    return xp.maximum(a, b) * divide(xp.expm1(d), d, 1.0)


class Softmax(Axis, op="Softmax", since=13):
    """y_i = exp(x_i) / sum_k exp(x_k) along an axis."""

    activation = True

    def forward(self, x):
        e = namespace(x).exp(x - x.max(axis=self.axis, keepdims=True))
        return e / e.sum(axis=self.axis, keepdims=True)

    def _along(self, x: Array) -> int:
        """Return the axis as it counts in signals too: from the end."""
        return self.axis if self.axis < 0 else self.axis - x.ndim

    def vjp(self, g, x, y):
        return y * (g - (g * y).sum(axis=self._along(x), keepdims=True))

    def relevance(self, rec, r, rule, note):
        """Taylor expansion at x; its constant absorbs relevance (Achtibat et al. 2024)."""
        if rule.elementwise_softmax:
            return self.at(0, r[0])
        x, y = rec.inputs[0], rec.outputs[0]
        axis = self._along(x)
        back = x * (r[0] - y * r[0].sum(axis=axis, keepdims=True))
        if note is not None:
            note.add("bias", r[0] * (1 - x + (x * y).sum(axis=axis, keepdims=True)))
        return self.at(0, back)

    def deeplift(self, rec, ref, m, rule, parts):
        x, y, x0, y0 = rec.inputs[0], rec.outputs[0], ref.inputs[0], ref.outputs[0]
        if rule.elementwise_softmax:
            return self.at(0, m[0] * divide(y - y0, x - x0))
        axis = self._along(x)
        level = self._log(x, axis) - self._log(x0, axis)
        mean = log_mean(y, y0, level)
        return self.at(0, self._spread(m[0], mean, axis))

    @staticmethod
    def _log(x: Array, axis: int) -> Array:
        xp = namespace(x)
        z = x - x.max(axis=axis, keepdims=True)
        return z - xp.log(xp.exp(z).sum(axis=axis, keepdims=True))

    def _spread(self, m: Array, mean: Array, axis: int) -> Array:
        """The gradient's form with logarithmic means of the two probabilities in their place.

        dy = L (dx - d lse) elementwise, and sum(L dx) = sum(L) d lse because probabilities add
        up to one at both points.
        """
        pull = (m * mean).sum(axis=axis, keepdims=True) / mean.sum(axis=axis, keepdims=True)
        return mean * (m - pull)

    def describe(self, method):
        if method == "lrp":
            return ("Taylor", True, "AttnLRP, its constant absorbs relevance; passes if last")
        return super().describe(method)


class LogSoftmax(Softmax, op="LogSoftmax", since=13):
    """y_i = x_i - log sum_k exp(x_k) along an axis."""

    def forward(self, x):
        return self._log(x, self._along(x))

    def vjp(self, g, x, y):
        return g - namespace(y).exp(y) * g.sum(axis=self._along(x), keepdims=True)

    def relevance(self, rec, r, rule, note):
        """The normaliser is passed: relevance goes through unchanged."""
        return self.at(0, r[0])

    def deeplift(self, rec, ref, m, rule, parts):
        x, y, x0, y0 = rec.inputs[0], rec.outputs[0], ref.inputs[0], ref.outputs[0]
        if rule.elementwise_softmax:
            return self.at(0, m[0] * divide(y - y0, x - x0))
        xp, axis = namespace(y), self._along(x)
        mean = log_mean(xp.exp(y), xp.exp(y0), y - y0)
        share = mean / mean.sum(axis=axis, keepdims=True)
        return self.at(0, m[0] - share * m[0].sum(axis=axis, keepdims=True))

    def describe(self, method):
        if method == "lrp":
            return ("pass", True, "the normaliser is passed, a convention")
        return super().describe(method)


class Flattened:
    """Before opset 13: all axes from `axis` on are one."""

    def _along(self, x: Array) -> tuple[int, ...]:
        return tuple(range((self.axis % x.ndim) - x.ndim, 0))

    def forward(self, x):
        axis = self._along(x)
        xp = namespace(x)
        z = x - x.max(axis=axis, keepdims=True)
        total = xp.exp(z).sum(axis=axis, keepdims=True)
        return self._finish(z, total)


class Softmax1(Flattened, Softmax, op="Softmax", since=1):
    """Softmax over all axes from `axis` on."""

    def _finish(self, z, total):
        return namespace(z).exp(z) / total


class LogSoftmax1(Flattened, LogSoftmax, op="LogSoftmax", since=1):
    """LogSoftmax over all axes from `axis` on."""

    def _finish(self, z, total):
        return z - namespace(z).log(total)


class Standardised(Axis):
    """y = w (x - mean) / sqrt(var + epsilon) + b over some axes, w and b constant."""

    def _axes(self, x: Array) -> tuple[int, ...]:
        """Return the axes the statistics run over, counted from the end."""
        raise NotImplementedError

    def _weights(self, x: Array, w: Array, b: Array | None) -> tuple[Array, Array | None]:
        return w, b

    def _parts(self, x: Array) -> tuple[Array, Array]:
        """Return the centred input and 1 / sqrt(var + epsilon)."""
        axes = self._axes(x)
        c = x - x.mean(axis=axes, keepdims=True)
        var = (c * c).mean(axis=axes, keepdims=True)
        return c, 1 / namespace(x).sqrt(var + x.dtype.type(self.epsilon))

    def _centre(self, g: Array, axes: tuple[int, ...]) -> Array:
        return g - g.mean(axis=axes, keepdims=True)

    def forward(self, x, w=None, b=None):
        w, b = self._weights(x, w, b)
        c, inverse = self._parts(x)
        y = c * inverse
        y = y if w is None else y * w
        y = y if b is None else y + b
        if self.n_outputs == 1:
            return y
        return (y, x.mean(axis=self._axes(x), keepdims=True), inverse)[: self.n_outputs]

    def vjp(self, g, x, y, w=None, b=None):
        return self._between(g, (x, x), w)

    def deeplift(self, rec, ref, m, rule, parts):
        w = rec.inputs[1] if len(rec.inputs) > 1 else None
        out = self._between(m[0], (rec.inputs[0], ref.inputs[0]), w)
        return self.at(0, unbroadcast(out, joint_shape(rec, ref, 0)))

    def _between(self, m: Array, points: tuple[Array, Array], w: Array | None) -> Array:
        """Product of the centred input and the inverse deviation, at the midpoint of each.

        The inverse deviation's difference is -(d var) / (s s0 (s + s0)), and that of the variance
        2 mean(c_mid dc): both exact.
        """
        x = points[0]
        axes = self._axes(x)
        w, _ = self._weights(x, w, None) if w is not None else (None, None)
        m = m if w is None else m * w
        (c, i), (c0, i0) = (self._parts(p) for p in points)
        middle, inverse = 0.5 * (c + c0), 0.5 * (i + i0)
        curve = (i * i) * (i0 * i0) / (i + i0)  # 1 / (s s0 (s + s0))
        pull = (m * middle).mean(axis=axes, keepdims=True)
        return self._centre(inverse * m - 2 * curve * middle * pull, axes)


class LayerNormalization(Standardised, op="LayerNormalization", since=17):
    """Standardises each row over the axes from `axis` on."""

    def _axes(self, x):
        return tuple(range((self.axis % x.ndim) - x.ndim, 0))


class InstanceNormalization(Standardised, op="InstanceNormalization"):
    """Standardises each channel of each row over its spatial axes."""

    def _axes(self, x):
        return tuple(range(2 - x.ndim, 0))

    def _weights(self, x, w, b):
        along = (-1,) + (1,) * (x.ndim - 2)
        return w.reshape(along), None if b is None else b.reshape(along)


class LRN(Axis, op="LRN"):
    """y_i = x_i (bias + alpha / size sum x_j^2)^-beta, j in a window of channels around i."""

    def _sum(self, v: Array, rank: int, transpose: bool = False) -> Array:
        """Sum a window of channels; `rank` axes belong to the tensor, those before are outputs."""
        axis = v.ndim - rank + 1
        before, after = (self.size - 1) // 2, self.size // 2
        before, after = (after, before) if transpose else (before, after)
        widths = [(0, 0)] * v.ndim
        widths[axis] = (before, after)
        padded, n = namespace(v).pad(v, widths), v.shape[axis]
        cuts = [(slice(None),) * axis + (slice(i, i + n),) for i in range(self.size)]
        return sum(padded[c] for c in cuts)

    def _base(self, x: Array) -> Array:
        return self.bias + self.alpha / self.size * self._sum(x * x, x.ndim)

    def forward(self, x):
        return (x * self._base(x) ** -self.beta).astype(x.dtype, copy=False)

    def vjp(self, g, x, y):
        return self._between(g, x, x)

    def deeplift(self, rec, ref, m, rule, parts):
        return self.at(0, self._between(m[0], rec.inputs[0], ref.inputs[0]))

    def _between(self, m: Array, x: Array, x0: Array) -> Array:
        """Product of x and a power of a sum of squares, at the midpoint of each."""
        exponent = x.dtype.type(-self.beta)
        s, s0 = self._base(x), self._base(x0)
        p, p0 = s**exponent, s0**exponent
        secant = _POW.secant(s, p, s0, p0, exponent)
        pull = self._sum(m * (0.5 * (x + x0) * secant), x.ndim, transpose=True)
        return m * (0.5 * (p + p0)) + (self.alpha / self.size) * (x + x0) * pull


_POW = Pow({}, (True, False))
