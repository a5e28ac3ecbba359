"""Models of scikit-learn: the converted network computes what the model itself predicts."""

import warnings

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("sklearn")

from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_selection import SelectKBest, VarianceThreshold, f_classif
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Perceptron,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
)
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import LinearSVC, LinearSVR

import onnxplain as ox
from onnxplain.errors import DtypeError, ModelError, ShapeError
from onnxplain_converters.sklearn import convert, encode

rng = np.random.default_rng(0)
X = rng.normal(size=(90, 4)) * [1, 5, 0.2, 30] + [0, 10, 3, -100]
SCORE = (X - X.mean(0)) / X.std(0) @ [1.0, -2.0, 0.5, 1.5]
BINARY = np.where(SCORE > 0, "yes", "no")
CLASSES = np.digitize(SCORE, [-1.5, 1.5])
LABELS = np.stack([SCORE > 0, X[:, 0] > 0, X[:, 1] > 12], axis=1).astype(int)
TARGETS = np.stack([SCORE, np.tanh(SCORE)], axis=1)

FRAME = pd.DataFrame(
    {
        "age": rng.normal(40, 10, 90),
        "size": rng.choice(["S", "M", "L"], 90),
        "id": [f"row {i}" for i in range(90)],
        "income": rng.normal(1000, 300, 90),
        "colour": rng.choice(["red", "blue", "green", "grey"], 90, p=[0.5, 0.3, 0.15, 0.05]),
    }
)
BOUGHT = np.where(FRAME.age + 10 * (FRAME.colour == "red") > 45, "yes", "no")


def fitted(model, x, y):
    """Fit a copy; a few steps of training are enough here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clone(model).fit(x, y)


def mlp(kind=MLPClassifier, **options):
    return kind(**{"hidden_layer_sizes": (6, 5), "max_iter": 40, "random_state": 0} | options)


def truth(model, x):
    """Return what the converted model should predict, as (rows, outputs)."""
    for name in ("predict_proba", "decision_function", "predict"):
        if hasattr(model, name):
            return np.asarray(getattr(model, name)(x), float).reshape(len(x), -1)
    raise AssertionError("no prediction")


MODELS = {
    "binary": (mlp(), BINARY),
    "multi-class": (mlp(), CLASSES),
    "multi-label": (mlp(), LABELS),
    "regression": (mlp(MLPRegressor), SCORE),
    "several outputs": (mlp(MLPRegressor), TARGETS),
    "logistic": (mlp(activation="logistic"), CLASSES),
    "tanh": (mlp(activation="tanh"), BINARY),
    "identity": (mlp(MLPRegressor, activation="identity"), SCORE),
    "no hidden layer": (mlp(hidden_layer_sizes=()), CLASSES),
    "linear regression": (LinearRegression(), SCORE),
    "linear regression, several outputs": (LinearRegression(), TARGETS),
    "linear regression without intercept": (LinearRegression(fit_intercept=False), SCORE),
    "ridge": (Ridge(), TARGETS),
    "lasso": (Lasso(0.1), SCORE),
    "elastic net": (ElasticNet(0.1), SCORE),
    "poisson regression": (PoissonRegressor(), np.abs(SCORE)),
    "linear support vector regression": (LinearSVR(), SCORE),
    "logistic regression": (LogisticRegression(), BINARY),
    "logistic regression, liblinear": (LogisticRegression(solver="liblinear"), BINARY),
    "multinomial regression": (LogisticRegression(), CLASSES),
    "linear support vectors": (LinearSVC(), CLASSES),
    "linear support vectors, binary": (LinearSVC(), BINARY),
    "ridge classifier": (RidgeClassifier(), CLASSES),
    "perceptron": (Perceptron(), BINARY),
    "scaled": (make_pipeline(StandardScaler(), mlp()), CLASSES),
    "centred": (make_pipeline(StandardScaler(with_std=False), mlp()), CLASSES),
    "divided": (make_pipeline(StandardScaler(with_mean=False), mlp()), CLASSES),
    "min-max": (make_pipeline(MinMaxScaler((-1, 1)), mlp(MLPRegressor)), SCORE),
    "min-max, clipped": (make_pipeline(MinMaxScaler(clip=True), mlp()), BINARY),
    "max-abs": (make_pipeline(MaxAbsScaler(), mlp()), BINARY),
    "robust": (make_pipeline(RobustScaler(), mlp()), LABELS),
    "PCA": (make_pipeline(StandardScaler(), PCA(2), mlp()), CLASSES),
    "PCA, whitened": (make_pipeline(PCA(3, whiten=True), mlp(MLPRegressor)), TARGETS),
    "truncated SVD": (make_pipeline(TruncatedSVD(2), mlp()), BINARY),
    "selection": (
        make_pipeline(VarianceThreshold(0.1), SelectKBest(f_classif, k=2), mlp()), BINARY),
    "passthrough": (Pipeline([("a", "passthrough"), ("b", mlp())]), BINARY),
    "identity function": (make_pipeline(FunctionTransformer(), mlp()), BINARY),
    "nested pipelines": (
        make_pipeline(make_pipeline(StandardScaler(), PCA(3)), make_pipeline(mlp())), CLASSES),
    "union": (
        make_pipeline(
            FeatureUnion([("a", PCA(2)), ("b", MinMaxScaler()), ("c", "drop")],
                         transformer_weights={"b": 3.0}), mlp()), CLASSES),
    "columns": (
        make_pipeline(
            ColumnTransformer(
                [("last", StandardScaler(), [3, 1]), ("none", PCA(1), []), ("d", "drop", [2])],
                remainder="passthrough", transformer_weights={"last": 2.0}), mlp()), CLASSES),
    "columns after a scaler": (
        make_pipeline(
            StandardScaler(),
            ColumnTransformer([("pca", PCA(2), slice(1, 4)), ("p", "passthrough", [0])]),
            mlp()), CLASSES),
    "imputer": (make_pipeline(SimpleImputer(), StandardScaler(), mlp()), CLASSES),
    "target, standardised": (
        TransformedTargetRegressor(
            make_pipeline(StandardScaler(), mlp(MLPRegressor)), transformer=StandardScaler()),
        10 + 5 * TARGETS),
    "target, min-max": (
        make_pipeline(MinMaxScaler(), TransformedTargetRegressor(
            mlp(MLPRegressor), transformer=MinMaxScaler((-1, 1)))), SCORE),
    "target, robust": (TransformedTargetRegressor(Ridge(), transformer=RobustScaler()), SCORE),
    "target, max-abs": (TransformedTargetRegressor(Ridge(), transformer=MaxAbsScaler()), SCORE),
    "target, logarithm": (
        TransformedTargetRegressor(Ridge(), func=np.log1p, inverse_func=np.expm1), np.abs(SCORE)),
    "target as it is": (TransformedTargetRegressor(Ridge()), SCORE),
    "search": (
        GridSearchCV(make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": [0.1, 10]}), SCORE),
}  # fmt: skip


@pytest.fixture(scope="module")
def models():
    """Fitted models, each fitted when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = fitted(MODELS[name][0], X, MODELS[name][1])
        return made[name]

    return get


