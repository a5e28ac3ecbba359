"""Keras models converted: values, gradients, axes and names are those of Keras.

The backend is that of KERAS_BACKEND, TensorFlow without it; one process has one backend.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxplain as ox
from onnxplain.errors import (
    ArgumentError,
    DtypeError,
    MissingPackageError,
    ModelError,
    ModelFileError,
    ShapeError,
)

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")
ort = pytest.importorskip("onnxruntime")
from onnxplain_converters.keras import convert  # noqa: E402

L, K = keras.layers, keras.ops
BACKEND = keras.backend.backend()

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
only_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="needs TensorFlow")


# -- help ------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def fresh_names():
    """Let layers count from one in each test."""
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


def randomised(model, seed=0):
    """Give all weights values that a training could have left, none 0 or 1."""
    rng = np.random.default_rng(seed)
    for w in model.weights:
        if not str(w.dtype).startswith("float"):
            continue
        draw = rng.normal(size=w.shape)
        if "variance" in w.name:
            value = 0.5 + draw**2
        elif "gamma" in w.name:
            value = 1 + 0.2 * draw
        elif len(w.shape) < 2:
            value = 0.2 * draw
        else:
            value = draw * np.sqrt(1.5 / np.prod(w.shape[:-1]))
        w.assign(value.astype(str(w.dtype)))
    return model


def sequential(shape, *layers, **options):
    return randomised(keras.Sequential([keras.Input(shape, **options), *layers]))


def functional(shapes, build):
    inputs = [keras.Input(shape) for shape in shapes]
    return randomised(keras.Model(inputs if len(inputs) > 1 else inputs[0], build(*inputs)))


def draw(model, rows, seed=1, shapes=None):
    """Return data as Keras has them, one array per input."""
    rng = np.random.default_rng(seed)
    inputs = getattr(model, "inputs", None)
    shapes = shapes or [t.shape[1:] for t in inputs]
    kinds = [t.dtype for t in inputs] if inputs else ["float32"] * len(shapes)
    return [
        rng.normal(size=(rows, *shape)).astype(kind)
        if kind.startswith("float")
        else rng.integers(0, 5, (rows, *shape)).astype(kind)
        for shape, kind in zip(shapes, kinds, strict=True)
    ]


def predicted(model, xs):
    """Return Keras' own predictions."""
    made = model(xs if len(xs) > 1 else xs[0], training=False)
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(made)]


def first(x):
    """Put the channels of a Keras array behind the batch axis."""
    return np.moveaxis(x, -1, 1) if x.ndim > 2 else x


def close(got, want, tolerance=1e-5):
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        scale = max(1, float(np.abs(w).max()))
        np.testing.assert_allclose(g, first(w), rtol=tolerance, atol=tolerance * scale)


def agree(model, tolerance=1e-5, shapes=None, **options):
    """Check the predictions for two batch sizes; return the converter."""
    proto = convert(model, **options)
    assert proto.producer_name == "onnxplain", "tf2onnx was not needed"
    onnx.checker.check_model(proto, full_check=True)
    converter = ox.convert(model, **options)
    for rows in (1, 4):
        xs = draw(model, rows, rows, shapes)
        got = converter(xs if len(xs) > 1 else xs[0], channels_first=False)
        close(got, predicted(model, xs), tolerance)
    return converter


def agree_in_onnxruntime(model):
    """Check the predictions of a graph whose operators the engine may not have."""
    proto = convert(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString())
    for rows in (1, 4):
        xs = draw(model, rows, rows)
        feeds = {i.name: first(x) for i, x in zip(session.get_inputs(), xs, strict=True)}
        close(session.run(None, feeds), predicted(model, xs))


def ops(model, **options):
    return [node.op_type for node in convert(model, **options).graph.node]


def names(model):
    return [node.name for node in convert(model).graph.node]


# -- layers ----------------------------------------------------------------------------------------

IMAGE, SIGNAL, TABLE, VOLUME = (9, 8, 4), (11, 4), (6,), (5, 6, 4, 2)

