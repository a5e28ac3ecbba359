"""Every linear kernel under every LRP rule, against the plain formulas on its matrix.

The matrix is the kernel's own, one column per element of the input; the formulas are written out
here a second time: c_ji = w_ji x_i is what input i contributes to output j.
"""

import numpy as np
import pytest

from kernel_cases import CASES, NEWEST
from onnxplain.arrays import is_float
from onnxplain.errors import RuleError
from onnxplain.kernels import schema_defaults
from onnxplain.kernels.base import Record
from onnxplain.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    LrpSetting,
    Pass,
    Simple,
    WSquare,
    ZBox,
    ZPlus,
)

LINEAR = [case for case in CASES if case.kernel_class.family == "linear"]
TINY = 1e-15  # the stabiliser in float64


def shares(contributions, bias, r, epsilon=TINY, at_zero=1.0):
    """Return sum_j c_ji r_j / (sum_i c_ji + b_j), the denominator held away from 0."""
    z = contributions.sum(axis=1) + bias
    z = z + epsilon * np.where(z == 0, at_zero, np.sign(z))
    return contributions.T @ (r / z)


def pos(a):
    return np.where(a > 0, a, 0)


def neg(a):
    return np.where(a < 0, a, 0)


def simple(w, x, b, r):
    return shares(w * x, b, r)


def epsilon(w, x, b, r):
    return shares(w * x, b, r, 0.1)


def alpha_beta(alpha):
    def rule(w, x, b, r):
        c = w * x
        return shares(pos(c), pos(b), alpha * r) + shares(neg(c), neg(b), (1 - alpha) * r, TINY, -1)

    return rule


def gamma(gain):
    def rule(w, x, b, r):
        """Raise the contributions, and the part of the bias, that have the sign of the output."""
        c, up = w * x, (w @ x + b) > 0
        raised, lowered = c + gain * pos(c), c + gain * neg(c)
        return shares(raised, b + gain * pos(b), r * up) + shares(
            lowered, b + gain * neg(b), r * ~up
        )

    return rule


def w_square(w, x, b, r):
    return shares(w * w, b * b, r)


def flat(w, x, b, r):
    return shares((w != 0) * 1.0, 0, r)


def z_box(low, high):
    return lambda w, x, b, r: shares(w * x - pos(w) * low - neg(w) * high, 0, r)


RULES = [
    (Simple(), simple),
    (Epsilon(0.1), epsilon),
    (AlphaBeta(0.5), alpha_beta(0.5)),
    (AlphaBeta(1), alpha_beta(1)),
    (AlphaBeta(2), alpha_beta(2)),
    (AlphaBeta(-0.5), alpha_beta(-0.5)),
    (ZPlus(), alpha_beta(1)),
    (Gamma(0), simple),
    (Gamma(0.25), gamma(0.25)),
    (Gamma(7), gamma(7)),
    (WSquare(), w_square),
    (Flat(), flat),
    (ZBox(-3, 3), z_box(-3, 3)),
    (ZBox(0, 2.5), z_box(0, 2.5)),
]


class Subject:
    """A linear kernel at a point, with its matrix and its bias."""

    def __init__(self, case):
        inputs = [x if x is None or not is_float(x.dtype) else x.astype(float) for x in case.inputs]
        flags = tuple(i in case.active for i in range(len(inputs)))
        opset = case.opset or NEWEST
        attributes = schema_defaults(case.op, opset, case.domain) | case.attributes
        self.kernel = case.kernel_class(attributes, flags)
        self.position = case.active[0]
        # Drawn anew: sums of evenly spaced numbers vanish, and denominators with them.
        self.x = np.random.default_rng(1).normal(size=inputs[self.position].shape)
        self.inputs = [self.x if i == self.position else v for i, v in enumerate(inputs)]
        self.rec = Record(tuple(self.inputs), (self.forward(self.x),))
        self.b = self.forward(np.zeros_like(self.x)).ravel()
        units = np.eye(self.x.size).reshape(-1, *self.x.shape)
        self.w = np.stack([self.forward(u).ravel() - self.b for u in units], axis=1)
        self.w[abs(self.w) < 1e-13] = 0  # what is left of the bias

    def forward(self, x):
        return self.kernel.forward(
            *(x if i == self.position else v for i, v in enumerate(self.inputs))
        )

    def relevance(self, rule, r):
        r = r.reshape(1, *self.rec.outputs[0].shape)
        back = self.kernel.relevance(self.rec, (r,), LrpSetting(rule), None)
        return back[self.position].ravel()


