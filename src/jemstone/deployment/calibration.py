"""What held-out examples teach about a model: how far to trust its probabilities, and where its data lies.

The examples are split in two at random. On the first half the temperature is fitted and the reference of log densities
is taken; on the second, with these fixed, the confidences. So each threshold is made of examples that nothing before it
has seen, which is what its guarantee asks for (deployment/abstention.py).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from jemstone.data.dataset import Moments
from jemstone.deployment.abstention import confidence_threshold, density_threshold, set_threshold
from jemstone.energy import marginal_energy
from jemstone.errors import ConfigError, DataError, RunError
from jemstone.rng import generator
from jemstone.runs import write_atomically
from jemstone.temperature import fit_temperature

FILE = "calibration.safetensors"
VERSION = 1
FEWEST = 20
"""Held-out examples below which nothing can be promised about a share of a tenth."""


@dataclass(frozen=True)
class Policy:
    """What an 'I don't know' is for: shares that hold on inputs like the held-out ones, whatever the model."""

    error: float = 0.05
    """At most this share of the accepted inputs is labelled wrongly, with probability 1 - `delta`."""
    rejection: float = 0.05
    """At most this share of inputs like the training data is refused as foreign."""
    coverage: float = 0.95
    """The candidates contain the true label at least so often."""
    delta: float = 0.05
    """The chance that the held-out examples were lucky ones and `error` is missed."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 < getattr(self, field.name) < 1:
                raise ConfigError(f"policy.{field.name} is {getattr(self, field.name)}: it is a share, in (0, 1).")


class Thresholds(NamedTuple):
    """Where a policy draws the lines: accepted are inputs whose log density and confidence reach theirs."""

    density: float
    """log p(x) + log Z, nats."""
    confidence: float
    """Largest calibrated probability; infinite where no line keeps the error."""
    candidate: float
    """Calibrated probability from which on a label is a candidate."""


@dataclass(frozen=True)
class Calibration:
    """What was measured on held-out examples; thresholds for any policy follow from it."""

    temperature: float
    reference: Float[np.ndarray, " m"]
    """log densities of the first half, ascending, nats."""
    log_density: Float[np.ndarray, " n"]
    """Of the second half, as all that follows."""
    confidence: Float[np.ndarray, " n"]
    true_probability: Float[np.ndarray, " n"]
    correct: Bool[np.ndarray, " n"]
    source: str = ""
    """Where the examples are from, in words."""

    @classmethod
    def measure(
        cls, logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"], *, source: str = "", seed: int = 0
    ) -> Calibration:
        """From the logits of held-out examples and their labels. DataError where they are too few."""
        count = len(labels)
        if count < FEWEST:
            raise DataError(
                f"{count} held-out examples{f' ({source})' if source else ''} are too few to calibrate on: {FEWEST} "
                "are needed, some hundred are good. Train with a larger data.validation, or calibrate on other data."
            )
        if not bool(logits.isfinite().all()):
            raise DataError("The model's logits of held-out examples are not finite: it cannot be put to work.")
        order = torch.randperm(count, generator=generator(seed, "calibration halves"))
        first, second = order[: count // 2], order[count // 2 :]
        temperature = fit_temperature(
            logits[first].double().numpy(), labels[first].numpy(), smoothing=1 / (len(first) + 2)
        )
        density = -marginal_energy(logits).double().numpy()
        probabilities = scaled_probabilities(logits[second], temperature)
        truth = labels[second].numpy()
        return cls(
            temperature=temperature,
            reference=np.sort(density[first.numpy()]),
            log_density=density[second.numpy()],
            confidence=probabilities.max(axis=1),
            true_probability=probabilities[np.arange(len(truth)), truth],
            correct=probabilities.argmax(axis=1) == truth,
            source=source,
        )

    def thresholds(self, policy: Policy) -> Thresholds:
        """Where `policy` draws the lines. The confidence counts among inputs that are dense enough, as in use."""
        density = density_threshold(self.reference, policy.rejection)
        dense = self.log_density >= density
        return Thresholds(
            density=density,
            confidence=confidence_threshold(self.confidence[dense], self.correct[dense], policy.error, policy.delta),
            candidate=set_threshold(self.true_probability, policy.coverage),
        )


def scaled_probabilities(logits: Float[Tensor, "n k"], temperature: float) -> Float[np.ndarray, "n k"]:
    """softmax(f(x) / T), in float64: in float32 all confident inputs tie at 1."""
    probabilities: Float[np.ndarray, "n k"] = (logits.double() / temperature).softmax(dim=1).numpy()
    return probabilities


_ARRAYS = ("reference", "log_density", "confidence", "true_probability", "correct")


def save_calibration(
    folder: Path, calibration: Calibration, policy: Policy, moments: Moments | None, step: int
) -> None:
    """Write `FILE` into `folder`: of the model at `step`, with the moments that vectors are standardised by."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(calibration, name))) for name in _ARRAYS}
    if moments is not None:
        tensors |= {"mean": moments[0].contiguous(), "std": moments[1].contiguous()}
    facts = {
        "version": VERSION,
        "step": step,
        "temperature": calibration.temperature,
        "source": calibration.source,
        "policy": asdict(policy),
    }
    write_atomically(folder / FILE, save(tensors, metadata={"jemstone": json.dumps(facts)}))


class Saved(NamedTuple):
    """The content of `FILE`."""

    calibration: Calibration
    policy: Policy
    moments: Moments | None
    step: int


def load_calibration(folder: Path) -> Saved | None:
    """The calibration of the run at `folder`, or None where it has none yet."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["jemstone"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        if facts["version"] != VERSION:
            raise ValueError(f"its version is {facts['version']}, and this is {VERSION}")
        arrays = {name: tensors[name].numpy() for name in _ARRAYS}
        calibration = Calibration(temperature=facts["temperature"], source=facts["source"], **arrays)
        moments = (tensors["mean"], tensors["std"]) if "mean" in tensors else None
        return Saved(calibration, Policy(**facts["policy"]), moments, facts["step"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"Cannot read {path}: {error}. Delete it: it is made again from held-out data.") from error
