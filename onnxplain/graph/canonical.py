"""Join what exporters split: a layer in a paper is several nodes in a file.

Without this, LRP's denominators would miss the bias of a MatMul + Add, a Gelu written with Erf
would be a product of two tensors with data, and a LayerNorm six nodes with a rule each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .graph import Node, evaluate, make_kernel

_LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


class Draft:
    """A graph while nodes are being joined."""

    def __init__(self, nodes: Sequence[Node], weights: dict, outputs: Sequence[str], data: set):
        self.nodes, self.weights = list(nodes), weights
        self.outputs, self.data = tuple(outputs), data
        self.aliases: dict[str, str] = {}
        self.index()

    def index(self) -> None:
        """Rebuild the look-ups."""
        self.producer = {out: n for n in self.nodes for out in n.outputs if out}
        self.uses = Counter(name for n in self.nodes for name in n.inputs)
        self.uses.update(self.outputs)

    def made_by(self, tensor: str, *ops: str) -> Node | None:
        """Return the node that makes a tensor if it is one of these operators."""
        node = self.producer.get(tensor)
        return node if node is not None and node.domain == "" and node.op in ops else None

    def alone(self, tensor: str) -> bool:
        """Tell whether a tensor has one use only."""
        return self.uses[tensor] == 1

    def constant(self, tensor: str) -> np.ndarray | None:
        """Return a weight."""
        return self.weights.get(tensor)

    def add_weight(self, name: str, value: np.ndarray) -> str:
        """Store a new weight under a name of its own."""
        while name in self.weights:
            name += "_"
        self.weights[name] = value
        return name

    def replace(self, old: Sequence[Node], new: Node) -> None:
        """Put one node in the place of several; the last of them made its output."""
        gone = {id(n) for n in old}
        last = max(i for i, n in enumerate(self.nodes) if id(n) in gone)
        self.nodes[last] = new
        self.nodes = [n for n in self.nodes if n is new or id(n) not in gone]
        self.index()


def join(
    nodes: Sequence[Node], weights: dict, outputs: Sequence[str], data: set[str]
) -> tuple[list[Node], dict, dict[str, str]]:
    """Return the joined nodes, all weights, and aliases of dropped tensor names."""
    draft = Draft(nodes, dict(weights), outputs, data)
    _drop_identities(draft)
    join_activations(draft)
    _join_each(draft, _layer_norm)
    _join_each(draft, _layer_norm_keras)
    _join_each(draft, _safe_softmax)
    _join_each(draft, _affine_into_norm)
    _join_each(draft, _affine_into_linear)
    _join_each(draft, _affine_chain)
    return draft.nodes, draft.weights, draft.aliases


def join_activations(draft: Draft) -> None:
    """Join activations that are spelled out."""
    _join_each(draft, _activation)


def _join_each(draft: Draft, match: Callable[[Draft, Node], bool]) -> None:
    """Try a pattern at every node, last first, until it fits nowhere."""
    again = True
    while again:
        again = False
        for node in reversed(list(draft.nodes)):
            if draft.producer.get(node.outputs[0]) is node and match(draft, node):
                again = True


def _names(*nodes: Node) -> tuple[str, ...]:
    """Return the names of the file's nodes that these nodes stand for."""
    return tuple(dict.fromkeys(name for n in nodes for name in (n.joined or (n.name,))))


# -- nodes that do nothing ------------------------------------------------------------------------


def _drop_identities(draft: Draft) -> None:
    floats = _float_tensors(draft)
    renamed: dict[str, str] = {}
    kept = []
    for node in draft.nodes:
        inputs = tuple(renamed.get(name, name) for name in node.inputs)
        node = replace(node, inputs=inputs) if inputs != node.inputs else node
        out = node.outputs[0]
        if _is_identity(draft, node, floats) and out not in draft.outputs:
            renamed[out] = node.inputs[0]
        else:
            kept.append(node)
    draft.nodes, draft.aliases = kept, renamed
    draft.index()


def _is_identity(draft: Draft, node: Node, floats: set[str]) -> bool:
    if node.domain:
        return False
    if node.op == "Dropout":
        mask_used = len(node.outputs) > 1 and draft.uses[node.outputs[1]]
        training = len(node.inputs) > 2 and node.inputs[2]
        return not mask_used and not training
    if node.op == "Cast":
        return node.inputs[0] in floats and node.attributes.get("to") in _FLOAT_TYPES
    return node.op == "Identity"


