"""Is this step healthy? Judges before anything moves, names what it sees, never repairs anything.

Two numbers are judged at every step; the rest are trends over a window. What each verdict means, and the runs that its
bounds were found on, is in docs/stability.md.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jemstone.errors import Diverged
from jemstone.training.settings import Limits

Row = dict[str, float]
History = tuple[Row, ...]
ENERGIES = ("energy_real", "energy_negatives", "energy_labelled", "energy_outliers")
GAPS = ("energy_gap", "conditional_gap")
WATCHED = (
    *ENERGIES,
    *GAPS,
    "energy_auc",
    "class_coverage",
    "chain_grad_norm",
    "distinct",
    "saturated",
    "saturated_real",
    "discrimination",
    "train_accuracy",
    "evaluation_accuracy",
)
TOLD_APART = 0.98
STILL = 1e-6
CLOSING = 0.8
"""A gap that shrinks to this share within half a window is on its way to health, as after `classifier_steps`."""
BLOCK = 5


class Finding(NamedTuple):
    """A verdict on a window: its name, its evidence in words, and the row of the window at which the trend began."""

    verdict: str
    reason: str
    onset: int


def check(step: int, metrics: Mapping[str, float], history: History, limits: Limits) -> History:
    """The history with this step's numbers in it; raises `Diverged` where they or the trends they end are not healthy.

    `history` is that of the last healthy step. Conditions are written as `not (good)`: NaN compares false, and fails.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise Diverged(step, f"{name} is not finite", metrics, verdict="non_finite")
    rows = (*history, {"step": step, **{name: metrics[name] for name in WATCHED if name in metrics}})
    for names, limit, typical, field, verdict in (
        (ENERGIES, limits.energy, limits.median_energy, "energy", "energy_runaway"),
        (GAPS, limits.gap, limits.median_gap, "gap", "gap_explosion"),
    ):
        for name in names:
            if name in metrics and not abs(metrics[name]) <= limit:
                reason = f"|{name}| is {abs(metrics[name]):.4g} nats, beyond limits.{field} = {limit:g}"
                onset = int(rows[_onset(rows, name, typical / 4)]["step"])
                raise Diverged(step, reason, metrics, verdict=verdict, onset=onset, evidence=evidence(rows))
    return _judged(step, metrics, rows, limits) if limits.window else ()


def check_evaluation(step: int, metrics: Mapping[str, float], history: History, limits: Limits) -> History:
    """The same after a step whose model was also run in evaluation mode; its row is the last of `history`.

    That step has been taken: unlike `check`, this finds the state moved.
    """
    if not history or "evaluation_accuracy" not in metrics:
        return history
    rows = (*history[:-1], {**history[-1], "evaluation_accuracy": metrics["evaluation_accuracy"]})
    return _judged(step, metrics, rows, limits)


def _judged(step: int, metrics: Mapping[str, float], rows: Sequence[Row], limits: Limits) -> History:
    rows = rows[-2 * limits.window :]
    best = max(rows[-2].get("best_accuracy", 0.0) if len(rows) > 1 else 0.0, _mean_accuracy(rows, limits))
    rows = (*rows[:-1], {**rows[-1], "best_accuracy": best})
    finding = judge(rows, limits)
    if finding is not None:
        onset = int(rows[finding.onset]["step"])
        raise Diverged(step, finding.reason, metrics, verdict=finding.verdict, onset=onset, evidence=evidence(rows))
    return rows


