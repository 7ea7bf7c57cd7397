"""Everything that training moves, and how it becomes a checkpoint and is restored from one."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from jemstone.energy import EnergyClassifier
from jemstone.sampling import ReplayBuffer
from jemstone.training.checkpoint import Checkpoint, load_into, pack_optimizer, unpack_optimizer
from jemstone.training.config import TrainConfig
from jemstone.training.guard import History
from jemstone.training.setup import make_optimizer
from jemstone.training.treatment import Treatment

FAR_APART = 1_000_003
"""Positions between two attempts at the same step: more than any run has steps, so their streams never meet."""


@dataclass
class TrainState:
    """Everything that training moves, and nothing else: all of it is saved in a checkpoint."""

    model: EnergyClassifier
    ema: EnergyClassifier | None
    optimizer: torch.optim.Optimizer
    buffer: ReplayBuffer | None
    step: int
    chain_steps: int
    """K of the next step, before any treatment; it moves where chains.max_steps lets it."""
    history: History = ()
    """What the guard remembers."""
    treatment: Treatment = field(default_factory=Treatment)
    """What recovery has done, and does, about failures."""

    @property
    def best(self) -> EnergyClassifier:
        """The model to evaluate: the averaged one where the recipe keeps one."""
        return self.ema or self.model

    @property
    def position(self) -> int:
        """Where the random streams of the next step lie: its number, moved far on by every failure so far."""
        return self.step + FAR_APART * len(self.treatment.failures)

    @classmethod
    def create(
        cls, model: EnergyClassifier, config: TrainConfig, buffer: ReplayBuffer | None, device: torch.device
    ) -> TrainState:
        """The state before the first step; `buffer` is None where no generative term is on."""
        model = model.to(device)
        ema = copy.deepcopy(model).eval().requires_grad_(False) if config.ema > 0 else None
        optimizer = make_optimizer(model, config.optimizer)
        return cls(model, ema, optimizer, buffer, step=0, chain_steps=config.chains.steps)

    def checkpoint(self) -> Checkpoint:
        """The whole state; its tensors are this state's own, not copies."""
        parts: dict[str, dict[str, Tensor]] = {"model": self.model.network.state_dict()}
        if self.ema is not None:
            parts["ema"] = self.ema.network.state_dict()
        if self.buffer is not None:
            parts["buffer"] = {"x": self.buffer.x, "age": self.buffer.age}
        parts["optimizer"], rest = pack_optimizer(self.optimizer)
        tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        header = {
            "step": self.step,
            "optimizer": copy.deepcopy(rest),
            "chain_steps": self.chain_steps,
            "history": list(self.history),
            "treatment": asdict(self.treatment),
        }
        return Checkpoint(tensors, header)

    def snapshot(self) -> Checkpoint:
        """The whole state, copied."""
        tensors, header = self.checkpoint()
        return Checkpoint({name: value.detach().clone() for name, value in tensors.items()}, header)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Make this state what `checkpoint` holds; the checkpoint stays as it is."""
        header = checkpoint.header
        load_into(self.model.network, checkpoint.part("model"), "The checkpoint")
        if self.ema is not None:
            load_into(self.ema.network, checkpoint.part("ema"), "The checkpoint's averaged model")
        moments = {name: value.clone() for name, value in checkpoint.part("optimizer").items()}
        unpack_optimizer(self.optimizer, moments, copy.deepcopy(header["optimizer"]))
        if self.buffer is not None:
            chains = checkpoint.part("buffer")
            self.buffer.x = chains["x"].to(self.buffer.x.device, copy=True)
            self.buffer.age = chains["age"].to(self.buffer.age.device, copy=True)
        self.step = checkpoint.step
        # A checkpoint from before there was a guard with a memory has none of these.
        self.chain_steps = header.get("chain_steps", self.chain_steps)
        self.history = tuple(header.get("history", ()))
        self.treatment = Treatment.from_dict(header.get("treatment", {}))
