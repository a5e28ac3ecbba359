"""Seven families of operators. Each knows how every signal travels back through its members.

| family      | the author writes     | gradient  | relevance        | DeepLIFT         |
|-------------|-----------------------|-----------|------------------|------------------|
| Elementwise | slope, secant         | g slope   | passes           | m secant         |
| Linear      | apply, vjp, split     | vjp       | the rule         | vjp              |
| Routing     | back                  | back      | back             | back             |
| Merge       | coefficients          | c g       | by contribution  | c m              |
| Product     | back                  | back      | halves           | back at midpoint |
| Selector    | send, pick, average   | to winner | winner takes all | cross-maximum    |
| Axis        | vjp, deeplift         | vjp       | its own          | closed form      |

and `forward`, always.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from ..arrays import (
    Array,
    Shape,
    derived,
    divide,
    finite,
    fold,
    lead,
    may_hold,
    namespace,
    negative,
    positive,
    unbroadcast,
    unfold,
)
from ..errors import ModelError, UnsupportedOpError
from .base import Kernel, Note, Pair, Parts, Record, Signals, joint_shape

# Nodes and weights of Gauss-Legendre quadrature on [0, 1], for secants of smooth functions.
_NODES, _WEIGHTS = ((0.5 * v).tolist() for v in np.polynomial.legendre.leggauss(7))


def mean_between(f: Any, x0: Array, dx: Array) -> Array:
    """Return the mean of a smooth function between x0 and x0 + dx."""
    points = ((w, x0 + (t + 0.5) * dx) for t, w in zip(_NODES, _WEIGHTS, strict=True))
    return sum(w * f(p) for w, p in points)


def both(f: Any, signal: Array | Pair) -> Array | Pair:
    """Apply a linear map to a signal, or to both parts of a pair."""
    return signal.map(f) if isinstance(signal, Pair) else f(signal)


class Elementwise(Kernel):
    """y_i = f(x_i): the signals are scaled by slope or secant, relevance passes."""

    family = "elementwise"
    needs: ClassVar = {"forward": "forward", "slope": "gradient"}
    data = (0,)

    def value(self, x: Array, *params: Array) -> Array:
        """Return f(x); `params` are the other inputs, wherever x stands among them."""
        i = self.position
        return self.forward(*params[:i], x, *params[i:])

    def slope(self, x: Array, y: Array, *params: Array) -> Array:
        """Return dy/dx."""
        raise NotImplementedError

    def secant(self, x: Array, y: Array, x0: Array, y0: Array, *params: Array) -> Array:
        """Return (y - y0) / (x - x0), without cancellation where the two are close.

        Default for functions that are smooth away from 0 and vanish there: the mean slope between
        the points where they are close and on one side of 0, else the quotient.
        """
        xp = namespace(x, x0)
        dx = x - x0
        close = (abs(dx) < 0.1) & ((x > 0) == (x0 > 0))
        if not may_hold(close):
            return (y - y0) / dx
        mean = mean_between(
            lambda p: self.slope(p, self.value(p, *params), *params), x0, xp.where(close, dx, 0)
        )
        return xp.where(close, mean, divide(y - y0, xp.where(close, 0, dx))).astype(
            dx.dtype, copy=False
        )

    def _values(self, rec: Record) -> tuple[Array, Array, tuple[Array, ...]]:
        i = self.position
        params = tuple(v for j, v in enumerate(rec.inputs) if j != i)
        return rec.inputs[i], rec.outputs[0], params

    def gradient(self, rec, g):
        x, y, params = self._values(rec)
        return self.at(self.position, unbroadcast(g[0] * self.slope(x, y, *params), x.shape))

    def relevance(self, rec, r, rule, note):
        return self.at(self.position, unbroadcast(r[0], rec.inputs[self.position].shape))

    def deeplift(self, rec, ref, m, rule, parts):
        x, y, params = self._values(rec)
        x0, y0, _ = self._values(ref)
        i = self.position
        split = parts(i) if rule.rule.splits else None
        out = rule.rule.elementwise(self, (x, y, x0, y0, *params), m[0], split)
        shape = joint_shape(rec, ref, i)
        return self.at(i, both(lambda s: unbroadcast(s, shape), out))

    def connection(self, rec, g, rule):
        return self.at(self.position, unbroadcast(g[0], rec.inputs[self.position].shape))

    def describe(self, method):
        words = {
            "gradient": ("slope", True, ""),
            "lrp": ("pass", True, ""),
            "deeplift": ("secant", True, ""),
            "connection": ("identity", True, ""),
        }
        return words[method]


class Linear(Kernel):
    """y = A(w) x + b with weights w and bias b that carry no data."""

    family = "linear"
    needs: ClassVar = {"apply": "forward", "vjp": "gradient"}
    reads = ()
    data = (0,)
    diagonal = False  # each output depends on the input in its own place only
    whole = False  # relevance is shared by the rule also where the bias is 0
    wide = False  # sums in float64, whatever the type of x
    fresh = False  # `apply` returns memory of its own

    def operand(self, inputs: tuple[Array | None, ...]) -> tuple[Array, Any, Array | None]:
        """Return x, w and b; the weights of an operator without any are the number 1."""
        x, w, b = (*inputs, None, None)[:3]
        return x, 1.0 if w is None else w, b

    def apply(self, x: Array, w: Any) -> Array:
        """Return A(w) x."""
        raise NotImplementedError

    def vjp(self, g: Array, shape: Shape, w: Any) -> Array:
        """Return the transpose of A(w) applied to a signal (outputs, *y), as (outputs, *shape)."""
        raise NotImplementedError

    def direct(self) -> Linear:
        """Return a kernel that adds up products one by one, as relevance needs it.

        What is divided by a sum close to 0 is large and shares its neighbours' rounding errors
        wherever sums are made of sums and differences of several outputs.
        """
        return self

    def split(self, w: Any) -> tuple[Any, Any]:
        """Return the positive and the negative weights; None stands for zero weights."""
        if isinstance(w, int | float):
            return (w, None) if w >= 0 else (None, w)
        return derived(w, "split", lambda v: (positive(v), negative(v)))

    def map_weights(self, w: Any, f: Any) -> Any:
        """Apply an elementwise function to the weights."""
        return f(w)

    def forward(self, *inputs):
        x, w, b = self.operand(inputs)
        if self.wide:
            wide = (v if v is None else v.astype(np.float64, copy=False) for v in (x, w, b))
            return self.direct()._shifted(*wide).astype(x.dtype, copy=False)
        return self._shifted(x, w, b)

    def _shifted(self, x: Array, w: Any, b: Array | None) -> Array:
        z = self.apply(x, w)
        if b is None:
            return z
        if self.fresh and z.dtype == b.dtype and b.size < z.size:
            y = namespace(z).add(z, b, out=z)
        else:
            y = z + b
        if y.shape != z.shape and not self.diagonal:  # a sum may broadcast, a layer may not
            raise ModelError(f"a bias of shape {b.shape} does not fit an output of {z.shape}")
        return y

    def gradient(self, rec, g):
        x, w, _ = self.operand(rec.inputs)
        return self.at(self.position, self.vjp(g[0], x.shape, w))

    def relevance(self, rec, r, rule, note):
        x, w, b = self.operand(rec.inputs)
        if self.diagonal and b is None:  # a scale has one contribution: nothing to share
            return self.at(self.position, unbroadcast(r[0], x.shape))
        z, r0, kernel = rec.outputs[0], r[0], self.direct()
        apart = self._apart(b) if self.diagonal else None
        if apart is None:
            return self.at(self.position, rule.rule.linear(kernel, x, w, b, z, r0, note))
        masked, alone = apart
        if note is not None:
            note.add("constant", r0 - _without(r0, masked))
        z, b, shared = _without(z, masked), _without(b, masked), _without(r0, masked | alone)
        out = rule.rule.linear(kernel, x, w, b, z, shared, note)
        return self.at(self.position, out + unbroadcast(_without(r0, ~alone), x.shape))

    def _apart(self, b: Array) -> tuple[Array, Array] | None:
        """Return where a bias is as good as infinite, as masks are, and where it is 0, or None.

        An infinity keeps the relevance that comes to it, and where nothing is added nothing is
        shared.
        """
        masked, alone = abs(b) > _INFINITE, (b == 0) & (not self.whole)
        return (masked, alone) if may_hold(masked | alone) else None

    def deeplift(self, rec, ref, m, rule, parts):
        i = self.position
        _, w, _ = self.operand(rec.inputs)
        shape = joint_shape(rec, ref, i)
        if not isinstance(m[0], Pair):
            return self.at(i, self.vjp(m[0], shape, w))
        return self.at(i, self._join(m[0], rec.inputs[i] - ref.inputs[i], shape, w))

    def _join(self, m: Pair, dx: Array, shape: Shape, w: Any) -> Array:
        """Choose for each input the multipliers its contributions went through."""
        w_pos, w_neg = self.split(w)

        def back(a: Array, b: Array) -> Array:
            signals = ((a, w_pos), (b, w_neg))
            return sum(self.vjp(s, shape, v) for s, v in signals if v is not None)

        up, down = back(m.positive, m.negative), back(m.negative, m.positive)
        xp = namespace(dx)
        return xp.where(dx > 0, up, xp.where(dx < 0, down, 0.5 * (up + down)))

    def difference_parts(self, rec, ref, parts):
        i = self.position
        dx = rec.inputs[i] - ref.inputs[i]
        w_pos, w_neg = self.split(self.operand(rec.inputs)[1])

        def forth(a: Array, b: Array) -> Array:
            return sum(self.apply(d, v) for d, v in ((a, w_pos), (b, w_neg)) if v is not None)

        up, down = positive(dx), negative(dx)
        return forth(up, down), forth(down, up)

    def connection(self, rec, g, rule):
        return self.gradient(rec, g)

    def describe(self, method):
        words = {
            "gradient": ("transpose", True, ""),
            "lrp": ("rule", True, "bias and stabiliser absorb relevance"),
            "deeplift": ("transpose", True, ""),
            "connection": ("transpose", True, ""),
        }
        return words[method]


_INFINITE = 1e30  # masks are written with infinity or with the largest number of float32


def _without(r: Array, mask: Array) -> Array:
    return namespace(r).where(mask, r.dtype.type(0), r)


class Routing(Kernel):
    """Moves, copies or drops elements; every signal goes back the way the element came."""

    family = "routing"
    needs: ClassVar = {"forward": "forward", "back": "route"}
    data = (0,)

    def back(self, g: Array, shape: Shape, rec: Record) -> Array:
        """Send a signal (outputs, *y) back to the input, as (outputs, *shape)."""
        raise NotImplementedError

    def route(self, signals: Signals, rec: Record, ref: Record | None) -> Signals:
        """Send signals of all outputs back; one active input and one output by default."""
        i = self.position
        return self.at(i, self.back(signals[0], joint_shape(rec, ref, i), rec))

    def gradient(self, rec, g):
        return self.route(g, rec, None)

    def relevance(self, rec, r, rule, note):
        back = self.route(r, rec, None)
        if note is not None:
            dropped = sum(note.total(s) for s in r if s is not None)
            kept = sum(note.total(s) for s in back if s is not None)
            note.absorbed["constant"] = dropped - kept
        return back

    def deeplift(self, rec, ref, m, rule, parts):
        if not any(isinstance(s, Pair) for s in m):
            return self.route(m, rec, ref)
        zero = [s if isinstance(s, Pair) or s is None else Pair(s, s) for s in m]
        pos = self.route(tuple(s and s.positive for s in zero), rec, ref)
        neg = self.route(tuple(s and s.negative for s in zero), rec, ref)
        return tuple(None if p is None else Pair(p, n) for p, n in zip(pos, neg, strict=True))

    def difference_parts(self, rec, ref, parts):
        if sum(self.active) != 1 or self.n_outputs != 1:
            return None
        i = self.position
        split = parts(i)
        if split is None:
            return None
        # Parameters of the run that has all rows: a shape may have been computed from their number.
        base = rec if rec.inputs[i].shape == joint_shape(rec, ref, i) else ref
        inputs = [tuple(d if j == i else v for j, v in enumerate(base.inputs)) for d in split]
        return tuple(self.forward(*values) for values in inputs)

    def connection(self, rec, g, rule):
        return self.route(g, rec, None)

    def describe(self, method):
        return ("routes back", True, "")


class Merge(Kernel):
    """y = sum of c_i x_i over several inputs with data; constants among them act as a bias."""

    family = "merge"
    needs: ClassVar = {"coefficients": "gradient"}
    reads = ()

    @classmethod
    def accepts(cls, active):
        return sum(active) > 1

    def coefficients(self) -> list[float]:
        """Return the factor of each input."""
        raise NotImplementedError

    def forward(self, *inputs):
        terms = [_scaled(c, x) for c, x in zip(self.coefficients(), inputs, strict=True)]
        return sum(terms[1:], start=terms[0])

    def _each(self, rec: Record, ref: Record | None, f: Any) -> Signals:
        return tuple(
            f(i, c, joint_shape(rec, ref, i)) if a else None
            for i, (c, a) in enumerate(zip(self.coefficients(), self.active, strict=True))
        )

    def gradient(self, rec, g):
        return self._each(rec, None, lambda i, c, shape: unbroadcast(_scaled(c, g[0]), shape))

    def relevance(self, rec, r, rule, note):
        if rule.equal_shares:
            share = r[0] / len(self.active)
            if note is not None:
                note.add("bias", share * (len(self.active) - sum(self.active)))
            return self._each(rec, None, lambda i, c, shape: unbroadcast(share, shape))
        z = finite(rec.outputs[0])  # a sum with an infinity in it is shared by nobody
        d = rule.rule.secure(z)
        s = r[0] / d
        if note is not None:
            note.add("stabiliser", s * (d - z))
            for c, a, x in zip(self.coefficients(), self.active, rec.inputs, strict=True):
                if not a:
                    note.add("bias", s * (c * finite(x)))
        return self._each(
            rec, None, lambda i, c, shape: unbroadcast(s * (c * finite(rec.inputs[i])), shape)
        )

    def deeplift(self, rec, ref, m, rule, parts):
        def one(i: int, c: float, shape: Shape) -> Array:
            if not isinstance(m[0], Pair):
                return unbroadcast(_scaled(c, m[0]), shape)
            dx = c * (rec.inputs[i] - ref.inputs[i])
            p, n = m[0].positive, m[0].negative
            xp = namespace(dx)
            chosen = xp.where(dx > 0, p, xp.where(dx < 0, n, 0.5 * (p + n)))
            return unbroadcast(c * chosen, shape)

        return self._each(rec, ref, one)

    def difference_parts(self, rec, ref, parts):
        terms = [
            c * (rec.inputs[i] - ref.inputs[i])
            for i, (c, a) in enumerate(zip(self.coefficients(), self.active, strict=True))
            if a
        ]
        return sum(map(positive, terms)), sum(map(negative, terms))

    def connection(self, rec, g, rule):
        n = len(self.active) if rule.innsight else 1
        return self._each(rec, None, lambda i, c, shape: unbroadcast(c * g[0] / n, shape))

    def describe(self, method):
        words = {
            "gradient": ("copies", True, ""),
            "lrp": ("proportional", True, "constants and stabiliser absorb relevance"),
            "deeplift": ("copies", True, ""),
            "connection": ("copies", True, ""),
        }
        return words[method]


def _scaled(c: float, x: Array) -> Array:
    return x if c == 1 else c * x


class Product(Kernel):
    """y = f(a, b), linear in each of two inputs with data: exact DeepLIFT at the midpoint."""

    family = "product"
    needs: ClassVar = {"forward": "forward", "back": "gradient"}

    @classmethod
    def accepts(cls, active):
        return sum(active) == 2

    def back(self, g: Array, a: Array, b: Array, shapes: tuple[Shape, Shape]) -> tuple:
        """Return the gradients of both factors."""
        raise NotImplementedError

    def bias(self, rec: Record) -> Array | None:
        """Return what is added to the product, a constant."""
        return None

    def _pair(self, a: Array, b: Array) -> Signals:
        return (a, b) + (None,) * (len(self.active) - 2)

    def gradient(self, rec, g):
        a, b = rec.inputs[:2]
        return self._pair(*self.back(g[0], a, b, (a.shape, b.shape)))

    def relevance(self, rec, r, rule, note):
        """Half to each factor, shared like a linear map (Achtibat et al. 2024, AttnLRP)."""
        a, b = rec.inputs[:2]
        z = rec.outputs[0]
        d = rule.rule.secure(z)
        s = 0.5 * r[0] / d
        if note is not None:
            note.add("stabiliser", 2 * s * (d - z))
            if (bias := self.bias(rec)) is not None:
                note.add("bias", 2 * s * bias)
        ga, gb = self.back(s, a, b, (a.shape, b.shape))
        return self._pair(a * ga, b * gb)

    def deeplift(self, rec, ref, m, rule, parts):
        a, b = (0.5 * (x + x0) for x, x0 in zip(rec.inputs[:2], ref.inputs[:2], strict=True))
        shapes = (joint_shape(rec, ref, 0), joint_shape(rec, ref, 1))
        return self._pair(*self.back(m[0], a, b, shapes))

    def connection(self, rec, g, rule):
        raise UnsupportedOpError(
            f"{self.op} multiplies two tensors that both depend on the data: "
            "connection weights are not defined for it"
        )

    def describe(self, method):
        words = {
            "gradient": ("product rule", True, ""),
            "lrp": ("halves", True, "half to each factor (AttnLRP), a convention"),
            "deeplift": ("midpoint", True, ""),
            "connection": ("", False, "not defined: product of two tensors with data"),
        }
        return words[method]


class Selector(Kernel):
    """y = max over windows: signals go to the winners, ties to the first in row-major order."""

    family = "selector"
    needs: ClassVar = {
        "forward": "forward",
        "send": "gradient",
        "pick": "deeplift",
        "average": "relevance",
        "average_vjp": "connection",
    }
    data = (0,)

    def send(self, g: Array, x: Array, y: Array, shape: Shape) -> Array:
        """Send a signal of each window to the first cell of `x` that equals `y`."""
        raise NotImplementedError

    def pick(self, values: Array, x: Array, y: Array) -> Array:
        """Return `values` (shaped like x) at the cell where `send` sends."""
        raise NotImplementedError

    def average(self, x: Array) -> Array:
        """Return the mean of every window."""
        raise NotImplementedError

    def average_vjp(self, g: Array, shape: Shape) -> Array:
        """Return the transpose of `average`."""
        raise NotImplementedError

    def gradient(self, rec, g):
        x, y = rec.inputs[0], rec.outputs[0]
        return self.at(0, self.send(g[0], x, y, x.shape))

    def relevance(self, rec, r, rule, note):
        x = rec.inputs[0]
        if rule.winner_takes_all:
            return self.at(0, self.send(r[0], x, rec.outputs[0], x.shape))
        mean = WindowMean(self)
        return self.at(0, rule.rule.linear(mean, x, 1.0, None, mean.apply(x, 1.0), r[0], note))

    def deeplift(self, rec, ref, m, rule, parts):
        shape = joint_shape(rec, ref, 0)
        x, x0, y, y0 = rec.inputs[0], ref.inputs[0], rec.outputs[0], ref.outputs[0]
        if not rule.winner_takes_all:
            return self.at(0, self._surrogate(x, x0, y, y0, m[0], shape))
        if not rule.cross_maximum:
            return self.at(0, self.send(m[0], x, y, shape))
        signal = m[0] * (y != y0) if rule.moved_maxima_only else m[0]
        return self.at(0, self._cross(x, x0, y, y0, signal, shape))

    def _cross(self, x, x0, y, y0, m, shape):
        """Credit a rise to where x has its maximum, a fall to where the reference has it.

        There the input differs at least as much as the output, so no quotient exceeds 1.
        """
        dx, dy = x - x0, y - y0
        at_x, at_x0 = self.pick(dx, x, y), self.pick(dx, x0, y0)
        rise, fall = divide(positive(dy), at_x, 1.0), divide(negative(dy), at_x0, 0.0)
        xp = namespace(dy)
        up = xp.where(dy >= 0, rise, 0).astype(dy.dtype, copy=False)
        down = xp.where(dy < 0, fall, 0).astype(dy.dtype, copy=False)
        out = self.send(m * up, x, y, shape)
        out += self.send(m * down, x0, y0, shape)  # for many explained outputs these are large
        return out

    def _surrogate(self, x, x0, y, y0, m, shape):
        """Spread over the window as its mean would; the winner gets what the mean cannot carry."""
        mean = self.average(x - x0)
        # A mean that is rounding only (probabilities, say) would make the quotient a random number.
        limit = math.sqrt(np.finfo(mean.dtype).eps)
        stuck = abs(mean) <= limit * self.average(abs(x - x0))
        xp = namespace(mean)
        spread = self.average_vjp(m * divide(y - y0, xp.where(stuck, 0, mean)), shape)
        return spread + self._cross(x, x0, y, y0, m * stuck.astype(mean.dtype), shape)

    def connection(self, rec, g, rule):
        x = rec.inputs[0]
        if not rule.innsight:
            return self.at(0, self.average_vjp(g[0], x.shape))
        level = namespace(x).ones_like(x)
        top = self.forward(level)
        top = top[0] if isinstance(top, tuple) else top
        return self.at(0, self.send(g[0], level, top, x.shape))

    def describe(self, method):
        words = {
            "gradient": ("first maximum", True, ""),
            "lrp": ("winner takes all", True, ""),
            "deeplift": ("cross-maximum", True, ""),
            "connection": ("window mean", True, "no data is read"),
        }
        return words[method]


class WindowMean:
    """The average pooling that stands for a selector where the winner does not take all."""

    diagonal = False

    def __init__(self, selector: Selector):
        self.op, self._selector = selector.op, selector

    def apply(self, x: Array, w: Any) -> Array:
        return w * self._selector.average(x)

    def vjp(self, g: Array, shape: Shape, w: Any) -> Array:
        return w * self._selector.average_vjp(g, shape)

    def split(self, w: Any) -> tuple[Any, Any]:
        return w, None

    def map_weights(self, w: Any, f: Any) -> Any:
        return w


class Axis(Kernel):
    """Mixes elements along an axis: gradient and DeepLIFT are the author's closed forms."""

    family = "axis"
    needs: ClassVar = {"forward": "forward", "vjp": "gradient", "deeplift": "deeplift"}
    data = (0,)

    def vjp(self, g: Array, x: Array, y: Array, *params: Array) -> Array:
        """Return the gradient with respect to x."""
        raise NotImplementedError

    def gradient(self, rec, g):
        x, *params = rec.inputs
        return self.at(0, self.vjp(g[0], x, rec.outputs[0], *params))

    def relevance(self, rec, r, rule, note):
        """The normaliser is passed: relevance goes through unchanged (AttnLRP)."""
        return self.at(0, r[0])

    def connection(self, rec, g, rule):
        return self.at(0, g[0])

    def describe(self, method):
        words = {
            "gradient": ("closed form", True, ""),
            "lrp": ("pass", True, "the normaliser is passed (AttnLRP), a convention"),
            "deeplift": ("closed form", True, ""),
            "connection": ("identity", True, ""),
        }
        return words[method]


def folded(f: Any, g: Array) -> Array:
    """Apply a map of batches to a signal by folding outputs and rows into one axis."""
    return unfold(f(fold(g)), g.shape[0])


__all__ = [
    "Axis",
    "Elementwise",
    "Kernel",
    "Linear",
    "Merge",
    "Note",
    "Pair",
    "Parts",
    "Product",
    "Record",
    "Routing",
    "Selector",
    "Signals",
    "folded",
    "joint_shape",
    "lead",
]
