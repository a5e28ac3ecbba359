"""Rules against tables of numbers measured on other libraries, and against identities.

The libraries: captum 0.9.0, zennit 1.0, shap 0.51, tangermeme 1.6, on one small layer each.
"""

from itertools import permutations

import numpy as np
import pytest
from onnx import helper

import onnxplain as ox
from networks import dense, graph, layered, random_dense
from onnxplain.rules import AlphaBeta, Flat, Gamma, Simple, WSquare, ZBox, ZPlus

node = helper.make_node


def explain(method, model, x, **options):
    """Return a method's result in float64."""
    return method(ox.convert(model), np.asarray(x, float), dtype="double", **options).get_result()


def close(got, want, tolerance=1e-12):
    """Compare to a share of the largest number."""
    want = np.asarray(want, float)
    scale = max(abs(want).max(), 1e-300)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)


# ---------------------------------------------------------------- LRP rules on one linear layer

LINEAR = ([[1, -2, 3], [-1, 0.5, 2]], [0.5, -0.7])
LINEAR_X = [[1, -1, 2]]
TABLE = [  # rule, relevance for the first output (9.5) and the second (1.8)
    (Simple(), (1, 2, 6), (-1, -0.5, 4)),
    (Gamma(0.25), (1, 2, 6), (-0.642857, -0.321428, 3.214285)),
    (Gamma(), (1, 2, 6), (-0.642857, -0.321428, 3.214285)),
    (ZPlus(), (1, 2, 6), (0, 0, 1.8)),
    (AlphaBeta(1), (1, 2, 6), (0, 0, 1.8)),
    # Nothing negative feeds the first output: alpha doubles it and nothing takes it back.
    (AlphaBeta(2), (2, 4, 12), (-0.818181, -0.409091, 3.6)),
    (WSquare(), (0.666667, 2.666666, 6), (0.313589, 0.078397, 1.254355)),
    (Flat(), (3.166666,) * 3, (0.6,) * 3),
    (ZBox(-3, 3), (1.407407, 2.814815, 5.277778), (0.276923, 0.138462, 1.384615)),
]


@pytest.mark.parametrize("matmul", [False, True], ids=["Gemm", "MatMul+Add"])
@pytest.mark.parametrize("rule, first, second", TABLE, ids=lambda v: str(v))
def test_rule_on_a_linear_layer_as_in_zennit(rule, first, second, matmul):
    model = layered([dense(*LINEAR)], (3,), matmul=matmul)
    got = explain(ox.LRP, model, LINEAR_X, rule_name=rule)[0]
    # Six decimals, some of them cut off, with zennit's stabiliser of 1e-6 in the denominators.
    np.testing.assert_allclose(got.T, [first, second], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "name, rule",
    [
        ("simple", Simple()),
        ("gamma", Gamma()),
        ("z_plus", ZPlus()),
        ("alpha_beta", AlphaBeta()),
        ("w_square", WSquare()),
        ("flat", Flat()),
    ],
)
def test_rule_by_name_is_the_rule_by_value(name, rule):
    model = layered([dense(*LINEAR)], (3,))
    by_name = explain(ox.LRP, model, LINEAR_X, rule_name=name)
    np.testing.assert_array_equal(by_name, explain(ox.LRP, model, LINEAR_X, rule_name=rule))


def test_squared_weights_without_bias_as_in_zennit():
    model = layered([dense(LINEAR[0])], (3,))
    got = explain(ox.LRP, model, LINEAR_X, rule_name="w_square")[0].T
    # The outputs are 9 and 2.5 here; the table has 9.5 and 1.8.
    got *= np.array([[9.5 / 9], [1.8 / 2.5]])
    want = [(0.678571, 2.714286, 6.107142), (0.342857, 0.085714, 1.371428)]
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("epsilon", [1e-6, 0.01, 0.5])
def test_bias_and_epsilon_absorb_what_the_inputs_do_not_get(epsilon):
    model = layered([dense(*LINEAR)], (3,))
    got = explain(ox.LRP, model, LINEAR_X, rule_name="epsilon", rule_param=epsilon)[0]
    z, bias = np.array([9.5, 1.8]), np.array([0.5, -0.7])
    close(got.sum(axis=0), z - z * (bias + epsilon) / (z + epsilon))


