"""`like=`: numbers that other libraries give, from measurements on small layers or their formulas.

Measured on captum 0.9.0, zennit 1.0 and shap 0.51; iNNvestigate's and deeplift's are formulas.
"""

import numpy as np
import pytest
from onnx import helper

import onnxplain as ox
from networks import dense, graph, layered
from onnxplain.conventions import DEEPLIFT, LIBRARIES, LRP, checked_like
from onnxplain.errors import ArgumentError
from onnxplain.rules import AlphaBeta, Flat, Gamma, QuotientRescale, WSquare, ZBox

node = helper.make_node
METHODS = {
    name: getattr(ox, name)
    for name in (
        "Gradient", "SmoothGrad", "IntegratedGradient", "ExpectedGradient", "LRP", "DeepLift",
        "DeepSHAP", "ConnectionWeights",
    )
}  # fmt: skip


def explain(method, model, x, **options):
    """Return a method's result in float64."""
    return method(ox.convert(model), np.asarray(x, float), dtype="double", **options).get_result()


# -- LRP -------------------------------------------------------------------------------------------

LAYER = layered([dense([[1, -2, 3], [-1, 0.5, 2]], [0.5, -0.7])], (3,))
PLUS, MINUS = (1, 2, 6), (2, 4, 12)
TABLE = [  # like, rule, parameter, relevance for the outputs 9.5 and 1.8
    ("zennit", "epsilon", None, PLUS, (-1, -0.5, 4)),
    ("captum", "epsilon", None, PLUS, (-1, -0.5, 4)),
    ("captum", "simple", None, PLUS, (-1, -0.5, 4)),
    ("innvestigate", "epsilon", None, PLUS, (-1, -0.5, 4)),
    ("innvestigate", "simple", None, PLUS, (-1, -0.5, 4)),
    ("zennit", "gamma", 0.25, PLUS, (-0.642857, -0.321428, 3.214285)),
    ("captum", "gamma", 0.25, (1.055556, 1.688889, 6.333333), (-0.672897, -0.420561, 3.364486)),
    ("captum", Gamma(0.25, weights_only=True, zero_bias=True), None,
     (1.104651, 1.767442, 6.627907), (-0.533333, -0.333333, 2.666667)),
    ("zennit", "z_plus", None, PLUS, (0, 0, 1.8)),
    ("zennit", "alpha_beta", 1, PLUS, (0, 0, 1.8)),
    ("innsight", "alpha_beta", 1, PLUS, (0, 0, 1.8)),
    ("captum", "z_plus", None, (1.266667, 0, 7.6), (0, -0.321429, 2.571429)),
    ("captum", "alpha_beta", None, (1.266667, 0, 7.6), (0, -0.321429, 2.571429)),
    ("innvestigate", "alpha_beta", 1, PLUS, (0, 0, 2.181818)),
    ("innvestigate", "z_plus", None, (1.055556, 2.111111, 6.333333), (0, 0, 1.8)),
    ("zennit", "alpha_beta", None, MINUS, (-0.818181, -0.409091, 3.6)),
    ("innsight", "alpha_beta", 2, MINUS, (-0.818181, -0.409091, 3.6)),
    ("innvestigate", "alpha_beta", None, MINUS, (-0.818182, -0.409091, 4.363636)),
    ("zennit", "w_square", None, (0.666667, 2.666666, 6), (0.313589, 0.078397, 1.254355)),
    ("zennit", WSquare(zero_bias=True), None, (0.678571, 2.714286, 6.107142),
     (0.342857, 0.085714, 1.371428)),
    ("innvestigate", "w_square", None, (0.678571, 2.714286, 6.107142),
     (0.342857, 0.085714, 1.371428)),
    ("zennit", "flat", None, (3.166666,) * 3, (0.6,) * 3),
    ("innvestigate", "flat", None, (3.166667,) * 3, (0.6,) * 3),
    ("zennit", ZBox(-3, 3), None, (1.407407, 2.814815, 5.277778), (0.276923, 0.138462, 1.384615)),
]  # fmt: skip


