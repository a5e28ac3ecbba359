"""Results as arrays, tables, labelled data and text, mostly on hand-made method objects."""

import doctest
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import onnxplain as ox
from onnxplain import results
from onnxplain.demo import MODEL, digits
from onnxplain.errors import ArgumentError, SelectionError, ShapeError

PREFIXES = {1: "X", 2: "CL", 3: "CHW", 4: "CDHW"}


def names(dim):
    """Default labels of an input shape: X1, ... or C1, ..., H1, ..., W1, ..."""
    return [[f"{p}{k + 1}" for k in range(n)] for p, n in zip(PREFIXES[len(dim)], dim, strict=True)]


def fake_method(
    input_dims=((3,),),
    output_dims=((2,),),
    output_idx=None,
    batch=2,
    unconnected=(),
    channels_first=True,
    seed=0,
    **fields,
):
    """A stand-in with random results; `unconnected` holds pairs (place in result, input)."""
    rng = np.random.default_rng(seed)
    output_idx = output_idx or [list(range(np.prod(dim))) for dim in output_dims]
    selected = [nodes for nodes in output_idx if nodes is not None]

    def values(s, i, nodes):
        if (s, i) in unconnected:
            return None
        dim = input_dims[i]
        if not channels_first and len(dim) > 1:
            dim = (*dim[1:], dim[0])
        return rng.normal(size=(batch, *dim, len(nodes)))

    method = SimpleNamespace(
        method_name="LRP",
        value_name="Relevance",
        channels_first=channels_first,
        input_names=[names(dim) for dim in input_dims],
        output_names=[
            [[f"Y{k + 1}" for k in range(dim[0])], *names(dim)[1:]] for dim in output_dims
        ],
        output_idx=output_idx,
        result=[
            [values(s, i, nodes) for i in range(len(input_dims))]
            for s, nodes in enumerate(selected)
        ],
        preds=[rng.normal(size=(batch, *dim)) for dim in output_dims],
        decomp_goal=[rng.normal(size=(batch, len(nodes))) for nodes in selected],
        is_global=False,
    )
    method.decomp_sum = results.decomp_sum(method)
    vars(method).update(fields)
    return method


def slow_rows(method):
    """The documented table, written as the loops that it describes."""
    rows = []
    for s, j in enumerate(k for k, nodes in enumerate(method.output_idx) if nodes is not None):
        shape = [len(axis) for axis in method.output_names[j]]
        for i, axes in enumerate(method.input_names):
            array = method.result[s][i]
            if array is not None and not method.channels_first and len(axes) > 1:
                array = np.moveaxis(array, -2, 1)
            for k, node in enumerate(method.output_idx[j]):
                place = np.unravel_index(node, shape)
                label = ":".join(a[p] for a, p in zip(method.output_names[j], place, strict=True))
                # The last axis of the input runs slowest, its channel fastest.
                for backwards in np.ndindex(*[len(axis) for axis in axes][::-1]):
                    cell = backwards[::-1]
                    found = [axis[c] for axis, c in zip(axes, cell, strict=True)]
                    channel = found.pop(0) if len(axes) > 1 else np.nan
                    found += [np.nan] * 2
                    for b in range(len(method.preds[j])):
                        rows.append(
                            {
                                "data": f"data_{b + 1}",
                                "model_input": f"Input_{i + 1}",
                                "model_output": f"Output_{j + 1}",
                                "feature": found[0],
                                "feature_2": found[1],
                                "channel": channel,
                                "output_node": label,
                                "value": np.nan if array is None else array[(b, *cell, k)],
                                "pred": method.preds[j][(b, *place)],
                                "decomp_sum": method.decomp_sum[s][b, k],
                                "decomp_goal": method.decomp_goal[s][b, k],
                                "input_dimension": len(axes),
                            }
                        )
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- data.frame


