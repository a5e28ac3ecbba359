"""Draw the pictures of the README: python -m bench.pictures"""

from pathlib import Path

from onnxplain.demo import explain
from onnxplain.demo.picture import draw

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"


def main() -> None:
    images, _, results = explain()
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "demo.png"
    draw(images, results).savefig(path, dpi=80)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
