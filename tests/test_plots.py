"""Pictures show the numbers they are given: bars, images, boxes, labels, grids, errors."""

import builtins

import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure as MplFigure

from fake_results import fake_method
from onnxplain import plots, results
from onnxplain.errors import ArgumentError, OnnxplainError, SelectionError
from onnxplain.plots import boxplot, plot, plot_global
from onnxplain.plots.common import shortened
from onnxplain.plots.mpl import COLOURS
from onnxplain.plots.sheets import add_channels


def heights(ax):
    return np.array([bar.get_height() for bar in ax.patches])


def widths(ax):
    return np.array([bar.get_width() for bar in ax.patches])


def signal_heights(ax):
    (bars,) = (c for c in ax.collections if isinstance(c, PolyCollection))
    return np.array([path.vertices[1, 1] for path in bars.get_paths()])


def texts(ax):
    return [text.get_text() for text in ax.texts]


def info(ax):
    return next((t.get_text() for t in ax.texts if t.get_gid() == "info"), None)


def tick_labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


# ---------------------------------------------------------------- tables


def test_bars_equal_the_values_in_the_order_of_the_features():
    method = fake_method((4,))
    ax = plot(method, data_idx=1, output_idx=1).axes[0, 0]
    np.testing.assert_allclose(heights(ax), method.result[0][0][1, :, 1])
    assert tick_labels(ax.xaxis) == ["X1", "X2", "X3", "X4"]
    assert ax.get_xlabel() == "Feature"
    assert ax.get_ylabel() == "Contribution"
    assert ax.get_title() == "versicolor"


def test_bars_are_blue_below_white_at_and_red_above_zero():
    method = fake_method((3,))
    method.result[0][0][0, :, 0] = [-2, 0, 1]
    bars = plot(method).axes[0, 0].patches
    expected = [COLOURS(0.0), COLOURS(0.5), COLOURS(0.75)]
    np.testing.assert_allclose([bar.get_facecolor() for bar in bars], expected)


def test_long_names_get_lying_bars_with_the_first_feature_at_the_top():
    names = ["age", "number of siblings or spouses aboard", "costs $ and $x"]
    method = fake_method((3,), input_names=[[names]])
    figure = plot(method)
    ax = figure.axes[0, 0]
    np.testing.assert_allclose(widths(ax), method.result[0][0][0, :, 0])
    assert ax.yaxis_inverted()
    assert tick_labels(ax.yaxis) == ["age", "number of siblings o…uses aboard", "costs $ and $x"]
    figure._repr_png_()


def test_a_large_table_shows_the_largest_thirty_and_the_sum_of_the_rest():
    method = fake_method((500,))
    values = method.result[0][0][0, :, 0]
    ax = plot(method).axes[0, 0]
    order = np.argsort(-np.abs(values))
    np.testing.assert_allclose(widths(ax)[:30], values[order[:30]])
    np.testing.assert_allclose(widths(ax)[30], values[order[30:]].sum())
    assert tick_labels(ax.yaxis)[-1] == "470 others"
    assert tick_labels(ax.yaxis)[0] == f"X{order[0] + 1}"


def test_panels_of_a_large_table_show_the_same_features():
    method = fake_method((40,))
    axes = plot(method, data_idx=[0, 2], output_idx=[0, 1]).axes
    shown = tick_labels(axes[0, 0].yaxis)[:-1]
    places = [int(name[1:]) - 1 for name in shown]
    np.testing.assert_allclose(widths(axes[1, 1])[:30], method.result[0][0][2, places, 1])


def test_a_table_of_zeros_or_nan_is_drawn():
    method = fake_method((2,))
    method.result[0][0][0] = 0
    method.result[0][0][1] = np.nan
    method.preds[0][1] = np.nan
    method.decomp_sum = results.decomp_sum(method)
    axes = plot(method, data_idx=[0, 1]).axes
    assert heights(axes[0, 0]).tolist() == [0, 0]
    assert np.isnan(heights(axes[1, 0])).all()
    assert info(axes[1, 0]).startswith("Goal")  # neither the prediction nor the sum is a number


