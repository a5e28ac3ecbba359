"""Which nodes are joined to one layer, that this changes no number, and what must stay apart."""

import math

import numpy as np
import pytest
from onnx import TensorProto, helper

import onnxplain as ox
from networks import graph
from onnxplain.graph.graph import build
from onnxplain.graph.load import read_model
from onnxplain.walk import forward

node = helper.make_node
RNG = np.random.default_rng(0)


def weights(**shapes):
    return {name: RNG.standard_normal(shape) for name, shape in shapes.items()}


def steps(text, **attributes):
    """Parse "t = Op(x, c)" lines to nodes; `attributes` are keyed by the tensor made."""
    made = []
    for line in text.strip().splitlines():
        output, call = (part.strip() for part in line.split("="))
        op, inputs = call.rstrip(")").split("(")
        names = [i.strip() for i in inputs.split(",")]
        made.append(node(op, names, [output], output, **attributes.get(output, {})))
    return made


def check(model, expected=None, tolerance=1e-12):
    """Compare outputs joined and not joined, and the operators that are left if given."""
    raw = read_model(model)
    plain, joined = build(raw, optimise=False), build(raw)
    dim = model.graph.input[0].type.tensor_type.shape.dim
    # Far out too: activations are told apart by their tails.
    rows = np.random.default_rng(1).standard_normal((6, *(d.dim_value for d in dim[1:])))
    feeds = {
        model.graph.input[0].name: rows
        * np.array([0.1, 1, 3, 10, 30, 50]).reshape(-1, *(1,) * (rows.ndim - 1))
    }
    with np.errstate(all="ignore"):
        a, b = (forward(g.cast(np.float64), feeds) for g in (plain, joined))
    for name in joined.outputs:
        scale = max(1, np.abs(a[name]).max())
        np.testing.assert_allclose(b[name], a[name], rtol=0, atol=tolerance * scale)
    assert expected is None or [n.op for n in joined.nodes] == list(expected)
    return joined


# -- activations ----------------------------------------------------------------------------------

