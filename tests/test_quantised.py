"""Quantised models: computed as onnxruntime does, rounding passed straight through and booked."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxplain as ox
from onnxplain.errors import ModelError, UnsupportedOpError
from onnxplain.graph.graph import build
from onnxplain.graph.load import read_model
from onnxplain.kernels.quantised import limits, on_float_grid
from onnxplain.rules import AlphaBeta, Pass
from onnxplain.walk import forward

FOLDER = Path(__file__).with_name("quantised")
QDQ, QOPERATOR = ("cnn_qdq", "cnn_qdq_channels"), ("cnn_qoperator", "cnn_qoperator_channels")
DYNAMIC = ("mlp_dynamic", "transformer_dynamic")
MODELS = (*QDQ, *QOPERATOR, *DYNAMIC)
MICROSOFT = "com.microsoft"
BYTE = np.uint8(110)

every_model = pytest.mark.parametrize("name", MODELS)


def stored(name):
    return ox.convert(FOLDER / f"{name}.onnx"), dict(np.load(FOLDER / f"{name}.npz"))


def inner_tensors(name):
    """Yield name, our numbers and onnxruntime's, for every tensor of bytes."""
    converter, case = stored(name)
    graph, _ = converter.graph_for(np.float32)
    values = forward(graph, {"x": case["x"]})
    for key in (k for k in case if k.startswith("q/")):
        yield key.removeprefix("q/"), values[key.removeprefix("q/")], case[key]


# -- forward --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QOPERATOR)
def test_every_tensor_of_an_integer_model_is_that_of_onnxruntime(name):
    tensors = list(inner_tensors(name))
    assert len(tensors) == 13
    for tensor, ours, theirs in tensors:
        np.testing.assert_array_equal(ours, theirs, err_msg=tensor)


@pytest.mark.parametrize("name", QDQ)
def test_tensors_of_a_fake_quantised_model_differ_from_a_mean_on_only(name):
    """A mean of four bytes is one time in four half a step: the last bit of a float decides."""
    tensors = list(inner_tensors(name))
    pool = next(i for i, (tensor, *_) in enumerate(tensors) if "AveragePool" in tensor)
    for tensor, ours, theirs in tensors[:pool]:
        np.testing.assert_array_equal(ours, theirs, err_msg=tensor)
    (_, _, before), (_, ours, theirs) = tensors[pool - 1 : pool + 1]
    n, c, h, w = ours.shape
    means = before.reshape(n, c, h, 2, w, 2).mean(axis=(3, 5), dtype=float)
    off = abs(ours - theirs)
    assert off.max() <= 1
    np.testing.assert_array_equal(means[off > 0] % 1, 0.5)
    for _, ours, theirs in tensors[pool + 1 :]:
        assert abs(ours - theirs).max() <= 2


@every_model
@pytest.mark.parametrize("dtype", ["float", "double"])
def test_predictions_are_those_of_onnxruntime(name, dtype):
    converter, case = stored(name)
    converter.dtype = dtype
    step = 0.018  # of the last tensor, in the models that round it
    np.testing.assert_allclose(
        converter(case["x"])[0], case["y"], rtol=0, atol=2 * step if name in QDQ else 1e-6
    )


@every_model
def test_rows_do_not_depend_on_the_rows_beside_them(name):
    converter, case = stored(name)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(23, *case["x"].shape[1:])).astype(np.float32)
    together = converter(x)[0]
    for size in (1, 7):
        np.testing.assert_array_equal(converter(x, batch_size=size)[0], together)


def test_dynamic_ranges_are_those_of_one_row_at_a_time():
    converter, case = stored("mlp_dynamic")
    wide = np.concatenate([case["x"], 100 * case["x"]])
    assert converter.graph.fixed_batch is None
    np.testing.assert_array_equal(converter(wide)[0][:4], converter(case["x"])[0])


# -- gradients ------------------------------------------------------------------------------------


