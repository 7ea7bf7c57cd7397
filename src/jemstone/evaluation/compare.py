"""Runs beside each other in one table, each difference from the first run tested on the same examples.

Intervals of two runs may overlap although one is clearly better, because both met the same hard examples. So marks come
from paired tests (`jemstone.evaluation.paired`), corrected for their number. They are about these trained models on
this test set: nothing here says what training again with another seed would give.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jemstone.errors import ConfigError
from jemstone.evaluation.directions import higher_is_better
from jemstone.evaluation.evaluated import Evaluated, read_evaluated
from jemstone.evaluation.paired import holm, p_value, resample
from jemstone.evaluation.pairs import Part, Untestable, parts_of
from jemstone.evaluation.titles import title

HEADLINE = (
    "accuracy",
    "nll",
    "ece",
    "ood_mean/near/log_density/auroc",
    "ood_mean/far/log_density/auroc",
    "pgd_linf/0.03",
    "autoattack_linf/0.03",
    "autoattack_l2/0.5",
    "generation/fid",
)
"""The columns of a table for which none were asked. What no run has measured is left out."""

FEATURES = ("generation/", "by_class/", "real/", "legacy/")
"""Results that mean something in the features of one extractor only."""

Key = tuple[int, tuple[str, ...]]
"""A part of a test: the row of its run, and the part's own key."""


@dataclass(frozen=True)
class Cell:
    """One number. `p` is that of its difference from the reference, None where that could not be tested.

    `p_adjusted` and `significant` are after Holm's correction; `better` says which way a tested difference goes.
    `quoted` marks a published number that was not read in the paper itself but where another quotes it.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    p: float | None = None
    p_adjusted: float | None = None
    significant: bool = False
    better: bool | None = None
    quoted: bool = False


@dataclass(frozen=True)
class Column:
    """One metric: the result's name, its title, and "higher", "lower" or "" for what is better."""

    name: str
    title: str
    better: str


@dataclass(frozen=True)
class Row:
    """One model; a cell is None where it has no such number. `source` is empty for a run, a citation if published."""

    label: str
    cells: tuple[Cell | None, ...]
    path: str = ""
    recipe: str = ""
    seed: int | None = None
    step: int | None = None
    source: str = ""
    caveat: str = ""


