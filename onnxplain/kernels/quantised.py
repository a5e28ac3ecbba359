"""Quantised numbers: rounding passes every signal straight through, saturation has its slope.

Whole numbers that carry data are held as floats of the type computed in: differences of bytes would
overflow. Operators on quantised tensors are no kernels of their own. They are written with the
float operators between a `DequantizeLinear` and a `QuantizeLinear`, so that a `QLinearConv` is the
convolution that it is, in real units.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from ..arrays import Array, divide, is_float, namespace, on_device_of
from ..errors import ModelError, UnsupportedOpError
from .base import Record
from .constants import Forward, Step
from .convolution import Conv
from .expanded import Expanded, Writer
from .families import Elementwise

MICROSOFT = "com.microsoft"
_STRAIGHT = "rounding passes straight through"


def limits(dtype: Any) -> tuple[float, float]:
    """Return the smallest and the largest number of a storage type, 4 bits and fewer included."""
    dtype = np.dtype(dtype)
    if is_float(dtype):
        import ml_dtypes

        return float(ml_dtypes.finfo(dtype).min), float(ml_dtypes.finfo(dtype).max)
    bits = int(dtype.name.lstrip("uint"))
    low = 0.0 if dtype.name.startswith("u") else -(2.0 ** (bits - 1))
    return low, low + 2.0**bits - 1


def along(v: Array, x: Array, axis: int, block: int) -> Array:
    """Return a scale or zero point (one, one per slice of an axis, or per block) to go with x."""
    if v.size == 1:
        return v.reshape(())
    if v.ndim == 1:
        return v.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
    if not block:
        return v
    cut = (slice(None),) * (axis % x.ndim) + (slice(x.shape[axis]),)
    return namespace(v).repeat(v, block, axis)[cut]


def on_float_grid(t: Array, dtype: Any) -> Array:
    """Return the nearest numbers that a short float type holds, without its bounds."""
    import ml_dtypes

    info, xp = ml_dtypes.finfo(dtype), namespace(t)
    exponent = xp.maximum(xp.frexp(t)[1] - 1, int(info.minexp))
    step = xp.ldexp(xp.ones_like(t), exponent - int(info.nmant))
    return xp.rint(t / step) * step


class Rounding(Elementwise):
    """y = round(f(x)): signals are those of the smooth f, what rounding adds is booked."""

    def setup(self):
        self.rounds = bool(vars(self).get("rounds", True))  # False leaves f, for tests

    def smooth(self, x: Array, *params: Array) -> Array:
        """Return f(x)."""
        raise NotImplementedError

    def value(self, x, *params):
        return self.smooth(x, *params)

    def _values(self, rec):
        x, *params = rec.inputs
        return x, self.smooth(x, *params), tuple(params)

    def rounding(self, rec: Record) -> Array:
        return rec.outputs[0] - self.smooth(*rec.inputs)

    def describe(self, method):
        if not self.rounds:
            return super().describe(method)
        words = {
            "gradient": ("straight through", False, f"{_STRAIGHT}, a convention"),
            "lrp": ("pass", True, f"{_STRAIGHT}, a convention"),
            "deeplift": ("secant", False, f"{_STRAIGHT}; what it adds is booked as rounding"),
            "connection": ("identity", True, ""),
        }
        return words[method]


class QuantizeLinear(Rounding, op="QuantizeLinear", since=10):
    """y = round(x / scale) + zero point, between the bounds of the type of the zero point.

    The slope is that of a clip half a step beyond the bounds, where the last number rounds to one.
    """

    def stored(self, zero: Array | None) -> np.dtype:
        """Return the type in which a file would keep y."""
        if zero is not None:
            return zero.dtype
        from .routing import native_dtype

        return native_dtype(vars(self).get("output_dtype") or 2)  # UINT8

    def _scale_and_zero(self, x, scale, zero):
        axis, block = (vars(self).get(k) or 0 for k in ("axis", "block_size"))
        scale = along(scale, x, vars(self).get("axis", 1) if axis is None else axis, block)
        if zero is None or is_float(zero.dtype):  # the zero of a float type is 0
            return scale, scale.dtype.type(0)
        return scale, on_device_of(along(zero, x, axis, block).astype(scale.dtype), x)

    def _range(self, x, scale, zero=None):
        """Return the bounds between which x is not saturated, scale and zero point."""
        stored = self.stored(zero)
        low, high = limits(stored)
        half = 0.0 if is_float(stored) else 0.5
        scale, zero = self._scale_and_zero(x, scale, zero)
        ends = scale * (low - half - zero), scale * (high + half - zero)
        return (*(e.astype(scale.dtype, copy=False) for e in ends), scale, zero)

    def forward(self, x, scale, zero=None):
        if self.active[0]:
            return self._rounded(x, scale, zero) if self.rounds else self.smooth(x, scale, zero)
        wide = np.result_type(scale.dtype, np.float32) if is_float(scale.dtype) else np.float32
        return self._rounded(x.astype(wide), scale.astype(wide), zero).astype(self.stored(zero))

    def _rounded(self, x, scale, zero):
        stored = self.stored(zero)
        low, high = limits(stored)
        scale, zero = self._scale_and_zero(x, scale, zero)
        t = x / scale
        if not is_float(stored):
            return namespace(t).clip(namespace(t).rint(t) + zero, low, high)
        y = on_float_grid(t, stored)
        if vars(self).get("saturate", 1):
            return namespace(y).clip(y, low, high)
        return namespace(y).where(abs(y) > high, y.dtype.type(math.nan), y)

    def smooth(self, x, *params):
        low, high, scale, zero = self._range(x, *params)
        return namespace(x).clip(x, low, high) / scale + zero

    def slope(self, x, y, *params):
        low, high, scale, _ = self._range(x, *params)
        return ((x > low) & (x < high)).astype(x.dtype) / scale

    def secant(self, x, y, x0, y0, *params):
        """Differences are taken before the division by the scale: they do not cancel there."""
        low, high, scale, _ = self._range(x, *params)
        clip = namespace(x, x0).clip
        inside = ((x > low) & (x < high)).astype(x.dtype)
        return divide(clip(x, low, high) - clip(x0, low, high), x - x0, inside) / scale


class DequantizeLinear(Elementwise, op="DequantizeLinear", since=10):
    """y = (x - zero point) scale."""

    _scale_and_zero = QuantizeLinear._scale_and_zero

    def forward(self, x, scale, zero=None):
        if self.active[0]:
            scale, zero = self._scale_and_zero(x, scale, zero)
            return (x.astype(scale.dtype, copy=False) - zero) * scale
        # Constants, once: wide enough for every storage type.
        wide, zero = self._scale_and_zero(x, scale.astype(np.float64), zero)
        return ((x.astype(np.float64) - zero) * wide).astype(self._made(scale))

    def _made(self, scale):
        from .routing import native_dtype

        made = vars(self).get("output_dtype")
        return native_dtype(made) if made else scale.dtype

    def slope(self, x, y, *params):
        return namespace(x).ones_like(x) * self._scale_and_zero(x, *_two(params))[0]

    def secant(self, x, y, x0, y0, *params):
        return self.slope(x, y, *params)

    def describe(self, method):
        words = {"deeplift": ("scale", True, ""), "gradient": ("scale", True, "")}
        return words.get(method) or super().describe(method)


def _two(params: tuple) -> tuple:
    return (*params, None)[:2]


class DynamicRounding(Rounding, op="DynamicRounding", domain="onnxplain"):
    """y = x rounded to one of 256 values between the smallest and the largest x, and 0.

    The range is that of the tensor or, with `by_rows`, of each row, as if it were the only one.
    """

    def forward(self, x):
        if not self.rounds:
            return x
        scale, zero = dynamic_range(x, bool(vars(self).get("by_rows", 0)))
        xp = namespace(x)
        return ((xp.clip(xp.rint(x / scale) + zero, 0, 255)) - zero) * scale

    def smooth(self, x):
        return x

    def slope(self, x, y):
        return namespace(x).ones_like(x)

    def secant(self, x, y, x0, y0):
        return namespace(x, x0).ones_like(x - x0)


def dynamic_range(x: Array, by_rows: bool = False) -> tuple[Array, Array]:
    """Return the scale and the zero point that put the range of x, and 0, on 0 to 255."""
    xp = namespace(x)
    axes = tuple(range(1, x.ndim)) if by_rows else None
    low = xp.minimum(x.min(axis=axes, keepdims=True), x.dtype.type(0))
    high = xp.maximum(x.max(axis=axes, keepdims=True), x.dtype.type(0))
    scale = (high - low) / x.dtype.type(255)
    scale = xp.where(scale == 0, x.dtype.type(1), scale)
    return scale, xp.clip(xp.rint(-low / scale), 0, 255)


# -- whole numbers without data -------------------------------------------------------------------


class DynamicQuantizeLinear(Step, op="DynamicQuantizeLinear", since=11):
    """y, scale, zero point = x as bytes, on the range of the whole tensor."""

    def forward(self, x):
        scale, zero = dynamic_range(x)
        xp = namespace(x)
        y = xp.clip(xp.rint(x / scale) + zero, 0, 255).astype(np.uint8)
        return y, scale.reshape(()), zero.reshape(()).astype(np.uint8)


def _centred(x: Array, zero: Array | None, axis: int) -> Array:
    """Return x - zero point, exactly."""
    x = x.astype(np.float64)
    return x if zero is None else x - along(zero.astype(np.float64), x, axis, 0)


class ConvInteger(Forward, op="ConvInteger", since=10):
    """y = the convolution of x - zero point with w - zero point, in whole numbers."""

    apply, _windows = Conv.apply, Conv._windows
    fast = False  # whole numbers stay whole

    def forward(self, x, w, x_zero=None, w_zero=None):
        y = self.apply(_centred(x, x_zero, 0), _centred(w, w_zero, 0))
        return namespace(y).rint(y).astype(np.int32)


class MatMulInteger(Forward, op="MatMulInteger", since=10):
    """y = the product of a - zero point and b - zero point, in whole numbers."""

    def forward(self, a, b, a_zero=None, b_zero=None):
        y = _centred(a, a_zero, -2) @ _centred(b, b_zero, -1)
        return namespace(y).rint(y).astype(np.int32)


# -- written with float operators -----------------------------------------------------------------


class Quantised(Expanded):
    """An operator on quantised tensors, written with float operators."""

    opset = 21

    def attribute(self, name: str, default: Any) -> Any:
        """Return an attribute; domains other than ONNX's own come without a table of defaults."""
        value = vars(self).get(name)
        return default if value is None else value

    def own(self, *names: str) -> dict[str, Any]:
        """Return the attributes that the float operator has as well."""
        return {name: vars(self)[name] for name in names if vars(self).get(name) is not None}


