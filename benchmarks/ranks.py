"""What a step costs on two ranks beside one, with the same batch on each rank, and what the model in docs predicts.

    python benchmarks/ranks.py [--network wrn-10-2] [--steps 10] [--rounds 3]

The ranks are processes of this machine, on one thread each, that talk through gloo; jobs on one and on two ranks take
turns, so that a busy moment of the machine hits both. The model of docs/scaling.md: a step on N ranks takes what it
takes on one, and an all-reduce of gradients and running averages, which is timed by itself. Two ranks of one machine
also share its memory and caches, which the model does not know. Writes benchmarks/results/ranks.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import write

from jemstone import Session, recipe
from jemstone.networks.modes import moving_statistics
from jemstone.training.ranks import average_gradients, rank, wait

WARM_UP = 2


def measure(network: str, steps: int, out: Path) -> None:
    """On one rank of a job: seconds of each step, and of each reduction by itself; rank 0 writes them."""
    torch.set_num_threads(1)
    config = recipe("jem++").with_values(
        steps=WARM_UP + steps,
        batch_size=16,
        real_batch_size=16,
        validate_every=0,
        precision="32-true",
        layout="contiguous",
        compile="off",
        device="cpu",
        network={"name": network, "norm": "batch"},
        chains={"steps": 5, "buffer_size": 200, "start": "uniform"},
        augment={"crop_padding": 0, "flip": False},
        recovery={"attempts": 0},
        limits={"window": 0},
    )
    session = Session.start(config)
    fabric, model = session.trainer.fabric, session.state.model
    seconds, before = [], time.perf_counter()
    for _ in session.train():
        now = time.perf_counter()
        seconds.append(now - before)
        before = now
    parameters = list(model.parameters())
    model.train()
    reductions = []
    for _ in range(20):
        wait(fabric)
        began = time.perf_counter()
        average_gradients(parameters, moving_statistics(model), fabric)
        reductions.append(time.perf_counter() - began)
    if rank() == 0:
        count = sum(p.numel() for p in parameters)
        found = {"steps": seconds[WARM_UP:], "reductions": reductions[WARM_UP:], "parameters": count}
        out.write_text(json.dumps(found))


def job(ranks: int, network: str, steps: int) -> dict[str, Any]:
    """What `measure` found on `ranks` ranks."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        subprocess.run(
            [sys.executable, *launcher, __file__, "--network", network, "--steps", str(steps), "--measure", str(out)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
        )
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="wrn-10-2")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.network, options.steps, options.measure)
        return
    found: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for ranks, rounds in found.items():
            rounds.append(job(ranks, options.network, options.steps))
    one, two = (statistics.median(s for round_ in found[ranks] for s in round_["steps"]) for ranks in (1, 2))
    reduction = statistics.median(s for round_ in found[2] for s in round_["reductions"])
    parameters = found[1][0]["parameters"]
    path = write(
        "ranks",
        {
            "network": options.network,
            "parameters": parameters,
            "per_rank": {"batch_size": 16, "real_batch_size": 16, "chain_steps": 5, "threads": 1},
            "step_seconds": {"1": one, "2": two},
            "reduction_seconds": reduction,
            "bytes_per_second": 4 * parameters / reduction,  # 2 (N - 1) / N is 1 for two ranks
            "predicted_ratio": 1 + reduction / one,
            "measured_ratio": two / one,
            "examples_per_second_ratio": 2 * one / two,
            "rounds": {str(ranks): [round_["steps"] for round_ in rounds] for ranks, rounds in found.items()},
        },
    )
    print(f"2 ranks: a step takes {two / one:.3f} times as long (model: {1 + reduction / one:.3f}). Written to {path}")


if __name__ == "__main__":
    main()
