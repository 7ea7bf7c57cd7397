"""Adam against Muon: steps and CPU seconds until `jemstone-small` has reached a quality on the validation split.

    python benchmarks/optimizers.py
    python benchmarks/optimizers.py --data FASHION.npz --validation 0.02 --steps 300 --seeds 1 \\
        --accuracy 0.75 --nll 0.65 --name optimizers_fashion

Each optimiser at two learning rates, everything else as in the recipe, one thread. The guard judges
and recovery is off: a run that the guard stops counts as not finished. Writes benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

from common import Cell, run_all, write

from jemstone import Diverged, Session, recipe

VARIANTS: dict[str, dict[str, Any]] = {
    "adam 3e-3 (the recipe)": {},
    "adam 1e-2": {"learning_rate": 1e-2},
    "muon 3e-3": {"name": "muon"},
    "muon 1e-2": {"name": "muon", "learning_rate": 1e-2},
}


def run(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Train one cell (variant, seed) and say when it got where."""
    variant, seed = cell
    config = recipe("jemstone-small").with_values(
        seed=seed,
        steps=options.steps,
        validate_every=10,
        data={"source": options.data, "limit": options.limit, "validation": options.validation},
        optimizer=VARIANTS[variant],
        recovery={"attempts": 0},
        device="cpu",
    )
    rows: list[dict[str, Any]] = []
    session = Session.start(config)
    began = time.process_time()  # with one thread, what another process takes of the machine does not count
    try:
        rows.extend({**row, "seconds": round(time.process_time() - began, 3)} for row in session.train())
    except Diverged as problem:
        return {"finished": False, "error": problem.reason, "steps": len(rows)}
    seen = [row for row in rows if "validation_nll" in row]
    accurate = next((row for row in seen if row["validation_accuracy"] >= options.accuracy), {})
    likely = next((row for row in seen if row["validation_nll"] <= options.nll), {})
    last = rows[-50:]
    return {
        "finished": True,
        "steps_to_accuracy": accurate.get("step"),
        "seconds_to_accuracy": accurate.get("seconds"),
        "steps_to_nll": likely.get("step"),
        "seconds_to_nll": likely.get("seconds"),
        "seconds": rows[-1]["seconds"],
        "validation_accuracy": round(rows[-1]["validation_accuracy"], 4),
        "validation_nll": round(rows[-1]["validation_nll"], 4),
        "energy_gap": round(statistics.fmean(abs(row["energy_gap"]) for row in last), 4),
        "energy_auc": round(statistics.fmean(row["energy_auc"] for row in last), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--validation", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--accuracy", type=float, default=0.97)
    parser.add_argument("--nll", type=float, default=0.07)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--name", default="optimizers")
    options = parser.parse_args()
    cells = list(itertools.product(VARIANTS, range(options.seeds)))
    rows = run_all(cells, partial(run, options=options), Path(f"runs/{options.name}.jsonl"), workers=1)
    summary: dict[str, dict[str, Any]] = {}
    for variant in VARIANTS:
        mine = [row for row in rows if row["cell"][0] == variant and row["finished"]]
        names = [name for name, value in (mine or [{}])[0].items() if name not in ("cell", "finished")]
        found = {name: [row[name] for row in mine if row[name] is not None] for name in names}
        means = {name: round(statistics.fmean(values), 4) for name, values in found.items() if values}
        summary[variant] = {"finished": len(mine), **means}
        print(f"{variant}: {summary[variant]}")
    settings = {**vars(options), "data": Path(options.data).stem}
    write(options.name, {"settings": settings, "summary": summary, "rows": rows})


if __name__ == "__main__":
    main()
