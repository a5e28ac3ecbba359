"""tangermeme's DeepLIFT (1.5 and later) gives the same multipliers where conventions coincide."""

import numpy as np
import pytest

import onnxplain as ox

torch = pytest.importorskip("torch")
tangermeme = pytest.importorskip("tangermeme", minversion="1.5")
pytest.importorskip("onnxscript")

from tangermeme.deep_lift_shap import BilinearOp, deep_lift_shap  # noqa: E402 - where it is there

nn = torch.nn
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]  # the exporter's own

LETTERS, LENGTH, ROWS = 4, 12, 3


class Gate(nn.Module):
    """One half of the features times the other."""

    def __init__(self):
        super().__init__()
        self.dense, self.times = nn.Linear(LENGTH, 10), BilinearOp("...,...->...")

    def forward(self, x):
        a, b = self.dense(x).chunk(2, -1)
        return self.times(a, b)


class Attention(nn.Module):
    """One head over the letters."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(LENGTH, 6) for _ in range(3))
        self.scores, self.mix, self.softmax = BilinearOp(), BilinearOp(), nn.Softmax(-1)

    def forward(self, x):
        p = self.softmax(self.scores(self.q(x), self.k(x).transpose(-1, -2)))
        return self.mix(p, self.v(x))


def head(width):
    return nn.Flatten(), nn.Linear(width, 2)


def pooled(size, stride):
    width = 5 * ((LENGTH - 2 - size) // stride + 1)
    return nn.Conv1d(LETTERS, 5, 3), nn.MaxPool1d(size, stride), *head(width)


NETWORKS = {
    "layer norm": lambda: (nn.Linear(LENGTH, 6), nn.LayerNorm(6), nn.GELU(), *head(24)),
    "rms norm": lambda: (nn.Linear(LENGTH, 6), nn.RMSNorm(6, eps=1e-5), nn.SiLU(), *head(24)),
    "softmax": lambda: (nn.Linear(LENGTH, 6), nn.Softmax(-1), *head(24)),
    "product": lambda: (Gate(), *head(20)),
    "attention": lambda: (Attention(), nn.LayerNorm(6), *head(24)),
    "pool (3, 1)": lambda: pooled(3, 1),
    "pool (3, 2)": lambda: pooled(3, 2),
    "pool (4, 2)": lambda: pooled(4, 2),
    "pool (2, 2)": lambda: pooled(2, 2),
}


# Both are exact there, but share the normaliser in another way: we by logarithmic means of the
# probabilities, tangermeme by differences of the exponentials.
SHARED_OTHERWISE = ("softmax", "attention")


def contributions(name, file):
    """Return theirs, ours, and the differences of the output."""
    torch.manual_seed(3)
    module = nn.Sequential(*NETWORKS[name]()).double().eval()
    rng = np.random.default_rng(4)
    x, ref = np.eye(LETTERS)[rng.integers(0, LETTERS, (2, ROWS, LENGTH))].transpose(0, 1, 3, 2)
    given, background = torch.from_numpy(x), torch.from_numpy(ref)
    batch = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(module, (given,), file, dynamo=True, dynamic_shapes=batch, verbose=False)
    converter = ox.convert(file)
    ours = [
        ox.DeepLift(converter, x[i : i + 1], x_ref=ref[i : i + 1], output_idx=[1], dtype="double")
        for i in range(ROWS)
    ]
    options = {"target": 1, "raw_outputs": True, "device": "cpu"}
    theirs = deep_lift_shap(module, given, references=background[:, None], **options)
    change = (module(given) - module(background))[:, 1].detach().numpy()
    found = np.concatenate([method.get_result()[..., 0] for method in ours])
    return theirs.numpy().reshape(x.shape) * (x - ref), found, change


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in SHARED_OTHERWISE])
def test_agrees_with_tangermeme(name, tmp_path):
    theirs, ours, _ = contributions(name, tmp_path / "model.onnx")
    assert np.abs(theirs).max() > 1e-2
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SHARED_OTHERWISE)
def test_both_add_up_to_the_difference(name, tmp_path):
    theirs, ours, change = contributions(name, tmp_path / "model.onnx")
    for found in (theirs, ours):
        np.testing.assert_allclose(found.sum((1, 2)), change, rtol=0, atol=1e-9)
