"""Class activation maps, guided backpropagation and deconvnets against their formulas."""

import numpy as np
import pytest
from onnx import helper

import onnxplain as ox
from networks import graph
from onnxplain.errors import ArgumentError, SelectionError

RNG = np.random.default_rng(11)
node = helper.make_node
DOUBLE = {"dtype": "double"}


def normal(*shape):
    return RNG.standard_normal(shape)


def network(places, pool=2, stored=None):
    """Two convolutions with a pool between them, a mean over places, three classes."""
    rank, sizes = len(places), [pool] * len(places)
    nodes = [
        node("Conv", ["x", "k"], ["c"], pads=[1] * 2 * rank),
        node("Relu", ["c"], ["a"]),
        node("MaxPool", ["a"], ["p"], kernel_shape=sizes, strides=sizes),
        node("Conv", ["p", "l"], ["d"], pads=[1] * 2 * rank),
        node("Relu", ["d"], ["maps"]),
        node("GlobalAveragePool", ["maps"], ["mean"]),
        node("Flatten", ["mean"], ["f"]),
        node("Gemm", ["f", "v", "b"], ["y"]),
    ]
    weights = {"k": normal(3, 2, *[3] * rank), "l": normal(4, 3, *[3] * rank)}
    weights |= {"v": normal(4, 3), "b": normal(3)}
    return ox.convert(graph(nodes, {"x": (2, *places)}, weights))


SHAPES = {"signal": (8,), "image": (6, 8), "volume": (4, 6, 4)}
MODELS = {name: network(places) for name, places in SHAPES.items()}
DATA = {name: normal(3, 2, *places) for name, places in SHAPES.items()}
each_shape = pytest.mark.parametrize("shape", SHAPES)
IMAGE, PIXELS = MODELS["image"], DATA["image"]


def tensor(name, shape="image"):
    """Return an inner tensor and its gradients, (n, channels, places..., nodes)."""
    ones = ox.Gradient(MODELS[shape], DATA[shape], layer=name, **DOUBLE).get_result()
    product = ox.Gradient(MODELS[shape], DATA[shape], layer=name, times_input=True, **DOUBLE)
    with np.errstate(all="ignore"):
        a = np.nanmax(np.where(ones != 0, product.get_result() / ones, np.nan), axis=-1)
    return a, ones


# -- Grad-CAM --------------------------------------------------------------------------------------


@each_shape
@pytest.mark.parametrize("relu", [True, False])
def test_gradcam_weights_channels_by_their_mean_gradient(shape, relu):
    found = ox.GradCAM(MODELS[shape], DATA[shape], upsample=False, relu=relu, **DOUBLE)
    assert found.layers == ["maps"]
    a, g = tensor("maps", shape)
    places = tuple(range(2, g.ndim - 1))
    expected = (g.mean(axis=places, keepdims=True) * a[..., None]).sum(axis=1, keepdims=True)
    expected = np.maximum(expected, 0) if relu else expected
    np.testing.assert_allclose(found.get_result(), expected, atol=1e-12)
    assert expected.any()


@each_shape
def test_gradcam_plus_plus_follows_its_closed_form(shape):
    found = ox.GradCAMPlusPlus(MODELS[shape], DATA[shape], layer="maps", upsample=False, **DOUBLE)
    a, g = tensor("maps", shape)
    places = tuple(range(2, g.ndim - 1))
    total = a.sum(axis=places, keepdims=True)[..., None]
    with np.errstate(invalid="ignore"):
        alpha = np.where(g != 0, g**2 / (2 * g**2 + total * g**3), 0)
    weights = (alpha * np.maximum(g, 0)).sum(axis=places, keepdims=True)
    expected = np.maximum((weights * a[..., None]).sum(axis=1, keepdims=True), 0)
    np.testing.assert_allclose(found.get_result(), expected, atol=1e-12)


def test_plus_plus_weights_survive_tiny_gradients_in_float32():
    one = np.full((1, 1, 1, 2, 2), 1e-20, np.float32)
    cam = object.__new__(ox.GradCAMPlusPlus)
    weight = cam._weights(one, np.ones((1, 1, 2, 2), np.float32))
    np.testing.assert_allclose(weight, 2e-20, rtol=1e-6)


@each_shape
def test_maps_have_the_size_of_the_input_and_its_labels(shape):
    found = ox.GradCAM(MODELS[shape], DATA[shape])
    assert found.get_result().shape == (3, 1, *SHAPES[shape], 3)
    assert found.input_names[0] == [["map"], *MODELS[shape].input_names[0][1:]]
    assert found.decomp_goal is None
    table = found.get_result("data.frame")
    assert table.decomp_goal.isna().all()
    assert not table.pred.isna().any()
    repr(found)


