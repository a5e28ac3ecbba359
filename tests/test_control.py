"""If, Loop and Scan: bodies are read, folded and bounded, and every signal walks through them."""

import pickle

import numpy as np
import onnx.parser
import pytest

import onnxplain as ox
from onnxplain.errors import DataError, ModelError, UnsupportedOpError
from onnxplain.graph.graph import build
from onnxplain.graph.load import read_model
from onnxplain.kernels import control
from onnxplain.walk import forward

W = np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)
ROWS = np.random.default_rng(0).normal(size=(5, 4, 3))
OPEN = (1 << 62) - 1  # steps of a loop that only its condition ends


def parse(text, **weights):
    """Return a model in ONNX's text format; `weights` are added to its graph."""
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]> ' + text)
    for name, value in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return model


def ops(converter):
    return [node.op for node in converter.graph.nodes]


def inner(converter):
    """Return the nodes of all bodies."""
    return [n for node in converter.graph.nodes if hasattr(node.kernel, "bodies")
            for graph in node.kernel.bodies() for n in graph.nodes]  # fmt: skip


def differences(converter, x, h=1e-5):
    """Return the gradient of all outputs by central differences, (*x, outputs)."""
    columns = []
    for i in range(x[0].size):
        step = np.zeros(x[0].size)
        step[i] = h
        ahead, behind = (converter(x + s * step.reshape(x[0].shape))[0] for s in (1, -1))
        columns.append((ahead - behind) / (2 * h))
    return np.stack([c.reshape(len(x), -1)[:, :10] for c in columns], 1).reshape(*x.shape, -1)


def check(converter, x, x_ref=None):
    """Compare gradients with differences, and see that DeepLIFT adds up and LRP keeps books."""
    double = pickle.loads(pickle.dumps(converter))
    double.dtype = "double"
    found = ox.Gradient(converter, x, dtype="double").get_result()
    np.testing.assert_allclose(found, differences(double, x), rtol=0, atol=1e-7)
    for rule in ("rescale", "reveal_cancel"):
        lift = ox.DeepLift(converter, x, x_ref=x_ref, rule_name=rule, dtype="double")
        np.testing.assert_allclose(lift.decomp_sum[0], lift.decomp_goal[0], rtol=0, atol=1e-10)
    books = ox.LRP(converter, x, dtype="double").ledger()
    assert books.gap.max() < 1e-10
    return books


# -- Loop -----------------------------------------------------------------------------------------

RNN = """
g (float[N, 4, 3] x) => (float[N, 2] y) {
    all = Shape(x)
    rows = Gather(all, zero)
    shape = Concat <axis = 0> (rows_, two)
    h0 = ConstantOfShape(shape)
    last, seen = Loop(steps, , h0) <body = step (int64 i, bool go, float[N, 2] h) =>
        (bool again, float[N, 2] new, float[N, 2] shown) {
        again = Identity(go)
        part = Gather <axis = 1> (x, i)
        a = MatMul(part, w)
        b = MatMul(h, u)
        z = Add(a, b)
        new = Tanh(z)
        shown = Mul(new, new)
    }>
    total = ReduceMean <axes = [0], keepdims = 0> (seen)
    y = Add(last, total)
}
"""
RNN = RNN.replace("rows = Gather(all, zero)\n", "rows_ = Slice(all, none, one)\n")


def rnn(steps=4, text=RNN):
    u = np.array([[0.5, -0.3], [0.2, 0.4]], np.float32)
    one, none, two = (np.array([n], np.int64) for n in (1, 0, 2))
    weights = {"w": W, "u": u, "one": one, "none": none, "two": two}
    return parse(text, steps=np.array(steps, np.int64), **weights)


def test_a_loop_is_explained():
    converter = ox.convert(rnn())
    h, seen = np.zeros((5, 2)), 0
    for t in range(4):
        h = np.tanh(ROWS[:, t] @ W + h @ [[0.5, -0.3], [0.2, 0.4]])
        seen = seen + h * h / 4
    np.testing.assert_allclose(converter(ROWS)[0], h + seen, rtol=0, atol=1e-6)
    books = check(converter, ROWS, x_ref=ROWS[:1] / 3)
    assert "Loop" in set(books.op)


@pytest.mark.parametrize("method", [ox.Gradient, ox.LRP, ox.DeepLift, ox.DeepSHAP])
def test_rows_do_not_depend_on_their_batch(method):
    converter = ox.convert(rnn())
    whole = method(converter, ROWS, dtype="double").get_result()
    for size in (1, 2):
        part = method(converter, ROWS[:size], dtype="double", batch_size=size).get_result()
        np.testing.assert_allclose(part, whole[:size], rtol=0, atol=1e-12)


