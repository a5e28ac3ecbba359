"""LRP rules, DeepLIFT rules and the conventions around them: values that kernels are asked to use.

A rule for a linear kernel is modified inputs and weights, a denominator, and the kernel's own
`apply` and `vjp`; no rule knows an operator and no kernel knows a rule.
Letters: x input, w weights, b bias, z = y output, r relevance, s = r / z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
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


@dataclass(frozen=True)
class Guard:
    """What keeps denominators away from 0.

    Parameters
    ----------
    size : float, optional
        Added with the denominator's sign; by default 1e-6, in float64 1e-15.
    zeros_only : bool, default False
        Put in the place of exact zeros instead.
    """

    size: float | None = None
    zeros_only: bool = False

    def secure(self, z: Array, at_zero: float = 1.0) -> Array:
        """Return `z` away from 0; `at_zero` is the sign of 0."""
        size = stabiliser(z.dtype) if self.size is None else self.size
        if self.zeros_only:
            return namespace(z).where(z == 0, z.dtype.type(math.copysign(size, at_zero)), z)
        return stabilise(z, size, at_zero)


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


@dataclass(frozen=True, repr=False)
class LrpRule:
    """Base of all LRP rules.

    Parameters
    ----------
    zero_bias : bool, default False
        Leave the bias out, so that it absorbs nothing.
    guard : Guard, optional
        What keeps denominators away from 0.
    """

    name: ClassVar[str] = ""
    exact: ClassVar[bool] = True

    zero_bias: bool = field(default=False, kw_only=True)
    guard: Guard = field(default=Guard(), kw_only=True)

    def linear(
        self, kernel: Any, x: Array, w: Array, b: Array | None, z: Array, r: Array, note: Any
    ) -> Array:
        """Return the relevance of `x` where z = kernel.apply(x, w) + b has relevance `r`."""
        if self.zero_bias and b is not None:
            b, z = None, kernel.apply(x, w)  # z - b would cancel
        return self.share(kernel, x, w, b, z, r, note)

    def share(
        self, kernel: Any, x: Array, w: Array, b: Array | None, z: Array, r: Array, note: Any
    ) -> Array:
        """Do what `linear` says with the bias that the rule is to see."""
        raise RuleError(f"rule {self!r} cannot be used for {kernel.op}")

    def secure(self, z: Array) -> Array:
        """Return the sum `z` of contributions as the denominator that shares them."""
        return self.guard.secure(z)

    def __repr__(self) -> str:
        """Show parameters, and options where they differ from their defaults."""
        ordered = sorted(fields(self), key=lambda f: bool(f.kw_only))
        known = [(f, getattr(self, f.name)) for f in ordered]
        told = [f"{f.name}={v!r}" for f, v in known if not f.kw_only or v != f.default]
        return f"{type(self).__name__}({', '.join(told)})"


@dataclass(frozen=True, repr=False)
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

    def share(self, kernel, x, w, b, z, r, note):
        return x * kernel.vjp(_share(r, z, self.secure(z), b, note), x.shape, w)


@dataclass(frozen=True, repr=False)
class Epsilon(LrpRule):
    """LRP-epsilon: R_i = x_i sum_j w_ij R_j / (z_j + epsilon sign z_j).

    Parameters
    ----------
    epsilon : float, default 0.01
        The stabiliser, in units of the output of the layer; absorbs relevance of weak units.
    guard_zeros : bool, default False
        Where z is exactly 0 only the guard counts, not epsilon (as in innsight).
    zero_bias, guard
        As for every rule.

    Examples
    --------
    >>> Epsilon(0.1)
    Epsilon(epsilon=0.1)
    """

    epsilon: float = 0.01
    name: ClassVar[str] = "epsilon"
    guard_zeros: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _check_number("epsilon", self.epsilon, 0)

    def secure(self, z):
        least = stabiliser(z.dtype) if self.guard.size is None else 0.0
        if self.epsilon <= least:
            return self.guard.secure(z)
        d = stabilise(z, self.epsilon)
        return namespace(z).where(z == 0, self.guard.secure(z), d) if self.guard_zeros else d

    def share(self, kernel, x, w, b, z, r, note):
        return x * kernel.vjp(_share(r, z, self.secure(z), b, note), x.shape, w)


@dataclass(frozen=True, repr=False)
class AlphaBeta(LrpRule):
    """LRP-alpha-beta: positive contributions weighted by alpha, negative ones by beta = 1 - alpha.

    A unit without negative contributions returns alpha times its relevance: with alpha = 2, twice.
    The ledger shows it under "stabiliser".

    Parameters
    ----------
    alpha : float, default 0.5
        Weight of the positive part; 1 is the z-plus rule, 2 the common alpha2-beta1.
    whole_bias : bool, default False
        Count the bias in both denominators (as in iNNvestigate), not its positive part in the
        positive one and its negative part in the negative one.
    weights_only : bool, default False
        Take parts of the weights only, whatever the sign of the inputs, and all of the bias (as in
        captum); alpha must be 1.
    zero_bias, guard
        As for every rule.

    Examples
    --------
    >>> AlphaBeta(2).beta
    -1
    """

    alpha: float = 0.5
    name: ClassVar[str] = "alpha_beta"
    whole_bias: bool = field(default=False, kw_only=True)
    weights_only: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _check_number("alpha", self.alpha)
        if self.weights_only and self.alpha != 1:
            raise RuleError(f"weights_only needs alpha 1, got {self.alpha!r}")

    @property
    def beta(self) -> float:
        """Weight of the negative part."""
        return 1 - self.alpha

    def share(self, kernel, x, w, b, z, r, note):
        if self.weights_only:
            kept = kernel.map_weights(w, _kept)
            return _weighted(kernel, x, kept, b, r, self.guard, note)
        # Behind a ReLU nothing is negative: half of the products need not be computed.
        x_pos = positive(x) if may_hold(x > 0) else None
        x_neg = negative(x) if may_hold(x < 0) else None
        w_pos, w_neg = kernel.split(w)
        b_pos, b_neg = (b, b) if self.whole_bias else (_part(b, positive), _part(b, negative))
        parts = (
            (self.alpha, ((x_pos, w_pos), (x_neg, w_neg)), b_pos, 1.0),
            (self.beta, ((x_neg, w_pos), (x_pos, w_neg)), b_neg, -1.0),
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
        d = self.guard.secure(total, at_zero=sign)
        s = _share(r, total, d, b, note)
        return sum(u * kernel.vjp(s, u.shape, v) for u, v in terms)


@dataclass(frozen=True, repr=False)
class Gamma(LrpRule):
    """LRP-gamma, generalised to inputs of both signs: favours contributions of the output's sign.

    Its bias counts with the favoured contributions.

    Montavon et al. (2019), Layer-wise relevance propagation: an overview.

    Parameters
    ----------
    gamma : float, default 0.25
        How much the favoured contributions are raised; 0 is `Simple`, infinity z-plus.
    weights_only : bool, default False
        The original form for inputs that are not negative: raises positive weights, whatever the
        sign of inputs and outputs, and leaves the bias alone (as in captum).
    zero_bias, guard
        As for every rule.

    Examples
    --------
    >>> Gamma()
    Gamma(gamma=0.25)
    """

    gamma: float = 0.25
    name: ClassVar[str] = "gamma"
    weights_only: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _check_number("gamma", self.gamma, 0)

    def share(self, kernel, x, w, b, z, r, note):
        if self.weights_only:
            raised = kernel.map_weights(w, lambda v: v + self.gamma * _kept(v))
            return _weighted(kernel, x, raised, b, r, self.guard, note)
        x_pos, x_neg = positive(x), negative(x)
        w_pos, w_neg = kernel.split(w)
        up = (z > 0).astype(z.dtype)
        out = 0.0
        for side, u, v, part in ((up, x_pos, x_neg, positive), (1 - up, x_neg, x_pos, negative)):
            bias = None if b is None else b + self.gamma * part(b)
            favoured = _apply(kernel, u, w_pos) + _apply(kernel, v, w_neg)
            total = kernel.apply(x, w) + self.gamma * favoured
            total = total if bias is None else total + bias
            s = _share(r * side, total, self.guard.secure(total), bias, note)
            raised = u * _vjp(kernel, s, u, w_pos) + v * _vjp(kernel, s, v, w_neg)
            out = out + x * kernel.vjp(s, x.shape, w) + self.gamma * raised
        return out


@dataclass(frozen=True, repr=False)
class ZPlus(AlphaBeta):
    """The z-plus rule: positive contributions only; AlphaBeta with alpha = 1.

    Examples
    --------
    >>> ZPlus().beta
    0.0
    """

    alpha: float = 1.0
    name: ClassVar[str] = "z_plus"


@dataclass(frozen=True, repr=False)
class WSquare(LrpRule):
    """The w-squared rule for first layers: shares by squared weights, whatever the input.

    Examples
    --------
    >>> WSquare()
    WSquare()
    """

    name: ClassVar[str] = "w_square"

    def share(self, kernel, x, w, b, z, r, note):
        ones, squares = namespace(x).ones_like(x), kernel.map_weights(w, lambda v: v * v)
        bias = None if b is None else b * b
        return _weighted(kernel, ones, squares, bias, r, self.guard, note)


@dataclass(frozen=True, repr=False)
class Flat(LrpRule):
    """The flat rule for first layers: every input of a unit gets the same share.

    Examples
    --------
    >>> Flat()
    Flat()
    """

    name: ClassVar[str] = "flat"

    def share(self, kernel, x, w, b, z, r, note):
        ones, equal = namespace(x).ones_like(x), kernel.map_weights(w, lambda v: 0 * v + 1)
        return _weighted(kernel, ones, equal, None, r, self.guard, note)


def _kept(w: Any) -> Any:
    """Return max(w, 0), also of a number."""
    return 0.5 * (w + abs(w))


def _weighted(kernel, x, w, b, r, guard, note):
    """Share relevance by x w, both of one's own choice."""
    z = kernel.apply(x, w)
    z = z if b is None else z + b
    return x * kernel.vjp(_share(r, z, guard.secure(z), b, note), x.shape, w)


