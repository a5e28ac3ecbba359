"""The reader of R's files: every kind of object in every encoding, and damaged files."""

import bz2
import gzip
import lzma
import random
import time
import tracemalloc
import zlib

import numpy as np
import pytest

import rdata_writer as r
from onnxplain.errors import ModelError, ModelFileError, SelectionError
from onnxplain_converters import neuralnet, rds
from onnxplain_converters.rds import Pair, RObject, Symbol

ENCODINGS = [("xdr", 2), ("xdr", 3), ("ascii", 2), ("ascii", 3), ("native", 3)]
each_encoding = pytest.mark.parametrize("encoding, version", ENCODINGS)


def read(items, encoding="xdr", version=3):
    return rds.read(r.rds(items, encoding, version))


# -- vectors --------------------------------------------------------------------------------------


@each_encoding
def test_doubles_keep_every_bit(encoding, version):
    values = [0.1, -1e300, 5e-324, np.inf, -np.inf, np.nan, r.NA]
    found = read(r.doubles(values), encoding, version)
    assert found.kind == "double"
    np.testing.assert_array_equal(found.value[:5], values[:5])
    words = found.value.view(np.uint64) & 0xFFFFFFFF
    assert np.isnan(found.value[5:]).all()
    assert words[5] != 1954  # NaN
    assert words[6] == 1954  # NA


@each_encoding
def test_whole_numbers_and_truth_values(encoding, version):
    found = read(r.integers([1, -5, 2**31 - 1, rds.NA_INTEGER]), encoding, version)
    assert (found.kind, found.value.tolist()) == ("integer", [1, -5, 2**31 - 1, -(2**31)])
    found = read(r.logicals([1, 0]), encoding, version)
    assert (found.kind, found.value.tolist()) == ("logical", [1, 0])


@each_encoding
def test_strings(encoding, version):
    texts = ["", "a b\n\t\\\"'?", "größer ∞", None, "\x01 end"]
    assert read(r.strings(texts), encoding, version).value == texts


@each_encoding
def test_complex_and_raw(encoding, version):
    complex_items = [("int", 15), ("int", 2), ("doubles", np.array([1.0, 2.0, -3.0, 0.5]))]
    assert read(complex_items, encoding, version).value.tolist() == [1 + 2j, -3 + 0.5j]
    raw = [("int", 24), ("int", 3), ("raw", b"\x00\x7f\xff")]
    assert read(raw, encoding, version).value.tolist() == [0, 127, 255]


@pytest.mark.parametrize(
    "data, flags, text",
    [
        (b"gr\xf6\xdfer", 9 | 4 << 12, "größer"),  # marked latin1
        ("größer".encode(), 9 | 8 << 12, "größer"),  # marked UTF-8
        ("größer".encode(), 9, "größer"),  # in the file's native encoding, UTF-8
        (b"\xff\xfe", 9 | 8 << 12, "ÿþ"),  # marked wrongly
    ],
)
def test_encodings_of_strings(data, flags, text):
    assert read([("int", 16), ("int", 1), *r.char(data, flags)]).value == [text]


def test_hexadecimal_doubles():
    assert rds.read(b"A\n2\n1\n1\n14\n2\n0x1.8p+1\n-0x1p-2\n").value.tolist() == [3.0, -0.25]


def test_vector_of_two_word_length():
    items = [("int", 14), ("int", -1), ("int", 0), ("int", 2), ("doubles", np.array([1.0, 2.0]))]
    assert read(items).value.tolist() == [1.0, 2.0]


# -- other objects --------------------------------------------------------------------------------


@each_encoding
def test_lists_with_names_and_class(encoding, version):
    items = r.named_list({"a": r.doubles([1.0]), "b": r.NULL}, classes=["one", "two"])
    found = read(items, encoding, version)
    assert (found.kind, found.names, found.classes) == ("list", ["a", "b"], ["one", "two"])
    assert found.get("a").value.tolist() == [1.0]
    assert found.get("b", 0) is None
    assert found.get("c") is None
    assert repr(found) == "<R list of 2, class one/two>"


