"""From a model to a `Converter`: the graph with names, shapes and what can be said before a run."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from . import names as naming
from .arrays import Array, is_float
from .data import float_type, prepare
from .errors import (
    ArgumentError,
    DtypeError,
    MissingPackageError,
    ModelError,
    SelectionError,
    ShapeError,
    UnknownArgumentError,
    counted,
    listed,
    shown,
)
from .frugal import give_back
from .graph.batch import Trial, examine, random_rows, run
from .graph.cut import embeddings, head
from .graph.graph import Graph, build
from .graph.last import without_last_activation
from .graph.layout import channels_last
from .graph.load import RawModel, ValueSpec, read_model
from .graph.ml import class_names, without_maps

if TYPE_CHECKING:
    import pandas as pd

Shape = tuple[int, ...]

# Larger rows than this come from files that lie about their sizes.
MAX_INPUT_ELEMENTS = 2**28


def convert(
    model: Any,
    input_dim: Any = None,
    input_names: Any = None,
    output_names: Any = None,
    dtype: Any = "float",
    save_model_as_dict: bool = False,
    *,
    outputs: Sequence[str] | None = None,
    inputs: str | Sequence[str] | None = None,
    **options: Any,
) -> Converter:
    """Make a model ready to be explained.

    Parameters
    ----------
    model : path, bytes or onnx.ModelProto, or what an installed converter takes
        A model in ONNX's format. Other kinds are made ONNX by converters that packages offer under
        the entry point group "onnxplain.converters"; see Notes.
    input_dim : tuple of int, or list of those, optional
        Shapes of the inputs without batch axis. Needed where the model leaves them open, checked
        where it does not.
    input_names, output_names : list, optional
        Labels: of features or classes (one axis), or a list of those per axis, or a list of these
        per input or output. Default names are X1.., C1.., H1.., W1.., Y1...
    dtype : "float", "double" or a NumPy float type, default "float"
        Type for predictions.
    save_model_as_dict : bool, default False
        Fill `model_as_dict` with the model in innsight's list format, which can be changed and
        converted again; an error where the format cannot express the model.
    outputs : sequence of str, optional
        Names of tensors of the graph to take as outputs instead of the model's own.
    inputs : str or sequence of str, optional
        Names of tensors of the graph that values are attributed to instead of the inputs. Models of
        tokens need one: the output of their embedding. Data are given as the model takes them, and
        so are references; without one the reference is zeros at these tensors.
    **options
        Further arguments of the converter for this kind of model.

    Returns
    -------
    Converter

    Raises
    ------
    ModelError
        If the file is no sound ONNX model.
    UnsupportedOpError
        If the graph has operators without a kernel.
    ShapeError
        If `input_dim` or names do not fit the model.

    Notes
    -----
    A converter is a function `(model, *, input_dim=None, **options)` that returns an
    `onnx.ModelProto`; labels go into its metadata as JSON under "feature_names" and "class_names".
    The name of its entry point says what it takes: a file suffix ("rds"), "dict", or the package of
    the model's class or one of its bases ("torch").

    Examples
    --------
    >>> import onnxplain as ox
    >>> from onnxplain.demo import MODEL
    >>> converter = ox.convert(MODEL)
    >>> converter.input_dim, converter.output_dim
    ([(1, 8, 8)], [(10,)])
    """
    if not isinstance(save_model_as_dict, bool):
        raise ArgumentError(
            f"save_model_as_dict must be True or False, got {shown(save_model_as_dict)}"
        )
    float_type(dtype)
    exporter = _exporter(model)
    if exporter is not None:
        model = exporter(model, input_dim=input_dim, **options)
    elif options:
        raise UnknownArgumentError(
            f"convert has no argument {next(iter(options))!r} for an ONNX model"
        )
    raw = read_model(model)
    del model  # of an exporter: nobody else holds it
    converter = Converter(raw, input_dim, input_names, output_names, dtype, outputs, inputs)
    if save_model_as_dict:
        from onnxplain_converters.to_layers import to_layers

        converter.model_as_dict = to_layers(converter)
    return converter


def _exporter(model: Any) -> Callable[..., Any] | None:
    """Return the function that makes a model of this kind ONNX; None if it is ONNX already."""
    known = {e.name: e for e in entry_points(group="onnxplain.converters")}
    entry = next((known[kind] for kind in _kinds(model) if kind in known), None)
    if entry is not None:
        return lambda *args, **options: _call(entry, *args, **options)
    if isinstance(model, (str, os.PathLike, bytes, bytearray, memoryview)) or _is_proto(model):
        return None
    if isinstance(model, Converter):
        raise DtypeError("the model is a Converter already; hand it to a method, LRP(model, data)")
    came = type(model)
    what = (
        f"the class {model.__name__}"
        if isinstance(model, type)
        else (
            f"a model of type {came.__module__}.{came.__name__}".replace("type builtins.", "type ")
        )
    )
    raise DtypeError(
        f"{what} cannot be converted; "
        "expected a path to an .onnx file, its bytes or an onnx.ModelProto"
    )


def _kinds(model: Any) -> list[str]:
    """Return the names under which a converter for this model may be found, best first."""
    if isinstance(model, (str, os.PathLike)):
        return [PurePath(model).suffix.lower().lstrip(".")]
    if isinstance(model, Mapping):
        return ["dict"]
    # In order of the bases: a Keras model on torch is a torch module too.
    return [cls.__module__.partition(".")[0] for cls in type(model).__mro__]


def _is_proto(model: Any) -> bool:
    return type(model).__name__ == "ModelProto" and hasattr(model, "graph")


def _call(entry: EntryPoint, *args: Any, **options: Any) -> Any:
    try:
        return entry.load()(*args, **options)
    except ModuleNotFoundError as error:
        extra = entry.module.rpartition(".")[2]  # files have their framework's: .h5 needs keras
        raise MissingPackageError(
            f"converting from {entry.name} needs {error.name}: pip install 'onnxplain[{extra}]'"
        ) from error


class Converter:
    """A model ready to be explained; made by `convert`.

    Attributes
    ----------
    input_dim, output_dim : list of tuple of int
        Shapes without batch axis, channels first as the graph has them.
    input_names, output_names : list (per layer) of list (per axis) of list of str
        Labels.
    channels_last : list of bool
        For each input whether the model itself has the channels on its last axis.
    graph : Graph
        The canonical graph that is walked.
    skipped_outputs : list of str
        Outputs of the model that cannot be explained: constants, whole numbers and texts, such as
        the labels of a classifier. An output of maps from class to probability (ZipMap) is
        explained as the tensor of probabilities, its keys name the classes.
    model_hash : str
        SHA-256 of the model file.
    model_as_dict : dict or None
        The model in innsight's list format, if `convert` was asked to save it.
    """

    def __init__(
        self,
        raw: RawModel,
        input_dim: Any = None,
        input_names: Any = None,
        output_names: Any = None,
        dtype: Any = "float",
        outputs: Sequence[str] | None = None,
        inputs: str | Sequence[str] | None = None,
    ) -> None:
        classes = class_names(raw)
        raw = without_maps(raw)
        self.raw = raw
        self.dtype = dtype
        self.model_as_dict: dict[str, Any] | None = None
        self.model_hash = raw.sha256
        sources = [] if inputs is None else _tensor_names(inputs, "inputs")
        if not sources:
            _check_float_input(raw)
        _check_computed(sources, raw)
        self.input_dim = _input_shapes(raw.inputs, input_dim)
        wanted = _float_outputs(raw) if outputs is None else _tensor_names(outputs, "outputs")
        self._tensors = wanted, sources
        graph = self._build()
        _check_sources(graph, self.trial, self.input_dim)
        explained = [name for name in wanted if name in graph.active]
        if not explained:
            raise ModelError(
                f"none of the outputs {listed(wanted)} depends on "
                f"{listed(sources) or 'the float inputs of the model'} "
                "in a way that can be explained; choose inner tensors, "
                "convert(model, outputs=[...])"
            )
        self.graph = replace(graph, outputs=tuple(explained))
        self.channels_last = channels_last(self.graph, self.input_dim)
        self.skipped_outputs = [o.name for o in raw.outputs if o.name not in explained]
        if outputs is not None:
            self.skipped_outputs = []
        self.output_dim = [self.trial.shapes[name][1:] for name in explained]
        self.input_names = self._names("input", input_names, self._input_defaults())
        self.output_names = self._names("output", output_names, self._output_defaults(classes))
        self._cast: dict[Any, tuple[Graph, tuple[str, ...]]] = {}

    def _build(self) -> Graph:
        """Return the graph of the model; remember its trial."""
        wanted, sources = self._tensors
        graph, self.trial = examine(
            build(self.raw, outputs=wanted, sources=sources), self.input_dim
        )
        give_back()
        return graph

    def _names(
        self, what: str, given: Any, default: list[naming.AxisNames]
    ) -> list[naming.AxisNames]:
        shapes = getattr(self, f"{what}_dim")
        if given is not None:
            return naming.given_names(given, shapes, what)
        key = {"input": "feature_names", "output": "class_names"}[what]
        return naming.stored_names(self.raw.metadata, key, shapes) or default

    def _input_defaults(self) -> list[naming.AxisNames]:
        return [
            naming.default_names(shape, naming.LETTERS_LAST[len(shape)] if last else None)
            for shape, last in zip(self.input_dim, self.channels_last, strict=True)
        ]

    def _output_defaults(self, classes: Mapping[str, list[str]]) -> list[naming.AxisNames]:
        """Return the names of classes that nodes of the model tell, else the usual ones."""
        found = [classes.get(name, []) for name in self.graph.outputs]
        return [
            [labels] if shape == (len(labels),) else naming.default_output_names(shape)
            for labels, shape in zip(found, self.output_dim, strict=True)
        ]

    def __call__(
        self,
        data: Any,
        *,
        channels_first: bool = True,
        batch_size: int | None = None,
        device: Any = "cpu",
    ) -> list[Array]:
        """Predict.

        Parameters
        ----------
        data : array (batch, *input_dim), data frame, or list or dict of these
            One per input.
        channels_first : bool, default True
            Whether the channels of the data stand before the other axes.
        batch_size : int, optional
            Rows computed at a time.
        device : str or list of str, default "cpu"
            "cpu", "cuda", "cuda:1", "auto", or a list of GPUs that share the rows.

        Returns
        -------
        list of array (batch, *output_dim)
            One per output, on the host.

        Examples
        --------
        >>> import numpy as np, onnxplain as ox
        >>> from onnxplain.demo import MODEL
        >>> ox.convert(MODEL)(np.zeros((2, 1, 8, 8)))[0].shape
        (2, 10)
        """
        from .device import device_for, session
        from .methods.checks import check_flags
        from .methods.engine import Engine

        check_flags(channels_first=channels_first)
        dtype = float_type(self.dtype)
        arrays = prepare(
            data, self.graph.inputs, self.input_dim, dtype, channels_first, names=self.input_names
        )
        with session():
            return Engine(self, dtype, device_for(device, data), batch_size).predict(arrays)

    def graph_for(
        self, dtype: np.dtype, device: Any = None, before_activation: bool = False
    ) -> tuple[Graph, tuple[str, ...]]:
        """Return the graph with weights of a float type, and the tensor to explain per output."""
        key = (np.dtype(dtype).name, device and device.name, before_activation)
        if key not in self._cast:
            graph, targets = self.graph, self.graph.outputs
            if before_activation:
                graph, targets, _ = without_last_activation(graph)
            self._cast[key] = graph.cast(dtype, device), targets
        return self._cast[key]

    def __getstate__(self) -> dict[str, Any]:
        """Leave away what is made of the model: weights go into a pickle once."""
        state = {k: v for k, v in vars(self).items() if k not in ("graph", "trial", "_cast")}
        return state | {"explained": self.graph.outputs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        explained = state.pop("explained")
        vars(self).update(state)
        self.graph, self._cast = replace(self._build(), outputs=explained), {}

    def coverage(self, method: str | None = None) -> pd.DataFrame:
        """Tell how each node is treated, before anything runs.

        Parameters
        ----------
        method : str, optional
            A method ("lrp", "deeplift", "Gradient", ...); all four passes without it.

        Returns
        -------
        pandas.DataFrame
            Columns node, op, family, and for each pass rule, exact (whether it keeps what the
            method promises) and remark; `joined` names the nodes of the file a node stands for.
        """
        from .coverage import coverage

        return coverage(self, method)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as an ONNX file, with the labels in its metadata."""
        from .graph.save import save

        save(self, path)

    def __repr__(self) -> str:
        from .coverage import describe_converter

        return describe_converter(self)

    def _repr_html_(self) -> str:
        from .cards import converter_card

        return converter_card(self)


