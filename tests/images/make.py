"""The figures whose pictures are kept here: python tests/images/make.py draws them anew.

The numbers are formulas and all text is hidden, so that neither fonts nor the generators of random
numbers matter.
"""

import io
import sys
from pathlib import Path

import numpy as np
from matplotlib.legend import Legend
from matplotlib.text import Text
from PIL import Image

FOLDER = Path(__file__).parent
if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER.parent))

from fake_results import fake_method  # noqa: E402
from onnxplain.plots import beeswarm, compare, plot, plot_global, waterfall  # noqa: E402


def wave(*shape, step=0.7):
    """Numbers in -1 to 1 that look random enough."""
    k = np.arange(np.prod(shape)).reshape(shape)
    return np.sin(step * k + 0.002 * k**2)


def method(*dims, batch=12, **fields):
    made = fake_method(*dims, batch=batch, **fields)
    made.result = [
        [wave(*array.shape, step=0.7 + s) for array in row] for s, row in enumerate(made.result)
    ]
    made.data = [wave(batch, *dim, step=0.3) for dim in dims]
    made.preds = [wave(batch, 3) for _ in made.preds]
    made.decomp_goal = [wave(*goal.shape) for goal in made.decomp_goal]
    return made


def image():
    made = method((3, 16, 16))
    y, x = np.mgrid[:16, :16]
    for b in range(12):
        spot = np.exp(-((y - 4) ** 2 + (x - 4 - b) ** 2) / 8)
        cold = np.exp(-((y - 11) ** 2 + (x - 10) ** 2) / 5)
        made.result[0][0][b] = (spot - 0.7 * cold)[None, :, :, None] * [1, -1]
        made.data[0][b] = np.hypot(y - 8, x - 8) < 6
    return made


def other():
    made = method((5,))
    made.result[0][0] = -(made.result[0][0][:, ::-1] ** 3)
    return made


def mixed():
    return method((4,), (2, 20), (1, 6, 6), nodes=((0,), (2,)))


FIGURES = {
    "table": lambda: plot(method((5,)), data_idx=[0, 2], output_idx=[0, 1]),
    "table_dark": lambda: plot(method((60,)), max_features=12).theme("dark"),
    "signal": lambda: plot(method((2, 60)), output_idx=[0, 1]),
    "signal_line": lambda: plot(method((2, 60)), overlay=True),
    "image": lambda: plot(image(), data_idx=[0, 5], output_idx=[0, 1]),
    "image_overlay": lambda: plot(image(), data_idx=[0, 5], overlay=True),
    "mixed": lambda: plot(mixed(), output_idx=[[0], [2]])[0, 1:],
    "boxes": lambda: plot_global(method((5,)), ref_data_idx=1, individual_data_idx=[2]),
    "bands": lambda: plot_global(method((1, 80)), preprocess=None, ref_data_idx=1),
    "median": lambda: plot_global(image(), output_idx=[0, 1], preprocess=None),
    "beeswarm": lambda: beeswarm(method((8,), batch=80), max_features=5),
    "waterfall": lambda: waterfall(method((8,)), max_features=5, data_idx=3),
    "compare": lambda: compare({"one": method((5,)), "two": other()}, output_idx=1),
}


def picture(figure):
    """A figure without its text, everything at fixed places."""
    drawn = figure.figure
    # A layout would make room for texts, which have other sizes with other fonts.
    drawn.set_layout_engine("none")
    drawn.set_dpi(50)
    drawn.canvas.draw()  # ticks are made now
    for artist in (*drawn.findobj(Text), *drawn.findobj(Legend)):
        artist.set_visible(False)
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=50)
    return Image.open(buffer).convert("RGB")


def main():
    for name, make in FIGURES.items():
        path = FOLDER / f"{name}.png"
        picture(make()).quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