@dataclass(frozen=True, repr=False)
class ZBox(LrpRule):
    """The z-box rule for first layers whose inputs lie between two bounds (pixels).

    Parameters
    ----------
    low, high : float or sequence of float
        Smallest and largest possible value of what comes to the layer, one for all or one per
        channel (axis 1).
    zero_bias, guard
        As for every rule.

    Examples
    --------
    >>> ZBox(0, 1)
    ZBox(low=0, high=1)
    """

    low: Any
    high: Any
    name: ClassVar[str] = "z_box"

    def __post_init__(self) -> None:
        for bound in ("low", "high"):
            object.__setattr__(self, bound, _bound(bound, getattr(self, bound)))
        if np.any(np.asarray(self.low) > np.asarray(self.high)):
            raise RuleError(f"low must not be above high, got {self.low!r} and {self.high!r}")

    def share(self, kernel, x, w, b, z, r, note):
        w_pos, w_neg = kernel.split(w)
        low, high = _per_channel(self.low, x), _per_channel(self.high, x)
        total = kernel.apply(x, w) - _apply(kernel, low, w_pos) - _apply(kernel, high, w_neg)
        s = _share(r, total, self.guard.secure(total), None, note)
        return (
            x * kernel.vjp(s, x.shape, w)
            - low * _vjp(kernel, s, x, w_pos)
            - high * _vjp(kernel, s, x, w_neg)
        )


