"""Read an ONNX model and check it: from a file, from bytes or from a `ModelProto`.

Nothing a file says is believed before it is checked: sizes before memory is taken, names before
they are followed, paths before they are opened. Weights kept beside the model are mapped, not read,
so models larger than 2 GB load at once.
"""

import hashlib
import io
import math
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, EncodeError, Message
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from onnxplain.errors import ModelError, ModelFileError, UnsupportedOpError, shortened
from onnxplain.graph.tensors import MAX_RANK, Tensors, dtype_of
from onnxplain.graph.wire import without_weights

OLDEST_OPSET = 7
NEWEST_OPSET: int = onnx.defs.onnx_opset_version()
# Written into the standard domain by tf2onnx and onnxruntime: the opset that has it, if any.
NON_STANDARD_OPS = {"Erfc": 999, "SimplifiedLayerNormalization": 999, "LayerNormalization": 17}
STANDARD_DOMAINS = ("", "ai.onnx.ml")  # whose operators ONNX describes

MAX_FILE_BYTES = 2**31 - 1  # what protobuf can hold in one message
MAX_HASHED_ELEMENTS = 2**26  # of a model that is serialised only to be hashed
MAX_SUBGRAPH_DEPTH = 16
MAX_FUNCTION_DEPTH = 64
MAX_INLINED_BYTES = 2**28  # of all calls of functions together


