"""What users call: signatures, data of every kind, selections, results, pickles, saved models."""

import inspect
import json
import pickle
import re

import numpy as np
import onnx
import pandas as pd
import pytest
import xarray as xr
from onnx import TensorProto, helper, numpy_helper, parser

import onnxplain as ox
from onnxplain import results
from onnxplain.cli import parameters
from onnxplain.errors import ArgumentError, DataError, ModelFileError
from onnxplain.graph import save as saving

RNG = np.random.default_rng(7)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def model(graph, **weights):
    proto = parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> {graph}')
    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    return proto


TABLE_PROTO = model(
    "g (float[N,3] x) => (float[N,4] y)"
    "{h = Gemm(x, w, b)  r = Relu(h)  s = Gemm(r, v)  y = Softmax<axis = 1>(s)}",
    w=normal(3, 5), b=normal(5), v=normal(5, 4),
)  # fmt: skip
LABELS = {
    "input_names": ["age", "height", "weight"],
    "output_names": ["cat", "dog", "cow", "hen"],
}
TABLE = ox.convert(TABLE_PROTO, **LABELS)
IMAGE = ox.convert(
    model("g (float[N,2,4,5] x) => (float[N,3,2,3] y) {h = Conv(x, w)  y = Relu(h)}",
          w=normal(3, 2, 3, 3))
)  # fmt: skip
TWO_PROTO = model(
    "g (float[N,3] a, float[N,2] b) => (float[N,2] u, float[N,2] v)"
    "{u = MatMul(a, w)  r = Relu(u)  v = Add(r, b)}",
    w=normal(3, 2),
)
TWO = ox.convert(TWO_PROTO)
TOKENS = ox.convert(
    model(
        "g (int64[N,4] ids, float[N,4] x) => (float[N,4] y) {e = Gather(w, ids)  y = Mul(e, x)}",
        w=normal(7),
    )
)
X = RNG.standard_normal((6, 3))
B = RNG.standard_normal((6, 2))
PIXELS = RNG.standard_normal((3, 2, 4, 5))
IDS = np.array([[0, 1, 2, 3], [4, 5, 6, 0]])

COMMON = {
    "channels_first": True, "output_idx": None, "output_label": None, "output_weights": None,
    "layer": None, "ignore_last_act": True, "verbose": None, "dtype": "float", "device": "cpu",
    "batch_size": None, "seed": None,
    "like": None,
}  # fmt: skip
OWN = {
    "Gradient": {"times_input": False},
    "SmoothGrad": {"n": None, "noise_level": None, "times_input": False},
    "IntegratedGradient": {
        "x_ref": None, "n": None, "times_input": True, "quadrature": None,
    },
    "ExpectedGradient": {"data_ref": None, "n": None},
    "LRP": {"rule_name": "simple", "rule_param": None, "winner_takes_all": True, "gates": "signal"},
    "DeepLift": {"x_ref": None, "rule_name": "rescale", "winner_takes_all": True},
    "DeepSHAP": {
        "data_ref": None, "limit_ref": 100, "rule_name": "rescale", "winner_takes_all": True,
    },
    "ConnectionWeights": {"times_input": False},
}  # fmt: skip
FUNCTIONS = {
    "run_grad": "Gradient", "run_smoothgrad": "SmoothGrad", "run_intgrad": "IntegratedGradient",
    "run_expgrad": "ExpectedGradient", "run_lrp": "LRP", "run_deeplift": "DeepLift",
    "run_deepshap": "DeepSHAP", "run_cw": "ConnectionWeights",
}  # fmt: skip
METHODS = [getattr(ox, name) for name in OWN]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)


def fast(method, **options):
    """Return arguments that make a method quick and reproducible."""
    own = inspect.signature(method).parameters
    return {"seed": 1, **({"n": 3} if "n" in own else {}), **options}


def run(method, converter=TABLE, data=X, **options):
    if method is ox.ConnectionWeights:
        options = {"times_input": True, **options}
    return method(converter, data, **fast(method, **options))


# -- signatures ------------------------------------------------------------------------------------


@each_method
def test_signature_shows_every_argument_with_its_default(method):
    signature = inspect.signature(method).parameters
    defaults = {name: p.default for name, p in signature.items()}
    data = None if method is ox.ConnectionWeights else inspect.Parameter.empty
    expected = {"converter": inspect.Parameter.empty, "data": data}
    assert defaults == expected | OWN[method.__name__] | COMMON
    assert list(signature)[:2] == ["converter", "data"]
    keywords = [p.kind for p in list(signature.values())[2:]]
    assert set(keywords) == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("function, name", FUNCTIONS.items())
