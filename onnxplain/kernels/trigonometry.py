"""Circular and hyperbolic functions and their inverses.

Secants come from the formulas for the difference of two values: no digits cancel between close
points. Between far ones the quotient has all there are.
"""

from __future__ import annotations

from ..arrays import Array, divide, namespace
from .families import Elementwise


def _midpoint(x: Array, x0: Array) -> tuple[Array, Array]:
    """Return (x + x0) / 2, and what rounding took from it."""
    total = x + x0
    added = total - x
    lost = (x - (total - added)) + (x0 - added)
    return 0.5 * total, 0.5 * lost


def _root_of_one_minus_square(x: Array) -> Array:
    return namespace(x).sqrt((1 - x) * (1 + x))


def _rise(x: Array, x0: Array, c: Array, c0: Array) -> Array:
    """Return x c0 - x0 c for c = sqrt(1 - x^2), or sqrt(1 + x^2), from the two points.

    On one side of 0, where it cancels, as (x - x0) (x + x0) / (x c0 + x0 c).
    """
    one_side = (x > 0) == (x0 > 0)
    xp = namespace(x, x0)
    share = divide(x + x0, xp.where(one_side, x * c0 + x0 * c, 0))
    return xp.where(one_side, (x - x0) * share, x * c0 - x0 * c)


class CloseSecant(Elementwise):
    """A function with a secant of its own for points less than 1 apart."""

    def close(self, x: Array, x0: Array, h: Array) -> Array:
        """Return the secant between two points that are 2 h < 1 apart."""
        raise NotImplementedError

    def secant(self, x, y, x0, y0):
        xp = namespace(x, x0)
        dx = x - x0
        near = abs(dx) < 1
        here = xp.where(near, x0, x)  # far pairs are left out of what could overflow
        h = xp.where(near, 0.5 * dx, 0)
        apart = divide(y - y0, xp.where(near, 0, dx))
        return xp.where(near, self.close(x, here, h), apart).astype(dx.dtype, copy=False)


class Sin(CloseSecant, op="Sin", since=7):
    """y = sin(x)."""

    def forward(self, x):
        return namespace(x).sin(x)

    def slope(self, x, y):
        return namespace(x).cos(x)

    def close(self, x, x0, h):
        """sin(x) - sin(x0) = 2 cos((x + x0) / 2) sin((x - x0) / 2)."""
        xp = namespace(x, x0)
        middle, lost = _midpoint(x, x0)
        return (xp.cos(middle) - lost * xp.sin(middle)) * divide(xp.sin(h), h, 1.0)


class Cos(CloseSecant, op="Cos", since=7):
    """y = cos(x)."""

    def forward(self, x):
        return namespace(x).cos(x)

    def slope(self, x, y):
        return -namespace(x).sin(x)

    def close(self, x, x0, h):
        """cos(x) - cos(x0) = -2 sin((x + x0) / 2) sin((x - x0) / 2)."""
        xp = namespace(x, x0)
        middle, lost = _midpoint(x, x0)
        return -(xp.sin(middle) + lost * xp.cos(middle)) * divide(xp.sin(h), h, 1.0)


class Tan(CloseSecant, op="Tan", since=7):
    """y = tan(x)."""

    def forward(self, x):
        return namespace(x).tan(x)

    def slope(self, x, y):
        return 1 + y * y

    def close(self, x, x0, h):
        """tan(x) - tan(x0) = sin(x - x0) / (cos(x) cos(x0))."""
        xp = namespace(x, x0)
        return divide(xp.sin(2 * h), 2 * h, 1.0) / (xp.cos(x) * xp.cos(x0))


class Asin(Elementwise, op="Asin", since=7):
    """y = arcsin(x)."""

    def forward(self, x):
        return namespace(x).arcsin(x)

    def slope(self, x, y):
        return divide(1.0, _root_of_one_minus_square(x)).astype(x.dtype, copy=False)

    def secant(self, x, y, x0, y0):
        """The angle whose sine is x c0 - x0 c and whose cosine is c c0 + x x0."""
        c, c0 = _root_of_one_minus_square(x), _root_of_one_minus_square(x0)
        angle = namespace(x, x0).arctan2(_rise(x, x0, c, c0), c * c0 + x * x0)
        return divide(angle, x - x0, self.slope(x, y))


class Acos(Asin, op="Acos", since=7):
    """y = arccos(x)."""

    def forward(self, x):
        return namespace(x).arccos(x)

    def slope(self, x, y):
        return -super().slope(x, y)

    def secant(self, x, y, x0, y0):
        return -_ASIN.secant(x, y, x0, y0)


class Atan(Elementwise, op="Atan", since=7):
    """y = arctan(x)."""

    def forward(self, x):
        return namespace(x).arctan(x)

    def slope(self, x, y):
        return 1 / (1 + x * x)

    def secant(self, x, y, x0, y0):
        """The angle whose tangent is (x - x0) / (1 + x x0)."""
        dx, across = x - x0, 1 + x * x0
        return divide(namespace(x, x0).arctan2(dx, across), dx, self.slope(x, y))


class Sinh(CloseSecant, op="Sinh", since=9):
    """y = sinh(x)."""

    def forward(self, x):
        return namespace(x).sinh(x)

    def slope(self, x, y):
        return namespace(x).cosh(x)

    def close(self, x, x0, h):
        """sinh(x) - sinh(x0) = 2 cosh((x + x0) / 2) sinh((x - x0) / 2)."""
        xp = namespace(x, x0)
        middle, lost = _midpoint(x, x0)
        return (xp.cosh(middle) + lost * xp.sinh(middle)) * divide(xp.sinh(h), h, 1.0)


class Cosh(CloseSecant, op="Cosh", since=9):
    """y = cosh(x)."""

    def forward(self, x):
        return namespace(x).cosh(x)

    def slope(self, x, y):
        return namespace(x).sinh(x)

    def close(self, x, x0, h):
        """cosh(x) - cosh(x0) = 2 sinh((x + x0) / 2) sinh((x - x0) / 2)."""
        xp = namespace(x, x0)
        middle, lost = _midpoint(x, x0)
        return (xp.sinh(middle) + lost * xp.cosh(middle)) * divide(xp.sinh(h), h, 1.0)


class Asinh(Elementwise, op="Asinh", since=9):
    """y = arsinh(x)."""

    def forward(self, x):
        return namespace(x).arcsinh(x)

    def slope(self, x, y):
        return 1 / namespace(x).hypot(x, x.dtype.type(1))

    def secant(self, x, y, x0, y0):
        """The number whose hyperbolic sine is x c0 - x0 c, c the hyperbolic cosine of y."""
        xp = namespace(x, x0)
        c, c0 = (xp.hypot(v, v.dtype.type(1)) for v in (x, x0))
        return divide(xp.arcsinh(_rise(x, x0, c, c0)), x - x0, 1 / c)


class Acosh(Elementwise, op="Acosh", since=9):
    """y = arcosh(x), x >= 1."""

    def forward(self, x):
        return namespace(x).arccosh(x)

    @staticmethod
    def _sine(x: Array) -> Array:
        return namespace(x).sqrt((x - 1) * (x + 1))

    def slope(self, x, y):
        return divide(1.0, self._sine(x)).astype(x.dtype, copy=False)

    def secant(self, x, y, x0, y0):
        """The number whose hyperbolic sine is s x0 - s0 x = (x^2 - x0^2) / (s x0 + s0 x)."""
        dx, s, s0 = x - x0, self._sine(x), self._sine(x0)
        rise = dx * divide(x + x0, s * x0 + s0 * x)
        return divide(namespace(dx).arcsinh(rise), dx, self.slope(x, y))


class Atanh(Elementwise, op="Atanh", since=9):
    """y = artanh(x), |x| < 1."""

    def forward(self, x):
        return namespace(x).arctanh(x)

    def slope(self, x, y):
        return 1 / ((1 - x) * (1 + x))

    def secant(self, x, y, x0, y0):
        """Half the logarithm of (1 + high) (1 - low) / ((1 - high) (1 + low))."""
        xp = namespace(x, x0)
        d, high, low = abs(x - x0), xp.maximum(x, x0), xp.minimum(x, x0)
        half = 0.5 * xp.log1p(2 * d / ((1 - high) * (1 + low)))
        return divide(half, d, self.slope(x, y))


_ASIN = Asin({}, (True,))