@dataclass(frozen=True, slots=True)
class ValueSpec:
    """A graph input or output.

    A size in `shape` is a number, a symbol, or None if unknown; `shape` itself is None if not even
    the rank is known. An output that is no tensor (a sequence, a map) has dtype object, shape None.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True)
class RawNode:
    """A node as the file has it, with a unique name and attributes as Python values.

    An omitted input or output is ""; omitted inputs at the end are dropped. Tensors are arrays,
    lists are tuples, sub-graphs stay `onnx.GraphProto`.
    """

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RawBody:
    """A sub-graph: what it is handed, what it computes in this order, what it hands back."""

    nodes: tuple[RawNode, ...]
    initializers: dict[str, np.ndarray]
    inputs: tuple[str, ...]
    outputs: tuple[ValueSpec, ...]


@dataclass(frozen=True, slots=True)
class RawModel:
    """A checked model: nodes in topological order, weights as read-only arrays."""

    nodes: tuple[RawNode, ...]
    initializers: dict[str, np.ndarray]
    inputs: tuple[ValueSpec, ...]
    outputs: tuple[ValueSpec, ...]
    opsets: dict[str, int]
    metadata: dict[str, str]
    sha256: str


@dataclass(frozen=True, slots=True)
class _Source:
    """A model that is not checked yet.

    `weights` holds the bytes of initializers, by position, that are empty in `proto`; `folder` is
    where external weights may lie.
    """

    proto: ModelProto
    sha256: str
    folder: str | None = None
    weights: Mapping[int, np.ndarray] = field(default_factory=dict)


def read_model(source: str | os.PathLike | bytes | ModelProto) -> RawModel:
    """Read and check an ONNX model of opset 7 or newer.

    Weights in the model become read-only arrays; weights in external files become `numpy.memmap`
    and are read when used. Functions of the model are inlined, sparse tensors become dense.

    Parameters
    ----------
    source : str, os.PathLike, bytes or onnx.ModelProto
        A path, the bytes of a file, or the model itself, which is not changed. Only a path can
        refer to external weights, in its own folder or below.

    Returns
    -------
    RawModel

    Raises
    ------
    ModelFileError
        If a file is missing, is something else than ONNX, is damaged or may not be read.
    ModelError
        If the model is no valid graph, has an opset out of range, or lies about sizes.

    Examples
    --------
    >>> import onnx.parser
    >>> header = '<ir_version: 8, opset_import: ["": 17]>'
    >>> graph = 'g (float[N, 3] x) => (float[N, 3] y) {y = Relu(x)}'
    >>> model = read_model(onnx.parser.parse_model(header + graph))
    >>> model.inputs[0].shape, model.nodes[0].name, model.opsets
    (('N', 3), 'Relu_0', {'': 17})
    """
    try:
        return _read_proto(_open(source))
    except UnicodeDecodeError as error:
        raise ModelError(
            f"a text in the model is not UTF-8 ({error.reason}); export the model again"
        ) from error
    except EncodeError as error:
        raise ModelError(
            "a part of the model is above 2 GB; keep its weights as initializers, not in nodes"
        ) from error


def read_body(graph: GraphProto) -> RawBody:
    """Read a sub-graph of a checked model: its names may be those of tensors around it."""
    tensors = Tensors(None)
    inputs = [value.name for value in graph.input]
    _check_unique(inputs, "inputs of a sub-graph")
    for value in (*graph.input, *graph.output):
        _check_tensor_type(value)
    return RawBody(
        nodes=tuple(
            _raw_node(node, name, tensors)
            for node, name in zip(graph.node, _unique_names(graph.node), strict=True)
        ),
        initializers={
            tensor.name: tensors.dense(tensor, f"initializer {tensor.name!r}")
            for tensor in graph.initializer
        },
        inputs=tuple(inputs),
        outputs=tuple(_inner_spec(value) for value in graph.output),
    )


def _check_tensor_type(value: onnx.ValueInfoProto) -> None:
    what = value.type.WhichOneof("value")
    if what not in (None, "tensor_type"):
        kind = what.removesuffix("_type").replace("_", " ")
        raise UnsupportedOpError(
            f"{value.name!r} of a sub-graph is {_article(kind)}; only tensors are supported there"
        )


def _inner_spec(value: onnx.ValueInfoProto) -> ValueSpec:
    """An output of a sub-graph, whose type may be left away."""
    if not value.type.tensor_type.elem_type:
        return ValueSpec(value.name, np.dtype(np.float32), None)
    return _value_spec(value, "output of a sub-graph")


def _read_proto(source: _Source) -> RawModel:
    proto = source.proto
    _check_header(proto)
    _check_nesting(proto)
    _check_texts(proto)
    graph = proto.graph
    nodes, imports = _inline_functions(proto)
    opsets = _opsets(imports)
    if not nodes:
        raise ModelError("the graph has no nodes; export a model that computes something")

    tensors = Tensors(source.folder)
    initializers = _initializers(graph, tensors, source.weights)
    inputs = [_value_spec(value, "input") for value in graph.input]
    _check_unique([spec.name for spec in inputs], "graph inputs")
    names = _unique_names(nodes)
    _check_nodes(nodes, names, opsets, tensors)

    given = {spec.name for spec in inputs} | initializers.keys()
    order = _topological_order(nodes, names, given)
    made = {name for node in nodes for name in node.output}
    return RawModel(
        nodes=tuple(_raw_node(nodes[i], names[i], tensors) for i in order),
        initializers=initializers,
        inputs=tuple(spec for spec in inputs if spec.name not in initializers),
        outputs=_outputs(graph, given | made),
        opsets=opsets,
        metadata=_metadata(proto),
        sha256=source.sha256,
    )


# Where the model comes from


def _open(source: object) -> _Source:
    if isinstance(source, ModelProto):
        return _Source(source, _hash_proto(source))
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return _read_stream(io.BytesIO(data), len(data), "these bytes")
    if not isinstance(source, str | os.PathLike):
        raise ModelError(
            f"got {_article(type(source).__name__)}, expected the path or bytes of an .onnx file "
            "or an onnx.ModelProto"
        )
    path = os.fsdecode(source)
    return replace(_read_file(path), folder=os.path.dirname(path) or ".")


def _read_stream(file: io.BufferedIOBase, size: int, what: str) -> _Source:
    light = without_weights(file, size) if size <= MAX_FILE_BYTES else None
    if light is None:
        file.seek(0)
        light = file.read(), {}
    proto = _parse(light[0], what, size)
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return _Source(proto, sha256, weights=light[1])


def _hash_proto(proto: ModelProto) -> str:
    """The sha256 of the serialised model, or of its parts where that would cost much memory."""
    initializers = proto.graph.initializer
    if sum(math.prod(tensor.dims) for tensor in initializers) < MAX_HASHED_ELEMENTS:
        return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
    digest = hashlib.sha256(_without_weights(proto).SerializeToString(deterministic=True))
    for tensor in initializers:
        digest.update(tensor.raw_data or tensor.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _read_file(path: str) -> _Source:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            found = sorted(name for name in os.listdir(path) if name.endswith(".onnx"))[:3]
            hint = f", for example {found[0]!r}" if found else "; it holds none"
            raise ModelFileError(f"{path!r} is a folder, expected an .onnx file in it{hint}")
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(f"{path!r} is no regular file, expected an .onnx file")
        if status.st_size > MAX_FILE_BYTES:
            raise ModelFileError(
                f"{path!r} has {status.st_size:,} bytes, an .onnx file at most 2 GB; save the "
                "model with onnx.save(model, path, save_as_external_data=True)"
            )
        with open(path, "rb") as file:
            return _read_stream(file, status.st_size, repr(path))
    except FileNotFoundError as error:
        raise ModelFileError(f"there is no file {path!r}; check the path") from error
    except (ModelFileError, UnicodeDecodeError):
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelFileError(f"{path!r} cannot be read: {reason}") from error


_CONVERT = "load it with the package that wrote it and convert the model object"
# First bytes of what people pass by accident: where they stand, what it is, what to do.
_OTHER_FORMATS = (
    (0, b"\x89HDF\r\n", f"an HDF5 file (Keras .h5?); {_CONVERT}"),
    (0, b"PK\x03\x04", f"a zip archive (torch .pt, .keras or .npz?); {_CONVERT}"),
    (0, b"\x80\x02", f"a pickle (torch .pt or scikit-learn?); {_CONVERT}"),
    (0, b"\x80\x03", f"a pickle; {_CONVERT}"),
    (0, b"\x80\x04", f"a pickle; {_CONVERT}"),
    (0, b"\x80\x05", f"a pickle; {_CONVERT}"),
    (0, b"\x93NUMPY", "a NumPy array; pass the model here and the array as data"),
    (0, b"\x1f\x8b", "a gzip file; unpack it first"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself; run 'git lfs pull'"),
    (4, b"TFL3", "a TensorFlow Lite model; export the original model to ONNX"),
    (4, b"ORTM", "a model in the ORT format; use the .onnx file it was made from"),
    (8, b'{"', "a safetensors file: weights without a graph; export the model to ONNX"),
    (0, b"\x89PNG", "a PNG image; pass the model here and the image as data"),
    (0, b"\xff\xd8\xff", "a JPEG image; pass the model here and the image as data"),
)


def _other_format(data: bytes) -> str | None:
    for start, magic, name in _OTHER_FORMATS:
        if data[start : start + len(magic)] == magic:
            return name
    try:
        text = data[:512].decode("utf-8", "strict").split()
    except UnicodeDecodeError:
        return None
    if text and all(word.isprintable() for word in text):
        return "text; save the model in the binary format with onnx.save"
    return None


def _parse(data: bytes, what: str, size: int) -> ModelProto:
    """Parse a model, or what weights have left of one of this size."""
    if not data:
        raise ModelFileError(f"{what}: empty, expected an ONNX model; export or copy it again")
    other = _other_format(data)
    if other:
        raise ModelFileError(f"{what}: expected an ONNX model, got {other}")
    if size > MAX_FILE_BYTES:
        raise ModelFileError(f"{what}: {size:,} bytes, but an ONNX model has at most 2 GB")
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelFileError(
            f"{what}: not an ONNX model, or a truncated or damaged one ({size:,} bytes); "
            "export or copy it again"
        ) from error
    if not proto.HasField("graph") and not proto.opset_import:
        raise ModelFileError(f"{what}: no ONNX model; pass a file that an ONNX exporter wrote")
    return proto


# The model around the graph


def _check_header(proto: ModelProto) -> None:
    if not proto.HasField("graph"):
        raise ModelError("the model has no graph; the file may be truncated, export it again")
    if not 3 <= proto.ir_version <= onnx.IR_VERSION:
        came = proto.ir_version if proto.HasField("ir_version") else "none"
        raise ModelError(
            f"IR version of the model is {came}, expected 3 to {onnx.IR_VERSION}; export it again, "
            f"or install an onnx newer than {onnx.__version__}"
        )
    if not proto.opset_import:
        raise ModelError("the model imports no opset; the file may be truncated, export it again")


_UNREAD_FIELDS = frozenset({"doc_string", "value_info", "training_info", "quantization_annotation"})


def _check_texts(proto: ModelProto) -> None:
    """Protobuf hands out what is not UTF-8 as bytes: find it before it is used as a name."""
    stack: list[Any] = [proto]
    while stack:
        message = stack.pop()
        if isinstance(message, TensorProto):  # listing its fields would copy the data
            fields = [("name", message.name), ("external_data", message.external_data)]
        else:
            fields = [(field.name, value) for field, value in _text_fields(message)]
        for name, value in fields:
            entries = [value] if isinstance(value, str | bytes | Message) else value
            if any(isinstance(entry, bytes) for entry in entries):
                raise ModelError(f"a text in the model ({name}) is not UTF-8; export it again")
            stack += [entry for entry in entries if isinstance(entry, Message)]


def _text_fields(message: Message) -> list[tuple[FieldDescriptor, Any]]:
    """Fields that are or hold text and that something reads."""
    kinds = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE)
    return [
        (field, value)
        for field, value in message.ListFields()
        if field.type in kinds and field.name not in _UNREAD_FIELDS
    ]


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    opsets: dict[str, int] = {}
    for entry in imports:
        domain, version = _domain(entry.domain), entry.version
        if opsets.setdefault(domain, version) != version:
            raise ModelError(
                f"the model imports domain {domain or 'ai.onnx'!r} in versions {opsets[domain]} "
                f"and {version}, expected one; export it again"
            )
    version = opsets.get("", NEWEST_OPSET)  # absent where all ops are custom
    if not OLDEST_OPSET <= version <= NEWEST_OPSET:
        action = "export it again" if version < OLDEST_OPSET else "install a newer onnx"
        raise ModelError(
            f"the model has opset {version}, expected {OLDEST_OPSET} to {NEWEST_OPSET}; "
            f"{action} or convert it with onnx.version_converter"
        )
    return opsets


def _metadata(proto: ModelProto) -> dict[str, str]:
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    producer = f"{proto.producer_name} {proto.producer_version}".strip()
    return {**metadata, "producer": producer} if producer else metadata


def _value_spec(value: onnx.ValueInfoProto, kind: str) -> ValueSpec:
    if not value.name:
        raise ModelError(f"a graph {kind} has no name; export the model again")
    what = value.type.WhichOneof("value")
    if what != "tensor_type":
        if kind == "output" and what:
            return ValueSpec(value.name, np.dtype(object), None)
        came = what.removesuffix("_type").replace("_", " ") if what else "value without a type"
        raise ModelError(f"{kind} {value.name!r} is {_article(came)}, expected a tensor")
    tensor = value.type.tensor_type
    dtype = dtype_of(tensor.elem_type, f"{kind} {value.name!r}")
    if not tensor.HasField("shape"):
        return ValueSpec(value.name, dtype, None)
    if len(tensor.shape.dim) > MAX_RANK:
        axes = len(tensor.shape.dim)
        raise ModelError(f"{kind} {value.name!r} has {axes} axes, expected at most {MAX_RANK}")
    return ValueSpec(value.name, dtype, tuple(_size(d, value.name) for d in tensor.shape.dim))


def _size(dim: onnx.TensorShapeProto.Dimension, name: str) -> int | str | None:
    if not dim.HasField("dim_value"):
        return dim.dim_param or None
    if dim.dim_value < -1:
        raise ModelError(f"{name!r} declares an axis of size {dim.dim_value}, expected 0 or more")
    return dim.dim_value if dim.dim_value >= 0 else None  # some exporters write -1 for unknown


def _outputs(graph: GraphProto, known: set[str]) -> tuple[ValueSpec, ...]:
    if not graph.output:
        raise ModelError("the graph has no outputs; mark the values to be explained as outputs")
    specs = tuple(_value_spec(value, "output") for value in graph.output)
    _check_unique([spec.name for spec in specs], "graph outputs")
    missing = [spec.name for spec in specs if spec.name not in known]
    if missing:
        raise ModelError(f"no node makes the output {missing[0]!r}; export the model again")
    return specs


def _check_unique(names: Sequence[str], what: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ModelError(f"{what} must have different names, {twice[0]!r} is there twice")


def _initializers(
    graph: GraphProto, tensors: Tensors, weights: Mapping[int, np.ndarray]
) -> dict[str, np.ndarray]:
    names = [tensor.name for tensor in graph.initializer]
    names += [sparse.values.name for sparse in graph.sparse_initializer]
    if "" in names:
        raise ModelError("an initializer has no name; export the model again")
    _check_unique(names, "initializers")
    arrays = [
        tensors.dense(tensor, f"initializer {tensor.name!r}", weights.get(i))
        for i, tensor in enumerate(graph.initializer)
    ]
    for sparse in graph.sparse_initializer:
        arrays.append(tensors.sparse(sparse, f"initializer {sparse.values.name!r}"))
    return dict(zip(names, arrays, strict=True))


# Nodes and how they hang together


def _label(node: NodeProto, position: int) -> str:
    return node.name or f"{node.op_type or 'node'}_{position}"


def _unique_names(nodes: Sequence[NodeProto]) -> list[str]:
    """The names of the file where there are; else op type and position."""
    taken = {node.name for node in nodes if node.name}
    used: set[str] = set()
    repeats: Counter[str] = Counter()
    names = []
    for position, node in enumerate(nodes):
        name = base = _label(node, position)
        clash = name in used or (not node.name and name in taken)
        while clash:
            repeats[base] += 1
            name = f"{base}_{repeats[base]}"
            clash = name in used or name in taken
        used.add(name)
        names.append(name)
    return names


def _raw_node(node: NodeProto, name: str, tensors: Tensors) -> RawNode:
    inputs = list(node.input)
    while inputs and not inputs[-1]:
        inputs.pop()
    return RawNode(
        name=name,
        op=node.op_type,
        domain=_domain(node.domain),
        inputs=tuple(inputs),
        outputs=tuple(node.output),
        attributes=attributes_of(node, name, tensors),
    )


def _check_nodes(
    nodes: Sequence[NodeProto], names: Sequence[str], opsets: dict[str, int], tensors: Tensors
) -> None:
    schemas = _Schemas(opsets)
    for node, name in zip(nodes, names, strict=True):
        schemas.check(node, name)
        for depth, inner in _walk([node]):
            if depth:
                where = f"sub-graph of {name}: {inner.name or inner.op_type}"
                schemas.check(inner, where)
                _check_kept_tensors(inner, where, tensors)
            for graph in _subgraphs(inner):
                for tensor in graph.initializer:
                    tensors.check_kept(tensor, f"sub-graph of {name}: {tensor.name!r}")
                if graph.sparse_initializer:
                    raise ModelError(f"sub-graph of {name} has sparse initializers, expected dense")


def _check_kept_tensors(node: NodeProto, where: str, tensors: Tensors) -> None:
    """Check the attributes of a node in a sub-graph, which is kept as it is."""
    for attribute in node.attribute:
        what = f"{where}: attribute {attribute.name!r}"
        if attribute.HasField("t"):
            tensors.check_kept(attribute.t, what)
        for tensor in attribute.tensors:
            tensors.check_kept(tensor, what)
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise ModelError(f"{what} is sparse, expected dense; export the model again")


def _reads(node: NodeProto, label: str) -> set[str]:
    """Names a node reads: its inputs, and what its sub-graphs take from outside."""
    reads = {name for name in node.input if name}
    for graph in _subgraphs(node):
        known = {value.name for value in graph.input}
        known |= {tensor.name for tensor in graph.initializer}
        reads |= _free_names(graph.node, known, f"sub-graph of {label}")
        reads |= {value.name for value in graph.output} - known
    return reads


def _free_names(nodes: Iterable[NodeProto], known: set[str], where: str) -> set[str]:
    """Names that nodes in this order read from outside; adds to `known` what they make."""
    free: set[str] = set()
    for position, node in enumerate(nodes):
        label = f"{where}: {_label(node, position)}"
        free |= _reads(node, label) - known
        for name in filter(None, node.output):
            if name in known or name in free:
                raise ModelError(f"{label} makes {name!r}, which is read before or made twice")
            known.add(name)
    return free


def _topological_order(
    nodes: Sequence[NodeProto], names: Sequence[str], given: set[str]
) -> Sequence[int]:
    producer: dict[str, int] = {}
    for i, node in enumerate(nodes):
        for value in filter(None, node.output):
            if value in given or value in producer:
                raise ModelError(f"{names[i]} makes {value!r}, which something else makes as well")
            producer[value] = i
    before: list[set[int]] = []
    for node, name in zip(nodes, names, strict=True):
        reads = _reads(node, name)
        dangling = sorted(value for value in reads if value not in given and value not in producer)
        if dangling:
            raise ModelError(
                f"{name} reads {dangling[0]!r}, which is no input, no initializer and no output "
                "of a node; export the model again"
            )
        before.append({producer[value] for value in reads if value in producer})
    if all(j < i for i, earlier in enumerate(before) for j in earlier):
        return range(len(nodes))
    try:
        return list(TopologicalSorter(dict(enumerate(before))).static_order())
    except CycleError as error:
        positions: list[int] = error.args[1]
        cycle = [shortened(names[i], 50) for i in positions]
        shown = " -> ".join(cycle[:4]) + (" -> ..." if len(cycle) > 4 else "")
        raise ModelError(f"the graph has a cycle ({shown}); export the model again") from error


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _check_nesting(proto: ModelProto) -> None:
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for depth, _ in _walk(nodes):
            if depth > MAX_SUBGRAPH_DEPTH:
                raise ModelError(f"sub-graphs are nested deeper than {MAX_SUBGRAPH_DEPTH} levels")


def _walk(nodes: Iterable[NodeProto]) -> Iterator[tuple[int, NodeProto]]:
    """All nodes and those of their sub-graphs, with their depth; without recursion."""
    stack = [(0, node) for node in nodes]
    while stack:
        depth, node = stack.pop()
        yield depth, node
        stack += [(depth + 1, inner) for graph in _subgraphs(node) for inner in graph.node]


class _Schemas:
    """Checks nodes against the operators of the opset that the model imports."""

    def __init__(self, opsets: dict[str, int]):
        self.opsets = opsets
        self.cache: dict[tuple[str, str], onnx.defs.OpSchema] = {}

    def check(self, node: NodeProto, label: str) -> None:
        domain = _domain(node.domain)
        if not node.op_type:
            raise ModelError(f"{label} has no op type; export the model again")
        if domain not in self.opsets:
            raise ModelError(
                f"{label} ({node.op_type}) is of domain {domain or 'ai.onnx'!r}, "
                "which the model does not import; export it again"
            )
        for attribute in node.attribute:
            _check_attribute(attribute, label)
        _check_unique([attribute.name for attribute in node.attribute], f"attributes of {label}")
        since = 0 if domain else NON_STANDARD_OPS.get(node.op_type, 0)
        if domain in STANDARD_DOMAINS and self.opsets[domain] >= since:
            _check_against_schema(node, label, self.schema(node.op_type, domain, label))

    def schema(self, op: str, domain: str, label: str) -> onnx.defs.OpSchema:
        if (op, domain) not in self.cache:
            self.cache[op, domain] = self.find(op, domain, label)
        return self.cache[op, domain]

    def find(self, op: str, domain: str, label: str) -> onnx.defs.OpSchema:
        opset = self.opsets[domain]
        try:
            schema = onnx.defs.get_schema(op, opset, domain)
        except (onnx.defs.SchemaError, TypeError) as error:  # TypeError: beyond a C int
            known = onnx.defs.has(op, domain)
            first = _first_opset(op, domain) if known else 0
            hint = f"export with opset {first} or newer" if known else "no opset has it"
            of = f"{domain or 'ONNX'} opset {opset}"
            raise ModelError(f"{label}: {of} has no op {op!r}; {hint}") from error
        if schema.deprecated:
            raise ModelError(f"{label}: op {op!r} is no longer part of opset {opset}; export again")
        return schema


def _first_opset(op: str, domain: str) -> int:
    return min(
        schema.since_version
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.name == op and schema.domain == domain
    )


def _check_against_schema(node: NodeProto, label: str, schema: onnx.defs.OpSchema) -> None:
    what = f"{label} ({node.op_type})"
    inputs = list(node.input)
    while inputs and not inputs[-1]:
        inputs.pop()
    _check_count(len(inputs), schema.min_input, schema.max_input, what, "inputs")
    _check_count(len(node.output), schema.min_output, schema.max_output, what, "outputs")
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    for name, formal in zip(inputs, schema.inputs, strict=False):
        if not name and formal.option == single:
            raise ModelError(f"{what} lacks its input {formal.name!r}; export the model again")
    for attribute in node.attribute:
        expected = schema.attributes.get(attribute.name)
        if expected is None:
            if attribute.name.startswith("__"):  # internal notes of exporters
                continue
            raise ModelError(
                f"{what} has attribute {attribute.name!r}, which opset version "
                f"{schema.since_version} of it does not know; export the model again"
            )
        # onnx's stubs lack the attribute `value` of this enumeration.
        expected_type = expected.type.value  # pyright: ignore[reportAttributeAccessIssue]
        if expected_type != attribute.type:
            raise ModelError(
                f"{what}: attribute {attribute.name!r} is {_type_name(attribute.type)}, "
                f"expected {_type_name(expected_type)}"
            )
    present = {attribute.name for attribute in node.attribute}
    for name, expected in schema.attributes.items():
        if expected.required and name not in present:
            raise ModelError(f"{what} lacks its attribute {name!r}; export the model again")


def _check_count(came: int, least: int, most: int, what: str, kind: str) -> None:
    if least <= came <= most:
        return
    unbounded = most >= 2**31 - 1
    expected = f"{least} or more" if unbounded else f"{least} to {most}" if least < most else least
    raise ModelError(f"{what} has {came} {kind}, expected {expected}; export the model again")


# Attributes

_FIELDS = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
    AttributeProto.TENSORS: "tensors",
    AttributeProto.GRAPHS: "graphs",
    AttributeProto.SPARSE_TENSORS: "sparse_tensors",
    AttributeProto.TYPE_PROTOS: "type_protos",
}
_SCALARS = frozenset({"f", "i", "s", "t", "g", "sparse_tensor", "tp"})


def _check_attribute(attribute: AttributeProto, label: str) -> None:
    what = f"{label}: attribute {attribute.name!r}"
    if not attribute.name:
        raise ModelError(f"{label} has an attribute without a name; export the model again")
    if attribute.ref_attr_name:
        raise ModelError(f"{what} refers to a function's attribute, but stands in no function")
    field = _FIELDS.get(attribute.type)
    if field is None:
        raise ModelError(f"{what} has unknown type {attribute.type}; export the model again")
    used = {descriptor.name for descriptor, _ in attribute.ListFields()} & set(_FIELDS.values())
    if used - {field} or (field in _SCALARS and not used):
        expected = _type_name(attribute.type)
        raise ModelError(f"{what} should be {expected}, but holds something else; export again")


def attributes_of(node: NodeProto, name: str, tensors: Tensors | None = None) -> dict[str, Any]:
    """Return the attributes of a node as Python's values and arrays."""
    tensors = Tensors(None) if tensors is None else tensors
    return {a.name: _attribute(a, name, tensors) for a in node.attribute}


