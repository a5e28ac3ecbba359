"""Running sums and products along an axis."""

from __future__ import annotations

from ..arrays import Array, host_ints, namespace
from ..errors import UnsupportedOpError
from .base import joint_shape
from .families import Axis, Linear
from .reductions import product_before


def _shifted(v: Array, start: float) -> Array:
    """Move elements one place along the last axis, `start` in front and the last one out."""
    xp = namespace(v)
    return xp.concatenate([xp.full_like(v[..., :1], start), v[..., :-1]], axis=-1)


class Running:
    """What running sums and products share: along which axis, from where, without the element."""

    def _axis(self, inputs: tuple[Array | None, ...]) -> int:
        """Return the axis as it counts in signals too: from the end."""
        (axis,) = host_ints(inputs[1])
        return axis % inputs[0].ndim - inputs[0].ndim

    def _line_up(self, v: Array, axis: int) -> Array:
        """Return `v` with this axis last, in the order of the running."""
        v = namespace(v).moveaxis(v, axis, -1)
        return v[..., ::-1] if self.reverse else v

    def _back(self, v: Array, axis: int) -> Array:
        """Undo `_line_up`."""
        v = v[..., ::-1] if self.reverse else v
        return namespace(v).moveaxis(v, -1, axis)


class CumSum(Running, Linear, op="CumSum", since=11):
    """y_k = the sum of x_j, j <= k along an axis. All weights are 1: `w` holds the axis."""

    def operand(self, inputs):
        return inputs[0], self._axis(inputs), None

    def split(self, w):
        return w, None

    def map_weights(self, w, f):
        return w

    def _sum(self, v: Array) -> Array:
        total = v.cumsum(axis=-1, dtype=v.dtype)
        return _shifted(total, 0) if self.exclusive else total

    def apply(self, x, w):
        return self._back(self._sum(self._line_up(x, w)), w)

    def vjp(self, g, shape, w):
        backwards = self._sum(self._line_up(g, w)[..., ::-1])
        return self._back(backwards[..., ::-1], w)


class CumProd(Running, Axis, op="CumProd", since=26):
    """y_k = the product of x_j, j <= k along an axis."""

    def forward(self, x, axis):
        along = self._axis((x, axis))
        y = self._line_up(x, along).cumprod(axis=-1, dtype=x.dtype)
        return self._back(_shifted(y, 1) if self.exclusive else y, along)

    def _signal(self, m: Array, axis: int) -> Array:
        """Return a signal in the order of the running, as for products with the element."""
        m = self._line_up(m, axis)
        return _shifted(m[..., ::-1], 0)[..., ::-1] if self.exclusive else m

    def vjp(self, g, x, y, axis):
        return self._between(g, x, x, self._axis((x, axis)))

    def deeplift(self, rec, ref, m, rule, parts):
        (x, x0), axis = (rec.inputs[0], ref.inputs[0]), self._axis(rec.inputs)
        found = self._between(m[0], x, x0, axis)
        xp, shape = namespace(found), joint_shape(rec, ref, 0)
        return self.at(0, xp.broadcast_to(found, (len(found), *shape)))

    def _between(self, m: Array, x: Array, x0: Array, axis: int) -> Array:
        """y_k = y_{k-1} x_k, each a product at its midpoint: exact, one element after the other."""
        m, x, x0 = self._signal(m, axis), self._line_up(x, axis), self._line_up(x0, axis)
        before = 0.5 * (product_before(x) + product_before(x0))
        factor = 0.5 * (x + x0)
        out = namespace(m).empty(m.shape, m.dtype)
        behind = 0
        for k in reversed(range(m.shape[-1])):
            total = m[..., k] + behind
            out[..., k] = before[..., k] * total
            behind = factor[..., k] * total
        return self._back(out, axis)

    def relevance(self, rec, r, rule, note):
        """Every factor of a product gets the same share (AttnLRP); the product of none keeps it."""
        axis = self._axis(rec.inputs)
        if note is not None and self.exclusive:
            note.add("constant", self._back(self._line_up(r[0], axis)[..., :1], axis))
        shares = self._signal(r[0], axis)
        shares = shares / namespace(shares).arange(1, shares.shape[-1] + 1, dtype=shares.dtype)
        total = shares[..., ::-1].cumsum(axis=-1)[..., ::-1]
        return self.at(0, self._back(total, axis))

    def connection(self, rec, g, rule):
        raise UnsupportedOpError(f"{self.op} has no weights: connection weights are not defined")

    def describe(self, method):
        words = {
            "lrp": ("equal shares", True, "every factor gets the same (AttnLRP), a convention"),
            "deeplift": ("midpoint", True, ""),
            "connection": ("", False, "not defined: a product has no weights"),
        }
        return words.get(method) or super().describe(method)
