"""Values for inner tensors: layers of any model, and the embeddings of token models."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxplain as ox
from networks import graph
from onnxplain.errors import ArgumentError, ModelError, SelectionError, UnsupportedOpError

RNG = np.random.default_rng(5)
node = helper.make_node


def normal(*shape):
    return RNG.standard_normal(shape)


# x -> c -> a (a cut of the graph) -> two branches that meet in a sum and a product
CUT_WEIGHTS = {"k": normal(3, 2, 3, 3), "v": normal(36, 4), "u": normal(36, 4), "o": normal(4, 3)}
CUT_NODES = [
    node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
    node("Relu", ["c"], ["a"]),
    node("Flatten", ["a"], ["f"]),
    node("MatMul", ["f", "v"], ["left"]),
    node("MatMul", ["f", "u"], ["right"]),
    node("Tanh", ["right"], ["t"]),
    node("Add", ["left", "t"], ["sum"]),
    node("Relu", ["sum"], ["r"]),
    node("Identity", ["r"], ["same"]),
    node("MatMul", ["same", "o"], ["y"]),
]
CUT = ox.convert(graph(CUT_NODES, {"x": (2, 3, 4)}, CUT_WEIGHTS))
X, REFS = normal(3, 2, 3, 4), normal(2, 2, 3, 4)
DOUBLE = {"dtype": "double"}

# u goes around the layer h
AROUND = ox.convert(
    graph(
        [
            node("MatMul", ["x", "w"], ["h"]),
            node("Sigmoid", ["h"], ["s"]),
            node("Mul", ["s", "u"], ["m"]),
            node("MatMul", ["m", "v"], ["y"]),
        ],
        {"x": (3,), "u": (4,)},
        {"w": normal(3, 4), "v": normal(4, 2)},
    )
)
METHODS = [
    ox.Gradient, ox.SmoothGrad, ox.IntegratedGradient, ox.ExpectedGradient, ox.LRP, ox.DeepLift,
    ox.DeepSHAP, ox.ConnectionWeights, ox.GuidedBackprop, ox.Deconvnet,
]  # fmt: skip
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
# Connection weights are not defined for the products of attention.
each_for_tokens = pytest.mark.parametrize(
    "method", [m for m in METHODS if m is not ox.ConnectionWeights], ids=lambda m: m.__name__
)


def run(method, converter=CUT, data=X, **options):
    if method is ox.ConnectionWeights:
        options = {"times_input": True, **options}
    if method in (ox.SmoothGrad, ox.IntegratedGradient, ox.ExpectedGradient):
        options = {"n": 3, **options}
    return method(converter, data, seed=1, **{**DOUBLE, **options})


def tensors(converter, data, *names):
    """Return inner tensors of a model."""
    raw = converter.raw
    from onnxplain.graph.graph import build
    from onnxplain.walk import forward

    feeds = dict(zip([i.name for i in raw.inputs], data, strict=True))
    values = forward(build(raw, optimise=False), feeds)
    return [values[name] for name in names]


# -- shapes and names ------------------------------------------------------------------------------


@each_method
@pytest.mark.parametrize(
    "layer, shapes",
    [("c", [(3, 3, 4)]), ("a", [(3, 3, 4)]), ("t", [(4,)]), (["left", "t"], [(4,), (4,)])],
)
def test_values_have_the_shape_of_the_layer(method, layer, shapes):
    found = run(method, layer=layer)
    assert [a.shape for a in found.result[0]] == [(3, *shape, 3) for shape in shapes]
    assert all(a.any() for a in found.result[0])
    table = found.get_result("data.frame")
    assert len(table) == sum(a.size for a in found.result[0])
    assert not table.value.isna().any()
    found.get_result("xarray")
    repr(found)
    found.plot()


def test_layers_are_named_as_inputs_of_their_shape():
    found = run(ox.Gradient, layer=["c", "r"], channels_first=True)
    assert [names[0] for names in found.input_names[0]] == ["C1", "H1", "W1"]
    assert found.input_names[1] == [["X1", "X2", "X3", "X4"]]
    assert found.layers == ["c", "r"]
    assert "layers: c, r" in repr(found)


def test_channels_of_the_data_do_not_move_those_of_a_layer():
    last = run(ox.LRP, data=np.moveaxis(X, 1, -1), layer="c", channels_first=False)
    np.testing.assert_array_equal(last.get_result(), run(ox.LRP, layer="c").get_result())


@each_method
def test_the_input_is_a_layer_too(method):
    found, plain = run(method, layer="x"), run(method)
    np.testing.assert_allclose(found.result[0][0], plain.result[0][0], rtol=1e-10, atol=1e-12)


@each_method
def test_rows_do_not_depend_on_chunks(method):
    whole, parts = run(method, layer="a"), run(method, layer="a", batch_size=2)
    np.testing.assert_allclose(whole.result[0][0], parts.result[0][0], rtol=1e-9, atol=1e-12)


@each_method
def test_a_dropped_name_means_the_tensor_that_replaced_it(method):
    assert CUT.graph.aliases["same"] == "r"
    np.testing.assert_array_equal(
        run(method, layer="same").get_result(), run(method, layer="r").get_result()
    )


# -- the model behind the layer is a model of its own ----------------------------------------------


def behind(name):
    """Return the part of CUT behind a tensor as a model."""
    start = [name in n.output for n in CUT_NODES].index(True) + 1
    shape = CUT.trial.shapes[name][1:]
    return ox.convert(graph(CUT_NODES[start:], {name: shape}, CUT_WEIGHTS))


@each_method
@pytest.mark.parametrize("name", ["c", "a", "f"])
def test_values_at_a_cut_are_those_of_the_model_behind_it(method, name):
    (at,) = tensors(CUT, [X], name)
    refs, ref_options = REFS, {}
    if method in (ox.IntegratedGradient, ox.DeepLift):
        ref_options = {"x_ref": refs[:1]}
    if method in (ox.ExpectedGradient, ox.DeepSHAP):
        ref_options = {"data_ref": refs}
    found = run(method, layer=name, **ref_options)
    moved = {k: tensors(CUT, [v], name)[0] for k, v in ref_options.items()}
    alone = run(method, converter=behind(name), data=at, **moved)
    np.testing.assert_allclose(found.result[0][0], alone.result[0][0], rtol=1e-8, atol=1e-11)
    if method is not ox.ConnectionWeights:
        np.testing.assert_allclose(found.decomp_goal[0], alone.decomp_goal[0], atol=1e-11)


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
@pytest.mark.parametrize("layer", ["c", "a", "f", "sum", "r", ["left", "t"], "y"])
def test_deeplift_is_complete_at_a_cut(rule, layer):
    found = run(ox.DeepLift, layer=layer, rule_name=rule, x_ref=REFS[:1])
    np.testing.assert_allclose(found.decomp_sum[0], found.decomp_goal[0], atol=1e-10)
    shap = run(ox.DeepSHAP, layer=layer, rule_name=rule, data_ref=np.tile(REFS, (3, 1, 1, 1)))
    np.testing.assert_allclose(shap.decomp_sum[0], shap.decomp_goal[0], atol=1e-10)


def test_integrated_gradients_add_up_at_a_cut():
    found = run(ox.IntegratedGradient, layer="right", n=40, quadrature="gauss_legendre")
    assert found.decomp_goal[0].any()
    whole = run(ox.IntegratedGradient, layer=["left", "right"], n=1000, x_ref=REFS[:1],
                quadrature="riemann_middle")  # fmt: skip
    np.testing.assert_allclose(whole.decomp_sum[0], whole.decomp_goal[0], atol=2e-2)


def test_integrated_gradients_leave_what_goes_around_a_layer_at_the_data():
    x, u, x_ref, u_ref = normal(4, 3), normal(4, 4), normal(1, 3), normal(1, 4)
    found = run(ox.IntegratedGradient, AROUND, [x, u], layer="h", x_ref=[x_ref, u_ref], n=30,
                quadrature="gauss_legendre")  # fmt: skip
    (h,), (h_ref,) = tensors(AROUND, [x, u], "h"), tensors(AROUND, [x_ref, u_ref], "h")
    _, v = (AROUND.raw.initializers[n] for n in "wv")
    start = (1 / (1 + np.exp(-h_ref)) * u) @ v
    np.testing.assert_allclose(found.decomp_goal[0], AROUND([x, u])[0] - start, atol=1e-6)
    np.testing.assert_allclose(found.decomp_sum[0], found.decomp_goal[0], atol=1e-10)
    assert found.result[0][0].shape == (4, 4, 2)
    assert len(found.result[0]) == 1
    assert h.shape == (4, 4)


def test_deeplift_counts_only_what_reaches_the_layer():
    x, u, x_ref, u_ref = normal(4, 3), normal(4, 4), normal(1, 3), normal(1, 4)
    refs = {"x_ref": [x_ref, u_ref]}
    at_h = run(ox.DeepLift, AROUND, [x, u], layer="h", **refs)
    inputs = run(ox.DeepLift, AROUND, [x, u], **refs)
    np.testing.assert_allclose(at_h.decomp_sum[0], inputs.result[0][0].sum(axis=1), atol=1e-10)
    both = run(ox.DeepLift, AROUND, [x, u], layer=["h", "u"], **refs)
    np.testing.assert_allclose(both.decomp_sum[0], both.decomp_goal[0], atol=1e-10)


@pytest.mark.parametrize("layer", ["x", "c", "a", "f", ["left", "t"], "sum"])
def test_lrp_without_biases_keeps_its_sum_at_every_layer(layer):
    found = run(ox.LRP, layer=layer)
    np.testing.assert_allclose(found.decomp_sum[0], found.decomp_goal[0], rtol=1e-8)


def test_the_ledger_ends_at_the_layer():
    nodes = set(run(ox.LRP, layer="a").ledger().node)
    assert not nodes & {"Conv_0", "Relu_1"}
    assert len(nodes) == len(CUT.graph.nodes) - 2


def test_only_nodes_behind_the_layer_need_a_rule():
    det = [node("Det", ["q"], ["d"]), node("Mul", ["d", "z"], ["y"])]
    model = graph(
        [node("Relu", ["x"], ["q"]), *det, node("MatMul", ["y", "w"], ["o"])],
        {"x": (2, 2), "z": (1,)},
        {"w": normal(1, 2)},
    )
    if not ox.registered_ops().count("Det"):
        pytest.skip("Det has no kernel")
    converter, data = ox.convert(model), [normal(2, 2, 2), normal(2, 1)]
    with pytest.raises(UnsupportedOpError, match="Det"):
        ox.ConnectionWeights(converter)
    assert ox.ConnectionWeights(converter, layer="y").get_result().shape == (1, 1, 2)
    assert ox.LRP(converter, data, layer="y").get_result().shape == (2, 1, 2)


def test_top_nodes_at_a_layer():
    found = run(ox.IntegratedGradient, layer="a", output_idx="top1")
    every = run(ox.IntegratedGradient, layer="a")
    best = found.output_nodes[0][:, 0]
    np.testing.assert_allclose(
        found.result[0][0][..., 0], every.result[0][0][range(3), ..., best], atol=1e-12
    )


# -- what cannot be used ---------------------------------------------------------------------------

JOINED = ox.convert(
    graph(
        [
            node("Conv", ["x", "k"], ["c"]),
            node("BatchNormalization", ["c", "one", "one", "one", "one"], ["n"]),
            node("Relu", ["n"], ["y"]),
            node("Shape", ["x"], ["shape"]),
            node("Relu", ["x"], ["aside"]),
            node("Flatten", ["aside"], ["z"]),
        ],
        {"x": (2, 3, 4)},
        {"k": normal(3, 2, 3, 3), "one": np.ones(3)},
        outputs={"y": None, "z": None},
    )
)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layer": "a_"}, "no tensor 'a_'; tensors that can be explained: a"),
        ({"layer": "k"}, "'k' cannot be explained: it is constant"),
        ({"layer": 3}, "name of a tensor or a list of names, got 3"),
        ({"layer": ["a", 1]}, "list of names"),
        ({"layer": []}, "each once"),
        ({"layer": ["r", "same"]}, "each once"),
    ],
)
@each_method
def test_wrong_layers_are_refused(method, options, message):
    with pytest.raises(SelectionError, match=message):
        run(method, **options)


@pytest.mark.parametrize(
    "layer, message",
    [
        ("c", "'c' is computed inside node .*joined"),
        ("z", r"'z' has no path to what is explained \(n\).*ignore_last_act=False"),
        ("aside", "no path"),
        ("y", "no path"),
        ("shape", "cannot be explained"),
    ],
)
def test_layers_that_are_not_there_or_lead_nowhere(layer, message):
    with pytest.raises(SelectionError, match=message):
        ox.Gradient(JOINED, X, layer=layer)


def test_layers_that_do_not_start_with_the_batch():
    model = graph(
        [
            node("Transpose", ["x"], ["t"], perm=[1, 0]),
            node("Relu", ["t"], ["r"]),
            node("Transpose", ["r"], ["y"], perm=[1, 0]),
        ],
        {"x": (3,)},
    )
    with pytest.raises(SelectionError, match="axis 0 of tensor 'r' is not the batch"):
        ox.Gradient(ox.convert(model), normal(2, 3), layer="r")


# -- token models ----------------------------------------------------------------------------------


def token_model(mask=True):
    """Embedding, masked attention weights, a mean over positions, two classes."""
    weights = {"table": normal(9, 6), "q": normal(6, 6), "w": normal(6, 5), "o": normal(5, 2)}
    nodes = [
        node("Gather", ["table", "ids"], ["emb"]),
        node("MatMul", ["emb", "q"], ["query"]),
        node("Transpose", ["emb"], ["key"], perm=[0, 2, 1]),
        node("MatMul", ["query", "key"], ["raw"]),
        node("Cast", ["mask"], ["kept"], to=TensorProto.DOUBLE),
        node("Sub", ["one", "kept"], ["dropped"]),
        node("Mul", ["dropped", "low"], ["bias"]),
        node("Unsqueeze", ["bias", "axis"], ["wide"]),
        node("Add", ["raw", "wide"], ["masked"]),
        node("Softmax", ["masked"], ["attention"], axis=-1),
        node("MatMul", ["attention", "emb"], ["mixed"]),
        node("MatMul", ["mixed", "w"], ["inner"]),
        node("Tanh", ["inner"], ["hidden"]),
        node("ReduceMean", ["hidden", "axis"], ["pooled"], keepdims=0),
        node("MatMul", ["pooled", "o"], ["y"]),
    ]
    weights |= {"one": np.array(1.0), "low": np.array(-30.0), "axis": np.array([1])}
    whole = {"ids": TensorProto.INT64, "mask": TensorProto.INT64}
    made = helper.make_graph(
        nodes,
        "tokens",
        [helper.make_tensor_value_info(n, t, ["N", 4]) for n, t in whole.items()],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["N", 2])],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    ), weights


TOKEN_PROTO, TOKEN_WEIGHTS = token_model()
TOKENS = ox.convert(TOKEN_PROTO, inputs="emb")
IDS = np.array([[1, 2, 3, 0], [4, 5, 6, 7], [8, 8, 1, 0]])
MASKS = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]])
PAD = np.zeros((1, 4), int)


def inner_model():
    """Return the part behind the embedding; the mask is a whole-number input still."""
    proto = onnx.ModelProto.FromString(TOKEN_PROTO.SerializeToString())
    del proto.graph.node[0]
    proto.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("emb", TensorProto.DOUBLE, ["N", 4, 6])
    )
    return ox.convert(proto)


def predict(emb, mask):
    return inner_model()([emb, mask])[0].astype(float)


@each_for_tokens
def test_values_of_tokens_are_those_of_their_embeddings(method):
    found = run(method, TOKENS, [IDS, MASKS])
    alone = run(method, inner_model(), [TOKEN_WEIGHTS["table"][IDS], MASKS])
    assert found.get_result().shape == (3, 4, 6, 2)
    np.testing.assert_allclose(found.result[0][0], alone.result[0][0], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.layers, [])


@each_method
def test_a_layer_of_a_token_model(method):
    found = run(method, TOKENS, [IDS, MASKS], layer="hidden")
    assert found.get_result().shape == (3, 4, 5, 2)


@each_for_tokens
def test_the_embedding_is_a_layer_too(method):
    found, plain = (run(method, TOKENS, [IDS, MASKS], layer=name) for name in ("emb", None))
    np.testing.assert_allclose(found.get_result(), plain.get_result(), atol=1e-12)


def test_token_references_are_ids_and_the_masks_stay():
    table = TOKEN_WEIGHTS["table"]
    goal = predict(table[IDS], MASKS) - predict(table[np.tile(PAD, (3, 1))], MASKS)
    for method, options in (
        (ox.DeepLift, {"x_ref": [PAD, PAD]}),
        (ox.IntegratedGradient, {"x_ref": [PAD, PAD], "n": 60, "quadrature": "gauss_legendre"}),
        (ox.DeepSHAP, {"data_ref": [PAD, PAD]}),
    ):
        found = run(method, TOKENS, [IDS, MASKS], **options)
        np.testing.assert_allclose(found.decomp_goal[0], goal, atol=1e-5)
        np.testing.assert_allclose(found.decomp_sum[0], found.decomp_goal[0], atol=1e-6)


def test_without_a_reference_it_is_zeros_at_the_embedding():
    goal = predict(TOKEN_WEIGHTS["table"][IDS], MASKS) - predict(np.zeros((3, 4, 6)), MASKS)
    found = run(ox.DeepLift, TOKENS, [IDS, MASKS])
    np.testing.assert_allclose(found.decomp_goal[0], goal, atol=1e-5)
    np.testing.assert_allclose(found.decomp_sum[0], found.decomp_goal[0], atol=1e-10)


def test_predictions_of_token_models():
    np.testing.assert_allclose(
        TOKENS([IDS, MASKS])[0], predict(TOKEN_WEIGHTS["table"][IDS], MASKS), rtol=1e-5
    )
    assert TOKENS.input_dim == [(4,), (4,)]


@each_for_tokens
def test_summed_over_the_features_of_each_token(method):
    found = run(method, TOKENS, [IDS, MASKS])
    tokens = found.summed()
    assert type(tokens) is method
    np.testing.assert_allclose(tokens.get_result(), found.get_result().sum(axis=2))
    assert tokens.input_names == [[["L1", "L2", "L3", "L4"]]]
    np.testing.assert_allclose(tokens.decomp_sum[0], found.decomp_sum[0], atol=1e-12)
    assert len(tokens.get_result("data.frame")) == 3 * 4 * 2
    tokens.plot()
    assert found.get_result().shape == (3, 4, 6, 2)


@pytest.mark.parametrize(
    "axis, first, names",
    [(0, True, "HW"), (-1, True, "CH"), (1, True, "CW"), (-1, False, "HW"), (0, False, "CW")],
)
def test_summed_axes_are_those_of_the_users_layout(axis, first, names):
    data = X if first else np.moveaxis(X, 1, -1)
    found = run(ox.Gradient, data=data, channels_first=first)
    other = found.summed(axis)
    assert [labels[0][0] for labels in other.input_names[0]] == list(names)
    expected = found.get_result().sum(axis=1 + axis % 3)
    np.testing.assert_allclose(other.get_result(), expected, atol=1e-12)
    labelled = other.get_result("xarray")
    assert len(labelled.dims) == 4
    twice = other.summed().summed()
    assert twice.get_result().shape == (3, 3)


@pytest.mark.parametrize("axis", [2, -3, 1.0, "channel", True])
def test_an_axis_that_is_not_there_is_refused(axis):
    with pytest.raises(SelectionError, match="axes"):
        run(ox.Gradient, TOKENS, [IDS, MASKS]).summed(axis)


@pytest.mark.parametrize(
    "inputs, error, message",
    [
        (None, ModelError, r"no input of a float type: ids.*inputs=\['emb'\]"),
        ("ids", SelectionError, "holds whole numbers"),
        ("embed", ModelError, "no tensor 'embed'"),
        ([], SelectionError, "at least one"),
        (["emb", "emb"], SelectionError, "twice"),
        (7, SelectionError, "list of names"),
        ("table", (SelectionError, ModelError), "table"),
        ("low", (SelectionError, ModelError), "low"),
    ],
)
def test_wrong_inputs_are_refused(inputs, error, message):
    with pytest.raises(error, match=message):
        ox.convert(TOKEN_PROTO, inputs=inputs)


def test_other_inputs_of_a_token_model_cannot_be_layers():
    with pytest.raises(SelectionError, match="cannot be explained"):
        run(ox.Gradient, TOKENS, [IDS, MASKS], layer="kept")


def test_float_inputs_can_be_left_out():
    only = ox.convert(AROUND_PROTO, inputs=["x"])
    data = [normal(2, 3), normal(2, 4)]
    found = run(ox.IntegratedGradient, only, data, n=50, quadrature="gauss_legendre")
    assert [a.shape for a in found.result[0]] == [(2, 3, 2)]
    np.testing.assert_allclose(found.decomp_sum[0], found.decomp_goal[0], atol=1e-10)


AROUND_PROTO = graph(
    [node("MatMul", ["x", "w"], ["h"]), node("Mul", ["h", "u"], ["m"]), node("Relu", ["m"], ["r"]),
     node("MatMul", ["r", "v"], ["y"])],
    {"x": (3,), "u": (4,)},
    {"w": normal(3, 4), "v": normal(4, 2)},
)  # fmt: skip


def test_a_reference_at_a_layer_needs_its_whole_numbers():
    converter = ox.convert(
        helper.make_model(
            helper.make_graph(
                [node("Gather", ["t", "ids"], ["e"]), node("Mul", ["e", "x"], ["h"]),
                 node("Relu", ["h"], ["r"]), node("MatMul", ["r", "v"], ["y"])],
                "g",
                [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 3]),
                 helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
                [numpy_helper.from_array(normal(5).astype("float32"), "t"),
                 numpy_helper.from_array(normal(3, 2).astype("float32"), "v")],
            ),
            opset_imports=[helper.make_opsetid("", 17)], ir_version=9,
        )
    )  # fmt: skip
    ids, x = np.array([[0, 1, 2]]), normal(1, 3)
    with pytest.raises(ArgumentError, match="give x_ref"):
        run(ox.IntegratedGradient, converter, [ids, x], layer="h")
    found = run(ox.IntegratedGradient, converter, [ids, x], layer="h", x_ref=[ids, 0 * x])
    assert found.get_result().shape == (1, 3, 2)
