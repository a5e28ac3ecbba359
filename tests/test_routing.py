"""Routing and resizing: every signal goes back the way its element came."""

import numpy as np
import pytest

from onnxplain import kernels
from onnxplain.arrays import negative, positive
from onnxplain.errors import DataError, ModelError, UnsupportedOpError
from onnxplain.kernels.base import Note, Pair, Record
from onnxplain.rules import (
    AlphaBeta,
    DeepLiftSetting,
    Epsilon,
    LrpSetting,
    RevealCancel,
    Simple,
)

OUTPUTS = 2  # explained at once: the leading axis of every signal


def ints(*values):
    return np.array(values, np.int64)


def floats(*values):
    return np.array(values, np.float32)


class Data:
    """An input with data of this shape, axis 0 the rows."""

    def __init__(self, *shape):
        self.shape = shape


def make(op, opset=21, n_inputs=1, active=(0,), n_outputs=1, **attributes):
    flags = tuple(i in active for i in range(n_inputs))
    cls = kernels.find(op, opset, flags)
    return cls(kernels.schema_defaults(op, opset) | attributes, flags, n_outputs)


X = Data(3, 4, 6)
IMAGE = Data(3, 4, 5, 6)
CONSTANT = np.linspace(-1, 1, 36).reshape(3, 2, 6)
MASK = np.arange(24).reshape(4, 6) % 3 == 0

