"""Explanations streamed to disk: the same values as in memory, resumed, and in flat memory."""

import gc
import json
import os
import subprocess
import sys
import tracemalloc
from itertools import count

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from onnx import helper

import onnxplain as ox
from networks import graph, layered
from onnxplain.cli import main
from onnxplain.demo import MODEL, digits
from onnxplain.errors import ArgumentError, DataError, SelectionError, ShapeError
from onnxplain.methods.engine import Engine
from onnxplain.streaming import PROGRESS

RNG = np.random.default_rng(5)
IMAGES = digits()[0][:23]
DIGITS = ox.convert(MODEL)
TABLE = ox.convert(
    layered(
        [
            {"type": "Dense", "weight": RNG.normal(size=(7, 4)), "bias": RNG.normal(size=7),
             "activation_name": "tanh"},
            {"type": "Dense", "weight": RNG.normal(size=(3, 7)), "bias": RNG.normal(size=3)},
        ],
        (4,),
    )
)  # fmt: skip
X = RNG.normal(size=(30, 4))


def two_in_two_out():
    """Output "second" has no path from input "a"."""
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["ab"], axis=1),
        helper.make_node("Gemm", ["ab", "w"], ["first"]),
        helper.make_node("Relu", ["b"], ["second"]),
    ]
    weights = {"w": RNG.normal(size=(5, 3))}
    return ox.convert(
        graph(nodes, {"a": [3], "b": [2]}, weights, outputs={"first": [3], "second": [2]})
    )


PAIR = two_in_two_out()
A, B = RNG.normal(size=(9, 3)), RNG.normal(size=(9, 2))
BOTH = {"output_idx": [[0, 2], [1]]}


def same(found, expected):
    """Compare all arrays bit for bit."""
    rows = found.compute()
    for field in ("result", "preds", "decomp_goal", "decomp_sum", "standard_error"):
        one, other = (getattr(method, field, None) for method in (rows, expected))
        pairs = zip(flat(one), flat(other), strict=True)
        for mine, theirs in pairs:
            np.testing.assert_array_equal(mine, theirs)
    assert repr(rows) == repr(expected)


def flat(value):
    return [x for part in value for x in flat(part)] if isinstance(value, list) else [value]


def batches(data, size=4):
    return (data[i : i + size] for i in range(0, len(data), size))


CASES = {
    "Gradient": (ox.Gradient, {}),
    "SmoothGrad": (ox.SmoothGrad, {"n": 3, "seed": 1}),
    "IntegratedGradient": (ox.IntegratedGradient, {"n": 5}),
    "ExpectedGradient": (ox.ExpectedGradient, {"n": 5, "seed": 1, "data_ref": IMAGES[:9]}),
    "LRP": (ox.LRP, {"rule_name": "epsilon", "output_idx": [1, 2]}),
    "LRP double": (ox.LRP, {"rule_name": "alpha_beta", "dtype": "double"}),
    "DeepLift": (ox.DeepLift, {"x_ref": IMAGES[:1]}),
    "DeepSHAP": (ox.DeepSHAP, {"data_ref": IMAGES, "limit_ref": 6, "seed": 3}),
    "ConnectionWeights": (ox.ConnectionWeights, {"times_input": True}),
    "GradCAM": (ox.GradCAM, {}),
    "LIME": (ox.LIME, {"data_ref": IMAGES, "n_permutations": 70, "seed": 1}),
    "SHAP": (ox.SHAP, {"data_ref": IMAGES[:4], "n_permutations": 1, "seed": 1}),
    "top1": (ox.LRP, {"output_idx": "top2"}),
    "sums": (ox.Gradient, {"output_weights": {"even": np.arange(10) % 2 == 0}}),
    "layer": (ox.LRP, {"layer": ["features"]}),
}


@pytest.mark.parametrize(
    "case, suffix", [*((case, "") for case in CASES), ("LRP", ".zarr"), ("top1", ".zarr")]
)
def test_streamed_results_are_those_in_memory(case, suffix, tmp_path):
    if suffix:
        pytest.importorskip("zarr")
    method, options = CASES[case]
    options = {"batch_size": 4, **options}
    found = ox.explain_to(tmp_path / f"r{suffix}", method, DIGITS, IMAGES, batch=8, **options)
    same(found, method(DIGITS, IMAGES, **options))


