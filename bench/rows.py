"""What is measured: one row of the table per work, with the ratios to reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PEAK_GOAL = 0.7  # of the peak memory of every peer


@dataclass(frozen=True)
class Row:
    """A work on a network, and the libraries that do it next to ours.

    Attributes
    ----------
    work : str
        A function of `bench.ours` and of `bench.peers`.
    network : str
        A key of `bench.networks.NETWORKS`.
    batch, outputs, references, steps : int
        Rows of data, explained outputs, references (DeepSHAP), points of the path (integrated
        gradients).
    peers : mapping of str to float or None
        Libraries, as `bench.peers` names them, and the ratio to reach: their time / ours.
    differs : mapping of str to str
        Peers whose answers are known to be others, and why; they are timed all the same.
    """

    work: str
    network: str
    batch: int
    peers: Mapping[str, float | None]
    outputs: int = 1
    references: int = 1
    steps: int = 50
    differs: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        extra = [f"{self.outputs} outputs"] if self.work != "forward" else []
        extra += [f"{self.references} references"] if self.work == "deepshap" else []
        extra += [f"n={self.steps}"] if self.work == "intgrad" else []
        return " ".join([self.work, self.network, f"batch {self.batch:,}", *extra])

    @property
    def large(self) -> bool:
        return self.network in ("vgg16", "resnet50", "mobilenet")


# max_unpool, on which both build, writes where overlapping windows have to add.
_OVERLAP = "it does not add where windows of the max-pool overlap: its values are not complete"

ROWS = [
    Row("gradient", "vgg16", 1, {"torch": 1.2}),
    Row("gradient", "vgg16", 8, {"torch": 1.2}),
    Row("gradient", "resnet50", 1, {"torch": 1.0}),
    Row("gradient", "resnet50", 8, {"torch": 1.0}),
    Row("gradient", "mobilenet", 1, {"torch": 0.5}),
    Row("gradient", "cnn", 32, {"torch": 0.9}),
    Row("forward", "vgg16", 1, {"torch": 1.0, "onnxruntime": 0.6}),
    Row("forward", "resnet50", 1, {"torch": 1.0, "onnxruntime": 0.6}),
    Row("gradient", "mlp", 256, {"torch": 1.5, "captum": 4}, 10),
    Row("gradient", "cnn", 32, {"torch": 1.5, "captum": 4}, 10),
    Row("gradient", "vgg16", 1, {"torch": 1.5, "captum": 4}, 10),
    Row("lrp_epsilon", "mlp", 256, {"captum": 3, "zennit": 3}, 10),
    Row("lrp_epsilon", "cnn", 32, {"captum": 3, "zennit": 3}, 10),
    Row("lrp_epsilon", "vgg16", 1, {"captum": 3, "zennit": 3}, 10),
    Row("lrp_epsilon", "resnet50", 1, {"captum": 3, "zennit": 3}, 10),
    Row("lrp_alpha_beta", "cnn", 32, {"zennit": 4}, 10),
    Row("lrp_alpha_beta", "vgg16", 1, {"zennit": 4}, 10),
    Row("deeplift", "cnn", 32, {"captum": 4, "shap": 4}, 10),
    Row("deeplift", "vgg16", 1, {"captum": 4, "shap": 4}, 10),
    Row(
        *("deeplift", "resnet50", 1, {"captum": 4, "shap": 4}, 10),
        differs={"captum": _OVERLAP, "shap": _OVERLAP},
    ),
    Row("intgrad", "mlp", 256, {"captum": 4, "zennit": 4}),
    Row("intgrad", "cnn", 32, {"captum": 1.2, "zennit": 1.2}),
    Row("intgrad", "vgg16", 1, {"captum": 1.3, "zennit": 1.3}),
    Row("deepshap", "cnn", 32, {"captum": 6, "shap": 6}, 10, references=20),
    Row("deepshap", "tabular", 10_000, {"captum": 25, "shap": 25}, 3, references=100),
    Row("gradient", "tabular", 100_000, {"torch": 2, "captum": 40}),
    Row("deeplift", "tabular", 100_000, {"captum": 40, "shap": 40}, 3),
]

# Small enough for every change: is the benchmark alive, and do the answers agree?
QUICK = [
    Row("forward", "tabular", 64, {"torch": None}),
    Row("gradient", "tabular", 64, {"torch": None, "captum": None}, 3),
    Row("lrp_epsilon", "tabular", 64, {"captum": None, "zennit": None}, 3),
    Row("lrp_alpha_beta", "cnn", 2, {"zennit": None}, 2),
    Row("deeplift", "cnn", 2, {"captum": None, "shap": None}, 2),
    Row("intgrad", "tabular", 16, {"captum": None, "zennit": None}, 3, steps=5),
    Row("deepshap", "tabular", 8, {"captum": None, "shap": None}, 3, references=4),
]
