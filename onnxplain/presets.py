"""Composites: values that choose an LRP rule for every layer of a model by what the layer is.

A composite is given wherever a rule may be given: `LRP(..., rule_name=EpsilonPlus())`, or by its
name, `rule_name="epsilon_plus"`. Kinds of layers:

| kind          | nodes                                                         |
|---------------|---------------------------------------------------------------|
| convolution   | Conv, ConvTranspose and what is named after them              |
| dense         | Gemm, MatMul, Einsum, linear models, and what is named after them |
| elementwise   | linear and in place: BatchNormalization, scale and shift by constants |
| other         | linear without weights (average pools, Resize), sums, products |

A convolution or dense layer is a *first* layer if no path from an input to it leads through
another one. So a model with several inputs or branches may have several of them, a layer behind a
pool, a normalisation or a scale can be one, and one that takes a skipped input beside features is
none. Activations, routing, max-pools and normalisations over data have rules of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .kernels.base import Kernel
from .kernels.control import Control
from .kernels.families import Linear
from .rules import AlphaBeta, Epsilon, Flat, Gamma, LrpRule, Pass, Simple, WSquare, ZBox, ZPlus

CONVOLUTION, DENSE, ELEMENTWISE, OTHER = "convolution", "dense", "elementwise", "other"
_WORDS = {
    "Conv": CONVOLUTION,
    "Gemm": DENSE,
    "MatMul": DENSE,
    "Einsum": DENSE,
    "LinearRegressor": DENSE,
    "LinearClassifier": DENSE,
}


def kind_of(kernel: Kernel) -> str:
    """Return the kind of layer a kernel is; its operator or one it was derived from tells."""
    if isinstance(kernel, Control):
        return DENSE  # a step of a recurrent layer is made of dense ones
    if not isinstance(kernel, Linear):
        return OTHER
    if kernel.diagonal:
        return ELEMENTWISE
    ops = [getattr(base, "op", "") for base in type(kernel).__mro__]
    return next((kind for op in ops for word, kind in _WORDS.items() if word in op), OTHER)


def first_layers(nodes: Sequence[Any]) -> set[str]:
    """Return the names of the convolutions and dense layers that see no other one's output."""
    first, behind = set(), set()
    for node in nodes:
        seen = behind.intersection(node.inputs)
        layer = any(node.kernel.active) and kind_of(node.kernel) in (CONVOLUTION, DENSE)
        if layer and not seen:
            first.add(node.name)
        if layer or seen:
            behind.update(name for name in node.outputs if name)
    return first


class Composite:
    """Base of all composites; a subclass says in `layers` which rules it has.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> from onnxplain.rules import Epsilon, Gamma
    >>> @dataclass(frozen=True)
    ... class EpsilonGamma(Composite):
    ...     gamma: float = 0.25
    ...
    ...     def layers(self):
    ...         return Layers(convolution=Gamma(self.gamma), dense=Epsilon(1e-6))
    >>> EpsilonGamma().layers().convolution
    Gamma(gamma=0.25)
    """

    name: ClassVar[str] = ""

    def layers(self) -> Layers:
        """Return the rules of all kinds of layers."""
        raise NotImplementedError

    def rule(self, kernel: Kernel, first: bool) -> LrpRule:
        """Return the rule of a node; `first` tells whether it is a first layer."""
        return self.layers().pick(kind_of(kernel), first)


_SIMPLE, _PASS = Simple(), Pass()