def test_frame_of_a_table_is_as_documented():
    method = fake_method(
        input_dims=((2,),),
        output_idx=[[1, 0]],
        result=[[np.arange(8.0).reshape(2, 2, 2)]],
        preds=[np.array([[0.1, 0.9], [0.2, 0.8]])],
        decomp_goal=[np.array([[5.0, 6.0], [7.0, 8.0]])],
        decomp_sum=[np.array([[2.0, 4.0], [10.0, 12.0]])],
    )
    frame = results.to_frame(method)
    expected = pd.DataFrame(
        {
            "data": ["data_1", "data_2"] * 4,
            "model_input": ["Input_1"] * 8,
            "model_output": ["Output_1"] * 8,
            "feature": ["X1", "X1", "X2", "X2"] * 2,
            "output_node": ["Y2"] * 4 + ["Y1"] * 4,
            "value": [0.0, 4, 2, 6, 1, 5, 3, 7],
            "pred": [0.9, 0.8, 0.9, 0.8, 0.1, 0.2, 0.1, 0.2],
            "decomp_sum": [2.0, 10, 2, 10, 4, 12, 4, 12],
            "decomp_goal": [5.0, 7, 5, 7, 6, 8, 6, 8],
            "input_dimension": [1] * 8,
        }
    )
    assert list(frame.columns) == list(expected.columns)
    for column in expected:
        assert frame[column].tolist() == expected[column].tolist(), column
    assert isinstance(frame["feature"].dtype, pd.CategoricalDtype)
    assert list(frame["output_node"].cat.categories) == ["Y2", "Y1"]


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize(
    ("inputs", "outputs", "output_idx", "unconnected"),
    [
        ([(3,)], [(2,)], [[0, 1]], []),
        ([(2, 3)], [(3,)], [[2, 0]], []),
        ([(2, 3, 4)], [(2,)], [[1]], []),
        ([(2, 3, 4), (5,)], [(2,), (3,)], [[0], [2, 1]], []),
        ([(2, 3, 4), (5,), (2, 2)], [(2,), (3,)], [[0], [2, 1]], [(0, 1), (1, 0)]),
        ([(3,), (2,)], [(2,), (3,), (2,)], [None, [2], [1, 0]], [(1, 1)]),
        ([(2, 3)], [(2, 3)], [[4, 0]], []),
    ],
)
def test_frame_equals_the_documented_loops(
    inputs, outputs, output_idx, unconnected, channels_first
):
    method = fake_method(
        inputs, outputs, output_idx, batch=3, unconnected=unconnected, channels_first=channels_first
    )
    frame, expected = results.to_frame(method), slow_rows(method)
    largest = max(len(dim) for dim in inputs)
    kept = expected.drop(columns=["feature_2"] * (largest < 3) + ["channel"] * (largest < 2))
    assert list(frame.columns) == list(kept.columns)
    pd.testing.assert_frame_equal(
        frame.astype(dict.fromkeys(kept.select_dtypes(exclude="number"), object)),
        kept.astype(dict.fromkeys(kept.select_dtypes(exclude="number"), object)),
        check_dtype=False,
        rtol=0,
        atol=1e-15,
    )


def test_frame_of_an_input_with_four_axes_continues_the_feature_columns():
    method = fake_method(input_dims=((2, 3, 2, 2),), batch=1)
    frame = results.to_frame(method)
    assert list(frame.columns[3:7]) == ["feature", "feature_2", "feature_3", "channel"]
    row = frame.query("channel=='C2' and feature=='D3' and feature_2=='H1' and feature_3=='W2'")
    value = row.query("output_node == 'Y1'")["value"].item()
    assert value == method.result[0][0][0, 1, 2, 0, 1, 0]


def test_frame_without_predictions_or_goal_holds_nan():
    frame = results.to_frame(fake_method(preds=None, decomp_goal=None))
    assert frame["pred"].isna().all()
    assert frame["decomp_goal"].isna().all()
    assert frame["decomp_sum"].notna().all()


def test_decomp_sum_adds_all_inputs_and_skips_unconnected_ones():
    method = fake_method(((2, 3), (4,), (2,)), unconnected=[(0, 2)])
    expected = method.result[0][0].sum((1, 2)) + method.result[0][1].sum(1)
    np.testing.assert_allclose(results.decomp_sum(method)[0], expected, atol=1e-14)


def test_frame_with_repeated_labels_keeps_one_level_for_them():
    method = fake_method(input_names=[[["a", "b", "a"]]])
    frame = results.to_frame(method)
    assert list(frame["feature"].cat.categories) == ["a", "b"]
    assert frame["feature"].tolist()[:6] == ["a", "a", "b", "b", "a", "a"]


