"""Elementwise operators. Each is its formula, its slope and, where it cancels, its secant."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from .. import cpu_kernels
from ..arrays import Array, divide, may_hold, namespace, negative, positive, special
from .families import Elementwise, mean_between

_ROOT_2 = math.sqrt(2.0)
_ROOT_2_PI = math.sqrt(2.0 / math.pi)
_LOG_2 = math.log(2.0)


def _where(condition: Array, a: Array | float, b: Array | float, like: Array) -> Array:
    return namespace(like).where(condition, a, b).astype(like.dtype, copy=False)


def expm1_ratio(d: Array) -> Array:
    """Return (exp(d) - 1) / d, 1 at 0."""
    return divide(namespace(d).expm1(d), d, 1.0)


def exp_secant(x: Array, x0: Array) -> Array:
    """Return (exp(x) - exp(x0)) / (x - x0), by the larger of the two so that nothing overflows."""
    xp = namespace(x, x0)
    return xp.exp(xp.maximum(x, x0)) * expm1_ratio(-abs(x - x0))


def log_secant(x: Array, y: Array, x0: Array, y0: Array) -> Array:
    """Return (log(x) - log(x0)) / (x - x0) = log1p((x - x0) / x0) / (x - x0), from the smaller."""
    xp = namespace(x, x0)
    d, low = abs(x - x0), xp.minimum(x, x0)
    near = d < 3 * low
    small = xp.log1p(xp.where(near, d, 0) / xp.where(near, low, 1))
    return divide(_where(near, small, abs(y - y0), d), d, 1 / low)


def erf_secant(x: Array, x0: Array, dx: Array) -> Array:
    """Return (erf(x) - erf(x0)) / dx.

    Close points: the mean slope. Others: by what is missing to 1, which keeps its digits where erf
    is flat.
    """
    xp, sp = namespace(x, x0), special(dx)
    close = abs(dx) * (abs(x) + abs(x0) + 1) < 0.25
    missing, missing0 = sp.erfc(abs(x)), sp.erfc(abs(x0))
    two_sides = (x > 0) != (x0 > 0)
    apart = xp.where(two_sides, 2 - missing - missing0, missing0 - missing)
    out = divide(_where(x > 0, apart, -apart, dx), xp.where(close, 1, dx))
    if may_hold(close):
        near = mean_between(lambda p: xp.exp(-p * p), x0, xp.where(close, dx, 0))
        out = xp.where(close, 2 / math.sqrt(math.pi) * near, out)
    return out.astype(dx.dtype, copy=False)


class Piecewise(Elementwise):
    """Piecewise linear functions: between points on one piece the secant is its slope."""

    reads = ("inputs",)

    def piece(self, x: Array) -> Array:
        """Return a number for the linear piece that `x` lies on."""
        return x > 0

    def secant(self, x, y, x0, y0, *params):
        xp = namespace(x, x0)
        same = (self.piece(x) == self.piece(x0)) | (x == x0)
        return xp.where(
            same, self.slope(x, y, *params), divide(y - y0, xp.where(same, 0, x - x0))
        ).astype(y.dtype, copy=False)


class Relu(Piecewise, op="Relu"):
    """y = max(x, 0)."""

    activation = True
    reads = ("inputs",)

    def forward(self, x):
        if cpu_kernels.serves_elements(x):
            return cpu_kernels.clip(x, 0)
        return positive(x)

    def slope(self, x, y):
        return (x > 0).astype(x.dtype)

    def gradient(self, rec, g):
        if cpu_kernels.serves_elements(rec.inputs[0], g[0]):
            return (cpu_kernels.clip_back(g[0], rec.inputs[0], 0),)
        return super().gradient(rec, g)

    def secant(self, x, y, x0, y0):
        """The quotient: y is x or 0, and close numbers subtract exactly."""
        return divide(y - y0, x - x0, lambda: self.slope(x, y))


class LeakyRelu(Piecewise, op="LeakyRelu"):
    """y = x where x >= 0, else alpha x."""

    activation = True

    def forward(self, x):
        return _where(x < 0, self.alpha * x, x, x)

    def slope(self, x, y):
        return _where(x > 0, 1, self.alpha, x)


class PRelu(Piecewise, op="PRelu"):
    """y = x where x >= 0, else slope x, with a constant slope per element or channel."""

    activation = True

    def forward(self, x, alpha):
        return _where(x < 0, alpha * x, x, x)

    def slope(self, x, y, alpha):
        return _where(x > 0, namespace(x).ones_like(x), alpha, x)


class ThresholdedRelu(Piecewise, op="ThresholdedRelu"):
    """y = x where x > alpha, else 0."""

    activation = True

    def piece(self, x):
        return x > self.alpha

    def forward(self, x):
        return _where(x > self.alpha, x, 0, x)

    def slope(self, x, y):
        return (x > self.alpha).astype(x.dtype)


class Abs(Piecewise, op="Abs"):
    """y = |x|."""

    def piece(self, x):
        # 0 lies on neither side: its slope is 0, the secant from it is not.
        return namespace(x).sign(x)

    def forward(self, x):
        return abs(x)

    def slope(self, x, y):
        return namespace(x).sign(x)


def _are_numbers(x: Array, *bounds: Array | None) -> bool:
    """Tell whether bounds, which may have axes, are one number for all of x."""
    return all(b is None or (b.size == 1 and b.ndim <= x.ndim) for b in bounds)


class Clip(Piecewise, op="Clip", since=11):
    """y = x between two bounds; both optional."""

    activation = True
    reads = ("inputs",)

    def forward(self, x, low=None, high=None):
        if _are_numbers(x, low, high) and cpu_kernels.serves_elements(x):
            return cpu_kernels.clip(x, low, high)
        xp = namespace(x)
        x = x if low is None else xp.maximum(x, low)
        return x if high is None else xp.minimum(x, high)

    def slope(self, x, y, low=None, high=None):
        inside = namespace(x).ones(x.shape, bool)
        inside = inside if low is None else inside & (x > low)
        inside = inside if high is None else inside & (x < high)
        return inside.astype(x.dtype)

    def gradient(self, rec, g):
        x, *bounds = rec.inputs
        if _are_numbers(x, *bounds) and cpu_kernels.serves_elements(x, g[0]):
            return self.at(0, cpu_kernels.clip_back(g[0], x, *self._bounds(x, *bounds)))
        return super().gradient(rec, g)

    def _bounds(self, x, low=None, high=None):
        return low, high

    def secant(self, x, y, x0, y0, low=None, high=None):
        """Quotients do not cancel here: y equals x inside, and close numbers subtract exactly."""
        return divide(y - y0, x - x0, lambda: self.slope(x, y, low, high))


class Clip6(Clip, op="Clip", since=6):
    """Clip with its bounds as attributes."""

    def forward(self, x):
        return super().forward(x, *self._bounds(x))

    def slope(self, x, y):
        return super().slope(x, y, *self._bounds(x))

    def secant(self, x, y, x0, y0):
        return divide(y - y0, x - x0, self.slope(x, y))

    def _bounds(self, x, low=None, high=None):
        return x.dtype.type(self.min), x.dtype.type(self.max)


class Shrink(Piecewise, op="Shrink", since=9):
    """y = x - bias where x > lambd, x + bias where x < -lambd, else 0."""

    def piece(self, x):
        return (x > self.lambd).astype(x.dtype) - (x < -self.lambd)

    def forward(self, x):
        inner = _where(x < -self.lambd, x + x.dtype.type(self.bias), 0, x)
        return _where(x > self.lambd, x - x.dtype.type(self.bias), inner, x)

    def slope(self, x, y):
        return (abs(x) > self.lambd).astype(x.dtype)


class HardSigmoid(Piecewise, op="HardSigmoid"):
    """y = max(0, min(1, alpha x + beta))."""

    activation = True

    def piece(self, x):
        z = self.alpha * x + self.beta
        return (z > 0).astype(x.dtype) + (z >= 1)

    def forward(self, x):
        return namespace(x).clip(self.alpha * x + self.beta, 0, 1).astype(x.dtype, copy=False)

    def slope(self, x, y):
        z = self.alpha * x + self.beta
        return _where((z > 0) & (z < 1), self.alpha, 0, x)

    def secant(self, x, y, x0, y0):
        """alpha times the share of the way that lies between the kinks."""
        if self.alpha == 0:
            return self.slope(x - x0, y)
        xp = namespace(x, x0)
        low, high = sorted((-self.beta / self.alpha, (1 - self.beta) / self.alpha))
        share = divide(xp.clip(x, low, high) - xp.clip(x0, low, high), x - x0)
        return xp.where(x == x0, self.slope(x, y), self.alpha * share).astype(y.dtype, copy=False)


class HardSwish(Elementwise, op="HardSwish"):
    """y = x max(0, min(1, x / 6 + 1 / 2))."""

    activation = True

    def forward(self, x):
        return x * namespace(x).clip(x / 6 + 0.5, 0, 1).astype(x.dtype, copy=False)

    def slope(self, x, y):
        return _where(x <= -3, 0, _where(x >= 3, 1, x / 3 + 0.5, x), x)

    def secant(self, x, y, x0, y0):
        """A quadratic's secant on the part of the way inside (-3, 3), 1 on the part above."""
        xp = namespace(x, x0)
        dx = x - x0
        u, u0 = xp.clip(x, -3, 3), xp.clip(x0, -3, 3)
        middle = (xp.minimum(u, u0) + 3) + xp.maximum(u, u0)  # in this order nothing cancels
        inside = middle / 6 * divide(u - u0, dx)
        above = divide(xp.maximum(x, 3) - xp.maximum(x0, 3), dx)
        return _where(dx == 0, self.slope(x, y), inside + above, dx)


