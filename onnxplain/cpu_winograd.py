"""Winograd's F(4 x 4, 3 x 3), compiled by Numba: 36 products in the place of 144.

6 x 6 tiles of the data and the kernels are transformed, multiplied (a matrix product for each of
36 places) and transformed back to 4 x 4 outputs. The polynomials behind it meet at 0, 1, -1, 1/2,
-2 and infinity: in float32 the error is half of that with the usual 0, +-1, +-2, and below 5e-6 of
the largest output. 1 is among them so that equal numbers give outputs that are equal to the last
bit (all transforms but one are sums of differences): ties of what follows stay ties.

Kernels turned round are polynomials with their coefficients in reverse: their values at 1 / p are
those at p, up to a factor, which the way back of the tiles takes in. So both directions share the
transformed kernels.

Rows of tiles follow each other with one place between them that belongs to no tile: neighbours in
a row are neighbours in memory. Places are computed in strips of a constant number, in buffers
whose rows lie a constant number apart: that is what compilers turn into instructions on many
numbers.

Lavin and Gray (2016), Fast algorithms for convolutional neural networks; Barabasz et al. (2020),
Error analysis and improving the accuracy of Winograd convolution for deep neural networks.
"""

from __future__ import annotations

from .cpu_loops import added, compiled, lent, product, rounded, take

STRIP = 64  # places computed at a time
PLACES = 2 * STRIP  # places of a block
PITCH = PLACES + 8  # from one row of places to the next: no multiple of large powers of two
_NEAR = STRIP + 8  # a strip, and the neighbours of its last place
_ROW = 4 * PITCH  # numbers above the places of a block

# -- to tiles -------------------------------------------------------------------------------------


@compiled
def _six(v0, v1, v2, v3, v4, v5, f):
    """Transform six neighbours; all but the second are sums of differences."""
    a, b, s, q = f
    e1, e2 = v3 - v1, v4 - v2
    return (
        e2 - s * e1 + q * (v2 - v0),
        (v4 + v3) - s * (v3 + v2) + q * (v2 + v1),
        (v4 - v3) - s * (v3 - v2) + q * (v2 - v1),
        e2 - b * e1,
        e2 - a * e1,
        (v5 - v3) - s * e2 + q * e1,
    )


@compiled
def _down(d0, d1, d2, d3, d4, d5, f, to, count):
    """Transform six rows of numbers to six."""
    numbers = (f[0], f[1], f[2], f[3])  # no memory that `to` might overlap
    for k in range(count):
        six = _six(d0[k], d1[k], d2[k], d3[k], d4[k], d5[k], numbers)
        to[k], to[_ROW + k], to[2 * _ROW + k] = six[:3]
        to[3 * _ROW + k], to[4 * _ROW + k], to[5 * _ROW + k] = six[3:]


@compiled
def _apart(line, to):
    """Put every fourth number into one of four rows."""
    for k in range(_NEAR):
        to[k] = line[4 * k]
        to[_NEAR + k] = line[4 * k + 1]
        to[2 * _NEAR + k] = line[4 * k + 2]
        to[3 * _NEAR + k] = line[4 * k + 3]


@compiled
def _along(x, f, to):
    """Transform four numbers of each place and two of the next."""
    numbers = (f[0], f[1], f[2], f[3])  # no memory that `to` might overlap
    for k in range(STRIP):
        v0, v1, v2, v3 = x[k], x[_NEAR + k], x[2 * _NEAR + k], x[3 * _NEAR + k]
        six = _six(v0, v1, v2, v3, x[k + 1], x[_NEAR + k + 1], numbers)
        to[k], to[PITCH + k], to[2 * PITCH + k] = six[:3]
        to[3 * PITCH + k], to[4 * PITCH + k], to[5 * PITCH + k] = six[3:]


