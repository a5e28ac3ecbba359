"""The plots users ask for. Each makes a sheet and hands it to the library that draws."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, MissingPackageError
from ..methods.checks import check_flags
from .common import Sheet
from .sheets import (
    TOP_FEATURES,
    Aggregation,
    Preprocess,
    beeswarm_sheet,
    compare_sheet,
    global_sheet,
    input_kind,
    instance_sheet,
    waterfall_sheet,
)

if TYPE_CHECKING:
    from .mpl import Figure


def plot(
    method: Any,
    data_idx: int | Sequence[int] = 0,
    output_idx: Any = None,
    output_label: Any = None,
    aggr_channels: Aggregation = "sum",
    as_plotly: bool = False,
    same_scale: bool = False,
    show_preds: bool = True,
    *,
    overlay: bool | float = False,
    max_features: int = TOP_FEATURES,
    ax: Any = None,
) -> Figure:
    """Draw the result of single data points: bars for tables and signals, heat maps for images.

    Rows are data points, columns are output nodes and, in a model with several inputs, the inputs
    of each. Blue is negative, white zero and red positive. Images have row 0 on top. The box above
    a picture holds the prediction, the sum of the result over all inputs and, if the method has
    one, the goal of the decomposition.

    Parameters
    ----------
    method
        An explained method.
    data_idx
        Data points, counted from 0. Global connection weights, which use no data, have none.
    output_idx, output_label
        Nodes among those explained: one, a list for the first explained output, or a list per
        output of the model. Default: the first explained node.
    aggr_channels
        How channels of signals and images come together: "sum", "mean", "norm" (Euclidean) or a
        function from a vector to a number.
    as_plotly
        Return an interactive plot; needs plotly.
    same_scale
        Use one scale for all inputs of a data point and node.
    show_preds
        Draw the box.
    overlay
        Draw over the input: images in grey under the heat map, signals as a line with the result as
        its colour, features of tables with their values. A number from 0 to 1 says how opaque the
        strongest pixel of an image is; True means 0.85.
    max_features
        Of tables with more features than these (default 30) the largest are shown, sorted, and the
        sum of all others.
    ax
        Axes to draw into, as many as there are panels; by default a new figure.

    Returns
    -------
    Figure
        `figure[0, 1:]` is a part of it (row, column), `figure.theme("dark")` another look,
        `figure.save("plot.png")` writes it.

    Raises
    ------
    SelectionError
        If a data point or node is not there.
    ArgumentError
        If an argument has a value that is not allowed.

    Examples
    --------
    >>> import onnxplain as ox
    >>> from onnxplain.demo import MODEL, digits
    >>> lrp = ox.LRP(ox.convert(MODEL), digits()[0][:3])
    >>> lrp.plot(data_idx=[0, 1], output_label=["zero", "one"], overlay=True)
    Figure of 2 x 2 panels (save(path) writes it, show() shows it)
    """
    check_flags(same_scale=same_scale)
    sheet = instance_sheet(
        method, data_idx, output_idx, output_label, aggr_channels, same_scale, overlay, max_features
    )
    return _drawn(sheet, as_plotly, ax, show_preds)


def plot_global(
    method: Any,
    output_idx: Any = None,
    output_label: Any = None,
    data_idx: Any = "all",
    ref_data_idx: int | None = None,
    aggr_channels: Aggregation = "sum",
    preprocess: Preprocess = abs,
    as_plotly: bool = False,
    individual_data_idx: Any = None,
    individual_max: int = 20,
    *,
    percentile: float = 50,
    max_features: int = TOP_FEATURES,
    ax: Any = None,
) -> Figure:
    """Draw how the result spreads over data points: box plots, or the median image.

    Boxes hold the middle half of the data, whiskers reach at most 1.5 times its length further,
    dots are outliers (of very many, some). Signals of more than 64 positions show the same as
    bands. Images of all nodes share one scale.

    Parameters
    ----------
    method
        An explained method; not global connection weights, which depend on no data.
    output_idx, output_label, aggr_channels, as_plotly, ax
        As in `plot`.
    data_idx
        "all" (default) or indices from 0.
    ref_data_idx
        A data point to draw in red, which need not be in `data_idx`; not shown for images.
    preprocess
        Applied to the result before channels come together; default `abs`; None: nothing.
    individual_data_idx
        Data points to draw as lines over the boxes; an interactive plot offers them, one at a time,
        in a menu, and without this argument the first ones.
    individual_max
        How many of them at most.
    percentile
        Which percentile of the data points an image shows, 0 to 100; default 50, the median. An
        interactive plot has a slider instead.
    max_features
        Of tables with more features (default 30) those with the largest median are shown.

    Raises
    ------
    SelectionError
        If a data point or node is not there.
    ArgumentError
        If an argument has a value that is not allowed.

    Examples
    --------
    >>> import onnxplain as ox
    >>> from onnxplain.demo import MODEL, digits
    >>> gradient = ox.Gradient(ox.convert(MODEL), digits()[0])
    >>> gradient.plot_global(output_label=["zero", "one"], percentile=75)
    Figure of 1 x 2 panels (save(path) writes it, show() shows it)
    """
    sheet = global_sheet(
        method,
        output_idx,
        output_label,
        data_idx,
        ref_data_idx,
        aggr_channels,
        preprocess,
        individual_data_idx,
        individual_max,
        percentile,
        max_features,
        interactive=as_plotly,
    )
    return _drawn(sheet, as_plotly, ax)


def boxplot(method: Any, *args: Any, **options: Any) -> Figure:
    """Draw as `plot_global`; for image inputs, which get no boxes, with a warning."""
    if any(input_kind(method, i) == "image" for i in range(len(method.input_names))):
        warnings.warn(
            "boxplot: images are shown as their median, not as boxes; use plot_global()",
            stacklevel=2,
        )
    return plot_global(method, *args, **options)


def beeswarm(
    method: Any,
    output_idx: Any = None,
    output_label: Any = None,
    data_idx: Any = "all",
    *,
    max_features: int = 20,
    as_plotly: bool = False,
    ax: Any = None,
) -> Figure:
    """Draw the result of many data points for a table: a row of dots per feature.

    A dot is a data point, its place the result, its colour the value of the feature (percentiles 5
    and 95 get the ends of the colours). The feature with the largest mean |result| is on top; the
    sum of those not shown is the last row, grey. Of more than 1000 data points 1000 evenly spread
    ones are drawn. Signals and images beside a table are one row each, their sum.

    Parameters
    ----------
    method
        An explained method; not global connection weights.
    output_idx, output_label, data_idx, as_plotly, ax
        As in `plot_global`.
    max_features
        How many features to show; default 20.

    Raises
    ------
    SelectionError
        If a data point or node is not there.
    ArgumentError
        If the model takes no table, or an argument has a value that is not allowed.

    Examples
    --------
    >>> import onnxplain as ox
    >>> from onnxplain.demo import MODEL, digits
    >>> lrp = ox.LRP(ox.convert(MODEL), digits()[0], layer="features")
    >>> lrp.beeswarm(output_label="one", max_features=5)
    Figure of 1 x 1 panels (save(path) writes it, show() shows it)

    References
    ----------
    Lundberg, Erion and Lee, "Consistent Individualized Feature Attribution for Tree Ensembles",
    2018.
    """
    sheet = beeswarm_sheet(method, output_idx, output_label, data_idx, max_features)
    return _drawn(sheet, as_plotly, ax)


def waterfall(
    method: Any,
    data_idx: int | Sequence[int] = 0,
    output_idx: Any = None,
    output_label: Any = None,
    *,
    max_features: int = 10,
    show_preds: bool = True,
    as_plotly: bool = False,
    ax: Any = None,
) -> Figure:
    """Draw for a table how the result adds up, feature by feature, from 0 to its sum.

    The features with the largest |result| come first, the sum of all others last. A dotted line
    stands at the goal of the decomposition: what the sum should be. Signals and images beside a
    table are one step each, their sum.

    Parameters
    ----------
    method
        An explained method.
    data_idx, output_idx, output_label, show_preds, as_plotly, ax
        As in `plot`.
    max_features
        How many features have a step of their own; default 10.

    Raises
    ------
    SelectionError
        If a data point or node is not there.
    ArgumentError
        If the model takes no table, or an argument has a value that is not allowed.

    Examples
    --------
    >>> import onnxplain as ox
    >>> from onnxplain.demo import MODEL, digits
    >>> lrp = ox.LRP(ox.convert(MODEL), digits()[0], layer="features")
    >>> lrp.waterfall(data_idx=3, output_label="one")
    Figure of 1 x 1 panels (save(path) writes it, show() shows it)
    """
    sheet = waterfall_sheet(method, data_idx, output_idx, output_label, max_features)
    return _drawn(sheet, as_plotly, ax, show_preds)


def compare(
    methods: Any,
    data_idx: int | Sequence[int] = 0,
    output_idx: Any = None,
    output_label: Any = None,
    aggr_channels: Aggregation = "sum",
    as_plotly: bool = False,
    same_scale: bool = False,
    show_preds: bool = True,
    *,
    overlay: bool | float = False,
    max_features: int = TOP_FEATURES,
    ax: Any = None,
) -> Figure:
    """Draw several methods side by side: a column for each, a row per data point and node.

    Values of different methods have different units, so every panel has its own scale. Of large
    tables all columns show the same features.

    Parameters
    ----------
    methods
        Explained methods of one model and the same data: a list, or a dict `{title: method}`.
    data_idx, aggr_channels, as_plotly, same_scale, show_preds, overlay, max_features, ax
        As in `plot`.
    output_idx, output_label
        Nodes that the first method has explained, as in `plot`; the others must have them too.

    Raises
    ------
    SelectionError
        If a data point or node is not there.
    ArgumentError
        If the methods do not belong together, or an argument has a value that is not allowed.

    Examples
    --------
    >>> import onnxplain as ox
    >>> from onnxplain.demo import MODEL, digits
    >>> from onnxplain.plots import compare
    >>> converter, images = ox.convert(MODEL), digits()[0][:2]
    >>> both = [ox.LRP(converter, images), ox.DeepLift(converter, images)]
    >>> compare(both, data_idx=1, output_label="one", overlay=True)
    Figure of 1 x 2 panels (save(path) writes it, show() shows it)
    """
    check_flags(same_scale=same_scale)
    sheet = compare_sheet(
        methods,
        data_idx,
        output_idx,
        output_label,
        aggr_channels,
        same_scale,
        overlay,
        max_features,
    )
    return _drawn(sheet, as_plotly, ax, show_preds)


def _drawn(sheet: Sheet, as_plotly: Any, ax: Any, show_preds: Any = False) -> Any:
    check_flags(as_plotly=as_plotly, show_preds=show_preds)
    sheet = sheet if show_preds else sheet.without_info()
    if not as_plotly:
        from .mpl import draw

        return draw(sheet, ax)
    if ax is not None:
        raise ArgumentError("ax are axes of matplotlib: leave them away with as_plotly=True")
    return _interactive(sheet)


def _interactive(sheet: Sheet) -> Any:
    try:
        from .plotly import draw  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingPackageError(
            "as_plotly=True needs plotly: pip install 'onnxplain[plotly]'"
        ) from error
    return draw(sheet)