@dataclass(frozen=True)
class Layers(Composite):
    """A composite that is spelled out: one rule for each kind of layer.

    Parameters
    ----------
    convolution, dense : rule, default Simple()
        For convolutions and for dense layers.
    first_convolution, first_dense : rule, optional
        For first layers of the two kinds, by default as for the others.
    elementwise : rule, default Pass()
        For linear nodes that keep elements in their places, such as BatchNormalization.
    other : rule, default Simple()
        For linear nodes without weights, sums and products.

    Examples
    --------
    >>> from onnxplain.rules import Epsilon, Flat
    >>> Layers(dense=Epsilon(0.1), first_convolution=Flat()).pick("dense", first=True)
    Epsilon(epsilon=0.1)
    """

    convolution: LrpRule = _SIMPLE
    dense: LrpRule = _SIMPLE
    first_convolution: LrpRule | None = None
    first_dense: LrpRule | None = None
    elementwise: LrpRule = _PASS
    other: LrpRule = _SIMPLE

    def layers(self) -> Layers:
        """Return itself."""
        return self

    def pick(self, kind: str, first: bool) -> LrpRule:
        """Return the rule of a kind of layer."""
        special = {CONVOLUTION: self.first_convolution, DENSE: self.first_dense}.get(kind)
        return special if first and special is not None else getattr(self, kind)


@dataclass(frozen=True)
class _EpsilonDense(Composite):
    """What the presets share: the epsilon rule for dense layers."""

    epsilon: float = 1e-6
    zero_bias: bool = False

    def _dense(self) -> LrpRule:
        return Epsilon(self.epsilon, zero_bias=self.zero_bias)


@dataclass(frozen=True)
class EpsilonPlus(_EpsilonDense):
    """The z-plus rule for convolutions, epsilon for dense layers.

    Kohlbrenner et al. (2020), Towards best practice in explaining neural network decisions with
    LRP.

    Parameters
    ----------
    epsilon : float, default 1e-6
        The stabiliser of dense layers.
    zero_bias : bool, default False
        Leave biases out of all denominators.

    Examples
    --------
    >>> import numpy as np, onnxplain as ox
    >>> from onnxplain.demo import MODEL
    >>> x = np.ones((1, 1, 8, 8))
    >>> ox.LRP(ox.convert(MODEL), x, rule_name=EpsilonPlus(epsilon=0.1)).get_result().shape
    (1, 1, 8, 8, 10)
    """

    name: ClassVar[str] = "epsilon_plus"

    def layers(self) -> Layers:
        """Return the rules."""
        return Layers(ZPlus(zero_bias=self.zero_bias), self._dense())


@dataclass(frozen=True)
class EpsilonPlusFlat(_EpsilonDense):
    """The flat rule for first layers, z-plus for other convolutions, epsilon for dense layers.

    Lapuschkin et al. (2019), Unmasking Clever Hans predictors and assessing what machines really
    learn.

    Parameters
    ----------
    epsilon, zero_bias
        As for `EpsilonPlus`.

    Examples
    --------
    >>> EpsilonPlusFlat().layers().first_dense
    Flat()
    """

    name: ClassVar[str] = "epsilon_plus_flat"

    def layers(self) -> Layers:
        """Return the rules."""
        return Layers(ZPlus(zero_bias=self.zero_bias), self._dense(), Flat(), Flat())


@dataclass(frozen=True)
class EpsilonAlpha2Beta1(_EpsilonDense):
    """The alpha2-beta1 rule for convolutions, epsilon for dense layers.

    Parameters
    ----------
    epsilon, zero_bias
        As for `EpsilonPlus`.

    Examples
    --------
    >>> EpsilonAlpha2Beta1().layers().convolution
    AlphaBeta(alpha=2)
    """

    name: ClassVar[str] = "epsilon_alpha2_beta1"

    def layers(self) -> Layers:
        """Return the rules."""
        return Layers(AlphaBeta(2, zero_bias=self.zero_bias), self._dense())


@dataclass(frozen=True)
class EpsilonAlpha2Beta1Flat(_EpsilonDense):
    """The flat rule for first layers, alpha2-beta1 for other convolutions, epsilon for dense ones.

    Parameters
    ----------
    epsilon, zero_bias
        As for `EpsilonPlus`.

    Examples
    --------
    >>> EpsilonAlpha2Beta1Flat(epsilon=0.1).layers().dense
    Epsilon(epsilon=0.1)
    """

    name: ClassVar[str] = "epsilon_alpha2_beta1_flat"

    def layers(self) -> Layers:
        """Return the rules."""
        return Layers(AlphaBeta(2, zero_bias=self.zero_bias), self._dense(), Flat(), Flat())


