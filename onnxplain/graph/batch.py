"""Find out how a graph treats its batch: by running it, not by trusting what the file declares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..arrays import is_float
from ..errors import ModelError, OnnxplainError
from ..frugal import frugally
from .bodies import chooses_by_data, has_body
from .graph import Graph, Node, constant_value
from .load import ValueSpec
from .quantised import range_by_rows, rounds_dynamically

Shape = tuple[int, ...]

MAX_TRIAL_ELEMENTS = 2**29


@dataclass(frozen=True, slots=True)
class Trial:
    """What runs of two rows, together and alone, showed."""

    shapes: dict[str, Shape]  # of every tensor, with two rows (or the fixed batch)
    row_tensors: frozenset[str]  # axis 0 is the batch
    rows_first: bool  # true of every tensor that carries data
    row_bytes: int  # float32 bytes of all tensors with data, per row
    widest: int  # elements of the largest of them, per row


def examine(graph: Graph, input_dim: Sequence[Shape]) -> tuple[Graph, Trial]:
    """Return a graph that runs batches of any size if there is one, and what a trial showed.

    A batch size baked into the file (reshapes of fixed-batch exports) is taken out, and the result
    is checked: rows must come out the same alone and together. Where that fails the graph keeps
    its batch size and is run in batches of just that. Where a condition, or a number of steps,
    depends on the data rows may go different ways: they are run one by one.
    """
    declared = _declared_batch(graph.inputs)
    if chooses_by_data(graph.nodes, [spec.name for spec in graph.inputs]):
        if declared not in (None, 1):
            raise ModelError(
                f"the model is for batches of {declared}, and an If, Loop or Scan in it decides by "
                "the data of all their rows: rows cannot be explained one by one; export the model "
                "for a batch of 1"
            )
        return _fixed(graph, input_dim, 1)
    for candidate in _candidates(graph, declared or 1):
        trial = _try(candidate, input_dim)
        if trial is not None and _agree(graph, candidate, input_dim, declared or 1):
            return replace(candidate, rows_first=trial.rows_first), trial
    return _fixed(graph, input_dim, declared)


def _agree(graph: Graph, changed: Graph, input_dim: Sequence[Shape], batch: int) -> bool:
    """Tell whether a changed graph is the same function at the batch size of the file."""
    if changed is graph:
        return True
    feeds = random_rows(graph.inputs, input_dim, batch)
    try:
        first = run(graph, feeds)
    except OnnxplainError:  # the file does not tell its batch size: nothing to compare with
        return True
    second = run(changed, feeds)
    return all(
        first[name].shape == second[name].shape
        and np.allclose(first[name], second[name], rtol=1e-4, atol=1e-7, equal_nan=True)
        for name in graph.outputs
    )


def _fixed(graph: Graph, input_dim: Sequence[Shape], declared: int | None) -> tuple[Graph, Trial]:
    batch = declared or 1
    shapes: dict[str, Shape] = {}
    feeds = random_rows(graph.inputs, input_dim, batch)
    values = run(graph, feeds, shapes)  # an error here is the user's
    for name in graph.outputs:
        if values[name].ndim == 0 or values[name].shape[0] != batch:
            raise ModelError(
                f"output '{name}' has shape {values[name].shape} for a batch of {batch}: "
                "its first axis is not the batch, so rows cannot be explained one by one"
            )
    if declared != 1 and not (declared is None and rounds_dynamically(graph)):
        _check_rows_apart(graph, input_dim, values, max(batch, 2))
    rows = frozenset(n for n, s in shapes.items() if s[:1] == (batch,))
    trial = _summary(graph, shapes, rows, False, batch)
    return replace(graph, fixed_batch=batch, rows_first=False), trial


def _check_rows_apart(graph: Graph, input_dim: Sequence[Shape], values: dict, batch: int) -> None:
    """Refuse a graph in which a row's outputs change with another row of the batch."""
    feeds = random_rows(graph.inputs, input_dim, batch)
    moved = {
        k: np.concatenate([v[:-1], 1 - v[-1:]]) if is_float(v.dtype) else v
        for k, v in feeds.items()
    }
    try:
        first, second = run(graph, feeds), run(graph, moved)
    except OnnxplainError:  # a batch size is baked in: other rows are never there
        return
    for name in graph.outputs:
        a, b = first[name], second[name]
        if name not in graph.active or a.shape[1:] != values[name].shape[1:]:
            continue
        if len(a) == batch:
            a, b = a[:-1], b[:-1]
        if not np.allclose(a, b, rtol=1e-5, atol=1e-8, equal_nan=True):
            raise ModelError(
                f"output '{name}' mixes the rows of a batch (a sum, mean or softmax over axis 0?): "
                "they cannot be explained one by one; explain tensors before that, "
                "convert(model, outputs=[...])"
            )