def _attribute(attribute: AttributeProto, name: str, tensors: Tensors) -> Any:
    field = _FIELDS[attribute.type]
    value = getattr(attribute, field)
    what = f"{name}: attribute {attribute.name!r}"
    if field in _SCALARS:
        return _attribute_value(value, what, tensors)
    return tuple(_attribute_value(entry, what, tensors) for entry in value)


def _attribute_value(value: Any, what: str, tensors: Tensors) -> Any:
    match value:
        case bytes():
            return value.decode("utf-8")
        case TensorProto():
            return tensors.dense(value, what)
        case onnx.SparseTensorProto():
            return tensors.sparse(value, what)
        case GraphProto() | onnx.TypeProto():
            return deepcopy(value)  # the part itself would keep the whole model in memory
        case _:
            return value


def _type_name(attribute_type: int) -> str:
    return AttributeProto.AttributeType.Name(attribute_type)


# Functions of the model


def _inline_functions(proto: ModelProto) -> tuple[list[NodeProto], list]:
    """Nodes without calls of the model's own functions, and the opsets they are of."""
    if not proto.functions:
        return list(proto.graph.node), list(proto.opset_import)
    functions = {(_domain(f.domain), f.name, f.overload): f for f in proto.functions}
    if len(functions) != len(proto.functions):
        raise ModelError("two functions of the model have one name; export the model again")
    _check_calls(proto.graph.node, functions)
    light = _without_weights(proto)
    _unite_imports(light, functions)
    try:
        inlined = onnx.inliner.inline_local_functions(light)
    except (RuntimeError, onnx.checker.ValidationError, DecodeError) as error:
        raise ModelError("the model's functions cannot be inlined; export without them") from error
    for _, node in _walk(inlined.graph.node):
        if _callee(node) in functions:
            raise ModelError(
                f"function {node.op_type!r} needs another opset than the model; export the model "
                "without functions"
            )
    _check_nesting(inlined)
    return list(inlined.graph.node), list(light.opset_import)


