"""The training loop: train_step, train.

One step is: move chains, compare real images with their end points, differentiate, judge; only then do weights, buffer
and step counter move. A step that the guard rejects leaves the state bitwise as it was. On several ranks, gradients,
running statistics and metrics are averaged before anything is judged, so that all of them judge and move alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from jemstone.data.batches import Batch
from jemstone.energy import EnergyClassifier
from jemstone.errors import Diverged
from jemstone.margins import Margins, Outliers
from jemstone.networks.modes import (
    buffers_restored_on_error,
    in_mode,
    moving_statistics,
    running_statistics_held,
    train_mode,
)
from jemstone.objective import Loss, Negatives, jem_loss
from jemstone.rng import generator, seeded
from jemstone.training.adversarial import adversarial_examples
from jemstone.training.chains import draw_negatives
from jemstone.training.diagnostics import Metrics, measure
from jemstone.training.guard import check
from jemstone.training.locate import first_non_finite
from jemstone.training.ranks import average_gradients, average_metrics, averaged, of_rank
from jemstone.training.resolution import enlarged
from jemstone.training.setup import Trainer, learning_rate
from jemstone.training.sharpness import ascended
from jemstone.training.state import TrainState

__all__ = ["Metrics", "TrainState", "train", "train_step"]

TOO_EASY, TOO_HARD = 0.8, 0.5
"""Values of energy_auc at which an adaptive K grows and shrinks; DAT's rule has the first."""


def train(state: TrainState, trainer: Trainer) -> Iterator[Metrics]:
    """Train from where `state` is to the end, yielding the metrics of each step. The caller decides what to keep.

    Raises Diverged where a step fails its health check; the state is then what it was after the last healthy step.
    `jemstone.training.recovery` is what goes on from there.
    """
    while state.step < trainer.total_steps:
        yield train_step(state, trainer)


def train_step(state: TrainState, trainer: Trainer) -> Metrics:
    """Compute, check, commit: one optimiser step, moving `state` in place if and only if the guard passes."""
    trainer = trainer.at(state.step, state.treatment.remedy, state.chain_steps)
    config, step, position = trainer.config, state.step, state.position
    model, optimizer, fabric = state.model, state.optimizer, trainer.fabric
    rate = learning_rate(config.optimizer, step, trainer.total_steps)
    batch = _placed(trainer.streams.labelled(position), trainer) if config.weights.class_nll > 0 else None
    real = _placed(trainer.streams.real(position), trainer) if config.weights.generative else None
    outliers = _outliers(trainer, position) if config.weights.margin > 0 else None

    # Taken apart, the gradient costs copies of itself, so it is where its parts are needed or will be logged.
    in_parts = config.optimizer.balance > 0 or (step + 1) % config.log_every == 0

    metrics: Metrics = {}
    try:
        # Dropout draws from the global stream, so that too is set by position.
        dropout = seeded(config.seed, "dropout", position, *of_rank(fabric), device=fabric.device)
        with buffers_restored_on_error(model), dropout:
            negatives, moves = draw_negatives(state, trainer, real)
            attacked = _attacked(state, trainer, batch) if batch is not None and config.attack.radius > 0 else batch
            loss, norms = _gradients(model, optimizer, attacked, real, negatives, outliers, trainer, in_parts=in_parts)
            metrics = average_metrics(measure(loss, norms, moves, real, config, trainer.box), fabric)
            history = check(step + 1, metrics, state.history, config.limits)
    except Diverged as problem:
        if problem.verdict != "non_finite":
            raise
        # Not before running averages are back at what they were: what the step did to them is an effect and no cause.
        raise first_non_finite(step + 1, metrics, model, batch, real, moves, state.history, fabric) from None

    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    for move in moves:
        assert state.buffer is not None, "chains come from a buffer"
        state.buffer.store(move.draw, move.x, config.chains.steps)
    if state.ema is not None:
        _average(state.ema, model, min(config.ema, (1 + step) / (10 + step)))
    if config.chains.max_steps and "energy_auc" in metrics:
        state.chain_steps = _adapted(state.chain_steps, metrics["energy_auc"], trainer)
    state.history = history
    state.step += 1
    if trainer.low_steps:
        metrics["resolution"] = next(seen.x.shape[-1] for seen in (batch, real) if seen is not None)
    if state.step == trainer.low_steps:
        _enlarge(state, trainer.factor)
    epoch = state.step / trainer.streams.labelled.steps_per_epoch
    return {"step": state.step, "epoch": round(epoch, 4), "learning_rate": rate, **metrics}


def _enlarge(state: TrainState, factor: int) -> None:
    """Go over to full resolution: chains go on from where they were, and trends are judged anew.

    What the guard remembers was measured on small images, of which a network is soon more certain than of large ones.
    """
    if state.buffer is not None:
        state.buffer.x = enlarged(state.buffer.x, factor)
    state.history = ()


def _placed(batch: Batch, trainer: Trainer) -> Batch:
    return Batch(trainer.execution.place(batch.x), batch.y)


