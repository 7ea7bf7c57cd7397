"""CIFAR-10 on a CPU for one hour: accuracy and energy gap against time, the plain step beside ours.

    python benchmarks/cifar10_hour.py --data cifar10.npz [--minutes 60]

WRN-16-2, the original algorithm (20 Langevin steps, no normalisation, Adam), the same batches in the same order. Both
run at once, on one thread each, so that other work on the machine slows both alike; the clock is seconds of processor
time in training, without evaluations. Writes results/cifar10_hour.json and docs/images/cifar10_hour.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import torch
from plain import PlainJEM

from jemstone import Session, load_dataset, recipe
from jemstone.data import Dataset, to_box
from jemstone.networks import build_network
from jemstone.networks.modes import in_mode
from jemstone.rng import seeded
from jemstone.training.config import TrainConfig

EVERY = 120.0
"""Seconds of training between evaluations."""
IMAGES = 2000


def configuration(data: str) -> TrainConfig:
    """The original recipe with a learning rate for an hour instead of for 100."""
    return recipe("jem").with_values(
        data={"source": data},
        network={"name": "wrn-16-2"},
        optimizer={"learning_rate": 1e-3, "warmup_steps": 100, "schedule": "constant"},
        steps=100_000,
        validate_every=0,
        checkpoint_every=100_000,
        log_every=10,
    )


def plain(config: TrainConfig, data: Dataset) -> tuple[torch.nn.Module, Iterator[float]]:
    """The baseline on the same weights and batches; yields the energy gap of each step, nats."""
    session = Session.start(config.with_values(precision="32-true", layout="contiguous", compile="off"), data)
    streams = session.trainer.streams
    with seeded(config.seed, "network"):
        network = build_network("wrn-16-2", data.input_shape, data.num_classes)
    jem = PlainJEM(network, data.input_shape, chain_steps=config.chains.steps)

    def steps() -> Iterator[float]:
        for step in range(config.steps or 0):
            rate = config.optimizer.learning_rate * min(1.0, (step + 1) / config.optimizer.warmup_steps)
            for group in jem.optimizer.param_groups:
                group["lr"] = rate
            batch, real = streams.labelled(step), streams.real(step)
            jem.step(batch.x, batch.y, real.x)
            yield jem.gap

    return network, steps()


def fast(config: TrainConfig, data: Dataset) -> tuple[torch.nn.Module, Iterator[float]]:
    """Ours; a rolled back step counts with its time."""
    session = Session.start(config, data)
    print(f"fast: {session.trainer.execution}", flush=True)
    return session.model, (row["energy_gap"] for row in session.train())


def curve(arguments: tuple[str, str, float]) -> list[dict[str, float]]:
    """Train one arm for so many seconds of processor time."""
    name, source, seconds = arguments
    torch.set_num_threads(1)
    data = load_dataset(source)
    arms: dict[str, Callable[..., tuple[torch.nn.Module, Iterator[float]]]] = {"plain": plain, "fast": fast}
    network, gaps = arms[name](configuration(source), data)
    x, y = to_box(data.test.inputs[:IMAGES]), data.test.labels[:IMAGES]
    rows: list[dict[str, float]] = []
    recent: list[float] = []
    used, steps, due = 0.0, 0, 0.0
    while used < seconds:
        began = time.process_time()
        gap = next(gaps)
        used += time.process_time() - began
        steps += 1
        recent = [*recent[-49:], gap]
        if used >= due or used >= seconds or not math.isfinite(gap):
            with torch.no_grad(), in_mode(network, training=False):
                right = [network(a).argmax(dim=1) == b for a, b in zip(x.split(250), y.split(250), strict=True)]
            accuracy = float(torch.cat(right).float().mean())
            rows.append({"seconds": used, "step": steps, "accuracy": accuracy, "gap": statistics.median(recent)})
            print(name, json.dumps(rows[-1]), flush=True)
            due += EVERY
            if not math.isfinite(gap):
                break
    return rows


def draw(curves: dict[str, list[dict[str, float]]], out: Path) -> None:
    """Accuracy above, energy gap below, against minutes of one core."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1, figsize=(7, 5), sharex=True, height_ratios=(3, 2))
    labels = {"plain": "as the original reads", "fast": "jemstone"}
    colours = {"plain": "#8a8f98", "fast": "#2456a6"}
    for name, rows in curves.items():
        minutes = [row["seconds"] / 60 for row in rows]
        axes[0].plot(minutes, [100 * row["accuracy"] for row in rows], color=colours[name], label=labels[name])
        axes[1].plot(minutes, [row["gap"] for row in rows], color=colours[name])
    axes[0].set_ylabel(f"accuracy on {IMAGES:,} test images, %")
    axes[0].legend(frameon=False, loc="lower right")
    axes[1].axhline(0, color="#cccccc", linewidth=0.8)
    axes[1].set_ylabel("energy gap, nats")
    axes[1].set_xlabel("minutes of one core")
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    """Both arms at once; then the file and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="an .npz file or the official python folder")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/images/cifar10_hour.svg")
    options = parser.parse_args()
    jobs = [(name, options.data, 60 * options.minutes) for name in ("plain", "fast")]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(curve, jobs, chunksize=1)
    curves: dict[str, Any] = dict(zip(("plain", "fast"), found, strict=True))
    draw(curves, options.out)
    print(
        f"written to {common.write('cifar10_hour', {'minutes': options.minutes, 'curves': curves})} and {options.out}"
    )


if __name__ == "__main__":
    main()