class Sigmoid(Elementwise, op="Sigmoid"):
    """y = 1 / (1 + exp(-x))."""

    activation = True

    def forward(self, x):
        return special(x).expit(x)

    def slope(self, x, y):
        return y * self.forward(-x)

    def secant(self, x, y, x0, y0):
        """s(x) - s(x0) = s(max) s(-min) (1 - exp(-|x - x0|))."""
        xp = namespace(x, x0)
        high, low = xp.maximum(x, x0), xp.minimum(x, x0)
        return self.forward(high) * self.forward(-low) * expm1_ratio(-abs(x - x0))


class Tanh(Sigmoid, op="Tanh"):
    """y = tanh(x) = 2 sigmoid(2 x) - 1."""

    def forward(self, x):
        return namespace(x).tanh(x)

    def slope(self, x, y):
        """1 - y^2, which cancels where y is flat, as 4 e / (1 + e)^2 with e = exp(-2 |x|)."""
        e = namespace(x).exp(-2 * abs(x))
        return 4 * e / ((1 + e) * (1 + e))

    def secant(self, x, y, x0, y0):
        s = _SIGMOID
        return 4 * s.secant(2 * x, s.forward(2 * x), 2 * x0, s.forward(2 * x0))


class Softplus(Elementwise, op="Softplus"):
    """y = log(1 + exp(x))."""

    activation = True

    def forward(self, x):
        return namespace(x).logaddexp(x, x.dtype.type(0))

    def slope(self, x, y):
        return special(x).expit(x)

    def secant(self, x, y, x0, y0):
        """softplus(x) - softplus(x0) = log(1 + sigmoid(x0) (exp(x - x0) - 1))."""
        xp = namespace(x, x0)
        dx = x - x0
        close = abs(dx) < 1
        small = xp.log1p(special(x0).expit(x0) * xp.expm1(xp.where(close, dx, 0)))
        return divide(_where(close, small, y - y0, dx), dx, self.slope(x0, y0))


