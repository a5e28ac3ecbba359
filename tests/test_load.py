"""Reading models: what is valid comes out right, what is not is refused in one short sentence."""

import gzip
import hashlib
import os
import pickle
import random
import time
import zipfile
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper, parser

from onnxplain.errors import ModelError, ModelFileError
from onnxplain.graph import load, tensors
from onnxplain.graph.load import NEWEST_OPSET, RawModel, RawNode, ValueSpec, read_model

HEADER = '<ir_version: 9, opset_import: ["": 17]>'


def parse(graph, header=HEADER):
    return parser.parse_model(header + graph)


def small():
    """y = relu(x w + b), with w of shape (2, 3)."""
    model = parse("g (float[N,2] x) => (float[N,3] y) {z = Gemm(x, w, b)  y = Relu(z)}")
    weights = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in weights.items())
    return model


def changed(change, model=None):
    """The small model after `change(model)`."""
    model = model or small()
    change(model)
    return model


def identity(*initializers, sparse=(), attributes=()):
    """y = identity(x) with further tensors around."""
    model = parse("g (float[N,2] x) => (float[N,2] y) {y = Identity(x)}")
    model.graph.initializer.extend(initializers)
    model.graph.sparse_initializer.extend(sparse)
    model.graph.node[0].attribute.extend(attributes)
    return model


def tensor(data_type=TensorProto.FLOAT, dims=(), name="w", **fields):
    return TensorProto(name=name, data_type=data_type, dims=dims, **fields)


def sparse_tensor(values, indices, dims):
    return onnx.SparseTensorProto(
        values=numpy_helper.from_array(np.array(values, np.float32), "s"),
        indices=numpy_helper.from_array(np.array(indices, np.int64)),
        dims=dims,
    )


def external(dims=(2, 3), data_type=TensorProto.FLOAT, **entries):
    """An initializer kept in another file."""
    result = tensor(data_type, dims, data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": "weights.bin"} | entries).items():
        result.external_data.add(key=key, value=str(value))
    return result


# What is read


def test_small_model_comes_out_whole():
    proto = small()
    model = read_model(proto)
    assert model.nodes == (
        RawNode("Gemm_0", "Gemm", "", ("x", "w", "b"), ("z",), {}),
        RawNode("Relu_1", "Relu", "", ("z",), ("y",), {}),
    )
    assert model.inputs == (ValueSpec("x", np.dtype(np.float32), ("N", 2)),)
    assert model.outputs == (ValueSpec("y", np.dtype(np.float32), ("N", 3)),)
    assert model.opsets == {"": 17}
    np.testing.assert_array_equal(model.initializers["w"], [[0, 1, 2], [3, 4, 5]])
    assert not any(array.flags.writeable for array in model.initializers.values())
    assert proto == small()


@pytest.mark.parametrize("kind", [str, "path", bytes, bytearray, memoryview, "proto"])
def test_every_kind_of_source_gives_the_same_model(tmp_path, kind):
    data = small().SerializeToString(deterministic=True)
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    by_name = {"path": path, "proto": small(), str: str(path)}
    model = read_model(by_name[kind] if kind in by_name else kind(data))
    assert [node.op for node in model.nodes] == ["Gemm", "Relu"]
    assert model.sha256 == hashlib.sha256(data).hexdigest()


def test_every_shared_model_is_read(shared):
    files = sorted(shared.glob("models/*/model.onnx"))
    assert files
    for file in files:
        model, proto = read_model(file), onnx.load(file)
        assert len(model.nodes) == len(proto.graph.node), file
        assert model.initializers.keys() == {t.name for t in proto.graph.initializer}, file
        for stored in proto.graph.initializer:
            np.testing.assert_array_equal(
                model.initializers[stored.name], numpy_helper.to_array(stored)
            )
        given = {value.name for value in proto.graph.input} - model.initializers.keys()
        assert {spec.name for spec in model.inputs} == given, file


@pytest.mark.parametrize(
    "dim, size",
    [("N", "N"), (3, 3), (0, 0), (-1, None), (None, None), ("", None)],
)
def test_sizes_are_numbers_symbols_or_unknown(dim, size):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [dim])
    model = changed(lambda m: m.graph.input[0].CopyFrom(value))
    assert read_model(model).inputs[0].shape == (size,)


def test_unknown_rank_is_none():
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    model = changed(lambda m: m.graph.input[0].CopyFrom(value))
    assert read_model(model).inputs[0].shape is None


def test_initializers_are_no_inputs():
    value = helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3])
    model = read_model(changed(lambda m: m.graph.input.append(value)))
    assert [spec.name for spec in model.inputs] == ["x"]


