"""A run directory, read from its files alone: what the report knows about a run, typed and checked.

`config.json` must be sound; all else may be missing or damaged, because a report is wanted most when a run was killed
half way. What could not be read is listed in `RunRecord.problems`, never repaired.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jemstone.errors import RunError
from jemstone.report.read_figures import Evaluation, read_evaluation
from jemstone.report.values import mapping, number, numbers
from jemstone.runs import FORMAT, surviving


@dataclass(frozen=True)
class Result:
    """One measured number with its 95 % interval and the number of examples behind it."""

    name: str
    value: float
    low: float | None
    high: float | None
    n: int | None


@dataclass(frozen=True)
class SampleImage:
    """A picture of samples that lies in the run directory."""

    name: str
    path: Path
    caption: str


@dataclass(frozen=True)
class RunRecord:
    """All that a run directory says about itself."""

    path: Path
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    environment: Mapping[str, Any]
    metrics: tuple[Mapping[str, float], ...] = ()
    events: tuple[Mapping[str, Any], ...] = ()
    results: tuple[Result, ...] = ()
    evaluation: Evaluation = field(default_factory=Evaluation)
    imported: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[SampleImage, ...] = ()
    problems: tuple[str, ...] = ()

    def result(self, name: str) -> Result | None:
        """The result called `name`, or None where it was not measured."""
        return next((r for r in self.results if r.name == name), None)

    def curve(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and finite values of one training metric."""
        return _curve(self.metrics, key)

    def validation(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and finite values of one number measured on the validation set."""
        rows = [numbers(event) for event in self.events if event.get("event") == "validation"]
        return _curve(surviving(rows), key)

    def event_steps(self, kind: str) -> list[int]:
        """The steps at which an event of this kind happened."""
        steps = [number(event.get("step")) for event in self.events if event.get("event") == kind]
        return [int(step) for step in steps if math.isfinite(step)]


def read_run(path: Path) -> RunRecord:
    """Read the run directory at `path`.

    Raises RunError where `path` is no run or its config.json is damaged or of another version. Other files may be
    missing; damaged ones count as missing and are named in `problems`.
    """
    head = _read_config(path)
    problems: list[str] = []
    figures = _read_json(path / "figures.json", dict, problems)
    results = _read_json(path / "results.json", list, problems) or []
    return RunRecord(
        path=path,
        config=head["config"],
        data=mapping(head.get("data")),
        environment=mapping(head.get("environment")),
        metrics=tuple(surviving([numbers(row) for row in _read_lines(path / "metrics.jsonl", problems)])),
        events=tuple(_read_lines(path / "events.jsonl", problems)),
        results=_results(results, problems),
        evaluation=Evaluation() if figures is None else read_evaluation(figures, problems),
        imported=mapping(head.get("imported")),
        samples=_samples(path / "samples"),
        problems=tuple(problems),
    )


def _read_config(path: Path) -> dict[str, Any]:
    """config.json, or a RunError that says what to do."""
    remedy = "Give the directory of a run that `jemstone train` made."
    if not path.exists():
        raise RunError(f"{path} does not exist. {remedy}")
    file = path / "config.json"
    if not file.is_file():
        raise RunError(f"{path} is no run directory: it has no config.json. {remedy}")
    try:
        head = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{file} cannot be read ({error}). Restore it from a copy, or train the run again with `jemstone train`."
        ) from error
    if not isinstance(head, dict) or not isinstance(head.get("config"), dict):
        raise RunError(f"{file} holds no configuration of a run (an object with the key 'config'). {remedy}")
    if head.get("format") != FORMAT:
        raise RunError(
            f"{file} has format {head.get('format')!r}, and this jemstone reads format {FORMAT}. "
            "Use the version of jemstone that wrote it."
        )
    return head


def _read_json(file: Path, kind: type, problems: list[str]) -> Any:
    """The parsed file, or None where it is missing, damaged or not a `kind`; the latter two are noted."""
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{file.name} cannot be read ({error}) and counts as missing.")
        return None
    if not isinstance(content, kind):
        problems.append(f"{file.name} does not have the expected form and counts as missing.")
        return None
    return content


def _read_lines(file: Path, problems: list[str]) -> list[dict[str, Any]]:
    """One object per line. A damaged last line is what a killed run leaves behind, and is passed over in silence."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    rows, damaged = [], 0
    for position, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            damaged += position < len(lines)
            continue
        if isinstance(row, dict):
            rows.append(row)
    problems += [f"{file.name} has {damaged} damaged line(s), which are left out."] if damaged else []
    return rows


def _curve(rows: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    kept = [row for row in rows if math.isfinite(row.get(key, math.nan))]
    return [row["step"] for row in kept], [row[key] for row in kept]


def _results(rows: list[Any], problems: list[str]) -> tuple[Result, ...]:
    results = []
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("name"), str) or "value" not in row:
            problems.append("results.json has an entry without a name or a value, which is left out.")
            continue
        low, high, n = number(row.get("low")), number(row.get("high")), number(row.get("n"))
        results.append(
            Result(
                name=row["name"],
                value=number(row["value"]),
                low=low if math.isfinite(low) else None,
                high=high if math.isfinite(high) else None,
                n=int(n) if math.isfinite(n) else None,
            )
        )
    return tuple(results)


def _samples(folder: Path) -> tuple[SampleImage, ...]:
    """The pictures, in the order in which they are best read: what was drawn, where chains stand, the truth."""
    order = {"fresh": 0, "by_class": 1, "neighbours": 2, "buffer": 3, "data": 5}
    images = []
    for file in sorted(folder.glob("*.png"), key=lambda f: (order.get(f.stem, 4), f.stem)):
        sidecar = mapping(_read_json(file.with_suffix(".json"), dict, []))
        images.append(SampleImage(file.stem, file, str(sidecar.get("caption", ""))))
    return tuple(images)