def judge(rows: Sequence[Row], limits: Limits) -> Finding | None:
    """The verdict on the last half window of `rows`, oldest first, or None. Pure: the doctor uses it on logged rows."""
    recent = rows[-max(1, limits.window // 2) :]
    if len(recent) < max(1, limits.window // 2):
        return None
    for look in (_energies, _gaps, _sampler, _saturation, _buffer, _accuracy):
        found = look(rows, recent, limits)
        if found is not None:
            return found
    return None


def evidence(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """The rows as columns, for a figure."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _energies(rows: Sequence[Row], recent: Sequence[Row], limits: Limits) -> Finding | None:
    for name in ENERGIES:
        now, before = _median(recent, name, size=True), _median(rows[: len(recent)], name, size=True)
        if now > limits.median_energy and now > 1.2 * before:
            reason = f"median |{name}| rose from {before:.3g} to {now:.3g} nats, beyond limits.median_energy"
            return Finding("energy_runaway", reason, _onset(rows, name, limits.median_energy / 4))
    return None


def _gaps(rows: Sequence[Row], recent: Sequence[Row], limits: Limits) -> Finding | None:
    if "discrimination" in recent[-1]:  # a discriminator's energies are bounded by its own loss, and meant to differ
        return None
    for name in GAPS:
        size, gap, auc = _median(recent, name, size=True), _median(recent, name), _median(recent, "energy_auc")
        half = len(recent) // 2
        closing = _median(recent[half:], name, size=True) < CLOSING * _median(recent[:half], name, size=True)
        if size > limits.median_gap and not closing:
            onset = _onset(rows, name, limits.median_gap / 4)
            reason = f"the median {name} over {len(recent)} steps is {gap:.3g} nats (median size {size:.3g})"
            if auc >= TOLD_APART:
                reason += f", and {auc:.1%} of negatives lie above data: chains cannot follow the energy down"
                return Finding("dead_sampler", reason, onset)
            side = "data and negatives are pushed apart" if gap < 0 else "negatives lie in holes far below data"
            return Finding("gap_explosion", f"{reason}: {side}", onset)
    return None


def _sampler(rows: Sequence[Row], recent: Sequence[Row], limits: Limits) -> Finding | None:
    slope = _median(recent, "chain_grad_norm")
    if slope < STILL:
        reason = f"the median chain gradient norm is {slope:.2g}: the energy is flat, and chains stand still"
        return Finding("dead_sampler", reason, _onset(rows, "chain_grad_norm", STILL, below=True))
    return None


def _saturation(rows: Sequence[Row], recent: Sequence[Row], limits: Limits) -> Finding | None:
    chains, data = _median(recent, "saturated"), _median(recent, "saturated_real")
    if chains - data > limits.saturated:
        reason = f"{chains:.0%} of the chains' pixels sit at the border of the box, {data:.0%} of those of data"
        return Finding("saturated_chains", reason, _onset(rows, "saturated", data + limits.saturated / 2))
    return None


def _buffer(rows: Sequence[Row], recent: Sequence[Row], limits: Limits) -> Finding | None:
    distinct, coverage = _median(recent, "distinct"), _median(recent, "class_coverage")
    if distinct < limits.distinct:
        reason = f"negatives lie {distinct:.2g} times as far from each other as data do: they are few distinct images"
        return Finding("buffer_collapse", reason, _onset(rows, "distinct", 2 * limits.distinct, below=True))
    if coverage < limits.class_coverage:
        reason = f"negatives cover {coverage:.1%} of the classes, where 0 % is one class"
        return Finding("buffer_collapse", reason, _onset(rows, "class_coverage", 2 * limits.class_coverage, below=True))
    return None


def _accuracy(rows: Sequence[Row], recent: Sequence[Row], limits: Limits) -> Finding | None:
    best, now = recent[-1].get("best_accuracy", 0.0), _mean_accuracy(rows, limits)
    if now < best - limits.accuracy_drop:
        reason = f"training accuracy fell from {best:.1%} to {now:.1%}"
        return Finding("accuracy_collapse", reason, _onset(rows, "train_accuracy", best - 0.1, below=True))
    evaluated = recent[-1].get("evaluation_accuracy", math.nan)
    if evaluated < now - limits.accuracy_drop:
        reason = f"accuracy on training examples is {now:.1%} in training and {evaluated:.1%} in evaluation mode"
        return Finding("accuracy_collapse", reason, len(rows) - len(recent))
    return None


def _mean_accuracy(rows: Sequence[Row], limits: Limits) -> float:
    """Training accuracy over the last half window; 0 before there is one."""
    values = [row["train_accuracy"] for row in rows[-max(1, limits.window // 2) :] if "train_accuracy" in row]
    return statistics.fmean(values) if len(values) >= max(1, limits.window // 2) else 0.0


def _median(rows: Sequence[Row], name: str, *, size: bool = False) -> float:
    """The median of a column, of its absolute values with `size`; NaN, which no condition holds for, where it has gaps.

    A column that has just begun, as those of the chains do after `classifier_steps`, is no trend yet.
    """
    values = [abs(row[name]) if size else row[name] for row in rows if name in row]
    return statistics.median(values) if values and len(values) == len(rows) else math.nan


def _onset(rows: Sequence[Row], name: str, band: float, *, below: bool = False) -> int:
    """The row at which a column left its band for good: of medians of five rows, against the noise."""
    first = len(rows) - 1
    while first > 0:
        typical = _median(rows[max(0, first - BLOCK) : first], name, size=True)
        if not (typical < band if below else typical > band):
            break
        first -= 1
    return first
