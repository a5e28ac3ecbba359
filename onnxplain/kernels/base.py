"""What a kernel is, and the table in which kernels are found."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import onnx

from ..arrays import Array, Shape
from ..errors import ArgumentError, UnsupportedOpError, listed, shown

Signals: TypeAlias = "tuple[Array | Pair | None, ...]"
Parts: TypeAlias = "Callable[[int], tuple[Array, Array] | None]"


class Record(NamedTuple):
    """What one node saw in one run."""

    inputs: tuple[Array | None, ...]
    outputs: tuple[Array | None, ...]


class Pair:
    """DeepLIFT multipliers of the positive and the negative part of a difference."""

    __slots__ = ("negative", "positive")

    def __init__(self, positive: Array, negative: Array):
        self.positive, self.negative = positive, negative

    def map(self, f: Callable[[Array], Array]) -> Pair:
        """Apply a linear map to both parts."""
        return Pair(f(self.positive), f(self.negative))

    def __add__(self, other: Array | Pair) -> Pair:
        p, n = (other.positive, other.negative) if isinstance(other, Pair) else (other, other)
        return Pair(self.positive + p, self.negative + n)

    __radd__ = __add__
    __array_ufunc__ = None  # array + Pair is ours to compute


class Note:
    """Collects what a node absorbed: sums per explained output (and row, where rows are axis 0)."""

    def __init__(self, rows: bool):
        self.rows = rows
        self.absorbed: dict[str, Array] = {}

    def total(self, signal: Array) -> Array:
        """Sum a signal over everything but outputs and rows."""
        return signal.sum(axis=tuple(range(2 if self.rows else 1, signal.ndim)))

    def add(self, what: str, signal: Array) -> None:
        """Book a signal that goes to no input under `what`."""
        self.absorbed[what] = self.absorbed.get(what, 0) + self.total(signal)


class Kernel:
    """One ONNX node, attributes bound. Pure: arrays in, arrays out, nothing kept between calls.

    Subclasses name their operator in the class statement, `class Relu(Elementwise, op="Relu")`,
    write `forward` with the inputs of the operator as parameters, and leave the rest to a family.
    Attributes stand on the instance under ONNX's names, with the defaults of ONNX's schema.
    """

    op: ClassVar[str] = ""
    domain: ClassVar[str] = ""
    family: ClassVar[str] = "constant"
    data: ClassVar[tuple[int, ...]] = ()  # positions of inputs that may carry data
    blocks: ClassVar[bool] = False  # takes data to numbers that no signal passes (Floor, Sign)
    activation: ClassVar[bool] = False  # may stand last and be left out of an explanation
    # The tensors with data whose numbers `gradient` reads; of the others it needs the shapes only.
    reads: ClassVar[tuple[str, ...]] = ("inputs", "outputs")
    # What an author has to write, and the method that can be written in the place of it.
    needs: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(
        cls, op: str | None = None, since: int = 1, domain: str = "", **unknown: Any
    ) -> None:
        super().__init_subclass__()
        if unknown:
            raise ArgumentError(
                f"class {cls.__name__}: a kernel has no {listed(unknown)}; give op, since, domain"
            )
        if "gradient" in vars(cls) and "reads" not in vars(cls):
            cls.reads = Kernel.reads  # that of the family is not what it was
        if op is not None:
            cls.op, cls.domain = op, "" if domain == "ai.onnx" else domain
            _check_complete(cls)
            _register(cls, since)

    if TYPE_CHECKING:  # attributes of the operator

        def __getattr__(self, name: str) -> Any: ...

    def __init__(
        self, attributes: Mapping[str, Any], active: tuple[bool, ...], n_outputs: int = 1
    ) -> None:
        self.active = active
        self.n_outputs = n_outputs
        vars(self).update(attributes)
        self.setup()

    def setup(self) -> None:
        """Check and prepare attributes once."""

    @classmethod
    def accepts(cls, active: tuple[bool, ...]) -> bool:
        """Tell whether this kernel serves a node with data on these inputs."""
        forward_only = cls.family == "constant"
        return forward_only or all(i in cls.data for i, a in enumerate(active) if a)

    def active_outputs(self) -> tuple[bool, ...]:
        """Tell which outputs carry data that can be explained."""
        carries = any(self.active) and self.family != "constant"
        return (carries,) + (False,) * (self.n_outputs - 1)

    # -- the four passes ------------------------------------------------------------------------

    def forward(self, *inputs: Array | None) -> Any:
        """Compute the outputs."""
        raise UnsupportedOpError(f"{self.op} has no forward pass")

    def gradient(self, rec: Record, g: Signals) -> Signals:
        """Take gradients from outputs to inputs."""
        raise UnsupportedOpError(f"{self.op} has no gradient")

    def relevance(self, rec: Record, r: Signals, rule: Any, note: Note | None) -> Signals:
        """Take relevances from outputs to inputs."""
        raise UnsupportedOpError(f"{self.op} has no relevance rule")

    def deeplift(self, rec: Record, ref: Record, m: Signals, rule: Any, parts: Parts) -> Signals:
        """Take multipliers from outputs to inputs."""
        raise UnsupportedOpError(f"{self.op} has no DeepLIFT rule")

    def connection(self, rec: Record, g: Signals, rule: Any) -> Signals:
        """Take products of weights from outputs to inputs; reads shapes and weights, no data."""
        raise UnsupportedOpError(f"{self.op} has no connection weights")

    def difference_parts(self, rec: Record, ref: Record, parts: Parts) -> Any:
        """Split the difference of the output into positive and negative part; None if it cannot."""
        return None

    def rounding(self, rec: Record) -> Array | None:
        """Return what rounding adds to the output: signals are those of the function without it."""
        return None

    # -- what a pass does here, in words ---------------------------------------------------------

    def describe(self, method: str) -> tuple[str, bool, str]:
        """Return rule, whether it keeps the method's promise exactly, and a remark."""
        if self.blocks and any(self.active):
            return ("none", False, "a step function: no signal passes")
        return ("none", True, "carries no data")

    # -- help for authors -------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """The one input that carries data."""
        return self.active.index(True) if any(self.active) else self.data[0]

    def at(self, i: int, signal: Any) -> Signals:
        """Return the signals of all inputs where only input `i` gets one."""
        return tuple(signal if j == i else None for j in range(len(self.active)))


