"""LIME and SHAP: what their definitions promise, for functions and for converted models."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from onnx import helper

import onnxplain as ox
from networks import graph
from onnxplain.demo import MODEL, digits

RNG = np.random.default_rng(5)
X, REF = RNG.normal(size=(4, 5)), RNG.normal(size=(30, 5))
W = np.array([[1.0, -2.0, 0.5, 0.0, 3.0], [0.0, 1.0, 1.0, 0.0, -1.0]]).T
HIDDEN = RNG.normal(size=(5, 8))


def linear(x):
    return x @ W


def network(x):
    """Three outputs that all features but the last one take part in."""
    h = np.tanh(x[:, :4] @ HIDDEN[:4])
    return np.stack([h.sum(axis=1), h[:, 0] * h[:, 1], np.exp(h[:, 2])], axis=1)


def converter(**options):
    """A network of 5 features and 3 classes with softmax."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Tanh", ["h"], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["z"]),
        helper.make_node("Softmax", ["z"], ["y"]),
    ]
    weights = {"w": HIDDEN, "v": RNG.normal(size=(8, 3))}
    return ox.convert(graph(nodes, {"x": (5,)}, weights, outputs={"y": (3,)}), **options)


def brute_force(f, x, refs):
    """Shapley values from the definition: all orders, one feature after the other."""
    found = np.zeros((len(x), x.shape[1], f(x).shape[1]))
    orders = list(permutations(range(x.shape[1])))
    for n, row in enumerate(x):
        for order in orders:
            mixed = refs.copy()
            for j in order:
                before = f(mixed).mean(axis=0)
                mixed[:, j] = row[j]
                found[n, j] += f(mixed).mean(axis=0) - before
    return found / len(orders)


# -- SHAP: what the definition promises -----------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("f", [linear, network])
def test_values_add_up_to_the_difference_from_the_mean_answer(f, exact):
    shap = ox.SHAP(f, X, REF, exact=exact, seed=1)
    goal = f(X) - f(REF).mean(axis=0)
    np.testing.assert_allclose(shap.decomp_goal[0], goal, rtol=0, atol=1e-12)
    np.testing.assert_allclose(shap.decomp_sum[0], goal, rtol=0, atol=1e-10)


@pytest.mark.parametrize("exact", [True, False])
def test_a_linear_function_gives_weight_times_difference_from_the_mean(exact):
    shap = ox.SHAP(linear, X, REF, exact=exact, seed=1)
    expected = (X - REF.mean(axis=0))[:, :, None] * W
    np.testing.assert_allclose(shap.get_result(), expected, rtol=0, atol=1e-12)


def test_enumeration_equals_the_definition():
    found = ox.SHAP(network, X, REF[:7]).get_result()
    np.testing.assert_allclose(found, brute_force(network, X, REF[:7]), rtol=0, atol=1e-12)


def test_a_product_is_shared_by_its_factors():
    x, ref = np.array([[3.0, 5.0]]), np.array([[1.0, 2.0]])
    found = ox.SHAP(lambda z: z[:, 0] * z[:, 1], x, ref).get_result()[0, :, 0]
    # 3 5 - 1 2 = 13 by the mean over both orders: ((3-1) 2 + (3-1) 5) / 2 and the rest.
    np.testing.assert_allclose(found, [7.0, 6.0])


@pytest.mark.parametrize("exact", [True, False])
def test_a_feature_without_effect_gets_nothing(exact):
    found = ox.SHAP(network, X, REF, exact=exact, seed=1).get_result()
    np.testing.assert_allclose(found[:, 4], 0, atol=1e-15)
    assert (np.abs(found[:, :4]) > 1e-6).all()


def test_features_that_do_the_same_get_the_same():
    ref = REF.copy()
    ref[:, 1] = ref[:, 0]
    x = X.copy()
    x[:, 1] = x[:, 0]
    found = ox.SHAP(lambda z: np.sin(z[:, :1] + z[:, 1:2]) * z[:, 2:3], x, ref).get_result()
    np.testing.assert_allclose(found[:, 0], found[:, 1], rtol=0, atol=1e-12)


