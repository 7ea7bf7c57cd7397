"""What a client has to know about the model that is served."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from jemstone.deployment.predictor import Predictor
from jemstone.deployment.serve.answers import ModelName, finite
from jemstone.deployment.serve.settings import ServeSettings
from jemstone.version import __version__

BINS = 40
COUNTERFACTUAL_STEPS, RADIUS = 40, 2.0
"""A path that one can wait for, and an anchor that lets a digit change and stay recognisable."""


@dataclass(frozen=True)
class PolicyFacts:
    """What an 'I don't know' is for; shares."""

    error: float
    rejection: float
    coverage: float
    delta: float


@dataclass(frozen=True)
class ThresholdFacts:
    """Where that draws the lines."""

    density: float | None
    """Least log density of an accepted input, nats; null where nothing is refused as foreign."""
    confidence: float | None
    """Least probability of an accepted label; null where no line keeps the error, and nothing is accepted."""
    candidate: float
    """Probability from which on a label is a candidate."""


@dataclass(frozen=True)
class Histogram:
    """Of the log densities of held-out data, nats."""

    count: int
    edges: list[float]
    """One more than counts, ascending."""
    counts: list[int]


@dataclass(frozen=True)
class LimitFacts:
    """What one request may bring."""

    max_inputs: int
    max_bytes: int
    max_pixels: int
    max_samples: int
    max_steps: int


@dataclass(frozen=True)
class SamplingFacts:
    """What is done where a request does not say."""

    steps: int
    counterfactual_steps: int
    radius: float


@dataclass(frozen=True)
class ModelFacts:
    """The model that is served."""

    name: str
    step: int
    recipe: str
    jemstone: str
    """Version of the package."""
    kind: Literal["images", "vectors"]
    input_shape: list[int]
    """(c, h, w) of images, (d,) of vectors."""
    classes: list[str]
    generative: bool
    """Whether there are samples and counterfactuals."""
    temperature: float
    policy: PolicyFacts
    thresholds: ThresholdFacts
    calibrated_on: str
    reference: Histogram
    limits: LimitFacts
    sampling: SamplingFacts | None
    """null where not generative."""


def name_of(predictor: Predictor) -> ModelName:
    """The folder's name, and nothing of where it lies."""
    return ModelName(predictor.trained.run.path.resolve().name, predictor.trained.step)


def generative(predictor: Predictor) -> bool:
    """Whether there is a density with images to show."""
    return predictor.trained.config.weights.generative and len(predictor.trained.input_shape) == 3


def facts_of(predictor: Predictor, settings: ServeSettings) -> ModelFacts:
    """All of it."""
    trained, calibration, thresholds = predictor.trained, predictor.calibration, predictor.thresholds
    name = name_of(predictor)
    limits = {field: getattr(settings, field) for field in LimitFacts.__dataclass_fields__}
    steps = min(trained.chain_life, settings.max_steps)
    chains = SamplingFacts(steps, min(COUNTERFACTUAL_STEPS, settings.max_steps), RADIUS)
    return ModelFacts(
        name=name.name,
        step=name.step,
        recipe=trained.config.recipe,
        jemstone=__version__,
        kind="images" if len(trained.input_shape) == 3 else "vectors",
        input_shape=list(trained.input_shape),
        classes=list(trained.class_names),
        generative=generative(predictor),
        temperature=calibration.temperature,
        policy=PolicyFacts(**asdict(predictor.policy)),
        thresholds=ThresholdFacts(
            density=finite(thresholds.density),
            confidence=finite(thresholds.confidence),
            candidate=thresholds.candidate,
        ),
        calibrated_on=calibration.source,
        reference=_histogram(calibration.reference),
        limits=LimitFacts(**limits),
        sampling=chains if generative(predictor) else None,
    )


def _histogram(reference: Float[np.ndarray, " m"]) -> Histogram:
    bins = min(BINS, max(5, round(len(reference) ** 0.5)))
    counts, edges = np.histogram(reference, bins=bins)
    return Histogram(len(reference), edges.tolist(), counts.tolist())