def joint_shape(rec: Record, ref: Record | None, i: int) -> Shape:
    """Return the shape of input `i`, of input and reference together if there are two records."""
    shape = rec.inputs[i].shape
    return shape if ref is None else np.broadcast_shapes(shape, ref.inputs[i].shape)


# -- the table ------------------------------------------------------------------------------------

_REGISTRY: dict[tuple[str, str], list[tuple[int, type[Kernel]]]] = {}


def _register(cls: type[Kernel], since: int) -> None:
    """Put a kernel into the table; a class that is defined again takes the place of the former."""
    if not isinstance(since, int) or since < 1:
        raise ArgumentError(
            f"class {cls.__name__}: since is {shown(since)}, expected the version of the operator "
            "set from which on it holds"
        )
    entries = _REGISTRY.setdefault((cls.domain, cls.op), [])
    named = [(s, c.__module__, c.__qualname__) for s, c in entries]
    own = (since, cls.__module__, cls.__qualname__)
    if own in named:
        entries[named.index(own)] = (since, cls)
    elif cls.__module__.partition(".")[0] == __name__.partition(".")[0]:
        entries.append((since, cls))
    else:  # what a user writes goes before what is here already
        entries.insert(0, (since, cls))


def unregister(kernel: type[Kernel]) -> None:
    """Take a kernel out of the table, as a test does after itself.

    Parameters
    ----------
    kernel : type
        The class of the kernel; nothing happens if it is not in the table.

    Examples
    --------
    >>> from onnxplain.kernels import Elementwise, registered_ops, unregister
    >>> class Double(Elementwise, op="Double", domain="my.ops"):
    ...     def forward(self, x):
    ...         return 2 * x
    ...
    ...     def slope(self, x, y):
    ...         return 2.0
    >>> "my.ops.Double" in registered_ops()
    True
    >>> unregister(Double)
    >>> "my.ops.Double" in registered_ops()
    False
    """
    key = (kernel.domain, kernel.op)
    kept = [(since, cls) for since, cls in _REGISTRY.get(key, []) if cls is not kernel]
    if kept:
        _REGISTRY[key] = kept
    else:
        _REGISTRY.pop(key, None)


