"""The warnings of the evaluations, each told once, with the runs that it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jemstone.report.read import RunRecord


@dataclass(frozen=True)
class Sighting:
    """Where a warning was raised: the runs by position, the section, and what was seen."""

    runs: tuple[int, ...]
    section: str
    text: str


@dataclass(frozen=True)
class Card:
    """One warning: its name, what it means, and where it was raised."""

    name: str
    meaning: str
    sightings: tuple[Sighting, ...]


def cards(runs: Sequence[RunRecord]) -> list[Card]:
    """One card per warning, in the order in which they were raised; runs that say the same share a line."""
    meanings: dict[str, str] = {}
    seen: dict[str, dict[tuple[str, str], list[int]]] = {}
    for i, run in enumerate(runs):
        for doubt in run.evaluation.doubts:
            meanings[doubt.name] = meanings.get(doubt.name) or doubt.meaning
            positions = seen.setdefault(doubt.name, {}).setdefault((doubt.section, doubt.text), [])
            positions += [i] if i not in positions else []
    return [
        Card(name, meanings[name], tuple(Sighting(tuple(i), section, text) for (section, text), i in lines.items()))
        for name, lines in seen.items()
    ]