def _real(writer: Writer, x: str, scale: str, zero: str = "", axis: int = 1) -> str:
    """Write the numbers that a quantised tensor stands for."""
    zero_point = (zero,) if zero else ()
    return writer.node("DequantizeLinear", x, scale, *zero_point, axis=axis)


def _quantise(writer: Writer, x: str, scale: str, zero: str = "") -> str:
    """Write the last node: numbers as the node's output keeps them."""
    zero_point = (zero,) if zero else ()
    return writer.node("QuantizeLinear", x, scale, *zero_point, output=writer.outputs[0])


def _inputs(writer: Writer, n: int) -> list[str]:
    return [*writer.inputs, *[""] * n][:n]


_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


class QLinearConv(Quantised, op="QLinearConv", since=10):
    """y = quantised convolution of quantised tensors; the bias has the scale of x times w."""

    main = "Conv"

    def expand(self, writer):
        x, sx, zx, w, sw, zw, sy, zy, b = _inputs(writer, 9)
        bias = (_real(writer, b, writer.node("Mul", sx, sw), axis=0),) if b else ()
        operands = _real(writer, x, sx, zx), _real(writer, w, sw, zw, axis=0)
        y = writer.node("Conv", *operands, *bias, **self.own(*_CONV))
        _quantise(writer, y, sy, zy)


