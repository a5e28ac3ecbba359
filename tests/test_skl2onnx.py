"""Models of scikit-learn in files of skl2onnx: predictions, and the direct converter's numbers."""

import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("skl2onnx")

import skl2onnx
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Lasso, LinearRegression, LogisticRegression, Perceptron, Ridge
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    Binarizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import LinearSVC

import onnxplain as ox
from onnxplain.errors import ModelError, UnsupportedOpError

pytestmark = pytest.mark.oracle

rng = np.random.default_rng(0)
X = (rng.normal(size=(80, 4)) * [1, 3, 0.5, 2] + [0, 2, 1, -1]).astype(np.float32).astype(float)
SCORE = (X - X.mean(0)) / X.std(0) @ [1.0, -2.0, 0.5, 1.5]
BINARY = np.where(SCORE > 0, "yes", "no")
CLASSES = np.digitize(SCORE, [-1.5, 1.5])
TARGETS = np.stack([SCORE, np.tanh(SCORE)], axis=1)


def mlp(kind=MLPClassifier, **options):
    return kind(**{"hidden_layer_sizes": (6, 5), "max_iter": 30, "random_state": 0} | options)


MODELS = {
    "MLP, binary": (mlp(), BINARY),
    "MLP, multi-class": (mlp(), CLASSES),
    "MLP, tanh": (mlp(activation="tanh"), BINARY),
    "MLP, logistic": (mlp(activation="logistic"), CLASSES),
    "MLP, regression": (mlp(MLPRegressor), SCORE),
    "scaled MLP, binary": (make_pipeline(StandardScaler(), mlp()), BINARY),
    "scaled MLP, multi-class": (make_pipeline(StandardScaler(), mlp()), CLASSES),
    "scaled MLP, regression": (make_pipeline(StandardScaler(), mlp(MLPRegressor)), SCORE),
    "min-max, PCA": (make_pipeline(MinMaxScaler(), PCA(2), mlp()), CLASSES),
    "max-abs": (make_pipeline(MaxAbsScaler(), mlp()), BINARY),
    "columns": (
        make_pipeline(
            ColumnTransformer([("a", StandardScaler(), [2, 0]), ("b", "passthrough", [1])]), mlp()),
        CLASSES),
    "logistic regression": (LogisticRegression(), BINARY),
    "multinomial regression": (LogisticRegression(), CLASSES),
    "scaled logistic regression": (make_pipeline(StandardScaler(), LogisticRegression()), BINARY),
    "linear regression": (LinearRegression(), SCORE),
    "linear regression, two targets": (LinearRegression(), TARGETS),
    "ridge": (Ridge(), TARGETS),
    "robust lasso": (make_pipeline(RobustScaler(), Lasso(0.1)), SCORE),
    "linear support vectors": (LinearSVC(), CLASSES),
    "linear support vectors, binary": (LinearSVC(), BINARY),
    "perceptron": (Perceptron(), CLASSES),
}  # fmt: skip
# What the direct converter takes as other inputs, or not at all.
INDIRECT = {
    "length": (make_pipeline(Normalizer("l2"), mlp()), CLASSES),
    "magnitudes": (make_pipeline(StandardScaler(), Normalizer("l1"), mlp(MLPRegressor)), SCORE),
    "imputed": (make_pipeline(SimpleImputer(), Ridge()), SCORE),
}
ALL = MODELS | INDIRECT
# What skl2onnx writes in float32 or not at all where the data are float64; a length in float64 is
# written with ReduceSumSquare, which has no kernel.
NOT_IN_FLOAT64 = {
    "linear support vectors", "linear support vectors, binary", "imputed", "length"
}  # fmt: skip


@pytest.fixture(scope="module")
def models():
    """Fitted models, each fitted when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            model, y = ALL[name]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a few steps of training are enough here
                made[name] = clone(model).fit(X, y)
        return made[name]

    return get


def exported(model, dtype=np.float32, **options):
    """Return the bytes of a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proto = skl2onnx.to_onnx(model, X[:1].astype(dtype), **options)
    return proto.SerializeToString()


def truth(model, x):
    for name in ("predict_proba", "decision_function", "predict"):
        if hasattr(model, name):
            return np.asarray(getattr(model, name)(x), float).reshape(len(x), -1)
    raise AssertionError("no prediction")


