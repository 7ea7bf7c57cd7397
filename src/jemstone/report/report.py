"""Runs in, one self-contained HTML file out: numbers with intervals, figures, samples, settings.

The page needs no network, no script and no other file. Everything on it is read from the runs; nothing is measured
here, and no word of praise is written here.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from jemstone.errors import RunError
from jemstone.report.doubts import cards
from jemstone.report.parts import Hint, Numbers, Part, evaluate_command
from jemstone.report.parts_attacks import distal, refinement, robustness
from jemstone.report.parts_predictions import calibration, corruptions, ood
from jemstone.report.parts_samples import likelihood, long_run, samples
from jemstone.report.parts_training import protocol, settings, training
from jemstone.report.plots import run_colour
from jemstone.report.read import RunRecord, read_run
from jemstone.report.summary import in_short, notices, title
from jemstone.report.tables import comparison, headline
from jemstone.runs import labels, write_atomically

SECTIONS = {
    "calibration": "calibration",
    "ood": "out-of-distribution detection",
    "corruptions": "corruptions",
    "robustness": "robustness",
    "refinement": "refinement defence",
    "distal": "distal adversarials",
    "generation": "samples",
    "long_run": "long-run chains",
    "likelihood": "likelihood",
}
"""The sections of an evaluation by name, and what they measure."""
MANY = 7
"""Groups of more rows than this are folded."""


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write one HTML file that compares the run directories `runs`, and return its path.

    The file appears whole or not at all. Raises RunError where a directory is no run, or where none is given.
    """
    if not runs:
        raise RunError("There is nothing to report on: give at least one run directory, as in `jemstone report RUN`.")
    records = [read_run(Path(path)) for path in runs]
    page = render(records)
    if out.is_dir():
        raise RunError(f"The report is one file, and {out} is a folder: name a file, such as {out / 'report.html'}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page.encode())
    return out


def render(runs: Sequence[RunRecord]) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = labels([run.path for run in runs])
    makers = (
        *(results, ood, corruptions, calibration, robustness, refinement, distal, samples, long_run, likelihood),
        *(training, settings, protocol),
    )
    parts = [make(runs, names) for make in makers]
    return environment.get_template("page.html.j2").render(
        title=title(runs, names),
        in_short=in_short(runs, names),
        notices=notices(runs, names),
        doubts=cards(runs),
        runs=[_card(index, run, name) for index, (run, name) in enumerate(zip(runs, names, strict=True))],
        # What is missing is always said about results and training; of other parts only where one run has them.
        parts=[part for part in parts if part.blocks or (part.hints and part.anchor in ("results", "training"))],
    )


def results(runs: Sequence[RunRecord], names: Sequence[str]) -> Part:
    """The main numbers, then all of them by group, and what was not measured."""
    blocks, groups = [], comparison(runs)
    if main := headline(runs):
        blocks.append(Numbers({"": main}, text=_legend(runs)))
    short = {name: rows for name, rows in groups.items() if len(rows) <= MANY}
    if short:
        blocks.append(
            Numbers(short, "All numbers", "Those of detection and of samples stand in their own parts below.")
        )
    blocks += [Numbers({name: rows}, name, folded=True) for name, rows in groups.items() if len(rows) > MANY]
    return Part("results", "Results", "Results", blocks, "", _gaps(runs, names))


def _legend(runs: Sequence[RunRecord]) -> str:
    text = (
        "Measured values with their 95 % intervals beneath; n is the number of examples. ↑ higher is better, ↓ lower "
        "is better, and where neither stands neither is."
    )
    if len(runs) > 1:
        text += (
            " Bold marks a run whose interval lies entirely on the better side of another run's, while no run is so "
            "ahead of it. Where intervals overlap nothing is marked: that is no proof that the runs are equal."
        )
    return text


def _gaps(runs: Sequence[RunRecord], names: Sequence[str]) -> list[Hint]:
    """What was not measured, with the command that measures it."""
    found = []
    for run, name in zip(runs, names, strict=True):
        missing = [section for section in SECTIONS if section not in run.evaluation.measured]
        if not run.results:
            found.append(Hint(f"{name} has no results yet. To make them:", evaluate_command(run)))
        elif missing:
            words = ", ".join(SECTIONS[section] for section in missing)
            found.append(
                Hint(f"Not measured in {name}: {words}. To measure:", evaluate_command(run, " ".join(missing)))
            )
    return found


def _card(index: int, run: RunRecord, name: str) -> dict[str, Any]:
    """Who a run is."""
    last = run.metrics[-1] if run.metrics else {}
    facts = [str(run.config[key]) for key in ("recipe",) if key in run.config]
    facts += [f"seed {run.config['seed']}"] if "seed" in run.config else []
    facts += [f"imported from {run.imported.get('file', 'a file')}"] if run.imported else []
    facts += [f"{int(last['step']):,} steps"] if last else ["no training on record"]
    facts += [f"{last['epoch']:.3g} epochs"] if last.get("epoch", 0) > 0 else []
    return {
        "name": name,
        "colour": run_colour(index),
        "facts": facts,
        "doctor": f"jemstone doctor {shlex.quote(str(run.path))}",
    }
