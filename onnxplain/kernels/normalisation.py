"""Operators that mix an axis: softmax and the normalisations, with DeepLIFT in closed form.

Every closed form writes the difference of the output exactly as a sum of multiples of the
differences of the inputs; at equal points it is the gradient.
"""

from __future__ import annotations

from ..arrays import Array, difference, divide, finite, namespace, unbroadcast
from ..errors import ModelError, UnsupportedOpError
from .arithmetic import Pow
from .base import Record, Signals, joint_shape
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
        x, y = finite(rec.inputs[0]), rec.outputs[0]
        axis = self._along(x)
        back = x * (r[0] - y * r[0].sum(axis=axis, keepdims=True))
        if note is not None:
            note.add("bias", r[0] * (1 - x + (x * y).sum(axis=axis, keepdims=True)))
        return self.at(0, back)

    def deeplift(self, rec, ref, m, rule, parts):
        x, y, x0, y0 = rec.inputs[0], rec.outputs[0], ref.inputs[0], ref.outputs[0]
        if rule.elementwise_softmax:
            return self.at(0, self._elementwise(m[0], y - y0, x - x0, rule.centred_softmax))
        axis = self._along(x)
        level = difference(self._log(x, axis), self._log(x0, axis))
        mean = log_mean(y, y0, level)
        return self.at(0, self._spread(m[0], mean, axis))

    @staticmethod
    def _elementwise(m: Array, dy: Array, dx: Array, centred: bool) -> Array:
        """Rescale each element by itself, as some libraries do; not exact."""
        out = m * divide(dy, dx)
        return out - out.mean(axis=tuple(range(2, out.ndim)), keepdims=True) if centred else out

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
        pull = (m * mean).sum(axis=axis, keepdims=True)
        return mean * (m - divide(pull, mean.sum(axis=axis, keepdims=True)))

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
            return self.at(0, self._elementwise(m[0], y - y0, x - x0, rule.centred_softmax))
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

    centred = True
    added = 0.0  # to the deviation

    def _axes(self, x: Array) -> tuple[int, ...]:
        """Return the axes the statistics run over, counted from the end."""
        raise NotImplementedError

    def _weights(self, x: Array, w: Array, b: Array | None) -> tuple[Array, Array | None]:
        return w, b

    def _mean(self, v: Array, x: Array) -> Array:
        """Return means over the axes of the statistics, of `x` or of a signal for it."""
        return v.mean(axis=self._axes(x), keepdims=True)

    def _parts(self, x: Array) -> tuple[Array, Array]:
        """Return the centred input and sqrt(var + epsilon)."""
        c = self._centre(x, x)
        return c, namespace(x).sqrt(self._mean(c * c, x) + x.dtype.type(self.epsilon))

    def _inverse(self, root: Array) -> Array:
        return 1 / (root + root.dtype.type(self.added))

    def _centre(self, v: Array, x: Array) -> Array:
        return v - self._mean(v, x) if self.centred else v

    def forward(self, x, w=None, b=None):
        w, b = self._weights(x, w, b) if w is not None else (None, None)
        c, root = self._parts(x)
        inverse = self._inverse(root)
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

        With r the root and i the inverse deviation, the difference of i is -i i0 (r - r0), that of
        r is d var / (r + r0), and that of the variance 2 mean(c_mid dc): all exact.
        """
        x = points[0]
        w, _ = self._weights(x, w, None) if w is not None else (None, None)
        m = m if w is None else m * w
        (c, r), (c0, r0) = (self._parts(p) for p in points)
        i, i0 = self._inverse(r), self._inverse(r0)
        middle, inverse = 0.5 * (c + c0), 0.5 * (i + i0)
        curve = divide(i * i0, r + r0)
        pull = self._mean(m * middle, x)
        return self._centre(inverse * m - 2 * curve * middle * pull, x)


class LayerNormalization(Standardised, op="LayerNormalization", since=17):
    """Standardises each row over the axes from `axis` on."""

    def _axes(self, x):
        return tuple(range((self.axis % x.ndim) - x.ndim, 0))


class RMSNormalization(LayerNormalization, op="RMSNormalization", since=23):
    """y = w x / sqrt(mean x^2 + epsilon) over the axes from `axis` on."""

    centred = False


class Standardise(Standardised, op="Standardise", domain="onnxplain"):
    """Standardises over any axes, or divides by the root mean square: joined from its parts."""

    def _axes(self, x):
        return tuple(a % x.ndim - x.ndim for a in self.axes)


class ScaledByData(LayerNormalization):
    """y = w n(x) + b where w or b carry data too: sum and product at their midpoints."""

    data = (0, 1, 2)

    @classmethod
    def accepts(cls, active):
        return any(active[1:])

    def _normalised(self, x: Array) -> Array:
        c, root = self._parts(x)
        return c * self._inverse(root)

    def gradient(self, rec, g):
        return self._signals(g[0], rec, rec)

    def deeplift(self, rec, ref, m, rule, parts):
        return self._signals(m[0], rec, ref)

    def _signals(self, m: Array, rec: Record, ref: Record) -> Signals:
        (x, w), (x0, w0) = rec.inputs[:2], ref.inputs[:2]
        pull = 0.5 * (self._normalised(x) + self._normalised(x0))
        back = (self._between(m, (x, x0), 0.5 * (w + w0)), m * pull, m)
        return tuple(
            unbroadcast(s, joint_shape(rec, ref, i)) if a else None
            for i, (s, a) in enumerate(zip(back, self.active, strict=False))
        )

    def relevance(self, rec, r, rule, note):
        """Scaled input and bias by contribution; of the former half to each factor with data."""
        x, w, b = (*rec.inputs, None)[:3]
        z = rec.outputs[0]
        d = rule.rule.secure(z)
        s = r[0] / d
        shift = s * (0 if b is None else b)
        scaled = s * (z - (0 if b is None else b)) / max(sum(self.active[:2]), 1)
        back = (scaled, scaled, shift)
        if note is not None:
            note.add("stabiliser", s * (d - z))
            if not any(self.active[:2]):
                note.add("constant", scaled)
            if not any(self.active[2:]):
                note.add("bias", shift)
        return tuple(
            unbroadcast(v, t.shape) if a else None
            for v, t, a in zip(back, (x, w, b), self.active, strict=False)
        )

    def connection(self, rec, g, rule):
        raise UnsupportedOpError(
            f"{self.op} with a scale or bias computed from the data: "
            "connection weights are not defined for it"
        )

    def describe(self, method):
        words = {
            "gradient": ("product rule", True, ""),
            "lrp": ("halves", True, "half to each factor (AttnLRP), a convention"),
            "deeplift": ("midpoint", True, ""),
            "connection": ("", False, "not defined: scale or bias carry data"),
        }
        return words[method]


class LayerNormalizationByData(ScaledByData, op="LayerNormalization", since=17):
    """LayerNormalization with data in its scale or bias."""


class RMSNormalizationByData(ScaledByData, op="RMSNormalization", since=23):
    """RMSNormalization with data in its scale."""

    centred = False


class InstanceNormalization(Standardised, op="InstanceNormalization"):
    """Standardises each channel of each row over its spatial axes."""

    def _axes(self, x):
        return tuple(range(2 - x.ndim, 0))

    def _weights(self, x, w, b):
        along = (-1,) + (1,) * (x.ndim - 2)
        return w.reshape(along), None if b is None else b.reshape(along)


class GroupNormalization(InstanceNormalization, op="GroupNormalization", since=21):
    """Standardises each group of channels of each row; w and b per channel."""

    def setup(self):
        if self.num_groups is None or self.num_groups < 1:
            raise ModelError(f"num_groups is {self.num_groups}, expected a positive number")

    def _mean(self, v, x):
        channels = x.shape[1]
        if channels % self.num_groups:
            raise ModelError(f"{channels} channels do not make {self.num_groups} equal groups")
        front = v.shape[: v.ndim - x.ndim]
        means = v.reshape((*front, v.shape[len(front)], self.num_groups, -1)).mean(axis=-1)
        means = namespace(v).repeat(means, channels // self.num_groups, axis=-1)
        return means.reshape((*means.shape, *(1,) * (x.ndim - 2)))


class GroupNormalization18(GroupNormalization, op="GroupNormalization", since=18):
    """GroupNormalization with w and b per group."""

    def _weights(self, x, w, b):
        size = x.shape[1] // self.num_groups
        spread = (v if v is None else namespace(v).repeat(v, size) for v in (w, b))
        return super()._weights(x, *spread)


class MeanVarianceNormalization(Standardised, op="MeanVarianceNormalization", since=9):
    """y = (x - mean) / (sqrt(var) + 1e-9) over the axes given."""

    epsilon, added = 0.0, 1e-9

    def setup(self):
        self.axes = (0, 2, 3) if self.axes is None else self.axes

    def _axes(self, x):
        return tuple(a % x.ndim - x.ndim for a in self.axes)


class UnitNorm(Axis):
    """y = x / s along an axis, s the sum of magnitudes (p = 1) or the length (p = 2)."""

    p = 2
    axis = -1

    def _along(self, x: Array) -> int:
        """Return the axis as it counts in signals too: from the end."""
        return self.axis % x.ndim - x.ndim

    def _norm(self, x: Array) -> Array:
        axis = self._along(x)
        if self.p == 1:
            return abs(x).sum(axis=axis, keepdims=True)
        return namespace(x).sqrt((x * x).sum(axis=axis, keepdims=True))

    def _divisor(self, s: Array) -> Array:
        return namespace(s).where(s == 0, s.dtype.type(1), s)

    def _inverses(self, s: Array, s0: Array) -> tuple[Array, Array]:
        """Return 1 / s and 1 / s0; a row of zeros has no length, it takes the other's."""
        i, i0, xp = 1 / self._divisor(s), 1 / self._divisor(s0), namespace(s, s0)
        return xp.where(s == 0, i0, i), xp.where(s0 == 0, i, i0)

    def forward(self, x):
        return x / self._divisor(self._norm(x))

    def vjp(self, g, x, y):
        return self._between(g, x, x)

    def deeplift(self, rec, ref, m, rule, parts):
        out = self._between(m[0], rec.inputs[0], ref.inputs[0])
        return self.at(0, unbroadcast(out, joint_shape(rec, ref, 0)))

    def _between(self, m: Array, x: Array, x0: Array) -> Array:
        """Product of x and the inverse norm i, at the midpoint of each: exact.

        The difference of i is -i i0 (s - s0), that of the norm u (x - x0).
        """
        s, s0 = self._norm(x), self._norm(x0)
        i, i0 = self._inverses(s, s0)
        empty = (s == 0) | (s0 == 0)
        curve = namespace(x, x0).where(empty, divide(i - i0, s - s0), -i * i0)
        pull = (m * (0.5 * (x + x0))).sum(axis=self._along(x), keepdims=True)
        return m * (0.5 * (i + i0)) + curve * self._secant(x, x0, s, s0) * pull

    def _secant(self, x: Array, x0: Array, s: Array, s0: Array) -> Array:
        """Return u with u (x - x0) = s - s0, the gradient of the norm where both are equal."""
        return divide(x + x0, abs(x) + abs(x0) if self.p == 1 else s + s0)


class LpNormalization(UnitNorm, op="LpNormalization"):
    """y = x / (sum |x|^p)^(1/p) along an axis, p 1 or 2; 0 where all are 0."""

    def setup(self):
        if self.p not in (1, 2):
            raise ModelError(f"p is {self.p}, expected 1 or 2")


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
