"""The package as it is installed: cheap to import, complete, its examples true."""

import doctest
import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.util import find_spec

import pytest

import onnxplain

HEAVY = [
    "pandas", "matplotlib", "xarray", "torch", "tensorflow", "keras", "cupy", "sklearn", "plotly",
    "dask", "pyarrow", "PIL", "onnxruntime", "captum", "scipy.stats",
]  # fmt: skip


def python(code: str) -> str:
    """Run code in a clean process and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """The modules that `import onnxplain` brings along."""
    return set(python("import sys, onnxplain; print(*sys.modules)").split())


@pytest.mark.parametrize("package", HEAVY)
def test_import_does_not_bring_heavy_packages(loaded, package):
    assert "onnxplain" in loaded
    assert package not in loaded


def test_import_brings_nothing_but_numpy_and_onnx():
    code = (
        "import sys, numpy, onnx; before = set(sys.modules); import onnxplain; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    packages = set(python(code).split()) - sys.stdlib_module_names
    assert packages <= {"onnxplain", "numpy", "onnx"}


def test_help_does_not_load_the_heavy_packages():
    code = (
        "import sys; from onnxplain.cli import main; main(['--help'], standalone_mode=False); "
        "print('LOADED', *sys.modules)"
    )
    out = python(code)
    assert "inspect" in out
    assert not set(HEAVY) & set(out.partition("LOADED")[2].split())


@pytest.mark.parametrize("name", ["py.typed", "demo/digits.onnx", "demo/digits.npz"])
def test_data_files_are_shipped(name):
    assert files("onnxplain").joinpath(name).is_file()


def test_every_public_name_exists():
    missing = [name for name in onnxplain.__all__ if not hasattr(onnxplain, name)]
    assert not missing


def test_converters_are_importable_beside_the_package():
    assert importlib.import_module("onnxplain_converters").__doc__


def test_every_declared_converter_is_shipped():
    declared = entry_points(group="onnxplain.converters")
    missing = [entry.name for entry in declared if find_spec(entry.module) is None]
    assert not missing


MODULES = [
    module.name
    for module in pkgutil.walk_packages(onnxplain.__path__, "onnxplain.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", ["onnxplain", *MODULES])
def test_examples_in_docstrings_are_true(name):
    if name in ("onnxplain.cpu_loops", "onnxplain.cpu_winograd"):
        pytest.importorskip("numba")
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    outcome = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert outcome.failed == 0, f"{outcome.failed} of {outcome.attempted} examples differ"
