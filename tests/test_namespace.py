"""Kernels stay in the array library of their data: a stand-in for CuPy that refuses NumPy's hands.

What is compared is every pass of every kernel with the same pass on NumPy arrays; kernels of GPUs
run on the processor.
"""

import sys

import numpy as np
import pytest

from kernel_cases import CASES, NEWEST
from onnxplain import cpu_kernels
from onnxplain.arrays import is_device, is_float, namespace
from onnxplain.errors import UnsupportedOpError
from onnxplain.kernels import find, schema_defaults
from onnxplain.kernels.base import Note, Pair, Record
from onnxplain.rules import (
    AlphaBeta,
    ConnectionSetting,
    DeepLiftSetting,
    Epsilon,
    Flat,
    Gamma,
    Guard,
    LrpSetting,
    QuotientRescale,
    RevealCancel,
    Simple,
    WSquare,
    ZBox,
)
from stand_in import install, ndarray

# Functions and types of CuPy that kernels use. Look a name up in CuPy's reference before adding it.
# fmt: off
USED = {
    "cupy": {
        "add", "arange", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctan2", "arctanh",
        "argmax", "argmin", "argsort", "asarray", "ascontiguousarray", "broadcast_to", "ceil",
        "clip", "concatenate", "cos", "cosh", "einsum", "empty", "exp", "expand_dims", "expm1",
        "eye", "fft", "fft.fft", "fft.ifft", "fft.irfft", "fft.rfft", "flip", "floor", "fmod",
        "full_like", "hypot", "int64", "isfinite", "isinf", "isnan", "linalg", "linalg.det",
        "linalg.svd", "log", "log1p", "logaddexp", "matmul", "maximum", "minimum", "mod",
        "moveaxis", "multiply", "ones", "ones_like", "pad", "reciprocal", "repeat", "result_type",
        "rint", "sign", "sin", "sinh", "sqrt", "subtract", "take", "take_along_axis", "tan", "tanh",
        "tensordot", "tile", "where", "zeros", "zeros_like",
    },
    "cupyx.scipy.special": {"erf", "erfc", "expit"},
}
# fmt: on
# Where kernels read a number from the device: each stops the host until the device is done.
WAITS = {
    "Pow": "the exponent",
    **dict.fromkeys(("Resize", "Resize10", "Upsample9"), "scales; whether weights are negative"),
    "Upsample7": "whether weights are negative",
    "RoiAlign": "how many samples a region has; whether input and reference look at the same",
}


@pytest.fixture
def cupy(monkeypatch):
    """Stand in for CuPy, beside NumPy's way: what is compiled adds up in another order."""
    monkeypatch.setattr(cpu_kernels, "available", lambda: False)
    return install(monkeypatch)


# -- every pass -----------------------------------------------------------------------------------


LRP = [
    LrpSetting(rule)
    for rule in (
        Simple(),
        Epsilon(0.1),
        AlphaBeta(2),
        Gamma(),
        WSquare(),
        Flat(),
        ZBox(-3, 3),
        Simple(guard=Guard(1e-7, zeros_only=True)),
        Epsilon(0.1, guard_zeros=True, zero_bias=True),
        AlphaBeta(1, weights_only=True),
        AlphaBeta(2, whole_bias=True),
        Gamma(weights_only=True),
    )
] + [LrpSetting(winner_takes_all=False), LrpSetting(equal_shares=True)]
DEEPLIFT = [
    DeepLiftSetting(),
    DeepLiftSetting(RevealCancel()),
    DeepLiftSetting(RevealCancel(guarded_division=True)),
    DeepLiftSetting(RevealCancel(pseudocount=1e-7)),
    DeepLiftSetting(QuotientRescale()),
    DeepLiftSetting(QuotientRescale(1e-7, "reference"), moved_maxima_only=True),
    DeepLiftSetting(elementwise_softmax=True, centred_softmax=True),
    DeepLiftSetting(winner_takes_all=False),
    DeepLiftSetting(cross_maximum=False),
]


