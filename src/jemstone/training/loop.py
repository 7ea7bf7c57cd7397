"""The training loop: TrainState, train_step, train.

One step is: move chains, compare real images with their end points, differentiate, judge; only then do weights, buffer
and step counter move. A step that the guard rejects leaves the state bitwise as it was.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from jemstone.data.batches import Batch
from jemstone.energy import EnergyClassifier, energy_gradient
from jemstone.networks.modes import buffers_restored_on_error, in_mode, running_statistics_held
from jemstone.objective import Loss, Negatives, jem_loss
from jemstone.rng import generator, seeded
from jemstone.sampling import ChainInfo, Draw, ReplayBuffer, run_chains
from jemstone.training.config import TrainConfig
from jemstone.training.guard import check
from jemstone.training.setup import Trainer, learning_rate, make_optimizer
from jemstone.training.sharpness import ascended

Metrics = dict[str, float]


@dataclass
class TrainState:
    """Everything that training moves, and nothing else: all of it is saved in a checkpoint."""

    model: EnergyClassifier
    ema: EnergyClassifier | None
    optimizer: torch.optim.Optimizer
    buffer: ReplayBuffer | None
    step: int

    @property
    def best(self) -> EnergyClassifier:
        """The model to evaluate: the averaged one where the recipe keeps one."""
        return self.ema or self.model

    @classmethod
    def create(
        cls, model: EnergyClassifier, config: TrainConfig, buffer: ReplayBuffer | None, device: torch.device
    ) -> TrainState:
        """The state before the first step; `buffer` is None where no generative term is on."""
        model = model.to(device)
        ema = copy.deepcopy(model).eval().requires_grad_(False) if config.ema > 0 else None
        return cls(model, ema, make_optimizer(model, config.optimizer), buffer, step=0)


def train(state: TrainState, trainer: Trainer) -> Iterator[Metrics]:
    """Train from where `state` is to the end, yielding the metrics of each step. The caller decides what to keep.

    Raises Diverged where a step fails its health check; the state is then what it was after the last healthy step.
    """
    while state.step < trainer.total_steps:
        yield train_step(state, trainer)


def train_step(state: TrainState, trainer: Trainer) -> Metrics:
    """Compute, check, commit: one optimiser step, moving `state` in place if and only if the guard passes."""
    config, step = trainer.config, state.step
    model, optimizer = state.model, state.optimizer
    rate = learning_rate(config.optimizer, step, trainer.total_steps)
    labelled_batch = trainer.streams.labelled(step) if config.weights.class_nll > 0 else None
    real = trainer.streams.real(step) if config.weights.generative else None

    # Dropout draws from the global stream, so that too is set by position.
    with buffers_restored_on_error(model), seeded(config.seed, "dropout", step, device=trainer.fabric.device):
        negatives, moves = draw_negatives(state, trainer, real)
        loss = _gradients(model, optimizer, labelled_batch, real, negatives, trainer)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        limit = config.optimizer.clip_norm or math.inf
        grad_norm = nn.utils.clip_grad_norm_(parameters, limit)
        metrics = _to_numbers(loss, grad_norm, moves, trainer)
        check(step + 1, metrics, config.limits)

    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    for move in moves:
        assert state.buffer is not None, "chains come from a buffer"
        state.buffer.store(move.draw, move.x, config.chains.steps)
    if state.ema is not None:
        _average(state.ema, model, min(config.ema, (1 + step) / (10 + step)))
    state.step += 1
    epoch = state.step / trainer.streams.labelled.steps_per_epoch
    return {"step": state.step, "epoch": round(epoch, 4), "learning_rate": rate, **metrics}


class Move(NamedTuple):
    """Chains of one step: where they came from, where they got to, and what happened on the way."""

    draw: Draw
    x: Tensor
    info: ChainInfo


def draw_negatives(state: TrainState, trainer: Trainer, real: Batch | None) -> tuple[Negatives, list[Move]]:
    """Run the chains that the objective needs. The buffer does not move until the moves are stored."""
    weights = trainer.config.weights
    if real is None:
        return Negatives(), []
    marginal, conditional, moves = None, None, []
    training = trainer.config.chains.mode == "train"
    with in_mode(state.model, training=training), running_statistics_held(state.model), trainer.fabric.autocast():
        if weights.marginal_chains:
            moves.append(_move_chains(state, trainer, "marginal", len(real.y)))
            marginal = moves[-1].x
        if weights.conditional > 0:
            labels = real.y[real.y >= 0]
            conditional = Batch(real.x[:0], labels)
            if len(labels):
                moves.append(_move_chains(state, trainer, "conditional", len(labels), labels))
                conditional = Batch(moves[-1].x, labels)
    return Negatives(marginal, conditional), moves


def _move_chains(
    state: TrainState, trainer: Trainer, name: str, count: int, labels: Int[Tensor, " b"] | None = None
) -> Move:
    """Draw `count` chains, of the classes `labels` if given, and run them down E(x), or down E(x, y) of their class."""
    assert state.buffer is not None, "a generative recipe has a buffer"
    assert trainer.initial is not None, "a generative recipe has somewhere to start its chains"
    config, fabric = trainer.config, trainer.fabric
    rng = generator(config.seed, name, state.step, fabric.global_rank, device=fabric.device)
    rate = config.chains.restart_rate
    draw = state.buffer.draw(count, rng, initial=trainer.initial, restart_rate=rate, labels=labels)
    x, info = run_chains(trainer.sampler, draw.x, energy_gradient(state.model, labels), config.chains.steps, rng)
    return Move(draw, x, info)


def _gradients(
    model: EnergyClassifier,
    optimizer: torch.optim.Optimizer,
    labelled_batch: Batch | None,
    real: Batch | None,
    negatives: Negatives,
    trainer: Trainer,
) -> Loss:
    """Leave the gradient of the objective in the parameters; with SAM, that at the worst point near them."""

    def backward() -> Loss:
        optimizer.zero_grad()
        with trainer.fabric.autocast():
            loss = jem_loss(model, labelled_batch, real, negatives, trainer.config.weights)
        trainer.fabric.backward(loss.total)
        return loss

    model.train()
    loss = backward()
    settings = trainer.config.optimizer
    if settings.sam_rho > 0:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # The second pass looks at weights that are not kept, so the running averages must not see it.
        with running_statistics_held(model), ascended(parameters, settings.sam_rho, adaptive=settings.sam_adaptive):
            backward()
    return loss


def _to_numbers(loss: Loss, grad_norm: Tensor, moves: list[Move], trainer: Trainer) -> Metrics:
    """The metrics of a step as floats, with one device synchronisation; only those of terms that are on."""
    weights = trainer.config.weights
    values = {"loss": loss.total.detach(), "grad_norm": grad_norm}
    if weights.class_nll > 0:
        values |= {"class_nll": loss.class_nll, "train_accuracy": loss.accuracy}
    if weights.generative:
        values["energy_real"] = loss.energy_real
    if weights.marginal_chains:
        values |= {"energy_negatives": loss.energy_negatives, "energy_gap": loss.energy_gap}
    if weights.conditional > 0:
        values["conditional_gap"] = loss.conditional_gap
    if weights.energy_l2 > 0:
        values["energy_l2"] = loss.energy_l2
    if moves:
        info = ChainInfo(*(torch.cat(parts, dim=1) for parts in zip(*(move.info for move in moves), strict=True)))
        x = torch.cat([move.x for move in moves])
        values |= {"chain_grad_norm": info.grad_norm.mean(), "chain_max": x.abs().max()}
        if trainer.config.chains.kernel == "clipped":
            values["clipped"] = info.clipped.mean()
        if trainer.config.chains.kernel == "mala":
            values["accepted"] = info.accepted.mean()
        if trainer.box is not None:
            values["saturated"] = ((x <= trainer.box[0]) | (x >= trainer.box[1])).float().mean()
    numbers: list[float] = torch.stack([value.detach().float() for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))


@torch.no_grad()
def _average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    for average, weight in zip(ema.parameters(), model.parameters(), strict=True):
        average.lerp_(weight, 1 - decay)
    for statistic, value in zip(ema.buffers(), model.buffers(), strict=True):
        statistic.copy_(value)
