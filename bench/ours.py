"""The works done by onnxplain. Each returns an array (batch, *input_dim, outputs)."""

from __future__ import annotations

from typing import Any

import onnxplain as ox

from . import networks
from .rows import Row


def prepare(row: Row, library: str, model: str, dtype: str, device: str) -> Any:
    """Return a function without arguments that does the work; `model` is the ONNX file."""
    converter = ox.convert(model, dtype=dtype)
    x = networks.data(row.network, row.batch)
    if row.work == "forward":
        return lambda: converter(x, device=device)[0]
    cls, options = method(row)
    options |= {"dtype": dtype, "device": device, "verbose": False}
    return lambda: cls(converter, x, **options).result[0][0]


def method(row: Row) -> tuple[Any, dict[str, Any]]:
    """Return the class that explains, and its arguments."""
    cls, options = _METHODS[row.work]
    options = options | {"output_idx": list(range(row.outputs))}
    if row.work == "deepshap":
        options["data_ref"] = networks.data(row.network, row.references, seed=2)
    if row.work == "deeplift":
        options["x_ref"] = networks.data(row.network, 1, seed=2)
    if row.work == "intgrad":
        options["n"] = row.steps
    return cls, options


_METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gradient": (ox.Gradient, {}),
    "lrp_epsilon": (ox.LRP, {"rule_name": "epsilon", "rule_param": 0.01}),
    "lrp_alpha_beta": (ox.LRP, {"rule_name": "alpha_beta", "rule_param": 2.0}),
    "deeplift": (ox.DeepLift, {}),
    "intgrad": (ox.IntegratedGradient, {}),
    "deepshap": (ox.DeepSHAP, {}),
}
