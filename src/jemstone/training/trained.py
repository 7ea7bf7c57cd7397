"""What a finished or interrupted run left: the model and all that is needed to sample from it, without its data."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from lightning_fabric import Fabric
from torch import Tensor, nn

from jemstone.data import Dataset, to_box
from jemstone.data.dataset import box_of
from jemstone.energy import EnergyClassifier, marginal_energy
from jemstone.errors import CheckpointError, ConfigError, DataError
from jemstone.execution import PLAIN, Execution
from jemstone.networks.modes import statistics_of_negatives
from jemstone.rng import generator
from jemstone.runs import Run
from jemstone.sampling import Initial, Sampler, generate, uniform
from jemstone.sampling.kernels import Box
from jemstone.training.checkpoint import latest_checkpoint, load_checkpoint, load_into
from jemstone.training.choose import Choice, choose_execution
from jemstone.training.config import TrainConfig
from jemstone.training.initial_file import load_initial
from jemstone.training.inputs import data_of_run, make_model, read_config
from jemstone.training.ranks import gather, of_rank
from jemstone.training.resolution import enlarged
from jemstone.training.setup import make_fabric, make_initial, make_sampler

SCORED, SAMPLED = 512, 256
"""Inputs, and chains, computed at a time on a GPU."""
SCORED_ON_CPU, SAMPLED_ON_CPU = 128, 64
"""On a CPU, where tensors that leave its caches take up to twice as long."""


@dataclass(frozen=True)
class Trained:
    """A run's model as of its last checkpoint, in eval mode; its averaged weights where the recipe keeps them.

    Attributes:
        run: the run directory.
        config: its settings.
        model: the model, on the device that was asked for.
        input_shape: shape of one input, (c, h, w) for images.
        class_names: one name per class.
        step: optimiser steps behind the model.
        buffer: the persistent chains (n, ...), or None for a plain classifier.
    """

    run: Run
    config: TrainConfig
    model: EnergyClassifier
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    step: int
    buffer: Tensor | None
    chain_steps: int
    """K at the end of training: `config.chains.steps`, or what chains.max_steps let it become."""
    data: Dataset | None = None
    """The data set, where it was given or is at hand already; else chains that start from data load it."""
    execution: Execution = PLAIN
    """How `logits`, `log_density` and `sample` are computed."""
    reason: str = "as asked for"
    """Why so, in words."""

    @property
    def box(self) -> Box | None:
        """Where inputs live."""
        return box_of(self.input_shape)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def sampler(self) -> Sampler:
        """The kernel that the model was trained with."""
        return make_sampler(self.config.chains, self.box)

    @property
    def chain_life(self) -> int:
        """Steps that a training chain lives on average, K / restart rate: how long a fresh sample is run."""
        rate = self.config.chains.restart_rate
        return round(self.chain_steps / rate) if rate else 20 * self.chain_steps

    def initial(self) -> Initial:
        """Where the run's chains started."""
        if self.config.chains.start == "uniform":
            return uniform(self.input_shape, self.box)
        saved = load_initial(self.run, self.config, self.box, self.device)
        return saved or make_initial(data_of_run(self.run, self.config, self.data), self.config, self.device)

    @torch.no_grad()
    def logits(self, x: Tensor, *, batch_size: int | None = None) -> Float[Tensor, "n k"]:
        """Logits of inputs (n, ...), stored ones (uint8) included, batch by batch; float32 on the CPU.

        Beyond `x` and the logits, memory is that of one batch, of 128 on a CPU and 512 on a GPU unless told.
        """
        batch_size = batch_size or (SCORED_ON_CPU if self.device.type == "cpu" else SCORED)
        logits = torch.empty(len(x), len(self.class_names))
        with self.execution.autocast(self.device):  # around all batches: weights are cast once
            for part, out in zip(torch.split(x, batch_size), torch.split(logits, batch_size), strict=True):
                out.copy_(self.model(self.execution.place(to_box(part.to(self.device)))))
        return logits

    def log_density(self, x: Tensor) -> Float[Tensor, " n"]:
        """log p(x) up to a constant, nats: higher means more like the training data; on the CPU."""
        return -marginal_energy(self.logits(x))

    def buffer_chains(self, count: int, *, label: int | None = None, seed: int = 0) -> Float[Tensor, "n ..."]:
        """`count` random chains of the buffer, of those alone that the model assigns to class `label` if given."""
        chains = self.buffer
        if chains is None:
            raise DataError(f"{self.run.path} has no replay buffer: it is a plain classifier, or imported without one.")
        if label is not None:
            chains = chains[self.logits(chains).argmax(dim=1) == label]
        return chains[torch.randperm(len(chains), generator=generator(seed, "buffer chains"))[:count]]

    def sample(
        self,
        labels: Int[Tensor, " n"],
        *,
        by_class: bool = False,
        steps: int | None = None,
        seed: int = 0,
        fabric: Fabric | None = None,
    ) -> Float[Tensor, "n ..."]:
        """Fresh chains, one per label, run for `steps` (default `chain_life`) from the run's own start; on the CPU.

        They descend E(x), the label only choosing a class-conditional start, or with `by_class` E(x, y). Beyond the
        samples, memory is that of 64 chains on a CPU, of 256 on a GPU. With the
        `fabric` of several ranks, each runs its share of the chains, from a random stream of its own.
        """
        if not self.config.weights.generative:
            raise ConfigError(
                f"{self.run.path} is a plain classifier (recipe {self.config.recipe!r}): it was trained without chains "
                "and its density has no samples to show. Train a generative recipe, for example jem-small."
            )
        if self.config.chains.kernel == "mala" and self.execution.precision == "bf16-mixed":
            raise ConfigError("The acceptance test of kernel mala needs exact energies: load the run in 32-true.")
        rng = generator(seed, "sample", *(of_rank(fabric) if fabric else ()), device=self.device)
        if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < len(self.class_names)):
            raise ConfigError(f"Labels to sample must lie in [0, {len(self.class_names)}).")
        mine = labels if fabric is None else labels[fabric.global_rank :: fabric.world_size]
        mine = mine.to(self.device)
        steps = self.chain_life if steps is None else steps
        batch_size = SAMPLED_ON_CPU if self.device.type == "cpu" else SAMPLED
        with statistics_of_negatives(self.model):
            x = generate(
                self.model,
                self.initial(),
                self.sampler,
                mine,
                steps,
                rng,
                by_class=by_class,
                batch_size=batch_size,
                execution=self.execution,
            ).cpu()
        if fabric is None:
            return x
        samples = x.new_empty(len(labels), *x.shape[1:])
        for rank, part in enumerate(gather(x, fabric)):
            samples[rank :: fabric.world_size] = part
        return samples


