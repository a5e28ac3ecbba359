"""innsight's list format as a dict: from a list of layers to ONNX; `to_layers` goes back.

Layers are numbered from 1: 0 stands for the input of the model, -1 for its output. Shapes have no
batch axis and stand channels first.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxplain.errors import ModelError, ModelFileError, ShapeError, listed, shown
from onnxplain.names import given_names

OPSET = 20
LEAKY_SLOPE = 0.01
MAX_NUMBER = 2**31  # of a size or an index

Shape = tuple[int, ...]

# Activations by innsight's names.
ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("Identity", {}),
    "relu": ("Relu", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": LEAKY_SLOPE}),
    "softplus": ("Softplus", {}),
    "sigmoid": ("Sigmoid", {}),
    "logistic": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "softmax": ("Softmax", {"axis": -1}),
}
PADDING_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge",
                 "circular": "wrap"}  # fmt: skip

# Spellings in innsight's documents that its code does not know.
_TYPE_ALIASES = {"Concatenation": "Concatenate", "Con1D": "Conv1D", "Con2D": "Conv2D"}
_KEY_ALIASES = {"out_dim": "dim_out", "in_dim": "dim_in", "input_layes": "input_layers"}
_LAYOUTS = {"Dense": "(out, in)", "Conv1D": "(out, in, k)", "Conv2D": "(out, in, kh, kw)"}


def convert(
    model: Mapping[str, Any] | str | os.PathLike[str], *, input_dim: Any = None
) -> onnx.ModelProto:
    """Make an ONNX model of a model in innsight's list format.

    Parameters
    ----------
    model : dict, or path of a .json file
        Keys `input_dim` (a shape, or a list of them), `input_nodes`, `output_nodes` (numbers of
        layers, from 1), `layers` (a list of dicts), and, if wanted, `input_names`,
        `output_names`, `output_dim`. A file that R wrote with `jsonlite::toJSON` is read as well:
        lists of length one count as numbers, `{}` as left away.
    input_dim : shape, or list of those, optional
        Stands in for a missing `input_dim` of the model.

    Returns
    -------
    onnx.ModelProto
        In float64, or in float32 if all weights are. Nodes are called by type and number
        ("Dense_1").

    Raises
    ------
    ModelFileError
        If the file is missing or no JSON.
    ModelError
        If a key is missing or has a value that cannot be used; the message names the layer.
    ShapeError
        If a given shape or the number of names is not what the layers give.

    Warns
    -----
    UserWarning
        If `input_nodes`, `output_nodes`, `input_layers` or `output_layers` are missing and have to
        be assumed, or a key is not known.

    Examples
    --------
    >>> layer = {"type": "Dense", "weight": [[1.0, 2.0]], "bias": [0.5], "activation_name": "tanh",
    ...          "input_layers": 0, "output_layers": -1}
    >>> model = {"input_dim": [2], "input_nodes": 1, "output_nodes": 1, "layers": [layer]}
    >>> [node.name for node in convert(model).graph.node]
    ['Dense_1', 'Dense_1/Tanh']

    References
    ----------
    Koenen and Wright (2024), Interpreting deep neural networks with the package innsight.
    """
    keys = _load(model) if isinstance(model, (str, os.PathLike)) else model
    layers = _read_layers(keys)
    dims = _shapes(_required(keys, "input_dim", input_dim), "input_dim")
    inputs = _nodes(keys, "input_nodes", len(layers), 1)
    outputs = _nodes(keys, "output_nodes", len(layers), len(layers))
    if len(dims) != len(inputs):
        raise ModelError(
            f"input_dim has {len(dims)} shapes {listed(dims)} for {len(inputs)} input_nodes; "
            "give one shape per input layer"
        )
    _check_links(layers, inputs, outputs)
    net = _Network(layers, dict(zip(inputs, dims, strict=True)))
    for layer in _in_order(layers):
        net.add(layer)
    return _proto(keys, net, outputs)


# -- reading values -------------------------------------------------------------------------------


def _load(path: str | os.PathLike[str]) -> Any:
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ModelFileError(f"cannot read {os.fspath(path)!r}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{os.fspath(path)!r} is no JSON: {error}") from error


def _absent(value: Any) -> bool:
    """Tell whether a value is left away; R's NULL becomes {} or [] in JSON."""
    return value is None or (isinstance(value, (Mapping, list, tuple)) and len(value) == 0)


