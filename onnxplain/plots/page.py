"""Pages that hold all they need: plotly.js, what it draws, and the controls beside it."""

from __future__ import annotations

import json
import os
from functools import cache
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from ..errors import ArgumentError
from .plotly import LOOKS, SCALES


def plot_page(figure: dict[str, Any], theme: str | None = None) -> str:
    """A page with a single plot."""
    return _filled(
        "plot.html",
        title="onnxplain",
        theme=escape(theme or ""),
        style=asset("page.css"),
        scripts=scripts(),
        figure=as_json(figure),
    )


def scripts() -> str:
    """What a page needs to draw figures: plotly.js with its licence notice, and the controls."""
    looks = as_json({"looks": LOOKS, "scales": ["Default", *SCALES]})
    return (
        f"<script>{_plotlyjs()}</script>\n"
        f'<script type="application/json" id="looks">{looks}</script>\n'
        f"<script>{asset('draw.js')}</script>"
    )


@cache
def _plotlyjs() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def asset(name: str) -> str:
    """A file of the folder of templates."""
    return (files("onnxplain") / "templates" / name).read_text("utf-8")


def _filled(template: str, **parts: str) -> str:
    return Template(asset(template)).substitute(parts)


def as_json(value: Any) -> str:
    """JSON that cannot end the script element around it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def write_page(path: str | os.PathLike[str], text: str) -> None:
    """Write a page, or say why it cannot be written."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ArgumentError(
            f"{os.fspath(path)} cannot be written: {error.strerror or error}"
        ) from error
