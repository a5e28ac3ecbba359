"""What freed memory is kept for: nothing when a model is loaded, the next chunk when it works."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

# glibc asks the system for each block from 128 KB on, and gives it back when it is freed, until a
# larger one was freed once; it learns so from blocks of up to 32 MB.
_LARGEST_LEARNT = 32 * 2**20 - 2**16

_here = threading.local()


@contextmanager
def frugally() -> Iterator[None]:
    """In here nothing compiled is loaded, and nothing that is made of weights is kept."""
    before = is_frugal()
    _here.frugal = True
    try:
        yield
    finally:
        _here.frugal = before


def is_frugal() -> bool:
    """Tell whether this thread is inside `frugally`."""
    return getattr(_here, "frugal", False)


def give_back() -> None:
    """Hand freed memory back to the system; the allocator of Linux keeps much of it."""
    with suppress(OSError, TypeError, AttributeError):  # other systems have no such function
        ctypes.CDLL(None).malloc_trim(0)


@cache
def keep_freed() -> None:
    """Let the allocator keep what chunks free for the next chunk, instead of the system.

    Memory that comes from the system is cleared page by page, which takes longer than most of what
    is computed in it. The block is never touched, and other allocators learn nothing from it.
    """
    with suppress(OSError, TypeError, AttributeError):  # Windows gives no library without a name
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.free.restype = ctypes.c_void_p, None
        libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
        libc.free(libc.malloc(_LARGEST_LEARNT))
