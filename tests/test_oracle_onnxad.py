"""onnx-ad writes gradients as ONNX graphs: a second opinion on whole real models, without torch."""

import numpy as np
import onnx
import onnx.version_converter
import pytest

import onnxplain as ox

pytestmark = pytest.mark.oracle

# Not here: mnist-cntk8, whose auto_pad onnx-ad does not know; dronet, emx-kws-fp32 and
# mb-gtsrb-fast, whose strided convolutions are padded more on one side: onnx-ad 0.3 is wrong
# there, as central differences show.
MODELS = [
    "captum-cifar",
    "captum-titanic",
    "deeploy-cct2-op20",
    "deeploy-tinyvit-demo",
    "dianna-mnist-binary",
    "dianna-season",
    "dnnv-convsmall",
    "mb-self-attention-mnist",
    "tract-keras-tf2",
]


def before_activation(file):
    """Return a model up to its last activation, for one row, in an opset that onnx-ad knows."""
    proto = onnx.load(file)
    last = next(n for n in proto.graph.node if proto.graph.output[0].name in n.output)
    if last.op_type in ("Softmax", "LogSoftmax", "Sigmoid"):
        proto.graph.output[0].name = last.input[0]
        proto.graph.node.remove(last)
    opset = next(o.version for o in proto.opset_import if not o.domain)
    if opset < 16:
        proto = onnx.version_converter.convert_version(proto, 16)
    for value in (*proto.graph.input, *proto.graph.output):
        batch = value.type.tensor_type.shape.dim[0]
        batch.dim_value = 1
    return onnx.shape_inference.infer_shapes(proto)


def adjoint_gradient(file, x, outputs):
    """Return the gradients of the first outputs at one row, (*x.shape, outputs), in float32."""
    import onnxruntime
    from onnx_ad import reverse

    proto = before_activation(file)
    made = reverse(proto, layout="onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(made.SerializeToString(), options)
    data, seed = session.get_inputs()[0].name, session.get_inputs()[-1].name
    (value,) = onnxruntime.InferenceSession(proto.SerializeToString(), options).run(
        [proto.graph.output[0].name], {data: x}
    )
    directions = np.eye(value.size, outputs, dtype=np.float32).reshape(*value.shape, outputs)
    return session.run([f"adj_{data}"], {data: x, seed: directions})[0]


@pytest.mark.parametrize("name", MODELS)
def test_gradient_agrees_with_onnx_ad(name, shared):
    pytest.importorskip("onnx_ad")
    file = shared / "models" / name / "model.onnx"
    converter = ox.convert(file)
    (x,) = (
        np.load(shared / "models" / name / "case_0.npz")[f"in/{s.name}"]
        for s in converter.graph.inputs
    )
    noise = np.random.default_rng(0).normal(0, 0.05, x.shape)
    x = (x + noise * min(1, np.ptp(x))).astype(np.float32)
    ours = ox.Gradient(converter, x, dtype="double").get_result()
    theirs = adjoint_gradient(file, x, ours.shape[-1])
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)
