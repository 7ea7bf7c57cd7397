"""What the report says in words: its title, one sentence with the main numbers, and what a reader must know first."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from jemstone.report.history import reason_of, recovered_in_words
from jemstone.report.read import RunRecord
from jemstone.report.tables import number, radius_text, set_aurocs

_FEW = 3
"""So many runs are told one by one in the title and the sentence; of more, the range is told."""


def labels(runs: Sequence[RunRecord]) -> list[str]:
    """A short name for each run, all different: its folder, with the parent folder where that is needed."""
    paths = [run.path.resolve() for run in runs]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{path.name}" for path in paths]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def title(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    """What is compared, on what."""
    data = listing(list(dict.fromkeys(str(run.data.get("name", "unnamed data")) for run in runs)))
    subject = listing(names) if len(names) <= _FEW else f"{len(names)} runs"
    return f"{subject} on {data}" if len(names) == 1 else f"{subject}, compared on {data}"


def listing(words: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def in_short(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    """One sentence with the main numbers of every run, in the order of the runs."""
    evaluated = [(run, name) for run, name in zip(runs, names, strict=True) if run.results]
    if not evaluated:
        return "Nothing has been evaluated yet."
    records = [run for run, _ in evaluated]
    clauses = []
    if values := _per_run(records, "accuracy", percent=True):
        clauses.append(f"accuracy {values}")
    if values := _per_run(records, "ece", percent=True):
        clauses.append(f"expected calibration error {values}")
    clauses += _ood_clause(records)
    radius = _headline_radius(records)
    if radius and (values := _per_run(records, f"pgd_linf/{radius}", percent=True)):
        clauses.append(f"accuracy {values} under L∞ attack of radius {radius_text(radius)}")
    order = f"In the order {listing([name for _, name in evaluated])}: "
    many = f"Over {len(evaluated)} runs, from the lowest value to the highest: "
    who = f"{evaluated[0][1]}: " if len(evaluated) == 1 else many if len(evaluated) > _FEW else order
    return who + "; ".join(clauses or ["results are listed below"]) + "."


def notices(runs: Sequence[RunRecord], names: Sequence[str]) -> list[tuple[str, str, str]]:
    """(kind, text, command) that a reader must know before the numbers; kind is 'warning' or 'note'."""
    found: list[tuple[str, str, str]] = []
    for run, name in zip(runs, names, strict=True):
        kinds = [event.get("event") for event in run.events]
        for event in (e for e in run.events if e.get("event") == "diverged"):
            reason = f": {reason_of(event)}" if event.get("reason") else ""
            found.append(
                (
                    "warning",
                    f"{name} diverged at step {event.get('failed_step', event.get('step', 'unknown'))}{reason}. "
                    "Why, and what to change:",
                    f"jemstone doctor {shlex.quote(str(run.path))}",
                )
            )
        if recovered := recovered_in_words(run):
            found.append(("note", f"{name} {recovered}: see what happened, under Training.", ""))
        if resumed := run.event_steps("resumed"):
            found.append(("note", f"{name} was resumed at step {listing([f'{s:,}' for s in resumed])}.", ""))
        if kinds and "finished" not in kinds:
            last = f" after step {int(run.metrics[-1]['step']):,}" if run.metrics else ""
            found.append(("warning", f"{name} has no finish on record: its log ends{last}.", ""))
        if not run.results:
            command = f"jemstone evaluate {shlex.quote(str(run.path))}"
            found.append(("note", f"{name} has not been evaluated yet. To do so:", command))
        found += [("warning", f"{name}: {problem}", "") for problem in run.problems]
    found += [("warning", text, "") for text in _unlike(runs)]
    return found


def _unlike(runs: Sequence[RunRecord]) -> list[str]:
    """Reasons for which the runs' numbers are not about the same thing."""
    differ: list[str] = []
    digests = [run.data.get("digest") for run in runs]
    if len({json.dumps(digest) for digest in digests}) > 1:
        differ.append("The runs do not share the same data: their numbers are not measured on the same examples.")
    protocols = {json.dumps(run.protocol, sort_keys=True) for run in runs if run.protocol}
    if len(protocols) > 1:
        differ.append("The runs were evaluated under different protocols (listed at the end): compare with care.")
    return differ


def _per_run(runs: Sequence[RunRecord], name: str, percent: bool) -> str:
    """The values of one result in the order of the runs; empty where no run has it."""
    found = [run.result(name) for run in runs]
    return _values([r.value if r is not None else None for r in found], percent) if any(found) else ""


def _values(values: Sequence[float | None], percent: bool = False) -> str:
    """All values of a few runs; the lowest and the highest of many."""
    unit = "\u00a0%" if percent else ""
    known = [value for value in values if value is not None]
    if len(values) > _FEW:
        return f"{number(min(known), percent)} to {number(max(known), percent)}{unit}"
    return listing([number(v, percent) + unit if v is not None else "(not measured)" for v in values])


def _ood_clause(runs: Sequence[RunRecord]) -> list[str]:
    """AUROC of log p(x) on average and at worst, over the sets that all runs were measured on."""
    tables = [set_aurocs(run, "log_density") for run in runs]
    common = [name for name in tables[0] if all(name in table for table in tables)]
    if not common:
        return []
    means = _values([sum(table[s] for s in common) / len(common) for table in tables])
    if len(common) == 1:
        return [f"AUROC of log p(x) against {common[0]} {means}"]
    lowest = [min(common, key=table.__getitem__) for table in tables]
    worst = listing([f"{number(table[s])} ({s})" for table, s in zip(tables, lowest, strict=True)])
    if len(runs) > _FEW:
        worst = _values([min(table[s] for s in common) for table in tables])
    return [f"AUROC of log p(x) {means} on average over {len(common)} out-of-distribution sets, {worst} on the worst"]


def _headline_radius(runs: Sequence[RunRecord]) -> str | None:
    """The middle one of the L-infinity radii that all runs were attacked with, neither trivial nor hopeless."""

    def radii(run: RunRecord) -> set[str]:
        prefix = "pgd_linf/"
        return {r.name[len(prefix) :] for r in run.results if r.name.startswith(prefix)}

    common = sorted((r for r in set.intersection(*map(radii, runs)) if _radius(r) > 0), key=_radius)
    return common[(len(common) - 1) // 2] if common else None


def _radius(text: str) -> float:
    """The radius in a result's name; 0 for what is no number."""
    try:
        return float(text)
    except ValueError:
        return 0.0
