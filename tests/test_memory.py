"""Explanations keep a tensor only as long as something needs its numbers."""

import numpy as np
import pytest
from onnx import helper

import onnxplain as ox
from networks import graph
from onnxplain.graph.graph import build
from onnxplain.graph.load import read_model
from onnxplain.kernels import Linear, unregister
from onnxplain.methods import engine
from onnxplain.walk import backward, forward, gradient_step, read_by_gradients

RNG = np.random.default_rng(3)
IMAGES = RNG.normal(size=(5, 3, 8, 8))


def residual():
    """Convolutions with a shortcut, a max-pooling and a dense layer."""
    node = helper.make_node
    nodes = [
        node("Conv", ["X", "w1", "b1"], ["a"], pads=[1, 1, 1, 1], name="first"),
        node("Relu", ["a"], ["b"], name="relu1"),
        node("Conv", ["b", "w2"], ["c"], pads=[1, 1, 1, 1], name="second"),
        node("Add", ["b", "c"], ["d"], name="add"),
        node("Relu", ["d"], ["e"], name="relu2"),
        node("Conv", ["e", "w2"], ["f"], pads=[1, 1, 1, 1], name="third"),
        node("Tanh", ["f"], ["g"], name="tanh"),
        node("MaxPool", ["g"], ["h"], kernel_shape=[2, 2], strides=[2, 2], name="pool"),
        node("Flatten", ["h"], ["i"], name="flat"),
        node("Gemm", ["i", "w3"], ["Y"], name="dense"),
    ]
    weights = {
        "w1": RNG.normal(size=(4, 3, 3, 3)),
        "b1": RNG.normal(size=4),
        "w2": RNG.normal(size=(4, 4, 3, 3)) / 4,
        "w3": RNG.normal(size=(64, 6)),
    }
    return graph(nodes, {"X": (3, 8, 8)}, weights)


MODEL = residual()
CONVERTER = ox.convert(MODEL)
METHODS = {
    "gradient": lambda **o: ox.Gradient(CONVERTER, IMAGES, dtype="double", **o),
    "guided": lambda **o: ox.GuidedBackprop(CONVERTER, IMAGES, dtype="double", **o),
    "intgrad": lambda **o: ox.IntegratedGradient(CONVERTER, IMAGES, n=4, dtype="double", **o),
    "lrp": lambda **o: ox.LRP(CONVERTER, IMAGES, rule_name="epsilon", dtype="double", **o),
    "deeplift": lambda **o: ox.DeepLift(CONVERTER, IMAGES, dtype="double", **o),
    "reveal": lambda **o: ox.DeepLift(
        CONVERTER, IMAGES, rule_name="reveal_cancel", dtype="double", **o
    ),
}  # fmt: skip


def test_a_walk_back_takes_out_what_it_has_passed():
    net = build(read_model(MODEL)).cast("double")
    seeds = {"Y": np.eye(6)[:, None] * np.ones((1, 5, 1))}
    kept, spent = forward(net, {"X": IMAGES}), forward(net, {"X": IMAGES})
    expected = backward(net, seeds, gradient_step(net, kept))
    found = backward(net, seeds, gradient_step(net, spent), spent=[spent])
    np.testing.assert_array_equal(found["X"], expected["X"])
    assert list(spent) == ["X"]
    assert set("bdefghi") < set(kept)


def test_gradients_keep_the_numbers_that_they_read():
    net = build(read_model(MODEL)).cast("double")
    values = forward(net, {"X": IMAGES}, keep=read_by_gradients(net))
    hollow = {name for name, x in values.items() if not any(x.strides)}
    assert hollow == {"X", "b", "c", "e"}  # convolutions and sums need shapes, ReLU its input
    seeds = {"Y": np.ones((1, 5, 6))}
    found = backward(net, seeds, gradient_step(net, values))["X"]
    full = forward(net, {"X": IMAGES})
    np.testing.assert_array_equal(found, backward(net, seeds, gradient_step(net, full))["X"])
    assert all(values[name].shape == full[name].shape for name in full)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"layer": "e"}])
def test_outputs_in_turns_and_rows_in_chunks_change_nothing(monkeypatch, method, options):
    nodes = [0, 2, 3, 5]
    expected = METHODS[method](output_idx=nodes, **{"batch_size": 5} | options).result[0][0]
    monkeypatch.setattr(engine, "SIGNAL_BYTES", 1)
    found = METHODS[method](output_idx=nodes, **options)
    np.testing.assert_allclose(found.result[0][0], expected, rtol=1e-10, atol=1e-12)


def test_slices_of_outputs_have_about_one_size(monkeypatch):
    found = METHODS["gradient"](output_idx=[0])._engine
    monkeypatch.setattr(engine, "SIGNAL_BYTES", 4 * 3 * 8 * CONVERTER.trial.widest)
    assert [s.stop - s.start for s in found.output_slices(6, 1)] == [3, 3]
    assert found.output_slices(0, 1) == []


def test_a_gradient_of_ones_own_reads_everything_unless_it_says_so():
    class Same(Linear, op="Same", domain="my.ops"):
        def apply(self, x, w):
            return x

        def vjp(self, g, shape, w):
            return g

    class Other(Same):
        def gradient(self, rec, g):
            return self.at(0, g[0] * (rec.inputs[0] == rec.inputs[0]))

    unregister(Same)
    assert (Same.reads, Other.reads) == ((), ("inputs", "outputs"))