def test_frame_of_a_million_rows_is_fast():
    method = fake_method(input_dims=((50, 50, 4),), output_dims=((10,),), batch=10)
    start = time.perf_counter()
    frame = results.to_frame(method)
    assert len(frame) == 1_000_000
    assert time.perf_counter() - start < 5  # about 0.1 s on an idle machine


def test_results_and_names_can_be_edited_before_they_are_asked_for():
    method = fake_method(input_dims=((4,),))
    one_hot = method.result[0][0][:, 2:].sum(axis=1, keepdims=True)
    method.result[0][0] = np.concatenate([method.result[0][0][:, :2], one_hot], axis=1)
    method.input_names[0][0][2:] = ["colour"]
    frame = results.to_frame(method)
    assert list(frame["feature"].cat.categories) == ["X1", "X2", "colour"]
    np.testing.assert_array_equal(results.to_array(method), method.result[0][0])


@pytest.mark.parametrize("form", ["array", "data.frame", "xarray"])
def test_result_that_does_not_fit_its_names_is_an_error(form):
    method = fake_method(input_dims=((4,),))
    method.input_names[0][0].pop()
    with pytest.raises(ShapeError, match=r"\(2, 4, 2\).*change result and names together"):
        results.get_result(method, form)


# ---------------------------------------------------------------- arrays


def test_array_of_one_input_and_output_is_plain_and_a_copy():
    method = fake_method()
    array = results.to_array(method)
    np.testing.assert_array_equal(array, method.result[0][0])
    array[:] = 0
    assert not np.array_equal(array, method.result[0][0])


def test_array_of_several_inputs_is_a_dict():
    method = fake_method(((3,), (2, 4)))
    found = results.to_array(method)
    assert list(found) == ["Input_1", "Input_2"]
    np.testing.assert_array_equal(found["Input_2"], method.result[0][1])


def test_array_of_several_outputs_is_numbered_by_the_model():
    method = fake_method(((3,), (2,)), ((2,), (3,), (4,)), [None, [1], [0, 3]])
    found = results.to_array(method)
    assert list(found) == ["Output_2", "Output_3"]
    np.testing.assert_array_equal(found["Output_3"]["Input_1"], method.result[1][0])


def test_array_of_one_selected_output_of_several_is_plain():
    method = fake_method(((3,),), ((2,), (3,)), [None, [1]])
    assert results.to_array(method).shape == (2, 3, 1)


@pytest.mark.parametrize(("channels_first", "shape"), [(True, (2, 5, 3, 4)), (False, (2, 3, 4, 5))])
def test_array_of_an_unconnected_pair_is_nan_in_the_users_layout(channels_first, shape):
    method = fake_method(((2,), (5, 3, 4)), ((2,),), [[0]], 2, [(0, 1)], channels_first)
    found = results.to_array(method)["Input_2"]
    assert found.shape == (*shape, 1)
    assert np.isnan(found).all()


def test_array_keeps_channels_last():
    method = fake_method(((5, 3, 4),), channels_first=False)
    assert results.to_array(method).shape == (2, 3, 4, 5, 2)
    np.testing.assert_array_equal(results.to_array(method), method.result[0][0])


@pytest.mark.oracle
def test_tensor_holds_the_same_numbers():
    torch = pytest.importorskip("torch")
    method = fake_method(((3,), (2,)))
    for form in ("torch.tensor", "torch_tensor"):
        found = results.get_result(method, form)["Input_2"]
        assert isinstance(found, torch.Tensor)
        np.testing.assert_array_equal(found.numpy(), method.result[0][1])


@pytest.mark.parametrize("form", ["frame", None, 3, ["array"]])
def test_unknown_type_names_the_allowed_ones(form):
    with pytest.raises(ArgumentError, match=r"'array', 'data.frame', 'xarray', 'torch.tensor'"):
        results.get_result(fake_method(), form)


# ---------------------------------------------------------------- xarray


