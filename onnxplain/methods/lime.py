"""LIME: weights of a linear model that answers like the model does around an instance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..arrays import divide, to_host
from ..errors import ArgumentError, DataError, ShapeError, shown
from ..selection import Top
from ..walk import chunks
from .agnostic import VALUE_BYTES, AgnosticMethod, check_size
from .checks import check_count, check_flags

if TYPE_CHECKING:
    from ..converter import Converter

DISTANCES = ("gower", "euclidean")


class LIME(AgnosticMethod):
    """Weights of a linear model that answers like the model does around an instance.

    On tables, features are drawn anew as they are spread in `data_ref`. The weight of a feature
    says by how much the answer is higher where it is in the same bin (quarter, by default) as in
    the instance than where it is in another; with `bin_continuous=False` it is a slope. With
    `groups`, and always for signals and images, groups are replaced by `baseline` at random, and
    the weight says what keeping the group adds.

    Parameters
    ----------
    model, data
        As for `SHAP`.
    data_ref : array (references, *input_dim), data frame, or list or dict of these
        Rows that tell how features are spread, such as training data. With groups, their mean is
        the default baseline.
    n_permutations : int, optional
        Changed rows; by default 5000 for tables, else 1000. The first is the instance itself.
    bin_continuous : bool, default True
        Fit one weight for the bin that the instance is in, not a slope.
    n_bins : int, default 4
        Bins per feature.
    quantile_bins : bool, default True
        Bins hold equally many rows of `data_ref`, else they are equally wide. Equally wide ones
        serve where quantiles coincide to less than two bins.
    n_features : int, optional
        Weights other than 0 per row and node, those that are largest if all are fitted; all by
        default.
    dist_fun : str, optional
        "gower", the default for tables, weights rows by 1 - d^gower_pow, where d is the mean
        difference of features relative to their ranges, or the share of replaced groups.
        "euclidean", the default for groups, weights them by
        sqrt(exp(-d^2 / kernel_width^2)), where d is the distance between what the linear model
        sees: bins that differ, features in standard deviations, or replaced groups.
    gower_pow : float, default 1
    kernel_width : float, optional
        By default 0.75 sqrt(features or groups).
    groups
        As for `SHAP`.
    baseline : float or array (1, *input_dim), or list of those, optional
        What replaced groups are; by default the mean of `data_ref`.
    **options
        As for `SHAP`.

    Attributes
    ----------
    intercept, r_squared : list (per explained output) of array (batch, nodes)
        Of the linear models; 1 is a perfect fit.

    Notes
    -----
    Ribeiro et al. (2016), "Why should I trust you?". The linear models are ridge regressions of
    standardised answers on standardised features with the penalty 2 / n_permutations. A feature
    that is constant in `data_ref` has the weight 0. The weights are not meant to add up:
    `decomp_goal` is None.

    Examples
    --------
    >>> import numpy as np, onnxplain as ox
    >>> x, train = np.ones((1, 2)), np.random.default_rng(0).normal(size=(100, 2))
    >>> lime = ox.LIME(lambda x: x @ [3.0, -1.0], x, train, bin_continuous=False, seed=1)
    >>> lime.get_result()[0, :, 0].round(2).tolist()
    [3.0, -1.0]
    """

    method_name: ClassVar[str] = "LIME"
    value_name: ClassVar[str] = "Feature weight"

    def __init__(
        self,
        model: Converter | Callable[[np.ndarray], Any] | Any,
        data: Any,
        data_ref: Any = None,
        *,
        n_permutations: int | None = None,
        bin_continuous: bool = True,
        n_bins: int = 4,
        quantile_bins: bool = True,
        n_features: int | None = None,
        dist_fun: str | None = None,
        gower_pow: float = 1.0,
        kernel_width: float | None = None,
        groups: Any = None,
        baseline: Any = None,
        **options: Any,
    ) -> None:
        check_flags(bin_continuous=bin_continuous, quantile_bins=quantile_bins)
        self.bin_continuous, self.quantile_bins = bin_continuous, quantile_bins
        self.n_bins = check_count("n_bins", n_bins, 2)
        self.n_features = None if n_features is None else check_count("n_features", n_features)
        if n_permutations is not None:
            check_count("n_permutations", n_permutations)
        if dist_fun is not None and not (isinstance(dist_fun, str) and dist_fun in DISTANCES):
            raise ArgumentError(f"dist_fun must be 'gower' or 'euclidean', got {shown(dist_fun)}")
        self.gower_pow = _positive("gower_pow", gower_pow)
        self._prepare(model, data, **options)
        self._group(groups)
        self.on_bins = groups is None and all(len(self._engine.dims[i]) < 2 for i in self._places)
        self.dist_fun = dist_fun or ("gower" if self.on_bins else "euclidean")
        self.n_permutations = self._checked_size(n_permutations)
        width = 0.75 * math.sqrt(self._n_groups) if kernel_width is None else kernel_width
        self.kernel_width = _positive("kernel_width", width)
        if self.on_bins:
            self._check_table(baseline)
        if baseline is None:
            self.data_ref = self._references(data, data_ref)
        self._level = None if self.on_bins else self._baseline(baseline)
        self._compute()

    def _compute(self) -> None:
        if self._level is None:
            self._explain_table(_Spread(self, self._features(self.data_ref)))
        else:
            self._explain_groups(self._level)

    # -- checks -----------------------------------------------------------------------------------

    def _checked_size(self, n_permutations: Any) -> int:
        default = 5000 if self.on_bins else 1000
        least = self._n_groups + 2
        if n_permutations is None:
            n_permutations = max(default, 2 * least)
        count = int(n_permutations)
        if count < least:
            raise ArgumentError(
                f"n_permutations is {count}; {self._n_groups} weights are fitted, "
                f"which takes at least {least}"
            )
        check_size("n_permutations", 24 * count * self._n_groups)
        return count

    def _check_table(self, baseline: Any) -> None:
        if baseline is not None:
            raise ArgumentError(
                "baseline is what groups are replaced by: give groups too, such as "
                "groups=range(features)"
            )
        if len(self._places) < len(self.data):
            raise ArgumentError(
                "the model takes inputs of whole numbers, which differ from row to row: give "
                "groups, one array per input with values"
            )

    def _baseline(self, baseline: Any) -> np.ndarray:
        """Return what groups are replaced by, (1, features)."""
        if baseline is None:
            return self._features(self.data_ref).mean(axis=0, keepdims=True)
        if np.ndim(baseline) == 0 and not isinstance(baseline, (str, bytes, dict)):
            level = _finite_number("baseline", baseline)
            return self._features([np.full_like(x[:1], level) for x in self.data])
        arrays = self._arrays(baseline, "baseline")
        if len(arrays[0]) != 1:
            raise ShapeError(f"baseline has {len(arrays[0])} rows, one is expected")
        return self._features(arrays)

    # -- tables -----------------------------------------------------------------------------------

    def _explain_table(self, spread: _Spread) -> None:
        scores, x = self._predict(), self._features(self.data).astype(np.float64)
        shared = self._shared_answers(spread.samples)
        fits = []
        row_bytes = 8 * self.n_permutations * (3 * self._n_groups + 2 * self._n_nodes)
        for rows in chunks(self._n_rows, max(1, VALUE_BYTES // row_bytes)):
            design = spread.design(x[rows])
            answers = self._own_answers(shared, rows)
            answers[:, 0] = scores[rows]  # the first sample is the instance itself
            weights = self._weights(*spread.beside(x[rows]), spread.scaled(design))
            fits.append(self._fit(design, weights, answers))
        self._keep(fits)

    def _shared_answers(self, samples: np.ndarray) -> list[np.ndarray]:
        """Return answers to samples: per explained output the nodes, or all where rows differ."""
        engine = self._engine

        def block(rows: slice) -> list[np.ndarray]:
            here = engine.xp.asarray(samples[rows].astype(engine.dtype))
            flats = self._flats(here, np.zeros(len(here), np.int64))
            pairs = zip(self._nodes, flats, strict=True)
            return [to_host(f if isinstance(n, Top) else n.values(f)) for n, f in pairs]

        blocks = list(chunks(len(samples), engine.chunk_rows()))
        with self._progress(len(blocks)) as done:
            found = engine.collect(block, blocks, done)
        return [self._checked(f.astype(np.float64), "rows with changed features") for f in found]

    def _own_answers(self, shared: Sequence[np.ndarray], rows: slice) -> np.ndarray:
        """Return answers (rows, samples, nodes)."""
        count, parts = rows.stop - rows.start, []
        for answers, top in zip(shared, self._top, strict=True):
            if top is None:
                parts.append(np.broadcast_to(answers, (count, *answers.shape)))
            else:
                parts.append(np.moveaxis(answers[:, top[rows]], 0, 1))
        return np.concatenate(parts, axis=2)

    # -- groups -----------------------------------------------------------------------------------

    def _explain_groups(self, baseline: np.ndarray) -> None:
        scores = self._predict()
        rng = np.random.default_rng(self.seed)
        masks = rng.random((self.n_permutations, self._n_groups)) < 0.5
        masks[0] = True
        design, fits = masks[None].astype(np.float64), []
        full = np.ones((1, self._n_groups))
        weights = self._weights(masks, full, full, design)

        def finish(rows: slice, answers: np.ndarray) -> None:
            answers[:, 0] = scores[rows]
            fits.append(self._fit(design, weights, answers))

        self._coalitions(len(masks), lambda numbers: masks[numbers], baseline, finish)
        self._keep(fits)

    # -- the linear models ------------------------------------------------------------------------

    def _weights(
        self, samples: np.ndarray, x: np.ndarray, ranges: np.ndarray, design: np.ndarray
    ) -> np.ndarray:
        """Return weights (rows, samples); the first sample stands for the instance."""
        if self.dist_fun == "gower":
            inverse = divide(1.0, ranges) / x.shape[1]
            far = np.abs(samples - x[:, None]) @ inverse[..., None]
            far[:, 0] = 0
            return 1 - np.minimum(far[..., 0], 1) ** self.gower_pow
        square = ((design - design[:, :1]) ** 2).sum(axis=2)
        return np.exp(-square / (2 * self.kernel_width**2))

    def _fit(self, design: np.ndarray, weights: np.ndarray, answers: np.ndarray) -> _Fit:
        return _ridge(design, weights, answers, 2 / self.n_permutations, self.n_features)

    def _keep(self, fits: Sequence[_Fit]) -> None:
        weights, intercept, r_squared = map(np.concatenate, zip(*fits, strict=True))
        self.result = self._per_input(weights)
        self.intercept, self.r_squared = self._per_output(intercept), self._per_output(r_squared)
        self.decomp_goal = None

    def _describe(self) -> list[str]:
        bins = f"{self.n_bins} bins per feature" if self.bin_continuous else "slopes"
        return [
            f"n_permutations: {self.n_permutations}",
            f"weights of: {bins if self.on_bins else f'{self._n_groups} groups'}",
            f"dist_fun: {self.dist_fun!r}",
            f"r_squared: {np.median(np.concatenate(self.r_squared, axis=1)):.3g} (median)",
        ]


_Fit = tuple[np.ndarray, np.ndarray, np.ndarray]


class _Spread:
    """How features are spread in the references: samples, bins and scales."""

    def __init__(self, method: LIME, refs: np.ndarray) -> None:
        refs = refs.astype(np.float64)
        self.constant = (refs == refs[0]).all(axis=0)
        if self.constant.all():
            raise DataError(
                f"data_ref holds {len(refs)} row(s) that are all the same; LIME draws features as "
                "they are spread in it: give more of the training data"
            )
        self.binned, self.deviations = method.bin_continuous, refs.std(axis=0)
        rng, shape = np.random.default_rng(method.seed), (method.n_permutations, refs.shape[1])
        if self.binned:
            self.cuts = [_cuts(c, method.n_bins, method.quantile_bins) for c in refs.T]
            self.samples = self._from_bins(rng.random(shape), refs)
        else:
            drawn_rows = rng.integers(0, len(refs), shape)
            kernel = _bandwidths(refs) * rng.standard_normal(shape)
            self.samples = np.take_along_axis(refs, drawn_rows, axis=0) + kernel
        whole = (refs == np.rint(refs)).all(axis=0)
        self.samples = np.where(whole, np.rint(self.samples), self.samples)
        if self.binned:
            self.bins = self._bins(self.samples)

    def _from_bins(self, uniform: np.ndarray, refs: np.ndarray) -> np.ndarray:
        """Draw a bin by its share of the references, then a value inside it."""
        found = np.empty_like(uniform)
        for j, cuts in enumerate(self.cuts):
            up_to = np.searchsorted(np.sort(refs[:, j]), cuts[1:], side="right") / len(refs)
            found[:, j] = np.interp(uniform[:, j], [0, *up_to], cuts)
        return found

    def _bins(self, x: np.ndarray) -> np.ndarray:
        """Number the bins, whose upper end belongs to them; the outer ones have no end."""
        columns = [np.searchsorted(c[1:-1], x[:, j], "left") for j, c in enumerate(self.cuts)]
        return np.stack(columns, axis=1).astype(np.int32)

    def design(self, x: np.ndarray) -> np.ndarray:
        """Return what the linear model sees, (rows, samples, features)."""
        if self.binned:
            same = self.bins == self._bins(x)[:, None]
            same[:, 0] = True
            return same.astype(np.float64)
        design = np.broadcast_to(self.samples, (len(x), *self.samples.shape)).copy()
        design[:, 0] = np.where(self.constant, design[:, 0], x)
        return design

    def scaled(self, design: np.ndarray) -> np.ndarray:
        """Return a design in which distances count standard deviations, or bins that differ."""
        return design if self.binned else divide(design, self.deviations)

    def beside(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return samples, instances, and ranges over both."""
        low = np.minimum(self.samples[1:].min(axis=0), x)
        return self.samples, x, np.maximum(self.samples[1:].max(axis=0), x) - low


