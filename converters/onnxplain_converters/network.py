"""Write networks of dense layers and elementwise steps as ONNX, in float64."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20


class Network:
    """A graph under construction whose tensors have the shape (batch, columns)."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.input = "input"

    def node(self, op: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node and return its output; inputs are names of tensors."""
        name = name or f"{op}_{len(self.nodes) + 1}"
        output = f"{name}_output"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def constant(self, value: Any, name: str | None = None, dtype: Any = np.float64) -> str:
        name = name or f"constant_{len(self.weights) + 1}"
        array = np.ascontiguousarray(np.asarray(value, dtype)).reshape(np.shape(value))
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def dense(self, x: str, w: Any, b: Any, name: str) -> str:
        """Return x w + b; w has the shape (in, out)."""
        weight, bias = self.constant(w, f"{name}.weight"), self.constant(b, f"{name}.bias")
        return self.node("Gemm", x, weight, bias, name=name)

    def rename(self, old: str, new: str) -> None:
        """Give a tensor another name wherever it occurs."""
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]

    def model(
        self,
        output: str,
        n_inputs: int,
        n_outputs: int,
        feature_names: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> onnx.ModelProto:
        """Return the model; names go into its metadata."""

        def info(name: str, n: int) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["N", n])

        self.rename(output, "output")
        made = helper.make_graph(
            self.nodes,
            "network",
            [info(self.input, n_inputs)],
            [info("output", n_outputs)],
            self.weights,
        )
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(made, opset_imports=[opset], producer_name="onnxplain")
        model.ir_version = helper.find_min_ir_version_for([opset])
        names = {"feature_names": feature_names, "class_names": class_names}
        helper.set_model_props(
            model, {key: json.dumps(list(value)) for key, value in names.items() if value}
        )
        return model
