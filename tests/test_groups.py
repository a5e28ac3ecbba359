"""Features taken together: the right values in the right groups, sums unchanged, all plots."""

import numpy as np
import pytest
from onnx import helper

import onnxplain as ox
from networks import graph
from onnxplain.demo import MODEL, digits
from onnxplain.errors import ArgumentError, SelectionError, ShapeError

X = digits()[0][:3]
DIGITS = ox.convert(MODEL)
RNG = np.random.default_rng(2)
COLUMNS = ["age", "colour_red", "colour_green", "fare", "colour_blue"]


def dense(dims, names=None):
    """A linear model of flattened inputs."""
    inputs = {f"x{i}": dim for i, dim in enumerate(dims)}
    nodes = [helper.make_node("Flatten", [x], [f"flat {x}"]) for x in inputs]
    nodes.append(helper.make_node("Concat", [n.output[0] for n in nodes], ["all"], axis=1))
    nodes.append(helper.make_node("MatMul", ["all", "w"], ["y"]))
    weights = {"w": RNG.normal(size=(sum(int(np.prod(dim)) for dim in dims), 2))}
    return ox.convert(graph(nodes, inputs, weights), input_names=names)


def explained(dims, names=None, channels_first=True, batch=3, **options):
    data = [RNG.normal(size=(batch, *dim)) for dim in dims]
    if not channels_first:
        data = [np.moveaxis(x, 1, -1) if x.ndim > 2 else x for x in data]
    return ox.LRP(
        dense(dims, names), data, channels_first=channels_first, dtype="double", **options
    )


TABLE = explained([(5,)], COLUMNS)
SIGNAL = explained([(3, 6)])
IMAGE = explained([(3, 4, 5)])
MIXED = explained([(5,), (3, 4, 5)], channels_first=False)
VALUES = TABLE.get_result()
COLOURS = VALUES[:, [1, 2, 4]]
SEGMENTS = np.arange(20).reshape(4, 5) // 7


@pytest.mark.parametrize(
    "members",
    [
        ["colour_red", "colour_green", "colour_blue"],
        [1, 2, 4],
        ["colour_blue", 1, np.int64(2)],
        "colour_*",
        ["colour_?*", "colour_red"],
        np.array([False, True, True, False, True]),
        np.array([1, 2, 4]),
    ],
)
def test_one_hot_columns_are_one_feature(members):
    found = TABLE.grouped({"colour": members})
    assert found.input_names == [[["age", "colour", "fare"]]]
    expected = np.stack([VALUES[:, 0], COLOURS.sum(axis=1), VALUES[:, 3]], axis=1)
    np.testing.assert_allclose(found.get_result(), expected, atol=1e-14)
    assert TABLE.input_names == [[COLUMNS]]


@pytest.mark.parametrize("labels", [["age", "c", "c", "fare", "c"], np.array([0, 7, 7, 3, 7])])
def test_a_label_per_feature_groups_too(labels):
    found = TABLE.grouped(labels)
    texts = ["age", "c", "fare"] if isinstance(labels, list) else ["segment_0", "3", "7"]
    assert [name.split("_")[-1] for name in found.input_names[0][0]] == [
        text.split("_")[-1] for text in texts
    ]
    where = found.input_names[0][0].index("c" if isinstance(labels, list) else "segment_7")
    np.testing.assert_allclose(found.get_result()[:, where], COLOURS.sum(axis=1), atol=1e-14)


@pytest.mark.parametrize(
    "reduce, expected",
    [
        ("sum", COLOURS.sum(axis=1)),
        ("mean", COLOURS.mean(axis=1)),
        ("norm", np.sqrt((COLOURS**2).sum(axis=1))),
    ],
)
def test_values_are_put_together_as_asked(reduce, expected):
    found = TABLE.grouped({"colour": "colour_*"}, reduce)
    np.testing.assert_allclose(found.get_result()[:, 1], expected, atol=1e-14)


@pytest.mark.parametrize("reduce", ["sum", "mean", "norm"])
@pytest.mark.parametrize("method", [SIGNAL, IMAGE])
@pytest.mark.parametrize("word", ["channels", "places"])
def test_values_per_channel_or_place(word, method, reduce):
    values = method.get_result()
    found = method.grouped(word, reduce)
    axes = tuple(range(2, values.ndim - 1)) if word == "channels" else (1,)
    function = {"sum": np.sum, "mean": np.mean, "norm": lambda v, axis: np.sqrt((v**2).sum(axis))}
    expected = function[reduce](values, axis=axes)
    if word == "places":
        expected = expected[:, None]
        assert found.input_names[0] == [[reduce], *method.input_names[0][1:]]
    else:
        assert found.input_names == [[["C1", "C2", "C3"]]]
    np.testing.assert_allclose(found.get_result(), expected, atol=1e-13)


