"""Cases of the operators that feed-forward networks are made of."""

import numpy as np
import onnx

from .table import IMAGE, SIGNAL, SPAN, VOLUME, WIDE, Case, X, above, floats, ints, spread


def elementwise():
    for op in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Erf", "Mish", "Exp", "Abs"):
        yield Case(op, [X])
        yield Case(op, [WIDE if op != "Erf" else SPAN])
    yield Case("Relu", [VOLUME], opset=6)
    yield Case("Erfc", [SPAN])
    yield Case("LeakyRelu", [X])
    yield Case("LeakyRelu", [X], {"alpha": -0.3})
    yield Case("PRelu", [SIGNAL, spread(4, 1)])
    yield Case("PRelu", [SIGNAL, spread(3, 4, 6, low=0.1, high=0.9)])
    yield Case("PRelu", [X, np.array(0.2)])
    yield Case("ThresholdedRelu", [X], {"alpha": 0.7})
    yield Case("Clip", [X, np.array(-1.01), np.array(0.77)])
    yield Case("Clip", [X, None, np.array(0.77)])
    yield Case("Clip", [X, np.array(0.1)])
    yield Case("Clip", [X], {"min": -1.01, "max": 0.77}, opset=6)
    yield Case("HardSigmoid", [SPAN])
    yield Case("HardSigmoid", [SPAN], {"alpha": -0.3, "beta": 0.4})
    yield Case("HardSwish", [SPAN])
    yield Case("Elu", [X])
    yield Case("Elu", [WIDE], {"alpha": 2.5})
    yield Case("Selu", [WIDE])
    yield Case("Celu", [X])
    yield Case("Celu", [WIDE], {"alpha": 0.3})
    yield Case("Gelu", [SPAN])
    yield Case("Gelu", [SPAN], {"approximate": "tanh"})
    yield Case("Swish", [WIDE])
    yield Case("Swish", [SPAN], {"alpha": 1.702})
    yield Case("Log", [above(3, 4)])
    yield Case("Sqrt", [above(3, 4)])
    yield Case("Reciprocal", [above(3, 4)])
    yield Case("Reciprocal", [-above(3, 4)])
    yield Case("Div", [spread(3, 4), above(3, 4)], active=(1,))
    yield Case("Div", [spread(3, 5, 4), above(3, 1, 4)], active=(1,))
    yield Case("Div", [np.array(1.5), -above(3, 4)], active=(1,))
    for power in (0.3, 0.5, 1.0, 2.0, 3.0, -1.0, -2.5):
        yield Case("Pow", [above(3, 4), np.array(power)])
    for power in (1.0, 2.0, 3.0, 4.0, 5.0):
        yield Case("Pow", [X, np.array(power)])
    yield Case("Pow", [above(3, 1), spread(3, 4)])
    yield Case("Pow", [X, floats(2)])


def linear():
    yield Case("Gemm", [X, spread(4, 5), spread(5)])
    yield Case("Gemm", [X, spread(5, 4)], {"transB": 1})
    yield Case("Gemm", [X, spread(5, 4), np.array(0.3)], {"transB": 1, "alpha": 0.5, "beta": -2.0})
    yield Case("Gemm", [X, spread(3, 5), spread(4, 1)], {"transA": 1}, rows=False)
    yield Case("Gemm", [X, spread(4, 5), spread(1, 5)], opset=6)
    yield Case("MatMul", [X, spread(4, 5)])
    yield Case("MatMul", [X, spread(4)])
    yield Case("MatMul", [X, spread(4, 5), spread(5)])
    yield Case("MatMul", [SIGNAL, spread(6, 2)])
    yield Case("MatMul", [SIGNAL, spread(3, 6, 2)])
    yield Case("MatMul", [spread(3, 1, 4, 6), spread(2, 6, 5)])
    yield Case("MatMul", [spread(4), spread(4, 5)], rows=False)
    yield Case("MatMul", [spread(4), spread(2, 4, 5)], rows=False)
    yield Case("MatMul", [spread(5, 4), SIGNAL], active=(1,))
    yield Case("MatMul", [spread(4), SIGNAL], active=(1,))
    yield Case("MatMul", [spread(5, 3), X], active=(1,), rows=False)
    yield Case("MatMul", [spread(5, 4), spread(4)], active=(1,), rows=False)
    yield Case("MatMul", [spread(2, 5, 4), spread(3, 1, 4, 2)], active=(1,))
    statistics = [above(4), spread(4), spread(4), above(4)]
    yield Case("BatchNormalization", [X, *statistics])
    yield Case("BatchNormalization", [SIGNAL, *statistics], {"epsilon": 0.1}, opset=14)
    yield Case("BatchNormalization", [IMAGE, *statistics], opset=7)
    yield Case("ChannelAffine", [IMAGE, spread(4, 1, 1), spread(4, 1, 1)], domain="onnxplain")
    yield Case("ChannelAffine", [X, spread(4)], domain="onnxplain")
    yield Case("Neg", [X])
    for op in ("Add", "Sub"):
        yield Case(op, [X, spread(4)])
        yield Case(op, [spread(4), X], active=(1,))
        yield Case(op, [SIGNAL, spread(2, 1, 1, 1)], rows=False)
        yield Case(op, [spread(3, 1, 6), spread(4, 1)])
    for op in ("Sum", "Mean"):
        yield Case(op, [X])
        yield Case(op, [spread(4), X, np.array(0.3)], active=(1,))
    yield Case("Mul", [X, spread(4)])
    yield Case("Mul", [spread(4, 1), spread(3, 1, 6)], active=(1,))
    yield Case("Mul", [X, np.array(-0.5)])
    yield Case("Div", [X, above(4)])
    yield Case("Div", [spread(3, 1, 6), -above(4, 1)])
    yield from convolutions()
    yield from average_pools()
    yield from sums()
    yield from grids()


