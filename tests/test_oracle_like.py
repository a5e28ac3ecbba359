"""`like=` against the libraries themselves, where they are right."""

import numpy as np
import pytest
from onnx import helper

import onnxplain as ox
from onnxplain.presets import EpsilonGammaBox
from oracles import NETWORKS, OUTPUTS, data, import_zennit, to_onnx, to_torch

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch")

LRP_NETWORKS = ("mlp", "averages", "maxima")
ROWS = 3


def rows(network, seed=1, count=ROWS):
    return torch.from_numpy(data(network, count, seed))


def each_output(explain):
    """Return explanations of all outputs, (rows, *input_dim, outputs)."""
    return np.stack([explain(k).detach().numpy() for k in range(OUTPUTS)], axis=-1)


def ours(method, network, like, model=None, count=ROWS, **options):
    converter = ox.convert(to_onnx(network) if model is None else model)
    options = {"dtype": "double", "ignore_last_act": False, "like": like, **options}
    return method(converter, data(network, count), **options).get_result()


def close(got, want, tolerance):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * abs(want).max())


# -- zennit ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zennit():
    try:
        return import_zennit()
    except ImportError:
        pytest.skip("zennit is not installed")


def their_composite(network, composite):
    from zennit.attribution import Gradient

    def explain(k):
        x = rows(network).requires_grad_()
        start = torch.eye(OUTPUTS, dtype=x.dtype)[k]
        with Gradient(to_torch(network), composite) as attributor:
            return attributor(x, lambda out: out.detach() * start)[1]

    return each_output(explain)


