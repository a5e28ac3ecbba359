"""What a library costs before it computes: the time of its import and its size on disk."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .crew import Setting

OURS, PEERS, COMPILED = "onnxplain", ("torch", "captum"), ("numba", "llvmlite")
IMPORT_GOAL, SIZE_GOAL = 1 / 5, 1 / 4
ROUNDS = 7
PACKAGES = (OURS, "onnxplain_converters")


def import_times(setting: Setting) -> dict[str, float]:
    """Return medians over fresh interpreters, their start included; asked in turn."""
    statements = {"ours": "import onnxplain", "peers": "import torch, captum.attr"}
    times: dict[str, list[float]] = {name: [] for name in statements}
    for round_ in range(ROUNDS + 1):  # the first fills the cache of files
        for name, statement in statements.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True, env=setting.environment())
            if round_:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def required(*names: str) -> set[str]:
    """Return distributions and all that they require, without their extras."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: set[str] = set()
    waiting = [(name, "") for name in names]
    seen = set()
    while waiting:
        name, extra = waiting.pop()
        name = canonicalize_name(name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found.add(name)
        for need in map(Requirement, metadata.requires(name) or ()):
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                waiting += [(need.name, e) for e in ("", *need.extras)]
    return found


def size(name: str) -> int:
    """Return the bytes of an installed distribution, without compiled Python files."""
    found = metadata.distribution(name)
    files = [Path(str(file.locate())) for file in found.files or ()]
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    if name == OURS and origin.get("dir_info", {}).get("editable"):  # its files are elsewhere
        folders = [Path(find_spec(package).origin).parent for package in PACKAGES]
        files = [file for folder in folders for file in folder.rglob("*")]
    return sum(f.stat().st_size for f in files if f.suffix != ".pyc" and f.is_file())


def sizes() -> dict[str, int]:
    """Return installed sizes; of what is not installed there is none."""
    named = {"ours": (OURS,), "with compiled kernels": (OURS, *COMPILED), "peers": PEERS}
    found = {}
    for name, distributions in named.items():
        try:
            found[name] = sum(map(size, required(*distributions)))
        except metadata.PackageNotFoundError as error:
            print(f"installed size, {name}: {error.name} is not installed")
    return found


def show(setting: Setting) -> dict[str, Any]:
    """Print and return import times and installed sizes."""
    times, bytes_ = import_times(setting), sizes()
    peers = " + ".join(PEERS)
    for what, found, goal, unit in (
        ("import time", {k: 1000 * v for k, v in times.items()}, IMPORT_GOAL, "ms"),
        ("installed size", {k: v / 1e6 for k, v in bytes_.items()}, SIZE_GOAL, "MB"),
    ):
        for name in [name for name in found if name != "peers" and "peers" in found]:
            share = found[name] / found["peers"]
            label = OURS if name == "ours" else f"{OURS} {name}"
            print(
                f"{what:<14}  {label}: {found[name]:.0f} {unit}, {peers}: {found['peers']:.0f} "
                f"{unit}, share {share:.2f}, goal {goal:.2f}: {'yes' if share <= goal else 'no'}"
            )
    return {"import_seconds": times, "installed_bytes": bytes_}