def _float_outputs(raw: RawModel) -> list[str]:
    """Return the outputs that may carry data; labels and counts cannot be explained."""
    found = [o.name for o in raw.outputs if is_float(o.dtype)]
    if not found:
        raise ModelError(
            f"the model has no output of a float type, only {listed(o.name for o in raw.outputs)}; "
            "choose inner tensors, convert(model, outputs=[...])"
        )
    return found


def _tensor_names(given: Any, what: str) -> list[str]:
    """Check the names of tensors that a user wants as outputs or inputs."""
    if isinstance(given, str) and what == "inputs":
        given = [given]
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise SelectionError(
            f"{what} must be a list of names of tensors, such as ['y'], got {shown(given)}"
        )
    names = list(given)
    if not names or not all(isinstance(name, str) for name in names):
        raise SelectionError(f"{what} must be names of tensors, at least one, got {shown(names)}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise SelectionError(f"{what} names {shown(twice[0])} twice; name each tensor once")
    return names


def _check_float_input(raw: RawModel) -> None:
    """Whole numbers cannot be explained; what is looked up for them can."""
    if any(is_float(spec.dtype) for spec in raw.inputs):
        return
    came = listed(f"{s.name} ({s.dtype})" for s in raw.inputs) or "there is no input at all"
    found = embeddings(raw)
    advice = "convert(model, inputs=['name']) takes inner tensors, such as the embedding of tokens"
    if found:
        advice = f"attribute to an embedding: convert(model, inputs={found[:1]})"
        advice += f", or another of {listed(found[1:], 5, 60)}" if found[1:] else ""
    raise ModelError(f"the model has no input of a float type: {came}; {advice}")


def _check_computed(sources: Sequence[str], raw: RawModel) -> None:
    """Refuse constants and whole-number inputs as what values are attributed to."""
    whole = [spec.name for spec in raw.inputs if not is_float(spec.dtype)]
    for name in sources:
        if name in raw.initializers or name in whole:
            kind = "whole numbers" if name in whole else "constants"
            raise SelectionError(
                f"inputs names {shown(name)}, which holds {kind}; name a float tensor that is "
                "computed from the data, such as the output of an embedding"
            )


def _check_sources(graph: Graph, trial: Trial, input_dim: Sequence[Shape]) -> None:
    """Refuse tensors as inputs that hold whole numbers or have no row for each instance."""
    if not graph.sources:
        return
    values = run(head(graph, graph.sources), random_rows(graph.inputs, input_dim, _rows(graph)))
    for name in graph.sources:
        if values[name] is None or not is_float(values[name].dtype):
            kind = "constants" if values[name] is None else f"whole numbers ({values[name].dtype})"
            raise SelectionError(
                f"inputs names {shown(name)}, which holds {kind}; name a float tensor that is "
                "computed from the data, such as the output of an embedding"
            )
        if values[name].shape[:1] != (_rows(graph),) or name not in trial.shapes:
            raise SelectionError(
                f"inputs names {shown(name)} of shape {values[name].shape} for "
                f"{counted(_rows(graph), 'row')}: its first axis is not the batch, or no output "
                "depends on it"
            )


def _rows(graph: Graph) -> int:
    return graph.fixed_batch or 2


def _input_shapes(specs: Sequence[ValueSpec], given: Any) -> list[Shape]:
    """Return the shapes of the inputs without batch axis, from the model and the user."""
    shapes = _given_shapes(given, len(specs))
    return [_one_shape(spec, shape) for spec, shape in zip(specs, shapes, strict=True)]


def _given_shapes(given: Any, n: int) -> list[Shape | None]:
    if given is None:
        return [None] * n
    try:
        entries = list(given)
        single = not any(isinstance(e, Iterable) and not isinstance(e, str) for e in entries)
        layers = [entries] if single else [list(e) for e in entries]
    except TypeError:
        raise ShapeError(
            "input_dim must be a tuple of whole numbers, or a list of tuples, one per input; "
            f"got {shown(given)}"
        ) from None
    if len(layers) != n:
        raise ShapeError(
            f"input_dim has {counted(len(layers), 'shape')}, the model has {counted(n, 'input')}"
        )
    return [tuple(_dimension(v) for v in layer) for layer in layers]


def _dimension(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ShapeError(f"input_dim must hold whole numbers > 0, got {shown(value)}")
    return int(value)


def _one_shape(spec: ValueSpec, given: Shape | None) -> Shape:
    shape = _resolved(spec, given)
    if not 0 < math.prod(shape) <= MAX_INPUT_ELEMENTS:
        raise ShapeError(
            f"input '{spec.name}' has {math.prod(shape)} elements per row, shape {shape}; "
            f"expected 1 to {MAX_INPUT_ELEMENTS:,}"
        )
    return shape


def _resolved(spec: ValueSpec, given: Shape | None) -> Shape:
    if spec.shape is None:
        if given is None:
            raise ShapeError(
                f"the model leaves the shape of input '{spec.name}' open: give input_dim"
            )
        return given
    if len(spec.shape) == 0:
        raise ShapeError(
            f"input '{spec.name}' is a single number without a batch axis and cannot be explained"
        )
    declared = spec.shape[1:]
    if given is None:
        sizes = tuple(d for d in declared if isinstance(d, int))
        if len(sizes) < len(declared):
            raise ShapeError(
                f"input '{spec.name}' has shape {_declared(spec)}: give input_dim for its open "
                "axes, without the batch axis"
            )
        return sizes
    fits = len(given) == len(declared) and all(
        not isinstance(d, int) or d == g for d, g in zip(declared, given, strict=False)
    )
    if not fits:
        hint = "; give it without the batch axis" if len(given) == len(spec.shape) else ""
        raise ShapeError(
            f"input_dim {given} does not fit input '{spec.name}' of shape {_declared(spec)}{hint}"
        )
    return given


def _declared(spec: ValueSpec) -> str:
    sizes = ["?" if size is None else repr(size) for size in spec.shape or ()]
    return f"({', '.join(sizes)})"
