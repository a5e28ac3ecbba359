"""torch modules: exported by torch itself, then named by their modules and cleaned."""

from __future__ import annotations

import ast
import inspect
import io
import logging
import operator
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxplain.errors import ArgumentError, DtypeError, ModelError, ShapeError, listed, shown

if TYPE_CHECKING:
    import torch

OPSETS = (18, 19, 20)


def convert(
    model: torch.nn.Module, *, input_dim: Any = None, example: Any = None, opset: int = 20
) -> onnx.ModelProto:
    """Make an ONNX model of a torch module; the module itself stays as it is.

    Parameters
    ----------
    model : torch.nn.Module
        Any module that `torch.export` can read: its forward must not branch on values of the data.
        It is exported in evaluation mode; float64 stays float64.
    input_dim : shape, or list of those, optional
        Shapes of the inputs without batch axis; all inputs get the type of the weights.
    example : torch.Tensor, or tuple of those, optional
        Inputs to export with, in place of `input_dim`; needed for inputs of whole numbers.
    opset : 18, 19 or 20, default 20
        Version of ONNX's operators.

    Returns
    -------
    onnx.ModelProto
        The batch size is free. Nodes have the names of the modules they come from
        ("features.0"); what several nodes do in one module, or a function in a forward, has the
        operator added ("features.3/Add").

    Raises
    ------
    ArgumentError
        If neither `input_dim` nor `example` is given.
    ShapeError
        If the module does not run on inputs of this shape.
    ModelError
        If torch cannot export the module; the message says why.

    Warns
    -----
    UserWarning
        If only torch's older exporter can read the module; nodes have that exporter's names then.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh())
    >>> [node.name for node in convert(model, input_dim=(4,)).graph.node]
    ['0', '1']
    """
    import torch

    if not isinstance(model, torch.nn.Module):
        raise DtypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if opset not in OPSETS:
        raise ArgumentError(f"opset must be one of {OPSETS}, got {shown(opset)}")
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    args = _example(model, input_dim, example)
    with _evaluating(model), _quiet(), torch.no_grad():
        _try_forward(model, args)
        proto, reason = _export(model, args, opset)
    if reason:
        warnings.warn(
            f"torch.export cannot read the module ({reason}); torch's older exporter was used",
            UserWarning,
            stacklevel=2,
        )
    _name_nodes(proto, model)
    _exact_slopes(proto.graph)
    _strip(proto)
    return proto


# -- example inputs -------------------------------------------------------------------------------


def _example(model: Any, input_dim: Any, example: Any) -> tuple[Any, ...]:
    """Return tensors with a batch of at least two: torch takes a size of 1 for a constant."""
    import torch

    if example is None:
        if input_dim is None:
            raise ArgumentError(
                "a torch module does not know the shape of its input: give input_dim=(...), "
                "without batch axis, or example=<tensor>"
            )
        like = next(_floats(model), torch.zeros(()))
        return tuple(
            torch.rand(2, *dim, generator=torch.Generator().manual_seed(0)).to(like)
            for dim in _shapes(input_dim)
        )
    args = (example,) if isinstance(example, torch.Tensor) else example
    if not isinstance(args, (tuple, list)) or not all(isinstance(a, torch.Tensor) for a in args):
        raise DtypeError(f"example must be a tensor or a tuple of tensors, got {shown(example)}")
    sizes = {a.shape[0] if a.ndim else None for a in args}
    if len(sizes) != 1 or None in sizes:
        raise ShapeError(
            "the inputs in example must have the same batch size, got shapes "
            f"{listed(tuple(a.shape) for a in args)}"
        )
    return tuple(torch.cat([a, a]) if len(a) == 1 else a for a in args)


def _floats(model: Any) -> Iterator[Any]:
    """Run through the float weights of a module."""
    for tensors in (model.parameters(), model.buffers()):
        yield from (t for t in tensors if t.is_floating_point())


def _shapes(given: Any) -> list[tuple[int, ...]]:
    try:
        layers = [given] if all(np.ndim(n) == 0 for n in given) else given
        shapes = [tuple(operator.index(n) for n in dim) for dim in layers]
    except TypeError:
        shapes = []
    if not shapes or any(n < 1 for dim in shapes for n in dim):
        raise ShapeError(
            f"input_dim must be whole numbers > 0 in a tuple, or a list of those, got "
            f"{shown(given)}"
        )
    return shapes


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Switch to evaluation and give every module its mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's reports to itself; what went wrong is in our error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()) as out, redirect_stderr(out):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _try_forward(model: Any, args: Sequence[Any]) -> None:
    import torch

    try:
        with torch.random.fork_rng(devices=[]):
            model(*args)
    except Exception as error:
        came = listed((f"{tuple(a.shape)} {a.dtype}" for a in args), length=60)
        hint = (
            "whole numbers as input need example="
            if any(_wants_integers(model))
            else ("check input_dim, which has no batch axis and stands channels first")
        )
        raise ShapeError(
            f"the module does not run on {came}: {_first_line(error)}; {hint}"
        ) from error


def _wants_integers(model: Any) -> Iterator[bool]:
    return (type(module).__name__.startswith("Embedding") for module in model.modules())


