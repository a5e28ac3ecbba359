"""The command line: `onnxplain inspect`, `onnxplain explain` and `onnxplain demo`."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from onnxplain.errors import ArgumentError, DataError, OnnxplainError

# Whatever is large (the engine, pandas, matplotlib) is imported inside the commands: help stays quick.

METHODS = {
    "grad": "Gradient",
    "smoothgrad": "SmoothGrad",
    "intgrad": "IntegratedGradient",
    "expgrad": "ExpectedGradient",
    "lrp": "LRP",
    "deeplift": "DeepLift",
    "deepshap": "DeepSHAP",
    "cw": "ConnectionWeights",
}

ROWS_SHOWN = 10


class CleanError(click.ClickException):
    """An error of the user: one line, no traceback, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"onnxplain: error: {' '.join(self.message.split())}", err=True)


class Commands(click.Group):
    """Commands whose package errors and warnings are one line each."""

    def invoke(self, ctx: click.Context) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            try:
                return super().invoke(ctx)
            except OnnxplainError as error:
                raise CleanError(str(error)) from error


def show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    click.echo(f"onnxplain: warning: {' '.join(str(message).split())}", err=True)


class Numbers(click.ParamType):
    """Numbers or words with commas between them."""

    def __init__(self, kind: Callable[[str], Any], name: str):
        self.kind, self.name = kind, name

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value == "-":
            return None
        try:
            return [self.kind(part.strip()) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is no list like 'a,b,c' of type {self.kind.__name__}", param, ctx)


INDICES, FLOATS, WORDS = Numbers(int, "I,J,..."), Numbers(float, "A,B,..."), Numbers(str, "A,B,...")
FILE = click.Path(path_type=Path)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="onnxplain", prog_name="onnxplain")
def main() -> None:
    """Explain the predictions of a neural network stored as ONNX."""


# inspect


@main.command("inspect")
@click.argument("model", type=FILE)
@click.option("--method", type=click.Choice(list(METHODS)), help="Show how each node is treated.")
def inspect_model(model: Path, method: str | None) -> None:
    """Show what MODEL consists of and which methods can explain it."""
    import onnxplain

    existing(model)
    converter = onnxplain.convert(model)
    click.echo(describe_model(converter, model))
    click.echo()
    if method:
        click.echo(coverage_table(converter.coverage(method)))
    else:
        click.echo(coverage_summary({name: converter.coverage(name) for name in METHODS}))


# explain


