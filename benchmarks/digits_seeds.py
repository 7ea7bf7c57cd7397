"""Five seeds of the demo's recipes on digits, and of the classifier with the JEM's input noise.

    python benchmarks/digits_seeds.py [--seeds 5] [--out DIR]

The third column tells what noise on the labelled stream does alone, so that nothing is credited to the density that
augmentation buys. Writes results/digits_seeds.json and prints the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import common

from jemstone.evaluation import BUDGETS
from jemstone.evaluation.evaluate_run import evaluate_run, read_results
from jemstone.training.config import TrainConfig
from jemstone.training.recipes import recipe
from jemstone.training.session import Session

PROTOCOL = BUDGETS["quick"].only("calibration", "ood", "robustness", "generation")
SHOWN = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "ece": "ECE",
    "ood/noise/log_density/auroc": "AUROC of log p(x): noise",
    "ood/constant/log_density/auroc": "constant",
    "ood/inverted/log_density/auroc": "inverted",
    "ood/rotated/log_density/auroc": "rotated 90 degrees",
    "ood/interpolated/log_density/auroc": "interpolated pairs",
    "pgd_linf/0.05": "PGD L-inf accuracy: eps 0.05",
    "pgd_linf/0.1": "eps 0.1",
    "pgd_linf/0.15": "eps 0.15",
    "pgd_l2/0.5": "PGD L2 accuracy: eps 0.5",
}


def configurations() -> dict[str, TrainConfig]:
    jem = recipe("jem-small")
    noise = {"noise": jem.augment.noise}
    return {
        "classifier-small": recipe("classifier-small"),
        f"classifier-small, noise {jem.augment.noise}": recipe("classifier-small").with_values(augment=noise),
        "jem-small": jem,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0")
    parser.add_argument("--out", type=Path, default=Path("runs/digits-seeds"), help="where the runs go")
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        for name, config in configurations().items():
            run = options.out / f"{name.replace(', ', '-').replace(' ', '')}-{seed}"
            if not run.exists() or not read_results(run):
                session = Session.resume(run) if run.exists() else Session.start(config.with_values(seed=seed), run=run)
                for _ in session.train():
                    pass
                evaluate_run(run, protocol=PROTOCOL)
            values = {result.name: round(result.value, 5) for result in read_results(run)}
            rows.append({"configuration": name, "seed": seed, **values})
            print(name, seed, {SHOWN[key]: values[key] for key in ("accuracy", "ece", "pgd_linf/0.15")}, flush=True)
    names = list(configurations())
    print("\n| |", " | ".join(names), "|\n|---|" + "---:|" * len(names))
    for key, label in SHOWN.items():
        cells = []
        for name in names:
            values = [row[key] for row in rows if row["configuration"] == name]
            cells.append(f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})")
        print(f"| {label} | " + " | ".join(cells) + " |")
    print(f"written to {common.write('digits_seeds', {'rows': rows})}")


if __name__ == "__main__":
    main()
