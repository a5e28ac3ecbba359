"""Batch sizes baked into a file are handled or refused, and no row is mixed with another."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import onnxplain as ox
from onnxplain.errors import ModelError, OnnxplainError

node = helper.make_node
RNG = np.random.default_rng(0)


def ints(*values):
    return np.array(values, np.int64)


def draw(*shape):
    return RNG.standard_normal(shape)


def model(nodes, weights, x, y):
    """A model from input x to output y; shapes with the batch axis."""
    g = helper.make_graph(
        nodes,
        "fixed",
        [helper.make_tensor_value_info("x", onnx.TensorProto.DOUBLE, x)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, y)],
        [numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items()],
    )
    made = helper.make_model(g, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def run_fixed(proto, rows):
    """Run a model in batches of its size, filled with copies, with ONNX's reference."""
    session = ReferenceEvaluator(proto)
    batch = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    return np.concatenate(
        [session.run(None, {"x": np.repeat(row[None], batch, axis=0)})[0][:1] for row in rows]
    )


# -- models of a fixed batch ----------------------------------------------------------------------


def convolution(batch, shape):
    """A CNN whose Flatten became a Reshape to a constant."""
    nodes = [
        node("Conv", ["x", "k"], ["c"], "conv"),
        node("Relu", ["c"], ["r"], "relu"),
        node("Reshape", ["r", "shape"], ["f"], "reshape"),
        node("Gemm", ["f", "w", "b"], ["y"], "last", transB=1),
    ]
    weights = {"k": draw(3, 2, 3, 3), "shape": ints(*shape), "w": draw(4, 12), "b": draw(4)}
    return model(nodes, weights, [batch, 2, 4, 4], [batch, 4])


