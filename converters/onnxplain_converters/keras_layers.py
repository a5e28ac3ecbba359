"""Keras layers written as ONNX nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .keras_graph import Graph, Shape, Tensor, channels_first, to_numpy
from .layers import attribute_error

Handler = Callable[..., Any]


def find(layer: Any) -> Handler | None:
    """Return the function that writes a layer; for a subclass only if it keeps the `call`."""
    for cls in type(layer).__mro__:
        handler = LAYERS.get(cls.__name__) if _is_keras_layer(cls) else None
        if handler is not None:
            return handler if type(layer).call is cls.call else None
    return None


def _is_keras_layer(cls: type) -> bool:
    return cls.__module__.startswith(("keras.layers.", "keras.src.layers."))


# -- dense ----------------------------------------------------------------------------------------


def _dense(g: Graph, layer: Any, x: Tensor) -> Tensor:
    _not_quantised(g, layer)
    return activated(g, layer, linear(g, x, layer.kernel, layer.bias))


def linear(g: Graph, x: Tensor, kernel: Any, bias: Any, part: str | None = None) -> Tensor:
    """Return x w + b over the last axis."""
    x = g.as_float(g.in_keras_order(x))
    role = f"{part}.weight" if part else "weight"
    w = to_numpy(kernel)
    weights = [g.weight(w, role)]
    if bias is not None:
        weights.append(g.weight(to_numpy(bias), role.replace("weight", "bias")))
    shape = (*x.shape[:-1], w.shape[1])
    if x.rank == 2:
        return g.node("Gemm", [x, *weights], shape, part=part)
    y = g.node("MatMul", [x, weights[0]], shape, part=part)
    return g.like("Add", y, weights[1], part=part and f"{part}/Add") if bias is not None else y


def _not_quantised(g: Graph, layer: Any) -> None:
    if getattr(layer, "quantization_mode", None):
        raise g.unknown(f"it is quantized to {layer.quantization_mode}")


def activated(g: Graph, layer: Any, x: Tensor) -> Tensor:
    """Apply the activation that a layer has as argument."""
    return activation(g, layer.activation, x)


def activation(g: Graph, function: Any, x: Tensor) -> Tensor:
    import keras

    if function is None or function is keras.activations.linear:
        return x
    # The only activations that Keras does not record as operations.
    for op, known in (("Mish", "mish"), ("HardSwish", "hard_silu")):
        if function is getattr(keras.activations, known):
            return g.like(op, g.as_float(x))
    (y,) = g.trace(function, [x])
    return y


# -- convolution ----------------------------------------------------------------------------------


def _conv(g: Graph, layer: Any, x: Tensor) -> Tensor:
    _not_quantised(g, layer)
    w = np.moveaxis(to_numpy(layer.kernel), (-1, -2), (0, 1))
    return activated(g, layer, _convolved(g, layer, x, w, layer.bias, layer.groups))


def _depthwise_conv(g: Graph, layer: Any, x: Tensor) -> Tensor:
    w = _depthwise_weight(layer.kernel)
    groups = layer.kernel.shape[-2]
    return activated(g, layer, _convolved(g, layer, x, w, layer.bias, groups))


def _separable_conv(g: Graph, layer: Any, x: Tensor) -> Tensor:
    w = _depthwise_weight(layer.depthwise_kernel)
    y = _convolved(g, layer, x, w, None, layer.depthwise_kernel.shape[-2])
    w = np.moveaxis(to_numpy(layer.pointwise_kernel), (-1, -2), (0, 1))
    weights = _stored(g, w, layer.bias, "pointwise.")
    shape = _with_channels(y, len(w))
    y = g.node("Conv", [y, *weights], shape, y.order, part="pointwise")
    return activated(g, layer, y)


def _depthwise_weight(kernel: Any) -> np.ndarray:
    """Return (k.., in, multiplier) as (in * multiplier, 1, k..)."""
    w = np.moveaxis(to_numpy(kernel), (-2, -1), (0, 1))
    return w.reshape(-1, 1, *w.shape[2:])


def _convolved(g: Graph, layer: Any, x: Tensor, w: np.ndarray, bias: Any, groups: int) -> Tensor:
    x = _spatial(g, layer, x, w.ndim - 2)
    kernel, strides, dilation = w.shape[2:], layer.strides, layer.dilation_rate
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    sizes = _sizes(x)
    pads = _pads(layer.padding, sizes, spans, strides)
    out = _windows(sizes, spans, strides, pads)
    weights = _stored(g, w, bias)
    return g.node(
        "Conv",
        [x, *weights],
        _with_sizes(x, out, len(w)),
        x.order,
        kernel_shape=kernel,
        strides=strides,
        dilations=dilation,
        pads=_as_onnx(pads),
        group=groups,
    )


def _stored(g: Graph, w: np.ndarray, bias: Any, prefix: str = "") -> list[str]:
    weights = [g.weight(w, f"{prefix}weight")]
    if bias is not None:
        weights.append(g.weight(to_numpy(bias), f"{prefix}bias"))
    return weights


def _spatial(g: Graph, layer: Any, x: Tensor, rank: int) -> Tensor:
    """Return the input with the channels behind the batch axis."""
    if x.rank != rank + 2:
        raise g.unknown(f"its input has {x.rank - 1} axes, expected {rank + 1}")
    return g.as_float(g.ordered(x, channels_first(x.rank, layer.data_format)))


def _sizes(x: Tensor) -> list[int]:
    return [x.shape[axis] for axis in x.order[2:]]


def _with_sizes(x: Tensor, sizes: Sequence[int], channels: int | None = None) -> Shape:
    """Return the shape of a tensor, channels first in its order, with new sizes."""
    shape = list(x.shape)
    for axis, n in zip(x.order[2:], sizes, strict=True):
        shape[axis] = n
    if channels is not None:
        shape[x.order[1]] = channels
    return tuple(shape)


def _with_channels(x: Tensor, channels: int) -> Shape:
    return _with_sizes(x, _sizes(x), channels)


def _pads(
    padding: str, sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Return what is put before and after each axis; "same" puts the odd one after."""
    if padding == "valid":
        return [(0, 0)] * len(sizes)
    if padding == "causal":
        return [(spans[0] - 1, 0)]
    totals = [
        max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, spans, strides, strict=True)
    ]
    return [(t // 2, t - t // 2) for t in totals]


def _windows(
    sizes: Sequence[int],
    spans: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
) -> list[int]:
    return [
        (n + sum(p) - k) // s + 1 for n, k, s, p in zip(sizes, spans, strides, pads, strict=True)
    ]


def _as_onnx(pads: Sequence[tuple[int, int]]) -> list[int]:
    return [a for a, _ in pads] + [b for _, b in pads]


def _conv_transpose(g: Graph, layer: Any, x: Tensor) -> Tensor:
    w = np.moveaxis(to_numpy(layer.kernel), (-1, -2), (0, 1))  # (in, out, k..)
    full = g.output_shape(layer, x)
    x = _spatial(g, layer, x, w.ndim - 2)
    spans = [d * (k - 1) + 1 for k, d in zip(w.shape[2:], layer.dilation_rate, strict=True)]
    out = [full[axis] for axis in x.order[2:]]
    # What the result without padding has too much is cut, what it lacks is added at the end.
    excess = [
        (n - 1) * s + k - m for n, s, k, m in zip(_sizes(x), layer.strides, spans, out, strict=True)
    ]
    cut = [max(e, 0) for e in excess]
    pads = [(c // 2, c - c // 2) if layer.padding == "same" else (0, c) for c in cut]
    y = g.node(
        "ConvTranspose",
        [x, *_stored(g, w, layer.bias)],
        _with_sizes(x, out, w.shape[1]),
        x.order,
        kernel_shape=w.shape[2:],
        strides=layer.strides,
        dilations=layer.dilation_rate,
        pads=_as_onnx(pads),
        output_padding=[max(-e, 0) for e in excess],
    )
    return activated(g, layer, y)


# -- pooling --------------------------------------------------------------------------------------


def _pool(op: str) -> Handler:
    def handler(g: Graph, layer: Any, x: Tensor) -> Tensor:
        x = _spatial(g, layer, x, len(layer.pool_size))
        sizes = _sizes(x)
        pads = _pads(layer.padding, sizes, layer.pool_size, layer.strides)
        out = _windows(sizes, layer.pool_size, layer.strides, pads)
        return g.node(
            op,
            [x],
            _with_sizes(x, out),
            x.order,
            kernel_shape=layer.pool_size,
            strides=layer.strides,
            pads=_as_onnx(pads),
        )

    return handler


def _global_pool(op: str) -> Handler:
    def handler(g: Graph, layer: Any, x: Tensor) -> Tensor:
        x = _spatial(g, layer, x, layer.input_spec.ndim - 2)
        ones = _with_sizes(x, [1] * (x.rank - 2))
        y = g.node(op, [x], ones, x.order)
        return y if layer.keepdims else g.reshape(y, (None, x.shape[x.order[1]]))

    return handler


def _global_average_pool_1d(g: Graph, layer: Any, x: Tensor, mask: Any = None) -> Tensor:
    if mask is not None:
        raise g.unknown("masks are not supported")
    return _global_pool("GlobalAveragePool")(g, layer, x)


# -- normalisation --------------------------------------------------------------------------------


def _batch_norm(g: Graph, layer: Any, x: Tensor, mask: Any = None) -> Tensor:
    x = g.as_float(_channels_at_one(g, x, layer.axis))
    mean, variance = to_numpy(layer.moving_mean), to_numpy(layer.moving_variance)
    gamma = to_numpy(layer.gamma) if layer.scale else np.ones_like(mean)
    beta = to_numpy(layer.beta) if layer.center else np.zeros_like(mean)
    # ONNX holds epsilon in float32; in float64 the variance takes what that loses.
    variance = variance.astype(g.dtype)
    variance += attribute_error(layer.epsilon, g.dtype)
    values = {"gamma": gamma, "beta": beta, "mean": mean, "variance": variance}
    weights = [g.weight(value, role) for role, value in values.items()]
    return g.like("BatchNormalization", x, *weights, epsilon=layer.epsilon)


def _channels_at_one(g: Graph, x: Tensor, axis: int) -> Tensor:
    """Return the tensor with this Keras axis behind the batch axis."""
    axis %= x.rank
    if x.order[1] == axis:
        return x
    return g.ordered(x, (0, axis, *(a for a in range(1, x.rank) if a != axis)))


def _layer_norm(g: Graph, layer: Any, x: Tensor) -> Tensor:
    if getattr(layer, "rms_scaling", False):
        raise g.unknown("rms_scaling is not supported")
    axes = [a % x.rank for a in np.atleast_1d(layer.axis)]
    if sorted(axes) != axes:
        raise g.unknown("its axes are not in rising order")
    x = g.as_float(g.ordered(x, (*(a for a in range(x.rank) if a not in axes), *axes)))
    shape = [x.shape[a] for a in axes]
    gamma = np.ones(shape) if layer.gamma is None else to_numpy(layer.gamma)
    weights = [g.weight(gamma, "gamma")]
    if layer.beta is not None:
        weights.append(g.weight(to_numpy(layer.beta), "beta"))
    attributes = {"axis": x.rank - len(axes), "epsilon": layer.epsilon}
    return g.like("LayerNormalization", x, *weights, **attributes)


def _group_norm(g: Graph, layer: Any, x: Tensor) -> Tensor:
    x = g.as_float(_channels_at_one(g, x, layer.axis))
    channels, groups = x.shape[x.order[1]], layer.groups
    rest = math.prod(_sizes(x)) * (channels // groups)
    grouped = g.weight([0, groups, rest], "groups")
    y = g.node("Reshape", [x, grouped], (None, groups, rest))
    one, zero = g.weight(np.ones(groups), "one"), g.weight(np.zeros(groups), "zero")
    y = g.like("InstanceNormalization", y, one, zero, epsilon=layer.epsilon)
    whole = g.weight([0, channels, *_sizes(x)], "shape")
    y = g.node("Reshape", [y, whole], x.shape, x.order)
    per_channel = (1, channels, *(1 for _ in _sizes(x)))
    for op, used, name in (("Mul", layer.scale, "gamma"), ("Add", layer.center, "beta")):
        if used:
            value = to_numpy(getattr(layer, name)).reshape(per_channel)
            y = g.like(op, y, g.weight(value, name))
    return y


def _normalization(g: Graph, layer: Any, x: Tensor) -> Tensor:
    import keras

    mean, variance = to_numpy(layer.mean), to_numpy(layer.variance)
    deviation = np.maximum(np.sqrt(variance.astype(g.dtype)), keras.config.epsilon())
    x = g.as_float(x)
    if layer.invert:
        y = g.like("Mul", x, g.constant(deviation, x, "deviation"))
        return g.like("Add", y, g.constant(mean, y, "mean"))
    y = g.like("Sub", x, g.constant(mean, x, "mean"))
    return g.like("Div", y, g.constant(deviation, y, "deviation"))


def _rescaling(g: Graph, layer: Any, x: Tensor) -> Tensor:
    import keras

    x = g.as_float(x)
    scale, offset = to_numpy(layer.scale), to_numpy(layer.offset)
    if scale.ndim and keras.config.image_data_format() == "channels_first":
        raise g.unknown("a scale per channel with image_data_format 'channels_first'")
    y = g.like("Mul", x, g.constant(scale, x, "scale"))
    return g.like("Add", y, g.constant(offset, y, "offset")) if np.any(offset) else y


# -- shapes ---------------------------------------------------------------------------------------


def _flatten(g: Graph, layer: Any, x: Tensor) -> Tensor:
    if layer.data_format == "channels_first" and x.rank > 2:
        x = _permuted(g.in_keras_order(x), (0, *range(2, x.rank), 1))
    return g.reshape(x, (None, math.prod(x.shape[1:])))


def _permuted(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Return a tensor whose Keras axis i is axis `axes[i]` of x; nothing moves in ONNX."""
    order = tuple(list(axes).index(a) for a in x.order)
    return Tensor(x.name, tuple(x.shape[a] for a in axes), order, x.dtype)


def _reshape(g: Graph, layer: Any, x: Tensor) -> Tensor:
    return g.reshape(x, g.output_shape(layer, x))


def _permute(g: Graph, layer: Any, x: Tensor) -> Tensor:
    return _permuted(x, (0, *layer.dims))


def _repeat_vector(g: Graph, layer: Any, x: Tensor) -> Tensor:
    shape = (None, layer.n, x.shape[1])
    y = g.node("Unsqueeze", [x, g.weight([1], "axes")], (None, 1, x.shape[1]))
    return g.node("Expand", [y, g.weight([1, layer.n, 1], "shape")], shape)


def _amounts(layer: Any, name: str) -> dict[int, tuple[int, int]]:
    """Return what a padding or cropping layer does before and after each Keras axis."""
    pairs = getattr(layer, name)
    pairs = [pairs] if np.ndim(pairs) == 1 else pairs
    first = 2 if getattr(layer, "data_format", None) == "channels_first" else 1
    return {first + i: (int(a), int(b)) for i, (a, b) in enumerate(pairs)}


def _zero_padding(g: Graph, layer: Any, x: Tensor) -> Tensor:
    return padded(g, x, _amounts(layer, "padding"))


def padded(g: Graph, x: Tensor, amounts: dict[int, tuple[int, int]], value: Any = 0) -> Tensor:
    shape = tuple(n if not a else n + sum(amounts.get(a, (0, 0))) for a, n in enumerate(x.shape))
    pads = _as_onnx([amounts.get(axis, (0, 0)) for axis in x.order])
    inputs = [x, g.weight(pads, "pads")]
    if value:
        inputs.append(g.weight(np.asarray(value, x.dtype), "value", x.dtype))
    return g.node("Pad", inputs, shape, x.order, x.dtype)


def _cropping(g: Graph, layer: Any, x: Tensor) -> Tensor:
    spans = {
        axis: (before, x.shape[axis] - after, 1)
        for axis, (before, after) in _amounts(layer, "cropping").items()
    }
    return sliced(g, x, spans)


def sliced(g: Graph, x: Tensor, spans: dict[int, tuple[int, int, int]]) -> Tensor:
    """Return a part of a tensor: (start, stop, step) per Keras axis, numbers >= 0."""
    spans = {a: s for a, s in spans.items() if s != (0, x.shape[a], 1)}
    if not spans:
        return x
    shape = list(x.shape)
    for axis, span in spans.items():
        shape[axis] = len(range(*span))
    columns = [*zip(*spans.values(), strict=True)]
    axes = [x.axis(a) for a in spans]
    starts, ends, steps = columns
    weights = [
        g.weight(list(v), role)
        for v, role in ((starts, "starts"), (ends, "ends"), (axes, "axes"), (steps, "steps"))
    ]
    return g.node("Slice", [x, *weights], tuple(shape), x.order, x.dtype)


def _up_sampling(g: Graph, layer: Any, x: Tensor) -> Tensor:
    kind = getattr(layer, "interpolation", "nearest")
    modes = {
        "nearest": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
                    "nearest_mode": "floor"},
        "bilinear": {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    }  # fmt: skip
    if kind not in modes:
        raise g.unknown(f"the interpolation {kind!r}")
    factors = [int(n) for n in np.atleast_1d(layer.size)]
    x = g.as_float(g.ordered(x, channels_first(x.rank, getattr(layer, "data_format", ""))))
    shape = _with_sizes(x, [n * f for n, f in zip(_sizes(x), factors, strict=True)])
    scales = g.weight(np.array([1, 1, *factors]), "scales", np.float32)
    return g.node("Resize", [x, "", scales], shape, x.order, **modes[kind])


# -- several inputs -------------------------------------------------------------------------------


def _merge(op: str, many: str | None = None) -> Handler:
    def handler(g: Graph, layer: Any, xs: Sequence[Tensor]) -> Tensor:
        xs = _same_rank(g, xs)
        if len(xs) > 2 and many:
            return g.elementwise(many, *xs)
        y = xs[0]
        for x in xs[1:]:
            y = g.elementwise(op, y, x)
        return y

    return handler


def _average(g: Graph, layer: Any, xs: Sequence[Tensor]) -> Tensor:
    return g.elementwise("Mean", *_same_rank(g, xs))


def _same_rank(g: Graph, xs: Sequence[Tensor]) -> list[Tensor]:
    """Give all inputs the most axes that one has; Keras puts new ones behind the batch."""
    rank = max(x.rank for x in xs)
    return [g.reshape(x, (None, *([1] * (rank - x.rank)), *x.shape[1:])) for x in xs]


def _concatenate(g: Graph, layer: Any, xs: Sequence[Tensor]) -> Tensor:
    return joined(g, xs, layer.axis)


def joined(g: Graph, xs: Sequence[Tensor], axis: int) -> Tensor:
    if len({x.dtype for x in xs}) > 1:
        xs = [g.as_float(x) for x in xs]
    xs = g.aligned(xs)
    axis %= xs[0].rank
    if axis == 0:
        raise g.unknown("rows of the batch are joined")
    shape = list(xs[0].shape)
    shape[axis] = sum(x.shape[axis] for x in xs)
    at = xs[0].axis(axis)
    return g.node("Concat", xs, tuple(shape), xs[0].order, xs[0].dtype, axis=at)


# -- other layers ---------------------------------------------------------------------------------


def _identity(g: Graph, layer: Any, x: Tensor, **ignored: Any) -> Tensor:
    return g.node("Identity", [x], x.shape, x.order, x.dtype)


def _activation(g: Graph, layer: Any, x: Tensor) -> Tensor:
    y = activated(g, layer, x)
    return _identity(g, layer, x) if y is x else y


def _prelu(g: Graph, layer: Any, x: Tensor) -> Tensor:
    alpha = to_numpy(layer.alpha)[None]
    return g.like("PRelu", x, g.constant(alpha, x, "slope"))


def _embedding(g: Graph, layer: Any, x: Tensor) -> Tensor:
    _not_quantised(g, layer)
    x = g.in_keras_order(x)
    table = to_numpy(layer.embeddings)
    if x.dtype != np.int64:
        x = g.node("Cast", [x], x.shape, x.order, np.int64, helper=True, to=7)
    return g.node("Gather", [g.weight(table, "weight"), x], (*x.shape, table.shape[1]), axis=0)


def _einsum_dense(g: Graph, layer: Any, x: Tensor) -> Tensor:
    """Write a product over the last axes: "abc,cde->abde" is a dense layer."""
    _not_quantised(g, layer)
    terms, made = layer.equation.replace(" ", "").split("->")
    given, weight = terms.split(",")
    summed = [c for c in weight if c not in made and c != "."]
    n = len(summed)
    fits = n and given[-n:] == weight[:n] and made == given[:-n] + weight[n:]
    if not fits or "." in weight:
        raise g.unknown(f"the equation {layer.equation!r}")
    w = to_numpy(layer.kernel)
    lead, inner = x.shape[: x.rank - n], math.prod(x.shape[x.rank - n :])
    y = linear(g, g.reshape(x, (*lead, inner)), w.reshape(inner, -1), None)
    y = g.reshape(y, (*lead, *w.shape[n:]))
    if layer.bias is not None:
        y = g.elementwise("Add", y, to_numpy(layer.bias))
    return activated(g, layer, y)


# -- recurrent ------------------------------------------------------------------------------------


def _recurrent(g: Graph, layer: Any, x: Tensor, **states: Any) -> Any:
    if layer.go_backwards and layer.return_sequences:
        raise g.unknown("go_backwards with return_sequences is not supported")
    return _sequence(g, layer, x, **states)


def _sequence(g: Graph, layer: Any, x: Tensor, part: str | None = None, **states: Any) -> Any:
    """Write LSTM, GRU or SimpleRNN; a sequence that runs backwards comes in the order of x."""
    if states or layer.stateful:
        raise g.unknown("a state from outside is not supported")
    cell, kind = layer.cell, type(layer).__name__
    x = g.as_float(g.ordered(x, (1, 0, 2)))
    steps, units = x.shape[1], cell.units
    op, weights, extra = _CELLS[kind](g, cell)
    names = [g.weight(w[None], f"{part}.{role}" if part else role) for role, w in weights.items()]
    y = g.node(
        op,
        [x, *names],
        (None, steps, 1, units),
        (1, 2, 0, 3),
        part=part,
        hidden_size=units,
        direction="reverse" if layer.go_backwards else "forward",
        activations=[_cell_activation(g, f) for f in extra.pop("functions")],
        **extra,
    )
    states = []
    for k in range(2 if kind == "LSTM" else 1):
        name = f"{y.name}_state_{k + 1}"
        g.nodes[-1].output.append(name)
        states.append(Tensor(name, (None, 1, units), (1, 0, 2), g.dtype))
    states = [_squeezed(g, state, 1) for state in states]
    result = g.in_keras_order(_squeezed(g, y, 2)) if layer.return_sequences else states[0]
    return [result, *states] if layer.return_state else result


def _squeezed(g: Graph, x: Tensor, axis: int) -> Tensor:
    """Take out a Keras axis of length 1, wherever it lies."""
    order = tuple(a - (a > axis) for a in x.order if a != axis)
    shape = tuple(n for a, n in enumerate(x.shape) if a != axis)
    return g.node("Squeeze", [x, g.weight([x.axis(axis)], "axes")], shape, order, x.dtype)


def _cell_activation(g: Graph, function: Any) -> str:
    known = {"tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu"}
    name = getattr(function, "__name__", "")
    if name not in known:
        raise g.unknown(f"the activation {name or function!r} inside a recurrent layer")
    return known[name]


def _gates(values: Any, order: Sequence[int]) -> np.ndarray:
    """Return (in, gates * units) as (gates * units, in), the gates in ONNX's order."""
    w = to_numpy(values)
    return np.concatenate([np.split(w, len(order), axis=-1)[k] for k in order], axis=-1).T


def _cell_weights(cell: Any, order: Sequence[int]) -> dict[str, np.ndarray]:
    bias = to_numpy(cell.bias) if cell.use_bias else np.zeros(len(order) * cell.units)
    both = bias if bias.ndim == 2 else np.stack([bias, np.zeros_like(bias)])
    return {
        "weight": _gates(cell.kernel, order),
        "recurrent": _gates(cell.recurrent_kernel, order),
        "bias": np.concatenate([_gates(b, order) for b in both]),
    }


def _lstm(g: Graph, cell: Any) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    functions = [cell.recurrent_activation, cell.activation, cell.activation]
    return "LSTM", _cell_weights(cell, (0, 3, 1, 2)), {"functions": functions}


def _gru(g: Graph, cell: Any) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    functions = [cell.recurrent_activation, cell.activation]
    extra = {"functions": functions, "linear_before_reset": int(cell.reset_after)}
    return "GRU", _cell_weights(cell, (0, 1, 2)), extra


def _simple_rnn(g: Graph, cell: Any) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    return "RNN", _cell_weights(cell, (0,)), {"functions": [cell.activation]}


_CELLS = {"LSTM": _lstm, "GRU": _gru, "SimpleRNN": _simple_rnn}


def _bidirectional(g: Graph, layer: Any, x: Tensor, **states: Any) -> Any:
    both = [layer.forward_layer, layer.backward_layer]
    if any(type(inner).__name__ not in _CELLS or inner.return_state for inner in both) or states:
        raise g.unknown("other layers than LSTM, GRU and SimpleRNN, or states, inside")
    ways = [
        _sequence(g, inner, x, part)
        for inner, part in zip(both, ("forward", "backward"), strict=True)
    ]
    if layer.merge_mode is None:
        return ways
    if layer.merge_mode == "concat":
        return joined(g, ways, -1)
    return g.elementwise({"sum": "Sum", "mul": "Mul", "ave": "Mean"}[layer.merge_mode], *ways)


def _time_distributed(g: Graph, layer: Any, x: Tensor) -> Tensor:
    """Apply the inner layer to each step by itself."""
    steps = []
    for t in range(x.shape[1]):
        row = g.reshape(sliced(g, x, {1: (t, t + 1, 1)}), (None, *x.shape[2:]))
        (y,) = g.call(layer.layer, [row], {})
        steps.append(g.reshape(y, (None, 1, *y.shape[1:])))
    return joined(g, steps, 1) if len(steps) > 1 else steps[0]


def _multi_head_attention(
    g: Graph,
    layer: Any,
    query: Tensor,
    value: Tensor,
    key: Tensor | None = None,
    use_causal_mask: bool = False,
    return_attention_scores: bool = False,
    **masks: Any,
) -> Any:
    plain = query.rank == 3 and value.rank == 3 and layer._attention_axes in ((1,), [1])
    gated = getattr(layer, "_use_gate", False) or getattr(layer, "_sliding_window", None)
    if masks or not plain or gated:
        raise g.unknown("masks as input, gates, windows and other axes are not supported")
    key = value if key is None else key

    def heads(x: Tensor, dense: Any, part: str) -> Tensor:
        """Return (batch, steps, heads, size)."""
        w = to_numpy(dense.kernel)
        bias = None if dense.bias is None else to_numpy(dense.bias).ravel()
        y = linear(g, x, w.reshape(len(w), -1), bias, part)
        return g.reshape(y, (None, x.shape[1], *w.shape[1:]))

    q = g.ordered(heads(query, layer._query_dense, "query"), (0, 2, 1, 3))
    k = g.ordered(heads(key, layer._key_dense, "key"), (0, 2, 3, 1))
    v = g.ordered(heads(value, layer._value_dense, "value"), (0, 2, 1, 3))
    t, n, s = q.shape[1], q.shape[2], k.shape[1]
    q = g.like("Mul", q, g.weight(1 / math.sqrt(layer._key_dim), "scale"))
    scores = g.node("MatMul", [q, k], (None, n, t, s))
    if use_causal_mask:
        lowest = np.where(np.tri(t, s, dtype=bool), 0.0, -3e38)[None, None]
        scores = g.elementwise("Add", scores, lowest)
    weights = g.like("Softmax", scores, axis=-1)
    mixed = g.node("MatMul", [weights, v], (None, t, n, v.shape[3]), (0, 2, 1, 3))
    w = to_numpy(layer._output_dense.kernel)
    y = g.reshape(mixed, (None, t, n * v.shape[3]))
    y = linear(g, y, w.reshape(-1, w.shape[-1]), layer._output_dense.bias, "output")
    return (y, weights) if return_attention_scores else y


def _for_ranks(name: str, handler: Handler, ranks: str = "123") -> dict[str, Handler]:
    return {f"{name}{rank}D": handler for rank in ranks}


_IDENTITIES = (
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout"),
    *("GaussianDropout", "GaussianNoise", "ActivityRegularization", "Identity", "RandomFlip"),
    *("RandomRotation", "RandomZoom", "RandomTranslation", "RandomContrast", "RandomBrightness"),
)

LAYERS: dict[str, Handler] = {
    "Dense": _dense,
    **_for_ranks("Conv", _conv),
    **_for_ranks("DepthwiseConv", _depthwise_conv, "12"),
    **_for_ranks("SeparableConv", _separable_conv, "12"),
    "Conv1DTranspose": _conv_transpose,
    "Conv2DTranspose": _conv_transpose,
    "Conv3DTranspose": _conv_transpose,
    **_for_ranks("MaxPooling", _pool("MaxPool")),
    **_for_ranks("AveragePooling", _pool("AveragePool")),
    **_for_ranks("GlobalMaxPooling", _global_pool("GlobalMaxPool")),
    **_for_ranks("GlobalAveragePooling", _global_pool("GlobalAveragePool"), "23"),
    "GlobalAveragePooling1D": _global_average_pool_1d,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "Normalization": _normalization,
    "Rescaling": _rescaling,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    "RepeatVector": _repeat_vector,
    **_for_ranks("ZeroPadding", _zero_padding),
    **_for_ranks("Cropping", _cropping),
    **_for_ranks("UpSampling", _up_sampling),
    "Add": _merge("Add", "Sum"),
    "Subtract": _merge("Sub"),
    "Multiply": _merge("Mul"),
    "Maximum": _merge("Max", "Max"),
    "Minimum": _merge("Min", "Min"),
    "Average": _average,
    "Concatenate": _concatenate,
    "Activation": _activation,
    "PReLU": _prelu,
    "Embedding": _embedding,
    "TimeDistributed": _time_distributed,
    "MultiHeadAttention": _multi_head_attention,
    "EinsumDense": _einsum_dense,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "SimpleRNN": _recurrent,
    "Bidirectional": _bidirectional,
    **dict.fromkeys(_IDENTITIES, _identity),
}
