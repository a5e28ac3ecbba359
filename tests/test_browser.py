"""Reports and plots in a real browser: nothing is fetched, nothing fails, every control works."""

import json
import time
from shutil import which

import numpy as np
import pytest
from onnx import helper

import onnxplain as ox
from fake_results import fake_method
from networks import graph
from onnxplain.demo import MODEL, digits
from onnxplain.plots import plot_global, sections

pytest.importorskip("plotly", reason="plotly is not installed")
pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

CHROMIUM = which("chromium") or which("chromium-browser") or which("google-chrome")
DRIVER = which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium with chromedriver on this machine"
)

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--window-size=1280,1000"
)
WAIT = 20.0


class Tab:
    """A page in the browser."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, path, dark=False):
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get_log("browser"), self.driver.get_log("performance")
        self.driver.get(path.as_uri())
        return self

    def js(self, code, *arguments):
        return self.driver.execute_script(f"return {code}", *arguments)

    def until(self, code):
        """Wait until something is so, and return it."""
        end = time.monotonic() + WAIT
        while not (found := self.js(code)):
            assert time.monotonic() < end, f"never so: {code}"
            time.sleep(0.05)
        return found

    def shown(self, section="body"):
        """The figure that is drawn in a section, with all defaults."""
        self.until(f"document.querySelectorAll('{section} .canvas .plot-container').length")
        return f"document.querySelector('{section} .canvas')"

    def controls(self, section="body"):
        labels = self.driver.find_elements(By.CSS_SELECTOR, f"{section} label")
        return {
            label.text.split("\n")[0].strip(): label.find_element(By.CSS_SELECTOR, "select, input")
            for label in labels
        }

    def select(self, name, option, section="body"):
        named = self.controls(section)
        control = next(named[label] for label in named if label.startswith(name))
        Select(control).select_by_visible_text(option)

    def problems(self):
        """Messages of the console, and addresses that were asked for beside the page's own."""
        told = [entry["message"] for entry in self.driver.get_log("browser")]
        events = (json.loads(e["message"])["message"] for e in self.driver.get_log("performance"))
        asked = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return told + [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    yield Tab(driver)
    driver.quit()


@pytest.fixture(scope="module")
def images_report(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "report.html"
    images = digits()[0]
    ox.report(ox.convert(MODEL), images, ["lrp", "deeplift"], path, instances=3)
    return path


@pytest.fixture(scope="module")
def table_report(tmp_path_factory):
    rng = np.random.default_rng(0)
    dense = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = graph([dense], {"x": (4,)}, {"w": rng.normal(size=(4, 2))}, "float32", {"y": (2,)})
    path = tmp_path_factory.mktemp("table") / "report.html"
    converter = ox.convert(model, input_names=["age", "height", "<b>", "$w$"])
    ox.report(converter, rng.normal(size=(40, 4)), ["lrp", "grad"], path)
    return path


@pytest.mark.parametrize("dark", [False, True])
def test_a_report_opens_without_errors_and_fetches_nothing(tab, images_report, dark):
    tab.open(images_report, dark)
    canvas = tab.shown("#instance")
    assert tab.js(f"{canvas}.data.length") == 2
    assert tab.js("performance.getEntriesByType('resource').length") == 0
    tab.js("document.querySelector('#overall').scrollIntoView()")
    tab.shown("#overall")
    assert tab.problems() == []


def test_dark_pages_have_dark_plots(tab, images_report):
    found = {}
    for dark in (False, True):
        tab.open(images_report, dark)
        canvas = tab.shown("#instance")
        found[dark] = (
            tab.js("getComputedStyle(document.body).backgroundColor"),
            tab.js(f"{canvas}.layout.font.color"),
        )
    assert found == {
        False: ("rgb(255, 255, 255)", "#222222"),
        True: ("rgb(22, 24, 28)", "#e4e4e4"),
    }


def test_the_page_fits_a_narrow_window(tab, images_report):
    metrics = {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    tab.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        tab.open(images_report).shown("#instance")
        assert tab.js("document.documentElement.scrollWidth") <= 380
    finally:
        tab.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_choosing_method_and_data_point_draws_that_plot(tab, images_report):
    tab.open(images_report)
    canvas = tab.shown("#instance")
    first = tab.js(f"Array.from({canvas}.data[1].z[3])")
    tab.select("Data point", "data_3", "#instance")
    tab.select("Method", "DeepLift", "#instance")
    canvas = tab.shown("#instance")
    tab.until(f"({canvas}.data[1].hovertemplate || '').includes('data_3')")
    found = np.array(tab.js(f"{canvas}.data[1].z.map((row) => Array.from(row))"))
    converter = ox.convert(MODEL)
    result = ox.DeepLift(converter, digits()[0][:3], output_idx=["top1"]).result[0][0]
    np.testing.assert_allclose(found, result[2, 0, ..., 0], atol=1e-4 * np.abs(result[2]).max())
    assert tab.js(f"Array.from({canvas}.data[1].z[3])") != first
    assert "DeepLift, data_3" in tab.js(f"{canvas}.getAttribute('aria-label')")
    tab.select("Method", "All side by side", "#instance")
    tab.until("document.querySelector('#instance .canvas').data.length === 4")
    assert tab.problems() == []


def test_colour_scales_and_their_reverses_stay_for_the_next_plot(tab, images_report):
    tab.open(images_report)
    canvas = tab.shown("#instance")
    options = [o.text for o in Select(tab.controls("#instance")["Colorscale"]).options]
    assert len(options) == 38
    tab.select("Colorscale", "Viridis (rev.)", "#instance")
    axis = "coloraxis2" if tab.js(f"'coloraxis2' in {canvas}.layout") else "coloraxis"
    assert tab.js(f"{canvas}.layout.{axis}.colorscale") == "Viridis"
    assert tab.js(f"{canvas}._fullLayout.{axis}.reversescale") is True
    tab.select("Data point", "data_2", "#instance")
    tab.until(f"(document.querySelector('#instance .canvas').layout.{axis} || 0).reversescale")
    tab.select("Colorscale", "Default", "#instance")
    assert tab.js(f"Array.isArray({canvas}.layout.{axis}.colorscale)")


def test_images_become_contours_with_row_0_on_top(tab, images_report):
    tab.open(images_report)
    canvas = tab.shown("#instance")
    tab.select("2D Plot Type", "Contour", "#instance")
    assert tab.js(f"{canvas}.querySelectorAll('.contour').length") == 1
    assert tab.js(f"{canvas}._fullLayout.yaxis.range") == [7.5, -0.5]
    tab.select("2D Plot Type", "Heatmap", "#instance")
    assert tab.js(f"{canvas}.querySelectorAll('.contour').length") == 0
    assert tab.js(f"{canvas}._fullLayout.yaxis.range") == [7.5, -0.5]
    assert tab.problems() == []


def test_the_slider_shows_another_percentile(tab, images_report):
    tab.open(images_report)
    tab.js("document.querySelector('#overall').scrollIntoView()")
    canvas = tab.shown("#overall")

    def visible():
        return tab.js(f"{canvas}.data.findIndex((trace) => trace.visible)")

    slider = tab.driver.find_element(By.CSS_SELECTOR, "#overall input[type=range]")
    assert visible() == 4
    assert slider.get_attribute("aria-valuetext") == "median"
    slider.send_keys("\ue014")  # the right arrow
    assert visible() == 5
    assert slider.get_attribute("aria-valuetext") == "62.5"
    title = tab.js(f"{canvas}._fullLayout.coloraxis.colorbar.title.text")
    assert title == "Relevance (62.5 %)"
    found = np.array(tab.js(f"{canvas}.data[5].z.map((row) => Array.from(row))"))
    result = np.abs(ox.LRP(ox.convert(MODEL), digits()[0], output_idx=["top1"]).result[0][0])
    expected = np.percentile(result[:, 0, ..., 0], 62.5, axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-4 * result.max())


def hover(tab, canvas, x, y):
    """Texts shown when the pointer is at a place of the first panel."""
    place = tab.js(
        f"(() => {{ const l = {canvas}._fullLayout, b = {canvas}.getBoundingClientRect(); "
        f"return [b.left + l.xaxis._offset + l.xaxis.l2p({x}), "
        f"b.top + l.yaxis._offset + l.yaxis.l2p({y})] }})()"
    )
    tab.js(f"Plotly.Fx.unhover({canvas})")
    pointer = ActionChains(tab.driver)
    pointer.w3c_actions.pointer_action.move_to_location(*(round(p) for p in place))
    pointer.perform()
    tab.until(f"{canvas}.querySelectorAll('.hovertext').length")
    return tab.js(f"{canvas}.querySelector('.hovertext').textContent")


def test_the_pointer_shows_the_value_of_a_pixel(tab, images_report):
    tab.open(images_report)
    canvas = tab.shown("#instance")
    result = ox.LRP(ox.convert(MODEL), digits()[0][:1], output_idx=["top1"]).result[0][0]
    told = hover(tab, canvas, 3, 2)
    assert "Row 2, column 3" in told
    assert "data_1 · one · LRP" in told
    value = float(told.split("Relevance: ")[1].split("data_1")[0].replace("−", "-"))
    assert value == pytest.approx(result[0, 0, 2, 3, 0], rel=1e-3)


def test_the_pointer_shows_names_as_they_are(tab, table_report):
    tab.open(table_report)
    canvas = tab.shown("#instance")
    lengths = tab.js(f"Array.from({canvas}._fullData[0].x)")
    told = hover(tab, canvas, lengths[2] / 2, 2)
    assert told.startswith("<b> = ")
    assert "$w$" in tab.js(f"{canvas}.textContent")
    assert tab.problems() == []


def test_the_pointer_shows_the_value_of_a_byte_as_exactly_as_it_is(tab, tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "IMAGE_BYTES", 0)
    lrp = ox.LRP(ox.convert(MODEL), digits()[0][:2], output_idx=[1])
    lrp.result[0][0][0, 0, 0, 0] = np.nan
    ox.report(lrp.converter, digits()[0][:2], [lrp], tmp_path / "report.html")
    tab.open(tmp_path / "report.html")
    canvas = tab.shown("#instance")
    step = np.nanmax(np.abs(lrp.result[0][0][0])) / 127
    assert f" ± {step / 2:.1g}" in hover(tab, canvas, 3, 2)
    found = np.array(tab.js(f"{canvas}.data[1].z.map((row) => Array.from(row))"), float)
    np.testing.assert_allclose(found, lrp.result[0][0][0, 0, ..., 0], atol=0.51 * step)
    assert tab.problems() == []


def test_the_pointer_names_the_feature_of_boxes_and_outliers(tab, tmp_path):
    method = fake_method((3,), batch=30)
    method.result[0][0][:] = np.linspace(0, 1, 30)[:, None, None]
    method.result[0][0][4, 1, 0] = 5
    plot_global(method, preprocess=None, as_plotly=True).save(tmp_path / "plot.html")
    tab.open(tmp_path / "plot.html")
    canvas = tab.shown()
    assert hover(tab, canvas, 1, 5).startswith("X2Contribution: 5")
    assert "(X3, " in hover(tab, canvas, 2, 0.5)


def test_boxes_violins_and_single_data_points(tab, table_report):
    tab.open(table_report)
    tab.js("document.querySelector('#overall').scrollIntoView()")
    canvas = tab.shown("#overall")

    def types():
        return set(tab.js(f"{canvas}.data.filter((t) => t.visible !== false).map((t) => t.type)"))

    assert "box" in types()
    assert "violin" not in types()
    tab.select("1D Plot Type", "Violin", "#overall")
    assert types() == {"violin"}
    tab.select("Data point", "data_2", "#overall")
    assert types() == {"violin", "scatter"}
    shown = tab.js(f"{canvas}.data.filter((t) => t.visible && t.error_x).length")
    assert shown == 1
    tab.select("Data point", "None", "#overall")
    assert types() == {"violin"}
    tab.select("Plot", "Beeswarm", "#overall")
    tab.until("document.querySelector('#overall .canvas').data.length === 4")
    assert tab.problems() == []


def test_tables_have_waterfalls(tab, table_report):
    tab.open(table_report)
    canvas = tab.shown("#instance")
    tab.select("Plot", "Waterfall", "#instance")
    tab.until(f"{canvas}.layout.shapes.length === 2")
    assert tab.problems() == []


def test_a_saved_plot_opens_by_itself(tab, tmp_path):
    gradient = ox.Gradient(ox.convert(MODEL), digits()[0])
    gradient.plot_global(output_label=["zero", "one"], as_plotly=True).save(tmp_path / "p.html")
    canvas = tab.open(tmp_path / "p.html").shown()
    assert tab.js(f"{canvas}.data.length") == 18
    assert set(tab.controls()) >= {"Colorscale", "2D Plot Type", "Percentile"}
    assert tab.problems() == []


def test_printing_a_dark_page_draws_it_light(tab, images_report):
    tab.open(images_report, dark=True)
    tab.shown("#instance")
    tab.js("dispatchEvent(new Event('beforeprint'))")
    tab.until("document.querySelector('#instance .canvas').layout.font.color === '#222222'")
    tab.until("document.querySelector('#overall .canvas')")
    tab.js("dispatchEvent(new Event('afterprint'))")
    tab.until("document.querySelector('#instance .canvas').layout.font.color === '#e4e4e4'")
