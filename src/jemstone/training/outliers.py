"""What energy fine-tuning needs beside data: outliers, and energies that the two should keep apart at."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from jemstone.data import Dataset, load_inputs, to_box
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError, DataError
from jemstone.margins import Margins
from jemstone.networks.modes import in_mode
from jemstone.runs import Run
from jemstone.training.config import TrainConfig

MEASURED = 1024
"""Examples of each kind, at most, that margins are measured on."""
APART = 5.0
"""Nats between the two margins, at least: a network that does not tell outliers yet gets something to learn."""
_BATCH = 128


def load_outliers(config: TrainConfig, data: Dataset) -> Tensor | None:
    """The outliers that `config` names, as inputs of the shape of `data`; None where no term needs any."""
    if config.weights.margin == 0:
        return None
    if not config.data.outliers:
        raise ConfigError(
            "weights.margin pushes outliers away, and there are none: name a source of inputs that are not of the "
            "data, --data.outliers SOURCE."
        )
    return load_inputs(config.data.outliers, data.input_shape, moments=data.moments, training=True)


def outliers_of_run(run: Run, config: TrainConfig, data: Dataset) -> Tensor | None:
    """The outliers that `run` was started with, loaded again and known by their digest to be the same."""
    outliers = load_outliers(config, data)
    if outliers is not None and digest_of(outliers) != run.info["data"]["outliers"]:
        raise DataError(
            f"The outliers at {config.data.outliers!r} are not those that {run.path} was started with (their digest "
            "differs): restore the originals, or start a new run."
        )
    return outliers


def digest_of(outliers: Tensor) -> str:
    """SHA-256 over all of them."""
    return hashlib.sha256(outliers.contiguous().numpy().tobytes()).hexdigest()


def measured_margins(model: EnergyClassifier, data: Dataset, outliers: Tensor) -> Margins:
    """Margins from the energies that `model` has now, in evaluation mode.

    Liu et al. (2020) choose them around the mean energies that the pretrained network gives to data and to outliers,
    by hand. Here: the lower quartile of the energies of data and the upper quartile of those of outliers, so that three
    quarters of each have something to move; where these are not APART, moved apart evenly until they are.
    """
    rows = torch.linspace(0, len(outliers) - 1, min(MEASURED, len(outliers))).long()
    inside = _energies(model, data.train.spread(MEASURED).inputs).quantile(0.25).item()
    outside = _energies(model, outliers[rows]).quantile(0.75).item()
    missing = max(0.0, APART - (outside - inside)) / 2
    return Margins(inside - missing, outside + missing)


@torch.no_grad()
def _energies(model: EnergyClassifier, inputs: Tensor) -> Tensor:
    device = model.device
    with in_mode(model, training=False):
        return torch.cat([model.energy(to_box(part.to(device))).cpu() for part in torch.split(inputs, _BATCH)])