def _check_complete(cls: type[Kernel]) -> None:
    """Refuse a kernel that lacks what its family calls, or has it with too few parameters."""
    for name, caller in cls.needs.items():
        family = next(c for c in cls.__mro__ if name in vars(c).get("needs", {}))
        blank, written = getattr(family, name), getattr(cls, name)
        if written is not blank and callable(blank):
            _check_parameters(cls, name, blank, written)
        elif written is blank and getattr(cls, caller) is getattr(family, caller):
            what = f"{name}{_parameters(blank)}" if callable(blank) else name
            instead = f" (or {caller})" if caller != name else ""
            raise ArgumentError(f"class {cls.__name__} lacks {what}{instead}; see its family")


def _check_parameters(cls: type[Kernel], name: str, blank: Any, written: Any) -> None:
    """Refuse a method that cannot be called as the one it is written for."""
    asked = inspect.signature(blank).parameters.values()
    fixed = [p for p in asked if p.kind is not p.VAR_POSITIONAL]
    takes = inspect.signature(written)
    try:
        (takes.bind if len(fixed) == len(asked) else takes.bind_partial)(*fixed)
    except TypeError:
        raise ArgumentError(
            f"class {cls.__name__}: {name}{_parameters(written)} is called with "
            f"{_parameters(blank)}"
        ) from None


def _parameters(function: Any) -> str:
    """Return the parameters of a function without their types."""
    parameters = inspect.signature(function).parameters.values()
    return "(" + ", ".join("*" * (p.kind is p.VAR_POSITIONAL) + p.name for p in parameters) + ")"


def registered_ops() -> list[str]:
    """List the operators that have a kernel.

    Returns
    -------
    list of str
        Names, with their domain in front where it is not ONNX's own.

    Examples
    --------
    >>> from onnxplain.kernels import registered_ops
    >>> "Conv" in registered_ops()
    True
    """
    return sorted(f"{domain}.{op}" if domain else op for domain, op in _REGISTRY)


def versions(op: str, domain: str = "") -> list[int]:
    """Return the opset versions from which the kernels of an operator hold."""
    return sorted({since for since, _ in _REGISTRY.get((domain, op), [])})


def find(op: str, opset: int, active: tuple[bool, ...], domain: str = "") -> type[Kernel] | None:
    """Return the newest kernel class not newer than `opset` that takes data on these inputs."""
    fitting = [(s, c) for s, c in _REGISTRY.get((domain, op), []) if s <= opset]
    if not fitting:
        return None
    newest = max(s for s, _ in fitting)
    return next((c for s, c in fitting if s == newest and c.accepts(active)), None)


def schema_defaults(op: str, opset: int, domain: str = "") -> dict[str, Any]:
    """Return all attributes of an operator, with ONNX's defaults or None."""
    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return {}
    return {name: _default(attribute) for name, attribute in schema.attributes.items()}


def _default(attribute: Any) -> Any:
    value = attribute.default_value
    if value is None or value.type == onnx.AttributeProto.UNDEFINED:
        return None
    value = onnx.helper.get_attribute_value(value)
    if isinstance(value, list):
        return [v.decode() if isinstance(v, bytes) else v for v in value]
    return value.decode() if isinstance(value, bytes) else value