def test_some_orders_differ_from_all_of_them_by_the_standard_error():
    exact = ox.SHAP(network, X, REF).get_result()[:, :4]
    far, told = [], []
    for seed in range(60):
        sampled = ox.SHAP(network, X, REF, exact=False, n_permutations=5, seed=seed)
        far.append((sampled.get_result()[:, :4] - exact) ** 2)
        told.append(sampled.standard_error[0][0][:, :4] ** 2)
    np.testing.assert_allclose(np.mean(told, axis=0).mean(), np.mean(far, axis=0).mean(), rtol=0.2)


def test_standard_error_is_none_where_all_orders_are_used_and_nan_for_one():
    assert ox.SHAP(network, X, REF).standard_error is None
    one = ox.SHAP(network, X, REF, exact=False, n_permutations=1, seed=0)
    assert np.isnan(one.standard_error[0][0]).all()


def test_a_single_feature_gets_everything():
    for exact in (True, False):
        shap = ox.SHAP(lambda z: z**2, X[:, :1], REF[:, :1], exact=exact)
        expected = X[:, :1] ** 2 - (REF[:, :1] ** 2).mean()
        np.testing.assert_allclose(shap.get_result()[..., 0], expected)


def test_limit_ref_draws_references_by_the_seed():
    shap = ox.SHAP(network, X, REF, limit_ref=6, seed=3)
    assert len(shap.data_ref[0]) == 6
    same = ox.SHAP(network, X, shap.data_ref[0]).get_result()
    np.testing.assert_allclose(shap.get_result(), same, rtol=0, atol=1e-12)


# -- LIME -----------------------------------------------------------------------------------------


def test_slopes_of_a_linear_function_are_its_weights():
    lime = ox.LIME(linear, X, REF, bin_continuous=False, seed=1)
    np.testing.assert_allclose(lime.get_result(), np.broadcast_to(W, (4, 5, 2)), atol=2e-3)
    np.testing.assert_allclose(lime.r_squared[0], 1, atol=1e-5)
    np.testing.assert_allclose(lime.intercept[0], 0, atol=5e-3)


def test_weight_of_a_bin_is_its_mean_answer_less_that_of_the_others():
    train = RNG.uniform(size=(4000, 2))
    x = np.array([[0.9, 0.1]])
    lime = ox.LIME(lambda z: z[:, 0], x, train, seed=1, gower_pow=50, n_permutations=20000)
    # With weights of about one: the mean of the last quarter is 7/8, that of the others 3/8.
    np.testing.assert_allclose(lime.get_result()[0, :, 0], [0.5, 0.0], atol=0.02)


def test_signs_of_bins_follow_a_monotonic_function():
    x = np.array([[3.0, 3.0, 3.0], [-3.0, -3.0, -3.0]])
    lime = ox.LIME(lambda z: z @ [1.0, -2.0, 0.0], x, REF[:, :3], seed=1)
    found = lime.get_result()[..., 0]
    assert (np.sign(found[:, :2]) == [[1, -1], [-1, 1]]).all()
    assert np.abs(found[:, 2]).max() < 0.1


def test_opposite_outputs_have_opposite_weights():
    def classes(z):
        p = 1 / (1 + np.exp(-linear(z)[:, :1]))
        return np.hstack([p, 1 - p])

    found = ox.LIME(classes, X, REF, seed=1).get_result()
    np.testing.assert_allclose(found[..., 0], -found[..., 1], rtol=0, atol=1e-12)


def test_weights_scale_with_the_answers():
    small = ox.LIME(lambda z: 1e-6 * linear(z), X, REF, seed=1).get_result()
    large = ox.LIME(linear, X, REF, seed=1).get_result()
    np.testing.assert_allclose(small * 1e6, large, rtol=1e-9)


