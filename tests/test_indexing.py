"""What is picked, placed, ordered or read between pixels: beyond the cases all kernels share."""

import re

import numpy as np
import onnx.parser
import pytest
import scipy.signal

import onnxplain as ox
from onnxplain.errors import DataError, ModelError, UnsupportedOpError
from onnxplain.graph.graph import Node, make_kernel
from onnxplain.kernels import indexing
from onnxplain.kernels.base import Record
from onnxplain.kernels.routing import scatter_add
from onnxplain.rules import DeepLiftSetting, LrpSetting
from onnxplain.testing import check_kernel

RNG = np.random.default_rng(3)
X = RNG.normal(size=(3, 4))
IMAGE = RNG.normal(size=(2, 3, 5, 6))


def ints(*values):
    return np.array(values, np.int64)


def bound(op, inputs, active=(0,), opset=None, n_outputs=1, **attributes):
    flags = tuple(i in active for i in range(len(inputs)))
    names = tuple("" if v is None else f"i{i}" for i, v in enumerate(inputs))
    outputs = tuple(f"o{i}" for i in range(n_outputs))
    opset = opset or onnx.defs.onnx_opset_version()
    return make_kernel(Node(op, op, names, outputs, attributes, opset), flags)


def forward(op, *inputs, **attributes):
    return bound(op, inputs, **attributes).forward(*inputs)


def lift(kernel, inputs, reference, m=None):
    """Return multipliers times differences, per input, and what they should add up to."""
    rec, ref = (Record(tuple(v), (kernel.forward(*v),)) for v in (inputs, reference))
    dy = rec.outputs[0] - ref.outputs[0]
    m = np.ones((1, *dy.shape)) if m is None else m
    out = kernel.deeplift(rec, ref, (m,), DeepLiftSetting(), lambda i: None)
    parts = [
        None if s is None else s * (a - b) for s, a, b in zip(out, inputs, reference, strict=True)
    ]
    return parts, (m * dy).sum()


# -- sums by place --------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [1, 3, 40])
@pytest.mark.parametrize("axis", [1, 2])
def test_slices_are_summed_by_place(places, axis):
    g = RNG.normal(size=(2, 50, 50))
    index = RNG.integers(0, places, 50)
    expected = np.zeros((2, places + 1, 50) if axis == 1 else (2, 50, places + 1))
    np.add.at(expected, (*(slice(None),) * axis, index), g)
    np.testing.assert_allclose(scatter_add(g, index, axis, places + 1), expected, atol=1e-12)


def test_nothing_is_summed_to_zeros():
    found = scatter_add(np.ones((2, 0)), np.zeros(0, int), 1, 3)
    np.testing.assert_array_equal(found, np.zeros((2, 3)))


# -- positions that depend on the data ------------------------------------------------------------


def test_where_positions_differ_both_ways_back_count_half():
    kernel = bound("GatherElements", (X, ints([0])), axis=1)
    x, x0 = X[:1], X[1:2]
    rec = Record((x, ints([0])), (x[:, :1],))
    ref = Record((x0, ints([2])), (x0[:, 2:3],))
    (back, _) = kernel.deeplift(rec, ref, (np.ones((1, 1, 1)),), DeepLiftSetting(), None)
    np.testing.assert_array_equal(back, [[[0.5, 0, 0.5, 0]]])


@pytest.mark.parametrize(
    "op, attributes", [("GatherElements", {"axis": 1}), ("GatherND", {"batch_dims": 1})]
)
def test_a_reference_of_one_row_has_positions_of_its_own(op, attributes):
    rows = ints([0], [1], [3])
    kernel = bound(op, (X, rows), **attributes)
    rec = Record((X, rows), (kernel.forward(X, rows),))
    ref = Record((X[:1], rows[:1]), (kernel.forward(X[:1], rows[:1]),))
    g = np.ones((1, *rec.outputs[0].shape))
    back = kernel.deeplift(rec, ref, (g,), DeepLiftSetting(), None)[0]
    np.testing.assert_array_equal(back[0], [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0, 0, 0.5]])