def _bound(name: str, value: Any) -> Any:
    """Return a bound as a number, or as a tuple with one per channel."""
    if np.ndim(value) == 0:
        _check_number(name, value)
        return value
    values = tuple(np.ravel(value).tolist())
    for v in values:
        _check_number(name, v)
    return values


def _per_channel(bound: Any, x: Array) -> Array:
    """Return an array like `x` filled with a bound."""
    xp = namespace(x)
    if not isinstance(bound, tuple):
        return xp.full_like(x, bound)
    if x.ndim < 2 or x.shape[1] != len(bound):
        raise RuleError(f"rule 'z_box' has {len(bound)} bounds for a tensor of shape {x.shape}")
    along = xp.asarray(bound, dtype=x.dtype).reshape(1, -1, *(1,) * (x.ndim - 2))
    return xp.broadcast_to(along, x.shape)


@dataclass(frozen=True, repr=False)
class Pass(LrpRule):
    """Hand relevance on unchanged; only where input and output have the same shape.

    Examples
    --------
    >>> Pass()
    Pass()
    """

    name: ClassVar[str] = "pass"

    def share(self, kernel, x, w, b, z, r, note):
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
    gates: str = "signal"  # what takes the relevance of a gated product, or "halves"

    def with_rule(self, rule: LrpRule) -> LrpSetting:
        """Return the same conventions with another rule."""
        return replace(self, rule=rule)