@pytest.mark.parametrize("like, rule, parameter, first, second", TABLE)
def test_lrp_of_a_linear_layer(like, rule, parameter, first, second):
    got = explain(ox.LRP, LAYER, [[1, -1, 2]], rule_name=rule, rule_param=parameter, like=like)[0]
    # Six decimals, some cut off, some of whole numbers that zennit's 1e-6 in denominators moves.
    np.testing.assert_allclose(got.T, [first, second], rtol=0, atol=2.5e-6)


DEAD = layered([dense([[1.0, -1.0]], [0.0])], (2,))


@pytest.mark.parametrize(
    "like, size", [("zennit", 1e-6), ("captum", 1e-9), ("innvestigate", 1e-7), (None, 1e-15)]
)
def test_stabiliser_of_a_unit_that_is_zero(like, size):
    chain = [dense([[1.0, -1.0]], [0.0]), dense([[1.0]], [2.0])]
    got = explain(ox.LRP, layered(chain, (2,)), [[3, 3]], rule_name="simple", like=like)
    # The unit has no value, so it gets no relevance; alone it starts with none either.
    np.testing.assert_array_equal(got, 0)
    kernel = ox.convert(DEAD).graph.nodes[0].kernel
    rule = ox.rules.Simple(guard=LRP[like].guard)
    x, w = np.array([[3.0, 3.0]]), np.array([[1.0], [-1.0]])
    back = rule.linear(kernel, x, w, None, x @ w, np.ones((1, 1, 1)), None)
    np.testing.assert_allclose(back, [[[3 / size, -3 / size]]])


@pytest.mark.parametrize("like, at_one", [("innvestigate", 1.0), ("zennit", 1 / (1 + 1e-6))])
def test_stabiliser_elsewhere(like, at_one):
    model = layered([dense([[1.0]], [0.0])], (1,))
    got = explain(ox.LRP, model, [[1.0]], rule_name="simple", like=like).item()
    assert got == at_one


@pytest.mark.parametrize(
    "like, epsilon",
    [("zennit", 1e-6), ("captum", 1e-9), ("innvestigate", 1e-7), ("innsight", 1e-3)],
)
def test_default_epsilon(like, epsilon):
    got = explain(ox.LRP, layered([dense([[1.0]])], (1,)), [[1.0]], rule_name="epsilon", like=like)
    np.testing.assert_allclose(got, 1 / (1 + epsilon), rtol=1e-15)


@pytest.mark.parametrize("like", [k for k in LRP if k != "innsight"])
def test_residual_sums_share_by_contribution(like):
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "x"], ["s"]),
             node("MatMul", ["s", "one"], ["y"])]  # fmt: skip
    model = graph(nodes, {"x": (2,)}, {"w": np.diag([2, -1]), "one": np.ones((2, 1))})
    got = explain(ox.LRP, model, [[1, 3]], rule_name="epsilon", rule_param=1e-12, like=like)
    np.testing.assert_allclose(got[0, :, 0], [3, 0], atol=1e-5)


@pytest.mark.parametrize("like, shares", [("zennit", (0.8, 0.2)), ("innsight", (0.5, 0.5))])
def test_shares_of_a_sum(like, shares):
    model = graph([node("Add", ["a", "b"], ["y"])], {"a": (1,), "b": (1,)})
    method = ox.LRP(ox.convert(model), [[[4.0]], [[1.0]]], dtype="double", like=like)
    got = np.array([method.result[0][i].item() for i in (0, 1)])
    np.testing.assert_allclose(got / 5, shares, atol=1e-6)


NORM = {"s": [2.0], "b": [1.0], "m": [0.0], "v": [1.0]}


@pytest.mark.parametrize(
    "like, share", [("zennit", 1), ("captum", 6 / 7), ("innvestigate", 6 / 7), (None, 6 / 7)]
)
def test_batch_normalisation_standing_alone(like, share):
    nodes = [node("BatchNormalization", ["x", *NORM], ["y"], epsilon=0.0)]
    model = graph(nodes, {"x": (1, 1, 1)}, NORM, outputs={"y": (1, 1, 1)})
    got = explain(ox.LRP, model, [[[[3.0]]]], like=like).item()
    assert got == pytest.approx(7 * share, rel=1e-6)