def test_measured_bias_shares_of_lrp():
    model = layered([dense(*LINEAR)], (3,))
    method = ox.LRP(ox.convert(model), LINEAR_X, dtype="double")
    close(method.decomp_goal[0] - method.decomp_sum[0], [[0.5, -0.7]])
    close(method.ledger()["bias"].sum(), 0.5 - 0.7)


# ---------------------------------------------------------------- LRP through sums and pools


def residual(weights):
    """Return y = sum(W x + x)."""
    n = len(weights)
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Add", ["h", "x"], ["s"]),
        node("ReduceSum", ["s", "axes"], ["y"], keepdims=1),
    ]
    constants = {"w": np.transpose(weights), "axes": np.array([1], np.int64)}
    return graph(nodes, {"x": (n,)}, constants)


def test_residual_sum_shares_by_contribution():
    # A plain + gives (6, 0) in zennit and captum: their hooks hand the whole to both branches.
    got = explain(ox.LRP, residual(np.diag([2.0, -1])), [[1, 3]])
    close(got[0, :, 0], (3, 0))


def test_residual_sum_shares_equally_like_innsight():
    rng = np.random.default_rng(0)
    weights, x = rng.normal(size=(3, 3)), rng.normal(size=3)
    got = explain(ox.LRP, residual(weights), x[None], like="innsight")[0, :, 0]
    h = weights @ x
    half = 0.5 * (h + x)
    close(got, half + x * (weights.T @ (half / h)))


def test_average_pool_shares_by_contribution():
    model = graph(
        [
            node("GlobalAveragePool", ["x"], ["p"]),
            node("Flatten", ["p"], ["f"]),
            node("MatMul", ["f", "w"], ["y"]),
        ],
        {"x": (1, 4)},
        {"w": [[2.0]]},
    )
    x = np.array([[[1.0, 2, -4, 5]]])
    close(explain(ox.LRP, model, x)[0, 0, :, 0], [0.5, 1, -2, 2.5])
    close(explain(ox.LRP, model, x, like="innsight")[0, 0, :, 0], [0.5, 0.5, 0.5, 0.5])


# ---------------------------------------------------------------- DeepLIFT

POOL_WEIGHTS = {"shape": np.array([0, -1], np.int64), "w": [[1.0], [2.0]]}


def pooled(length, kernel):
    nodes = [
        node("MaxPool", ["x"], ["p"], kernel_shape=[kernel], strides=[kernel]),
        node("Reshape", ["p", "shape"], ["f"]),
        node("MatMul", ["f", "w"], ["y"]),
    ]
    return graph(nodes, {"x": (1, length)}, POOL_WEIGHTS)


@pytest.mark.parametrize(
    "x, reference, want",
    [
        ([3, 1, 0, 5], [0, 2, 1, 0.5], [1, 0, 0, 8]),
        ([1, 2, 4, 4], [1, 2, 0, 0], [0, 0, 8, 0]),  # ties go to the first
    ],
)
def test_max_pool_contributions_on_which_captum_shap_and_tangermeme_agree(x, reference, want):
    x, reference = (np.array([[v]], float) for v in (x, reference))
    close(explain(ox.DeepLift, pooled(4, 2), x, x_ref=reference)[0, 0, :, 0], want)


