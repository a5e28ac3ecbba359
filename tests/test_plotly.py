"""Interactive plots: what they hand to plotly, and the files they write."""

import base64
import json
import re

import numpy as np
import pytest

from fake_results import fake_method
from onnxplain.errors import ArgumentError, MissingPackageError, SelectionError
from onnxplain.plots import beeswarm, boxplot, compare, plot, plot_global, waterfall
from onnxplain.plots.common import PERCENTILES, box_statistics

pytest.importorskip("plotly", reason="plotly is not installed")

from onnxplain.plots import plotly as drawn

SHAPES = {
    "table": [(4,)],
    "wide table": [(40,)],
    "signal": [(2, 9)],
    "long signal": [(2, 90)],
    "image": [(3, 5, 4)],
    "mixed": [(3,), (1, 9), (3, 5, 4)],
}
NODES = {"output_idx": [[0], None, [2]]}
KINDS = {
    "plot": lambda m: plot(m, [0, 2], [0, 1], as_plotly=True),
    "overlay": lambda m: plot(m, 0, overlay=True, as_plotly=True),
    "plot_global": lambda m: plot_global(m, [0, 1], ref_data_idx=1, as_plotly=True),
    "compare": lambda m: compare({"a": m, "b": m}, as_plotly=True),
    "beeswarm": lambda m: beeswarm(m, [0, 1], as_plotly=True),
    "waterfall": lambda m: waterfall(m, [0, 2], [0, 1], as_plotly=True),
}
PANELS = {"plot": (2, 2), "overlay": (1, 1), "waterfall": (2, 2)}  # of one input; others (1, 2)


def array(spec):
    """What plotly.js makes of an encoded array."""
    values = np.frombuffer(base64.b64decode(spec["bdata"]), spec["dtype"])
    return values.reshape([int(n) for n in spec["shape"].split(",")]) if "shape" in spec else values


def described(figure):
    return drawn.described(figure.sheet)


def traces(figure, kind):
    return [trace for trace in described(figure)["data"] if trace["type"] == kind]


def menu(figure, name):
    """Labels and arguments of the buttons of a menu of plotly's figure."""
    (found,) = [m for m in figure.figure.layout.updatemenus if m.name == name]
    return {button.label: button.args for button in found.buttons}


TABLES_ONLY = ("beeswarm", "waterfall")
CASES = [(k, s) for k in KINDS for s in SHAPES if k not in TABLES_ONLY or "table" in s]


@pytest.mark.parametrize("kind, shape", CASES)
def test_every_plot_is_one_that_plotly_accepts(kind, shape):
    figure = KINDS[kind](fake_method(*SHAPES[shape], batch=12))
    inputs = 1 if kind in TABLES_ONLY else len(SHAPES[shape])
    rows, columns = PANELS.get(kind, (1, 2))
    axes = [name for name in figure.figure.layout.to_plotly_json() if name.startswith("xaxis")]
    assert len(axes) == rows * columns * inputs
    assert f"{rows} x {columns * inputs}" in repr(figure)
    used = {trace["xaxis"].replace("x", "xaxis") for trace in described(figure)["data"]}
    assert used == set(axes)


def test_bars_have_the_values_of_the_result():
    method = fake_method((4,))
    (bars,) = traces(plot(method, 1, 1, as_plotly=True), "bar")
    np.testing.assert_allclose(array(bars["y"]), method.result[0][0][1, :, 1], rtol=1e-6)
    colours = array(bars["marker"]["color"])
    np.testing.assert_allclose(np.abs(colours).max(), 1)
    assert bars["hovertext"] == ["X1", "X2", "X3", "X4"]
    for word in ("%{hovertext}", "Contribution: %{y:.4~g}", "data_2", "versicolor"):
        assert word in bars["hovertemplate"]


def test_images_have_the_values_of_the_result_and_row_0_on_top():
    method = fake_method((1, 5, 4))
    figure = plot(method, 2, 0, as_plotly=True)
    (heat,) = traces(figure, "heatmap")
    np.testing.assert_allclose(array(heat["z"]), method.result[0][0][2, 0, :, :, 0], rtol=1e-6)
    layout = described(figure)["layout"]
    assert layout["yaxis"]["range"] == [4.5, -0.5]
    assert layout["yaxis"]["scaleanchor"] == "x"
    axis = layout["coloraxis"]
    assert axis["cmax"] == -axis["cmin"] == pytest.approx(np.abs(array(heat["z"])).max())
    assert "Row %{y}, column %{x}" in heat["hovertemplate"]


