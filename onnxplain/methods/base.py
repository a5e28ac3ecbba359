"""What all white-box methods share: checking arguments, chunks, walks, and the result's fields."""

from __future__ import annotations

import copy
import difflib
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import zip_longest
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from .. import names as naming
from .. import selection
from ..arrays import Array, lead, namespace, to_host
from ..conventions import checked_like
from ..data import float_type, is_dask, prepare
from ..device import device_for, in_session, use
from ..errors import (
    ArgumentError,
    SelectionError,
    UnknownArgumentError,
    UnsupportedOpError,
    listed,
    shown,
)
from ..graph.cut import downstream, find_tensor
from ..graph.graph import Graph
from ..selection import Nodes, Sums, Top
from ..walk import Step, Values, chunks
from .checks import check_count, check_flags
from .engine import Engine

if TYPE_CHECKING:
    from ..converter import Converter


class _Names:
    """Labels that may be set as a user writes them; kept per layer and axis."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, method: Any, owner: Any = None) -> Any:
        if method is None:
            return self
        if self.name not in vars(method):
            raise AttributeError(f"{type(method).__name__} has no {self.name} yet")
        return vars(method)[self.name]

    def __set__(self, method: Any, names: Any) -> None:
        known = vars(method).get(self.name)
        layers = None if known is None else len(known)
        vars(method)[self.name] = naming.nested_names(names, layers, self.name)


class Method:
    """Base of the methods: explains on construction, then holds the result.

    Attributes
    ----------
    result : list (per explained output) of list (per input) of array
        Arrays `(batch, *input_dim, nodes)` in the user's layout of channels; None where an input
        has no path to the output. With `layer`, tensors of the graph stand for the inputs.
    preds : list of array (batch, *output_dim)
        Predictions of all outputs, with the last activation.
    decomp_goal, decomp_sum : list (per explained output) of array (batch, nodes)
        What the values should add up to, and what they do.
    output_idx : list (per output) of list of int or str, or None
        The explained nodes as flat indices; "top1", ... or names of sums where those are explained.
    input_names, output_names : list (per layer) of list (per axis) of list of str
        Labels; those set here are used from then on.
    layers : list of str
        The tensors that values are attributed to, empty for the inputs.
    """

    method_name: ClassVar[str] = ""
    value_name: ClassVar[str] = "Relevance"
    walk: ClassVar[str] = "gradient"  # which pass of the kernels is used
    is_global = False
    input_names: Any = _Names()
    output_names: Any = _Names()
    conventions: ClassVar[Mapping[str | None, Any]] = {None: None}  # by library, for `like`
    cuts: ClassVar[bool] = False  # with `layer`, runs the graph from there on

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Explain dask arrays block by block, when asked for; see `onnxplain.large.LargeResult`."""
        data = args[1] if len(args) > 1 else options.get("data")
        if is_dask(data):
            from ..lazy import explain_lazily

            return explain_lazily(cls, *args, **options)
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = in_session(cls.__init__)
            cls.__signature__ = _full_signature(cls)  # for help(), notebooks, the command line

    def _prepare(
        self,
        converter: Converter,
        data: Any,
        *,
        channels_first: bool = True,
        output_idx: Any = None,
        output_label: Any = None,
        output_weights: Any = None,
        layer: str | Sequence[str] | None = None,
        ignore_last_act: bool = True,
        verbose: bool | None = None,
        dtype: Any = "float",
        device: Any = "cpu",
        batch_size: int | None = None,
        seed: int | None = None,
        like: str | None = None,
        **unknown: Any,
    ) -> None:
        self._check_arguments(converter, data)
        self._check_unknown(unknown)
        check_flags(channels_first=channels_first, ignore_last_act=ignore_last_act)
        if verbose is not None:
            check_flags(verbose=verbose)
        checked_like(like, self.method_name, self.conventions)
        if seed is not None:
            check_count("seed", seed, 0, most=None)
        self.converter, self.like, self.seed, self.verbose = converter, like, seed, verbose
        self.channels_first, self.ignore_last_act = channels_first, ignore_last_act
        self._data_channels_first = channels_first
        self.dtype, self.batch_size = dtype, batch_size
        self.device = device_for(device, data)
        self.output_names = [[list(a) for a in layer] for layer in converter.output_names]
        chosen = selection.select(
            output_idx, output_label, output_weights, converter.output_dim, converter.output_names
        )
        self.output_idx: list[Any] = [nodes and nodes.names for nodes in chosen]
        self._nodes: list[Nodes] = [nodes for nodes in chosen if nodes is not None]
        self._top: list[Any] = [None] * len(self._nodes)  # nodes of each row where they differ
        self.layers = self._find_layers(layer)
        self._name_inputs()
        self._check_paths()
        self._check_rules()
        self.data: Any = None if data is None else self._arrays(data, "data")
        if self._engine.inner:
            self.channels_first = True  # inner tensors are as the graph has them

    def _compute(self) -> None:
        """Explain `data`: all that is not the same for other data."""
        raise NotImplementedError

    @classmethod
    def _computes_all(cls) -> bool:
        """Whether `_compute` does all that __init__ does with data; that of a user may do more."""
        owners = [next(c for c in cls.__mro__ if f in vars(c)) for f in ("_compute", "__init__")]
        return issubclass(*owners)

    @in_session
    def _again(self, data: Any) -> Self:
        """Explain other data with the same arguments; references and the engine are used again."""
        other = copy.copy(self)
        use(self._engine.places[0])
        other.data = other._arrays(data, "data")
        other._compute()
        return other

    def _check_arguments(self, converter: Any, data: Any) -> None:
        from ..converter import Converter

        if not isinstance(converter, Converter):
            advice = "make one with onnxplain.convert(model)"
            if isinstance(data, Converter):
                advice = "give the converter first, then data"
            raise ArgumentError(
                f"the first argument must be a Converter, got {type(converter).__name__}; {advice}"
            )

    def _check_unknown(self, unknown: Mapping[str, Any]) -> None:
        for name in unknown:
            known = list(inspect.signature(type(self)).parameters)[2:]
            close = difflib.get_close_matches(name, known, 1, 0.5)
            meant = f"did you mean {close[0]!r}? " if close else ""
            raise UnknownArgumentError(
                f"{self.method_name} has no argument {name!r}; {meant}It has {', '.join(known)}"
            )

    @property
    def _conventions(self) -> Any:
        return self.conventions[self.like]

    @cached_property
    def _engine(self) -> Engine:
        dtype, sources = float_type(self.dtype), self.converter.graph.sources
        inner = self.layers or sources
        return Engine(
            self.converter,
            dtype,
            self.device,
            self.batch_size,
            self.ignore_last_act,
            cut_at=inner if self.cuts else sources,
            inner=inner,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave away what can be made again and cannot be pickled."""
        return {k: v for k, v in vars(self).items() if k not in ("_engine", "_sums")}

    def _arrays(self, data: Any, what: str) -> list[Array]:
        """Return arrays for the inputs of the engine's graph."""
        arrays = prepare(
            data,
            self.converter.graph.inputs,
            self.converter.input_dim,
            self._engine.dtype,
            self._data_channels_first,
            what,
            copy=True,
            names=self.converter.input_names,
        )
        return self._engine.lift(arrays)

    # -- inner tensors ----------------------------------------------------------------------------

    def _find_layers(self, layer: Any) -> list[str]:
        """Return the tensors of the graph that `layer` names."""
        if layer is None:
            return []
        names = [layer] if isinstance(layer, str) else layer
        if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) for n in names):
            raise SelectionError(
                f"layer must be the name of a tensor or a list of names, got {shown(layer)}"
            )
        converter = self.converter
        found = [find_tensor(name, converter.graph, converter.raw) for name in names]
        if not found or len(set(found)) < len(found):
            raise SelectionError(f"layer must name tensors, each once; got {shown(layer)}")
        for name in found:
            if name not in converter.trial.row_tensors and converter.graph.fixed_batch is None:
                raise SelectionError(
                    f"axis 0 of tensor {shown(name)} is not the batch (its shape for two rows is "
                    f"{converter.trial.shapes[name]}); name a tensor before or after it"
                )
        return found

    def _name_inputs(self) -> None:
        """Label what values are attributed to."""
        converter, inner = self.converter, self._engine.inner
        if not inner:
            self.channels_last = list(converter.channels_last)
            self.input_names = [[list(a) for a in layer] for layer in converter.input_names]
            return
        # What a token model looks up has the features of a position on its last axis.
        sources = converter.graph.sources
        self.channels_last = [
            name in sources and len(dim) == 2
            for name, dim in zip(inner, self._engine.dims, strict=True)
        ]
        self.input_names = [
            naming.default_names(dim, naming.LETTERS_LAST[2] if last else None)
            for dim, last in zip(self._engine.dims, self.channels_last, strict=True)
        ]

    def _check_paths(self) -> None:
        linked = zip(*self._connected(), strict=True)
        for name, links in zip(self.layers, linked, strict=False):
            if not any(links):
                targets = [self._engine.targets[j] for j in self._selected]
                raise SelectionError(
                    f"layer {shown(name)} has no path to what is explained ({listed(targets)})"
                    + (" around the other layers" if self.cuts and len(self.layers) > 1 else "")
                    + ("; try ignore_last_act=False" if self.ignore_last_act else "")
                )

    def _check_rules(self) -> None:
        """Raise before any work if a node has no rule for this method."""
        on_path = self._nodes_on_path()
        for node in on_path:
            rule, _, remark = node.kernel.describe(self.walk)
            if not rule:
                raise UnsupportedOpError(
                    f"{node.label} has no rule for {self.method_name}: {remark}. "
                    f"See converter.coverage('{self.method_name}'), or explain tensors "
                    "before it with convert(model, outputs=[...])"
                )

    def _nodes_on_path(self) -> list[Any]:
        """Return the nodes between what is explained and what values are attributed to."""
        graph = self._engine.graph
        needed = {self._engine.targets[j] for j in self._selected}
        ahead = downstream(graph, self._engine.explained)
        found = []
        for node in reversed(graph.nodes):
            walked = ahead.intersection(node.inputs) and any(node.kernel.active)
            if walked and needed.intersection(node.outputs):
                needed.update(n for n in node.inputs if n in graph.active)
                found.append(node)
        return found[::-1]

    # -- what is explained ------------------------------------------------------------------------

    @property
    def _selected(self) -> list[int]:
        """Outputs with explained nodes."""
        return [j for j, idx in enumerate(self.output_idx) if idx is not None]

    @property
    def _n_nodes(self) -> int:
        return sum(len(nodes.names) for nodes in self._nodes)

    def _overlaps(self, picked: slice) -> Iterator[tuple[int, slice, slice]]:
        """Run through the selected outputs that some explained nodes belong to.

        All explained nodes, output after output, make the leading axis of a signal; `picked` is a
        part of it. Yields the number of the selected output, the place of its nodes in the part,
        and their place among the nodes of the output.
        """
        start = 0
        for s, j in enumerate(self._selected):
            stop = start + len(self.output_idx[j])
            first, last = max(start, picked.start), min(stop, picked.stop)
            if first < last:
                here = slice(first - picked.start, last - picked.start)
                yield s, here, slice(first - start, last - start)
            start = stop

    def _connected(self) -> list[list[bool]]:
        """Tell for each selected output which explained tensors have a path to it."""
        graph = self._engine.graph
        return [
            [name in needed for name in self._engine.explained]
            for needed in (_ancestors(graph, self._engine.targets[j]) for j in self._selected)
        ]

    @property
    def output_nodes(self) -> list[np.ndarray | None]:
        """Flat indices of the explained nodes of each row, per output.

        Arrays (batch, nodes); None where an output is not explained, or sums of its nodes are.
        """
        from ..results import batch_size

        found: list[np.ndarray | None] = [None] * len(self.output_idx)
        for j, nodes, top in zip(self._selected, self._nodes, self._top, strict=True):
            if isinstance(nodes, Top):
                found[j] = top
            elif not isinstance(nodes, Sums):
                found[j] = np.tile(nodes.names, (batch_size(self), 1))
        return found

    def _flat(self, values: Values) -> list[Array]:
        """Return the tensors to explain, (rows, nodes of the output) per selected output."""
        tensors = [values[self._engine.targets[j]] for j in self._selected]
        return [t.reshape(len(t), -1) for t in tensors]

    def _chosen(self, s: int, rows: slice, n: int, xp: Any) -> Array | None:
        """Return the nodes of each row of a run of `n` rows, in which `rows` repeat."""
        if self._top[s] is None:
            return None
        return xp.asarray(self._top[s][rows.start + np.arange(n) % (rows.stop - rows.start)])

    def _pick(self, flats: Sequence[Array], rows: slice) -> list[Array]:
        """Return the explained nodes of instances: (rows, nodes) of (rows or 1, all nodes)."""
        found = []
        for s, (nodes, flat) in enumerate(zip(self._nodes, flats, strict=True)):
            chosen = self._chosen(s, rows, rows.stop - rows.start, namespace(flat))
            found.append(nodes.values(flat, chosen))
        return found

    def values_of(self, s: int, flat: np.ndarray) -> np.ndarray:
        """Return what is explained of the `s`-th explained output, (batch, explained).

        `flat` are values of all its nodes, (batch, nodes).
        """
        return self._nodes[s].values(flat, self._chosen(s, slice(0, len(flat)), len(flat), np))

    def _scores(self, values: Values, rows: slice) -> list[Array]:
        """Return the values of the explained nodes of each selected output, (rows, nodes).

        `rows` are the instances that the run belongs to; it may have a single row for all.
        """
        return self._pick([flat[: rows.stop - rows.start] for flat in self._flat(values)], rows)

    def _parts(self, values: Values, rows: slice) -> list[Array]:
        """Return what signals that start from values start from, per selected output."""
        found = []
        for s, (nodes, flat) in enumerate(zip(self._nodes, self._flat(values), strict=True)):
            found.append(nodes.parts(flat, self._chosen(s, rows, len(flat), namespace(flat))))
        return found

    def _seeds(
        self, values: Values, picked: slice, rows: slice, start: Sequence[Array] | None = None
    ) -> dict[str, Array]:
        """Return the signals to start from: a one at each explained node, or its `start` value.

        Parameters
        ----------
        values : mapping of str to array
            A run; tells shapes, type and array library.
        picked : slice
            Which of the explained nodes.
        rows : slice
            The instances that the run belongs to.
        start : sequence of array, optional
            One per selected output, as `_parts` gives them.
        """
        count = picked.stop - picked.start
        seeds: dict[str, Array] = {}
        for s, here, there in self._overlaps(picked):
            name = self._engine.targets[self._selected[s]]
            tensor = values[name]
            xp, n = namespace(tensor), len(tensor)
            # What is the same in all rows is written once; kernels of GPUs get it row by row.
            alike = xp is np and start is None and self._top[s] is None
            seed = xp.zeros((count, 1 if alike else n, tensor.size // n), self._engine.dtype)
            begin = None if start is None else start[s]
            self._nodes[s].seed(seed[here], there, begin, self._chosen(s, rows, n, xp))
            seed = seed.reshape(*seed.shape[:2], *tensor.shape[1:])
            seed = xp.broadcast_to(seed, (count, *tensor.shape))
            seeds[name] = seeds[name] + seed if name in seeds else seed
        return seeds

    def _reference_scores(self, refs: Sequence[Array]) -> list[np.ndarray]:
        """Return the explained nodes at one reference: (1, nodes) each, or (batch, nodes)."""
        engine, data = self._engine, self.data
        if engine.free_rows:
            with engine.threads():
                values = engine.forward([engine.xp.asarray(r) for r in refs], keep=False)
            return [to_host(score) for score in self._scores(values, slice(0, len(data[0])))]

        def block(rows: slice) -> list[np.ndarray]:
            inputs = self._device_rows(data, rows)
            beside = engine.beside([engine.xp.asarray(r) for r in refs], inputs)
            values = engine.forward(beside, keep=False)
            return [to_host(s) for s in self._scores(values, rows)]

        return engine.collect(block, list(chunks(len(data[0]), engine.chunk_rows())))

    # -- collecting -------------------------------------------------------------------------------

    def _dims(self) -> list[tuple[int, ...]]:
        """Return the shapes of the values for each explained tensor."""
        return self._engine.dims

    def _allocate(self, batch: int) -> None:
        dims, dtype = self._dims(), self._engine.dtype
        self.result = [
            [
                np.zeros((batch, *dim, len(self.output_idx[j])), dtype) if linked else None
                for dim, linked in zip(dims, row, strict=True)
            ]
            for j, row in zip(self._selected, self._connected(), strict=True)
        ]
        self.preds: Any = [np.zeros((batch, *d), dtype) for d in self.converter.output_dim]
        self.decomp_goal: Any = [np.zeros((batch, len(n.names)), dtype) for n in self._nodes]
        self._top = [
            np.zeros((batch, len(n.names)), np.int64) if isinstance(n, Top) else None
            for n in self._nodes
        ]

    def _store(
        self,
        rows: slice,
        picked: slice,
        signals: Sequence[Array | None],
        share: float | None = None,
    ) -> None:
        """Put signals (outputs, rows, *input_dim), one per input, into the result.

        With a `share` they are multiplied by it and added to what is there.
        """
        count = rows.stop - rows.start
        for s, here, there in self._overlaps(picked):
            for target, signal in zip(self.result[s], signals, strict=True):
                if target is None or signal is None:
                    continue
                moved = namespace(signal).moveaxis(signal[here, :count], 0, -1)
                part = to_host(moved)  # a GPU is faster at changing the order
                if share is None:
                    target[rows, ..., there] = part
                else:
                    target[rows, ..., there] += share * part

    def _store_scores(self, rows: slice, values: Values) -> None:
        count = rows.stop - rows.start
        for pred, name in zip(self.preds, self._engine.outputs, strict=True):
            pred[rows] = to_host(values[name][:count])
        self._choose_top(rows, values)
        if self.decomp_goal is None:  # the values are not meant to add up
            return
        for goal, score in zip(self.decomp_goal, self._scores(values, rows), strict=True):
            goal[rows] = to_host(score)

    def _choose_top(self, rows: slice, values: Values) -> None:
        """Find the nodes that are explained in each row, where that depends on the row."""
        for s, (j, nodes) in enumerate(zip(self._selected, self._nodes, strict=True)):
            if isinstance(nodes, Top):
                names = self._engine.outputs if nodes.predicted else self._engine.targets
                flat = values[names[j]][: rows.stop - rows.start]
                self._top[s][rows] = to_host(nodes.rank(flat.reshape(len(flat), -1)))

    def _finish(self) -> None:
        """Give the arrays the user's layout of channels."""
        if self.channels_first:
            return
        for row in self.result:
            for i, array in enumerate(row):
                if array is not None and array.ndim > 3:
                    row[i] = np.moveaxis(array, 1, -2)

    def _each_block(
        self, task: Callable[[slice], None], size: int | None = None, runs: int = 1
    ) -> None:
        """Do a task for every chunk of rows, side by side, with a progress bar where that helps."""
        blocks = self._blocks(size, runs)
        with self._progress(len(blocks)) as done:
            self._engine.each(task, blocks, self._stored, done)

    def _blocks(self, size: int | None = None, runs: int = 1) -> list[slice]:
        """Cut rows, each of which is run so often, into chunks of at most `size` or what fits."""
        engine = self._engine
        size = engine.chunk_rows(self._n_nodes) if size is None else size
        return engine.blocks(len(self.data[0]), size, runs)

    def _stored(self, rows: slice) -> Callable[[], None]:
        """Return what puts back the values that some rows have now."""
        arrays = [a for row in self.result for a in row if a is not None]
        arrays += [a for a in (*(self.preds or ()), *(self.decomp_goal or ())) if a is not None]
        before = [a[rows].copy() for a in arrays]

        def undo() -> None:
            for array, values in zip(arrays, before, strict=True):
                array[rows] = values

        return undo

    @contextmanager
    def _progress(self, steps: int) -> Iterator[Callable[[], Any]]:
        """Yield what is called after each step."""
        if not _show_progress(self.verbose, steps):
            yield lambda: None
            return
        from tqdm.auto import tqdm

        with tqdm(total=steps, desc=self.method_name, unit="chunk") as bar:
            yield bar.update

    def _device_rows(self, arrays: Sequence[Array], rows: slice) -> list[Array]:
        return self._engine.device_rows(arrays, rows)

    def _need_data(self) -> None:
        """Raise where rows of a large result came without what was explained."""
        if self.data is None:
            raise ArgumentError(
                "these rows came without their data, which have to run again: give them, "
                "onnxplain.open_result(path, converter, data)"
            )

    # -- what users call --------------------------------------------------------------------------

    @property
    def decomp_sum(self) -> list[np.ndarray]:
        """Sum of the values over all inputs and features, per explained output (batch, nodes).

        Computed once for the arrays in `result`, and read-only.
        """
        pairs = zip_longest(self._sums[0], self._arrays_of_result())
        if any(summed is not array for summed, array in pairs):
            del self._sums  # this is a copy with other arrays, or they were replaced
        return list(self._sums[1])

    @cached_property
    def _sums(self) -> tuple[list[Any], list[np.ndarray]]:
        """Arrays of the result, and what they add up to."""
        from ..results import decomp_sum

        sums = decomp_sum(self)
        for array in sums:
            array.setflags(write=False)
        return self._arrays_of_result(), sums

    def _arrays_of_result(self) -> list[Any]:
        return [array for row in self.result for array in row]

    def summed(self, axis: int = -1) -> Method:
        """Return a copy of this result with one axis of the explained tensors summed away.

        Parameters
        ----------
        axis : int, default -1
            An axis of the tensors, batch and nodes not counted; the last one is that of the
            features where tokens were embedded, so that one value per token is left.

        Raises
        ------
        SelectionError
            If a tensor does not have this axis.

        Examples
        --------
        >>> import numpy as np, onnxplain as ox
        >>> from onnxplain.demo import MODEL
        >>> gradient = ox.Gradient(ox.convert(MODEL), np.zeros((2, 1, 8, 8)))
        >>> gradient.summed(axis=0).get_result().shape
        (2, 8, 8, 10)
        """
        from ..groups import summed

        return summed(self, axis)

    def grouped(self, groups: Any, reduce: str = "sum") -> Method:
        """Return a copy of this result with features taken together.

        Parameters
        ----------
        groups : dict, array, "channels" or "places", or list or dict of these
            Of a table or a signal a dict `{name: members}`: names of features or positions (also
            patterns such as "colour_*"), or their indices; what is in no group stays alone. Of an
            image a dict `{name: mask}` with masks of its places; what is in none is "others". Or a
            label for each place (superpixels), which may differ between data points: whole numbers
            or names of shape (height, width) or (batch, height, width). A group takes in all
            channels of a place. "channels" keeps one value per channel, "places" one per place. Of
            several inputs a list with one entry per input, or a dict by "Input_1", ...; inputs
            that are not named stay as they are.
        reduce : {"sum", "mean", "norm"}, default "sum"
            How values are put together; "sum" leaves `decomp_sum` as it is.

        Raises
        ------
        SelectionError, ShapeError, ArgumentError
            If groups overlap, or do not fit the names or shapes of the inputs.

        Examples
        --------
        >>> import numpy as np, onnxplain as ox
        >>> from onnxplain.demo import MODEL, digits
        >>> lrp = ox.LRP(ox.convert(MODEL), digits()[0][:2])
        >>> halves = np.repeat(["top", "bottom"], [4 * 8, 4 * 8]).reshape(8, 8)
        >>> lrp.grouped(halves).get_result().shape
        (2, 2, 10)
        """
        from ..groups import grouped

        return grouped(self, groups, reduce)

    def get_result(self, type: str = "array") -> Any:
        """Return the result as "array", "data.frame", "xarray", "torch.tensor" or "cupy".

        See `onnxplain.results.get_result`.
        """
        from ..results import get_result

        return get_result(self, type)

    def save(self, path: str | PathLike[str]) -> None:
        """Write this result as one .npz file, with all it takes to reproduce it.

        `onnxplain.load` reads it again, also without the model. The file holds the results, the
        data and references, all names and arguments, the seed, the SHA-256 of the model, the date
        and versions: numbers and texts, nothing that could be run.

        Parameters
        ----------
        path : path
            Ends in .npz.

        Raises
        ------
        ArgumentError
            If the file cannot be written.

        Examples
        --------
        >>> import os, tempfile, onnxplain as ox
        >>> from onnxplain.demo import MODEL, digits
        >>> gradient = ox.Gradient(ox.convert(MODEL), digits()[0][:2])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     gradient.save(os.path.join(folder, "result.npz"))
        ...     os.listdir(folder)
        ['result.npz']
        """
        from ..storage import save

        save(self, path)

    def plot(self, *args: Any, **kwargs: Any) -> Any:
        """Draw instances; see `onnxplain.plots.plot` for the arguments."""
        from ..plots import plot

        return plot(self, *args, **kwargs)

    def plot_global(self, *args: Any, **kwargs: Any) -> Any:
        """Draw all instances together; see `onnxplain.plots.plot_global` for the arguments."""
        from ..plots import plot_global

        return plot_global(self, *args, **kwargs)

    def boxplot(self, *args: Any, **kwargs: Any) -> Any:
        """Draw the distribution per feature; see `onnxplain.plots.boxplot` for the arguments."""
        from ..plots import boxplot

        return boxplot(self, *args, **kwargs)

    def beeswarm(self, *args: Any, **kwargs: Any) -> Any:
        """Draw a table's features, a dot per instance; see `onnxplain.plots.beeswarm`."""
        from ..plots import beeswarm

        return beeswarm(self, *args, **kwargs)

    def waterfall(self, *args: Any, **kwargs: Any) -> Any:
        """Draw how a table's features add up; see `onnxplain.plots.waterfall`."""
        from ..plots import waterfall

        return waterfall(self, *args, **kwargs)

    def compare(self, *others: Any, **kwargs: Any) -> Any:
        """Draw instances by this and other methods; see `onnxplain.plots.compare`."""
        from ..plots import compare

        return compare([self, *others], **kwargs)

    def ledger(self) -> Any:
        """Tell node by node what came in, went on and was absorbed; LRP and DeepLift have one."""
        raise ArgumentError(
            f"{self.method_name} keeps no ledger; LRP and DeepLift do. "
            "decomp_sum and decomp_goal show how well the values add up"
        )

    def _describe(self) -> list[str]:
        return []

    def __repr__(self) -> str:
        from ..results import describe

        return describe(self)

    def _repr_html_(self) -> str:
        from ..cards import method_card

        return method_card(self)


def _ancestors(graph: Graph, tensor: str) -> set[str]:
    """Return the active tensors that a tensor depends on through active inputs."""
    needed = {tensor}
    for node in reversed(graph.nodes):
        carries = dict(zip(node.outputs, node.kernel.active_outputs(), strict=False))
        if any(carries.get(name) for name in node.outputs if name in needed):
            needed.update(n for n in node.inputs if n in graph.active)
    return needed


def _full_signature(cls: type) -> inspect.Signature:
    """Return the signature of a method with the common options in place of **options."""
    own = list(inspect.signature(cls.__init__).parameters.values())[1:]
    common = list(inspect.signature(cls._prepare).parameters.values())[3:]
    variadic = inspect.Parameter.VAR_KEYWORD
    return inspect.Signature([p for p in [*own, *common] if p.kind != variadic])


def _show_progress(verbose: bool | None, steps: int) -> bool:
    if verbose is None:
        return steps > 50 and sys.stderr is not None and sys.stderr.isatty()
    return verbose


def times(signals: Sequence[Array | None], factors: Sequence[Array]) -> list[Array | None]:
    """Multiply signals (outputs, rows, ...) by arrays (rows, ...)."""
    return [None if s is None else s * lead(f, s) for s, f in zip(signals, factors, strict=True)]


def reached(signals: Mapping[str, Array], names: Sequence[str], rows: int) -> list[Array | None]:
    """Return the signals that reached some tensors, in their order, without rows that fill up."""
    found = (signals.get(name) for name in names)
    return [None if s is None else s[:, :rows] for s in found]


def explain_chunks(
    method: Method,
    make_step: Callable[[Values], Step],
    start: Any,
    finish: Any,
    keep: bool | Collection[str] = True,
) -> None:
    """The plain loop: forward, seeds, walk back, store.

    Parameters
    ----------
    make_step : callable
        Takes a run to the step of the walk back.
    start : callable or None
        Takes the values of the explained nodes of each selected output to those to start from.
    finish : callable
        Takes signals and the values of the explained tensors to what is stored.
    keep : bool or collection of str, default True
        The tensors that the steps read.
    """
    engine = method._engine

    def block(rows: slice) -> None:
        inputs = method._device_rows(method.data, rows)
        values = engine.forward(inputs, keep)
        method._store_scores(rows, values)
        step = make_step(values)
        begin = None if start is None else start(method._parts(values, rows))
        count = rows.stop - rows.start
        for picked in engine.output_slices(method._n_nodes, count):
            seeds = method._seeds(values, picked, rows, begin)
            spent = [values] if picked.stop == method._n_nodes else ()
            signals = engine.backward(seeds, step, spent)
            arrived = reached(signals, engine.explained, count)
            method._store(rows, picked, finish(arrived, engine.explained_values(values, count)))

    method._each_block(block)
