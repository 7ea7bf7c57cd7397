"""The whole idea on embedded data: a classifier and a JEM on digits, both evaluated, one report."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from jemstone.console import results_table, show_training, stage
from jemstone.errors import RunError
from jemstone.evaluation.evaluate_run import evaluate_run
from jemstone.evaluation.protocol import BUDGETS
from jemstone.report import write_report
from jemstone.runs import is_free
from jemstone.training.recipes import recipe
from jemstone.training.session import Session

RECIPES = ("classifier-small", "jem-small")


def demo(out: Path, *, seed: int, console: Console) -> Path:
    """Train and evaluate `RECIPES` on digits into `out`, print their table, and return the path of the report."""
    if not is_free(out):
        raise RunError(f"{out} exists and is not empty. Choose another --out, or delete it.")
    console.print(f"Training a plain classifier and a JEM on 8x8 digits; everything goes to {out}.")
    results = {}
    for name in RECIPES:
        run = out / name
        session = Session.start(recipe(name).with_values(seed=seed), run=run)
        with stage(console, f"{name}: training"):
            show_training(console, f"  {name}", session)
        with stage(console, f"{name}: evaluation"):
            results[name] = evaluate_run(
                run, protocol=BUDGETS["quick"], on_progress=lambda text: console.print(f"  {text}")
            )
    report = write_report([out / name for name in RECIPES], out / "report.html")
    console.print(results_table(results))
    return report