class QLinearMatMul(Quantised, op="QLinearMatMul", since=10):
    """y = quantised product of quantised tensors."""

    main = "MatMul"

    def expand(self, writer):
        a, sa, za, b, sb, zb, sy, zy = _inputs(writer, 8)
        factors = _real(writer, a, sa, za, axis=-2), _real(writer, b, sb, zb, axis=-1)
        _quantise(writer, writer.node("MatMul", *factors), sy, zy)


class OfData(Quantised):
    """Takes the place of an operator on whole numbers where an input carries data."""

    def centred(self, writer: Writer, x: str, zero: str, axis: int) -> str:
        """Write x - zero point."""
        return _real(writer, x, writer.weight(np.float32(1)), zero, axis)


class ConvIntegerOfData(OfData):
    """y = the convolution of x - zero point with w - zero point."""

    main = "Conv"

    def expand(self, writer):
        x, w, zx, zw = _inputs(writer, 4)
        operands = self.centred(writer, x, zx, 1), self.centred(writer, w, zw, 0)
        writer.node("Conv", *operands, output=writer.outputs[0], **self.own(*_CONV))


class MatMulIntegerOfData(OfData):
    """y = the product of a - zero point and b - zero point."""

    main = "MatMul"

    def expand(self, writer):
        a, b, za, zb = _inputs(writer, 4)
        factors = self.centred(writer, a, za, -2), self.centred(writer, b, zb, -1)
        writer.node("MatMul", *factors, output=writer.outputs[0])