# -- DeepLIFT -------------------------------------------------------------------------------------


class DeepLiftRule:
    """Base of the DeepLIFT rules."""

    name: ClassVar[str] = ""
    splits: ClassVar[bool] = False  # asks for positive and negative parts of differences

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
    pseudocount: float | None = None  # added to parts closer to 0 than half of it (deeplift)
    name: ClassVar[str] = "reveal_cancel"
    splits: ClassVar[bool] = True

    def elementwise(self, kernel, xs, m, parts):
        if parts is None:
            return m * kernel.secant(*xs)
        x, y, x0, y0, *params = xs
        pos, neg = parts
        quotients = self.guarded_division or self.pseudocount is not None
        halves = self._quotients if quotients else self._secants
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

    def _quotients(self, kernel, x, y, x0, y0, pos, neg, params):
        if self.pseudocount is not None:
            count = x.dtype.type(self.pseudocount)
            pos = pos + count * (abs(pos) < 0.5 * count)
            # A part that is exactly 0 counts as positive there.
            neg = neg + count * (abs(neg) < 0.5 * count) * namespace(x).where(neg >= 0, 1, -1)
            y = kernel.value(x0 + pos + neg, *params)
        f_up, f_down = kernel.value(x0 + pos, *params), kernel.value(x0 + neg, *params)
        e = x.dtype.type(stabiliser(x.dtype))
        dy_pos = 0.5 * (f_up - y0 + y - f_down)
        dy_neg = 0.5 * (f_down - y0 + y - f_up)
        return dy_pos / (pos + e * (pos == 0)), dy_neg / (neg - e * (neg == 0))

    def __repr__(self) -> str:
        return "RevealCancel()"


@dataclass(frozen=True)
class QuotientRescale(Rescale):
    """Rescale as a quotient, and as a slope where input and reference hardly differ.

    What most libraries do; a quotient of close numbers loses their digits, which `Rescale` avoids.

    Parameters
    ----------
    near_zero : float, optional
        Differences up to it are hardly any, by default 1e-6, in float64 1e-15.
    slope_at : {"middle", "input", "reference"}, default "middle"
        Where the slope is taken.

    Examples
    --------
    >>> QuotientRescale(1e-7, "reference")
    QuotientRescale(near_zero=1e-07, slope_at='reference')
    """

    near_zero: float | None = None
    slope_at: str = "middle"

    def __post_init__(self) -> None:
        if self.near_zero is not None:
            _check_number("near_zero", self.near_zero, 0)
        if self.slope_at not in _SHARES:
            raise RuleError(f"slope_at must be one of {', '.join(_SHARES)}, got {self.slope_at!r}")

    def elementwise(self, kernel, xs, m, parts):
        x, y, x0, y0, *params = xs
        dx = x - x0
        tiny = abs(dx) <= (stabiliser(x.dtype) if self.near_zero is None else self.near_zero)
        point = x0 + _SHARES[self.slope_at] * dx
        slope = kernel.slope(point, kernel.value(point, *params), *params)
        quotient = divide(y - y0, namespace(x).where(tiny, 0, dx))
        return m * namespace(x).where(tiny, slope, quotient)


_SHARES = {"reference": 0.0, "middle": 0.5, "input": 1.0}  # of the way from reference to input


@dataclass(frozen=True)
class DeepLiftSetting:
    """How multipliers pass a node: the rule and the conventions for what is no activation."""

    rule: DeepLiftRule = Rescale()
    winner_takes_all: bool = True
    cross_maximum: bool = True  # else the first maximum of x, as innsight does; not exact
    elementwise_softmax: bool = False
    centred_softmax: bool = False  # elementwise, less the mean over each row (captum)
    moved_maxima_only: bool = False  # nothing to a maximum that does not differ (shap)


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
