"""What other libraries do where papers leave it open: one table per method, read by `like=`.

Values only: methods hand them to kernels as rules and settings, and no kernel knows a library.
`None` stands for our own conventions. A library without an entry does not have the method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Final

import numpy as np

from .arrays import Array, namespace
from .errors import ArgumentError, shown
from .presets import (
    ELEMENTWISE,
    OTHER,
    PRESETS,
    Composite,
    EpsilonAlpha2Beta1,
    EpsilonAlpha2Beta1Flat,
    EpsilonPlus,
    EpsilonPlusFlat,
    ExcitationBackprop,
    Layers,
)
from .rules import (
    LRP_RULES,
    AlphaBeta,
    ConnectionSetting,
    DeepLiftRule,
    DeepLiftSetting,
    Epsilon,
    Flat,
    Gamma,
    Guard,
    LrpRule,
    LrpSetting,
    Pass,
    QuotientRescale,
    Rescale,
    RevealCancel,
    Simple,
    WSquare,
    ZPlus,
)

LIBRARIES = ("captum", "deeplift", "innsight", "innvestigate", "shap", "zennit")


def checked_like(like: Any, method: str, table: Mapping[str | None, Any]) -> str | None:
    """Return `like`, or raise unless `table` has that library."""
    if like is None or (isinstance(like, str) and like in table):
        return like
    known = " or ".join(repr(name) for name in table if name is not None)
    if not isinstance(like, str) or like not in LIBRARIES:
        choices = ", ".join(map(repr, LIBRARIES))
        raise ArgumentError(f"like must be one of {choices} or None, got {shown(like)}")
    if not known:
        raise ArgumentError(f"{method} follows no library's conventions, got like={like!r}")
    raise ArgumentError(f"{like} has no {method}; like={known} can be asked for")


def differences(value: Any, usual: Any) -> list[str]:
    """Return what differs between two values of one data class, as text; mappings are left out."""
    told = []
    for f in fields(value):
        mine, theirs = getattr(value, f.name), getattr(usual, f.name)
        if mine == theirs or isinstance(mine, Mapping) or f.name == "rule":
            continue
        if is_dataclass(mine) and type(mine) is type(theirs) and f.name == "setting":
            told += differences(mine, theirs)
        else:
            told.append(f"{f.name}={getattr(mine, '__name__', repr(mine))}")
    return told


# -- LRP ------------------------------------------------------------------------------------------

_GUARD, _LRP_SETTING, _DEEPLIFT_SETTING = Guard(), LrpSetting(), DeepLiftSetting()
NEEDS_BOUNDS = {
    "z_box": "onnxplain.rules.ZBox(low, high)",
    "epsilon_gamma_box": "onnxplain.presets.EpsilonGammaBox(low, high)",
}


@dataclass(frozen=True)
class LrpConventions:
    """How a library does LRP.

    Attributes
    ----------
    rules : mapping of str to rule
        What a name stands for, with the library's default parameter.
    composites : mapping of str to composite
        Likewise.
    guard : Guard
        For rules that say nothing of their own.
    elsewhere : mapping of str to rule
        By kind of layer: where a rule that is given for all layers does not apply.
    setting : LrpSetting
        What is not about linear layers.
    from_half : bool
        Relevance starts from a probability's distance to a half.
    """

    rules: Mapping[str, LrpRule]
    composites: Mapping[str, Composite] = field(default_factory=dict)
    guard: Guard = _GUARD
    elsewhere: Mapping[str, LrpRule] = field(default_factory=dict)
    setting: LrpSetting = _LRP_SETTING
    from_half: bool = False


# AlphaBeta with the whole bias in both denominators.
_PLUS = AlphaBeta(1, whole_bias=True)
_ALPHA2 = AlphaBeta(2, whole_bias=True)

LRP: Final[Mapping[str | None, LrpConventions]] = {
    None: LrpConventions(
        rules={name: rule() for name, rule in LRP_RULES.items() if name not in NEEDS_BOUNDS},
        composites={name: c() for name, c in PRESETS.items() if name not in NEEDS_BOUNDS},
    ),
    "captum": LrpConventions(
        rules={
            "simple": Simple(),
            "epsilon": Epsilon(1e-9),
            "gamma": Gamma(0.25, weights_only=True),
            "alpha_beta": AlphaBeta(1, weights_only=True),
            "z_plus": ZPlus(weights_only=True),
            "pass": Pass(),
        },
        guard=Guard(1e-9),
        elsewhere={ELEMENTWISE: Simple(), OTHER: Simple()},
    ),
    "innsight": LrpConventions(
        rules={
            "simple": Simple(),
            "epsilon": Epsilon(0.001, guard_zeros=True),
            "alpha_beta": AlphaBeta(0.5),
            "pass": Pass(),
        },
        setting=LrpSetting(equal_shares=True, elementwise_softmax=True),
        from_half=True,
    ),
    "innvestigate": LrpConventions(
        rules={
            "simple": Simple(),
            "epsilon": Epsilon(1e-7),
            "alpha_beta": _ALPHA2,
            "z_plus": ZPlus(zero_bias=True),
            "w_square": WSquare(zero_bias=True),
            "flat": Flat(),
        },
        composites={
            "epsilon_plus": Layers(_PLUS, Epsilon(0.1), elementwise=Simple()),
            "epsilon_plus_flat": Layers(_PLUS, Epsilon(0.1), Flat(), Flat(), Simple()),
            "epsilon_alpha2_beta1": Layers(_ALPHA2, Epsilon(0.1), elementwise=Simple()),
            "epsilon_alpha2_beta1_flat": Layers(_ALPHA2, Epsilon(0.1), Flat(), Flat(), Simple()),
        },
        guard=Guard(1e-7, zeros_only=True),
        elsewhere={ELEMENTWISE: Simple(), OTHER: Simple()},
    ),
    "zennit": LrpConventions(
        rules={
            "simple": Simple(),
            "epsilon": Epsilon(1e-6),
            "gamma": Gamma(0.25),
            "alpha_beta": AlphaBeta(2),
            "z_plus": ZPlus(),
            "w_square": WSquare(),
            "flat": Flat(),
            "pass": Pass(),
        },
        composites={
            "epsilon_plus": EpsilonPlus(),
            "epsilon_plus_flat": EpsilonPlusFlat(),
            "epsilon_alpha2_beta1": EpsilonAlpha2Beta1(),
            "epsilon_alpha2_beta1_flat": EpsilonAlpha2Beta1Flat(),
            "excitation_backprop": ExcitationBackprop(zero_bias=False),
        },
        guard=Guard(1e-6),
        elsewhere={ELEMENTWISE: Pass(), OTHER: Simple()},
    ),
}


# -- DeepLIFT -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeepLiftConventions:
    """How a library does DeepLIFT: its rules by name, and what is not about activations."""

    rules: Mapping[str, DeepLiftRule]
    setting: DeepLiftSetting = _DEEPLIFT_SETTING


DEEPLIFT: Final[Mapping[str | None, DeepLiftConventions]] = {
    None: DeepLiftConventions({"rescale": Rescale(), "reveal_cancel": RevealCancel()}),
    "captum": DeepLiftConventions(
        {"rescale": QuotientRescale(1e-10, "input")},
        DeepLiftSetting(elementwise_softmax=True, centred_softmax=True),
    ),
    "deeplift": DeepLiftConventions(
        {
            "rescale": QuotientRescale(1e-7, "reference"),
            "reveal_cancel": RevealCancel(pseudocount=1e-7),
        },
        DeepLiftSetting(cross_maximum=False),
    ),
    "innsight": DeepLiftConventions(
        {
            "rescale": QuotientRescale(None, "middle"),
            "reveal_cancel": RevealCancel(guarded_division=True),
        },
        DeepLiftSetting(cross_maximum=False, elementwise_softmax=True),
    ),
    "shap": DeepLiftConventions(
        {"rescale": QuotientRescale(1e-6, "input")},
        DeepLiftSetting(elementwise_softmax=True, moved_maxima_only=True),
    ),
}


# -- gradients ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GradientConventions:
    """Whether gradients are shown without their sign, unless they are multiplied by the input."""

    absolute: bool = False


GRADIENT: Final[Mapping[str | None, GradientConventions]] = {
    None: GradientConventions(),
    "captum": GradientConventions(absolute=True),
    "deeplift": GradientConventions(),
    "innsight": GradientConventions(),
    "innvestigate": GradientConventions(),
    "zennit": GradientConventions(),
}


def _range(x: Array, axes: Any) -> Array:
    return x.max(axis=axes, keepdims=True) - x.min(axis=axes, keepdims=True)


def range_of_rows(x: Array) -> Array:
    """Return max - min of each row, shaped to broadcast with `x`."""
    return _range(x, tuple(range(1, x.ndim)))


def range_of_batch(x: Array) -> Array:
    """Return max - min of all rows together."""
    return _range(x, None)


def one(x: Array) -> Array:
    """Return 1: a level of noise is a standard deviation."""
    return namespace(x).ones((1,) * x.ndim, x.dtype)


@dataclass(frozen=True)
class SmoothGradConventions:
    """The noise of SmoothGrad.

    Attributes
    ----------
    n, noise_level : int, float
        Defaults.
    scale : callable
        Takes an input (rows, ...) to what the level of noise is multiplied by.
    by_batch : bool
        The scale is that of all rows, not of the rows that are computed together.
    constant_rows : bool
        A row without a range gets noise of scale 1.
    clean_last : bool
        The last copy gets no noise.
    absolute : bool
        Gradients are averaged without their sign, unless they are multiplied by the input.
    """

    n: int = 50
    noise_level: float = 0.1
    scale: Callable[[Array], Array] = range_of_rows
    by_batch: bool = False
    constant_rows: bool = True
    clean_last: bool = False
    absolute: bool = False


SMOOTHGRAD: Final[Mapping[str | None, SmoothGradConventions]] = {
    None: SmoothGradConventions(),
    "captum": SmoothGradConventions(5, 1.0, one, absolute=True),
    "innsight": SmoothGradConventions(scale=range_of_batch, by_batch=True),
    "innvestigate": SmoothGradConventions(64, 1.0, one),
    "zennit": SmoothGradConventions(20, 0.1, constant_rows=False, clean_last=True),
}


def _riemann(shift: float) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    return lambda n: ((np.arange(n) + shift) / n, np.full(n, 1 / n))


def _trapezoid(n: int) -> tuple[np.ndarray, np.ndarray]:
    if n < 2:
        raise ArgumentError("quadrature 'trapezoid' needs n >= 2 points")
    weights = np.full(n, 1 / (n - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, n), weights


def _light_trapezoid(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The trapezoid of captum, whose weights add up to 1 - 1 / n."""
    points, weights = _trapezoid(n)
    return points, weights * (n - 1) / n


