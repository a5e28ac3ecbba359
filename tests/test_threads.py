"""Threads change how fast explanations are, never what they say."""

import threading
import warnings
from itertools import pairwise

import numpy as np
import pytest

import onnxplain as ox
from onnxplain import processor, threads
from onnxplain.errors import ArgumentError
from onnxplain.kernels import linear


@pytest.fixture(autouse=True)
def default_threads():
    yield
    threads.set_num_threads(None)


def names_of_threads(items):
    seen = set()
    threads.each(lambda _: seen.add(threading.current_thread().name), range(items))
    return seen


def blas_threads():
    import threadpoolctl

    info = threadpoolctl.threadpool_info()
    return max((p["num_threads"] for p in info if p["user_api"] == "blas"), default=1)


def test_outside_a_pool_tasks_run_here():
    threads.set_num_threads(3)
    assert names_of_threads(5) == {threading.current_thread().name}


def test_inside_a_pool_tasks_run_side_by_side():
    together = threading.Barrier(3, timeout=60)
    seen = set()

    def task(_):
        together.wait()
        seen.add(threading.current_thread().name)

    threads.set_num_threads(3)
    with threads.pool():
        threads.each(task, range(3))
    others = seen - {threading.current_thread().name}
    assert len(seen) == 3
    assert len(others) == 2
    assert all(name.startswith("onnxplain") for name in others)


def test_a_single_task_runs_here():
    threads.set_num_threads(3)
    with threads.pool():
        assert names_of_threads(1) == {threading.current_thread().name}


def test_tasks_of_tasks_run_where_the_task_runs():
    threads.set_num_threads(2)
    inner = []
    with threads.pool():
        threads.each(lambda _: inner.append(len(names_of_threads(4))), range(4))
    assert inner == [1, 1, 1, 1]


def test_matrix_products_use_one_thread_inside_a_pool():
    threads.set_num_threads(2)
    before = blas_threads()
    with threads.pool():
        assert blas_threads() == 1
    assert blas_threads() == before


def test_two_explanations_at_once_leave_the_number_of_blas_threads_as_it_was():
    before, inside = blas_threads(), threading.Barrier(2)

    def explain():
        with threads.pool():
            inside.wait()

    first, second = (threading.Thread(target=explain) for _ in range(2))
    first.start(), second.start()
    first.join(), second.join()
    assert blas_threads() == before


@pytest.mark.parametrize("n", [1, 3])
def test_a_task_of_several_is_not_split_again(n):
    threads.set_num_threads(n)
    found = []
    with threads.pool():
        assert threads.splits()
        threads.each(lambda i: found.append(threads.splits()), range(4))
        threads.each(lambda i: found.append(threads.splits()), range(1))  # alone: it may
    assert found == [False] * 4 + [True]


def test_the_first_error_comes_out():
    def fail(i):
        if i == 2:
            raise ValueError("two")

    threads.set_num_threads(2)
    with threads.pool(), pytest.raises(ValueError, match="two"):
        threads.each(fail, range(5))


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", True])
def test_number_of_threads_is_checked(n):
    with pytest.raises(ArgumentError, match="whole number >= 1"):
        ox.set_num_threads(n)


def test_environment_sets_the_default(monkeypatch):
    monkeypatch.setenv("ONNXPLAIN_NUM_THREADS", "7")
    assert ox.get_num_threads() == 7
    monkeypatch.setenv("ONNXPLAIN_NUM_THREADS", "many")
    with pytest.raises(ArgumentError, match="ONNXPLAIN_NUM_THREADS"):
        ox.get_num_threads()


def image_model():
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(size=(16, 3, 3, 3)) / 5,
        "w2": rng.normal(size=(16, 16, 3, 3)) / 12,
        "w3": rng.normal(size=(16, 1, 3, 3)) / 3,
        "w4": rng.normal(size=(4, 16)) / 4,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4),
        helper.make_node("Conv", ["c", "w3"], ["d"], pads=[1] * 4, group=16),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "w4"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "image",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 40, 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(w.astype(np.float32), k) for k, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_networks_without_convolutions_agree_to_rounding():
    import networks

    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(300, 400)) / 20, "v": rng.normal(size=(400, 3)) / 20}
    nodes = [
        networks.helper.make_node("MatMul", ["x", "w"], ["a"]),
        networks.helper.make_node("Relu", ["a"], ["b"]),
        networks.helper.make_node("MatMul", ["b", "v"], ["y"]),
    ]
    converter = ox.convert(networks.graph(nodes, {"x": (300,)}, weights))
    found, x = [], rng.normal(size=(200, 300))
    for n in (1, 2, 5):
        ox.set_num_threads(n)
        found.append(ox.Gradient(converter, x, dtype="double").get_result())
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=0, atol=1e-14)


