"""What is explained: masks, slices, each row's top nodes, and weighted sums of outputs."""

import pickle

import numpy as np
import pytest
from onnx import helper

import onnxplain as ox
from networks import graph
from onnxplain.errors import SelectionError

RNG = np.random.default_rng(3)
node = helper.make_node


def normal(*shape):
    return RNG.standard_normal(shape)


TABLE = ox.convert(
    graph(
        [
            node("Gemm", ["x", "w", "b"], ["h"]),
            node("Relu", ["h"], ["r"]),
            node("MatMul", ["r", "v"], ["s"]),
            node("Softmax", ["s"], ["p"], axis=-1),
        ],
        {"x": (4,)},
        {"w": normal(4, 6), "b": normal(6), "v": normal(6, 5)},
    ),
    output_names=["ant", "bee", "cow", "dog", "eel"],
)
MAPS = ox.convert(  # two outputs, the first with three axes
    graph(
        [
            node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            node("Relu", ["c"], ["y"]),
            node("Flatten", ["y"], ["f"]),
            node("MatMul", ["f", "v"], ["z"]),
        ],
        {"x": (2, 3, 4)},
        {"w": normal(3, 2, 3, 3), "v": normal(36, 2)},
        outputs={"y": (3, 3, 4), "z": (2,)},
    )
)
X, REFS = normal(5, 4), normal(3, 4)
PIXELS = normal(2, 2, 3, 4)
DOUBLE = {"dtype": "double"}
METHODS = {
    "gradient": lambda x, **k: ox.Gradient(TABLE, x, **DOUBLE, **k),
    "smoothgrad": lambda x, **k: ox.SmoothGrad(TABLE, x, n=3, seed=1, **DOUBLE, **k),
    "intgrad": lambda x, **k: ox.IntegratedGradient(TABLE, x, n=4, x_ref=REFS[:1], **DOUBLE, **k),
    "expgrad": lambda x, **k: ox.ExpectedGradient(
        TABLE, x, n=4, data_ref=REFS, seed=1, **DOUBLE, **k
    ),
    "lrp": lambda x, **k: ox.LRP(TABLE, x, **DOUBLE, **k),
    "deeplift": lambda x, **k: ox.DeepLift(TABLE, x, x_ref=REFS[:1], **DOUBLE, **k),
    "deepshap": lambda x, **k: ox.DeepSHAP(TABLE, x, data_ref=REFS, **DOUBLE, **k),
    "deepshap, more references": lambda x, **k: ox.DeepSHAP(
        TABLE, x, data_ref=np.tile(REFS, (3, 1)), **DOUBLE, **k
    ),
    "guided": lambda x, **k: ox.GuidedBackprop(TABLE, x, **DOUBLE, **k),
}
each_method = pytest.mark.parametrize("explain", METHODS.values(), ids=METHODS)
LINEAR = {name: METHODS[name] for name in ("gradient", "lrp", "deeplift", "intgrad")}


def scores():
    return ox.Gradient(TABLE, X, output_idx=range(5), **DOUBLE).decomp_goal[0]


# -- each row's own nodes --------------------------------------------------------------------------


@each_method
@pytest.mark.parametrize("ignore", [True, False])
def test_top_nodes_are_the_loop_over_rows_with_fixed_indices(explain, ignore):
    found = explain(X, output_idx="top3", ignore_last_act=ignore)
    best = np.argsort(-scores(), axis=1)[:, :3]
    np.testing.assert_array_equal(found.output_nodes[0], best)
    assert found.output_idx == [["top1", "top2", "top3"]]
    if explain is METHODS["smoothgrad"]:  # the noise of a row does not depend on other rows
        assert found.seed == 1
    for b, nodes in enumerate(best):
        alone = explain(X[b : b + 1], output_idx=nodes.tolist(), ignore_last_act=ignore)
        np.testing.assert_allclose(found.result[0][0][b], alone.result[0][0][0], atol=1e-12)
        np.testing.assert_allclose(found.decomp_goal[0][b], alone.decomp_goal[0][0], atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_chunks_keep_the_nodes_of_their_rows(size):
    whole = METHODS["intgrad"](X, output_idx="top2")
    parts = METHODS["intgrad"](X, output_idx="top2", batch_size=size)
    np.testing.assert_allclose(parts.result[0][0], whole.result[0][0], atol=1e-12)
    np.testing.assert_array_equal(parts.output_nodes[0], whole.output_nodes[0])


def test_predicted_is_the_top_node_behind_the_last_activation():
    found = METHODS["lrp"](X, output_idx="predicted")
    best = TABLE(X)[0].argmax(axis=1)
    np.testing.assert_array_equal(found.output_nodes[0][:, 0], best)
    np.testing.assert_allclose(found.decomp_goal[0][:, 0], scores()[range(5), best])


def test_ties_take_the_first_node():
    found = ox.Gradient(TABLE, np.zeros((1, 4)), output_idx="top2", **DOUBLE)
    flat = found._nodes[0].rank(np.array([[1.0, 3.0, 3.0, 0.0, 3.0]]))
    np.testing.assert_array_equal(flat, [[1, 2]])


def test_labels_say_which_place_in_the_order_a_node_has():
    found = METHODS["deeplift"](X, output_idx="top2")
    table = found.get_result("data.frame")
    assert list(table.output_node.cat.categories) == ["top1", "top2"]
    assert table.pred[table.output_node == "top1"].min() >= 0.2
    assert found.get_result("xarray").output_node.values.tolist() == ["top1", "top2"]
    assert "top1, top2" in repr(found)
    found.plot(output_label="top2")
    found.plot(output_idx=["top1"])
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.output_nodes[0], found.output_nodes[0])
    assert again.get_result("data.frame").equals(table)