ROOT2, FIT = math.sqrt(2), math.sqrt(2 / math.pi)
SCALARS = {
    "half": 0.5,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "six": 6.0,
    "root2": ROOT2,
    "inverse_root2": 1 / ROOT2,
    "fit": FIT,
    "cubic": 0.044715,
    "zero": 0.0,
    "sixth": 1 / 6,
    "twenty": 20.0,
    "minus": -1.0,
    "twofit": 2 * FIT,
    "quick": 1.702,
}
SPELLINGS = {
    "Gelu, torch": (
        "Gelu",
        """
        d = Div(x, root2)
        e = Erf(d)
        a = Add(e, one)
        m = Mul(x, a)
        y = Mul(m, half)""",
    ),
    "Gelu, half first": (
        "Gelu",
        """
        h = Mul(half, x)
        d = Mul(inverse_root2, x)
        e = Erf(d)
        a = Add(one, e)
        y = Mul(h, a)""",
    ),
    "Gelu, half on the sum": (
        "Gelu",
        """
        d = Mul(x, inverse_root2)
        e = Erf(d)
        a = Add(one, e)
        h = Mul(a, half)
        y = Mul(x, h)""",
    ),
    "Gelu, sum first": (
        "Gelu",
        """
        d = Div(x, root2)
        e = Erf(d)
        a = Add(e, one)
        m = Mul(a, x)
        y = Div(m, two)""",
    ),
    "Gelu, quick": (
        "Swish",
        """
        f = Mul(x, quick)
        g = Sigmoid(f)
        y = Mul(x, g)""",
    ),
    "Gelu, Erfc of tf2onnx": (
        "Gelu",
        """
        n = Neg(x)
        d = Mul(n, inverse_root2)
        e = Erfc(d)
        h = Mul(half, x)
        y = Mul(h, e)""",
    ),
    "Gelu by tanh, Pow": (
        "Gelu",
        """
        p = Pow(x, three)
        c = Mul(p, cubic)
        s = Add(x, c)
        f = Mul(s, fit)
        t = Tanh(f)
        a = Add(t, one)
        m = Mul(x, a)
        y = Mul(m, half)""",
    ),
    "Gelu by tanh, products": (
        "Gelu",
        """
        q = Mul(x, x)
        p = Mul(q, x)
        c = Mul(cubic, p)
        s = Add(x, c)
        f = Mul(fit, s)
        t = Tanh(f)
        a = Add(one, t)
        h = Mul(half, x)
        y = Mul(h, a)""",
    ),
    "Gelu by sigmoid of the cubic": (
        "Gelu",
        """
        p = Pow(x, three)
        c = Mul(p, cubic)
        s = Add(x, c)
        f = Mul(s, twofit)
        t = Sigmoid(f)
        y = Mul(x, t)""",
    ),
    "SiLU": (
        "Swish",
        """
        s = Sigmoid(x)
        y = Mul(x, s)""",
    ),
    "SiLU, sigmoid first": (
        "Swish",
        """
        s = Sigmoid(x)
        y = Mul(s, x)""",
    ),
    "SiLU, quotient": (
        "Swish",
        """
        n = Neg(x)
        e = Exp(n)
        a = Add(e, one)
        y = Div(x, a)""",
    ),
    "HardSwish, HardSigmoid": (
        "HardSwish",
        """
        s = HardSigmoid(x)
        y = Mul(x, s)""",
    ),
    "HardSwish, Clip": (
        "HardSwish",
        """
        a = Add(x, three)
        c = Clip(a, zero, six)
        m = Mul(x, c)
        y = Div(m, six)""",
    ),
    "HardSwish, Clip scaled first": (
        "HardSwish",
        """
        a = Add(three, x)
        c = Clip(a, zero, six)
        d = Mul(c, sixth)
        y = Mul(d, x)""",
    ),
    "HardSwish, Relu and Min": (
        "HardSwish",
        """
        a = Add(x, three)
        r = Relu(a)
        c = Min(r, six)
        m = Mul(x, c)
        y = Mul(m, sixth)""",
    ),
    "Mish": (
        "Mish",
        """
        s = Softplus(x)
        t = Tanh(s)
        y = Mul(x, t)""",
    ),
    "Softplus with threshold": (
        "Softplus",
        """
        g = Greater(x, twenty)
        s = Softplus(x)
        y = Where(g, x, s)""",
    ),
    "Softplus with factor and threshold": (
        "Softplus",
        """
        b = Mul(x, one)
        g = Greater(b, twenty)
        s = Softplus(b)
        d = Div(s, one)
        y = Where(g, x, d)""",
    ),
}
ATTRIBUTES = {"s": {"alpha": 1 / 6, "beta": 0.5}}


def spelled(text, outputs=("y",)):
    used = {name: value for name, value in SCALARS.items() if name in text}
    hard = ATTRIBUTES if "HardSigmoid" in text else {}
    return graph(steps(text, **hard), {"x": (7,)}, used, outputs=dict.fromkeys(outputs, (7,)))


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelled_activation_is_one_node(name):
    op, text = SPELLINGS[name]
    # A threshold cuts off what is below 2e-9; the attributes of HardSigmoid are float32.
    tolerance = 1e-9 if "threshold" in name else 1e-7 if "HardSigmoid" in name else 1e-12
    joined = check(spelled(text), [op], tolerance)
    assert set(joined.nodes[0].joined) == {n.name for n in spelled(text).graph.node}


def test_coverage_tells_what_was_joined():
    table = ox.convert(spelled(SPELLINGS["Mish"][1])).coverage()
    assert table["joined"].tolist() == ["s, t, y"]


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelled_activation_with_inner_uses_stays(name):
    op, text = SPELLINGS[name]
    last, inner = spelled(text).graph.node[-1], spelled(text).graph.node[-2].output[0]
    joined = check(spelled(text, ("y", inner)))
    assert next(n.op for n in joined.nodes if n.outputs == ("y",)) == last.op_type != op


