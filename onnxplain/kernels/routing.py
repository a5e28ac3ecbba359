"""Operators that move, copy or drop elements: every signal goes back the way its element came.

`back(g, shape, rec)` takes a signal (outputs, *y) to (outputs, *shape). The rows of `shape` may be
more than those of the record (one input against many references, or the reverse), so that the
record is asked for parameters only, never for a number of rows.
"""

from __future__ import annotations

import math
from copy import copy
from typing import Any

import numpy as np
import onnx

from ..arrays import (
    Array,
    Shape,
    checked_shape,
    difference,
    divide,
    finite,
    fold,
    host_ints,
    is_device,
    is_float,
    namespace,
    on_device_of,
    to_host,
    unbroadcast,
    unfold,
)
from ..errors import DataError, ModelError, UnsupportedOpError
from .base import joint_shape
from .families import Routing

MAX_ROUNDS = 8  # of additions in which no place occurs twice; then places are summed one by one

# -- the shape changes, the order of elements does not --------------------------------------------


class Reshaping(Routing):
    """Keeps elements in their order under another shape."""

    def back(self, g, shape, rec):
        return g.reshape((g.shape[0], *shape))


class Identity(Reshaping, op="Identity"):
    """y = x."""

    def forward(self, x):
        return x


class Dropout(Reshaping, op="Dropout"):
    """y = x: nothing is dropped outside of training."""

    def forward(self, x, ratio=None, training_mode=None):
        if training_mode is not None and bool(to_host(training_mode).any()):
            self._refuse_training(ratio)
        return x if self.n_outputs == 1 else (x, namespace(x).ones(x.shape, bool))

    @staticmethod
    def _refuse_training(ratio: Array | None) -> None:
        rate = 0.5 if ratio is None else to_host(ratio).item()
        if rate > 0:
            raise UnsupportedOpError(
                f"Dropout in training mode drops {rate:.0%} of its input at random; "
                "export the model in inference mode (eval)"
            )


