"""Make the quantised models of this folder, with what onnxruntime computes.

Run `python -m quantised.make` in the folder of the tests. Needs onnxruntime and torch (for the
gradients that pass rounding straight through).
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from quantised.straight import gradients

HERE = Path(__file__).parent
rng = np.random.default_rng(0)


class Draft:
    """Collects nodes and weights."""

    def __init__(self, opset=17):
        self.nodes, self.weights, self.opset = [], [], opset

    def weight(self, *shape, scale=None, value=None):
        if value is None:
            fan = np.prod(shape[1:]) if len(shape) > 2 else shape[0]
            value = rng.normal(0, scale or (2 / fan) ** 0.5, shape)
        name = f"w{len(self.weights)}"
        dtype = np.int64 if np.asarray(value).dtype.kind == "i" else np.float32
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, op, *inputs, output=None, **attributes):
        output = output or f"{op}_{len(self.nodes)}"
        name = f"node_{len(self.nodes)}_{op}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def model(self, shape, n):
        infos = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *dim])
            for name, dim in (("x", shape), ("y", n))
        ]
        graph = helper.make_graph(self.nodes, "g", infos[:1], infos[1:], self.weights)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def cnn():
    """A residual network of many operators, for tensors (2, 12, 12)."""
    d = Draft()
    a = d.add("Relu", d.add("Conv", "x", d.weight(6, 2, 3, 3), d.weight(6), pads=[1] * 4))
    a = d.add("MaxPool", a, kernel_shape=[2, 2], strides=[2, 2])
    b = d.add("Conv", a, d.weight(6, 6, 3, 3), d.weight(6), pads=[1] * 4)
    a = d.add("LeakyRelu", d.add("Add", a, b), alpha=0.1)
    c = d.add("Sigmoid", d.add("Conv", a, d.weight(6, 1, 3, 3), pads=[1] * 4, group=6))
    a = d.add("Concat", d.add("Mul", a, c), b, axis=1)
    a = d.add("AveragePool", a, kernel_shape=[2, 2], strides=[2, 2])
    a = d.add("Relu", d.add("Conv", a, d.weight(8, 12, 2, 2), d.weight(8)))
    a = d.add("Flatten", d.add("GlobalAveragePool", a))
    d.add("Gemm", a, d.weight(8, 4), d.weight(4), output="y")
    return d.model((2, 12, 12), (4,))


def mlp():
    """A dense network for tensors (10,)."""
    d = Draft()
    a = d.add("Relu", d.add("Gemm", "x", d.weight(10, 16), d.weight(16)))
    a = d.add("Tanh", d.add("Add", d.add("MatMul", a, d.weight(16, 12)), d.weight(12)))
    d.add("Gemm", a, d.weight(12, 3), d.weight(3), output="y")
    return d.model((10,), (3,))


def transformer():
    """A block of self-attention, for tensors (5, 8)."""
    d = Draft()
    q, k, v = (d.add("MatMul", "x", d.weight(8, 8)) for _ in range(3))
    scores = d.add("MatMul", q, d.add("Transpose", k, perm=[0, 2, 1]))
    scores = d.add("Softmax", d.add("Mul", scores, d.weight(value=0.35)), axis=-1)
    mixed = d.add("MatMul", d.add("MatMul", scores, v), d.weight(8, 8))
    ones, zeros = (d.weight(value=np.full(8, f, np.float32)) for f in (1.0, 0.0))
    a = d.add("LayerNormalization", d.add("Add", "x", mixed), ones, zeros)
    h = d.add("Relu", d.add("Add", d.add("MatMul", a, d.weight(8, 16)), d.weight(16)))
    h = d.add("Add", a, d.add("MatMul", h, d.weight(16, 8)))
    h = d.add("ReduceMean", h, axes=[1], keepdims=0)
    d.add("Gemm", h, d.weight(8, 3), d.weight(3), output="y")
    return d.model((5, 8), (3,))


class Rows(quantization.CalibrationDataReader):
    def __init__(self, shape):
        self.rows = iter([{"x": data(shape, 1, seed)} for seed in range(100, 140)])

    def get_next(self):
        return next(self.rows, None)


def data(shape, n, seed):
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


def statically(model, shape, form, per_channel, **options):
    with tempfile.TemporaryDirectory() as folder:
        source, ready, target = (str(Path(folder) / n) for n in ("a.onnx", "b.onnx", "c.onnx"))
        onnx.save(model, source)
        quant_pre_process(source, ready, skip_symbolic_shape=True)
        quantization.quantize_static(
            ready, target, Rows(shape), quant_format=form, per_channel=per_channel, **options
        )
        return onnx.load(target)


def dynamically(model, **options):
    with tempfile.TemporaryDirectory() as folder:
        source, target = (str(Path(folder) / n) for n in ("a.onnx", "b.onnx"))
        onnx.save(model, source)
        quantization.quantize_dynamic(source, target, **options)
        return onnx.load(target)


def session(model, optimised):
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if not optimised:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), settings)


def quantised_tensors(model):
    """Return names of inner tensors that hold bytes in a static model."""
    ops = ("QuantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm")
    return [
        n.output[0]
        for n in model.graph.node
        if (n.op_type in ops or n.op_type.startswith("QLinear")) and n.output[0] != "y"
    ]


def with_outputs(model, names):
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return changed


def save(name, model, shape, single=False):
    """Write a model and a case; dynamic ranges are those of one row at a time."""
    x = data(shape, 4, 7)
    inner = [] if single else quantised_tensors(model)
    runner = session(with_outputs(model, inner), optimised=False)
    rows = [x[i : i + 1] for i in range(len(x))] if single else [x]
    found = [runner.run(["y", *inner], {"x": r}) for r in rows]
    joined = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    case = {"x": x, "y": joined[0]} | {f"q/{n}": q for n, q in zip(inner, joined[1:], strict=True)}
    case["gradient"] = gradients(model, x).astype(np.float32)
    onnx.save(model, HERE / f"{name}.onnx")
    np.savez_compressed(HERE / f"{name}.npz", **case)


def main():
    kinds = quantization.QuantFormat
    uint8, int8 = quantization.QuantType.QUInt8, quantization.QuantType.QInt8
    net, shape = cnn(), (2, 12, 12)
    onnx.save(net, HERE / "cnn.onnx")
    for name, form, per_channel, activation in (
        ("cnn_qdq", kinds.QDQ, False, uint8),
        ("cnn_qdq_channels", kinds.QDQ, True, int8),
        ("cnn_qoperator", kinds.QOperator, False, uint8),
        ("cnn_qoperator_channels", kinds.QOperator, True, uint8),
    ):
        types = {"activation_type": activation, "weight_type": int8}
        save(name, statically(net, shape, form, per_channel, **types), shape)
    onnx.save(mlp(), HERE / "mlp.onnx")
    save("mlp_dynamic", dynamically(onnx.load(HERE / "mlp.onnx")), (10,), single=True)
    onnx.save(transformer(), HERE / "transformer.onnx")
    block = onnx.load(HERE / "transformer.onnx")
    save("transformer_dynamic", dynamically(block, per_channel=True), (5, 8), single=True)


if __name__ == "__main__":
    main()
