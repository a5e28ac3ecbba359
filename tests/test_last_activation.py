"""Leaving the last activation away: the scores before it are explained, the predictions stay."""

import numpy as np
import pytest
from onnx import TensorProto, helper

import onnxplain as ox
from networks import graph
from onnxplain.kernels.base import _REGISTRY

node = helper.make_node
RNG = np.random.default_rng(0)
W1, B1 = RNG.standard_normal((5, 4)), RNG.standard_normal(5)
W2, B2 = RNG.standard_normal((6, 5)), RNG.standard_normal(6)
X, REF = RNG.standard_normal((3, 4)), RNG.standard_normal((1, 4))

ACTIVATIONS = {
    **{op: {} for op in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "HardSwish", "Mish")},
    **{op: {} for op in ("Softmax", "LogSoftmax", "Elu", "Selu", "Celu", "LeakyRelu")},
    **{op: {} for op in ("HardSigmoid", "ThresholdedRelu", "Gelu", "Clip", "PRelu")},
}
METHODS = {
    "Gradient": lambda c, **o: ox.Gradient(c, X, **o),
    "IntegratedGradient": lambda c, **o: ox.IntegratedGradient(c, X, x_ref=REF, n=3, **o),
    "LRP": lambda c, **o: ox.LRP(c, X, **o),
    "DeepLift": lambda c, **o: ox.DeepLift(c, X, x_ref=REF, **o),
    "reveal_cancel": lambda c, **o: ox.DeepLift(c, X, x_ref=REF, rule_name="reveal_cancel", **o),
    "ConnectionWeights": lambda c, **o: ox.ConnectionWeights(c, **o),
}


def net(*behind, weights=None, outputs=("y",)):
    """x, two dense layers to z, and what stands behind."""
    nodes = [
        node("Gemm", ["x", "W1", "B1"], ["h"], "first", transB=1),
        node("Tanh", ["h"], ["t"], "inner"),
        node("Gemm", ["t", "W2", "B2"], ["z"], "last", transB=1),
        *behind,
    ]
    stored = {"W1": W1, "B1": B1, "W2": W2, "B2": B2} | (weights or {})
    return graph(nodes, {"x": (4,)}, stored, outputs=dict.fromkeys(outputs))


def act(op, start="z", end="y", name="act"):
    extra = {"Clip": ["low", "high"], "PRelu": ["slope"]}.get(op, [])
    return node(op, [start, *extra], [end], name, **ACTIVATIONS[op])


PARAMETERS = {"low": np.array(-0.2), "high": np.array(0.3), "slope": np.full(6, 0.25)}


def scores(method, **options):
    """Explain z itself."""
    return METHODS[method](
        ox.convert(net(outputs=("z",)), dtype="double"), dtype="double", **options
    )


def results(model, method, **options):
    return METHODS[method](ox.convert(model, dtype="double"), dtype="double", **options)


def test_all_activations_are_tried():
    known = {op for (domain, op), found in _REGISTRY.items() if found[0][1].activation}
    assert known - {"Swish", "QuickGelu"} == set(ACTIVATIONS)  # newer, and of another domain