# Rows inside and, for clipping, far outside of the training data.
TEST = np.concatenate([X[:11] + 0.1, X[:6] * 4])


@pytest.mark.parametrize("rows", [1, 17])
@pytest.mark.parametrize("name", MODELS)
def test_prediction_is_that_of_the_model(models, name, rows):
    model = models(name)
    converter = ox.convert(model, dtype="double")
    predicted = converter(TEST[:rows])[0]
    np.testing.assert_allclose(predicted, truth(model, TEST[:rows]), rtol=1e-10, atol=1e-10)
    assert converter.input_dim == [(4,)]


@pytest.mark.parametrize("name", ["binary", "scaled", "PCA, whitened", "columns"])
def test_prediction_in_float32_is_close(models, name):
    model = models(name)
    x = np.asarray(X[:10], np.float32)
    predicted = ox.convert(model)(x)[0]
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, truth(model, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name, labels",
    [
        ("binary", ["no", "yes"]),
        ("multi-class", ["0", "1", "2"]),
        ("multi-label", ["0", "1", "2"]),
        ("linear support vectors, binary", ["yes"]),
        ("logistic regression", ["no", "yes"]),
        ("several outputs", ["Y1", "Y2"]),
        ("ridge", ["Y1", "Y2"]),
    ],
)
def test_outputs_are_named_by_class(models, name, labels):
    assert ox.convert(models(name)).output_names == [[labels]]


def test_inputs_are_named_by_column():
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"])
    model = fitted(make_pipeline(StandardScaler(), Ridge()), frame, SCORE)
    assert ox.convert(model).input_names == [[["a", "b", "c", "d"]]]
    assert ox.convert(fitted(Ridge(), X, SCORE)).input_names == [[["X1", "X2", "X3", "X4"]]]


