"""Operators of ai.onnx.ml: what they compute, and what is pruned, replaced or refused."""

import json
import pickle
import warnings

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper
from onnx.backend.test.loader import load_model_tests

import onnxplain as ox
from onnxplain.errors import ModelError, UnsupportedOpError
from onnxplain.graph.graph import build
from onnxplain.graph.load import read_model
from onnxplain.testing import check_kernel
from onnxplain.walk import forward

ML = "ai.onnx.ml"
rng = np.random.default_rng(0)
X = rng.normal(size=(5, 3)).astype(np.float32)
W = rng.normal(size=(3, 2)).astype(np.float32)
B = np.array([0.3, -0.2], np.float32)


def tensor(name, dtype=TensorProto.FLOAT, shape=(None, None)):
    return helper.make_tensor_value_info(name, dtype, shape)


def maps(name):
    key_to_float = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    return helper.make_value_info(name, helper.make_sequence_type_proto(key_to_float))


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, domain=ML, **attributes)


def model(nodes, outputs, weights=None, width=3, version=1):
    """Return a model of a matrix "x" with an open batch axis without a name."""
    stored = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", [tensor("x", shape=(None, width))], outputs, stored)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(ML, version)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def single(op, outputs=("y",), **attributes):
    return model([node(op, ["x"], list(outputs), **attributes)], [tensor(outputs[-1])])


def computed(proto, x=X, optimise=True):
    graph = build(read_model(proto), optimise=optimise)
    return forward(graph, {"x": x})[proto.graph.output[0].name]


def by_onnxruntime(proto, x):
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run([proto.graph.output[0].name], {"x": x})[0]


# -- what is computed -----------------------------------------------------------------------------

COEFFICIENTS = W.T.ravel().tolist()
CLASSES = {"classlabels_ints": [4, 7]}
NODES = {
    "scaler": single("Scaler", offset=[1.0, 2.0, 3.0], scale=[2.0, 0.5, -1.0]),
    "scaler of one number": single("Scaler", offset=[1.0], scale=[2.0]),
    "maximum": single("Normalizer", norm="MAX"),
    "sum": single("Normalizer", norm="L1"),
    "length": single("Normalizer", norm="L2"),
    "binarizer": single("Binarizer", threshold=0.2),
    "imputer": single("Imputer", imputed_value_floats=[1.0, 2.0, 3.0],
                      replaced_value_float=float("nan")),
    "imputer of zeros": single("Imputer", imputed_value_floats=[5.0], replaced_value_float=0.0),
    "regressor": single("LinearRegressor", coefficients=[1.0, -2.0, 0.5], intercepts=[0.3]),
    "regressor without bias": single("LinearRegressor", coefficients=[1.0, -2.0, 0.5]),
    "regressor of two targets": single(
        "LinearRegressor", coefficients=COEFFICIENTS, intercepts=[0.3, -0.2], targets=2),
    "logistic regressor": single(
        "LinearRegressor", coefficients=COEFFICIENTS, targets=2, post_transform="LOGISTIC"),
    "vectorizer": model(
        [node("FeatureVectorizer", ["x", "x"], ["y"], inputdimensions=[3, 3])], [tensor("y")]),
    "extractor": model(
        [node("ArrayFeatureExtractor", ["x", "columns"], ["y"])], [tensor("y")],
        {"columns": np.array([2, 0])}),
} | {
    f"classifier, {transform}": single(
        "LinearClassifier", ("label", "y"), coefficients=COEFFICIENTS, intercepts=[0.3, -0.2],
        post_transform=transform, **CLASSES)
    for transform in ("NONE", "LOGISTIC", "SOFTMAX")
} | {
    "classifier of one row": single(
        "LinearClassifier", ("label", "y"), coefficients=[1.0, -2.0, 0.5], intercepts=[0.3],
        post_transform="LOGISTIC", **CLASSES),
}  # fmt: skip

ROWS = np.concatenate([X, [[0, 0, 0], [0, -1, -1], [-1, -2, -3], [3, 0, 1]]]).astype(np.float32)


