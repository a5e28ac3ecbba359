"""The two walks over a graph: forward through its nodes, and back with a signal.

A walk knows no operator. What a signal does at a node is a function `step(node, signals)` that a
method hands in; the walk looks up tensors, adds up the signals of several consumers and lets go
of what nobody needs any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .arrays import Array, difference, hollow, namespace, to_host
from .errors import DataError, shown
from .graph.cut import downstream
from .graph.graph import Graph, Node, evaluate
from .kernels.base import Note, Pair, Record, Signals

Values: TypeAlias = "dict[str, Array]"
Step: TypeAlias = "Callable[[Node, Signals], Signals]"


def forward(
    graph: Graph,
    feeds: Mapping[str, Array],
    keep: bool | Collection[str] = True,
    shapes: dict[str, tuple[int, ...]] | None = None,
) -> Values:
    """Compute all tensors of a graph.

    Parameters
    ----------
    graph : Graph
        The graph.
    feeds : mapping of str to array
        One array per input of the graph.
    keep : bool or collection of str, default True
        Keep every tensor, as a walk back needs it; False keeps the outputs of the graph only. Of
        tensors that are not in a collection only shape and type are kept.
    shapes : dict, optional
        Filled with the shape of every tensor.
    """
    values: Values = dict(feeds)
    uses = None if keep is True else _uses(graph)
    kept = None if isinstance(keep, bool) else keep
    if shapes is not None:
        shapes.update((name, tuple(x.shape)) for name, x in feeds.items())
    for node in graph.nodes:
        inputs = [_value(graph, values, name) for name in node.inputs]
        outputs = evaluate(node, node.kernel, inputs)
        values.update((n, v) for n, v in zip(node.outputs, outputs, strict=False) if n)
        if shapes is not None:
            shapes.update((n, tuple(values[n].shape)) for n in node.outputs if n)
        if uses is not None:
            _release(values, uses, node, kept)
    for name in graph.outputs:
        values.setdefault(name, graph.weights.get(name))
    return values


def _uses(graph: Graph) -> Counter[str]:
    uses = Counter(name for node in graph.nodes for name in node.inputs)
    uses.update(graph.outputs)
    return uses


def _release(values: Values, uses: Counter[str], node: Node, kept: Collection[str] | None) -> None:
    """Let go of the tensors that a node was the last to use."""
    for name in node.inputs:
        uses[name] -= 1
        if uses[name] > 0 or name not in values:
            continue
        if kept is None:
            del values[name]
        elif name not in kept:
            values[name] = hollow(values[name])


def read_by_gradients(graph: Graph) -> set[str]:
    """Return the tensors whose numbers a walk back with gradients reads."""
    read = set()
    for node in graph.nodes:
        read.update(_read(node))
    return read


def _read(node: Node) -> Iterator[str]:
    kernel = node.kernel
    for name, active in zip(node.inputs, kernel.active, strict=True):
        if "inputs" in kernel.reads or not active:
            yield name
    if "outputs" in kernel.reads:
        yield from node.outputs


def _value(graph: Graph, values: Values, name: str) -> Array | None:
    if not name:
        return None
    return values[name] if name in values else graph.weights[name]


def record(graph: Graph, values: Values, node: Node) -> Record:
    """Return what a node saw in a run."""
    inputs = tuple(_value(graph, values, name) for name in node.inputs)
    return Record(inputs, tuple(values.get(name) for name in node.outputs))


def backward(
    graph: Graph,
    seeds: Mapping[str, Array],
    step: Step,
    keep: Collection[str] = (),
    spent: Sequence[Values] = (),
) -> dict[str, Array]:
    """Walk back from the seeded tensors; return the signals that reach the graph's inputs.

    Parameters
    ----------
    graph : Graph
        The graph.
    seeds : mapping of str to array (outputs, batch, ...)
        Where the walk starts.
    step : callable
        Takes a node and the signals of its outputs to the signals of its inputs.
    keep : collection of str, optional
        Tensors whose signals are returned instead; nothing before them is walked.
    spent : sequence of dict, optional
        Runs that nobody needs after this walk: it takes each tensor out once it has passed it.
    """
    signals: dict[str, Any] = dict(seeds)
    kept: dict[str, Any] = {}
    ahead = downstream(graph, keep) if keep else None
    for node in reversed(graph.nodes):
        arrived = any(name in signals for name in node.outputs)
        kept.update((n, signals[n]) for n in node.outputs if n in keep and n in signals)
        if arrived and (ahead is None or ahead.intersection(node.inputs)):
            _pass(graph, node, step, signals)
        for values in spent:  # what comes before this node does not need what it has made
            for name in node.outputs:
                values.pop(name, None)
    return signals | kept


def _pass(graph: Graph, node: Node, step: Step, signals: dict[str, Any]) -> None:
    """Put the signals of a node's inputs in the place of those of its outputs."""
    # A tensor that is itself explained keeps no signal: it has been passed on.
    incoming = tuple(signals.pop(name, None) for name in node.outputs)
    for name, signal in zip(node.inputs, step(node, incoming), strict=False):
        if signal is not None and name in graph.active:
            signals[name] = signals[name] + signal if name in signals else signal


