"""captum gives the same values at layers, for maps, and with changed rectifiers."""

import logging
import warnings

import numpy as np
import pytest

import onnxplain as ox

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
attr = pytest.importorskip("captum.attr")
nn = torch.nn

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Net(nn.Module):
    """Two blocks of convolutions in one, two or three dimensions, and a dense head."""

    def __init__(self, rank):
        super().__init__()
        conv, pool = getattr(nn, f"Conv{rank}d"), getattr(nn, f"MaxPool{rank}d")
        self.conv1, self.relu1, self.pool = conv(2, 4, 3, padding=1), nn.ReLU(), pool(2)
        self.conv2, self.relu2 = conv(4, 5, 3, padding=1), nn.ReLU()
        self.dense1, self.relu3 = nn.Linear(5 * 2 ** (rank + 1), 6), nn.ReLU()
        self.dense2 = nn.Linear(6, 3)

    def forward(self, x):
        x = self.pool(self.relu1(self.conv1(x)))
        x = self.relu2(self.conv2(x))
        return self.dense2(self.relu3(self.dense1(x.flatten(1))))


SHAPES = {1: (8,), 2: (4, 8), 3: (4, 4, 4)}


@pytest.fixture(scope="module", params=[1, 2, 3], ids=["1-D", "2-D", "3-D"])
def case(request):
    """A torch net, its converter, data, a reference, and the tensor behind each of its modules."""
    rank = request.param
    torch.manual_seed(rank)
    net = Net(rank).double().eval()
    if rank == 3:
        net.dense1 = nn.Linear(5 * 8, 6).double()
    x = torch.randn(3, 2, *SHAPES[rank], dtype=torch.float64)
    ref = 0.3 * torch.randn(1, 2, *SHAPES[rank], dtype=torch.float64)
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(net, (x,), dynamo=True, dynamic_shapes=None, verbose=False)
    logging.disable(logging.NOTSET)
    proto = program.model_proto
    names = iter(n.output[0] for n in proto.graph.node if n.op_type in ("Conv", "Gemm", "Relu"))
    order = ("conv1", "relu1", "conv2", "relu2", "dense1", "relu3", "dense2")
    return net, ox.convert(proto), x, ref, dict(zip(order, names, strict=True))


LAYERS = ["conv1", "relu1", "conv2", "relu2", "dense1", "relu3"]
DOUBLE = {"dtype": "double", "output_idx": [1]}


def agree(found, theirs, **tolerance):
    theirs = theirs.detach().numpy()
    assert np.abs(theirs).max() > 0
    np.testing.assert_allclose(
        found.get_result()[..., 0], theirs, **{"rtol": 1e-6, "atol": 1e-9, **tolerance}
    )


@pytest.mark.parametrize("layer", LAYERS)
def test_gradient_times_a_layer(case, layer):
    net, converter, x, _, names = case
    theirs = attr.LayerGradientXActivation(net, getattr(net, layer)).attribute(x, target=1)
    agree(ox.Gradient(converter, x, layer=names[layer], times_input=True, **DOUBLE), theirs)


@pytest.mark.parametrize("layer", LAYERS)
def test_integrated_gradients_of_a_layer(case, layer):
    net, converter, x, ref, names = case
    theirs = attr.LayerIntegratedGradients(net, getattr(net, layer)).attribute(
        x, ref, target=1, n_steps=20, method="gausslegendre"
    )
    found = ox.IntegratedGradient(
        converter, x, layer=names[layer], x_ref=ref, n=20, quadrature="gauss_legendre", **DOUBLE
    )
    agree(found, theirs)


# Max-pools differ: captum credits the maxima of each run by another rule.
@pytest.mark.parametrize("layer", ["conv2", "relu2", "dense1", "relu3"])
def test_deeplift_of_a_layer(case, layer):
    net, converter, x, ref, names = case
    theirs = attr.LayerDeepLift(net, getattr(net, layer)).attribute(x, ref, target=1)
    agree(ox.DeepLift(converter, x, layer=names[layer], x_ref=ref, **DOUBLE), theirs)


@pytest.mark.parametrize("layer", ["conv2", "dense1"])
def test_deepshap_of_a_layer(case, layer):
    net, converter, x, ref, names = case
    refs = torch.cat([ref, -ref, 2 * ref])
    theirs = attr.LayerDeepLiftShap(net, getattr(net, layer)).attribute(x, refs, target=1)
    found = ox.DeepSHAP(converter, x, layer=names[layer], data_ref=refs, **DOUBLE)
    agree(found, theirs)


@pytest.mark.parametrize("layer", ["relu1", "conv2", "relu2"])
@pytest.mark.parametrize("relu", [True, False])
def test_grad_cam(case, layer, relu):
    net, converter, x, _, names = case
    theirs = attr.LayerGradCam(net, getattr(net, layer)).attribute(
        x, target=1, relu_attributions=relu
    )
    found = ox.GradCAM(converter, x, layer=names[layer], upsample=False, relu=relu, **DOUBLE)
    agree(found, theirs)


def test_the_default_layer_and_its_interpolation(case):
    net, converter, x, _, names = case
    found = ox.GradCAM(converter, x, **DOUBLE)
    assert found.layers == [names["relu2"]]
    maps = attr.LayerGradCam(net, net.relu2).attribute(x, target=1, relu_attributions=True)
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim]
    theirs = attr.LayerAttribution.interpolate(maps, tuple(x.shape[2:]), mode)
    agree(found, theirs)


def test_guided_grad_cam(case):
    net, converter, x, _, names = case
    theirs = attr.GuidedGradCam(net, net.relu2).attribute(
        x, target=1, interpolate_mode={3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim]
    )
    agree(ox.GradCAM(converter, x, layer=names["relu2"], guided=True, **DOUBLE), theirs)


@pytest.mark.parametrize(
    "ours, theirs", [("GuidedBackprop", "GuidedBackprop"), ("Deconvnet", "Deconvolution")]
)
def test_changed_rectifiers(case, ours, theirs):
    net, converter, x, _, _ = case
    expected = getattr(attr, theirs)(net).attribute(x, target=1)
    agree(getattr(ox, ours)(converter, x, **DOUBLE), expected)


@pytest.mark.parametrize("layer, neuron", [("dense1", (0,)), ("dense1", (5,)), ("conv2", None)])
def test_gradients_of_neurons(case, layer, neuron):
    net, converter, x, _, names = case
    neuron = (1, *[0] * (x.ndim - 2)) if neuron is None else neuron
    theirs = attr.NeuronGradient(net, getattr(net, layer)).attribute(x, neuron)
    inner = ox.Converter(converter.raw, outputs=[names[layer]])
    found = ox.Gradient(inner, x, output_idx=[neuron], ignore_last_act=False, dtype="double")
    agree(found, theirs)
