"""Write a converter back as an ONNX file: the model that was read, with shapes and labels."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .. import names as naming
from ..errors import ArgumentError, ModelFileError, shown
from .load import RawModel, RawNode, ValueSpec

if TYPE_CHECKING:
    from ..converter import Converter

MAX_MODEL_BYTES = 2**31 - 2**24  # protobuf holds 2 GB; some room for nodes and names
MIN_EXTERNAL_BYTES = 1024  # smaller weights stay in the model
ALIGNMENT = 4096  # of weights in a file of their own, so that they can be mapped
LEAST_IR_VERSION = 8
_PACKED = ("int4", "uint4", "float4", "int2", "uint2", "float6")
# Types that older formats of the file do not know.
_IR_OF_TYPE = {"float8": 9, "int4": 10, "uint4": 10, "float4": 11, "int2": 13, "uint2": 13}


def save(converter: Converter, path: str | os.PathLike[str]) -> None:
    """Write the model of a converter with its labels; above 2 GB the weights get their own file.

    Files are replaced at once when they are complete: whoever has the old ones open or mapped,
    this converter too, keeps reading the old content.

    Parameters
    ----------
    converter : Converter
        Its `outputs`, where they were chosen, become the outputs of the model; functions of the
        model have been inlined.
    path : path
        The file; weights above 2 GB go to `path` + ".data".

    Raises
    ------
    ArgumentError
        If `path` is no path, or the file of weights exists and may be in use.
    ModelFileError
        If the file cannot be written.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise ArgumentError(f"save needs the path of a file, got {shown(path)}")
    target = Path(os.fsdecode(path))
    if target.is_dir():
        raise ModelFileError(f"{str(target)!r} is a folder; name a file in it")
    weights = converter.raw.initializers
    proto = _proto(converter)
    try:
        if sum(w.nbytes for w in weights.values()) <= MAX_MODEL_BYTES:
            proto.graph.initializer.extend(_tensor(n, w) for n, w in weights.items())
            _write(target, [proto.SerializeToString()])
            return
        data = target.with_name(f"{target.name}.data")
        if data.exists() and any(_mapped(w) for w in weights.values()):
            raise ArgumentError(
                f"{str(data)!r} exists and may hold the weights that this converter reads; "
                "save under another name"
            )
        _write(data, _external(proto, weights, data.name))
        _write(target, [proto.SerializeToString()])
    except OSError as error:
        if isinstance(error, ModelFileError):
            raise
        reason = error.strerror or error
        raise ModelFileError(f"{str(target)!r} cannot be written: {reason}") from error


# -- files ----------------------------------------------------------------------------------------


def _write(target: Path, blocks: Any) -> None:
    with _replacing(target) as file:
        for block in blocks:
            file.write(block)


@contextmanager
def _replacing(target: Path) -> Iterator[Any]:
    """Open a new file that takes the place of `target` when all went well."""
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".onnxplain-", delete=False) as file:
        try:
            yield file
            file.close()
            os.chmod(file.name, _mode(target))
            os.replace(file.name, target)
        except BaseException:
            file.close()
            with suppress(OSError):
                os.unlink(file.name)
            raise


def _mode(target: Path) -> int:
    """Return the permissions of the file that is replaced, or those of any new file."""
    try:
        return target.stat().st_mode & 0o777
    except OSError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def _mapped(array: Any) -> bool:
    while array is not None:
        if isinstance(array, np.memmap):
            return True
        array = getattr(array, "base", None)
    return False


# -- the model ------------------------------------------------------------------------------------


def _proto(converter: Converter) -> onnx.ModelProto:
    """Return the model without weights."""
    raw = converter.raw
    graph = helper.make_graph(
        [_node(node, raw.opsets) for node in raw.nodes],
        "onnxplain",
        [_input(spec, dim) for spec, dim in zip(raw.inputs, converter.input_dim, strict=True)],
        _outputs(converter),
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in raw.opsets.items()]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=_ir_version(raw, opsets))
    metadata = _metadata(converter)
    proto.producer_name = metadata.pop("producer", "")
    helper.set_model_props(proto, metadata)
    return proto


def _ir_version(raw: RawModel, opsets: Sequence[Any]) -> int:
    known = helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    of_types = [
        version
        for array in raw.initializers.values()
        for name, version in _IR_OF_TYPE.items()
        if array.dtype.name.startswith(name)
    ]
    return max(LEAST_IR_VERSION, known, *of_types)


def _input(spec: ValueSpec, dim: Sequence[int]) -> onnx.ValueInfoProto:
    batch = spec.shape[0] if spec.shape else "batch"
    return _value(spec.name, spec.dtype, ["batch" if batch is None else batch, *dim])


