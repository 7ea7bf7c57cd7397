"""What two ranks do together: a script for `test_ranks.py`, not a test. Each rank writes what it found into FOLDER.

torchrun --nproc-per-node 2 ranked.py FOLDER            everything that needs no death
torchrun --nproc-per-node 2 ranked.py RUN STEP          `train` into RUN, in which rank 1 dies after STEP, once
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from jemstone import TrainConfig, cli, load_dataset
from jemstone.data import Dataset, Split
from jemstone.energy import EnergyClassifier
from jemstone.networks import build_network
from jemstone.objective import Negatives
from jemstone.rng import generator
from jemstone.training import loop
from jemstone.training.ranks import rank, restarts
from jemstone.training.session import Session
from jemstone.training.setup import Trainer, join_ranks
from jemstone.training.state import TrainState

BATCH, STEPS = 8, 6
TRAIN = [
    *("jem-small", "--network", "conv-4", "--network.norm", "batch", "--network.dropout", "0.1", "--device", "cpu"),
    *("--steps", "12", "--batch_size", "8", "--real_batch_size", "8", "--chains.steps", "2"),
    *("--chains.buffer_size", "60", "--chains.mode", "train", "--chains.start", "gaussian", "--checkpoint_every", "5"),
    *("--log_every", "1", "--validate_every", "6", "--limits.window", "4", "--ema", "0.5", "--augment.flip", "true"),
]
VARIANTS = {
    "plain": {},
    "sam": {"sam_rho": 0.1},
    "asam": {"sam_rho": 0.5, "sam_adaptive": True},
    "clipped": {"clip_norm": 0.05},
}


class Smooth(nn.Module):
    """A network without any layer that depends on the batch, in float64; one parameter is never used."""

    def __init__(self):
        super().__init__()
        rng = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(torch.randn(16, 5, generator=rng) / 2)
        self.second = nn.Parameter(torch.randn(3, 16, generator=rng) / 2)
        self.idle = nn.Parameter(torch.ones(2))
        self.double()

    def forward(self, x):
        return torch.tanh(x.double() @ self.first.T) @ self.second.T


def vectors():
    rng = torch.Generator().manual_seed(0)
    split = Split(torch.randn(101, 5, generator=rng), torch.randint(0, 3, (101,), generator=rng))
    return Dataset("vectors", split, split, split, ("a", "b", "c"))


def fixed_negatives(state, trainer, real):
    """Negatives by position: rank r takes rows r b to (r + 1) b of those of all ranks."""
    rng = generator(5, "fixed", state.position)
    everything = torch.randn(2 * BATCH, 5, generator=rng)
    first = trainer.fabric.global_rank * len(real.y)
    return Negatives(everything[first : first + len(real.y)], None), []


def weights_after_training(optimizer, batch_size):
    """The parameters after STEPS steps on fixed negatives, with these settings of the optimiser."""
    config = TrainConfig(
        steps=STEPS, batch_size=batch_size, real_batch_size=batch_size, device="cpu", validate_every=0
    ).with_values(
        weights={"marginal": 1.0, "energy_l2": 0.01},
        chains={"buffer_size": 60},
        optimizer={"learning_rate": 0.05, "name": "sgd", "weight_decay": 0.1, **optimizer},
        limits={"window": 0},
    )
    data, before = vectors(), loop.draw_negatives
    fabric = join_ranks(config)
    trainer = Trainer.create(data, config, fabric)
    state = TrainState.create(EnergyClassifier(Smooth()), config, None, fabric.device)
    loop.draw_negatives = fixed_negatives
    try:
        rows = [loop.train_step(state, trainer) for _ in range(STEPS)]
    finally:
        loop.draw_negatives = before
    return [p.detach().clone() for p in state.model.parameters()], rows


def contents(state):
    """What moves, as tensors, and the rest, as text."""
    tensors, header = state.snapshot()
    return tensors, json.dumps(header)


def spoiled_run(data, spoil_rank):
    """A run with a NaN in one labelled batch of one rank, and the failures that each rank saw.

    Its network begins at random, differently on each rank.
    """
    config = TrainConfig(
        steps=8, batch_size=8, real_batch_size=8, device="cpu", validate_every=0, checkpoint_every=3
    ).with_values(
        weights={"marginal": 1.0},
        chains={"steps": 2, "buffer_size": 60},
        recovery={"snapshot_every": 2},
    )
    torch.manual_seed(rank())
    run = Session.start(config, data, build_network("conv-4", (1, 8, 8), 10, norm="batch"))
    first = run.state.buffer.x.clone()
    stream, seen = type(run.trainer.streams.labelled).__call__, []

    def spoiled(self, step):
        batch = stream(self, step)
        if self.name == "labelled" and self.rank == spoil_rank and step == 4:
            batch.x[2] = float("nan")
        return batch

    recover = run.recovery.recover

    def told(state, problem):
        result = recover(state, problem)
        seen.append([str(problem), problem.verdict, result.step, result.details["poisoned_chains"], contents(state)[1]])
        return result

    run.recovery.recover = told
    type(run.trainer.streams.labelled).__call__ = spoiled
    try:
        rows = list(run.train())
    finally:
        type(run.trainer.streams.labelled).__call__ = stream
    return {
        "first chains": first,
        "failures": seen,
        "state": contents(run.state),
        "steps": [row["step"] for row in rows],
    }


def stopped_after(step, run):
    """`train` as a command stopped after `step`, on all ranks alike: its rows are ahead of its checkpoint."""
    keep = Session._keep

    def keep_or_stop(self, metrics):
        keep(self, metrics)
        if self.state.step == step:
            raise KeyboardInterrupt

    Session._keep = keep_or_stop
    try:
        return cli.main(["train", *TRAIN, "--run", str(run)])
    finally:
        Session._keep = keep


def together(folder):
    digits = load_dataset("digits", seed=0)
    found = {name: weights_after_training(settings, BATCH) for name, settings in VARIANTS.items()}
    found["spoiled"] = spoiled_run(digits, spoil_rank=1)
    states = []
    train = Session.train

    def noted(self):
        yield from train(self)
        states.append(contents(self.state))

    Session.train = noted
    statuses = [cli.main(["train", *TRAIN, "--run", str(folder / "whole")])]
    Session.train = train
    statuses.append(stopped_after(8, folder / "stopped"))
    statuses.append(stopped_after(8, folder / "fewer"))
    statuses.append(cli.main(["train", "--resume", str(folder / "stopped")]))
    statuses.append(cli.main(["sample", str(folder / "whole"), "--count", "5", "--steps", "2"]))
    quick = ["--budget", "quick", "--only", "calibration", "distal", "long_run"]
    statuses.append(cli.main(["evaluate", str(folder / "whole"), *quick]))
    found |= {"ordinary": states[0], "statuses": statuses}
    torch.save(found, folder / f"found-{rank()}.pt")


def dies(run, step):
    keep = Session._keep

    def keep_or_die(self, metrics):
        if rank() == 1 and restarts() == 0 and self.state.step == step:
            Path(f"{run}.died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        keep(self, metrics)

    Session._keep = keep_or_die
    sys.exit(cli.main(["train", *TRAIN, "--run", run]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 2:
        together(Path(sys.argv[1]))
    else:
        dies(sys.argv[1], int(sys.argv[2]))