class Softsign(Elementwise, op="Softsign"):
    """y = x / (1 + |x|)."""

    activation = True

    def forward(self, x):
        return x / (1 + abs(x))

    def slope(self, x, y):
        inverse = 1 / (1 + abs(x))
        return inverse * inverse

    def secant(self, x, y, x0, y0):
        """On one side of 0 the product of 1 / (1 + |x|) at both points, else more."""
        a, a0 = abs(x), abs(x0)
        two_sides = (x > 0) != (x0 > 0)
        bend = _where(two_sides, 2 * a * divide(a0, a + a0), 0, a + a0)
        return (1 + bend) / (1 + a) / (1 + a0)


class ExponentialTail(Elementwise, ABC):
    """y = right x where x > 0, else left (exp(rate x) - 1) / rate."""

    activation = True

    @abstractmethod
    def shape(self) -> tuple[float, float, float]:
        """Return right, left and rate."""

    def forward(self, x):
        right, left, rate = self.shape()
        y = right * positive(x) + left / rate * namespace(x).expm1(rate * negative(x))
        return y.astype(x.dtype, copy=False)

    def slope(self, x, y):
        right, left, rate = self.shape()
        return _where(x > 0, right, left * namespace(x).exp(rate * negative(x)), x)

    def secant(self, x, y, x0, y0):
        """The secants of both pieces, weighted by the part of the way that lies on each."""
        right, left, rate = self.shape()
        dx, n, n0 = x - x0, negative(x), negative(x0)
        above, below = divide(positive(x) - positive(x0), dx), divide(n - n0, dx)
        out = right * above + left * exp_secant(rate * n, rate * n0) * below
        return _where(dx == 0, self.slope(x, y), out, dx)


