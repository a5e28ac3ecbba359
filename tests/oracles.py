"""Small networks, and questions that other libraries answer about them as well.

Each question is asked where the other library is right and follows the same convention: captum
without a ReLU next to a max-pool, zennit and captum with their stabilisers set to ours.
"""

import sys
import types
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from onnx import helper

import onnxplain as ox
from networks import graph
from onnxplain.rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus

# Layers: ("dense", outputs), ("conv", channels, kernel, stride, pad), or a name of _PLAIN.
NETWORKS = {
    "mlp": ((6,), [("dense", 8), "relu", ("dense", 5), "tanh", ("dense", 3)]),
    "averages": (
        (2, 8, 8),
        [
            ("conv", 4, 3, 1, 1),
            "relu",
            "average",
            ("conv", 5, 3, 2, 1),
            "relu",
            "flat",
            ("dense", 3),
        ],
    ),
    "maxima": (
        (2, 8, 8),
        [("conv", 4, 3, 1, 1), "maximum", ("conv", 5, 2, 1, 0), "relu", "flat", ("dense", 3)],
    ),
    "smooth": ((6,), [("dense", 8), "sigmoid", ("dense", 8), "softplus", ("dense", 3)]),
}
_WINDOW = {"kernel_shape": [2, 2], "strides": [2, 2]}
_PLAIN = {
    "relu": ("Relu", {}, "ReLU", ()),
    "tanh": ("Tanh", {}, "Tanh", ()),
    "sigmoid": ("Sigmoid", {}, "Sigmoid", ()),
    "softplus": ("Softplus", {}, "Softplus", ()),
    "average": ("AveragePool", _WINDOW, "AvgPool2d", (2,)),
    "maximum": ("MaxPool", _WINDOW, "MaxPool2d", (2,)),
    "flat": ("Flatten", {}, "Flatten", ()),
}
OUTPUTS = 3


