"""Explanations of several models side by side."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

import onnxplain as ox
from onnxplain.demo import MODEL
from onnxplain.errors import ArgumentError

FOLDER = Path(__file__).with_name("quantised")


@pytest.fixture(scope="module")
def converters():
    return [ox.convert(FOLDER / f"{name}.onnx") for name in ("cnn", "cnn_qdq", "cnn_qoperator")]


@pytest.fixture(scope="module")
def x():
    return np.load(FOLDER / "cnn_qdq.npz")["x"][:3]


def test_a_model_agrees_with_itself(converters, x):
    table = ox.compare_models([converters[0]] * 2, x, ox.Gradient).table
    assert len(table) == 3 * 4
    np.testing.assert_allclose(table[["pearson", "spearman", "top_k_overlap"]], 1, rtol=1e-12)
    assert not table[["relative_l2", "pred_difference"]].to_numpy().any()


def test_numbers_are_those_of_their_definitions(converters, x):
    found = ox.compare_models(converters, x, ox.DeepLift, top_k=5, names=["f", "q", "o"])
    a, b = (r.result[0][0][1, ..., 2].ravel().astype(float) for r in found.results[::2])
    row = found.table.query("model == 'o' and data == 'data_2' and output_node == 'Y3'").iloc[0]
    np.testing.assert_allclose(row.pearson, pearsonr(a, b).statistic)
    np.testing.assert_allclose(row.spearman, spearmanr(a, b).statistic)
    np.testing.assert_allclose(row.relative_l2, np.linalg.norm(b - a) / np.linalg.norm(a))
    top = [set(np.argsort(-abs(v))[:5]) for v in (a, b)]
    assert row.top_k_overlap == len(top[0] & top[1]) / 5
    before, after = (c(x)[0][1, 2] for c in converters[::2])
    np.testing.assert_allclose(row.pred_difference, after - before, atol=1e-7)


def test_float_and_bytes_agree_well(converters, x):
    found = ox.compare_models(converters, x, ox.DeepLift, names=["float", "QDQ", "QOperator"])
    assert found.table.groupby("model").pearson.median().min() > 0.99
    assert "QOperator" in repr(found)
    assert "DeepLift of 3 models" in repr(found)


def test_lrp_is_the_default_and_takes_its_arguments(converters, x):
    found = ox.compare_models(converters[:2], x, rule_name="z_plus", output_idx=[1])
    assert isinstance(found.results[0], ox.LRP)
    assert set(found.table.output_node) == {"Y2"}
    assert found.table.pearson.min() > 0.95


def test_an_explanation_of_zeros_agrees_with_nothing(converters):
    with np.errstate(all="raise"):
        table = ox.compare_models(
            converters[:2], np.zeros((1, 2, 12, 12)), ox.Gradient, times_input=True
        ).table
    assert table[["pearson", "spearman", "relative_l2"]].isna().all(axis=None)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (lambda c: [c], "list of two or more converters"),
        (lambda c: c, "list of two or more converters"),
        (lambda c: [c, "model.onnx"], "list of two or more converters"),
        (lambda c: [c, ox.convert(MODEL)], "different input_dim"),
    ],
)
def test_what_cannot_be_compared_says_so(converters, x, arguments, words):
    with pytest.raises(ArgumentError, match=words):
        ox.compare_models(arguments(converters[0]), x)


@pytest.mark.parametrize("names", ["ab", ["a"], ["a", "a"]])
def test_names_must_be_one_per_model(converters, x, names):
    with pytest.raises(ArgumentError, match="names must be 2 different texts"):
        ox.compare_models(converters[:2], x, names=names)


def test_top_k_must_be_a_whole_number(converters, x):
    with pytest.raises(ArgumentError, match="top_k"):
        ox.compare_models(converters[:2], x, top_k=0)
