"""What the command line shows: progress that also reads well in a log file, and the table of results."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from jemstone.evaluation import Result, comparison
from jemstone.training.loop import Metrics

SECONDS_BETWEEN_LINES = 10.0
WIDTH_OF_A_FILE = 120
SHOWN = ("class_nll", "train_accuracy", "energy_gap", "chain_grad_norm", "validation_accuracy")


def plain_console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is: a path may hold [brackets] or :colons:, which rich would take for markup."""
    console = Console(stderr=stderr, soft_wrap=True, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_OF_A_FILE
    return console


def show_training(console: Console, title: str, metrics: Iterator[Metrics], done: int, total: int) -> None:
    """Exhaust a training iterator behind a progress bar; without a terminal, print a line every few seconds."""
    latest: Metrics = {}
    if not console.is_terminal:
        _show_lines(console, title, metrics, total)
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
        task = progress.add_task(title, total=total, completed=done, numbers="")
        for row in metrics:
            latest |= row
            progress.update(task, completed=row["step"], numbers=_numbers(latest))


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
    """Metrics by run, value with 95 % interval; AUPR and FPR95 only with `full`."""
    table = Table(title="Test results, with 95 % intervals", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric", no_wrap=True)  # the end of a name tells it from the next: intervals wrap first
    table.add_column("better")
    for name in runs:
        table.add_column(name, justify="right")
    for row in comparison(runs):
        if full or not row.name.endswith(("/aupr", "/fpr95")):
            table.add_row(row.name, row.better, *("" if cell is None else _cell(cell) for cell in row.cells))
    return table


def _cell(result: Result) -> str:
    return f"{result.value:.3f} [{result.low:.3f}, {result.high:.3f}]"
