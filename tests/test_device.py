"""Whole methods on GPUs, with a stand-in for CuPy: choosing devices, memory, several GPUs."""

import builtins
import gc
import pickle

import numpy as np
import pytest
from onnx import helper

import onnxplain as ox
from networks import dense, graph, layered
from onnxplain import device
from onnxplain.errors import DeviceError, MissingPackageError
from stand_in import GPUS, Device, install, ndarray

RNG = np.random.default_rng(7)


def _convolution(shape, **options):
    """A layer with ReLU, as `layered` reads it."""
    weight, bias = RNG.normal(size=shape) / 3, RNG.normal(size=shape[0]) / 3
    given = {"type": "Conv2D", "weight": weight, "bias": bias, "activation_name": "relu"}
    return given | options


CNN = layered(
    [
        _convolution((4, 2, 3, 3), padding=[1, 1, 1, 1]),
        {"type": "MaxPooling2D", "kernel_size": [2, 2], "strides": [2, 2]},
        _convolution((4, 4, 2, 2)),
        {"type": "AveragePooling2D", "kernel_size": [2, 2], "strides": [1, 1]},
        {"type": "Flatten"},
        dense(RNG.normal(size=(3, 4)), RNG.normal(size=3)),
    ],
    (2, 6, 6),
)
MLP = layered(
    [
        dense(RNG.normal(size=(8, 5)), RNG.normal(size=8), "tanh"),
        dense(RNG.normal(size=(6, 8)), RNG.normal(size=6), "relu"),
        dense(RNG.normal(size=(3, 6)), RNG.normal(size=3)),
    ],
    (5,),
)
MODELS = {"cnn": (CNN, (2, 6, 6)), "mlp": (MLP, (5,))}
METHODS = {
    "Gradient": lambda c, x, r, **o: ox.Gradient(c, x, times_input=True, **o),
    "SmoothGrad": lambda c, x, r, **o: ox.SmoothGrad(c, x, n=4, seed=1, **o),
    "SmoothGrad of innsight": lambda c, x, r, **o: ox.SmoothGrad(
        c, x, n=4, seed=1, like="innsight", **o
    ),
    "IntegratedGradient": lambda c, x, r, **o: ox.IntegratedGradient(c, x, x_ref=r[:1], n=5, **o),
    "ExpectedGradient": lambda c, x, r, **o: ox.ExpectedGradient(
        c, x, data_ref=r, n=5, seed=1, **o
    ),
    "LRP": lambda c, x, r, **o: ox.LRP(c, x, rule_name="alpha_beta", **o),
    "DeepLift": lambda c, x, r, **o: ox.DeepLift(c, x, x_ref=r[:1], **o),
    "DeepLift of pairs": lambda c, x, r, **o: ox.DeepLift(
        c, x, x_ref=r[:1], rule_name="reveal_cancel", **o
    ),
    "DeepSHAP": lambda c, x, r, **o: ox.DeepSHAP(c, x, data_ref=r, **o),
    "ConnectionWeights": lambda c, x, r, **o: ox.ConnectionWeights(c, x, times_input=True, **o),
    "GuidedBackprop": lambda c, x, r, **o: ox.GuidedBackprop(c, x, **o),
    "LIME": lambda c, x, r, **o: ox.LIME(c, x, data_ref=r, n_permutations=60, seed=1, **o),
    "SHAP": lambda c, x, r, **o: ox.SHAP(c, x, r, n_permutations=1, seed=1, **o),
}
# Those whose chunks of rows are shared between GPUs, and halved.
IN_CHUNKS = [name for name in METHODS if name != "ConnectionWeights"]


@pytest.fixture
def gpus(monkeypatch):
    """Return what installs so many GPUs of so much memory."""
    return lambda count=1, capacity=2**34: install(monkeypatch, count, capacity)


