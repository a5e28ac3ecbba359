"""Class activation maps by gradients, and gradients with another rule at rectifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..arrays import Array, divide, fold, lead, namespace, unfold
from ..data import float_type
from ..errors import ArgumentError, shown
from ..graph.graph import Graph, Node, make_kernel
from ..walk import Values, backward, deconvnet_step, gradient_step, guided_step
from .base import Method, reached
from .checks import check_flags
from .gradients import Gradient, _required

if TYPE_CHECKING:
    from ..converter import Converter


class GuidedBackprop(Gradient):
    """Gradients that pass rectifiers only where they and the activations are positive.

    Parameters
    ----------
    converter, data, **options
        As for `Gradient`.
    times_input : bool, default False
        Multiply by the input.

    Notes
    -----
    Springenberg et al. (2015), Striving for simplicity: the all convolutional net. Rectifiers are
    Relu and its relatives (LeakyRelu, PRelu, ThresholdedRelu, Elu, Selu, Celu, Clip at 0); the
    incoming gradient of each is cut at 0.

    Examples
    --------
    >>> import numpy as np, onnxplain as ox
    >>> from onnxplain.demo import MODEL
    >>> ox.GuidedBackprop(ox.convert(MODEL), np.ones((2, 1, 8, 8))).get_result().shape
    (2, 1, 8, 8, 10)
    """

    method_name: ClassVar[str] = "GuidedBackprop"
    conventions: ClassVar[Any] = {None: None}

    def _step(self, values: Values) -> Any:
        return guided_step(self._engine.graph, values)


class Deconvnet(Gradient):
    """Gradients that pass rectifiers where they are positive, whatever the activations were.

    Parameters
    ----------
    converter, data, **options
        As for `Gradient`.
    times_input : bool, default False
        Multiply by the input.

    Notes
    -----
    Zeiler & Fergus (2014), Visualizing and understanding convolutional networks. Rectifiers are
    those of `GuidedBackprop`; max-pools pass signals to their maxima.

    Examples
    --------
    >>> import numpy as np, onnxplain as ox
    >>> from onnxplain.demo import MODEL
    >>> ox.Deconvnet(ox.convert(MODEL), np.ones((2, 1, 8, 8))).get_result().shape
    (2, 1, 8, 8, 10)
    """

    method_name: ClassVar[str] = "Deconvnet"
    conventions: ClassVar[Any] = {None: None}

    def _step(self, values: Values) -> Any:
        return deconvnet_step(self._engine.graph, values)


class GradCAM(Method):
    """Where a layer of feature maps speaks for an output: its channels weighted by gradients.

    Parameters
    ----------
    converter, data, **options
        As for `Gradient`.
    layer : str or list of str, optional
        Tensors (batch, channels, *places) of the graph; the last one that a convolution or the
        activation behind it gives by default.
    relu : bool, default True
        Show positive values only.
    upsample : bool, default True
        Interpolate the maps to the size of the input, linearly.
    guided : bool, default False
        Multiply by guided backpropagation (Guided Grad-CAM); the values are for the input then.

    Raises
    ------
    ArgumentError
        If there is no layer of feature maps, or no input of the size to interpolate to.

    Notes
    -----
    Selvaraju et al. (2017), Grad-CAM: visual explanations from deep networks via gradient-based
    localization. The weight of a channel is the mean of its gradient. A map is stored as a tensor
    of one channel, (batch, 1, *places, nodes); it does not add up to anything.

    Examples
    --------
    >>> import numpy as np, onnxplain as ox
    >>> from onnxplain.demo import MODEL
    >>> converter, x = ox.convert(MODEL), np.ones((2, 1, 8, 8))
    >>> ox.GradCAM(converter, x).get_result().shape
    (2, 1, 8, 8, 10)
    """

    method_name: ClassVar[str] = "GradCAM"

    def __init__(
        self,
        converter: Converter,
        data: Any,
        *,
        relu: bool = True,
        upsample: bool = True,
        guided: bool = False,
        **options: Any,
    ) -> None:
        check_flags(relu=relu, upsample=upsample, guided=guided)
        self.relu, self.upsample, self.guided = relu, upsample, guided
        self._prepare(converter, _required(data), **options)
        self._check_layers()
        self._over = self._input_of_maps() if upsample or guided else None
        self._rename()
        self._compute()

    def _compute(self) -> None:
        self._allocate(len(self.data[0]))
        self.decomp_goal = None
        self._explain()
        self._finish()

    # -- layers and their labels ------------------------------------------------------------------

    def _find_layers(self, layer: Any) -> list[str]:
        if layer is not None:
            return super()._find_layers(layer)
        dtype = float_type(self.dtype)
        graph, targets = self.converter.graph_for(dtype, None, self.ignore_last_act)
        explained = [targets[j] for j in self._selected]
        found = last_maps(graph, explained, self.converter.trial.shapes)
        if found is None:
            raise ArgumentError(
                f"{self.method_name} found no convolution before what is explained; give layer= "
                "the name of a tensor (batch, channels, places)"
            )
        return [found]

    def _check_layers(self) -> None:
        for name, dim in zip(self._engine.explained, self._engine.dims, strict=True):
            if len(dim) < 2:
                raise ArgumentError(
                    f"layer {shown(name)} has shape {dim} for each instance; {self.method_name} "
                    "needs channels and places"
                )

    def _input_of_maps(self) -> int:
        """Return the number of the input that the maps lie over."""
        dims = self.converter.input_dim
        ranks = {len(dim) for dim in self._engine.dims}
        fitting = [i for i, dim in enumerate(dims) if {len(dim)} == ranks]
        if not fitting or self.converter.graph.sources:
            raise ArgumentError(
                f"no input of the model has as many axes as the maps of {self.layers}; "
                "use upsample=False (and guided=False)"
            )
        return fitting[0]

    def _rename(self) -> None:
        """Label the maps: one channel, and the places of the input where they lie over it."""
        if self.guided and self._over is not None:
            self.channels_first = self._data_channels_first
            self.channels_last = [self.converter.channels_last[self._over]] * len(self.layers)
        if self._over is None:
            self.input_names = [[["map"], *axes[1:]] for axes in self.input_names]
            return
        names = self.converter.input_names[self._over]
        last = self.converter.channels_last[self._over]
        places = names[:-1] if last else names[1:]
        shown_names = names if self.guided else [["map"], *places]
        self.input_names = [[list(axis) for axis in shown_names] for _ in self.layers]

    @property
    def under_maps(self) -> Array | None:
        """The input that the maps lie over, channels first; None where they have their own size."""
        if self._over is None or self.data is None:
            return None
        x = self.data[self._over]
        return namespace(x).moveaxis(x, -1, 1) if self.converter.channels_last[self._over] else x

    def _dims(self) -> list[tuple[int, ...]]:
        return [tuple(map(len, axes)) for axes in self.input_names]

    # -- the maps ---------------------------------------------------------------------------------

    def _explain(self) -> None:
        engine = self._engine

        def block(rows: slice) -> None:
            values = engine.forward(self._device_rows(self.data, rows))
            self._store_scores(rows, values)
            count = rows.stop - rows.start
            tensors = engine.explained_values(values, count)
            for picked in engine.output_slices(self._n_nodes, count):
                seeds = self._seeds(values, picked, rows)
                signals = engine.backward(seeds, gradient_step(engine.graph, values))
                arrived = reached(signals, engine.explained, count)
                maps = [
                    None if g is None else self._sized(self._map(g, a))
                    for g, a in zip(arrived, tensors, strict=True)
                ]
                self._store(rows, picked, self._guide(maps, seeds, values) if self.guided else maps)

        self._each_block(block)

    def _weights(self, g: Array, a: Array) -> Array:
        """Return the weight of each channel: signals with places of length one."""
        return g.mean(axis=tuple(range(3, g.ndim)), keepdims=True)

    def _map(self, g: Array, a: Array) -> Array:
        """Return maps (outputs, rows, 1, *places) of gradients and activations."""
        found = (self._weights(g, a) * lead(a, g)).sum(axis=2, keepdims=True)
        return found * (found > 0) if self.relu else found

    def _sized(self, maps: Array) -> Array:
        return maps if self._over is None else resized(maps, self._places())

    def _places(self) -> tuple[int, ...]:
        dim = self.converter.input_dim[self._over or 0]
        return dim[:-1] if self.converter.channels_last[self._over or 0] else dim[1:]

    def _guide(self, maps: Sequence[Array | None], seeds: Any, values: Values) -> list[Any]:
        """Multiply maps by guided backpropagation to the input they lie over."""
        graph = self._engine.graph
        name = graph.inputs[self._over or 0].name
        g = backward(graph, seeds, guided_step(graph, values)).get(name)
        if g is None:
            raise ArgumentError(f"input {shown(name)} has no path to what is explained")
        if self.channels_last[0]:
            maps = [None if m is None else namespace(m).moveaxis(m, 2, -1) for m in maps]
        return [None if m is None else m * g[:, : m.shape[1]] for m in maps]

    def _describe(self) -> list[str]:
        return [f"relu: {self.relu}", f"upsample: {self.upsample}", f"guided: {self.guided}"]


class GradCAMPlusPlus(GradCAM):
    """Grad-CAM with a weight for each place, for outputs that several places speak for.

    Parameters
    ----------
    converter, data, layer, relu, upsample, guided, **options
        As for `GradCAM`.

    Notes
    -----
    Chattopadhyay et al. (2018), Grad-CAM++: improved visual explanations for deep convolutional
    networks. The closed form for the exponential of the explained node: with gradient g and
    activations a the weight of a channel is the sum over places of relu(g) g^2 / (2 g^2 + g^3 sum
    a). The factor exp(node), the same for a whole map, is left out.

    Examples
    --------
    >>> import numpy as np, onnxplain as ox
    >>> from onnxplain.demo import MODEL
    >>> converter, x = ox.convert(MODEL), np.ones((2, 1, 8, 8))
    >>> ox.GradCAMPlusPlus(converter, x).get_result().shape
    (2, 1, 8, 8, 10)
    """

    method_name: ClassVar[str] = "GradCAMPlusPlus"

    def _weights(self, g: Array, a: Array) -> Array:
        places = tuple(range(3, g.ndim))
        total = lead(a.sum(axis=tuple(range(2, a.ndim)), keepdims=True), g)
        # g^2 / (2 g^2 + g^3 total) without its common factor, which underflows in float32.
        alpha = divide(g != 0, 2 + g * total)
        return (alpha * g * (g > 0)).sum(axis=places, keepdims=True)


# -- helpers --------------------------------------------------------------------------------------

_CONVOLUTIONS = {"Conv", "ConvTranspose", "DeformConv"}
_KEEP_MAPS = {
    *("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN", "Dropout"),
    *("Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", "Mean", "Concat", "Identity", "Cast", "Pad"),
    *("MaxPool", "AveragePool", "LpPool", "Resize", "Upsample", "PRelu", "Split", "Slice"),
    *("QuantizeLinear", "DequantizeLinear"),
}


def last_maps(graph: Graph, targets: Sequence[str], shapes: Any) -> str | None:
    """Return the last tensor before the targets that a convolution or its activation gives."""
    before = _ancestors_of(graph, targets)
    maps: set[str] = set()
    found = None
    for node in graph.nodes:
        name = node.outputs[0]
        convolves = node.op in _CONVOLUTIONS and any(node.kernel.active)
        follows = maps.intersection(node.inputs)
        acts = node.kernel.family == "elementwise" and node.kernel.activation
        if convolves or (follows and (acts or node.op in _KEEP_MAPS)):
            maps.update(n for n in node.outputs if n)
        if name in before and (convolves or (follows and acts)) and max(shapes[name][2:]) > 1:
            found = name
    return found


def _ancestors_of(graph: Graph, targets: Sequence[str]) -> set[str]:
    """Return the tensors that the targets depend on, without themselves."""
    needed = set(targets)
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            needed.update(n for n in node.inputs if n in graph.active)
    return needed.difference(targets)


def resized(maps: Array, places: Sequence[int]) -> Array:
    """Interpolate maps (outputs, rows, 1, *old places) linearly, centres to centres."""
    if maps.shape[3:] == tuple(places):
        return maps
    node = Node("", "Resize", ("x", "", "", "sizes"), ("y",), {"mode": "linear"}, 13)
    kernel = make_kernel(node, (True, False, False, False))
    sizes = np.array([maps.shape[0] * maps.shape[1], 1, *places], np.int64)
    assert kernel is not None  # the operator is the package's own
    return unfold(kernel.forward(fold(maps), None, None, sizes), maps.shape[0])