@pytest.mark.parametrize("optimise", [True, False])
@pytest.mark.parametrize("name", NODES)
def test_node_computes_what_onnxruntime_does(name, optimise):
    rows = ROWS.copy()
    if name.startswith("imputer"):
        rows[0, 1] = np.nan
    found = computed(NODES[name], rows, optimise)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_onnxruntime(NODES[name], rows), rtol=2e-6, atol=2e-6)


def test_label_is_that_of_the_largest_score():
    proto = single("LinearClassifier", ("label", "y"), coefficients=COEFFICIENTS,
                   intercepts=[0.3, -0.2], **CLASSES)  # fmt: skip
    proto.graph.output.insert(0, tensor("label", TensorProto.INT64, (None,)))
    np.testing.assert_array_equal(computed(proto), np.array([4, 7])[(X @ W + B).argmax(1)])


def cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cases of other operators overflow on purpose
        every = load_model_tests(kind="node")
    return {
        case.name: case
        for case in every
        if any(n.domain == ML and "Tree" not in n.op_type for n in case.model.graph.node)
    }


CASES = cases()


def test_onnx_has_cases_of_the_domain():
    assert len(CASES) >= 6


@pytest.mark.parametrize("name", CASES)
def test_case_of_onnx(name):
    case = CASES[name]
    graph = build(read_model(case.model))
    for inputs, outputs in case.data_sets:
        feeds = {spec.name: value for spec, value in zip(graph.inputs, inputs, strict=True)}
        found = forward(graph, feeds)
        for output, expected in zip(graph.outputs, outputs, strict=True):
            assert found[output].dtype == expected.dtype
            np.testing.assert_array_equal(found[output], expected)


# -- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_normaliser_keeps_its_promises(norm):
    passes = ("gradient", "deeplift", "relevance", "connection")
    assert check_kernel("Normalizer", [X], attributes={"norm": norm}, domain=ML) == passes


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_normaliser_adds_up_against_a_row_of_zeros(norm):
    converter = ox.convert(single("Normalizer", norm=norm))
    found = ox.DeepLift(converter, X, dtype="double", verbose=False).get_result("array")
    y = X / {"MAX": X.max(1), "L1": abs(X).sum(1), "L2": np.linalg.norm(X, axis=1)}[norm][:, None]
    np.testing.assert_allclose((found).sum(1), y, rtol=1e-6)
    assert np.isfinite(found).all()


def test_normaliser_refuses_more_than_matrices():
    proto = single("Normalizer", norm="L1")
    proto.graph.input[0].CopyFrom(tensor("x", shape=(None, 2, 3)))
    with pytest.raises(UnsupportedOpError, match="rows of a matrix, got the shape"):
        ox.convert(proto)


def test_multipliers_of_what_was_missing_add_up():
    """A row with a missing cell, against references with and without one in the same place."""
    converter = ox.convert(
        single("Imputer", imputed_value_floats=[1.0, 2.0, 3.0], replaced_value_float=-999.0)
    )
    x = np.array([[-999.0, 0.5, -999.0]])
    reference = np.array([[0.5, -999.0, -999.0]])
    found = ox.DeepLift(converter, x, x_ref=reference, dtype="double", verbose=False)
    contributions = np.diagonal(found.get_result("array")[0])
    np.testing.assert_allclose(contributions, [1 - 0.5, 0.5 - 2, 0], rtol=1e-12)
    np.testing.assert_allclose(found.decomp_sum[0], found.decomp_goal[0], rtol=1e-12)


def test_steps_let_nothing_pass():
    with pytest.raises(ModelError, match="none of the outputs y depends on the float inputs"):
        ox.convert(NODES["binarizer"])


# -- scores in the place of probabilities ---------------------------------------------------------


def ops(converter):
    return [n.op for n in converter.graph.nodes]


def gradient(converter, **options):
    return ox.Gradient(converter, X, dtype="double", verbose=False, **options).get_result("array")


WEIGHTS = np.broadcast_to(W, (5, 3, 2))


@pytest.mark.parametrize(
    "transform, expected",
    [("NONE", ["Gemm"]), ("LOGISTIC", ["Gemm", "Sigmoid"]), ("SOFTMAX", ["Gemm", "Softmax"])],
)
def test_classifier_is_a_dense_layer_and_an_activation(transform, expected):
    converter = ox.convert(NODES[f"classifier, {transform}"])
    assert ops(converter) == expected
    assert converter.graph.nodes[0].name == "LinearClassifier_0"
    assert {n.joined for n in converter.graph.nodes} == {("LinearClassifier_0",)}
    np.testing.assert_allclose(gradient(converter), WEIGHTS, rtol=1e-12)


