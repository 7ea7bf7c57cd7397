"""What to do when a step was not healthy: roll back, discard poisoned chains, reseed, treat, go on; or give up loudly.

No random state and no clock take part, so the same run has the same recoveries. Snapshots in memory never reach back
behind the last checkpoint on disk, and older states are read from disk: a resumed run has exactly the choice that the
run had which was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jemstone.data import to_box
from jemstone.energy import EnergyClassifier
from jemstone.errors import Diverged
from jemstone.networks.modes import in_mode, statistics_of_negatives
from jemstone.rng import generator
from jemstone.sampling import ReplayBuffer
from jemstone.training.checkpoint import Checkpoint
from jemstone.training.setup import Trainer
from jemstone.training.state import TrainState
from jemstone.training.treatment import Treatment

REFERENCE = 512
"""Real images whose energies say what a chain's energy may be."""
HOLE = 10.0
"""A chain is poisoned this many interquartile ranges (of at least a nat) below the median energy of data."""


class Recovered(NamedTuple):
    """What was done about a failure, for events.jsonl."""

    step: int
    """The step that training goes on from."""
    details: dict[str, Any]


class Recovery:
    """Keeps states to go back to, and goes back to one of them when a step fails.

    `older()` yields the checkpoints behind the last one, newest first; it is asked only when memory does not reach far
    enough back.
    """

    def __init__(self, trainer: Trainer, older: Callable[[], Iterator[Checkpoint]]) -> None:
        self.trainer = trainer
        self.settings = trainer.recipe.recovery
        self.older = older
        self.snapshots: list[Checkpoint] = []

    def begin_from(self, state: TrainState) -> None:
        """`state` was saved, or loaded: memory starts anew from it."""
        self.snapshots = [state.snapshot()] if self.settings.attempts else []

    def keeps(self, step: int) -> bool:
        """Whether the state after `step` is one to go back to."""
        return self.settings.attempts > 0 and step % self.settings.snapshot_every == 0

    def after(self, state: TrainState) -> bool:
        """Take note of a healthy step; returns whether a treatment was eased."""
        before = state.treatment
        state.treatment = before.eased(state.step)
        if self.keeps(state.step):
            kept = self.snapshots[-self.settings.snapshots + 1 :] if self.settings.snapshots > 1 else []
            self.snapshots = [*kept, state.snapshot()]
        return state.treatment != before

    def recover(self, state: TrainState, problem: Diverged) -> Recovered:
        """Bring `state` back to a healthy step and treat it; re-raise `problem`, explained, where that has no sense."""
        settings, treatment = self.settings, state.treatment
        recent = [step for step in treatment.failures if step > problem.step - settings.within]
        if len(recent) >= settings.attempts:
            raise _explained(problem, recent, settings.within, treatment.remedy.in_words()) from problem
        target = self._target(problem, treatment)
        self.snapshots = [s for s in self.snapshots if s.step <= target.step] or [target]
        state.restore(target)
        state.treatment = treatment.after_failure(problem.verdict, problem.step, target.step, settings.probation)
        remedy = state.treatment.remedy
        details = {
            **problem.details(),
            "attempt": len(state.treatment.failures),
            "rung": state.treatment.rung,
            "remedy": remedy.in_words(),
            "probation": state.treatment.probation,
        }
        if state.buffer is not None and self.trainer.initial is not None:
            rng = generator(self.trainer.recipe.seed, "recovery", state.position, device=state.buffer.x.device)
            poisoned = poisoned_chains(state.model, state.buffer, self._reference())
            details["poisoned_chains"] = int(poisoned.sum())
            fresh = torch.rand(len(state.buffer), generator=rng, device=poisoned.device) < remedy.refresh
            state.buffer.restart(poisoned | fresh, self.trainer.initial, rng)
        return Recovered(state.step, details)

    def _target(self, problem: Diverged, treatment: Treatment) -> Checkpoint:
        """The newest state from before the trend began.

        After an easing that is the state in which it happened, at the earliest: that one was healthy under the stronger
        treatment. After a relapse in spite of treatment it is one from before the last target: that one was ill too.
        """
        before = max(problem.onset, treatment.since + 1)
        if treatment.rung and treatment.since == treatment.restored:
            before = min(before, treatment.restored)
        oldest: Checkpoint = self.snapshots[0]
        for snapshot in chain(reversed(self.snapshots), self.older()):  # files last, and only if asked for
            oldest = snapshot
            if snapshot.step < before:
                break
        return oldest

    def _reference(self) -> Tensor:
        inputs = self.trainer.streams.real.split.inputs
        return to_box(inputs[torch.linspace(0, len(inputs) - 1, min(REFERENCE, len(inputs))).long()])


@torch.no_grad()
def poisoned_chains(model: EnergyClassifier, buffer: ReplayBuffer, real: Tensor, batch_size: int = 512) -> Tensor:
    """Which chains (size,) are not finite, or lie in a hole of the energy far below all data."""

    def energies(x: Tensor) -> Tensor:
        return torch.cat([model.energy(part) for part in torch.split(x, batch_size)])

    with in_mode(model, training=False):
        low, median, high = torch.quantile(energies(real), torch.tensor([0.25, 0.5, 0.75], device=real.device))
        floor = median - HOLE * (high - low).clamp(min=1.0)
        # `not (good)`: the energy of a chain that is not finite compares false.
        with statistics_of_negatives(model):
            not_in_a_hole = energies(buffer.x) >= floor
        good: Tensor = not_in_a_hole & buffer.x.flatten(1).isfinite().all(dim=1)
        return ~good


def _explained(problem: Diverged, recent: list[int], within: int, remedies: list[str]) -> Diverged:
    if not recent:
        return problem
    tried = f"; tried: {', '.join(remedies)}" if remedies else ""
    reason = (
        f"{problem.reason}. Gave up after {len(recent)} recoveries within {within} steps (failures at steps "
        f"{', '.join(map(str, recent))}{tried}). `jemstone doctor RUN` says what to change"
    )
    return Diverged(
        problem.step,
        reason,
        problem.metrics,
        verdict=problem.verdict,
        onset=problem.onset,
        evidence=problem.evidence,
    )
