"""python -m bench: times onnxplain and its peers side by side and compares their answers.

One process per library, asked in turn, never two at once. Ratios are peer time / our time: above 1
onnxplain is faster. Exits with 1 if answers disagree.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from .rows import QUICK, ROWS, Row

OURS = "onnxplain"
# Of the L2 norm. In float32 a ReLU whose input is nearly 0 may flip and change what lies before it,
# more so in deep networks: answers that differ by more are computed once more in float64.
TOLERANCE, TOLERANCE_DOUBLE = 1e-3, 1e-6
PAUSE = 0.05  # seconds in which threads of the process before stop waiting for work


class Worker:
    """A process with one library."""

    def __init__(self, library: str, threads: int, device: str) -> None:
        variables = ("OMP", "OPENBLAS", "MKL", "NUMEXPR")
        env = os.environ | {f"{v}_NUM_THREADS": str(threads) for v in variables}
        env["CUPY_TF32"] = "0"  # true float32, as of the peers
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", library, str(threads), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.about = self._read()

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send an order and return the answer."""
        time.sleep(PAUSE)
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker stopped with status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class Crew:
    """The workers; new ones for each row, so that peak memory is that of the row."""

    def __init__(self, threads: int, keep: bool, device: str) -> None:
        self.threads, self.keep, self.device = threads, keep, device
        self.workers: dict[str, Worker] = {}
        self.about: dict[str, dict[str, Any]] = {}

    def __getitem__(self, library: str) -> Worker:
        if library not in self.workers:
            worker = self.workers[library] = Worker(library, self.threads, self.device)
            self.about[library] = worker.about
        return self.workers[library]

    def dismiss(self, last: bool = False) -> None:
        """Stop the workers, unless they are kept for the next row."""
        if last or not self.keep:
            for worker in self.workers.values():
                worker.close()
            self.workers.clear()


def measure(row: Row, crew: Crew, folder: Path, seconds: float, clock: str) -> dict[str, Any]:
    """Return medians, ratios, peaks of memory and deviations of one row."""
    libraries = [OURS, *row.peers]
    model = folder / f"{row.network}.onnx"
    if not model.exists():  # in a process of its own: workers would inherit this one's peak memory
        write = [sys.executable, "-m", "bench.networks", row.network, str(model)]
        subprocess.run(write, check=True)

    def ask(library: str, dtype: str) -> tuple[float, np.ndarray]:
        file = folder / f"{library}.npy"
        order = {"prepare": asdict(row), "model": str(model), "dtype": dtype, "answer": str(file)}
        seconds = crew[library].ask(**order)["first"]
        return seconds, np.load(file)

    first, answers = zip(*(ask(library, "float") for library in libraries), strict=True)
    rounds = int(np.clip(seconds / sum(first), 1 if sum(first) > seconds else 3, 15))
    runs = [{library: crew[library].ask(time=True) for library in libraries} for _ in range(rounds)]
    times = {lib: statistics.median(run[lib][clock] for run in runs) for lib in libraries}
    apart = [deviation(answers[0], theirs) for theirs in answers[1:]]
    double: list[float | None] = [None] * len(apart)
    if max(apart) >= TOLERANCE:
        crew.dismiss()
        ours = ask(OURS, "double")[1]
        double = [deviation(ours, ask(peer, "double")[1]) for peer in row.peers]
    return {
        "row": row.name,
        "rounds": rounds,
        "seconds": times,
        "ratio": {peer: times[peer] / times[OURS] for peer in row.peers},
        "peak_bytes": {library: runs[-1][library]["peak"] for library in libraries},
        "deviation": dict(zip(row.peers, apart, strict=True)),
        "deviation_double": dict(zip(row.peers, double, strict=True)),
    }


