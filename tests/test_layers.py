"""innsight's list format as a dict: its layers computed in plain NumPy, its checks, and back."""

import copy
import doctest
import json
import re
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import onnxplain as ox
from networks import graph
from onnxplain.errors import ModelError, ModelFileError, OnnxplainError, ShapeError
from onnxplain_converters.layers import convert
from onnxplain_converters.to_layers import to_layers

# -- a network in list format, computed with loops -------------------------------------------------

ACT = {
    "linear": lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "softplus": lambda z: np.log1p(np.exp(z)),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "logistic": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "softmax": lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True),
}


def padded(x, padding, mode="constant", value=0.0):
    """Pad (left, right[, top, bottom]) around the last axes."""
    pairs = [(0, 0)] * x.ndim
    for axis, pair in enumerate(zip(padding[::2], padding[1::2], strict=True), 1):
        pairs[-axis] = pair
    how = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    extra = {"constant_values": value} if mode == "constant" else {}
    return np.pad(x, pairs, mode=how[mode], **extra)


def windows(x, kernel, strides, dilations):
    """Return (place, window) for each place of a kernel; windows are (batch, channels, *kernel)."""
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    counts = [(n - s) // t + 1 for n, s, t in zip(x.shape[2:], spans, strides, strict=True)]
    for place in np.ndindex(*counts):
        cut = [
            slice(p * t, p * t + s, d)
            for p, t, s, d in zip(place, strides, spans, dilations, strict=True)
        ]
        yield place, counts, x[(..., *cut)]


def slide(x, kernel, strides, dilations, function):
    out = {place: (counts, function(cut)) for place, counts, cut in windows(
        x, kernel, strides, dilations)}  # fmt: skip
    counts = next(iter(out.values()))[0]
    y = np.stack([value for _, value in out.values()], -1)
    return y.reshape(*y.shape[:-1], *counts)


def two(value, rank):
    value = np.atleast_1d(value).tolist()
    return value * rank if len(value) == 1 else value


def conv(layer, x):
    w, rank = np.asarray(layer["weight"]), x.ndim - 2
    p = np.atleast_1d(layer.get("padding", 0)).tolist()
    p = p * 2 * rank if len(p) == 1 else [p[0], p[0], p[1], p[1]] if len(p) == 2 == rank else p
    cells = tuple(range(1, w.ndim))
    z = slide(
        padded(x, p),
        w.shape[2:],
        two(layer.get("stride", 1), rank),
        two(layer.get("dilation", 1), rank),
        lambda cut: np.tensordot(cut, w, (cells, cells)),
    )
    return ACT[layer["activation_name"]](z + np.reshape(layer["bias"], (-1, *[1] * rank)))


def pool(layer, x):
    rank = x.ndim - 2
    kernel = two(layer["kernel_size"], rank)
    reduce = np.max if layer["type"].startswith("Max") else np.mean
    strides = two(layer.get("strides", kernel), rank)
    return slide(x, kernel, strides, [1] * rank, lambda cut: reduce(cut, tuple(range(2, cut.ndim))))


def batch_norm(layer, x):
    g, m, v = (np.asarray(layer[k]) for k in ("gamma", "run_mean", "run_var"))
    b = np.asarray(layer.get("beta", np.zeros_like(g)))
    g, m, v, b = (a.reshape(-1, *[1] * (x.ndim - 2)) for a in (g, m, v, b))
    return g * (x - m) / np.sqrt(v + layer["eps"]) + b


def flatten(layer, x):
    start, end = layer.get("start_dim", 2), layer.get("end_dim", -1)
    start, end = (k - 1 if k > 0 else k + x.ndim for k in (start, end))
    return x.reshape(*x.shape[:start], -1, *x.shape[end + 1 :])


def plain(layer, xs):
    kind, x = layer["type"], xs[0]
    if kind == "Dense":
        z = x @ np.asarray(layer["weight"]).T + np.asarray(layer["bias"])
        return ACT[layer["activation_name"]](z)
    if kind.startswith("Conv"):
        return conv(layer, x)
    if kind == "GlobalPooling":
        method = {"average": np.mean, "max": np.max}[layer["method"]]
        return method(x, axis=tuple(range(2, x.ndim)))
    if "Pooling" in kind:
        return pool(layer, x)
    if kind == "Padding":
        return padded(x, layer["padding"], layer.get("mode", "constant"), layer.get("value", 0))
    if kind == "Concatenate":
        axis = layer["axis"]
        return np.concatenate(xs, axis - 1 if axis > 0 else axis)
    return {
        "BatchNorm": lambda: batch_norm(layer, x),
        "Flatten": lambda: flatten(layer, x),
        "Add": lambda: sum(xs),
        "Activation": lambda: ACT[layer["act_name"]](x),
        "Skipping": lambda: x,
    }[kind]()


def run_plain(model, inputs):
    values = {}
    fed = dict(zip(model["input_nodes"], inputs, strict=True))
    for i, layer in enumerate(model["layers"], 1):
        values[i] = plain(layer, [values[j] if j else fed[i] for j in layer["input_layers"]])
    return [values[k] for k in model["output_nodes"]]


def run_onnxruntime(model, inputs):
    """Run the converted model in float32: onnxruntime has no convolution in float64."""
    proto = convert(model | {"layers": [single(layer) for layer in model["layers"]]})
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    names = [i.name for i in session.get_inputs()]
    return session.run(None, {k: x.astype("float32") for k, x in zip(names, inputs, strict=True)})


def single(layer):
    numbers = ("weight", "bias", "gamma", "beta", "run_mean", "run_var")
    return {k: np.asarray(v, "float32") if k in numbers else v for k, v in layer.items()}


def run(model, inputs):
    return ox.convert(model, dtype="double")(inputs)


# -- building networks -----------------------------------------------------------------------------

RNG = np.random.default_rng(7)


def dense(n, m, activation="linear", **keys):
    weights = {"weight": RNG.normal(size=(m, n)), "bias": RNG.normal(size=m)}
    return {"type": "Dense", **weights, "activation_name": activation, **keys}


def chain(layers, input_dim):
    """Link layers one after the other."""
    n = len(layers)
    linked = [
        {**layer, "input_layers": [i], "output_layers": [i + 2 if i < n - 1 else -1]}
        for i, layer in enumerate(layers)
    ]
    return {"input_dim": input_dim, "input_nodes": [1], "output_nodes": [n], "layers": linked}


def convolution(rank, activation="linear", **keys):
    kernel = (3, 2)[:rank]
    weights = {"weight": RNG.normal(size=(4, 2, *kernel)), "bias": RNG.normal(size=4)}
    return {"type": f"Conv{rank}D", **weights, "activation_name": activation, **keys}


NORM = {
    "type": "BatchNorm",
    "num_features": 2,
    "eps": 1e-3,
    "gamma": [1.5, -0.5],
    "beta": [0.1, 0.2],
    "run_mean": [0.3, -1.0],
    "run_var": [0.5, 0.0],
}
NO_BETA = {k: v for k, v in NORM.items() if k != "beta"}
V, S, I = (5,), (2, 9), (2, 7, 6)  # noqa: E741 a vector, a signal, an image

LAYERS = [
    *[(V, dense(5, 3, name)) for name in ACT],
    (S, dense(9, 3, "tanh")),
    *[(S, convolution(1, **keys)) for keys in (
        {}, {"activation": "tanh"}, {"stride": 2}, {"padding": 2}, {"padding": [2, 0]},
        {"dilation": 3}, {"stride": [2], "padding": [1, 3], "dilation": [2]},
    )],
    *[(I, convolution(2, **keys)) for keys in (
        {}, {"activation": "relu"}, {"activation": "softmax"}, {"stride": [2, 1]}, {"stride": 2},
        {"padding": 1}, {"padding": [1, 2]}, {"padding": [0, 1, 2, 3]}, {"dilation": [2, 3]},
        {"dilation": 2, "stride": [1, 2], "padding": [3, 0, 1, 2]},
    )],
    *[(S, {"type": f"{kind}Pooling1D", "kernel_size": 3, **keys})
      for kind in ("Max", "Average") for keys in ({}, {"strides": 2})],
    *[(I, {"type": f"{kind}Pooling2D", "kernel_size": [3, 2], **keys})
      for kind in ("Max", "Average") for keys in ({}, {"strides": [2, 1]})],
    *[(dim, layer) for dim in ((2,), S, I) for layer in (NORM, NO_BETA)],
    *[(I, {"type": "Flatten", **keys}) for keys in (
        {}, {"start_dim": 3}, {"start_dim": 2, "end_dim": 3}, {"start_dim": -2, "end_dim": -1},
        {"start_dim": 3, "end_dim": 3},
    )],
    *[(dim, {"type": "GlobalPooling", "method": m}) for dim in (S, I) for m in ("average", "max")],
    (V, {"type": "Padding", "padding": [1, 2]}),
    (S, {"type": "Padding", "padding": [1, 2], "value": 1.5}),
    *[(I, {"type": "Padding", "padding": [1, 2, 3, 0], "mode": mode, "value": 0.5})
      for mode in ("constant", "reflect", "replicate", "circular")],
    (I, {"type": "Padding", "padding": [2, 1], "mode": "replicate"}),
    *[(S, {"type": "Activation", "act_name": name}) for name in ACT],
    (S, {"type": "Skipping"}),
]  # fmt: skip


def case_name(value):
    return value["type"] if isinstance(value, dict) else str(value)


@pytest.mark.parametrize("dim, layer", LAYERS, ids=case_name)
@pytest.mark.parametrize("batch", [1, 4])
def test_layer_computes_what_plain_numpy_does(dim, layer, batch):
    # Outputs are vectors, so a Flatten stands last.
    model = chain([layer, {"type": "Flatten"}], dim)
    x = np.random.default_rng(0).normal(size=(batch, *dim))
    expected = run_plain(model, [x])
    np.testing.assert_allclose(run(model, x)[0], expected[0], rtol=0, atol=1e-12)
    if "weight" in layer or "gamma" in layer:
        np.testing.assert_allclose(run_onnxruntime(model, [x])[0], expected[0], rtol=0, atol=2e-4)


def merging(kind, count, input_dim, /, **keys):
    """A model that splits its input into copies and merges them."""
    copies = [
        {"type": "Activation", "act_name": ("tanh", "relu", "sigmoid")[k % 3],
         "input_layers": [1], "output_layers": [count + 2]}
        for k in range(count)
    ]  # fmt: skip
    many = list(range(2, count + 2))
    layers = [
        {"type": "Skipping", "input_layers": [0], "output_layers": many},
        *copies,
        {"type": kind, **keys, "input_layers": many, "output_layers": [count + 3]},
        {"type": "Flatten", "input_layers": [count + 2], "output_layers": [-1]},
    ]
    ends = {"input_nodes": [1], "output_nodes": [len(layers)]}
    return {"input_dim": input_dim, **ends, "layers": layers}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dim", [V, S, I])
def test_add_sums_any_number_of_inputs(count, dim):
    model = merging("Add", count, dim)
    x = np.random.default_rng(1).normal(size=(3, *dim))
    np.testing.assert_allclose(run(model, x)[0], run_plain(model, [x])[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "dim, axis", [(V, 2), (V, -1), (S, 2), (S, 3), (S, -1), (I, 2), (I, 4), (I, -1), (I, -2)]
)
@pytest.mark.parametrize("kind, key", [("Concatenate", "axis"), ("Concatenation", "dim")])
def test_concatenate_joins_the_axis_counted_from_one(dim, axis, kind, key):
    model = merging(kind, 3, dim, **{key: axis})
    x = np.random.default_rng(1).normal(size=(3, *dim))
    y = run(model, x)[0]
    expected = run_plain(merging("Concatenate", 3, dim, axis=axis), [x])[0]
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)


def two_inputs_two_outputs():
    return {
        "input_dim": [[2, 9], [3]],
        "input_nodes": [1, 3],
        "output_nodes": [5, 4],
        "layers": [
            {**convolution(1, "relu"), "input_layers": [0], "output_layers": [2]},
            {"type": "GlobalPooling", "method": "max", "input_layers": [1], "output_layers": [4]},
            {**dense(3, 2, "tanh"), "input_layers": 0, "output_layers": 4},
            # An output that another layer uses as well.
            {"type": "Concatenate", "axis": 2, "input_layers": [2, 3], "output_layers": [5, -1]},
            {**dense(6, 2, "softmax"), "input_layers": 4, "output_layers": -1},
        ],
    }


def test_inputs_and_outputs_stand_in_the_order_of_their_nodes():
    model = two_inputs_two_outputs()
    rng = np.random.default_rng(2)
    x = [rng.normal(size=(3, 2, 9)), rng.normal(size=(3, 3))]
    linked = copy.deepcopy(model)
    for layer in linked["layers"]:
        layer["input_layers"] = np.atleast_1d(layer["input_layers"]).tolist()
    expected = run_plain(linked, x)
    c = ox.convert(model, dtype="double")
    assert c.input_dim == [(2, 9), (3,)]
    assert c.output_dim == [(2,), (6,)]
    for y, z in zip(c(x), expected, strict=True):
        np.testing.assert_allclose(y, z, rtol=0, atol=1e-12)


def test_layers_may_be_listed_in_any_order():
    model = chain([dense(5, 4, "relu"), dense(4, 3, "tanh"), dense(3, 2)], V)
    # Layer 1 becomes number 3: the numbers in the links move along.
    move = {0: 0, 1: 3, 2: 1, 3: 2, -1: -1}
    layers = [model["layers"][k] for k in (1, 2, 0)]
    layers = [
        {**layer, **{k: [move[i] for i in layer[k]] for k in ("input_layers", "output_layers")}}
        for layer in layers
    ]
    moved = {"input_dim": V, "input_nodes": [3], "output_nodes": [2], "layers": layers}
    x = np.random.default_rng(3).normal(size=(2, 5))
    np.testing.assert_array_equal(run(moved, x)[0], run(model, x)[0])


def test_nodes_are_named_by_type_and_number():
    model = chain([convolution(2, "relu"), {"type": "Flatten"}, dense(100, 2)], I)
    names = [node.name for node in convert(model).graph.node]
    assert names == ["Conv2D_1", "Conv2D_1/Relu", "Flatten_2", "Dense_3"]
    x = np.random.default_rng(4).normal(size=(2, *I))
    run = ox.LRP(ox.convert(model), x, rule_name={"Conv2D_1": "epsilon", "Dense_3": "alpha_beta"})
    ledger = run.ledger().set_index("node")["rule"]
    assert "psilon" in str(ledger["Conv2D_1"])


def test_float32_weights_stay_float32_and_others_are_float64():
    model = chain([dense(5, 3)], V)
    assert convert(model).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.DOUBLE
    for key in ("weight", "bias"):
        model["layers"][0][key] = model["layers"][0][key].astype(np.float32)
    assert convert(model).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


# -- names -----------------------------------------------------------------------------------------


def test_names_of_the_model_are_kept_and_can_be_overridden():
    model = chain([dense(2, 3)], (2,)) | {
        "input_names": ["a", "b"],
        "output_names": [["u", "v", "w"]],
    }
    c = ox.convert(model)
    assert c.input_names == [[["a", "b"]]]
    assert c.output_names == [[["u", "v", "w"]]]
    assert ox.convert(model, input_names=["p", "q"]).input_names == [[["p", "q"]]]


def test_names_default_to_innsights():
    c = ox.convert(two_inputs_two_outputs())
    length = [f"L{i}" for i in range(1, 10)]
    assert c.input_names == [[["C1", "C2"], length], [["X1", "X2", "X3"]]]
    assert c.output_names == [[["Y1", "Y2"]], [[f"Y{i}" for i in range(1, 7)]]]


# -- checks ----------------------------------------------------------------------------------------


def valid():
    """A small model that each entry of the tables below breaks in one place."""
    layers = [
        {**convolution(2, "relu"), "dim_in": [2, 7, 6], "dim_out": [4, 5, 5]},
        {"type": "MaxPooling2D", "kernel_size": [2, 2]},
        {"type": "Flatten"},
        dense(16, 3, "softmax"),
    ]
    return chain(layers, [2, 7, 6]) | {"output_dim": [3]}


def top(**keys):
    return lambda m: m.update(keys)


def layer(k, **keys):
    return lambda m: m["layers"][k - 1].update(keys)


def without(k, key):
    return lambda m: m["layers"][k - 1].pop(key)


BROKEN = {
    "no layers": (lambda m: m.pop("layers"), "no 'layers'"),
    "empty layers": (top(layers=[]), "no 'layers'"),
    "layers no list": (top(layers=5), "layers must be a list"),
    "layer no dict": (lambda m: m["layers"].insert(0, 3), "layer 1 must be a dict"),
    "no input_dim": (lambda m: m.pop("input_dim"), "no 'input_dim'"),
    "input_dim of text": (top(input_dim=["a", 2]), "input_dim must be a shape"),
    "input_dim with a fraction": (top(input_dim=[2, 7.5, 6]), "input_dim must be a shape"),
    "input_dim with a zero": (top(input_dim=[2, 0, 6]), "input_dim must be a shape"),
    "two input_dim for one node": (top(input_dim=[[2, 7, 6], [3]]), "2 shapes .* 1 input_nodes"),
    "input_nodes of text": (top(input_nodes="one"), "input_nodes must be numbers .* 1 to 4"),
    "input_nodes out of range": (top(input_nodes=[9]), "input_nodes must be numbers"),
    "output_nodes out of range": (top(output_nodes=[0]), "output_nodes must be numbers"),
    "output_nodes twice": (top(output_nodes=[4, 4]), "output_nodes names a layer twice"),
    "input_nodes without a zero": (
        top(input_nodes=[2]), "layer 1 .* input_nodes must name just the layers with a 0"),
    "output without a node": (layer(3, output_layers=[4, -1]), "layer 3 .* -1 in output_layers"),
    "output_dim of text": (top(output_dim="x"), "output_dim must be a shape"),
    "output_dim differs": (top(output_dim=[4]), r"output_dim is \(4,\), the layers give \(3,\)"),
    "type unknown": (layer(2, type="LSTM"), "layer 2 has type 'LSTM'; known are Dense, Conv1D"),
    "type missing": (without(2, "type"), "layer 2 has type None"),
    "input_layers of text": (layer(2, input_layers="a"), "layer 2 .* input_layers must be whole"),
    "input_layers NaN": (layer(2, input_layers=[np.nan]), "input_layers must be whole numbers"),
    "output_layers fraction": (layer(2, output_layers=[1.5]), "output_layers must be whole"),
    "input_layers out of range": (layer(2, input_layers=[7]), "input_layers names 7; .* 1 to 4"),
    "output_layers out of range": (layer(4, output_layers=[9]), "output_layers names 9"),
    "links disagree": (layer(3, input_layers=[1]), "layer 2 is .* of layer 3 is .* do not agree"),
    "dim_in differs": (
        layer(1, dim_in=[7, 6, 2]), r"layer 1 .* input shape .* computed \(2, 7, 6\), .*\(7, 6, 2"),
    "dim_out differs": (
        layer(1, dim_out=[1, 5, 5]), r"layer 1 .* output shape .* computed \(4, 5, 5\)"),
    "dim_in of text": (layer(1, dim_in="abc"), "dim_in of layer 1 must be a shape"),
    "weight axes swapped": (
        layer(4, weight=np.ones((16, 3)), bias=np.ones(16)),
        r"layer 4 \(Dense\): cannot run: the weight is for 3 inputs, there are 16. Its weight has "
        r"shape \(16, 3\), .*\(16,\).*\(out, in\) for Dense"),
    "weight of another rank": (
        layer(1, weight=np.ones((4, 2, 3))), r"cannot run: weight needs 4 axes \(out, in, kh"),
    "channels last": (layer(1, weight=np.ones((4, 3, 2, 2))), "for 3 channels, there are 2"),
    "kernel too large": (layer(2, kernel_size=[6, 2]), "kernel is larger than the .* input"),
    "Conv1D on an image": (
        layer(1, type="Conv1D", weight=np.ones((4, 2, 3))), r"axes \(channels, length\)"),
    "no weight": (without(4, "weight"), r"layer 4 \(Dense\): has no 'weight'"),
    "no bias": (without(4, "bias"), "has no 'bias'"),
    "no activation_name": (without(4, "activation_name"), "has no 'activation_name'"),
    "bias too short": (layer(4, bias=[1.0]), "bias has 1 elements, expected 3"),
    "weight of text": (layer(4, weight=[["a"] * 16] * 3), "weight must hold numbers"),
    "weight ragged": (layer(4, weight=[[1.0], [1.0, 2.0]]), "weight is no array of numbers"),
    "weight with None": (layer(4, weight=[[None] * 16] * 3), "weight must hold numbers"),
    "activation unknown": (
        layer(4, activation_name="swish"), "activation_name 'swish' is not implemented; known are"),
    "padding of three": (layer(1, padding=[1, 2, 3]), "padding must be 1 or 2 or 4 whole numbers"),
    "padding negative": (layer(1, padding=-1), "padding must be .* >= 0"),
    "stride of three": (layer(1, stride=[1, 1, 1]), "stride must be 1 or 2 whole numbers >= 1"),
    "stride zero": (layer(1, stride=0), "stride must be"),
    "dilation text": (layer(1, dilation="2"), "dilation must be"),
    "scalar kernel in 2D": (layer(2, kernel_size=2), "kernel_size must be 2 whole numbers"),
    "scalar strides in 2D": (layer(2, strides=[2]), "strides must be 2 whole numbers"),
    "two inputs": (layer(2, input_layers=[1, 1]), "takes one input, input_layers names 2"),
    "flatten the batch": (layer(3, start_dim=1), "must be axes behind the batch axis"),
    "flatten too far": (layer(3, end_dim=5), "must be axes behind the batch axis"),
    "output is no vector": (
        lambda m: (m["layers"].pop(), m["layers"].pop(), m["layers"][1].update(output_layers=[-1]),
                   m.update(output_nodes=[2])),
        r"layer 2 .* output layer of shape \(4, 2, 2\); outputs must be vectors"),
    "too few names": (top(output_names=["a"]), r"\(1,\).* the model has \(3,\)"),
    "names of another shape": (top(input_names=["a", "b"]), r"\(2,\).* the model has \(2, 7, 6\)"),
    "names of numbers": (top(output_names=[1, 2, 3]), "output_names must be strings"),
    "norm of another size": (layer(3, **NORM | {"num_features": 3}), "for 3 channels, there are 4"),
    "norm without gamma": (
        lambda m: m["layers"].__setitem__(2, {
            **{k: v for k, v in NORM.items() if k != "gamma"}, "num_features": 4,
            "input_layers": [2], "output_layers": [4]}), "has no 'gamma'"),
    "pooling method": (layer(3, type="GlobalPooling", method="sum"), "method 'sum' is not impl"),
    "padding mode": (layer(3, type="Padding", padding=1, mode="mirror"), "mode 'mirror' is not"),
    "reflect too far": (layer(3, type="Padding", padding=2, mode="reflect"), "larger than mode"),
    "concatenate rows": (layer(3, type="Concatenate", axis=1), "1, which is the batch"),
    "concatenate nowhere": (layer(3, type="Concatenate"), "has no 'axis'"),
    "act_name unknown": (layer(3, type="Activation", act_name="elu"), "act_name 'elu' is not"),
}  # fmt: skip


def test_the_model_that_the_table_breaks_is_valid():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(valid())


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.filterwarnings("ignore:.*has no effect")
def test_broken_model_is_refused_with_a_reason(name):
    change, message = BROKEN[name]
    model = valid()
    change(model)
    with pytest.raises(OnnxplainError, match=message):
        convert(model)


@pytest.mark.parametrize("name", ["dim_in differs", "dim_out differs", "output_dim differs"])
def test_wrong_shapes_are_shape_errors(name):
    model = valid()
    BROKEN[name][0](model)
    with pytest.raises(ShapeError):
        convert(model)


def test_circles_are_refused():
    model = chain([dense(5, 5), {"type": "Add"}, dense(5, 5), dense(5, 5)], V)
    model["layers"][1].update(input_layers=[1, 3])
    model["layers"][2].update(output_layers=[2, 4])
    with pytest.raises(ModelError, match=r"layers 2, 3, 4 .* circle"):
        convert(model)


def test_merging_other_shapes_is_refused():
    model = merging("Add", 2, S)
    model["layers"][1] = {
        "type": "MaxPooling1D", "kernel_size": 2, "input_layers": [1], "output_layers": [4]
    }  # fmt: skip
    with pytest.raises(ModelError, match=r"layer 4 \(Add\): cannot run: all inputs must"):
        convert(model)
    model["layers"][3].update(type="Concatenate", axis=2)
    with pytest.raises(ModelError, match=r"all axes but the joined one must be equal"):
        convert(model)


def test_inputs_of_four_axes_are_refused():
    with pytest.raises(ModelError, match="inputs have 1 to 3 axes"):
        convert(chain([{"type": "Flatten"}], (1, 2, 3, 4)))


@pytest.mark.parametrize(
    "key, message",
    [
        ("input_nodes", "no 'input_nodes': layer 1 is taken as the only input layer"),
        ("output_nodes", "no 'output_nodes': layer 4 is taken as the only output layer"),
    ],
)
def test_missing_nodes_are_assumed_with_a_warning(key, message):
    model, full = valid(), valid()
    model["layers"] = full["layers"]
    del model[key]
    with pytest.warns(UserWarning, match=message):
        proto = convert(model)
    assert proto.graph == convert(full).graph


@pytest.mark.parametrize(
    "key, message",
    [
        ("input_layers", "layers 2, 3 have no 'input_layers': the layer before each is taken"),
        ("output_layers", "layers 2, 3 have no 'output_layers': the layer after each is taken"),
    ],
)
def test_missing_links_are_assumed_with_a_warning(key, message):
    model = valid()
    full = copy.deepcopy(model)
    del model["layers"][1][key]
    model["layers"][2][key] = None
    with pytest.warns(UserWarning, match=message):
        proto = convert(model)
    assert proto.graph == convert(full).graph


def test_unknown_keys_warn_with_the_nearest_known_one():
    model = valid()
    model["layers"][0]["strides"] = 2
    with pytest.warns(UserWarning, match=r"layer 1 \(Conv2D\): key 'strides' .* mean 'stride'"):
        convert(model)


def test_spellings_of_the_documents_are_known():
    model = chain([{**convolution(1), "type": "Con1D", "out_dim": [4, 7]}, {"type": "Flatten"}], S)
    model["layers"][0]["input_layes"] = model["layers"][0].pop("input_layers")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(model)
    model["layers"][0]["out_dim"] = [4, 8]
    with pytest.raises(ShapeError, match="dim_out"):
        convert(model)


def test_given_input_dim_is_checked_and_stands_in_for_a_missing_one():
    with pytest.raises(ShapeError, match=r"input_dim \(7, 6, 2\)"):
        ox.convert(valid(), input_dim=(7, 6, 2))
    model = valid()
    del model["input_dim"]
    assert ox.convert(model, input_dim=(2, 7, 6)).input_dim == [(2, 7, 6)]


JUNK = [None, {}, [], "x", -1, 0, 1.5, float("nan"), True, [1, "a"], [[1], [2, 3]],
        [0] * 7,
        {"a": 1}, 10**30, 1e30, 2**63 + 5, np.zeros((2, 2)), np.array("x"), [None]]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.data())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_wrong_value_is_a_clear_error_or_harmless(data):
    models = (valid, two_inputs_two_outputs, lambda: chain([NORM, {"type": "Flatten"}], (2, 9)))
    model = data.draw(st.sampled_from(models))()
    place = model
    if data.draw(st.booleans()):
        place = data.draw(st.sampled_from(model["layers"]))
    key = data.draw(st.sampled_from([*place, "dim_in", "dim_out", "output_dim", "input_names"]))
    place[key] = data.draw(st.sampled_from(JUNK))
    with suppress(OnnxplainError):
        convert(model)


