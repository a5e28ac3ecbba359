"""Fixtures that several test files use."""

import os
import sys
from pathlib import Path

import pytest

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib: no test opens a window

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of models and reference numbers beside the repository."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder 'shared' beside the repository {ROOT.name!r}")
    return folder


@pytest.fixture(autouse=True)
def close_figures():
    """Close what a test drew, so that figures do not pile up."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")
