"""What all white-box methods share: checking arguments, chunks, walks, and the result's fields."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from .. import names as naming
from ..arrays import Array, is_float, lead, namespace, to_host
from ..data import float_type, prepare
from ..errors import (
    ArgumentError,
    DeviceError,
    MissingPackageError,
    UnknownArgumentError,
    UnsupportedOpError,
    listed,
    shown,
)
from ..graph.graph import Graph
from ..walk import Step, Values, backward, chunks, forward

if TYPE_CHECKING:
    from ..converter import Converter

# Bytes of tensors and signals that one chunk may hold: a few times the cache of a processor.
CHUNK_BYTES = 8 * 2**20
# More explained outputs than fit into this are walked back in turns.
SIGNAL_BYTES = 256 * 2**20
LIKES = ("innsight",)
MAX_COUNT = 1_000_000  # of draws, points, references: more is a slip of the pen


def array_module(device: Any) -> Any:
    """Return NumPy for "cpu", CuPy for "cuda" (or "auto" where a GPU is there)."""
    if device is None or (isinstance(device, str) and device == "cpu"):
        return np
    if not isinstance(device, str) or device not in ("auto", "cuda", "gpu"):
        raise DeviceError(f'device must be "cpu", "cuda" or "auto", got {shown(device)}')
    try:
        import cupy
    except ImportError as error:
        if device == "auto":
            return np
        raise MissingPackageError(
            "device='cuda' needs CuPy: pip install 'onnxplain[gpu]'"
        ) from error
    if cupy.cuda.is_available():
        return cupy
    if device == "auto":
        return np
    raise DeviceError("device='cuda': CuPy finds no usable NVIDIA GPU; use device='cpu'")


class Run(NamedTuple):
    """All tensors of one run, and the inputs it was made of."""

    values: Values
    inputs: Sequence[Array]


class Engine:
    """A graph on a device in a type, run chunk by chunk."""

    def __init__(
        self,
        converter: Converter,
        dtype: np.dtype,
        device: Any = "cpu",
        batch_size: int | None = None,
        before_activation: bool = False,
    ) -> None:
        self.xp = array_module(device)
        self.dtype, self.trial = dtype, converter.trial
        module = None if self.xp is np else self.xp
        self.graph, self.targets = converter.graph_for(dtype, module, before_activation)
        self.outputs = converter.graph.outputs
        self.batch_size = _checked_batch_size(batch_size)
        self.input_names = [spec.name for spec in self.graph.inputs]

    # -- sizes ------------------------------------------------------------------------------------

    @property
    def free_rows(self) -> bool:
        """Whether one row of a run can stand beside all rows of another.

        Axis 0 must be the batch everywhere, and all inputs must be explained: whole-number inputs
        (tokens, masks) are conditions that a reference takes from each instance.
        """
        floats = all(is_float(spec.dtype) for spec in self.graph.inputs)
        return floats and self.graph.rows_first and self.graph.fixed_batch is None

    def beside(self, refs: Sequence[Array], inputs: Sequence[Array]) -> list[Array]:
        """Return one reference repeated for all rows; whole-number inputs are the rows' own."""
        return [
            r.repeat(len(x), 0) if is_float(x.dtype) else x
            for r, x in zip(refs, inputs, strict=True)
        ]

    def chunk_rows(self, n_outputs: int = 0) -> int:
        """Return how many rows to compute at a time."""
        if self.graph.fixed_batch is not None:
            return self.graph.fixed_batch
        if self.batch_size is not None:
            return self.batch_size
        scale = self.dtype.itemsize / 4
        row = scale * (self.trial.row_bytes + 12 * min(n_outputs, 64) * self.trial.widest)
        return max(1, int(CHUNK_BYTES / max(row, 1)))

    def output_slices(self, n_outputs: int, rows: int) -> list[slice]:
        """Cut the explained outputs so that their signals fit into memory."""
        one = 3 * rows * self.trial.widest * self.dtype.itemsize
        return list(chunks(n_outputs, max(1, int(SIGNAL_BYTES / max(one, 1)))))

    # -- runs -------------------------------------------------------------------------------------

    def forward(self, arrays: Sequence[Array], keep: bool = True) -> Values:
        """Run the graph on some rows; a graph of a fixed batch gets copies to fill it."""
        rows = len(arrays[0])
        fixed = self.graph.fixed_batch
        if fixed is not None and rows != fixed:
            index = np.arange(fixed) % rows
            arrays = [x[index] for x in arrays]
        with np.errstate(all="ignore"):
            return forward(self.graph, dict(zip(self.input_names, arrays, strict=True)), keep)

    def predict(self, arrays: Sequence[Array]) -> list[np.ndarray]:
        """Return the outputs of the model for all rows, on the host."""
        found: list[list[np.ndarray]] = [[] for _ in self.outputs]
        for rows in chunks(len(arrays[0]), self.chunk_rows()):
            block = [x[rows] for x in arrays]
            values = self.forward([self.xp.asarray(x) for x in block], keep=False)
            for parts, name in zip(found, self.outputs, strict=True):
                parts.append(to_host(values[name][: len(block[0])]))
        return [np.concatenate(parts) for parts in found]

    def run(self, inputs: Sequence[Array]) -> Run:
        """Run the graph on some rows and keep everything for a walk back."""
        return Run(self.forward(inputs), inputs)

    def cut(self, run: Run, rows: slice) -> Run:
        """Return some rows of a run, as views."""
        tensors = self.trial.row_tensors | self.graph.active  # the trial knows no inserted ones
        values = {k: v[rows] if k in tensors else v for k, v in run.values.items()}
        return Run(values, [x[rows] for x in run.inputs])


