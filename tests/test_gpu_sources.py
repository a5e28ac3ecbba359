"""Kernels in CUDA C++ compile for the GPUs in use, and compute what the array library does.

The compiler of CUDA needs no GPU. What kernels compute is seen on the processor: their own source
is compiled as C++ and runs thread by thread.
"""

import re

import numpy as np
import pytest

from onnxplain import gpu_kernels
from onnxplain.kernels import schema_defaults
from onnxplain.kernels.convolution import Windows, convolve, convolve_back
from onnxplain.kernels.pooling import AveragePool, MaxPool
from stand_in import COMPILER, RawKernel, install, ndarray

KERNELS = re.findall(r"__global__\s+void\s+(\w+)", gpu_kernels.SOURCE)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler, such as g++")


# -- the compiler of CUDA -------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("wide", [False, True], ids=["32", "64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_source_compiles_without_a_warning(architecture, dtype, wide):
    nvrtc = pytest.importorskip(
        "cupy_backends.cuda.libs.nvrtc", reason="needs CuPy: onnxplain[gpu]"
    )
    try:
        program = nvrtc.createProgram(gpu_kernels.SOURCE, "kernels.cu", (), ())
    except RuntimeError as error:
        pytest.skip(f"the compiler of CUDA cannot be loaded: {error}")
    options = (f"--gpu-architecture={architecture}", *gpu_kernels.options(dtype, wide))
    try:
        nvrtc.compileProgram(program, options)
    finally:
        log = nvrtc.getProgramLog(program)
        assert not log.strip("\0\n "), log
    binary = nvrtc.getCUBIN(program)
    for name in KERNELS:
        assert f".text.{name}".encode() in binary, f"{name} is not in the program"


@pytest.mark.oracle
def test_names_of_the_array_library_exist_in_cupy():
    from operator import attrgetter

    from test_namespace import USED

    for module, names in USED.items():
        library = pytest.importorskip(module, reason="needs CuPy: onnxplain[gpu]")
        for name in names:
            assert attrgetter(name)(library) is not None


# -- what kernels compute -------------------------------------------------------------------------

#           kernel     strides    dilations  pads                      image       groups
GEOMETRIES = {
    "line": ((3,), (1,), (1,), ((1, 1),), (7,), 1),
    "line, steps and holes": ((3,), (2,), (2,), ((0, 3),), (11,), 1),
    "square": ((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), (6, 5), 1),
    "uneven": ((2, 4), (3, 1), (1, 2), ((0, 2), (3, 0)), (9, 8), 1),
    "point": ((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)), (4, 3), 1),
    "point, steps": ((1, 1), (2, 3), (1, 1), ((0, 0), (0, 0)), (5, 7), 1),
    "gaps between windows": ((2, 2), (3, 3), (1, 1), ((0, 0), (0, 0)), (8, 9), 1),
    "groups": ((3, 2), (1, 2), (1, 1), ((1, 1), (0, 1)), (5, 6), 2),
    "depthwise": ((3, 3), (2, 1), (1, 1), ((1, 1), (1, 1)), (6, 6), 4),
    "depthwise with holes": ((3,), (1,), (3,), ((2, 4),), (9,), 4),
    "cube": ((2, 3, 2), (1, 2, 1), (1, 1, 2), ((0, 1), (1, 1), (0, 0)), (4, 5, 6), 1),
    "padding wider than the image": ((2, 2), (2, 2), (1, 1), ((3, 3), (0, 4)), (2, 3), 1),
}


@pytest.fixture
def gpu(monkeypatch):
    return install(monkeypatch)


