"""The table as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .measure import OURS, TOLERANCE_DOUBLE, Result, unproven
from .rows import PEAK_GOAL

_LINE = (
    "{:<52} {:>9}  {:<11} {:>9} {:>6} {:>7} {:>5} {:<3} {:>9} {:>11} {:>6} {:<3}"  # and the peer's
)
HEAD = _LINE.format(
    *("row", "ours ms", "peer", "ms", "rounds", "ratio", "goal", "", "deviation"),
    *("MB", "share", ""),
)
LEGEND = (
    "ratio: peer time / our time, the goal or more is reached; rounds: ours/peer's; MB: peak memory"
    f" ours/peer's, {PEAK_GOAL} of the peer's or less is reached"
)
WIDEST_ERROR = 100


def lines(result: Result) -> list[str]:
    """Return the lines of a row, one per peer and one per remark."""
    if OURS in result["errors"]:
        return [f"{result['row']}: {OURS}: {_short(result['errors'][OURS])}"]
    head = [result["row"], _ms(result, OURS)]
    found = []
    for peer in result["ratio"]:
        found.append(_LINE.format(*(head if not found else ("", "")), *_cells(result, peer)))
    for peer, error in result["errors"].items():
        cells = head if not found else ("", "")
        found.append("{:<52} {:>9}  {:<11} {}".format(*cells, peer, _short(error)))
    return found + _remarks(result)


def _cells(result: Result, peer: str) -> list[str]:
    rounds, peaks = result["rounds"], result["peak_bytes"]
    goal = result["goal"].get(peer)
    return [
        peer,
        _ms(result, peer),
        f"{rounds[OURS]}/{rounds[peer]}",
        f"{result['ratio'][peer]:.2f}",
        "" if goal is None else f"{goal:g}",
        _mark(result["reached"].get(peer)),
        f"{result['deviation'][peer]:.0e}",
        f"{peaks[OURS] / 1e6:.0f}/{peaks[peer] / 1e6:.0f}",
        f"{result['peak_ratio'][peer]:.2f}",
        _mark(result["peak_reached"][peer]),
    ]


def _ms(result: Result, library: str) -> str:
    return f"{1000 * result['seconds'][library]:.1f}"


def _mark(reached: bool | None) -> str:
    return {None: "", True: "yes", False: "no"}[reached]


def _short(error: str) -> str:
    error = " ".join(error.split())
    return error if len(error) <= WIDEST_ERROR else error[: WIDEST_ERROR - 3] + "..."


def _remarks(result: Result) -> list[str]:
    found = [f"    {peer}: {why}" for peer, why in result["differs"].items()]
    double = result["deviation_double"]
    if double:
        verdict = "agree" if max(double.values()) < TOLERANCE_DOUBLE else "DISAGREE"
        told = ", ".join(f"{peer} {d:.0e}" for peer, d in double.items())
        found.append(f"    in float64 the answers {verdict}: deviation {told}")
    for peer in unproven(result):
        found.append(f"    {peer} DISAGREES in float32; in float64 it gave no answer")
    if limit := result.get("limit"):
        found.append(_limit(limit))
    return found


def _limit(limit: Mapping[str, float]) -> str:
    return (
        f"    limit {1000 * limit['seconds']:.3g} ms: {limit['flop'] / 1e9:.3g} GFLOP in "
        f"{1000 * limit['flop_seconds']:.3g} ms, {limit['bytes'] / 1e6:.3g} MB in "
        f"{1000 * limit['byte_seconds']:.3g} ms; {limit['share']:.0%} of our time"
    )


def totals(results: Iterable[Result]) -> list[str]:
    """Return how many goals are reached."""
    results = list(results)
    found = []
    for what, key in (("ratios", "reached"), ("peaks of memory", "peak_reached")):
        reached = [r for result in results for r in result[key].values()]
        if reached:
            found.append(f"{what} reached: {sum(reached)} of {len(reached)}")
    return found


def header(about: Mapping[str, Any]) -> list[str]:
    """Return what one has to know to compare numbers: machine, settings, BLAS kernels."""
    setting = about["setting"]
    return [
        ", ".join(f"{k} {v}" for k, v in about["machine"].items()),
        f"threads {setting['threads']}, {setting['clock']} time, device {setting['device']}, "
        f"core type of OpenBLAS: {setting['core']}",
        *(f"{library} {_about(known)}" for library, known in about["libraries"].items()),
    ]


def _about(known: Mapping[str, Any]) -> str:
    if "error" in known:
        return f"cannot be used: {_short(known['error'])}"
    compiled = {None: "", True: "; compiled kernels", False: "; no compiled kernels"}
    return f"{known['version']}: {known['computes']}{compiled[known.get('compiled')]}"
