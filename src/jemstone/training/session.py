"""One training run from start to finish, or from its last checkpoint on: the loop joined to its run directory."""

from __future__ import annotations

import datetime
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from safetensors.torch import save
from torch import nn

from jemstone.data import Dataset, Split, to_box
from jemstone.energy import EnergyClassifier
from jemstone.errors import Diverged
from jemstone.runs import Run, require_free, write_atomically
from jemstone.sampling import ClassGaussian, Initial, ReplayBuffer, Sampler
from jemstone.training.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    load_into,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)
from jemstone.training.config import TrainConfig
from jemstone.training.inputs import CUSTOM, data_of_run, load_data, make_model, read_config
from jemstone.training.loop import Metrics, TrainState, train
from jemstone.training.setup import Trainer, make_fabric
from jemstone.version import __version__


class Session:
    """A run in progress. Make one with `start` or `resume`, then exhaust `train()`.

    Attributes:
        config: every setting.
        data: the data set, whose `train` split is trained on and whose `validation` split is watched.
        run: the run directory, or None for a run that leaves nothing on disk.
        state: all that moves.
    """

    def __init__(
        self, config: TrainConfig, data: Dataset, state: TrainState, trainer: Trainer, run: Run | None
    ) -> None:
        self.config = config
        self.data = data
        self.state = state
        self.trainer = trainer
        self.run = run

    @classmethod
    def start(
        cls,
        config: TrainConfig,
        data: Dataset | None = None,
        network: nn.Module | None = None,
        *,
        run: str | Path | None = None,
    ) -> Session:
        """A new run.

        `data` defaults to what `config.data` names. `network`, any module from inputs to logits, takes the place of
        `config.network`; it is trained in place. `run` is a directory to be made; without it nothing is written.
        What is given as an object must be given again to resume, evaluate or load the run.
        """
        if run is not None:
            require_free(run)  # before anything takes time
        fabric = make_fabric(config)
        if data is None:
            data = load_data(config)
        else:
            config = config.with_values(data={"source": CUSTOM})
        if network is not None:
            config = config.with_values(network={"name": CUSTOM})
        model = make_model(config, data.input_shape, data.num_classes, network)
        trainer = Trainer.create(data, config, fabric)
        state = TrainState.create(model, config, trainer.initial, data.num_classes, fabric)
        directory = None
        if run is not None:
            directory = Run.create(run, _facts(config, data, fabric))
            if isinstance(trainer.initial, ClassGaussian):
                tensors = {name: getattr(trainer.initial, name).cpu() for name in ("mean", "factor", "residual")}
                write_atomically(directory.path / "initial.safetensors", save(tensors))
            directory.event("started", 0)
        session = cls(config, data, state, trainer, directory)
        session._save()  # a run killed before its first checkpoint can be resumed too
        return session

    @classmethod
    def resume(cls, run: str | Path, data: Dataset | None = None, network: nn.Module | None = None) -> Session:
        """The run in directory `run`, as of its last checkpoint: what follows is bitwise what would have followed."""
        directory = Run(run)
        config, _ = read_config(directory)
        data = data_of_run(directory, config, data)
        checkpoint = load_checkpoint(latest_checkpoint(directory.path / "checkpoints"))
        fabric = make_fabric(config)
        model = make_model(config, data.input_shape, data.num_classes, network)
        trainer = Trainer.create(data, config, fabric)
        state = TrainState.create(model, config, trainer.initial, data.num_classes, fabric)
        _restore(state, checkpoint, fabric.device)
        directory.rewind(state.step)
        directory.event("resumed", state.step)
        return cls(config, data, state, trainer, directory)

    @property
    def model(self) -> EnergyClassifier:
        """The model to use: the averaged one where the recipe keeps one."""
        return self.state.best

    @property
    def initial(self) -> Initial | None:
        """Where chains start; None for a plain classifier."""
        return self.trainer.initial

    @property
    def sampler(self) -> Sampler:
        """The kernel that moves chains."""
        return self.trainer.sampler

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.trainer.total_steps

    def train(self) -> Iterator[Metrics]:
        """Train to the end, yielding the metrics of every step; logs, validates and saves on the way.

        Raises Diverged, after noting it in events.jsonl, where a step fails its health check.
        """
        began = time.monotonic()
        try:
            for metrics in train(self.state, self.trainer):
                step, config = self.state.step, self.config
                last = step == self.total_steps
                if self._validates and (step % config.validate_every == 0 or last):
                    scores = validate(self.model, self.data.validation, self.trainer.fabric)
                    metrics |= {f"validation_{name}": value for name, value in scores.items()}
                    self._event("validation", step, **scores)
                metrics["seconds"] = round(time.monotonic() - began, 3)
                if self.run is not None and (step % config.log_every == 0 or last or "validation_nll" in metrics):
                    self.run.log(metrics)
                if step % config.checkpoint_every == 0 or last:
                    self._save()
                yield metrics
        except Diverged as problem:  # recovery, when it comes, takes over here
            details = {"failed_step": problem.step, "reason": problem.reason, "metrics": problem.metrics}
            self._event("diverged", self.state.step, **details)
            raise
        self._event("finished", self.state.step)

    @property
    def _validates(self) -> bool:
        return self.config.validate_every > 0 and len(self.data.validation) > 0

    def _event(self, event: str, step: int, **details: Any) -> None:
        if self.run is not None:
            self.run.event(event, step, **details)

    def _save(self) -> None:
        if self.run is None:
            return
        state = self.state
        parts: dict[str, dict[str, torch.Tensor]] = {"model": state.model.network.state_dict()}
        if state.ema is not None:
            parts["ema"] = state.ema.network.state_dict()
        if state.buffer is not None:
            parts["buffer"] = {"x": state.buffer.x, "age": state.buffer.age}
        parts["optimizer"], rest = pack_optimizer(state.optimizer)
        tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        checkpoint = Checkpoint(tensors, {"step": state.step, "optimizer": rest})
        save_checkpoint(self.run.path / "checkpoints", checkpoint, keep=self.config.keep_checkpoints)