def _required(model: Any, key: str, instead: Any = None) -> Any:
    if not isinstance(model, Mapping):
        raise ModelError(f"a model in list format is a dict, got {type(model).__name__}")
    value = model.get(key)
    value = instead if _absent(value) else value
    if _absent(value):
        raise ModelError(f"the model has no {key!r}; it needs 'layers' and 'input_dim' at least")
    return value


def _whole(value: Any) -> tuple[int, ...] | None:
    """Return whole numbers from a number or a flat list of them; None if it is something else."""
    try:
        numbers = np.atleast_1d(np.asarray(value))
    except (ValueError, TypeError, RuntimeError):
        return None
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf" or not numbers.size:
        return None
    if not np.all(abs(numbers) < MAX_NUMBER) or np.any(numbers != np.round(numbers)):
        return None
    return tuple(int(n) for n in numbers)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0


def _shapes(value: Any, what: str) -> list[Shape]:
    """Return shapes from a shape or a list of shapes."""
    if isinstance(value, Mapping):
        value = list(value.values())
    single = not _is_list(value) or not any(map(_is_list, value))
    shapes = [_whole(v) for v in ([value] if single else value)]
    if not shapes or any(s is None or min(s) < 1 for s in shapes):
        raise ModelError(
            f"{what} must be a shape (whole numbers > 0) or a list of shapes, got {shown(value)}"
        )
    return [s for s in shapes if s is not None]


def _nodes(model: Mapping[str, Any], key: str, n: int, assumed: int) -> tuple[int, ...]:
    """Return the numbers of the input or output layers."""
    value = model.get(key)
    if _absent(value):
        warnings.warn(
            f"the model has no {key!r}: layer {assumed} is taken as the only "
            f"{key.removesuffix('_nodes')} layer",
            UserWarning,
            stacklevel=2,
        )
        return (assumed,)
    numbers = _whole(value)
    if numbers is None or not all(1 <= k <= n for k in numbers):
        raise ModelError(f"{key} must be numbers of layers, from 1 to {n}, got {shown(value)}")
    if len(set(numbers)) < len(numbers):
        raise ModelError(f"{key} names a layer twice: {shown(value)}")
    return numbers


