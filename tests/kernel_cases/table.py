"""What a case is, and data for it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx

from onnxplain.kernels import find

NEWEST = onnx.defs.onnx_opset_version()


def spread(*shape, low=-2.0, high=2.0):
    """Return shuffled, evenly spaced numbers: no ties, nothing near 0 for symmetric bounds."""
    n = int(np.prod(shape))
    steps = low + (high - low) * (np.arange(n) + 0.5 + 0.1 * (n % 2)) / n
    return np.random.default_rng([*shape, n]).permutation(steps).reshape(shape)


def above(*shape, low=0.2, high=3.0):
    """Return positive numbers."""
    return spread(*shape, low=low, high=high)


def ints(*values):
    return np.array(values, np.int64)


def floats(*values):
    return np.array(values, np.float32)


@dataclass(frozen=True)
class Case:
    """One node: what `check_kernel` and the other tests need to make its kernel."""

    op: str
    inputs: list
    attributes: dict = field(default_factory=dict)
    active: tuple[int, ...] = (0,)
    opset: int | None = None
    domain: str = ""
    n_outputs: int = 1
    rows: bool = True
    exact: bool | None = None

    @property
    def kernel_class(self):
        flags = tuple(i in self.active for i in range(len(self.inputs)))
        opset = self.opset or (1 if self.domain else NEWEST)
        return find(self.op, opset, flags, self.domain)

    @property
    def name(self):
        name = self.kernel_class.__name__
        details = [f"{k}={v}" for k, v in self.attributes.items()]
        details += [] if self.opset is None else [f"opset={self.opset}"]
        details += ["x".join(map(str, self.inputs[self.active[0]].shape))]
        details += [] if self.active == (0,) else [f"active={self.active}"]
        return f"{name}-{'-'.join(details)}".replace(" ", "")


X = spread(3, 4)
SIGNAL = spread(3, 4, 6)
IMAGE = spread(2, 4, 5, 6)
VOLUME = spread(2, 2, 4, 3, 5)
WIDE = spread(3, 8, low=-8, high=8)
SPAN = spread(3, 20, low=-5, high=5)