def test_maps_are_interpolated_linearly():
    low = ox.GradCAM(MODELS["signal"], DATA["signal"], upsample=False, **DOUBLE).get_result()
    found = ox.GradCAM(MODELS["signal"], DATA["signal"], **DOUBLE).get_result()
    at = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)
    for b in range(3):
        for k in range(3):
            expected = np.interp(at, range(4), low[b, 0, :, k])
            np.testing.assert_allclose(found[b, 0, :, k], expected, atol=1e-12)


@pytest.mark.parametrize("upsample", [True, False])
def test_plots_of_maps(upsample):
    found = ox.GradCAM(IMAGE, PIXELS, upsample=upsample)
    found.plot(data_idx=[0, 1], output_idx=[0, 2])
    found.plot_global()


def test_maps_are_drawn_over_the_input():
    figure = ox.GradCAM(IMAGE, PIXELS).plot(overlay=True)
    assert figure is not None
    with pytest.raises(ArgumentError, match="overlay"):
        ox.GradCAM(IMAGE, PIXELS, upsample=False).plot(overlay=True)


def test_rows_and_chunks_and_layouts_change_nothing():
    whole = ox.GradCAM(IMAGE, PIXELS, **DOUBLE).get_result()
    parts = ox.GradCAM(IMAGE, PIXELS, batch_size=1, **DOUBLE).get_result()
    last = ox.GradCAM(IMAGE, np.moveaxis(PIXELS, 1, -1), channels_first=False, **DOUBLE)
    np.testing.assert_allclose(parts, whole, atol=1e-12)
    np.testing.assert_allclose(last.get_result(), whole, atol=1e-12)


def test_several_layers_and_top_nodes():
    found = ox.GradCAM(IMAGE, PIXELS, layer=["a", "maps"], output_idx="top1", **DOUBLE)
    assert list(found.get_result()) == ["Input_1", "Input_2"]
    every = ox.GradCAM(IMAGE, PIXELS, **DOUBLE).get_result()
    best = found.output_nodes[0][:, 0]
    np.testing.assert_allclose(
        found.get_result()["Input_2"][..., 0], every[range(3), ..., best], atol=1e-12
    )


@pytest.mark.parametrize("layer, dim", [("c", (6, 8)), ("p", (3, 4)), ("d", (3, 4))])
def test_any_layer_of_maps_can_be_chosen(layer, dim):
    found = ox.GradCAM(IMAGE, PIXELS, layer=layer, upsample=False)
    assert found.get_result().shape == (3, 1, *dim, 3)


@pytest.mark.parametrize("first", [True, False])
def test_guided_maps_are_products(first):
    data = PIXELS if first else np.moveaxis(PIXELS, 1, -1)
    options = {"channels_first": first, **DOUBLE}
    found = ox.GradCAM(IMAGE, data, guided=True, **options)
    maps = ox.GradCAM(IMAGE, data, **options).get_result()
    guided = ox.GuidedBackprop(IMAGE, data, **options).get_result()
    maps = maps if first else np.moveaxis(maps, 1, -2)
    np.testing.assert_allclose(found.get_result(), maps * guided, atol=1e-12)
    assert found.input_names == IMAGE.input_names


def test_models_with_their_channels_last():
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "k"], ["c"], strides=[2, 2]),
        node("Relu", ["c"], ["a"]),
        node("GlobalMaxPool", ["a"], ["g"]),
        node("Flatten", ["g"], ["y"]),
    ]
    converter = ox.convert(graph(nodes, {"x": (7, 9, 2)}, {"k": normal(3, 2, 3, 3)}))
    x = normal(2, 7, 9, 2)
    maps = ox.GradCAM(converter, x, **DOUBLE).get_result()
    assert maps.shape == (2, 1, 7, 9, 3)
    guided = ox.GradCAM(converter, x, guided=True, **DOUBLE)
    product = np.moveaxis(maps, 1, -2) * ox.GuidedBackprop(converter, x, **DOUBLE).get_result()
    np.testing.assert_allclose(guided.get_result(), product, atol=1e-12)


def test_the_default_layer_is_the_last_activation_of_maps():
    nodes = [
        node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["a"]),
        node("Conv", ["a", "l"], ["d"], pads=[1, 1, 1, 1]),
        node("Add", ["d", "c"], ["sum"]),
        node("Relu", ["sum"], ["block"]),
        node("MaxPool", ["block"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["p"], ["mean"]),
        node("Sigmoid", ["mean"], ["gate"]),
        node("Mul", ["p", "gate"], ["m"]),
        node("Flatten", ["m"], ["f"]),
        node("MatMul", ["f", "v"], ["h"]),
        node("Tanh", ["h"], ["t"]),
        node("MatMul", ["t", "o"], ["y"]),
    ]
    weights = {"k": normal(3, 2, 3, 3), "l": normal(3, 3, 3, 3), "v": normal(12, 5)}
    model = graph(nodes, {"x": (2, 4, 4)}, weights | {"o": normal(5, 2)})
    assert ox.GradCAM(ox.convert(model), normal(1, 2, 4, 4)).layers == ["block"]


