"""A graph made ready to be run chunk by chunk: in a type, on one or several devices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import cpu_kernels
from ..arrays import Array, to_host
from ..device import HOST, Memory, PerPlace, choose, current, spread, use
from ..graph.bodies import has_body
from ..graph.cut import head, tail
from ..graph.graph import Graph
from ..threads import each, pool
from ..walk import Step, Values, backward, chunks, forward, read_by_gradients
from .checks import check_count

if TYPE_CHECKING:
    from ..converter import Converter

# Bytes of tensors and signals that one chunk may hold: a few times the cache of a processor.
CHUNK_BYTES = 8 * 2**20
# Where rows are those of matrices, products with large weights are slow with fewer than so many;
# chunks may be twice as large for them.
_MATRIX_ROWS = 512
# Convolutions cut their work themselves, and dense layers behind them read large weights each time.
CONVOLUTION_CHUNK_BYTES = 32 * 2**20
# Steps of a loop handle a small part of them at a time, and cost the same for one row or many.
STEPS_CHUNK_BYTES = 128 * 2**20
# With fewer chunks than so many, of more bytes than these, some cores would have nothing to do.
_FEW_BLOCKS = 8
_BLOCK_BYTES = 2**20
# More explained outputs than fit into this are walked back in turns.
SIGNAL_BYTES = 256 * 2**20


class Run(NamedTuple):
    """All tensors of one run, and the inputs it was made of."""

    values: Values
    inputs: Sequence[Array]


class Engine:
    """A graph on one or several devices in a type, run chunk by chunk.

    Values are for the tensors `explained`: the inputs, or inner tensors. Where the graph is cut at
    tensors, these are its first inputs, and `lift` computes them from the inputs of the model.
    """

    def __init__(
        self,
        converter: Converter,
        dtype: np.dtype,
        device: Any = "cpu",
        batch_size: int | None = None,
        before_activation: bool = False,
        cut_at: Sequence[str] = (),
        inner: Sequence[str] = (),
    ) -> None:
        self.places = choose(device)
        use(self.places[0])
        self.xp = self.places[0].xp
        self.dtype, self.trial = dtype, converter.trial
        self._graphs: dict[str, tuple[Graph | None, Graph]] = {}  # by place: before a cut, behind
        for place in self.places:
            where = None if place is HOST else place
            with place:
                graph, self.targets = converter.graph_for(dtype, where, before_activation)
                behind = tail(graph, cut_at, dtype).cast(dtype, where) if cut_at else graph
            self._graphs[place.name] = (head(graph, cut_at) if cut_at else None, behind)
        self.outputs = converter.graph.outputs
        self.batch_size = checked_batch_size(batch_size)
        self.input_names = [spec.name for spec in self.graph.inputs]
        self.inner = tuple(inner)
        self.explained = list(inner) or self.input_names
        self.dims = [self.trial.shapes[name][1:] for name in self.explained]
        # Other inputs (tokens, masks, what goes around a cut) are conditions of each instance.
        self.moved = [name in self.graph.active for name in self.input_names]

    @property
    def graph(self) -> Graph:
        """The graph with its weights where this thread computes."""
        return self._graphs[current(self.places).name][1]

    @property
    def head(self) -> Graph | None:
        """What comes before the tensors the graph is cut at."""
        return self._graphs[current(self.places).name][0]

    # -- sizes ------------------------------------------------------------------------------------

    @property
    def free_rows(self) -> bool:
        """Whether one row of a run can stand beside all rows of another.

        Axis 0 must be the batch everywhere, and no input may be a condition, which a reference
        takes from each instance.
        """
        return all(self.moved) and self.graph.rows_first and self.graph.fixed_batch is None

    def beside(self, refs: Sequence[Array], inputs: Sequence[Array]) -> list[Array]:
        """Return one reference repeated for all rows; conditions are the rows' own."""
        return [
            r.repeat(len(x), 0) if moved else x
            for r, x, moved in zip(refs, inputs, self.moved, strict=True)
        ]

    def chunk_rows(self, n_outputs: int = 0) -> int:
        """Return how many rows to compute at a time."""
        if self.graph.fixed_batch is not None:
            return self.graph.fixed_batch
        if self.batch_size is not None:
            return max(1, self.batch_size >> self._halvings)
        rows = self._chunk_bytes / max(self._bytes_of_row(n_outputs), 1)
        if self._is_flat and self._memory is None:
            rows = max(rows, min(2 * rows, _MATRIX_ROWS))
        return max(1, int(rows))

    def _bytes_of_row(self, n_outputs: int) -> float:
        """Return the bytes of the tensors of one row and of the signals of some outputs."""
        row = self.trial.row_bytes + 12 * min(n_outputs, 64) * self.trial.widest
        return self.dtype.itemsize / 4 * row

    @property
    def _chunk_bytes(self) -> int:
        if self._memory is not None:
            return self._memory.bytes
        if self._has_bodies:
            return STEPS_CHUNK_BYTES
        return CONVOLUTION_CHUNK_BYTES if self._convolves else CHUNK_BYTES

    @cached_property
    def _memory(self) -> Memory | None:
        """The memory of the GPUs."""
        return None if self.xp is np else Memory(self.places)

    @property
    def _halvings(self) -> int:
        return 0 if self._memory is None else self._memory.halvings

    def blocks(self, batch: int, size: int, runs: int = 1) -> list[slice]:
        """Cut rows into chunks of about `size`, of less where threads or GPUs would stay idle.

        However many threads there are, the chunks are the same. Networks without convolutions are
        not cut further, their products are cut by columns; but where each row is run several
        times, points of few rows fill a chunk as well. Chunks are 1, 2, 4 or a multiple of 8, so
        that all threads have as much to do.
        """
        if self._memory is not None:
            return list(chunks(batch, max(1, min(size, -(-batch // len(self.places))))))
        if self.graph.fixed_batch is not None or self.batch_size is not None:
            return list(chunks(batch, size))
        count = -(-batch // size)
        if not self._has_bodies and (self._convolves or runs >= _FEW_BLOCKS):
            work = batch * runs * self.trial.row_bytes * (self.dtype.itemsize / 4)
            count = max(count, min(batch, _FEW_BLOCKS, int(work / _BLOCK_BYTES)))
        most = 1 << (count - 1).bit_length()  # the next power of 2
        count = most if most < _FEW_BLOCKS else -(-count // _FEW_BLOCKS) * _FEW_BLOCKS
        return list(chunks(batch, _rounded(-(-batch // count))))

    @cached_property
    def _has_bodies(self) -> bool:
        return any(map(has_body, self.graph.nodes))

    @cached_property
    def _convolves(self) -> bool:
        return any(node.op.startswith("Conv") for node in self.graph.nodes)

    @cached_property
    def _is_flat(self) -> bool:
        """Whether tensors have rows and features only."""
        return all(len(shape) <= 2 for shape in self.trial.shapes.values())

    @cached_property
    def _has_windows(self) -> bool:
        return any("Conv" in node.op or "Pool" in node.op for node in self.graph.nodes)

    def threads(self) -> AbstractContextManager[None]:
        """Return where blocks, or parts of one product, are computed side by side."""
        if self.xp is not np:
            return nullcontext()
        if self._has_windows:
            cpu_kernels.load()
        return pool()

    def output_slices(self, n_outputs: int, rows: int) -> list[slice]:
        """Cut the explained outputs into few slices of one size, whose signals fit into memory.

        A step holds three of them: what came, what it makes of it, and what goes on.
        """
        one = 3 * rows * self.trial.widest * self.dtype.itemsize
        most = SIGNAL_BYTES if self._memory is None else self._memory.bytes
        turns = -(-n_outputs // max(1, int(most / max(one, 1))))
        return list(chunks(n_outputs, max(1, -(-n_outputs // max(turns, 1)))))

    # -- work -------------------------------------------------------------------------------------

    def each(
        self,
        task: Callable[[slice], Any],
        blocks: Sequence[slice],
        stored: Callable[[slice], Callable[[], None]] = lambda rows: lambda: None,
        done: Callable[[], Any] = lambda: None,
    ) -> None:
        """Do a task for chunks of rows, side by side on threads or GPUs.

        What does not fit into the memory of a GPU is done again in smaller parts; `stored` takes
        rows to a function that undoes what the task had left there.
        """
        memory = self._memory
        if memory is None:
            with self.threads():
                each(lambda rows: (task(rows), done()), blocks)
            return
        least = int(self._bytes_of_row(1)) * (self.graph.fixed_batch or 1)
        level = memory.halvings
        spread(
            self.places,
            lambda rows: (memory.do(task, rows, level, least, stored), done()),
            blocks,
        )

    def collect(
        self,
        task: Callable[[slice], Sequence[np.ndarray]],
        blocks: Sequence[slice],
        done: Callable[[], Any] = lambda: None,
    ) -> list[np.ndarray]:
        """Do a task for chunks of rows as `each` does; join the arrays that it returns."""
        found: dict[int, Sequence[np.ndarray]] = {}

        def one(rows: slice) -> None:
            found[rows.start] = task(rows)

        self.each(one, blocks, done=done)
        parts = (found[start] for start in sorted(found))
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def per_place(self, make: Callable[[], Any]) -> PerPlace:
        """Return a function that gives what `make` makes, made once on each GPU."""
        return PerPlace(self.places, make)

    # -- runs -------------------------------------------------------------------------------------

    @cached_property
    def for_gradients(self) -> set[str]:
        """The tensors whose numbers an explanation by gradients reads after its run forward."""
        ends = {*self.graph.outputs, *self.targets, *self.explained, *self.input_names}
        return ends | read_by_gradients(self.graph)

    def forward(
        self,
        arrays: Sequence[Array],
        keep: bool | Collection[str] = True,
        graph: Graph | None = None,
    ) -> Values:
        """Run the graph on some rows; a graph of a fixed batch gets copies to fill it."""
        graph, rows = graph or self.graph, len(arrays[0])
        fixed = graph.fixed_batch
        if fixed is not None and rows != fixed:
            index = np.arange(fixed) % rows
            arrays = [x[index] for x in arrays]
        names = [spec.name for spec in graph.inputs]
        with np.errstate(all="ignore"):
            return forward(graph, dict(zip(names, arrays, strict=True)), keep)

    def lift(self, arrays: Sequence[Array]) -> list[Array]:
        """Return what the inputs of the cut graph are for inputs of the model."""
        if self.head is None:
            return list(arrays)
        given = {spec.name: x for spec, x in zip(self.head.inputs, arrays, strict=True)}
        names = self.head.outputs

        def block(rows: slice) -> list[np.ndarray]:
            inputs = self.device_rows(arrays, rows)
            values = self.forward(inputs, keep=False, graph=self.head)
            return [to_host(values[name][: len(inputs[0])]) for name in names]

        found = self.collect(block, list(chunks(len(arrays[0]), self.chunk_rows())))
        given.update(zip(names, found, strict=True))
        return [given[name] for name in self.input_names]

    def device_rows(self, arrays: Sequence[Array], rows: slice) -> list[Array]:
        """Return some rows of arrays of the host where this thread computes."""
        return [self.xp.asarray(x[rows]) for x in arrays]

    def backward(
        self, seeds: Mapping[str, Array], step: Step, spent: Sequence[Values] = ()
    ) -> Values:
        """Walk back to the explained tensors; it uses up runs that are `spent`, but the inputs."""
        # What reaches an inner tensor is read together with what it was made of.
        return backward(self.graph, seeds, step, self.inner, () if self.inner else spent)

    def explained_values(self, run: Values, rows: int) -> list[Array]:
        """Return the explained tensors of a run, without rows that fill up."""
        return [run[name][:rows] for name in self.explained]

    def predict(self, arrays: Sequence[Array]) -> list[np.ndarray]:
        """Return the outputs of the model for all rows, on the host."""

        def block(rows: slice) -> list[np.ndarray]:
            inputs = self.device_rows(arrays, rows)
            values = self.forward(inputs, keep=False)
            return [to_host(values[name][: len(inputs[0])]) for name in self.outputs]

        return self.collect(block, self.blocks(len(arrays[0]), self.chunk_rows()))

    def run(self, inputs: Sequence[Array]) -> Run:
        """Run the graph on some rows and keep everything for a walk back."""
        return Run(self.forward(inputs), inputs)

    def cut(self, run: Run, rows: slice) -> Run:
        """Return some rows of a run, as views."""
        tensors = self.trial.row_tensors | self.graph.active  # the trial knows no inserted ones
        values = {k: v[rows] if k in tensors else v for k, v in run.values.items()}
        return Run(values, [x[rows] for x in run.inputs])


def _rounded(rows: int) -> int:
    """Return a number of rows, at most 1 in 128 more, that divides into parts of one size."""
    step = 1 << max(0, rows.bit_length() - 8)
    return -(-rows // step) * step


def checked_batch_size(batch_size: Any) -> int | None:
    return None if batch_size is None else check_count("batch_size", batch_size, most=None)
