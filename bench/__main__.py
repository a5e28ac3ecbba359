"""Times onnxplain and its peers side by side and compares their answers.

One process per library, asked in turn, never two at once. Ratios are peer time / our time: above 1
onnxplain is faster. The table says for every ratio and every peak of memory whether its goal is
reached. Exits with 1 if answers disagree; goals that are not reached change nothing.

  python -m bench                          the whole table, about an hour
  python -m bench --small --seconds 2      without VGG-16, ResNet-50 and MobileNet
  python -m bench --rows "deeplift.*cnn"   rows that match
  python -m bench --core installed best    twice: OpenBLAS as installed, with AVX-512 where it can
  python -m bench --no-compiled            without compiled kernels, by NumPy alone
  python -m bench --limits                 with the least time that this machine needs for a row
  python -m bench --profile "cnn"          where our time goes
  python -m bench --footprint              import time, installed size
  python -m bench --growth                 time and memory over rows and outputs
  python -m bench --quick                  a smoke run: is all of this alive, do answers agree?
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import footprint, growth, profiling, table
from .crew import AS_INSTALLED, Crew, Setting
from .limits import limit
from .machine import best_core, machine
from .measure import OURS, Result, agrees, measure
from .rows import QUICK, ROWS, Row

QUICK_SECONDS = 0.5
_QUICK_HELP = "small rows in processes that stay, so peaks are not the rows'; peers must not fail"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--quick", action="store_true", help=_QUICK_HELP)
    made.add_argument("--rows", default="", metavar="PATTERN", help="only rows that match")
    made.add_argument("--small", action="store_true", help="without the large image networks")
    made.add_argument("--threads", type=int, default=2, help="of every library (default 2)")
    made.add_argument(
        "--seconds",
        type=float,
        default=10,
        help="to spend on a row, about; a peer that takes longer for one run is run once",
    )
    made.add_argument(
        "--patience", type=float, default=900, help="seconds after which a work is given up"
    )
    made.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor time, for one thread on a machine that others use too",
    )
    made.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: all libraries on the same GPU, in true float32; peaks are of its memory",
    )
    made.add_argument(
        "--core",
        nargs="+",
        default=[AS_INSTALLED],
        metavar="TYPE",
        help="processors that OpenBLAS takes this one for, such as Haswell or SkylakeX, one table "
        "each; installed: what it finds itself (default); best: SkylakeX where AVX-512 lies idle",
    )
    made.add_argument("--no-compiled", action="store_true", help="no compiled kernels of ours")
    made.add_argument(
        "--limits",
        action="store_true",
        help="add the time of each row's products and memory traffic at measured peaks; Winograd's "
        "algorithm needs fewer products than counted",
    )
    made.add_argument("--json", metavar="FILE", help="store what is measured")
    mode = made.add_mutually_exclusive_group()
    mode.add_argument("--profile", metavar="PATTERN", help="profile our side of rows that match")
    mode.add_argument("--footprint", action="store_true", help="import time and installed size")
    mode.add_argument("--growth", action="store_true", help="time and memory over sizes")
    made.add_argument(
        "--most", type=int, default=growth.MOST_ROWS, help="largest size of --growth (default 10^6)"
    )
    return made


def main() -> int:
    parsing = parser()
    options = parsing.parse_args()
    if options.device != "cpu" and (reason := _unusable(options.device)):
        print(f"nothing is measured on {options.device}: {reason}")
        return 0
    if options.device != "cpu" and options.limits:
        parsing.error("--limits knows the peaks of processors only")
    rows = _chosen(options)
    if not rows:
        parsing.error(f"no row matches {options.profile or options.rows!r}")
    tables = [_table(rows, setting, options) for setting in _settings(options)]
    if options.json:
        Path(options.json).write_text(json.dumps({"tables": tables}, indent=1))
    return 0 if all(found["good"] for found in tables) else 1


def _unusable(device: str) -> str:
    check = [sys.executable, "-m", "bench.worker", "usable", "0", device]
    found = subprocess.run(check, stderr=subprocess.PIPE, text=True)
    return found.stderr.strip() if found.returncode else ""


def _chosen(options: argparse.Namespace) -> list[Row]:
    rows = [
        row
        for row in (QUICK if options.quick else ROWS)
        if re.search(options.profile or options.rows, row.name)
        and not (options.small and row.large)
    ]
    if options.device == "cpu":
        return rows
    return [replace(row, peers=dict.fromkeys(row.peers)) for row in rows]  # goals are for the CPU


def _settings(options: argparse.Namespace) -> list[Setting]:
    """Return one setting per core type."""
    cores = [best_core() if core == "best" else core for core in options.core]
    threads = 1 if options.profile else options.threads
    one = Setting(
        threads=threads,
        device=options.device,
        compiled=not options.no_compiled,
        patience=options.patience,
    )
    return [replace(one, core=core) for core in dict.fromkeys(cores)]


def _table(rows: list[Row], setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """Measure what is asked for with one setting; return what --json stores of it."""
    crew = Crew(setting, keep=options.quick)
    alone = options.profile or options.footprint or options.growth
    libraries = dict.fromkeys([OURS, *(peer for row in rows for peer in row.peers)])
    known = {library: _introduced(crew, library) for library in ([OURS] if alone else libraries)}
    about = {"machine": machine(), "setting": asdict(setting) | {"clock": options.clock}}
    about["libraries"] = known
    print(*table.header(about), sep="\n", flush=True)
    try:
        return about | _measured(rows, crew, options)
    finally:
        crew.dismiss()


def _introduced(crew: Crew, library: str) -> dict[str, Any]:
    known = crew.about(library)
    if not crew.keep:
        crew.dismiss()
    return known


def _measured(rows: list[Row], crew: Crew, options: argparse.Namespace) -> dict[str, Any]:
    if options.footprint:
        return {"footprint": footprint.show(crew.setting), "good": True}
    if options.growth:
        return {"growth": growth.show(crew.setting, options.most), "good": True}
    with tempfile.TemporaryDirectory() as folder:
        if options.profile:
            return {"good": profiling.show(rows, crew, Path(folder))}
        found = list(_results(rows, crew, Path(folder), options))
    if not options.quick:
        print(*table.totals(found), sep="\n")
    good = all(map(agrees, found)) and not (options.quick and any(r["errors"] for r in found))
    return {"rows": found, "good": good}


def _results(
    rows: list[Row], crew: Crew, folder: Path, options: argparse.Namespace
) -> Iterable[Result]:
    """Measure rows and print them."""
    peak = _speed(crew) if options.limits else None
    print(table.LEGEND, table.HEAD, sep="\n")
    seconds = QUICK_SECONDS if options.quick else options.seconds
    for row in rows:
        found = measure(row, crew, folder, seconds, options.clock)
        if peak and OURS in found["seconds"]:
            found["limit"] = limit(row, peak, found["seconds"][OURS])
        print(*table.lines(found), sep="\n", flush=True)
        if not crew.keep:
            crew.dismiss()
        yield found


def _speed(crew: Crew) -> dict[str, float]:
    """Return measured peaks of the machine."""
    peak = crew.ask(OURS, speed=crew.setting.threads)
    crew.dismiss(OURS)
    print(
        f"peaks of {crew.setting.threads} threads: {peak['flop'] / 1e9:.0f} GFLOP/s (sgemm), "
        f"{peak['bytes'] / 1e9:.1f} GB/s (copy, read and written)"
    )
    return peak


if __name__ == "__main__":
    sys.exit(main())