def _first_line(error: BaseException) -> str:
    """Return the message of the first cause, without what torch adds for its developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


# -- export ---------------------------------------------------------------------------------------


def _export(model: Any, args: tuple[Any, ...], opset: int) -> tuple[onnx.ModelProto, str]:
    """Return the model and, where the older exporter made it, why."""
    import onnxscript  # noqa: F401  torch needs it; missing, the error names it
    import torch

    if not isinstance(model, torch.jit.ScriptModule):
        try:
            batch = {0: torch.export.Dim("batch")}
            program = torch.onnx.export(
                model,
                args,
                dynamo=True,
                external_data=False,
                dynamic_shapes=_as_signature(model, [batch] * len(args)),
                opset_version=opset,
                verbose=False,
            )
            return program.model_proto, ""
        except Exception as error:
            reason = _first_line(error)
    else:
        reason = "it is a TorchScript module"
    try:
        return _export_older(model, args, opset), reason
    except Exception as error:
        raise ModelError(
            f"torch cannot export {type(model).__name__}: {reason}; "
            f"its older exporter: {_first_line(error)}"
        ) from error


def _as_signature(model: Any, dynamic: list[Any]) -> tuple[Any, ...]:
    """Nest what belongs to `*args` of the forward, as torch asks for it."""
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(dynamic)
    k = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*dynamic[:k], tuple(dynamic[k:])) if len(dynamic) > k else tuple(dynamic)


def _export_older(model: Any, args: tuple[Any, ...], opset: int) -> onnx.ModelProto:
    """Export by tracing; an error where a trace would fix what depends on the data."""
    import torch

    names = [f"input_{i}" if len(args) > 1 else "input" for i, _ in enumerate(args, 1)]
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        torch.onnx.export(
            model,
            args,
            file,
            dynamo=False,
            input_names=names,
            dynamic_axes={name: {0: "batch"} for name in names},
            opset_version=opset,
        )
    return onnx.load_from_string(file.getvalue())


# -- names ----------------------------------------------------------------------------------------

# The node that stands for a module where it becomes several.
_MAIN_OPS = frozenset(
    {
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LayerNormalization"),
        *("InstanceNormalization", "GroupNormalization", "LSTM", "GRU", "RNN", "Gather"),
        *("MaxPool", "AveragePool", "ReduceMean", "GlobalAveragePool", "GlobalMaxPool"),
    }
)


def _name_nodes(proto: onnx.ModelProto, model: Any) -> None:
    """Call nodes by their modules; the metadata of the exporter say which these are."""
    scopes = [_scopes(node) for node in proto.graph.node]
    if not any(scopes):
        return  # the older exporter, which has names of its own
    modules = dict(model.named_modules())
    calls = defaultdict(list)  # nodes of one call of one module
    for node, scope in zip(proto.graph.node, scopes, strict=True):
        calls[scope].append(node)
    mains = _mains({k: nodes for k, nodes in calls.items() if _is_layer(modules.get(k[0]))})
    taken: set[str] = set()
    rest = []
    for node, (path, _) in zip(proto.graph.node, scopes, strict=True):
        owner = _weight_owner(node, modules)
        # A batch norm joined to a convolution says it is the norm, its weight who it is.
        joined = owner and "BatchNorm" in type(modules.get(path)).__name__
        name = path if id(node) in mains and not joined else owner
        if name:
            node.name = _free(name, taken)
        else:
            rest.append((node, f"{path}/{node.op_type}" if path else node.op_type))
    for node, name in rest:
        node.name = _free(name, taken)


def _scopes(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the path of the module that a node comes from, and the call."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            *path, call = ast.literal_eval(entry.value)
            return (path[-1] if path else "", call)
    return ("", "")


def _is_layer(module: Any) -> bool:
    """Tell a layer of torch from a module that others were put into."""
    return (
        module is not None
        and type(module).__module__.startswith("torch.nn.")
        and next(module.children(), None) is None
    )


def _mains(calls: dict[tuple[str, str], list[onnx.NodeProto]]) -> set[int]:
    """Return the ids of the nodes that stand for layers; of an activation spelled out the last."""
    known = {path for (path, _), nodes in calls.items() if any(map(_is_main, nodes))}
    return {
        id(next(filter(_is_main, nodes), nodes[-1]))
        for (path, _), nodes in calls.items()
        if path not in known or any(map(_is_main, nodes))
    }


def _is_main(node: onnx.NodeProto) -> bool:
    return node.op_type in _MAIN_OPS


def _weight_owner(node: onnx.NodeProto, modules: dict[str, Any]) -> str:
    """Return the module whose weight a node has: a batch norm after it may have been joined."""
    for name in node.input:
        path, _, what = name.rpartition(".")
        if what == "weight" and path in modules and _is_main(node):
            return path
    return ""


def _free(name: str, taken: set[str]) -> str:
    """Return a name that no node has yet."""
    free, k = name, 1
    while free in taken:
        k += 1
        free = f"{name}_{k}"
    taken.add(free)
    return free


# -- cleaning -------------------------------------------------------------------------------------


def _exact_slopes(graph: onnx.GraphProto) -> None:
    """Hold slopes of LeakyRelu as weights in float64 models: an attribute is a float32."""
    if not any(t.data_type == TensorProto.DOUBLE for t in graph.initializer):
        return
    for i, node in enumerate(graph.node):
        if node.op_type == "LeakyRelu":
            alpha = next((a.f for a in node.attribute if a.name == "alpha"), 0.01)
            slope = np.array(float(str(np.float32(alpha))))  # the decimal number that was meant
            graph.initializer.append(numpy_helper.from_array(slope, f"leaky_relu_slope_{i}"))
            node.op_type = "PRelu"
            node.input.append(graph.initializer[-1].name)
            del node.attribute[:]


def _strip(proto: onnx.ModelProto) -> None:
    """Remove notes of the exporter: they hold paths and lines of the author's source."""
    graph = proto.graph
    for owner in (
        *(proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info),
        *(*graph.initializer, *proto.functions),
    ):
        owner.doc_string = ""
        del owner.metadata_props[:]