# -- JSON ------------------------------------------------------------------------------------------


def as_r_writes(value):
    """Write numbers as lists of length one and None as {}, as R's jsonlite does."""
    if isinstance(value, dict):
        return {k: as_r_writes(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [v if isinstance(v, (int, float, str)) else as_r_writes(v) for v in value]
    return {} if value is None else [value]


def test_json_of_r_is_read(tmp_path):
    model = valid() | {"input_names": None}
    path = tmp_path / "model.json"
    path.write_text(json.dumps(as_r_writes(model)))
    assert '"type": ["Flatten"]' in path.read_text()
    x = np.random.default_rng(5).normal(size=(2, *I))
    for read in (ox.convert(path, dtype="double"), ox.convert(str(path), dtype="double")):
        np.testing.assert_array_equal(read(x)[0], ox.convert(model, dtype="double")(x)[0])


def test_named_list_of_layers_is_read():
    model = valid()
    model["layers"] = {f"Layer_{i}": layer for i, layer in enumerate(model["layers"])}
    assert len(convert(model).graph.node) == 6


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "\xff"])
def test_file_that_is_no_json_is_refused(tmp_path, text):
    path = tmp_path / "model.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelFileError, match="no JSON"):
        ox.convert(path)


def test_missing_json_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match="cannot read"):
        ox.convert(tmp_path / "none.json")