def classifier(transform, *more, outputs):
    first = node("LinearClassifier", ["x"], ["label", "scores"], coefficients=COEFFICIENTS,
                 intercepts=B.tolist(), post_transform=transform, **CLASSES)  # fmt: skip
    return model([first, *more], outputs)


def test_softmax_is_not_normalised_again():
    sums = node("Normalizer", ["scores"], ["y"], norm="L1")
    converter = ox.convert(classifier("SOFTMAX", sums, outputs=[tensor("y")]))
    np.testing.assert_allclose(gradient(converter), WEIGHTS, rtol=1e-12)
    np.testing.assert_allclose(converter(X)[0].sum(1), 1, rtol=1e-6)


def test_references_meet_rows_behind_nodes_that_only_pass():
    """Two nodes that change nothing stand after the softmax; DeepSHAP cuts them into rows, too."""
    sums = node("Normalizer", ["scores"], ["sums"], norm="L1")
    converter = ox.convert(
        classifier("SOFTMAX", sums, node("ZipMap", ["sums"], ["y"]), outputs=[maps("y")])
    )
    found = ox.DeepSHAP(converter, X, data_ref=X[:3], dtype="double", verbose=False)
    expected = (X - X[:3].mean(0))[..., None] * W.astype(float)
    np.testing.assert_allclose(found.get_result("array"), expected, rtol=0, atol=1e-7)


def test_scaler_that_only_scales_absorbs_nothing():
    """An offset of zeros is no bias."""
    scaler = node("Scaler", ["x"], ["s"], offset=[0.0] * 3, scale=[2.0, 0.5, -1.0])
    dense = helper.make_node("MatMul", ["s", "w"], ["y"])
    converter = ox.convert(model([scaler, dense], [tensor("y")], {"w": W}))
    assert ops(converter) == ["ChannelAffine", "MatMul"]
    assert [len(n.inputs) for n in converter.graph.nodes] == [2, 2]


def test_sigmoids_are_normalised():
    sums = node("Normalizer", ["scores"], ["y"], norm="L1")
    converter = ox.convert(classifier("LOGISTIC", sums, outputs=[tensor("y")]))
    p = 1 / (1 + np.exp(-(X @ W + B)))
    np.testing.assert_allclose(converter(X)[0], p / p.sum(1, keepdims=True), rtol=1e-6)
    assert "Normalizer" in ops(converter)


