"""The numbers of several runs side by side: what each one is called, which way is better, and who is clearly ahead."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jemstone.report.read import Result, RunRecord


@dataclass(frozen=True)
class Measure:
    """What a result's name means. `better` is +1 where higher is better, -1 where lower is, 0 where not known."""

    group: str
    label: str
    better: int = 0
    percent: bool = False


@dataclass(frozen=True)
class Cell:
    """One number as shown. `exact` is the number as measured; `ahead` says that the rule of `clearly_ahead` holds."""

    text: str = ""
    interval: str = ""
    exact: str = ""
    ahead: bool = False


@dataclass(frozen=True)
class Row:
    """One result over all runs."""

    label: str
    better: int
    cells: tuple[Cell, ...]
    n: str


@dataclass(frozen=True)
class Matrix:
    """One metric of out-of-distribution detection: rows are sets, columns are scores times runs."""

    metric: str
    better: int
    scores: tuple[str, ...]
    rows: tuple[Row, ...]
    means: tuple[str, ...]
    worst: tuple[str, ...]


GROUPS = ("Classification", "Calibration", "Accuracy under attack", "Other measurements")

SCORE_NAMES = {"log_density": "log p(x)", "max_probability": "max p(y|x)", "approximate_mass": "approximate mass"}

SCORE_MEANINGS = {
    "log_density": (
        "the model's log-density up to a constant, which is the logsumexp of the logits. On a plain classifier, "
        "where nothing was trained to make it a density, this is the post-hoc energy score (Liu et al. 2020)"
    ),
    "max_probability": "the probability of the likeliest class, the usual baseline (Hendrycks and Gimpel 2017)",
    "approximate_mass": (
        "minus the norm of the gradient of log p(x): near 0 where probability mass is flat and typical, "
        "strongly negative on slopes (Grathwohl et al. 2020)"
    ),
}

_FIXED = {
    "accuracy": Measure("Classification", "Accuracy, %", +1, percent=True),
    "nll": Measure("Classification", "Negative log-likelihood, nats", -1),
    "brier": Measure("Classification", "Brier score", -1),
    "ece": Measure("Calibration", "Expected calibration error, %", -1, percent=True),
}
OOD_METRICS = {"auroc": +1, "aupr": +1, "fpr95": -1}
_ATTACKS = {"pgd_linf": "L∞", "pgd_l2": "L2"}


def measure(name: str) -> Measure:
    """The meaning of a result's name; a name not known is shown as it is, without a better direction."""
    if name in _FIXED:
        return _FIXED[name]
    attack, _, radius = name.partition("/")
    if attack in _ATTACKS and radius:
        shown = radius_text(radius) if attack == "pgd_linf" else radius
        return Measure(
            "Accuracy under attack", f"Under PGD, {_ATTACKS[attack]}\u00a0≤\u00a0{shown}, %", +1, percent=True
        )
    return Measure("Other measurements", name)


def clearly_ahead(results: Sequence[Result | None], better: int) -> tuple[bool, ...]:
    """Which results are ahead of another with disjoint intervals, while no other is so ahead of them."""

    def beats(a: Result | None, b: Result | None) -> bool:
        if a is None or b is None or a.low is None or a.high is None or b.low is None or b.high is None:
            return False
        return a.low > b.high if better > 0 else a.high < b.low if better < 0 else False

    return tuple(
        any(beats(a, b) for b in results if b is not a) and not any(beats(b, a) for b in results) for a in results
    )


