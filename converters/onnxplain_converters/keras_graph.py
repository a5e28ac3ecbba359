"""The ONNX graph of a Keras model under construction: tensors that know how their axes lie."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node

from onnxplain.errors import shortened

OPSET = 20

Shape = tuple[Any, ...]  # in Keras' order; the batch axis is first and None
Order = tuple[int, ...]


class Unknown(Exception):
    """The direct export cannot write this; `layer` says where."""

    layer: str | None = None

    def __str__(self) -> str:
        return f"{self.layer or 'the model'}: {super().__str__()}"


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the ONNX graph; its axis j is axis `order[j]` of the Keras tensor."""

    name: str
    shape: Shape
    order: Order
    dtype: np.dtype

    @property
    def rank(self) -> int:
        return len(self.shape)

    def axis(self, keras_axis: int) -> int:
        """Return where an axis of the Keras tensor is found."""
        if not -self.rank <= keras_axis < self.rank:
            raise Unknown(f"axis {keras_axis} of a tensor with {self.rank} axes")
        return self.order.index(keras_axis % self.rank)


def keras_order(rank: int) -> Order:
    return tuple(range(rank))


def channels_first(rank: int, data_format: str = "channels_last") -> Order:
    """Return the order in which the channels stand behind the batch axis."""
    if data_format == "channels_first" or rank < 3:
        return keras_order(rank)
    return (0, rank - 1, *range(1, rank - 1))