# op, opset, inputs, attributes
CASES = [
    ("Identity", 21, [X], {}),
    ("Dropout", 7, [X], {"ratio": 0.5}),
    ("Dropout", 13, [X, floats(0.5), np.array(False)], {}),
    ("Flatten", 21, [IMAGE], {}),
    ("Reshape", 5, [X, ints(0, 3, -1)], {}),
    ("Reshape", 21, [X, ints(-1, 24)], {"allowzero": 1}),
    ("Transpose", 21, [IMAGE], {}),
    ("Transpose", 21, [IMAGE], {"perm": (0, 2, 3, 1)}),
    ("Squeeze", 11, [Data(3, 1, 4, 1)], {"axes": (1,)}),
    ("Squeeze", 13, [Data(3, 1, 4, 1), ints(-1, 1)], {}),
    ("Unsqueeze", 11, [X], {"axes": (1, 4)}),
    ("Unsqueeze", 13, [X, ints(-1, 1)], {}),
    ("Cast", 21, [X], {"to": 11}),
    ("CastLike", 21, [X, np.zeros(1)], {}),
    ("Concat", 21, [X, Data(3, 2, 6)], {"axis": 1}),
    ("Concat", 21, [X, Data(3, 4, 1), Data(3, 4, 2)], {"axis": -1}),
    ("Slice", 9, [X], {"starts": (1, 0), "ends": (3, 1000), "axes": (1, 2)}),
    ("Slice", 21, [X, ints(1), ints(-1), ints(2)], {}),
    ("Slice", 21, [X, ints(-1, 5), ints(-1000, 0), ints(1, 2), ints(-1, -2)], {}),
    ("Pad", 2, [X], {"pads": (0, 1, 2, 0, 0, 3), "value": 1.5}),
    ("Pad", 13, [X, ints(0, 1, -2, 0, 0, 3), np.array(2.0)], {}),
    ("Pad", 21, [X, ints(2, 3), None, ints(-1)], {}),
    ("Pad", 21, [X, ints(0, 3, 2, 0, 2, 5)], {"mode": "reflect"}),
    ("Pad", 21, [X, ints(0, 3, 2, 0, 2, 5)], {"mode": "edge"}),
    ("Pad", 21, [X, ints(0, 3, 2, 0, 2, 9)], {"mode": "wrap"}),
    ("Pad", 21, [X, ints(0, -1, 2, 0, 2, -3)], {"mode": "edge"}),
    ("Gather", 21, [X, np.array(-1)], {"axis": 1}),
    ("Gather", 21, [X, ints(0, 5, 5, -1, 2)], {"axis": 2}),
    ("Gather", 21, [X, np.array([[0, 3], [3, 3]])], {"axis": -2}),
    ("Expand", 21, [Data(3, 1, 6), ints(2, 1, 4, 1)], {}),
    ("Tile", 21, [X, ints(1, 2, 3)], {}),
    ("DepthToSpace", 10, [Data(3, 8, 2, 3)], {"blocksize": 2}),
    ("DepthToSpace", 21, [Data(3, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", 21, [Data(3, 2, 4, 6)], {"blocksize": 2}),
    ("Where", 21, [MASK, X, Data(3, 4, 6)], {}),
    ("Where", 21, [MASK, X, np.array(-7.0)], {}),
    ("Where", 21, [MASK, np.zeros((4, 6)), Data(3, 1, 6)], {}),
    ("Upsample", 7, [IMAGE], {"scales": (1.0, 1.0, 2.0, 3.0)}),
    ("Upsample", 9, [IMAGE, floats(1, 1, 2, 2)], {"mode": "linear"}),
    ("Resize", 10, [IMAGE, floats(1, 1, 0.6, 0.5)], {}),
    ("Resize", 11, [IMAGE, None, floats(1, 1, 2, 2)], {"mode": "nearest"}),
    ("Resize", 19, [IMAGE, None, None, ints(7, 4)], {"mode": "linear", "axes": (2, 3)}),
    ("Resize", 19, [IMAGE, None, floats(1.7, 0.4, 2)], {"mode": "cubic", "axes": (1, 2, 3)}),
    ("Resize", 19, [X, None, floats(1, 1, 0.5)], {"mode": "cubic", "antialias": 1}),
    (
        "Resize",
        19,
        [IMAGE, floats(-0.3, 0.1, 1.2, 0.8), None, ints(9, 8)],
        {
            "mode": "linear",
            "axes": (2, 3),
            "coordinate_transformation_mode": "tf_crop_and_resize",
            "extrapolation_value": 2.5,
        },
    ),
]
NAMES = [f"{i}-{op}-{opset}" for i, (op, opset, _, _) in enumerate(CASES)]
# These do not meet references of one row: they have rows of their own, or give up the axis of rows.
FIXED_ROWS = [
    ("Concat", 21, [X, CONSTANT], {"axis": 1}),
    ("Flatten", 21, [IMAGE], {"axis": -2}),
]
all_cases = pytest.mark.parametrize("case", CASES, ids=NAMES)
every_case = pytest.mark.parametrize(
    "case", [*CASES, *FIXED_ROWS], ids=[*NAMES, "Concat-constant", "Flatten-rows"]
)


def bind(case):
    op, opset, inputs, attributes = case
    active = [i for i, x in enumerate(inputs) if isinstance(x, Data)]
    return make(op, opset, len(inputs), active, **attributes)


def draw(case, seed, rows=None):
    """Draw data that is neither contiguous nor writeable."""
    rng = np.random.default_rng(seed)

    def one(x):
        if not isinstance(x, Data):
            return x
        shape = x.shape if rows is None else (rows, *x.shape[1:])
        values = np.asfortranarray(rng.normal(size=shape))[::-1]
        values.flags.writeable = False
        return values

    return tuple(map(one, case[2]))


def record(kernel, inputs):
    return Record(inputs, (kernel.forward(*inputs),))


def signal(shape, seed=7):
    g = np.random.default_rng(seed).normal(size=(OUTPUTS, *shape))
    g.flags.writeable = False
    return g


def dot(g, x):
    """Sum over everything but the explained outputs."""
    return (g * x).reshape(OUTPUTS, -1).sum(axis=1)


def pairing(back, differences):
    return sum(dot(b, d) for b, d in zip(back, differences, strict=True) if b is not None)


def differences(rec, ref, active):
    return [x - x0 if a else None for x, x0, a in zip(rec.inputs, ref.inputs, active, strict=True)]


@every_case
def test_gradient_is_the_transpose(case):
    kernel = bind(case)
    rec, moved = (record(kernel, draw(case, seed)) for seed in (0, 1))
    u = signal(rec.outputs[0].shape)
    back = kernel.gradient(rec, (u,))
    expected = dot(u, moved.outputs[0] - rec.outputs[0])  # all these operators are affine
    found = pairing(back, differences(moved, rec, kernel.active))
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


@every_case
def test_signals_have_the_shape_of_their_inputs(case):
    kernel = bind(case)
    rec = record(kernel, draw(case, 0))
    back = kernel.gradient(rec, (signal(rec.outputs[0].shape),))
    assert [b is not None for b in back] == list(kernel.active)
    for b, x in zip(back, rec.inputs, strict=True):
        assert b is None or b.shape == (OUTPUTS, *x.shape)


@all_cases
@pytest.mark.parametrize("rows, reference_rows", [(3, 3), (3, 1), (1, 3)])
def test_multipliers_add_up(case, rows, reference_rows):
    kernel = bind(case)
    rec, ref = record(kernel, draw(case, 0, rows)), record(kernel, draw(case, 1, reference_rows))
    dy = rec.outputs[0] - ref.outputs[0]
    m = signal(dy.shape)
    back = kernel.deeplift(rec, ref, (m,), DeepLiftSetting(), lambda i: None)
    found = pairing(back, differences(rec, ref, kernel.active))
    np.testing.assert_allclose(found, dot(m, dy), rtol=1e-11, atol=1e-11)


def parts_of(rec, ref):
    return lambda i: (
        positive(rec.inputs[i] - ref.inputs[i]),
        negative(rec.inputs[i] - ref.inputs[i]),
    )


@all_cases
@pytest.mark.parametrize("rows, reference_rows", [(3, 3), (3, 1), (1, 3)])
def test_pairs_of_multipliers_add_up(case, rows, reference_rows):
    kernel = bind(case)
    rec, ref = record(kernel, draw(case, 0, rows)), record(kernel, draw(case, 1, reference_rows))
    parts = parts_of(rec, ref)
    split = kernel.difference_parts(rec, ref, parts)
    if split is None:
        assert case[0] == "Where"
        return
    dy = rec.outputs[0] - ref.outputs[0]
    np.testing.assert_allclose(split[0] + split[1], dy, rtol=1e-11, atol=1e-11)
    m = Pair(signal(dy.shape, 7), signal(dy.shape, 8))
    back = kernel.deeplift(rec, ref, (m,), DeepLiftSetting(RevealCancel()), parts)
    found = 0
    for i, b in enumerate(back):
        if isinstance(b, Pair):
            found += sum(map(dot, (b.positive, b.negative), parts(i)))
        elif b is not None:
            found += dot(b, rec.inputs[i] - ref.inputs[i])
    expected = dot(m.positive, split[0]) + dot(m.negative, split[1])
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


@every_case
@pytest.mark.parametrize("rule", [Simple(), Epsilon(0.1), AlphaBeta(2)], ids=repr)
def test_relevance_is_kept_or_booked(case, rule):
    kernel = bind(case)
    rec = record(kernel, draw(case, 0))
    r, note = signal(rec.outputs[0].shape), Note(rows=False)
    back = kernel.relevance(rec, (r,), LrpSetting(rule), note)
    kept = sum(note.total(b) for b in back if b is not None) + sum(note.absorbed.values())
    scale = 1 if rule.name != "alpha_beta" else rule.alpha + rule.beta
    np.testing.assert_allclose(kept, scale * note.total(r), rtol=1e-8)


def test_split_sends_every_piece_back():
    kernel = make("Split", 18, n_outputs=3, num_outputs=3, axis=1)
    x = np.random.default_rng(0).normal(size=(2, 7, 3))
    pieces = kernel.forward(x)
    assert [p.shape[1] for p in pieces] == [3, 3, 1]
    assert kernel.active_outputs() == (True, True, True)
    signals = tuple(signal(p.shape, i) for i, p in enumerate(pieces))
    (back,) = kernel.gradient(Record((x,), pieces), signals)
    np.testing.assert_array_equal(back, np.concatenate(signals, axis=2))


@pytest.mark.parametrize(
    "opset, extra, attributes",
    [(11, [], {"split": (1, 4, 2)}), (13, [ints(1, 4, 2)], {})],
)
def test_split_into_given_lengths_where_a_piece_is_not_used(opset, extra, attributes):
    kernel = make("Split", opset, 1 + len(extra), n_outputs=3, axis=-2, **attributes)
    x = np.random.default_rng(0).normal(size=(2, 7, 3))
    a, b, c = kernel.forward(x, *extra)
    g = signal(b.shape)
    back = kernel.gradient(Record((x, *extra), (a, b, c)), (None, g, None))[0]
    np.testing.assert_array_equal(back[:, :, 1:5], g)
    assert not back[:, :, [0, 5, 6]].any()


def test_where_takes_the_mean_where_the_condition_differs():
    kernel = make("Where", n_inputs=3, active=(1, 2))
    a, b = np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]])
    rec = record(kernel, (np.array([[True, True]]), a, b))
    ref = record(kernel, (np.array([[True, False]]), a, b))
    m = np.ones((1, 1, 2))
    _, to_a, to_b = kernel.deeplift(rec, ref, (m,), DeepLiftSetting(), lambda i: None)
    np.testing.assert_array_equal(to_a, [[[1, 0.5]]])
    np.testing.assert_array_equal(to_b, [[[0, 0.5]]])
    assert kernel.describe("deeplift")[1] is False
    assert kernel.describe("gradient")[1] is True


