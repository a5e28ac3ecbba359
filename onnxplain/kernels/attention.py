"""Attention, written with the operators it is made of when a graph is built.

Products of queries and keys, a mask, a softmax and products with the values: each has its rules
already, and what is explained here is explained as in a file that spells attention out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arrays import Array, namespace, on_device_of, unbroadcast
from ..errors import ModelError
from .arithmetic import Affine
from .constants import Forward
from .expanded import Expanded, Writer
from .families import Linear, Routing
from .normalisation import Softmax

OWN = "onnxplain"


# -- what is written ------------------------------------------------------------------------------


def split_heads(writer: Writer, x: str, heads: int | None) -> str:
    """Write (n, tokens, heads * d) as (n, heads, tokens, d); what has heads already stays."""
    return writer.node("SplitHeads", x, domain=OWN, heads=heads) if heads else x


def merge_heads(writer: Writer, y: str, output: str | None = None) -> str:
    """Write (n, heads, tokens, d) as (n, tokens, heads * d)."""
    y = writer.node("Transpose", y, perm=(0, 2, 1, 3))
    return writer.node("Reshape", y, writer.weight(np.array([0, 0, -1])), output=output)


def scores(writer: Writer, q: str, k: str, scale: float | None) -> str:
    """Write q k' times a scale, by default one over the root of the width of a head."""
    k = writer.node("RepeatHeads", k, q, domain=OWN)
    k = writer.node("Transpose", k, perm=(0, 1, 3, 2))
    return writer.node("MatMul", scaled(writer, q, scale), k)


def scaled(writer: Writer, x: str, factor: float | None = None) -> str:
    """Write x times a number, by default one over the root of its last axis."""
    return writer.node("ScaleBy", x, domain=OWN, factor=factor)


def capped(writer: Writer, s: str, cap: float | None) -> str:
    """Write cap tanh(s / cap)."""
    if not cap:
        return s
    return scaled(writer, writer.node("Tanh", scaled(writer, s, 1 / cap)), cap)


def weighted(writer: Writer, p: str, v: str, output: str | None = None) -> str:
    """Write p v, heads of v repeated where there are fewer of them."""
    return writer.node("MatMul", p, writer.node("RepeatHeads", v, p, domain=OWN), output=output)


def joined_tokens(writer: Writer, past: str, new: str, output: str) -> str:
    """Write keys or values of earlier tokens and of these after one another."""
    if past:
        return writer.node("Concat", past, new, output=output or None, axis=2)
    return writer.node("Identity", new, output=output) if output else new


class Attention(Expanded, op="Attention", since=23):
    """y = softmax(scale q k' + mask) v, head by head."""

    main = "SafeSoftmax"

    def expand(self, writer):
        heads = self.q_num_heads, self.kv_num_heads, self.kv_num_heads
        q, k, v = (split_heads(writer, writer.input(i), n) for i, n in enumerate(heads))
        past = writer.input(4)
        k = joined_tokens(writer, past, k, writer.output(1))
        v = joined_tokens(writer, writer.input(5), v, writer.output(2))
        raw = scores(writer, q, k, self.scale)
        soft = capped(writer, raw, self.softcap)
        masked = self._masked(writer, soft, past)
        p = writer.node("SafeSoftmax", masked, domain=OWN)
        if writer.output(3):
            shown = (soft, soft, masked, p)[self.qk_matmul_output_mode]
            writer.node("Identity", shown, output=writer.output(3))
        if not self.q_num_heads:
            weighted(writer, p, v, writer.output(0))
        else:
            merge_heads(writer, weighted(writer, p, v), writer.output(0))

    def _masked(self, writer: Writer, s: str, past: str) -> str:
        mask, lengths = writer.input(3), writer.input(6)
        if mask:
            s = writer.node("Add", s, writer.node("AdditiveMask", mask, s, domain=OWN))
        sides = {
            "right": 0 if self.is_causal else getattr(self, "right_window_size", -1),
            "left": getattr(self, "left_window_size", -1),
        }
        if not lengths and max(sides.values()) < 0:
            return s
        window = writer.node("WindowMask", s, past, lengths, domain=OWN, **sides)
        return writer.node("Add", s, window)


