"""One training run from start to finish, or from its last checkpoint on: the loop joined to its run directory."""

from __future__ import annotations

import datetime
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from jemstone.data import Dataset, Split, to_box
from jemstone.data.sources import absolute_source
from jemstone.energy import EnergyClassifier
from jemstone.errors import Diverged, RunError
from jemstone.networks.modes import in_mode
from jemstone.runs import Run, require_free, write_atomically
from jemstone.sampling import ClassGaussian, Initial, ReplayBuffer, Sampler
from jemstone.training.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_into,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)
from jemstone.training.config import TrainConfig
from jemstone.training.inputs import CUSTOM, check_dataset, data_of_run, load_data, make_model, read_config
from jemstone.training.loop import Metrics, TrainState, train
from jemstone.training.setup import Trainer, make_buffer, make_fabric
from jemstone.version import __version__

INITIAL = "initial.safetensors"
INITIAL_TENSORS = ("mean", "factor", "residual")


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
            config = config.with_values(data={"source": absolute_source(config.data.source)})
        else:
            data = check_dataset(data)
            config = config.with_values(data={"source": CUSTOM})
        if network is not None:
            config = config.with_values(network={"name": CUSTOM})
        model = make_model(config, data.input_shape, data.num_classes, network)
        trainer = Trainer.create(data, config, fabric)
        state = _first_state(model, trainer, data.num_classes)
        directory = None
        if run is not None:
            directory = Run.create(run, _facts(config, data, fabric))
            directory.event("started", 0)
        session = cls(config, data, state, trainer, directory)
        session._save()
        return session

    @classmethod
    def resume(cls, run: str | Path, data: Dataset | None = None, network: nn.Module | None = None) -> Session:
        """The run in directory `run`, as of its last checkpoint.

        On the CPU, with the same number of threads and the same versions, what follows is bitwise what would have
        followed; with another number of threads there is a warning, and sums may round differently.
        """
        directory = Run(run)
        config, _ = read_config(directory)
        data = data_of_run(directory, config, data)
        fabric = make_fabric(config)
        model = make_model(config, data.input_shape, data.num_classes, network)
        trainer = Trainer.create(data, config, fabric, load_initial(directory, config, data.box, fabric.device))
        found = list_checkpoints(directory.path / "checkpoints")
        if found:
            state = _restored_state(model, config, load_checkpoint(found[-1]), data.num_classes, fabric.device)
        else:  # killed before the first checkpoint: the beginning is derived from the configuration too
            state = _first_state(model, trainer, data.num_classes)
        directory.rewind(state.step)
        _warn_of_other_threads(directory)
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
        if self.state.step >= self.total_steps:
            self._note_finish()
            return
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
        self._note_finish()

    @property
    def _validates(self) -> bool:
        return self.config.validate_every > 0 and len(self.data.validation) > 0

    def _note_finish(self) -> None:
        if self.run is not None and all(row["event"] != "finished" for row in self.run.rows("events.jsonl")):
            self._event("finished", self.state.step)

    def _event(self, event: str, step: int, **details: Any) -> None:
        if self.run is not None:
            self.run.event(event, step, **details)

    def _save(self) -> None:
        if self.run is None:
            return
        state, initial = self.state, self.trainer.initial
        if isinstance(initial, ClassGaussian) and not (self.run.path / INITIAL).exists():
            write_atomically(self.run.path / INITIAL, save({n: getattr(initial, n).cpu() for n in INITIAL_TENSORS}))
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
    right, nll = 0.0, 0.0
    with in_mode(model, training=False):
        for x, y in zip(torch.split(split.inputs, batch_size), torch.split(split.labels, batch_size), strict=True):
            logits = model(fabric.to_device(to_box(x)))
            y = fabric.to_device(y)
            nll += nn.functional.cross_entropy(logits, y, reduction="sum").item()
            right += (logits.argmax(dim=1) == y).sum().item()
    return {"accuracy": right / len(split), "nll": nll / len(split)}


def load_initial(
    run: Run, config: TrainConfig, box: tuple[float, float] | None, device: torch.device
) -> ClassGaussian | None:
    """The class Gaussian that a run's chains start from, if it has one on disk."""
    path = run.path / INITIAL
    if config.chains.start != "gaussian" or not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            mean, factor, residual = (file.get_tensor(name) for name in INITIAL_TENSORS)
    except Exception as error:
        raise RunError(
            f"{path}, where the run's chains start, cannot be read: {error}. Delete it and resume."
        ) from error
    return ClassGaussian(mean, factor, residual, tuple(run.info["data"]["input_shape"]), box).to(device)


def _first_state(model: EnergyClassifier, trainer: Trainer, num_classes: int) -> TrainState:
    config, fabric, initial = trainer.config, trainer.fabric, trainer.initial
    buffer = None if initial is None else make_buffer(initial, config, num_classes, fabric)
    return TrainState.create(model, config, buffer, fabric.device)


def _restored_state(
    model: EnergyClassifier, config: TrainConfig, checkpoint: Checkpoint, num_classes: int, device: torch.device
) -> TrainState:
    buffer = None
    if config.weights.generative:
        chains = checkpoint.part("buffer")
        buffer = ReplayBuffer(chains["x"].to(device), chains["age"].to(device), num_classes)
    state = TrainState.create(model, config, buffer, device)
    load_into(state.model.network, checkpoint.part("model"), "The checkpoint")
    if state.ema is not None:
        load_into(state.ema.network, checkpoint.part("ema"), "The checkpoint's averaged model")
    unpack_optimizer(state.optimizer, checkpoint.part("optimizer"), checkpoint.header["optimizer"])
    state.step = checkpoint.step
    return state


def _warn_of_other_threads(run: Run) -> None:
    before, now = run.info["environment"].get("threads"), torch.get_num_threads()
    if before != now:
        warnings.warn(
            f"{run.path} ran with {before} threads and goes on with {now}: sums may round differently, so the result "
            f"need not be bitwise that of a run never stopped. Set OMP_NUM_THREADS={before} to have it so.",
            stacklevel=3,
        )


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