def test_gather_takes_the_mean_where_the_positions_differ():
    kernel = make("Gather", n_inputs=2, axis=1)
    x = np.array([[1.0, 2.0, 3.0]])
    rec, ref = record(kernel, (x, ints(0))), record(kernel, (x, ints(2)))
    back = kernel.deeplift(rec, ref, (np.ones((1, 1, 1)),), DeepLiftSetting(), lambda i: None)
    np.testing.assert_array_equal(back[0], [[[0.5, 0, 0.5]]])
    assert kernel.difference_parts(rec, ref, parts_of(rec, ref)) is None


def test_a_shape_computed_from_the_rows_fits_differences_to_many_references():
    kernel = make("Reshape", n_inputs=2)
    rng = np.random.default_rng(0)
    rec = record(kernel, (rng.normal(size=(1, 4)), ints(1, 2, 2)))
    ref = record(kernel, (rng.normal(size=(5, 4)), ints(5, 2, 2)))
    pos, neg = kernel.difference_parts(rec, ref, parts_of(rec, ref))
    np.testing.assert_allclose(pos + neg, rec.outputs[0] - ref.outputs[0])


@pytest.mark.parametrize("to, active", [(1, True), (11, True), (10, True), (7, False), (9, False)])
def test_cast_carries_data_as_float_only(to, active):
    assert make("Cast", to=to).active_outputs() == (active,)


