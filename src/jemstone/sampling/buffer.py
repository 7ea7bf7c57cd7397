"""The persistent chains: a replay buffer of past end points (Tieleman 2008; IGEBM; JEM section 4).

Slot i belongs to class i mod k for ever: its restarts come from that class's start, and class-conditional chains use
their own class's slots only. Nothing moves until `store`, so a step that fails its health check leaves no trace.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jemstone.errors import ConfigError
from jemstone.sampling.initial import Initial


class Draw(NamedTuple):
    """Chains taken from the buffer to be run on."""

    x: Float[Tensor, "b ..."]
    slots: Int[Tensor, " b"]
    """Where each chain came from; no slot appears twice in a draw."""
    labels: Int[Tensor, " b"]
    """The class of each slot."""
    age: Int[Tensor, " b"]
    """Sampling steps behind each chain since its last restart; 0 for one restarted in this draw."""


class ReplayBuffer:
    """`x` (size, ...) and `age` (size,) of all chains. `size` is a multiple of the number of classes."""

    def __init__(self, x: Tensor, age: Tensor, num_classes: int) -> None:
        if len(x) % num_classes or len(x) != len(age):
            raise ConfigError(
                f"A buffer of {len(x)} chains and {len(age)} ages does not divide into {num_classes} classes."
            )
        self.x = x
        self.age = age
        self.num_classes = num_classes

    @classmethod
    def create(
        cls, size: int, initial: Initial, num_classes: int, rng: torch.Generator, *, device: torch.device | str = "cpu"
    ) -> ReplayBuffer:
        """`size` fresh chains, rounded up to a multiple of `num_classes` so that every class owns as many."""
        size = -(-size // num_classes) * num_classes
        labels = torch.arange(size, device=device) % num_classes
        return cls(initial(labels, rng), torch.zeros(size, dtype=torch.int64, device=device), num_classes)

    def __len__(self) -> int:
        return len(self.x)

    def draw(
        self,
        count: int,
        rng: torch.Generator,
        *,
        initial: Initial,
        restart_rate: float,
        labels: Int[Tensor, " b"] | None = None,
    ) -> Draw:
        """Take `count` chains, or one of each class in `labels`; each restarts with probability `restart_rate`."""
        slots = self._any_slots(count, rng) if labels is None else self._class_slots(labels, rng)
        classes = slots % self.num_classes
        # Drawn on the host, which has to know how many chains start anew: it would wait for a GPU to say.
        host = rng if rng.device.type == "cpu" else torch.Generator().manual_seed(rng.initial_seed())
        restart = (torch.rand(len(slots), generator=host) < restart_rate).nonzero().flatten().to(self.x.device)
        x, age = self.x[slots], self.age[slots]
        if len(restart):
            x[restart] = initial(classes[restart], rng).to(x.dtype)
            age[restart] = 0
        return Draw(x, slots, classes, age)

    def store(self, draw: Draw, x: Tensor, steps: int, keep: Bool[Tensor, " b"] | None = None) -> None:
        """Put the chains of `draw` back at their end points `x` after `steps` steps; where `keep` is false, nothing."""
        age = draw.age + steps
        slots = draw.slots
        if keep is not None:
            slots, x, age = slots[keep], x[keep], age[keep]
        self.x[slots] = x.detach().to(self.x.dtype)
        self.age[slots] = age

    def restart(self, which: Bool[Tensor, " n"], initial: Initial, rng: torch.Generator) -> None:
        """Start the chains anew where `which` (size,) is true."""
        slots = which.nonzero().flatten()
        if len(slots):
            self.x[slots] = initial(slots % self.num_classes, rng).to(self.x.dtype)
            self.age[slots] = 0

    def _any_slots(self, count: int, rng: torch.Generator) -> Tensor:
        if count > len(self):
            raise ConfigError(
                f"Cannot draw {count} chains from a buffer of {len(self)}: enlarge the buffer or shrink the batch."
            )
        return torch.randperm(len(self), generator=rng, device=self.x.device)[:count]

    def _class_slots(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        # The i-th request for a class takes the i-th row of one random order of the rows (row, class) -> slot.
        rank = (labels[:, None] == labels[None, :]).tril(-1).sum(dim=1)
        rows = torch.randperm(len(self) // self.num_classes, generator=rng, device=self.x.device)
        if len(labels) and int(rank.max()) >= len(rows):
            raise ConfigError(
                f"A batch asks for {int(rank.max()) + 1} chains of one class and the buffer holds {len(rows)} per "
                "class: enlarge the buffer or shrink the batch."
            )
        slots: Tensor = rows[rank] * self.num_classes + labels
        return slots
