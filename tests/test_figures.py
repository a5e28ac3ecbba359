"""Every kind of plot for every kind of input; swarms, waterfalls, comparisons; how figures look."""

import io
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from images.make import FIGURES, FOLDER, picture
from matplotlib import cbook, colormaps, rc_context, rcParams
from matplotlib._pylab_helpers import Gcf
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgb
from PIL import Image

import onnxplain as ox
from fake_results import fake_method
from onnxplain.demo import MODEL, digits
from onnxplain.errors import ArgumentError, MissingPackageError, OnnxplainError, SelectionError
from onnxplain.plots import beeswarm, boxplot, compare, plot, plot_global, waterfall
from onnxplain.plots.common import MAX_DOTS, MAX_OUTLIERS, Panel, box_statistics, wrapped
from onnxplain.plots.mpl import COLOURS, DARK_COLOURS, glaze
from onnxplain.plots.sheets import global_sheet, instance_sheet

SHAPES = {
    "table": [(4,)],
    "signal": [(2, 9)],
    "image": [(3, 4, 3)],
    "mixed": [(3,), (1, 9), (3, 4, 3)],
}
NODES = {"output_idx": [[0], None, [2]]}
KINDS = {
    "plot": lambda m: plot(m, [0, 2], 0),
    "overlay": lambda m: plot(m, **NODES, overlay=True),
    "plot_global": lambda m: plot_global(m, **NODES, ref_data_idx=1),
    "boxplot": lambda m: boxplot(m, individual_data_idx=[0, 1]),
    "compare": lambda m: compare({"a": m, "b": m}),
    "beeswarm": lambda m: beeswarm(m, **NODES),
    "waterfall": lambda m: waterfall(m, [0, 2], **NODES),
}
PANELS = {"plot": (2, 1), "boxplot": (1, 1), "waterfall": (2, 2)}  # of one input; others (1, 2)
TABLES_ONLY = ("beeswarm", "waterfall")


def names_of(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def texts(ax, gid=None):
    return [t.get_text() for t in ax.texts if gid is None or t.get_gid() == gid]


def dots(ax):
    """Values and features of all dots of a swarm, (n, 2)."""
    swarms = [c for c in ax.collections if isinstance(c, PathCollection)]
    return [np.asarray(s.get_offsets()) for s in swarms]


# ---------------------------------------------------------------- everything is drawn


@pytest.mark.filterwarnings("ignore:boxplot")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_plot_is_drawn_for_every_input(shape, kind):
    method = fake_method(*SHAPES[shape], nodes=((0, 1), None, (1, 2)), batch=9)
    if kind in TABLES_ONLY and shape in ("signal", "image"):
        with pytest.raises(ArgumentError, match=f"{kind} shows the features of tables"):
            KINDS[kind](method)
        return
    figure = KINDS[kind](method)
    assert Gcf.figs == {}  # pyplot knows nothing of it
    rows, columns = PANELS.get(kind, (1, 2))
    inputs = 1 if kind in TABLES_ONLY else len(SHAPES[shape])
    assert figure.axes.shape == (rows, columns * inputs)
    pixels = np.asarray(Image.open(_file(figure)).convert("L"), float)
    assert pixels.std() > 10
    # Nothing is cut off at the edges of the paper.
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert np.ptp(edges) == 0


def _file(figure):
    return io.BytesIO(figure._repr_png_())


@pytest.mark.parametrize("kind", ["plot", "overlay", "plot_global", *TABLES_ONLY])
@pytest.mark.parametrize("number", [np.nan, np.inf, -1e300])
def test_numbers_of_any_size_are_drawn(number, kind):
    shape = "table" if kind in TABLES_ONLY else "mixed"
    method = fake_method(*SHAPES[shape], nodes=((0, 1), None, (1, 2)), batch=9)
    for row in method.result:
        for array in row:
            array.reshape(9, -1, 2)[:, 1:] = number
    for array in method.data:
        array.reshape(9, -1)[:, 1:] = number
    figure = KINDS[kind](method)
    figure.figure.set_layout_engine("none")  # half the time
    assert figure._repr_png_()


def test_threads_draw_in_their_own_looks():
    method, papers = fake_method((2,)), {"dark": (0, 0, 0), "light": (1, 1, 1)}

    def draw(style):
        return to_rgb(plot(method).theme(style).axes[0, 0].get_facecolor()) == papers[style]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(draw, ["dark", "light"] * 8))


