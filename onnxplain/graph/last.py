"""Leave the last activation of an output away: explain scores instead of probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .graph import Graph, Node, insert

# What may stand between the last activation and the output without changing a value.
_PASSING = {"Identity", "Dropout", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}
# What stores an activation in fewer bits goes with it: scores do not fit into its range.
_STORING = {"QuantizeLinear", "DequantizeLinear"}


def without_last_activation(graph: Graph) -> tuple[Graph, tuple[str, ...], tuple[str | None, ...]]:
    """Return the graph with one more output per output: the value before its last activation.

    Returns
    -------
    graph : Graph
        Its outputs are the old ones, then those targets that are new.
    targets : tuple of str
        The tensor to explain for each output; the output itself if no activation stands last.
    activations : tuple of str or None
        The operator left away.
    """
    producers = graph.producers()
    targets, new, activations = [], [], []
    for output in graph.outputs:
        path, activation = _last_activation(graph, producers, output)
        activations.append(activation.op if activation else None)
        if activation is None:
            targets.append(output)
            continue
        target, copies = _bypass(output, path, activation)
        targets.append(target)
        new.extend(copies)
    extra = [t for t in dict.fromkeys(targets) if t not in graph.outputs]
    unique = {node.name: node for node in new}  # outputs may share a part of their paths
    graph = insert(graph, list(unique.values()), [*graph.outputs, *extra])
    return graph, tuple(targets), tuple(activations)


def last_activations(graph: Graph) -> tuple[str | None, ...]:
    """Return the operator of the last activation of each output."""
    producers = graph.producers()
    found = [_last_activation(graph, producers, output)[1] for output in graph.outputs]
    return tuple(node.op if node else None for node in found)


def last_activation_nodes(graph: Graph, outputs: Sequence[str]) -> list[str]:
    """Return the names of the nodes that are the last activation of some output."""
    producers = graph.producers()
    found = [_last_activation(graph, producers, output)[1] for output in outputs]
    return [node.name for node in found if node is not None]


def _last_activation(
    graph: Graph, producers: dict[str, Node], output: str
) -> tuple[list[Node], Node | None]:
    """Return the nodes behind the last activation, the output's first, and the activation."""
    path, node = [], producers.get(output)
    while node is not None and _passes(node) and node.inputs[0] in graph.active:
        path.append(node)
        node = producers.get(node.inputs[0])
    return path, node if node is not None and node.kernel.activation else None


def _passes(node: Node) -> bool:
    return node.op in _STORING or (node.op in _PASSING and not node.domain)


def _bypass(output: str, path: list[Node], activation: Node) -> tuple[str, list[Node]]:
    """Return the target tensor and copies of the path that lead to it around the activation."""
    tensor = activation.inputs[activation.kernel.position]
    copies = []
    for node in reversed([n for n in path if n.op not in _STORING]):
        name = f"{node.outputs[0]}/before_{activation.op}"
        copies.append(
            replace(
                node,
                name=f"{node.name}/before_{activation.op}",
                inputs=(tensor, *node.inputs[1:]),
                outputs=(name,),
            )
        )
        tensor = name
    return tensor, copies