def test_overlay_puts_the_picture_below():
    below, above = traces(plot(fake_method((3, 5, 4)), overlay=True, as_plotly=True), "heatmap")
    assert below["hoverinfo"] == "skip"
    assert array(below["z"]).dtype == np.uint8
    assert "coloraxis" in above


def test_the_menu_of_colours_has_all_scales_and_their_reverses():
    buttons = menu(plot(fake_method((3,), (1, 4, 4)), as_plotly=True), "Colorscale")
    names = ["Default", *drawn.SCALES]
    assert len(names) == 19
    assert list(buttons) == [label for n in names for label in (n, f"{n} (rev.)")]
    (change,) = buttons["Viridis (rev.)"]
    axes = {name.partition(".")[0] for name in change}
    assert axes == {"coloraxis100000", "coloraxis2"}  # of bars, and of the image
    assert {change[f"{axis}.colorscale"] for axis in axes} == {"Viridis"}
    assert all(change[f"{axis}.reversescale"] for axis in axes)


def test_images_can_be_contours_which_keep_the_axes():
    figure = plot(fake_method((3, 5, 4)), [0, 1], as_plotly=True)
    change, layout, owned = menu(figure, "2D Plot Type")["Contour"]
    assert change["type"] == "contour"
    assert list(owned) == [0, 1]
    assert layout["yaxis2.range"] == [4.5, -0.5]
    start, end, size = (change[f"contours.{name}"][0] for name in ("start", "end", "size"))
    np.testing.assert_allclose([start + 4.5 * size, (end - start) / size], [0, 9], atol=1e-12)


def test_boxes_are_sent_as_quartiles_and_can_be_violins():
    method = fake_method((4,), batch=50)
    figure = plot_global(method, as_plotly=True)
    (box,), (violin,) = traces(figure, "box"), traces(figure, "violin")
    values = np.abs(method.result[0][0][..., 0])
    q1, median, q3 = np.percentile(values, (25, 50, 75), axis=0)
    for name, expected in (("q1", q1), ("median", median), ("q3", q3)):
        np.testing.assert_allclose(array(box[name]), expected, rtol=1e-6)
    (panel,) = figure.sheet
    tops = [found["whishi"] for found in box_statistics(panel)]
    np.testing.assert_allclose(array(box["upperfence"]), tops, rtol=1e-6)
    np.testing.assert_allclose(array(violin["y"]), np.sort(values, axis=0).T.ravel(), rtol=1e-6)
    assert violin["visible"] is False
    change, owned = menu(figure, "1D Plot Type")["Violin"]
    data = described(figure)["data"]
    shown = {data[k]["type"]: v for k, v in zip(owned, change["visible"], strict=True)}
    assert shown == {"box": False, "scatter": False, "violin": True}


def test_outliers_are_dots_that_name_their_feature():
    method = fake_method((3,), batch=20)
    method.result[0][0][4, 1, 0] = 50
    figure = plot_global(method, preprocess=None, as_plotly=True)
    dots = next(t for t in traces(figure, "scatter") if t["marker"]["color"] == "@edge")
    where = list(array(dots["y"])).index(50)
    assert array(dots["x"])[where] == 1
    assert described(figure)["layout"]["xaxis"]["ticktext"][1] == "X2"


@pytest.mark.parametrize("reference", [None, 2])
def test_one_data_point_at_a_time_is_shown_in_red(reference):
    method = fake_method((3,), batch=5)
    figure = plot_global(method, ref_data_idx=reference, preprocess=None, as_plotly=True)
    buttons = menu(figure, "Data point")
    labels = [f"data_{k}" for k in (1, 2, 3, 4, 5)]
    if reference is not None:
        labels.insert(0, labels.pop(reference))
    assert list(buttons) == ["None", *labels]
    data = described(figure)["data"]
    change, owned = buttons["data_4"]
    (shown,) = [data[k] for k, visible in zip(owned, change["visible"], strict=True) if visible]
    np.testing.assert_allclose(array(shown["y"]), method.result[0][0][3, :, 0], rtol=1e-6)
    assert "data_4" in shown["hovertemplate"]
    visible = [data[k]["visible"] for k in owned]
    assert visible == [reference is not None] + [False] * 4
    assert not any(buttons["None"][0]["visible"])