def test_ridge_solves_the_weighted_normal_equations():
    from onnxplain.methods.lime import _ridge

    design, weights = RNG.normal(size=(2, 50, 3)) * [1, 10, 0.1] + 5, RNG.uniform(size=(2, 50))
    answers = RNG.normal(size=(2, 50, 2))
    slopes, intercept, r_squared = _ridge(design, weights, answers, 0.0)
    for n in range(2):
        root = np.sqrt(weights[n])[:, None]
        full = np.hstack([design[n], np.ones((50, 1))])
        best, rest, *_ = np.linalg.lstsq(full * root, answers[n] * root, rcond=None)
        np.testing.assert_allclose(slopes[n], best[:3], rtol=1e-8)
        np.testing.assert_allclose(intercept[n], best[3], rtol=1e-8)
        level = np.average(answers[n], axis=0, weights=weights[n])
        total = (weights[n][:, None] * (answers[n] - level) ** 2).sum(axis=0)
        np.testing.assert_allclose(r_squared[n], 1 - rest / total, rtol=1e-8)


def test_a_few_features_are_the_largest_fitted_again():
    every = ox.LIME(linear, X, REF, bin_continuous=False, seed=1).get_result()
    lime = ox.LIME(linear, X, REF, bin_continuous=False, seed=1, n_features=2).get_result()
    assert ((lime != 0).sum(axis=1) == 2).all()
    kept = np.abs(every).argsort(axis=1)[:, -2:]
    assert np.take_along_axis(lime, kept, axis=1).all()


@pytest.mark.parametrize("options", [{}, {"quantile_bins": False}, {"bin_continuous": False}])
@pytest.mark.parametrize("dist_fun", ["gower", "euclidean"])
def test_every_kind_of_sample_finds_the_feature_that_matters(options, dist_fun):
    x = np.full((2, 5), 1.5)
    lime = ox.LIME(lambda z: np.tanh(z[:, 2]), x, REF, dist_fun=dist_fun, seed=1, **options)
    assert (np.abs(lime.get_result()[..., 0]).argmax(axis=1) == 2).all()


def test_whole_numbers_stay_whole_in_samples():
    train = np.stack([RNG.integers(0, 2, 50), RNG.normal(size=50)], axis=1)
    seen = []

    def f(z):
        seen.append(z[:, 0])
        return z[:, 0]

    for bins in (True, False):
        ox.LIME(f, train[:2], train, bin_continuous=bins, seed=1)
    assert (np.concatenate(seen) % 1 == 0).all()


def test_a_constant_feature_has_no_weight():
    train = REF.copy()
    train[:, 1] = 7
    for bins in (True, False):
        found = ox.LIME(linear, X, train, bin_continuous=bins, seed=1).get_result()
        assert not found[:, 1].any()
        assert found[:, 0, 0].all()


def test_a_constant_output_has_no_weights():
    lime = ox.LIME(lambda z: np.zeros(len(z)), X, REF, seed=1)
    assert not lime.get_result().any()


def test_lime_has_no_goal():
    lime = ox.LIME(linear, X, REF, seed=1)
    assert lime.decomp_goal is None
    assert np.isnan(lime.get_result("data.frame")["decomp_goal"]).all()


# -- groups ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False])
def test_features_of_a_group_share_the_value_of_the_group(exact):
    shap = ox.SHAP(linear, X, REF, groups=["a", "b", "a", "b", "c"], exact=exact, seed=1)
    single = ox.SHAP(linear, X, REF).get_result()
    found = shap.get_result()
    np.testing.assert_allclose(found[:, 0], found[:, 2])
    np.testing.assert_allclose(found[:, [0, 2]].sum(axis=1), single[:, [0, 2]].sum(axis=1))
    np.testing.assert_allclose(found[:, 4], single[:, 4])
    assert shap.groups[0].tolist() == [0, 1, 0, 1, 2]


def test_groups_of_lime_are_kept_or_replaced_by_the_baseline():
    lime = ox.LIME(linear, X, groups=np.arange(5), baseline=0.5, seed=1)
    np.testing.assert_allclose(lime.get_result(), (X - 0.5)[:, :, None] * W, atol=0.02)


