"""What users get wrong: refused at once, in one short sentence, by the package's own exceptions.

A case is a call and a pattern of its message: what came, what was expected or what to do.
"""

import random
import re
import signal
import threading
import tracemalloc
import warnings
from contextlib import contextmanager

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import helper, numpy_helper, parser

import onnxplain as ox
from onnxplain.errors import (
    ArgumentError,
    DataError,
    DeviceError,
    DtypeError,
    MissingPackageError,
    ModelError,
    ModelFileError,
    OnnxplainError,
    RuleError,
    SelectionError,
    ShapeError,
    UnknownArgumentError,
    UnsupportedOpError,
)
from onnxplain.methods.engine import Engine

LONGEST_MESSAGE = 350
SECONDS = 10
MEGABYTES = 200
RNG = np.random.default_rng(0)


# -- models ----------------------------------------------------------------------------------------


def model(graph, opset=17, **weights):
    """Return a model from text; whole numbers become int64 weights, other numbers float32."""
    domains = f'["": {opset}, "my.ops": 1]'
    proto = parser.parse_model(f"<ir_version: 9, opset_import: {domains}> {graph}")
    for name, w in weights.items():
        w = np.asarray(w)
        w = w.astype(np.int64 if w.dtype.kind in "iu" else np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(w, name))
    return proto


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


TABLE = ox.convert(
    model(
        "g (float[N,3] x) => (float[N,4] y)"
        "{h = Gemm(x, w, b)  r = Relu(h)  s = Gemm(r, v)  y = Softmax<axis = 1>(s)}",
        w=normal(3, 5), b=normal(5), v=normal(5, 4),
    ),
    input_names=["age", "height", "weight"],
    output_names=["cat", "dog", "cow", "hen"],
)  # fmt: skip
IMAGE = ox.convert(
    model("g (float[N,2,4,5] x) => (float[N,3,2,3] y) {h = Conv(x, w)  y = Relu(h)}",
          w=normal(3, 2, 3, 3))
)  # fmt: skip
TWO = ox.convert(
    model(
        "g (float[N,3] a, float[N,2] b) => (float[N,2] u, float[N,2] v)"
        "{u = MatMul(a, w)  r = Relu(u)  v = Add(r, b)}",
        w=normal(3, 2),
    )
)
TOKENS = ox.convert(
    model(
        "g (int64[N,4] ids, float[N,4] x) => (float[N,4] y) {e = Gather(w, ids)  y = Mul(e, x)}",
        w=normal(7),
    )
)

GATED = ox.convert(model("g (float[N,3] x) => (float[N,3] y) {s = Tanh(x)  y = Mul(x, s)}"))

X = RNG.standard_normal((4, 3))
PIXELS = RNG.standard_normal((2, 2, 4, 5))
A, B = X, RNG.standard_normal((4, 2))
IDS = np.array([[0, 1, 2, 3]])
ONES = np.ones((1, 4))


def with_nan(value):
    x = X.copy()
    x[2, 1] = value
    return x


# -- how a case is checked -------------------------------------------------------------------------


