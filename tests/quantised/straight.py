"""Quantised ONNX models in torch, where rounding passes gradients straight through."""

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper


def gradients(model, x):
    """Return the gradients (rows, outputs, ...) of all outputs of a model by its input."""
    graph = Interpreter(model)
    rows = []
    for row in x:
        start = torch.tensor(row[None], dtype=torch.float64, requires_grad=True)
        y = graph(start)[0]
        rows.append(np.stack([torch.autograd.grad(v, start, retain_graph=True)[0][0] for v in y]))
    return np.stack(rows)


class Interpreter:
    """Runs a graph; bytes are kept as whole numbers in float64."""

    def __init__(self, model):
        self.nodes, self.weights, self.bounds = model.graph.node, {}, {}
        for w in model.graph.initializer:
            array = numpy_helper.to_array(w)
            name = np.dtype(array.dtype).name
            if name in ("int8", "uint8"):
                self.bounds[w.name] = (-128, 127) if name == "int8" else (0, 255)
            self.weights[w.name] = torch.tensor(array.astype(np.float64))

    def __call__(self, x):
        self.values = {**self.weights, "x": x, "": None}
        for node in self.nodes:
            inputs = [self.values[name] for name in node.input]
            given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            outputs = getattr(self, node.op_type)(node, inputs, given)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            self.values.update(zip(node.output, outputs, strict=False))
        return self.values["y"]

    # -- rounding ---------------------------------------------------------------------------------

    def QuantizeLinear(self, node, inputs, given):
        x, scale, zero = inputs
        return self.rounded(x, scale, zero, self.bounds[node.input[2]])

    def rounded(self, x, scale, zero, bounds):
        u = torch.clamp(x / scale + zero, bounds[0] - 0.5, bounds[1] + 0.5)
        q = torch.clamp(torch.round(x / scale) + zero, *bounds)
        return u + (q - u).detach()

    def DequantizeLinear(self, node, inputs, given):
        x, scale, zero = (*inputs, None)[:3]
        return self.real(x, scale, zero, given.get("axis", 1))

    def real(self, x, scale, zero, axis=1):
        shape = [-1 if i == axis % max(x.ndim, 1) else 1 for i in range(x.ndim)]
        scale, zero = (
            v if v is None or v.numel() == 1 else v.reshape(shape) for v in (scale, zero)
        )
        return (x if zero is None else x - zero) * scale

    def DynamicQuantizeLinear(self, node, inputs, given):
        x = inputs[0]
        low, high = min(x.min().item(), 0), max(x.max().item(), 0)
        scale = (np.float32(high) - np.float32(low)) / np.float32(255)
        zero = np.clip(np.rint(np.float32(-low) / scale), 0, 255)
        scale, zero = torch.tensor(float(scale)), torch.tensor(float(zero))
        u = x / scale.double() + zero
        q = torch.clamp(torch.round(u), 0, 255)
        return u + (q - u).detach(), scale.double(), zero.double()

    # -- operators on bytes -----------------------------------------------------------------------

    def quantised(self, node, y, scale, place):
        zero = node.input[place]
        return self.rounded(y, scale, self.values[zero], self.bounds[zero])

    def MatMulInteger(self, node, inputs, given):
        a, b, za, zb = inputs
        return (a - za) @ (b - zb)

    def QLinearConv(self, node, inputs, given):
        x, sx, zx, w, sw, zw, sy, _ = inputs[:8]
        bias = self.real(inputs[8], sx * sw, None, 0) if len(inputs) > 8 else None
        operands = [self.real(x, sx, zx), self.real(w, sw, zw, 0), bias]
        return self.quantised(node, self.Conv(node, operands, given), sy, 7)

    def QGemm(self, node, inputs, given):
        a, sa, za, b, sb, zb, c, sy, _ = inputs
        w = self.real(b, sb, zb, 0 if given.get("transB") else 1)
        operands = [self.real(a, sa, za), w, self.real(c, sa * sb, None, 0)]
        return self.quantised(node, self.Gemm(node, operands, given), sy, 8)

    def binary(self, node, inputs, f):
        a, sa, za, b, sb, zb, sy, _ = inputs
        return self.quantised(node, f(self.real(a, sa, za), self.real(b, sb, zb)), sy, 7)

    def QLinearAdd(self, node, inputs, given):
        return self.binary(node, inputs, torch.add)

    def QLinearMul(self, node, inputs, given):
        return self.binary(node, inputs, torch.mul)

    def unary(self, node, inputs, given):
        x, sx, zx, sy, _ = inputs
        f = getattr(self, node.op_type.removeprefix("QLinear"))
        return self.quantised(node, f(node, [self.real(x, sx, zx)], given), sy, 4)

    QLinearSigmoid = QLinearLeakyRelu = QLinearAveragePool = QLinearGlobalAveragePool = unary

    def QLinearConcat(self, node, inputs, given):
        sy, _, *rest = inputs
        parts = [self.real(*rest[i : i + 3]) for i in range(0, len(rest), 3)]
        return self.quantised(node, torch.cat(parts, given["axis"]), sy, 1)

    # -- operators on floats ----------------------------------------------------------------------

    def Conv(self, node, inputs, given):
        x, w, b = (*inputs, None)[:3]
        padded = F.pad(x, [given.get("pads", [0] * 4)[i] for i in (1, 3, 0, 2)])
        return F.conv2d(padded, w, b, groups=given.get("group", 1))

    def Gemm(self, node, inputs, given):
        a, b, c = inputs
        return a @ (b.T if given.get("transB") else b) + c

    def MatMul(self, node, inputs, given):
        return inputs[0] @ inputs[1]

    def Add(self, node, inputs, given):
        return inputs[0] + inputs[1]

    def Mul(self, node, inputs, given):
        return inputs[0] * inputs[1]

    def Relu(self, node, inputs, given):
        return F.relu(inputs[0])

    def LeakyRelu(self, node, inputs, given):
        return F.leaky_relu(inputs[0], given["alpha"])

    def Sigmoid(self, node, inputs, given):
        return torch.sigmoid(inputs[0])

    def Tanh(self, node, inputs, given):
        return torch.tanh(inputs[0])

    def MaxPool(self, node, inputs, given):
        return F.max_pool2d(inputs[0], given["kernel_shape"], given["strides"])

    def AveragePool(self, node, inputs, given):
        return F.avg_pool2d(inputs[0], given["kernel_shape"], given["strides"])

    def GlobalAveragePool(self, node, inputs, given):
        return inputs[0].mean((2, 3), keepdim=True)

    def Concat(self, node, inputs, given):
        return torch.cat(inputs, given["axis"])

    def Flatten(self, node, inputs, given):
        return inputs[0].flatten(1)

    def Transpose(self, node, inputs, given):
        return inputs[0].permute(given["perm"])

    def Softmax(self, node, inputs, given):
        return torch.softmax(inputs[0], given["axis"])

    def LayerNormalization(self, node, inputs, given):
        x, scale, bias = inputs
        return F.layer_norm(x, x.shape[-1:], scale, bias, given.get("epsilon", 1e-5))

    def ReduceMean(self, node, inputs, given):
        return inputs[0].mean(given["axes"], keepdim=bool(given.get("keepdims", 1)))

    def Cast(self, node, inputs, given):
        return inputs[0]
