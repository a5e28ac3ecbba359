"""Fast 3 x 3 convolutions give what the direct sum gives."""

import gc

import numpy as np
import pytest

from onnxplain import arrays, cpu_kernels
from onnxplain.kernels import convolution, winograd
from onnxplain.kernels.convolution import Windows


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    """Test NumPy's way; test_compiled.py has the other."""
    monkeypatch.setattr(cpu_kernels, "available", lambda: False)


# Rows, input and output channels, height, width, pads of the two axes.
SHAPES = [
    (1, 16, 16, 8, 8, ((1, 1), (1, 1))),
    (2, 17, 20, 9, 13, ((1, 1), (1, 1))),
    (3, 16, 24, 12, 10, ((0, 0), (0, 0))),
    (2, 20, 16, 7, 30, ((2, 0), (1, 2))),
    (1, 16, 16, 60, 40, ((1, 1), (1, 1))),  # several blocks of rows
    (40, 16, 16, 8, 8, ((1, 1), (0, 0))),  # several blocks of images
    (5, 16, 16, 32, 6, ((0, 1), (2, 2))),
]


def problem(shape, dtype=np.float64):
    n, c, o, h, w, pads = shape
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(n, c, h, w)), rng.normal(size=(o, c, 3, 3))
    win = Windows((3, 3), (1, 1), (1, 1), pads)
    g = rng.normal(size=(n, o, *win.out((h, w))))
    return x.astype(dtype), kernel.astype(dtype), win, g.astype(dtype)


def direct(monkeypatch, f, *args):
    with monkeypatch.context() as patch:
        patch.setattr(winograd, "pays", lambda *_: False)
        return f(*args)


@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_and_its_transpose_equal_the_direct_sums(shape, monkeypatch):
    x, w, win, g = problem(shape)
    assert winograd.pays(w, win, 1, g.shape[2:])
    y = direct(monkeypatch, convolution.convolve, x, w, win, 1)
    back = direct(monkeypatch, convolution.convolve_back, g, x.shape, w, win, 1)
    np.testing.assert_allclose(winograd.convolve(x, w, win.pads), y, atol=1e-12)
    np.testing.assert_allclose(winograd.convolve_back(g, w, win.pads), back, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_as_close_as_promised(shape):
    x, w, win, g = problem(shape)
    x32, w32, _, g32 = problem(shape, np.float32)
    for fast, exact in (
        (winograd.convolve(x32, w32, win.pads), winograd.convolve(x, w, win.pads)),
        (winograd.convolve_back(g32, w32, win.pads), winograd.convolve_back(g, w, win.pads)),
    ):
        assert fast.dtype == np.float32
        assert abs(fast - exact).max() < 1e-6 * abs(exact).max()


def test_windows_of_zeros_give_exactly_zero():
    x, w, win, g = problem(SHAPES[4])
    x[:, :, 10:30, 5:25], g[:, :, 40:] = 0, 0
    y, back = winograd.convolve(x, w, win.pads), winograd.convolve_back(g, w, win.pads)
    assert not y[:, :, 11:29, 6:24].any()
    assert y[:, :, 10, 6:24].all()
    assert not back[:, :, 41:].any()
    assert back[:, :, 40].all()


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": (3, 5)},
        {"strides": (1, 2)},
        {"dilations": (2, 1)},
        {"pads": ((3, 0), (0, 0))},
        {"pads": ((-1, 0), (0, 0))},
    ],
)
def test_other_windows_are_left_to_the_direct_sum(change):
    _, w, win, g = problem(SHAPES[0])
    assert not winograd.pays(w, win._replace(**change), 1, g.shape[2:])


def test_few_channels_groups_and_small_maps_do_not_pay():
    _, w, win, _ = problem(SHAPES[0])
    assert not winograd.pays(w[:, :15], win, 1, (8, 8))
    assert not winograd.pays(w, win, 2, (8, 8))
    assert not winograd.pays(w, win, 1, (3, 3))


def test_transformed_kernels_are_kept_as_long_as_the_weights_live():
    w = np.random.default_rng(0).normal(size=(16, 16, 3, 3))
    first, key = arrays.derived(w, "winograd", winograd._transformed), (id(w), "winograd")
    assert arrays.derived(w, "winograd", None) is first
    del w
    gc.collect()
    assert key not in arrays._DERIVED
