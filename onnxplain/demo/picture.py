"""The picture of the demo: a row for each image, a column for each method."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from onnxplain.demo import class_names, gaps, predicted


def draw(images: np.ndarray, results: dict[str, Any]) -> Figure:
    """Return a figure: red pixels speak for the predicted class, blue ones against it."""
    names = class_names(results)
    classes, probability = predicted(results)
    # Figure instead of pyplot: no window, no state, whatever the backend is.
    figure = Figure(
        figsize=(2.1 * (len(results) + 1), 2.25 * len(images) + 0.5), layout="constrained"
    )
    axes = figure.subplots(len(images), len(results) + 1, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_color("0.8")
    axes[0, 0].set_title("image", fontweight="bold")
    for i, row in enumerate(axes):
        row[0].imshow(images[i, 0], cmap="gray_r")
        row[0].set_ylabel(f"{names[classes[i]]}\n{probability[i]:.1%}", fontsize=11)
    for column, (title, result) in enumerate(results.items(), start=1):
        axes[0, column].set_title(title, fontweight="bold")
        for i, gap in enumerate(gaps(result, classes)):
            heat = result.get_result("array")[i, 0, :, :, classes[i]]
            limit = np.abs(heat).max() or 1
            axes[i, column].imshow(heat, cmap="RdBu_r", vmin=-limit, vmax=limit)
            axes[i, column].set_xlabel(f"gap {gap:.1e}", fontsize=9, color="0.35")
    figure.supxlabel(
        "red speaks for the predicted class, blue against it; gap: what is missing to its score",
        fontsize=10,
    )
    return figure