def test_two_classes_have_opposite_log_odds(models):
    """Before the sigmoid stand the log-odds of either class, not of one only."""
    converter = ox.convert(models("binary"), dtype="double")
    found = ox.Gradient(converter, X[:5], dtype="double", verbose=False).get_result("array")
    np.testing.assert_allclose(found[..., 0], -found[..., 1], rtol=1e-13)
    assert np.abs(found).max() > 0


def test_weights_stay_in_float64(models):
    model = models("multi-class")
    proto = convert(model)
    weights = {w.name: w for w in proto.graph.initializer}
    stored = np.frombuffer(weights["Dense_1.weight"].raw_data).reshape(4, 6)
    np.testing.assert_array_equal(stored, model.coefs_[0])


# -- explanations ---------------------------------------------------------------------------------

METHODS = {
    "Gradient": {},
    "SmoothGrad": {"n": 2, "seed": 1},
    "IntegratedGradient": {"n": 3},
    "ExpectedGradient": {"n": 2, "seed": 1, "data_ref": X[:3]},
    "LRP": {"rule_name": "epsilon"},
    "DeepLift": {},
    "DeepSHAP": {"data_ref": X[:3]},
    "ConnectionWeights": {},
}
FAMILIES = ["binary", "multi-label", "several outputs", "multinomial regression", "lasso",
            "linear support vectors", "PCA", "columns", "union"]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(models, method, name):
    converter = ox.convert(models(name), dtype="double")
    found = getattr(ox, method)(converter, X[:4], dtype="double", verbose=False, **METHODS[method])
    result = found.get_result("array")
    assert result.shape[-2:] == (4, converter.output_dim[0][0])
    assert np.isfinite(result).all()
    assert np.abs(result).sum() > 0


@pytest.mark.parametrize("name", [n for n in MODELS if "clipped" not in n])
def test_gradient_agrees_with_differences_of_the_prediction(models, name):
    model = models(name)
    converter = ox.convert(model, dtype="double")
    x = X[5:8] + 0.05
    outputs = list(range(converter.output_dim[0][0]))
    found = ox.Gradient(
        converter, x, dtype="double", ignore_last_act=False, output_idx=outputs, verbose=False
    ).get_result("array")
    step = 1e-5
    for i in range(4):
        shift = step * np.eye(4)[i]
        expected = (truth(model, x + shift) - truth(model, x - shift)) / (2 * step)
        scale = np.abs(expected).max() + 1e-3
        np.testing.assert_allclose(found[:, i], expected, rtol=0, atol=1e-5 * scale)


def test_dropped_columns_have_no_influence(models):
    found = ox.Gradient(ox.convert(models("columns")), X[:5], verbose=False).get_result("array")
    np.testing.assert_array_equal(found[:, 2], 0)
    assert (np.abs(found[:, [0, 1, 3]]).sum(axis=(0, 2)) > 0).all()


# -- encoded columns ------------------------------------------------------------------------------

NUMBERS = Pipeline([("impute", SimpleImputer()), ("scale", StandardScaler())])


def columns(*parts, **options):
    """A ColumnTransformer before a small network."""
    return make_pipeline(ColumnTransformer(list(parts), **options), mlp(max_iter=20))


