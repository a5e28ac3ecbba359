"""Reports: what the page holds, what it must not hold, and errors before any work starts."""

import base64
import json
import re
import zlib
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import helper

import onnxplain as ox
from networks import graph
from onnxplain.cli import main
from onnxplain.demo import MODEL, digits
from onnxplain.errors import (
    ArgumentError,
    DataError,
    MissingPackageError,
    OnnxplainError,
    ShapeError,
    UnknownArgumentError,
)

pytest.importorskip("plotly", reason="plotly is not installed")

from onnxplain.plots import plotly as drawn
from onnxplain.plots.sections import ALL, Pool

ONE = {"lrp": "LRP", "deeplift": "DeepLift"}


class Page(HTMLParser):
    """Scripts by id, headings, texts of tables, and all tags with their attributes."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text("utf-8")
        self.scripts, self.tags, self.opened, self.headings = {}, [], [], []
        self._id = None
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._tag, self._id = tag, dict(attrs).get("id") if tag == "script" else None
        if tag not in ("meta", "link"):
            self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        if self._id:
            self.scripts[self._id] = self.scripts.get(self._id, "") + data
        elif self.opened and self.opened[-1] in ("h1", "h2"):
            self.headings.append(data)

    def figures(self, name):
        index = json.loads(self.scripts[f"{name}-index"])
        return {
            tuple(key.split("\n")): json.loads(self.scripts[place])
            for key, place in index["figures"].items()
        }

    def pixels(self, z):
        data = zlib.decompress(base64.b64decode(self.scripts[z["pool"]]))
        return np.frombuffer(data, z["dtype"]).reshape(-1, z["width"]) * z["step"]


def bytes_of(spec):
    return np.frombuffer(base64.b64decode(spec["bdata"]), spec["dtype"])


@pytest.fixture(scope="module")
def images():
    return digits()[0]


@pytest.fixture(scope="module")
def converter():
    return ox.convert(MODEL)


@pytest.fixture(scope="module")
def page(tmp_path_factory, converter, images):
    path = tmp_path_factory.mktemp("report") / "report.html"
    methods = ["lrp", "deeplift", "smoothgrad"]
    found = ox.report(converter, images, methods, path, instances=3, model_name=str(MODEL), n=5)
    assert found == path
    return Page(path)


def small(features=3, nodes=2, names=("a", "b")):
    """A model of a table with labels."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(features, nodes)), "c": rng.normal(size=nodes)}
    dense = helper.make_node("Gemm", ["x", "w", "c"], ["y"])
    model = graph([dense], {"x": (features,)}, weights, "float32", {"y": (nodes,)})
    return ox.convert(model, output_names=list(names))


@pytest.fixture
def table():
    return np.random.default_rng(1).normal(size=(20, 3)).astype("f4")


# ---------------------------------------------------------------- what the page holds


def test_the_page_has_its_sections(page):
    assert page.headings == [
        "Explanation of digits.onnx",
        "Single data points",
        "All data points",
        "Predictions",
        "Do the values add up?",
        "Model",
        "How nodes are treated",
        "To get the same numbers again",
    ]
    assert not page.opened  # every element is closed


def test_nothing_is_fetched_from_anywhere(page):
    for _, attributes in page.tags:
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith(("#", "data:,"))
    assert "default-src 'none'" in page.text
    assert page.text.count("* plotly.js v") == 1
    assert "Licensed under the MIT license" in page.text


def test_every_choice_of_a_single_data_point_has_a_plot(page):
    expected = {
        (method, f"data_{b}", "top1", plot)
        for method in ("LRP", "DeepLift", "SmoothGrad")
        for b in (1, 2, 3)
        for plot in ("Over the input", "Values")
    }
    expected |= {(ALL, f"data_{b}", "top1", "Over the input") for b in (1, 2, 3)}
    assert set(page.figures("instance")) == expected
    assert {key[0] for key in page.figures("overall")} == {"LRP", "DeepLift", "SmoothGrad"}


def test_images_on_the_page_are_the_result(page, converter, images):
    lrp = ox.LRP(converter, images, output_idx=["top1"])
    figure = page.figures("instance")["LRP", "data_3", "top1", "Values"]
    z = figure["data"][0]["z"]
    assert z["dtype"] == "i2"
    np.testing.assert_allclose(
        page.pixels(z), lrp.result[0][0][2, 0, ..., 0], atol=0.51 * z["step"]
    )
    assert "Relevance from" in figure["alt"]