class Graph:
    """Nodes and weights written so far.

    The first node of a layer has the layer's name, others have their operator added to it.
    """

    def __init__(self, dtype: Any, reserved: set[str] = frozenset()) -> None:
        self.dtype = np.dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.handlers: tuple[Callable[[Any], Any], ...] = ()
        self._reserved = reserved  # names of layers, kept for their first call
        self._names: set[str] = set()
        self._scope, self._owner, self._label = "model", "model", "the model"
        self._fresh = False
        self._transposed: dict[tuple[str, Order], str] = {}

    # -- names

    @contextmanager
    def layer(self, name: str, layer: Any, *, holds_layers: bool = False) -> Iterator[str]:
        """Name nodes by a layer while it is written."""
        before = self._scope, self._owner, self._label, self._fresh
        path = name if before[0] == "model" else f"{before[0]}/{name}"
        owner = path  # all calls of a layer have the same weights
        path = path if holds_layers else self._unique(path, path)
        label = described(path, layer)
        self._scope, self._owner, self._label, self._fresh = path, owner, label, not holds_layers
        try:
            yield path
        except Unknown as error:
            error.layer = error.layer or label
            raise
        finally:
            self._scope, self._owner, self._label, self._fresh = before

    def _unique(self, name: str, own: str | None = None) -> str:
        """Return the name with a number added if it is taken, and take it."""
        found, k = name, 1
        while found in self._names or (found in self._reserved and found != own):
            k += 1
            found = f"{name}_{k}"
        self._names.add(found)
        return found

    def unknown(self, reason: str) -> Unknown:
        error = Unknown(reason)
        error.layer = self._label
        return error

    # -- nodes

    def node(
        self,
        op: str,
        inputs: Sequence[Tensor | str],
        shape: Shape,
        order: Order | None = None,
        dtype: Any = None,
        part: str | None = None,
        helper: bool = False,
        **attributes: Any,
    ) -> Tensor:
        """Add a node; inputs are tensors or names of weights.

        A helper only brings the input into shape and leaves the layer's name to another node.
        """
        if self._fresh and not helper:
            name, self._fresh = self._scope, False
        else:
            name = self._unique(f"{self._scope}/{part or op}")
        names = [x if isinstance(x, str) else x.name for x in inputs]
        tensor = f"{name}_output"
        self.nodes.append(make_node(op, names, [tensor], name=name, **attributes))
        order = keras_order(len(shape)) if order is None else order
        return Tensor(tensor, tuple(shape), order, np.dtype(dtype or self.dtype))

    def like(self, op: str, x: Tensor, *more: Tensor | str, **attributes: Any) -> Tensor:
        """Add a node whose result has the shape and order of its first input."""
        return self.node(op, [x, *more], x.shape, x.order, **attributes)

    def like_data(self, op: str, x: Tensor, *inputs: Tensor | str) -> Tensor:
        """Add a node whose result has the shape and order of a tensor that is no first input."""
        return self.node(op, inputs, x.shape, x.order, x.dtype)

    def weight(self, value: Any, role: str, dtype: Any = None) -> str:
        """Store an array and return its name; floats get the type of the model."""
        array = np.asarray(value)
        if dtype is None:
            dtype = np.int64 if array.dtype.kind in "iu" else self.dtype
        array = array.astype(dtype)
        name = f"{self._owner}.{role}"
        k = 1
        while name in self.weights and not _same(self.weights[name], array):
            k += 1
            name = f"{self._owner}.{role}_{k}"
        self.weights[name] = array
        return name

    def constant(self, value: Any, like: Tensor, role: str = "constant") -> str:
        """Store a constant of the Keras model that meets a tensor elementwise."""
        array = np.asarray(value)
        if array.ndim > like.rank or (array.ndim == like.rank and array.shape[0] != 1):
            raise self.unknown(f"a constant of shape {array.shape} depends on the batch size")
        if array.ndim:
            array = array.reshape((1,) * (like.rank - array.ndim) + array.shape)
            array = array.transpose(like.order)
        return self.weight(array, role, like.dtype)

    # -- orders and shapes

    def ordered(self, x: Tensor, order: Order) -> Tensor:
        """Return the tensor with its axes in this order."""
        if x.order == order:
            return x
        perm = tuple(x.order.index(axis) for axis in order)
        key = x.name, perm
        if key not in self._transposed:
            made = self.node("Transpose", [x], x.shape, order, x.dtype, helper=True, perm=perm)
            self._transposed[key] = made.name
        return replace(x, name=self._transposed[key], order=order)

    def in_keras_order(self, x: Tensor) -> Tensor:
        return self.ordered(x, keras_order(x.rank))

    def aligned(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Bring tensors of one rank into the order of the largest."""
        largest = max(tensors, key=lambda t: math.prod(t.shape[1:]))
        return [self.ordered(t, largest.order) for t in tensors]

    def reshape(self, x: Tensor, shape: Shape) -> Tensor:
        """Do what Keras' reshape does; `shape` is complete, the batch axis None."""
        shape = (None, *shape[1:])
        if shape == x.shape:
            return x
        if len(shape) > 2 and all(n == 1 for n in shape[1:-1]):
            order = channels_first(len(shape))  # a vector as an image of one pixel: no Transpose
        else:
            order = keras_order(len(shape))
        if not _flat_alike(x):
            x = self.in_keras_order(x)
        target = self.weight([shape[axis] if axis else 0 for axis in order], "shape")
        return self.node("Reshape", [x, target], shape, order, x.dtype)

    def as_float(self, x: Tensor) -> Tensor:
        if x.dtype.kind == "f":
            return x
        to = helper.np_dtype_to_tensor_dtype(self.dtype)
        return self.node("Cast", [x], x.shape, x.order, self.dtype, helper=True, to=to)

    def elementwise(self, op: str, *operands: Any, dtype: Any = None, **attributes: Any) -> Tensor:
        """Add a node that broadcasts tensors and constants as NumPy does."""
        operands = tuple(x if isinstance(x, Tensor) else to_numpy(x) for x in operands)
        tensors = [x for x in operands if isinstance(x, Tensor)]
        if len({x.rank for x in tensors}) > 1:
            raise self.unknown(f"{op} of tensors with different numbers of axes")
        if any(x.dtype.kind == "f" for x in operands):
            tensors = [self.as_float(x) for x in tensors]
        tensors = self.aligned(tensors)
        like, shape = tensors[0], broadcast([x.shape for x in operands])
        if len(shape) > like.rank:
            raise self.unknown(f"{op} with a constant that has more axes than the tensor")
        placed, rest = [], iter(tensors)
        for x in operands:
            placed.append(next(rest) if isinstance(x, Tensor) else self.constant(x, like))
        return self.node(op, placed, shape, like.order, dtype or like.dtype, **attributes)

    # -- the graph as a whole

    def input(self, name: str, shape: Shape, order: Order, dtype: Any) -> Tensor:
        """Add an input of the model."""
        x = Tensor(self._unique(name, name), shape, order, np.dtype(dtype))
        self.inputs.append(_info(x))
        return x

    def finish(self, outputs: Sequence[Tensor], names: Sequence[str]) -> None:
        """Make tensors the outputs of the model, under these names."""
        taken = {i.name for i in self.inputs}
        renamed: dict[str, str] = {}
        for x, name in zip(outputs, names, strict=True):
            if x.name in renamed or x.name in taken:
                x = self.node("Identity", [x], x.shape, x.order, x.dtype)
            k, found = 1, name
            while found in taken:
                k += 1
                found = f"{name}_{k}"
            taken.add(found)
            renamed[x.name] = found
            self.outputs.append(_info(replace(x, name=found)))
        inner = {name: f"{name}_inner" for name in renamed.values() if name not in renamed}
        self.rename(inner | renamed)

    def rename(self, names: Mapping[str, str], start: int = 0) -> None:
        """Give tensors other names in all nodes from `start` on."""
        for node in self.nodes[start:]:
            for tensors in (node.input, node.output):
                tensors[:] = [names.get(name, name) for name in tensors]
        self._transposed = {k: names.get(v, v) for k, v in self._transposed.items()}

    def model(self) -> onnx.ModelProto:
        used = {name for node in self.nodes for name in node.input}
        stored = [
            numpy_helper.from_array(np.ascontiguousarray(w).reshape(w.shape), name)
            for name, w in self.weights.items()
            if name in used
        ]
        graph = helper.make_graph(self.nodes, "keras", self.inputs, self.outputs, stored)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], producer_name="onnxplain")
        model.ir_version = helper.find_min_ir_version_for([opset])
        return model

    # -- walking through a Keras graph

    def run(self, function: Any, inputs: Sequence[Tensor], *, names: bool = True) -> list[Tensor]:
        """Write all nodes of a Functional model or a traced function; return its outputs.

        Without `names` single operations belong to the layer around them.
        """
        known = {id(k): x for k, x in zip(function.inputs, inputs, strict=True)}
        for depth in sorted(function._nodes_by_depth, reverse=True):
            for node in function._nodes_by_depth[depth]:
                if node.is_input or any(id(k) not in known for k in node.input_tensors):
                    continue
                if any(getattr(k, "_keras_mask", None) is not None for k in node.outputs):
                    error = Unknown("it makes or passes on a mask, which is not supported")
                    error.layer = described(node.operation.name, node.operation)
                    raise error
                args, kwargs = node.arguments.fill_in(known)
                made = self.call(node.operation, args, kwargs, names=names)
                known |= {id(k): x for k, x in zip(node.outputs, made, strict=True)}
        return [known[id(k)] for k in function.outputs]

    def call(
        self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any], *, names: bool = True
    ) -> list[Tensor]:
        """Write what one layer or operation does with these inputs."""
        import keras

        if not isinstance(operation, keras.layers.Layer) and not names:
            return self._write(operation, args, kwargs)
        # A Functional model predicts with training=False whatever its graph says.
        if kwargs.get("training") and not names:
            error = Unknown("it is called with training=True")
            error.layer = described(operation.name, operation)
            raise error
        whole = isinstance(operation, keras.Model)
        with self.layer(operation.name, operation, holds_layers=whole) as path:
            start = len(self.nodes)
            made = self._write(operation, args, kwargs)
            if whole or len(made) != 1 or not self._made_since(made[0], start):
                return made
            self.rename({made[0].name: path}, start)
            return [replace(made[0], name=path)]

    def _made_since(self, x: Tensor, start: int) -> bool:
        return any(x.name in node.output for node in self.nodes[start:])

    def _write(self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
        import keras

        kwargs = {k: v for k, v in kwargs.items() if v is not None and k != "training"}
        function = functional(operation)
        if function is not None:
            return self.run(function, keras.tree.flatten((args, kwargs)))
        for table in self.handlers:
            handler = table(operation)
            if handler is not None:
                return keras.tree.flatten(handler(self, operation, *args, **kwargs))
        if not isinstance(operation, keras.layers.Layer):
            raise self.unknown(f"the operation {type(operation).__name__} is not known")
        if "training" in inspect.signature(operation.call).parameters:
            kwargs["training"] = False
        return self.trace(operation.call, args, kwargs)

    def trace(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any] | None = None,
    ) -> list[Tensor]:
        """Write a Python function operation by operation, as Keras records them."""
        import keras

        tensors = [x for x in keras.tree.flatten((args, kwargs or {})) if isinstance(x, Tensor)]
        symbols = {
            id(x): keras.Input(batch_shape=x.shape, dtype=x.dtype.name, name=f"argument_{i}")
            for i, x in enumerate(tensors)
        }
        args, kwargs = keras.tree.map_structure(
            lambda x: symbols.get(id(x), x), (tuple(args), kwargs or {})
        )
        try:
            made = keras.tree.flatten(function(*args, **kwargs))
            recorded = keras.Function(list(symbols.values()), made)
        except Unknown:
            raise
        except Exception as error:
            reason = shortened(str(error) or type(error).__name__)
            raise self.unknown(f"its operations cannot be read one by one ({reason})") from error
        try:
            return self.run(recorded, list({id(x): x for x in tensors}.values()), names=False)
        finally:
            _forget(recorded)

    def output_shape(self, operation: Any, *args: Any, **kwargs: Any) -> Shape:
        """Return the shape that Keras gives the result of an operation."""
        import keras

        def symbol(x: Any) -> Any:
            return keras.KerasTensor(x.shape, x.dtype.name) if isinstance(x, Tensor) else x

        args, kwargs = keras.tree.map_structure(symbol, (args, kwargs))
        try:
            shape = tuple(operation.compute_output_spec(*args, **kwargs).shape)
        except Exception as error:
            reason = shortened(str(error) or type(error).__name__)
            raise self.unknown(f"Keras cannot tell its output shape ({reason})") from error
        if any(n is None for n in shape[1:]):
            raise self.unknown(f"the shape of its output, {shape}, depends on the data")
        return (None, *shape[1:])


