"""Cases of operators that pick, place and order elements."""

import numpy as np

from .table import IMAGE, SIGNAL, Case, X, ints, spread


def picking():
    last = np.array([[[0, -1, 5], [2, 2, 2]]] * 3)
    yield Case("GatherElements", [SIGNAL, last], {"axis": 2}, rows=False)
    yield Case("GatherElements", [X, ints([2, 0, 1, -1])], {"axis": 0}, rows=False)
    yield Case("GatherElements", [spread(3, 1), np.zeros((3, 20), int)], {"axis": 1}, rows=False)
    yield Case("GatherND", [SIGNAL, ints([0, 1], [2, -1], [0, 1])], rows=False)
    yield Case("GatherND", [SIGNAL, ints([[0, 1, 2]], [[2, 3, -1]])], rows=False)
    yield Case("GatherND", [SIGNAL, ints([1], [0], [-1])], {"batch_dims": 1}, rows=False)
    yield Case("GatherND", [X, ints([0, 1], [2, 2])], opset=11, rows=False)
    yield Case("Compress", [SIGNAL, np.array([True, False, False, True])], {"axis": 1})
    yield Case("Compress", [SIGNAL, np.array([False, True, True])], {"axis": -1})
    yield Case("Compress", [X, np.arange(11) % 3 == 0], rows=False)
    yield Case(
        "ReverseSequence", [SIGNAL, ints(1, 3, 4)], {"batch_axis": 0, "time_axis": 1}, rows=False
    )
    yield Case("ReverseSequence", [IMAGE, ints(4, 2, 1, 4)], {"batch_axis": 1, "time_axis": 2})
    yield Case("ReverseSequence", [IMAGE, ints(4, 2, 1, 4)], {"batch_axis": 1, "time_axis": 3})
    yield Case("CenterCropPad", [IMAGE, ints(3, 9)], {"axes": [2, -1]})
    yield Case("CenterCropPad", [IMAGE, ints(2, 5, 6, 3)])


def placing():
    where = np.array([[[1, 0, 5]], [[2, -1, 0]], [[0, 1, 3]]])
    updates = spread(3, 1, 3)
    for active in ((0,), (2,), (0, 2)):
        for reduction in ("none", "add"):
            extra = {"axis": 2, "reduction": reduction}
            yield Case("ScatterElements", [SIGNAL, where, updates], extra, active, rows=False)
        yield Case(
            "ScatterElements", [SIGNAL, where, updates], {"axis": -1}, active, 13, rows=False
        )
        yield Case("Scatter", [SIGNAL, where, updates], {"axis": 2}, active, 10, rows=False)
    repeated = np.array([[1, 1, 1, 2], [0, 0, 1, 1], [3, 3, 3, 3]])
    for active in ((2,), (0, 2)):
        extra = {"axis": 1, "reduction": "add"}
        yield Case("ScatterElements", [X, repeated, spread(3, 4) + 0.5], extra, active, rows=False)
    for active in ((0,), (2,), (0, 2)):
        for reduction in ("none", "add"):
            places, slices = ints([0, 1], [2, -1], [1, 1]), spread(3, 6)
            extra = {"reduction": reduction}
            yield Case("ScatterND", [SIGNAL, places, slices], extra, active, rows=False)
        places = ints([[0, 1], [1, 2]], [[2, 0], [0, 0]])
        yield Case("ScatterND", [X, places, spread(2, 2)], {}, active, 13, rows=False)
    cache, new = spread(3, 2, 5, 2), spread(3, 2, 2, 2)
    for active in ((0,), (1,), (0, 1)):
        yield Case("TensorScatter", [cache, new, ints(0, 3, 1)], {}, active, rows=False)
        circular = {"mode": "circular", "axis": 2}
        yield Case("TensorScatter", [cache, new, ints(4, 3, 9)], circular, active, rows=False)
    yield Case("TensorScatter", [cache, new], {}, (0, 1))


def ordering():
    yield Case("TopK", [SIGNAL, ints(3)])
    yield Case("TopK", [SIGNAL, ints(4)], {"axis": 1, "largest": 0})
    yield Case("TopK", [IMAGE, ints(2)], {"axis": 2}, n_outputs=2)
    yield Case("TopK", [X, ints(4)], {"sorted": 0})
    yield Case("TopK", [X, ints(0)])
    yield Case("TopK", [X, ints(2)], opset=10)
    yield Case("TopK", [X], {"k": 2}, opset=9)


def unpooling():
    first = ints([[[0, 3]]], [[[9, 14]]])[:, None, 0, :, :]
    yield Case(
        "MaxUnpool",
        [spread(2, 1, 1, 2), first.reshape(2, 1, 1, 2)],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        rows=False,
    )
    yield Case(
        "MaxUnpool",
        [spread(2, 1, 1, 2), first.reshape(2, 1, 1, 2), ints(2, 1, 3, 5)],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        rows=False,
    )
    yield Case("Col2Im", [spread(2, 8, 9), ints(4, 4), ints(2, 2)])
    yield Case(
        "Col2Im",
        [spread(2, 12, 4), ints(5, 4), ints(3, 2)],
        {"pads": [1, 0, 0, 1], "strides": [1, 2], "dilations": [2, 1]},
    )
    yield Case("Col2Im", [spread(2, 3, 4), ints(6), ints(3)])
    for p in (1, 2, 3, 4):
        yield Case("LpPool", [IMAGE], {"kernel_shape": [2, 3], "p": p})
        yield Case("GlobalLpPool", [IMAGE], {"p": p})
    yield Case("LpPool", [IMAGE], {"kernel_shape": [2, 2], "strides": [2, 3], "pads": [1, 0, 1, 1]})
    yield Case("LpPool", [SIGNAL], {"kernel_shape": [3], "ceil_mode": 1, "strides": [2], "p": 3})
    yield Case("LpPool", [SIGNAL], {"kernel_shape": [2], "auto_pad": "SAME_LOWER"}, opset=11)


CASES = [*picking(), *placing(), *ordering(), *unpooling()]