def test_an_output_that_is_no_tensor_is_kept_by_name():
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model = parse("g (float[N] x) => (float[N] y) {y = SequenceConstruct(x)}")
    model.graph.output[0].CopyFrom(helper.make_value_info("y", kind))
    assert read_model(model).outputs == (ValueSpec("y", np.dtype(object), None),)


def test_names_of_nodes_are_unique():
    model = parse(
        "g (float[N] x) => (float[N] y) "
        "{a = Relu(x) b = Relu(a) c = Relu(b) d = Relu(c) e = Relu(d) y = Relu(e)}"
    )
    for node, name in zip(model.graph.node, ["", "a", "a", "Relu_0", "Relu_0", "a_1"], strict=True):
        node.name = name
    names = [node.name for node in read_model(model).nodes]
    assert names == ["Relu_0_1", "a", "a_2", "Relu_0", "Relu_0_2", "a_1"]


def test_unsorted_graph_is_sorted():
    model = parse("g (float[N] x) => (float[N] y) {a = Relu(x) b = Exp(a) y = Add(a, b)}")
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([nodes[2], nodes[1], nodes[0]])
    assert [node.op for node in read_model(model).nodes] == ["Relu", "Exp", "Add"]


def test_a_node_waits_for_what_its_subgraph_captures():
    model = parse(
        "g (bool c, float[N] x) => (float[N] y) {"
        "y = If(c) <then_branch = t () => (float[N] p) {p = Relu(a)},"
        "           else_branch = e () => (float[N] q) {q = Neg(x)}>"
        "a = Exp(x)}"
    )
    last = read_model(model).nodes[-1]
    assert last.op == "If"
    assert isinstance(last.attributes["then_branch"], onnx.GraphProto)


def test_omitted_inputs_are_empty_and_dropped_at_the_end():
    model = parse("g (float[N] x, float u) => (float[N] y) {a = Clip(x, '', u) y = Clip(a)}"
                  .replace("''", ""))  # fmt: skip
    model.graph.node[1].input.extend(["", ""])
    nodes = read_model(model).nodes
    assert [node.inputs for node in nodes] == [("x", "", "u"), ("a",)]


def test_attributes_become_python_values():
    values = {"i": 3, "f": 0.5, "s": "größe", "is": [1, 2], "fs": [0.5, 2.0], "ss": ["a", "b"]}
    node = helper.make_node("Own", ["x"], ["y"], domain="com.own", **values)
    node.attribute.append(helper.make_attribute("t", numpy_helper.from_array(np.eye(2))))
    node.attribute.append(helper.make_attribute("sp", sparse_tensor([5], [1], [3])))
    node.attribute.append(AttributeProto(name="empty", type=AttributeProto.INTS))
    model = identity()
    model.graph.node[0].CopyFrom(node)
    model.opset_import.add(domain="com.own", version=1)
    result = read_model(model).nodes[0]
    assert result.domain == "com.own"
    attributes = result.attributes
    np.testing.assert_array_equal(attributes.pop("t"), np.eye(2))
    np.testing.assert_array_equal(attributes.pop("sp"), [0, 5, 0])
    expected = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    assert attributes == expected | {"empty": ()}


def test_the_alias_of_the_standard_domain_is_normalised():
    def rename(model):
        model.opset_import[0].domain = "ai.onnx"
        model.graph.node[0].domain = "ai.onnx"

    model = read_model(changed(rename))
    assert model.opsets == {"": 17}
    assert {node.domain for node in model.nodes} == {""}


def test_metadata_names_the_producer():
    def describe(model):
        model.producer_name, model.producer_version = "pytorch", "2.1"
        model.metadata_props.add(key="task", value="credit")

    assert read_model(changed(describe)).metadata == {"task": "credit", "producer": "pytorch 2.1"}


@pytest.mark.parametrize("opset", [7, 13, NEWEST_OPSET])
def test_opsets_of_the_range_are_read(opset):
    def change(model):
        model.opset_import[0].version = opset

    assert read_model(changed(change)).opsets == {"": opset}


def test_non_standard_op_of_tf2onnx_passes():
    model = parse("g (float[N] x) => (float[N] y) {y = Erfc(x)}")
    assert read_model(model).nodes[0].op == "Erfc"


