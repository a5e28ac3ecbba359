"""Sub-graphs of nodes: what an If runs on one of two conditions, a Loop or a Scan in each step.

When a graph is built a sub-graph becomes a `Body`. All names in it are made unique in the model;
what it takes from outside (tensors, and its own weights, which move out) becomes further inputs of
its node. So whatever looks at the inputs of a node, or changes a weight, needs to know no bodies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import GraphProto

from ..errors import ModelError
from . import graph as graphs
from .expand import expand, free_name
from .load import ValueSpec, read_body

CONTROL = frozenset({"If", "Loop", "Scan"})


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """One step: nodes in order; the first inputs are handed in, others are taken from outside."""

    nodes: tuple[graphs.Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    handed: int  # how many of the inputs are handed in
    specs: tuple[ValueSpec, ...] = ()  # of the outputs, where the file tells

    def __repr__(self) -> str:
        return f"Body({len(self.nodes)} nodes)"


def bodies_of(node: graphs.Node) -> Iterator[Body]:
    """Run through the bodies of a node."""
    return (value for value in node.attributes.values() if isinstance(value, Body))


def has_body(node: graphs.Node) -> bool:
    """Tell whether a node runs a body."""
    return any(True for _ in bodies_of(node))


def inner_nodes(nodes: Iterable[graphs.Node]) -> Iterator[graphs.Node]:
    """Run through nodes and the nodes of their bodies."""
    for node in nodes:
        yield node
        for body in bodies_of(node):
            yield from inner_nodes(body.nodes)


def bound(body: Body, flags: Sequence[bool]) -> graphs.Graph:
    """Return the graph of one step, where these inputs carry data."""
    data = {name for name, flag in zip(body.inputs, flags, strict=True) if flag}
    nodes, active = graphs.bind_from(body.nodes, data)
    return graphs.Graph(tuple(nodes), {}, (), body.outputs, 0, active)


# -- reading --------------------------------------------------------------------------------------


def close(
    nodes: Sequence[graphs.Node], weights: Mapping[str, np.ndarray], opsets: Mapping[str, int]
) -> tuple[list[graphs.Node], dict[str, np.ndarray]]:
    """Give nodes with sub-graphs their bodies, and what these take from outside as inputs."""
    if not any(map(_subgraphs, nodes)):
        return list(nodes), dict(weights)
    closer = _Closer(nodes, dict(weights), opsets)
    return [new for node in nodes for new in closer.closed(node, {})], closer.weights


def _subgraphs(node: graphs.Node) -> dict[str, GraphProto]:
    if node.domain or node.op not in CONTROL:
        return {}
    return {k: v for k, v in node.attributes.items() if isinstance(v, GraphProto)}


class _Closer:
    """Names that are taken, and the weights so far."""

    def __init__(
        self,
        nodes: Sequence[graphs.Node],
        weights: dict[str, np.ndarray],
        opsets: Mapping[str, int],
    ):
        self.taken = {name for n in nodes for name in (*n.inputs, *n.outputs)} | weights.keys()
        self.weights, self.opsets = weights, opsets

    def closed(self, node: graphs.Node, scope: Mapping[str, str]) -> list[graphs.Node]:
        """Return a node with bodies, after nodes of these that are the same in every step.

        `scope` maps names of the sub-graph the node stands in, and of those around, to new ones.
        """
        node = _renamed(node, scope)
        found = _subgraphs(node)
        if not found:
            return [node]
        bodies = {key: self.read(graph, node, scope) for key, graph in found.items()}
        outside: list[graphs.Node] = []
        if node.op == "Loop":
            node, bodies["body"], outside = _without_constant_states(node, bodies["body"])
        if node.op != "If":  # whose branches may be there because they cannot always run
            moved, bodies["body"] = _same_in_every_step(bodies["body"])
            outside = [*moved, *outside]
        return [*outside, _with_captures(node, bodies)]

    def read(self, graph: GraphProto, node: graphs.Node, scope: Mapping[str, str]) -> Body:
        """Return a sub-graph as a body under new names, constants folded, weights moved out."""
        owner = node.name
        raw = read_body(graph)
        made = [name for node in raw.nodes for name in node.outputs if name]
        local = dict.fromkeys([*raw.inputs, *raw.initializers, *made])
        scope = {**scope, **{n: free_name(f"{owner}/{n}", self.taken) for n in local}}
        weights = {scope[name]: value for name, value in raw.initializers.items()}
        nodes = [graphs.node_of(inner, {**self.opsets, "": node.opset}) for inner in raw.nodes]
        nodes = [replace(inner, name=f"{owner}/{inner.name}") for inner in nodes]
        nodes = [new for inner in nodes for new in self.closed(inner, scope)]
        nodes, weights = expand(nodes, weights)
        nodes = [new for inner in nodes for new in self.closed(inner, {})]
        nodes, weights = graphs.fold(nodes, weights)
        self.weights.update(weights)
        outputs = tuple(scope.get(spec.name, spec.name) for spec in raw.outputs)
        inputs = tuple(scope[name] for name in raw.inputs)
        return Body(tuple(nodes), inputs, outputs, len(inputs), raw.outputs)


def _renamed(node: graphs.Node, scope: Mapping[str, str]) -> graphs.Node:
    return replace(
        node,
        inputs=tuple(scope.get(name, name) for name in node.inputs),
        outputs=tuple(scope.get(name, name) for name in node.outputs),
    )


def _with_captures(node: graphs.Node, bodies: Mapping[str, Body]) -> graphs.Node:
    """Return the node with its bodies, and all they take from outside as inputs at the end."""
    taken = dict.fromkeys(name for body in bodies.values() for name in _captured(body))
    handed = max(len(body.inputs) for body in bodies.values())
    given = len(node.inputs)
    fits = given >= handed if node.op == "Scan" else given in (*range(3), handed)
    if node.op != "If" and not fits:
        raise ModelError(f"{node.label} has {given} inputs, but its body takes {handed}")
    inputs = (*node.inputs, *("",) * (handed - given), *taken)
    changed = {k: replace(b, inputs=(*b.inputs, *taken)) for k, b in bodies.items()}
    return replace(node, inputs=inputs, attributes={**node.attributes, **changed})


def _captured(body: Body) -> list[str]:
    """Return the names that a body reads and does not make."""
    known = {*body.inputs, ""} | {name for node in body.nodes for name in node.outputs}
    read = (*(name for node in body.nodes for name in node.inputs), *body.outputs)
    return [name for name in dict.fromkeys(read) if name not in known]


# -- what does not change from step to step --------------------------------------------------------


def _without_constant_states(
    node: graphs.Node, body: Body
) -> tuple[graphs.Node, Body, list[graphs.Node]]:
    """Take out states that every step hands on as they are: while loops carry weights so."""
    if len(node.inputs) != len(body.inputs):
        return node, body, []
    origin = {n.outputs[0]: n.inputs[0] for n in body.nodes if n.op == "Identity" and not n.domain}
    same = [
        k
        for k, name in enumerate(body.inputs)
        if k >= 2 and _origin(body.outputs[k - 1], origin) == name
    ]
    if not same:
        return node, body, []
    outer = {body.inputs[k]: node.inputs[k] for k in same}
    gone = {k - 2 for k in same}
    copies = [
        graphs.Node(f"{node.name}/{body.inputs[k]}", "Identity", (node.inputs[k],), (name,), {}, 13)
        for k in same
        if (name := node.outputs[k - 2] if k - 2 < len(node.outputs) else "")
    ]
    body = Body(
        tuple(_renamed(n, outer) for n in body.nodes),
        _kept(body.inputs, {k + 2 for k in gone}),
        _kept(body.outputs, {k + 1 for k in gone}),
        body.handed - len(same),
        _kept(body.specs, {k + 1 for k in gone}),
    )
    inputs, outputs = _kept(node.inputs, {k + 2 for k in gone}), _kept(node.outputs, gone)
    return replace(node, inputs=inputs, outputs=outputs), body, copies


def _origin(name: str, origin: Mapping[str, str]) -> str:
    while name in origin:
        name = origin[name]
    return name


def _kept(values: Sequence[Any], gone: set[int]) -> tuple[Any, ...]:
    return tuple(value for i, value in enumerate(values) if i not in gone)


def _same_in_every_step(body: Body) -> tuple[list[graphs.Node], Body]:
    """Cut off the nodes that read nothing that changes, to be run once."""
    changing, moved, kept = set(body.inputs), [], []
    for node in body.nodes:
        if changing.intersection(node.inputs):
            changing.update(node.outputs)
            kept.append(node)
        else:
            moved.append(node)
    return moved, replace(body, nodes=tuple(kept))


# -- branches that are known -----------------------------------------------------------------------


def known_branch(node: graphs.Node, weights: Mapping[str, np.ndarray]) -> list[graphs.Node] | None:
    """Return the nodes of the one branch of an If that runs, None if that is not known."""
    if node.op != "If" or node.domain or node.inputs[0] not in weights:
        return None
    condition = weights[node.inputs[0]]
    if condition.size != 1 or not has_body(node):
        return None
    body = node.attributes["then_branch" if condition.any() else "else_branch"]
    names = dict(zip(body.inputs, node.inputs[1:], strict=True))
    copies = []
    for i, (inner, name) in enumerate(zip(body.outputs, node.outputs, strict=False)):
        if name and inner in names:  # taken from outside, or an output twice
            inner = names[inner]
            copies.append(graphs.Node(f"{node.name}/{i}", "Identity", (inner,), (name,), {}, 13))
        elif name:
            names[inner] = name
    return [*(_renamed(inner, names) for inner in body.nodes), *copies]


# -- joining --------------------------------------------------------------------------------------


def join_bodies(
    nodes: Sequence[graphs.Node], weights: dict[str, np.ndarray]
) -> tuple[list[graphs.Node], dict[str, np.ndarray]]:
    """Join what exporters split in bodies, too, and tell gates from other products."""
    from .canonical import join

    joined = []
    for node in nodes:
        bodies = {k: v for k, v in node.attributes.items() if isinstance(v, Body)}
        given = len(node.inputs)
        for key, body in bodies.items():
            given = len(node.inputs) - len(body.inputs) + body.handed
            body = _as_outside(node, body)
            inner, weights = join_bodies(body.nodes, weights)
            inner, weights, _ = join(inner, weights, body.outputs, set())
            bodies[key] = replace(body, nodes=tuple(_with_gates(inner, weights)))
        first = replace(node, inputs=node.inputs[:given])
        joined.append(_with_captures(first, bodies) if bodies else node)
    return joined, weights


def _as_outside(node: graphs.Node, body: Body) -> Body:
    """Return a body that knows what it takes from outside by its present names, and no list."""
    captured = body.inputs[body.handed :]
    names = dict(zip(captured, node.inputs[len(node.inputs) - len(captured) :], strict=True))
    return replace(
        body,
        nodes=tuple(_renamed(inner, names) for inner in body.nodes),
        inputs=body.inputs[: body.handed],
        outputs=tuple(names.get(name, name) for name in body.outputs),
    )


_GATES = frozenset({"Sigmoid", "HardSigmoid"})
_CUTS = frozenset({"Split", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Identity"})


def _with_gates(
    nodes: Sequence[graphs.Node], weights: Mapping[str, np.ndarray]
) -> list[graphs.Node]:
    """Make products with one sigmoid factor gates: recurrent layers are spelled out with them."""
    maker = {name: node for node in nodes for name in node.outputs}

    def is_gate(name: str) -> bool:
        node = maker.get(name)
        if node is None or node.domain:
            return False
        if node.op == "Sub" and node.inputs[0] in weights:  # 1 - gate
            return is_gate(node.inputs[1])
        return node.op in _GATES or (node.op in _CUTS and is_gate(node.inputs[0]))

    def marked(node: graphs.Node) -> graphs.Node:
        if node.op != "Mul" or node.domain or is_gate(node.inputs[0]) == is_gate(node.inputs[1]):
            return node
        inputs = node.inputs if is_gate(node.inputs[0]) else node.inputs[::-1]
        return replace(node, op="Gate", domain="onnxplain", opset=1, inputs=inputs)

    return [marked(node) for node in nodes]


# -- what a choice depends on ----------------------------------------------------------------------

_OF_SHAPES = frozenset({"Shape", "Size"})


def chooses_by_data(nodes: Sequence[graphs.Node], inputs: Iterable[str]) -> bool:
    """Tell whether a condition or a number of steps is computed from values of these tensors."""
    return _follow(nodes, set(inputs))


def _follow(nodes: Sequence[graphs.Node], data: set[str]) -> bool:
    """Add to `data` all names whose values depend on it; tell whether a choice does."""
    chosen = False
    for node in nodes:
        depends = bool(data.intersection(node.inputs)) and node.op not in _OF_SHAPES
        for body in bodies_of(node):
            chosen |= _follow_body(node, body, data)
        if depends:
            data.update(filter(None, node.outputs))
    return chosen


def _follow_body(node: graphs.Node, body: Body, data: set[str]) -> bool:
    if node.op == "If":
        inner = {b for b, name in zip(body.inputs, node.inputs[1:], strict=True) if name in data}
        return node.inputs[0] in data or _follow(body.nodes, inner)
    inner = {b for b, name in zip(body.inputs, node.inputs, strict=True) if name in data}
    chosen, before = False, -1
    while len(inner) > before:
        before = len(inner)
        chosen |= _follow(body.nodes, inner)
        if node.op == "Loop":
            states = zip(body.inputs[2 : body.handed], body.outputs[1:], strict=False)
            inner |= {name for name, out in states if out in inner}
    if node.op == "Loop":
        chosen |= bool(data.intersection(node.inputs[:2])) or body.outputs[0] in inner
    return chosen
