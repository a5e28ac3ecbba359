"""Dask arrays as data: the same values, made lazily, block by block, on any scheduler."""

import os
import pickle
import signal
import time

import numpy as np
import pytest
from onnx import TensorProto, helper

import onnxplain as ox
from dask_tasks import count_models, slowly
from networks import graph
from onnxplain.errors import ArgumentError, DataError, ShapeError
from onnxplain.lazy import Explainer
from test_streaming import BOTH, CASES, DIGITS, IMAGES, PAIR, TABLE, A, B, X

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")


def in_blocks(array, *rows):
    return da.from_array(array, chunks=(rows or (5,), *array.shape[1:]))


def close(found, expected):
    for field in ("result", "preds", "decomp_goal", "decomp_sum"):
        one, other = getattr(found, field), getattr(expected, field)
        assert (one is None) == (other is None)
        for mine, theirs in zip(flat(one), flat(other), strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def flat(value):
    return [x for part in value for x in flat(part)] if isinstance(value, list) else [value]


@pytest.fixture(autouse=True)
def one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


CONVERTED = {
    **CASES,
    "GuidedBackprop": (ox.GuidedBackprop, {}),
    "Deconvnet": (ox.Deconvnet, {}),
    "GradCAMPlusPlus": (ox.GradCAMPlusPlus, {"guided": True}),
}


@pytest.mark.parametrize("case", CONVERTED)
def test_values_are_those_of_numpy_whatever_the_blocks(case):
    method, options = CONVERTED[case]
    found = method(DIGITS, in_blocks(IMAGES, 5, 7, 1, 10), **options)
    assert isinstance(found.result[0][0], da.Array)
    assert found.result[0][0].chunks[0] == (5, 7, 1, 10)
    close(found.compute(), method(DIGITS, IMAGES, **options))


def test_nothing_is_read_before_it_is_asked_for():
    read = []

    def block(x):
        read.append(len(x))
        return x

    data = in_blocks(X, 10, 20).map_blocks(block, dtype=float, meta=np.zeros((0, 4)))
    found = ox.LRP(TABLE, data)
    assert read == []
    assert len(found) == 30
    assert found[:3].get_result().shape == (3, 4, 3)
    assert read == [10]


def test_blocks_are_explained_once_for_all_arrays():
    explained = []

    class Counting(ox.LRP):
        def __init__(self, converter, data, **options):
            super().__init__(converter, data, **options)
            explained.append(len(self.data[0]))

    found = Counting(TABLE, in_blocks(X, 10, 20))
    dask.compute(found.result, found.preds, found.decomp_goal)
    assert sorted(explained) == [1, 10, 20]  # one row to check the arguments


@pytest.mark.parametrize(
    "scheduler", ["threads", pytest.param("processes", marks=pytest.mark.oracle)]
)
def test_any_scheduler_will_do(scheduler):
    found = ox.DeepLift(TABLE, in_blocks(X, *[3] * 10))
    with dask.config.set(scheduler=scheduler, num_workers=2):
        close(found.compute(), ox.DeepLift(TABLE, X))


def test_random_draws_are_shared_by_all_blocks():
    found = ox.SmoothGrad(TABLE, in_blocks(np.repeat(X[:1], 6, axis=0), 2, 4), n=3)
    values = found.get_result().compute()
    np.testing.assert_allclose(values, np.repeat(values[:1], 6, axis=0), rtol=1e-5)
    close(found[:1], ox.SmoothGrad(TABLE, X[:1], n=3, seed=found.seed))


def test_several_inputs_are_cut_alike():
    expected = ox.LRP(PAIR, [A, B], **BOTH)
    for data in ([in_blocks(A, 4, 5), in_blocks(B, 9)], {"b": B, "a": in_blocks(A, 2, 7)}):
        found = ox.LRP(PAIR, data, **BOTH)
        close(found.compute(), expected)
        assert np.isnan(found.get_result()["Output_2"]["Input_1"]).all()


def test_inputs_of_whole_numbers_may_come_in_any_order():
    nodes = [
        helper.make_node("Gather", ["w", "ids"], ["e"]),
        helper.make_node("Mul", ["e", "x"], ["y"]),
    ]
    proto = graph(nodes, {"ids": [4], "x": [4]}, {"w": np.arange(1.0, 8.0)}, outputs={"y": [4]})
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    converter, ids = ox.convert(proto), np.arange(24).reshape(6, 4) % 7
    expected = ox.LRP(converter, [ids, X[:6]])
    blocks = [in_blocks(x, 2, 4) for x in (ids, X[:6])]
    for data in (blocks, {"x": blocks[1], "ids": blocks[0]}):
        found = ox.LRP(converter, data).compute()
        np.testing.assert_allclose(found.preds[0], expected.preds[0], rtol=1e-5)


def test_arrays_cut_along_other_axes_or_with_empty_blocks_are_taken():
    data = da.concatenate([in_blocks(X, 30).rechunk((7, 3))[:10], in_blocks(X[:0], 0), X[10:]])
    close(ox.LRP(TABLE, data).compute(), ox.LRP(TABLE, X))


def test_references_may_be_dask_arrays_too():
    expected = ox.DeepSHAP(TABLE, X, data_ref=X[:7])
    close(ox.DeepSHAP(TABLE, X, data_ref=in_blocks(X[:7], 3, 4)), expected)
    close(ox.DeepSHAP(TABLE, in_blocks(X, 30), data_ref=in_blocks(X[:7], 3, 4)).compute(), expected)


def test_a_function_is_explained_lazily_too():
    options = {"exact": False, "n_permutations": 3, "seed": 1}
    found = ox.SHAP(lambda x: x**2, in_blocks(X, 10, 20), X[:4], **options)
    expected = ox.SHAP(lambda x: x**2, X, X[:4], **options)
    close(found.compute(), expected)
    options |= {"data": in_blocks(X, 30), "data_ref": X[:4]}
    close(ox.SHAP(model=lambda x: x**2, **options).compute(), expected)


def test_a_dask_array_can_be_streamed_to_disk(tmp_path):
    found = ox.explain_to(tmp_path / "r", ox.LRP, TABLE, in_blocks(X, 10, 20), batch=6)
    close(found.compute(), ox.LRP(TABLE, X))


def test_connection_weights_of_the_model_need_no_data():
    found = ox.ConnectionWeights(TABLE, in_blocks(X, 30))
    np.testing.assert_array_equal(found.get_result(), ox.ConnectionWeights(TABLE).get_result())


BAD = {
    "unknown rows": (lambda x: x[x[:, 0] > 0], {}, DataError, "compute_chunk_sizes"),
    "another shape": (lambda x: x[:, :3], {}, ShapeError, r"expects \(n, 4\)"),
    "no rows": (lambda x: x[:0], {}, DataError, "no rows"),
    "too many": (lambda x: x, None, ArgumentError, "all else by name"),
    "argument": (lambda x: x, {"rule": 1}, ArgumentError, "did you mean"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_explained_is_told_at_once(case):
    change, options, error, words = BAD[case]
    given = ({}, ["epsilon"]) if options is None else (options, [])
    with pytest.raises(error, match=words):
        ox.LRP(TABLE, change(in_blocks(X, 30)), *given[1], **given[0])
    with pytest.raises(ArgumentError, match="depend on all other rows"):
        ox.SmoothGrad(TABLE, in_blocks(X, 30), like="innsight")


# -- what travels ---------------------------------------------------------------------------------


def test_the_model_is_in_a_task_graph_once():
    cloudpickle = pytest.importorskip("cloudpickle")
    found = ox.LRP(DIGITS, da.zeros((1000, 1, 8, 8), chunks=(10, 1, 8, 8)))
    one = len(pickle.dumps(DIGITS))
    whole = cloudpickle.dumps(dict(found.result[0][0].__dask_graph__()))
    assert one > 20_000
    assert whole.count(b"onnxplain.converter") == 1
    assert len(whole) < one + 1000 * 100


def test_a_pickled_explainer_is_unpacked_where_it_is_used(monkeypatch):
    sent = pickle.dumps(Explainer(ox.LRP, TABLE, {"rule_name": "epsilon"}))
    made = []
    monkeypatch.setattr(ox.Converter, "_build", lambda self, build=ox.Converter._build: (
        made.append(1), build(self))[1])  # fmt: skip
    passed_on = pickle.dumps(pickle.loads(sent))
    assert made == []
    explainer = pickle.loads(passed_on)
    close(explainer([X]), ox.LRP(TABLE, X, rule_name="epsilon"))
    close(explainer([X]), ox.LRP(TABLE, X, rule_name="epsilon"))
    assert made == [1]


# -- a cluster ------------------------------------------------------------------------------------


@pytest.mark.oracle
def test_a_worker_that_dies_loses_nothing(tmp_path):
    distributed = pytest.importorskip("distributed")
    rows = np.random.default_rng(1).normal(size=(400, 4))
    data = in_blocks(rows, *[10] * 40).map_blocks(slowly, tmp_path, meta=np.zeros((0, 4)))
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with (
        dask.config.set(scheduler=None),
        distributed.LocalCluster(**settings, env={"ONNXPLAIN_NUM_THREADS": "1"}) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert set(client.run(ox.get_num_threads).values()) == {1}
        client.run(count_models)
        victim = next(iter(client.run(os.getpid).values()))
        found = ox.SmoothGrad(TABLE, data, n=3)
        future = client.compute(found.get_result())
        deadline = time.monotonic() + 40
        while len(list(tmp_path.iterdir())) < 8:
            assert time.monotonic() < deadline, "the workers do not begin"
            time.sleep(0.02)
        assert not future.done()
        os.kill(victim, signal.SIGKILL)
        values = future.result(timeout=50)
        received = client.run(lambda: getattr(ox, "received", None))
    assert set(received.values()) == {1, None}  # the second was started for the one that died
    expected = ox.SmoothGrad(TABLE, rows, n=3, seed=found.seed)
    np.testing.assert_allclose(values, expected.get_result(), rtol=1e-4, atol=1e-6)
