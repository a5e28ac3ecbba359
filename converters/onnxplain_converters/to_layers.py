"""From the graph of a converter back to innsight's list format, where the format can express it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from onnxplain.arrays import is_float
from onnxplain.converter import Converter
from onnxplain.errors import ModelError, listed
from onnxplain.graph.batch import examine
from onnxplain.graph.canonical import Draft, as_affine, join_activations
from onnxplain.graph.graph import Node, build
from onnxplain.graph.load import ValueSpec
from onnxplain.kernels.convolution import find_windows
from onnxplain.kernels.pooling import pool_windows

from .layers import LEAKY_SLOPE, PADDING_MODES, Shape, attribute_error

_MODES = {onnx_name: name for name, onnx_name in PADDING_MODES.items()}
Keys = dict[str, Any]


def to_layers(converter: Converter) -> dict[str, Any]:
    """Write the model of a converter in innsight's list format.

    Parameters
    ----------
    converter : Converter
        Any whose graph is made of what the format knows: linear layers and convolutions in one or
        two dimensions without groups, pooling without padding, batch normalisation and other
        scalings per channel, flattening, padding, concatenation, sums and the activations relu,
        leaky_relu (slope 0.01), softplus, sigmoid, tanh and softmax over the last axis.

    Returns
    -------
    dict
        Keys `input_dim`, `input_names`, `input_nodes`, `output_dim`, `output_names`,
        `output_nodes` and `layers`; it can be changed and given to `onnxplain.convert`. Weights
        are arrays (out, in, ...) of the type the model has.

    Raises
    ------
    ModelError
        If a node cannot be expressed; the message names it and says why.

    Examples
    --------
    >>> import onnxplain as ox
    >>> from onnxplain.demo import MODEL
    >>> model = to_layers(ox.convert(MODEL))
    >>> [layer["type"] for layer in model["layers"]][:5]
    ['Conv2D', 'Conv2D', 'Add', 'Activation', 'MaxPooling2D']
    """
    return _Writer(converter).model()


class _Inexpressible(Exception):
    """Why a node has no place in the list format."""


class _Writer:
    """The layers written so far, and which of them makes which tensor."""

    def __init__(self, converter: Converter):
        self.converter = converter
        # Not the graph that is walked: it has batch normalisation inside convolutions.
        plain = build(converter.raw, optimise=False, outputs=converter.graph.outputs)
        graph, trial = examine(plain, converter.input_dim)
        self.inputs = graph.inputs
        self.shapes: Mapping[str, Shape] = trial.shapes
        self.active = graph.active
        self.draft = Draft(graph.nodes, dict(graph.weights), graph.outputs, set(graph.active))
        join_activations(self.draft)
        self.layers: list[Keys] = []
        self.made: dict[str, int] = {}  # number of the layer that makes a tensor
        self.entries: dict[str, int] = {}  # number of the layer that takes an input of the model
        self.written: set[str] = set()  # names of nodes that went into the layer before them

    def model(self) -> Keys:
        """Return the whole model."""
        for spec in self.inputs:
            self._enter(spec)
        for node in self.draft.nodes:
            if node.name not in self.written and self.active.intersection(node.outputs):
                self._write(node)
        return {
            "input_dim": list(self.converter.input_dim),
            "input_names": self.converter.input_names,
            "input_nodes": [self.entries[spec.name] for spec in self.inputs],
            "output_dim": list(self.converter.output_dim),
            "output_names": self.converter.output_names,
            "output_nodes": self._ends(),
            "layers": self.layers,
        }

    def _enter(self, spec: ValueSpec) -> None:
        """Let a model input go to one layer: more, or one that merges, get it from a copy."""
        if not is_float(spec.dtype):
            raise ModelError(
                f"input '{spec.name}' holds whole numbers, which the list format does not know"
            )
        if len(self.dim(spec.name)) > 3:
            raise ModelError(
                f"input '{spec.name}' has shape {self.dim(spec.name)}, "
                "inputs have 1 to 3 axes in the list format"
            )
        self.made[spec.name] = 0
        if self.user(spec.name, *_MERGING) or not self.user(spec.name):
            self._append({"type": "Skipping"}, [spec.name], spec.name)

    def _ends(self) -> list[int]:
        for name, dim in zip(self.draft.outputs, self.converter.output_dim, strict=True):
            if len(dim) != 1:
                raise ModelError(
                    f"output '{name}' has shape {dim}, outputs are vectors in the list format"
                )
        ends = [self.made[name] for name in self.draft.outputs]
        for i, layer in enumerate(self.layers, 1):
            after = [j for j, other in enumerate(self.layers, 1) if i in other["input_layers"]]
            layer["output_layers"] = after + [-1] * (i in ends)
        return ends

    def _write(self, node: Node) -> None:
        try:
            if node.domain or node.op not in _WRITERS:
                raise _Inexpressible("there is no layer for this operator")
            keys, output = _WRITERS[node.op](self, node)
        except _Inexpressible as why:
            raise ModelError(f"{node.label} cannot be written in the list format: {why}") from None
        self._append(keys, [name for name in node.inputs if name in self.active], output)

    def _append(self, keys: Keys, inputs: Sequence[str], output: str) -> None:
        index = len(self.layers) + 1
        sources = [self.made[name] for name in inputs]
        self.entries.update({name: index for name in inputs if self.made[name] == 0})
        dims = [self.dim(name) for name in inputs]
        self.layers.append(
            {
                "type": keys.pop("type"),
                "input_layers": sources,
                "output_layers": [],
                "dim_in": dims if len(dims) > 1 else dims[0],
                "dim_out": self.dim(output),
                **keys,
            }
        )
        self.made[output] = index

    # -- what the writers of layers look up --

    def dim(self, tensor: str) -> Shape:
        """Return a shape without batch axis."""
        return tuple(self.shapes[tensor][1:])

    def constant(self, tensor: str) -> np.ndarray:
        """Return a copy of a weight."""
        value = self.draft.constant(tensor)
        if value is None:
            raise _Inexpressible(f"{tensor!r} is computed where the format has fixed weights")
        return np.array(value)

    def user(self, tensor: str, *ops: str) -> Node | None:
        """Return the node that uses a tensor, if it is the only one and of these operators."""
        if not self.draft.alone(tensor) or tensor in self.draft.outputs:
            return None
        node = next(n for n in self.draft.nodes if tensor in n.inputs)
        return node if not ops or (node.op in ops and not node.domain) else None

    def take(self, node: Node) -> str:
        """Note that a node goes into the layer before it; return what it makes."""
        self.written.add(node.name)
        return node.outputs[0]

    def with_activation(self, keys: Keys, tensor: str) -> tuple[Keys, str]:
        """Add the activation that follows a layer, if the format lets it be part of it."""
        node = self.user(tensor, *_ACTIVATIONS)
        own = node is not None and _listed_after(node, len(self.layers) + 1)
        name = None if node is None or own else _activation_name(self, node)
        if node is None or name is None:
            return keys | {"activation_name": "linear"}, tensor
        return keys | {"activation_name": name}, self.take(node)


def _listed_after(node: Node, index: int) -> bool:
    """Tell an activation that was a layer of its own in a list, behind layer `index`."""
    number = node.name.removeprefix("Activation_")
    return number != node.name and number.isdecimal() and int(number) > index


# -- activations ----------------------------------------------------------------------------------

_PLAIN = {"Relu": "relu", "Softplus": "softplus", "Sigmoid": "sigmoid", "Tanh": "tanh"}
_ACTIVATIONS = (*_PLAIN, "LeakyRelu", "PRelu", "Softmax")


def _activation_name(writer: _Writer, node: Node) -> str | None:
    """Return innsight's name of an activation, None if it has none."""
    if node.op in _PLAIN:
        return _PLAIN[node.op]
    if node.op == "Softmax":
        rank = len(writer.dim(node.inputs[0])) + 1
        axis = node.attributes.get("axis", -1 if node.opset >= 13 else 1)
        return "softmax" if axis in (-1, rank - 1) else None
    if node.op == "LeakyRelu":
        slope = np.array(node.attributes.get("alpha", 0.01))
    else:
        slope = writer.draft.constant(node.inputs[1])
    close = slope is not None and np.all(slope.astype(np.float32) == np.float32(LEAKY_SLOPE))
    return "leaky_relu" if close else None


