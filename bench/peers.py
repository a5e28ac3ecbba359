"""The same works done by torch, onnxruntime, captum, zennit and shap, each in its best known way.

None of them explains several outputs at once, so they loop over them; tables are cut into parts of
the size at which they are fastest, where they do not cut them themselves.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from . import networks
from .modules import FirstOutputs, module
from .rows import Row

warnings.filterwarnings("ignore")  # captum comments on hooks and gradients at every call

_TORCH_PART, _CAPTUM_PART = 8192, 2048  # rows, or pairs of a row and a reference


def prepare(
    row: Row, library: str, model: str, dtype: str, device: str
) -> Callable[[], np.ndarray]:
    """Return a function without arguments that does the work; only onnxruntime reads the file.

    On a GPU products are true float32, as ours are, and the data are there already.
    """
    if library == "onnxruntime":
        return _onnxruntime_forward(model, row)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    kind = torch.float64 if dtype == "double" else torch.float32
    built = _module(library, row).to(device, kind)
    x = torch.from_numpy(networks.data(row.network, row.batch)).to(device, kind)
    return globals()[f"_{library}_{row.work}"](built, x, row)


def computes(library: str) -> str:
    """Return what a library computes with."""
    threads = f"{torch.get_num_threads()} threads"
    if library == "onnxruntime":
        return f"its own kernels, {threads}"
    built = torch.__config__.show()
    names = {"MKL": r"Math Kernel Library Version ([\d.]+)", "oneDNN": r"MKL-DNN v([\d.]+)"}
    found = [
        f"{name} {v[1]}" for name, pattern in names.items() if (v := re.search(pattern, built))
    ]
    return ", ".join([*found, torch.backends.cpu.get_cpu_capability(), threads])


def _module(library: str, row: Row) -> Any:
    """Return the network, changed as far as a library asks for it."""
    if library == "captum" and row.work in ("deeplift", "deepshap"):
        return module(row.network, copies=True)
    if library == "captum" and row.work == "lrp_epsilon":
        from captum.attr._utils.custom_modules import Addition_Module

        return module(row.network, Addition_Module)
    if library == "zennit":
        return module(row.network, _ZennitAdd)
    return module(row.network)


def _in_parts(work: Callable[[Any], Any], x: Any, rows: int = _CAPTUM_PART) -> Any:
    """Return what a function makes of parts of the rows, as one tensor."""
    return torch.cat([work(part) for part in x.split(max(1, rows))])


def _stack(parts: list[Any]) -> np.ndarray:
    return torch.stack([p.detach() for p in parts], dim=-1).cpu().numpy()


def _references(row: Row, n: int, like: Any) -> Any:
    return torch.from_numpy(networks.data(row.network, n, seed=2)).to(like)


# -- torch ----------------------------------------------------------------------------------------


def _torch_forward(model, x, row):
    def work():
        with torch.inference_mode():
            return model(x).cpu().numpy()

    return work


def _torch_gradient(model, x, row):
    """One forward pass, one backward pass per output."""

    def gradients(part):
        leaf = part.clone().requires_grad_()
        totals = model(leaf).sum(dim=0)
        keep = row.outputs > 1
        found = [
            torch.autograd.grad(totals[k], leaf, retain_graph=keep) for k in range(row.outputs)
        ]
        return torch.stack([grad for (grad,) in found], dim=-1)

    return lambda: _in_parts(gradients, x, _TORCH_PART).cpu().numpy()


def _onnxruntime_forward(model, row):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x = networks.data(row.network, row.batch)
    return lambda: session.run(None, {"x": x})[0]


# -- captum ---------------------------------------------------------------------------------------


def _captum_loop(attribute, row):
    return lambda: _stack([attribute(target=k) for k in range(row.outputs)])


def _captum_gradient(model, x, row):
    from captum.attr import Saliency

    method = Saliency(model)

    def attribute(target):
        return _in_parts(lambda part: method.attribute(part, target=target, abs=False), x)

    return _captum_loop(attribute, row)


def _captum_intgrad(model, x, row):
    """All points in one batch, unless a chunk of 8 points is all that a large network allows."""
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(model)
    options = {"n_steps": row.steps, "method": "riemann_right"}
    if row.network.startswith("vgg"):
        options["internal_batch_size"] = 8
    return _captum_loop(lambda target: method.attribute(x, target=target, **options), row)


def _captum_deeplift(model, x, row):
    from captum.attr import DeepLift

    method, reference = DeepLift(model), _references(row, 1, x)

    def attribute(target):
        return _in_parts(lambda part: method.attribute(part, reference, target=target), x)

    return _captum_loop(attribute, row)


def _captum_deepshap(model, x, row):
    from captum.attr import DeepLiftShap

    method, references = DeepLiftShap(model), _references(row, row.references, x)

    def attribute(target):
        one = partial(method.attribute, baselines=references, target=target)
        return _in_parts(one, x, _CAPTUM_PART // row.references)

    return _captum_loop(attribute, row)


def _captum_lrp_epsilon(model, x, row):
    from captum.attr import LRP
    from captum.attr._utils.custom_modules import Addition_Module
    from captum.attr._utils.lrp_rules import EpsilonRule

    ruled = (nn.Conv2d, nn.Linear, nn.AdaptiveAvgPool2d, Addition_Module)

    def attribute(target):
        for layer in model.modules():  # attribute() removes the rules it finds
            if isinstance(layer, ruled):
                layer.rule = EpsilonRule(epsilon=0.01)
        return LRP(model).attribute(x, target=target)

    return _captum_loop(attribute, row)


# -- zennit ---------------------------------------------------------------------------------------


class _ZennitAdd(nn.Module):
    """An addition that rules can be given to."""

    def __init__(self):
        super().__init__()
        from zennit.layer import Sum

        self.sum = Sum()

    def forward(self, a, b):
        return self.sum(torch.stack([a, b], dim=-1))


def _zennit_loop(attributor, x, row):
    """Relevance starts from the value of the output, as everywhere in this table."""

    def one(k):
        return attributor(x, lambda out: out * _one_hot(out, k))[1]

    def work():
        with attributor:
            return _stack([one(k) for k in range(row.outputs)])

    return work


def _one_hot(out, k):
    return torch.nn.functional.one_hot(torch.tensor(k), out.shape[1]).to(out)


def _zennit_composite(rule):
    from zennit.composites import LayerMapComposite
    from zennit.layer import Sum
    from zennit.rules import Pass
    from zennit.types import Activation, AvgPool, Convolution, Linear

    ruled = [(kind, rule) for kind in (Convolution, Linear, AvgPool, Sum)]
    return LayerMapComposite([(Activation, Pass()), *ruled])


def _zennit_lrp_epsilon(model, x, row):
    from zennit.attribution import Gradient
    from zennit.rules import Epsilon

    return _zennit_loop(Gradient(model, _zennit_composite(Epsilon(epsilon=0.01))), x, row)


def _zennit_lrp_alpha_beta(model, x, row):
    from zennit.attribution import Gradient
    from zennit.rules import AlphaBeta

    return _zennit_loop(Gradient(model, _zennit_composite(AlphaBeta(alpha=2, beta=1))), x, row)


def _zennit_intgrad(model, x, row):
    """Its baseline is zero and its points are those of the right Riemann sum."""
    from zennit.attribution import IntegratedGradients

    method = IntegratedGradients(model, n_iter=row.steps)

    def work():
        with method:
            return _stack(
                [
                    method(x, lambda out, k=k: _one_hot(out, k).expand_as(out))[1]
                    for k in range(row.outputs)
                ]
            )

    return work


# -- shap -----------------------------------------------------------------------------------------


def _shap_deep(model, x, references, row):
    """It explains all outputs of a model, so it gets one that has the explained ones only."""
    from shap import DeepExplainer

    explainer = DeepExplainer(FirstOutputs(model, row.outputs), references)
    return lambda: explainer.shap_values(x, check_additivity=False)


def _shap_deeplift(model, x, row):
    return _shap_deep(model, x, _references(row, 1, x), row)


def _shap_deepshap(model, x, row):
    return _shap_deep(model, x, _references(row, row.references, x), row)