# ---------------------------------------------------------------- pictures


def distance(a, b):
    """Root mean square difference of two pictures after joining 4 x 4 pixels, in 0 to 255."""
    a, b = (np.asarray(p.convert("RGB").reduce(4), float) for p in (a, b))
    return float("inf") if a.shape != b.shape else float(np.sqrt(np.mean((a - b) ** 2)))


@pytest.mark.parametrize("name", FIGURES)
def test_figures_look_as_they_did(name, tmp_path):
    now = picture(FIGURES[name]())
    far = distance(now, Image.open(FOLDER / f"{name}.png"))
    now.save(tmp_path / f"{name}.png")
    # Other fonts and sizes of letters change less than 1.
    assert far < 3, f"see {tmp_path / name}.png; if it is right, run python tests/images/make.py"


@pytest.mark.parametrize("name", FIGURES)
def test_another_figure_would_be_noticed(name):
    reference = Image.open(FOLDER / f"{name}.png").convert("RGB")
    assert (FOLDER / f"{name}.png").stat().st_size < 60_000
    assert distance(reference, reference.transpose(Image.Transpose.FLIP_TOP_BOTTOM)) > 12


@pytest.mark.parametrize("colours", [COLOURS, DARK_COLOURS])
def test_colours_are_as_bright_for_a_value_as_for_its_negative(colours):
    x = np.linspace(0, 1, 9)
    blue, red = (colours(0.5 + 0.5 * side * x)[:, :3] for side in (-1, 1))
    luma = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(blue @ luma, red @ luma, atol=0.13)
    assert np.all(np.abs(np.diff(red @ luma)) > 0.01)  # stronger values are told apart in grey too
    assert np.all(blue[1:, 2] > blue[1:, 0])
    assert np.all(red[1:, 0] > red[1:, 2])


# ---------------------------------------------------------------- parts of a figure


@pytest.mark.parametrize(
    ("key", "rows", "columns"),
    [
        ((0, 0), [0], [0]),
        ((0, slice(1, None)), [0], [1, 2]),
        ((-1, -1), [2], [2]),
        ((slice(None), [2, 0]), [0, 1, 2], [2, 0]),
        (1, [1], [0, 1, 2]),
        (np.array([2, 0]), [2, 0], [0, 1, 2]),
    ],
)
def test_a_figure_is_indexed_by_data_points_and_nodes(key, rows, columns):
    method = fake_method((3,), nodes=((0, 1, 2),))
    axes = plot(method, [0, 1, 2], [0, 1, 2])[key].axes
    assert axes.shape == (len(rows), len(columns))
    for r, ax_row in zip(rows, axes, strict=True):
        for c, ax in zip(columns, ax_row, strict=True):
            heights = [bar.get_height() for bar in ax.patches]
            np.testing.assert_allclose(heights, method.result[0][0][r, :, c])
    assert [ax.get_title() for ax in axes[0]] == [method.output_names[0][0][c] for c in columns]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["Contribution"] * len(rows)
    assert [f"data_{r + 1}" in texts(ax) for r, ax in zip(rows, axes[:, 0], strict=True)]


def test_a_part_keeps_the_box_that_its_inputs_share():
    figure = plot(fake_method((2,), (1, 9)))
    assert texts(figure[0, 1:].axes[0, 0], "info") == texts(figure.axes[0, 0], "info")
    assert texts(figure.axes[0, 1], "info") == []


def test_a_part_keeps_the_look_and_rows_can_be_run_through():
    dark = plot(fake_method((2,)), [0, 1]).theme("dark")
    assert to_rgb(dark[0].axes[0, 0].get_facecolor()) == (0, 0, 0)
    assert [row.axes.shape for row in dark] == [(1, 1), (1, 1)]
    assert len(dark) == 2


# ---------------------------------------------------------------- looks


