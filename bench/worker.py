"""A process with one library: takes orders as lines of JSON, answers in the same way.

Started as `python -m bench.worker LIBRARY THREADS DEVICE`, or with "usable" in the place of a
library to learn whether the device can be used.

Orders: {"prepare": row, "model": file, "dtype": "float", "answer": file}, which warms up and stores
the answer, and {"time": true}.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import types

import numpy as np

from .rows import Row


def blas() -> str:
    """Return which kernels the BLAS of this process uses, if threadpoolctl can tell."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return "unknown (threadpoolctl is not installed)"
    found = {
        f"{p['internal_api']} {p['version']} {p.get('architecture') or ''} "
        f"{p['num_threads']} threads".replace("  ", " ")
        for p in threadpool_info()
        if p["user_api"] == "blas"
    }
    return ", ".join(sorted(found)) or "none"


def library_module(library: str, threads: int) -> types.ModuleType:
    """Import a library's works; the number of threads is in the environment already."""
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
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
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


def version(library: str) -> str:
    from importlib.metadata import version

    return version(library)


def main(library: str, threads: int, device: str) -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # nothing that a library prints gets between the answers

    def say(**answer) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    module = library_module(library, threads)
    work = None
    about = blas() if device == "cpu" else gpu(library)
    say(library=library, version=version(library), blas=about)
    for line in sys.stdin:
        order = json.loads(line)
        if "prepare" in order:
            row, model = Row(**order["prepare"]), order["model"]
            work = module.prepare(row, library, model, order["dtype"], device)
            start = time.perf_counter()
            np.save(order["answer"], work())
            say(first=time.perf_counter() - start)
        else:
            start, cpu = time.perf_counter(), time.process_time()
            work()
            wall, cpu = time.perf_counter() - start, time.process_time() - cpu
            say(wall=wall, cpu=cpu, peak=peak(library, device))


if __name__ == "__main__":
    if sys.argv[1] == "usable":
        check_usable(sys.argv[3])
    else:
        main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