def _unite_imports(model: ModelProto, functions: dict) -> None:
    """Let the model import what its functions do, and functions the opset of the model where
    their ops are the same in both."""
    versions = {_domain(entry.domain): entry.version for entry in model.opset_import}
    for function in model.functions:
        for entry in function.opset_import:
            domain = _domain(entry.domain)
            if domain not in versions:
                versions[domain] = entry.version
                model.opset_import.add(domain=domain, version=entry.version)
            if domain or entry.version == versions[""]:
                continue
            ops = {
                node.op_type
                for _, node in _walk(function.node)
                if not _domain(node.domain) and _callee(node) not in functions
            }
            if all(_since(op, entry.version) == _since(op, versions[""]) for op in ops):
                entry.version = versions[""]


def _since(op: str, opset: int) -> int | None:
    try:
        return onnx.defs.get_schema(op, opset, "").since_version
    except (onnx.defs.SchemaError, TypeError):  # TypeError: a version beyond a C int
        return None


def _callee(node: NodeProto) -> tuple[str, str, str]:
    return _domain(node.domain), node.op_type, node.overload


def _check_calls(nodes: Iterable[NodeProto], functions: dict) -> None:
    """Refuse functions that call themselves, or that would grow beyond all bounds."""
    for key, function in functions.items():
        free = _free_names(function.node, set(function.input), f"function {key[1]!r}")
        if free:
            raise ModelError(f"function {key[1]!r} reads {min(free)!r}, which nothing in it makes")
    bodies = [function.node for function in functions.values()]
    for _, node in (pair for body in [nodes, *bodies] for pair in _walk(body)):
        if _callee(node) in functions:
            _check_call(node, functions[_callee(node)])
    sizes: dict[tuple, tuple[int, int]] = {}
    total = sum(
        _call_size(_callee(node), functions, sizes, ())
        for _, node in _walk(nodes)
        if _callee(node) in functions
    )
    if total > MAX_INLINED_BYTES:
        raise ModelError("the model's functions inline to too many nodes; export without them")


