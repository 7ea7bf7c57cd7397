"""What a page is made of: parts with a title, each a list of figures and tables in the order in which they are read."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from PIL import Image

from jemstone.report.history import Happening
from jemstone.report.plots import run_colour
from jemstone.report.read import RunRecord, SampleImage
from jemstone.report.tables import Matrix, Row

_LARGEST_PNG = 300_000
_WIDEST = 1000


@dataclass(frozen=True)
class Panel:
    """One picture: `uri` holds it as data (empty: damaged file), `alt` describes it, `run` owns it (None: all runs).

    `how` is the sentence that says how to read it, where the panels beside it are to be read in another way.
    """

    heading: str
    uri: str
    alt: str
    run: int | None = None
    caption: str = ""
    width: int = 0
    how: str = ""


@dataclass(frozen=True)
class Figures:
    """Panels side by side. `how` says in one sentence how to read them; `folded` ones the reader must open.

    `key` are the runs whose colours need telling; `columns` is "wide" (fill the width), "pair" (two beside) or "grid".
    Panels of a run are headed by its name, and with `titled` by their own heading as well.
    """

    kind: ClassVar[str] = "figures"
    panels: Sequence[Panel]
    how: str = ""
    heading: str = ""
    folded: bool = False
    key: Sequence[int] = ()
    columns: str = "wide"
    titled: bool = False


@dataclass(frozen=True)
class Numbers:
    """Rows by group, a column per run."""

    kind: ClassVar[str] = "numbers"
    groups: dict[str, list[Row]]
    heading: str = ""
    text: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Grid:
    """A matrix: rows by group, columns times runs."""

    kind: ClassVar[str] = "grid"
    matrix: Matrix
    head: str
    columns: Sequence[str]
    heading: str = ""
    text: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Settings:
    """Settings by group, a column per run."""

    kind: ClassVar[str] = "settings"
    groups: dict[str, list[tuple[str, tuple[str, ...]]]]
    heading: str = ""
    text: str = ""


@dataclass(frozen=True)
class Meanings:
    """Words and what they mean."""

    kind: ClassVar[str] = "meanings"
    entries: Sequence[tuple[str, str]]
    heading: str


@dataclass(frozen=True)
class Configs:
    """Whole texts behind a line each."""

    kind: ClassVar[str] = "configs"
    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Happened:
    """What happened to the runs on the way."""

    kind: ClassVar[str] = "happened"
    rows: Sequence[Happening]


Block = Figures | Numbers | Grid | Settings | Meanings | Configs | Happened


@dataclass(frozen=True)
class Hint:
    """What is missing, and the command that makes it."""

    text: str
    command: str = ""


@dataclass(frozen=True)
class Part:
    """A section of the page, `short` in its navigation."""

    anchor: str
    title: str
    short: str
    blocks: Sequence[Block]
    lead: str = ""
    hints: Sequence[Hint] = field(default_factory=list)


def svg(drawing: str) -> str:
    """A drawing as data: not inline, where ids inside one picture could meet those of another."""
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.encode()).decode("ascii")


def panel(heading: str, drawing: str, alt: str, run: int | None = None, caption: str = "", how: str = "") -> Panel:
    """A drawing as a panel."""
    return Panel(heading, svg(drawing), alt, run, caption, how=how)


def coloured(runs: Sequence[RunRecord]) -> list[tuple[int, str, RunRecord]]:
    """Position, colour and record of every run."""
    return [(i, run_colour(i), run) for i, run in enumerate(runs)]


def pictures(
    runs: Sequence[RunRecord], names: Sequence[str], wanted: Sequence[str], titles: dict[str, str]
) -> list[tuple[str, list[Panel]]]:
    """The sample pictures called `wanted`, by name over the runs; one that is the same in all runs is shown once."""
    groups: dict[str, list[Panel]] = {}
    for name in wanted:
        for i, run in enumerate(runs):
            for sample in (s for s in run.samples if s.name == name):
                uri, width = _picture(sample)
                alt = f"Images from {names[i]}: {sample.name}. {sample.caption}".strip()
                shown = Panel(titles.get(name, name), uri, alt, i, sample.caption, width)
                groups.setdefault(name, []).append(shown)
    same = {name: len(shown) > 1 and len({p.uri for p in shown}) == 1 for name, shown in groups.items()}
    return [(name, [replace(shown[0], run=None)] if same[name] else shown) for name, shown in groups.items()]


def evaluate_command(run: RunRecord, section: str = "") -> str:
    """The command that measures a run, or one section of it."""
    return f"jemstone evaluate {shlex.quote(str(run.path))}" + (f" --only {section}" if section else "")


def hints(runs: Sequence[RunRecord], names: Sequence[str], section: str, what: str) -> list[Hint]:
    """For each run that lacks `section`: that it was not measured, or had nothing to measure."""
    found = []
    for run, name in zip(runs, names, strict=True):
        if section in run.evaluation.empty:
            found.append(Hint(f"{name} has no {what}: there was nothing to measure, see the notes under Protocol."))
        elif section not in run.evaluation.measured:
            found.append(Hint(f"{name} has no {what} yet. To measure:", evaluate_command(run, section)))
    return found


def _picture(sample: SampleImage) -> tuple[str, int]:
    """The picture as a data URI and its width; large ones are shrunk. Both empty where the file is no picture."""
    try:
        content = sample.path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            width, kind = image.width, "png"
            if len(content) > _LARGEST_PNG:
                small, buffer = image.convert("RGB"), io.BytesIO()
                small.thumbnail((_WIDEST, 4 * _WIDEST))
                small.save(buffer, "JPEG", quality=86)
                content, width, kind = buffer.getvalue(), small.width, "jpeg"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "", 0
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}", width
