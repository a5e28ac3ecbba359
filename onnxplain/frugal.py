"""Compute with little memory, as the trial of a model does when it is loaded."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

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