def test_individuals_are_those_asked_for_at_most_as_many():
    method = fake_method((3,), batch=30)
    assert len(menu(plot_global(method, as_plotly=True), "Data point")) == 21
    figure = plot_global(method, individual_data_idx=[7, 3, 9], individual_max=2, as_plotly=True)
    assert list(menu(figure, "Data point")) == ["None", "data_8", "data_4"]


@pytest.mark.parametrize("percentile, active", [(50, 4), (100, 8), (12.5, 1)])
def test_the_slider_has_nine_percentiles(percentile, active):
    method = fake_method((1, 5, 4), batch=40)
    figure = plot_global(method, [0, 1], percentile=percentile, as_plotly=True)
    (slider,) = figure.figure.layout.sliders
    assert [step.label for step in slider.steps] == drawn.PERCENTILE_NAMES
    assert slider.active == active
    data = described(figure)["data"]
    for p, step in zip(PERCENTILES, slider.steps, strict=True):
        change, titles, owned = step.args
        shown = [data[k] for k, v in zip(owned, change["visible"], strict=True) if v]
        for node, trace in enumerate(shown):
            expected = np.percentile(np.abs(method.result[0][0][:, 0, ..., node]), p, axis=0)
            np.testing.assert_allclose(array(trace["z"]), expected, rtol=1e-5)
        assert f"({step.label}" in titles["coloraxis.colorbar.title.text"]
    assert [trace["visible"] for trace in data].index(True) == active


def test_a_long_signal_gets_bands_in_place_of_boxes():
    figure = plot_global(fake_method((2, 90), batch=9), as_plotly=True)
    assert not traces(figure, "box")
    filled = [trace for trace in traces(figure, "scatter") if "fill" in trace]
    assert [trace["fillcolor"] for trace in filled] == ["@pale", "@fill"]
    (panel,) = figure.sheet
    np.testing.assert_allclose(
        array(filled[1]["y"]), np.percentile(panel.values, 75, axis=0), rtol=1e-6
    )


def test_a_waterfall_ends_at_the_sum():
    method = fake_method((15,))
    figure = waterfall(method, 1, as_plotly=True)
    (bars,) = traces(figure, "bar")
    ends = array(bars["base"]) + array(bars["x"])
    np.testing.assert_allclose(ends[-1], method.decomp_sum[0][1, 0], rtol=1e-5)
    lines = [shape["x0"] for shape in described(figure)["layout"]["shapes"]]
    np.testing.assert_allclose(lines, [ends[-1], method.decomp_goal[0][1, 0]], rtol=1e-5)


def test_dots_of_a_beeswarm_are_the_values_coloured_by_the_input():
    method = fake_method((2,), batch=30)
    found = traces(beeswarm(method, as_plotly=True), "scatter")
    values = method.result[0][0][..., 0]
    order = np.argsort(-np.abs(values).mean(axis=0))
    for k, trace in zip(order, found, strict=True):
        by_value = np.argsort(values[:, k])
        np.testing.assert_allclose(array(trace["x"]), values[by_value, k], rtol=1e-6)
        inputs = method.data[0][by_value, k]
        middle = inputs.argsort()[5:-5]
        shades = array(trace["marker"]["color"])
        assert (np.diff(shades[middle]) >= 0).all()


def test_names_are_neither_markup_nor_templates_nor_colours():
    method = fake_method((3,))
    method.input_names = [[["<b>a</b>", "%{y} $x$", "@text"]]]
    (bars,) = traces(plot(method, as_plotly=True), "bar")
    assert bars["hovertext"] == [
        "&lt;b&gt;a&lt;/b&gt;",
        "%&#123;y} &#36;x&#36;",
        "&#64;text",
    ]


