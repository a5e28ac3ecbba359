"""Networks of R's neuralnet: predictions, gradients and names against what R wrote down."""

import math

import numpy as np
import pandas as pd
import pytest

import onnxplain as ox
import rdata_writer as r
from onnxplain.errors import ArgumentError, ModelError, SelectionError
from onnxplain_converters import neuralnet, r_function, rds
from onnxplain_converters.network import Network

MODELS = [
    "iris_logistic_multi",
    "iris_tanh_binary",
    "iris_softplus_custom",
    "mtcars_regression",
    "mtcars_nohidden",
    "mtcars_exclude",
]


def table(shared, model, kind):
    header = 0 if kind in ("input", "output") else None
    return pd.read_csv(shared / "neuralnet" / f"{model}_{kind}.csv", header=header)


def converter(shared, model, suffix=".rds"):
    return ox.convert(shared / "neuralnet" / f"{model}{suffix}", dtype="double")


# -- what R computed ------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("model", [m for m in MODELS if m != "mtcars_exclude"])
def test_predictions_are_those_of_r(shared, model, batch_size):
    x, y = (table(shared, model, kind).to_numpy(float) for kind in ("input", "output"))
    predicted = converter(shared, model)(x, batch_size=batch_size)[0]
    np.testing.assert_allclose(predicted, y, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("model", MODELS)
def test_net_results_are_those_of_the_training(shared, model, rows):
    x, y = (table(shared, model, kind).to_numpy(float) for kind in ("input", "netresult"))
    predict = converter(shared, model)
    predicted = np.concatenate([predict(x[i : i + rows])[0] for i in range(0, len(x), rows)])
    np.testing.assert_allclose(predicted, y, rtol=0, atol=1e-10)


@pytest.mark.parametrize("model", MODELS)
def test_float32_is_close_to_r(shared, model):
    x, y = (table(shared, model, kind).to_numpy(float) for kind in ("input", "netresult"))
    predicted = ox.convert(shared / "neuralnet" / f"{model}.rds")(x)[0]
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_generalized_weights_follow_from_the_gradient(shared, model):
    """R's generalized weight is (dy/dx) / (y (1 - y)); columns are outputs times inputs."""
    x, weights = (table(shared, model, kind).to_numpy(float) for kind in ("input", "gw"))
    found = converter(shared, model)
    y = found(x)[0]
    outputs = list(range(y.shape[1]))
    explained = ox.Gradient(
        found, x, dtype="double", ignore_last_act=False, output_idx=outputs, verbose=False
    )
    gradient = explained.get_result("array")  # rows, inputs, outputs
    expected = weights.reshape(len(x), y.shape[1], x.shape[1]).transpose(0, 2, 1)
    generalized = gradient / (y * (1 - y))[:, None, :]
    np.testing.assert_allclose(generalized, expected, rtol=1e-8, atol=1e-8)


METHODS = {
    "Gradient": {},
    "SmoothGrad": {"n": 2, "seed": 1},
    "IntegratedGradient": {"n": 3},
    "LRP": {"rule_name": "epsilon"},
    "DeepLift": {},
    "ConnectionWeights": {},
    "ExpectedGradient": {"n": 2, "seed": 1},
    "DeepSHAP": {},
}


@pytest.mark.parametrize("model", ["iris_logistic_multi", "iris_softplus_custom"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(shared, model, method):
    x = table(shared, model, "input").to_numpy(float)[::30]
    references = {"data_ref": x[:2]} if method in ("ExpectedGradient", "DeepSHAP") else {}
    options = METHODS[method] | references
    found = getattr(ox, method)(converter(shared, model), x, verbose=False, **options)
    result = found.get_result("array")
    assert result.shape[1] == x.shape[1]
    assert np.isfinite(result).all()
    assert np.abs(result).sum() > 0


# -- names, encodings, refusals -------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, inputs, outputs",
    [
        (
            "iris_logistic_multi",
            ["Sepal.Length", "Sepal.Width", "Petal.Length", "Petal.Width"],
            ["setosa", "versicolor", "virginica"],
        ),
        ("iris_tanh_binary", ["Petal.Length", "Petal.Width"], ['Species == "setosa"']),
        ("mtcars_regression", ["wt", "hp", "qsec", "am"], ["mpg"]),
    ],
)
def test_names_come_from_the_formula(shared, model, inputs, outputs):
    found = converter(shared, model)
    assert found.input_names == [[inputs]]
    assert found.output_names == [[outputs]]


@pytest.mark.parametrize("suffix", ["_v2_ascii.rds", ".RData"])
def test_encodings_of_one_object_agree(shared, suffix):
    x = table(shared, "mtcars_exclude", "input").to_numpy(float)
    first, other = (converter(shared, "mtcars_exclude", s)(x)[0] for s in (".rds", suffix))
    np.testing.assert_allclose(other, first, rtol=0, atol=1e-14)


def test_promise_without_a_value_is_read(shared):
    x = table(shared, "iris_tanh_binary", "input").to_numpy(float)
    first = converter(shared, "iris_tanh_binary")(x)[0]
    other = converter(shared, "iris_tanh_binary_unbound_promise")(x)[0]
    np.testing.assert_array_equal(other, first)


def test_network_that_did_not_converge_is_refused(shared):
    with pytest.raises(ModelError, match="no weights: its training did not converge"):
        converter(shared, "mtcars_nonconverged")


def test_files_are_found_by_suffix_in_any_case(tmp_path):
    for name in ("a.rds", "b.RDS", "c.RData", "d.rda"):
        data = r.network([W]) if "rds" in name.lower() else r.workspace({"nn": r.nn([W])})
        (tmp_path / name).write_bytes(data)
        assert ox.convert(tmp_path / name).input_names == [[["a", "b"]]]


# -- hand-made networks ---------------------------------------------------------------------------

# Row 1 is the bias.
W = np.array([[0.5], [2.0], [-1.0]])
X = np.array([[1.0, 2.0], [-0.25, 0.75], [3.0, -4.0]])


def predict(data, x=X, **options):
    model = neuralnet.convert(data, **options)
    return ox.Converter(ox.graph.load.read_model(model), dtype="double")(x)[0]


def test_first_row_is_the_bias():
    np.testing.assert_allclose(predict(r.network([W])), 0.5 + X @ W[1:], rtol=1e-15)


def test_activation_of_the_output_follows_linear_output():
    z = 0.5 + X @ W[1:]
    np.testing.assert_allclose(
        predict(r.network([W], linear_output=False)), 1 / (1 + np.exp(-z)), rtol=1e-14
    )
    np.testing.assert_allclose(
        predict(r.network([W], linear_output=False, act="tanh")), np.tanh(z), rtol=1e-14
    )


def test_excluded_weight_is_no_connection():
    w = W.copy()
    w[2] = r.NA
    np.testing.assert_allclose(predict(r.network([w])), 0.5 + 2 * X[:, :1], rtol=1e-15)


def test_weight_that_is_no_number_is_refused():
    w = W.copy()
    w[2] = np.nan
    with pytest.raises(ModelError, match="layer 1 are not finite"):
        predict(r.network([w]))


def test_repetition_is_the_best_or_the_chosen_one():
    data = r.network(repetitions=[[W], [2 * W], [3 * W]], errors=[0.3, 0.1, 0.2])
    base = 0.5 + X @ W[1:]
    for options, factor in (({}, 2), ({"rep": "best"}, 2), ({"rep": 0}, 1), ({"rep": 2}, 3)):
        np.testing.assert_allclose(predict(data, **options), factor * base, rtol=1e-14)


@pytest.mark.parametrize(
    "rep, error, message",
    [
        (3, SelectionError, "rep=3 is out of range: the network has 3 repetitions, from 0"),
        (-1, SelectionError, "rep=-1 is out of range"),
        ("worst", ArgumentError, "rep must be \"best\" or a whole number from 0, got 'worst'"),
        (True, ArgumentError, "got True"),
    ],
)
def test_wrong_repetition_is_refused(rep, error, message):
    data = r.network(repetitions=[[W], [2 * W], [3 * W]], errors=[0.3, 0.1, 0.2])
    with pytest.raises(error, match=message):
        neuralnet.convert(data, rep=rep)


def test_repetitions_without_errors_must_be_chosen():
    data = r.network(repetitions=[[W], [2 * W]])
    with pytest.raises(ModelError, match="no errors of the 2 repetitions; choose one by rep="):
        neuralnet.convert(data)
    np.testing.assert_allclose(predict(data, rep=0), 0.5 + X @ W[1:], rtol=1e-15)


def test_object_of_a_workspace_is_the_only_network_or_chosen_by_name():
    two = r.workspace({"first": r.nn([W]), "other": r.doubles([1.0]), "second": r.nn([2 * W])})
    with pytest.raises(SelectionError, match="2 networks: first, second; choose one by name="):
        neuralnet.convert(two)
    base = 0.5 + X @ W[1:]
    np.testing.assert_allclose(predict(two, name="second"), 2 * base, rtol=1e-15)
    with pytest.raises(SelectionError, match="no object 'third'; it has first, other, second"):
        neuralnet.convert(two, name="third")
    with pytest.raises(ModelError, match="'other' is a double object"):
        neuralnet.convert(two, name="other")
    one = r.workspace({"x": r.doubles([1.0]), "nn": r.nn([W])})
    np.testing.assert_allclose(predict(one), base, rtol=1e-15)


@pytest.mark.parametrize(
    "data, message",
    [
        (r.rds(r.doubles([1.0])), "holds a double object, expected a network of neuralnet"),
        (r.rds(r.NULL), "holds NULL"),
        (r.rds(r.symbol("x")), "holds a symbol"),
        (r.rds(r.named_list({"a": r.NULL}, classes=["lm"])), "holds an object of class lm"),
        (r.workspace({"x": r.NULL}), r"no object of the file is a network .*: x"),
        (r.network([W, W]), "layer 1 has 1 output, layer 2 expects 2 inputs"),
        (r.network([W[:1]]), r"layer 1 have the shape \(1, 1\), too small"),
        (r.rds(r.named_list({"weights": r.doubles([1.0])}, classes=["nn"])), "are no list"),
    ],
)
def test_what_is_no_network_is_refused(data, message):
    with pytest.raises(ModelError, match=message):
        neuralnet.convert(data)


def test_wrong_input_dim_is_refused(tmp_path):
    (tmp_path / "nn.rds").write_bytes(r.network([W]))
    assert ox.convert(tmp_path / "nn.rds", input_dim=(2,)).input_dim == [(2,)]
    with pytest.raises(ox.OnnxplainError, match=r"input_dim \(3,\) does not fit"):
        ox.convert(tmp_path / "nn.rds", input_dim=(3,))


# -- custom activations ---------------------------------------------------------------------------

Z = np.array([[-3.0], [-0.5], [0.25], [2.0]])


def call(function, *arguments):
    return r.call(function, *[r.doubles([a]) if isinstance(a, float) else a for a in arguments])


x = r.symbol("x")
minus_x = call("-", x)
exp_x = call("exp", x)


def phi(z):
    return np.array([(1 + math.erf(v / math.sqrt(2))) / 2 for v in z.ravel()]).reshape(z.shape)


CUSTOM = {
    "softplus": (call("log", call("+", 1.0, exp_x)), lambda z: np.log1p(np.exp(z)), ["Softplus"]),
    "softplus log1p": (call("log1p", exp_x), lambda z: np.log1p(np.exp(z)), ["Softplus"]),
    "relu pmax": (call("pmax", 0.0, x), lambda z: np.maximum(z, 0), ["Relu"]),
    "relu ifelse": (
        call("ifelse", call(">", x, 0.0), x, 0.0), lambda z: np.maximum(z, 0), ["Relu"]),
    "relu product": (
        call("*", x, call("(", call(">", x, 0.0))), lambda z: np.maximum(z, 0), ["Relu"]),
    "leaky relu": (
        call("ifelse", call("<", x, 0.0), call("*", 0.25, x), x),
        lambda z: np.where(z < 0, z / 4, z), ["LeakyRelu"]),
    "leaky relu, slope not in float32": (
        call("pmax", call("*", x, 0.1), x), lambda z: np.maximum(z, 0.1 * z), ["Mul", "Max"]),
    "elu": (
        call("ifelse", call(">=", x, 0.0), x, call("*", 1.0, call("-", exp_x, 1.0))),
        lambda z: np.where(z > 0, z, np.expm1(z)), ["Elu"]),
    "sigmoid": (
        call("/", 1.0, call("(", call("+", 1.0, call("exp", minus_x)))),
        lambda z: 1 / (1 + np.exp(-z)), ["Sigmoid"]),
    "tanh": (
        call("/", call("-", exp_x, call("exp", minus_x)), call("+", call("exp", minus_x), exp_x)),
        np.tanh, ["Tanh"]),
    "swish": (call("*", x, call("plogis", x)), lambda z: z / (1 + np.exp(-z)), ["Sigmoid", "Mul"]),
    "gelu": (call("*", x, call("pnorm", x)), lambda z: z * phi(z), None),
    "polynomial": (
        call("+", call("^", x, 3.0), call("-", call("sqrt", call("abs", x)), 0.5)),
        lambda z: z**3 + np.sqrt(np.abs(z)) - 0.5, None),
    "conditions": (
        call("ifelse", call("&", call("!=", x, 2.0), call("!", call("<=", x, -3.0))), x, 1.0),
        lambda z: np.where((z != 2) & ~(z <= -3), z, 1.0), None),
    "count of truths": (
        call("+", call("*", x, call(">", x, 0.5)),
             call("|", call("<", x, -1.0), call("==", x, 2.0))),
        lambda z: z * (z > 0.5) + ((z < -1) | (z == 2)), None),
    "block with local variables": (
        call("{", call("<-", r.symbol("y"), call("*", 2.0, x)),
             call("return", call("tanh", call("/", r.symbol("y"), r.symbol("pi"))))),
        lambda z: np.tanh(2 * z / np.pi), None),
    "hyperbolic and logarithms": (
        call("+", call("sinh", x), call("-", call("log2", call("cosh", x)),
             call("log", call("+", 1.0, call("^", x, 2.0)), 10.0))),
        lambda z: np.sinh(z) + np.log2(np.cosh(z)) - np.log10(1 + z**2), None),
    "named arguments": (
        r.call("ifelse", (None, call(">", x, 0.0)), ("no", r.doubles([0.0])), ("yes", x)),
        lambda z: np.maximum(z, 0), ["Relu"]),
}  # fmt: skip


@pytest.mark.parametrize("form", ["plain", "byte code"])
@pytest.mark.parametrize("name", CUSTOM)
def test_custom_activation_is_translated(name, form):
    body, expected, ops = CUSTOM[name]
    if form == "byte code":
        body = r.bytecode(body)
    identity = np.array([[0.0], [1.0]])
    data = r.network([identity], act=r.closure(body), linear_output=False, names=["z"])
    np.testing.assert_allclose(predict(data, Z), expected(Z), rtol=1e-13, atol=1e-13)
    if ops is not None:
        assert [node.op_type for node in neuralnet.convert(data).graph.node] == ["Gemm", *ops]


def test_softplus_does_not_overflow():
    data = r.network(
        [np.array([[0.0], [1.0]])], act=r.closure(CUSTOM["softplus"][0]), linear_output=False
    )
    assert predict(data, np.array([[1000.0]])) == 1000


def test_default_arguments_and_enclosing_variables_are_constants():
    body = call("*", r.symbol("a"), call("tanh", call("*", r.symbol("b"), x)))
    function = r.closure(body, defaults={"a": r.doubles([1.5])}, variables={"b": r.doubles([2.0])})
    data = r.network([np.array([[0.0], [1.0]])], act=function, linear_output=False)
    np.testing.assert_allclose(predict(data, Z), 1.5 * np.tanh(2 * Z), rtol=1e-14)


@pytest.mark.parametrize(
    "body, message",
    [
        (call("sin", x), "uses 'sin' with 1 arguments, which is not translated; known are"),
        (call("max", 0.0, x), "uses 'max' with 2 arguments"),
        (call("*", r.symbol("slope"), x), "uses 'slope', whose value is not in the file"),
        (call("+", 1.0, 2.0), "does not depend on its argument"),
        (call("{"), "is empty"),
        (call("{", call("exp", x), x), "a statement that is neither an assignment"),
        (call("exp", call("return", x)), "uses 'return'"),
        (call("+", x, r.doubles([1.0, 2.0])), "a double where a single number"),
        (call("exp", r.NULL), "NULL where a single number"),
        (r.call("log", (None, x), ("digits", r.doubles([2.0]))), "an argument 'digits'"),
        (r.call("ifelse", ("test", x)), "uses 'ifelse' with 1 arguments"),
    ],
)
def test_custom_activation_that_cannot_be_translated_is_refused(body, message):
    with pytest.raises(ModelError, match=message):
        neuralnet.convert(r.network([W], act=r.closure(body)))


def test_long_expression_is_refused_not_followed():
    body = x
    for _ in range(3000):
        body = call("exp", body)
    with pytest.raises(ModelError, match="too long to be translated"):
        neuralnet.convert(r.network([W], act=r.closure(body)))


def test_function_of_no_argument_is_refused():
    no_argument = r.ints(3 | r.TAG) + r.GLOBAL + r.NULL + x
    with pytest.raises(ModelError, match="takes no argument"):
        neuralnet.convert(r.network([W], act=no_argument))


def test_activation_that_is_no_function_is_refused():
    with pytest.raises(ModelError, match="must be an R function, got <R double of 1>"):
        neuralnet.convert(r.network([W], act=r.doubles([1.0])))


def test_terms_are_written_once():
    """A term that occurs twice is one node."""
    network = Network()
    square = call("tanh", call("*", 3.0, x))
    data = r.rds(r.closure(call("*", square, call("+", 1.0, square))))
    r_function.activation(rds.read(data))(network, "x", "act")
    assert [node.op_type for node in network.nodes].count("Tanh") == 1