def test_a_rule_for_all_leaves_pools_alone_where_libraries_do():
    nodes = [node("AveragePool", ["x"], ["y"], kernel_shape=[2])]
    model, x = graph(nodes, {"x": (1, 2)}, outputs={"y": (1, 1)}), [[[1.0, -3.0]]]
    options = {"rule_name": AlphaBeta(2)}
    np.testing.assert_allclose(explain(ox.LRP, model, x, **options).ravel(), [-2, 1])
    got = explain(ox.LRP, model, x, like="captum", **options).ravel()
    np.testing.assert_allclose(got, [0.5, -1.5], rtol=1e-8)


# -- DeepLIFT --------------------------------------------------------------------------------------


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def slope(v):
    return sigmoid(v) * (1 - sigmoid(v))


CURVE = graph([node("Sigmoid", ["x"], ["y"])], {"x": (1,)}, outputs={"y": (1,)})


@pytest.mark.parametrize(
    "like, limit, at", [("deeplift", 1e-7, 0.0), ("shap", 1e-6, 1.0), ("captum", 1e-10, 1.0)]
)
def test_slope_where_input_and_reference_hardly_differ(like, limit, at):
    setting = DEEPLIFT[like].rules["rescale"]
    assert (setting.near_zero, {"reference": 0.0, "input": 1.0}[setting.slope_at]) == (limit, at)
    for rule in ("rescale", QuotientRescale(limit, setting.slope_at)):
        for factor, wanted in ((0.5, slope), (3, lambda v: None)):
            x0, x = 0.7, 0.7 + factor * limit
            options = {"x_ref": [[x0]], "ignore_last_act": False, "rule_name": rule}
            m = explain(ox.DeepLift, CURVE, [[x]], like=like, **options).item() / (x - x0)
            quotient = (sigmoid(x) - sigmoid(x0)) / (x - x0)
            want = quotient if factor == 3 else wanted(x0 + at * (x - x0))
            assert m == pytest.approx(want, rel=1e-12 if factor < 1 else 1e-5)


@pytest.mark.parametrize("at, point", [("input", 3.0), ("middle", 2.0), ("reference", 1.0)])
def test_where_the_slope_is_taken(at, point):
    options = {"x_ref": [[1.0]], "ignore_last_act": False, "rule_name": QuotientRescale(5, at)}
    got = explain(ox.DeepLift, CURVE, [[3.0]], **options).item()
    assert got == pytest.approx(2 * slope(point), rel=1e-12)


POOL = graph(
    [node("MaxPool", ["x"], ["p"], kernel_shape=[2], strides=[2]), node("Flatten", ["p"], ["f"]),
     node("MatMul", ["f", "w"], ["y"])],
    {"x": (1, 4)}, {"w": [[1], [2]]},
)  # fmt: skip


@pytest.mark.parametrize(
    "like, first, second",
    [
        (None, (1, 0, 0, 8), (0, 0, 8, 0)),
        ("captum", (1, 0, 0, 8), (0, 0, 8, 0)),
        ("shap", (1, 0, 0, 8), (0, 0, 8, 0)),
        ("deeplift", (3, 0, 0, 9), (0, 0, 8, 0)),
        ("innsight", (3, 0, 0, 9), (0, 0, 8, 0)),
    ],
)
def test_max_pool(like, first, second):
    for x, x0, want in (
        ((3, 1, 0, 5), (0, 2, 1, 0.5), first), ((1, 2, 4, 4), (1, 2, 0, 0), second)
    ):  # fmt: skip
        got = explain(ox.DeepLift, POOL, [[x]], x_ref=[[x0]], like=like)
        np.testing.assert_allclose(got.ravel(), want, atol=1e-12)


@pytest.mark.parametrize("like", ["captum", "shap", None])
def test_overlapping_max_pools_lose_nothing(like):
    rng = np.random.default_rng(0)
    nodes = [node("MaxPool", ["x"], ["p"], kernel_shape=[3], strides=[1]),
             node("Flatten", ["p"], ["f"]), node("MatMul", ["f", "w"], ["y"])]  # fmt: skip
    model = ox.convert(graph(nodes, {"x": (1, 9)}, {"w": rng.normal(size=(7, 2))}))
    x, x0 = rng.normal(size=(4, 1, 9)), rng.normal(size=(1, 1, 9))
    method = ox.DeepLift(model, x, x_ref=x0, dtype="double", like=like)
    np.testing.assert_allclose(method.decomp_sum[0], method.decomp_goal[0], atol=1e-12)


