"""The command line: `onnxplain inspect`, `explain`, `report`, `show`, `plot`, `demo`."""

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from onnxplain.errors import ArgumentError, DataError, OnnxplainError, listed

# Whatever is large (the engine, pandas, matplotlib) is imported inside the commands: help is quick.

METHODS = {
    "grad": "Gradient",
    "smoothgrad": "SmoothGrad",
    "intgrad": "IntegratedGradient",
    "expgrad": "ExpectedGradient",
    "lrp": "LRP",
    "deeplift": "DeepLift",
    "deepshap": "DeepSHAP",
    "cw": "ConnectionWeights",
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "guided": "GuidedBackprop",
    "deconvnet": "Deconvnet",
}
AGNOSTIC = {"lime": "LIME", "shap": "SHAP"}  # no node is walked through: nothing to inspect

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


def node(text: str) -> Any:
    """Return the index of a node, or what stands for nodes ("top1", "predicted")."""
    return text if text.startswith("top") or text == "predicted" else int(text)


NODES = Numbers(node, "I,J,...")
INDICES, FLOATS, WORDS = Numbers(int, "I,J,..."), Numbers(float, "A,B,..."), Numbers(str, "A,B,...")
FILE = click.Path(path_type=Path)
INPUT_DIM = click.option(
    "--input-dim",
    type=INDICES,
    multiple=True,
    help="Shape without batch axis where the model leaves it open; once for each input.",
)
INPUTS = click.option(
    "--inputs", type=WORDS, help="Tensors to attribute to in models of tokens: their embedding."
)
OUTPUTS = click.option(
    "--outputs", type=WORDS, help="Tensors of the graph to explain, not the model's outputs."
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="onnxplain", prog_name="onnxplain")
def main() -> None:
    """Explain the predictions of a neural network stored as ONNX."""


# inspect


@main.command("inspect")
@click.argument("model", type=FILE)
@click.option("--method", type=click.Choice(list(METHODS)), help="Show how each node is treated.")
@INPUT_DIM
@OUTPUTS
@INPUTS
def inspect_model(
    model: Path,
    method: str | None,
    input_dim: tuple,
    outputs: list[str] | None,
    inputs: list[str] | None,
) -> None:
    """Show what MODEL consists of and which methods can explain it."""
    from onnxplain.converter import Converter
    from onnxplain.graph.load import read_model

    existing(model)
    raw = read_model(model)
    click.echo(describe_file(model, raw))
    converter = Converter(raw, shapes(input_dim), outputs=outputs, inputs=inputs)
    click.echo(describe_joined(converter.graph))
    if method:
        click.echo(coverage_table(converter.coverage(METHODS[method])))
    else:
        click.echo(coverage_summary({name: converter.coverage(METHODS[name]) for name in METHODS}))


def describe_file(path: Path, raw: Any) -> str:
    """Return what a model file holds: opset, inputs, outputs and operators."""
    opset = raw.opsets.get("", "?")
    lines = [f"{path}: opset {opset}, {len(raw.nodes)} nodes"]
    for title, specs in (("inputs", raw.inputs), ("outputs", raw.outputs)):
        lines += ["", title, *(f"  {spec.name}: {spec.dtype} {axes(spec.shape)}" for spec in specs)]
    counts = Counter(node.op for node in raw.nodes).most_common()
    return "\n".join([*lines, "", "operators", "  " + ", ".join(f"{n} {op}" for op, n in counts)])


def axes(shape: Sequence[Any] | None) -> str:
    """Return a shape with a star for an open batch axis."""
    if shape is None:
        return "of unknown shape"
    sizes = ["?" if size is None else str(size) for size in shape]
    if sizes and not isinstance(shape[0], int):
        sizes[0] = "*"
    return f"({', '.join(sizes)})"


def describe_joined(graph: Any) -> str:
    """Return which nodes of the file were joined to one."""
    joined = [node for node in graph.nodes if len(node.joined) > 1]
    if not joined:
        return "\njoined when loaded\n  nothing"
    lines = [f"  {node.name} ({node.op}): {' + '.join(node.joined)}" for node in joined]
    if len(lines) > ROWS_SHOWN:
        lines[ROWS_SHOWN:] = [f"  ... and {len(lines) - ROWS_SHOWN} more"]
    return "\n".join(["", "joined when loaded", *lines])


