"""LRP rules, DeepLIFT rules and the conventions around them: values that kernels are asked to use.

A rule for a linear kernel is modified inputs and weights, a denominator, and the kernel's own
`apply` and `vjp`; no rule knows an operator and no kernel knows a rule.
Letters: x input, w weights, b bias, z = y output, r relevance, s = r / z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from .arrays import Array, divide, may_hold, namespace, negative, positive, stabilise, stabiliser
from .errors import RuleError, shown
from .kernels.base import Note, Pair

# -- LRP ------------------------------------------------------------------------------------------


def _apply(kernel: Any, x: Array, w: Array | None) -> Array | float:
    return 0.0 if w is None else kernel.apply(x, w)


def _vjp(kernel: Any, s: Array, x: Array, w: Array | None) -> Array | float:
    return 0.0 if w is None else kernel.vjp(s, x.shape, w)


def _share(r: Array, z: Array, d: Array, b: Array | None, note: Note | None) -> Array:
    """Return r / d and book what bias `b` and stabiliser d - z keep."""
    s = r / d
    if note is not None:
        note.add("stabiliser", s * (d - z))
        if b is not None:
            note.add("bias", s * b)
    return s


def _part(bias: Array | None, part: Any) -> Array | None:
    return None if bias is None else part(bias)


def _check_number(name: str, value: Any, least: float = -math.inf) -> None:
    number = isinstance(value, (int, float, np.integer, np.floating))
    if not number or isinstance(value, bool) or not least <= value < math.inf:
        bound = "" if least == -math.inf else f" >= {least}"
        raise RuleError(f"{name} must be a number{bound}, got {shown(value)}")


class LrpRule:
    """Base of all LRP rules."""

    name: ClassVar[str] = ""
    exact: ClassVar[bool] = True

    def linear(
        self, kernel: Any, x: Array, w: Array, b: Array | None, z: Array, r: Array, note: Any
    ) -> Array:
        """Return the relevance of `x` where z = kernel.apply(x, w) + b has relevance `r`."""
        raise RuleError(f"rule {self!r} cannot be used for {kernel.op}")

    def stabiliser(self, dtype: Any) -> float:
        """Return the stabiliser this rule uses where contributions are shared."""
        return stabiliser(dtype)


@dataclass(frozen=True)
class Simple(LrpRule):
    """LRP-0: R_i = x_i sum_j w_ij R_j / z_j, only secured against division by zero.

    Bach et al. (2015), On pixel-wise explanations for non-linear classifier decisions by
    layer-wise relevance propagation.

    Examples
    --------
    >>> Simple()
    Simple()
    """

    name: ClassVar[str] = "simple"

    def linear(self, kernel, x, w, b, z, r, note):
        d = stabilise(z, self.stabiliser(z.dtype))
        return x * kernel.vjp(_share(r, z, d, b, note), x.shape, w)


@dataclass(frozen=True)
class Epsilon(LrpRule):
    """LRP-epsilon: R_i = x_i sum_j w_ij R_j / (z_j + epsilon sign z_j).

    Parameters
    ----------
    epsilon : float, default 0.01
        The stabiliser, in units of the output of the layer; absorbs relevance of weak units.

    Examples
    --------
    >>> Epsilon(0.1)
    Epsilon(epsilon=0.1)
    """

    epsilon: float = 0.01
    at_zero: float | None = None  # another stabiliser where z is exactly 0 (innsight)
    name: ClassVar[str] = "epsilon"

    def __post_init__(self) -> None:
        _check_number("epsilon", self.epsilon, 0)

    def stabiliser(self, dtype):
        return max(self.epsilon, stabiliser(dtype))

    def linear(self, kernel, x, w, b, z, r, note):
        d = stabilise(z, self.stabiliser(z.dtype))
        if self.at_zero is not None:
            d = namespace(z).where(z == 0, z.dtype.type(self.at_zero), d)
        return x * kernel.vjp(_share(r, z, d, b, note), x.shape, w)

    def __repr__(self) -> str:
        return f"Epsilon(epsilon={self.epsilon})"


@dataclass(frozen=True)
class AlphaBeta(LrpRule):
    """LRP-alpha-beta: positive contributions weighted by alpha, negative ones by beta = 1 - alpha.

    The positive part of the bias counts in the positive denominator, its negative part in the
    negative one (as in zennit and innsight). A unit without negative contributions returns alpha
    times its relevance: with alpha = 2, twice. The ledger shows it under "stabiliser".

    Parameters
    ----------
    alpha : float, default 0.5
        Weight of the positive part; 1 is the z-plus rule, 2 the common alpha2-beta1.

    Examples
    --------
    >>> AlphaBeta(2).beta
    -1
    """

    alpha: float = 0.5
    name: ClassVar[str] = "alpha_beta"

    def __post_init__(self) -> None:
        _check_number("alpha", self.alpha)

    @property
    def beta(self) -> float:
        """Weight of the negative part."""
        return 1 - self.alpha

    def linear(self, kernel, x, w, b, z, r, note):
        # Behind a ReLU nothing is negative: half of the products need not be computed.
        x_pos = positive(x) if may_hold(x > 0) else None
        x_neg = negative(x) if may_hold(x < 0) else None
        w_pos, w_neg = kernel.split(w)
        parts = (
            (self.alpha, ((x_pos, w_pos), (x_neg, w_neg)), _part(b, positive), 1.0),
            (self.beta, ((x_neg, w_pos), (x_pos, w_neg)), _part(b, negative), -1.0),
        )
        out = namespace(x, r).zeros((len(r), *x.shape), x.dtype)
        for weight, terms, bias, sign in parts:
            if weight != 0:
                terms = [(u, v) for u, v in terms if u is not None and v is not None]
                out = out + self._part(kernel, terms, bias, z, r * weight, sign, note)
        return out

    def _part(self, kernel, terms, b, z, r, sign, note):
        """The contributions of one sign: parts of x and parts of w whose product has it."""
        total = sum((kernel.apply(u, v) for u, v in terms), start=namespace(z).zeros_like(z))
        total = total if b is None else total + b
        d = stabilise(total, stabiliser(z.dtype), at_zero=sign)
        s = _share(r, total, d, b, note)
        return sum(u * kernel.vjp(s, u.shape, v) for u, v in terms)


@dataclass(frozen=True)
class Gamma(LrpRule):
    """LRP-gamma, generalised to inputs of both signs: favours contributions of the output's sign.

    Montavon et al. (2019), Layer-wise relevance propagation: an overview.

    Parameters
    ----------
    gamma : float, default 0.25
        How much the favoured contributions are raised; 0 is `Simple`, infinity z-plus.

    Examples
    --------
    >>> Gamma()
    Gamma(gamma=0.25)
    """

    gamma: float = 0.25
    name: ClassVar[str] = "gamma"

    def __post_init__(self) -> None:
        _check_number("gamma", self.gamma, 0)

    def linear(self, kernel, x, w, b, z, r, note):
        x_pos, x_neg = positive(x), negative(x)
        w_pos, w_neg = kernel.split(w)
        up = (z > 0).astype(z.dtype)
        out = 0.0
        for side, u, v, part in ((up, x_pos, x_neg, positive), (1 - up, x_neg, x_pos, negative)):
            bias = None if b is None else b + self.gamma * part(b)
            favoured = _apply(kernel, u, w_pos) + _apply(kernel, v, w_neg)
            total = kernel.apply(x, w) + self.gamma * favoured
            total = total if bias is None else total + bias
            d = stabilise(total, stabiliser(z.dtype))
            s = _share(r * side, total, d, bias, note)
            raised = u * _vjp(kernel, s, u, w_pos) + v * _vjp(kernel, s, v, w_neg)
            out = out + x * kernel.vjp(s, x.shape, w) + self.gamma * raised
        return out


@dataclass(frozen=True)
class ZPlus(AlphaBeta):
    """The z-plus rule: positive contributions only; AlphaBeta with alpha = 1.

    Examples
    --------
    >>> ZPlus().beta
    0.0
    """

    alpha: float = 1.0
    name: ClassVar[str] = "z_plus"


@dataclass(frozen=True)
class WSquare(LrpRule):
    """The w-squared rule for first layers: shares by squared weights, whatever the input.

    Examples
    --------
    >>> WSquare()
    WSquare()
    """

    name: ClassVar[str] = "w_square"

    def linear(self, kernel, x, w, b, z, r, note):
        ones, squares = namespace(x).ones_like(x), kernel.map_weights(w, lambda v: v * v)
        bias = None if b is None else b * b
        return _weighted(kernel, ones, squares, bias, r, note)


@dataclass(frozen=True)
class Flat(LrpRule):
    """The flat rule for first layers: every input of a unit gets the same share.

    Examples
    --------
    >>> Flat()
    Flat()
    """

    name: ClassVar[str] = "flat"

    def linear(self, kernel, x, w, b, z, r, note):
        ones, equal = namespace(x).ones_like(x), kernel.map_weights(w, lambda v: 0 * v + 1)
        return _weighted(kernel, ones, equal, None, r, note)


def _weighted(kernel, x, w, b, r, note):
    """Share relevance by x w, both of one's own choice."""
    z = kernel.apply(x, w)
    z = z if b is None else z + b
    d = stabilise(z, stabiliser(z.dtype))
    return x * kernel.vjp(_share(r, z, d, b, note), x.shape, w)