def explain_options(command: Callable) -> Callable:
    """Add the options of `explain`, in the order in which help lists them."""
    options = [
        click.option("--method", type=click.Choice(list(METHODS)), required=True),
        click.option("--out", type=FILE, help="Write the result: .npz, .csv, .parquet or .nc."),
        click.option("--plot", type=FILE, help="Draw the result: .png, .pdf, .svg or .jpg."),
        click.option("--data-idx", type=INDICES, default="0", help="Rows to draw; 0 is the first."),
        # what is explained
        click.option(
            "--output-idx",
            type=INDICES,
            multiple=True,
            help="Output nodes to explain; once for each output of the model, '-' for none of it.",
        ),
        click.option(
            "--output-label", type=WORDS, multiple=True, help="The same by the names of the nodes."
        ),
        click.option("--output-names", type=WORDS, help="Names for the nodes of the output."),
        click.option("--keep-last-act", is_flag=True, help="Explain behind the last activation."),
        # how
        click.option(
            "--rule-name",
            multiple=True,
            metavar="RULE | KEY=RULE",
            help="Rule (lrp, deeplift, deepshap); KEY is a layer type, an op type or a node.",
        ),
        click.option("--rule-param", multiple=True, metavar="NUMBER | KEY=NUMBER"),
        click.option(
            "--winner-takes-all/--share-pooling", default=None, help="How max-pools pass."
        ),
        click.option("--reference", type=FILE, help="Reference input(s), read like DATA."),
        click.option("--limit-ref", type=int, help="References used at most (deepshap)."),
        click.option("--n", type=int, help="Samples or steps (smoothgrad, intgrad, expgrad)."),
        click.option("--noise-level", type=float, help="Noise of smoothgrad."),
        click.option("--quadrature", help="Integration rule of intgrad."),
        click.option("--times-input/--not-times-input", default=None),
        click.option("--like", help="Follow another library's conventions, e.g. innsight."),
        # the data
        click.option("--columns", type=WORDS, help="Columns of a table, in the model's order."),
        click.option("--scale", type=float, help="Divide by this; for images 255 if not given."),
        click.option("--mean", type=FLOATS, help="Then subtract this, one or one per channel."),
        click.option("--std", type=FLOATS, help="Then divide by this, one or one per channel."),
        click.option("--resize", is_flag=True, help="Scale images to the size of the model."),
        click.option(
            "--channels-last", is_flag=True, help="The last axis of DATA is the channels."
        ),
        # the computation
        click.option("--dtype", type=click.Choice(["float", "double"]), default="float"),
        click.option("--device", default="cpu", show_default=True),
        click.option("--batch-size", type=int, help="Rows computed at a time."),
        click.option("--seed", type=int, help="Make random draws reproducible."),
        click.option("--quiet", is_flag=True, help="No progress bar, no summary."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("model", type=FILE)
@click.argument("data", type=FILE, nargs=-1)
@explain_options
def explain(model: Path, data: tuple[Path, ...], method: str, **options: Any) -> None:
    """Explain what MODEL predicts for DATA.

    DATA is a .npy array, an .npz file with one array named like each input, a .csv or .parquet table
    with one row per instance, or one or more images.

    \b
    onnxplain explain model.onnx table.csv --method lrp --rule-name epsilon --out result.csv
    onnxplain explain model.onnx cat.jpg dog.jpg --method deeplift --plot result.png
    """
    import onnxplain
    from onnxplain.files import PLOTS, RESULTS, check_target, write_plot, write_result

    explainer = getattr(onnxplain, METHODS[method])
    arguments = method_arguments(method, explainer, options)
    sources = [path for path in (model, *data, options["reference"]) if path]
    for path in sources:
        existing(path)
    for path, kinds in ((options["out"], RESULTS), (options["plot"], PLOTS)):
        if path:
            check_target(path, kinds, sources)
    if options["out"] and options["out"] == options["plot"]:
        raise ArgumentError("--out and --plot name the same file")

    converter, arrays, reference = load(model, data, options)
    if reference is not None:
        arguments["x_ref" if "x_ref" in parameters(explainer) else "data_ref"] = reference
    result = explainer(converter, arrays, **arguments)

    if not options["quiet"]:
        click.echo(summary(result))
    if options["out"]:
        write_result(result, options["out"])
        click.echo(f"wrote {options['out']}")
    if options["plot"]:
        write_plot(result, options["plot"], options["data_idx"])
        click.echo(f"wrote {options['plot']}")


def method_arguments(name: str, explainer: type, options: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a method; an option that it does not have is an error."""
    own = {
        "rule_name": by_key(options["rule_name"], str),
        "rule_param": by_key(options["rule_param"], number),
        "winner_takes_all": options["winner_takes_all"],
        "limit_ref": options["limit_ref"],
        "n": options["n"],
        "noise_level": options["noise_level"],
        "quadrature": options["quadrature"],
        "times_input": options["times_input"],
    }
    given = {key: value for key, value in own.items() if value is not None}
    allowed = parameters(explainer)
    reference = {"x_ref", "data_ref"} & allowed
    wrong = [key for key in given if key not in allowed]
    if options["reference"] and not reference:
        wrong.append("reference")
    if wrong:
        known = sorted((allowed & own.keys()) | ({"reference"} if reference else set()))
        raise ArgumentError(
            f"method {name} has no {flags(wrong)}; its own options are {flags(known) or 'none'}"
        )
    return given | {
        "output_idx": per_output(options["output_idx"]),
        "output_label": per_output(options["output_label"]),
        "ignore_last_act": not options["keep_last_act"],
        "channels_first": not options["channels_last"],
        "dtype": options["dtype"],
        "device": options["device"],
        "batch_size": options["batch_size"],
        "seed": options["seed"],
        "like": options["like"],
        "verbose": False if options["quiet"] else None,
    }


def parameters(explainer: type) -> set[str]:
    return set(inspect.signature(explainer).parameters)


def flags(names: Sequence[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentError(f"--rule-param: {text!r} is no number") from None


def by_key(values: Sequence[str], kind: Callable[[str], Any]) -> Any:
    """Return None, one value, or a dict from `KEY=VALUE`."""
    if not values:
        return None
    if len(values) == 1 and "=" not in values[0]:
        return kind(values[0])
    pairs = [value.rpartition("=") for value in values]
    if not all(key for key, _, _ in pairs):
        raise ArgumentError(f"{list(values)}: give one value, or KEY=VALUE each time")
    return {key: kind(value) for key, _, value in pairs}


def per_output(values: Sequence[Any]) -> Any:
    """Return None, the selection in one output, or a list with one for each output."""
    if not values:
        return None
    return values[0] if len(values) == 1 else list(values)


def load(model: Path, data: Sequence[Path], options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return the converter, the data (a list of arrays, or None) and the reference."""
    import onnxplain
    from onnxplain.files import TABLES, read_table

    names = {"output_names": options["output_names"]}
    converter = onnxplain.convert(model, **names)
    if data and data[0].suffix.lower() in TABLES:
        columns = read_table(data[0], options["columns"])[1]
        if converter.input_dim == [(len(columns),)]:  # the features are the columns
            converter = onnxplain.convert(model, input_names=columns, **names)
    arrays = read(data, converter, options) if data else None
    reference = options["reference"] and read([options["reference"]], converter, options)
    return converter, arrays, reference


def read(paths: Sequence[Path], converter: Any, options: dict[str, Any]) -> list[Any]:
    """Return the data in files, normalised, in the layout the user asked for."""
    import numpy as np

    from onnxplain.files import IMAGES, normalise, read_data

    arrays = read_data(
        paths,
        tensor_names(converter.graph.inputs),
        converter.input_dim,
        columns=options["columns"],
        resize=options["resize"],
    )
    scale, last = options["scale"], options["channels_last"]
    if paths[0].suffix.lower() in IMAGES:
        scale = 255.0 if scale is None else scale
        if not last and converter.input_dim[0][0] == arrays[0].shape[-1]:
            arrays = [np.moveaxis(arrays[0], -1, 1)]  # files have the channels last
        elif not last:
            last = True  # so has the model: nothing to move
    axis = -1 if last else 1
    return [normalise(x, scale, options["mean"], options["std"], axis) for x in arrays]


def existing(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: there is no such file")
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file")


# demo


@main.command()
@click.option("--out", type=FILE, default=".", show_default=True, help="Folder for the picture.")
def demo(out: Path) -> None:
    """Explain a few handwritten digits with four methods."""
    from onnxplain.demo import run

    run(out, click.echo)