def arrays(name, dtype, seed=0):
    """Return the windows, data (3, 4, ...) and weights of a geometry."""
    kernel, strides, dilations, pads, image, groups = GEOMETRIES[name]
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, 4, *image)).astype(dtype)
    outputs = 4 if groups == 4 else 6
    w = rng.normal(size=(outputs, 4 // groups, *kernel)).astype(dtype)
    return Windows(kernel, strides, dilations, pads), x, w, groups


def same(found, expected, dtype):
    assert isinstance(found, ndarray)
    assert found.dtype == dtype
    tolerance = {"float32": 1e-5, "float64": 1e-13}[dtype]
    np.testing.assert_allclose(found.get(), expected, rtol=tolerance, atol=tolerance)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolutions_and_their_transposes(gpu, monkeypatch, name, dtype):
    win, x, w, groups = arrays(name, dtype)
    monkeypatch.setattr(gpu_kernels, "_BLOCK_BYTES", 1)  # a block per image
    y = convolve(x, w, win, groups, fast=False)
    same(convolve(ndarray(x), ndarray(w), win, groups, fast=False), y, dtype)
    back = convolve_back(y, x.shape, w, win, groups, fast=False)
    on_gpu = convolve_back(ndarray(y), x.shape, ndarray(w), win, groups, fast=False)
    same(on_gpu, back, dtype)
    ours = {"window_sums", "window_spread"} if groups == 4 else {"to_columns", "from_columns"}
    assert set(RawKernel.started) == ours
    assert set(RawKernel.started.values()) == {1 if groups == 4 else 3}


@needs_compiler
def test_a_convolution_in_one_block_is_one_launch(gpu):
    win, x, w, groups = arrays("groups", "float64")
    convolve(ndarray(x), ndarray(w), win, groups)
    assert RawKernel.started == {"to_columns": 1}


@needs_compiler
def test_signals_need_not_be_in_one_piece(gpu):
    win, x, w, groups = arrays("square", "float64")
    y = convolve(x, w, win, groups)
    turned = ndarray(np.asfortranarray(y))
    same(
        convolve_back(turned, x.shape, ndarray(w), win, groups),
        convolve_back(y, x.shape, w, win, groups),
        "float64",
    )


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("pads", [((1, 1), (1, 1)), ((0, 0), (0, 0)), ((2, 0), (1, 2))])
@pytest.mark.parametrize("image", [(8, 8), (7, 9)])
def test_winograds_way(gpu, image, pads, dtype):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 16, *image)).astype(dtype)
    x[0, :, :5, :6] = 0  # outputs that see zeros only are exactly 0
    w = rng.normal(size=(17, 16, 3, 3)).astype(dtype)
    win = Windows((3, 3), (1, 1), (1, 1), pads)
    y = convolve(x, w, win, 1, fast=False)
    found = convolve(ndarray(x), ndarray(w), win, 1)
    assert "winograd_outputs" in RawKernel.started
    tolerance = {"float32": 1e-5, "float64": 1e-13}[dtype] * abs(y).max()
    np.testing.assert_allclose(found.get(), y, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(found.get()[y == 0], 0)
    assert (y == 0).any()
    back = convolve_back(ndarray(y), x.shape, ndarray(w), win, 1).get()
    expected = convolve_back(y, x.shape, w, win, 1, fast=False)
    np.testing.assert_allclose(back, expected, rtol=0, atol=10 * tolerance)


def pool(cls, name, **attributes):
    kernel, strides, dilations, pads, *_ = GEOMETRIES[name]
    given = {
        "kernel_shape": kernel,
        "strides": strides,
        "dilations": dilations,
        "pads": [a for a, _ in pads] + [b for _, b in pads],
        **attributes,
    }
    return cls(schema_defaults(cls.op, 20) | given, (True,))


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_poolings(gpu, name, ceil_mode, dtype):
    rng = np.random.default_rng(2)
    _, x, _, _ = arrays(name, dtype)
    x = np.round(2 * x) / 2  # ties: the first cell wins
    kernel = pool(MaxPool, name, ceil_mode=ceil_mode)
    y = kernel.forward(x)
    same(kernel.forward(ndarray(x)), y, dtype)
    g = rng.normal(size=(2, *y.shape)).astype(dtype)
    sent = kernel.send(ndarray(g), ndarray(x), ndarray(y), x.shape)
    same(sent, kernel.send(g, x, y, x.shape), dtype)
    values = rng.normal(size=x.shape).astype(dtype)
    picked = kernel.pick(ndarray(values), ndarray(x), ndarray(y))
    same(picked, kernel.pick(values, x, y), dtype)
    mean = pool(AveragePool, name, ceil_mode=ceil_mode, count_include_pad=1)
    same(mean.apply(ndarray(x), 1.0), mean.apply(x, 1.0), dtype)
    same(mean.vjp(ndarray(g), x.shape, 1.0), mean.vjp(g, x.shape, 1.0), dtype)
    assert set(RawKernel.started) >= {"window_maxima", "send_to_winners", "pick_winners"}


@needs_compiler
@pytest.mark.parametrize("rows, ref_rows", [(3, 1), (1, 3), (3, 3)])
def test_maxima_of_one_row_stand_beside_all_rows(gpu, rows, ref_rows):
    """As for DeepLIFT, whose reference has one row."""
    rng = np.random.default_rng(3)
    kernel = pool(MaxPool, "uneven")
    _, x, _, _ = arrays("uneven", "float64")
    x, values = x[:ref_rows], rng.normal(size=(rows, *x.shape[1:]))
    y = kernel.forward(x)
    g = rng.normal(size=(2, 3, *y.shape[1:]))
    device = [ndarray(a) for a in (g, x, y, values)]
    shape = (3, *x.shape[1:])
    same(kernel.send(*device[:3], shape), kernel.send(g, x, y, shape), "float64")
    picked = kernel.pick(device[3], *device[1:3])
    same(picked, kernel.pick(values, x, y), "float64")


@needs_compiler
def test_a_maximum_that_is_no_number_stays_and_wins_nothing(gpu):
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    x[0, 0, 1, 1], x[0, 0, 3, 2] = np.nan, np.inf
    kernel = MaxPool(schema_defaults("MaxPool", 20) | {"kernel_shape": [2, 2]}, (True,))
    y = kernel.forward(x)
    np.testing.assert_array_equal(kernel.forward(ndarray(x)).get(), y)
    g = np.ones((1, *y.shape))
    sent = kernel.send(ndarray(g), ndarray(x), ndarray(y), x.shape)
    np.testing.assert_array_equal(sent.get(), kernel.send(g, x, y, x.shape))


@needs_compiler
def test_indices_of_64_bits_find_the_same(gpu, monkeypatch):
    monkeypatch.setattr(gpu_kernels, "_WIDE_FROM", 1)
    win, x, w, groups = arrays("cube", "float64")
    y = convolve(x, w, win, groups)
    same(convolve(ndarray(x), ndarray(w), win, groups), y, "float64")


@needs_compiler
def test_fewer_threads_than_elements_do_all_of_them(gpu, monkeypatch):
    monkeypatch.setattr(gpu_kernels, "_MOST_BLOCKS", 1)
    monkeypatch.setattr(gpu_kernels, "_THREADS", 32)
    win, x, w, groups = arrays("square", "float64")
    y = convolve(x, w, win, groups)
    same(convolve(ndarray(x), ndarray(w), win, groups), y, "float64")


@pytest.mark.parametrize("why", ["half precision", "four axes", "switched off"])
def test_what_kernels_do_not_serve_takes_the_way_of_the_array_library(gpu, monkeypatch, why):
    axes, dtype = (4 if why == "four axes" else 2), np.float64
    if why == "half precision":
        dtype = np.float16
    if why == "switched off":
        monkeypatch.setattr(gpu_kernels, "enabled", False)
    rng = np.random.default_rng(4)
    x, w = (rng.normal(size=(2, 2, *(3,) * axes)).astype(dtype) for _ in range(2))
    win = Windows((3,) * axes, (1,) * axes, (1,) * axes, ((1, 1),) * axes)
    y = convolve(x, w, win, 1)
    found = convolve(ndarray(x), ndarray(w), win, 1)
    np.testing.assert_allclose(found.get(), y, rtol=1e-12 if dtype == np.float64 else 1e-2)
    assert not RawKernel.started