def test_rows_placed_by_number_are_those_of_the_longer_run():
    def inputs(x):
        n = len(x)
        places = np.stack([np.arange(n), np.full(n, 2)], axis=1)
        return x, places, 2 * x[:, 0]

    kernel = bound("ScatterND", inputs(X), active=(0, 2))
    for a, b in ((X, X[:1] + 1), (X[:1] + 1, X)):
        parts, expected = lift(kernel, inputs(a), inputs(b))
        assert abs(parts[0].sum() + parts[2].sum() - expected) < 1e-12


def test_a_different_number_of_elements_is_refused():
    kernel = bound("Compress", (X, np.ones(4, bool)), axis=1)
    rec, ref = (
        Record((X, np.array(c)), (X[:, np.array(c)],))
        for c in ([True] * 4, [True, False, True, False])
    )
    with pytest.raises(DataError, match=r"\(3, 4\) elements for the input, \(3, 2\) for the ref"):
        kernel.deeplift(rec, ref, (np.ones((1, 3, 4)),), DeepLiftSetting(), None)


# -- the largest ----------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("block", [1, 2**24])
def test_each_rank_is_credited_exactly_and_never_more_than_it_changed(monkeypatch, largest, block):
    monkeypatch.setattr(indexing, "_BLOCK", block)
    rng = np.random.default_rng(0)
    for k in (1, 3, 7):
        kernel = bound("TopK", (X, ints(k)), largest=largest)
        x, x0 = np.round(rng.normal(size=(2, 20, 7)), 1)
        for rank in range(k):
            m = np.zeros((1, 20, k))
            m[..., rank] = 1
            rec, ref = (Record((v, ints(k)), (kernel.forward(v, ints(k)),)) for v in (x, x0))
            out = kernel.deeplift(rec, ref, (m,), DeepLiftSetting(), None)[0][0]
            dy = (rec.outputs[0] - ref.outputs[0])[:, rank]
            np.testing.assert_allclose((out * (x - x0)).sum(axis=1), dy, atol=1e-12)
            assert out.min() >= 0
            assert out.max() <= 1 + 1e-12
            assert ((out != 0).sum(axis=1) <= 1).all()


def test_equal_elements_are_ordered_by_index():
    values, places = forward("TopK", np.array([[1.0, 3, 3, 1, 3]]), ints(4), n_outputs=2)
    np.testing.assert_array_equal(values, [[3, 3, 3, 1]])
    np.testing.assert_array_equal(places, [[1, 2, 4, 0]])