@each_encoding
def test_workspace_is_a_dict(encoding, version):
    data = r.workspace({"x": r.doubles([1.5]), "y": r.strings(["a"])}, encoding, version)
    found = rds.read(data)
    assert list(found) == ["x", "y"]
    assert found["x"].value.tolist() == [1.5]


def test_empty_workspace():
    assert rds.read(b"RDX3\n" + r.encoded(r.NULL)) == {}


def test_call_is_a_list_of_symbols_and_values():
    found = read(r.call("f", r.symbol("x"), ("base", r.doubles([2.0]))))
    (_, f), (_, x), (tag, base) = found
    assert (found.kind, f, x, tag) == ("call", Symbol("f"), Symbol("x"), "base")
    assert base.value.tolist() == [2.0]


def test_closure_has_arguments_body_and_environment():
    found = read(r.closure(r.symbol("x"), variables={"k": r.doubles([3.0])}))
    arguments, body, environment = found.value
    assert [tag for tag, _ in arguments] == ["x"]
    assert body == Symbol("x")
    assert environment.value["k"].value.tolist() == [3.0]
    assert environment.value[""].kind == "global environment"
    assert found.attributes["type"].value == ["function"]


def test_hashed_environment():
    table = r.vector([r.pairlist({"a": r.doubles([1.0])}), r.NULL, r.pairlist({"b": r.NULL})])
    found = read(r.ints(4, 0, 242, 254) + table + r.NULL)
    assert sorted(found.value) == ["", "a", "b"]


def test_environment_may_contain_itself():
    found = read(
        r.ints(4, 1) + r.GLOBAL + r.pairlist({"me": r.ints(1 << 8 | 255)}) + r.ints(254) * 2
    )
    assert found.value["me"] is found


def test_references_count_symbols_in_order():
    second = r.ints(255, 2)  # the index in a word of its own
    found = read(r.vector([r.symbol("a"), r.symbol("b"), r.ints(1 << 8 | 255), second]))
    assert [s.name for s in found.value] == ["a", "b", "a", "b"]


def test_promise_without_value():
    items = r.ints(5 | r.TAG) + r.GLOBAL + r.UNBOUND + r.symbol("x")
    value, expression, environment = read(items).value
    assert (value.kind, expression, environment.kind) == (
        "unbound", Symbol("x"), "global environment")  # fmt: skip


NAMES = r.ints(0, 1) + r.char("stats")


@pytest.mark.parametrize(
    "items, kind, value",
    [
        (r.ints(249) + NAMES, "namespace", ["stats"]),
        (r.ints(248) + NAMES, "package", ["stats"]),
        (r.ints(247) + NAMES, "persistent", ["stats"]),
        ([("int", 8), ("int", 3), ("text", b"sum")], "builtin", "sum"),
        ([("int", 7), ("int", 2), ("text", b"if")], "builtin", "if"),
        (r.ints(22) + r.NULL + r.NULL, "external pointer", (None, None)),
        (r.ints(23), "weak reference", None),
        (r.ints(25), "S4", None),
        (r.ints(251), "missing", None),
        (r.ints(20, 1) + r.NULL, "expression", [None]),
    ],
)
def test_other_kinds(items, kind, value):
    found = read(items)
    assert (found.kind, found.value) == (kind, value)


def test_slots_of_an_s4_object_are_attributes():
    found = read(r.ints(25 | r.ATTRIBUTES | r.OBJECT) + r.pairlist({"slot": r.doubles([2.0])}))
    assert found.attributes["slot"].value.tolist() == [2.0]


def test_bytecode_keeps_its_expression():
    found = read(r.bytecode(r.call("exp", r.symbol("x"))))
    assert found.kind == "bytecode"
    assert [value for _, value in found.value[0]] == [Symbol("exp"), Symbol("x")]
    assert found.value[1].value.tolist() == [1.0]


