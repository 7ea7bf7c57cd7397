"""What is measured, frozen under a version name: every count, radius, bin and seed of every section.

Two runs compare only where their protocols are equal, so the protocol travels with the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from jemstone.errors import ConfigError
from jemstone.evaluation import (
    corruptions,
    distal,
    generation,
    likelihood,
    long_run,
    ood,
    predictions,
    refinement,
    robustness,
)
from jemstone.evaluation.section import Common, Section, Subject, Work

SectionFunction = Callable[[Subject, Any, Common, Work], Section]

SECTIONS: dict[str, SectionFunction] = {
    "calibration": predictions.calibration_section,
    "ood": ood.ood_section,
    "corruptions": corruptions.corruptions_section,
    "robustness": robustness.robustness_section,
    "refinement": refinement.refinement_section,
    "distal": distal.distal_section,
    "generation": generation.generation_section,
    "long_run": long_run.long_run_section,
    "likelihood": likelihood.likelihood_section,
}
"""Every section by its name, in the order in which they are measured. The settings of each are a field of Protocol."""


@dataclass(frozen=True)
class Protocol:
    """Everything that moves a number: the settings of every section, and which sections are measured.

    The defaults are the standard budget. Raises ConfigError for a section that does not exist or a count below 1.
    """

    name: str = "v1"
    sections: tuple[str, ...] = tuple(SECTIONS)
    seed: int = 0
    batch_size: int = 256
    resamples: int = 1000
    calibration: predictions.CalibrationSettings = field(default_factory=predictions.CalibrationSettings)
    ood: ood.OodSettings = field(default_factory=ood.OodSettings)
    corruptions: corruptions.CorruptionSettings = field(default_factory=corruptions.CorruptionSettings)
    robustness: robustness.RobustnessSettings = field(default_factory=robustness.RobustnessSettings)
    refinement: refinement.RefinementSettings = field(default_factory=refinement.RefinementSettings)
    distal: distal.DistalSettings = field(default_factory=distal.DistalSettings)
    generation: generation.GenerationSettings = field(default_factory=generation.GenerationSettings)
    long_run: long_run.LongRunSettings = field(default_factory=long_run.LongRunSettings)
    likelihood: likelihood.LikelihoodSettings = field(default_factory=likelihood.LikelihoodSettings)

    def __post_init__(self) -> None:
        unknown = [name for name in self.sections if name not in SECTIONS]
        if unknown or not self.sections:
            raise ConfigError(f"There is no section {', '.join(unknown)!r}; choose from {', '.join(SECTIONS)}.")
        for name in ("batch_size", "resamples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Protocol.{name} must be at least 1, got {getattr(self, name)}.")

    @property
    def common(self) -> Common:
        """What moves the numbers of every section."""
        return Common(self.seed, self.batch_size, self.resamples)

    def only(self, *sections: str) -> Protocol:
        """This protocol with these sections alone."""
        return replace(self, sections=sections)


BUDGETS: dict[str, Protocol] = {
    "quick": Protocol(
        calibration=predictions.QUICK,
        ood=ood.QUICK,
        corruptions=corruptions.QUICK,
        robustness=robustness.QUICK,
        refinement=refinement.QUICK,
        distal=distal.QUICK,
        generation=generation.QUICK,
        long_run=long_run.QUICK,
        likelihood=likelihood.QUICK,
    ),
    "standard": Protocol(),
    "full": Protocol(
        calibration=predictions.FULL,
        ood=ood.FULL,
        corruptions=corruptions.FULL,
        robustness=robustness.FULL,
        refinement=refinement.FULL,
        distal=distal.FULL,
        generation=generation.FULL,
        long_run=long_run.FULL,
        likelihood=likelihood.FULL,
    ),
}
"""The same protocol at three prices: a look, a claim, a paper."""
