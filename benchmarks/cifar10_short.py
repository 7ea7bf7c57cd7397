"""CIFAR-10, Wide ResNet 16-2, the `sada-jem` recipe, a few hundred steps: does it run, stay bounded, and resume?

    python benchmarks/cifar10_short.py --data cifar10.npz [--steps 300] [--out DIR]

Stops half-way, resumes from the checkpoint, and goes on. Writes results/cifar10_short.json.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import common

from jemstone.evaluation import BUDGETS
from jemstone.evaluation.evaluate_run import evaluate_run
from jemstone.report import write_report
from jemstone.runs import Run
from jemstone.training.recipes import recipe
from jemstone.training.session import Session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="an .npz file or the official python folder")
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10-short"), help="run directory")
    options = parser.parse_args()
    config = recipe("sada-jem").with_values(
        steps=options.steps,
        data={"source": options.data},
        network={"name": "wrn-16-2"},
        log_every=5,
        validate_every=100,
        checkpoint_every=50,
    )
    session = Session.resume(options.out) if options.out.exists() else Session.start(config, run=options.out)
    began = time.perf_counter()
    for row in session.train():
        if row["step"] % 10 == 0:
            print({key: round(value, 4) for key, value in row.items()}, flush=True)
        if row["step"] == options.steps // 2 + 10:  # ten steps beyond a checkpoint: they are trained again
            break
    session = Session.resume(options.out)
    resumed_at = session.state.step
    for row in session.train():
        if row["step"] % 10 == 0:
            print({key: round(value, 4) for key, value in row.items()}, flush=True)
    seconds = time.perf_counter() - began
    rows = Run(options.out).rows("metrics.jsonl")
    quick = BUDGETS["quick"]
    attacks = replace(quick.robustness, images=50, steps=10, linf=(0.01, 0.03), l2=(0.25, 0.5), black_box_images=0)
    protocol = replace(quick, ood=replace(quick.ood, images=1000), robustness=attacks)
    protocol = protocol.only("calibration", "ood", "robustness")
    results = evaluate_run(options.out, protocol=protocol, on_progress=print)
    write_report([options.out], options.out / "report.html")
    content = {
        "steps": options.steps,
        "resumed_at": resumed_at,
        "training_s": round(seconds, 1),
        "largest_chain_value": max(row["chain_max"] for row in rows),
        "largest_energy": max(abs(row[key]) for row in rows for key in ("energy_real", "energy_negatives")),
        "peak_gib": round(common.peak_memory_gib(), 2),
        "results": [result._asdict() for result in results],
        "curve": rows,
    }
    print(f"written to {common.write('cifar10_short', content)}")


if __name__ == "__main__":
    main()
