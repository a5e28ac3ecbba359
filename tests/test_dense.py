"""What makes dense networks fast changes none of their numbers."""

from itertools import pairwise

import numpy as np
import pytest

import networks
import onnxplain as ox
from onnxplain.arrays import divide, negative, positive
from onnxplain.kernels import linear
from onnxplain.kernels.linear import back_product, product
from onnxplain.threads import pool

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("rows", [1, 95, 96, 700, 4099])
@pytest.mark.parametrize("k, m", [(30, 64), (64, 3), (1, 5), (90, 110), (200, 300)])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_cut_by_rows_or_columns_are_products(rows, k, m, transposed):
    x = RNG.normal(size=(2, rows, k))
    w = RNG.normal(size=(m, k)).T if transposed else RNG.normal(size=(k, m))
    with pool():
        inside = product(x, w)
    for found in (inside, product(x, w), product(np.asfortranarray(x), w)):
        np.testing.assert_allclose(found, x @ w, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)])
def test_products_of_nothing_are_zeros(shape):
    np.testing.assert_array_equal(product(np.ones(shape), np.ones((shape[1], 2))), 0)


@pytest.mark.parametrize("repeated", [(), (0,), (1,), (0, 2), (0, 1, 2)])
def test_signals_that_repeat_go_back_as_others_do(repeated):
    g = RNG.normal(size=[1 if axis in repeated else n for axis, n in enumerate((3, 5, 7))] + [4])
    g, w = np.broadcast_to(g, (3, 5, 7, 4)), RNG.normal(size=(6, 4))
    np.testing.assert_allclose(back_product(g, w), g @ w.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [0, 5, 4096, 10_000])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_halves_of_an_array_have_its_infinities_and_nan(size, dtype):
    x = RNG.normal(size=(size, 2)).astype(dtype)
    x[::7, 0], x[::11, 1], x[::13, 1] = np.nan, np.inf, -np.inf
    for values in (x, x[::2], x.T):
        np.testing.assert_array_equal(positive(values), np.maximum(values, 0))
        np.testing.assert_array_equal(negative(values), np.minimum(values, 0))
        assert positive(values).dtype == dtype


def test_what_stands_for_quotients_by_zero_is_made_where_there_are_some():
    a, b = np.array([1.0, 2.0]), np.array([0.0, 4.0])
    np.testing.assert_array_equal(divide(a, b, lambda: np.array([7.0, 8.0])), [7, 0.5])
    np.testing.assert_array_equal(divide(a, b + 1, lambda: 1 / 0), [1, 0.4])


def converter(*widths):
    weights = {f"w{i}": RNG.normal(size=size) for i, size in enumerate(pairwise(widths))}
    nodes = [
        networks.helper.make_node("MatMul", [f"x{i}", name], [f"x{i + 1}"])
        for i, name in enumerate(weights)
    ]
    nodes[-1].output[0] = "y"
    return ox.convert(networks.graph(nodes, {"x0": widths[:1]}, weights)), weights


@pytest.mark.parametrize("batch", [1, 7, 300, 1000, 5000, 41_234])
@pytest.mark.parametrize("size", [1, 64, 512, 4000])
@pytest.mark.parametrize("runs", [1, 50])
def test_chunks_hold_every_row_once_and_serve_all_threads(batch, size, runs):
    engine = ox.Gradient(converter(4, 3)[0], np.ones((1, 4)))._engine
    blocks = engine.blocks(batch, size, runs)
    assert [b.start for b in blocks] == [0, *(b.stop for b in blocks[:-1])]
    assert blocks[-1].stop == batch
    sizes = [b.stop - b.start for b in blocks]
    assert max(sizes) <= size * 129 / 128
    assert batch < 8 * size or len(sizes) >= 8
    assert len(sizes) != 3


def test_a_chosen_batch_size_is_kept_to():
    engine = ox.Gradient(converter(4, 3)[0], np.ones((1, 4)), batch_size=30)._engine
    assert [b.stop - b.start for b in engine.blocks(70, engine.chunk_rows(3))] == [30, 30, 10]


def test_large_weights_get_more_rows_at_a_time():
    wide = ox.Gradient(converter(4000, 2000, 10)[0], np.ones((1, 4000)))._engine
    narrow = ox.Gradient(converter(8, 8, 10)[0], np.ones((1, 8)))._engine
    assert 200 < wide.chunk_rows(1) <= 512 < narrow.chunk_rows(1)


@pytest.mark.parametrize("nodes", [None, [2], "top2"])
def test_linear_networks_have_the_product_of_their_weights_as_gradient(nodes):
    c, weights = converter(5, 6, 4)
    found = ox.Gradient(c, RNG.normal(size=(3, 5)), output_idx=nodes, dtype="double")
    whole = weights["w0"] @ weights["w1"]
    for row, picked in enumerate(found.output_nodes[0]):
        np.testing.assert_allclose(found.result[0][0][row], whole[:, picked], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (ox.LRP, {"rule_name": "alpha_beta", "rule_param": 2}),
        (ox.LRP, {"rule_name": "z_plus"}),
        (ox.LRP, {"rule_name": "gamma"}),
    ],
)
@pytest.mark.parametrize("rows", [1, 30])
def test_parts_of_large_weights_are_made_some_columns_at_a_time(monkeypatch, method, options, rows):
    c, _ = converter(40, 90, 70)
    x = RNG.normal(size=(rows, 40))
    whole = method(c, x, dtype="double", **options).get_result()
    monkeypatch.setattr(linear, "DERIVED_BYTES", 0)
    monkeypatch.setattr(linear, "_SIDE_BYTES", 8 * 40 * 7)
    parts = []
    monkeypatch.setattr(
        linear.Side, "__getitem__", lambda s, where: parts.append(where) or s.part(s.w[where])
    )
    found = method(c, x, dtype="double", **options).get_result()
    assert len(parts) > 10
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-12 * np.abs(whole).max())
