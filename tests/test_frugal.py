"""A model that is loaded takes the memory of its weights, once."""

import gc
import os
import pickle
import platform
import subprocess
import sys
import tracemalloc
import types

import numpy as np
import pytest
from onnx import helper

import onnxplain as ox
from networks import graph
from onnxplain import arrays
from onnxplain.frugal import frugally, give_back, is_frugal
from onnxplain.graph.load import read_model

RNG = np.random.default_rng(0)
node = helper.make_node


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def convolutional():
    """Two convolutions and a dense layer: 19 MB of weights, small tensors."""
    nodes = [
        node("Conv", ["x", "a"], ["h"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Relu", ["h"], ["r"]),
        node("Conv", ["r", "b"], ["s"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Flatten", ["s"], ["f"]),
        node("Gemm", ["f", "w", "c"], ["y"]),
    ]
    weights = {"a": draw(256, 32, 3, 3), "b": draw(256, 256, 3, 3)}
    weights |= {"w": draw(256 * 4 * 4, 1024), "c": draw(1024)}
    return graph(nodes, {"x": (32, 4, 4)}, weights, "float32", {"y": (1024,)})


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("frugal") / "model.onnx"
    path.write_bytes(convolutional().SerializeToString())
    return path


def traced(make):
    """What `make` returns, and the bytes it has left and taken at most."""
    make()  # what is loaded at first use counts no more
    gc.collect()
    tracemalloc.start()
    try:
        made = make()
        gc.collect()
        return made, *tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


def held(thing):
    """Bytes of all arrays that can be reached from an object, those that share memory once."""
    stack, seen, sizes = [thing], set(), {}
    while stack:
        found = stack.pop()
        if id(found) in seen or isinstance(found, (type, types.ModuleType, types.FunctionType)):
            continue
        seen.add(id(found))
        if isinstance(found, np.ndarray):
            while isinstance(found.base, np.ndarray):
                found = found.base
            sizes[found.ctypes.data] = found.nbytes
        else:
            stack += gc.get_referents(found)
    return sum(sizes.values())


def test_reading_takes_the_size_of_the_file(path):
    size = path.stat().st_size
    _, left, most = traced(lambda: read_model(path))
    assert size < left < 1.02 * size
    assert most < 1.05 * size


@pytest.mark.parametrize("source", ["path", "bytes", "proto"])
def test_a_converter_takes_the_size_of_its_weights(path, source):
    model = {"path": path, "bytes": path.read_bytes(), "proto": convolutional()}[source]
    converter, left, most = traced(lambda: ox.convert(model))
    weights = sum(w.nbytes for w in converter.raw.initializers.values())
    assert weights <= held(converter) < 1.01 * weights
    assert weights < left < 1.1 * weights
    if source == "path":
        assert most < 1.5 * weights


def test_graphs_of_the_same_type_share_the_weights(path):
    converter = ox.convert(path)
    before = held(converter)
    converter.graph_for(np.dtype("float32"))
    converter.graph_for(np.dtype("float32"), before_activation=True)
    assert held(converter) == before


def test_a_pickle_has_the_weights_once(path):
    converter = ox.convert(path)
    data = pickle.dumps(converter)
    assert len(data) < 1.02 * path.stat().st_size
    back = pickle.loads(data)
    assert held(back) == held(converter)
    x = draw(2, 32, 4, 4)
    np.testing.assert_array_equal(back(x)[0], converter(x)[0])


def test_a_saved_model_is_the_one_that_was_read(path, tmp_path):
    ox.convert(path).save(tmp_path / "again.onnx")
    first, second = read_model(path), read_model(tmp_path / "again.onnx")
    assert first.initializers.keys() == second.initializers.keys()
    for name, w in first.initializers.items():
        np.testing.assert_array_equal(second.initializers[name], w)


def test_sources_are_not_changed(path):
    data, proto = path.read_bytes(), convolutional()
    kept, copy = bytes(data), proto.SerializeToString()
    ox.convert(data)
    ox.convert(proto)
    assert data == kept
    assert proto.SerializeToString() == copy


def test_the_trial_keeps_nothing_that_is_made_of_weights(path):
    before = set(arrays._DERIVED)
    converter = ox.convert(path)
    assert set(arrays._DERIVED) <= before
    assert converter.output_dim == [(1024,)]


def test_the_trial_loads_nothing_compiled(path):
    code = f"import sys, onnxplain; onnxplain.convert({str(path)!r}); print('numba' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_what_is_made_of_weights_is_kept_outside_only():
    w, calls = draw(3), []
    make = lambda v: calls.append(1) or v * 2  # noqa: E731
    with frugally():
        arrays.derived(w, "double", make)
    assert not is_frugal()
    kept = arrays.derived(w, "double", make)
    with frugally():
        assert arrays.derived(w, "double", make) is kept
    assert len(calls) == 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what glibc learns is meant")
def test_what_chunks_free_is_kept_for_the_next(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    code = """
import resource, numpy as np
from onnxplain.frugal import keep_freed
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(2**19)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
fresh = faults()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
keep_freed()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1024)
faults()
print(faults() * 5 < fresh)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "True\nTrue\n"


def test_frugality_ends_with_an_error():
    with pytest.raises(ZeroDivisionError), frugally():
        raise ZeroDivisionError
    assert not is_frugal()
    assert give_back() is None
