"""Networks in ONNX, built from innsight's lists of layers or from a few nodes."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

OPSET = 20

ACTIVATIONS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "linear": None,
    "relu": ("Relu", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.01}),
    "softplus": ("Softplus", {}),
    "sigmoid": ("Sigmoid", {}),
    "logistic": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "softmax": ("Softmax", {"axis": -1}),
}


def graph(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[int]],
    weights: Mapping[str, Any] | None = None,
    dtype: Any = "float64",
    outputs: Mapping[str, Sequence[int | None]] | None = None,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Return a model of some nodes; the last node's first output is the model's by default.

    Parameters
    ----------
    inputs : mapping of str to shape
        Without the batch axis, which is free.
    weights : mapping of str to array, optional
        Floats are stored as `dtype`, whole numbers as int64.
    outputs : mapping of str to shape, optional
        Without the batch axis.
    """
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if outputs is None:
        outputs = {nodes[-1].output[0]: None}

    def info(name: str, shape: Any) -> onnx.ValueInfoProto:
        dims = None if shape is None else ["N", *shape]
        return helper.make_tensor_value_info(name, element, dims)

    arrays = {name: _typed(w, dtype) for name, w in (weights or {}).items()}
    stored = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    made = helper.make_graph(
        list(nodes),
        "network",
        [info(*item) for item in inputs.items()],
        [info(*item) for item in outputs.items()],
        stored,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def _typed(weight: Any, dtype: Any) -> np.ndarray:
    array = np.asarray(weight)
    return array if array.dtype == np.int64 and array.ndim else array.astype(dtype)


def layered(
    layers: Sequence[Mapping[str, Any]],
    input_dim: Sequence[int],
    dtype: Any = "float64",
    matmul: bool = False,
) -> onnx.ModelProto:
    """Return a chain of innsight's layers from tensor "input" to tensor "output".

    Parameters
    ----------
    layers : sequence of dict
        Types Dense, Conv1D, Conv2D, MaxPooling1D and 2D, AveragePooling1D and 2D, Flatten,
        Activation; keys as in innsight: weights (out, in, ...), padding (left, right, top, bottom).
    input_dim : shape
        Without batch axis, channels first.
    matmul : bool, default False
        Write Dense as MatMul and Add instead of Gemm.
    """
    chain = _Chain(matmul)
    for layer in layers:
        chain.add(layer)
    chain.nodes[-1].output[0] = "output"
    return graph(chain.nodes, {"input": input_dim}, chain.weights, dtype)


class _Chain:
    """Nodes that feed the next one each."""

    def __init__(self, matmul: bool) -> None:
        self.matmul = matmul
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def add(self, layer: Mapping[str, Any]) -> None:
        kind = layer["type"]
        if kind == "Dense":
            self._dense(layer)
        elif kind.startswith("Conv"):
            self._append("Conv", layer["weight"], layer["bias"], **_windows(layer))
        elif "Pooling" in kind:
            self._append(kind[:-9].removesuffix("Pooling") + "Pool", **_windows(layer))
        elif kind == "Flatten":
            self._append("Flatten", axis=1)
        elif kind != "Activation":
            raise ValueError(f"no layer {kind!r}")
        found = ACTIVATIONS[layer.get("activation_name", layer.get("act_name", "linear"))]
        if found is not None:
            self._append(found[0], **found[1])

    def _dense(self, layer: Mapping[str, Any]) -> None:
        if not self.matmul:
            self._append("Gemm", layer["weight"], layer["bias"], transB=1)
            return
        self._append("MatMul", np.transpose(layer["weight"]))
        self._append("Add", layer["bias"])

    def _append(self, op: str, *weights: Any, **attributes: Any) -> None:
        k = len(self.nodes)
        names = [f"w{k}_{j}" for j in range(len(weights))]
        arrays = (np.asarray(w, float) for w in weights)
        self.weights.update(zip(names, arrays, strict=True))
        before = self.nodes[-1].output[0] if self.nodes else "input"
        name = f"{op}_{k}"
        self.nodes.append(helper.make_node(op, [before, *names], [name], name=name, **attributes))


def _windows(layer: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return ONNX's attributes of a convolution or pooling."""
    rank = 1 if layer["type"].endswith("1D") else 2

    def each(key: str, default: Any) -> list[int]:
        value = np.ravel(layer.get(key, default)).tolist()
        return value * rank if len(value) == 1 else value

    if "kernel_size" in layer:
        kernel = each("kernel_size", None)
        return {"kernel_shape": kernel, "strides": each("strides", kernel)}
    pad = np.ravel(layer.get("padding", 0)).tolist()
    if len(pad) == 1:
        pad = pad * 2 * rank
    elif rank == 2 and len(pad) == 2:
        pad = [pad[0], pad[0], pad[1], pad[1]]
    # innsight: (left, right, top, bottom); ONNX: all begins, then all ends, height first.
    pads = pad if rank == 1 else [pad[2], pad[0], pad[3], pad[1]]
    return {"pads": pads, "strides": each("stride", 1), "dilations": each("dilation", 1)}


def dense(weight: Any, bias: Any = None, activation: str = "linear") -> dict[str, Any]:
    """Return a Dense layer of innsight's format; no bias is a bias of zeros."""
    weight = np.asarray(weight, float)
    bias = np.zeros(len(weight)) if bias is None else bias
    return {"type": "Dense", "weight": weight, "bias": bias, "activation_name": activation}


def random_dense(
    rng: np.random.Generator, sizes: Sequence[int], activation: str = "relu", bias: bool = True
) -> list[dict[str, Any]]:
    """Return Dense layers with normal weights; the last one is linear."""
    layers = []
    for k, (n, m) in enumerate(pairwise(sizes)):
        last = k == len(sizes) - 2
        b = 0.5 * rng.normal(size=m) if bias else None
        name = "linear" if last else activation
        layers.append(dense(rng.normal(size=(m, n)) / np.sqrt(n), b, name))
    return layers
