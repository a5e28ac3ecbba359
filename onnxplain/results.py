"""What a method found, as arrays, tables and labelled data.

Every function reads the method's fields when it is called, so that a user may edit `result`,
`input_names` and `output_names` first. The number of features is taken from `input_names`: whoever
merges columns of a result shortens the names with it and everything else follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from .arrays import to_host
from .conventions import differences
from .device import choose
from .errors import ArgumentError, MissingPackageError, ShapeError
from .names import node_labels

INPUT_AXES = {
    2: ("channel", "length"),
    3: ("channel", "height", "width"),
}


def get_result(method: Any, type: str = "array") -> Any:
    """Return the result of `method` as "array", "data.frame", "xarray", "torch.tensor" or "cupy".

    Parameters
    ----------
    method
        An explained method (`LRP`, `Gradient`, ...).
    type
        "array" (default), "data.frame", "xarray", "torch.tensor", "torch_tensor" or "cupy"; see
        `to_array`, `to_frame`, `to_xarray`, `to_torch` and `to_cupy`.

    Raises
    ------
    ArgumentError
        If `type` is none of these.
    """
    convert = FORMATS.get(type) if isinstance(type, str) else None
    if convert is None:
        allowed = ", ".join(repr(name) for name in FORMATS)
        raise ArgumentError(f"get_result: type is {type!r}, expected one of {allowed}")
    return convert(method)


def to_array(method: Any) -> Any:
    """Return a copy of the result as NumPy arrays `(batch, *input_dim, nodes)`.

    One input and one explained output give the plain array, several inputs a dict
    `{"Input_1": array, ...}`, several explained outputs a dict `{"Output_1": ..., ...}` of these,
    numbered by their place in the model. An input without a path to an output gives NaN.
    Channels are where the user has them (`channels_first`).

    Examples
    --------
    >>> to_array(method).shape  # doctest: +SKIP
    (32, 4, 3)
    """
    return _nest(method, lambda s, i: user_array(method, s, i))


def to_torch(method: Any) -> Any:
    """Return a copy of the result as torch tensors on the CPU, nested as in `to_array`."""
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(
            "get_result('torch.tensor') needs torch: pip install 'onnxplain[torch]'"
        ) from error
    return _nest(method, lambda s, i: torch.from_numpy(user_array(method, s, i)))


def to_cupy(method: Any) -> Any:
    """Return a copy of the result as CuPy arrays on the thread's GPU, nested as in `to_array`."""
    place = choose("cuda")[0]
    return _nest(method, lambda s, i: place.asarray(user_array(method, s, i)))


def to_frame(method: Any) -> Any:
    """Return the result as a `pandas.DataFrame` with one row per value.

    The columns are `data` ("data_1", ...), `model_input` ("Input_1", ...), `model_output`
    ("Output_1", ...), `feature`, `feature_2`, `channel`, `output_node`, `value`, `pred`,
    `decomp_sum`, `decomp_goal`, `input_dimension`.

    `feature` is the feature of a table, the position of a signal or the row of an image,
    `feature_2` the column of an image; `feature_3` and so on are further axes of larger inputs.
    `channel` and `feature_2`, ... are there only if an input has them. `decomp_sum` sums over all
    inputs and features. What does not apply, or what the method does not have, is NaN; so is the
    value of an input without a path to the output.

    Rows: outputs, in them inputs; then `data` runs fastest, then `channel`, `feature`, `feature_2`,
    and `output_node` slowest.

    Where nodes differ from row to row ("top1", ...) the column `node` behind `output_node` says
    which one a row is about.
    """
    import pandas as pd

    levels = _levels(method)
    blocks = [
        _block(method, s, i, levels)
        for s in range(len(method.result))
        for i in range(len(method.input_names))
    ]
    columns: dict[str, Any] = {}
    for column in _columns(levels):
        joined = np.concatenate([block.pop(column) for block in blocks])
        if column in levels:
            joined = pd.Categorical.from_codes(joined, categories=levels[column])
        columns[column] = joined
    return pd.DataFrame(columns, copy=False)


