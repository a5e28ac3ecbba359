"""The networks of the benchmark as torch modules."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .networks import NETWORKS, WEIGHTED, Layer


class Copy(nn.Module):
    def forward(self, x):
        return x.clone()


class Flat(nn.Module):
    """Flattens between two parts; as a layer, captum's LRP would know no rule for it."""

    def __init__(self, before, after):
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x):
        return self.after(torch.flatten(self.before(x), 1))


class Residual(nn.Module):
    """Adds a branch to its input, or to a shortcut; captum's LRP rejects an empty shortcut."""

    def __init__(self, branch, shortcut, add):
        super().__init__()
        self.branch, self.add = branch, add
        self.shortcut = shortcut if len(shortcut) else None

    def forward(self, x):
        return self.add(self.branch(x), x if self.shortcut is None else self.shortcut(x))


class FirstOutputs(nn.Module):
    """The first outputs of a network."""

    def __init__(self, model, count):
        super().__init__()
        self.model, self.count = model, count

    def forward(self, x):
        return self.model(x)[:, : self.count]


def module(
    name: str, adder: Callable[[], Any] = lambda: operator.add, copies: bool = False
) -> nn.Module:
    """Return a network as a torch module.

    Parameters
    ----------
    name : str
        A key of `bench.networks.NETWORKS`.
    adder : callable, optional
        Makes what adds the two ends of a residual block: LRP of captum and of zennit only sees
        additions that are modules of their own.
    copies : bool, default False
        Copy tensors before and after a max-pool: captum's DeepLift mixes up the hooks of a ReLU
        and a pooling that share one.
    """
    layers = NETWORKS[name].layers()
    kinds = [layer[0] for layer in layers]
    if "flat" not in kinds:
        return _chain(layers, adder, copies).eval()
    cut = kinds.index("flat")
    parts = (_chain(part, adder, copies) for part in (layers[:cut], layers[cut + 1 :]))
    return Flat(*parts).eval()


def _chain(layers: list[Layer], adder: Callable[[], Any], copies: bool) -> nn.Sequential:
    built: list[nn.Module] = []
    for kind, *parts in layers:
        if kind == "residual":
            built.append(Residual(*(_chain(part, adder, copies) for part in parts), adder()))
            continue
        around = [Copy()] if copies and kind.startswith("pool") else []
        built += [*around, _layer(kind, *parts), *around]
    return nn.Sequential(*built)


_PLAIN: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "pool": lambda: nn.MaxPool2d(2),
    "pool3": lambda: nn.MaxPool2d(3, 2, 1),
    "mean": lambda: nn.AdaptiveAvgPool2d(1),
}


def _layer(kind: str, *parts: Any) -> nn.Module:
    if kind not in WEIGHTED:
        return _PLAIN[kind]()
    weight, bias, *settings = parts
    layer = _conv(weight, *settings) if kind == "conv" else nn.Linear(*weight.shape[::-1])
    layer.weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)
    layer.bias = nn.Parameter(torch.from_numpy(bias), requires_grad=False)
    return layer


def _conv(weight: Any, stride: int, groups: int) -> nn.Conv2d:
    out, channels, kernel, _ = weight.shape
    return nn.Conv2d(channels * groups, out, kernel, stride, padding=kernel // 2, groups=groups)
