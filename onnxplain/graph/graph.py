"""The graph that is walked: nodes with bound kernels, weights, and what carries data."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .. import kernels
from ..arrays import MAX_ELEMENTS, Array, checked_shape, is_device, is_float, to_host
from ..device import out_of_memory
from ..errors import ModelError, OnnxplainError, UnsupportedOpError, listed, shortened, shown
from ..kernels.base import Kernel
from .load import RawModel, RawNode, ValueSpec


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of the graph; `joined` names the nodes of the file it stands for."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    domain: str = ""
    joined: tuple[str, ...] = ()
    kernel: Any = None  # a Kernel once the graph is built

    @property
    def label(self) -> str:
        """Name, operator and opset, for messages."""
        op = f"{self.domain}.{self.op}" if self.domain else self.op
        return f"node {shown(self.name)} ({op}, opset {self.opset})"

    def input(self, i: int) -> str:
        """Return the name of input `i`, "" where it is left away."""
        return self.inputs[i] if i < len(self.inputs) else ""


@dataclass(frozen=True, slots=True)
class Graph:
    """A checked graph in executable order.

    `active` holds the names of tensors that depend on the data in a way that can be explained;
    they enter at `sources`, the float inputs if there are none. `aliases` maps names of the file
    that were dropped to the tensors that replace them.
    """

    nodes: tuple[Node, ...]
    weights: Mapping[str, Array]
    inputs: tuple[ValueSpec, ...]
    outputs: tuple[str, ...]
    opset: int
    active: frozenset[str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    fixed_batch: int | None = None  # only batches of this size run
    rows_first: bool = True  # axis 0 of every tensor with data is the batch
    sources: tuple[str, ...] = ()

    def producers(self) -> dict[str, Node]:
        """Map each tensor to the node that makes it."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def cast(self, dtype: Any, device: Any = None) -> Graph:
        """Return this graph with weights, and casts inside it, of another float type and place.

        Integer weights are shapes and indices: they stay on the host.
        """
        dtype = np.dtype(dtype)
        weights = {k: _cast(w, dtype, device) for k, w in self.weights.items()}
        nodes = tuple(_cast_node(n, dtype) for n in self.nodes)
        return replace(self, weights=weights, nodes=nodes)


def _cast(w: Array, dtype: np.dtype, device: Any) -> Array:
    if not is_float(w.dtype):
        return w
    w = w.astype(dtype, copy=False)
    return device.asarray(w) if device is not None and not is_device(w) else w


def _cast_node(node: Node, dtype: np.dtype) -> Node:
    """Make casts to a float type, and generated floats, follow the type of the computation."""
    kernel = node.kernel
    if kernel is None or not hasattr(kernel, "compute_dtype"):
        return node
    return replace(node, kernel=kernel.with_dtype(dtype))


# -- building -------------------------------------------------------------------------------------


@np.errstate(all="ignore")  # constants that are no numbers show in the outputs
def build(
    raw: RawModel,
    optimise: bool = True,
    outputs: Sequence[str] | None = None,
    sources: Sequence[str] = (),
) -> Graph:
    """Fold constants, join what exporters split, find what carries data, bind kernels.

    Parameters
    ----------
    raw : RawModel
        A checked model.
    optimise : bool, default True
        Join nodes to the layers they were; False keeps every node of the file.
    outputs : sequence of str, optional
        Tensors to compute instead of the model's outputs.
    sources : sequence of str, optional
        Tensors that are explained instead of the float inputs.
    """
    from .bodies import close, inner_nodes, join_bodies
    from .canonical import join
    from .expand import expand
    from .ml import join_probabilities
    from .quantised import sum_wide, write_with_floats
    from .sequences import resolve

    wanted = tuple(outputs) if outputs is not None else tuple(o.name for o in raw.outputs)
    nodes = [node_of(n, raw.opsets) for n in raw.nodes]
    nodes, weights = close(nodes, raw.initializers, raw.opsets)
    _check_wanted([*wanted, *sources], nodes, raw)
    nodes, weights = close(*expand(_needed(nodes, wanted), weights), raw.opsets)
    nodes, weights = fold(_needed(nodes, wanted), weights)
    _check_supported(list(inner_nodes(nodes)))
    nodes, weights = resolve(nodes, weights, raw.inputs, [*wanted, *sources])
    data = set(sources) or {i.name for i in raw.inputs if is_float(i.dtype)}
    nodes, weights = write_with_floats(nodes, weights, data, [*wanted, *sources])
    nodes, weights = fold(nodes, weights)
    aliases: dict[str, str] = {}
    if optimise:
        data = {i.name for i in raw.inputs if is_float(i.dtype)} | set(sources)
        nodes, weights, aliases = join(nodes, weights, [*wanted, *sources], data)
        nodes, weights = join_bodies(nodes, weights)
        nodes, weights = join_probabilities(nodes, weights, wanted, raw.inputs)
        nodes, weights = fold(nodes, weights)
    nodes, active = bind(sum_wide(nodes), raw.inputs, sources)
    used = {name for n in nodes for name in n.inputs} | set(wanted)
    return Graph(
        nodes=tuple(nodes),
        weights={k: w for k, w in weights.items() if k in used},
        inputs=raw.inputs,
        outputs=wanted,
        opset=raw.opsets.get("", 0),
        active=active,
        aliases=aliases,
        sources=tuple(sources),
    )


