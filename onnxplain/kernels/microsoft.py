"""Operators of onnxruntime (com.microsoft): layers that its optimiser fuses, written out again."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..arrays import namespace
from ..errors import ModelError, UnsupportedOpError, listed, shown
from . import attention
from .attention import OWN, joined_tokens, merge_heads, scores, split_heads, weighted
from .constants import Forward
from .expanded import Expanded, Writer
from .families import Routing
from .normalisation import LayerNormalization

DOMAIN = "com.microsoft"


# -- activations ----------------------------------------------------------------------------------


class Gelu(Expanded, op="Gelu", domain=DOMAIN):
    """y = x Phi(x)."""

    main, opset = "Gelu", 20
    text = "f (x) => (y) { y = Gelu (x) }"


class BiasGelu(Expanded, op="BiasGelu", domain=DOMAIN):
    """y = Gelu(a + b)."""

    main, opset = "Gelu", 20
    text = "f (a, b) => (y) { x = Add (a, b) y = Gelu (x) }"


class FastGelu(Expanded, op="FastGelu", domain=DOMAIN):
    """y = Gelu(x + b) by the approximation with tanh."""

    main, opset = "Gelu", 20

    def expand(self, writer):
        x = added(writer, *writer.inputs)
        writer.node("Gelu", x, output=writer.outputs[0], approximate="tanh")


def added(writer: Writer, *tensors: str) -> str:
    """Write the sum of those tensors that are there."""
    total, *rest = (t for t in tensors if t)
    for tensor in rest:
        total = writer.node("Add", total, tensor)
    return total


# -- dense layers and convolutions with an activation ---------------------------------------------

_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "": (),
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "Softplus": (),
    "Softsign": (),
    "LeakyRelu": ("alpha",),
    "Elu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Clip": ("min", "max"),
}


def activated(
    writer: Writer, z: str | None, name: str, parameters: tuple[float, ...], output: str
) -> None:
    """Write an activation known by name."""
    names = _ACTIVATIONS[name]
    if name == "Clip":
        bounds = (writer.weight(np.float32(v)) for v in parameters)
        writer.node("Clip", z, *bounds, output=output)
    else:
        writer.node(name, z, output=output, **dict(zip(names, parameters, strict=False)))


class Fused(Expanded):
    """A layer and the activation after it."""

    activation: str = ""
    activation_params: tuple[float, ...] = ()
    own: ClassVar[tuple[str, ...]] = ()  # attributes of the layer itself

    def setup(self):
        if self.activation not in _ACTIVATIONS:
            raise UnsupportedOpError(
                f"the activation {shown(self.activation)} of a fused layer is not supported, only "
                f"{listed(filter(None, _ACTIVATIONS))}; explain the model before it was optimised"
            )

    def parameters(self) -> tuple[float, ...]:
        """Return the numbers of the activation."""
        return self.activation_params

    def layer(self, writer: Writer, output: str | None) -> str:
        """Write the layer."""
        given = {k: v for k, v in vars(self).items() if k in self.own}
        return writer.node(self.main, *writer.inputs[:3], output=output, **given)

    def expand(self, writer):
        if not self.activation:
            self.layer(writer, writer.outputs[0])
            return
        z = self.layer(writer, None)
        activated(writer, z, self.activation, self.parameters(), writer.outputs[0])


class FusedConv(Fused, op="FusedConv", domain=DOMAIN):
    """y = activation(conv(x, w) + b + z)."""

    main = "Conv"
    own = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")

    def layer(self, writer, output):
        if not writer.input(3):
            return super().layer(writer, output)
        z = super().layer(writer, None)
        return writer.node("Add", z, writer.input(3), output=output)


class FusedGemm(Fused, op="FusedGemm", domain=DOMAIN):
    """y = activation(alpha A B + beta C)."""

    main = "Gemm"
    own = ("alpha", "beta", "transA", "transB")

    def parameters(self):
        names = ("activation_alpha", "activation_beta", "activation_gamma")
        return tuple(vars(self)[name] for name in names if name in vars(self))


class FusedMatMul(Expanded, op="FusedMatMul", domain=DOMAIN):
    """y = alpha A B, the last two axes of a factor swapped where asked for."""

    main = "MatMul"
    alpha, transA, transB, transBatchA, transBatchB = 1.0, 0, 0, 0, 0

    def expand(self, writer):
        if self.transBatchA or self.transBatchB:
            raise UnsupportedOpError("FusedMatMul with transposed batch axes is not supported")
        a, b = (
            writer.node("SwapLast", x, domain=OWN) if swapped else x
            for x, swapped in zip(writer.inputs, (self.transA, self.transB), strict=True)
        )
        if self.alpha == 1:
            writer.node("MatMul", a, b, output=writer.outputs[0])
            return
        y = writer.node("MatMul", a, b)
        writer.node("ScaleBy", y, output=writer.outputs[0], domain=OWN, factor=self.alpha)


class TransposeMatMul(FusedMatMul, op="TransposeMatMul", domain=DOMAIN):
    """y = alpha A B, the last two axes of a factor swapped where asked for."""


class SwapLast(Routing, op="SwapLast", domain=OWN):
    """y = x with its last two axes swapped."""

    def forward(self, x):
        return x.swapaxes(-1, -2) if x.ndim > 1 else x

    def back(self, g, shape, rec):
        return g.swapaxes(-1, -2) if len(shape) > 1 else g


# -- normalisations -------------------------------------------------------------------------------


class SimplifiedLayerNormalization(Expanded, op="SimplifiedLayerNormalization"):
    """y = w x / sqrt(mean x^2 + epsilon); onnxruntime has it among ONNX's own operators."""

    main, opset = "RMSNormalization", 23
    axis, epsilon = -1, 1e-5

    def expand(self, writer):
        _one_output(self, writer)
        given = {"axis": self.axis, "epsilon": self.epsilon}
        writer.node(self.main, *writer.inputs[:2], output=writer.outputs[0], **given)