def _outliers(trainer: Trainer, position: int) -> Outliers:
    """The outliers of a step, with the margins that were found when the run started."""
    assert trainer.streams.outliers is not None, "a run with weights.margin has outliers"
    return Outliers(_placed(trainer.streams.outliers(position), trainer).x, Margins(*trainer.config.data.margins))


def _attacked(state: TrainState, trainer: Trainer, batch: Batch) -> Batch:
    """The labelled batch as adversarial examples of itself, found in evaluation mode.

    Averaging over squares of `factor`^2 pixels maps an L2 ball of radius r onto one of radius r / factor.
    """
    attack, fabric = trainer.config.attack, trainer.fabric
    rng = generator(trainer.config.seed, "attack", state.position, fabric.global_rank, device=fabric.device)
    with in_mode(state.model, training=False), trainer.execution.autocast(fabric.device):
        x = adversarial_examples(
            state.model,
            batch.x,
            batch.y,
            radius=attack.radius / trainer.factor,
            steps=attack.steps,
            rng=rng,
            box=trainer.box,
        )
    return Batch(x, batch.y)


def _gradients(
    model: EnergyClassifier,
    optimizer: torch.optim.Optimizer,
    batch: Batch | None,
    real: Batch | None,
    negatives: Negatives,
    outliers: Outliers | None,
    trainer: Trainer,
    *,
    in_parts: bool,
) -> tuple[Loss, dict[str, Tensor]]:
    """Leave the gradient of the objective in the parameters; with SAM, that at the worst point near them.

    Returns the loss and the norms of the gradient: as the optimiser gets it before clipping, that is the mean of all
    ranks, and `in_parts` of each part, on this rank alone.
    """
    config, settings, fabric = trainer.config, trainer.config.optimizer, trainer.fabric
    statistics = config.network.statistics
    merged = trainer.execution.merged and real is not None and not in_parts
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def evaluate() -> Loss:
        optimizer.zero_grad()
        with trainer.execution.autocast(fabric.device):
            return jem_loss(
                model,
                batch,
                real,
                negatives,
                config.weights,
                outliers=outliers,
                statistics=statistics,
                merged=merged,
            )

    faced = config.weights.generative or config.weights.margin > 0
    train_mode(model, frozen_norms=statistics == "frozen" and faced)
    loss = evaluate()
    norms: dict[str, Tensor] = {}
    scale: Tensor | float = 1.0
    if in_parts:
        norms, scale = _backward_in_parts(loss, parameters, trainer)
    else:
        loss.total.backward()  # type: ignore[no-untyped-call]
    average_gradients(parameters, moving_statistics(model), fabric)
    if settings.sam_rho > 0:
        # The second pass looks at weights that are not kept, so the running averages must not see it.
        with running_statistics_held(model), ascended(parameters, settings.sam_rho, adaptive=settings.sam_adaptive):
            parts = evaluate().parts
            total = sum(part if name == "class" else scale * part for name, part in parts.items())
            total.backward()  # type: ignore[union-attr]
        average_gradients(parameters, (), fabric)
    moved = [p for p in parameters if p.grad is not None]
    norms["grad_norm"] = nn.utils.clip_grad_norm_(moved, settings.clip_norm or math.inf)
    return loss, norms


def _backward_in_parts(
    loss: Loss, parameters: list[nn.Parameter], trainer: Trainer
) -> tuple[dict[str, Tensor], Tensor | float]:
    """Backward part by part: it costs what the whole costs, as the parts share no graph, and each one's norm is known.

    Returns those norms, and the factor by which `optimizer.balance` scaled the generative gradient.
    """
    norms: dict[str, Tensor] = {}
    sums: list[list[Tensor]] = []
    for name, part in loss.parts.items():
        part.backward()  # type: ignore[no-untyped-call]
        sums.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])
        norms[f"grad_{name}"] = _norm(_difference(sums[-1], sums[-2]) if len(sums) > 1 else sums[-1])
    if "class" not in loss.parts or len(sums) == 1:
        return norms, 1.0
    of_class, generative = sums[0], _difference(sums[-1], sums[0])
    norm = _norm(generative)
    norms["grad_ratio"] = norm / norms["grad_class"].clamp(min=1e-12)
    balance = trainer.config.optimizer.balance
    if not balance:
        return norms, 1.0
    norm_of_class, norm = averaged(torch.stack([norms["grad_class"], norm]), trainer.fabric)  # one scale for all ranks
    scale = (balance * norm_of_class / norm.clamp(min=1e-12)).clamp(max=1.0)
    for p, c, g in zip(parameters, of_class, generative, strict=True):
        if p.grad is not None:
            p.grad = c + scale * g
    return norms, scale


def _difference(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    return list(torch._foreach_sub(a, b))


def _norm(tensors: list[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return norm


def _adapted(steps: int, auc: float, trainer: Trainer) -> int:
    chains = trainer.recipe.chains
    if auc >= TOO_EASY:
        return min(steps + 1, chains.max_steps)
    return max(steps - 1, chains.steps) if auc <= TOO_HARD else steps


@torch.no_grad()
def _average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    for average, weight in zip(ema.parameters(), model.parameters(), strict=True):
        average.lerp_(weight, 1 - decay)
    for statistic, value in zip(ema.buffers(), model.buffers(), strict=True):
        statistic.copy_(value)