def deviation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the L2 norm of the difference relative to that of the answer."""
    if a.shape != b.shape:
        return float("inf")
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def agrees(result: dict[str, Any]) -> bool:
    return all(
        d < TOLERANCE or result["deviation_double"][peer] < TOLERANCE_DOUBLE
        for peer, d in result["deviation"].items()
    )


# -- printing -------------------------------------------------------------------------------------

_LINE = "{:<56} {:>6} {:>9}  {:<8} {:>9} {:>7}  {:>9} {:>10}"
HEAD = _LINE.format("row", "rounds", "ours ms", "peer", "ms", "ratio", "deviation", "MB o/p")


def lines(result: dict[str, Any]) -> list[str]:
    """Return the lines of a row, one per peer."""
    found, peak = [], result["peak_bytes"]
    for i, (peer, ratio) in enumerate(result["ratio"].items()):
        found.append(
            _LINE.format(
                result["row"] if i == 0 else "",
                result["rounds"] if i == 0 else "",
                f"{1000 * result['seconds'][OURS]:.1f}" if i == 0 else "",
                peer,
                f"{1000 * result['seconds'][peer]:.1f}",
                f"{ratio:.2f}",
                f"{result['deviation'][peer]:.0e}",
                f"{peak[OURS] / 1e6:.0f}/{peak[peer] / 1e6:.0f}",
            )
        )
    double = {k: f"{v:.0e}" for k, v in result["deviation_double"].items() if v is not None}
    if double:
        verdict = "the answers agree" if agrees(result) else "the answers DISAGREE"
        told = ", ".join(f"{peer} {d}" for peer, d in double.items())
        found.append(f"    in float64 {verdict}: deviation {told}")
    return found


def machine() -> dict[str, Any]:
    """Return what one has to know to compare numbers."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*:\s*(.*)", cpuinfo.read_text())
        model = found[1] if found else model
    return {
        "date": date.today().isoformat(),
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds")
    parser.add_argument("--rows", default="", metavar="PATTERN", help="only rows that match")
    parser.add_argument("--small", action="store_true", help="without the rows of VGG-16")
    parser.add_argument("--threads", type=int, default=2, help="of every library (default 2)")
    parser.add_argument("--seconds", type=float, default=10, help="to spend on a row, about")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor time, for one thread on a machine that others use too",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: all libraries on the same GPU, in true float32; peaks are of its memory",
    )
    parser.add_argument("--json", metavar="FILE", help="store the table")
    options = parser.parse_args()
    rows = [
        row
        for row in (QUICK if options.quick else ROWS)
        if re.search(options.rows, row.name) and not (options.small and row.full_only)
    ]
    if not rows:
        parser.error(f"no row matches {options.rows!r}")
    if options.device != "cpu":
        check = [sys.executable, "-m", "bench.worker", "usable", "0", options.device]
        found = subprocess.run(check, stderr=subprocess.PIPE, text=True)
        if found.returncode:
            print(f"nothing is measured on {options.device}: {found.stderr.strip()}")
            return 0
    crew = Crew(options.threads, options.quick, options.device)
    about, results = machine(), []
    print(
        ", ".join(f"{k} {v}" for k, v in about.items()),
        f"threads {options.threads}",
        f"{options.clock} time",
        f"device {options.device}",
        sep=", ",
    )
    print(HEAD)
    seconds = 0.5 if options.quick else options.seconds
    with tempfile.TemporaryDirectory() as folder:
        for row in rows:
            results.append(measure(row, crew, Path(folder), seconds, options.clock))
            print(*lines(results[-1]), sep="\n", flush=True)
            crew.dismiss()
    crew.dismiss(last=True)
    for library, known in sorted(crew.about.items()):
        print(f"{library} {known['version']}: BLAS {known['blas']}")
    if options.json:
        table: dict[str, Any] = {
            "machine": about,
            "threads": options.threads,
            "clock": options.clock,
            "device": options.device,
            "libraries": crew.about,
        }
        Path(options.json).write_text(json.dumps(table | {"rows": results}, indent=1))
    return 0 if all(map(agrees, results)) else 1


if __name__ == "__main__":
    sys.exit(main())
