"""Read R's serialised objects (.rds, .RData) without R; no code in a file is ever run.

The format is described in "R Internals", section "Serialization Formats". Objects become plain
Python values: NULL is None, a character string str (NA is None), a symbol `Symbol`, calls and
pairlists `Pair`, everything else `RObject`.
"""

from __future__ import annotations

import bz2
import lzma
import os
import re
import stat
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from types import GeneratorType
from typing import Any, ClassVar

import numpy as np

from onnxplain.errors import ModelFileError

MAX_BYTES = 2**30  # of a file and of what it unpacks to
MAX_OBJECTS = 2**24  # a file of 4-byte markers would otherwise need 50 times its size in memory
MAX_DEPTH = 50_000
NA_INTEGER = -(2**31)

HAS_ATTRIBUTES, HAS_TAG = 0x200, 0x400
SYMBOL, PAIRLIST, CLOSURE, ENVIRONMENT, PROMISE, CALL = 1, 2, 3, 4, 5, 6
CHARSXP, DOTS, BYTECODE = 9, 17, 21
# Pseudo types: they stand for singletons, references and shortened forms.
REFERENCE, BYTECODE_DEFINE, BYTECODE_REFER = 255, 244, 243
CALL_WITH_ATTRIBUTES, PAIRLIST_WITH_ATTRIBUTES = 240, 239

_PAIR_KINDS = {PAIRLIST: "pairlist", CALL: "call", DOTS: "dots"}
_VECTOR_KINDS = {10: "logical", 13: "integer", 14: "double", 15: "complex", 24: "raw"}
_SINGLETONS = {
    254: None,
    253: "global environment",
    252: "unbound",
    251: "missing",
    250: "base namespace",
    242: "empty environment",
    241: "base environment",
}


@dataclass(frozen=True)
class Symbol:
    """A name in an expression."""

    name: str


@dataclass(slots=True, eq=False, repr=False)
class RObject:
    """An R object: its kind, its value and its attributes.

    Vectors have NumPy arrays or lists as values (sequences such as 1:9 a range), environments a
    dict, closures and the like a tuple.
    """

    kind: str
    value: Any = None
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str | None]:
        found = self.attributes.get("names")
        return list(found.value) if isinstance(found, RObject) and found.kind == "character" else []

    @property
    def classes(self) -> list[str | None]:
        found = self.attributes.get("class")
        return list(found.value) if isinstance(found, RObject) and found.kind == "character" else []

    def get(self, name: str, default: Any = None) -> Any:
        """Return an element of a named list."""
        names = self.names
        if self.kind != "list" or name not in names[: len(self.value)]:
            return default
        return self.value[names.index(name)]

    def __repr__(self) -> str:
        size = f" of {len(self.value)}" if hasattr(self.value, "__len__") else ""
        of_class = f", class {'/'.join(map(str, self.classes))}" if self.classes else ""
        return f"<R {self.kind}{size}{of_class}>"


@dataclass(slots=True, eq=False, repr=False)
class Pair:
    """A cell of a pairlist or of a call: a value with a tag, and the rest of the list."""

    kind: str
    car: Any = None
    cdr: Any = None
    tag: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[str | None, Any]]:
        """Yield (tag, value) along the list."""
        seen: set[int] = set()
        cell: Any = self
        while isinstance(cell, Pair):
            if id(cell) in seen:
                raise ModelFileError("a list in the R file contains itself; save the object again")
            seen.add(id(cell))
            yield cell.tag, cell.car
            cell = cell.cdr

    def __repr__(self) -> str:
        return f"<R {self.kind}>"


class DeferredStrings(Sequence):
    """The texts of numbers that R had not yet written out."""

    def __init__(self, numbers: Sequence) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: Any) -> Any:
        found = self.numbers[i]
        return DeferredStrings(found) if isinstance(i, slice) else _number_text(found)