def test_json_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "model.json"
    path.write_text("[1, 2, 3]")
    with pytest.raises(ModelError, match="is a dict, got list"):
        ox.convert(path)


# -- back to the list format -----------------------------------------------------------------------


def same(a, b):
    """Compare nested dicts and lists with arrays in them, exactly."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


class Stack:
    """Draws a random network in list format with every key written out."""

    def __init__(self, draw):
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.dtype = draw(st.sampled_from([np.float32, np.float64]))
        self.layers, self.dims = [], [None]
        self.input_dim, self.input_nodes = [], []

    def add(self, kind, sources, dim_out, **keys):
        entry = not sources
        dims = [self.input_dim[-1]] if entry else [self.dims[i] for i in sources]
        self.layers.append({
            "type": kind,
            "input_layers": sources or [0],
            "output_layers": [],
            "dim_in": dims if len(dims) > 1 else dims[0],
            "dim_out": dim_out,
            **keys,
        })  # fmt: skip
        self.dims.append(dim_out)
        if entry:
            self.input_nodes.append(len(self.layers))
        return len(self.layers)

    def array(self, *shape):
        return self.rng.normal(size=shape).astype(self.dtype)

    def pick(self, *values):
        return self.draw(st.sampled_from(values))

    def enter(self):
        dim = tuple(self.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
        self.input_dim.append(dim)
        return self.add("Skipping", [], dim)

    def step(self, i):
        kinds = ["Dense", "BatchNorm", "Activation", "Skipping", "Flatten", "Padding", "Twin"]
        kinds += {1: [], 2: ["Conv", "Pooling", "GlobalPooling"]}.get(
            len(self.dims[i]), ["Conv", "Pooling", "GlobalPooling", "Partial"]
        )
        return getattr(self, self.pick(*kinds).lower())(i, self.dims[i])

    def activation_name(self):
        return self.pick("linear", "relu", "leaky_relu", "softplus", "sigmoid", "tanh", "softmax")

    def dense(self, i, dim):
        n = self.pick(1, 2, 4)
        w, b = self.array(n, dim[-1]), self.array(n)
        name = self.activation_name()
        return self.add("Dense", [i], (*dim[:-1], n), weight=w, bias=b, activation_name=name)

    def batchnorm(self, i, dim):
        n = dim[0]
        return self.add(
            "BatchNorm", [i], dim, num_features=n, eps=self.pick(1e-5, 1e-3, 0.5),
            gamma=self.array(n), beta=self.array(n), run_mean=self.array(n),
            run_var=np.abs(self.array(n)) + self.dtype(0.1),
        )  # fmt: skip

    def activation(self, i, dim):
        return self.add("Activation", [i], dim, act_name=self.activation_name())

    def skipping(self, i, dim):
        return self.add("Skipping", [i], dim)

    def flatten(self, i, dim):
        return self.add("Flatten", [i], (int(np.prod(dim)),), start_dim=2, end_dim=-1)

    def partial(self, i, dim):
        if 1 in dim:  # then other axes say the same
            return self.flatten(i, dim)
        start, end, out = self.pick(
            (3, -1, (dim[0], dim[1] * dim[2])), (2, 3, (dim[0] * dim[1], dim[2]))
        )
        return self.add("Flatten", [i], out, start_dim=start, end_dim=end)

    def padding(self, i, dim):
        p = tuple(self.pick(0, 1, 2) for _ in range(4 if len(dim) > 2 else 2))
        sums = (p[0] + p[1], *([p[2] + p[3]] if len(dim) > 2 else []))[::-1]
        out = (*dim[: -len(sums)], *(n + s for n, s in zip(dim[-len(sums) :], sums, strict=True)))
        mode = self.pick("constant", "replicate")
        value = self.pick(0.0, 0.5) if mode == "constant" else 0.0
        return self.add("Padding", [i], out, padding=p, mode=mode, value=value)

    def conv(self, i, dim):
        rank, n = len(dim) - 1, self.pick(1, 3)
        kernel = tuple(self.pick(1, 2, 3) for _ in range(rank))
        strides = tuple(self.pick(1, 2) for _ in range(rank))
        dilations = tuple(self.pick(1, 2) for _ in range(rank))
        pads = tuple(self.pick(2, 3) for _ in range(2 * rank))
        sums = (pads[0] + pads[1], *([pads[2] + pads[3]] if rank > 1 else []))[::-1]
        out = tuple(
            (m + s - d * (k - 1) - 1) // t + 1
            for m, s, d, k, t in zip(dim[1:], sums, dilations, kernel, strides, strict=True)
        )
        one = rank == 1
        return self.add(
            f"Conv{rank}D", [i], (n, *out), weight=self.array(n, dim[0], *kernel),
            bias=self.array(n), stride=strides[0] if one else strides, padding=pads,
            dilation=dilations[0] if one else dilations, activation_name=self.activation_name(),
        )  # fmt: skip

    def pooling(self, i, dim):
        rank = len(dim) - 1
        kernel = tuple(min(self.pick(1, 2, 3), n) for n in dim[1:])
        strides = tuple(self.pick(1, 2) for _ in range(rank))
        out = ((n - k) // s + 1 for n, k, s in zip(dim[1:], kernel, strides, strict=True))
        one = rank == 1
        return self.add(
            f"{self.pick('Max', 'Average')}Pooling{rank}D", [i], (dim[0], *out),
            kernel_size=kernel[0] if one else kernel, strides=strides[0] if one else strides,
        )  # fmt: skip

    def globalpooling(self, i, dim):
        return self.add("GlobalPooling", [i], dim[:1], method=self.pick("average", "max"))

    def twin(self, i, dim):
        """Two branches that meet again."""
        a, b = self.activation(i, dim), self.batchnorm(i, dim)
        if self.pick(True, False):
            return self.add("Add", [a, b, i], dim)
        axis = self.draw(st.integers(0, len(dim) - 1))
        out = (*dim[:axis], 2 * dim[axis], *dim[axis + 1 :])
        return self.add("Concatenate", [a, b], out, axis=axis + 2)

    def model(self):
        ends = []
        for _ in range(self.pick(1, 2)):
            i = self.enter()
            for _ in range(self.draw(st.integers(1, 4))):
                i = self.step(i)
            ends.append(self.flatten(i, self.dims[i]))
        if len(ends) > 1:
            out = (sum(self.dims[i][0] for i in ends),)
            ends = [self.add("Concatenate", ends, out, axis=2), *ends[: self.pick(0, 1)]]
        for i, layer in enumerate(self.layers, 1):
            after = [j for j, n in enumerate(self.layers, 1) if i in n["input_layers"]]
            layer["output_layers"] = after + [-1] * (i in ends)
        dims = [self.dims[i] for i in ends]
        return {
            "input_dim": self.input_dim,
            "input_names": [
                [[f"{a}_{j}" for j in range(n)] for a, n in enumerate(dim)]
                for dim in self.input_dim
            ],
            "input_nodes": self.input_nodes,
            "output_dim": dims,
            "output_names": [[[f"class {j}" for j in range(dim[0])]] for dim in dims],
            "output_nodes": ends,
            "layers": self.layers,
        }


@st.composite
def stacks(draw):
    return Stack(draw).model()


@settings(max_examples=150, deadline=None)
@given(stacks())
def test_dict_to_onnx_to_dict_is_the_identity(model):
    back = to_layers(ox.convert(model))
    for mine, other in zip(back["layers"], model["layers"], strict=True):
        assert same(mine, other), (mine, other)
    assert same(back, model)


@settings(max_examples=60, deadline=None)
@given(stacks())
def test_random_network_computes_what_plain_numpy_does(model):
    rng = np.random.default_rng(0)
    float64 = all(
        v.dtype == np.float64
        for layer in model["layers"] for v in layer.values() if isinstance(v, np.ndarray)
    )  # fmt: skip
    x = [rng.normal(size=(2, *dim)) for dim in model["input_dim"]]
    expected = run_plain(model, x)
    got = ox.convert(model, dtype="double")(x)
    for y, z in zip(got, expected, strict=True):
        tolerance = (1e-10 if float64 else 1e-4) * max(1, np.abs(z).max())
        np.testing.assert_allclose(y, z, rtol=0, atol=tolerance)


def test_saved_model_can_be_edited_and_converted_again():
    x = np.random.default_rng(6).normal(size=(3, *I))
    c = ox.convert(valid(), dtype="double", save_model_as_dict=True)
    assert ox.convert(valid()).model_as_dict is None
    saved = c.model_as_dict
    saved["layers"][3]["activation_name"] = "linear"
    saved["layers"][3]["bias"] += 1
    again = ox.convert(saved, dtype="double")(x)[0]
    np.testing.assert_allclose(np.exp(again) / np.exp(again).sum(-1, keepdims=True), c(x)[0])


def test_saving_does_not_share_memory_with_the_converter():
    c = ox.convert(valid(), dtype="double", save_model_as_dict=True)
    x = np.random.default_rng(6).normal(size=(3, *I))
    before = c(x)[0]
    for entry in c.model_as_dict["layers"]:
        if "weight" in entry:
            entry["weight"][...] = 0
    np.testing.assert_array_equal(c(x)[0], before)


def spelled(nodes, weights=None, dim=(3,), **options):
    return graph(nodes, {"x": dim}, weights or {}, **options)


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs.split(), output.split(), name=f"my_{op}", **attributes)


W = np.arange(12.0).reshape(3, 4) / 10
FILTERS = np.arange(24.0).reshape(4, 2, 3) / 10

EXPRESSIBLE = {
    "matmul and add": (
        [node("MatMul", "x w", "h"), node("Add", "b h", "y")],
        {"w": W, "b": np.arange(4.0)}, (3,), ["Dense"]),
    "matmul without bias": ([node("MatMul", "x w", "y")], {"w": W}, (3,), ["Dense"]),
    "gemm with factors": (
        [node("Gemm", "x w b", "y", alpha=2.0, beta=0.5)],
        {"w": W, "b": np.ones((1, 4))}, (3,), ["Dense"]),
    "gemm with one bias for all": (
        [node("Gemm", "x w b", "y")], {"w": W, "b": np.ones(1)}, (3,), ["Dense"]),
    "scale and shift": (
        [node("Mul", "x a", "h"), node("Sub", "b h", "y")],
        {"a": [1.0, 2, 3], "b": np.array(0.5)}, (3,), ["BatchNorm", "BatchNorm"]),
    "same padding": (
        [node("Conv", "x w", "h", auto_pad="SAME_UPPER", strides=[2]), node("Flatten", "h", "y")],
        {"w": FILTERS}, (2, 6), ["Conv1D", "Flatten"]),
    "mean over space": (
        [node("ReduceMean", "x axes", "y", keepdims=0)], {"axes": np.array([-1])}, (2, 5),
        ["GlobalPooling"]),
    "mean over space, squeezed": (
        [node("ReduceMean", "x axes", "h", keepdims=1), node("Squeeze", "h axes", "y")],
        {"axes": np.array([2])}, (2, 5), ["GlobalPooling"]),
    "global pooling before a convolution": (
        [node("GlobalMaxPool", "x", "h"), node("Conv", "h w", "z"), node("Flatten", "z", "y")],
        {"w": FILTERS[..., :1]}, (2, 5), ["MaxPooling1D", "Conv1D", "Flatten"]),
    "softplus spelled out": (
        [node("MatMul", "x w", "h"), node("Exp", "h", "e"), node("Add", "e one", "p"),
         node("Log", "p", "l"), node("Mul", "l one", "y")],
        {"w": W, "one": np.array(1.0)}, (3,), ["Dense"]),
    "leaky relu": ([node("LeakyRelu", "x", "y", alpha=0.01)], {}, (3,), ["Activation"]),
    "reshape with a fixed batch of one": (
        [node("Reshape", "x s", "y")], {"s": np.array([-1, 10])}, (2, 5), ["Flatten"]),
    "input used twice": (
        [node("Relu", "x", "h"), node("Add", "h x", "y")], {}, (3,),
        ["Skipping", "Activation", "Add"]),
    "dropout": ([node("Dropout", "x", "h"), node("Tanh", "h", "y")], {}, (3,),
                ["Skipping", "Activation"]),
    "pooling in ceil mode that fits": (
        [node("MaxPool", "x", "h", kernel_shape=[2], strides=[2], ceil_mode=1),
         node("Flatten", "h", "y")], {}, (2, 6), ["MaxPooling1D", "Flatten"]),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_graph_is_written_as_layers(name):
    nodes, weights, dim, types = EXPRESSIBLE[name]
    c = ox.convert(spelled(nodes, weights, dim), dtype="double", save_model_as_dict=True)
    assert [entry["type"] for entry in c.model_as_dict["layers"]] == types
    x = np.random.default_rng(7).normal(size=(3, *dim))
    again = ox.convert(c.model_as_dict, dtype="double")
    # The slope of LeakyRelu is a float32 in a file.
    tolerance = 1e-9 if name == "leaky relu" else 1e-12
    np.testing.assert_allclose(again(x)[0], c(x)[0], rtol=0, atol=tolerance)


INEXPRESSIBLE = {
    "operator": ([node("Elu", "x", "y")], {}, (3,), "no layer for this operator"),
    "slope": ([node("LeakyRelu", "x", "y", alpha=0.3)], {}, (3,), "leaky_relu with slope 0.01"),
    "softmax axis": (
        [node("Softmax", "x", "h", axis=1), node("Flatten", "h", "y")], {}, (2, 5), "last axis"),
    "groups": (
        [node("Conv", "x w", "h", group=2), node("Flatten", "h", "y")],
        {"w": FILTERS[:, :1]}, (2, 5), "groups"),
    "weight on the left": (
        [node("MatMul", "w x", "h"), node("Flatten", "h", "y")],
        {"w": W.T[:2, :2]}, (2, 5), "stands on the left"),
    "product of data": ([node("Mul", "x x", "y")], {}, (3,), "both of its inputs carry data"),
    "product of matrices": (
        [node("Transpose", "x", "t", perm=[0, 2, 1]), node("MatMul", "x t", "h"),
         node("Flatten", "h", "y")], {}, (2, 3), "no layer for this operator"),
    "scale of each element": (
        [node("Mul", "x a", "h"), node("Flatten", "h", "y")], {"a": np.ones((2, 5))}, (2, 5),
        "differs within a channel"),
    "padded pooling": (
        [node("MaxPool", "x", "h", kernel_shape=[3], pads=[1, 1]), node("Flatten", "h", "y")],
        {}, (2, 5), "reach over the edge"),
    "dilated pooling": (
        [node("MaxPool", "x", "h", kernel_shape=[2], dilations=[2]), node("Flatten", "h", "y")],
        {}, (2, 5), "dilations"),
    "mean over channels": (
        [node("ReduceMean", "x axes", "h", keepdims=0)], {"axes": np.array([1])}, (2, 5),
        "not over all spatial axes"),
    "padded channels": (
        [node("Pad", "x p", "h"), node("Flatten", "h", "y")],
        {"p": np.array([0, 1, 0, 0, 0, 0])}, (2, 5), "other axes than the spatial"),
    "cropped": (
        [node("Pad", "x p", "h"), node("Flatten", "h", "y")],
        {"p": np.array([0, 0, -1, 0, 0, 0])}, (2, 5), "cuts the data"),
    "broadcast sum": (
        [node("ReduceMean", "x axes", "m", keepdims=1), node("Add", "x m", "h"),
         node("Flatten", "h", "y")], {"axes": np.array([2])}, (2, 5), "different shapes"),
    "split": (
        [node("Split", "x", "a b", num_outputs=2, axis=1), node("Concat", "b a", "y", axis=1)],
        {}, (4,), "no layer for this operator"),
    "other reshape": (
        [node("Reshape", "x s", "h"), node("Flatten", "h", "y")],
        {"s": np.array([-1, 5, 2])}, (2, 5), "no flattening"),
}  # fmt: skip


@pytest.mark.parametrize("name", INEXPRESSIBLE)
def test_graph_that_cannot_be_written_names_the_node(name):
    nodes, weights, dim, message = INEXPRESSIBLE[name]
    with pytest.raises(ModelError, match=rf"node 'my_\w+' .*list format: .*{message}"):
        ox.convert(spelled(nodes, weights, dim), save_model_as_dict=True)


def test_output_that_is_no_vector_cannot_be_written():
    with pytest.raises(ModelError, match=r"output 'y' has shape \(2, 5\), outputs are vectors"):
        ox.convert(spelled([node("Relu", "x", "y")], dim=(2, 5)), save_model_as_dict=True)


# -- the documents' example ------------------------------------------------------------------------


def test_example_of_the_documents(shared):
    golden = json.loads((shared / "golden" / "innsight.json").read_text())["vignette_1_3_1"]
    model = chain(golden["layers"], [1])
    c = ox.convert(model, dtype="double")
    suite = golden["suite"]
    np.testing.assert_allclose(c(np.array(suite["x"]))[0], suite["output"], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "section", [pytest.param("torch", marks=pytest.mark.oracle), "The list format of innsight"]
)
def test_examples_of_the_docs_print_what_they_say(section):
    if section == "torch":
        pytest.importorskip("onnxscript")
        pytest.importorskip("torch")
    text = (Path(__file__).parents[1] / "docs" / "converters.md").read_text("utf-8")
    text = text.partition(f"\n## {section}")[2].partition("\n## ")[0]
    values = {}
    for block in re.findall("```python\n(.*?)```", text, re.DOTALL):
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, values, section, "converters.md", 0)
            runner = doctest.DocTestRunner(verbose=False)
            runner.run(test, clear_globs=False)
            assert runner.summarize() == (0, len(test.examples))
            values = test.globs
        else:
            exec(block, values)
    assert "converter" in values


# -- repr ------------------------------------------------------------------------------------------


def test_repr_shows_what_innsights_print_shows():
    text = repr(ox.convert(two_inputs_two_outputs(), save_model_as_dict=True))
    for line in (
        "input_dim:  (*, 2, 9), (*, 3)",
        "output_dim: (*, 2), (*, 6)",
        "Input layer 1:",
        "- Channels (2): C1, C2",
        "- Signal length (9): L1, L2, L3, L4, L5, L6, L7, L8, L9",
        "Input layer 2:",
        "- Feature (3): X1, X2, X3",
        "Output layer 2:",
        "- Output node/Class (6): Y1, Y2, Y3, Y4, Y5, Y6",
        "model_as_dict: included",
        "Conv1D_1 (Conv1D_Layer): (*, 2, 9) -> (*, 4, 7)",
        "Dense_5 (Dense_Layer): (*, 6) -> (*, 2)",
    ):
        assert line in text
    assert "model_as_dict: not included" in repr(ox.convert(two_inputs_two_outputs()))


def test_repr_stays_readable_with_long_lists_of_names():
    names = [f"a feature with a rather long name number {i}" for i in range(300)]
    names[0] = "n" * 500
    text = repr(ox.convert(chain([dense(300, 2)], [300]), input_names=names))
    assert max(map(len, text.splitlines())) <= 88
    assert "Feature (300): nnn" in text
    names[0] = "first"
    text = repr(ox.convert(chain([dense(300, 2)], [300]), input_names=names))
    assert "Feature (300): first, a feature with a rather long name number 1, ...\n" in text