@dataclass(frozen=True)
class EpsilonGammaBox(Composite):
    """The z-box rule for first convolutions, gamma for the others, epsilon for dense layers.

    Montavon et al. (2019), Layer-wise relevance propagation: an overview.

    Parameters
    ----------
    low, high : float or sequence of float
        Smallest and largest possible value of the input, one for all or one per channel.
    epsilon : float, default 1e-6
        The stabiliser of dense layers.
    gamma : float, default 0.25
        How much convolutions favour contributions of the sign of their output.
    zero_bias : bool, default False
        Leave biases out of all denominators.

    Examples
    --------
    >>> EpsilonGammaBox(low=0, high=1).layers().first_convolution
    ZBox(low=0, high=1)
    """

    low: Any
    high: Any
    epsilon: float = 1e-6
    gamma: float = 0.25
    zero_bias: bool = False
    name: ClassVar[str] = "epsilon_gamma_box"

    def layers(self) -> Layers:
        """Return the rules."""
        return Layers(
            Gamma(self.gamma, zero_bias=self.zero_bias),
            Epsilon(self.epsilon, zero_bias=self.zero_bias),
            ZBox(self.low, self.high),
        )


@dataclass(frozen=True)
class EpsilonPlusWSquare(_EpsilonDense):
    """The w-squared rule for first layers, z-plus for other convolutions, epsilon for dense ones.

    Parameters
    ----------
    epsilon, zero_bias
        As for `EpsilonPlus`.

    Examples
    --------
    >>> EpsilonPlusWSquare().layers().first_convolution
    WSquare()
    """

    name: ClassVar[str] = "epsilon_plus_w_square"

    def layers(self) -> Layers:
        """Return the rules."""
        first = WSquare(zero_bias=self.zero_bias)
        return Layers(ZPlus(zero_bias=self.zero_bias), self._dense(), first, first)


@dataclass(frozen=True)
class ExcitationBackprop(Composite):
    """The z-plus rule for all layers with weights, by default without their biases.

    Zhang et al. (2016), Top-down neural attention by excitation backprop.

    Parameters
    ----------
    zero_bias : bool, default True
        Leave biases out of all denominators.

    Examples
    --------
    >>> ExcitationBackprop().layers().dense
    ZPlus(alpha=1.0, zero_bias=True)
    """

    zero_bias: bool = True
    name: ClassVar[str] = "excitation_backprop"

    def layers(self) -> Layers:
        """Return the rules."""
        rule = ZPlus(zero_bias=self.zero_bias)
        return Layers(rule, rule)


@dataclass(frozen=True)
class AttnLRP(Composite):
    """Epsilon for dense layers and sums, gamma for convolutions such as a patch embedding.

    What makes it the rule for transformers holds under every composite: Softmax is expanded at its
    input, products give half to each factor, normalisers are passed.

    Achtibat et al. (2024), AttnLRP: attention-aware layer-wise relevance propagation for
    transformers.

    Parameters
    ----------
    epsilon : float, default 1e-6
        The stabiliser of dense layers and sums.
    gamma : float, default 0.25
        How much convolutions favour contributions of the sign of their output.

    Examples
    --------
    >>> AttnLRP().layers().dense
    Epsilon(epsilon=1e-06)
    """

    epsilon: float = 1e-6
    gamma: float = 0.25
    name: ClassVar[str] = "attn_lrp"

    def layers(self) -> Layers:
        """Return the rules."""
        epsilon = Epsilon(self.epsilon)
        return Layers(Gamma(self.gamma), epsilon, other=epsilon)


PRESETS: dict[str, type[Composite]] = {
    preset.name: preset
    for preset in (
        EpsilonPlus,
        EpsilonPlusFlat,
        EpsilonPlusWSquare,
        EpsilonAlpha2Beta1,
        EpsilonAlpha2Beta1Flat,
        EpsilonGammaBox,
        ExcitationBackprop,
        AttnLRP,
    )
}
