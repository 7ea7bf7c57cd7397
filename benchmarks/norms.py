"""BatchNorm and dropout in a JEM: the question that the paper leaves open, by experiment.

    python benchmarks/norms.py [--workers 2] [--rows FILE.jsonl]

Normalisation (none, batch with each kind of statistics, group) x dropout (0, 0.3) x three seeds, on digits with the
chains of JEM++ and without any anchor, guard or recovery, so that what normalisation does is seen bare. Writes
benchmarks/results/norms.json.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path
from typing import Any

import suite
from common import Cell, run_all, write

from jemstone import Augment, Diverged, Session, TrainConfig, recipe

KINDS = {
    "none": {"norm": "none"},
    "group": {"norm": "group"},
    "batch, train mode": {"norm": "batch", "statistics": "batch"},
    "batch, shared": {"norm": "batch", "statistics": "shared"},
    "batch, separate": {"norm": "batch", "statistics": "separate"},
    "batch, frozen": {"norm": "batch", "statistics": "frozen"},
}
DROPOUT = (0.0, 0.3)
SEEDS = (0, 1, 2)
STEPS, CLASSIFIER_STEPS = 400, 100


def config_of(cell: Cell) -> TrainConfig:
    """The settings of one cell (kind, dropout, seed)."""
    kind, dropout, seed = cell
    frozen = kind == "batch, frozen"
    return recipe("jem++-small").with_values(
        seed=seed,
        steps=STEPS,
        classifier_steps=CLASSIFIER_STEPS if frozen else 0,
        validate_every=0,
        network={"name": "conv-16", "dropout": dropout, **KINDS[kind]},
        chains={"mode": "train" if kind == "batch, train mode" else "eval", "buffer_size": 1000},
        optimizer={"learning_rate": 2e-3, "clip_norm": 0.0},
        augment=Augment(noise=0.03),
        weights={"class_nll": 1.0},
        limits={"window": 0, "energy": 1e30, "gap": 1e30},
        recovery={"attempts": 0},
    )


def run(cell: Cell) -> dict[str, Any]:
    """Train and measure one cell."""
    session = Session.start(config_of(cell))
    rows = []
    try:
        rows.extend(session.train())
    except Diverged as problem:
        return {"finished": False, "error": problem.reason, "steps": len(rows)}
    last = rows[-50:]
    means = {
        name: round(statistics.fmean(abs(row[name]) for row in last), 4)
        for name in ("energy_gap", "energy_auc", "train_accuracy", "norm_distance")
        if name in last[-1]
    }
    return {"finished": True, **means, **suite.score(session)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=Path, default=Path("runs/norms.jsonl"))
    options = parser.parse_args()
    cells = list(itertools.product(KINDS, DROPOUT, SEEDS))
    rows = run_all(cells, run, options.rows, options.workers)
    summary = {}
    for kind, dropout in itertools.product(KINDS, DROPOUT):
        mine = [row for row in rows if row["cell"][:2] == [kind, dropout]]
        sound = [row for row in mine if row["finished"]]
        names = [name for name in (sound or [{}])[0] if isinstance(sound[0][name], float)]
        summary[f"{kind}, dropout {dropout}"] = {
            "finished": len(sound),
            **{name: round(statistics.fmean(row[name] for row in sound), 4) for name in names},
        }
        print(f"{kind}, dropout {dropout}: {summary[f'{kind}, dropout {dropout}']}")
    write("norms", {"summary": summary, "rows": rows})


if __name__ == "__main__":
    main()