def test_functions_are_the_classes(function, name):
    assert getattr(ox, function) is getattr(ox, name)
    assert function in ox.__all__


@each_method
def test_the_command_line_sees_the_arguments(method):
    assert set(OWN[method.__name__]) | set(COMMON) <= parameters(method)


@each_method
def test_help_shows_the_common_arguments(method):
    import pydoc

    text = pydoc.plain(pydoc.render_doc(method))
    shown = text[: text.index("Parameters")]
    for name in (*OWN[method.__name__], *COMMON):
        assert re.search(rf"\b{name}: '[^']*' = ", shown), name


# -- several inputs and outputs --------------------------------------------------------------------


@each_method
def test_pairs_without_a_path_are_none_and_nan(method):
    if method is ox.ConnectionWeights:
        found = method(TWO, output_idx=[[0, 1], [1]])
    else:
        found = run(method, TWO, [X, B], output_idx=[[0, 1], [1]])
    assert [[a is None for a in row] for row in found.result] == [[False, True], [False, False]]
    nested = found.get_result()
    assert list(nested) == ["Output_1", "Output_2"]
    assert list(nested["Output_1"]) == ["Input_1", "Input_2"]
    assert np.isnan(nested["Output_1"]["Input_2"]).all()
    assert np.isfinite(nested["Output_2"]["Input_2"]).all()
    rows = 1 if method is ox.ConnectionWeights else 6
    assert nested["Output_2"]["Input_1"].shape == (rows, 3, 1)
    table = found.get_result("data.frame")
    missing = table[table["value"].isna()]
    assert set(zip(missing.model_input, missing.model_output, strict=True)) == {
        ("Input_2", "Output_1")
    }


@each_method
def test_outputs_explained_together_equal_each_alone(method):
    both = run(method, TWO, [X, B], output_idx=[[1], [0, 1]], dtype="double")
    second = run(method, TWO, [X, B], output_idx=[None, [0, 1]], dtype="double")
    first = run(method, TWO, [X, B], output_idx=[[1]], dtype="double")
    np.testing.assert_allclose(both.result[0][0], first.result[0][0], atol=1e-12)
    for got, want in zip(both.result[1], second.result[0], strict=True):
        np.testing.assert_allclose(got, want, atol=1e-12)
    assert first.output_idx == [[1], None]
    assert second.output_idx == [None, [0, 1]]


@pytest.mark.parametrize(
    "data",
    [
        [X, B], (X, B), {"a": X, "b": B}, {"b": B, "a": X}, [X.tolist(), B.tolist()],
        [pd.DataFrame(X), pd.DataFrame(B)], [X.astype(np.float32), B],
    ],
    ids=["list", "tuple", "dict", "dict in another order", "lists", "frames", "mixed types"],
)  # fmt: skip
def test_several_inputs_are_taken_in_every_form(data):
    expected = ox.LRP(TWO, [X, B], output_idx=[None, [0]]).result
    got = ox.LRP(TWO, data, output_idx=[None, [0]]).result
    for a, b in zip(got[0], expected[0], strict=True):
        np.testing.assert_array_equal(a, b)


# -- selection -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "selection, expected",
    [
        ({}, [0, 1, 2, 3]),
        ({"output_idx": 2}, [2]),
        ({"output_idx": np.int64(2)}, [2]),
        ({"output_idx": [3, 1]}, [3, 1]),
        ({"output_idx": (3, 1)}, [3, 1]),
        ({"output_idx": range(1, 3)}, [1, 2]),
        ({"output_idx": np.array([3, 0])}, [3, 0]),
        ({"output_idx": pd.Index([3, 0])}, [3, 0]),
        ({"output_idx": [[3, 0]]}, [3, 0]),
        ({"output_label": "dog"}, [1]),
        ({"output_label": ["hen", "cat"]}, [3, 0]),
        ({"output_label": [["hen"]]}, [3]),
        ({"output_label": pd.Series(["dog"])}, [1]),
        ({"output_idx": [3, 1], "output_label": ["dog", "hen"]}, [3, 1]),
    ],
)
def test_nodes_are_selected_by_index_or_label(selection, expected):
    every = ox.LRP(TABLE, X, dtype="double").get_result()
    found = ox.LRP(TABLE, X, dtype="double", **selection)
    assert found.output_idx == [expected]
    np.testing.assert_allclose(found.get_result(), every[..., expected], atol=1e-12)
    labels = [LABELS["output_names"][i] for i in expected]
    assert found.get_result("xarray").output_node.values.tolist() == labels


