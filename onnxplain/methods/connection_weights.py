"""Connection weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..arrays import to_host
from ..conventions import CONNECTION
from ..errors import ArgumentError, SelectionError
from ..selection import Top
from ..walk import connection_step
from .base import Method, reached
from .checks import check_flags

if TYPE_CHECKING:
    from ..converter import Converter


class ConnectionWeights(Method):
    """Products of weights along all paths from an input to an output, summed.

    Biases and activations are left out and no data is read, so the global result holds for the
    model as a whole.

    Parameters
    ----------
    converter, **options
        As for `Gradient`.
    data : array (batch, *input_dim), optional
        Needed for the local variant only.
    times_input : bool, default False
        Multiply the global result by each instance (local variant).

    Notes
    -----
    Olden et al. (2004), An accurate comparison of methods for quantifying variable importance in
    artificial neural networks. A max-pool counts as the mean of its window.

    Examples
    --------
    >>> import onnxplain as ox
    >>> from onnxplain.demo import MODEL
    >>> ox.ConnectionWeights(ox.convert(MODEL)).get_result().shape
    (1, 1, 8, 8, 10)
    """

    method_name: ClassVar[str] = "ConnectionWeights"
    value_name: ClassVar[str] = "Relative Importance"
    walk: ClassVar[str] = "connection"
    cuts: ClassVar[bool] = True
    conventions = CONNECTION

    def __init__(
        self, converter: Converter, data: Any = None, *, times_input: bool = False, **options: Any
    ) -> None:
        check_flags(times_input=times_input)
        if times_input and data is None:
            raise ArgumentError("times_input=True needs data: give an array of instances")
        self.times_input = times_input
        self._prepare(converter, data if times_input else None, **options)
        self.is_global = not times_input
        if any(isinstance(nodes, Top) for nodes in self._nodes):
            raise SelectionError(
                '"top1", ... and "predicted" choose nodes by the data, and ConnectionWeights reads '
                "none; give the nodes as output_idx=[...]"
            )
        self._compute()

    def _compute(self) -> None:
        self._allocate(len(self.data[0]) if self.times_input else 1)
        self.preds = self.decomp_goal = None
        self._explain()
        self._finish()

    def _explain(self) -> None:
        engine = self._engine
        # The run tells shapes only: no kernel reads its numbers.
        level = [
            engine.xp.ones(
                (1, *engine.trial.shapes[spec.name][1:]),
                engine.dtype if spec.dtype.kind == "f" else spec.dtype,
            )
            for spec in engine.graph.inputs
        ]
        values = engine.forward(level)
        step = connection_step(engine.graph, values, self._conventions)

        def block(row: slice) -> None:
            for picked in engine.output_slices(self._n_nodes, 1):
                signals = engine.backward(self._seeds(values, picked, row), step)
                self._store(row, picked, reached(signals, engine.explained, 1))

        engine.each(block, [slice(0, 1)], self._stored)
        if self.times_input:
            self._multiply()

    def _multiply(self) -> None:
        for row in self.result:
            for i, weights in enumerate(row):
                if weights is not None:
                    x = to_host(self.data[i])
                    row[i] = weights[:1] * x[..., None].astype(weights.dtype, copy=False)

    def _describe(self) -> list[str]:
        variant = "local" if self.times_input else "global"
        return [f"times_input: {self.times_input} ({variant})"]
