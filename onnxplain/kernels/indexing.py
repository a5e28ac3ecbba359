"""Operators that pick, place and order elements, at positions from the graph or by value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ..arrays import (
    Array,
    Shape,
    checked_shape,
    divide,
    host_ints,
    is_device,
    namespace,
    negative,
    on_device_of,
    positive,
    to_host,
)
from ..errors import DataError, ModelError, UnsupportedOpError
from .base import Kernel, Pair, Record, joint_shape
from .constants import Forward, Step
from .families import Routing
from .routing import following, native_dtype, pad_or_crop, same, scatter_add

_BLOCK = 2**24  # elements of a comparison of all ranks with all candidates


class Moves(Routing):
    """Every element of y is an element of one of the `moved` inputs, or a filling.

    The other inputs say where elements go. The way back is found by moving the numbers 1, 2, 3...
    in the place of the elements.
    """

    moved: ClassVar[tuple[int, ...]] = (0,)

    def move(self, *inputs: Array | None) -> Array:
        """Compute y, for elements of any type."""
        raise NotImplementedError

    def check(self, *inputs: Array | None) -> None:
        """Refuse positions that do not exist."""

    def by_row(self, ndim: int) -> bool:
        """Tell whether positions of a row are counted from the beginning of that row."""
        return True

    def forward(self, *inputs):
        self.check(*inputs)
        return self.move(*inputs)

    # -- the way back -----------------------------------------------------------------------------

    def route(self, signals, rec, ref):
        ways = self.ways(rec, ref)
        shapes = {i: joint_shape(rec, ref, i) for i in self.moved}
        g = signals[0] if len(ways) == 1 else 0.5 * signals[0]
        flat = sum(self._way_back(g, inputs, shapes) for inputs in ways)
        back, start = [None] * len(self.active), 0
        for i in self._sources():
            end = start + math.prod(shapes[i])
            back[i] = flat[:, start:end].reshape((g.shape[0], *shapes[i]))
            start = end
        return tuple(back)

    def _sources(self) -> list[int]:
        return [i for i in self.moved if self.active[i]]

    def _way_back(self, g: Array, inputs: Sequence[Array | None], shapes: dict) -> Array:
        sizes = [math.prod(shapes[i]) for i in self._sources()]
        numbers = np.arange(1, 1 + sum(sizes))
        numbered, start = list(inputs), 0
        for i, shape in shapes.items():
            if self.active[i]:
                end = start + math.prod(shape)
                numbered[i] = numbers[start:end].reshape(shape)
                start = end
            else:
                numbered[i] = np.broadcast_to(np.zeros((), numbers.dtype), shape)
        origin = self.move(*numbered).reshape(-1)
        g = g.reshape((g.shape[0], -1))
        if not is_device(origin) and not origin.all():
            real = np.flatnonzero(origin)
            origin, g = origin[real], g[:, on_device_of(real, g)]
        return scatter_add(g, origin, 1, len(numbers) + 1)[:, 1:]

    def ways(self, rec: Record, ref: Record | None) -> list[tuple[Array | None, ...]]:
        """Return the inputs of one run, of both where they send elements to different places."""
        if ref is None:
            return [rec.inputs]
        self._comparable(rec, ref)
        longer = rec if rec.outputs[0].shape[:1] >= ref.outputs[0].shape[:1] else ref
        where = [i for i, x in enumerate(rec.inputs) if i not in self.moved and x is not None]
        pairs = [(rec.inputs[i], ref.inputs[i]) for i in where]
        if all(same(a, b) for a, b in pairs):
            return [longer.inputs]
        if any(a.shape != b.shape for a, b in pairs) and not self.by_row(rec.inputs[0].ndim):
            return [longer.inputs]
        return [self._lined_up(run, where, pairs) for run in (rec, ref)]

    def _comparable(self, rec: Record, ref: Record) -> None:
        """Refuse runs that differ in more than their number of rows."""
        shapes = [run.outputs[0].shape for run in (rec, ref)]
        try:
            np.broadcast_shapes(*shapes)
        except ValueError:
            raise DataError(
                f"{self.op} makes {shapes[0]} elements for the input, {shapes[1]} for the "
                "reference; give a reference for which the model picks as many"
            ) from None

    @staticmethod
    def _lined_up(run: Record, where: list[int], pairs: list) -> tuple[Array | None, ...]:
        """Return the inputs of a run, its one row repeated where the other run has several."""
        inputs = list(run.inputs)
        for i, (a, b) in zip(where, pairs, strict=True):
            shape = np.broadcast_shapes(a.shape, b.shape)
            inputs[i] = namespace(inputs[i]).broadcast_to(inputs[i], shape)
        return tuple(inputs)

    def difference_parts(self, rec, ref, parts):
        split = {i: parts(i) for i in self._sources()}
        ways = self.ways(rec, ref)
        if len(ways) > 1 or any(s is None for s in split.values()):
            return None

        def side(j: int) -> Array:
            inputs = list(ways[0])
            like = next(iter(split.values()))[j]
            for i in self.moved:
                shape = joint_shape(rec, ref, i)
                inputs[i] = split[i][j] if i in split else namespace(like).zeros(shape, like.dtype)
            return self.move(*inputs)

        return side(0), side(1)

    def describe(self, method):
        remark = "exact where input and reference ask for the same positions"
        return ("routes back", True, remark if method == "deeplift" else "")


def check_positions(op: str, indices: Array, n: int) -> None:
    """Refuse positions outside of an axis of length n; of indices on a GPU they are not read."""
    if is_device(indices) or indices.size == 0:
        return
    low, high = int(indices.min()), int(indices.max())
    if low < -n or high >= n:
        raise DataError(f"{op} wants positions {low} to {high} of an axis of length {n}")


def mesh(shape: Shape, axis: int, indices: Array) -> tuple[Array, ...]:
    """Return an index of all axes: `indices` on one of them, on the others their own place."""
    xp = namespace(indices)
    ndim = len(shape)
    return tuple(
        indices if i == axis else xp.arange(n).reshape((1,) * i + (n,) + (1,) * (ndim - i - 1))
        for i, n in enumerate(shape)
    )


def lifted(*arrays: Array) -> tuple[Array, ...]:
    """Return arrays on the device where any of them is there."""
    xp = namespace(*arrays)
    return arrays if xp is np else tuple(xp.asarray(a) for a in arrays)


# -- picking --------------------------------------------------------------------------------------


class GatherElements(Moves, op="GatherElements", since=11):
    """y = x at positions along `axis` that are given for each element of y."""

    def by_row(self, ndim):
        return self.axis % ndim != 0

    def check(self, data, indices):
        axis = self.axis % data.ndim
        fits = data.ndim == indices.ndim and all(
            m <= n
            for i, (m, n) in enumerate(zip(indices.shape, data.shape, strict=True))
            if i != axis
        )
        if not fits:
            raise ModelError(f"indices of shape {indices.shape} do not fit data of {data.shape}")
        check_positions(self.op, indices, data.shape[axis])

    def move(self, data, indices):
        data, indices = lifted(data, indices)
        return data[mesh(indices.shape, self.axis % data.ndim, indices)]


class GatherND(Moves, op="GatherND", since=11):
    """y = the slices of x at tuples of positions; `batch_dims` axes in front go side by side."""

    def setup(self):
        vars(self).setdefault("batch_dims", 0)

    def by_row(self, ndim):
        return self.batch_dims > 0

    def check(self, data, indices):
        b, k = self.batch_dims, indices.shape[-1]
        if b + k > data.ndim or b >= indices.ndim or data.shape[:b] != indices.shape[:b]:
            raise ModelError(
                f"GatherND of indices {indices.shape} from data {data.shape} with {b} batch axes"
            )
        check_tuples(self.op, indices, data.shape[b:])

    def move(self, data, indices):
        data, indices = lifted(data, indices)
        b, k = self.batch_dims, indices.shape[-1]
        rows = math.prod(data.shape[:b])
        flat = indices.reshape((rows, math.prod(indices.shape[b:-1]), k))
        row = namespace(data).arange(rows)[:, None]
        picked = data.reshape((rows, *data.shape[b:]))[(row, *(flat[..., j] for j in range(k)))]
        return picked.reshape((*indices.shape[:-1], *data.shape[b + k :]))


def check_tuples(op: str, indices: Array, shape: Shape) -> None:
    """Refuse tuples of positions outside of a shape."""
    for j in range(indices.shape[-1]):
        check_positions(op, indices[..., j], shape[j])


class Compress(Moves, op="Compress", since=9):
    """y = the slices of x along `axis`, by default the elements, for which the condition holds."""

    def by_row(self, ndim):
        return self.axis is not None and self.axis % ndim != 0

    def move(self, x, condition):
        # How many there are decides the shape: a condition on a GPU has to be waited for.
        kept = np.flatnonzero(to_host(condition))
        x, axis = (x.reshape(-1), 0) if self.axis is None else (x, self.axis % x.ndim)
        if len(kept) and kept[-1] >= x.shape[axis]:
            raise ModelError(f"a condition of {condition.size} for an axis of {x.shape[axis]}")
        return namespace(x).take(x, on_device_of(kept, x), axis=axis)


class ReverseSequence(Moves, op="ReverseSequence", since=10):
    """y = x with the first `sequence_lens` steps of each sequence in reverse order."""

    def by_row(self, ndim):
        return self.batch_axis == 0

    def check(self, x, sequence_lens):
        n, steps = x.shape[self.batch_axis], x.shape[self.time_axis]
        if sequence_lens.shape != (n,):
            raise ModelError(f"{sequence_lens.size} sequence lengths for {n} sequences")
        check_positions(self.op, sequence_lens, steps + 1)

    def move(self, x, sequence_lens):
        x, lengths = lifted(x, sequence_lens)
        xp = namespace(x)
        axes = (self.time_axis, self.batch_axis)
        steps, rows = (x.shape[a] for a in axes)
        step = xp.arange(steps)[:, None]
        step = xp.where(step < lengths, lengths - 1 - step, step)
        return xp.moveaxis(xp.moveaxis(x, axes, (0, 1))[step, xp.arange(rows)], (0, 1), axes)


class CenterCropPad(Routing, op="CenterCropPad", since=18):
    """y = the middle of x in the lengths given, with zeros around it where x is shorter."""

    def _widths(self, shape: Shape, inputs: tuple[Array | None, ...]) -> list[tuple[int, int]]:
        wanted = host_ints(inputs[1])
        axes = range(len(shape)) if self.axes is None else [a % len(shape) for a in self.axes]
        widths = [(0, 0)] * len(shape)
        for axis, m in zip(axes, wanted, strict=True):
            n = shape[axis]
            before = (m - n) // 2 if m >= n else -((n - m) // 2)
            widths[axis] = (before, m - n - before)
        return widths

    def forward(self, *inputs):
        x = inputs[0]
        widths = self._widths(x.shape, inputs)
        checked_shape([n + a + b for n, (a, b) in zip(x.shape, widths, strict=True)])
        return pad_or_crop(x, widths, 0)

    def back(self, g, shape, rec):
        widths = self._widths(shape, rec.inputs)
        return pad_or_crop(g, [(0, 0), *((-a, -b) for a, b in widths)], 0)


class OneHot(Step, op="OneHot", since=9):
    """y = one value where the position along a new axis is the index, another elsewhere."""

    @classmethod
    def accepts(cls, active):
        return not any(active[1:])

    def forward(self, indices, depth, values):
        (n,) = host_ints(depth)
        checked_shape((*indices.shape, n))
        axis = self.axis % (indices.ndim + 1)
        xp = namespace(indices)
        place = xp.arange(n).reshape((n,) + (1,) * (indices.ndim - axis))
        index = xp.expand_dims(indices.astype(np.int64), axis)
        hot = (index == place) | (index == place - n)
        values = on_device_of(values, hot)
        return xp.where(hot, values[1], values[0])


# -- placing --------------------------------------------------------------------------------------


class Scattering(Moves):
    """y = data with updates put, or added, at positions."""

    data = (0, 2)
    moved = (0, 2)

    def setup(self):
        self.reduction = vars(self).get("reduction") or "none"
        if self.reduction not in ("none", "add", "mul", "min", "max"):
            raise ModelError(f"{self.op} has no reduction {self.reduction!r}")

    def target(self, data: Array, where: Array | None, updates: Array) -> tuple[Array, ...]:
        """Return the index of the places in data that are written to."""
        raise NotImplementedError

    def named(self, inputs: Sequence[Array | None]) -> tuple[Array, Array | None, Array]:
        """Return data, positions and updates."""
        data, where, updates = inputs
        return data, where, updates

    def move(self, *inputs):
        data, where, updates = self.named(inputs)
        if where is not None:
            data, where, updates = lifted(data, where, updates)
        else:
            data, updates = lifted(data, updates)
        y = data.copy()
        target = self.target(data, where, updates)
        if self.reduction == "none":
            y[target] = updates
            return y
        xp = namespace(y)
        names = {"add": "add", "mul": "multiply", "min": "minimum", "max": "maximum"}
        getattr(xp, names[self.reduction]).at(y, target, updates)
        return y

    def check(self, *inputs):
        self._check(*self.named(inputs))

    def _check(self, data: Array, where: Array | None, updates: Array) -> None:
        raise NotImplementedError

    # -- added, not put ---------------------------------------------------------------------------

    def route(self, signals, rec, ref):
        if self.reduction == "none":
            return super().route(signals, rec, ref)
        self._refuse()
        g, j = signals[0], self.moved[1]
        ways = self.ways(rec, ref)
        share = g if len(ways) == 1 else 0.5 * g
        back = [None] * len(self.active)
        if self.active[0]:
            back[0] = g
        if self.active[j]:
            shape = joint_shape(rec, ref, j)
            back[j] = sum(self._picked(share, inputs, shape) for inputs in ways)
        return tuple(back)

    def _picked(self, g: Array, inputs: Sequence[Array | None], shape: Shape) -> Array:
        """Return a signal at the places that updates of this shape are added to."""
        _, where, _ = self.named(inputs)
        updates = np.broadcast_to(np.zeros(()), shape)  # only its shape is asked for
        target = self.target(g[0], where, updates)
        return g[(slice(None), *(on_device_of(t, g) for t in target))]

    def _refuse(self) -> None:
        if self.reduction != "add":
            raise UnsupportedOpError(
                f"{self.op} with reduction={self.reduction!r} on data is computed, not explained; "
                "explain tensors before it, convert(model, outputs=[...])"
            )

    def relevance(self, rec, r, rule, note):
        """Shared by contribution, like any sum."""
        if self.reduction == "none":
            return super().relevance(rec, r, rule, note)
        self._refuse()
        data, _, updates = self.named(rec.inputs)
        z, j = rec.outputs[0], self.moved[1]
        if not self.active[0]:
            total = _Total(self, rec.inputs)
            return self.at(j, rule.rule.linear(total, updates, 1.0, data, z, r[0], note))
        d = rule.rule.secure(z)
        s = r[0] / d
        back = self.at(0, s * data)
        added = self._picked(s, rec.inputs, updates.shape) * on_device_of(updates, s)
        if note is not None:
            note.add("stabiliser", s * (d - z))
            if not self.active[j]:
                note.add("bias", s * (z - data))
        if self.active[j]:
            back = (*back[:j], added, *back[j + 1 :])
        return back

    def deeplift(self, rec, ref, m, rule, parts):
        out = super().deeplift(rec, ref, m, rule, parts)
        if self.reduction == "none":
            return out
        return tuple(
            _chosen(s, rec.inputs[i] - ref.inputs[i]) if isinstance(s, Pair) else s
            for i, s in enumerate(out)
        )

    def difference_parts(self, rec, ref, parts):
        if self.reduction == "none":
            return super().difference_parts(rec, ref, parts)
        if self.reduction != "add":
            return None

        def split(i: int) -> tuple[Array, Array]:
            dx = rec.inputs[i] - ref.inputs[i]
            return positive(dx), negative(dx)

        return super().difference_parts(rec, ref, split)

    def describe(self, method):
        if self.reduction == "none":
            return super().describe(method)
        if self.reduction != "add":
            return ("", False, f"not defined: reduction {self.reduction} of data")
        words = {
            "lrp": ("proportional", True, "constants and stabiliser absorb relevance"),
            "deeplift": ("copies", True, super().describe(method)[2]),
        }
        return words.get(method, ("copies", True, ""))


def _chosen(pair: Pair, dx: Array) -> Array:
    """Return the multiplier of the part that a difference belongs to."""
    xp = namespace(dx)
    p, n = pair.positive, pair.negative
    return xp.where(dx > 0, p, xp.where(dx < 0, n, 0.5 * (p + n)))


class _Total:
    """Updates summed up at their places: what an LRP rule needs of a linear map."""

    diagonal = False

    def __init__(self, scattering: Scattering, inputs: Sequence[Array | None]):
        self.op, self._scattering, self._inputs = scattering.op, scattering, inputs

    def apply(self, x: Array, w: Any) -> Array:
        inputs = list(self._inputs)
        inputs[0] = namespace(x).zeros(inputs[0].shape, x.dtype)
        inputs[self._scattering.moved[1]] = x
        return w * self._scattering.move(*inputs)

    def vjp(self, g: Array, shape: Shape, w: Any) -> Array:
        return w * self._scattering._picked(g, self._inputs, shape)

    def split(self, w: Any) -> tuple[Any, Any]:
        return w, None

    def map_weights(self, w: Any, f: Any) -> Any:
        return w


class ScatterElements(Scattering, op="ScatterElements", since=11):
    """y = data, with updates at positions along `axis` that are given for each of them."""

    def by_row(self, ndim):
        return self.axis % ndim != 0

    def _check(self, data, where, updates):
        if where.shape != updates.shape or where.ndim != data.ndim:
            raise ModelError(
                f"{self.op} of updates {updates.shape} at indices {where.shape} to {data.shape}"
            )
        check_positions(self.op, where, data.shape[self.axis])

    def target(self, data, where, updates):
        return mesh(where.shape, self.axis % data.ndim, where)


class Scatter(ScatterElements, op="Scatter", since=9):
    """The old name of ScatterElements."""


class ScatterND(Scattering, op="ScatterND", since=11):
    """y = data, with slices put at tuples of positions."""

    def by_row(self, ndim):
        return False

    def _check(self, data, where, updates):
        k = where.shape[-1]
        if k > data.ndim or updates.shape != (*where.shape[:-1], *data.shape[k:]):
            raise ModelError(
                f"ScatterND of updates {updates.shape} at indices {where.shape} to {data.shape}"
            )
        check_tuples(self.op, where, data.shape)

    def target(self, data, where, updates):
        return tuple(where[..., j] for j in range(where.shape[-1]))


class TensorScatter(Scattering, op="TensorScatter", since=24):
    """y = a cache with an update written along `axis`, from an index of its own in each row."""

    data = (0, 1)
    moved = (0, 1)

    def setup(self):
        if self.mode not in ("linear", "circular"):
            raise ModelError(f"TensorScatter has no mode {self.mode!r}")
        self.reduction = "none"

    def named(self, inputs):
        past, update, where = (*inputs, None)[:3]
        return past, where, update

    def _check(self, data, where, updates):
        axis = self.axis % data.ndim
        if axis == 0 or updates.ndim != data.ndim or updates.shape[axis] > data.shape[axis]:
            raise ModelError(f"TensorScatter of {updates.shape} into {data.shape}, axis {axis}")
        if where is not None and self.mode == "linear":
            check_positions(self.op, where, data.shape[axis] - updates.shape[axis] + 1)

    def target(self, data, where, updates):
        axis, ndim = self.axis % data.ndim, data.ndim
        xp = namespace(data)
        step = xp.arange(updates.shape[axis]).reshape((-1,) + (1,) * (ndim - axis - 1))
        if where is not None:
            step = on_device_of(where, data).reshape((-1,) + (1,) * (ndim - 1)) + step
        return mesh(updates.shape, axis, step % data.shape[axis])


# -- ordering -------------------------------------------------------------------------------------


class TopK(Kernel, op="TopK", since=10):
    """Values, Indices = the K largest (or smallest) along `axis`, ties to the lower index.

    DeepLIFT credits each rank on its own. Where the value of a rank rises, one of the elements up
    to this rank was not better than the rank's value in the reference: it rose at least as much,
    so that no quotient exceeds 1. A fall is a rise seen from the reference.
    """

    family = "selector"
    data = (0,)

    def setup(self):
        vars(self).setdefault("largest", 1)

    def count(self, inputs: tuple[Array | None, ...]) -> int:
        """Return how many are asked for."""
        (k,) = host_ints(inputs[1])
        return k

    def forward(self, *inputs):
        x, k = inputs[0], self.count(inputs)
        if not 0 <= k <= x.shape[self.axis]:
            raise ModelError(f"TopK asks for {k} of {x.shape[self.axis]} elements")
        order = self._order(x, k)
        values = self._front(namespace(x).take_along_axis(self._last(x), order, axis=-1))
        return (values, self._front(order)) if self.n_outputs > 1 else values

    def _last(self, x: Array) -> Array:
        return namespace(x).moveaxis(x, self.axis, -1)

    def _front(self, x: Array) -> Array:
        return namespace(x).moveaxis(x, -1, self.axis)

    def _order(self, x: Array, k: int) -> Array:
        """Return the places of the k best, `axis` last."""
        xp, x = namespace(x), self._last(x)
        if not self.largest:
            return xp.argsort(x, axis=-1, kind="stable")[..., :k]
        # Upside down and backwards, so that the first of equals stays the first.
        backwards = xp.argsort(xp.flip(x, -1), axis=-1, kind="stable")
        return (x.shape[-1] - 1 - xp.flip(backwards, -1))[..., :k]

    def _send(self, g: Array, order: Array, shape: Shape) -> Array:
        """Send signals of ranks, `axis` last, to their places in a tensor of this shape."""
        xp = namespace(g)
        wide = self._last(xp.broadcast_to(xp.zeros((), g.dtype), shape)).shape
        back = xp.zeros((g.shape[0], *wide), g.dtype)
        order = xp.broadcast_to(order, g.shape[1:])
        back[(slice(None), *mesh(order.shape, order.ndim - 1, order))] = g
        return xp.moveaxis(back, -1, self.axis % len(shape) + 1)

    def _to_winners(self, g: Array, rec: Record, shape: Shape) -> tuple:
        g = namespace(g).moveaxis(g, self.axis % len(shape) + 1, -1)
        return self.at(0, self._send(g, self._order(rec.inputs[0], g.shape[-1]), shape))

    def gradient(self, rec, g):
        return self._to_winners(g[0], rec, rec.inputs[0].shape)

    def relevance(self, rec, r, rule, note):
        return self._to_winners(r[0], rec, rec.inputs[0].shape)

    def connection(self, rec, g, rule):
        shape = rec.inputs[0].shape
        xp, axis = namespace(g[0]), self.axis % len(shape) + 1
        if not rule.innsight:
            share = g[0].sum(axis=axis, keepdims=True) / shape[axis - 1]
            return self.at(0, xp.broadcast_to(share, (g[0].shape[0], *shape)))
        level = xp.moveaxis(g[0], axis, -1)
        return self.at(0, self._send(level, xp.arange(level.shape[-1]), shape))

    def deeplift(self, rec, ref, m, rule, parts):
        shape = joint_shape(rec, ref, 0)
        if not rule.cross_maximum:
            return self._to_winners(m[0], rec, shape)
        xp, sign = namespace(m[0]), 1 if self.largest else -1
        m = xp.moveaxis(m[0], self.axis % len(shape) + 1, -1)
        k = m.shape[-1]
        if k == 0:
            return self.at(0, xp.zeros((m.shape[0], *shape), m.dtype))
        x, x0 = (xp.broadcast_to(self._last(r.inputs[0]), self._wide(shape)) for r in (rec, ref))
        orders = [self._order(r.inputs[0], k) for r in (rec, ref)]
        orders = [xp.broadcast_to(order, (*x.shape[:-1], k)) for order in orders]
        y, y0 = (xp.take_along_axis(*pair, axis=-1) for pair in zip((x, x0), orders, strict=True))
        up = _rises(m * (sign * y >= sign * y0), sign * x0, sign * y, sign * y0, orders[0])
        down = _rises(m * (sign * y < sign * y0), sign * x, sign * y0, sign * y, orders[1])
        up, down = (self._send(s, o, shape) for s, o in zip((up, down), orders, strict=True))
        return self.at(0, up + down)

    def _wide(self, shape: Shape) -> Shape:
        axis = self.axis % len(shape)
        return (*shape[:axis], *shape[axis + 1 :], shape[axis])

    def describe(self, method):
        words = {
            "gradient": ("to the winners", True, ""),
            "lrp": ("winners take all", True, ""),
            "deeplift": ("cross-maximum of each rank", True, ""),
            "connection": ("mean of the axis", True, "no data is read"),
        }
        return words[method]


def _rises(m: Array, x0: Array, y: Array, y0: Array, order: Array) -> Array:
    """Share signals of ranks that rose from y0 to y among the elements `order` that hold y.

    Each rank chooses the last element up to itself that was not above y0 before.
    """
    xp, k = namespace(m), m.shape[-1]
    before = xp.take_along_axis(x0, order, axis=-1)
    candidate = xp.arange(k)
    total = xp.zeros(m.shape, m.dtype)
    step = max(1, _BLOCK // max(before.size, 1))
    for ranks in (slice(i, i + step) for i in range(0, k, step)):
        fits = (candidate <= candidate[ranks, None]) & (
            before[..., None, :] <= y0[..., ranks, None]
        )
        chosen = k - 1 - xp.flip(fits, -1).argmax(axis=-1)
        rise = xp.take_along_axis(y - before, chosen, axis=-1)
        share = divide(positive((y - y0)[..., ranks]), rise, 1.0)
        one_hot = (candidate == chosen[..., None]).astype(m.dtype)
        total += ((m[..., ranks] * share)[..., None, :] @ one_hot)[..., 0, :]
    return total


class TopK1(TopK, op="TopK", since=1):
    """TopK with the number as an attribute."""

    def count(self, inputs):
        return self.k


# -- forward only ---------------------------------------------------------------------------------


class NonZero(Step, op="NonZero", since=9):
    """y = the positions of all elements that are not 0, one column each."""

    def forward(self, x):
        places = namespace(x).nonzero(x)
        xp = namespace(x)
        return xp.concatenate([p.reshape((1, -1)) for p in places] or [xp.zeros((0, 0), np.int64)])


class Unique(Step, op="Unique", since=11):
    """Y, indices, inverse_indices, counts = the different values of x (or slices along `axis`).

    The number of values depends on the data: it has to be waited for, and is not explained.
    """

    def describe(self, method):
        if not any(self.active):
            return super().describe(method)
        return ("stops", False, "the order of different values is not explained")

    def forward(self, x):
        host = to_host(x)
        found = np.unique(host, True, True, True, axis=self.axis)
        y, first, inverse, counts = found
        inverse = inverse.reshape(-1)
        if not self.sorted:
            order = np.argsort(first)
            y = np.take(y, order, axis=self.axis or 0)
            first, counts = first[order], counts[order]
            inverse = np.argsort(order)[inverse]
        values = (on_device_of(y, x), *(v.astype(np.int64) for v in (first, inverse, counts)))
        return values[: self.n_outputs] if self.n_outputs > 1 else values[0]


class EyeLike(Forward, op="EyeLike", since=9):
    """y = ones on a diagonal, in the shape of a matrix x."""

    def setup(self):
        self.compute_dtype = None if self.dtype is None else native_dtype(self.dtype)

    def with_dtype(self, dtype: np.dtype) -> EyeLike:
        """Return this kernel with another float type, if it makes floats."""
        return self if self.compute_dtype is None else following(self, dtype)

    def forward(self, x):
        if x.ndim != 2:
            raise ModelError(f"EyeLike wants a matrix, got a tensor of shape {x.shape}")
        rows, columns = (namespace(x).arange(n) for n in x.shape)
        return (columns == rows[:, None] + self.k).astype(self.compute_dtype or x.dtype)


class NonMaxSuppression(Step, op="NonMaxSuppression", since=10):
    """y = (batch, class, box) of the best boxes that do not overlap better ones of their class.

    All batches and classes go on side by side: each turn keeps the best box left and drops what
    overlaps it. How many there are decides the shape, so that it is done on the host.
    """

    def forward(self, *inputs):
        boxes, scores, most, iou_threshold, score_threshold = (*inputs, None, None, None)[:5]
        boxes, scores = to_host(boxes), to_host(scores)
        if boxes.ndim != 3 or scores.ndim != 3 or scores.shape[::2] != boxes.shape[:2]:
            raise ModelError(f"boxes of shape {boxes.shape} do not fit scores of {scores.shape}")
        turns = min(_number(most, 0), scores.shape[-1])
        overlap = _number(iou_threshold, 0.0)
        left = np.ones(scores.shape, bool)
        if score_threshold is not None:
            left = scores > _number(score_threshold, 0.0)
        edges = self._edges(boxes)
        kept = []
        for _ in range(turns):
            best = np.where(left, scores, -np.inf).argmax(axis=-1)
            alive = np.take_along_axis(left, best[..., None], axis=-1)[..., 0]
            if not alive.any():
                break
            kept.append(np.where(alive, best, -1))
            left &= ~_overlaps(edges, best, overlap)
            np.put_along_axis(left, best[..., None], False, axis=-1)
        return _in_order(kept, scores.shape[:2])

    def _edges(self, boxes: np.ndarray) -> np.ndarray:
        """Return y1, x1, y2, x2 of all boxes, smaller ones first."""
        if self.center_point_box:
            x, y, w, h = np.moveaxis(boxes, -1, 0)
            return np.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2])
        a, b = boxes[..., :2], boxes[..., 2:]
        return np.moveaxis(np.concatenate([np.minimum(a, b), np.maximum(a, b)], axis=-1), -1, 0)


def _number(x: Array | None, otherwise: Any) -> Any:
    return otherwise if x is None or x.size == 0 else to_host(x).ravel()[0].item()


def _overlaps(edges: np.ndarray, best: np.ndarray, threshold: float) -> np.ndarray:
    """Tell which boxes overlap the best of their batch and class by more than the threshold."""
    y1, x1, y2, x2 = edges[:, :, None]
    rows = np.arange(best.shape[0])[:, None]
    by1, bx1, by2, bx2 = edges[:, rows, best][..., None]
    high = np.maximum(np.minimum(y2, by2) - np.maximum(y1, by1), 0)
    wide = np.maximum(np.minimum(x2, bx2) - np.maximum(x1, bx1), 0)
    both = high * wide
    union = (y2 - y1) * (x2 - x1) + (by2 - by1) * (bx2 - bx1) - both
    return (both > 0) & (both > threshold * union)


def _in_order(kept: list[np.ndarray], shape: Shape) -> np.ndarray:
    """Return rows (batch, class, box), by batch, class and turn."""
    if not kept:
        return np.zeros((0, 3), np.int64)
    boxes = np.stack(kept, axis=-1)
    batch, cls, turn = np.nonzero(boxes >= 0)
    return np.stack([batch, cls, boxes[batch, cls, turn]], axis=-1).astype(np.int64)


# -- sequences ------------------------------------------------------------------------------------


class SequenceOp(Forward):
    """An operator of sequences and optionals: none is left when a graph has been built."""

    @classmethod
    def accepts(cls, active):
        return False


class SequenceConstruct(SequenceOp, op="SequenceConstruct", since=11):
    """A sequence of the inputs."""


class SequenceEmpty(SequenceOp, op="SequenceEmpty", since=11):
    """A sequence of nothing."""


class SequenceInsert(SequenceOp, op="SequenceInsert", since=11):
    """A sequence with one tensor more."""


class SequenceErase(SequenceOp, op="SequenceErase", since=11):
    """A sequence with one tensor less."""


class SequenceAt(SequenceOp, op="SequenceAt", since=11):
    """One tensor of a sequence."""


class SequenceLength(SequenceOp, op="SequenceLength", since=11):
    """How many tensors a sequence has."""


class SplitToSequence(SequenceOp, op="SplitToSequence", since=11):
    """A sequence of pieces of a tensor."""


class ConcatFromSequence(SequenceOp, op="ConcatFromSequence", since=11):
    """All tensors of a sequence in one."""


class Optional(SequenceOp, op="Optional", since=15):
    """A tensor or sequence, or nothing."""


class OptionalGetElement(SequenceOp, op="OptionalGetElement", since=15):
    """What an optional holds."""


class OptionalHasElement(SequenceOp, op="OptionalHasElement", since=15):
    """Whether an optional holds something."""