def convolutions():
    yield Case("Conv", [spread(2, 16, 6, 7), spread(16, 16, 3, 3) / 16], {"pads": (1, 1, 1, 1)})
    yield Case("Conv", [SIGNAL, spread(5, 4, 3), spread(5)])
    yield Case("Conv", [SIGNAL, spread(5, 4, 1)])
    yield Case("Conv", [SIGNAL, spread(4, 1, 3), spread(4)], {"group": 4, "pads": (2, 1)})
    yield Case("Conv", [SIGNAL, spread(8, 1, 3), spread(8)], {"group": 4, "strides": (2,)})
    yield Case("Conv", [IMAGE, spread(3, 4, 3, 2), spread(3)], {"strides": (2, 1)})
    yield Case("Conv", [IMAGE, spread(3, 4, 3, 2)], {"dilations": (2, 3), "pads": (1, 0, 2, 3)})
    yield Case("Conv", [IMAGE, spread(6, 2, 3, 3), spread(6)], {"group": 2, "strides": (2, 3)})
    yield Case("Conv", [IMAGE, spread(3, 4, 1, 1), spread(3)], {"strides": (2, 2)})
    yield Case("Conv", [IMAGE, spread(4, 1, 3, 3)], {"group": 4, "dilations": (1, 2)})
    for auto_pad in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        yield Case("Conv", [IMAGE, spread(3, 4, 2, 3)], {"auto_pad": auto_pad, "strides": (2, 2)})
    yield Case("Conv", [VOLUME, spread(3, 2, 2, 2, 3), spread(3)], {"pads": (1, 0, 1, 0, 1, 1)})
    yield Case("ConvTranspose", [SIGNAL, spread(4, 5, 3), spread(5)])
    yield Case("ConvTranspose", [SIGNAL, spread(4, 2, 3)], {"strides": (3,), "group": 2})
    yield Case("ConvTranspose", [IMAGE, spread(4, 3, 3, 2)], {"pads": (1, 0, 0, 1)})
    yield Case(
        "ConvTranspose",
        [IMAGE, spread(4, 1, 3, 3), spread(4)],
        {"group": 4, "strides": (2, 2), "pads": (1, 1, 1, 1), "output_padding": (1, 1)},
    )
    yield Case(
        "ConvTranspose",
        [IMAGE, spread(4, 3, 3, 2), spread(3)],
        {"strides": (3, 2), "dilations": (2, 1), "output_padding": (1, 0)},
    )
    yield Case("ConvTranspose", [IMAGE, spread(4, 3, 3, 3)], {"strides": (1, 3)})
    for auto_pad in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        attributes = {"auto_pad": auto_pad, "strides": (2, 2)}
        yield Case("ConvTranspose", [IMAGE, spread(4, 2, 3, 3)], attributes)
    yield Case(
        "ConvTranspose",
        [IMAGE, spread(4, 2, 3, 3)],
        {"output_shape": (10, 12), "strides": (2, 2)},
    )
    yield Case("ConvTranspose", [VOLUME, spread(2, 1, 2, 2, 2)], {"strides": (1, 2, 1)})