@pytest.mark.parametrize(
    "selection, expected",
    [
        ({}, list(range(10))),
        ({"output_idx": (2, 1, 0)}, [15]),
        ({"output_idx": [(2, 1, 0), (0, 0, 1)]}, [15, 1]),
        ({"output_idx": [[(2, 1, 0), 4]]}, [15, 4]),
        ({"output_idx": 17}, [17]),
        ({"output_label": "C3:H2:W1"}, [15]),
    ],
)
def test_outputs_with_axes_are_selected_by_place(selection, expected):
    found = ox.Gradient(IMAGE, PIXELS, **selection)
    assert found.output_idx == [expected]
    assert found.get_result().shape == (3, 2, 4, 5, len(expected))
    assert found.preds[0].shape == (3, 3, 2, 3)
    assert found.decomp_goal[0].shape == (3, len(expected))


def test_only_the_first_ten_nodes_are_explained_by_default():
    wide = ox.convert(
        model("g (float[N,3] x) => (float[N,12] y) {y = MatMul(x, w)}", w=normal(3, 12))
    )
    assert ox.Gradient(wide, X).output_idx == [list(range(10))]


# -- data ------------------------------------------------------------------------------------------


@each_method
def test_channels_last_gives_the_transposed_result(method):
    first = run(method, IMAGE, PIXELS, output_idx=[0, 7], dtype="double")
    moved = np.moveaxis(PIXELS, 1, -1)
    last = run(method, IMAGE, moved, output_idx=[0, 7], channels_first=False, dtype="double")
    want = np.moveaxis(first.get_result(), 1, -2)
    assert want.shape == (3, 4, 5, 2, 2)
    np.testing.assert_array_equal(last.get_result(), want)
    np.testing.assert_array_equal(last.result[0][0], want)
    table, other = first.get_result("data.frame"), last.get_result("data.frame")
    pd.testing.assert_frame_equal(table, other)


@pytest.mark.parametrize(
    "data",
    [
        X.astype(np.float32), X.astype(np.float32).tolist(),
        pd.DataFrame(X.astype(np.float32), columns=["a", "b", "c"]),
        pd.DataFrame(X.astype(np.float32)).astype(object), xr.DataArray(X.astype(np.float32)),
        np.asfortranarray(X.astype(np.float32)), [X.astype(np.float32)],
        {"x": X.astype(np.float32)},
        np.repeat(X.astype(np.float32), 2, axis=0)[::2],
    ],
    ids=["array", "lists", "frame", "objects", "xarray", "Fortran", "in a list", "dict", "strided"],
)  # fmt: skip
def test_data_of_every_kind_give_the_same_result(data):
    want = ox.DeepLift(TABLE, X.astype(np.float32)).get_result()
    np.testing.assert_array_equal(ox.DeepLift(TABLE, data).get_result(), want)


@pytest.mark.parametrize("kind", [np.float16, np.int32, bool])
def test_numbers_of_other_types_are_converted(kind):
    x = (X > 0).astype(kind)
    want = ox.Gradient(TABLE, x.astype(np.float64), times_input=True).get_result()
    got = ox.Gradient(TABLE, x, times_input=True).get_result()
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "dtype, expected",
    [("float", "float32"), ("double", "float64"), (np.float16, "float16"), (np.float64, "float64")],
)
def test_results_have_the_type_asked_for(dtype, expected):
    found = ox.LRP(TABLE, X, dtype=dtype)
    arrays = [found.get_result(), found.preds[0], found.decomp_goal[0], found.decomp_sum[0]]
    assert {a.dtype.name for a in arrays} == {expected}


