"""Work side by side: chunks of rows, or blocks of one convolution, on a pool of threads.

NumPy releases the interpreter while it computes, so threads suffice. While the pool works, the
matrix products of BLAS use one thread each: two pools would fight for the same cores. What a task
computes never depends on how many threads there are, so neither do results.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

from .errors import ArgumentError, shown

T = TypeVar("T")

_VARIABLE = "ONNXPLAIN_NUM_THREADS"
_here = threading.local()  # .open: inside `pool`; .worker: on a thread of the pool
_chosen: int | None = None


def set_num_threads(n: int | None) -> None:
    """Set how many threads explanations use.

    Parameters
    ----------
    n : int or None
        Number of threads; None goes back to the default, the environment variable
        ONNXPLAIN_NUM_THREADS or all cores this process may use.

    Raises
    ------
    ArgumentError
        If `n` is no whole number from 1 on.

    Examples
    --------
    >>> import onnxplain as ox
    >>> ox.set_num_threads(2)
    >>> ox.get_num_threads()
    2
    >>> ox.set_num_threads(None)
    """
    global _chosen
    if n is not None and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
        raise ArgumentError(f"the number of threads must be a whole number >= 1, got {shown(n)}")
    _chosen = n


def get_num_threads() -> int:
    """Return how many threads explanations use.

    Examples
    --------
    >>> import onnxplain as ox
    >>> ox.get_num_threads() >= 1
    True
    """
    return _chosen or _from_environment() or len(_cores())


def _from_environment() -> int | None:
    value = os.environ.get(_VARIABLE, "")
    if value and not (value.isdecimal() and int(value) > 0):
        raise ArgumentError(f"{_VARIABLE} must be a whole number >= 1, got {shown(value)}")
    return int(value) if value else None


def _cores() -> Sequence[int] | set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


@contextmanager
def pool() -> Iterator[None]:
    """Let `each` use threads in here, and hold BLAS to one thread meanwhile."""
    if get_num_threads() == 1 or _busy():
        yield
        return
    _here.open = True
    try:
        with _blas().limit(limits=1, user_api="blas"):
            yield
    finally:
        _here.open = False


def _busy() -> bool:
    return getattr(_here, "open", False) or getattr(_here, "worker", False)


@cache
def _blas() -> Any:
    import threadpoolctl

    return threadpoolctl.ThreadpoolController()


@cache
def _executor(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, thread_name_prefix="onnxplain", initializer=_become_worker)


def _become_worker() -> None:
    _here.worker = True


def each(task: Callable[[T], Any], items: Iterable[T]) -> None:
    """Do a task for every item: side by side inside `pool`, else one after the other.

    The first error of a task is raised once all tasks that had started are done.
    """
    items = list(items)
    if len(items) < 2 or not getattr(_here, "open", False):
        for item in items:
            task(item)
        return
    futures = [_executor(get_num_threads()).submit(task, item) for item in items]
    try:
        for future in futures:
            future.result()
    finally:
        for future in futures:
            future.cancel()