# ---------------------------------------------------------------- signals and images


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize(
    ("how", "function"),
    [
        ("sum", lambda x: x.sum(0)),
        ("mean", lambda x: x.mean(0)),
        ("norm", lambda x: np.sqrt((x**2).sum(0))),
        (np.max, lambda x: x.max(0)),
        (max, lambda x: x.max(0)),
        (lambda x: x[0], lambda x: x[0]),
    ],
)
def test_signals_are_drawn_by_position_with_channels_aggregated(how, function, channels_first):
    method = fake_method((3, 20), channels_first=channels_first)
    ax = plot(method, data_idx=2, aggr_channels=how).axes[0, 0]
    values = method.result[0][0][2, ..., 0]
    expected = function(values if channels_first else values.T)
    np.testing.assert_allclose(signal_heights(ax), expected)
    assert ax.get_xlim() == (-0.5, 19.5)
    assert ax.get_xlabel() == "Signal Length"


def test_signal_positions_are_numbers_unless_the_user_named_them():
    method = fake_method((1, 4))
    figure = plot(method)
    assert figure.axes[0, 0].xaxis.get_major_formatter()(2) != "L3"
    method.input_names[0][1][:] = ["spring", "summer", "autumn", "winter"]
    named = plot(method).axes[0, 0].xaxis.get_major_formatter()
    assert [named(k) for k in (-1, 0, 3, 4)] == ["", "spring", "winter", ""]


@pytest.mark.parametrize("channels_first", [True, False])
def test_images_have_row_0_at_the_top_and_zero_in_the_middle(channels_first):
    method = fake_method((3, 4, 6), channels_first=channels_first)
    ax = plot(method, data_idx=1).axes[0, 0]
    (image,) = ax.images
    expected = method.result[0][0][1, ..., 0].sum(0 if channels_first else -1)
    np.testing.assert_allclose(image.get_array(), expected)
    assert image.origin == "upper"
    assert ax.yaxis_inverted()
    assert image.norm.vmin == -image.norm.vmax == -np.abs(expected).max()
    assert image.cmap.name == COLOURS.name
    (bar,) = ax.child_axes
    assert bar.get_ylabel() == "Contribution"


def test_the_colour_bar_of_an_image_of_one_sign_shows_half_the_colours():
    method = fake_method((1, 4, 4))
    method.result[0][0][:] = np.abs(method.result[0][0])
    ax = plot(method).axes[0, 0]
    low, high = ax.child_axes[0].get_ylim()
    assert (low, high) == (0, ax.images[0].norm.vmax)
    assert ax.images[0].norm.vmin == -high


def test_an_image_of_zeros_and_nan_is_drawn():
    method = fake_method((1, 2, 2))
    method.result[0][0][0] = 0
    method.result[0][0][0, 0, 1, 1] = np.nan
    figure = plot(method)
    assert figure.axes[0, 0].images[0].get_array().mask.tolist() == [[False, False], [False, True]]
    figure._repr_png_()


def test_an_input_with_four_axes_is_refused_with_advice():
    with pytest.raises(ArgumentError, match=r"Input_1 has 4 axes.*get_result"):
        plot(fake_method((1, 2, 2, 2)))


def test_a_model_that_takes_one_number_has_one_bar():
    method = fake_method((1,))
    method.input_names, method.result = [[]], [[method.result[0][0][:, 0]]]
    ax = plot(method).axes[0, 0]
    assert heights(ax).tolist() == [method.result[0][0][0, 0]]
    assert tick_labels(ax.xaxis) == ["Input_1"]


# ---------------------------------------------------------------- box


def test_the_box_holds_prediction_sum_and_goal_above_the_data():
    method = fake_method((2,), (3,), nodes=((2, 0),))
    method.preds[0][1, 0] = 0.123456
    method.decomp_sum[0][1, 1] = -1e-10
    method.decomp_goal[0][1, 1] = 12345.678
    figure = plot(method, data_idx=1, output_label="setosa")
    assert info(figure.axes[0, 0]) == "Pred.: 0.1235   Sum: 0   Goal: 1.235e+04"
    assert info(figure.axes[0, 1]) is None  # once per node, not per input
    figure.figure.draw_without_rendering()
    box = next(t for t in figure.axes[0, 0].texts if t.get_gid() == "info")
    assert box.get_window_extent().y0 > figure.axes[0, 0].get_window_extent().y1


def test_the_box_leaves_out_what_the_method_has_not():
    method = fake_method((2,), preds=None, decomp_goal=None)
    assert info(plot(method).axes[0, 0]) == f"Sum: {method.decomp_sum[0][0, 0]:.4g}"


def test_no_box_without_show_preds():
    assert info(plot(fake_method((2,)), show_preds=False).axes[0, 0]) is None


# ---------------------------------------------------------------- grid


