"""DeepLIFT and DeepSHAP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..arrays import Array, lead, to_host
from ..conventions import DEEPLIFT
from ..data import joined, leaves, rows_of
from ..device import current, in_session, use
from ..errors import RuleError, shown
from ..kernels.base import Pair
from ..rules import DEEPLIFT_RULES, DeepLiftRule, DeepLiftSetting
from ..walk import Ledger, chunks, difference_parts, multiplier_step
from .base import Method
from .checks import check_count, check_flags
from .engine import Run
from .gradients import (
    _required,
    describe_reference,
    one_reference,
    reference_means,
    reference_rows,
    subtract_means,
)

if TYPE_CHECKING:
    from ..converter import Converter
    from ..graph.graph import Graph


_PLAIN = [rule() for rule in DEEPLIFT_RULES.values()]  # the same as their names


class MultiplierMethod(Method):
    """What DeepLIFT and DeepSHAP share: the rule and one walk back between two runs."""

    value_name: ClassVar[str] = "Contribution"
    walk: ClassVar[str] = "deeplift"
    conventions = DEEPLIFT

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
        if isinstance(rule, str) or rule in _PLAIN:
            rule = self._named(rule if isinstance(rule, str) else rule.name)
        setting = self._conventions.setting
        return replace(setting, rule=rule, winner_takes_all=self.winner_takes_all)

    def _check_rules(self) -> None:
        super()._check_rules()
        self._setting()

    def _rule_in_use(self) -> str:
        """Return the rule's name as it was given, and what `like` makes of it."""
        rule = repr(self.rule_name)
        return rule if self.like is None else f"{rule} ({self._setting().rule!r})"

    def _named(self, name: str) -> DeepLiftRule:
        """Return what the name of a rule stands for."""
        rules = self._conventions.rules
        if name not in rules:
            raise RuleError(f"{self.like} has no rule {name!r}; it has {', '.join(rules)}")
        return rules[name]

    def _contributions(
        self,
        run: Run,
        reference: Run,
        picked: slice,
        rows: slice,
        spent: Sequence[Run] = (),
    ) -> list[Array | None]:
        """Return multiplier times difference per explained tensor, (outputs, rows, *its shape).

        The rows are those of the longer run; the other may have a single one. `rows` are the
        instances in the run, `spent` the runs that are used up.
        """
        engine = self._engine
        longer = max(run, reference, key=lambda r: len(r.inputs[0]))
        step = multiplier_step(engine.graph, run.values, reference.values, self._setting())
        seeds = self._seeds(longer.values, picked, rows)
        signals = engine.backward(seeds, step, [one.values for one in spent])
        found = (signals.get(name) for name in engine.explained)
        products = [
            None if m is None else times_difference(engine.graph, m, name, run, reference)
            for m, name in zip(found, engine.explained, strict=True)
        ]
        return [None if p is None else p[:, : len(longer.inputs[0])] for p in products]


def times_difference(graph: Graph, m: Any, name: str, run: Run, reference: Run) -> Array:
    """Multiply by the difference of two runs at a tensor, or by its two parts."""
    if isinstance(m, Pair):
        plus, minus = difference_parts(graph, run.values, reference.values)(name)
        return m.positive * lead(plus, m.positive) + m.negative * lead(minus, m.negative)
    return m * lead(run.values[name] - reference.values[name], m)


