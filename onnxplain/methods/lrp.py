"""Layer-wise relevance propagation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..arrays import Array, stabiliser
from ..errors import RuleError, listed, shown
from ..graph.graph import Node
from ..graph.last import last_activation_nodes, last_activations
from ..kernels.families import Linear
from ..rules import LRP_RULES, AlphaBeta, Epsilon, Gamma, LrpRule, LrpSetting, Pass
from ..walk import Ledger, Values, backward, relevance_step
from .base import Method, check_flags, explain_chunks
from .gradients import _required

if TYPE_CHECKING:
    from ..converter import Converter

_PROBABILITIES = {"Softmax", "Sigmoid"}
_PARAMETERS = {"epsilon": Epsilon, "alpha_beta": AlphaBeta, "gamma": Gamma}
_INNSIGHT_EPSILON = 0.001
_LAYERS = {"Gemm": "Dense", "MatMul": "Dense", "BatchNormalization": "BatchNorm"}
_SPATIAL = {"Conv": "Conv", "AveragePool": "AvgPool", "MaxPool": "MaxPool"}


class LRP(Method):
    """Relevance of the inputs by layer-wise relevance propagation.

    Parameters
    ----------
    converter, data, **options
        As for `Gradient`.
    rule_name : str, rule, or dict of those, default "simple"
        "simple", "epsilon", "alpha_beta", "gamma", "z_plus", "w_square", "flat", "pass", or a rule
        value such as `onnxplain.rules.AlphaBeta(2)`. A dict picks rules by innsight's layer names
        ("Dense_Layer", "Conv2D_Layer", also without the suffix), ONNX operators ("Gemm"), node
        names or modules ("features" for "features.0"); the more special one wins, the rest is
        "simple".
    rule_param : float or dict of float, optional
        epsilon (default 0.01), alpha (default 0.5, beta = 1 - alpha) or gamma (default 0.25).
    winner_takes_all : bool, default True
        Relevance of a max-pool goes to the maximum; False treats it as an average pool.

    Raises
    ------
    RuleError
        If a rule is unknown, has a wrong parameter, or cannot be used for a node.

    Notes
    -----
    Bach et al. (2015), On pixel-wise explanations for non-linear classifier decisions by
    layer-wise relevance propagation. Sums share by contribution. Products of two tensors with data
    give half to each, normalisations pass, Softmax is expanded at the input (Achtibat et al. 2024,
    AttnLRP). `ledger()` tells what biases and stabilisers absorb.

    Examples
    --------
    >>> import numpy as np, onnxplain as ox
    >>> from onnxplain.demo import MODEL
    >>> x = np.ones((2, 1, 8, 8))
    >>> lrp = ox.LRP(ox.convert(MODEL), x, rule_name="epsilon", rule_param=0.1)
    >>> lrp.get_result().shape
    (2, 1, 8, 8, 10)
    """

    method_name: ClassVar[str] = "LRP"
    walk: ClassVar[str] = "lrp"

    def __init__(
        self,
        converter: Converter,
        data: Any,
        *,
        rule_name: Any = "simple",
        rule_param: Any = None,
        winner_takes_all: bool = True,
        **options: Any,
    ) -> None:
        check_flags(winner_takes_all=winner_takes_all)
        self.rule_name, self.rule_param = rule_name, rule_param
        self.winner_takes_all = winner_takes_all
        self._prepare(converter, _required(data), **options)
        self._settings = self._choose_rules()
        self._allocate(len(self.data[0]))
        explain_chunks(self, self._step, self._start, lambda signals, inputs: signals)
        if self._shift:
            for goal, shift in zip(self.decomp_goal, self._shifts(), strict=True):
                goal -= shift
        self._finish()

    def _step(self, values: Values) -> Any:
        return relevance_step(self._engine.graph, values, self._settings)

    # -- where relevance starts -------------------------------------------------------------------

    @property
    def _shift(self) -> bool:
        """innsight starts from the probability above a half."""
        return self.like == "innsight" and not self.ignore_last_act

    def _shifts(self) -> list[float]:
        last = last_activations(self.converter.graph)
        return [0.5 if self._shift and last[j] in _PROBABILITIES else 0.0 for j in self._selected]

    def _start(self, scores: list[Array]) -> list[Array]:
        return [s - shift for s, shift in zip(scores, self._shifts(), strict=True)]

    # -- which rule a node gets -------------------------------------------------------------------

    def _choose_rules(self) -> dict[str, LrpSetting]:
        innsight = self.like == "innsight"
        base = LrpSetting(
            winner_takes_all=self.winner_takes_all,
            equal_shares=innsight,
            elementwise_softmax=innsight,
        )
        nodes = self._engine.graph.nodes
        keys = {node.name: _keys(node, self._engine) for node in nodes}
        known = {key for found in keys.values() for key in found} | _ALL_LAYERS
        for what, value in (("rule_name", self.rule_name), ("rule_param", self.rule_param)):
            _check_keys(what, value, known)
        self._check_choices()
        on_path = {node.name for node in self._nodes_on_path()}
        settings = {}
        for node in nodes:
            rule = self._rule(keys[node.name])
            if isinstance(rule, Pass) and node.name in on_path:
                _check_pass(node)
            settings[node.name] = base.with_rule(rule)
        # Where it stands last, a softmax passes like any activation; inside it is expanded.
        for name in last_activation_nodes(self._engine.graph, self._engine.outputs):
            settings[name] = replace(settings[name], elementwise_softmax=True)
        return settings

    def _rule(self, keys: list[str]) -> LrpRule:
        rule = _lookup(self.rule_name, keys, "simple")
        if isinstance(rule, LrpRule):
            return rule
        return self._with_parameter(rule, _lookup(self.rule_param, keys, None))

    def _check_choices(self) -> None:
        """Check all that was given, also for layers that this model does not have."""
        rules, parameters = _values(self.rule_name) or ["simple"], _values(self.rule_param)
        for rule in rules:
            _check_rule(rule)
        for value in parameters:
            _check_parameter(value)
        named = [rule for rule in rules if isinstance(rule, str)]
        if parameters and not any(name in _PARAMETERS for name in named):
            raise RuleError(
                f"rule_param is given, but rule {listed(map(repr, rules))} has no parameter; "
                f"rule_name {listed(map(repr, _PARAMETERS))} have one"
            )

    def _with_parameter(self, name: str, value: Any) -> LrpRule:
        if name == "epsilon" and self.like == "innsight":
            tiny = stabiliser(self._engine.dtype)
            return Epsilon(_INNSIGHT_EPSILON if value is None else float(value), at_zero=tiny)
        if value is None or name not in _PARAMETERS:
            return LRP_RULES[name]()
        return _PARAMETERS[name](value)

    # -- the ledger -------------------------------------------------------------------------------

    def ledger(self) -> Any:
        """Tell node by node how much relevance came in, went on, and was absorbed by what.

        Returns
        -------
        pandas.DataFrame
            One row per node, from the output down: node, op, rule, incoming, outgoing, bias,
            stabiliser, constant (sums over instances and explained nodes) and gap (the largest
            difference left for any instance and node).

        Examples
        --------
        >>> import numpy as np, onnxplain as ox
        >>> from onnxplain.demo import MODEL
        >>> lrp = ox.LRP(ox.convert(MODEL), np.ones((2, 1, 8, 8)), dtype="double")
        >>> bool(lrp.ledger().gap.max() < 1e-9)
        True
        """
        from ..coverage import ledger_table

        engine, books = self._engine, []
        for rows in self._blocks(len(self.data[0]), engine.chunk_rows(self._n_nodes)):
            values = engine.forward(self._device_rows(self.data, rows))
            start = self._start(self._scores(values))
            for picked in engine.output_slices(self._n_nodes, rows.stop - rows.start):
                ledger = Ledger(engine.graph.rows_first)
                step = relevance_step(engine.graph, values, self._settings, ledger)
                backward(engine.graph, self._seeds(values, picked, start), step)
                books.append((ledger, rows.stop - rows.start))
        rules = {name: repr(setting.rule) for name, setting in self._settings.items()}
        return ledger_table(books, rules)

    def _describe(self) -> list[str]:
        return [
            f"rule_name: {self.rule_name!r}",
            f"rule_param: {self.rule_param if self.rule_param is not None else 'default'}",
            f"winner_takes_all: {self.winner_takes_all}",
        ]


_ALL_LAYERS = {"Dense_Layer", "BatchNorm_Layer"} | {
    f"{name}{n}D_Layer" for name in ("Conv", "AvgPool", "MaxPool") for n in (1, 2)
}
_ALL_LAYERS |= {name.removesuffix("_Layer") for name in _ALL_LAYERS}


def layer_name(node: Node, engine: Any) -> str | None:
    """Return innsight's name of the layer that a node is, without its suffix."""
    if node.op in _SPATIAL:
        rank = len(engine.trial.shapes[node.inputs[0]]) - 2
        return f"{_SPATIAL[node.op]}{rank}D"
    return _LAYERS.get(node.op)