class Elu(ExponentialTail, op="Elu"):
    """y = x where x > 0, else alpha (exp(x) - 1)."""

    def shape(self):
        return 1.0, self.alpha, 1.0


class Selu(ExponentialTail, op="Selu"):
    """y = gamma x where x > 0, else gamma alpha (exp(x) - 1)."""

    def shape(self):
        return self.gamma, self.gamma * self.alpha, 1.0


class Celu(ExponentialTail, op="Celu"):
    """y = max(0, x) + min(0, alpha (exp(x / alpha) - 1))."""

    def shape(self):
        return 1.0, 1.0, 1 / self.alpha


class Gated(Elementwise, ABC):
    """y = x p(x) with a gate p that rises from 0 to 1."""

    activation = True

    @abstractmethod
    def gate(self, x: Array) -> Array:
        """Return p."""

    @abstractmethod
    def gate_slope(self, x: Array) -> Array:
        """Return dp/dx."""

    @abstractmethod
    def gate_secant(self, x: Array, x0: Array) -> Array:
        """Return (p(x) - p(x0)) / (x - x0)."""

    def forward(self, x):
        return x * self.gate(x)

    def slope(self, x, y):
        return self.gate(x) + x * self.gate_slope(x)

    def secant(self, x, y, x0, y0):
        """Close points: the product rule at the midpoint, which is exact. Others: the quotient."""
        xp = namespace(x, x0)
        dx = x - x0
        close = abs(dx) < 1
        apart = divide(y - y0, xp.where(close, 1, dx))
        if not may_hold(close):
            return apart
        mean, middle = 0.5 * (self.gate(x) + self.gate(x0)), 0.5 * (x + x0)
        return _where(close, mean + middle * self.gate_secant(x, x0), apart, dx)


class SigmoidGated(Gated):
    """y = x sigmoid(u(x))."""

    @abstractmethod
    def inner(self, x: Array) -> Array:
        """Return u."""

    @abstractmethod
    def inner_secant(self, x: Array, x0: Array) -> Array:
        """Return (u(x) - u(x0)) / (x - x0)."""

    def inner_slope(self, x: Array) -> Array:
        """Return du/dx."""
        return self.inner_secant(x, x)

    def gate(self, x):
        return special(x).expit(self.inner(x)).astype(x.dtype, copy=False)

    def gate_slope(self, x):
        p = self.gate(x)
        return p * (1 - p) * self.inner_slope(x)

    def gate_secant(self, x, x0):
        xp = namespace(x, x0)
        p, p0, steepness = self.gate(x), self.gate(x0), self.inner_secant(x, x0)
        spread = xp.maximum(p, p0) * (1 - xp.minimum(p, p0))
        return spread * expm1_ratio(-abs(steepness * (x - x0))) * steepness