@pytest.mark.parametrize(
    ("dim", "channels_first", "axes"),
    [
        ((3,), True, ("feature",)),
        ((2, 3), True, ("channel", "length")),
        ((2, 3), False, ("length", "channel")),
        ((2, 3, 4), True, ("channel", "height", "width")),
        ((2, 3, 4), False, ("height", "width", "channel")),
        ((2, 3, 4, 2), True, ("channel", "feature", "feature_2", "feature_3")),
    ],
)
def test_xarray_has_named_axes_and_labels(dim, channels_first, axes):
    method = fake_method((dim,), channels_first=channels_first)
    array = results.to_xarray(method)
    assert array.dims == ("batch", *axes, "output_node")
    np.testing.assert_array_equal(array.values, method.result[0][0])
    if "channel" in axes:
        assert array["channel"].values.tolist() == ["C1", "C2"]
    picked = array.sel(batch="data_2", output_node="Y2")
    assert picked["pred"].item() == method.preds[0][1, 1]
    assert picked["decomp_goal"].item() == method.decomp_goal[0][1, 1]
    assert array.attrs["method"] == "LRP"


def test_xarray_of_several_inputs_and_outputs_is_a_tree():
    method = fake_method(((3,), (2, 4)), ((2,), (3,)), unconnected=[(1, 0)])
    tree = results.to_xarray(method)
    np.testing.assert_array_equal(tree["Output_2/Input_2"]["value"].values, method.result[1][1])
    assert np.isnan(tree["Output_2/Input_1"]["value"].values).all()
    assert results.to_xarray(fake_method(((3,), (2, 4))))["Input_2"]["value"].dims[1] == "channel"