def test_the_baseline_of_lime_is_the_mean_of_the_references():
    lime = ox.LIME(linear, X, REF, groups=np.arange(5), seed=1).get_result()
    mean = REF.mean(axis=0, keepdims=True)
    given = ox.LIME(linear, X, baseline=mean, groups=np.arange(5), seed=1).get_result()
    np.testing.assert_allclose(lime, given, rtol=0, atol=1e-12)


def picture(x):
    """The difference of the left and the right half of the first channel."""
    return x[:, 0, :, :8].sum(axis=(1, 2)) - x[:, 0, :, 8:].sum(axis=(1, 2))


@pytest.mark.parametrize("method", [ox.SHAP, ox.LIME])
def test_an_image_is_cut_into_patches_over_all_channels(method):
    x, ref = RNG.uniform(size=(2, 3, 16, 16)), np.zeros((2, 3, 16, 16))
    result = method(picture, x, ref, seed=1)
    assert result.groups[0].max() == 63
    assert (result.groups[0] == result.groups[0][:1]).all()
    found = result.get_result()[..., 0]
    patches = (np.sign(found[:, 0]) == np.where(np.arange(16) < 8, 1, -1)).mean()
    assert patches > 0.99
    np.testing.assert_array_equal(found[:, 0], found[:, 2])


@pytest.mark.parametrize("method", [ox.SHAP, ox.LIME])
def test_superpixels_are_labels_of_places(method):
    x, ref = RNG.uniform(size=(2, 3, 16, 16)), np.zeros((1, 3, 16, 16))
    halves = np.broadcast_to(np.arange(16) // 8, (16, 16))
    result = method(picture, x, ref, groups=halves, seed=1)
    sides = result.get_result()[..., 0].reshape(2, 3, 16, 2, 8).sum(axis=(1, 2, 4))
    expected = x[:, 0].reshape(2, 16, 2, 8).sum(axis=(1, 3)) * [1, -1]
    np.testing.assert_allclose(sides, expected, rtol=5e-3)


def test_channels_may_be_last_for_a_function():
    x = RNG.uniform(size=(2, 6, 4, 3))
    labels = np.arange(72).reshape(6, 4, 3) % 9

    def f(z):
        assert z.shape[1:] == (6, 4, 3)
        return (z * labels).sum(axis=(1, 2, 3))

    options = {"channels_first": False, "groups": labels}
    shap = ox.SHAP(f, x, np.zeros((1, 6, 4, 3)), **options)
    assert shap.get_result().shape == (2, 6, 4, 3, 1)
    assert shap.groups[0].shape == (3, 6, 4)
    found = shap.get_result()[..., 0]
    for k in range(9):
        np.testing.assert_allclose(
            found[:, labels == k].sum(axis=1), k * x[:, labels == k].sum(axis=1), atol=1e-12
        )
    assert [len(axis) for axis in shap.input_names[0]] == [3, 6, 4]


# -- what both have in common ---------------------------------------------------------------------

METHODS = {
    "shap": (ox.SHAP, {"seed": 1}),
    "orders": (ox.SHAP, {"seed": 1, "exact": False}),
    "lime": (ox.LIME, {"seed": 1, "n_permutations": 500}),
    "lime groups": (ox.LIME, {"seed": 1, "groups": [0, 0, 1, 2, 3], "n_permutations": 100}),
}
every_method = pytest.mark.parametrize(("method", "options"), METHODS.values(), ids=list(METHODS))


@every_method
def test_a_row_does_not_depend_on_its_batch(method, options):
    together = method(network, X, REF, **options).get_result()
    alone = [method(network, X[n : n + 1], REF, **options).get_result() for n in range(len(X))]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=0, atol=1e-12)