# -- parts of it that ONNX has no operator for ----------------------------------------------------


class SafeSoftmax(Softmax, op="SafeSoftmax", domain=OWN):
    """Softmax over the last axis; a row of minus infinities (all is masked) gives zeros."""

    axis, activation = -1, False

    @staticmethod
    def _top(x: Array) -> Array:
        top = x.max(axis=-1, keepdims=True)
        return namespace(x).where(top == -math.inf, x.dtype.type(0), top)

    @staticmethod
    def _total(e: Array) -> Array:
        total = e.sum(axis=-1, keepdims=True)
        return namespace(e).where(total == 0, e.dtype.type(1), total)

    def forward(self, x):
        e = namespace(x).exp(x - self._top(x))
        return e / self._total(e)

    def _log(self, x, axis):
        xp = namespace(x)
        z = x - self._top(x)
        return z - xp.log(self._total(xp.exp(z)))


class ScaleBy(Affine, op="ScaleBy", domain=OWN):
    """y = factor x, by default with one over the root of the last axis of x."""

    def operand(self, inputs):
        x = inputs[0]
        return x, x.shape[-1] ** -0.5 if self.factor is None else float(self.factor), None


class SplitHeads(Routing, op="SplitHeads", domain=OWN):
    """(n, tokens, heads * d) as (n, heads, tokens, d); what has four axes stays."""

    def forward(self, x):
        if x.ndim == 4:
            return x
        n, tokens, width = x.shape
        if width % self.heads:
            raise ModelError(f"a width of {width} does not make {self.heads} equal heads")
        return x.reshape(n, tokens, self.heads, width // self.heads).swapaxes(1, 2)

    def back(self, g, shape, rec):
        return g if len(shape) == 4 else g.swapaxes(2, 3).reshape(g.shape[0], *shape)


class RepeatHeads(Routing, op="RepeatHeads", domain=OWN):
    """Each head of x as often as it takes to have as many as y; the values of y are not read."""

    @classmethod
    def accepts(cls, active):
        return True

    def active_outputs(self):
        return (self.active[0],)

    def forward(self, x, y):
        heads, wanted = x.shape[1], y.shape[1]
        if wanted % heads:
            raise ModelError(f"{wanted} heads of queries do not share {heads} of keys and values")
        return x if heads == wanted else x.repeat(wanted // heads, axis=1)

    def route(self, signals, rec, ref):
        shape = rec.inputs[0].shape if ref is None else self._joint(rec, ref)
        g = signals[0]
        if g.shape[2] != shape[1]:
            g = g.reshape(*g.shape[:2], shape[1], -1, *g.shape[3:]).sum(axis=3)
        return g, None

    @staticmethod
    def _joint(rec, ref) -> tuple[int, ...]:
        return np.broadcast_shapes(rec.inputs[0].shape, ref.inputs[0].shape)


class AdditiveMask(Routing, op="AdditiveMask", domain=OWN):
    """A mask that carries data, to be added to scores: keys that it does not know are masked."""

    @classmethod
    def accepts(cls, active):
        return active[0]

    def forward(self, mask, s):
        mask = on_device_of(mask, s)
        if mask.dtype == bool:
            mask = namespace(mask).where(mask, s.dtype.type(0), s.dtype.type(-math.inf))
        missing = s.shape[-1] - mask.shape[-1]
        if missing <= 0:
            return mask
        widths = [(0, 0)] * (mask.ndim - 1) + [(0, missing)]
        return namespace(mask).pad(mask, widths, constant_values=-math.inf)

    def route(self, signals, rec, ref):
        g, width = signals[0], rec.inputs[0].shape[-1]
        return g[..., :width], *(None,) * (len(self.active) - 1)


class FixedMask(Forward, op="AdditiveMask", domain=OWN):
    """A mask without data, to be added to scores."""

    forward = AdditiveMask.forward


class WindowMask(Forward, op="WindowMask", domain=OWN):
    """0 where a query may look at a key, minus infinity elsewhere.

    Query i stands at p = i + offset and sees the keys from p - left to p + right, -1 for no bound.
    The offset is the number of earlier tokens, or `lengths` less the number of queries.
    """

    def forward(self, s, past=None, lengths=None):
        xp = namespace(s)
        queries, keys = xp.arange(s.shape[-2])[:, None], xp.arange(s.shape[-1])
        seen = xp.ones((s.shape[-2], s.shape[-1]), bool)
        if past is not None:
            queries = queries + past.shape[2]
        elif lengths is not None:
            lengths = xp.asarray(lengths).reshape(-1, 1, 1, 1)
            queries = queries + (lengths - s.shape[-2])
        if lengths is not None:
            seen = keys < lengths
        if self.right >= 0:
            seen = seen & (keys <= queries + self.right)
        if self.left >= 0:
            seen = seen & (keys >= queries - self.left)
        return xp.where(seen, s.dtype.type(0), s.dtype.type(-math.inf))


# -- positions ------------------------------------------------------------------------------------


class RotaryEmbedding(Linear, op="RotaryEmbedding", since=23):
    """Turns pairs of numbers of each token by angles that grow with its position."""

    def operand(self, inputs):
        x, cos, sin, positions = (*inputs, None)[:4]
        if positions is not None:
            if positions.ndim == 1:  # where the first token stands (com.microsoft)
                positions = positions + namespace(positions).arange(x.shape[-2])
            positions = on_device_of(positions, cos)
            cos, sin = (namespace(c).take(c, positions, axis=0) for c in (cos, sin))
        cos, sin = cos[..., None, :], sin[..., None, :]  # n tokens heads d/2
        return x, (cos, -sin, sin, cos, namespace(x).ones_like(cos[..., :1])), None

    def split(self, w):
        pairs = [super(RotaryEmbedding, self).split(v) for v in w]
        return tuple(p for p, _ in pairs), tuple(n for _, n in pairs)

    def map_weights(self, w, f):
        return tuple(f(v) for v in w)

    def _turned(self, x: Array, shape: tuple[int, ...], w: Any) -> Array:
        """Turn x, or a signal of shape (outputs, *shape)."""
        a, b, c, d, rest = w
        front = x.shape[: x.ndim - len(shape)]
        if len(shape) == 4:
            x = x.swapaxes(-2, -3)
        else:
            heads = self.num_heads or shape[2] // (2 * a.shape[-1])
            x = x.reshape(*front, *shape[:2], heads, shape[2] // heads)
        width = getattr(self, "rotary_embedding_dim", 0) or x.shape[-1]
        if a.shape[-1] != width // 2:
            raise ModelError(f"{a.shape[-1]} angles do not turn {width} numbers in pairs")
        first, second = self._pairs(width)
        xp = namespace(x)
        y = x * rest if width < x.shape[-1] else xp.empty(self._joint(x, a), x.dtype)
        y[..., first] = a * x[..., first] + b * x[..., second]
        y[..., second] = c * x[..., first] + d * x[..., second]
        if len(shape) == 4:
            return y.swapaxes(-2, -3)
        return y.reshape(*y.shape[: len(front)], *y.shape[len(front) : -2], -1)

    @staticmethod
    def _joint(x: Array, a: Array) -> tuple[int, ...]:
        return (*np.broadcast_shapes(x.shape[:-1], a.shape[:-1]), x.shape[-1])

    def _pairs(self, width: int) -> tuple[slice, slice]:
        if self.interleaved:
            return slice(0, width, 2), slice(1, width, 2)
        return slice(0, width // 2), slice(width // 2, width)

    def apply(self, x, w):
        return self._turned(x, x.shape, w)

    def vjp(self, g, shape, w):
        a, b, c, d, rest = w
        shape = np.broadcast_shapes(shape, g.shape[1:])  # a reference of one row turns each row
        return unbroadcast(self._turned(g, shape, (a, c, b, d, rest)), shape)


class Positions(Forward, op="Positions", domain=OWN):
    """Places of the tokens of x (n, heads, tokens, d), after those of `past`."""

    def forward(self, x, past=None):
        first = 0 if past is None else past.shape[2]
        places = namespace(x).arange(first, first + x.shape[-2])
        return namespace(x).broadcast_to(places, (x.shape[0], len(places)))


__all__ = ["Attention", "RotaryEmbedding", "SafeSoftmax"]
