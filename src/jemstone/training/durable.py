"""The checkpoints of a run directory on one rank or several: rank 0 writes them, every rank reads its part.

A file holds the chains of all ranks; in memory a checkpoint holds those of its rank.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

from lightning_fabric import Fabric

from jemstone.errors import CheckpointError
from jemstone.runs import Run
from jemstone.training.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, save_checkpoint, step_of
from jemstone.training.initial_file import save_initial
from jemstone.training.ranks import from_first, gather, shard, wait, whole
from jemstone.training.setup import Trainer
from jemstone.training.state import TrainState


def save_state(run: Run, state: TrainState, trainer: Trainer, keep: int | None) -> None:
    """Make `state` durable, and drop all but the newest `keep` checkpoints. No rank goes on before it is on disk."""
    checkpoint = whole(state.checkpoint(), trainer.fabric)
    if trainer.fabric.is_global_zero:
        save_initial(run, trainer.initial)
        save_checkpoint(run.path / "checkpoints", checkpoint, keep=keep)
    wait(trainer.fabric)


def stored(run: Run, fabric: Fabric, before: float = math.inf) -> Iterator[tuple[Path, Checkpoint | CheckpointError]]:
    """The checkpoints of `run` of steps before `before`, newest first, read one by one, with the chains of all ranks.

    In the place of one that some rank cannot read there is an error.

    Rank 0 says which there are: another machine may see the folder a moment late.
    """
    for path in reversed(from_first(lambda: list_checkpoints(run.path / "checkpoints"), fabric)):
        if step_of(path) >= before:
            continue
        found: Checkpoint | CheckpointError
        try:
            found = load_checkpoint(path)
        except CheckpointError as error:
            found = error
        problems = gather(str(found) if isinstance(found, CheckpointError) else "", fabric)
        problem = next((text for text in problems if text), None)
        yield path, found if problem is None else CheckpointError(problem)


def share_of(checkpoint: Checkpoint, state: TrainState, trainer: Trainer) -> Checkpoint:
    """A checkpoint file's content with the chains of this rank alone."""
    classes = 1 if state.buffer is None else state.buffer.num_classes
    return shard(checkpoint, classes, trainer.recipe.real_batch_size, trainer.fabric)


def restore_newest(run: Run, state: TrainState, trainer: Trainer) -> None:
    """Restore the newest checkpoint that is whole, saying so where it is not the newest; without any, do nothing."""
    damaged: list[CheckpointError] = []
    for path, found in stored(run, trainer.fabric):
        if isinstance(found, CheckpointError):
            damaged.append(found)
            continue
        state.restore(share_of(found, state, trainer))
        for problem in damaged if trainer.fabric.is_global_zero else ():
            warnings.warn(f"{problem} Going on from {path.name}, the one before.", stacklevel=3)
            run.event("damaged", found.step, error=str(problem))
        return
    if damaged:
        raise damaged[0]