ENCODED = {
    "one-hot": (
        columns(("n", StandardScaler(), ["age", "income"]), ("c", OneHotEncoder(), ["colour"])),
        ["age", "income", "colour=blue", "colour=green", "colour=grey", "colour=red"]),
    "one-hot, first dropped": (
        columns(("c", OneHotEncoder(drop="first"), ["colour", "size"]), ("n", NUMBERS, ["age"])),
        ["age", "size=M", "size=S", "colour=green", "colour=grey", "colour=red"]),
    "one-hot, binary dropped": (
        columns(("c", OneHotEncoder(drop="if_binary", sparse_output=False), ["size"])),
        ["size=L", "size=M", "size=S"]),
    "one-hot, rare ones joined": (
        columns(("c", OneHotEncoder(min_frequency=20, sparse_output=False), ["colour"])),
        ["colour=blue", "colour=red", "colour=infrequent"]),
    "one-hot, first dropped and rare ones joined": (
        columns(("c", OneHotEncoder(min_frequency=20, drop="first"), ["colour"])),
        ["colour=red", "colour=infrequent"]),
    "ordinal": (
        columns(("o", OrdinalEncoder(), ["size"]), ("n", "passthrough", ["income"])),
        ["size", "income"]),
    "ordinal, then scaled": (
        columns(("o", make_pipeline(OrdinalEncoder(), MinMaxScaler()), ["size", "colour"])),
        ["size", "colour"]),
    "imputed, then encoded": (
        columns(("c", make_pipeline(SimpleImputer(strategy="most_frequent"),
                                    OneHotEncoder(handle_unknown="ignore")), ["colour"]),
                ("n", NUMBERS, ["income", "age"])),
        ["age", "income", "colour=blue", "colour=green", "colour=grey", "colour=red"]),
    "numbers and all the rest": (
        columns(("n", "passthrough", ["age"]), ("d", "drop", ["id", "income"]),
                remainder=OneHotEncoder()),
        ["age", "size=L", "size=M", "size=S", "colour=blue", "colour=green", "colour=grey",
         "colour=red"]),
    "selected by type": (
        columns(("n", StandardScaler(), lambda frame: frame.select_dtypes("number").columns)),
        ["age", "size", "id", "income", "colour"]),
}  # fmt: skip


@pytest.mark.parametrize("rows", [1, 90])
@pytest.mark.parametrize("name", [n for n in ENCODED if n != "selected by type"])
def test_prediction_on_encoded_columns(name, rows):
    pipeline, labels = ENCODED[name]
    model = fitted(pipeline, FRAME, BOUGHT)
    table = encode(model, FRAME[:rows])
    converter = ox.convert(model, dtype="double")
    assert converter.input_names == [[labels]]
    assert list(table.columns) == labels
    predicted = converter(table)[0]
    np.testing.assert_allclose(predicted, model.predict_proba(FRAME[:rows]), rtol=0, atol=1e-10)


def test_columns_selected_by_a_function_are_found():
    pipeline, labels = ENCODED["selected by type"]
    model = fitted(pipeline, FRAME, BOUGHT)
    converter = ox.convert(model, dtype="double")
    assert converter.input_names == [[labels]]
    x = np.zeros((90, 5))
    x[:, [0, 3]] = FRAME[["age", "income"]]
    np.testing.assert_allclose(converter(x)[0], model.predict_proba(FRAME), rtol=0, atol=1e-10)


def test_encoding_imputes_and_finds_columns_by_name():
    model = fitted(ENCODED["imputed, then encoded"][0], FRAME, BOUGHT)
    holes = FRAME[:4].copy()
    holes.loc[1, "age"] = np.nan
    holes.loc[2, "colour"] = np.nan
    table = encode(model, holes[holes.columns[::-1]])
    assert table["age"][1] == pytest.approx(FRAME.age.mean())
    assert table["colour=red"][2] == 1
    predicted = ox.convert(model, dtype="double")(table)[0]
    np.testing.assert_allclose(predicted, model.predict_proba(holes), rtol=0, atol=1e-10)


def test_encoding_at_the_start_of_a_pipeline():
    data = FRAME[["size", "colour"]].to_numpy(object)
    model = fitted(make_pipeline(OneHotEncoder(), LogisticRegression()), data, BOUGHT)
    table = encode(model, data)
    assert list(table.columns)[:4] == ["X1=L", "X1=M", "X1=S", "X2=blue"]
    predicted = ox.convert(model, dtype="double")(table)[0]
    np.testing.assert_allclose(predicted, model.predict_proba(data), rtol=0, atol=1e-10)


def test_pipelines_that_pass_frames_on_are_read():
    pipeline = clone(ENCODED["imputed, then encoded"][0])
    pipeline[0].set_params(c__onehotencoder__sparse_output=False)
    model = fitted(pipeline.set_output(transform="pandas"), FRAME, BOUGHT)
    predicted = ox.convert(model, dtype="double")(encode(model, FRAME))[0]
    np.testing.assert_allclose(predicted, model.predict_proba(FRAME), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "data, error, message",
    [
        (FRAME[["age", "size"]], ShapeError, "no columns id, income, colour"),
        (FRAME.to_numpy()[:, :3], ShapeError, r"shape \(90, 3\), the model expects \(rows, 5\)"),
        (FRAME.assign(age="old"), DtypeError, r"column 'age' holds \['old'\], expected numbers"),
    ],
)
def test_encoding_of_other_data_is_refused(data, error, message):
    model = fitted(ENCODED["one-hot"][0], FRAME, BOUGHT)
    with pytest.raises(error, match=message):
        encode(model, data)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_encoded_columns(method):
    model = fitted(ENCODED["one-hot"][0], FRAME, BOUGHT)
    table = encode(model, FRAME)
    options = METHODS[method] | ({"data_ref": table[:3]} if "data_ref" in METHODS[method] else {})
    found = getattr(ox, method)(ox.convert(model), table[:4], verbose=False, **options)
    result = found.get_result("array")
    assert result.shape[-2:] == (6, 2)
    assert np.isfinite(result).all()