def test_the_grid_has_data_in_rows_and_nodes_and_inputs_in_columns():
    method = fake_method((2,), (1, 5), nodes=((0, 2), None, (1,)))
    axes = plot(method, data_idx=[2, 0], output_idx=[[2], None, [1]]).axes
    assert axes.shape == (2, 4)
    assert [ax.get_title() for ax in axes[0]] == [
        "Output_1: virginica\nInput_1",
        "Output_1: virginica\nInput_2",
        "Output_3: versicolor\nInput_1",
        "Output_3: versicolor\nInput_2",
    ]
    np.testing.assert_allclose(heights(axes[0, 0])[:2], method.result[0][0][2, :, 1])
    np.testing.assert_allclose(heights(axes[1, 2])[:2], method.result[1][0][0, :, 0])
    np.testing.assert_allclose(signal_heights(axes[0, 3]), method.result[1][1][2, 0, :, 0])
    assert "data_3" in texts(axes[0, 0])
    assert "data_1" in texts(axes[1, 0])
    assert [ax.get_ylabel() for ax in axes[0]] == ["Contribution", "", "", ""]
    assert [ax.get_xlabel() for ax in axes[:, 1]] == ["", "Signal Length"]


def test_same_scale_joins_the_inputs_of_a_node():
    method = fake_method((2,), (1, 4, 4))
    method.result[0][0][0, :, 0] = [0.1, -0.2]
    alone = plot(method).axes[0]
    joined = plot(method, same_scale=True).axes[0]
    largest = np.abs(method.result[0][1][0, 0, :, :, 0]).max()
    assert joined[1].images[0].norm.vmax == largest
    np.testing.assert_allclose(alone[0].patches[1].get_facecolor(), COLOURS(0.0))
    expected = COLOURS(0.5 - 0.5 * 0.2 / largest)
    np.testing.assert_allclose(joined[0].patches[1].get_facecolor(), expected)


def test_an_unconnected_input_says_so():
    method = fake_method((2,), (3,))
    method.result[0][0] = None
    method.decomp_sum = results.decomp_sum(method)
    axes = plot(method).axes
    assert "not connected" in texts(axes[0, 0])
    assert info(axes[0, 0]).startswith("Pred.")
    np.testing.assert_allclose(heights(axes[0, 1]), method.result[0][1][0, :, 0])
    assert "not connected" in texts(plot_global(method).axes[0, 0])


def test_global_connection_weights_have_no_data_label():
    method = fake_method((2,), batch=1, is_global=True, preds=None)
    assert texts(plot(method).axes[0, 0]) == [info(plot(method).axes[0, 0])]


# ---------------------------------------------------------------- selection


@pytest.mark.parametrize(
    "selection",
    [
        {"output_idx": 2},
        {"output_idx": [2]},
        {"output_idx": np.array([2])},
        {"output_idx": [[2]]},
        {"output_label": "virginica"},
        {"output_label": [["virginica"], None]},
        {"output_label": ["virginica"], "output_idx": [2]},
    ],
)
def test_a_node_can_be_chosen_in_several_ways(selection):
    method = fake_method((3,), nodes=((1, 2), (0,)))
    ax = plot(method, **selection).axes[0, 0]
    np.testing.assert_allclose(heights(ax), method.result[0][0][0, :, 1])


def test_a_flat_selection_means_the_first_explained_output():
    method = fake_method((3,), nodes=(None, (1, 2)))
    assert plot(method, output_idx=[2]).axes[0, 0].get_title() == "Output_2: virginica"
    assert plot(method).axes[0, 0].get_title() == "Output_2: versicolor"


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"data_idx": 3}, SelectionError, "data_idx is 3.*3 data point.*expected 0 to 2"),
        ({"data_idx": -1}, SelectionError, "expected 0 to 2"),
        ({"data_idx": []}, SelectionError, "data_idx is empty"),
        ({"data_idx": "all"}, ArgumentError, "data_idx is 'all'"),
        ({"data_idx": 1.5}, ArgumentError, "data_idx is 1.5"),
        ({"data_idx": [True]}, ArgumentError, "holds True"),
        ({"output_idx": 0}, SelectionError, "output_idx 0 is not among the explained.*: 1, 2"),
        ({"output_idx": []}, SelectionError, "no output node"),
        ({"output_idx": "Y1"}, SelectionError, "output_idx 'Y1' is not among"),
        ({"output_idx": 1.5}, ArgumentError, "expected a whole number"),
        ({"output_idx": [None, [0]]}, SelectionError, "Output_2, which was not explained"),
        ({"output_idx": [[1], [1], [1]]}, SelectionError, "the model has 2 output"),
        ({"output_idx": [[1], 2.5]}, ArgumentError, r"output_idx\[1\] is 2.5"),
        ({"output_label": "tulip"}, SelectionError, "'tulip' is not.*'versicolor', 'virginica'"),
        ({"output_label": 1}, ArgumentError, "expected a label"),
        (
            {"output_label": "virginica", "output_idx": 1},
            SelectionError,
            "denote different nodes",
        ),
        ({"aggr_channels": "median"}, ArgumentError, "'sum', 'mean', 'norm' or a function"),
        ({"aggr_channels": 3}, ArgumentError, "'sum', 'mean', 'norm' or a function"),
        ({"aggr_channels": np.cumsum}, ArgumentError, r"one number for the channels"),
    ],
)
def test_wrong_arguments_are_explained(arguments, error, text):
    method = fake_method((2, 5), nodes=((1, 2), None))
    with pytest.raises(error, match=text):
        plot(method, **arguments)


