"""Reductions that are written with others, and closed forms at the edges of their domains."""

import numpy as np
import pytest
from onnx import helper

import onnxplain as ox
from networks import graph
from onnxplain.errors import ModelError
from onnxplain.graph.graph import build
from onnxplain.graph.load import read_model
from onnxplain.kernels import find, schema_defaults
from onnxplain.kernels.base import Record
from onnxplain.rules import DeepLiftSetting
from onnxplain.walk import forward

rng = np.random.default_rng(0)
X = rng.uniform(0.5, 2, (3, 4, 5)) * rng.choice([-1, 1], (3, 4, 1))
FORMULAS = {
    "ReduceL1": lambda x, **how: abs(x).sum(**how),
    "ReduceSumSquare": lambda x, **how: (x * x).sum(**how),
    "ReduceLogSum": lambda x, **how: np.log(x.sum(**how)),
    "ReduceLogSumExp": lambda x, **how: np.log(np.exp(x).sum(**how)),
}


def model(op, axes, opset, **attributes):
    """Return a model of one reduction, with its axes where the opset has them."""
    weights = {"axes": np.array(axes)} if opset >= 18 else {}
    attributes |= {} if opset >= 18 else {"axes": axes}
    node = helper.make_node(op, ["x", *weights], ["y"], **attributes)
    return graph([node], {"x": (4, 5)}, weights, opset=opset)


@pytest.mark.parametrize("op", FORMULAS)
@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("axes", [[1], [-1], [2, 1]])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reduction_is_its_formula_and_deeplift_exact(op, opset, axes, keepdims):
    proto, x = model(op, axes, opset, keepdims=keepdims), abs(X)
    expected = FORMULAS[op](x, axis=tuple(axes), keepdims=bool(keepdims))
    np.testing.assert_allclose(forward(build(read_model(proto)), {"x": x})["y"], expected)
    converter = ox.convert(proto, dtype="double", input_dim=(4, 5))
    found = ox.DeepLift(converter, x, x_ref=x[::-1][:1] / 3, dtype="double", output_idx=[0])
    np.testing.assert_allclose(found.decomp_sum[0], found.decomp_goal[0], atol=1e-12)


@pytest.mark.parametrize("op", FORMULAS)
def test_no_axes_reduce_all_or_none(op):
    node = helper.make_node(op, ["x"], ["y"], keepdims=0)
    x = abs(X)
    whole = forward(build(read_model(graph([node], {"x": (4, 5)}, opset=18))), {"x": x})["y"]
    np.testing.assert_allclose(whole, FORMULAS[op](x, axis=None))
    node = helper.make_node(op, ["x"], ["y"], keepdims=0, noop_with_empty_axes=1)
    idle = forward(build(read_model(graph([node], {"x": (4, 5)}, opset=18))), {"x": x})["y"]
    np.testing.assert_allclose(idle, FORMULAS[op](x[None], axis=0))


# -- products -------------------------------------------------------------------------------------


def bound(op, opset, **attributes):
    return find(op, opset, (True, False))(schema_defaults(op, opset) | attributes, (True, False))


def record(kernel, x, axis):
    return Record((x, axis), (kernel.forward(x, axis),))


@pytest.mark.parametrize(
    "op, opset, axis, attributes",
    [
        ("ReduceProd", 18, np.array([1]), {}),
        ("CumProd", 26, np.array(1), {}),
        ("CumProd", 26, np.array(1), {"exclusive": 1}),
        ("CumProd", 26, np.array(1), {"reverse": 1}),
    ],
)
@pytest.mark.parametrize("zeros", [(0,), (0, 3), (1, 2, 4)])
def test_products_with_zeros_have_gradients_and_exact_multipliers(
    op, opset, axis, attributes, zeros
):
    kernel = bound(op, opset, **attributes)
    x, x0 = rng.normal(size=(2, 3, 5))
    x[:, zeros] = 0
    rec, ref = record(kernel, x, axis), record(kernel, x0, axis)
    g = rng.normal(size=(1, *rec.outputs[0].shape))
    v = rng.normal(size=x.shape)
    h = 1e-5
    ahead, behind = (kernel.forward(x + s * h * v, axis) for s in (1, -1))
    slope = (g * (ahead - behind) / (2 * h)).sum()
    np.testing.assert_allclose(
        (kernel.gradient(rec, (g,))[0] * v).sum(), slope, rtol=1e-7, atol=1e-10
    )
    (m, _) = kernel.deeplift(rec, ref, (g,), DeepLiftSetting(), None)
    total = (g * (rec.outputs[0] - ref.outputs[0])).sum()
    np.testing.assert_allclose((m * (x - x0)).sum(), total, rtol=1e-11)