def test_bytecode_shares_cells():
    """f(g(x), g(x)), where the inner call is defined once, with a tag, and referred to."""
    no_tag, f, g, x = r.NULL, r.symbol("f"), r.symbol("g"), r.symbol("x")
    inner = r.ints(244, 0, 6) + no_tag + r.ints(1) + g  # define cell 0: a call
    inner += r.ints(2) + no_tag + r.ints(1) + x + r.ints(254) + r.NULL
    outer = r.ints(6) + no_tag + r.ints(1) + f
    outer += r.ints(2) + r.symbol("arg") + inner
    outer += r.ints(239) + r.pairlist({"note": r.NULL}) + no_tag + r.ints(243, 0)
    outer += r.ints(254) + r.NULL
    found = read(r.ints(21, 1) + r.integers([11]) + r.ints(1) + outer).value[0]
    (_, _), (tag, first), (_, second) = found
    assert tag == "arg"
    assert first is second
    assert found.cdr.cdr.attributes == {"note": None}
    assert [value for _, value in first] == [Symbol("g"), Symbol("x")]


def test_bytecode_within_bytecode():
    inner = r.ints(21) + r.integers([11]) + r.ints(1, 14) + r.doubles([7.0])
    found = read(r.ints(21, 0) + r.integers([11]) + r.ints(1) + inner)
    assert found.value[0].value[0].value.tolist() == [7.0]


@pytest.mark.parametrize(
    "items, kind, value",
    [
        (r.altrep("compact_intseq", r.doubles([3, 5, 1])), "integer", [5, 6, 7]),
        (r.altrep("compact_intseq", r.doubles([3, 5, -1])), "integer", [5, 4, 3]),
        (r.altrep("compact_realseq", r.doubles([2, 0, 1])), "double", [0, 1]),
        (r.altrep("wrap_real", r.vector([r.doubles([1.5]), r.integers([0, 0])])), "double", [1.5]),
        (r.altrep("wrap_string", r.pairlist([(None, r.strings(["a"])), (None, r.NULL)])),
         "character", ["a"]),
        (r.altrep("deferred_string", r.pairlist([(None, r.integers([7, -(2**31)]))])),
         "character", ["7", None]),
        (r.altrep("deferred_string", r.pairlist(
            [(None, r.doubles([1.0, 0.1, 1e5, 123456.0, 1e-20, np.inf, np.nan]))])),
         "character", ["1", "0.1", "1e+05", "123456", "1e-20", "Inf", None]),
    ],
)  # fmt: skip
def test_alternative_representations(items, kind, value):
    found = read(items)
    assert (found.kind, list(found.value)) == (kind, value)


def test_alternative_representation_has_attributes():
    attributes = r.pairlist({"names": r.strings(["a"])})
    found = read(r.altrep("compact_intseq", r.doubles([1, 4, 1]), attributes))
    assert found.names == ["a"]


def test_long_sequence_takes_no_memory():
    found = read(r.altrep("compact_intseq", r.doubles([1e12, 1, 1])))
    assert len(found.value) == 10**12
    texts = r.altrep("deferred_string", r.pairlist([(None, r.altrep(
        "compact_intseq", r.doubles([1e12, 1, 1])))]))  # fmt: skip
    assert read(texts).value[10**11] == str(10**11 + 1)


def test_deep_nesting_is_no_recursion():
    deep = r.ints(19, 1) * 20_000 + r.NULL
    found, depth = read(deep), 0
    while isinstance(found, RObject):
        found, depth = found.value[0], depth + 1
    assert depth == 20_000


# -- files ----------------------------------------------------------------------------------------

PLAIN = r.network([np.array([[0.5], [2.0], [-1.0]])])
PACKERS = {
    "plain": bytes,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "two gzip streams": lambda d: gzip.compress(d[:50], mtime=0) + gzip.compress(d[50:], mtime=0),
}


@pytest.mark.parametrize("packer", PACKERS)
def test_compressions(tmp_path, packer):
    packed = PACKERS[packer](PLAIN)
    (tmp_path / "nn.rds").write_bytes(packed)
    for source in (tmp_path / "nn.rds", str(tmp_path / "nn.rds"), packed):
        assert rds.read(source).classes == ["nn"]


@pytest.mark.parametrize("packer", PACKERS)
def test_truncated_file_is_refused(packer):
    packed = PACKERS[packer](PLAIN)
    for n in range(0, len(packed) - 1, 7):
        with pytest.raises(ModelFileError):
            rds.read(packed[:n])