@torch.no_grad()
def validate(model: EnergyClassifier, split: Split, fabric: Fabric, batch_size: int = 512) -> dict[str, float]:
    """Accuracy and NLL (nats) on a split, in eval mode."""
    was_training = model.training
    model.eval()
    right, nll = 0.0, 0.0
    for x, y in zip(torch.split(split.inputs, batch_size), torch.split(split.labels, batch_size), strict=True):
        logits = model(fabric.to_device(to_box(x)))
        y = fabric.to_device(y)
        nll += nn.functional.cross_entropy(logits, y, reduction="sum").item()
        right += (logits.argmax(dim=1) == y).sum().item()
    model.train(was_training)
    return {"accuracy": right / len(split), "nll": nll / len(split)}


def _restore(state: TrainState, checkpoint: Checkpoint, device: torch.device) -> None:
    load_into(state.model.network, checkpoint.part("model"), "The checkpoint")
    if state.ema is not None:
        load_into(state.ema.network, checkpoint.part("ema"), "The checkpoint's averaged model")
    if state.buffer is not None:
        chains = checkpoint.part("buffer")
        state.buffer = ReplayBuffer(chains["x"].to(device), chains["age"].to(device), state.buffer.num_classes)
    unpack_optimizer(state.optimizer, checkpoint.part("optimizer"), checkpoint.header["optimizer"])
    state.step = checkpoint.step


def _facts(config: TrainConfig, data: Dataset, fabric: Fabric) -> dict[str, Any]:
    return {
        "config": config.to_dict(),
        "data": {
            "name": data.name,
            "source": config.data.source,
            "input_shape": list(data.input_shape),
            "num_classes": data.num_classes,
            "class_names": list(data.class_names),
            "sizes": {name: len(getattr(data, name)) for name in ("train", "validation", "test")},
            "digest": data.digest(),
        },
        "environment": {
            "jemstone": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": str(fabric.device),
            "threads": torch.get_num_threads(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": " ".join([Path(sys.argv[0]).name.replace("__main__.py", "jemstone"), *sys.argv[1:]]),
        },
    }
