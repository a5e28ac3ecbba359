"""Take large weights out of a serialised model before the rest of it is parsed.

Protobuf copies every weight into memory of its own and hands out further copies, beside the bytes
it reads. Here weights go from the file into arrays, one by one, and what is left is small. Of the
format no more is known than the way to them: graph, initializer, raw_data, as onnx.proto has them.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

LEAST_BYTES = 2**16  # smaller weights stay where they are
MAX_LEFT = 0.25  # of the file: else protobuf alone takes less memory
MAX_FIELDS = 2**18  # a model of more is no usual one, and it would take seconds

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_VARINT, _EIGHT_BYTES, _COUNTED, _FOUR_BYTES = 0, 1, 2, 5  # kinds of fields


def without_weights(
    file: io.BufferedIOBase, size: int
) -> tuple[bytes, dict[int, np.ndarray]] | None:
    """Return a model whose large `raw_data` are empty, and their bytes by place in initializers.

    None where there is nothing to gain, or where only protobuf can tell what the file is.
    """
    reader = _Reader(file, size)
    try:
        rest = reader.model() if sys.byteorder == "little" else b""
    except _Unknown:
        return None
    return (rest, reader.taken) if reader.taken else None


class _Unknown(Exception):
    """The file is damaged or unusual."""


class _Field(NamedTuple):
    number: int
    counted: bool  # begins with its length, as messages and bytes do
    start: int
    value: int  # where the value starts
    end: int


class _Reader:
    def __init__(self, file: io.BufferedIOBase, size: int):
        self.file, self.size = file, size
        self.taken: dict[int, np.ndarray] = {}
        self.initializers = self.fields_seen = self.left = 0

    def model(self) -> bytes:
        """Return the model without large weights, which are taken."""
        return self.message(0, self.size, _GRAPH, self.graph)

    def graph(self, graph: _Field) -> bytes:
        return self.message(graph.value, graph.end, _INITIALIZER, self.initializer)

    def initializer(self, tensor: _Field) -> bytes:
        self.initializers += 1
        if tensor.end - tensor.value < LEAST_BYTES:
            return self.read(tensor.value, tensor.end)
        return self.message(tensor.value, tensor.end, _RAW_DATA, self.raw_data)

    def raw_data(self, data: _Field) -> bytes:
        place = self.initializers - 1
        if place in self.taken:  # of several the last one counts
            raise _Unknown
        self.taken[place] = self.array(data.value, data.end)
        return b""

    def message(
        self, start: int, end: int, number: int, change: Callable[[_Field], bytes]
    ) -> bytes:
        """Return a message whose fields of one number have what `change` makes of them."""
        rest = bytearray()
        for part in self.fields(start, end):
            if part.counted and part.number == number:
                rest += _counted(number, change(part))
            else:
                rest += self.read(part.start, part.end)
        return bytes(rest)

    def fields(self, start: int, end: int) -> Iterator[_Field]:
        """Run through the fields of a message."""
        while start < end:
            self.fields_seen += 1
            self.file.seek(start)
            key, value = self.number(start)
            number, kind = key >> 3, key & 7
            size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(kind, 0)
            if kind == _COUNTED:
                size, value = self.number(value)
            elif kind == _VARINT:
                _, value = self.number(value)
            elif not size:
                raise _Unknown
            if not number or value + size > end or self.fields_seen > MAX_FIELDS:
                raise _Unknown
            yield _Field(number, kind == _COUNTED, start, value, value + size)
            start = value + size

    def number(self, start: int) -> tuple[int, int]:
        """Return the whole number that begins here, 7 bits in a byte, and where it ends."""
        number = 0
        for i in range(10):
            byte = self.file.read(1)
            if not byte:
                break
            number |= (byte[0] & 127) << 7 * i
            if byte[0] < 128:
                return number, start + i + 1
        raise _Unknown

    def read(self, start: int, end: int) -> bytes:
        self.left += end - start
        if self.left > MAX_LEFT * self.size:
            raise _Unknown
        return self.array(start, end).tobytes()

    def array(self, start: int, end: int) -> np.ndarray:
        array = np.empty(end - start, np.uint8)
        self.file.seek(start)
        if self.file.readinto(array.data) < array.size:
            raise _Unknown
        return array


def _counted(number: int, content: bytes) -> bytes:
    """Return a field that begins with its length."""
    size, head = len(content), bytearray([number << 3 | _COUNTED])
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes([*head, size]) + content
