"""What is measured: one line per row of the table."""

from __future__ import annotations

from dataclasses import dataclass


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
    peers : tuple of str
        Libraries, as `bench.peers` names them.
    """

    work: str
    network: str
    batch: int
    peers: tuple[str, ...]
    outputs: int = 1
    references: int = 1
    steps: int = 50
    full_only: bool = False

    @property
    def name(self) -> str:
        extra = [f"{self.outputs} outputs"] if self.work != "forward" else []
        extra += [f"{self.references} references"] if self.work == "deepshap" else []
        extra += [f"n={self.steps}"] if self.work == "intgrad" else []
        return " ".join([self.work, self.network, f"batch {self.batch:,}", *extra])


def _works(network: str, batch: int, full_only: bool = False) -> list[Row]:
    """Return the works that every network gets."""
    return [
        Row("forward", network, batch, ("torch", "onnxruntime"), full_only=full_only),
        Row("gradient", network, batch, ("torch", "captum"), full_only=full_only),
        Row("gradient", network, batch, ("torch", "captum"), outputs=10, full_only=full_only),
        Row("lrp_epsilon", network, batch, ("captum", "zennit"), outputs=10, full_only=full_only),
        Row("lrp_alpha_beta", network, batch, ("zennit",), outputs=10, full_only=full_only),
        Row("deeplift", network, batch, ("captum",), outputs=10, full_only=full_only),
        Row("intgrad", network, batch, ("captum", "zennit"), full_only=full_only),
    ]


ROWS = [
    *_works("mlp", 256),
    *_works("mlp", 32),
    *_works("cnn", 32),
    Row("deepshap", "mlp", 32, ("captum",), outputs=10, references=20),
    Row("deepshap", "cnn", 32, ("captum",), outputs=10, references=20),
    Row("gradient", "tabular", 100_000, ("torch", "captum")),
    *_works("vgg16", 1, full_only=True),
    Row("gradient", "vgg16", 8, ("torch",), full_only=True),
    Row("forward", "resnet50", 1, ("torch", "onnxruntime"), full_only=True),
    Row("gradient", "resnet50", 1, ("torch", "captum"), full_only=True),
    Row("gradient", "resnet50", 8, ("torch",), full_only=True),
    Row("forward", "mobilenet", 1, ("torch", "onnxruntime"), full_only=True),
    Row("gradient", "mobilenet", 1, ("torch", "captum"), full_only=True),
    Row("deepshap", "tabular-shap", 10_000, ("captum",), 3, 100, full_only=True),
    Row("deeplift", "tabular-shap", 100_000, ("captum",), 3, full_only=True),
]

# Small enough for every change: is the benchmark alive, and do the answers agree?
QUICK = [
    Row("forward", "tabular", 64, ("torch",)),
    Row("gradient", "tabular", 64, ("torch", "captum"), outputs=2),
    Row("lrp_epsilon", "tabular", 64, ("captum", "zennit"), outputs=2),
    Row("lrp_alpha_beta", "cnn", 2, ("zennit",), outputs=2),
    Row("deeplift", "cnn", 2, ("captum",), outputs=2),
    Row("intgrad", "tabular", 16, ("captum", "zennit"), outputs=2, steps=5),
    Row("deepshap", "tabular", 8, ("captum",), outputs=2, references=4),
]