class Flatten(Reshaping, op="Flatten"):
    """y = x as a matrix: the axes before `axis` become the rows."""

    def forward(self, x):
        axis = self.axis + x.ndim if self.axis < 0 else self.axis
        return x.reshape((math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


class Reshape(Reshaping, op="Reshape", since=5):
    """y = x under the shape given: 0 copies a length (unless `allowzero`), -1 is what remains."""

    def forward(self, x, shape):
        target = host_ints(shape)
        if not getattr(self, "allowzero", 0):
            target = [x.shape[i] if n == 0 and i < x.ndim else n for i, n in enumerate(target)]
        known = math.prod(n for n in target if n != -1)
        if -1 in target and known > 0:
            target[target.index(-1)] = x.size // known
        if math.prod(target) != x.size or min(target, default=0) < 0:
            raise ModelError(
                f"cannot reshape {x.shape} to {tuple(host_ints(shape))}: the number of elements "
                "differs; perhaps the model was exported for another batch size or input shape"
            )
        return x.reshape(target)


class Squeeze(Reshaping, op="Squeeze", since=13):
    """y = x without some axes of length one, by default without all of them."""

    def forward(self, x, axes=None):
        return self.squeezed(x, host_ints(axes))

    def squeezed(self, x: Array, axes: list[int] | None) -> Array:
        """Drop axes."""
        ones = {i for i, n in enumerate(x.shape) if n == 1}
        drop = ones if axes is None else {a % x.ndim for a in axes}
        if not drop <= ones:
            raise ModelError(f"cannot squeeze axes {sorted(drop)} of {x.shape}: not of length 1")
        return x.reshape([n for i, n in enumerate(x.shape) if i not in drop])


class Squeeze1(Squeeze, op="Squeeze", since=1):
    """Squeeze with `axes` as an attribute."""

    def forward(self, x):
        return self.squeezed(x, self.axes)


class Unsqueeze(Reshaping, op="Unsqueeze", since=13):
    """y = x with new axes of length one at the places `axes` of y."""

    def forward(self, x, axes):
        return self.unsqueezed(x, host_ints(axes))

    def unsqueezed(self, x: Array, axes: list[int]) -> Array:
        """Insert axes."""
        ndim = x.ndim + len(axes)
        new = {a % ndim for a in axes}
        if len(new) < len(axes):
            raise ModelError(f"cannot insert axes {axes}: the same place is named twice")
        lengths = iter(x.shape)
        return x.reshape([1 if i in new else next(lengths) for i in range(ndim)])


class Unsqueeze1(Unsqueeze, op="Unsqueeze", since=1):
    """Unsqueeze with `axes` as an attribute."""

    def forward(self, x):
        return self.unsqueezed(x, self.axes)


class Cast(Reshaping, op="Cast", since=6):
    """y = x in the type `to`; what becomes an integer or a truth value carries no signal."""

    def setup(self):
        self.compute_dtype = native_dtype(self.to)

    def with_dtype(self, dtype: np.dtype) -> Cast:
        """Return this cast as one to another float type, if it is one to a float type."""
        return following(self, dtype)

    def active_outputs(self):
        return (any(self.active) and is_float(self.compute_dtype),)

    def forward(self, x):
        return stored_as(x, self.compute_dtype, getattr(self, "saturate", 1))

    def back(self, g, shape, rec):
        return to_type_of(g, rec.inputs[0]).reshape((g.shape[0], *shape))


class CastLike(Reshaping, op="CastLike", since=15):
    """y = x in the type of a second tensor."""

    @classmethod
    def accepts(cls, active):
        return True

    def active_outputs(self):
        return (self.active[0],)

    def forward(self, x, like):
        return stored_as(x, like.dtype, getattr(self, "saturate", 1))

    def back(self, g, shape, rec):
        # Whether the type is a float is known only here: a rounded value lets nothing through.
        g = g if is_float(rec.outputs[0].dtype) else namespace(g).zeros_like(g)
        return to_type_of(g, rec.inputs[0]).reshape((g.shape[0], *shape))


def stored_as(x: Array, dtype: np.dtype, saturate: int) -> Array:
    """Return x in another type; what exceeds an 8-bit float becomes its largest number."""
    if saturate and dtype.name.startswith("float8") and is_float(x.dtype):
        import ml_dtypes

        top = x.dtype.type(ml_dtypes.finfo(dtype).max)
        x = namespace(x).clip(x, -top, top)
    return x.astype(dtype, copy=False)


def following(kernel: Any, dtype: np.dtype) -> Any:
    """Return a kernel that makes floats of this type where it made floats of another."""
    if not is_float(kernel.compute_dtype):
        return kernel
    kernel = copy(kernel)
    kernel.compute_dtype = dtype
    return kernel


def native_dtype(to: int) -> np.dtype:
    """Return the array type of an ONNX type number, refusing types that arrays do not have."""
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(to))
    if dtype.kind == "O":
        name = onnx.TensorProto.DataType.Name(to)
        raise UnsupportedOpError(f"Cast to {name} is not supported: arrays have no such type")
    return dtype


def to_type_of(g: Array, x: Array) -> Array:
    """Return a signal in the type of `x`; integers that became floats leave it as it is."""
    return g.astype(x.dtype, copy=False) if is_float(x.dtype) else g


# -- elements change places -----------------------------------------------------------------------


class Transpose(Routing, op="Transpose"):
    """y = x with its axes in the order `perm`, by default reversed."""

    def forward(self, x):
        return x.transpose(self.perm)

    def back(self, g, shape, rec):
        perm = self.perm or range(len(shape))[::-1]
        return g.transpose((0, *(1 + np.argsort(perm)).tolist()))


def depth_to_space(x: Array, size: int, mode: str = "DCR") -> Array:
    """Lay channels out as blocks of size x size pixels."""
    n, c, h, w = x.shape
    c //= size * size
    if mode == "DCR":
        x, order = x.reshape((n, size, size, c, h, w)), (0, 3, 4, 1, 5, 2)
    else:
        x, order = x.reshape((n, c, size, size, h, w)), (0, 1, 4, 2, 5, 3)
    return x.transpose(order).reshape((n, c, h * size, w * size))


def space_to_depth(x: Array, size: int, mode: str = "DCR") -> Array:
    """Undo `depth_to_space`."""
    n, c, h, w = x.shape
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    x = x.reshape((n, c, h // size, size, w // size, size)).transpose(order)
    return x.reshape((n, c * size * size, h // size, w // size))


class DepthToSpace(Routing, op="DepthToSpace"):
    """y = x with its channels laid out as blocks of pixels; DCR: the block axes come first."""

    def setup(self):
        vars(self).setdefault("mode", "DCR")

    def forward(self, x):
        return depth_to_space(x, self.blocksize, self.mode)

    def back(self, g, shape, rec):
        return unfold(space_to_depth(fold(g), self.blocksize, self.mode), g.shape[0])


class SpaceToDepth(Routing, op="SpaceToDepth"):
    """y = x with blocks of pixels moved into the channels."""

    def setup(self):
        vars(self).setdefault("mode", "DCR")

    def forward(self, x):
        return space_to_depth(x, self.blocksize, self.mode)

    def back(self, g, shape, rec):
        return unfold(depth_to_space(fold(g), self.blocksize, self.mode), g.shape[0])


# -- several tensors in or out --------------------------------------------------------------------


class Concat(Routing, op="Concat", since=4):
    """y = the inputs one after the other along `axis`."""

    @classmethod
    def accepts(cls, active):
        return True

    def forward(self, *inputs):
        xp = namespace(*inputs)
        checked_shape((sum(x.size for x in inputs),))
        return xp.concatenate([xp.asarray(x) for x in inputs], axis=self.axis)

    def route(self, signals, rec, ref):
        g = signals[0]
        axis = self.axis % (g.ndim - 1)
        ends = np.cumsum([x.shape[axis] for x in rec.inputs]).tolist()
        return tuple(
            g[along(axis + 1, a, b)] if active else None
            for active, a, b in zip(self.active, [0, *ends], ends, strict=False)
        )

    def difference_parts(self, rec, ref, parts):
        """Concatenate the parts of each input; constants do not differ."""
        split = [parts(i) if a else None for i, a in enumerate(self.active)]
        if any(a and s is None for a, s in zip(self.active, split, strict=True)):
            return None
        sides = []
        for side in (0, 1):
            pieces = [
                s[side] if s is not None else namespace(x).zeros_like(x)
                for s, x in zip(split, rec.inputs, strict=True)
            ]
            sides.append(self.forward(*_same_rows(pieces, self.axis)))
        return tuple(sides)


def _same_rows(pieces: list[Array], axis: int) -> list[Array]:
    """Broadcast arrays against each other on all axes but one."""
    axis %= pieces[0].ndim
    common = np.broadcast_shapes(*((*p.shape[:axis], 1, *p.shape[axis + 1 :]) for p in pieces))
    return [
        namespace(p).broadcast_to(p, (*common[:axis], p.shape[axis], *common[axis + 1 :]))
        for p in pieces
    ]


class Split(Routing, op="Split", since=13):
    """y1, y2, ... = consecutive pieces of x along `axis`."""

    def active_outputs(self):
        return (any(self.active),) * self.n_outputs

    def sizes(self, n: int, inputs: tuple[Array | None, ...]) -> list[int]:
        """Return the lengths of the pieces; even ones by default, the last may be shorter."""
        given = host_ints(inputs[1]) if len(inputs) > 1 else None
        return self.even(n) if given is None else given

    def even(self, n: int) -> list[int]:
        """Cut into pieces of one length."""
        step = -(-n // self.n_outputs)
        return [min(step, max(n - i * step, 0)) for i in range(self.n_outputs)]

    def forward(self, *inputs):
        x = inputs[0]
        axis = self.axis % x.ndim
        ends = np.cumsum(self.sizes(x.shape[axis], inputs)).tolist()
        if ends[-1] != x.shape[axis] or len(ends) != self.n_outputs:
            raise ModelError(
                f"cannot split axis {axis} of {x.shape} into {self.n_outputs} pieces "
                f"that end at {ends}"
            )
        return tuple(x[along(axis, a, b)] for a, b in zip([0, *ends], ends, strict=False))

    def route(self, signals, rec, ref):
        shape = joint_shape(rec, ref, 0)
        g = next(s for s in signals if s is not None)
        axis = self.axis % len(shape)
        back = namespace(g).zeros((g.shape[0], *shape), g.dtype)
        ends = np.cumsum(self.sizes(shape[axis], rec.inputs)).tolist()
        for signal, a, b in zip(signals, [0, *ends], ends, strict=False):
            if signal is not None:
                back[along(axis + 1, a, b)] = signal
        return self.at(0, back)


class Split2(Split, op="Split", since=2):
    """Split with the lengths as an attribute."""

    def sizes(self, n, inputs):
        return self.split or self.even(n)


def along(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    """Return the index that cuts one axis."""
    return (slice(None),) * axis + (slice(start, stop),)


# -- elements are dropped -------------------------------------------------------------------------


class Slice(Routing, op="Slice", since=10):
    """y = x[start:end:step] on each of the `axes`."""

    def cuts(self, ndim: int, inputs: tuple[Array | None, ...]) -> tuple[slice, ...]:
        """Return the slices of all axes."""
        starts, ends, axes, steps = (*map(host_ints, inputs[1:]), None, None)[:4]
        return slices(ndim, starts, ends, axes, steps)

    def forward(self, *inputs):
        return inputs[0][self.cuts(inputs[0].ndim, inputs)]

    def back(self, g, shape, rec):
        back = namespace(g).zeros((g.shape[0], *shape), g.dtype)
        back[(slice(None), *self.cuts(len(shape), rec.inputs))] = g
        return back


class Slice1(Slice, op="Slice", since=1):
    """Slice with everything as attributes."""

    def cuts(self, ndim, inputs):
        return slices(ndim, self.starts, self.ends, self.axes, None)


def slices(
    ndim: int, starts: list[int], ends: list[int], axes: list[int] | None, steps: list[int] | None
) -> tuple[slice, ...]:
    """Translate ONNX's numbers; Python clamps bounds and counts from the end in the same way."""
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    cuts = [slice(None)] * ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cuts[axis] = slice(start, end, step)
    return tuple(cuts)


class Gather(Routing, op="Gather"):
    """y = the slices of x along `axis` at integer positions; negative ones count from the end."""

    def forward(self, x, indices):
        self._check(indices, x.shape[self.axis])
        x = on_device_of(x, indices)
        return namespace(x).take(x, on_device_of(indices, x), axis=self.axis)

    @staticmethod
    def _check(indices: Array, n: int) -> None:
        # On a GPU the check would wait for the device; there positions wrap around.
        if is_device(indices) or indices.size == 0:
            return
        low, high = int(indices.min()), int(indices.max())
        if low < -n or high >= n:
            raise DataError(f"Gather wants positions {low} to {high} of an axis of length {n}")

    def back(self, g, shape, rec):
        return self._back(g, shape, rec.inputs[1])

    def _back(self, g: Array, shape: Shape, indices: Array) -> Array:
        axis = self.axis % len(shape)
        behind = shape[axis + 1 :]
        g = g.reshape((g.shape[0], *shape[:axis], indices.size, *behind))
        return scatter_add(g, indices.reshape(-1) % shape[axis], axis + 1, shape[axis])

    def route(self, signals, rec, ref):
        g, shape = signals[0], joint_shape(rec, ref, 0)
        if ref is None or same(rec.inputs[1], ref.inputs[1]):
            return self.at(0, self._back(g, shape, rec.inputs[1]))
        half = 0.5 * g
        return self.at(0, sum(self._back(half, shape, r.inputs[1]) for r in (rec, ref)))

    def difference_parts(self, rec, ref, parts):
        if not same(rec.inputs[1], ref.inputs[1]):
            return None
        return super().difference_parts(rec, ref, parts)

    def describe(self, method):
        remark = "exact where input and reference ask for the same positions"
        return ("routes back", True, remark if method == "deeplift" else "")


def same(a: Array, b: Array) -> bool:
    """Tell whether two parameters are equal; constants are one object and not looked into."""
    return a is b or (a.shape == b.shape and bool((a == b).all()))


def scatter_add(g: Array, index: Array, axis: int, n: int) -> Array:
    """Sum slices of `g` along an axis by the place (0 to n - 1) they belong to."""
    xp = namespace(g)
    out = xp.zeros((*g.shape[:axis], n, *g.shape[axis + 1 :]), g.dtype)
    before = (slice(None),) * axis
    if is_device(index):
        xp.add.at(out, (*before, index), g)
        return out
    order, starts, most = _groups(index)
    if most > MAX_ROUNDS and not is_device(g):
        out[(*before, index[order[starts]])] = np.add.reduceat(g[(*before, order)], starts, axis)
        return out
    for positions in _rounds(order, starts):
        target = (*before, on_device_of(index[positions], g))
        out[target] += g[(*before, on_device_of(positions, g))]
    return out


def _groups(index: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Order positions by place; return where each place begins, and how many the fullest has."""
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: index.size])
    most = int(np.diff(starts, append=index.size).max(initial=0))
    return order, starts, most


def _rounds(order: np.ndarray, starts: np.ndarray) -> list[np.ndarray]:
    """Group positions so that no place occurs twice in a group: then += adds all of them."""
    if order.size == 0:
        return []
    lengths = np.diff(starts, append=order.size)
    turn = np.arange(order.size) - np.repeat(starts, lengths)
    return [order[turn == i] for i in range(int(lengths.max()))]


# -- elements are copied or added -----------------------------------------------------------------


class Pad(Routing, op="Pad", since=11):
    """y = x with elements put around it, or cut off where a number is negative."""

    def widths(self, ndim: int, inputs: tuple[Array | None, ...]) -> list[tuple[int, int]]:
        """Return how much is put before and after on each axis."""
        pads, _, axes = (*inputs[1:], None, None)[:3]
        return pairs(ndim, host_ints(pads), host_ints(axes))

    def value_of(self, inputs: tuple[Array | None, ...]) -> Any:
        """Return what is put there in mode "constant"."""
        value = inputs[2] if len(inputs) > 2 else None
        return 0 if value is None else value.reshape(())

    def forward(self, *inputs):
        return self._padded(inputs[0], self.widths(inputs[0].ndim, inputs), self.value_of(inputs))

    def _padded(self, x: Array, widths: list[tuple[int, int]], value: Any) -> Array:
        checked_shape([n + a + b for n, (a, b) in zip(x.shape, widths, strict=True)])
        if self.mode == "constant":
            return pad_or_crop(x, widths, value)
        for axis, index in self._origins(x.shape, widths):
            x = namespace(x).take(x, on_device_of(index, x), axis=axis)
        return x

    def _origins(self, shape: Shape, widths: list[tuple[int, int]]) -> list:
        """Return, for each axis that changes, where its elements come from."""
        found = []
        for axis, (n, (a, b)) in enumerate(zip(shape, widths, strict=True)):
            if a or b:
                kept = np.arange(max(-a, 0), n - max(-b, 0))
                found.append((axis, np.pad(kept, (max(a, 0), max(b, 0)), mode=self.mode)))
        return found

    def back(self, g, shape, rec):
        widths = self.widths(len(shape), rec.inputs)
        if self.mode == "constant":
            return pad_or_crop(g, [(0, 0), *((-a, -b) for a, b in widths)], 0)
        for axis, index in self._origins(shape, widths):
            g = scatter_add(g, index, axis + 1, shape[axis])
        return g

    def difference_parts(self, rec, ref, parts):
        split = parts(0)
        if split is None:
            return None
        # What is put around is the same in input and reference: differences get zeros.
        return tuple(self._padded(d, self.widths(d.ndim, rec.inputs), 0) for d in split)


class Pad2(Pad, op="Pad", since=2):
    """Pad with everything as attributes."""

    def widths(self, ndim, inputs):
        return pairs(ndim, self.pads, None)

    def value_of(self, inputs):
        return self.value


def pairs(ndim: int, pads: list[int], axes: list[int] | None) -> list[tuple[int, int]]:
    """Turn ONNX's list (all numbers before, then all after) into one pair per axis."""
    axes = list(range(ndim)) if axes is None else axes
    half = len(axes)
    if len(pads) != 2 * half:
        raise ModelError(f"Pad got {len(pads)} numbers for {half} axes, expected {2 * half}")
    widths = [(0, 0)] * ndim
    for i, axis in enumerate(axes):
        widths[axis] = (pads[i], pads[half + i])
    return widths


def pad_or_crop(x: Array, widths: list[tuple[int, int]], value: Any) -> Array:
    """Put a constant around `x`; cut where a width is negative."""
    kept = [slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(x.shape, widths, strict=True)]
    x = x[tuple(kept)]
    widths = [(max(a, 0), max(b, 0)) for a, b in widths]
    if not any(a or b for a, b in widths):
        return x
    y = namespace(x).empty([n + a + b for n, (a, b) in zip(x.shape, widths, strict=True)], x.dtype)
    y[...] = on_device_of(value, x)
    y[tuple(slice(a, a + n) for n, (a, _) in zip(x.shape, widths, strict=True))] = x
    return y


class Expand(Routing, op="Expand", since=8):
    """y = x broadcast against a shape."""

    def forward(self, x, shape):
        wanted = checked_shape(host_ints(shape))
        try:
            target = np.broadcast_shapes(x.shape, wanted)
        except ValueError:
            raise ModelError(f"cannot expand {x.shape} to {wanted}") from None
        return namespace(x).broadcast_to(x, checked_shape(target))

    def back(self, g, shape, rec):
        return unbroadcast(g, shape)


class Tile(Routing, op="Tile", since=6):
    """y = x repeated along each axis."""

    def forward(self, x, repeats):
        counts = host_ints(repeats)
        checked_shape([n * r for n, r in zip(x.shape, counts, strict=True)])
        return namespace(x).tile(x, counts)

    def back(self, g, shape, rec):
        copies = [(n, length) for n, length in zip(host_ints(rec.inputs[1]), shape, strict=True)]
        g = g.reshape((g.shape[0], *(v for pair in copies for v in pair)))
        return g.sum(axis=tuple(range(1, g.ndim, 2)))


class Where(Routing, op="Where", since=9):
    """y = a where the condition holds, else b; the condition carries no signal."""

    data = (1, 2)

    def forward(self, condition, a, b):
        xp = namespace(condition, a, b)
        return xp.where(*(xp.asarray(v) for v in (condition, a, b)))

    def route(self, signals, rec, ref):
        g = signals[0]
        xp, condition = namespace(g), on_device_of(rec.inputs[0], g)
        nothing = g.dtype.type(0)
        to_a = xp.where(condition, g, nothing) if self.active[1] else None
        to_b = xp.where(condition, nothing, g) if self.active[2] else None
        return self._back(to_a, to_b, rec, ref)

    def _back(self, to_a: Array | None, to_b: Array | None, rec: Any, ref: Any) -> tuple:
        return tuple(
            None if s is None else unbroadcast(s, joint_shape(rec, ref, i))
            for i, s in enumerate((None, to_a, to_b))
        )

    def deeplift(self, rec, ref, m, rule, parts):
        """Where the condition changes, the smallest multipliers that make up the difference.

        They are in proportion to the differences of both branches. A pure jump, between branches
        that stay the same, is not explained; signals go half to each.
        """
        if same(rec.inputs[0], ref.inputs[0]):
            return self.route(m, rec, ref)
        xp = namespace(m[0])
        c, c0 = (on_device_of(r.inputs[0], m[0]) for r in (rec, ref))
        da, db = (difference(rec.inputs[i], ref.inputs[i]) * float(self.active[i]) for i in (1, 2))
        dy = finite(difference(rec.outputs[0], ref.outputs[0]))
        share = divide(dy, finite(da * da + db * db))
        jump, half = (da == 0) & (db == 0), dy.dtype.type(0.5)

        def part(i: int, taken: Array, d: Array) -> Array | None:
            if not self.active[i]:
                return None
            return m[0] * xp.where(c == c0, taken, xp.where(jump, half, share * d))

        return self._back(part(1, c, da), part(2, ~c, db), rec, ref)

    def difference_parts(self, rec, ref, parts):
        return None

    def describe(self, method):
        if method != "deeplift":
            return super().describe(method)
        remark = "exact but for jumps between branches that stay the same"
        return ("least multipliers", False, remark)