@pytest.mark.parametrize(
    "text",
    [
        "s = Sigmoid(x)\ny = Mul(s, s)",  # the square of a sigmoid
        "s = Sigmoid(x)\nt = Tanh(x)\ny = Mul(s, t)",
        "d = Div(x, two)\ne = Erf(d)\na = Add(e, one)\nm = Mul(x, a)\ny = Mul(m, half)",  # no Gelu
        "d = Div(x, root2)\ne = Erf(d)\na = Add(e, one)\ny = Mul(x, a)",  # twice a Gelu
        "a = Add(x, three)\nc = Clip(a, zero, three)\nm = Mul(x, c)\ny = Div(m, six)",
        "s = Softplus(x)\nt = Sigmoid(s)\ny = Mul(x, t)",
    ],
)
def test_a_product_that_is_no_known_activation_stays(text):
    check(spelled(text), [n.op_type for n in spelled(text).graph.node])


def test_factors_that_differ_by_element_are_no_activation():
    nodes = steps("h = Mul(x, c)\ns = Sigmoid(h)\ny = Mul(h, s)")
    model = graph(nodes, {"x": (7,)}, weights(c=7), outputs={"y": (7,)})
    check(model, ["Mul", "Swish"])


# -- layer normalisation --------------------------------------------------------------------------

MEANS = {name: {"axes": [-1], "keepdims": 1} for name in ("mu", "mu2", "var")}
NORMS = {
    "torch": """
        mu = ReduceMean(x)
        c = Sub(x, mu)
        q = Pow(c, two)
        var = ReduceMean(q)
        v = Add(var, eps)
        d = Sqrt(v)
        n = Div(c, d)""",
    "two differences": """
        mu = ReduceMean(x)
        c = Sub(x, mu)
        mu2 = ReduceMean(x)
        c2 = Sub(x, mu2)
        q = Mul(c2, c2)
        var = ReduceMean(q)
        v = Add(eps, var)
        d = Sqrt(v)
        n = Div(c, d)""",
    "reciprocal": """
        mu = ReduceMean(x)
        c = Sub(x, mu)
        q = Mul(c, c)
        var = ReduceMean(q)
        v = Add(var, eps)
        d = Sqrt(v)
        i = Reciprocal(d)
        n = Mul(c, i)""",
    "reciprocal first": """
        mu = ReduceMean(x)
        c = Sub(x, mu)
        q = Mul(c, c)
        var = ReduceMean(q)
        v = Add(var, eps)
        d = Sqrt(v)
        i = Reciprocal(d)
        n = Mul(i, c)""",
}
AFFINE = "\ng = Mul(n, gamma)\ny = Add(g, beta)"
# What Keras writes: the scale goes to the inverse deviation, the mean to the shift.
KERAS = """
    mu = ReduceMean(x)
    c = Sub(x, mu)
    q = Mul(c, c)
    var = ReduceMean(q)
    v = Add(var, eps)
    d = Sqrt(v)
    i = Reciprocal(d)
    w = Mul(i, gamma)
    p = Mul(x, w)
    o = Mul(mu, w)
    s = Sub(beta, o)
    y = Add(p, s)"""


def normalised(text, outputs=("y",), means=MEANS, **more):
    stored = {"two": 2.0, "eps": 1e-3, "gamma": np.linspace(1, 2, 4), "beta": np.arange(4.0)}
    stored = {name: value for name, value in stored.items() if name in text}
    nodes = steps(text, **means)
    return graph(
        nodes, {"x": (3, 4)}, stored | more, outputs=dict.fromkeys(outputs, (3, 4)), opset=13
    )


@pytest.mark.parametrize("name", NORMS)
def test_a_spelled_layer_norm_is_one_node(name):
    joined = check(normalised(NORMS[name] + AFFINE), ["LayerNormalization"], 1e-11)
    assert len(joined.nodes[0].joined) == len((NORMS[name] + AFFINE).strip().splitlines())