def test_too_many_panels_are_refused_before_drawing():
    method = fake_method((2,), batch=101)
    with pytest.raises(SelectionError, match="101 x 1 panels"):
        plot(method, data_idx=range(101))


# ---------------------------------------------------------------- many data points


def box_medians(ax):
    """The middle lines of standing boxes, from left to right."""
    return np.array([line.get_ydata()[0] for line in ax.lines if line.get_linewidth() == 1.5])


@pytest.mark.parametrize(
    ("preprocess", "function"), [(abs, np.abs), (None, lambda x: x), (np.square, np.square)]
)
def test_boxes_show_the_spread_over_the_chosen_data(preprocess, function):
    method = fake_method((4,), batch=9)
    ax = plot_global(method, output_idx=1, data_idx=[0, 2, 3], preprocess=preprocess).axes[0, 0]
    expected = np.median(function(method.result[0][0][[0, 2, 3], :, 1]), axis=0)
    np.testing.assert_allclose(box_medians(ax), expected)
    assert tick_labels(ax.xaxis) == ["X1", "X2", "X3", "X4"]


def test_the_reference_is_a_red_line_and_may_lie_outside_the_data():
    method = fake_method((4,), batch=9)
    ax = plot_global(method, data_idx=[0, 1], ref_data_idx=8).axes[0, 0]
    (red,) = ax.collections
    segments = np.array(red.get_segments())
    np.testing.assert_allclose(segments[:, 0, 1], np.abs(method.result[0][0][8, :, 0]))
    np.testing.assert_allclose(segments[:, 1, 0] - segments[:, 0, 0], 0.7)
    assert ax.get_ylim()[1] > segments[:, :, 1].max()


def test_preprocess_comes_before_channels_are_added():
    method = fake_method((3, 5), batch=7)
    ax = plot_global(method).axes[0, 0]
    expected = np.median(np.abs(method.result[0][0][..., 0]).sum(1), axis=0)
    np.testing.assert_allclose(box_medians(ax), expected)


def test_long_signals_get_bands():
    method = fake_method((1, 100), batch=20)
    ax = plot_global(method, ref_data_idx=0).axes[0, 0]
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    expected = np.abs(method.result[0][0][:, 0, :, 0])
    np.testing.assert_allclose(lines["median"], np.median(expected, axis=0))
    np.testing.assert_allclose(lines["data_1"], expected[0])


def test_images_show_their_median_on_one_scale():
    method = fake_method((3, 4, 5), batch=8)
    axes = plot_global(method, output_idx=[0, 1]).axes[0]
    medians = np.median(np.abs(method.result[0][0]).sum(1), axis=0)
    for k, ax in enumerate(axes):
        np.testing.assert_allclose(ax.images[0].get_array(), medians[..., k])
        assert ax.images[0].norm.vmax == medians.max()
        assert ax.child_axes[0].get_ylabel() == "Contribution (median)"


def test_boxes_of_a_large_table_show_the_features_with_the_largest_median():
    method = fake_method((100,), batch=5)
    ax = plot_global(method).axes[0, 0]
    medians = np.median(np.abs(method.result[0][0][..., 0]), axis=0)
    expected = [f"X{k + 1}" for k in np.argsort(-medians, kind="stable")[:30]]
    assert tick_labels(ax.yaxis) == expected
    assert ax.get_ylabel() == "Feature (30 of 100)"


def test_boxes_of_nan_are_drawn_empty():
    method = fake_method((2,), batch=5)
    method.result[0][0][:, 0] = np.nan
    method.result[0][0][0, 1] = np.inf
    assert plot_global(method)._repr_png_()


