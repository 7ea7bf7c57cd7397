"""What to do when a step was not healthy: roll back, discard poisoned chains, reseed, treat, go on; or give up loudly.

No random state and no clock take part, so the same run has the same recoveries; on several ranks all of them make the
same choice, each for its own chains. Snapshots in memory never reach back
behind the last checkpoint on disk, and older states are read from disk: a resumed run has exactly the choice that the
run had which was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from jemstone.data import to_box
from jemstone.data.batches import pooled
from jemstone.energy import EnergyClassifier
from jemstone.errors import Diverged
from jemstone.networks.modes import in_mode, running_statistics_held, statistics_of_negatives
from jemstone.rng import generator, seeded
from jemstone.sampling import ReplayBuffer
from jemstone.training.checkpoint import Checkpoint
from jemstone.training.ranks import average_metrics, gather, of_rank
from jemstone.training.setup import Trainer
from jemstone.training.state import TrainState
from jemstone.training.treatment import Treatment

REFERENCE = 512
"""Training examples that a state is judged on."""
TOLERANCE = 0.95
"""A state is passed over for the one before it where that one has a cross-entropy this much lower."""
SUDDEN = 0.2
"""A failure whose trend took less than this share of a window was a step too long: no anchor alone mends that."""
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
        if state.step + self.settings.probation <= self.trainer.total_steps:  # or nothing would judge the easing
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
        target = self._target(state, problem, treatment)
        state.restore(target)
        sudden = problem.step - problem.onset < SUDDEN * self.trainer.recipe.limits.window
        state.treatment = treatment.after_failure(
            problem.verdict, problem.step, target.step, settings.probation, sudden=sudden
        )
        remedy = state.treatment.remedy
        details = {
            **problem.details(),
            "attempt": len(state.treatment.failures),
            "rung": state.treatment.rung,
            "remedy": remedy.in_words(),
            "probation": state.treatment.probation,
        }
        trainer = self.trainer.resolved(state.step)
        if state.buffer is not None and trainer.initial is not None:
            fabric, device = self.trainer.fabric, state.buffer.x.device
            rng = generator(self.trainer.recipe.seed, "recovery", state.position, *of_rank(fabric), device=device)
            poisoned = poisoned_chains(state.model, state.buffer, self._reference(trainer.factor))
            details["poisoned_chains"] = sum(gather(int(poisoned.sum()), fabric))
            fresh = torch.rand(len(state.buffer), generator=rng, device=poisoned.device) < remedy.refresh
            state.buffer.restart(poisoned | fresh, trainer.initial, rng)
        return Recovered(state.step, details)

    def _target(self, state: TrainState, problem: Diverged, treatment: Treatment) -> Checkpoint:
        """The newest state from before the trend began that classifies no worse than the one before it.

        After an easing that is the state in which it happened, at the earliest: that one was healthy under the stronger
        treatment. After a relapse in spite of treatment it is one from before the last target: that one was ill too.
        """
        before = max(problem.onset, treatment.since + 1)
        soon = problem.onset - treatment.restored <= 2 * self.trainer.recipe.limits.window
        if treatment.rung and treatment.since == treatment.restored and soon:
            before = min(before, treatment.restored)
        best, loss = self.snapshots[0], math.inf
        factor = self.trainer.resolved(problem.step - 1).factor  # all are judged at the one that failed
        for snapshot in chain(reversed(self.snapshots), self.older()):  # files last, and only if asked for
            if snapshot.step >= before:
                best = snapshot  # should there be none before
                continue
            state.restore(snapshot)
            older_loss = self._class_nll(state, factor)
            if math.isfinite(loss) and not older_loss < TOLERANCE * loss:
                break
            best, loss = snapshot, older_loss
        return best

    def _class_nll(self, state: TrainState, factor: int = 1) -> float:
        """Cross-entropy on a few labelled training examples, `pooled`, in train mode; infinite where it is no number.

        Without a class term there is nothing to compare, and the answer is always the same.
        """
        if not self.trainer.recipe.weights.class_nll:
            return 0.0
        few = self.trainer.streams.labelled.split.spread(REFERENCE)
        where = (self.trainer.recipe.seed, "recovery", state.step)
        dropout = seeded(*where, device=self.trainer.fabric.device)
        with in_mode(state.model, training=True), running_statistics_held(state.model), dropout, torch.no_grad():
            loss = float(cross_entropy(state.model(pooled(to_box(few.inputs), factor)), few.labels))
        loss = average_metrics({"loss": loss}, self.trainer.fabric)["loss"]  # all ranks go back to the same state
        return loss if math.isfinite(loss) else math.inf

    def _reference(self, factor: int) -> Tensor:
        return pooled(to_box(self.trainer.streams.real.split.spread(REFERENCE).inputs), factor)


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
        f"{problem.reason}. Gave up: {len(recent)} earlier failures within {within} steps (at "
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