class Layer:
    """One entry of `layers`: its keys, read and checked when asked for."""

    def __init__(self, index: int, keys: Any):
        self.index = index
        if not isinstance(keys, Mapping):
            raise ModelError(f"layer {index} must be a dict, got {type(keys).__name__}")
        self.keys = {_KEY_ALIASES.get(k, k): v for k, v in keys.items() if not _absent(v)}
        self.type = self._type()
        self.inputs = self._numbers("input_layers")
        self.outputs = self._numbers("output_layers")
        self.dims: list[Shape] = []  # of its inputs, once they are known

    def _type(self) -> str:
        kind = self.keys.get("type")
        kind = kind[0] if isinstance(kind, list) and len(kind) == 1 else kind
        kind = _TYPE_ALIASES.get(kind, kind) if isinstance(kind, str) else None
        if kind not in LAYERS:
            raise ModelError(
                f"layer {self.index} has type {shown(self.keys.get('type'))}; "
                f"known are {', '.join(LAYERS)}"
            )
        return kind

    def _numbers(self, key: str) -> tuple[int, ...]:
        if key not in self.keys:
            return ()  # to be assumed
        numbers = _whole(self.keys[key])
        if numbers is None:
            raise self.error(f"{key} must be whole numbers, got {shown(self.keys[key])}")
        return numbers

    @property
    def name(self) -> str:
        """The name of its node."""
        return f"{self.type}_{self.index}"

    @property
    def dim(self) -> Shape:
        """The shape of its only input."""
        if len(self.dims) != 1:
            raise self.error(f"takes one input, input_layers names {len(self.dims)}")
        return self.dims[0]

    def error(self, message: str, kind: type[ModelError] | type[ShapeError] = ModelError) -> Any:
        """Return an error that names this layer."""
        return kind(f"layer {self.index} ({self.type}): {message}")

    def misfit(self, why: str) -> Any:
        """Return the error of a layer that cannot run on its input."""
        weight = np.shape(self.keys["weight"]) if "weight" in self.keys else None
        has = f" Its weight has shape {weight}," if weight else ""
        layouts = ", ".join(f"{v} for {k}" for k, v in _LAYOUTS.items())
        return self.error(
            f"cannot run: {why}.{has} its input {listed(self.dims)} (channels first); "
            f"check its parameters and the order of the axes of weights: {layouts}"
        )

    def get(self, key: str, default: Any = None) -> Any:
        """Return a key's value; without a default it has to be there."""
        if key not in self.keys and default is None:
            raise self.error(f"has no {key!r}")
        return self.keys.get(key, default)

    def text(self, key: str, known: Iterable[str], default: str | None = None) -> str:
        """Return one of several words."""
        value = self.get(key, default)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if not isinstance(value, str) or value not in known:
            raise self.error(
                f"{key} {shown(value)} is not implemented; known are {', '.join(known)}"
            )
        return value

    def counts(self, key: str, lengths: Sequence[int], default: Any = None, least: int = 1):
        """Return whole numbers; as many as one of `lengths`."""
        value = self.get(key, default)
        numbers = _whole(value)
        if numbers is None or len(numbers) not in lengths or min(numbers) < least:
            allowed = " or ".join(map(str, lengths))
            plural = "" if lengths == (1,) else "s"
            raise self.error(
                f"{key} must be {allowed} whole number{plural} >= {least}, got {shown(value)}"
            )
        return numbers

    def each(self, key: str, rank: int, default: Any = None) -> Shape:
        """Return one whole number per spatial axis; a single one counts for all."""
        numbers = self.counts(key, tuple(range(1, rank + 1)), default)
        return numbers * rank if len(numbers) == 1 else numbers

    def array(self, key: str, ndim: int, length: int | None = None) -> np.ndarray:
        """Return weights with a fixed number of axes."""
        value = self.get(key)
        try:
            array = np.asarray(value)
        except (ValueError, TypeError, RuntimeError) as error:
            raise self.error(f"{key} is no array of numbers ({error})") from error
        if array.dtype.kind not in "iuf":
            raise self.error(f"{key} must hold numbers, got type {array.dtype}")
        array = array.reshape(1) if array.ndim == 0 and ndim == 1 else array
        if array.ndim != ndim or not array.size:
            layout = f" {_LAYOUTS[self.type]}" if key == "weight" else ""
            raise self.misfit(f"{key} needs {ndim} axes{layout}, got shape {array.shape}")
        if length is not None and len(array) != length:
            raise self.misfit(f"{key} has {len(array)} elements, expected {length}")
        return array if array.dtype == np.float32 else array.astype(np.float64)

    def number(self, key: str, default: float | None = None) -> float:
        """Return one number."""
        value = self.get(key, default)
        try:
            number = np.asarray(value)
        except (ValueError, TypeError, RuntimeError):
            number = np.zeros(0)
        if number.size != 1 or number.dtype.kind not in "iuf" or not np.isfinite(number).all():
            raise self.error(f"{key} must be one number, got {shown(value)}")
        return float(number.reshape(()))