def _checked_batch_size(batch_size: Any) -> int | None:
    return None if batch_size is None else check_count("batch_size", batch_size, most=None)


class Method:
    """Base of the methods: explains on construction, then holds the result.

    Attributes
    ----------
    result : list (per explained output) of list (per input) of array
        Arrays `(batch, *input_dim, nodes)` in the user's layout of channels; None where an input
        has no path to the output.
    preds : list of array (batch, *output_dim)
        Predictions of all outputs, with the last activation.
    decomp_goal, decomp_sum : list (per explained output) of array (batch, nodes)
        What the values should add up to, and what they do.
    output_idx : list (per output) of list of int, or None
        The explained nodes as flat indices.
    """

    method_name: ClassVar[str] = ""
    value_name: ClassVar[str] = "Relevance"
    walk: ClassVar[str] = "gradient"  # which pass of the kernels is used
    is_global = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__signature__ = _full_signature(cls)  # for help(), notebooks, the command line

    def _prepare(
        self,
        converter: Converter,
        data: Any,
        *,
        channels_first: bool = True,
        output_idx: Any = None,
        output_label: Any = None,
        ignore_last_act: bool = True,
        verbose: bool | None = None,
        dtype: Any = "float",
        device: Any = "cpu",
        batch_size: int | None = None,
        seed: int | None = None,
        like: str | None = None,
        **unknown: Any,
    ) -> None:
        self._check_arguments(converter, data, unknown)
        check_flags(channels_first=channels_first, ignore_last_act=ignore_last_act)
        if verbose is not None:
            check_flags(verbose=verbose)
        if like is not None and not (isinstance(like, str) and like in LIKES):
            known = listed(map(repr, LIKES))
            raise ArgumentError(f"like must be {known} or None, got {shown(like)}")
        if seed is not None:
            check_count("seed", seed, 0, most=None)
        self.converter, self.like, self.seed, self.verbose = converter, like, seed, verbose
        self.channels_first, self.ignore_last_act = channels_first, ignore_last_act
        self.dtype, self.device, self.batch_size = dtype, device, batch_size
        self.input_names = [[list(a) for a in layer] for layer in converter.input_names]
        self.output_names = [[list(a) for a in layer] for layer in converter.output_names]
        self.output_idx: list[Any] = naming.select_outputs(
            output_idx, output_label, converter.output_dim, converter.output_names
        )
        self._check_rules()
        self.data: Any = None if data is None else self._arrays(data, "data")

    def _check_arguments(self, converter: Any, data: Any, unknown: Mapping[str, Any]) -> None:
        from ..converter import Converter

        if not isinstance(converter, Converter):
            advice = "make one with onnxplain.convert(model)"
            if isinstance(data, Converter):
                advice = "give the converter first, then data"
            raise ArgumentError(
                f"the first argument must be a Converter, got {type(converter).__name__}; {advice}"
            )
        for name in unknown:
            known = list(inspect.signature(type(self)).parameters)[2:]
            close = difflib.get_close_matches(name, known, 1, 0.5)
            meant = f"did you mean {close[0]!r}? " if close else ""
            raise UnknownArgumentError(
                f"{self.method_name} has no argument {name!r}; {meant}It has {', '.join(known)}"
            )

    @cached_property
    def _engine(self) -> Engine:
        dtype = float_type(self.dtype)
        return Engine(self.converter, dtype, self.device, self.batch_size, self.ignore_last_act)

    def __getstate__(self) -> dict[str, Any]:
        """Leave away what can be made again and cannot be pickled."""
        return {name: value for name, value in vars(self).items() if name != "_engine"}

    def _arrays(self, data: Any, what: str) -> list[Array]:
        return prepare(
            data,
            self._engine.graph.inputs,
            self.converter.input_dim,
            self._engine.dtype,
            self.channels_first,
            what,
            copy=True,
            names=self.converter.input_names,
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
        needed = {self._engine.targets[j] for j in self._selected}
        found = []
        for node in reversed(self._engine.graph.nodes):
            if needed.intersection(node.outputs) and any(node.kernel.active):
                needed.update(n for n in node.inputs if n in self._engine.graph.active)
                found.append(node)
        return found[::-1]

    # -- what is explained ------------------------------------------------------------------------

    @property
    def _selected(self) -> list[int]:
        """Outputs with explained nodes."""
        return [j for j, idx in enumerate(self.output_idx) if idx is not None]

    @property
    def _n_nodes(self) -> int:
        return sum(len(self.output_idx[j]) for j in self._selected)

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
        """Tell for each selected output which inputs have a path to it."""
        graph = self._engine.graph
        return [
            [name in needed for name in self._engine.input_names]
            for needed in (_ancestors(graph, self._engine.targets[j]) for j in self._selected)
        ]

    def _scores(self, values: Values, rows: int | None = None) -> list[Array]:
        """Return the values of the explained nodes of each selected output, (rows, nodes)."""
        found = []
        for j in self._selected:
            tensor = values[self._engine.targets[j]]
            flat = tensor.reshape(len(tensor), -1)[:rows]
            found.append(flat[:, self.output_idx[j]])
        return found

    def _seeds(self, shapes: Values, picked: slice, start: Sequence[Array] | None = None) -> dict:
        """Return the signals to start from: a one at each explained node, or its `start` value.

        Parameters
        ----------
        shapes : mapping of str to array
            A run; tells shapes, type and array library.
        picked : slice
            Which of the explained nodes.
        start : sequence of array (rows, nodes), optional
            One per selected output.
        """
        count = picked.stop - picked.start
        seeds: dict[str, Array] = {}
        for s, here, there in self._overlaps(picked):
            j = self._selected[s]
            name = self._engine.targets[j]
            tensor = shapes[name]
            xp, rows = namespace(tensor), len(tensor)
            seed = xp.zeros((count, rows, tensor.size // rows), self._engine.dtype)
            value = 1 if start is None else start[s][:, there].T
            nodes = xp.asarray(self.output_idx[j][there])
            seed[xp.arange(here.start, here.stop), :, nodes] = value
            seed = seed.reshape(count, *tensor.shape)
            seeds[name] = seeds[name] + seed if name in seeds else seed
        return seeds

    def _reference_scores(self, refs: Sequence[Array]) -> list[np.ndarray]:
        """Return the explained nodes at one reference: (1, nodes) each, or (batch, nodes)."""
        engine, data = self._engine, self.data
        if engine.free_rows:
            values = engine.forward([engine.xp.asarray(r) for r in refs], keep=False)
            return [to_host(score) for score in self._scores(values, 1)]
        parts = []
        for rows in chunks(len(data[0]), engine.chunk_rows()):
            inputs = self._device_rows(data, rows)
            beside = engine.beside([engine.xp.asarray(r) for r in refs], inputs)
            values = engine.forward(beside, keep=False)
            parts.append([to_host(s) for s in self._scores(values, rows.stop - rows.start)])
        return [np.concatenate(scores) for scores in zip(*parts, strict=True)]

    # -- collecting -------------------------------------------------------------------------------

    def _allocate(self, batch: int) -> None:
        dims = self.converter.input_dim
        dtype = self._engine.dtype
        self.result = [
            [
                np.zeros((batch, *dim, len(self.output_idx[j])), dtype) if linked else None
                for dim, linked in zip(dims, row, strict=True)
            ]
            for j, row in zip(self._selected, self._connected(), strict=True)
        ]
        self.preds: Any = [np.zeros((batch, *d), dtype) for d in self.converter.output_dim]
        self.decomp_goal: Any = [
            np.zeros((batch, len(self.output_idx[j])), dtype) for j in self._selected
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
                part = np.moveaxis(to_host(signal[here, :count]), 0, -1)
                if share is None:
                    target[rows, ..., there] = part
                else:
                    target[rows, ..., there] += share * part

    def _store_scores(self, rows: slice, values: Values) -> None:
        count = rows.stop - rows.start
        for pred, name in zip(self.preds, self._engine.outputs, strict=True):
            pred[rows] = to_host(values[name][:count])
        for goal, score in zip(self.decomp_goal, self._scores(values, count), strict=True):
            goal[rows] = to_host(score)

    def _finish(self) -> None:
        """Give the arrays the user's layout of channels."""
        if self.channels_first:
            return
        for row in self.result:
            for i, array in enumerate(row):
                if array is not None and array.ndim > 3:
                    row[i] = np.moveaxis(array, 1, -2)

    def _blocks(self, batch: int, rows: int) -> Iterator[slice]:
        """Run through the chunks of rows, with a progress bar where that helps."""
        blocks = list(chunks(batch, rows))
        if not _show_progress(self.verbose, len(blocks)):
            yield from blocks
            return
        from tqdm.auto import tqdm

        yield from tqdm(blocks, desc=self.method_name, unit="chunk")

    def _device_rows(self, arrays: Sequence[Array], rows: slice) -> list[Array]:
        return [self._engine.xp.asarray(x[rows]) for x in arrays]

    # -- what users call --------------------------------------------------------------------------

    @property
    def decomp_sum(self) -> list[np.ndarray]:
        """Sum of the values over all inputs and features, per explained output (batch, nodes)."""
        from ..results import decomp_sum

        return decomp_sum(self)

    def get_result(self, type: str = "array") -> Any:
        """Return the result as "array", "data.frame", "xarray" or "torch.tensor".

        See `onnxplain.results.get_result`.
        """
        from ..results import get_result

        return get_result(self, type)

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
    common = list(inspect.signature(Method._prepare).parameters.values())[3:]
    variadic = inspect.Parameter.VAR_KEYWORD
    return inspect.Signature([p for p in [*own, *common] if p.kind != variadic])


def _show_progress(verbose: bool | None, steps: int) -> bool:
    if verbose is None:
        return steps > 50 and sys.stderr is not None and sys.stderr.isatty()
    return verbose


def check_flags(**flags: Any) -> None:
    """Raise unless every argument is True or False."""
    for name, value in flags.items():
        if not isinstance(value, (bool, np.bool_)):
            raise ArgumentError(f"{name} must be True or False, got {shown(value)}")


def check_count(name: str, value: Any, least: int = 1, most: int | None = MAX_COUNT) -> int:
    """Return a whole number between two bounds."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        bounds = f">= {least}" if most is None else f"from {least} to {most:,}"
        raise ArgumentError(f"{name} must be a whole number {bounds}, got {shown(value)}")
    return int(value)


def times(signals: Sequence[Array | None], factors: Sequence[Array]) -> list[Array | None]:
    """Multiply signals (outputs, rows, ...) by arrays (rows, ...)."""
    return [None if s is None else s * lead(f, s) for s, f in zip(signals, factors, strict=True)]


def reached(signals: Mapping[str, Array], names: Sequence[str], rows: int) -> list[Array | None]:
    """Return the signals that reached the inputs, in their order, without rows that fill up."""
    found = (signals.get(name) for name in names)
    return [None if s is None else s[:, :rows] for s in found]


def explain_chunks(
    method: Method, make_step: Callable[[Values], Step], start: Any, finish: Any
) -> None:
    """The plain loop: forward, seeds, walk back, store.

    Parameters
    ----------
    make_step : callable
        Takes a run to the step of the walk back.
    start : callable or None
        Takes scores (rows, nodes) of each selected output to the values to start from.
    finish : callable
        Takes signals and the rows' inputs to what is stored.
    """
    engine, data = method._engine, method.data
    for rows in method._blocks(len(data[0]), engine.chunk_rows(method._n_nodes)):
        inputs = method._device_rows(data, rows)
        values = engine.forward(inputs)
        method._store_scores(rows, values)
        step = make_step(values)
        begin = None if start is None else start(method._scores(values))
        for picked in engine.output_slices(method._n_nodes, rows.stop - rows.start):
            seeds = method._seeds(values, picked, begin)
            signals = backward(engine.graph, seeds, step)
            arrived = reached(signals, engine.input_names, rows.stop - rows.start)
            method._store(rows, picked, finish(arrived, inputs))