def test_references_run_once_for_all_batches(tmp_path, monkeypatch):
    counts, forward = [], Engine.forward

    def counting(self, arrays, *args, **options):
        counts.append(len(arrays[0]))
        return forward(self, arrays, *args, **options)

    monkeypatch.setattr(Engine, "forward", counting)
    options = {"data_ref": IMAGES[:5], "n": 3, "batch_size": 8}
    ox.explain_to(tmp_path / "r", ox.ExpectedGradient, DIGITS, IMAGES, batch=8, **options)
    assert counts.count(5) == 1
    assert counts.count(8) > 1


def test_what_a_class_of_the_user_does_is_done_for_all_batches(tmp_path):
    class Shares(ox.Gradient):
        def __init__(self, converter, data, **options):
            super().__init__(converter, data, **options)
            self.result[0][0] = self.result[0][0] / 2

    found = ox.explain_to(tmp_path / "r", Shares, TABLE, X, batch=8, batch_size=8)
    halves = ox.Gradient(TABLE, X, batch_size=8).get_result() / 2
    np.testing.assert_array_equal(found.get_result(), halves)


def test_channels_may_be_last(tmp_path):
    last = np.moveaxis(IMAGES, 1, -1)
    options = {"channels_first": False, "batch_size": 4}
    found = ox.explain_to(tmp_path / "r", ox.LRP, DIGITS, last, batch=4, **options)
    expected = ox.LRP(DIGITS, last, **options)
    np.testing.assert_array_equal(found.get_result(), expected.get_result())


def test_several_inputs_and_outputs_are_arrays_of_their_own(tmp_path):
    expected = ox.LRP(PAIR, [A, B], batch_size=2, **BOTH)
    found = ox.explain_to(tmp_path / "r", ox.LRP, PAIR, [A, B], batch=4, batch_size=2, **BOTH)
    same(found, expected)
    written = np.load(tmp_path / "r" / "Output_2" / "Input_2" / "result.npy")
    np.testing.assert_array_equal(written, expected.result[1][1])
    nested = found.get_result()
    assert np.isnan(nested["Output_2"]["Input_1"]).all()
    assert nested["Output_2"]["Input_1"].shape == (9, 3, 1)
    by_name = ox.explain_to(tmp_path / "n", ox.LRP, PAIR, {"a": A, "b": B}, batch_size=2, **BOTH)
    same(by_name, expected)


def test_a_function_is_streamed_too(tmp_path):
    options = {"data_ref": X[:5], "batch_size": 10, "n_permutations": 2, "seed": 1}
    found = ox.explain_to(tmp_path / "r", ox.SHAP, np.tanh, X, batch=10, exact=False, **options)
    same(found, ox.SHAP(np.tanh, X, exact=False, **options))


def mapped(tmp_path):
    np.save(tmp_path / "x.npy", X)
    return np.load(tmp_path / "x.npy", mmap_mode="r")


def in_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    return h5py.File(tmp_path / "x.h5", "w").create_dataset("x", data=X)


DATA = {
    "memmap": mapped,
    "generator": lambda _: batches(X),
    "generator of lists": lambda _: batches(X.tolist()),
    "loader": lambda _: type("Loader", (), {"__iter__": lambda _: batches(X, 12)})(),
    "list": lambda _: X.tolist(),
    "frame": lambda _: pd.DataFrame(X, columns=["X1", "X2", "X3", "X4"]),
    "h5py": in_hdf5,
    "zarr": lambda path: pytest.importorskip("zarr").array(X),
}  # fmt: skip


@pytest.mark.parametrize("kind", DATA)
def test_data_of_every_kind_can_be_streamed(kind, tmp_path):
    data = DATA[kind](tmp_path)
    found = ox.explain_to(tmp_path / "r", ox.LRP, TABLE, data, batch=6, batch_size=2)
    np.testing.assert_array_equal(found.get_result(), ox.LRP(TABLE, X, batch_size=2).get_result())


