"""Networks of the benchmark: one list of layers, from which every library builds the same model."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Layer = tuple[Any, ...]  # a kind, then its weights and settings
Shape = tuple[int, ...]
Draw = Callable[[Shape, Shape], tuple]  # shapes of a weight and of the layer's output -> weights


@dataclass(frozen=True)
class Conv:
    """A convolution with "same" padding."""

    channels: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1


@dataclass(frozen=True)
class Residual:
    """The sum of a branch and a shortcut, which may be empty."""

    branch: tuple[Any, ...]
    shortcut: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Network:
    """Input shape without batch axis, and the steps: sizes of layers, names of `_AFTER`, blocks."""

    input_dim: Shape
    plan: tuple[Any, ...]

    def layers(self) -> list[Layer]:
        """Return the layers with seeded He-normal weights; the same in every process."""
        rng = np.random.default_rng(0)
        return _grow(self.plan, self.input_dim, lambda size, after: _weights(size, rng))[0]

    def sizes(self) -> list[tuple[Shape, Shape]]:
        """Return the shapes of the weights of each layer, and of what it makes of one row."""
        found: list[tuple[Shape, Shape]] = []
        _grow(self.plan, self.input_dim, lambda *shapes: found.append(shapes) or ())
        return found


def _grow(plan: tuple[Any, ...], shape: Shape, draw: Draw) -> tuple[list, Shape]:
    layers = []
    for step in plan:
        if isinstance(step, int) and len(shape) == 3:
            step = Conv(step)
        layer, shape = _layer(step, shape, draw)
        layers.append(layer)
    return layers, shape


def _layer(step: Any, shape: Shape, draw: Draw) -> tuple[Layer, Shape]:
    if isinstance(step, str):
        return (step,), _AFTER[step](shape)
    if isinstance(step, Residual):
        branch, after = _grow(step.branch, shape, draw)
        return ("residual", branch, _grow(step.shortcut, shape, draw)[0]), after
    if isinstance(step, Conv):
        size = (step.channels, shape[0] // step.groups, step.kernel, step.kernel)
        after = (step.channels, *(-(-n // step.stride) for n in shape[1:]))
        return ("conv", *draw(size, after), step.stride, step.groups), after
    return ("dense", *draw((step, *shape), (step,))), (step,)


def _weights(size: Shape, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight and bias of a layer."""
    weight = rng.standard_normal(size, np.float32)
    weight *= np.float32(math.sqrt(2 / math.prod(size[1:])))
    return weight, rng.normal(0, 0.1, size[0]).astype(np.float32)