def node_of(raw: RawNode, opsets: Mapping[str, int]) -> Node:
    """Return a node of a file as one that has no kernel yet."""
    opset = opsets.get(raw.domain, 1)
    return Node(raw.name, raw.op, raw.inputs, raw.outputs, raw.attributes, opset, raw.domain)


def _check_wanted(wanted: Iterable[str], nodes: Sequence[Node], raw: RawModel) -> None:
    known = {name for n in nodes for name in n.outputs} | {i.name for i in raw.inputs}
    known |= set(raw.initializers)
    for name in wanted:
        if name not in known:
            raise ModelError(
                f"the graph has no tensor {shown(name)}; its outputs are "
                f"{listed(o.name for o in raw.outputs)}, and inner ones are named as in the file"
            )


def _needed(nodes: Sequence[Node], wanted: Iterable[str]) -> list[Node]:
    """Keep the nodes that the wanted tensors depend on."""
    needed, kept = set(wanted), []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            kept.append(node)
    return kept[::-1]


# What NumPy raises when a node's attributes or inputs do not go together.
FAILURES = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, MemoryError)


def make_kernel(node: Node, active: tuple[bool, ...]) -> Kernel | None:
    """Bind the attributes of a node to the kernel that serves it."""
    cls = kernels.find(node.op, node.opset, active, node.domain)
    if cls is None:
        return None
    attributes = kernels.schema_defaults(node.op, node.opset, node.domain) | dict(node.attributes)
    n_outputs = max((i + 1 for i, name in enumerate(node.outputs) if name), default=1)
    try:
        return cls(attributes, active, n_outputs)
    except OnnxplainError as error:
        raise type(error)(f"{node.label}: {shortened(str(error))}") from error
    except FAILURES as error:
        raise ModelError(
            f"{node.label} has attributes that cannot be used: {shortened(str(error))}"
        ) from error


def fold(
    nodes: Sequence[Node], weights: dict[str, np.ndarray]
) -> tuple[list[Node], dict[str, np.ndarray]]:
    """Evaluate at once what depends on no input, and take the branches that are known."""
    from .bodies import known_branch

    rest, ahead = [], deque(nodes)
    while ahead:
        node = ahead.popleft()
        branch = known_branch(node, weights)
        if branch is not None:
            ahead.extendleft(reversed(branch))
            continue
        constant = all(not name or name in weights for name in node.inputs)
        kernel = make_kernel(node, (False,) * len(node.inputs)) if constant else None
        if kernel is None:
            rest.append(node)
            continue
        values = evaluate(node, kernel, [weights.get(name) for name in node.inputs])
        weights.update(zip(node.outputs, values, strict=False))
    return rest, weights


