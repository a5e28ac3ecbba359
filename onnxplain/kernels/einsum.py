"""Sums of products over named axes.

Every signal goes back by the same notation with its terms swapped. Axes that the other operands
and the output do not tell (summed over, or a diagonal) are told by ones and unit matrices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from string import ascii_letters

import numpy as np

from ..arrays import Array, Shape, checked_shape, is_float, namespace, unbroadcast
from ..errors import ModelError, shown
from .expanded import Expanded
from .families import Linear, Product

_DOTS = "..."


@cache
def terms_of(equation: str, n_operands: int) -> tuple[tuple[str, ...], str]:
    """Return the terms of the operands and that of the output, checked."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    inputs = tuple(left.split(","))
    _check(equation, [*inputs, output])
    if len(inputs) != n_operands:
        raise ModelError(f"the equation {shown(equation)} does not fit {n_operands} inputs")
    if not arrow:
        output = _implied(inputs)
    letters = output.replace(_DOTS, "")
    if len(set(letters)) < len(letters) or not set(letters) <= set("".join(inputs)):
        raise ModelError(
            f"the output of the equation {shown(equation)} must name axes of the inputs, each once"
        )
    return inputs, output


def _check(equation: str, terms: Iterable[str]) -> None:
    for term in terms:
        letters = term.replace(_DOTS, "", 1)
        if not all(c in ascii_letters for c in letters):
            raise ModelError(
                f"the equation {shown(equation)} must be letters, commas, one ellipsis per term "
                "and at most one arrow"
            )


def _implied(inputs: Sequence[str]) -> str:
    """Return the output of an equation without an arrow: axes that are named once, in order."""
    count = Counter("".join(inputs).replace(_DOTS, ""))
    front = _DOTS if any(_DOTS in term for term in inputs) else ""
    return front + "".join(sorted(c for c, n in count.items() if n == 1))


class Einsum:
    """What both kernels share: the equation with the axes of its ellipses named."""

    def setup(self) -> None:
        terms_of(self.equation, len(self.active))

    def _named(self, ranks: Sequence[int]) -> tuple[tuple[str, ...], str]:
        """Return all terms with letters in the place of ellipses, for operands of these ranks."""
        inputs, output = terms_of(self.equation, len(ranks))
        unused = [c for c in ascii_letters if c not in self.equation]
        width = max(
            (
                n - len(t.replace(_DOTS, ""))
                for n, t in zip(ranks, inputs, strict=True)
                if _DOTS in t
            ),
            default=0,
        )
        if not 0 <= width <= len(unused):
            raise ModelError(f"the equation {shown(self.equation)} does not fit ranks {ranks}")
        dots = "".join(unused[:width])
        named = tuple(
            t.replace(_DOTS, dots[width - n + len(t) - len(_DOTS) :])
            for n, t in zip(ranks, inputs, strict=True)
        )
        if any(len(t) != n for n, t in zip(ranks, named, strict=True)):
            raise ModelError(f"the equation {shown(self.equation)} does not fit ranks {ranks}")
        return named, output.replace(_DOTS, dots)

    def _contract(self, *operands: Array) -> Array:
        inputs, output = self._named([v.ndim for v in operands])
        sizes = _sizes(inputs, [v.shape for v in operands])
        checked_shape([sizes[c] for c in output])
        equation, dtype = f"{','.join(inputs)}->{output}", operands[0].dtype
        if is_float(dtype) and dtype.kind != "f":  # bfloat16: NumPy has no sums of it
            operands = tuple(v.astype(np.float32) for v in operands)
        y = namespace(*operands).einsum(equation, *operands, optimize=len(operands) > 1)
        return y.astype(dtype, copy=False)

    def _send(self, g: Array, i: int, shapes: Sequence[Shape], others: Sequence[Array]) -> Array:
        """Send a signal back to operand `i`; `others` are the other operands."""
        inputs, output = self._named([len(s) for s in shapes])
        rows = next(c for c in ascii_letters if c not in "".join([*inputs, output]))
        sizes = _sizes(inputs, shapes)
        terms = [rows + output, *(t for j, t in enumerate(inputs) if j != i)]
        target, diagonals = _apart(inputs[i], set(rows) | sizes.keys())
        told = set("".join([*terms, *diagonals]))
        operands, xp = [g, *others], namespace(g)
        for term in (*diagonals, *(c for c in target if c not in told)):
            full = (sizes[term[0]],)
            tell = xp.eye(*full, dtype=g.dtype) if len(term) == 2 else xp.ones(full, g.dtype)
            terms, operands = [*terms, term], [*operands, tell]
        equation = f"{','.join(terms)}->{rows}{target}"
        back = xp.einsum(equation, *operands, optimize=True)
        return unbroadcast(back.astype(g.dtype, copy=False), shapes[i])