_AFTER = {
    "relu": lambda shape: shape,
    "relu6": lambda shape: shape,
    "pool": lambda shape: (shape[0], shape[1] // 2, shape[2] // 2),
    "pool3": lambda shape: (shape[0], -(-shape[1] // 2), -(-shape[2] // 2)),
    "mean": lambda shape: (shape[0], 1, 1),
    "flat": lambda shape: (math.prod(shape),),
}


def _blocks(*blocks: tuple[int, ...]) -> tuple[int | str, ...]:
    """Return convolutions with ReLU, a pooling after each block."""
    steps = ((*(s for channels in block for s in (channels, "relu")), "pool") for block in blocks)
    return (*(s for block in steps for s in block), "flat")


def _bottlenecks(*stages: tuple[int, int]) -> tuple[Any, ...]:
    """Return ResNet's stages: channels inside a bottleneck and number of blocks."""
    steps: list[Any] = []
    for number, (channels, blocks) in enumerate(stages):
        for block in range(blocks):
            stride = 2 if block == 0 and number > 0 else 1
            branch = (
                *(Conv(channels, 1), "relu", Conv(channels, 3, stride), "relu"),
                Conv(4 * channels, 1),
            )
            shortcut = (Conv(4 * channels, 1, stride),) if block == 0 else ()
            steps += [Residual(branch, shortcut), "relu"]
    return tuple(steps)


def _inverted(*stages: tuple[int, int, int]) -> tuple[Any, ...]:
    """Return MobileNetV2's stages: channels, number of blocks, stride of the first."""
    steps: list[Any] = []
    before = 32
    for channels, blocks, first in stages:
        for block in range(blocks):
            wide, stride = 6 * before, first if block == 0 else 1
            branch = (
                *(Conv(wide, 1), "relu6", Conv(wide, 3, stride, wide), "relu6"),
                Conv(channels, 1),
            )
            same = stride == 1 and channels == before
            steps += [Residual(branch)] if same else branch
            before = channels
    return tuple(steps)


_CNN = ((32, 32), (64, 64))
_VGG = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
_HEAD = (4096, "relu", 4096, "relu", 1000)
_RESNET = _bottlenecks((64, 3), (128, 4), (256, 6), (512, 3))
_MOBILE = _inverted((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))

NETWORKS = {
    "mlp": Network((784,), (1024, "relu", 1024, "relu", 10)),
    "wide": Network((784,), (1024, "relu", 1024, "relu", 1000)),
    "tabular": Network((30,), (64, "relu", 64, "relu", 3)),
    "cnn": Network((3, 32, 32), (*_blocks(*_CNN), 128, "relu", 10)),
    "vgg16": Network((3, 224, 224), (*_blocks(*_VGG), *_HEAD)),
    "resnet50": Network(
        (3, 224, 224), (Conv(64, 7, 2), "relu", "pool3", *_RESNET, "mean", "flat", 1000)
    ),
    "mobilenet": Network(
        (3, 224, 224),
        (Conv(32, 3, 2), "relu6", *_MOBILE, Conv(1280, 1), "relu6", "mean", "flat", 1000),
    ),
}


def data(name: str, rows: int, seed: int = 1) -> np.ndarray:
    """Return random rows for a network."""
    shape = (rows, *NETWORKS[name].input_dim)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def onnx_bytes(name: str) -> bytes:
    """Return a network as an ONNX file."""
    from onnx import TensorProto, helper

    nodes: list[Any] = []
    weights: list[Any] = []
    last = _write(NETWORKS[name].layers(), "x", nodes, weights)
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *NETWORKS[name].input_dim])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", None])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=8)
    return model.SerializeToString()


def _write(layers: list[Layer], last: str, nodes: list, weights: list) -> str:
    """Add the nodes of some layers behind a tensor; return what the last one makes."""
    from onnx import helper, numpy_helper

    for kind, *parts in layers:
        if kind == "residual":
            ends = [_write(part, last, nodes, weights) for part in parts]
            op, inputs, attributes = "Add", ends, {}
        else:
            op, attributes = _NODES[kind](parts)
            inputs = [last, *(f"w{len(weights) + i}" for i in range(2 * (kind in WEIGHTED)))]
            weights += [
                numpy_helper.from_array(w, n) for w, n in zip(parts, inputs[1:], strict=False)
            ]
        last = f"y{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [last], **attributes))
    return last


WEIGHTED = ("conv", "dense")
_NODES: dict[str, Any] = {
    "conv": lambda parts: ("Conv", _conv(*parts)),
    "dense": lambda parts: ("Gemm", {"transB": 1}),
    "relu": lambda parts: ("Relu", {}),
    "relu6": lambda parts: ("Clip", {"min": 0.0, "max": 6.0}),
    "pool": lambda parts: ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "pool3": lambda parts: (
        "MaxPool",
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    ),
    "mean": lambda parts: ("GlobalAveragePool", {}),
    "flat": lambda parts: ("Flatten", {}),
}


def _conv(weight: np.ndarray, bias: np.ndarray, stride: int, groups: int) -> dict[str, Any]:
    kernel = weight.shape[2]
    return {
        "kernel_shape": [kernel, kernel],
        "pads": [kernel // 2] * 4,
        "strides": [stride, stride],
        "group": groups,
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(onnx_bytes(sys.argv[1]))
