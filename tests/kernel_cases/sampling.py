"""Cases of operators that read between pixels, and of Fourier transforms."""

import numpy as np

from .table import IMAGE, VOLUME, Case, ints, spread


def grids():
    grid = spread(2, 3, 4, 2, low=-1.4, high=1.4)
    for mode in ("nearest", "linear", "cubic"):
        for padding in ("zeros", "border", "reflection"):
            for align in (0, 1):
                extra = {"mode": mode, "padding_mode": padding, "align_corners": align}
                yield Case("GridSample", [IMAGE, grid], extra, rows=False)
    yield Case("GridSample", [VOLUME, spread(2, 2, 3, 1, 3, low=-1.2, high=1.2)], rows=False)
    yield Case("GridSample", [IMAGE, grid], {"mode": "bicubic"}, opset=16, rows=False)
    for mode in ("nearest", "linear", "cubic"):
        for padding in ("zeros", "border", "reflection"):
            extra = {"mode": mode, "padding_mode": padding}
            yield Case("GridSample", [IMAGE[:, :2], grid], extra, (0, 1))
    extra = {"align_corners": 1, "padding_mode": "reflection"}
    yield Case("GridSample", [IMAGE[:, :2], grid], extra, (0, 1))
    yield Case("GridSample", [VOLUME, spread(2, 2, 3, 1, 3, low=-1.2, high=1.2)], {}, (0, 1))
    yield Case("AffineGrid", [spread(2, 2, 3), ints(2, 1, 3, 4)], rows=False)
    yield Case(
        "AffineGrid", [spread(2, 3, 4), ints(2, 1, 3, 2, 4)], {"align_corners": 1}, rows=False
    )


def regions():
    rois = np.array([[0.3, 0.7, 4.1, 3.3], [-2.0, 1.0, 9.0, 4.0], [1.2, 0.1, 3.3, 2.2]])
    for ratio in (0, 2):
        extra = {"output_height": 2, "output_width": 3, "sampling_ratio": ratio}
        yield Case("RoiAlign", [IMAGE, rois, ints(0, 1, 1)], extra, rows=False)
    extra = {"output_height": 2, "output_width": 2, "spatial_scale": 0.5}
    yield Case("RoiAlign", [IMAGE, rois, ints(1, 0, 1)], extra, opset=10, rows=False)


def windows():
    x, w, b = spread(2, 4, 5, 6), spread(2, 2, 2, 2), spread(2)
    shifts = spread(2, 2 * 4 * 2, 3, 4, low=0.1, high=0.9)
    mask = spread(2, 2 * 4, 3, 4, low=-0.5, high=1)
    extra = {"group": 2, "offset_group": 2, "dilations": [2, 2]}
    yield Case("DeformConv", [x, w, shifts, b, mask], extra, rows=False)
    yield Case("DeformConv", [x, w, shifts], extra, rows=False)
    for active in ((0, 2), (0, 2, 4), (0, 4)):
        yield Case("DeformConv", [x, w, shifts, b, mask], extra, active, rows=len(active) > 2)
    yield Case("DeformConv", [x, w, shifts], extra, (0, 2))
    one = np.full((2, 8, 2, 2), 0.3)
    pads = {"strides": [3, 3], "pads": [1, 0, 0, 0], "dilations": [2, 2]}
    yield Case("DeformConv", [x, spread(3, 4, 2, 2), one], pads, rows=False)


def fourier():
    real, pair = spread(3, 6, 1), spread(3, 5, 2)
    for inverse in (0, 1):
        yield Case("DFT", [real, None, ints(1)[0]], {"inverse": inverse})
        yield Case("DFT", [pair], {"inverse": inverse})
        yield Case("DFT", [pair, np.array(8)], {"inverse": inverse})
        yield Case("DFT", [pair, np.array(3)], {"inverse": inverse})
        yield Case("DFT", [spread(2, 4, 3, 2), None, np.array(-3)], {"inverse": inverse})
    for length in (None, np.array(4), np.array(9)):
        yield Case("DFT", [real, length], {"onesided": 1})
        yield Case("DFT", [pair, length], {"onesided": 1, "inverse": 1})
    yield Case("DFT", [spread(2, 4, 3, 2)], {"axis": 2}, opset=17)
    yield Case("STFT", [spread(2, 12, 1), np.array(3), spread(5, low=0.1, high=1)])
    yield Case("STFT", [spread(2, 12, 1), np.array(2), None, np.array(4)], {"onesided": 0})
    yield Case("STFT", [spread(2, 9, 2), np.array(4), spread(4), np.array(4)], {"onesided": 0})


CASES = [*grids(), *regions(), *windows(), *fourier()]
