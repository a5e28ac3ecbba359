"""U-Nets and detectors as torch exports them: outputs of onnxruntime, gradients of autograd."""

import numpy as np
import pytest
from vision.cases import check

import onnxplain as ox

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from vision import make  # noqa: E402 - needs torch

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]  # the exporter's own


@pytest.fixture(scope="module", params=make.MODELS)
def exported(request):
    return request.param, make.export(request.param)


def test_an_exported_model_agrees_with_torch(exported):
    name, proto = exported
    x = make.data(rows=3, seed=7)
    check(ox.convert(proto), x, *make.answers(name, x))


@pytest.mark.parametrize("rows", [1, 3])
def test_an_exported_model_agrees_with_onnxruntime(exported, rows):
    runtime = pytest.importorskip("onnxruntime")
    proto = exported[1]
    session = runtime.InferenceSession(proto.SerializeToString())
    x = make.data(rows=rows, seed=7).astype(np.float32)
    converter = ox.convert(proto)
    theirs = session.run(list(converter.graph.outputs), {"x": x})
    for ours, expected in zip(converter(x), theirs, strict=True):
        atol = 1e-5 * max(1, abs(expected).max())
        np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)


def test_suppression_keeps_the_boxes_that_onnxruntime_keeps():
    runtime = pytest.importorskip("onnxruntime")
    from onnxplain.graph.graph import build
    from onnxplain.graph.load import read_model
    from onnxplain.walk import forward

    proto = make.export("yolo")
    feeds = {"x": make.data(rows=3, seed=7).astype(np.float32)}
    (expected,) = runtime.InferenceSession(proto.SerializeToString()).run(["selected"], feeds)
    assert len(expected) > 3
    np.testing.assert_array_equal(forward(build(read_model(proto)), feeds)["selected"], expected)


@pytest.mark.parametrize("name", ["unet_resize", "unet_transposed", "yolo", "ssd"])
def test_a_module_agrees_with_its_file(name):
    module, x = make.module(name).float(), make.data()
    converter = ox.convert(module, input_dim=x.shape[1:])
    outputs, gradients = make.answers(name, x)
    theirs = dict(zip(converter.graph.outputs, outputs, strict=True))
    outputs = {ours: outputs[k] for ours, k in theirs.items()}
    check(converter, x, outputs, {ours: gradients[k] for ours, k in theirs.items()})