def _activation(writer: _Writer, node: Node) -> tuple[Keys, str]:
    name = _activation_name(writer, node)
    if name is None:
        raise _Inexpressible(
            "softmax is known over the last axis, leaky_relu with slope 0.01, nothing else"
        )
    return {"type": "Activation", "act_name": name}, node.outputs[0]


def _skip(writer: _Writer, node: Node) -> tuple[Keys, str]:
    if node.op == "Identity" and _listed_after(node, len(writer.layers)):
        return {"type": "Activation", "act_name": "linear"}, node.outputs[0]
    if node.op == "Dropout" and (node.input(2) or any(node.outputs[1:])):
        raise _Inexpressible("it is in training mode or its mask is used")
    return {"type": "Skipping"}, node.outputs[0]


# -- linear layers --------------------------------------------------------------------------------


def _gemm(writer: _Writer, node: Node) -> tuple[Keys, str]:
    if node.attributes.get("transA", 0):
        raise _Inexpressible("the data are transposed")
    w = writer.constant(node.inputs[1])
    w = w if node.attributes.get("transB", 0) else w.T
    w = w * w.dtype.type(node.attributes.get("alpha", 1.0))
    b = np.zeros(len(w), w.dtype)
    if node.input(2):
        c = writer.constant(node.inputs[2])
        if c.ndim > 1 and c.shape[0] != 1:
            raise _Inexpressible("its bias differs between rows")
        b = b + c.reshape(-1) * w.dtype.type(node.attributes.get("beta", 1.0))
    keys = {"type": "Dense", "weight": np.ascontiguousarray(w), "bias": b}
    return writer.with_activation(keys, node.outputs[0])


