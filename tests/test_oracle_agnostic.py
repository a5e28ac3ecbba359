"""The shap and lime packages give the same Shapley values, and LIME weights of the same order."""

import re
from pathlib import Path

import numpy as np
import pytest

import onnxplain as ox

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

RNG = np.random.default_rng(11)
NAMES = [f"f{i}" for i in range(8)]
TRAIN, X = RNG.normal(size=(200, 8)), RNG.normal(size=(6, 8))
HIDDEN, OUT = RNG.normal(size=(8, 12)) / 2, RNG.normal(size=(12, 2))


def network(x):
    return np.tanh(x @ HIDDEN) @ OUT


def probability(x):
    return 1 / (1 + np.exp(-network(x)[:, 0]))


def test_enumeration_agrees_with_the_exact_explainer():
    shap = pytest.importorskip("shap")
    masker = shap.maskers.Independent(TRAIN[:40], max_samples=40)
    theirs = shap.explainers.Exact(network, masker)(X)
    ours = ox.SHAP(network, X, TRAIN[:40])
    np.testing.assert_allclose(ours.get_result(), theirs.values, rtol=0, atol=1e-10)
    base = ours.preds[0] - ours.decomp_goal[0]
    np.testing.assert_allclose(base, theirs.base_values, rtol=0, atol=1e-10)


def test_sampled_orders_agree_with_the_permutation_explainer():
    shap = pytest.importorskip("shap")
    masker = shap.maskers.Independent(TRAIN[:40], max_samples=40)
    theirs = shap.explainers.Permutation(network, masker, seed=1)(X, max_evals=2000, silent=True)
    ours = ox.SHAP(network, X, TRAIN[:40], exact=False, n_permutations=100, seed=1)
    error = ours.standard_error[0][0].max()
    np.testing.assert_allclose(ours.get_result(), theirs.values, rtol=0, atol=6 * error)
    assert 6 * error < 0.1 * np.abs(theirs.values).max()


def test_a_linear_model_agrees_with_the_linear_explainer():
    shap = pytest.importorskip("shap")
    slopes = RNG.normal(size=8)
    masker = shap.maskers.Independent(TRAIN[:40], max_samples=40)
    theirs = shap.explainers.Linear((slopes, 0.0), masker)(X).values
    ours = ox.SHAP(lambda x: x @ slopes, X, TRAIN[:40], exact=False, n_permutations=1)
    np.testing.assert_allclose(ours.get_result()[..., 0], theirs, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore::UserWarning")  # the forest's, of a frame without names
def test_the_example_of_the_docs_runs():
    pytest.importorskip("sklearn")
    page = (Path(__file__).parents[1] / "docs" / "agnostic.md").read_text("utf-8")
    names = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], names)
    shap, lime = names["shap"], names["lime"]
    np.testing.assert_allclose(shap.decomp_sum[0], shap.decomp_goal[0], rtol=0, atol=1e-8)
    assert shap.input_names == lime.input_names == [[list(names["table"].columns)]]
    strongest = [np.abs(r.get_result()).mean(axis=0)[:, 0].argsort()[-2:] for r in (shap, lime)]
    assert set(strongest[0]) == set(strongest[1])  # body mass and a blood value


def lime_weights(train, discretize):
    """Weights of the lime package, (rows, features)."""
    tabular = pytest.importorskip("lime.lime_tabular")
    explainer = tabular.LimeTabularExplainer(
        train,
        mode="regression",
        feature_names=NAMES,
        discretize_continuous=discretize,
        discretizer="quartile",
        feature_selection="none",
        random_state=3,
    )
    found = np.zeros_like(X)
    for n, row in enumerate(X):
        explained = explainer.explain_instance(row, probability, num_features=8, num_samples=8000)
        for j, weight in explained.local_exp[1]:
            found[n, j] = weight
    return found


def rank_correlation(a, b):
    return np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]


def test_bins_agree_with_the_lime_package():
    # Inside a bin they draw from a normal distribution; where data are even ours is close to it.
    train = RNG.uniform(-2, 2, size=(400, 8))
    theirs = lime_weights(train, discretize=True)
    ours = ox.LIME(
        probability, X, train, dist_fun="euclidean", n_permutations=20000, seed=1
    ).get_result()[..., 0]
    assert min(map(rank_correlation, ours, theirs)) > 0.9
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.1 * np.abs(theirs).max())


def test_slopes_agree_with_the_lime_package():
    # Slopes there are per standard deviation, and samples lie around the mean, as ours do.
    theirs = lime_weights(TRAIN, discretize=False)
    ours = ox.LIME(
        probability,
        X,
        TRAIN,
        bin_continuous=False,
        dist_fun="euclidean",
        n_permutations=20000,
        seed=1,
    ).get_result()[..., 0] * TRAIN.std(axis=0)
    assert min(map(rank_correlation, ours, theirs)) > 0.9
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.1 * np.abs(theirs).max())