@pytest.mark.parametrize(
    ("style", "paper"),
    [
        ("dark", (0, 0, 0)),
        ("light", (1, 1, 1)),
        ("ggplot", to_rgb("#E5E5E5")),
        ({"axes.facecolor": "#101030"}, to_rgb("#101030")),
        (None, (1, 1, 1)),
    ],
)
def test_themes_set_paper_and_ink(style, paper):
    before = dict(rcParams)
    ax = plot(fake_method((3,))).theme(style).axes[0, 0]
    np.testing.assert_allclose(to_rgb(ax.get_facecolor()), paper)
    light = np.mean(paper) > 0.5
    middle = COLOURS(0.75) if light else DARK_COLOURS(0.75)
    colours = colormaps["RdBu_r" if light else "berlin"](0.75)
    assert middle == colours
    for line in ax.lines:  # the line at 0 is seen on the paper
        assert abs(np.mean(to_rgb(line.get_color())) - np.mean(paper)) > 0.5
    assert dict(rcParams) == before


def test_a_figure_keeps_the_settings_it_was_made_with():
    with rc_context({"axes.facecolor": "black", "xtick.labelcolor": "#ff8800"}):
        figure = plot(fake_method((3,)))
    figure._repr_png_()
    ax = figure.axes[0, 0]
    assert {label.get_color() for label in ax.get_xticklabels()} == {"#ff8800"}
    np.testing.assert_allclose(ax.patches[0].get_facecolor(), DARK_COLOURS(_share(ax.patches)))


def _share(bars):
    heights = np.array([bar.get_height() for bar in bars])
    return 0.5 + 0.5 * heights[0] / np.abs(heights).max()


def test_long_class_names_are_wrapped_and_stay_apart():
    long = "a very long class name that goes on, and on, and does not want to end at all, really"
    method = fake_method((4,), output_names=[[[long, long.replace(" ", "_"), "c"]]])
    figure = plot(method, output_idx=[0, 1])
    figure.figure.draw_without_rendering()
    left, right = (ax.title.get_window_extent() for ax in figure.axes[0])
    assert left.x1 < right.x0
    assert right.x1 < figure.figure.bbox.x1
    assert 1 <= figure.axes[0, 1].get_title().count("\n") <= 2
    assert "…" in figure.axes[0, 1].get_title()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("short", "short"),
        ("two words of some length", "two words\nof some…gth"),
        ("x" * 40, "xxxxxxxxxxxx\nx…xxxxxxxxxx"[:25]),
        ("", ""),
    ],
)
def test_names_are_wrapped_into_two_lines(name, expected):
    found = wrapped(name, 12)
    assert all(len(line) <= 12 for line in found.split("\n"))
    assert found.count("\n") == expected.count("\n")
    assert found.startswith(expected[:5])


# ---------------------------------------------------------------- over the input


def test_an_image_is_drawn_over_its_grey_picture():
    method = fake_method((3, 4, 5))
    ax = plot(method, data_idx=1, overlay=0.6).axes[0, 0]
    below, above = ax.images
    grey = method.data[0][1].mean(axis=0)
    np.testing.assert_allclose(below.get_array(), (grey - grey.min()) / np.ptp(grey))
    np.testing.assert_allclose(above.get_array(), method.result[0][0][1, ..., 0].sum(0))
    assert above.norm.vmin == -above.norm.vmax
    alpha = above.cmap(np.array([0.0, 0.25, 0.5, 0.75, 1.0]))[:, 3]
    np.testing.assert_allclose(alpha[[0, 2, 4]], [0.6, 0, 0.6], atol=0.02)
    assert 0 < alpha[1] < 0.6
    assert plot(method).axes[0, 0].images[0].cmap.name == COLOURS.name


def test_the_glaze_of_a_picture_is_blue_below_and_red_above_zero():
    blue, red = glaze(1.0)(np.array([0.2, 0.8]))[:, :3]
    assert blue[2] > blue[0]
    assert red[0] > red[2]


def test_a_signal_is_a_line_in_the_colours_of_its_result():
    method = fake_method((1, 6))
    ax = plot(method, data_idx=2, overlay=True).axes[0, 0]
    (line,) = (c for c in ax.collections if isinstance(c, LineCollection))
    values = method.result[0][0][2, 0, :, 0]
    np.testing.assert_allclose(
        line.get_colors(), COLOURS(0.5 + 0.5 * values / np.abs(values).max())
    )
    middle = np.array([segment[1] for segment in line.get_segments()])
    np.testing.assert_allclose(middle, np.stack([np.arange(6), method.data[0][2, 0]], axis=1))
    ends = np.array([segment[[0, -1]] for segment in line.get_segments()])
    np.testing.assert_allclose(ends[1:, 0], ends[:-1, 1])  # the pieces touch
    assert ax.get_ylabel() == "Input"
    assert ax.child_axes[0].get_ylabel() == "Contribution"


