"""torch modules converted: values, gradients and names are those of torch."""

import importlib
import logging
import sys
import warnings

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.errors import (
    ArgumentError,
    DtypeError,
    MissingPackageError,
    ModelError,
    ShapeError,
)

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
nn, F = torch.nn, torch.nn.functional

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")]


# -- families --------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.stem(x))
        x = self.relu(x + self.conv2(self.relu(self.conv1(x))))
        return self.head(torch.flatten(self.pool(x), 1))


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 2, 1)
        self.three = nn.Conv2d(3, 2, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.after = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        branches = [self.one(x), self.three(x), self.after(self.pool(x))]
        return F.relu(torch.cat(branches, 1)).mean((2, 3))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


class Patches(nn.Module):
    """A small vision transformer."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        h = self.norm(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return self.head((x + self.mlp(x))[:, 0])


class Upsampling(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 4, 2, stride=2)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.nearest = nn.Upsample(scale_factor=2)
        self.transposed = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.shuffle = nn.PixelShuffle(2)
        self.wide = nn.Conv2d(4, 8, 1)

    def forward(self, x):
        h = torch.tanh(self.down(x))
        shuffled = self.shuffle(self.wide(h)).mean(1, keepdim=True)
        return (self.up(h) + self.nearest(h) * self.transposed(h) + shuffled).sum((2, 3))


class Embedded(nn.Module):
    """Whole numbers and floats as inputs."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 3)

    def forward(self, ids, x):
        return self.mix(self.words(ids) * x.unsqueeze(-1)).sum(1)


class TwoByTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = nn.Conv2d(3, 2, 3)
        self.table = nn.Linear(5, 2)

    def forward(self, image, table):
        a, b = self.image(image).amax((2, 3)), self.table(table)
        return {"sum": torch.sigmoid(a + b), "table": torch.tanh(b)}


class Shared(nn.Module):
    """One module called twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.act = nn.ELU()

    def forward(self, x):
        return self.act(self.layer(self.act(self.layer(x))))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(5, 4)

    def forward(self, x):
        return self.a(x) * torch.sigmoid(self.b(x))


class Unrolled(nn.Module):
    """torch writes a plain recurrent network as one step after the other."""

    def __init__(self):
        super().__init__()
        self.cell = nn.RNN(4, 3, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0][:, -1]


class Star(nn.Module):
    def forward(self, *parts):
        return torch.cat(parts, 1).relu()


def conv_net():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, groups=6), nn.ReLU6(), nn.AvgPool2d(2), nn.Dropout(), nn.Flatten(),
        nn.Linear(6, 4), nn.LogSoftmax(1),
    )  # fmt: skip


def signal_net():
    return nn.Sequential(
        nn.BatchNorm1d(2), nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2), nn.SiLU(),
        nn.GroupNorm(2, 4), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(4, 3), nn.Softmax(-1),
    )  # fmt: skip


def activations():
    return nn.Sequential(
        nn.Linear(5, 6), nn.LeakyReLU(0.3), nn.Linear(6, 6), nn.ELU(), nn.Linear(6, 6), nn.GELU(),
        nn.Linear(6, 6), nn.Hardswish(), nn.Linear(6, 6), nn.Mish(), nn.Linear(6, 6),
        nn.Softplus(), nn.Linear(6, 6), nn.PReLU(6), nn.Linear(6, 6), nn.SELU(), nn.Linear(6, 6),
        nn.Softsign(), nn.Linear(6, 4), nn.GELU("tanh"), nn.Linear(4, 4), nn.GLU(),
    )  # fmt: skip


def mlp(dtype=torch.float32):
    layers = [nn.Linear(5, 8), nn.LeakyReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)]
    return nn.Sequential(*layers, nn.Softmax(1)).to(dtype)


IMAGE = [(3, 8, 8)]
FAMILIES = {
    "conv": (conv_net, IMAGE),
    "signal": (signal_net, [(2, 9)]),
    "residual": (Residual, IMAGE),
    "inception": (Inception, IMAGE),
    "attention": (Attention, [(4, 8)]),
    "patches": (Patches, IMAGE),
    "upsampling": (Upsampling, IMAGE),
    "two by two": (TwoByTwo, [(3, 8, 8), (5,)]),
    "shared": (Shared, [(5,)]),
    "gated": (Gated, [(5,)]),
    "unrolled": (Unrolled, [(3, 4)]),
    "star": (Star, [(2,), (3,)]),
    "activations": (activations, [(5,)]),
    "mlp": (mlp, [(5,)]),
    "mlp double": (lambda: mlp(torch.float64), [(5,)]),
    "residual double": (lambda: Residual().double(), IMAGE),
}


def built(make):
    """Return a module with seeded weights and statistics of batch norms that are not trivial."""
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


_converted = {}


def family(name):
    """Return module, converter and a function that draws inputs; each is converted once."""
    if name not in _converted:
        make, dims = FAMILIES[name]
        model = built(make)
        double = next(model.parameters(), torch.zeros(())).dtype == torch.float64
        converter = ox.convert(model, input_dim=dims, dtype="double" if double else "float")
        _converted[name] = model, converter, dims, double
    model, converter, dims, double = _converted[name]

    def draw(batch):
        generator = torch.Generator().manual_seed(batch)
        dtype = torch.float64 if double else torch.float32
        return [torch.randn(batch, *dim, generator=generator, dtype=dtype) for dim in dims]

    return model, converter, draw, double


def outputs_of(y):
    return list(y.values()) if isinstance(y, dict) else [y]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("batch", [1, 5])
def test_predictions_equal_torch(name, batch):
    model, converter, draw, double = family(name)
    x = draw(batch)
    with torch.no_grad():
        expected = outputs_of(model(*x))
    got = converter([a.numpy() for a in x])
    assert len(got) == len(expected)
    for y, z in zip(got, expected, strict=True):
        assert y.dtype == z.numpy().dtype
        np.testing.assert_allclose(y, z.numpy(), rtol=0, atol=1e-10 if double else 1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_equal_autograd(name):
    model, converter, draw, double = family(name)
    x = draw(3)
    nodes = [list(range(dim[0])) for dim in converter.output_dim]
    run = ox.Gradient(
        converter, [a.numpy() for a in x], output_idx=nodes, ignore_last_act=False,
        dtype="double" if double else "float",
    )  # fmt: skip
    for a in x:
        a.requires_grad_()
    for s, y in enumerate(outputs_of(model(*x))):
        for k in nodes[s]:
            grads = torch.autograd.grad(y[:, k].sum(), x, retain_graph=True, allow_unused=True)
            for i, g in enumerate(grads):
                got = run.result[s][i]
                if g is None:
                    assert got is None or not np.any(got)
                else:
                    np.testing.assert_allclose(got[..., k], g.numpy(), rtol=1e-5, atol=1e-5)


METHODS = {
    "Gradient": {}, "SmoothGrad": {"n": 2}, "IntegratedGradient": {"n": 5},
    "ExpectedGradient": {"n": 2}, "LRP": {"rule_name": "epsilon"}, "DeepLift": {}, "DeepSHAP": {},
    "ConnectionWeights": {},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["conv", "residual", "inception", "two by two", "mlp double"])
def test_every_method_runs(name, method):
    _, converter, draw, _ = family(name)
    x = [a.numpy() for a in draw(2)]
    run = getattr(ox, method)(converter, x, output_idx=[0], **METHODS[method])
    shapes = [a.shape for a in run.result[0]]
    rows = 1 if method == "ConnectionWeights" else 2
    assert shapes == [(rows, *dim, 1) for dim in converter.input_dim]
    assert all(np.isfinite(a).all() for a in run.result[0])


@pytest.mark.parametrize("method", ["LRP", "DeepLift", "Gradient"])
@pytest.mark.parametrize("name", ["attention", "patches", "upsampling", "gated", "activations"])
def test_main_methods_run_on_every_family(name, method):
    _, converter, draw, _ = family(name)
    run = getattr(ox, method)(converter, draw(2)[0].numpy(), output_idx=[0])
    assert np.isfinite(run.result[0][0]).all()


def test_deeplift_is_complete_on_a_converted_network():
    model, converter, draw, _ = family("residual double")
    x, x0 = draw(3)[0], draw(1)[0]
    run = ox.DeepLift(converter, x.numpy(), x_ref=x0.numpy(), output_idx=[0], dtype="double")
    with torch.no_grad():
        difference = (model(x) - model(x0))[:, 0].numpy()
    np.testing.assert_allclose(run.result[0][0].sum((1, 2, 3, 4)), difference, atol=1e-10)


# -- names -----------------------------------------------------------------------------------------


def names(model, **options):
    return [node.name for node in ox.convert(model.eval(), **options).raw.nodes]


def test_nodes_are_called_by_their_modules():
    _, converter, _, _ = family("residual")
    found = [node.name for node in converter.raw.nodes]
    # The batch norm is part of the first convolution, relu is called three times.
    for name in ("stem.0", "relu", "conv1", "relu_2", "conv2", "Add", "relu_3", "pool", "head"):
        assert name in found
    assert len(set(found)) == len(found)


def test_rules_are_picked_by_module_names():
    _, converter, draw, _ = family("residual")
    rules = {"stem.0": "alpha_beta", "head": "epsilon"}
    table = ox.LRP(converter, draw(2)[0].numpy(), rule_name=rules).ledger().set_index("node")
    assert "AlphaBeta" in table.rule["stem.0"]
    assert "Epsilon" in table.rule["head"]
    assert "Simple" in table.rule["conv1"]


def test_activation_spelled_out_has_the_name_of_its_module():
    _, converter, _, _ = family("activations")
    ops = {node.name: node.op for node in converter.graph.nodes}
    assert {ops[k] for k in ("0", "2", "18")} == {"Gemm"}
    assert (ops["1"], ops["5"], ops["9"], ops["11"]) == ("LeakyRelu", "Gelu", "Mish", "Softplus")


def test_linear_over_several_axes_is_one_node_with_its_name():
    _, converter, _, _ = family("patches")
    ops = {node.name: node.op for node in converter.graph.nodes}
    assert {ops[k] for k in ("mlp.0", "mlp.2")} == {"MatMul"}
    assert ops["norm"] == "LayerNormalization"
    assert ops["patch"] == "Conv"
    assert any(name.startswith("attention/") for name in ops)


def test_nothing_of_the_source_is_left_in_the_file():
    model, _, _, _ = family("residual")
    proto = converter_of("torch")(model, input_dim=(3, 8, 8))
    text = proto.SerializeToString()
    for trace in (b"stack_trace", b".py", b"class_hierarchy", __name__.encode(), b"File "):
        assert trace not in text


def converter_of(module):
    return importlib.import_module(f"onnxplain_converters.{module}").convert


# -- inputs ----------------------------------------------------------------------------------------


def test_documents_example():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, (2, 2), stride=2, padding=3), nn.ReLU(), nn.AvgPool2d((2, 2)),
        nn.Flatten(), nn.Linear(80, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 2), nn.Softmax(1),
    )  # fmt: skip
    converter = ox.convert(model, input_dim=(3, 10, 10), output_names=["yes", "no"])
    assert converter.input_dim == [(3, 10, 10)]
    assert converter.output_names == [[["yes", "no"]]]
    assert [dim for *_, dim in sizes(converter)][:3] == [(5, 8, 8), (5, 8, 8), (5, 4, 4)]
    x = torch.rand(4, 3, 10, 10)
    np.testing.assert_allclose(
        converter(x.numpy())[0], model.eval()(x).detach().numpy(), rtol=0, atol=1e-6
    )


def sizes(converter):
    shapes = converter.trial.shapes
    return [(node.name, shapes[node.outputs[0]][1:]) for node in converter.graph.nodes]


@pytest.mark.parametrize("batch", [1, 4])
def test_example_input_takes_the_place_of_input_dim(batch):
    model = built(mlp)
    converter = ox.convert(model, example=torch.randn(batch, 5))
    assert converter.input_dim == [(5,)]
    x = torch.randn(7, 5)
    np.testing.assert_allclose(converter(x.numpy())[0], model(x).detach().numpy(), atol=1e-6)


def test_whole_numbers_as_input_come_by_example():
    model = built(Embedded)
    ids, x = torch.randint(0, 7, (3, 6)), torch.randn(3, 6)
    converter = ox.convert(model, example=(ids, x))
    got = converter([ids.numpy(), x.numpy()])[0]
    np.testing.assert_allclose(got, model(ids, x).detach().numpy(), rtol=0, atol=1e-5)
    run = ox.Gradient(converter, [ids.numpy(), x.numpy()], output_idx=[0, 1, 2])
    x.requires_grad_()
    (grad,) = torch.autograd.grad(model(ids, x)[:, 1].sum(), x)
    assert run.result[0][0] is None
    np.testing.assert_allclose(run.result[0][1][..., 1], grad.numpy(), rtol=0, atol=1e-5)
    with pytest.raises(ShapeError, match="whole numbers as input need example="):
        ox.convert(model, input_dim=[(6,), (6,)])


def test_modes_and_weights_of_the_module_stay_as_they_are():
    model = built(conv_net).train()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    ox.convert(model, input_dim=(3, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_modes_are_restored_after_an_error():
    model = mlp().train()
    with pytest.raises(ShapeError):
        ox.convert(model, input_dim=(6,))
    assert all(module.training for module in model.modules())


def test_export_is_quiet(capfd):
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ox.convert(mlp(), input_dim=(5,))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert logging.root.manager.disable == level


@pytest.mark.parametrize("opset", [18, 19, 20])
def test_opset_can_be_chosen(opset):
    model = built(activations)
    converter = ox.convert(model, input_dim=(5,), opset=opset)
    assert converter.raw.opsets[""] == opset
    x = torch.randn(3, 5)
    np.testing.assert_allclose(converter(x.numpy())[0], model(x).detach().numpy(), atol=1e-5)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({}, ArgumentError, "does not know the shape of its input: give input_dim"),
        ({"input_dim": (6,)}, ShapeError, r"does not run on \(2, 6\) torch.float32: .* multiplied"),
        ({"input_dim": [(5,), (5,)]}, ShapeError, "does not run on"),
        ({"input_dim": "five"}, ShapeError, "input_dim must be whole numbers"),
        ({"input_dim": (5.5,)}, ShapeError, "input_dim must be whole numbers"),
        ({"input_dim": (0,)}, ShapeError, "input_dim must be whole numbers"),
        ({"input_dim": 5}, ShapeError, "input_dim must be whole numbers"),
        ({"example": np.zeros((2, 5))}, DtypeError, "example must be a tensor"),
        ({"example": torch.zeros(())}, ShapeError, "same batch size"),
        ({"example": (torch.zeros(2, 5), torch.zeros(3, 5))}, ShapeError, "same batch size"),
        ({"example": torch.zeros(2, 5), "input_dim": (6,)}, ShapeError, "input_dim"),
        ({"input_dim": (5,), "opset": 26}, ArgumentError, r"opset must be one of \(18, 19, 20\)"),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        ox.convert(mlp(), **options)


def test_other_objects_of_torch_are_refused():
    with pytest.raises(DtypeError, match=r"expected a torch\.nn\.Module, got Tensor"):
        ox.convert(torch.zeros(3))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell = kind(4, 3, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0][:, -1]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_run(kind):
    model = Recurrent(getattr(nn, kind)).eval()
    x = torch.randn(3, 5, 4)
    found = ox.convert(model, input_dim=(5, 4))(x.numpy())[0]
    np.testing.assert_allclose(found, model(x).detach().numpy(), rtol=0, atol=1e-6)


class Branching(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def test_branches_on_the_data_are_refused(capfd):
    with pytest.raises(ModelError, match=r"cannot export Branching: .*data-dependent"):
        ox.convert(Branching(), input_dim=(3,))
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_goes_through_the_older_exporter_and_says_so():
    model = built(conv_net)
    with pytest.warns(UserWarning, match=r"TorchScript module\); torch's older exporter was used"):
        converter = ox.convert(torch.jit.script(model), input_dim=(3, 8, 8))
    x = torch.randn(3, 3, 8, 8)
    np.testing.assert_allclose(converter(x.numpy())[0], model(x).detach().numpy(), atol=1e-5)


def test_a_failed_export_names_the_reason_and_the_way_out(monkeypatch):
    export = torch.onnx.export

    def failing(*args, dynamo, **options):
        if dynamo:
            raise RuntimeError("first") from ValueError("no such thing\nand more")
        return export(*args, dynamo=dynamo, **options)

    monkeypatch.setattr(torch.onnx, "export", failing)
    model = built(mlp)
    with pytest.warns(UserWarning, match=r"cannot read the module \(no such thing\)"):
        converter = ox.convert(model, input_dim=(5,))
    x = torch.randn(3, 5)
    np.testing.assert_allclose(converter(x.numpy())[0], model(x).detach().numpy(), atol=1e-6)


def test_missing_onnxscript_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match=r"onnxscript: pip install 'onnxplain\[torch\]'"):
        ox.convert(mlp(), input_dim=(5,))


# -- to the list format ----------------------------------------------------------------------------


def test_sequential_module_is_written_in_the_list_format():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=(1, 2)), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(80, 6), nn.Softplus(), nn.Linear(6, 2), nn.Softmax(-1),
    )  # fmt: skip
    converter = ox.convert(model.eval(), input_dim=(3, 8, 8), save_model_as_dict=True)
    layers = converter.model_as_dict["layers"]
    found = [(entry["type"], entry.get("activation_name")) for entry in layers]
    assert found == [
        ("Conv2D", "relu"), ("MaxPooling2D", None), ("Flatten", None), ("Dense", "softplus"),
        ("Dense", "softmax"),
    ]  # fmt: skip
    assert layers[0]["padding"] == (2, 2, 1, 1)
    x = np.random.default_rng(0).normal(size=(3, 3, 8, 8))
    np.testing.assert_allclose(
        ox.convert(converter.model_as_dict)(x)[0], converter(x)[0], rtol=0, atol=1e-6
    )


def test_module_that_the_list_format_cannot_express_names_the_node():
    with pytest.raises(ModelError, match=r"node '4' .Conv.* list format: it has groups"):
        ox.convert(conv_net(), input_dim=(3, 8, 8), save_model_as_dict=True)
