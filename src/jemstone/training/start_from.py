"""A new run that starts from the weights of another: trained, imported or wrapped."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from jemstone.data import Dataset
from jemstone.energy import EnergyClassifier
from jemstone.networks.foreign import is_foreign
from jemstone.runs import Run
from jemstone.training.checkpoint import latest_checkpoint, load_checkpoint, load_into
from jemstone.training.config import TrainConfig
from jemstone.training.inputs import read_config
from jemstone.training.ranks import rank


def starting_from(config: TrainConfig, run: str | Path) -> TrainConfig:
    """`config` for a run that starts from the weights of `run`: with its network and its data.

    How BatchNorm's statistics are kept (`network.statistics`) is a matter of training and stays that of `config`, where
    the network has any.
    """
    before, _ = read_config(Run(run))
    has_statistics = before.network.norm == "batch" or is_foreign(before.network.name)
    network = replace(before.network, statistics=config.network.statistics if has_statistics else "batch")
    data = replace(before.data, outliers=config.data.outliers, margins=config.data.margins)
    return replace(config, start_from=str(run), network=network, data=data)


def load_start(model: EnergyClassifier, config: TrainConfig, data: Dataset) -> None:
    """Give `model` the weights of the run that `config` starts from, its averaged ones where it keeps them, if any.

    Warns where that run was trained on examples that this one holds out. Raises CheckpointError where the weights do
    not fit.
    """
    if not config.start_from:
        return
    run = Run(config.start_from)
    path = latest_checkpoint(run.path / "checkpoints")
    checkpoint = load_checkpoint(path)
    load_into(model.network, checkpoint.part("ema") or checkpoint.part("model"), path)
    before, facts = read_config(run)
    held = [f"seed {one.seed}, data.validation {one.data.validation:g}" for one in (before, config)]
    if "imported" not in run.info and facts["name"] == data.name and held[0] != held[1] and rank() == 0:
        warnings.warn(
            f"{run.path} held out other examples of {data.name} ({held[0]}) than this run ({held[1]}), and was trained "
            "on some of these: what is selected or calibrated on them looks better than it is. Use the same.",
            stacklevel=3,
        )
