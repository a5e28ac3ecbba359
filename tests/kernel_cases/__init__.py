"""One table of nodes for every differentiable kernel: operators, inputs, attributes, versions."""

from . import layers
from .table import IMAGE, NEWEST, SIGNAL, Case, spread

CASES = [*layers.CASES]

__all__ = ["CASES", "IMAGE", "NEWEST", "SIGNAL", "Case", "spread"]