def test_several_outputs_have_their_own_top_nodes():
    found = ox.LRP(MAPS, PIXELS, output_idx=[["top1"], "top2"], **DOUBLE)
    assert [n.shape for n in found.output_nodes] == [(2, 1), (2, 2)]
    place = int(found.output_nodes[0][1, 0])
    alone = ox.LRP(MAPS, PIXELS[1:], output_idx=place, **DOUBLE)
    np.testing.assert_allclose(found.result[0][0][1], alone.result[0][0][0], atol=1e-12)


# -- masks and slices ------------------------------------------------------------------------------

MASK = np.zeros((3, 3, 4), bool)
MASK[1, 2, [0, 3]] = MASK[2, 0, 1] = True


@pytest.mark.parametrize(
    "choice, nodes",
    [
        (MASK, np.flatnonzero(MASK)),
        ([MASK, None], np.flatnonzero(MASK)),
        ((1, slice(None), 3), [15, 19, 23]),
        ([(1, slice(None), 3), 0], [15, 19, 23, 0]),
        ((..., 3), np.arange(3, 36, 4)),
        ((2, ...), np.arange(24, 36)),
        ((0, 0, slice(0, 4, 2)), [0, 2]),
        ((0, 0, slice(-2, None)), [2, 3]),
        (slice(3, 5), [3, 4]),
        (..., np.arange(36)),
        ([[(2, 2, 3)], None], [35]),
    ],
)
def test_masks_and_slices_equal_lists_of_indices(choice, nodes):
    found = ox.Gradient(MAPS, PIXELS, output_idx=choice, **DOUBLE)
    same = ox.Gradient(MAPS, PIXELS, output_idx=[list(nodes)], **DOUBLE)
    assert found.output_idx == [list(nodes), None]
    np.testing.assert_array_equal(found.result[0][0], same.result[0][0])
    np.testing.assert_array_equal(found.output_nodes[0], np.tile(nodes, (2, 1)))


def test_masks_per_output():
    found = ox.Gradient(MAPS, PIXELS, output_idx=[MASK, np.array([False, True])], **DOUBLE)
    assert found.output_idx == [np.flatnonzero(MASK).tolist(), [1]]


def test_places_of_an_output_have_readable_labels():
    found = ox.Gradient(MAPS, PIXELS, output_idx=(1, slice(None), 3))
    labels = ["C2:H1:W4", "C2:H2:W4", "C2:H3:W4"]
    assert found.get_result("xarray").output_node.values.tolist() == labels


# -- weighted sums ---------------------------------------------------------------------------------

WEIGHTS = normal(2, 5)


@pytest.mark.parametrize("explain", LINEAR.values(), ids=LINEAR)
@pytest.mark.parametrize("ignore", [True, False])
def test_sums_are_linear_combinations_of_single_results(explain, ignore):
    single = explain(X, output_idx=range(5), ignore_last_act=ignore)
    found = explain(X, output_weights=WEIGHTS, ignore_last_act=ignore)
    assert found.output_idx == [["sum1", "sum2"]]
    np.testing.assert_allclose(found.result[0][0], single.result[0][0] @ WEIGHTS.T, atol=1e-12)
    np.testing.assert_allclose(found.decomp_goal[0], single.decomp_goal[0] @ WEIGHTS.T, atol=1e-12)


def test_lrp_starts_from_the_parts_of_a_sum_above_a_half():
    options = {"ignore_last_act": False, "like": "innsight"}
    single = METHODS["lrp"](X, output_idx=range(5), **options)
    found = METHODS["lrp"](X, output_weights=WEIGHTS, **options)
    np.testing.assert_allclose(found.result[0][0], single.result[0][0] @ WEIGHTS.T, atol=1e-12)
    np.testing.assert_allclose(found.decomp_goal[0], single.decomp_goal[0] @ WEIGHTS.T, atol=1e-12)


