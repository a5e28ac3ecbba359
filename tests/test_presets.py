"""Composites: which rule each layer gets, how single layers are overridden, and what adds up."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from onnx import helper

import onnxplain as ox
from networks import graph
from onnxplain import presets
from onnxplain.conventions import LRP
from onnxplain.errors import RuleError
from onnxplain.presets import PRESETS, Composite, Layers
from onnxplain.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Guard,
    Simple,
    WSquare,
    ZBox,
    ZPlus,
)

RNG = np.random.default_rng(3)
node = helper.make_node


def normal(*shape):
    return RNG.normal(0, max(np.prod(shape[1:]), 1) ** -0.5, shape)


def batch_norm(name, channels):
    return {
        f"{name}_s": RNG.uniform(0.5, 2, channels), f"{name}_b": RNG.normal(size=channels),
        f"{name}_m": RNG.normal(size=channels), f"{name}_v": RNG.uniform(0.5, 2, channels),
    }  # fmt: skip


NODES = [
    node("BatchNormalization", ["x", "n_s", "n_b", "n_m", "n_v"], ["n"], "norm"),
    node("Conv", ["n", "w", "b"], ["c"], "stem", pads=[1, 1, 1, 1]),
    node("Relu", ["c"], ["r"], "relu"),
    node("Conv", ["r", "v"], ["d"], "block", pads=[1, 1, 1, 1]),
    node("Add", ["d", "r"], ["a"], "add"),
    node("MaxPool", ["a"], ["m"], "max", kernel_shape=[2, 2], strides=[1, 1]),
    node("BatchNormalization", ["m", "k_s", "k_b", "k_m", "k_v"], ["k"], "inner_norm"),
    node("AveragePool", ["k"], ["p"], "mean", kernel_shape=[2, 2]),
    node("Flatten", ["p"], ["f"], "flat"),
    node("Gemm", ["f", "u", "ub"], ["h"], "fc1"),
    node("Relu", ["h"], ["hr"], "relu2"),
    node("Gemm", ["hr", "t", "tb"], ["y"], "fc2"),
]
WEIGHTS = {
    "w": normal(3, 2, 3, 3), "b": RNG.normal(size=3), "v": normal(3, 3, 3, 3),
    "u": RNG.normal(size=(48, 6)) / 7, "ub": RNG.normal(size=6),
    "t": RNG.normal(size=(6, 4)) / 2, "tb": RNG.normal(size=4),
    **batch_norm("n", 2), **batch_norm("k", 3),
}  # fmt: skip
CNN = ox.convert(graph(NODES, {"x": (2, 6, 6)}, WEIGHTS, outputs={"y": (4,)}))
X = RNG.normal(size=(3, 2, 6, 6))
LINEAR = ["norm", "stem", "block", "inner_norm", "mean", "fc1", "fc2"]

VALUES = {
    name: PRESETS[name](-4, 4) if name == "epsilon_gamma_box" else preset()
    for name, preset in PRESETS.items()
}
Z, E, P, S = "ZPlus(alpha=1.0)", "Epsilon(epsilon=1e-06)", "Pass()", "Simple()"
A2, F, G = "AlphaBeta(alpha=2)", "Flat()", "Gamma(gamma=0.25)"
BARE = "ZPlus(alpha=1.0, zero_bias=True)"
CHOICES = {
    "epsilon_plus": [P, Z, Z, P, S, E, E],
    "epsilon_plus_flat": [P, F, Z, P, S, E, E],
    "epsilon_plus_w_square": [P, "WSquare()", Z, P, S, E, E],
    "epsilon_alpha2_beta1": [P, A2, A2, P, S, E, E],
    "epsilon_alpha2_beta1_flat": [P, F, A2, P, S, E, E],
    "epsilon_gamma_box": [P, "ZBox(low=-4, high=4)", G, P, S, E, E],
    "excitation_backprop": [P, BARE, BARE, P, S, BARE, BARE],
    "attn_lrp": [P, G, G, P, E, E, E],
}


def explain(rule_name, converter=CNN, x=X, **options):
    return ox.LRP(converter, x, rule_name=rule_name, dtype="double", **options)


def rules(method, names):
    return method.ledger().set_index("node").rule[names].tolist()


# -- which rule a layer gets -----------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_each_kind_of_layer_gets_its_rule(name):
    assert rules(explain(VALUES[name]), LINEAR) == CHOICES[name]


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "epsilon_gamma_box"])
def test_a_name_is_the_value_with_its_defaults(name):
    by_name = explain(name).get_result()
    np.testing.assert_array_equal(by_name, explain(VALUES[name]).get_result())


def test_a_composite_is_the_dict_of_its_rules():
    layers = dict(zip(LINEAR, [ox.rules.Pass(), Flat(), ZPlus(), ox.rules.Pass()], strict=False))
    by_layer = explain(layers | {"Gemm": Epsilon(1e-6)}).get_result()
    np.testing.assert_array_equal(by_layer, explain("epsilon_plus_flat").get_result())


@pytest.mark.parametrize(
    "value, layer, rule",
    [
        (presets.EpsilonPlus(0.5), "fc1", "Epsilon(epsilon=0.5)"),
        (presets.EpsilonPlusFlat(epsilon=0.5), "fc2", "Epsilon(epsilon=0.5)"),
        (presets.EpsilonGammaBox(-9, 9, gamma=2), "block", "Gamma(gamma=2)"),
        (presets.EpsilonPlus(zero_bias=True), "stem", BARE),
        (presets.EpsilonPlus(zero_bias=True), "fc1", "Epsilon(epsilon=1e-06, zero_bias=True)"),
        (presets.ExcitationBackprop(zero_bias=False), "fc1", Z),
    ],
    ids=repr,
)
def test_parameters_of_a_composite_reach_the_rules(value, layer, rule):
    assert rules(explain(value), [layer]) == [rule]


@dataclass(frozen=True)
class OwnComposite(Composite):
    """Gamma for convolutions, a large epsilon for the rest."""

    epsilon: float = 0.3

    def layers(self):
        """Return the rules."""
        return Layers(Gamma(), Epsilon(self.epsilon))


@pytest.mark.parametrize(
    "value", [OwnComposite(), Layers(convolution=Gamma(), dense=Epsilon(0.3))], ids=repr
)
def test_users_write_composites(value):
    assert rules(explain(value), LINEAR) == [P, G, G, P, S, *["Epsilon(epsilon=0.3)"] * 2]


# -- overriding single layers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice, expected",
    [
        ({"default": "epsilon_plus", "fc1": Epsilon(0.1)}, [P, Z, Z, P, S, "E", E]),
        ({"default": presets.EpsilonPlusFlat(), "fc1": Epsilon(0.1)}, [P, F, Z, P, S, "E", E]),
        ({"default": Epsilon(0.1), "Conv": "z_plus"}, ["E", Z, Z, *["E"] * 4]),
        ({"Conv": presets.EpsilonPlusFlat(), "default": Epsilon(0.1)}, ["E", F, Z, *["E"] * 4]),
        ({"default": "epsilon_plus", "BatchNorm": "simple"}, [S, Z, Z, S, S, E, E]),
        ({"fc1": Epsilon(0.1)}, [S, S, S, S, S, "E", S]),
    ],
)
def test_a_dict_overrides_what_default_says(choice, expected):
    expected = ["Epsilon(epsilon=0.1)" if rule == "E" else rule for rule in expected]
    assert rules(explain(choice), LINEAR) == expected


# -- first layers ----------------------------------------------------------------------------------


def firsts(nodes, inputs, weights, **shapes):
    """Return the names of nodes that the flat preset calls first layers."""
    converter = ox.convert(graph(nodes, inputs, weights, **shapes))
    x = [np.random.default_rng(0).normal(size=(2, *dim)) for dim in inputs.values()]
    table = explain("epsilon_plus_flat", converter, x).ledger()
    return set(table.node[table.rule == F])


SQUARE = {"w": normal(3, 3), "v": normal(3, 3), "u": normal(3, 2), "long": normal(6, 2)}


@pytest.mark.parametrize(
    "nodes, expected",
    [
        pytest.param(  # parallel branches of one input
            [node("MatMul", ["x", "w"], ["a"], "left"), node("MatMul", ["x", "v"], ["b"], "right"),
             node("Add", ["a", "b"], ["s"], "sum"), node("MatMul", ["s", "u"], ["y"], "head")],
            {"left", "right"}, id="branches",
        ),
        pytest.param(  # behind what has no weights, or acts in place
            [node("Relu", ["x"], ["a"], "act"), node("Add", ["a", "ones"], ["b"], "shift"),
             node("MatMul", ["b", "w"], ["c"], "first"), node("MatMul", ["c", "u"], ["y"], "head")],
            {"first"}, id="behind in-place nodes",
        ),
        pytest.param(  # the skipped input does not make it first
            [node("MatMul", ["x", "w"], ["a"], "first"), node("Concat", ["a", "x"], ["b"], axis=1),
             node("MatMul", ["b", "long"], ["y"], "head")],
            {"first"}, id="skip",
        ),
        pytest.param(  # a product of two tensors with data has no weights
            [node("Mul", ["x", "x"], ["a"], "gate"), node("MatMul", ["a", "u"], ["y"], "head")],
            {"head"}, id="product",
        ),
    ],
)  # fmt: skip
def test_first_layers_see_no_other_layer(nodes, expected):
    weights = SQUARE | {"ones": np.ones(3)}
    assert firsts(nodes, {"x": (3,)}, weights, outputs={"y": (2,)}) == expected


def test_every_input_has_its_first_layer():
    nodes = [
        node("MatMul", ["x", "w"], ["a"], "one"), node("Relu", ["a"], ["r"]),
        node("MatMul", ["r", "v"], ["b"], "two"), node("MatMul", ["z", "w"], ["c"], "other"),
        node("Add", ["b", "c"], ["s"]), node("MatMul", ["s", "u"], ["y"], "head"),
    ]  # fmt: skip
    assert firsts(nodes, {"x": (3,), "z": (3,)}, SQUARE, outputs={"y": (2,)}) == {"one", "other"}


def test_the_box_is_for_first_convolutions_only():
    nodes = [node("MatMul", ["x", "w"], ["a"], "first"), node("MatMul", ["a", "u"], ["y"], "head")]
    converter = ox.convert(graph(nodes, {"x": (3,)}, SQUARE, outputs={"y": (2,)}))
    method = explain(presets.EpsilonGammaBox(0, 1), converter, np.ones((1, 3)))
    assert rules(method, ["first", "head"]) == [E, E]


# -- what adds up ----------------------------------------------------------------------------------

ALL = {
    **VALUES,
    **{
        repr(rule): rule
        for rule in (
            Gamma(0.25, weights_only=True),
            Gamma(0.25, zero_bias=True),
            ZPlus(weights_only=True),
            AlphaBeta(2, whole_bias=True),
            AlphaBeta(2, zero_bias=True),
            Epsilon(0.1, zero_bias=True),
            Epsilon(0.1, guard_zeros=True),
            WSquare(zero_bias=True),
            Simple(guard=Guard(1e-3)),
            Simple(guard=Guard(1e-7, zeros_only=True)),
            ZBox((-4, -5), (4, 5)),
        )
    },
}


@pytest.mark.parametrize("name", ALL)
def test_the_ledger_closes(name):
    rule = ALL[name]
    channels = isinstance(rule, ZBox)
    method = explain({"stem": rule} if channels else rule)
    assert method.ledger().gap.max() < 1e-12
    assert np.isfinite(method.get_result()).all()


@pytest.mark.parametrize("like, name", [(k, n) for k, v in LRP.items() if k for n in v.composites])
def test_the_ledger_closes_for_composites_of_other_libraries(like, name):
    assert explain(name, like=like).ledger().gap.max() < 1e-12


@pytest.mark.parametrize("name", ["epsilon_plus", "epsilon_plus_flat", "excitation_backprop"])
def test_without_biases_everything_arrives(name):
    composite = replace(VALUES[name], zero_bias=True)
    method = explain(
        {"default": composite, "fc1": Simple(zero_bias=True), "fc2": Simple(zero_bias=True)}
    )
    np.testing.assert_allclose(method.decomp_sum[0], method.decomp_goal[0], rtol=1e-9)


def test_coverage_calls_a_rule_a_rule():
    table = CNN.coverage("lrp").set_index("node")
    assert set(table.loc[["stem", "fc1", "inner_norm"], "rule"]) == {"rule"}
    assert table.loc["add", "rule"] == "proportional"


# -- bounds ----------------------------------------------------------------------------------------


def test_bounds_per_channel_are_those_of_each_channel():
    alike = explain({"stem": ZBox((-4, -4), (4, 4))}).get_result()
    np.testing.assert_array_equal(alike, explain({"stem": ZBox(-4, 4)}).get_result())
    other = explain({"stem": ZBox(np.array([-4, -6.0]).reshape(1, 2, 1, 1), (4, 6))}).get_result()
    assert not np.allclose(alike, other)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: explain("epsilon_gamma_box"), r"EpsilonGammaBox\(low, high\)"),
        (lambda: explain("z_box"), r"ZBox\(low, high\)"),
        (lambda: explain("epsilon_minus"), r"composites .*epsilon_plus"),
        (lambda: explain({"stem": ZBox((0, 0, 0), 1)}), "3 bounds for a tensor of shape"),
        (lambda: ZBox((0, 2), 1), "low must not be above high"),
        (lambda: ZBox((0, "a"), 1), "low must be a number"),
        (lambda: explain("epsilon_plus", rule_param=0.1), "has no parameter"),
        (lambda: AlphaBeta(2, weights_only=True), "alpha 1"),
    ],
)
def test_what_cannot_be_asked_for_says_so(make, words):
    with pytest.raises(RuleError, match=words):
        make()


def test_steps_of_a_recurrent_layer_get_the_rule_of_dense_layers():
    nodes = [
        node("Transpose", ["x"], ["t"], "time", perm=[1, 0, 2]),
        node("RNN", ["t", "w", "r"], ["s", "h"], "rnn", hidden_size=3),
        node("Squeeze", ["h", "first"], ["y"], "last"),
    ]
    weights = {"w": RNG.normal(size=(1, 3, 2)), "r": RNG.normal(size=(1, 3, 3))}
    weights["first"] = np.array([0])
    model = graph(nodes, {"x": (4, 2)}, weights)
    lrp = ox.LRP(ox.convert(model), np.ones((1, 4, 2)), rule_name="epsilon_plus", dtype="double")
    rules = {op: lrp._settings[n.name].rule for n in lrp._engine.graph.nodes for op in [n.op]}
    assert rules["RNN"] == Epsilon(1e-6)
    assert lrp.ledger().gap.max() < 1e-12
