"""What the parts of an evaluation share: what is measured, what a section returns, and how long work survives a kill.

A section is a function (subject, its own settings, common, work) -> Section. Sections know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from jemstone.data import Dataset
from jemstone.energy import EnergyClassifier
from jemstone.evaluation.extractors import Extractor
from jemstone.evaluation.intervals import Result
from jemstone.networks.modes import statistics_of_negatives
from jemstone.rng import generator
from jemstone.sampling import Initial, Sampler, generate

Arrays = dict[str, Shaped[np.ndarray, "..."]]
Memo = Callable[[str, Callable[[], Arrays]], Arrays]
"""(name, make) -> what `make()` returns; stored under `name`, so that work which was done once is not done again."""


class Warned(NamedTuple):
    """A reason to distrust a number: `name` is one of `WARNINGS`, `text` says what was seen, with its figures."""

    name: str
    text: str


class Picture(NamedTuple):
    """Images (n, c, h, w) in the box, to be shown row by row, `columns` to a row."""

    images: Float[Tensor, "n c h w"]
    caption: str
    columns: int = 10


class Section(NamedTuple):
    """What one section found.

    `results`, one per measured number; `figures`, plain lists and numbers that a plot needs (JSON-serialisable);
    `examples`, values per test example by name, for paired comparisons between runs; `notes` say what was left out
    and why; `pictures` by name.
    """

    results: list[Result]
    figures: dict[str, Any]
    examples: Arrays
    warnings: list[Warned]
    notes: list[str]
    pictures: dict[str, Picture]


@dataclass(frozen=True)
class Common:
    """What moves the numbers of every section."""

    seed: int = 0
    batch_size: int = 256
    resamples: int = 1000


class Work(NamedTuple):
    """How a section speaks of its progress, and where it keeps what was expensive."""

    say: Callable[[str], None] = lambda _: None
    memo: Memo = lambda _, make: make()


@dataclass(frozen=True)
class Chains:
    """How a generative model is sampled, as it was trained.

    Attributes:
        initial: where chains start, a function (labels (n,), rng) -> x (n, ...).
        sampler: the kernel that the model was trained with.
        steps: K, the kernel steps between two training steps.
        life: the steps that a training chain lives on average, K / restart rate: how long a fresh sample is run.
        buffer: the persistent chains (n, ...) at the end of training, on any device; None if they were not kept.
        start: what `initial` is called in captions, as "uniform".
    """

    initial: Initial
    sampler: Sampler
    steps: int
    life: int
    buffer: Tensor | None = None
    start: str = "custom"


@dataclass(frozen=True)
class Subject:
    """A trained model with the data that it is measured on. `chains` is None for a model without a sampler.

    `foreign` holds further out-of-distribution sets by name, inputs (n, ...) of the data's shape, uint8 or in the box.
    `extractor` is the feature extractor for samples; None: the one that the settings name. The model is in evaluation
    mode and takes no parameter gradients while sections run.
    """

    model: EnergyClassifier
    data: Dataset
    foreign: Mapping[str, Tensor] = field(default_factory=dict)
    chains: Chains | None = None
    extractor: Extractor | None = None

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are; the CPU for a model without parameters."""
        return self.model.device

    def sample(
        self, labels: Int[Tensor, " n"], rng: torch.Generator, *, by_class: bool = False, steps: int | None = None
    ) -> Float[Tensor, "n ..."]:
        """Fresh chains, one per label, run for `steps` (default `chains.life`); on the CPU, in model units.

        They descend E(x), the label only choosing a class-conditional start, or with `by_class` E(x, y). `rng` lives on
        the subject's device.
        """
        chains = self.chains
        assert chains is not None, "only a subject with chains can be sampled"
        steps = chains.life if steps is None else steps
        with statistics_of_negatives(self.model):
            labels = labels.to(self.device)
            return generate(self.model, chains.initial, chains.sampler, labels, steps, rng, by_class=by_class).cpu()

    def generator(self, seed: int, *purpose: str | int) -> torch.Generator:
        """A stream of random numbers on the model's device, named by its purpose."""
        return generator(seed, *purpose, device=self.device)


def subset(n: int, limit: int, seed: int, *purpose: str | int) -> Int[Tensor, " m"]:
    """Indices of at most `limit` of n examples, drawn without replacement, in ascending order."""
    return torch.randperm(n, generator=generator(seed, "subset", *purpose))[:limit].sort().values


WARNINGS: dict[str, str] = {
    "train-mode": (
        "The model was handed over in training mode. It was measured in evaluation mode; numbers measured elsewhere in "
        "training mode depend on dropout and on the batch, and do not compare."
    ),
    "batch-dependence": (
        "In evaluation mode the logits of an input still depend on the other inputs of its batch, as with BatchNorm "
        "without running statistics. Every number depends on the batch size and on the order of the data."
    ),
    "random-logits": (
        "Two forward passes of the same input differ. Attacks see one draw of the noise and look weaker than they are, "
        "and no number can be repeated exactly."
    ),
    "test-selected": (
        "Validation examples are also test examples. What was selected or fitted on the validation split (settings, "
        "stopping, temperature) was selected on the test set, and test numbers are too good."
    ),
    "train-test-overlap": (
        "Training examples are also test examples. Accuracy, likelihood and memorisation are about what was seen."
    ),
    "small-n": "Too few examples for the claim: the interval is the message, not the value.",
    "zero-gradient": (
        "The gradient of the attack's loss is exactly zero on part of the inputs, so that a gradient-based attack "
        "stands still there: robustness is overstated (Athalye, Carlini and Wagner, ICML 2018)."
    ),
    "black-box-beats-white-box": (
        "An attack that sees no gradients breaks inputs that the gradient-based one does not: the gradients mislead "
        "it, and white-box numbers overstate robustness (Athalye, Carlini and Wagner, ICML 2018)."
    ),
    "survives-huge-eps": (
        "Accuracy does not fall to zero at a radius within which every image can be turned grey: the attack fails, "
        "the model is not robust (Carlini et al. 2019, On evaluating adversarial robustness)."
    ),
    "chains-left-box": (
        "Chains end outside the range of images. Samples are clamped for pictures and features, and their energies "
        "belong to points that are no images."
    ),
    "chains-not-mixed": (
        "Chains that run far longer than in training do not agree with each other: the split R-hat of their energies "
        "is above 1.1 (Gelman and Rubin 1992; Vehtari et al. 2021). Samples reflect the start and the length of the "
        "run, and are not draws from p(x)."
    ),
    "memorised-samples": (
        "Samples lie nearer to training images than held-out images do: they are copies rather than new."
    ),
    "rank-deficient": (
        "Fewer samples than the features have dimensions: covariances are singular, and FID is biased upwards by an "
        "amount that depends on n and on the model (Chong and Forsyth, CVPR 2020)."
    ),
    "unreliable-partition": (
        "A few weights dominate the estimate of log Z (small effective sample size): its interval is too narrow, and "
        "the estimate is most likely too low, so that log-likelihoods look too high (Neal 2001)."
    ),
}  # fmt: skip
"""What each warning means and does to the numbers, by its name."""
