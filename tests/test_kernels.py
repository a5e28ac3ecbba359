"""Every differentiable kernel keeps what its passes promise."""

import inspect

import numpy as np
import pytest

from kernel_cases import CASES, IMAGE, NEWEST, SIGNAL, spread
from onnxplain import cpu_kernels
from onnxplain.errors import UnsupportedOpError
from onnxplain.kernels import find, schema_defaults
from onnxplain.kernels.activations import Relu
from onnxplain.kernels.base import _REGISTRY, Note, Record
from onnxplain.rules import DeepLiftSetting, LrpSetting
from onnxplain.testing import check_kernel

SELECTORS = [case for case in CASES if case.kernel_class.family == "selector"]


def named(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@named(CASES)
def test_kernel_keeps_its_promises(case):
    passes = check_kernel(**vars(case))
    assert {"gradient", "deeplift", "relevance"} <= set(passes)


def test_every_differentiable_kernel_has_a_case():
    classes = {c for kernels in _REGISTRY.values() for _, c in kernels}
    differentiable = {c for c in classes if c.family != "constant"}
    missing = differentiable - {case.kernel_class for case in CASES}
    assert sorted(c.__name__ for c in missing) == []


def test_no_registered_kernel_leaves_a_method_of_its_family_open():
    classes = {c for kernels in _REGISTRY.values() for _, c in kernels}
    open_ones = {c.__name__: c.__abstractmethods__ for c in classes if inspect.isabstract(c)}
    assert open_ones == {}


# -- the check itself finds what is wrong ---------------------------------------------------------


def writes(self, x):
    x[x < 0] = 0
    return x


def doubles(self, rec, r, rule, note):
    return self.at(0, 2 * r[0])


def naive(self, x, y, x0, y0):
    with np.errstate(all="ignore"):
        return np.nan_to_num((y - y0) / (x - x0))


@pytest.mark.parametrize(
    "method, replacement, words",
    [
        ("slope", lambda self, x, y: x * 0 + 1, "Relu, gradient against differences: found"),
        ("slope", lambda self, x, y: (x > 0) * np.ones(1), "float32 became float64"),
        ("secant", lambda self, x, y, x0, y0: (x > 0) * 1.0, "Rescale, sum of contributions"),
        ("secant", naive, "equal points against the gradient"),
        ("gradient", lambda self, rec, g: self.at(0, g[0][:, :1]), "signals of shapes"),
        ("relevance", doubles, "relevance, rule Simple.*what went on or was absorbed"),
        ("forward", writes, "gradient writes to its arguments"),
        ("reads", ("outputs",), r"gradient that reads \('outputs',\)"),
    ],
)
def test_check_names_what_is_broken(monkeypatch, method, replacement, words):
    monkeypatch.setattr(cpu_kernels, "available", lambda: False)  # they know no slope
    monkeypatch.setattr(Relu, method, replacement)
    with pytest.raises(AssertionError, match=words):
        check_kernel("Relu", [spread(3, 4)])


def test_check_refuses_what_has_no_kernel():
    with pytest.raises(UnsupportedOpError, match=r"data on inputs \[1\]"):
        check_kernel("Conv", [SIGNAL, spread(5, 4, 3)], active=(1,))


# -- maxima ---------------------------------------------------------------------------------------


def bound(case):
    flags = tuple(i in case.active for i in range(len(case.inputs)))
    opset = case.opset or NEWEST
    return case.kernel_class(schema_defaults(case.op, opset) | case.attributes, flags)


def run(kernel, inputs):
    return Record(tuple(inputs), (kernel.forward(*inputs),))


def coarse(case, seed):
    """Draw data of few different values, so that there are ties."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(-1, 2, x.shape).astype(float) if i in case.active else x
        for i, x in enumerate(case.inputs)
    ]


@named(SELECTORS)
@pytest.mark.parametrize("winner_takes_all", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_multipliers_add_up_where_there_are_ties(case, winner_takes_all, seed):
    kernel = bound(case)
    rec, ref = (run(kernel, coarse(case, s)) for s in (seed, seed + 10))
    dy = rec.outputs[0] - ref.outputs[0]
    m = np.random.default_rng(seed).normal(size=(2, *dy.shape))
    setting = DeepLiftSetting(winner_takes_all=winner_takes_all)
    back = kernel.deeplift(rec, ref, (m,), setting, lambda i: None)
    found = sum(
        (b * (x - x0)).reshape(2, -1).sum(axis=1)
        for b, x, x0 in zip(back, rec.inputs, ref.inputs, strict=True)
        if b is not None
    )
    np.testing.assert_allclose(found, (m * dy).reshape(2, -1).sum(axis=1), rtol=0, atol=1e-12)


@named([case for case in SELECTORS if case.op not in ("Max", "Min") or len(case.active) > 1])
@pytest.mark.parametrize("seed", range(3))
def test_ties_go_to_one_element_only(case, seed):
    kernel = bound(case)
    inputs = [
        np.full_like(x, 9 if case.op == "Min" else -9) if x.dtype == float else x
        for x in case.inputs
    ]
    for i, x in enumerate(coarse(case, seed)):  # constants never win
        inputs[i] = x if i in case.active else inputs[i]
    rec = run(kernel, inputs)
    ones = np.ones((1, *rec.outputs[0].shape))
    for back in (
        kernel.gradient(rec, (ones,)),
        kernel.relevance(rec, (ones,), LrpSetting(), None),
    ):
        assert sum(b.sum() for b in back if b is not None) == ones.size


@pytest.mark.parametrize(
    "op, n_axes, attributes",
    [
        ("MaxPool", 2, {"kernel_shape": (2, 3), "strides": (2, 3)}),
        ("GlobalMaxPool", 2, {}),
        ("ReduceMax", 2, {"axes": (2, 3)}),
        ("ReduceMin", 2, {"axes": (3, 2)}),
        ("ReduceMax", 2, {"axes": (2, 3), "keepdims": 0}),
    ],
)
def test_ties_go_to_the_first_in_row_major_order(op, n_axes, attributes):
    cls = find(op, 11, (True,))
    kernel = cls(schema_defaults(op, 11) | attributes, (True,))
    rec = run(kernel, (np.ones((1, 2, 2, 3)),))
    ones = np.ones((1, *rec.outputs[0].shape))
    expected = np.zeros((1, 1, 2, 2, 3))
    expected[..., 0, 0] = 1
    np.testing.assert_array_equal(kernel.gradient(rec, (ones,))[0], expected)
    np.testing.assert_array_equal(kernel.relevance(rec, (ones,), LrpSetting(), None)[0], expected)
    back = kernel.deeplift(rec, rec, (ones,), DeepLiftSetting(), lambda i: None)
    np.testing.assert_array_equal(back[0], expected)


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_ties_between_tensors_go_to_the_first(op):
    kernel = find(op, NEWEST, (True,) * 3)({}, (True,) * 3)
    a, b, c = np.array([[1.0, 0, 0]]), np.array([[1.0, 0, 0]]), np.array([[1.0, 0, 0]])
    rec, ones = run(kernel, (a, b, c)), np.ones((1, 1, 3))
    for back in (
        kernel.gradient(rec, (ones,)),
        kernel.relevance(rec, (ones,), LrpSetting(), None),
        kernel.deeplift(rec, rec, (ones,), DeepLiftSetting(), lambda i: None),
    ):
        assert [float(s.sum()) for s in back] == [3, 0, 0]


def test_golden_values_of_pools_that_do_not_overlap():
    """Weights (1, 2) after the pool: contributions [1, 0, 0, 8] and [0, 0, 8, 0]."""
    kernel = find("MaxPool", 12, (True,))(
        schema_defaults("MaxPool", 12) | {"kernel_shape": (2,), "strides": (2,)}, (True,)
    )
    x = np.array([[[3.0, 1, 0, 5]], [[1, 2, 4, 4]]])
    x0 = np.array([[[0.0, 2, 1, 0.5]], [[1, 2, 0, 0]]])
    m = np.broadcast_to([[[1.0, 2]]], (2, 1, 2))[None]
    rec, ref = run(kernel, (x,)), run(kernel, (x0,))
    (back,) = kernel.deeplift(rec, ref, (m,), DeepLiftSetting(), lambda i: None)
    np.testing.assert_array_equal(back[0] * (x - x0), [[[1, 0, 0, 8]], [[0, 0, 8, 0]]])


@pytest.mark.parametrize("size, stride", [(2, 2), (3, 1), (3, 2), (4, 2), (5, 1)])
def test_overlapping_pools_are_exact_in_every_channel_and_row(size, stride):
    attributes = {"kernel_shape": (size,), "strides": (stride,)}
    kernel = find("MaxPool", 12, (True,))(schema_defaults("MaxPool", 12) | attributes, (True,))
    rng = np.random.default_rng(0)
    rec, ref = (run(kernel, (rng.normal(size=(4, 3, 11)),)) for _ in range(2))
    dy = rec.outputs[0] - ref.outputs[0]
    for winner_takes_all in (True, False):
        setting = DeepLiftSetting(winner_takes_all=winner_takes_all)
        (m,) = kernel.deeplift(rec, ref, (np.ones((1, *dy.shape)),), setting, lambda i: None)
        found = (m[0] * (rec.inputs[0] - ref.inputs[0])).sum(axis=-1)
        np.testing.assert_allclose(found, dy.sum(axis=-1), rtol=0, atol=1e-13)


def test_relevance_of_a_pool_spreads_like_its_mean_where_the_winner_does_not_take_all():
    attributes = {"kernel_shape": (2, 2), "strides": (2, 2)}
    kernel = find("MaxPool", 12, (True,))(schema_defaults("MaxPool", 12) | attributes, (True,))
    rec = run(kernel, (np.array([[[[1.0, 2], [3, 4]]]]),))
    r, note = np.array([[[[[5.0]]]]]), Note(rows=True)
    setting = LrpSetting(winner_takes_all=False)
    (back,) = kernel.relevance(rec, (r,), setting, note)
    np.testing.assert_allclose(back[0, 0, 0], [[0.5, 1], [1.5, 2]])
    np.testing.assert_allclose(sum(note.absorbed.values()), 0, atol=1e-12)


def test_padding_never_wins():
    attributes = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}
    kernel = find("MaxPool", 12, (True,))(schema_defaults("MaxPool", 12) | attributes, (True,))
    rec = run(kernel, (-abs(IMAGE) - 1,))
    ones = np.ones((1, *rec.outputs[0].shape))
    assert kernel.gradient(rec, (ones,))[0].sum() == ones.size


# -- choices by a condition -----------------------------------------------------------------------


def test_where_sends_each_signal_to_the_side_it_came_from():
    kernel = find("Where", NEWEST, (False, True, True))({}, (False, True, True))
    condition = np.array([[True, False, True]])
    rec = run(kernel, (condition, np.array([[1.0, 2, 3]]), np.array([[4.0], [5.0]])))
    np.testing.assert_array_equal(rec.outputs[0], [[1, 4, 3], [1, 5, 3]])
    g = np.arange(1.0, 7).reshape(1, 2, 3)
    none, to_a, to_b = kernel.gradient(rec, (g,))
    assert none is None
    np.testing.assert_array_equal(to_a, [[[5, 0, 9]]])
    np.testing.assert_array_equal(to_b, [[[2], [5]]])