def test_channels_of_a_signal_have_lanes_with_their_names():
    method = fake_method((3, 8))
    ax = plot(method, overlay=True).axes[0, 0]
    lanes = [c for c in ax.collections if isinstance(c, LineCollection)]
    heights = [np.concatenate(lane.get_segments())[:, 1] for lane in lanes]
    assert all(a.min() > b.max() for a, b in pairwise(heights))
    assert names_of(ax) == ["C1", "C2", "C3"]
    colours = [lane.get_colors() for lane in lanes]
    np.testing.assert_array_equal(colours[0], colours[2])


def test_features_of_a_table_carry_their_values():
    method = fake_method((2,))
    method.data[0][:2] = [[0.25, -1e-12], [31, 12345.678]]
    axes = plot(method, [0, 1], [0, 1], overlay=True).axes
    labels = [names_of(ax) for ax in axes[:, 0]]
    assert labels == [["X1 = 0.25", "X2 = 0"], ["X1 = 31", "X2 = 1.235e+04"]]
    # They differ from row to row, but not from column to column.
    shown = [[ax.yaxis.get_tick_params()["labelleft"] for ax in row] for row in axes]
    assert shown == [[True, False], [True, False]]


@pytest.mark.parametrize("data", [None, [], [np.zeros((3, 7))], np.zeros((3, 2)), [["a"]]])
def test_without_fitting_data_there_is_nothing_to_draw_over(data):
    method = fake_method((2,), data=data)
    with pytest.raises((ArgumentError, OnnxplainError), match="use overlay=False"):
        plot(method, overlay=True)
    assert names_of(waterfall(method).axes[0, 0]) in (["X1", "X2"], ["X2", "X1"])
    assert beeswarm(method).axes[0, 0].child_axes == []  # no colour bar


# ---------------------------------------------------------------- many features


@pytest.mark.parametrize("n", [30, 31, 500])
def test_the_bars_of_many_features_add_up_to_the_sum(n):
    method = fake_method((n,))
    ax = plot(method, data_idx=1, output_idx=1).axes[0, 0]
    widths = [bar.get_width() for bar in ax.patches]
    assert sum(widths) == pytest.approx(method.decomp_sum[0][1, 1])
    assert len(widths) == min(n, 31)
    last = names_of(ax)[-1]
    assert last == {30: "X30", 31: "1 other", 500: "470 others"}[n]


def test_max_features_of_boxes_leaves_features_out():
    axes = plot_global(fake_method((8,)), max_features=3).axes
    assert axes[0, 0].get_xlabel() == "Feature (3 of 8)"
    assert len(axes[0, 0].get_xticklabels()) == 3


# ---------------------------------------------------------------- waterfall


def test_the_steps_of_a_waterfall_lead_from_zero_to_the_sum():
    method = fake_method((20,))
    ax = waterfall(method, data_idx=1, output_idx=1, max_features=6).axes[0, 0]
    starts = np.array([bar.get_x() for bar in ax.patches])
    steps = np.array([bar.get_width() for bar in ax.patches])
    values = method.result[0][0][1, :, 1]
    order = np.argsort(-np.abs(values))
    np.testing.assert_allclose(steps[:6], values[order[:6]])
    np.testing.assert_allclose(steps[6], values[order[6:]].sum())
    np.testing.assert_allclose(starts, np.r_[0, np.cumsum(steps)[:-1]], atol=1e-12)
    total, goal = ax.lines[1].get_xdata()[0], ax.lines[2].get_xdata()[0]
    assert total == pytest.approx(method.decomp_sum[0][1, 1])
    assert goal == method.decomp_goal[0][1, 1]
    assert texts(ax)[-2:] != texts(ax)[:2]
    assert {"sum", "goal"} <= set(texts(ax))
    assert texts(ax, "step") == [f"{step:+.3g}" for step in steps]
    assert names_of(ax)[-1] == "14 others"
    low, high = ax.get_xlim()
    assert low < min(0, total, goal, *starts)
    assert high > max(0, total, goal, *starts)