def _cuts(column: np.ndarray, n_bins: int, quantiles: bool) -> np.ndarray:
    """Return the ends of bins; equally wide ones where quantiles make less than two bins."""
    low, high = column.min(), column.max()
    if low == high:
        return np.array([low, high])
    found = np.unique(np.quantile(column, np.linspace(0, 1, n_bins + 1))) if quantiles else ()
    return found if len(found) > 2 else np.linspace(low, high, n_bins + 1)


def _bandwidths(refs: np.ndarray) -> np.ndarray:
    """Return Silverman's rule of thumb for the kernel density of each feature."""
    quarter, three = np.quantile(refs, [0.25, 0.75], axis=0)
    scale, middle = refs.std(axis=0), (three - quarter) / 1.34
    return 0.9 * np.where(middle > 0, np.minimum(scale, middle), scale) * len(refs) ** -0.2


def _ridge(
    design: np.ndarray,
    weights: np.ndarray,
    answers: np.ndarray,
    penalty: float,
    n_features: int | None = None,
) -> _Fit:
    """Weighted ridge regressions with intercept, by the normal equations of standardised values.

    Parameters
    ----------
    design : array (rows or 1, samples, features)
    weights : array (rows or 1, samples)
    answers : array (rows, samples, nodes)

    Returns
    -------
    array (rows, features, nodes), array (rows, nodes), array (rows, nodes)
        Weights of the features in their units, intercepts, R squared.
    """
    w = (weights / weights.sum(axis=1, keepdims=True))[:, None]  # rows 1 samples
    mean, level = w @ design, w @ answers
    x, y = design - mean, answers - level
    wx = np.swapaxes(x, 1, 2) * w
    gram, cross = wx @ x, wx @ y
    square = (w @ design**2)[:, 0]
    variance = np.diagonal(gram, axis1=1, axis2=2)
    scale = np.sqrt(np.where(variance > 1e-20 * square, variance, 0))[..., None]
    correlation = divide(gram, scale * np.swapaxes(scale, 1, 2))
    correlation += penalty * np.eye(gram.shape[1])
    start = divide(cross, scale)
    found = np.linalg.solve(correlation, start)
    if n_features is not None and n_features < gram.shape[1]:
        found = _largest(correlation, start, found, divide(found, scale), n_features)
    slopes = divide(found, scale)
    total = (w @ y**2)[:, 0]
    rest = total - (slopes * (2 * cross - gram @ slopes)).sum(axis=1)
    return slopes, (level - mean @ slopes)[:, 0], 1 - divide(rest, total)