@pytest.mark.parametrize("like, multiplier", [("captum", 1.0), ("shap", 0.0)])
def test_multiplier_of_a_maximum_that_does_not_differ(like, multiplier):
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Reshape", ["h", "s"], ["c"]),
             node("MaxPool", ["c"], ["y"], kernel_shape=[2])]  # fmt: skip
    weights = {"w": [[1.0, 0], [1.0, 0]], "s": np.array([-1, 1, 2])}
    model = graph(nodes, {"x": (2,)}, weights, outputs={"y": (1, 1)})
    got = explain(ox.DeepLift, model, [[3, 1]], x_ref=[[1, 3]], like=like)
    np.testing.assert_array_equal(got.ravel(), [2 * multiplier, -2 * multiplier])


SOFT = graph([node("Softmax", ["x"], ["y"])], {"x": (3,)}, outputs={"y": (3,)})


@pytest.mark.parametrize("like", ["shap", "captum", "innsight"])
def test_softmax_element_by_element(like):
    x, x0 = np.array([1.0, 0.2, -0.5]), np.array([0.3, -0.4, 0.1])
    got = explain(ox.DeepLift, SOFT, [x], x_ref=x0[None], ignore_last_act=False, like=like)[0]
    y, y0 = (np.exp(v) / np.exp(v).sum() for v in (x, x0))
    multipliers = np.diag((y - y0) / (x - x0))
    if like == "captum":
        multipliers = multipliers - multipliers.mean(axis=0)
    np.testing.assert_allclose(got, multipliers * (x - x0)[:, None], atol=1e-12)


def test_captums_softmax_does_not_depend_on_the_batch():
    x = np.random.default_rng(0).normal(size=(5, 3))
    options = {"ignore_last_act": False, "like": "captum"}
    alone = [explain(ox.DeepLift, SOFT, x[i : i + 1], **options)[0] for i in range(5)]
    np.testing.assert_array_equal(explain(ox.DeepLift, SOFT, x, **options), alone)


def test_products_are_exact_whatever_library():
    model = ox.convert(graph([node("Mul", ["a", "b"], ["y"])], {"a": (1,), "b": (1,)}))
    for like in DEEPLIFT:
        method = ox.DeepLift(model, [[[3.0]], [[5.0]]], x_ref=[[[1.0]], [[2.0]]], like=like)
        assert method.decomp_sum[0].item() == 13
        assert method.result[0][0].item() == 7  # (3 - 1) (5 + 2) / 2


def test_reveal_cancel_of_deeplift_adds_its_pseudocount():
    layers = [dense([[1.0, 1.0]], [0.5], "sigmoid"), dense([[1.0]])]
    x, x0, count = np.array([2.0, 0.0]), np.zeros(2), 1e-7
    options = {"x_ref": x0[None], "rule_name": "reveal_cancel"}
    got = explain(ox.DeepLift, layered(layers, (2,)), [x], like="deeplift", **options).ravel()
    f, z0, up, down = sigmoid, 0.5, 2.0, count
    rise = 0.5 * (f(z0 + up) - f(z0) + f(z0 + down + up) - f(z0 + down))
    np.testing.assert_allclose(got, [rise, 0], rtol=1e-13)
    assert got[0] != explain(ox.DeepLift, layered(layers, (2,)), [x], **options)[0, 0, 0]


# -- gradients -------------------------------------------------------------------------------------

CUBE = graph([node("Mul", ["x", "x"], ["q"]), node("Mul", ["q", "x"], ["y"])], {"x": (1,)},
             outputs={"y": (1,)})  # fmt: skip
LINE = graph([node("MatMul", ["x", "w"], ["y"])], {"x": (1,)}, {"w": [[3]]}, outputs={"y": (1,)})