def number(value: float, percent: bool = False) -> str:
    """A value as the page prints it: one decimal for per cents, three for other small numbers."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    text = f"{100 * value:.1f}" if percent else f"{value:.3f}" if abs(value) < 1000 else f"{value:.5g}"
    return text.replace("-", "−")


def radius_text(radius: str) -> str:
    """An L-infinity radius as the field writes it, 8/255, where it is a small whole number of grey levels."""
    try:
        levels = 255 * float(radius)
    except ValueError:
        return radius
    return f"{radius} ({levels:.0f}/255)" if 0.5 < levels < 32.5 and abs(levels - round(levels)) < 0.02 else radius


def row(label: str, meaning: Measure, results: Sequence[Result | None]) -> Row:
    """One line of a table, with the runs that are clearly ahead marked."""
    cells = tuple(
        _cell(result, meaning.percent, ahead)
        for result, ahead in zip(results, clearly_ahead(results, meaning.better), strict=True)
    )
    counts = dict.fromkeys(f"{r.n:,}" for r in results if r is not None and r.n is not None)
    return Row(label, meaning.better, cells, " / ".join(counts))


def comparison(runs: Sequence[RunRecord]) -> dict[str, list[Row]]:
    """All results but those of out-of-distribution detection, by group, in the order in which they were written."""
    groups: dict[str, list[Row]] = {name: [] for name in GROUPS}
    for name in _names(runs):
        if _ood(name) is None:
            meaning = measure(name)
            groups[meaning.group].append(row(meaning.label, meaning, [run.result(name) for run in runs]))
    return {name: rows for name, rows in groups.items() if rows}


def ood_matrix(runs: Sequence[RunRecord], metric: str) -> Matrix | None:
    """One out-of-distribution metric, set by score by run; None where no run has it."""
    parts = [part for name in _names(runs) if (part := _ood(name)) is not None and part[2] == metric]
    if not parts:
        return None
    sets, scores = (tuple(dict.fromkeys(part[i] for part in parts)) for i in (0, 1))
    better, rows = OOD_METRICS[metric], []
    for ood in sets:
        by_score = [
            row(ood, Measure("", ood, better), [run.result(f"ood/{ood}/{score}/{metric}") for run in runs])
            for score in scores
        ]
        cells = tuple(cell for line in by_score for cell in line.cells)
        rows.append(Row(ood, better, cells, " / ".join(dict.fromkeys(line.n for line in by_score if line.n))))
    columns = [
        [result.value for ood in sets if (result := run.result(f"ood/{ood}/{score}/{metric}")) is not None]
        for score in scores
        for run in runs
    ]
    worst = min if better > 0 else max
    return Matrix(
        metric,
        better,
        scores,
        tuple(rows),
        means=tuple(number(sum(c) / len(c)) if len(c) == len(sets) else "" for c in columns),
        worst=tuple(number(worst(c)) if len(c) == len(sets) else "" for c in columns),
    )


def set_aurocs(run: RunRecord, score: str) -> dict[str, float]:
    """AUROC of one score per out-of-distribution set."""
    parts = ((_ood(r.name), r.value) for r in run.results)
    return {part[0]: value for part, value in parts if part is not None and part[1:] == (score, "auroc")}


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as one level of dotted names; lists and single values are printed as JSON, text as itself."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat


def settings_table(
    settings: Sequence[Mapping[str, Any]], *, differing: bool = False
) -> list[tuple[str, tuple[str, ...]]]:
    """One row per setting and one value per run (empty: not set); with `differing`, only rows that are not equal."""
    flat = [flatten(s) for s in settings]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [(key, tuple(one.get(key, "") for one in flat)) for key in keys]
    return [(key, cells) for key, cells in rows if not differing or len(set(cells)) > 1]


def _names(runs: Sequence[RunRecord]) -> list[str]:
    return list(dict.fromkeys(result.name for run in runs for result in run.results))


def _ood(name: str) -> tuple[str, str, str] | None:
    """Set, score and metric of a result called ood/SET/SCORE/METRIC."""
    parts = name.split("/")
    if len(parts) < 4 or parts[0] != "ood" or parts[-1] not in OOD_METRICS:
        return None
    return "/".join(parts[1:-2]), parts[-2], parts[-1]


def _cell(result: Result | None, percent: bool, ahead: bool) -> Cell:
    if result is None:
        return Cell()
    interval = ""
    if result.low is not None and result.high is not None:
        interval = f"{number(result.low, percent)} – {number(result.high, percent)}"
    return Cell(number(result.value, percent), interval, repr(result.value), ahead)