class Passes:
    """All passes of a kernel on arrays made by `put`."""

    def __init__(self, case, put):
        self.case, self.put = case, put
        flags = tuple(i in case.active for i in range(len(case.inputs)))
        opset = case.opset or (1 if case.domain else NEWEST)
        attributes = schema_defaults(case.op, opset, case.domain) | case.attributes
        self.kernel = find(case.op, opset, flags, case.domain)(attributes, flags, case.n_outputs)

    def run(self, inputs):
        outputs = self.kernel.forward(*inputs)
        return Record(tuple(inputs), outputs if isinstance(outputs, tuple) else (outputs,))

    def point(self, seed):
        """Return the inputs with their data shuffled; whole numbers stay on the host."""
        rng = np.random.default_rng(seed)
        inputs = [
            rng.permutation(x.ravel()).reshape(x.shape) if i in self.case.active else x
            for i, x in enumerate(self.case.inputs)
        ]
        return [x if x is None or not is_float(x.dtype) else self.put(x) for x in inputs]

    def signals(self, rec, seed=5):
        rng = np.random.default_rng(seed)
        carries = self.kernel.active_outputs()
        pairs = zip(rec.outputs, carries, strict=True)
        return tuple(self.put(rng.normal(size=(2, *y.shape))) if c else None for y, c in pairs)

    def all(self):
        """Yield the arrays of every pass, with its name."""
        kernel, rec, ref = self.kernel, self.run(self.point(0)), self.run(self.point(1))
        g = self.signals(rec)
        yield "forward", rec.outputs
        yield "gradient", kernel.gradient(rec, g)
        for setting in LRP:
            note = Note(rows=self.case.rows)
            yield f"relevance {setting}", kernel.relevance(rec, g, setting, note)
        for setting in DEEPLIFT:
            yield f"deeplift {setting}", kernel.deeplift(rec, ref, g, setting, self.parts(rec, ref))
        split = kernel.difference_parts(rec, ref, self.parts(rec, ref))
        if split is not None:
            yield "parts", split
            pair = tuple(None if s is None else Pair(s, 2 * s) for s in g)
            yield "pair", kernel.deeplift(rec, ref, pair, DEEPLIFT[1], self.parts(rec, ref))
        for innsight in (False, True):
            try:
                yield "connection", kernel.connection(rec, g, ConnectionSetting(innsight))
            except UnsupportedOpError:
                continue

    @staticmethod
    def parts(rec, ref):
        def split(i):
            dx = rec.inputs[i] - ref.inputs[i]
            xp = namespace(dx)
            return xp.maximum(dx, dx.dtype.type(0)), xp.minimum(dx, dx.dtype.type(0))

        return split


def flat(signals):
    for s in signals:
        yield from (s.positive, s.negative) if isinstance(s, Pair) else (s,)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_stays_on_the_device(cupy, case):
    host, device = Passes(case, np.asarray), Passes(case, ndarray)
    for (name, expected), (_, found) in zip(host.all(), device.all(), strict=True):
        for a, b in zip(flat(expected), flat(found), strict=True):
            if a is None:
                assert b is None
                continue
            assert is_device(b), f"{name} leaves the device"
            np.testing.assert_allclose(b._array, a, rtol=1e-12, atol=1e-12, err_msg=name)
    assert not ndarray.waits or case.kernel_class.__name__ in WAITS, dict(ndarray.waits)
    assert cupy.used <= USED["cupy"]
    assert sys.modules["cupyx.scipy.special"].used <= USED["cupyx.scipy.special"]


@pytest.mark.parametrize(
    "op, n_inputs, attributes",
    [
        *((op, 1, {}) for op in ("Floor", "Ceil", "Round", "Sign", "IsNaN", "IsInf")),
        *((op, 2, {}) for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
        ("ArgMax", 1, {"axis": 1}),
        ("ArgMax", 1, {"axis": 1, "select_last_index": 1, "keepdims": 0}),
        ("ArgMin", 1, {}),
        ("Mod", 2, {"fmod": 1}),
        ("Hardmax", 1, {"axis": 0}),
        *((op, 2, {}) for op in ("And", "Or", "Xor")),
        ("Not", 1, {}),
    ],
)
def test_steps_stay_on_the_device(cupy, op, n_inputs, attributes):
    flags = (True,) * n_inputs
    kernel = find(op, NEWEST, flags)(schema_defaults(op, NEWEST) | attributes, flags)
    inputs = [np.random.default_rng(i).normal(size=(3, 4)) for i in range(n_inputs)]
    inputs = [x > 0 for x in inputs] if op in ("And", "Or", "Xor", "Not") else inputs
    found = kernel.forward(*map(ndarray, inputs))
    assert is_device(found)
    np.testing.assert_array_equal(found._array, kernel.forward(*inputs))
    assert not ndarray.waits
    assert cupy.used <= USED["cupy"]


# -- the stand-in itself --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda x: np.exp(x),
        lambda x: np.asarray(x),
        lambda x: np.where(x > 0, x, 0),
        lambda x: np.concatenate([x, x]),
        lambda x: np.ndim(x),
        lambda x: x + np.ones(2),
        lambda x: np.ones(2) * x,
        lambda x: x.astype(float) @ np.ones(2),
        lambda x: x[np.array([0])],
        lambda x: list(x),
    ],
)
def test_the_stand_in_refuses_numpy(cupy, use):
    with pytest.raises(TypeError):
        use(ndarray(np.ones(2)))


def test_the_stand_in_computes_with_scalars_and_waits_for_numbers(cupy):
    x = ndarray(np.array([1.0, 2.0], np.float32))
    y = np.float32(3) * x + 1
    assert is_device(y)
    assert y.dtype == np.float32
    assert float(y.sum()) == 11
    assert ndarray.waits["__float__"] == 1
    assert namespace(np.ones(1), x) is cupy
