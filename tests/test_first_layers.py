"""Integrated gradients follow the path behind dense first layers: the result is the same."""

import numpy as np
import pytest
from onnx import numpy_helper, parser

import onnxplain as ox
from onnxplain.methods import gradients

RNG = np.random.default_rng(0)


def convert(graph, **shapes):
    proto = parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> {graph}')
    for name, shape in shapes.items():
        weight = RNG.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight, name))
    return ox.convert(proto)


DENSE = convert(
    "g (float[N,4] x) => (float[N,3] y) {h = Gemm(x, w, b) r = Tanh(h) y = MatMul(r, v)}",
    w=(4, 5), b=(5,), v=(5, 3),
)  # fmt: skip
BRANCHES = convert(
    "g (float[N,2,3] x, float[N,2] z) => (float[N,4] y)"
    "{f = Flatten(x) a = MatMul(f, u) b = MatMul(f, v) c = Gemm(z, w)"
    " s = Sigmoid(a) p = Mul(s, b) q = Concat<axis = 1>(p, c) y = Relu(q)}",
    u=(6, 2), v=(6, 2), w=(2, 2),
)  # fmt: skip
CASES = {
    "one layer": (DENSE, [RNG.normal(size=(7, 4))], [RNG.normal(size=(1, 4))], ["h"]),
    "branches and inputs": (
        BRANCHES,
        [RNG.normal(size=(5, 2, 3)), RNG.normal(size=(5, 2))],
        [RNG.normal(size=(1, 2, 3)), RNG.normal(size=(1, 2))],
        ["a", "b", "c"],
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"times_input": False},
        {"quadrature": "gauss_legendre", "n": 9},
        {"batch_size": 2},
        {"output_idx": "top1"},
        {"like": "captum"},
    ],
    ids=str,
)
def test_path_behind_the_first_layers_gives_the_same(case, options, monkeypatch):
    converter, data, reference, layers = CASES[case]
    options = {"n": 6, "x_ref": reference, "dtype": "double", **options}
    found = ox.IntegratedGradient(converter, data, **options)
    assert gradients.first_dense_layers(found._engine) == layers
    monkeypatch.setattr(gradients, "first_dense_layers", lambda engine: [])
    plain = ox.IntegratedGradient(converter, data, **options)
    for a, b in zip(found.result[0], plain.result[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(found.decomp_goal[0], plain.decomp_goal[0], atol=1e-12)


@pytest.mark.parametrize(
    "graph, shapes",
    [
        ("{h = Tanh(x) y = MatMul(h, w)}", {"w": (4, 3)}),  # not linear
        ("{h = MatMul(x, w) r = Relu(h) s = Softmax(x) t = MatMul(s, w) y = Add(r, t)}",
         {"w": (4, 3)}),  # goes around the layer
        ("{y = MatMul(x, w)}", {"w": (4, 3)}),  # is itself explained
        ("{h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)}",
         {"w": (4, 90), "v": (90, 3)}),  # much larger than the input
    ],
)  # fmt: skip
def test_other_first_layers_are_left_on_the_path(graph, shapes):
    converter = convert(f"g (float[N,4] x) => (float[N,3] y) {graph}", **shapes)
    found = ox.IntegratedGradient(converter, RNG.normal(size=(2, 4)), n=3)
    assert gradients.first_dense_layers(found._engine) == []