@pytest.mark.parametrize("kernel, stride", [(2, 2), (3, 1), (3, 2), (4, 2), (10, 5)])
@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
@pytest.mark.parametrize("winner_takes_all", [True, False])
def test_max_pool_adds_up_also_where_windows_overlap(kernel, stride, rule, winner_takes_all):
    rng = np.random.default_rng(kernel)
    pools = (24 - kernel) // stride + 1
    nodes = [
        node("Conv", ["x", "c", "b"], ["z"], pads=[1, 1]),
        node("Relu", ["z"], ["h"]),
        node("MaxPool", ["h"], ["p"], kernel_shape=[kernel], strides=[stride]),
        node("Flatten", ["p"], ["f"]),
        node("MatMul", ["f", "w"], ["y"]),
    ]
    weights = {
        "c": rng.normal(size=(3, 2, 3)),
        "b": rng.normal(size=3),
        "w": rng.normal(size=(3 * pools, 2)),
    }
    x, reference = rng.normal(size=(5, 2, 24)), rng.normal(size=(1, 2, 24))
    method = ox.DeepLift(
        ox.convert(graph(nodes, {"x": (2, 24)}, weights)),
        x,
        x_ref=reference,
        rule_name=rule,
        winner_takes_all=winner_takes_all,
        dtype="double",
    )
    assert abs(method.decomp_goal[0]).min() > 1e-3
    close(method.decomp_sum[0], method.decomp_goal[0])


@pytest.mark.parametrize("dx", [0.5, 1e-3, 1e-5, 1e-6, 1e-7])
def test_float32_multiplier_of_a_sigmoid_is_right_however_small_the_difference(dx):
    # captum: 2 % off at 1e-5, 33 % at 1e-6, 130 % at 1e-7.
    net = ox.convert(graph([node("Sigmoid", ["x"], ["y"])], {"x": (1,)}, dtype="float32"))
    reference = np.float32(0.7)
    x = np.float32(reference + np.float32(dx))
    options = {"x_ref": np.array([[reference]]), "ignore_last_act": False, "like": None}
    got = ox.DeepLift(net, np.array([[x]]), **options).get_result().item() / float(x - reference)
    a, b = float(x), float(reference)
    half = (a - b) / 2
    want = np.sinh(half) / half / (4 * np.cosh(a / 2) * np.cosh(b / 2))
    assert got == pytest.approx(want, rel=3e-7)


ACTIVATIONS = {  # inputs, attributes, constants
    "Gelu": (["x"], {}, {}),
    "HardSwish": (["x"], {}, {}),
    "Selu": (["x"], {}, {}),
    "Mish": (["x"], {}, {}),
    "LogSoftmax": (["x"], {"axis": -1}, {}),
    "Softmax": (["x"], {"axis": -1}, {}),
    "PRelu": (["x", "slope"], {}, {"slope": [0.25]}),
    "Clip": (["x", "low", "high"], {}, {"low": 0.0, "high": 6.0}),
    "Relu": (["x"], {}, {}),
    "Softplus": (["x"], {}, {}),
    "Tanh": (["x"], {}, {}),
}


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_deeplift_adds_up_for_activations_that_others_give_a_plain_gradient(op):
    rng = np.random.default_rng(1)
    (first, *rest), attributes, constants = ACTIVATIONS[op]
    nodes = [
        node("MatMul", ["in", "w"], [first]),
        node(op, [first, *rest], ["a"], **attributes),
        node("MatMul", ["a", "v"], ["y"]),
    ]
    weights = {"w": 2 * rng.normal(size=(3, 4)), "v": rng.normal(size=(4, 2)), **constants}
    x, reference = rng.normal(size=(6, 3)), rng.normal(size=(1, 3))
    method = ox.DeepLift(
        ox.convert(graph(nodes, {"in": (3,)}, weights)), x, x_ref=reference, dtype="double"
    )
    close(method.decomp_sum[0], method.decomp_goal[0])


@pytest.mark.parametrize("rows", [slice(0, 1), slice(0, 2), slice(None)])
def test_deeplift_of_softmax_does_not_depend_on_the_rest_of_the_batch(rows):
    # captum 0.9.0 subtracts a mean over the batch.
    rng = np.random.default_rng(2)
    nodes = [node("MatMul", ["x", "w"], ["z"]), node("Softmax", ["z"], ["y"], axis=-1)]
    model = graph(nodes, {"x": (3,)}, {"w": rng.normal(size=(3, 3))})
    x = rng.normal(size=(4, 3))
    options = {"ignore_last_act": False, "x_ref": rng.normal(size=(1, 3))}
    whole = explain(ox.DeepLift, model, x, **options)
    np.testing.assert_allclose(
        explain(ox.DeepLift, model, x[rows], **options), whole[rows], rtol=1e-13, atol=1e-15
    )


