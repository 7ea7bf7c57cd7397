"""What bfloat16 does to chains and to the finished model.

    python benchmarks/numerics.py --run RUN [RUN ...] [--data digits fashion_mnist.npz] [--workers 2]

Gradients and drift: along 20 Langevin steps of 64 chains from each run's buffer, the energy gradient in bfloat16 beside
that in float32 at the same points (cosine, ratio of norms); then how far chains of equal noise end apart, as a share of
how far they moved, when the gradient is bfloat16, when the state is too, and when only the noise is another. Quality:
`jemstone-small` trained in float32 and in bfloat16, three seeds each, accuracy, ECE and AUROC of log p(x). Writes
results/numerics.json.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from jemstone import Session, energy_gradient, load_trained, recipe
from jemstone.evaluation import BUDGETS
from jemstone.evaluation.evaluate_run import evaluate_run
from jemstone.execution import Execution
from jemstone.rng import generator
from jemstone.sampling import run_chains

STEPS, CHAINS = 20, 64
HALF = Execution("bf16-mixed")
MEASURES = ("accuracy", "ece", "ood_mean/near/log_density/auroc", "ood_mean/far/log_density/auroc")
STUDENT = 4.303
"""The 97.5 % point of Student's t with two degrees of freedom: three seeds, paired."""


def gradients_of(path: Path) -> dict[str, Any]:
    """Cosine, ratio of norms and drift on one run."""
    trained = load_trained(path)
    exact = energy_gradient(trained.model)
    half = energy_gradient(trained.model, execution=HALF)
    start = trained.buffer_chains(CHAINS)
    x, cosines, ratios = start, [], []
    for step in range(STEPS):
        (_, a), (_, b) = exact(x), half(x)
        cosines.append(cosine_similarity(a.flatten(1), b.flatten(1)))
        ratios.append(b.flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1))
        x, _ = run_chains(trained.sampler, x, exact, 1, generator(0, "walk", step))
    cosine, ratio = torch.stack(cosines), torch.stack(ratios)

    def walk(gradient: Callable[..., Any], seed: int, rounded: bool = False) -> Tensor:
        x = start
        for step in range(STEPS):
            x, _ = run_chains(trained.sampler, x, gradient, 1, generator(seed, "walk", step))
            x = x.bfloat16().float() if rounded else x
        return x

    end = walk(exact, 0)
    moved = (end - start).flatten(1).norm(dim=1)

    def drift(other: Tensor) -> float:
        return round(float(((other - end).flatten(1).norm(dim=1) / moved).mean()), 4)

    return {
        "data": trained.run.info["data"]["name"],
        "network": trained.config.network.name,
        "norm": trained.config.network.norm,
        "step": trained.step,
        "cosine": round(float(cosine.mean()), 5),
        "cosine_worst": round(float(cosine.min()), 4),
        "norm_ratio": round(float(ratio.mean()), 4),
        "drift_gradient": drift(walk(half, 0)),
        "drift_state": drift(walk(half, 0, rounded=True)),
        "drift_other_noise": drift(walk(exact, 1)),
    }


def quality(cell: common.Cell) -> dict[str, Any]:
    """Train one model and measure it."""
    source, steps, precision, seed = cell
    config = recipe("jemstone-small").with_values(
        data={"source": source}, seed=seed, precision=precision, layout="contiguous", compile="off", steps=steps
    )
    protocol = BUDGETS["quick"].only("calibration", "ood")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        session = Session.start(config, run=run)
        for _ in session.train():
            pass
        recovered = len(session.state.treatment.failures)
        results = {result.name: result.value for result in evaluate_run(run, protocol=protocol)}
    return {"recovered": recovered, **{name: results[name] for name in MEASURES if name in results}}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By data set and measure: the means of both, and their paired difference with its 95 % interval over seeds."""
    found = []
    for source in dict.fromkeys(row["cell"][0] for row in rows):
        for name in MEASURES:
            arms = {
                precision: [row[name] for row in rows if row["cell"][0] == source and row["cell"][2] == precision]
                for precision in ("32-true", "bf16-mixed")
            }
            differences = [b - a for a, b in zip(arms["32-true"], arms["bf16-mixed"], strict=True)]
            mean = statistics.fmean(differences)
            spread = (
                STUDENT * statistics.stdev(differences) / math.sqrt(len(differences))
                if len(differences) > 1
                else math.nan
            )
            found.append(
                {
                    "data": Path(source).stem,
                    "measure": name,
                    "float32": [round(value, 4) for value in arms["32-true"]],
                    "bfloat16": [round(value, 4) for value in arms["bf16-mixed"]],
                    "difference": round(mean, 4),
                    "low": round(mean - spread, 4),
                    "high": round(mean + spread, 4),
                }
            )
            print(found[-1], flush=True)
    return found


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="*", type=Path, default=[], help="runs of generative recipes")
    parser.add_argument("--data", nargs="*", default=["digits"])
    parser.add_argument("--steps", type=int, nargs="*", default=[800, 400], help="training steps for each of --data")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=Path, default=Path("runs/numerics.jsonl"), help="finished runs, kept")
    options = parser.parse_args()
    rows = [gradients_of(path) for path in options.run]
    for row in rows:
        print(row, flush=True)
    cells = [
        (source, steps, precision, seed)
        for source, steps in zip(options.data, options.steps, strict=False)
        for seed in range(3)
        for precision in ("32-true", "bf16-mixed")
    ]
    trained = common.run_all(cells, quality, options.rows, options.workers)
    content = {"chain_steps": STEPS, "chains": CHAINS, "gradients": rows, "quality": summary(trained)}
    print(f"written to {common.write('numerics', content)}")


if __name__ == "__main__":
    main()
