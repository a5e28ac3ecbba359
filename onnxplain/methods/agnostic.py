"""What LIME and SHAP share: explaining by what a model answers where its inputs are changed.

The model is a Converter or any function. What is changed together is a group: a feature of a table,
a patch of an image. Random draws are shared by all rows, so that a row's result does not depend on
the batch it came in, and by all outputs, which are explained by one set of evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np

from .. import names as naming
from ..arrays import Array, to_host
from ..data import float_type, prepare
from ..device import HOST
from ..errors import ArgumentError, DataError, ModelError, ShapeError, listed, shown
from ..graph.load import ValueSpec
from ..walk import Values, chunks
from .base import Method
from .checks import check_flags
from .engine import Engine, checked_batch_size
from .gradients import _required

Shape = tuple[int, ...]

ROW_BYTES = 32 * 2**20  # of rows that a function gets at a time
MAX_ROWS = 2**16  # of these; more gain nothing
VALUE_BYTES = 64 * 2**20  # of answers that are kept until the values of an instance are known
MAX_SAMPLE_BYTES = 2**32
CELLS = 64  # groups of a signal or an image, where none are given


# -- a function in the place of a model -----------------------------------------------------------


class Function:
    """A user's function with what the methods ask of a Converter."""

    model_hash = None

    def __init__(
        self,
        function: Callable[[np.ndarray], Any],
        data: Any,
        dtype: Any,
        channels_first: bool,
        input_names: Any = None,
        output_names: Any = None,
    ) -> None:
        self.function, self.channels_first = function, channels_first
        float_dtype = float_type(dtype)
        dim = _row_shape(data, channels_first)
        specs = (ValueSpec("data", float_dtype, ("N", *dim)),)
        self.graph = SimpleNamespace(inputs=specs, sources=())
        self.input_dim, self.channels_last = [dim], [False]
        columns = _columns(data)
        self.input_names = [[columns] if columns else naming.default_names(dim)]
        if input_names is not None:
            self.input_names = naming.given_names(input_names, self.input_dim, "input")
        rows = prepare(data, specs, self.input_dim, float_dtype, channels_first)[0]
        self.output_dim: list[Shape] = []
        self.output_dim = [self(rows[:2]).shape[1:]]
        self.output_names = [naming.default_output_names(self.output_dim[0])]
        if output_names is not None:
            self.output_names = naming.given_names(output_names, self.output_dim, "output")

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return what the function answers to rows (n, *input_dim), as (n, *output_dim)."""
        # A copy: the function may change what it gets.
        given = np.array(rows if self.channels_first else np.moveaxis(rows, 1, -1), order="C")
        shape = given.shape
        try:
            found = np.asarray(self.function(given))
        except Exception as error:  # whatever the user's function raises
            reason = str(error).partition("\n")[0][:120]
            raise ModelError(
                f"the function failed on a {rows.dtype} array of shape {shape}: "
                f"{type(error).__name__}: {reason}; it must take NumPy arrays. A model of a "
                "framework goes through onnxplain.convert, or give pred_fun"
            ) from error
        if found.dtype.kind not in "fiub":
            raise ModelError(f"the function returned values of type {found.dtype}, not numbers")
        if found.shape[:1] != (len(rows),):
            raise ModelError(
                f"the function returned shape {found.shape} for {len(rows)} rows, expected "
                f"({len(rows)}, outputs)"
            )
        found = found[:, None] if found.ndim == 1 else found
        if self.output_dim and found.shape[1:] != self.output_dim[0]:
            raise ModelError(
                f"the function returned shape {found.shape}, but {self.output_dim[0]} per row when "
                "it was called first"
            )
        return found


def _single(data: Any) -> Any:
    """Return the only array of a list; other data as they are."""
    listing = isinstance(data, (list, tuple)) and len(data) == 1 and hasattr(data[0], "shape")
    return data[0] if listing else data


def _columns(data: Any) -> list[str]:
    """Return the columns of a data frame; other data have none."""
    return [str(c) for c in getattr(_single(data), "columns", ())]


def _row_shape(data: Any, channels_first: bool) -> Shape:
    """Return the shape of a row, channels first."""
    try:
        shape = np.shape(_single(data))
    except ValueError:
        shape = ()
    if len(shape) < 2 or 0 in shape[1:]:
        raise ShapeError(
            f"data of type {type(data).__name__} has shape {shape}; a function is explained for "
            "one array (n, *input_dim)"
        )
    return shape[1:] if channels_first else (shape[-1], *shape[1:-1])


class _FunctionEngine(Engine):
    """Runs a function as `Engine` runs a graph: from one tensor to one other."""

    def __init__(self, function: Function, dtype: np.dtype, batch_size: int | None) -> None:
        self.places, self.xp = [HOST], np
        self.function, self.dtype = function, dtype
        self.dims, self.moved, self.inner = function.input_dim, [True], ()
        self.explained = self.input_names = ["data"]
        self.outputs = self.targets = ("output",)
        self.batch_size = checked_batch_size(batch_size)

    def lift(self, arrays: Sequence[Array]) -> list[Array]:
        return list(arrays)

    def chunk_rows(self, n_outputs: int = 0) -> int:
        row = self.dtype.itemsize * math.prod(self.dims[0])
        return self.batch_size or min(max(1, ROW_BYTES // row), MAX_ROWS)

    def threads(self) -> AbstractContextManager[None]:
        return nullcontext()  # the function may not bear to be called side by side

    def forward(self, arrays: Sequence[Array], keep: bool = True, graph: Any = None) -> Values:
        return {"output": self.function(arrays[0]).astype(self.dtype)}


def _as_model(model: Any, pred_fun: Any) -> Any:
    """Return a Converter, or the function to explain."""
    from ..converter import Converter

    if pred_fun is not None and not callable(pred_fun):
        raise ArgumentError(f"pred_fun must be a function, got {shown(pred_fun)}")
    if pred_fun is not None:
        return pred_fun
    if not isinstance(model, Converter) and not callable(model):
        raise ArgumentError(
            f"model must be a Converter or a function of an array, got {type(model).__name__}; "
            "make one with onnxplain.convert(model), or give pred_fun, such as model.predict_proba"
        )
    return model


# -- groups of features ---------------------------------------------------------------------------


def _grid(dim: Shape, last: bool) -> np.ndarray:
    """Return labels of the features of a table, or of at most 64 patches with all channels."""
    if len(dim) < 2:
        return np.arange(math.prod(dim)).reshape(dim)
    places = dim[:-1] if last else dim[1:]
    cells = round(CELLS ** (1 / len(places)))
    lines = [np.arange(n) // math.ceil(n / cells) for n in places]
    counts = [line[-1] + 1 for line in lines]
    labels = np.ravel_multi_index(np.ix_(*lines), counts)
    return np.broadcast_to(labels[..., None] if last else labels, dim)


def _given_groups(labels: Any, dim: Shape, last: bool, channels_first: bool) -> np.ndarray:
    """Return labels of a user, for all channels where there are none for each."""
    try:
        found = np.asarray(labels)
    except ValueError:
        found = np.asarray(None)
    if found.dtype.kind not in "iuU" and not _are_texts(found):
        raise ArgumentError(
            f"groups must be arrays of whole numbers or names, got {shown(labels)} ({found.dtype})"
        )
    places = dim[:-1] if last else dim[1:]
    user = dim if channels_first or len(dim) < 2 else (*dim[1:], dim[0])
    if found.shape == user:
        return found if user is dim else np.moveaxis(found, -1, 0)
    if len(dim) > 1 and found.shape == places:
        return np.broadcast_to(found[..., None] if last else found, dim)
    also = f" or {places}" if len(dim) > 1 else ""
    raise ShapeError(f"groups have shape {found.shape}; the model expects {user}{also}")


def _are_texts(labels: np.ndarray) -> bool:
    return labels.dtype.kind == "O" and labels.ndim > 0 and all(isinstance(t, str) for t in labels)


def _joined_groups(groups: Any, dims: Sequence[Shape], lasts: Sequence[bool], first: bool) -> Any:
    """Return the number of the group of each feature, all inputs in a row."""
    per_input = [groups] if len(dims) == 1 else groups
    if groups is None:
        per_input = [None] * len(dims)
    if not isinstance(per_input, (list, tuple)) or len(per_input) != len(dims):
        raise ArgumentError(f"groups must be a list of {len(dims)} arrays, one per input")
    found, start = [], 0
    for labels, dim, last in zip(per_input, dims, lasts, strict=True):
        if labels is not None:
            found.append([f"given {t}" for t in _given_groups(labels, dim, last, first).ravel()])
            continue
        cells = _grid(dim, last).ravel()
        found.append([f"cell {t}" for t in start + cells])
        start += int(cells.max()) + 1
    return _numbered([label for labels in found for label in labels])


def _numbered(labels: Sequence[str]) -> np.ndarray:
    """Number labels by their first appearance."""
    numbers = {label: k for k, label in enumerate(dict.fromkeys(labels))}
    return np.array([numbers[label] for label in labels])


# -- what both methods share ----------------------------------------------------------------------


class AgnosticMethod(Method):
    """Base of the methods that need nothing of a model but its answers."""

    def _prepare(
        self,
        converter: Any,
        data: Any,
        *,
        pred_fun: Callable[[np.ndarray], Any] | None = None,
        channels_first: bool = True,
        output_idx: Any = None,
        output_label: Any = None,
        output_weights: Any = None,
        input_names: Any = None,
        output_names: Any = None,
        ignore_last_act: bool = False,
        verbose: bool | None = None,
        dtype: Any = None,
        device: Any = "cpu",
        batch_size: int | None = None,
        seed: int | None = None,
        **unknown: Any,
    ) -> None:
        model: Any = _as_model(converter, pred_fun)
        data = _required(data)
        self._check_unknown(unknown)
        check_flags(channels_first=channels_first, ignore_last_act=ignore_last_act)
        self._is_function = not _is_converter(model)
        if dtype is None:
            dtype = "double" if self._is_function else "float"
        if self._is_function:
            if ignore_last_act or not isinstance(device, str) or device != "cpu":
                raise ArgumentError(
                    "ignore_last_act=True and device are for a Converter; a function is explained "
                    "as it is"
                )
            model = Function(model, data, dtype, channels_first, input_names, output_names)
        elif input_names is not None or output_names is not None:
            raise ArgumentError(
                "input_names and output_names name what a function takes and returns; those of a "
                "Converter are given to onnxplain.convert"
            )
        super()._prepare(
            model,
            data,
            channels_first=channels_first,
            output_idx=output_idx,
            output_label=output_label,
            output_weights=output_weights,
            ignore_last_act=ignore_last_act,
            verbose=verbose,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            seed=seed,
        )
        names = self._engine.input_names[: len(self._engine.explained)]
        moved = zip(range(len(names)), self._engine.moved, strict=False)
        self._places = [i for i, m in moved if m]  # inputs with features; others are conditions

    def _check_arguments(self, converter: Any, data: Any) -> None:
        """Whatever answers can be explained."""

    def _check_rules(self) -> None:
        """No kernel walks back."""

    @cached_property
    def _engine(self) -> Any:
        if isinstance(self.converter, Function):
            return _FunctionEngine(self.converter, float_type(self.dtype), self.batch_size)
        return super()._engine

    def _connected(self) -> list[list[bool]]:
        return [[True]] * len(self._selected) if self._is_function else super()._connected()

    def _references(self, data: Any, data_ref: Any) -> list[Array]:
        """Check the rows to compare with."""
        if data_ref is None:
            raise ArgumentError(
                f"data_ref is missing; {self.method_name} changes features to what they are in "
                "other rows: give some of the training data"
            )
        ours, theirs = _columns(data), _columns(data_ref)
        if ours and theirs and ours != theirs:
            raise DataError(
                f"data_ref has the columns {listed(theirs)}, data has {listed(ours)}; give the "
                "same in the same order"
            )
        return self._arrays(data_ref, "data_ref")

    def _group(self, groups: Any) -> None:
        """Number the groups and say which one each feature is in."""
        engine = self._engine
        self._labels = _joined_groups(
            groups,
            [engine.dims[i] for i in self._places],
            [self.channels_last[i] for i in self._places],
            self.channels_first,
        )
        self._sizes = np.bincount(self._labels)
        self.groups: list[np.ndarray | None] = [None] * len(engine.explained)
        for i, part in self._cuts():
            self.groups[i] = self._labels[part].reshape(engine.dims[i])

    def _cuts(self) -> Iterator[tuple[int, slice]]:
        """Run through the inputs with features and their places in a row of all features."""
        start = 0
        for i in self._places:
            stop = start + math.prod(self._engine.dims[i])
            yield i, slice(start, stop)
            start = stop

    def _features(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return the features of all inputs, (rows, features)."""
        parts = [arrays[i].reshape(len(arrays[i]), -1) for i in self._places]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    # -- answers ----------------------------------------------------------------------------------

    @property
    def _n_groups(self) -> int:
        return len(self._sizes)

    @property
    def _n_rows(self) -> int:
        return len(self.data[0])

    def _predict(self) -> np.ndarray:
        """Store predictions; return the explained nodes of all rows, (rows, nodes)."""
        self._allocate(self._n_rows)
        engine = self._engine

        def block(rows: slice) -> None:
            values = engine.forward(engine.device_rows(self.data, rows), keep=False)
            self._store_scores(rows, values)

        engine.each(block, list(chunks(self._n_rows, engine.chunk_rows())))
        return self._checked(np.concatenate(self.decomp_goal, axis=1).astype(np.float64), "data")

    def _checked(self, answers: np.ndarray, what: str) -> np.ndarray:
        if np.isfinite(answers).all():
            return answers
        raise ModelError(
            f"the model answers NaN or infinity to {what}"
            + ("; changed features take it out of its domain" if what != "data" else "")
        )

    def _flats(self, features: Array, owners: np.ndarray) -> list[Array]:
        """Return what the model answers to rows of features, whose conditions are the owners'."""
        xp, inputs = self._engine.xp, list[Any](self.data)
        cuts = dict(self._cuts())
        for i, x in enumerate(self.data):
            if i in cuts:
                inputs[i] = features[:, cuts[i]].reshape(len(features), *x.shape[1:])
            else:
                inputs[i] = xp.asarray(x[owners])
        values = self._engine.forward(inputs, keep=False)
        return [flat[: len(features)] for flat in self._flat(values)]

    def _answers(self, features: Array, owners: np.ndarray) -> np.ndarray:
        """Return the explained nodes (rows, nodes of all outputs) for rows of features."""
        xp, parts = self._engine.xp, []
        for s, flat in enumerate(self._flats(features, owners)):
            top = None if self._top[s] is None else xp.asarray(self._top[s][owners])
            parts.append(self._nodes[s].values(flat, top))
        found = to_host(xp.concatenate(parts, axis=1)).astype(np.float64)
        return self._checked(found, "rows with changed features")

    def _coalitions(
        self,
        count: int,
        masks: Callable[[np.ndarray], np.ndarray],
        refs: np.ndarray,
        finish: Callable[[slice, np.ndarray], None],
    ) -> None:
        """Find mean answers where some groups are as in an instance, the others as in references.

        Parameters
        ----------
        count : int
            Number of coalitions, the same ones for all instances.
        masks : callable
            Takes numbers of coalitions to the groups that are in, (coalitions, groups).
        refs : array (references, features)
        finish : callable
            Takes a slice of instances and the answers (instances, coalitions, nodes).
        """
        engine, x = self._engine, self._features(self.data)
        others = engine.per_place(lambda: engine.xp.asarray(refs))
        at_once = max(1, VALUE_BYTES // (8 * count * self._n_nodes))

        def parts(rows: slice) -> list[slice]:
            size = max(1, engine.chunk_rows() // len(refs))  # less once the memory was full
            return list(chunks((rows.stop - rows.start) * count, size))

        blocks = list(chunks(self._n_rows, at_once))
        with self._progress(sum(len(parts(rows)) for rows in blocks)) as done:
            for rows in blocks:

                def answers(pairs: slice, first: int = rows.start) -> list[np.ndarray]:
                    owners, numbers = np.divmod(np.arange(pairs.start, pairs.stop), count)
                    mask = masks(numbers)[:, self._labels]
                    return [self._mixed(x, owners + first, mask, others())]

                (values,) = engine.collect(answers, parts(rows), done)
                finish(rows, values.reshape(-1, count, self._n_nodes))

    def _mixed(
        self, x: np.ndarray, owners: np.ndarray, mask: np.ndarray, refs: Array
    ) -> np.ndarray:
        """Return mean answers (pairs, nodes) to features of the owners in a mask, else of refs."""
        xp, total = self._engine.xp, np.zeros((len(owners), self._n_nodes))
        first, last = owners[0], owners[-1] + 1  # in their order
        own = xp.asarray(x[first:last])[xp.asarray(owners - first)][:, None]
        inside = xp.asarray(mask)[:, None]
        for part in chunks(len(refs), self._engine.chunk_rows()):
            rows = xp.where(inside, own, refs[part][None])
            everyone = np.repeat(owners, rows.shape[1])
            found = self._answers(rows.reshape(-1, rows.shape[2]), everyone)
            total = total + found.reshape(len(owners), -1, self._n_nodes).sum(axis=1)
        return total / len(refs)

    # -- results ----------------------------------------------------------------------------------

    def _per_input(self, values: np.ndarray) -> list[list[np.ndarray | None]]:
        """Return values of groups (rows, groups, nodes) as `result` holds them.

        The features of a group share its value equally, so that sums stay what they are.
        """
        shares = (values / self._sizes[:, None]).astype(self._engine.dtype)
        cuts, found = dict(self._cuts()), []
        everything, linked = slice(0, self._n_nodes), self._connected()
        for s, here, _ in self._overlaps(everything):
            row: list[np.ndarray | None] = [None] * len(self._engine.explained)
            for i, part in cuts.items():
                if linked[s][i]:
                    spread = shares[:, self._labels[part], here]
                    row[i] = self._user_layout(
                        spread.reshape(len(values), *self._engine.dims[i], -1)
                    )
            found.append(row)
        return found

    def _user_layout(self, array: np.ndarray) -> np.ndarray:
        return array if self.channels_first or array.ndim < 4 else np.moveaxis(array, 1, -2)

    def _per_output(self, values: np.ndarray) -> list[np.ndarray]:
        """Cut (rows, nodes of all outputs) into the explained outputs."""
        parts = [len(nodes.names) for nodes in self._nodes]
        return np.split(values.astype(self._engine.dtype), np.cumsum(parts)[:-1], axis=1)


def _is_converter(model: Any) -> bool:
    from ..converter import Converter

    return isinstance(model, Converter)


def check_size(name: str, size: int) -> None:
    if size > MAX_SAMPLE_BYTES:
        raise ArgumentError(
            f"{name} is too large: {size / 2**30:.0f} GB would be needed, "
            f"{MAX_SAMPLE_BYTES / 2**30:.0f} GB are allowed; use a smaller one, or fewer groups"
        )
