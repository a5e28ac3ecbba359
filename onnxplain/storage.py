"""Results as files: an .npz archive of plain arrays beside a JSON text that says what they are.

Nothing in a file is ever run, and it is read into no more memory than it has bytes: arrays are
stored as they are, not compressed. `numpy.load` reads the arrays as well; those that a user wants
have the names that `get_result` gives them, such as "result" or "Output_1/Input_2/result".
"""

from __future__ import annotations

import inspect
import json
import os
import platform
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from . import presets, results, rules, selection
from .arrays import is_device, to_host
from .errors import ArgumentError, DataError, OnnxplainError, shortened, shown
from .methods.base import Method

FORMAT, VERSION = "onnxplain result", 1
METADATA = "metadata.json"
KINDS = "fiubU"  # of arrays: numbers and texts
MAX_CELLS = 2**28  # of an input without a path, whose values are made when they are asked for
MAX_TEXT = 2000  # letters kept of what can be stored as text only

# Values that are made again from their fields.
VALUES: dict[str, type] = {
    value.__name__: value
    for module in (rules, presets, selection)
    for value in vars(module).values()
    if isinstance(value, type) and is_dataclass(value)
}

COMPUTED = (property, cached_property)

# What NumPy, zipfile and json raise for damaged files.
UNREADABLE = (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, RuntimeError)