@compiled
def _quarters(x, padded, row, left, pitch):
    """Put every fourth row of a plane into one of four, padded with 0."""
    count = padded.shape[1] // pitch
    first, last = min(max(left, 0), pitch), min(max(left + x.shape[1], 0), pitch)
    last = max(first, last)
    for r in range(4 * count):
        h = row + r
        to = padded[r % 4, r // 4 * pitch : (r // 4 + 1) * pitch]
        if h < 0 or h >= x.shape[0]:
            to[:] = 0
            continue
        to[:first] = 0
        to[last:] = 0
        part, line = to[first:last], x[h, first - left :]
        for k in range(len(part)):
            part[k] = line[k]


@compiled
def tiles_of(x, tiles, images, channels, rows, line, pads, f, room):
    """Transform some rows of tiles of some images to tiles (6, c, 6, PITCH).

    `line` are the tiles of a row, `pads` the padding above and to the left.
    """
    x, tiles, f, room = lent(x), lent(tiles), lent(f), lent(room)
    high, pitch = rows[1] - rows[0], 4 * (line[1] - line[0] + 1)
    n = high * pitch
    padded, room = take(room, 4, n + pitch)
    across, room = take(room, 6 * _ROW)
    four, room = take(room, 4 * _NEAR)
    for c in range(channels[0], channels[1]):
        for i in range(images[0], images[1]):
            _quarters(x[i, c], padded, 4 * rows[0] - pads[0], pads[1] - 4 * line[0], pitch)
            d0, d1, d2, d3 = padded[0], padded[1], padded[2], padded[3]
            to = across[(i - images[0]) * n :]
            _down(d0, d1, d2, d3, d0[pitch:], d1[pitch:], f, to, n)
        for a in range(6):
            for at in range(0, (images[1] - images[0]) * n // 4, STRIP):
                _apart(across[a * _ROW + 4 * at :], four)
                _along(four, f, tiles[a, c].reshape(-1)[at:])


# -- and back -------------------------------------------------------------------------------------


@compiled
def _four(m0, m1, m2, m3, m4, m5, f):
    """Transform six neighbours back to four."""
    zero, one, minus, infinite, a0, a1, a2, a3, b0, b1, b2, b3 = f
    u, v = one * m1, minus * m2
    return (
        zero * m0 + (u + v) + a0 * m3 + b0 * m4,
        (u - v) + a1 * m3 + b1 * m4,
        (u + v) + a2 * m3 + b2 * m4,
        (u - v) + a3 * m3 + b3 * m4 + infinite * m5,
    )


@compiled
def _up(m, f, to):
    """Transform six rows of products to four."""
    ends, a, b = (f[4], f[5], f[6], f[7]), (f[8], f[9], f[10], f[11]), (f[12], f[13], f[14], f[15])
    numbers = ends + a + b
    for k in range(STRIP):
        m0, m1, m2 = m[k], m[PITCH + k], m[2 * PITCH + k]
        four = _four(m0, m1, m2, m[3 * PITCH + k], m[4 * PITCH + k], m[5 * PITCH + k], numbers)
        to[k], to[6 * STRIP + k], to[12 * STRIP + k], to[18 * STRIP + k] = four


@compiled
def _together(m, f, to):
    """Transform six numbers of each place to four neighbours."""
    ends, a, b = (f[4], f[5], f[6], f[7]), (f[8], f[9], f[10], f[11]), (f[12], f[13], f[14], f[15])
    numbers = ends + a + b
    for k in range(STRIP):
        m0, m1, m2 = m[k], m[STRIP + k], m[2 * STRIP + k]
        four = _four(m0, m1, m2, m[3 * STRIP + k], m[4 * STRIP + k], m[5 * STRIP + k], numbers)
        to[4 * k], to[4 * k + 1], to[4 * k + 2], to[4 * k + 3] = four


@compiled
def outputs_of(products, b, y, images, first, rows, line, f, room):
    """Transform products (6, o, 6, PITCH) back; write them, plus b (o), to y (n, o, h, w)."""
    products, b, y, f, room = lent(products), lent(b), lent(y), lent(f), lent(room)
    high, pitch = rows[1] - rows[0], 4 * (line[1] - line[0] + 1)
    six, room = take(room, 24 * STRIP)
    lines, room = take(room, 4, 4 * PLACES)
    left, right = 4 * line[0], min(4 * line[1], y.shape[3])
    for o in range(products.shape[1]):
        for at in range(0, (images[1] - images[0]) * high * pitch // 4, STRIP):
            for column in range(6):
                _up(products[column, o].reshape(-1)[at:], f, six[column * STRIP :])
            for r in range(4):
                _together(six[6 * STRIP * r :], f, lines[r, 4 * at :])
        for i in range(images[1] - images[0]):
            for r in range(4 * high):
                h = 4 * rows[0] + r
                if h >= y.shape[2]:
                    break
                to = y[images[0] + i, first + o, h, left:right]
                added(to, lines[r % 4, (i * high + r // 4) * pitch :], b[first + o])


# -- a block --------------------------------------------------------------------------------------

_TURNED = (5, 1, 2, 3, 4, 0)  # turned round, 0 and infinity change places


@compiled
def products_of(u, b, tiles, y, images, rows, line, outputs, turned, f, room):
    """Multiply tiles with kernels u (6, 6, o, c) for some outputs, and transform them back."""
    u, tiles, y, f, room = lent(u), lent(tiles), lent(y), lent(f), lent(room)
    o0, o1 = outputs
    n = rounded((images[1] - images[0]) * (rows[1] - rows[0]) * (line[1] - line[0] + 1))
    products, room = take(room, 6, o1 - o0, 6, PITCH)
    for i in range(6):
        for j in range(6):
            seen, to = tiles[i, :, j, :n], products[j, :, i, :n]
            if turned:
                product(u[_TURNED[i], _TURNED[j]][:, o0:o1].T, seen, to, False)
            else:
                product(u[i, j, o0:o1], seen, to, False)
    outputs_of(products, b, y, images, o0, rows, line, f, room)


@compiled
def winograd(x, u, b, y, images, rows, line, pads, turned, f, room):
    """Convolve x (n, c, h, w) with kernels u (6, 6, o, c) for some tiles; add b (o)."""
    x, u, y, f, room = lent(x), lent(u), lent(y), lent(f), lent(room)
    c, o = x.shape[1], y.shape[1]
    tiles, room = take(room, 6, c, 6, PITCH)
    tiles_of(x, tiles, images, (0, c), rows, line, pads, f, room)
    products_of(u, b, tiles, y, images, rows, line, (0, o), turned, f, room)