def evaluate(node: Node, kernel: Any, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    """Run the forward pass of one node; errors name the node."""
    try:
        _check_broadcast(node, inputs)
        out = kernel.forward(*inputs)
    except OnnxplainError as error:
        raise type(error)(f"{node.label}: {shortened(str(error))}") from error
    except FAILURES as error:
        if out_of_memory(error):
            raise  # not the model's fault: fewer rows may fit
        shapes = listed("none" if x is None else tuple(x.shape) for x in inputs)
        reason = shortened(str(error)) or type(error).__name__
        raise ModelError(
            f"{node.label} cannot run on inputs of shapes {shapes}: {reason}"
        ) from error
    return out if isinstance(out, tuple) else (out,)


_BROADCASTING = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Mean", "Sum", "PRelu", "Where"),
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "MatMul"),
    *("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor"),
}


def _check_broadcast(node: Node, inputs: Sequence[Array | None]) -> None:
    """Refuse outer products of absurd size before NumPy takes the memory for them."""
    if node.op not in _BROADCASTING:
        return
    shapes = [x.shape for x in inputs if x is not None and x.ndim]
    if len(shapes) < 2 or math.prod(math.prod(shape) for shape in shapes) <= MAX_ELEMENTS:
        return
    try:
        joint = np.broadcast_shapes(*shapes)
    except ValueError:  # what does not broadcast does not grow this way
        return
    checked_shape(joint)


def _check_supported(nodes: Sequence[Node]) -> None:
    missing = [n for n in nodes if not kernels.versions(n.op, n.domain)]
    if not missing:
        return
    first = ", ".join(n.label for n in missing[:2])
    more = f" and {len(missing) - 2} more" if len(missing) > 2 else ""
    reason = next(filter(None, (kernels.ml.why_refused(n.op, n.domain) for n in missing)), None)
    if reason:
        raise UnsupportedOpError(f"no kernel for {first}{more}: {reason}")
    own = next((n for n in missing if n.domain not in _KNOWN_DOMAINS), None)
    raise UnsupportedOpError(
        f"no kernel for {first}{more}. Explain tensors before them with "
        "convert(model, outputs=[...]), or see onnxplain.registered_ops() for what there is"
        + (f"; for an operator of your own, write {_class_statement(own)}" if own else "")
    )


_KNOWN_DOMAINS = ("", "ai.onnx.ml", "com.microsoft")


def _class_statement(node: Node) -> str:
    """Return how a kernel for a node begins."""
    named = f"op={shown(node.op, 40)}, domain={shown(node.domain, 40)}"
    return f"a kernel: class MyOp(Elementwise, {named}), as docs/extending.md shows"


def bind(
    nodes: Sequence[Node], inputs: Sequence[ValueSpec], sources: Sequence[str] = ()
) -> tuple[list[Node], frozenset[str]]:
    """Find the tensors that carry data and give each node its kernel."""
    return bind_from(nodes, set(sources) or {i.name for i in inputs if is_float(i.dtype)})


def bind_from(nodes: Sequence[Node], active: set[str]) -> tuple[list[Node], frozenset[str]]:
    """Give each node its kernel, where these tensors carry data to start with."""
    bound = []
    for node in nodes:
        flags = tuple(name in active for name in node.inputs)
        kernel = make_kernel(node, flags)
        if kernel is None:
            raise UnsupportedOpError(_no_kernel(node, flags))
        bound.append(replace(node, kernel=kernel))
        carries = kernel.active_outputs()
        active.update(n for n, c in zip(node.outputs, carries, strict=False) if c and n)
    return bound, frozenset(active)


def _no_kernel(node: Node, flags: tuple[bool, ...]) -> str:
    since = kernels.versions(node.op, node.domain)
    if min(since) > node.opset:
        return f"{node.label}: this operator is known from opset {min(since)} on"
    data = [name for name, flag in zip(node.inputs, flags, strict=True) if flag]
    return (
        f"{node.label}: no rule for data on its inputs {listed(data)}; "
        "give the tensors before it as outputs, convert(model, outputs=[...])"
    )


def insert(graph: Graph, nodes: Sequence[Node], outputs: Sequence[str]) -> Graph:
    """Return the graph with more nodes at its end and other outputs."""
    bound, active = bind([*graph.nodes, *nodes], graph.inputs, graph.sources)
    kept = _needed(bound, outputs)
    return replace(graph, nodes=tuple(kept), outputs=tuple(outputs), active=active)


def constant_value(graph: Graph, name: str) -> np.ndarray | None:
    """Return a weight as a host array, None if the tensor is no weight."""
    value = graph.weights.get(name)
    return None if value is None else to_host(value)
