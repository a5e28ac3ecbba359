"""torch's autograd gives the same gradients, also of models that torch exported itself."""

import numpy as np
import onnx
import pytest

import onnxplain as ox
from oracles import NETWORKS, data, of, to_torch

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize(**of("torch"))
def test_agrees_with_autograd(question):
    pytest.importorskip("torch")
    question.check(question.their_answer())


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("name", NETWORKS)
def test_exported_network_agrees_with_autograd(name, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    module, x = to_torch(name).float(), torch.from_numpy(data(name)).float()
    file = tmp_path / "model.onnx"
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(module, (x,), file, dynamo=True, dynamic_shapes=(batch,), verbose=False)
    onnx.checker.check_model(file)
    ours = ox.Gradient(ox.convert(file), x.numpy(), dtype="double").get_result()
    leaf = x.double().requires_grad_()
    out = module.double()(leaf)
    for k in range(out.shape[1]):
        (theirs,) = torch.autograd.grad(out[:, k].sum(), leaf, retain_graph=True)
        np.testing.assert_allclose(
            ours[..., k], theirs, rtol=0, atol=1e-9 * float(theirs.abs().max())
        )
