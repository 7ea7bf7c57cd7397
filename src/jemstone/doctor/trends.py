"""Logged rows judged after the fact: the guard's own judgement, slid over the rows of a log."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from jemstone.training.guard import ENERGIES, GAPS, WATCHED, judge
from jemstone.training.settings import Limits

LEAST_WINDOW = 10
LEAST_ROWS = LEAST_WINDOW // 2
"""Rows that a trend is judged over, at least: a median of fewer is one row's noise."""
SPARSE = 0.2
"""A column with so large a share of NaN, finite again later, was not measured at those rows."""
GROWTH = 10.0
"""A loss alone has run away when its typical size is this many times that of the beginning (at least a nat)."""


_Note = Callable[[str, str, int, int], None]
"""Takes a verdict, its reason, the step of its onset, and the position of the row that shows it."""


@dataclass(frozen=True)
class Judged:
    """A verdict on logged rows: reached at `failed` for the first time, and for the last time at `until`."""

    verdict: str
    reason: str
    onset: int
    failed: int
    until: int
    to_the_end: bool


class Judgeable(NamedTuple):
    """What could be judged: whether there are enough rows for trends, and what is missing, in words."""

    trends: bool
    notes: list[str]


def judge_rows(rows: Sequence[Mapping[str, float]], limits: Limits) -> tuple[list[Judged], Judgeable]:
    """Every verdict that the rows show, each once, in the order of onset, and what could be judged.

    The window spans as many steps as that of `limits`, but at least ten rows, and at most a quarter of the log.
    """
    found: dict[str, Judged] = {}

    def note(verdict: str, reason: str, onset: int, position: int) -> None:
        step = int(rows[position]["step"])
        end = position >= len(rows) - 1
        before = found.get(verdict)
        if before is None:
            found[verdict] = Judged(verdict, reason, onset, step, step, end)
        else:
            found[verdict] = replace(before, until=max(step, before.until), to_the_end=end or before.to_the_end)

    notes = []
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    for name in columns:
        bad = [i for i, row in enumerate(rows) if not math.isfinite(row.get(name, 0.0))]
        if not bad:
            continue
        returns = any(math.isfinite(row.get(name, math.nan)) for row in rows[bad[0] :])
        if returns and len(bad) > SPARSE * len(rows) and all(math.isnan(rows[i][name]) for i in bad):
            notes.append(
                f"{name} is NaN in {len(bad)} of {len(rows)} rows, finite between them: taken as not measured."
            )
            continue
        also = f" in {len(bad)} of {len(rows)} rows" if len(bad) > 1 else ""
        for position in (bad[0], bad[-1]):
            step = int(rows[position]["step"])
            note("non_finite", f"{name} is {rows[bad[0]][name]}{also}", step, position)
    clean = [{name: value for name, value in row.items() if math.isfinite(value)} for row in rows]
    if not any(name in columns for name in (*ENERGIES, *GAPS)):
        _loss_alone(clean, note)
    for names, bound, field, verdict in (
        (ENERGIES, limits.energy, "energy", "energy_runaway"),
        (GAPS, limits.gap, "gap", "gap_explosion"),
    ):
        for name in names:
            for i, row in enumerate(clean):
                if abs(row.get(name, 0.0)) > bound:
                    reason = f"{name} is {row[name]:.4g} nats, beyond limits.{field} = {bound:g}"
                    if name in GAPS:
                        apart = "data and negatives are pushed apart"
                        reason += f": {apart if row[name] < 0 else 'negatives lie in holes far below data'}"
                    note(verdict, reason, _left_band(clean, i, name, bound / 20), i)
    _slide(clean, limits, note)
    return sorted(found.values(), key=lambda one: (one.onset, one.failed)), Judgeable(len(rows) >= LEAST_ROWS, notes)


def window_rows(rows: Sequence[Mapping[str, float]], window: int) -> int:
    """How many rows stand for a window of so many steps."""
    steps = [row["step"] for row in rows]
    apart = [b - a for a, b in itertools.pairwise(steps) if b > a]
    spacing = statistics.median(apart) if apart else 1.0
    return max(LEAST_WINDOW, min(round(window / spacing), len(rows) // 4))


def _slide(rows: Sequence[Mapping[str, float]], limits: Limits, note: _Note) -> None:
    """The guard's judgement at every row, with the best accuracy so far carried along as the guard carries it.

    Where the resolution changes (`progressive`), both begin anew, as the guard's memory does.
    """
    limits = replace(limits, window=window_rows(rows, limits.window))
    half, best, first = limits.window // 2, 0.0, 0
    watched = [{"step": row["step"], **{name: row[name] for name in WATCHED if name in row}} for row in rows]
    for end in range(half, len(watched) + 1):
        if rows[end - 1].get("resolution") != rows[first].get("resolution"):
            first, best = end - 1, 0.0
        window = watched[max(first, end - 2 * limits.window) : end]
        accuracies = [row["train_accuracy"] for row in window[-half:] if "train_accuracy" in row]
        best = max(best, statistics.fmean(accuracies) if len(accuracies) >= half else 0.0)
        window = [*window[:-1], {**window[-1], "best_accuracy": best}]
        finding = judge(window, limits)
        if finding is not None:
            note(finding.verdict, finding.reason, int(window[finding.onset]["step"]), end - 1)


def _left_band(rows: Sequence[Mapping[str, float]], position: int, name: str, band: float) -> int:
    """The step from which on the values up to `position` lie outside the band."""
    while position > 0 and abs(rows[position - 1].get(name, 0.0)) > band:
        position -= 1
    return int(rows[position]["step"])


def _loss_alone(rows: Sequence[Mapping[str, float]], note: _Note) -> None:
    """Judge the growth of the loss, where it is all that there is."""
    losses = [(i, abs(row["loss"])) for i, row in enumerate(rows) if "loss" in row]
    size = max(LEAST_ROWS, window_rows(rows, Limits().window) // 2)
    if len(losses) < 2 * size:
        return
    usual = max(1.0, statistics.median(value for _, value in losses[:size]))
    for end in range(2 * size, len(losses) + 1):
        recent = statistics.median(value for _, value in losses[end - size : end])
        if recent > GROWTH * usual:
            reason = f"the median |loss| over {size} rows rose from {usual:.3g} to {recent:.3g}"
            first = next(i for i, value in losses[size:] if value > 2 * usual)
            note("loss_runaway", reason, int(rows[first]["step"]), losses[end - 1][0])
