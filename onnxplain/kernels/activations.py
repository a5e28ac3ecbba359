"""Elementwise operators. Each is its formula, its slope and, where it cancels, its secant."""

from __future__ import annotations

import math

from ..arrays import Array, divide, namespace, special
from .families import Elementwise

_ROOT_2 = math.sqrt(2.0)
_ROOT_2_PI = math.sqrt(2.0 / math.pi)


def _where(condition: Array, a: Array | float, b: Array | float, like: Array) -> Array:
    return namespace(like).where(condition, a, b).astype(like.dtype, copy=False)


def expm1_ratio(d: Array) -> Array:
    """Return (exp(d) - 1) / d, 1 at 0."""
    xp = namespace(d)
    return divide(xp.expm1(d), d, 1.0)


def sinhc_scaled(d: Array) -> Array:
    """Return (1 - exp(-|d|)) / |d|: the secant factor that never overflows, 1 at 0."""
    return expm1_ratio(-abs(d))


class Piecewise(Elementwise):
    """Piecewise linear functions: between points on one piece the secant is its slope."""

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

    def forward(self, x):
        return namespace(x).maximum(x, x.dtype.type(0))

    def slope(self, x, y):
        return (x > 0).astype(x.dtype)


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


class Clip(Piecewise, op="Clip", since=11):
    """y = x between two bounds; both optional."""

    activation = True

    def forward(self, x, low=None, high=None):
        xp = namespace(x)
        x = x if low is None else xp.maximum(x, low)
        return x if high is None else xp.minimum(x, high)

    def slope(self, x, y, low=None, high=None):
        inside = namespace(x).ones(x.shape, bool)
        inside = inside if low is None else inside & (x > low)
        inside = inside if high is None else inside & (x < high)
        return inside.astype(x.dtype)

    def secant(self, x, y, x0, y0, low=None, high=None):
        """Quotients do not cancel here: y equals x inside, and close numbers subtract exactly."""
        slope = self.slope(x, y, low, high)
        return divide(y - y0, x - x0, slope)


class Clip6(Clip, op="Clip", since=6):
    """Clip with its bounds as attributes."""

    def forward(self, x):
        return super().forward(x, *self._bounds(x))

    def slope(self, x, y):
        return super().slope(x, y, *self._bounds(x))

    def secant(self, x, y, x0, y0):
        return divide(y - y0, x - x0, self.slope(x, y))

    def _bounds(self, x):
        return x.dtype.type(self.min), x.dtype.type(self.max)


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


class HardSwish(Elementwise, op="HardSwish"):
    """y = x max(0, min(1, x / 6 + 1 / 2))."""

    activation = True

    def forward(self, x):
        return x * namespace(x).clip(x / 6 + 0.5, 0, 1).astype(x.dtype, copy=False)

    def slope(self, x, y):
        return _where(x <= -3, 0, _where(x >= 3, 1, x / 3 + 0.5, x), x)

    def secant(self, x, y, x0, y0):
        """Inside (-3, 3) y is a quadratic, whose secant is the slope at the midpoint."""
        inside = (abs(x) <= 3) & (abs(x0) <= 3)
        same = inside | (x == x0) | ((x >= 3) & (x0 >= 3))
        middle = (x + x0) / 2
        return _where(same, self.slope(middle, middle), divide(y - y0, x - x0), x)


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
        return self.forward(high) * self.forward(-low) * sinhc_scaled(x - x0)


class Tanh(Sigmoid, op="Tanh"):
    """y = tanh(x) = 2 sigmoid(2 x) - 1."""

    def forward(self, x):
        return namespace(x).tanh(x)

    def slope(self, x, y):
        return 1 - y * y

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
        return 1 / (1 + abs(x)) ** 2


class Elu(Elementwise, op="Elu"):
    """y = x where x > 0, else alpha (exp(x) - 1)."""

    activation = True

    def forward(self, x):
        xp = namespace(x)
        return _where(x > 0, x, self.alpha * xp.expm1(xp.minimum(x, 0)), x)

    def slope(self, x, y):
        xp = namespace(x)
        return _where(x > 0, 1, self.alpha * xp.exp(xp.minimum(x, 0)), x)


