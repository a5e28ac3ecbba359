"""Large weights are taken from a file before protobuf sees them, and nothing else changes."""

import hashlib
import io
import random

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from networks import graph
from onnxplain.errors import ModelError
from onnxplain.graph import wire
from onnxplain.graph.load import read_model

RNG = np.random.default_rng(0)
LARGE = 2 * wire.LEAST_BYTES


def identity(*tensors):
    """y = identity(x) with tensors that nothing reads."""
    model = graph([helper.make_node("Identity", ["x"], ["y"])], {"x": (2,)}, outputs={"y": (2,)})
    model.graph.initializer.extend(tensors)
    return model


def random_bytes(name="w", size=LARGE, **fields):
    data = RNG.bytes(size)
    return TensorProto(name=name, data_type=TensorProto.UINT8, dims=[size], raw_data=data, **fields)


def split(data):
    """The light model and the bytes that were taken, by position."""
    return wire.without_weights(io.BytesIO(data), len(data))


def everything(model):
    """What `read_model` found, in a form that can be compared."""
    weights = {k: (w.dtype, w.shape, w.tobytes()) for k, w in model.initializers.items()}
    return model.nodes, weights, model.inputs, model.outputs, model.metadata, model.sha256


def by_protobuf(data, monkeypatch):
    """Read a model with everything left to protobuf."""
    with monkeypatch.context() as patch:
        patch.setattr(wire, "LEAST_BYTES", 2**40)
        return read_model(data)


def test_what_is_left_is_the_model_without_large_data():
    small = random_bytes("small", 10)
    model = identity(random_bytes("a"), small, random_bytes("b", doc_string="after the data"))
    rest, taken = split(model.SerializeToString())
    assert {i: array.tobytes() for i, array in taken.items()} == {
        i: model.graph.initializer[i].raw_data for i in (0, 2)
    }
    for i in taken:
        model.graph.initializer[i].raw_data = b""
    assert ModelProto.FromString(rest) == model


TYPES = sorted(
    value for name, value in TensorProto.DataType.items() if name not in ("UNDEFINED", "STRING")
)


@pytest.mark.parametrize("data_type", TYPES, ids=TensorProto.DataType.Name)
def test_large_tensors_of_every_type_are_read_alike(data_type, tmp_path, monkeypatch):
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    values = RNG.integers(0, 2, (4, LARGE)).astype(np.float32).astype(dtype)
    model = identity(random_bytes("a", 8), numpy_helper.from_array(values, "w"))
    path = tmp_path / "model.onnx"
    path.write_bytes(data := model.SerializeToString())
    assert split(data) is not None
    expected = everything(by_protobuf(data, monkeypatch))
    for source in (path, data):
        found = read_model(source)
        assert everything(found) == expected
        assert not found.initializers["w"].flags.writeable
    assert expected[-1] == hashlib.sha256(data).hexdigest()


def test_a_graph_in_two_pieces_is_put_together(monkeypatch):
    first, second = identity(random_bytes("a")), ModelProto()
    second.graph.initializer.extend([random_bytes("b", 4), random_bytes("c")])
    data = first.SerializeToString() + second.SerializeToString()
    assert list(split(data)[1]) == [0, 2]
    assert everything(read_model(data)) == everything(by_protobuf(data, monkeypatch))


def field(number, content):
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def varint(n):
    return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])


HEAD = identity().SerializeToString()
TWICE = random_bytes().SerializeToString() + TensorProto(raw_data=bytes(LARGE)).SerializeToString()


@pytest.mark.parametrize(
    "data",
    [
        identity(random_bytes()).SerializeToString()[:-1],
        identity(random_bytes()).SerializeToString() + b"\x80",
        identity(random_bytes()).SerializeToString() + b"\x0b\x0c",  # a group
        identity(random_bytes()).SerializeToString() + b"\x02\x00",  # a field of number 0
        b"\xff" * LARGE,
        HEAD + field(7, field(5, TWICE)),
        HEAD + b"\xa8\x06\x00" * 2**18 + field(7, field(5, random_bytes().SerializeToString())),
        identity(*[random_bytes(f"w{i}", 2**12) for i in range(20)]).SerializeToString(),
        b"",
    ],
    ids=["cut", "ragged", "group", "zero", "noise", "twice", "many fields", "small ones", "empty"],
)
def test_the_unusual_is_left_to_protobuf(data, monkeypatch):
    assert split(data) is None
    assert outcome(lambda: read_model(data)) == outcome(lambda: by_protobuf(data, monkeypatch))


@pytest.mark.parametrize("dims", [[LARGE - 1], [-1], [2, LARGE]])
def test_sizes_are_checked_against_what_was_taken(dims):
    stored = random_bytes()
    stored.dims[:] = dims
    with pytest.raises(ModelError, match="bytes, expected|no negative size"):
        read_model(identity(stored).SerializeToString())


def test_damaged_files_say_their_own_size():
    data = identity(random_bytes()).SerializeToString() + field(7, b"\x0a\x02\x0a\x7f")
    assert split(data) is not None
    with pytest.raises(ModelError, match=f"damaged one \\({len(data):,} bytes"):
        read_model(data)


def test_mutants_come_out_as_with_protobuf_alone(monkeypatch):
    monkeypatch.setattr(wire, "LEAST_BYTES", 8)
    monkeypatch.setattr(wire, "MAX_LEFT", 1)
    model = identity(random_bytes("a", 40), random_bytes("b", 3), random_bytes("c", 40))
    original, rng, taken = model.SerializeToString(), random.Random(0), 0
    for _ in range(400):
        mutant = bytearray(original)
        mutant[rng.randrange(len(mutant))] = rng.randrange(256)
        if rng.random() < 0.2:
            del mutant[rng.randrange(len(mutant))]
        data = bytes(mutant)
        taken += split(data) is not None
        assert outcome(lambda d=data: read_model(d)) == outcome(
            lambda d=data: by_protobuf(d, monkeypatch)
        )
    assert 100 < taken < 400


def outcome(read):
    try:
        return everything(read())
    except ModelError as error:
        return type(error), str(error)


def test_a_model_that_onnx_wrote_is_whole_again(tmp_path):
    model = identity(numpy_helper.from_array(RNG.standard_normal((200, 300)), "w"))
    onnx.save(model, tmp_path / "m.onnx")
    found = read_model(tmp_path / "m.onnx").initializers["w"]
    np.testing.assert_array_equal(found, numpy_helper.to_array(model.graph.initializer[0]))
