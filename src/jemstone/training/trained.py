"""What a finished or interrupted run left: the model and all that is needed to sample from it, without its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn

from jemstone.data import labelled, to_box
from jemstone.data.dataset import box_of
from jemstone.energy import EnergyClassifier
from jemstone.errors import CheckpointError, ConfigError, RunError
from jemstone.rng import generator
from jemstone.runs import Run
from jemstone.sampling import ClassGaussian, Initial, Sampler, from_data, generate, uniform
from jemstone.sampling.kernels import Box
from jemstone.training.checkpoint import latest_checkpoint, load_checkpoint, load_into
from jemstone.training.config import TrainConfig
from jemstone.training.inputs import data_of_run, make_model, read_config
from jemstone.training.setup import make_fabric, make_sampler


@dataclass(frozen=True)
class Trained:
    """A run's model as of its last checkpoint, in eval mode; its averaged weights where the recipe keeps them.

    Attributes:
        run: the run directory.
        config: its settings.
        model: the model, on the device of the configuration.
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
        chains = self.config.chains
        return round(chains.steps / chains.restart_rate) if chains.restart_rate else 20 * chains.steps

    def initial(self) -> Initial:
        """Where the run's chains started."""
        start = self.config.chains.start
        if start == "uniform":
            return uniform(self.input_shape, self.box)
        if start == "gaussian":
            return self._class_gaussian()
        known = labelled(data_of_run(self.run, self.config).train).to(self.device)
        return from_data(to_box(known.inputs), known.labels, len(self.class_names))

    def sample(
        self, labels: Int[Tensor, " n"], *, by_class: bool = False, steps: int | None = None, seed: int = 0
    ) -> Float[Tensor, "n ..."]:
        """Fresh chains, one per label, run for `steps` (default `chain_life`) from the run's own start.

        They descend E(x), the label only choosing a class-conditional start, or with `by_class` E(x, y).
        """
        if not self.config.weights.generative:
            raise ConfigError(
                f"{self.run.path} is a plain classifier (recipe {self.config.recipe!r}): it was trained without chains "
                "and its density has no samples to show. Train a generative recipe, for example jem-small."
            )
        rng = generator(seed, "sample", device=self.device)
        labels = labels.to(self.device)
        steps = self.chain_life if steps is None else steps
        return generate(self.model, self.initial(), self.sampler, labels, steps, rng, by_class=by_class)

    def _class_gaussian(self) -> ClassGaussian:
        path = self.run.path / "initial.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                mean, factor, residual = (file.get_tensor(name) for name in ("mean", "factor", "residual"))
        except Exception as error:
            raise RunError(f"{path}, where the run's chains start, cannot be read: {error}") from error
        return ClassGaussian(mean, factor, residual, self.input_shape, self.box).to(self.device)


def load_trained(run: str | Path, network: nn.Module | None = None) -> Trained:
    """Load a run directory's model. A run of your own module needs that module again, as `network`."""
    directory = Run(run)
    config, facts = read_config(directory)
    shape = tuple(facts["input_shape"])
    path = latest_checkpoint(directory.path / "checkpoints")
    checkpoint = load_checkpoint(path)
    model = make_model(config, shape, facts["num_classes"], network)
    weights = checkpoint.part("ema") or checkpoint.part("model")
    if not weights:
        raise CheckpointError(f"{path} holds no model.")
    load_into(model.network, weights, path)
    model = model.to(make_fabric(config).device).eval()
    chains = checkpoint.part("buffer")
    return Trained(
        directory,
        config,
        model,
        shape,
        tuple(facts["class_names"]),
        checkpoint.step,
        chains.get("x") if chains else None,
    )
