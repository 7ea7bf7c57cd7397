"""The diagnosis of a run: recorded failures, logged rows judged after the fact, and advice. Touches no file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jemstone.doctor.advice import Advice, advise, key_numbers
from jemstone.doctor.causes import MEANINGS, Change, changes, in_words, why
from jemstone.doctor.trends import LEAST_ROWS, Judged, judge_rows
from jemstone.training.config import TrainConfig
from jemstone.training.settings import Limits

State = Literal["healthy", "recovered", "unhealthy", "diverged", "unknown"]
FAILURES = ("recovered", "diverged")
_NUMBERS = ("loss", "energy_real", "energy_negatives", "energy_gap", "energy_auc", "grad_norm", "chain_grad_norm")


@dataclass(frozen=True)
class Finding:
    """One verdict: when, how it shows, why it happens, what to change, and what recovery did about it.

    Attributes:
        verdict: its name, a key of `jemstone.errors.VERDICTS`, or `loss_runaway`.
        spans: (onset, failed) of each time that it was reached: the step at which the trend began, and the step at
            which it was seen.
        what: the evidence, in words with numbers.
        why: the mechanism, then what in the settings points to it; what an earlier finding has said is left out.
        change: what to change, the first thing to try first; settings of jemstone where the run is one of ours.
        done: what recovery did, one line for each time.
    """

    verdict: str
    spans: tuple[tuple[int, int], ...]
    what: str
    why: tuple[str, ...]
    change: tuple[str, ...]
    done: tuple[str, ...] = ()

    @property
    def onset(self) -> int:
        """The step at which the trend began, the first time."""
        return self.spans[0][0]

    @property
    def failed(self) -> int:
        """The step at which the verdict was reached, the first time."""
        return self.spans[0][1]

    @property
    def meaning(self) -> str:
        """The verdict in words."""
        return MEANINGS.get(self.verdict, self.verdict)


@dataclass(frozen=True)
class Diagnosis:
    """All that the doctor has to say about a run.

    `state` is `healthy`; `recovered`, where recovery mended every failure; `diverged`, where it stopped the run;
    `unhealthy`, where logged rows show a failure that nothing acted on; `unknown`, where there is too little to judge.
    `change` is what to change, over all findings, each thing once; `numbers` describe the end of the run.
    """

    state: State
    findings: tuple[Finding, ...]
    advice: tuple[Advice, ...]
    notes: tuple[str, ...]
    numbers: Mapping[str, str]
    change: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether no failure was found, recorded or not."""
        return self.state == "healthy"

    @property
    def headline(self) -> str:
        """The verdict in one line that begins with its state."""
        if self.state == "unknown":
            return "unknown: too little is logged to judge"
        if not self.findings:
            return self.state
        # The one that is not mended stands last: recorded failures come in the order in which they happened.
        shown = self.findings if self.state == "recovered" else self.findings[-1:]
        shown = self.findings[:1] if self.state == "unhealthy" else shown
        parts = []
        for finding in shown:
            onset, failed = finding.spans[0] if self.state == "unhealthy" else finding.spans[-1]
            trend = f", trend from step {onset}" if onset < failed else ""
            times = f" {len(finding.spans)} times, last" if len(finding.spans) > 1 else ""
            parts.append(f"{finding.verdict}{times} at step {failed}{trend}")
        return f"{self.state}: {'; '.join(parts)}"


def diagnose(
    rows: Sequence[Mapping[str, float]],
    events: Sequence[Mapping[str, Any]] = (),
    config: TrainConfig | None = None,
    *,
    name: str = "RUN",
    total_steps: int | None = None,
) -> Diagnosis:
    """Judge a run by its logged rows (each with its `step`), its events, and its settings.

    `rows` need not be of jemstone: what a row lacks is not judged. Without `config`, changes are told in words that
    are no settings, and the bounds are those of `Limits()`; so they are where the run's guard was off. `name` is how
    commands in the text call the run.
    """
    limits = config.limits if config is not None and config.limits.window > 0 else Limits()
    judged, kind = judge_rows(rows, limits)
    findings = _recorded([event for event in events if event.get("event") in FAILURES], config)
    known = {finding.verdict for finding in findings}
    seen = [_from_rows(one, judged, config) for one in judged if one.verdict not in known]
    stopped = _stopped(events)
    # Where the run was stopped, the failure that stopped it is the last word, and must stay it.
    findings = [*seen, *findings] if stopped else [*findings, *seen]
    notes = [*_history(events, name, rows, total_steps), *kind.notes]
    if config is not None and seen and (config.limits.window == 0 or config.recovery.attempts == 0):
        notes.append(
            f"Guard or recovery were off. With `--limits.window {Limits().window} --limits.gap {Limits().gap:g} "
            f"--recovery.attempts 10` the run would have been rolled back near step {seen[0].failed} and treated."
        )
    if not kind.trends:
        notes.append(f"Rows in the log: {len(rows)}. A trend needs at least {LEAST_ROWS}, so trends were not judged.")
    nothing: State = "healthy" if kind.trends else "unknown"
    state: State = "diverged" if stopped else "unhealthy" if seen else "recovered" if findings else nothing
    advice = advise(rows, events, config, failed=stopped or bool(seen))
    change = _merged([changes(f.verdict, f.what, config) for f in findings], config)
    return Diagnosis(state, _told_once(findings), tuple(advice), tuple(notes), key_numbers(rows), change)