# -- steps ----------------------------------------------------------------------------------------


def gradient_step(graph: Graph, values: Values) -> Step:
    """Return the step of gradients."""
    return lambda node, g: node.kernel.gradient(record(graph, values, node), g)


# Operators whose gradient guided backpropagation and deconvnets change; Clip where it cuts at 0.
_RECTIFIERS = {"Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Elu", "Selu", "Celu"}


def _rectifies(node: Node, rec: Record) -> bool:
    if node.op != "Clip" or node.domain:
        return node.op in _RECTIFIERS and not node.domain
    x = rec.inputs[0]
    lowest = node.kernel.forward(namespace(x).full_like(x[:1], -1), *rec.inputs[1:])
    return not bool(lowest.any())


def _rectified(g: Any) -> Any:
    return None if g is None else g * (g > 0)


def guided_step(graph: Graph, values: Values) -> Step:
    """Return the step of gradients that are cut at 0 where they enter a rectifier."""

    def step(node: Node, g: Signals) -> Signals:
        rec = record(graph, values, node)
        if any(node.kernel.active) and _rectifies(node, rec):
            g = tuple(map(_rectified, g))
        return node.kernel.gradient(rec, g)

    return step


def deconvnet_step(graph: Graph, values: Values) -> Step:
    """Return the step of gradients that rectifiers treat as they treat activations."""

    def step(node: Node, g: Signals) -> Signals:
        rec = record(graph, values, node)
        if any(node.kernel.active) and _rectifies(node, rec):
            return node.kernel.at(0, _rectified(g[0]))
        return node.kernel.gradient(rec, g)

    return step


def relevance_step(
    graph: Graph, values: Values, settings: Mapping[str, Any], ledger: Ledger | None = None
) -> Step:
    """Return the step of relevances; `settings` has an LrpSetting per node name."""

    def step(node: Node, r: Signals) -> Signals:
        note = None if ledger is None else ledger.note()
        out = node.kernel.relevance(record(graph, values, node), r, settings[node.name], note)
        if ledger is not None and note is not None:
            ledger.book(node, _total(note, r), _total(note, out), note.absorbed)
        return out

    return step


def _total(note: Note, signals: Iterable[Any]) -> Array | float:
    return sum((note.total(s) for s in signals if s is not None), start=0.0)


def multiplier_step(
    graph: Graph, values: Values, reference: Values, setting: Any, ledger: Ledger | None = None
) -> Step:
    """Return the step of DeepLIFT multipliers between two runs."""
    parts = difference_parts(graph, values, reference)

    def split_of(names: Sequence[str], signals: Signals) -> list[Any]:
        paired = zip(names, signals, strict=False)
        return [parts(n) if isinstance(s, Pair) else None for n, s in paired]

    def step(node: Node, m: Signals) -> Signals:
        rec, ref = record(graph, values, node), record(graph, reference, node)
        out = node.kernel.deeplift(rec, ref, m, setting, lambda i: parts(node.inputs[i]))
        if ledger is not None:
            note = ledger.note()
            came = _contributions(note, m, rec.outputs, ref.outputs, split_of(node.outputs, m))
            went = _contributions(note, out, rec.inputs, ref.inputs, split_of(node.inputs, out))
            ledger.book(node, came, went, _rounded(note, node, m, rec, ref))
        return out

    return step


