"""From a configuration to what a step is made of: device, streams, starts, kernel, optimiser, learning rate."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import Tensor, nn

from jemstone.data import UNLABELLED, Dataset, Split, Stream, labelled, to_box
from jemstone.data.batches import pooled
from jemstone.errors import ConfigError
from jemstone.execution import PLAIN, Execution
from jemstone.rng import generator
from jemstone.sampling import (
    ClassGaussian,
    Initial,
    ReplayBuffer,
    Sampler,
    clipped,
    from_data,
    langevin,
    langevin_temperature,
    mala,
    normalized,
    uniform,
)
from jemstone.sampling.kernels import Box
from jemstone.training.config import ChainConfig, OptimizerConfig, TrainConfig
from jemstone.training.muon import Muon, hidden_weights
from jemstone.training.ranks import launch, local_rank, world_size
from jemstone.training.resolution import low_steps, reduced_shape
from jemstone.training.treatment import Remedy, settings_at


class Streams(NamedTuple):
    """The streams of a run: labelled for p(y|x), complete for the generative terms, and outliers if there are any."""

    labelled: Stream
    real: Stream
    outliers: Stream | None = None

    @classmethod
    def create(cls, data: Dataset, config: TrainConfig, fabric: Fabric, outliers: Tensor | None = None) -> Streams:
        """Streams over the training split of `data`, and over `outliers`, which are augmented as what they face is."""
        everything = data.train.to(fabric.device)  # once: the streams share it
        known = labelled(everything)
        place = {"rank": fabric.global_rank, "world_size": fabric.world_size, "device": fabric.device}
        beyond = None
        if outliers is not None:
            split = Split(outliers, torch.full((len(outliers),), UNLABELLED)).to(fabric.device)
            beyond = Stream(split, config.batch_size, config.augment, seed=config.seed, name="outliers", **place)
        return cls(
            Stream(known, config.batch_size, config.augment, seed=config.seed, name="labelled", **place),
            Stream(everything, config.real_batch_size, config.augment_real, seed=config.seed, name="real", **place),
            beyond,
        )


def make_fabric(config: TrainConfig) -> Fabric:
    """The device of this process by itself; of several that torchrun started, each has its own."""
    _require_device(config)
    devices = [local_rank()] if config.device != "cpu" and torch.cuda.is_available() else 1
    # Left to find out, Fabric would take a SLURM allocation for a job of several processes.
    return Fabric(accelerator=config.device, devices=devices, plugins=[LightningEnvironment()])


def join_ranks(config: TrainConfig) -> Fabric:
    """The device of a run, and its place among the ranks where torchrun started several."""
    _require_device(config)
    if world_size() > 1:
        return launch(config.device)
    processes = max(int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))
    if "TORCHELASTIC_RUN_ID" not in os.environ and processes > 1:
        raise ConfigError(
            f"Started as {processes} processes, and not by torchrun, so that each would train a run of its own. Start "
            "them with torchrun, as docs/scaling.md shows; in SLURM, one torchrun on each node."
        )
    return make_fabric(config)


def _require_device(config: TrainConfig) -> None:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda' and no CUDA device is available. Use --device auto or --device cpu.")


def make_initial(data: Dataset, config: TrainConfig, device: torch.device, factor: int = 1) -> Initial:
    """Where chains start, as `config.chains.start` says; estimated from the labelled training examples.

    With a `factor`, where chains of images that are averaged over `factor` x `factor` pixels start.
    """
    if config.chains.start == "uniform":
        return uniform(reduced_shape(data.input_shape, factor), data.box)
    known = labelled(data.train)
    inputs = pooled(to_box(known.inputs), factor)
    if config.chains.start == "gaussian":
        return ClassGaussian.fit(inputs, known.labels, data.num_classes, box=data.box).to(device)
    return from_data(inputs.to(device), known.labels.to(device), data.num_classes)


def make_buffer(initial: Initial, config: TrainConfig, num_classes: int, fabric: Fabric) -> ReplayBuffer:
    """The persistent chains before the first step: this rank's share of them."""
    share = -(-config.chains.buffer_size // fabric.world_size)
    rng = generator(config.seed, "buffer", fabric.global_rank, device=fabric.device)
    buffer = ReplayBuffer.create(share, initial, num_classes, rng, device=fabric.device)
    ranks = fabric.world_size
    if len(buffer) < config.real_batch_size:
        raise ConfigError(
            f"A buffer of {config.chains.buffer_size} chains gives each of {ranks} ranks {len(buffer)}, and each draws "
            f"real_batch_size = {config.real_batch_size} different ones at every step. Set chains.buffer_size to at "
            f"least {config.real_batch_size * ranks}."
        )
    if config.weights.conditional > 0 and len(buffer) // num_classes < config.real_batch_size:
        raise ConfigError(
            f"weights.conditional draws chains by class, up to real_batch_size = {config.real_batch_size} of one, and "
            f"a buffer of {len(buffer)} holds {len(buffer) // num_classes} of each of {num_classes} classes. Set "
            f"chains.buffer_size to at least {config.real_batch_size * num_classes * ranks}."
        )
    return buffer


def make_sampler(chains: ChainConfig, box: Box | None) -> Sampler:
    """The kernel that a configuration describes; `box` is where the data lives, used if `chains.clamp` says so."""
    box = box if chains.clamp else None
    if chains.kernel == "langevin":
        return langevin(chains.step_size, chains.noise, box=box)
    if chains.kernel == "clipped":
        return clipped(chains.step_size, clip=chains.clip, noise=chains.noise, box=box)
    if chains.kernel == "normalized":
        return normalized(chains.step_size, noise=chains.noise, box=box)
    return mala(chains.step_size, temperature=langevin_temperature(chains.step_size, chains.noise), box=box)


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser that a configuration describes, over all parameters of `model`."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError("The network has no parameter to train: every one has requires_grad=False.")
    # One kernel for all weights, where there is one: the arithmetic is the same.
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    decay = config.weight_decay
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters, config.learning_rate, momentum=config.momentum, weight_decay=decay, fused=fused
        )
    if config.name == "muon":
        return _make_muon(model, parameters, config)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(parameters, config.learning_rate, weight_decay=decay, fused=fused)


