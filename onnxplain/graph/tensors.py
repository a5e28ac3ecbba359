"""Make arrays of the tensors in a model; what lies beside the model is mapped, not read.

Sizes are checked before memory is taken, paths before they are opened.
"""

import math
import os
import stat
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto

from onnxplain.errors import ModelError, ModelFileError

MAX_ELEMENTS = 2**40  # of one tensor
MAX_RANK = 64  # of a NumPy array
MAX_UNPACKED_BYTES = 2**30  # of all sparse and packed external tensors together

_DATA_FIELDS = (
    "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data",
)  # fmt: skip
_BITS = {
    getattr(TensorProto, name): bits  # not every onnx has all of them
    for name, bits in [("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2),
                       ("FLOAT6E2M3", 6), ("FLOAT6E3M2", 6)]
    if hasattr(TensorProto, name)
}  # fmt: skip


def dtype_of(elem_type: int, what: str) -> np.dtype:
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(
            f"{what} has element type {elem_type}, which onnx {onnx.__version__} does not know"
        ) from error


def _shape(dims: Iterable[int], what: str) -> tuple[int, ...]:
    shape = tuple(dims)
    if len(shape) > MAX_RANK:
        raise ModelError(f"{what} has {len(shape)} axes, expected at most {MAX_RANK}")
    if any(size < 0 for size in shape):
        raise ModelError(f"{what} has shape {shape}, expected no negative size")
    if math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
        raise ModelError(f"{what} has shape {shape}, expected at most {MAX_ELEMENTS:,} elements")
    return shape


def _byte_count(elements: int, elem_type: int, dtype: np.dtype) -> int:
    return -(-elements * _BITS.get(elem_type, 8 * dtype.itemsize) // 8)


def _entry_count(elements: int, elem_type: int, dtype: np.dtype) -> int:
    """Entries of the typed field: complex numbers take two, small integers share one."""
    if dtype.kind == "c":
        return 2 * elements
    bits = _BITS.get(elem_type, 8)
    return -(-elements // (8 // bits))


def _check_tensor(
    tensor: TensorProto, what: str, raw: np.ndarray | None = None
) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of a tensor whose data, if in the model, have the size they should."""
    shape, dtype = _shape(tensor.dims, what), dtype_of(tensor.data_type, what)
    if tensor.HasField("segment"):
        raise ModelError(f"{what} is cut into segments, expected whole tensors; export it again")
    if _is_external(tensor):
        return shape, dtype
    elements = math.prod(shape)
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    filled = [name for name in _DATA_FIELDS if len(getattr(tensor, name))]
    if tensor.HasField("raw_data") and tensor.data_type != TensorProto.STRING:
        came, unit = len(tensor.raw_data if raw is None else raw), "bytes"
        expected = _byte_count(elements, tensor.data_type, dtype)
        allowed = []
    else:
        came, unit = len(getattr(tensor, field)), "values"
        expected = _entry_count(elements, tensor.data_type, dtype)
        allowed = [field]
    if came != expected:
        raise ModelError(
            f"{what} of shape {shape} and type {dtype} holds {came:,} {unit}, expected "
            f"{expected:,}; the file is damaged, export it again"
        )
    if any(name not in allowed for name in filled):
        raise ModelError(f"{what} holds its values twice, expected once; export the model again")
    return shape, dtype


def _is_external(tensor: TensorProto) -> bool:
    # A model being prepared for external storage still carries its data.
    return tensor.data_location == TensorProto.EXTERNAL and not tensor.HasField("raw_data")


def _in_model(tensor: TensorProto) -> TensorProto:
    """The tensor, without the mark that its data will go to another file."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return tensor
    return TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=tensor.raw_data)


def _typed(stored: np.ndarray, elem_type: int, shape: tuple, dtype: np.dtype) -> np.ndarray:
    """Return bytes as the array they stand for, in their place if they are not packed."""
    if elem_type not in _BITS:
        return stored.view(dtype).reshape(shape)
    packed = TensorProto(data_type=elem_type, dims=shape, raw_data=stored.tobytes())
    return onnx.numpy_helper.to_array(packed)


class Tensors:
    """Makes arrays of tensors; knows where external data may lie."""

    def __init__(self, folder: str | None):
        self.folder = folder
        self.files: dict[str, np.ndarray] = {}
        self.unpacked = 0

    def dense(self, tensor: TensorProto, what: str, raw: np.ndarray | None = None) -> np.ndarray:
        """Return a tensor as an array; `raw` are its bytes where they are not in it."""
        shape, dtype = _check_tensor(tensor, what, raw)
        if _is_external(tensor):
            array = self.external(tensor, shape, dtype, what)
        elif raw is not None and tensor.data_type != TensorProto.STRING:
            array = _typed(raw, tensor.data_type, shape, dtype)
        else:
            array = onnx.numpy_helper.to_array(_in_model(tensor))
        array.flags.writeable = False
        return array

    def check_kept(self, tensor: TensorProto, what: str) -> None:
        """Sub-graphs are kept as they are, so their tensors cannot be mapped."""
        _check_tensor(tensor, what)
        if _is_external(tensor):
            raise ModelError(f"{what} is in another file; a sub-graph must hold its own weights")

    def external(self, tensor: TensorProto, shape: tuple, dtype: np.dtype, what: str) -> np.ndarray:
        if tensor.data_type == TensorProto.STRING:
            raise ModelError(f"{what} keeps text in another file, expected numbers")
        entries = {entry.key: entry.value for entry in tensor.external_data}
        content = self.file(entries.get("location", ""), what)
        elements = math.prod(shape)
        size = _byte_count(elements, tensor.data_type, dtype)
        offset = _external_number(entries, "offset", 0, what)
        length = _external_number(entries, "length", size, what)
        if length != size:
            raise ModelFileError(
                f"{what} of shape {shape} and type {dtype} takes {size:,} bytes, but the model "
                f"says {length:,}; export it again"
            )
        if offset + length > len(content):
            raise ModelFileError(
                f"{what}: {entries['location']!r} has {len(content):,} bytes, expected at least "
                f"{offset + length:,}; it is truncated or of another model, copy it again"
            )
        stored = content[offset : offset + length]
        if tensor.data_type in _BITS:
            self.reserve(elements, what)
        return _typed(stored, tensor.data_type, shape, dtype)

    def file(self, location: str, what: str) -> np.ndarray:
        """The bytes of an external file, mapped once."""
        if self.folder is None:
            raise ModelError(
                f"{what} is in another file ({location[:200]!r}), and bytes or a ModelProto have "
                "no folder; pass the path of the .onnx file, or load it with onnx.load first"
            )
        if location not in self.files:
            self.files[location] = _map_file(self.folder, location, what)
        return self.files[location]

    def sparse(self, sparse: onnx.SparseTensorProto, what: str) -> np.ndarray:
        shape = _shape(sparse.dims, what)
        values = self.dense(sparse.values, what)
        indices = self.dense(sparse.indices, f"{what}, its indices")
        count, rank, elements = values.size, len(shape), math.prod(shape)
        if values.ndim != 1 or values.dtype == object:
            raise ModelError(f"{what} has sparse values of shape {values.shape}, expected (n,)")
        if indices.dtype != np.int64 or indices.shape not in [(count,), (count, rank)]:
            raise ModelError(
                f"{what} has {indices.dtype} indices of shape {indices.shape}, expected int64 of "
                f"shape {(count,)} or {(count, rank)}"
            )
        sizes = shape if indices.ndim == 2 else (elements,)
        columns = indices.reshape(count, len(sizes))
        if ((columns < 0) | (columns >= np.array(sizes, np.int64))).any():
            raise ModelError(f"{what} of shape {shape} has an index outside of it")
        flat = columns @ np.array([math.prod(sizes[i + 1 :]) for i in range(len(sizes))], np.int64)
        if len(np.unique(flat)) != count:
            raise ModelError(f"{what} has two values at one index, expected one")
        self.reserve(elements * values.dtype.itemsize, what)
        array = np.zeros(elements, values.dtype)
        array[flat] = values
        array.flags.writeable = False
        return array.reshape(shape)

    def reserve(self, size: int, what: str) -> None:
        """Few bytes of a file may stand for many in memory: keep count."""
        self.unpacked += size
        if self.unpacked > MAX_UNPACKED_BYTES:
            raise ModelError(
                f"{what} brings what is stored sparse or packed to {self.unpacked:,} bytes, "
                f"expected at most {MAX_UNPACKED_BYTES:,}; store it dense"
            )


def _external_number(entries: dict[str, str], key: str, default: int, what: str) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ModelFileError(f"{what}: external {key} is {text[:40]!r}, expected a number of bytes")
    return int(text)


def _map_file(folder: str, location: str, what: str) -> np.ndarray:
    """Map a file below the model's folder; anything that could point elsewhere is refused."""
    shown = f"{what}: external file {location[:200]!r}"
    parts = location.replace("\\", "/").split("/")
    if not location or "\0" in location:
        raise ModelFileError(f"{shown} is no file name; export the model again")
    if os.path.isabs(location) or ":" in parts[0] or not parts[0] or ".." in parts:
        raise ModelFileError(f"{shown} leaves the model's folder; put it beside the model")
    folder = os.path.realpath(folder)
    path = os.path.normpath(os.path.join(folder, location))
    if os.path.normcase(os.path.realpath(path)) != os.path.normcase(path):
        raise ModelFileError(f"{shown} is behind a link; put the file itself beside the model")
    try:
        # Without blocking, so that a pipe cannot hang us before we see what it is.
        extra = ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")  # not every system has all of them
        flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in extra)
        with os.fdopen(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelFileError(f"{shown} is no regular file")
            if status.st_nlink != 1:
                raise ModelFileError(f"{shown} has several hard links; put a copy beside the model")
            if not status.st_size:
                return np.empty(0, np.uint8)
            return np.memmap(file, np.uint8, "r")
    except FileNotFoundError as error:
        raise ModelFileError(f"{shown} is missing; put it beside the model") from error
    except ModelFileError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelFileError(f"{shown} cannot be read: {reason}") from error