LAYERS = {
    "dense": (TABLE, lambda: L.Dense(5, "relu")),
    "dense_no_bias": (TABLE, lambda: L.Dense(5, use_bias=False)),
    "dense_on_steps": (SIGNAL, lambda: L.Dense(5, "tanh")),
    "dense_on_image": (IMAGE, lambda: L.Dense(5, use_bias=False)),
    "einsum_dense": (SIGNAL, lambda: L.EinsumDense("abc,cde->abde", (11, 2, 3), bias_axes="e")),
    "conv1d": (SIGNAL, lambda: L.Conv1D(3, 4)),
    "conv1d_same": (SIGNAL, lambda: L.Conv1D(3, 4, strides=3, padding="same")),
    "conv1d_causal": (SIGNAL, lambda: L.Conv1D(3, 3, padding="causal", dilation_rate=2)),
    "conv1d_causal_strides": (SIGNAL, lambda: L.Conv1D(3, 4, strides=2, padding="causal")),
    "conv1d_groups": (SIGNAL, lambda: L.Conv1D(6, 3, groups=2)),
    "conv2d": (IMAGE, lambda: L.Conv2D(3, 3)),
    "conv2d_no_bias": (IMAGE, lambda: L.Conv2D(3, (2, 3), use_bias=False)),
    "conv2d_same_even": (IMAGE, lambda: L.Conv2D(3, (4, 2), strides=(2, 3), padding="same")),
    "conv2d_dilation": (IMAGE, lambda: L.Conv2D(3, 3, dilation_rate=(2, 1), padding="same")),
    "conv2d_groups": (IMAGE, lambda: L.Conv2D(8, 3, groups=4, activation="elu")),
    "conv3d": (VOLUME, lambda: L.Conv3D(3, (2, 3, 2), strides=(2, 1, 1), padding="same")),
    "depthwise1d": (SIGNAL, lambda: L.DepthwiseConv1D(3, depth_multiplier=2, padding="same")),
    "depthwise2d": (IMAGE, lambda: L.DepthwiseConv2D(3, depth_multiplier=3, activation="relu")),
    "depthwise2d_strides": (IMAGE, lambda: L.DepthwiseConv2D(3, strides=2, padding="same")),
    "separable1d": (SIGNAL, lambda: L.SeparableConv1D(5, 3, depth_multiplier=2)),
    "separable2d": (IMAGE, lambda: L.SeparableConv2D(5, 3, padding="same", activation="tanh")),
    "transpose1d": (SIGNAL, lambda: L.Conv1DTranspose(3, 4, strides=2, padding="same")),
    "transpose2d": (IMAGE, lambda: L.Conv2DTranspose(3, 3, strides=2)),
    "transpose2d_same": (IMAGE, lambda: L.Conv2DTranspose(3, 3, strides=2, padding="same")),
    "transpose2d_even": (IMAGE, lambda: L.Conv2DTranspose(3, 4, strides=2, padding="same")),
    "transpose2d_gaps": (IMAGE, lambda: L.Conv2DTranspose(3, 2, strides=3)),
    "transpose3d": (VOLUME, lambda: L.Conv3DTranspose(3, 2, strides=2)),
    "max1d": (SIGNAL, lambda: L.MaxPooling1D(3, strides=2)),
    "max2d": (IMAGE, lambda: L.MaxPooling2D((2, 3))),
    "max2d_same": (IMAGE, lambda: L.MaxPooling2D(3, strides=2, padding="same")),
    "max3d": (VOLUME, lambda: L.MaxPooling3D(2)),
    "average1d": (SIGNAL, lambda: L.AveragePooling1D(3)),
    "average2d": (IMAGE, lambda: L.AveragePooling2D((2, 3), strides=(1, 2))),
    "average3d": (VOLUME, lambda: L.AveragePooling3D(2)),
    "global_average1d": (SIGNAL, lambda: L.GlobalAveragePooling1D()),
    "global_average2d": (IMAGE, lambda: L.GlobalAveragePooling2D()),
    "global_average2d_keepdims": (IMAGE, lambda: L.GlobalAveragePooling2D(keepdims=True)),
    "global_average3d": (VOLUME, lambda: L.GlobalAveragePooling3D()),
    "global_max1d": (SIGNAL, lambda: L.GlobalMaxPooling1D()),
    "global_max2d": (IMAGE, lambda: L.GlobalMaxPooling2D()),
    "global_max3d": (VOLUME, lambda: L.GlobalMaxPooling3D()),
    "batch_norm_table": (TABLE, lambda: L.BatchNormalization()),
    "batch_norm_image": (IMAGE, lambda: L.BatchNormalization()),
    "batch_norm_no_scale": (IMAGE, lambda: L.BatchNormalization(scale=False, center=False)),
    "batch_norm_axis": (IMAGE, lambda: L.BatchNormalization(axis=1)),
    "layer_norm": (SIGNAL, lambda: L.LayerNormalization()),
    "layer_norm_axes": (IMAGE, lambda: L.LayerNormalization(axis=[1, 3])),
    "layer_norm_plain": (IMAGE, lambda: L.LayerNormalization(center=False, scale=False)),
    "group_norm": (IMAGE, lambda: L.GroupNormalization(2)),
    "normalization": (
        TABLE,
        lambda: L.Normalization(mean=np.arange(6.0), variance=np.arange(6.0) + 0.5),
    ),
    "normalization_invert": (IMAGE, lambda: L.Normalization(mean=2.0, variance=3.0, invert=True)),
    "rescaling": (IMAGE, lambda: L.Rescaling(1 / 127.5, -1.0)),
    "rescaling_channels": (IMAGE, lambda: L.Rescaling([1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 2.0, 3.0])),
    "flatten_image": (IMAGE, lambda: L.Flatten()),
    "flatten_signal": (SIGNAL, lambda: L.Flatten()),
    "flatten_table": (TABLE, lambda: L.Flatten()),
    "flatten_channels_first": (IMAGE, lambda: L.Flatten(data_format="channels_first")),
    "reshape": (IMAGE, lambda: L.Reshape((8, 4, 9))),
    "reshape_open": (IMAGE, lambda: L.Reshape((-1, 4))),
    "permute": (IMAGE, lambda: L.Permute((3, 1, 2))),
    "repeat_vector": (TABLE, lambda: L.RepeatVector(3)),
    "zero_padding1d": (SIGNAL, lambda: L.ZeroPadding1D((1, 2))),
    "zero_padding2d": (IMAGE, lambda: L.ZeroPadding2D(((1, 2), (0, 3)))),
    "zero_padding3d": (VOLUME, lambda: L.ZeroPadding3D(((1, 0), (2, 1), (0, 1)))),
    "cropping1d": (SIGNAL, lambda: L.Cropping1D((1, 2))),
    "cropping2d": (IMAGE, lambda: L.Cropping2D(((1, 2), (0, 3)))),
    "cropping3d": (VOLUME, lambda: L.Cropping3D(((1, 0), (2, 1), (0, 1)))),
    "up_sampling1d": (SIGNAL, lambda: L.UpSampling1D(3)),
    "up_sampling2d": (IMAGE, lambda: L.UpSampling2D((2, 3))),
    "up_sampling2d_bilinear": (IMAGE, lambda: L.UpSampling2D((2, 3), interpolation="bilinear")),
    "up_sampling3d": (VOLUME, lambda: L.UpSampling3D((2, 1, 3))),
    "dropout": (TABLE, lambda: L.Dropout(0.5)),
    "spatial_dropout": (IMAGE, lambda: L.SpatialDropout2D(0.5)),
    "gaussian_noise": (TABLE, lambda: L.GaussianNoise(1.0)),
    "activity_regularization": (TABLE, lambda: L.ActivityRegularization(0.1)),
    "relu": (TABLE, lambda: L.ReLU()),
    "relu_max": (TABLE, lambda: L.ReLU(max_value=0.7)),
    "relu_threshold": (TABLE, lambda: L.ReLU(threshold=0.3)),
    "relu_threshold_max": (TABLE, lambda: L.ReLU(max_value=0.9, threshold=0.3)),
    "relu_slope": (TABLE, lambda: L.ReLU(negative_slope=0.1)),
    "leaky_relu": (TABLE, lambda: L.LeakyReLU(0.2)),
    "elu": (TABLE, lambda: L.ELU(0.7)),
    "prelu": (IMAGE, lambda: L.PReLU()),
    "prelu_shared": (IMAGE, lambda: L.PReLU(shared_axes=[1, 2])),
    "softmax": (TABLE, lambda: L.Softmax()),
    "softmax_image": (IMAGE, lambda: L.Softmax()),
    "softmax_axis": (IMAGE, lambda: L.Softmax(axis=1)),
    "identity": (TABLE, lambda: L.Identity()),
    "time_distributed": (IMAGE, lambda: L.TimeDistributed(L.Conv1D(3, 2))),
    "random_flip": (IMAGE, lambda: L.RandomFlip()),
    "random_brightness": (IMAGE, lambda: L.RandomBrightness(0.5)),
    "random_contrast": (IMAGE, lambda: L.RandomContrast(0.5)),
    "random_rotation": (IMAGE, lambda: L.RandomRotation(0.5)),
    "random_zoom": (IMAGE, lambda: L.RandomZoom(0.5)),
    "random_translation": (IMAGE, lambda: L.RandomTranslation(0.5, 0.5)),
    "lambda": (IMAGE, lambda: L.Lambda(lambda x: K.relu(x) * 2 - K.mean(x, axis=1)[:, None])),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
def test_layer(kind):
    shape, make = LAYERS[kind]
    agree(sequential(shape, make()))


@pytest.mark.parametrize("kind", LAYERS)
def test_layer_between_convolutions_and_dense(kind):
    """The same layers where the tensor comes channels first and is flattened after."""
    shape, make = LAYERS[kind]
    convolution = {3: L.Conv2D, 2: L.Conv1D, 1: None, 4: L.Conv3D}[len(shape)]
    if convolution is None:
        pytest.skip("a table has no channels")
    agree(sequential(shape, convolution(shape[-1], 1), make(), L.Flatten(), L.Dense(3)))


@only_tensorflow  # Keras on torch takes the padding into the mean
@pytest.mark.parametrize(
    "shape, layer",
    [
        (SIGNAL, lambda: L.AveragePooling1D(3, strides=2, padding="same")),
        (IMAGE, lambda: L.AveragePooling2D(3, strides=2, padding="same")),
        (VOLUME, lambda: L.AveragePooling3D(2, padding="same")),
    ],
)
def test_padding_is_no_part_of_a_mean(shape, layer):
    agree(sequential(shape, layer()))


ACTIVATIONS = [
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "softplus", "softsign",
    "softmax", "log_softmax", "tanh", "tanh_shrink", "hard_tanh", "hard_shrink", "soft_shrink",
    "sigmoid", "log_sigmoid", "hard_sigmoid", "hard_silu", "mish", "exponential", "linear", "glu",
    "squareplus", "sparse_sigmoid",
]  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_as_argument(name):
    agree(sequential(TABLE, L.Dense(6, name)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_as_layer(name):
    agree(sequential(SIGNAL, L.Activation(name)))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: keras.activations.gelu(x, approximate=True),
        lambda x: keras.activations.threshold(x, 0.2, -1.0),
        lambda x: K.tanh(x) * x + 0.5,
        lambda x: x / (1 + K.abs(x)) - K.square(x),
        lambda x: K.where(x > 0, K.log(1 + K.exp(x)), 0.1 * x),
        lambda x: K.clip(K.sqrt(K.abs(x)), 0.2, 0.9),
        lambda x: K.maximum(K.minimum(x, 0.3), -0.4) ** 2,
    ],
)
def test_activation_of_ones_own(function):
    agree(sequential(TABLE, L.Dense(6, function)))


def test_layer_as_activation():
    agree(sequential(TABLE, L.Dense(6, activation=L.LeakyReLU(0.3))))


MERGED = {
    "add": lambda a, b, c: L.Add()([a, b, c]),
    "add_two": lambda a, b, c: L.Add()([a, b]),
    "subtract": lambda a, b, c: L.Subtract()([a, b]),
    "multiply": lambda a, b, c: L.Multiply()([a, b, c]),
    "average": lambda a, b, c: L.Average()([a, b, c]),
    "maximum": lambda a, b, c: L.Maximum()([a, b, c]),
    "minimum": lambda a, b, c: L.Minimum()([a, b, c]),
    "concatenate": lambda a, b, c: L.Concatenate()([a, b, c]),
    "concatenate_axis": lambda a, b, c: L.Concatenate(axis=1)([a, b, c]),
    "operators": lambda a, b, c: (a + b) * c - a / 3 + 1,
    "concatenated_operation": lambda a, b, c: K.concatenate([a, b], axis=-1),
    "stacked": lambda a, b, c: K.max(K.stack([a, b, c], axis=1), axis=1),
}


@pytest.mark.parametrize("shape", [TABLE, SIGNAL, IMAGE])
@pytest.mark.parametrize("kind", MERGED)
def test_several_inputs(kind, shape):
    agree(functional([shape] * 3, MERGED[kind]))


@pytest.mark.parametrize("kind", MERGED)
def test_branches_of_different_layout(kind):
    """One branch comes channels first, one as Keras has it."""

    def build(x):
        a = L.Conv2D(4, 3, padding="same")(x)
        return L.Flatten()(MERGED[kind](a, L.Dense(4)(x), x))

    agree(functional([IMAGE], build))


OPERATIONS = {
    "index": lambda x: x[:, 0],
    "slices": lambda x: x[:, 1:-1, ::2],
    "ellipsis": lambda x: x[..., 1],
    "new_axis": lambda x: x[:, None, 2],
    "reshape": lambda x: K.reshape(x, (-1, 8, 36)),
    "transpose": lambda x: K.transpose(x, (0, 3, 1, 2)),
    "swapaxes": lambda x: K.swapaxes(x, 1, 3),
    "moveaxis": lambda x: K.moveaxis(x, 1, -1),
    "squeeze": lambda x: K.squeeze(x[:, :, :1], axis=2),
    "expand": lambda x: K.expand_dims(x, 1),
    "mean": lambda x: K.mean(x, axis=(1, 2)),
    "sum": lambda x: K.sum(x, axis=-1),
    "min_max": lambda x: K.max(x, axis=1, keepdims=True) - K.min(x, axis=1, keepdims=True),
    "split": lambda x: K.split(x, 2, axis=-1)[1] - K.split(x, [2], axis=3)[0],
    "pad": lambda x: K.pad(x, [[0, 0], [1, 0], [0, 2], [0, 0]]),
    "matmul": lambda x: K.matmul(x, K.transpose(x, (0, 1, 3, 2))),
    "matmul_weight": lambda x: K.matmul(x, np.ones((4, 2), "float32")),
    "attention_by_hand": lambda x: K.matmul(K.softmax(K.matmul(x, K.swapaxes(x, 2, 3))), x),
    "constant_image": lambda x: x * np.linspace(-1, 1, 9 * 8 * 4).reshape(9, 8, 4).astype("f4"),
    "rsqrt": lambda x: x * K.rsqrt(1 + K.square(x)),
}


@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("kind", OPERATIONS)
def test_operations_in_a_graph(kind, convolution):
    def build(x):
        return OPERATIONS[kind](L.Conv2D(4, 3, padding="same")(x) if convolution else x)

    agree(functional([IMAGE], build))


# -- models ----------------------------------------------------------------------------------------


def squeeze_and_excite(x):
    x = L.Conv2D(6, 3, padding="same", activation="relu")(x)
    s = L.Reshape((1, 1, 6))(L.GlobalAveragePooling2D()(x))
    s = L.Conv2D(6, 1, activation="sigmoid")(L.Conv2D(2, 1, activation="relu")(s))
    return L.Dense(3)(L.GlobalMaxPooling2D()(L.Multiply()([x, s])))


def residual(x):
    x = L.Conv2D(4, 3, padding="same", use_bias=False)(x)
    y = L.Activation("relu")(L.BatchNormalization()(x))
    y = L.Conv2D(4, 3, padding="same")(y)
    x = L.Add()([x, y])
    return L.Dense(3, "softmax")(L.Flatten()(L.ReLU()(x)))


def inception(x):
    branches = [
        L.Conv2D(2, 1)(x),
        L.Conv2D(3, 3, padding="same", activation="relu")(x),
        L.Conv2D(2, 1)(L.MaxPooling2D(3, strides=1, padding="same")(x)),
    ]
    return L.Dense(2)(L.GlobalAveragePooling2D()(L.Concatenate()(branches)))


def transformer(x):
    y = L.MultiHeadAttention(2, 3, dropout=0.1)(L.LayerNormalization()(x), x)
    x = x + y
    y = L.Dense(4)(L.Dense(8, "gelu")(L.LayerNormalization()(x)))
    return L.Dense(3)(L.GlobalAveragePooling1D()(L.Add()([x, y])))


def u_net(x):
    down = L.Conv2D(4, 3, padding="same", activation="relu")(x)
    y = L.Conv2D(8, 3, padding="same", activation="relu")(L.MaxPooling2D(2)(down))
    y = L.Concatenate()([L.Conv2DTranspose(4, 2, strides=2)(y), down])
    return L.Conv2D(3, 1, activation="softmax")(y)


def text_like(x):
    return L.Dense(2)(L.Flatten()(L.Conv1D(4, 3, activation="relu")(x)))


FAMILIES = {
    "squeeze_and_excite": (IMAGE, squeeze_and_excite),
    "residual": (IMAGE, residual),
    "inception": (IMAGE, inception),
    "transformer": (SIGNAL, transformer),
    "u_net": ((8, 8, 4), u_net),
    "signal": (SIGNAL, text_like),
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_family(kind):
    shape, build = FAMILIES[kind]
    agree(functional([shape], build))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_between_two_sequences(causal):
    layer = L.MultiHeadAttention(2, 3, value_dim=5, output_shape=4)
    model = functional([(7, 4), (7, 4)], lambda a, b: layer(a, b, use_causal_mask=causal))
    agree(model)


RECURRENT = {
    "lstm": lambda: L.LSTM(5),
    "lstm_sequences": lambda: L.LSTM(5, return_sequences=True, use_bias=False),
    "lstm_backwards": lambda: L.LSTM(5, go_backwards=True),
    "gru": lambda: L.GRU(5),
    "gru_reset_before": lambda: L.GRU(5, reset_after=False, return_sequences=True),
    "simple_rnn": lambda: L.SimpleRNN(5, activation="relu"),
    "bidirectional": lambda: L.Bidirectional(L.LSTM(5, return_sequences=True)),
    "bidirectional_sum": lambda: L.Bidirectional(L.GRU(5), merge_mode="sum"),
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_are_written_natively(kind):
    agree_in_onnxruntime(sequential((6, 3), RECURRENT[kind]()))


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_run(kind):
    agree(functional([(6, 3)], RECURRENT[kind]()))


def test_states_of_an_lstm_are_outputs():
    agree_in_onnxruntime(functional([(6, 3)], lambda x: L.LSTM(4, return_state=True)(x)))


@pytest.mark.parametrize("dtype", ["float32", "int32", "int64"])
def test_embedding(dtype):
    ids = keras.Input((7,), dtype=dtype)
    x = L.Embedding(6, 4)(ids)
    model = randomised(keras.Model(ids, L.Dense(2)(L.Flatten()(x))))
    session = ort.InferenceSession(convert(model).SerializeToString())
    data = np.random.default_rng(0).integers(0, 6, (3, 7)).astype(dtype)
    close(session.run(None, {session.get_inputs()[0].name: data}), predicted(model, [data]))


def test_part_behind_an_embedding():
    ids = keras.Input((7,), dtype="int32")
    embedded = L.Embedding(6, 4, name="words")(ids)
    model = randomised(keras.Model(ids, L.Dense(2)(L.Flatten()(L.Conv1D(3, 2)(embedded)))))
    with pytest.raises(ModelError, match="no input of a float type"):
        ox.convert(model)
    rest = keras.Model(model.get_layer("words").output, model.output)
    assert ox.convert(rest).input_dim == [(4, 7)]
    agree(rest)


def test_embedding_beside_numbers():
    ids, x = keras.Input((3,), dtype="int32"), keras.Input((4,))
    both = L.Concatenate()([L.Flatten()(L.Embedding(6, 2)(ids)), x])
    agree(randomised(keras.Model([ids, x], L.Dense(2)(both))))


def test_shared_layer_and_several_outputs():
    def build(a, b):
        dense = L.Dense(5, "tanh", name="shared")
        a, b = dense(a), dense(b)
        return [L.Dense(2, name="left")(a), L.Add(name="right")([a, b])]

    model = functional([TABLE, TABLE], build)
    converter = agree(model)
    assert sorted(names(model)) == [
        "left", "right", "shared", "shared/Tanh", "shared_2", "shared_2/Tanh",
    ]  # fmt: skip
    assert [o.name for o in convert(model).graph.output] == ["left", "right"]
    assert converter.output_dim == [(2,), (5,)]
    weights = [w.name for w in convert(model).graph.initializer]
    assert sorted(weights) == ["left.bias", "left.weight", "shared.bias", "shared.weight"]


def test_submodels_are_written_in_place():
    body = sequential((9, 8, 4), L.Conv2D(3, 3, name="conv"), L.Flatten())
    inner = functional([(6,)], lambda x: L.Dense(4, "relu", name="dense")(x))

    def build(x, y):
        x, y = body(x), inner(inner_first(y))
        return L.Dense(2, name="dense")(L.Concatenate()([x, y]))

    inner_first = L.Dense(6, name="before")
    body.name, inner.name = "body", "head"
    model = functional([IMAGE, TABLE], build)
    agree(model)
    assert {"body/conv", "head/dense", "head/dense/Relu", "dense"} <= set(names(model))


def test_shared_submodel_on_two_sizes():
    body = keras.Sequential([keras.Input((None, None, 3)), L.Conv2D(2, 3, strides=2), L.ReLU()])

    def build(a, b):
        pool = L.GlobalAveragePooling2D()
        return L.Concatenate()([L.Flatten()(body(a)), pool(body(b))])

    agree(functional([(9, 8, 3), (6, 7, 3)], build))


def test_layer_of_ones_own_is_read_operation_by_operation():
    class Gate(L.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1], shape[-1]), name="w")
            self.inner = L.Dense(shape[-1], "relu", name="inner")
            self.inner.build(shape)

        def call(self, x, training=None):
            y = x * K.sigmoid(K.matmul(x, self.w))
            return K.concatenate([self.inner(y), x if training else -x], axis=-1)

    model = sequential(TABLE, Gate(name="gate"), L.Dense(2))
    calls = len(model.layers[0].inner._inbound_nodes)
    agree(model)
    assert "gate/inner" in names(model)
    assert len(model.layers[0].inner._inbound_nodes) == calls, "the model stays as it is"


def test_training_in_a_graph_changes_no_prediction():
    model = functional([TABLE], lambda x: L.Dense(2)(L.Dropout(0.5)(x, training=True)))
    (x,) = draw(model, 2)
    np.testing.assert_allclose(ox.convert(model)(x)[0], model.predict(x, verbose=0), atol=1e-6)


def test_subclass_that_keeps_the_call_is_known():
    class Narrow(L.Dense):
        pass

    assert ops(sequential(TABLE, Narrow(2, "relu"))) == ["Gemm", "Relu"]


def test_subclass_with_its_own_call_is_not_taken_for_its_base():
    class Doubled(L.Dense):
        def call(self, x):
            return 2 * super().call(x)

    agree(sequential(TABLE, Doubled(3)))


def test_sequential_with_its_own_call():
    class Negative(keras.Sequential):
        def call(self, x, training=None, mask=None):
            return -super().call(x, training=training, mask=mask)

    model = Negative([keras.Input(TABLE), L.Dense(3, "relu")])
    (x,) = draw(model, 2)
    converter = ox.convert(randomised(model), input_dim=TABLE)
    np.testing.assert_allclose(converter(x)[0], predicted(model, [x])[0], atol=1e-6)


def test_inputs_and_outputs_by_name():
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    made = {"z": L.Dense(2, name="last")(left), "y": L.Subtract(name="difference")([left, right])}
    model = randomised(keras.Model({"right": right, "left": left}, made))
    rng = np.random.default_rng(0)
    data = {name: rng.normal(size=(2, 3)).astype("float32") for name in ("right", "left")}
    outputs = [o.name for o in convert(model).graph.output]
    got = dict(zip(outputs, ox.convert(model)(data), strict=True))
    want = model(data)
    for name, key in (("last", "z"), ("difference", "y")):
        np.testing.assert_allclose(got[name], K.convert_to_numpy(want[key]), atol=1e-6)


def test_subclassed_model():
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = L.Conv2D(3, 3, activation="relu"), L.GlobalMaxPooling2D()
            self.dense, self.drop = L.Dense(2, name="last"), L.Dropout(0.5)

        def call(self, x, training=False):
            return self.dense(self.drop(self.pool(self.conv(x)), training=training))

    model = Two()
    model(np.zeros((1, 8, 7, 3), "float32"))
    randomised(model)
    converter = agree(model, shapes=[(8, 7, 3)], input_dim=(3, 8, 7))
    assert converter.input_dim == [(3, 8, 7)]
    assert "last" in [node.name for node in convert(model, input_dim=(3, 8, 7)).graph.node]


@pytest.mark.parametrize("as_list", [True, False])
def test_subclassed_model_with_two_inputs(as_list):
    class Both(keras.Model):
        def __init__(self):
            super().__init__()
            self.left, self.right = L.Dense(3), L.Dense(3)

        if as_list:

            def call(self, inputs):
                return self.left(inputs[0]) * self.right(inputs[1])

        else:

            def call(self, a, b):
                return self.left(a) * self.right(b)

    model = Both()
    xs = [np.random.default_rng(i).normal(size=(2, 3 + i)).astype("float32") for i in (0, 1)]
    model(*([xs] if as_list else xs))
    converter = ox.convert(randomised(model), input_dim=[(3,), (4,)])
    want = K.convert_to_numpy(model(*([xs] if as_list else xs)))
    np.testing.assert_allclose(converter(xs)[0], want, atol=1e-6)


# The smallest inputs that the architectures take.
APPLICATIONS = {
    "VGG16": (32, {}),
    "ResNet50": (32, {}),
    "ResNet50V2": (32, {}),
    "MobileNetV2": (32, {}),
    "MobileNetV3Small": (32, {}),
    "EfficientNetB0": (32, {}),
    "EfficientNetV2B0": (32, {}),
    "DenseNet121": (32, {}),
    "InceptionV3": (75, {}),
    "Xception": (71, {}),
    "NASNetMobile": (32, {}),
    "ConvNeXtTiny": (32, {}),
}


@only_tensorflow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_application(name):
    size, options = APPLICATIONS[name]
    make = getattr(keras.applications, name)
    model = make(weights=None, input_shape=(size, size, 3), classes=10,
                 classifier_activation=None, **options)  # fmt: skip
    converter = ox.convert(randomised(model))
    for rows in (1, 2):
        x = np.random.default_rng(rows).uniform(0, 255, (rows, size, size, 3)).astype("float32")
        close(converter(x, channels_first=False), predicted(model, [x]))


# -- axes ------------------------------------------------------------------------------------------


def test_images_stand_channels_first():
    model = sequential((6, 5, 3), L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(2))
    converter = ox.convert(model)
    assert converter.input_dim == [(3, 6, 5)]
    (x,) = draw(model, 3)
    (want,) = predicted(model, [x])
    np.testing.assert_allclose(converter(x, channels_first=False)[0], want, atol=1e-5)
    np.testing.assert_allclose(converter(first(x))[0], want, atol=1e-5)
    as_keras = ox.Gradient(converter, x, channels_first=False).get_result()
    as_onnx = ox.Gradient(converter, first(x)).get_result()
    assert as_keras.shape == (3, 6, 5, 3, 2)
    np.testing.assert_allclose(np.moveaxis(as_keras, 3, 1), as_onnx, atol=1e-6)


def test_convolutions_need_no_transposes():
    body = [L.Conv2D(4, 3, padding="same"), L.BatchNormalization(), L.ReLU(), L.MaxPooling2D(2),
            L.ZeroPadding2D(1), L.SeparableConv2D(4, 3), L.Dropout(0.1), L.Softmax(),
            L.UpSampling2D(2), L.GlobalAveragePooling2D(), L.Dense(3)]  # fmt: skip
    assert "Transpose" not in ops(sequential((8, 8, 3), *body))
    shape, build = FAMILIES["squeeze_and_excite"]
    assert "Transpose" not in ops(functional([shape], build))


def test_flatten_is_the_only_transpose():
    model = sequential((8, 8, 3), L.Conv2D(4, 3), L.MaxPooling2D(2), L.Flatten(), L.Dense(3))
    assert ops(model) == ["Conv", "MaxPool", "Transpose", "Reshape", "Gemm"]


def test_outputs_stand_channels_first():
    model = sequential((6, 5, 3), L.Conv2D(4, 3), L.Softmax(name="last"))
    converter = agree(model)
    assert converter.output_dim == [(4, 4, 3)]
    assert [o.name for o in convert(model).graph.output] == ["last"]


@pytest.mark.parametrize("kind", ["conv", "flatten_first", "flatten_last"])
def test_model_with_channels_first(kind):
    """Data of such a model stand channels first in Keras already."""
    ways = {"conv": [], "flatten_first": [L.Flatten(data_format="channels_first")],
            "flatten_last": [L.Flatten()]}  # fmt: skip
    if BACKEND == "tensorflow" and kind == "conv":
        pytest.skip("TensorFlow has no such convolution on CPU")
    first_layer = L.Conv2D(4, 3, data_format="channels_first") if BACKEND == "torch" else (
        L.ZeroPadding2D(1, data_format="channels_first")
    )  # fmt: skip
    model = sequential((3, 6, 5), first_layer, *ways[kind])
    converter = ox.convert(model)
    assert converter.input_dim == [(3, 6, 5)]
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 5)).astype("float32")
    np.testing.assert_allclose(converter(x)[0], predicted(model, [x])[0], atol=1e-5)