def _keys(node: Node, engine: Any) -> list[str]:
    """Return the names a rule can be picked by, the most special first."""
    layer = layer_name(node, engine)
    layers = [layer, f"{layer}_Layer"] if layer else []
    return [node.name, *node.joined, *_modules(node.name), node.op, *layers]


def _modules(name: str) -> list[str]:
    """Return the modules a node is part of, the innermost first.

    Examples
    --------
    >>> _modules("/features/features.0/Conv")
    ['features/features.0', 'features/features', 'features']
    """
    name = name.strip("/")
    return [name[:i] for i in range(len(name) - 1, 0, -1) if name[i] in "./"]


def _lookup(choice: Any, keys: list[str], default: Any) -> Any:
    if not isinstance(choice, Mapping):
        return default if choice is None else choice
    return next((choice[key] for key in keys if key in choice), default)


def _check_keys(what: str, choice: Any, known: set[str]) -> None:
    if isinstance(choice, Mapping):
        unknown = [key for key in choice if key not in known]
        if unknown:
            layers = ", ".join(sorted(k for k in _ALL_LAYERS if "_" in k))
            raise RuleError(
                f"{what} names {shown(unknown[0])}, which is no layer type, operator or node of "
                f"this model; layer types are {layers}"
            )


def _values(choice: Any) -> list[Any]:
    if isinstance(choice, Mapping):
        return list(choice.values())
    return [] if choice is None else [choice]


def _check_rule(rule: Any) -> None:
    if isinstance(rule, LrpRule):
        return
    if not isinstance(rule, str) or rule not in LRP_RULES:
        raise RuleError(
            f"rule_name {shown(rule)} is unknown; the rules are {', '.join(LRP_RULES)}, "
            "or a value such as onnxplain.rules.Epsilon(0.1)"
        )
    if rule == "z_box":
        raise RuleError("rule 'z_box' needs bounds: give onnxplain.rules.ZBox(low, high)")


def _check_parameter(value: Any) -> None:
    number = isinstance(value, (int, float, np.integer, np.floating))
    if not number or isinstance(value, bool) or not np.isfinite(value):
        raise RuleError(f"rule_param must be a number, got {shown(value)}")


def _check_pass(node: Node) -> None:
    if isinstance(node.kernel, Linear) and not node.kernel.diagonal:
        raise RuleError(
            f"rule 'pass' cannot be used for {node.label}: it needs an operator that keeps each "
            "element in its place, such as BatchNormalization"
        )