def _number_text(number: Any) -> str | None:
    """Return a number as R's as.character has it, None for NA."""
    if isinstance(number, (int, np.integer)):
        return None if number == NA_INTEGER else str(number)
    if number != number:
        return None
    if abs(number) == float("inf"):
        return "Inf" if number > 0 else "-Inf"
    short = f"{number:.15g}"
    digits, _, exponent = f"{number:.14e}".partition("e")
    scientific = f"{digits.rstrip('0').rstrip('.')}e{exponent}"
    return scientific if len(scientific) < len(short) else short


# -- front door -----------------------------------------------------------------------------------


def read(source: str | os.PathLike[str] | bytes) -> Any:
    """Read an R file.

    Parameters
    ----------
    source : path or bytes
        A file of R's `saveRDS` or `save`: gzip, bzip2, xz or plain; XDR, little-endian or ASCII;
        version 2 or 3 of the format.

    Returns
    -------
    RObject, Pair, Symbol, str or None, or dict of these
        The object of an .rds file; the objects by name of an .RData file.

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, no R file, or unpacks to more than 1 GiB.

    Examples
    --------
    >>> from onnxplain_converters import rds
    >>> vector = rds.read(b"A\\n2\\n262146\\n131840\\n14\\n2\\n0.5\\n-1\\n")
    >>> vector.kind, vector.value
    ('double', array([ 0.5, -1. ]))
    """
    data = bytes(source) if isinstance(source, (bytes, bytearray)) else _file_bytes(source)
    data = _unpacked(data)
    workspace = re.match(rb"RD([XAB])([0-9])\n", data)
    if workspace and workspace[2] not in b"23":
        raise ModelFileError(
            f"the file has version {int(workspace[2])} of R's save format; "
            "load and save it again with a newer R"
        )
    found = _Reader(_source(data, 5 if workspace else 0)).read()
    if not workspace:
        return found
    if found is not None and not isinstance(found, Pair):
        raise ModelFileError("an .RData file must hold a list of objects; save it again")
    return {str(name): value for name, value in found or ()}


def _file_bytes(source: Any) -> bytes:
    try:
        path = os.fsdecode(source)
    except TypeError:
        raise ModelFileError(
            f"expected the path or bytes of an R file, got {type(source).__name__}"
        ) from None
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(f"{path!r} is no regular file, expected an .rds or .RData file")
        if status.st_size > MAX_BYTES:
            raise ModelFileError(f"{path!r} is larger than 1 GiB; save the model without its data")
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise ModelFileError(f"there is no file {path!r}; check the path") from error
    except ModelFileError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelFileError(f"{path!r} cannot be read: {reason}") from error


# -- compression ----------------------------------------------------------------------------------

_PACKERS: dict[bytes, tuple[str, Callable[[], Any]]] = {
    b"\x1f\x8b": ("gzip", lambda: zlib.decompressobj(31)),
    b"BZh": ("bzip2", bz2.BZ2Decompressor),
    b"\xfd7zXZ\x00": ("xz", lambda: lzma.LZMADecompressor(memlimit=2**28)),
    b"]\x00\x00": ("lzma", lambda: lzma.LZMADecompressor(memlimit=2**28)),
}


def _unpacked(data: bytes) -> bytes:
    """Return the content of a compressed file, of a plain one the file itself."""
    for magic, (name, make) in _PACKERS.items():
        if data.startswith(magic):
            try:
                return _unpack(data, magic, make)
            except (zlib.error, OSError, EOFError, lzma.LZMAError) as error:
                if isinstance(error, ModelFileError):
                    raise
                raise ModelFileError(
                    f"the R file is damaged: {name} says {error}; save or copy it again"
                ) from error
    return data


def _unpack(data: bytes, magic: bytes, make: Callable[[], Any]) -> bytes:
    """Unpack one or more streams that follow each other, up to the limit."""
    parts, size = [], 0
    while data.startswith(magic):
        stream = make()
        part = stream.decompress(data, MAX_BYTES - size + 1)
        size += len(part)
        parts.append(part)
        if size > MAX_BYTES:
            raise ModelFileError(
                "the R file unpacks to more than 1 GiB; save the model without its training data"
            )
        if not stream.eof:
            raise ModelFileError("the R file is truncated: its compressed data ends too early")
        data = stream.unused_data
    return b"".join(parts)