def test_the_same_arrays_are_written_once(page):
    figures = page.figures("instance")
    over, alone = (
        figures["LRP", "data_1", "top1", kind]["data"][-1]["z"]
        for kind in ("Over the input", "Values")
    )
    assert over["pool"] == alone["pool"]
    beside = [
        trace["z"]["pool"] for trace in figures[ALL, "data_1", "top1", "Over the input"]["data"]
    ]
    assert over["pool"] in beside


def test_the_page_tells_what_is_needed_to_get_it_again(page, converter):
    text = unescape(page.text)
    assert converter.model_hash in text
    assert "ox.SmoothGrad(converter, data, output_idx=[['top1']], n=5, seed=0)" in text
    assert "ox.LRP(converter, data, output_idx=[['top1']], seed=0)" in text
    assert f">{np.__version__}</dd>" in text


def test_the_page_tells_whether_values_add_up(page, converter, images):
    deeplift = ox.DeepLift(converter, images, output_idx=["top1"])
    assert "<span class='good'>adds up</span>" in page.text
    goal, total = (float(x[0][0, 0]) for x in (deeplift.decomp_goal, deeplift.decomp_sum))
    assert f"<td class='number'>{goal:.4g}</td><td class='number'>{total:.4g}</td>" in page.text
    assert "its values are not meant to add up" in page.text  # SmoothGrad
    assert "Nodes that absorb most" in page.text


def test_the_page_tells_predictions_and_coverage(page, converter, images):
    best = converter(images[:1])[0][0].max()
    assert f"<td>one <b>{best:.4g}</b></td>" in page.text
    exact = int(converter.coverage("DeepLift")["exact"].sum())
    assert f"<tr><td>DeepLift</td><td class='number'>{exact}</td>" in page.text


def test_the_same_call_writes_the_same_page(tmp_path, table):
    pages = []
    for name in ("a.html", "b.html"):
        ox.report(small(), table, ["lrp", "smoothgrad"], tmp_path / name, n=3)
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def test_tables_have_waterfalls_and_swarms_of_all_their_nodes(tmp_path, table):
    ox.report(small(), table, "lrp", tmp_path / "a.html", instances=[4, 0])
    page = Page(tmp_path / "a.html")
    keys = set(page.figures("instance"))
    assert keys == {
        ("LRP", data, node, kind)
        for data in ("data_5", "data_1")
        for node in ("a", "b")
        for kind in ("Values", "Waterfall")
    }
    kinds = {key[2] for key in page.figures("overall")}
    assert kinds == {"Size of values", "Values", "Beeswarm"}
    lrp = ox.LRP(small(), table)
    (bars, *_) = page.figures("instance")["LRP", "data_5", "b", "Values"]["data"]
    np.testing.assert_allclose(bytes_of(bars["y"]), lrp.result[0][0][4, :, 1], rtol=1e-5)
    assert bars["hovertext"][0].startswith("X1 = ")


def test_names_cannot_break_the_page(tmp_path, table):
    evil = "</script><script>alert(1)</script>"
    converter = small(names=(evil, "<b>bold</b>"))
    path = tmp_path / "a.html"
    ox.report(converter, table, "lrp", path, title=evil, model_name=evil)
    page = Page(path)
    assert page.headings[0] == evil
    assert "alert(1)</script>" not in page.text
    assert "<b>bold" not in page.text


