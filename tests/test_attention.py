"""Attention: exact in all passes however it is written, masked or not, and stored transformers."""

import numpy as np
import onnx
import pytest
from onnx import helper, parser
from transformer_models.cases import NAMES, check_stored, converted, inputs_of

import onnxplain as ox
from networks import graph
from onnxplain.errors import ModelError
from onnxplain.graph.expand import body_of
from onnxplain.graph.graph import Node, build
from onnxplain.graph.load import read_model
from onnxplain.walk import forward

RNG = np.random.default_rng(5)
INF = np.inf
X = RNG.normal(size=(2, 5, 8))  # rows tokens width


def model(text, weights=(), shape=(5, 8), opset=24):
    """Return a model of x in ONNX's textual syntax."""
    nodes = parser.parse_graph(f"g (double x) => (double y) {{ {text} }}").node
    for i, node in enumerate(nodes):
        node.name = node.name or f"{node.op_type}{i}"
    return graph(nodes, {"x": shape}, dict(weights), outputs={"y": None}, opset=opset)


def dense(*names, width=8):
    """Return weights of dense layers without bias."""
    return {name: RNG.normal(0, 0.5, (8, width)) for name in names}


def explained(proto, x, outputs=4):
    """Check gradients against differences, sums of DeepLIFT and the books of LRP; return all."""
    converter = ox.convert(proto, dtype="double")
    width = int(np.prod(converter.output_dim[0]))
    options = {"output_idx": list(range(0, width, max(width // outputs, 1))), "dtype": "double"}
    gradient = ox.Gradient(converter, x, **options)
    way, h = RNG.normal(size=x.shape), 1e-6
    up, down = (
        np.asarray(converter(x + s * h * way)).reshape(len(x), -1)[:, options["output_idx"]]
        for s in (1, -1)
    )
    along = (gradient.get_result() * way[..., None]).sum(tuple(range(1, x.ndim)))
    np.testing.assert_allclose(along, (up - down) / (2 * h), rtol=1e-6, atol=1e-7)
    deeplift = ox.DeepLift(converter, x, x_ref=RNG.normal(size=(1, *x.shape[1:])), **options)
    goal = deeplift.decomp_goal[0]
    np.testing.assert_allclose(deeplift.decomp_sum[0], goal, rtol=0, atol=1e-11)
    lrp = ox.LRP(converter, x, rule_name="epsilon", **options)
    assert lrp.ledger().gap.max() < 1e-11
    assert np.isfinite(lrp.get_result()).all()
    return gradient.get_result(), deeplift.get_result(), lrp.get_result()


# -- the operator ---------------------------------------------------------------------------------

QKV = "q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv) "
PLAIN = "y = Attention <q_num_heads: int = 2, kv_num_heads: int = 2{}> (q, k, v{})"
CAUSAL = np.tril(np.ones((5, 5), bool))

ATTENTIONS = {
    "plain": (PLAIN.format("", ""), {}),
    "causal": (PLAIN.format(", is_causal: int = 1", ""), {}),
    "softcap and scale": (PLAIN.format(", softcap: float = 0.7, scale: float = 0.3", ""), {}),
    "added mask": (PLAIN.format("", ", mask"), {"mask": RNG.normal(size=(5, 5))}),
    "window": (PLAIN.format(", left_window_size: int = 1, right_window_size: int = 1", ""), {}),
    "first row masked": (
        PLAIN.format("", ", mask"),
        {"mask": np.where(np.tril(CAUSAL, -1), 0.0, -INF)},
    ),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_is_explained_exactly(name):
    text, weights = ATTENTIONS[name]
    explained(model(QKV + text, weights | dense("wq", "wk", "wv"), opset=25), X)


def test_grouped_queries_are_explained_exactly():
    text = QKV + "y = Attention <q_num_heads: int = 4, kv_num_heads: int = 2> (q, k, v)"
    explained(model(text, dense("wq") | dense("wk", "wv", width=4)), X)


SPELLED = """
    q4 = Reshape (q, cut) k4 = Reshape (k, cut) v4 = Reshape (v, cut)
    qh = Transpose <perm: ints = [0, 2, 1, 3]> (q4)
    kt = Transpose <perm: ints = [0, 2, 3, 1]> (k4)
    vh = Transpose <perm: ints = [0, 2, 1, 3]> (v4)
    qs = Mul (qh, scale)
    s = MatMul (qs, kt)
    {}
    o = MatMul (p, vh)
    t = Transpose <perm: ints = [0, 2, 1, 3]> (o)
    y = Reshape (t, flat)"""
PARTS = {"cut": np.array([0, 0, 2, -1]), "flat": np.array([0, 0, -1]), "scale": np.float64(0.5)}
ADD, WHERE = "m = Add (s, mask) p = Softmax (m)", "m = Where (seen, s, low) p = Softmax (m)"
SAFE = "m = Add (s, mask) r = Softmax (m) n = IsNaN (r) p = Where (n, zero, r)"
MASKS = {
    "add infinity": (ADD, {"mask": np.where(CAUSAL, 0, -INF)}),
    "add a large number": (ADD, {"mask": np.where(CAUSAL, 0, -3.4e38)}),
    "where infinity": (
        "c = Cast <to: int = 9> (keep) m = Where (c, s, low) p = Softmax (m)",
        {"keep": CAUSAL.astype(np.int64), "low": np.float64(-INF)},
    ),
    "nan to zero": (SAFE, {"mask": np.where(CAUSAL, 0, -INF), "zero": np.float64(0)}),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_spelled_mask_is_explained_as_the_operator(name):
    mask, weights = MASKS[name]
    layers = dense("wq", "wk", "wv")
    spelled = model(QKV + SPELLED.format(mask), PARTS | weights | layers)
    fused = model(QKV + PLAIN.format(", is_causal: int = 1", ""), layers)
    state = RNG.bit_generator.state
    one = explained(spelled, X)
    RNG.bit_generator.state = state
    for a, b in zip(one, explained(fused, X), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.abs(b).max())


@pytest.mark.parametrize("name", [*MASKS, "operator"])
def test_a_masked_token_has_no_relevance(name):
    layers = dense("wq", "wk", "wv")
    text = PLAIN.format(", is_causal: int = 1", "")
    weights = layers
    if name in MASKS:
        text, weights = SPELLED.format(MASKS[name][0]), PARTS | MASKS[name][1] | layers
    for result in explained(model(QKV + text, weights), X, outputs=40):
        by_token = np.abs(result.reshape(2, 5, 8, 5, 8)).sum((0, 2, 4))  # of input, of output
        assert by_token[~CAUSAL.T].max() == 0
        assert by_token[CAUSAL.T].min() > 0


def test_a_row_of_which_all_is_masked_is_zero_and_explained():
    mask = np.where(np.arange(5) > 0, 0, -INF)[:, None] + np.zeros((5, 5))
    weights = PARTS | {"mask": mask, "zero": np.float64(0)} | dense("wq", "wk", "wv")
    proto = model(QKV + SPELLED.format(SAFE), weights)
    assert "SafeSoftmax" in [n.op for n in build(read_model(proto)).nodes]
    gradient, *rest = explained(proto, X, outputs=40)
    for result in (gradient, *rest):
        assert np.isfinite(result).all()
        assert not result.reshape(2, 5, 8, 5, 8)[:, :, :, 0].any()


def test_where_is_exact_between_runs_of_different_conditions():
    text = "c = Less (x, zero) a = Mul (x, slope) b = Neg (x) y = Where (c, a, b)"
    proto = model(text, {"zero": 0.0, "slope": 0.3}, shape=(8,))
    converter = ox.convert(proto, dtype="double")
    x, ref = RNG.normal(size=(2, 40, 8))
    method = ox.DeepLift(converter, x, x_ref=ref[:1], dtype="double")
    assert ((x < 0) != (ref[:1] < 0)).any()
    np.testing.assert_allclose(method.decomp_sum[0], method.decomp_goal[0], rtol=0, atol=1e-12)


def test_keys_that_carry_no_data_are_allowed():
    weights = dense("wq") | {"k": RNG.normal(size=(1, 7, 8)), "v": RNG.normal(size=(1, 7, 8))}
    text = "q = MatMul (x, wq) " + PLAIN.format("", "")
    explained(model(text, weights), X[:1])


@pytest.mark.parametrize(
    "text, words",
    [
        ("y = Attention <q_num_heads: int = 3, kv_num_heads: int = 3> (x, x, x)", "3 equal heads"),
        ("y = Attention <q_num_heads: int = 4, kv_num_heads: int = 8> (x, x, x)", "do not share"),
    ],
)
def test_heads_that_do_not_fit_are_refused(text, words):
    with pytest.raises(ModelError, match=words):
        ox.convert(model(text))


def test_a_rule_and_the_coverage_know_the_node_by_its_name():
    proto = model(QKV + PLAIN.format("", ""), dense("wq", "wk", "wv"))
    proto.graph.node[-1].name = "attention"
    converter = ox.convert(proto, dtype="double")
    rows = converter.coverage("lrp")
    parts = rows[rows.joined == "attention"]
    assert {"MatMul", "onnxplain.SafeSoftmax", "onnxplain.SplitHeads"} <= set(parts.op)
    lrp = ox.LRP(converter, X, rule_name={"attention": "epsilon"}, output_idx=0, dtype="double")
    by_node = lrp.ledger().set_index("node").rule
    assert "Epsilon" in by_node["attention"]


# -- AttnLRP in closed form -----------------------------------------------------------------------


def jacobian(f, x):
    """Return d f / d x as (*y, *x), by steps into the complex plane: exact."""
    steps = 1e-30j * np.eye(x.size).reshape(x.size, *x.shape)
    return np.stack([f(x + s).imag / 1e-30 for s in steps], -1).reshape(*f(x).shape, *x.shape)


def taylor(f, x, r):
    """Return x_i sum_j (df_j / dx_i) r_j / f_j (Achtibat et al. 2024, proposition 3.1 and on)."""
    y = f(x)
    return x * np.tensordot(r / y, jacobian(f, x), axes=y.ndim)


def softmax(s):
    e = np.exp(s - s.real.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_lrp_is_attnlrp():
    wq, wk, wv = dense("wq", "wk", "wv").values()
    proto = model(
        QKV + "y = Attention <q_num_heads: int = 1, kv_num_heads: int = 1> (q, k, v)",
        {"wq": wq, "wk": wk, "wv": wv},
    )
    x = X[0]
    q, k, v = x @ wq, x @ wk, x @ wv
    s = q @ k.T / np.sqrt(8)
    p = softmax(s)
    r = np.zeros((5, 8))
    r[3, 2] = (p @ v)[3, 2]
    with np.errstate(all="ignore"):
        rp, rv = (
            np.nan_to_num(0.5 * taylor(f, a, r))
            for f, a in ((lambda p: p @ v, p), (p.__matmul__, v))
        )
        rs = x_softmax = s * (rp - p * rp.sum(-1, keepdims=True))
        rq = 0.5 * taylor(lambda q: q @ k.T / np.sqrt(8), q, rs)
        rk = 0.5 * taylor(lambda k: q @ k.T / np.sqrt(8), k, rs)
    one_row = rp[3], p[3], s[3]
    np.testing.assert_allclose(x_softmax[3], taylor(softmax, one_row[2], one_row[0]), atol=1e-14)
    wanted = sum(taylor(lambda x, w=w: x @ w, x, a) for w, a in ((wq, rq), (wk, rk), (wv, rv)))
    found = ox.LRP(ox.convert(proto, dtype="double"), X[:1], output_idx=26, dtype="double")
    np.testing.assert_allclose(found.get_result()[0, ..., 0], wanted, rtol=0, atol=1e-9)


def test_lrp_of_attention_books_what_the_softmax_absorbs():
    proto = model(QKV + PLAIN.format("", ""), dense("wq", "wk", "wv"))
    lrp = ox.LRP(ox.convert(proto, dtype="double"), X, output_idx=[0, 9], dtype="double")
    books = lrp.ledger().set_index("op")
    assert books.gap.max() < 1e-12
    absorbed = books.loc["SafeSoftmax", "bias"]
    missing = (lrp.decomp_goal[0] - lrp.decomp_sum[0]).sum()
    np.testing.assert_allclose(absorbed, missing, rtol=1e-9)


# -- operators without a kernel -------------------------------------------------------------------


def test_an_operator_is_taken_from_onnx_where_it_has_no_kernel():
    node = Node("n", "SwiGLU", ("a", "b"), ("y",), {}, 28)
    assert [n.op_type for n in body_of(node, {}).node][-1] == "Mul"
    text = "a = MatMul (x, wa) b = MatMul (x, wb) y = SwiGLU <alpha: float = 1.5> (a, b)"
    proto = model(text, dense("wa", "wb"), opset=28)
    explained(proto, X)
    assert "SwiGLU2" in ox.convert(proto).coverage("lrp").joined.tolist()


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
def test_linear_attention_is_explained_exactly(rule):
    heads = 'q_num_heads: int = 2, kv_num_heads: int = 2, update_rule: string = "' + rule + '"'
    given = ["q", "k", "v", "", "g" if "gated" in rule else "", "b" if "delta" in rule else ""]
    text = QKV + "h = MatMul (x, wg) g = Neg (h) z = MatMul (x, wb) b = Sigmoid (z) "
    text += f"y, s = LinearAttention <{heads}> ({', '.join(given).rstrip(', ')})"
    weights = dense("wq", "wk", "wv", "wg") | dense("wb", width=2)
    explained(model(text, weights, opset=27), X, outputs=3)


# -- stored transformers --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_transformer_is_explained(name):
    check_stored(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_transformer_is_covered(name):
    converter = converted(name)
    for method in ("gradient", "lrp", "deeplift"):
        table = converter.coverage(method)
        assert (table.rule != "").all()
    assert converter.coverage("deeplift").exact.all()


def test_a_fused_transformer_is_explained_as_the_one_it_was_made_of():
    results = []
    for name in ("bert", "bert_fused"):
        converter, x = converted(name), inputs_of(name)
        results.append(
            [method(converter, x, dtype="double").get_result() for method in (ox.LRP, ox.DeepLift)]
        )
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-6 * np.abs(a).max())


def test_rows_of_a_transformer_do_not_depend_on_each_other():
    converter, x = converted("bert"), inputs_of("bert")
    together = ox.DeepLift(converter, x, dtype="double").get_result()
    for i in range(len(x[0])):
        alone = ox.DeepLift(converter, [v[i : i + 1] for v in x], dtype="double").get_result()
        np.testing.assert_allclose(alone[0], together[i], rtol=0, atol=1e-12)


def test_a_function_of_the_model_is_written_out():
    text = """
    <ir_version: 9, opset_import: ["": 20, "own": 1]>
    main (double[N, 4] x) => (double[N, 4] y) { y = own.Gate <power: float = 2.0> (x) }
    <domain: "own", opset_import: ["": 20]>
    Gate <power> (a) => (b) { s = Sigmoid (a) p = Constant <value_float: float = @power> ()
        c = CastLike (p, a) t = Pow (s, c) b = Mul (a, t) }"""
    proto = parser.parse_model(text)
    onnx.checker.check_model(proto)
    x = RNG.normal(size=(3, 4))
    wanted = x / (1 + np.exp(-x)) ** 2
    raw = build(read_model(proto), optimise=False)
    np.testing.assert_allclose(forward(raw, {"x": x})["y"], wanted, rtol=1e-12)
    explained(proto, x)
    assert helper.make_opsetid("own", 1) in proto.opset_import