class SimplifiedLayerNormalizationMs(
    SimplifiedLayerNormalization, op="SimplifiedLayerNormalization", domain=DOMAIN
):
    """y = w x / sqrt(mean x^2 + epsilon)."""


def _one_output(kernel: Any, writer: Writer) -> None:
    if any(writer.outputs[1:3]):
        raise UnsupportedOpError(f"{kernel.op} gives its mean and deviation in training only")


class LayerNormalization1(LayerNormalization, op="LayerNormalization", since=1):
    """LayerNormalization, which onnxruntime writes into models of any opset."""

    axis, epsilon = -1, 1e-5


class SkipLayerNormalization(Expanded, op="SkipLayerNormalization", domain=DOMAIN):
    """y = LayerNormalization(x + skip + bias)."""

    main, opset = "LayerNormalization", 17
    epsilon = 1e-12
    bias_at = 4

    def expand(self, writer):
        _one_output(self, writer)
        x, skip, *parameters = writer.inputs[: self.bias_at]
        bias = writer.input(self.bias_at)
        total = added(writer, x, bias, skip)  # the bias is the dense layer's before this
        given = {"axis": -1, "epsilon": self.epsilon}
        writer.node(self.main, total, *parameters, output=writer.outputs[0], **given)
        if writer.output(3):
            writer.node("Identity", total, output=writer.output(3))


class SkipSimplifiedLayerNormalization(
    SkipLayerNormalization, op="SkipSimplifiedLayerNormalization", domain=DOMAIN
):
    """y = RMSNormalization(x + skip + bias)."""

    main, opset = "RMSNormalization", 23
    bias_at = 3


class EmbedLayerNormalization(Expanded, op="EmbedLayerNormalization", domain=DOMAIN):
    """y = LayerNormalization of the embeddings of tokens, places and segments, added up."""

    main, opset = "LayerNormalization", 17
    epsilon = 1e-12

    def expand(self, writer):
        ids, segments, words, places, kinds, gamma, beta = writer.inputs[:7]
        mask, where = writer.input(7), writer.input(8)
        where = where or writer.node("TokenPlaces", ids, domain=OWN)
        found = [writer.node("Gather", words, ids), writer.node("Gather", places, where)]
        if segments and kinds:
            found.append(writer.node("Gather", kinds, segments))
        total = added(writer, *found)
        y, given = writer.outputs[0], {"axis": -1, "epsilon": self.epsilon}
        writer.node("LayerNormalization", total, gamma, beta, output=y, **given)
        if writer.output(1):
            given = {"given": bool(mask)}
            writer.node("KeyCount", mask or ids, output=writer.output(1), domain=OWN, **given)
        if writer.output(2):
            writer.node("Identity", total, output=writer.output(2))