def explained(name, model, rows=9, references=3, **options):
    """Explain random rows of one of the models above, in float64."""
    rng = np.random.default_rng(3)
    proto, dim = MODELS[model]
    x, refs = rng.normal(size=(rows, *dim)), rng.normal(size=(references, *dim))
    converter = ox.convert(proto, dtype="double")
    return METHODS[name](converter, x, refs, dtype="double", **options)


def same(found, expected):
    for a, b in zip(found.result, expected.result, strict=True):
        for p, q in zip(a, b, strict=True):
            assert isinstance(p, np.ndarray)
            np.testing.assert_allclose(p, q, rtol=1e-10, atol=1e-12)
    for field in ("preds", "decomp_goal"):
        pairs = zip(getattr(found, field) or [], getattr(expected, field) or [], strict=True)
        for p, q in pairs:
            np.testing.assert_allclose(p, q, rtol=1e-10, atol=1e-12)


# -- whole methods --------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", METHODS)
def test_methods_give_the_same_on_a_gpu(gpus, name, model):
    expected = explained(name, model)
    gpus()
    found = explained(name, model, device="cuda")
    same(found, expected)
    assert GPUS.used == {0}


@pytest.mark.parametrize("name", METHODS)
def test_the_second_gpu_can_be_chosen(gpus, name):
    expected = explained(name, "cnn")
    gpus(2)
    same(explained(name, "cnn", device="cuda:1"), expected)
    assert GPUS.used <= {1}, "the other GPU is left alone"
    assert Device().id == 0, "the thread has its own GPU again"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", IN_CHUNKS)
def test_two_gpus_share_the_rows(gpus, name, model):
    expected = explained(name, model)
    gpus(2)
    options = {"device": ["cuda:0", "cuda:1"], "batch_size": 2}
    same(explained(name, model, **options), expected)
    assert GPUS.used == {0, 1}


def test_chunks_are_as_many_as_gpus(gpus):
    gpus(3)
    explained("Gradient", "mlp", device=["cuda:0", "cuda:2", "cuda:1"])
    assert GPUS.used == {0, 1, 2}


@pytest.mark.parametrize("name", ["LRP", "DeepLift"])
def test_ledgers_are_the_same(gpus, name):
    expected = explained(name, "cnn").ledger()
    gpus(2)
    found = explained(name, "cnn", device="cuda:1").ledger()
    numbers = expected.select_dtypes("number").columns.drop("gap")
    np.testing.assert_allclose(found[numbers], expected[numbers], rtol=1e-9, atol=1e-12)
    assert Device().id == 0


def test_files_and_copies_know_their_gpus(gpus, tmp_path):
    gpus(2)
    method = explained("LRP", "cnn", device=["cuda:0", "cuda:1"])
    method.save(tmp_path / "result.npz")
    same(ox.load(tmp_path / "result.npz"), method)
    copied = pickle.loads(pickle.dumps(method))
    assert copied.ledger().equals(method.ledger())


def test_an_inner_layer_is_explained_on_a_gpu(gpus):
    expected = explained("IntegratedGradient", "cnn", layer="MaxPool_2")
    gpus()
    same(explained("IntegratedGradient", "cnn", layer="MaxPool_2", device="cuda"), expected)


def test_a_graph_of_fixed_batch_size_is_filled_up_on_a_gpu(gpus):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Reshape", ["h", "shape"], ["y"]),
    ]
    proto = graph(nodes, {"x": (3,)}, {"w": np.eye(3), "shape": np.array([2, 3])})
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim.add() if not value.type.tensor_type.shape.dim else None
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = 2
    x = np.arange(15.0).reshape(5, 3)
    expected = ox.Gradient(ox.convert(proto, dtype="double"), x, dtype="double")
    gpus()
    converter = ox.convert(proto, dtype="double")
    same(ox.Gradient(converter, x, dtype="double", device="cuda"), expected)


