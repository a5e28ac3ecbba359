"""Graphs of ai.onnx.ml, as scikit-learn's exporter (skl2onnx) writes them.

Two things are done to them. Outputs that are maps from class to probability become the tensor of
probabilities. And the two columns 1 - p and p of two classes become one sigmoid of the log-odds of
either class, so that scores can be explained in the place of probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..kernels.ml import DOMAIN, class_labels
from .canonical import Draft
from .graph import Node
from .load import NEWEST_OPSET, RawModel, RawNode, ValueSpec

# -- outputs --------------------------------------------------------------------------------------


def without_maps(raw: RawModel) -> RawModel:
    """Return the model with each ZipMap passing the tensor on that it makes maps of."""
    maps = {node.outputs[0]: node for node in raw.nodes if _is(node, "ZipMap")}
    if not maps:
        return raw
    return replace(
        raw,
        nodes=tuple(_passing(n) if _is(n, "ZipMap") else n for n in raw.nodes),
        outputs=tuple(_table(maps[o.name]) if o.name in maps else o for o in raw.outputs),
        opsets={"": NEWEST_OPSET} | raw.opsets,
    )


def _is(node: RawNode | Node, op: str) -> bool:
    return node.domain == DOMAIN and node.op == op


def _passing(node: RawNode) -> RawNode:
    return replace(node, op="Identity", domain="", attributes={})


def _table(node: RawNode) -> ValueSpec:
    return ValueSpec(node.outputs[0], np.dtype(np.float32), (None, None))


def class_names(raw: RawModel) -> dict[str, list[str]]:
    """Return the names of the columns of tensors whose classes the file tells."""
    made = {name: node for node in raw.nodes for name in node.outputs}
    names: dict[str, list[str]] = {}
    for node in raw.nodes:
        labels, tensor = _classes(node, raw, made)
        if labels:
            names[tensor] = [v.decode() if isinstance(v, bytes) else str(v) for v in labels]
    for node in raw.nodes:  # what keeps columns keeps their names
        labels = names.get(node.inputs[0]) if node.inputs else None
        if labels and node.op in _KEEPING:
            names.setdefault(node.outputs[0], labels)
        elif labels and _is(node, "ArrayFeatureExtractor"):
            columns = raw.initializers.get(node.inputs[1])
            if columns is not None and np.isin(columns, range(len(labels))).all():
                names[node.outputs[0]] = [labels[i] for i in columns.ravel().astype(int)]
    return names


_KEEPING = {"Identity", "Cast", "Normalizer", "Softmax", "Sigmoid", "ZipMap"}


def _classes(node: RawNode, raw: RawModel, made: Mapping[str, RawNode]) -> tuple[list[Any], str]:
    """Return the classes that a node tells, and the tensor that has a column for each."""
    if _is(node, "ArrayFeatureExtractor"):  # looks up the label at the place of the largest
        labels, place = raw.initializers.get(node.inputs[0]), made.get(node.inputs[1])
        if labels is not None and place is not None and place.op == "ArgMax":
            return labels.ravel().tolist(), place.inputs[0]
    if _is(node, "LinearClassifier") and len(node.outputs) > 1:
        return class_labels(node.attributes), node.outputs[1]
    if _is(node, "ZipMap"):
        return class_labels(node.attributes), node.inputs[0]
    return [], ""


# -- probabilities --------------------------------------------------------------------------------


def join_probabilities(
    nodes: Sequence[Node],
    weights: dict[str, np.ndarray],
    outputs: Sequence[str],
    inputs: Iterable[ValueSpec],
) -> tuple[list[Node], dict[str, np.ndarray]]:
    """Join what stands between scores and probabilities to one activation."""
    draft = Draft(nodes, weights, outputs, set())
    matrices = {i.name for i in inputs if i.shape is not None and len(i.shape) == 2}
    for node in nodes:
        _normalised_softmax(draft, node)
        _two_columns(draft, node, matrices)
    return draft.nodes, draft.weights


def _normalised_softmax(draft: Draft, node: Node) -> None:
    """The probabilities of a softmax add up to 1 already."""
    if not _is(node, "Normalizer") or node.attributes.get("norm") != "L1":
        return
    softmax = draft.made_by(node.inputs[0], "Softmax")
    if softmax is not None and softmax.attributes.get("axis", -1) in (-1, 1):
        joined = softmax.joined or (softmax.name,)
        draft.replace(
            [node],
            Node(node.name, "Identity", node.inputs, node.outputs, {}, 13,
                 joined=(*joined, node.name)),
        )  # fmt: skip


def _two_columns(draft: Draft, node: Node, matrices: set[str]) -> None:
    """Concat(1 - p, p), p = sigmoid(x W + b), is sigmoid(x [-W, W] + [-b, b])."""
    found = _sides(draft, node)
    if found is None or not _joins_columns(draft, node, matrices):
        return
    rest, sigmoid, layer = found
    columns = 0 if layer.op == "Gemm" and layer.attributes.get("transB", 0) else -1
    new = [draft.add_weight(f"{node.name}.weight", _mirrored(draft, layer.inputs[1], columns))]
    if layer.input(2):
        new.append(draft.add_weight(f"{node.name}.bias", _mirrored(draft, layer.inputs[2], -1)))
    scores = f"{layer.outputs[0]}/both"
    wide = replace(
        layer,
        inputs=(layer.inputs[0], *new),
        outputs=(scores,),
        joined=layer.joined or (layer.name,),
    )
    names = tuple(name for n in (sigmoid, rest, node) for name in (n.joined or (n.name,)))
    last = replace(sigmoid, inputs=(scores,), outputs=node.outputs, joined=names)
    draft.replace([layer], wide)
    draft.replace([sigmoid, rest, node], last)


def _sides(draft: Draft, node: Node) -> tuple[Node, Node, Node] | None:
    """Return the nodes of 1 - p, p and the layer before it if nothing else reads what they make."""
    if node.op != "Concat" or node.domain or len(node.inputs) != 2:
        return None
    other, p = node.inputs
    rest, sigmoid = draft.made_by(other, "Sub"), draft.made_by(p, "Sigmoid")
    layer = sigmoid and draft.made_by(sigmoid.inputs[0], "Gemm", "MatMul")
    if not (rest and sigmoid and layer) or rest.inputs[1] != p:
        return None
    one = draft.constant(rest.inputs[0])
    if one is None or one.size != 1 or one != 1:
        return None
    inside = draft.alone(other) and draft.uses[p] == 2 and draft.alone(layer.outputs[0])
    return (rest, sigmoid, layer) if inside and _dense(draft, layer) else None


def _dense(draft: Draft, layer: Node) -> bool:
    w, b = draft.constant(layer.input(1)), draft.constant(layer.input(2))
    return w is not None and w.ndim == 2 and (b is not None or not layer.input(2))


def _mirrored(draft: Draft, name: str, axis: int) -> np.ndarray:
    w = draft.weights[name]
    return np.concatenate([-w, w], axis=axis)


def _joins_columns(draft: Draft, node: Node, matrices: set[str]) -> bool:
    """Tell whether the axis of a Concat is the last one: of matrices also axis 1."""
    axis = node.attributes.get("axis")
    if axis != 1:
        return axis == -1
    return _is_matrix(draft, node.inputs[1], matrices)


def _is_matrix(draft: Draft, tensor: str, matrices: set[str]) -> bool:
    """Follow a tensor back to an input of known rank through what keeps the rank."""
    while tensor not in matrices:
        node = draft.producer.get(tensor)
        if node is None or (node.op not in _SAME_RANK and node.domain != DOMAIN):
            return False
        if node.op == "Gemm":
            return True
        constants = [draft.constant(i) for i in node.inputs]
        if any(c is not None and c.ndim > 2 for c in constants):
            return False
        data = [i for i, c in zip(node.inputs, constants, strict=True) if c is None]
        if len(data) != 1 and node.op != "Concat":
            return False
        tensor = data[0]
    return True


_SAME_RANK = {
    *("Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "Neg", "Cast", "Identity", "Concat"),
    *("Relu", "Sigmoid", "Tanh", "Softmax", "Clip", "ChannelAffine"),
}
