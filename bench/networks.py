"""Networks of the benchmark: one list of layers, from which every library builds the same model."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Layer = tuple[Any, ...]  # a kind, and for "dense" and "conv" weights and bias


@dataclass(frozen=True)
class Network:
    """Input shape without batch axis, and what stands in a row: sizes, "relu", "pool", "flat"."""

    input_dim: tuple[int, ...]
    plan: tuple[int | str, ...]

    def layers(self) -> list[Layer]:
        """Return the layers with seeded He-normal weights; the same in every process."""
        rng = np.random.default_rng(0)
        shape, layers = self.input_dim, []
        for step in self.plan:
            if isinstance(step, str):
                layers.append((step,))
                shape = _AFTER[step](shape)
                continue
            kind, kernel = ("conv", (3, 3)) if len(shape) == 3 else ("dense", ())
            size = (step, shape[0], *kernel)
            weight = rng.standard_normal(size, np.float32)
            weight *= np.float32(math.sqrt(2 / math.prod(size[1:])))
            layers.append((kind, weight, rng.normal(0, 0.1, step).astype(np.float32)))
            shape = (step, *shape[1:])
        return layers


_AFTER = {
    "relu": lambda shape: shape,
    "pool": lambda shape: (shape[0], shape[1] // 2, shape[2] // 2),
    "flat": lambda shape: (math.prod(shape),),
}


def _blocks(*blocks: tuple[int, ...]) -> tuple[int | str, ...]:
    """Return convolutions with ReLU, a pooling after each block."""
    steps = ((*(s for channels in block for s in (channels, "relu")), "pool") for block in blocks)
    return (*(s for block in steps for s in block), "flat")


_CNN = ((32, 32), (64, 64))
_VGG = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
_HEAD = (4096, "relu", 4096, "relu", 1000)

NETWORKS = {
    "mlp": Network((784,), (1024, "relu", 1024, "relu", 10)),
    "tabular": Network((20,), (64, "relu", 64, "relu", 2)),
    "tabular-shap": Network((30,), (64, "relu", 64, "relu", 3)),
    "cnn": Network((3, 32, 32), (*_blocks(*_CNN), 128, "relu", 10)),
    "vgg16": Network((3, 224, 224), (*_blocks(*_VGG), *_HEAD)),
}


def data(name: str, rows: int, seed: int = 1) -> np.ndarray:
    """Return random rows for a network."""
    shape = (rows, *NETWORKS[name].input_dim)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def onnx_bytes(name: str) -> bytes:
    """Return a network as an ONNX file."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, last = [], [], "x"
    for i, (kind, *arrays) in enumerate(NETWORKS[name].layers()):
        names = [f"{what}{i}" for what, _ in zip(("weight", "bias"), arrays, strict=False)]
        weights += [numpy_helper.from_array(a, n) for a, n in zip(arrays, names, strict=True)]
        op, attributes = _NODES[kind]
        nodes.append(helper.make_node(op, [last, *names], [f"y{i}"], **attributes))
        last = f"y{i}"
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *NETWORKS[name].input_dim])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", None])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


_NODES: dict[str, tuple[str, dict[str, Any]]] = {
    "conv": ("Conv", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "dense": ("Gemm", {"transB": 1}),
    "relu": ("Relu", {}),
    "pool": ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "flat": ("Flatten", {}),
}


def torch_module(name: str, copies: bool = False) -> Any:
    """Return a network as a torch module; flattening is no layer, captum's LRP knows none.

    `copies` copies tensors before and after a max-pool: captum's DeepLift mixes up the hooks of a
    ReLU and a pooling that share one.
    """
    import torch
    from torch import nn

    class Copy(nn.Module):
        def forward(self, x):
            return x.clone()

    class Flat(nn.Module):
        def __init__(self, before, after):
            super().__init__()
            self.before, self.after = before, after

        def forward(self, x):
            return self.after(torch.flatten(self.before(x), 1))

    def build(layers):
        built = []
        for layer in layers:
            around = [Copy()] if copies and layer[0] == "pool" else []
            built += [*around, _torch_layer(nn, torch, *layer), *around]
        return nn.Sequential(*built)

    layers = NETWORKS[name].layers()
    cut = next((i for i, layer in enumerate(layers) if layer[0] == "flat"), None)
    if cut is None:
        return build(layers).eval()
    return Flat(build(layers[:cut]), build(layers[cut + 1 :])).eval()


def _torch_layer(nn: Any, torch: Any, kind: str, weight: Any = None, bias: Any = None) -> Any:
    if kind in ("relu", "pool"):
        return nn.ReLU() if kind == "relu" else nn.MaxPool2d(2)
    size = weight.shape[1::-1]
    layer = nn.Conv2d(*size, 3, padding=1) if kind == "conv" else nn.Linear(*size)
    layer.weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)
    layer.bias = nn.Parameter(torch.from_numpy(bias), requires_grad=False)
    return layer


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(onnx_bytes(sys.argv[1]))
