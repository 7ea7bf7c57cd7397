"""The chains of one step: drawn from the buffer, run down the energy, handed to the objective."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Int
from torch import Tensor

from jemstone.data.batches import Batch
from jemstone.energy import EnergyClassifier, energy_gradient
from jemstone.networks.modes import in_mode, running_statistics_held, statistics_of_negatives
from jemstone.objective import Negatives
from jemstone.rng import generator
from jemstone.sampling import run_chains
from jemstone.training.config import TrainConfig
from jemstone.training.diagnostics import Move
from jemstone.training.setup import Trainer
from jemstone.training.state import TrainState


@contextmanager
def chain_mode(model: EnergyClassifier, config: TrainConfig) -> Iterator[None]:
    """Inside, `model` is as chains see it: in their mode, with their own running statistics, which do not move."""
    training = config.chains.mode == "train" and config.network.statistics != "frozen"
    with in_mode(model, training=training), running_statistics_held(model), statistics_of_negatives(model):
        yield


def draw_negatives(state: TrainState, trainer: Trainer, real: Batch | None) -> tuple[Negatives, list[Move]]:
    """Run the chains that the objective needs. The buffer does not move until the moves are stored."""
    weights = trainer.config.weights
    if real is None:
        return Negatives(), []
    marginal, conditional, moves = None, None, []
    with chain_mode(state.model, trainer.config):
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
    config, fabric, execution = trainer.config, trainer.fabric, trainer.execution
    rng = generator(config.seed, name, state.position, fabric.global_rank, device=fabric.device)
    rate = config.chains.restart_rate
    draw = state.buffer.draw(count, rng, initial=trainer.initial, restart_rate=rate, labels=labels)
    energy_grad = energy_gradient(state.model, labels, execution=execution)
    with execution.autocast(fabric.device):  # around all steps: weights are cast once
        x, info = run_chains(trainer.sampler, execution.place(draw.x), energy_grad, config.chains.steps, rng)
    return Move(draw, x, info)
