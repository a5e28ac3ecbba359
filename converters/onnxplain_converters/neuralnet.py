"""Networks of R's package neuralnet, from .rds and .RData files, without R."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import onnx

from onnxplain.errors import ArgumentError, ModelError, SelectionError, counted, listed, shown

from . import r_function, rds
from .network import Network
from .rds import RObject

_ACTIVATIONS = {"logistic": "Sigmoid", "tanh": "Tanh"}


def convert(
    model: str | os.PathLike[str] | bytes,
    *,
    input_dim: Any = None,
    rep: int | Literal["best"] = "best",
    name: str | None = None,
) -> onnx.ModelProto:
    """Make an ONNX model of a network trained by R's neuralnet.

    Parameters
    ----------
    model : path or bytes
        A file written by `saveRDS(nn, file)` or `save(nn, file = file)`.
    input_dim : any, optional
        Not needed, the file says it.
    rep : int or "best", default "best"
        The repetition of the training, counted from 0; the one with the smallest error by default.
    name : str, optional
        The object in an .RData file; needed if several are networks.

    Returns
    -------
    onnx.ModelProto
        In float64; layers are called Dense_1, Dense_2, ..., names of inputs and outputs are those
        of the formula. Excluded weights are 0.

    Raises
    ------
    ModelFileError
        If the file is missing or damaged, or no file of R.
    ModelError
        If the object is no neuralnet, has no weights because the training did not converge, or
        has an activation function that cannot be translated.
    SelectionError
        If there is no such repetition or object.

    References
    ----------
    Günther and Fritsch (2010), neuralnet: Training of Neural Networks, The R Journal 2(1).
    """
    found = _network_object(rds.read(model), name)
    layers = _layers(_repetition(found, rep))
    act = _activation(found.get("act.fct"))
    linear = _flag(found.get("linear.output"))

    network = Network()
    x = network.input
    for i, (w, b) in enumerate(layers, start=1):
        x = network.dense(x, w, b, f"Dense_{i}")
        if i < len(layers) or not linear:
            x = act(network, x, f"Activation_{i}")
    n_inputs, n_outputs = len(layers[0][0]), len(layers[-1][1])
    inputs = _labels(found, "variables", "covariate", n_inputs)
    outputs = _labels(found, "response", "response", n_outputs)
    return network.model(x, n_inputs, n_outputs, inputs, outputs)


# -- the object -----------------------------------------------------------------------------------


def _is_network(value: Any) -> bool:
    return isinstance(value, RObject) and value.kind == "list" and "nn" in value.classes


def _network_object(content: Any, name: str | None) -> RObject:
    if isinstance(content, dict):
        return _of_workspace(content, name)
    if name is not None:
        raise ArgumentError("name chooses an object of an .RData file; an .rds file has only one")
    if not _is_network(content):
        raise ModelError(
            f"the file holds {_described(content)}, expected a network of neuralnet (class nn)"
        )
    return content


def _of_workspace(objects: dict[str, Any], name: str | None) -> RObject:
    networks = [key for key, value in objects.items() if _is_network(value)]
    if name is not None:
        if name not in objects:
            raise SelectionError(f"the file has no object {name!r}; it has {listed(objects)}")
        if name not in networks:
            raise ModelError(
                f"object {name!r} is {_described(objects[name])}, expected a network of neuralnet "
                "(class nn)"
            )
        return objects[name]
    if not networks:
        raise ModelError(
            f"no object of the file is a network of neuralnet (class nn): {listed(objects)}"
        )
    if len(networks) > 1:
        raise SelectionError(
            f"the file holds {len(networks)} networks: {listed(networks)}; choose one by name="
        )
    return objects[networks[0]]


def _described(value: Any) -> str:
    if isinstance(value, RObject):
        classes = [str(c) for c in value.classes]
        return f"an object of class {listed(classes)}" if classes else f"a {value.kind} object"
    return "NULL" if value is None else f"a {getattr(value, 'kind', type(value).__name__.lower())}"


# -- weights --------------------------------------------------------------------------------------


def _repetition(network: RObject, rep: int | str) -> list[Any]:
    """Return the weight matrices of one repetition."""
    weights = network.get("weights")
    if weights is None:
        raise ModelError(
            "the network has no weights: its training did not converge within stepmax; train it "
            "again with a larger stepmax or threshold"
        )
    if not isinstance(weights, RObject) or weights.kind != "list" or not weights.value:
        raise ModelError("the network's weights are no list; save the object again")
    n = len(weights.value)
    if rep == "best":
        rep = _best(network, n)
    if isinstance(rep, bool) or not isinstance(rep, (int, np.integer)):
        raise ArgumentError(f'rep must be "best" or a whole number from 0, got {shown(rep)}')
    if not 0 <= rep < n:
        raise SelectionError(
            f"rep={rep} is out of range: the network has {counted(n, 'repetition')}, from 0"
        )
    chosen = weights.value[rep]
    if not isinstance(chosen, RObject) or chosen.kind != "list" or not chosen.value:
        raise ModelError(f"repetition {rep} has no weights; choose another by rep=")
    return chosen.value


def _best(network: RObject, n: int) -> int:
    """Return the repetition with the smallest error: row "error" of the matrix of results."""
    if n == 1:
        return 0
    errors = _errors(network.get("result.matrix"))
    if errors is None or len(errors) != n or not np.isfinite(errors).any():
        raise ModelError(f"the file has no errors of the {n} repetitions; choose one by rep=")
    return int(np.nanargmin(errors))


def _errors(result: Any) -> np.ndarray | None:
    if not isinstance(result, RObject) or "error" not in _dimnames(result, 0):
        return None
    return _matrix(result, "result.matrix")[_dimnames(result, 0).index("error")]


def _layers(matrices: Sequence[Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return weight (in, out) and bias of each layer; row 1 of R's matrix is the bias."""
    read = [_weights(m, i) for i, m in enumerate(matrices, start=1)]
    layers = [(matrix[1:], matrix[0]) for matrix in read]
    for i, ((_, b), (w, _)) in enumerate(pairwise(layers), start=1):
        if len(b) != len(w):
            raise ModelError(
                f"layer {i} has {counted(len(b), 'output')}, "
                f"layer {i + 1} expects {counted(len(w), 'input')}"
            )
    return layers


