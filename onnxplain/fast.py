"""Where kernels find faster code for windows and their sums: on a GPU, or compiled."""

from __future__ import annotations

from types import ModuleType

from . import cpu_kernels, gpu_kernels
from .arrays import Array


def for_windows(x: Array, axes: int) -> ModuleType | None:
    """Return the module that works on `x` of so many spatial axes, None where there is none."""
    for module in (gpu_kernels, cpu_kernels):
        if module.serves(x, axes):
            return module
    return None
