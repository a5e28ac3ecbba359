"""Advice where the matrix products of NumPy run with kernels for an older processor."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

# Products of so many numbers OpenBLAS computes as they lie, with the kernels for AVX-512; larger
# ones it packs first, which few rows or columns do not pay for.
SMALL_PRODUCT = 10**6
# OpenBLAS's kernels for x86 processors without AVX-512.
_OLDER = {"Prescott", "Nehalem", "Sandybridge", "Haswell", "Zen", "Excavator", "Bulldozer"}
_FLAGS = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}


class PerformanceAdvice(UserWarning):
    """Something outside the package makes it slower than it could be."""


def advise(libraries: Iterable[Mapping[str, Any]]) -> None:
    """Warn, once in a process, if OpenBLAS took this processor for an older one.

    Whoever set OPENBLAS_CORETYPE has chosen the kernels, and gets no advice.
    """
    slow = [lib for lib in libraries if lib.get("architecture") in _OLDER]
    if slow and "OPENBLAS_CORETYPE" not in os.environ and _flags() >= _FLAGS:
        _warn(slow[0]["architecture"])


@cache
def _warn(architecture: str) -> None:
    warnings.warn(
        f"OpenBLAS takes this processor for {architecture} and multiplies matrices at about half "
        "the speed it could; set the environment variable OPENBLAS_CORETYPE=SkylakeX before NumPy "
        f"is loaded, or OPENBLAS_CORETYPE={architecture} to keep it as it is without this advice",
        PerformanceAdvice,
        stacklevel=2,
    )


def _flags() -> set[str]:
    """Return what the processor can do, as Linux tells it; elsewhere nothing is known."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not cpuinfo.exists():
        return set()
    lines = (line for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))
    return set(next(lines, "").partition(":")[2].split())