def test_the_steps_of_a_waterfall_are_red_up_and_blue_down():
    method = fake_method((2,))
    method.result[0][0][0, :, 0] = [2, -1]
    up, down = (bar.get_facecolor() for bar in waterfall(method).axes[0, 0].patches)
    assert up[0] > up[2]
    assert down[2] > down[0]


def test_a_waterfall_of_a_mixed_model_has_one_step_per_signal_or_image():
    method = fake_method((3,), (1, 4), (1, 2, 2))
    ax = waterfall(method).axes[0, 0]
    found = dict(zip(names_of(ax), (bar.get_width() for bar in ax.patches), strict=True))
    assert found["Input_2 (sum)"] == pytest.approx(method.result[0][1][0, ..., 0].sum())
    assert found["Input_3 (sum)"] == pytest.approx(method.result[0][2][0, ..., 0].sum())
    assert sum(found.values()) == pytest.approx(method.decomp_sum[0][0, 0])
    assert any(re.fullmatch(r"Input_1: X2 = -?[\d.e-]+", name) for name in found)


# ---------------------------------------------------------------- beeswarm


def test_the_dots_of_a_swarm_are_the_values_in_order_of_size():
    method = fake_method((6,), batch=40)
    method.result[0][0] *= np.array([1, 20, 3, 4, 5, 0.1])[None, :, None]
    ax = beeswarm(method, max_features=3).axes[0, 0]
    sizes = np.abs(method.result[0][0][..., 0]).mean(0)
    order = np.argsort(-sizes)
    assert names_of(ax) == [*(f"X{k + 1}" for k in order[:3]), "3 others"]
    swarms = dots(ax)
    for k, swarm in zip(order, swarms[:3], strict=False):
        np.testing.assert_allclose(np.sort(swarm[:, 0]), np.sort(method.result[0][0][:, k, 0]))
    rest = method.result[0][0][:, order[3:], 0].sum(1)
    np.testing.assert_allclose(np.sort(swarms[3][:, 0]), np.sort(rest))
    for k, swarm in enumerate(swarms):
        assert np.abs(swarm[:, 1] - k).max() <= 0.45


def test_dots_have_the_colour_of_the_value_of_the_feature():
    method = fake_method((1,), batch=5)
    method.result[0][0][:, 0, 0] = [0, 1, 2, 3, 4]
    method.data = [np.array([[0.0], [10], [5], [np.nan], [2]])]
    (swarm,) = (c for c in beeswarm(method).axes[0, 0].collections if isinstance(c, PathCollection))
    light = swarm.get_facecolors()[:, :3] @ [0.299, 0.587, 0.114]
    assert light[0] < light[4] < light[2] < light[1]
    assert np.ptp(swarm.get_facecolors()[3, :3]) < 0.01  # without a value: grey


def test_dots_at_one_place_lie_beside_each_other():
    method = fake_method((1,), batch=9)
    method.result[0][0][:] = 1
    (swarm,) = dots(beeswarm(method).axes[0, 0])
    assert len(np.unique(swarm[:, 1].round(6))) == 9


def test_swarms_of_many_data_points_are_thinned_and_keep_their_ends():
    method = fake_method((2,), batch=50_000)
    swarm = dots(beeswarm(method).axes[0, 0])[0]
    values = method.result[0][0][..., 0]
    best = np.abs(values).mean(0).argmax()
    assert len(swarm) == MAX_DOTS
    assert swarm[:, 0].min() == values[:, best].min()
    assert swarm[:, 0].max() == values[:, best].max()


# ---------------------------------------------------------------- compare


def test_methods_stand_side_by_side_in_their_own_units():
    first, second = fake_method((4,)), fake_method((4,), seed=2, value_name="Gradient")
    second.result[0][0] *= 1000
    figure = compare({"LRP": first, "Gradient": second}, data_idx=[2, 0], output_idx=[0, 1])
    axes = figure.axes
    assert axes.shape == (4, 2)
    assert [ax.get_title() for ax in axes[0]] == ["LRP", "Gradient"]
    for r, (b, k) in enumerate([(2, 0), (2, 1), (0, 0), (0, 1)]):
        assert f"data_{b + 1}\n{['setosa', 'versicolor'][k]}" in texts(axes[r, 0])
        for ax, method in zip(axes[r], (first, second), strict=True):
            heights = [bar.get_height() for bar in ax.patches]
            np.testing.assert_allclose(heights, method.result[0][0][b, :, k])
            assert len(texts(ax, "info")) == 1
            limits = ax.get_ylim()
            assert limits[1] - limits[0] < 1.3 * (max(*heights, 0) - min(*heights, 0))


