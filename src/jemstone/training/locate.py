"""Where the first non-finite number of a step appeared: looked up only after one was seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from jemstone.data.batches import Batch
from jemstone.errors import Diverged
from jemstone.training.diagnostics import Metrics, Move
from jemstone.training.guard import History, evidence
from jemstone.training.ranks import gather


def first_non_finite(
    step: int,
    metrics: Metrics,
    model: nn.Module,
    batch: Batch | None,
    real: Batch | None,
    moves: Sequence[Move],
    history: History,
    fabric: Fabric,
) -> Diverged:
    """The failure of `step`, naming where in the order of causes the first non-finite number stands.

    All ranks look, and all find the same: what one rank began has reached the gradients of the others.
    """
    found = [
        (*place, rank)
        for rank, place in enumerate(gather(next(_places(model, batch, real, moves), None), fabric))
        if place is not None
    ]
    _, where, rank = min(found, default=(0, "", 0), key=lambda place: place[0])
    if where and fabric.world_size > 1:
        where += f" of rank {rank}"
    names = [name for name, value in metrics.items() if not -torch.inf < value < torch.inf]
    first = f"first in {where}" if where else "every input of the step was finite"
    reason = f"a number is not finite: {first}, then in {', '.join(names[:3])}{' and more' if names[3:] else ''}"
    return Diverged(step, reason, metrics, verdict="non_finite", onset=step, evidence=evidence(history))


def require_finite(step: int, model: nn.Module, metrics: Metrics) -> None:
    """Raise `Diverged` where weights are not finite: such a state must never become one to go back to."""
    if place := next(_places(model, None, None, ()), None):
        raise Diverged(step, f"{place[1]} are not finite after the step", metrics, verdict="non_finite", onset=step)


def _places(
    model: nn.Module, batch: Batch | None, real: Batch | None, moves: Sequence[Move]
) -> Iterator[tuple[int, str]]:
    """Places that hold a non-finite number, causes before their effects; the number is that of the cause."""
    for name, data in (("the labelled batch", batch), ("the real batch", real)):
        if data is not None and (rows := _bad_rows(data.x)):
            yield 0, f"{name}, rows {rows}"
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if not _finite(weight):
            yield 1, f"the weights {name}"
    for move in moves:
        if rows := _bad_rows(move.draw.x):
            yield 2, f"the buffer, slots {[int(move.draw.slots[row]) for row in rows]}"
        if not _finite(move.info.energy):
            kernel_step = int((~move.info.energy.isfinite()).any(dim=1).nonzero()[0])
            yield 3, f"the energy of chains, at kernel step {kernel_step} of {len(move.info.energy)}"
        if rows := _bad_rows(move.x):
            yield 4, f"the end points of chains {rows}"
    for name, weight in model.named_parameters():
        if weight.grad is not None and not _finite(weight.grad):
            yield 5, f"the gradient of {name}"


def _finite(x: Tensor) -> bool:
    return bool(x.isfinite().all()) if x.is_floating_point() else True


def _bad_rows(x: Tensor) -> list[int]:
    rows: list[int] = (~x.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
    return rows[:8]