def to_xarray(method: Any) -> Any:
    """Return the result as labelled `xarray` data.

    One input and one explained output give a `DataArray` with the axes `batch`, then `feature`
    (tables), `channel` and `length` (signals) or `channel`, `height`, `width` (images) in the
    user's channel layout, then `output_node`. Inputs with more axes have `channel`, `feature`,
    `feature_2`, and so on. The labels are its coordinates; `pred`, `decomp_sum` and `decomp_goal`
    are further coordinates over `(batch, output_node)` where the method has them.

    Several inputs or outputs give a `DataTree` with a node per output and below it one per input,
    named as in `to_array`; the array in a node is called "value":
    `tree["Output_1/Input_2"]["value"]`.
    """
    import xarray as xr

    nested = _nest(method, lambda s, i: _data_array(method, s, i))
    if not isinstance(nested, dict):
        return nested
    tree = xr.DataTree.from_dict(
        {path: array.to_dataset(name="value") for path, array in _paths(nested)}
    )
    tree.attrs = _attributes(method)
    return tree


FORMATS: dict[str, Callable[[Any], Any]] = {
    "array": to_array,
    "data.frame": to_frame,
    "xarray": to_xarray,
    "torch.tensor": to_torch,
    "torch_tensor": to_torch,
    "cupy": to_cupy,
}


# ---------------------------------------------------------------- reading a method's fields


def selected_outputs(method: Any) -> list[int]:
    """The model outputs that were explained, as indices into the model's outputs."""
    return [j for j, nodes in enumerate(method.output_idx) if nodes is not None]


def output_labels(method: Any, j: int) -> list[str]:
    """Labels of the selected nodes of output `j`; with several axes joined as in "H1:W2".

    Nodes that differ from row to row and weighted sums have labels of their own.
    """
    axes, idx = method.output_names[j], method.output_idx[j]
    if _are_named(idx):
        return list(idx)
    shape = tuple(len(axis) for axis in axes)
    if method.preds is not None and method.preds[j].shape[1:] != shape:
        raise ShapeError(
            f"output_names[{j}] describe {shape}, Output_{j + 1} has {method.preds[j].shape[1:]}"
        )
    if max(idx, default=-1) >= prod(shape):
        raise ShapeError(f"output_names[{j}] describe {shape}, but node {max(idx)} is explained")
    places = np.unravel_index(np.asarray(idx, int), shape)
    nodes = zip(*places, strict=True)
    return [":".join(str(axis[k]) for axis, k in zip(axes, n, strict=True)) for n in nodes]


def data_labels(batch: int) -> list[str]:
    """The names of the data points, "data_1" the first."""
    return [f"data_{b + 1}" for b in range(batch)]


def input_shape(method: Any, i: int) -> tuple[int, ...]:
    """Shape of input `i` without the batch axis, channels first, as its names say."""
    return tuple(len(axis) for axis in method.input_names[i])


def batch_size(method: Any) -> int:
    """The number of data points that were explained."""
    arrays = (array for row in method.result for array in row if array is not None)
    first = next(chain(arrays, (p for p in method.preds or [])), None)
    return 1 if first is None else first.shape[0]


def decomp_sum(method: Any) -> list[np.ndarray]:
    """Per explained output the sum `(batch, nodes)` of the result over all inputs and features."""
    return [_sum_over_inputs(method, s) for s in range(len(method.result))]


def predictions(method: Any, s: int) -> np.ndarray | None:
    """Predictions `(batch, nodes)` at the selected nodes of the `s`-th explained output."""
    if method.preds is None:
        return None
    j = selected_outputs(method)[s]
    full = to_host(method.preds[j])
    flat = full.reshape(len(full), -1)
    if _are_named(method.output_idx[j]):
        return method.values_of(s, flat)
    return flat[:, np.asarray(method.output_idx[j], int)]


def _are_named(idx: Sequence[Any]) -> bool:
    """Tell "top1", ... and sums from flat indices."""
    return any(isinstance(node, str) for node in idx)


def nodes_of_rows(method: Any, s: int) -> np.ndarray | None:
    """Labels `(batch, nodes)` of what "top1", ... are in each row; None where all rows agree."""
    j = selected_outputs(method)[s]
    found = getattr(method, "output_nodes", None)
    if found is None or found[j] is None or not _are_named(method.output_idx[j]):
        return None
    return np.array(node_labels(method.output_names[j]))[found[j]]


def decomposition(method: Any, s: int, field: str) -> np.ndarray | None:
    """Field `decomp_goal` or `decomp_sum` `(batch, nodes)` of the `s`-th explained output."""
    values = getattr(method, field)
    if values is None or values[s] is None:
        return None
    return to_host(values[s])


