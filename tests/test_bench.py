"""The benchmark's modes that need no other library, and the limits of a row."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def bench(tmp_path, *arguments):
    """Run the benchmark; return its only table and what it printed."""
    file = tmp_path / "table.json"
    command = [sys.executable, "-m", "bench", "--threads", "1", "--json", str(file), *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout
    (table,) = json.loads(file.read_text())["tables"]
    return table, done.stdout


def test_growth_measures_rows_and_outputs_in_processes_of_their_own(tmp_path):
    table, printed = bench(tmp_path, "--growth", "--most", "100")
    points = table["growth"]
    assert [p["size"] for p in points] == [100, 100, 100, 100, 1, 10, 100]
    assert {p["results"] for p in points} == {"memory", ".npy files"}
    assert all(p["seconds"] > 0 and p["peak"] > 10**7 for p in points)
    assert printed.count("slope of log time over log outputs") == 1


def test_a_profile_names_functions_by_their_own_time(tmp_path):
    _, printed = bench(tmp_path, "--quick", "--profile", "gradient tabular", "--no-compiled")
    times = [
        float(line.split()[0]) for line in printed.splitlines() if " ms " in line and "x" in line
    ]
    assert printed.count("total") == 1
    assert times[1:] == sorted(times[1:], reverse=True)
    assert "no compiled kernels" in printed


@pytest.mark.oracle
def test_a_row_has_ratios_peaks_and_the_least_time_it_needs(tmp_path):
    pytest.importorskip("torch")
    table, printed = bench(
        tmp_path, "--quick", "--rows", "^forward", "--limits", "--core", "Haswell"
    )
    (row,) = table["rows"]
    assert row["ratio"]["torch"] == row["seconds"]["torch"] / row["seconds"]["onnxplain"]
    assert row["peak_reached"]["torch"] == (row["peak_ratio"]["torch"] <= 0.7)
    weights = 30 * 64 + 64 * 64 + 64 * 3
    assert row["limit"]["flop"] == 2 * 64 * weights
    assert row["limit"]["bytes"] == 4 * (weights + 64 * (30 + 64 + 64 + 3))
    assert table["setting"]["core"] == "Haswell"
    assert "GFLOP/s" in printed


@pytest.mark.parametrize(
    ("double", "told", "good"),
    [
        ({"captum": 1e-14, "shap": 1e-13}, "the answers agree: deviation captum 1e-14", True),
        ({"captum": 1e-14, "shap": 1e-3}, "the answers DISAGREE", False),
        ({"shap": 1e-13}, "captum DISAGREES in float32; in float64 it gave no answer", False),
    ],
)
def test_answers_that_differ_in_float32_are_judged_in_float64(monkeypatch, double, told, good):
    monkeypatch.syspath_prepend(ROOT)
    measure, table = (importlib.import_module(f"bench.{name}") for name in ("measure", "table"))
    result = {
        "differs": {},
        "deviation": {"captum": 2e-3, "shap": 2e-3},
        "deviation_double": double,
        "errors": {},
    }
    assert any(told in remark for remark in table._remarks(result))
    assert measure.agrees(result) == good