@pytest.mark.parametrize("where", ["cuda", "cuda:1", ["cuda:0", "cuda:1"], "auto"])
def test_predictions_come_back_to_the_host(gpus, where):
    proto, dim = MODELS["cnn"]
    x = RNG.normal(size=(7, *dim))
    expected = ox.convert(proto, dtype="double")(x)
    gpus(2)
    found = ox.convert(proto, dtype="double")(x, device=where, batch_size=3)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-10)
    assert isinstance(found[0], np.ndarray)
    assert GPUS.used == ({1} if where == "cuda:1" else {0, 1} if isinstance(where, list) else {0})


# -- data on a GPU --------------------------------------------------------------------------------


def test_data_on_a_gpu_are_explained_there(gpus):
    gpus(2)
    proto, dim = MODELS["mlp"]
    converter = ox.convert(proto, dtype="double")
    x = RNG.normal(size=(4, *dim))
    expected = ox.DeepLift(converter, x, x_ref=x[:1], dtype="double")
    with Device(1):
        held = ndarray(x)
        ref = ndarray(x[0])
        found = ox.DeepLift(converter, held, x_ref=ref, dtype="double")
    assert found.device == "cuda:1"
    assert isinstance(found.data[0], np.ndarray)
    same(found, expected)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x], lambda x: {"input": x}])
def test_another_device_can_be_asked_for(gpus, wrap):
    gpus(2)
    converter = ox.convert(MODELS["mlp"][0], dtype="double")
    held = ndarray(np.ones((2, 5)))
    assert ox.Gradient(converter, wrap(held)).device == "cuda:0"
    GPUS.used.clear()
    assert ox.Gradient(converter, wrap(held), device="cuda:1").device == "cuda:1"
    assert GPUS.used == {1}


def test_results_can_go_to_a_gpu(gpus):
    gpus()
    method = explained("Gradient", "mlp", device="cuda")
    found = method.get_result("cupy")
    assert isinstance(found, ndarray)
    np.testing.assert_array_equal(found.get(), method.get_result())


# -- memory ---------------------------------------------------------------------------------------


def test_chunks_are_sized_by_the_free_memory(gpus):
    def chunk(capacity):
        gpus(1, capacity)
        return explained("Gradient", "mlp", device="cuda")._engine.chunk_rows(3)

    small, large = chunk(2**20), chunk(2**24)
    assert 8 < large / small < 32
    assert chunk(2**44) * 5 * 8 < device.MOST_BYTES


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", IN_CHUNKS)
def test_a_full_memory_halves_the_chunk(gpus, monkeypatch, name, count):
    expected = explained(name, "cnn", rows=40)
    monkeypatch.setattr(device, "MEMORY_SHARE", 100)  # a forecast that is much too low
    gpus(count, 300_000)
    devices = [f"cuda:{i}" for i in range(count)]
    same(explained(name, "cnn", rows=40, device=devices), expected)
    assert GPUS.failures, "the test has to run into the limit"
    assert GPUS.freed >= 1


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["ExpectedGradient", "DeepSHAP", "SHAP"])
def test_references_that_do_not_fit_are_halved(gpus, monkeypatch, name, count):
    expected = explained(name, "mlp", rows=2, references=90)
    monkeypatch.setattr(device, "MEMORY_SHARE", 100)
    gpus(count, 9_000)
    devices = [f"cuda:{i}" for i in range(count)]
    same(explained(name, "mlp", rows=2, references=90, device=devices), expected)
    assert GPUS.failures, "the test has to run into the limit"


def test_references_that_leave_no_room_for_rows_are_let_go(gpus, monkeypatch):
    """All references fit, but nothing beside them."""
    expected = explained("DeepSHAP", "mlp", references=99)
    gpus()
    engine = explained("Gradient", "mlp", device="cuda")._engine
    GPUS.most.clear()
    engine.run(engine.device_rows([RNG.normal(size=(99, 5))], slice(0, 99)))
    monkeypatch.setattr(device, "MEMORY_SHARE", 100)
    gpus(1, GPUS.most[0])
    same(explained("DeepSHAP", "mlp", references=99, device="cuda"), expected)
    assert GPUS.failures, "the test has to run into the limit"


