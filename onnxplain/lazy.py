"""Explanations of dask arrays: one task per block of rows, on whatever dask runs them.

The method with its model and arguments is one key of the task graph that all blocks share, so that
a scheduler sends it to each worker once.
"""

from __future__ import annotations

import inspect
import pickle
import threading
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from .arrays import is_float
from .data import is_dask, joined, leaves
from .errors import ArgumentError, listed
from .large import (
    LargeResult,
    check_rowwise,
    count_rows,
    fresh_seed,
    row_arrays,
)


class Explainer:
    """A method with its model and arguments, packed while it travels.

    Whoever only passes it on (a scheduler) has no work with it.
    """

    _lock = threading.Lock()

    def __init__(self, method: type, converter: Any, options: Mapping[str, Any]) -> None:
        self._parts: Any = method, converter, dict(options)
        self._packed: bytes | None = None

    def __getstate__(self) -> dict[str, Any]:
        import cloudpickle  # dask needs it too; it takes functions as models

        return {"_parts": None, "_packed": self._packed or cloudpickle.dumps(self._parts)}

    def __call__(self, blocks: Sequence[Any], names: Sequence[str] | None = None) -> Any:
        """Return the explanation of blocks, one per input, with the name of each if they go so."""
        with self._lock:
            if self._packed is not None:
                self._parts, self._packed = pickle.loads(self._packed), None
        method, converter, options = self._parts
        if names is not None:
            return method(converter, dict(zip(names, blocks, strict=True)), **options)
        return method(converter, list(blocks) if len(blocks) > 1 else blocks[0], **options)


def explain_lazily(method: type, *args: Any, **options: Any) -> Any:
    """Return what `method` finds for dask arrays, as dask arrays.

    One random row is explained at once: it checks the arguments, and tells shapes and names.
    """
    import dask.array as da

    found = inspect.signature(method).parameters.values()
    known = [p.name for p in found if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(args) > len(known):
        raise ArgumentError(f"{method.__name__} takes {listed(known)}; all else by name")
    options |= dict(zip(known, args, strict=False))
    converter, data = options.pop(known[0], None), options.pop(known[1])
    count_rows(data)
    names = list(data) if isinstance(data, Mapping) else None
    inputs = _aligned([da.asarray(x) for x in leaves(data)])
    options = {name: _read(joined(value, name)) for name, value in options.items()}
    if options.get("seed") is None:
        options["seed"] = fresh_seed()
    options["verbose"] = False
    explainer = Explainer(method, converter, options)
    model = explainer(_random_row(converter, inputs, names), names)
    if model.is_global:
        return model
    check_rowwise(model)
    return LargeResult(model, _arrays(explainer, model, inputs, names), len(inputs[0]), data)


def _aligned(inputs: list[Any]) -> list[Any]:
    """Cut all inputs along rows only, and as the first one; blocks without rows are left out."""
    rows = tuple(n for n in inputs[0].chunks[0] if n)
    return [x.rechunk((rows, *(-1,) * (x.ndim - 1))) for x in inputs]


def _read(value: Any) -> Any:
    """Read references: each block needs them."""
    if isinstance(value, (list, tuple)) and is_dask(value):
        return [np.asarray(x) for x in value]
    return np.asarray(value) if is_dask(value) else value


def _random_row(converter: Any, inputs: list[Any], names: Any) -> list[np.ndarray]:
    """Return one row per input: between 0 and 1, zeros where whole numbers are asked for."""
    specs = getattr(getattr(converter, "graph", None), "inputs", ())
    whole = {spec.name for spec in specs if not is_float(spec.dtype)}
    rng = np.random.default_rng(0)
    return [
        np.zeros((1, *x.shape[1:])) if name in whole else rng.random((1, *x.shape[1:]))
        for x, name in zip_longest(inputs, names or [spec.name for spec in specs][: len(inputs)])
    ]


def _arrays(explainer: Explainer, model: Any, inputs: list[Any], names: Any) -> dict[str, Any]:
    """Return the arrays of all rows as dask arrays."""
    import dask.array as da
    from dask.delayed import delayed

    shared = delayed(explainer, traverse=False, pure=False)
    blocks = [x.to_delayed(optimize_graph=False).ravel() for x in inputs]
    explain: Any = delayed(_explain, pure=False)
    found: list[Any] = [explain(shared, names, *block) for block in zip(*blocks, strict=True)]
    counts = inputs[0].chunks[0]
    return {
        name: da.concatenate(
            [
                da.from_delayed(part[name], (n, *one.shape[1:]), one.dtype)
                for part, n in zip(found, counts, strict=True)
            ]
        )
        for name, one in row_arrays(model).items()
    }


def _explain(explainer: Explainer, names: Any, *blocks: np.ndarray) -> dict[str, np.ndarray]:
    return row_arrays(explainer(blocks, names))
