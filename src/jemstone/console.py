"""What the command line shows: progress that also reads well in a log file, and the table of results."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from jemstone.doctor import Case, Diagnosis
from jemstone.errors import VERDICTS, Diverged
from jemstone.evaluation import Result, comparison
from jemstone.training.loop import Metrics
from jemstone.training.ranks import let_first_speak, rank
from jemstone.training.session import Session

SECONDS_BETWEEN_LINES = 10.0
WIDTH_OF_A_FILE = 120
_TOGETHER = "\N{NO-BREAK SPACE}"
SHOWN = ("class_nll", "train_accuracy", "energy_gap", "chain_grad_norm", "validation_accuracy")
HEADLINE = (
    *("accuracy", "nll", "brier", "ece", "scaled/nll", "scaled/ece", "temperature"),
    *("ood/*/log_density/auroc", "ood_mean/*/log_density/auroc", "ood_mean/*/max_probability/auroc"),
    *(
        "corruption/mean/*",
        "pgd_*",
        "autoattack_*",
        "refined/*/accuracy",
        "refined/0/pgd_*",
        "refined/*/worst_*",
        "distal/*",
    ),
    *("generation/fid", "generation/memorised", "by_class/fid", "by_class/consistent", "real/fid", "legacy/fid"),
    *("long_run/*", "likelihood/test"),
)
"""The results that the table shows unless all are asked for."""


def plain_console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is: a path may hold [brackets] or :colons:, which rich would take for markup."""
    console = Console(stderr=stderr, soft_wrap=True, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_OF_A_FILE
    return console


def explain(text: str) -> int:
    """Print an error and return the exit status. An error of all ranks is explained by rank 0 alone."""
    if rank():
        let_first_speak()
        text = f"rank {rank()}: {text}"
    plain_console(stderr=True).print(Text.assemble(("error:", "bold red"), f" {text}"))
    return 1


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as a line of its own; where in the code it was raised is of no use to a user."""
    if rank() == 0:
        plain_console(stderr=True).print(Text.assemble(("warning:", "bold yellow"), f" {message}"))


def show_training(console: Console, title: str, session: Session) -> None:
    """Train a session behind a progress bar; without a terminal, print a line every few seconds.

    Every recovery gets a line: the verdict, the step that training goes on from, and the remedy.
    """
    latest: Metrics = {}
    total = session.total_steps
    if not console.is_terminal:
        _show_lines(console, title, _with_recoveries(session, title, console), total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, completed=session.state.step, numbers="")
        for row in _with_recoveries(session, title, progress.console):
            latest |= row
            progress.update(task, completed=row["step"], numbers=_numbers(latest))


def _with_recoveries(session: Session, title: str, console: Console) -> Iterator[Metrics]:
    """The metrics of every step; recoveries between two of them, and those before training gives up, are told."""
    told = len(session.state.treatment.failures)
    try:
        for row in session.train():
            if len(session.state.treatment.failures) > told:
                told = _tell_recoveries(session, title, console, told)
            yield row
    except Diverged:
        _tell_recoveries(session, title, console, told)
        raise


def _tell_recoveries(session: Session, title: str, console: Console, told: int) -> int:
    """Print the recoveries after the first `told` ones; returns how many there have been."""
    events = [] if session.run is None else session.run.rows("events.jsonl")
    for event in [event for event in events if event.get("event") == "recovered"][told:]:
        verdict, remedy = event["verdict"], ", ".join(event["remedy"]) or "the same settings"
        console.print(
            f"{title}  step {event['failed_step']}: {verdict} ({VERDICTS[verdict]}). "
            f"Back to step {event['step']}, going on with: {remedy}"
        )
    return len(session.state.treatment.failures)


def _show_lines(console: Console, title: str, metrics: Iterator[Metrics], total: int) -> None:
    latest: Metrics = {}
    last = -SECONDS_BETWEEN_LINES
    for row in metrics:
        latest |= row
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or row["step"] == total:
            last = now
            console.print(f"{title}  step {int(row['step'])}/{total}  {_numbers(latest)}")


def _numbers(metrics: Metrics) -> str:
    return "  ".join(f"{name} {metrics[name]:.3f}" for name in SHOWN if name in metrics)


@contextmanager
def stage(console: Console, title: str) -> Iterator[None]:
    """Name a piece of work and say how long it took."""
    began = time.monotonic()
    console.print(title, style="bold")
    yield
    console.print(f"  done in {time.monotonic() - began:.0f} s", style="dim")


def results_table(runs: Mapping[str, Sequence[Result]], *, full: bool = False) -> Table:
    """Metrics by run, value with 95 % interval; with `full` all of them, otherwise those of HEADLINE."""
    table = Table(title="Test results, with 95 % intervals", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric", no_wrap=True)  # the end of a name tells it from the next: intervals wrap first
    table.add_column("better")
    for name in runs:
        table.add_column(name, justify="right")
    for row in comparison(runs):
        if full or any(fnmatchcase(row.name, pattern) for pattern in HEADLINE):
            table.add_row(row.name, row.better, *("" if cell is None else _cell(cell) for cell in row.cells))
    return table


def _cell(result: Result) -> str:
    return f"{result.value:.3f} [{result.low:.3f}, {result.high:.3f}]"


def show_diagnosis(console: Console, case: Case, diagnosis: Diagnosis) -> None:
    """The verdict in the first line, then what happened, why, and what to change."""
    console.print(Text.assemble("verdict: ", (diagnosis.headline, "bold green" if diagnosis.healthy else "bold red")))
    for sentence in case.reading:
        console.print(
            textwrap.fill(sentence, WIDTH_OF_A_FILE, initial_indent="  ", subsequent_indent="  "), style="dim"
        )
    for finding in diagnosis.findings:
        span = (
            f"step {finding.failed}"
            if finding.onset == finding.failed
            else f"steps {finding.onset} to {finding.failed}"
        )
        console.print(Text.assemble("\n", (f"{finding.verdict}, {span}: {finding.meaning}", "bold")))
        _item(console, "seen", finding.what)
        _item(console, "why", " ".join(finding.why))
        for done in finding.done:
            _item(console, "done", done)
    if diagnosis.change:
        where = " in the settings of a new run" if case.config is not None else ""
        console.print(Text.assemble("\n", (f"What to change{where}", "bold"), ", the first thing first"))
        for number, change in enumerate(diagnosis.change, start=1):
            _item(console, f"{number}.", change)
    for title, lines in (
        ("Worth knowing", [f"{a.topic}: {a.what} {a.change}" for a in diagnosis.advice]),
        ("On record", diagnosis.notes),
    ):
        if lines:
            console.print(Text.assemble("\n", (title, "bold")))
        for line in lines:
            _item(console, "-", line)
    if diagnosis.numbers:
        console.print(Text.assemble("\n", ("The end of the log", "bold"), " (medians over its last quarter)"))
        numbers = [f"{name} {value}".replace(" ", _TOGETHER) for name, value in diagnosis.numbers.items()]
        lines = textwrap.wrap("  ".join(numbers), WIDTH_OF_A_FILE - 4)
        console.print("\n".join(f"  {line}" for line in lines).replace(_TOGETHER, " "))


def _item(console: Console, head: str, text: str) -> None:
    """A labelled paragraph that hangs under its label; names of settings are never broken at their dashes."""
    width = max(40, min(console.width, WIDTH_OF_A_FILE) - 8)
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    console.print(f"  {head:<5} " + "\n        ".join(lines))