def test_unsigned_numbers_have_a_largest():
    x = np.array([0, 255, 7], np.uint8)
    np.testing.assert_array_equal(forward("TopK", x, ints(3)), [255, 7, 0])


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op, inputs, attributes, error, words",
    [
        ("GatherElements", (X, ints([4])), {"axis": 1}, DataError, "positions 4 to 4 of an axis"),
        ("GatherElements", (X, ints([0], [0], [0], [0])), {"axis": 1}, ModelError, "do not fit"),
        ("GatherND", (X, ints([3, 0])), {}, DataError, "GatherND wants positions 3 to 3"),
        ("GatherND", (X, ints([0, 0, 0])), {}, ModelError, "GatherND of indices"),
        ("ScatterElements", (X, ints([-5]), X[:1, :1]), {"axis": 1}, DataError, "positions -5"),
        ("ScatterElements", (X, ints([0, 1]), X[:1, :1]), {"axis": 1}, ModelError, "updates"),
        ("ScatterElements", (X, ints([0]), X[:1, :1]), {"reduction": "most"}, ModelError, "most"),
        ("ScatterND", (X, ints([0, 0]), X), {}, ModelError, "ScatterND of updates"),
        ("ScatterND", (X, ints([[0, 9]]), X[0, :1]), {}, ModelError, "ScatterND of updates"),
        ("TensorScatter", (X, X, ints(0, 0, 1)), {"axis": 1}, DataError, "positions 0 to 1"),
        ("TopK", (X, ints(5)), {}, ModelError, "TopK asks for 5 of 4 elements"),
        ("Compress", (X, np.array([False] * 4 + [True])), {"axis": 1}, ModelError, "condition"),
        ("ReverseSequence", (X, ints(5, 1, 1)), {"batch_axis": 0, "time_axis": 1}, DataError, "5"),
        ("OneHot", (ints(0), ints(2**40), X[0, :2]), {}, ModelError, "elements allowed"),
        ("CenterCropPad", (X, ints(2**20, 2**20)), {}, ModelError, "elements allowed"),
        ("MaxUnpool", (X[None], ints([[99] * 4] * 3)), {"kernel_shape": (2,)}, DataError, "row"),
        ("Col2Im", (X[None], ints(4), ints(3)), {}, ModelError, "columns"),
        ("LpPool", (X[None],), {"kernel_shape": (2,), "p": 10**9}, UnsupportedOpError, "1 to 64"),
        ("GridSample", (IMAGE, IMAGE), {}, ModelError, "does not fit an image"),
        ("RoiAlign", (IMAGE, np.ones((1, 4)), ints(2)), {}, DataError, "images 2 to 2 of 2"),
        (
            "RoiAlign",
            (IMAGE, np.ones((1, 4)), ints(0)),
            {"sampling_ratio": 10**8},
            ModelError,
            "100,000,000 points per cell",
        ),
        ("AffineGrid", (X[None], ints(1, 1, 2**20, 2**20)), {}, ModelError, "elements allowed"),
        ("DFT", (X[..., None], ints(2**40)[0]), {}, ModelError, "elements allowed"),
        ("DFT", (X,), {}, ModelError, "length is 1 or 2"),
        ("STFT", (X[..., None], ints(0)[0], None, ints(2)[0]), {}, ModelError, "one every 0"),
        ("HannWindow", (ints(2**40),), {}, ModelError, "elements allowed"),
    ],
)
def test_what_cannot_be_computed_is_refused(op, inputs, attributes, error, words):
    with pytest.raises(error, match=re.escape(words)):
        forward(op, *inputs, **attributes)


@pytest.mark.parametrize("reduction", ["mul", "min", "max"])
@pytest.mark.parametrize("op", ["ScatterElements", "ScatterND"])
def test_other_reductions_are_computed_but_not_explained(op, reduction):
    inputs = (
        (X, ints([0, 1]), X[:1, :2]) if op == "ScatterElements" else (X, ints([0, 1]), X[0, :1])
    )
    kernel = bound(op, inputs, reduction=reduction)
    rec = Record(inputs, (kernel.forward(*inputs),))
    assert kernel.describe("gradient")[1] is False
    for walk in (
        lambda g: kernel.gradient(rec, g),
        lambda g: kernel.relevance(rec, g, LrpSetting(), None),
        lambda g: kernel.deeplift(rec, rec, g, DeepLiftSetting(), None),
    ):
        with pytest.raises(UnsupportedOpError, match=f"{op} with reduction='{reduction}'"):
            walk((np.ones((1, 3, 4)),))


def test_the_largest_reading_of_a_region_is_computed_but_not_explained():
    inputs = (IMAGE, np.array([[0.0, 0, 4, 4]]), ints(0))
    kernel = bound("RoiAlign", inputs, mode="max")
    rec = Record(inputs, (kernel.forward(*inputs),))
    with pytest.raises(UnsupportedOpError, match="mode='max'"):
        kernel.gradient(rec, (np.ones((1, *rec.outputs[0].shape)),))


# -- forward only ---------------------------------------------------------------------------------