class TokenPlaces(Forward, op="TokenPlaces", domain=OWN):
    """0, 1, ... for the tokens of each row."""

    def forward(self, ids):
        return namespace(ids).arange(ids.shape[1])[None]


class KeyCount(Forward, op="KeyCount", domain=OWN):
    """How many tokens of each row a mask keeps, 0 where there is none."""

    def forward(self, mask):
        xp = namespace(mask)
        kept = mask.sum(axis=1) if self.given else xp.zeros(len(mask), np.int32)
        return kept.astype(np.int32, copy=False)


# -- attention ------------------------------------------------------------------------------------


class KeyMask(Forward, op="KeyMask", domain=OWN):
    """A mask in one of onnxruntime's forms as what is added to scores: 0, or `fill` where masked.

    Lengths (n,), ends and starts (2n,), or ones for what is kept: (n, keys), (n, queries, keys),
    (n, 1, most, most).
    """

    def forward(self, mask, s):
        xp = namespace(s)
        keep = self._kept(xp.asarray(mask), xp.arange(s.shape[-1]), s)
        return xp.where(keep, s.dtype.type(0), s.dtype.type(self.fill))

    @staticmethod
    def _kept(mask: Any, keys: Any, s: Any) -> Any:
        n, _, queries, total = s.shape
        if mask.ndim == 1:
            if mask.size not in (n, 2 * n):
                raise ModelError(f"a mask of {mask.size} numbers, expected {n} or {2 * n}")
            ends, starts = mask[:n], mask[n:]
            keep = keys < ends.reshape(-1, 1, 1, 1)
            return keep & (keys >= starts.reshape(-1, 1, 1, 1)) if starts.size else keep
        if mask.ndim == 2:
            return (mask != 0)[:, None, None, :]
        if mask.ndim == 3:
            return (mask != 0)[:, None]
        return (mask != 0)[:, :, total - queries : total, :total]


class MaskedAttention(Expanded):
    """What the operators for attention share once queries, keys and values have heads."""

    main = "Softmax"
    scale: float | None = None
    mask_filter_value = -10000.0
    unidirectional = 0

    def attend(
        self, writer: Writer, q: str, k: str, v: str, mask: str, bias: str, past: str = ""
    ) -> None:
        """Write softmax(scale q k' + masks) v with its heads merged."""
        s = scores(writer, q, k, self.scale or None)
        if mask:
            fill = float(self.mask_filter_value)
            s = writer.node("Add", s, writer.node("KeyMask", mask, s, domain=OWN, fill=fill))
        if bias:
            s = writer.node("Add", s, bias)
        if self.unidirectional:
            window = writer.node("WindowMask", s, past, domain=OWN, left=-1, right=0)
            s = writer.node("Add", s, window)
        p = writer.node("Softmax", s, axis=-1)
        merge_heads(writer, weighted(writer, p, v), writer.outputs[0])


class Attention(MaskedAttention, op="Attention", domain=DOMAIN):
    """Queries, keys and values of one dense layer, and their attention."""

    do_rotary = 0
    qkv_hidden_sizes: tuple[int, ...] = ()

    def expand(self, writer):
        if writer.input(4) or writer.output(1) or self.do_rotary:
            raise UnsupportedOpError(
                "com.microsoft.Attention with a cache or rotary positions is not supported; "
                "export the model without a cache"
            )
        x, w = writer.inputs[:2]
        dense = added(writer, writer.node("MatMul", x, w), writer.input(2))
        parts = split_in(writer, dense, 3, self.qkv_hidden_sizes)
        q, k, v = (split_heads(writer, t, self.num_heads) for t in parts)
        self.attend(writer, q, k, v, writer.input(3), writer.input(5))


def split_in(
    writer: Writer, x: str, n: int, sizes: tuple[int, ...] = (), axis: int = -1
) -> list[str]:
    """Write a split along an axis into parts of one size, or of the sizes given."""
    names = [f"{writer.outputs[0]}/{x}/{i}" for i in range(n)]
    lengths = [writer.weight(np.array(sizes, np.int64))] if sizes else []
    writer.node("Split", x, *lengths, output=names, axis=axis)
    return names