def folded_heads(batch, cls=False):
    """Attention with heads folded into the batch, as exported without dynamic axes."""
    length, width, heads = 3 + cls, 6, 2
    nodes, source = [], "x"
    weights = {name: draw(width, width) / 2 for name in "qkv"}
    weights |= {
        "split": ints(batch, length, heads, width // heads),
        "fold": ints(batch * heads, length, width // heads),
        "unfold": ints(batch, heads, length, width // heads),
        "merge": ints(batch, length, width),
        "w": draw(width, 3),
        "zero": np.int64(0),
    }
    if cls:
        weights |= {"token": draw(1, 1, width), "place": draw(1, length, width)}
        weights |= {"size": ints(batch, 1, width)}
        nodes = [
            node("Expand", ["token", "size"], ["t"], "cls"),
            node("Concat", ["t", "x"], ["j"], "concat", axis=1),
            node("Add", ["j", "place"], ["p"], "position"),
        ]
        source = "p"
    for name in "qkv":
        nodes += [
            node("MatMul", [source, name], [f"{name}0"], f"{name}_projection"),
            node("Reshape", [f"{name}0", "split"], [f"{name}1"], f"{name}_split"),
            node("Transpose", [f"{name}1"], [f"{name}2"], f"{name}_turn", perm=[0, 2, 1, 3]),
            node("Reshape", [f"{name}2", "fold"], [f"{name}3"], f"{name}_fold"),
        ]
    nodes += [
        node("Transpose", ["k3"], ["kt"], "keys", perm=[0, 2, 1]),
        node("MatMul", ["q3", "kt"], ["s"], "scores"),
        node("Softmax", ["s"], ["a"], "softmax", axis=-1),
        node("MatMul", ["a", "v3"], ["o"], "mix"),
        node("Reshape", ["o", "unfold"], ["o1"], "unfold"),
        node("Transpose", ["o1"], ["o2"], "turn", perm=[0, 2, 1, 3]),
        node("Reshape", ["o2", "merge"], ["o3"], "merge"),
        node("Gather", ["o3", "zero"], ["first"], "first", axis=1),
        node("MatMul", ["first", "w"], ["y"], "head"),
    ]
    return model(nodes, weights, [batch, 3, width], [batch, 3])


def sequence_first(batch):
    """Torch's attention: (L, N, E) inside, (L, N heads, E / heads) in the products."""
    length, width, heads = 4, 6, 2
    weights = {name: draw(width, width) / 2 for name in "qkv"}
    weights |= {
        "fold": ints(length, batch * heads, width // heads),
        "merge": ints(length, batch, width),
        "w": draw(width, 3),
        "zero": np.int64(0),
    }
    nodes = [node("Transpose", ["x"], ["l"], "to_sequence", perm=[1, 0, 2])]
    for name in "qkv":
        nodes += [
            node("MatMul", ["l", name], [f"{name}0"], f"{name}_projection"),
            node("Reshape", [f"{name}0", "fold"], [f"{name}1"], f"{name}_fold"),
            node("Transpose", [f"{name}1"], [f"{name}2"], f"{name}_turn", perm=[1, 0, 2]),
        ]
    nodes += [
        node("Transpose", ["k2"], ["kt"], "keys", perm=[0, 2, 1]),
        node("MatMul", ["q2", "kt"], ["s"], "scores"),
        node("Softmax", ["s"], ["a"], "softmax", axis=-1),
        node("MatMul", ["a", "v2"], ["o"], "mix"),
        node("Transpose", ["o"], ["o1"], "turn", perm=[1, 0, 2]),
        node("Reshape", ["o1", "merge"], ["o2"], "merge"),
        node("Gather", ["o2", "zero"], ["first"], "first", axis=0),
        node("MatMul", ["first", "w"], ["y"], "head"),
    ]
    return model(nodes, weights, [batch, length, width], [batch, 3])


FIXED = {
    "Reshape to [1, -1]": lambda: convolution(1, (1, -1)),
    "Reshape to [1, k]": lambda: convolution(1, (1, 12)),
    "Reshape to [4, -1]": lambda: convolution(4, (4, -1)),
    "Reshape to [4, k]": lambda: convolution(4, (4, 12)),
    "Reshape to [-1, k]": lambda: convolution(4, (-1, 12)),
    "heads folded into a batch of 1": lambda: folded_heads(1),
    "heads folded into a batch of 4": lambda: folded_heads(4),
    "class token expanded to 1": lambda: folded_heads(1, cls=True),
    "class token expanded to 4": lambda: folded_heads(4, cls=True),
    "sequence first, batch of 1": lambda: sequence_first(1),
    "sequence first, batch of 4": lambda: sequence_first(4),
}
METHODS = {
    "Gradient": lambda c, x, r: ox.Gradient(c, x, dtype="double"),
    "SmoothGrad": lambda c, x, r: ox.SmoothGrad(c, x, n=3, seed=0, dtype="double"),
    "IntegratedGradient": lambda c, x, r: ox.IntegratedGradient(
        c, x, x_ref=r[:1], n=3, dtype="double"
    ),
    "ExpectedGradient": lambda c, x, r: ox.ExpectedGradient(
        c, x, data_ref=r, n=3, seed=0, dtype="double"
    ),
    "LRP": lambda c, x, r: ox.LRP(c, x, rule_name="epsilon", dtype="double"),
    "DeepLift": lambda c, x, r: ox.DeepLift(c, x, x_ref=r[:1], dtype="double"),
    "DeepSHAP": lambda c, x, r: ox.DeepSHAP(c, x, data_ref=r, dtype="double"),
}


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("rows", [1, 3, 4, 6])
def test_a_fixed_batch_predicts_any_number_of_rows(name, rows):
    proto = FIXED[name]()
    converter = ox.convert(proto, dtype="double")
    x = draw(rows, *converter.input_dim[0])
    np.testing.assert_allclose(converter(x)[0], run_fixed(proto, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("method", METHODS)
def test_a_fixed_batch_explains_like_row_by_row(name, method):
    converter = ox.convert(FIXED[name](), dtype="double")
    x, r = draw(5, *converter.input_dim[0]), draw(3, *converter.input_dim[0])
    together = METHODS[method](converter, x, r)
    alone = [METHODS[method](converter, x[i : i + 1], r) for i in range(5)]
    expected = np.concatenate([a.get_result() for a in alone])
    np.testing.assert_allclose(together.get_result(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_batch_has_the_right_gradient(name):
    """Against differences of the file itself, run by ONNX's reference."""
    proto = FIXED[name]()
    converter = ox.convert(proto, dtype="double")
    x, direction = draw(2, *converter.input_dim[0]), draw(2, *converter.input_dim[0])
    gradient = ox.Gradient(converter, x, dtype="double").get_result()
    slope = (gradient * direction[..., None]).reshape(2, -1, gradient.shape[-1]).sum(axis=1)
    h = 1e-5
    up, down = (run_fixed(proto, x + s * h * direction) for s in (1, -1))
    np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_a_fixed_batch_is_decomposed_without_a_gap(name, rule):
    converter = ox.convert(FIXED[name](), dtype="double")
    x, r = draw(3, *converter.input_dim[0]), draw(2, *converter.input_dim[0])
    lift = ox.DeepLift(converter, x, x_ref=r[:1], rule_name=rule, dtype="double")
    np.testing.assert_allclose(lift.decomp_sum[0], lift.decomp_goal[0], rtol=0, atol=1e-10)
    assert lift.ledger().gap.max() < 1e-10
    assert ox.LRP(converter, x, dtype="double").ledger().gap.max() < 1e-8
    shap = ox.DeepSHAP(converter, x, data_ref=r, rule_name=rule, dtype="double")
    np.testing.assert_allclose(shap.decomp_sum[0], shap.decomp_goal[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [n for n in FIXED if n.startswith("Reshape")])
def test_the_batch_of_a_plain_reshape_is_freed(name):
    assert ox.convert(FIXED[name]()).graph.fixed_batch is None


def test_a_batch_that_cannot_be_freed_is_told():
    converter = ox.convert(FIXED["class token expanded to 4"]())
    assert converter.graph.fixed_batch == 4
    assert "batch size fixed by the file: 4" in repr(converter)


# -- free batches ---------------------------------------------------------------------------------


def test_a_free_batch_may_be_moved_inside():
    """Axis 0 of inner tensors is the sequence."""
    nodes = [
        node("Transpose", ["x"], ["t"], "turn", perm=[1, 0, 2]),
        node("MatMul", ["t", "w"], ["m"], "product"),
        node("Tanh", ["m"], ["a"], "tanh"),
        node("ReduceMax", ["a", "axes"], ["y"], "maximum", keepdims=0),
    ]
    proto = model(nodes, {"w": draw(3, 5), "axes": ints(0)}, ["N", 4, 3], ["N", 5])
    converter = ox.convert(proto, dtype="double")
    assert not converter.graph.rows_first
    x, r = draw(5, 4, 3), draw(3, 4, 3)
    for explain in METHODS.values():
        together = explain(converter, x, r).get_result()
        alone = np.concatenate([explain(converter, x[i : i + 1], r).get_result() for i in range(5)])
        np.testing.assert_allclose(together, alone, rtol=0, atol=1e-10)
    lift = ox.DeepLift(converter, x, x_ref=r[:1], dtype="double")
    np.testing.assert_allclose(lift.decomp_sum[0], lift.decomp_goal[0], rtol=0, atol=1e-10)


# -- rows that are mixed --------------------------------------------------------------------------

MIXED = {
    "centred over the batch": (
        [
            node("ReduceMean", ["x", "axes"], ["m"], "mean", keepdims=1),
            node("Sub", ["x", "m"], ["y"], "centre"),
        ],
        {"axes": ints(0)},
    ),
    "softmax over the batch": ([node("Softmax", ["x"], ["y"], "softmax", axis=0)], {}),
    "maximum of the batch": (
        [
            node("ReduceMax", ["x", "axes"], ["m"], "max", keepdims=1),
            node("Add", ["x", "m"], ["y"], "sum"),
        ],
        {"axes": ints(0)},
    ),
    "product of rows": (
        [
            node("Gemm", ["x", "x"], ["s"], "gram", transB=1),
            node("Softmax", ["s"], ["a"], "softmax", axis=1),
            node("MatMul", ["a", "x"], ["y"], "mix"),
        ],
        {},
    ),
    "next row": (
        [
            node("Slice", ["x", "one", "far", "zero"], ["p"], "rest"),
            node("Slice", ["x", "zero", "one", "zero"], ["q"], "first"),
            node("Concat", ["p", "q"], ["r"], "rotate", axis=0),
            node("Add", ["r", "x"], ["y"], "sum"),
        ],
        {"one": ints(1), "far": ints(99), "zero": ints(0)},
    ),
    "reversed": (
        [node("Slice", ["x", "last", "far", "zero", "last"], ["y"], "reverse")],
        {"last": ints(-1), "far": ints(-99), "zero": ints(0)},
    ),
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("batch", ["N", 4])
def test_a_graph_that_mixes_rows_is_refused(name, batch):
    nodes, weights = MIXED[name]
    with pytest.raises(ModelError, match="batch"):
        ox.convert(model(nodes, weights, [batch, 3], [batch, 3]))


@pytest.mark.parametrize("name", MIXED)
def test_a_batch_of_one_has_nothing_to_mix(name):
    nodes, weights = MIXED[name]
    proto = model(nodes, weights, [1, 3], [1, 3])
    converter = ox.convert(proto, dtype="double")
    x = draw(3, 3)
    np.testing.assert_allclose(converter(x)[0], run_fixed(proto, x), rtol=1e-12, atol=1e-12)
    alone = [ox.Gradient(converter, x[i : i + 1], dtype="double").get_result() for i in range(3)]
    together = ox.Gradient(converter, x, dtype="double").get_result()
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=0, atol=1e-12)


def test_a_batch_on_another_axis_is_refused():
    """Inputs as (L, N, E): what lies on axis 0 is not a batch."""
    nodes = [
        node("Transpose", ["x"], ["t"], "keys", perm=[1, 2, 0]),
        node("Transpose", ["x"], ["q"], "queries", perm=[1, 0, 2]),
        node("MatMul", ["q", "t"], ["s"], "scores"),
        node("Softmax", ["s"], ["a"], "softmax", axis=-1),
        node("MatMul", ["a", "q"], ["o"], "mix"),
        node("Transpose", ["o"], ["y"], "back", perm=[1, 0, 2]),
    ]
    for length in ("L", 4):
        proto = model(nodes, {}, [length, "N", 6], [length, "N", 6])
        with pytest.raises(ModelError, match="batch"):
            ox.convert(proto, input_dim=(2, 6))


def test_a_sum_over_the_batch_is_refused():
    nodes = [node("ReduceSum", ["x", "axes"], ["y"], "sum", keepdims=0)]
    with pytest.raises(OnnxplainError, match="batch"):
        ox.convert(model(nodes, {"axes": ints(0)}, ["N", 3], [3]))


def test_a_reshape_that_only_looks_like_a_batch_is_left_alone():
    """Four windows of three, not a batch of four: the row's own axis has the batch's size."""
    nodes = [
        node("Reshape", ["x", "split"], ["s"], "split"),
        node("ReduceMean", ["s", "axes"], ["m"], "mean", keepdims=0),
        node("Gemm", ["m", "w"], ["y"], "last"),
    ]
    weights = {"split": ints(4, 4, 3), "axes": ints(1), "w": draw(3, 2)}
    proto = model(nodes, weights, [4, 12], [4, 2])
    converter = ox.convert(proto, dtype="double")
    x = draw(6, 12)
    np.testing.assert_allclose(converter(x)[0], run_fixed(proto, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 4])
def test_taking_the_batch_out_must_not_change_the_model(batch):
    """Two halves of a row are laid together again by [batch, -1], which cannot become [0, -1]."""
    nodes = [
        node("Reshape", ["x", "halves"], ["h"], "halves"),
        node("Reshape", ["h", "whole"], ["j"], "together"),
        node("Softmax", ["j"], ["s"], "softmax", axis=1),
        node("Reshape", ["s", "row"], ["y"], "row"),
    ]
    weights = {"halves": ints(2 * batch, 6), "whole": ints(batch, -1), "row": ints(batch, 12)}
    proto = model(nodes, weights, [batch, 12], [batch, 12])
    converter = ox.convert(proto, dtype="double")
    x = draw(6, 12)
    np.testing.assert_allclose(converter(x)[0], run_fixed(proto, x), rtol=1e-12, atol=1e-12)
