"""Explain the predictions of neural networks stored as ONNX, without their framework.

Three steps: `convert` a model, apply a method (`run_lrp`, `LRP`, ...), look at the result
(`get_result`, `plot`). The classes and the `run_*` functions are the same.
"""

from . import presets, rules
from .comparison import Comparison, compare_models
from .converter import Converter, convert
from .errors import OnnxplainError
from .kernels import registered_ops
from .methods.cam import Deconvnet, GradCAM, GradCAMPlusPlus, GuidedBackprop
from .methods.connection_weights import ConnectionWeights
from .methods.deeplift import DeepLift, DeepSHAP
from .methods.gradients import ExpectedGradient, Gradient, IntegratedGradient, SmoothGrad
from .methods.lime import LIME
from .methods.lrp import LRP
from .methods.shap import SHAP
from .processor import PerformanceAdvice
from .report import report
from .storage import load
from .streaming import explain_to, open_result
from .threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

run_grad = Gradient
run_smoothgrad = SmoothGrad
run_intgrad = IntegratedGradient
run_expgrad = ExpectedGradient
run_lrp = LRP
run_deeplift = DeepLift
run_deepshap = DeepSHAP
run_cw = ConnectionWeights
run_gradcam = GradCAM
run_gradcampp = GradCAMPlusPlus
run_guided_backprop = GuidedBackprop
run_deconvnet = Deconvnet
run_lime = LIME
run_shap = SHAP

__all__ = [
    "LIME",
    "LRP",
    "SHAP",
    "Comparison",
    "ConnectionWeights",
    "Converter",
    "Deconvnet",
    "DeepLift",
    "DeepSHAP",
    "ExpectedGradient",
    "GradCAM",
    "GradCAMPlusPlus",
    "Gradient",
    "GuidedBackprop",
    "IntegratedGradient",
    "OnnxplainError",
    "PerformanceAdvice",
    "SmoothGrad",
    "compare_models",
    "convert",
    "explain_to",
    "get_num_threads",
    "load",
    "open_result",
    "presets",
    "registered_ops",
    "report",
    "rules",
    "run_cw",
    "run_deconvnet",
    "run_deeplift",
    "run_deepshap",
    "run_expgrad",
    "run_grad",
    "run_gradcam",
    "run_gradcampp",
    "run_guided_backprop",
    "run_intgrad",
    "run_lime",
    "run_lrp",
    "run_shap",
    "run_smoothgrad",
    "set_num_threads",
]
