"""Fashion-MNIST on a small network: classifier and JEM, the full evaluation, MNIST as out-of-distribution set.

    python benchmarks/fashion_mnist.py --data DIR [--epochs 5] [--out DIR]

DIR holds fashion_mnist.npz and mnist.npz (train_images, train_labels, test_images, test_labels). Writes
results/fashion_mnist.json: the configuration, results and training curve of each run.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import common

from jemstone.evaluation import BUDGETS
from jemstone.evaluation.evaluate_run import evaluate_run
from jemstone.report import write_report
from jemstone.runs import Run
from jemstone.training.config import TrainConfig
from jemstone.training.recipes import recipe
from jemstone.training.session import Session

PROTOCOL = BUDGETS["quick"].only("calibration", "ood", "robustness", "generation")


def configurations(data: Path, epochs: float) -> dict[str, TrainConfig]:
    changes = {
        "epochs": epochs,
        "data": {"source": str(data / "fashion_mnist.npz")},
        "validate_every": 500,
        "augment": {"noise": 0.03},
    }
    # Uniform starts, right for 8x8, let the energy of 28x28 images drift (docs/log.md): start near the data here.
    jem = {"optimizer": {"learning_rate": 1e-3, "warmup_steps": 200}, "chains": {"start": "gaussian"}}
    return {
        "classifier": recipe("classifier-small").with_values(**changes),
        "jem": recipe("jem-small").with_values(**changes, **jem),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the two .npz files")
    parser.add_argument("--epochs", type=float, default=5.0, help="passes over the training data")
    parser.add_argument("--out", type=Path, default=Path("runs/fashion-mnist"), help="where the runs go")
    options = parser.parse_args()
    content = {}
    for name, config in configurations(options.data, options.epochs).items():
        run = options.out / name
        session = Session.resume(run) if run.exists() else Session.start(config, run=run)
        began = time.perf_counter()
        for row in session.train():
            if row["step"] % 100 == 0:
                print(name, {key: round(value, 4) for key, value in row.items()}, flush=True)
        trained = time.perf_counter() - began
        results = evaluate_run(
            run, ood={"mnist": str(options.data / "mnist.npz")}, protocol=PROTOCOL, on_progress=print
        )
        settings = config.to_dict() | {"data": {"source": "fashion_mnist.npz"}}
        content[name] = {
            "config": settings,
            "training_s": round(trained, 1),
            "results": [result._asdict() for result in results],
            "curve": Run(run).rows("metrics.jsonl")[::25],
        }
    report = write_report([options.out / name for name in content], options.out / "report.html")
    print(f"report: {report}\nwritten to {common.write('fashion_mnist', content)}")


if __name__ == "__main__":
    main()