class DynamicQuantizeLinearOfData(OfData):
    """y = the numbers that the bytes stand for, with scale 1 and zero point 0.

    What reads the three outputs computes the same, and no scale that depends on the data is left.
    """

    main = "DynamicRounding"

    def expand(self, writer):
        y, scale, zero = (*writer.outputs, "", "")[:3]
        writer.node("DynamicRounding", writer.inputs[0], output=y, domain="onnxplain")
        for output, value in ((scale, np.float32(1)), (zero, np.uint8(0))):
            if output:
                writer.node("Identity", writer.weight(value), output=output)


OF_DATA: dict[str, type[OfData]] = {
    "ConvInteger": ConvIntegerOfData,
    "MatMulInteger": MatMulIntegerOfData,
    "DynamicQuantizeLinear": DynamicQuantizeLinearOfData,
}

# -- of onnxruntime's quantiser -------------------------------------------------------------------


class QuantizeLinearMicrosoft(Quantised, op="QuantizeLinear", domain=MICROSOFT):
    """ONNX's QuantizeLinear under another name."""

    main = "QuantizeLinear"

    def expand(self, writer):
        attributes = {"axis": self.attribute("axis", 1)} | self.own("block_size")
        writer.node(self.main, *writer.inputs, output=writer.outputs[0], **attributes)


class DequantizeLinearMicrosoft(QuantizeLinearMicrosoft, op="DequantizeLinear", domain=MICROSOFT):
    """ONNX's DequantizeLinear under another name."""

    main = "DequantizeLinear"


class QLinearBinary(Quantised):
    """y = quantised sum or product of two quantised tensors."""

    def expand(self, writer):
        a, sa, za, b, sb, zb, sy, zy = _inputs(writer, 8)
        y = writer.node(self.main, _real(writer, a, sa, za), _real(writer, b, sb, zb))
        _quantise(writer, y, sy, zy)


class QLinearAdd(QLinearBinary, op="QLinearAdd", domain=MICROSOFT):
    """y = a + b."""

    main = "Add"


class QLinearMul(QLinearBinary, op="QLinearMul", domain=MICROSOFT):
    """y = a b."""

    main = "Mul"


class QLinearUnary(Quantised):
    """y = quantised f(x) of a quantised tensor."""

    names: ClassVar[tuple[str, ...]] = ()  # attributes that f has

    def expand(self, writer):
        x, sx, zx, sy, zy = _inputs(writer, 5)
        y = writer.node(self.main, _real(writer, x, sx, zx), **self.own(*self.names))
        _quantise(writer, y, sy, zy)


class QLinearSigmoid(QLinearUnary, op="QLinearSigmoid", domain=MICROSOFT):
    """y = sigmoid(x)."""

    main = "Sigmoid"


class QLinearLeakyRelu(QLinearUnary, op="QLinearLeakyRelu", domain=MICROSOFT):
    """y = x where x > 0, else alpha x."""

    main, names = "LeakyRelu", ("alpha",)


class QLinearSoftmax(QLinearUnary, op="QLinearSoftmax", domain=MICROSOFT):
    """y = softmax(x) along an axis, or from an axis on as in operator sets before 13."""

    main, names = "Softmax", ("axis",)

    def expand(self, writer):
        if self.attribute("opset", 13) < 13:
            writer.opset = 11
        super().expand(writer)


class QLinearAveragePool(QLinearUnary, op="QLinearAveragePool", domain=MICROSOFT):
    """y = the mean of each window."""

    main = "AveragePool"
    names = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")

    def setup(self):
        if self.attribute("channels_last", 0):
            raise UnsupportedOpError(
                f"{self.op} with channels_last is made by onnxruntime for itself; "
                "explain the model that it was made of"
            )


class QLinearGlobalAveragePool(QLinearAveragePool, op="QLinearGlobalAveragePool", domain=MICROSOFT):
    """y = the mean of each channel."""

    main, names = "GlobalAveragePool", ()


