"""Results as files: what was saved comes back, with and without the model; damage is told."""

import json
import pickle
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import helper

import onnxplain as ox
from networks import graph, layered
from onnxplain.cli import main
from onnxplain.demo import MODEL, digits
from onnxplain.errors import ArgumentError, DataError
from onnxplain.presets import EpsilonPlus
from onnxplain.rules import AlphaBeta, Epsilon, LrpRule, ZBox
from onnxplain.storage import METADATA, StoredResult

X = digits()[0][:3]
DIGITS = ox.convert(MODEL)
RNG = np.random.default_rng(1)


def two_in_two_out():
    """Output "second" has no path from input "a"."""
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["ab"], axis=1),
        helper.make_node("Gemm", ["ab", "w"], ["first"]),
        helper.make_node("Relu", ["b"], ["second"]),
    ]
    weights = {"w": RNG.normal(size=(5, 3))}
    outputs = {"first": [3], "second": [2]}
    return ox.convert(graph(nodes, {"a": [3], "b": [2]}, weights, outputs=outputs))


def signals():
    weights = {"weight": RNG.normal(size=(2, 3, 2)), "bias": RNG.normal(size=2)}
    layers = [
        {"type": "Conv1D", "stride": 1, "padding": [0, 0], "dilation": 1, **weights},
        {"type": "Flatten"},
    ]
    return ox.convert(layered(layers, (3, 5)))


PAIR = two_in_two_out()
SIGNALS = signals()
A, B = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 2))
LAST = np.moveaxis(X, 1, -1)
RULES = {"default": EpsilonPlus(0.1), "Gemm": AlphaBeta(np.float64(2.0)), "edges": ZBox([0], [1])}

CASES = {
    "rules": lambda: ox.LRP(DIGITS, X, rule_name=RULES),
    "rule by name": lambda: ox.LRP(DIGITS, X, rule_name="epsilon", rule_param=0.1, like="zennit"),
    "DeepLift": lambda: ox.DeepLift(DIGITS, X, x_ref=X[:1], dtype="double"),
    "DeepSHAP": lambda: ox.DeepSHAP(DIGITS, X, data_ref=X, limit_ref=2, seed=3),
    "IntegratedGradient": lambda: ox.IntegratedGradient(DIGITS, X, n=3, dtype=np.float64),
    "SmoothGrad": lambda: ox.SmoothGrad(DIGITS, LAST, channels_first=False, n=2, seed=1),
    "ConnectionWeights": lambda: ox.ConnectionWeights(DIGITS),
    "GradCAM": lambda: ox.GradCAM(DIGITS, X, guided=True),
    "LIME": lambda: ox.LIME(DIGITS, X, data_ref=X, n_permutations=100, seed=1),
    "SHAP of a function": lambda: ox.SHAP(lambda x: x.sum(axis=1), A, data_ref=A),
    "top1": lambda: ox.LRP(DIGITS, X, output_idx="top1"),
    "predicted": lambda: ox.LRP(DIGITS, LAST, channels_first=False, output_idx="predicted"),
    "sums": lambda: ox.Gradient(DIGITS, X, output_weights={"even": np.arange(10) % 2 == 0}),
    "layer": lambda: ox.LRP(DIGITS, X, layer=["features"]),
    "pairs": lambda: ox.LRP(PAIR, [A, B], output_idx=[[0, 2], [1]]),
    "second output": lambda: ox.LRP(PAIR, [A, B], output_idx=[None, [1]]),
    "signal": lambda: ox.LRP(SIGNALS, RNG.normal(size=(2, 3, 5)), output_idx=[1, 0]),
    "summed": lambda: ox.LRP(DIGITS, X).summed(1),
    "grouped": lambda: ox.LRP(PAIR, [A, B]).grouped({"Input_1": {"both": [0, 2]}}),
}


def saved(method, tmp_path):
    path = tmp_path / "result.npz"
    method.save(path)
    return path