def pool_attributes():
    yield SIGNAL, {"kernel_shape": (2,), "strides": (2,)}
    yield SIGNAL, {"kernel_shape": (3,)}
    yield SIGNAL, {"kernel_shape": (3,), "strides": (2,), "ceil_mode": 1}
    yield IMAGE, {"kernel_shape": (3, 2), "strides": (2, 2), "pads": (1, 0, 1, 1)}
    yield IMAGE, {"kernel_shape": (3, 3), "strides": (1, 2), "pads": (1, 1, 1, 1), "ceil_mode": 1}
    yield IMAGE, {"kernel_shape": (2, 3), "auto_pad": "SAME_UPPER", "strides": (2, 2)}
    yield IMAGE, {"kernel_shape": (2, 3), "auto_pad": "SAME_LOWER"}
    yield IMAGE, {"kernel_shape": (2, 3), "auto_pad": "VALID", "strides": (3, 2)}
    yield IMAGE, {"kernel_shape": (2, 2), "dilations": (2, 3)}
    yield VOLUME, {"kernel_shape": (2, 2, 3), "strides": (1, 1, 2), "pads": (0, 0, 1, 1, 0, 1)}


def average_pools():
    for x, attributes in pool_attributes():
        yield Case("AveragePool", [x], attributes)
        if "pads" in attributes:
            yield Case("AveragePool", [x], attributes | {"count_include_pad": 1})
    yield Case("AveragePool", [IMAGE], {"kernel_shape": (2, 2), "strides": (2, 2)}, opset=7)
    for x in (SIGNAL, IMAGE, VOLUME):
        yield Case("GlobalAveragePool", [x])


def sums():
    for op in ("ReduceSum", "ReduceMean"):
        yield Case(op, [SIGNAL, ints(1)])
        yield Case(op, [SIGNAL, ints(-1, 1)], {"keepdims": 0})
        yield Case(op, [SIGNAL], {"axes": (2,), "keepdims": 0}, opset=11)
        yield Case(op, [SIGNAL], {"axes": (-2, 2)}, opset=11)
        yield Case(op, [SIGNAL], rows=False)
        yield Case(op, [SIGNAL], {"noop_with_empty_axes": 1})
        yield Case(op, [SIGNAL, ints(0)], {"keepdims": 0}, rows=False)


def grids():
    double = floats(1, 1, 2, 3)
    yield Case("Upsample", [IMAGE], {"scales": (1.0, 1.0, 2.0, 3.0)}, opset=7)
    yield Case("Upsample", [IMAGE, double], {"mode": "linear"}, opset=9)
    yield Case("Resize", [IMAGE, floats(1, 1, 0.6, 0.5)], opset=10)
    yield Case("Resize", [IMAGE, None, double])
    yield Case("Resize", [IMAGE, None, None, ints(7, 4)], {"mode": "linear", "axes": (2, 3)})
    yield Case("Resize", [IMAGE, None, floats(1, 1, 1.7, 0.4)], {"mode": "cubic"})
    yield Case("Resize", [IMAGE, None, floats(1.7, 0.4, 2)], {"mode": "cubic", "axes": (1, 2, 3)})
    yield Case("Resize", [SIGNAL, None, floats(1, 1, 0.5)], {"mode": "cubic", "antialias": 1})
    yield Case(
        "Resize",
        [IMAGE, floats(-0.3, 0.1, 1.2, 0.8), None, ints(9, 8)],
        {
            "mode": "linear",
            "axes": (2, 3),
            "coordinate_transformation_mode": "tf_crop_and_resize",
            "extrapolation_value": 2.5,
        },
    )