def test_methods_of_large_tables_show_the_same_features():
    first, second = fake_method((60,)), fake_method((60,), seed=2)
    second.result[0][0] *= 1000
    left, right = compare([first, second], max_features=14).axes[0]
    assert names_of(left)[-1] == "46 others"
    places = [int(name[1:]) - 1 for name in names_of(left)[:-1]]
    values = [m.result[0][0][0, :, 0] for m in (first, second)]
    for ax, found in zip((left, right), values, strict=True):
        np.testing.assert_allclose([b.get_width() for b in ax.patches][:14], found[places])
    # Both have a say in what is shown, whatever their units.
    assert all(np.abs(v).argmax() in places for v in values)


def test_methods_are_named_by_what_differs():
    plain = [fake_method((2,)), fake_method((2,), method_name="LRP", rule_name="epsilon")]
    assert [ax.get_title() for ax in compare(plain).axes[0]] == ["DeepLift", "LRP"]
    rules = [fake_method((2,), method_name="LRP", rule_name=r) for r in ("simple", "epsilon")]
    assert [ax.get_title() for ax in compare(rules).axes[0]] == ["LRP simple", "LRP epsilon"]
    same = [fake_method((2,)), fake_method((2,))]
    assert [ax.get_title() for ax in compare(same).axes[0]] == ["DeepLift (1)", "DeepLift (2)"]


def test_nodes_of_other_methods_are_found_by_their_place_in_the_model():
    first, second = fake_method((3,), nodes=((2,),)), fake_method((3,), nodes=((0, 2),), seed=2)
    right = compare([first, second]).axes[0, 1]
    heights = [bar.get_height() for bar in right.patches]
    np.testing.assert_allclose(heights, second.result[0][0][0, :, 1])


# ---------------------------------------------------------------- many data points


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_boxes_are_those_of_matplotlib(n):
    values = np.random.default_rng(0).standard_t(2, size=(n, 3))
    expected = cbook.boxplot_stats(values)
    found = box_statistics(Panel("table", "boxes", values, [["a", "b", "c"]]))
    for ours, theirs in zip(found, expected, strict=True):
        for key in ("q1", "med", "q3", "whislo", "whishi"):
            assert ours[key] == pytest.approx(theirs[key])
        np.testing.assert_allclose(ours["fliers"], np.sort(theirs["fliers"]))


def test_outliers_are_thinned_and_the_outermost_stay():
    values = np.random.default_rng(0).standard_t(2, size=(100_000, 1))
    (box,) = box_statistics(Panel("table", "boxes", values, [["a"]]))
    assert len(box["fliers"]) == MAX_OUTLIERS
    assert box["fliers"][0] == values.min()
    assert box["fliers"][-1] == values.max()


def test_individual_data_points_are_lines_over_the_boxes():
    method = fake_method((4,), batch=9)
    figure = plot_global(method, ref_data_idx=8, individual_data_idx=[5, 8, 2, 3], individual_max=3)
    ax = figure.axes[0, 0]
    lines = {line.get_label(): line.get_ydata() for line in ax.lines if line.get_marker() == "o"}
    assert list(lines) == ["data_6", "data_3"]  # data_9 is the reference, in red
    np.testing.assert_allclose(lines["data_3"], np.abs(method.result[0][0][2, :, 0]))
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["data_9", "data_6", "data_3"]


@pytest.mark.parametrize("percentile", [0, 12.5, 50, 100])
def test_images_show_any_percentile(percentile):
    method = fake_method((2, 3, 4), batch=8)
    ax = plot_global(method, percentile=percentile).axes[0, 0]
    values = np.abs(method.result[0][0][..., 0]).sum(1)
    np.testing.assert_allclose(ax.images[0].get_array(), np.percentile(values, percentile, axis=0))
    title = ax.child_axes[0].get_ylabel()
    assert title == f"Contribution ({'median' if percentile == 50 else f'{percentile} %'})"


# ---------------------------------------------------------------- other backends