@dataclass(frozen=True)
class ZBox(LrpRule):
    """The z-box rule for first layers whose inputs lie between two bounds (pixels).

    Parameters
    ----------
    low, high : float
        Smallest and largest possible value of an input.

    Examples
    --------
    >>> ZBox(0, 1)
    ZBox(low=0, high=1)
    """

    low: float
    high: float
    name: ClassVar[str] = "z_box"

    def __post_init__(self) -> None:
        _check_number("low", self.low)
        _check_number("high", self.high)
        if self.low > self.high:
            raise RuleError(f"low must not be above high, got {self.low!r} and {self.high!r}")

    def linear(self, kernel, x, w, b, z, r, note):
        xp = namespace(x)
        w_pos, w_neg = kernel.split(w)
        low, high = xp.full_like(x, self.low), xp.full_like(x, self.high)
        total = kernel.apply(x, w) - _apply(kernel, low, w_pos) - _apply(kernel, high, w_neg)
        d = stabilise(total, stabiliser(z.dtype))
        s = _share(r, total, d, None, note)
        return (
            x * kernel.vjp(s, x.shape, w)
            - low * _vjp(kernel, s, x, w_pos)
            - high * _vjp(kernel, s, x, w_neg)
        )


@dataclass(frozen=True)
class Pass(LrpRule):
    """Hand relevance on unchanged; only where input and output have the same shape.

    Examples
    --------
    >>> Pass()
    Pass()
    """

    name: ClassVar[str] = "pass"

    def linear(self, kernel, x, w, b, z, r, note):
        if x.shape[1:] != z.shape[1:] or not kernel.diagonal:
            raise RuleError(
                f"rule 'pass' needs an operator that keeps each element in its place, "
                f"{kernel.op} takes {x.shape} to {z.shape}"
            )
        return r


