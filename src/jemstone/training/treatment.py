"""What a failure changes in the settings: remedies, the ladder they stand on, and the settings of one step.

A treatment is a rung of the ladder and the verdicts that led there. Higher rungs lower the learning rate, because too
large a step is behind most failures, whatever they look like; each verdict adds what helps against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from jemstone.training.config import TrainConfig


@dataclass(frozen=True)
class Remedy:
    """How a treatment changes a recipe. The default changes nothing.

    Attributes:
        learning_rate: factor of the learning rate.
        chain_steps: factor of K.
        energy_l2: lower bound of weights.energy_l2, where a generative term is on.
        clip_norm: upper bound of optimizer.clip_norm.
        chain_clip: upper bound of each entry of the chains' energy gradient; turns `langevin` into `clipped`.
        clamp: keep chains inside the box.
        refresh: share of the buffer that starts anew, once, when the treatment begins.
    """

    learning_rate: float = 1.0
    chain_steps: int = 1
    energy_l2: float = 0.0
    clip_norm: float = math.inf
    chain_clip: float = math.inf
    clamp: bool = False
    refresh: float = 0.0

    def joined(self, other: Remedy) -> Remedy:
        """Both at once: of each setting the stronger."""
        return Remedy(
            min(self.learning_rate, other.learning_rate),
            max(self.chain_steps, other.chain_steps),
            max(self.energy_l2, other.energy_l2),
            min(self.clip_norm, other.clip_norm),
            min(self.chain_clip, other.chain_clip),
            self.clamp or other.clamp,
            max(self.refresh, other.refresh),
        )

    def in_words(self) -> list[str]:
        """What is changed, one phrase each."""
        words = {
            f"learning rate x {self.learning_rate:.3g}": self.learning_rate != 1,
            f"chain steps x {self.chain_steps}": self.chain_steps != 1,
            f"energy L2 at least {self.energy_l2:g}": self.energy_l2 > 0,
            f"gradient norm clipped at {self.clip_norm:g}": self.clip_norm < math.inf,
            f"chain gradients clipped at {self.chain_clip:g}": self.chain_clip < math.inf,
            "chains kept in the box": self.clamp,
            f"{self.refresh:.0%} of the buffer started anew": self.refresh > 0,
        }
        return [phrase for phrase, applies in words.items() if applies]


RATES = (0.3, 0.1, 0.03, 0.01, 0.003)
"""Factors of the learning rate, rung by rung."""
TOP_RUNG = len(RATES)


def remedy_at(rung: int, verdict: str) -> Remedy:
    """What helps against `verdict` on a rung of the ladder, 1 to TOP_RUNG. Where it comes from: docs/stability.md."""
    rate = RATES[rung - 1]
    # An anchor and a clipped gradient mend what the anchor is for at the full learning rate, so that is tried first.
    anchor = Remedy(RATES[rung - 2] if rung > 1 else 1.0, energy_l2=0.3 if rung < 3 else 1.0, clip_norm=1.0)
    remedies = {
        "non_finite": Remedy(rate, clip_norm=1.0, chain_clip=1.0, clamp=True),
        "energy_runaway": anchor,
        "gap_explosion": anchor,
        "dead_sampler": replace(anchor, chain_steps=2 if rung < 3 else 4),
        "saturated_chains": replace(anchor, chain_clip=1.0, refresh=0.5),
        "buffer_collapse": Remedy(rate, refresh=0.5),
        "accuracy_collapse": Remedy(rate, clip_norm=1.0),
    }
    return remedies[verdict]


@dataclass(frozen=True)
class Treatment:
    """What recovery has done, and does, about failures.

    Attributes:
        failures: the step of every failure so far.
        verdicts: which led to the present rung; none when untreated.
        rung: of the ladder; 0 when untreated.
        restored: the step that the last failure was rolled back to.
        since: the step at which the rung was last changed.
        probation: healthy steps after which the rung is lowered by one.
    """

    failures: tuple[int, ...] = ()
    verdicts: tuple[str, ...] = ()
    rung: int = 0
    restored: int = 0
    since: int = 0
    probation: int = 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Treatment:
        """Read what `dataclasses.asdict` wrote, after a journey through JSON."""
        found = dict(values)
        for name in ("failures", "verdicts"):
            found[name] = tuple(found.get(name, ()))
        return cls(**found)

    @property
    def remedy(self) -> Remedy:
        """The settings that the rung and its verdicts ask for."""
        remedy = Remedy()
        for verdict in self.verdicts:
            remedy = remedy.joined(remedy_at(self.rung, verdict))
        return remedy

    def after_failure(
        self, verdict: str, failed_step: int, restored_step: int, first_probation: int, *, sudden: bool = False
    ) -> Treatment:
        """One rung up, and to the second at least after a `sudden` failure, on a probation twice the last one."""
        return Treatment(
            (*self.failures, failed_step),
            tuple(dict.fromkeys((*self.verdicts, verdict))),
            min(max(self.rung + 1, 2 if sudden else 1), TOP_RUNG),
            restored_step,
            restored_step,
            2 * self.probation or first_probation,
        )

    def eased(self, step: int) -> Treatment:
        """One rung down where the probation has passed without a failure, else as it is."""
        if self.rung == 0 or step - self.since < self.probation:
            return self
        verdicts = self.verdicts if self.rung > 1 else ()
        return replace(self, rung=self.rung - 1, since=step, verdicts=verdicts)


@lru_cache(maxsize=16)
def settings_at(config: TrainConfig, remedy: Remedy, chain_steps: int, *, classifier_only: bool) -> TrainConfig:
    """`config` as a step sees it: `chain_steps` is K before the remedy; `classifier_only` switches all but one off."""
    weights, chains, optimizer = config.weights, config.chains, config.optimizer
    if classifier_only:
        weights = replace(
            weights, marginal=0.0, joint=0.0, conditional=0.0, discrimination=0.0, energy_l2=0.0, margin=0.0
        )
        optimizer = replace(optimizer, balance=0.0)
    elif weights.generative:
        weights = replace(weights, energy_l2=max(weights.energy_l2, remedy.energy_l2))
        steps = chain_steps * remedy.chain_steps
        chains = replace(chains, steps=steps, max_steps=chains.max_steps and max(chains.max_steps, steps))
        if remedy.chain_clip < math.inf and chains.kernel in ("langevin", "clipped"):
            clip = min(chains.clip, remedy.chain_clip) if chains.kernel == "clipped" else remedy.chain_clip
            chains = replace(chains, kernel="clipped", clip=clip)
        chains = replace(chains, clamp=chains.clamp or remedy.clamp)
    clip_norm = min(optimizer.clip_norm or math.inf, remedy.clip_norm)
    optimizer = replace(
        optimizer,
        learning_rate=optimizer.learning_rate * remedy.learning_rate,
        clip_norm=clip_norm if clip_norm < math.inf else 0.0,
    )
    return replace(config, weights=weights, chains=chains, optimizer=optimizer)
