"""Models that have their channels last: found, named and drawn as what they are."""

import numpy as np
import pytest
from onnx import helper

import onnxplain as ox
from networks import graph

RNG = np.random.default_rng(0)
W2, W1 = RNG.normal(size=(4, 3, 2, 2)), RNG.normal(size=(4, 3, 2))


def model(dim, weights, nodes, out):
    steps = [helper.make_node(op, i, o, **a) for op, i, o, a in nodes]
    return ox.convert(graph(steps, {"x": dim}, weights, outputs={"y": out}, opset=13))


NHWC = ("Transpose", ["x"], ["t"], {"perm": [0, 3, 1, 2]})
TAIL = [
    ("GlobalAveragePool", ["c"], ["p"], {}),
    ("Flatten", ["p"], ["y"], {}),
]
MODELS = {
    "image, transposed": ((6, 5, 3), {"w": W2}, [NHWC, ("Conv", ["t", "w"], ["c"], {})], True),
    "image, padded first": (
        (6, 5, 3),
        {"w": W2, "pads": np.array([0, 1, 1, 0, 0, 1, 1, 0])},
        [
            ("Pad", ["x", "pads"], ["q"], {}),
            ("Transpose", ["q"], ["t"], {"perm": [0, 3, 1, 2]}),
            ("Conv", ["t", "w"], ["c"], {}),
        ],
        True,
    ),
    "signal": (
        (7, 3),
        {"w": W1},
        [("Transpose", ["x"], ["t"], {"perm": [0, 2, 1]}), ("Conv", ["t", "w"], ["c"], {})],
        True,
    ),
    "image, channels first": ((3, 6, 5), {"w": W2}, [("Conv", ["x", "w"], ["c"], {})], False),
    "equal sizes, channels first": ((3, 3, 3), {"w": W2}, [("Conv", ["x", "w"], ["c"], {})], False),
    "equal sizes, channels last": (
        (3, 3, 3), {"w": W2}, [NHWC, ("Conv", ["t", "w"], ["c"], {})], True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_layout_is_read_off_the_graph(name):
    dim, weights, nodes, last = MODELS[name]
    converter = model(dim, weights, [*nodes, *TAIL], (4,))
    assert converter.channels_last == [last]
    letters = [axis[0][0] for axis in converter.input_names[0]]
    first = ["C", "L"] if len(dim) == 2 else ["C", "H", "W"]
    assert letters == ([*first[1:], "C"] if last else first)


def test_axes_of_a_channels_last_model_keep_their_meaning():
    dim, weights, nodes, _ = MODELS["image, transposed"]
    converter = model(dim, weights, [*nodes, *TAIL], (4,))
    method = ox.Gradient(converter, RNG.normal(size=(2, *dim)), dtype="double")
    assert method.get_result("xarray").dims == (
        "batch",
        "height",
        "width",
        "channel",
        "output_node",
    )
    row = method.get_result("data.frame").query("data == 'data_2' and feature == 'H3'")
    row = row.query("feature_2 == 'W1' and channel == 'C2' and output_node == 'Y4'")
    assert row.value.item() == method.get_result()[1, 2, 0, 1, 3]


def test_a_channels_last_image_is_drawn_with_its_height_and_width():
    dim, weights, nodes, _ = MODELS["image, transposed"]
    converter = model(dim, weights, [*nodes, *TAIL], (4,))
    method = ox.Gradient(converter, RNG.normal(size=(2, *dim)), dtype="double")
    (image,) = method.plot().axes[0, 0].get_images()
    np.testing.assert_allclose(image.get_array(), method.get_result()[0, ..., 0].sum(axis=-1))