def routing():
    yield Case("Identity", [X])
    yield Case("Dropout", [X], {"ratio": 0.5}, opset=7)
    yield Case("Dropout", [X, floats(0.5), np.array(False)], n_outputs=2)
    yield Case("Flatten", [IMAGE])
    yield Case("Flatten", [IMAGE], {"axis": -2}, rows=False)
    yield Case("Reshape", [SIGNAL, ints(0, 3, -1)])
    yield Case("Reshape", [SIGNAL, ints(-1, 24)], {"allowzero": 1})
    yield Case("Transpose", [IMAGE], rows=False)
    yield Case("Transpose", [IMAGE], {"perm": (0, 2, 3, 1)})
    yield Case("Squeeze", [spread(3, 1, 4, 1)], {"axes": (1,)}, opset=11)
    yield Case("Squeeze", [spread(3, 1, 4, 1), ints(-1, 1)])
    yield Case("Unsqueeze", [X], {"axes": (1, 3)}, opset=11)
    yield Case("Unsqueeze", [X, ints(-1, 1)])
    yield Case("Cast", [X], {"to": onnx.TensorProto.FLOAT})
    yield Case("Cast", [X], {"to": onnx.TensorProto.DOUBLE}, opset=9)
    yield Case("CastLike", [X, np.zeros(1)])
    yield Case("Concat", [SIGNAL, spread(3, 2, 6)], {"axis": 1}, active=(0, 1))
    pieces = [SIGNAL, spread(3, 4, 1), spread(3, 4, 2)]
    yield Case("Concat", pieces, {"axis": -1}, active=(0, 2), rows=False)
    yield Case("Concat", [spread(1, 2, 6), spread(1, 1, 6)], {"axis": 1}, active=(1,), rows=False)
    yield Case("Split", [SIGNAL], {"axis": 1, "num_outputs": 3}, n_outputs=3)
    yield Case("Split", [SIGNAL, ints(1, 3, 2)], {"axis": -1}, n_outputs=3)
    yield Case("Split", [SIGNAL], {"axis": 2, "split": (1, 5)}, n_outputs=2, opset=11)
    yield Case("Slice", [SIGNAL], {"starts": (1, 0), "ends": (3, 1000), "axes": (1, 2)}, opset=9)
    yield Case("Slice", [SIGNAL, ints(1), ints(-1), ints(2)])
    yield Case("Slice", [SIGNAL, ints(-1, 5), ints(-1000, 0), ints(1, 2), ints(-1, -2)])
    yield Case("Gather", [SIGNAL, np.array(-1)], {"axis": 1})
    yield Case("Gather", [SIGNAL, ints(0, 5, 5, -1, 2)], {"axis": 2})
    yield Case("Gather", [SIGNAL, np.array([[0, 3], [3, 3]])], {"axis": -2})
    yield Case("Gather", [X, ints(2, 0, 0)], rows=False)
    yield Case("Pad", [SIGNAL], {"pads": (0, 1, 2, 0, 0, 3), "value": 1.5}, opset=2)
    yield Case("Pad", [SIGNAL, ints(0, 1, -2, 0, 0, 3), np.array(2.0)])
    yield Case("Pad", [SIGNAL, ints(2, 3), None, ints(-1)])
    for mode, pads in (("reflect", (0, 3, 2, 0, 2, 5)), ("edge", (0, -1, 2, 0, 2, -3))):
        yield Case("Pad", [SIGNAL, ints(*pads)], {"mode": mode})
    yield Case("Pad", [SIGNAL, ints(0, 3, 2, 0, 2, 9)], {"mode": "wrap"})
    yield Case("Expand", [spread(3, 1, 6), ints(1, 4, 1)])
    yield Case("Expand", [spread(3, 6), ints(2, 1, 1)], rows=False)
    yield Case("Tile", [SIGNAL, ints(1, 2, 3)])
    yield Case("DepthToSpace", [spread(2, 8, 2, 3)], {"blocksize": 2}, opset=10)
    yield Case("DepthToSpace", [spread(2, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"})
    yield Case("SpaceToDepth", [spread(2, 2, 4, 6)], {"blocksize": 2})
    mask = np.arange(24).reshape(4, 6) % 3 == 0
    yield Case("Where", [mask, SIGNAL, spread(3, 4, 6)], active=(1, 2), exact=True)
    yield Case("Where", [mask, SIGNAL, np.array(-7.0)], active=(1,), exact=True)
    yield Case("Where", [mask, spread(4, 6), spread(3, 1, 6)], active=(2,), exact=True)


def merges_and_products():
    other = spread(3, 4, low=-1, high=3)
    for op in ("Add", "Sub", "Mul", "Sum", "Mean"):
        yield Case(op, [X, other], active=(0, 1))
    for op in ("Add", "Sub", "Mul"):
        yield Case(op, [SIGNAL, spread(3, 1, 6)], active=(0, 1))
        yield Case(op, [spread(3, 4, 1), spread(3, 1, 6)], active=(0, 1))
    for op in ("Sum", "Mean"):
        yield Case(op, [X, other, spread(4)], active=(0, 1))
        yield Case(op, [X, other, spread(3, 1)], active=(0, 1, 2))
    yield Case("Div", [X, above(3, 4)], active=(0, 1))
    yield Case("Div", [SIGNAL, -above(3, 1, 6)], active=(0, 1))
    yield Case("Gemm", [X, spread(4, 5), spread(5)], active=(0, 1), rows=False)
    transposed = {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}
    yield Case("Gemm", [spread(4, 3), spread(5, 4)], transposed, active=(0, 1), rows=False)
    yield Case("MatMul", [SIGNAL, spread(3, 6, 5)], active=(0, 1))
    yield Case("MatMul", [spread(3, 2, 4, 6), spread(3, 1, 6, 5)], active=(0, 1))
    yield Case("MatMul", [spread(4), spread(4)], active=(0, 1), rows=False)
    yield Case("MatMul", [spread(4), spread(2, 4, 5)], active=(0, 1), rows=False)
    yield Case("MatMul", [SIGNAL, spread(6)], active=(0, 1), rows=False)


def selectors():
    for x, attributes in pool_attributes():
        yield Case("MaxPool", [x], attributes)
    yield Case("MaxPool", [IMAGE], {"kernel_shape": (2, 2)}, n_outputs=2)
    yield Case("MaxPool", [IMAGE], {"kernel_shape": (2, 2), "strides": (2, 2)}, opset=8)
    for x in (SIGNAL, IMAGE, VOLUME):
        yield Case("GlobalMaxPool", [x])
    for op in ("ReduceMax", "ReduceMin"):
        yield Case(op, [SIGNAL, ints(1)])
        yield Case(op, [SIGNAL, ints(-1, 1)], {"keepdims": 0})
        yield Case(op, [SIGNAL], {"axes": (2,), "keepdims": 0}, opset=11)
        yield Case(op, [SIGNAL], rows=False)
        yield Case(op, [SIGNAL], {"noop_with_empty_axes": 1})
    for op in ("Max", "Min"):
        values = spread(3, 3, 4)
        yield Case(op, [values[0]])
        yield Case(op, [values[0], values[1]], active=(0, 1))
        yield Case(op, [values[0], values[1], values[2]], active=(0, 1, 2))
        yield Case(op, [values[0], np.array(0.31)])
        yield Case(op, [spread(4, low=-1, high=1), values[0], values[1]], active=(1, 2))
        yield Case(op, [spread(3, 4, 1), spread(3, 1, 6, low=-1.9, high=1.7)], active=(0, 1))


def axes():
    yield Case("Softmax", [X])
    yield Case("Softmax", [IMAGE], {"axis": 1})
    yield Case("Softmax", [SIGNAL], {"axis": 1}, opset=11)
    yield Case("LogSoftmax", [X])
    yield Case("LogSoftmax", [IMAGE], {"axis": 1})
    yield Case("LogSoftmax", [SIGNAL], {"axis": -2}, opset=11)
    yield Case("LayerNormalization", [SIGNAL, spread(6), spread(6)])
    yield Case("LayerNormalization", [SIGNAL, spread(4, 6)], {"axis": 1, "epsilon": 0.1})
    yield Case("LayerNormalization", [SIGNAL, spread(6), spread(6)], n_outputs=3, opset=17)
    yield Case("InstanceNormalization", [SIGNAL, spread(4), spread(4)])
    yield Case("InstanceNormalization", [IMAGE, spread(4), spread(4)], {"epsilon": 0.1})
    yield Case("LRN", [IMAGE], {"size": 3, "alpha": 0.5, "beta": 0.75, "bias": 1.0})
    yield Case("LRN", [SIGNAL], {"size": 2, "alpha": 1.0, "beta": 0.5, "bias": 2.0})
    yield Case("ReduceL2", [SIGNAL, ints(1)])
    yield Case("ReduceL2", [SIGNAL, ints(-1, 1)], {"keepdims": 0})
    yield Case("ReduceL2", [SIGNAL], {"axes": (2,), "keepdims": 0}, opset=11)
    yield Case("ReduceL2", [SIGNAL], rows=False)
    yield Case("ReduceL2", [SIGNAL], {"noop_with_empty_axes": 1})


def classical():
    """Operators of ai.onnx.ml."""
    ml = "ai.onnx.ml"
    for norm in ("MAX", "L1", "L2"):
        yield Case("Normalizer", [X], {"norm": norm}, domain=ml)
    yield Case("Normalizer", [above(3, 4)], {"norm": "MAX"}, domain=ml)
    yield Case("ArrayFeatureExtractor", [X, ints(2, 0, 2)], domain=ml)
    yield Case("ArrayFeatureExtractor", [SIGNAL, ints(5, 1).reshape(1, 2)], domain=ml)
    filling = {"imputed_value_floats": (0.5, -1.0, 2.0, 0.1)}
    yield Case("Imputer", [X], filling | {"replaced_value_float": float("nan")}, domain=ml)
    yield Case("Imputer", [X], filling | {"replaced_value_float": 9.0}, domain=ml)


CASES = [
    *elementwise(),
    *linear(),
    *routing(),
    *merges_and_products(),
    *selectors(),
    *axes(),
    *classical(),
]
