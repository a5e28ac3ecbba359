"""Arithmetic on tensors. Which family an operator is in depends on which inputs carry data."""

from __future__ import annotations

from functools import reduce

import numpy as np

from ..arrays import Array, divide, is_float, namespace, unbroadcast
from ..errors import UnsupportedOpError
from .activations import exp_secant, expm1_ratio, log_secant
from .base import Kernel, Record, Signals, joint_shape
from .families import Elementwise, Linear, Merge, Product


class Sum(Merge, op="Sum"):
    """y = the sum of all inputs."""

    def coefficients(self):
        return [1.0] * len(self.active)


class Add(Sum, op="Add"):
    """y = a + b."""


class Sub(Merge, op="Sub"):
    """y = a - b."""

    def coefficients(self):
        return [1.0, -1.0]


class Mean(Merge, op="Mean"):
    """y = the mean of all inputs."""

    def coefficients(self):
        return [1.0 / len(self.active)] * len(self.active)


class Affine(Linear):
    """y = w x + b element by element, w and b constants that broadcast."""

    diagonal = True

    @classmethod
    def accepts(cls, active):
        return sum(active) <= 1

    def apply(self, x, w):
        return x * w

    def vjp(self, g, shape, w):
        return unbroadcast(g * w, shape)


class Shift(Affine):
    """A sum with one input that carries data: the others are its bias."""

    def coefficients(self) -> list[float]:
        """Return the factor of each input."""
        return [1.0] * len(self.active)

    def operand(self, inputs):
        i, factors = self.position, self.coefficients()
        others = [c * v for j, (c, v) in enumerate(zip(factors, inputs, strict=True)) if j != i]
        return inputs[i], factors[i], sum(others) if others else None

    def forward(self, *inputs):
        if is_float(inputs[0].dtype):
            return super().forward(*inputs)
        return self.exact(*inputs)

    def exact(self, *inputs: Array) -> Array:
        """Compute on integers."""
        return reduce(lambda a, b: a + b, inputs)


class SumShift(Shift, op="Sum"):
    """Sum of one tensor with data and constants."""


class AddShift(Shift, op="Add"):
    """y = x + b."""


class SubShift(Shift, op="Sub"):
    """y = x - b, or b - x."""

    def coefficients(self):
        return [1.0, -1.0]

    def exact(self, a, b):
        return a - b


class MeanShift(Shift, op="Mean"):
    """Mean of one tensor with data and constants."""

    def coefficients(self):
        return [1.0 / len(self.active)] * len(self.active)


class Neg(Affine, op="Neg"):
    """y = -x."""

    data = (0,)

    def operand(self, inputs):
        return inputs[0], -1.0, None

    def forward(self, x):
        return -x

    def split(self, w):
        return None, w

    def vjp(self, g, shape, w):
        return g * w


class Mul(Product, op="Mul"):
    """y = a b, both with data."""

    def forward(self, a, b):
        return a * b

    def back(self, g, a, b, shapes):
        return unbroadcast(g * b, shapes[0]), unbroadcast(g * a, shapes[1])


class Scale(Affine, op="Mul"):
    """y = w x."""

    def operand(self, inputs):
        return inputs[self.position], inputs[1 - self.position], None

    def forward(self, a, b):
        return a * b


class DivScale(Affine, op="Div"):
    """y = x / w."""

    @classmethod
    def accepts(cls, active):
        return not active[1]

    def operand(self, inputs):
        return inputs[0], 1 / inputs[1], None

    def forward(self, a, b):
        if is_float(a.dtype):
            return a / b
        return _truncated(a, b)


def _truncated(a: Array, b: Array) -> Array:
    """Divide integers as ONNX does: towards zero."""
    xp = namespace(a, b)
    quotient = a // b
    return quotient + ((a % b != 0) & ((a < 0) != (xp.asarray(b) < 0))).astype(quotient.dtype)


class DivBy(Elementwise, op="Div"):
    """y = w / x."""

    data = (1,)

    def forward(self, w, x):
        return w / x

    def _values(self, rec):
        w, x = rec.inputs
        return x, rec.outputs[0], (w,)

    def slope(self, x, y, w):
        return -y / x

    def secant(self, x, y, x0, y0, w):
        return -y / x0