# -- refusals -------------------------------------------------------------------------------------


class Own(TransformerMixin, BaseEstimator):
    def fit(self, x, y=None):
        self.n_features_in_ = x.shape[1]
        return self

    def transform(self, x):
        return x


class OwnScaler(StandardScaler):
    def transform(self, x):
        return super().transform(x) ** 3


@pytest.mark.parametrize(
    "model, y, message",
    [
        (RandomForestClassifier(2), CLASSES, "RandomForestClassifier is not supported; expected"),
        (make_pipeline(PolynomialFeatures(), mlp()), CLASSES,
         r"step 'polynomialfeatures' \(PolynomialFeatures\) is not supported before a model"),
        (make_pipeline(Own(), mlp()), CLASSES, r"step 'own' \(Own\) is not supported"),
        (make_pipeline(OwnScaler(), mlp()), CLASSES, r"step 'ownscaler' \(OwnScaler\) is not"),
        (make_pipeline(StandardScaler(), PCA()), CLASSES, r"step 'pca' \(PCA\) is a transformer"),
        (Pipeline([("s", StandardScaler()), ("m", "passthrough")]), CLASSES, "no model at its end"),
        (make_pipeline(FunctionTransformer(np.tanh), mlp()), CLASSES, "calls the function 'tanh'"),
        (make_pipeline(StandardScaler(), KBinsDiscretizer(), mlp()), CLASSES, "KBinsDiscretizer"),
        (make_pipeline(StandardScaler(), SimpleImputer(), mlp()), CLASSES,
         r"step 'simpleimputer' \(SimpleImputer\) comes after a step that computes"),
        (make_pipeline(ColumnTransformer([("x", PolynomialFeatures(), [0])]), mlp()), CLASSES,
         r"step 'columntransformer.x' \(PolynomialFeatures\)"),
        (TransformedTargetRegressor(Ridge(), func=np.arcsinh, inverse_func=np.sinh), SCORE,
         "cannot be transformed back; known are"),
        (make_pipeline(ColumnTransformer([("x", "drop", [0])], remainder="drop"), mlp()), None,
         "not fitted"),
    ],
)  # fmt: skip
def test_unsupported_step_is_named(model, y, message):
    if y is not None:
        model = fitted(model, X, y)
    with pytest.raises(ModelError, match=message):
        ox.convert(model)


@pytest.mark.parametrize(
    "model, message",
    [
        (mlp(), "MLPClassifier is not fitted; call fit before convert"),
        (LinearRegression(), "LinearRegression is not fitted"),
        (make_pipeline(StandardScaler(), mlp()), "is not fitted"),
        (GridSearchCV(Ridge(), {"alpha": [1]}), r"GridSearchCV is not fitted \(it has no best_"),
        (make_pipeline(StandardScaler().fit(X), mlp()),
         r"step 'mlpclassifier' \(MLPClassifier\) is not fitted \(it has no coefs_\)"),
    ],
)  # fmt: skip
def test_unfitted_model_is_refused(model, message):
    with pytest.raises(ModelError, match=message):
        ox.convert(model)


def test_wrong_input_dim_is_refused(models):
    with pytest.raises(ox.OnnxplainError, match=r"input_dim \(5,\) does not fit"):
        ox.convert(models("binary"), input_dim=(5,))


def test_logistic_regression_by_cross_validation():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegressionCV(Cs=2, cv=2).fit(X, CLASSES)
    predicted = ox.convert(model, dtype="double")(X)[0]
    np.testing.assert_allclose(predicted, model.predict_proba(X), rtol=0, atol=1e-10)


def test_logistic_regression_one_against_the_rest_is_refused():
    """Older versions of scikit-learn fit it so on request."""
    model = fitted(LogisticRegression(), X, CLASSES)
    model.multi_class = "ovr"
    with pytest.raises(ModelError, match="one class against the rest"):
        ox.convert(model)