class Gelu(SigmoidGated, op="Gelu"):
    """y = x Phi(x), exactly or with Phi(x) = sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))."""

    def setup(self):
        self.exact = self.approximate != "tanh"

    def inner(self, x):
        return 2 * _ROOT_2_PI * x * (1 + 0.044715 * x * x)

    def inner_secant(self, x, x0):
        return 2 * _ROOT_2_PI * (1 + 0.044715 * (x * x + x * x0 + x0 * x0))

    def gate(self, x):
        if not self.exact:
            return super().gate(x)
        return 0.5 * special(x).erfc(x / -_ROOT_2).astype(x.dtype, copy=False)

    def gate_slope(self, x):
        if not self.exact:
            return super().gate_slope(x)
        return namespace(x).exp(-0.5 * x * x) / math.sqrt(2 * math.pi)

    def gate_secant(self, x, x0):
        if not self.exact:
            return super().gate_secant(x, x0)
        return erf_secant(x / _ROOT_2, x0 / _ROOT_2, (x - x0) / _ROOT_2) / (2 * _ROOT_2)


class Mish(SigmoidGated, op="Mish"):
    """y = x tanh(softplus(x)) = x sigmoid(x + softplus(x - log 2))."""

    def inner(self, x):
        return x + _SOFTPLUS.forward(x - _LOG_2)

    def inner_slope(self, x):
        return 1 + special(x).expit(x - _LOG_2)

    def inner_secant(self, x, x0):
        v, v0 = x - _LOG_2, x0 - _LOG_2
        return 1 + _SOFTPLUS.secant(v, _SOFTPLUS.forward(v), v0, _SOFTPLUS.forward(v0))


class Swish(SigmoidGated, op="Swish", since=24):
    """y = x sigmoid(alpha x)."""

    def inner(self, x):
        return self.alpha * x

    def inner_secant(self, x, x0):
        return namespace(x).full_like(x - x0, self.alpha)


class QuickGelu(Swish, op="QuickGelu", domain="com.microsoft"):
    """y = x sigmoid(alpha x), alpha 1.702 where the node has none."""

    def setup(self):
        self.alpha = vars(self).get("alpha", 1.702)


class Exp(Elementwise, op="Exp"):
    """y = exp(x)."""

    def forward(self, x):
        return namespace(x).exp(x)

    def slope(self, x, y):
        return y

    def secant(self, x, y, x0, y0):
        return namespace(y, y0).maximum(y, y0) * expm1_ratio(-abs(x - x0))


class Log(Elementwise, op="Log"):
    """y = log(x)."""

    def forward(self, x):
        return namespace(x).log(x)

    def slope(self, x, y):
        return 1 / x

    def secant(self, x, y, x0, y0):
        return log_secant(x, y, x0, y0)


class Sqrt(Elementwise, op="Sqrt"):
    """y = sqrt(x)."""

    def forward(self, x):
        return namespace(x).sqrt(x)

    def slope(self, x, y):
        return divide(0.5, y)

    def secant(self, x, y, x0, y0):
        return divide(1.0, y + y0).astype(y.dtype, copy=False)


class Reciprocal(Elementwise, op="Reciprocal"):
    """y = 1 / x."""

    def forward(self, x):
        return namespace(x).reciprocal(x)

    def slope(self, x, y):
        return -y * y

    def secant(self, x, y, x0, y0):
        return -y * y0


class Erf(Elementwise, op="Erf"):
    """y = erf(x)."""

    def forward(self, x):
        return special(x).erf(x).astype(x.dtype, copy=False)

    def slope(self, x, y):
        return (2 / math.sqrt(math.pi)) * namespace(x).exp(-x * x)

    def secant(self, x, y, x0, y0):
        return erf_secant(x, x0, x - x0)


class Erfc(Erf, op="Erfc"):
    """y = 1 - erf(x): no operator of ONNX, but written by tf2onnx for an exact Gelu."""

    def forward(self, x):
        return special(x).erfc(x).astype(x.dtype, copy=False)

    def slope(self, x, y):
        return -super().slope(x, y)

    def secant(self, x, y, x0, y0):
        return -erf_secant(x, x0, x - x0)


def _instance(cls: type, **attributes: float) -> Elementwise:
    return cls(attributes, (True,))


_SIGMOID, _SOFTPLUS = _instance(Sigmoid), _instance(Softplus)