@pytest.mark.parametrize("op", ACTIVATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_the_value_before_the_activation_is_explained(op, method):
    found = results(net(act(op), weights=PARAMETERS), method)
    expected = scores(method)
    np.testing.assert_allclose(found.get_result(), expected.get_result(), rtol=0, atol=1e-12)
    if method != "ConnectionWeights":
        np.testing.assert_allclose(found.decomp_goal[0], expected.decomp_goal[0], atol=1e-12)


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_predictions_keep_the_activation(op):
    converter = ox.convert(net(act(op), weights=PARAMETERS), dtype="double")
    for ignore in (True, False):
        found = ox.Gradient(converter, X, dtype="double", ignore_last_act=ignore)
        np.testing.assert_array_equal(found.preds[0], converter(X)[0])


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_the_activation_is_explained_when_it_is_not_ignored(op):
    converter = ox.convert(net(act(op), weights=PARAMETERS), dtype="double")
    with_act = ox.DeepLift(converter, X, x_ref=REF, dtype="double", ignore_last_act=False)
    goal = converter(X)[0] - converter(REF)[0]
    np.testing.assert_allclose(with_act.decomp_goal[0], goal, rtol=0, atol=1e-12)
    np.testing.assert_allclose(with_act.decomp_sum[0], goal, rtol=0, atol=1e-10)


def test_a_spelled_activation_is_ignored_too():
    steps = [node("Sigmoid", ["z"], ["s"], "s"), node("Mul", ["z", "s"], ["y"], "silu")]
    found = results(net(*steps), "Gradient")
    np.testing.assert_allclose(found.get_result(), scores("Gradient").get_result(), atol=1e-12)


# -- what stands between activation and output ----------------------------------------------------

DOUBLE = TensorProto.DOUBLE
BEHIND = {
    "Identity": [("Identity", [], {})],
    "Dropout": [("Dropout", [], {})],
    "Cast": [("Cast", [], {"to": DOUBLE})],
    "Cast to float32 and back": [
        ("Cast", [], {"to": TensorProto.FLOAT}),
        ("Cast", [], {"to": DOUBLE}),
    ],
    "Flatten": [("Flatten", [], {})],
    "Reshape": [("Reshape", ["pairs"], {})],
    "Unsqueeze": [("Unsqueeze", ["one"], {})],
    "Unsqueeze and Squeeze": [("Unsqueeze", ["one"], {}), ("Squeeze", ["one"], {})],
    "Reshape, Cast, Flatten": [
        ("Reshape", ["pairs"], {}),
        ("Cast", [], {"to": DOUBLE}),
        ("Flatten", [], {}),
    ],
}
SHAPES = {"pairs": np.array([0, 3, 2]), "one": np.array([1])}


def behind(steps, op="Softmax"):
    made, current = [act(op, "z", "a")], "a"
    for i, (kind, inputs, attributes) in enumerate(steps):
        end = "y" if i == len(steps) - 1 else f"b{i}"
        made.append(node(kind, [current, *inputs], [end], f"step{i}", **attributes))
        current = end
    return net(*made, weights=SHAPES | PARAMETERS)


@pytest.mark.parametrize("name", BEHIND)
@pytest.mark.parametrize("op", ["Softmax", "Sigmoid", "Clip"])
@pytest.mark.parametrize("method", METHODS)
def test_the_activation_is_found_behind_what_changes_no_value(name, op, method):
    found = results(behind(BEHIND[name], op), method).get_result()
    expected = scores(method).get_result()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", BEHIND)
def test_output_shapes_and_predictions_stay_behind_it(name):
    converter = ox.convert(behind(BEHIND[name]), dtype="double")
    before = ox.Gradient(converter, X, dtype="double")
    np.testing.assert_array_equal(before.preds[0], converter(X)[0])
    assert before.preds[0].shape[1:] == converter.output_dim[0]


@pytest.mark.parametrize("op", ["Mul", "Add", "MatMul", "ReduceSum"])
def test_what_changes_values_behind_the_activation_keeps_it(op):
    weight = {"MatMul": np.eye(6) * 2, "ReduceSum": np.array([1])}.get(op, np.full(6, 2.0))
    model = net(act("Sigmoid", "z", "a"), node(op, ["a", "c"], ["y"], "end"), weights={"c": weight})
    ignored = results(model, "Gradient").get_result()
    kept = results(model, "Gradient", ignore_last_act=False).get_result()
    np.testing.assert_array_equal(ignored, kept)
    assert np.abs(kept - scores("Gradient").get_result()[..., : kept.shape[-1]]).max() > 1e-3


def test_without_an_activation_nothing_changes():
    a, b = (scores("Gradient", ignore_last_act=flag).get_result() for flag in (True, False))
    np.testing.assert_array_equal(a, b)


def test_an_activation_of_the_input_leaves_the_input():
    model = graph([node("Softmax", ["x"], ["y"], "act")], {"x": (4,)}, outputs={"y": (4,)})
    found = results(model, "Gradient").get_result()
    np.testing.assert_array_equal(found, np.broadcast_to(np.eye(4), (3, 4, 4)))


# -- several outputs ------------------------------------------------------------------------------

ALL = [list(range(6)), list(range(6))]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ignore", [True, False])
def test_outputs_that_share_an_activation(method, ignore):
    """Two names of the same probabilities, one of them in pairs."""
    model = net(
        act("Softmax", "z", "a"),
        node("Identity", ["a"], ["y"], "copy"),
        node("Reshape", ["a", "pairs"], ["p"], "pairs"),
        weights=SHAPES,
        outputs=("y", "p"),
    )
    found = results(model, method, output_idx=ALL, ignore_last_act=ignore)
    single = net(act("Softmax"))
    expected = results(single, method, ignore_last_act=ignore).get_result()
    for row in found.result:
        np.testing.assert_allclose(row[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ignore", [True, False])
def test_an_output_behind_another_output(method, ignore):
    model = net(
        act("Sigmoid", "z", "a"),
        node("Reshape", ["a", "pairs"], ["p"], "pairs"),
        node("Flatten", ["p"], ["y"], "flat"),
        weights=SHAPES,
        outputs=("y", "p"),
    )
    found = results(model, method, output_idx=ALL, ignore_last_act=ignore)
    names = [n.name for n in found._engine.graph.nodes]
    assert len(set(names)) == len(names)
    expected = results(net(act("Sigmoid")), method, ignore_last_act=ignore).get_result()
    for row in found.result:
        np.testing.assert_allclose(row[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_scores_and_probabilities_as_outputs(method):
    """The tensor before the activation is an output itself."""
    model = net(act("Softmax"), outputs=("z", "y"))
    expected = scores(method).get_result()
    for row in results(model, method, output_idx=ALL).result:
        np.testing.assert_allclose(row[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ignore", [True, False])
def test_an_output_that_is_an_inner_tensor(method, ignore):
    """A hidden activation is given out, and other layers stand on it."""
    full = net(act("Sigmoid"), outputs=("y", "t"))
    found = results(
        full, method, output_idx=[list(range(6)), list(range(5))], ignore_last_act=ignore
    )
    alone = results(net(act("Sigmoid")), method, ignore_last_act=ignore).get_result()
    np.testing.assert_allclose(found.result[0][0], alone, rtol=0, atol=1e-12)
    hidden = graph(
        [
            node("Gemm", ["x", "W1", "B1"], ["h"], "first", transB=1),
            node("Tanh", ["h"], ["t"], "inner"),
        ],
        {"x": (4,)},
        {"W1": W1, "B1": B1},
        outputs={"t": (5,)},
    )
    expected = results(hidden, method, ignore_last_act=ignore).get_result()
    np.testing.assert_allclose(found.result[1][0], expected, rtol=0, atol=1e-12)


def test_each_output_has_its_own_activation():
    model = net(
        act("Softmax", "z", "y", "one"),
        act("Sigmoid", "z", "s", "two"),
        act("Relu", "h", "r", "three"),
        outputs=("y", "s", "r", "z"),
    )
    index = [[0], [0], [0], [0]]
    found = results(model, "Gradient", output_idx=index).result
    expected = scores("Gradient", output_idx=[0]).get_result()
    for j in (0, 1, 3):
        np.testing.assert_allclose(found[j][0], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[2][0][..., 0], np.broadcast_to(W1[0], (3, 4)), atol=1e-12)
