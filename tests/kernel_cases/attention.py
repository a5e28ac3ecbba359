"""Cases of what attention is written with, and of the normalisations joined from parts."""

import numpy as np

from .table import IMAGE, SIGNAL, Case, ints, spread

HEADS = spread(3, 2, 5, 4)  # rows heads tokens width
TURNS = spread(3, 5, 2)
OWN = {"domain": "onnxplain"}


def rotary():
    tables = [np.cos(TURNS), np.sin(TURNS)]
    yield Case("RotaryEmbedding", [HEADS, *tables], {"interleaved": 0})
    yield Case("RotaryEmbedding", [HEADS, *tables], {"interleaved": 1})
    yield Case("RotaryEmbedding", [spread(3, 5, 8), *tables], {"num_heads": 2})
    wide, places = spread(3, 2, 5, 7), ints([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 1, 1, 1, 1])
    tables = [np.cos(spread(6, 2)), np.sin(spread(6, 2))]
    yield Case("RotaryEmbedding", [wide, *tables, places], {"rotary_embedding_dim": 4})
    yield Case("Rotary", [HEADS, *tables, ints(1)], **OWN)


def heads():
    yield Case("SafeSoftmax", [HEADS], **OWN)
    yield Case("ScaleBy", [HEADS], {"factor": None}, **OWN)
    yield Case("ScaleBy", [HEADS], {"factor": -1.5}, **OWN)
    yield Case("SplitHeads", [spread(3, 5, 8)], {"heads": 2}, **OWN)
    yield Case("SplitHeads", [HEADS], {"heads": 2}, **OWN)
    yield Case("RepeatHeads", [HEADS, spread(3, 6, 1, 4)], **OWN)
    yield Case("RepeatHeads", [HEADS, HEADS], **OWN)
    yield Case("AdditiveMask", [HEADS, spread(3, 2, 5, 4)], **OWN)
    yield Case("SwapLast", [SIGNAL], **OWN)


def normalisations():
    for centred in (True, False):
        options = {"epsilon": 1e-3, "centred": centred}
        yield Case("Standardise", [IMAGE], {"axes": (1,), **options}, **OWN)
        yield Case("Standardise", [IMAGE, spread(4, 1, 1)], {"axes": (1, 2), **options}, **OWN)
    yield Case("LayerNormalization", [SIGNAL, spread(6), spread(6)], opset=13)


CASES = [*rotary(), *heads(), *normalisations()]