# -- numbers and bytes in the three encodings -----------------------------------------------------


class _Binary:
    """Numbers as bytes: big-endian in XDR, little-endian in the native format."""

    smallest_item = 4

    def __init__(self, data: bytes, position: int, order: str) -> None:
        self.data, self.position, self.order = data, position, order

    def take(self, n: int) -> bytes:
        start = self.position
        if n < 0 or n > len(self.data) - start:
            raise ModelFileError(
                f"the R file is truncated or damaged: {n:,} bytes expected at byte {start:,}, "
                f"{len(self.data) - start:,} left"
            )
        self.position = start + n
        return self.data[start : start + n]

    def integer(self) -> int:
        big = self.order == ">"
        return int.from_bytes(self.take(4), "big" if big else "little", signed=True)

    def integers(self, n: int) -> np.ndarray:
        return np.frombuffer(self.take(4 * n), f"{self.order}i4").astype(np.int32)

    def doubles(self, n: int) -> np.ndarray:
        return np.frombuffer(self.take(8 * n), f"{self.order}f8").astype(np.float64)

    def text(self, n: int) -> bytes:
        return self.take(n)

    def raw(self, n: int) -> np.ndarray:
        return np.frombuffer(self.take(n), np.uint8)

    def left(self) -> int:
        return len(self.data) - self.position


# NA is a NaN with 1954 in its low word: the only NaN that means "missing" rather than "undefined".
NA_REAL = np.array(0x7FF00000000007A2, np.uint64).view(np.float64)[()]
_WORDS = {b"NA": NA_REAL, b"NaN": np.nan, b"Inf": np.inf, b"-Inf": -np.inf}
_ESCAPES = dict(zip(b"ntvbrfa\\?'\"", b"\n\t\v\b\r\f\a\\?'\"", strict=True))


class _Ascii:
    """Numbers as words, one per line."""

    smallest_item = 2
    _word = re.compile(rb"\s*(\S{1,400})(?=\s)")  # without white space after it, it may be cut
    _escaped = re.compile(rb"\\([0-7]{1,3}|[^0-7])|([^\\])", re.DOTALL)

    def __init__(self, data: bytes, position: int) -> None:
        self.data, self.position = data, position

    def word(self) -> bytes:
        found = self._word.match(self.data, self.position)
        if not found:
            raise ModelFileError(
                f"the R file is truncated or damaged: a word expected at byte {self.position:,}"
            )
        self.position = found.end()
        return found[1]

    def integer(self) -> int:
        word = self.word()
        if word == b"NA":
            return NA_INTEGER
        if not re.fullmatch(rb"-?[0-9]{1,10}", word) or not -(2**31) <= int(word) < 2**31:
            raise ModelFileError(f"the R file is damaged: {_shown(word)} is no whole number")
        return int(word)

    def integers(self, n: int) -> np.ndarray:
        return np.array([self.integer() for _ in range(self._possible(n))], np.int32)

    def doubles(self, n: int) -> np.ndarray:
        return np.array([self._double(self.word()) for _ in range(self._possible(n))], np.float64)

    def _double(self, word: bytes) -> float:
        if word in _WORDS:
            return _WORDS[word]
        try:
            text = word.decode("ascii")
            return float.fromhex(text) if "0x" in text else float(text)
        except (ValueError, OverflowError):
            raise ModelFileError(f"the R file is damaged: {_shown(word)} is no number") from None

    def text(self, n: int) -> bytes:
        """Return a text of n characters in which unusual ones are escaped."""
        self._possible(n)
        while self.data[self.position : self.position + 1].isspace():
            self.position += 1
        characters = bytearray()
        for _ in range(n):
            found = self._escaped.match(self.data, self.position)
            if not found:
                raise ModelFileError("the R file is truncated or damaged: a text ends too early")
            self.position = found.end()
            characters.append(_character(found))
        return bytes(characters)

    def raw(self, n: int) -> np.ndarray:
        words = [self.word() for _ in range(self._possible(n))]
        try:
            return np.array([int(word, 16) for word in words]).astype(np.uint8)
        except (ValueError, OverflowError):
            raise ModelFileError("the R file is damaged: raw bytes must be hex digits") from None

    def _possible(self, n: int) -> int:
        if n < 0 or n > self.left():
            raise ModelFileError(
                f"the R file is truncated or damaged: {n:,} values expected at byte "
                f"{self.position:,}, {self.left():,} bytes left"
            )
        return n

    def left(self) -> int:
        return len(self.data) - self.position