def two_columns(layer, axis, rank=2, one=1.0):
    """p = sigmoid(layer(x)), then 1 - p and p side by side."""
    shape = ", ".join({2: "N3", 3: "N23"}[rank])
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[{shape}] x) => (float[N, 2] y)
        <float[3, 1] w, float[1] b, float[1] one>
        {{ {layer} p = Sigmoid(z) rest = Sub(one, p) y = Concat<axis = {axis}>(rest, p) }}"""
    proto = onnx.parser.parse_model(text)
    values = {"w": W[:, :1], "b": B[:1], "one": np.float32([one])}
    stored = [onnx.numpy_helper.from_array(v, k) for k, v in values.items()]
    proto.graph.ClearField("initializer")
    proto.graph.initializer.extend(stored)
    return proto


GEMM, MATMUL = "z = Gemm(x, w, b)", "m = MatMul(x, w) z = Add(m, b)"
ODDS = np.broadcast_to(W[:, :1] * [-1, 1], (5, 3, 2))


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("layer", [GEMM, MATMUL, "z = MatMul(x, w)"])
def test_two_columns_of_one_sigmoid_are_explained_by_log_odds(layer, axis):
    proto = two_columns(layer, axis)
    converter = ox.convert(proto)
    assert ops(converter) == ["Gemm" if "Gemm" in layer else "MatMul", "Sigmoid"]
    np.testing.assert_allclose(gradient(converter), ODDS, rtol=1e-12)
    np.testing.assert_allclose(converter(X)[0], computed(proto, optimise=False), rtol=2e-6)


@pytest.mark.parametrize(
    "proto",
    [
        two_columns(GEMM, axis=0),
        two_columns(GEMM, axis=1, one=2.0),
        two_columns(MATMUL, axis=1, rank=3),
    ],
    ids=["rows", "not one", "of three axes"],
)
def test_what_only_looks_like_two_columns_is_left_alone(proto):
    x = X if len(proto.graph.input[0].type.tensor_type.shape.dim) == 2 else X[:, None].repeat(2, 1)
    graph = build(read_model(proto))
    assert [n.op for n in graph.nodes][-1] == "Concat"
    np.testing.assert_allclose(
        forward(graph, {"x": x})["y"], computed(proto, x, optimise=False), rtol=1e-6
    )


def test_two_columns_are_left_alone_where_the_probability_is_an_output():
    proto = two_columns(GEMM, axis=1)
    proto.graph.output.append(tensor("p"))
    assert ops(ox.convert(proto))[-1] == "Concat"


# -- outputs that are no tensors of numbers -------------------------------------------------------


def with_maps(**labels):
    labels = labels or {"classlabels_int64s": [4, 7]}
    zipped = node("ZipMap", ["scores"], ["probability"], **labels)
    outputs = [tensor("label", TensorProto.INT64, (None,)), maps("probability")]
    return classifier("SOFTMAX", zipped, outputs=outputs)


def test_output_of_maps_is_the_tensor_they_are_made_of():
    converter = ox.convert(with_maps())
    assert converter.graph.outputs == ("probability",)
    assert converter.skipped_outputs == ["label"]
    assert converter.output_dim == [(2,)]
    z = np.exp(X @ W + B)
    np.testing.assert_allclose(converter(X)[0], z / z.sum(1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(gradient(converter), WEIGHTS, rtol=1e-12)


@pytest.mark.parametrize(
    "labels, names",
    [
        ({"classlabels_int64s": [4, 7]}, ["4", "7"]),
        ({"classlabels_strings": ["no", "yes"]}, ["no", "yes"]),
        ({"classlabels_strings": ["no", "yes", "more"]}, ["Y1", "Y2"]),
    ],
)
def test_keys_of_maps_name_the_classes(labels, names):
    assert ox.convert(with_maps(**labels)).output_names == [[names]]


def test_given_and_stored_names_come_before_those_of_the_classes():
    proto = with_maps()
    assert ox.convert(proto, output_names=["a", "b"]).output_names == [[["a", "b"]]]
    helper.set_model_props(proto, {"class_names": json.dumps(["c", "d"])})
    assert ox.convert(proto).output_names == [[["c", "d"]]]


def test_model_with_maps_can_be_saved_and_pickled(tmp_path):
    converter = ox.convert(with_maps(classlabels_strings=["no", "yes"]))
    converter.save(tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    for again in (ox.convert(tmp_path / "model.onnx"), pickle.loads(pickle.dumps(converter))):
        assert again.graph.outputs == converter.graph.outputs
        assert again.output_names == [[["no", "yes"]]]
        np.testing.assert_array_equal(again(X)[0], converter(X)[0])


def label_branch(*last, classes):
    """Softmax probabilities, and labels looked up at the best of them."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"]),
        helper.make_node("ArgMax", ["p"], ["best"], axis=1),
        *last,
    ]
    outputs = [tensor("label", TensorProto.INT64, None), tensor("p")]
    return model(nodes, outputs, {"w": W, "classes": classes, "flat": np.array([-1])})


def test_branch_of_labels_is_pruned():
    proto = label_branch(
        node("ArrayFeatureExtractor", ["classes", "best"], ["found"]),
        helper.make_node("Reshape", ["found", "flat"], ["row"]),
        helper.make_node("Cast", ["row"], ["label"], to=TensorProto.INT64),
        classes=np.array([10, 20]),
    )
    converter = ox.convert(proto)
    assert ops(converter) == ["MatMul", "Softmax"]
    assert converter.skipped_outputs == ["label"]
    assert converter.output_names == [[["10", "20"]]]
    np.testing.assert_array_equal(
        computed(proto), np.array([10, 20])[(X @ W).argmax(1)]
    )  # fmt: skip