@pytest.mark.parametrize("case", CASES)
def test_what_was_saved_comes_back_without_the_model(case, tmp_path):
    method = CASES[case]()
    found = ox.load(saved(method, tmp_path))
    assert type(found) is type(method)
    assert repr(found) == repr(method)
    assert found.get_result("data.frame").equals(method.get_result("data.frame"))
    assert found.get_result("xarray").identical(method.get_result("xarray"))
    for mine, theirs in zip(found.decomp_sum, method.decomp_sum, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert found.plot().axes.shape == method.plot().axes.shape
    for mine, theirs in zip(found.output_nodes, method.output_nodes, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("case", ["rules", "rule by name", "DeepLift", "top1", "layer", "summed"])
def test_a_result_with_its_model_works_as_before(case, tmp_path):
    method = CASES[case]()
    found = ox.load(saved(method, tmp_path), converter=DIGITS)
    assert found.ledger().equals(method.ledger())


def test_a_result_without_its_model_says_what_needs_it(tmp_path):
    found = ox.load(saved(CASES["rules"](), tmp_path))
    with pytest.raises(ArgumentError, match=r"without its model.*converter="):
        found.ledger()


def test_a_loaded_result_can_be_drawn_over_its_data_saved_again_and_pickled(tmp_path):
    method = ox.GradCAM(DIGITS, X)
    found = ox.load(saved(method, tmp_path))
    assert found.plot(overlay=True).axes.shape == (1, 1)
    again = ox.load(saved(found, tmp_path))
    assert again.provenance == found.provenance
    assert again.get_result("data.frame").equals(method.get_result("data.frame"))
    assert repr(pickle.loads(pickle.dumps(again))) == repr(method)
    assert ox.load(saved(again, tmp_path), converter=DIGITS).converter is DIGITS


def test_names_of_a_loaded_result_can_be_set_and_values_changed(tmp_path):
    found = ox.load(saved(ox.LRP(PAIR, [A, B], output_idx=[[0]]), tmp_path))
    found.input_names = [["age", "fare", "class"], ["x", "y"]]
    found.result[0][0][:] = 7
    frame = found.get_result("data.frame")
    assert frame["feature"].cat.categories.tolist() == ["age", "fare", "class", "x", "y"]
    assert (frame["value"][:12] == 7).all()


def test_a_file_tells_how_to_get_the_same_result_again(tmp_path):
    method = ox.SmoothGrad(DIGITS, X, n=4, seed=5)
    told = ox.load(saved(method, tmp_path)).provenance
    assert told["method"] == "SmoothGrad"
    assert told["model_hash"] == DIGITS.model_hash
    assert told["seed"] == 5
    assert told["arguments"]["n"] == "4"
    assert set(told["versions"]) == {"onnxplain", "numpy", "onnx", "python"}
    assert told["created"].endswith("+00:00")
    again = ox.SmoothGrad(
        DIGITS, ox.load(tmp_path / "result.npz").data, n=int(told["arguments"]["n"]), seed=5
    )
    np.testing.assert_array_equal(again.get_result(), method.get_result())


def test_rules_in_a_file_are_values_again(tmp_path):
    found = ox.load(saved(CASES["rules"](), tmp_path))
    assert found.rule_name == {
        "default": EpsilonPlus(0.1), "Gemm": AlphaBeta(2.0), "edges": ZBox((0,), (1,)),
    }  # fmt: skip


@dataclass(frozen=True, repr=False)
class Mine(Epsilon):
    """A rule that the package does not know."""


def test_a_rule_of_the_users_own_is_kept_as_text(tmp_path):
    method = ox.LRP(DIGITS, X, rule_name=Mine(0.5))
    assert isinstance(Mine(0.5), LrpRule)
    path = saved(method, tmp_path)
    assert repr(ox.load(path)) == repr(method)
    with pytest.raises(ArgumentError, match=r"only the text of Mine\(epsilon=0.5\)"):
        ox.load(path, converter=DIGITS).ledger()


def test_a_method_of_the_users_own_comes_back_as_a_result(tmp_path):
    class Half(ox.LRP):
        method_name = "Half"

    method = Half(DIGITS, X)
    found = ox.load(saved(method, tmp_path))
    assert type(found) is StoredResult
    assert repr(found) == repr(method)


def test_numpy_reads_the_arrays_without_this_package(tmp_path):
    with np.load(saved(CASES["pairs"](), tmp_path)) as file:
        assert file["Output_1/Input_2/result"].shape == (4, 2, 2)
        assert np.isnan(file["Output_2/Input_1/result"]).all()
        assert file["Output_2/output_node"].tolist() == ["Y2"]
        total = sum(file[f"Output_1/Input_{i}/result"].sum(axis=1) for i in (1, 2))
        np.testing.assert_allclose(total, file["Output_1/decomp_sum"], rtol=1e-6)


# ---------------------------------------------------------------- the wrong model


def test_another_model_is_refused(tmp_path):
    path = saved(CASES["rules"](), tmp_path)
    with pytest.raises(DataError, match=r"SHA-256.*give the model that was explained"):
        ox.load(path, converter=PAIR)
    with pytest.raises(DataError, match="other inputs or outputs"):
        ox.load(path, converter=ox.convert(MODEL, outputs=["features"]))
    with pytest.raises(ArgumentError, match="must be a Converter, got str"):
        ox.load(path, converter="model.onnx")
    path = saved(CASES["SHAP of a function"](), tmp_path)
    with pytest.raises(DataError, match="a function"):
        ox.load(path, converter=DIGITS)


# ---------------------------------------------------------------- damaged and foreign files


@pytest.fixture
def archive(tmp_path):
    return saved(ox.LRP(DIGITS, X, output_idx=[1, 2]), tmp_path)


def test_any_truncated_file_is_told(archive):
    whole = archive.read_bytes()
    for length in [0, 1, 100, *range(500, len(whole), len(whole) // 25), len(whole) - 1]:
        archive.write_bytes(whole[:length])
        with pytest.raises(DataError, match="cannot be read|no sound result"):
            ox.load(archive)


def test_flipped_bytes_are_told_or_harmless(archive):
    whole = archive.read_bytes()
    expected = ox.load(archive).get_result()
    rng = np.random.default_rng(0)
    for place in rng.integers(len(whole), size=150):
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.integers(8)
        archive.write_bytes(changed)
        try:
            found = ox.load(archive).get_result()
        except DataError:
            continue
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("content", [b"", b"PK", b"not an archive", b"\x93NUMPY\x01\x00"])
def test_foreign_files_are_told(content, tmp_path):
    path = tmp_path / "result.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"result.npz cannot be read as a result"):
        ox.load(path)


def test_other_archives_are_told(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, result=X)
    with pytest.raises(DataError, match=r"has no metadata.json; results are written by"):
        ox.load(path)
    np.savez_compressed(path, result=X)
    with pytest.raises(DataError, match="compressed"):
        ox.load(path)
    with pytest.raises(DataError, match="No such file"):
        ox.load(tmp_path / "absent.npz")
    with pytest.raises(DataError, match="cannot be read"):
        ox.load(tmp_path)


def rewritten(path, change=None, arrays=None):
    """Write an archive again, its text or single arrays changed."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    record = json.loads(members[METADATA])
    if change:
        change(record)
    members[METADATA] = json.dumps(record).encode()
    members |= arrays or {}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)


def put(*keys, value):
    def change(record):
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (put("format", value="other"), "does not say"),
        (put("version", value=2), "version 2 of the format.*install a newer one"),
        (put("state", "result", value=[]), "an array for each input"),
        (put("state", "result", value=None), "no sound result"),
        (put("state", "result", value=[[{"array": "state/99"}]]), "no sound result"),
        (put("state", "result", value=[[{"array": "output_node"}]]), "no sound result"),
        (put("state", "result", value=[[3]]), "no sound result"),
        (put("state", "input_names", value=[[["a"], ["b"], ["c"]]]), "change result and names"),
        (put("state", "input_names", value=[[[1]]]), "no sound result"),
        (put("state", "output_names", value=[[["a", "b"]]]), "holds no nodes"),
        (put("state", "output_idx", value=[[1, 10]]), "output_idx does not name the nodes"),
        (put("state", "output_names", value=[[list("abcd")]]), "output_names"),
        (put("state", "output_idx", value=[None]), "no sound result"),
        (put("state", "output_idx", value=[["top1", "top2"]]), "does not name"),
        (put("state", "decomp_goal", value=[{"array": "output_node"}]), "decomp_goal is of"),
        (put("state", "preds", value=[{"array": "decomp_sum"}]), "output_names"),
        (put("state", "plot", value=1), "sets 'plot', which is no field"),
        (put("state", "__class__", value=1), "sets '__class__'"),
        (put("state", "_engine", value=1), "sets '_engine'"),
        (put("state", "decomp_sum", value=[]), "sets 'decomp_sum'"),
        (put("state", "rule_name", value={"value": "Popen", "fields": {"dict": []}}), "Popen"),
        (
            put("state", "rule_name", value={"value": "Epsilon", "fields": {"dict": [["x", 1]]}}),
            "no sound result",
        ),
        (put("state", "rule_name", value={"call": "os.system"}), "unknown kind 'call'"),
        (put("state", "dtype", value={"dtype": "object"}), "names the type 'object'"),
        (put("state", "channels_first", value="yes"), "channels_first"),
        (put("state", "like", value="nobody"), "no sound result"),
        (put("arguments", value=[]), "arguments"),
        (put("state", value=[]), "no sound result"),
        (put("model", value={"dict": [[{"dict": []}, 1]]}), "no sound result"),
    ],
)
def test_manipulated_texts_are_told(change, message, archive):
    rewritten(archive, change)
    with pytest.raises(DataError, match=message):
        ox.load(archive)


def header(text):
    """The start of an .npy file with a header of one's own."""
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"),
        header("{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,), }"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }")
        + pickle.dumps([1, 2, 3]),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1), }") + bytes(4),
        header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }") + bytes(4),
        header("__import__('os').system('true')"),
        b"\x93NUMPY\x09\x00",
        b"",
    ],
)
def test_manipulated_arrays_are_told(content, archive):
    rewritten(archive, arrays={"result.npy": content})
    with pytest.raises(DataError, match="no sound result|cannot be read"):
        ox.load(archive)


