"""A process with one library: takes orders as lines of JSON, answers in the same way.

Started as `python -m bench.worker LIBRARY THREADS DEVICE`, or with "usable" in the place of a
library to learn whether the device can be used.

Orders: {"prepare": row, "model": file, "dtype": "float", "answer": file}, which does the work once
and stores the answer; {"time": s}, which does it again for s seconds; {"profile": n} for the n
functions that take most of it; {"speed": threads} for the peaks of the machine. What goes wrong is
answered as {"error": text}.
"""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

from . import limits
from .machine import blas, peak_memory
from .profiling import own_times
from .rows import Row


class Works:
    """The works of a library; one is prepared at a time."""

    def __init__(self, library: str, threads: int, device: str) -> None:
        self.library, self.device = library, device
        self.module = library_module(library, threads)
        self.work: Callable[[], np.ndarray] | None = None

    def about(self) -> dict[str, Any]:
        known = {"library": self.library, "version": metadata.version(self.library)}
        if self.device != "cpu":
            return known | {"computes": gpu(self.library)}
        if self.library != "onnxplain":
            return known | {"computes": self.module.computes(self.library)}
        return known | {"computes": blas(), "compiled": compiled()}

    def do(self, order: dict[str, Any]) -> dict[str, Any]:
        if "prepare" in order:
            return self.prepare(**order)
        if "profile" in order:
            return {"functions": own_times(self.work, order["profile"])}
        if "speed" in order:
            return limits.speed(order["speed"])
        return {"runs": self.turn(order["time"])}

    def turn(self, seconds: float) -> list[dict[str, Any]]:
        """Do the work for so long, once at least; the first of several runs warms up."""
        end = time.perf_counter() + seconds
        runs = [self.run()[0]]
        while time.perf_counter() < end:
            runs.append(self.run()[0])
        return runs[1:] or runs

    def prepare(self, prepare: dict[str, Any], model: str, dtype: str, answer: str) -> dict:
        self.work = None  # what the work before holds is not of this one
        self.work = self.module.prepare(Row(**prepare), self.library, model, dtype, self.device)
        found, array = self.run()
        np.save(answer, array)
        return found

    def run(self) -> tuple[dict[str, Any], np.ndarray]:
        start, cpu = time.perf_counter(), time.process_time()
        array = self.work()
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        return {"wall": wall, "cpu": cpu, "peak": peak(self.library, self.device)}, array


def library_module(library: str, threads: int) -> types.ModuleType:
    """Import a library's works; ours takes the number of threads from the environment."""
    if library == "onnxplain":
        from . import ours

        return ours
    if library == "zennit":
        _stand_in_for_torchvision()
    from . import peers

    peers.torch.set_num_threads(threads)
    return peers


def _stand_in_for_torchvision() -> None:
    """zennit imports two classes of torchvision, which it does not need here."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        resnet = types.ModuleType("torchvision.models.resnet")
        resnet.BasicBlock = resnet.Bottleneck = type("Block", (), {})
        for name in ("torchvision", "torchvision.models"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision.models.resnet"] = resnet


def compiled() -> bool:
    """Tell whether onnxplain uses compiled kernels."""
    from onnxplain import cpu_kernels

    return cpu_kernels.wanted()


def gpu(library: str) -> str:
    """Return what computes on the GPU."""
    if library == "onnxplain":
        import cupy

        name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
        cuda = cupy.cuda.runtime.runtimeGetVersion()
        return f"{name}, CuPy {cupy.__version__}, CUDA {cuda // 1000}.{cuda % 1000 // 10}, no TF32"
    from .peers import torch

    cudnn = torch.backends.cudnn.version()
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, cuDNN {cudnn}, no TF32"


def peak(library: str, device: str) -> int:
    """Return the most bytes that were taken of the memory in which the device computes."""
    if device == "cpu":
        return peak_memory()
    if library == "onnxplain":
        import cupy

        return cupy.get_default_memory_pool().total_bytes()
    from .peers import torch

    return torch.cuda.max_memory_reserved()


def check_usable(device: str) -> None:
    """Stop with a message if onnxplain or torch cannot use the device."""
    from onnxplain.device import choose
    from onnxplain.errors import OnnxplainError

    try:
        choose(device)
    except OnnxplainError as error:
        sys.exit(str(error))
    from .peers import torch

    if device != "cpu" and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} cannot use the GPU; install a build with CUDA")


def main(library: str, threads: int, device: str) -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # nothing that a library prints gets between the answers

    def say(act: Callable[..., Any], *arguments: Any) -> Any:
        """Answer what a function returns, or why it could not."""
        try:
            found = act(*arguments)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(found), file=answers, flush=True)

    try:
        works = Works(library, threads, device)
    except ImportError as error:
        say(dict, [("error", str(error))])
        return
    say(works.about)
    for line in sys.stdin:
        say(works.do, json.loads(line))


if __name__ == "__main__":
    if sys.argv[1] == "usable":
        check_usable(sys.argv[3])
    else:
        main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