def test_connection_weights_of_sums():
    single = ox.ConnectionWeights(TABLE, output_idx=range(5), **DOUBLE)
    found = ox.ConnectionWeights(TABLE, output_weights=WEIGHTS, **DOUBLE)
    np.testing.assert_allclose(found.result[0][0], single.result[0][0] @ WEIGHTS.T, atol=1e-12)


@pytest.mark.parametrize(
    "given, names",
    [
        (WEIGHTS[0], ["sum1"]),
        (WEIGHTS[0].tolist(), ["sum1"]),
        (WEIGHTS, ["sum1", "sum2"]),
        ({"bee - ant": [-1, 1, 0, 0, 0], "rest": [0, 0, 1, 1, 1]}, ["bee - ant", "rest"]),
        ([WEIGHTS], ["sum1", "sum2"]),
    ],
)
def test_weights_come_in_many_forms(given, names):
    found = METHODS["deeplift"](X, output_weights=given)
    assert found.output_idx == [names]
    assert list(found.get_result("data.frame").output_node.cat.categories) == names
    assert found.get_result().shape == (5, 4, len(names))
    assert found.output_nodes == [None]
    found.plot(output_label=names[-1])


def test_predictions_of_sums_are_sums_of_predictions():
    table = METHODS["lrp"](X, output_weights={"d": WEIGHTS[0]}).get_result("data.frame")
    first = table[table.feature == "X1"]
    np.testing.assert_allclose(first.pred, TABLE(X)[0] @ WEIGHTS[0], rtol=1e-5)


def test_weights_of_outputs_with_several_axes_and_per_output():
    w, v = normal(2, 3, 3, 4), normal(2)
    both = ox.DeepLift(MAPS, PIXELS, output_weights=[w, v], **DOUBLE)
    assert both.output_idx == [["sum1", "sum2"], ["sum1"]]
    for goal, found in zip(both.decomp_goal, both.decomp_sum, strict=True):
        np.testing.assert_allclose(found, goal, atol=1e-10)
    mean = ox.Gradient(MAPS, PIXELS, output_weights=w[0].ravel(), **DOUBLE)
    one = ox.Gradient(MAPS, PIXELS, output_weights=w[0], **DOUBLE)
    np.testing.assert_array_equal(mean.result[0][0], one.result[0][0])
    second = ox.Gradient(MAPS, PIXELS, output_weights=[None, {"z": v}], **DOUBLE)
    assert second.output_idx == [None, ["z"]]


# -- what cannot be used ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"output_idx": "top0"}, "'top0'.*5 nodes.*top1 to top5"),
        ({"output_idx": "top99"}, "'top99'.*5 nodes"),
        ({"output_idx": "top99999999999999999"}, "no choice of nodes"),
        ({"output_idx": "topk"}, "'topk' is no choice.*output_label"),
        ({"output_idx": ["top1", 0]}, "alone"),
        ({"output_idx": np.ones(4, bool)}, r"mask of shape \(4,\), output 0 has shape \(5,\)"),
        ({"output_idx": np.ones((1, 5), bool)}, r"mask of shape \(1, 5\)"),
        ({"output_idx": np.zeros(5, bool)}, "no output node"),
        ({"output_idx": slice(7, 9)}, "no output node"),
        ({"output_idx": slice(0, 2, 0)}, "step 0"),
        ({"output_idx": slice(0.5, 2)}, "whole numbers as bounds"),
        ({"output_idx": (slice(None), 1)}, r"no node of output 0 of shape \(5,\)"),
        ({"output_idx": (..., ...)}, "denotes no node"),
        ({"output_idx": [slice(0, 2), 1]}, "node 1.*twice"),
        ({"output_idx": -1}, "out of range"),
        ({"output_weights": np.ones(4)}, r"shape \(4,\), output 0 has shape \(5,\)"),
        ({"output_weights": np.ones((0, 5))}, r"shape \(0, 5\)"),
        ({"output_weights": [[1, 2], [3]]}, "numbers in an array"),
        ({"output_weights": "ant"}, "numbers in an array"),
        ({"output_weights": np.full(5, np.nan)}, "NaN"),
        ({"output_weights": {}}, "one array of shape"),
        ({"output_weights": {"a": WEIGHTS}}, "one array of shape"),
        ({"output_weights": [None]}, "no weights"),
        ({"output_weights": [None, WEIGHTS]}, "2 entries, the model has 1 output"),
        ({"output_weights": WEIGHTS, "output_idx": 1}, "leave output_idx"),
    ],
)
def test_wrong_selections_are_refused(options, message):
    with pytest.raises(SelectionError, match=message):
        ox.Gradient(TABLE, X, **options)


@pytest.mark.parametrize("choice", ["top1", "predicted"])
def test_connection_weights_read_no_data(choice):
    with pytest.raises(SelectionError, match="reads none"):
        ox.ConnectionWeights(TABLE, output_idx=choice)
