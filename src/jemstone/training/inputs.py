"""What a run is made of before its first step: its configuration, its data, its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from jemstone.data import UNLABELLED, Dataset, Split, load_dataset
from jemstone.data.sources import absolute_source
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError, DataError, JemstoneError, RunError
from jemstone.networks import build_network
from jemstone.networks.foreign import absolute_network, definition_of
from jemstone.networks.layers import SeparateBatchNorm2d
from jemstone.networks.modes import dry_run
from jemstone.rng import seeded
from jemstone.runs import Run
from jemstone.training.config import TrainConfig
from jemstone.training.resolution import check_progressive

CUSTOM = "custom"
"""What a configuration calls a network or a data set that was given as an object."""


def read_config(run: Run) -> tuple[TrainConfig, dict[str, Any]]:
    """The settings of a run and the facts about its data, from its config.json."""
    missing = {"config", "data", "environment"} - run.info.keys()
    if missing:
        raise RunError(f"{run.path / 'config.json'} lacks {', '.join(sorted(missing))}; restore it from a copy.")
    return TrainConfig.from_dict(run.info["config"]), run.info["data"]


def data_of_run(run: Run, config: TrainConfig, data: Dataset | None = None) -> Dataset:
    """The data that `run` was trained on, loaded again or given, known by its digest to be the same."""
    if data is None:
        try:
            data = load_data(config)
        except JemstoneError as error:
            if "published" not in run.info:
                raise
            settings = f"validation={config.data.validation:g}, seed={config.seed}, limit={config.data.limit}"
            raise DataError(
                f"{run.path} was published without its data, {run.info['data']['name']}. To use it with them, work in "
                f"the folder that holds {config.data.source!r}, or pass data=load_dataset(SOURCE, {settings}). "
                f"({error})"
            ) from error
    if data.digest() != run.info["data"]["digest"]:
        raise DataError(
            f"The data at {config.data.source!r} is not what {run.path} was trained on (its digest differs): "
            "restore the original, or start a new run."
        )
    return data


def settled(config: TrainConfig, num_classes: int) -> TrainConfig:
    """`config` with what it names found: paths as they read from any folder, a foreign network by its definition."""
    network = config.network
    with seeded(config.seed, "definition"):  # a network is made to look at it
        found = network.definition or definition_of(network.name, num_classes)
    start_from = str(Path(config.start_from).expanduser().resolve()) if config.start_from else ""
    source, outliers = config.data.source, config.data.outliers
    return config.with_values(
        start_from=start_from,
        data={
            "source": source if source == CUSTOM else absolute_source(source),
            "outliers": absolute_source(outliers) if outliers else "",
        },
        network={"name": absolute_network(network.name), "definition": found},
    )


def load_data(config: TrainConfig) -> Dataset:
    """The data set that a configuration names."""
    if config.data.source == CUSTOM:
        raise ConfigError(
            "This run was trained on data given in Python: pass the same Dataset as `data=`. "
            "The command line cannot load it."
        )
    return load_dataset(
        config.data.source, validation=config.data.validation, seed=config.seed, limit=config.data.limit
    )


def check_dataset(data: Dataset) -> Dataset:
    """`data`, known to be what training relies on; for data sets that were put together by hand."""
    for name in ("train", "validation", "test"):
        split: Split = getattr(data, name)
        lowest = UNLABELLED if name == "train" else 0
        if split.labels.dtype != torch.int64 or len(split.inputs) != len(split.labels):
            raise DataError(
                f"data.{name} needs one int64 label per input, got {split.labels.dtype} for {len(split.inputs)}."
            )
        if len(split) and not (lowest <= int(split.labels.min()) and int(split.labels.max()) < data.num_classes):
            raise DataError(
                f"Labels of data.{name} must lie in [{lowest}, {data.num_classes}), found {int(split.labels.min())} to "
                f"{int(split.labels.max())}."
            )
    return data


def make_model(
    config: TrainConfig, input_shape: tuple[int, ...], num_classes: int, network: nn.Module | None = None
) -> EnergyClassifier:
    """The network of a configuration, or the user's own, as an EnergyClassifier that is known to fit the data."""
    if network is None:
        if config.network.name == CUSTOM:
            raise ConfigError(
                "This run was trained with a network of your own: pass the same module as `network=`. "
                "The command line cannot build it."
            )
        settings = config.network
        if settings.statistics == "frozen" and not (config.classifier_steps or config.start_from):
            raise ConfigError(
                "network.statistics 'frozen' keeps the running averages of the classifier phase, and there is none: "
                "set classifier_steps, start from a run (--from RUN), or pass a trained network of your own."
            )
        with seeded(config.seed, "network"):
            network = build_network(
                settings.name,
                input_shape,
                num_classes,
                norm=settings.norm,
                dropout=settings.dropout,
                activation=settings.activation,
                spectral_norm=settings.spectral_norm,
                statistics=settings.statistics,
                definition=settings.definition,
            )
    if config.network.statistics == "separate" and not any(
        isinstance(m, SeparateBatchNorm2d) for m in network.modules()
    ):
        raise ConfigError(
            "network.statistics 'separate' needs layers with two sets of running averages, and your network has none: "
            "use jemstone.networks.layers.SeparateBatchNorm2d in place of BatchNorm2d, or another kind of statistics."
        )
    model = network if isinstance(network, EnergyClassifier) else EnergyClassifier(network)
    try:
        classes = dry_run(model, input_shape).shape[1]
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"The network does not take float32 inputs of shape (batch, {', '.join(map(str, input_shape))}), which the "
            f"data has: {error}"
        ) from error
    if classes != num_classes:
        raise ConfigError(
            f"The network returns {classes} logits and the data has {num_classes} classes. Where the data's are among "
            "them, Adapted(network, classes=...) or `jemstone wrap --classes` says which."
        )
    check_progressive(model, config.progressive, input_shape)
    return model
