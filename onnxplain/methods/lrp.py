"""Layer-wise relevance propagation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..arrays import Array
from ..conventions import LRP as CONVENTIONS
from ..conventions import NEEDS_BOUNDS
from ..device import in_session, use
from ..errors import RuleError, listed, shown
from ..graph.graph import Node
from ..graph.last import last_activation_nodes, last_activations
from ..kernels.families import Linear
from ..presets import PRESETS, Composite, first_layers, kind_of
from ..rules import LRP_RULES, Guard, LrpRule, LrpSetting, Pass
from ..walk import Ledger, Values, relevance_step
from .base import Method, explain_chunks
from .checks import check_flags
from .gradients import _required

if TYPE_CHECKING:
    from ..converter import Converter

_PROBABILITIES = {"Softmax", "Sigmoid"}
_PARAMETERS = {"epsilon": "epsilon", "alpha_beta": "alpha", "gamma": "gamma"}
_GATES = ("signal", "halves")
_DEFAULT = "default"  # key of the rule for what no other key names
_LAYERS = {"Gemm": "Dense", "MatMul": "Dense", "BatchNormalization": "BatchNorm"}
_SPATIAL = {"Conv": "Conv", "AveragePool": "AvgPool", "MaxPool": "MaxPool"}


class LRP(Method):
    """Relevance of the inputs by layer-wise relevance propagation.

    Parameters
    ----------
    converter, data, **options
        As for `Gradient`.
    rule_name : str, rule, composite, or dict of those, default "simple"
        "simple", "epsilon", "alpha_beta", "gamma", "z_plus", "w_square", "flat", "pass", or a rule
        value such as `onnxplain.rules.AlphaBeta(2)`; or a composite, which chooses a rule by the
        kind of each layer: "epsilon_plus", "epsilon_plus_flat", ..., or a value of
        `onnxplain.presets`. A dict picks by innsight's layer names ("Dense_Layer", "Conv2D_Layer",
        also without the suffix), ONNX operators ("Gemm"), node names or modules ("features" for
        "features.0"); the more special one wins, the rest gets what key "default" says, or
        "simple".
    rule_param : float or dict of float, optional
        epsilon (default 0.01), alpha (default 0.5, beta = 1 - alpha) or gamma (default 0.25); the
        defaults are those of the library where `like` names one.
    winner_takes_all : bool, default True
        Relevance of a max-pool goes to the maximum; False treats it as an average pool.
    gates : {"signal", "halves"}, default "signal"
        Relevance of what a gate of a recurrent layer lets through: all to the signal, or half to
        the gate.

    Raises
    ------
    RuleError
        If a rule is unknown, has a wrong parameter, or cannot be used for a node.

    Notes
    -----
    Bach et al. (2015), On pixel-wise explanations for non-linear classifier decisions by
    layer-wise relevance propagation. Sums share by contribution. Products of two tensors with data
    give half to each, normalisations pass, Softmax is expanded at the input (Achtibat et al. 2024,
    AttnLRP); gates of recurrent layers give all to the signal (Arras et al. 2017). `ledger()` tells
    what biases and stabilisers absorb.

    Examples
    --------
    >>> import numpy as np, onnxplain as ox
    >>> from onnxplain.demo import MODEL
    >>> x = np.ones((2, 1, 8, 8))
    >>> lrp = ox.LRP(ox.convert(MODEL), x, rule_name="epsilon", rule_param=0.1)
    >>> lrp.get_result().shape
    (2, 1, 8, 8, 10)
    >>> layers = {"default": "epsilon_plus_flat", "Gemm": ox.rules.Epsilon(0.1)}
    >>> ox.LRP(ox.convert(MODEL), x, rule_name=layers).get_result().shape
    (2, 1, 8, 8, 10)
    """

    method_name: ClassVar[str] = "LRP"
    walk: ClassVar[str] = "lrp"
    conventions = CONVENTIONS

    def __init__(
        self,
        converter: Converter,
        data: Any,
        *,
        rule_name: Any = "simple",
        rule_param: Any = None,
        winner_takes_all: bool = True,
        gates: str = "signal",
        **options: Any,
    ) -> None:
        check_flags(winner_takes_all=winner_takes_all)
        if gates not in _GATES:
            raise RuleError(f"gates must be {listed(map(repr, _GATES))}, got {shown(gates)}")
        self.rule_name, self.rule_param = rule_name, rule_param
        self.winner_takes_all, self.gates = winner_takes_all, gates
        self._prepare(converter, _required(data), **options)
        self._settings = self._choose_rules()
        self._compute()

    def _compute(self) -> None:
        self._allocate(len(self.data[0]))
        explain_chunks(self, self._step, self._start, lambda signals, inputs: signals)
        if self._shift:
            for goal, nodes, shift in zip(
                self.decomp_goal, self._nodes, self._shifts(), strict=True
            ):
                goal -= shift * nodes.total
        self._finish()

    def _step(self, values: Values) -> Any:
        return relevance_step(self._engine.graph, values, self._settings)

    # -- where relevance starts -------------------------------------------------------------------

    @property
    def _shift(self) -> bool:
        """Whether relevance starts from a probability's distance to a half."""
        return self._conventions.from_half and not self.ignore_last_act

    def _shifts(self) -> list[float]:
        last = last_activations(self.converter.graph)
        return [0.5 if self._shift and last[j] in _PROBABILITIES else 0.0 for j in self._selected]

    def _start(self, scores: list[Array]) -> list[Array]:
        return [s - shift for s, shift in zip(scores, self._shifts(), strict=True)]

    # -- which rule a node gets -------------------------------------------------------------------

    def _choose_rules(self) -> dict[str, LrpSetting]:
        base = replace(
            self._conventions.setting, winner_takes_all=self.winner_takes_all, gates=self.gates
        )
        nodes = self._engine.graph.nodes
        keys = {node.name: _keys(node, self._engine) for node in nodes}
        known = {key for found in keys.values() for key in found} | _ALL_LAYERS | {_DEFAULT}
        for what, value in (("rule_name", self.rule_name), ("rule_param", self.rule_param)):
            _check_keys(what, value, known)
        self._check_choices()
        on_path = {node.name: node for node in self._nodes_on_path()}
        self._linear = [name for name, n in on_path.items() if isinstance(n.kernel, Linear)]
        settings, first = {}, first_layers(nodes)
        for node in nodes:
            rule = self._rule(node, keys[node.name], node.name in first)
            if isinstance(rule, Pass) and node.name in on_path:
                _check_pass(node)
            settings[node.name] = base.with_rule(rule)
        # Where it stands last, a softmax passes like any activation; inside it is expanded.
        for name in last_activation_nodes(self._engine.graph, self._engine.outputs):
            settings[name] = replace(settings[name], elementwise_softmax=True)
        return settings

    def _rule(self, node: Node, keys: list[str], first: bool) -> LrpRule:
        conventions = self._conventions
        choice, special = _lookup(self.rule_name, keys, "simple")
        if isinstance(choice, str):
            choice = self._named(choice, _lookup(self.rule_param, keys, None)[0])
        if isinstance(choice, Composite):
            choice = choice.rule(node.kernel, first)
        elif not special:
            choice = conventions.elsewhere.get(kind_of(node.kernel), choice)
        return choice if choice.guard != Guard() else replace(choice, guard=conventions.guard)

    def _check_choices(self) -> None:
        """Check all that was given, also for layers that this model does not have."""
        rules, parameters = _values(self.rule_name) or ["simple"], _values(self.rule_param)
        for rule in rules:
            self._check_rule(rule)
        for value in parameters:
            _check_parameter(value)
        named = [rule for rule in rules if isinstance(rule, str)]
        if parameters and not any(name in _PARAMETERS for name in named):
            raise RuleError(
                f"rule_param is given, but rule {listed(map(repr, rules))} has no parameter; "
                f"rule_name {listed(map(repr, _PARAMETERS))} have one"
            )

    def _check_rule(self, rule: Any) -> None:
        if isinstance(rule, (LrpRule, Composite)):
            return
        if not isinstance(rule, str) or rule not in {**LRP_RULES, **PRESETS}:
            raise RuleError(
                f"rule_name {shown(rule)} is unknown; there are {', '.join(LRP_RULES)}, the "
                f"composites {', '.join(PRESETS)}, and values of rules and presets"
            )
        if rule in NEEDS_BOUNDS:
            raise RuleError(f"rule {rule!r} needs bounds: give {NEEDS_BOUNDS[rule]}")
        known = [*self._conventions.rules, *self._conventions.composites]
        if rule not in known:
            raise RuleError(
                f"{self.like} has no rule {rule!r}; it has {', '.join(known)}. A value such as "
                "onnxplain.rules.Flat() can be asked for all the same"
            )

    def _named(self, name: str, parameter: Any) -> LrpRule | Composite:
        """Return what a name stands for."""
        rule = {**self._conventions.rules, **self._conventions.composites}[name]
        if parameter is None or name not in _PARAMETERS:
            return rule
        return replace(rule, **{_PARAMETERS[name]: parameter})

    # -- the ledger -------------------------------------------------------------------------------

    @in_session
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

        self._need_data()
        engine, books = self._engine, []
        use(engine.places[0])

        def book(rows: slice) -> None:
            values, count = (
                engine.forward(self._device_rows(self.data, rows)),
                rows.stop - rows.start,
            )
            start = self._start(self._parts(values, rows))
            found = []
            for picked in engine.output_slices(self._n_nodes, count):
                ledger = Ledger(engine.graph.rows_first)
                step = relevance_step(engine.graph, values, self._settings, ledger)
                engine.backward(self._seeds(values, picked, rows, start), step)
                ledger.fetch()
                found.append((rows.start, (ledger, count)))
            books.extend(found)  # all or none: what does not fit into memory is done again

        self._each_block(book)
        books = [entry for _, entry in sorted(books, key=lambda b: b[0])]
        rules = {name: repr(setting.rule) for name, setting in self._settings.items()}
        return ledger_table(books, rules)

    def _describe(self) -> list[str]:
        return [
            f"rule_name: {self.rule_name!r}",
            f"rule_param: {self.rule_param if self.rule_param is not None else 'default'}",
            f"winner_takes_all: {self.winner_takes_all}",
            f"gates: {self.gates!r}",
            *self._rules_in_use(),
        ]

    def _rules_in_use(self) -> list[str]:
        """Return the linear nodes of each rule, where names alone do not tell."""
        if self.like is None and isinstance(self.rule_name, str) and self.rule_name in LRP_RULES:
            return []
        nodes: dict[str, list[str]] = {}
        for name in self._linear:
            nodes.setdefault(repr(self._settings[name].rule), []).append(name)
        return [f"{rule}: {listed(names)}" for rule, names in nodes.items()]


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


def _lookup(choice: Any, keys: list[str], default: Any) -> tuple[Any, bool]:
    """Return what is chosen for a node, and whether a key names the node."""
    if not isinstance(choice, Mapping):
        return (default if choice is None else choice), False
    found = next((key for key in keys if key in choice), None)
    return (choice.get(_DEFAULT, default), False) if found is None else (choice[found], True)


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
