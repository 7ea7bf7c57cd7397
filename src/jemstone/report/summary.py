"""What the report says in words: its title, one sentence with the main numbers, and what a reader must know first."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from jemstone.report.history import reason_of, recovered_in_words
from jemstone.report.measures import number, radius_text
from jemstone.report.parts import evaluate_command
from jemstone.report.parts_training import imported_in_words
from jemstone.report.read import RunRecord
from jemstone.report.tables import headline_radius

_FEW = 3
"""So many runs are told one by one in the title and the sentence; of more, the range is told."""

Notice = tuple[str, str, str]
"""Kind ('warning' or 'note'), text, command."""


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
        scaled = _per_run(records, "scaled/ece", percent=True)
        after = f" ({scaled} after temperature scaling)" if scaled else ""
        clauses.append(f"expected calibration error {values}{after}")
    clauses += _ood_clause(records)
    for attack, words in (("pgd_linf", "L∞ attack"), ("autoattack_linf", "AutoAttack in L∞")):
        radius = headline_radius(records, attack)
        if radius and (values := _per_run(records, f"{attack}/{radius}", percent=True)):
            clauses.append(f"accuracy {values} under {words} of radius {radius_text(radius)}")
    if values := _per_run(records, "generation/fid", percent=False):
        clauses.append(f"FID of samples {values}")
    order = f"In the order {listing([name for _, name in evaluated])}: "
    many = f"Over {len(evaluated)} runs, from the lowest value to the highest: "
    who = f"{evaluated[0][1]}: " if len(evaluated) == 1 else many if len(evaluated) > _FEW else order
    return who + "; ".join(clauses or ["results are listed below"]) + "."


def notices(runs: Sequence[RunRecord], names: Sequence[str]) -> list[Notice]:
    """What a reader must know before the numbers."""
    found: list[Notice] = []
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
        if run.imported:
            found.append(("note", f"{name} was not trained here: {imported_in_words(run)}.", ""))
        elif kinds and "finished" not in kinds:
            last = f" after step {int(run.metrics[-1]['step']):,}" if run.metrics else ""
            found.append(("warning", f"{name} has no finish on record: its log ends{last}.", ""))
        if not run.results:
            found.append(("note", f"{name} has not been evaluated yet. To do so:", evaluate_command(run)))
        found += _stale(run, name)
        found += [("warning", f"{name}: {problem}", "") for problem in run.problems]
    found += [("warning", text, "") for text in _unlike(runs)]
    return found


def _stale(run: RunRecord, name: str) -> list[Notice]:
    """Whether the run was trained on after it was evaluated."""
    step, last = run.evaluation.step, run.metrics[-1]["step"] if run.metrics else 0
    if step is None or step >= last:
        return []
    text = (
        f"{name} was evaluated at step {step:,.0f} and has been trained to step {last:,.0f} since: its numbers are "
        "about an earlier model. To measure again:"
    )
    return [("warning", text, evaluate_command(run))]


def _unlike(runs: Sequence[RunRecord]) -> list[str]:
    """Reasons for which the runs' numbers are not about the same thing."""
    differ: list[str] = []
    digests = [run.data.get("digest") for run in runs]
    if len({json.dumps(digest) for digest in digests}) > 1:
        differ.append("The runs do not share the same data: their numbers are not measured on the same examples.")
    if sections := _different_settings(runs):
        where = f" in {listing(sections)}" if "" not in sections else ""
        differ.append(
            f"The runs were evaluated under different protocols{where} (listed at the end): compare with care."
        )
    if not _same_sets(runs):
        differ.append(
            "The runs were measured against different out-of-distribution sets: their means over near and far sets do "
            "not compare."
        )
    return differ


def _different_settings(runs: Sequence[RunRecord]) -> list[str]:
    """The sections whose settings differ between runs that have both; '' stands for those of all sections."""
    found: dict[str, set[str]] = {}
    for run in runs:
        plain = {key: value for key, value in run.evaluation.protocol.items() if not isinstance(value, dict)}
        own = {key: value for key, value in run.evaluation.protocol.items() if isinstance(value, dict)}
        for section, settings in ({"": plain} | own).items() if run.evaluation.protocol else ():
            found.setdefault(section, set()).add(json.dumps(settings, sort_keys=True))
    return [section for section, kinds in found.items() if len(kinds) > 1]


def _same_sets(runs: Sequence[RunRecord]) -> bool:
    """Whether all runs that were measured against near and far sets were so against the same ones."""
    sets = {(run.evaluation.near, run.evaluation.far) for run in runs if "ood" in run.evaluation.measured}
    return len(sets) <= 1


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
    """AUROC of log p(x) on average over near and over far sets, where these are the same in all runs."""
    if not _same_sets(runs):
        return []
    means = [
        (regime, _per_run(runs, f"ood_mean/{regime}/log_density/auroc", percent=False)) for regime in ("near", "far")
    ]
    told = [f"{values} over {regime} sets" for regime, values in means if values]
    return [f"mean AUROC of log p(x) {', '.join(told)}"] if told else []
