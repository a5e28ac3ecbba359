"""Draw the pictures of the README and of docs/plots.md: python -m bench.pictures

docs/plots.md is run from top to bottom; what the last line of a piece of code gives is drawn into
the picture that follows it. The pictures that tests compare with are made by tests/images/make.py.
"""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxplain.demo import explain
from onnxplain.demo.picture import draw
from onnxplain.plots import Figure

DOCS = Path(__file__).resolve().parents[1] / "docs"
PIECE = re.compile(r"```python\n(.*?)```\n+(?:!\[[^\]]*\]\((images/[\w-]+\.png)\))?", re.DOTALL)
WIDTH = 1200  # pixels; the dots per inch are 90 up to it


def main() -> None:
    images, _, results = explain()
    write(draw(images, results).savefig, DOCS / "images" / "demo.png", dpi=80)
    names: dict[str, Any] = {}
    for code, path in PIECE.findall((DOCS / "plots.md").read_text("utf-8")):
        last = run(code, names)
        if path:
            ours = isinstance(last, Figure)
            width = (last.figure if ours else last).get_figwidth()
            write(last.save if ours else last.savefig, DOCS / path, dpi=min(90, WIDTH / width))


def run(code: str, names: dict[str, Any]) -> Any:
    """Run statements and return the value of the last one, an expression."""
    *statements, last = ast.parse(code).body
    exec(compile(ast.Module(statements, []), "docs/plots.md", "exec"), names)
    return eval(compile(ast.Expression(last.value), "docs/plots.md", "eval"), names)


def write(save: Callable[..., None], path: Path, dpi: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, dpi=dpi)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
