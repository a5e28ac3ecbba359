"""The operators: how each computes, and how signals travel back through it."""

from . import (
    activations,
    arithmetic,
    constants,
    convolution,
    linear,
    ml,
    normalisation,
    pooling,
    reductions,
    resize,
    routing,
)
from .base import find, registered_ops, schema_defaults, versions

__all__ = [
    "find",
    "registered_ops",
    "schema_defaults",
    "versions",
    # Importing these modules puts their kernels into the table.
    "activations",
    "arithmetic",
    "constants",
    "convolution",
    "linear",
    "ml",
    "normalisation",
    "pooling",
    "reductions",
    "resize",
    "routing",
]
