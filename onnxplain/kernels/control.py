"""If, Loop and Scan: a body is run once or step by step, and signals walk back through it.

A body is a graph of its own, walked by the same two walks as the graph around it, so that whatever
is known of an operator holds inside as well. Nothing is kept between a forward pass and the way
back: inner tensors are computed again, step by step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .. import walk
from ..arrays import MAX_ELEMENTS, Array, checked_shape, is_float, namespace, to_host
from ..errors import DataError, ModelError, UnsupportedOpError, shown
from .base import Kernel, Note, Record, Signals, joint_shape
from .expanded import Expanded

if TYPE_CHECKING:
    from ..graph.graph import Graph

Values: TypeAlias = "dict[str, Array]"
MakeStep: TypeAlias = "Callable[[Graph, Values, Values], Callable]"

MAX_STEPS = 100_000  # of a loop, and of all loops in it together
KEPT_BYTES = 64 * 2**20  # of inner tensors for a way back; those of later steps are made again

_steps_taken: ContextVar[list[int] | None] = ContextVar("steps_taken", default=None)


@contextmanager
def _counted() -> Iterator[list[int]]:
    """Count the steps of a loop, and of the loops in its body with them."""
    outer = _steps_taken.get()
    if outer is not None:
        yield outer
        return
    token = _steps_taken.set([0])
    try:
        yield _steps_taken.get()
    finally:
        _steps_taken.reset(token)


def _take_step(taken: list[int], op: str) -> None:
    taken[0] += 1
    if taken[0] > MAX_STEPS:
        raise ModelError(
            f"{op} takes more than the {MAX_STEPS:,} steps allowed: perhaps its condition never "
            "becomes false; explain tensors before it, convert(model, outputs=[...])"
        )


def truth(condition: Array, op: str) -> bool:
    """Return a condition of one element as a truth value."""
    if condition.size != 1:
        raise ModelError(
            f"the condition of {op} has shape {tuple(condition.shape)}, expected one element: "
            "rows of a batch cannot go different ways; export the model for one row"
        )
    return bool(to_host(condition).reshape(()))


class Control(Kernel, ABC):
    """Runs bodies: all signals take the way that the forward pass took."""

    family = "control"
    compute_dtype = np.dtype(np.float32)

    @classmethod
    def accepts(cls, active):
        return True

    @abstractmethod
    def bodies(self) -> tuple[Graph, ...]:
        """Return the graphs of all bodies."""

    @abstractmethod
    def cast_bodies(self, dtype: np.dtype) -> None:
        """Replace the bodies by those of another float type."""

    def with_dtype(self, dtype: np.dtype) -> Control:
        """Return this kernel with casts, and floats made inside, of another type."""
        kernel = copy(self)
        kernel.compute_dtype = np.dtype(dtype)
        kernel.cast_bodies(dtype)
        return kernel

    # -- signals ----------------------------------------------------------------------------------

    @abstractmethod
    def back(
        self, rec: Record, ref: Record | None, signals: Signals, make: MakeStep, note: Note | None
    ) -> Signals:
        """Walk back with the step that `make` returns for a body and its tensors in two runs."""

    def gradient(self, rec, g):
        return self.back(rec, None, g, lambda graph, x, _: walk.gradient_step(graph, x), None)

    def relevance(self, rec, r, rule, note):
        books = None if note is None else _Books(note)

        def make(graph, x, _):
            return walk.relevance_step(graph, x, _Everywhere(rule), books)

        return self.back(rec, None, r, make, note)

    def deeplift(self, rec, ref, m, rule, parts):
        def make(graph, x, x0):
            return walk.multiplier_step(graph, x, x0, rule)

        return self.back(rec, ref, m, make, None)

    def connection(self, rec, g, rule):
        def make(graph, x, _):
            return walk.connection_step(graph, x, rule)

        return self.back(rec, None, g, make, None)

    def describe(self, method):
        rules = [
            (node, *node.kernel.describe(method))
            for graph in self.bodies()
            for node in graph.nodes
            if any(node.kernel.active)
        ]
        for node, rule, _, remark in rules:
            if not rule:
                return ("", False, f"{node.label} in its body: {remark}")
        inexact = [node.name for node, _, exact, _ in rules if not exact]
        remark = f"not exact in its body: {', '.join(map(shown, inexact[:3]))}" if inexact else ""
        return (self.words(method), not inexact, remark)

    def words(self, method: str) -> str:
        """Return what is done, in a word or two."""
        return "through its body"

    def _zeros(self, rec: Record, ref: Record | None, signals: Signals, back: list) -> Signals:
        """Return signals where inputs that reached no output get zeros."""
        like = next((s for s in signals if s is not None), None)
        if like is None:
            return tuple(back)
        xp = namespace(like)
        return tuple(
            xp.zeros((like.shape[0], *joint_shape(rec, ref, i)), like.dtype)
            if a and s is None
            else s
            for i, (a, s) in enumerate(zip(self.active, back, strict=True))
        )


class _Everywhere(Mapping):
    """One setting for all nodes of a body."""

    def __init__(self, setting: Any):
        self.setting = setting

    def __getitem__(self, name: str) -> Any:
        return self.setting

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class _Books:
    """A ledger that books what nodes of a body absorb on the node that runs it."""

    def __init__(self, note: Note):
        self.outer = note

    def note(self) -> Note:
        """Return an empty note for one inner node."""
        return Note(self.outer.rows)

    def book(self, node: Any, came: Any, went: Any, absorbed: Mapping[str, Any]) -> None:
        """Add what an inner node absorbed."""
        for what, amount in absorbed.items():
            self.outer.absorbed[what] = self.outer.absorbed.get(what, 0) + amount


def _seeds(graph: Graph, pairs: Iterable[tuple[str, Any]], note: Note | None) -> dict[str, Any]:
    """Return where a walk through a body starts; what meets no data is absorbed."""
    seeds: dict[str, Any] = {}
    for name, signal in pairs:
        if signal is None:
            continue
        if name in graph.active:
            seeds[name] = seeds[name] + signal if name in seeds else signal
        elif note is not None:
            note.add("constant", signal)
    return seeds


def _bind(body: Any, flags: Sequence[bool]) -> Graph:
    from ..graph.bodies import bound

    return bound(body, flags)


# -- If -------------------------------------------------------------------------------------------


class If(Control, op="If"):
    """y = what one of two branches computes of tensors from outside."""

    def setup(self):
        flags = self.active[1:]
        self.branches = {
            True: _bind(self.then_branch, flags),
            False: _bind(self.else_branch, flags),
        }
        self.captured = self.then_branch.inputs

    def bodies(self):
        return tuple(self.branches.values())

    def cast_bodies(self, dtype):
        self.branches = {key: graph.cast(dtype) for key, graph in self.branches.items()}

    def active_outputs(self):
        outputs = zip(*(graph.outputs for graph in self.bodies()), strict=True)
        then, other = self.bodies()
        return tuple(a in then.active or b in other.active for a, b in outputs)

    def _run(self, inputs: Sequence[Array | None]) -> tuple[bool, Values]:
        chosen = truth(inputs[0], "If")
        feeds = dict(zip(self.captured, inputs[1:], strict=True))
        return chosen, walk.forward(self.branches[chosen], feeds)

    def forward(self, *inputs):
        chosen, values = self._run(inputs)
        return tuple(values[name] for name in self.branches[chosen].outputs)

    def back(self, rec, ref, signals, make, note):
        chosen, values = self._run(rec.inputs)
        other, reference = (chosen, values) if ref is None else self._run(ref.inputs)
        if chosen != other:
            raise DataError(
                "an If takes one branch for the input and the other for the reference: what they "
                "differ by cannot be traced; choose a reference for which its condition is the same"
            )
        graph = self.branches[chosen]
        seeds = _seeds(graph, zip(graph.outputs, signals, strict=False), note)
        found = walk.backward(graph, seeds, make(graph, values, reference))
        out = [found.get(n) if n in graph.active else None for n in self.captured]
        return self._zeros(rec, ref, signals, [None, *out])


# -- Loop and Scan --------------------------------------------------------------------------------


class Steps(Control):
    """Runs its body again and again: states go from step to step, other outputs are stacked."""

    # What subclasses set up, apart from the graph of one step:
    n_states: int  # the first outputs of the node
    state_in: tuple[str, ...]  # names in the body
    state_out: tuple[str, ...]
    each_in: tuple[str, ...] = ()  # what each step is handed of some inputs
    in_axes: Sequence[int] = ()  # along which these are handed out
    in_turned: Sequence[int] = ()  # and whether from their end
    each_out: tuple[str, ...]  # what each step adds to the outputs
    captured: tuple[str, ...]
    first_state: int  # position among the inputs of the node
    first_each = 0
    first_captured: int

    def bind_states(self, states: int, outputs: Sequence[str]) -> None:
        """Bind the body; a state carries data if it does at the start or after any step."""
        before: list[bool] | None = None
        flags = list(self.active)
        while flags != before:
            before, self.graph = list(flags), _bind(self.body, flags)
            for i, name in enumerate(outputs[:states], self.first_state):
                flags[i] |= name in self.graph.active

    def bodies(self):
        return (self.graph,)

    def cast_bodies(self, dtype):
        self.graph = self.graph.cast(dtype)

    def active_outputs(self):
        states = (name in self.graph.active for name in self.state_in)
        each = (name in self.graph.active for name in self.each_out)
        return (*states, *each)

    @abstractmethod
    def turn(self, t: int, inputs: Sequence, before: Values | None) -> Values | None:
        """Return what step `t` is handed, apart from states; None if there is no such step."""

    @abstractmethod
    def place(self, k: int, t: int, steps: int, ndim: int) -> tuple:
        """Return the index of step `t` in output `k` of the stacked ones."""

    def each_back(self, k: int, t: int, shape: Sequence[int]) -> tuple:
        """Return the index of step `t` in an input that is handed out step by step."""
        axis = self.in_axes[k] % len(shape)
        return (slice(None),) * axis + (shape[axis] - 1 - t if self.in_turned[k] else t, ...)

    # -- forward ----------------------------------------------------------------------------------

    def _run(self, inputs: Sequence[Array | None], visit: Callable[[Values, Values], None]) -> None:
        """Call `visit` with what each step is handed and with all its tensors."""
        fixed = dict(zip(self.captured, inputs[self.first_captured :], strict=True))
        states = inputs[self.first_state : self.first_state + self.n_states]
        values, t = None, 0
        with _counted() as taken:
            while (handed := self.turn(t, inputs, values)) is not None:
                _take_step(taken, self.op)
                feeds = {**fixed, **dict(zip(self.state_in, states, strict=True)), **handed}
                values = walk.forward(self.graph, feeds)
                states = [values[name] for name in self.state_out]
                visit(feeds, values)
                t += 1

    def forward(self, *inputs):
        states = list(inputs[self.first_state : self.first_state + self.n_states])
        stacks: list[list[Array]] = [[] for _ in self.each_out]
        size = 0

        def visit(feeds: Values, values: Values) -> None:
            nonlocal size
            states[:] = [values[name] for name in self.state_out]
            for stack, name in zip(stacks, self.each_out, strict=True):
                stack.append(values[name])
                size += values[name].size
            if size > MAX_ELEMENTS:
                checked_shape((size,))

        self._run(inputs, visit)
        return (*states, *(self._stacked(k, stack) for k, stack in enumerate(stacks)))

    def _stacked(self, k: int, stack: list[Array]) -> Array:
        if not stack:
            return self._empty(k)
        xp = namespace(*stack)
        shapes = {x.shape for x in stack}
        if len(shapes) > 1:
            raise ModelError(f"steps of {self.op} give tensors of shapes {sorted(shapes)[:3]}")
        y = xp.empty((len(stack), *stack[0].shape), stack[0].dtype)
        y = self.axis_last(k, y)
        for t, x in enumerate(stack):
            y[self.place(k, t, len(stack), y.ndim)] = x
        return y

    def axis_last(self, k: int, y: Array) -> Array:
        """Return stacked output `k` with the axis of the steps where it belongs."""
        return y

    def _empty(self, k: int) -> Array:
        """Return what no steps add up to: axes of unknown length have length 0."""
        specs = self.body.specs[-len(self.each_out) :]
        spec = specs[k] if specs else None
        shape = () if spec is None or spec.shape is None else spec.shape
        lengths = [n if isinstance(n, int) else 0 for n in shape]
        dtype = np.dtype(np.float32) if spec is None else spec.dtype
        dtype = self.compute_dtype if is_float(dtype) else dtype
        return self.axis_last(k, np.zeros((0, *lengths), dtype))

    # -- back -------------------------------------------------------------------------------------

    def _tape(self, inputs: Sequence[Array | None]) -> list[tuple[Values, Values | None]]:
        """Return what each step was handed, and its tensors as long as they are not too many."""
        tape: list[tuple[Values, Values | None]] = []
        size = 0

        def visit(feeds: Values, values: Values) -> None:
            nonlocal size
            size += sum(v.nbytes for name, v in values.items() if name not in feeds)
            tape.append((feeds, values if size <= KEPT_BYTES else None))

        self._run(inputs, visit)
        return tape

    def _tensors(self, tape: list, t: int) -> Values:
        feeds, values = tape[t]
        return walk.forward(self.graph, feeds) if values is None else values

    def back(self, rec, ref, signals, make, note):
        tape = self._tape(rec.inputs)
        reference = tape if ref is None else self._tape(ref.inputs)
        self._check_steps(len(tape), len(reference))
        ways, active = _Ways(self, rec, ref), self.graph.active
        carried = list(signals[: self.n_states])
        for t in reversed(range(len(tape))):
            added = ways.parts(signals[self.n_states :], t, len(tape))
            pairs = [*zip(self.state_out, carried, strict=False), *added]
            seeds = _seeds(self.graph, pairs, note)
            x = self._tensors(tape, t)
            x0 = x if ref is None else self._tensors(reference, t)
            found = walk.backward(self.graph, seeds, make(self.graph, x, x0)) if seeds else {}
            carried = [found.get(n) if n in active else None for n in self.state_in]
            ways.collect(found, t)
            tape[t] = reference[t] = ({}, None)  # no longer needed
        for i, signal in enumerate(carried, self.first_state):
            if self.active[i]:
                ways.back[i] = signal
            elif note is not None and signal is not None:
                note.add("constant", signal)
        return self._zeros(rec, ref, signals, ways.back)

    def _check_steps(self, count: int, reference: int) -> None:
        if count != reference:
            raise DataError(
                f"a {self.op} takes {count} steps for the input and {reference} for the "
                "reference: what they differ by cannot be traced; choose a reference for which it "
                "takes as many steps"
            )


class _Ways:
    """Signals of stacked outputs handed out to the steps, and those of inputs collected."""

    def __init__(self, kernel: Steps, rec: Record, ref: Record | None):
        self.kernel, self.rec, self.ref = kernel, rec, ref
        self.back: list[Any] = [None] * len(kernel.active)

    def parts(self, stacked: Signals, t: int, steps: int) -> list[tuple[str, Any]]:
        """Return the signals that step `t` gets for what it added to the outputs."""
        kernel = self.kernel
        return [
            (name, s[(slice(None), *kernel.place(k, t, steps, s.ndim - 1))])
            for k, (name, s) in enumerate(zip(kernel.each_out, stacked, strict=False))
            if s is not None
        ]

    def collect(self, found: Mapping[str, Any], t: int) -> None:
        """Add the signals that one step sends to the inputs of the node."""
        kernel, active = self.kernel, self.kernel.graph.active
        for k, name in enumerate(kernel.each_in):
            if name in active and name in found:
                self._put(kernel.first_each + k, k, t, found[name])
        for k, name in enumerate(kernel.captured):
            i = kernel.first_captured + k
            if name in active and name in found:
                sofar = self.back[i]
                self.back[i] = found[name] if sofar is None else sofar + found[name]

    def _put(self, i: int, k: int, t: int, signal: Array) -> None:
        shape = joint_shape(self.rec, self.ref, i)
        if self.back[i] is None:
            self.back[i] = namespace(signal).zeros((signal.shape[0], *shape), signal.dtype)
        self.back[i][(slice(None), *self.kernel.each_back(k, t, shape))] = signal


class Loop(Steps, op="Loop"):
    """Repeats its body so often, and as long as a condition holds."""

    first_state = 2

    def setup(self):
        body = self.body
        states = body.handed - 2
        self.n_states, self.first_captured = states, body.handed
        self.counter, self.condition = body.inputs[:2]
        self.state_in, self.captured = body.inputs[2 : body.handed], body.inputs[body.handed :]
        self.goes_on, self.state_out = body.outputs[0], body.outputs[1 : 1 + states]
        self.each_out = body.outputs[1 + states :]
        if len(self.state_out) < states:
            raise ModelError(
                f"its body takes {states} states and returns {len(self.state_out)} of them"
            )
        self.bind_states(states, self.state_out)

    def turn(self, t, inputs, before):
        limit, condition = inputs[:2]
        if limit is not None and t >= int(to_host(limit).reshape(())):
            return None
        condition = condition if before is None else before[self.goes_on]
        if condition is not None and not truth(condition, self.op):
            return None
        return {self.counter: np.array(t, np.int64), self.condition: np.array(True)}

    def place(self, k, t, steps, ndim):
        return (t,)

    def words(self, method):
        return "through its steps"


class Scan(Steps, op="Scan", since=9):
    """Runs its body along an axis of its inputs."""

    first_state = 0

    def setup(self):
        body, scanned = self.body, self.num_scan_inputs
        states = body.handed - scanned
        self.n_states = self.first_each = states
        self.first_captured = body.handed
        self.state_in, self.each_in = body.inputs[:states], body.inputs[states : body.handed]
        self.captured = body.inputs[body.handed :]
        self.state_out, self.each_out = body.outputs[:states], body.outputs[states:]
        if states < 0 or len(self.state_out) < states or not scanned:
            raise ModelError(f"its body takes {body.handed} inputs, {scanned} of them in steps")
        self.in_axes = _per(self, "scan_input_axes", scanned)
        self.in_turned = _per(self, "scan_input_directions", scanned)
        self.out_axes = _per(self, "scan_output_axes", len(self.each_out))
        self.out_turned = _per(self, "scan_output_directions", len(self.each_out))
        self.bind_states(states, self.state_out)

    def turn(self, t, inputs, before):
        scanned = inputs[self.first_each : self.first_captured]
        lengths = {x.shape[axis] for x, axis in zip(scanned, self.in_axes, strict=True)}
        if len(lengths) > 1:
            raise ModelError(f"the inputs of {self.op} have {sorted(lengths)} steps, expected one")
        if t >= max(lengths):
            return None
        return {
            name: x[self.each_back(k, t, x.shape)]
            for k, (name, x) in enumerate(zip(self.each_in, scanned, strict=True))
        }

    def place(self, k, t, steps, ndim):
        axis = self.out_axes[k] % ndim
        return (slice(None),) * axis + (steps - 1 - t if self.out_turned[k] else t,)

    def axis_last(self, k, y):
        axis = self.out_axes[k] % y.ndim
        return y if axis == 0 else namespace(y).moveaxis(y, 0, axis)

    def words(self, method):
        return "through its steps"


class Scan8(Expanded, op="Scan", since=8):
    """Scan of an older kind, whose inputs have the batch as axis 0: rows are scanned in turn."""

    main = "Scan"

    def expand(self, writer):
        from ..graph.bodies import Body
        from ..graph.graph import Node

        if writer.input(0):
            raise UnsupportedOpError("Scan of opset 8 with sequence_lens; export with opset 9")
        body, given = self.body, writer.inputs[1:]
        handed = tuple(f"{name}/row" for name in body.inputs[: body.handed])
        captured = body.inputs[body.handed :]
        outputs = tuple(f"{name}/row" for name in body.outputs)
        attributes = {
            "body": body,
            "num_scan_inputs": self.num_scan_inputs,
            "scan_input_directions": self.directions,
        }
        row = Node("row", "Scan", (*handed, *captured), outputs, attributes, 9)
        writer.node(
            "Scan",
            *given,
            output=writer.outputs,
            body=Body((row,), (*handed, *captured), outputs, len(handed)),
            num_scan_inputs=len(handed),
        )


def _per(kernel: Kernel, name: str, count: int) -> tuple[int, ...]:
    """Return an attribute with one number per tensor, zeros by default."""
    given = getattr(kernel, name, None) or (0,) * count
    if len(given) != count:
        raise ModelError(f"{name} has {len(given)} numbers, expected {count}")
    return tuple(given)
