"""What Numba compiles computes what NumPy computes."""

import importlib.util
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from onnx import helper

import networks
import onnxplain as ox
from onnxplain import cpu_kernels, threads
from onnxplain.kernels import schema_defaults
from onnxplain.kernels.activations import Clip, Clip6, Relu
from onnxplain.kernels.base import Record
from onnxplain.kernels.convolution import Windows, convolve, convolve_back
from onnxplain.kernels.pooling import AveragePool, MaxPool

pytest.importorskip("numba", reason="needs Numba: onnxplain[compiled]")

DTYPES = ["float32", "float64"]


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    """Use what is compiled, whatever the environment says."""
    monkeypatch.setattr(cpu_kernels, "available", lambda: True)
    cpu_kernels.load()
    yield
    threads.set_num_threads(None)


def plain(f, *args):
    """Return what f gives without anything compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_kernels, "available", lambda: False)
        return f(*args)


def same(found, exact):
    """Compare with the largest number: 1e-12 of it in float64, 1e-5 in float32."""
    assert found.shape == exact.shape
    room = 1e-12 if found.dtype == np.float64 else 1e-5
    largest = np.abs(exact).max(initial=0.0, where=np.isfinite(exact))
    np.testing.assert_allclose(found, exact, rtol=0, atol=room * largest)


def wide(x):
    return x.astype(np.float64)


# -- convolutions ---------------------------------------------------------------------------------


def random_problem(seed):
    """Return a random x (n, c, ...), w and windows, with pads that may be wider than a kernel."""
    rng = np.random.default_rng(seed)
    axes = 1 + seed % 3
    kernel, strides, dilations = (
        tuple(int(n) for n in rng.integers(1, most + 1, axes)) for most in (5, 3, 3)
    )
    pads = tuple((int(a), int(b)) for a, b in rng.integers(0, 7 if seed % 5 == 0 else 4, (axes, 2)))
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    image = [
        max(1, span - a - b) + int(rng.integers(0, 8))
        for span, (a, b) in zip(spans, pads, strict=True)
    ]
    groups, n = int(rng.choice([1, 1, 2, 3])), int(rng.choice([1, 2, 5, 40]))
    c, o = groups * int(rng.integers(1, 4)), groups * int(rng.integers(1, 5))
    x, w = rng.normal(size=(n, c, *image)), rng.normal(size=(o, c // groups, *kernel))
    return x, w, Windows(kernel, strides, dilations, pads), groups


def problem(rows, channels, outputs, image, windows, groups=1):
    rng = np.random.default_rng(0)
    win = Windows(*windows)
    w = rng.normal(size=(outputs, channels // groups, *win.kernel))
    return rng.normal(size=(rows, channels, *image)), w, win, groups


SQUARE = ((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
STEPS = ((3, 2), (2, 3), (1, 2), ((0, 2), (3, 0)))
POINT = ((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)))
CUBE = ((3, 2, 3), (1, 1, 2), (1, 2, 1), ((1, 1), (0, 1), (2, 0)))
LARGE = {
    "rows of windows in blocks": problem(2, 5, 7, (90, 70), SQUARE),
    "blocks, steps and holes": problem(1, 4, 3, (200, 190), STEPS),
    "one line of more windows than a block": problem(
        1, 3, 2, (5000,), ((4,), (1,), (2,), ((3, 0),))
    ),
    "outputs in parts": problem(2, 40, 150, (40, 40), SQUARE),
    "outputs and groups in parts": problem(1, 64, 192, (48, 48), SQUARE, 2),
    "images together": problem(40, 6, 70, (5, 6), SQUARE),
    "images together, the last fewer": problem(33, 3, 4, (9, 7), STEPS),
    "points": problem(3, 30, 70, (40, 60), POINT),
    "points, steps": problem(3, 20, 30, (41, 60), ((1, 1), (2, 3), (1, 1), ((0, 0), (0, 0)))),
    "points, padding": problem(2, 4, 3, (6, 5), ((1, 1), (1, 1), (1, 1), ((1, 0), (0, 2)))),
    "depthwise": problem(2, 60, 60, (40, 33), SQUARE, 60),
    "depthwise, steps": problem(3, 5, 5, (30, 31), STEPS, 5),
    "depthwise, padding wider than a kernel": problem(
        2, 3, 3, (7, 6), ((2, 3), (1, 1), (1, 2), ((3, 0), (5, 6))), 3
    ),
    "depthwise, several filters": problem(3, 4, 8, (9, 8), SQUARE, 4),
    "cube": problem(2, 8, 12, (12, 20, 18), CUBE),
    "cube, depthwise": problem(2, 6, 6, (7, 9, 8), CUBE, 6),
    "one window": problem(3, 4, 5, (3, 3), ((3, 3), (1, 1), (1, 1), ((0, 0), (0, 0)))),
    "padding only": problem(2, 2, 3, (2, 1), ((2, 2), (1, 3), (1, 1), ((5, 4), (0, 6)))),
}
PROBLEMS = {**LARGE, **{f"random {seed}": random_problem(seed) for seed in range(60)}}


@pytest.mark.parametrize("name", PROBLEMS)
def test_convolutions_and_their_transposes(name):
    x, w, win, groups = PROBLEMS[name]
    bias = np.random.default_rng(2).normal(size=len(w))
    y = plain(convolve, x, w, win, groups, False)
    g = np.random.default_rng(1).normal(size=y.shape)
    back = plain(convolve_back, g, x.shape, w, win, groups, False)
    for dtype in DTYPES:
        x1, w1, g1 = (a.astype(dtype) for a in (x, w, g))
        with threads.pool():
            y1 = convolve(x1, w1, win, groups, False)
            more = convolve(x1, w1, win, groups, False, bias.astype(dtype))
            back1 = convolve_back(g1, x.shape, w1, win, groups, False)
        assert y1.dtype == back1.dtype == dtype
        same(y1, y)
        same(more, y + bias.reshape(-1, *(1,) * (y.ndim - 2)))
        same(back1, back)
    np.testing.assert_allclose(np.vdot(y1, g), np.vdot(x, back1), rtol=1e-10, atol=1e-9)


def layouts(x):
    """Return the same numbers, laid out in other ways."""
    apart = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    apart[..., ::2] = x
    unaligned = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    unaligned[...] = x
    constant = x.copy()
    constant.flags.writeable = False
    return {
        "transposed": np.ascontiguousarray(x.swapaxes(1, -1)).swapaxes(1, -1),
        "columns first": np.asfortranarray(x),
        "sliced": apart[..., ::2],
        "backwards": x[..., ::-1].copy()[..., ::-1],
        "unaligned": unaligned,
        "read only": constant,
    }


LAYOUTS = list(layouts(np.zeros((1, 1))))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_memory_do_not_matter(layout):
    x, w, win, groups = problem(3, 4, 6, (9, 8), STEPS, 2)
    y = convolve(x, w, win, groups)
    other = layouts(x)[layout], layouts(w)[layout]
    same(convolve(*other, win, groups), y)
    same(
        convolve_back(layouts(y)[layout], x.shape, other[1], win, groups),
        plain(convolve_back, y, x.shape, w, win, groups),
    )
    pool = windows_of(MaxPool, kernel_shape=[2, 3])
    most = pool.forward(other[0])
    np.testing.assert_array_equal(most, plain(pool.forward, x))
    sent = pool.send(layouts(most[None])[layout], other[0], layouts(most)[layout], x.shape)
    np.testing.assert_array_equal(sent, plain(pool.send, most[None], x, most, x.shape))
    np.testing.assert_array_equal(cpu_kernels.clip(other[0], 0), np.maximum(x, 0))
    found = cpu_kernels.clip_back(layouts(x[None])[layout], other[0], 0)
    np.testing.assert_array_equal(found[0], np.maximum(x, 0))


def test_one_row_for_all_rows():
    x, w, win, groups = problem(1, 4, 6, (9, 8), SQUARE)
    rows = np.broadcast_to(x, (5, *x.shape[1:]))
    y = convolve(rows, w, win, groups)
    same(y, np.broadcast_to(plain(convolve, x, w, win, groups), y.shape))


def test_numbers_in_the_other_byte_order():
    x, w, win, groups = problem(2, 3, 4, (6, 6), SQUARE)
    same(wide(convolve(x.astype(">f8"), w, win, groups)), convolve(x, w, win, groups))


def test_no_rows():
    x, w, win, groups = problem(2, 3, 4, (6, 6), SQUARE)
    assert convolve(x[:0], w, win, groups).shape == (0, 4, 6, 6)
    assert convolve_back(x[:0, :1], (0, 3, 6, 6), w[:1], win, groups).shape == (0, 3, 6, 6)
    assert windows_of(MaxPool, kernel_shape=[2, 2]).forward(x[:0]).shape == (0, 3, 5, 5)


@pytest.mark.parametrize("dtype", ["float16", "int64", "uint8"])
def test_other_types_are_left_to_numpy(dtype):
    x = np.zeros((1, 1, 3, 3), dtype)
    assert not cpu_kernels.serves(x, 2)
    kernel = windows_of(MaxPool, kernel_shape=[2, 2], pads=[0, 0, 1, 1])
    y = kernel.forward(x)
    assert y.dtype == dtype
    sent = kernel.send(np.ones((1, *y.shape)), x, y, x.shape)  # signals are floats all the same
    np.testing.assert_array_equal(sent, np.ones((1, *x.shape)))
    values = np.arange(9.0).reshape(x.shape)
    np.testing.assert_array_equal(kernel.pick(values, x, y), values)


def test_four_spatial_axes_are_left_to_numpy():
    axes = 4
    win = Windows((2,) * axes, (1,) * axes, (1,) * axes, ((0, 1),) * axes)
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 2, *(3,) * axes)), rng.normal(size=(3, 2, *win.kernel))
    assert not cpu_kernels.serves(x, axes)
    same(convolve(x, w, win, 1), plain(convolve, x, w, win, 1))


# -- Winograd -------------------------------------------------------------------------------------

TILED = [
    # rows, channels, outputs, image, pads
    (1, 16, 16, (8, 8), ((1, 1), (1, 1))),
    (2, 17, 20, (9, 13), ((1, 1), (1, 1))),
    (3, 16, 24, (12, 10), ((0, 0), (0, 0))),
    (2, 20, 16, (7, 31), ((2, 0), (1, 2))),
    (2, 16, 18, (9, 9), ((2, 2), (2, 2))),
    (1, 16, 16, (61, 90), ((1, 1), (0, 1))),  # several blocks of rows
    (40, 16, 16, (8, 7), ((1, 1), (0, 0))),  # several images in a block
    (1, 130, 140, (14, 15), ((1, 1), (1, 1))),  # one block, channels and outputs side by side
    (1, 16, 16, (5, 900), ((1, 1), (1, 1))),  # a row is more than a block
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TILED)
def test_winograd(case, dtype):
    rows, channels, outputs, image, pads = case
    x, w, win, _ = problem(rows, channels, outputs, image, (*SQUARE[:3], pads))
    g = np.random.default_rng(1).normal(size=(rows, outputs, *win.out(image)))
    bias = np.random.default_rng(2).normal(size=outputs)
    y = plain(convolve, x, w, win, 1, False, bias)
    back = plain(convolve_back, g, x.shape, w, win, 1, False)
    turned = [(2 - a, 2 - b) for a, b in pads]
    x, w, g, bias = (a.astype(dtype) for a in (x, w, g, bias))
    with threads.pool():
        y1 = cpu_kernels.winograd(x, w, pads, bias)
        back1 = cpu_kernels.winograd(g, w, turned, turned=True)
    assert y1.dtype == back1.dtype == dtype
    same(y1, y)
    same(back1, back)


def test_winograd_pays_for_many_places_and_channels_only():
    def pays(rows, channels, outputs, *image):
        x, w, win, _ = problem(rows, channels, outputs, image, SQUARE)
        return cpu_kernels.winograd_pays(x, w, win.out(image))

    assert pays(1, 32, 32, 32, 32)
    assert pays(4, 64, 64, 16, 16)
    assert not pays(1, 64, 64, 7, 7)  # too few places for a product
    assert not pays(1, 16, 16, 9, 9)  # transforms cost more
    assert not pays(1, 512, 512, 32, 32)  # transformed kernels would take too much memory


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("shape", [(40, 36, 44), (64, 16, 16), (32, 32, 32), (16, 57, 90)])
def test_equal_numbers_give_equal_sums_to_the_last_bit(shape, fast):
    """Maxima of what is made of a plain background are ties, and the first must win.

    In float64: some kernels of BLAS add up float32 in another order for each column.
    """
    c, *image = shape
    _, w, win, _ = problem(1, c, c, image, SQUARE)
    x = np.broadcast_to(np.random.default_rng(0).normal(size=(2, c, 1, 1)), (2, *shape))
    for found in (convolve(x, w, win, 1, fast), convolve_back(x, x.shape, w, win, 1, fast)):
        inner = found[:, :, 1:-1, 1:-1]
        np.testing.assert_array_equal(inner, np.broadcast_to(inner[..., :1, :1], inner.shape))


@pytest.mark.parametrize("channel", [0, 7, 8, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_winograd_of_zeros_is_exactly_zero(dtype, channel):
    x, w, win, _ = problem(2, 17, 16, (31, 30), SQUARE)
    x[:, :, 8:22, 5:25] = 0
    x[1, channel, 15, 15] = 1e-30
    y = cpu_kernels.winograd(x.astype(dtype), w.astype(dtype), win.pads)
    heard = np.ones((2, 31, 30), bool)
    heard[:, 9:21, 6:24] = False
    heard[1, 14:17, 14:17] = True
    np.testing.assert_array_equal((y != 0).any(axis=1) & ~heard, False)
    assert (y != 0).any(axis=1)[:, 8].all()
    bias = np.arange(1, 17).astype(dtype)
    more = cpu_kernels.winograd(x.astype(dtype), w.astype(dtype), win.pads, bias)
    np.testing.assert_array_equal(more, y + bias[:, None, None])


def test_what_is_not_a_number_reaches_the_windows_that_see_it():
    x, w, win, _ = problem(1, 16, 16, (12, 12), SQUARE)
    x[0, 3, 5, 6] = np.nan
    y = cpu_kernels.winograd(x, w, win.pads)
    assert np.isnan(y[0, :, 4:7, 5:8]).all()
    assert np.isfinite(y[0, :, :2]).all()


# -- pooling and activations ----------------------------------------------------------------------


def windows_of(cls, **attributes):
    return cls(schema_defaults(cls.op, 20) | attributes, (True,))


POOLS = {
    "line": ((17,), {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    "square": ((9, 8), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "overlaps": ((9, 11), {"kernel_shape": [3, 4], "strides": [2, 1], "pads": [1, 2, 1, 1]}),
    "holes": ((13, 12), {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [1, 1, 2, 0]}),
    "gaps": ((11, 13), {"kernel_shape": [2, 2], "strides": [3, 4]}),
    "cube": (
        (6, 7, 9),
        {"kernel_shape": [2, 3, 2], "strides": [1, 2, 2], "pads": [0, 1, 1, 1, 1, 0]},
    ),
    "many planes": ((24, 24), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}),
}
SIGNS = {
    "ties": lambda rng, shape: np.round(2 * rng.normal(size=shape)) / 2,
    "NaN": lambda rng, shape: rng.choice([np.nan, 1.0, 2.0, 2.0, -3.0], shape),
    "-inf": lambda rng, shape: rng.choice([-np.inf, 1.0, 2.0, np.inf], shape),
    "zeros of both signs": lambda rng, shape: rng.choice([0.0, -0.0, -1.0], shape),
}


def pooled(name, cls, **attributes):
    image, sizes = POOLS[name]
    rows, channels = (6, 40) if name == "many planes" else (3, 4)
    return windows_of(cls, **sizes, **attributes), (rows, channels, *image)


@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("numbers", SIGNS)
@pytest.mark.parametrize("name", POOLS)
def test_maxima_and_what_they_send_back(name, numbers, ceil_mode):
    rng = np.random.default_rng(0)
    kernel, shape = pooled(name, MaxPool, ceil_mode=ceil_mode)
    exact = SIGNS[numbers](rng, shape)
    for dtype in DTYPES:
        x, values = exact.astype(dtype), rng.normal(size=shape).astype(dtype)
        y = plain(kernel.forward, x)
        heard = y != -np.inf  # what padding wins from such windows is lost with NumPy
        g = (rng.normal(size=(2, *y.shape)) * heard).astype(dtype)
        with threads.pool():
            np.testing.assert_array_equal(kernel.forward(x), y)
            same(kernel.send(g, x, y, shape), plain(kernel.send, g, x, y, shape))
            picked = kernel.pick(values, x, y)
        np.testing.assert_array_equal(picked[heard], plain(kernel.pick, values, x, y)[heard])


def test_padding_never_wins():
    """Not even where all a window sees is -inf, as padding is."""
    kernel = windows_of(MaxPool, kernel_shape=[2, 2], pads=[1, 1, 0, 0])
    x = np.full((1, 1, 2, 2), -np.inf)
    y = kernel.forward(x)
    assert (y == -np.inf).all()
    sent = kernel.send(np.ones((1, *y.shape)), x, y, x.shape)
    np.testing.assert_array_equal(sent[0, 0, 0], [[4, 0], [0, 0]])


@pytest.mark.parametrize("rows, ref_rows", [(3, 1), (1, 3), (3, 3)])
def test_maxima_of_one_row_beside_those_of_all(rows, ref_rows):
    rng = np.random.default_rng(3)
    kernel, shape = pooled("overlaps", MaxPool)
    x, values = rng.normal(size=shape)[:ref_rows], rng.normal(size=shape)[:rows]
    y = kernel.forward(x)
    g = rng.normal(size=(2, 3, *y.shape[1:]))
    for one in (x, x[:1]):
        same(kernel.send(g, one, y, shape), plain(kernel.send, g, one, y, shape))
        found = kernel.pick(values, one, y)
        np.testing.assert_array_equal(found, plain(kernel.pick, values, one, y))


@pytest.mark.parametrize("order", [0, 1])
def test_places_of_maxima(order):
    x = np.round(np.random.default_rng(4).normal(size=(2, 3, 7, 8)), 1)
    sizes = {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1], "storage_order": order}
    kernel = MaxPool(schema_defaults("MaxPool", 20) | sizes, (True, True))
    kernel.n_outputs = 2
    for found, exact in zip(kernel.forward(x), plain(kernel.forward, x), strict=True):
        np.testing.assert_array_equal(found, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("name", POOLS)
def test_means(name, ceil_mode, count, dtype):
    rng = np.random.default_rng(5)
    kernel, shape = pooled(name, AveragePool, ceil_mode=ceil_mode, count_include_pad=count)
    x = rng.normal(size=shape)
    y = plain(kernel.apply, x, 1.0)
    g = rng.normal(size=(2, *y.shape))
    with threads.pool():
        same(kernel.apply(x.astype(dtype), 1.0), y)
        same(kernel.vjp(g.astype(dtype), shape, 1.0), plain(kernel.vjp, g, shape, 1.0))


BOUNDED = {
    "Relu": (Relu, {}, ()),
    "Clip": (Clip, {}, (np.float64(-1), np.float64(2))),
    "Clip from below": (Clip, {}, (np.float64(0.5), None)),
    "Clip from above": (Clip, {}, (None, np.float64(0.5))),
    "Clip without bounds": (Clip, {}, (None, None)),
    "Clip, bounds crossed": (Clip, {}, (np.float64(2), np.float64(-1))),
    "Clip, bounds in arrays": (Clip, {}, (np.array(-1.0), np.array(2.0))),
    "Clip, bounds of one axis": (Clip, {}, (np.array([-1.0]), np.array([2.0]))),
    "Clip of version 6": (Clip6, {"min": -1.0, "max": 2.0}, ()),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (3, 5), (4, 8, 90, 91)])
@pytest.mark.parametrize("name", BOUNDED)
def test_bounds(name, shape, dtype):
    cls, attributes, bounds = BOUNDED[name]
    rng = np.random.default_rng(6)
    special = [np.nan, 0.0, -0.0, np.inf, -np.inf, 1e-40, -1e-40, 2.0, -2.0, 0.5, -1.0, 1.0]
    x, g = rng.choice(special, shape).astype(dtype), rng.normal(size=(3, *shape)).astype(dtype)
    bounds = [None if b is None else b.astype(dtype) for b in bounds]
    kernel = cls(attributes, (True, *(False,) * len(bounds)))
    y = plain(kernel.forward, x, *bounds)
    record = Record((x, *bounds), (y,))
    with threads.pool():
        found, back = kernel.forward(x, *bounds), kernel.gradient(record, (g,))[0]
    np.testing.assert_array_equal(found, y)
    np.testing.assert_array_equal(back, plain(kernel.gradient, record, (g,))[0])
    assert found.dtype == back.dtype == dtype


# -- whole networks -------------------------------------------------------------------------------


def network():
    """A network with every kind of window; its second convolution is one of Winograd's."""
    rng = np.random.default_rng(7)
    nodes, weights, last = [], {}, "x"

    def add(op, *w, **attributes):
        nonlocal last
        names = [f"w{len(weights) + i}" for i in range(len(w))]
        fan = [math.sqrt(v[0].size) if v.ndim > 1 else 10 for v in w]
        weights.update({n: v / f for n, v, f in zip(names, w, fan, strict=True)})
        nodes.append(helper.make_node(op, [last, *names], [f"t{len(nodes)}"], **attributes))
        last = nodes[-1].output[0]

    add("Conv", rng.normal(size=(16, 3, 3, 3)), rng.normal(size=16), pads=[1] * 4)
    add("Relu")
    add("Conv", rng.normal(size=(20, 16, 3, 3)), rng.normal(size=20), pads=[1] * 4)
    add("Relu")
    add("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    add("Conv", rng.normal(size=(20, 1, 3, 3)), pads=[1] * 4, group=20)
    add("Conv", rng.normal(size=(24, 10, 1, 2)), rng.normal(size=24), group=2, dilations=[1, 2])
    add("Relu")
    add("ConvTranspose", rng.normal(size=(24, 6, 2, 2)), strides=[2, 2])
    add("AveragePool", kernel_shape=[2, 2], strides=[2, 2])
    add("Flatten")
    add("MatMul", rng.normal(size=(6 * 10 * 8, 4)))
    return networks.graph(nodes, {"x": (3, 20, 20)}, weights, outputs={last: (4,)})


METHODS = {
    "gradient": (ox.Gradient, {}),
    "integrated gradients": (ox.IntegratedGradient, {"n": 5}),
    "DeepLIFT rescale": (ox.DeepLift, {}),
    "DeepLIFT reveal-cancel": (ox.DeepLift, {"rule_name": "reveal_cancel"}),
    "LRP simple": (ox.LRP, {}),
    "LRP epsilon": (ox.LRP, {"rule_name": "epsilon"}),
    "LRP alpha-beta": (ox.LRP, {"rule_name": "alpha_beta", "rule_param": 2}),
    "LRP all cells": (ox.LRP, {"rule_name": "epsilon", "winner_takes_all": False}),
}


def explained(method, rows, dtype="double"):
    cls, options = METHODS[method]
    x = np.random.default_rng(8).random((rows, 3, 20, 20))
    found = cls(ox.convert(network()), x, dtype=dtype, verbose=False, **options)
    return found.preds[0], found.get_result()


@pytest.mark.parametrize("method", METHODS)
def test_explanations(method):
    for found, exact in zip(explained(method, 3), plain(explained, method, 3), strict=True):
        assert np.abs(exact).max() > 0
        same(np.asarray(found), np.asarray(exact))


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("method", ["gradient", "LRP epsilon", "DeepLIFT rescale"])
@pytest.mark.parametrize("dtype", ["float", "double"])
def test_the_number_of_threads_changes_nothing(method, rows, dtype):
    found = []
    for n in (1, 2, 5):
        threads.set_num_threads(n)
        found.append(explained(method, rows, dtype))
    for other in found[1:]:
        np.testing.assert_array_equal(other[0], found[0][0])
        np.testing.assert_array_equal(other[1], found[0][1])


# -- where it can be used -------------------------------------------------------------------------

available = cpu_kernels.available  # before any test puts another in its place


@pytest.fixture
def asked_again():
    available.cache_clear()
    yield
    available.cache_clear()


def test_without_numba_numpy_does_the_work(monkeypatch, asked_again):
    find = importlib.util.find_spec
    hidden = lambda name, *rest: None if name == "numba" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    monkeypatch.delenv("ONNXPLAIN_COMPILED", raising=False)
    assert not available()
    monkeypatch.setattr(cpu_kernels, "available", available)
    for name in ("convolve", "winograd", "clip", "window_maxima"):
        monkeypatch.setattr(cpu_kernels, name, None)  # not to be called
    assert np.isfinite(explained("gradient", 2)[1]).all()


@pytest.mark.parametrize("value, used", [("0", False), ("1", True)])
def test_the_environment_switches_it_off(value, used, monkeypatch, asked_again):
    monkeypatch.setenv("ONNXPLAIN_COMPILED", value)
    assert available() == used


def run(code, **environment):
    """Run a few lines in a process of their own."""
    command = [sys.executable, "-W", "error", "-c", code]
    subprocess.run(command, check=True, env={**os.environ, **environment})


def test_numba_is_not_loaded_with_the_package():
    run("import sys, onnxplain; assert 'numba' not in sys.modules")


SUMS = """
import numpy as np
from onnxplain.kernels.pooling import WindowSum
pool = WindowSum(dict(kernel_shape=[2], ceil_mode=0, count_include_pad=1), (True,))
assert pool.apply(np.ones((1, 1, 3)), 1.0).tolist() == [[[2, 2]]]
import sys
assert "onnxplain.cpu_loops" in sys.modules
"""


NOWHERE = "import numba.core.caching as c; c.CompileResultCacheImpl._locator_classes = []\n"
UNKNOWN = "import numba, sys; sys.modules['numba.extending'] = None\n"
ADVICE = """
import warnings
from onnxplain import cpu_kernels
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    assert not cpu_kernels.available() and not cpu_kernels.available()
(told,) = found
assert told.category.__name__ == "PerformanceAdvice" and {words!r} in str(told.message)
"""


@pytest.mark.parametrize(
    "obstacle, words", [(NOWHERE, "NUMBA_CACHE_DIR"), (UNKNOWN, "Numba cannot be loaded")]
)
def test_what_keeps_numba_from_being_used_is_told_once(obstacle, words):
    run(obstacle + ADVICE.format(words=words))


def test_no_folder_that_compiled_code_could_be_kept_in():
    run(NOWHERE + SUMS, ONNXPLAIN_COMPILED="1")


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_damaged_files_of_compiled_code(tmp_path, ending):
    run(SUMS, NUMBA_CACHE_DIR=str(tmp_path))
    files = list(tmp_path.rglob(f"*.{ending}"))
    for path in files:
        path.write_bytes(path.read_bytes()[:20])
    assert files
    run(SUMS, NUMBA_CACHE_DIR=str(tmp_path))


def test_a_full_disk(tmp_path):
    full = "import tempfile, numba.core.caching as c\n"
    full += "def fail(*args): raise OSError(28, 'No space left on device')\n"
    full += "c.IndexDataCacheFile.save = fail"
    run(full + SUMS, NUMBA_CACHE_DIR=str(tmp_path))
