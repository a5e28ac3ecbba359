"""Work side by side: chunks of rows, or blocks of one convolution or product, on a pool of threads.

NumPy releases the interpreter while it computes, so threads suffice. While the pool works, the
matrix products of BLAS use one thread each: two pools would fight for the same cores. What a task
computes never depends on how many threads there are.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from queue import SimpleQueue
from typing import Any, TypeVar

from .errors import ArgumentError, shown
from .frugal import keep_freed
from .processor import advise

T = TypeVar("T")

_VARIABLE = "ONNXPLAIN_NUM_THREADS"
_here = threading.local()  # .inside: in `pool`, or on a thread of it; .open: work may be split
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
    if getattr(_here, "inside", False):
        yield
        return
    keep_freed()
    _here.inside = _here.open = True
    try:
        with _blas_held():
            yield
    finally:
        _here.inside = _here.open = False


class _blas_held:
    """Holds BLAS to one thread, for the whole process, from the first who enters to the last."""

    _lock = threading.Lock()
    _users = 0
    _limit: Any = None

    def __enter__(self) -> None:
        cls = type(self)
        with cls._lock:
            if cls._users == 0:
                cls._limit = _blas().limit(limits=1, user_api="blas")
            cls._users += 1

    def __exit__(self, *error: object) -> None:
        cls = type(self)
        with cls._lock:
            cls._users -= 1
            if cls._users == 0:
                cls._limit.restore_original_limits()


@cache
def _blas() -> Any:
    import threadpoolctl

    controller = threadpoolctl.ThreadpoolController()
    advise(controller.info())
    return controller


def know_blas() -> None:
    """Look for libraries of BLAS once more: another one was loaded."""
    _blas.cache_clear()


def splits() -> bool:
    """Tell whether `each` does its tasks side by side here, or would if there were more threads."""
    return getattr(_here, "open", False)


def each(task: Callable[[T], Any], items: Iterable[T]) -> None:
    """Do a task for every item: side by side inside `pool`, else one after the other.

    The thread that calls takes its share; within a task nothing is split once more. After an
    error no task is begun; it is raised once all that had begun are done.
    """
    items = list(items)
    if len(items) < 2 or not splits():
        for item in items:
            task(item)
        return
    work = _Work(task, items)
    for helper in range(min(get_num_threads(), len(items)) - 1):
        _crew(helper).put(work)
    _here.open = False
    try:
        work.share()
        work.wait()
    finally:
        _here.open = True


class _Work:
    """Items that several threads take one by one.

    The thread that asks for it waits for what others have begun, not for others to wake up: waking
    a thread takes as long as multiplying matrices of 128 x 128 several times.
    """

    def __init__(self, task: Callable[[T], Any], items: list[T]) -> None:
        self._task, self._todo, self._left = task, deque(items), len(items)
        self._lock, self._done = threading.Lock(), threading.Event()
        self._error: BaseException | None = None

    def share(self) -> None:
        """Take what nobody else has taken, until nothing is left."""
        while True:
            try:
                item = self._todo.popleft()
            except IndexError:
                return
            try:
                if self._error is None:
                    self._task(item)
            except BaseException as error:
                self._error = error
            with self._lock:
                self._left -= 1
            if not self._left:
                self._done.set()

    def wait(self) -> None:
        """Wait for what others have begun; raise the first error."""
        self._done.wait()
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # holds this frame, which holds it: tensors would stay


@cache
def _crew(helper: int) -> SimpleQueue[_Work]:
    """Return the queue of a thread that helps, started by the first who asks for it."""
    queue: SimpleQueue[_Work] = SimpleQueue()
    name = f"onnxplain-{helper + 1}"
    threading.Thread(target=_help, args=(queue,), name=name, daemon=True).start()
    return queue


def _help(queue: SimpleQueue[_Work]) -> None:
    _here.inside = True
    while True:
        queue.get().share()  # without a name, by which the last work would be held until the next


if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_crew.cache_clear)
