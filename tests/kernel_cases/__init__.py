"""One table of nodes for every differentiable kernel: operators, inputs, attributes, versions."""

from . import attention, contractions, elementwise, indexing, layers, quantised, recurrent, sampling
from .table import IMAGE, NEWEST, SIGNAL, Case, spread

CASES = [
    *layers.CASES,
    *elementwise.CASES,
    *contractions.CASES,
    *indexing.CASES,
    *sampling.CASES,
    *quantised.CASES,
    *attention.CASES,
    *recurrent.CASES,
]

__all__ = ["CASES", "IMAGE", "NEWEST", "SIGNAL", "Case", "spread"]