def _character(found: re.Match[bytes]) -> int:
    escaped, plain = found.groups()
    if plain:
        return plain[0]
    if escaped[:1].isdigit():
        return int(escaped, 8) & 0xFF
    return _ESCAPES.get(escaped[0], escaped[0])


def _shown(word: bytes) -> str:
    return repr(word[:30].decode("latin-1"))


def _source(data: bytes, start: int) -> _Binary | _Ascii:
    """Return the reader for the encoding that the first two bytes name."""
    mark = data[start : start + 2]
    if mark == b"X\n":
        return _Binary(data, start + 2, ">")
    if mark == b"B\n":
        return _Binary(data, start + 2, "<")
    if mark == b"A\n":
        return _Ascii(data, start + 2)
    what = f"it begins with {data[:8]!r}" if data else "it is empty"
    raise ModelFileError(f"this is no file of R's saveRDS or save: {what}")


# -- objects --------------------------------------------------------------------------------------

_ENCODINGS = {
    "UTF-8": "utf-8",
    "ASCII": "ascii",
    "US-ASCII": "ascii",
    "ANSI_X3.4-1968": "ascii",
    "LATIN1": "latin-1",
    "ISO-8859-1": "latin-1",
    "ISO8859-1": "latin-1",
    "ISO-8859-15": "iso8859-15",
    "CP1252": "cp1252",
    "WINDOWS-1252": "cp1252",
}

NEXT = object()  # what a step yields to be given the next object of the file

# A step reads one object. It yields NEXT, or another step, and is sent the object read: nesting in
# the file then needs no nesting of Python calls.
Step = Generator[Any, Any, Any]