def test_boxplot_warns_for_images_only():
    assert boxplot(fake_method((3,)), output_idx=1).axes.shape == (1, 1)
    with pytest.warns(UserWarning, match="plot_global"):
        assert boxplot(fake_method((1, 3, 3)), data_idx=[0]).axes[0, 0].images


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"data_idx": "some"}, ArgumentError, "data_idx is 'some'"),
        ({"data_idx": [7]}, SelectionError, "expected 0 to 2"),
        ({"ref_data_idx": 3}, SelectionError, "ref_data_idx is 3"),
        ({"ref_data_idx": [0, 1]}, ArgumentError, "one data point"),
        ({"preprocess": "abs"}, ArgumentError, "expected a function"),
        ({"preprocess": np.sum}, ArgumentError, "keep the shape"),
        ({"aggr_channels": "max"}, ArgumentError, "aggr_channels is 'max'"),
        ({"output_label": "rose"}, SelectionError, "rose"),
    ],
)
def test_wrong_arguments_of_plot_global_are_explained(arguments, error, text):
    with pytest.raises(error, match=text):
        plot_global(fake_method((2, 5)), **arguments)


def test_plot_global_refuses_global_connection_weights():
    with pytest.raises(ArgumentError, match=r"use plot\(\)"):
        plot_global(fake_method((2,), batch=1, is_global=True))


def test_a_hundred_thousand_rows_are_summed_up_quickly():
    method = fake_method((20,), batch=100_000)
    assert plot_global(method, output_idx=[0, 1]).axes.shape == (1, 2)


# ---------------------------------------------------------------- the figure object


@pytest.mark.parametrize(
    ("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_figures_are_saved_by_their_ending(tmp_path, ending, start):
    path = tmp_path / f"plot.{ending}"
    plot(fake_method((3,))).save(path)
    assert path.read_bytes().startswith(start)


def test_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"'.*plot.xyz', expected one of the endings .*\.png"):
        plot(fake_method((3,))).save(tmp_path / "plot.xyz")


def test_notebooks_get_a_picture():
    assert plot(fake_method((3,)))._repr_png_().startswith(b"\x89PNG")


def test_show_without_a_viewer_says_what_to_do(monkeypatch):
    monkeypatch.setattr("PIL.ImageShow.show", lambda image: False)
    with pytest.raises(OnnxplainError, match=r"save\(path\)"):
        plot(fake_method((3,))).show()


def test_show_opens_the_picture(monkeypatch):
    shown = []
    monkeypatch.setattr("PIL.ImageShow.show", lambda image: shown.append(image.size) or True)
    plot(fake_method((3,))).show()
    assert len(shown) == 1


def test_the_callers_axes_are_used():
    method = fake_method((3,))
    own = MplFigure()
    axes = own.subplots(1, 2)
    figure = plot(method, data_idx=1, output_idx=[0, 1], ax=axes)
    assert figure.figure is own
    assert figure.axes.tolist() == [list(axes)]
    np.testing.assert_allclose(heights(axes[1]), method.result[0][0][1, :, 1])
    assert axes[1].get_title() == "versicolor\ndata_2"
    assert [ax.get_ylabel() for ax in axes] == ["Contribution", "Contribution"]
    assert plot_global(method, ax=own.subfigures().subplots()).figure is own


@pytest.mark.parametrize("ax", ["axes", 3, []])
def test_axes_that_do_not_fit_are_refused(ax):
    with pytest.raises(ArgumentError, match="expected 1 matplotlib axes"):
        plot(fake_method((3,)), ax=ax)


def test_no_global_state_of_matplotlib_is_touched():
    before = dict(Gcf.figs)
    plot(fake_method((3, 4, 4)))
    assert Gcf.figs == before


def test_the_package_of_plots_names_what_it_has():
    with pytest.raises(AttributeError, match="no attribute 'pie'"):
        _ = plots.pie
    assert callable(plots.Figure)


# ---------------------------------------------------------------- small helpers


@pytest.mark.parametrize("how", ["sum", "mean", "norm", builtins.sum])
def test_values_without_channels_stay_as_they_are(how):
    values = np.arange(3.0)
    assert add_channels(values, 0, how) is values


@pytest.mark.parametrize(
    ("name", "length", "expected"),
    [("short", 10, "short"), ("abcdefghij", 10, "abcdefghij"), ("abcdefghijk", 10, "abcdef…ijk")],
)
def test_long_names_keep_start_and_end(name, length, expected):
    assert shortened(name, length) == expected
