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
from llvmlite import ir
from numba import _helperlib, njit, types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.extending import intrinsic
from numba.np.linalg import ensure_blas, get_blas_kind

from .processor import SMALL_PRODUCT

ensure_blas()
if "xxgemm" not in _helperlib.c_helpers:
    raise ImportError("this release multiplies matrices in another way")

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


def compiled(function):
    global KEPT
    made = _njit(function)
    try:
        made._cache = _Cache(function)
    except RuntimeError:  # no folder can be written to
        KEPT = False
    return made


@intrinsic
def lent(context, array):
    """Return an array that counts no references: threads would fight for the counter."""

    def code(context, builder, signature, arguments):
        kind = signature.args[0]
        lent = context.make_array(kind)(context, builder, arguments[0])
        lent.meminfo = lent.meminfo.type(None)
        lent.parent = lent.parent.type(None)
        return lent._getvalue()

    return array(array), code


@intrinsic
def multiply(context, a, b, c, more):
    """Put a @ b into c, or add it to c where `more`; rows or columns of each may lie apart.

    What np.dot calls, which wants matrices in one piece and adds nothing up.
    """

    def code(context, builder, signature, arguments):
        kinds, kind = signature.args[:3], signature.args[0].dtype
        char, size, address = ir.IntType(8), cgutils.intp_t, cgutils.voidptr_t
        itemsize = size(context.get_abi_sizeof(context.get_data_type(kind)))
        number = context.get_value_type(kind)

        def matrix(array):
            """Return whether an array is one of columns, its leading dimension, its address."""
            apart, along = cgutils.unpack_tuple(builder, array.strides)
            high, wide = cgutils.unpack_tuple(builder, array.shape)
            rows = builder.icmp_signed("==", along, itemsize)
            leading = builder.sdiv(builder.select(rows, apart, along), itemsize)
            least = builder.select(rows, wide, high)  # a single row has any stride
            enough = builder.icmp_signed(">=", leading, least)
            leading = builder.select(enough, leading, least)
            order = builder.select(rows, char(ord("n")), char(ord("t")))
            return order, leading, builder.bitcast(array.data, address)

        def constant(value):
            return builder.bitcast(cgutils.alloca_once_value(builder, value), address)

        arrays = [
            context.make_array(k)(context, builder, v)
            for k, v in zip(kinds, arguments[:3], strict=True)
        ]
        (order_a, step_a, at_a), (order_b, step_b, at_b), (_, step_c, at_c) = map(matrix, arrays)
        (m, k), (_, n) = (cgutils.unpack_tuple(builder, v.shape) for v in arrays[:2])
        takes = [char] * 3 + [size] * 3 + [address, address, size, address, size] + [address] * 2
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.IntType(32), [*takes, size]), "numba_xxgemm"
        )
        # Of matrices in columns, as BLAS has them, the product is turned round.
        orders = [char(ord(get_blas_kind(kind))), order_b, order_a]
        factors = [constant(number(1.0)), at_b, step_b, at_a, step_a]
        to = [constant(builder.uitofp(arguments[3], number)), at_c, step_c]
        builder.call(function, [*orders, n, m, k, *factors, *to])
        return context.get_dummy_value()

    return types.void(a, b, c, types.boolean), code


_FEW_COLUMNS, _FEWEST_ROWS = 100, 16


@compiled
def product(a, b, c, more):
    """Do what `multiply` does, by parts of the rows where these are faster."""
    rows = SMALL_PRODUCT // (a.shape[1] * b.shape[1])
    if b.shape[1] > _FEW_COLUMNS or rows >= len(a) or rows < _FEWEST_ROWS:
        multiply(a, b, c, more)
        return
    for i in range(0, len(a), rows):
        multiply(a[i : i + rows], b, c[i : i + rows], more)


_UNIT = 16  # columns that BLAS computes together