def test_operators_without_a_kernel_do_no_harm_on_the_branch_of_labels():
    unknown = node("CategoryMapper", ["best"], ["label"], cats_strings=["a"], cats_int64s=[1])
    assert ops(ox.convert(label_branch(unknown, classes=np.array([1, 2])))) == ["MatMul", "Softmax"]


def test_labels_are_encoded():
    encode = node("LabelEncoder", ["best"], ["label"], keys_int64s=[0], values_int64s=[3])
    proto = label_branch(encode, classes=np.array([1, 2]))
    for entry in proto.opset_import:
        entry.version = 2 if entry.domain else entry.version
    best = (X @ W).argmax(1)[:, None]
    assert ops(ox.convert(proto)) == ["MatMul", "Softmax"]
    np.testing.assert_array_equal(computed(proto), np.where(best == 0, 3, -1))


def test_columns_of_scores_keep_their_names():
    proto = classifier("NONE", node("ArrayFeatureExtractor", ["scores", "at"], ["y"]),
                       outputs=[tensor("y")])  # fmt: skip
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "at"))
    converter = ox.convert(proto)
    assert converter.output_names == [[["7"]]]
    np.testing.assert_allclose(gradient(converter)[..., 0], WEIGHTS[..., 1], rtol=1e-12)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op", ["TreeEnsembleClassifier", "TreeEnsembleRegressor", "SVMRegressor", "SVMClassifier"]
)
def test_other_models_are_refused_by_name(op):
    outputs = ["label", "y"] if op.endswith("Classifier") else ["y"]
    words = r"shap\.TreeExplainer" if op.startswith("Tree") else "linear ones are"
    with pytest.raises(UnsupportedOpError, match=rf"{op}.*{words}"):
        ox.convert(single(op, outputs))


@pytest.mark.parametrize(
    "attributes, words",
    [
        ({"post_transform": "PROBIT"}, "'PROBIT' of its scores is not supported"),
        ({"post_transform": "SOFTMAX_ZERO"}, "'SOFTMAX_ZERO' of its scores is not supported"),
        ({"coefficients": [1.0, 2.0, 3.0], "intercepts": [1.0]}, "coefficients for both"),
    ],
)
def test_transform_that_is_unclear_is_refused(attributes, words):
    given = {"coefficients": COEFFICIENTS} | CLASSES | attributes
    with pytest.raises(UnsupportedOpError, match=rf"LinearClassifier_0.*{words}"):
        ox.convert(single("LinearClassifier", ("label", "y"), **given))


def test_transform_of_a_single_score_is_refused():
    proto = single("LinearRegressor", coefficients=[1.0, 2.0, 3.0], post_transform="LOGISTIC")
    with pytest.raises(UnsupportedOpError, match="LOGISTIC of a single score is applied by some"):
        ox.convert(proto)


@pytest.mark.parametrize(
    "op, attributes, words",
    [
        ("LinearRegressor", {}, "0 coefficients and 0 intercepts do not make 1 scores"),
        ("LinearRegressor", {"coefficients": [1.0], "targets": 2**40}, "do not make 1099511627776"),
        ("LinearRegressor", {"coefficients": [1.0], "targets": 0}, "do not make 0 scores"),
        ("LinearRegressor", {"coefficients": [1.0, 2.0]}, "cannot run on inputs of shapes"),
        ("LinearClassifier", {"coefficients": [1.0] * 9, "classlabels_ints": [1, 2],
                              "intercepts": [1.0] * 3}, "3 scores are given for 2 classes"),
        ("Normalizer", {"norm": "L3"}, "the norm is 'L3', expected MAX, L1 or L2"),
        ("Scaler", {"offset": [1.0, 2.0]}, "cannot run on inputs of shapes"),
        ("Scaler", {"offset": "one"}, "'offset' is STRING, expected FLOATS"),
        ("Imputer", {"imputed_value_floats": [1.0, 2.0]}, "cannot run on inputs of shapes"),
        ("Skaler", {}, "ai.onnx.ml opset 1 has no op 'Skaler'"),
    ],
)  # fmt: skip
def test_node_that_makes_no_sense_is_refused(op, attributes, words):
    outputs = ("label", "y") if op == "LinearClassifier" else ("y",)
    with pytest.raises(ModelError, match=words):
        ox.convert(single(op, outputs, **attributes))