def _largest(
    matrix: np.ndarray, start: np.ndarray, found: np.ndarray, slopes: np.ndarray, n: int
) -> np.ndarray:
    """Solve again with the `n` largest slopes of each node, the others 0."""
    order = np.argsort(np.argsort(-np.abs(slopes), axis=1, kind="stable"), axis=1)
    kept = order < n  # rows features nodes
    solved = np.empty_like(found)
    for k in range(found.shape[2]):  # one node at a time: each has equations of its own
        keep = kept[..., k].astype(np.float64)
        own = matrix * keep[:, :, None] * keep[:, None]
        own += np.eye(matrix.shape[1]) * (1 - keep)[:, None]
        solved[..., k] = np.linalg.solve(own, (start[..., k] * keep)[..., None])[..., 0]
    return solved


# -- checks ----------------------------------------------------------------------------------------


def _finite_number(name: str, value: Any) -> float:
    number = isinstance(value, (int, float, np.integer, np.floating))
    if not number or isinstance(value, bool) or not math.isfinite(value):
        raise ArgumentError(f"{name} must be a finite number, got {shown(value)}")
    return float(value)


def _positive(name: str, value: Any) -> float:
    if _finite_number(name, value) <= 0:
        raise ArgumentError(f"{name} must be a number > 0, got {shown(value)}")
    return float(value)
