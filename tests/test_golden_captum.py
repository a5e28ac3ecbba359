"""Numbers of captum's published tutorials on the Titanic and CIFAR-10 (BSD-3)."""

import json

import numpy as np
import pytest

import onnxplain as ox

# captum's default: Gauss-Legendre nodes, the softmax included, a reference of zeros.
CAPTUM = {"quadrature": "gauss_legendre", "n": 50, "ignore_last_act": False}


@pytest.fixture(scope="module")
def titanic(shared):
    folder = shared / "golden" / "captum"
    with np.load(folder / "titanic_data.npz") as file:
        data = dict(file)
    converter = ox.convert(shared / "models" / "captum-titanic" / "model.onnx")
    return converter, data, json.loads((folder / "titanic.json").read_text())


@pytest.fixture(scope="module")
def cifar(shared):
    folder = shared / "models" / "captum-cifar"
    images = []
    for k in range(4):
        with np.load(folder / f"case_{k}.npz") as file:
            images.append(file["in/input"])
    golden = json.loads((shared / "golden" / "captum" / "cifar.json").read_text())
    return ox.convert(folder / "model.onnx"), np.concatenate(images), golden


@pytest.mark.parametrize("part", ["train", "test"])
def test_titanic_accuracy(titanic, part):
    converter, data, golden = titanic
    rows = data[part]
    right = converter(data["features"][rows])[0].argmax(axis=1) == data["labels"][rows]
    assert right.mean() == golden[f"published_{part}_acc"]


@pytest.mark.parametrize("dtype", ["float", "double"])
def test_titanic_mean_integrated_gradients(titanic, dtype):
    converter, data, golden = titanic
    x = data["features"][data["test"]]
    method = ox.IntegratedGradient(converter, x, output_idx=[1], dtype=dtype, **CAPTUM)
    mean = method.get_result()[..., 0].mean(axis=0)
    # Published with three decimals.
    np.testing.assert_allclose(mean, golden["published_mean_ig"], rtol=0, atol=6e-4)
    np.testing.assert_allclose(mean, golden["here_numpy_mean_ig"], rtol=0, atol=6e-5)


def test_titanic_integrated_gradients_add_up(titanic):
    converter, data, _ = titanic
    x = data["features"][data["test"]]
    gap = {}
    for n in (50, 200):
        options = {**CAPTUM, "n": n, "dtype": "double"}
        method = ox.IntegratedGradient(converter, x, **options)
        gap[n] = abs(method.decomp_goal[0] - method.decomp_sum[0]).max()
    assert gap[200] < 1e-6 < gap[50]


def test_cifar_largest_probability(cifar):
    converter, images, golden = cifar
    logits = converter(images)[0].astype(float)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    largest = (shares / shares.sum(axis=1, keepdims=True)).max()
    # Published from another machine's float32 convolutions.
    assert largest == pytest.approx(golden["published_max_prob_first4"], abs=3e-7)


@pytest.mark.parametrize("dtype", ["float", "double"])
def test_cifar_gap_of_integrated_gradients(cifar, dtype):
    converter, images, golden = cifar
    options = {**CAPTUM, "output_idx": [0], "dtype": dtype}
    method = ox.IntegratedGradient(converter, images[3:], **options)
    gap = abs(method.decomp_goal[0] - method.decomp_sum[0]).item()
    # Published with four decimals.
    assert gap == pytest.approx(golden["published_abs_ig_delta"], abs=5.1e-5)
    assert gap == pytest.approx(golden["here_abs_ig_delta"], abs=5e-6)
