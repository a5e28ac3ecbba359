"""The stored vision models and what is asked about each."""

from functools import cache
from pathlib import Path

import numpy as np

import onnxplain as ox

FOLDER = Path(__file__).parent
NAMES = sorted(file.stem for file in FOLDER.glob("*.onnx"))
# Nodes that pick at positions found in the data, whose jumps DeepLIFT can give to nobody.
PICKING = {"GatherND", "GatherElements", "RoiAlign"}


@cache
def converted(name):
    return ox.convert(FOLDER / f"{name}.onnx")


@cache
def case(name):
    """Return images, outputs by name, and gradients of a few nodes of each as torch has them."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        values = dict(stored)
    parts = {kind: {} for kind in ("output", "gradient")}
    for key, value in values.items():
        kind, _, output = key.partition("/")
        if output:
            parts[kind][output] = value
    return values["x"].astype(np.float64), parts["output"], parts["gradient"]


def places(shape, n=4):
    """Return indices of a few nodes of an output, spread evenly."""
    flat = np.unique(np.linspace(0, np.prod(shape) - 1, n).astype(int))
    return [tuple(map(int, place)) for place in zip(*np.unravel_index(flat, shape), strict=True)]


def nodes_of(converter, output):
    """Return the `output_idx` of a few nodes of one output."""
    at = converter.graph.outputs.index(output)
    return [None] * at + [places(converter.output_dim[at])]


def result_of(found):
    """Return the one result of a method that explains one output by one input."""
    (result,) = (r for parts in found.result for r in parts if r is not None)
    return result


def check(converter, x, outputs, gradients):
    """Compare outputs and gradients; check the sums of DeepLIFT and the books of LRP."""
    for output, ours in zip(converter.graph.outputs, converter(x), strict=True):
        expected = outputs[output]
        atol = 1e-5 * max(1, np.abs(expected).max())
        np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)
    steps = not converter.coverage("deeplift").exact.all()
    for output, expected in gradients.items():
        options = {"output_idx": nodes_of(converter, output), "dtype": "double"}
        found = result_of(ox.Gradient(converter, x, ignore_last_act=False, **options))
        atol = 1e-5 * np.abs(expected).max()
        assert atol > 0
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
        check_sums(ox.DeepLift(converter, x, **options), steps)
        for rule in ("simple", "epsilon"):
            books = ox.LRP(converter, x, rule_name=rule, **options).ledger()
            assert books.gap.max() <= 1e-9 * max(1, books.incoming.abs().max())


def check_sums(deeplift, steps):
    """See that contributions add up, or that the books name the nodes that picked elsewhere."""
    books = deeplift.ledger()
    gaps = set(books.op[books.gap > 1e-9])
    assert gaps <= PICKING if steps else not gaps
    if not gaps:
        pairs = zip(deeplift.decomp_sum, deeplift.decomp_goal, strict=True)
        for total, goal in (pair for pair in pairs if pair[0] is not None):
            np.testing.assert_allclose(total, goal, rtol=0, atol=1e-8)