# ---------------------------------------------------------------- Shapley values of two players


def shapley(f, x, reference):
    """Return the exact Shapley values of f: (players) -> number."""
    n = len(x)
    values = np.zeros(n)
    orders = list(permutations(range(n)))
    for order in orders:
        point = np.array(reference, float)
        before = f(point)
        for i in order:
            point[i] = x[i]
            after = f(point)
            values[i] += (after - before) / len(orders)
            before = after
    return values


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "softplus"])
@pytest.mark.parametrize("x, reference", [((2, -1), (0.2, 0.4)), ((0.3, 1.7), (-1, -0.5))])
def test_reveal_cancel_is_shapley_for_a_rising_and_a_falling_player(activation, x, reference):
    weights, bias = np.array([[1.5, -0.8]]) * np.sign(np.subtract(x, reference)), [0.3]
    weights[0, 1] *= -np.sign(weights[0, 1] * (x[1] - reference[1]))  # pulls down
    model = layered([dense(weights, bias, activation), dense([[1.0]])], (2,))
    net = ox.convert(model, dtype="double")
    want = shapley(lambda p: net(p[None])[0].item(), np.array(x, float), reference)
    options = {"x_ref": np.array([reference]), "rule_name": "reveal_cancel"}
    close(explain(ox.DeepLift, model, [x], **options)[0, :, 0], want)


@pytest.mark.parametrize("op", ["Mul", "MatMul"])
def test_deeplift_of_a_product_is_shapley(op):
    nodes = [
        node("Reshape", ["x", "shape"], ["m"]),
        node("Split", ["m"], ["m1", "m2"], axis=1, num_outputs=2),
        node(op, ["m1", "m2"], ["y"]),
    ]
    model = graph(nodes, {"x": (2,)}, {"shape": np.array([0, 2, 1], np.int64)})
    x, reference = np.array([3.0, -2]), np.array([1.0, 0.5])
    want = shapley(lambda p: p[0] * p[1], x, reference)
    close(explain(ox.DeepLift, model, x[None], x_ref=reference[None])[0, :, 0], want)


# ---------------------------------------------------------------- integrated gradients

POWER = graph([node("Pow", ["x", "n"], ["y"])], {"x": (1,)}, {"n": 3.0})
QUADRATURES = ["riemann_right", "riemann_left", "riemann_middle", "trapezoid", "gauss_legendre"]


def integrate(model, x, quadrature, n, **options):
    return explain(ox.IntegratedGradient, model, x, quadrature=quadrature, n=n, **options)


@pytest.mark.parametrize(
    "quadrature, n, want",
    [
        ("riemann_left", 10, 6.84),
        ("riemann_right", 10, 9.24),
        ("riemann_middle", 10, 7.98),
        ("gauss_legendre", 10, 8),  # captum: 8.00000007, its nodes are float32
        # captum's trapezoid has weights that add up to 1 - 1 / n: 7.2444 and 7.8416.
        ("trapezoid", 10, 7.24444444444 * 10 / 9),
        ("trapezoid", 50, 7.84163265306 * 50 / 49),
    ],
)
def test_integrated_gradient_of_a_cube(quadrature, n, want):
    # The gradient is 12 a^2 times the difference of 2: the exact integral is 8.
    assert integrate(POWER, [[2.0]], quadrature, n).item() == pytest.approx(want, rel=1e-11)


@pytest.mark.parametrize("n, measured", [(10, 7.2444), (50, 7.8416)])
def test_trapezoid_of_a_cube_is_the_one_of_captum_with_weights_that_add_up_to_one(n, measured):
    got = integrate(POWER, [[2.0]], "trapezoid", n).item() * (1 - 1 / n)
    assert got == pytest.approx(measured, abs=5e-5)


