"""The stored transformers and what is asked about them."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx

import onnxplain as ox

FOLDER = Path(__file__).parent
NAMES = sorted(file.stem for file in FOLDER.glob("*.onnx"))


def embedding(file):
    """Return the tensor of embedded words, None where the input is no words."""
    nodes = onnx.load(file).graph.node
    found = [n.output[0] for n in nodes if n.op_type == "Gather" and n.input[1] == "ids"]
    return found[0] if found else None


@cache
def converted(name):
    file = FOLDER / f"{name}.onnx"
    return ox.convert(file, inputs=embedding(file))


def case(name):
    """Return inputs, outputs and gradients as torch computed them in float64."""
    with np.load(FOLDER / f"{name.removesuffix('_fused')}.npz") as stored:
        values = dict(stored)
    output, gradient = values.pop("output"), values.pop("gradient")
    return list(values.values()), output, gradient


def inputs_of(name):
    return case(name)[0]


def check_stored(name):
    check(converted(name), *case(name))


def check(converter, inputs, output, gradient):
    """Compare outputs and gradients; check the sums of DeepLIFT and the books of LRP."""
    found = ox.Gradient(converter, inputs, dtype="double")
    np.testing.assert_allclose(found.preds[0], output, rtol=0, atol=1e-5)
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(found.get_result(), gradient, rtol=0, atol=1e-5 * scale)
    deeplift = ox.DeepLift(converter, inputs, dtype="double")
    goal = deeplift.decomp_goal[0]
    np.testing.assert_allclose(deeplift.decomp_sum[0], goal, rtol=0, atol=1e-8)
    for rule in ("simple", "epsilon"):
        books = ox.LRP(converter, inputs, rule_name=rule, dtype="double").ledger()
        assert books.gap.max() <= 1e-9 * max(1, books.incoming.abs().max())
    single = np.asarray(ox.Gradient(converter, inputs).preds[0])
    np.testing.assert_allclose(single, output, rtol=0, atol=1e-5 * max(1, np.abs(output).max()))
