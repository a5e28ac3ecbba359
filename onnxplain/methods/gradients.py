"""Gradient, SmoothGrad, Integrated Gradients and Expected Gradients.

The last three average gradients over points that belong to a row. Random draws are shared by all
rows (common random numbers), so that a row's result does not depend on the batch it came in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..arrays import Array, is_device, is_float, lead, namespace, to_host
from ..conventions import EXPECTED, GRADIENT, INTEGRATED, SMOOTHGRAD
from ..errors import ArgumentError, ShapeError, shown
from ..kernels.linear import Gemm, MatMul
from ..walk import Values, chunks, gradient_step
from .base import Method, explain_chunks, reached, times
from .checks import check_count, check_flags
from .engine import Engine

if TYPE_CHECKING:
    from ..converter import Converter


class GradientMethod(Method):
    """What the gradient methods share: the name of what they show."""

    times_input = True

    @property
    def value_name(self) -> str:  # type: ignore[override]
        """Title of the values in plots."""
        return "Relevance" if self.times_input else "Gradient"

    def _shown(self, gradients: Sequence[Array | None]) -> list[Array | None]:
        """Return gradients that are not multiplied by the input, as `like` shows them."""
        absolute = getattr(self._conventions, "absolute", False)
        return [None if g is None else abs(g) if absolute else g for g in gradients]


class Gradient(GradientMethod):
    """Gradients of the explained nodes with respect to the inputs.

    Parameters
    ----------
    converter : Converter
        The model.
    data : array (batch, *input_dim), data frame, or list or dict of these
        The instances to explain, one array per input; or an iterator of such batches, which are
        joined. Of dask arrays the result is a `LargeResult` of dask arrays, computed when asked
        for; `onnxplain.explain_to` writes results that are larger than memory.
    times_input : bool, default False
        Multiply by the input (Gradient x Input).
    output_idx, output_label : node, list of nodes, or list of those per output, optional
        What is explained; by default the first ten nodes of the first output. A node is a flat
        index, a tuple with an index or slice per axis, a slice, a mask, or a label; "top3" and
        "predicted" take other nodes in each row, told by `output_nodes`.
    output_weights : array (nodes,) or (sums, *output_dim), dict of arrays, or list, optional
        Explain weighted sums of an output instead; a dict names them, a list has one per output.
    layer : str or list of str, optional
        Tensors of the graph that values are attributed to instead of the inputs.
    **options
        channels_first=True, ignore_last_act=True, verbose=None, dtype="float", device="cpu",
        batch_size=None, seed=None, like=None.

    Raises
    ------
    OnnxplainError
        A subclass says which argument cannot be used and what was expected.

    Notes
    -----
    Simonyan et al. (2013), Deep inside convolutional networks; Shrikumar et al. (2016), Not just a
    black box. Slopes at kinks are 0, ties of a maximum go to the first.

    Examples
    --------
    >>> import numpy as np, onnxplain as ox
    >>> from onnxplain.demo import MODEL
    >>> ox.Gradient(ox.convert(MODEL), np.zeros((2, 1, 8, 8))).get_result().shape
    (2, 1, 8, 8, 10)
    """

    method_name: ClassVar[str] = "Gradient"
    conventions = GRADIENT

    def __init__(
        self, converter: Converter, data: Any, *, times_input: bool = False, **options: Any
    ) -> None:
        check_flags(times_input=times_input)
        self.times_input = times_input
        self._prepare(converter, _required(data), **options)
        self._compute()

    def _compute(self) -> None:
        self._allocate(len(self.data[0]))
        explain_chunks(
            self,
            self._step,
            start=None,
            finish=times if self.times_input else lambda signals, inputs: self._shown(signals),
            keep=self._engine.for_gradients,
        )
        self._finish()

    def _step(self, values: Values) -> Any:
        return gradient_step(self._engine.graph, values)

    def _describe(self) -> list[str]:
        return [f"times_input: {self.times_input}"]


def _required(data: Any) -> Any:
    if data is None:
        raise ArgumentError("data is missing; give an array with one row per instance")
    return data


class PathMethod(GradientMethod):
    """Averages gradients over points: the loop that SmoothGrad, IG and EG share."""

    cuts: ClassVar[bool] = True

    def _average(self, n: int, points: Callable, weights: np.ndarray | None = None) -> None:
        """Sum weight times gradient times factor over `n` points of each row.

        Parameters
        ----------
        points : callable
            Takes the rows of all inputs and a slice of draws to points and factors: lists (per
            input) of arrays (draws, rows, *input_dim), factors None for 1.
        weights : array (n,), optional
            Weight of each point, 1 / n by default.
        """
        engine, data = self._engine, self.data
        weights = np.full(n, 1 / n) if weights is None else weights

        def block(rows: slice) -> None:
            inputs = self._device_rows(data, rows)
            self._store_scores(rows, engine.forward(inputs, keep=False))
            count = rows.stop - rows.start
            together = self._points_together(count, n)
            slices = engine.output_slices(self._n_nodes, count * together)
            totals: list[list[Array | None]] = [[None] * len(engine.explained) for _ in slices]
            for draws in chunks(n, together):
                self._add(engine, rows, points(inputs, draws), weights[draws], slices, totals)
            for picked, signals in zip(slices, totals, strict=True):
                self._store(rows, picked, signals)

        self._each_block(block, runs=n)

    def _points_together(self, rows: int, n: int) -> int:
        """Return how many of `n` points of some rows run at a time, about as many each time."""
        if self._engine.graph.fixed_batch is not None:
            return 1
        most = max(1, self._engine.chunk_rows(self._n_nodes) // rows)
        return -(-n // -(-n // most))

    def _add(
        self, engine: Engine, rows: slice, drawn: Any, weights: Any, slices: Any, totals: Any
    ) -> None:
        """Add the part of some draws to the totals."""
        points, factors = drawn
        draws, count = len(weights), rows.stop - rows.start
        xp = engine.xp
        w = xp.asarray(weights, dtype=engine.dtype)
        flat = [p.reshape(draws * count, *p.shape[2:]) for p in points]
        values = engine.forward(flat, engine.for_gradients)
        step = gradient_step(engine.graph, values)
        for picked, total in zip(slices, totals, strict=True):
            seeds = self._seeds(values, picked, rows)
            spent = [values] if picked.stop == self._n_nodes else ()
            signals = engine.backward(seeds, step, spent)
            arrived = reached(signals, engine.explained, draws * count)
            arrived = self._shown(arrived) if factors is None else arrived
            for i, s in enumerate(arrived):
                if s is not None:
                    s = s.reshape(s.shape[0], draws, count, *s.shape[2:])
                    s = s if factors is None else s * lead(factors[i], s)
                    part = xp.tensordot(w, s, axes=(0, 1))
                    total[i] = part if total[i] is None else total[i] + part


def one_reference(method: Method, x_ref: Any) -> list[Array]:
    """Return a reference of one row per input; zeros if none is given."""
    if x_ref is None:
        return _zeros(method)
    arrays = method._arrays(_with_rows(x_ref, method), "x_ref")
    if len(arrays[0]) != 1:
        raise ShapeError(
            f"x_ref has {len(arrays[0])} rows, one is expected; "
            "use DeepSHAP or ExpectedGradient for several"
        )
    return arrays


def _zeros(method: Method) -> list[Array]:
    """Return zeros for the inputs of the model, at the inner tensors of a token model."""
    engine, converter = method._engine, method.converter
    if engine.head is None or converter.graph.sources:
        return [np.zeros((1, *x.shape[1:]), x.dtype) for x in method.data]
    specs = converter.graph.inputs
    if not all(is_float(spec.dtype) for spec in engine.head.inputs):
        raise ArgumentError(
            "a reference at a layer is computed from the inputs of the model, and some hold whole "
            "numbers: give x_ref (or data_ref) with one array per input"
        )
    shapes = zip(specs, converter.input_dim, strict=True)
    return engine.lift([np.zeros((1, *dim), engine.dtype) for _, dim in shapes])


def _with_rows(x_ref: Any, method: Method) -> Any:
    """Accept a reference without its axis of length one."""
    dims = method.converter.input_dim
    if len(dims) == 1 and hasattr(x_ref, "ndim") and x_ref.ndim == len(dims[0]):
        return x_ref[None] if isinstance(x_ref, np.ndarray) or is_device(x_ref) else x_ref
    return x_ref


class SmoothGrad(PathMethod):
    """Mean gradient over noisy copies of the input.

    Parameters
    ----------
    converter, data, **options
        As for `Gradient`.
    n : int, default 50, or that of `like`
        Noisy copies.
    noise_level : float, default 0.1, or that of `like`
        Standard deviation of the noise, as a share of the range (max - min) of each instance, per
        input; as such where the range is 0.
    times_input : bool, default False
        Multiply each gradient by its noisy input.

    Notes
    -----
    Smilkov et al. (2017), SmoothGrad: removing noise by adding noise. All rows share the same
    standard normal draws; `seed` makes them reproducible. With `like`, the noise is that of zennit
    (the last copy has none), innsight (the range of the whole batch), captum or iNNvestigate (where
    noise_level is the standard deviation); captum's gradients lose their sign.

    Examples
    --------
    >>> import numpy as np, onnxplain as ox
    >>> from onnxplain.demo import MODEL
    >>> x = np.zeros((2, 1, 8, 8))
    >>> ox.SmoothGrad(ox.convert(MODEL), x, n=5, seed=1).get_result().shape
    (2, 1, 8, 8, 10)
    """

    method_name: ClassVar[str] = "SmoothGrad"
    conventions = SMOOTHGRAD

    def __init__(
        self,
        converter: Converter,
        data: Any,
        *,
        n: int | None = None,
        noise_level: float | None = None,
        times_input: bool = False,
        **options: Any,
    ) -> None:
        check_flags(times_input=times_input)
        self.times_input = times_input
        self._prepare(converter, _required(data), **options)
        known = self._conventions
        self.n = check_count("n", known.n if n is None else n)
        self.noise_level = _checked_level(known.noise_level if noise_level is None else noise_level)
        _check_noise(self.n, [x.shape[1:] for x in self.data])
        self._compute()

    def _compute(self) -> None:
        known = self._conventions
        self._allocate(len(self.data[0]))
        rng = np.random.default_rng(self.seed)
        shapes = [(self.n, *x.shape[1:]) for x in self.data]
        noise = [rng.standard_normal(s).astype(self._engine.dtype, copy=False) for s in shapes]
        if known.clean_last:
            for e in noise:
                e[-1] = 0
        ranges = [self._sigma(x).item() for x in self.data] if known.by_batch else None

        def points(inputs: Sequence[Array], draws: slice) -> Any:
            moved = []
            for i, x in enumerate(inputs):
                if not self._engine.moved[i]:
                    moved.append(_repeat(x, draws.stop - draws.start))
                    continue
                e = namespace(x).asarray(noise[i][draws])[:, None]
                sigma = self._sigma(x) if ranges is None else ranges[i]
                moved.append(x + sigma * e)
            return moved, (moved if self.times_input else None)

        self._average(self.n, points)
        self._finish()

    def _sigma(self, x: Array) -> Array:
        spread = self._conventions.scale(x)
        if self._conventions.constant_rows:
            spread = namespace(x).where(spread > 0, spread, 1)
        return self.noise_level * spread.astype(x.dtype)

    def _describe(self) -> list[str]:
        return [
            f"times_input: {self.times_input}",
            f"n: {self.n}",
            f"noise_level: {self.noise_level}",
        ]


def _repeat(x: Array, draws: int) -> Array:
    return namespace(x).broadcast_to(x, (draws, *x.shape))


def _on_path(
    engine: Engine, inputs: Sequence[Array], refs: Sequence[Array], alphas: np.ndarray
) -> tuple[list[Array], list[Array]]:
    """Return points between references (draws or 1, 1, ...) and rows, and the differences.

    Conditions stay what they are in each row.
    """
    path, factors = [], []
    for x, ref, moved in zip(inputs, refs, engine.moved, strict=True):
        if not moved:
            path.append(_repeat(x, len(alphas)))
            factors.append(x[None])
            continue
        dx = x - ref
        a = namespace(x).asarray(alphas, dtype=x.dtype).reshape(-1, *(1,) * x.ndim)
        point = a * dx
        point += ref
        path.append(point)
        factors.append(dx)
    return path, factors


MAX_NOISE_BYTES = 2**32


def _check_noise(n: int, dims: Sequence[Sequence[int]]) -> None:
    """The noise of all draws is held at once, as all rows share it."""
    size = 8 * n * sum(math.prod(dim) for dim in dims)
    if size > MAX_NOISE_BYTES:
        raise ArgumentError(
            f"n = {n} noisy copies need {size / 2**30:.0f} GB for their noise, "
            f"{MAX_NOISE_BYTES / 2**30:.0f} GB are allowed; use a smaller n"
        )


def _checked_level(level: Any) -> float:
    number = isinstance(level, (int, float, np.integer, np.floating))
    if not number or isinstance(level, bool) or not 0 <= level < np.inf:
        raise ArgumentError(f"noise_level must be a number >= 0, got {shown(level)}")
    return float(level)


class IntegratedGradient(PathMethod):
    """Mean gradient on the straight path from a reference to the input, times the difference.

    Parameters
    ----------
    converter, data, **options
        As for `Gradient`.
    x_ref : array (1, *input_dim) or list of those, optional
        The reference; zeros by default. With `layer` the path starts from the value that the layer
        has there; what goes around the layer, and whole-number inputs, stay at the data.
    n : int, default 50, or that of `like`
        Points on the path.
    times_input : bool, default True
        Multiply by the difference to the reference; then the values add up to `decomp_goal`, up
        to the error of the quadrature.
    quadrature : str, default "riemann_right", or that of `like`
        "riemann_right", "riemann_left", "riemann_middle", "trapezoid" or "gauss_legendre"; captum's
        trapezoid has weights that add up to 1 - 1 / n.

    Notes
    -----
    Sundararajan et al. (2017), Axiomatic attribution for deep networks.

    Examples
    --------
    >>> import numpy as np, onnxplain as ox
    >>> from onnxplain.demo import MODEL
    >>> x = np.ones((2, 1, 8, 8))
    >>> ox.IntegratedGradient(ox.convert(MODEL), x, n=5).get_result().shape
    (2, 1, 8, 8, 10)
    """

    method_name: ClassVar[str] = "IntegratedGradient"
    conventions = INTEGRATED

    def __init__(
        self,
        converter: Converter,
        data: Any,
        *,
        x_ref: Any = None,
        n: int | None = None,
        times_input: bool = True,
        quadrature: str | None = None,
        **options: Any,
    ) -> None:
        check_flags(times_input=times_input)
        self.times_input = times_input
        self._prepare(converter, _required(data), **options)
        self._choose_quadrature(n, quadrature)
        self.x_ref = one_reference(self, x_ref)
        self._compute()

    def _compute(self) -> None:
        alphas, weights = self._conventions.quadratures[self.quadrature](self.n)
        self._allocate(len(self.data[0]))
        engine = self._engine
        refs = engine.per_place(lambda: [engine.xp.asarray(r)[None] for r in self.x_ref])

        def points(inputs: Sequence[Array], draws: slice) -> Any:
            path, factors = _on_path(engine, inputs, refs(), alphas[draws])
            return path, (factors if self.times_input else None)

        first = first_dense_layers(self._engine)
        if first:
            self._average_behind(first, alphas, weights)
        else:
            self._average(self.n, points, weights)
        for goal, start in zip(self.decomp_goal, self._reference_scores(self.x_ref), strict=True):
            goal -= start
        self._finish()

    def _average_behind(
        self, first: Sequence[str], alphas: np.ndarray, weights: np.ndarray
    ) -> None:
        """Follow the path behind the first layers: they are linear, so it is straight there too.

        Neither they nor their transpose are computed point by point, only once per row.
        """
        engine = self._engine
        behind = Engine(
            self.converter,
            engine.dtype,
            self.device,
            self.batch_size,
            self.ignore_last_act,
            cut_at=first,
            inner=first,
        )
        refs = engine.per_place(lambda: [engine.xp.asarray(r) for r in self.x_ref])
        with engine.threads():
            starts = engine.per_place(lambda: engine.forward(refs()))

        def block(rows: slice) -> None:
            inputs, count = self._device_rows(self.data, rows), rows.stop - rows.start
            values = engine.forward(inputs)
            self._store_scores(rows, values)
            begins, ends = [starts()[f][None] for f in first], [values[f] for f in first]
            together = self._points_together(count, self.n)
            slices = engine.output_slices(self._n_nodes, count * together)
            totals: list[list[Array | None]] = [[None] * len(first) for _ in slices]
            for draws in chunks(self.n, together):
                path, _ = _on_path(behind, ends, begins, alphas[draws])
                self._add(behind, rows, (path, None), weights[draws], slices, totals)
            step = gradient_step(engine.graph, values)
            for picked, means in zip(slices, totals, strict=True):
                seeds = {f: m for f, m in zip(first, means, strict=True) if m is not None}
                arrived = reached(engine.backward(seeds, step), engine.explained, count)
                moved = [x - r for x, r in zip(inputs, refs(), strict=True)]
                self._store(rows, picked, times(arrived, moved) if self.times_input else arrived)

        self._each_block(block, runs=self.n)

    def _choose_quadrature(self, n: int | None, name: str | None) -> None:
        known = self._conventions
        name = known.quadrature if name is None else name
        if not isinstance(name, str) or name not in known.quadratures:
            whose = "" if self.like is None else f" for like={self.like!r}"
            choices = ", ".join(known.quadratures)
            raise ArgumentError(f"quadrature must be one of {choices}{whose}, got {shown(name)}")
        self.n, self.quadrature = check_count("n", known.n if n is None else n), name

    def _describe(self) -> list[str]:
        return [
            f"times_input: {self.times_input}",
            f"n: {self.n}",
            f"quadrature: {self.quadrature!r}",
            f"x_ref: {describe_reference(self.x_ref)}",
        ]


def first_dense_layers(engine: Engine) -> list[str]:
    """Return what the first layers make if all of them are dense and little larger than the input.

    Between the inputs and them, elements are moved only.
    """
    graph = engine.graph
    if engine.inner or not engine.free_rows:
        return []
    plain, made = set(engine.input_names), []
    for node in graph.nodes:
        if not plain.intersection(node.inputs):
            continue
        if node.kernel.family == "routing" and sum(node.kernel.active) == 1:
            plain.update(name for name in node.outputs if name)
        elif isinstance(node.kernel, (Gemm, MatMul)) and sum(node.kernel.active) == 1:
            made.append(node.outputs[0])
        else:
            return []
    if plain.union(made).intersection(engine.targets):
        return []
    shapes = engine.trial.shapes
    sizes = [sum(math.prod(shapes[n][1:]) for n in names) for names in (made, engine.input_names)]
    return made if sizes[0] <= 2 * sizes[1] else []


def describe_reference(arrays: Sequence[np.ndarray]) -> str:
    """Return "zeros", or mean and quartiles."""
    values = np.concatenate([np.ravel(to_host(a)) for a in arrays]).astype(float)
    if not values.any():
        return "zeros"
    q1, q3 = np.quantile(values, [0.25, 0.75])
    return f"mean: {values.mean():.4g} (q1: {q1:.4g}, q3: {q3:.4g})"


class ExpectedGradient(PathMethod):
    """Mean of gradient times difference over random references and random points on the paths.

    Parameters
    ----------
    converter, data, **options
        As for `Gradient`.
    data_ref : array (references, *input_dim) or list of those, optional
        References, drawn with replacement; one row of zeros by default.
    n : int, default 50, or that of `like`
        Draws of a reference and a point on the path to it; the same for all rows, inputs and
        outputs.

    Notes
    -----
    Erion et al. (2021), Improving performance of deep learning models with axiomatic attribution
    priors and expected gradients. The values add up to `decomp_goal` on average only.

    Examples
    --------
    >>> import numpy as np, onnxplain as ox
    >>> from onnxplain.demo import MODEL
    >>> x = np.ones((2, 1, 8, 8))
    >>> ox.ExpectedGradient(ox.convert(MODEL), x, n=5, seed=1).get_result().shape
    (2, 1, 8, 8, 10)
    """

    method_name: ClassVar[str] = "ExpectedGradient"
    conventions = EXPECTED

    def __init__(
        self,
        converter: Converter,
        data: Any,
        *,
        data_ref: Any = None,
        n: int | None = None,
        **options: Any,
    ) -> None:
        self._prepare(converter, _required(data), **options)
        self.n = check_count("n", self._conventions.n if n is None else n)
        self.data_ref = reference_rows(self, data_ref)
        self._compute()

    def _compute(self) -> None:
        self._allocate(len(self.data[0]))
        rng = np.random.default_rng(self.seed)
        drawn = rng.integers(0, len(self.data_ref[0]), self.n)
        alphas = rng.uniform(size=self.n)

        def points(inputs: Sequence[Array], draws: slice) -> Any:
            xp = self._engine.xp
            refs = [xp.asarray(r[drawn[draws]])[:, None] for r in self.data_ref]
            return _on_path(self._engine, inputs, refs, alphas[draws])

        self._average(self.n, points)
        self._subtract_references()
        self._finish()

    def _subtract_references(self) -> None:
        """Make the goal the difference to the mean over all references."""
        engine, n_ref = self._engine, len(self.data_ref[0])
        if engine.free_rows:
            subtract_means(self, self._reference_means)
            return
        for k in range(n_ref):
            scores = self._reference_scores([r[k : k + 1] for r in self.data_ref])
            for goal, score in zip(self.decomp_goal, scores, strict=True):
                goal -= score / n_ref

    @cached_property
    def _reference_means(self) -> list[np.ndarray]:
        engine = self._engine
        parts = list(chunks(len(self.data_ref[0]), engine.chunk_rows()))

        def run(part: slice) -> Values:
            return engine.forward(self._device_rows(self.data_ref, part), keep=False)

        return reference_means(self, parts, run)

    def _describe(self) -> list[str]:
        return [f"n: {self.n}", f"data_ref: {describe_reference(self.data_ref)}"]


def reference_means(
    method: Method, parts: Sequence[slice], run: Callable[[slice], Values]
) -> list[np.ndarray]:
    """Return the means over references of what is explained, (1, all nodes) per selected output.

    `run` takes some of the references, one of `parts` or less, to a run of them.
    """

    def sums(part: slice) -> list[np.ndarray]:
        return [to_host(flat.sum(axis=0, keepdims=True)) for flat in method._flat(run(part))]

    count = parts[-1].stop
    return [s.sum(axis=0, keepdims=True) / count for s in method._engine.collect(sums, parts)]


def subtract_means(method: Method, means: Sequence[np.ndarray]) -> None:
    """Make the goal the difference to the means over references."""
    shifts = method._pick(means, slice(0, len(method.data[0])))
    for goal, shift in zip(method.decomp_goal, shifts, strict=True):
        goal -= shift


def reference_rows(method: Method, data_ref: Any) -> list[Array]:
    """Return references (rows, *input_dim) per input; one row of zeros if none is given."""
    if data_ref is None:
        return one_reference(method, None)
    return method._arrays(data_ref, "data_ref")