def coverage_table(coverage: Any) -> str:
    """Return how a method treats each node."""
    shown = coverage[["node", "op", "family", "rule", "exact", "remark"]].copy()
    shown["exact"] = ["yes" if exact else "no" for exact in shown["exact"]]
    shown["rule"] = shown["rule"].replace("", "NO RULE")
    widths = [max(map(len, [title, *map(str, shown[title])])) for title in shown]
    rows = [shown.columns, *shown.itertuples(index=False)]
    cells = (zip(map(str, row), widths, strict=True) for row in rows)
    return "\n" + "\n".join("  ".join(f"{t:{w}}" for t, w in row).rstrip() for row in cells)


def coverage_summary(coverages: dict[str, Any]) -> str:
    """Return the number of nodes that each method covers, and name those that it does not."""
    lines = ["", f"{'method':12}{'nodes':>7}{'exact':>7}{'inexact':>9}{'no rule':>9}"]
    # The methods under which the same is said of the same nodes.
    found: dict[tuple[str, str, str, tuple[str, ...]], list[str]] = {}
    for method, table in coverages.items():
        lacking = table["rule"] == ""
        inexact = ~table["exact"].astype(bool) & ~lacking
        counts = len(table) - inexact.sum() - lacking.sum(), inexact.sum(), lacking.sum()
        lines.append(f"{method:12}{len(table):7}{counts[0]:7}{counts[1]:9}{counts[2]:9}")
        for title, nodes in (("inexact", table[inexact]), ("no rule", table[lacking])):
            for (op, remark), group in nodes.groupby(["op", "remark"], sort=False):
                found.setdefault((title, op, remark, tuple(group.node)), []).append(method)
    remarks = [remark_line(*what, methods) for what, methods in found.items()]
    return "\n".join([*lines, *([""] if remarks else []), *remarks])


def remark_line(title: str, op: str, remark: str, nodes: Sequence[str], methods: list[str]) -> str:
    """Return what is said of nodes of one operator."""
    names = listed(nodes, ROWS_SHOWN, 60)
    what = f"{names} ({op})" if len(nodes) == 1 else f"{len(nodes)} {op} nodes"
    line = f"{title} ({', '.join(methods)}): {what}: {remark}".rstrip(": ")
    return line if len(nodes) == 1 else f"{line}\n  {names}"


# explain


EXPLAIN_OPTIONS = [
    click.option("--method", type=click.Choice([*METHODS, *AGNOSTIC]), required=True),
    click.option(
        "--out",
        type=FILE,
        help="Write the result: .npz, .csv, .parquet or .nc; batch by batch a folder of .npy files "
        "(a name without ending) or .zarr.",
    ),
    click.option("--plot", type=FILE, help="Draw the result: .png, .pdf, .svg, .jpg or .html."),
    click.option("--data-idx", type=INDICES, default="0", help="Rows to draw; 0 is the first."),
]
REPORT_OPTIONS = [
    click.option("-o", "--out", type=FILE, default="report.html", show_default=True, help="Page."),
    click.option(
        "--method",
        "methods",
        type=click.Choice([*METHODS, *AGNOSTIC]),
        multiple=True,
        default=["lrp"],
        show_default=True,
        help="Once for each method; options are for those that have them.",
    ),
    click.option(
        "--instances", type=int, default=10, show_default=True, help="Rows shown one by one."
    ),
    click.option("--title", default="", help="Heading of the page."),
]


