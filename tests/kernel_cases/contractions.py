"""Cases of sums of products, triangles and determinants."""

import numpy as np

from .table import IMAGE, SIGNAL, Case, X, ints, spread

W = spread(4, 5)
CUBE = spread(3, 4, 4)


def einsum(equation, *inputs, active=(0,), **more):
    return Case("Einsum", list(inputs), {"equation": equation}, active, **more)


def with_constants():
    yield einsum("nij->nji", SIGNAL)
    yield einsum("nij->n", SIGNAL)
    yield einsum("n...->...", SIGNAL, rows=False)
    yield einsum("nii->ni", CUBE)
    yield einsum("n i i", CUBE)
    yield einsum("ij,jk", X, W)
    yield einsum("nij,jk->nik", SIGNAL, spread(6, 2))
    yield einsum("kj,nij->nik", spread(5, 6), SIGNAL, active=(1,))
    yield einsum("...ij,...jk->...ik", IMAGE, spread(4, 6, 2))
    yield einsum("...a,ab->...b", X, W)
    yield einsum("n...,...->n...", SIGNAL, spread(4, 1))
    yield einsum("nij,i->n", SIGNAL, spread(4))
    yield einsum("nij,j->ni", SIGNAL, spread(1))
    yield einsum("nij,njj->ni", spread(3, 2, 4), CUBE, active=(1,))
    yield einsum("nij,nk->nijk", spread(3, 1, 2), X)


def of_two():
    both = (0, 1)
    yield einsum("bhid,bhjd->bhij", IMAGE, spread(2, 4, 3, 6), active=both)
    yield einsum("nij,njk->nik", SIGNAL, spread(3, 6, 2), active=both)
    yield einsum("...i,...i->...", SIGNAL, spread(3, 1, 6), active=both)
    yield einsum("ni,nj", X, spread(3, 5), active=both, rows=False)
    yield einsum("ni,nj->nij", X, spread(3, 5), active=both)
    yield einsum("nii,ni->n", CUBE, X, active=both)
    yield einsum("nij,nk->n", SIGNAL, X, active=both)


def matrices():
    for upper in (0, 1):
        yield Case("Trilu", [SIGNAL], {"upper": upper})
        yield Case("Trilu", [SIGNAL, np.array(2)], {"upper": upper})
        yield Case("Trilu", [IMAGE, ints(-1)], {"upper": upper})
    for n in (1, 2, 3, 4):
        yield Case("Det", [spread(3, n, n)])
    yield Case("Det", [spread(2, 3, 4, 4)], opset=11)


CASES = [*with_constants(), *of_two(), *matrices()]
