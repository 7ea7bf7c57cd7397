"""All settings of a training run, as frozen values. Every field is read; every default is off or neutral."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from jemstone.data.batches import Augment
from jemstone.errors import ConfigError
from jemstone.objective import LossWeights


@dataclass(frozen=True)
class DataConfig:
    """Where the data comes from.

    Attributes:
        source: `digits`, a .npz file, a folder of class folders, a CIFAR folder, or `hf:NAME`.
        validation: share of the training set held out for every selection.
        limit: use this many training examples only.
    """

    source: str = "digits"
    validation: float = 0.1
    limit: int | None = None


@dataclass(frozen=True)
class NetworkConfig:
    """Which network gives the logits.

    Attributes:
        name: `wrn-DEPTH-WIDTH`, `conv-WIDTH[-DEPTH]`, `mlp-WIDTH[-DEPTH]`, or `custom` for a module of your own.
        norm: normalisation layers.
        dropout: probability of dropping a unit, in train mode only.
        activation: the nonlinearity.
    """

    name: str = "conv-32"
    norm: Literal["none", "batch", "group", "instance"] = "none"
    dropout: float = 0.0
    activation: Literal["leaky_relu", "silu", "relu"] = "leaky_relu"


@dataclass(frozen=True)
class ChainConfig:
    """How negatives are drawn.

    Attributes:
        kernel: `langevin` (step_size, noise), `clipped` (step_size, clip, noise) or `mala` (step_size and the
            temperature noise^2 / (2 step_size)).
        steps: kernel steps per training step (K).
        step_size: alpha, in input units squared per nat.
        noise: standard deviation of the noise of one step, in input units.
        clip: bound on each entry of the energy gradient (kernel `clipped` only).
        clamp: keep chains inside the box of the data; vectors have none.
        start: `uniform` noise, class-conditional `gaussian` estimated from the training split, or `data`.
        restart_rate: probability that a chain drawn from the buffer starts anew.
        buffer_size: number of persistent chains.
        mode: the network's mode while chains run. In `train`, as in JEM++, BatchNorm uses the statistics of the
            chains' own batch; its running averages are moved by data alone.
    """

    kernel: Literal["langevin", "clipped", "mala"] = "langevin"
    steps: int = 20
    step_size: float = 1.0
    noise: float = 0.01
    clip: float = 1.0
    clamp: bool = False
    start: Literal["uniform", "gaussian", "data"] = "uniform"
    restart_rate: float = 0.05
    buffer_size: int = 10_000
    mode: Literal["eval", "train"] = "eval"

    def __post_init__(self) -> None:
        _check_choices(self, "chains.")
        _at_least("chains.steps", self.steps, 1)
        _at_least("chains.buffer_size", self.buffer_size, 1)
        _above("chains.step_size", self.step_size, 0)
        _above("chains.clip", self.clip, 0)
        _between("chains.restart_rate", self.restart_rate, 0, 1)
        _at_least("chains.noise", self.noise, 0)
        if self.kernel == "mala":
            _above("chains.noise (kernel mala)", self.noise, 0)


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move.

    Attributes:
        name: `adam`, `adamw` or `sgd`.
        learning_rate: peak learning rate.
        momentum: of sgd.
        weight_decay: L2 for adam and sgd, decoupled for adamw.
        warmup_steps: linear warm-up from 0.
        schedule: after warm-up: `constant`, `step` (times `decay_factor` at each milestone) or `cosine` (to 0).
        milestones: shares of the whole training at which `step` decays.
        decay_factor: factor of each milestone.
        clip_norm: bound on the L2 norm of the gradient; 0 is off.
        sam_rho: radius of sharpness-aware minimisation; 0 is off.
        sam_adaptive: measure the radius relative to each weight (ASAM).
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["constant", "step", "cosine"] = "constant"
    milestones: tuple[float, ...] = ()
    decay_factor: float = 0.1
    clip_norm: float = 0.0
    sam_rho: float = 0.0
    sam_adaptive: bool = False

    def __post_init__(self) -> None:
        _check_choices(self, "optimizer.")
        _above("optimizer.learning_rate", self.learning_rate, 0)
        _above("optimizer.decay_factor", self.decay_factor, 0)
        _at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        for name in ("momentum", "weight_decay", "clip_norm", "sam_rho"):
            _at_least(f"optimizer.{name}", getattr(self, name), 0)
        if self.schedule == "step" and not self.milestones:
            raise ConfigError("optimizer.schedule 'step' needs optimizer.milestones, as shares of training in (0, 1).")
        for milestone in self.milestones:
            _between("optimizer.milestones", milestone, 0, 1)


@dataclass(frozen=True)
class Limits:
    """Bounds beyond which a step is not healthy. Generous: they stop ruins, not bad runs.

    Attributes:
        energy: largest |mean E| of a batch, nats.
        gap: largest |mean E(real) - mean E(negatives)|, nats.
    """

    energy: float = 1e5
    gap: float = 500.0

    def __post_init__(self) -> None:
        _above("limits.energy", self.energy, 0)
        _above("limits.gap", self.gap, 0)


@dataclass(frozen=True)
class TrainConfig:
    """One training run, complete: the same config and data give the same run.

    Attributes:
        recipe: the preset that this configuration started from.
        seed: of every random stream in the run.
        epochs: passes over the labelled training examples.
        steps: number of optimiser steps; overrides epochs.
        batch_size: labelled, augmented examples per step, for log p(y|x).
        real_batch_size: examples per step for the generative terms, and as many chains.
        augment: of the labelled stream.
        augment_real: of the generative stream.
        ema: decay of the averaged weights that are evaluated; 0 is off.
        precision: `32-true`, or `bf16-mixed` for bfloat16 convolutions and matrix products.
        device: `auto`, `cpu` or `cuda`.
        log_every: steps between rows of metrics.jsonl.
        validate_every: steps between evaluations on the validation split; 0 is off.
        checkpoint_every: steps between checkpoints; one is always written at the end.
        keep_checkpoints: how many checkpoints stay on disk.
    """

    recipe: str = "custom"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    chains: ChainConfig = field(default_factory=ChainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    limits: Limits = field(default_factory=Limits)
    epochs: float = 100.0
    steps: int | None = None
    batch_size: int = 64
    real_batch_size: int = 64
    augment: Augment = field(default_factory=Augment)
    augment_real: Augment = field(default_factory=Augment)
    ema: float = 0.0
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    log_every: int = 10
    validate_every: int = 200
    checkpoint_every: int = 500
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_choices(self.network, "network.")
        _above("epochs", self.epochs, 0)
        if self.steps is not None:
            _at_least("steps", self.steps, 1)
        for name in ("batch_size", "real_batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            _at_least(name, getattr(self, name), 1)
        _at_least("validate_every", self.validate_every, 0)
        _between("ema", self.ema, 0, 0.99999)
        if self.weights.generative and self.chains.kernel == "mala" and self.precision != "32-true":
            raise ConfigError("The acceptance test of kernel mala needs exact energies: set precision 32-true.")
        if self.weights.generative and self.chains.buffer_size < self.real_batch_size:
            raise ConfigError(
                f"chains.buffer_size {self.chains.buffer_size} is smaller than real_batch_size {self.real_batch_size}: "
                "every step draws that many different chains. Enlarge the buffer or shrink the batch."
            )

    def total_steps(self, examples: int) -> int:
        """Optimiser steps of the whole run over `examples` labelled training examples."""
        return self.steps if self.steps is not None else max(1, round(self.epochs * examples / self.batch_size))

    def with_values(self, **changes: Any) -> TrainConfig:
        """A copy with fields replaced; a dict for a nested field replaces some of its fields.

        `config.with_values(seed=1, chains={"steps": 5})`
        """
        try:
            nested = {
                name: replace(getattr(self, name), **value) if isinstance(value, dict) else value
                for name, value in changes.items()
            }
            return replace(self, **nested)
        except (TypeError, AttributeError) as error:
            raise ConfigError(f"There is no such setting: {error}. See jemstone.TrainConfig.") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Read `to_dict`'s values, checking every name and type."""
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls)
        try:
            config = parser.instantiate(parser.parse_object(values))
        except Exception as error:
            raise ConfigError(f"The configuration does not read: {error}") from error
        return cls(**vars(config))


def _check_choices(settings: object, prefix: str = "") -> None:
    """Raise ConfigError where a field annotated as a Literal holds something else."""
    for name, annotation in get_type_hints(type(settings)).items():
        choices = get_args(annotation)
        if get_origin(annotation) is Literal and getattr(settings, name) not in choices:
            raise ConfigError(f"{prefix}{name} must be one of {', '.join(choices)}; got {getattr(settings, name)!r}.")


def _above(name: str, value: float, bound: float) -> None:
    if not bound < value < math.inf:
        raise ConfigError(f"{name} must be above {bound} and finite, got {value}.")


def _at_least(name: str, value: float, bound: float) -> None:
    if not bound <= value < math.inf:
        raise ConfigError(f"{name} must be at least {bound} and finite, got {value}.")


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} must lie between {low} and {high}, got {value}.")