def dense_model(*widths):
    import networks

    rng, nodes, weights = np.random.default_rng(0), [], {}
    for i, size in enumerate(pairwise(widths)):
        weights[f"w{i}"] = rng.normal(size=size).astype(np.float32) / 5
        nodes.append(networks.helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"y{i}"]))
        nodes.append(networks.helper.make_node("Relu", [f"y{i}"], [f"x{i + 1}"]))
    nodes[-1].output[0] = "y"
    return ox.convert(networks.graph(nodes, {"x0": widths[:1]}, weights))


@pytest.mark.parametrize("method", [ox.Gradient, ox.LRP, ox.DeepLift, ox.IntegratedGradient])
@pytest.mark.parametrize("rows", [500, 9000])
def test_small_weights_give_the_same_bit_for_bit_with_any_number_of_threads(method, rows):
    x = np.random.default_rng(1).normal(size=(rows, 30))
    options = {"n": 3} if method is ox.IntegratedGradient else {}
    found, converter = [], dense_model(30, 64, 64, 3)
    for n in (1, 2, 5):
        ox.set_num_threads(n)
        found.append(method(converter, x, verbose=False, **options).get_result())
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("method", [ox.Gradient, ox.DeepLift, ox.DeepSHAP, ox.IntegratedGradient])
def test_all_products_of_an_explanation_use_one_thread_each(monkeypatch, method):
    converter, held, product = dense_model(30, 40, 3), [], linear.product

    def watched(x, w):
        held.append(threads._blas_held._users > 0)
        return product(x, w)

    monkeypatch.setattr(linear, "product", watched)
    method(converter, np.ones((4, 30)))
    assert held
    assert all(held)


@pytest.mark.parametrize("method", [ox.Gradient, ox.LRP, ox.DeepLift, ox.IntegratedGradient])
@pytest.mark.parametrize("rows", [1, 40])
def test_results_are_the_same_bit_for_bit_with_any_number_of_threads(method, rows):
    converter = ox.convert(image_model())
    x = np.random.default_rng(1).random((rows, 3, 40, 40))
    options = {"n": 4} if method is ox.IntegratedGradient else {}
    found = []
    for n in (1, 2, 5):
        ox.set_num_threads(n)
        found.append(method(converter, x, verbose=False, **options))
    for other in found[1:]:
        np.testing.assert_array_equal(other.get_result(), found[0].get_result())
        np.testing.assert_array_equal(other.preds[0], found[0].preds[0])


# -- advice ---------------------------------------------------------------------------------------

HASWELL = [{"user_api": "blas", "architecture": "Haswell"}, {"user_api": "openmp"}]
ALL_FLAGS = {"sse2", "avx512f", "avx512bw", "avx512dq", "avx512vl"}


def advice(monkeypatch, libraries, flags, core=None):
    processor._warn.cache_clear()
    monkeypatch.setattr(processor, "_flags", lambda: flags)
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    if core:
        monkeypatch.setenv("OPENBLAS_CORETYPE", core)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        processor.advise(libraries)
        processor.advise(libraries)
    return [str(w.message) for w in found if w.category is ox.PerformanceAdvice]


def test_kernels_for_an_older_processor_are_told_once(monkeypatch):
    (told,) = advice(monkeypatch, HASWELL, ALL_FLAGS)
    assert "for Haswell" in told
    assert "OPENBLAS_CORETYPE=SkylakeX" in told


@pytest.mark.parametrize(
    "libraries, flags, core",
    [
        (HASWELL, {"avx2"}, None),
        (HASWELL, set(), None),
        (HASWELL, ALL_FLAGS, "Haswell"),
        ([{"user_api": "blas", "architecture": "SkylakeX"}], ALL_FLAGS, None),
        ([{"user_api": "blas", "internal_api": "mkl"}], ALL_FLAGS, None),
    ],
)
def test_right_or_chosen_kernels_need_no_advice(monkeypatch, libraries, flags, core):
    assert advice(monkeypatch, libraries, flags, core) == []