@compiled
def rounded(n):
    """Return a number of columns without a rest, which BLAS would add up in another order.

    Equal numbers then give sums that are equal to the last bit, and maxima of them are ties.
    """
    return -(-n // _UNIT) * _UNIT


# -- planes ---------------------------------------------------------------------------------------


@compiled
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


@compiled
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


@compiled
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


@compiled
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


@compiled
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


@compiled
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


@compiled
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


@compiled
def _crop(to, x, top, left):
    """Add to `to` what lies in x where `_pad` would put it."""
    high, wide = to.shape
    first, last = min(max(left, 0), x.shape[1]), min(max(left + wide, 0), x.shape[1])
    last = max(first, last)
    for h in range(max(top, 0), min(top + high, x.shape[0])):
        part, source = to[h - top, first - left :], x[h, first:last]
        for k in range(len(source)):
            part[k] += source[k]


@compiled
def _span(count, kernel, stride, dilation):
    """Return how many places so many windows see."""
    return (count - 1) * stride + (kernel - 1) * dilation + 1


@compiled
def added(to, x, b):
    """Put x + b into `to`."""
    for k in range(len(to)):
        to[k] = x[k] + b


# -- convolution ----------------------------------------------------------------------------------


@compiled
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


@compiled
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


@compiled
def take(room, *shape):
    """Return an array of scratch memory, and what is left of it."""
    size = 1
    for n in shape:
        size *= n
    return room[:size].reshape(shape), room[size:]


@compiled
def convolve(x, w, b, y, images, depth, rows, outputs, win, room):
    """Convolve x (n, c, size) with kernels w (groups, o / groups, c / groups cells); add b (o).

    Writes y (n, o, windows) for some images, rows of windows at one depth and outputs of a group.
    """
    x, w, b, y, room = lent(x), lent(w), lent(b), lent(y), lent(room)
    _, _, _, _, KH, KW, _, OH, OW, _, SH, SW, _, EH, EW, _, _, _ = win
    groups, _, cells = w.shape
    cg, (o0, o1) = x.shape[1] // groups, outputs
    each, n = (rows[1] - rows[0]) * OW, images[1] - images[0]
    at = (depth * OH + rows[0]) * OW
    high, wide = _span(rows[1] - rows[0], KH, SH, EH), _span(OW, KW, SW, EW)
    padded, room = take(room, high, wide)
    columns, room = take(room, cells, n * each)
    sums, room = take(room, o1 - o0, n * each)
    for group in range(groups):
        kernels, first = w[group, o0:o1], group * (w.shape[1]) + o0
        channels = (group * cg, (group + 1) * cg)
        _fill(columns, x, channels, images, depth, rows, win, padded)
        multiply(kernels, columns, sums, False)
        for o in range(o1 - o0):
            for i in range(n):
                to, found = y[images[0] + i, first + o, at : at + each], sums[o, i * each :]
                added(to, found, b[first + o])


@compiled
def _kernel(w, group, cell, outputs, turned):
    """Return the matrix of one cell, (outputs, channels)."""
    if turned:
        return w[group, w.shape[1] - 1 - cell][:, outputs[0] : outputs[1]].T
    return w[group, cell][outputs[0] : outputs[1]]


@compiled
def convolve_cells(x, w, b, y, images, rows, line, outputs, turned, win, room):
    """Convolve x (n, c, size) with kernels w (groups, cells, o, c) as one product for each cell.

    Adds b (outputs). Writes y (n, outputs, windows) for some images, rows of windows, windows of a
    row and outputs of a group; `turned` kernels lead from o to c. In one image, with strides of 1,
    what a cell sees is a stretch of memory, which is not copied: its rows end with numbers that
    belong to no window.
    """
    x, w, b, y, room = lent(x), lent(w), lent(b), lent(y), lent(room)
    _, H, W, _, KH, KW, _, OH, OW, _, SH, SW, _, EH, EW, _, PH, PW = win
    (i0, i1), (o0, o1), count, along = images, outputs, rows[1] - rows[0], line[1] - line[0]
    groups, cg, og = w.shape[0], x.shape[1] // w.shape[0], y.shape[1] // w.shape[0]
    high, wide = _span(count, KH, SH, EH), _span(along, KW, SW, EW)
    whole = KH * KW * SH * SW == 1 and PH + PW == 0 and OH == H and OW == W
    straight = i1 - i0 == 1 and SH * SW == 1
    pitch = wide if straight else along
    many = (i1 - i0) * count * pitch
    n = rounded(many)
    padded, room = take(room, cg, (i1 - i0) * high * wide + n - many)
    columns, room = take(room, cg, 0 if straight else n)
    sums, room = take(room, o1 - o0, n)
    for group in range(groups):
        first, channels = group * og, group * cg
        if whole and straight:
            at, end = rows[0] * OW + line[0], (rows[1] - 1) * OW + line[1]
            seen = x[i0, channels : channels + cg, at:end]
            to = y[i0, first + o0 : first + o1, at:end]
            product(_kernel(w, group, 0, outputs, turned), seen, to, False)
            for o in range(o1 - o0):
                if b[first + o0 + o] != 0:
                    added(to[o], to[o], b[first + o0 + o])
            continue
        for c in range(cg):
            for i in range(i0, i1):
                plane = x[i, channels + c].reshape(H, W)
                to = padded[c, (i - i0) * high * wide : (i - i0 + 1) * high * wide]
                _pad(to.reshape(high, wide), plane, PH - rows[0] * SH, PW - line[0] * SW, 0)
        for cell in range(KH * KW):
            top, left = cell // KW * EH, cell % KW * EW
            kernel = _kernel(w, group, cell, outputs, turned)
            if straight:
                at = top * wide + left
                product(kernel, padded[:, at : at + n], sums, cell > 0)
                continue
            for c in range(cg):
                for i in range(i1 - i0):
                    to = columns[c, i * count * along : (i + 1) * count * along]
                    plane = padded[c, i * high * wide : (i + 1) * high * wide]
                    _copy(to.reshape(count, along), plane.reshape(high, wide), top, left, SH, SW)
            product(kernel, columns, sums, cell > 0)
        for o in range(o1 - o0):
            for i in range(i1 - i0):
                plane = y[i0 + i, first + o0 + o].reshape(OH, OW)
                for r in range(count):
                    to, start = plane[rows[0] + r, line[0] : line[1]], (i * count + r) * pitch
                    added(to, sums[o, start:], b[first + o0 + o])


@compiled
def convolve_back(g, w, x, images, channels, step, win, room):
    """Add the transpose of a convolution to x (n, c, size), which is 0 at first.

    w (groups, o / groups, c / groups cells), g (n, o, windows); some images and channels of each
    group, `step` rows of windows at a time.
    """
    g, w, x, room = lent(g), lent(w), lent(x), lent(room)
    _, _, _, KD, KH, KW, OD, OH, OW, _, SH, SW, _, EH, EW, _, _, _ = win
    cells = KD * KH * KW
    groups, og = w.shape[0], w.shape[1]
    cg, (c0, c1) = w.shape[2] // cells, channels
    for group in range(groups):
        kernels, first = w[group, :, c0 * cells : c1 * cells].T, group * cg
        for i in range(images[0], images[1]):
            signal = g[i, group * og : (group + 1) * og]
            for depth in range(OD):
                for r0 in range(0, OH, step):
                    r1 = min(OH, r0 + step)
                    each, at = (r1 - r0) * OW, (depth * OH + r0) * OW
                    high, wide = _span(r1 - r0, KH, SH, EH), _span(OW, KW, SW, EW)
                    padded, rest = take(room, high, wide)
                    columns, rest = take(rest, (c1 - c0) * cells, each)
                    multiply(kernels, signal[:, at : at + each], columns, False)
                    place = (first + c0, first + c1)
                    _spread(columns, x, i, place, depth, (r0, r1), win, padded)


@compiled
def silence(x, b, y, images, pads, room):
    """Make y (n, o, h, w), a convolution of x (n, c, h, w) of 3 x 3, b where it comes of zeros.

    For some images; `room` is a plane of numbers for each thread.
    """
    x, b, y = lent(x), lent(b), lent(y)
    (high, wide), (top, left) = y.shape[2:], pads
    heard, room = take(lent(room), x.shape[2], x.shape[3])
    for i in range(images[0], images[1]):
        heard[:] = 0
        flat, missing = heard.reshape(-1), True
        for c in range(x.shape[1]):
            line = x[i, c].reshape(-1)
            for k in range(len(flat)):
                flat[k] = 1 if line[k] != 0 else flat[k]
            if c % 8 == 7 and flat.min() > 0:
                missing = False
                break
        if not missing or flat.min() > 0:
            continue
        for h in range(high):
            for v in range(wide):
                above, beside = max(h - top, 0), max(v - left, 0)
                seen = heard[above : max(h - top + 3, 0), beside : max(v - left + 3, 0)]
                if seen.size == 0 or seen.max() == 0:
                    y[i, :, h, v] = b


# -- elements -------------------------------------------------------------------------------------


@compiled
def clip(x, low, high, y, part):
    """Put x between two bounds into y; NaN stays, and as a bound it is none."""
    x, y = lent(x)[part[0] : part[1]], lent(y)[part[0] : part[1]]
    for k in range(len(x)):
        v = low if x[k] < low else x[k]
        y[k] = high if v > high else v


@compiled
def clip_back(g, x, low, high, to, part):
    """Put g (outputs, size) into `to` where x (size) lies between the bounds."""
    g, to, x = lent(g), lent(to), lent(x)[part[0] : part[1]]
    below, above = low != low, high != high  # no bounds
    for o in range(len(g)):
        signal, out = g[o][part[0] : part[1]], to[o][part[0] : part[1]]
        for k in range(len(x)):
            inside = (below or x[k] > low) and (above or x[k] < high)
            out[k] = signal[k] if inside else 0


# -- windows --------------------------------------------------------------------------------------


@compiled
def window_sums(x, filters, y, planes, win):
    """Put the sums of all windows, weighted by filters (channels, cells), into y."""
    x, filters, y = lent(x), lent(filters), lent(y)
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


@compiled
def window_spread(g, filters, x, planes, win):
    """Put the transpose of `window_sums` of g (planes, windows) into x (planes, D, H, W)."""
    g, filters, x = lent(g), lent(filters), lent(x)
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


@compiled
def window_maxima(x, y, planes, win):
    """Put the maximum of every window into y (planes, windows); NaN stays, padding never wins."""
    x, y = lent(x), lent(y)
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


@compiled
def window_winners(x, y, winners, planes, win):
    """Put the first cell of each window that is y into winners (planes, windows), -1 if none is.

    Cells that come first are asked last.
    """
    x, y, winners = lent(x), lent(y), lent(winners)
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


@compiled
def send_to_winners(g, winners, x, planes):
    """Add g (planes, windows) to x (planes, size), which is 0 at first, at the cells that win."""
    g, winners, x = lent(g), lent(winners), lent(x)
    for p in range(planes[0], planes[1]):
        to, signal, winner = x[p], g[p], winners[p % len(winners)]
        for k in range(len(signal)):
            if winner[k] >= 0:
                to[winner[k]] += signal[k]


@compiled
def pick_winners(x, winners, y, planes):
    """Put what x (planes, size) holds at the cells that win into y (planes, windows)."""
    x, winners, y = lent(x), lent(winners), lent(y)
    for p in range(planes[0], planes[1]):
        values, to, winner = x[p % len(x)], y[p], winners[p % len(winners)]
        for k in range(len(to)):
            to[k] = values[winner[k]] if winner[k] >= 0 else 0