@each_encoding
def test_every_truncation_is_refused(encoding, version):
    data = r.rds(r.vector([r.doubles([1.0, 2.0]), r.strings(["ab"]), r.NULL]), encoding, version)
    for n in range(len(data) - 1):
        with pytest.raises(ModelFileError):
            rds.read(data[:n])


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "it is empty"),
        (b"\x89PNG\r\n", "this is no file of R's saveRDS or save: it begins with"),
        (b"RDX1\nX\n", "version 1 of R's save format"),
        (r.rds(r.NULL, version=2).replace(b"\x00\x00\x00\x02", b"\x00\x00\x00\x09", 1),
         "version 9 of the format"),
        (r.rds(r.ints(99)), "type 99 at byte .* is unknown"),
        (r.rds(r.ints(14, 2**31 - 1)), "truncated or damaged: 17,179,869,176 bytes expected"),
        (r.rds(r.ints(19, 2**31 - 1)), "a list of 2,147,483,647 objects in 0 bytes"),
        (r.rds(r.ints(14, -2)), "a vector has length -2"),
        (r.rds(r.ints(255, 5)), "reference 5 points to nothing"),
        (r.rds(r.ints(16, 1, 14)), "type 14 among strings"),
        (r.rds(r.ints(1) + r.doubles([1.0])), "a symbol has no name"),
        (r.rds(r.ints(2 | r.TAG) + r.doubles([1.0])), "a tag is no symbol"),
        (r.rds(r.ints(14 | r.ATTRIBUTES, 0) + r.doubles([1.0])), "attributes are no list"),
        (r.rds(r.altrep("mmap_real", r.NULL)), "'mmap_real', whose data lies elsewhere"),
        (r.rds(r.altrep("compact_intseq", r.doubles([-1, 0, 1]))), "no sound bounds"),
        (r.rds(r.altrep("compact_intseq", r.doubles([np.nan, 0, 1]))), "no sound bounds"),
        (r.rds(r.ints(238) + r.NULL * 3), "alternative vector has no class"),
        (r.rds(r.ints(21, 1) + r.NULL + r.ints(1, 243, 0)), "shared cell 0 is missing"),
        (r.rds(r.ints(19, 1) * 60_000 + r.NULL), "nests objects over 50,000 deep"),
        (b"RDX3\n" + r.encoded(r.doubles([1.0])), "must hold a list of objects"),
        (b"A\n2\nfoo\n", "'foo' is no whole number"),
        (b"A\n2\n1\n1\n14\n1\n1.5.2\n", "'1.5.2' is no number"),
        (b"A\n2\n1\n1\n24\n1\nxy\n", "raw bytes must be hex digits"),
        (b"\x1f\x8b\x08garbage after the magic", "damaged: gzip says"),
        (b"BZhgarbage", "damaged: bzip2 says"),
    ],
)  # fmt: skip
def test_damaged_file_is_refused(data, message):
    with pytest.raises(ModelFileError, match=message):
        rds.read(data)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(ModelFileError, match="there is no file"):
        rds.read(tmp_path / "none.rds")
    with pytest.raises(ModelFileError, match="is no regular file"):
        rds.read(tmp_path)
    with pytest.raises(ModelFileError, match="expected the path or bytes of an R file, got int"):
        rds.read(3)