def _declared_batch(inputs: Sequence[ValueSpec]) -> int | None:
    """Return the batch size the file declares, None if it is free."""
    sizes = {i.shape[0] for i in inputs if i.shape}
    fixed = [s for s in sizes if isinstance(s, int)]
    return fixed[0] if len(fixed) == len(sizes) == 1 else None


def random_rows(inputs: Sequence[ValueSpec], input_dim: Sequence[Shape], rows: int) -> dict:
    """Return seeded data between 0 and 1 (roots and logarithms exist), zeros for whole numbers."""
    rng = np.random.default_rng(0)
    size = rows * sum(math.prod(dim) for dim in input_dim)
    if size > MAX_TRIAL_ELEMENTS:
        raise ModelError(
            f"a batch of {rows} rows of the inputs has {size} numbers, "
            f"{MAX_TRIAL_ELEMENTS:,} are allowed; export the model with a smaller or free batch"
        )
    feeds = {}
    for spec, dim in zip(inputs, input_dim, strict=True):
        draw = rng.random((rows, *dim))
        feeds[spec.name] = (draw if is_float(spec.dtype) else np.zeros_like(draw)).astype(
            spec.dtype
        )
    return feeds


def run(graph: Graph, feeds: dict, shapes: dict[str, Shape] | None = None) -> dict:
    """Compute the outputs, quietly: random data may leave the domain of a logarithm."""
    from ..walk import forward

    with np.errstate(all="ignore"), frugally():
        return forward(graph, feeds, keep=False, shapes=shapes)


def _try(graph: Graph, input_dim: Sequence[Shape]) -> Trial | None:
    """Run two rows together and each alone; None if they do not come out the same."""
    rows = random_rows(graph.inputs, input_dim, 2)
    shapes: dict[str, Shape] = {}
    single: dict[str, Shape] = {}
    try:
        both = run(graph, rows, shapes)
        alone = [run(graph, {k: v[i : i + 1] for k, v in rows.items()}, single) for i in range(2)]
    except OnnxplainError:
        return None
    for name in graph.outputs:
        if name in graph.active and not _same_rows(both[name], [v[name] for v in alone]):
            return None
    row_tensors = frozenset(
        k for k, s in shapes.items() if s[:1] == (2,) and single[k] == (1, *s[1:])
    )
    first = graph.active <= row_tensors | graph.weights.keys()
    first &= not any(map(has_body, graph.nodes))  # whose inner tensors are not looked at
    return _summary(graph, shapes, row_tensors, first, 2)


def _same_rows(both: np.ndarray, alone: Sequence[np.ndarray]) -> bool:
    if both.ndim == 0 or both.shape[0] != 2:
        return False
    scale = np.nanmax(np.abs(both), initial=1e-30)
    return all(
        one.shape == (1, *both.shape[1:])
        and np.allclose(row, one[0], rtol=0, atol=1e-4 * scale, equal_nan=True)
        for row, one in zip(both, alone, strict=True)
    )


def _summary(
    graph: Graph, shapes: dict[str, Shape], rows: frozenset[str], first: bool, batch: int
) -> Trial:
    sizes = [int(np.prod(shapes[n])) // batch for n in graph.active if n in shapes]
    return Trial(shapes, rows, first, 4 * sum(sizes), max(sizes, default=1))


# -- taking a baked batch size out ----------------------------------------------------------------


def _candidates(graph: Graph, batch: int):
    graph = range_by_rows(graph)
    yield graph
    for free in (_free_leading_batch, _free_leading_any):
        changed = _free_reshapes(graph, lambda shape, f=free: f(shape, batch))
        if changed is not None:
            yield changed


def _free_leading_batch(shape: list[int], batch: int) -> list[int] | None:
    """[batch, a, b] to [-1, a, b], and [batch, -1] to [0, -1]."""
    if not shape or shape[0] != batch or len(shape) == 1:
        return None
    return [0 if -1 in shape else -1, *shape[1:]]


def _free_leading_any(shape: list[int], batch: int) -> list[int] | None:
    """[heads * batch, a, b] to [-1, a, b]."""
    if not shape or -1 in shape:
        return _free_leading_batch(shape, batch)
    return [-1, *shape[1:]]


def _free_reshapes(graph: Graph, free: Callable[[list[int]], list[int] | None]) -> Graph | None:
    weights, nodes, changed = dict(graph.weights), [], False
    for node in graph.nodes:
        new = _freed(graph, node, free) if node.op == "Reshape" and not node.domain else None
        if new is not None:
            name = f"{node.name}.shape"
            weights[name] = np.array(new, np.int64)
            node = replace(node, inputs=(node.inputs[0], name))
            changed = True
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes), weights=weights) if changed else None


def _freed(
    graph: Graph, node: Node, free: Callable[[list[int]], list[int] | None]
) -> list[int] | None:
    shape = constant_value(graph, node.input(1))
    allowzero = node.attributes.get("allowzero", 0)
    if shape is None or shape.ndim != 1 or allowzero or node.inputs[0] not in graph.active:
        return None
    return free([int(n) for n in shape])