TYPES = sorted(
    value for name, value in TensorProto.DataType.items() if name not in ("UNDEFINED", "STRING")
)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("data_type", TYPES, ids=TensorProto.DataType.Name)
def test_tensors_of_every_type_are_read(data_type, raw):
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    values = np.array([1, 0, 1, 1, 0], np.float32).astype(dtype)
    stored = (
        numpy_helper.from_array(values, "w")
        if raw
        else helper.make_tensor("w", data_type, [5], values)
    )
    assert stored.HasField("raw_data") == raw
    array = read_model(identity(stored)).initializers["w"]
    assert array.dtype == dtype
    assert array.tobytes() == values.tobytes()  # NaN included


def test_text_tensors_are_read():
    stored = helper.make_tensor("w", TensorProto.STRING, [2], ["a", "ü"])
    assert read_model(identity(stored)).initializers["w"].tolist() == ["a", "ü"]


@pytest.mark.parametrize("dims", [(), (0,), (2, 0, 3)])
def test_scalars_and_empty_tensors_are_read(dims):
    stored = tensor(dims=dims, raw_data=b"\0" * (0 if dims else 4))
    assert read_model(identity(stored)).initializers["w"].shape == dims


@pytest.mark.parametrize("indices", [[1, 3], [[0, 1], [1, 1]]])
def test_sparse_initializers_become_dense(indices):
    model = read_model(identity(sparse=[sparse_tensor([5, 6], indices, [2, 2])]))
    np.testing.assert_array_equal(model.initializers["s"], [[0, 5], [0, 6]])
    assert not model.initializers["s"].flags.writeable


def test_an_empty_sparse_tensor_is_zero():
    model = read_model(identity(sparse=[sparse_tensor([], [], [2, 2])]))
    np.testing.assert_array_equal(model.initializers["s"], np.zeros((2, 2)))


def test_data_marked_external_but_carried_by_the_model_is_read():
    stored = external((2,))
    stored.raw_data = np.array([1, 2], np.float32).tobytes()
    np.testing.assert_array_equal(read_model(identity(stored)).initializers["w"], [1, 2])


# Functions

FUNCTION_HEADER = '<ir_version: 9, opset_import: ["": 17, "own": 1]>'


def calling(function, graph="g (float[N] x) => (float[N] y) {y = own.f(x)}"):
    return parse(graph + function, FUNCTION_HEADER)


@pytest.mark.parametrize("opset", [17, 14])
def test_functions_are_inlined(opset):
    body = "{t = Relu(a) b = Add(t, t)}"
    model = calling(
        f'<domain: "own", opset_import: ["": {opset}]> f (a) => (b) {body}',
        "g (float[N] x) => (float[N] y) {t = own.f(x) y = own.f(t)}",
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "t__1"))
    result = read_model(model)
    assert [node.op for node in result.nodes] == ["Relu", "Add", "Relu", "Add"]
    np.testing.assert_array_equal(result.initializers["t__1"], [1, 1])


def test_imports_of_functions_are_kept():
    model = calling(
        '<domain: "own", opset_import: ["": 17, "com.b": 3]> f (a) => (b) {b = com.b.Odd(a)}'
    )
    result = read_model(model)
    assert result.nodes[0].domain == "com.b"
    assert result.opsets["com.b"] == 3


def chain(length, calls=1):
    """Functions f0 to f(length - 1), each of which calls the next `calls` times."""
    functions = []
    for i in range(length):
        op = f"f{i + 1}" if i + 1 < length else "Relu"
        domain = "own" if i + 1 < length else ""
        names = ["a", *(f"t{k}" for k in range(1, calls)), "b"]
        nodes = [
            helper.make_node(op, [source], [target], domain=domain)
            for source, target in pairwise(names)
        ]
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        functions.append(helper.make_function("own", f"f{i}", ["a"], ["b"], nodes, imports))
    model = parse("g (float[N] x) => (float[N] y) {y = own.f0(x)}", FUNCTION_HEADER)
    model.functions.extend(functions[::-1])
    return model


def test_functions_of_functions_are_inlined():
    assert len(read_model(chain(5, calls=2)).nodes) == 2**5


# What is refused


def nested(depth):
    """A model with `depth` Ifs in each other."""

    def branch(node, output):
        value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        return helper.make_graph([node], "g", [], [value])

    inner = helper.make_node("Identity", ["x"], ["o0"])
    for i in range(depth):
        then = branch(inner, f"o{i}")
        other = branch(helper.make_node("Neg", ["x"], ["p"]), "p")
        inner = helper.make_node("If", ["c"], [f"o{i + 1}"], then_branch=then, else_branch=other)
    graph = branch(inner, f"o{depth}")
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])


def test_modest_nesting_is_read():
    assert read_model(nested(10)).nodes[0].op == "If"


def renamed(old, new):
    """Change that renames the outputs of nodes."""

    def change(model):
        for node in model.graph.node:
            node.output[:] = [new if name == old else name for name in node.output]

    return change


