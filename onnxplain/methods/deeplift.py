"""DeepLIFT and DeepSHAP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..arrays import Array, lead, to_host
from ..errors import RuleError, shown
from ..rules import (
    DEEPLIFT_RULES,
    DeepLiftRule,
    DeepLiftSetting,
    MidpointRescale,
    Rescale,
    RevealCancel,
)
from ..walk import Ledger, Values, backward, chunks, multiplier_step
from .base import Method, check_count, check_flags, reached
from .gradients import _required, describe_reference, one_reference, reference_rows

if TYPE_CHECKING:
    from ..converter import Converter


class MultiplierMethod(Method):
    """What DeepLIFT and DeepSHAP share: the rule and one walk back between two runs."""

    value_name: ClassVar[str] = "Contribution"
    walk: ClassVar[str] = "deeplift"

    def _choose_rule(self, rule_name: Any, winner_takes_all: bool) -> None:
        check_flags(winner_takes_all=winner_takes_all)
        self.rule_name, self.winner_takes_all = rule_name, winner_takes_all
        known = isinstance(rule_name, str) and rule_name in DEEPLIFT_RULES
        if not known and not isinstance(rule_name, DeepLiftRule):
            raise RuleError(
                f"rule_name must be one of {', '.join(DEEPLIFT_RULES)}, got {shown(rule_name)}"
            )

    def _setting(self) -> DeepLiftSetting:
        rule = self.rule_name
        if not isinstance(rule, DeepLiftRule):
            rule = DEEPLIFT_RULES[rule]()
        if self.like != "innsight":
            return DeepLiftSetting(rule, self.winner_takes_all)
        rule = MidpointRescale() if isinstance(rule, Rescale) else RevealCancel(True)
        return DeepLiftSetting(
            rule, self.winner_takes_all, cross_maximum=False, elementwise_softmax=True
        )

    def _contributions(
        self,
        values: Values,
        reference: Values,
        inputs: Sequence[Array],
        refs: Sequence[Array],
        picked: slice,
        rows: int,
    ) -> list[Array | None]:
        """Return multiplier times difference per input, (outputs, rows, *input_dim)."""
        engine = self._engine
        step = multiplier_step(engine.graph, values, reference, self._setting())
        longer = values if len(inputs[0]) >= len(refs[0]) else reference
        signals = backward(engine.graph, self._seeds(longer, picked), step)
        arrived = reached(signals, engine.input_names, rows)
        return [
            None if m is None else m * lead(x - r, m)
            for m, x, r in zip(arrived, inputs, refs, strict=True)
        ]


class DeepLift(MultiplierMethod):
    """Contributions of the differences to one reference.

    Parameters
    ----------
    converter, data, **options
        As for `Gradient`.
    x_ref : array (1, *input_dim) or list of those, optional
        The reference; zeros by default.
    rule_name : {"rescale", "reveal_cancel"} or rule, default "rescale"
        How multipliers pass a nonlinearity.
    winner_takes_all : bool, default True
        Max-pools credit the maxima of input and reference; False spreads over the window.

    Notes
    -----
    Shrikumar et al. (2017), Learning important features through propagating activation differences.
    The values add up to `decomp_goal`, the difference of the explained nodes, also through
    overlapping max-pools, products, Softmax and normalisations, whose rules are closed forms.

    Examples
    --------
    >>> import numpy as np, onnxplain as ox
    >>> from onnxplain.demo import MODEL
    >>> deeplift = ox.DeepLift(ox.convert(MODEL), np.ones((2, 1, 8, 8)), dtype="double")
    >>> bool(abs(deeplift.decomp_sum[0] - deeplift.decomp_goal[0]).max() < 1e-9)
    True
    """

    method_name: ClassVar[str] = "DeepLift"

    def __init__(
        self,
        converter: Converter,
        data: Any,
        *,
        x_ref: Any = None,
        rule_name: Any = "rescale",
        winner_takes_all: bool = True,
        **options: Any,
    ) -> None:
        self._choose_rule(rule_name, winner_takes_all)
        self._prepare(converter, _required(data), **options)
        self.x_ref = one_reference(self, x_ref)
        self._allocate(len(self.data[0]))
        for rows, values, reference, inputs, refs in self._runs():
            self._store_scores(rows, values)
            count = rows.stop - rows.start
            at_most = 1 if self._engine.free_rows else count
            for goal, start in zip(self.decomp_goal, self._scores(reference, at_most), strict=True):
                goal[rows] -= to_host(start)
            for picked in self._engine.output_slices(self._n_nodes, count):
                found = self._contributions(values, reference, inputs, refs, picked, count)
                self._store(rows, picked, found)
        self._finish()

    def _runs(self):
        """Run through chunks: rows, both runs, both inputs. The reference runs once if it can."""
        engine = self._engine
        refs = [engine.xp.asarray(r) for r in self.x_ref]
        reference = engine.forward(refs) if engine.free_rows else None
        for rows in self._blocks(len(self.data[0]), engine.chunk_rows(self._n_nodes)):
            inputs = self._device_rows(self.data, rows)
            run = reference or engine.forward(engine.beside(refs, inputs))
            yield rows, engine.forward(inputs), run, inputs, refs

    def ledger(self) -> Any:
        """Tell node by node what multiplier times difference came in and went on.

        Returns
        -------
        pandas.DataFrame
            One row per node: node, op, rule, incoming, outgoing, and gap, the largest difference
            left for any instance and explained node.
        """
        from ..coverage import ledger_table

        engine, books = self._engine, []
        for rows, values, reference, _, _ in self._runs():
            count = rows.stop - rows.start
            for picked in engine.output_slices(self._n_nodes, count):
                ledger = Ledger(engine.graph.rows_first)
                step = multiplier_step(engine.graph, values, reference, self._setting(), ledger)
                backward(engine.graph, self._seeds(values, picked), step)
                books.append((ledger, count))
        rule = repr(self._setting().rule)
        return ledger_table(books, {n.name: rule for n in engine.graph.nodes})

    def _describe(self) -> list[str]:
        return [
            f"rule_name: {self.rule_name!r}",
            f"winner_takes_all: {self.winner_takes_all}",
            f"x_ref: {describe_reference(self.x_ref)}",
        ]


class DeepSHAP(MultiplierMethod):
    """Mean of DeepLift over many references: approximate Shapley values.

    Parameters
    ----------
    converter, data, **options
        As for `Gradient`.
    data_ref : array (references, *input_dim) or list of those, optional
        References; one row of zeros by default.
    limit_ref : int, default 100
        At most so many references are used, drawn without replacement (`seed`).
    rule_name, winner_takes_all
        As for `DeepLift`.

    Notes
    -----
    Lundberg & Lee (2017), A unified approach to interpreting model predictions. Each reference runs
    forward once, however many instances there are.

    Examples
    --------
    >>> import numpy as np, onnxplain as ox
    >>> from onnxplain.demo import MODEL
    >>> x, refs = np.ones((2, 1, 8, 8)), np.zeros((3, 1, 8, 8))
    >>> ox.DeepSHAP(ox.convert(MODEL), x, data_ref=refs).get_result().shape
    (2, 1, 8, 8, 10)
    """

    method_name: ClassVar[str] = "DeepSHAP"

    def __init__(
        self,
        converter: Converter,
        data: Any,
        *,
        data_ref: Any = None,
        limit_ref: int = 100,
        rule_name: Any = "rescale",
        winner_takes_all: bool = True,
        **options: Any,
    ) -> None:
        self._choose_rule(rule_name, winner_takes_all)
        self.limit_ref = check_count("limit_ref", limit_ref)
        self._prepare(converter, _required(data), **options)
        self.data_ref = self._draw(reference_rows(self, data_ref))
        self._allocate(len(self.data[0]))
        if self._engine.free_rows:
            self._explain_tiles()
        else:
            self._explain_pairs()
        self._finish()

    def _draw(self, refs: list[Array]) -> list[Array]:
        if len(refs[0]) <= self.limit_ref:
            return refs
        rng = np.random.default_rng(self.seed)
        kept = np.sort(rng.choice(len(refs[0]), self.limit_ref, replace=False))
        return [r[kept] for r in refs]

    def _explain_tiles(self) -> None:
        """Tiles of instances x references; the longer side is the batch, the other is looped over.

        Neither side is ever repeated: one row of a run broadcasts against all rows of the other.
        """
        engine, n_ref = self._engine, len(self.data_ref[0])
        size = engine.chunk_rows(self._n_nodes)
        goal_shift: list[Any] = [0.0] * len(self._selected)
        for k, part in enumerate(chunks(n_ref, size)):
            refs = self._device_rows(self.data_ref, part)
            reference = engine.forward(refs)
            for s, score in enumerate(self._scores(reference)):
                goal_shift[s] = goal_shift[s] + to_host(score.sum(axis=0)) / n_ref
            for rows in self._blocks(len(self.data[0]), size):
                inputs = self._device_rows(self.data, rows)
                values = engine.forward(inputs)
                if k == 0:
                    self._store_scores(rows, values)
                self._add_tile(rows, values, reference, inputs, refs)
        for goal, shift in zip(self.decomp_goal, goal_shift, strict=True):
            goal -= shift

    def _add_tile(self, rows, values, reference, inputs, refs) -> None:
        engine = self._engine
        n, r = len(inputs[0]), len(refs[0])
        for picked in engine.output_slices(self._n_nodes, max(n, r)):
            if n >= r:
                total = [None] * len(inputs)
                for j in range(r):
                    one = slice(j, j + 1)
                    found = self._contributions(
                        values, engine.cut(reference, one), inputs, [v[one] for v in refs], picked, n
                    )
                    total = [a if t is None else t + a for t, a in zip(total, found, strict=True)]
                self._accumulate(rows, picked, total)
                continue
            for i in range(n):
                one = slice(i, i + 1)
                found = self._contributions(
                    engine.cut(values, one), reference, [x[one] for x in inputs], refs, picked, r
                )
                summed = [None if f is None else f.sum(axis=1, keepdims=True) for f in found]
                self._accumulate(slice(rows.start + i, rows.start + i + 1), picked, summed)

    def _explain_pairs(self) -> None:
        """One reference at a time, repeated for all rows: for graphs that move the batch axis."""
        engine, n_ref = self._engine, len(self.data_ref[0])
        for rows in self._blocks(len(self.data[0]), engine.chunk_rows(self._n_nodes)):
            inputs = self._device_rows(self.data, rows)
            values, count = engine.forward(inputs), rows.stop - rows.start
            self._store_scores(rows, values)
            for j in range(n_ref):
                one = self._device_rows(self.data_ref, slice(j, j + 1))
                reference = engine.forward(engine.beside(one, inputs))
                for goal, score in zip(self.decomp_goal, self._scores(reference, count), strict=True):
                    goal[rows] -= to_host(score) / n_ref
                for picked in engine.output_slices(self._n_nodes, count):
                    found = self._contributions(values, reference, inputs, one, picked, count)
                    self._accumulate(rows, picked, found)

    def _accumulate(self, rows: slice, picked: slice, signals: Sequence[Array | None]) -> None:
        """Add the share of some references to the result."""
        n_ref = len(self.data_ref[0])
        for s, place in enumerate(self._node_slices()):
            inside = range(max(place.start, picked.start), min(place.stop, picked.stop))
            if not inside:
                continue
            here = slice(inside.start - picked.start, inside.stop - picked.start)
            there = slice(inside.start - place.start, inside.stop - place.start)
            for target, signal in zip(self.result[s], signals, strict=True):
                if target is not None and signal is not None:
                    target[rows, ..., there] += np.moveaxis(to_host(signal[here]), 0, -1) / n_ref

    def _describe(self) -> list[str]:
        return [
            f"rule_name: {self.rule_name!r}",
            f"winner_takes_all: {self.winner_takes_all}",
            f"limit_ref: {self.limit_ref}",
            f"data_ref: {describe_reference(self.data_ref)}",
        ]