# -- names -----------------------------------------------------------------------------------------


def test_rules_are_picked_by_layer_names():
    model = sequential((8, 8, 3), L.Conv2D(4, 3, activation="relu", name="edges"), L.Flatten(),
                       L.Dense(2, name="head"))  # fmt: skip
    converter = ox.convert(model)
    x = draw(model, 2)[0]
    plain = ox.LRP(converter, x, channels_first=False).get_result()
    picked = ox.LRP(
        converter, x, channels_first=False, rule_name={"edges": "alpha_beta", "head": "epsilon"}
    ).get_result()
    assert np.abs(plain - picked).max() > 1e-3


def test_inner_tensors_have_the_names_of_layers():
    model = sequential(TABLE, L.Dense(4, "relu", name="hidden"), L.Dense(2))
    converter = ox.convert(model, outputs=["hidden"])
    hidden = keras.Model(model.inputs[0], model.layers[0].output)
    (x,) = draw(model, 3)
    np.testing.assert_allclose(converter(x)[0], predicted(hidden, [x])[0], atol=1e-6)


# -- float64 ---------------------------------------------------------------------------------------


@only_tensorflow  # Keras on torch adds biases in float32
def test_float64_stays_float64():
    keras.config.set_floatx("float64")
    try:
        model = sequential((7, 6, 3), L.Conv2D(4, 3, activation="tanh"), L.BatchNormalization(),
                           L.LeakyReLU(0.3), L.Flatten(), L.Dense(2))  # fmt: skip
        (x,) = draw(model, 3)
        (want,) = predicted(model, [x])
    finally:
        keras.config.set_floatx("float32")
    assert want.dtype == np.float64
    got = ox.convert(model, dtype="double")(x, channels_first=False)[0]
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_half_precision_weights_are_kept():
    model = sequential(TABLE, L.Dense(4, "relu", dtype="mixed_float16"), L.Dense(2))
    proto = convert(model)
    kernel = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    np.testing.assert_array_equal(kernel, K.convert_to_numpy(model.layers[0].kernel))