def test_several_inputs_and_outputs_and_a_method_without_data(tmp_path):
    nodes = [
        helper.make_node("GlobalAveragePool", ["i"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Concat", ["f", "t"], ["c"], axis=1),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    weights = {"w": np.random.default_rng(0).normal(size=(5, 2))}
    shapes = {"i": (3, 4, 4), "t": (2,)}
    model = graph(nodes, shapes, weights, "float32", {"y": (2,), "z": (2,)})
    data = [np.random.default_rng(1).normal(size=(4, *shape)) for shape in shapes.values()]
    path = tmp_path / "a.html"
    ox.report(ox.convert(model), data, ["lrp", "cw"], path)
    figures = Page(path).figures("instance")
    assert ("LRP", "data_2", "Output_2: Y1", "Waterfall") in figures
    assert ("ConnectionWeights", "all alike", "Output_1: Y2", "Values") in figures
    assert not any(key[0] == ALL for key in figures)


def test_a_single_data_point_has_no_plot_of_many(tmp_path, table):
    ox.report(small(), table[:1], "lrp", tmp_path / "a.html")
    assert "there is a single data point" in (tmp_path / "a.html").read_text("utf-8")


def test_methods_are_names_classes_or_results_with_titles(tmp_path, table):
    converter = small()
    methods = {
        "ours": "run_lrp",
        "rule": ox.LRP(converter, table, rule_name="epsilon"),
        "class": ox.DeepLift,
    }
    ox.report(converter, table, methods, tmp_path / "a.html", seed=3)
    page = Page(tmp_path / "a.html")
    assert {key[0] for key in page.figures("overall")} == set(methods)
    text = unescape(page.text)
    assert "rule_name='epsilon'" in text
    assert "ox.DeepLift(converter, data, output_idx=[[0, 1]], seed=3)" in text


def test_options_go_to_the_methods_that_have_them(tmp_path, table):
    options = {"rule_name": "rescale", "n": 4, "x_ref": table[:1]}
    methods = ["deeplift", "intgrad", "grad"]
    ox.report(small(), table, methods, tmp_path / "a.html", **options)
    text = unescape((tmp_path / "a.html").read_text("utf-8"))
    assert "ox.Gradient(converter, data, output_idx=[[0, 1]], seed=0)" in text
    assert "n=4" in text
    assert "array of shape (1, 3)" in text


def test_many_pixels_are_written_with_a_byte_each():
    values = np.random.default_rng(0).normal(size=(6, 5))
    values[0, 0] = np.nan
    scale = float(np.nanmax(np.abs(values)))
    for pixels, kind, lowest in ((100, np.int16, -32768), (10**8, np.int8, -128)):
        pool = Pool(pixels)
        spec = pool.pack(values, scale)
        steps = np.frombuffer(zlib.decompress(base64.b64decode(pool.texts[spec["pool"]])), kind)
        assert steps[0] == lowest
        found = steps.reshape(6, 5) * spec["step"]
        np.testing.assert_allclose(found[1:], values[1:], atol=0.51 * spec["step"])


def test_texts_at_the_pointer_say_how_exact_bytes_are(converter, images):
    lrp = ox.LRP(converter, images[:1])
    sheet = lrp.plot(as_plotly=True).sheet
    (exact,), (coarse,) = (drawn.described(sheet, Pool(n).pack)["data"] for n in (100, 10**8))
    assert " ± " not in exact["hovertemplate"]
    assert " ± " in coarse["hovertemplate"]


def test_twenty_photographs_stay_below_15_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    weights = {"k": rng.normal(size=(4, 3, 5, 5)) / 9, "w": rng.normal(size=(4, 10))}
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], strides=[4, 4]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    model = graph(nodes, {"x": (3, 224, 224)}, weights, "float32", {"y": (10,)})
    data = rng.normal(size=(20, 3, 224, 224)).astype("f4")
    path = tmp_path / "a.html"
    ox.report(ox.convert(model), data, ["lrp", "deeplift", "grad"], path, instances=20)
    assert path.stat().st_size < 15e6


# ---------------------------------------------------------------- errors come first


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"methods": "nothing"}, ArgumentError, "no method 'nothing'; known are grad"),
        ({"methods": []}, ArgumentError, "methods is empty"),
        ({"methods": [3]}, ArgumentError, "no method 3"),
        ({"noise_level": 2}, UnknownArgumentError, "none of LRP has an argument 'noise_level'"),
        ({"rule_name": "nothing"}, OnnxplainError, "nothing"),
        ({"output_label": "c"}, OnnxplainError, "'c'"),
        ({"methods": ["lrp", "intgrad"], "x_ref": np.zeros((2, 3))}, DataError, "2 rows"),
        ({"instances": 0}, ArgumentError, "expected at least 1"),
        ({"instances": [0, 20]}, ArgumentError, "indices from 0 to 19"),
        ({"instances": "all"}, ArgumentError, "expected a number"),
        ({"data": np.zeros((4, 5))}, ShapeError, "data"),
        ({"data": np.zeros((0, 3))}, DataError, "no rows"),
        ({"path": "no/such/folder/a.html"}, ArgumentError, "cannot be written"),
        ({"path": "a.pdf"}, ArgumentError, "cannot write '.pdf'"),
        ({"converter": 3}, ArgumentError, "must be a Converter, got int"),
    ],
)
def test_wrong_arguments_are_found_before_work_starts(
    tmp_path, monkeypatch, table, arguments, error, message
):
    monkeypatch.chdir(tmp_path)
    known = {"converter": small(), "data": table, "methods": "lrp", "path": "a.html"}
    with pytest.raises(error, match=message):
        ox.report(**known | arguments)
    assert list(tmp_path.iterdir()) == []