def _check_call(node: NodeProto, function: onnx.FunctionProto) -> None:
    for kind in ("input", "output"):
        came, most = len(getattr(node, kind)), len(getattr(function, kind))
        if came > most:
            raise ModelError(
                f"{node.name or node.op_type} calls function {function.name!r} with {came} "
                f"{kind}s, expected at most {most}; export the model again"
            )


def _call_size(key: tuple, functions: dict, sizes: dict, trail: tuple) -> int:
    """Bytes that a call adds to the graph."""
    if key in trail:
        raise ModelError(f"function {key[1]!r} calls itself, expected no recursion")
    if len(trail) >= MAX_FUNCTION_DEPTH:
        raise ModelError(f"functions are nested deeper than {MAX_FUNCTION_DEPTH} levels")
    if key not in sizes:
        body = functions[key].node
        callees = [_callee(node) for _, node in _walk(body) if _callee(node) in functions]
        inner = [_call_size(callee, functions, sizes, (*trail, key)) for callee in callees]
        # 256: what a node takes in memory beyond its serialised bytes.
        size = sum(node.ByteSize() + 256 for node in body) + sum(inner)
        depth = 1 + max((sizes[callee][1] for callee in callees), default=0)
        sizes[key] = size, depth
    size, depth = sizes[key]
    if depth > MAX_FUNCTION_DEPTH:
        raise ModelError(f"functions are nested deeper than {MAX_FUNCTION_DEPTH} levels")
    return size


def _without_weights(proto: ModelProto) -> ModelProto:
    """A copy small enough to be serialised: initializers keep their names only."""
    light = ModelProto(ir_version=proto.ir_version)
    light.opset_import.extend(proto.opset_import)
    light.functions.extend(proto.functions)
    light.graph.name = proto.graph.name
    light.graph.node.extend(proto.graph.node)
    light.graph.input.extend(proto.graph.input)
    light.graph.output.extend(proto.graph.output)
    for tensor in proto.graph.initializer:
        light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    for sparse in proto.graph.sparse_initializer:
        light.graph.initializer.add(name=sparse.values.name, data_type=TensorProto.FLOAT)
    return light


def _article(noun: str) -> str:
    return f"an {noun}" if noun[:1].lower() in "aeiou" else f"a {noun}"