def _outputs(converter: Converter) -> list[onnx.ValueInfoProto]:
    """Return what the converter explains, and the model's own outputs it leaves out."""
    types = {spec.name: spec for spec in (*converter.raw.outputs, *converter.raw.inputs)}
    dims = dict(zip(converter.graph.outputs, converter.output_dim, strict=True))
    own = [spec.name for spec in converter.raw.outputs]
    names = [n for n in own if n in dims or n in converter.skipped_outputs]
    names = names if set(dims) <= set(own) else list(dims)
    values = []
    for name in names:
        spec = types.get(name)
        if spec is not None and spec.dtype.kind == "O" and spec.shape is None:
            continue  # a sequence or a map: its type was not kept
        if spec is not None and spec.shape is not None and name not in dims:
            values.append(_value(name, spec.dtype, spec.shape))
            continue
        dtype = np.dtype(np.float32) if spec is None else spec.dtype
        shape = None if name not in dims else [_batch(spec), *dims[name]]
        values.append(_value(name, dtype, shape))
    return values


def _batch(spec: ValueSpec | None) -> int | str:
    size = spec.shape[0] if spec is not None and spec.shape else None
    return "batch" if size is None else size


def _value(name: str, dtype: np.dtype, shape: Sequence[Any] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, _element_type(dtype), shape)


def _element_type(dtype: np.dtype) -> int:
    if dtype.kind == "O":
        return TensorProto.STRING
    return helper.np_dtype_to_tensor_dtype(dtype)


# -- nodes ----------------------------------------------------------------------------------------


def _node(node: RawNode, opsets: Mapping[str, int]) -> onnx.NodeProto:
    proto = helper.make_node(
        node.op, node.inputs, node.outputs, name=node.name, domain=node.domain or None
    )
    kinds = _attribute_kinds(node, opsets)
    for name, value in node.attributes.items():
        proto.attribute.append(_attribute(name, value, kinds.get(name)))
    return proto


def _attribute_kinds(node: RawNode, opsets: Mapping[str, int]) -> dict[str, Any]:
    """Return the types that the schema gives: an empty list does not tell its own."""
    try:
        schema = onnx.defs.get_schema(node.op, opsets.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return {}
    # onnx's stubs lack the attribute `value` of this enumeration.
    kinds: dict[str, Any] = {name: a.type for name, a in schema.attributes.items()}
    return {name: kind.value for name, kind in kinds.items()}


def _attribute(name: str, value: Any, kind: Any) -> onnx.AttributeProto:
    if isinstance(value, np.ndarray):
        value = _tensor("", value)
    elif isinstance(value, tuple):
        value = [_tensor("", v) if isinstance(v, np.ndarray) else v for v in value]
        if not value and kind is None:
            kind = onnx.AttributeProto.INTS  # an operator that no standard has: nothing tells
    return helper.make_attribute(name, value, attr_type=kind)


# -- weights --------------------------------------------------------------------------------------


def _tensor(name: str, array: np.ndarray) -> TensorProto:
    if array.dtype.kind == "O":  # texts
        texts = [_encoded(v) for v in array.ravel()]
        return TensorProto(
            name=name, data_type=TensorProto.STRING, dims=array.shape, string_data=texts
        )
    return numpy_helper.from_array(np.asarray(array), name)


def _encoded(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode()


def _external(
    proto: onnx.ModelProto, weights: Mapping[str, np.ndarray], location: str
) -> Iterator[Any]:
    """Add weights to the model and hand out the bytes of the large ones, one after the other."""
    offset = 0
    for name, array in weights.items():
        if array.nbytes < MIN_EXTERNAL_BYTES or not _plain(array.dtype):
            proto.graph.initializer.append(_tensor(name, array))
            continue
        padding = -offset % ALIGNMENT
        yield bytes(padding)
        offset += padding
        tensor = proto.graph.initializer.add(name=name, data_type=_element_type(array.dtype))
        tensor.dims.extend(array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        offset += array.nbytes


def _plain(dtype: np.dtype) -> bool:
    """Tell whether a file holds elements of this type as memory does (on usual machines)."""
    return sys.byteorder == "little" and dtype.kind != "O" and not dtype.name.startswith(_PACKED)


# -- labels ---------------------------------------------------------------------------------------


def _metadata(converter: Converter) -> dict[str, str]:
    """Return the model's metadata with the converter's labels where they are not the defaults."""
    metadata = dict(converter.raw.metadata)
    labels = (
        ("feature_names", converter.input_names, converter.input_dim, naming.default_names),
        ("class_names", converter.output_names, converter.output_dim, naming.default_output_names),
    )
    for key, names, shapes, default in labels:
        if names != [default(shape) for shape in shapes]:
            metadata[key] = json.dumps(names, ensure_ascii=False)
        elif naming.stored_names(metadata, key, shapes):
            del metadata[key]  # the user went back to the defaults
    return metadata
