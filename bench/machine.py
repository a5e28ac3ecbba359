"""What one has to know about a machine to compare numbers."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from .crew import AS_INSTALLED

AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
AVX512_KERNELS = {"SkylakeX", "Cooperlake", "SapphireRapids"}


def machine() -> dict[str, Any]:
    """Return the date, the processor, versions, and how busy the machine is."""
    return {
        "date": date.today().isoformat(),
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _cpuinfo(field: str) -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(rf"{field}\s*:\s*(.*)", path.read_text()) if path.exists() else None
    return found[1] if found else ""


def best_core() -> str:
    """Return "SkylakeX" for a processor with AVX-512 that OpenBLAS does not use, else "installed".

    OpenBLAS takes processors that it does not know for older ones with AVX2 only.
    """
    kernels = {p.get("architecture") for p in blas_libraries() if p["internal_api"] == "openblas"}
    idle = bool(kernels) and not kernels & AVX512_KERNELS
    return "SkylakeX" if idle and set(_cpuinfo("flags").split()) >= AVX512 else AS_INSTALLED


def blas_libraries() -> list[dict[str, Any]]:
    """Return what threadpoolctl knows of every BLAS in this process."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    return [p for p in threadpool_info() if p["user_api"] == "blas"]


def blas() -> str:
    """Return which kernels the BLAS of this process uses."""
    found = {
        f"{p['internal_api']} {p['version']} {p.get('architecture') or ''} "
        f"{p['num_threads']} threads".replace("  ", " ")
        for p in blas_libraries()
    }
    return "BLAS " + (", ".join(sorted(found)) or "unknown")


def peak_memory() -> int:
    """Return the most bytes that this process had in memory.

    Linux counts them; what getrusage tells instead may come from the process that started this one.
    """
    path = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", path.read_text()) if path.exists() else None
    if found:
        return int(found[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