def test_the_layer_norm_of_keras_is_one_node():
    joined = check(normalised(KERAS), ["LayerNormalization"], 1e-11)
    assert len(joined.nodes[0].joined) == 12


@pytest.mark.parametrize("method", ["gradient", "lrp", "deeplift", "reveal_cancel"])
@pytest.mark.parametrize("text", [*(n + AFFINE for n in NORMS.values()), KERAS])
def test_a_spelled_layer_norm_is_explained_as_one(method, text):
    native = graph(
        [node("LayerNormalization", ["x", "gamma", "beta"], ["y"], axis=-1, epsilon=1e-3)],
        {"x": (3, 4)},
        {"gamma": np.linspace(1, 2, 4), "beta": np.arange(4.0)},
        outputs={"y": (3, 4)},
    )
    x, x_ref = np.random.default_rng(3).standard_normal((2, 2, 3, 4))

    def explained(model):
        converter = ox.convert(model, dtype="double")
        if method == "gradient":
            return ox.Gradient(converter, x, dtype="double")
        if method == "lrp":
            return ox.LRP(converter, x, dtype="double")
        rule = "rescale" if method == "deeplift" else method
        return ox.DeepLift(converter, x, x_ref=x_ref[:1], rule_name=rule, dtype="double")

    a, b = (explained(m).get_result() for m in (native, normalised(text)))
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-9 * np.abs(a).max())


@pytest.mark.parametrize("inner", ["mu", "c", "var", "d"])
def test_a_layer_norm_whose_parts_are_used_stays(inner):
    model = normalised(NORMS["torch"] + AFFINE, ("y", inner))
    raw = build(read_model(model))
    assert "LayerNormalization" not in [n.op for n in raw.nodes]


@pytest.mark.parametrize("axes", [[1], [2], [1, 2], [-2]])
@pytest.mark.parametrize("name", [*NORMS, "keras"])
def test_a_norm_over_other_axes_is_one_node(name, axes):
    means = {name: {"axes": axes, "keepdims": 1} for name in ("mu", "mu2", "var")}
    model = normalised(NORMS[name] + AFFINE if name in NORMS else KERAS, means=means)
    ops = ["Standardise"] if name == "keras" else ["Standardise", "ChannelAffine"]
    check(model, ops, 1e-11)


def test_means_over_different_axes_are_no_norm():
    means = MEANS | {"mu": {"axes": [1], "keepdims": 1}}
    joined = build(read_model(normalised(NORMS["torch"] + AFFINE, means=means)))
    assert not {"LayerNormalization", "Standardise"} & {n.op for n in joined.nodes}


RMS = {
    "Reciprocal": "q = Pow(x, two)\nvar = ReduceMean(q)\nv = Add(var, eps)\nd = Sqrt(v)\n"
    "i = Reciprocal(d)\nn = Mul(x, i)",
    "one over": "q = Mul(x, x)\nvar = ReduceMean(q)\nv = Add(var, eps)\nd = Sqrt(v)\n"
    "i = Div(one, d)\nn = Mul(i, x)",
    "Div": "q = Mul(x, x)\nvar = ReduceMean(q)\nv = Add(eps, var)\nd = Sqrt(v)\nn = Div(x, d)",
}


@pytest.mark.parametrize("name", RMS)
def test_a_spelled_rms_norm_is_one_node(name):
    one = {"one": 1.0} if "one" in RMS[name] else {}
    check(normalised(RMS[name] + "\ny = Mul(n, gamma)", **one), ["RMSNormalization"], 1e-11)
    shifted = normalised(RMS[name] + AFFINE, **one)
    check(shifted, ["RMSNormalization", "Add"], 1e-11)


def test_two_over_the_deviation_is_no_norm():
    text = RMS["one over"].replace("one", "two") + "\ny = Mul(n, gamma)"
    joined = build(read_model(normalised(text)))
    assert "RMSNormalization" not in [n.op for n in joined.nodes]


