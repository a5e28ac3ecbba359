"""Random ONNX graphs for property tests: every operator of the first tier, in any company.

A graph starts from one or two inputs and grows block by block. A block is an operator, or the few
operators that make it safe (the logarithm of something positive), applied to tensors that are
already there, mostly recent ones: so tensors are reused, branches meet again or end nowhere.
Dense heads make the outputs, with or without an activation behind them.

Weights are float64, so that mathematics holds to rounding; `as_float32` is for runtimes that know
float32 only. Shapes never name the batch axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.printer
from hypothesis import note, reject
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, shape_inference

OPSET = 20
BATCH = 5  # rows that shapes are worked out with; no other axis may depend on it
LARGEST = 100  # elements per row of a tensor


class Unfit(Exception):
    """A block cannot be applied to these shapes."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph; `shape` leaves the batch axis out."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def rank(self) -> int:
        return len(self.shape)


class Builder:
    """A graph that grows; `draw` asks hypothesis for each decision."""

    def __init__(self, draw: Callable[[Any], Any]):
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[Tensor] = []
        self.pool: list[Tensor] = []

    # -- decisions --------------------------------------------------------------------------------

    def choose(self, options: Any) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def flip(self) -> bool:
        return self.draw(st.booleans())

    def recent(self, fits: Callable[[Tensor], bool] = lambda t: True) -> Tensor:
        """Pick a tensor, three times in four one of the last three."""
        found = [t for t in self.pool if fits(t)]
        if not found:
            raise Unfit
        return self.choose(found[-3:] if self.draw(st.integers(0, 3)) else found)

    def normal(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        return scale * self.rng.standard_normal(shape)

    def positive(self, *shape: int) -> np.ndarray:
        return self.rng.uniform(0.5, 1.5, shape)

    def weight(self, *shape: int, fan_in: int) -> np.ndarray:
        return self.normal(*shape, scale=1 / math.sqrt(fan_in))

    # -- the graph --------------------------------------------------------------------------------

    def input(self, shape: tuple[int, ...]) -> Tensor:
        tensor = Tensor(f"input_{len(self.inputs)}", shape)
        self.inputs.append(tensor)
        self.pool.append(tensor)
        return tensor

    def constant(self, value: Any) -> str:
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; inputs are tensors, arrays (then initializers) or None."""
        names = [
            t.name if isinstance(t, Tensor) else "" if t is None else self.constant(t)
            for t in inputs
        ]
        number = len(self.nodes)
        outs = [f"t{number}_{i}" if i else f"t{number}" for i in range(outputs)]
        node = helper.make_node(kind, names, outs, name=f"{kind}_{number}", **attributes)
        shapes = self._shapes(node, [t for t in inputs if isinstance(t, Tensor)])
        self.nodes.append(node)
        made = [Tensor(name, shape) for name, shape in zip(outs, shapes, strict=True)]
        return made[0] if outputs == 1 else made

    def _shapes(self, node: onnx.NodeProto, tensors: list[Tensor]) -> list[tuple[int, ...]]:
        # As float32: a few operators (Celu) have no other type, which no kernel of ours minds.
        types = {t.name: _type(TensorProto.FLOAT, (BATCH, *t.shape)) for t in tensors}
        data = {w.name: w for w in self.initializers if w.name in node.input}
        types |= {w.name: _type(_single(w.data_type), w.dims) for w in data.values()}
        data = {name: w for name, w in data.items() if w.data_type != TensorProto.DOUBLE}
        schema = onnx.defs.get_schema(node.op_type, OPSET)
        opsets = [helper.make_opsetid("", OPSET)]
        found = shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=opsets)
        shapes = [tuple(d.dim_value for d in found[o].tensor_type.shape.dim) for o in node.output]
        if any(s[:1] != (BATCH,) or 0 in s or math.prod(s[1:]) > LARGEST for s in shapes):
            raise Unfit
        return [s[1:] for s in shapes]

    # -- shapes -----------------------------------------------------------------------------------

    def reshape(self, x: Tensor, *shape: int) -> Tensor:
        return self.op("Reshape", x, np.array([-1, *shape]))

    def flat(self, x: Tensor) -> Tensor:
        return x if x.rank == 1 else self.op("Flatten", x)

    def dense(self, x: Tensor, width: int) -> Tensor:
        w = self.weight(width, x.size, fan_in=x.size)
        return self.op("Gemm", self.flat(x), w, self.normal(width, scale=0.3), transB=1)

    def standard(self, rank: int) -> Tensor:
        """Return a tensor of a shape that every block of this rank can use."""
        shape = {1: (6,), 2: (4, 4), 3: (4, 4, 4)}[rank]
        x = self.dense(self.recent(), math.prod(shape))
        return self.reshape(x, *shape) if rank > 1 else x

    def model(self, outputs: list[Tensor]) -> onnx.ModelProto:
        """Return the graph as a checked model."""
        graph = helper.make_graph(
            self.nodes,
            "random",
            [_value_info(t) for t in self.inputs],
            [_value_info(t) for t in outputs],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        onnx.checker.check_model(as_float32(model), full_check=True)
        note(onnx.printer.to_text(model))  # shown with a failing example
        return model


def _single(element: int) -> int:
    return TensorProto.FLOAT if element == TensorProto.DOUBLE else element


def _type(element: int, shape: Any) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(element, list(shape))


def _value_info(t: Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(t.name, TensorProto.DOUBLE, ["N", *t.shape])


# -- blocks ---------------------------------------------------------------------------------------

BLOCKS: dict[str, tuple[tuple[int, ...], Callable[[Builder, Tensor], Any]]] = {}


def block(*ranks: int, name: str = "") -> Callable:
    """Register a block for tensors of these ranks (without the batch axis)."""

    def register(f: Callable) -> Callable:
        BLOCKS[name or f.__name__] = (ranks or (1, 2, 3), f)
        return f

    return register


def axis_of(b: Builder, x: Tensor) -> int:
    """Return an axis behind the batch, counted from either end."""
    axis = b.draw(st.integers(1, x.rank))
    return axis - (x.rank + 1) if b.flip() else axis


def per_channel(b: Builder, x: Tensor, values: Callable[..., np.ndarray]) -> np.ndarray:
    """Return a constant that broadcasts over the tensor: one number, per channel, or of all."""
    shape = b.choose([(), (1,), (x.shape[0], *(1,) * (x.rank - 1)), (1, *x.shape), x.shape[-1:]])
    return values(*shape)


# elementwise

_PLAIN = {
    **{op: {} for op in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "HardSwish", "Mish")},
    **{op: {} for op in ("Abs", "Neg", "Erf", "Identity", "Dropout")},
    "LeakyRelu": {"alpha": 0.2},
    "Elu": {"alpha": 0.7},
    "Selu": {},
    "Celu": {"alpha": 1.5},
    "ThresholdedRelu": {"alpha": 0.3},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
    "Cast": {"to": TensorProto.DOUBLE},
    **{op: {} for op in ("Sin", "Cos", "Atan", "Asinh")},
    "Shrink": {"lambd": 0.3, "bias": 0.3},
}
for _op, _attributes in _PLAIN.items():
    BLOCKS[_op] = ((1, 2, 3), lambda b, x, op=_op, a=_attributes: b.op(op, x, **a))


@block()
def Gelu(b, x):
    return b.op("Gelu", x, approximate=b.choose(["none", "tanh"]))


@block()
def PRelu(b, x):
    slope = b.choose([(1,), (x.shape[0], *(1,) * (x.rank - 1)), x.shape])
    return b.op("PRelu", x, 0.4 * b.positive(*slope))


@block()
def Clip(b, x):
    low, high = b.choose([(-0.5, 0.8), (0.0, 6.0), (-0.3, None), (None, 0.4)])
    return b.op("Clip", x, *(None if v is None else np.array(v) for v in (low, high)))


@block()
def Exp(b, x):
    return b.op("Exp", b.op("Tanh", x))


for _op in ("Tan", "Asin", "Acos", "Sinh", "Cosh", "Atanh"):
    BLOCKS[_op] = (
        (1, 2, 3),
        lambda b, x, op=_op: b.op(op, b.op("Mul", b.op("Tanh", x), np.array(0.9))),
    )


@block()
def Mod(b, x):
    return b.op("Mod", x, np.array(b.choose([0.7, -2.3])), fmod=1)


def above(b: Builder, x: Tensor) -> Tensor:
    """Return a positive tensor that is not close to 0."""
    if b.flip():
        return b.op("Add", b.op("Softplus", x), np.array(0.5))
    return b.op("Add", b.op("Mul", x, x), np.array(0.5))


@block()
def Log(b, x):
    return b.op("Log", above(b, x))


@block()
def Acosh(b, x):
    return b.op("Acosh", b.op("Add", above(b, x), np.array(1.0)))


@block()
def Sqrt(b, x):
    return b.op("Sqrt", above(b, x))


@block()
def Reciprocal(b, x):
    return b.op("Reciprocal", above(b, x))


@block()
def Pow(b, x):
    exponent = b.choose([2.0, 3.0, 0.5, -1.0, 1.7])
    base = b.op("Tanh", x) if exponent in (2.0, 3.0) else above(b, x)
    return b.op("Pow", base, np.array(exponent))


@block()
def Softmax(b, x):
    return b.op("Softmax", x, axis=axis_of(b, x))


@block()
def LogSoftmax(b, x):
    return b.op("LogSoftmax", x, axis=axis_of(b, x))


# arithmetic


def partner(b: Builder, x: Tensor) -> Tensor:
    """Return another tensor of the same shape, or one that broadcasts to it."""
    same = [t for t in b.pool if t.shape == x.shape]
    if same and b.flip():
        return b.choose(same)
    shape = b.choose([x.shape, (x.shape[0], *(1,) * (x.rank - 1))])
    y = b.dense(b.recent(), math.prod(shape))
    return b.reshape(y, *shape) if len(shape) > 1 else y


def pair(b: Builder, x: Tensor) -> tuple[Tensor, Tensor]:
    other = partner(b, x)
    return (x, other) if b.flip() else (other, x)


for _op in ("Add", "Sub", "Max", "Min", "Mul"):
    BLOCKS[_op] = ((1, 2, 3), lambda b, x, op=_op: b.op(op, *pair(b, x)))
for _op in ("Sum", "Mean", "Max", "Min"):
    BLOCKS[f"{_op} of three"] = (
        (1, 2, 3),
        lambda b, x, op=_op: b.op(op, x, *pair(b, x), *([b.normal(1)] if b.flip() else [])),
    )


@block()
def Div(b, x):
    return b.op("Div", x, above(b, partner(b, x)))


@block()
def square(b, x):
    return b.op("Mul", x, x)


@block(name="Add constant")
def add_constant(b, x):
    c = per_channel(b, x, b.normal)
    kind = b.choose(["Add", "Sub", "Sum"])
    return b.op(kind, *((x, c) if b.flip() else (c, x)))


@block(name="Mul constant")
def mul_constant(b, x):
    c = per_channel(b, x, b.normal)
    return b.op("Mul", *((x, c) if b.flip() else (c, x)))


@block(name="Div constant")
def div_constant(b, x):
    c = per_channel(b, x, b.positive)
    return b.op("Div", x, c) if b.flip() else b.op("Div", c, above(b, x))


@block(name="Max constant")
def max_constant(b, x):
    c = per_channel(b, x, b.normal)
    return b.op(b.choose(["Max", "Min"]), *((x, c) if b.flip() else (c, x)))


@block(name="affine chain")
def affine_chain(b, x):
    for _ in range(b.draw(st.integers(2, 4))):
        x = b.choose([add_constant, mul_constant])(b, x)
    return x


@block()
def Where(b, x):
    mask = b.rng.random(x.shape) < 0.5
    other = partner(b, x) if b.flip() else b.normal(1)
    return b.op("Where", mask, *((x, other) if b.flip() else (other, x)))


@block(3)
def gate(b, x):
    """Squeeze and excitation."""
    pooled = b.op("GlobalAveragePool", x)
    weight = b.op("Sigmoid", b.dense(pooled, x.shape[0]))
    return b.op("Mul", x, b.reshape(weight, x.shape[0], 1, 1))


@block()
def residual(b, x):
    y = b.op("Relu", b.dense(x, x.size))
    return b.op("Add", x, b.reshape(y, *x.shape) if x.rank > 1 else y)


# linear


@block(1)
def Gemm(b, x):
    n, width = x.shape[0], b.draw(st.integers(1, 6))
    bias = b.choose([None, b.normal(width), b.normal(1), b.normal(1, width)])
    if b.flip():
        w, extra = b.weight(width, n, fan_in=n), {"transB": 1}
    else:
        w, extra = b.weight(n, width, fan_in=n), {}
    if b.flip():
        extra |= {"alpha": 0.5, "beta": 2.0}
    return b.op("Gemm", x, w, *([] if bias is None else [bias]), **extra)


@block(1, 2, 3)
def MatMul(b, x):
    n, width = x.shape[-1], b.draw(st.integers(1, 6))
    y = b.op("MatMul", x, b.weight(n, width, fan_in=n))
    return b.op("Add", y, b.normal(width, scale=0.3)) if b.flip() else y


@block(2, 3, name="MatMul from the left")
def matmul_left(b, x):
    n, width = x.shape[-2], b.draw(st.integers(1, 4))
    return b.op("MatMul", b.weight(width, n, fan_in=n), x)


@block(2)
def attention(b, x):
    width = x.shape[1]
    q, k, v = (b.op("MatMul", x, b.weight(width, width, fan_in=width)) for _ in range(3))
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1]))
    scores = b.op("Div", scores, np.array(math.sqrt(width)))
    seen = np.tril(np.ones(2 * (x.shape[0],), bool))
    mask = b.choose([None, "Add", "Where"])
    if mask == "Add":
        scores = b.op("Add", scores, np.where(seen, 0, b.choose([-np.inf, -1e9])))
    elif mask == "Where":
        scores = b.op("Where", seen, scores, np.array(-np.inf))
    return b.op("MatMul", b.op("Softmax", scores, axis=-1), v)


def needs_room(x: Tensor, kernel: tuple[int, ...], extra: dict[str, Any]) -> None:
    """Raise unless all windows start in the tensor and lie within the padded one.

    Runtimes and ONNX's shape inference differ about others.
    """
    dilations, pads = extra.get("dilations", (1, 1)), extra.get("pads", (0, 0, 0, 0))
    for n, k, d, s, i in zip(x.shape[1:], kernel, dilations, extra["strides"], (0, 1), strict=True):
        room = n + pads[i] + pads[i + 2] - ((k - 1) * d + 1)
        last = -(-room // s) * s if extra.get("ceil_mode") else 0
        if room < 0 or last >= n + pads[i]:
            raise Unfit


@block(3)
def Conv(b, x):
    c = x.shape[0]
    group = b.choose([g for g in (1, 2, c) if c % g == 0])
    out = group * b.draw(st.integers(1, 2))
    kernel = b.choose([(1, 1), (2, 2), (3, 3), (1, 3)])
    extra: dict[str, Any] = {"strides": b.choose([(1, 1), (2, 2), (1, 2)])}
    if b.flip():
        extra["auto_pad"] = b.choose(["SAME_UPPER", "SAME_LOWER"])
    else:
        extra["pads"] = b.choose([(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 0)])
        extra["dilations"] = b.choose([(1, 1), (2, 2)])
        needs_room(x, kernel, extra)
    w = b.weight(out, c // group, *kernel, fan_in=c // group * math.prod(kernel))
    bias = [b.normal(out, scale=0.3)] if b.flip() else []
    return b.op("Conv", x, w, *bias, group=group, kernel_shape=kernel, **extra)


@block(2, name="Conv of a signal")
def conv_signal(b, x):
    w = b.weight(3, x.shape[0], 2, fan_in=2 * x.shape[0])
    return b.op("Conv", x, w, b.normal(3, scale=0.3), pads=(1, 0), strides=(1,))


@block(3)
def ConvTranspose(b, x):
    c = x.shape[0]
    group = b.choose([g for g in (1, 2) if c % g == 0])
    out = b.draw(st.integers(1, 2))
    extra = b.choose([{}, {"strides": (2, 2), "output_padding": (1, 0)}, {"pads": (1, 0, 0, 1)}])
    w = b.weight(c, out, 2, 2, fan_in=4 * c // group)
    bias = [b.normal(out * group, scale=0.3)] if b.flip() else []
    return b.op("ConvTranspose", x, w, *bias, group=group, **extra)


# pooling


def windows(b: Builder) -> dict[str, Any]:
    extra = {"kernel_shape": b.choose([(2, 2), (3, 3), (3, 2)])}
    extra |= {"strides": b.choose([(1, 1), (2, 2), (2, 1)]), "ceil_mode": int(b.flip())}
    return extra | b.choose([{}, {"pads": (1, 1, 1, 1)}, {"pads": (0, 1, 1, 0)}])


@block(3)
def MaxPool(b, x):
    extra = windows(b)
    extra |= {} if "pads" in extra else b.choose([{}, {"dilations": (2, 1)}])
    needs_room(x, extra["kernel_shape"], extra)
    return b.op("MaxPool", x, **extra)


@block(3)
def AveragePool(b, x):
    extra = windows(b)
    needs_room(x, extra["kernel_shape"], extra)
    return b.op("AveragePool", x, **extra, count_include_pad=int(b.flip()))


@block(2, 3)
def GlobalAveragePool(b, x):
    return b.op("GlobalAveragePool", x)


@block(2, 3)
def GlobalMaxPool(b, x):
    return b.op("GlobalMaxPool", x)


# normalisation


@block()
def BatchNormalization(b, x):
    n = x.shape[0]
    stats = (b.positive(n), b.normal(n), b.normal(n), b.positive(n))
    return b.op("BatchNormalization", x, *stats, epsilon=1e-3)


@block(3, name="Conv and BatchNormalization")
def conv_norm(b, x):
    return BatchNormalization(b, Conv(b, x))


@block(1, name="Gemm and BatchNormalization")
def dense_norm(b, x):
    return BatchNormalization(b, Gemm(b, x))


@block()
def LayerNormalization(b, x):
    axis = b.draw(st.integers(1, x.rank))
    shape = x.shape[axis - 1 :]
    if math.prod(shape) < 2:
        raise Unfit
    bias = [b.normal(*shape)] if b.flip() else []
    return b.op("LayerNormalization", x, b.positive(*shape), *bias, axis=axis, epsilon=1e-2)


@block(2, 3)
def InstanceNormalization(b, x):
    if math.prod(x.shape[1:]) < 2:
        raise Unfit
    n = x.shape[0]
    return b.op("InstanceNormalization", x, b.positive(n), b.normal(n), epsilon=1e-2)


@block(3)
def LRN(b, x):
    return b.op("LRN", x, size=b.choose([1, 3]), alpha=0.5, beta=0.6, bias=1.2)


@block()
def LpNormalization(b, x):
    return b.op("LpNormalization", above(b, x), axis=axis_of(b, x), p=b.choose([1, 2]))


# matrices


@block(2, name="Einsum")
def einsum(b, x):
    m, k = x.shape[1], b.draw(st.integers(1, 4))
    w = b.weight(m, k, fan_in=m)
    equation = b.choose(["bnm,mk->bnk", "bnm,mk->bkn", "...m,mk->...k", "bnm,mk->bk"])
    return b.op("Einsum", x, w, equation=equation)


@block(2, name="Einsum of two")
def einsum_of_two(b, x):
    equation = b.choose(["bnm,bkm->bnk", "bnm,bnm->bn", "bnm,bnm->bnm"])
    return b.op("Einsum", x, b.op("Tanh", x), equation=equation)


@block(2, 3)
def Trilu(b, x):
    diagonal = [np.array(b.choose([-1, 1, 2]))] if b.flip() else []
    return b.op("Trilu", x, *diagonal, upper=int(b.flip()))


@block(2, 3)
def Det(b, x):
    n = min(x.shape[-2:])
    square = b.op("Slice", x, *(np.array(v) for v in ([0, 0], [n, n], [-2, -1])))
    return b.op("Det", square) if x.rank == 3 else b.reshape(b.op("Det", square), 1)


@block()
def CumSum(b, x):
    axis = np.array(axis_of(b, x))
    return b.op("CumSum", x, axis, exclusive=int(b.flip()), reverse=int(b.flip()))


# data movement


@block()
def Reshape(b, x):
    divisors = [d for d in range(1, x.size + 1) if x.size % d == 0]
    first = b.choose(divisors)
    rest = x.size // first
    second = b.choose([d for d in range(1, rest + 1) if rest % d == 0])
    shape = b.choose([(x.size,), (first, rest), (first, second, rest // second)])
    target = b.choose([(-1, *shape), (0, *shape), (0, *shape[:-1], -1)])
    return b.op("Reshape", x, np.array(target))


@block(2, 3)
def Transpose(b, x):
    order = b.draw(st.permutations(range(1, x.rank + 1)))
    return b.op("Transpose", x, perm=[0, *order])


@block(2, 3)
def Flatten(b, x):
    return b.op("Flatten", x)


@block(1, 2)
def Unsqueeze(b, x):
    return b.op("Unsqueeze", x, np.array([axis_of(b, x)]))


@block(2, 3)
def Squeeze(b, x):
    one = b.op("ReduceMean", x, np.array([1]), keepdims=1)
    return b.op("Squeeze", one, np.array([1]))


@block()
def Slice(b, x):
    axis = axis_of(b, x)
    start, end, step = b.choose([(1, 100, 1), (0, -1, 1), (0, 100, 2), (-1, -100, -1)])
    return b.op("Slice", x, *(np.array([v]) for v in (start, end, axis, step)))


@block()
def Pad(b, x):
    pads = [0] + [b.draw(st.integers(0, 1)) for _ in x.shape]
    pads += [0] + [b.draw(st.integers(-1, 1)) for _ in x.shape]
    mode = b.choose(["constant", "edge", "reflect"])
    if mode == "reflect" and min(x.shape) < 2:
        raise Unfit
    if mode != "constant":
        pads = [abs(p) for p in pads]
    value = [np.array(0.7)] if mode == "constant" and b.flip() else []
    return b.op("Pad", x, np.array(pads), *value, mode=mode)


@block()
def Gather(b, x):
    axis = axis_of(b, x)
    n = x.shape[axis - 1 if axis > 0 else axis]
    several = [np.array([0, n - 1, 0]), np.array([-1])]
    indices = b.choose(several if x.rank == 1 else [np.array(n - 1), *several])
    return b.op("Gather", x, indices, axis=axis)


@block()
def Expand(b, x):
    if x.rank == 3:
        raise Unfit
    column = b.op("Unsqueeze", x, np.array([-1]))
    return b.op("Expand", column, np.array([1] * (x.rank + 1) + [2]))


@block()
def Tile(b, x):
    return b.op("Tile", x, np.array([1, *(b.draw(st.integers(1, 2)) for _ in x.shape)]))


@block()
def Concat(b, x):
    others = [t for t in b.pool if t.shape == x.shape and t != x]
    other = b.choose(others) if others and b.flip() else b.op("Tanh", x)
    return b.op("Concat", *((x, other) if b.flip() else (other, x, x)), axis=axis_of(b, x))


@block()
def Split(b, x):
    axis = axis_of(b, x)
    n = x.shape[axis - 1 if axis > 0 else axis]
    if n < 2:
        raise Unfit
    first = b.draw(st.integers(1, n - 1))
    a, c = b.op("Split", x, np.array([first, n - first]), outputs=2, axis=axis)
    b.pool.append(b.op("Tanh", c))
    return b.op("Sigmoid", a) if b.flip() else a


@block(name="Split and Concat")
def split_concat(b, x):
    n = x.shape[0]
    if n < 2:
        raise Unfit
    a, c = b.op("Split", x, np.array([1, n - 1]), outputs=2, axis=1)
    return b.op("Concat", b.op("Relu", c), a, axis=1)


@block(3)
def DepthToSpace(b, x):
    if x.shape[0] % 4:
        raise Unfit
    return b.op("DepthToSpace", x, blocksize=2, mode=b.choose(["DCR", "CRD"]))


@block(3)
def SpaceToDepth(b, x):
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise Unfit
    return b.op("SpaceToDepth", x, blocksize=2)


@block(3)
def Resize(b, x):
    small = b.op("Slice", x, *(np.array(v) for v in ([0, 0], [2, 2], [2, 3])))
    scales = np.array([1, 1, *b.choose([(2, 2), (1.5, 2), (0.5, 1)])], np.float32)
    how = b.choose(
        [
            {
                "mode": "nearest",
                "coordinate_transformation_mode": "asymmetric",
                "nearest_mode": "floor",
            },
            {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
            {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        ]
    )
    return b.op("Resize", small, None, scales, **how)


# what is picked, ordered and read between


@block()
def TopK(b, x):
    axis = axis_of(b, x)
    n = x.shape[axis - 1 if axis > 0 else axis]
    k = np.array([b.draw(st.integers(1, n))])
    return b.op("TopK", x, k, outputs=2, axis=axis, largest=int(b.flip()))[0]


@block()
def CenterCropPad(b, x):
    length = np.array([b.draw(st.integers(1, 6))])
    return b.op("CenterCropPad", x, length, axes=[axis_of(b, x)])


@block(3)
def LpPool(b, x):
    extra = windows(b)
    needs_room(x, extra["kernel_shape"], extra)
    return b.op("LpPool", above(b, x), **extra, p=b.choose([1, 2, 3]))


@block(2, 3)
def GlobalLpPool(b, x):
    return b.op("GlobalLpPool", above(b, x), p=b.choose([1, 2, 3]))


@block()
def Col2Im(b, x):
    columns = b.reshape(b.dense(x, 16), 4, 4)
    return b.op("Col2Im", columns, np.array([3, 3]), np.array([2, 2]))


@block(3)
def GridSample(b, x):
    grid = b.reshape(b.op("Tanh", b.dense(x, 12)), 2, 3, 2)
    padding = b.choose(["zeros", "border", "reflection"])
    return b.op("GridSample", x, grid, padding_mode=padding, align_corners=int(b.flip()))


@block(1, 2)
def DFT(b, x):
    real = b.op("Unsqueeze", x, np.array([-1]))
    axis = np.array(b.draw(st.integers(1, x.rank)))
    return b.op("DFT", real, None, axis, onesided=int(b.flip()))


@block(1)
def STFT(b, x):
    signal = b.op("Unsqueeze", x, np.array([-1]))
    n = min(x.size, 4)
    window = b.positive(n) if b.flip() else None
    return b.op("STFT", signal, np.array(2), window, np.array(n), onesided=int(b.flip()))


# reductions


@block(2, 3, name="Reduce")
def reduce(b, x):
    kind = b.choose(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"])
    return b.op(kind, x, np.array([axis_of(b, x)]), keepdims=int(b.flip()))


for _op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"):
    BLOCKS[_op] = (
        (1, 2, 3),
        lambda b, x, op=_op: b.op(op, x, np.array([axis_of(b, x)]), keepdims=1),
    )


@block()
def ReduceL2(b, x):
    return b.op("ReduceL2", x, np.array([axis_of(b, x)]), keepdims=1)


for _op in ("ReduceL1", "ReduceSumSquare", "ReduceLogSumExp", "ReduceProd"):
    BLOCKS[_op] = (
        (1, 2, 3),
        lambda b, x, op=_op: b.op(op, b.op("Tanh", x), np.array([axis_of(b, x)]), keepdims=1),
    )


@block()
def ReduceLogSum(b, x):
    return b.op("ReduceLogSum", above(b, x), np.array([axis_of(b, x)]), keepdims=1)


# -- whole graphs ---------------------------------------------------------------------------------

_INPUTS = ((3,), (6,), (3, 4), (2, 4, 4), (3, 5, 4))
_LAST = (None, "Softmax", "Sigmoid", "Tanh", "Relu", "LogSoftmax", "Softplus")


def apply_block(b: Builder, name: str) -> None:
    """Grow the graph by one block on some tensor that fits, if there is any."""
    ranks, f = BLOCKS[name]
    before = len(b.nodes), len(b.initializers), len(b.pool)
    try:
        b.pool.append(f(b, b.recent(lambda t: t.rank in ranks)))
    except (Unfit, shape_inference.InferenceError):
        # What was added so far stays as a dead end, unless it is not even that.
        del b.nodes[before[0] :], b.initializers[before[1] :], b.pool[before[2] :]


def force_block(b: Builder, name: str) -> None:
    """Grow the graph by one block, on a tensor made for it if need be."""
    ranks, f = BLOCKS[name]
    size = len(b.pool)
    apply_block(b, name)
    if len(b.pool) > size:
        return
    try:
        b.pool.append(f(b, b.standard(b.choose(ranks))))
    except Unfit:
        reject()


def head(b: Builder, x: Tensor) -> Tensor:
    """Return an output: a dense layer and perhaps an activation, or the tensor itself."""
    if x not in b.inputs and b.draw(st.integers(0, 3)) == 0:
        return x
    y = b.dense(x, b.draw(st.integers(1, 3)))
    last = b.choose(_LAST)
    return y if last is None else b.op(last, y)


@st.composite
def graphs(draw: Any, including: str | None = None, most: int = 8) -> onnx.ModelProto:
    """Draw a model; `including` names a block that it contains on the way to its first output."""
    b = Builder(draw)
    for shape in draw(st.lists(st.sampled_from(_INPUTS), min_size=1, max_size=2)):
        b.input(shape)
    names = st.sampled_from(sorted(BLOCKS))
    half = st.lists(names, min_size=1, max_size=most // 2)
    for name in draw(half):
        apply_block(b, name)
    if including is not None:
        force_block(b, including)
    wanted = b.pool[-1]
    for name in draw(half):
        apply_block(b, name)
    ends = [wanted, b.pool[-1]] if b.flip() else [wanted]
    meeting = [*b.inputs, wanted]
    if b.flip() and sum(t.size for t in meeting) <= LARGEST:
        ends.append(b.op("Concat", *(b.flat(t) for t in meeting), axis=1))
    return b.model(list(dict.fromkeys(head(b, x) for x in ends)))


def as_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with all float64 in it made float32."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for w in model.graph.initializer:
        if w.data_type == TensorProto.DOUBLE:
            w.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(w).astype("f4"), w.name))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.DOUBLE:
                attribute.i = TensorProto.FLOAT
    return model


def draw_rows(model: onnx.ModelProto, rows: int, seed: int, whole: bool = False) -> list:
    """Draw data for all inputs; whole numbers make ties and equal values likely."""
    rng = np.random.default_rng(seed)
    shapes = [[d.dim_value for d in i.type.tensor_type.shape.dim][1:] for i in model.graph.input]
    data = [rng.standard_normal((rows, *s)) for s in shapes]
    return [np.rint(x) for x in data] if whole else data


__all__ = ["BLOCKS", "as_float32", "draw_rows", "graphs"]