COMPOSITES = {
    "epsilon_plus": ("EpsilonPlus", {}, "epsilon_plus"),
    "epsilon_plus_flat": ("EpsilonPlusFlat", {}, "epsilon_plus_flat"),
    "epsilon_alpha2_beta1": ("EpsilonAlpha2Beta1", {}, "epsilon_alpha2_beta1"),
    "epsilon_alpha2_beta1_flat": ("EpsilonAlpha2Beta1Flat", {}, "epsilon_alpha2_beta1_flat"),
    "epsilon_gamma_box": (
        "EpsilonGammaBox", {"low": -5.0, "high": 5.0, "gamma": 0.4},
        EpsilonGammaBox(-5, 5, gamma=0.4),
    ),
    "without biases": (
        "EpsilonPlusFlat", {"epsilon": 0.1, "zero_params": "bias"},
        ox.presets.EpsilonPlusFlat(0.1, zero_bias=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("network", LRP_NETWORKS)
@pytest.mark.parametrize("name", COMPOSITES)
def test_composites_of_zennit(zennit, name, network):
    from zennit import composites

    theirs, arguments, rule = COMPOSITES[name]
    want = their_composite(network, getattr(composites, theirs)(**arguments))
    close(ours(ox.LRP, network, "zennit", rule_name=rule), want, 1e-9)


def test_excitation_backprop_of_zennit(zennit):
    from zennit.composites import ExcitationBackprop

    want = their_composite("averages", ExcitationBackprop())
    close(ours(ox.LRP, "averages", "zennit", rule_name="excitation_backprop"), want, 1e-9)


def test_bounds_per_channel_of_zennit(zennit):
    from zennit.composites import EpsilonGammaBox as Theirs

    low, high = torch.tensor([-5.0, -6.0]), torch.tensor([5.0, 7.0])
    box = Theirs(low.reshape(1, 2, 1, 1), high.reshape(1, 2, 1, 1))
    rule = EpsilonGammaBox(low.numpy(), high.numpy())
    got = ours(ox.LRP, "averages", "zennit", rule_name=rule)
    close(got, their_composite("averages", box), 1e-6)


@pytest.mark.parametrize("name", ["epsilon", "gamma", "z_plus", "alpha_beta", "w_square", "flat"])
def test_rules_for_all_layers_of_zennit(zennit, name):
    from zennit import rules
    from zennit.composites import LayerMapComposite, layer_map_base
    from zennit.types import Linear

    names = {"z_plus": "ZPlus", "alpha_beta": "AlphaBeta", "w_square": "WSquare"}
    rule = getattr(rules, names.get(name, name.title()))()
    want = their_composite("averages", LayerMapComposite([*layer_map_base(), (Linear, rule)]))
    close(ours(ox.LRP, "averages", "zennit", rule_name=name), want, 1e-9)


@pytest.mark.parametrize("network", NETWORKS)
def test_integrated_gradients_of_zennit(zennit, network):
    from zennit.attribution import IntegratedGradients

    def explain(k):
        with IntegratedGradients(to_torch(network)) as attributor:
            start = torch.eye(OUTPUTS, dtype=torch.float64)[k].expand(ROWS, -1)
            return attributor(rows(network), start)[1]

    close(ours(ox.IntegratedGradient, network, "zennit"), each_output(explain), 1e-6)


def test_smoothgrad_of_zennit(zennit, monkeypatch):
    from zennit.attribution import SmoothGrad

    noise = np.random.default_rng(7).standard_normal((20, 6))

    def explain(k):
        drawn = map(torch.from_numpy, noise)
        monkeypatch.setattr(torch, "randn_like", lambda x: next(drawn).expand_as(x))
        with SmoothGrad(to_torch("smooth")) as attributor:
            start = torch.eye(OUTPUTS, dtype=torch.float64)[k].expand(ROWS, -1)
            return attributor(rows("smooth"), start)[1]

    close(ours(ox.SmoothGrad, "smooth", "zennit", seed=7), each_output(explain), 1e-9)


# -- captum ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captum():
    return pytest.importorskip("captum")


def captum_rules(network, make):
    """Return captum's LRP with a rule for each convolution and dense layer."""

    def explain(k):
        from captum.attr import LRP

        model = to_torch(network)
        layers = [m for m in model if not isinstance(m, torch.nn.Flatten)]
        for module in layers:
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                module.rule = make()
        return LRP(Unflattened(layers)).attribute(rows(network), target=k)

    return each_output(explain)


class Unflattened(torch.nn.Module):
    """A network with a function in place of nn.Flatten, for which captum has no rule."""

    def __init__(self, layers):
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x):
        *before, last = self.layers
        for layer in before:
            x = layer(x)
        return last(torch.flatten(x, 1))


CAPTUM = {
    "epsilon": ("EpsilonRule", {}, "epsilon", None),
    "larger epsilon": ("EpsilonRule", {"epsilon": 0.1}, "epsilon", 0.1),
    "gamma": ("GammaRule", {}, "gamma", None),
    "larger gamma": ("GammaRule", {"gamma": 0.7}, "gamma", 0.7),
    "alpha1 beta0": ("Alpha1_Beta0_Rule", {}, "alpha_beta", None),
    "z plus": ("Alpha1_Beta0_Rule", {}, "z_plus", None),
    "gamma without bias": (
        "GammaRule", {"set_bias_to_zero": True},
        ox.rules.Gamma(0.25, weights_only=True, zero_bias=True), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("network", LRP_NETWORKS)
@pytest.mark.parametrize("name", CAPTUM)
def test_lrp_rules_of_captum(captum, name, network):
    from captum.attr._utils import lrp_rules

    theirs, arguments, rule, parameter = CAPTUM[name]
    want = captum_rules(network, lambda: getattr(lrp_rules, theirs)(**arguments))
    got = ours(ox.LRP, network, "captum", rule_name=rule, rule_param=parameter)
    # Relevance that passes captum's max-pools is divided by a stabilised maximum.
    close(got, want, 1e-7 if network == "maxima" else 1e-9)


@pytest.mark.parametrize("network", ["mlp", "averages", "smooth"])
def test_deeplift_of_captum(captum, network):
    from captum.attr import DeepLift

    refs = rows(network, 2, 1)
    explainer = DeepLift(to_torch(network))
    want = each_output(lambda k: explainer.attribute(rows(network), refs, target=k))
    close(ours(ox.DeepLift, network, "captum", x_ref=refs.numpy()), want, 1e-9)


def with_softmax():
    model = to_onnx("mlp")
    last = model.graph.output[0].name
    model.graph.node.append(helper.make_node("Softmax", [last], ["p"], axis=-1))
    model.graph.output[0].name = "p"
    return model


def test_deeplift_of_captum_through_a_softmax_of_one_row(captum):
    from captum.attr import DeepLift

    net = torch.nn.Sequential(*to_torch("mlp"), torch.nn.Softmax(-1))
    x, refs = rows("mlp", count=1), rows("mlp", 2, 1)
    want = each_output(lambda k: DeepLift(net).attribute(x, refs, target=k))
    got = ours(ox.DeepLift, "mlp", "captum", with_softmax(), 1, x_ref=refs.numpy())
    close(got, want, 1e-9)


@pytest.mark.parametrize("quadrature, theirs", [(None, "gausslegendre"), *(
    (name, f"riemann_{name.removeprefix('riemann_')}")
    for name in ("trapezoid", "riemann_left", "riemann_middle", "riemann_right")
)])  # fmt: skip
def test_integrated_gradients_of_captum(captum, quadrature, theirs):
    from captum.attr import IntegratedGradients

    explainer = IntegratedGradients(to_torch("smooth"))
    want = each_output(lambda k: explainer.attribute(rows("smooth"), target=k, method=theirs))
    # captum's steps are float32.
    got = ours(ox.IntegratedGradient, "smooth", "captum", quadrature=quadrature)
    close(got, want, 1e-6)


def test_saliency_of_captum(captum):
    from captum.attr import InputXGradient, Saliency

    net = to_torch("averages")
    want = each_output(lambda k: Saliency(net).attribute(rows("averages"), target=k))
    close(ours(ox.Gradient, "averages", "captum"), want, 1e-9)
    want = each_output(lambda k: InputXGradient(net).attribute(rows("averages"), target=k))
    close(ours(ox.Gradient, "averages", "captum", times_input=True), want, 1e-9)


def test_noise_tunnel_of_captum(captum, monkeypatch):
    from captum.attr import NoiseTunnel, Saliency

    noise = torch.from_numpy(np.random.default_rng(7).standard_normal((5, 6)))
    # captum draws for each copy of each row; the copies of a row stand together.
    monkeypatch.setattr(torch, "normal", lambda mean, std: std.double() * noise.repeat(ROWS, 1))
    tunnel = NoiseTunnel(Saliency(to_torch("smooth")))
    want = each_output(lambda k: tunnel.attribute(rows("smooth"), target=k))
    close(ours(ox.SmoothGrad, "smooth", "captum", seed=7), want, 1e-9)


# -- shap ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp", "smooth", "averages"])
def test_deepshap_of_shap(network):
    shap = pytest.importorskip("shap")
    refs = rows(network, 2, 4)
    want = shap.DeepExplainer(to_torch(network), refs).shap_values(rows(network))
    got = ours(ox.DeepSHAP, network, "shap", data_ref=refs.numpy())
    close(got, np.asarray(want), 1e-6)


def test_deepshap_of_shap_through_a_softmax():
    shap = pytest.importorskip("shap")
    net = torch.nn.Sequential(*to_torch("mlp"), torch.nn.Softmax(-1))
    refs = rows("mlp", 2, 4)
    want = shap.DeepExplainer(net, refs).shap_values(rows("mlp"))
    got = ours(ox.DeepSHAP, "mlp", "shap", with_softmax(), data_ref=refs.numpy())
    close(got, np.asarray(want), 1e-6)
