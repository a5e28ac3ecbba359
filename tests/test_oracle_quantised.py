"""Models that onnxruntime's quantiser makes here and now, against onnxruntime and torch."""

import numpy as np
import pytest

import onnxplain as ox

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),  # the quantiser's own
]

pytest.importorskip("onnxruntime.quantization")
pytest.importorskip("torch")

from onnxruntime.quantization import QuantFormat, QuantType  # noqa: E402 - after the skips
from quantised import make  # noqa: E402
from quantised.straight import gradients  # noqa: E402

IMAGE = (2, 12, 12)
TYPES = {
    "bytes": {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8},
    "signed": {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8},
    "unsigned": {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8},
}


def check_gradients(converter, model, x):
    found = ox.Gradient(converter, x, dtype="double").get_result()
    expected = np.moveaxis(gradients(model, x), 1, -1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())


def check_sums(converter, x):
    reference = x[:1][::-1] * 0.5 + 0.1
    found = ox.DeepLift(converter, x, x_ref=reference, dtype="double")
    ledger = found.ledger()
    missing = (found.decomp_goal[0] - found.decomp_sum[0]).sum()
    assert ledger.gap.max() < 1e-9
    np.testing.assert_allclose(ledger.rounding.sum(), missing, rtol=0, atol=1e-9)
    assert ox.LRP(converter, x, rule_name="epsilon", dtype="double").ledger().gap.max() < 1e-9


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=str)
def test_static_model(form, types, per_channel):
    if form == QuantFormat.QOperator and types == "signed":
        pytest.skip("onnxruntime has no such operators")
    model = make.statically(make.cnn(), IMAGE, form, per_channel, **TYPES[types])
    x, converter = make.data(IMAGE, 5, 21), ox.convert(model)
    expected = make.session(model, optimised=False).run(["y"], {"x": x})[0]
    step = np.diff(np.unique(expected)).min()
    exact = form == QuantFormat.QOperator
    allowed = 1e-6 if exact else 3.01 * step  # a mean of bytes may fall on half a step
    np.testing.assert_allclose(converter(x)[0], expected, rtol=0, atol=allowed)
    check_gradients(converter, model, x)
    check_sums(converter, x)


@pytest.mark.parametrize("options", [{}, {"per_channel": True}, {"weight_type": QuantType.QUInt8}])
@pytest.mark.parametrize("network, shape", [(make.mlp, (10,)), (make.transformer, (5, 8))])
def test_dynamic_model(network, shape, options):
    model = make.dynamically(network(), **options)
    x, converter = make.data(shape, 5, 22), ox.convert(model)
    session = make.session(model, optimised=False)
    expected = np.concatenate([session.run(["y"], {"x": row[None]})[0] for row in x])
    np.testing.assert_allclose(converter(x)[0], expected, rtol=0, atol=1e-5)
    check_gradients(converter, model, x)
    check_sums(converter, x)
