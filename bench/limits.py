"""The least time that a machine needs for a work: its products of numbers, and its memory traffic.

Floating-point operations are two per multiply-add of the convolutions and products as they are
defined; Winograd's algorithm needs up to 4 times fewer for a 3 x 3 kernel. Bytes are weights,
inputs, outputs of the layers with weights, and results, each moved once, in float32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .networks import NETWORKS
from .rows import Row

_SIZE, _COPIED_BYTES, _TRIES = 2048, 2**27, 7


def speed(threads: int) -> dict[str, float]:
    """Return the measured peaks of this process: FLOP/s of BLAS, bytes/s read and written."""
    a, b, c = np.random.default_rng(0).random((3, _SIZE, _SIZE), np.float32)
    parts = np.ones((2, threads, _COPIED_BYTES // 4 // threads), np.float32)
    with ThreadPoolExecutor(threads) as pool:
        copy = _best(lambda: list(pool.map(np.copyto, parts[0], parts[1])))
    return {
        "flop": 2 * _SIZE**3 / _best(lambda: np.matmul(a, b, out=c)),
        "bytes": 2 * _COPIED_BYTES / copy,
    }


def _best(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def passes(row: Row) -> tuple[int, int]:
    """Return how many rows a method has to send forward and back, at least."""
    one, all_outputs = row.batch, row.batch * row.outputs
    return {
        "forward": (one, 0),
        "gradient": (one, all_outputs),
        "lrp_epsilon": (one, all_outputs),
        "lrp_alpha_beta": (2 * one, 2 * all_outputs),  # positive parts, and all; negative parts
        "deeplift": (one + 1, all_outputs),
        "deepshap": (one + row.references, all_outputs * row.references),
        "intgrad": (one * row.steps, all_outputs * row.steps),
    }[row.work]


def needs(row: Row) -> dict[str, float]:
    """Return the floating-point operations and the bytes of a work."""
    network = NETWORKS[row.network]
    sizes = network.sizes()
    adds = [math.prod(weight[1:]) * math.prod(out) for weight, out in sizes]
    rows = sum(passes(row))
    flop = 2 * rows * sum(adds)
    if row.work == "intgrad":  # the first layer is linear: once for the ends of the path, once back
        flop -= 2 * adds[0] * (rows - row.batch * (1 + row.outputs))
    features = math.prod(network.input_dim)
    explained = 0 if row.work == "forward" else row.outputs
    numbers = sum(math.prod(weight) for weight, _ in sizes)
    numbers += row.batch * (features * (1 + explained) + sum(math.prod(out) for _, out in sizes))
    return {"flop": flop, "bytes": 4 * numbers}


def limit(row: Row, peak: dict[str, float], seconds: float) -> dict[str, float]:
    """Return the least time of a work at measured peaks, and its share of the time it takes."""
    need = needs(row)
    flop, moved = need["flop"] / peak["flop"], need["bytes"] / peak["bytes"]
    least = max(flop, moved)
    found = {"flop_seconds": flop, "byte_seconds": moved, "seconds": least}
    return need | found | {"share": least / seconds}