def cyclic(model):
    model.graph.node[0].input[0] = "y"


def opset(version):
    def change(model):
        model.opset_import[0].version = version

    return change


def conv(model, **attributes):
    model.graph.node[0].CopyFrom(helper.make_node("Conv", ["x", "w"], ["z"], **attributes))


def if_branch(body):
    return parse(
        "g (bool c, float[N] x) => (float[N] y) {y = If(c) <"
        f"then_branch = t () => (float[N] p) {{{body}}}, "
        "else_branch = e () => (float[N] q) {q = Neg(x)}>}"
    )


def inner_tensor(stored):
    model = if_branch("p = Relu(x)")
    model.graph.node[0].attribute[0].g.initializer.append(stored)
    return model


def function(body, imports='"": 17, "own": 1'):
    return calling(f'<domain: "own", opset_import: [{imports}]> f (a) => (b) {{{body}}}')


OPTIONAL = helper.make_optional_type_proto(helper.make_tensor_type_proto(1, None))
EXTRA = AttributeProto(name="__note__", type=AttributeProto.INT, i=1)

BAD_MODELS = {
    # the model around the graph
    "no graph": (changed(lambda m: m.ClearField("graph")), "no graph"),
    "no ir version": (changed(lambda m: m.ClearField("ir_version")), "IR version .* none"),
    "future ir version": (changed(lambda m: setattr(m, "ir_version", 99)), "IR version .* 99"),
    "no opset": (changed(lambda m: m.ClearField("opset_import")), "imports no opset"),
    "opset 6": (changed(opset(6)), f"opset 6, expected 7 to {NEWEST_OPSET}; export it again"),
    "opset 0": (changed(opset(0)), "opset 0, expected 7"),
    "negative opset": (changed(opset(-(2**63))), "expected 7"),
    "opset 999": (changed(opset(999)), "opset 999, expected 7 .* install a newer onnx"),
    "opset beyond int": (changed(opset(2**62)), "expected 7"),
    "two opsets": (
        changed(lambda m: m.opset_import.add(domain="ai.onnx", version=13)),
        "versions 17 and 13",
    ),
    # inputs and outputs
    "no outputs": (changed(lambda m: m.graph.ClearField("output")), "no outputs"),
    "output of no node": (
        changed(lambda m: setattr(m.graph.output[0], "name", "q")), "no node makes the output 'q'",
    ),
    "output twice": (changed(lambda m: m.graph.output.append(m.graph.output[0])), "'y' .* twice"),
    "input twice": (changed(lambda m: m.graph.input.append(m.graph.input[0])), "'x' .* twice"),
    "nameless input": (changed(lambda m: setattr(m.graph.input[0], "name", "")), "has no name"),
    "input without type": (
        changed(lambda m: m.graph.input[0].ClearField("type")), "without a type, expected a tensor",
    ),
    "unknown element type": (
        changed(lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 77)),
        "element type 77",
    ),
    "optional input": (
        changed(lambda m: m.graph.input[0].type.CopyFrom(OPTIONAL)), "an optional, expected a ten",
    ),
    "negative size": (
        changed(lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", -5)),
        "size -5",
    ),
    # the graph
    "empty graph": (changed(lambda m: m.graph.ClearField("node")), "no nodes"),
    "cycle": (changed(cyclic), "cycle .*Gemm_0"),
    "node that reads itself": (changed(renamed("z", "x0")), "reads 'z'"),
    "dangling name": (changed(lambda m: m.graph.node[0].input.__setitem__(0, "q")), "reads 'q'"),
    "output made twice": (changed(renamed("y", "z")), "Relu_1 makes 'z'"),
    "node overwrites input": (changed(renamed("z", "x")), "makes 'x'"),
    "node overwrites weights": (changed(renamed("z", "w")), "makes 'w'"),
    "initializer twice": (
        changed(lambda m: m.graph.initializer.append(m.graph.initializer[0])), "'w' .* twice",
    ),
    "nameless initializer": (
        changed(lambda m: setattr(m.graph.initializer[0], "name", "")), "has no name",
    ),
    "missing op type": (
        changed(lambda m: m.graph.node[0].ClearField("op_type")), "node_0 has no op type",
    ),
    "domain not imported": (
        changed(lambda m: setattr(m.graph.node[0], "domain", "com.own")), "'com.own', which",
    ),
    # schemas
    "unknown op": (changed(lambda m: setattr(m.graph.node[1], "op_type", "Foo")), "no op 'Foo'"),
    "op of a newer opset": (
        changed(lambda m: setattr(m.graph.node[1], "op_type", "Gelu")), "opset 20 or newer",
    ),
    "op that was removed": (
        changed(lambda m: setattr(m.graph.node[1], "op_type", "Upsample")), "no longer part",
    ),
    "unknown attribute": (changed(lambda m: conv(m, colour=1)), "'colour', which opset version 11"),
    "wrong type of attribute": (changed(lambda m: conv(m, group=0.5)), "FLOAT, expected INT"),
    "attribute twice": (
        identity(attributes=[EXTRA, EXTRA]), "attributes of Identity_0 .* '__note__' .* twice",
    ),
    "missing attribute": (
        parse("g (float[N] x) => (float[N] y) {y = Cast(x)}"), "lacks its attribute 'to'",
    ),
    "too many inputs": (changed(lambda m: m.graph.node[1].input.append("x")), "2 inputs, exp"),
    "too few inputs": (
        changed(lambda m: m.graph.node[0].input.__delitem__(slice(1, 3))), "1 inputs, expected 2 t",
    ),
    "omitted required input": (
        changed(lambda m: m.graph.node[0].input.__setitem__(0, "")), "lacks its input 'A'",
    ),
    "too many outputs": (changed(lambda m: m.graph.node[1].output.append("q")), "2 outputs"),
    "attribute of no type": (identity(attributes=[AttributeProto(name="a")]), "unknown type 0"),
    "nameless attribute": (
        identity(attributes=[AttributeProto(type=AttributeProto.INT, i=1)]), "without a name",
    ),
    "attribute that lies": (
        identity(attributes=[AttributeProto(name="__a", type=AttributeProto.INT, f=1.0)]),
        "should be INT",
    ),
    "attribute without value": (
        identity(attributes=[AttributeProto(name="__a", type=AttributeProto.TENSOR)]),
        "should be TENSOR",
    ),
    "attribute of a function": (
        identity(attributes=[AttributeProto(name="a", type=2, ref_attr_name="b")]), "no function",
    ),
    "text that is none": (
        identity(attributes=[AttributeProto(name="__a", type=3, s=b"\xff\xfe")]), "not UTF-8",
    ),
    # tensors
    "too short": (identity(tensor(dims=[2], raw_data=b"1234")), "4 bytes, expected 8"),
    "too long": (identity(tensor(dims=[2], raw_data=b"1" * 12)), "12 bytes, expected 8"),
    "typed too short": (identity(tensor(dims=[2], float_data=[1])), "1 values, expected 2"),
    "typed in a wrong field": (identity(tensor(dims=[1], int64_data=[1])), "0 values, expected 1"),
    "values twice": (
        identity(tensor(dims=[1], raw_data=b"1234", float_data=[1])), "holds its values twice",
    ),
    "huge and empty": (identity(tensor(dims=[2**31, 2**31])), "expected at most"),
    "huge but declared empty": (identity(tensor(dims=[2**40, 2**40, 0])), "expected at most"),
    "terabyte without data": (identity(tensor(dims=[2**38])), "0 values, expected 274,877,906,944"),
    "negative dim": (identity(tensor(dims=[-4], raw_data=b"")), "no negative size"),
    "two negative dims": (identity(tensor(dims=[-1, -1], raw_data=b"1234")), "no negative size"),
    "too many axes": (identity(tensor(dims=[1] * 65, raw_data=b"1234")), "65 axes"),
    "undefined type": (identity(tensor(0, [1], raw_data=b"1234")), "element type 0"),
    "future type": (identity(tensor(99, [1], raw_data=b"1234")), "element type 99"),
    "packed too short": (
        identity(tensor(TensorProto.INT4, [5], raw_data=b"12")), "2 bytes, expected 3",
    ),
    "text as raw data": (
        identity(tensor(TensorProto.STRING, [1], raw_data=b"1234")), "0 values, expected 1",
    ),
    "bad text tensor": (
        identity(tensor(TensorProto.STRING, [1], string_data=[b"\xff"])), "not UTF-8",
    ),
    "segment": (
        identity(tensor(dims=[1], raw_data=b"1234", segment=TensorProto.Segment(begin=0, end=4))),
        "segments",
    ),
    "lying attribute": (
        parse("g (float[N] x) => (float[2] y) {y = Constant <value = float[2] {1, 2}> ()}"), None,
    ),
    "external without folder": (identity(external()), "no folder; pass the path"),
    # sparse tensors
    "sparse index outside": (
        identity(sparse=[sparse_tensor([1], [4], [2, 2])]), "index outside",
    ),
    "sparse pair outside": (
        identity(sparse=[sparse_tensor([1], [[0, 2]], [2, 2])]), "index outside",
    ),
    "sparse negative index": (identity(sparse=[sparse_tensor([1], [-1], [4])]), "index outside"),
    "sparse index twice": (identity(sparse=[sparse_tensor([1, 2], [1, 1], [4])]), "one index"),
    "sparse shapes differ": (identity(sparse=[sparse_tensor([1, 2], [1], [4])]), "indices of sh"),
    "sparse but huge": (identity(sparse=[sparse_tensor([1], [1], [2**20, 2**15])]), "store it den"),
    "sparse values of rank 2": (identity(sparse=[sparse_tensor([[1]], [1], [4])]), r"expected \(n"),
    # sub-graphs
    "deep nesting": (nested(17), "nested deeper than 16"),
    "dangling in sub-graph": (if_branch("p = Relu(q)"), "If_0 reads 'q'"),
    "unknown op in sub-graph": (if_branch("p = Foo(x)"), "sub-graph of If_0: Foo: .* no op 'Foo'"),
    "unsorted sub-graph": (if_branch("p = Relu(r) r = Relu(x)"), "makes 'r', which is read before"),
    "cycle through sub-graph": (if_branch("p = Relu(y)"), "cycle"),
    "lying sub-graph tensor": (inner_tensor(tensor(dims=[9], raw_data=b"")), "expected 36"),
    "external sub-graph tensor": (inner_tensor(external()), "must hold its own weights"),
    # functions
    "recursive function": (function("b = own.f(a)"), "calls itself"),
    "functions that call each other": (
        calling(
            '''<domain: "own", opset_import: ["": 17, "own": 1]> f (a) => (b) {b = own.g(a)}
            <domain: "own", opset_import: ["": 17, "own": 1]> g (a) => (b) {b = own.f(a)}''',
        ),
        "calls itself",
    ),
    "function with free name": (function("b = Add(a, x)"), "reads 'x', which nothing in it makes"),
    "function of another opset": (
        function("b = Softmax(a)", '"": 12'), "'f' needs another opset",
    ),
    "function chain": (chain(65), "functions are nested deeper"),
    "long function chain": (chain(3000), "functions are nested deeper"),
    "function bomb": (chain(60, calls=2), "too many nodes"),
    "call with too many inputs": (
        calling(
            '<domain: "own", opset_import: ["": 17]> f (a) => (b) {b = Relu(a)}',
            "g (float[N] x) => (float[N] y) {y = own.f(x, x)}",
        ),
        "with 2 inputs, expected at most 1",
    ),
    "function twice": (
        changed(lambda m: m.functions.append(m.functions[0]), chain(1)), "one name",
    ),
}  # fmt: skip
BAD_MODELS["lying attribute"] = (
    changed(
        lambda m: m.graph.node[0].attribute[0].t.CopyFrom(tensor(dims=[2], raw_data=b"12")),
        BAD_MODELS["lying attribute"][0],
    ),
    "attribute 'value' .* 2 bytes, expected 8",
)