class TextOnly:
    """What a file knows by its text only: functions, rules of a user's own."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise ArgumentError(
            f"the file holds only the text of {shortened(self.text)}; run the method again for "
            "what needs more than the stored values"
        )


class StoredModel:
    """What a result without its model knows of it: shapes, names and hash."""

    def __init__(self, state: dict[str, Any]) -> None:
        vars(self).update({name: state[name] for name in (*MODEL_FIELDS, "tensors")})

    def _missing(self) -> Any:
        raise ArgumentError(
            "this result was loaded without its model; give it, as in "
            "onnxplain.load(path, converter=onnxplain.convert(model))"
        )

    graph = trial = raw = property(_missing)


MODEL_FIELDS = (
    "model_hash", "input_dim", "output_dim", "input_names", "output_names", "channels_last",
)  # fmt: skip


class StoredResult(Method):
    """A result of a method that this installation does not know."""

    _lines: tuple[str, ...] = ()

    def _describe(self) -> list[str]:
        return list(self._lines)


# ---------------------------------------------------------------- writing


def save(method: Any, path: str | os.PathLike[str]) -> None:
    """Write a result with all that `load` needs; see `Method.save`."""
    if Path(path).suffix.lower() != ".npz":
        raise ArgumentError(
            f"{shown(os.fspath(path))}: results are saved as .npz; for tables and labelled data "
            "take what get_result returns"
        )
    try:
        write(method, Path(path))
    except OSError as error:
        raise ArgumentError(f"{path} cannot be written: {error.strerror or error}") from error


def write(method: Any, path: Path) -> None:
    """Write the archive."""
    arrays = _named_arrays(method)
    encoder = _Encoder(arrays, _places(method))
    record = {
        "format": FORMAT,
        "version": VERSION,
        **_provenance(method),
        "model": encoder.encode(_model(method)),
        "lines": list(method._describe()),
        "value_name": method.value_name,
        "state": {name: encoder.encode(value) for name, value in _state(method)},
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(METADATA, json.dumps(record, ensure_ascii=False))
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _provenance(method: Any) -> dict[str, Any]:
    """What it takes to get the same result again; of a loaded result what its file said."""
    import onnx

    import onnxplain

    if hasattr(method, "provenance"):
        return method.provenance
    packages = (onnxplain, np, onnx)
    return {
        "method": method.method_name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model_hash": getattr(getattr(method, "converter", None), "model_hash", None),
        "arguments": {name: shortened(repr(v), MAX_TEXT) for name, v in _arguments(method)},
        "seed": getattr(method, "seed", None),
        "versions": {package.__name__: package.__version__ for package in packages}
        | {"python": platform.python_version()},
    }


def _arguments(method: Any) -> Iterator[tuple[str, Any]]:
    """The arguments of a method that it keeps; arrays are in the file as such."""
    for name in list(inspect.signature(type(method)).parameters)[2:]:
        value = getattr(method, name, None)
        if value is not None and not any(map(_is_array, [value, *_items(value)])):
            yield name, value


def _is_array(value: Any) -> bool:
    return is_device(value) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _model(method: Any) -> dict[str, Any] | None:
    converter = getattr(method, "converter", None)
    if converter is None:
        return None
    if isinstance(converter, StoredModel):
        return vars(converter)
    known = {name: getattr(converter, name, None) for name in MODEL_FIELDS}
    return known | {"tensors": _tensors(converter)}


def _tensors(converter: Any) -> Any:
    """Names of what a converter takes, attributes to and explains."""
    graph = converter.graph
    names = [getattr(graph, what, ()) for what in ("sources", "outputs")]
    return [[spec.name for spec in graph.inputs], *map(list, names)]


def _state(method: Any) -> Iterator[tuple[str, Any]]:
    """The fields of a method, without its model and what is made from it."""
    for name, value in vars(method).items():
        made = isinstance(getattr(type(method), name, None), cached_property)
        if name not in ("converter", "provenance") and not made:
            yield name, value


def _places(method: Any) -> dict[int, str]:
    """The names under which arrays of the result are stored, by the identity of the array."""
    named = {}
    for s, row in enumerate(method.result):
        for i, array in enumerate(row):
            named[id(array)] = _place(method, s, i) + "result"
    for s, goal in enumerate(method.decomp_goal or []):
        named[id(goal)] = _place(method, s) + "decomp_goal"
    return named


def _place(method: Any, s: int, i: int | None = None) -> str:
    """Where `get_result` has an output, or an input of it, with closing slashes."""
    outputs = results.selected_outputs(method)
    place = f"Output_{outputs[s] + 1}/" if len(outputs) > 1 else ""
    return place + (f"Input_{i + 1}/" if i is not None and len(method.input_names) > 1 else "")


def _named_arrays(method: Any) -> dict[str, np.ndarray]:
    """Arrays for whoever reads the file without this package."""
    arrays = {}
    for s, j in enumerate(results.selected_outputs(method)):
        for i in range(len(method.input_names)):
            arrays[_place(method, s, i) + "result"] = results.user_array(method, s, i)
        found = {
            "pred": results.predictions(method, s),
            "decomp_sum": results.decomposition(method, s, "decomp_sum"),
            "decomp_goal": results.decomposition(method, s, "decomp_goal"),
            "output_node": np.array(results.output_labels(method, j), str),
            "node": results.nodes_of_rows(method, s),
        }
        place = _place(method, s)
        arrays |= {place + name: array for name, array in found.items() if array is not None}
    return arrays


class _Encoder:
    """Values as JSON; arrays go into `arrays` and are referred to by name."""

    def __init__(self, arrays: dict[str, np.ndarray], places: dict[int, str]) -> None:
        self.arrays, self.places = arrays, places

    def encode(self, value: Any) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) is list:
            return [self.encode(v) for v in value]
        if type(value) is tuple:
            return {"tuple": [self.encode(v) for v in value]}
        if type(value) is dict:
            return {"dict": [[self.encode(k), self.encode(v)] for k, v in value.items()]}
        if isinstance(value, np.generic) and value.dtype.kind in KINDS:
            return {"scalar": self.store(np.asarray(value))}
        if isinstance(value, np.ndarray) or is_device(value):
            array = to_host(value)
            if array.dtype.kind in KINDS:
                return {"array": self.places.get(id(value)) or self.store(array)}
        if isinstance(value, np.dtype) and value.kind in KINDS:
            return {"dtype": value.name}
        if isinstance(value, type) and issubclass(value, (np.floating, np.integer)):
            return {"type": np.dtype(value).name}
        if VALUES.get(type(value).__name__) is type(value):
            known: Any = value
            own = {f.name: getattr(known, f.name) for f in fields(known)}
            return {"value": type(value).__name__, "fields": self.encode(own)}
        return {"text": shortened(repr(value), MAX_TEXT)}

    def store(self, array: np.ndarray) -> str:
        name = f"state/{len(self.arrays)}"
        self.arrays[name] = array
        return name


# ---------------------------------------------------------------- reading


def load(path: str | os.PathLike[str], converter: Any = None) -> Any:
    """Read a result that `Method.save` or `onnxplain explain --out result.npz` wrote.

    Parameters
    ----------
    path : path
        An .npz file. It may come from someone else: nothing in it is run.
    converter : Converter, optional
        The model, for what needs it (`ledger()`); it must be the one that was explained.

    Returns
    -------
    method
        An object of the method's class (`LRP`, ...) with all results, names and arguments;
        `provenance` is a dict that tells the method, its arguments and seed, the SHA-256 of the
        model, the date and the versions of packages.

    Raises
    ------
    DataError
        If the file is none of these, is damaged, or does not fit together, or if `converter` is
        another model.

    Examples
    --------
    >>> import os, tempfile, onnxplain as ox
    >>> from onnxplain.demo import MODEL, digits
    >>> lrp = ox.LRP(ox.convert(MODEL), digits()[0][:2], rule_name="epsilon")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lrp.save(os.path.join(folder, "result.npz"))
    ...     found = load(os.path.join(folder, "result.npz"))
    >>> bool((found.get_result() == lrp.get_result()).all())
    True
    >>> found.provenance["arguments"]["rule_name"]
    "'epsilon'"
    """
    try:
        with open(path, "rb") as file:
            record, state = _read(file)
            method = _made(record, state)
            _check(method)
    except OnnxplainError as error:
        raise DataError(f"{path} holds no sound result: {error}") from error
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read as a result: {_reason(error)}") from error
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise DataError(f"{path} holds no sound result: {_reason(error)}") from error
    if converter is not None:
        _attach(method, converter, record, path)
    return method


def _reason(error: BaseException) -> str:
    return shortened(str(error) or type(error).__name__)


def _read(file: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The text of an archive, and the fields of the method."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        _check_sizes(archive, size)
        if METADATA not in archive.namelist():
            raise DataError(
                f"it has no {METADATA}; results are written by method.save(path) and by "
                "onnxplain explain --out result.npz"
            )
        record = json.loads(archive.read(METADATA).decode("utf-8"))
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise DataError(f"its {METADATA} does not say {FORMAT!r}")
        if record.get("version") != VERSION:
            raise DataError(
                f"it is written in version {shown(record.get('version'))} of the format, this "
                f"onnxplain reads version {VERSION}: install a newer one"
            )
        decode = _Decoder(archive).decode
        record["model"] = decode(record["model"])
        return record, {name: decode(value) for name, value in record.pop("state").items()}


def _check_sizes(archive: zipfile.ZipFile, size: int) -> None:
    members = archive.infolist()
    packed = any(m.compress_type != zipfile.ZIP_STORED for m in members)
    if packed or sum(m.file_size for m in members) > size:
        raise DataError("its parts are compressed or overlap; results are stored as they are")


class _Decoder:
    """Values from JSON and the arrays of an archive."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.found: dict[str, np.ndarray] = {}

    def decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.decode(v) for v in value]
        if not isinstance(value, dict):
            return value
        kind = next(iter(value), "")
        make: Callable[[dict[str, Any]], Any] | None = {
            "tuple": lambda v: tuple(self.decode(v["tuple"])),
            "dict": lambda v: {self.decode(k): self.decode(e) for k, e in v["dict"]},
            "scalar": lambda v: self.array(v["scalar"])[()],
            "array": lambda v: self.array(v["array"]),
            "dtype": lambda v: _numbers(v["dtype"]),
            "type": lambda v: _numbers(v["type"]).type,
            "value": lambda v: VALUES[v["value"]](**self.decode(v["fields"])),
            "text": lambda v: TextOnly(str(v["text"])),
        }.get(kind)
        if make is None:
            raise DataError(f"its {METADATA} holds a value of unknown kind {shown(kind)}")
        return make(value)

    def array(self, name: str) -> np.ndarray:
        """One array of the archive, read once."""
        if name not in self.found:
            self.found[name] = self._read(f"{name}.npy")
        return self.found[name]

    def _read(self, name: str) -> np.ndarray:
        size = self.archive.getinfo(name).file_size
        with self.archive.open(name) as member:
            shape, dtype = _header(member)
            size -= member.tell()
        # Before anything is made: a header may claim any size.
        if dtype.kind not in KINDS or not size or prod(shape) * dtype.itemsize != size:
            raise DataError(f"array {shown(name)} of {dtype} and shape {shape} has {size} bytes")
        with self.archive.open(name) as member:
            return np.lib.format.read_array(member, allow_pickle=False)


