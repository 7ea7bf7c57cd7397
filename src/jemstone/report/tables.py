"""The numbers of several runs side by side, and who is clearly ahead."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jemstone.report.measures import (
    DETECTION,
    GENERATION,
    GROUPS,
    OOD_METRICS,
    SAMPLES,
    SOURCES,
    Measure,
    measure,
    number,
)
from jemstone.report.read import Result, RunRecord


@dataclass(frozen=True)
class Cell:
    """One number as shown. `exact` is the number as measured; `ahead` says that the rule of `clearly_ahead` holds."""

    text: str = ""
    interval: str = ""
    exact: str = ""
    ahead: bool = False


@dataclass(frozen=True)
class Row:
    """One line of a table, with a cell per run and column. `mean` marks an average of the rows above it."""

    label: str
    better: int
    cells: tuple[Cell, ...]
    n: str
    mean: bool = False


@dataclass(frozen=True)
class Matrix:
    """Rows by group, and columns times runs; `head` names the rows, `worst` closes each column where it is given."""

    head: str
    better: int
    columns: tuple[str, ...]
    groups: tuple[tuple[str, tuple[Row, ...]], ...]
    worst: tuple[str, ...] = ()


def clearly_ahead(results: Sequence[Result | None], better: int) -> tuple[bool, ...]:
    """Which results are ahead of another with disjoint intervals, while no other is so ahead of them."""

    def beats(a: Result | None, b: Result | None) -> bool:
        if a is None or b is None or a.low is None or a.high is None or b.low is None or b.high is None:
            return False
        return a.low > b.high if better > 0 else a.high < b.low if better < 0 else False

    return tuple(
        any(beats(a, b) for b in results if b is not a) and not any(beats(b, a) for b in results) for a in results
    )


def row(label: str, meaning: Measure, results: Sequence[Result | None], *, mean: bool = False) -> Row:
    """One line of a table, with the runs that are clearly ahead marked."""
    cells = tuple(
        _cell(result, meaning, ahead)
        for result, ahead in zip(results, clearly_ahead(results, meaning.better), strict=True)
    )
    counts = dict.fromkeys(f"{r.n:,}" for r in results if r is not None and r.n is not None)
    return Row(label, meaning.better, cells, " / ".join(counts), mean)


def comparison(runs: Sequence[RunRecord]) -> dict[str, list[Row]]:
    """All results by group, in the order in which they were written, but for those that have a table of their own."""
    groups: dict[str, list[Row]] = {name: [] for name in GROUPS}
    for name in _names(runs):
        meaning = measure(name)
        groups[meaning.group].append(row(meaning.label, meaning, _of(runs, name)))
    return {name: rows for name, rows in groups.items() if rows and name not in (DETECTION, GENERATION)}


def headline(runs: Sequence[RunRecord]) -> list[Row]:
    """The few numbers that a reader looks for first, of those that were measured."""
    radius = headline_radius(runs, "pgd_linf"), headline_radius(runs, "autoattack_linf")
    names = {
        "accuracy": "",
        "ece": "",
        "scaled/ece": "The same after temperature scaling, %",
        "ood_mean/near/log_density/auroc": "",
        "ood_mean/far/log_density/auroc": "",
        f"pgd_linf/{radius[0]}": "",
        f"autoattack_linf/{radius[1]}": "",
        "generation/fid": "",
        "likelihood/test": "",
        "likelihood/bits_per_dim": "",
    }
    known = set(_names(runs))
    return [row(label or measure(n).label, measure(n), _of(runs, n)) for n, label in names.items() if n in known]


def headline_radius(runs: Sequence[RunRecord], attack: str) -> str:
    """The middle one of the radii that all runs that met this attack share, neither trivial nor hopeless; or ''.

    Where PGD and AutoAttack share radii it is one of these, so that both numbers are about the same thing.
    """
    shared = _radii(runs, attack)
    other = {"pgd_linf": "autoattack_linf", "autoattack_linf": "pgd_linf"}.get(attack, attack)
    common = sorted(shared & _radii(runs, other) or shared, key=float)
    return common[(len(common) - 1) // 2] if common else ""


def ood_matrix(runs: Sequence[RunRecord], metric: str) -> Matrix | None:
    """One out-of-distribution metric, set by score by run, near sets apart from far ones; None where no run has it."""
    parts = [part for name in _names(runs) if (part := _ood(name)) is not None and part[2] == metric]
    if not parts:
        return None
    sets, scores = (tuple(dict.fromkeys(part[i] for part in parts)) for i in (0, 1))
    meaning = Measure("", "", OOD_METRICS[metric])
    near = {name for run in runs for name in run.evaluation.near}
    far = {name for run in runs for name in run.evaluation.far} - near

    def line(label: str, prefix: str, mean: bool) -> Row:
        return _across(label, [(meaning, f"{prefix}/{score}/{metric}") for score in scores], runs, mean=mean)

    members = {"near": [s for s in sets if s in near], "far": [s for s in sets if s in far]}
    members[""] = [s for s in sets if s not in near | far]
    groups = []
    for regime, names in members.items():
        rows = [line(name, f"ood/{name}", False) for name in names]
        mean = line(f"mean of {regime}", f"ood_mean/{regime}", True)
        rows += [mean] if regime and rows and any(cell.exact for cell in mean.cells) else []
        titles = {"near": "Near sets", "far": "Far sets", "": "" if len(members[""]) == len(sets) else "Others"}
        groups += [(titles[regime], tuple(rows))] if rows else []
    columns = [
        [result.value for s in sets if (result := run.result(f"ood/{s}/{score}/{metric}")) is not None]
        for score in scores
        for run in runs
    ]
    worst: Callable[[list[float]], float] = min if meaning.better > 0 else max
    ends = tuple(number(worst(c)) if len(c) == len(sets) else "" for c in columns) if len(sets) > 1 else ()
    return Matrix(metric, meaning.better, scores, tuple(groups), ends)


def set_aurocs(run: RunRecord, score: str) -> dict[str, float]:
    """AUROC of one score per out-of-distribution set."""
    parts = ((_ood(r.name), r.value) for r in run.results)
    return {part[0]: value for part, value in parts if part is not None and part[1:] == (score, "auroc")}


def samples_matrix(runs: Sequence[RunRecord]) -> Matrix | None:
    """What is measured of samples: metric by source by run; None where no run has samples measured."""
    known = set(_names(runs))
    sources = [source for source in SOURCES if any(f"{source}/{what}" in known for what in SAMPLES)]
    rows = [
        _across(meaning.label, [(measure(f"{s}/{what}"), f"{s}/{what}") for s in sources], runs, better=meaning.better)
        for what, meaning in SAMPLES.items()
        if any(f"{source}/{what}" in known for source in sources)
    ]
    return Matrix("", 0, tuple(SOURCES[s] for s in sources), (("", tuple(rows)),)) if rows else None


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


def _of(runs: Sequence[RunRecord], name: str) -> list[Result | None]:
    return [run.result(name) for run in runs]


def _across(
    label: str,
    columns: Sequence[tuple[Measure, str]],
    runs: Sequence[RunRecord],
    *,
    better: int = 0,
    mean: bool = False,
) -> Row:
    """A row with several columns per run, each compared on its own."""
    lines = [row(label, meaning, _of(runs, name)) for meaning, name in columns]
    cells = tuple(cell for line in lines for cell in line.cells)
    return Row(label, better, cells, " / ".join(dict.fromkeys(line.n for line in lines if line.n)), mean)


def _radii(runs: Sequence[RunRecord], attack: str) -> set[str]:
    """The radii, as text, of this attack that all runs share that have met it at all."""

    def of(run: RunRecord) -> set[str]:
        heads = (r.name.partition("/") for r in run.results)
        return {radius for head, _, radius in heads if head == attack and _positive(radius)}

    found = [radii for run in runs if (radii := of(run))]
    return set.intersection(*found) if found else set()


def _positive(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False


def _ood(name: str) -> tuple[str, str, str] | None:
    """Set, score and metric of a result called ood/SET/SCORE/METRIC."""
    parts = name.split("/")
    if len(parts) < 4 or parts[0] != "ood" or parts[-1] not in OOD_METRICS:
        return None
    return "/".join(parts[1:-2]), parts[-2], parts[-1]


def _cell(result: Result | None, meaning: Measure, ahead: bool) -> Cell:
    if result is None:
        return Cell()
    text, interval = number(result.value, meaning.percent, meaning.decimals), ""
    if result.low is not None and result.high is not None:
        low, high = (number(end, meaning.percent, meaning.decimals) for end in (result.low, result.high))
        interval = f"{low} – {high}"
    return Cell(text, interval, repr(result.value), ahead)