def test_deepshap_adds_up_over_references():
    found = ox.DeepSHAP(ox.convert(rnn()), ROWS[:2], data_ref=ROWS[2:], dtype="double")
    np.testing.assert_allclose(found.decomp_sum[0], found.decomp_goal[0], rtol=0, atol=1e-10)


def test_steps_that_do_not_fit_into_memory_are_computed_again(monkeypatch):
    converter = ox.convert(rnn())
    expected = ox.DeepLift(converter, ROWS, x_ref=ROWS[:1], dtype="double").get_result()
    monkeypatch.setattr(control, "KEPT_BYTES", 0)
    found = ox.DeepLift(converter, ROWS, x_ref=ROWS[:1], dtype="double").get_result()
    np.testing.assert_array_equal(found, expected)


def test_weights_in_a_body_follow_the_type_of_the_computation():
    text = RNN.replace("a = MatMul(part, w)", "k = Constant <value = float {0.1}> () "
                       "c = Cast <to = 1> (part) p = Mul(c, k) a = MatMul(p, w)")  # fmt: skip
    converter = ox.convert(rnn(text=text))
    single, double = (ox.Gradient(converter, ROWS, dtype=d).preds[0] for d in ("float", "double"))
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    assert 1e-10 < abs(single - double).max() < 1e-5
    check(converter, ROWS)


def test_what_no_step_changes_is_computed_once():
    text = RNN.replace("a = MatMul(part, w)", "v = Neg(w) e = Exp(x) s = Softplus(e) "
                       "o = ReduceMean <axes = [1], keepdims = 0> (s) "
                       "q = MatMul(part, v) r = MatMul(o, v) a = Add(q, r)")  # fmt: skip
    converter = ox.convert(rnn(text=text))
    assert not {"Neg", "Exp", "Softplus", "ReduceMean"} & {n.op for n in inner(converter)}
    assert {"Exp", "Softplus"} <= set(ops(converter))
    check(converter, ROWS, x_ref=ROWS[:1] / 3)


def test_states_that_are_handed_on_as_they_are_become_weights():
    text = RNN.replace("last, seen = Loop(steps, , h0)", "last, kept, seen = Loop(steps, , h0, w)")
    text = text.replace("float[N, 2] h) =>", "float[N, 2] h, float[3, 2] v) =>")
    text = text.replace("float[N, 2] new, float[N", "float[N, 2] new, float[3, 2] v2, float[N")
    text = text.replace("MatMul(part, w)", "MatMul(part, v) v1 = Identity(v) v2 = Identity(v1)")
    converter = ox.convert(rnn(text=text))
    (loop,) = [node for node in converter.graph.nodes if node.op == "Loop"]
    assert "w" in loop.inputs
    assert len(loop.kernel.state_in) == 1
    np.testing.assert_array_equal(converter(ROWS)[0], ox.convert(rnn())(ROWS)[0])


def test_a_loop_of_no_steps_returns_its_states():
    text = RNN.replace("y = Add(last, total)", "n = Size(seen) f = Cast <to = 1> (n) "
                       "first = Gather <axis = 1> (x, at) s = MatMul(first, w) "
                       "t = Add(last, s) y = Add(t, f)")  # fmt: skip
    model = rnn(0, text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0), "at"))
    converter = ox.convert(model)
    np.testing.assert_allclose(converter(ROWS)[0], ROWS[:, 0] @ W, rtol=0, atol=1e-6)
    found = ox.Gradient(converter, ROWS).get_result()
    assert (found[:, 1:] == 0).all()


COUNT = """
g (float[N, 3] x) => (float[N, 3] y) {
    n, y = Loop(steps, yes, zero, x) <body = step (int64 i, bool go, int64 k, float[N, 3] h) =>
        (bool again, int64 more, float[N, 3] new) {
        more = Add(k, one)
        again = Less(more, five)
        new = Sin(h)
    }>
}
"""


def count(steps, yes=True, text=COUNT, five=5, **weights):
    numbers = {k: np.array(v, np.int64) for k, v in (("zero", 0), ("one", 1), ("five", five))}
    return parse(text, steps=np.array(steps, np.int64), yes=np.array(yes), **numbers, **weights)