@pytest.mark.parametrize("n", [2, 3, 50])
@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_every_quadrature_is_exact_on_linear_functions(quadrature, n):
    # captum's trapezoid returns 2.94 for 3 x at x = 1.
    model = layered([dense([[3.0, -1, 0.5]], [7.0])], (3,))
    x, reference = np.array([[1.0, 2, -4]]), np.array([[0.0, 5, 2]])
    got = integrate(model, x, quadrature, n, x_ref=reference)
    close(got[0, :, 0], [3, 3, -3], 1e-14)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_gauss_legendre_is_exact_on_gradients_of_degree_below_twice_the_points(n):
    degree = 2 * n  # the gradient has degree 2 n - 1
    model = graph([node("Pow", ["x", "n"], ["y"])], {"x": (1,)}, {"n": float(degree)})
    got = integrate(model, [[1.5]], "gauss_legendre", n, x_ref=np.array([[-0.5]]))
    close(got.item(), 1.5**degree - 0.5**degree, 1e-13)
    higher = graph([node("Pow", ["x", "n"], ["y"])], {"x": (1,)}, {"n": float(degree + 1)})
    missed = integrate(higher, [[1.5]], "gauss_legendre", n, x_ref=np.array([[-0.5]]))
    assert abs(missed.item() - 1.5 ** (degree + 1) - 0.5 ** (degree + 1)) > 1e-4


# ---------------------------------------------------------------- identities on random nets

INPUT = (2, 9, 8)


def image_net(rng, bias=True, pool="MaxPooling2D"):
    def b(n):
        return rng.normal(size=n) if bias else np.zeros(n)

    return [
        {
            "type": "Conv2D",
            "weight": rng.normal(size=(3, 2, 3, 2)),
            "bias": b(3),
            "padding": [1, 0, 2, 1],
            "activation_name": "relu",
        },
        {"type": pool, "kernel_size": [3, 2], "strides": [2, 2]},
        {
            "type": "Conv2D",
            "weight": rng.normal(size=(4, 3, 2, 2)),
            "bias": b(4),
            "stride": [2, 1],
            "activation_name": "relu",
        },
        {"type": "Flatten"},
        dense(rng.normal(size=(3, 4 * 2 * 3)), b(3)),
    ]


def nets(bias):
    """Return models with inputs and one reference."""
    rng = np.random.default_rng(3)  # a seed with outputs of both signs in each net
    for layers, shape in [
        (random_dense(rng, (5, 8, 6, 3), bias=bias), (5,)),
        (image_net(rng, bias), INPUT),
        (image_net(rng, bias, "AveragePooling2D"), INPUT),
    ]:
        model = layered(layers, shape)
        yield model, rng.normal(size=(4, *shape)), rng.normal(size=(1, *shape))


KINDS = range(3)


