"""Several models side by side: the same explanation of each, and how well they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ArgumentError, counted, shown
from .methods.base import Method
from .methods.checks import check_count
from .results import channels_first_array, data_labels, output_labels, predictions, selected_outputs

if TYPE_CHECKING:
    import pandas as pd

    from .converter import Converter

_MEASURES = ("pearson", "spearman", "relative_l2", "top_k_overlap")


@dataclass(frozen=True, repr=False)
class Comparison:
    """Explanations of several models, and a table of how each agrees with the first.

    Attributes
    ----------
    results : list of Method
        One per model, in the order given.
    table : pandas.DataFrame
        One row per model but the first, explained node and instance: model, model_output,
        output_node, data, pred (of this model), pred_difference (to that of the first), pearson,
        spearman, relative_l2 (length of the difference by that of the first) and top_k_overlap
        (which part of the k largest magnitudes they have in common).
    top_k : int
        How many of the largest values are compared.
    """

    results: list[Method]
    table: pd.DataFrame
    top_k: int

    def __repr__(self) -> str:
        columns = ["pred_difference", *_MEASURES]
        means: Any = self.table.assign(pred_difference=self.table.pred_difference.abs())
        means = means.groupby("model", sort=False)[columns].mean()
        head = f"{self.results[0].method_name} of {counted(len(self.results), 'model')}, "
        head += f"means over instances and nodes, magnitudes of pred_difference, k = {self.top_k}"
        return f"{head}\n{means.to_string(float_format=lambda v: f'{v:.4g}')}"


def compare_models(
    converters: Sequence[Converter],
    data: Any,
    method: Callable[..., Method] | None = None,
    *,
    top_k: int = 10,
    names: Sequence[str] | None = None,
    **options: Any,
) -> Comparison:
    """Explain several models on the same data and tell how well the explanations agree.

    Made for a model before and after quantisation, and any other models of the same shapes.

    Parameters
    ----------
    converters : sequence of Converter
        At least two, with inputs and outputs of the same shapes; the others are compared with the
        first.
    data : array (batch, *input_dim), or list of those
        The instances.
    method : class of a method, default `LRP`
        What explains them.
    top_k : int, default 10
        How many of the largest values are compared; all of them where there are fewer.
    names : sequence of str, optional
        Names of the models in the table; "model_1", ... by default.
    **options
        Arguments of the method.

    Returns
    -------
    Comparison

    Raises
    ------
    ArgumentError
        If there are fewer than two converters, or their shapes differ.

    Examples
    --------
    >>> import numpy as np, onnxplain as ox
    >>> from onnxplain.demo import MODEL
    >>> converter = ox.convert(MODEL)
    >>> found = ox.compare_models([converter, converter], np.ones((2, 1, 8, 8)), ox.Gradient)
    >>> found.table.pearson.round(6).unique().tolist()
    [1.0]
    """
    from .methods.lrp import LRP

    method, top_k = LRP if method is None else method, check_count("top_k", top_k)
    _check_converters(converters)
    labels = _labels(names, len(converters))
    results = [method(converter, data, **options) for converter in converters]
    return Comparison(results, _table(results, labels, top_k), top_k)


def _check_converters(converters: Any) -> None:
    from .converter import Converter

    found = list(converters) if isinstance(converters, (list, tuple)) else []
    if len(found) < 2 or not all(isinstance(c, Converter) for c in found):
        raise ArgumentError(
            "compare_models needs a list of two or more converters, "
            f"[convert(one), convert(another)], got {shown(converters)}"
        )
    for i, other in enumerate(found[1:], 2):
        for what in ("input_dim", "output_dim"):
            a, b = getattr(found[0], what), getattr(other, what)
            if a != b:
                raise ArgumentError(
                    f"models 1 and {i} have different {what}, {a} and {b}: "
                    "only models of the same shapes can be compared"
                )


def _labels(names: Sequence[str] | None, n: int) -> list[str]:
    if names is None:
        return [f"model_{i + 1}" for i in range(n)]
    if isinstance(names, str) or len(names) != n or len(set(names)) < n:
        raise ArgumentError(f"names must be {n} different texts, got {shown(names)}")
    return [str(name) for name in names]


def _table(results: Sequence[Method], labels: Sequence[str], top_k: int) -> pd.DataFrame:
    import pandas as pd

    first, parts = results[0], []
    for label, other in zip(labels[1:], results[1:], strict=True):
        for s, j in enumerate(selected_outputs(first)):
            columns = {"model": label, "model_output": f"Output_{j + 1}"}
            columns |= dict(_compared(first, other, s, j, top_k))
            parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _compared(
    first: Method, other: Method, s: int, j: int, top_k: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the columns of one output: nodes slowest, instances fastest."""
    a, b = _values(first, s), _values(other, s)  # nodes batch features
    nodes, batch, _ = a.shape
    yield "output_node", np.repeat(output_labels(first, j), batch)
    yield "data", np.tile(data_labels(batch), nodes)
    before, after = predictions(first, s), predictions(other, s)
    if before is not None and after is not None:
        yield "pred", after.T.ravel()
        yield "pred_difference", (after - before).T.ravel()
    with np.errstate(all="ignore"):  # of an explanation of zeros nothing can be said: NaN
        yield "pearson", _correlation(a, b).ravel()
        yield "spearman", _correlation(_ranks(a), _ranks(b)).ravel()
        yield "relative_l2", (_length(b - a) / _length(a)).ravel()
    yield "top_k_overlap", _overlap(a, b, min(top_k, a.shape[-1])).ravel()


def _values(method: Method, s: int) -> np.ndarray:
    """Return the values of one output over all inputs as (nodes, batch, features)."""
    arrays = (channels_first_array(method, s, i) for i in range(len(method.result[s])))
    flat = [x.reshape(len(x), -1, x.shape[-1]) for x in arrays if x is not None]
    return np.moveaxis(np.concatenate(flat, axis=1).astype(np.float64), -1, 0)


def _length(x: np.ndarray) -> np.ndarray:
    return np.sqrt((x * x).sum(axis=-1))


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (a, b))
    return (a * b).sum(axis=-1) / (_length(a) * _length(b))


def _ranks(x: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(x, axis=-1)


def _overlap(a: np.ndarray, b: np.ndarray, k: int) -> np.ndarray:
    """Return the part of the k largest magnitudes that both have; of equals the first count."""
    chosen = np.zeros((2, *a.shape), bool)
    for mask, x in zip(chosen, (a, b), strict=True):
        top = np.argsort(-abs(x), axis=-1, kind="stable")[..., :k]
        np.put_along_axis(mask, top, True, axis=-1)
    return chosen.all(axis=0).sum(axis=-1) / k
