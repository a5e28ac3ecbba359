"""Transformers as torch exports them now, and as onnxruntime fuses them: values and gradients."""

import numpy as np
import pytest
from transformer_models.cases import check, embedding

import onnxplain as ox

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from transformer_models import make  # noqa: E402 - needs torch

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]  # the exporter's own

WAYS = {"traced": (17, False), "opset 18": (18, True), "opset 23": (23, True)}


def seen_from_outside(name, file):
    """Check a file against torch on new data."""
    inputs = make.data(name, rows=4, seed=7)
    converter = ox.convert(file, inputs=embedding(file))
    check(converter, list(inputs.values()), *make.answers(name, inputs))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", make.MODELS)
def test_an_exported_transformer_agrees_with_torch(name, way, tmp_path):
    file = tmp_path / "model.onnx"
    make.export(name, file, *WAYS[way])
    seen_from_outside(name, file)


@pytest.mark.parametrize("name", ["bert", "decoder"])
def test_a_transformer_fused_by_onnxruntime_agrees_with_torch(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    file, fused = tmp_path / "model.onnx", tmp_path / "fused.onnx"
    make.export(name, file, 17, False)
    make.fuse(file, fused)
    session = runtime.InferenceSession(str(fused), providers=["CPUExecutionProvider"])
    inputs = make.data(name, rows=4, seed=7)
    feeds = {k: v.astype("f") if v.dtype.kind == "f" else v for k, v in inputs.items()}
    wanted = session.run(None, feeds)[0]
    converter = ox.convert(fused, inputs=embedding(fused))
    found = ox.Gradient(converter, list(feeds.values())).preds[0]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    seen_from_outside(name, fused)


@pytest.mark.parametrize("name", make.MODELS)
def test_a_transformer_optimised_by_onnxruntime_agrees_with_torch(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    file, saved = tmp_path / "model.onnx", tmp_path / "saved.onnx"
    make.export(name, file, 17, False)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(saved)
    runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    seen_from_outside(name, saved)