_FLOAT_TYPES = {1, 10, 11, 16}  # FLOAT, FLOAT16, DOUBLE, BFLOAT16


def _float_tensors(draft: Draft) -> set[str]:
    """Return tensors that surely hold floats: from float data through ops that keep the type."""
    floats = set(draft.data)
    for node in draft.nodes:
        if node.op == "DequantizeLinear":
            fits = True
        elif node.op == "Cast":
            fits = node.attributes.get("to") in _FLOAT_TYPES
        else:
            fits = bool(node.inputs) and node.inputs[0] in floats and node.op not in _NOT_FLOAT
        if fits:
            floats.add(node.outputs[0])
    return floats


_NOT_FLOAT = {
    *("Shape", "Size", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Less"),
    *("LessOrEqual", "IsNaN", "IsInf", "NonZero", "QuantizeLinear", "DynamicQuantizeLinear"),
}


# -- activations spelled out ----------------------------------------------------------------------

_SPELLING_OPS = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Erf", "Erfc", "Tanh", "Sigmoid", "HardSigmoid"),
    *("Softplus", "Clip", "Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Abs", "Relu", "Where"),
    *("Greater", "Less", "Max", "Min"),
}
_POINTS = np.concatenate([np.linspace(-6, 6, 61), [-30.0, -21.0, 21.0, 30.0]])
_KNOWN = (
    ("Swish", 24, {"alpha": 1.0}),
    ("Swish", 24, {"alpha": 1.702}),
    ("Gelu", 20, {"approximate": "none"}),
    ("Gelu", 20, {"approximate": "tanh"}),
    ("HardSwish", 14, {}),
    ("Mish", 18, {}),
    ("Softplus", 1, {}),
)


def _activation(draft: Draft, node: Node) -> bool:
    """Recognise an activation by its values, however it is spelled."""
    if node.op not in ("Mul", "Div", "Where") or len(node.outputs) != 1:
        return False
    for root, cone in _cones(draft, node):
        found = _known_function(draft, root, cone)
        if found:
            op, opset, attributes = found
            new = Node(
                node.name, op, (root,), node.outputs, attributes, opset, joined=_names(*cone)
            )
            draft.replace(cone, new)
            return True
    return False


def _cones(draft: Draft, node: Node, limit: int = 12):
    """Run through the sub-graphs below a node that depend on one tensor and scalars only."""
    order = {id(n): i for i, n in enumerate(draft.nodes)}
    cone: list[Node] = [node]
    frontier = _variable_inputs(draft, node)
    while frontier is not None and len(cone) <= limit:
        if len(frontier) == 1 and len(cone) > 1:
            yield next(iter(frontier)), sorted(cone, key=lambda n: order[id(n)])
        makers = [draft.producer[t] for t in frontier if t in draft.producer]
        if not makers:
            return
        last = max(makers, key=lambda n: order[id(n)])
        inner = {i for n in cone for i in n.inputs}
        uses_inside = sum(n.inputs.count(last.outputs[0]) for n in cone)
        more = _variable_inputs(draft, last)
        if more is None or last.outputs[0] not in inner:
            return
        if draft.uses[last.outputs[0]] != uses_inside:
            return
        cone.append(last)
        frontier = (frontier - {last.outputs[0]}) | more


def _variable_inputs(draft: Draft, node: Node) -> set[str] | None:
    """Return the inputs that are no scalar constants; None if the node cannot be in a cone."""
    if node.domain or node.op not in _SPELLING_OPS or len(node.outputs) != 1:
        return None
    values = [draft.constant(i) for i in node.inputs if i]
    if any(v is not None and v.size != 1 for v in values):
        return None
    return {i for i in node.inputs if i and draft.constant(i) is None}


def _known_function(draft: Draft, root: str, cone: Sequence[Node]) -> tuple | None:
    with np.errstate(all="ignore"):
        try:
            y = _evaluate_cone(draft, root, cone)
        except Exception:  # a cone that does not run on plain numbers is no activation
            return None
        for op, opset, attributes in _KNOWN:
            kernel = make_kernel(Node("", op, ("x",), ("y",), attributes, opset), (True,))
            if kernel is not None and np.allclose(y, kernel.forward(_POINTS), rtol=0, atol=2e-6):
                return op, opset, attributes
    return None