@pytest.mark.parametrize("kind", ["memmap", "generator", "loader"])
def test_methods_in_memory_take_them_as_well(kind, tmp_path):
    expected = ox.DeepSHAP(TABLE, X, data_ref=X).get_result()
    found = ox.DeepSHAP(TABLE, DATA[kind](tmp_path), data_ref=DATA[kind](tmp_path))
    np.testing.assert_array_equal(found.get_result(), expected)


def test_data_mapped_for_reading_are_not_copied(tmp_path):
    data = mapped(tmp_path)
    assert np.shares_memory(ox.Gradient(TABLE, data, dtype="double").data[0], data)
    assert not np.shares_memory(ox.Gradient(TABLE, X, dtype="double").data[0], X)


def test_only_references_that_are_drawn_are_read(tmp_path):
    class Mapped(np.ndarray):
        def __array__(self, *args, **kwargs):
            raise AssertionError("all of it was read")

        def __getitem__(self, rows):
            return np.array(self.view(np.ndarray)[rows])

    options = {"limit_ref": 4, "seed": 2}
    expected = ox.DeepSHAP(TABLE, X, data_ref=X, **options)
    found = ox.DeepSHAP(TABLE, X, data_ref=X.view(Mapped), **options)
    np.testing.assert_array_equal(found.get_result(), expected.get_result())


def test_batches_of_several_inputs_are_joined():
    parts = ({"a": A[i : i + 2], "b": B[i : i + 2]} for i in range(0, 9, 2))
    found = ox.LRP(PAIR, parts, **BOTH)
    pairs = ([A[:4], B[:4]], [A[4:], B[4:]])
    for expected in (ox.LRP(PAIR, [A, B], **BOTH), ox.LRP(PAIR, iter(pairs), **BOTH)):
        np.testing.assert_array_equal(found.result[0][0], expected.result[0][0])


# -- the result -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "r"
    ox.explain_to(path, ox.LRP, DIGITS, IMAGES, rule_name="epsilon", batch_size=4, batch=4)
    return ox.open_result(path, DIGITS)


WHOLE = ox.LRP(DIGITS, IMAGES, rule_name="epsilon", batch_size=4)
SOME = [(3, [3]), (slice(2, 7), slice(2, 7)), (slice(None, None, -3), slice(None, None, -3)),
        ([4, -1], [4, -1]), (np.arange(23) < 2, [0, 1])]  # fmt: skip


def test_arrays_are_opened_where_they_are(opened):
    assert isinstance(opened.get_result(), np.memmap)
    assert isinstance(opened.decomp_sum[0], np.memmap)
    assert (len(opened), opened.complete) == (23, True)
    assert opened.output_names == WHOLE.output_names
    assert "LRP of 23 rows" in repr(opened)


@pytest.mark.parametrize("rows, index", SOME)
def test_some_rows_are_an_explanation_in_memory(opened, rows, index):
    found = opened[rows]
    assert isinstance(found, ox.LRP)
    np.testing.assert_array_equal(found.get_result(), WHOLE.get_result()[index])
    np.testing.assert_array_equal(found.preds[0], WHOLE.preds[0][index])
    assert not isinstance(found.result[0][0], np.memmap)


def test_rows_of_a_zarr_store_are_chosen_alike(tmp_path):
    pytest.importorskip("zarr")
    found = ox.explain_to(tmp_path / "r.zarr", ox.LRP, DIGITS, IMAGES, rule_name="epsilon",
                          batch_size=4, batch=4)  # fmt: skip
    for rows, index in SOME:
        np.testing.assert_array_equal(found[rows].get_result(), WHOLE.get_result()[index])


def test_tables_are_made_of_some_rows_only(opened):
    frame = opened.get_result("data.frame", rows=slice(0, 3))
    expected = ox.LRP(DIGITS, IMAGES[:3], rule_name="epsilon", batch_size=4)
    pd.testing.assert_frame_equal(frame, expected.get_result("data.frame"), rtol=1e-4, atol=1e-6)
    with pytest.raises(ArgumentError, match=r"all 23 rows into memory.*rows=slice"):
        opened.get_result("data.frame")


def test_rows_can_be_drawn_saved_and_written_down(opened, tmp_path):
    opened[:2].plot()
    opened[:2].save(tmp_path / "two.npz")
    np.testing.assert_array_equal(
        ox.load(tmp_path / "two.npz").result[0][0], opened.result[0][0][:2]
    )