def _numbers(name: Any) -> np.dtype:
    dtype = np.dtype(str(name))
    if dtype.kind not in KINDS:
        raise DataError(f"its {METADATA} names the type {shown(name)}")
    return dtype


def _header(member: Any) -> tuple[tuple[int, ...], np.dtype]:
    major = np.lib.format.read_magic(member)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[major]
    shape, _, dtype = read(member)
    return shape, dtype


# ---------------------------------------------------------------- making it a method again


def _made(record: dict[str, Any], state: dict[str, Any]) -> Any:
    """A method with the fields of a file."""
    name = record["method"]
    cls: Any = _classes().get(name, StoredResult)
    for field in state:
        there = getattr(cls, field, None)
        if field.startswith("__") or callable(there) or isinstance(there, COMPUTED):
            raise DataError(f"its {METADATA} sets {shown(field)}, which is no field of a result")
    method = cls.__new__(cls)
    if cls is StoredResult:
        lines = tuple(str(line) for line in record["lines"])
        vars(method).update(
            method_name=str(name), value_name=str(record["value_name"]), _lines=lines
        )
        state["like"] = None
    method.input_names, method.output_names = state.pop("input_names"), state.pop("output_names")
    vars(method).update(state)
    model = record["model"]
    method.converter = None if model is None else StoredModel(model)
    told = ("method", "created", "model_hash", "arguments", "seed", "versions")
    method.provenance = {what: record[what] for what in told}
    return method


