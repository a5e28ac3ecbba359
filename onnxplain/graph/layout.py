"""Find inputs that have their channels last: images and signals as TensorFlow stores them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..errors import OnnxplainError
from .graph import Graph, Node, evaluate

_SPATIAL = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}


def channels_last(graph: Graph, input_dim: Sequence[tuple[int, ...]]) -> list[bool]:
    """Tell for each input whether its last axis becomes the channels of the first layer.

    The places of the input are followed through the nodes that only move elements to the first
    convolution or pooling, whose axis 1 is the channels.
    """
    return [
        len(dim) in (2, 3) and _ends_in_channels(graph, spec.name, dim)
        for spec, dim in zip(graph.inputs, input_dim, strict=True)
    ]


def _ends_in_channels(graph: Graph, name: str, dim: tuple[int, ...]) -> bool:
    # Places count from 1: padding fills in zeros.
    places = {name: np.arange(1, 1 + math.prod(dim), dtype=np.float64).reshape(1, *dim)}
    for node in graph.nodes:
        moved = next((t for t in node.inputs if t in places), None)
        if moved is None:
            continue
        if node.op in _SPATIAL and not node.domain:
            return _is_last(places[moved], dim)
        try:
            places |= _follow(graph, node, places)
        except OnnxplainError:
            return False
    return False


def _follow(graph: Graph, node: Node, places: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Move the places through a node that only moves elements; else nothing."""
    inputs = [places.get(t, graph.weights.get(t)) for t in node.inputs]
    known = all(x is not None or not t for x, t in zip(inputs, node.inputs, strict=True))
    if node.kernel.family != "routing" or not known:
        return {}
    return dict(zip(node.outputs, evaluate(node, node.kernel, inputs), strict=False))


def _is_last(places: np.ndarray, dim: tuple[int, ...]) -> bool:
    """Tell whether axis 1 of moved places counts the last axis of the input, not the first."""
    channels = np.arange(places.shape[1]).reshape(-1, *(1,) * (places.ndim - 2))
    inside = places > 0
    last = places.shape[1] == dim[-1] and _same((places - 1) % dim[-1], channels, inside)
    spatial = math.prod(dim[1:])
    first = places.shape[1] == dim[0] and _same((places - 1) // spatial, channels, inside)
    return last and not first


def _same(found: np.ndarray, channels: np.ndarray, inside: np.ndarray) -> bool:
    return bool(np.all((found == channels) | ~inside))