@contextmanager
def time_limit(seconds):
    """Raise in what hangs; only the main thread of a system with alarms can."""
    if not hasattr(signal, "setitimer") or threading.current_thread() != threading.main_thread():
        yield
        return

    def stop(*_):
        raise TimeoutError(f"no answer within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refused(call, kind, pattern):
    """Check type, text and length of the error that a call raises."""
    with time_limit(SECONDS), pytest.raises(OnnxplainError) as caught:
        call()
    message = str(caught.value)
    assert isinstance(caught.value, kind), (type(caught.value), message)
    assert re.search(pattern, message), message
    assert len(message) <= LONGEST_MESSAGE, (len(message), message)


@pytest.fixture
def no_work(monkeypatch):
    """Let no method run the model."""

    def forward(*_, **__):
        raise AssertionError("the model was run before the argument was refused")

    monkeypatch.setattr(Engine, "forward", forward)


# -- data ------------------------------------------------------------------------------------------

DATA = {
    "one instance without batch axis": (
        lambda: ox.LRP(TABLE, X[0]), ShapeError, r"shape \(3,\).*expects \(n, 3\).*data\[None\]"),
    "too many features": (
        lambda: ox.LRP(TABLE, np.ones((4, 5))), ShapeError, r"\(4, 5\).*\(n, 3\)"),
    "too many axes": (
        lambda: ox.LRP(TABLE, X[None]), ShapeError, r"\(1, 4, 3\).*\(n, 3\)"),
    "one number": (lambda: ox.LRP(TABLE, 3.0), ShapeError, r"shape \(\).*\(n, 3\)"),
    "channels last": (
        lambda: ox.Gradient(IMAGE, np.moveaxis(PIXELS, 1, -1)), ShapeError,
        r"\(2, 4, 5, 2\).*\(n, 2, 4, 5\).*channels_first=False"),
    "channels first": (
        lambda: ox.Gradient(IMAGE, PIXELS, channels_first=False), ShapeError,
        r"\(2, 2, 4, 5\).*\(n, 4, 5, 2\).*channels_first=True"),
    "image of another size": (
        lambda: ox.Gradient(IMAGE, np.ones((1, 2, 8, 8))), ShapeError, r"\(1, 2, 8, 8\)"),
    "no batch axis in an image": (
        lambda: ox.Gradient(IMAGE, PIXELS[0]), ShapeError, r"\(2, 4, 5\).*data\[None\]"),
    "no batch axis in one of two": (
        lambda: ox.Gradient(TWO, [A[0], B]), ShapeError,
        r"data\[0\].*input 'a'.*\(n, 3\).*data\[0\]\[None\]"),
    "empty batch": (lambda: ox.LRP(TABLE, X[:0]), DataError, r"no rows.*at least one"),
    "nothing": (lambda: ox.LRP(TABLE, None), ArgumentError, r"data is missing; give an array"),
    "empty list": (lambda: ox.LRP(TABLE, []), DataError, r"shape \(0,\)|0 arrays|no rows"),
    "one array for two inputs": (
        lambda: ox.LRP(TWO, A), DataError, r"holds 1 array.*2 inputs: a, b.*list"),
    "three arrays for two inputs": (
        lambda: ox.LRP(TWO, [A, B, B]), DataError, r"holds 3 arrays.*2 inputs: a, b"),
    "two arrays for one input": (
        lambda: ox.LRP(TABLE, [X, X]), DataError, r"holds 2 arrays.*1 input: x"),
    "None in a list": (lambda: ox.LRP(TWO, [A, None]), DataError, r"data\[1\] is None"),
    "swapped inputs": (lambda: ox.LRP(TWO, [B, A]), ShapeError,
        r"data\[0\].*\(4, 2\).*'a'.*\(n, 3\)"),
    "missing key": (
        lambda: ox.LRP(TWO, {"a": A, "c": B}), DataError, r"no entry 'b'.*keys are a, c"),
    "key too many": (
        lambda: ox.LRP(TWO, {"a": A, "b": B, "c": B}), DataError, r"'c'.*no input.*a, b"),
    "a frame for two inputs": (
        lambda: ox.LRP(TWO, pd.DataFrame(A)), DataError, r"holds 1 array.*2 inputs"),
    "unequal rows": (lambda: ox.LRP(TWO, [A, B[:2]]), DataError, r"numbers of rows.*4.*2"),
    "strings": (
        lambda: ox.LRP(TABLE, X.astype(str)), DtypeError, r"<U\d+.*numbers are expected"),
    "a file name": (lambda: ox.LRP(TABLE, "data.csv"), DtypeError, r"<U8.*numbers"),
    "objects": (
        lambda: ox.LRP(TABLE, np.full((4, 3), object())), DtypeError, r"numbers"),
    "numbers as text in objects": (
        lambda: ox.LRP(TABLE, X.astype(str).astype(object)), DtypeError, r"text.*numbers"),
    "a column of words": (
        lambda: ox.LRP(TABLE, pd.DataFrame({"a": [1.0], "b": ["x"], "c": [2.0]})), DtypeError,
        r"text.*numbers"),
    "missing values of pandas": (
        lambda: ox.LRP(TABLE, pd.DataFrame(np.ones((2, 3))).astype("Int64").where(lambda d: d < 0)),
        DataError, r"NaN|NA"),
    "complex": (lambda: ox.LRP(TABLE, X + 1j), DtypeError, r"complex128.*numbers"),
    "dates": (
        lambda: ox.LRP(TABLE, np.zeros((4, 3), "datetime64[s]")), DtypeError, r"datetime64"),
    "a dict as data": (lambda: ox.LRP(TABLE, {}), DataError, r"no entry 'x'.*empty"),
    "a set": (lambda: ox.LRP(TABLE, {1, 2}), DtypeError, r"set.*array of numbers"),
    "a function": (lambda: ox.LRP(TABLE, len), DtypeError, r"array of numbers"),
    "ragged lists": (lambda: ox.LRP(TABLE, [[1, 2], [1]]), DtypeError, r"list.*array of numbers"),
    "NaN": (lambda: ox.LRP(TABLE, with_nan(np.nan)), DataError, r"NaN.*row 2"),
    "infinity": (lambda: ox.LRP(TABLE, with_nan(np.inf)), DataError, r"infinite.*row 2"),
    "too large for float32": (
        lambda: ox.LRP(TABLE, with_nan(1e300)), DataError, r'float32.*row 2.*dtype="double"'),
    "fractions for token ids": (
        lambda: ox.Gradient(TOKENS, [IDS + 0.5, ONES]), DtypeError,
        r"data\[0\].*whole numbers.*int64"),
    "NaN for token ids": (
        lambda: ox.Gradient(TOKENS, [IDS * np.nan, ONES]), DataError, r"data\[0\].*NaN"),
    "token ids beyond their type": (
        lambda: ox.Gradient(TOKENS, [IDS * 1e30, ONES]), DataError, r"data\[0\].*int64"),
    "unknown token": (
        lambda: ox.Gradient(TOKENS, [IDS + 9, ONES]), OnnxplainError,
        r"Gather_0.*9 to 12.*length 7"),
    "predicting from nothing": (lambda: TABLE(None), ArgumentError, r"data is missing"),
    "predicting from a wrong shape": (lambda: TABLE(X.T), ShapeError, r"\(3, 4\).*\(n, 3\)"),
    "predicting with a wrong batch size": (
        lambda: TABLE(X, batch_size=0), ArgumentError, r"batch_size.*>= 1.*got 0"),
    "predicting with a wrong flag": (
        lambda: TABLE(X, channels_first="yes"), ArgumentError, r"channels_first.*True or False"),
}  # fmt: skip

REFERENCES = {
    "x_ref of several rows": (
        lambda: ox.DeepLift(TABLE, X, x_ref=X), ShapeError, r"x_ref has 4 rows.*one.*DeepSHAP"),
    "x_ref of another shape": (
        lambda: ox.IntegratedGradient(TABLE, X, x_ref=np.ones((1, 5))), ShapeError,
        r"x_ref.*\(1, 5\).*\(n, 3\)"),
    "x_ref of too many axes": (
        lambda: ox.DeepLift(TABLE, X, x_ref=np.ones((1, 1, 3))), ShapeError, r"x_ref.*\(1, 1, 3\)"),
    "x_ref for one of two inputs": (
        lambda: ox.DeepLift(TWO, [A, B], x_ref=A[:1]), DataError, r"x_ref.*2 inputs"),
    "x_ref of unequal rows": (
        lambda: ox.DeepLift(TWO, [A, B], x_ref=[A[:1], B[:2]]), DataError, r"x_ref.*rows"),
    "x_ref with NaN": (
        lambda: ox.DeepLift(TABLE, X, x_ref=np.full((1, 3), np.nan)), DataError, r"x_ref.*NaN"),
    "x_ref without rows": (
        lambda: ox.DeepLift(TABLE, X, x_ref=X[:0]), DataError, r"x_ref has no rows"),
    "x_ref of text": (lambda: ox.DeepLift(TABLE, X, x_ref="zeros"), DtypeError, r"x_ref.*numbers"),
    "data_ref of another shape": (
        lambda: ox.DeepSHAP(TABLE, X, data_ref=np.ones((3, 4))), ShapeError, r"data_ref.*\(3, 4\)"),
    "data_ref without rows": (
        lambda: ox.ExpectedGradient(TABLE, X, data_ref=X[:0]), DataError, r"data_ref has no rows"),
    "data_ref channels last": (
        lambda: ox.DeepSHAP(IMAGE, PIXELS, data_ref=np.moveaxis(PIXELS, 1, -1)), ShapeError,
        r"data_ref.*channels stand elsewhere"),
    "data_ref with a missing key": (
        lambda: ox.DeepSHAP(TWO, [A, B], data_ref={"a": A}), DataError, r"data_ref.*'b'"),
}  # fmt: skip

# -- selection, arguments, rules -------------------------------------------------------------------

SELECTION = {
    "index too large": (
        lambda: ox.LRP(TABLE, X, output_idx=4), SelectionError, r"output_idx 4.*4 nodes.*0 to 3"),
    "negative index": (
        lambda: ox.LRP(TABLE, X, output_idx=[0, -1]), SelectionError, r"-1.*0 to 3"),
    "boolean index": (lambda: ox.LRP(TABLE, X, output_idx=True), SelectionError, r"True"),
    "fraction as index": (lambda: ox.LRP(TABLE, X, output_idx=1.5), SelectionError, r"1\.5"),
    "float array as index": (
        lambda: ox.LRP(TABLE, X, output_idx=np.array([1.0])), SelectionError,
        r"whole numbers.*1\.0"),
    "mask as index": (
        lambda: ox.LRP(TABLE, X, output_idx=np.array([True, False])), SelectionError,
        r"mask of shape \(2,\).*shape \(4,\)"),
    "label as index": (
        lambda: ox.LRP(TABLE, X, output_idx="dog"), SelectionError, r"'dog'.*output_label"),
    "index twice": (
        lambda: ox.LRP(TABLE, X, output_idx=[1, 1]), SelectionError, r"node 1 \(dog\).*twice"),
    "no index": (lambda: ox.LRP(TABLE, X, output_idx=[]), SelectionError, r"no output node"),
    "no index in any output": (
        lambda: ox.LRP(TWO, [A, B], output_idx=[None, []]), SelectionError, r"no output node"),
    "a dict as index": (
        lambda: ox.LRP(TABLE, X, output_idx={"y": 1}), SelectionError, r"dict.*list"),
    "too many outputs": (
        lambda: ox.LRP(TWO, [A, B], output_idx=[[0], [0], [0]]), SelectionError,
        r"3 entries.*2 outputs"),
    "index beyond the second output": (
        lambda: ox.LRP(TWO, [A, B], output_idx=[None, [2]]), SelectionError,
        r"output_idx 2.*output 1 has 2 nodes"),
    "place outside the output": (
        lambda: ox.Gradient(IMAGE, PIXELS, output_idx=[(0, 5, 0)]), SelectionError,
        r"\(0, 5, 0\).*\(3, 2, 3\)"),
    "place of too few axes": (
        lambda: ox.Gradient(IMAGE, PIXELS, output_idx=[(0, 1)]), SelectionError, r"\(0, 1\)"),
    "two-dimensional array as index": (
        lambda: ox.LRP(TABLE, X, output_idx=np.zeros((1, 2, 2), int)), SelectionError,
        r"output_idx"),
    "unknown label": (
        lambda: ox.LRP(TABLE, X, output_label="wolf"), SelectionError,
        r"'wolf' is unknown.*cat, dog, cow, hen"),
    "number as label": (
        lambda: ox.LRP(TABLE, X, output_label=1), SelectionError, r"output_label.*1.*output_idx"),
    "label twice": (
        lambda: ox.LRP(TABLE, X, output_label=["cat", "cat"]), SelectionError, r"twice"),
    "label of another output": (
        lambda: ox.LRP(TWO, [A, B], output_label=[None, ["Y9"]]), SelectionError, r"'Y9'"),
    "index and label disagree": (
        lambda: ox.LRP(TABLE, X, output_idx=0, output_label="dog"), SelectionError,
        r"different nodes; give one"),
    "label that two nodes have": (
        lambda: ox.LRP(ox.convert(TABLE_PROTO, output_names=["a", "a", "b", "c"]), X,
                       output_label="a"),
        SelectionError, r"'a'.*2 nodes.*output_idx"),
}  # fmt: skip

TABLE_PROTO = model("g (float[N,3] x) => (float[N,4] y) {y = MatMul(x, w)}", w=normal(3, 4))

ARGUMENTS = {
    "data in place of the converter": (
        lambda: ox.LRP(X, TABLE), ArgumentError, r"converter first, then data"),
    "a path in place of the converter": (
        lambda: ox.LRP("model.onnx", X), ArgumentError, r"Converter.*got str.*convert\(model\)"),
    "a model in place of the converter": (
        lambda: ox.Gradient(TABLE_PROTO, X), ArgumentError, r"got ModelProto.*convert\(model\)"),
    "unknown argument": (
        lambda: ox.LRP(TABLE, X, rule="epsilon"), UnknownArgumentError,
        r"LRP has no argument 'rule'.*rule_name"),
    "argument of another method": (
        lambda: ox.Gradient(TABLE, X, n=5), UnknownArgumentError, r"Gradient has no argument 'n'"),
    "innsight's spelling": (
        lambda: ox.IntegratedGradient(TABLE, X, xref=X[:1]), UnknownArgumentError, r"x_ref"),
    "channels_first as a word": (
        lambda: ox.LRP(TABLE, X, channels_first="last"), ArgumentError, r"channels_first.*'last'"),
    "ignore_last_act as a number": (
        lambda: ox.LRP(TABLE, X, ignore_last_act=1), ArgumentError, r"ignore_last_act.*got 1"),
    "winner_takes_all as a number": (
        lambda: ox.DeepLift(TABLE, X, winner_takes_all=0), ArgumentError,
        r"winner_takes_all.*got 0"),
    "times_input as None": (
        lambda: ox.Gradient(TABLE, X, times_input=None), ArgumentError, r"times_input.*None"),
    "verbose as a number": (lambda: ox.LRP(TABLE, X, verbose=2), ArgumentError, r"verbose.*2"),
    "integer dtype": (
        lambda: ox.LRP(TABLE, X, dtype="int32"), DtypeError, r'"float", "double".*\'int32\''),
    "unknown dtype": (lambda: ox.LRP(TABLE, X, dtype="single!"), DtypeError, r"'single!'"),
    "dtype None": (lambda: ox.LRP(TABLE, X, dtype=None), DtypeError, r"None"),
    "dtype of a list": (lambda: ox.LRP(TABLE, X, dtype=[1]), DtypeError, r"\[1\]"),
    "complex dtype": (lambda: ox.LRP(TABLE, X, dtype=np.complex64), DtypeError, r"complex64"),
    "unknown device": (
        lambda: ox.LRP(TABLE, X, device="tpu"), DeviceError, r'"cpu", "cuda".*\'tpu\''),
    "device of an array": (lambda: ox.LRP(TABLE, X, device=X), DeviceError, r'"cpu", "cuda"'),
    "device that is not there": (
        lambda: ox.LRP(TABLE, X, device="cuda"), (DeviceError, MissingPackageError), r"cuda"),
    "batch size 0": (lambda: ox.LRP(TABLE, X, batch_size=0), ArgumentError, r"batch_size.*0"),
    "batch size as fraction": (
        lambda: ox.LRP(TABLE, X, batch_size=2.5), ArgumentError, r"batch_size.*2\.5"),
    "negative seed": (lambda: ox.SmoothGrad(TABLE, X, seed=-1), ArgumentError, r"seed.*-1"),
    "seed as text": (lambda: ox.SmoothGrad(TABLE, X, seed="a"), ArgumentError, r"seed.*'a'"),
    "unknown library": (
        lambda: ox.LRP(TABLE, X, like="tf"), ArgumentError, r"innsight.*got 'tf'"),
    "like of an array": (lambda: ox.LRP(TABLE, X, like=X), ArgumentError, r"like.*innsight"),
    "n = 0": (lambda: ox.SmoothGrad(TABLE, X, n=0), ArgumentError, r"n must.*got 0"),
    "n as fraction": (
        lambda: ox.IntegratedGradient(TABLE, X, n=2.5), ArgumentError, r"n must.*2\.5"),
    "n as boolean": (
        lambda: ox.ExpectedGradient(TABLE, X, n=True), ArgumentError, r"n must.*True"),
    "n beyond memory": (
        lambda: ox.IntegratedGradient(TABLE, X, n=10**12), ArgumentError, r"n must.*1,000,000"),
    "noise beyond memory": (
        lambda: ox.SmoothGrad(IMAGE, PIXELS, n=10**12), ArgumentError, r"n must.*1,000,000"),
    "negative noise": (
        lambda: ox.SmoothGrad(TABLE, X, noise_level=-0.1), ArgumentError, r"noise_level.*-0\.1"),
    "infinite noise": (
        lambda: ox.SmoothGrad(TABLE, X, noise_level=np.inf), ArgumentError, r"noise_level.*inf"),
    "NaN noise": (
        lambda: ox.SmoothGrad(TABLE, X, noise_level=np.nan), ArgumentError, r"noise_level.*nan"),
    "complex noise": (
        lambda: ox.SmoothGrad(TABLE, X, noise_level=np.complex64(1)), ArgumentError,
        r"noise_level"),
    "unknown quadrature": (
        lambda: ox.IntegratedGradient(TABLE, X, quadrature="simpson"), ArgumentError,
        r"riemann_right.*gauss_legendre.*'simpson'"),
    "quadrature of a list": (
        lambda: ox.IntegratedGradient(TABLE, X, quadrature=["trapezoid"]), ArgumentError,
        r"quadrature"),
    "one point of a trapezoid": (
        lambda: ox.IntegratedGradient(TABLE, X, n=1, quadrature="trapezoid"), ArgumentError,
        r"n >= 2"),
    "too many Gauss points": (
        lambda: ox.IntegratedGradient(TABLE, X, n=50_000, quadrature="gauss_legendre"),
        ArgumentError, r"gauss_legendre.*n <= 1,000"),
    "limit_ref = 0": (lambda: ox.DeepSHAP(TABLE, X, limit_ref=0), ArgumentError, r"limit_ref.*0"),
    "limit_ref None": (
        lambda: ox.DeepSHAP(TABLE, X, limit_ref=None), ArgumentError, r"limit_ref.*None"),
    "times_input without data": (
        lambda: ox.ConnectionWeights(TABLE, times_input=True), ArgumentError, r"needs data"),
    "connection weights of text": (
        lambda: ox.ConnectionWeights(TABLE, "x", times_input=True), DtypeError, r"numbers"),
}  # fmt: skip

RULES = {
    "unknown rule": (
        lambda: ox.LRP(TABLE, X, rule_name="eps"), RuleError, r"'eps' is unknown.*epsilon"),
    "rule of a list": (
        lambda: ox.LRP(TABLE, X, rule_name=["epsilon"]), RuleError, r"\['epsilon'\]"),
    "class of a rule": (
        lambda: ox.LRP(TABLE, X, rule_name=ox.rules.Epsilon), RuleError, r"Epsilon"),
    "rule None for a layer": (
        lambda: ox.LRP(TABLE, X, rule_name={"Dense": None}), RuleError, r"None"),
    "rule of a list for a layer": (
        lambda: ox.LRP(TABLE, X, rule_name={"Dense": []}), RuleError, r"\[\]"),
    "unknown rule for a layer that is not there": (
        lambda: ox.LRP(TABLE, X, rule_name={"Conv2D_Layer": "eps"}), RuleError, r"'eps'"),
    "key that names nothing": (
        lambda: ox.LRP(TABLE, X, rule_name={"Dens": "epsilon"}), RuleError,
        r"names 'Dens'.*Dense_Layer"),
    "parameter for a key that names nothing": (
        lambda: ox.LRP(TABLE, X, rule_name="epsilon", rule_param={7: 0.1}), RuleError, r"names 7"),
    "parameter of text": (
        lambda: ox.LRP(TABLE, X, rule_name="epsilon", rule_param="0.1"), RuleError,
        r"rule_param.*'0\.1'"),
    "parameter NaN": (
        lambda: ox.LRP(TABLE, X, rule_name="alpha_beta", rule_param=np.nan), RuleError, r"nan"),
    "parameter of a list": (
        lambda: ox.LRP(TABLE, X, rule_name="gamma", rule_param=[1]), RuleError, r"\[1\]"),
    "complex parameter": (
        lambda: ox.LRP(TABLE, X, rule_name="epsilon", rule_param=1j), RuleError, r"1j"),
    "negative epsilon": (
        lambda: ox.LRP(TABLE, X, rule_name="epsilon", rule_param=-1), RuleError, r">= 0.*-1"),
    "negative gamma": (
        lambda: ox.LRP(TABLE, X, rule_name="gamma", rule_param=-1), RuleError, r">= 0.*-1"),
    "parameter for a rule without one": (
        lambda: ox.LRP(TABLE, X, rule_param=0.1), RuleError, r"'simple' has no parameter.*epsilon"),
    "parameter beside a rule value": (
        lambda: ox.LRP(TABLE, X, rule_name=ox.rules.Epsilon(0.1), rule_param=0.2), RuleError,
        r"has no parameter|rule_param"),
    "z_box without bounds": (
        lambda: ox.LRP(TABLE, X, rule_name="z_box"), RuleError, r"ZBox\(low, high\)"),
    "bounds upside down": (
        lambda: ox.rules.ZBox(1, 0), RuleError, r"low.*high"),
    "bounds of text": (lambda: ox.rules.ZBox("a", "b"), RuleError, r"'a'"),
    "alpha of text": (lambda: ox.rules.AlphaBeta("a"), RuleError, r"alpha.*'a'"),
    "epsilon of text": (lambda: ox.rules.Epsilon("a"), RuleError, r"epsilon.*'a'"),
    "pass on a dense layer": (
        lambda: ox.LRP(TABLE, X, rule_name={"Dense": "pass"}), RuleError, r"pass.*Gemm"),
    "LRP rule for DeepLift": (
        lambda: ox.DeepLift(TABLE, X, rule_name="epsilon"), RuleError,
        r"rescale, reveal_cancel.*'epsilon'"),
    "DeepLift rule of a list": (
        lambda: ox.DeepSHAP(TABLE, X, rule_name=["rescale"]), RuleError, r"rescale, reveal_cancel"),
    "DeepLift rule for LRP": (
        lambda: ox.LRP(TABLE, X, rule_name=ox.rules.Rescale()), RuleError, r"Rescale"),
    "method without a rule for an operator": (
        lambda: ox.ConnectionWeights(GATED), UnsupportedOpError,
        r"Mul_1.*no rule for ConnectionWeights.*coverage\('ConnectionWeights'\)"),
    "unknown method": (
        lambda: TABLE.coverage("shapley"), ArgumentError, r"'shapley'.*deepshap"),
    "a number as method": (lambda: TABLE.coverage(3), ArgumentError, r"no method 3"),
}  # fmt: skip

EARLY = {
    f"{what}: {name}": case
    for what, cases in {
        "data": {k: v for k, v in DATA.items() if k != "unknown token"},
        "selection": SELECTION,
        "arguments": ARGUMENTS,
        "rules": RULES,
        "references": REFERENCES,
    }.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize("call, kind, pattern", EARLY.values(), ids=EARLY)
def test_wrong_arguments_are_refused_before_the_model_runs(no_work, call, kind, pattern):
    refused(call, kind, pattern)


def test_an_unknown_token_is_named_when_the_model_runs():
    refused(*DATA["unknown token"])


# -- results ---------------------------------------------------------------------------------------

RESULT = ox.LRP(TABLE, X)

RESULTS = {
    "type unknown": (lambda: RESULT.get_result("table"), ArgumentError, r"'table'.*'data.frame'"),
    "type of a list": (lambda: RESULT.get_result(["array"]), ArgumentError, r"\['array'\]"),
    "type None": (lambda: RESULT.get_result(None), ArgumentError, r"None"),
    "plot of a row that is not there": (
        lambda: RESULT.plot(data_idx=4), SelectionError, r"data_idx.*4"),
    "plot of no row": (lambda: RESULT.plot(data_idx=[]), (SelectionError, ArgumentError),
        r"data_idx"),
    "plot of a node that was not explained": (
        lambda: ox.LRP(TABLE, X, output_idx=0).plot(output_idx=3), SelectionError,
        r"output_idx.*3"),
    "plot of an unknown label": (
        lambda: RESULT.plot(output_label="wolf"), SelectionError, r"'wolf'"),
    "unknown aggregation": (
        lambda: ox.Gradient(IMAGE, PIXELS).plot(aggr_channels="max"), ArgumentError, r"'max'"),
    "plot_global of connection weights": (
        lambda: ox.ConnectionWeights(TABLE).plot_global(), OnnxplainError,
        r"ConnectionWeights|global"),
    "ledger of a method without one": (
        lambda: ox.Gradient(TABLE, X).ledger(), ArgumentError, r"Gradient keeps no ledger; LRP"),
    "ledger of connection weights": (
        lambda: ox.ConnectionWeights(TABLE).ledger(), ArgumentError, r"keeps no ledger"),
}  # fmt: skip


@pytest.mark.parametrize("call, kind, pattern", RESULTS.values(), ids=RESULTS)
def test_wrong_questions_to_a_result_are_refused(call, kind, pattern):
    refused(call, kind, pattern)


# -- models ----------------------------------------------------------------------------------------

OPEN = model("g (float[N,C] x) => (float[N,C] y) {y = Relu(x)}")


def changed(change, base=TABLE_PROTO):
    proto = onnx.ModelProto()
    proto.CopyFrom(base)
    change(proto)
    return proto


def lying():
    def change(proto):
        proto.graph.initializer[0].dims[:] = [2**20, 2**20]

    return changed(change)


def cyclic():
    def change(proto):
        proto.graph.node[0].input[0] = "z"
        proto.graph.node.append(helper.make_node("Relu", ["y"], ["z"]))

    return changed(change)


def dangling():
    return changed(lambda proto: proto.graph.node[0].input.__setitem__(0, "nowhere"))


def output_twice():
    return changed(lambda proto: proto.graph.output.append(proto.graph.output[0]))


def long_names():
    def change(proto):
        proto.graph.node[0].name = "x" * 1000
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(normal(4, 2), "w"))

    return changed(change)


DIMENSIONS = {
    "open shape": (lambda: ox.convert(OPEN), ShapeError, r"'x'.*'C'.*give input_dim"),
    "shape that does not fit": (
        lambda: ox.convert(TABLE_PROTO, input_dim=(5,)), ShapeError, r"\(5,\).*'x'.*3"),
    "input_dim with the batch axis": (
        lambda: ox.convert(TABLE_PROTO, input_dim=(1, 3)), ShapeError,
        r"\(1, 3\).*without the batch axis"),
    "negative size": (
        lambda: ox.convert(OPEN, input_dim=(-3,)), ShapeError, r"whole numbers > 0.*-3"),
    "fraction as size": (lambda: ox.convert(OPEN, input_dim=(2.5,)), ShapeError, r"2\.5"),
    "boolean as size": (lambda: ox.convert(OPEN, input_dim=(True,)), ShapeError, r"True"),
    "text as size": (lambda: ox.convert(OPEN, input_dim="3"), ShapeError, r"'3'"),
    "one number as shape": (lambda: ox.convert(OPEN, input_dim=3), ShapeError, r"tuple.*3"),
    "shapes of two inputs for one": (
        lambda: ox.convert(OPEN, input_dim=[(3,), (3,)]), ShapeError, r"2 shapes.*1 input"),
    "huge input": (
        lambda: ox.convert(OPEN, input_dim=(10**12,)), ShapeError, r"1000000000000.*elements"),
    "names too few": (
        lambda: ox.convert(TABLE_PROTO, input_names=["a", "b"]), ShapeError,
        r"input_names.*\(2,\).*\(3,\)"),
    "names of too many axes": (
        lambda: ox.convert(TABLE_PROTO, output_names=[["a"], ["b"]]), ShapeError, r"output_names"),
    "numbers as names": (
        lambda: ox.convert(TABLE_PROTO, input_names=[1, 2, 3]), SelectionError,
        r"input_names.*strings.*int"),
    "one text as names": (
        lambda: ox.convert(TABLE_PROTO, input_names="abc"), SelectionError, r"input_names.*'abc'"),
    "names nested too deep": (
        lambda: ox.convert(TABLE_PROTO, input_names=[[[["a", "b", "c"]]]]),
        (SelectionError, ShapeError),
        r"input_names"),
    "names as a number": (
        lambda: ox.convert(TABLE_PROTO, input_names=3), SelectionError, r"input_names.*int"),
    "unknown dtype": (lambda: ox.convert(TABLE_PROTO, dtype="int"), DtypeError, r"'int'"),
    "flag that is none": (
        lambda: ox.convert(TABLE_PROTO, save_model_as_dict="no"), ArgumentError,
        r"save_model_as_dict.*True or False"),
    "unknown tensor": (
        lambda: ox.convert(TABLE_PROTO, outputs=["logits"]), ModelError, r"'logits'.*y"),
    "no tensor": (lambda: ox.convert(TABLE_PROTO, outputs=[]), SelectionError, r"outputs"),
    "one text as tensors": (
        lambda: ox.convert(TABLE_PROTO, outputs="y"), SelectionError, r"outputs.*\['y'\]"),
    "a number as tensors": (
        lambda: ox.convert(TABLE_PROTO, outputs=3), SelectionError, r"outputs.*list"),
    "a number in tensors": (
        lambda: ox.convert(TABLE_PROTO, outputs=[3]), SelectionError, r"outputs.*names"),
    "a tensor twice": (
        lambda: ox.convert(TABLE_PROTO, outputs=["y", "y"]), SelectionError, r"'y'.*twice"),
    "weights as output": (
        lambda: ox.convert(TABLE_PROTO, outputs=["w"]), ModelError, r"w.*depends"),
}  # fmt: skip

KINDS = {
    "None": (lambda: ox.convert(None), DtypeError, r"NoneType.*path.*ModelProto"),
    "number": (lambda: ox.convert(3), DtypeError, r"int.*path"),
    "array": (lambda: ox.convert(X), DtypeError, r"numpy.ndarray.*path"),
    "graph": (lambda: ox.convert(TABLE_PROTO.graph), DtypeError, r"GraphProto.*ModelProto"),
    "converter": (lambda: ox.convert(TABLE), DtypeError, r"Converter already"),
    "class": (lambda: ox.convert(onnx.ModelProto), DtypeError, r"class"),
    "empty bytes": (lambda: ox.convert(b""), ModelFileError, r"empty"),
    "random bytes": (
        lambda: ox.convert(np.random.default_rng(1).bytes(5000)), ModelFileError,
        r"5,000 bytes|ONNX"),
    "truncated": (
        lambda: ox.convert(TABLE_PROTO.SerializeToString()[:60]), ModelError, r"truncated|damaged"),
    "half of an empty model": (
        lambda: ox.convert(onnx.ModelProto()), ModelError, r"no graph|export"),
    "cycle": (lambda: ox.convert(cyclic()), ModelError, r"cycle.*MatMul_0"),
    "dangling tensor": (lambda: ox.convert(dangling()), ModelError, r"'nowhere'"),
    "output twice": (lambda: ox.convert(output_twice()), ModelError, r"'y' is there twice"),
    "sizes that lie": (lambda: ox.convert(lying()), ModelError, r"'w'"),
    "custom op": (
        lambda: ox.convert(model("g (float[N,3] x) => (float[N,3] y) {y = my.ops.Magic(x)}")),
        UnsupportedOpError, r"my\.ops\.Magic.*outputs="),
    "op that no standard has": (
        lambda: ox.convert(model("g (float[N,3] x) => (float[N,3] y) {y = Magic(x)}")),
        ModelError, r"'Magic'"),
    "op newer than the opset": (
        lambda: ox.convert(model("g (float[N,3] x) => (float[N,3] y) {y = Gelu(x)}", 17)),
        ModelError, r"'Gelu'.*opset 20"),
    "opset newer than known": (
        lambda: ox.convert(model("g (float[N,3] x) => (float[N,3] y) {y = Relu(x)}", 99)),
        ModelError, r"opset 99"),
    "opset too old": (
        lambda: ox.convert(model("g (float[N,3] x) => (float[N,3] y) {y = Relu(x)}", 5)),
        ModelError, r"opset 5.*7"),
    "op without a kernel": (
        lambda: ox.convert(model(
            "g (float[N,3] x) => (float[N,3] y) {y = Bernoulli(x)}")),
        UnsupportedOpError, r"Bernoulli_0.*Bernoulli.*outputs="),
    "op with a kernel for weights only": (
        lambda: ox.convert(model(
            "g (float[N,3] x) => (float[N,3] y) {y = PRelu(w, x)}", w=np.ones(3))),
        UnsupportedOpError, r"PRelu_0.*opset 17.*inputs x.*outputs="),
    "nothing but steps": (
        lambda: ox.convert(model("g (float[N,3] x) => (float[N,3] y) {y = Floor(x)}")),
        ModelError, r"none of the outputs y depends"),
    "no float input": (
        lambda: ox.convert(model("g (int64[N,3] x) => (float[N,3] y) {y = Gather(w, x)}", w=X[0])),
        ModelError, r"no input of a float type.*x"),
    "no input": (
        lambda: ox.convert(model("g () => (float[3] y) {y = Relu(w)}", w=X[0])),
        ModelError, r"no input"),
    "no float output": (
        lambda: ox.convert(model(
            "g (float[N,3] x) => (int64[N,1] y) {y = ArgMax<axis = 1>(x)}")),
        ModelError, r"no output of a float type.*y.*outputs="),
    "output without data": (
        lambda: ox.convert(model(
            "g (float[N,3] x, float[N,3] z) => (float[2] y) {s = Shape(x) "
            "y = Cast<to = 1>(s)}")),
        ModelError, r"none of the outputs y depends"),
    "scalar input": (
        lambda: ox.convert(model("g (float x) => (float y) {y = Relu(x)}")),
        ShapeError, r"'x'.*without a batch axis"),
    "output without axes": (
        lambda: ox.convert(model(
            "g (float[N,3] x) => (float y) {y = ReduceSum<keepdims = 0>(x)}")),
        ModelError, r"'y'.*first axis is not the batch"),
    "rows mixed by a sum": (
        lambda: ox.convert(model(
            "g (float[N,3] x) => (float[1,3] y) {y = ReduceSum(x, a)}", a=[0])),
        ModelError, r"'y'.*batch"),
    "rows mixed by a mean": (
        lambda: ox.convert(model(
            "g (float[N,3] x) => (float[N,3] y) {m = ReduceMean<axes = [0]>(x)  y = Sub(x, m)}")),
        ModelError, r"'y'.*rows.*batch"),
    "batch not in front": (
        lambda: ox.convert(model(
            "g (float[N,3] x) => (float[3,N] y) {y = Transpose<perm = [1, 0]>(x)}")),
        ModelError, r"'y'.*batch"),
    "weights that do not fit": (
        lambda: ox.convert(model(
            "g (float[N,3] x) => (float[N,2] y) {y = MatMul(x, w)}", w=normal(4, 2))),
        ModelError, r"MatMul_0.*\(4, 2\)"),
    "product of weights that do not fit": (
        lambda: ox.convert(model(
            "g (float[N,3] x) => (float[N,2] y) {p = MatMul(u, v)  y = MatMul(x, p)}",
            u=normal(3, 4), v=normal(3, 2))),
        ModelError, r"MatMul_0.*\(3, 4\), \(3, 2\)"),
    "bias wider than its layer": (
        lambda: ox.convert(model(
            "g (float[N,3] x) => (float[N,4] y) {y = Gemm(x, w, b)}",
            w=normal(3, 1), b=normal(4))),
        ModelError, r"Gemm_0.*bias of shape \(4,\).*\(2, 1\)|Gemm_0.*bias.*\(1, 1\)"),
    "statistics that do not fit": (
        lambda: ox.convert(model(
            "g (float[N,3] x) => (float[N,3] y)"
            "{h = MatMul(x, w)  y = BatchNormalization(h, s, b, m, v)}",
            w=normal(3, 3), s=normal(3), b=normal(3), m=normal(2), v=normal(3))),
        ModelError, r"BatchNormalization_1"),
    "scales that do not fit": (
        lambda: ox.convert(model(
            "g (float[N,3] x) => (float[N,3] y) {h = Mul(x, v)  y = Mul(h, w)}",
            v=normal(4), w=normal(3))),
        ModelError, r"Mul_0.*\(4,\)"),
    "axis inserted twice": (
        lambda: ox.convert(model(
            "g (float[N,3] x) => (float[N,1,3] y) {y = Unsqueeze(x, a)}", a=[1, 1])),
        ModelError, r"Unsqueeze_0.*\[1, 1\].*twice"),
    "shape with two axes": (
        lambda: ox.convert(model(
            "g (float[N,3] x) => (float[N,3] y) {y = Reshape(x, s)}", s=[[1, 3], [1, 3]])),
        ModelError, r"Reshape_0"),
    "batch of a thousand million": (
        lambda: ox.convert(model(
            "g (float[1000000000,3] x) => (float[1,3] y) {z = Erf(x)  y = ReduceSum(z, a)}",
            a=[0])),
        ModelError, r"batch of 1000000000 rows"),
    "names of a thousand letters": (
        lambda: ox.convert(long_names()), ModelError, r"'x{20,} \.\.\. x+'.*MatMul.*\(4, 2\)"),
    "axis out of range": (
        lambda: ox.convert(model("g (float[N,3] x) => (float[N,3] y) {y = Softmax<axis = 7>(x)}")),
        ModelError, r"Softmax_0"),
}  # fmt: skip

HUGE = {
    "Expand, folded": "{e = Expand(one, big)  y = Add(x, e)}",
    "Expand of data": "{e = Expand(x, big3)  y = ReduceSum<keepdims = 0>(e, axes)}",
    "Tile, folded": "{e = Tile(line, big1)  y = Add(x, e)}",
    "Tile of data": "{e = Tile(x, big2)  y = ReduceSum<keepdims = 0>(e, axes)}",
    "ConstantOfShape": "{e = ConstantOfShape(big)  y = Add(x, e)}",
    "ConstantOfShape from a shape": (
        "{s = Shape(x)  t = Mul(s, big)  e = ConstantOfShape(t)  y = Add(x, e)}"
    ),
    "Range": "{f = Range(zero, last, step)  y = Add(x, f)}",
    "Resize, folded": (
        "{e = Resize(image, , , big4)  m = ReduceMax<keepdims = 0>(e)  y = Add(x, m)}"
    ),
    "Resize of data": (
        "{u = Unsqueeze(x, ends)  e = Resize(u, , , big4)  y = ReduceMax<keepdims = 0>(e)}"
    ),
    "Pad of data": "{e = Pad(x, pads)  y = ReduceSum<keepdims = 0>(e, axes)}",
    "outer product of data": (
        "{r = ReduceMax<axes = [1]>(x)  u = Expand(r, wide)  v = Transpose(u)  y = Mul(u, v)}"
    ),
    "outer product, folded": "{e = ConstantOfShape(wide)  f = MatMul(e, g)  y = Add(x, f)}",
    "Gather": "{c = Constant<value_ints = [0]>()  e = Expand(c, big)  y = Gather(x, e)}",
    "depends on data": (
        "{m = ReduceMax<keepdims = 0>(x)  a = Abs(m)  k = Cast<to = 7>(a)  one1 = Reshape(k, line1)"
        "  t = Max(one1, line2)  p = Mul(t, big1)  e = ConstantOfShape(p)"
        "  f = ReduceMax<keepdims = 0>(e)  y = Add(x, f)}"
    ),
}

HUGE_20 = {  # of opset 20
    "OneHot": "{e = OneHot(first, last, two)  m = ReduceMax<keepdims = 0>(e)  y = Add(x, m)}",
    "RoiAlign": (
        "{e = RoiAlign<output_height = 1000000, output_width = 1000000>(image, region, first)"
        "  m = ReduceMax<keepdims = 0>(e)  y = Add(x, m)}"
    ),
    "MaxUnpool": (
        "{i = Cast<to = 7>(image)  e = MaxUnpool<kernel_shape = [1, 1]>(image, i, big5)"
        "  m = ReduceMax<keepdims = 0>(e)  y = Add(x, m)}"
    ),
    "AffineGrid": "{e = AffineGrid(t, big5)  m = ReduceMax<keepdims = 0>(e)  y = Add(x, m)}",
    "CenterCropPad": (
        "{e = CenterCropPad(image, big5)  m = ReduceMax<keepdims = 0>(e)  y = Add(x, m)}"
    ),
    "ConvTranspose": (
        "{e = ConvTranspose<strides = [1000000, 1000000]>(image, pixel)"
        "  m = ReduceMax<keepdims = 0>(e)  y = Add(x, m)}"
    ),
    "padding of Conv": (
        "{e = Conv<pads = [1000000, 1000000, 0, 0]>(image, pixel)"
        "  m = ReduceMax<keepdims = 0>(e)  y = Add(x, m)}"
    ),
    "padding of AveragePool": (
        "{e = AveragePool<kernel_shape = [1000001, 1000001], pads = [1000000, 1000000, 1000000,"
        " 1000000]>(image)  m = ReduceMax<keepdims = 0>(e)  y = Add(x, m)}"
    ),
    "Einsum": (
        '{e = Einsum<equation = "i,j->ij">(long, long)  m = ReduceMax<keepdims = 0>(e)'
        "  y = Add(x, m)}"
    ),
    "HannWindow": "{e = HannWindow(count)  m = ReduceMax<keepdims = 0>(e)  y = Add(x, m)}",
}


def huge_20(body):
    """Return a model of opset 20 that asks for about 10^12 elements."""
    weights = {
        "first": np.array([0]), "last": np.array(10**12), "count": np.array(10**12),
        "two": np.ones(2, "f"), "image": np.ones((1, 1, 2, 2), "f"),
        "pixel": np.ones((1, 1, 1, 1), "f"), "region": np.ones((1, 4), "f"),
        "big5": np.array([1, 1, 10**6, 10**6]),
        "t": np.ones((1, 2, 3), "f"), "long": np.ones(10**6, "f"),
    }  # fmt: skip
    used = {k: w for k, w in weights.items() if re.search(rf"\b{k}\b", body)}
    return model(f"g (float[N,3] x) => (float[N,3] y) {body}", 20, **used)


def huge(body):
    """Return a model that asks for about 10^12 elements."""
    weights = {
        "one": np.float32([1]), "line": np.ones(10, np.float32), "zero": 0.0, "last": 1e12,
        "step": 1.0, "big": [10**6, 10**6], "big1": [10**11], "big2": [1, 10**12],
        "big3": [10**12, 1, 3], "big4": [1, 1, 10**6, 10**6], "image": np.ones((1, 1, 2, 2), "f"),
        "axes": [0], "ends": [0, 1], "pads": [0, 0, 0, 10**12], "wide": [10**6, 1],
        "g": np.ones((1, 2 * 10**6), "f"), "line1": [1], "line2": [1],
    }  # fmt: skip
    used = {k: w for k, w in weights.items() if re.search(rf"\b{k}\b", body)}
    return model(f"g (float[N,3] x) => (float[N,3] y) {body}", 15, **used)


MODELS = {**{f"convert: {k}": v for k, v in DIMENSIONS.items()}, **KINDS}


@pytest.mark.parametrize("call, kind, pattern", MODELS.values(), ids=MODELS)
def test_models_and_what_is_said_about_them_are_checked(call, kind, pattern):
    refused(call, kind, pattern)


@pytest.mark.parametrize("make, body", [
    *(pytest.param(huge, body, id=name) for name, body in HUGE.items()),
    *(pytest.param(huge_20, body, id=name) for name, body in HUGE_20.items()),
])  # fmt: skip
def test_tensors_of_absurd_size_are_refused_without_taking_memory(make, body):
    proto = make(body)
    tracemalloc.start()
    try:
        refused(lambda: ox.convert(proto), ModelError, r"node '\w+'|elements|allocate")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEGABYTES * 2**20


def test_weights_that_would_broadcast_to_an_absurd_size_are_no_outer_product():
    """A wide convolution of a single pixel: its weight and bias do not broadcast."""
    weights = {"w": np.ones((1500, 1000, 1, 1), "f"), "b": np.ones(1500, "f")}
    wide = model("g (float[N,1000,1,1] x) => (float[N,1500,1,1] y) {y = Conv(x, w, b)}", **weights)
    assert ox.convert(wide)(np.ones((2, 1000, 1, 1)))[0][0, 0] == pytest.approx(1001)


def test_sizes_that_data_ask_for_are_refused_when_it_runs():
    converter = ox.convert(
        model(
            "g (float[N,3] x) => (float[N,3] y)"
            "{m = ReduceMax<keepdims = 0>(x)  a = Abs(m)  k = Cast<to = 7>(a)"
            " p = Reshape(k, line)  q = Mul(p, p)  e = ConstantOfShape(q)"
            " f = ReduceSum<keepdims = 0>(e)  y = Add(x, f)}",
            line=[1],
        )
    )
    tracemalloc.start()
    try:
        refused(lambda: converter(np.full((1, 3), 1e6)), ModelError, r"ConstantOfShape.*elements")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEGABYTES * 2**20


FILES = {
    "missing": (lambda d: d / "model.onnx", ModelFileError, r"no file.*model\.onnx"),
    "folder": (lambda d: d, ModelFileError, r"folder.*\.onnx"),
    "empty": (lambda d: written(d, b""), ModelFileError, r"empty"),
    "text": (lambda d: written(d, b"hello, I am no model\n" * 9), ModelFileError, r"text"),
    "truncated": (
        lambda d: written(d, TABLE_PROTO.SerializeToString()[:-7]), ModelError,
        r"truncated|damaged"),
    "random": (
        lambda d: written(d, np.random.default_rng(0).bytes(999)), ModelFileError, r"ONNX model"),
    "array": (lambda d: written(d, b"\x93NUMPY\x01\x00"), ModelFileError, r"NumPy array"),
    "torch archive": (lambda d: written(d, b"PK\x03\x04" + bytes(99)), ModelFileError, r"torch"),
}  # fmt: skip


def written(folder, data):
    path = folder / "model.onnx"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("make, kind, pattern", FILES.values(), ids=FILES)
@pytest.mark.parametrize("as_text", [True, False], ids=["str", "path"])
def test_files_that_are_no_models_are_refused(tmp_path, make, kind, pattern, as_text):
    path = make(tmp_path)
    source = str(path) if as_text else path
    with pytest.raises(OnnxplainError, match=pattern) as caught:
        ox.convert(source)
    assert isinstance(caught.value, kind)
    assert isinstance(caught.value, OSError if kind is ModelFileError else ValueError)
    assert len(str(caught.value).replace(str(tmp_path), "")) < LONGEST_MESSAGE


# -- nothing but our own exceptions ----------------------------------------------------------------

ANYTHING = [None, True, 0, -1, 1.5, "no", "", [], {}, (), object(), np.nan, X, [[1], 2], len, b"x"]
POOLS = {
    "data": [X, X[:1], X.tolist(), pd.DataFrame(X), {"x": X}, [X], X.astype(np.float16)],
    "x_ref": [None, X[:1], X[0], X[:2]],
    "data_ref": [None, X, X[:1]],
    "output_idx": [None, 0, [0, 2], (3,), np.array([1]), [[1]], range(2), [None]],
    "output_label": [None, "cat", ["dog", "hen"], [["cow"]]],
    "channels_first": [True, False, np.True_],
    "ignore_last_act": [True, False],
    "verbose": [None, False],
    "dtype": ["float", "double", np.float64, np.float16, float],
    "device": ["cpu", "auto", None],
    "batch_size": [None, 1, 3, np.int64(2), 10**12],
    "seed": [None, 0, 10**30, np.uint8(3)],
    "like": [None, "innsight"],
    "times_input": [True, False],
    "n": [1, 2, np.int32(3)],
    "noise_level": [0, 0.1, np.float32(2), 1e30],
    "quadrature": ["riemann_right", "trapezoid", "gauss_legendre"],
    "rule_name": [
        "simple", "epsilon", "rescale", "reveal_cancel", ox.rules.Gamma(), ox.rules.RevealCancel(),
        {"Dense": "alpha_beta"}, {"Gemm": ox.rules.ZBox(-1, 1)}, {"Gemm_0": "flat"},
    ],
    "rule_param": [None, 0.1, {"Dense": 2.0}, np.float32(1)],
    "winner_takes_all": [True, False],
    "limit_ref": [1, 100],
}  # fmt: skip
METHODS = [
    ox.Gradient, ox.SmoothGrad, ox.IntegratedGradient, ox.ExpectedGradient, ox.LRP, ox.DeepLift,
    ox.DeepSHAP, ox.ConnectionWeights,
]  # fmt: skip
COMMON = [
    "channels_first", "output_idx", "output_label", "ignore_last_act", "verbose", "dtype",
    "device", "batch_size", "seed", "like",
]  # fmt: skip
OWN = {
    ox.Gradient: ["times_input"],
    ox.SmoothGrad: ["n", "noise_level", "times_input"],
    ox.IntegratedGradient: ["x_ref", "n", "times_input", "quadrature"],
    ox.ExpectedGradient: ["data_ref", "n"],
    ox.LRP: ["rule_name", "rule_param", "winner_takes_all"],
    ox.DeepLift: ["x_ref", "rule_name", "winner_takes_all"],
    ox.DeepSHAP: ["data_ref", "limit_ref", "rule_name", "winner_takes_all"],
    ox.ConnectionWeights: ["times_input"],
}


def random_call(rng):
    """Return a method with random arguments, most of them good, and how many are bad."""
    method = rng.choice(METHODS)
    names = [name for name in [*OWN[method], *COMMON] if rng.random() < 0.4]
    bad = {name for name in ["data", *names] if rng.random() < 0.1}
    arguments = {
        name: rng.choice(ANYTHING if name in bad else POOLS[name]) for name in ["data", *names]
    }
    return method, arguments


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # noise of 1e30 overflows, as it should
def test_random_arguments_succeed_or_raise_our_own_exceptions():
    rng, outcomes, longest = random.Random(0), {True: 0, False: 0}, ""
    for _ in range(600):
        method, arguments = random_call(rng)
        with time_limit(SECONDS):
            try:
                result = method(TABLE, **arguments)
                result.get_result("data.frame")
                outcomes[True] += 1
            except OnnxplainError as error:
                outcomes[False] += 1
                longest = max(longest, str(error), key=len)
            except Exception as error:
                shown = {k: repr(v)[:60] for k, v in arguments.items()}
                raise AssertionError(f"{method.__name__}({shown}) raised {error!r}") from error
    assert len(longest) <= LONGEST_MESSAGE, longest
    assert min(outcomes.values()) > 150, outcomes


MODEL_POOLS = {
    "input_dim": [None, (3,), [3], [(3,)], np.array([3])],
    "input_names": [None, ["a", "b", "c"], [["a", "b", "c"]], pd.Index(["a", "b", "c"])],
    "output_names": [None, ["a", "b", "c", "d"], [[["a", "b", "c", "d"]]]],
    "dtype": ["float", "double", np.float16],
    "save_model_as_dict": [False],
    "outputs": [None, ["y"], ("y",)],
}


def test_random_arguments_of_convert_succeed_or_raise_our_own_exceptions():
    rng, outcomes, longest = random.Random(1), {True: 0, False: 0}, ""
    for _ in range(300):
        bad = {name for name in MODEL_POOLS if rng.random() < 0.15}
        arguments = {
            name: rng.choice(ANYTHING if name in bad else pool)
            for name, pool in MODEL_POOLS.items()
        }
        try:
            ox.convert(TABLE_PROTO, **arguments)(X)
            outcomes[True] += 1
        except OnnxplainError as error:
            outcomes[False] += 1
            longest = max(longest, str(error), key=len)
        except Exception as error:
            shown = {k: repr(v)[:60] for k, v in arguments.items()}
            raise AssertionError(f"convert({shown}) raised {error!r}") from error
    assert len(longest) <= LONGEST_MESSAGE, longest
    assert min(outcomes.values()) > 50, outcomes


def mutant(rng):
    """Return a small model with one or two things in it that are not as they were."""
    proto = changed(lambda p: None, rng.choice(SOUND))
    nodes, weights = proto.graph.node, proto.graph.initializer
    for _ in range(rng.randint(1, 2)):
        node, weight = rng.choice(nodes), rng.choice(weights)
        what = rng.randrange(5)
        if what == 0 and node.attribute:
            attribute = rng.choice(node.attribute)
            number = rng.choice([0, -1, 1, 2, 9, -(2**40), 2**40])
            attribute.i = number if attribute.type == 2 else 0
            attribute.ints[:] = [number for _ in attribute.ints]
        elif what == 1:
            node.input[rng.randrange(len(node.input))] = weight.name
        elif what == 2:
            node.input[rng.randrange(len(node.input))] = rng.choice(nodes).output[0]
        elif what == 3:
            w = numpy_helper.to_array(weight)
            other = rng.choice([w.T.copy(), w.ravel(), w[:1], np.zeros_like(w), w - 5])
            weight.CopyFrom(numpy_helper.from_array(other, weight.name))
        else:
            node.op_type = rng.choice(["Relu", "Add", "MatMul", "Reshape", "Concat", "Softmax"])
    return proto


SOUND = [
    model(
        "g (float[N,2,4,5] x) => (float[N,3] y)"
        "{c = Conv<pads = [1, 1, 1, 1]>(x, w, b)  n = BatchNormalization(c, s, b, m, v)"
        "  r = Relu(n)  p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)"
        "  f = Reshape(p, shape)  y = Gemm<transB = 1>(f, u, b)}",
        w=normal(3, 2, 3, 3), b=normal(3), s=normal(3), m=normal(3), v=normal(3) ** 2,
        shape=[-1, 12], u=normal(3, 12),
    ),
    model(
        "g (float[N,4,6] x) => (float[N,4,6] y)"
        "{q = MatMul(x, w)  t = Transpose<perm = [0, 2, 1]>(x)  k = MatMul(q, t)"
        "  a = Softmax<axis = -1>(k)  o = MatMul(a, x)  z = Add(o, x)  m = Mul(z, b)"
        "  n = Add(m, b)  c = Concat<axis = 1>(n, x)  y = Slice(c, start, stop, axes)}",
        w=normal(6, 6), b=normal(6), start=[0], stop=[4], axes=[1],
    ),
]  # fmt: skip


def test_mutants_of_sound_models_are_explained_or_refused():
    rng, outcomes, longest = random.Random(2), {True: 0, False: 0}, ""
    for _ in range(300):
        proto = mutant(rng)
        try:
            with time_limit(SECONDS):
                converter = ox.convert(proto)
                for method in (ox.Gradient, ox.LRP, ox.DeepLift):
                    method(converter, np.ones((2, *converter.input_dim[0])), output_idx=0)
            outcomes[True] += 1
        except OnnxplainError as error:
            outcomes[False] += 1
            longest = max(longest, str(error), key=len)
        except Exception as error:
            text = onnx.printer.to_text(proto.graph)
            raise AssertionError(f"{error!r} raised by {text}") from error
    assert len(longest) <= LONGEST_MESSAGE, longest
    assert min(outcomes.values()) > 50, outcomes


# -- what is handed in stays as it is --------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_arguments_are_not_changed(method):
    x, x_ref = X.copy(), X[:1].copy()
    index, names = [[2, 0]], {"Dense": "epsilon"}
    own = {"x_ref": x_ref, "data_ref": x_ref, "n": 2}
    own = {k: v for k, v in own.items() if k in OWN[method]}
    if method is ox.LRP:
        own["rule_name"] = names
    for array in (x, x_ref):
        array.flags.writeable = False
    result = method(TABLE, x, output_idx=index, **own)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(x_ref, X[:1])
    assert index == [[2, 0]]
    assert names == {"Dense": "epsilon"}
    assert result.output_idx == [[2, 0]]


def test_what_is_changed_later_does_not_reach_the_result():
    x, index = X.astype(np.float32), [0]
    result = ox.LRP(TABLE, x, output_idx=index)
    before = result.ledger().incoming.tolist()
    x[:], index[0] = 0, 3
    assert result.ledger().incoming.tolist() == before
    assert result.output_idx == [[0]]


def test_the_model_is_not_changed():
    proto = changed(lambda p: None)
    ox.LRP(ox.convert(proto, output_names=["a", "b", "c", "d"]), X)
    assert proto == TABLE_PROTO


def test_no_refusal_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(*DATA["too large for float32"])
        refused(*DATA["token ids beyond their type"])


def test_there_are_enough_cases():
    assert len(EARLY) + len(RESULTS) + len(MODELS) + len(HUGE) + len(FILES) >= 70