class MultiHeadAttention(MaskedAttention, op="MultiHeadAttention", domain=DOMAIN):
    """Attention of queries, keys and values that dense layers made before, packed or not."""

    def expand(self, writer):
        if writer.input(8) or writer.input(9):
            raise UnsupportedOpError(
                "com.microsoft.MultiHeadAttention with a shared cache is not supported; "
                "export the model without a cache"
            )
        q, k, v = self._heads(writer)
        past = writer.input(6)
        k = joined_tokens(writer, past, k, writer.output(1))
        v = joined_tokens(writer, writer.input(7), v, writer.output(2))
        self.attend(writer, q, k, v, writer.input(4), writer.input(5), past)

    def _heads(self, writer: Writer) -> list[str]:
        q, k, v = (writer.input(i) for i in range(3))
        if not k:
            return self._unpacked(writer, q, 3)
        bias = writer.input(3)
        biases = split_in(writer, bias, 3, axis=0) if bias else ["", "", ""]
        q = split_heads(writer, added(writer, q, biases[0]), self.num_heads)
        if not v:
            return [q, *self._unpacked(writer, k, 2)]
        pairs = zip((k, v), biases[1:], strict=True)
        return [q, *(split_heads(writer, added(writer, *pair), self.num_heads) for pair in pairs)]

    @staticmethod
    def _unpacked(writer: Writer, x: str, n: int) -> list[str]:
        """Write (n, tokens, heads, parts, d) as parts (n, heads, tokens, d)."""
        parts = split_in(writer, x, n, axis=3)
        axis = writer.weight(np.array([3]))
        flat = [writer.node("Squeeze", part, axis) for part in parts]
        return [writer.node("Transpose", part, perm=(0, 2, 1, 3)) for part in flat]


class GroupQueryAttention(Expanded, op="GroupQueryAttention", domain=DOMAIN):
    """Causal attention with fewer heads of keys and values, after rotary positions where asked."""

    main = "SafeSoftmax"
    scale: float | None = None
    softcap = 0.0
    do_rotary, rotary_interleaved = 0, 0
    local_window_size, smooth_softmax = -1, 0

    def expand(self, writer):
        if self.smooth_softmax or writer.input(11):
            raise UnsupportedOpError("a smooth softmax, or one with a sink, is not supported")
        q, k, v = self._heads(writer)
        past = writer.input(3)
        if self.do_rotary:
            places = writer.input(9) or writer.node("Positions", q, past, domain=OWN)
            q, k = (self._turned(writer, t, places) for t in (q, k))
        k = joined_tokens(writer, past, k, writer.output(1))
        v = joined_tokens(writer, writer.input(4), v, writer.output(2))
        s = attention.capped(writer, scores(writer, q, k, self.scale or None), self.softcap)
        s = added(writer, s, writer.input(10))
        left = self.local_window_size - 1 if self.local_window_size > 0 else -1
        window = writer.node("WindowMask", s, past, domain=OWN, left=left, right=0)
        p = writer.node("SafeSoftmax", writer.node("Add", s, window), domain=OWN)
        merge_heads(writer, weighted(writer, p, v), writer.outputs[0])

    def _heads(self, writer: Writer) -> list[str]:
        q, k, v = (writer.input(i) for i in range(3))
        heads = self.num_heads, self.kv_num_heads, self.kv_num_heads
        if not k:
            return split_in(writer, split_heads(writer, q, sum(heads)), 3, heads, axis=1)
        return [split_heads(writer, t, n) for t, n in zip((q, k, v), heads, strict=True)]

    def _turned(self, writer: Writer, x: str, places: str) -> str:
        tables = writer.input(7), writer.input(8)
        given = {"interleaved": self.rotary_interleaved}
        return writer.node("Rotary", x, *tables, places, domain=OWN, **given)


class Rotary(attention.RotaryEmbedding, op="Rotary", domain=OWN):
    """Turns pairs of numbers of each token by angles that grow with its position."""

    interleaved, num_heads, rotary_embedding_dim = 0, 0, 0


class RotaryEmbedding(Expanded, op="RotaryEmbedding", domain=DOMAIN):
    """Turns pairs of numbers of each token by angles that grow with its position."""

    main = "Rotary"
    interleaved, num_heads, rotary_embedding_dim = 0, 0, 0

    def expand(self, writer):
        x, places, cos, sin = writer.inputs
        names = ("interleaved", "num_heads", "rotary_embedding_dim")
        given = {name: getattr(self, name) for name in names}
        writer.node("Rotary", x, cos, sin, places, output=writer.outputs[0], domain=OWN, **given)