# -- explanations ----------------------------------------------------------------------------------


def small_cnn():
    return sequential(
        (8, 7, 3),
        L.Conv2D(4, 3, activation="relu"),
        L.BatchNormalization(),
        L.AveragePooling2D(2),
        L.Conv2D(3, 2, padding="same", activation="softplus"),
        L.MaxPooling2D(2),
        L.Flatten(),
        L.Dense(5, "tanh"),
        L.Dense(2, "softmax"),
    )


@only_tensorflow
@pytest.mark.parametrize("kind", ["cnn", *FAMILIES])
def test_gradient_is_that_of_tensorflow(kind):
    import tensorflow as tf

    model = small_cnn() if kind == "cnn" else functional([FAMILIES[kind][0]], FAMILIES[kind][1])
    x = tf.constant(draw(model, 3)[0])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        flat = tf.reshape(model(x, training=False), (3, -1))
        chosen = [tf.reduce_sum(flat[:, i]) for i in (0, 1)]
    want = [tape.gradient(y, x).numpy() for y in chosen]
    converter = ox.convert(model)
    if kind == "u_net":  # nodes (0, 0, 0) and (0, 0, 1), channels first in the converter
        nodes = [0, 64]
    else:
        nodes = [0, 1]
    result = ox.Gradient(
        converter, x.numpy(), channels_first=False, ignore_last_act=False, output_idx=nodes
    ).get_result()
    for i, gradient in enumerate(want):
        np.testing.assert_allclose(result[..., i], gradient, atol=1e-5)