def test_factors_of_a_product_get_their_shapley_values():
    """Three factors that grow from 0 to 1, 2 and 3: the product 6 is shared equally."""
    kernel, axis = bound("ReduceProd", 18), np.array([1])
    rec = record(kernel, np.array([[1.0, 2.0, 3.0]]), axis)
    ref = record(kernel, np.zeros((1, 3)), axis)
    (m, _) = kernel.deeplift(rec, ref, (np.ones((1, 1, 1)),), DeepLiftSetting(), None)
    np.testing.assert_allclose(m[0] * rec.inputs[0], [[2, 2, 2]])


@pytest.mark.parametrize("n", [1, 2, 127, 128, 129, 1000])
def test_products_of_many_factors_are_exact(n):
    kernel, axis = bound("ReduceProd", 18), np.array([1])
    x, x0 = 1 + rng.normal(size=(2, 3, n)) / n
    rec, ref = record(kernel, x, axis), record(kernel, x0, axis)
    (m, _) = kernel.deeplift(rec, ref, (np.ones((1, 3, 1)),), DeepLiftSetting(), None)
    found = (m[0] * (x - x0)).sum(axis=1)
    np.testing.assert_allclose(found, (rec.outputs[0] - ref.outputs[0])[:, 0], rtol=1e-9)


# -- determinants and norms -----------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_matrices_without_an_inverse_have_cofactors(rank):
    kernel = find("Det", 22, (True,))({}, (True,))
    a, b = rng.normal(size=(2, 3, rank))
    x = (a @ b.T)[None]
    (g,) = kernel.gradient(Record((x,), (kernel.forward(x),)), (np.ones((1, 1)),))
    expected = [
        [(-1) ** (i + j) * np.linalg.det(np.delete(np.delete(x[0], i, 0), j, 1)) for j in range(3)]
        for i in range(3)
    ]
    np.testing.assert_allclose(g[0, 0], expected, atol=1e-12)


@pytest.mark.parametrize("p", [1, 2])
def test_rows_of_zeros_have_no_length(p):
    kernel = find("LpNormalization", 22, (True,))({"p": p, "axis": -1}, (True,))
    x, x0 = np.array([[0.0, 0, 0], [1, -2, 3]]), np.array([[1.0, 2, 2], [0, 0, 0]])
    rec, ref = (Record((v,), (kernel.forward(v),)) for v in (x, x0))
    np.testing.assert_array_equal(rec.outputs[0][0], 0)
    g = rng.normal(size=(1, 2, 3))
    (m,) = kernel.deeplift(rec, ref, (g,), DeepLiftSetting(), None)
    np.testing.assert_allclose(
        (m * (x - x0)).sum(axis=-1), (g * (rec.outputs[0] - ref.outputs[0])).sum(axis=-1)
    )


@pytest.mark.parametrize(
    "op, opset, attributes, words",
    [
        ("LpNormalization", 22, {"p": 3}, "p is 3, expected 1 or 2"),
        ("GroupNormalization", 21, {"num_groups": 0}, "num_groups is 0"),
        ("BitShift", 11, {"direction": "UP"}, "the direction is 'UP'"),
    ],
)
def test_attributes_are_checked(op, opset, attributes, words):
    with pytest.raises(ModelError, match=words):
        find(op, opset, (True,))(schema_defaults(op, opset) | attributes, (True,))


def test_groups_must_fit_the_channels():
    kernel = find("GroupNormalization", 21, (True,))({"num_groups": 3, "epsilon": 0.1}, (True,))
    with pytest.raises(ModelError, match="4 channels do not make 3 equal groups"):
        kernel.forward(X, np.ones(4), np.zeros(4))


def test_statistics_over_the_batch_are_refused():
    node = helper.make_node("MeanVarianceNormalization", ["x"], ["y"])
    with pytest.raises(ModelError, match="mixes the rows of a batch"):
        ox.convert(graph([node], {"x": (2, 4, 4)}), input_dim=(2, 4, 4))


@pytest.mark.parametrize(
    "opset, axis, shape",
    [(11, 1, (2, 6)), (11, -1, (2, 2, 3)), (13, 1, (2, 2, 3)), (13, -1, (2, 2, 3))],
)
def test_hardmax_marks_the_first_of_the_largest(opset, axis, shape):
    """Before opset 13 all axes from `axis` on are one."""
    x = np.array([[[1.0, 5, 5], [5, 0, 7]], [[3, 3, 3], [3, 3, 2]]])
    found = find("Hardmax", opset, (True,))({"axis": axis}, (True,)).forward(x)
    x, along = x.reshape(shape), 1 if opset == 11 and axis == 1 else axis
    first = np.expand_dims(x.argmax(axis=along), along)
    expected = np.zeros(shape)
    np.put_along_axis(expected, first, 1, axis=along)
    np.testing.assert_array_equal(found, expected.reshape(found.shape))
