"""Which rule a node gets: by layer type, operator, module or node, the most special first."""

import numpy as np
import pytest
from onnx import helper

import onnxplain as ox
from networks import graph
from onnxplain.rules import AlphaBeta, Epsilon

RNG = np.random.default_rng(0)
NODES = [
    helper.make_node("Conv", ["x", "w"], ["c"], "features/features.0/Conv"),
    helper.make_node("Relu", ["c"], ["r"], "features/features.1/Relu"),
    helper.make_node("Conv", ["r", "v"], ["d"], "features.2"),
    helper.make_node("Flatten", ["d"], ["f"], "flat"),
    helper.make_node("Gemm", ["f", "u", "b"], ["y"], "head"),
]
WEIGHTS = {
    "w": RNG.normal(size=(3, 2, 2, 2)), "v": RNG.normal(size=(2, 3, 2, 2)),
    "u": RNG.normal(size=(8, 3)), "b": RNG.normal(size=3),
}  # fmt: skip
CONVERTER = ox.convert(graph(NODES, {"x": (2, 4, 4)}, WEIGHTS, outputs={"y": (3,)}))
X = RNG.normal(size=(2, 2, 4, 4))
S, E, A = "Simple()", "Epsilon(epsilon=0.01)", "AlphaBeta(alpha=0.5)"

CASES = {
    "one for all": ("epsilon", None, [E, E, E]),
    "a value for all": (AlphaBeta(0.5), None, [A, A, A]),
    "layer type": ({"Conv2D_Layer": "epsilon"}, None, [E, E, S]),
    "layer type without suffix": ({"Dense": "alpha_beta"}, None, [S, S, A]),
    "operator": ({"Conv": "epsilon", "Gemm": Epsilon(0.01)}, None, [E, E, E]),
    "module": ({"features": "epsilon"}, None, [E, E, S]),
    "inner module": ({"features/features.0": "epsilon"}, None, [E, S, S]),
    "node": ({"features.2": "alpha_beta"}, None, [S, A, S]),
    "node before module before operator before layer": (
        {"Conv2D": "simple", "Conv": "simple", "features": "epsilon", "features.2": "alpha_beta"},
        None, [E, A, S],
    ),
    "parameters by layer": (
        "epsilon", {"Dense": 0.5, "head": 2.0}, [E, E, "Epsilon(epsilon=2.0)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_most_special_choice_wins(name):
    rule_name, rule_param, expected = CASES[name]
    lrp = ox.LRP(CONVERTER, X, rule_name=rule_name, rule_param=rule_param, dtype="double")
    table = lrp.ledger().set_index("node")
    nodes = ["features/features.0/Conv", "features.2", "head"]
    assert table.loc[nodes, "rule"].tolist() == expected
    assert table.gap.max() < 1e-12


def test_rules_of_single_nodes_change_the_result_as_rules_for_all_do():
    every = {"features/features.0/Conv": "epsilon", "features.2": "epsilon", "head": "epsilon"}
    by_node = ox.LRP(CONVERTER, X, rule_name=every, dtype="double").get_result()
    at_once = ox.LRP(CONVERTER, X, rule_name="epsilon", dtype="double").get_result()
    np.testing.assert_array_equal(by_node, at_once)
    assert not np.allclose(by_node, ox.LRP(CONVERTER, X, dtype="double").get_result())