METHODS = [
    lambda c, x: ox.Gradient(c, x, channels_first=False),
    lambda c, x: ox.SmoothGrad(c, x, channels_first=False, n=3, seed=0),
    lambda c, x: ox.IntegratedGradient(c, x, channels_first=False, n=5),
    lambda c, x: ox.ExpectedGradient(c, x, data_ref=x, channels_first=False, n=5, seed=0),
    lambda c, x: ox.LRP(c, x, channels_first=False, rule_name="alpha_beta"),
    lambda c, x: ox.DeepLift(c, x, channels_first=False),
    lambda c, x: ox.DeepLift(c, x, channels_first=False, rule_name="reveal_cancel"),
    lambda c, x: ox.DeepSHAP(c, x, data_ref=x, channels_first=False),
    lambda c, x: ox.ConnectionWeights(c, x, channels_first=False, times_input=True),
]


@pytest.mark.parametrize("method", METHODS)
def test_methods_run(method):
    model = small_cnn()
    (x,) = draw(model, 3)
    result = method(ox.convert(model), x).get_result()
    assert result.shape == (3, 8, 7, 3, 2)
    assert np.isfinite(result).all()
    assert np.abs(result).max() > 0


def test_deeplift_adds_up():
    model = small_cnn()
    (x,) = draw(model, 3)
    result = ox.DeepLift(ox.convert(model, dtype="double"), x, channels_first=False, dtype="double")
    sums = result.get_result().reshape(3, -1, 2).sum(1)
    logits = keras.Model(model.inputs[0], model.layers[-2].output)
    w, b = (K.convert_to_numpy(v).astype(float) for v in model.layers[-1].weights)
    z, z0 = (predicted(logits, [v])[0].astype(float) @ w + b for v in (x, np.zeros_like(x[:1])))
    np.testing.assert_allclose(sums, z - z0, atol=1e-4)