def layers(name):
    """Return the layers of a network with seeded weights in float64."""
    shape, plan = NETWORKS[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    found = []
    for step in plan:
        if isinstance(step, str):
            found.append((step,))
            if step in ("average", "maximum"):
                shape = (shape[0], *(n // 2 for n in shape[1:]))
            continue
        kind, out, *window = step
        if kind == "conv":
            k, stride, pad = window
            size = (out, shape[0], k, k)
            shape = (out, *((n + 2 * pad - k) // stride + 1 for n in shape[1:]))
        else:
            size = (out, int(np.prod(shape)))
            shape = (out,)
        weight = rng.normal(0, np.prod(size[1:]) ** -0.5, size)
        found.append((kind, weight, rng.normal(0, 0.3, out), *window[1:]))
    return found


def to_onnx(name):
    """Return a network as an ONNX model in float64."""
    nodes, weights, last = [], {}, "x"
    for i, (kind, *rest) in enumerate(layers(name)):
        names = []
        if rest:
            names = [f"weight{i}", f"bias{i}"]
            weights |= dict(zip(names, rest[:2], strict=True))
        nodes.append(_node(kind, [last, *names], f"y{i}", rest[2:]))
        last = f"y{i}"
    return graph(nodes, {"x": NETWORKS[name][0]}, weights)


def _node(kind, inputs, output, window):
    if kind == "conv":
        stride, pad = window
        return helper.make_node("Conv", inputs, [output], strides=[stride] * 2, pads=[pad] * 4)
    if kind == "dense":
        return helper.make_node("Gemm", inputs, [output], transB=1)
    op, attributes, *_ = _PLAIN[kind]
    return helper.make_node(op, inputs, [output], **attributes)


def to_torch(name):
    """Return a network as a torch module in float64."""
    import torch
    from torch import nn

    modules = []
    for kind, *rest in layers(name):
        if not rest:
            *_, module, arguments = _PLAIN[kind]
            modules.append(getattr(nn, module)(*arguments))
            continue
        weight, bias = (nn.Parameter(torch.from_numpy(a)) for a in rest[:2])
        if kind == "conv":
            out, channels, k, _ = weight.shape
            modules.append(nn.Conv2d(channels, out, k, stride=rest[2], padding=rest[3]))
        else:
            modules.append(nn.Linear(weight.shape[1], weight.shape[0]))
        modules[-1].weight, modules[-1].bias = weight, bias
    return nn.Sequential(*modules).eval()


def data(name, rows=3, seed=1):
    return np.random.default_rng(seed).normal(size=(rows, *NETWORKS[name][0]))


# -- questions ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """What onnxplain and another library are asked about a network.

    Attributes
    ----------
    ours : callable
        Takes converter, rows and options to a method.
    theirs : callable
        Takes the torch module, rows, references and the explained output to an array like x.
    tolerance : float
        Relative to the largest value.
    """

    library: str
    name: str
    network: str
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    tolerance: float = 1e-9
    references: int = 1

    @property
    def key(self):
        return f"{self.library}-{self.name}-{self.network}".replace(" ", "-")

    def our_answer(self, model):
        """Return the answer for a model, (rows, *input_dim, outputs)."""
        x, refs = data(self.network), data(self.network, self.references, seed=2)
        method = self.ours(ox.convert(model), x, refs, dtype="double", ignore_last_act=False)
        return method.get_result()

    def their_answer(self):
        """Return the other library's answer in the same form."""
        import torch

        model = to_torch(self.network)
        x, refs = (
            torch.from_numpy(data(self.network, n, seed))
            for n, seed in ((3, 1), (self.references, 2))
        )
        found = [self.theirs(model, x, refs, k).detach().numpy() for k in range(OUTPUTS)]
        return np.stack(found, axis=-1)

    def check(self, theirs):
        ours = self.our_answer(to_onnx(self.network))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=self.tolerance * abs(theirs).max())


# torch and captum


def _torch_gradient(model, x, refs, k):
    import torch

    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x)[:, k].sum(), x)[0]


def _captum_ig(model, x, refs, k, method):
    from captum.attr import IntegratedGradients

    return IntegratedGradients(model).attribute(x, refs, target=k, n_steps=20, method=method)


def _captum_deeplift(model, x, refs, k):
    from captum.attr import DeepLift

    return DeepLift(model).attribute(x, refs, target=k)


def _captum_deepshap(model, x, refs, k):
    from captum.attr import DeepLiftShap

    return DeepLiftShap(model).attribute(x, refs, target=k)


def _captum_lrp(model, x, refs, k, epsilon):
    import torch
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import EpsilonRule

    class Unflattened(torch.nn.Module):
        """The same network with a function in place of nn.Flatten, for which captum has no rule."""

        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(
                m for m in model if not isinstance(m, torch.nn.Flatten)
            )

        def forward(self, x):
            *before, last = self.layers
            for layer in before:
                x = layer(x)
            return last(torch.flatten(x, 1))

    network = Unflattened()
    for module in network.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.rule = EpsilonRule(epsilon=epsilon)
        elif isinstance(module, (torch.nn.AvgPool2d, torch.nn.MaxPool2d)):
            module.rule = EpsilonRule(epsilon=1e-15)
    return LRP(network).attribute(x, target=k)


def _our_gradient(c, x, refs, **options):
    return ox.Gradient(c, x, **options)


def _our_ig(c, x, refs, quadrature, **options):
    return ox.IntegratedGradient(c, x, x_ref=refs, n=20, quadrature=quadrature, **options)


def _our_deeplift(c, x, refs, **options):
    return ox.DeepLift(c, x, x_ref=refs, **options)


def _our_deepshap(c, x, refs, **options):
    return ox.DeepSHAP(c, x, data_ref=refs, **options)


def _our_lrp(c, x, refs, rule, first=None, **options):
    nodes = {node.op: rule for node in c.graph.nodes if node.op in ("Conv", "Gemm")}
    if first is not None:
        nodes[c.graph.nodes[0].name] = first
    return ox.LRP(c, x, rule_name=nodes, **options)


# zennit


def import_zennit():
    """Import zennit, also without torchvision, two of whose classes it imports but hardly uses."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        resnet = types.ModuleType("torchvision.models.resnet")
        resnet.BasicBlock = resnet.Bottleneck = type("Block", (), {})
        for name in ("torchvision", "torchvision.models"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules[resnet.__name__] = resnet
    import zennit

    return zennit


def _zennit_lrp(model, x, refs, k, rule, arguments, first=None):
    """Relevance starts from the value of the output."""
    import_zennit()
    import torch
    from zennit import rules
    from zennit.attribution import Gradient
    from zennit.composites import SpecialFirstLayerMapComposite
    from zennit.types import Activation, AvgPool, Convolution, Linear

    def make(name, arguments):
        return getattr(rules, name)(**arguments)

    chosen = make(rule, arguments)
    layers = [
        (Activation, rules.Pass()),
        (AvgPool, rules.Norm(stabilizer=1e-15)),
        (Convolution, chosen),
        (Linear, chosen),
    ]
    special = [((Convolution, Linear), make(*first))] if first else []
    composite = SpecialFirstLayerMapComposite(layers, special)
    x = x.clone().requires_grad_()
    with Gradient(model, composite) as attributor:
        start = torch.eye(OUTPUTS, dtype=x.dtype)[k]
        return attributor(x, lambda out: out.detach() * start)[1]


_TINY = {"stabilizer": 1e-15}
_ZENNIT = {  # our rules (all layers, first layer), theirs
    "epsilon": (Epsilon(0.1), None, ("Epsilon", {"epsilon": 0.1}), None),
    "z plus": (ZPlus(), None, ("ZPlus", _TINY), None),
    "alpha2 beta1": (AlphaBeta(2), None, ("AlphaBeta", {"alpha": 2, "beta": 1} | _TINY), None),
    "gamma": (Gamma(0.3), None, ("Gamma", {"gamma": 0.3} | _TINY), None),
    "w square": (Epsilon(0.1), WSquare(), ("Epsilon", {"epsilon": 0.1}), ("WSquare", _TINY)),
    "flat": (Epsilon(0.1), Flat(), ("Epsilon", {"epsilon": 0.1}), ("Flat", _TINY)),
    "z box": (
        Epsilon(0.1), ZBox(-5, 5), ("Epsilon", {"epsilon": 0.1}),
        ("ZBox", {"low": -5.0, "high": 5.0} | _TINY),
    ),
}  # fmt: skip

QUESTIONS = [
    *(Question("torch", "gradient", n, _our_gradient, _torch_gradient) for n in NETWORKS),
    *(
        Question(
            "captum", f"ig {theirs}", n, partial(_our_ig, quadrature=ours),
            partial(_captum_ig, method=theirs), 1e-6,
        )  # captum's steps are float32; near a kink that shows
        for ours, theirs in (("gauss_legendre", "gausslegendre"), ("riemann_right",) * 2)
        for n in NETWORKS
    ),
    *(
        Question("captum", "deeplift", n, _our_deeplift, _captum_deeplift)
        for n in ("mlp", "averages", "maxima")
    ),
    *(
        Question("captum", "deepshap", n, _our_deepshap, _captum_deepshap, references=4)
        for n in ("mlp", "averages", "maxima")
    ),
    *(
        Question(
            "captum", "lrp epsilon", n, partial(_our_lrp, rule=Epsilon(0.1)),
            partial(_captum_lrp, epsilon=0.1),
        )
        for n in ("mlp", "averages", "maxima")
    ),
    *(
        Question(
            "zennit", f"lrp {name}", n, partial(_our_lrp, rule=rule, first=first),
            partial(_zennit_lrp, rule=theirs[0], arguments=theirs[1], first=theirs_first),
        )
        for name, (rule, first, theirs, theirs_first) in _ZENNIT.items()
        for n in ("mlp", "averages", "maxima")
    ),
]  # fmt: skip


def of(library):
    """Return the questions a library answers, as arguments of parametrize."""
    found = [q for q in QUESTIONS if q.library == library]
    return {"argnames": "question", "argvalues": found, "ids": [q.key for q in found]}
