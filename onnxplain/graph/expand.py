"""Nodes that other nodes take the place of before anything else is done to a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import FunctionProto, GraphProto, NodeProto, helper

from ..errors import ModelError, OnnxplainError, shortened
from ..kernels import find, schema_defaults, versions
from ..kernels.expanded import Expanded
from .graph import FAILURES, Node, make_kernel
from .load import attributes_of

MAX_DEPTH = 8  # an operator is written with operators that are themselves written with others


def expand(
    nodes: Sequence[Node], weights: Mapping[str, np.ndarray]
) -> tuple[list[Node], dict[str, np.ndarray]]:
    """Return nodes and weights where every operator that is written with others is.

    These are the `Expanded`, and operators without a kernel that ONNX itself defines by others.
    """
    if not any(_class_of(node) or body_of(node, weights) for node in nodes):
        return list(nodes), dict(weights)
    draft = _Draft(nodes, dict(weights))
    return [new for node in nodes for new in draft.written(node)], draft.weights


def _class_of(node: Node) -> type[Expanded] | None:
    cls = find(node.op, node.opset, (False,) * len(node.inputs), node.domain)
    return cls if cls is not None and issubclass(cls, Expanded) else None


# -- operators that ONNX defines by others --------------------------------------------------------


def body_of(node: Node, weights: Mapping[str, np.ndarray]) -> FunctionProto | None:
    """Return ONNX's definition of an operator without a kernel by others that can be computed."""
    op, opset, domain = node.op, node.opset, node.domain
    if versions(op, domain) or not onnx.defs.has(op, opset, domain):
        return None
    schema: Any = onnx.defs.get_schema(op, opset, domain)  # onnx's stubs know no functions
    body = schema.function_body if schema.has_function else _body_for(node, schema, weights)
    return body if body is not None and _can_be_computed(body) else None


def _body_for(node: Node, schema: Any, weights: Mapping[str, np.ndarray]) -> FunctionProto | None:
    """Return the definition that depends on attributes and types of the inputs."""
    if not schema.has_context_dependent_function:
        return None
    given = {k: v for k, v in node.attributes.items() if v is not None}
    types = [_type_of(weights.get(name)).SerializeToString() for name in node.inputs]
    try:
        proto = helper.make_node(node.op, node.inputs, node.outputs, domain=node.domain, **given)
        body = schema.get_context_dependent_function(proto.SerializeToString(), types)
    except (TypeError, ValueError, RuntimeError):  # of sequences, of sub-graphs
        return None
    return FunctionProto.FromString(body) if body else None


def _can_be_computed(body: FunctionProto) -> bool:
    opsets = _imports(body)
    nodes = [
        Node("", n.op_type, tuple(n.input), tuple(n.output), {}, opsets.get(n.domain, 1), n.domain)
        for n in body.node
    ]
    return all(versions(n.op, n.domain) or body_of(n, {}) for n in nodes)


def _imports(body: FunctionProto) -> dict[str, int]:
    newest = {"": onnx.defs.onnx_opset_version()}  # bodies of ONNX's previews import none
    return newest | {entry.domain: entry.version for entry in body.opset_import}


def _type_of(weight: np.ndarray | None) -> onnx.TypeProto:
    """Return the type of an input; what is computed counts as float, whose casts follow a run."""
    dtype = np.dtype(np.float32) if weight is None else weight.dtype
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(dtype), None)


# -- writing --------------------------------------------------------------------------------------


class _Draft:
    """Names that are taken, and the weights so far."""

    def __init__(self, nodes: Sequence[Node], weights: dict[str, np.ndarray]):
        self.tensors = {name for n in nodes for name in (*n.inputs, *n.outputs)} | weights.keys()
        self.names = {node.name for node in nodes}
        self.weights = weights

    def written(self, node: Node, depth: int = 0) -> list[Node]:
        """Return what takes the place of a node: itself where it is not expanded."""
        cls = _class_of(node)
        body = body_of(node, self.weights) if cls is None else None
        if cls is None and body is None:
            return [node]
        if depth == MAX_DEPTH:
            raise ModelError(f"{node.label} is written with operators nested too deeply")
        writer = _Writer(node, cls.main if cls else "", cls.opset if cls else node.opset, self)
        if body is not None:
            defaults = schema_defaults(node.op, node.opset, node.domain)
            writer.function(body, defaults | dict(node.attributes))
        else:
            _write(node, writer)
        return [new for inner in writer.nodes for new in self.written(inner, depth + 1)]


