"""Operators that a user adds: the page about it runs as it stands, and mistakes are named."""

import contextlib
import io
import pickle
import re
import runpy
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

import onnxplain as ox
from onnxplain import kernels
from onnxplain.arrays import namespace
from onnxplain.errors import ArgumentError, UnsupportedOpError
from onnxplain.kernels import Elementwise, Expanded, Kernel, Linear, base, unregister
from onnxplain.testing import check_kernel

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
X = np.random.default_rng(0).normal(size=(3, 4))


@pytest.fixture(autouse=True)
def table(monkeypatch):
    """Give each test a table of its own."""
    entries = {key: list(found) for key, found in base._REGISTRY.items()}
    monkeypatch.setattr(base, "_REGISTRY", entries)


def model(node, version=1):
    text = f"""<ir_version: 8, opset_import: ["": 17, "my.ops": {version}]>
        net (float[N, 4] x) => (float[N, 4] y) {{h = Relu(x) y = {node}}}"""
    return onnx.parser.parse_model(text)


def double(name="Double", **options):
    """Define y = 2 x."""

    class Double(Elementwise, op=name, **{"domain": "my.ops"} | options):
        def forward(self, x):
            return 2 * x

        def slope(self, x, y):
            return 2.0

    return Double


# -- the page -------------------------------------------------------------------------------------


def test_the_page_runs_and_prints_what_it_shows():
    blocks = re.findall(r"```(python|text)\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    assert [kind for kind, _ in blocks].count("text") >= 6
    names, printed = {"__name__": "my_ops"}, ""
    for kind, block in blocks:
        if kind == "text":
            assert printed.split() == block.split()
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block, str(PAGE), "exec"), names)
        printed = out.getvalue()
    check_operators_of_the_page()


def check_operators_of_the_page():
    """Explain a model with all operators of the page."""
    text = """<ir_version: 8, opset_import: ["": 17, "my.ops": 2]>
        net (float[N, 4] x) => (float[N, 4] y)
        <float[2] w = {1, -2}, float[4] b = {1, 2, 3, 4}, float[4, 4] m = {
            1, 0, 2, 0, 0, 1, 0, -1, 3, 0, 1, 0, 0, 2, 0, 1}> {
            a = my.ops.Snake <alpha = 3.0> (x)
            c = my.ops.CyclicConv(a, w, b)
            d = my.ops.GatedUnit <scale = 0.5> (c, m)
            y = my.ops.Power <times = 3> (d)
        }"""
    converter = ox.convert(onnx.parser.parse_model(text), dtype="double")
    assert converter.coverage("deeplift").exact.all()
    v, h = np.random.default_rng(1).normal(size=X.shape), 1e-6
    ahead, behind = (converter(X + s * h * v)[0] for s in (1, -1))
    gradient = ox.Gradient(converter, X, dtype="double").get_result()
    along = (gradient * v[..., None]).sum(1)
    np.testing.assert_allclose(along, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)
    lift = ox.DeepLift(converter, X, dtype="double")
    np.testing.assert_allclose(lift.decomp_sum[0], lift.decomp_goal[0], rtol=1e-12, atol=1e-9)
    books = ox.LRP(converter, X, rule_name="epsilon", dtype="double").ledger()
    assert books.gap.max() < 1e-12 * books.incoming.abs().max()


def test_the_table_of_operators_is_up_to_date():
    script = PAGE.with_name("make_operators.py")
    written = runpy.run_path(str(script))["page"]()
    assert written == PAGE.with_name("operators.md").read_text("utf-8"), f"run {script.name}"


# -- the table ------------------------------------------------------------------------------------


