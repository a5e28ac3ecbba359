"""A small trained model with real data: handwritten digits, 8x8 pixels."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from onnxplain.errors import ArgumentError

SHOWN = (22, 17, 10, 29)  # images of `digits.npz` that the demo explains: 0, 2, 5, 7

# What the demo runs: a title, the class and its arguments.
METHODS = {
    "Gradient x input": ("Gradient", {"times_input": True}),
    "Integrated gradients": ("IntegratedGradient", {"n": 50}),
    "LRP epsilon": ("LRP", {"rule_name": "epsilon"}),
    "DeepLIFT": ("DeepLift", {}),
}


def digits() -> tuple[bytes, np.ndarray, np.ndarray, list[str]]:
    """Return the model, 50 test images, their labels and the names of the classes.

    Returns
    -------
    model : bytes
        A convolutional network in ONNX format; its input is `(n, 1, 8, 8)`, its output `(n, 10)`.
    images : ndarray
        float32 `(50, 1, 8, 8)` with values in 0 to 1, not seen in training.
    labels : ndarray
        int `(50,)`, the digit that was written.
    class_names : list of str
        "zero" to "nine".

    Examples
    --------
    >>> model, images, labels, class_names = digits()
    >>> images.shape, class_names[labels[0]]
    ((50, 1, 8, 8), 'one')
    """
    folder = files(__name__)
    with (folder / "digits.npz").open("rb") as file, np.load(file) as data:
        images = (data["image"] / 16).astype(np.float32)
        labels, class_names = data["label"].astype(int), data["class_names"].tolist()
    return (folder / "digits.onnx").read_bytes(), images, labels, class_names


def explain() -> tuple[np.ndarray, np.ndarray, dict[str, Any], list[str]]:
    """Return images, labels, the results of four methods by title, and the names of the classes."""
    import onnxplain

    model, images, labels, class_names = digits()
    converter = onnxplain.convert(model, output_names=class_names)
    shown = list(SHOWN)
    results = {
        title: getattr(onnxplain, name)(converter, images[shown], verbose=False, **arguments)
        for title, (name, arguments) in METHODS.items()
    }
    return images[shown], labels[shown], results, class_names


def run(folder: Path, echo: Callable[[str], None] = print) -> Path:
    """Explain a few digits, print a table and write a picture; return its path."""
    from onnxplain.demo.picture import draw

    path = folder / "onnxplain-demo.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise ArgumentError(f"{path} cannot be written: {error.strerror}") from error
    images, labels, results, class_names = explain()
    echo(table(labels, results, class_names))
    draw(images, results, class_names).savefig(path, dpi=110)
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


def table(labels: np.ndarray, results: dict[str, Any], class_names: list[str]) -> str:
    """Return what was predicted, and how far each explanation is from adding up, as text."""
    classes, probability = predicted(results)
    columns = [gaps(result, classes) for result in results.values()]
    lines = [
        "A small convolutional network reads handwritten digits. Which pixels speak for its answer?",
        "The gap is the difference between what the pixels add up to and the score they explain.",
        "",
        f"{'written':9}{'predicted':16}" + "".join(f"{title:>22}" for title in results),
    ]
    for i, (label, best, share) in enumerate(zip(labels, classes, probability, strict=True)):
        prediction = f"{class_names[best]} ({share:.1%})"
        cells = "".join(f"{f'gap {column[i]:.1e}':>22}" for column in columns)
        lines.append(f"{class_names[label]:9}{prediction:16}{cells}")
    return "\n".join(lines)