def _matmul(writer: _Writer, node: Node) -> tuple[Keys, str]:
    if node.inputs[0] not in writer.active:
        raise _Inexpressible("the weight stands on the left")
    w = writer.constant(node.inputs[1])
    if w.ndim != 2:
        raise _Inexpressible(f"the weight has shape {w.shape}, a matrix is expected")
    w = np.ascontiguousarray(w.T)
    b, output = np.zeros(len(w), w.dtype), node.outputs[0]
    add = writer.user(output, "Add")
    c = writer.draft.constant(next(i for i in add.inputs if i != output)) if add else None
    if add and c is not None and c.size in (1, len(w)) and c.shape[-1:] in ((), (1,), (len(w),)):
        b, output = b + c.reshape(-1), writer.take(add)
    return writer.with_activation({"type": "Dense", "weight": w, "bias": b}, output)


def _conv(writer: _Writer, node: Node) -> tuple[Keys, str]:
    if node.attributes.get("group", 1) != 1:
        raise _Inexpressible("it has groups")
    w = writer.constant(node.inputs[1])
    rank = _rank(writer, node)
    b = writer.constant(node.inputs[2]) if node.input(2) else np.zeros(len(w), w.dtype)
    win = find_windows(node.kernel, writer.dim(node.inputs[0])[1:], w.shape[2:])
    keys = {
        "type": f"Conv{rank}D",
        "weight": w,
        "bias": b,
        "stride": _plain(win.strides),
        "padding": _sides(win.pads),
        "dilation": _plain(win.dilations),
    }
    return writer.with_activation(keys, node.outputs[0])


def _rank(writer: _Writer, node: Node) -> int:
    """Return the number of spatial axes."""
    rank = len(writer.dim(node.inputs[0])) - 1
    if rank not in (1, 2):
        raise _Inexpressible(f"it has {rank} spatial axes, the format knows 1 and 2")
    return rank