def test_positions_of_a_signal_are_grouped_with_all_channels():
    found = SIGNAL.grouped({"start": ["L1", "L2"], "end": range(4, 6)})
    assert found.input_names == [[["start", "L3", "L4", "end"]]]
    values = SIGNAL.get_result().sum(axis=1)
    expected = np.stack(
        [values[:, :2].sum(axis=1), values[:, 2], values[:, 3], values[:, 4:].sum(axis=1)], axis=1
    )
    np.testing.assert_allclose(found.get_result(), expected, atol=1e-13)


def slow_segments(values, labels):
    """Sum (batch, channels, places, nodes) by labels (batch, places)."""
    found = np.zeros((len(values), labels.max() + 1, values.shape[-1]))
    for b in range(len(values)):
        for label in range(labels.max() + 1):
            found[b, label] = values[b][:, labels[b] == label].sum(axis=(0, 1))
    return found


@pytest.mark.parametrize("per_row", [False, True])
def test_superpixels_take_in_all_channels(per_row):
    method = explained([(3, 4, 5)], batch=2)
    labels = np.stack([SEGMENTS[::-1], SEGMENTS // 2]) if per_row else SEGMENTS
    found = method.grouped(labels).get_result()
    values = method.get_result().reshape(2, 3, 20, -1)
    expected = slow_segments(values, np.broadcast_to(labels, (2, 4, 5)).reshape(2, 20))
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_labels_that_may_be_of_channels_or_of_data_points_are_told():
    labels = np.stack([SEGMENTS, SEGMENTS[::-1], SEGMENTS // 2])
    with pytest.raises(ShapeError, match=r"may mean.*give shape \(3, 3, 4, 5\)"):
        IMAGE.grouped(labels)
    every = np.broadcast_to(labels[:, None], (3, 3, 4, 5))
    expected = slow_segments(IMAGE.get_result().reshape(3, 3, 20, -1), labels.reshape(3, 20))
    np.testing.assert_allclose(IMAGE.grouped(every).get_result(), expected, atol=1e-13)


@pytest.mark.parametrize("first", [True, False])
def test_labels_per_channel_stand_where_the_user_has_channels(first):
    method = explained([(3, 4, 5)], channels_first=first, batch=2)
    labels = np.arange(60).reshape(3, 4, 5) % 4
    given = labels if first else np.moveaxis(labels, 0, -1)
    values = method.get_result() if first else np.moveaxis(method.get_result(), -2, 1)
    expected = [values[:, labels == k].sum(axis=1) for k in range(4)]
    np.testing.assert_allclose(
        method.grouped(given).get_result(), np.stack(expected, axis=1), atol=1e-13
    )


def test_masks_of_an_image_leave_the_others():
    sky = np.zeros((4, 5), bool)
    sky[:2] = True
    found = IMAGE.grouped({"sky": sky})
    assert found.input_names == [[["sky", "others"]]]
    values = IMAGE.get_result()
    np.testing.assert_allclose(found.get_result()[:, 0], values[:, :, :2].sum(axis=(1, 2, 3)))
    assert IMAGE.grouped({"sky": sky, "sea": ~sky}).input_names == [[["sky", "sea"]]]


@pytest.mark.parametrize(
    "groups",
    [{"Input_2": "channels"}, [None, "channels"], {1: "channels"}, "channels"],
)
def test_inputs_that_are_not_named_stay_as_they_are(groups):
    found = MIXED.grouped(groups)
    before, after = MIXED.get_result(), found.get_result()
    np.testing.assert_array_equal(after["Input_1"], before["Input_1"])
    np.testing.assert_allclose(after["Input_2"], before["Input_2"].sum(axis=(1, 2)), atol=1e-13)
    after = MIXED.grouped([{"both": [0, 1]}, "places"]).get_result()
    assert [after[f"Input_{i}"].shape for i in (1, 2)] == [(3, 4, 2), (3, 4, 5, 1, 2)]


GROUPS = {
    "columns": (TABLE, {"colour": "colour_*"}),
    "positions": (SIGNAL, {"start": [0, 1]}),
    "channels": (IMAGE, "channels"),
    "places": (IMAGE, "places"),
    "segments": (IMAGE, SEGMENTS),
    "several": (MIXED, [{"both": ["X1", "X2"]}, SEGMENTS]),
    "top": (ox.LRP(DIGITS, X, output_idx="top2"), "places"),
    "weights": (ox.ConnectionWeights(DIGITS), np.arange(64).reshape(8, 8) // 16),
    "layer": (ox.LRP(DIGITS, X, layer="pool1_out"), "channels"),
    "maps": (ox.GradCAM(DIGITS, X), np.arange(64).reshape(8, 8) // 16),
    "channels of the user": (MIXED, {"Input_2": "places"}),
}


@pytest.mark.parametrize("case", GROUPS)
def test_sums_are_unchanged_in_every_format(case):
    method, groups = GROUPS[case]
    found = method.grouped(groups)
    assert type(found) is type(method)
    for mine, theirs in zip(found.decomp_sum, method.decomp_sum, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    frame = found.get_result("data.frame")
    sums = frame.groupby(["data", "output_node"], observed=True)[["value", "decomp_sum"]]
    np.testing.assert_allclose(
        sums.sum()["value"], sums.first()["decomp_sum"], rtol=1e-5, atol=1e-5
    )
    found.get_result("xarray")
    assert repr(found).startswith(repr(method).partition("\n")[0])


@pytest.mark.parametrize("case", GROUPS)
def test_grouped_results_are_drawn(case):
    method, groups = GROUPS[case]
    found = method.grouped(groups)
    found.plot()
    if not method.is_global:
        found.plot_global()
    if not method.is_global and case not in ("places", "top", "channels of the user"):
        found.boxplot()
        found.beeswarm()
        found.waterfall()


def test_features_that_stay_alone_keep_their_colour_in_a_swarm():
    found = TABLE.grouped({"colour": "colour_*"})
    assert np.isnan(found.shown_data[0][:, 1]).all()
    np.testing.assert_array_equal(found.shown_data[0][:, [0, 2]], TABLE.data[0][:, [0, 3]])
    found.plot(overlay=True)
    twice = found.grouped({"rest": ["age", "colour"]})
    np.testing.assert_array_equal(twice.shown_data[0][:, 1], TABLE.data[0][:, 3])
    np.testing.assert_allclose(twice.decomp_sum[0], TABLE.decomp_sum[0], atol=1e-13)


def test_a_grouped_result_is_saved(tmp_path):
    found = TABLE.grouped({"colour": "colour_*"})
    found.save(tmp_path / "result.npz")
    again = ox.load(tmp_path / "result.npz")
    assert again.get_result("data.frame").equals(found.get_result("data.frame"))
    assert again.ledger is not None
    np.testing.assert_array_equal(again.shown_data[0], found.shown_data[0])


def test_a_grouped_result_shares_no_values_with_the_first():
    found = MIXED.grouped({"Input_2": "channels"})
    before = MIXED.result[0][0].copy()
    found.result[0][0][:] = 0
    np.testing.assert_array_equal(MIXED.result[0][0], before)


@pytest.mark.parametrize(
    "method, groups, error, message",
    [
        (TABLE, {"a": ["height"]}, SelectionError, "'height'; the features are age, colour_red"),
        (TABLE, {"a": [0], "b": ["age"]}, SelectionError, "'age' is in the groups 'a' and 'b'"),
        (TABLE, {"fare": ["age"]}, SelectionError, "name of a feature that stays alone"),
        (TABLE, {"a": []}, ArgumentError, "group 'a' needs features"),
        (TABLE, {"a": None}, ArgumentError, "group 'a' needs features"),
        (TABLE, {"a": [5]}, SelectionError, "from 0 to 4"),
        (TABLE, {"a": [-1]}, SelectionError, "from 0 to 4"),
        (TABLE, {"a": [True]}, SelectionError, "holds True"),
        (TABLE, {"a": 1.5}, ArgumentError, "needs features"),
        (TABLE, {}, ArgumentError, "groups is empty"),
        (TABLE, "channels", SelectionError, "no channels"),
        (TABLE, "colour", ArgumentError, '"channels", "places"'),
        (TABLE, None, ArgumentError, "dict or an array"),
        (TABLE, np.zeros(5), ArgumentError, "whole numbers or names"),
        (TABLE, [1, 2], ShapeError, r"shape \(2,\), expected \(5,\)"),
        (IMAGE, {"a": ["H1"]}, ArgumentError, "True and False"),
        (IMAGE, {"a": SEGMENTS == 0, "b": SEGMENTS < 2}, SelectionError, "overlap"),
        (IMAGE, {"a": np.ones((5, 4), bool)}, ShapeError, "group 'a'"),
        (IMAGE, SEGMENTS.T, ShapeError, r"shape \(5, 4\), expected \(4, 5\) or \(3, 4, 5\)"),
        (IMAGE, np.stack([SEGMENTS] * 2), ShapeError, "2 data points, the result has 3"),
        (MIXED, SEGMENTS, ArgumentError, '2 inputs: give groups as a dict.*"Input_2"'),
        (MIXED, {"Input_3": "channels"}, SelectionError, "the inputs are Input_1, Input_2"),
        (MIXED, ["channels"], ArgumentError, "2 inputs"),
    ],
)
def test_groups_that_do_not_fit_are_told(method, groups, error, message):
    with pytest.raises(error, match=message):
        method.grouped(groups)


def test_an_unknown_reduction_is_told():
    with pytest.raises(ArgumentError, match="'sum', 'mean', 'norm'"):
        TABLE.grouped({"a": [0]}, "median")


def test_an_ambiguous_name_is_told():
    method = explained([(3,)], ["a", "b", "a"])
    with pytest.raises(SelectionError, match="the name of 2 features"):
        method.grouped({"g": ["a"]})
