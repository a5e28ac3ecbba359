"""SHAP: Shapley values of features, by sampling orders or by enumerating subsets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import ArgumentError
from .agnostic import AgnosticMethod, check_size
from .checks import check_count, check_flags
from .deeplift import drawn
from .gradients import describe_reference

if TYPE_CHECKING:
    from ..converter import Converter

EXACT_GROUPS = 10  # so many are enumerated without being asked
MAX_EXACT_GROUPS = 16


class SHAP(AgnosticMethod):
    """Shapley values: the mean effect of a feature over all orders in which features can come in.

    What is not in yet is as in the references, over which answers are averaged (the interventional
    expectation). The values add up to `decomp_goal`, the output minus its mean over the references.

    Parameters
    ----------
    model : Converter or callable
        A function takes an array (n, *input_dim) and returns (n, outputs) or (n,).
    data : array (batch, *input_dim), data frame, or list or dict of these
        The instances to explain.
    data_ref : array (references, *input_dim), data frame, or list or dict of these
        Rows to compare with, such as training data.
    n_permutations : int, default 10
        Random orders of the groups, the same for all rows; each is used forwards and backwards.
    exact : "auto" or bool, default "auto"
        Use all orders, by enumerating the subsets of the groups; "auto" does up to 10 groups.
    limit_ref : int, default 100
        At most so many references are used, drawn without replacement (`seed`).
    groups : array of int or str, or list of those, optional
        A label for each feature, of the shape of one row or, for all channels, of its places.
        Features with the same label come in together and share the value equally. By default each
        feature of a table is a group, and signals and images are cut into at most 64 patches.
    pred_fun : callable, optional
        The function to explain, where `model` is none.
    output_idx, output_label, output_weights
        As for `Gradient`. All nodes are explained by the same evaluations.
    input_names, output_names : list, optional
        Labels for a function; by default the columns of a data frame, and X1.., Y1...
    ignore_last_act : bool, default False
        Explain a Converter without its last activation.
    dtype : optional
        By default "float" for a Converter, "double" for a function.
    batch_size : int, optional
        Changed rows that the model gets at a time.
    **options
        channels_first=True, verbose=None, device="cpu", seed=None.

    Attributes
    ----------
    standard_error : list (per explained output) of list (per input) of array, or None
        Of each value, by the choice of orders alone; None where all orders are used. NaN if there
        is one permutation only.
    groups : list (per input) of array (*input_dim)
        The number of the group of each feature, channels first.

    Raises
    ------
    OnnxplainError
        A subclass says which argument cannot be used and what was expected; a ModelError that the
        function fails or returns no finite numbers.

    Notes
    -----
    Strumbelj & Kononenko (2014), Explaining prediction models and individual predictions with
    feature contributions; Lundberg & Lee (2017), A unified approach to interpreting model
    predictions. A row takes (2 n_permutations (groups - 1) + 1) x references evaluations, or
    2^groups x references where all orders are used.

    Examples
    --------
    >>> import numpy as np, onnxplain as ox
    >>> shap = ox.SHAP(lambda x: x @ [1.0, -2.0, 0.0], np.ones((1, 3)), np.zeros((5, 3)))
    >>> shap.get_result()[0, :, 0].tolist()
    [1.0, -2.0, 0.0]
    """

    method_name: ClassVar[str] = "SHAP"
    value_name: ClassVar[str] = "Shapley value"

    def __init__(
        self,
        model: Converter | Callable[[np.ndarray], Any] | Any,
        data: Any,
        data_ref: Any = None,
        *,
        n_permutations: int = 10,
        exact: bool | str = "auto",
        limit_ref: int = 100,
        groups: Any = None,
        **options: Any,
    ) -> None:
        self.n_permutations = check_count("n_permutations", n_permutations)
        self.limit_ref = check_count("limit_ref", limit_ref)
        if exact != "auto":
            check_flags(exact=exact)
        self._prepare(model, data, **options)
        self.data_ref = drawn(self._references(data, data_ref), self.limit_ref, self.seed)
        self._group(groups)
        self.exact = self._enumerates(exact)
        self._compute()

    def _enumerates(self, exact: bool | str) -> bool:
        if exact is True and self._n_groups > MAX_EXACT_GROUPS:
            raise ArgumentError(
                f"exact=True needs 2^{self._n_groups} evaluations per row and reference; at most "
                f"{MAX_EXACT_GROUPS} groups are enumerated. Use exact='auto', or fewer groups"
            )
        return self._n_groups <= EXACT_GROUPS if exact == "auto" else bool(exact)

    def _orders(self) -> _Orders:
        check_size("n_permutations", 16 * self.n_permutations * self._n_groups)
        return _Orders(self._n_groups, self.n_permutations, np.random.default_rng(self.seed))

    def _compute(self) -> None:
        plan = _Subsets(self._n_groups) if self.exact else self._orders()
        full = self._predict()
        shape = (self._n_rows, self._n_groups, self._n_nodes)
        values, errors, empty = np.zeros(shape), np.zeros(shape), np.zeros_like(full)

        def finish(rows: slice, answers: np.ndarray) -> None:
            empty[rows] = answers[:, 0]
            values[rows], errors[rows] = plan.values(answers, full[rows])

        self._coalitions(plan.count, plan.masks, self._features(self.data_ref), finish)
        self.result = self._per_input(values)
        self.standard_error = None if self.exact else self._per_input(errors)
        self.decomp_goal = self._per_output(full - empty)

    def _describe(self) -> list[str]:
        orders = "all" if self.exact else f"{self.n_permutations}, forwards and backwards"
        return [
            f"n_permutations: {orders}",
            f"groups: {self._n_groups}",
            f"limit_ref: {self.limit_ref}",
            f"data_ref: {describe_reference(self.data_ref)}",
        ]


class _Subsets:
    """All subsets of the groups but the full one, numbered by their bits."""

    def __init__(self, n: int) -> None:
        self.n, self.count = n, 2**n - 1

    def masks(self, numbers: np.ndarray) -> np.ndarray:
        return (numbers[:, None] >> np.arange(self.n) & 1).astype(bool)

    def values(self, answers: np.ndarray, full: np.ndarray) -> tuple[np.ndarray, Any]:
        """Return Shapley values (rows, groups, nodes) and their error, none."""
        inside = self.masks(np.arange(2**self.n))
        share = [1 / (self.n * math.comb(self.n - 1, k)) for k in range(self.n)]
        size = inside.sum(axis=1)
        joins, stays = np.array([0, *share])[size], np.array([*share, 0])[size]
        weights = np.where(inside, joins[:, None], -stays[:, None]).T  # groups x subsets
        return weights @ np.concatenate([answers, full[:, None]], axis=1), 0.0


class _Orders:
    """Random orders, each forwards and backwards; a coalition is the beginning of an order."""

    def __init__(self, n: int, n_orders: int, rng: np.random.Generator) -> None:
        forwards = rng.permuted(np.tile(np.arange(n), (n_orders, 1)), axis=1)
        both = np.stack([forwards, n - 1 - forwards], axis=1)
        self.place = both.reshape(-1, n)  # of each group, in each order
        self.n, self.count = n, 1 + len(self.place) * (n - 1)

    def masks(self, numbers: np.ndarray) -> np.ndarray:
        """The first coalition is empty; then come n - 1 of each order."""
        order, size = np.divmod(np.maximum(numbers - 1, 0), max(self.n - 1, 1))
        size = np.where(numbers == 0, 0, size + 1)
        return self.place[order] < size[:, None]

    def values(self, answers: np.ndarray, full: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return Shapley values (rows, groups, nodes) and their standard errors."""
        rows, _, nodes = answers.shape
        ends = (rows, len(self.place), 1, nodes)
        inner = answers[:, 1:].reshape(rows, len(self.place), self.n - 1, nodes)
        first = np.broadcast_to(answers[:, :1, None], ends)
        last = np.broadcast_to(full[:, None, None], ends)
        steps = np.diff(np.concatenate([first, inner, last], axis=2), axis=2)
        effects = np.take_along_axis(steps, self.place[None, :, :, None], axis=2)
        pairs = effects.reshape(rows, -1, 2, self.n, nodes).mean(axis=2)
        if pairs.shape[1] == 1:
            return pairs[:, 0], np.full_like(pairs[:, 0], np.nan)
        return pairs.mean(axis=1), pairs.std(axis=1, ddof=1) / math.sqrt(pairs.shape[1])
