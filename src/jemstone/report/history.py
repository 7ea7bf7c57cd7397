"""What happened to a run on the way, in words: its failures, what recovery did, damage, and resumptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jemstone.errors import VERDICTS
from jemstone.report.read import RunRecord

ADVICE = "`jemstone doctor RUN` says what to change"
"""How a reason ends where recovery gave up; the page names the command with the run's own path."""
KINDS = ("recovered", "diverged", "damaged", "resumed")


@dataclass(frozen=True)
class Happening:
    """One row of the table: the run's position, the step, what was seen, and what was done."""

    run: int
    kind: str
    step: str
    what: str
    evidence: str
    done: str


def happenings(runs: Sequence[RunRecord]) -> list[Happening]:
    """Every failure, recovery, damaged checkpoint and resumption, run by run, in the order in which it happened."""
    return [
        _happening(index, event)
        for index, run in enumerate(runs)
        for event in run.events
        if event.get("event") in KINDS
    ]


def recovered_in_words(run: RunRecord) -> str:
    """How often the run recovered, and from what; empty where it never did."""
    events = [event for event in run.events if event.get("event") == "recovered"]
    if not events:
        return ""
    times = "once" if len(events) == 1 else f"{len(events)} times"
    named: dict[str, list[str]] = {}
    for event in events:
        named.setdefault(str(event.get("verdict", "unknown")), []).append(_step(event, "failed_step"))
    told = "; ".join(f"{verdict} at step {', '.join(steps)}" for verdict, steps in named.items())
    return f"recovered {times} by itself ({told})"


def reason_of(event: Mapping[str, Any]) -> str:
    """The evidence of a failure in words, without a full stop."""
    return str(event.get("reason") or "").removesuffix(ADVICE).rstrip(" .")


def _happening(index: int, event: Mapping[str, Any]) -> Happening:
    kind, step = str(event["event"]), _step(event, "failed_step", "step")
    if kind == "resumed":
        return Happening(index, kind, step, "Resumed", "", f"went on from the checkpoint of step {step}")
    reason = reason_of(event) or str(event.get("error") or "")
    if kind == "damaged":
        named = f"Checkpoint {event['checkpoint']} damaged" if "checkpoint" in event else "A checkpoint was damaged"
        return Happening(index, kind, step, named, reason, "used the one before it")
    verdict = str(event.get("verdict", ""))
    onset = _step(event, "onset")
    what = VERDICTS.get(verdict, verdict.replace("_", " ") or "diverged")
    what = what[:1].upper() + what[1:]
    since = f"Trend from step {onset}: " if onset and onset != step else ""
    if kind == "diverged":
        return Happening(index, kind, step, what, since + reason, "stopped")
    remedies = event.get("remedy")
    remedy = ", ".join(map(str, remedies)) if isinstance(remedies, list) and remedies else "no change of settings"
    chains = event.get("poisoned_chains")
    discarded = f"; {chains} poisoned chain{'s' if chains != 1 else ''} discarded" if chains else ""
    attempt = f" (attempt {event['attempt']})" if "attempt" in event else ""
    done = f"back to step {_step(event, 'step')}, then {remedy}{discarded}{attempt}"
    return Happening(index, kind, step, what, since + reason, done)


def _step(event: Mapping[str, Any], *names: str) -> str:
    """The first of these numbers that the event has, as text."""
    found = next((event[name] for name in names if isinstance(event.get(name), int | float)), None)
    return "" if found is None else f"{found:,.0f}"
