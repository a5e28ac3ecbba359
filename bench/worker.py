"""A process with one library: takes orders as lines of JSON, answers in the same way.

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


def version(library: str) -> str:
    from importlib.metadata import version

    return version(library)


def main(library: str, threads: int) -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # nothing that a library prints gets between the answers

    def say(**answer) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    module = library_module(library, threads)
    work = None
    say(library=library, version=version(library), blas=blas())
    for line in sys.stdin:
        order = json.loads(line)
        if "prepare" in order:
            work = module.prepare(Row(**order["prepare"]), library, order["model"], order["dtype"])
            start = time.perf_counter()
            np.save(order["answer"], work())
            say(first=time.perf_counter() - start)
        else:
            start, cpu = time.perf_counter(), time.process_time()
            work()
            wall, cpu = time.perf_counter() - start, time.process_time() - cpu
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            say(wall=wall, cpu=cpu, peak=peak)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