def test_an_unconnected_input_says_so():
    method = fake_method((3,), (2,))
    method.result[0][1] = None
    figure = plot(method, as_plotly=True)
    texts = [text["text"] for text in described(figure)["layout"]["annotations"]]
    assert "not connected" in texts
    assert figure.figure is not None


def test_the_box_of_predictions_can_be_left_away():
    def told(**options):
        figure = plot(fake_method((3,)), as_plotly=True, **options)
        return json.dumps(described(figure)["layout"]["annotations"])

    assert "Pred.: " in told()
    assert "Goal: " in told()
    assert "Pred.: " not in told(show_preds=False)


def test_a_part_is_a_figure_with_the_menus_it_needs():
    figure = plot(fake_method((3,), (1, 4, 4)), [0, 2], [0, 1], as_plotly=True)
    part = figure[0, 1:]
    assert part.sheet.shape == (1, 3)
    assert [m.name for m in part.figure.layout.updatemenus] == ["Colorscale", "2D Plot Type"]
    assert [m.name for m in figure[0, 0].figure.layout.updatemenus] == ["Colorscale"]
    assert [row.sheet.shape for row in figure] == [(1, 4)] * len(figure)
    with pytest.raises(SelectionError, match="row 2 is not there"):
        figure[2]


def test_images_warn_in_boxplot():
    with pytest.warns(UserWarning, match="median"):
        boxplot(fake_method((1, 4, 4)), as_plotly=True)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_theme_changes_background_and_colours(theme):
    figure = plot(fake_method((3,)), as_plotly=True).theme(theme)
    look = drawn.LOOKS[theme]
    assert figure.figure.layout.paper_bgcolor == look["@paper"]
    assert figure.figure.layout.coloraxis100000.colorscale[10][1] == look["@colours"][10][1]
    assert "@" not in re.sub(r"&#64;", "", figure.figure.to_json())


def test_a_page_holds_all_it_needs(tmp_path):
    path = tmp_path / "plot.html"
    plot(fake_method((3,)), as_plotly=True).theme("dark").save(path)
    page = path.read_text("utf-8")
    assert page.count("* plotly.js v") == 1
    assert "Licensed under the MIT license" in page
    assert 'data-theme="dark"' in page
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.search(r'src=|href="(?!data:,)|url\(|@import|https?://', outside)


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("no/such/folder.html", ArgumentError, "cannot be written: No such file"),
        ("plot.docx", ArgumentError, "expected the ending .html"),
        ("plot", ArgumentError, "expected the ending .html"),
        ("plot.png", MissingPackageError, "pip install kaleido"),
    ],
)
def test_files_that_cannot_be_written(tmp_path, monkeypatch, name, error, message):
    monkeypatch.setattr(drawn, "find_spec", lambda name: None)
    with pytest.raises(error, match=message):
        plot(fake_method((3,)), as_plotly=True).save(tmp_path / name)


def test_an_unknown_theme_is_refused():
    with pytest.raises(ArgumentError, match="expected 'light' or 'dark'"):
        plot(fake_method((3,)), as_plotly=True).theme("ggplot")


@pytest.mark.parametrize("found, message", [(None, "needs plotly: pip"), ("5.24.1", "too old")])
def test_plotly_must_be_there_and_new_enough(monkeypatch, found, message):
    def version(name):
        if found is None:
            raise drawn.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(drawn, "version", version)
    with pytest.raises(MissingPackageError, match=message):
        plot(fake_method((3,)), as_plotly=True)


@pytest.mark.parametrize("size", [1e-40, 1e-6, 1.0, 1e40])
def test_arrays_are_written_in_single_precision_where_it_has_room(size):
    values = np.array([1.0, -1 / 3, np.nan]) * size
    spec = drawn.typed(values)
    assert spec["dtype"] == ("f4" if 1e-30 < size < 1e30 else "f8")
    np.testing.assert_allclose(array(spec), values, rtol=1e-6)


def test_many_rows_are_sent_as_their_statistics():
    method = fake_method((30,), batch=100_000)
    text = json.dumps(described(plot_global(method, [0, 1], as_plotly=True)))
    assert len(text) < 500_000
    assert len(json.dumps(described(beeswarm(method, as_plotly=True)))) < 300_000