def channels_first_array(method: Any, s: int, i: int) -> np.ndarray | None:
    """Result `(batch, *input_shape, nodes)` on the host, channels first; None if unconnected."""
    array = method.result[s][i]
    if array is None:
        return None
    array = to_host(array)
    if not method.channels_first and array.ndim > 3:
        array = np.moveaxis(array, -2, 1)
    expected = (*input_shape(method, i), len(method.output_idx[selected_outputs(method)[s]]))
    if array.shape[1:] != expected:
        raise ShapeError(
            f"result[{s}][{i}] has shape {array.shape} (channels first), but input_names[{i}] and "
            f"output_idx describe (batch, {', '.join(map(str, expected))}); "
            "change result and names together"
        )
    return array


def user_array(method: Any, s: int, i: int) -> np.ndarray:
    """A writable copy of one result in the user's channel layout, NaN if unconnected."""
    return np.array(to_user_layout(_filled(method, s, i), method.channels_first), order="C")


def to_user_layout(array: np.ndarray, channels_first: bool) -> np.ndarray:
    """An array (batch, *input_shape, nodes) with its channels where the user has them."""
    return array if channels_first or array.ndim < 4 else np.moveaxis(array, 1, -2)


def _filled(method: Any, s: int, i: int) -> np.ndarray:
    """As `channels_first_array`, with NaN where the input has no path to the output."""
    array = channels_first_array(method, s, i)
    if array is not None:
        return array
    nodes = len(method.output_idx[selected_outputs(method)[s]])
    shape = (batch_size(method), *input_shape(method, i), nodes)
    return np.full(shape, np.nan, _result_dtype(method))


def _result_dtype(method: Any) -> np.dtype:
    arrays = (array for row in method.result for array in row if array is not None)
    return next((array.dtype for array in arrays), np.dtype(float))


def _sum_over_inputs(method: Any, s: int) -> np.ndarray:
    arrays = [channels_first_array(method, s, i) for i in range(len(method.result[s]))]
    nodes = len(method.output_idx[selected_outputs(method)[s]])
    total = np.zeros((batch_size(method), nodes), _result_dtype(method))
    for array in arrays:
        if array is not None:
            # In one order, so that the last digit does not depend on the layout in memory.
            total += np.ascontiguousarray(array).sum(axis=tuple(range(1, array.ndim - 1)))
    return total


def _scores(method: Any, s: int) -> dict[str, np.ndarray]:
    """Prediction, sum and goal `(batch, nodes)` of an output, NaN where the method has none."""
    found = {
        "pred": predictions(method, s),
        "decomp_sum": decomposition(method, s, "decomp_sum"),
        "decomp_goal": decomposition(method, s, "decomp_goal"),
    }
    shape = (batch_size(method), len(method.output_idx[selected_outputs(method)[s]]))
    missing = np.full(shape, np.nan, _result_dtype(method))
    return {column: missing if score is None else score for column, score in found.items()}


# ---------------------------------------------------------------- nesting


def _nest(method: Any, make: Callable[[int, int], Any]) -> Any:
    """`make(s, i)` for every output and input, in dicts unless there is only one of a kind."""
    rows = {
        f"Output_{j + 1}": _single(
            {f"Input_{i + 1}": make(s, i) for i in range(len(method.input_names))}
        )
        for s, j in enumerate(selected_outputs(method))
    }
    return _single(rows)


def _single(entries: dict[str, Any]) -> Any:
    return next(iter(entries.values())) if len(entries) == 1 else entries


