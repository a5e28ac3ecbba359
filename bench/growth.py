"""How time and memory grow with rows and with outputs; every point is a process of its own.

Rows: the gradient and DeepLIFT of the tabular network for data in a memory-mapped .npy file, with
results in memory, or streamed to .npy files. Outputs: the gradient of a network with 1000 of them.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from .crew import Setting
from .machine import peak_memory
from .measure import model_file
from .rows import Row

MOST_ROWS, MOST_OUTPUTS = 10**6, 1000
MEMORY, DISK = "memory", ".npy files"
_BLOCK = 10_000  # rows of data that are drawn at a time
_RUNS, _SECONDS = 5, 0.5  # of a point, unless one run alone takes longer

Point = dict[str, Any]


def plan(most: int) -> list[tuple[str, int, Row, str]]:
    """Return what grows, how large it is, the work, and where results go."""
    rows = [
        ("rows", n, Row(work, "tabular", n, {}, outputs), store)
        for work, outputs in (("gradient", 1), ("deeplift", 3))
        for store in (MEMORY, DISK)
        for n in _powers(100, min(most, MOST_ROWS))
    ]
    outputs = [
        ("outputs", k, Row("gradient", "wide", 32, {}, k), MEMORY)
        for k in _powers(1, min(most, MOST_OUTPUTS))
    ]
    return rows + outputs


def _powers(first: int, last: int) -> list[int]:
    count = max(0, round(math.log10(last / first), 9))
    return [first * 10**k for k in range(int(count) + 1)]


def slope(points: Iterable[Point]) -> float | None:
    """Return the slope of log time over log size in the upper two decades; 1 is a straight line."""
    found = sorted((p["size"], p["seconds"]) for p in points)
    found = [pair for pair in found if pair[0] >= found[-1][0] / 100]
    if len(found) < 2:
        return None
    sizes, times = np.log(np.array(found)).T
    return float(np.polyfit(sizes, times, 1)[0])


# -- one point, in a process of its own -----------------------------------------------------------


def point(row: Row, model: str, data: str, store: str, folder: str) -> Point:
    """Explain some rows to warm up, then return the median time of a few runs."""
    import onnxplain as ox

    from . import ours

    converter = ox.convert(model)
    cls, options = ours.method(row)
    x = np.load(data, mmap_mode="r")[: row.batch]

    def explain(x: np.ndarray, name: str) -> Any:
        if store == DISK:
            path = Path(folder) / name
            return ox.explain_to(path, cls, converter, x, verbose=False, **options)
        return cls(converter, x, verbose=False, **options)

    explain(x[:100], "first")
    times: list[float] = []
    while not times or (len(times) < _RUNS and sum(times) < _SECONDS):
        start = time.perf_counter()
        explain(x, f"run {len(times)}")
        times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times), "runs": len(times), "peak": peak_memory()}


def write_data(network: str, rows: int, path: str) -> None:
    """Write random rows block by block."""
    from .networks import NETWORKS

    shape = (rows, *NETWORKS[network].input_dim)
    file = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    rng = np.random.default_rng(1)
    for start in range(0, rows, _BLOCK):
        block = file[start : start + _BLOCK]
        block[:] = rng.standard_normal(block.shape, np.float32)
    file.flush()


# -- all of them ----------------------------------------------------------------------------------


def show(setting: Setting, most: int) -> list[Point]:
    """Print and return the points."""
    found: list[Point] = []
    with tempfile.TemporaryDirectory() as folder:
        for (what, name), group in groupby(plan(most), _curve):
            print(f"{name}\n{what:>12} {'ms':>10} {'us each':>10} {'peak MB':>9}")
            curve = [_measured(setting, most, Path(folder), *one[1:]) for one in group]
            print(_straight(curve, what))
            found += curve
    return found


def _curve(one: tuple[str, int, Row, str]) -> tuple[str, str]:
    what, _, row, store = one
    fixed = f"batch {row.batch}" if what == "outputs" else f"outputs {row.outputs}"
    return what, f"{row.work} {row.network}, {fixed}, results in {store}"


def _measured(setting: Setting, most: int, folder: Path, size: int, row: Row, store: str) -> Point:
    data = folder / f"{row.network}.npy"
    if not data.exists():
        rows = row.batch if row.network == "wide" else min(most, MOST_ROWS)
        _call(setting, "data", row.network, max(rows, 100), str(data))
    model = model_file(row, folder)
    with tempfile.TemporaryDirectory(dir=folder) as results:
        made = _call(setting, "point", asdict(row), str(model), str(data), store, results)
    each = made["seconds"] / size
    print(
        f"{size:>12,} {1e3 * made['seconds']:>10.2f} {1e6 * each:>10.2f} {made['peak'] / 1e6:>9.0f}"
    )
    return {"size": size, "row": row.name, "results": store} | made


def _straight(curve: list[Point], what: str) -> str:
    first, last = curve[0], curve[-1]
    found = slope(curve)
    if found is None:
        return "    too few sizes for a slope"
    grown = (last["peak"] - first["peak"]) / (last["size"] - first["size"])
    return (
        f"    slope of log time over log {what}, upper two decades: {found:.2f}; "
        f"memory: {grown / 1e3:.2f} kB more per {what[:-1]}"
    )


def _call(setting: Setting, *order: Any) -> Any:
    """Let a fresh process do an order."""
    command = [sys.executable, "-m", "bench.growth", json.dumps(order)]
    made = subprocess.run(
        command, check=True, env=setting.environment(), stdout=subprocess.PIPE, text=True
    )
    return json.loads(made.stdout)


def main(kind: str, *order: Any) -> None:
    if kind == "data":
        answer = write_data(*order)
    else:
        answer = point(Row(**order[0]), *order[1:])
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