# -- examples of the documents ---------------------------------------------------------------------


def test_sequential_example():
    model = sequential(
        (10, 10, 3),
        L.Conv2D(5, 2, strides=2, activation="relu"),
        L.MaxPooling2D(2),
        L.Flatten(),
        L.Dense(2, "softmax"),
    )
    converter = agree(model)
    assert converter.input_dim == [(3, 10, 10)]
    assert converter.output_dim == [(2,)]


def two_inputs():
    def build(image, table):
        x = L.Conv2D(5, 2, padding="same", activation="relu", name="conv_1")(image)
        x = L.AveragePooling2D(2)(x)
        x = L.Flatten()(L.Dropout(0.25)(L.Conv2D(4, 2, activation="relu", name="conv_2")(x)))
        x = L.Concatenate()([x, table])
        x = L.Dropout(0.3)(L.Dense(50, "relu")(x))
        return L.Dense(3)(x)

    return functional([(10, 10, 3), (20,)], build)


def test_two_input_example():
    model = two_inputs()
    converter = agree(model)
    assert converter.input_dim == [(3, 10, 10), (20,)]
    assert converter.output_dim == [(3,)]
    graph = converter.graph
    shapes = converter.trial.shapes
    made = {node.name: shapes[node.outputs[0]][1:] for node in graph.nodes}
    assert made["conv_1"] == (5, 10, 10)
    assert made["average_pooling2d"] == (5, 5, 5)
    assert made["conv_2"] == (4, 4, 4)
    assert made["flatten"] == (64,)
    assert made["concatenate"] == (84,)
    assert made["dense"] == (50,)
    xs = draw(model, 4)
    result = ox.LRP(converter, xs, channels_first=False).get_result()
    assert [r.shape for r in result.values()] == [(4, 10, 10, 3, 3), (4, 20, 3)]


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("kind", ["sequential", "functional"])
def test_files(tmp_path, suffix, kind):
    model = small_cnn() if kind == "sequential" else two_inputs()
    path = tmp_path / f"model{suffix}"
    model.save(path)
    xs = draw(model, 2)
    data = xs if len(xs) > 1 else xs[0]
    for given in (path, str(path)):
        got = ox.convert(given)(data, channels_first=False)
        want = ox.convert(model)(data, channels_first=False)
        np.testing.assert_array_equal(got[0], want[0])


