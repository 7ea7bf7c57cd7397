"""A trained model at work: labels with calibrated probabilities, and an 'I don't know' with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from jemstone.data import Dataset
from jemstone.data.dataset import Moments
from jemstone.deployment.abstention import typicality
from jemstone.deployment.calibration import (
    Calibration,
    Policy,
    Saved,
    Thresholds,
    load_calibration,
    save_calibration,
    scaled_probabilities,
)
from jemstone.deployment.hub import download, upload
from jemstone.deployment.images import read_inputs
from jemstone.deployment.locate import locate
from jemstone.deployment.saving import save_model
from jemstone.energy import marginal_energy
from jemstone.errors import DataError, RunError
from jemstone.execution import Execution
from jemstone.training.inputs import data_of_run
from jemstone.training.trained import Trained, load_trained

AMBIGUOUS, FOREIGN = "ambiguous", "out of distribution"


@dataclass(frozen=True)
class Prediction:
    """What the model says of one input."""

    label: str
    index: int
    probability: float
    """Of the label, calibrated."""
    log_density: float
    """log p(x) + log Z, nats."""
    typicality: float
    """The percentile of the log density among held-out training data: 50 is the middle, 0 lies below all of it."""
    accepted: bool
    reason: str
    """Why it is not accepted, empty where it is."""
    candidates: tuple[str, ...]
    """Labels among which the true one is, as often as the policy's `coverage` says."""


@dataclass(frozen=True)
class Predictions:
    """What the model says of n inputs, in their order; `predictions[i]` of one of them."""

    class_names: tuple[str, ...]
    probabilities: Float[np.ndarray, "n k"]
    """Calibrated: softmax of the logits at the fitted temperature."""
    log_density: Float[np.ndarray, " n"]
    """log p(x) + log Z = logsumexp_y f_y(x), nats."""
    typicality: Float[np.ndarray, " n"]
    """Percentiles, in (0, 100]."""
    thresholds: Thresholds

    @property
    def index(self) -> Int[np.ndarray, " n"]:
        """The most probable class of each input."""
        index: Int[np.ndarray, " n"] = self.probabilities.argmax(axis=1)
        return index

    @property
    def confidence(self) -> Float[np.ndarray, " n"]:
        """The probability of that class."""
        largest: Float[np.ndarray, " n"] = self.probabilities.max(axis=1)
        return largest

    @property
    def labels(self) -> list[str]:
        """Its name."""
        return [self.class_names[i] for i in self.index]

    @property
    def foreign(self) -> Bool[np.ndarray, " n"]:
        """Too unlike the training data: the log density lies below its threshold, or is not a number."""
        return np.logical_not(self.log_density >= self.thresholds.density)

    @property
    def ambiguous(self) -> Bool[np.ndarray, " n"]:
        """Too uncertain among the classes: the confidence lies below its threshold."""
        return np.logical_not(self.confidence >= self.thresholds.confidence)

    @property
    def accepted(self) -> Bool[np.ndarray, " n"]:
        """Neither."""
        accepted: Bool[np.ndarray, " n"] = ~(self.foreign | self.ambiguous)
        return accepted

    @property
    def candidates(self) -> Bool[np.ndarray, "n k"]:
        """The prediction set of each input, by class."""
        candidates: Bool[np.ndarray, "n k"] = self.probabilities >= self.thresholds.candidate
        return candidates

    def __len__(self) -> int:
        return len(self.log_density)

    def __getitem__(self, i: int) -> Prediction:
        if not -len(self) <= i < len(self):
            raise IndexError(f"There are {len(self)} predictions.")
        row = self.rows(i, None if i == -1 else i + 1)
        reasons = [name for name, holds in ((AMBIGUOUS, row.ambiguous[0]), (FOREIGN, row.foreign[0])) if holds]
        return Prediction(
            label=row.labels[0],
            index=int(row.index[0]),
            probability=float(row.confidence[0]),
            log_density=float(row.log_density[0]),
            typicality=float(row.typicality[0]),
            accepted=not reasons,
            reason=", ".join(reasons),
            candidates=tuple(name for name, holds in zip(self.class_names, row.candidates[0], strict=True) if holds),
        )

    def rows(self, start: int, stop: int | None) -> Predictions:
        """Those of the inputs from `start` up to `stop`."""
        part = slice(start, stop)
        return replace(
            self,
            probabilities=self.probabilities[part],
            log_density=self.log_density[part],
            typicality=self.typicality[part],
        )

    def __iter__(self) -> Iterator[Prediction]:
        return (self[i] for i in range(len(self)))