def test_xarray_survives_a_netcdf_file(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("scipy")
    array = results.to_xarray(fake_method(((2, 3),)))
    array.to_netcdf(tmp_path / "result.nc", engine="scipy")
    with xarray.open_dataarray(tmp_path / "result.nc", engine="scipy") as found:
        xarray.testing.assert_equal(found.load(), array)


def test_a_tree_survives_a_netcdf_file(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    pytest.importorskip("h5py")
    tree = results.to_xarray(fake_method(((2, 3), (4,)), ((2,), (3,)), unconnected=[(0, 1)]))
    tree.to_netcdf(tmp_path / "result.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "result.nc", engine="h5netcdf") as found:
        for path in ("Output_1/Input_2", "Output_2/Input_1"):
            xarray.testing.assert_equal(found[path].to_dataset().load(), tree[path].to_dataset())


def test_an_array_and_a_tree_survive_a_zarr_store(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("zarr")
    array = results.to_xarray(fake_method(((2, 3),)))
    tree = results.to_xarray(fake_method(((2, 3), (4,)), ((2,), (3,)), unconnected=[(0, 1)]))
    for data, name in ((array, "array"), (tree, "tree")):
        data.to_zarr(tmp_path / name, zarr_format=2, consolidated=False)
    options = {"engine": "zarr", "consolidated": False}
    with xarray.open_dataarray(tmp_path / "array", **options) as found:
        xarray.testing.assert_equal(found.load(), array)
    with xarray.open_datatree(tmp_path / "tree", **options) as found:
        for path in ("Output_1/Input_2", "Output_2/Input_1"):
            xarray.testing.assert_equal(found[path].to_dataset().load(), tree[path].to_dataset())


# ---------------------------------------------------------------- results of methods that ran

X, DIGITS = digits()[0][:3], ox.convert(MODEL)


def test_nodes_that_differ_from_row_to_row_are_told():
    method = ox.LRP(DIGITS, X, output_idx="top2")
    frame = method.get_result("data.frame")
    assert list(frame.columns[6:9]) == ["output_node", "node", "value"]
    first = frame[frame["output_node"] == "top1"].groupby("data", observed=True)["node"].first()
    expected = [DIGITS.output_names[0][0][k] for k in method.preds[0].argmax(axis=1)]
    assert first.tolist() == expected
    labelled = method.get_result("xarray")
    assert labelled["node"].sel(output_node="top1").values.tolist() == expected
    assert "node" not in ox.LRP(DIGITS, X).get_result("data.frame")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"output_idx": [3]},
        {"output_idx": "top3"},
        {"output_idx": "predicted"},
        {"output_weights": {"even": np.arange(10) % 2 == 0, "odd": np.arange(10) % 2}},
        {"layer": "pool1_out"},
        {"layer": "features"},
        {"channels_first": False},
    ],
)
def test_sums_of_the_frame_are_the_sums_of_the_method(options):
    x = X if options.get("channels_first", True) else np.moveaxis(X, 1, -1)
    method = ox.DeepLift(DIGITS, x, dtype="double", **options)
    frame = method.get_result("data.frame")
    by_node = frame.groupby(["output_node", "data"], observed=True)
    sums, told = by_node["value"].sum(), by_node["decomp_sum"].first()
    np.testing.assert_allclose(sums, told, atol=1e-12)
    np.testing.assert_allclose(told, by_node["decomp_goal"].first(), atol=1e-10)
    np.testing.assert_allclose(told, method.decomp_sum[0].T.ravel(), atol=1e-12)


def test_connection_weights_have_a_frame_without_predictions():
    frame = ox.ConnectionWeights(DIGITS, output_idx=[2]).get_result("data.frame")
    assert len(frame) == 64
    assert frame["pred"].isna().all()
    assert frame["value"].notna().all()


@pytest.mark.parametrize("form", ["array", "data.frame", "xarray"])
def test_names_can_be_set_as_a_user_writes_them(form):
    method = ox.ConnectionWeights(DIGITS, layer="features", output_idx=[1])
    method.input_names = [f"f{k}" for k in range(96)]
    method.output_names = list("abcdefghij")
    assert method.input_names == [[[f"f{k}" for k in range(96)]]]
    found = method.get_result(form)
    if form == "data.frame":
        assert found["feature"].cat.categories[5] == "f5"
        assert found["output_node"].unique().tolist() == ["b"]
    method.input_names = ["a", "b"]
    with pytest.raises(ShapeError, match="change result and names together"):
        method.get_result(form)


@pytest.mark.parametrize("method", [ox.LRP(DIGITS, X), ox.ConnectionWeights(DIGITS)])
def test_output_names_of_another_number_are_told(method):
    method.output_names = ["a", "b"]
    with pytest.raises(ShapeError, match=r"output_names\[0\] describe \(2,\)"):
        method.get_result("data.frame")


@pytest.mark.parametrize("names", ["abc", 3, [[["a"]], [["b"]]], [1, 2]])
def test_names_that_are_no_lists_of_texts_are_refused(names):
    with pytest.raises(SelectionError, match="input_names"):
        ox.ConnectionWeights(DIGITS).input_names = names


PAGE = Path(__file__).parents[1] / "docs" / "results.md"


def test_the_page_of_results_prints_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the page writes files
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    outcome = doctest.testfile(str(PAGE), module_relative=False, optionflags=flags)
    assert outcome.attempted > 20
    assert outcome.failed == 0


# ---------------------------------------------------------------- labels and text


def test_output_labels_join_the_axes():
    method = fake_method(output_dims=((2, 3),), output_idx=[[4, 0]])
    assert results.output_labels(method, 0) == ["Y2:L2", "Y1:L1"]


def test_describe_shows_fields_selection_and_range():
    method = fake_method(
        ((2,), (2,)),
        ((2,), (2,), (3,)),
        [[0], None, [2, 1]],
        unconnected=[(1, 1)],
        ignore_last_act=True,
        dtype="float32",
        _describe=lambda: ["rule_name: 'simple'"],
    )
    method.result[0][0] = np.array([[1.0, 2.5], [np.nan, -3.25]])[..., None]
    lines = results.describe(method).splitlines()
    assert "Method LRP (onnxplain)" in lines[0]
    assert lines[1:15] == [
        "Fields (method-specific):",
        "  - rule_name: 'simple'",
        "Fields (other):",
        "  - output_idx:",
        "    - Output_1: 0 (-> 'Y1')",
        "    - Output_2: not explained",
        "    - Output_3: 2, 1 (-> 'Y3', 'Y2')",
        "  - ignore_last_act: True",
        "  - channels_first: True",
        "  - dtype: float32",
        "Result (result):",
        "  - Output_1, Input_1: Shape: (2, 2, 1)",
        "    Range: min: -3.25, median: 1, max: 2.5",
        "    Number of NaN values: 1",
    ]
    assert lines[-2] == "  - Output_3, Input_2: not connected to output layer 3"


def test_describe_shortens_long_selections():
    text = results.describe(fake_method(output_dims=((30,),)))
    assert "output_idx: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... (30 in all)" in text