def _evaluate_cone(draft: Draft, root: str, cone: Sequence[Node]) -> np.ndarray:
    values: dict[str, Any] = {root: _POINTS}
    active = {root}
    for node in cone:
        inputs = [_point_value(draft, values, name) for name in node.inputs]
        kernel = make_kernel(node, tuple(name in active for name in node.inputs))
        values[node.outputs[0]] = evaluate(node, kernel, inputs)[0]
        if kernel is not None and kernel.active_outputs()[0]:  # a condition carries no data
            active.add(node.outputs[0])
    return values[cone[-1].outputs[0]]


def _point_value(draft: Draft, values: dict, name: str) -> Any:
    if name in values:
        return values[name]
    value = draft.constant(name)
    return value.astype(np.float64) if value is not None and value.dtype.kind == "f" else value


# -- normalisations spelled out -------------------------------------------------------------------


def _layer_norm(draft: Draft, node: Node) -> bool:
    """c / sqrt(mean(c^2) + epsilon), divided or times the reciprocal; c is x or x - mean(x)."""
    parts = _normalised(draft, node)
    deviation = _deviation(draft, parts[1]) if parts else None
    if parts is None or deviation is None:
        return False
    centred, rest = _centred(draft, parts[0]), [*parts[2], node]
    if centred and _join_layer_norm(draft, (centred[0],), deviation, [*centred[1], *rest]):
        return True
    epsilon, squared, nodes = deviation
    cone = [*nodes, *rest]
    return squared == parts[0] and _join_norm(draft, (squared,), epsilon, cone, centred=False)


def _layer_norm_keras(draft: Draft, node: Node) -> bool:
    """x w + (beta - mean w) with w = gamma / sqrt(mean((x - mean)^2) + epsilon)."""
    if node.op != "Add" or node.domain:
        return False
    for scaled, shifted in (node.inputs, node.inputs[::-1]):
        scale, shift = draft.made_by(scaled, "Mul"), draft.made_by(shifted, "Sub")
        offset = draft.made_by(shift.inputs[1], "Mul") if shift else None
        if scale and shift and offset and draft.constant(shift.inputs[0]) is not None:
            return _match_keras(draft, node, (scale, shift, offset))
    return False


def _match_keras(draft: Draft, node: Node, parts: tuple[Node, Node, Node]) -> bool:
    scale, shift, offset = parts
    for x, w in (scale.inputs, scale.inputs[::-1]):
        weight = draft.made_by(w, "Mul")
        gamma, inverse = _constant_and_rest(draft, weight) if weight else (None, None)
        reciprocal = draft.made_by(inverse, "Reciprocal") if inverse else None
        deviation = _deviation(draft, reciprocal.inputs[0]) if reciprocal else None
        mean = draft.made_by(next((t for t in offset.inputs if t != w), ""), "ReduceMean")
        if not (weight and gamma and reciprocal and deviation and mean) or mean.inputs[0] != x:
            continue
        cone = [scale, shift, offset, weight, reciprocal, mean, node]
        return w in offset.inputs and _join_layer_norm(
            draft, (x, gamma, shift.inputs[0]), deviation, cone
        )
    return False


def _join_layer_norm(
    draft: Draft, inputs: Sequence[str], deviation: tuple[float, str, list[Node]], rest: list[Node]
) -> bool:
    """Join what makes a layer normalisation, the last of `rest` being the last of it."""
    epsilon, squared, nodes = deviation
    second = _centred(draft, squared)
    if second is None or second[0] != inputs[0]:
        return False
    return _join_norm(draft, inputs, epsilon, [*second[1], *nodes, *rest], centred=True)


def _join_norm(
    draft: Draft, inputs: Sequence[str], epsilon: float, cone: Sequence[Node], centred: bool
) -> bool:
    """Put one node in the place of all that make a normalisation, the last in `cone` last."""
    last, cone = cone[-1], list({id(n): n for n in cone}.values())
    means = {_reduced_axes(draft, n) for n in cone if n.op == "ReduceMean"}
    axes = means.pop()
    if axes is None or means:
        return False
    if not all(_used_within(draft, n, cone) for n in cone if n is not last):
        return False
    if axes == (-1,):
        op, opset, domain = ("LayerNormalization" if centred else "RMSNormalization"), 23, ""
        attributes: dict[str, Any] = {"axis": -1, "epsilon": epsilon, "stash_type": 1}
    else:
        op, opset, domain = "Standardise", 1, "onnxplain"
        attributes = {"axes": axes, "epsilon": epsilon, "centred": centred}
    joined = _names(*sorted(cone, key=draft.nodes.index))
    new = Node(last.name, op, tuple(inputs), last.outputs, attributes, opset, domain, joined)
    draft.replace(cone, new)
    return True