def _plain(values: Sequence[int]) -> int | Shape:
    """Return one number for one axis."""
    return tuple(values) if len(values) > 1 else values[0]


def _sides(pads: Sequence[tuple[int, int]]) -> Shape:
    """Return (left, right) or (left, right, top, bottom) from pairs, height first."""
    return tuple(n for pair in reversed(pads) for n in pair)


def _batch_norm(writer: _Writer, node: Node) -> tuple[Keys, str]:
    if node.attributes.get("training_mode", 0):
        raise _Inexpressible("it is in training mode")
    gamma, beta, mean, var = (writer.constant(name) for name in node.inputs[1:5])
    epsilon = np.float32(node.attributes.get("epsilon", 1e-5))
    decimal = float(str(epsilon))  # what was meant before it was rounded to float32
    exact = var - attribute_error(decimal, var.dtype)
    usable = bool(np.all(exact >= 0))
    return {
        "type": "BatchNorm",
        "num_features": len(gamma),
        "eps": decimal if usable else float(epsilon),
        "gamma": gamma,
        "beta": beta,
        "run_mean": mean,
        "run_var": exact if usable else var,
    }, node.outputs[0]


def _affine(writer: _Writer, node: Node) -> tuple[Keys, str]:
    """A scale and shift by constants is a batch normalisation."""
    affine = as_affine(writer.draft, node)
    if affine is None:
        raise _Inexpressible("both of its inputs carry data")
    x, w, b = affine
    dim = writer.dim(x)
    gamma, beta = (_per_channel(v, dim) for v in (w, b))
    return {
        "type": "BatchNorm",
        "num_features": dim[0],
        "eps": 0.0,
        "gamma": gamma,
        "beta": beta,
        "run_mean": np.zeros_like(gamma),
        "run_var": np.ones_like(gamma),
    }, node.outputs[0]


def _per_channel(v: np.ndarray, dim: Shape) -> np.ndarray:
    """Return a constant as one number per channel."""
    shape = (1,) * (len(dim) + 1 - v.ndim) + v.shape
    if len(shape) > len(dim) + 1 or shape[0] != 1 or any(n != 1 for n in shape[2:]):
        raise _Inexpressible(f"its constant of shape {v.shape} differs within a channel")
    return np.broadcast_to(v.reshape(-1), dim[:1]).copy()


# -- pooling --------------------------------------------------------------------------------------


def _pool(writer: _Writer, node: Node) -> tuple[Keys, str]:
    rank = _rank(writer, node)
    if any(node.outputs[1:]):
        raise _Inexpressible("the places of its maxima are used")
    win, _ = pool_windows(node.kernel, writer.dim(node.inputs[0])[1:])
    if any(map(any, win.pads)):
        raise _Inexpressible("its windows reach over the edge (padding or ceil_mode)")
    if any(d != 1 for d in win.dilations):
        raise _Inexpressible("it has dilations")
    keys = {"kernel_size": _plain(win.kernel), "strides": _plain(win.strides)}
    return {"type": f"{node.op.removesuffix('Pool')}Pooling{rank}D", **keys}, node.outputs[0]


def _global_pool(writer: _Writer, node: Node) -> tuple[Keys, str]:
    method = "max" if "Max" in node.op else "average"
    x, y = node.inputs[0], node.outputs[0]
    rank = _rank(writer, node)
    if node.op.startswith("Reduce") and not _over_space(writer, node):
        raise _Inexpressible("it is not over all spatial axes")
    flat = writer.user(y, "Flatten", "Reshape", "Squeeze")
    if flat is not None and writer.dim(flat.outputs[0]) == writer.dim(x)[:1]:
        y = writer.take(flat)
    if len(writer.dim(y)) == 1:
        return {"type": "GlobalPooling", "method": method}, y
    kernel = _plain(writer.dim(x)[1:])  # one window over everything
    kind = {"max": "Max", "average": "Average"}[method]
    return {"type": f"{kind}Pooling{rank}D", "kernel_size": kernel, "strides": kernel}, y