class _Reader:
    """Turns the stream of one file into objects."""

    def __init__(self, source: _Binary | _Ascii) -> None:
        self.source = source
        self.references: list[Any] = []
        self.objects = 0
        self.native = "utf-8"

    def read(self) -> Any:
        version = self.source.integer()
        writer = self.source.integer()
        self.source.integer()  # the oldest R that can read it
        if version not in (2, 3):
            raise ModelFileError(
                f"the R file has version {version} of the format (written by R "
                f"{writer >> 16}.{writer >> 8 & 255}), expected 2 or 3; save it with version=3"
            )
        if version == 3:
            name = self.source.text(self._length(self.source.integer()))
            self.native = _ENCODINGS.get(name.decode("latin-1").upper(), "utf-8")
        return self._run(self._object())

    def _run(self, first: Any) -> Any:
        """Carry out a step and all it asks for."""
        if not isinstance(first, GeneratorType):
            return first
        stack, value = [first], None
        while stack:
            try:
                wanted = stack[-1].send(value)
            except StopIteration as end:
                stack.pop()
                value = end.value
                continue
            value = self._object() if wanted is NEXT else wanted
            if isinstance(value, GeneratorType):
                if len(stack) == MAX_DEPTH:
                    raise ModelFileError(f"the R file nests objects over {MAX_DEPTH:,} deep")
                stack.append(value)
                value = None
        return value

    def _object(self) -> Any:
        return self._after(self.source.integer())

    def _after(self, flags: int) -> Any:
        """Return the object, or the step that reads it, whose flags have just been read."""
        self._count()
        kind = flags & 0xFF
        if kind in _SINGLETONS:
            name = _SINGLETONS[kind]
            return None if name is None else RObject(name)
        if kind == CHARSXP:
            return self._string(flags)
        if kind == REFERENCE:
            return self._reference(flags >> 8 or self.source.integer())
        if kind in _VECTOR_KINDS:
            return self._vector(_VECTOR_KINDS[kind], flags)
        if kind in _PAIR_KINDS:
            return self._pairs(flags)
        step = self._STEPS.get(kind)
        if step is None:
            raise ModelFileError(
                f"the R file is damaged: type {kind} at byte {self.source.position:,} is unknown"
            )
        return step(self, flags)

    def _count(self) -> None:
        self.objects += 1
        if self.objects > MAX_OBJECTS:
            raise ModelFileError(
                f"the R file holds over {MAX_OBJECTS:,} objects; "
                "save the model without its training data"
            )

    def _reference(self, index: int) -> Any:
        if not 1 <= index <= len(self.references):
            raise ModelFileError(f"the R file is damaged: reference {index} points to nothing")
        return self.references[index - 1]

    def _length(self, n: int | None = None) -> int:
        """Return the length of a vector; longer ones are written in two words."""
        n = self.source.integer() if n is None else n
        if n == -1:
            high, low = self.source.integer(), self.source.integer()
            n = (high << 32) + (low & 0xFFFFFFFF)
        if n < 0:
            raise ModelFileError(f"the R file is damaged: a vector has length {n}")
        return n

    def _counted(self) -> int:
        """Return the length of a list of objects, each of which takes some bytes."""
        n = self._length()
        if n * self.source.smallest_item > self.source.left():
            raise ModelFileError(
                f"the R file is truncated or damaged: a list of {n:,} objects in "
                f"{self.source.left():,} bytes"
            )
        return n

    def _string(self, flags: int) -> str | None:
        n = self.source.integer()
        if n == -1:
            return None
        data = self.source.text(n)
        levels = flags >> 12
        encoding = "utf-8" if levels & 8 else "latin-1" if levels & 4 else self.native
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            return data.decode("latin-1")

    def _attributes(self, flags: int) -> Step:
        if not flags & HAS_ATTRIBUTES:
            return {}
        return _attribute_dict((yield NEXT))

    # -- steps by type

    def _symbol(self, flags: int) -> Step:
        name = yield NEXT
        if name is not None and not isinstance(name, str):
            raise ModelFileError("the R file is damaged: a symbol has no name")
        symbol = Symbol("NA" if name is None else name)
        self.references.append(symbol)
        return symbol

    def _vector(self, kind: str, flags: int) -> Step:
        n = self._length()
        if kind in ("logical", "integer"):
            value = self.source.integers(n)
        elif kind == "raw":
            value = self.source.raw(n)
        elif kind == "double":
            value = self.source.doubles(n)
        else:
            value = self.source.doubles(2 * n).view(np.complex128)
        return RObject(kind, value, (yield self._attributes(flags)))

    def _strings(self) -> list[str | None]:
        strings = []
        for _ in range(self._counted()):
            flags = self.source.integer()
            if flags & 0xFF != CHARSXP:
                raise ModelFileError(f"the R file is damaged: type {flags & 0xFF} among strings")
            self._count()
            strings.append(self._string(flags))
        return strings

    def _character(self, flags: int) -> Step:
        strings = self._strings()
        return RObject("character", strings, (yield self._attributes(flags)))

    def _list(self, flags: int) -> Step:
        value = []
        for _ in range(self._counted()):
            value.append((yield NEXT))
        kind = "list" if flags & 0xFF == 19 else "expression"
        return RObject(kind, value, (yield self._attributes(flags)))

    def _pairs(self, flags: int) -> Step:
        first = cell = Pair(_PAIR_KINDS[flags & 0xFF])
        while True:
            cell.attributes = yield self._attributes(flags)
            cell.tag = _tag((yield NEXT)) if flags & HAS_TAG else None
            cell.car = yield NEXT
            flags = self.source.integer()
            if flags & 0xFF not in _PAIR_KINDS:
                break
            self._count()
            cell.cdr = cell = Pair(_PAIR_KINDS[flags & 0xFF])
        cell.cdr = yield self._after(flags)
        return first

    def _closure(self, flags: int) -> Step:
        """Value: arguments, body, environment."""
        attributes = yield self._attributes(flags)
        environment = (yield NEXT) if flags & HAS_TAG else None
        arguments = yield NEXT
        body = yield NEXT
        return RObject("closure", (arguments, body, environment), attributes)

    def _promise(self, flags: int) -> Step:
        """Value: value or unbound, expression, environment."""
        attributes = yield self._attributes(flags)
        environment = (yield NEXT) if flags & HAS_TAG else None
        value = yield NEXT
        expression = yield NEXT
        return RObject("promise", (value, expression, environment), attributes)

    def _environment(self, flags: int) -> Step:
        """Value: what is bound by name, and under "" the enclosing environment."""
        found = RObject("environment", {})
        self.references.append(found)  # before its content, which may refer to it
        self.source.integer()  # locked or not
        found.value[""] = yield NEXT
        frame, table = (yield NEXT), (yield NEXT)
        buckets = table.value if isinstance(table, RObject) and table.kind == "list" else []
        for bindings in (frame, *buckets):
            if isinstance(bindings, Pair):
                found.value.update((name, value) for name, value in bindings if name)
        found.attributes = _attribute_dict((yield NEXT))
        return found

    def _builtin(self, flags: int) -> Step:
        name = self.source.text(self._length())
        return RObject("builtin", name.decode("latin-1"), (yield self._attributes(flags)))

    def _external_pointer(self, flags: int) -> Step:
        found = RObject("external pointer")
        self.references.append(found)
        found.value = (yield NEXT), (yield NEXT)
        found.attributes = yield self._attributes(flags)
        return found

    def _weak_reference(self, flags: int) -> Step:
        found = RObject("weak reference")
        self.references.append(found)
        found.attributes = yield self._attributes(flags)
        return found

    def _s4(self, flags: int) -> Step:
        return RObject("S4", None, (yield self._attributes(flags)))

    def _named(self, flags: int) -> RObject:
        """A namespace, a package's environment or what a hook had written, each a name only."""
        kind = {249: "namespace", 248: "package", 247: "persistent"}[flags & 0xFF]
        self.source.integer()  # always 0: the names have no names
        found = RObject(kind, self._strings())
        self.references.append(found)
        return found

    def _altrep(self, flags: int) -> Step:
        """An alternative representation: its class, its state, its attributes."""
        info, state, attributes = (yield NEXT), (yield NEXT), (yield NEXT)
        first = info.car if isinstance(info, Pair) else None
        if not isinstance(first, Symbol):
            raise ModelFileError("the R file is damaged: an alternative vector has no class")
        found = _alternative(first.name, state)
        found.attributes = _attribute_dict(attributes)
        return found

    # -- byte code: the instructions are numbers, of interest are its constants

    def _bytecode(self, flags: int) -> Step:
        self.source.integer()  # number of shared cells
        found = yield self._bytecode_body({})
        found.attributes = yield self._attributes(flags)
        return found

    def _bytecode_body(self, shared: dict[int, Pair]) -> Step:
        """Value: the constants; the first is the expression that was compiled."""
        yield NEXT  # the instructions
        constants = []
        for _ in range(self._counted()):
            constants.append((yield self._constant(self.source.integer(), shared)))
        return RObject("bytecode", constants)

    def _constant(self, kind: int, shared: dict[int, Pair]) -> Step:
        if kind == BYTECODE:
            return (yield self._bytecode_body(shared))
        return (yield self._cells(kind, shared))

    def _cells(self, kind: int, shared: dict[int, Pair]) -> Step:
        """Read an expression among the constants; cells used twice are written once."""
        first = last = None
        while True:
            self._count()
            if kind == BYTECODE_REFER:
                index = self.source.integer()
                if index not in shared:
                    raise ModelFileError(f"the R file is damaged: shared cell {index} is missing")
                rest = shared[index]
                break
            index = None
            if kind == BYTECODE_DEFINE:
                index, kind = self.source.integer(), self.source.integer()
            with_attributes = kind in (CALL_WITH_ATTRIBUTES, PAIRLIST_WITH_ATTRIBUTES)
            kind = {240: CALL, 239: PAIRLIST}.get(kind, kind)
            if kind not in (CALL, PAIRLIST):
                # The type only announced what follows with its own flags.
                rest = yield NEXT
                break
            cell = Pair(_PAIR_KINDS[kind])
            if index is not None:
                shared[index] = cell
            if with_attributes:
                cell.attributes = _attribute_dict((yield NEXT))
            cell.tag = _tag((yield NEXT))
            cell.car = yield self._cells(self.source.integer(), shared)
            if last is None:
                first = cell
            else:
                last.cdr = cell
            last = cell
            kind = self.source.integer()
        if last is None:
            return rest
        last.cdr = rest
        return first

    _STEPS: ClassVar[dict[int, Callable[..., Any]]] = {
        SYMBOL: _symbol,
        CLOSURE: _closure,
        ENVIRONMENT: _environment,
        PROMISE: _promise,
        7: _builtin,  # "special": its arguments are not evaluated
        8: _builtin,
        16: _character,
        19: _list,
        20: _list,  # expression vector
        BYTECODE: _bytecode,
        22: _external_pointer,
        23: _weak_reference,
        25: _s4,
        238: _altrep,
        247: _named,
        248: _named,
        249: _named,
    }


