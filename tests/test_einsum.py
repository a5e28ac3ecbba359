"""Einsum: every equation computes and sends back what its formula says."""

import numpy as np
import pytest
from onnx import helper

import onnxplain as ox
from networks import graph
from onnxplain.errors import ModelError
from onnxplain.graph.graph import build
from onnxplain.graph.load import read_model
from onnxplain.kernels.einsum import terms_of
from onnxplain.walk import forward

rng = np.random.default_rng(0)
A, B, C = rng.normal(size=(3, 4)), rng.normal(size=(4, 5)), rng.normal(size=(5, 2))


def chain(equation, weights, width=(4,), data=("x",)):
    """Return a model of one Einsum of an input "x" and weights, in the order of their names."""
    names = sorted([*weights, *data])
    node = helper.make_node("Einsum", names, ["y"], equation=equation)
    return graph([node], dict.fromkeys(data, width), weights)


def computed(proto, x):
    return forward(build(read_model(proto)), {"x": x})["y"]


@pytest.mark.parametrize(
    "equation, terms",
    [
        ("ij,jk->ik", (("ij", "jk"), "ik")),
        (" i j , j k ", (("ij", "jk"), "ik")),
        ("ba", (("ba",), "ab")),
        ("bA", (("bA",), "Ab")),
        ("ii", (("ii",), "")),
        ("...ij,jk", (("...ij", "jk"), "...ik")),
        ("j...,j", (("j...", "j"), "...")),
        ("i->", (("i",), "")),
        (",i", (("", "i"), "i")),
    ],
)
def test_equation_is_read_as_onnx_writes_it(equation, terms):
    assert terms_of(equation, len(terms[0])) == terms


@pytest.mark.parametrize(
    "equation, words",
    [
        ("ij,jk->ik", "does not fit 1 inputs"),
        ("ij->ik", "must name axes of the inputs"),
        ("ij->ii", "must name axes of the inputs"),
        ("i1->i", "must be letters"),
        ("...i...->i", "must be letters"),
        ("ij->i->j", "must be letters"),
        ("ijk->i", "does not fit ranks"),
        ("i->i", "does not fit ranks"),
        ("...ijk->...k", "does not fit ranks"),
    ],
)
def test_bad_equation_is_refused_with_its_text(equation, words):
    with pytest.raises(ModelError, match=words) as error:
        computed(chain(equation, {}), A)
    assert equation in str(error.value)


def test_axes_of_different_lengths_are_refused():
    with pytest.raises(ModelError, match=r"Einsum.*axis 'j' has length 4 here and 5 there"):
        computed(chain("xj,jz->xz", {"y_": B.T}), A)


@pytest.mark.parametrize(
    "equation, weights",
    [
        ("jk,kl,nj->nl", {"a": B, "b": C}),
        ("nj,jk,kl", {"y1": B, "y2": C}),
        ("...j,jk,k...->...", {"y1": B, "y2": rng.normal(size=(5, 3))}),
        ("n...,...,...->n...", {"y1": rng.normal(size=4), "y2": rng.normal(size=1)}),
        ("nj,j,j,j->n", {"y1": B[:, 0], "y2": B[:, 1], "y3": B[:, 2]}),
        ("nj,nk,jj,kk->n", {"y1": B[:3], "y2": rng.normal(size=(4, 4)), "y3": np.eye(5)}),
    ],
)
def test_many_operands_are_contracted_two_at_a_time(equation, weights):
    names = sorted([*weights, "x"])
    expected = np.einsum(equation, *(A if name == "x" else weights[name] for name in names))
    built = build(read_model(chain(equation, weights)))
    assert all(len(node.inputs) == 2 for node in built.nodes)
    np.testing.assert_allclose(forward(built, {"x": A})["y"], expected, rtol=1e-12)


def test_products_of_weights_are_computed_once():
    built = build(read_model(chain("jk,kl,nj->nl", {"a": B, "b": C})))
    assert [node.op for node in built.nodes] == ["Einsum"]


def equations(operands, n=40):
    """Draw equations over few letters, with diagonals, lone axes and outputs in any order."""
    draw = np.random.default_rng(operands)
    sizes = dict(zip("abcd", (2, 3, 4, 1), strict=True))
    for _ in range(n):
        terms = ["".join(draw.choice(list(sizes), draw.integers(1, 4))) for _ in range(operands)]
        told = sorted(set("".join(terms)))
        output = "".join(draw.permutation(told)[: draw.integers(0, len(told) + 1)])
        arrays = [draw.normal(size=[sizes[c] for c in term]) for term in terms]
        yield f"{','.join(terms)}->{output}", arrays


@pytest.mark.parametrize("equation, arrays", [*equations(1), *equations(2)])
def test_signals_go_back_by_the_transpose(equation, arrays):
    from onnxplain.kernels import find
    from onnxplain.kernels.base import Record

    flags = (True,) * len(arrays)
    kernel = find("Einsum", 20, flags)({"equation": equation}, flags)
    y = kernel.forward(*arrays)
    np.testing.assert_allclose(y, np.einsum(equation, *arrays), rtol=1e-12, atol=1e-12)
    g = rng.normal(size=(2, *y.shape))
    back = kernel.gradient(Record(tuple(arrays), (y,)), (g,))
    for i, signal in enumerate(back):
        v = rng.normal(size=arrays[i].shape)
        moved = np.einsum(equation, *(v if j == i else x for j, x in enumerate(arrays)))
        expected = (g * moved).reshape(2, -1).sum(axis=1)
        np.testing.assert_allclose((signal * v).reshape(2, -1).sum(axis=1), expected, atol=1e-11)


def test_deeplift_of_attention_written_with_einsum_is_exact():
    """Scores of a tensor with itself, softmax, and the tensor weighted by it."""
    nodes = [
        helper.make_node("Einsum", ["x", "x"], ["s"], equation="bid,bjd->bij"),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("Einsum", ["p", "x", "w"], ["y"], equation="bij,bjd,de->bie"),
    ]
    proto = graph(nodes, {"x": (4, 3)}, {"w": rng.normal(size=(3, 2))})
    x, x0 = rng.normal(size=(2, 5, 4, 3))
    converter = ox.convert(proto, dtype="double")
    found = ox.DeepLift(converter, x, x_ref=x0[:1], dtype="double", output_idx=[0, 5])
    for total, goal in zip(found.decomp_sum, found.decomp_goal, strict=True):
        np.testing.assert_allclose(total, goal, atol=1e-11)