@every_method
def test_batch_size_bounds_rows_and_changes_nothing(method, options):
    most = []

    def f(z):
        most.append(len(z))
        return network(z)

    small = method(f, X, REF, batch_size=7, **options).get_result()
    assert max(most) <= 7
    np.testing.assert_allclose(
        small, method(network, X, REF, **options).get_result(), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", ["orders", "lime", "lime groups"])
def test_the_seed_decides(name):
    method, options = METHODS[name]
    first, again = (method(network, X, REF, **options).get_result() for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = method(network, X, REF, **options | {"seed": 2}).get_result()
    assert np.abs(first - other).max() > 1e-6


@every_method
def test_some_outputs_are_explained_as_among_all(method, options):
    everything = method(network, X, REF, **options)
    some = method(network, X, REF, output_idx=[2, 0], **options)
    np.testing.assert_allclose(
        some.get_result(), everything.get_result()[..., [2, 0]], rtol=0, atol=1e-12
    )
    frame = some.get_result("data.frame")
    np.testing.assert_allclose(frame[frame.output_node == "Y3"].pred[:4], network(X)[:, 2])


@every_method
def test_top_nodes_and_sums_are_explained_too(method, options):
    everything = method(network, X, REF, **options).get_result()
    top = method(network, X, REF, output_idx="top1", **options)
    best = network(X).argmax(axis=1)
    np.testing.assert_allclose(
        top.get_result()[..., 0], everything[np.arange(4), :, best], rtol=0, atol=1e-12
    )
    sums = method(network, X, REF, output_weights=[1.0, -1.0, 0.0], **options).get_result()
    if method is ox.SHAP or "groups" not in options:  # LIME is linear in its answers too
        expected = everything[..., 0] - everything[..., 1]
        np.testing.assert_allclose(sums[..., 0], expected, rtol=0, atol=1e-10)


@every_method
def test_a_converter_is_explained_as_its_function_is(method, options):
    c = converter(dtype="double")
    theirs = method(lambda z: c(z)[0], X, REF, **options).get_result()
    ours = method(c, X, REF, dtype="double", **options)
    np.testing.assert_allclose(ours.get_result(), theirs, rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours.preds[0], c(X)[0], rtol=0, atol=1e-12)


def test_the_last_activation_of_a_converter_can_be_left_away():
    c = converter()
    shap = ox.SHAP(c, X, REF, ignore_last_act=True, dtype="double")
    goal = ox.ExpectedGradient(c, X, data_ref=REF, dtype="double", n=1).decomp_goal[0]
    np.testing.assert_allclose(shap.decomp_sum[0], goal, rtol=0, atol=1e-10)


@every_method
def test_float32_is_close_to_float64(method, options):
    c = converter()
    single, double = (method(c, X, REF, dtype=d, **options) for d in ("float", "double"))
    assert single.get_result().dtype == np.float32
    np.testing.assert_allclose(single.get_result(), double.get_result(), atol=2e-4)


@every_method
def test_results_are_shown_like_those_of_other_methods(method, options):
    result = method(converter(), X, REF, **options)
    assert method.__name__ in repr(result)
    assert len(result.get_result("data.frame")) == 4 * 5 * 3
    assert result.get_result("xarray").dims == ("batch", "feature", "output_node")
    for figure in (result.plot(data_idx=[0, 1]), result.boxplot(), result.plot_global()):
        assert figure.figure.axes


def test_names_of_a_function_are_columns_or_given():
    frame = pd.DataFrame(X, columns=list("abcde"))
    names = {"output_names": ["up", "down"]}
    shap = ox.SHAP(linear, frame, REF, output_label="down", **names)
    assert shap.input_names == [[list("abcde")]]
    assert shap.output_idx == [[1]]
    own = ox.SHAP(linear, frame, REF, input_names=list("vwxyz"), **names)
    assert own.input_names == [[list("vwxyz")]]


def test_pred_fun_stands_for_a_model_that_is_no_function():
    class Model:
        def predict(self, z):
            return z @ W[:, 0]

    found = ox.SHAP(Model(), X, REF, pred_fun=Model().predict).get_result()
    expected = ox.SHAP(linear, X, REF, output_idx=0).get_result()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_function_may_change_what_it_gets():
    def f(z):
        found = linear(z)
        z[:] = np.nan
        return found

    np.testing.assert_allclose(
        ox.SHAP(f, X, REF).get_result(), ox.SHAP(linear, X, REF).get_result()
    )


def test_several_inputs_and_outputs_are_explained_at_once():
    nodes = [
        helper.make_node("Mul", ["a", "b"], ["y"]),
        helper.make_node("ReduceSum", ["a", "axis"], ["z"], keepdims=1),
    ]
    weights = {"axis": np.array([1])}
    c = ox.convert(graph(nodes, {"a": (3,), "b": (3,)}, weights, outputs={"y": (3,), "z": (1,)}))
    data, refs = [X[:, :3], X[:, 2:]], [REF[:, :3], REF[:, 2:]]
    shap = ox.SHAP(c, data, refs, output_idx=[[0, 1], [0]], dtype="double")
    assert shap.result[1][1] is None  # z does not depend on b
    np.testing.assert_allclose(
        shap.result[1][0][..., 0], data[0] - refs[0].mean(axis=0), rtol=0, atol=1e-12
    )
    for total, goal in zip(shap.decomp_sum, shap.decomp_goal, strict=True):
        np.testing.assert_allclose(total, goal, rtol=0, atol=1e-12)
    grouped = ox.SHAP(c, data, refs, groups=[[0, 1, 2], [0, 1, 2]], dtype="double")
    np.testing.assert_allclose(
        grouped.result[0][0][:, 0, 0],
        ((data[0] * data[1])[:, 0] - (refs[0] * refs[1])[:, 0].mean()) / 2,
    )


def test_inputs_of_whole_numbers_stay_what_they_are_in_each_row():
    gather = helper.make_node("Gather", ["table", "k"], ["scale"])
    nodes = [gather, helper.make_node("Mul", ["x", "scale"], ["y"])]
    model = graph(
        nodes, {"x": (1,), "k": (1,)}, {"table": np.array([1.0, 10.0, 100.0])}, outputs={"y": (1,)}
    )
    model.graph.input[1].type.tensor_type.elem_type = 7
    data = [X[:, :1], np.array([[0], [1], [2], [0]])]
    refs = [REF[:, :1], np.zeros((30, 1), int)]
    c = ox.convert(model)
    shap = ox.SHAP(c, data, refs, dtype="double")
    expected = (X[:, :1] - REF[:, :1].mean()) * [[1], [10], [100], [1]]
    np.testing.assert_allclose(shap.result[0][0][..., 0], expected)
    assert shap.result[0][1] is None
    lime = ox.LIME(c, data, refs, groups=[0], dtype="double", seed=1)
    np.testing.assert_allclose(lime.result[0][0][..., 0], expected, rtol=0.01)
    with pytest.raises(ox.OnnxplainError, match="whole numbers"):
        ox.LIME(c, data, refs)


def test_a_batch_fixed_by_the_file_is_filled_up():
    model = graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (5,)}, {"w": W}, outputs={"y": (2,)}
    )
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    for exact in (True, False):
        shap = ox.SHAP(ox.convert(model), X, REF[:7], exact=exact, dtype="double", seed=1)
        expected = (X - REF[:7].mean(axis=0))[:, :, None] * W
        np.testing.assert_allclose(shap.get_result(), expected, rtol=0, atol=1e-12)