@pytest.mark.parametrize("method", [ox.LRP, ox.Gradient, ox.DeepLift, ox.IntegratedGradient])
def test_whole_number_inputs_get_no_attribution(method):
    x = RNG.standard_normal((2, 4))
    found = run(method, TOKENS, [IDS, x], output_idx=[0, 3])
    assert found.result[0][0] is None
    assert np.isnan(found.get_result()["Input_1"]).all()
    assert found.get_result()["Input_2"].shape == (2, 4, 2)
    np.testing.assert_allclose(found.preds[0], TOKENS([IDS, x])[0], rtol=1e-6)
    # Whole numbers in floats are taken as well: a table of numbers often is all floats.
    other = run(method, TOKENS, [IDS.astype(float), x], output_idx=[0, 3])
    np.testing.assert_array_equal(other.result[0][1], found.result[0][1])


@each_method
def test_a_reference_may_lack_its_batch_axis(method):
    own = inspect.signature(method).parameters
    if "x_ref" not in own:
        pytest.skip("takes no single reference")
    a, b = (run(method, x_ref=ref).get_result() for ref in (X[:1], X[0]))
    np.testing.assert_array_equal(a, b)


# -- what is found ---------------------------------------------------------------------------------


@each_method
def test_fields_have_their_shapes(method):
    found = run(method, output_idx=[2, 0])
    assert [[a.shape for a in row] for row in found.result] == [[(6, 3, 2)]]
    assert [a.shape for a in found.decomp_sum] == [(6, 2)]
    np.testing.assert_allclose(found.decomp_sum[0], found.result[0][0].sum(axis=1), rtol=1e-5)
    if method is ox.ConnectionWeights:
        assert found.preds is None
        assert found.decomp_goal is None
    else:
        assert [a.shape for a in found.preds] == [(6, 4)]
        assert [a.shape for a in found.decomp_goal] == [(6, 2)]


def test_sums_are_computed_once(monkeypatch):
    found, calls = ox.Gradient(TABLE, X), []
    summed = results.decomp_sum
    monkeypatch.setattr(results, "decomp_sum", lambda m: calls.append(1) or summed(m))
    for _ in range(3):
        np.testing.assert_array_equal(found.decomp_sum[0], found.result[0][0].sum(axis=1))
    assert len(calls) == 1
    with pytest.raises(ValueError, match="read-only"):
        found.decomp_sum[0][0] = 0


def test_sums_are_those_of_the_arrays_there_are():
    found = ox.Gradient(TABLE, X)
    before = found.decomp_sum[0]
    means = found.grouped({"size": ["height", "weight"]}, reduce="mean")
    np.testing.assert_array_equal(means.decomp_sum[0], means.result[0][0].sum(axis=1))
    np.testing.assert_array_equal(found.decomp_sum[0], before)
    found.result[0][0] = 2 * found.result[0][0]
    np.testing.assert_array_equal(found.decomp_sum[0], 2 * before)
    assert "_sums" not in vars(pickle.loads(pickle.dumps(found)))


def test_decomp_sum_reaches_the_goal_where_it_must():
    found = ox.DeepLift(TABLE, X, x_ref=X[:1], dtype="double")
    np.testing.assert_allclose(found.decomp_sum[0], found.decomp_goal[0], atol=1e-12)
    score = ox.DeepLift(TABLE, X, ignore_last_act=False, x_ref=X[:1], dtype="double")
    probabilities = score.preds[0] - score.preds[0][:1]
    np.testing.assert_allclose(score.decomp_goal[0], probabilities, atol=1e-12)


FRAME_COLUMNS = [
    "data", "model_input", "model_output", "feature", "output_node", "value", "pred",
    "decomp_sum", "decomp_goal", "input_dimension",
]  # fmt: skip


@each_method
def test_results_come_in_every_form(method):
    found = run(method, output_idx=[2, 0])
    array = found.get_result()
    assert isinstance(array, np.ndarray)
    frame, labelled = found.get_result("data.frame"), found.get_result("xarray")
    assert frame.columns.tolist() == FRAME_COLUMNS
    assert len(frame) == array.size
    assert frame.feature.unique().tolist() == LABELS["input_names"]
    assert labelled.dims == ("batch", "feature", "output_node")
    np.testing.assert_array_equal(labelled.values, array)
    np.testing.assert_array_equal(np.sort(frame.value), np.sort(array.ravel()))


def test_results_come_as_torch_tensors():
    torch = pytest.importorskip("torch")
    found = ox.LRP(TABLE, X)
    for kind in ("torch.tensor", "torch_tensor"):
        tensor = found.get_result(kind)
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(tensor.numpy(), found.get_result())