def _make_muon(model: nn.Module, parameters: list[nn.Parameter], config: OptimizerConfig) -> Muon:
    hidden = hidden_weights(model)
    if not hidden:
        raise ConfigError(
            "optimizer.name 'muon' is for the weights between the first and the last layer, and the network has none "
            "to train there. Use adamw, or a deeper network."
        )
    chosen = {id(p) for p in hidden}
    others = [p for p in parameters if id(p) not in chosen]
    return Muon(hidden, others, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay)


def learning_rate(config: OptimizerConfig, step: int, total: int) -> float:
    """The learning rate of `step` (counted from 0) of `total`: a pure function, so there is no schedule to save."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "step":
        return config.learning_rate * config.decay_factor ** sum(step >= m * total for m in config.milestones)
    return config.learning_rate


@dataclass(frozen=True)
class Trainer:
    """What a step needs besides the state: all of it is derived from the configuration and the data.

    `recipe` is the configuration of the run; `config` and `sampler` are as the step at hand sees them (`at`). In the
    first `low_steps` steps that is `low`, a trainer whose images are averaged over `factor` x `factor` pixels. The run
    was started on `ranks` ranks, which its number of steps follows from.
    """

    recipe: TrainConfig
    config: TrainConfig
    streams: Streams
    sampler: Sampler
    initial: Initial | None
    fabric: Fabric
    box: Box | None
    execution: Execution
    ranks: int
    low_steps: int = 0
    factor: int = 1
    low: Trainer | None = None

    @classmethod
    def create(
        cls,
        data: Dataset,
        config: TrainConfig,
        fabric: Fabric,
        initial: Initial | None = None,
        execution: Execution = PLAIN,
        ranks: int | None = None,
        outliers: Tensor | None = None,
    ) -> Trainer:
        """The trainer of `config` on `data` and `outliers`; `initial` spares estimating where chains start twice.

        `ranks` defaults to those of `fabric`.
        """
        if config.weights.generative:
            initial = initial or make_initial(data, config, fabric.device)
        sampler = make_sampler(config.chains, data.box)
        streams = Streams.create(data, config, fabric, outliers)
        trainer = cls(
            config, config, streams, sampler, initial, fabric, data.box, execution, ranks or fabric.world_size
        )
        steps = low_steps(config, trainer.total_steps)
        return replace(trainer, low_steps=steps, low=trainer._reduced(data, steps)) if steps else trainer

    def at(self, step: int, remedy: Remedy, chain_steps: int) -> Trainer:
        """This trainer as `step` sees it: in its phase, under `remedy`, with K = `chain_steps` before that."""
        alone = step < self.recipe.classifier_steps
        config = settings_at(self.recipe, remedy, chain_steps, classifier_only=alone)
        return replace(self.resolved(step), config=config, sampler=make_sampler(config.chains, self.box))

    def resolved(self, step: int) -> Trainer:
        """This trainer at the resolution of `step`."""
        return self if self.low is None or step >= self.low_steps else self.low

    def _reduced(self, data: Dataset, steps: int) -> Trainer:
        factor = self.recipe.progressive.factor
        return replace(
            self,
            streams=Streams(self.streams.labelled.reduced(factor), self.streams.real.reduced(factor)),
            initial=self.initial and make_initial(data, self.recipe, self.fabric.device, factor),
            # A compiled gradient is made, and known to be right, for images of full size only.
            execution=replace(self.execution, compiled=0),
            low_steps=steps,
            factor=factor,
        )

    @property
    def total_steps(self) -> int:
        """Steps of the whole run: of all ranks together, each of which takes part in every one."""
        return self.config.total_steps(len(self.streams.labelled.split), self.ranks)