@pytest.mark.parametrize(
    "steps, yes, times", [(OPEN, True, 5), (3, True, 3), (9, False, 0), (0, True, 0)]
)
def test_a_loop_ends_with_its_count_or_its_condition(steps, yes, times):
    converter, x = ox.convert(count(steps, yes)), ROWS[:, 0]
    expected = x
    for _ in range(times):
        expected = np.sin(expected)
    np.testing.assert_allclose(converter(x)[0], expected, rtol=0, atol=1e-6)
    check(converter, x, x_ref=x[1:2])


def test_a_loop_without_data_is_folded():
    text = COUNT.replace(
        "g (float[N, 3] x) => (float[N, 3] y)", "g (float[N, 3] x) => (float[N, 3] z)"
    )
    text = text.replace("zero, x)", "zero, c)").replace("}>", "}> z = Mul(x, y)")
    converter = ox.convert(count(OPEN, c=np.ones((1, 3), np.float32), text=text))
    assert "Loop" not in ops(converter)
    expected = np.sin(np.sin(np.sin(np.sin(np.sin(1)))))
    np.testing.assert_allclose(converter(ROWS[:, 0])[0], expected * ROWS[:, 0], rtol=1e-6)


SCAN = """
g (float[N, 4, 3] x) => (float[N, 3, 4] y) {
    s = Slice(x, zero1, one1, one1)
    h0 = Squeeze(s, one1)
    z0 = Mul(h0, none)
    last, y = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_input_directions = [1],
        scan_output_axes = [-1], scan_output_directions = [1],
        body = step (float[N, 3] h, float[N, 3] part) => (float[N, 3] new, float[N, 3] out) {
            new = Add(h, part)
            out = Sigmoid(new)
        }> (z0, x)
}
"""


def test_a_scan_runs_along_any_axis_either_way():
    model = parse(SCAN, zero1=np.array([0]), one1=np.array([1]), none=np.float32(0))
    converter = ox.convert(model)
    sums = np.cumsum(ROWS[:, ::-1], axis=1)[:, ::-1]
    expected = 1 / (1 + np.exp(-sums.swapaxes(1, 2)))
    np.testing.assert_allclose(converter(ROWS)[0], expected, rtol=0, atol=1e-6)
    check(converter, ROWS, x_ref=ROWS[:1])


# -- If -------------------------------------------------------------------------------------------

IF = """
g (float[N, 3] x) => (float[N, 2] y) {
    CONDITION
    y = If(c) <then_branch = t () => (float[N, 2] p) {a = Tanh(x) p = MatMul(a, w)},
               else_branch = e () => (float[N, 2] q) {q = MatMul(x, w)}>
}
"""
BY_DATA = "s = ReduceSum <keepdims = 0> (x) c = Greater(s, none)"


def branching(condition, **weights):
    return parse(IF.replace("CONDITION", condition), w=W, none=np.float32(0), **weights)


@pytest.mark.parametrize("chosen", [True, False])
def test_the_branch_of_a_known_condition_takes_the_place_of_an_if(chosen):
    converter = ox.convert(branching("c = Not(d)", d=np.array([not chosen])))
    assert ops(converter) == (["Tanh", "MatMul"] if chosen else ["MatMul"])
    x = ROWS[:, 0]
    np.testing.assert_allclose(converter(x)[0], (np.tanh(x) if chosen else x) @ W, atol=1e-6)


def test_rows_take_their_own_branches():
    converter, x = ox.convert(branching(BY_DATA)), ROWS[:, 0]
    assert converter.graph.fixed_batch == 1
    up = x.sum(axis=1, keepdims=True) > 0
    assert 0 < up.sum() < len(up)
    np.testing.assert_allclose(converter(x)[0], np.where(up, np.tanh(x), x) @ W, atol=1e-6)
    found = ox.Gradient(converter, x).get_result()
    slope = np.where(up, 1 - np.tanh(x) ** 2, 1)
    np.testing.assert_allclose(found, slope[..., None] * W, rtol=0, atol=1e-6)
    lift = ox.DeepLift(converter, x[up[:, 0]], x_ref=np.full((1, 3), 0.1), dtype="double")
    np.testing.assert_allclose(lift.decomp_sum[0], lift.decomp_goal[0], rtol=0, atol=1e-12)
    assert ox.LRP(converter, x, dtype="double").ledger().gap.max() < 1e-12