def explain_options(command: Callable, own: Sequence[Callable]) -> Callable:
    """Add the options of a command that explains, in the order in which help lists them."""
    options = [
        *own,
        # what is explained
        OUTPUTS,
        INPUTS,
        click.option(
            "--output-idx",
            type=NODES,
            multiple=True,
            help="Output nodes to explain (or top1, top3, ..., predicted); once for each output of "
            "the model, '-' for none of it.",
        ),
        click.option(
            "--output-label", type=WORDS, multiple=True, help="The same by the names of the nodes."
        ),
        click.option("--output-names", type=WORDS, help="Names for the nodes of the output."),
        click.option("--layer", type=WORDS, help="Tensors of the graph to attribute to."),
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
        click.option("--limit-ref", type=int, help="References used at most (deepshap, shap)."),
        click.option("--n-permutations", type=int, help="Changed rows (lime) or orders (shap)."),
        click.option("--n", type=int, help="Samples or steps (smoothgrad, intgrad, expgrad)."),
        click.option("--noise-level", type=float, help="Noise of smoothgrad."),
        click.option("--quadrature", help="Integration rule of intgrad."),
        click.option("--times-input/--not-times-input", default=None),
        click.option("--relu/--no-relu", default=None, help="Positive values only (gradcam)."),
        click.option("--upsample/--no-upsample", default=None, help="Maps of the input's size."),
        click.option("--guided", is_flag=True, default=None, help="Guided Grad-CAM."),
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
        INPUT_DIM,
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
@partial(explain_options, own=EXPLAIN_OPTIONS)
def explain(model: Path, data: tuple[Path, ...], method: str, **options: Any) -> None:
    """Explain what MODEL predicts for DATA.

    DATA is a .npy array, an .npz file with one array named like each input, a .csv or .parquet
    table with one row per instance, or one or more images.

    \b
    onnxplain explain model.onnx table.csv --method lrp --rule-name epsilon --out result.csv
    onnxplain explain model.onnx cat.jpg dog.jpg --method deeplift --plot result.png
    """
    import onnxplain
    from onnxplain.files import PLOTS, RESULTS, STREAMED, check_target, write_plot, write_result

    explainer = getattr(onnxplain, (METHODS | AGNOSTIC)[method])
    arguments = method_arguments(method, explainer, options)
    sources = [path for path in (model, *data, options["reference"]) if path]
    for path in sources:
        existing(path)
    streamed = options["out"] and options["out"].suffix.lower() in STREAMED - RESULTS
    for path, kinds in ((options["out"], RESULTS), (options["plot"], PLOTS)):
        if path and not (streamed and path is options["out"]):
            check_target(path, kinds, sources)
    if options["out"] and options["out"] == options["plot"]:
        raise ArgumentError("--out and --plot name the same file")

    converter, arrays, reference = load(model, data, options)
    if reference is not None:
        arguments["x_ref" if "x_ref" in parameters(explainer) else "data_ref"] = reference
    if streamed:
        explain_into(options, explainer, converter, arrays, arguments)
        return
    result = explainer(converter, arrays, **arguments)

    if not options["quiet"]:
        click.echo(summary(result))
    if options["out"]:
        write_result(result, options["out"])
        click.echo(f"wrote {options['out']}")
    if options["plot"]:
        write_plot(result, options["plot"], options["data_idx"], **selection(arguments, result))
        click.echo(f"wrote {options['plot']}")


def explain_into(
    options: dict[str, Any], explainer: Any, converter: Any, arrays: Any, arguments: dict[str, Any]
) -> None:
    """Write the result batch by batch into a folder, or go on with that; draw rows of it."""
    from onnxplain.files import write_plot
    from onnxplain.streaming import explain_to

    result = explain_to(options["out"], explainer, converter, arrays, **arguments)
    if not options["quiet"]:
        click.echo(result)
    click.echo(f"wrote {options['out']}")
    if options["plot"]:
        rows = result[options["data_idx"]]
        write_plot(
            rows, options["plot"], range(len(rows.result[0][0])), **selection(arguments, rows)
        )
        click.echo(f"wrote {options['plot']}")


def summary(result: Any) -> str:
    """Return, for the first rows, what was predicted and whether its explanation adds up."""
    from onnxplain.results import decomposition, output_labels, predictions, selected_outputs

    blocks = []
    for s, j in enumerate(selected_outputs(result)):
        pred, labels = predictions(result, s), output_labels(result, j)
        # A plain gradient is not meant to add up to anything.
        adds_up = result.value_name != "Gradient"
        total = decomposition(result, s, "decomp_sum") if adds_up else None
        goal = decomposition(result, s, "decomp_goal") if adds_up else None
        title = f"{result.method_name}: {len(labels)} nodes of output {j + 1} explained"
        if pred is None:
            blocks.append(title)
            continue
        best = pred.argmax(1)
        lines = [title + "; the likeliest of each row:", TABLE_HEAD]
        for row, node in list(enumerate(best))[:ROWS_SHOWN]:
            values = [None if x is None else x[row, node] for x in (pred, total, goal)]
            gap = None if goal is None or total is None else abs(values[1] - values[2])
            cells = [*(cell(value, "g") for value in values), cell(gap, ".1e")]
            lines.append(f"data_{row + 1:<7}{labels[node]:16.16}" + "".join(cells))
        if len(pred) > ROWS_SHOWN:
            lines.append(f"... and {len(pred) - ROWS_SHOWN} rows more")
        if goal is not None and total is not None:
            lines.append(f"largest gap of all rows and nodes: {abs(total - goal).max():.1e}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


TABLE_HEAD = f"{'row':12}{'node':16}" + "".join(f"{x:>13}" for x in ("pred", "sum", "goal", "gap"))


def cell(value: Any, kind: str) -> str:
    return f"{'-' if value is None else format(float(value), kind):>13}"


def selection(arguments: dict[str, Any], result: Any) -> dict[str, Any]:
    """Return which nodes to draw: all that were asked for, else the first."""
    asked = arguments["output_idx"] or arguments["output_label"]
    return {"output_idx": result.output_idx} if asked else {}


def method_arguments(name: str, explainer: type, options: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a method; an option that it does not have is an error."""
    own = own_options(options)
    given = {key: value for key, value in own.items() if value is not None}
    allowed = parameters(explainer)
    reference = {"x_ref", "data_ref"} & allowed
    wrong = [key for key in given if key not in allowed]
    if options["reference"] and not reference:
        wrong.append("reference")
    wrong += [key for key in ("like", "layer") if options[key] and key not in allowed]
    if wrong:
        known = sorted((allowed & own.keys()) | ({"reference"} if reference else set()))
        raise ArgumentError(
            f"method {name} has no {flags(wrong)}; its own options are {flags(known) or 'none'}"
        )
    common = {
        "output_idx": per_output(options["output_idx"]),
        "output_label": per_output(options["output_label"]),
        "ignore_last_act": not options["keep_last_act"] and name not in AGNOSTIC,
        "channels_first": not options["channels_last"],
        "dtype": options["dtype"],
        "device": options["device"],
        "batch_size": options["batch_size"],
        "seed": options["seed"],
        "like": options["like"],
        "layer": options["layer"],
        "verbose": False if options["quiet"] else None,
    }
    return given | {key: value for key, value in common.items() if key in allowed}


def own_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that only some methods have, None where they are not given."""
    return {
        "rule_name": by_key(options["rule_name"], str),
        "rule_param": by_key(options["rule_param"], number),
        "winner_takes_all": options["winner_takes_all"],
        "limit_ref": options["limit_ref"],
        "n_permutations": options["n_permutations"],
        "n": options["n"],
        "noise_level": options["noise_level"],
        "quadrature": options["quadrature"],
        "times_input": options["times_input"],
        "relu": options["relu"],
        "upsample": options["upsample"],
        "guided": options["guided"],
    }


def parameters(explainer: type) -> set[str]:
    return set(inspect.signature(explainer).parameters)


def flags(names: Iterable[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in sorted(names))


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

    known = {
        "input_dim": shapes(options["input_dim"]),
        "output_names": options["output_names"],
        "outputs": options["outputs"],
        "inputs": options["inputs"],
    }
    converter = onnxplain.convert(model, **known)
    if data and data[0].suffix.lower() in TABLES:
        columns = read_table(data[0], options["columns"])[1]
        if converter.input_dim == [(len(columns),)]:  # the features are the columns
            converter = onnxplain.convert(model, input_names=columns, **known)
    arrays = read(data, converter, options) if data else None
    reference = options["reference"] and read([options["reference"]], converter, options)
    return converter, arrays, reference


def read(paths: Sequence[Path], converter: Any, options: dict[str, Any]) -> list[Any]:
    """Return the data in files, normalised, in the layout the user asked for."""
    import numpy as np

    from onnxplain.files import IMAGES, normalise, read_data

    arrays = read_data(
        paths,
        [spec.name for spec in converter.graph.inputs],
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


def shapes(values: Sequence[Any]) -> list[tuple] | None:
    return [tuple(value or ()) for value in values] or None


def existing(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: there is no such file")
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file")


# report


@main.command("report")
@click.argument("model", type=FILE)
@click.argument("data", type=FILE, nargs=-1, required=True)
@partial(explain_options, own=REPORT_OPTIONS)
def write_report(
    model: Path,
    data: tuple[Path, ...],
    out: Path,
    methods: tuple[str, ...],
    instances: int,
    title: str,
    **options: Any,
) -> None:
    """Explain what MODEL predicts for DATA on one page of interactive plots.

    DATA is read as for `explain`. The page works offline: it shows single rows and all of them by
    every method, predictions, whether the values add up, the model, and how to get the same again.

    \b
    onnxplain report model.onnx table.csv -o report.html --method lrp --method deeplift
    """
    from onnxplain.report import check_page, report

    sources = [path for path in (model, *data, options["reference"]) if path]
    for path in sources:
        existing(path)
    check_page(out, sources)
    arguments = report_arguments(methods, options)
    converter, arrays, reference = load(model, data, options)
    if reference is not None:
        arguments |= references(methods, reference)
    about = {"instances": instances, "title": title, "model_name": str(model)}
    report(converter, arrays, methods, out, **about, **arguments)
    click.echo(f"wrote {out}")


def report_arguments(methods: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of all methods; an option that none of them has is an error."""
    given = {key for key, value in own_options(options).items() if value is not None}
    given |= {key for key in ("like", "layer", "reference") if options[key]}
    found, used = {}, set()
    for name in methods:
        explainer = explainer_of(name)
        known = parameters(explainer)
        known |= {"reference"} if {"x_ref", "data_ref"} & known else set()
        used |= given & known
        found |= method_arguments(name, explainer, options | dict.fromkeys(given - known))
    if given - used:
        raise ArgumentError(f"none of the methods {', '.join(methods)} has {flags(given - used)}")
    return {key: value for key, value in found.items() if value is not None}


def references(methods: Sequence[str], reference: Any) -> dict[str, Any]:
    known = set().union(*(parameters(explainer_of(name)) for name in methods))
    return dict.fromkeys({"x_ref", "data_ref"} & known, reference)


def explainer_of(name: str) -> Any:
    import onnxplain

    return getattr(onnxplain, (METHODS | AGNOSTIC)[name])


# results in files


@main.command()
@click.argument("result", type=FILE)
def show(result: Path) -> None:
    """Show what RESULT holds, an .npz file that `explain --out` wrote, and how it was made."""
    from onnxplain.storage import load

    method = load(result)
    click.echo(repr(method))
    told = method.provenance
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    arguments = ", ".join(f"{name}={text}" for name, text in told["arguments"].items())
    for title, text in (
        ("created", told["created"]),
        ("with", versions),
        ("model", told["model_hash"] or "a function"),
        ("seed", told["seed"]),
        ("arguments", arguments),
    ):
        click.echo(f"{title + ':':11}{text}")
    click.echo(f"\n{summary(method)}")


@main.command("plot")
@click.argument("result", type=FILE)
@click.argument("picture", type=FILE)
@click.option("--data-idx", type=INDICES, default="0", help="Rows to draw; 0 is the first.")
@click.option("--output-label", type=WORDS, help="Nodes to draw, by name; else the first.")
def plot_result(result: Path, picture: Path, **choice: Any) -> None:
    """Draw RESULT, an .npz file that `explain --out` wrote, as PICTURE (.png, .svg, .html, ...)."""
    from onnxplain.files import PLOTS, check_target, write_plot
    from onnxplain.storage import load

    check_target(picture, PLOTS, [result])
    write_plot(load(result), picture, **choice)
    click.echo(f"wrote {picture}")


# demo


@main.command()
@click.option("--out", type=FILE, default=".", show_default=True, help="Folder for the picture.")
def demo(out: Path) -> None:
    """Explain a few handwritten digits with four methods."""
    from onnxplain.demo import run

    run(out, click.echo)
