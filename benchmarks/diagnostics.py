"""What the diagnostics of a step cost: the step as it is against one that measures the loss alone, A B A B, medians.

    python benchmarks/diagnostics.py [--rounds 15]

Writes benchmarks/results/diagnostics.json: rows with `network`, `chain_steps`, `bare_s`, `measured_s`, `overhead`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from typing import Any
from unittest import mock

import torch
from common import write

from jemstone import Session, recipe
from jemstone.training import loop

CASES = (("jem-small", "conv-32", 10, 10), ("jem-small", "conv-8", 1, 20), ("jem", "wrn-10-2", 20, 1))
"""Recipe, network, chain steps, and training steps per timing."""


def bare_measure(loss: Any, *_: Any) -> dict[str, float]:
    """The loss alone, with the one synchronisation that any training loop has."""
    energies = torch.stack([loss.total.detach(), loss.energy_real, loss.energy_negatives]).tolist()
    return dict(zip(("loss", "energy_real", "energy_negatives"), energies, strict=True))


def bare_backward(loss: Any, parameters: Any, trainer: Any) -> tuple[dict[str, Any], float]:
    """One backward pass of the sum."""
    trainer.fabric.backward(loss.total)
    return {}, 1.0


def seconds(session: Session, steps: int) -> float:
    """Wall-clock time of one step, averaged over `steps`."""
    began = time.perf_counter()
    for _ in range(steps):
        loop.train_step(session.state, session.trainer)
    return (time.perf_counter() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    rows = []
    for name, network, chain_steps, steps in CASES:
        shape = {} if name == "jem-small" else {"augment": {"crop_padding": 1}, "augment_real": {"crop_padding": 1}}
        config = recipe(name).with_values(network={"name": network}, chains={"steps": chain_steps}, **shape)
        session = Session.start(config.with_values(steps=10**6, recovery={"attempts": 0}, limits={"gap": math.exp(50)}))
        bare = mock.patch.multiple(loop, measure=bare_measure, _backward_in_parts=bare_backward)
        with bare:
            seconds(session, steps)
        times: dict[str, list[float]] = {"bare": [], "measured": []}
        for _ in range(options.rounds):
            with bare:
                times["bare"].append(seconds(session, steps))
            times["measured"].append(seconds(session, steps))
        ratios = [m / b for m, b in zip(times["measured"], times["bare"], strict=True)]
        row = {
            "network": network,
            "chain_steps": chain_steps,
            "bare_s": round(statistics.median(times["bare"]), 5),
            "measured_s": round(statistics.median(times["measured"]), 5),
            "overhead": round(statistics.median(ratios) - 1, 4),
        }
        rows.append(row)
        print(row, flush=True)
    write("diagnostics", {"rows": rows})


if __name__ == "__main__":
    main()
