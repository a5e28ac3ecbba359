"""Single operations of Keras (`keras.ops`, `+`, indexing, activations) written as ONNX nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from .keras_graph import Graph, Shape, Tensor, broadcast, to_numpy
from .keras_layers import joined, linear, padded, sliced

Handler = Callable[..., Any]


def find(operation: Any) -> Handler | None:
    """Return the function that writes an operation."""
    cls = type(operation)
    known = cls.__module__.startswith(("keras.src.ops.", "keras.src.activations."))
    return OPERATIONS.get(cls.__name__) if known else None


# -- activations ----------------------------------------------------------------------------------


def _unary(op: str, **attributes: Any) -> Handler:
    return lambda g, operation, x: g.like(op, g.as_float(x), **attributes)


def _relu(g: Graph, operation: Any, x: Tensor) -> Tensor:
    """Write ReLU with a slope below, a threshold and a maximum."""
    slope, highest, threshold = operation.negative_slope, operation.max_value, operation.threshold
    x = g.as_float(x)
    if slope and (threshold or highest is not None):
        raise g.unknown("relu with negative_slope and a threshold or a maximum")
    if slope:
        return leaky_relu(g, x, slope)
    if threshold:
        y = _where_above(g, x, threshold, 0.0)
        y = g.like("Relu", y) if threshold < 0 else y
        return y if highest is None else _clip(g, y, None, highest)
    return g.like("Relu", x) if highest is None else _clip(g, x, 0.0, highest)


def leaky_relu(g: Graph, x: Tensor, slope: float) -> Tensor:
    import keras

    # The slope is a float32 in TensorFlow, as it is as an attribute in ONNX.
    if g.dtype == np.float32 or keras.backend.backend() == "tensorflow":
        return g.like("LeakyRelu", x, alpha=slope)
    return g.like("PRelu", x, g.weight(slope, "slope"))


def _clip(g: Graph, x: Tensor, low: Any, high: Any) -> Tensor:
    limits = [
        "" if v is None else g.weight(v, role) for v, role in ((low, "lowest"), (high, "highest"))
    ]
    return g.like("Clip", x, *limits)


def _where_above(g: Graph, x: Tensor, threshold: float, other: float) -> Tensor:
    above = g.elementwise("Greater", x, threshold, dtype=bool)
    return g.like_data("Where", x, above, x, g.weight(other, "otherwise"))


def _elu(g: Graph, operation: Any, x: Tensor) -> Tensor:
    return g.like("Elu", g.as_float(x), alpha=operation.alpha)


def _celu(g: Graph, operation: Any, x: Tensor) -> Tensor:
    return g.like("Celu", g.as_float(x), alpha=operation.alpha)


def _gelu(g: Graph, operation: Any, x: Tensor) -> Tensor:
    kind = "tanh" if operation.approximate else "none"
    return g.like("Gelu", g.as_float(x), approximate=kind)


def _silu(g: Graph, operation: Any, x: Tensor) -> Tensor:
    x = g.as_float(x)
    return g.like("Mul", x, g.like("Sigmoid", x))


def _glu(g: Graph, operation: Any, x: Tensor) -> Tensor:
    x = g.as_float(x)
    axis = operation.axis % x.rank
    half = x.shape[axis] // 2
    value = sliced(g, x, {axis: (0, half, 1)})
    gate = sliced(g, x, {axis: (half, 2 * half, 1)})
    return g.like("Mul", value, g.like("Sigmoid", gate))


def _softmax(op: str) -> Handler:
    def handler(g: Graph, operation: Any, x: Tensor) -> Tensor:
        axis = operation.axis
        if not isinstance(axis, int):
            raise g.unknown(f"{op.lower()} over the axes {axis}")
        if axis % x.rank == 0:
            raise g.unknown(f"{op.lower()} over the batch")
        return g.like(op, g.as_float(x), axis=x.axis(axis))

    return handler


def _hard_sigmoid(g: Graph, operation: Any, x: Tensor) -> Tensor:
    return g.like("HardSigmoid", g.as_float(x), alpha=1 / 6, beta=0.5)


def _hard_tanh(g: Graph, operation: Any, x: Tensor) -> Tensor:
    return _clip(g, g.as_float(x), -1.0, 1.0)


def _relu6(g: Graph, operation: Any, x: Tensor) -> Tensor:
    return _clip(g, g.as_float(x), 0.0, 6.0)


def _soft_shrink(g: Graph, operation: Any, x: Tensor) -> Tensor:
    x = g.as_float(x)
    t = g.weight(operation.threshold, "threshold")
    above = g.like("Relu", g.like("Sub", x, t))
    below = g.like("Relu", g.like("Sub", g.like("Neg", x), t))
    return g.like("Sub", above, below)


def _hard_shrink(g: Graph, operation: Any, x: Tensor) -> Tensor:
    x = g.as_float(x)
    far = g.elementwise("Greater", g.like("Abs", x), operation.threshold, dtype=bool)
    return g.like_data("Where", x, far, x, g.weight(0.0, "otherwise"))


def _threshold(g: Graph, operation: Any, x: Tensor) -> Tensor:
    return _where_above(g, g.as_float(x), operation.threshold, operation.default_value)


def _tanh_shrink(g: Graph, operation: Any, x: Tensor) -> Tensor:
    x = g.as_float(x)
    return g.like("Sub", x, g.like("Tanh", x))


def _log_sigmoid(g: Graph, operation: Any, x: Tensor) -> Tensor:
    return g.like("Neg", g.like("Softplus", g.like("Neg", g.as_float(x))))


def _squareplus(g: Graph, operation: Any, x: Tensor) -> Tensor:
    x = g.as_float(x)
    root = g.like("Sqrt", g.elementwise("Add", g.like("Mul", x, x), float(operation.b)))
    return g.elementwise("Mul", g.like("Add", x, root), 0.5)


def _sparse_sigmoid(g: Graph, operation: Any, x: Tensor) -> Tensor:
    y = g.elementwise("Mul", g.elementwise("Add", x, 1.0), 0.5)
    return _clip(g, y, 0.0, 1.0)


# -- arithmetic -----------------------------------------------------------------------------------


def _binary(op: str) -> Handler:
    return lambda g, operation, a, b: g.elementwise(op, a, b)


def _divide(g: Graph, operation: Any, a: Any, b: Any) -> Tensor:
    a, b = (g.as_float(v) if isinstance(v, Tensor) else np.float64(to_numpy(v)) for v in (a, b))
    return g.elementwise("Div", a, b)


def _compare(op: str) -> Handler:
    return lambda g, operation, a, b: g.elementwise(op, a, b, dtype=bool)


def _where(g: Graph, operation: Any, condition: Any, a: Any, b: Any) -> Tensor:
    values = [x for x in (a, b) if isinstance(x, Tensor)]
    if not isinstance(condition, Tensor) or len({x.rank for x in (condition, *values)}) > 1:
        raise g.unknown("where() of tensors with different numbers of axes")
    condition, *values = g.aligned([condition, *(g.as_float(x) for x in values)])
    rest = iter(values)
    like = replace(condition, dtype=g.dtype)
    shape = broadcast(
        [x.shape if isinstance(x, Tensor) else np.shape(x) for x in (condition, a, b)]
    )
    a, b = (next(rest) if isinstance(x, Tensor) else g.constant(to_numpy(x), like) for x in (a, b))
    return g.node("Where", [condition, a, b], shape, condition.order)


def _square(g: Graph, operation: Any, x: Tensor) -> Tensor:
    return g.like("Mul", x, x, dtype=x.dtype)


def _rsqrt(g: Graph, operation: Any, x: Tensor) -> Tensor:
    return g.like("Reciprocal", g.like("Sqrt", g.as_float(x)))


def _clipped(g: Graph, operation: Any, x: Tensor) -> Tensor:
    return _clip(g, g.as_float(x), float(operation.x_min), float(operation.x_max))


def _cast(g: Graph, operation: Any, x: Tensor) -> Tensor:
    to = np.dtype(bool) if operation.dtype == "bool" else _dtype(operation.dtype)
    if to is None:  # a float type: the whole graph has one
        return g.as_float(x)
    if to == x.dtype:
        return x
    code = {"b": 9, "i": 7}[to.kind]
    return g.node("Cast", [x], x.shape, x.order, to, to=code)


def _dtype(name: Any) -> np.dtype | None:
    return np.dtype(np.int64) if "int" in str(name) else None


def _same(g: Graph, operation: Any, x: Tensor) -> Tensor:
    return x


def _reduce(op: str) -> Handler:
    def handler(g: Graph, operation: Any, x: Tensor) -> Tensor:
        axes = _axes(g, operation.axis, x)
        x = g.as_float(x)
        kept = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
        at = sorted(x.axis(a) for a in axes)
        where = {"axes": at} if op not in _AXES_AS_INPUT else {}
        inputs = [x] if where else [x, g.weight(at, "axes")]
        y = g.node(op, inputs, kept, x.order, keepdims=1, **where)
        return y if operation.keepdims else g.reshape(y, _without(x.shape, axes))

    return handler


# Since opset 18 all reductions take their axes as input.
_AXES_AS_INPUT = {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"}


def _axes(g: Graph, axes: Any, x: Tensor) -> list[int]:
    if axes is None:
        raise g.unknown("a reduction over all axes, the batch too")
    found = sorted({int(a) % x.rank for a in np.atleast_1d(axes)})
    if 0 in found:
        raise g.unknown("a reduction over the batch")
    return found


def _without(shape: Shape, axes: Sequence[int]) -> Shape:
    return tuple(n for a, n in enumerate(shape) if a not in axes)


def _matmul(g: Graph, operation: Any, a: Any, b: Any) -> Tensor:
    if not isinstance(b, Tensor):
        w = to_numpy(b)
        if w.ndim != 2:
            raise g.unknown(f"matmul with a constant of shape {w.shape}")
        return linear(g, a, w, None)
    if not isinstance(a, Tensor) or a.rank != b.rank or a.rank < 3:
        raise g.unknown("matmul of these operands")
    a, b = (g.as_float(g.in_keras_order(x)) for x in (a, b))
    lead = np.broadcast_shapes(a.shape[1:-2], b.shape[1:-2])
    return g.node("MatMul", [a, b], (None, *lead, a.shape[-2], b.shape[-1]))


# -- shapes ---------------------------------------------------------------------------------------


def _reshape(g: Graph, operation: Any, x: Tensor) -> Tensor:
    shape = operation.newshape
    if isinstance(shape, int) or len(shape) < 1 or shape[0] not in (None, -1):
        raise g.unknown(f"reshape to {shape}, which does not keep the batch axis")
    known = [n for n in shape[1:] if n not in (None, -1)]
    rest = math.prod(x.shape[1:]) // max(math.prod(known), 1)
    full = (None, *(rest if n in (None, -1) else n for n in shape[1:]))
    if len(known) < len(shape) - 2 or math.prod(full[1:]) != math.prod(x.shape[1:]):
        raise g.unknown(f"reshape of {x.shape} to {tuple(shape)}")
    return g.reshape(x, full)


def _transpose(g: Graph, operation: Any, x: Tensor) -> Tensor:
    axes = operation.axes if operation.axes is not None else range(x.rank)[::-1]
    return _permuted(g, x, [a % x.rank for a in axes])


def _swap_axes(g: Graph, operation: Any, x: Tensor) -> Tensor:
    axes = list(range(x.rank))
    i, j = operation.axis1, operation.axis2
    axes[i], axes[j] = axes[j], axes[i]
    return _permuted(g, x, axes)


def _move_axis(g: Graph, operation: Any, x: Tensor) -> Tensor:
    source = [int(a) % x.rank for a in np.atleast_1d(operation.source)]
    target = [int(a) % x.rank for a in np.atleast_1d(operation.destination)]
    axes = [a for a in range(x.rank) if a not in source]
    for to, axis in sorted(zip(target, source, strict=True)):
        axes.insert(to, axis)
    return _permuted(g, x, axes)


def _permuted(g: Graph, x: Tensor, axes: Sequence[int]) -> Tensor:
    if axes[0] != 0:
        raise g.unknown("the batch axis is moved")
    order = tuple(list(axes).index(a) for a in x.order)
    return Tensor(x.name, tuple(x.shape[a] for a in axes), order, x.dtype)


def _expand_dims(g: Graph, operation: Any, x: Tensor) -> Tensor:
    shape = list(x.shape)
    rank = x.rank + len(np.atleast_1d(operation.axis))
    for axis in sorted(int(a) % rank for a in np.atleast_1d(operation.axis)):
        if axis == 0:
            raise g.unknown("an axis before the batch")
        shape.insert(axis, 1)
    return g.reshape(x, tuple(shape))


def _squeeze(g: Graph, operation: Any, x: Tensor) -> Tensor:
    axes = operation.axis
    if axes is None:
        axes = [a for a, n in enumerate(x.shape) if n == 1]
    return g.reshape(x, _without(x.shape, [int(a) % x.rank for a in np.atleast_1d(axes)]))


def _concatenate(g: Graph, operation: Any, xs: Sequence[Any]) -> Tensor:
    if not all(isinstance(x, Tensor) for x in xs):
        raise g.unknown("a constant is joined to data")
    return joined(g, xs, operation.axis)


def _stack(g: Graph, operation: Any, xs: Sequence[Tensor]) -> Tensor:
    axis = operation.axis % (xs[0].rank + 1)
    if axis == 0 or not all(isinstance(x, Tensor) for x in xs):
        raise g.unknown("tensors are stacked along the batch, or with constants")
    parts = [g.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:])) for x in xs]
    return joined(g, parts, axis)


def _get_item(g: Graph, operation: Any, x: Tensor, key: Any) -> Tensor:
    """Write x[key] with whole numbers, slices, ... and None in the key."""
    keys = list(key) if isinstance(key, (tuple, list)) else [key]
    used = sum(k is not None and k is not Ellipsis for k in keys)
    if Ellipsis not in keys:
        keys.append(Ellipsis)
    at = keys.index(Ellipsis)
    keys[at : at + 1] = [slice(None)] * (x.rank - used)
    spans, shape, axis = {}, [], 0
    for k in keys:
        if k is None:
            shape.append(1)
            continue
        if axis == 0:
            if k != slice(None):
                raise g.unknown("rows of the batch are chosen")
            shape.append(None)
        elif isinstance(k, slice):
            spans[axis] = k.indices(x.shape[axis])
            if spans[axis][2] < 0:
                raise g.unknown("a slice runs backwards")
            shape.append(len(range(*spans[axis])))
        elif isinstance(k, (int, np.integer)):
            start = int(k) % x.shape[axis]
            spans[axis] = (start, start + 1, 1)
        else:
            raise g.unknown(f"an index of type {type(k).__name__}")
        axis += 1
    return g.reshape(sliced(g, x, spans), tuple(shape))


def _pad(g: Graph, operation: Any, x: Tensor, constant_values: Any = None) -> Tensor:
    if operation.mode != "constant":
        raise g.unknown(f"the padding mode {operation.mode!r}")
    pairs = list(operation.pad_width)
    pairs = pairs * x.rank if len(pairs) == 1 else pairs
    if any(pairs[0]):
        raise g.unknown("the batch axis is padded")
    amounts = {a: (int(p[0]), int(p[-1])) for a, p in enumerate(pairs)}
    return padded(g, x, amounts, constant_values or 0)


def _split(g: Graph, operation: Any, x: Tensor) -> list[Tensor]:
    axis = operation.axis % x.rank
    where = operation.indices_or_sections
    n = x.shape[axis]
    if axis == 0:
        raise g.unknown("the batch is split")
    if isinstance(where, int):
        where = range(n // where, n, n // where)
    edges = [0, *(int(w) for w in where), n]
    return [sliced(g, x, {axis: (a, b, 1)}) for a, b in pairwise(edges)]


OPERATIONS: dict[str, Handler] = {
    # activations
    "Relu": _unary("Relu"),
    "ReLU": _relu,
    "Relu6": _relu6,
    "LeakyRelu": lambda g, operation, x: leaky_relu(g, g.as_float(x), operation.negative_slope),
    "Sigmoid": _unary("Sigmoid"),
    "Tanh": _unary("Tanh"),
    "Softplus": _unary("Softplus"),
    "Softsign": _unary("Softsign"),
    "Selu": _unary("Selu"),
    "Mish": _unary("Mish"),
    "HardSilu": _unary("HardSwish"),
    "HardSigmoid": _hard_sigmoid,
    "HardTanh": _hard_tanh,
    "Elu": _elu,
    "Celu": _celu,
    "Gelu": _gelu,
    "Silu": _silu,
    "Glu": _glu,
    "Softmax": _softmax("Softmax"),
    "LogSoftmax": _softmax("LogSoftmax"),
    "SoftShrink": _soft_shrink,
    "HardShrink": _hard_shrink,
    "TanhShrink": _tanh_shrink,
    "Threshold": _threshold,
    "LogSigmoid": _log_sigmoid,
    "Squareplus": _squareplus,
    "SparseSigmoid": _sparse_sigmoid,
    # arithmetic
    "Add": _binary("Add"),
    "Subtract": _binary("Sub"),
    "Multiply": _binary("Mul"),
    "Divide": _divide,
    "TrueDivide": _divide,
    "Power": _binary("Pow"),
    "Maximum": _binary("Max"),
    "Minimum": _binary("Min"),
    "Greater": _compare("Greater"),
    "GreaterEqual": _compare("GreaterOrEqual"),
    "Less": _compare("Less"),
    "LessEqual": _compare("LessOrEqual"),
    "Where": _where,
    "Negative": _unary("Neg"),
    "Absolute": _unary("Abs"),
    "Abs": _unary("Abs"),
    "Exp": _unary("Exp"),
    "Log": _unary("Log"),
    "Sqrt": _unary("Sqrt"),
    "Erf": _unary("Erf"),
    "Reciprocal": _unary("Reciprocal"),
    "Sign": _unary("Sign"),
    "Square": _square,
    "Rsqrt": _rsqrt,
    "Clip": _clipped,
    "Cast": _cast,
    "StopGradient": _same,
    "ConvertToTensor": _same,
    "Identity": _same,
    "Mean": _reduce("ReduceMean"),
    "Sum": _reduce("ReduceSum"),
    "Max": _reduce("ReduceMax"),
    "Min": _reduce("ReduceMin"),
    "Amax": _reduce("ReduceMax"),
    "Amin": _reduce("ReduceMin"),
    "Prod": _reduce("ReduceProd"),
    "Matmul": _matmul,
    # shapes
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Swapaxes": _swap_axes,
    "Moveaxis": _move_axis,
    "ExpandDims": _expand_dims,
    "Squeeze": _squeeze,
    "Concatenate": _concatenate,
    "Stack": _stack,
    "GetItem": _get_item,
    "Pad": _pad,
    "Split": _split,
}
