"""The recipes beside each other at equal compute: digits and Fashion-MNIST, three seeds, with intervals.

    python benchmarks/recipes.py --data DIR [--workers 2] [--rows FILE.jsonl] [--only digits]

DIR holds fashion_mnist.npz and mnist.npz (train_images, train_labels, test_images, test_labels). Every recipe gets the
same number of forward passes (suite.step_cost) on the same network width. Writes benchmarks/results/recipes.json: rows,
and for each suite and recipe the mean and the half width of the 95 % t interval of every number.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import suite
from common import Cell, run_all, write

from jemstone import Diverged, Session, TrainConfig, load_inputs, recipe

RECIPES = ("classifier-small", "jem-small", "jem++-small", "sada-jem-small", "dat-small", "jemstone-small")
SEEDS = (0, 1, 2)
STEPS_OF_JEM = {"digits": 400, "fashion": 500}
NETWORK = {"digits": "conv-32", "fashion": "conv-16"}
FOREIGN = 2000


def config_of(cell: Cell) -> TrainConfig:
    """The settings of one cell (suite, recipe, seed, folder of the data)."""
    name, recipe_name, seed, folder = cell
    config = recipe(recipe_name).with_values(seed=seed, validate_every=0, network={"name": NETWORK[name]})
    if name == "fashion":
        config = config.with_values(data={"source": f"{folder}/fashion_mnist.npz"})
        if config.chains.start == "uniform" and config.weights.marginal:
            # Uniform starts, right for 8x8, let the energy of 28x28 images drift (docs/log.md).
            config = config.with_values(chains={"start": "gaussian"})
    budget = STEPS_OF_JEM[name] * suite.step_cost(recipe("jem-small"))
    if not config.weights.generative:  # what it would not use is not wasted on it: it gets the steps, not the chains
        return config.with_values(steps=STEPS_OF_JEM[name])
    config = suite.at_equal_cost(config, budget)
    return config.with_values(classifier_steps=(config.steps or 0) // 3 if config.classifier_steps else 0)


def run(cell: Cell) -> dict[str, Any]:
    """Train and measure one cell."""
    name, _, _, folder = cell
    began = time.monotonic()
    session = Session.start(config_of(cell))
    try:
        for row in session.train():
            last = row
    except Diverged as problem:
        return {"finished": False, "error": problem.reason}
    seconds = round(time.monotonic() - began, 1)
    foreign = {}
    if name == "fashion":
        foreign["mnist"] = load_inputs(f"{folder}/mnist.npz", session.data.input_shape)[:FOREIGN]
    return {
        "finished": True,
        "steps": session.state.step,
        "recoveries": len(session.state.treatment.failures),
        "seconds": seconds,
        "energy_auc": round(last.get("energy_auc", 0.5), 3),
        **suite.score(session, foreign),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=Path, default=Path("runs/recipes.jsonl"))
    parser.add_argument("--only", choices=tuple(NETWORK))
    options = parser.parse_args()
    suites = (options.only,) if options.only else tuple(NETWORK)
    cells = [
        (*cell, str(options.data))
        for cell in itertools.product(suites, RECIPES, SEEDS)
        if cell[:2] != ("fashion", "dat-small")  # at these steps its chains cost half an hour of a CPU per seed
    ]
    rows = run_all(cells, run, options.rows, options.workers)
    for row in rows:
        row["cell"] = row["cell"][:3]
    summary: dict[str, dict[str, Any]] = {}
    for name, recipe_name in itertools.product(suites, RECIPES):
        mine = [row for row in rows if row["cell"][:2] == [name, recipe_name] and row["finished"]]
        numbers = {}
        for key in mine[0] if mine else ():
            if isinstance(mine[0][key], float):
                mean, half = suite.interval([row[key] for row in mine])
                numbers[key] = {"mean": round(mean, 4), "half_width": round(half, 4)}
        summary[f"{name}/{recipe_name}"] = {"finished": len(mine), **numbers}
        shown = ("accuracy", "ece", "auroc", "pgd", "frechet")
        if mine:
            print(name, recipe_name, {key: tuple(numbers[key].values()) for key in shown if key in numbers})
    write("recipes", {"summary": summary, "rows": rows})


if __name__ == "__main__":
    main()
