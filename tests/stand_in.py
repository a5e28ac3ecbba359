"""A stand-in for CuPy on machines without a GPU.

Its arrays hide a NumPy array, take nothing but their like and plain numbers, and cannot be turned
into NumPy arrays except by `get`. They know the GPU they were made on, and refuse to be used while
another one is the current; GPUs have as little memory as a test gives them. RawKernel compiles
CUDA C++ for the processor and runs all threads one after the other.
"""

import ctypes
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import scipy.special

# -- arrays ---------------------------------------------------------------------------------------


class ndarray:
    """A wrapped array: operators and methods of ndarray, for arrays of its own kind only."""

    __module__ = "cupy"
    __array_ufunc__ = None  # NumPy's functions and operators are refused, its scalars wait for ours
    __hash__ = None
    waits: ClassVar[Counter] = Counter()  # how often a number was asked for

    def __init__(self, array):
        self._array, self.device = array, Device()
        GPUS.hold(self)

    def __array__(self, *args, **kwargs):
        raise TypeError("implicit conversion to a NumPy array is not allowed")

    def __array_function__(self, func, types, args, kwargs):
        raise TypeError(f"numpy.{func.__name__} is not for data on a device")

    def get(self):
        self.waits["get"] += 1
        return inner(self)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self._array, name)
        if not callable(value) or name == "dtype":
            return wrapped(value)
        return forwarding(getattr(inner(self), name))

    def __getitem__(self, key):
        return wrapped(inner(self)[inner(key)])

    def __setitem__(self, key, value):
        inner(self)[inner(key)] = inner(value)

    def __len__(self):
        return len(self._array)

    def __iter__(self):
        raise TypeError("an array on a device is not run through")

    def __repr__(self):
        return f"device {self._array!r}"


def _operator(name):
    def method(self, *others):
        if any(isinstance(v, np.ndarray) for v in others):
            raise TypeError(f"{name} of an array on a device and one on the host")
        return wrapped(getattr(inner(self), name)(*map(inner, others)))

    return method


def _in_place(name):
    def method(self, other):
        self._array = getattr(inner(self), name)(inner(other))
        return self

    return method


def _wait(name):
    def method(self):
        self.waits[name] += 1
        return getattr(inner(self), name)()

    return method


for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(ndarray, f"__r{_name}__", _operator(f"__r{_name}__"))
    setattr(ndarray, f"__i{_name}__", _in_place(f"__i{_name}__"))
for _name in ("neg", "pos", "abs", "invert", "lt", "le", "eq", "ne", "gt", "ge"):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
for _name in ("bool", "float", "int", "index"):
    setattr(ndarray, f"__{_name}__", _wait(f"__{_name}__"))