@dataclass(frozen=True)
class Comparison:
    """A table as plain data. `reference` is the label of the first run; `tests` counts the cells tested against it."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    reference: str
    data: str
    protocol: str
    tests: int
    resamples: int
    alpha: float
    seed: int


def compare_runs(
    paths: Sequence[str | Path],
    *,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = 10_000,
    alpha: float = 0.05,
) -> Comparison:
    """Compare evaluated runs; the first is the reference that the others are tested against.

    `metrics` are shell patterns of result names, columns in their order; ("*",) takes all, None takes `HEADLINE`.
    A cell is tested where both runs hold values per example on the same data and the same subset; the two-sided p-value
    is that of a paired bootstrap over examples, and significance is Holm's over all tested cells at level `alpha`.

    Raises RunError for a path that is no evaluated run, ConfigError where no result fits `metrics`.
    """
    if not paths:
        raise ConfigError("A comparison needs at least one evaluated run.")
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha must lie between 0 and 1, got {alpha}.")
    if resamples < 1:
        raise ConfigError(f"resamples must be at least 1, got {resamples}.")
    runs = read_evaluated(paths)
    names = _names(runs, metrics)
    tested, reasons = _test(runs, names, seed, resamples)
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    reference = runs[0]

    def cell(i: int, run: Evaluated, name: str) -> Cell | None:
        result = run.results.get(name)
        if result is None:
            return None
        if (i, name) not in tested:
            return Cell(result.value, result.low, result.high, result.n)
        change = result.value - reference.results[name].value
        p = adjusted[i, name]
        better = (change > 0) == higher_is_better(name) if change else None
        return Cell(*result[1:], p=tested[i, name], p_adjusted=p, significant=p <= alpha, better=better)

    words = {True: "higher", False: "lower", None: ""}
    return Comparison(
        columns=tuple(Column(name, title(name), words[higher_is_better(name)]) for name in names),
        rows=tuple(
            Row(r.label, tuple(cell(i, r, name) for name in names), str(r.path), r.recipe, r.seed, r.step)
            for i, r in enumerate(runs)
        ),
        notes=(*_mismatches(runs), *_extractors(runs, names), *reasons, *_too_few(len(tested), resamples, alpha)),
        reference=reference.label,
        data=reference.data,
        protocol=str(reference.protocol.get("name", "")),
        tests=len(tested),
        resamples=resamples,
        alpha=alpha,
        seed=seed,
    )


def _names(runs: Sequence[Evaluated], metrics: Sequence[str] | None) -> list[str]:
    known = list(dict.fromkeys(name for run in runs for name in run.results))
    patterns = HEADLINE if metrics is None else metrics
    names = list(dict.fromkeys(name for pattern in patterns for name in known if fnmatchcase(name, pattern)))
    if not names:
        raise ConfigError(
            f"None of these runs has a result that fits {', '.join(map(repr, patterns))}. "
            f"They have: {', '.join(known)}."
        )
    return names


def _test(
    runs: Sequence[Evaluated], names: Sequence[str], seed: int, resamples: int
) -> tuple[dict[tuple[int, str], float], list[str]]:
    """p-values by (row, name), and in words why the other cells have none."""
    reference, cells = runs[0], {}
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for i, run in enumerate(runs[1:], 1):
        for name in names:
            if name not in reference.results or name not in run.results:
                continue
            try:
                cells[i, name] = parts_of(name, reference, run)
            except Untestable as reason:
                reasons[run.label if reason.of_runs else "", str(reason)].append(name)
    drawn = _draw({(i, part.key): part for (i, _), parts in cells.items() for part in parts}, seed, resamples)
    # A mean over sets is averaged within each resample, in which all sets face the same inside examples.
    p = {
        (i, name): p_value(np.mean([drawn[i, part.key] for part in parts], axis=0))
        for (i, name), parts in cells.items()
    }
    whom = {label: f" of {label} against {reference.label}" if label else "" for label, _ in reasons}
    return p, [
        f"Not tested{whom[label]}: {', '.join(dict.fromkeys(which))}. Reason: {why}."
        for (label, why), which in reasons.items()
    ]


def _draw(parts: Mapping[Key, Part], seed: int, resamples: int) -> dict[Key, Float[np.ndarray, " resamples"]]:
    """Each part on its resamples; parts on the same examples go through them together, which costs one drawing."""
    groups: dict[tuple[tuple[str, int], ...], list[Key]] = defaultdict(list)
    for key, part in parts.items():
        groups[part.sizes].append(key)
    drawn: dict[Key, Float[np.ndarray, " resamples"]] = {}
    for sizes, keys in groups.items():
        values = resample([parts[key].statistic for key in keys], dict(sizes), seed=seed, resamples=resamples)
        drawn |= dict(zip(keys, values, strict=True))
    return drawn


def _mismatches(runs: Sequence[Evaluated]) -> list[str]:
    """Runs whose numbers do not compare with those of the first, and in what."""
    first, notes = runs[0], []
    for run in runs[1:]:
        if run.digest != first.digest:
            notes.append(
                f"{run.label} was measured on other data ({run.data}) than {first.label} ({first.data}): "
                "their numbers do not compare."
            )
        ours, theirs = _flat(first.protocol), _flat(run.protocol)
        shared = [key for key in ours if key in theirs]  # a section that one run lacks is a gap, not another protocol
        differing = [key for key in shared if ours[key] != theirs[key]]
        if differing:
            shown = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
            notes.append(f"{run.label} was evaluated under another protocol than {first.label}; it differs in {shown}.")
    return notes


def _extractors(runs: Sequence[Evaluated], names: Sequence[str]) -> list[str]:
    """The features that distances of samples were measured in, for a FID without them is no number."""
    if not any(name.startswith(FEATURES) for name in names):
        return []
    return [
        f"Samples of {run.label} were compared in the features {run.sections['generation']['extractor']['name']}."
        for run in runs
        if run.sections.get("generation", {}).get("extractor")
    ]


def _flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _too_few(tests: int, resamples: int, alpha: float) -> list[str]:
    smallest = 2 / (resamples + 1)
    if tests * smallest <= alpha:
        return []
    return [
        f"With {resamples:,} resamples no p-value is below {smallest:.2g}, which {tests} tests at {alpha:g} need: "
        f"nothing can become significant. Take at least {round(2 * tests / alpha):,} resamples, or fewer columns."
    ]
