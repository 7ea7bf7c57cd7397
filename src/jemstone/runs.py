"""The run directory: everything about one training run, as plain files.

config.json        configuration, facts about the data, environment
metrics.jsonl      one object per logged step
events.jsonl       what happened: started, resumed, validation, recovered, eased, damaged, diverged, finished
checkpoints/       step-00000500.safetensors ...
initial.safetensors  where chains start, if it was estimated from data
results.json       evaluated numbers: a list of {name, value, low, high, n}
figures.json       the arrays behind the figures of the report
samples/           sample grids, as pictures
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jemstone.errors import RunError

FORMAT = 1
HISTORY = ("started", "resumed", "diverged", "damaged")


class Run:
    """One run directory. Opening checks that it is one; `create` makes it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise RunError(
                f"There is no run directory at {self.path}. `jemstone train RECIPE --run {self.path}` makes one."
            )
        if not (self.path / "config.json").is_file():
            raise RunError(f"{self.path} is not a run directory: it holds no config.json.")
        self.info = self.read_json("config.json")
        if not isinstance(self.info, dict):
            raise RunError(f"{self.path / 'config.json'} does not hold the settings of a run; restore it from a copy.")
        if self.info.get("format") != FORMAT:
            raise RunError(
                f"{self.path / 'config.json'} has format {self.info.get('format')!r}; "
                f"this version of jemstone reads {FORMAT}."
            )

    @classmethod
    def create(cls, path: str | Path, info: Mapping[str, Any]) -> Run:
        """A new run directory with `info` (config, data, environment) in its config.json."""
        path = Path(path)
        require_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"Cannot make a run directory at {path}: {error.strerror}.") from error
        write_atomically(path / "config.json", _json_bytes({"format": FORMAT, **info}))
        return cls(path)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Append a row to metrics.jsonl."""
        self._append("metrics.jsonl", metrics)

    def event(self, event: str, step: int, **details: Any) -> None:
        """Append a row to events.jsonl."""
        self._append("events.jsonl", {"event": event, "step": step, **details})

    def read_json(self, name: str) -> Any:
        """The content of a JSON file of the run."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"Cannot read {self.path / name}: {error}") from error

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run, whole or not at all."""
        write_atomically(self.path / name, _json_bytes(content))

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a .jsonl file; a line cut short by a kill is left out."""
        path = self.path / name
        if not path.exists():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def rewind(self, step: int, recoveries: int = 0) -> None:
        """Forget logged rows after `step`: the resumed run writes them again, the same but for `seconds`.

        What happened to the run stays: that it was started, resumed or diverged, and its first `recoveries` recoveries.
        """
        for name in ("metrics.jsonl", "events.jsonl"):
            if (self.path / name).exists():
                kept = [row for row in self.rows(name) if _stays(row, step, recoveries)]
                text = "".join(json.dumps(row) + "\n" for row in kept)
                write_atomically(self.path / name, text.encode())

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        try:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(strict(row), allow_nan=False) + "\n")
        except OSError as error:
            raise RunError(
                f"Cannot write {self.path / name}: {error.strerror}. Make room, then go on from the last checkpoint: "
                f"jemstone train --resume {self.path}"
            ) from error


def _stays(row: Mapping[str, Any], step: int, recoveries: int) -> bool:
    if row.get("event") == "recovered":
        return bool(row["attempt"] <= recoveries)
    return row["step"] <= step or row.get("event") in HISTORY


def surviving(rows: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    """The rows that led to the last one: going back to an earlier step discards what came after it."""
    kept: list[Mapping[str, float]] = []
    for row in rows:
        if not math.isfinite(row.get("step", math.nan)):
            continue
        while kept and kept[-1]["step"] >= row["step"]:
            kept.pop()
        kept.append(row)
    return kept


def labels(paths: Sequence[Path]) -> list[str]:
    """A short name for each run, all different: its folder, with parents in front where two would be called the same.

    As many parents as tell them apart; a path given twice gets one, and a number.
    """
    parts = [path.resolve().parts[1:] for path in paths]
    names = ["/".join(part[-1:]) for part in parts]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        meant = {name: {p for p, n in zip(parts, names, strict=True) if n == name} for name in names}
        names = [
            "/".join(part[-depth:]) if names.count(name) > 1 and (depth == 2 or len(meant[name]) > 1) else name
            for name, part in zip(names, parts, strict=True)
        ]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def is_free(path: Path) -> bool:
    """Whether `path` does not exist or is an empty directory; half-written files of a killed start do not count."""
    return not path.exists() or (path.is_dir() and all(entry.name.endswith(".tmp") for entry in path.iterdir()))


def require_free(path: str | Path) -> None:
    """Raise RunError unless a run can be made at `path`."""
    if not is_free(Path(path)):
        raise RunError(
            f"{path} exists and is not empty. Choose another --run, delete it, or continue it with "
            f"`jemstone train --resume {path}`."
        )


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a kill or a full disk at any moment leaves the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"Cannot write {path}: {error.strerror}. The previous content, if any, is untouched.") from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def strict(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null stands for both."""
    if isinstance(value, Mapping):
        return {key: strict(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [strict(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json_bytes(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