def load_trained(
    run: str | Path,
    network: nn.Module | None = None,
    *,
    data: Dataset | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    execution: Literal["plain", "fast"] | Execution = "plain",
) -> Trained:
    """Load a run directory's model, on `device`, which need not be the one that it was trained on.

    A run of your own module or data set needs them again, as `network`, which is copied and stays as it is, and
    `data`, which only chains that start from data ask for.

    `execution` says how the model is computed: `plain`, in float32 as evaluations are; `fast`, in the precision and
    memory layout that are fastest in a few timed steps, which may be the plain ones; or an Execution of your own.
    """
    directory = Run(run)
    config, facts = read_config(directory)
    shape = tuple(facts["input_shape"])
    path = latest_checkpoint(directory.path / "checkpoints")
    checkpoint = load_checkpoint(path)
    model = make_model(config, shape, facts["num_classes"], copy.deepcopy(network))
    weights = checkpoint.part("ema") or checkpoint.part("model")
    if not weights:
        raise CheckpointError(f"{path} holds no model.")
    load_into(model.network, weights, path)
    model = model.to(make_fabric(config.with_values(device=device)).device).eval()
    chosen, reason = _choice(execution, model, config, shape)
    chosen.arrange(model)
    chains = checkpoint.part("buffer").get("x")
    if chains is not None and tuple(chains.shape[1:]) != shape:
        warnings.warn(
            f"{path} is of the low-resolution phase (progressive.share {config.progressive.share:g}): its network has "
            f"not seen images of {'x'.join(map(str, shape[1:]))} yet, and its chains are enlarged to that. Go on with "
            f"it first: jemstone train --resume {directory.path}",
            stacklevel=2,
        )
        chains = enlarged(chains, config.progressive.factor)
    names = tuple(facts["class_names"])
    chain_steps = checkpoint.header.get("chain_steps", config.chains.steps)
    return Trained(directory, config, model, shape, names, checkpoint.step, chains, chain_steps, data, chosen, reason)


def _choice(
    execution: str | Execution, model: EnergyClassifier, config: TrainConfig, input_shape: tuple[int, ...]
) -> Choice:
    if isinstance(execution, Execution):
        return Choice(execution, Trained.reason)
    if execution == "plain":
        return Choice(PLAIN, Trained.reason)
    if execution != "fast":
        raise ConfigError(f"execution must be 'plain', 'fast' or an Execution; got {execution!r}.")
    # Not compiled: that takes half a minute, and nobody knows how much will be asked of the model.
    wanted = config.with_values(precision="auto", layout="auto", compile="off", chains={"mode": "eval"})
    chosen, reason = choose_execution(model, wanted, input_shape, total_steps=0)
    return Choice(replace(chosen, merged=False), reason)