def _rounded(note: Note, node: Node, m: Signals, rec: Record, ref: Record) -> dict[str, Array]:
    """Return the contribution of what rounding adds to a node's output."""
    more = node.kernel.rounding(rec)
    if more is not None:
        note.add("rounding", m[0] * (more - node.kernel.rounding(ref)))
    return note.absorbed


def difference_parts(graph: Graph, values: Values, reference: Values) -> Callable[[str], Any]:
    """Return what splits the difference of a tensor between two runs by sign, None if it cannot."""
    _check_comparable(graph, values, reference)
    return _Parts(graph, values, reference)


class _Parts:
    """What `difference_parts` returns. Functions that call each other would be a cycle, in which
    all tensors stay in memory until Python looks for such.
    """

    def __init__(self, graph: Graph, values: Values, reference: Values) -> None:
        self._runs = graph, values, reference
        self._producers = graph.producers()
        self._found: dict[str, Any] = {}

    def __call__(self, tensor: str) -> Any:
        if tensor not in self._found:
            node = self._producers.get(tensor) if tensor in self._runs[0].active else None
            self._found[tensor] = None if node is None else self._split(node)
        return self._found[tensor]

    def _split(self, node: Node) -> Any:
        graph, values, reference = self._runs
        rec, ref = record(graph, values, node), record(graph, reference, node)
        return node.kernel.difference_parts(rec, ref, lambda i: self(node.inputs[i]))


def _check_comparable(graph: Graph, values: Values, reference: Values) -> None:
    """Refuse runs in which a tensor has other elements, where positions depend on the data."""
    for name in (n for n in values if n in graph.active and n in reference):
        a, b = tuple(values[name].shape), tuple(reference[name].shape)
        if not _differ_in_rows(graph, a, b):
            raise DataError(
                f"tensor {shown(name)} has shape {a} for the data and {b} for the reference: the "
                "model chooses elements by their values; give a reference for which it chooses as "
                "many"
            )


def _differ_in_rows(graph: Graph, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Tell whether two shapes are the same but for rows, of which one run may have a single one."""
    if graph.rows_first or graph.fixed_batch:
        return a[1:] == b[1:]
    return len(a) == len(b) and all(m == n or 1 in (m, n) for m, n in zip(a, b, strict=True))


def _contributions(
    note: Note, m: Signals, x: Sequence[Any], x0: Sequence[Any], parts: Sequence[Any]
) -> Array | float:
    """Sum multiplier times difference over the tensors of a node."""
    total: Any = 0.0
    for s, a, b, split in zip(m, x, x0, parts, strict=False):
        if isinstance(s, Pair):
            total = total + note.total(s.positive * split[0] + s.negative * split[1])
        elif s is not None:
            total = total + note.total(s * difference(a, b))
    return total


def connection_step(graph: Graph, values: Values, setting: Any) -> Step:
    """Return the step of connection weights."""
    return lambda node, g: node.kernel.connection(record(graph, values, node), g, setting)


# -- the ledger -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """What came to one node, went on, and was absorbed: arrays (outputs, rows)."""

    node: Node
    came: Array
    went: Array
    absorbed: Mapping[str, Array]

    @property
    def gap(self) -> Array:
        """What is missing after everything known is booked."""
        return self.came - self.went - sum(self.absorbed.values(), start=0.0)


class Ledger:
    """Books of one walk back: nothing may disappear between a node's outputs and inputs."""

    def __init__(self, rows: bool):
        self.rows = rows
        self.entries: list[Entry] = []

    def note(self) -> Note:
        """Return an empty note for one node."""
        return Note(self.rows)

    def book(self, node: Node, came: Any, went: Any, absorbed: Mapping[str, Any]) -> None:
        """Add a node."""
        self.entries.append(Entry(node, came, went, dict(absorbed)))

    def fetch(self) -> None:
        """Bring all numbers to the host."""
        self.entries = [
            Entry(e.node, to_host(e.came), to_host(e.went), _on_host(e.absorbed))
            for e in self.entries
        ]


def _on_host(amounts: Mapping[str, Any]) -> dict[str, Array]:
    return {name: to_host(amount) for name, amount in amounts.items()}


# -- chunks ---------------------------------------------------------------------------------------


def chunks(total: int, size: int) -> Iterator[slice]:
    """Cut 0..total into slices of at most `size`."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