class Div(Kernel, op="Div"):
    """y = a / b, both with data: a times the reciprocal of b."""

    family = "product"

    @classmethod
    def accepts(cls, active):
        return all(active)

    def forward(self, a, b):
        return a / b

    def gradient(self, rec, g):
        (a, b), y = rec.inputs, rec.outputs[0]
        return unbroadcast(g[0] / b, a.shape), unbroadcast(-g[0] * y / b, b.shape)

    def relevance(self, rec, r, rule, note):
        """All to the numerator: the divisor is a normaliser (AttnLRP)."""
        return unbroadcast(r[0], rec.inputs[0].shape), None

    def deeplift(self, rec, ref, m, rule, parts):
        (a, b), (a0, b0) = rec.inputs, ref.inputs
        ga = m[0] * (0.5 * (1 / b + 1 / b0))
        gb = m[0] * (-0.5 * (a + a0) / (b * b0))
        return (
            unbroadcast(ga, joint_shape(rec, ref, 0)),
            unbroadcast(gb, joint_shape(rec, ref, 1)),
        )

    def connection(self, rec, g, rule):
        raise UnsupportedOpError("Div divides data by data: connection weights are not defined")

    def describe(self, method):
        words = {
            "gradient": ("quotient rule", True, ""),
            "lrp": ("numerator", True, "the divisor is a normaliser (AttnLRP), a convention"),
            "deeplift": ("midpoint", True, ""),
            "connection": ("", False, "not defined: quotient of two tensors with data"),
        }
        return words[method]


def remainder(a: Array, b: Array, fmod: int) -> Array:
    """Return the remainder of a / b with the sign of b, or that of a where `fmod` is set."""
    xp = namespace(a, b)
    return xp.fmod(a, b) if fmod else xp.mod(a, b)


class Mod(Elementwise, op="Mod", since=10):
    """y = the remainder of x / b with a constant b: slope 1 between its jumps."""

    def forward(self, x, b):
        return remainder(x, b, self.fmod)

    def slope(self, x, y, b):
        return namespace(y).ones_like(y)

    def secant(self, x, y, x0, y0, b):
        """The quotient: remainders are exact, and close ones subtract exactly."""
        return divide(y - y0, x - x0, y.dtype.type(1))

    def describe(self, method):
        rule, exact, _ = super().describe(method)
        return (rule, exact, "its jumps have no slope" if method == "gradient" else "")


class Pow(Elementwise, op="Pow"):
    """y = x ** p with a constant exponent."""

    def forward(self, x, p):
        if is_float(x.dtype) and p.size == 1:
            exponent = float(p.reshape(()))
            if exponent == 2:
                return x * x
            if exponent == 0.5:
                return namespace(x).sqrt(x)
        with np.errstate(invalid="ignore"):
            return (x**p).astype(x.dtype, copy=False)

    def slope(self, x, y, p):
        return (p * self.forward(x, p - 1)).astype(x.dtype, copy=False)

    def secant(self, x, y, x0, y0, p):
        if p.size == 1 and float(p.reshape(())) in (1, 2, 3):
            return {
                1: lambda: x * 0 + x0 * 0 + 1,
                2: lambda: x + x0,
                3: lambda: x * x + x * x0 + x0 * x0,
            }[int(p.reshape(()))]()
        xp = namespace(x, x0)
        dx = x - x0
        low, high = xp.minimum(abs(x), abs(x0)), xp.maximum(abs(x), abs(x0))
        close = ((x > 0) == (x0 > 0)) & (high < 4 * low)
        near = self._close(xp.where(close, low, 1), xp.where(close, high, 1), p)
        near = near * xp.sign(x) * xp.sign(y)  # x^p = sign |x|^p on either side of 0
        out = xp.where(close, near, divide(y - y0, xp.where(close, 0, dx)))
        return xp.where(dx == 0, self.slope(x, y, p), out).astype(y.dtype, copy=False)

    @staticmethod
    def _close(low: Array, high: Array, p: Array) -> Array:
        """high^p - low^p = low^p (exp(p log(high / low)) - 1), over high - low."""
        xp = namespace(low)
        ratio = (high - low) / low
        growth = divide(xp.expm1(p * xp.log1p(ratio)), ratio)
        return low ** (p - 1) * growth


class PowOf(Elementwise, op="Pow"):
    """y = w ** x with a constant base."""

    data = (1,)

    @classmethod
    def accepts(cls, active):
        return active == (False, True)

    def forward(self, w, x):
        return (w**x).astype(w.dtype, copy=False)

    def _rate(self, w: Array) -> Array:
        """Return log(w); a base that is not positive has no slope."""
        return namespace(w).log(namespace(w).where(w > 0, w, w.dtype.type(1)))

    def slope(self, x, y, w):
        return y * self._rate(w)

    def secant(self, x, y, x0, y0, w):
        """The secant of exp(x log w); of another base the quotient."""
        rate, dx, xp = self._rate(w), x - x0, namespace(x, x0)
        growth = xp.maximum(y, y0) * rate * expm1_ratio(-abs(rate * dx))
        return xp.where(w > 0, growth, divide(y - y0, dx)).astype(y.dtype, copy=False)


