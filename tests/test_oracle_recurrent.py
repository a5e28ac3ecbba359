"""Recurrent networks against the libraries they come from: onnxruntime, PyTorch, Keras."""

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.graph.graph import build
from onnxplain.graph.load import read_model
from onnxplain.walk import forward
from test_recurrent import ALL, recurrent

pytestmark = pytest.mark.oracle


def close(found, expected, tolerance=1e-5):
    scale = np.abs(expected).max(initial=0) or 1.0
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def check_promises(converter, x, **options):
    """See that DeepLIFT adds up and that LRP keeps books, in float64."""
    lift = ox.DeepLift(converter, x, x_ref=x[:1] / 2, dtype="double", **options)
    np.testing.assert_allclose(lift.decomp_sum[0], lift.decomp_goal[0], rtol=0, atol=1e-10)
    books = ox.LRP(converter, x, dtype="double", **options).ledger()
    assert books.gap.max() < 1e-10 * books.incoming.abs().max()


# -- onnxruntime ----------------------------------------------------------------------------------


@pytest.mark.parametrize("op, options", ALL)
def test_layers_agree_with_onnxruntime(op, options):
    onnxruntime = pytest.importorskip("onnxruntime")
    if options.get("layout"):
        pytest.skip("onnxruntime has no layout 1")
    model = recurrent(op, **options)
    graph = build(read_model(model))
    rng = np.random.default_rng(0)
    feeds = {s.name: rng.normal(size=s.shape).astype(np.float32) for s in graph.inputs}
    theirs = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    ours = forward(graph, feeds)
    for name, expected in zip(graph.outputs, theirs, strict=True):
        assert ours[name].shape == expected.shape
        close(ours[name], expected)


# -- PyTorch --------------------------------------------------------------------------------------


def torch_classifier(kind, bidirectional, layers):
    torch = pytest.importorskip("torch")

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            cell = getattr(torch.nn, kind)
            self.cell = cell(4, 6, layers, batch_first=True, bidirectional=bidirectional)
            self.head = torch.nn.Linear(6 * (1 + bidirectional), 3)

        def forward(self, x):
            y, state = self.cell(x)
            state = state[0] if kind == "LSTM" else state
            return self.head(y[:, -1]) + self.head(y.mean(1)) * state[-1, :, :1]

    torch.manual_seed(0)
    return Classifier().eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(
    "bidirectional, layers, dynamo",
    [(False, 1, True), (True, 1, False), (False, 2, False), (True, 2, True)],
)
def test_classifiers_agree_with_pytorch(kind, bidirectional, layers, dynamo, tmp_path):
    torch = pytest.importorskip("torch")
    model = torch_classifier(kind, bidirectional, layers)
    x = torch.randn(5, 7, 4)
    if dynamo:
        converter = ox.convert(model, input_dim=(7, 4))
    else:
        path = str(tmp_path / "model.onnx")
        torch.onnx.export(
            model, (x,), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}}
        )
        converter = ox.convert(path)
    model, leaf = model.double(), x.double().requires_grad_()
    y = model(leaf)
    parts = [torch.autograd.grad(y[:, k].sum(), leaf, retain_graph=True)[0] for k in range(3)]
    expected = torch.stack(parts, -1).numpy()
    close(converter(x.numpy())[0], y.detach().numpy())
    for size in (5, 2, 1):
        found = ox.Gradient(converter, x.numpy()[:size], dtype="double").get_result()
        close(found, expected[:size])
    check_promises(converter, x.numpy())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rows, fixed", [(1, None), (3, 3)])
def test_a_batch_size_in_the_file_does_not_bind_the_user(rows, fixed, tmp_path):
    torch = pytest.importorskip("torch")
    model, x = torch_classifier("GRU", True, 2), torch.randn(5, 7, 4)
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(model, (x[:rows],), path, dynamo=False, input_names=["x"])
    converter = ox.convert(path)
    assert converter.graph.fixed_batch == fixed
    close(converter(x.numpy())[0], model(x).detach().numpy())
    check_promises(converter, x.numpy())


# -- Keras ----------------------------------------------------------------------------------------

KERAS = {
    "lstm": lambda L: L.LSTM(5),
    "lstm_backwards": lambda L: L.LSTM(5, go_backwards=True, return_sequences=True),
    "gru": lambda L: L.GRU(5, bias_initializer="random_normal"),
    "gru_reset_before": lambda L: L.GRU(5, reset_after=False, bias_initializer="random_normal"),
    "simple_rnn": lambda L: L.SimpleRNN(5, activation="relu"),
    "bidirectional_lstm": lambda L: L.Bidirectional(L.LSTM(4, return_sequences=True)),
    "bidirectional_gru": lambda L: L.Bidirectional(L.GRU(4), merge_mode="sum"),
}


@pytest.fixture(scope="module")
def keras_models():
    """Return a function that makes a Keras classifier, with a way to its gradients."""
    pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras runs on another backend than TensorFlow")

    def make(kind):
        keras.utils.set_random_seed(0)
        layers = keras.layers
        parts = [keras.Input((6, 3)), KERAS[kind](layers), layers.Flatten(), layers.Dense(3)]
        return keras.Sequential(parts)

    return make


def keras_gradients(model, x):
    import tensorflow as tf

    x = tf.constant(x)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        parts = [tf.reduce_sum(model(x)[:, k]) for k in range(3)]
    return np.stack([tape.gradient(part, x).numpy() for part in parts], -1)


def through_tf2onnx(model):
    """Return a file as tf2onnx writes it: a GRU is a Loop there."""
    import tensorflow as tf

    tf2onnx = pytest.importorskip("tf2onnx")
    spec = [tf.TensorSpec((None, 6, 3), tf.float32)]
    function = tf.function(lambda x: model(x), input_signature=spec)
    return tf2onnx.convert.from_function(function, input_signature=spec, opset=15)[0]


X = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KERAS)
def test_layers_agree_with_keras(kind, keras_models):
    model = keras_models(kind)
    converter = ox.convert(model)
    close(converter(X, channels_first=False)[0], np.asarray(model(X)))
    found = ox.Gradient(converter, X, channels_first=False).get_result()
    close(found, keras_gradients(model, X))
    check_promises(converter, X, channels_first=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["gru", "gru_reset_before", "simple_rnn", "bidirectional_gru"])
def test_loops_of_tf2onnx_are_explained_like_the_layers_they_were(kind, keras_models):
    model = keras_models(kind)
    proto = through_tf2onnx(model)
    assert "Loop" in {node.op_type for node in proto.graph.node}
    loop, layer = ox.convert(proto), ox.convert(model)
    close(ox.Gradient(loop, X).get_result(), keras_gradients(model, X))
    check_promises(loop, X)
    for method, options in (
        (ox.DeepLift, {}),
        (ox.LRP, {}),
        (ox.LRP, {"gates": "halves"}),
    ):
        found = method(loop, X, dtype="double", **options).get_result()
        expected = method(layer, X, dtype="double", channels_first=False, **options).get_result()
        close(found, expected, 1e-5)