class DeepLift(MultiplierMethod):
    """Contributions of the differences to one reference.

    Parameters
    ----------
    converter, data, **options
        As for `Gradient`.
    x_ref : array (1, *input_dim) or list of those, optional
        The reference; zeros by default.
    rule_name : {"rescale", "reveal_cancel"} or rule, default "rescale"
        How multipliers pass a nonlinearity; with `like`, as that library computes it.
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
        self._compute()

    def _compute(self) -> None:
        self._allocate(len(self.data[0]))
        self._each_pair(self._explain_rows)
        self._finish()

    def _explain_rows(self, rows: slice, run: Run, reference: Run) -> None:
        self._store_scores(rows, run.values)
        scores = self._scores(reference.values, rows)
        for goal, start in zip(self.decomp_goal, scores, strict=True):
            goal[rows] -= to_host(start)
        for picked in self._engine.output_slices(self._n_nodes, rows.stop - rows.start):
            spent = (run, reference) if picked.stop == self._n_nodes else ()
            found = self._contributions(run, reference, picked, rows, spent)
            self._store(rows, picked, found)

    def _each_pair(self, task: Callable[[slice, Run, Run], None]) -> None:
        """Do a task for chunks of rows beside the reference, which runs once if it can.

        The task may use up both runs: of one that is shared it gets a copy, of no tensor.
        """
        engine = self._engine
        refs = engine.per_place(lambda: [engine.xp.asarray(r) for r in self.x_ref])
        shared = engine.free_rows and len(self._blocks()) > 1
        with engine.threads():  # as data run: rounding would break ties of a maximum otherwise
            once = engine.per_place(lambda: engine.run(refs())) if shared else None

        def reference(inputs: list[Array]) -> Run:
            if once:
                return once()._replace(values=dict(once().values))
            return engine.run(refs() if engine.free_rows else engine.beside(refs(), inputs))

        def block(rows: slice) -> None:
            inputs = self._device_rows(self.data, rows)
            task(rows, engine.run(inputs), reference(inputs))

        self._each_block(block)

    @in_session
    def ledger(self) -> Any:
        """Tell node by node what multiplier times difference came in and went on.

        Returns
        -------
        pandas.DataFrame
            One row per node: node, op, rule, incoming, outgoing, and gap, the largest difference
            left for any instance and explained node.
        """
        from ..coverage import ledger_table

        self._need_data()
        engine, books = self._engine, []

        def book(rows: slice, run: Run, reference: Run) -> None:
            count = rows.stop - rows.start
            runs = engine.graph, run.values, reference.values
            found = []
            for picked in engine.output_slices(self._n_nodes, count):
                ledger = Ledger(engine.graph.rows_first)
                step = multiplier_step(*runs, self._setting(), ledger)
                engine.backward(self._seeds(run.values, picked, rows), step)
                ledger.fetch()
                found.append((rows.start, (ledger, count)))
            books.extend(found)  # all or none: what does not fit into memory is done again

        use(engine.places[0])
        self._each_pair(book)
        books = [entry for _, entry in sorted(books, key=lambda b: b[0])]
        rule = repr(self._setting().rule)
        return ledger_table(books, {n.name: rule for n in engine.graph.nodes})

    def _describe(self) -> list[str]:
        return [
            f"rule_name: {self._rule_in_use()}",
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
        given = drawn(joined(data_ref, "data_ref"), self.limit_ref, self.seed)
        self.data_ref = drawn(reference_rows(self, given), self.limit_ref, self.seed)
        self._compute()

    def _compute(self) -> None:
        self._allocate(len(self.data[0]))
        if self._engine.free_rows:
            self._explain_tiles()
        else:
            self._explain_pairs()
        self._finish()

    def _explain_tiles(self) -> None:
        """Tiles of instances x references; the longer side is the batch, the other is looped over.

        Neither side is ever repeated: one row of a run broadcasts against all rows of the other.
        """
        references = _References(self)
        means = reference_means(self, references.parts(), lambda part: references(part).values)

        def block(rows: slice) -> None:
            parts = references.parts()
            run = self._engine.run(self._device_rows(self.data, rows))
            self._store_scores(rows, run.values)
            for part in parts:
                self._add_tile(rows, run, references(part))

        self._each_block(block)
        subtract_means(self, means)

    def _add_tile(self, rows: slice, run: Run, references: Run) -> None:
        """Add the contributions of some rows against some references."""
        n, n_part, n_ref = len(run.inputs[0]), len(references.inputs[0]), len(self.data_ref[0])
        for picked in self._engine.output_slices(self._n_nodes, max(n, n_part)):
            if n >= n_part:
                total: list[Array | None] = []
                for one in chunks(n_part, 1):
                    reference = self._engine.cut(references, one)
                    found = self._contributions(run, reference, picked, rows)
                    total = found if one.start == 0 else _sums(total, found)
                self._store(rows, picked, total, share=1 / n_ref)
                continue
            for one in chunks(n, 1):
                row = slice(rows.start + one.start, rows.start + one.stop)
                found = self._contributions(self._engine.cut(run, one), references, picked, row)
                total = [None if f is None else f.sum(axis=1, keepdims=True) for f in found]
                self._store(row, picked, total, share=1 / n_ref)

    def _explain_pairs(self) -> None:
        """One reference at a time, repeated for all rows: for graphs that move the batch axis."""
        engine, n_ref = self._engine, len(self.data_ref[0])

        def block(rows: slice) -> None:
            run, count = engine.run(self._device_rows(self.data, rows)), rows.stop - rows.start
            self._store_scores(rows, run.values)
            for part in chunks(n_ref, 1):
                one = self._device_rows(self.data_ref, part)
                reference = engine.run(engine.beside(one, run.inputs))
                scores = self._scores(reference.values, rows)
                for goal, score in zip(self.decomp_goal, scores, strict=True):
                    goal[rows] -= to_host(score) / n_ref
                for picked in engine.output_slices(self._n_nodes, count):
                    found = self._contributions(run, reference, picked, rows)
                    self._store(rows, picked, found, share=1 / n_ref)

        self._each_block(block)

    def _describe(self) -> list[str]:
        return [
            f"rule_name: {self._rule_in_use()}",
            f"winner_takes_all: {self.winner_takes_all}",
            f"limit_ref: {self.limit_ref}",
            f"data_ref: {describe_reference(self.data_ref)}",
        ]


def _sums(a: Sequence[Array | None], b: Sequence[Array | None]) -> list[Array | None]:
    return [y if x is None else x if y is None else x + y for x, y in zip(a, b, strict=True)]


class _References:
    """Runs of as many references as fit at a time; if these are all, each GPU keeps its run."""

    def __init__(self, method: DeepSHAP) -> None:
        self._method, self._count = method, len(method.data_ref[0])
        self._kept: dict[str, Run] = {}

    def parts(self) -> list[slice]:
        """Cut the references; fewer fit at a time when the memory of a GPU was full."""
        size = self._method._engine.chunk_rows(self._method._n_nodes)
        if size < self._count:
            self._kept.clear()
        return list(chunks(self._count, size))

    def __call__(self, part: slice) -> Run:
        """Return a run of some references."""
        engine, method = self._method._engine, self._method
        place, whole = current(engine.places).name, part == slice(0, self._count)
        run = self._kept.get(place) if whole else None
        if run is None:
            run = engine.run(engine.device_rows(method.data_ref, part))
        if whole:
            self._kept[place] = run
        return run


def drawn(refs: Any, limit: int, seed: int | None) -> Any:
    """Return at most `limit` references, drawn without replacement, in their order.

    Only these are read. What does not look like arrays of the same length is left to be checked.
    """
    counts = {x.shape[0] if getattr(x, "ndim", 0) else 0 for x in leaves(refs)}
    if len(counts) != 1 or not max(counts) > limit:
        return refs
    rng = np.random.default_rng(seed)
    kept = np.sort(rng.choice(counts.pop(), limit, replace=False))
    return rows_of(refs, kept)