def _deviation(draft: Draft, root: str) -> tuple[float, str, list[Node]] | None:
    """Return epsilon, the centred tensor and the nodes of sqrt(mean(c^2) + epsilon)."""
    sqrt = draft.made_by(root, "Sqrt")
    add = draft.made_by(sqrt.inputs[0], "Add") if sqrt else None
    epsilon, variance = _scalar_and_rest(draft, add) if add else (None, None)
    mean = draft.made_by(variance, "ReduceMean") if variance else None
    square = draft.made_by(mean.inputs[0], "Pow", "Mul") if mean else None
    centred = _squared(draft, square) if square else None
    if epsilon is None or not (sqrt and add and mean and square and centred):
        return None
    return epsilon, centred, [square, mean, add, sqrt]


def _normalised(draft: Draft, node: Node) -> tuple[str, str, list[Node]] | None:
    """Return centred tensor, deviation and nodes between, for c / s or c * (1 / s)."""
    if node.domain or len(node.inputs) != 2:
        return None
    if node.op == "Div":
        return node.inputs[0], node.inputs[1], []
    if node.op == "Mul":
        for centre, inverse in (node.inputs, node.inputs[::-1]):
            reciprocal = draft.made_by(inverse, "Reciprocal", "Div")
            if reciprocal and _is_reciprocal(draft, reciprocal):
                return centre, reciprocal.inputs[-1], [reciprocal]
    return None


def _is_reciprocal(draft: Draft, node: Node) -> bool:
    one = draft.constant(node.inputs[0])
    return node.op == "Reciprocal" or (one is not None and one.size == 1 and bool(one == 1))


def _centred(draft: Draft, tensor: str) -> tuple[str, list[Node]] | None:
    """Return x and the nodes of x - mean(x)."""
    sub = draft.made_by(tensor, "Sub")
    mean = sub and draft.made_by(sub.inputs[1], "ReduceMean")
    if not mean or mean.inputs[0] != sub.inputs[0]:
        return None
    return sub.inputs[0], [sub, mean]


def _squared(draft: Draft, node: Node) -> str | None:
    if node.op == "Mul":
        return node.inputs[0] if node.inputs[0] == node.inputs[1] else None
    power = draft.constant(node.inputs[1])
    return node.inputs[0] if power is not None and power.size == 1 and power == 2 else None


def _constant_and_rest(draft: Draft, node: Node) -> tuple[str | None, str | None]:
    for a, b in (node.inputs, node.inputs[::-1]):
        if draft.constant(a) is not None:
            return a, b
    return None, None


def _safe_softmax(draft: Draft, node: Node) -> bool:
    """Where(IsNaN(p), 0, p) of a softmax p: a row that is masked as a whole gives zeros."""
    if node.op != "Where" or node.domain:
        return False
    condition, zero, p = node.inputs
    softmax, undefined = draft.made_by(p, "Softmax"), draft.made_by(condition, "IsNaN")
    value = draft.constant(zero)
    if not softmax or not undefined or undefined.inputs[0] != p or value is None:
        return False
    if value.size != 1 or value.any() or softmax.attributes.get("axis", -1) != -1:
        return False
    cone = [softmax, undefined, node]
    if softmax.opset < 13 or not all(_used_within(draft, n, cone) for n in cone[:-1]):
        return False
    x, name, joined = softmax.inputs[:1], softmax.name, _names(*cone)
    draft.replace(cone, Node(name, "SafeSoftmax", x, node.outputs, {}, 1, "onnxplain", joined))
    return True


def _scalar_and_rest(draft: Draft, node: Node) -> tuple[float | None, str | None]:
    for a, b in (node.inputs, node.inputs[::-1]):
        value = draft.constant(a)
        if value is not None and value.size == 1:
            return float(value.reshape(())), b
    return None, None


def _reduced_axes(draft: Draft, node: Node) -> tuple[int, ...] | None:
    axes = node.attributes.get("axes")
    if len(node.inputs) > 1:
        value = draft.constant(node.inputs[1])
        axes = None if value is None else value.ravel().tolist()
    keeps = node.attributes.get("keepdims", 1)
    return tuple(axes) if axes is not None and keeps else None


def _used_within(draft: Draft, node: Node, cone: Sequence[Node]) -> bool:
    inside = sum(n.inputs.count(node.outputs[0]) for n in cone)
    return draft.uses[node.outputs[0]] == inside


