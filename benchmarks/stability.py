"""How often training comes apart, and how often it mends itself: a grid, without and with guard and recovery.

    python benchmarks/stability.py [--workers 2] [--rows FILE.jsonl] [--only unguarded]

Recipes x networks (norm, activation) x learning rate x chain steps x seeds on digits. Each cell is trained twice.
Without: nothing stops it but a non-finite number. With: the defaults. Every finished cell is appended to --rows, and a
second start goes on from there. The result, with a summary, is written to benchmarks/results/stability.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

from common import Cell, run_all, write
from matplotlib.figure import Figure

from jemstone import Augment, Diverged, Session, TrainConfig, recipe
from jemstone.training.validation import validate

RECIPES = {"jem": 2e-3, "jem++": 0.03}
"""As published, with a learning rate (1x) at which digits are learnt in the steps given here."""
NETWORKS = (("none", "silu"), ("none", "leaky_relu"), ("group", "silu"), ("batch", "relu"))
RATES = (1, 3, 10, 30)
CHAIN_STEPS = (1, 5, 20)
SEEDS = (0, 1, 2)
STEPS = 300
LAST = 50
GAP, ENERGY, LOST, FALL = 5.0, 200.0, 0.5, 0.35
"""A cell failed if a number was not finite; if |energy gap| or |energy|, averaged over the last 50 steps, is beyond
these, in nats; if its test accuracy is below this share of that of the best unguarded cell of its network; or if its
training accuracy, averaged over 25 steps, ever fell by this much (at the end such a cell may look sound again)."""


def config_of(cell: Cell) -> TrainConfig:
    """The settings of one cell."""
    name, norm, activation, rate, chain_steps, seed, guarded = cell
    mode = recipe(name).chains.mode if norm == "batch" else "eval"
    config = recipe(name).with_values(
        seed=seed,
        steps=STEPS,
        validate_every=50,
        checkpoint_every=500,
        network={"name": "conv-8", "norm": norm, "activation": activation},
        optimizer={"learning_rate": RECIPES[name] * rate, "warmup_steps": 20},
        chains={"steps": chain_steps, "mode": mode, "buffer_size": 1000},
        augment=Augment(noise=0.03),
        augment_real=Augment(noise=0.03),
    )
    if not guarded:
        config = config.with_values(limits={"window": 0, "energy": 1e30, "gap": 1e30}, recovery={"attempts": 0})
    return config


def run(cell: Cell) -> dict[str, Any]:
    """Train one cell and say how it ended."""
    session = Session.start(config_of(cell))
    rows: list[dict[str, float]] = []
    began = time.monotonic()
    error = ""
    try:
        rows.extend(session.train())
    except Diverged as problem:
        error = f"{problem.verdict}: {problem.reason}"
    accuracy = validate(session.model, session.data.test, session.trainer.fabric)["accuracy"]
    last = rows[-LAST:]
    return {
        "finished": not error,
        "error": error,
        "accuracy": accuracy,
        "energy": mean_of(last, lambda row: max(abs(row["energy_real"]), abs(row["energy_negatives"]))),
        "gap": mean_of(last, lambda row: abs(row["energy_gap"])),
        "fall": fall([row["train_accuracy"] for row in rows]),
        "failures": len(session.state.treatment.failures),
        "steps_run": len(rows),
        "seconds": round(time.monotonic() - began, 1),
    }


def fall(accuracy: list[float], over: int = 25) -> float:
    """The largest fall of an average over so many steps below an earlier one."""
    means = [statistics.fmean(accuracy[i : i + over]) for i in range(len(accuracy) - over + 1)]
    return max((best - mean for best, mean in zip(itertools.accumulate(means, max), means, strict=True)), default=0.0)


def mean_of(rows: list[dict[str, float]], value: Any) -> float | None:
    """The mean of a number over rows; None without rows."""
    return statistics.fmean(value(row) for row in rows) if rows else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=Path, default=Path("runs/stability.jsonl"), help="finished cells")
    parser.add_argument("--only", choices=("unguarded", "guarded"))
    options = parser.parse_args()
    modes = {"unguarded": (False,), "guarded": (True,), None: (False, True)}[options.only]
    cells = [
        (name, *net, rate, chain_steps, seed, guarded)
        for guarded, seed, name, net, rate, chain_steps in itertools.product(
            modes, SEEDS, RECIPES, NETWORKS, RATES, CHAIN_STEPS
        )
    ]
    rows = run_all(cells, run, options.rows, options.workers)
    if options.only is None:
        outcome = summary(rows)
        print(json.dumps(outcome, indent=1))
        write("stability", {"summary": outcome, "rows": rows})
        draw(rows, Path(__file__).parents[1] / "docs" / "images" / "stability-grid.png")


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Test accuracy, mean over seeds, without and with the guard; a cell says how many of its seeds ended soundly."""
    figure = Figure(figsize=(9.5, 8.5), layout="constrained")
    axes = figure.subplots(len(RECIPES) * 2, len(NETWORKS), sharex=True, sharey=True)
    places = itertools.product(enumerate(RECIPES), enumerate((False, True)), enumerate(NETWORKS))
    for (r, name), (g, guarded), (column, net) in places:
        ax = axes[2 * r + g, column]
        grid = [[[] for _ in CHAIN_STEPS] for _ in RATES]
        for row in rows:
            if row["cell"][:3] == [name, *net] and row["cell"][-1] == guarded:
                grid[RATES.index(row["cell"][3])][CHAIN_STEPS.index(row["cell"][4])].append(row)
        ax.imshow(
            [[statistics.fmean(x["accuracy"] for x in cell) for cell in line] for line in grid],
            vmin=0.1,
            vmax=1,
            cmap="RdYlGn",
        )
        for (i, line), (j, _) in itertools.product(enumerate(grid), enumerate(CHAIN_STEPS)):
            good = sum(sound(x) and x["accuracy"] > LOST and (guarded or x["fall"] <= FALL) for x in line[j])
            ax.text(j, i, f"{good}/{len(line[j])}", ha="center", va="center", fontsize=8)
        ax.set_xticks(range(len(CHAIN_STEPS)), CHAIN_STEPS)
        ax.set_yticks(range(len(RATES)), [f"{rate}x" for rate in RATES])
        if column == 0:
            ax.set_ylabel(f"{name}\n{'guard and recovery' if guarded else 'without'}\nlearning rate")
        if r == g == 0:
            ax.set_title(f"{net[0]}, {net[1]}")
        if r == len(RECIPES) - 1 and guarded:
            ax.set_xlabel("chain steps K")
    figure.savefig(out, dpi=110)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the grid says: how many cells fail without the guard, and what becomes of each with it."""
    plain = {tuple(row["cell"][:-1]): row for row in rows if not row["cell"][-1]}
    guarded = {tuple(row["cell"][:-1]): row for row in rows if row["cell"][-1]}
    best: dict[Any, float] = {}
    for cell, row in plain.items():
        if sound(row):
            best[cell[1:3]] = max(best.get(cell[1:3], 0.0), row["accuracy"])
    ended_badly = {cell for cell, row in plain.items() if not sound(row) or row["accuracy"] < LOST * best[cell[1:3]]}
    failed = ended_badly | {cell for cell, row in plain.items() if row["fall"] > FALL}
    recovered = [cell for cell, row in guarded.items() if row["failures"] and row["finished"]]
    losses = [100 * (best[cell[1:3]] - guarded[cell]["accuracy"]) for cell in recovered]
    healthy = [cell for cell in plain if cell not in failed]
    return {
        "cells": len(plain),
        "unguarded_failed": len(failed) / len(plain),
        "unguarded_ended_badly": len(ended_badly) / len(plain),
        "guarded_finished": sum(row["finished"] for row in guarded.values()) / len(guarded),
        "guarded_sound": sum(sound(row) for row in guarded.values()) / len(guarded),
        "false_alarms": sum(guarded[cell]["failures"] > 0 for cell in healthy) / len(healthy),
        "missed": sum(guarded[cell]["failures"] == 0 for cell in failed) / len(failed),
        "median_accuracy_loss": statistics.median(losses),
        "mean_accuracy_loss": statistics.fmean(losses),
        "recovered": len(recovered),
        "best_stable_accuracy": {"/".join(net): accuracy for net, accuracy in best.items()},
        "steps_per_recovered_cell": statistics.median(guarded[cell]["steps_run"] for cell in recovered),
    }


def sound(row: dict[str, Any]) -> bool:
    """Whether a cell ended with finite numbers and a density that still means something."""
    return bool(row["finished"] and row["gap"] <= GAP and row["energy"] <= ENERGY)


if __name__ == "__main__":
    main()