def _sizes(inputs: Sequence[str], shapes: Sequence[Shape]) -> dict[str, int]:
    """Return the length of each axis; one of length 1 broadcasts."""
    sizes: dict[str, int] = {}
    for term, shape in zip(inputs, shapes, strict=True):
        for letter, n in zip(term, shape, strict=True):
            known = sizes.get(letter, 1)
            if n not in (1, known) and known != 1:
                raise ModelError(f"axis {letter!r} has length {known} here and {n} there")
            sizes[letter] = known if n == 1 else n
    return sizes


def _apart(term: str, taken: set[str]) -> tuple[str, list[str]]:
    """Give repeated axes of a term names of their own, and return those that are equal."""
    free = (c for c in ascii_letters if c not in taken)
    new, equal = "", []
    for letter in term:
        if letter in new:
            other = next(free)
            equal.append(letter + other)
            letter = other
        new += letter
    return new, equal


class EinsumLinear(Einsum, Linear, op="Einsum", since=12):
    """y = the sums of products of one or two tensors, one of them with data."""

    data = (0, 1)

    @classmethod
    def accepts(cls, active):
        return len(active) <= 2 and sum(active) <= 1

    def operand(self, inputs):
        i = self.position
        return inputs[i], inputs[1 - i] if len(inputs) == 2 else 1.0, None

    def _ordered(self, x, w):
        if isinstance(w, int | float):
            return (x,)
        return (w, x) if self.position else (x, w)

    def apply(self, x, w):
        y = self._contract(*self._ordered(x, w))
        return y * w if isinstance(w, int | float) and w != 1 else y

    def vjp(self, g, shape, w):
        if isinstance(w, int | float):
            return self._send(g if w == 1 else g * w, 0, [shape], [])
        shapes = [w.shape, shape] if self.position else [shape, w.shape]
        return self._send(g, self.position, shapes, [w])


class EinsumProduct(Einsum, Product, op="Einsum", since=12):
    """y = the sums of products of two tensors, both with data."""

    @classmethod
    def accepts(cls, active):
        return len(active) == 2 and all(active)

    def forward(self, a, b):
        return self._contract(a, b)

    def back(self, g, a, b, shapes):
        return self._send(g, 0, [shapes[0], b.shape], [b]), self._send(
            g, 1, [a.shape, shapes[1]], [a]
        )


class EinsumChain(Expanded, op="Einsum", since=12):
    """Three or more tensors: two at a time, from the left."""

    main = "Einsum"
    opset = 12

    @classmethod
    def accepts(cls, active):
        return len(active) > 2

    def expand(self, writer):
        *steps, last = self._steps(len(writer.inputs))
        so_far = writer.inputs[0]
        for x, equation in zip(writer.inputs[1:], steps, strict=False):
            so_far = writer.node("Einsum", so_far, x, equation=equation)
        writer.node("Einsum", so_far, writer.inputs[-1], output=writer.outputs[0], equation=last)

    def _steps(self, n: int) -> Iterator[str]:
        """Yield an equation for each tensor after the first; axes go when nothing needs them."""
        (so_far, *rest), output = terms_of(self.equation, n)
        for k, term in enumerate(rest, 1):
            wanted = set("".join([*rest[k:], output]))
            letters = dict.fromkeys((so_far + term).replace(_DOTS, ""))
            dots = _DOTS if _DOTS in so_far + term else ""
            made = dots + "".join(c for c in letters if c in wanted)
            made = made if k < len(rest) else output
            yield f"{so_far},{term}->{made}"
            so_far = made
