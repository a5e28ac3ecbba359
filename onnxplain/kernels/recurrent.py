"""LSTM, GRU and RNN: one product for the inputs of all steps, then a body of primitives per step.

What ONNX describes in formulas is written out when a graph is built: W x + b for all steps at once,
and for each direction a node that runs the rest step by step, as `Scan` does. Every signal knows
its way through the primitives; what is special is the product of a gate and what it lets through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import onnx

from ..arrays import namespace, unbroadcast
from ..errors import ModelError, UnsupportedOpError, listed
from .activations import Sigmoid
from .arithmetic import Affine
from .control import Scan
from .expanded import Expanded, Writer
from .families import Product
from .routing import Where

OWN = "onnxplain"  # the domain of operators that no file has

# -- operators of a step --------------------------------------------------------------------------


class Gate(Product, op="Gate", domain=OWN):
    """y = gate times signal; the signal takes all relevance (Arras et al. 2017), unless halved.

    Arras et al. (2017), Explaining recurrent neural network predictions in sentiment analysis.
    """

    def forward(self, gate, signal):
        return gate * signal

    def back(self, g, a, b, shapes):
        return unbroadcast(g * b, shapes[0]), unbroadcast(g * a, shapes[1])

    def relevance(self, rec, r, rule, note):
        if rule.gates == "halves":
            return super().relevance(rec, r, rule, note)
        return None, unbroadcast(r[0], rec.inputs[1].shape)

    def describe(self, method):
        if method != "lrp":
            return super().describe(method)
        return ("signal takes all", True, "none to the gate (Arras et al. 2017), a convention")


class GateScale(Affine, op="Gate", domain=OWN):
    """A gate, or what it lets through, is constant."""

    def operand(self, inputs):
        return inputs[self.position], inputs[1 - self.position], None

    def forward(self, gate, signal):
        return gate * signal


class StepSigmoid(Sigmoid, op="Sigmoid", domain=OWN):
    """y = 1 / (1 + exp(-x)) of the few numbers of a step, where scipy's expit takes most time."""

    def forward(self, x):
        xp = namespace(x)
        return 1 / (1 + xp.exp(-xp.maximum(x, -80)))


class Keep(Where, op="Keep", domain=OWN):
    """y = a where a sequence still runs, else b: the lengths do not depend on the data."""

    def describe(self, method):
        return ("routes back", True, "")


# -- the steps of one direction --------------------------------------------------------------------


class Recurrent(Scan):
    """Runs the body of a recurrent layer along the first axis."""

    family = "recurrent"

    def words(self, method):
        return "through time"


class LstmSteps(Recurrent, op="LSTM", domain=OWN):
    """The steps of one direction of an LSTM."""


class GruSteps(Recurrent, op="GRU", domain=OWN):
    """The steps of one direction of a GRU."""


class RnnSteps(Recurrent, op="RNN", domain=OWN):
    """The steps of one direction of an RNN."""


