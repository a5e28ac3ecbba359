"""The same function written in another way has the same explanation."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, version_converter

import onnxplain as ox
from networks import graph

node = helper.make_node
RNG = np.random.default_rng(0)
W1, B1 = RNG.standard_normal((5, 4)), RNG.standard_normal(5)
W2, B2 = RNG.standard_normal((3, 5)), RNG.standard_normal(3)
K, KB = RNG.standard_normal((4, 2, 3, 3)), RNG.standard_normal(4)
V, VB = RNG.standard_normal((3, 4 * 4 * 4)) / 4, RNG.standard_normal(3)
SCALE, SHIFT, MEAN = (RNG.standard_normal(4) for _ in range(3))
VAR = RNG.uniform(0.5, 2, 4)
FACTOR = SCALE / np.sqrt(VAR + 1e-5)
DENSE, IMAGE = {"x": (4,)}, {"x": (2, 4, 4)}

METHODS = {
    "Gradient": lambda c, x, r, **o: ox.Gradient(c, x, **o),
    "IntegratedGradient": lambda c, x, r, **o: ox.IntegratedGradient(c, x, x_ref=r, n=5, **o),
    "DeepLift": lambda c, x, r, **o: ox.DeepLift(c, x, x_ref=r, **o),
    "DeepLift average": lambda c, x, r, **o: ox.DeepLift(
        c, x, x_ref=r, winner_takes_all=False, **o
    ),
    "reveal_cancel": lambda c, x, r, **o: ox.DeepLift(
        c, x, x_ref=r, rule_name="reveal_cancel", **o
    ),
    "LRP": lambda c, x, r, **o: ox.LRP(c, x, **o),
    "LRP epsilon": lambda c, x, r, **o: ox.LRP(c, x, rule_name="epsilon", rule_param=0.1, **o),
    "LRP alpha_beta": lambda c, x, r, **o: ox.LRP(
        c, x, rule_name="alpha_beta", rule_param=2.0, **o
    ),
    "LRP gamma": lambda c, x, r, **o: ox.LRP(c, x, rule_name="gamma", **o),
}
EXACT = ("Gradient", "IntegratedGradient", "DeepLift", "DeepLift average", "reveal_cancel")


def dense(*middle, weights=None):
    """x, a dense layer to h, what stands between h and a, a dense layer to y."""
    nodes = [
        node("Gemm", ["x", "W1", "B1"], ["h"], "first", transB=1),
        *middle,
        node("Gemm", ["a", "W2", "B2"], ["y"], "last", transB=1),
    ]
    stored = {"W1": W1, "B1": B1, "W2": W2, "B2": B2} | (weights or {})
    return graph(nodes, DENSE, stored, outputs={"y": (3,)})


def image(*first, weights=None):
    """x, what makes h of it, Relu, a dense layer to y."""
    nodes = [
        *first,
        node("Relu", ["h"], ["a"], "relu"),
        node("Flatten", ["a"], ["f"], "flatten"),
        node("Gemm", ["f", "V", "VB"], ["y"], "last", transB=1),
    ]
    stored = {"V": V, "VB": VB} | (weights or {})
    return graph(nodes, IMAGE, stored, outputs={"y": (3,)})


def relu(start="h", end="a"):
    return node("Relu", [start], [end], "relu")


def chain(*steps, weights=None):
    """A dense net with single-input nodes (op, further inputs, attributes) around its Relu."""
    names = [f"s{i}" for i in range(len(steps))]
    made, current = [], "h"
    for name, (op, inputs, attributes) in zip(names, steps, strict=True):
        made.append(node(op, [current, *inputs], [name], name, **attributes))
        current = name
    return dense(*made, relu(current), weights=weights)


def plain():
    return dense(relu())


def matmul_add():
    nodes = [
        node("MatMul", ["x", "W1t"], ["m"], "first"),
        node("Add", ["B1", "m"], ["h"], "bias"),
        relu(),
        node("MatMul", ["a", "W2t"], ["n"], "last"),
        node("Add", ["n", "B2"], ["y"], "bias2"),
    ]
    stored = {"W1t": W1.T, "B1": B1, "W2t": W2.T, "B2": B2}
    return graph(nodes, DENSE, stored, outputs={"y": (3,)})


def matmul_sub():
    nodes = [
        node("MatMul", ["x", "W1t"], ["m"], "first"),
        node("Sub", ["m", "minus"], ["h"], "bias"),
        relu(),
        node("Gemm", ["a", "W2", "half"], ["y"], "last", transB=1, beta=2.0),
    ]
    stored = {"W1t": W1.T, "minus": -B1, "W2": W2, "half": B2 / 2}
    return graph(nodes, DENSE, stored, outputs={"y": (3,)})


def constant_nodes():
    """Weights as Constant nodes, one of them computed from others."""

    def constant(name, value):
        return node("Constant", [], [name], name, value=numpy_helper.from_array(value))

    nodes = [
        constant("W1t", W1.T.copy()),
        node("Transpose", ["W1t"], ["W1"], "turn", perm=[1, 0]),
        *(constant(n, v) for n, v in (("B1", B1), ("W2", W2), ("B2", B2))),
        *plain().graph.node,
    ]
    return graph(nodes, DENSE, {}, outputs={"y": (3,)})


def shared():
    return dense(relu("h", "r"), node("Add", ["r", "r"], ["a"], "double"))


def duplicated():
    """Both operands of the Add computed from scratch."""
    return dense(
        relu("h", "r"),
        node("Gemm", ["x", "W1", "B1"], ["h2"], "first2", transB=1),
        node("Relu", ["h2"], ["r2"], "relu2"),
        node("Add", ["r", "r2"], ["a"], "double"),
    )


def branches(order):
    made = [
        node("Gemm", ["x", "W1", "B1"], ["h"], "first", transB=1),
        node("Relu", ["h"], ["r"], "relu"),
        node("Tanh", ["x"], ["t"], "tanh"),
        node("MatMul", ["t", "U"], ["u"], "second"),
        node("Sigmoid", ["u"], ["s"], "gate"),
        node("Mul", ["r", "s"], ["g"], "product"),
        node("Gemm", ["g", "W2", "B2"], ["y"], "last", transB=1),
    ]
    stored = {"W1": W1, "B1": B1, "W2": W2, "B2": B2, "U": W1.T.copy()}
    return graph([made[i] for i in order], DENSE, stored, outputs={"y": (3,)})


def conv_norm():
    return image(
        node("Conv", ["x", "K", "KB"], ["c"], "conv", pads=[1] * 4),
        node("BatchNormalization", ["c", "SCALE", "SHIFT", "MEAN", "VAR"], ["h"], "norm"),
        weights={"K": K, "KB": KB, "SCALE": SCALE, "SHIFT": SHIFT, "MEAN": MEAN, "VAR": VAR},
    )


def conv_folded():
    bias = (KB - MEAN) * FACTOR + SHIFT
    return image(
        node("Conv", ["x", "K", "KB"], ["h"], "conv", pads=[1] * 4),
        weights={"K": K * FACTOR[:, None, None, None], "KB": bias},
    )


def conv_affine():
    return image(
        node("Conv", ["x", "K", "KB"], ["c"], "conv", pads=[1] * 4),
        node("Sub", ["c", "MEAN"], ["d"], "centre"),
        node("Mul", ["FACTOR", "d"], ["e"], "scale"),
        node("Add", ["e", "SHIFT"], ["h"], "shift"),
        weights={
            "K": K,
            "KB": KB,
            **{
                name: v.reshape(4, 1, 1)
                for name, v in (("MEAN", MEAN), ("FACTOR", FACTOR), ("SHIFT", SHIFT))
            },
        },
    )


def pooled(*nodes, weights=None):
    """A convolution and a mean over all places."""
    made = [
        node("Conv", ["x", "K", "KB"], ["c"], "conv", pads=[1] * 4),
        node("Relu", ["c"], ["r"], "relu"),
        *nodes,
        node("Gemm", ["p", "U", "VB"], ["y"], "last", transB=1),
    ]
    stored = {"K": K, "KB": KB, "U": V[:, :4], "VB": VB} | (weights or {})
    return graph(made, IMAGE, stored, outputs={"y": (3,)})


def ints(*values):
    return np.array(values, np.int64)


CAST = {"to": TensorProto.DOUBLE}
PAIRS = {
    # name: (one way, another way, what must agree)
    "Gemm, MatMul and Add": (plain, matmul_add, METHODS),
    "Gemm, MatMul and Sub, beta": (plain, matmul_sub, METHODS),
    "initializers, Constant nodes": (plain, constant_nodes, METHODS),
    "Identity": (plain, lambda: chain(("Identity", [], {}), ("Identity", [], {})), METHODS),
    "Dropout": (plain, lambda: chain(("Dropout", [], {})), METHODS),
    "Cast": (plain, lambda: chain(("Cast", [], CAST), ("Cast", [], CAST)), METHODS),
    "Reshape pair": (
        plain,
        lambda: chain(
            ("Reshape", ["there"], {}),
            ("Reshape", ["back"], {}),
            weights={"there": ints(0, 5, 1), "back": ints(-1, 5)},
        ),
        METHODS,
    ),
    "Unsqueeze and Squeeze": (
        plain,
        lambda: chain(
            ("Unsqueeze", ["one"], {}), ("Squeeze", ["one"], {}), weights={"one": ints(1)}
        ),
        METHODS,
    ),
    "Transpose pair": (
        plain,
        lambda: chain(
            ("Unsqueeze", ["one"], {}),
            ("Transpose", [], {"perm": [0, 2, 1]}),
            ("Transpose", [], {"perm": [2, 0, 1]}),
            ("Transpose", [], {"perm": [1, 2, 0]}),
            ("Flatten", [], {}),
            weights={"one": ints(1)},
        ),
        METHODS,
    ),
    "Split and Concat": (
        plain,
        lambda: dense(
            node("Split", ["h", "sizes"], ["p", "q"], "split", axis=1),
            node("Concat", ["p", "q"], ["j"], "join", axis=1),
            relu("j"),
            weights={"sizes": ints(2, 3)},
        ),
        # Parts of a difference are not known behind a Split: there RevealCancel is Rescale.
        set(METHODS) - {"reveal_cancel"},
    ),
    "Slice and Concat": (
        plain,
        lambda: dense(
            node("Slice", ["h", "n0", "n2", "n1"], ["p"], "slice"),
            node("Slice", ["h", "n2", "n5", "n1"], ["q"], "slice2"),
            node("Concat", ["p", "q"], ["j"], "join", axis=1),
            relu("j"),
            weights={"n0": ints(0), "n1": ints(1), "n2": ints(2), "n5": ints(5)},
        ),
        set(METHODS) - {"reveal_cancel"},
    ),
    "shared, duplicated": (shared, duplicated, METHODS),
    "order of nodes": (
        lambda: branches([0, 1, 2, 3, 4, 5, 6]),
        lambda: branches([2, 3, 4, 0, 1, 5, 6]),
        METHODS,
    ),
    "Relu, Clip": (
        plain,
        lambda: dense(node("Clip", ["h", "zero"], ["a"], "clip"), weights={"zero": np.array(0.0)}),
        METHODS,
    ),
    "Relu, Max": (
        plain,
        lambda: dense(node("Max", ["zero", "h"], ["a"], "max"), weights={"zero": np.zeros((1, 1))}),
        set(METHODS) - {"reveal_cancel"},  # a rule of activations; Max is shared by Shapley values
    ),
    "Relu, Abs": (
        plain,
        lambda: dense(
            node("Abs", ["h"], ["b"], "abs"),
            node("Add", ["h", "b"], ["c"], "sum"),
            node("Div", ["c", "two"], ["a"], "half"),
            weights={"two": np.array(2.0)},
        ),
        ("Gradient", "IntegratedGradient", "DeepLift", "DeepLift average"),
    ),
    "Neg, Sub": (
        lambda: dense(node("Neg", ["h"], ["m"], "neg"), relu("m")),
        lambda: dense(
            node("Sub", ["zero", "h"], ["m"], "neg"), relu("m"), weights={"zero": np.array(0.0)}
        ),
        METHODS,
    ),
    "Neg, Mul": (
        lambda: dense(node("Neg", ["h"], ["m"], "neg"), relu("m")),
        lambda: dense(
            node("Mul", ["h", "c"], ["m"], "neg"), relu("m"), weights={"c": np.array([-1.0])}
        ),
        METHODS,
    ),
    "Div, Mul": (
        lambda: dense(
            node("Div", ["h", "c"], ["m"], "scale"), relu("m"), weights={"c": np.array([0.5])}
        ),
        lambda: dense(
            node("Mul", ["c", "h"], ["m"], "scale"), relu("m"), weights={"c": np.array(2.0)}
        ),
        METHODS,
    ),
    "Sub, Add and Neg": (
        lambda: dense(relu("h", "r"), node("Sub", ["r", "h"], ["a"], "sub")),
        lambda: dense(
            relu("h", "r"),
            node("Neg", ["h"], ["m"], "neg"),
            node("Add", ["r", "m"], ["a"], "sub"),
        ),
        METHODS,
    ),
    "Sum, Add": (
        lambda: dense(relu("h", "r"), node("Sum", ["r", "h", "r"], ["a"], "sum")),
        lambda: dense(
            relu("h", "r"),
            node("Add", ["r", "h"], ["q"], "sum"),
            node("Add", ["q", "r"], ["a"], "sum2"),
        ),
        EXACT,  # LRP shares in each Add anew, with a stabiliser of its own
    ),
    "square": (
        lambda: dense(node("Mul", ["h", "h"], ["a"], "square")),
        lambda: dense(node("Pow", ["h", "two"], ["a"], "square"), weights={"two": np.array(2.0)}),
        ("Gradient", "IntegratedGradient", "DeepLift", "DeepLift average", "LRP"),
    ),
    "axis of a Softmax": (
        lambda: dense(node("Softmax", ["h"], ["a"], "softmax", axis=1)),
        lambda: dense(node("Softmax", ["h"], ["a"], "softmax", axis=-1)),
        METHODS,
    ),
    "Softmax, Exp of LogSoftmax": (
        lambda: dense(node("Softmax", ["h"], ["a"], "softmax", axis=1)),
        lambda: dense(
            node("LogSoftmax", ["h"], ["l"], "log", axis=1), node("Exp", ["l"], ["a"], "exp")
        ),
        ("Gradient", "IntegratedGradient", "DeepLift"),
    ),
    "BatchNormalization folded": (conv_folded, conv_norm, METHODS),
    "BatchNormalization as Sub, Mul, Add": (conv_norm, conv_affine, METHODS),
    "means over places": (
        lambda: pooled(
            node("GlobalAveragePool", ["r"], ["g"], "pool"), node("Flatten", ["g"], ["p"], "flat")
        ),
        lambda: pooled(
            node("ReduceMean", ["r", "axes"], ["p"], "pool", keepdims=0),
            weights={"axes": ints(2, 3)},
        ),
        METHODS,
    ),
    "mean over places, AveragePool": (
        lambda: pooled(
            node("GlobalAveragePool", ["r"], ["g"], "pool"), node("Flatten", ["g"], ["p"], "flat")
        ),
        lambda: pooled(
            node("AveragePool", ["r"], ["g"], "pool", kernel_shape=[4, 4]),
            node("Squeeze", ["g", "axes"], ["p"], "flat"),
            weights={"axes": ints(2, -1)},
        ),
        METHODS,
    ),
    "maximum over places": (
        lambda: pooled(
            node("GlobalMaxPool", ["r"], ["g"], "pool"), node("Flatten", ["g"], ["p"], "flat")
        ),
        lambda: pooled(
            node("ReduceMax", ["r", "axes"], ["p"], "pool", keepdims=0),
            weights={"axes": ints(2, 3)},
        ),
        METHODS,
    ),
    "maximum over places, MaxPool": (
        lambda: pooled(
            node("GlobalMaxPool", ["r"], ["g"], "pool"), node("Flatten", ["g"], ["p"], "flat")
        ),
        lambda: pooled(
            node("MaxPool", ["r"], ["g"], "pool", kernel_shape=[4, 4]),
            node("Reshape", ["g", "shape"], ["p"], "flat"),
            weights={"shape": ints(0, -1)},
        ),
        METHODS,
    ),
}
CASES = [
    (pair, method) for pair, (_, _, agree) in PAIRS.items() for method in METHODS if method in agree
]


def explain(model, method, **options):
    """Return the result for fixed data, with an instance that equals the reference in part."""
    converter = ox.convert(model, dtype="double")
    rng = np.random.default_rng(1)
    dim = converter.input_dim[0]
    data, reference = rng.standard_normal((4, *dim)), rng.standard_normal((1, *dim))
    data[0, :1] = reference[0, :1]
    return METHODS[method](converter, data, reference, dtype="double", **options).get_result()


@pytest.mark.parametrize(("pair", "method"), CASES)
def test_the_way_of_writing_does_not_matter(pair, method):
    one, other, _ = PAIRS[pair]
    a, b = explain(one(), method), explain(other(), method)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * max(1, np.abs(a).max()))


@pytest.mark.parametrize("pair", PAIRS)
def test_both_ways_predict_the_same(pair):
    one, other, _ = PAIRS[pair]
    x = np.random.default_rng(2).standard_normal((5, *ox.convert(one()).input_dim[0]))
    a, b = (ox.convert(model(), dtype="double")(x)[0] for model in (one, other))
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


# -- opsets ---------------------------------------------------------------------------------------


def old_model():
    """A model of opset 9, full of what later opsets write in another way."""
    rng = np.random.default_rng(5)
    nodes = [
        node("Pad", ["x"], ["p"], "pad", pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="reflect"),
        node("Conv", ["p", "K", "KB"], ["c"], "conv"),
        node("BatchNormalization", ["c", *("SCALE", "SHIFT", "MEAN", "VAR")], ["n"], "norm"),
        node("Clip", ["n"], ["r"], "clip", min=0.0, max=6.0),
        node("Dropout", ["r"], ["d"], "dropout", ratio=0.5),
        node("Upsample", ["d", "scales"], ["u"], "upsample", mode="nearest"),
        node("MaxPool", ["u"], ["m"], "pool", kernel_shape=[3, 3], strides=[2, 2]),
        node("Slice", ["m"], ["s"], "slice", axes=[2], starts=[0], ends=[2]),
        node("Split", ["s"], ["a", "b"], "split", axis=1, split=[1, 3]),
        node("Concat", ["b", "a"], ["j"], "concat", axis=1),
        node("ReduceMean", ["j"], ["q"], "mean", axes=[2], keepdims=0),
        node("Unsqueeze", ["q"], ["v"], "unsqueeze", axes=[1]),
        node("Squeeze", ["v"], ["w"], "squeeze", axes=[1]),
        node("ReduceSum", ["w"], ["z"], "sum", axes=[2], keepdims=0),
        node("Gemm", ["z", "U", "VB"], ["l"], "last", transB=1),
        node("Softmax", ["l"], ["y"], "softmax", axis=1),
    ]
    stored = {
        "K": K,
        "KB": KB,
        "SCALE": SCALE,
        "SHIFT": SHIFT,
        "MEAN": MEAN,
        "VAR": VAR,
        "scales": np.array([1, 1, 2, 2]),
        "U": rng.standard_normal((3, 4)),
        "VB": VB,
    }
    stored = {name: np.asarray(w, np.float32) for name, w in stored.items()}
    return graph(nodes, IMAGE, stored, dtype="float32", outputs={"y": (3,)}, opset=9)


@pytest.mark.parametrize("opset", [13, 18, 21])
@pytest.mark.parametrize("last", [True, False])
def test_the_opset_does_not_matter(opset, last):
    model = old_model()
    model.ir_version = 8  # IR 3 wants initializers among the inputs, which the converter leaves out
    newer = version_converter.convert_version(model, opset)
    assert {o.version for o in newer.opset_import if not o.domain} == {opset}
    for method in METHODS:
        a, b = (explain(m, method, ignore_last_act=last) for m in (model, newer))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1, np.abs(a).max()))


def test_models_survive_the_checker():
    for one, other, _ in PAIRS.values():
        for model in (one(), other()):
            onnx.checker.check_model(model, full_check=True)
