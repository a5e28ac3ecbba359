"""Where our time goes: functions by their own time, in one thread."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .crew import Crew
from .measure import OURS, Bench
from .rows import Row

TOP = 15


def own_times(work: Callable[[], Any], top: int) -> list[list[Any]]:
    """Return seconds, calls and names of the functions that take most, most first."""
    profile = cProfile.Profile()
    profile.runcall(work)
    found = pstats.Stats(profile).stats.items()  # (cc, calls, own, ...) by (file, line, function)
    ranked = sorted(found, key=lambda item: -item[1][2])[:top]
    total = sum(values[2] for _, values in found)
    rows = [[values[2], values[1], _name(*where)] for where, values in ranked]
    return [[total, 1, "total"], *rows]


def _name(file: str, line: int, function: str) -> str:
    return f"{Path(file).name}:{line} {function}" if line else function


def show(rows: Iterable[Row], crew: Crew, folder: Path) -> bool:
    """Print where the time of our side of rows goes; tell whether all could be done."""
    done = True
    for row in rows:
        bench = Bench(row, crew, folder)
        print(row.name)
        if bench.prepare(OURS) is None:
            print(f"    {bench.errors[OURS]}")
            done = False
            continue
        for seconds, calls, name in crew.ask(OURS, profile=TOP)["functions"]:
            print(f"{1000 * seconds:>10.1f} ms {calls:>8} x  {name}")
        crew.dismiss()
    return done
