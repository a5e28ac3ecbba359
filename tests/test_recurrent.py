"""LSTM, GRU and RNN with everything ONNX lets them have: all signals, and models from a file."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxplain as ox
from onnxplain.errors import ModelError, UnsupportedOpError
from onnxplain.graph.graph import build
from onnxplain.graph.load import read_model
from onnxplain.kernels import find
from onnxplain.kernels.base import Note, Record
from onnxplain.rules import AlphaBeta, DeepLiftSetting, Epsilon, LrpSetting, RevealCancel
from onnxplain.walk import (
    Ledger,
    backward,
    forward,
    gradient_step,
    multiplier_step,
    relevance_step,
)

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, ROWS, INPUTS, HIDDEN = 5, 3, 4, 2
FOLDER = Path(__file__).with_name("recurrent")


def recurrent(op, *, bias=True, lengths=(), start=False, peepholes=False, **attributes):
    """Return a model of one layer with all its outputs; with `start` its first states are data."""
    rng = np.random.default_rng(3)
    d = 2 if attributes.get("direction") == "bidirectional" else 1
    batch_first = attributes.get("layout")
    sequence = (ROWS, STEPS, INPUTS) if batch_first else (STEPS, ROWS, INPUTS)
    states = (ROWS, d, HIDDEN) if batch_first else (d, ROWS, HIDDEN)
    n = GATES[op] * HIDDEN
    data = {"X": sequence}
    weights = {
        "W": 0.7 * rng.normal(size=(d, n, INPUTS)),
        "R": 0.7 * rng.normal(size=(d, n, HIDDEN)),
    }
    names = ["X", "W", "R"]
    for name, given, value in (
        ("B", bias, 0.5 * rng.normal(size=(d, 2 * n))),
        ("lengths", len(lengths), np.array(lengths, np.int32)),
    ):
        names.append(name if given else "")
        weights |= {name: value} if given else {}
    for name in ("h0", "c0")[: 2 if op == "LSTM" else 1]:
        names.append(name if start else "")
        data |= {name: states} if start else {}
    if peepholes:
        names.append("P")
        weights["P"] = 0.5 * rng.normal(size=(d, 3 * HIDDEN))
    outputs = ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2]
    node = helper.make_node(op, names, outputs, name="cell", hidden_size=HIDDEN, **attributes)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [value(name, TensorProto.FLOAT, shape) for name, shape in data.items()],
        [value(name, TensorProto.FLOAT, None) for name in outputs],
        [
            numpy_helper.from_array(v if v.dtype == np.int32 else v.astype(np.float32), k)
            for k, v in weights.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def variants():
    """Yield layers with each of the things they may have, and with all of them."""
    for op, direction in itertools.product(GATES, ("forward", "reverse", "bidirectional")):
        yield op, {"direction": direction, "bias": direction == "reverse"}
        yield op, {"direction": direction, "lengths": (STEPS, 1, 3), "start": True}
    for op in GATES:
        yield op, {"layout": 1, "start": True, "direction": "bidirectional"}
        yield op, {"clip": 0.6, "start": True}
    every = ["Softsign", "HardSigmoid", "LeakyRelu", "Elu", "Affine", "Softplus"]
    parameters = {"activation_alpha": [0.3, 0.2, 0.7, 0.6], "activation_beta": [0.4, 0.1]}
    yield "LSTM", {"direction": "bidirectional", "activations": every, **parameters}
    some = ["Sigmoid", "ScaledTanh", "HardSigmoid", "Relu"]
    yield "GRU", {"direction": "bidirectional", "activations": some, **parameters}
    threshold = {"activations": ["ThresholdedRelu"], "activation_alpha": [0.1]}
    yield "RNN", threshold
    yield "GRU", {"linear_before_reset": 1, "start": True, "clip": 0.8}
    yield "GRU", {"linear_before_reset": 1, "bias": False}
    yield "LSTM", {"peepholes": True, "start": True, "clip": 0.8}
    yield "LSTM", {"input_forget": 1, "peepholes": True, "direction": "bidirectional"}


def named(op, options):
    words = [f"{k}={'x'.join(map(str, v)) if isinstance(v, list | tuple) else v}"
             for k, v in options.items()]  # fmt: skip
    return "-".join([op, *words])


ALL = [pytest.param(op, options, id=named(op, options)) for op, options in variants()]


class Layer:
    """A layer in float64, and walks back from all of its outputs."""

    def __init__(self, op, options, optimise=True):
        self.graph = build(read_model(recurrent(op, **options)), optimise).cast(np.float64)

    def point(self, seed):
        rng = np.random.default_rng(seed)
        return {spec.name: rng.normal(size=spec.shape) for spec in self.graph.inputs}

    def run(self, feeds):
        return forward(self.graph, feeds)

    def seeds(self, values, seed=7):
        rng = np.random.default_rng(seed)
        return {n: rng.normal(size=(2, *values[n].shape)) for n in self.graph.outputs}

    def size(self, signals, values, reference=None):
        """Return signal times difference, summed, per explained output."""
        return sum(
            (s * (values[n] - (0 if reference is None else reference[n]))).reshape(2, -1).sum(1)
            for n, s in signals.items()
        )


@pytest.mark.parametrize("op, options", ALL)
def test_gradients_are_derivatives(op, options):
    layer = Layer(op, options)
    x, move = layer.point(0), layer.point(1)
    values = layer.run(x)
    seeds = layer.seeds(values)
    found = layer.size(backward(layer.graph, seeds, gradient_step(layer.graph, values)), move)

    def along(h):
        ahead, behind = (layer.run({k: x[k] + s * move[k] for k in x}) for s in (h, -h))
        return (layer.size(seeds, ahead) - layer.size(seeds, behind)) / (2 * h)

    expected = (4 * along(1e-4) - along(2e-4)) / 3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("op, options", ALL)
@pytest.mark.parametrize("rule", [None, RevealCancel()], ids=["rescale", "reveal_cancel"])
def test_deeplift_adds_up(op, options, rule):
    layer = Layer(op, options)
    x, x0 = (layer.run(layer.point(seed)) for seed in (0, 1))
    setting = DeepLiftSetting() if rule is None else DeepLiftSetting(rule)
    seeds = layer.seeds(x)
    step = multiplier_step(layer.graph, x, x0, setting)
    found = layer.size(backward(layer.graph, seeds, step), x, x0)
    np.testing.assert_allclose(found, layer.size(seeds, x, x0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("op, options", ALL)
@pytest.mark.parametrize("gates", ["signal", "halves"])
def test_relevance_goes_on_or_is_absorbed(op, options, gates):
    layer = Layer(op, options)
    values = layer.run(layer.point(0))
    for rule in (LrpSetting().rule, Epsilon(0.01), AlphaBeta(2)):
        ledger = Ledger(rows=False)
        settings = {n.name: LrpSetting(rule, gates=gates) for n in layer.graph.nodes}
        step = relevance_step(layer.graph, values, settings, ledger)
        seeds = layer.seeds(values)
        back = backward(layer.graph, seeds, step)
        sizes = [abs(v) for e in ledger.entries for v in (e.came, e.went, *e.absorbed.values())]
        scale = np.max(sizes)
        assert max(np.max(abs(e.gap)) for e in ledger.entries) < 1e-10 * scale
        absorbed = sum(sum(e.absorbed.values()) for e in ledger.entries)
        went = sum(s.reshape(2, -1).sum(1) for s in back.values())
        came = sum(s.reshape(2, -1).sum(1) for s in seeds.values())
        np.testing.assert_allclose(went + absorbed, came, rtol=0, atol=1e-10 * scale)


@pytest.mark.parametrize("op, options", ALL)
def test_joined_and_plain_graphs_agree(op, options):
    joined, plain = Layer(op, options), Layer(op, options, optimise=False)
    x = joined.point(0)
    a, b = joined.run(x), plain.run(x)
    for name in joined.graph.outputs:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-12)


def test_steps_after_the_end_of_a_sequence_have_no_gradient():
    layer = Layer("LSTM", {"lengths": (5, 1, 3), "direction": "bidirectional"})
    values = layer.run(layer.point(0))
    found = backward(layer.graph, layer.seeds(values), gradient_step(layer.graph, values))["X"]
    ran = np.arange(STEPS)[:, None] < [5, 1, 3]
    assert (found[:, ~ran] == 0).all()
    assert (found[:, ran] != 0).all()
    assert (values["Y"].transpose(0, 2, 1, 3)[~ran] == 0).all()


def test_lengths_of_sequences_may_be_an_input():
    model = recurrent("LSTM", layout=1, lengths=(5, 1, 3), direction="bidirectional")
    graph = model.graph
    weights = [w for w in graph.initializer if w.name != "lengths"]
    del graph.initializer[:], graph.output[:]
    graph.initializer.extend(weights)
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    graph.input.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, ["N"]))
    graph.output.append(helper.make_tensor_value_info("Y_h", TensorProto.FLOAT, None))
    converter = ox.convert(model)
    lengths = np.array([5, 1, 3, 2], np.int32)
    data = [np.random.default_rng(0).normal(size=(4, STEPS, INPUTS)), lengths]
    (found, none) = ox.Gradient(converter, data).result[0]
    assert none is None
    np.testing.assert_array_equal(
        (found != 0).all(axis=(2, 3)), np.arange(STEPS) < lengths[:, None]
    )
    first = [part[:1] for part in data]
    lift = ox.DeepLift(converter, data, x_ref=first, dtype="double")
    np.testing.assert_allclose(lift.decomp_sum[0], lift.decomp_goal[0], rtol=0, atol=1e-12)
    assert ox.LRP(converter, data, dtype="double").ledger().gap.max() < 1e-12


# -- gates ----------------------------------------------------------------------------------------


def test_a_gate_gives_its_relevance_to_the_signal():
    gate, signal = np.array([[0.9, 0.2]]), np.array([[2.0, -3.0]])
    kernel = find("Gate", 1, (True, True), "onnxplain")({}, (True, True))
    rec = Record((gate, signal), (kernel.forward(gate, signal),))
    r = np.array([[[1.0, 4.0]]])
    none, back = kernel.relevance(rec, (r,), LrpSetting(), None)
    assert none is None
    np.testing.assert_array_equal(back, r)
    note = Note(rows=False)
    halves = kernel.relevance(rec, (r,), LrpSetting(gates="halves"), note)
    for half in halves:
        np.testing.assert_allclose(half, r / 2, rtol=1e-12)


def test_relevance_of_an_lstm_is_what_its_formulas_say():
    """One step from zero states: c = i g, h = o tanh(c), so all relevance goes through g."""
    layer = Layer("LSTM", {})
    x = {"X": np.random.default_rng(0).normal(size=(1, ROWS, INPUTS))}
    values = layer.run(x)
    settings = {n.name: LrpSetting() for n in layer.graph.nodes}
    seeds = {"Y_h": np.ones((1, 1, ROWS, HIDDEN))}
    found = backward(layer.graph, seeds, relevance_step(layer.graph, values, settings))["X"]
    weights = {w.name: numpy_helper.to_array(w) for w in recurrent("LSTM").graph.initializer}
    w = weights["W"][0, 3 * HIDDEN :].astype(float)
    b = weights["B"][0].astype(float)
    z = x["X"][0] @ w.T + b[3 * HIDDEN : 4 * HIDDEN] + b[7 * HIDDEN :]
    expected = (x["X"][0][:, None] * w / z[..., None]).sum(axis=1)
    # The biases of a file are added up in float32.
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-6)


def test_relevance_through_time_is_what_arras_et_al_write_down():
    """LRP-0 of an LSTM by hand, from the last state back to each step's input."""
    layer, n = Layer("LSTM", {}), HIDDEN
    x = layer.point(0)
    values = layer.run(x)
    weights = {v.name: numpy_helper.to_array(v) for v in recurrent("LSTM").graph.initializer}
    w, u = (weights[name][0].astype(float) for name in ("W", "R"))
    b = (weights["B"][0, : 4 * n] + weights["B"][0, 4 * n :]).astype(float)

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    h, c, steps = np.zeros((ROWS, n)), np.zeros((ROWS, n)), []
    for t in range(STEPS):
        z = x["X"][t] @ w.T + h @ u.T + b
        gates, new = sigmoid(z[:, : 3 * n]), np.tanh(z[:, 3 * n :])
        i, o, f = np.split(gates, 3, axis=1)
        steps.append((h, f * c, i * new, z[:, 3 * n :]))
        c = f * c + i * new
        h = o * np.tanh(c)
    np.testing.assert_allclose(values["Y_h"][0], h, rtol=0, atol=1e-6)

    r_h, r_c = np.ones((ROWS, n)), np.zeros((ROWS, n))
    expected = np.zeros((STEPS, ROWS, INPUTS))
    for t in reversed(range(STEPS)):
        before, kept, added, z = steps[t]
        r_c = r_c + r_h
        share = r_c * added / (kept + added) / z
        expected[t] = x["X"][t] * (share @ w[3 * n :])
        r_h, r_c = before * (share @ u[3 * n :]), r_c * kept / (kept + added)

    settings = {node.name: LrpSetting() for node in layer.graph.nodes}
    step = relevance_step(layer.graph, values, settings)
    found = backward(layer.graph, {"Y_h": np.ones((1, 1, ROWS, n))}, step)["X"][0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_a_rule_is_picked_by_the_name_of_the_layer():
    converter, x = ox.convert(FOLDER / "lstm.onnx"), np.load(FOLDER / "lstm.npz")["x"]
    found = ox.LRP(converter, x, rule_name={"LSTM": Epsilon(0.1)}, dtype="double")
    books = found.ledger().set_index("op")
    assert books.rule["LSTM"] == "Epsilon(epsilon=0.1)"
    assert books.rule["MatMul"] == "Simple()"
    assert abs(books.stabiliser["LSTM"]) > 1e-3
    assert books.gap.max() < 1e-10


# -- what cannot be done --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op, options, error, words",
    [
        ("RNN", {"activations": ["Swish"]}, UnsupportedOpError, "activation 'Swish'; known are"),
        ("RNN", {"activations": ["Affine"]}, ModelError, "'Affine' needs activation_alpha"),
        ("LSTM", {"activations": ["Tanh"]}, ModelError, "LSTM has 1 activations, expected 3"),
        ("GRU", {"direction": "sideways"}, ModelError, "direction 'sideways' is none of forward"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(op, options, error, words):
    with pytest.raises(error, match=words):
        build(read_model(recurrent(op, **options)))


def test_connection_weights_are_not_defined_for_gates():
    with pytest.raises(
        UnsupportedOpError, match=r"node '/cell/LSTM' .*Gate.* in its body: not def"
    ):
        ox.ConnectionWeights(ox.convert(FOLDER / "lstm.onnx"))


# -- models from a file ---------------------------------------------------------------------------

STORED = ["lstm", "bidirectional_gru"]


@pytest.fixture(params=STORED)
def stored(request):
    """Return a converter, and its case as PyTorch computed it in float64."""
    case = dict(np.load(FOLDER / f"{request.param}.npz"))
    return ox.convert(FOLDER / f"{request.param}.onnx"), case


def test_stored_models_agree_with_pytorch(stored):
    converter, case = stored
    found = ox.Gradient(converter, case["x"], dtype="double")
    scale = abs(case["gradient"]).max()
    np.testing.assert_allclose(found.preds[0], case["y"], rtol=0, atol=1e-7)
    np.testing.assert_allclose(found.get_result(), case["gradient"], rtol=0, atol=1e-7 * scale)
    single = ox.Gradient(converter, case["x"]).get_result()
    np.testing.assert_allclose(single, case["gradient"], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("method", [ox.Gradient, ox.LRP, ox.DeepLift, ox.DeepSHAP])
def test_stored_models_treat_rows_apart(stored, method):
    converter, case = stored
    whole = method(converter, case["x"], dtype="double").get_result()
    for size in (1, 2, 3):
        rows = slice(4 - size, 4)
        part = method(converter, case["x"][rows], dtype="double", batch_size=size).get_result()
        np.testing.assert_allclose(part, whole[rows], rtol=0, atol=1e-12)


def test_stored_models_keep_what_methods_promise(stored):
    converter, case = stored
    x, refs = case["x"][:2], case["x"][2:]
    for rule in ("rescale", "reveal_cancel"):
        lift = ox.DeepLift(converter, x, x_ref=refs[:1], rule_name=rule, dtype="double")
        np.testing.assert_allclose(lift.decomp_sum[0], lift.decomp_goal[0], rtol=0, atol=1e-10)
    shap = ox.DeepSHAP(converter, x, data_ref=refs, dtype="double")
    np.testing.assert_allclose(shap.decomp_sum[0], shap.decomp_goal[0], rtol=0, atol=1e-10)
    for gates in ("signal", "halves"):
        books = ox.LRP(converter, x, gates=gates, dtype="double").ledger()
        assert books.gap.max() < 1e-10 * books.incoming.abs().max()


def test_the_bump_in_a_sequence_is_what_explains_its_class(stored):
    """Most of the positive relevance of the predicted class lies on the channel with the bump."""
    converter, case = stored
    label = case["y"].argmax(axis=1)
    found = ox.DeepLift(converter, case["x"]).get_result()
    for row, k in enumerate(label):
        channels = np.maximum(found[row, ..., k], 0).sum(axis=0)
        assert channels.argmax() == k


def test_coverage_names_the_layer(stored):
    converter, _ = stored
    table = converter.coverage()
    layers = table[table.family == "recurrent"]
    assert len(layers) in (1, 2)
    assert set(layers.joined) <= {"/cell/LSTM", "/cell/GRU"}
    assert set(layers["rule (lrp)"]) == {"through time"}
    assert layers[["exact (gradient)", "exact (lrp)", "exact (deeplift)"]].all(axis=None)