class _Step:
    """Collects the nodes of one step; weights are taken from outside."""

    def __init__(self, writer: Writer, name: str):
        self.writer, self.name, self.nodes = writer, name, []

    def node(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node and return its output."""
        return self.nodes_of(op, inputs, 1, domain, attributes)[0]

    def nodes_of(self, op, inputs, count, domain="", attributes=None) -> tuple[str, ...]:
        """Add a node and return its outputs."""
        from ..graph.graph import Node

        name = f"{self.name}/{op}_{len(self.nodes)}"
        outputs = (name,) if count == 1 else tuple(f"{name}.{i}" for i in range(count))
        opset = 1 if domain else Recurrence.opset
        self.nodes.append(Node(name, op, inputs, outputs, attributes or {}, opset, domain))
        return outputs

    def number(self, value: float) -> str:
        """Return a weight of one number."""
        return self.writer.weight(np.float32(value))

    def parts(self, x: str, sizes: Sequence[int]) -> tuple[str, ...]:
        """Cut the last axis into parts."""
        lengths = self.writer.weight(np.array(sizes, np.int64))
        return self.nodes_of("Split", (x, lengths), len(sizes), attributes={"axis": -1})

    def gate(self, gate: str, signal: str) -> str:
        """Let a signal through a gate."""
        return self.node("Gate", gate, signal, domain=OWN)

    def rest(self, gate: str) -> str:
        """Return 1 - gate."""
        return self.node("Sub", self.number(1), gate)

    def body(self, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
        """Return the nodes as a body."""
        from ..graph.bodies import Body

        made = {*inputs, *(name for node in self.nodes for name in node.outputs)}
        read = dict.fromkeys(name for node in self.nodes for name in node.inputs)
        captured = [name for name in read if name not in made]
        return Body(tuple(self.nodes), (*inputs, *captured), tuple(outputs), len(inputs))


# -- activations ----------------------------------------------------------------------------------


class _Function(NamedTuple):
    """An activation with its parameters."""

    name: str
    alpha: float
    beta: float
    clip: float | None

    def write(self, step: _Step, x: str) -> str:
        """Write it, after the bounds of its input."""
        if self.clip is not None:
            x = step.node("Clip", x, step.number(-self.clip), step.number(self.clip))
        if self.name == "Affine":
            return step.node("Add", step.node("Mul", x, step.number(self.alpha)), self._beta(step))
        if self.name == "ScaledTanh":
            inner = step.node("Tanh", step.node("Mul", x, self._beta(step)))
            return step.node("Mul", inner, step.number(self.alpha))
        values = {"alpha": self.alpha, "beta": self.beta}
        given = {key: values[key] for key in _PARAMETERS[self.name]}
        return step.node(self.name, x, domain=OWN if self.name == "Sigmoid" else "", **given)

    def _beta(self, step: _Step) -> str:
        return step.number(self.beta)


# What each activation takes, with the defaults of ONNX's operators; None where runtimes differ.
_PARAMETERS: dict[str, dict[str, float | None]] = {
    "Relu": {},
    "Tanh": {},
    "Sigmoid": {},
    "Softsign": {},
    "Softplus": {},
    "Affine": {"alpha": None, "beta": None},
    "ScaledTanh": {"alpha": None, "beta": None},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "LeakyRelu": {"alpha": 0.01},
    "ThresholdedRelu": {"alpha": None},
    "Elu": {"alpha": 1.0},
}
_NAMES = {name.lower(): name for name in _PARAMETERS}


def _functions(kernel: Any, directions: int, default: Sequence[str]) -> list[_Function]:
    """Return the activations of all directions; parameters go to those that take any, in order."""
    n = len(default) * directions
    names = (kernel.activations or list(default) * directions)[:n]
    if len(names) < n:
        raise ModelError(f"{kernel.op} has {len(names)} activations, expected {n}")
    unknown = [name for name in names if name.lower() not in _NAMES]
    if unknown:
        raise UnsupportedOpError(
            f"{kernel.op} has activation {unknown[0]!r}; known are {listed(_PARAMETERS, 12)}"
        )
    alphas, betas = iter(kernel.activation_alpha or ()), iter(kernel.activation_beta or ())
    return [_function(_NAMES[name.lower()], alphas, betas, kernel.clip) for name in names]


def _function(name: str, alphas: Iterator, betas: Iterator, clip: float | None) -> _Function:
    known = _PARAMETERS[name]
    alpha = next(alphas, known["alpha"]) if "alpha" in known else 0.0
    beta = next(betas, known["beta"]) if "beta" in known else 0.0
    if alpha is None or beta is None:
        raise ModelError(f"activation {name!r} needs activation_alpha and activation_beta")
    return _Function(name, alpha, beta, clip)


# -- layers ---------------------------------------------------------------------------------------

_TURNED = {"forward": (0,), "reverse": (1,), "bidirectional": (0, 1)}


class Recurrence(Expanded):
    """A recurrent layer; inputs X, W, R, B, sequence_lens, initial_h, initial_c, P."""

    n_gates: ClassVar[int] = 1  # W, R and B hold as many parts
    n_states: ClassVar[int] = 1
    default: ClassVar[tuple[str, ...]] = ("Tanh",)

    def inner_bias(self) -> int:
        """Return how many of the last parts of R's bias a step adds itself."""
        return 0

    def step(self, step: _Step, way: _Direction, z: str, states: Sequence[str]) -> tuple[str, ...]:
        """Write what a step makes of W x + b and the states; return the new states."""
        raise NotImplementedError

    @property
    def batch_first(self) -> bool:
        """Whether axis 0 is the batch, axis 1 the time."""
        return bool(getattr(self, "layout", 0))

    def expand(self, writer: Writer) -> None:
        turned = _TURNED.get(self.direction.lower())
        if turned is None:
            raise ModelError(f"direction {self.direction!r} is none of {listed(_TURNED)}")
        functions, n = _functions(self, len(turned), self.default), len(self.default)
        ways = [
            _Direction(self, writer, d, turn, functions[d * n : d * n + n])
            for d, turn in enumerate(turned)
        ]
        x = writer.input(0)
        x = writer.node("Transpose", x, perm=(1, 0, 2)) if self.batch_first else x
        runs = _still_runs(writer, x) if writer.input(4) else ""
        found = [way.write(x, runs) for way in ways]
        self._write_sequence(writer, [outputs[-1] for outputs in found])
        for k in range(self.n_states):
            if output := writer.output(1 + k):
                parts = [outputs[k] for outputs in found]
                _stack(writer, parts, int(self.batch_first), output)

    def _write_sequence(self, writer: Writer, parts: Sequence[str]) -> None:
        output = writer.output(0)
        if output and self.batch_first:
            y = _stack(writer, parts, 1, None)
            writer.node("Transpose", y, perm=(2, 0, 1, 3), output=output)
        elif output:
            _stack(writer, parts, 1, output)


def _stack(writer: Writer, parts: Sequence[str], axis: int, output: str | None) -> str:
    """Put the directions together along a new axis."""
    where = writer.weight(np.array([axis], np.int64))
    if len(parts) == 1:
        return writer.node("Unsqueeze", parts[0], where, output=output)
    parts = [writer.node("Unsqueeze", part, where) for part in parts]
    return writer.node("Concat", *parts, axis=axis, output=output)


def _still_runs(writer: Writer, x: str) -> str:
    """Write which sequences still run at each step, (steps, rows, 1)."""

    def ints(*values: int) -> str:
        return writer.weight(np.array(values, np.int64))

    steps = writer.node("Gather", writer.node("Shape", x), writer.weight(np.int64(0)), axis=0)
    zero, one = (writer.weight(np.int64(v)) for v in (0, 1))
    times = writer.node("Unsqueeze", writer.node("Range", zero, steps, one), ints(1, 2))
    lengths = writer.node("Cast", writer.input(4), to=onnx.TensorProto.INT64)
    return writer.node("Less", times, writer.node("Unsqueeze", lengths, ints(0, 2)))


class _Direction:
    """One direction of a layer: its weights, and the node that runs its steps."""

    def __init__(
        self, kernel: Recurrence, writer: Writer, number: int, turned: int, functions: Sequence
    ):
        self.kernel, self.writer, self.number, self.turned = kernel, writer, number, turned
        self.functions = functions
        self.stem = next(filter(None, writer.outputs))
        self.size = kernel.hidden_size or self._size_of_weights()

    def _size_of_weights(self) -> int:
        r = self.writer.constant(self.writer.input(2))
        if r is None:
            raise ModelError("hidden_size is needed where the weights are computed")
        return r.shape[-1]

    def own(self, i: int, axis: int = 0) -> str:
        """Write this direction's part of input `i`."""
        where = self.writer.weight(np.int64(self.number))
        return self.writer.node("Gather", self.writer.input(i), where, axis=axis)

    def cut(self, x: str, first: int, last: int, axis: int = 0) -> str:
        """Write parts `first` to `last` of weights along an axis."""
        bounds = (first * self.size, last * self.size, axis)
        return self.writer.node(
            "Slice", x, *(self.writer.weight(np.array([v], np.int64)) for v in bounds)
        )

    def recurrent_weights(self) -> str:
        """Write R transposed: a state times it."""
        return self.writer.node("Transpose", self.own(2), perm=(1, 0))

    def recurrent_bias(self, first: int, last: int) -> str:
        """Write parts of R's bias."""
        n = self.kernel.n_gates
        return self.cut(self.own(3), n + first, n + last)

    def write(self, x: str, runs: str) -> tuple[str, ...]:
        """Write the steps; return the last states, and what all steps gave."""
        kernel, d = self.kernel, self.number
        handed = [self._projected(x), runs] if runs else [self._projected(x)]
        step = _Step(self.writer, f"{self.stem}/{d}")
        olds = [f"{step.name}/state_{k}" for k in range(kernel.n_states)]
        names = [f"{step.name}/x", f"{step.name}/runs"][: len(handed)]
        news = kernel.step(step, self, names[0], olds)
        y = news[0]
        if runs:
            zero = self.writer.weight(np.zeros(1, np.float32))
            y = step.node("Keep", names[1], y, zero, domain=OWN)
            news = [
                step.node("Keep", names[1], new, old, domain=OWN)
                for new, old in zip(news, olds, strict=True)
            ]
        body = step.body([*olds, *names], [*news, y])
        outputs = tuple(f"{step.name}/{what}" for what in ("h", "c")[: kernel.n_states])
        outputs = (*outputs, f"{step.name}/y")
        self.writer.node(
            kernel.op,
            *(self._initial(k) for k in range(kernel.n_states)),
            *handed,
            *body.inputs[body.handed :],
            output=outputs,
            domain=OWN,
            body=body,
            num_scan_inputs=len(handed),
            scan_input_directions=(self.turned,) * len(handed),
            scan_output_directions=(self.turned,),
        )
        return outputs

    def _projected(self, x: str) -> str:
        """Write W x + b for all steps."""
        weights = self.writer.node("Transpose", self.own(1), perm=(1, 0))
        z = self.writer.node("MatMul", x, weights)
        if not self.writer.input(3):
            return z
        kernel = self.kernel
        outer = kernel.n_gates - kernel.inner_bias()
        bias = self.cut(self.own(3), 0, kernel.n_gates)
        added = self.recurrent_bias(0, outer)
        if outer < kernel.n_gates:
            rest = self.writer.weight(np.zeros(kernel.inner_bias() * self.size, np.float32))
            added = self.writer.node("Concat", added, rest, axis=0)
        return self.writer.node("Add", z, self.writer.node("Add", bias, added))

    def _initial(self, k: int) -> str:
        if self.writer.input(5 + k):
            return self.own(5 + k, axis=int(self.kernel.batch_first))
        return self.writer.weight(np.zeros((1, self.size), np.float32))


class LSTM(Recurrence, op="LSTM", since=7):
    """Gates i, o, f and the new content c; states h and c."""

    main = "LSTM"
    n_gates, n_states = 4, 2
    default = ("Sigmoid", "Tanh", "Tanh")

    def step(self, step, way, z, states):
        h, c = states
        gate, content, shown = way.functions
        shown = shown._replace(clip=None)  # onnxruntime bounds what enters gates and content only
        z = step.node("Add", z, step.node("MatMul", h, way.recurrent_weights()))
        gates, new = step.parts(z, [3 * way.size, way.size])
        peepholes = way.own(7) if way.writer.input(7) else ""
        gates = gates if peepholes else gate.write(step, gates)
        i, o, f = step.parts(gates, [way.size] * 3)
        if peepholes:
            i = gate.write(step, _peep(step, i, c, way.cut(peepholes, 0, 1)))
            f = gate.write(step, _peep(step, f, c, way.cut(peepholes, 2, 3)))
        f = step.rest(i) if self.input_forget else f
        c = step.node("Add", step.gate(f, c), step.gate(i, content.write(step, new)))
        if peepholes:
            o = gate.write(step, _peep(step, o, c, way.cut(peepholes, 1, 2)))
        return step.gate(o, shown.write(step, c)), c


def _peep(step: _Step, z: str, c: str, weights: str) -> str:
    """Write z + P c."""
    return step.node("Add", z, step.node("Mul", c, weights))


class GRU(Recurrence, op="GRU", since=7):
    """Gates z (update) and r (reset) and the new content h; one state h."""

    main = "GRU"
    n_gates = 3
    default = ("Sigmoid", "Tanh")

    def inner_bias(self):
        return 1 if self.linear_before_reset else 0

    def step(self, step, way, z, states):
        (h,) = states
        gate, content = way.functions
        weights = way.recurrent_weights()
        z_gates, new = step.parts(z, [2 * way.size, way.size])
        gates = step.node("MatMul", h, way.cut(weights, 0, 2, axis=1))
        gates = gate.write(step, step.node("Add", z_gates, gates))
        update, reset = step.parts(gates, [way.size] * 2)
        last = way.cut(weights, 2, 3, axis=1)
        if self.linear_before_reset:
            old = step.node("MatMul", h, last)
            if way.writer.input(3):
                old = step.node("Add", old, way.recurrent_bias(2, 3))
            old = step.gate(reset, old)
        else:
            old = step.node("MatMul", step.gate(reset, h), last)
        new = content.write(step, step.node("Add", new, old))
        kept = step.gate(update, h)
        return (step.node("Add", step.gate(step.rest(update), new), kept),)


class RNN(Recurrence, op="RNN", since=7):
    """One state h."""

    main = "RNN"

    def step(self, step, way, z, states):
        z = step.node("Add", z, step.node("MatMul", states[0], way.recurrent_weights()))
        return (way.functions[0].write(step, z),)
