"""The loops of `cpu_kernels`, compiled by Numba: one call computes a block of rows on one thread.

They let go of the interpreter, so that threads do not wait for each other, and keep what they
compute near the processor. Images and windows have three spatial axes, missing ones of length 1;
`win` holds the sizes of an image, a kernel, the grid of windows, then strides, dilations and the
padding before the image. Every array that comes from outside is in one piece.

Inner loops run from 0 over slices, with one array to write to: that is what compilers turn into
instructions on many numbers.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from numba import njit
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

# contract: a product and a sum may become one instruction, which rounds once.
_njit = njit(nogil=True, error_model="numpy", fastmath={"contract"})


class _Cache(FunctionCache):
    """What is compiled, in files; a full disk or a damaged file costs time, and nothing else."""

    def load_overload(self, sig, target_context):
        try:
            return super().load_overload(sig, target_context)
        except Exception:
            return None

    def save_overload(self, sig, data):
        with suppress(Exception):
            super().save_overload(sig, data)


KEPT = True  # whether what is compiled serves later processes, too


def _compiled(function):
    global KEPT
    made = _njit(function)
    try:
        made._cache = _Cache(function)
    except RuntimeError:  # no folder can be written to
        KEPT = False
    return made


@intrinsic
def _lent(context, array):
    """Return an array that counts no references: threads would fight for the counter."""

    def code(context, builder, signature, arguments):
        kind = signature.args[0]
        lent = context.make_array(kind)(context, builder, arguments[0])
        lent.meminfo = lent.meminfo.type(None)
        lent.parent = lent.parent.type(None)
        return lent._getvalue()

    return array(array), code


# -- planes ---------------------------------------------------------------------------------------


@_compiled
def _copy(to, x, top, left, down, along):
    """Put x[top + h down, left + k along] into to[h, k]."""
    for h in range(to.shape[0]):
        out, line = to[h], x[top + h * down][left:]
        if along == 1:
            for k in range(len(out)):
                out[k] = line[k]
        elif along == 2:
            for k in range(len(out)):
                out[k] = line[2 * k]
        else:
            for k in range(len(out)):
                out[k] = line[k * along]


@_compiled
def _gather(to, x, f, top, left, down, along):
    """Add f x[top + h down, left + k along] to to[h, k]."""
    for h in range(to.shape[0]):
        out, line = to[h], x[top + h * down][left:]
        if along == 1:
            for k in range(len(out)):
                out[k] += f * line[k]
        elif along == 2:
            for k in range(len(out)):
                out[k] += f * line[2 * k]
        else:
            for k in range(len(out)):
                out[k] += f * line[k * along]


@_compiled
def _gather_three(to, x, f, top, left, down, along):
    """Do `_gather` for three neighbours at once."""
    f0, f1, f2 = f[0], f[1], f[2]
    for h in range(to.shape[0]):
        out, line = to[h], x[top + h * down][left:]
        if along == 1:
            for k in range(len(out)):
                out[k] += f0 * line[k] + f1 * line[k + 1] + f2 * line[k + 2]
        else:
            for k in range(len(out)):
                out[k] += f0 * line[2 * k] + f1 * line[2 * k + 1] + f2 * line[2 * k + 2]


@_compiled
def _scatter(to, x, f, top, left, down, along):
    """Add f x[h, k] to to[top + h down, left + k along]."""
    for h in range(x.shape[0]):
        out, line = to[top + h * down][left:], x[h]
        if along == 1:
            for k in range(len(line)):
                out[k] += f * line[k]
        elif along == 2:
            for k in range(len(line)):
                out[2 * k] += f * line[k]
        else:
            for k in range(len(line)):
                out[k * along] += f * line[k]


@_compiled
def _maxima(to, x, top, left, down, along):
    """Put the larger of to[h, k] and x[top + h down, left + k along] into to[h, k]; NaN stays."""
    for h in range(to.shape[0]):
        out, line = to[h], x[top + h * down][left:]
        if along == 2:
            for k in range(len(out)):
                v = line[2 * k]
                out[k] = out[k] if out[k] > v or out[k] != out[k] else v
        else:
            for k in range(len(out)):
                v = line[k * along]
                out[k] = out[k] if out[k] > v or out[k] != out[k] else v


@_compiled
def _claim(to, most, x, place, top, left, down, along, pitch):
    """Put the place of x[top + h down, left + k along] into to[h, k] where it is the maximum."""
    for h in range(to.shape[0]):
        out, best, line = to[h], most[h], x[top + h * down][left:]
        first = np.int32(place + h * down * pitch)
        if along == 2:
            for k in range(len(out)):
                out[k] = first + np.int32(2 * k) if line[2 * k] == best[k] else out[k]
        else:
            for k in range(len(out)):
                out[k] = first + np.int32(k * along) if line[k * along] == best[k] else out[k]


@_compiled
def _pad(to, x, top, left, value):
    """Put x into `to` so that x[0, 0] lies at (top, left), which may lie before it."""
    high, wide = x.shape
    first, last = min(max(left, 0), to.shape[1]), min(max(left + wide, 0), to.shape[1])
    last = max(first, last)
    for h in range(to.shape[0]):
        line = to[h]
        if h < top or h >= top + high:
            line[:] = value
            continue
        line[:first] = value
        line[last:] = value
        part, source = line[first:last], x[h - top, first - left :]
        for k in range(len(part)):
            part[k] = source[k]


@_compiled
def _crop(to, x, top, left):
    """Add to `to` what lies in x where `_pad` would put it."""
    high, wide = to.shape
    first, last = min(max(left, 0), x.shape[1]), min(max(left + wide, 0), x.shape[1])
    last = max(first, last)
    for h in range(max(top, 0), min(top + high, x.shape[0])):
        part, source = to[h - top, first - left :], x[h, first:last]
        for k in range(len(source)):
            part[k] += source[k]


@_compiled
def _span(count, kernel, stride, dilation):
    """Return how many places so many windows see."""
    return (count - 1) * stride + (kernel - 1) * dilation + 1


# -- convolution ----------------------------------------------------------------------------------


@_compiled
def _fill(columns, x, channels, images, depth, rows, win, padded):
    """Put windows into columns (channels cells, images rows OW), one line for each cell."""
    D, H, W, KD, KH, KW, _, _, OW, SD, SH, SW, ED, EH, EW, PD, PH, PW = win
    count = rows[1] - rows[0]
    each, cells = count * OW, KD * KH * KW
    for c in range(channels[0], channels[1]):
        for n in range(images[0], images[1]):
            at = (n - images[0]) * each
            line = (c - channels[0]) * cells
            for a in range(KD):
                d = depth * SD + a * ED - PD
                if d < 0 or d >= D:
                    columns[line : line + KH * KW, at : at + each] = 0
                    line += KH * KW
                    continue
                plane = x[n, c, d * H * W : (d + 1) * H * W].reshape(H, W)
                _pad(padded, plane, PH - rows[0] * SH, PW, 0)
                for b in range(KH):
                    for e in range(KW):
                        to = columns[line, at : at + each].reshape(count, OW)
                        _copy(to, padded, b * EH, e * EW, SH, SW)
                        line += 1


@_compiled
def _spread(columns, x, image, channels, depth, rows, win, padded):
    """Add columns (channels cells, rows OW) where their cells lie in an image."""
    D, H, W, KD, KH, KW, _, _, OW, SD, SH, SW, ED, EH, EW, PD, PH, PW = win
    line = 0
    for c in range(channels[0], channels[1]):
        for a in range(KD):
            d = depth * SD + a * ED - PD
            if d < 0 or d >= D:
                line += KH * KW
                continue
            padded[:] = 0
            for b in range(KH):
                for e in range(KW):
                    signal = columns[line].reshape(rows[1] - rows[0], OW)
                    _scatter(padded, signal, 1, b * EH, e * EW, SH, SW)
                    line += 1
            plane = x[image, c, d * H * W : (d + 1) * H * W].reshape(H, W)
            _crop(plane, padded, PH - rows[0] * SH, PW)


@_compiled
def _take(room, *shape):
    """Return an array of scratch memory, and what is left of it."""
    size = 1
    for n in shape:
        size *= n
    return room[:size].reshape(shape), room[size:]


@_compiled
def _whole(win):
    """Tell whether windows are the places of the image themselves."""
    D, H, W, KD, KH, KW, OD, OH, OW, SD, SH, SW, _, _, _, PD, PH, PW = win
    cells, strides, pads = KD * KH * KW, SD * SH * SW, PD + PH + PW
    return cells == 1 and strides == 1 and pads == 0 and D == OD and H == OH and W == OW


@_compiled
def convolve(x, w, y, images, depth, rows, outputs, win, room):
    """Convolve x (n, c, size) with kernels w (groups, o / groups, c / groups cells).

    Writes y (n, o, windows) for some images, rows of windows at one depth and outputs of a group.
    """
    x, w, y, room = _lent(x), _lent(w), _lent(y), _lent(room)
    _, _, _, _, KH, KW, _, OH, OW, _, SH, SW, _, EH, EW, _, _, _ = win
    groups, _, cells = w.shape
    cg, (o0, o1) = x.shape[1] // groups, outputs
    each, n = (rows[1] - rows[0]) * OW, images[1] - images[0]
    at, size = (depth * OH + rows[0]) * OW, y.shape[2]
    high, wide = _span(rows[1] - rows[0], KH, SH, EH), _span(OW, KW, SW, EW)
    padded, room = _take(room, high, wide)
    columns, room = _take(room, cells, n * each)
    sums, room = _take(room, o1 - o0, n * each)
    for group in range(groups):
        kernels, first = w[group, o0:o1], group * (w.shape[1]) + o0
        channels = (group * cg, (group + 1) * cg)
        straight = n == 1 and each == size
        if straight and _whole(win):
            part = x[images[0], channels[0] : channels[1]]
            np.dot(kernels, part, y[images[0], first : first + o1 - o0])
            continue
        _fill(columns, x, channels, images, depth, rows, win, padded)
        if straight:
            np.dot(kernels, columns, y[images[0], first : first + o1 - o0])
            continue
        np.dot(kernels, columns, sums)
        for o in range(o1 - o0):
            for i in range(n):
                to = y[images[0] + i, first + o, at : at + each]
                to[:] = sums[o, i * each : (i + 1) * each]


@_compiled
def convolve_back(g, w, x, images, channels, step, win, room):
    """Add the transpose of a convolution to x (n, c, size), which is 0 at first.

    w (groups, c / groups cells, o / groups), g (n, o, windows); some images and channels of each
    group, `step` rows of windows at a time.
    """
    g, w, x, room = _lent(g), _lent(w), _lent(x), _lent(room)
    _, _, _, KD, KH, KW, OD, OH, OW, _, SH, SW, _, EH, EW, _, _, _ = win
    cells = KD * KH * KW
    groups, og = w.shape[0], w.shape[2]
    cg, (c0, c1) = w.shape[1] // cells, channels
    for group in range(groups):
        kernels, first = w[group, c0 * cells : c1 * cells], group * cg
        for i in range(images[0], images[1]):
            signal = g[i, group * og : (group + 1) * og]
            if _whole(win):
                np.dot(kernels, signal, x[i, first + c0 : first + c1])
                continue
            for depth in range(OD):
                for r0 in range(0, OH, step):
                    r1 = min(OH, r0 + step)
                    each, at = (r1 - r0) * OW, (depth * OH + r0) * OW
                    high, wide = _span(r1 - r0, KH, SH, EH), _span(OW, KW, SW, EW)
                    padded, rest = _take(room, high, wide)
                    columns, rest = _take(rest, (c1 - c0) * cells, each)
                    if each == signal.shape[1]:
                        np.dot(kernels, signal, columns)
                    else:
                        part, rest = _take(rest, og, each)
                        for o in range(og):
                            part[o, :] = signal[o, at : at + each]
                        np.dot(kernels, part, columns)
                    place = (first + c0, first + c1)
                    _spread(columns, x, i, place, depth, (r0, r1), win, padded)


# -- Winograd -------------------------------------------------------------------------------------


@_compiled
def _deinterleave(x, even, odd):
    for k in range(len(even)):
        even[k] = x[2 * k]
    for k in range(len(odd)):
        odd[k] = x[2 * k + 1]


@_compiled
def _subtract(a, b, out):
    for k in range(len(out)):
        out[k] = a[k] - b[k]


@_compiled
def _add(a, b, out):
    for k in range(len(out)):
        out[k] = a[k] + b[k]


@_compiled
def _phases(x, padded, row, left, high):
    """Put the rows of a plane into even ones, then odd ones, `high` + 1 of each, padded with 0."""
    half = high + 1
    for r in range(2 * half):
        h = row + r
        to = padded[r % 2, r // 2]
        if h < 0 or h >= x.shape[0]:
            to[:] = 0
            continue
        part, line = to[left : left + x.shape[1]], x[h]
        for k in range(len(part)):
            part[k] = line[k]


@_compiled
def winograd_tiles(x, tiles, images, channels, row, high, wide, top, left, room):
    """Transform `high` rows of tiles of some images to tiles (4, 4, c, images high (wide + 1)).

    Rows of tiles follow each other with one number between them that belongs to none: so that
    neighbours are neighbours in memory, and all sums run over long stretches of it.
    """
    x, tiles, room = _lent(x), _lent(tiles), _lent(room)
    pitch = wide + 1
    n = high * pitch
    padded, room = _take(room, 2, high + 1, 2 * pitch)
    cells, room = _take(room, 2, 2 * (n + pitch))
    across, room = _take(room, 4, 2, n)
    padded[:] = 0
    for i in range(images[0], images[1]):
        at = (i - images[0]) * n
        for c in range(channels[0], channels[1]):
            _phases(x[i, c], padded, 2 * row - top, left, high)
            _deinterleave(padded.reshape(-1), cells[0], cells[1])
            for b in range(2):
                even, odd = cells[b, : n + pitch], cells[b, n + pitch :]
                _subtract(even, even[pitch:], across[0, b])
                _add(odd, even[pitch:], across[1, b])
                _subtract(even[pitch:], odd, across[2, b])
                _subtract(odd, odd[pitch:], across[3, b])
            for a in range(4):
                even, odd = across[a, 0], across[a, 1]
                _subtract(even, even[1:], tiles[a, 0, c][at : at + n - 1])
                _add(odd, even[1:], tiles[a, 1, c][at : at + n - 1])
                _subtract(even[1:], odd, tiles[a, 2, c][at : at + n - 1])
                _subtract(odd, odd[1:], tiles[a, 3, c][at : at + n - 1])
                for b in range(4):
                    tiles[a, b, c, at + n - 1] = 0


@_compiled
def _sums(m0, m1, m2, m3, plus, minus):
    """Put m0 + m1 + m2 and m1 - m2 - m3 into two planes."""
    for k in range(len(plus)):
        plus[k] = m1[k] + m2[k] + m0[k]
    for k in range(len(minus)):
        minus[k] = m1[k] - m2[k] - m3[k]


@_compiled
def _interleave(even, odd, to, first):
    """Write even[r, k] and odd[r, k] to columns 2 k and 2 k + 1 of row first + 2 r."""
    wide, half = to.shape[1], to.shape[1] // 2
    for r in range(min(len(even), (len(to) - first + 1) // 2)):
        line, a, b = to[first + 2 * r], even[r], odd[r]
        for k in range(half):
            line[2 * k] = a[k]
            line[2 * k + 1] = b[k]
        if wide % 2:
            line[2 * half] = a[half]


@_compiled
def winograd_outputs(products, y, images, first, row, high, wide, room):
    """Transform products (4, 4, o, images high (wide + 1)) back; write them to y (n, o, h, w)."""
    products, y, room = _lent(products), _lent(y), _lent(room)
    pitch = wide + 1
    n = high * pitch
    two, room = _take(room, 2, 4, n)
    four, room = _take(room, 2, n)
    for i in range(images[0], images[1]):
        at = (i - images[0]) * n
        for o in range(products.shape[2]):
            for b in range(4):
                m0, m1 = products[0, b, o][at : at + n], products[1, b, o][at : at + n]
                m2, m3 = products[2, b, o][at : at + n], products[3, b, o][at : at + n]
                _sums(m0, m1, m2, m3, two[0, b], two[1, b])
            for a in range(2):
                t = two[a]
                _sums(t[0], t[1], t[2], t[3], four[0], four[1])
                even, odd = four[0].reshape(high, pitch), four[1].reshape(high, pitch)
                _interleave(even, odd, y[i, first + o], 2 * row + a)


@_compiled
def winograd_products(u, tiles, y, images, row, outputs, high, wide, room):
    """Multiply tiles with kernels u (4, 4, o, c) for some outputs, and transform them back."""
    u, tiles, y, room = _lent(u), _lent(tiles), _lent(y), _lent(room)
    o0, o1 = outputs
    products, room = _take(room, 4, 4, o1 - o0, tiles.shape[3])
    for a in range(4):
        for b in range(4):
            np.dot(u[a, b, o0:o1], tiles[a, b], products[a, b])
    winograd_outputs(products, y, images, o0, row, high, wide, room)


@_compiled
def winograd(x, u, y, images, rows, wide, top, left, room):
    """Convolve x (n, c, h, w) with transformed kernels u (4, 4, o, c) for some rows of tiles."""
    x, u, y, room = _lent(x), _lent(u), _lent(y), _lent(room)
    c, o, high = x.shape[1], u.shape[2], rows[1] - rows[0]
    count = (images[1] - images[0]) * high * (wide + 1)
    tiles, room = _take(room, 4, 4, c, count)
    winograd_tiles(x, tiles, images, (0, c), rows[0], high, wide, top, left, room)
    winograd_products(u, tiles, y, images, rows[0], (0, o), high, wide, room)


@_compiled
def loud(x, heard):
    """Set heard (n, size) where any channel of x (n, c, size) is not 0."""
    x, heard = _lent(x), _lent(heard)
    for i in range(x.shape[0]):
        to = heard[i]
        for c in range(x.shape[1]):
            line = x[i, c]
            for k in range(len(to)):
                to[k] |= line[k] != 0
            if c % 8 == 7 and to.all():
                break


# -- elements -------------------------------------------------------------------------------------


@_compiled
def clip(x, low, high, y, part):
    """Put x between two bounds into y; NaN stays, and as a bound it is none."""
    x, y = _lent(x)[part[0] : part[1]], _lent(y)[part[0] : part[1]]
    for k in range(len(x)):
        v = low if x[k] < low else x[k]
        y[k] = high if v > high else v


@_compiled
def clip_back(g, x, low, high, to, part):
    """Put g (outputs, size) into `to` where x (size) lies between the bounds."""
    g, to, x = _lent(g), _lent(to), _lent(x)[part[0] : part[1]]
    below, above = low != low, high != high  # no bounds
    for o in range(len(g)):
        signal, out = g[o][part[0] : part[1]], to[o][part[0] : part[1]]
        for k in range(len(x)):
            inside = (below or x[k] > low) and (above or x[k] < high)
            out[k] = signal[k] if inside else 0


# -- windows --------------------------------------------------------------------------------------


@_compiled
def window_sums(x, filters, y, planes, win):
    """Put the sums of all windows, weighted by filters (channels, cells), into y."""
    x, filters, y = _lent(x), _lent(filters), _lent(y)
    D, _, _, KD, KH, KW, OD, OH, OW, SD, SH, SW, ED, EH, EW, PD, PH, PW = win
    padded = np.empty((_span(OH, KH, SH, EH), _span(OW, KW, SW, EW)), x.dtype)
    for p in range(planes[0], planes[1]):
        y[p] = 0
        for i in range(OD):
            for a in range(KD):
                d = i * SD + a * ED - PD
                if d < 0 or d >= D:
                    continue
                _pad(padded, x[p, d], PH, PW, 0)
                filter = filters[p % len(filters), a * KH * KW : (a + 1) * KH * KW]
                if KW == 3 and EW == 1 and SW <= 2:
                    for b in range(KH):
                        _gather_three(y[p, i], padded, filter[3 * b :], b * EH, 0, SH, SW)
                    continue
                for cell in range(KH * KW):
                    top, left = cell // KW * EH, cell % KW * EW
                    _gather(y[p, i], padded, filter[cell], top, left, SH, SW)


@_compiled
def window_spread(g, filters, x, planes, win):
    """Put the transpose of `window_sums` of g (planes, windows) into x (planes, D, H, W)."""
    g, filters, x = _lent(g), _lent(filters), _lent(x)
    D, _, _, KD, KH, KW, OD, OH, OW, SD, SH, SW, ED, EH, EW, PD, PH, PW = win
    padded = np.empty((_span(OH, KH, SH, EH), _span(OW, KW, SW, EW)), x.dtype)
    for p in range(planes[0], planes[1]):
        x[p] = 0
        for i in range(OD):
            for a in range(KD):
                d = i * SD + a * ED - PD
                if d < 0 or d >= D:
                    continue
                padded[:] = 0
                filter = filters[p % len(filters), a * KH * KW : (a + 1) * KH * KW]
                for cell in range(KH * KW):
                    top, left = cell // KW * EH, cell % KW * EW
                    _scatter(padded, g[p, i], filter[cell], top, left, SH, SW)
                _crop(x[p, d], padded, PH, PW)


@_compiled
def window_maxima(x, y, planes, win):
    """Put the maximum of every window into y (planes, windows); NaN stays, padding never wins."""
    x, y = _lent(x), _lent(y)
    D, _, _, KD, KH, KW, OD, OH, OW, SD, SH, SW, ED, EH, EW, PD, PH, PW = win
    padded = np.empty((_span(OH, KH, SH, EH), _span(OW, KW, SW, EW)), x.dtype)
    for p in range(planes[0], planes[1]):
        y[p] = -np.inf
        for i in range(OD):
            for a in range(KD):
                d = i * SD + a * ED - PD
                if d < 0 or d >= D:
                    continue
                _pad(padded, x[p, d], PH, PW, -np.inf)
                for cell in range(KH * KW):
                    _maxima(y[p, i], padded, cell // KW * EH, cell % KW * EW, SH, SW)


@_compiled
def window_winners(x, y, winners, planes, win):
    """Put the first cell of each window that is y into winners (planes, windows), -1 if none is.

    Cells that come first are asked last.
    """
    x, y, winners = _lent(x), _lent(y), _lent(winners)
    D, H, W, KD, KH, KW, OD, OH, OW, SD, SH, SW, ED, EH, EW, PD, PH, PW = win
    padded = np.empty((_span(OH, KH, SH, EH), _span(OW, KW, SW, EW)), x.dtype)
    for p in range(planes[0], planes[1]):
        winners[p] = -1
        for i in range(OD):
            for a in range(KD - 1, -1, -1):
                d = i * SD + a * ED - PD
                if d < 0 or d >= D:
                    continue
                _pad(padded, x[p % len(x), d], PH, PW, np.nan)
                for cell in range(KH * KW - 1, -1, -1):
                    top, left = cell // KW * EH, cell % KW * EW
                    start = (d * H + top - PH) * W + left - PW
                    most = y[p % len(y), i]
                    _claim(winners[p, i], most, padded, start, top, left, SH, SW, W)


@_compiled
def send_to_winners(g, winners, x, planes):
    """Add g (planes, windows) to x (planes, size), which is 0 at first, at the cells that win."""
    g, winners, x = _lent(g), _lent(winners), _lent(x)
    for p in range(planes[0], planes[1]):
        to, signal, winner = x[p], g[p], winners[p % len(winners)]
        for k in range(len(signal)):
            if winner[k] >= 0:
                to[winner[k]] += signal[k]


@_compiled
def pick_winners(x, winners, y, planes):
    """Put what x (planes, size) holds at the cells that win into y (planes, windows)."""
    x, winners, y = _lent(x), _lent(winners), _lent(y)
    for p in range(planes[0], planes[1]):
        values, to, winner = x[p % len(x)], y[p], winners[p % len(winners)]
        for k in range(len(to)):
            to[k] = values[winner[k]] if winner[k] >= 0 else 0
