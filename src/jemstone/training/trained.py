"""What a finished or interrupted run left: the model and all that is needed to sample from it, without its data."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jemstone.data import Dataset, to_box
from jemstone.data.dataset import box_of
from jemstone.energy import EnergyClassifier, marginal_energy
from jemstone.errors import CheckpointError, ConfigError, DataError
from jemstone.networks.modes import statistics_of_negatives
from jemstone.rng import generator
from jemstone.runs import Run
from jemstone.sampling import Initial, Sampler, generate, uniform
from jemstone.sampling.kernels import Box
from jemstone.training.checkpoint import latest_checkpoint, load_checkpoint, load_into
from jemstone.training.config import TrainConfig
from jemstone.training.initial_file import load_initial
from jemstone.training.inputs import data_of_run, make_model, read_config
from jemstone.training.resolution import enlarged
from jemstone.training.setup import make_fabric, make_initial, make_sampler


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

    @property
    def box(self) -> Box | None:
        """Where inputs live."""
        return box_of(self.input_shape)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

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
    def logits(self, x: Tensor, *, batch_size: int = 512) -> Float[Tensor, "n k"]:
        """Logits of inputs (n, ...), stored ones (uint8) included, batch by batch; on the CPU."""
        return torch.cat([self.model(to_box(part.to(self.device))).cpu() for part in torch.split(x, batch_size)])

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
        self, labels: Int[Tensor, " n"], *, by_class: bool = False, steps: int | None = None, seed: int = 0
    ) -> Float[Tensor, "n ..."]:
        """Fresh chains, one per label, run for `steps` (default `chain_life`) from the run's own start; on the CPU.

        They descend E(x), the label only choosing a class-conditional start, or with `by_class` E(x, y).
        """
        if not self.config.weights.generative:
            raise ConfigError(
                f"{self.run.path} is a plain classifier (recipe {self.config.recipe!r}): it was trained without chains "
                "and its density has no samples to show. Train a generative recipe, for example jem-small."
            )
        rng = generator(seed, "sample", device=self.device)
        if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < len(self.class_names)):
            raise ConfigError(f"Labels to sample must lie in [0, {len(self.class_names)}).")
        labels = labels.to(self.device)
        steps = self.chain_life if steps is None else steps
        with statistics_of_negatives(self.model):
            return generate(self.model, self.initial(), self.sampler, labels, steps, rng, by_class=by_class).cpu()


def load_trained(
    run: str | Path,
    network: nn.Module | None = None,
    *,
    data: Dataset | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Trained:
    """Load a run directory's model, on `device`, which need not be the one that it was trained on.

    A run of your own module or data set needs them again, as `network`, which is copied and stays as it is, and
    `data`, which only chains that start from data ask for.
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
    return Trained(directory, config, model, shape, names, checkpoint.step, chains, chain_steps, data)