def _paths(nested: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, entry in nested.items():
        if isinstance(entry, dict):
            yield from ((f"{name}/{path}", array) for path, array in _paths(entry))
        else:
            yield name, entry


# ---------------------------------------------------------------- columns of the table


def _levels(method: Any) -> dict[str, list[str]]:
    """The labels that each column of labels can have, in order of appearance."""
    outputs = selected_outputs(method)
    levels = {
        "data": data_labels(batch_size(method)),
        "model_input": [f"Input_{i + 1}" for i in range(len(method.input_names))],
        "model_output": [f"Output_{j + 1}" for j in outputs],
        "output_node": _unique(chain.from_iterable(output_labels(method, j) for j in outputs)),
        "feature": [],
    }
    nodes = [labels for s in range(len(outputs)) for labels in _node_labels(method, s)]
    if nodes:
        levels["node"] = _unique(nodes)
    for i, names in enumerate(method.input_names):
        columns = _axis_columns(len(names), channels_last(method, i))
        for column, labels in zip(columns, names, strict=True):
            levels[column] = _unique([*levels.get(column, []), *labels])
    return levels


def _node_labels(method: Any, s: int) -> list[str]:
    """The labels of nodes that differ from row to row, each once; none where all rows agree."""
    nodes = nodes_of_rows(method, s)
    return [] if nodes is None else [str(label) for label in np.unique(nodes)]


def _columns(levels: dict[str, list[str]]) -> list[str]:
    further = sorted((c for c in levels if c.startswith("feature_")), key=lambda c: int(c[8:]))
    axes = ["feature", *further, *(["channel"] if "channel" in levels else [])]
    labels = ["data", "model_input", "model_output", *axes, "output_node"]
    labels += ["node"] if "node" in levels else []
    return [*labels, "value", "pred", "decomp_sum", "decomp_goal", "input_dimension"]


def _block(method: Any, s: int, i: int, levels: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """The columns of one output and one input; columns of labels as codes, -1 for none."""
    # Axes (nodes, ..., channel, batch): row-major order is then the order of the rows.
    values = _filled(method, s, i).T
    shape, last = values.shape, values.ndim - 1
    codes = {column: (np.array([-1]), 0) for column in levels}
    codes["data"] = (np.arange(shape[last]), last)
    codes["model_input"], codes["model_output"] = (np.array([i]), 0), (np.array([s]), 0)
    labels = output_labels(method, selected_outputs(method)[s])
    codes["output_node"] = (_codes(labels, levels["output_node"]), 0)
    names = method.input_names[i]
    for axis, column in enumerate(_axis_columns(len(names), channels_last(method, i))):
        codes[column] = (_codes(names[axis], levels[column]), last - 1 - axis)

    columns = {column: _spread(numbers, axis, shape) for column, (numbers, axis) in codes.items()}
    nodes = nodes_of_rows(method, s)
    if nodes is not None:
        numbers = np.array(_codes(nodes.ravel().tolist(), levels["node"])).reshape(nodes.shape)
        columns["node"] = _over_features(numbers, shape)
    columns["value"] = values.ravel()
    for column, score in _scores(method, s).items():
        columns[column] = _over_features(score, shape)
    columns["input_dimension"] = np.full(values.size, len(names))
    return columns


def _over_features(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Values (batch, nodes), repeated for every feature, one per row of the table."""
    values = values.T.reshape(shape[0], *[1] * (len(shape) - 2), shape[-1])
    return np.broadcast_to(values, shape).ravel()


def channels_last(method: Any, i: int) -> bool:
    """Whether the model itself, not only the user's data, has the channels of input `i` last."""
    return any(getattr(method, "channels_last", ())[i : i + 1])


def channel_axis(method: Any, i: int) -> int | None:
    """The axis of the channels in the names of input `i`; None where there are none."""
    axes = len(method.input_names[i])
    return None if axes < 2 else axes - 1 if channels_last(method, i) else 0


def _axis_columns(axes: int, last: bool = False) -> list[str]:
    """The column of each axis of an input: channel, then feature, feature_2, ..."""
    if axes < 2:
        return ["feature"][:axes]
    columns = ["channel", "feature", *[f"feature_{k}" for k in range(2, axes)]]
    return [*columns[1:], columns[0]] if last else columns


def _unique(labels: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(label) for label in labels))


def _codes(labels: Sequence[Any], levels: list[str]) -> np.ndarray:
    place = {level: n for n, level in enumerate(levels)}
    return np.array([place[str(label)] for label in labels], np.int32)


def _spread(codes: np.ndarray, axis: int, shape: tuple[int, ...]) -> np.ndarray:
    """Codes along one axis, repeated over all others, one per row."""
    line = [1] * len(shape)
    line[axis] = codes.size
    return np.broadcast_to(codes.reshape(line), shape).ravel()


# ---------------------------------------------------------------- xarray


def axis_names(axes: int, channels_first: bool = True, last: bool = False) -> list[str]:
    """Names of the axes of an input in the user's channel layout; `last`: the model's own."""
    names = list(INPUT_AXES.get(axes, _axis_columns(axes)))
    names = [*names[1:], names[0]] if last and axes > 1 else names
    return names if channels_first or axes < 2 else [*names[1:], names[0]]


def _data_array(method: Any, s: int, i: int) -> Any:
    import xarray as xr

    j = selected_outputs(method)[s]
    names = list(method.input_names[i])
    if not method.channels_first and len(names) > 1:
        names = [*names[1:], names[0]]  # as `to_user_layout` moves the axes
    axes = axis_names(len(names), method.channels_first, channels_last(method, i))
    coords: dict[str, Any] = {"batch": data_labels(batch_size(method))}
    for axis, labels in zip(axes, names, strict=True):
        coords[axis] = [str(label) for label in labels]
    coords["output_node"] = output_labels(method, j)
    for column, score in _scores(method, s).items():
        if not np.isnan(score).all():
            coords[column] = (("batch", "output_node"), score)
    nodes = nodes_of_rows(method, s)
    if nodes is not None:
        coords["node"] = (("batch", "output_node"), nodes)
    place = {"model_input": f"Input_{i + 1}", "model_output": f"Output_{j + 1}"}
    return xr.DataArray(
        user_array(method, s, i),
        dims=["batch", *axes, "output_node"],
        coords=coords,
        name="value",
        attrs={"long_name": method.value_name, **_attributes(method), **place},
    )


def _attributes(method: Any) -> dict[str, Any]:
    # Numbers and strings only, so that every file format of xarray can hold them.
    return {"method": method.method_name, "channels_first": int(method.channels_first)}


# ---------------------------------------------------------------- text


def describe(method: Any) -> str:
    """What a method is, what was asked of it and what it found, as text for `repr`."""
    title = f" Method {method.method_name} (onnxplain) "
    lines = [title.center(72, "-")]
    own = method._describe() if hasattr(method, "_describe") else []
    if own:
        lines += ["Fields (method-specific):", *(f"  - {line}" for line in own)]
    lines += ["Fields (other):", *(f"  {line}" for line in _other_fields(method))]
    lines += ["Result (result):", *(f"  {line}" for line in _result_lines(method))]
    return "\n".join([*lines, "-" * 72])


def _other_fields(method: Any) -> list[str]:
    single = len(method.output_idx) == 1
    lines = [] if single else ["- output_idx:"]
    for j, nodes in enumerate(method.output_idx):
        head = "- output_idx" if single else f"  - Output_{j + 1}"
        if nodes is None:
            lines.append(f"{head}: not explained")
            continue
        labels = _listed([repr(label) for label in output_labels(method, j)])
        lines.append(f"{head}: {_listed([str(k) for k in nodes])} (-> {labels})")
    if getattr(method, "layers", None):
        lines.append(f"- layers: {_listed(method.layers)}")
    for field in ("ignore_last_act", "channels_first", "dtype"):
        if hasattr(method, field):
            lines.append(f"- {field}: {getattr(method, field)}")
    if getattr(method, "like", None) is not None:
        table = method.conventions
        told = differences(table[method.like], table[None])
        lines.append(f"- like: {method.like!r}" + (f" ({', '.join(told)})" if told else ""))
    return lines


def _result_lines(method: Any) -> list[str]:
    lines = []
    several = len(method.input_names) > 1 or len(method.output_idx) > 1
    for s, j in enumerate(selected_outputs(method)):
        for i in range(len(method.input_names)):
            where = f"Output_{j + 1}, Input_{i + 1}: " if several else ""
            array = channels_first_array(method, s, i)
            if array is None:
                lines.append(f"- {where}not connected to output layer {j + 1}")
                continue
            shape = ", ".join(map(str, method.result[s][i].shape))
            lines.append(f"- {where}Shape: ({shape})")
            lines.append(f"  Range: {_range(array)}")
            lines.append(f"  Number of NaN values: {int(np.isnan(array).sum())}")
    return lines


def _range(array: np.ndarray) -> str:
    numbers = array[~np.isnan(array)]
    if numbers.size == 0:
        return "no numbers"
    low, middle, high = numbers.min(), np.median(numbers), numbers.max()
    return f"min: {low:.6g}, median: {middle:.6g}, max: {high:.6g}"


def _listed(words: Sequence[str], limit: int = 10) -> str:
    shown = ", ".join(words[:limit])
    return shown if len(words) <= limit else f"{shown}, ... ({len(words)} in all)"