class Predictor:
    """A run's model with what held-out data taught about it.

    Attributes:
        trained: the model and its run: `trained.model`, `trained.sample(...)`, `trained.run.path`.
        calibration: what was measured on held-out data.
        policy: what an 'I don't know' is for.
        thresholds: where that draws the lines.
        moments: what vectors are standardised by; None for images.
    """

    def __init__(
        self, trained: Trained, calibration: Calibration, policy: Policy | None = None, moments: Moments | None = None
    ) -> None:
        self.trained = trained
        self.calibration = calibration
        self.policy = policy or Policy()
        self.thresholds = calibration.thresholds(self.policy)
        self.moments = moments

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        policy: Policy | None = None,
        network: nn.Module | None = None,
        data: Dataset | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        execution: Literal["plain", "fast"] | Execution = "plain",
    ) -> Predictor:
        """The predictor of a run directory, of a model that comes with jemstone, or of one on the Hugging Face hub.

        `source` is a path, a name such as fashion-mnist, or OWNER/NAME (`locate`). A run is calibrated on its
        validation split when it is first loaded; what was measured is kept beside it, so that its data is needed once.
        `policy` takes the place of the one that was kept, for this predictor alone. `network` and `data` are for runs
        of your own module or data, as for `load_trained`, which explains `device` and `execution`, too.

        Raises RunError or CheckpointError for a run that cannot be loaded, DataError where its data is gone or too
        small to calibrate on.
        """
        folder = locate(source)
        trained = load_trained(folder, network, data=data, device=device, execution=execution)
        saved = load_calibration(folder)
        if saved is not None and saved.step == trained.step:
            return cls(trained, saved.calibration, policy or saved.policy, saved.moments)
        predictor = calibrated(trained, saved.policy if saved else None)
        with suppress(RunError):  # a run that cannot be written to is calibrated again next time
            predictor.save_calibration()
        return predictor.with_policy(policy) if policy else predictor

    def with_policy(self, policy: Policy) -> Predictor:
        """The same model and calibration with the lines drawn for another policy."""
        return Predictor(self.trained, self.calibration, policy, self.moments)

    def __call__(self, inputs: Any) -> Predictions:
        """Predictions for one input or many: arrays, tensors, PIL images, paths, bytes, or a list (`read_inputs`)."""
        return self.predict(self.read(inputs))

    def read(self, inputs: Any) -> Float[Tensor, "n ..."]:
        """Inputs as users hold them in the units of the model (`read_inputs`)."""
        return read_inputs(inputs, self.trained.input_shape, self.moments)

    def predict(self, x: Float[Tensor, "n ..."]) -> Predictions:
        """Predictions for inputs that are in the units of the model already, images in [-1, 1]."""
        return self.predictions(self.trained.logits(x))

    def predictions(self, logits: Float[Tensor, "n k"]) -> Predictions:
        """What the model's logits (on the CPU) say."""
        log_density = -marginal_energy(logits).double().numpy()
        return Predictions(
            class_names=self.trained.class_names,
            probabilities=scaled_probabilities(logits, self.calibration.temperature),
            log_density=log_density,
            typicality=typicality(np.where(np.isnan(log_density), -np.inf, log_density), self.calibration.reference),
            thresholds=self.thresholds,
        )

    def save(self, folder: str | Path, *, buffer: bool = False, license: str | None = None) -> Path:
        """Make `folder` a slim run directory to hand on: what it takes to predict, evaluate and sample.

        It holds the settings, the weights that are used (averaged ones where the run keeps them), the calibration,
        where chains start, results.json, and a model card, README.md; the replay buffer if asked for. It has no
        optimiser, so it cannot be resumed. Of paths, of the data and in the command, only the last part is kept:
        whoever evaluates it has the data in the working directory, or passes it. A class Gaussian that weighs more
        than the model keeps its leading directions alone. `license` is an identifier of the hub such as apache-2.0.

        Raises RunError where `folder` is not free, DataError where the start of chains must be estimated again from
        data that is gone.
        """
        return save_model(self.trained, self._saved, folder, buffer=buffer, license=license, name=None).path

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        buffer: bool = False,
        license: str | None = None,
    ) -> str:
        """Make OWNER/NAME of the Hugging Face hub what `save` writes, and return its address.

        The repository is made if there is none, `private` or as its owner's default is. `token` defaults to that of
        `hf auth login`. Raises RunError where the hub refuses or cannot be reached.
        """
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            save_model(self.trained, self._saved, folder, buffer=buffer, license=license, name=repo_id)
            return upload(folder, repo_id, private=private, token=token)

    @classmethod
    def from_pretrained(
        cls, repo_id: str, *, revision: str | None = None, token: str | None = None, **options: Any
    ) -> Predictor:
        """The predictor of OWNER/NAME on the Hugging Face hub, at `revision`; `options` are those of `load`."""
        return cls.load(download(repo_id, revision=revision, token=token), **options)

    @property
    def _saved(self) -> Saved:
        return Saved(self.calibration, self.policy, self.moments, self.trained.step)

    def save_calibration(self) -> None:
        """Keep calibration and policy in the run directory."""
        folder, step = self.trained.run.path, self.trained.step
        save_calibration(folder, self.calibration, self.policy, self.moments, step)


def calibrated(trained: Trained, policy: Policy | None = None) -> Predictor:
    """The predictor of a loaded run, calibrated on the run's validation split."""
    data = data_of_run(trained.run, trained.config, trained.data)
    held_out = data.validation
    if len(held_out) == 0:
        raise DataError(
            f"{trained.run.path} held nothing out (data.validation is {trained.config.data.validation:g}), and without "
            "held-out data nothing can be calibrated. Train with data.validation above 0."
        )
    source = f"{len(held_out)} validation examples of {data.name}"
    if trained.run.info.get("imported", {}).get("layout", "wrapped") != "wrapped":
        source += ", which the imported network may have been trained on"
    calibration = Calibration.measure(trained.logits(held_out.inputs), held_out.labels, source=source)
    return Predictor(trained, calibration, policy, data.moments)