def test_channels_may_stand_last(tmp_path, converter, images):
    last = np.moveaxis(images[:3], 1, -1)
    path = tmp_path / "a.html"
    ox.report(converter, last, "deeplift", path, x_ref=last[:1], channels_first=False)
    deeplift = ox.DeepLift(converter, images[:3], x_ref=images[:1], output_idx=["top1"])
    page = Page(path)
    z = page.figures("instance")["DeepLift", "data_2", "top1", "Values"]["data"][0]["z"]
    np.testing.assert_allclose(
        page.pixels(z), deeplift.result[0][0][1, 0, ..., 0], atol=0.51 * z["step"]
    )


def test_results_of_other_data_or_models_are_refused(tmp_path, table):
    converter = small()
    for made, message in (
        (ox.LRP(converter, table[:3]), "has explained 3 data points, data holds 20"),
        (ox.LRP(small(nodes=3, names="abc"), table), "another model"),
    ):
        with pytest.raises(ArgumentError, match=message):
            ox.report(converter, table, [made], tmp_path / "a.html")


def test_without_plotly_a_report_says_what_to_install(tmp_path, monkeypatch, table):
    monkeypatch.setattr(drawn, "version", lambda name: "5.0.0")
    with pytest.raises(MissingPackageError, match="a report needs plotly, plotly 5.0.0 is too old"):
        ox.report(small(), table, "lrp", tmp_path / "a.html")


# ---------------------------------------------------------------- the command


def command(*arguments, code=0):
    result = CliRunner().invoke(main, ["report", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


@pytest.fixture
def data(tmp_path, images):
    np.save(tmp_path / "images.npy", images[:4])
    return tmp_path / "images.npy"


def test_the_command_writes_the_same_page(tmp_path, data, images):
    path = tmp_path / "a.html"
    np.save(tmp_path / "reference.npy", images[:1])
    told = command(
        *(MODEL, data, "-o", path, "--method", "lrp", "--method", "intgrad", "--reference"),
        tmp_path / "reference.npy",
        *("--n", 3, "--instances", 2, "--title", "Digits", "--output-label", "one,two"),
    )
    assert told == f"wrote {path}\n"
    page = Page(path)
    assert page.headings[0] == "Digits"
    assert set(page.figures("instance")) >= {
        (method, f"data_{b}", node, "Values")
        for method in ("LRP", "IntegratedGradient")
        for b in (1, 2)
        for node in ("one", "two")
    }
    assert not any("data_3" in key for key in page.figures("instance"))
    assert "array of shape (1, 1, 8, 8)" in page.text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--noise-level", 3], "none of the methods lrp has --noise-level"),
        (["--reference", "DATA"], "none of the methods lrp has --reference"),
        (["-o", "a.pdf"], "cannot write '.pdf'"),
        (["--output-label", "eleven"], "eleven"),
        (["--instances", "0"], "expected at least 1"),
    ],
)
def test_the_command_fails_with_one_line(tmp_path, monkeypatch, data, arguments, message):
    monkeypatch.chdir(tmp_path)
    arguments = [data if a == "DATA" else a for a in arguments]
    told = command(MODEL, data, *arguments, code=2)
    assert message in told
    assert told.count("\n") == 1
    assert not list(tmp_path.glob("*.html"))


# ---------------------------------------------------------------- cards in notebooks


def test_a_card_tells_what_a_result_is(converter, images):
    card = ox.LRP(converter, images, rule_name="epsilon")._repr_html_()
    for word in ("LRP · 50 rows", "Relevance", "&#x27;epsilon&#x27;", "data_5", "goal"):
        assert word in card
    assert len(card) < 6000


def test_a_card_tells_what_a_model_is(converter):
    card = converter._repr_html_()
    for word in ("1 × 8 × 8", "zero, one", "5,014", converter.model_hash[:16]):
        assert word in card


def test_cards_of_results_without_sums_or_predictions(converter, images):
    assert "goal" not in ox.Gradient(converter, images)._repr_html_()
    assert "no data" in ox.ConnectionWeights(converter)._repr_html_()


def test_names_cannot_break_a_card(table):
    converter = small(names=("<script>", "b"))
    for card in (converter._repr_html_(), ox.LRP(converter, table)._repr_html_()):
        assert "<script>" not in card
        assert "&lt;script&gt;" in card


# ---------------------------------------------------------------- the documentation

PAGE = Path(__file__).parents[1] / "docs" / "report.md"


def test_the_code_of_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S):
        exec(code, names)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"digits.html", "digits-report.html", "rules.html"}


def test_the_command_explain_draws_pages(tmp_path, data):
    path = tmp_path / "plot.html"
    arguments = ["explain", str(MODEL), str(data), "--method", "lrp", "--plot", str(path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert '"heatmap"' in Page(path).scripts["figure"]