def test_an_unknown_operator_of_a_domain_of_its_own_is_named():
    with pytest.raises(UnsupportedOpError, match=r"my.ops.Double.*write a kernel: class MyOp\("):
        ox.convert(model("my.ops.Double(h)"))
    with pytest.raises(UnsupportedOpError) as found:
        ox.convert(onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
            net (float[N, 4] x) => (float[N, 4] y) {y = com.microsoft.Inverse(x)}"""
        ))  # fmt: skip
    assert "write a kernel" not in str(found.value)


def test_the_newest_kernel_for_the_version_of_the_model_is_used():
    double()

    class Triple(Elementwise, op="Double", since=3, domain="my.ops"):
        def forward(self, x):
            return 3 * x

        def slope(self, x, y):
            return 3.0

    assert kernels.versions("Double", "my.ops") == [1, 3]
    for version, factor in ((1, 2), (2, 2), (3, 3), (7, 3)):
        converter = ox.convert(model("my.ops.Double(h)", version))
        np.testing.assert_allclose(converter(X)[0], factor * np.maximum(X, 0), rtol=1e-6)
    assert check_kernel("Double", [X], domain="my.ops")
    assert check_kernel("Double", [X], domain="my.ops", opset=1)


def test_a_version_before_all_kernels_is_named():
    double(since=2)
    with pytest.raises(UnsupportedOpError, match="is known from opset 2 on"):
        ox.convert(model("my.ops.Double(h)"))


def test_a_class_that_is_defined_again_takes_the_place_of_the_former():
    first = double()
    second = double()
    assert base._REGISTRY["my.ops", "Double"] == [(1, second)]
    assert first is not second


def test_another_class_for_an_operator_goes_before_those_of_the_package():
    class Softer(Elementwise, op="Relu", since=14):
        def forward(self, x):
            return x * (x > 0) * 0.5

        def slope(self, x, y):
            return 0.5 * (x > 0)

    double()
    y = ox.convert(model("my.ops.Double(h)"))(X)[0]
    np.testing.assert_allclose(y, np.maximum(X, 0), rtol=1e-6)
    unregister(Softer)
    y = ox.convert(model("my.ops.Double(h)"))(X)[0]
    np.testing.assert_allclose(y, 2 * np.maximum(X, 0), rtol=1e-6)


def test_a_kernel_that_is_taken_out_is_gone():
    cls = double()
    assert "my.ops.Double" in ox.registered_ops()
    unregister(cls)
    unregister(cls)
    assert "my.ops.Double" not in ox.registered_ops()


def test_the_domain_of_onnx_has_two_names():
    assert double("OwnOp", domain="ai.onnx").domain == ""
    assert "OwnOp" in ox.registered_ops()


@pytest.mark.parametrize("op", ["Add", "Identity", "Dropout", "Softmax", "Reshape", "Conv"])
def test_an_operator_with_a_name_of_onnx_is_not_taken_for_that(op):
    double(op)
    converter = ox.convert(model(f"my.ops.{op}(h)"))
    assert [node.domain for node in converter.graph.nodes] == ["", "my.ops"]
    found = ox.Gradient(converter, X, dtype="double").get_result()
    np.testing.assert_allclose(np.trace(found, axis1=1, axis2=2), 2 * (X > 0).sum(1))


def test_a_converter_with_an_operator_of_its_own_can_be_pickled(monkeypatch):
    cls = double()
    monkeypatch.setitem(globals(), "Double", cls)
    cls.__qualname__ = "Double"
    converter = ox.convert(model("my.ops.Double(h)"))
    again = pickle.loads(pickle.dumps(converter))
    np.testing.assert_array_equal(again(X)[0], converter(X)[0])


def test_an_operator_of_its_own_runs_inside_of_a_body():
    double()
    text = """<ir_version: 8, opset_import: ["": 17, "my.ops": 1]>
        net (float[N, 4] x) => (float[N, 4] y)
        <int64 steps = {3}> {
            y = Loop(steps, , x) <body = step (int64 i, bool on, float[N, 4] h) =>
                (bool on2, float[N, 4] new) {on2 = Identity(on) new = my.ops.Double(h)}>
        }"""
    converter = ox.convert(onnx.parser.parse_model(text))
    np.testing.assert_allclose(converter(X)[0], 8 * X, rtol=1e-6)


# -- mistakes -------------------------------------------------------------------------------------


def value(self, x):
    return x


def two(self, x, y):
    return x


SELECTOR = {
    "forward": value,
    "send": lambda self, g, x, y, shape: g,
    "pick": lambda self, values, x, y: values,
    "average": value,
    "average_vjp": lambda self, g, shape: g,
}
MISTAKES = {
    "no slope": (Elementwise, {"forward": value}, r"lacks slope\(self, x, y, \*params\)"),
    "no forward": (Elementwise, {"slope": two}, "lacks forward"),
    "no transpose": (Linear, {"apply": two}, r"lacks vjp\(self, g, shape, w\) \(or gradient\)"),
    "no map": (Linear, {"vjp": lambda self, g, shape, w: g}, r"lacks apply\(self, x, w\)"),
    "too few parameters": (
        Elementwise, {"forward": value, "slope": value}, r"slope\(self, x\) is called with"),
    "too many parameters": (
        Linear, {"apply": lambda self, x, w, v: x, "vjp": lambda self, g, shape, w: g},
        r"apply\(self, x, w, v\) is called with \(self, x, w\)"),
    "no transpose of a routing": (kernels.Routing, {"forward": value}, "lacks back"),
    "no rule of its own": (
        kernels.Axis, {"forward": value, "vjp": lambda self, g, x, y: g}, "lacks deeplift"),
    "no coefficients": (kernels.Merge, {}, "lacks coefficients"),
    "no factors": (kernels.Product, {"forward": two}, r"lacks back\(self, g, a, b, shapes\)"),
    "no winners": (kernels.Selector, {"forward": value}, "lacks send"),
    **{f"no {name}": (kernels.Selector, {n: f for n, f in SELECTOR.items() if n != name},
        rf"lacks {name}\(") for name in ("pick", "average", "average_vjp")},
    "neither text nor writer": (Expanded, {}, r"lacks text \(or expand\)"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_kernel_that_lacks_something_is_refused_where_it_is_defined(mistake):
    family, body, words = MISTAKES[mistake]
    with pytest.raises(ArgumentError, match=f"class Mine.* {words}"):
        type("Mine", (family,), body, op="Mine", domain="my.ops")
    assert "my.ops.Mine" not in ox.registered_ops()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"domian": "my.ops"}, "has no domian; give op, since, domain"),
        ({"since": "2"}, "since is '2'"),
        ({"since": 0}, "since is 0"),
    ],
)
def test_a_class_statement_that_makes_no_sense_is_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        double(**options)


def test_families_may_be_refined_without_an_operator():
    class Scale(Elementwise):
        def forward(self, x):
            return self.factor * x

        def slope(self, x, y):
            return self.factor

    class Tenfold(Scale, op="Tenfold", domain="my.ops"):
        factor = 10.0

    assert check_kernel("Tenfold", [X], domain="my.ops")
    assert issubclass(Tenfold, Kernel)


def test_the_conformance_check_finds_a_wrong_slope():
    class Wrong(Elementwise, op="Wrong", domain="my.ops"):
        def forward(self, x):
            return namespace(x).sin(x)

        def slope(self, x, y):
            return namespace(x).cos(2 * x)

    with pytest.raises(AssertionError, match="Wrong, gradient against differences"):
        check_kernel("Wrong", [X], domain="my.ops")


def test_the_conformance_check_runs_what_an_operator_is_written_with():
    class Wrong(Elementwise, op="Wrong", domain="my.ops"):
        def forward(self, x):
            return namespace(x).sin(x)

        def slope(self, x, y):
            return namespace(x).cos(2 * x)

    class Outer(Expanded, op="Outer", domain="my.ops"):
        def expand(self, writer):
            y = writer.node("Wrong", writer.input(0), domain="my.ops")
            writer.node("Add", y, writer.weight(np.float32(1)), output=writer.output(0))

    with pytest.raises(AssertionError, match="Outer.*gradient against differences"):
        check_kernel("Outer", [X], domain="my.ops")


def test_a_mistake_in_a_text_names_the_node():
    class Broken(Expanded, op="Broken", domain="my.ops"):
        text = "Broken (x) => (y) { y = Mul(x, x }"

    with pytest.raises(ArgumentError, match=r"'Broken_1'.*Expected character \) not found"):
        ox.convert(model("my.ops.Broken(h)"))