@pytest.fixture(scope="module")
def subjects():
    return [Subject(case) for case in LINEAR]


cases = pytest.mark.parametrize("i", range(len(LINEAR)), ids=[case.name for case in LINEAR])


@cases
@pytest.mark.parametrize("rule, formula", RULES, ids=[repr(rule) for rule, _ in RULES])
def test_relevance_is_the_formula_on_the_matrix(subjects, i, rule, formula):
    subject = subjects[i]
    r = np.random.default_rng(0).normal(size=subject.rec.outputs[0].size)
    if scales_only(subject):  # one contribution to each output: whatever the rule, it gets all
        expected = (subject.w != 0).T.astype(float) @ r
    else:
        expected = formula(subject.w, subject.x.ravel(), subject.b, r)
    # A denominator that nearly vanishes magnifies rounding.
    scale = abs(expected).max()
    np.testing.assert_allclose(subject.relevance(rule, r), expected, rtol=1e-9, atol=1e-11 * scale)


def scales_only(subject):
    return subject.kernel.diagonal and subject.kernel.operand(subject.rec.inputs)[2] is None


@cases
def test_matrix_is_the_transpose_of_the_gradient(subjects, i):
    subject = subjects[i]
    g = np.random.default_rng(0).normal(size=(1, *subject.rec.outputs[0].shape))
    (back,) = (b for b in subject.kernel.gradient(subject.rec, (g,)) if b is not None)
    np.testing.assert_allclose(back.ravel(), subject.w.T @ g.ravel(), rtol=1e-10, atol=1e-11)


@cases
def test_pass_keeps_relevance_in_its_place_or_is_refused(subjects, i):
    subject = subjects[i]
    w, r = subject.w, np.random.default_rng(0).normal(size=subject.rec.outputs[0].size)
    if scales_only(subject):
        np.testing.assert_allclose(subject.relevance(Pass(), r), (w != 0).T.astype(float) @ r)
        return
    if subject.kernel.diagonal and subject.x.shape == subject.rec.outputs[0].shape:
        assert np.array_equal(w, np.diag(np.diag(w)))
        np.testing.assert_array_equal(subject.relevance(Pass(), r), r)
        return
    with pytest.raises(RuleError, match="keeps each element in its place"):
        subject.relevance(Pass(), r)


W, B, X = [[1.0, -2, 3], [-1, 0.5, 2]], [0.5, -0.7], [1.0, -1, 2]


@pytest.mark.parametrize(
    "formula, expected",
    [
        (simple, [[1, 2, 6], [-1, -0.5, 4]]),
        (gamma(0.25), [[1, 2, 6], [-0.642857, -0.321428, 3.214285]]),
        (alpha_beta(1), [[1, 2, 6], [0, 0, 1.8]]),
        (alpha_beta(2), [[2, 4, 12], [-0.818181, -0.409091, 3.6]]),
        (w_square, [[0.666667, 2.666666, 6], [0.313589, 0.078397, 1.254355]]),
        (flat, [[3.166666] * 3, [0.6] * 3]),
        (z_box(-3, 3), [[1.407407, 2.814815, 5.277778], [0.276923, 0.138462, 1.384615]]),
    ],
)
def test_the_formulas_give_what_zennit_gives(formula, expected):
    w, x, b = np.array(W), np.array(X), np.array(B)
    z = w @ x + b
    found = [formula(w, x, b, z * np.eye(2)[j]) for j in range(2)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
