"""Secants of elementwise operators keep their digits, however close or far apart the points are."""

from functools import cache

import numpy as np
import pytest

from kernel_cases import NEWEST
from onnxplain.kernels import find, schema_defaults

mpmath = pytest.importorskip("mpmath")
mp = mpmath.mp

# Far down its tail exp(-x^2) has a rounding error of x^2 units in the last place.
TOLERANCE = {np.float32: 1e-5, np.float64: 2e-13}
STEPS = [1e-12, 1e-9, 1e-7, 1e-6, 1e-4, 1e-3, 0.03, 0.09, 0.3, 0.9, 1.1, 3, 10]
# None where a slope passes through 0: digits are lost there whatever one does.
SIZES = [1e-12, 1e-7, 1e-3, 0.1, 0.3, 0.8, 1, 1.4, 2.5, 2.9999, 3, 4, 5, 6.5, 9, 15, 40, 80, 1e4]
LINE = sorted([*(-v for v in SIZES), 0.0, *SIZES])
POSITIVE = [1e-12, 1e-7, *SIZES[2:]]
SHORT = [v for v in LINE if abs(v) < 75]
UNIT = sorted({s * v for v in (0, 1e-12, 1e-7, 1e-3, 0.1, 0.3, 0.8, 0.97, 0.999) for s in (-1, 1)})
DOMAINS = {"Asin": (-1, 1), "Acos": (-1, 1), "Atanh": (-1, 1), "Acosh": (1, np.inf)}


def sigmoid(x):
    return 1 / (1 + mp.exp(-x))


def phi(x):
    return mp.erfc(-x / mp.sqrt(2)) / 2


def clip(x, low, high):
    return min(max(x, low), high)


def exponential(scale, alpha, rate):
    return lambda x: scale * (x if x > 0 else alpha * mp.expm1(x * rate) / rate)


def shrink(x):
    return mp.mpf(0) if abs(x) <= 0.5 else x - mp.sign(x) / 4


def tanh_gelu(x):
    return x * sigmoid(2 * mp.sqrt(2 / mp.pi) * (x + mp.mpf(0.044715) * x**3))


SELU = float(np.float32(1.0507010221481323)), float(np.float32(1.6732631921768188))

# op, attributes, exact function, points
FUNCTIONS = [
    ("Relu", {}, lambda x: max(x, 0), LINE),
    ("LeakyRelu", {"alpha": 0.25}, lambda x: x if x > 0 else x / 4, LINE),
    ("ThresholdedRelu", {"alpha": 0.5}, lambda x: x if x > 0.5 else mp.mpf(0), LINE),
    ("Abs", {}, abs, LINE),
    ("HardSigmoid", {"alpha": 0.25, "beta": 0.5}, lambda x: clip(x / 4 + 0.5, 0, 1), LINE),
    ("HardSigmoid", {"alpha": -0.25, "beta": 0.5}, lambda x: clip(-x / 4 + 0.5, 0, 1), LINE),
    ("HardSwish", {}, lambda x: x * clip(x / 6 + 0.5, 0, 1), LINE),
    ("Sigmoid", {}, sigmoid, LINE),
    ("Tanh", {}, mp.tanh, LINE),
    ("Softplus", {}, lambda x: mp.log1p(mp.exp(x)), LINE),
    ("Softsign", {}, lambda x: x / (1 + abs(x)), LINE),
    ("Elu", {"alpha": 1.5}, exponential(1, 1.5, 1), LINE),
    ("Selu", dict(zip(("gamma", "alpha"), SELU, strict=True)), exponential(*SELU, 1), LINE),
    ("Celu", {"alpha": 0.5}, exponential(1, 1, 2), LINE),
    ("Gelu", {"approximate": "none"}, lambda x: x * phi(x), LINE),
    ("Gelu", {"approximate": "tanh"}, tanh_gelu, LINE),
    ("Mish", {}, lambda x: x * mp.tanh(mp.log1p(mp.exp(x))), LINE),
    ("Swish", {"alpha": 1.0}, lambda x: x * sigmoid(x), LINE),
    ("Swish", {"alpha": 1.75}, lambda x: x * sigmoid(1.75 * x), LINE),
    ("Erf", {}, mp.erf, LINE),
    ("Erfc", {}, mp.erfc, LINE),
    ("Exp", {}, mp.exp, [v for v in LINE if v < 75]),
    ("Log", {}, mp.log, POSITIVE),
    ("Sqrt", {}, mp.sqrt, POSITIVE),
    ("Reciprocal", {}, lambda x: 1 / x, POSITIVE),
    ("Reciprocal", {}, lambda x: 1 / x, [-v for v in POSITIVE]),
    ("Sin", {}, mp.sin, LINE),
    ("Cos", {}, mp.cos, LINE),
    ("Tan", {}, mp.tan, LINE),
    ("Atan", {}, mp.atan, LINE),
    ("Asinh", {}, mp.asinh, LINE),
    ("Sinh", {}, mp.sinh, SHORT),
    ("Cosh", {}, mp.cosh, SHORT),
    ("Asin", {}, mp.asin, UNIT),
    ("Acos", {}, mp.acos, UNIT),
    ("Atanh", {}, mp.atanh, UNIT),
    ("Acosh", {}, mp.acosh, [1 + 1e-7, 1.001, 1.1, 1.5, *(v for v in SIZES if v > 2)]),
    ("Shrink", {"lambd": 0.5, "bias": 0.25}, shrink, LINE),
]
PARAMETERS = [
    ("Div", 1, -1.5, lambda x: -1.5 / x, POSITIVE),
    ("PRelu", 0, 0.25, lambda x: x if x > 0 else x / 4, LINE),
    *(
        ("Pow", 0, p, lambda x, p=p: x ** mp.mpf(p), POSITIVE)
        for p in (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, -0.5, -1.0, -2.0)
    ),
    *(("Pow", 1, w, lambda x, w=w: mp.mpf(w) ** x, SHORT) for w in (0.25, 0.5, 1.5, 3.0)),
    *(("Pow", 0, p, lambda x, p=p: x ** int(p), LINE) for p in (1.0, 2.0, 3.0, 4.0, 5.0)),
    *(("Pow", 0, p, lambda x, p=p: x ** int(p), [-v for v in POSITIVE]) for p in (-1.0, -2.0)),
]