def _weights(matrix: Any, i: int) -> np.ndarray:
    values = _matrix(matrix, f"layer {i}")
    if values.shape[0] < 2 or values.shape[1] < 1:
        raise ModelError(f"the weights of layer {i} have the shape {values.shape}, too small")
    values = np.where(_is_na(values), 0.0, values)  # excluded: no connection
    if not np.isfinite(values).all():
        raise ModelError(f"the weights of layer {i} are not finite; train the network again")
    return values


def _is_na(values: np.ndarray) -> np.ndarray:
    """Tell R's NA from other NaN by its low word."""
    words = np.ascontiguousarray(values, np.float64).view(np.uint64)
    return np.isnan(values) & (words.astype(np.uint32) == 1954)


def _matrix(found: Any, what: str) -> np.ndarray:
    """Return a matrix; R stores it by columns."""
    values = found.value if isinstance(found, RObject) and found.kind == "double" else None
    dim = found.attributes.get("dim") if values is not None else None
    shape = tuple(int(n) for n in dim.value[:3]) if _is_vector(dim) else ()
    if not isinstance(values, np.ndarray) or len(shape) != 2 or shape[0] * shape[1] != len(values):
        raise ModelError(f"{what} of the network is no matrix of numbers; save the object again")
    return values.reshape(shape[::-1]).T


def _is_vector(found: Any) -> bool:
    return isinstance(found, RObject) and found.kind == "integer"


def _flag(found: Any) -> bool:
    values = list(found.value[:2]) if isinstance(found, RObject) and found.kind == "logical" else []
    if values not in ([0], [1]):
        raise ModelError("the network's linear.output must be TRUE or FALSE; save the object again")
    return bool(values[0])


# -- activation and names -------------------------------------------------------------------------


def _activation(function: Any) -> Callable[[Network, str, str], str]:
    """Return what adds the activation's nodes to a network."""
    kind = _texts(function.attributes.get("type")) if isinstance(function, RObject) else []
    op = _ACTIVATIONS.get(kind[0]) if len(kind) == 1 else None
    if op:
        return lambda network, x, name: network.node(op, x, name=name)
    return r_function.activation(function)


def _texts(found: Any) -> list[Any]:
    ok = isinstance(found, RObject) and found.kind == "character"
    return list(found.value) if ok and isinstance(found.value, list) else []


def _dimnames(found: Any, axis: int) -> list[Any]:
    names = found.attributes.get("dimnames") if isinstance(found, RObject) else None
    if not isinstance(names, RObject) or names.kind != "list" or len(names.value) <= axis:
        return []
    return _texts(names.value[axis])


def _labels(network: RObject, key: str, table: str, n: int) -> list[str] | None:
    """Return n names from the formula, or from the columns of the training data."""
    formula = network.get("model.list")
    found = _texts(formula.get(key)) if isinstance(formula, RObject) else []
    for names in (found, _dimnames(network.get(table), 1)):
        if len(names) == n and all(isinstance(text, str) for text in names):
            return names
    return None
