"""Fixtures that several test files use."""

import os
import sys
from pathlib import Path

import pytest

# Before NumPy is loaded: small products wait longer for a second thread than they take.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib: no test opens a window

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of models and reference numbers beside the repository."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder 'shared' beside the repository {ROOT.name!r}")
    return folder


def pytest_report_header():
    """Say which way convolutions go."""
    from onnxplain import cpu_kernels

    return f"convolutions: {'compiled by Numba' if cpu_kernels.wanted() else 'NumPy'}"


@pytest.fixture(autouse=True)
def close_figures():
    """Close what a test drew, so that figures do not pile up."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


def pytest_terminal_summary(terminalreporter):
    """Say how many of ONNX's own node cases pass, by tier, and how many are known gaps."""
    cases = next((m for name, m in sys.modules.items() if name.endswith("test_node_cases")), None)
    if cases is None:
        return
    stats = terminalreporter.stats
    found = {
        outcome: [
            report.nodeid.partition("::test_node_case[")[2].rstrip("]")
            for report in stats.get(outcome, [])
            if "::test_node_case[" in report.nodeid
        ]
        for outcome in ("passed", "xfailed", "failed")
    }
    if any(found.values()):
        count = {outcome: len(names) for outcome, names in found.items()}
        others = len(cases.all_cases()) - len(cases.NAMES)
        terminalreporter.write_line(
            f"ONNX node cases: {count['passed']} passed, {count['xfailed']} known gaps, "
            f"{count['failed']} failed, {others} of operators without a kernel"
        )
        for line in cases.by_tier(found["passed"]):
            terminalreporter.write_line(line)