def test_tokens_are_explained_at_their_embedding():
    gather = helper.make_node("Gather", ["table", "ids"], ["embedded"])
    total = helper.make_node("ReduceSum", ["embedded", "axes"], ["y"], keepdims=0)
    table = RNG.normal(size=(6, 3))
    model = graph(
        [gather, total], {"ids": (4,)}, {"table": table, "axes": np.array([1])}, outputs={"y": (3,)}
    )
    model.graph.input[0].type.tensor_type.elem_type = 7
    ids, refs = np.array([[0, 1, 2, 3], [5, 5, 1, 0]]), np.array([[4, 4, 4, 4]])
    c = ox.convert(model, inputs="embedded")
    shap = ox.SHAP(c, ids, refs, groups=np.arange(4), dtype="double")
    found = shap.get_result().sum(axis=2)
    np.testing.assert_allclose(found, table[ids] - table[4], rtol=0, atol=1e-12)


def test_handwritten_digits_are_explained_by_patches():
    images = digits()[0]
    c = ox.convert(MODEL)
    shap = ox.SHAP(c, images[:2], images[2:6], output_idx="top1", n_permutations=2, seed=1)
    assert shap.get_result().shape == (2, 1, 8, 8, 1)
    np.testing.assert_allclose(shap.decomp_sum[0], shap.decomp_goal[0], atol=1e-5)
    assert shap.plot(data_idx=0).figure.axes


