"""Explanations larger than memory: batch after batch, into files that can be read in part.

A folder holds a result: one .npy file per array, or a Zarr store of them, the method with its names
and arguments (method.npz) and how far it came (progress.json). Arrays only ever grow; what stands
behind the rows that progress.json tells was interrupted and is written again.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import shutil
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from . import storage
from .arrays import is_device, to_host
from .data import is_batches, joined, leaves, rows_of
from .errors import ArgumentError, DataError, MissingPackageError, OnnxplainError, shortened, shown
from .large import (
    LargeResult,
    check_rowwise,
    count_rows,
    fresh_seed,
    in_memory,
    row_arrays,
)
from .methods.base import Method
from .methods.checks import check_count
from .walk import chunks

FORMAT, VERSION = "onnxplain streamed result", 1
PROGRESS, METHOD = "progress.json", "method.npz"
BLOCK_BYTES = 32 * 2**20  # of results that are made at a time
ZARR_BYTES = 8 * 2**20  # of a chunk of a Zarr array
MAX_HASHED_BYTES = 2**26  # of an argument; of larger ones the ends tell whether it is the same
MAX_PROGRESS_BYTES = 2**24


def explain_to(
    path: str | os.PathLike[str],
    method: Callable[..., Method],
    converter: Any,
    data: Any,
    *,
    batch: int | None = None,
    verbose: bool | None = None,
    **options: Any,
) -> LargeResult:
    """Explain batch after batch and write results to disk, in memory that rows do not add to.

    If it is interrupted, the same call goes on where it stopped.

    Parameters
    ----------
    path : path
        A folder that is made: of .npy files, or a Zarr store if it ends in .zarr.
    method : class
        `onnxplain.LRP`, `onnxplain.DeepSHAP`, ...
    converter : Converter
        The model.
    data : array, data frame, or list or dict of these; or an iterator of batches
        Anything that is read in slices will do: `numpy.memmap`, HDF5 and Zarr data sets, dask
        arrays. An iterator yields what `method` takes as data; to go on after an interruption it
        has to start from the beginning again, what is done already is skipped.
    batch : int, optional
        Rows explained and written at a time; by default as many as have results of 32 MiB.
    verbose : bool, optional
        Whether to show a progress bar; by default if the error stream is a terminal.
    **options
        As for `method`. Without `seed` one is drawn, for all batches.

    Returns
    -------
    LargeResult
        Its arrays are memory-mapped, or Zarr arrays.

    Raises
    ------
    ArgumentError
        If the folder cannot be made, holds something else, or was begun with another model, other
        arguments or other data.
    OnnxplainError
        What `method` raises for its arguments, before anything is written.

    Notes
    -----
    Values are the same as in memory: bit for bit where `batch_size` is given and divides `batch`,
    to rounding otherwise.

    Examples
    --------
    >>> import os, tempfile, onnxplain as ox
    >>> from onnxplain.demo import MODEL, digits
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "relevance")
    ...     found = ox.explain_to(path, ox.LRP, ox.convert(MODEL), digits()[0], rule_name="epsilon")
    ...     found.get_result().shape == (len(found), 1, 8, 8, 10)
    True
    """
    store = _store(path)
    _check_method(method)
    if batch is not None:
        check_count("batch", batch, most=None)
    options = {name: joined(value, name) for name, value in options.items()}
    before = store.progress()
    if options.get("seed") is None:
        options["seed"] = before["seed"] if before else fresh_seed()
    options["verbose"] = False
    source = _Source(data)
    model = method(converter, source.first, **options)
    if model.is_global:
        raise ArgumentError(
            f"{method.method_name} reads no data here: there is nothing to stream; call it as such"
        )
    check_rowwise(model)
    told = _fingerprint(model, source, options)
    if before is None:
        store.begin(model, source.total, told, options["seed"])
    else:
        _check_same(before["explained"], told, store.folder)
    step = _batch_rows(model, batch)
    _check_space(store, model, source.total)

    def anew(block: Any) -> Method:
        return method(converter, block, **options)

    explain = model._again if method._computes_all() else anew
    if before is None or not before["complete"]:
        _work(store, source, step, explain, _shows(verbose))
    return _opened(store, model, None if source.total is None else source.data)


def _check_method(method: Any) -> None:
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise ArgumentError(f"method must be a class such as onnxplain.LRP, got {shown(method)}")


def open_result(
    path: str | os.PathLike[str], converter: Any = None, data: Any = None
) -> LargeResult:
    """Open what `explain_to` wrote, whole or as far as it came.

    Parameters
    ----------
    path : path
        The folder. It may come from someone else: nothing in it is run.
    converter : Converter, optional
        The model, for what needs it; it must be the one that was explained.
    data : array, data frame, or list or dict of these, optional
        What was explained, for what draws or runs it again; it needs the model too.

    Returns
    -------
    LargeResult

    Raises
    ------
    DataError
        If the folder holds no such result, or a damaged one, or `data` are not of its length.

    Examples
    --------
    >>> import os, tempfile, onnxplain as ox
    >>> from onnxplain.demo import MODEL, digits
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "gradients")
    ...     _ = ox.explain_to(path, ox.Gradient, ox.convert(MODEL), digits()[0][:20])
    ...     ox.open_result(path)[:2].get_result("data.frame").shape
    (1280, 12)
    """
    store = _store(path)
    if store.progress() is None:
        raise DataError(f"{path} holds no result of onnxplain.explain_to: it has no {PROGRESS}")
    if data is not None and converter is None:
        raise ArgumentError("data are read as the model takes them: give converter too")
    found = _opened(store, storage.load(store.folder / METHOD, converter), data)
    if data is not None and count_rows(data) < len(found):
        raise DataError(f"data has {count_rows(data)} rows, {path} has {len(found)}")
    return found


def _opened(store: Any, model: Any, source: Any = None) -> LargeResult:
    progress = store.progress()
    if not progress["rows"]:
        raise DataError(f"{store.folder} has no explained rows yet")
    arrays = {
        name: store.open(name, one, progress["rows"]) for name, one in row_arrays(model).items()
    }
    return LargeResult(model, arrays, progress["rows"], source, progress["complete"])


# -- the data -------------------------------------------------------------------------------------


class _Source:
    """Data that is read in slices, or batch after batch."""

    def __init__(self, data: Any) -> None:
        self.total: int | None = None
        if is_batches(data):
            self._batches = iter(data)
            head = next(self._batches, None)
            if head is None:
                raise DataError(
                    "data is an iterator that yields no batches; give one that starts from the "
                    "beginning (a generator can be run through only once)"
                )
            self.data = _with_shape(head)
            count_rows(self.data, "the first batch of data")
        else:
            self.data = _with_shape(data)
            self.total = count_rows(self.data)
        self.first = self._rows(slice(0, 1))

    def _rows(self, rows: slice) -> Any:
        return in_memory(rows_of(self.data, rows))[0]

    def blocks(self, done: int, step: int) -> Generator[Any, None, None]:
        """Yield data of at most `step` rows at a time, without the first `done` rows."""
        if self.total is not None:
            for start in range(done, self.total, step):
                yield self._rows(slice(start, min(start + step, self.total)))
                _forget(self.data)
            return
        seen, block = 0, self.data
        while block is not None:
            block = _with_shape(block)
            n = count_rows(block, f"the batch from row {seen} on")
            for rows in chunks(n, step):
                start = max(rows.start, done - seen)
                if start < rows.stop:
                    yield rows_of(block, slice(start, rows.stop))
            seen, block = seen + n, next(self._batches, None)
        if seen < done:
            raise DataError(f"data ended after {seen} rows, but {done} are explained already")


def _forget(data: Any) -> None:
    """Let go of the pages of mapped files that were read: they count as memory of the process."""
    for x in leaves(data):
        mapped = getattr(x, "_mmap", None)
        if mapped is not None and not x.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def _with_shape(data: Any) -> Any:
    """Return lists of numbers as an array."""
    plain = isinstance(data, (list, tuple)) and not any(hasattr(x, "shape") for x in data)
    return np.asarray(data) if plain else data


def _batch_rows(model: Method, batch: int | None) -> int:
    """Return how many rows to explain at a time: whole batches of the engine."""
    unit = model.batch_size or model._engine.chunk_rows(model._n_nodes)
    if batch is not None:
        return batch
    row = sum(array.nbytes for array in row_arrays(model).values())
    return max(1, BLOCK_BYTES // (row * unit)) * unit if row * unit < BLOCK_BYTES else unit


def _work(store: Any, source: _Source, step: int, explain: Callable[[Any], Method], bar: bool):
    """Explain and write what is not there yet."""
    from tqdm.auto import tqdm

    done = store.progress()["rows"]
    shows = tqdm(total=source.total, initial=done, unit="row", disable=not bar)
    with closing(shows), closing(source.blocks(done, step)) as blocks:
        for block in blocks:
            try:
                found = row_arrays(explain(block))
            except DataError as error:
                raise type(error)(f"data from row {done} on: {error}") from error
            count = len(next(iter(found.values())))
            store.write(found, done)
            done += count
            store.note(rows=done)
            shows.update(count)
    store.note(complete=True)


def _shows(verbose: bool | None) -> bool:
    return sys.stderr is not None and sys.stderr.isatty() if verbose is None else verbose


# -- what was asked for ---------------------------------------------------------------------------


def _fingerprint(model: Any, source: _Source, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same to go on, as texts and numbers."""
    graph = getattr(model.converter, "graph", None)
    tensors = [list(getattr(graph, what, ())) for what in ("outputs", "sources")]
    asked = {name: v for name, v in options.items() if name not in ("verbose", "device")}
    return {
        "method": model.method_name,
        "model": model.converter.model_hash,
        "tensors": tensors,
        "arguments": {name: _text(value) for name, value in sorted(asked.items())},
        "rows": source.total,
        "first row": [_text(np.asarray(x)) for x in leaves(source.first)],
    }