def _write(node: Node, writer: _Writer) -> None:
    """Let the kernel of a node write what takes its place; errors name the node."""
    kernel = make_kernel(node, (False,) * len(node.inputs))
    try:
        kernel.expand(writer)
    except OnnxplainError as error:
        raise type(error)(f"{node.label}: {shortened(str(error))}") from error
    except FAILURES as error:
        reason = shortened(str(error)) or type(error).__name__
        raise ModelError(
            f"{node.label} has inputs or attributes that cannot be used: {reason}"
        ) from error


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

    def input(self, i: int) -> str:
        return self.node_.input(i)

    def output(self, i: int) -> str:
        return self.outputs[i] if i < len(self.outputs) else ""

    def constant(self, tensor: str) -> np.ndarray | None:
        return self.draft.weights.get(tensor)

    def weight(self, value: Any) -> str:
        name = free_name(f"{self.node_.name}.weight", self.draft.tensors)
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
        output = output or self._tensor(op)
        outputs = (output,) if isinstance(output, str) else tuple(output)
        self._add(op, inputs, outputs, attributes, self.opset if not domain else 1, domain)
        return outputs[0]

    def function(self, body: FunctionProto, attributes: Mapping[str, Any]) -> None:
        """Write the nodes of an ONNX function with the inputs and outputs of this node."""
        opsets = _imports(body)
        names = {"": "", **dict.fromkeys(body.input, "")}
        names |= dict(zip(body.input, self.inputs, strict=False))
        names |= {k: v for k, v in zip(body.output, self.outputs, strict=False) if v}
        for proto in body.node:
            for name in proto.output:
                names.setdefault(name, self._tensor(name))
            self._add(
                proto.op_type,
                [names[name] for name in proto.input],
                [names[name] for name in proto.output],
                _bound_attributes(proto, attributes, names),
                opsets.get(proto.domain, 1),
                proto.domain,
            )

    def _add(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        attributes: Mapping[str, Any],
        opset: int,
        domain: str,
    ) -> None:
        own = self.node_.name
        first = op == self.main and all(node.name != own for node in self.nodes)
        name = own if first else free_name(f"{own}/{op}", self.draft.names)
        joined = self.node_.joined or (own,)
        node = Node(name, op, tuple(inputs), tuple(outputs), attributes, opset, domain, joined)
        self.nodes.append(node)

    def _tensor(self, name: str) -> str:
        stem = next(name for name in reversed(self.outputs) if name)
        return free_name(f"{stem}/{name}", self.draft.tensors)


def _bound_attributes(
    proto: NodeProto, attributes: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Any]:
    """Return a node's attributes: own ones, and those that are the function's."""
    own, own_attributes = NodeProto(), [a for a in proto.attribute if not a.ref_attr_name]
    own.attribute.extend(own_attributes)
    for graph in (a.g for a in own.attribute if a.HasField("g")):
        _rename(graph, names)
    referred = {a.name: attributes.get(a.ref_attr_name) for a in proto.attribute if a.ref_attr_name}
    given = {name: value for name, value in referred.items() if value is not None}
    return attributes_of(own, proto.op_type) | given


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors from outside a sub-graph their new names."""
    inner = {i.name for i in graph.input} | {name for n in graph.node for name in n.output}
    outside = {old: new for old, new in names.items() if old not in inner}
    for node in graph.node:
        node.input[:] = [outside.get(name, name) for name in node.input]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, outside)


def free_name(name: str, taken: set[str]) -> str:
    """Return a name that is not taken yet, and take it."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name
