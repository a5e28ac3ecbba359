"""Results that are not in memory: their arrays are memory-mapped, in a Zarr store, or dask arrays.

What belongs to rows is found in the fields of a method by name, so that one explained row tells all
that is to come: the shapes and types of the arrays, and everything that is the same for all rows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import results
from .arrays import to_host
from .data import is_dask, leaves, rows_of
from .errors import ArgumentError, DataError, SelectionError, shown

# Fields of a method with a first axis of rows, and what they are called in a store.
ROW_FIELDS = {
    "result": "result",
    "preds": "preds",
    "decomp_goal": "decomp_goal",
    "decomp_sum": "decomp_sum",
    "_top": "top_nodes",
    "standard_error": "standard_error",
    "intercept": "intercept",
    "r_squared": "r_squared",
}


# -- data -----------------------------------------------------------------------------------------


def in_memory(*values: Any) -> tuple[Any, ...]:
    """Compute dask arrays, all together; leave other data as they are."""
    if not any(map(is_dask, values)):
        return values
    from dask.base import compute

    return compute(*values)


def count_rows(data: Any, what: str = "data") -> int:
    """Return how many rows all inputs have."""
    shapes = [np.shape(x) for x in leaves(data)]
    if not shapes or any(len(shape) == 0 for shape in shapes):
        raise DataError(f"{what} has no axis of instances; give arrays with one row per instance")
    counts = [shape[0] for shape in shapes]
    if any(n != n for n in counts):
        raise DataError(
            f"{what} is a dask array that does not know its number of rows; call its "
            "compute_chunk_sizes() first"
        )
    if len(set(counts)) > 1:
        raise DataError(f"{what} has different numbers of rows per input: {counts}; give the same")
    if counts[0] == 0:
        raise DataError(f"{what} has no rows; give at least one")
    return counts[0]


# -- what belongs to rows -------------------------------------------------------------------------


def row_arrays(method: Any) -> dict[str, np.ndarray]:
    """Return the arrays of a method that have a row per instance, by their names in a store."""
    return {
        _name(method, field, index): to_host(array)
        for field in ROW_FIELDS
        for index, array in _arrays(getattr(method, field, None))
    }


def _arrays(value: Any, index: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Run through the arrays in nested lists and their places."""
    if isinstance(value, list):
        for k, part in enumerate(value):
            yield from _arrays(part, (*index, k))
    elif value is not None:
        yield index, value


def _name(method: Any, field: str, index: tuple[int, ...]) -> str:
    """Return "result", or "Output_2/Input_1/result" where there are several."""
    explained = results.selected_outputs(method)
    output = index[0] if field == "preds" else explained[index[0]]
    parts = [f"Output_{output + 1}"] if len(method.output_idx) > 1 else []
    if len(index) > 1 and len(method.input_names) > 1:
        parts.append(f"Input_{index[1] + 1}")
    return "/".join([*parts, ROW_FIELDS[field]])


def _filled(method: Any, field: str, arrays: Mapping[str, Any]) -> Any:
    """Return the nested lists of a field with other arrays."""

    def fill(value: Any, index: tuple[int, ...] = ()) -> Any:
        if isinstance(value, list):
            return [fill(part, (*index, k)) for k, part in enumerate(value)]
        return None if value is None else arrays[_name(method, field, index)]

    return fill(getattr(method, field, None))


def with_rows(method: Any, arrays: Mapping[str, np.ndarray], data: Any) -> Any:
    """Return a copy of a method that has other rows."""
    made = copy.copy(method)
    for field in ROW_FIELDS:
        if field in vars(method):
            setattr(made, field, _filled(method, field, arrays))
    made.data = data
    return made


def check_rowwise(method: Any) -> None:
    """Raise if the values of a row depend on other rows."""
    if getattr(method._conventions, "by_batch", False):
        raise ArgumentError(
            f"{method.method_name} with like={method.like!r} takes the range of the whole data: "
            "its values for a row depend on all other rows; leave like away, or explain in memory"
        )


def fresh_seed() -> int:
    """Return a seed for all blocks: without one each would have draws of its own."""
    return int(np.random.default_rng().integers(2**32))


# -- the result -----------------------------------------------------------------------------------