# -- affine maps by constants ---------------------------------------------------------------------


def as_affine(draft: Draft, node: Node) -> tuple[str, np.ndarray, np.ndarray] | None:
    """Return input, w and b of a node that is y = w x + b with constants, else None."""
    if node.domain == "onnxplain" and node.op == "ChannelAffine":
        w = draft.weights[node.inputs[1]]
        b = draft.constant(node.input(2))
        return node.inputs[0], w, np.zeros_like(w, shape=()) if b is None else b
    if node.op == "Neg" and not node.domain:
        return node.inputs[0], np.array(-1, np.float32), np.array(0, np.float32)
    if node.domain or node.op not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    values = [draft.constant(i) for i in node.inputs]
    constants = [v for v in values if v is not None and v.dtype.kind == "f"]
    if len(constants) != 1:
        return None
    c, data_first = constants[0], values[0] is None
    x = node.inputs[0 if data_first else 1]
    if node.op == "Mul":
        return x, c, np.zeros_like(c, shape=())
    if node.op == "Div":
        usable = data_first and np.all(c != 0)
        return (x, 1 / c, np.zeros_like(c, shape=())) if usable else None
    sign = -1 if node.op == "Sub" and not data_first else 1
    return x, np.full_like(c, sign, shape=()), -c if node.op == "Sub" and data_first else c


def _affine_into_linear(draft: Draft, node: Node) -> bool:
    """Put a scale and shift per channel into the weights and bias of the layer before it."""
    affine = as_affine(draft, node) or _batch_norm(draft, node)
    if affine is None:
        return False
    x, scale, shift = affine
    layer = draft.producer.get(x)
    if layer is None or layer.domain or layer.op not in _LINEAR or not draft.alone(x):
        return False
    if not _weights_constant(draft, layer):
        return False
    w = draft.weights[layer.inputs[1]]
    n = _channels(layer, w)
    if n is None or (node.op == "BatchNormalization" and layer.op == "MatMul"):
        return False
    last = layer.op in ("Gemm", "MatMul")
    if node.op == "BatchNormalization" and not last:
        scale, shift = (v.reshape(-1, *(1,) * (w.ndim - 2)) for v in (scale, shift))
    factor, offset = (_per_channel(v, n, w.ndim, last) for v in (scale, shift))
    if factor is None or offset is None or not _fits(draft, layer, n):
        return False
    draft.replace([layer, node], _scaled(draft, layer, node, factor, offset))
    return True


def _affine_into_norm(draft: Draft, node: Node) -> bool:
    """Make a scale and shift of the last axis those of the normalisation before them."""
    affine = as_affine(draft, node)
    norm = draft.made_by(affine[0], "LayerNormalization", "RMSNormalization") if affine else None
    if affine is None or norm is None or not draft.alone(affine[0]):
        return False
    _, w, b = affine
    shifted, scaled = bool(np.any(b)), not np.all(w == 1)
    has_scale, may_shift = len(norm.inputs) > 1, norm.op == "LayerNormalization"
    if max(w.ndim, b.ndim) > 1 or len(norm.inputs) > 2 or len(norm.outputs) > 1:
        return False
    if (scaled and has_scale) or (shifted and not may_shift):
        return False
    inputs = list(norm.inputs)
    if not has_scale:
        inputs.append(draft.add_weight(f"{node.name}.scale", w))
    if shifted:
        inputs.append(draft.add_weight(f"{node.name}.shift", b))
    new = replace(norm, inputs=tuple(inputs), outputs=node.outputs, joined=_names(norm, node))
    draft.replace([norm, node], new)
    return True


def _batch_norm(draft: Draft, node: Node) -> tuple[str, np.ndarray, np.ndarray] | None:
    if node.domain or node.op != "BatchNormalization" or node.attributes.get("training_mode", 0):
        return None
    stats = [draft.constant(i) for i in node.inputs[1:5]]
    if any(s is None for s in stats) or len({s.shape for s in stats}) > 1:
        return None
    gamma, beta, mean, var = (s.astype(np.float64) for s in stats)
    factor = gamma / np.sqrt(var + node.attributes.get("epsilon", 1e-5))
    return node.inputs[0], factor, beta - mean * factor