@pytest.mark.parametrize("model, message", BAD_MODELS.values(), ids=BAD_MODELS)
def test_bad_models_are_refused_in_a_short_sentence(model, message):
    start = time.perf_counter()
    with pytest.raises(ModelError, match=message) as caught:
        read_model(model)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 5


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"123")


DATA = small().SerializeToString()
BAD_FILES = {
    "empty": (b"", "empty, expected an ONNX model"),
    "random": (random.Random(0).randbytes(4096), "not an ONNX model"),
    "truncated": (DATA[:-30], "truncated"),
    "first byte": (DATA[:1], "ONNX model"),
    "header only": (DATA[:2], "ONNX model"),
    "text": (b"import torch\nprint('model')\n", "got text"),
    "text format of ONNX": (str(small()).encode(), "got text; save the model in the binary"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "pickle": (pickle.dumps({"a": np.ones(3)}), "got a pickle"),
    "old pickle": (pickle.dumps({"a": 1}, protocol=2), "got a pickle .*convert the model object"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5 file"),
    "gzip": (gzip.compress(DATA), "gzip file; unpack"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(20), "TensorFlow Lite"),
    "ort": (b"\x1c\0\0\0ORTM" + bytes(20), "ORT format"),
    "safetensors": (b'\x40\0\0\0\0\0\0\0{"a":{"dtype":"F32"}}', "safetensors"),
    "numpy": (b"\x93NUMPY\x01\0" + bytes(20), "NumPy array"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(20), "PNG image"),
    "zeros": (bytes(1000), "not an ONNX model"),
    "tensor": (numpy_helper.from_array(np.ones(9), "w").SerializeToString(), "ONNX model"),
}


@pytest.mark.parametrize("as_file", [True, False], ids=["file", "bytes"])
@pytest.mark.parametrize("data, message", BAD_FILES.values(), ids=BAD_FILES)
def test_other_files_are_named(tmp_path, data, message, as_file):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_model(path if as_file else data)
    assert len(str(caught.value).replace(repr(str(path)), "")) < 250
    assert (repr(str(path)) in str(caught.value)) == as_file


def test_a_zip_archive_is_named(tmp_path):
    zipped(tmp_path / "model.pt")
    with pytest.raises(ModelFileError, match="zip archive"):
        read_model(tmp_path / "model.pt")


def test_missing_file_and_folders_are_named(tmp_path):
    with pytest.raises(ModelFileError, match="there is no file"):
        read_model(tmp_path / "model.onnx")
    with pytest.raises(ModelFileError, match="is a folder.*it holds none"):
        read_model(tmp_path)
    (tmp_path / "net.onnx").touch()
    with pytest.raises(ModelFileError, match=r"is a folder.*for example 'net.onnx'"):
        read_model(str(tmp_path))
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_model("a\0b")
    with pytest.raises(ModelFileError, match="there is no file ''"):
        read_model("")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="no regular file"):
        read_model(tmp_path / "pipe")


@pytest.mark.parametrize("source", [None, 3, {}, small().graph, [b""]])
def test_other_objects_are_refused(source):
    with pytest.raises(ModelError, match="expected the path or bytes of an .onnx file"):
        read_model(source)


def test_a_file_above_two_gigabytes_is_refused_unread(tmp_path):
    path = sparse_file(tmp_path / "model.onnx", 2**31)
    with pytest.raises(ModelFileError, match="save_as_external_data"):
        read_model(path)


# External weights


def sparse_file(path, size):
    """A file of zeros that takes no disk."""
    path.touch()
    os.truncate(path, size)
    if path.stat().st_blocks * 512 > 2**20:
        path.unlink()
        pytest.skip("the file system has no sparse files")
    return path


def save(folder, stored, weights=None):
    path = folder / "model.onnx"
    path.write_bytes(identity(stored).SerializeToString())
    if weights is not None:
        (folder / "weights.bin").write_bytes(weights)
    return path


def test_external_weights_are_mapped(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(small(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = read_model(path)
    expected = read_model(small()).initializers
    for name, array in model.initializers.items():
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable
        np.testing.assert_array_equal(array, expected[name])


def test_a_relative_path_finds_its_weights(tmp_path, monkeypatch):
    save(tmp_path, external((2,)), np.array([1, 2], np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(read_model("model.onnx").initializers["w"], [1, 2])


def test_the_model_itself_may_be_behind_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    save(tmp_path / "real", external((2,)), np.array([1, 2], np.float32).tobytes())
    (tmp_path / "link").symlink_to(tmp_path / "real")
    model = read_model(tmp_path / "link" / "model.onnx")
    np.testing.assert_array_equal(model.initializers["w"], [1, 2])


def test_weights_may_lie_in_a_folder_below_at_any_offset(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w").write_bytes(b"\1\2\3" + np.array([1, 2], np.float64).tobytes())
    path = save(
        tmp_path, external((2,), TensorProto.DOUBLE, location="sub/w", offset=3, checksum=0)
    )
    np.testing.assert_array_equal(read_model(path).initializers["w"], [1, 2])


def test_packed_external_weights_are_unpacked(tmp_path):
    path = save(tmp_path, external((3,), TensorProto.INT4), b"\x21\xff")
    model = read_model(path)
    assert model.initializers["w"].astype(int).tolist() == [1, 2, -1]
    assert not model.initializers["w"].flags.writeable


def test_an_empty_external_tensor_is_read(tmp_path):
    assert read_model(save(tmp_path, external((0, 3)), b"")).initializers["w"].shape == (0, 3)


def test_external_weights_above_two_gigabytes_are_read_lazily(tmp_path):
    size = 2_200_000_000
    path = save(tmp_path, external((size // 4,), length=size))
    with open(sparse_file(tmp_path / "weights.bin", size), "r+b") as file:
        file.seek(size - 4)
        file.write(np.float32(7).tobytes())
    start = time.perf_counter()
    array = read_model(path).initializers["w"]
    assert time.perf_counter() - start < 2
    assert array.nbytes == size
    assert array[-1] == 7


BAD_EXTERNAL = {
    "no location": (external(location=""), "no file name"),
    "nul": (external(location="a\0b"), "no file name"),
    "parent": (external(location="../weights.bin"), "leaves the model's folder"),
    "parent behind a folder": (external(location="sub/../../w"), "leaves the model's folder"),
    "backslashes": (external(location="..\\weights.bin"), "leaves the model's folder"),
    "absolute": (external(location="/etc/hostname"), "leaves the model's folder"),
    "drive": (external(location="c:\\weights.bin"), "leaves the model's folder"),
    "device": (external(location="/dev/zero"), "leaves the model's folder"),
    "missing": (external(location="other.bin"), "missing"),
    "folder": (external(location="sub"), "no regular file|cannot be read"),
    "the folder itself": (external(location="."), "no regular file|cannot be read"),
    "long name": (external(location="w" * 5000), "cannot be read"),
    "symbolic link": (external(location="link"), "behind a link"),
    "linked folder": (external(location="linked/weights.bin"), "behind a link"),
    "hard link": (external(location="hard"), "hard links"),
    "pipe": (external(location="pipe"), "no regular file"),
    "negative offset": (external(offset=-4), "offset is '-4'"),
    "offset of text": (external(offset="four"), "offset is 'four'"),
    "offset with underscore": (external(offset="1_0"), "offset is '1_0'"),
    "large offset": (external(offset=4), "has 24 bytes, expected at least 28"),
    "huge offset": (external(offset=2**63), "has 24 bytes, expected at least"),
    "endless offset": (external(offset="9" * 5000), "offset is '9999"),
    "short length": (external(length=20), "takes 24 bytes, but the model says 20"),
    "large length": (external(length=28), "takes 24 bytes, but the model says 28"),
    "shape beyond the file": (external((2, 4)), "has 24 bytes, expected at least 32"),
    "terabytes": (external((2**39,)), "has 24 bytes, expected at least"),
    "too many elements": (external((2**31, 2**31)), "expected at most"),
    "negative dim": (external((-2, -3)), "no negative size"),
    "text": (external(data_type=TensorProto.STRING), "keeps text in another file"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize("stored, message", BAD_EXTERNAL.values(), ids=BAD_EXTERNAL)
def test_bad_external_weights_are_refused(tmp_path, stored, message):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "weights.bin").write_bytes(bytes(24))
    (tmp_path / "original").write_bytes(bytes(24))
    (folder / "link").symlink_to(tmp_path / "weights.bin")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "hard").hardlink_to(tmp_path / "original")
    os.mkfifo(folder / "pipe")
    path = save(folder, stored, bytes(24))
    with pytest.raises(ModelError, match=message) as caught:
        read_model(path)
    assert len(str(caught.value)) < 400


def test_packed_weights_cannot_be_multiplied_without_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "MAX_UNPACKED_BYTES", 100)
    path = save(tmp_path, external((300,), TensorProto.INT4), bytes(150))
    with pytest.raises(ModelError, match="300 bytes, expected at most 100"):
        read_model(path)


# Damage


def mutants(data, count, seed):
    """Copies with a few bytes changed, and every third with some removed or doubled."""
    rng = random.Random(seed)
    for k in range(count):
        mutant = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            start, length = rng.randrange(len(mutant)), rng.randint(1, 8)
            part = mutant[start : start + length]
            same_size = [rng.randbytes(len(part)), part[:-1] + rng.randbytes(1), part[::-1]]
            other_size = [rng.randbytes(length), b"", part * 2]
            mutant[start : start + length] = rng.choice(other_size if k % 3 == 0 else same_size)
        yield bytes(mutant)


def test_a_large_proto_is_hashed_by_parts(monkeypatch):
    whole = read_model(small()).sha256
    monkeypatch.setattr(load, "MAX_HASHED_ELEMENTS", 1)
    other = changed(lambda m: m.graph.initializer[0].CopyFrom(tensor(dims=[1], raw_data=b"1234")))
    digests = {whole, *(read_model(model).sha256 for model in (small(), small(), other))}
    assert len(digests) == 3


@pytest.mark.parametrize(
    "model",
    [small(), chain(3, calls=2), nested(2), identity(sparse=[sparse_tensor([1], [1], [2, 2])])],
    ids=["small", "functions", "sub-graphs", "sparse"],
)
def test_mutants_are_read_or_refused(model):
    outcomes = {RawModel: 0, ModelError: 0}
    for mutant in mutants(model.SerializeToString(deterministic=True), 300, seed=1):
        start = time.perf_counter()
        try:
            assert isinstance(read_model(mutant), RawModel)
            outcomes[RawModel] += 1
        except ModelError:
            outcomes[ModelError] += 1
        assert time.perf_counter() - start < 2
    assert min(outcomes.values()) > 0