class LargeResult:
    """An explanation whose arrays are memory-mapped, in a Zarr store, or dask arrays.

    `onnxplain.explain_to` and `onnxplain.open_result` return one, and so does every method whose
    data is a dask array. Some rows, `found[:100]`, are an explanation in memory as any other: with
    tables, plots and files.

    Attributes
    ----------
    result, preds, decomp_goal, decomp_sum
        As a method has them, with arrays that are read, or computed, where they are sliced.
    input_names, output_names, output_idx, method_name, seed
        As a method has them.
    complete : bool
        Whether these are all rows of the data; False after an interruption.
    """

    def __init__(
        self,
        method: Any,
        arrays: Mapping[str, Any],
        rows: int,
        source: Any = None,
        complete: bool = True,
    ) -> None:
        self._method, self._arrays, self._source = method, dict(arrays), source
        self._n, self.complete = rows, complete

    def __getattr__(self, name: str) -> Any:
        if name in ("result", "preds", "decomp_goal", "decomp_sum"):
            return _filled(self._method, name, self._arrays)
        if name in ("input_names", "output_names", "output_idx", "method_name", "seed"):
            return getattr(self._method, name)
        raise AttributeError(
            f"{type(self).__name__} has no {name!r}; take rows first, as in found[:100].{name}"
        )

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, rows: Any) -> Any:
        """Return some rows as an explanation in memory, numbered anew from the first.

        Parameters
        ----------
        rows : int, slice, sequence of int, or mask
        """
        chosen = self._chosen(rows)
        found = {name: _part(array, chosen) for name, array in self._arrays.items()}
        data = None if self._source is None else rows_of(self._source, chosen)
        found, data = in_memory(found, data)
        arrays = {name: np.array(array) for name, array in found.items()}
        if data is not None:
            data = self._method._arrays(data, "data")
        return with_rows(self._method, arrays, data)

    def _chosen(self, rows: Any) -> Any:
        n = len(self)
        if isinstance(rows, slice):
            start, stop, step = rows.indices(n)
            chosen = slice(start, stop) if step == 1 else np.arange(start, stop, step)
            empty = not range(start, stop, step)
        else:
            chosen = _indices(rows, n)
            empty = not len(chosen)
        if empty:
            raise SelectionError(f"{shown(rows)} are no rows; there are {n}")
        return chosen

    def get_result(self, type: str = "array", rows: Any = None) -> Any:
        """Return the arrays as they are, or some rows in any form.

        Parameters
        ----------
        type : str, default "array"
            As for the methods. Without `rows` only "array", whose arrays stay where they are.
        rows : int, slice, sequence of int, or mask, optional

        Raises
        ------
        ArgumentError
            If another type is asked for without rows.
        """
        if rows is not None:
            return self[rows].get_result(type)
        if type != "array":
            raise ArgumentError(
                f"get_result({type!r}) would take all {len(self)} rows into memory; choose some, "
                f"get_result({type!r}, rows=slice(0, 100))"
            )
        return results._nest(self._method, self._array)

    def _array(self, s: int, i: int) -> Any:
        array = self.result[s][i]
        if array is not None:
            return array
        one = results.user_array(self._method, s, i)  # NaN: no path to the output
        return np.broadcast_to(one[:1], (len(self), *one.shape[1:]))

    def compute(self) -> Any:
        """Return the explanation of all rows in memory."""
        return self[:]

    def __repr__(self) -> str:
        arrays = (f"  {n}: {tuple(a.shape)} {a.dtype}" for n, a in self._arrays.items())
        state = "" if self.complete else ", not complete"
        return "\n".join([f"{self.method_name} of {len(self)} rows{state}, in arrays", *arrays])


def _indices(rows: Any, n: int) -> np.ndarray:
    """Return whole numbers from 0 to n - 1 for numbers or a mask."""
    index = np.atleast_1d(np.asarray(rows))
    if index.dtype == bool and index.shape == (n,):
        return np.flatnonzero(index)
    if index.dtype.kind not in "iu" or index.ndim != 1 or (index < -n).any() or (index >= n).any():
        raise SelectionError(f"rows must be whole numbers from 0 to {n - 1}, got {shown(rows)}")
    return np.where(index < 0, index + n, index)


def _part(array: Any, rows: slice | Sequence[int]) -> Any:
    orthogonal = getattr(array, "oindex", None)  # Zarr has one way for slices, one for numbers
    return array[rows] if isinstance(rows, slice) or orthogonal is None else orthogonal[rows]
