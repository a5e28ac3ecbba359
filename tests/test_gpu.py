"""On a GPU everything gives what it gives on the processor: pytest -m gpu

float64 agrees to 1e-10 of the largest number, float32 to 1e-5 (or, where a method magnifies
rounding, as well as on the processor). Where there is no GPU, the same
tests run on a few cases with a stand-in for CuPy, so that they are known to work.
"""

import json
from itertools import product

import numpy as np
import pytest

import onnxplain as ox
from kernel_cases import CASES
from networks import layered
from onnxplain import device
from onnxplain.arrays import is_device, to_host
from onnxplain.demo import MODEL, digits
from onnxplain.errors import OnnxplainError
from stand_in import install
from test_golden_innsight import NOISE, SUITE_KEYS, SUITE_METHODS, WITH_REFERENCE, assert_close
from test_models import QUANTISED, RUN, SHRUNK, load, rows, scale, shrink
from test_namespace import Passes, flat

TOLERANCE = {"float": 1e-5, "double": 1e-10}
BATCH = 3


def why_no_gpu():
    """Return why nothing can run on a GPU here, or None."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({error})"
    return None if cupy.cuda.is_available() else "CuPy finds no usable NVIDIA GPU"


WHY_NO_GPU = why_no_gpu()


@pytest.fixture
def cupy(request, monkeypatch):
    """Return CuPy, or what stands in for it."""
    if getattr(request, "param", "gpu") == "stand-in":
        return install(monkeypatch)
    if WHY_NO_GPU:
        pytest.skip(WHY_NO_GPU)
    import cupy

    return cupy


def cases(everything, small):
    """Return all cases for a GPU, where there is none the first; small ones for the stand-in."""
    everything = list(everything)
    for_gpu = everything[:1] if WHY_NO_GPU else everything
    return [
        *(pytest.param("gpu", *case, marks=pytest.mark.gpu) for case in for_gpu),
        *(pytest.param("stand-in", *case) for case in everything if small(*case)),
    ]


def on_gpu(names, everything, small=lambda *case: False):
    values = cases(everything, small)
    return pytest.mark.parametrize(f"cupy, {names}", values, indirect=["cupy"])


def distance(found, expected):
    """Return the error relative to the largest number.

    In float32 it is that of all but one in a hundred: a ReLU whose input is nearly 0 may flip.
    """
    assert isinstance(found, np.ndarray)
    error = abs(found.astype(float) - expected) / scale(expected)
    return np.quantile(error, 0.99) if found.dtype == np.float32 else error.max(initial=0)


def pairs(found, expected):
    """Run through the arrays of two results that both have or lack."""
    for ours, theirs in zip(found.result, expected.result, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            if b is not None:
                yield a, b


# -- kernels --------------------------------------------------------------------------------------


@on_gpu("case", [(case,) for case in CASES])
def test_every_pass_of_every_kernel(cupy, case):
    host, on_device = Passes(case, np.asarray), Passes(case, cupy.asarray)
    for (name, expected), (_, found) in zip(host.all(), on_device.all(), strict=True):
        for a, b in zip(flat(expected), flat(found), strict=True):
            if a is None:
                assert b is None
                continue
            assert is_device(b), f"{name} leaves the device"
            np.testing.assert_allclose(to_host(b), a, rtol=1e-10, atol=1e-10, err_msg=name)


# -- goldens --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "golden" / "innsight.json").read_text())


@on_gpu(
    "net, key",
    [pair for pair in SUITE_KEYS if pair not in NOISE],
    lambda net, key: key.endswith("_ila"),
)
def test_numbers_of_innsight(cupy, golden, net, key):
    suite, (name, last) = golden[net]["suite"], key.rsplit("_", 1)
    method, options = SUITE_METHODS[name]
    x = np.array(suite["x"])
    if method in WITH_REFERENCE:
        options = options | {"x_ref": np.array(suite["x_ref"])}
    converter = ox.convert(layered(golden[net]["layers"], x.shape[1:]))
    options = options | {"like": "innsight", "ignore_last_act": last == "ila", "dtype": "double"}
    assert_close(method(converter, x, device="cuda", **options).get_result(), suite[key])


# -- models and methods ---------------------------------------------------------------------------


METHODS = {
    "gradient": lambda c, x, **o: ox.Gradient(c, x, **o),
    "smoothgrad": lambda c, x, **o: ox.SmoothGrad(c, x, n=3, seed=1, **o),
    "intgrad": lambda c, x, **o: ox.IntegratedGradient(c, x, n=3, **o),
    "expected": lambda c, x, **o: ox.ExpectedGradient(
        c, x, data_ref=[a[:2] for a in x], n=3, seed=1, **o
    ),
    "guided": lambda c, x, **o: ox.GuidedBackprop(c, x, **o),
    "deconvnet": lambda c, x, **o: ox.Deconvnet(c, x, **o),
    "lrp epsilon": lambda c, x, **o: ox.LRP(c, x, rule_name="epsilon", **o),
    "lrp alpha_beta": lambda c, x, **o: ox.LRP(c, x, rule_name="alpha_beta", rule_param=2, **o),
    "lrp epsilon_plus": lambda c, x, **o: ox.LRP(c, x, rule_name="epsilon_plus", **o),
    "deeplift": lambda c, x, **o: ox.DeepLift(c, x, **o),
    "deeplift reveal_cancel": lambda c, x, **o: ox.DeepLift(c, x, rule_name="reveal_cancel", **o),
    "deepshap": lambda c, x, **o: ox.DeepSHAP(c, x, data_ref=[a[:2] for a in x], **o),
    "connection": lambda c, x, **o: ox.ConnectionWeights(c, **o),
    "shap": lambda c, x, **o: ox.SHAP(c, x, [a[:1] for a in x], n_permutations=2, seed=1, **o),
}
SMALL = {"captum-titanic", "mnist-cntk8", "dianna-season", "tract-keras-tf2"}


def picked(model, name):
    folder = model / "models" / name
    return shrink(folder, SHRUNK[name]) if name in SHRUNK else load(folder)


@on_gpu("name", [(name,) for name in (*RUN, *QUANTISED)], lambda name: name in SMALL)
def test_predictions(cupy, shared, name):
    model = picked(shared, name)
    x = rows(model, BATCH)
    for found, expected in zip(model.c(x, device="cuda"), model.c(x), strict=True):
        assert distance(found, expected) <= TOLERANCE["float"]


@on_gpu(
    "name, method, dtype",
    product(RUN, METHODS, TOLERANCE),
    lambda name, method, dtype: name in SMALL and dtype == "double",
)
def test_explanations(cupy, shared, name, method, dtype):
    model = picked(shared, name)
    x = rows(model, BATCH)
    options = {"dtype": dtype, "output_idx": [0], "verbose": False}
    try:
        expected = METHODS[method](model.c, x, **options)
    except OnnxplainError as error:  # the method has no rule for the model, or does not fit it
        with pytest.raises(type(error)):
            METHODS[method](model.c, x, device="cuda", **options)
        return
    found = METHODS[method](model.c, x, device="cuda", **options)
    if dtype == "double":
        assert all(distance(a, b) <= TOLERANCE[dtype] for a, b in pairs(found, expected))
        return
    # Where a method magnifies rounding, no more is lost than on the processor.
    exact = METHODS[method](model.c, x, **options | {"dtype": "double"})
    lost = [distance(a, b) for a, b in pairs(expected, exact)]
    for (a, b), error in zip(pairs(found, exact), lost, strict=True):
        assert distance(a, b) <= max(TOLERANCE[dtype], 3 * error)


# -- what only a GPU can show ---------------------------------------------------------------------


@pytest.mark.gpu
def test_nothing_of_the_users_gpu_changes(cupy):
    before = cupy.cuda.Device().id
    last = cupy.cuda.runtime.getDeviceCount() - 1
    method = ox.Gradient(ox.convert(MODEL), digits()[0][:4], device=f"cuda:{last}")
    assert cupy.cuda.Device().id == before
    assert isinstance(method.get_result("cupy"), cupy.ndarray)


@pytest.mark.gpu
def test_a_full_gpu_halves_the_chunk_and_goes_on(cupy, monkeypatch):
    images = np.repeat(digits()[0][:50], 200, axis=0)
    converter = ox.convert(MODEL)
    expected = ox.LRP(converter, images, rule_name="epsilon", dtype="double")
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    monkeypatch.setattr(device, "MEMORY_SHARE", 50.0)
    pool.set_limit(size=pool.used_bytes() + 64 * 2**20)
    try:
        found = ox.LRP(converter, images, rule_name="epsilon", dtype="double", device="cuda")
    finally:
        pool.set_limit(size=0)
    assert found._engine._memory.halvings > 0
    assert distance(found.result[0][0], expected.result[0][0]) <= TOLERANCE["double"]


@pytest.mark.gpu
def test_products_are_true_float32(cupy):
    """TF32 keeps 10 bits: its products would differ in the fourth digit."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(512, 512)).astype(np.float32) for _ in range(2))
    exact = a.astype(float) @ b.astype(float)
    found = cupy.asnumpy(cupy.asarray(a) @ cupy.asarray(b))
    assert abs(found - exact).max() < 1e-5 * abs(exact).max()
