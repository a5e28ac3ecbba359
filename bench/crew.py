"""Processes with one library each, which do works in turn, never two at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

AS_INSTALLED = "installed"
PAUSE = 0.05  # seconds in which threads of the process before stop waiting for work
_THREADS = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA", "ONNXPLAIN")


class WorkerError(Exception):
    """A library cannot do a work; the message is its own."""


@dataclass(frozen=True)
class Setting:
    """What all processes are started with.

    Attributes
    ----------
    threads : int
        Of every library.
    device : {"cpu", "cuda"}
        Where they compute.
    core : str
        The processor that OpenBLAS takes this one for, or "installed": as it finds itself.
    compiled : bool
        Whether onnxplain may use compiled kernels.
    patience : float
        Seconds after which a process is ended that does not answer.
    """

    threads: int = 2
    device: str = "cpu"
    core: str = AS_INSTALLED
    compiled: bool = True
    patience: float = 900

    def environment(self) -> dict[str, str]:
        """Return the variables, which libraries read when they are loaded."""
        env = os.environ | {f"{name}_NUM_THREADS": str(self.threads) for name in _THREADS}
        env["CUPY_TF32"] = "0"  # true float32, as of the peers
        if self.core != AS_INSTALLED:
            env["OPENBLAS_CORETYPE"] = self.core
        if not self.compiled:
            env["ONNXPLAIN_COMPILED"] = "0"
        return env


class Worker:
    """A process with one library."""

    def __init__(self, library: str, setting: Setting) -> None:
        self.patience = setting.patience
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", library, str(setting.threads), setting.device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=setting.environment(),
        )
        self.about = self._read()

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send an order and return the answer."""
        time.sleep(PAUSE)
        with suppress(BrokenPipeError):  # it has stopped: reading tells
            print(json.dumps(order), file=self.process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        timer = threading.Timer(self.patience, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        late = timer.finished.is_set()
        timer.cancel()
        if late:
            raise WorkerError(f"no answer within {self.patience:g} s")
        if not line:
            status = self.process.wait()
            raise WorkerError(f"stopped with status {status}" + ", out of memory?" * (status == -9))
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@dataclass
class Crew:
    """The workers; new ones for each row unless they are kept, so that peaks are those of a row."""

    setting: Setting
    keep: bool = False
    workers: dict[str, Worker] = field(default_factory=dict)

    def ask(self, library: str, **order: Any) -> dict[str, Any]:
        """Send an order to the worker of a library."""
        try:
            return self._worker(library).ask(**order)
        except WorkerError:
            self.dismiss(library)
            raise

    def about(self, library: str) -> dict[str, Any]:
        """Return the version of a library and what computes in it."""
        try:
            return self._worker(library).about
        except WorkerError as error:
            return {"error": str(error)}

    def _worker(self, library: str) -> Worker:
        if library not in self.workers:
            self.workers[library] = Worker(library, self.setting)
        return self.workers[library]

    def dismiss(self, *libraries: str) -> None:
        """Stop some workers, or all of them."""
        for library in libraries or list(self.workers):
            if worker := self.workers.pop(library, None):
                worker.close()