def test_file_with_a_class_of_ones_own(tmp_path):
    class Twice(L.Layer):
        def call(self, x):
            return 2 * x

    model = sequential(TABLE, L.Dense(2), Twice())
    path = tmp_path / "model.keras"
    model.save(path)
    with pytest.raises(ModelFileError, match="custom_objects"):
        ox.convert(path)
    (x,) = draw(model, 2)
    got = ox.convert(path, custom_objects={"Twice": Twice})(x)[0]
    np.testing.assert_allclose(got, predicted(model, [x])[0], atol=1e-6)


# -- input_dim -------------------------------------------------------------------------------------


def test_unbuilt_model_needs_input_dim():
    model = keras.Sequential([L.Conv2D(2, 3), L.Flatten(), L.Dense(2)])
    with pytest.raises(ArgumentError, match="not built yet.*input_dim.*channels first"):
        ox.convert(model)
    converter = ox.convert(model, input_dim=(3, 7, 6))
    assert converter.input_dim == [(3, 7, 6)]
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype("float32")
    close(converter(x, channels_first=False), predicted(model, [x]))


def test_open_axes_need_input_dim():
    model = sequential((None, None, 3), L.Conv2D(2, 3), L.GlobalAveragePooling2D())
    with pytest.raises(ArgumentError, match=r"shape \(3, \?, \?\): give input_dim"):
        ox.convert(model)
    agree(model, input_dim=(3, 8, 5), shapes=[(8, 5, 3)])