@pytest.mark.parametrize(
    "model, x, like, options, want",
    [
        (CUBE, 2, "captum", {"quadrature": "riemann_left", "n": 10}, 6.84),
        (CUBE, 2, "captum", {"quadrature": "riemann_right", "n": 10}, 9.24),
        (CUBE, 2, "captum", {"quadrature": "riemann_middle", "n": 10}, 7.98),
        (CUBE, 2, "captum", {"quadrature": "trapezoid", "n": 10}, 7.2444),
        (CUBE, 2, "captum", {"quadrature": "trapezoid", "n": 50}, 7.8416),
        (CUBE, 2, "captum", {"n": 10}, 8),
        (CUBE, 2, "captum", {}, 8),
        (LINE, 1, "captum", {"quadrature": "trapezoid", "n": 50}, 2.94),
        (LINE, 1, None, {"quadrature": "trapezoid", "n": 50}, 3),
        (CUBE, 2, "zennit", {"n": 10}, 9.24),
        (CUBE, 2, "innsight", {"n": 10}, 9.24),
        (CUBE, 2, "innvestigate", {"n": 10}, 6.84),
        (CUBE, 2, "deeplift", {"n": 10}, 7.98),
    ],
)
def test_integrated_gradient(model, x, like, options, want):
    got = explain(ox.IntegratedGradient, model, [[x]], like=like, **options).item()
    assert got == pytest.approx(want, abs=5e-5)


@pytest.mark.parametrize(
    "method, like, want",
    [
        ("IntegratedGradient", None, {"n": 50, "quadrature": "riemann_right"}),
        ("IntegratedGradient", "captum", {"n": 50, "quadrature": "gauss_legendre"}),
        ("IntegratedGradient", "zennit", {"n": 20, "quadrature": "riemann_right"}),
        ("IntegratedGradient", "innvestigate", {"n": 64, "quadrature": "riemann_left"}),
        ("IntegratedGradient", "innsight", {"n": 50, "quadrature": "riemann_right"}),
        ("SmoothGrad", None, {"n": 50, "noise_level": 0.1}),
        ("SmoothGrad", "captum", {"n": 5, "noise_level": 1.0}),
        ("SmoothGrad", "innvestigate", {"n": 64, "noise_level": 1.0}),
        ("SmoothGrad", "zennit", {"n": 20, "noise_level": 0.1}),
        ("SmoothGrad", "innsight", {"n": 50, "noise_level": 0.1}),
        ("ExpectedGradient", None, {"n": 50}),
        ("ExpectedGradient", "captum", {"n": 5}),
        ("ExpectedGradient", "shap", {"n": 200}),
    ],
)
def test_defaults(method, like, want):
    found = METHODS[method](ox.convert(LINE), [[1.0]], like=like)
    assert {name: getattr(found, name) for name in want} == want


SQUARE = graph([node("Mul", ["x", "x"], ["q"]), node("MatMul", ["q", "w"], ["y"])], {"x": (2,)},
               {"w": np.full((2, 1), 0.5)})  # fmt: skip


@pytest.mark.parametrize(
    "like, sigmas",
    [
        (None, (0.2, 0.4, 0.1)),
        ("zennit", (0.2, 0.4, 0)),
        ("innsight", (0.5, 0.5, 0.5)),
        ("innvestigate", (0.1, 0.1, 0.1)),
        ("captum", (0.1, 0.1, 0.1)),
    ],
)
def test_noise_of_smoothgrad(like, sigmas):
    x, n = np.array([[0, 2.0], [1, 5], [3, 3]]), 7
    options = {"n": n, "noise_level": 0.1, "seed": 4, "like": like, "times_input": False}
    noise = np.random.default_rng(4).standard_normal((n, 2))
    if like == "zennit":
        noise[-1] = 0
    points = x + np.array(sigmas)[:, None] * noise[:, None]  # the gradient is the point itself
    points = abs(points) if like == "captum" else points
    got = explain(ox.SmoothGrad, SQUARE, x, **options)[..., 0]
    np.testing.assert_allclose(got, points.mean(axis=0), rtol=1e-12)