def test_as_plotly_hands_over_the_same_sheet(monkeypatch):
    module = ModuleType("onnxplain.plots.plotly")
    module.draw = lambda sheet: sheet
    monkeypatch.setitem(sys.modules, module.__name__, module)
    method = fake_method((1, 4, 5), batch=30)
    sheet = plot(method, 1, as_plotly=True, overlay=True)
    same = instance_sheet(method, 1, overlay=True)
    np.testing.assert_array_equal(sheet.panels[0][0].values, same.panels[0][0].values)
    (panel,) = plot_global(method, as_plotly=True)
    values = np.abs(method.result[0][0][..., 0]).sum(1)
    np.testing.assert_allclose(panel.percentiles[4], np.median(values, axis=0))
    assert panel.scale == values.max()
    table = fake_method((3,), batch=30)
    (panel,) = boxplot(table, as_plotly=True, ref_data_idx=25)
    assert list(panel.individuals) == ["data_26", *(f"data_{k + 1}" for k in range(20))]
    for drawn in (beeswarm, waterfall, lambda m, **o: compare([m], **o)):
        assert next(iter(drawn(table, as_plotly=True))).values is not None


def test_as_plotly_without_plotly_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxplain.plots.plotly", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'onnxplain\[plotly\]'"):
        plot(fake_method((2,)), as_plotly=True)


def test_sheets_for_paper_hold_nothing_that_only_menus_show():
    (panel,) = global_sheet(fake_method((1, 4, 5)))
    assert panel.percentiles is None
    (panel,) = global_sheet(fake_method((4,)))
    assert panel.individuals == {}


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m: plot(m)[1], SelectionError, "row 1 is not there: the plot has 1"),
        (lambda m: plot(m)[0, 5], SelectionError, "column 5 is not there: the plot has 1"),
        (lambda m: plot(m)[0, 3:], SelectionError, "selects nothing of 1"),
        (lambda m: plot(m)[[]], SelectionError, "selects nothing"),
        (lambda m: plot(m)[0, 0, 0], SelectionError, "3 indices"),
        (lambda m: plot(m)["setosa"], ArgumentError, "numbers, slices or lists"),
        (lambda m: plot(m).theme("no such"), ArgumentError, "theme is 'no such'.*'dark'"),
        (lambda m: plot(m).theme(3), ArgumentError, "theme is 3"),
        (lambda m: plot(m).theme("https://example.org/a"), ArgumentError, "theme is 'https"),
        (lambda m: plot(m).theme({"axes.color": 1}), ArgumentError, "axes.color"),
        (lambda m: plot(m).theme({"font.size": "x"}), ArgumentError, "font.size|float"),
        (lambda m: plot(m).save("a.html"), ArgumentError, "as_plotly=True"),
        (lambda m: plot(m, as_plotly=1), ArgumentError, "as_plotly must be True or False"),
        (lambda m: plot(m, show_preds=None), ArgumentError, "show_preds must be True or False"),
        (lambda m: plot(m, same_scale="x"), ArgumentError, "same_scale must be True or False"),
        (lambda m: compare([m], same_scale=1), ArgumentError, "same_scale must be True or False"),
        (lambda m: plot(m, as_plotly=True, ax=3), ArgumentError, "axes of matplotlib"),
        (lambda m: plot(m, overlay=2), ArgumentError, "overlay is 2.*at most 1"),
        (lambda m: plot(m, overlay=-0.5), ArgumentError, "overlay is -0.5"),
        (lambda m: plot(m, overlay="yes"), ArgumentError, "overlay is 'yes'"),
        (lambda m: plot(m, overlay=float("nan")), ArgumentError, "overlay is nan"),
        (lambda m: plot(m, max_features=0), ArgumentError, "max_features is 0"),
        (lambda m: plot(m, max_features=2.5), ArgumentError, "max_features is 2.5"),
        (lambda m: waterfall(m, 9), SelectionError, "data_idx is 9"),
        (lambda m: waterfall(m, output_label="rose"), SelectionError, "rose"),
        (lambda m: waterfall(m, max_features=True), ArgumentError, "max_features is True"),
        (lambda m: beeswarm(m, data_idx=[]), SelectionError, "data_idx is empty"),
        (lambda m: beeswarm(m, max_features=-1), ArgumentError, "max_features is -1"),
        (lambda m: beeswarm(m, ax=[]), ArgumentError, "expected 1 matplotlib axes"),
        (lambda m: plot_global(m, percentile=101), ArgumentError, "from 0 to 100"),
        (lambda m: plot_global(m, percentile="max"), ArgumentError, "from 0 to 100"),
        (lambda m: plot_global(m, individual_max=-1), ArgumentError, "individual_max is -1"),
        (lambda m: plot_global(m, individual_data_idx=[5]), SelectionError, "individual_data_idx"),
        (lambda m: plot_global(m, individual_data_idx="a"), ArgumentError, "individual_data_idx"),
        (lambda m: compare([]), SelectionError, "no methods"),
        (lambda m: compare(m), ArgumentError, "list of explained methods"),
        (lambda m: compare([m, 3]), ArgumentError, "3, expected an explained method"),
        (lambda m: compare([m, fake_method((4,))]), ArgumentError, "methods of one model"),
        (
            lambda m: compare([m, fake_method((3,), nodes=((1,),))]),
            SelectionError,
            "has not explained node 0 of Output_1",
        ),
        (lambda m: compare([m, fake_method((3,), batch=1)], 2), SelectionError, "1 data point"),
    ],
)
def test_wrong_use_is_explained(call, error, text):
    with pytest.raises(error, match=text):
        call(fake_method((3,)))