def suppressed(boxes, scores, most, overlap, least):
    """Return the boxes kept, one by one."""
    kept = []
    for n, c in np.ndindex(scores.shape[:2]):
        chosen = []
        for i in np.argsort(-scores[n, c], kind="stable"):
            apart = all(iou(boxes[n, i], boxes[n, j]) <= overlap for j in chosen)
            if scores[n, c, i] > least and apart and len(chosen) < most:
                chosen.append(i)
        kept += [[n, c, i] for i in chosen]
    return np.array(kept)


def iou(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    both = np.prod(np.maximum(high - low, 0))
    return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


@pytest.mark.parametrize("most, overlap, least", [(5, 0.3, 0.2), (40, 0.6, -1), (2, 0.0, 0.5)])
def test_boxes_are_suppressed_as_one_by_one(most, overlap, least):
    corners = RNG.uniform(size=(2, 30, 2))
    boxes = np.concatenate([corners, corners + RNG.uniform(0.1, 0.6, size=(2, 30, 2))], axis=-1)
    scores = RNG.uniform(size=(2, 3, 30))
    given = (ints(most), np.array([overlap]), np.array([least]))
    found = forward("NonMaxSuppression", boxes, scores, *given)
    np.testing.assert_array_equal(found, suppressed(boxes, scores, most, overlap, least))


def test_no_boxes_are_kept_by_default():
    found = forward("NonMaxSuppression", np.ones((1, 3, 4)), np.ones((1, 1, 3)))
    assert (found.shape, found.dtype) == ((0, 3), np.int64)


def test_positions_of_nonzero_elements():
    x = np.array([[0.0, 2], [3, 0]])
    np.testing.assert_array_equal(forward("NonZero", x), [[0, 1], [1, 0]])
    assert forward("NonZero", np.zeros((2, 3, 1))).shape == (3, 0)


def test_different_values_in_order_of_appearance():
    x = np.array([2.0, 1, 1, 3, 4, 3])
    y, first, inverse, counts = forward("Unique", x, sorted=0, n_outputs=4)
    np.testing.assert_array_equal(y, [2, 1, 3, 4])
    np.testing.assert_array_equal(first, [0, 1, 3, 4])
    np.testing.assert_array_equal(y[inverse], x)
    np.testing.assert_array_equal(counts, [1, 2, 2, 1])


@pytest.mark.parametrize("op, name", [("HannWindow", "hann"), ("BlackmanWindow", "blackman")])
@pytest.mark.parametrize("periodic", [0, 1])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_windows_are_those_of_scipy(op, name, periodic, n):
    if (n, periodic) == (1, 0):  # scipy says 1, ONNX's formula 0
        return
    found = forward(op, ints(n)[0], periodic=periodic, output_datatype=11)
    expected = scipy.signal.get_window(name, n, fftbins=bool(periodic))
    if n > 1:
        np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found.shape == (n,)


# -- whole models ---------------------------------------------------------------------------------


def converted(body, head, weights=""):
    text = f'<ir_version: 9, opset_import: ["": 18]> g ({head} {weights} {{{body}}}'
    return ox.convert(onnx.parser.parse_model(text), dtype="double")


def test_the_best_scores_of_a_detector_are_explained():
    converter = converted(
        "r = Relu (x) v, i = TopK <axis = 2> (r, k) y = ReduceSum <keepdims = 0> (v, a)",
        "float[N, 3, 6] x) => (float[N, 3] y)",
        "<int64[1] k = {2}, int64[1] a = {2}>",
    )
    x = RNG.normal(size=(5, 3, 6))
    found = ox.DeepLift(converter, x, dtype="double")
    np.testing.assert_allclose(found.decomp_sum[0], found.decomp_goal[0], atol=1e-12)
    gradient = ox.Gradient(converter, x, dtype="double").get_result("array")
    two = np.sort(np.maximum(x, 0), axis=-1)[..., -2:]
    np.testing.assert_array_equal(
        (gradient != 0).sum(axis=(1, 2)), np.where(two > 0, 1, 0).sum(axis=-1)
    )


def test_a_reference_for_which_the_model_chooses_other_elements_is_refused():
    converter = converted(
        "c = Greater (x, zero) f = Reshape (c, minus) k = Compress <axis = 1> (x, f) r = Tanh (k)"
        " y = ReduceSum <keepdims = 1> (r, one)",
        "float[1, 4] x) => (float[1, 1] y)",
        "<float zero = {0}, int64[1] minus = {-1}, int64[1] one = {1}>",
    )
    x = np.array([[1.0, -1, 2, 3]])
    np.testing.assert_allclose(converter(x)[0], np.tanh(x[:, [0, 2, 3]]).sum(keepdims=True))
    with pytest.raises(DataError, match=r"'k' has shape \(1, 3\) for the data and \(1, 1\)"):
        ox.DeepLift(converter, x, x_ref=-x - 1.5 * (x > 2), dtype="double")
    found = ox.DeepLift(converter, x, x_ref=np.abs(x) * [[2, -1, 2, 3]], dtype="double")
    np.testing.assert_allclose(found.decomp_sum[0], found.decomp_goal[0], atol=1e-12)


def test_slices_written_into_zeros_by_row_number_are_explained():
    """As exporters write `y[:, 1] = relu(x)`: the places are made from the number of rows."""
    converter = converted(
        "r = Relu (x) s = Shape <start = 0, end = 1> (x) n = Squeeze (s) i = Range (zero, n, one)"
        " rows = Unsqueeze (i, minus) c = ConstantOfShape <value = int64[1] {1}> (s)"
        " columns = Unsqueeze (c, minus) places = Concat <axis = 1> (rows, columns)"
        " full = Concat <axis = 0> (s, shape) data = ConstantOfShape (full)"
        " z = ScatterND (data, places, r) f = Flatten (z) y = MatMul (f, w)",
        "float[N, 4] x) => (float[N, 1] y)",
        "<int64 zero = {0}, int64 one = {1}, int64[1] minus = {-1}, int64[2] shape = {2, 4},"
        " float[8, 1] w = {1, 1, 1, 1, 1, -2, 3, -4}>",
    )
    x = RNG.normal(size=(3, 4))
    weights = np.array([1.0, -2, 3, -4])
    found = ox.Gradient(converter, x, dtype="double").get_result("array")[..., 0]
    np.testing.assert_array_equal(found, weights * (x > 0))
    for data, reference in ((x, x[:1] + 1), (x[:1], -x[1:2])):
        lifted = ox.DeepLift(converter, data, x_ref=reference, dtype="double")
        np.testing.assert_allclose(lifted.decomp_sum[0], lifted.decomp_goal[0], atol=1e-12)


def test_a_constant_grid_of_one_row_serves_all_rows():
    grid = RNG.uniform(-1, 1, size=(1, 3, 2, 2))
    found = forward("GridSample", IMAGE, grid)
    np.testing.assert_array_equal(found, forward("GridSample", IMAGE, np.tile(grid, (2, 1, 1, 1))))
    assert "gradient" in check_kernel("GridSample", [IMAGE, grid])


def test_points_that_are_no_numbers_lie_outside():
    grid = np.full((2, 1, 3, 2), [[np.nan, 0.0], [np.inf, 0], [1e30, 0]])
    np.testing.assert_array_equal(forward("GridSample", IMAGE, grid), np.zeros((2, 3, 1, 3)))


def test_a_convolution_with_a_state_is_explained():
    text = """<ir_version: 13, opset_import: ["": 27]>
        g (float[N, 2, 6] x) => (float[N, 2, 6] y, float[N, 2, 2] s)
        <float[2, 1, 3] w = {1, -2, 3, 0.5, 1, -1}, float[2] b = {0.1, 0.2}>
        {y, s = CausalConvWithState <activation = "silu"> (x, w, b)}"""
    converter = ox.convert(onnx.parser.parse_model(text), dtype="double")
    x = RNG.normal(size=(3, 2, 6))
    y, state = (v for v in converter(x))
    w, b = np.array([[1.0, -2, 3], [0.5, 1, -1]]), np.array([[0.1], [0.2]])
    padded = np.pad(x, [(0, 0), (0, 0), (2, 0)])
    z = sum(padded[..., i : i + 6] * w[:, i, None] for i in range(3)) + b
    np.testing.assert_allclose(y, z / (1 + np.exp(-z)), atol=1e-6)
    np.testing.assert_allclose(state, x[..., -2:], atol=1e-12)
    found = ox.DeepLift(converter, x, output_idx=[[3, 8], None], dtype="double")
    np.testing.assert_allclose(found.decomp_sum[0], found.decomp_goal[0], atol=1e-12)


# -- against PyTorch ------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [True, False])
def test_grid_sample_is_that_of_torch(mode, padding, align):
    torch = pytest.importorskip("torch")
    # Cubic readings beyond the border: ONNX moves the point to the border, PyTorch the pixels.
    reach = 0.7 if mode == "bicubic" else 1.6
    grid = RNG.uniform(-reach, reach, size=(2, 4, 3, 2))
    x, p = (torch.tensor(v, requires_grad=True) for v in (IMAGE, grid))
    expected = torch.nn.functional.grid_sample(x, p, mode, padding, align)
    g = RNG.normal(size=expected.shape)
    expected.backward(torch.tensor(g))
    given = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    attributes = {"mode": given, "padding_mode": padding, "align_corners": int(align)}
    kernel = bound("GridSample", (IMAGE, grid), (0, 1), **attributes)
    rec = Record((IMAGE, grid), (kernel.forward(IMAGE, grid),))
    np.testing.assert_allclose(rec.outputs[0], expected.detach(), atol=1e-12)
    to_x, to_grid = kernel.gradient(rec, (g[None],))
    np.testing.assert_allclose(to_x[0], x.grad, atol=1e-12)
    np.testing.assert_allclose(to_grid[0], p.grad, atol=1e-10)


@pytest.mark.oracle
@pytest.mark.parametrize("onesided", [0, 1])
def test_stft_is_that_of_torch(onesided):
    torch = pytest.importorskip("torch")
    x, window = RNG.normal(size=(2, 30)), RNG.uniform(size=8)
    signal = torch.tensor(x, requires_grad=True)
    found = torch.stft(
        signal,
        8,
        3,
        window=torch.tensor(window),
        center=False,
        onesided=bool(onesided),
        return_complex=True,
    )
    expected = torch.view_as_real(found).swapaxes(1, 2)
    inputs = (x[..., None], ints(3)[0], window, None)
    kernel = bound("STFT", inputs, onesided=onesided)
    rec = Record(inputs, (kernel.forward(*inputs),))
    np.testing.assert_allclose(rec.outputs[0], expected.detach(), atol=1e-12)
    g = RNG.normal(size=expected.shape)
    expected.backward(torch.tensor(g))
    np.testing.assert_allclose(
        kernel.gradient(rec, (g[None],))[0][0, ..., 0], signal.grad, atol=1e-10
    )


@pytest.mark.oracle
def test_scattered_sums_have_the_gradients_of_torch():
    torch = pytest.importorskip("torch")
    index = RNG.integers(0, 4, size=(3, 9))
    updates = RNG.normal(size=(3, 9))
    x, u = (torch.tensor(v, requires_grad=True) for v in (X, updates))
    expected = x.scatter_add(1, torch.tensor(index), u)
    g = RNG.normal(size=(3, 4))
    expected.backward(torch.tensor(g))
    inputs = (X, index, updates)
    kernel = bound("ScatterElements", inputs, (0, 2), axis=1, reduction="add")
    rec = Record(inputs, (kernel.forward(*inputs),))
    np.testing.assert_allclose(rec.outputs[0], expected.detach(), atol=1e-12)
    to_x, _, to_u = kernel.gradient(rec, (g[None],))
    np.testing.assert_allclose(to_x[0], x.grad, atol=1e-12)
    np.testing.assert_allclose(to_u[0], u.grad, atol=1e-12)