class QLinearConcat(Quantised, op="QLinearConcat", domain=MICROSOFT):
    """y = quantised tensors one after another."""

    main = "Concat"

    def expand(self, writer):
        sy, zy, *rest = writer.inputs
        if len(rest) % 3:
            raise ModelError(f"{len(rest)} inputs are no tensors with a scale and a zero point")
        parts = [_real(writer, *rest[i : i + 3]) for i in range(0, len(rest), 3)]
        _quantise(writer, writer.node("Concat", *parts, axis=self.attribute("axis", 1)), sy, zy)


class QGemm(Quantised, op="QGemm", domain=MICROSOFT):
    """y = alpha A B + C of quantised tensors; C has the scale of alpha A B, y may be a float."""

    main = "Gemm"

    def expand(self, writer):
        a, sa, za, b, sb, zb, c, sy, zy = _inputs(writer, 9)
        alpha, trans_b = self.attribute("alpha", 1.0), self.attribute("transB", 0)
        factors = _real(writer, a, sa, za), _real(writer, b, sb, zb, axis=0 if trans_b else 1)
        if c:
            step = writer.node("Mul", writer.node("Mul", sa, sb), writer.weight(np.float32(alpha)))
            factors = (*factors, _real(writer, c, step, axis=-1))
        attributes = {"alpha": alpha, "transA": self.attribute("transA", 0), "transB": trans_b}
        output = None if sy else writer.outputs[0]
        y = writer.node("Gemm", *factors, output=output, **attributes)
        if sy:
            _quantise(writer, y, sy, zy)


class FloatMatMul(Quantised):
    """y = x W + b as floats, W quantised."""

    main = "MatMul"

    def write(self, writer: Writer, x: str, w: str, bias: str) -> None:
        """Write the product and its bias."""
        output = writer.outputs[0]
        y = writer.node("MatMul", x, w, output=None if bias else output)
        if bias:
            writer.node("Add", y, bias, output=output)


class MatMulIntegerToFloat(FloatMatMul, op="MatMulIntegerToFloat", domain=MICROSOFT):
    """y = A B + bias of two quantised tensors."""

    def expand(self, writer):
        a, b, sa, sb, za, zb, bias = _inputs(writer, 7)
        w = _real(writer, b, sb, zb, axis=-1)
        self.write(writer, _real(writer, a, sa, za, axis=-2), w, bias)


class DynamicQuantizeMatMul(FloatMatMul, op="DynamicQuantizeMatMul", domain=MICROSOFT):
    """y = A B + bias, A rounded on its own range."""

    def expand(self, writer):
        a, b, sb, zb, bias = _inputs(writer, 5)
        rounded = writer.node("DynamicRounding", a, domain="onnxplain")
        self.write(writer, rounded, _real(writer, b, sb, zb, axis=-1), bias)


class MatMulNBits(FloatMatMul, op="MatMulNBits", domain=MICROSOFT):
    """y = A B' + bias, B constant numbers of 2, 4 or 8 bits with a scale per block of a row."""

    def expand(self, writer):
        a, b, scales, zeros, groups, bias = _inputs(writer, 6)
        if groups:
            raise UnsupportedOpError("MatMulNBits with g_idx: blocks in another order")
        values = [writer.constant(name) if name else None for name in (b, scales, zeros)]
        if values[0] is None or values[1] is None or (zeros and values[2] is None):
            raise UnsupportedOpError("MatMulNBits takes constant weights only")
        self.write(writer, a, writer.weight(self._weights(*values)), bias)

    def _weights(self, packed: Any, scales: Any, zeros: Any) -> np.ndarray:
        """Return the float weights (K, N)."""
        n, k, block, bits = self.N, self.K, self.block_size, self.attribute("bits", 4)
        if bits not in (2, 4, 8):
            raise UnsupportedOpError(f"MatMulNBits with {bits} bits; known are 2, 4 and 8")
        blocks = -(-k // block)
        whole = _unpacked(packed.reshape(n * blocks, -1), bits)[:, :block]
        if zeros is None:
            zero: Any = 2.0 ** (bits - 1)
        elif zeros.dtype == np.uint8:
            zero = _unpacked(zeros.reshape(n, -1), bits)[:, :blocks].reshape(-1, 1)
        else:
            zero = zeros.reshape(-1, 1).astype(np.float64)
        real = (whole - zero) * scales.reshape(-1, 1).astype(np.float64)
        return real.reshape(n, -1)[:, :k].T.astype(scales.dtype)


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Return the numbers that bytes hold, the first in the lowest bits."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return parts.reshape(*packed.shape[:-1], -1).astype(np.float64)