def _merged(lists: Sequence[Sequence[Change]], config: TrainConfig | None) -> tuple[str, ...]:
    """All changes in words, each once: also not where a stronger one before it has changed the same settings."""
    kept: list[Change] = []
    for change in (change for changes_of_one in lists for change in changes_of_one):
        settings = {name for before in kept for name in before.settings}
        if change.words not in {before.words for before in kept} and not (
            change.settings and settings >= set(change.settings)
        ):
            kept.append(change)
    return tuple(in_words(change, config) for change in kept)


def _told_once(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Findings of which no later one repeats a sentence about the causes that an earlier one has."""
    said: set[str] = set()
    told = []
    for finding in findings:
        told.append(replace(finding, why=tuple(sentence for sentence in finding.why if sentence not in said)))
        said |= set(finding.why)
    return tuple(told)


def _recorded(events: Sequence[Mapping[str, Any]], config: TrainConfig | None) -> list[Finding]:
    """One finding for each verdict among the recorded failures, ordered by its last time."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        verdict = _verdict(event)
        groups[verdict] = [*groups.pop(verdict, []), event]
    found = []
    for verdict, group in groups.items():
        last = group[-1]
        spans = tuple((_step(event, "onset"), _step(event, "failed_step")) for event in group)
        reason = str(last.get("reason", "no reason is on record"))
        reason = reason.removesuffix("`jemstone doctor RUN` says what to change").rstrip()
        what = _sentence(reason)
        if len(group) > 1:
            steps = ", ".join(str(failed) for _, failed in spans)
            what = f"{len(group)} times, at steps {steps}. The last time: {what}"
        numbers = last.get("metrics")
        if isinstance(numbers, dict):
            told = [f"{n} {numbers[n]:.4g}" for n in _NUMBERS if isinstance(numbers.get(n), int | float)]
            what += f" Step {spans[-1][1]} had {', '.join(told)}." if told else ""
        text, change = _cause(verdict, reason, spans[0][1], config)
        found.append(Finding(verdict, spans, what, text, change, tuple(_done(event) for event in group)))
    return found


def _sentence(text: str) -> str:
    """`text` with a capital letter and a full stop; the name of a metric keeps its letters."""
    start = text[:1] if "_" in text.split(" ")[0] else text[:1].upper()
    return f"{start}{text[1:].rstrip('.')}."


def _done(event: Mapping[str, Any]) -> str:
    failed = _step(event, "failed_step")
    if event.get("event") == "diverged":
        return f"step {failed}: stopped; nothing had moved, and the last checkpoint is there"
    remedy = event.get("remedy") or ["no change of settings"]
    chains = event.get("poisoned_chains")
    discarded = f"; {chains} poisoned chains discarded" if chains else ""
    attempt = f" (attempt {event['attempt']})" if "attempt" in event else ""
    return f"step {failed}: back to step {event.get('step')}, then {', '.join(map(str, remedy))}{discarded}{attempt}"


def _from_rows(judged: Judged, others: Sequence[Judged], config: TrainConfig | None) -> Finding:
    what = f"{_sentence(judged.reason)} Seen in the logged rows from step {judged.failed} on"
    if judged.to_the_end:
        what += ", to the end of the log."
    elif any(other.until > judged.until for other in others):
        what += "; then others outweigh it."
    else:
        what += f", for the last time at step {judged.until}."
    text, change = _cause(judged.verdict, judged.reason, judged.failed, config)
    return Finding(judged.verdict, ((judged.onset, judged.failed),), what, text, change)


def _cause(
    verdict: str, reason: str, failed: int, config: TrainConfig | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    change = tuple(in_words(change, config) for change in changes(verdict, reason, config))
    return why(verdict, reason, failed, config), change


def _verdict(event: Mapping[str, Any]) -> str:
    """The verdict of an event; older runs have none on record, but a reason that names the limit."""
    if "verdict" in event:
        return str(event["verdict"])
    reason = str(event.get("reason", ""))
    return (
        "gap_explosion" if "limits.gap" in reason else "energy_runaway" if "limits.energy" in reason else "non_finite"
    )


def _step(event: Mapping[str, Any], name: str) -> int:
    found = event.get(name, event.get("failed_step", event.get("step", 0)))
    return int(found) if isinstance(found, int | float) and math.isfinite(found) else 0


def _stopped(events: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last thing that happened, resumptions included, was a divergence."""
    told = [e.get("event") for e in events if e.get("event") in ("diverged", "resumed", "finished", "recovered")]
    return bool(told) and told[-1] == "diverged"


def _history(
    events: Sequence[Mapping[str, Any]], name: str, rows: Sequence[Mapping[str, float]], total: int | None
) -> list[str]:
    """Damage, resumptions, and an open end, one sentence each."""
    notes = []
    for event in events:
        if event.get("event") == "damaged":
            where = f" {event['checkpoint']}" if "checkpoint" in event else ""
            said = str(event.get("error", "")).partition(" Delete it")[0].rstrip(".")  # it is no longer needed
            notes.append(f"A checkpoint{where} was damaged ({said}); training used the one before it.")
    if resumed := [str(_step(event, "step")) for event in events if event.get("event") == "resumed"]:
        notes.append(f"Resumed at step {', '.join(resumed)}.")
    kinds = {event.get("event") for event in events}
    if "started" in kinds and "finished" not in kinds and not _stopped(events):
        last = int(rows[-1]["step"]) if rows else 0
        of = f" of {total}" if total else ""
        notes.append(
            f"The run has not finished: its log ends at step {last}{of}. It was killed or still trains; to go on "
            f"from its last checkpoint: `jemstone train --resume {name}`"
        )
    return notes