def _read_layers(model: Any) -> list[Layer]:
    entries = _required(model, "layers")
    if isinstance(entries, Mapping):  # a named list of R
        entries = list(entries.values())
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise ModelError(f"layers must be a list of dicts, got {type(entries).__name__}")
    layers = [Layer(i, keys) for i, keys in enumerate(entries, 1)]
    for layer in layers:
        _warn_unknown(layer)
    _assume(layers)
    return layers


def _warn_unknown(layer: Layer) -> None:
    known = {*_COMMON_KEYS, *LAYERS[layer.type].keys}
    for key in layer.keys.keys() - known:
        close = get_close_matches(str(key), known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        warnings.warn(
            f"layer {layer.index} ({layer.type}): key {key!r} is not known and has no effect{hint}",
            UserWarning,
            stacklevel=3,
        )


# -- links ----------------------------------------------------------------------------------------


def _assume(layers: Sequence[Layer]) -> None:
    """Link layers that do not say what they follow or feed as a chain."""
    last = len(layers)
    for key, neighbours, step in (("input", "before", -1), ("output", "after", 1)):
        field = f"{key}s"
        without = [layer for layer in layers if not getattr(layer, field)]
        for layer in without:
            end = layer.index == (1 if step < 0 else last)
            setattr(layer, field, (0 if step < 0 else -1,) if end else (layer.index + step,))
        if without:
            warnings.warn(
                f"layers {listed(n.index for n in without)} have no '{key}_layers': "
                f"the layer {neighbours} each is taken",
                UserWarning,
                stacklevel=3,
            )


def _check_links(layers: Sequence[Layer], inputs: Shape, outputs: Shape) -> None:
    """What layers say about each other, and the model about its ends, has to agree."""
    n = len(layers)
    for layer in layers:
        _check_range(layer, "input_layers", layer.inputs, 0, n)
        _check_range(layer, "output_layers", layer.outputs, -1, n)
    for layer in layers:
        if (0 in layer.inputs) != (layer.index in inputs):
            raise layer.error(
                f"input_layers is {layer.inputs} and input_nodes {inputs}: "
                "input_nodes must name just the layers with a 0 in input_layers"
            )
        if -1 in layer.outputs and layer.index not in outputs:
            raise layer.error(f"has -1 in output_layers, but output_nodes is {outputs}")
        for i in layer.inputs:
            # innsight writes only -1 for an output that feeds other layers as well.
            if i and -1 not in layers[i - 1].outputs and layer.index not in layers[i - 1].outputs:
                raise _contradiction(layers[i - 1], layer)
        for j in layer.outputs:
            if j != -1 and layer.index not in layers[j - 1].inputs:
                raise _contradiction(layer, layers[j - 1])


def _check_range(layer: Layer, key: str, numbers: Any, end: int, n: int) -> None:
    wrong = [k for k in numbers if not (1 <= k <= n or k == end)]
    if wrong:
        meaning = "the input" if end == 0 else "the output"
        raise layer.error(
            f"{key} names {wrong[0]}; layers are 1 to {n}, {end} is {meaning} of the model"
        )


def _contradiction(before: Layer, after: Layer) -> ModelError:
    return ModelError(
        f"output_layers of layer {before.index} is {before.outputs} and input_layers of layer "
        f"{after.index} is {after.inputs}: the two do not agree; change one of them"
    )


def _in_order(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers so that each comes after what it takes; as listed where that is so."""
    done, order, waiting = {0}, [], list(layers)
    while waiting:
        ready = next((layer for layer in waiting if done.issuperset(layer.inputs)), None)
        if ready is None:
            raise ModelError(
                f"layers {listed(layer.index for layer in waiting)} wait for each other: "
                "their input_layers go in a circle"
            )
        waiting.remove(ready)
        order.append(ready)
        done.add(ready.index)
    return order


# -- layers to nodes ------------------------------------------------------------------------------


class Step(NamedTuple):
    """A node of a layer; it takes what the step before it made, the first one the layer's inputs.

    Inputs behind the data are arrays.
    """

    op: str
    weights: tuple[np.ndarray, ...] = ()
    attributes: Mapping[str, Any] = {}


Steps = tuple[list[Step], Shape]


def _activation(layer: Layer, key: str) -> list[Step]:
    op, attributes = ACTIVATIONS[layer.text(key, ACTIVATIONS)]
    return [] if op == "Identity" else [Step(op, (), attributes)]


def _dense(layer: Layer) -> Steps:
    w = layer.array("weight", 2)
    b = layer.array("bias", 1, len(w))
    *rest, n = layer.dim
    if w.shape[1] != n:
        raise layer.misfit(f"the weight is for {w.shape[1]} inputs, there are {n}")
    # Gemm takes vectors only.
    gemm, product = Step("Gemm", (w, b), {"transB": 1}), Step("MatMul", (w.T,))
    linear = [product, Step("Add", (b,))] if rest else [gemm]
    return linear + _activation(layer, "activation_name"), (*rest, len(w))


def _conv(layer: Layer, rank: int) -> Steps:
    w = layer.array("weight", rank + 2)
    b = layer.array("bias", 1, len(w))
    channels, *_ = spatial = _spatial(layer, rank)
    if w.shape[1] != channels:
        raise layer.misfit(f"the weight is for {w.shape[1]} channels, there are {channels}")
    strides, dilations = layer.each("stride", rank, 1), layer.each("dilation", rank, 1)
    pads = _pads(layer, rank)
    attributes = {
        "kernel_shape": w.shape[2:],
        "pads": [a for a, _ in pads] + [b for _, b in pads],
        "strides": strides,
        "dilations": dilations,
    }
    spans = [d * (k - 1) + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    padded = [n + sum(p) for n, p in zip(spatial[1:], pads, strict=True)]
    steps = [Step("Conv", (w, b), attributes), *_activation(layer, "activation_name")]
    return steps, (len(w), *_windows(layer, padded, spans, strides))


def _spatial(layer: Layer, rank: int) -> Shape:
    if len(layer.dim) != rank + 1:
        axes = ("channels, length", "channels, height, width")[rank - 1]
        raise layer.misfit(f"it needs an input with axes ({axes})")
    return layer.dim


def _pads(layer: Layer, rank: int) -> list[tuple[int, int]]:
    """Return what is put before and after per axis; from (left, right, top, bottom)."""
    p = layer.counts("padding", (1, 2) if rank == 1 else (1, 2, 4), 0, 0)
    if rank == 1:
        return [(p[0], p[-1])]
    left, right, top, bottom = p if len(p) == 4 else (p[0], p[0], p[-1], p[-1])
    return [(top, bottom), (left, right)]


def _windows(layer: Layer, sizes: Iterable[int], spans: Iterable[int], strides: Shape) -> Shape:
    """Return how many windows fit."""
    out = tuple((n - k) // s + 1 for n, k, s in zip(sizes, spans, strides, strict=True))
    if min(out) < 1:
        raise layer.misfit("its kernel is larger than the (padded) input")
    return out


def _pool(layer: Layer, rank: int) -> Steps:
    channels, *spatial = _spatial(layer, rank)
    kernel = layer.counts("kernel_size", (rank,))
    strides = layer.counts("strides", (rank,), kernel)
    op = "MaxPool" if layer.type.startswith("Max") else "AveragePool"
    step = Step(op, (), {"kernel_shape": kernel, "strides": strides})
    return [step], (channels, *_windows(layer, spatial, kernel, strides))


def _batch_norm(layer: Layer) -> Steps:
    (n,) = layer.counts("num_features", (1,))
    if layer.dim[0] != n:
        raise layer.misfit(f"it is for {n} channels, there are {layer.dim[0]}")
    gamma, mean, var = (layer.array(key, 1, n) for key in ("gamma", "run_mean", "run_var"))
    beta = layer.array("beta", 1, n) if "beta" in layer.keys else np.zeros_like(gamma)
    epsilon = layer.number("eps")
    if epsilon < 0 or np.any(var < 0):
        raise layer.error("eps and run_var must not be negative")
    weights = (gamma, beta, mean, var + attribute_error(epsilon, var.dtype))
    return [Step("BatchNormalization", weights, {"epsilon": epsilon})], layer.dim


def attribute_error(value: float, dtype: Any) -> Any:
    """Return what a float64 number loses as an attribute of ONNX, which is a float32."""
    return np.dtype(dtype).type(value - float(np.float32(value)) if dtype == np.float64 else 0)


def _flatten(layer: Layer) -> Steps:
    dim = layer.dim
    (start,) = layer.counts("start_dim", (1,), 2, -len(dim))
    (end,) = layer.counts("end_dim", (1,), -1, -len(dim))
    # Axes are counted from 1 with the batch, here from 0 without it; negative ones from the end.
    start, end = (k - 2 if k > 0 else k + len(dim) for k in (start, end))
    if not 0 <= start <= end < len(dim):
        raise layer.misfit("start_dim and end_dim must be axes behind the batch axis, in order")
    if (start, end) == (0, len(dim) - 1):
        return [Step("Flatten", (), {"axis": 1})], (prod(dim),)
    out = (*dim[:start], prod(dim[start : end + 1]), *dim[end + 1 :])
    return [Step("Reshape", (np.array([0, *out]),))], out


def _global_pool(layer: Layer) -> Steps:
    method = layer.text("method", ("average", "max"))
    if len(layer.dim) < 2:
        raise layer.misfit("it needs an input with spatial axes")
    op = {"average": "GlobalAveragePool", "max": "GlobalMaxPool"}[method]
    return [Step(op), Step("Flatten", (), {"axis": 1})], layer.dim[:1]


def _padding(layer: Layer) -> Steps:
    p = layer.counts("padding", (1, 2, 4), None, 0)
    mode = layer.text("mode", PADDING_MODES, "constant")
    value = layer.number("value", 0.0)
    rank = len(layer.dim)
    p = p * (4 if rank > 2 else 2) if len(p) == 1 else p
    if len(p) == 4 and rank < 3:
        raise layer.misfit("top and bottom padding needs an input (channels, height, width)")
    pairs = [(0, 0)] * rank
    for axis in range(len(p) // 2):  # the last axis comes first: (left, right, top, bottom)
        pairs[-1 - axis] = (p[2 * axis], p[2 * axis + 1])
    limit = {"reflect": -1, "circular": 0}.get(mode, np.inf)
    if any(max(q) > n + limit for n, q in zip(layer.dim, pairs, strict=True)):
        raise layer.misfit(f"the padding is larger than mode {mode!r} allows")
    pads = np.array([0, *(a for a, _ in pairs), 0, *(b for _, b in pairs)])
    out = tuple(n + sum(q) for n, q in zip(layer.dim, pairs, strict=True))
    constant = (np.array(value),) if mode == "constant" else ()
    return [Step("Pad", (pads, *constant), {"mode": PADDING_MODES[mode]})], out


def _concatenate(layer: Layer) -> Steps:
    axis = layer.keys["dim"] if "axis" not in layer.keys and "dim" in layer.keys else None
    if axis is None:
        axis = layer.get("axis")
    numbers = _whole(axis)
    rank = len(layer.dims[0])
    if numbers is None or len(numbers) != 1:
        raise layer.error(f"axis must be one whole number, got {shown(axis)}")
    k = numbers[0] - 2 if numbers[0] > 0 else numbers[0] + rank  # without the batch axis, from 0
    if not 0 <= k < rank:
        raise layer.error(
            f"axis {numbers[0]} cannot be joined: axes are counted from 1, which is the batch; "
            f"2 to {rank + 1} or -1 to {-rank} are there"
        )
    others = {(*d[:k], *d[k + 1 :]) for d in layer.dims}
    if len(others) > 1 or len({len(d) for d in layer.dims}) > 1:
        raise layer.misfit("all axes but the joined one must be equal")
    total = sum(d[k] for d in layer.dims)
    out = (*layer.dims[0][:k], total, *layer.dims[0][k + 1 :])
    return [Step("Concat", (), {"axis": k + 1})], out


def _add(layer: Layer) -> Steps:
    if len(set(layer.dims)) > 1:
        raise layer.misfit("all inputs must have the same shape")
    return [Step("Add" if len(layer.dims) == 2 else "Sum")], layer.dims[0]


def _alone(layer: Layer) -> Steps:
    return _activation(layer, "act_name") or [Step("Identity")], layer.dim


def _skip(layer: Layer) -> Steps:
    return [Step("Identity")], layer.dim


class _Kind(NamedTuple):
    steps: Callable[[Layer], Steps]
    keys: tuple[str, ...]


_COMMON_KEYS = ("type", "input_layers", "output_layers", "dim_in", "dim_out")
_CONV_KEYS = ("weight", "bias", "activation_name", "stride", "padding", "dilation")
_POOL_KEYS = ("kernel_size", "strides")

LAYERS: dict[str, _Kind] = {
    "Dense": _Kind(_dense, ("weight", "bias", "activation_name")),
    "Conv1D": _Kind(lambda layer: _conv(layer, 1), _CONV_KEYS),
    "Conv2D": _Kind(lambda layer: _conv(layer, 2), _CONV_KEYS),
    "MaxPooling1D": _Kind(lambda layer: _pool(layer, 1), _POOL_KEYS),
    "MaxPooling2D": _Kind(lambda layer: _pool(layer, 2), _POOL_KEYS),
    "AveragePooling1D": _Kind(lambda layer: _pool(layer, 1), _POOL_KEYS),
    "AveragePooling2D": _Kind(lambda layer: _pool(layer, 2), _POOL_KEYS),
    "BatchNorm": _Kind(
        _batch_norm, ("num_features", "eps", "gamma", "beta", "run_mean", "run_var")
    ),
    "Flatten": _Kind(_flatten, ("start_dim", "end_dim")),
    "GlobalPooling": _Kind(_global_pool, ("method",)),
    "Padding": _Kind(_padding, ("padding", "mode", "value")),
    "Concatenate": _Kind(_concatenate, ("axis", "dim")),
    "Add": _Kind(_add, ()),
    "Activation": _Kind(_alone, ("act_name",)),
    "Skipping": _Kind(_skip, ()),
}


# -- the graph ------------------------------------------------------------------------------------


class _Network:
    """Nodes and weights of the layers added so far."""

    def __init__(self, layers: Sequence[Layer], inputs: Mapping[int, Shape]):
        self.layers, self.inputs = layers, inputs
        many = len(inputs) > 1
        self.input_names = {k: f"input_{i}" if many else "input" for i, k in enumerate(inputs, 1)}
        for k, dim in inputs.items():
            if len(dim) > 3:
                raise layers[k - 1].error(
                    f"is an input layer of shape {dim}; inputs have 1 to 3 axes in this format"
                )
        self.dims: dict[int, Shape] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def add(self, layer: Layer) -> None:
        layer.dims = [self.dims[i] if i else self.inputs[layer.index] for i in layer.inputs]
        _check_dim(layer, "dim_in", layer.dims)
        steps, out = LAYERS[layer.type].steps(layer)
        _check_dim(layer, "dim_out", [out])
        self.dims[layer.index] = out
        sources = [
            self.layers[i - 1].name if i else self.input_names[layer.index] for i in layer.inputs
        ]
        for step in steps:
            made = layer.name if step is steps[-1] else f"{layer.name}/{step.op}_output"
            name = layer.name if step is steps[0] else f"{layer.name}/{step.op}"
            self._node(step, sources, made, name)
            sources = [made]

    def _node(self, step: Step, sources: list[str], made: str, name: str) -> None:
        found = zip(_WEIGHT_NAMES.get(step.op, ()), step.weights, strict=False)
        weights = {f"{name}.{role}": weight for role, weight in found}
        self.weights |= weights
        node = helper.make_node(step.op, [*sources, *weights], [made], name=name, **step.attributes)
        self.nodes.append(node)


_WEIGHT_NAMES = {
    "Gemm": ("weight", "bias"),
    "Conv": ("weight", "bias"),
    "MatMul": ("weight",),
    "Add": ("bias",),
    "BatchNormalization": ("gamma", "beta", "run_mean", "run_var"),
    "Pad": ("pads", "value"),
    "Reshape": ("shape",),
}


def _check_dim(layer: Layer, key: str, computed: list[Shape]) -> None:
    if key not in layer.keys:
        return
    given = _shapes(layer.keys[key], f"{key} of layer {layer.index}")
    if given != computed:
        what = {"dim_in": "input", "dim_out": "output"}[key]
        raise layer.error(
            f"the {what} shape does not fit: computed {listed(computed)}, {key} says "
            f"{listed(given)}",
            ShapeError,
        )


def _proto(model: Mapping[str, Any], net: _Network, outputs: Shape) -> onnx.ModelProto:
    dims = [net.dims[k] for k in outputs]
    _check_outputs(model, net, outputs, dims)
    floats = [w for w in net.weights.values() if w.dtype.kind == "f" and w.ndim]
    single = floats and all(w.dtype == np.float32 for w in floats)
    dtype, element = (np.float32, TensorProto.FLOAT) if single else (np.float64, TensorProto.DOUBLE)
    if not single:
        _exact_leaky_relu(net)
    stored = [
        numpy_helper.from_array(w.astype(dtype) if w.dtype.kind == "f" else w, name)
        for name, w in net.weights.items()
    ]

    def info(name: str, dim: Shape) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, element, ["N", *dim])

    graph = helper.make_graph(
        net.nodes,
        "layers",
        [info(net.input_names[k], dim) for k, dim in net.inputs.items()],
        [info(net.layers[k - 1].name, dim) for k, dim in zip(outputs, dims, strict=True)],
        stored,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    helper.set_model_props(proto, _labels(model, list(net.inputs.values()), dims))
    return proto


def _exact_leaky_relu(net: _Network) -> None:
    """Hold the slope as a float64 weight of PRelu: an attribute is rounded to float32."""
    for node in net.nodes:
        if node.op_type == "LeakyRelu":
            node.op_type = "PRelu"
            del node.attribute[:]
            node.input.append("leaky_relu.slope")
            net.weights["leaky_relu.slope"] = np.array(LEAKY_SLOPE)


def _check_outputs(
    model: Mapping[str, Any], net: _Network, outputs: Shape, dims: list[Shape]
) -> None:
    for k, dim in zip(outputs, dims, strict=True):
        if len(dim) != 1:
            raise net.layers[k - 1].error(
                f"is an output layer of shape {dim}; outputs must be vectors: flatten it first"
            )
    if not _absent(model.get("output_dim")):
        given = _shapes(model["output_dim"], "output_dim")
        if given != dims:
            raise ShapeError(f"output_dim is {listed(given)}, the layers give {listed(dims)}")


def _labels(model: Mapping[str, Any], inputs: list[Shape], outputs: list[Shape]) -> dict[str, str]:
    found = {}
    for what, key, dims in (("input", "feature_names", inputs), ("output", "class_names", outputs)):
        names = model.get(f"{what}_names")
        if not _absent(names):
            found[key] = json.dumps(given_names(names, dims, what))
    return found
