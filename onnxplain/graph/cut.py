"""Inner tensors of a graph: which one a name means, and the graph cut in two at some of them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import SelectionError, listed, shown
from .graph import Graph, Node, bind
from .load import RawModel, ValueSpec


def head(graph: Graph, tensors: Sequence[str]) -> Graph:
    """Return the part of a graph that computes some of its tensors, with the same inputs."""
    nodes = _needed(graph.nodes, set(tensors), ())
    return replace(graph, nodes=tuple(nodes), outputs=tuple(tensors))


def tail(graph: Graph, tensors: Sequence[str], dtype: Any) -> Graph:
    """Return the graph with some of its tensors as its first inputs.

    Data enter there and nowhere else: further inputs that are still needed follow.
    """
    nodes = _needed(graph.nodes, set(graph.outputs), tensors)
    nodes = [_without_outputs(node, tensors) for node in nodes]
    used = {name for node in nodes for name in node.inputs} | set(graph.outputs)
    first = [ValueSpec(name, np.dtype(dtype), None) for name in tensors]
    rest = [spec for spec in graph.inputs if spec.name in used and spec.name not in tensors]
    bound, active = bind(nodes, (), tensors)
    return replace(
        graph,
        nodes=tuple(bound),
        inputs=(*first, *rest),
        active=active,
        sources=tuple(tensors),
    )


def _needed(nodes: Sequence[Node], wanted: set[str], given: Collection[str]) -> list[Node]:
    """Keep the nodes that the wanted tensors depend on where some tensors are given."""
    needed, kept = wanted.difference(given), []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            needed.update(name for name in node.inputs if name not in given)
            kept.append(node)
    return kept[::-1]


def _without_outputs(node: Node, tensors: Collection[str]) -> Node:
    if not any(name in tensors for name in node.outputs):
        return node
    return replace(node, outputs=tuple("" if n in tensors else n for n in node.outputs))


def downstream(graph: Graph, tensors: Collection[str]) -> set[str]:
    """Return these tensors and all that depend on them."""
    found = set(tensors)
    for node in graph.nodes:
        if found.intersection(node.inputs):
            found.update(name for name in node.outputs if name)
    return found


# -- names of inner tensors -----------------------------------------------------------------------


def find_tensor(name: str, graph: Graph, raw: RawModel) -> str:
    """Return the tensor of the graph that a name of the file means; it carries data."""
    found = graph.aliases.get(name, name)
    if found in graph.active:
        return found
    joined = _joined_into(name, graph, raw)
    if joined is not None:
        raise SelectionError(
            f"tensor {shown(name)} is computed inside {joined.label}, which several nodes were "
            f"joined to; the node gives {listed(joined.outputs)}"
        )
    inner = {n for node in raw.nodes for n in node.outputs} | {i.name for i in raw.inputs}
    if name in graph.weights or name in raw.initializers or name in inner:
        raise SelectionError(
            f"tensor {shown(name)} cannot be explained: it is constant, holds whole numbers, or "
            "does not depend on the explained data" + _nearest(name, graph.active)
        )
    raise SelectionError(f"the model has no tensor {shown(name)}{_nearest(name, graph.active)}")


def _nearest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, 5, 0.3) or sorted(known)
    return f"; tensors that can be explained: {listed(close, 5, 60)}"


def _joined_into(name: str, graph: Graph, raw: RawModel) -> Node | None:
    """Return the joined node that the producer of a tensor is part of."""
    maker = next((node.name for node in raw.nodes if name in node.outputs), None)
    return next((n for n in graph.nodes if maker in n.joined and len(n.joined) > 1), None)


def embeddings(raw: RawModel) -> list[str]:
    """Return tensors that look up whole-number inputs in a table of weights."""
    whole = {spec.name for spec in raw.inputs if spec.dtype.kind in "iu"}
    found = []
    for node in raw.nodes:
        if node.op in _KEEP_WHOLE and node.inputs[0] in whole:
            whole.update(node.outputs)
        table = raw.initializers.get(node.inputs[0]) if node.inputs else None
        looked_up = node.op == "Gather" and node.inputs[1] in whole
        if looked_up and table is not None and table.dtype.kind == "f":
            found.append(node.outputs[0])
        if node.op == "EmbedLayerNormalization" and node.inputs[0] in whole:
            found.append(node.outputs[0])
    return found


_KEEP_WHOLE = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"}
