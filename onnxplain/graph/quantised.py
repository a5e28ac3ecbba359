"""Graphs that round: whole numbers with data, and sums that do not depend on their order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import UnsupportedOpError
from ..kernels.quantised import OF_DATA
from .expand import _Draft, _Writer
from .graph import Graph, Node, make_kernel

ROUNDING = {"QuantizeLinear", "DynamicRounding"}
_DYNAMIC = {"DynamicRounding", "DynamicQuantizeLinear"}
_SUMS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_MAKE_WHOLE = {"QuantizeLinear", "ConvInteger", "MatMulInteger"}
_MAKE_REAL = {"DequantizeLinear", "Cast", "CastLike"}
_DIVISIONS = {"Div", "Mod", "Mean", "ReduceMean"}
# What reads bytes with their scale, moves them, or reads the scale itself.
_KNOW_SCALES = {
    *("DequantizeLinear", "ConvInteger", "MatMulInteger", "Mul", "Cast", "Identity"),
    *("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather"),
}
_ARITHMETIC = {"Add", "Sub", "Mul", "Max", "Min", "Sum", "Where", "Clip"}


def write_with_floats(
    nodes: Sequence[Node],
    weights: dict[str, np.ndarray],
    data: Collection[str],
    wanted: Collection[str],
) -> tuple[list[Node], dict[str, np.ndarray]]:
    """Write operators on whole numbers that carry data with operators on floats.

    Parameters
    ----------
    data : collection of str
        Tensors in which data enter.
    wanted : collection of str
        Tensors that keep their values: bytes and their scale become real numbers and 1.
    """
    if not any(node.op in OF_DATA or node.op == "QuantizeLinear" for node in nodes):
        return list(nodes), weights
    kept = set(wanted) | _read_as_bytes(nodes)
    draft, active, whole, written = _Draft(nodes, weights), set(data), set(), []
    for node in nodes:
        _check_division(node, whole)
        for new in _replaced(node, draft, active, kept):
            _follow(new, active)
            written.append(_with_float_constants(new, draft, active))
        if node.op in _MAKE_WHOLE or (
            node.op not in _MAKE_REAL and whole.intersection(node.inputs)
        ):
            whole.update(active.intersection(node.outputs))
    return written, draft.weights


def _read_as_bytes(nodes: Sequence[Node]) -> set[str]:
    """Return tensors that some operator reads without their scale and zero point."""
    return {name for node in nodes if node.op not in _KNOW_SCALES for name in node.inputs[:1]}


def _check_division(node: Node, whole: set[str]) -> None:
    """Refuse what cuts off fractions: floats that hold whole numbers would keep them."""
    if node.op in _DIVISIONS and not node.domain and whole.intersection(node.inputs):
        raise UnsupportedOpError(
            f"{node.label} divides whole numbers that carry data, which cuts fractions off: "
            "no signal passes there. Give the tensors before it as outputs, "
            "convert(model, outputs=[...])"
        )


def _replaced(node: Node, draft: _Draft, active: set[str], kept: set[str]) -> Sequence[Node]:
    cls = OF_DATA.get(node.op) if not node.domain else None
    stays = node.op == "DynamicQuantizeLinear" and kept.intersection(node.outputs)
    if cls is None or stays or not active.intersection(node.inputs):
        return [node]
    writer: Any = _Writer(node, cls.main, cls.opset, draft)
    cls(node.attributes, (False,) * len(node.inputs)).expand(writer)
    return writer.nodes


def _follow(node: Node, active: set[str]) -> None:
    """Add the outputs of a node that carry data."""
    flags = tuple(name in active for name in node.inputs)
    if not any(flags):
        return
    kernel = make_kernel(node, flags)
    carries = (True,) if kernel is None else kernel.active_outputs()
    active.update(n for n, c in zip(node.outputs, carries, strict=False) if c and n)


def _with_float_constants(node: Node, draft: _Draft, active: set[str]) -> Node:
    """Give arithmetic on whole numbers that are held as floats constants that are floats."""
    if node.domain or node.op not in _ARITHMETIC or not active.intersection(node.outputs):
        return node
    return replace(node, inputs=tuple(_float_constant(name, draft) for name in node.inputs))


def _float_constant(name: str, draft: _Draft) -> str:
    value = draft.weights.get(name)
    if value is None or value.dtype.kind not in "iu":
        return name
    new = f"{name} as float"
    draft.weights[new] = value.astype(np.float64)
    return new


def sum_wide(nodes: Sequence[Node]) -> list[Node]:
    """Let the layers of a graph that rounds sum in float64.

    Where rounding follows, the last bit of a sum decides between two steps: a row must not come out
    otherwise because of the rows beside it.
    """
    if not any(node.op in ROUNDING for node in nodes):
        return list(nodes)
    return [
        replace(n, attributes={**n.attributes, "wide": True}) if n.op in _SUMS else n for n in nodes
    ]


def rounds_dynamically(graph: Graph) -> bool:
    """Tell whether a tensor is rounded on its own range, that of all rows together."""
    return any(node.op in _DYNAMIC for node in graph.nodes)


def range_by_rows(graph: Graph) -> Graph:
    """Return the graph with the ranges of dynamic quantisation taken row by row."""
    if not rounds_dynamically(graph):
        return graph
    return replace(graph, nodes=tuple(map(_by_rows, graph.nodes)))


def _by_rows(node: Node) -> Node:
    if node.op != "DynamicRounding":
        return node
    node = replace(node, attributes={**node.attributes, "by_rows": True})
    return replace(node, kernel=make_kernel(node, node.kernel.active))