def test_parts_that_claim_more_than_the_file_holds_are_told(archive):
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.npy", bytes(10**6))
    with pytest.raises(DataError, match="compressed or overlap"):
        ox.load(archive)


def test_values_that_would_be_made_without_end_are_told(tmp_path):
    path = saved(ox.LRP(PAIR, [A, B], output_idx=[[0], [0]]), tmp_path)
    names = [[[str(k) for k in range(2000)]] * 3, [["x", "y"]]]
    rewritten(
        path, lambda record: record["state"].update(input_names=names, result=[[None] * 2] * 2)
    )
    with pytest.raises(DataError, match="more values than can be"):
        ox.load(path)


@pytest.mark.parametrize("name", ["result.csv", "result", "absent/result.npz"])
def test_a_place_that_cannot_be_written_is_told(name, tmp_path):
    with pytest.raises(ArgumentError, match="saved as .npz|cannot be written"):
        ox.Gradient(DIGITS, X).save(tmp_path / name)


# ---------------------------------------------------------------- command line


def run(*arguments):
    outcome = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def test_the_command_line_writes_shows_and_draws_the_same_files(tmp_path):
    np.save(tmp_path / "data.npy", X)
    out, picture = tmp_path / "result.npz", tmp_path / "plot.png"
    run("explain", MODEL, tmp_path / "data.npy", "--method", "deeplift", "--out", out)
    expected = ox.DeepLift(DIGITS, X)
    assert ox.load(out).get_result("data.frame").equals(expected.get_result("data.frame"))
    text = run("show", out)
    assert "Method DeepLift" in text
    assert DIGITS.model_hash in text
    assert "rule_name='rescale'" in text
    run("plot", out, picture, "--data-idx", "0,2", "--output-label", "one,six")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    message = CliRunner().invoke(main, ["show", str(picture)]).stderr
    assert "cannot be read as a result" in message