def test_outputs_that_do_not_fit_together_are_walked_back_in_turns(gpus, monkeypatch):
    layers = [dense(RNG.normal(size=(50, 5)), RNG.normal(size=50), "relu")]
    proto = layered([*layers, dense(RNG.normal(size=(40, 50)), RNG.normal(size=40))], (5,))
    options = {"output_idx": list(range(40)), "dtype": "double"}
    expected = ox.ConnectionWeights(ox.convert(proto, dtype="double"), **options)
    monkeypatch.setattr(device, "MEMORY_SHARE", 5)
    gpus(1, 30_000)
    converter = ox.convert(proto, dtype="double")
    same(ox.ConnectionWeights(converter, device="cuda", **options), expected)
    assert GPUS.failures, "the test has to run into the limit"


@pytest.mark.parametrize("name", ["LRP", "DeepLift"])
def test_a_ledger_that_does_not_fit_is_kept_in_smaller_parts(gpus, monkeypatch, name):
    numbers = ["incoming", "outgoing"]
    expected = explained(name, "mlp", rows=60).ledger()[numbers]
    gpus()
    method = explained(name, "mlp", rows=60, device="cuda")
    monkeypatch.setattr(device, "MEMORY_SHARE", 100)
    GPUS.capacity, GPUS.failures = GPUS.held[0] + 20_000, 0
    vars(method).pop("_engine")
    np.testing.assert_allclose(method.ledger()[numbers], expected, rtol=1e-9, atol=1e-12)
    assert GPUS.failures, "the test has to run into the limit"


def test_a_layer_is_lifted_in_smaller_chunks(gpus, monkeypatch):
    options = {"rows": 60, "layer": "MaxPool_2"}
    expected = explained("IntegratedGradient", "cnn", **options)
    monkeypatch.setattr(device, "MEMORY_SHARE", 100)
    gpus(1, 100_000)
    same(explained("IntegratedGradient", "cnn", device="cuda", **options), expected)
    assert GPUS.failures


def test_a_batch_size_that_is_too_large_is_halved(gpus):
    expected = explained("LRP", "cnn", rows=64)
    gpus(1, 200_000)
    same(explained("LRP", "cnn", rows=64, batch_size=64, device="cuda"), expected)
    assert 0 < GPUS.failures < 10


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", METHODS)
def test_no_tensor_waits_in_a_cycle(gpus, name, model):
    """Memory is free at once, not when Python looks for objects that refer to each other."""
    gpus()
    method = explained(name, model, device="cuda")
    gc.collect()
    weights = GPUS.held[0]
    gc.disable()
    try:
        method._again(method.data)
        assert GPUS.held[0] == weights
    finally:
        gc.enable()


def test_work_goes_on_with_the_smaller_chunk(gpus):
    """Only the first chunks fail: those after them are cut before they start."""
    gpus(1, 200_000)
    explained("Gradient", "cnn", rows=400, batch_size=50, device="cuda")
    assert 0 < GPUS.failures < 6


@pytest.mark.parametrize("name", ["Gradient", "IntegratedGradient", "DeepSHAP"])
def test_a_row_that_does_not_fit_is_a_clear_error(gpus, name):
    gpus(1, 6_000)
    with pytest.raises(DeviceError, match=r"(single row.*cuda:0|memory of the GPU is full)"):
        explained(name, "cnn", device="cuda")
    assert Device().id == 0


def test_other_errors_of_a_task_are_not_taken_for_a_full_memory(gpus):
    gpus()

    def fails(rows):
        raise ValueError("something else")

    engine = explained("Gradient", "mlp", device="cuda")._engine
    with pytest.raises(ValueError, match="something else"):
        engine.each(fails, [slice(0, 2)])