class Selu(Elementwise, op="Selu"):
    """y = gamma x where x > 0, else gamma alpha (exp(x) - 1)."""

    activation = True

    def forward(self, x):
        xp = namespace(x)
        return self.gamma * _where(x > 0, x, self.alpha * xp.expm1(xp.minimum(x, 0)), x)

    def slope(self, x, y):
        xp = namespace(x)
        return self.gamma * _where(x > 0, 1, self.alpha * xp.exp(xp.minimum(x, 0)), x)


class Celu(Elementwise, op="Celu"):
    """y = max(0, x) + min(0, alpha (exp(x / alpha) - 1))."""

    activation = True

    def forward(self, x):
        xp = namespace(x)
        return _where(x > 0, x, self.alpha * xp.expm1(xp.minimum(x, 0) / self.alpha), x)

    def slope(self, x, y):
        xp = namespace(x)
        return _where(x > 0, 1, xp.exp(xp.minimum(x, 0) / self.alpha), x)


class Gelu(Elementwise, op="Gelu"):
    """y = x Phi(x), exactly or by tanh."""

    activation = True

    def forward(self, x):
        return x * self._phi(x)

    def _inner(self, x):
        return _ROOT_2_PI * (x + 0.044715 * x**3)

    def _phi(self, x):
        if self.approximate == "tanh":
            return 0.5 * (1 + namespace(x).tanh(self._inner(x)))
        return 0.5 * special(x).erfc(-x / _ROOT_2)

    def slope(self, x, y):
        xp = namespace(x)
        if self.approximate == "tanh":
            t = xp.tanh(self._inner(x))
            return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * _ROOT_2_PI * (1 + 0.134145 * x * x)
        density = xp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return self._phi(x) + x * density


class Mish(Elementwise, op="Mish"):
    """y = x tanh(softplus(x))."""

    activation = True

    def forward(self, x):
        xp = namespace(x)
        return x * xp.tanh(xp.logaddexp(x, x.dtype.type(0)))

    def slope(self, x, y):
        xp = namespace(x)
        t = xp.tanh(xp.logaddexp(x, x.dtype.type(0)))
        return t + x * (1 - t * t) * special(x).expit(x)


class Swish(Elementwise, op="Swish", since=24):
    """y = x sigmoid(alpha x)."""

    activation = True

    def forward(self, x):
        return x * self._gate(x)

    def _gate(self, x):
        return special(x).expit(x * x.dtype.type(self.alpha)).astype(x.dtype, copy=False)

    def slope(self, x, y):
        s = self._gate(x)
        return s + self.alpha * x * s * (1 - s)


class Exp(Elementwise, op="Exp"):
    """y = exp(x)."""

    def forward(self, x):
        return namespace(x).exp(x)

    def slope(self, x, y):
        return y

    def secant(self, x, y, x0, y0):
        return namespace(y).maximum(y, y0) * sinhc_scaled(x - x0)


class Log(Elementwise, op="Log"):
    """y = log(x)."""

    def forward(self, x):
        return namespace(x).log(x)

    def slope(self, x, y):
        return 1 / x

    def secant(self, x, y, x0, y0):
        """log(x) - log(x0) = log1p((x - x0) / x0)."""
        xp = namespace(x, x0)
        dx = x - x0
        near = abs(dx) < 0.5 * abs(x0)
        ratio = xp.where(near, divide(dx, x0), 0)
        return divide(_where(near, xp.log1p(ratio), y - y0, dx), dx, 1 / x0)


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


class Erfc(Erf, op="Erfc"):
    """y = 1 - erf(x): no operator of ONNX, but written by tf2onnx for an exact Gelu."""

    def forward(self, x):
        return special(x).erfc(x).astype(x.dtype, copy=False)

    def slope(self, x, y):
        return -super().slope(x, y)


def _instance(cls: type, **attributes: float) -> Elementwise:
    return cls(attributes, (True,))


_SIGMOID = _instance(Sigmoid)