def test_a_condition_per_row_is_taken_row_by_row():
    condition = "s = ReduceMean <axes = [1], keepdims = 0> (x) c = Greater(s, none)"
    converter, x = ox.convert(branching(condition)), ROWS[:, 0]
    assert converter.graph.fixed_batch == 1
    up = x.sum(axis=1, keepdims=True) > 0
    np.testing.assert_allclose(converter(x)[0], np.where(up, np.tanh(x), x) @ W, atol=1e-6)


def test_a_reference_that_takes_the_other_branch_is_refused():
    with pytest.raises(DataError, match="an If takes one branch for the input and the other"):
        ox.DeepLift(ox.convert(branching(BY_DATA)), np.ones((1, 3)), x_ref=-np.ones((1, 3)))


def test_a_reference_with_another_number_of_steps_is_refused():
    text = COUNT.replace("again = Less(more, five)", "m = ReduceMax <keepdims = 0> (h) "
                         "again = Greater(m, half)")  # fmt: skip
    converter = ox.convert(count(50, text=text, half=np.float32(0.9)))
    assert converter.graph.fixed_batch == 1
    with pytest.raises(
        DataError, match="a Loop takes 3 steps for the input and 1 for the reference"
    ):
        ox.DeepLift(converter, np.full((1, 3), 2.0), x_ref=np.zeros((1, 3)))


def test_conditions_by_the_data_of_a_larger_fixed_batch_are_refused():
    model = branching(BY_DATA)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises(ModelError, match="batches of 4, and an If, Loop or Scan in it decides"):
        ox.convert(model)


def test_bodies_in_bodies():
    text = RNN.replace("new = Tanh(z)", "odd = Mod(i, two0) c = Cast <to = 9> (odd) new = If(c) <"
                       "then_branch = t () => (float[N, 2] p) {p = Tanh(z)},"
                       "else_branch = e () => (float[N, 2] q) {q = Sin(z)}>")  # fmt: skip
    model = rnn(text=text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2), "two0"))
    converter = ox.convert(model)
    assert converter.graph.fixed_batch is None
    h = np.zeros((5, 2))
    for t in range(4):
        z = ROWS[:, t] @ W + h @ [[0.5, -0.3], [0.2, 0.4]]
        h = np.tanh(z) if t % 2 else np.sin(z)
    graph = build(read_model(model), outputs=["last"])
    values = forward(graph, {"x": ROWS.astype(np.float32)})
    np.testing.assert_allclose(values["last"], h, rtol=0, atol=1e-6)
    check(converter, ROWS, x_ref=ROWS[:1])


# -- gates ----------------------------------------------------------------------------------------


def test_products_with_a_sigmoid_in_a_body_are_gates():
    text = RNN.replace("new = Tanh(z)", "f = Sigmoid(z) r = Sub(unit, f) t = Tanh(z) "
                       "k = Mul(h, f) n = Mul(r, t) new = Add(k, n)")  # fmt: skip
    model = rnn(text=text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "unit"))
    converter = ox.convert(model)
    assert [n.op for n in inner(converter)].count("Gate") == 2
    check(converter, ROWS, x_ref=ROWS[:1])
    whole, half = (
        ox.LRP(converter, ROWS, dtype="double", gates=g).get_result() for g in ("signal", "halves")
    )
    assert abs(whole - half).max() > 1e-3
    with pytest.raises(ox.OnnxplainError, match="gates must be 'signal', 'halves', got 'both'"):
        ox.LRP(converter, ROWS, gates="both")


# -- what is told ---------------------------------------------------------------------------------


def test_coverage_looks_into_bodies():
    table = ox.convert(rnn()).coverage().set_index("op").loc["Loop"]
    assert table.family == "control"
    assert table["rule (gradient)"] == "through its steps"
    assert table["exact (deeplift)"]
    assert table["rule (connection)"] == ""
    remark = "node 'Loop_4/Mul_6' (Mul, opset 17) in its body: not defined"
    assert table["remark (connection)"].startswith(remark)
    with pytest.raises(UnsupportedOpError, match=r"node 'Loop_4/Mul_6' .* in its body"):
        ox.ConnectionWeights(ox.convert(rnn()))


def test_steps_in_a_body_that_are_not_exact_are_named():
    text = RNN.replace("new = Tanh(z)", "f = Floor(z) t = Tanh(z) new = Add(t, f)")
    row = ox.convert(rnn(text=text)).coverage("deeplift").set_index("op").loc["Loop"]
    assert not row.exact
    assert row.remark == "not exact in its body: 'Loop_4/Floor_5'"