def described(name: str, layer: Any) -> str:
    return f"layer '{name}' ({type(layer).__name__})"


def functional(model: Any) -> Any:
    """Return the graph of layers of a Functional or built Sequential model; None without one."""
    import keras

    if not isinstance(model, keras.Model):
        return None
    from keras.src.models.functional import Functional

    # A subclass with its own call is not what its graph says.
    if isinstance(model, keras.Sequential):
        return model._functional if type(model).call is keras.Sequential.call else None
    return model if isinstance(model, Functional) and type(model).call is Functional.call else None


def to_numpy(value: Any) -> np.ndarray:
    """Return a weight or constant of any backend as a NumPy array."""
    import keras

    if value is None or isinstance(value, (str, bytes)):
        raise Unknown(f"{value!r} where a number is expected")
    array = np.asarray(keras.ops.convert_to_numpy(value) if hasattr(value, "dtype") else value)
    # bfloat16 and other types that NumPy does not know are exact in float32.
    return array if array.dtype.kind in "fiub" else array.astype(np.float32)


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """Return the common shape; the batch axis stays None."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    return (None, *np.broadcast_shapes(*(s[1:] for s in padded)))


def _flat_alike(x: Tensor) -> bool:
    """Tell whether the elements lie as in Keras' order: axes of length 1 may stand anywhere."""
    long = [axis for axis in x.order if axis == 0 or x.shape[axis] != 1]
    return x.order[0] == 0 and long == sorted(long)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)


def _info(x: Tensor) -> onnx.ValueInfoProto:
    dims = [x.shape[axis] if axis else "N" for axis in x.order]
    if x.dtype.kind == "b":
        return helper.make_tensor_value_info(x.name, TensorProto.BOOL, dims)
    return helper.make_tensor_value_info(x.name, helper.np_dtype_to_tensor_dtype(x.dtype), dims)


def _forget(function: Any) -> None:
    """Take the nodes of a traced function out of the layers that they went through."""
    nodes = [node for level in function._nodes_by_depth.values() for node in level]
    for node, parents in [(node, list(node.parent_nodes)) for node in nodes]:
        for calls in (
            node.operation._inbound_nodes,
            *(p.operation._outbound_nodes for p in parents),
        ):
            if node in calls:
                calls.remove(node)
