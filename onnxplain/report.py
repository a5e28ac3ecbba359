"""A page about a model: what it is, what it predicts, and why, by several methods."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .data import float_type, prepare
from .errors import (
    ArgumentError,
    UnknownArgumentError,
    counted,
    listed,
    shown,
)

if TYPE_CHECKING:
    from .converter import Converter

MAX_INSTANCES = 10  # shown by default
MAX_NODES = 5  # an output with more of them is explained at its largest node
SEED = 0


def report(
    converter: Converter,
    data: Any,
    methods: Any = ("lrp",),
    path: str | os.PathLike[str] = "report.html",
    *,
    instances: int | Sequence[int] = MAX_INSTANCES,
    title: str = "",
    model_name: str = "",
    output_idx: Any = None,
    output_label: Any = None,
    **options: Any,
) -> Path:
    """Explain data by several methods and write a page about it that needs nothing else.

    The page shows the model, how each method treats its nodes, predictions, interactive plots of
    single data points and of all of them, whether the values add up to what they should, and
    everything needed to get the same numbers again. It works offline, in light and dark, and on
    paper.

    Parameters
    ----------
    converter : Converter
    data : array (batch, *input_dim), data frame, or list or dict of these
        One per input. All data points are in the plots of many, `instances` in those of one.
    methods : name, class or explained method, or a list or dict `{title: ...}` of these
        Names are those of the classes or of the command line ("lrp", "deeplift", ...). A method
        that is explained already must have the same number of data points.
    path : path
        The page to write, .html.
    instances : int or sequence of int, default 10
        How many of the first data points are shown one by one, or which.
    title, model_name : str
        Heading of the page, and how to call the model: the path of its file, for example.
    output_idx, output_label
        Nodes to explain, as for the methods. By default all nodes of an output with at most 5, of
        larger ones the largest of each data point.
    **options
        For the methods that have such an argument (`rule_name`, `x_ref`, `n`, `dtype`, ...). Draws
        have seed 0 unless `seed` is given.

    Returns
    -------
    pathlib.Path
        The page.

    Raises
    ------
    MissingPackageError
        If plotly is not installed.
    ArgumentError
        If a method is unknown or has no such option, or the page cannot be written.
    DataError
        If the data do not fit the model.

    Examples
    --------
    >>> import onnxplain as ox
    >>> from onnxplain.demo import MODEL, digits
    >>> converter, images = ox.convert(MODEL), digits()[0]
    >>> ox.report(converter, images, ["lrp", "deeplift"], "digits.html")  # doctest: +SKIP
    PosixPath('digits.html')
    """
    page = Path(path)
    check_page(page)
    arrays = _checked_data(converter, data, options)
    rows = _rows(instances, len(arrays[0]))
    choice = {"output_idx": output_idx, "output_label": output_label}
    jobs = _jobs(converter, methods, options, choice)
    for job in jobs:
        job.try_out(converter, arrays)  # also tells whether there is a plot for its inputs
    explained = {job.title: job.run(converter, data, len(arrays[0])) for job in jobs}

    from .plots.page import write_page
    from .plots.sections import Facts, report_page

    given = {job.title: None if job.done else job.arguments for job in jobs}
    facts = Facts(converter, arrays, rows, explained, given, str(title), str(model_name))
    write_page(page, report_page(facts))
    return page


# ---------------------------------------------------------------- before any work starts


def check_page(path: Path, sources: Sequence[Path] = ()) -> None:
    """Raise if plotly is missing, or the page cannot be written or would replace a source."""
    from .files import check_target
    from .plots.plotly import check_plotly

    check_plotly("a report")
    check_target(path, {".html", ".htm"}, sources)


def _checked_data(
    converter: Converter, data: Any, options: Mapping[str, Any]
) -> list[np.ndarray[Any, Any]]:
    """The data as arrays, channels first."""
    from .arrays import to_host
    from .converter import Converter

    if not isinstance(converter, Converter):
        raise ArgumentError(
            f"the first argument must be a Converter, got {type(converter).__name__}; "
            "make one with onnxplain.convert(model)"
        )
    arrays = prepare(
        data,
        converter.graph.inputs,
        converter.input_dim,
        float_type(options.get("dtype", "float")),
        options.get("channels_first", True),
        names=converter.input_names,
    )
    return [to_host(x) for x in arrays]


def _rows(instances: Any, batch: int) -> list[int]:
    """The data points to show one by one."""
    from .plots.common import is_index

    if is_index(instances):
        if instances < 1:
            raise ArgumentError(f"instances is {instances}, expected at least 1")
        return list(range(min(int(instances), batch)))
    if isinstance(instances, str) or not isinstance(instances, Sequence | np.ndarray):
        raise ArgumentError(f"instances is {shown(instances)}, expected a number or a list of them")
    rows = [int(row) for row in instances if is_index(row) and 0 <= row < batch]
    if not rows or len(rows) < len(instances):
        raise ArgumentError(
            f"instances is {shown(list(instances))}, expected indices from 0 to {batch - 1}"
        )
    return list(dict.fromkeys(rows))


class _Job:
    """A method to run with its arguments, or one that ran already."""

    def __init__(self, title: str, method: Any, arguments: dict[str, Any]) -> None:
        self.title, self.method, self.arguments = title, method, arguments

    @property
    def done(self) -> bool:
        return not isinstance(self.method, type)

    def try_out(self, converter: Converter, arrays: Sequence[Any]) -> None:
        """Run on one data point, so that a wrong argument is found before the long work."""
        method = self.method
        if not self.done:
            row = [x[:1] for x in arrays]
            if not self.arguments.get("channels_first", True):
                row = [np.moveaxis(x, 1, -1) if x.ndim > 2 else x for x in row]
            method = self.method(converter, row, **self.arguments)
        from .plots.sheets import input_kind

        for i in range(len(method.input_names)):
            input_kind(method, i)

    def run(self, converter: Converter, data: Any, batch: int) -> Any:
        from .results import batch_size

        method = self.method if self.done else self.method(converter, data, **self.arguments)
        if not getattr(method, "is_global", False) and batch_size(method) != batch:
            raise ArgumentError(
                f"{self.title} has explained {counted(batch_size(method), 'data point')}, data "
                f"holds {batch}: give the data it was run with"
            )
        return method


def _jobs(
    converter: Converter, methods: Any, options: dict[str, Any], choice: dict[str, Any]
) -> list[_Job]:
    titled = _titled(methods)
    jobs, used = [], set()
    for title, entry in titled.items():
        method = _method(entry)
        if not isinstance(method, type):
            _check_model(title, method, converter)
            jobs.append(_Job(title, method, {}))
            continue
        known = set(inspect.signature(method).parameters)
        own = {name: value for name, value in options.items() if name in known}
        used |= own.keys()
        arguments = {**_nodes(converter, method, choice), **own}
        if "seed" in known and "seed" not in own:
            arguments["seed"] = SEED
        jobs.append(_Job(title, method, arguments))
    unused = options.keys() - used
    if unused:
        raise UnknownArgumentError(
            f"none of {listed(titled)} has an argument {sorted(unused)[0]!r}"
        )
    return jobs


def _check_model(title: str, method: Any, converter: Converter) -> None:
    own = getattr(method, "converter", None)
    told = getattr(method, "provenance", None) or {}
    came = told.get("model_hash") if own is None else own.model_hash
    if came != converter.model_hash:
        raise ArgumentError(f"{title} explains another model than the converter's")


def _titled(methods: Any) -> dict[str, Any]:
    if isinstance(methods, Mapping):
        found = {str(title): entry for title, entry in methods.items()}
    else:
        several = isinstance(methods, list | tuple)
        entries = list(methods) if several else [methods]
        names = [_name(entry) for entry in entries]
        found = {}
        for k, (name, entry) in enumerate(zip(names, entries, strict=True)):
            again = names[:k].count(name)
            found[f"{name} ({again + 1})" if again else name] = entry
    if not found:
        raise ArgumentError("methods is empty: nothing to report")
    return found


def _name(entry: Any) -> str:
    if hasattr(entry, "result"):
        return str(entry.method_name)
    return _method(entry).__name__


def _method(entry: Any) -> Any:
    """The class that a name stands for; classes and explained methods are themselves."""
    import onnxplain

    if hasattr(entry, "method_name"):
        return entry
    from .cli import AGNOSTIC, METHODS

    known = METHODS | AGNOSTIC
    by_name = {name.lower(): name for name in known.values()} | known
    name = entry.lower().removeprefix("run_") if isinstance(entry, str) else None
    if name not in by_name:
        raise ArgumentError(f"no method {shown(entry)}; known are {', '.join(known)}")
    return getattr(onnxplain, by_name[name])


def _nodes(converter: Converter, method: type, choice: dict[str, Any]) -> dict[str, Any]:
    if any(value is not None for value in choice.values()):
        return choice
    whole = method.__name__ == "ConnectionWeights"  # reads no data, and knows no largest node
    sizes = [int(np.prod(dim)) for dim in converter.output_dim]
    few = [list(range(min(n, MAX_NODES))) for n in sizes]
    return {
        "output_idx": [
            nodes if whole or n <= MAX_NODES else ["top1"]
            for nodes, n in zip(few, sizes, strict=True)
        ]
    }
