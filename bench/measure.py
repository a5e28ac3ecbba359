"""Measures one row: times of all libraries, peaks of memory, and whether the answers agree."""

from __future__ import annotations

import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .crew import Crew, WorkerError
from .rows import PEAK_GOAL, Row

OURS = "onnxplain"
# Of the L2 norm. In float32 a ReLU whose input is nearly 0 may flip and change what lies before it,
# more so in deep networks: answers that differ by more are computed once more in float64.
TOLERANCE, TOLERANCE_DOUBLE = 1e-3, 1e-6
LEAST_ROUNDS, MOST_ROUNDS = 3, 15
TURN = 0.3  # seconds for which a library repeats short work when it is its turn

Result = dict[str, Any]


@dataclass
class Bench:
    """A row, the workers, and what they have told so far."""

    row: Row
    crew: Crew
    folder: Path
    answers: dict[str, np.ndarray] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def prepare(self, library: str, dtype: str = "float") -> dict[str, Any] | None:
        """Let a library do the work for the first time; return how it went, None if it cannot."""
        model, answer = model_file(self.row, self.folder), self.folder / f"{library}.npy"
        order = {"prepare": asdict(self.row), "model": str(model), "answer": str(answer)}
        run = self.ask(library, dtype=dtype, **order)
        if run is not None:
            self.answers[library] = np.load(answer)
        return run

    def ask(self, library: str, **order: Any) -> dict[str, Any] | None:
        """Return the answer to an order; None, and the error is kept, if there is none."""
        try:
            return self.crew.ask(library, **order)
        except WorkerError as error:
            self.errors[library] = str(error)
            self.answers.pop(library, None)
            return None

    def times(self, seconds: float) -> dict[str, list[dict[str, Any]]]:
        """Return the runs of the libraries that can do the work, asked in turn.

        The first runs only warm up. But a peer that takes longer for one than there is to spend
        on the row is not asked again.
        """
        first = {library: self.prepare(library) for library in (OURS, *self.row.peers)}
        runs = {library: [run] for library, run in first.items() if run is not None}
        again = [lib for lib, (run,) in runs.items() if lib == OURS or run["wall"] <= seconds]
        once = sum(max(TURN, runs[library][0]["wall"]) for library in again)
        runs |= {library: [] for library in again}
        for _ in range(int(np.clip(seconds / max(once, 1e-9), LEAST_ROUNDS, MOST_ROUNDS))):
            for library in [library for library in again if library not in self.errors]:
                turn = self.ask(library, time=TURN)
                runs[library] += turn["runs"] if turn else []
        return {library: found for library, found in runs.items() if library not in self.errors}

    def deviations(self) -> dict[str, float]:
        """Return how far the answers of peers are from ours."""
        mine = self.answers.get(OURS)
        theirs = {peer: x for peer, x in self.answers.items() if peer != OURS}
        return {} if mine is None else {peer: deviation(mine, x) for peer, x in theirs.items()}

    def deviations_double(self, apart: dict[str, float]) -> dict[str, float]:
        """Return the same in float64, of the peers that are far from ours for no known reason."""
        far = [p for p, d in apart.items() if not d < TOLERANCE and p not in self.row.differs]
        if not far:
            return {}
        self.crew.dismiss()
        double = replace(self, answers={})
        for library in (OURS, *far):
            double.prepare(library, "double")
        return double.deviations()


def measure(row: Row, crew: Crew, folder: Path, seconds: float, clock: str) -> Result:
    """Return medians, ratios, peaks of memory and deviations of one row."""
    bench = Bench(row, crew, folder)
    runs = bench.times(seconds)
    times = {lib: statistics.median(run[clock] for run in found) for lib, found in runs.items()}
    peaks = {library: found[-1]["peak"] for library, found in runs.items()}
    apart = bench.deviations()
    peers = [peer for peer in apart if peer in times]
    ratio = {peer: times[peer] / times[OURS] for peer in peers}
    share = {peer: peaks[OURS] / peaks[peer] for peer in peers}
    goal = {peer: reach for peer, reach in row.peers.items() if reach is not None}
    return {
        "row": row.name,
        "rounds": {library: len(found) for library, found in runs.items()},
        "seconds": times,
        "ratio": ratio,
        "goal": goal,
        "reached": {peer: ratio[peer] >= goal[peer] for peer in peers if peer in goal},
        "peak_bytes": peaks,
        "peak_ratio": share,
        "peak_reached": {peer: share[peer] <= PEAK_GOAL for peer in peers},
        "deviation": apart,
        "deviation_double": bench.deviations_double(apart),
        "differs": dict(row.differs),
        "errors": bench.errors,
    }


def model_file(row: Row, folder: Path) -> Path:
    """Return the ONNX file of a row; a process writes it, else workers inherit our peak memory."""
    path = folder / f"{row.network}.onnx"
    if not path.exists():
        write = [sys.executable, "-m", "bench.networks", row.network, str(path)]
        subprocess.run(write, check=True)
    return path


def deviation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the L2 norm of the difference relative to that of the answer."""
    if a.shape != b.shape:
        return float("inf")
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def unproven(result: Result) -> list[str]:
    """Return the peers that are far from us in float32, and not known in float64."""
    known = {*result["differs"], *result["deviation_double"]}
    return [p for p, d in result["deviation"].items() if not d < TOLERANCE and p not in known]


def agrees(result: Result) -> bool:
    """Tell whether we have an answer, and those of peers are the same where they should be."""
    double = result["deviation_double"].values()
    close = all(d < TOLERANCE_DOUBLE for d in double)
    return OURS not in result["errors"] and close and not unproven(result)