@pytest.mark.parametrize(
    "given, message",
    [
        ((10, 9, 3), r"does not fit input 'input_layer' of shape \(3, 10, 9\); channels stand"),
        ((3, 10), r"does not fit"),
        ([(3, 10, 9), (2,)], r"2 shapes, the model has 1 input"),
        ((3, 10, -9), r"whole numbers > 0"),
        ("abc", r"whole numbers > 0"),
        (3, r"whole numbers > 0"),
    ],
)
def test_wrong_input_dim(given, message):
    model = sequential((10, 9, 3), L.Conv2D(2, 3), L.Flatten())
    with pytest.raises(ShapeError, match=message):
        ox.convert(model, input_dim=given)


def test_unbuilt_model_that_does_not_run_on_the_shape():
    model = keras.Sequential([L.Conv2D(2, 5), L.Flatten()])
    with pytest.raises(ShapeError, match=r"does not run on input_dim \(3, 4, 4\)"):
        ox.convert(model, input_dim=(3, 4, 4))


# -- refusals --------------------------------------------------------------------------------------


def test_a_layer_is_no_model():
    with pytest.raises(DtypeError, match="put a layer into keras.Sequential"):
        ox.convert(L.Dense(3))


def test_missing_file(tmp_path):
    with pytest.raises(ModelFileError, match="there is no file"):
        ox.convert(tmp_path / "none.keras")


@pytest.mark.parametrize("name", ["other.keras", "other.h5"])
def test_file_that_holds_something_else(tmp_path, name):
    (tmp_path / name).write_bytes(b"no model at all")
    with pytest.raises(ModelFileError, match="cannot load"):
        ox.convert(tmp_path / name)


def test_h5_of_another_kind(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["table"] = np.arange(6)
    with pytest.raises(ModelFileError, match="holds no model, perhaps weights only"):
        ox.convert(tmp_path / "data.h5")


def test_file_of_weights(tmp_path):
    path = tmp_path / "model.weights.h5"
    sequential(TABLE, L.Dense(2)).save_weights(path)
    with pytest.raises(ModelFileError, match="weights only"):
        ox.convert(path)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_missing_keras_is_named_with_the_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(MissingPackageError, match=r"needs keras: pip install 'onnxplain\[keras\]'"):
        ox.convert(name)


def test_file_with_code_is_not_run(tmp_path):
    path = tmp_path / "model.keras"
    sequential(TABLE, L.Lambda(lambda x: 2 * x)).save(path)
    with pytest.raises(ModelFileError, match="if you trust it, load it"):
        ox.convert(path)


class Sorted(L.Layer):
    def call(self, x):
        return K.sort(x, axis=-1)


REFUSED = {
    "operation": (TABLE, lambda: [Sorted(name="by_size"), L.Dense(2, keras.activations.gelu)],
                  r"layer 'by_size' \(Sorted\).*Sort"),
    "mask": (SIGNAL, lambda: [L.Masking(name="mask"), L.Conv1D(4, 2, groups=2), L.LSTM(2)],
             r"layer 'mask' \(Masking\).*mask"),
    "normalization": (TABLE, lambda: [L.Normalization(mean=1.0, variance=2.0), Sorted(name="s")],
                      r"layer 's' \(Sorted\)"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_neither_way_can_write_is_refused_by_name(kind):
    shape, make, message = REFUSED[kind]
    with pytest.raises(ModelError, match=message):
        ox.convert(sequential(shape, *make()))


def test_training_in_code_of_ones_own_is_refused():
    class Always(L.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.drop = L.Dropout(0.5, name="drop")

        def call(self, x):
            return self.drop(x, training=True)

    with pytest.raises(ModelError, match=r"layer 'drop' \(Dropout\).*training=True"):
        ox.convert(sequential(TABLE, Always(), L.Dense(2, "gelu")))


# -- tf2onnx ---------------------------------------------------------------------------------------


@only_tensorflow
def test_tf2onnx_writes_what_is_not_known():
    pytest.importorskip("tf2onnx")
    model = sequential((8, 8, 3), L.Conv2D(4, 3, activation="relu"), L.UnitNormalization(),
                       L.Flatten(), L.Dense(2))  # fmt: skip
    converter = ox.convert(model)
    assert converter.input_dim == [(3, 8, 8)]
    for rows in (1, 4):
        (x,) = draw(model, rows)
        close(converter(x, channels_first=False), predicted(model, [x]))


# -- the other backend -----------------------------------------------------------------------------


@only_tensorflow
def test_on_torch():
    """Layers, operations and families again, in a process of their own, with Keras on torch."""
    pytest.importorskip("torch")
    chosen = "test_layer or test_family or test_activation or test_files or test_model_with"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, __file__],
        env={**os.environ, "KERAS_BACKEND": "torch"},
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout
