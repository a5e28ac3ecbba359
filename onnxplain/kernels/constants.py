"""Operators whose outputs are never explained: constants, shapes, comparisons, steps."""

from __future__ import annotations

import math

import numpy as np

from ..arrays import Array, checked_shape, host_ints, namespace, to_host
from ..errors import ModelError, UnsupportedOpError, shown
from .arithmetic import remainder
from .base import Kernel
from .routing import following


class Forward(Kernel):
    """Has a forward pass only; no signal goes through."""

    @classmethod
    def accepts(cls, active):
        return True

    def active_outputs(self):
        return (False,) * self.n_outputs


class Step(Forward):
    """Reads values, but its output changes in steps: gradients are 0, other signals end here."""

    def describe(self, method):
        if not any(self.active):
            return super().describe(method)
        exact = method == "gradient"
        return ("stops", exact, "its output changes in steps: what it passes on is not explained")


# -- constants and shapes -------------------------------------------------------------------------


class Constant(Forward, op="Constant"):
    """y = the tensor in the attributes, written in one of several ways."""

    types = {  # noqa: RUF012 - a table, never changed
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_string": object,
        "value_strings": object,
    }

    def forward(self):
        given = vars(self)
        for name in ("value", "sparse_value"):
            if given.get(name) is not None:
                return given[name]
        for name, dtype in self.types.items():
            if given.get(name) is not None:
                return np.array(given[name], dtype)
        raise UnsupportedOpError("Constant without a value")


class ConstantOfShape(Forward, op="ConstantOfShape", since=9):
    """y = one value everywhere, 0 by default, under the shape given."""

    def setup(self):
        self.value = np.zeros(1, np.float32) if self.value is None else self.value
        self.compute_dtype = self.value.dtype

    def with_dtype(self, dtype: np.dtype) -> ConstantOfShape:
        """Return this kernel with another float type, if it makes floats."""
        return following(self, dtype)

    def forward(self, shape):
        return np.full(checked_shape(host_ints(shape)), self.value.reshape(()), self.compute_dtype)


class Shape(Forward, op="Shape"):
    """y = the lengths of the axes `start` to `end`, on the host wherever x is."""

    def forward(self, x):
        cut = slice(getattr(self, "start", None), getattr(self, "end", None))
        return np.array(x.shape[cut], np.int64)


class Size(Forward, op="Size"):
    """y = the number of elements, on the host."""

    def forward(self, x):
        return np.array(x.size, np.int64)


class Range(Forward, op="Range", since=11):
    """y = start, start + delta, ... before limit."""

    def forward(self, start, limit, delta):
        first, last, step = (to_host(v).item() for v in (start, limit, delta))
        (n,) = checked_shape([max(math.ceil((last - first) / step), 0)])
        dtype = start.dtype
        return (first + np.arange(n, dtype=dtype) * dtype.type(step)).astype(dtype, copy=False)


# -- comparisons and logic ------------------------------------------------------------------------


class Equal(Step, op="Equal"):
    """y = whether a = b."""

    def forward(self, a, b):
        return a == b


class Greater(Step, op="Greater"):
    """y = whether a > b."""

    def forward(self, a, b):
        return a > b


class GreaterOrEqual(Step, op="GreaterOrEqual", since=12):
    """y = whether a >= b."""

    def forward(self, a, b):
        return a >= b


class Less(Step, op="Less"):
    """y = whether a < b."""

    def forward(self, a, b):
        return a < b


class LessOrEqual(Step, op="LessOrEqual", since=12):
    """y = whether a <= b."""

    def forward(self, a, b):
        return a <= b


class And(Step, op="And"):
    """y = a and b."""

    def forward(self, a, b):
        return a & b


class Or(Step, op="Or"):
    """y = a or b."""

    def forward(self, a, b):
        return a | b


class Xor(Step, op="Xor"):
    """y = either a or b."""

    def forward(self, a, b):
        return a ^ b


class Not(Step, op="Not"):
    """y = not x."""

    def forward(self, x):
        return ~x


class BitwiseAnd(Step, op="BitwiseAnd", since=18):
    """y = a and b, bit by bit."""

    def forward(self, a, b):
        return a & b


class BitwiseOr(Step, op="BitwiseOr", since=18):
    """y = a or b, bit by bit."""

    def forward(self, a, b):
        return a | b


class BitwiseXor(Step, op="BitwiseXor", since=18):
    """y = either a or b, bit by bit."""

    def forward(self, a, b):
        return a ^ b


class BitwiseNot(Step, op="BitwiseNot", since=18):
    """y = not x, bit by bit."""

    def forward(self, x):
        return ~x


class BitShift(Step, op="BitShift", since=11):
    """y = the bits of a moved by b places to the left or right."""

    def setup(self):
        if self.direction not in ("LEFT", "RIGHT"):
            raise ModelError(f"the direction is {shown(self.direction)}, expected LEFT or RIGHT")

    def forward(self, a, b):
        return a << b if self.direction == "LEFT" else a >> b


class IsNaN(Step, op="IsNaN", since=9):
    """y = whether x is not a number."""

    def forward(self, x):
        return namespace(x).isnan(x)


class IsInf(Step, op="IsInf", since=10):
    """y = whether x is infinite, of the signs asked for."""

    def forward(self, x):
        xp = namespace(x)
        wanted = (x > 0) * bool(self.detect_positive) + (x < 0) * bool(self.detect_negative)
        return xp.isinf(x) & wanted


# -- steps ----------------------------------------------------------------------------------------


class Floor(Step, op="Floor"):
    """y = the largest integer not above x."""

    def forward(self, x):
        return namespace(x).floor(x)


class Ceil(Step, op="Ceil"):
    """y = the smallest integer not below x."""

    def forward(self, x):
        return namespace(x).ceil(x)


class Round(Step, op="Round", since=11):
    """y = the nearest integer, halves to the even one."""

    def forward(self, x):
        return namespace(x).rint(x)


class Sign(Step, op="Sign", since=9):
    """y = -1, 0 or 1."""

    def forward(self, x):
        return namespace(x).sign(x)


class ModByData(Step, op="Mod", since=10):
    """y = the remainder of a / b with data in b: it counts how often b fits."""

    @classmethod
    def accepts(cls, active):
        return active[1]

    def forward(self, a, b):
        return remainder(a, b, self.fmod)


class Hardmax(Step, op="Hardmax", since=13):
    """y = 1 at the first of the largest elements along `axis`, else 0."""

    def forward(self, x):
        return _first_largest(x.swapaxes(self.axis, -1)).swapaxes(self.axis, -1)


class Hardmax1(Hardmax, op="Hardmax"):
    """Hardmax over all axes from `axis` on."""

    def forward(self, x):
        sizes = math.prod(x.shape[: self.axis]), math.prod(x.shape[self.axis :])
        return _first_largest(x.reshape(sizes)).reshape(x.shape)


def _first_largest(x: Array) -> Array:
    """Return 1 at the first of the largest elements along the last axis, else 0."""
    return (namespace(x).arange(x.shape[-1]) == x.argmax(axis=-1)[..., None]).astype(x.dtype)


class ArgMax(Step, op="ArgMax"):
    """y = the place of the largest element along `axis`, the first or the last of equals."""

    def find(self, x):
        """Return the place of the first of the elements looked for."""
        return namespace(x).argmax(x, axis=self.axis)

    def forward(self, x):
        if getattr(self, "select_last_index", 0):
            y = x.shape[self.axis] - 1 - self.find(namespace(x).flip(x, self.axis))
        else:
            y = self.find(x)
        y = namespace(x).expand_dims(y, self.axis) if self.keepdims else y
        return y.astype(np.int64, copy=False)


class ArgMin(ArgMax, op="ArgMin"):
    """y = the place of the smallest element along `axis`."""

    def find(self, x):
        return namespace(x).argmin(x, axis=self.axis)
