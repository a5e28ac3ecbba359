"""Nodes that other nodes take the place of before anything else is done to a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ModelError
from ..kernels import find
from ..kernels.expanded import Expanded
from .graph import Node, make_kernel

MAX_DEPTH = 8  # an operator is written with operators that are themselves written with others


def expand(
    nodes: Sequence[Node], weights: Mapping[str, np.ndarray]
) -> tuple[list[Node], dict[str, np.ndarray]]:
    """Return nodes and weights where no node's operator is one of the `Expanded`."""
    if not any(map(_class_of, nodes)):
        return list(nodes), dict(weights)
    draft = _Draft(nodes, dict(weights))
    return [new for node in nodes for new in draft.written(node)], draft.weights


def _class_of(node: Node) -> type[Expanded] | None:
    cls = find(node.op, node.opset, (False,) * len(node.inputs), node.domain)
    return cls if cls is not None and issubclass(cls, Expanded) else None


class _Draft:
    """Names that are taken, and the weights so far."""

    def __init__(self, nodes: Sequence[Node], weights: dict[str, np.ndarray]):
        self.tensors = {name for n in nodes for name in (*n.inputs, *n.outputs)} | weights.keys()
        self.names = {node.name for node in nodes}
        self.weights = weights

    def written(self, node: Node, depth: int = 0) -> list[Node]:
        """Return what takes the place of a node: itself where it is not expanded."""
        cls = _class_of(node)
        if cls is None:
            return [node]
        if depth == MAX_DEPTH:
            raise ModelError(f"{node.label} is written with operators nested too deeply")
        writer = _Writer(node, cls.main, cls.opset, self)
        make_kernel(node, (False,) * len(node.inputs)).expand(writer)
        return [new for inner in writer.nodes for new in self.written(inner, depth + 1)]


@dataclass
class _Writer:
    """Collects what takes the place of a node."""

    node_: Node
    main: str
    opset: int
    draft: _Draft
    nodes: list[Node] = field(default_factory=list)

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.node_.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.node_.outputs

    def constant(self, tensor: str) -> np.ndarray | None:
        return self.draft.weights.get(tensor)

    def weight(self, value: Any) -> str:
        name = _free(f"{self.node_.name}.weight", self.draft.tensors)
        self.draft.weights[name] = np.asarray(value)
        return name

    def node(
        self,
        op: str,
        *inputs: str,
        output: str | Sequence[str] | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        own = self.node_.name
        name = own if op == self.main else _free(f"{own}/{op}", self.draft.names)
        output = output or _free(f"{self._stem}/{op}", self.draft.tensors)
        outputs = (output,) if isinstance(output, str) else tuple(output)
        opset = self.opset if not domain else 1
        joined = self.node_.joined or (own,)
        self.nodes.append(Node(name, op, inputs, outputs, attributes, opset, domain, joined))
        return outputs[0]

    @property
    def _stem(self) -> str:
        return next(name for name in reversed(self.outputs) if name)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
