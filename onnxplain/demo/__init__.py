"""A small trained model with real data: handwritten digits, 8x8 pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from onnxplain.errors import ArgumentError

MODEL = Path(__file__).with_name("digits.onnx")
SHOWN = (22, 17, 10, 29)  # images of `digits.npz` that the demo explains: 0, 2, 5, 7

# What the demo runs: a title, the class and its arguments.
METHODS = {
    "Gradient x input": ("Gradient", {"times_input": True}),
    "Integrated gradients": ("IntegratedGradient", {"n": 50}),
    "LRP epsilon": ("LRP", {"rule_name": "epsilon"}),
    "DeepLIFT": ("DeepLift", {}),
}


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return 50 images of handwritten digits that `MODEL` was not trained on, and their labels.

    Returns
    -------
    images : ndarray
        float32 `(50, 1, 8, 8)` with values in 0 to 1.
    labels : ndarray
        int `(50,)`, the digit that was written.

    Examples
    --------
    >>> images, labels = digits()
    >>> images.shape, int(labels[0])
    ((50, 1, 8, 8), 1)
    """
    with np.load(Path(__file__).with_name("digits.npz")) as data:
        return (data["image"] / 16).astype(np.float32), data["label"].astype(int)


def explain() -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Return images, labels and the results of four methods by their titles."""
    import onnxplain

    images, labels = (values[list(SHOWN)] for values in digits())
    converter = onnxplain.convert(MODEL)
    results = {
        title: getattr(onnxplain, name)(converter, images, verbose=False, **arguments)
        for title, (name, arguments) in METHODS.items()
    }
    return images, labels, results


def run(folder: Path, echo: Callable[[str], None] = print) -> Path:
    """Explain a few digits, print a table and write a picture; return its path."""
    from onnxplain.demo.picture import draw

    path = folder / "onnxplain-demo.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise ArgumentError(f"{path} cannot be written: {error.strerror}") from error
    images, labels, results = explain()
    echo(table(labels, results))
    draw(images, results).savefig(path, dpi=110)
    echo(f"\nThe picture of the explanations is {path}")
    return path


def predicted(results: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the predicted class of each image and its probability."""
    probability = next(iter(results.values())).preds[0]
    return probability.argmax(1), probability.max(1)


def gaps(result: Any, classes: np.ndarray) -> np.ndarray:
    """Return |sum of the explanation - its goal| for one class of each image."""
    rows = np.arange(len(classes))
    return np.abs(result.decomp_sum[0] - result.decomp_goal[0])[rows, classes]


def class_names(results: dict[str, Any]) -> list[str]:
    return next(iter(results.values())).output_names[0][0]


def table(labels: np.ndarray, results: dict[str, Any]) -> str:
    """Return what was predicted, and how far each explanation is from adding up, as text."""
    classes, probability = predicted(results)
    names = class_names(results)
    columns = [gaps(result, classes) for result in results.values()]
    lines = [
        "A small convolutional network reads digits. Which pixels speak for its answer?",
        "The gap is the difference between what the pixels add up to and the score they explain.",
        "",
        f"{'written':9}{'predicted':16}" + "".join(f"{title:>22}" for title in results),
    ]
    for i, (label, best, share) in enumerate(zip(labels, classes, probability, strict=True)):
        prediction = f"{names[best]} ({share:.1%})"
        cells = "".join(f"{f'gap {column[i]:.1e}':>22}" for column in columns)
        lines.append(f"{names[label]:9}{prediction:16}{cells}")
    notes = [
        "",
        "DeepLIFT adds up exactly, integrated gradients nearly, and better with more steps. What",
        "LRP lacks, biases and epsilon absorbed: ledger() tells where. Gradients promise no sum.",
    ]
    return "\n".join([*lines, *notes])