def pairs(points, dtype, low, high):
    """Return points and others near and far between two bounds, both exact in the type."""
    steps = np.array([*STEPS, *(-s for s in STEPS)])
    x = np.repeat(np.array(points), len(steps)).astype(dtype)
    x0 = (x.astype(float) + np.tile(steps, len(points))).astype(dtype)
    inside = (x != x0) & ((min(points) < 0) | (x0 > 0)) & ((max(points) > 0) | (x0 < 0))
    inside &= (low < x0) & (x0 < high)
    return x[inside], x0[inside]


def error_of(found, f, a, b, dtype):
    """Return the error of a secant relative to its size.

    Where the secant passes through 0 between two slopes that do not, their size counts instead;
    numbers next to the smallest there are count as 0.
    """
    a, b = mp.mpf(a), mp.mpf(b)
    exact = (f(a) - f(b)) / (a - b)
    error, size = abs(found - exact), max(abs(exact), mp.mpf(float(np.finfo(dtype).tiny)) ** 0.75)
    if error > TOLERANCE[dtype] * size:
        h = mp.mpf(10) ** -20 * max(abs(a), abs(b))
        size = max(size, min(abs(f(v + h) - f(v - h)) / (2 * h) for v in (a, b)))
    return float(error / size), float(exact)


def worst(kernel, params, f, points, dtype):
    """Return the largest error of a secant, and where it is."""
    x, x0 = pairs(points, dtype, *DOMAINS.get(kernel.op, (-np.inf, np.inf)))
    params = [np.array(p, dtype) for p in params]
    y, y0 = kernel.value(x, *params), kernel.value(x0, *params)
    found = kernel.secant(x, y, x0, y0, *params)
    assert found.dtype == dtype
    assert np.isfinite(found).all()
    f = cache(f)
    with mp.workdps(60 if dtype == np.float32 else 330):  # erf(26) is 1 up to the 296th digit
        values = zip(found.tolist(), x.tolist(), x0.tolist(), strict=True)
        errors = [(*error_of(v, f, a, b, dtype), v, a, b) for v, a, b in values]
    error, exact, v, a, b = max(errors)
    return error, f"x={a:.9g}, x0={b:.9g}: {v:.9g}, exact {exact:.9g}"


def bind(op, attributes, flags=(True,)):
    return find(op, NEWEST, flags)(schema_defaults(op, NEWEST) | attributes, flags)


dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@dtypes
@pytest.mark.parametrize(
    "op, attributes, f, points",
    FUNCTIONS,
    ids=lambda v: str(v) if isinstance(v, str | dict) else "",
)
def test_secant_keeps_its_digits(op, attributes, f, points, dtype):
    error, where = worst(bind(op, attributes), (), f, points, dtype)
    assert error < TOLERANCE[dtype], where


@dtypes
@pytest.mark.parametrize(
    "op, position, parameter, f, points",
    PARAMETERS,
    ids=lambda v: str(v) if isinstance(v, str | float) else "",
)
def test_secant_with_a_parameter_keeps_its_digits(op, position, parameter, f, points, dtype):
    flags = (position == 0, position == 1)
    error, where = worst(bind(op, {}, flags), (parameter,), f, points, dtype)
    assert error < TOLERANCE[dtype], where


@dtypes
@pytest.mark.parametrize("op", sorted({op for op, _, _, points in FUNCTIONS if points is LINE}))
def test_nothing_overflows_far_out(op, dtype):
    """Neither slopes nor secants of finite inputs are infinite, undefined, or warn."""
    kernel = bind(op, {})
    sides = np.array([1e9, 1e4, 700.0, 90.0, 1e-30, 0.0])
    points = np.concatenate([sides, -sides]).astype(dtype)
    x, x0 = (v.ravel() for v in np.meshgrid(points, points))
    y, y0 = kernel.forward(x), kernel.forward(x0)
    assert np.isfinite(kernel.slope(x, y)).all()
    assert np.isfinite(kernel.secant(x, y, x0, y0)).all()
    equal = x == x0
    np.testing.assert_allclose(
        kernel.secant(x, y, x0, y0)[equal], kernel.slope(x, y)[equal], rtol=1e-5, atol=1e-30
    )
