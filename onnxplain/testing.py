"""Conformance tests for kernels: what every operator must keep, in one call.

For authors of kernels. Everything runs in float64 on random signals of two explained outputs; what
is wrong is an `AssertionError` that names the kernel, the pass and the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import onnx

from .arrays import hollow, negative, positive
from .errors import RuleError, UnsupportedOpError
from .graph.bodies import Body
from .graph.expand import expand
from .graph.graph import Node, is_float, make_kernel
from .kernels.base import Kernel, Note, Pair, Record, versions
from .kernels.control import If
from .rules import (
    AlphaBeta,
    ConnectionSetting,
    DeepLiftSetting,
    Epsilon,
    Flat,
    Gamma,
    LrpSetting,
    RevealCancel,
    Simple,
    WSquare,
    ZBox,
    ZPlus,
)

__all__ = ["check_kernel"]

Signals: TypeAlias = "tuple[Any, ...]"  # arrays, pairs of them, None

OUTPUTS = 2  # explained at once: the leading axis of every signal
STEP = 2e-4  # of the differences that gradients are compared with

RELEVANCE = {
    **{
        f"rule {rule!r}": LrpSetting(rule)
        for rule in (
            Simple(),
            Epsilon(0.1),
            AlphaBeta(0.5),
            AlphaBeta(1),
            AlphaBeta(2),
            Gamma(0.25),
            ZPlus(),
            WSquare(),
            Flat(),
            ZBox(-3, 3),
        )
    },
    "winner_takes_all=False": LrpSetting(winner_takes_all=False),
    "equal shares": LrpSetting(equal_shares=True),
}
DEEPLIFT = {
    "Rescale": DeepLiftSetting(),
    "RevealCancel": DeepLiftSetting(RevealCancel()),
    "winner_takes_all=False": DeepLiftSetting(winner_takes_all=False),
}


def check_kernel(
    op: str,
    inputs: Sequence[np.ndarray | None],
    *,
    active: Sequence[int] | None = None,
    attributes: Mapping[str, Any] | None = None,
    opset: int | None = None,
    domain: str = "",
    n_outputs: int = 1,
    rows: bool = True,
    exact: bool | None = None,
    seed: int = 0,
) -> tuple[str, ...]:
    """Check that the kernel of an operator keeps what every pass promises.

    * gradient: the transpose of the derivative, compared with differences of the forward pass; it
      reads no more numbers than the kernel says (`reads`);
    * DeepLIFT: contributions add up to the difference of the output, for Rescale and RevealCancel;
      between equal points multipliers are the gradient, between nearly equal ones close to it; one
      reference for many rows, and many references for one row, give what repeating it gives;
    * relevance: what comes in goes on or is booked as absorbed, under every rule that applies;
    * all passes: arguments are left alone, float32 stays float32, any memory layout will do.

    Parameters
    ----------
    op : str
        The operator.
    inputs : sequence of array or None
        Its inputs at one point, None for an optional one that is absent. Other points are made by
        shuffling the elements of inputs with data, and values between them: the operator must be
        defined there, and smooth within 1e-3 of the point itself.
    active : sequence of int, optional
        Positions of the inputs that carry data, by default the first.
    attributes : mapping, optional
        Attributes of the node; others have ONNX's defaults.
    opset : int, optional
        Version of the operator set, by default the newest known.
    domain : str, default ""
        Domain of the operator.
    n_outputs : int, default 1
        How many outputs the node has.
    rows : bool, default True
        Axis 0 of inputs with data and of outputs is the batch; False skips what needs one.
    exact : bool, optional
        Demand that DeepLIFT adds up; by default what the kernel says of itself.
    seed : int, default 0
        Of the random signals and points.

    Returns
    -------
    tuple of str
        The passes that were checked: a kernel may refuse one with `UnsupportedOpError`.

    Raises
    ------
    AssertionError
        Where a promise is broken.
    UnsupportedOpError
        If no kernel takes data on these inputs.

    Examples
    --------
    >>> import numpy as np
    >>> check_kernel("LeakyRelu", [np.array([[1.0, -2.0], [-0.5, 3.0]])], attributes={"alpha": 0.1})
    ('gradient', 'deeplift', 'relevance', 'connection')
    """
    opset = _newest(op, domain) if opset is None else opset
    flags = tuple(i in (active or (0,)) for i in range(len(inputs)))
    kernel, inputs = _bind(op, inputs, flags, attributes or {}, opset, domain, n_outputs)
    exact = kernel.describe("deeplift")[1] if exact is None else exact
    subject = _Subject(kernel, _cast(inputs, np.float64), rows, exact, seed).like(np.float64)
    checks = {
        "gradient": _check_gradient,
        "deeplift": _check_deeplift,
        "relevance": _check_relevance,
        "connection": _check_connection,
    }
    return tuple(name for name, check in checks.items() if _runs(check, subject))


def _runs(check: Callable[[_Subject], None], subject: _Subject) -> bool:
    try:
        check(subject)
    except UnsupportedOpError:
        return False
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        name = check.__name__.removeprefix("_check_")
        raise AssertionError(f"{subject.label}: {name} writes to its arguments") from error
    return True


def _newest(op: str, domain: str) -> int:
    if domain in ("", "ai.onnx"):
        return onnx.defs.onnx_opset_version()
    return max(versions(op, domain), default=1)


def _bind(op, inputs, flags, attributes, opset, domain, n_outputs) -> tuple[Kernel, tuple]:
    """Return the kernel of a node and its inputs."""
    names = tuple("" if x is None else f"input {i}" for i, x in enumerate(inputs))
    outputs = tuple(f"output {i}" for i in range(n_outputs))
    node = Node(op, op, names, outputs, attributes, opset, domain)
    given = zip(names, inputs, flags, strict=True)
    weights = {name: np.asarray(x) for name, x, flag in given if name and not flag}
    nodes, weights = expand([node], weights)
    if nodes != [node]:
        data = {
            name: x for name, x in zip(names, inputs, strict=True) if name and name not in weights
        }
        return _written(op, nodes, outputs, data | weights, data)
    kernel = make_kernel(node, flags)
    if kernel is None:
        where = [i for i, flag in enumerate(flags) if flag]
        raise UnsupportedOpError(f"no kernel for {op} (opset {opset}) with data on inputs {where}")
    return kernel, tuple(inputs)


def _written(op, nodes, outputs, values, data) -> tuple[Kernel, tuple]:
    """Return what takes the place of an operator as one kernel: an If, both branches the same."""
    body = Body(tuple(nodes), tuple(values), outputs, handed=0)
    active = (False, *(name in data for name in values))
    branches = {"then_branch": body, "else_branch": body, "op": op}
    return If(branches, active, len(outputs)), (np.array(True), *values.values())


# -- the subject ----------------------------------------------------------------------------------


class _Subject:
    """A kernel, the point it is checked at, and random points and signals around it."""

    def __init__(
        self, kernel: Kernel, inputs: tuple, rows: bool, exact: bool, seed: int, layout: Any = None
    ):
        self.kernel, self.inputs, self.rows, self.exact = kernel, inputs, rows, exact
        self.seed, self.layout = seed, layout or (lambda x: x)
        self.dtype = next(x.dtype for x, a in zip(inputs, kernel.active, strict=True) if a)
        name = type(kernel).__name__
        self.label = name if name == kernel.op else f"{name} ({kernel.op})"

    def like(self, dtype: Any = None, layout: Any = None) -> _Subject:
        """Return the same subject in another type or memory layout."""
        dtype = np.dtype(dtype or self.dtype)
        kernel = self.kernel
        kernel = kernel.with_dtype(dtype) if hasattr(kernel, "compute_dtype") else kernel
        inputs = _cast(self.inputs, dtype)
        return _Subject(kernel, inputs, self.rows, self.exact, self.seed, layout)

    def rng(self, what: str) -> np.random.Generator:
        """Return a stream of its own for each use, the same in every type and layout."""
        return np.random.default_rng([self.seed, *what.encode()])

    def change(self, f: Callable[[np.ndarray], np.ndarray]) -> tuple:
        """Apply a function to the inputs that carry data."""
        pairs = zip(self.inputs, self.kernel.active, strict=True)
        return tuple(f(x) if a else x for x, a in pairs)

    def shuffled(self) -> tuple:
        """Return another point, made of the same numbers."""
        rng = self.rng("point")
        return self.change(lambda x: rng.permutation(x.ravel()).reshape(x.shape))

    def direction(self) -> list[np.ndarray | None]:
        """Return a random direction, all components 1 or -1."""
        rng = self.rng("direction")
        return [
            rng.choice([-1.0, 1.0], x.shape).astype(self.dtype) if a else None
            for x, a in zip(self.inputs, self.kernel.active, strict=True)
        ]

    def moved(self, step: float, direction: Sequence[np.ndarray | None]) -> tuple:
        """Return the point moved along a direction."""
        return tuple(
            x if d is None else x + x.dtype.type(step) * d
            for x, d in zip(self.inputs, direction, strict=True)
        )

    def run(self, inputs: Sequence[np.ndarray | None] | None = None) -> Record:
        """Run the forward pass."""
        inputs = tuple(map(self._frozen, self.inputs if inputs is None else inputs))
        outputs = self.kernel.forward(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return Record(inputs, tuple(map(self._frozen, outputs)))

    def signals(self, rec: Record, ref: Record | None = None, what: str = "signal") -> Signals:
        """Return random signals for the outputs that carry data."""
        rng = self.rng(what)
        carries = self.kernel.active_outputs()
        others = rec.outputs if ref is None else ref.outputs
        return tuple(
            self._frozen(_draw(rng, np.broadcast_shapes(y.shape, y0.shape), self.dtype))
            if c
            else None
            for c, y, y0 in zip(carries, rec.outputs, others, strict=True)
        )

    def _frozen(self, x: np.ndarray | None) -> np.ndarray | None:
        """Return a view that cannot be written to, in the layout of this subject."""
        if not isinstance(x, np.ndarray):
            return x
        x = self.layout(x).view()
        x.flags.writeable = False
        return x

    def agree(self, what: str, found: Any, expected: Any, scale: Any, tolerance: float) -> None:
        """Demand that two arrays agree, relative to the size of what was added up in them."""
        gap = np.max(np.abs(np.subtract(found, expected)) / np.maximum(scale, 1e-300), initial=0)
        if not gap <= tolerance:
            raise AssertionError(
                f"{self.label}, {what}: found {_short(found)}, expected {_short(expected)}, "
                f"relative gap {gap:.1e}, allowed {tolerance:.0e}"
            )

    def agree_signals(self, what: str, found: Signals, expected: Signals, tolerance: float) -> None:
        """Demand that signals have the same shapes and agree, relative to the largest element."""
        for i, (a, b) in enumerate(zip(_parts_of(found), _parts_of(expected), strict=True)):
            if (a is None) != (b is None) or (a is not None and a.shape != b.shape):
                raise AssertionError(
                    f"{self.label}, {what}: signal {i} has shape {np.shape(a)}, "
                    f"expected {np.shape(b)}"
                )
            if a is not None:
                self.agree(what, a, b, max(abs(b).max(initial=0), 1e-10), tolerance)


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return rng.normal(size=(OUTPUTS, *shape)).astype(dtype)


def _short(values: Any) -> str:
    values = np.asarray(values).ravel()
    text = ", ".join(f"{v:.12g}" for v in values[:4])
    return f"[{text}{', ...' if values.size > 4 else ''}]"


def _cast(inputs: Sequence[np.ndarray | None], dtype: Any) -> tuple:
    """Return floating point inputs in another type, as a model is cast."""
    return tuple(x if x is None or not is_float(x.dtype) else np.asarray(x, dtype) for x in inputs)


def _scattered(x: np.ndarray) -> np.ndarray:
    """Return a copy with gaps between its elements, and its first axis backwards in memory."""
    wide = np.zeros((*x.shape, 2), x.dtype)
    wide[..., 0] = x[::-1] if x.ndim else x
    return wide[::-1, ..., 0] if x.ndim else wide[..., 0]


def _parts_of(signals: Signals) -> Iterator[Any]:
    for s in signals:
        if isinstance(s, Pair):
            yield from (s.positive, s.negative)
        else:
            yield s


def _sum(a: Any) -> np.ndarray:
    """Sum over everything but the explained outputs."""
    return a.reshape(OUTPUTS, -1).sum(axis=1)


# -- gradient -------------------------------------------------------------------------------------


def _check_gradient(subject: _Subject) -> None:
    """Compare <J v, u> with <v, J' u>: J by differences, J' by the kernel."""
    kernel, rec = subject.kernel, subject.run()
    u, v = subject.signals(rec), subject.direction()
    back: Signals = kernel.gradient(rec, u)
    _check_shapes(subject, back)
    expected, found = 0.0, 0.0
    for g, dy in zip(u, _derivative(subject, v), strict=True):
        if g is not None:
            expected = expected + _sum(g * dy)
    for b, d in zip(back, v, strict=True):
        if b is not None:
            found = found + _sum(b * d)
    scale = sum(_sum(abs(b)) for b in back if b is not None)
    subject.agree("gradient against differences", found, expected, scale + 1e-10, 1e-8)
    blind = kernel.gradient(_unread(kernel, rec), u)
    subject.agree_signals(f"gradient that reads {kernel.reads or 'shapes'}", blind, back, 0.0)
    _check_types_and_layouts(subject, "gradient", _gradient)


def _unread(kernel: Kernel, rec: Record) -> Record:
    """Return a record without the numbers that gradients do not read."""
    inputs, outputs = rec
    if "inputs" not in kernel.reads:
        pairs = zip(inputs, kernel.active, strict=True)
        inputs = tuple(hollow(x) if a else x for x, a in pairs)
    if "outputs" not in kernel.reads:
        outputs = tuple(hollow(y) for y in outputs)
    return Record(inputs, outputs)


def _gradient(subject: _Subject) -> Signals:
    rec = subject.run()
    return subject.kernel.gradient(rec, subject.signals(rec))


def _derivative(subject: _Subject, v: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """Return J v for every output: central differences, extrapolated once (Richardson)."""

    def central(h: float) -> list[np.ndarray]:
        ahead, behind = (subject.run(subject.moved(s, v)).outputs for s in (h, -h))
        return [
            (a - b) / (2 * h) if c else np.zeros(())
            for a, b, c in zip(ahead, behind, subject.kernel.active_outputs(), strict=True)
        ]

    pairs = zip(central(STEP), central(STEP / 2), strict=True)
    return [(4 * fine - coarse) / 3 for coarse, fine in pairs]


def _check_shapes(subject: _Subject, back: Signals, optional: bool = False) -> None:
    """Each input with data gets a signal of its shape, the others none.

    `optional` lets an input with data go without: no relevance need go to a divisor.
    """
    wanted = [
        (OUTPUTS, *x.shape) if a else None
        for x, a in zip(subject.inputs, subject.kernel.active, strict=True)
    ]
    got = [None if b is None else b.shape for b in back]
    if optional and len(got) == len(wanted):
        wanted = [g and w for g, w in zip(got, wanted, strict=True)]
    if got != wanted:
        raise AssertionError(f"{subject.label}: signals of shapes {got}, expected {wanted}")


# -- DeepLIFT -------------------------------------------------------------------------------------


def _check_deeplift(subject: _Subject) -> None:
    rec, other = subject.run(), subject.run(subject.shuffled())
    close = subject.run(subject.moved(1e-9, subject.direction()))
    gradient = subject.kernel.gradient(rec, subject.signals(rec))
    for name, setting in DEEPLIFT.items():
        for paired in (False, True) if name == "RevealCancel" else (False,):
            case = _Contrast(subject, setting, paired, f"DeepLIFT {name}" + " of a pair" * paired)
            case.check_sum(rec, other, "two points")
            case.check_sum(rec, rec, "equal points")
            case.check_sum(close, rec, "nearly equal points")
            if setting.winner_takes_all:
                case.check_gradient(rec, rec, gradient, "equal points", 1e-12)
                case.check_gradient(close, rec, gradient, "nearly equal points", 1e-7)
            case.check_rows()
    for name, setting in DEEPLIFT.items():
        _check_types_and_layouts(subject, f"DeepLIFT {name}", lambda s, d=setting: _deeplift(s, d))


def _deeplift(subject: _Subject, setting: DeepLiftSetting) -> Signals:
    rec, ref = subject.run(), subject.run(subject.shuffled())
    m = subject.signals(rec, ref)
    return subject.kernel.deeplift(rec, ref, m, setting, _Parts(subject, rec, ref))


class _Parts:
    """Positive and negative parts of the differences of inputs, as a graph before would give."""

    def __init__(self, subject: _Subject, rec: Record, ref: Record, cancel: bool = True):
        self.subject, self.rec, self.ref, self.cancel = subject, rec, ref, cancel

    def __call__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        x, x0 = self.rec.inputs[i], self.ref.inputs[i]
        dx = x - x0
        more = self._cancelling(i, x, x0) if self.cancel else 0
        return positive(dx) + more, negative(dx) - more

    def _cancelling(self, i: int, x: Any, x0: Any) -> np.ndarray:
        """Return what both parts have more than the difference, without leaving the range of x."""
        x, x0 = np.broadcast_arrays(x, x0)
        room = np.minimum(x.max() - np.maximum(x, x0), np.minimum(x, x0) - x.min())
        share = self.subject.rng(f"parts {i}").uniform(0, 1, x.shape).astype(x.dtype)
        return np.where(x == x0, 0, share * positive(room)).astype(x.dtype)


class _Contrast:
    """DeepLIFT under one rule, with multipliers or pairs of multipliers coming in."""

    def __init__(self, subject: _Subject, setting: DeepLiftSetting, paired: bool, label: str):
        self.subject, self.setting, self.paired, self.label = subject, setting, paired, label

    def _split(self, rec: Record, ref: Record, parts: Any) -> tuple | None:
        return self.subject.kernel.difference_parts(rec, ref, parts) if self.paired else None

    def back(self, rec: Record, ref: Record, parts: Any, what: str = "signal") -> tuple | None:
        """Return the multipliers of outputs and inputs; None if no pair arrives here."""
        m = self.subject.signals(rec, ref, what)
        if self.paired:
            if self._split(rec, ref, parts) is None:
                return None
            second = self.subject.signals(rec, ref, f"second {what}")
            m = tuple(a if a is None else Pair(a, b) for a, b in zip(m, second, strict=True))
        return m, self.subject.kernel.deeplift(rec, ref, m, self.setting, parts)

    def check_sum(self, rec: Record, ref: Record, where: str) -> None:
        """Contributions of the inputs add up to those of the outputs."""
        parts = _Parts(self.subject, rec, ref)
        signals = self.back(rec, ref, parts)
        if signals is None or not self.subject.exact:
            return
        m, out = signals
        split = self._split(rec, ref, parts)
        came, size = _contributions(m, rec.outputs, ref.outputs, lambda i: split)
        went, spread = _contributions(out, rec.inputs, ref.inputs, parts)
        what = f"{self.label}, sum of contributions between {where}"
        self.subject.agree(what, went, came, size + spread + 1e-30, 1e-12)

    def check_gradient(
        self, rec: Record, ref: Record, gradient: Signals, where: str, tolerance: float
    ) -> None:
        """Both members of an equal pair, like a single multiplier, leave as the gradient."""
        kernel = self.subject.kernel
        parts = _Parts(self.subject, rec, ref, cancel=False)
        m = self.subject.signals(rec, ref)
        if self.paired:
            if self._split(rec, ref, parts) is None:
                return
            m = tuple(s if s is None else Pair(s, s) for s in m)
        out = kernel.deeplift(rec, ref, m, self.setting, parts)
        what = f"{self.label}, multipliers between {where} against the gradient"
        for side in ("positive", "negative"):
            found = tuple(getattr(s, side) if isinstance(s, Pair) else s for s in out)
            self.subject.agree_signals(what, found, gradient, tolerance)

    def check_rows(self) -> None:
        """One row against many is what the row repeated is."""
        subject = self.subject
        if not subject.rows:
            return
        many, others = subject.inputs, subject.shuffled()
        one = tuple(x[:1] if a else x for x, a in zip(others, subject.kernel.active, strict=True))
        n = max(x.shape[0] for x, a in zip(many, subject.kernel.active, strict=True) if a)
        repeated = tuple(
            np.repeat(x, n, axis=0) if a else x
            for x, a in zip(one, subject.kernel.active, strict=True)
        )
        many_run, one_run, repeated_run = map(subject.run, (many, one, repeated))
        for pair, whole, what in (
            ((many_run, one_run), (many_run, repeated_run), "one reference"),
            ((one_run, many_run), (repeated_run, many_run), "many references"),
        ):
            found, expected = (
                self.back(*p, _Parts(subject, *p, cancel=False)) for p in (pair, whole)
            )
            if found is not None and expected is not None:
                label = f"{self.label}, {what} against the repeated rows"
                subject.agree_signals(label, found[1], expected[1], 1e-12)


def _contributions(signals: Signals, x: Sequence, x0: Sequence, parts: Any) -> tuple:
    """Return multipliers times differences summed up, and the size of the terms."""
    total, size = np.zeros(OUTPUTS), np.zeros(OUTPUTS)
    for i, (s, a, b) in enumerate(zip(signals, x, x0, strict=False)):
        if s is None:
            continue
        multipliers = (s.positive, s.negative) if isinstance(s, Pair) else (s,)
        differences = parts(i) if isinstance(s, Pair) else (a - b,)
        for multiplier, difference in zip(multipliers, differences, strict=True):
            total = total + _sum(multiplier * difference)
            size = size + _sum(abs(multiplier) * (abs(a) + abs(b)))
    return total, size


# -- relevance and connection weights -------------------------------------------------------------


def _check_relevance(subject: _Subject) -> None:
    rec = subject.run()
    r = subject.signals(rec)
    for name, setting in RELEVANCE.items():
        note = Note(rows=False)
        with _refused_rules():
            back: Signals = subject.kernel.relevance(rec, r, setting, note)
            _check_shapes(subject, back, optional=True)
            came = [note.total(s) for s in r if s is not None]
            went = [note.total(s) for s in back if s is not None] + list(note.absorbed.values())
            size = sum(_sum(abs(s)) for s in (*r, *back) if s is not None)
            size = size + sum(map(abs, note.absorbed.values()))
            what = f"relevance, {name}: what went on or was absorbed"
            subject.agree(what, sum(went), sum(came), size, 1e-10)
            _check_types_and_layouts(
                subject, f"relevance, {name}", lambda s, setting=setting: _relevance(s, setting)
            )


@contextmanager
def _refused_rules() -> Iterator[None]:
    """A rule need not apply to every operator: then it is refused."""
    try:
        yield
    except RuleError:
        return


def _relevance(subject: _Subject, setting: LrpSetting) -> Signals:
    rec = subject.run()
    return subject.kernel.relevance(rec, subject.signals(rec), setting, None)


def _check_connection(subject: _Subject) -> None:
    for innsight in (False, True):
        setting = ConnectionSetting(innsight)
        _check_shapes(subject, _connection(subject, setting))
        _check_types_and_layouts(
            subject, "connection weights", lambda s, setting=setting: _connection(s, setting)
        )


def _connection(subject: _Subject, setting: ConnectionSetting) -> Signals:
    rec = subject.run()
    return subject.kernel.connection(rec, subject.signals(rec), setting)


# -- types and memory -----------------------------------------------------------------------------


def _check_types_and_layouts(
    subject: _Subject, what: str, walk: Callable[[_Subject], Signals]
) -> None:
    """Float32 stays float32, and the layout in memory does not matter."""
    single = subject.like(np.float32)
    with np.errstate(all="ignore"):  # numbers near the limits of float32 are not the question
        found = [*single.run().outputs, *_parts_of(walk(single))]
    for x in found:
        if x is not None and is_float(x.dtype) and x.dtype != np.float32:
            raise AssertionError(f"{subject.label}, {what}: float32 became {x.dtype}")
    scattered = subject.like(layout=_scattered)
    subject.agree_signals(f"{what}, another memory layout", walk(scattered), walk(subject), 1e-9)
