"""Keras 3 models and their files, of any backend.

Which way a model goes is one rule:

1. It is written layer by layer, exactly, if the layers it is made of are known. A layer of one's
   own, a function in a Lambda layer or a subclassed model is read operation by operation, as far
   as it is made of known layers and functions of `keras.ops`.
2. Else tf2onnx writes it, if the backend is TensorFlow, tf2onnx is installed, and the model has
   nothing that tf2onnx is known to write wrongly (`WRONG_IN_TF2ONNX`) nor is too large for it.
3. Else it is refused, with the name of the layer.
"""

from __future__ import annotations

import inspect
import io
import logging
import operator
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from onnx import helper

from onnxplain.errors import (
    ArgumentError,
    DtypeError,
    MissingPackageError,
    ModelError,
    ModelFileError,
    ShapeError,
    counted,
    shortened,
    shown,
)

from . import keras_layers, keras_operations
from .keras_graph import Graph, Order, Shape, Tensor, Unknown, channels_first, functional

if TYPE_CHECKING:
    import keras


def convert(
    model: keras.Model | str | os.PathLike[str],
    *,
    input_dim: Any = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    """Make an ONNX model of a Keras 3 model; the model itself stays as it is.

    Parameters
    ----------
    model : keras.Model, or path of a .keras or .h5 file
        Sequential, functional or subclassed; it is written as it predicts (`training=False`).
    input_dim : shape, or list of those, optional
        Shapes of the inputs without batch axis, channels first. Needed where the model leaves
        them open; a model that is not built yet is built with them.
    custom_objects : dict, optional
        Classes and functions of one's own that a file needs, by name.

    Returns
    -------
    onnx.ModelProto
        In float64 if the model has weights in float64, else in float32. Inputs and outputs with
        several axes stand channels first: what is (height, width, channels) in Keras is
        (channels, height, width). Nodes have the names of the layers, of a model inside a model
        "model/layer"; what a layer does besides its main operator has the operator added
        ("dense/Relu"); the second call of a shared layer has "_2" added.

    Raises
    ------
    ModelFileError
        If a file is missing or holds no Keras model.
    ModelError
        If a layer cannot be converted; the message names it.
    ArgumentError
        If `input_dim` is needed and not given.
    ShapeError
        If `input_dim` does not fit the model.

    Examples
    --------
    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh", name="hidden")])
    >>> [node.name for node in convert(model).graph.node]
    ['hidden', 'hidden/Tanh']
    """
    keras = _keras()
    if isinstance(model, (str, os.PathLike)):
        model = _loaded(os.fspath(model), custom_objects)
    if not isinstance(model, keras.Model):
        raise DtypeError(
            f"expected a Keras model, got {type(model).__name__}; "
            "put a layer into keras.Sequential([keras.Input(shape), layer])"
        )
    inputs = _inputs(model, _given(input_dim))
    try:
        return _written(model, inputs)
    except Unknown as error:
        return _by_tf2onnx(model, inputs, error)


def _keras() -> Any:
    try:
        import keras
    except ModuleNotFoundError as error:
        if error.name == "keras":
            raise
        raise MissingPackageError(
            f"Keras needs {error.name}: pip install tensorflow-cpu, or choose another backend by "
            "the environment variable KERAS_BACKEND (torch or jax)"
        ) from error
    if not hasattr(keras, "ops"):
        raise ModelError(f"Keras 3 is needed, {keras.__version__} is installed")
    return keras


# -- files ----------------------------------------------------------------------------------------


def _loaded(path: str, custom_objects: Mapping[str, Any] | None) -> Any:
    import keras

    if not os.path.exists(path):
        raise ModelFileError(f"there is no file {path!r}")
    try:
        with _quiet():
            return keras.models.load_model(path, custom_objects=custom_objects, compile=False)
    except Exception as error:
        reason = shortened(str(error).strip() or type(error).__name__, 300)
        if path.endswith(".weights.h5") or "No model config found" in reason:
            hint = "it holds no model, perhaps weights only: load them into the model in Python"
        elif "Lambda" in reason or "unsafe" in reason:
            hint = "if you trust it, load it with keras.models.load_model(path, safe_mode=False)"
        else:
            hint = "expected what model.save(path) writes; classes of your own go in custom_objects"
        raise ModelFileError(f"Keras cannot load {path!r}: {reason}; {hint}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep reports of Keras and tf2onnx to ourselves; what went wrong is in our error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()) as out, redirect_stderr(out):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# -- inputs ---------------------------------------------------------------------------------------


class _Input(NamedTuple):
    """An input of the model: its shape in Keras, and the order that the user sees."""

    name: str
    shape: Shape
    order: Order
    dtype: str = "float32"


def _given(input_dim: Any) -> list[tuple[int, ...]] | None:
    """Return the shapes given, one per input."""
    if input_dim is None:
        return None
    try:
        entries = list(input_dim)
        single = all(np.ndim(n) == 0 for n in entries)
        layers = [entries] if single else entries
        shapes = [tuple(operator.index(n) for n in dim) for dim in layers]
    except TypeError:
        shapes = []
    if not shapes or any(n < 1 for dim in shapes for n in dim):
        raise ShapeError(
            "input_dim must be whole numbers > 0 in a tuple, or a list of those, one per input; "
            f"got {shown(input_dim)}"
        )
    return shapes


def _inputs(model: Any, given: list[tuple[int, ...]] | None) -> list[_Input]:
    """Return the inputs with complete shapes; a model without a graph gets them from `given`."""
    data_format = _data_format(model)
    if functional(model) is None:
        given = _needed(model, given)
        if not _is_sequential(model):
            return [
                _Input(f"input_{i}" if len(given) > 1 else "input", *_shape(dim, data_format))
                for i, dim in enumerate(given, 1)
            ]
        _build(model, given, data_format)
    tensors = functional(model).inputs
    if given is not None and len(given) != len(tensors):
        raise ShapeError(
            f"input_dim has {counted(len(given), 'shape')}, the model has "
            f"{counted(len(tensors), 'input')}"
        )
    return [
        _one_input(tensor, data_format, None if given is None else given[i])
        for i, tensor in enumerate(tensors)
    ]


def _needed(model: Any, given: list[tuple[int, ...]] | None) -> list[tuple[int, ...]]:
    if given is None:
        what = "has no graph of layers" if model.built else "is not built yet"
        raise ArgumentError(
            f"the model {model.name!r} {what}: give input_dim=(...), without batch axis and "
            "channels first"
        )
    return given


def _is_sequential(model: Any) -> bool:
    import keras

    return isinstance(model, keras.Sequential) and type(model).call is keras.Sequential.call


def _build(model: Any, given: list[tuple[int, ...]], data_format: str) -> None:
    """Build a Sequential model, which gives it its (random) weights, as a first call would."""
    shape, _ = _shape(given[0], data_format)
    try:
        model.build(shape)
    except Exception as error:
        raise ShapeError(
            f"the model does not run on input_dim {given[0]}, which has no batch axis and stands "
            f"channels first: {shortened(str(error))}"
        ) from error
    if functional(model) is None:
        raise ModelError(f"Keras cannot build a graph of the layers of {model.name!r}")


def _shape(dim: Sequence[int], data_format: str) -> tuple[Shape, Order]:
    """Return the shape in Keras of what is given channels first, and the order given."""
    rank = len(dim) + 1
    order = channels_first(rank, data_format)
    shape = [None] * rank
    for axis, n in zip(order[1:], dim, strict=True):
        shape[axis] = n
    return tuple(shape), order


def _one_input(tensor: Any, data_format: str, given: tuple[int, ...] | None) -> _Input:
    name = tensor._keras_history.operation.name
    order = channels_first(len(tensor.shape), data_format)
    presented = tuple(tensor.shape[axis] for axis in order[1:])
    if given is None:
        if None in presented:
            raise ArgumentError(
                f"input {name!r} has the shape {_shown(presented)}: give input_dim for its open "
                "axes, without batch axis and channels first"
            )
        given = presented
    fits = len(given) == len(presented) and all(
        n is None or n == m for n, m in zip(presented, given, strict=True)
    )
    if not fits:
        hint = "; channels stand first" if tuple(given) == tuple(tensor.shape[1:]) else ""
        raise ShapeError(
            f"input_dim {given} does not fit input {name!r} of shape {_shown(presented)}{hint}"
        )
    return _Input(name, *_shape(given, data_format), tensor.dtype)


def _shown(dim: Sequence[int | None]) -> str:
    sizes = ["?" if n is None else str(n) for n in dim]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _data_format(model: Any) -> str:
    """Return how the data of a model lie: "channels_first" only if all its layers say so."""
    found = {
        layer.data_format
        for layer in _layers(model)
        if hasattr(layer, "data_format") and type(layer).__name__ != "Flatten"
    }
    return "channels_first" if found == {"channels_first"} else "channels_last"


def _layers(model: Any) -> list[Any]:
    """Return all layers inside a model."""
    return list(model._flatten_layers(include_self=False))


# -- layer by layer -------------------------------------------------------------------------------


def _written(model: Any, inputs: Sequence[_Input]) -> onnx.ModelProto:
    """Write the model layer by layer."""
    dtype = _float_type(model, inputs)
    graph = Graph(dtype, _reserved(model))
    graph.handlers = (keras_layers.find, keras_operations.find)
    tensors = [graph.input(i.name, i.shape, i.order, _tensor_type(i, dtype)) for i in inputs]
    outputs, names = _outputs(graph, model, tensors)
    data_format = _data_format(model)
    graph.finish([graph.ordered(x, channels_first(x.rank, data_format)) for x in outputs], names)
    return graph.model()


def _outputs(graph: Graph, model: Any, tensors: list[Tensor]) -> tuple[list[Tensor], list[str]]:
    function = functional(model)
    if function is not None:
        names = [x._keras_history.operation.name for x in function.outputs]
        return graph.run(function, tensors), names
    outputs = graph.trace(model.call, _arguments(model, tensors))
    many = len(outputs) > 1
    return outputs, [f"output_{i}" if many else "output" for i in range(1, len(outputs) + 1)]


def _arguments(model: Any, tensors: Sequence[Any]) -> list[Any]:
    """Return the arguments of a model's call: one list, or one argument per input."""
    parameters = inspect.signature(model.call).parameters.values()
    takes = [p for p in parameters if p.name not in ("training", "mask")]
    single = len(takes) == 1 and takes[0].kind is not inspect.Parameter.VAR_POSITIONAL
    return [list(tensors)] if single and len(tensors) > 1 else list(tensors)


def _reserved(model: Any) -> set[str]:
    """Return the names that the first call of each layer has."""
    import keras

    found = set()
    for layer in model.layers:
        found.add(layer.name)
        if isinstance(layer, keras.Model):
            found |= {f"{layer.name}/{name}" for name in _reserved(layer)}
    return found


def _float_type(model: Any, inputs: Sequence[_Input]) -> np.dtype:
    types = {str(w.dtype) for w in model.weights} | {i.dtype for i in inputs}
    return np.dtype(np.float64 if "float64" in types else np.float32)


def _tensor_type(given: _Input, dtype: np.dtype) -> Any:
    if "float" in given.dtype:
        return dtype
    if given.dtype not in ("int32", "int64", "uint8", "int8", "int16", "uint16", "bool"):
        raise ModelError(
            f"input {given.name!r} holds values of type {given.dtype}; numbers are expected: "
            "cut the model behind what turns them into numbers"
        )
    return np.dtype(given.dtype)


# -- tf2onnx --------------------------------------------------------------------------------------

# tf2onnx takes about 65 times the weights in memory.
MAX_PARAMETERS_TF2ONNX = 10_000_000


def _grouped(layer: Any) -> bool:
    return getattr(layer, "groups", 1) != 1 and hasattr(layer, "kernel_size")


def _exact_gelu(layer: Any) -> bool:
    import keras

    return getattr(layer, "activation", None) is keras.activations.gelu


def _has_constants(layer: Any) -> bool:
    return type(layer).__name__ == "Normalization"


# What tf2onnx is known to write wrongly: a reason, and how to see it in a layer.
WRONG_IN_TF2ONNX = {
    "writes a grouped convolution as a call that is no ONNX": _grouped,
    "writes the exact gelu as an operator that is no ONNX": _exact_gelu,
    "makes the constants of Normalization inputs of the model": _has_constants,
}


def _by_tf2onnx(model: Any, inputs: Sequence[_Input], unknown: Unknown) -> onnx.ModelProto:
    """Let tf2onnx write what the direct export does not know."""
    reason = _against_tf2onnx(model)
    if reason is None:
        try:
            with _quiet():
                return _tf2onnx(model, inputs)
        except Exception as error:
            reason = f"tf2onnx cannot write the model: {shortened(str(error))}"
    raise ModelError(f"the model cannot be converted: {unknown}; {reason}") from unknown


def _against_tf2onnx(model: Any) -> str | None:
    """Return why tf2onnx is not to be used; None if it may."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return f"tf2onnx could, but the backend is {keras.backend.backend()}, not TensorFlow"
    try:
        import tf2onnx  # noqa: F401
    except ImportError:
        return "tf2onnx could, but it is not installed: pip install tf2onnx"
    for wrong, found in WRONG_IN_TF2ONNX.items():
        names = [layer.name for layer in _layers(model) if found(layer)]
        if names:
            return f"tf2onnx {wrong} (layer {names[0]!r})"
    if model.count_params() > MAX_PARAMETERS_TF2ONNX:
        return f"it is too large for tf2onnx, {model.count_params():,} weights"
    return None


def _tf2onnx(model: Any, inputs: Sequence[_Input]) -> onnx.ModelProto:
    import tensorflow as tf
    import tf2onnx

    signature = [tf.TensorSpec(i.shape, i.dtype, name=i.name) for i in inputs]

    def function(*tensors: Any) -> Any:
        return model(*_arguments(model, tensors), training=False)

    proto, _ = tf2onnx.convert.from_function(
        tf.function(function), input_signature=signature, opset=18
    )
    _present(proto, inputs, _data_format(model))
    return proto


def _present(proto: onnx.ModelProto, inputs: Sequence[_Input], data_format: str) -> None:
    """Put the channels of inputs and outputs first."""
    graph = proto.graph
    for value, given in zip(graph.input, inputs, strict=True):
        _transposed(graph, value, given.order, first=True)
        dims = [given.shape[a] if a else "N" for a in given.order]
        value.CopyFrom(
            helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, dims)
        )
    for value in graph.output:
        dims = list(value.type.tensor_type.shape.dim)
        order = channels_first(len(dims), data_format)
        _transposed(graph, value, order, first=False)
        sizes = [dims[axis].dim_value or None if axis else "N" for axis in order]
        value.CopyFrom(
            helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, sizes)
        )


def _transposed(graph: Any, value: Any, order: Order, *, first: bool) -> None:
    if order == tuple(range(len(order))):
        return
    inner = f"{value.name}/channels_last"
    for node in graph.node:
        names = node.input if first else node.output
        names[:] = [inner if name == value.name else name for name in names]
    if first:
        back = [order.index(a) for a in range(len(order))]
        name = f"{inner}/Transpose"
        graph.node.insert(0, helper.make_node("Transpose", [value.name], [inner], name, perm=back))
    else:
        name = f"{value.name}/Transpose"
        graph.node.append(
            helper.make_node("Transpose", [inner], [value.name], name, perm=list(order))
        )