@pytest.mark.parametrize(
    "affine, ops",
    [
        ("y = Mul(n, gamma)", ["LayerNormalization"]),
        ("y = Add(n, beta)", ["LayerNormalization"]),
        ("a = Sub(n, beta)\ny = Mul(a, gamma)", ["LayerNormalization", "Mul"]),
        ("a = Mul(n, gamma)\ny = Mul(a, gamma)", ["LayerNormalization", "Mul"]),
        ("y = Mul(n, wide)", ["LayerNormalization", "Mul"]),
    ],
)
def test_scale_and_shift_of_the_last_axis_are_those_of_the_norm(affine, ops):
    wide = {"wide": np.ones((3, 1)) * 2.0} if "wide" in affine else {}
    check(normalised(NORMS["torch"] + "\n" + affine, **wide), ops, 1e-11)


SAFE = "p = Softmax(m)\nn = IsNaN(p)\ny = Where(n, zero, p)"


@pytest.mark.parametrize(
    "text, ops",
    [
        (SAFE, ["Add", "SafeSoftmax"]),
        (SAFE.replace("zero, p", "one, p"), ["Add", "Softmax", "IsNaN", "Where"]),
        (SAFE.replace("zero, p", "zero, m"), ["Add", "Softmax", "IsNaN", "Where"]),
        (SAFE.replace("IsNaN(p)", "IsNaN(m)"), ["Add", "Softmax", "IsNaN", "Where"]),
    ],
)
def test_a_softmax_whose_nan_become_zeros_is_one_node(text, ops):
    mask = np.where(np.tril(np.ones((3, 4)), -1), 0, -np.inf)  # of the first row, all
    values = {"mask": mask, "zero": 0.0, "one": 1.0}
    model = graph(
        steps("m = Add(x, mask)\n" + text),
        {"x": (3, 4)},
        {k: v for k, v in values.items() if k in text + "mask"},
        outputs={"y": (3, 4)},
        opset=20,
    )
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    found = [build(read_model(model), optimise=o) for o in (False, True)]
    assert [n.op for n in found[1].nodes] == ops
    with np.errstate(all="ignore"):
        a, b = (forward(g, {"x": x})["y"] for g in found)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-15)


# -- scale and shift in the layer before ----------------------------------------------------------


def norm(n):
    return weights(ga=n, be=n, mu=n) | {"va": RNG.uniform(0.5, 2, n)}


def linear(text, stored, x, opset=20, **attributes):
    return graph(steps(text, **attributes), {"x": x}, stored, outputs={"y": None}, opset=opset)