class PowOfData(Kernel, op="Pow"):
    """y = a ** b, both with data: exp(b log a), a > 0."""

    family = "product"

    @classmethod
    def accepts(cls, active):
        return all(active)

    def forward(self, a, b):
        return (a**b).astype(a.dtype, copy=False)

    def gradient(self, rec, g):
        return self._signals(g[0], rec, rec)

    def relevance(self, rec, r, rule, note):
        """All to the base: the exponent is a parameter of its function."""
        return unbroadcast(r[0], rec.inputs[0].shape), None

    def deeplift(self, rec, ref, m, rule, parts):
        return self._signals(m[0], rec, ref)

    def _signals(self, m: Array, rec: Record, ref: Record) -> Signals:
        """The secant of exp times those of the product b log a, at its midpoint."""
        (a, b), (a0, b0) = rec.inputs, ref.inputs
        xp = namespace(a, a0)
        log, log0 = xp.log(a), xp.log(a0)
        back = m * exp_secant(b * log, b0 * log0)
        to_a = back * (0.5 * (b + b0)) * log_secant(a, log, a0, log0)
        to_b = back * (0.5 * (log + log0))
        return (
            unbroadcast(to_a, joint_shape(rec, ref, 0)),
            unbroadcast(to_b, joint_shape(rec, ref, 1)),
        )

    def connection(self, rec, g, rule):
        raise UnsupportedOpError("Pow of data to data: connection weights are not defined")

    def describe(self, method):
        words = {
            "gradient": ("product rule", True, ""),
            "lrp": ("base", True, "all goes to the base, a convention"),
            "deeplift": ("midpoint", True, ""),
            "connection": ("", False, "not defined: a power of two tensors with data"),
        }
        return words[method]


class Extremum(Kernel):
    """The larger (or smaller) of several tensors, element by element; ties go to the first."""

    family = "selector"
    sign = 1.0

    @classmethod
    def accepts(cls, active):
        return True

    def better(self, a: Array, b: Array) -> Array:
        """Choose between two tensors."""
        return namespace(a, b).maximum(a, b)

    def forward(self, *inputs):
        return reduce(self.better, inputs)

    def _winners(self, inputs: tuple[Array, ...], y: Array) -> list[Array]:
        """Return a mask per input: it made the output and none before it did."""
        free, masks = True, []
        for x in inputs:
            masks.append((x == y) & free)
            free = free & ~masks[-1]
        return masks

    def gradient(self, rec, g):
        masks = self._winners(rec.inputs, rec.outputs[0])
        return tuple(
            unbroadcast(g[0] * mask, x.shape) if a else None
            for a, mask, x in zip(self.active, masks, rec.inputs, strict=True)
        )

    def relevance(self, rec, r, rule, note):
        back = self.gradient(rec, r)
        if note is not None:
            kept = sum(note.total(s) for s in back if s is not None)
            note.absorbed["constant"] = note.total(r[0]) - kept
        return back

    def deeplift(self, rec, ref, m, rule, parts):
        """Two players at a time: each difference meets the other input's two values."""
        xs, x0s, back = list(rec.inputs), list(ref.inputs), [None] * len(rec.inputs)
        heads, heads0 = [xs[0]], [x0s[0]]
        for x, x0 in zip(xs[1:], x0s[1:], strict=True):
            heads.append(self.better(heads[-1], x))
            heads0.append(self.better(heads0[-1], x0))
        signal = m[0]
        for i in range(len(xs) - 1, 0, -1):
            pair, pair0 = (heads[i - 1], xs[i]), (heads0[i - 1], x0s[i])
            back[i] = signal * self._secant(pair[1], pair0[1], pair[0], pair0[0])
            signal = signal * self._secant(pair[0], pair0[0], pair[1], pair0[1], first=True)
        back[0] = signal
        return tuple(
            unbroadcast(s, joint_shape(rec, ref, i)) if a else None
            for i, (a, s) in enumerate(zip(self.active, back, strict=True))
        )

    def _secant(self, a: Array, a0: Array, b: Array, b0: Array, first: bool = False) -> Array:
        """Mean secant of a against both values of b; at a = a0 the slope, ties to the first."""
        xp = namespace(a, a0, b)

        def one(other: Array) -> Array:
            wins = self.better(a, other) == a
            wins = wins if first else wins & (a != other)
            rise = self.better(a, other) - self.better(a0, other)
            return divide(rise, a - a0, wins.astype(rise.dtype))

        return (0.5 * (one(b) + one(b0))).astype(xp.result_type(a, a0), copy=False)

    def connection(self, rec, g, rule):
        n = len(self.active)
        return tuple(
            unbroadcast(g[0] / n, x.shape) if a else None
            for a, x in zip(self.active, rec.inputs, strict=True)
        )

    def describe(self, method):
        words = {
            "gradient": ("winner", True, "ties to the first"),
            "lrp": ("winner takes all", True, "what a constant wins is absorbed"),
            "deeplift": ("two-player Shapley", True, ""),
            "connection": ("mean", True, "no data is read"),
        }
        return words[method]


class Max(Extremum, op="Max"):
    """y = the largest of all inputs."""


class Min(Extremum, op="Min"):
    """y = the smallest of all inputs."""

    def better(self, a, b):
        return namespace(a, b).minimum(a, b)