MAX_GAUSS_POINTS = 1000  # an eigenvalue problem of this size


def _gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    if n > MAX_GAUSS_POINTS:
        raise ArgumentError(
            f"quadrature 'gauss_legendre' needs n <= {MAX_GAUSS_POINTS:,} points, got {n}"
        )
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return (nodes + 1) / 2, weights / 2


Quadrature = Callable[[int], tuple[np.ndarray, np.ndarray]]

QUADRATURES: Final[Mapping[str, Quadrature]] = {
    "riemann_right": _riemann(1.0),
    "riemann_left": _riemann(0.0),
    "riemann_middle": _riemann(0.5),
    "trapezoid": _trapezoid,
    "gauss_legendre": _gauss_legendre,
}


@dataclass(frozen=True)
class IntegratedConventions:
    """The quadrature of Integrated Gradients: defaults, and what a name stands for."""

    n: int = 50
    quadrature: str = "riemann_right"
    quadratures: Mapping[str, Quadrature] = field(default_factory=lambda: QUADRATURES)


def _only(name: str, n: int) -> IntegratedConventions:
    return IntegratedConventions(n, name, {name: QUADRATURES[name]})


INTEGRATED: Final[Mapping[str | None, IntegratedConventions]] = {
    None: IntegratedConventions(),
    "captum": IntegratedConventions(
        50, "gauss_legendre", {**QUADRATURES, "trapezoid": _light_trapezoid}
    ),
    "deeplift": IntegratedConventions(
        50,
        "riemann_middle",
        {name: QUADRATURES[name] for name in ("riemann_middle", "riemann_right")},
    ),
    "innsight": _only("riemann_right", 50),
    "innvestigate": _only("riemann_left", 64),
    "zennit": _only("riemann_right", 20),
}


@dataclass(frozen=True)
class ExpectedConventions:
    """The default number of draws of Expected Gradients."""

    n: int = 50


EXPECTED: Final[Mapping[str | None, ExpectedConventions]] = {
    None: ExpectedConventions(),
    "captum": ExpectedConventions(5),
    "innsight": ExpectedConventions(50),
    "shap": ExpectedConventions(200),
}

CONNECTION: Final[Mapping[str | None, ConnectionSetting]] = {
    None: ConnectionSetting(),
    "innsight": ConnectionSetting(innsight=True),
}
