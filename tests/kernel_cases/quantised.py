"""Cases of the operators that quantise: the smooth functions whose slopes their signals have."""

import numpy as np

from .table import IMAGE, SIGNAL, Case, X, above, spread

SMOOTH = {"rounds": False}


def bytes_(*values):
    return np.array(values, np.uint8)


def cases():
    scale = np.array(0.013)
    yield Case("QuantizeLinear", [X, scale, bytes_(128)], SMOOTH)
    yield Case("QuantizeLinear", [X, scale, np.array(-128, np.int8)], SMOOTH)
    yield Case("QuantizeLinear", [X, np.array(0.02)], SMOOTH, opset=10)
    yield Case("QuantizeLinear", [IMAGE, above(4) / 90, bytes_(0, 10, 128, 255)], SMOOTH)
    yield Case("QuantizeLinear", [X, above(4) / 90], SMOOTH | {"axis": -1, "output_dtype": 3})
    blocks = {"axis": 2, "block_size": 4}
    yield Case(
        "QuantizeLinear", [SIGNAL, above(3, 4, 2) / 90], SMOOTH | blocks | {"output_dtype": 2}
    )
    yield Case("DequantizeLinear", [X, scale, bytes_(128)])
    yield Case("DequantizeLinear", [IMAGE, above(4), bytes_(0, 10, 128, 255)])
    yield Case("DequantizeLinear", [SIGNAL, above(3, 4, 2)], blocks)
    yield Case("DequantizeLinear", [spread(3, 5), np.array(0.5)], opset=10)
    yield Case("DynamicRounding", [X], SMOOTH, domain="onnxplain")


CASES = list(cases())
