"""What the doctor is shown: a run directory of ours, or a log of another project, as rows, events and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jemstone.doctor.diagnosis import Diagnosis, diagnose
from jemstone.doctor.losses import read_losses
from jemstone.errors import ConfigError, RunError
from jemstone.runs import Run, surviving
from jemstone.training.config import TrainConfig


@dataclass(frozen=True)
class Case:
    """A run as its files tell it.

    Attributes:
        path: the run directory or the file.
        figure: where the figure goes unless told otherwise.
        rows: logged numbers, each with its `step`; those that were rolled back are left out.
        events: what happened, in order; none for a log of another project.
        config: the settings, or None.
        reading: how the file was read, one sentence each.
        total_steps: of the whole run, where known.
    """

    path: Path
    figure: Path
    rows: tuple[Mapping[str, float], ...]
    events: tuple[Mapping[str, Any], ...] = ()
    config: TrainConfig | None = None
    reading: tuple[str, ...] = ()
    total_steps: int | None = None

    def diagnosis(self) -> Diagnosis:
        """What the doctor says about it."""
        return diagnose(self.rows, self.events, self.config, name=str(self.path), total_steps=self.total_steps)


def open_case(path: str | Path, columns: Mapping[str, str] | None = None) -> Case:
    """Read a run directory, or a file of losses whose columns may be named in `columns` (our name: theirs).

    Raises RunError where nothing is there, where a directory is no run, or where a file cannot be made sense of.
    """
    path = Path(path)
    if path.is_dir():
        if columns:
            raise ConfigError(f"--columns names the columns of another project's log, and {path} is a directory.")
        return _run(Run(path))
    if not path.is_file():
        raise RunError(f"There is nothing at {path}. Give a run directory, or a CSV file of another project's losses.")
    losses = read_losses(path, columns or {})
    return Case(path, path.with_name(f"{path.stem}-doctor.png"), losses.rows, reading=losses.reading)


def _run(run: Run) -> Case:
    reading, config, total = [], None, None
    try:
        config = TrainConfig.from_dict(run.info.get("config", {}))
        ranks = run.info.get("environment", {}).get("ranks", 1)
        total = config.steps or config.total_steps(run.info["data"]["sizes"]["train"], ranks)
    except ConfigError:
        reading.append("Its settings are of another version of jemstone: changes are told without names of settings.")
    except (KeyError, TypeError, AttributeError):
        pass  # without the size of the data the total is not known, and nothing else is lost
    rows = [_numbers(row) for row in run.rows("metrics.jsonl") if isinstance(row, dict)]
    events = tuple(event for event in run.rows("events.jsonl") if isinstance(event, dict))
    return Case(run.path, run.path / "doctor.png", tuple(surviving(rows)), events, config, tuple(reading), total)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
