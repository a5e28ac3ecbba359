"""Cases of functions of single elements, of reductions and of normalisations."""

import numpy as np

from .table import IMAGE, SIGNAL, SPAN, WIDE, Case, X, above, ints, spread

UNIT = spread(3, 8, low=-0.95, high=0.95)


def functions():
    for op in ("Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh"):
        yield Case(op, [spread(3, 4, low=-1.3, high=1.3)])
        yield Case(op, [SPAN if op != "Tan" else spread(3, 4, low=1.8, high=4.5)])
    for op in ("Asin", "Acos", "Atanh"):
        yield Case(op, [UNIT])
    yield Case("Acosh", [above(3, 4, low=1.1, high=9)])
    yield Case("Shrink", [SPAN])
    yield Case("Shrink", [WIDE], {"lambd": 1.5, "bias": 0.4})
    yield Case("QuickGelu", [SPAN], {"alpha": 1.3}, domain="com.microsoft")
    yield Case("QuickGelu", [WIDE], domain="com.microsoft")
    yield Case("Mod", [SPAN, np.array(0.77)], {"fmod": 1})
    yield Case("Mod", [SIGNAL, above(4, 1)], {"fmod": 1})
    yield Case("Mod", [SIGNAL, -above(6)])


def powers():
    yield Case("Pow", [np.array(2.0), X], active=(1,))
    yield Case("Pow", [above(3, 1, 6), SIGNAL], active=(1,))
    yield Case("Pow", [above(3, 4), X], active=(0, 1))
    yield Case("Pow", [above(3, 4, 1), SIGNAL], active=(0, 1))


def reductions():
    for op in ("ReduceProd", "ReduceLogSumExp"):
        yield Case(op, [SIGNAL, ints(1)])
        yield Case(op, [SIGNAL, ints(-1, 1)], {"keepdims": 0})
        yield Case(op, [IMAGE, ints(3, 1)], {"keepdims": 0})
        yield Case(op, [SIGNAL], {"axes": (2,), "keepdims": 0}, opset=11)
        yield Case(op, [X], rows=False)
        yield Case(op, [SIGNAL], {"noop_with_empty_axes": 1})
    yield Case("ReduceLogSumExp", [1000 * spread(3, 4) / 7, ints(1)])
    for attributes in ({}, {"reverse": 1}, {"exclusive": 1}, {"exclusive": 1, "reverse": 1}):
        for op in ("CumSum", "CumProd"):
            yield Case(op, [SIGNAL, np.array(1)], attributes)
        yield Case("CumProd", [X, ints(-1)], attributes)
    yield Case("CumSum", [X, np.array(0)], rows=False)
    yield Case("CumSum", [IMAGE, ints(-2)], opset=11)


def normalisations():
    for opset, n in ((18, 2), (21, 4)):
        for x in (SIGNAL, IMAGE):
            yield Case(
                "GroupNormalization", [x, spread(n), spread(n)], {"num_groups": 2}, opset=opset
            )
    yield Case("GroupNormalization", [SIGNAL, spread(4), spread(4)], {"num_groups": 1})
    yield Case("GroupNormalization", [spread(3, 8), spread(8), spread(8)], {"num_groups": 2})
    yield Case("RMSNormalization", [X, spread(4)])
    yield Case("RMSNormalization", [SIGNAL, spread(4, 6)], {"axis": 1, "epsilon": 0.1})
    yield Case("RMSNormalization", [SIGNAL, np.array([0.7])], {"axis": -2})
    scale, bias = spread(3, 1, 6), spread(3, 4, 6, low=-1, high=3)
    for active in ((0, 1), (0, 1, 2), (0, 2), (1,), (2,)):
        yield Case("LayerNormalization", [SIGNAL, scale, bias], active=active)
    yield Case("LayerNormalization", [SIGNAL, scale], active=(0, 1), n_outputs=3, opset=17)
    yield Case("RMSNormalization", [SIGNAL, scale], active=(0, 1))
    yield Case("MeanVarianceNormalization", [IMAGE], {"axes": (2, 3)})
    yield Case("MeanVarianceNormalization", [SIGNAL], {"axes": (-1,)}, opset=9)
    yield Case("MeanVarianceNormalization", [IMAGE], rows=False)
    for p in (1, 2):
        yield Case("LpNormalization", [SIGNAL], {"p": p})
        yield Case("LpNormalization", [SIGNAL], {"p": p, "axis": 1}, opset=7)


CASES = [*functions(), *powers(), *reductions(), *normalisations()]