def wrapped(value):
    """Put what a function returned on the device."""
    if isinstance(value, tuple) and any(isinstance(v, np.ndarray) for v in value):
        return tuple(map(wrapped, value))
    return ndarray(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


def inner(value):
    """Take arguments off the device, refusing arrays of the host."""
    if isinstance(value, ndarray):
        if value.device.id != Device().id:
            raise TypeError(f"an array on GPU {value.device.id} is used on GPU {Device().id}")
        return value._array
    if isinstance(value, np.ndarray):
        raise TypeError(f"an array on the host, of shape {value.shape}, meets data on a device")
    if isinstance(value, tuple | list):
        return type(value)(map(inner, value))
    return value


def forwarding(function):
    def call(*args, **kwargs):
        kwargs = {name: inner(value) for name, value in kwargs.items()}
        return wrapped(function(*map(inner, args), **kwargs))

    return call


class Library(ModuleType):
    """A module whose functions are those of another, on wrapped arrays."""

    def __init__(self, name, behind, used=None, prefix=""):
        super().__init__(name)
        self.behind, self.prefix = behind, prefix
        self.used = set() if used is None else used

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        self.used.add(self.prefix + name)
        value = getattr(self.behind, name)
        if isinstance(value, ModuleType):
            return Library(name, value, self.used, f"{name}.")
        if isinstance(value, np.ufunc):
            return Ufunc(value)
        return forwarding(value) if callable(value) and not isinstance(value, type) else value

    def asarray(self, value, dtype=None):
        self.used.add("asarray")
        value = inner(value) if isinstance(value, ndarray) else value
        return ndarray(np.array(value, dtype))


class Ufunc:
    """A function with its method `at`."""

    def __init__(self, function):
        self.call, self.at = forwarding(function), forwarding(function.at)

    def __call__(self, *args, out=None, **kwargs):
        if out is None:
            return self.call(*args, **kwargs)
        self.call(*args, out=out, **kwargs)
        return out


# -- GPUs -----------------------------------------------------------------------------------------


class OutOfMemoryError(MemoryError):
    """What CuPy raises where the memory of a GPU is full."""

    __module__ = "cupy.cuda.memory"


class CUDARuntimeError(RuntimeError):
    """What CuPy raises for errors of the driver."""

    __module__ = "cupy_backends.cuda.api.runtime"


class Gpus:
    """How many there are, their memory, and what arrays hold of it."""

    def __init__(self):
        self.reset()

    def reset(self, count=1, capacity=2**34):
        self.count, self.capacity = count, capacity
        self.driver, self.runtime = 13020, 13020
        self.held, self.most, self.used = Counter(), Counter(), set()
        self.failures, self.freed = 0, 0

    def hold(self, array):
        """Book the memory of an array for as long as it lives; views take none."""
        gpu, size = array.device.id, 0 if array._array.base is not None else array._array.nbytes
        self.used.add(gpu)
        if self.held[gpu] + size > self.capacity:
            self.failures += 1
            raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes")
        self.held[gpu] += size
        self.most[gpu] = max(self.most[gpu], self.held[gpu])
        weakref.finalize(array, self.held.subtract, {gpu: size})


GPUS = Gpus()
_current = threading.local()


class Device:
    """A GPU; without an index the current one of this thread."""

    def __init__(self, index=None):
        self.id = getattr(_current, "index", 0) if index is None else index

    def __enter__(self):
        self.before, _current.index = getattr(_current, "index", 0), self.id
        return self

    def __exit__(self, *error):
        _current.index = self.before

    @property
    def mem_info(self):
        return GPUS.capacity - GPUS.held[self.id], GPUS.capacity


class Pool:
    """CuPy's memory pool: keeps nothing back here."""

    def free_bytes(self):
        return 0

    def used_bytes(self):
        return GPUS.held[Device().id]

    def get_limit(self):
        return 0

    def free_all_blocks(self):
        GPUS.freed += 1


def cuda():
    """Return what the package uses of cupy.cuda."""
    return SimpleNamespace(
        Device=Device,
        is_available=lambda: GPUS.count > 0 and GPUS.driver // 1000 >= GPUS.runtime // 1000,
        runtime=SimpleNamespace(
            getDeviceCount=lambda: GPUS.count,
            driverGetVersion=lambda: GPUS.driver,
            runtimeGetVersion=lambda: GPUS.runtime,
        ),
    )


# -- kernels --------------------------------------------------------------------------------------

COMPILER = shutil.which("g++") or shutil.which("clang++")
# What CUDA C++ has and C++ has not; runs a kernel for all threads, checks the types of arguments.
BEFORE = r"""
#include <cstddef>
#include <type_traits>
#include <utility>
#define __global__
struct Index { int x; };
static thread_local Index threadIdx, blockIdx, blockDim, gridDim;
"""
AFTER = r"""
struct Argument { void* value; int size; bool array; };
template <class A> bool fits(const Argument& given) {
    typedef typename std::remove_pointer<A>::type Value;
    return given.array == std::is_pointer<A>::value && given.size == (int)sizeof(Value);
}
template <class... A, std::size_t... I>
int run(void (*kernel)(A...), const Argument* given, int grid, int block, std::index_sequence<I...>)
{
    const bool right[] = {fits<A>(given[I])...};
    for (std::size_t i = 0; i < sizeof...(A); ++i) if (!right[i]) return (int)i + 1;
    gridDim.x = grid, blockDim.x = block;
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x)
            kernel(*(A*)given[I].value...);
    return 0;
}
template <class... A>
int run(void (*kernel)(A...), const Argument* given, int n, int grid, int block)
{
    if (n != (int)sizeof...(A)) return -1;
    return run(kernel, given, grid, block, std::index_sequence_for<A...>());
}
"""
RUNNER = """
extern "C" int run_{0}(const Argument* given, int n, int grid, int block)
{{ return run({0}, given, n, grid, block); }}
"""


class Argument(ctypes.Structure):
    """An argument of a kernel: where its value is, and the size of it or of an array's elements."""

    _fields_: ClassVar = [
        ("value", ctypes.c_void_p),
        ("size", ctypes.c_int),
        ("array", ctypes.c_bool),
    ]


@cache
def compiled(code, options):
    """Return a library of the kernels in CUDA C++ code, for the processor."""
    names = re.findall(r"__global__\s+void\s+(\w+)", code)
    folder = tempfile.TemporaryDirectory()
    source, library = Path(folder.name, "kernels.cpp"), Path(folder.name, "kernels.so")
    source.write_text(BEFORE + code + AFTER + "".join(map(RUNNER.format, names)))
    command = [COMPILER, "-std=c++14", "-O1", "-ffp-contract=off", "-shared", "-fPIC", *options]
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    folder.cleanup()
    return loaded


class RawKernel:
    """A kernel that runs on the processor, for the arrays above."""

    started: ClassVar[Counter] = Counter()

    def __init__(self, code, name, options=()):
        self.name, self.run = name, getattr(compiled(code, options), f"run_{name}")

    def __call__(self, grid, block, args):
        self.started[self.name] += 1
        values = [np.atleast_1d(inner(x)) for x in args]
        for value in values:
            assert value.flags.c_contiguous, f"{self.name} gets an array that is not in one piece"
        pointers = [ctypes.c_void_p(value.ctypes.data) for value in values]
        given = (Argument * len(args))()
        for place, x, value, pointer in zip(given, args, values, pointers, strict=True):
            place.array, place.size = isinstance(x, ndarray), value.itemsize
            where = ctypes.addressof(pointer) if place.array else pointer.value
            place.value = where
        wrong = self.run(given, len(args), grid[0], block[0])
        if wrong:
            raise TypeError(f"{self.name}: argument {wrong} of {len(args)} has another type")


# -- the module -----------------------------------------------------------------------------------


def modules():
    """Return what stands in for CuPy, by the names to import."""
    library, special = Library("cupy", np), Library("cupyx.scipy.special", scipy.special)
    library.ndarray, library.RawKernel, library.cuda = ndarray, RawKernel, cuda()
    library.get_default_memory_pool = Pool
    packages = {name: ModuleType(name) for name in ("cupyx", "cupyx.scipy")}
    packages["cupyx"].scipy, packages["cupyx.scipy"].special = packages["cupyx.scipy"], special
    return {"cupy": library, **packages, "cupyx.scipy.special": special}


def install(monkeypatch, count=1, capacity=2**34):
    """Make `import cupy` find the stand-in, with so many GPUs of so many bytes."""
    from onnxplain import device, gpu_kernels

    found = modules()
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(device, "_works", set())
    monkeypatch.setattr(gpu_kernels, "enabled", COMPILER is not None)
    gpu_kernels._kernel.cache_clear()
    ndarray.waits.clear()
    RawKernel.started.clear()
    GPUS.reset(count, capacity)
    return found["cupy"]
