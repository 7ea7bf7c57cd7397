"""What each part of `jemstone-small` is worth: one setting changed at a time, on digits, two seeds, the same steps.

    python benchmarks/ablation.py [--workers 2] [--rows FILE.jsonl]

Options that the recipe leaves off are switched on one by one too. Guard and recovery are off: what is seen is the
setting. Writes benchmarks/results/ablation.json.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path
from typing import Any

import suite
from common import Cell, run_all, write

from jemstone import Diverged, Session, recipe

VARIANTS: dict[str, dict[str, Any]] = {
    "jemstone-small": {},
    "without normalisation": {"network": {"norm": "none"}},
    "BatchNorm in its place, separate": {"network": {"norm": "batch", "statistics": "separate"}},
    "without the anchor": {"weights": {"energy_l2": 0.0}},
    "without clipping": {"optimizer": {"clip_norm": 0.0}},
    "without anchor and clipping": {"weights": {"energy_l2": 0.0}, "optimizer": {"clip_norm": 0.0}},
    "class weight 1": {"weights": {"class_nll": 1.0}},
    "uniform start": {"chains": {"start": "uniform"}},
    "clipped kernel, no noise": {"chains": {"kernel": "clipped", "noise": 0.0}},
    "5 to 20 chain steps, adaptive": {"chains": {"steps": 5, "max_steps": 20}},
    "5 chain steps": {"chains": {"steps": 5}},
    "gradient balance 1": {"optimizer": {"balance": 1.0}},
    "ASAM 0.5": {"optimizer": {"sam_rho": 0.5, "sam_adaptive": True}},
    "spectral norm": {"network": {"spectral_norm": True}},
}
SEEDS = (0, 1)
SHOWN = ("accuracy", "ece", "auroc", "pgd", "frechet", "energy_gap")


def run(cell: Cell) -> dict[str, Any]:
    """Train and measure one cell (variant, seed)."""
    variant, seed = cell
    config = recipe("jemstone-small").with_values(
        seed=seed,
        steps=300,
        validate_every=0,
        network={"name": "conv-16"},
        limits={"window": 0, "energy": 1e30, "gap": 1e30},
        recovery={"attempts": 0},
    )
    session = Session.start(config.with_values(**VARIANTS[variant]))
    rows = []
    try:
        rows.extend(session.train())
    except Diverged as problem:
        return {"finished": False, "error": problem.reason}
    gap = statistics.fmean(abs(row["energy_gap"]) for row in rows[-50:])
    return {"finished": True, "energy_gap": round(gap, 4), **suite.score(session)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=Path, default=Path("runs/ablation.jsonl"))
    options = parser.parse_args()
    rows = run_all(list(itertools.product(VARIANTS, SEEDS)), run, options.rows, options.workers)
    summary = {}
    for variant in VARIANTS:
        mine = [row for row in rows if row["cell"][0] == variant and row["finished"]]
        numbers = {name: round(statistics.fmean(row[name] for row in mine), 4) for name in SHOWN} if mine else {}
        summary[variant] = {"finished": len(mine), **numbers}
        print("|", variant, "|", " | ".join(f"{numbers[name]:.3f}" for name in SHOWN if numbers), "|")
    write("ablation", {"summary": summary, "rows": rows})


if __name__ == "__main__":
    main()
