"""Sequences and optionals are resolved when a graph is built: what is left are tensors."""

import numpy as np
import onnx.parser
import pytest

import onnxplain as ox
from onnxplain.errors import ModelError, UnsupportedOpError
from onnxplain.graph.graph import build
from onnxplain.graph.load import read_model
from onnxplain.graph.sequences import OPS
from onnxplain.walk import forward

X = np.arange(24.0).reshape(2, 3, 4)
TAIL = "float[N, 3, 4] x) => (float y)"


def graph(body, head=TAIL, weights="", opset=18):
    text = f'<ir_version: 9, opset_import: ["": {opset}]> g ({head} {weights} {{{body}}}'
    model = onnx.parser.parse_model(text)
    if model.graph.output[0].type.tensor_type.elem_type:
        model.graph.output[0].type.tensor_type.ClearField("shape")
    return build(read_model(model), optimise=False)


def run(body, **kwargs):
    built = graph(body, **kwargs)
    assert not OPS & {node.op for node in built.nodes}
    return forward(built, {"x": X.astype("f4")})["y"]


ZERO = "<int64 i = {0}, int64 j = {1}, int64 two = {2}, int64 last = {-1}, int64[2] sizes = {1, 2}>"
CUTS = {
    "SplitToSequence <axis = 1> (x, sizes)": [X[:, :1], X[:, 1:]],
    "SplitToSequence <axis = 2> (x, two)": [X[:, :, :2], X[:, :, 2:]],
    "SplitToSequence <axis = -2> (x, two)": [X[:, :2], X[:, 2:]],
    "SplitToSequence <axis = 1> (x)": [X[:, :1], X[:, 1:2], X[:, 2:]],
    "SplitToSequence <axis = 1, keepdims = 0> (x)": [X[:, 0], X[:, 1], X[:, 2]],
    "SplitToSequence <axis = 0, keepdims = 0> (x)": [X[0], X[1]],
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name, position", [("i", 0), ("j", 1), ("last", -1)])
@pytest.mark.parametrize("before", ["", "x = Identity (z) "])
def test_a_piece_of_a_split_is_a_slice(cut, name, position, before):
    body = f"s = {cut} y = SequenceAt (s, {name})"
    if before:  # then the length of the axis is not told by the file
        body = "z = Identity (x) " + body.replace("(x", "(z")
    if before and "two" in cut and position < 0:
        with pytest.raises(UnsupportedOpError, match="depends on the data"):
            run(body, weights=ZERO)
        return
    np.testing.assert_array_equal(run(body, weights=ZERO), CUTS[cut][position])


@pytest.mark.parametrize(
    "cut, axis, length", [(" <axis = 1> (z)", 1, 3), (" <axis = 2> (z, two)", 2, 2)]
)
def test_the_length_of_a_split_is_computed(cut, axis, length):
    body = f"z = Identity (x) s = SplitToSequence{cut} y = SequenceLength (s)"
    found = run(body, weights=ZERO, head="float[N, 3, 4] x) => (int64 y)")
    assert (found.dtype, found.shape, found.item()) == (np.int64, (), length)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("new_axis", [0, 1])
def test_joining_is_concat_or_stack(axis, new_axis):
    body = (
        "a = Neg (x) b = Relu (x) s = SequenceConstruct (a, b, x) "
        f"y = ConcatFromSequence <axis = {axis}, new_axis = {new_axis}> (s)"
    )
    parts = [-X, X, X]
    expected = np.stack(parts, axis) if new_axis else np.concatenate(parts, axis)
    np.testing.assert_array_equal(run(body), expected)


def test_joining_all_pieces_of_a_split_is_the_tensor():
    body = (
        "z = Neg (x) s = SplitToSequence <axis = 2> (z, two) y = ConcatFromSequence <axis = 2> (s)"
    )
    np.testing.assert_array_equal(run(body, weights=ZERO), -X)


def test_inserting_and_erasing_change_the_list():
    body = (
        "a = Neg (x) e = SequenceEmpty () s1 = SequenceInsert (e, x) s2 = SequenceInsert (s1, a, i)"
        " s3 = SequenceInsert (s2, a) s4 = SequenceErase (s3, i) s5 = SequenceErase (s4)"
        " n = SequenceLength (s5) k = Sub (n, j) y = SequenceAt (s5, k)"
    )
    np.testing.assert_array_equal(run(body, weights=ZERO), X)


def test_sequences_in_the_branch_that_is_taken_are_resolved():
    branch = "g () => (float z) {s = SequenceConstruct (x) z = SequenceAt (s, i)}"
    body = f"o = Optional (x) h = OptionalHasElement (o) y = If (h) <then_branch = {branch}, "
    body += "else_branch = e () => (float z) {z = Identity (x)}>"
    np.testing.assert_array_equal(run(body, weights=ZERO), X)


@pytest.mark.parametrize("held", ["x", "s"])
def test_an_optional_is_what_it_holds(held):
    body = (
        f"s = SequenceConstruct (x) o = Optional ({held}) h = OptionalHasElement (o)"
        " g = OptionalGetElement (o) "
    )
    body += "t = SequenceAt (g, i) " if held == "s" else "t = Identity (g) "
    body += "y = Where (h, t, x)"
    np.testing.assert_array_equal(run(body, weights=ZERO), X)


def test_an_explanation_goes_through_sequences():
    body = (
        "s = SplitToSequence <axis = 1, keepdims = 0> (x)"
        " a = SequenceAt (s, i) b = SequenceAt (s, last)"
        " t = SequenceConstruct (a, b) c = ConcatFromSequence <axis = 1> (t)"
        " r = Relu (c) y = ReduceSum <keepdims = 1> (r, j)"
    )
    weights = ZERO.replace("int64 j = {1}", "int64[1] j = {1}")
    head = "float[N, 3, 4] x) => (float[N, 1] y)"
    text = f'<ir_version: 9, opset_import: ["": 18]> g ({head} {weights} {{{body}}}'
    converter = ox.convert(onnx.parser.parse_model(text), dtype="double")
    found = ox.Gradient(converter, X - 5.5, dtype="double").get_result("array")[..., 0]
    expected = np.zeros_like(X)
    expected[:, [0, 2]] = X[:, [0, 2]] > 5.5
    np.testing.assert_array_equal(found, expected)
    lift = ox.DeepLift(converter, X - 5.5, dtype="double")
    np.testing.assert_allclose(lift.decomp_sum[0], lift.decomp_goal[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "body, error, words",
    [
        ("s = SequenceConstruct (x) y = SequenceAt (s, two)", ModelError, "position 2 of 1"),
        ("s = SequenceEmpty () y = ConcatFromSequence <axis = 0> (s)", ModelError, "no tensors"),
        ("o = Optional <type = float[N]> () y = OptionalGetElement (o)", ModelError, "empty"),
        (
            "s = SequenceConstruct (x) k = ReduceMax <keepdims = 0> (x) c = Cast <to = 7> (k)"
            " y = SequenceAt (s, c)",
            UnsupportedOpError,
            "a position depends on the data",
        ),
        (
            "s = SequenceConstruct (x) h = Identity (s) y = SequenceAt (h, i)",
            UnsupportedOpError,
            "do not go through",
        ),
        (
            "s = SplitToSequence (x) y = ConcatFromSequence <axis = 0, new_axis = 1> (s)",
            UnsupportedOpError,
            "how many tensors",
        ),
    ],
)
def test_what_cannot_be_known_is_refused_by_name(body, error, words):
    with pytest.raises(error, match=words):
        graph(body, weights=ZERO)


def test_a_sequence_as_output_is_refused_by_name():
    with pytest.raises(UnsupportedOpError, match="output 'y' is a sequence"):
        graph("y = SequenceConstruct (x)", head="float[N, 3, 4] x) => (seq(float[N, 3, 4]) y)")


def test_long_sequences_are_refused():
    weights = "<int64[3] shape = {20001, 1, 1}>"
    with pytest.raises(ModelError, match="more than 10000"):
        graph(
            "w = ConstantOfShape (shape) k = Shape (w) z = Expand (x, k) n = ConstantOfShape (c)"
            " s = SplitToSequence (z, n) y = ConcatFromSequence <axis = 0> (s)",
            weights=weights.replace(">", ", int64[1] c = {20001}>"),
        )
