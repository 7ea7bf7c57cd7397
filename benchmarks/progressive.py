"""Progressive resolution: CPU time to a validation accuracy, and the health of the energies, with and without it.

    python benchmarks/progressive.py --data fashion_mnist.npz [--steps 400] [--out FILE]

The recipe `jemstone-small` on wrn-10-1 and 6,000 images, two seeds, none, half or three quarters of the steps at half
the resolution. Seconds are CPU seconds of one thread, validation every 20 steps included; accuracies count only where
they were measured at full resolution. Writes results/progressive.json.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import common

from jemstone.data import Dataset, Split, load_dataset
from jemstone.training.config import TrainConfig
from jemstone.training.recipes import recipe
from jemstone.training.session import Session

SHARES, SEEDS = (0.0, 0.5, 0.75), (0, 1)
TARGETS = (0.70, 0.75, 0.80)
AFTER = 25
"""Steps after the switch whose health is told apart: half a window of the guard."""


def configuration(share: float, seed: int, steps: int) -> TrainConfig:
    return recipe("jemstone-small").with_values(
        seed=seed,
        steps=steps,
        network={"name": "wrn-10-1", "norm": "group", "activation": "silu"},
        batch_size=32,
        real_batch_size=32,
        chains={"steps": 10, "buffer_size": 1000},
        optimizer={"warmup_steps": 50},
        progressive={"share": share},
        validate_every=20,
        device="cpu",
        precision="32-true",
        layout="contiguous",
        compile="off",
    )


def data_of(source: str) -> Dataset:
    """One split for all seeds, with 500 images to validate on, so that validation takes little of the time."""
    data = load_dataset(source, seed=0, limit=6000)
    rows = data.validation.spread(500)
    return replace(data, validation=Split(rows.inputs, rows.labels))


def measured(cell: common.Cell, source: str) -> dict[str, Any]:
    share, seed, steps = cell
    session = Session.start(configuration(share, seed, steps), data_of(source))
    began = time.process_time()
    rows = [row | {"cpu_s": time.process_time() - began} for row in session.train()]
    side = session.data.input_shape[-1]
    curve = [
        {name: round(row[name], 4) for name in ("step", "cpu_s", "validation_accuracy", "validation_nll")}
        | {"resolution": row.get("resolution", side)}
        for row in rows
        if "validation_accuracy" in row
    ]
    full = [point for point in curve if point["resolution"] == side]
    switch = session.trainer.low_steps
    reached = {
        f"{target:.2f}": next((point for point in full if point["validation_accuracy"] >= target), None)
        for target in TARGETS
    }
    return {
        "cpu_s": round(rows[-1]["cpu_s"], 1),
        "cpu_s_low": round(rows[switch - 1]["cpu_s"], 1) if switch else 0.0,
        "reached": {
            target: point and {name: point[name] for name in ("step", "cpu_s")} for target, point in reached.items()
        },
        "accuracy": curve[-1]["validation_accuracy"],
        "nll": curve[-1]["validation_nll"],
        "failures": list(session.state.treatment.failures),
        "after_the_switch": health(rows[switch : switch + AFTER]) if switch else None,
        "at_the_end": health(rows[-2 * AFTER :]),
        "curve": curve,
    }


def health(rows: list[dict[str, float]]) -> dict[str, float]:
    """Extremes and medians of what the guard watches."""
    return {
        "largest_gap": round(max(abs(row["energy_gap"]) for row in rows), 3),
        "median_gap": round(statistics.median(row["energy_gap"] for row in rows), 3),
        "median_auc": round(statistics.median(row["energy_auc"] for row in rows), 3),
        "median_distinct": round(statistics.median(row["distinct"] for row in rows), 3),
        "lowest_accuracy": round(min(row["train_accuracy"] for row in rows), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="an .npz file of images with even sides")
    parser.add_argument("--steps", type=int, default=400, help="training steps")
    parser.add_argument("--out", type=Path, default=Path("runs/progressive.jsonl"), help="finished runs, for a restart")
    options = parser.parse_args()
    cells = [(share, seed, options.steps) for seed in SEEDS for share in SHARES]
    runs = common.run_all(cells, functools.partial(measured, source=options.data), options.out, workers=1)
    content = {"data": Path(options.data).name, "steps": options.steps, "runs": runs}
    print(f"written to {common.write('progressive', content)}")


if __name__ == "__main__":
    main()
