"""Fewer chain steps for the same model: CPU seconds until accuracy and density have reached a quality, by K and rho.

    python benchmarks/fewer_steps.py
    python benchmarks/fewer_steps.py --quick --json FILE.json

Digits, the recipe `jem-small` at a constant learning rate, and a buffer small enough for chains to reach their life.
Every run may do the same work: energy gradients of a batch of chains, an outer pass counting as OUTER of them. Density
is judged by how well log p(x) tells held-out digits from means of two of them, and by fresh samples. Seconds are CPU
seconds of one thread, without what is measured here. A quality is reached at the first of two successive points that
have it. Its bound was chosen on a run of another seed. Writes benchmarks/results/fewer_steps.json.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Cell, run_all, write

from jemstone import Diverged, Session, TrainConfig, recipe
from jemstone.data import to_box
from jemstone.energy import marginal_energy
from jemstone.evaluation.detection import auroc
from jemstone.evaluation.distances import nearest, polynomial_mmd
from jemstone.evaluation.foreign import builtin_ood_sets
from jemstone.rng import generator
from jemstone.sampling import generate

VARIANTS: dict[str, dict[str, Any]] = {
    "K 20, rho 0.05": {"chains": {"steps": 20}},
    "K 10, rho 0.05 (the recipe)": {},
    "K 10, rho 0.025": {"chains": {"restart_rate": 0.025}},
    "K 5, rho 0.05": {"chains": {"steps": 5}},
    "K 5, rho 0.0125": {"chains": {"steps": 5, "restart_rate": 0.0125}},
    "K 2, rho 0.005": {"chains": {"steps": 2, "restart_rate": 0.005}},
    "K 10, rho 0.05, Gaussian starts": {"chains": {"start": "gaussian"}},
    "K 5, rho 0.05, Gaussian starts": {"chains": {"steps": 5, "start": "gaussian"}},
    "K 2 to 20, rho 0.05": {"chains": {"steps": 2, "max_steps": 20}},
    "K 5 to 20, rho 0.05": {"chains": {"steps": 5, "max_steps": 20}},
}
OUTER = 6
"""What a step costs beside its chains, in energy gradients of theirs, from seconds per step at K 2 and K 20."""
POINTS = 30
"""How often a run is measured, at equal distances in work."""
LIFE = 400
"""Steps of the fresh chains that are compared with data: K / rho of the original recipe."""
SAMPLED = 3
"""How often fresh chains are compared, at equal distances in work."""


def config_of(variant: str, seed: int) -> TrainConfig:
    """Nothing depends on the number of steps, so that a run may be stopped when its work is done."""
    config = recipe("jem-small").with_values(
        seed=seed,
        steps=100_000,
        validate_every=0,
        ema=0.95,
        data={"validation": 0.2},
        optimizer={"schedule": "constant", "warmup_steps": 20},
        chains={"buffer_size": 500},
        device="cpu",
        precision="32-true",
        layout="contiguous",
        compile="off",
    )
    return config.with_values(**VARIANTS[variant])


def run(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Train one cell (variant, seed) until its work is done, and say when it got where."""
    variant, seed = cell
    session = Session.start(config_of(variant, seed))
    gaps: list[float] = []
    curve: list[dict[str, float]] = []
    sampled: list[dict[str, float]] = []
    seconds, work, error = 0.0, 0.0, ""
    steps = session.train()
    while work < options.work:
        began = time.process_time()  # with one thread, what another process takes of the machine does not count
        try:
            row = next(steps)
        except Diverged as problem:
            error = problem.reason
            break
        seconds += time.process_time() - began
        gaps.append(abs(row["energy_gap"]))
        work += OUTER + row.get("chain_steps", session.config.chains.steps)
        point = {"step": row["step"], "work": work, "seconds": round(seconds, 3)}
        if work >= options.work * (len(curve) + 1) / POINTS:
            curve.append(point | quality(session))
        if work >= options.work * (len(sampled) + 1) / SAMPLED:
            sampled.append(point | samples(session, options.samples))
    return {
        "finished": not error,
        "error": error,
        "to_accuracy": first(curve, accuracy=options.accuracy),
        "to_density": first(curve, auroc=options.auroc),
        "to_both": first(curve, accuracy=options.accuracy, auroc=options.auroc),
        "recoveries": len(session.state.treatment.failures),
        "median_gap": round(statistics.median(gaps[-50:]), 4) if gaps else None,
        "chain_age": round(session.state.buffer.age.double().mean().item()) if session.state.buffer else None,
        "last_K": session.state.chain_steps,
        "sampled": sampled,
        "curve": curve,
    }


