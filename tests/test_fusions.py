"""Layers that onnxruntime fuses are the layers they were made of."""

import numpy as np
import pytest
from onnx import helper, numpy_helper

import onnxplain as ox
from onnxplain.errors import ModelError, UnsupportedOpError
from onnxplain.graph.graph import build
from onnxplain.graph.load import read_model
from onnxplain.walk import forward

MS = "com.microsoft"
ROWS, TOKENS, HEADS, WIDTH = 2, 5, 3, 12
RNG = np.random.default_rng(11)


def draw(*shape):
    return RNG.normal(size=shape).astype("f")


def one(op, inputs, outputs=("y",), data=(0,), domain=MS, opset=17, **attributes):
    """Return a model of one node, some of its inputs data and the rest weights, and its feeds."""
    names = ["" if v is None else f"i{i}" for i, v in enumerate(inputs)]
    given = {n: np.asarray(v) for n, v in zip(names, inputs, strict=True) if n}
    feeds = {names[i]: given.pop(names[i]) for i in data}
    weights = given
    node = helper.make_node(op, names, outputs, name="fused", domain=domain, **attributes)
    whole = {"counts": 6}
    model = helper.make_model(
        helper.make_graph(
            [node],
            "one",
            [_info(n, v) for n, v in feeds.items()],
            [helper.make_tensor_value_info(o, whole.get(o, 1), None) for o in outputs if o],
            [numpy_helper.from_array(v, n) for n, v in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(MS, 1)],
        ir_version=9,
    )
    return model, feeds


def _info(name, value):
    element = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(name, element, ["N", *value.shape[1:]])


X, IMAGE = draw(ROWS, TOKENS, WIDTH), draw(ROWS, 3, 6, 6)
Q, K, V = X, draw(ROWS, 7, WIDTH), draw(ROWS, 7, WIDTH)
QKV = draw(WIDTH, 3 * WIDTH), draw(3 * WIDTH)
GAMMA, BETA, BIAS = draw(3, WIDTH)
IDS, KINDS = RNG.integers(0, 9, (ROWS, TOKENS), "i"), RNG.integers(0, 2, (ROWS, TOKENS), "i")
EMBEDDINGS = draw(9, WIDTH), draw(6, WIDTH), draw(2, WIDTH), GAMMA, BETA
LENGTHS = np.array([3, 5], "i")
KEPT, KEYS = ((np.arange(n) < LENGTHS[:, None]).astype("i") for n in (TOKENS, 7))
SQUARE = np.repeat(KEPT[:, None], TOKENS, 1)
CONV = [IMAGE, draw(4, 3, 3, 3), draw(4)]
SAME = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
PAST = draw(ROWS, HEADS, 2, 4)
ANGLES = draw(9, 2)
TURNS = np.cos(ANGLES), np.sin(ANGLES)
PLACES = np.tile(np.arange(TOKENS), (ROWS, 1))
GQA = {"num_heads": 4, "kv_num_heads": 2}
BIG = draw(ROWS, TOKENS, 64), draw(ROWS, TOKENS, 32), draw(ROWS, TOKENS, 32)
SEEN = np.full(ROWS, TOKENS - 1, "i"), np.array(TOKENS, "i")
BIG_TURNS = np.cos(draw(9, 8)), np.sin(draw(9, 8))
LAST = tuple(v[:, :1] for v in BIG)
CACHE = draw(ROWS, 2, 2, 16)
H = {"num_heads": HEADS}

CASES = {
    "Gelu": ("Gelu", [X], {}),
    "FastGelu": ("FastGelu", [X], {}),
    "FastGelu with bias": ("FastGelu", [X, BIAS], {}),
    "BiasGelu": ("BiasGelu", [X, BIAS], {}),
    "QuickGelu": ("QuickGelu", [X], {"alpha": 1.3}),
    "FusedConv": ("FusedConv", CONV, {"activation": "Relu", **SAME}),
    "FusedConv leaky": (
        "FusedConv",
        CONV,
        {"activation": "LeakyRelu", "activation_params": [0.2], **SAME},
    ),
    "FusedConv clip": (
        "FusedConv",
        CONV,
        {"activation": "Clip", "activation_params": [-0.5, 0.5], **SAME},
    ),
    "FusedGemm": (
        "FusedGemm",
        [draw(3, 4), draw(5, 4), draw(5)],
        {"transB": 1, "activation": "LeakyRelu", "activation_alpha": 0.3},
    ),
    "FusedMatMul": ("FusedMatMul", [X, K], {"data": (0, 1), "transB": 1, "alpha": 0.5}),
    "FusedMatMul left": ("FusedMatMul", [X, draw(ROWS, 5, 7)], {"data": (0, 1), "transA": 1}),
    "TransposeMatMul": ("TransposeMatMul", [X, K], {"data": (0, 1), "transB": 1, "alpha": 1.0}),
    "SkipLayerNormalization": (
        "SkipLayerNormalization",
        [X, X[::-1], GAMMA, BETA, BIAS],
        {"data": (0, 1), "epsilon": 1e-5, "outputs": ("y", "", "", "sum")},
    ),
    "SkipLayerNormalization without": (
        "SkipLayerNormalization",
        [X, X[::-1], GAMMA],
        {"data": (0, 1)},
    ),
    "SkipSimplifiedLayerNormalization": (
        "SkipSimplifiedLayerNormalization",
        [X, X[::-1], GAMMA, BIAS],
        {"data": (0, 1), "outputs": ("y", "", "", "sum")},
    ),
    "SimplifiedLayerNormalization": (
        "SimplifiedLayerNormalization",
        [X, GAMMA],
        {"domain": "", "axis": -1, "epsilon": 1e-5},
    ),
    "LayerNormalization": (
        "LayerNormalization",
        [X, GAMMA, BETA],
        {"domain": "", "opset": 14, "axis": -1, "epsilon": 1e-5},
    ),
    "EmbedLayerNormalization": (
        "EmbedLayerNormalization",
        [IDS, KINDS, *EMBEDDINGS, KEPT],
        {"data": (0, 1, 7), "outputs": ("y", "counts", "sum")},
    ),
    "EmbedLayerNormalization without": (
        "EmbedLayerNormalization",
        [IDS, None, *EMBEDDINGS[:2], None, GAMMA, BETA],
        {"outputs": ("y", "counts")},
    ),
    "Attention": ("Attention", [X, *QKV], H),
    "Attention causal": ("Attention", [X, *QKV], {**H, "unidirectional": 1}),
    "Attention scale": ("Attention", [X, *QKV], {**H, "scale": 0.3}),
    "Attention sizes": (
        "Attention",
        [X, draw(WIDTH, 30), draw(30)],
        {**H, "qkv_hidden_sizes": [12, 12, 6]},
    ),
    "Attention mask": ("Attention", [X, *QKV, KEPT], {**H, "data": (0, 3)}),
    "Attention causal mask": (
        "Attention",
        [X, *QKV, KEPT],
        {**H, "data": (0, 3), "unidirectional": 1},
    ),
    "Attention lengths": ("Attention", [X, *QKV, LENGTHS], {**H, "data": (0, 3)}),
    "Attention spans": ("Attention", [X, *QKV, np.array([3, 5, 1, 0], "i")], H),
    "Attention square mask": ("Attention", [X, *QKV, SQUARE], {**H, "data": (0, 3)}),
    "Attention bias": ("Attention", [X, *QKV, None, None, draw(1, HEADS, TOKENS, TOKENS)], H),
    "MultiHeadAttention": ("MultiHeadAttention", [Q, K, V], {**H, "data": (0, 1, 2)}),
    "MultiHeadAttention biases": (
        "MultiHeadAttention",
        [Q, K, V, QKV[1]],
        {**H, "data": (0, 1, 2)},
    ),
    "MultiHeadAttention mask": (
        "MultiHeadAttention",
        [Q, K, V, None, KEYS],
        {**H, "data": (0, 1, 2, 4)},
    ),
    "MultiHeadAttention lengths": (
        "MultiHeadAttention",
        [Q, K, V, None, LENGTHS],
        {**H, "data": (0, 1, 2, 4)},
    ),
    "MultiHeadAttention added": (
        "MultiHeadAttention",
        [Q, K, V, None, None, draw(ROWS, HEADS, TOKENS, 7)],
        {**H, "data": (0, 1, 2, 5)},
    ),
    "MultiHeadAttention heads": (
        "MultiHeadAttention",
        [Q, draw(ROWS, HEADS, 7, 4), draw(ROWS, HEADS, 7, 4)],
        {**H, "data": (0, 1, 2)},
    ),
    "MultiHeadAttention causal": (
        "MultiHeadAttention",
        [Q, X[::-1], X],
        {**H, "data": (0, 1, 2), "unidirectional": 1},
    ),
    "MultiHeadAttention cache": (
        "MultiHeadAttention",
        [Q, K, V, None, None, None, PAST, PAST],
        {**H, "data": (0, 1, 2, 6, 7), "outputs": ("y", "keys", "values")},
    ),
    "RotaryEmbedding": ("RotaryEmbedding", [X, PLACES, *TURNS], {"data": (0, 1)}),
    "RotaryEmbedding start": ("RotaryEmbedding", [X, np.array([2]), *TURNS], {}),
    "RotaryEmbedding pairs": (
        "RotaryEmbedding",
        [draw(ROWS, HEADS, TOKENS, 4), PLACES, *TURNS],
        {"data": (0, 1), "interleaved": 1},
    ),
    "RotaryEmbedding part": (
        "RotaryEmbedding",
        [draw(ROWS, TOKENS, 24), PLACES, *TURNS],
        {"data": (0, 1), "num_heads": 3, "rotary_embedding_dim": 4},
    ),
    "GroupQueryAttention": (
        "GroupQueryAttention",
        [*BIG, None, None, *SEEN],
        {**GQA, "data": (0, 1, 2, 5), "outputs": ("y", "keys", "values")},
    ),
    "GroupQueryAttention packed": (
        "GroupQueryAttention",
        [draw(ROWS, TOKENS, 128), None, None, None, None, *SEEN],
        {**GQA, "data": (0, 5), "outputs": ("y", "keys", "values")},
    ),
    "GroupQueryAttention rotary": (
        "GroupQueryAttention",
        [*BIG, None, None, *SEEN, *BIG_TURNS],
        {**GQA, "data": (0, 1, 2, 5), "do_rotary": 1, "outputs": ("y", "keys", "values")},
    ),
    "GroupQueryAttention window": (
        "GroupQueryAttention",
        [*BIG, None, None, *SEEN],
        {
            **GQA,
            "data": (0, 1, 2, 5),
            "local_window_size": 2,
            "softcap": 0.5,
            "outputs": ("y", "k", "v"),
        },
    ),
    "GroupQueryAttention cache": (
        "GroupQueryAttention",
        [*LAST, CACHE, CACHE, np.full(ROWS, 2, "i"), np.array(3, "i"), *BIG_TURNS],
        {
            **GQA,
            "data": (0, 1, 2, 3, 4, 5),
            "do_rotary": 1,
            "outputs": ("y", "keys", "values"),
        },
    ),
}


def case(name):
    op, inputs, more = CASES[name]
    return one(op, inputs, **more)


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_computes_the_same(name):
    runtime = pytest.importorskip("onnxruntime")
    model, feeds = case(name)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    wanted = session.run(None, feeds)
    for optimise in (False, True):
        found = forward(build(read_model(model), optimise=optimise), feeds)
        for info, value in zip(model.graph.output, wanted, strict=True):
            assert found[info.name].dtype == value.dtype
            np.testing.assert_allclose(found[info.name], value, rtol=1e-4, atol=1e-5)


NO_ROWS = ("EmbedLayerNormalization", "Attention spans")  # no float data; two numbers per row
EXPLAINED = [name for name in CASES if not name.startswith(NO_ROWS)]


@pytest.mark.parametrize("name", EXPLAINED)
def test_a_fused_layer_is_explained_exactly(name):
    model, feeds = case(name)
    converter = ox.convert(model, outputs=["y"])
    x = list(feeds.values())
    ref = [draw(1, *v.shape[1:]) if v.dtype == np.float32 else v[:1] for v in x]
    options = {"output_idx": [0, 4], "dtype": "double", "ignore_last_act": False}
    deeplift = ox.DeepLift(converter, x, x_ref=ref, **options)
    goal = deeplift.decomp_goal[0]
    np.testing.assert_allclose(deeplift.decomp_sum[0], goal, rtol=0, atol=1e-10)
    books = ox.LRP(converter, x, rule_name="epsilon", **options).ledger()
    assert books.gap.max() < 1e-10
    assert converter.coverage("lrp").joined.str.contains("fused").any() or len(books) == 1


# -- formulas, where no onnxruntime is at hand ----------------------------------------------------


def run(op, inputs, **more):
    model, feeds = one(op, inputs, **more)
    return forward(build(read_model(model)), feeds)


def normalised(x, centred=True, epsilon=1e-12):
    c = x - x.mean(-1, keepdims=True) * centred
    return c / np.sqrt((c * c).mean(-1, keepdims=True) + epsilon)


def test_a_skip_is_added_before_it_is_normalised():
    found = run(
        "SkipLayerNormalization",
        [X, X[::-1], GAMMA, BETA, BIAS],
        data=(0, 1),
        outputs=("y", "", "", "sum"),
    )
    total = X + X[::-1] + BIAS
    np.testing.assert_allclose(found["sum"], total, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["y"], normalised(total) * GAMMA + BETA, rtol=1e-4, atol=1e-5)


def test_a_simplified_norm_leaves_the_mean():
    found = run("SkipSimplifiedLayerNormalization", [X, X[::-1], GAMMA], data=(0, 1))
    wanted = normalised(X + X[::-1], centred=False) * GAMMA
    np.testing.assert_allclose(found["y"], wanted, rtol=1e-4, atol=1e-5)


def test_packed_queries_keys_and_values_are_those_of_one_layer():
    packed = draw(ROWS, TOKENS, HEADS, 3, 4)
    q, k, v = (packed[:, :, :, i].reshape(ROWS, TOKENS, WIDTH) for i in range(3))
    apart = run("MultiHeadAttention", [q, k, v], data=(0, 1, 2), **H)["y"]
    together = run("MultiHeadAttention", [packed], **H)["y"]
    pairs = run("MultiHeadAttention", [q, packed[:, :, :, 1:]], data=(0, 1), **H)["y"]
    np.testing.assert_allclose(together, apart, rtol=1e-6)
    np.testing.assert_allclose(pairs, apart, rtol=1e-6)


def test_embeddings_are_added_and_normalised():
    found = run("EmbedLayerNormalization", [IDS, KINDS, *EMBEDDINGS, KEPT], data=(0, 1))["y"]
    words, places, kinds = EMBEDDINGS[:3]
    total = words[IDS] + places[:TOKENS] + kinds[KINDS]
    np.testing.assert_allclose(found, normalised(total) * GAMMA + BETA, rtol=1e-4, atol=1e-5)


def test_masked_keys_have_no_relevance():
    model, _ = one("Attention", [X, *QKV, KEPT], data=(0, 3), **H)
    converter = ox.convert(model)
    for method in (ox.LRP, ox.DeepLift, ox.Gradient):
        found = method(converter, [X, KEPT], output_idx=[0], dtype="double").result[0][0]
        assert not found[0, 3:].any()
        assert found[0, 1:3].any()
        assert found[1, 3:].any()


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op, inputs, attributes, words",
    [
        ("FusedConv", CONV, {"activation": "Cube", **SAME}, "activation 'Cube'"),
        ("FusedMatMul", [X, K], {"transBatchA": 1}, "transposed batch axes"),
        ("Attention", [X, *QKV], {**H, "do_rotary": 1}, "without a cache"),
        ("GroupQueryAttention", [*BIG, None, None, *SEEN], {**GQA, "smooth_softmax": 1}, "smooth"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(op, inputs, attributes, words):
    model, _ = one(op, inputs, **attributes)
    with pytest.raises(UnsupportedOpError, match=words) as refused:
        build(read_model(model))
    assert "'fused'" in str(refused.value)


@pytest.mark.parametrize(
    "op, inputs, words",
    [
        ("Attention", [X, *QKV], "num_heads"),
        ("EmbedLayerNormalization", [X, *QKV], "expected 7, got 3"),
        ("MultiHeadAttention", [X, K, V], "num_heads"),
    ],
)
def test_what_a_node_lacks_is_an_error_of_the_model(op, inputs, words):
    model, _ = one(op, inputs)
    with pytest.raises(ModelError, match=words) as refused:
        build(read_model(model))
    assert "'fused'" in str(refused.value)


def test_a_mask_of_another_size_is_refused():
    model, feeds = one("Attention", [X, *QKV, np.ones(3, "i")], **H)
    with pytest.raises(ModelError, match="mask of 3 numbers, expected 2 or 4"):
        forward(build(read_model(model)), feeds)
