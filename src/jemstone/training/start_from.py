"""A new run that starts from the weights of another: trained, imported or wrapped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jemstone.energy import EnergyClassifier
from jemstone.runs import Run
from jemstone.training.checkpoint import latest_checkpoint, load_checkpoint, load_into
from jemstone.training.config import TrainConfig
from jemstone.training.inputs import read_config


def starting_from(config: TrainConfig, run: str | Path) -> TrainConfig:
    """`config` for a run that starts from the weights of `run`: with its network and its data.

    How BatchNorm's statistics are kept (`network.statistics`) is a matter of training and stays that of `config`.
    """
    before, _ = read_config(Run(run))
    network = replace(before.network, statistics=config.network.statistics)
    data = replace(before.data, outliers=config.data.outliers, margins=config.data.margins)
    return replace(config, start_from=str(run), network=network, data=data)


def load_start(model: EnergyClassifier, run: str) -> None:
    """Give `model` the weights of `run`, its averaged ones where it keeps them.

    Raises CheckpointError where they do not fit.
    """
    path = latest_checkpoint(Run(run).path / "checkpoints")
    checkpoint = load_checkpoint(path)
    load_into(model.network, checkpoint.part("ema") or checkpoint.part("model"), path)
