"""jemstone score: predictions for very many inputs."""

from __future__ import annotations

import time
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from jemstone.commands.policy import USAGE, add_policy, load_predictor
from jemstone.console import SECONDS_BETWEEN_LINES
from jemstone.deployment.bulk import score
from jemstone.execution import keep_freed_memory

NAME = "score"
HELP = "predictions for very many inputs, as Parquet"


def parser() -> ArgumentParser:
    """Its arguments."""
    parser = ArgumentParser(
        usage="jemstone score RUN SOURCE --out FILE.parquet [--engine local|ray] [--workers N] [--batch_size N]\n"
        f"                      [--fresh] {USAGE}",
        description="Predict every input of a source: a folder of images with all folders in it, a .npz, a .parquet "
        "with encoded images or a folder of these. One row for each input, in order; inputs that cannot be read "
        "are rows with an error. Stopped at any moment and started again, it goes on.",
    )
    parser.add_argument("run", metavar="RUN", help="run directory, or another name of a model")
    parser.add_argument("source", metavar="SOURCE", help="folder, .npz or .parquet")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="this process, or Ray's actors")
    parser.add_argument("--workers", type=int | None, help="threads that decode, or actors of Ray")
    parser.add_argument("--batch_size", type=int | None, help="inputs computed at a time")
    add_policy(parser)
    parser.add_argument("--fresh", action="store_true", help="replace what is there, finished or not")
    return parser


def run(options: Namespace, console: Console) -> None:
    """Score, with a line every few seconds, and say how many inputs there are of each kind."""
    keep_freed_memory()
    predictor = load_predictor(options.run, options)
    began = told = time.monotonic()
    first: int | None = None

    def progress(done: int, rows: int) -> None:
        nonlocal told, first
        now = time.monotonic()
        first = done if first is None else first
        if now - told >= SECONDS_BETWEEN_LINES:
            told = now
            rate = (done - first) / (now - began)
            left = f", {(rows - done) / rate:.0f} s left" if rate else ""
            console.print(f"{done} of {rows} inputs  {rate:.0f} per second{left}")

    found = score(
        predictor,
        options.source,
        options.out,
        engine=options.engine,
        workers=options.workers,
        batch_size=options.batch_size,
        fresh=options.fresh,
        on_progress=progress,
    )
    console.print(
        f"{found.rows} inputs in {options.out}: {found.accepted} accepted, {found.ambiguous} ambiguous, "
        f"{found.foreign} out of distribution, {found.errors} unreadable."
    )
