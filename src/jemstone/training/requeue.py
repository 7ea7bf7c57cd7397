"""A command that may be run again: by a cluster that puts a job back into its queue, by torchrun after a failure."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from jemstone.errors import ConfigError
from jemstone.networks.foreign import absolute_network
from jemstone.runs import Run
from jemstone.training.config import TrainConfig
from jemstone.training.inputs import read_config, settled
from jemstone.training.session import Session


def start_or_resume(config: TrainConfig, run: Path) -> Session:
    """The run in directory `run` from its last checkpoint on, or a new one where there is none.

    Raises ConfigError where the run that is there was started with other settings than `config`.
    """
    if not (run / "config.json").is_file():
        return Session.start(config, run=run)
    before, facts = read_config(Run(run))
    if absolute_network(config.network.name) == before.network.name:  # its source may be gone by now
        config = config.with_values(network={"definition": before.network.definition})
    if not config.data.margins:  # measured when the run started
        config = config.with_values(data={"margins": before.data.margins})
    now = settled(config, facts["num_classes"])
    other = [field.name for field in fields(config) if getattr(before, field.name) != getattr(now, field.name)]
    if other:
        raise ConfigError(
            f"{run} holds a run that was started with other settings ({', '.join(other)}). Choose another --run, or go "
            f"on with its own settings: jemstone train --resume {run}"
        )
    return Session.resume(run)