def net(kind, bias=True):
    return list(nets(bias))[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_lrp_is_gradient_times_input_also_with_biases(kind):
    model, x, _ = net(kind)
    close(explain(ox.LRP, model, x), explain(ox.Gradient, model, x, times_input=True))


@pytest.mark.parametrize("kind", KINDS)
def test_lrp_without_biases_adds_up_to_the_output(kind):
    model, x, _ = net(kind, bias=False)
    method = ox.LRP(ox.convert(model), x, dtype="double")
    close(method.decomp_sum[0], method.decomp_goal[0])
    close(method.decomp_goal[0], method.preds[0])


@pytest.mark.parametrize("kind", KINDS)
def test_deeplift_from_zero_without_biases_is_lrp(kind):
    model, x, _ = net(kind, bias=False)
    close(explain(ox.DeepLift, model, x), explain(ox.LRP, model, x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "one, other",
    [
        (AlphaBeta(1), ZPlus()),
        (Gamma(0), Simple()),
        ("z_plus", AlphaBeta(1.0)),
    ],
)
def test_rules_that_are_the_same(kind, one, other):
    model, x, _ = net(kind)
    close(explain(ox.LRP, model, x, rule_name=one), explain(ox.LRP, model, x, rule_name=other))


@pytest.mark.parametrize("kind", KINDS)
def test_large_gamma_is_z_plus_for_positive_outputs(kind):
    model, x, _ = net(kind)
    got = explain(ox.LRP, model, x, rule_name=Gamma(1e9))
    want = explain(ox.LRP, model, x, rule_name=ZPlus())
    outputs = ox.convert(model, dtype="double")(x)[0]
    assert (outputs > 0).sum() >= 3
    picked = np.broadcast_to((outputs > 0).reshape(len(x), *(1,) * (x.ndim - 1), -1), got.shape)
    close(got[picked], want[picked], 1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_deepshap_with_one_reference_is_deeplift(kind, rule):
    model, x, reference = net(kind)
    shap = explain(ox.DeepSHAP, model, x, data_ref=reference, rule_name=rule)
    close(shap, explain(ox.DeepLift, model, x, x_ref=reference, rule_name=rule))


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_deepshap_is_the_mean_of_deeplift_over_references(rule):
    model, x, reference = net(1)
    references = np.concatenate([reference, x[:2] + 0.5, np.zeros_like(reference)])
    shap = explain(ox.DeepSHAP, model, x, data_ref=references, rule_name=rule)
    each = [explain(ox.DeepLift, model, x, x_ref=r[None], rule_name=rule) for r in references]
    close(shap, np.mean(each, axis=0))


def test_expected_gradient_with_one_reference_approaches_integrated_gradient():
    model, x, reference = net(0)
    exact = integrate(model, x, "riemann_middle", 5000, x_ref=reference)
    options = {"data_ref": reference, "n": 400}
    drawn = np.array([explain(ox.ExpectedGradient, model, x, seed=s, **options) for s in range(25)])
    error = drawn.std(axis=0, ddof=1) / 5
    assert error.max() < 0.02 * abs(exact).max()
    # 60 numbers: four and a half standard errors, and what the midpoint rule leaves at kinks.
    assert (abs(drawn.mean(axis=0) - exact) < 4.5 * error + 1e-3 * abs(exact).max()).all()


def test_connection_weights_are_the_product_of_the_weights():
    layers = random_dense(np.random.default_rng(5), (5, 8, 6, 3), "tanh")
    product = layers[2]["weight"] @ layers[1]["weight"] @ layers[0]["weight"]
    got = ox.ConnectionWeights(ox.convert(layered(layers, (5,))), dtype="double").get_result()
    close(got[0], product.T)


def test_connection_weights_add_branches_up():
    weights = np.random.default_rng(6).normal(size=(3, 3))
    net = ox.convert(residual(weights))
    product = (weights + np.eye(3)).sum(axis=0)
    close(ox.ConnectionWeights(net, dtype="double").get_result()[0, :, 0], product)
    halves = ox.ConnectionWeights(net, dtype="double", like="innsight").get_result()
    close(halves[0, :, 0], product / 2)


@pytest.mark.parametrize(
    "method, options",
    [
        (ox.IntegratedGradient, {}),
        (ox.DeepLift, {"rule_name": "rescale"}),
        (ox.DeepLift, {"rule_name": "reveal_cancel"}),
    ],
)
def test_affine_net_is_explained_by_its_weights_times_the_difference(method, options):
    rng = np.random.default_rng(8)
    layers = [dense(rng.normal(size=(3, 5)), rng.normal(size=3)), dense(rng.normal(size=(2, 3)))]
    x, reference = rng.normal(size=(4, 5)), rng.normal(size=(1, 5))
    want = (layers[1]["weight"] @ layers[0]["weight"]).T * (x - reference)[..., None]
    close(explain(method, layered(layers, (5,)), x, x_ref=reference, **options), want)


# ---------------------------------------------------------------- axioms

METHODS = {
    "gradient": (ox.Gradient, {}),
    "smoothgrad": (ox.SmoothGrad, {"n": 7, "seed": 1}),
    "integrated": (ox.IntegratedGradient, {"n": 7}),
    "expected": (ox.ExpectedGradient, {"n": 7, "seed": 1}),
    "lrp": (ox.LRP, {}),
    "lrp epsilon": (ox.LRP, {"rule_name": "epsilon"}),
    "lrp alpha_beta": (ox.LRP, {"rule_name": "alpha_beta", "rule_param": 2}),
    "lrp gamma": (ox.LRP, {"rule_name": "gamma"}),
    "deeplift": (ox.DeepLift, {}),
    "deeplift reveal_cancel": (ox.DeepLift, {"rule_name": "reveal_cancel"}),
    "deepshap": (ox.DeepSHAP, {}),
    "connection weights": (ox.ConnectionWeights, {"times_input": True}),
}
LINEAR_IN_THE_MODEL = [
    "gradient",
    "smoothgrad",
    "integrated",
    "expected",
    "lrp",
    "deeplift",
    "deepshap",
    "connection weights",
]


@pytest.mark.parametrize("name", LINEAR_IN_THE_MODEL)
def test_explanation_of_a_sum_of_outputs_is_the_sum_of_explanations(name):
    method, options = METHODS[name]
    rng = np.random.default_rng(9)
    layers = random_dense(rng, (5, 8, 6, 3))
    x, mix = rng.normal(size=(4, 5)), np.array([[2.0, -0.7, 1.3]])
    parts = explain(method, layered(layers, (5,)), x, **options)
    whole = explain(method, layered([*layers, dense(mix)], (5,)), x, **options)
    close(whole[..., 0], parts @ mix[0])


@pytest.mark.parametrize("factor", [1000.0, -3.0])
@pytest.mark.parametrize("name", LINEAR_IN_THE_MODEL)
def test_explanation_of_a_scaled_output_is_scaled(name, factor):
    method, options = METHODS[name]
    rng = np.random.default_rng(10)
    layers = random_dense(rng, (5, 8, 6, 3))
    x = rng.normal(size=(4, 5))
    plain = explain(method, layered(layers, (5,)), x, **options)
    last = {**layers[-1], "weight": factor * layers[-1]["weight"]}
    last["bias"] = factor * last["bias"]
    close(explain(method, layered([*layers[:-1], last], (5,)), x, **options), factor * plain)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("name", METHODS)
def test_input_without_weights_gets_exactly_nothing(name, activation):
    method, options = METHODS[name]
    rng = np.random.default_rng(11)
    layers = random_dense(rng, (5, 8, 6, 3), activation)
    layers[0]["weight"][:, 2] = 0
    got = explain(method, layered(layers, (5,)), rng.normal(size=(4, 5)), **options)
    assert (got[:, 2] == 0).all()
    assert (got[:, [0, 1, 3, 4]] != 0).any()


@pytest.mark.parametrize("name", ["integrated", "deeplift", "deeplift reveal_cancel", "deepshap"])
def test_input_equal_to_its_reference_gets_exactly_nothing_and_a_single_other_one_all(name):
    method, options = METHODS[name]
    rng = np.random.default_rng(12)
    model = layered(random_dense(rng, (5, 8, 6, 3), "tanh"), (5,))
    reference = rng.normal(size=(1, 5))
    x = reference.copy()
    x[0, 3] += 1.5
    if name == "integrated":
        options = {"quadrature": "gauss_legendre", "n": 100}
    option = "data_ref" if method is ox.DeepSHAP else "x_ref"
    found = method(ox.convert(model), x, dtype="double", **options, **{option: reference})
    got = found.get_result()
    assert (np.delete(got, 3, axis=1) == 0).all()
    close(got[:, 3], found.decomp_goal[0])


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("smoothgrad", "expected")])
def test_explanation_follows_a_permutation_of_the_inputs(name):
    method, options = METHODS[name]
    rng = np.random.default_rng(13)
    layers = random_dense(rng, (5, 8, 6, 3))
    x, order = rng.normal(size=(4, 5)), rng.permutation(5)
    plain = explain(method, layered(layers, (5,)), x, **options)
    moved = [{**layers[0], "weight": layers[0]["weight"][:, order]}, *layers[1:]]
    got = explain(method, layered(moved, (5,)), x[:, order], **options)
    close(got, plain[:, order])


@pytest.mark.parametrize("name", METHODS)
def test_gemm_or_matmul_and_add_are_explained_alike(name):
    method, options = METHODS[name]
    rng = np.random.default_rng(14)
    layers, x = random_dense(rng, (5, 8, 6, 3)), rng.normal(size=(4, 5))
    one = explain(method, layered(layers, (5,)), x, **options)
    close(explain(method, layered(layers, (5,), matmul=True), x, **options), one)