def test_the_first_error_on_several_gpus_ends_the_work(gpus):
    gpus(2)
    started = []

    def fails(rows):
        started.append(rows)
        raise ValueError("something else")

    places = device.choose(["cuda:0", "cuda:1"])
    with pytest.raises(ValueError, match="something else"):
        device.spread(places, fails, [slice(i, i + 1) for i in range(50)])
    assert len(started) <= 2


# -- errors ---------------------------------------------------------------------------------------


def choose_without(monkeypatch, error):
    """Choose a GPU where importing CuPy raises an error."""
    original = builtins.__import__

    def importing(name, *args, **kwargs):
        if name == "cupy":
            raise error
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
    return device.choose("cuda")


def test_without_cupy_the_extra_is_named(monkeypatch):
    missing = ModuleNotFoundError("No module named 'cupy'", name="cupy")
    with pytest.raises(MissingPackageError, match=r"pip install 'onnxplain\[gpu\]'"):
        choose_without(monkeypatch, missing)


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libcudart.so.13: cannot open shared object file"),
        ModuleNotFoundError("No module named 'fastrlock'", name="fastrlock"),
    ],
)
def test_a_broken_cupy_is_told_with_its_reason(monkeypatch, error):
    with pytest.raises(DeviceError, match=rf"{error.args[0]}.*install it anew"):
        choose_without(monkeypatch, error)


@pytest.mark.parametrize(
    "count, driver, message",
    [
        (0, 0, r"no NVIDIA driver.*device='cpu'"),
        (0, 13020, r"finds no NVIDIA GPU.*CUDA_VISIBLE_DEVICES"),
        (1, 12080, r"CUDA up to 12\.8.*for CUDA 13\.2.*pip install 'cupy-cuda12x\[ctk\]'"),
    ],
)
def test_no_gpu_is_told_with_what_to_do(gpus, count, driver, message):
    gpus(count)
    GPUS.driver = driver
    with pytest.raises(DeviceError, match=message):
        explained("Gradient", "mlp", device="cuda")
    same(explained("Gradient", "mlp", device="auto"), explained("Gradient", "mlp"))


@pytest.mark.parametrize(
    "where, message",
    [
        ("cuda:2", r"'cuda:2': there is 2 GPUs here|there are 2 GPUs here, cuda:0, cuda:1"),
        (["cuda:0", "cuda"], "names a GPU twice"),
        ("cuda:", r'"cpu", "cuda"'),
        ("cuda:-1", r'"cpu", "cuda"'),
        ("gpu", r'"cpu", "cuda"'),
        (["cuda:0", "cpu"], r'"cpu", "cuda"'),
        ([], r'"cpu", "cuda"'),
        (["auto"], r'"cpu", "cuda"'),
        (1, r'"cpu", "cuda"'),
    ],
)
def test_devices_that_are_not_there_are_refused(gpus, where, message):
    gpus(2)
    with pytest.raises(DeviceError, match=message):
        explained("Gradient", "mlp", device=where)


def test_a_gpu_without_the_libraries_of_cuda_says_what_brings_them(gpus, monkeypatch):
    gpus()

    def matmul(self, other):
        raise RuntimeError("CuPy failed to load libcublas.so.13")

    monkeypatch.setattr(ndarray, "__matmul__", matmul)
    with pytest.raises(DeviceError, match=r"cuda:0 cannot compute.*libcublas.*onnxplain\[gpu\]"):
        explained("Gradient", "mlp", device="cuda")


def test_a_gpu_that_computes_wrongly_is_refused(gpus, monkeypatch):
    gpus()
    monkeypatch.setattr(ndarray, "__matmul__", lambda self, other: self + other)
    with pytest.raises(DeviceError, match="wrong sums"):
        explained("Gradient", "mlp", device="cuda")