TABLE = ox.convert(graph([node("MatMul", ["x", "w"], ["y"])], {"x": (3,)}, {"w": normal(3, 2)}))
FOLDED = ox.convert(  # a table that becomes a picture inside
    graph(
        [
            node("Reshape", ["x", "s"], ["i"]),
            node("Conv", ["i", "k"], ["c"]),
            node("Relu", ["c"], ["a"]),
            node("Flatten", ["a"], ["f"]),
            node("MatMul", ["f", "v"], ["y"]),
        ],
        {"x": (32,)},
        {"s": np.array([-1, 2, 4, 4]), "k": normal(3, 2, 3, 3), "v": normal(12, 2)},
    )
)


@pytest.mark.parametrize("method", [ox.GradCAM, ox.GradCAMPlusPlus])
@pytest.mark.parametrize(
    "converter, data, options, error, message",
    [
        (TABLE, normal(2, 3), {}, ArgumentError, "no convolution.*layer="),
        (TABLE, normal(2, 3), {"layer": "x"}, ArgumentError, "needs channels and places"),
        (IMAGE, PIXELS, {"layer": "f"}, ArgumentError, "needs channels and places"),
        (IMAGE, PIXELS, {"layer": "g"}, SelectionError, "no tensor 'g'"),
        (FOLDED, normal(2, 32), {}, ArgumentError, "upsample=False"),
        (IMAGE, PIXELS, {"relu": 1.0}, ArgumentError, "relu must be True or False"),
    ],
)
def test_what_has_no_maps_is_refused(method, converter, data, options, error, message):
    with pytest.raises(error, match=message):
        method(converter, data, **options)


def test_maps_without_an_input_of_their_size():
    found = ox.GradCAM(FOLDED, normal(2, 32), upsample=False)
    assert found.get_result().shape == (2, 1, 2, 2, 2)


# -- guided backpropagation and deconvnets ---------------------------------------------------------

W, V = normal(4, 6), normal(6, 3)


def dense(*activation, **attributes):
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node(activation[0], ["h", *activation[1:]], ["a"], **attributes),
        node("MatMul", ["a", "v"], ["y"]),
    ]
    extra = {"zero": np.array(0.0), "six": np.array(0.5), "low": np.array(-1.0)}
    return ox.convert(graph(nodes, {"x": (4,)}, {"w": W, "v": V, **extra}))


X = normal(5, 4)
H = X @ W
SLOPES = {
    "relu": (dense("Relu"), H > 0),
    "clip at 0": (dense("Clip", "zero", "six"), (H > 0) & (H < 0.5)),
    "leaky": (dense("LeakyRelu", alpha=0.125), np.where(H > 0, 1, 0.125)),
    "elu": (dense("Elu"), np.where(H > 0, 1, np.exp(H))),
}
OTHERS = {
    "tanh": (dense("Tanh"), 1 - np.tanh(H) ** 2),
    "clip at -1": (dense("Clip", "low", "six"), (H > -1) & (H < 0.5)),
}


def through(slope, signals):
    return np.einsum("nhk,ih->nik", slope[..., None] * signals, W)


@pytest.mark.parametrize("name", SLOPES)
def test_guided_backpropagation_cuts_negative_gradients_at_rectifiers(name):
    converter, slope = SLOPES[name]
    found = ox.GuidedBackprop(converter, X, **DOUBLE).get_result()
    np.testing.assert_allclose(found, through(slope, np.maximum(V, 0)[None]), atol=1e-12)


@pytest.mark.parametrize("name", SLOPES)
def test_deconvnets_rectify_gradients_only(name):
    found = ox.Deconvnet(SLOPES[name][0], X, **DOUBLE).get_result()
    np.testing.assert_allclose(found, through(np.ones_like(H), np.maximum(V, 0)[None]), atol=1e-12)


@pytest.mark.parametrize("method", [ox.GuidedBackprop, ox.Deconvnet])
@pytest.mark.parametrize("name", OTHERS)
def test_other_activations_have_their_gradient(method, name):
    converter, slope = OTHERS[name]
    found = method(converter, X, **DOUBLE).get_result()
    np.testing.assert_allclose(found, through(slope, V[None]), atol=1e-12)


@pytest.mark.parametrize("method", [ox.GuidedBackprop, ox.Deconvnet])
def test_times_input_multiplies(method):
    converter = SLOPES["relu"][0]
    plain = method(converter, X, **DOUBLE).get_result()
    found = method(converter, X, times_input=True, **DOUBLE).get_result()
    np.testing.assert_allclose(found, plain * X[..., None], atol=1e-12)