def _text(value: Any) -> Any:
    """Return a value as text that is the same in another process; arrays by their hash."""
    if isinstance(value, Mapping):
        return {str(name): _text(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_text(entry) for entry in value]
    if hasattr(value, "shape") or hasattr(value, "__array__"):
        return _array_text(to_host(value) if is_device(value) else np.asarray(value))
    return shortened(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value)), 2000)


def _array_text(array: np.ndarray) -> str:
    ends = array if array.nbytes <= MAX_HASHED_BYTES else array[[0, -1]]
    if array.dtype.kind == "O":
        ends = np.array([str(entry) for entry in ends.flat])
    digest = hashlib.sha256(np.ascontiguousarray(ends).tobytes()).hexdigest()
    return f"array of {array.dtype}, shape {array.shape}, {digest}"


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    now = json.loads(json.dumps(now))
    for what in now:
        if before.get(what) != now[what]:
            old, new = _differing(before.get(what), now[what])
            raise ArgumentError(
                f"{folder} was begun with different {what}: {shown(old)}, not {shown(new)}; give "
                "the same to go on, or name another folder"
            )


def _differing(old: Any, new: Any) -> tuple[Any, Any]:
    """Return the entries that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        return {n: old.get(n) for n in names}, {n: new.get(n) for n in names}
    return old, new


def _check_space(store: Any, model: Method, total: int | None) -> None:
    """Raise where the arrays of all rows cannot fit on the disk."""
    if total is None or isinstance(store, _ZarrStore):  # Zarr packs: who knows
        return
    row = sum(array.nbytes for array in row_arrays(model).values())
    needed = row * (total - store.progress()["rows"])
    free = shutil.disk_usage(store.folder).free
    if needed > free:
        raise ArgumentError(
            f"the result needs {needed / 2**30:.1f} GB more, {store.folder} has "
            f"{free / 2**30:.1f} GB free; explain fewer outputs (output_idx), or name another disk"
        )


# -- stores ---------------------------------------------------------------------------------------


def _store(path: Any) -> Any:
    folder = Path(path)
    if folder.suffix.lower() == ".zarr":
        return _ZarrStore(folder)
    if folder.suffix.lower() in (".npy", ".npz"):
        raise ArgumentError(
            f"{folder}: streamed results are folders of .npy files, one per array; name it "
            f"{folder.stem!r}, or {folder.stem + '.zarr'!r} for a Zarr store"
        )
    return _NpyStore(folder)


class _Store:
    """A folder with arrays that grow, and a note of how far they are good."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def progress(self) -> dict[str, Any] | None:
        """Return the note; None where there is none."""
        path = self.folder / PROGRESS
        if not path.is_file():
            return None
        try:
            with path.open("rb") as file:
                found = json.loads(file.read(MAX_PROGRESS_BYTES))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {shortened(str(error))}") from error
        kinds = {"rows": int, "complete": bool, "explained": dict, "seed": int}
        sound = isinstance(found, dict) and found.get("format") == FORMAT
        if not sound or not all(type(found.get(name)) is kind for name, kind in kinds.items()):
            raise DataError(f"{path} is no note of onnxplain.explain_to")
        if found.get("version") != VERSION:
            raise DataError(
                f"{path} is of version {shown(found.get('version'))}, this onnxplain reads "
                f"version {VERSION}: install a newer one"
            )
        return found

    def begin(self, model: Method, total: int | None, told: Any, seed: Any) -> None:
        """Make the folder, with what is the same for all rows."""
        if self.folder.exists() and not (self.folder.is_dir() and not any(self.folder.iterdir())):
            raise ArgumentError(
                f"{self.folder} is there already and holds no result to go on with; name another "
                "folder, or remove it"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArgumentError(f"{self.folder} cannot be made: {error.strerror}") from error
        model.save(self.folder / METHOD)
        self._write_note(
            {"format": FORMAT, "version": VERSION, "rows": 0, "total": total, "complete": False}
            | {"seed": seed, "explained": told}
        )

    def note(self, **changes: Any) -> None:
        self._write_note((self.progress() or {}) | changes)

    def _write_note(self, note: Mapping[str, Any]) -> None:
        """Replace the note at once, so that there is always a whole one."""
        path = self.folder / PROGRESS
        try:
            path.with_suffix(".new").write_text(json.dumps(note, indent=1), "utf-8")
            path.with_suffix(".new").replace(path)
        except OSError as error:
            raise ArgumentError(f"{path} cannot be written: {error.strerror}") from error

    def write(self, arrays: Mapping[str, np.ndarray], start: int) -> None:
        for name, array in arrays.items():
            try:
                self._append(name, array, start)
            except OSError as error:
                raise ArgumentError(
                    f"{self.folder}: {name} cannot be written: {error.strerror or error}; "
                    f"{start} rows are done, the same call goes on from there"
                ) from error

    def _append(self, name: str, array: np.ndarray, start: int) -> None:
        raise NotImplementedError

    def _read(self, name: str, rows: int) -> Any:
        raise NotImplementedError

    def open(self, name: str, one: np.ndarray, rows: int) -> Any:
        """Return an array of so many rows that are like one row."""
        try:
            found = self._read(name, rows)
        except OnnxplainError:
            raise
        except Exception as error:  # whatever NumPy or zarr raise for damaged files
            reason = shortened(str(error) or type(error).__name__)
            raise DataError(f"{self.folder}: {name} cannot be read: {reason}") from error
        fits = tuple(found.shape[1:]) == one.shape[1:] and found.dtype == one.dtype
        if not fits or found.shape[0] < rows:
            raise DataError(
                f"{self.folder}: {name} is of {found.dtype} and shape {tuple(found.shape)}, "
                f"expected {one.dtype} and {(rows, *one.shape[1:])}"
            )
        return found


class _NpyStore(_Store):
    """One .npy file per array; its header has room for the number of rows to grow."""

    def _append(self, name: str, array: np.ndarray, start: int) -> None:
        path = self.folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        header = {
            "shape": (start + len(array), *array.shape[1:]),
            "fortran_order": False,
            "descr": np.lib.format.dtype_to_descr(array.dtype),
        }
        with path.open("r+b" if start else "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            here = file.tell() + start * (array.nbytes // len(array))
            if start and os.fstat(file.fileno()).st_size < here:
                raise DataError(f"{path} has lost rows that were written; remove {self.folder}")
            file.truncate(here)
            file.seek(here)
            np.ascontiguousarray(array).tofile(file)
            os.fsync(file.fileno())

    def _read(self, name: str, rows: int) -> Any:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)[:rows]


class _ZarrStore(_Store):
    """One array of a Zarr group per array."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        try:
            import zarr
        except ImportError as error:
            raise MissingPackageError(
                f"{folder}: .zarr needs zarr: pip install 'onnxplain[zarr]'"
            ) from error
        self._zarr = zarr

    def _append(self, name: str, array: np.ndarray, start: int) -> None:
        group = self._zarr.open_group(str(self.folder), mode="a")
        if start == 0:
            rows = max(1, min(len(array), ZARR_BYTES // max(array.nbytes // len(array), 1)))
            shape, cut = (0, *array.shape[1:]), (rows, *array.shape[1:])
            group.create_array(name, shape=shape, chunks=cut, dtype=array.dtype, overwrite=True)
        found: Any = group[name]
        found.resize((start + len(array), *array.shape[1:]))
        found[start:] = array

    def _read(self, name: str, rows: int) -> Any:
        return self._zarr.open_group(str(self.folder), mode="r")[name]