# -- what cannot be explained ---------------------------------------------------------------------


def never(z):
    raise AssertionError("called before the arguments were checked")


BAD = {
    "no references": (lambda: ox.SHAP(linear, X), "data_ref is missing"),
    "no references for lime": (lambda: ox.LIME(linear, X), "data_ref is missing"),
    "no data": (lambda: ox.SHAP(linear, None, REF), "data is missing"),
    "no model": (lambda: ox.SHAP(7, X, REF), "model must be a Converter or a function"),
    "other width": (lambda: ox.SHAP(linear, X, REF[:, :4]), r"\(30, 4\).*expects \(n, 5\)"),
    "other columns": (
        lambda: ox.SHAP(
            linear, pd.DataFrame(X, columns=list("abcde")), pd.DataFrame(REF, columns=list("abcdx"))
        ),
        "data_ref has the columns a, b, c, d, x",
    ),
    "NaN in references": (lambda: ox.SHAP(linear, X, np.full((3, 5), np.nan)), "data_ref.*NaN"),
    "a row too few axes": (lambda: ox.SHAP(linear, X[0], REF), "one array"),
    "ragged": (lambda: ox.SHAP(linear, [[1, 2], [3]], REF), "one array"),
    "one row that tells no spread": (lambda: ox.LIME(linear, X, REF[:1]), "all the same"),
    "too few samples": (lambda: ox.LIME(linear, X, REF, n_permutations=6), "at least 7"),
    "too many samples": (lambda: ox.LIME(never, X, REF, n_permutations=10**9), "n_permutations"),
    "no orders": (lambda: ox.SHAP(never, X, REF, n_permutations=0), "n_permutations"),
    "exact is a word": (lambda: ox.SHAP(never, X, REF, exact="yes"), "exact must be"),
    "too many to enumerate": (
        lambda: ox.SHAP(lambda z: z[:, :1], np.ones((1, 40)), np.zeros((1, 40)), exact=True),
        r"2\^40",
    ),
    "one bin": (lambda: ox.LIME(never, X, REF, n_bins=1), "n_bins"),
    "unknown distance": (lambda: ox.LIME(never, X, REF, dist_fun="cosine"), "dist_fun must be"),
    "negative power": (lambda: ox.LIME(never, X, REF, gower_pow=-1), "gower_pow must be"),
    "no kernel": (lambda: ox.LIME(linear, X, REF, kernel_width=0), "kernel_width must be"),
    "baseline without groups": (lambda: ox.LIME(linear, X, REF, baseline=0), "give groups"),
    "infinite baseline": (
        lambda: ox.LIME(linear, X, groups=range(5), baseline=np.inf),
        "baseline must be",
    ),
    "groups of another shape": (lambda: ox.SHAP(linear, X, REF, groups=[0, 1]), r"\(2,\).*\(5,\)"),
    "groups that are no labels": (
        lambda: ox.SHAP(linear, X, REF, groups=np.ones(5)),
        "whole numbers or names",
    ),
    "unknown argument": (lambda: ox.SHAP(never, X, REF, nsim=5), "n_permutations"),
    "an argument of walks": (lambda: ox.LIME(never, X, REF, layer="h"), "no argument 'layer'"),
    "no such node": (lambda: ox.SHAP(linear, X, REF, output_idx=[5]), "5"),
    "device of a function": (lambda: ox.SHAP(never, X, REF, device="cuda"), "for a Converter"),
    "activation of a function": (
        lambda: ox.SHAP(never, X, REF, ignore_last_act=True),
        "for a Converter",
    ),
    "names of a converter": (
        lambda: ox.SHAP(converter(), X, REF, input_names=list("abcde")),
        "onnxplain.convert",
    ),
    "names of another length": (
        lambda: ox.SHAP(linear, X, REF, output_names=["a"]),
        "output_names",
    ),
    "pred_fun is a word": (lambda: ox.SHAP(linear, X, REF, pred_fun="predict"), "pred_fun"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=list(BAD))
def test_bad_arguments_are_told(call, message):
    with pytest.raises(ox.OnnxplainError, match=message):
        call()


class OnceInTheMiddle:
    """Answers well at first, then not."""

    def __init__(self, answer):
        self.answer, self.calls = answer, 0

    def __call__(self, z):
        self.calls += 1
        return z[:, :2] if self.calls < 3 else self.answer(z)


def fails(z):
    raise RuntimeError("out of order")


@pytest.mark.parametrize("method", [ox.SHAP, ox.LIME])
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (fails, "RuntimeError: out of order"),
        (lambda z: z[:1], "for .* rows"),
        (lambda z: 3.0, r"shape \(\)"),
        (lambda z: z[:, :3], "when it was called first"),
        (lambda z: np.full((len(z), 2), "a"), "not numbers"),
        (lambda z: np.full((len(z), 2), np.nan), "NaN"),
        (lambda z: None, "not numbers"),
    ],
)
def test_a_function_that_answers_badly_is_told(method, answer, message):
    with pytest.raises(ox.OnnxplainError, match=message):
        method(OnceInTheMiddle(answer), X, REF)