@every_model
def test_gradient_is_that_of_rounding_passed_straight_through(name):
    converter, case = stored(name)
    found = ox.Gradient(converter, case["x"], dtype="double").get_result()
    expected = np.moveaxis(case["gradient"], 1, -1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize(
    "x, slope",
    [(0.0, 1), (1.0, 1), (-6.4, 1), (6.35, 1), (6.37, 1), (6.38, 0), (50.0, 0), (-6.46, 0)],
)
def test_gradient_is_one_between_the_bounds_and_zero_where_numbers_saturate(x, slope):
    model = between(zero=np.int8(0), scale=0.05)  # -6.4 to 6.35, half a step more on each side
    data = np.array([[x]])
    assert ox.Gradient(ox.convert(model), data, dtype="double").result[0][0].item() == slope


# -- DeepLIFT and relevance -----------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_what_rounding_keeps_is_booked_and_closes_the_sum(name, rule):
    converter, case = stored(name)
    x, reference = case["x"], case["x"][:1][::-1] * 0.5 + 0.1
    found = ox.DeepLift(converter, x, x_ref=reference, rule_name=rule, dtype="double")
    ledger = found.ledger()
    assert ledger.gap.max() < 1e-9
    missing = (found.decomp_goal[0] - found.decomp_sum[0]).sum()
    np.testing.assert_allclose(ledger.rounding.sum(), missing, rtol=0, atol=1e-9)
    assert abs(missing) > 1e-4
    rounds = ledger.op.isin(["QuantizeLinear", "DynamicRounding"])
    assert not ledger.rounding[~rounds].any()


@pytest.mark.parametrize("x, x0", [(1.0, 3.0), (50.0, 1.0), (-50.0, 50.0), (50.0, 60.0)])
def test_deeplift_passes_saturation_by_its_secant(x, x0):
    model, high = between(zero=np.int8(0), scale=0.05), 6.375
    found = ox.DeepLift(ox.convert(model), [[x]], x_ref=[[x0]], dtype="double")
    expected = np.clip(x, -6.425, high) - np.clip(x0, -6.425, high)
    np.testing.assert_allclose(found.result[0][0].item(), expected, atol=1e-6)


@every_model
@pytest.mark.parametrize("rule", ["simple", "epsilon", "alpha_beta", "gamma", "z_plus"])
def test_relevance_ledger_closes_at_every_node(name, rule):
    converter, case = stored(name)
    table = ox.LRP(converter, case["x"], rule_name=rule, dtype="double").ledger()
    assert table.gap.max() < 1e-9


@pytest.mark.parametrize("name", QOPERATOR)
def test_layers_keep_their_names_and_get_the_rules_of_their_kind(name):
    converter, case = stored(name)
    names = {n.name for n in onnx.load(FOLDER / f"{name}.onnx").graph.node}
    layers = [n for n in converter.graph.nodes if n.op in ("Conv", "Gemm")]
    assert len(layers) == 5
    assert {n.name for n in layers} <= names
    ledger = ox.LRP(converter, case["x"], rule_name={"Conv2D": AlphaBeta(1)}).ledger()
    assert set(ledger.rule[ledger.op == "Conv"]) == {"AlphaBeta(alpha=1)"}
    assert set(ledger.rule[ledger.op == "Gemm"]) == {"Simple()"}


@pytest.mark.parametrize("name", DYNAMIC)
def test_scales_and_biases_of_integer_products_become_layers(name):
    converter, _ = stored(name)
    layers = [n for n in converter.graph.nodes if n.op == "MatMul" and sum(n.kernel.active) == 1]
    assert len(layers) == {"mlp_dynamic": 3, "transformer_dynamic": 7}[name]
    assert not any(n.op in ("Cast", "MatMulInteger") for n in converter.graph.nodes)


@every_model
def test_coverage_names_what_rounds(name):
    converter, _ = stored(name)
    for method in ("gradient", "lrp", "deeplift"):
        table = converter.coverage(method)
        assert (table.rule != "").all()
        inexact = set(table.op[~table.exact])
        assert inexact <= {"QuantizeLinear", "onnxplain.DynamicRounding"}
        assert bool(inexact) == (method != "lrp")
        rounding = table[table.op.isin({"QuantizeLinear", "onnxplain.DynamicRounding"})]
        assert rounding.remark.str.contains("straight through").all()


def test_a_quantised_last_activation_is_left_out_with_its_rounding():
    nodes = [
        helper.make_node("Softmax", ["x"], ["p"]),
        helper.make_node("QuantizeLinear", ["p", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    converter = ox.convert(graph(nodes, {"s": np.float32(1 / 255), "z": np.uint8(0)}, 3))
    x = np.array([[1.0, 2.0, 30.0]])
    found = ox.Gradient(converter, x, dtype="double")
    np.testing.assert_array_equal(found.result[0][0][0], np.eye(3))
    np.testing.assert_allclose(found.preds[0], [[0, 0, 1]], atol=1e-6)


# -- single operators -----------------------------------------------------------------------------


def graph(nodes, weights, width, opset=21, shape=None, dtype=TensorProto.FLOAT):
    """Return a model of "x" (n, width) or (n, *shape) to "y"."""
    infos = [
        helper.make_tensor_value_info("x", dtype, ["n", *(shape or (width,))]),
        onnx.ValueInfoProto(name="y"),
    ]
    infos[1].type.tensor_type.elem_type = TensorProto.FLOAT
    kept = [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    body = helper.make_graph(nodes, "g", infos[:1], infos[1:], kept)
    return helper.make_model(body, opset_imports=opsets, ir_version=10)


def between(*inner, zero=BYTE, scale=0.03, weights=None, shape=(1,)):
    """Return a model whose nodes `inner` stand between bytes "a" of x and bytes "b" of y."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["a"]),
        *inner,
        helper.make_node("DequantizeLinear", ["b" if inner else "a", "s", "z"], ["y"]),
    ]
    return graph(nodes, {"s": np.float32(scale), "z": zero} | (weights or {}), None, shape=shape)


def by_onnxruntime(model, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"x": x})[0]


def microsoft(op, inputs, output="b", **attributes):
    return helper.make_node(op, inputs, [output], domain=MICROSOFT, **attributes)


SCALES = {
    "t": np.float32(0.011),
    "u": np.uint8(131),
    "c": np.random.default_rng(0).integers(0, 256, (1, 2, 4, 4)).astype(np.uint8),
}
SAME = ["a", "s", "z", "s", "z"]
BETWEEN = {
    "QLinearAdd": microsoft("QLinearAdd", ["a", "s", "z", "c", "t", "u", "s", "z"]),
    "QLinearAdd of data": microsoft("QLinearAdd", ["a", "s", "z", "a", "s", "z", "s", "z"]),
    "QLinearMul": microsoft("QLinearMul", ["c", "t", "u", "a", "s", "z", "s", "z"]),
    "QLinearMul of data": microsoft("QLinearMul", ["a", "s", "z", "a", "s", "z", "s", "z"]),
    "QLinearSigmoid": microsoft("QLinearSigmoid", SAME),
    "QLinearLeakyRelu": microsoft("QLinearLeakyRelu", SAME, alpha=0.2),
    "QLinearSoftmax": microsoft("QLinearSoftmax", SAME, axis=-1, opset=13),
    "QLinearSoftmax of old": microsoft("QLinearSoftmax", SAME, axis=2, opset=11),
    "QLinearAveragePool": microsoft("QLinearAveragePool", SAME, kernel_shape=[3, 3]),
    "QLinearGlobalAveragePool": microsoft("QLinearGlobalAveragePool", SAME, channels_last=0),
    "QLinearConcat": microsoft("QLinearConcat", ["s", "z", "a", "s", "z", "a", "s", "z"], axis=2),
    "MaxPool": helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2]),
    "Transpose": helper.make_node("Transpose", ["a"], ["b"], perm=[0, 3, 1, 2]),
    "Pad": helper.make_node("Pad", ["a", "pads", "z"], ["b"]),
    "Max": helper.make_node("Max", ["a", "z"], ["b"]),
    "Clip": helper.make_node("Clip", ["a", "z", "u"], ["b"]),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_operator_on_bytes_is_that_of_onnxruntime(name):
    weights = SCALES | {"pads": np.array([0, 0, 1, 0, 0, 0, 0, 2])}
    model = between(BETWEEN[name], weights=weights, shape=(2, 4, 4))
    x = np.random.default_rng(3).normal(0, 2, (3, 2, 4, 4)).astype(np.float32)
    converter, expected = ox.convert(model), by_onnxruntime(model, x)
    step = 0.03 if "Softmax" in name else 0  # onnxruntime has a table of exponentials for bytes
    np.testing.assert_allclose(converter(x)[0], expected, rtol=0, atol=step + 1e-5)
    assert np.isfinite(ox.Gradient(converter, x, output_idx=[0]).result[0][0]).all()
    found = ox.DeepLift(converter, x, dtype="double", ignore_last_act=False, output_idx=[0, 1])
    assert found.ledger().gap.max() < 1e-9


def product(op, inputs, output="y", **attributes):
    """Return a model of one product of x (n, 8) with weights of all the kinds there are."""
    rng = np.random.default_rng(5)
    weights = {
        "s": np.float32(0.03),
        "z": np.uint8(110),
        "w": rng.integers(-128, 128, (8, 5)).astype(np.int8),
        "ws": (rng.uniform(0.5, 1, 5) / 99).astype(np.float32),
        "wz": np.zeros(5, np.int8),
        "bias": rng.normal(size=5).astype(np.float32),
        "ibias": rng.integers(-999, 999, 5).astype(np.int32),
        "one": np.float32(0.01),
        "zero": np.int8(3),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["a"]),
        helper.make_node("DynamicQuantizeLinear", ["x"], ["d", "ds", "dz"]),
        microsoft(op, inputs, output, **attributes),
    ]
    if output != "y":
        nodes.append(helper.make_node("DequantizeLinear", ["b", "s", "z"], ["y"]))
    return graph(nodes, weights, 8)


@pytest.mark.parametrize(
    "op, inputs, attributes",
    [
        ("MatMulIntegerToFloat", ["a", "w", "s", "ws", "z", "wz", "bias"], {}),
        ("MatMulIntegerToFloat", ["a", "w", "s", "one", "z", "zero"], {}),
        ("MatMulIntegerToFloat", ["d", "w", "ds", "one", "dz", "zero", "bias"], {}),
        ("DynamicQuantizeMatMul", ["x", "w", "ws", "wz", "bias"], {}),
        ("DynamicQuantizeMatMul", ["x", "w", "one", "zero"], {}),
        ("QGemm", ["a", "s", "z", "w", "ws", "wz", "ibias"], {}),
        ("QGemm", ["a", "s", "z", "w", "one", "zero", "ibias"], {"alpha": 0.5}),
    ],
)
def test_product_is_that_of_onnxruntime_row_by_row(op, inputs, attributes):
    model = product(op, inputs, **attributes)
    x = np.random.default_rng(3).normal(0, 2, (3, 8)).astype(np.float32)
    converter = ox.convert(model)
    expected = np.concatenate([by_onnxruntime(model, row[None]) for row in x])
    np.testing.assert_allclose(converter(x)[0], expected, rtol=0, atol=1e-5 * abs(expected).max())
    found = ox.DeepLift(converter, x, dtype="double")
    assert found.ledger().gap.max() < 1e-9


@pytest.mark.parametrize("zeros", [None, "packed", "float"])
@pytest.mark.parametrize("k, n, block", [(64, 3, 32), (40, 5, 16)])
def test_product_with_weights_of_four_bits_is_that_of_onnxruntime(k, n, block, zeros):
    rng = np.random.default_rng(k)
    blocks = -(-k // block)
    weights = {
        "b": rng.integers(0, 256, (n, blocks, block // 2)).astype(np.uint8),
        "scales": rng.uniform(0.01, 0.1, n * blocks).astype(np.float32),
    }
    if zeros == "packed":
        weights["zeros"] = rng.integers(0, 256, n * -(-blocks // 2)).astype(np.uint8)
    elif zeros == "float":
        weights["zeros"] = rng.uniform(0, 15, n * blocks).astype(np.float32)
    attributes = {"K": k, "N": n, "bits": 4, "block_size": block}
    model = graph([microsoft("MatMulNBits", ["x", *weights], "y", **attributes)], weights, k)
    x = rng.normal(size=(3, k)).astype(np.float32)
    expected = by_onnxruntime(model, x)
    np.testing.assert_allclose(ox.convert(model)(x)[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("domain", ["", MICROSOFT])
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_scales_along_an_axis_are_those_of_onnxruntime(domain, axis):
    size = {1: 2, 2: 3, -1: 4}[axis]
    rng = np.random.default_rng(axis % 5)
    weights = {
        "s": rng.uniform(0.01, 0.03, size).astype(np.float32),
        "z": rng.integers(0, 255, size).astype(np.uint8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], domain=domain, axis=axis),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], domain=domain, axis=axis),
    ]
    model = graph(nodes, weights, None, shape=(2, 3, 4))
    x = rng.normal(0, 2, (5, 2, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(ox.convert(model)(x)[0], by_onnxruntime(model, x), atol=1e-6)


def test_int32_bias_added_to_an_integer_convolution():
    rng = np.random.default_rng(0)
    weights = {
        "s": np.float32(0.03),
        "z": np.uint8(110),
        "w": rng.integers(-128, 128, (3, 2, 2, 2)).astype(np.int8),
        "bias": rng.integers(-5000, 5000, (1, 3, 1, 1)).astype(np.int32),
        "m": np.float32(1e-3),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["a"]),
        helper.make_node("ConvInteger", ["a", "w", "z"], ["c"]),
        helper.make_node("Add", ["c", "bias"], ["d"]),
        helper.make_node("Cast", ["d"], ["e"], to=1),
        helper.make_node("Mul", ["e", "m"], ["y"]),
    ]
    model = graph(nodes, weights, None, shape=(2, 4, 4))
    x = rng.normal(size=(2, 2, 4, 4)).astype(np.float32)
    converter = ox.convert(model)
    found = converter(x)[0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_onnxruntime(model, x), rtol=1e-5, atol=1e-5)
    assert [n.op for n in converter.graph.nodes][-1] == "Conv"  # bias and scale are in the layer


def test_integer_product_of_two_tensors_with_data():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
        helper.make_node("MatMulInteger", ["a", "b", "z", "z"], ["c"]),
        helper.make_node("Cast", ["c"], ["y"], to=1),
    ]
    model = graph(nodes, {"s": np.float32(0.02), "z": np.uint8(120)}, None, shape=(3, 4))
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    converter = ox.convert(model)
    np.testing.assert_array_equal(converter(x)[0], by_onnxruntime(model, x))
    found = ox.DeepLift(converter, x, dtype="double", output_idx=[1])
    np.testing.assert_allclose(
        found.ledger().rounding.sum(), (found.decomp_goal[0] - found.decomp_sum[0]).sum()
    )


def test_inner_tensors_of_bytes_can_be_outputs():
    _, case = stored("cnn_qoperator")
    names = [k.removeprefix("q/") for k in case if k.startswith("q/")][:2]
    converter = ox.convert(FOLDER / "cnn_qoperator.onnx", outputs=names)
    for found, name in zip(converter(case["x"]), names, strict=True):
        np.testing.assert_array_equal(found, case[f"q/{name}"])


def test_scale_and_bytes_of_a_dynamic_range_can_be_asked_for():
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"])]
    nodes += [helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"])]
    model = graph(nodes, {}, 4)
    raw = read_model(model)
    x = np.array([[-1.0, 0.2, 3.0, 0.5]], np.float32)
    built = build(raw, outputs=["q", "scale", "zero"])
    found = forward(built, {"x": x})
    assert found["q"].dtype == np.uint8
    assert found["zero"] == 64
    np.testing.assert_allclose(found["scale"], 4 / 255)


def test_images_of_bytes_are_explained_at_their_real_numbers():
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["real"]),
        helper.make_node("MatMul", ["real", "w"], ["y"]),
    ]
    w = np.arange(6, dtype=np.float32).reshape(3, 2)
    weights = {"s": np.float32(0.5), "z": np.uint8(10), "w": w}
    model = graph(nodes, weights, 3, dtype=TensorProto.UINT8)
    converter = ox.convert(model, inputs="real")
    x = np.array([[12, 10, 8]], np.uint8)
    np.testing.assert_array_equal(converter(x)[0], [[-4, -4]])
    found = ox.Gradient(converter, x, times_input=True).result[0][0]
    np.testing.assert_array_equal(found[0], np.array([[1.0], [0], [-1]]) * w)


def test_ranges_of_a_tensor_that_mixes_rows_run_one_row_at_a_time():
    """Axis 0 of what is rounded is not the batch: only alone is a row what onnxruntime computes."""
    rng = np.random.default_rng(0)
    weights = {"rows": np.array([-1, 4]), "back": np.array([-1, 3, 4])}
    weights["w"] = rng.integers(-128, 128, (4, 4)).astype(np.int8)
    weights |= {"one": np.float32(0.01), "zero": np.int8(0)}
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["flat"]),
        microsoft("DynamicQuantizeMatMul", ["flat", "w", "one", "zero"], "product"),
        helper.make_node("Reshape", ["product", "back"], ["y"]),
    ]
    model = graph(nodes, weights, None, shape=(3, 4))
    converter = ox.convert(model)
    x = rng.normal(size=(5, 3, 4)).astype(np.float32)
    assert converter.graph.fixed_batch == 1
    expected = np.concatenate([by_onnxruntime(model, row[None]) for row in x])
    np.testing.assert_allclose(converter(x)[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "dtype",
    [
        *("uint8", "int8", "uint16", "int16", "uint4", "int4", "uint2", "int2"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float4_e2m1fn"),
    ],
)
def test_numbers_that_carry_data_are_those_that_a_file_would_hold(dtype):
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    low, high = limits(kind)
    zero = np.array([0 if "float" in dtype else min(3, high)]).astype(kind)
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])]
    nodes += [helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    x = np.linspace(1.2 * low, 1.2 * high, 101, dtype=np.float32)[None] * np.float32(0.7)
    weights = {"s": np.float32(0.7), "z": zero.reshape(())}
    model = graph(nodes, weights, 101, opset=25)
    carried = forward(build(read_model(model)), {"x": x})
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    fixed.graph.initializer.append(numpy_helper.from_array(x, "x"))
    del fixed.graph.input[:]
    folded = forward(build(read_model(fixed), outputs=["q", "y"]), {})
    assert folded["q"].dtype == kind
    np.testing.assert_array_equal(carried["q"], folded["q"].astype(np.float32))
    np.testing.assert_allclose(carried["y"], folded["y"], rtol=1e-6)


def test_short_floats_round_as_their_types_do():
    import ml_dtypes

    t = np.random.default_rng(0).normal(size=2000) * 10.0 ** np.arange(-4, 2).repeat(400)[:2000]
    for kind in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float4_e2m1fn):
        inside = t[abs(t) < limits(kind)[1]]
        np.testing.assert_array_equal(on_float_grid(inside, kind), inside.astype(kind))


# -- what cannot be -------------------------------------------------------------------------------


def test_pass_is_refused_for_a_layer_inside_an_integer_operator():
    converter, case = stored("cnn_qoperator")
    with pytest.raises(ox.OnnxplainError, match="'pass' cannot be used"):
        ox.LRP(converter, case["x"], rule_name={"Conv2D": Pass()})


def test_division_of_whole_numbers_with_data_is_refused():
    node = helper.make_node("Div", ["a", "two"], ["b"])
    with pytest.raises(UnsupportedOpError, match="cuts fractions off"):
        ox.convert(between(node, weights={"two": np.uint8(2)}))


def test_bytes_of_a_dynamic_range_that_are_read_as_such_carry_no_signal():
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("Max", ["q", "high"], ["raised"]),
        helper.make_node("DequantizeLinear", ["raised", "scale", "zero"], ["r"]),
        helper.make_node("Add", ["r", "x"], ["y"]),
    ]
    model = graph(nodes, {"high": np.uint8(100)}, 4)
    x = np.array([[-1.0, 0.2, 3.0, 0.5]], np.float32)
    converter = ox.convert(model)
    np.testing.assert_allclose(converter(x)[0], by_onnxruntime(model, x), atol=1e-6)
    np.testing.assert_array_equal(ox.Gradient(converter, x).result[0][0][0], np.eye(4))
    table = converter.coverage("deeplift")
    assert "steps" in table.remark[table.op == "DynamicQuantizeLinear"].item()


@pytest.mark.parametrize(
    "node, words",
    [
        (microsoft("QLinearGlobalAveragePool", SAME, channels_last=1), "made by onnxruntime"),
        (microsoft("QLinearConcat", ["s", "z", "a", "s"]), "are no tensors with a scale"),
        (microsoft("MatMulNBits", ["c", "a", "s"], K=4, N=4, block_size=16), "constant weights"),
        (microsoft("MatMulNBits", ["a", "c", "s"], K=4, N=4, bits=5, block_size=16), "5 bits"),
    ],
)
def test_what_is_not_supported_says_so(node, words):
    model = between(node, weights=SCALES, shape=(2, 4, 4))
    with pytest.raises((UnsupportedOpError, ModelError), match=words):
        ox.convert(model)