NORM = "\ny = BatchNormalization(c, ga, be, mu, va)"
LAYERS = {
    "MatMul and Add": (
        "c = MatMul(x, w)\ny = Add(c, b)",
        weights(w=(4, 5), b=5),
        (4,),
        {},
        "MatMul",
    ),
    "Add first": ("c = MatMul(x, w)\ny = Add(b, c)", weights(w=(4, 5), b=5), (4,), {}, "MatMul"),
    "MatMul of tokens and Add": (
        "c = MatMul(x, w)\ny = Add(c, b)",
        weights(w=(4, 5), b=(1, 5)),
        (3, 4),
        {},
        "MatMul",
    ),
    "MatMul, Add, Mul, Sub": (
        "c = MatMul(x, w)\nd = Add(c, b)\ne = Mul(d, f)\ny = Sub(g, e)",
        weights(w=(4, 5), b=5, f=5, g=()),
        (4,),
        {},
        "MatMul",
    ),
    "MatMul and Div": (
        "c = MatMul(x, w)\ny = Div(c, f)",
        weights(w=(4, 5), f=5),
        (4,),
        {},
        "MatMul",
    ),
    "MatMul and Neg": ("c = MatMul(x, w)\ny = Neg(c)", weights(w=(4, 5)), (4,), {}, "MatMul"),
    "Gemm without bias and Add": (
        "c = Gemm(x, w)\ny = Add(c, b)",
        weights(w=(5, 4), b=5),
        (4,),
        {"c": {"transB": 1}},
        "Gemm",
    ),
    "Gemm and Mul": (
        "c = Gemm(x, w, b)\ny = Mul(c, f)",
        weights(w=(4, 5), b=(1, 5), f=5),
        (4,),
        {},
        "Gemm",
    ),
    "Gemm with one bias for all, and BatchNormalization": (
        "c = Gemm(x, w, b)" + NORM,
        weights(w=(4, 5), b=1) | norm(5),
        (4,),
        {},
        "Gemm",
    ),
    "Gemm and BatchNormalization": (
        "c = Gemm(x, w, b)" + NORM,
        weights(w=(5, 4), b=5) | norm(5),
        (4,),
        {"c": {"transB": 1}},
        "Gemm",
    ),
    "Conv and BatchNormalization": (
        "c = Conv(x, w)" + NORM,
        weights(w=(4, 2, 3, 3)) | norm(4),
        (2, 5, 5),
        {},
        "Conv",
    ),
    "Conv, bias and BatchNormalization": (
        "c = Conv(x, w, b)" + NORM,
        weights(w=(4, 2, 3, 3), b=4) | norm(4),
        (2, 5, 5),
        {},
        "Conv",
    ),
    "Conv of a signal and BatchNormalization": (
        "c = Conv(x, w)" + NORM,
        weights(w=(4, 2, 3)) | norm(4),
        (2, 5),
        {},
        "Conv",
    ),
    "Conv of a volume and BatchNormalization": (
        "c = Conv(x, w)" + NORM,
        weights(w=(4, 2, 2, 2, 2)) | norm(4),
        (2, 3, 3, 3),
        {},
        "Conv",
    ),
    "grouped Conv and BatchNormalization": (
        "c = Conv(x, w)" + NORM,
        weights(w=(4, 1, 3, 3)) | norm(4),
        (2, 5, 5),
        {"c": {"group": 2}},
        "Conv",
    ),
    "Conv, Mul and Add per channel": (
        "c = Conv(x, w)\nd = Mul(c, f)\ny = Add(d, g)",
        weights(w=(4, 2, 3, 3), f=(4, 1, 1), g=(1, 4, 1, 1)),
        (2, 5, 5),
        {},
        "Conv",
    ),
    "Conv and Mul by a number": (
        "c = Conv(x, w)\ny = Mul(c, f)",
        weights(w=(4, 2, 3, 3), f=(1,)),
        (2, 5, 5),
        {},
        "Conv",
    ),
    "ConvTranspose and BatchNormalization": (
        "c = ConvTranspose(x, w, b)" + NORM,
        weights(w=(2, 4, 3, 3), b=4) | norm(4),
        (2, 5, 5),
        {},
        "ConvTranspose",
    ),
    "grouped ConvTranspose and BatchNormalization": (
        "c = ConvTranspose(x, w)" + NORM,
        weights(w=(4, 3, 2, 2)) | norm(6),
        (4, 5, 5),
        {"c": {"group": 2}},
        "ConvTranspose",
    ),
    "grouped ConvTranspose and Mul": (
        "c = ConvTranspose(x, w, b)\ny = Mul(c, f)",
        weights(w=(4, 3, 2, 2), b=6, f=(6, 1, 1)),
        (4, 5, 5),
        {"c": {"group": 2}},
        "ConvTranspose",
    ),
    "batch-norms in a row": (
        "c = Conv(x, w)\nd = BatchNormalization(c, ga, be, mu, va)\n"
        "y = BatchNormalization(d, be, ga, mu, va)",
        weights(w=(4, 2, 3, 3)) | norm(4),
        (2, 5, 5),
        {},
        "Conv",
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_scale_and_shift_join_the_layer_before(name):
    text, stored, x, attributes, op = LAYERS[name]
    model = linear(text, stored, x, **attributes)
    joined = check(model, [op])
    assert joined.nodes[0].joined == tuple(n.name for n in model.graph.node)
    assert joined.nodes[0].outputs == ("y",)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_whose_own_output_is_used_stays(name):
    text, stored, x, attributes, _ = LAYERS[name]
    nodes = [*steps(text, **attributes), node("Relu", ["c"], ["r"], "relu")]
    model = graph(nodes, {"x": x}, stored, outputs={"y": None, "r": None})
    joined = build(read_model(model))
    assert joined.nodes[0].outputs == ("c",)
    assert not joined.nodes[0].joined
    check(model, [n.op for n in joined.nodes])


CHAINS = {
    "x / 255 - 0.5, / 0.5": (
        "a = Div(x, c255)\nb = Sub(a, half)\ny = Div(b, half)",
        {"c255": 255.0, "half": 0.5},
    ),
    "mean and deviation per channel": (
        "a = Mul(x, f)\nb = Sub(a, m)\ny = Div(b, s)",
        {"f": 1 / 255, "m": np.arange(2.0).reshape(2, 1, 1), "s": np.full((1, 2, 1, 1), 0.2)},
    ),
    "turned": ("a = Sub(one, x)\nb = Mul(a, half)\ny = Neg(b)", {"one": 1.0, "half": 0.5}),
    "over width": ("a = Add(x, w)\ny = Mul(a, w)", {"w": np.arange(1.0, 6.0)}),
}


@pytest.mark.parametrize("name", CHAINS)
def test_scales_and_shifts_in_a_row_are_one_node(name):
    text, stored = CHAINS[name]
    model = linear(text, stored, (2, 5, 5))
    joined = check(model, ["ChannelAffine"])
    assert joined.nodes[0].joined == tuple(n.name for n in model.graph.node)


def test_preprocessing_stays_apart_from_the_first_layer():
    text = "a = Div(x, c255)\nb = Sub(a, half)\ny = Conv(b, w)"
    model = linear(text, {"c255": 255.0, "half": 0.5} | weights(w=(4, 2, 3, 3)), (2, 5, 5))
    check(model, ["ChannelAffine", "Conv"])


APART = {
    # name: (text, weights, input, attributes, operators left)
    "vector over width": (
        "c = Conv(x, w)\ny = Add(c, b)",
        weights(w=(3, 2, 3, 3), b=3),
        (2, 5, 5),
        {},
        ["Conv", "Add"],
    ),
    "vector over height": (
        "c = Conv(x, w)\ny = Mul(c, b)",
        weights(w=(3, 2, 3, 3), b=(3, 1)),
        (2, 5, 5),
        {},
        ["Conv", "Mul"],
    ),
    "plane": (
        "c = Conv(x, w)\ny = Mul(c, b)",
        weights(w=(1, 2, 3, 3), b=(1, 3, 3)),
        (2, 5, 5),
        {},
        ["Conv", "Mul"],
    ),
    "more channels than the layer has": (
        "c = Conv(x, w)\ny = Add(c, b)",
        weights(w=(1, 2, 3, 3), b=(4, 1, 1)),
        (2, 5, 5),
        {},
        ["Conv", "Add"],
    ),
    "one more axis": (
        "c = MatMul(x, w)\ny = Add(c, b)",
        weights(w=(4, 5), b=(1, 1, 5)),
        (4,),
        {},
        ["MatMul", "Add"],
    ),
    "wider than the layer": (
        "c = MatMul(x, w)\ny = Add(c, b)",
        weights(w=(4, 1), b=5),
        (4,),
        {},
        ["MatMul", "Add"],
    ),
    "per token": (
        "c = MatMul(x, w)\ny = Add(c, b)",
        weights(w=(4, 3), b=(3, 1)),
        (3, 4),
        {},
        ["MatMul", "Add"],
    ),
    "per token and feature": (
        "c = MatMul(x, w)\ny = Add(c, b)",
        weights(w=(4, 5), b=(3, 5)),
        (3, 4),
        {},
        ["MatMul", "Add"],
    ),
    "Gemm with alpha": (
        "c = Gemm(x, w)\ny = Add(c, b)",
        weights(w=(4, 5), b=5),
        (4,),
        {"c": {"alpha": 0.5}},
        ["Gemm", "Add"],
    ),
    "Gemm with beta": (
        "c = Gemm(x, w, b)\ny = Mul(c, b)",
        weights(w=(4, 5), b=5),
        (4,),
        {"c": {"beta": 0.5}},
        ["Gemm", "Mul"],
    ),
    "tokens, MatMul and BatchNormalization": (
        "c = MatMul(x, w)" + NORM,
        weights(w=(4, 5)) | norm(3),
        (3, 4),
        {},
        ["MatMul", "BatchNormalization"],
    ),
    "as many tokens as features": (
        "c = MatMul(x, w)" + NORM,
        weights(w=(4, 4)) | norm(4),
        (4, 4),
        {},
        ["MatMul", "BatchNormalization"],
    ),
    "weights from the left": (
        "c = MatMul(w, x)\ny = Add(c, b)",
        weights(w=(5, 3), b=4),
        (3, 4),
        {},
        ["MatMul", "Add"],
    ),
    "constant over data": (
        "c = MatMul(x, w)\nd = Div(b, c)\ny = Add(d, b)",
        weights(w=(4, 5), b=5),
        (4,),
        {},
        ["MatMul", "Div", "Add"],
    ),
}


@pytest.mark.parametrize("name", APART)
def test_what_is_no_bias_or_scale_of_the_layer_stays(name):
    text, stored, x, attributes, ops = APART[name]
    check(linear(text, stored, x, **attributes), ops)


def test_gemm_of_a_turned_input_stays():
    nodes = steps("t = Transpose(x)\nc = Gemm(t, w)\ny = Add(c, b)", c={"transA": 1})
    model = graph(nodes, {"x": (4,)}, weights(w=(4, 5), b=5), outputs={"y": (5,)})
    check(model, ["Transpose", "Gemm", "Add"])


def test_whole_numbers_stay():
    text = "a = Add(i, one)\nb = Mul(a, two)\nn = Neg(b)\nm = Neg(n)\nf = Cast(m)\ny = Mul(x, f)"
    nodes = [
        node("Cast", ["x"], ["i"], "i", to=TensorProto.INT64),
        *steps(text, f={"to": TensorProto.DOUBLE}),
    ]
    stored = {"one": np.array([1]), "two": np.array([2])}
    model = graph(nodes, {"x": (4,)}, stored, outputs={"y": (4,)})
    joined = check(model, ["Cast", "Add", "Mul", "Neg", "Neg", "Cast", "Mul"])
    assert joined.active == {"x", "y"}


# -- names ----------------------------------------------------------------------------------------


def test_dropped_names_are_aliases():
    nodes = steps(
        "a = Relu(x)\nb = Identity(a)\nc = Dropout(b)\nd = Cast(c)\ny = Tanh(d)",
        d={"to": TensorProto.FLOAT},
    )
    joined = check(graph(nodes, {"x": (4,)}, outputs={"y": (4,)}), ["Relu", "Tanh"])
    assert {name: joined.aliases[name] for name in "bcd"} == dict.fromkeys("bcd", "a")


def test_an_identity_that_is_an_output_stays():
    nodes = steps("a = Relu(x)\nb = Identity(a)\ny = Tanh(b)")
    model = graph(nodes, {"x": (4,)}, outputs={"y": (4,), "b": (4,)})
    check(model, ["Relu", "Identity", "Tanh"])


@pytest.mark.parametrize("name", LAYERS)
def test_inner_tensors_can_be_explained_by_name(name):
    text, stored, x, attributes, _ = LAYERS[name]
    model = linear(text, stored, x, **attributes)
    for made in model.graph.node:
        assert ox.convert(model, outputs=list(made.output)).graph.outputs == tuple(made.output)