def _classes() -> dict[str, type]:
    """The methods of this package by name."""
    import onnxplain

    found = [getattr(onnxplain, name) for name in onnxplain.__all__]
    methods = [c for c in found if isinstance(c, type) and issubclass(c, Method)]
    return {method.method_name: method for method in methods}


def _check(method: Any) -> None:
    """Raise unless arrays, names and selection fit together."""
    outputs = results.selected_outputs(method)
    rows = [len(row) for row in method.result]
    if not outputs or rows != [len(method.input_names)] * len(outputs):
        raise DataError("the result does not have an array for each input and explained output")
    if [nodes.names for nodes in method._nodes] != [method.output_idx[j] for j in outputs]:
        raise DataError("output_idx does not name the nodes that were explained")
    batch = results.batch_size(method)
    for s, j in enumerate(outputs):
        _check_nodes(method, j)
        results.output_labels(method, j)
        for i in range(len(method.input_names)):
            _check_values(method, s, i, batch)
        found = results._scores(method, s)
        shape = (batch, len(method.output_idx[j]))
        for name, score in found.items():
            if score.shape != shape or score.dtype.kind != "f":
                raise DataError(f"{name} is of {score.dtype} and shape {score.shape}")
        results.nodes_of_rows(method, s)
    results._other_fields(method)
    method._describe()
    told = method.provenance
    if not all(isinstance(told[name], dict) for name in ("arguments", "versions")):
        raise DataError("its arguments or versions are no mapping of names to texts")
    if not isinstance(method.value_name, str) or not isinstance(method.channels_first, bool):
        raise DataError("value_name is no text, or channels_first not True or False")


def _check_nodes(method: Any, j: int) -> None:
    nodes = method.output_idx[j]
    n = prod(len(axis) for axis in method.output_names[j])
    flat = all(type(k) is int and 0 <= k < n for k in nodes)
    if not nodes or not (flat or all(isinstance(k, str) for k in nodes)):
        raise DataError(f"output_idx[{j}] holds no nodes of the output: {shown(nodes)}")


def _check_values(method: Any, s: int, i: int, batch: int) -> None:
    array = results.channels_first_array(method, s, i)
    if array is None:
        nodes = len(method.output_idx[results.selected_outputs(method)[s]])
        if batch * nodes * prod(results.input_shape(method, i)) > MAX_CELLS:
            raise DataError(f"the names of Input_{i + 1} describe more values than can be")
    elif array.dtype.kind != "f" or len(array) != batch:
        raise DataError(f"result[{s}][{i}] is of {array.dtype} and shape {array.shape}")


def _attach(method: Any, converter: Any, record: dict[str, Any], path: Any) -> None:
    """Give a loaded result its model, if it is the one that was explained."""
    from .converter import Converter

    if not isinstance(converter, Converter):
        raise ArgumentError(
            f"converter must be a Converter, got {type(converter).__name__}; make one with "
            "onnxplain.convert(model)"
        )
    model = record["model"] or {}
    known, tensors = model.get("model_hash"), model.get("tensors")
    if known is None:
        raise DataError(f"{path} holds what was explained of a function: there is no model for it")
    if converter.model_hash != known:
        raise DataError(
            f"{path} was made with the model of SHA-256 {str(known)[:12]}..., the converter is of "
            f"{converter.model_hash[:12]}...: give the model that was explained"
        )
    if tensors != _tensors(converter):
        raise DataError(
            f"{path} was made with other inputs or outputs of the model: {shown(tensors)}, the "
            f"converter has {shown(_tensors(converter))}; give convert the same arguments"
        )
    method.converter = converter