@pytest.mark.parametrize("packer", ["gzip", "bzip2", "xz"])
def test_decompression_bomb_is_refused(monkeypatch, packer):
    monkeypatch.setattr(rds, "MAX_BYTES", 2**20)
    bomb = PACKERS[packer](b"X\n" + bytes(2**25))
    tracemalloc.start()
    with pytest.raises(ModelFileError, match="unpacks to more than"):
        rds.read(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24  # the limit and a window of xz of 8 MiB


def test_file_of_very_many_objects_is_refused(monkeypatch):
    monkeypatch.setattr(rds, "MAX_OBJECTS", 1000)
    with pytest.raises(ModelFileError, match="over 1,000 objects"):
        read(r.vector([r.NULL] * 1001))
    with pytest.raises(ModelFileError, match="over 1,000 objects"):
        read(r.strings(["a"] * 1001))


def test_shared_cells_that_form_a_ring_end():
    ring = r.ints(244, 0, 6) + r.NULL + r.ints(254) + r.NULL + r.ints(243, 0)
    found = read(r.ints(21, 1) + r.integers([11]) + r.ints(1) + ring).value[0]
    assert isinstance(found, Pair)
    with pytest.raises(ModelFileError, match="contains itself"):
        list(found)


# -- mutants --------------------------------------------------------------------------------------


def hand_made():
    """Small files with every kind of object."""
    x = r.symbol("x")
    body = r.call("log", r.call("+", r.doubles([1.0]), r.call("exp", x)))
    function = r.closure(r.bytecode(body), {"a": r.doubles([1.0])}, {"b": r.integers([1])})
    objects = r.vector(
        [
            function,
            r.altrep("compact_intseq", r.doubles([9, 1, 1])),
            r.altrep("deferred_string", r.pairlist([(None, r.doubles([1.5, 2.0]))])),
            r.ints(249) + NAMES,
            r.ints(22) + r.NULL + r.NULL,
            r.ints(5 | r.TAG) + r.GLOBAL + r.UNBOUND + x,
            r.strings(["ä", None]),
        ]
    )
    w = np.array([[0.5, 1.0], [2.0, 0.0], [-1.0, r.NA]])
    v = np.array([[0.1], [1.0], [2.0]])
    options = {"repetitions": [[w, v], [w, v]], "errors": [0.2, 0.1], "act": function}
    files = [r.rds(objects, *e) for e in ENCODINGS]
    files += [r.network(None, *e, **options) for e in ENCODINGS]
    return [*files, r.workspace({"nn": r.nn(**options)})]


def fixtures(shared):
    paths = sorted((shared / "neuralnet").glob("*.[rR]*"))
    return [gzip.decompress(path.read_bytes()) for path in paths if path.suffix != ".csv"]


WORDS = [n.to_bytes(4, "big") for n in (2**32 - 1, 2**31 - 1, 0, 254, 19, 238, 21, 511)]


def mutant(data, rng):
    """Return a file with some bytes, a word or a piece changed, moved or cut."""
    data = bytearray(data)
    kind = rng.randrange(6)
    at = rng.randrange(len(data))
    if kind == 0:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 1:
        at -= (at - 2) % 4
        data[at : at + 4] = rng.choice(WORDS)
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        del data[at : at + rng.randint(1, 64)]
    elif kind == 4:
        data[at:at] = data[rng.randrange(len(data)) :][: rng.randint(1, 64)]
    else:
        data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


def survive(files, n, seed):
    """Convert mutants; return how many still made a model."""
    rng, fine = random.Random(seed), 0
    pack = [bytes, bytes, lambda d: gzip.compress(d, 1), lambda d: mutant(zlib_stream(d), rng)]
    for i in range(n):
        data = rng.choice(pack)(mutant(files[i % len(files)], rng))
        # Measuring memory takes most of the time, so not each one is measured.
        fine += converts(data, measured=i % 8 == 0)
    return fine


def converts(data, measured):
    """Tell whether a file makes a model, else it must be refused properly, and soon."""
    start, message = time.perf_counter(), None
    if measured:
        tracemalloc.start()
    try:
        neuralnet.convert(data)
    except (ModelError, SelectionError) as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]  # 0 when not measured
        tracemalloc.stop()
    assert peak < 2**24 + 100 * len(data)
    assert time.perf_counter() - start < 5
    assert message is None or 10 < len(message) < 700
    return message is None


def zlib_stream(data):
    packer = zlib.compressobj(1, wbits=31)
    return packer.compress(data) + packer.flush()


def test_mutants_of_hand_made_files_raise_only_own_errors():
    assert 0 < survive(hand_made(), 2000, seed=1) < 1500


def test_mutants_of_real_files_raise_only_own_errors(shared):
    assert 0 < survive(fixtures(shared), 2000, seed=2) < 1900
