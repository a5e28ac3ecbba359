"""What knows about GPUs: choosing them, sharing work between them, and what their memory holds.

Kernels need nothing of it: they work where their arrays live. A thread computes on one place, the
host or a GPU, and `Place` is also the context in which it does.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from .arrays import Array, is_device
from .errors import DeviceError, MissingPackageError, counted, listed, shortened, shown

T = TypeVar("T")

# The share of the free memory that tensors and signals of a chunk may take; the rest is for what
# kernels make in between, of which there is no forecast.
MEMORY_SHARE = 0.4
# Chunks beyond this size keep no GPU busier, and are slow to share between several.
MOST_BYTES = 4 * 2**30

INSTALL = "pip install 'onnxplain[gpu]'"
_CHOICES = '"cpu", "cuda", "cuda:1", "auto" or a list such as ["cuda:0", "cuda:1"]'
_here = threading.local()  # .places: entered by this thread; .session: what its end will leave


# -- places ---------------------------------------------------------------------------------------


class Place:
    """The host, or a GPU by its index: where arrays are made while this context is entered."""

    def __init__(self, xp: Any, index: int | None = None) -> None:
        self.xp, self.index = xp, index

    @property
    def name(self) -> str:
        """The name by which a user chooses it."""
        return "cpu" if self.index is None else f"cuda:{self.index}"

    def __enter__(self) -> Place:
        context = nullcontext() if self.index is None else self.xp.cuda.Device(self.index)
        context.__enter__()
        _entered().append((self, context))
        return self

    def __exit__(self, *error: Any) -> None:
        _, context = _entered().pop()
        context.__exit__(*error)

    def asarray(self, x: Array) -> Array:
        """Return `x` as an array that lives here."""
        with self:
            return self.xp.asarray(x)

    def free_bytes(self) -> int:
        """Return how many bytes of a GPU can be had: free, or kept by CuPy for later use."""
        with self:
            pool = self.xp.get_default_memory_pool()
            free = self.xp.cuda.Device(self.index).mem_info[0] + pool.free_bytes()
            limit = pool.get_limit()
            return max(0, min(free, limit - pool.used_bytes()) if limit else free)


HOST = Place(np)


def _entered() -> list[tuple[Place, Any]]:
    if not hasattr(_here, "places"):
        _here.places = []
    return _here.places


def current(places: Sequence[Place]) -> Place:
    """Return the one of these places that this thread computes on, the first outside of any."""
    entered = _entered()
    here = entered[-1][0] if entered else None
    return next((place for place in places if here and place.name == here.name), places[0])


# -- choosing -------------------------------------------------------------------------------------


def choose(device: Any) -> list[Place]:
    """Return the places that an argument `device` names.

    Raises
    ------
    DeviceError, MissingPackageError
        If there is no such device, or it cannot be used; the message says what to do.
    """
    if device is None or (isinstance(device, str) and device == "cpu"):
        return [HOST]
    names = [device] if isinstance(device, str) else device
    if isinstance(device, str) and device == "auto":
        return _automatic()
    if not isinstance(names, (list, tuple)) or not names or not all(map(_is_gpu, names)):
        raise DeviceError(f"device must be {_CHOICES}, got {shown(device)}")
    cupy = _usable_cupy(device)
    places = [_place(cupy, name) for name in names]
    if len({place.index for place in places}) < len(places):
        raise DeviceError(f"device names a GPU twice: {shown(device)}; name each once")
    for place in places:
        _check_computes(place)
    return places


def _is_gpu(name: Any) -> bool:
    if not isinstance(name, str):
        return False
    head, colon, index = name.partition(":")
    return head == "cuda" and (not colon or (index.isascii() and index.isdecimal()))


def _automatic() -> list[Place]:
    """Return the GPU of this thread, the host where none can be used."""
    try:
        return choose("cuda")
    except (DeviceError, MissingPackageError):
        return [HOST]


def _usable_cupy(device: Any) -> Any:
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise _broken(device, error) from error
        raise MissingPackageError(
            f"device={shown(device)} needs CuPy: {INSTALL}. It brings CUDA 13; for a driver of "
            "CUDA 12: pip install 'cupy-cuda12x[ctk]'"
        ) from error
    except Exception as error:  # whatever a broken installation raises
        raise _broken(device, error) from error
    if not cupy.cuda.is_available():
        raise DeviceError(f"device={shown(device)}: {_why_none(cupy.cuda.runtime)}")
    return cupy


def _broken(device: Any, error: Exception) -> DeviceError:
    return DeviceError(
        f"device={shown(device)}: CuPy is installed but cannot be imported "
        f"({shortened(str(error))}); install it anew: {INSTALL}"
    )


def _why_none(runtime: Any) -> str:
    """Say why CuPy finds no GPU, from the versions of driver and CUDA (13020 is 13.2)."""
    driver, built = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if not driver:
        return (
            "no NVIDIA driver was found on this machine; install one, or use device='cpu' "
            "(device='auto' takes a GPU where there is one)"
        )
    if driver // 1000 < built // 1000:
        wheel = f"cupy-cuda{driver // 1000}x"
        return (
            f"the NVIDIA driver knows CUDA up to {_version(driver)}, the installed CuPy is for "
            f"CUDA {_version(built)}; update the driver, or use a CuPy for it: pip uninstall "
            f"cupy-cuda{built // 1000}x && pip install '{wheel}[ctk]'"
        )
    return (
        "CuPy finds no NVIDIA GPU; is one there (nvidia-smi), and does the environment variable "
        "CUDA_VISIBLE_DEVICES show it? Else use device='cpu'"
    )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _place(cupy: Any, name: str) -> Place:
    count = cupy.cuda.runtime.getDeviceCount()
    index = int(name[5:]) if ":" in name else cupy.cuda.Device().id
    if index >= count:
        known = listed(f"cuda:{i}" for i in range(count))
        raise DeviceError(f"device {shown(name)}: there is {counted(count, 'GPU')} here, {known}")
    return Place(cupy, index)


_works: set[str] = set()


def _check_computes(place: Place) -> None:
    """Compute a little: the compiler and the libraries of CUDA are loaded when first needed."""
    if place.name in _works:
        return
    try:
        with place:
            ones = place.xp.ones((3, 3), np.float32)
            right = float((ones @ ones + ones).sum()) == 36
    except Exception as error:  # libraries, drivers and memory have many ways to fail
        if out_of_memory(error):
            raise _no_memory([place]) from error
        raise DeviceError(
            f"{place.name} cannot compute: {shortened(str(error))}. {INSTALL} brings the CUDA "
            "libraries that CuPy needs"
        ) from error
    if not right:
        raise DeviceError(f"{place.name} computes wrong sums; update the NVIDIA driver, or CuPy")
    _works.add(place.name)


# -- data that are on a GPU -----------------------------------------------------------------------


def device_for(device: Any, data: Any) -> Any:
    """Return where to compute: with data on a GPU there, unless another device is asked for."""
    if not isinstance(device, str) or device not in ("cpu", "auto"):
        return device
    arrays = data.values() if isinstance(data, Mapping) else data
    arrays = arrays if isinstance(data, (list, tuple, Mapping)) else [data]
    found = next((x for x in arrays if is_device(x)), None)
    return device if found is None else f"cuda:{found.device.id}"


# -- sessions -------------------------------------------------------------------------------------


@contextmanager
def session() -> Iterator[None]:
    """Let this thread compute on GPUs that `use` names; leave its own GPU as it was found."""
    outer = getattr(_here, "session", None)
    try:
        with ExitStack() as _here.session:
            yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise DeviceError(f"{ADVICE_WHEN_FULL} ({shortened(str(error))})") from error
    finally:
        _here.session = outer


def use(place: Place) -> None:
    """Compute on this place until the session ends."""
    stack = getattr(_here, "session", None)
    if stack is not None:
        stack.enter_context(place)


def in_session(function: Callable[..., T]) -> Callable[..., T]:
    """Run a function in a session."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> T:
        with session():
            return function(*args, **kwargs)

    return run