@pytest.mark.parametrize("method", [ox.SmoothGrad, ox.ExpectedGradient, ox.DeepSHAP])
def test_a_seed_makes_draws_reproducible(method):
    own = {"limit_ref": 3} if method is ox.DeepSHAP else {}
    if method is not ox.SmoothGrad:
        own["data_ref"] = RNG.standard_normal((20, 3))
    first, again, other = (run(method, seed=seed, **own).get_result() for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@each_method
def test_batch_size_changes_nothing(method):
    want = run(method, dtype="double").get_result()
    for size in (1, 4, 10**9):
        got = run(method, dtype="double", batch_size=size).get_result()
        np.testing.assert_allclose(got, want, atol=1e-12)


@each_method
def test_verbose_shows_a_progress_bar_on_stderr(method, capsys):
    run(method, verbose=False)
    assert capsys.readouterr().err == ""
    run(method, verbose=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    if method is not ox.ConnectionWeights:  # one walk without data: nothing to wait for
        assert method.__name__ in shown.err
        assert "100%" in shown.err


@each_method
def test_repr_says_what_was_asked_and_found(method):
    text = repr(run(method, output_idx=[2, 0]))
    assert f"Method {method.__name__} (onnxplain)" in text
    for name in OWN[method.__name__]:
        assert f"{name}:" in text
    assert re.search(r"output_idx: 2, 0 \(-> 'cow', 'cat'\)", text)
    assert "Shape: (6, 3, 2)" in text
    assert max(map(len, text.splitlines())) <= 120


def test_repr_of_a_converter_shows_shapes_labels_and_layers():
    text = repr(TABLE)
    for part in (
        "(*, 3)",
        "(*, 4)",
        "age, height, weight",
        "cat, dog, cow, hen",
        "1. Gemm",
        "opset 17",
    ):
        assert part in text
    two = repr(TWO)
    assert "(*, 3), (*, 2)" in two
    assert "Input layer 2" in two


# -- coverage and ledgers --------------------------------------------------------------------------


def test_coverage_has_a_row_per_node_and_columns_per_pass():
    table = TABLE.coverage("lrp")
    assert table.columns.tolist() == ["node", "op", "family", "rule", "exact", "remark", "joined"]
    assert table.op.tolist() == ["Gemm", "Relu", "Gemm", "Softmax"]
    every = TABLE.coverage()
    walks = ("gradient", "lrp", "deeplift", "connection")
    columns = [f"{what} ({walk})" for walk in walks for what in ("rule", "exact", "remark")]
    assert every.columns.tolist() == ["node", "op", "family", *columns, "joined"]


@pytest.mark.parametrize("name", [*OWN, *FUNCTIONS, "lrp", "deep_lift", "cw"])
def test_coverage_knows_methods_by_all_their_names(name):
    assert TABLE.coverage(name).rule.tolist()[0]


def test_the_ledger_of_lrp_closes():
    table = ox.LRP(TABLE, X, dtype="double", rule_name="epsilon").ledger()
    assert table.columns.tolist()[:5] == ["node", "op", "rule", "incoming", "outgoing"]
    assert table.columns.tolist()[-1] == "gap"
    assert table.op.tolist() == ["Gemm", "Relu", "Gemm"]  # from the output down, softmax left away
    assert table.gap.max() < 1e-9
    absorbed = table.drop(columns=["node", "op", "rule", "incoming", "outgoing", "gap"]).sum(axis=1)
    np.testing.assert_allclose(table.incoming - table.outgoing, absorbed, atol=1e-9)


def test_the_ledger_of_deeplift_closes():
    found = ox.DeepLift(TABLE, X, x_ref=X[:1], dtype="double")
    table = found.ledger()
    assert table.gap.max() < 1e-9
    np.testing.assert_allclose(table.incoming.iloc[0], found.decomp_goal[0].sum(), atol=1e-9)


# -- predictions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "proto, data",
    [(TABLE_PROTO, {"x": X}), (TWO_PROTO, {"a": X, "b": B})],
    ids=["one input", "two inputs and outputs"],
)
def test_predictions_equal_onnxruntime(proto, data):
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    want = session.run(None, {k: v.astype(np.float32) for k, v in data.items()})
    for a, b in zip(ox.convert(proto)(data), want, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_predictions_come_in_the_type_of_the_converter():
    assert TABLE(X)[0].dtype == np.float32
    double = ox.convert(TABLE_PROTO, dtype="double")
    assert double(X)[0].dtype == np.float64
    np.testing.assert_allclose(double(X)[0], TABLE(X, batch_size=2)[0], rtol=1e-5)


# -- pickles ---------------------------------------------------------------------------------------


def test_a_converter_survives_a_pickle():
    copy = pickle.loads(pickle.dumps(TABLE))
    np.testing.assert_array_equal(copy(X)[0], TABLE(X)[0])
    assert repr(copy) == repr(TABLE)
    np.testing.assert_array_equal(ox.LRP(copy, X).get_result(), ox.LRP(TABLE, X).get_result())


@each_method
def test_a_result_survives_a_pickle(method):
    found = run(method, output_idx=[2, 0])
    copy = pickle.loads(pickle.dumps(found))
    assert repr(copy) == repr(found)
    pd.testing.assert_frame_equal(copy.get_result("data.frame"), found.get_result("data.frame"))


def test_the_ledger_of_a_pickle_can_still_be_asked_for():
    found = ox.LRP(TABLE, X, rule_name="epsilon", batch_size=2)
    copy = pickle.loads(pickle.dumps(found))
    pd.testing.assert_frame_equal(copy.ledger(), found.ledger())


# -- saved models ----------------------------------------------------------------------------------


def same(a, b, data):
    """Compare two converters in everything a user sees."""
    for got, want in zip(a(data), b(data), strict=True):
        np.testing.assert_array_equal(got, want)
    assert (a.input_dim, a.output_dim) == (b.input_dim, b.output_dim)
    assert (a.input_names, a.output_names) == (b.input_names, b.output_names)
    assert a.skipped_outputs == b.skipped_outputs


@pytest.mark.parametrize("as_text", [True, False])
def test_a_saved_model_predicts_and_is_labelled_the_same(tmp_path, as_text):
    path = tmp_path / "model.onnx"
    TABLE.save(str(path) if as_text else path)
    onnx.checker.check_model(path, full_check=True)
    same(ox.convert(path), TABLE, X)
    metadata = {p.key: json.loads(p.value) for p in onnx.load(path).metadata_props}
    assert metadata == {
        "feature_names": [[LABELS["input_names"]]],
        "class_names": [[LABELS["output_names"]]],
    }
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_default_labels_are_not_written(tmp_path):
    path = tmp_path / "model.onnx"
    ox.convert(TABLE_PROTO).save(path)
    assert not onnx.load(path).metadata_props
    TABLE.save(path)
    back = ox.convert(path, input_names=["X1", "X2", "X3"], output_names=["Y1", "Y2", "Y3", "Y4"])
    back.save(path)
    assert not onnx.load(path).metadata_props


def test_several_inputs_and_outputs_are_saved(tmp_path):
    path = tmp_path / "model.onnx"
    names = [["a", "b", "c"], ["d", "e"]]
    converter = ox.convert(TWO_PROTO, input_names=names)
    converter.save(path)
    same(ox.convert(path), converter, [X, B])


def test_chosen_outputs_and_shapes_are_saved(tmp_path):
    path = tmp_path / "model.onnx"
    proto = onnx.ModelProto()
    proto.CopyFrom(TABLE_PROTO)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "features"
    names = [list("abcd"), list("efghi")]
    converter = ox.convert(proto, input_dim=(3,), outputs=["s", "h"], output_names=names)
    converter.save(path)
    same(ox.convert(path), converter, X)


def test_outputs_that_cannot_be_explained_are_saved_too(tmp_path):
    path = tmp_path / "model.onnx"
    proto = model(
        "g (float[N,3] x) => (float[N,3] y, int64[N,1] label)"
        "{y = Relu(x)  label = ArgMax<axis = 1>(y)}"
    )
    converter = ox.convert(proto)
    converter.save(path)
    same(ox.convert(path), converter, X)
    assert [o.name for o in onnx.load(path).graph.output] == ["y", "label"]


def test_attributes_of_every_kind_are_saved(tmp_path):
    path = tmp_path / "model.onnx"
    proto = model(
        "g (float[N,1,4,4] x) => (float[N,1,9,9] y)"
        '{p = AveragePool<kernel_shape = [2, 2], auto_pad = "SAME_UPPER">(x)'
        "  c = Constant<value = float[1] {2.0}>()  q = Mul(p, c)  l = LeakyRelu<alpha = 0.25>(q)"
        '  y = Resize<mode = "linear">(l, , s)}',
        s=np.float32([1, 1, 2.25, 2.25]),
    )
    converter = ox.convert(proto)
    converter.save(path)
    same(ox.convert(path), converter, RNG.standard_normal((2, 1, 4, 4)))
    written = {n.op_type: n for n in onnx.load(path).graph.node}
    assert helper.get_attribute_value(written["LeakyRelu"].attribute[0]) == 0.25


def test_every_shared_model_survives_saving(tmp_path, shared):
    path, saved = tmp_path / "model.onnx", 0
    for file in sorted(shared.glob("models/*/model.onnx")):
        try:
            converter = ox.convert(file)
        except ox.OnnxplainError:
            continue
        converter.save(path)
        back = ox.convert(path)
        assert [n.op for n in back.raw.nodes] == [n.op for n in converter.raw.nodes]
        for name, w in converter.raw.initializers.items():
            np.testing.assert_array_equal(back.raw.initializers[name], w)
        assert (back.input_names, back.output_names) == (
            converter.input_names, converter.output_names
        )  # fmt: skip
        saved += 1
    assert saved >= 10


@pytest.fixture
def large(monkeypatch):
    """Treat models of a few kilobytes as too large for one file."""
    monkeypatch.setattr(saving, "MAX_MODEL_BYTES", 1000)
    half = normal(300, 4).astype(np.float16)
    return ox.convert(
        model(
            "g (float[N,300] x) => (float[N,4] y)"
            "{h = Cast<to = 1>(v)  a = MatMul(x, w)  b = MatMul(x, h)"
            "  c = Add(a, b)  y = Add(c, d)}",
            w=normal(300, 4), v=half, d=normal(4),
        ),
        output_names=list("abcd"),
    )  # fmt: skip


WIDE = RNG.standard_normal((5, 300))


def test_weights_of_large_models_get_their_own_file(tmp_path, large):
    path = tmp_path / "model.onnx"
    large.save(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert path.stat().st_size < 2000
    onnx.checker.check_model(path)
    stored = onnx.load(path, load_external_data=False).graph.initializer
    kinds = {t.name: t.data_location == TensorProto.EXTERNAL for t in stored}
    assert kinds == {"w": True, "v": True, "d": False}
    same(ox.convert(path), large, WIDE)


def test_mapped_weights_are_never_written_over(tmp_path, large):
    path = tmp_path / "model.onnx"
    large.save(path)
    data = (tmp_path / "model.onnx.data").read_bytes()
    mapped = ox.convert(path)
    with pytest.raises(ArgumentError, match="exists and may hold the weights.*another name"):
        mapped.save(path)
    assert (tmp_path / "model.onnx.data").read_bytes() == data
    other = tmp_path / "other.onnx"
    mapped.save(other)
    same(ox.convert(other), large, WIDE)
    same(mapped, large, WIDE)


def test_a_small_model_with_mapped_weights_can_replace_its_own_file(tmp_path, large, monkeypatch):
    path = tmp_path / "model.onnx"
    large.save(path)
    mapped = ox.convert(path, output_names=list("efgh"))
    monkeypatch.undo()
    mapped.save(path)
    same(ox.convert(path), mapped, WIDE)
    assert mapped(WIDE)[0].shape == (5, 4)


def test_a_converter_with_mapped_weights_survives_a_pickle(tmp_path, large):
    path = tmp_path / "model.onnx"
    large.save(path)
    same(pickle.loads(pickle.dumps(ox.convert(path))), large, WIDE)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    TABLE.save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving.os, "replace", fail)
    with pytest.raises(ModelFileError, match="cannot be written: No space left on device"):
        TABLE.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    "target, error, text",
    [
        (".", ModelFileError, "is a folder"),
        ("nowhere/model.onnx", ModelFileError, "cannot be written: No such file"),
        (None, ArgumentError, "got None"),
        ("", ArgumentError, "path of a file"),
    ],
)
def test_bad_targets_are_refused(tmp_path, monkeypatch, target, error, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=text):
        TABLE.save(target)
    assert not list(tmp_path.iterdir())


def test_a_data_frame_with_the_features_in_another_order_is_refused():
    names = LABELS["input_names"]
    frame = pd.DataFrame(X, columns=names)
    assert ox.Gradient(TABLE, frame).result[0][0].shape[:2] == X.shape
    with pytest.raises(DataError, match="another order"):
        ox.Gradient(TABLE, frame[names[::-1]])
