"""Translate an elementwise R function, such as log(1 + exp(x)), to ONNX; nothing is evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from onnxplain.errors import ModelError

from .network import Network
from .rds import DeferredStrings, Pair, RObject, Symbol

MAX_DEPTH = 100
MAX_STEPS = 5_000  # of a translation; cells of byte code may be shared many times over

_COMMUTATIVE = {"+", "*", "pmax", "pmin", "&", "|", "==", "!="}
_COMPARISONS = {"<": "Less", "<=": "LessOrEqual", "==": "Equal"}
_LOGICAL = {"&": "And", "|": "Or"}
_ARITHMETIC = {"+": "Add", "-": "Sub", "*": "Mul", "/": "Div", "^": "Pow",
               "pmax": "Max", "pmin": "Min"}  # fmt: skip
_FUNCTIONS = {"neg": "Neg", "exp": "Exp", "log": "Log", "tanh": "Tanh", "sqrt": "Sqrt",
              "abs": "Abs", "sign": "Sign", "erf": "Erf", "sigmoid": "Sigmoid",
              "softplus": "Softplus", "relu": "Relu"}  # fmt: skip
# Names of the arguments of R's functions, for calls that name them.
_ARGUMENTS = {"ifelse": ("test", "yes", "no"), "log": ("x", "base"), "plogis": ("q",),
              "pnorm": ("q",)}  # fmt: skip
_FOLDED: dict[str, Callable[..., Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "^": math.pow,
    "neg": lambda a: -a,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "abs": abs,
}
KNOWN = (
    "+ - * / ^, comparisons, & | !, ifelse, pmax, pmin, exp, expm1, log, log1p, log2, log10, sqrt, "
    "abs, sign, sinh, cosh, tanh, plogis, pnorm, and local variables"
)


class Terms:
    """Terms over one variable as numbers: equal terms get the same number."""

    def __init__(self) -> None:
        self.terms: list[tuple] = []
        self._numbers: dict[tuple, int] = {}
        self.x = self._number(("x",))

    def _number(self, term: tuple) -> int:
        if term not in self._numbers:
            self._numbers[term] = len(self.terms)
            self.terms.append(term)
        return self._numbers[term]

    def constant(self, value: float) -> int:
        return self._number(("constant", float(value)))

    def value(self, term: int) -> float | None:
        """Return the value of a constant."""
        return self.terms[term][1] if self.terms[term][0] == "constant" else None

    def make(self, op: str, *args: int | float) -> int:
        """Return the term op(args), in one form for several spellings; floats are constants."""
        terms = [a if type(a) is int else self.constant(a) for a in args]
        if op in (">", ">="):
            return self.make(op.replace(">", "<"), *reversed(terms))
        values = [self.value(t) for t in terms]
        if op in _FOLDED and None not in values:
            try:
                return self.constant(_FOLDED[op](*values))
            except (ArithmeticError, ValueError):
                pass  # 1 / 0 is Inf in R: left to the graph
        if op == "*" and -1.0 in values:
            return self.make("neg", terms[1 - values.index(-1.0)])
        return self._number((op, *(sorted(terms) if op in _COMMUTATIVE else terms)))


# -- from R's expression to terms -----------------------------------------------------------------


def read_function(closure: Any, terms: Terms) -> int:
    """Return the term that an R function of one argument computes."""
    if not isinstance(closure, RObject) or closure.kind != "closure":
        raise ModelError(f"the activation function must be an R function, got {closure!r}")
    formals, body, environment = closure.value
    if isinstance(body, RObject) and body.kind == "bytecode":
        if not body.value:
            raise ModelError("the activation function's byte code has lost its expression")
        body = body.value[0]
    arguments = list(formals) if isinstance(formals, Pair) else []
    if not arguments:
        raise ModelError("the activation function takes no argument, expected function(x)")
    translation = _Translation(terms, environment)
    translation.scope[arguments[0][0]] = terms.x
    for name, default in arguments[1:]:
        if not _is_missing(default):
            translation.scope[name] = translation.term(default)
    return translation.term(body)


def _is_missing(value: Any) -> bool:
    return isinstance(value, RObject) and value.kind == "missing"


class _Translation:
    def __init__(self, terms: Terms, environment: Any) -> None:
        self.terms, self.environment = terms, environment
        self.scope: dict[str | None, int] = {}
        self.steps = 0

    def term(self, expression: Any, depth: int = 0) -> int:
        self.steps += 1
        if depth > MAX_DEPTH or self.steps > MAX_STEPS:
            raise ModelError("the activation function is too long to be translated; simplify it")
        if isinstance(expression, Symbol):
            return self._variable(expression.name)
        if isinstance(expression, Pair) and expression.kind == "call":
            return self._call(expression, depth + 1)
        return self.terms.constant(_scalar(expression))

    def _variable(self, name: str) -> int:
        if name in self.scope:
            return self.scope[name]
        bound = self._bound(name)
        if bound is not None:
            return self.terms.constant(_scalar(bound, name))
        known = {"pi": math.pi, "T": 1.0, "F": 0.0}
        if name not in known:
            raise ModelError(
                f"the activation function uses {name[:40]!r}, whose value is not in the file; "
                "write the number into the function"
            )
        return self.terms.constant(known[name])

    def _bound(self, name: str) -> Any:
        """Return what an enclosing environment binds to a name."""
        seen, environment = set(), self.environment
        while isinstance(environment, RObject) and environment.kind == "environment":
            if id(environment) in seen:
                break
            seen.add(id(environment))
            if name in environment.value:
                return environment.value[name]
            environment = environment.value.get("")
        return None

    def _call(self, call: Pair, depth: int) -> int:
        function, *rest = call
        head = function[1]
        if not isinstance(head, Symbol):
            raise ModelError("the activation function calls something that is no named function")
        name, arguments = head.name, rest
        if name == "{":
            return self._block([value for _, value in arguments], depth)
        if name == "return" and len(arguments) == 1 and depth == 1:
            return self.term(arguments[0][1], depth)
        values = [self.term(value, depth) for value in _in_order(name, arguments)]
        return self._function(name, values)

    def _block(self, statements: list, depth: int) -> int:
        """Assignments followed by a value."""
        result = None
        for i, statement in enumerate(statements):
            last = i == len(statements) - 1
            target = _assigned(statement)
            if target:
                result = self.scope[target[0]] = self.term(target[1], depth)
            elif last:
                result = self.term(statement, depth - 1)  # so that return() counts as outermost
            else:
                raise ModelError(
                    "the activation function has a statement that is neither an assignment nor "
                    "its last value"
                )
        if result is None:
            raise ModelError("the activation function is empty")
        return result

    def _function(self, name: str, values: list[int]) -> int:
        n, make = len(values), self.terms.make
        if name in ("pmax", "pmin") and n >= 2:
            return make(name, *values)
        rewrite = _REWRITTEN.get((name, n))
        if rewrite:
            return rewrite(make, *values)
        raise ModelError(
            f"the activation function uses {name[:40]!r} with {n} arguments, which is not "
            f"translated; known are {KNOWN}"
        )


def _assigned(statement: Any) -> tuple[str, Any] | None:
    """Return name and expression of an assignment."""
    parts = [value for _, value in statement] if isinstance(statement, Pair) else []
    if len(parts) != 3 or not all(isinstance(p, Symbol) for p in parts[:2]):
        return None
    return (parts[1].name, parts[2]) if parts[0].name in ("<-", "=") else None


def _in_order(name: str, arguments: list[tuple[str | None, Any]]) -> list[Any]:
    """Return arguments by position, named ones put into place."""
    arguments = [(tag, value) for tag, value in arguments if tag != "na.rm"]
    if all(tag is None for tag, _ in arguments):
        return [value for _, value in arguments]
    formals = _ARGUMENTS.get(name, ("x",))
    named = {tag: value for tag, value in arguments if tag is not None}
    unnamed = iter([value for tag, value in arguments if tag is None])
    if not set(named) <= set(formals):
        raise ModelError(
            f"the activation function calls {name[:40]!r} with an argument "
            f"{sorted(set(named) - set(formals))[0][:40]!r}, which is not translated"
        )
    placed = [named[f] if f in named else next(unnamed, None) for f in formals[: len(arguments)]]
    if any(value is None for value in placed):
        raise ModelError(f"the activation function calls {name[:40]!r} without all its arguments")
    return placed


def _scalar(value: Any, name: str = "") -> float:
    """Return the number of an R vector of length one."""
    number = None
    if isinstance(value, RObject) and value.kind in ("double", "integer", "logical"):
        number = value.value[0] if len(value.value) == 1 else None
    if number is None or number == -(2**31) or not np.isfinite(number):
        what = f"{name[:40]!r}, which is no" if name else f"{_kind(value)} where a"
        raise ModelError(f"the activation function uses {what} single number")
    return float(number)


def _kind(value: Any) -> str:
    if isinstance(value, (RObject, Pair)):
        return f"a {value.kind}"
    return "a text" if isinstance(value, (str, DeferredStrings)) else "NULL"


# Functions of R by name and number of arguments, in terms of a few.
_REWRITTEN: dict[tuple[str, int], Callable[..., int]] = {
    **{(op, 2): (lambda make, a, b, op=op: make(op, a, b))
       for op in ("+", "-", "*", "/", "^", "<", "<=", ">", ">=", "==", "&", "|")},
    **{(op, 1): (lambda make, a, op=op: make(op, a))
       for op in ("exp", "log", "tanh", "sqrt", "abs", "sign", "!")},
    ("(", 1): lambda make, a: a,
    ("+", 1): lambda make, a: a,
    ("-", 1): lambda make, a: make("neg", a),
    ("!=", 2): lambda make, a, b: make("!", make("==", a, b)),
    ("ifelse", 3): lambda make, test, yes, no: make("ifelse", test, yes, no),
    ("log", 2): lambda make, a, base: make("/", make("log", a), make("log", base)),
    ("log1p", 1): lambda make, a: make("log", make("+", 1.0, a)),
    ("log2", 1): lambda make, a: make("/", make("log", a), math.log(2)),
    ("log10", 1): lambda make, a: make("/", make("log", a), math.log(10)),
    ("expm1", 1): lambda make, a: make("-", make("exp", a), 1.0),
    ("sinh", 1): lambda make, a: make(
        "/", make("-", make("exp", a), make("exp", make("neg", a))), 2.0),
    ("cosh", 1): lambda make, a: make(
        "/", make("+", make("exp", a), make("exp", make("neg", a))), 2.0),
    ("plogis", 1): lambda make, a: make("sigmoid", a),
    ("pnorm", 1): lambda make, a: make(
        "/", make("+", 1.0, make("erf", make("/", a, math.sqrt(2)))), 2.0),
}  # fmt: skip


# -- whole activations ----------------------------------------------------------------------------


def _spellings(terms: Terms) -> dict[int, str]:
    """Return terms that compute a known activation, which as one node does not overflow."""
    make, x = terms.make, terms.x
    e, minus_e = make("exp", x), make("exp", make("neg", x))
    e2, minus_e2 = make("exp", make("*", 2.0, x)), make("exp", make("*", -2.0, x))
    positive = [make(op, 0.0, x) for op in ("<", "<=")]
    negative = [make(op, x, 0.0) for op in ("<", "<=")]
    softplus = [make("log", make("+", 1.0, e))]
    sigmoid = [make("/", 1.0, make("+", 1.0, minus_e)), make("/", e, make("+", 1.0, e))]
    tanh = [
        make("/", make("-", e, minus_e), make("+", e, minus_e)),
        make("-", make("/", 2.0, make("+", 1.0, minus_e2)), 1.0),
        make("/", make("-", 1.0, minus_e2), make("+", 1.0, minus_e2)),
        make("/", make("-", e2, 1.0), make("+", e2, 1.0)),
    ]
    relu = [
        make("pmax", 0.0, x),
        make("/", make("+", x, make("abs", x)), 2.0),
        *(make("ifelse", test, x, 0.0) for test in positive),
        *(make("ifelse", test, 0.0, x) for test in negative),
        *(make("*", x, test) for test in positive),
    ]
    kinds = {"softplus": softplus, "sigmoid": sigmoid, "tanh": tanh, "relu": relu}
    return {term: op for op, spelled in kinds.items() for term in spelled}


def _with_slope(terms: Terms, term: int) -> tuple[str, float] | None:
    """Return LeakyRelu or Elu and its parameter if the term is one of them."""
    make, x = terms.make, terms.x
    for a in {t[1] for t in terms.terms if t[0] == "constant"}:
        below = {"LeakyRelu": make("*", a, x), "Elu": make("*", a, make("-", make("exp", x), 1.0))}
        for op, value in below.items():
            found = [make("ifelse", make(c, 0.0, x), x, value) for c in ("<", "<=")]
            found += [make("ifelse", make(c, x, 0.0), value, x) for c in ("<", "<=")]
            if op == "LeakyRelu" and a <= 1:
                found.append(make("pmax", x, value))
            if term in found:
                return op, a
    return None


# -- from terms to ONNX ---------------------------------------------------------------------------


def activation(closure: Any) -> Callable[[Network, str, str], str]:
    """Return a function (network, x, name) that adds the nodes of an R function."""
    terms = Terms()
    term = read_function(closure, terms)
    if terms.value(term) is not None:
        raise ModelError("the activation function does not depend on its argument")
    parameter = _with_slope(terms, term)
    known = _spellings(terms)

    def add(network: Network, x: str, name: str) -> str:
        # ONNX keeps such parameters in float32 only; others are written out.
        if parameter and float(np.float32(parameter[1])) == parameter[1]:
            return network.node(parameter[0], x, name=name, alpha=parameter[1])
        return _Writer(network, terms, known, x).number(term)

    return add


class _Writer:
    """Adds the nodes of terms to a network, each term once."""

    def __init__(self, network: Network, terms: Terms, known: dict[int, str], x: str) -> None:
        self.network, self.terms, self.known = network, terms, known
        self.written = {terms.x: x}

    def number(self, term: int) -> str:
        """Return the tensor of a term; truth values count as 0 and 1."""
        if not self._is_truth(term):
            return self._tensor(term)
        return self.network.node("Cast", self._tensor(term), to=11)  # DOUBLE

    def truth(self, term: int) -> str:
        """Return the tensor of a condition; numbers count as true unless 0."""
        if self._is_truth(term):
            return self._tensor(term)
        zero = self.network.node("Equal", self._tensor(term), self.network.constant(0.0))
        return self.network.node("Not", zero)

    def _is_truth(self, term: int) -> bool:
        return self.terms.terms[term][0] in (*_COMPARISONS, *_LOGICAL, "!")

    def _tensor(self, term: int) -> str:
        if term not in self.written:
            self.written[term] = self._write(term)
        return self.written[term]

    def _write(self, term: int) -> str:
        op, *args = self.terms.terms[term]
        if term in self.known:
            return self.network.node(_FUNCTIONS[self.known[term]], self.written[self.terms.x])
        if op == "constant":
            return self.network.constant(args[0])
        if op == "ifelse":
            return self.network.node(
                "Where", self.truth(args[0]), self.number(args[1]), self.number(args[2])
            )
        if op == "!" or op in _LOGICAL:
            return self.network.node(_LOGICAL.get(op, "Not"), *map(self.truth, args))
        table = {**_COMPARISONS, **_ARITHMETIC, **_FUNCTIONS}
        return self.network.node(table[op], *map(self.number, args))