# -- memory ---------------------------------------------------------------------------------------

ADVICE_WHEN_FULL = (
    "the memory of the GPU is full; end other programs that use it (nvidia-smi), give a smaller "
    "batch_size, explain fewer nodes at once, or use device='cpu'"
)


def budget(places: Sequence[Place]) -> int:
    """Return the bytes of tensors and signals that a chunk may have on each of some GPUs."""
    free = min(place.free_bytes() for place in places)
    return int(min(MOST_BYTES, MEMORY_SHARE * free))


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that the memory of a GPU is full."""
    kind = type(error)
    if not kind.__module__.startswith(("cupy", "cupy_backends")):
        return False
    causes = ("cudaErrorMemoryAllocation", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError) or any(cause in str(error) for cause in causes)


def fits(task: Callable[[T], Any], item: T, places: Sequence[Place]) -> bool:
    """Do a task; False if the memory of the GPU did not suffice."""
    try:
        task(item)
        return True
    except Exception as error:
        if not out_of_memory(error):
            raise
    gc.collect()  # the error is gone by now, arrays of its frames may wait in cycles
    current(places).xp.get_default_memory_pool().free_all_blocks()
    return False


def _no_memory(places: Sequence[Place], needed: int | None = None) -> DeviceError:
    """Return the error for a row that does not fit."""
    place = current(places)
    with place:
        free, total = place.xp.cuda.Device(place.index).mem_info
    need = "" if needed is None else f" of about {needed / 2**20:,.0f} MB"
    return DeviceError(
        f"a single row{need} does not fit into the memory of {place.name}: "
        f"{free / 2**20:,.0f} of {total / 2**20:,.0f} MB are free. End other programs that use "
        "the GPU (nvidia-smi), use dtype='float', or device='cpu'"
    )


class Memory:
    """How much an engine may put on its GPUs at a time; halved when that was too much."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places, self.halvings = places, 0
        self._full = budget(places)
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """The bytes of a chunk."""
        return self._full >> self.halvings

    def halve(self, seen: int, least: int) -> None:
        """Halve it, unless another thread did since `halvings` was `seen`.

        `least` are the bytes of one row: an error says so when these are too much.
        """
        with self._lock:
            if self.halvings != seen:
                return
            if self.bytes < least:
                raise _no_memory(self.places, least)
            self.halvings += 1

    def do(
        self,
        task: Callable[[slice], Any],
        rows: slice,
        level: int,
        least: int,
        stored: Callable[[slice], Callable[[], None]],
    ) -> None:
        """Do a task for some rows, in smaller parts where they do not fit.

        Parameters
        ----------
        level : int
            `halvings` when the rows were cut.
        stored : callable
            Takes rows to a function that undoes what a task which was cut short has left there.
        """
        start = rows.start
        while start < rows.stop:
            seen = self.halvings
            size = max(1, (rows.stop - rows.start) >> (seen - level))
            part = slice(start, min(start + size, rows.stop))
            undo = stored(part)
            if fits(task, part, self.places):
                start = part.stop
                continue
            undo()
            self.halve(seen, least)