def _over_space(writer: _Writer, node: Node) -> bool:
    axes = node.attributes.get("axes")
    if node.input(1):
        axes = writer.constant(node.inputs[1]).ravel().tolist()
    rank = len(writer.dim(node.inputs[0])) + 1
    return axes is not None and sorted(a % rank for a in axes) == list(range(2, rank))


# -- shapes, merges -------------------------------------------------------------------------------


def _reshape(writer: _Writer, node: Node) -> tuple[Keys, str]:
    x, y = writer.dim(node.inputs[0]), writer.dim(node.outputs[0])
    if writer.shapes[node.inputs[0]][0] != writer.shapes[node.outputs[0]][0]:
        raise _Inexpressible("it changes the batch axis")
    if x == y and node.op != "Flatten":
        return {"type": "Skipping"}, node.outputs[0]
    run = _flattened(x, y)
    if run is None:
        raise _Inexpressible(f"it takes {x} to {y}, which is no flattening of neighbouring axes")
    start, end = run
    end = -1 if end == len(x) - 1 else end + 2
    return {"type": "Flatten", "start_dim": start + 2, "end_dim": end}, node.outputs[0]


def _flattened(x: Shape, y: Shape) -> tuple[int, int] | None:
    """Return first and last of the axes of x that are one axis in y."""
    if y == (prod(x),):
        return 0, len(x) - 1
    for start in range(len(y)):
        end = start + len(x) - len(y)
        if end > start and y == (*x[:start], prod(x[start : end + 1]), *x[end + 1 :]):
            return start, end
    return None


def _pad(writer: _Writer, node: Node) -> tuple[Keys, str]:
    constants = [writer.constant(name) if name else None for name in node.inputs[1:]]
    dim = writer.dim(node.inputs[0])
    inputs = (None, *constants)
    widths = node.kernel.widths(len(dim) + 1, inputs)
    spatial = max(len(dim) - 1, 1)
    if any(map(any, widths[:-spatial])) or spatial > 2:
        raise _Inexpressible("it pads other axes than the spatial ones")
    if min(map(min, widths)) < 0:
        raise _Inexpressible("it cuts the data")
    return {
        "type": "Padding",
        "padding": _sides(widths[-spatial:]),
        "mode": _MODES[node.kernel.mode],
        "value": float(node.kernel.value_of(inputs)),
    }, node.outputs[0]


def _concatenate(writer: _Writer, node: Node) -> tuple[Keys, str]:
    _all_data(writer, node)
    rank = len(writer.dim(node.inputs[0])) + 1
    axis = node.attributes["axis"] % rank
    if axis == 0:
        raise _Inexpressible("it joins rows")
    return {"type": "Concatenate", "axis": axis + 1}, node.outputs[0]


def _add(writer: _Writer, node: Node) -> tuple[Keys, str]:
    if node.op == "Add" and as_affine(writer.draft, node) is not None:
        return _affine(writer, node)
    _all_data(writer, node)
    dims = [writer.dim(name) for name in node.inputs]
    if len(set(dims)) > 1:
        raise _Inexpressible(f"its inputs have different shapes {listed(dims)}")
    return {"type": "Add"}, node.outputs[0]


def _all_data(writer: _Writer, node: Node) -> None:
    fixed = [name for name in node.inputs if name not in writer.active]
    if fixed:
        raise _Inexpressible(f"its input {fixed[0]!r} carries no data")


_MERGING = ("Add", "Sum", "Concat")
_WRITERS: dict[str, Callable[[_Writer, Node], tuple[Keys, str]]] = {
    **dict.fromkeys(_ACTIVATIONS, _activation),
    **dict.fromkeys(("Identity", "Dropout", "Cast"), _skip),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Sub", "Mul", "Div"), _affine),
    **dict.fromkeys(("Add", "Sum"), _add),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    **dict.fromkeys(
        ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax"), _global_pool
    ),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "Pad": _pad,
    "Concat": _concatenate,
}