def _tag(tag: Any) -> str | None:
    if tag is None or isinstance(tag, Symbol):
        return tag and tag.name
    raise ModelFileError("the R file is damaged: a tag is no symbol")


def _attribute_dict(pairs: Any) -> dict[str, Any]:
    if pairs is None:
        return {}
    if not isinstance(pairs, Pair):
        raise ModelFileError("the R file is damaged: attributes are no list")
    return {name: value for name, value in pairs if name}


def _alternative(name: str, state: Any) -> RObject:
    """Return the vector that an alternative representation stands for."""
    if name in ("compact_intseq", "compact_realseq"):
        return _compact(state, "integer" if name == "compact_intseq" else "double")
    # The state of the others is a pair, or a list, of the vector and remarks about it.
    vector = state.car if isinstance(state, Pair) else None
    if isinstance(state, RObject) and state.kind == "list" and state.value:
        vector = state.value[0]
    if isinstance(vector, RObject):
        if name == "deferred_string" and vector.kind in ("integer", "double"):
            return RObject("character", DeferredStrings(vector.value))
        if name.startswith("wrap_"):
            return RObject(vector.kind, vector.value)
    raise ModelFileError(
        f"the R file holds a vector of the kind {name[:40]!r}, whose data lies elsewhere or is of "
        "a package; in R, copy it (x[] <- x) and save again"
    )


def _compact(state: Any, kind: str) -> RObject:
    """Return a sequence with step 1 or -1 as a range, which takes no memory."""
    value = getattr(state, "value", None)
    whole = (
        isinstance(value, np.ndarray)
        and value.shape == (3,)
        and np.isfinite(value).all()
        and (value == np.floor(value)).all()
        and (np.abs(value) < 2**53).all()
    )
    n, first, step = (int(v) for v in value) if whole else (-1, 0, 0)
    if n < 0 or step not in (1, -1):
        raise ModelFileError("the R file is damaged: a compact sequence has no sound bounds")
    return RObject(kind, range(first, first + n * step, step))