def test_connection_weights_pass_a_loop_that_is_linear():
    text = RNN.replace("new = Tanh(z)", "new = Neg(z)").replace("Mul(new, new)", "Neg(new)")
    found = ox.ConnectionWeights(ox.convert(rnn(text=text))).get_result()
    expected = ox.Gradient(ox.convert(rnn(text=text)), ROWS[:1]).get_result()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_an_operator_without_kernel_in_a_body_is_named():
    with pytest.raises(UnsupportedOpError, match=r"'Loop_4/RandomNormalLike_5'"):
        ox.convert(rnn(text=RNN.replace("new = Tanh(z)", "new = RandomNormalLike(z)")))


def test_a_converted_loop_can_be_saved_and_read(tmp_path):
    converter = ox.convert(rnn())
    converter.save(tmp_path / "loop.onnx")
    np.testing.assert_array_equal(
        ox.convert(tmp_path / "loop.onnx")(ROWS)[0], pickle.loads(pickle.dumps(converter))(ROWS)[0]
    )


# -- bounds ---------------------------------------------------------------------------------------


def test_a_loop_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(control, "MAX_STEPS", 1000)
    with pytest.raises(ModelError, match=r"'Loop_0' .*more than the 1,000 steps allowed"):
        ox.convert(count(OPEN, five=OPEN))


def test_loops_in_loops_are_counted_together(monkeypatch):
    monkeypatch.setattr(control, "MAX_STEPS", 1000)
    inside = """new = Loop(steps, , h) <body = two (int64 j, bool on, float[N, 3] a) =>
        (bool on2, float[N, 3] b) {on2 = Identity(on) b = Sin(a)}>"""
    text = COUNT.replace("new = Sin(h)", inside)
    with pytest.raises(ModelError, match=r"'Loop_0/Loop_\d' .*more than the 1,000 steps allowed"):
        ox.convert(count(50, text=text, five=OPEN))
    ox.convert(count(20, text=text, five=OPEN))


def test_a_state_that_grows_beyond_bounds_is_refused(monkeypatch):
    monkeypatch.setattr("onnxplain.arrays.MAX_ELEMENTS", 10_000)
    text = COUNT.replace("n, y = Loop", "n, big = Loop").replace("}>", "}> y = Add(x, big)")
    text = text.replace("new = Sin(h)", "new = Concat <axis = 1> (h, h)")
    with pytest.raises(ModelError, match="more than the 10,000 elements allowed"):
        ox.convert(count(60, text=text, five=OPEN))


def test_a_tensor_of_absurd_size_in_a_body_is_refused():
    text = COUNT.replace("new = Sin(h)", "e = Expand(h, huge) new = ReduceMean <axes = [1]> (e)")
    with pytest.raises(ModelError, match=r"1000000000000.*more than the .* elements allowed"):
        ox.convert(count(60, text=text, huge=np.array([1, 1, 10**12])))


def test_stacked_outputs_beyond_bounds_are_refused(monkeypatch):
    monkeypatch.setattr(control, "MAX_ELEMENTS", 20)
    monkeypatch.setattr("onnxplain.arrays.MAX_ELEMENTS", 20)
    with pytest.raises(ModelError, match="more than the 20 elements allowed"):
        forward(build(read_model(rnn())), {"x": np.zeros((3, 4, 3), np.float32)})


def test_a_function_that_calls_itself_is_refused():
    text = """<ir_version: 8, opset_import: ["": 17, "own": 1]>
        g (float[N, 3] x) => (float[N, 3] y) {y = own.f(x)}
        <domain: "own", opset_import: ["": 17, "own": 1]> f (a) => (b) {c = Relu(a) b = own.f(c)}"""
    with pytest.raises(ModelError, match="function 'f' calls itself"):
        ox.convert(onnx.parser.parse_model(text))


def test_bodies_that_do_not_fit_are_refused():
    text = RNN.replace("last, seen = Loop(steps, , h0)", "last, seen = Loop(steps, , h0, h0)")
    with pytest.raises(ModelError, match="has 4 inputs, but its body takes 3"):
        ox.convert(rnn(text=text))
    text = RNN.replace("shown = Mul(new, new)", "j = Unsqueeze(i, none) k = Add(j, one) "
                       "shown = Slice(new, none, k, one)")  # fmt: skip
    with pytest.raises(
        ModelError, match=r"steps of Loop give tensors of shapes \[\(1, 1\), \(1, 2"
    ):
        ox.convert(rnn(text=text))