def test_rows_of_known_data_have_their_data(tmp_path):
    found = ox.explain_to(tmp_path / "r", ox.LRP, TABLE, X)
    assert found[2:5].ledger().gap.max() < 1e-4
    np.testing.assert_array_equal(found[[7, 2]].data[0], X[[7, 2]].astype(np.float32))


def test_opened_with_model_and_data_all_can_be_asked_for(opened, tmp_path):
    path = opened.result[0][0].filename.parent
    found = ox.open_result(path, DIGITS, IMAGES)[2:4]
    assert found.ledger().gap.max() < 1e-4
    np.testing.assert_array_equal(found.data[0], IMAGES[2:4])
    for rest, words in (((None, IMAGES), "give converter"), ((DIGITS, IMAGES[:9]), "has 9 rows")):
        with pytest.raises((ArgumentError, DataError), match=words):
            ox.open_result(path, *rest)
    with pytest.raises(ArgumentError, match="came without their data"):
        ox.open_result(path, DIGITS)[:2].ledger()


@pytest.mark.parametrize("rows", [23, [-24], [0.5], "a", [[1]], slice(5, 5), [True]])
def test_rows_that_are_not_there_are_told(opened, rows):
    with pytest.raises(SelectionError, match="23|22"):
        opened[rows]


# -- interruptions --------------------------------------------------------------------------------


class Stop(Exception):
    """Somebody pulled the plug."""


def interrupted(data, size, after):
    for k, block in enumerate(batches(data, size)):
        if k == after:
            raise Stop
        yield block


@pytest.mark.parametrize("suffix", ["", ".zarr"])
def test_an_interrupted_explanation_goes_on_where_it_stopped(suffix, tmp_path):
    if suffix:
        pytest.importorskip("zarr")
    path = tmp_path / f"r{suffix}"
    options = {"n": 4, "batch_size": 2}
    with pytest.raises(Stop):
        ox.explain_to(path, ox.SmoothGrad, TABLE, interrupted(X, 4, after=3), **options)
    begun = ox.open_result(path)
    assert (len(begun), begun.complete) == (12, False)

    explained = []

    class Counting(ox.SmoothGrad):
        def __init__(self, converter, data, **rest):
            super().__init__(converter, data, **rest)
            explained.append(len(self.data[0]))

    found = ox.explain_to(path, Counting, TABLE, batches(X, 8), **options)
    assert explained == [1, 4, 8, 6]  # one row to check the arguments, half a batch, and the rest
    same(found, ox.SmoothGrad(TABLE, X, **options, seed=found.seed))
    again = ox.explain_to(path, ox.SmoothGrad, TABLE, batches(X), **options)
    np.testing.assert_array_equal(again.get_result(), found.get_result())


KILLED = """
import os, sys
import numpy as np
import onnxplain as ox
from onnxplain.demo import MODEL, digits

def rows():
    for k in range(0, 20, 4):
        if k == 12:
            os._exit(9)
        yield digits()[0][k:k + 4]

rules = {"default": "epsilon_plus_flat", "Gemm": ox.rules.Epsilon(0.1)}
ox.explain_to(sys.argv[1], ox.LRP, ox.convert(MODEL), rows(), rule_name=rules, batch_size=4)
"""


def test_another_process_goes_on_for_one_that_was_killed(tmp_path):
    path = tmp_path / "r"
    assert subprocess.run([sys.executable, "-c", KILLED, path], check=False).returncode == 9
    assert len(ox.open_result(path)) == 12
    rules = {"default": "epsilon_plus_flat", "Gemm": ox.rules.Epsilon(0.1)}
    options = {"rule_name": rules, "batch_size": 4}
    found = ox.explain_to(path, ox.LRP, DIGITS, batches(IMAGES[:20]), **options)
    same(found, ox.LRP(DIGITS, IMAGES[:20], **options))


