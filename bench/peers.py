"""The same works done by torch, onnxruntime, captum and zennit, each in its best documented way.

None of them explains several outputs at once, so they loop over them. Batches that would not fit
into memory do not occur in the table.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from . import networks
from .rows import Row

warnings.filterwarnings("ignore")  # captum comments on hooks and gradients at every call


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
    copies = library == "captum" and row.work in ("deeplift", "deepshap")
    kind = torch.float64 if dtype == "double" else torch.float32
    module = networks.torch_module(row.network, copies).to(device, kind)
    x = torch.from_numpy(networks.data(row.network, row.batch)).to(device, kind)
    return globals()[f"_{library}_{row.work}"](module, x, row)


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

    def work():
        leaf = x.clone().requires_grad_()
        totals = model(leaf).sum(dim=0)
        keep = row.outputs > 1
        return _stack(
            [torch.autograd.grad(totals[k], leaf, retain_graph=keep)[0] for k in range(row.outputs)]
        )

    return work


def _onnxruntime_forward(model, row):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x = networks.data(row.network, row.batch)
    return lambda: session.run(None, {"x": x})[0]


_PAIRS = 50_000

# -- captum ---------------------------------------------------------------------------------------


def _captum_loop(attribute, row):
    return lambda: _stack([attribute(target=k) for k in range(row.outputs)])


def _captum_gradient(model, x, row):
    from captum.attr import Saliency

    method = Saliency(model)
    return _captum_loop(lambda target: method.attribute(x, target=target, abs=False), row)


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
    return _captum_loop(lambda target: method.attribute(x, reference, target=target), row)


def _captum_deepshap(model, x, row):
    from captum.attr import DeepLiftShap

    method, references = DeepLiftShap(model), _references(row, row.references, x)
    # All pairs of rows and references make one batch: what would not fit is cut by rows.
    parts = x.split(max(1, _PAIRS // row.references))

    def attribute(target):
        return torch.cat([method.attribute(part, references, target=target) for part in parts])

    return _captum_loop(attribute, row)


def _captum_lrp_epsilon(model, x, row):
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import EpsilonRule
    from torch import nn

    def attribute(target):
        for module in model.modules():  # attribute() removes the rules it finds
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.rule = EpsilonRule(epsilon=0.01)
        return LRP(model).attribute(x, target=target)

    return _captum_loop(attribute, row)


# -- zennit ---------------------------------------------------------------------------------------


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
    from zennit.rules import Pass
    from zennit.types import Activation, Convolution, Linear

    return LayerMapComposite([(Activation, Pass()), (Convolution, rule), (Linear, rule)])


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
