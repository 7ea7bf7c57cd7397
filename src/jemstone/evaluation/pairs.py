"""Which paired test belongs to which result of two runs, and whether it may be made at all."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from jemstone.evaluation.directions import higher_is_better
from jemstone.evaluation.evaluated import Evaluated
from jemstone.evaluation.paired import (
    RANKING,
    Statistic,
    ece_difference,
    mean_difference,
    observed,
    ranking_difference,
)

MEANS = {
    "accuracy": ("calibration", "correct"),
    "nll": ("calibration", "nll"),
    "brier": ("calibration", "brier"),
    "scaled/nll": ("calibration", "scaled/nll"),
    "scaled/brier": ("calibration", "scaled/brier"),
}
"""Results that are means over the test examples: section and array."""
ATTACKED = {"pgd_*": "robustness", "autoattack_*": "robustness", "black_box_*": "robustness", "refined/*": "refinement"}
"""Sections of the results that are means over attacked examples, by pattern; their arrays are named as the results."""
CONFIDENCES = {"ece": "confidence", "scaled/ece": "scaled/confidence"}
DIFFERENT = "the array does not give the number in results.json, evaluate both runs again"


class Untestable(Exception):
    """Why two runs cannot be tested in a result; `of_runs` says that it is because of these two."""

    def __init__(self, reason: str, *, of_runs: bool = True) -> None:
        super().__init__(reason)
        self.of_runs = of_runs


class Part(NamedTuple):
    """A difference that can be resampled: `statistic` on samples of `sizes` ((name, n), ...), known by its `key`."""

    key: tuple[str, ...]
    statistic: Statistic
    sizes: tuple[tuple[str, int], ...]


def parts_of(name: str, first: Evaluated, second: Evaluated) -> list[Part]:
    """What has to be resampled for the difference in `name`, which is the mean of the parts; else raises Untestable."""
    if higher_is_better(name) is None:
        raise Untestable("neither direction is better", of_runs=False)
    parts = _parts(name, first, second)
    value = float(np.mean([observed(part.statistic, dict(part.sizes)) for part in parts]))
    change = second.results[name].value - first.results[name].value
    # Arrays may be float32, of values that are many times their difference.
    if not np.isclose(value, change, rtol=1e-3, atol=1e-5 * max(1.0, abs(first.results[name].value))):
        raise Untestable(DIFFERENT)
    return parts


def _parts(name: str, first: Evaluated, second: Evaluated) -> list[Part]:
    runs = (first, second)
    if first.digest != second.digest or not first.digest:
        raise Untestable("different data")
    if name in MEANS:
        section, array = MEANS[name]
        return [_mean(name, section, array, runs)]
    if name in CONFIDENCES:
        correct, confidence = (_arrays("calibration", key, runs) for key in ("correct", CONFIDENCES[name]))
        bins = [run.settings("calibration").get("bins", 15) for run in runs]
        if bins[0] != bins[1]:
            raise Untestable("different bins")
        pairs = [(hits.astype(bool), c.astype(np.float64)) for hits, c in zip(correct, confidence, strict=True)]
        if len({len(array) for pair in pairs for array in pair}) != 1:
            raise Untestable("different numbers of examples")
        return [Part((name,), ece_difference(pairs[0], pairs[1], int(bins[0])), (("test", len(correct[0])),))]
    for pattern, section in ATTACKED.items():
        if fnmatchcase(name, pattern):
            _require_equal_settings(section, runs)
            return [_mean(name, section, name, runs)]
    match name.split("/"):
        case ["ood", foreign, score, metric] if metric in RANKING:
            return [_ranking(foreign, score, metric, runs)]
        case ["ood_mean", regime, score, metric] if metric in RANKING:
            sets = [run.sections.get("ood", {}).get(regime, []) for run in runs]
            if sets[0] != sets[1] or not sets[0]:
                raise Untestable(f"the {regime} sets are not the same")
            return [_ranking(foreign, score, metric, runs) for foreign in sets[0]]
    if name.startswith("likelihood/"):
        raise Untestable("a resample of test examples does not hold the error of log Z", of_runs=False)
    raise Untestable("there is no paired test for such a number", of_runs=False)


def _mean(name: str, section: str, array: str, runs: tuple[Evaluated, Evaluated]) -> Part:
    first, second = _arrays(section, array, runs)
    sample = "test" if section == "calibration" else section
    return Part((name,), mean_difference(first, second), ((sample, len(first)),))


def _ranking(foreign: str, score: str, metric: str, runs: tuple[Evaluated, Evaluated]) -> Part:
    _require_equal_settings("ood", runs)
    inside = _arrays("ood", f"{score}/test", runs)
    outside = _arrays("ood", f"{score}/ood/{foreign}", runs)
    # The inside sample has one name, so that all sets of a mean are resampled with the same inside examples.
    sizes = (("ood test", len(inside[0])), (f"ood {foreign}", len(outside[0])))
    statistic = ranking_difference(metric, (inside[0], outside[0]), (inside[1], outside[1]))
    return Part(("ood", score, foreign, metric), statistic, sizes)


def _arrays(section: str, array: str, runs: tuple[Evaluated, Evaluated]) -> list[Shaped[np.ndarray, " n"]]:
    for run in runs:
        if array not in run.examples.get(section, {}):
            raise Untestable(
                f"{run.label} keeps no values per example, evaluate it again with: jemstone evaluate {run.path}"
            )
    found = [run.examples[section][array] for run in runs]
    if len(found[0]) != len(found[1]) or len(found[0]) == 0:
        raise Untestable("different numbers of examples")
    return found


def _require_equal_settings(section: str, runs: tuple[Evaluated, Evaluated]) -> None:
    if runs[0].settings(section) != runs[1].settings(section):
        raise Untestable("different protocols")