def _weights_constant(draft: Draft, layer: Node) -> bool:
    constants = [draft.constant(i) is not None for i in layer.inputs[1:] if i]
    plain = layer.op != "Gemm" or (
        layer.attributes.get("alpha", 1.0) == 1.0
        and layer.attributes.get("beta", 1.0) == 1.0
        and not layer.attributes.get("transA", 0)
    )
    floats = plain and all(constants) and draft.weights[layer.inputs[1]].dtype.kind == "f"
    return floats and draft.constant(layer.inputs[0]) is None


def _channels(layer: Node, w: np.ndarray) -> int | None:
    if layer.op == "Conv":
        return w.shape[0]
    if layer.op == "ConvTranspose":
        return w.shape[1] * layer.attributes.get("group", 1)
    if w.ndim != 2:
        return None
    return w.shape[0] if layer.op == "Gemm" and layer.attributes.get("transB", 0) else w.shape[1]


def _per_channel(v: np.ndarray, n: int, rank: int, last: bool) -> np.ndarray | None:
    """Return a constant as a vector over channels, None if it is no such thing."""
    if v.size == 1 and v.ndim <= rank:
        return np.full(n, v.reshape(()))
    if v.size != n or v.ndim > rank:
        return None
    place = v.ndim - 1 if last else v.ndim - (rank - 1)
    return v.reshape(-1) if 0 <= place < v.ndim and v.shape[place] == n else None


def _fits(draft: Draft, layer: Node, n: int) -> bool:
    """Tell whether the bias of a layer, if any, is one number per channel."""
    bias = draft.constant(layer.input(2))
    return bias is None or bias.size in (1, n)


def _scaled(draft: Draft, layer: Node, node: Node, factor: Any, offset: Any) -> Node:
    """Return the layer with factor and offset per channel in its weights."""
    name = layer.input(1)
    w, b = draft.weights[name], draft.constant(layer.input(2))
    if not np.all(factor == 1):
        name = draft.add_weight(f"{name}*{node.name}", _scale_weight(layer, w, factor))
    bias = offset if b is None else _channel_bias(b, factor) * factor + offset
    bias_name = draft.add_weight(f"{node.name}.bias", np.asarray(bias).astype(w.dtype))
    return replace(
        layer,
        inputs=(layer.input(0), name, bias_name),
        outputs=node.outputs,
        joined=_names(layer, node),
    )


def _channel_bias(b: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return b.reshape(-1) if b.size == factor.size else np.broadcast_to(b.reshape(-1), factor.shape)


def _scale_weight(layer: Node, w: np.ndarray, factor: np.ndarray) -> np.ndarray:
    if layer.op == "Conv" or (layer.op == "Gemm" and layer.attributes.get("transB", 0)):
        return _wide_product(w, factor.reshape(-1, *(1,) * (w.ndim - 1)))
    if layer.op != "ConvTranspose":
        return _wide_product(w, factor)
    groups = layer.attributes.get("group", 1)
    grouped = w.reshape(groups, -1, *w.shape[1:])
    per_group = factor.reshape(groups, 1, w.shape[1], *(1,) * (w.ndim - 2))
    return _wide_product(grouped, per_group).reshape(w.shape)


def _wide_product(w: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Multiply in float64 and round once, without copies of all weights in float64."""
    out = np.empty_like(w, subok=False)
    return np.multiply(w, factor, out=out, dtype=np.float64, casting="same_kind")


def _broadcast(*arrays: np.ndarray) -> bool:
    try:
        np.broadcast_shapes(*(a.shape for a in arrays))
    except ValueError:
        return False
    return True


def _affine_chain(draft: Draft, node: Node) -> bool:
    """Join two affine maps by constants in a row into one."""
    outer = as_affine(draft, node)
    before = draft.producer.get(outer[0]) if outer else None
    inner = as_affine(draft, before) if before else None
    if outer is None or before is None or inner is None or not draft.alone(outer[0]):
        return False
    if node.op == before.op == "Neg":  # whole numbers have a Neg as well
        return False
    if not _broadcast(*inner[1:], *outer[1:]):
        return False  # the file is wrong; running it says so by the node's name
    x, w, b = inner[0], inner[1] * outer[1], inner[2] * outer[1] + outer[2]
    names = [draft.add_weight(f"{node.name}.w", w)]
    if np.any(b):  # a bias of zeros is none: there is nothing to be absorbed
        names.append(draft.add_weight(f"{node.name}.b", b))
    joined = _names(before, node)
    new = Node(node.name, "ChannelAffine", (x, *names), node.outputs, {}, 1, "onnxplain", joined)
    draft.replace([before, node], new)
    return True