@dataclass(frozen=True)
class LrpSetting:
    """How relevance passes a node: the rule and the conventions that are not linear layers'."""

    rule: LrpRule = Simple()
    winner_takes_all: bool = True
    equal_shares: bool = False  # Add and GlobalAveragePool as innsight has them
    elementwise_softmax: bool = False  # passed like any activation (innsight)

    def with_rule(self, rule: LrpRule) -> LrpSetting:
        """Return the same conventions with another rule."""
        return replace(self, rule=rule)


# -- DeepLIFT -------------------------------------------------------------------------------------


class DeepLiftRule:
    """Base of the DeepLIFT rules."""

    name: ClassVar[str] = ""

    def elementwise(self, kernel: Any, xs: Any, m: Array, parts: Any) -> Array | Pair:
        """Return the multiplier of x for y = f(x), from that of y."""
        raise NotImplementedError


@dataclass(frozen=True)
class Rescale(DeepLiftRule):
    """Multipliers pass a nonlinearity by its secant between input and reference.

    Shrikumar et al. (2017), Learning important features through propagating activation differences.

    Examples
    --------
    >>> Rescale()
    Rescale()
    """

    name: ClassVar[str] = "rescale"

    def elementwise(self, kernel, xs, m, parts):
        return m * kernel.secant(*xs)