@pytest.mark.parametrize("kind", [plot_global, beeswarm])
def test_global_connection_weights_have_no_spread(kind):
    with pytest.raises(ArgumentError, match=r"use plot\(\)"):
        kind(fake_method((2,), batch=1, is_global=True))


def test_global_connection_weights_ignore_data_idx_with_a_warning():
    method = fake_method((2,), batch=1, is_global=True, preds=None)
    with pytest.warns(UserWarning, match="data_idx is ignored"):
        assert plot(method, data_idx=[4, 5]).axes.shape == (1, 1)
    assert compare([method, fake_method((2,))]).axes.shape == (1, 2)


# ---------------------------------------------------------------- real methods


@pytest.fixture(scope="module")
def lrp():
    return ox.LRP(ox.convert(MODEL), digits()[0][:3])


def test_results_have_their_plots_as_methods(lrp):
    both = lrp.compare(ox.Gradient(lrp.converter, lrp.data), data_idx=1, overlay=True)
    assert [ax.get_title() for ax in both.axes[0]] == ["LRP", "Gradient"]
    assert both.axes[0, 1].child_axes[0].get_ylabel() == "Gradient"
    with pytest.raises(ArgumentError, match="takes images"):
        lrp.waterfall()
    with pytest.raises(ArgumentError, match="takes images"):
        lrp.beeswarm()


def test_the_picture_below_is_the_input_in_any_layout_of_channels(lrp):
    images = np.moveaxis(digits()[0][:3], 1, -1)
    last = ox.LRP(lrp.converter, images, channels_first=False)
    first, second = (m.plot(2, overlay=True).axes[0, 0].images for m in (lrp, last))
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_allclose(ours.get_array(), theirs.get_array(), atol=1e-6)


def test_the_best_nodes_of_each_row_are_named_in_the_box():
    top = ox.LRP(ox.convert(MODEL), digits()[0][:3], output_idx="top1")
    figure = top.plot([0, 1, 2])
    labels = top.converter.output_names[0][0]
    for ax, pred in zip(figure.axes[:, 0], top.preds[0], strict=True):
        assert texts(ax, "info")[0].startswith(f"Node: {labels[pred.argmax()]}\n")
    assert figure.axes[0, 0].get_title() == "top1"


def test_inner_tensors_are_named(lrp):
    inner = ox.LRP(lrp.converter, digits()[0][:2], layer="features")
    assert inner.plot().axes[0, 0].get_title().split("\n")[1] == "features"
    assert inner.waterfall().axes.shape == (1, 1)


# ---------------------------------------------------------------- the page

PAGE = Path(__file__).parents[1] / "docs" / "plots.md"


def test_the_page_of_plots_has_its_pictures():
    pictures = re.findall(r"!\[[^\]]+\]\((.*?)\)", PAGE.read_text("utf-8"))
    assert len(pictures) > 10
    assert all((PAGE.parent / path).stat().st_size < 150_000 for path in pictures)


@pytest.mark.oracle
def test_the_code_of_the_page_of_plots_runs():
    pytest.importorskip("sklearn")
    names = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        exec(code, names)
    assert names["own"].axes
    assert isinstance(names["beat"], ox.LRP)
