"""Explain the predictions of neural networks stored as ONNX, without their framework.

Three steps: `convert` a model, apply a method (`run_lrp`, `LRP`, ...), look at the result
(`get_result`, `plot`). The classes and the `run_*` functions are the same.
"""

from . import rules
from .converter import Converter, convert
from .errors import OnnxplainError
from .kernels import registered_ops
from .methods.connection_weights import ConnectionWeights
from .methods.deeplift import DeepLift, DeepSHAP
from .methods.gradients import ExpectedGradient, Gradient, IntegratedGradient, SmoothGrad
from .methods.lrp import LRP

__version__ = "0.1.0"

run_grad = Gradient
run_smoothgrad = SmoothGrad
run_intgrad = IntegratedGradient
run_expgrad = ExpectedGradient
run_lrp = LRP
run_deeplift = DeepLift
run_deepshap = DeepSHAP
run_cw = ConnectionWeights

__all__ = [
    "LRP",
    "ConnectionWeights",
    "Converter",
    "DeepLift",
    "DeepSHAP",
    "ExpectedGradient",
    "Gradient",
    "IntegratedGradient",
    "OnnxplainError",
    "SmoothGrad",
    "convert",
    "registered_ops",
    "rules",
    "run_cw",
    "run_deeplift",
    "run_deepshap",
    "run_expgrad",
    "run_grad",
    "run_intgrad",
    "run_lrp",
    "run_smoothgrad",
]