def first(curve: list[dict[str, float]], **at_least: float) -> dict[str, float] | None:
    """The first point of the curve at which all these qualities hold, as they do at the next one."""
    good = [all(point[name] >= value for name, value in at_least.items()) for point in curve]
    found = next((point for point, *two in zip(curve, good, good[1:], strict=False) if all(two)), None)
    return found and {name: found[name] for name in ("step", "work", "seconds")}


@torch.no_grad()
def quality(session: Session) -> dict[str, float]:
    """Accuracy on the validation split, and the AUROC of log p(x) between it and means of pairs of it."""
    model, split = session.model.eval(), session.data.validation
    logits = model(to_box(split.inputs))
    inside = -marginal_energy(logits).double().numpy()
    sets = builtin_ood_sets(split.inputs, split.labels, session.data.box)
    outside = model.log_density(sets["interpolated"]).double().numpy()
    right = (logits.argmax(dim=1) == split.labels).double().mean().item()
    return {"accuracy": round(right, 4), "auroc": round(auroc(inside, outside), 4)}


def samples(session: Session, count: int) -> dict[str, float]:
    """MMD^2 x 1000 (kernel (x.y/d + 1)^3 of pixels) of fresh chains, and of their starts, to the validation split; mean
    distance of the chains to the nearest training image.
    """
    data, initial = session.data, session.initial
    assert initial is not None, "every variant has chains"
    labels = torch.arange(count) % data.num_classes
    start = initial(labels, generator(0, "fewer steps", "starts"))
    rng = generator(0, "fewer steps", "samples")
    fresh = generate(session.model, initial, session.sampler, labels, LIFE, rng, by_class=False)
    rows = {
        name: flat(x) for name, x in {"samples": fresh, "starts": start, "held out": data.validation.inputs}.items()
    }
    return {
        "mmd": round(1000 * polynomial_mmd(rows["samples"], rows["held out"]), 2),
        "mmd_of_starts": round(1000 * polynomial_mmd(rows["starts"], rows["held out"]), 2),
        "nearest": round(float(nearest(rows["samples"], flat(data.train.inputs))[0].mean()), 3),
        "nearest_of_held_out": round(float(nearest(rows["held out"], flat(data.train.inputs))[0].mean()), 3),
    }


def flat(x: torch.Tensor) -> np.ndarray:
    return to_box(x).flatten(1).double().numpy()


def summed_up(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the seeds of one variant: means, and how many of them reached each quality."""
    summary: dict[str, Any] = {"seeds": len(rows), "finished": sum(row["finished"] for row in rows)}
    for name in ("to_accuracy", "to_density", "to_both"):
        there = [row[name] for row in rows if row[name]]
        means = {key: round(statistics.fmean(point[key] for point in there), 2) for key in (there or [{}])[0]}
        summary[name] = {"reached": len(there), **means}
    for name in ("recoveries", "median_gap", "chain_age", "last_K"):
        values = [row[name] for row in rows if row[name] is not None]
        summary[name] = round(statistics.fmean(values), 3) if values else None
    ends = [row["curve"][-1] for row in rows if row["curve"]]
    for name in ("step", "seconds", "accuracy", "auroc"):
        summary[f"last_{name}"] = round(statistics.fmean(end[name] for end in ends), 4) if ends else None
    for name in ("mmd", "mmd_of_starts", "nearest"):
        found = zip(*(row["sampled"] for row in rows), strict=False)
        summary[name] = [round(statistics.fmean(point[name] for point in points), 2) for points in found]
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=int, default=3600, help="of one run, in energy gradients of a batch of chains")
    parser.add_argument("--accuracy", type=float, default=0.97)
    parser.add_argument("--auroc", type=float, default=0.92)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=list(VARIANTS), nargs="+", default=list(VARIANTS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--rows", type=Path, default=Path("runs/fewer_steps.jsonl"), help="finished runs, for a restart"
    )
    parser.add_argument("--json", type=Path, help="where to write instead of benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="two variants, one seed, about ten steps")
    options = parser.parse_args()
    if options.quick:
        options.only, options.work, options.seeds, options.samples, options.workers = list(VARIANTS)[3:5], 90, 1, 8, 1
    cells = list(itertools.product(options.only, range(options.seeds)))
    rows = run_all(cells, partial(run, options=options), options.rows, options.workers)
    summary = {name: summed_up([row for row in rows if row["cell"][0] == name]) for name in options.only}
    for name, found in summary.items():
        print(f"{name}: {found}")
    settings = {name: getattr(options, name) for name in ("work", "accuracy", "auroc", "samples", "seeds")}
    path = write("fewer_steps", {"settings": settings, "summary": summary, "rows": rows}, options.json)
    print(f"Written to {path}.")


if __name__ == "__main__":
    main()