# -- predictions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 17])
@pytest.mark.parametrize("name", ALL)
def test_prediction_is_that_of_the_model(models, name, rows):
    model, x = models(name), X[:rows].astype(np.float32)
    predicted = ox.convert(exported(model))(x)[0]
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, truth(model, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in ALL if n not in NOT_IN_FLOAT64])
def test_prediction_of_a_file_in_float64_is_exact(models, name):
    model = models(name)
    converter = ox.convert(exported(model, np.float64), dtype="double")
    np.testing.assert_allclose(converter(X[:9])[0], truth(model, X[:9]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("opset", [13, 15, 18, 22])
@pytest.mark.parametrize("name", ["MLP, binary", "scaled MLP, multi-class", "columns"])
def test_file_of_any_opset_is_read(models, name, opset):
    model, x = models(name), X[:5].astype(np.float32)
    data = exported(model, target_opset={"": opset, "ai.onnx.ml": 3})
    np.testing.assert_allclose(ox.convert(data)(x)[0], truth(model, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("zipmap", [True, False])
@pytest.mark.parametrize(
    "name, labels",
    [
        ("MLP, binary", ["no", "yes"]),
        ("MLP, multi-class", ["0", "1", "2"]),
        ("logistic regression", ["no", "yes"]),
        ("multinomial regression", ["0", "1", "2"]),
    ],
)
def test_classes_are_named_and_the_label_is_skipped(models, name, labels, zipmap):
    converter = ox.convert(exported(models(name), options={"zipmap": zipmap}))
    assert converter.output_names == [[labels]]
    assert converter.skipped_outputs == ["output_label" if zipmap else "label"]


def test_names_of_classes_without_maps():
    for y, labels in ((BINARY, ["yes"]), (CLASSES, ["0", "1", "2"])):
        model = LinearSVC().fit(X, y)
        assert ox.convert(exported(model)).output_names == [[labels]]


def test_a_column_for_each_class_is_an_output_for_each_class(models):
    model, x = models("MLP, multi-class"), X[:6].astype(np.float32)
    converter = ox.convert(exported(model, options={"zipmap": "columns"}))
    found = np.stack(converter(x), axis=1)
    np.testing.assert_allclose(found, truth(model, x), rtol=1e-5, atol=1e-5)


# -- explanations ---------------------------------------------------------------------------------

METHODS = {
    "Gradient": {},
    "SmoothGrad": {"n": 2, "seed": 1},
    "IntegratedGradient": {"n": 3},
    "ExpectedGradient": {"n": 2, "seed": 1, "data_ref": X[:3]},
    "LRP": {"rule_name": "epsilon"},
    "DeepLift": {"x_ref": X[5:6]},
    "DeepSHAP": {"data_ref": X[:3]},
    "ConnectionWeights": {},
}


def explained(converter, method, **options):
    options = {"dtype": "double", "verbose": False} | METHODS[method] | options
    return getattr(ox, method)(converter, X[10:14], **options)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(models, method, name):
    result = explained(ox.convert(exported(models(name))), method).get_result("array")
    assert result.shape[-2] == 4
    assert np.isfinite(result).all()
    assert np.abs(result).sum() > 0


@pytest.mark.parametrize("ignore_last_act", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_deeplift_adds_up(models, name, ignore_last_act):
    converter = ox.convert(exported(models(name)))
    result = explained(converter, "DeepLift", ignore_last_act=ignore_last_act)
    np.testing.assert_allclose(result.decomp_sum, result.decomp_goal, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_explanation_is_that_of_the_direct_converter(models, method, name):
    """Scores are explained in both, the log-odds of either class where there are two."""
    model = models(name)
    result = explained(ox.convert(exported(model)), method).get_result("array")
    direct = explained(ox.convert(model), method).get_result("array")
    assert result.shape == direct.shape
    np.testing.assert_allclose(result, direct, rtol=0, atol=2e-5 * np.abs(direct).max())


@pytest.mark.parametrize("name", ["MLP, binary", "scaled MLP, multi-class", "ridge"])
@pytest.mark.parametrize("rule", ["simple", "epsilon", "alpha_beta"])
def test_relevance_of_a_file_in_float64_is_exact(models, name, rule):
    model = models(name)
    files = exported(model, np.float64), model
    found, direct = (
        explained(ox.convert(m), "LRP", rule_name=rule).get_result("array") for m in files
    )
    np.testing.assert_allclose(found, direct, rtol=0, atol=1e-10 * np.abs(direct).max())


@pytest.mark.parametrize("name", ["MLP, binary", "scaled MLP, multi-class", "robust lasso"])
def test_coverage_is_exact_and_names_the_file_s_nodes(models, name):
    converter = ox.convert(exported(models(name)))
    table = converter.coverage("deeplift")
    assert table["exact"].all()
    joined = {name for names in table["joined"] for name in names.split(", ") if name}
    assert joined
    assert joined <= {node.name for node in converter.raw.nodes}


def test_file_can_be_saved_and_read_again(models, tmp_path):
    converter = ox.convert(exported(models("scaled MLP, binary")))
    converter.save(tmp_path / "model.onnx")
    again = ox.convert(tmp_path / "model.onnx")
    assert again.output_names == converter.output_names
    np.testing.assert_array_equal(again(X[:5])[0], converter(X[:5])[0])


# -- what cannot be explained ---------------------------------------------------------------------


def test_targets_that_the_exporter_puts_into_one_column_are_refused():
    """skl2onnx reshapes several outputs of an MLPRegressor to one; the tensor before is right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mlp(MLPRegressor).fit(X, TARGETS)
    data = exported(model)
    with pytest.raises(ModelError, match="its first axis is not the batch"):
        ox.convert(data)
    found = ox.convert(data, outputs=["add_result2"])(X[:5])[0]
    np.testing.assert_allclose(found, model.predict(X[:5]), rtol=1e-5, atol=1e-5)


def test_trees_are_refused_with_a_hint():
    model = RandomForestClassifier(n_estimators=2, max_depth=2).fit(X, CLASSES)
    with pytest.raises(UnsupportedOpError, match=r"TreeEnsembleClassifier.*tree explainer"):
        ox.convert(exported(model))


def test_model_of_steps_is_refused():
    model = make_pipeline(Binarizer(), Ridge()).fit(X, SCORE)
    with pytest.raises(ModelError, match="depends on the float inputs"):
        ox.convert(exported(model))