def test_castlike_to_an_integer_lets_nothing_through():
    kernel = make("CastLike", n_inputs=2)
    rec = record(kernel, (np.array([[1.5]]), ints(0)))
    assert kernel.gradient(rec, (np.ones((1, 1, 1)),))[0].item() == 0


def test_dropout_passes_with_a_mask_of_ones_and_refuses_training():
    x = np.ones((2, 3), np.float32)
    y, mask = make("Dropout", n_outputs=2).forward(x)
    np.testing.assert_array_equal(y, x)
    assert mask.dtype == bool
    assert mask.all()
    with pytest.raises(UnsupportedOpError, match="export the model in inference mode"):
        make("Dropout", n_inputs=3).forward(x, floats(0.5), np.array(True))


# -- resizing -----------------------------------------------------------------------------------


def matrix(kernel, w, shape):
    """Return the whole operator as a matrix (inputs x outputs)."""
    n = int(np.prod(shape[1:]))
    return kernel.apply(np.eye(n).reshape(n, *shape[1:]), w).reshape(n, -1)


@pytest.mark.parametrize(
    "attributes",
    [
        {"mode": "cubic"},
        {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
        {"mode": "linear", "antialias": 1},
        {"mode": "nearest", "nearest_mode": "ceil"},
    ],
    ids=lambda a: a["mode"],
)
@pytest.mark.parametrize("scales", [(2, 1.5), (0.6, 2), (0.5, 0.4)])
def test_resize_splits_its_weights_by_sign(attributes, scales):
    kernel = make("Resize", 19, 3, axes=(2, 3), **attributes)
    x = np.zeros((1, 1, 4, 5))
    _, w, _ = kernel.operand((x, None, floats(*scales)))
    whole = matrix(kernel, w, x.shape)
    w_pos, w_neg = kernel.split(w)
    np.testing.assert_allclose(matrix(kernel, w_pos, x.shape), positive(whole), atol=1e-12)
    found = 0 * whole if w_neg is None else matrix(kernel, w_neg, x.shape)
    np.testing.assert_allclose(found, negative(whole), atol=1e-12)
    ones = matrix(kernel, kernel.map_weights(w, np.ones_like), x.shape)
    np.testing.assert_array_equal(ones, whole != 0)
    squares = matrix(kernel, kernel.map_weights(w, np.square), x.shape)
    np.testing.assert_allclose(squares, whole**2, atol=1e-12)


def test_linear_upsampling_keeps_a_straight_line():
    kernel = make("Resize", 19, 3, mode="linear", coordinate_transformation_mode="align_corners")
    y = kernel.forward(np.arange(4.0).reshape(1, 1, 4), None, floats(1, 1, 2.5))
    np.testing.assert_allclose(y, np.linspace(0, 3, 10).reshape(1, 1, 10), atol=1e-14)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(
    "coordinates", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
)
@pytest.mark.parametrize("scales", [(2, 3), (0.7, 1.5), (2.5, 1 / 3), (0.4, 0.55)])
def test_resize_agrees_with_onnxruntime(mode, coordinates, scales):
    onnxruntime = pytest.importorskip("onnxruntime")
    import onnx
    from onnx import helper

    x = np.random.default_rng(0).normal(size=(2, 3, 9, 10)).astype(np.float32)
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    scales = floats(1, 1, *scales)
    graph = helper.make_graph(
        [helper.make_node("Resize", ["x", "", "scales"], ["y"], **attributes)],
        "resize",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(scales, "scales")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (expected,) = session.run(None, {"x": x})
    y = make("Resize", 19, 3, **attributes).forward(x, None, scales)
    # Its coordinates are single precision: off by 1e-6 of an element or so.
    np.testing.assert_allclose(y, expected, atol=1e-5)


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op, inputs, attributes, words",
    [
        ("Reshape", [np.zeros((2, 6)), ints(3, 5)], {}, "another batch size"),
        ("Squeeze", [np.zeros((2, 6)), ints(1)], {}, "not of length 1"),
        ("Expand", [np.zeros((2, 6)), ints(2, 5)], {}, r"cannot expand \(2, 6\) to \(2, 5\)"),
        ("Expand", [np.zeros(1), ints(2**40)], {}, "elements allowed"),
        ("Tile", [np.zeros(8), ints(2**40)], {}, "elements allowed"),
        ("Pad", [np.zeros(8), ints(0, 2**40)], {}, "elements allowed"),
        ("Pad", [np.zeros(8), ints(0)], {}, "expected 2"),
        ("ConstantOfShape", [ints(2**40)], {}, "elements allowed"),
        ("Range", [np.array(0), np.array(2**40), np.array(1)], {}, "elements allowed"),
        ("Resize", [np.zeros((1, 8)), None, floats(1, 2**40)], {}, "elements allowed"),
        ("Resize", [np.zeros((5, 8)), None, None, ints(1, 8)], {}, "another batch size"),
        ("Resize", [np.zeros((5, 8))], {}, "neither scales nor sizes"),
        ("Split", [np.zeros((2, 6)), ints(1, 2)], {"axis": 1}, "cannot split"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_impossible_shapes_are_refused(op, inputs, attributes, words):
    with pytest.raises(ModelError, match=words):
        make(op, 19, len(inputs), **attributes).forward(*inputs)


@pytest.mark.parametrize("index", [-4, 3])
def test_gather_refuses_positions_outside(index):
    with pytest.raises(DataError, match="axis of length 3"):
        make("Gather", n_inputs=2).forward(np.zeros((3, 2)), ints(index))


# -- constants ----------------------------------------------------------------------------------


def test_steps_say_that_signals_end_there():
    assert make("Floor").describe("gradient")[1] is True
    assert make("Floor").describe("lrp")[1] is False
    assert make("Floor", active=()).describe("lrp")[1] is True
    assert make("Shape").describe("lrp")[1] is True
    assert make("Greater", n_inputs=2).active_outputs() == (False,)


@pytest.mark.parametrize(
    "attributes, expected",
    [
        ({"value": floats(1, 2)}, floats(1, 2)),
        ({"value_float": 1.5}, np.float32(1.5)),
        ({"value_floats": (1.5, 2.5)}, floats(1.5, 2.5)),
        ({"value_int": 3}, np.int64(3)),
        ({"value_ints": (3, 4)}, ints(3, 4)),
    ],
)
def test_constants_are_written_in_several_ways(attributes, expected):
    y = make("Constant", n_inputs=0, active=(), **attributes).forward()
    assert y.dtype == expected.dtype
    np.testing.assert_array_equal(y, expected)


def test_generated_floats_follow_the_type_of_the_computation():
    kernel = make("ConstantOfShape", active=()).with_dtype(np.dtype(np.float64))
    assert kernel.forward(ints(2)).dtype == np.float64
    counting = make("ConstantOfShape", active=(), value=ints(1))
    assert counting.with_dtype(np.dtype(np.float64)).forward(ints(2)).dtype == np.int64
    cast = make("Cast", to=1).with_dtype(np.dtype(np.float64))
    assert cast.forward(ints(1)).dtype == np.float64
