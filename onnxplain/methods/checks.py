"""Checks of arguments that many methods have."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ArgumentError, shown

MAX_COUNT = 1_000_000  # of draws, points, references: more is a slip of the pen


def check_flags(**flags: Any) -> None:
    """Raise unless every argument is True or False."""
    for name, value in flags.items():
        if not isinstance(value, (bool, np.bool_)):
            raise ArgumentError(f"{name} must be True or False, got {shown(value)}")


def check_count(name: str, value: Any, least: int = 1, most: int | None = MAX_COUNT) -> int:
    """Return a whole number between two bounds."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        bounds = f">= {least}" if most is None else f"from {least} to {most:,}"
        raise ArgumentError(f"{name} must be a whole number {bounds}, got {shown(value)}")
    return int(value)
