"""Advice that is no verdict: what a finished, finite run may still have wrong with it, judged on the end of its log."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jemstone.training.config import TrainConfig

Rows = Sequence[Mapping[str, float]]

_SHOWN = {
    "loss": "{:.3f}",
    "class_nll": "{:.3f} nats",
    "train_accuracy": "{:.1%}",
    "validation_accuracy": "{:.1%}",
    "energy_gap": "{:.3g} nats",
    "energy_auc": "{:.2f}",
    "grad_ratio": "{:.2g}",
    "chain_grad_norm": "{:.2g}",
}
LEAST = 5
"""Rows that advice is given on, at least."""


class Advice(NamedTuple):
    """Something worth knowing about a run that did not fail: what is seen, and what to do about it."""

    topic: str
    what: str
    change: str


def key_numbers(rows: Rows) -> dict[str, str]:
    """The numbers that describe the end of a run: medians over its last quarter, as text."""
    found = {"last step": str(int(rows[-1]["step"]))} if rows else {}
    return found | {
        name: form.format(value) for name, form in _SHOWN.items() if not math.isnan(value := typical(rows, name))
    }


def typical(rows: Rows, name: str) -> float:
    """The median of a column over the last quarter of the log (all of it where the log is short), NaN without one."""
    ending = rows[-max(LEAST, len(rows) // 4) :]
    values = [row[name] for row in ending if math.isfinite(row.get(name, math.nan))]
    return statistics.median(values) if values else math.nan


def advise(
    rows: Rows, events: Sequence[Mapping[str, Any]], config: TrainConfig | None, *, failed: bool = False
) -> list[Advice]:
    """Everything worth saying, without settings where the run is not one of ours; not of numbers after a failure."""
    found = _treated(events)
    if failed or len(rows) < LEAST:
        return found
    flags = _Flags(config)
    auc, ratio = typical(rows, "energy_auc"), typical(rows, "grad_ratio")
    if auc >= 0.95:
        what = f"{auc:.0%} of the negatives lie above data in energy (energy_auc; 50 % is best): they are too easy."
        more = flags("chains.steps", lambda c: str(2 * c.chains.steps), "More chain steps")
        start = flags("chains.start", lambda c: "gaussian" if c.chains.start == "uniform" else "", "informative starts")
        found.append(Advice("easy negatives", what, f"{more}, or {start}, make them harder."))
    if auc <= 0.05:
        what = f"Only {auc:.0%} of the negatives lie above data in energy (energy_auc): chains overshoot the data."
        fewer = flags("chains.steps", lambda c: str(max(1, c.chains.steps // 2)), "Fewer chain steps")
        found.append(Advice("overshooting chains", what, f"{fewer}, or a smaller step size, keep them near it."))
    if ratio > 10:
        what = f"The generative terms pull {ratio:.3g} times as hard as the class term (grad_ratio)."
        bound = flags("optimizer.balance", lambda c: "3", "A bound on that ratio")
        found.append(Advice("unbalanced gradients", what, f"{bound} protects the accuracy."))
    if ratio < 0.1:
        what = f"The generative terms pull {ratio:.2g} times as hard as the class term (grad_ratio): hardly at all."
        change = "Check that negatives are not too easy; a larger weight of log p(x) makes the density count."
        found.append(Advice("unbalanced gradients", what, change))
    if (clipped := typical(rows, "clipped")) > 0.9:
        what = f"{clipped:.0%} of the chains' gradient entries are clipped: chains follow signs, not slopes."
        bound = flags("weights.energy_l2", lambda c: "0.3" if c.weights.energy_l2 < 0.3 else "", "An energy L2 penalty")
        found.append(Advice("clipped chains", what, f"{bound} flattens the energy, or raise the clip."))
    if (distance := typical(rows, "norm_distance")) > 1:
        what = f"BatchNorm sees different statistics of data and negatives (norm_distance {distance:.2g}; 1 is far)."
        other = flags("network.norm", lambda c: "group", "GroupNorm")
        apart = flags("network.statistics", lambda c: "separate", "separate statistics")
        found.append(Advice("different statistics", what, f"{other}, or {apart}, take them apart."))
    return [*found, *_held_out(rows, config)]


def _held_out(rows: Rows, config: TrainConfig | None) -> list[Advice]:
    train, held = typical(rows, "train_accuracy"), [row["validation_accuracy"] for row in rows if _validated(row)]
    if not held or not held[-1] < train - 0.1:
        return []
    what = f"Accuracy is {train:.1%} on training batches and {held[-1]:.1%} on the validation split."
    change = "That is overfitting: more augmentation, weight decay, or a stop at the best validation accuracy."
    if config is not None and config.network.norm == "batch":
        change = f"It may be BatchNorm's running averages: --network.norm group has none. Else: {change}"
    return [Advice("accuracy held out", what, change)]


def _validated(row: Mapping[str, float]) -> bool:
    return math.isfinite(row.get("validation_accuracy", math.nan))


def _treated(events: Sequence[Mapping[str, Any]]) -> list[Advice]:
    """Whether recovery's treatment was still on when the log ends."""
    changed = [event for event in events if event.get("event") in ("recovered", "eased")]
    if not changed or not changed[-1].get("rung"):
        return []
    remedy = ", ".join(map(str, changed[-1].get("remedy") or [])) or "no change of settings"
    what = f"Treatment was still on at the end ({remedy}): the last steps did not run with the recipe's own settings."
    change = "Train longer, or make the changes above the settings of a new run, which then needs no treatment."
    return [Advice("still under treatment", what, change)]


class _Flags:
    """Words for other people's code, words and a setting for a run of ours."""

    def __init__(self, config: TrainConfig | None) -> None:
        self.config = config

    def __call__(self, name: str, value: Any, words: str) -> str:
        given = value(self.config) if self.config is not None else ""
        return f"{words} (--{name} {given})" if given else words