def test_gradients_of_captum_have_no_sign():
    model = layered([dense([[-2, 3]])], (2,))
    x = [[-1.0, -1]]
    np.testing.assert_array_equal(explain(ox.Gradient, model, x)[0, :, 0], [-2, 3])
    np.testing.assert_array_equal(explain(ox.Gradient, model, x, like="captum")[0, :, 0], [2, 3])
    signed = explain(ox.Gradient, model, x, like="captum", times_input=True)
    np.testing.assert_array_equal(signed[0, :, 0], [2, -3])


# -- what is asked for -----------------------------------------------------------------------------

HAS = {
    "Gradient": {"captum", "deeplift", "innsight", "innvestigate", "zennit"},
    "SmoothGrad": {"captum", "innsight", "innvestigate", "zennit"},
    "IntegratedGradient": {"captum", "deeplift", "innsight", "innvestigate", "zennit"},
    "ExpectedGradient": {"captum", "innsight", "shap"},
    "LRP": {"captum", "innsight", "innvestigate", "zennit"},
    "DeepLift": {"captum", "deeplift", "innsight", "shap"},
    "DeepSHAP": {"captum", "deeplift", "innsight", "shap"},
    "ConnectionWeights": {"innsight"},
}


@pytest.mark.parametrize("like", LIBRARIES)
@pytest.mark.parametrize("method", HAS)
def test_a_library_has_the_method_or_an_error_names_those_that_have(method, like):
    arguments = {"times_input": True} if method == "ConnectionWeights" else {}

    def run():
        return METHODS[method](ox.convert(LAYER), [[1.0, -1, 2]], like=like, **arguments)

    if like in HAS[method]:
        assert np.isfinite(run().get_result()).all()
        return
    with pytest.raises(ArgumentError, match=f"{like} has no {method}; like=.*innsight"):
        run()


@pytest.mark.parametrize(
    "method, options, words",
    [
        (
            "LRP",
            {"like": "captum", "rule_name": "flat"},
            "captum has no rule 'flat'; it has simple",
        ),
        (
            "LRP",
            {"like": "captum", "rule_name": "epsilon_plus"},
            "captum has no rule 'epsilon_plus",
        ),
        ("LRP", {"like": "innsight", "rule_name": "gamma"}, "innsight has no rule 'gamma'"),
        ("LRP", {"like": "captum", "rule_name": "alpha_beta", "rule_param": 2}, "alpha 1, got 2"),
        ("DeepLift", {"like": "shap", "rule_name": "reveal_cancel"}, "shap has no rule 'reveal_c"),
        ("DeepSHAP", {"like": "captum", "rule_name": "reveal_cancel"}, "it has rescale"),
        ("IntegratedGradient", {"like": "zennit", "quadrature": "trapezoid"}, "for like='zennit'"),
        ("Gradient", {"like": "keras"}, "one of 'captum', .*, got 'keras'"),
    ],
)
def test_what_a_library_does_not_have(method, options, words):
    with pytest.raises(ArgumentError, match=words):
        METHODS[method](ox.convert(LAYER), [[1.0, -1, 2]], **options)


def test_rules_as_values_may_be_asked_for_whatever_library():
    got = explain(ox.LRP, LAYER, [[1, -1, 2]], rule_name=Flat(), like="captum")[0, :, 0]
    np.testing.assert_allclose(got, [9.5 / 3] * 3, rtol=1e-8)


def test_a_method_without_conventions_says_so():
    with pytest.raises(ArgumentError, match="Other follows no library"):
        checked_like("captum", "Other", {None: None})


@pytest.mark.parametrize(
    "method, options, words",
    [
        ("LRP", {"like": "captum"}, "like: 'captum'"),
        ("LRP", {"like": "zennit", "rule_name": "epsilon_plus"}, "Epsilon(epsilon=1e-06"),
        ("LRP", {"rule_name": "epsilon_plus"}, "Epsilon(epsilon=1e-06): Gemm_0"),
        ("DeepLift", {"like": "captum"}, "QuotientRescale(near_zero=1e-10, slope_at='input')"),
        ("DeepLift", {"like": "deeplift"}, "cross_maximum=False"),
        ("SmoothGrad", {"like": "zennit"}, "clean_last=True"),
    ],
)
def test_repr_shows_conventions(method, options, words):
    assert words in repr(METHODS[method](ox.convert(LAYER), [[1.0, -1, 2]], **options))