def test_a_block_that_was_half_written_is_done_again(tmp_path):
    path = tmp_path / "r"
    with pytest.raises(Stop):
        ox.explain_to(path, ox.LRP, TABLE, interrupted(X, 5, after=2), batch_size=5)
    with (path / "result.npy").open("ab") as file:
        file.write(b"half a block")
    np.lib.format.open_memmap(path / "preds.npy", "r+")[:] = (
        7  # rows that are done stay as they are
    )
    found = ox.explain_to(path, ox.LRP, TABLE, batches(X, 5), batch_size=5)
    np.testing.assert_array_equal(found.get_result(), ox.LRP(TABLE, X, batch_size=5).get_result())
    np.testing.assert_array_equal(found.preds[0][:10], np.full((10, 3), 7))


CHANGED = {
    "model": lambda: {"converter": DIGITS, "data": IMAGES},
    "method": lambda: {"method": ox.Gradient},
    "arguments": lambda: {"rule_param": 0.2},
    "seed": lambda: {"seed": 3},
    "rows": lambda: {"data": X[:-1]},
    "first row": lambda: {"data": X[::-1]},
}


@pytest.mark.parametrize("what", CHANGED)
def test_going_on_with_something_else_is_refused(what, tmp_path):
    asked = {"method": ox.LRP, "converter": TABLE, "data": X, "rule_name": "epsilon"}
    ox.explain_to(tmp_path / "r", **asked)
    changed = asked | CHANGED[what]()
    if what == "method":
        del changed["rule_name"]
    named = "arguments" if what == "seed" else what
    with pytest.raises(ArgumentError, match=f"begun with different {named}.*another folder"):
        ox.explain_to(tmp_path / "r", **changed)


def test_an_iterator_that_became_shorter_is_told(tmp_path):
    with pytest.raises(Stop):
        ox.explain_to(tmp_path / "r", ox.LRP, TABLE, interrupted(X, 5, after=4))
    with pytest.raises(DataError, match="ended after 10 rows, but 20 are explained"):
        ox.explain_to(tmp_path / "r", ox.LRP, TABLE, batches(X[:10]))


# -- errors ---------------------------------------------------------------------------------------