# -- several GPUs ---------------------------------------------------------------------------------


def spread(places: Sequence[Place], task: Callable[[T], Any], items: Iterable[T]) -> None:
    """Do a task for every item; each place takes the next one when it is done with the last.

    The first error is raised once the tasks that had started are done.
    """
    items = list(items)
    if len(places) == 1 or len(items) < 2:
        with current(places):
            for item in items:
                task(item)
        return
    ahead, lock, stop = iter(items), threading.Lock(), threading.Event()

    def work(place: Place) -> None:
        with place:
            while not stop.is_set():
                with lock:
                    item = next(ahead, stop)
                if item is stop:
                    return
                try:
                    task(item)  # type: ignore[arg-type]
                except BaseException:
                    stop.set()
                    raise

    with ThreadPoolExecutor(len(places), thread_name_prefix="onnxplain-gpu") as executor:
        futures = [executor.submit(work, place) for place in places]
    for future in futures:
        future.result()


class PerPlace:
    """What is made once on each place that asks for it: on the present one at once."""

    def __init__(self, places: Sequence[Place], make: Callable[[], Any]) -> None:
        self._places, self._make = places, make
        self._found = {current(places).name: make()}

    def __call__(self) -> Any:
        """Return it on the place of this thread; no other thread computes there."""
        name = current(self._places).name
        if name not in self._found:
            self._found[name] = self._make()
        return self._found[name]