@pytest.mark.parametrize("name", ["lime", "shap"])
def test_the_signature_names_what_can_be_given(name):
    import inspect

    method = METHODS[name][0]
    names = list(inspect.signature(method).parameters)
    assert names[:3] == ["model", "data", "data_ref"]
    assert {"seed", "groups", "pred_fun", "batch_size"} <= set(names)
    assert not {"layer", "like", "options"} & set(names)


@every_method
def test_results_are_saved_and_loaded(method, options, tmp_path):
    result = method(network, X, REF, **options)
    result.save(tmp_path / "result.npz")
    loaded = ox.load(tmp_path / "result.npz")
    np.testing.assert_array_equal(loaded.get_result(), result.get_result())
    np.testing.assert_array_equal(loaded.groups[0], result.groups[0])
    assert repr(loaded) == repr(result)


@pytest.mark.parametrize("method", ["shap", "lime"])
def test_the_command_line_explains_with_references(method, tmp_path):
    from click.testing import CliRunner

    from onnxplain.cli import main

    images = digits()[0]
    np.save(tmp_path / "data.npy", images[:2])
    np.save(tmp_path / "ref.npy", images[2:5])
    arguments = ["explain", MODEL, tmp_path / "data.npy", "--method", method, "--seed", 1]
    arguments += ["--n-permutations", 2 if method == "shap" else 100]
    runner, out = CliRunner(), tmp_path / "result.npz"
    given = [*arguments, "--reference", tmp_path / "ref.npy", "--out", out]
    answer = runner.invoke(main, [str(word) for word in given], catch_exceptions=False)
    assert answer.exit_code == 0
    with np.load(out) as found:
        assert found["result"].shape == (2, 1, 8, 8, 10)
    answer = runner.invoke(main, [str(word) for word in arguments])
    assert answer.exit_code == 2
    assert "data_ref is missing" in answer.output
    answer = runner.invoke(main, [str(word) for word in [*given, "--layer", "probability"]])
    assert "has no --layer" in answer.output