BAD = {
    "empty iterator": ({"data": iter([])}, DataError, "yields no batches"),
    "wrong shape": ({"data": X[:, :3]}, ShapeError, r"\(1, 3\).*\(n, 4\)"),
    "scalar": ({"data": 3}, DataError, "no axis of instances"),
    "nothing": ({"data": None}, DataError, "no axis of instances"),
    "no rows": ({"data": X[:0]}, DataError, "no rows"),
    "uneven": ({"converter": PAIR, "data": [A, B[1:]]}, DataError, r"\[9, 8\]"),
    "unknown argument": ({"rule": "epsilon"}, ArgumentError, "did you mean"),
    "no method": ({"method": "LRP"}, ArgumentError, "class such as onnxplain.LRP"),
    "no rows at a time": ({"batch": 0}, ArgumentError, "batch must be a whole number"),
    "global": ({"method": ox.ConnectionWeights}, ArgumentError, "reads no data"),
    "by batch": (
        {"method": ox.SmoothGrad, "like": "innsight"}, ArgumentError, "depend on all other rows",
    ),
    ".npy": ({"path": "r.npy"}, ArgumentError, "folders of .npy files"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_streamed_is_told_before_anything_is_written(case, tmp_path):
    changed, error, words = BAD[case]
    asked = {"method": ox.LRP, "converter": TABLE, "data": X, "path": "r"} | changed
    asked["path"] = tmp_path / asked["path"]
    with pytest.raises(error, match=words):
        ox.explain_to(**asked)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "r"):
        with pytest.raises(ArgumentError, match="file"):
            ox.explain_to(path, ox.LRP, TABLE, X)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    with pytest.raises(ArgumentError, match="holds no result to go on with"):
        ox.explain_to(tmp_path / "folder", ox.LRP, TABLE, X)
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["mine.txt"]


def test_a_disk_that_is_too_small_is_told(tmp_path, monkeypatch):
    free = type("Usage", (), {"free": 10})()
    monkeypatch.setattr("onnxplain.streaming.shutil.disk_usage", lambda folder: free)
    with pytest.raises(ArgumentError, match="free"):
        ox.explain_to(tmp_path / "r", ox.LRP, TABLE, X)


def test_batches_of_another_shape_are_told_with_their_place(tmp_path):
    with pytest.raises(ShapeError, match=r"from row 30 on.*\(30, 3\)"):
        ox.explain_to(tmp_path / "r", ox.LRP, TABLE, iter([X, X[:, :3]]))
    with pytest.raises(ShapeError, match="batch 2 of data"):
        ox.LRP(TABLE, iter([X, X[:, :3]]))
    with pytest.raises(DataError, match="yields no batches"):
        ox.LRP(TABLE, iter([]))
    with pytest.raises(ShapeError, match="batch 1 of data"):
        ox.LRP(TABLE, count())


def test_values_that_are_not_finite_are_told_with_their_place(tmp_path):
    data = X.copy()
    data[17, 2] = np.nan
    with pytest.raises(DataError, match=r"from row 15 on.*first in row 2"):
        ox.explain_to(tmp_path / "r", ox.LRP, TABLE, data, batch=5)


def test_a_folder_without_a_sound_result_is_told(tmp_path):
    with pytest.raises(DataError, match="holds no result"):
        ox.open_result(tmp_path)
    ox.explain_to(tmp_path / "r", ox.LRP, TABLE, X)
    note = tmp_path / "r" / PROGRESS
    whole = json.loads(note.read_text())
    for text in ("no json", "[]", "{}", json.dumps(whole | {"version": 9}),
                 json.dumps(whole | {"rows": 99}), json.dumps(whole | {"rows": "a"})):  # fmt: skip
        note.write_text(text)
        with pytest.raises(DataError):
            ox.open_result(tmp_path / "r")
    note.write_text(json.dumps(whole))
    np.save(tmp_path / "r" / "result.npy", np.zeros((30, 2)))
    with pytest.raises(DataError, match="result is of float64"):
        ox.open_result(tmp_path / "r")
    os.remove(tmp_path / "r" / "result.npy")
    with pytest.raises(DataError, match="cannot be read"):
        ox.open_result(tmp_path / "r")


# -- memory and progress --------------------------------------------------------------------------


def peak(tmp_path, rows):
    """Return the most bytes held while so many rows were streamed."""

    def rows_in_batches():
        rng = np.random.default_rng(0)
        for _ in range(0, rows, 500):
            yield rng.normal(size=(500, 4))

    gc.collect()
    tracemalloc.start()
    ox.explain_to(tmp_path / str(rows), ox.LRP, TABLE, rows_in_batches(), dtype="double")
    top = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return top


def test_memory_does_not_grow_with_rows(tmp_path):
    peak(tmp_path, 500)  # what is made once
    few, many = peak(tmp_path, 5_000), peak(tmp_path, 50_000)
    assert os.path.getsize(tmp_path / "50000" / "result.npy") > 4_000_000
    assert many - few < 300_000


def test_progress_is_shown_in_rows(tmp_path, capsys):
    ox.explain_to(tmp_path / "r", ox.LRP, TABLE, X, batch=10, verbose=True)
    assert "30/30" in capsys.readouterr().err
    ox.explain_to(tmp_path / "q", ox.LRP, TABLE, X, batch=10)
    assert capsys.readouterr().err == ""


# -- the command line -----------------------------------------------------------------------------


def run(*arguments):
    found = CliRunner().invoke(main, ["explain", *map(str, arguments)])
    return found.exit_code, found.output


def test_the_command_line_streams_into_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxplain.files.MAPPED_BYTES", 100)  # as if the file were large
    np.save(tmp_path / "x.npy", IMAGES)
    out, picture = tmp_path / "r", tmp_path / "rows.png"
    asked = [MODEL, tmp_path / "x.npy", "--method", "lrp", "--out", out]
    code, text = run(*asked, "--plot", picture, "--data-idx", "4,7")
    assert code == 0
    assert "LRP of 23 rows" in text
    assert picture.stat().st_size > 1000
    found = np.asarray(ox.open_result(out).get_result())
    np.testing.assert_allclose(found, ox.LRP(DIGITS, IMAGES).get_result(), rtol=1e-4, atol=1e-5)
    code, text = run(*asked, "--rule-name", "epsilon")
    assert code == 2
    assert "begun with different arguments" in text