@dataclass(frozen=True)
class RevealCancel(DeepLiftRule):
    """Positive and negative parts of a difference get secants of their own (Shapley of the two).

    Parts are split in the linear operator, or sum, that made the input of the nonlinearity, by the
    sign of each input's difference times its weight; elsewhere the rule is `Rescale`.

    Shrikumar et al. (2017), Learning important features through propagating activation differences.

    Examples
    --------
    >>> RevealCancel()
    RevealCancel()
    """

    guarded_division: bool = False  # divide by a tiny number where a part is 0 (innsight)
    name: ClassVar[str] = "reveal_cancel"

    def elementwise(self, kernel, xs, m, parts):
        if parts is None:
            return m * kernel.secant(*xs)
        x, y, x0, y0, *params = xs
        pos, neg = parts
        halves = self._quotients if self.guarded_division else self._secants
        return Pair(*(m * h for h in halves(kernel, x, y, x0, y0, pos, neg, params)))

    @staticmethod
    def _secants(kernel, x, y, x0, y0, pos, neg, params):
        """Secants over the four edges of the rectangle that the parts span: nothing cancels.

        A corner may lie where the function is not defined (a logarithm's): the rule is Rescale.
        """
        xp = namespace(x, x0)
        up, down = x0 + pos, x0 + neg
        plain = kernel.secant(x, y, x0, y0, *params)
        with np.errstate(all="ignore"):
            f_up, f_down = kernel.value(up, *params), kernel.value(down, *params)
            defined = xp.isfinite(f_up) & xp.isfinite(f_down)

            def mean(a, fa, b, fb):
                rise = kernel.secant(a, fa, x0, y0, *params)
                rest = kernel.secant(x, y, b, fb, *params)
                return xp.where(defined, 0.5 * (rise + rest), plain)

            return mean(up, f_up, down, f_down), mean(down, f_down, up, f_up)

    @staticmethod
    def _quotients(kernel, x, y, x0, y0, pos, neg, params):
        f_up, f_down = kernel.value(x0 + pos, *params), kernel.value(x0 + neg, *params)
        e = x.dtype.type(stabiliser(x.dtype))
        dy_pos = 0.5 * (f_up - y0 + y - f_down)
        dy_neg = 0.5 * (f_down - y0 + y - f_up)
        return dy_pos / (pos + e * (pos == 0)), dy_neg / (neg - e * (neg == 0))

    def __repr__(self) -> str:
        return "RevealCancel()"


@dataclass(frozen=True)
class MidpointRescale(Rescale):
    """Rescale as innsight computes it: quotients, and the slope at the midpoint where tiny."""

    def elementwise(self, kernel, xs, m, parts):
        x, y, x0, y0, *params = xs
        dx, e = x - x0, stabiliser(x.dtype)
        tiny = abs(dx) <= e
        middle = (x + x0) / 2
        slope = kernel.slope(middle, kernel.value(middle, *params), *params)
        quotient = divide(y - y0, namespace(x).where(tiny, 0, dx))
        return m * namespace(x).where(tiny, slope, quotient)


@dataclass(frozen=True)
class DeepLiftSetting:
    """How multipliers pass a node: the rule and the conventions for what is no activation."""

    rule: DeepLiftRule = Rescale()
    winner_takes_all: bool = True
    cross_maximum: bool = True  # else the first maximum of x, as innsight does; not exact
    elementwise_softmax: bool = False


@dataclass(frozen=True)
class ConnectionSetting:
    """How products of weights pass a node."""

    innsight: bool = False  # halves through Add, first cell of a max-pool window


# -- names ----------------------------------------------------------------------------------------

LRP_RULES: dict[str, type[LrpRule]] = {
    rule.name: rule
    for rule in (Simple, Epsilon, AlphaBeta, Gamma, ZPlus, WSquare, Flat, ZBox, Pass)
}
DEEPLIFT_RULES: dict[str, type[DeepLiftRule]] = {r.name: r for r in (Rescale, RevealCancel)}
