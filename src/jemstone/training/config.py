"""All settings of a training run, as one frozen value. Every field is read; every default is off or neutral."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from jsonargparse import ArgumentParser

from jemstone.data.batches import Augment
from jemstone.errors import ConfigError
from jemstone.objective import LossWeights
from jemstone.training.settings import (
    AttackConfig,
    ChainConfig,
    DataConfig,
    Limits,
    NetworkConfig,
    OptimizerConfig,
    ProgressiveConfig,
    RecoveryConfig,
    above,
    at_least,
    between,
    check_choices,
)

__all__ = [
    "AttackConfig",
    "ChainConfig",
    "DataConfig",
    "Limits",
    "NetworkConfig",
    "OptimizerConfig",
    "ProgressiveConfig",
    "RecoveryConfig",
    "TrainConfig",
]


@dataclass(frozen=True)
class TrainConfig:
    """One training run, complete: the same config and data give the same run.

    Attributes:
        recipe: the preset that this configuration started from.
        seed: of every random stream in the run.
        start_from: run directory whose weights the network starts from; read once, when the run starts.
        classifier_steps: steps at the beginning that train the class term alone.
        epochs: passes over the labelled training examples.
        steps: number of optimiser steps; overrides epochs.
        batch_size: labelled, augmented examples per step, for log p(y|x); on several ranks, of each of them.
        real_batch_size: examples per step for the generative terms, and as many chains; again of each rank.
        augment: of the labelled stream.
        augment_real: of the generative stream.
        ema: decay of the averaged weights that are evaluated; 0 is off.
        precision: `32-true`, or `bf16-mixed` for bfloat16 convolutions and matrix products; `auto` is the faster one
            of the two, measured on the network at hand, where their gradients agree.
        layout: of images in memory: `contiguous` (b, c, h, w), `channels_last` (b, h, w, c), or `auto`, the faster.
        compile: run chains on a compiled energy gradient: `on`, `off`, or `auto`: if it is right, faster, and there is
            enough work ahead to pay for the compilation.
        device: `auto`, `cpu` or `cuda`.
        log_every: steps between rows of metrics.jsonl.
        validate_every: steps between evaluations on the validation split; 0 is off.
        checkpoint_every: steps between checkpoints; one is always written at the end.
        keep_checkpoints: how many checkpoints stay on disk.
    """

    recipe: str = "custom"
    seed: int = 0
    start_from: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    chains: ChainConfig = field(default_factory=ChainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    limits: Limits = field(default_factory=Limits)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    progressive: ProgressiveConfig = field(default_factory=ProgressiveConfig)
    classifier_steps: int = 0
    epochs: float = 100.0
    steps: int | None = None
    batch_size: int = 64
    real_batch_size: int = 64
    augment: Augment = field(default_factory=Augment)
    augment_real: Augment = field(default_factory=Augment)
    ema: float = 0.0
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    layout: Literal["auto", "contiguous", "channels_last"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    log_every: int = 10
    validate_every: int = 200
    checkpoint_every: int = 500
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        check_choices(self)
        check_choices(self.network, "network.")
        above("epochs", self.epochs, 0)
        if self.steps is not None:
            at_least("steps", self.steps, 1)
        for name in ("batch_size", "real_batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            at_least(name, getattr(self, name), 1)
        at_least("validate_every", self.validate_every, 0)
        at_least("classifier_steps", self.classifier_steps, 0)
        if self.classifier_steps and not self.weights.class_nll:
            raise ConfigError("classifier_steps train the class term alone, and weights.class_nll is 0: set one to 0.")
        if self.weights.margin and self.progressive.share:
            raise ConfigError("weights.margin and progressive.share do not go together: margins are of full size.")
        if self.attack.radius and not self.weights.class_nll:
            raise ConfigError("attack.radius makes the class term adversarial, and weights.class_nll is 0.")
        if self.compile == "on" and not self.weights.generative:
            raise ConfigError("compile is about chains, and this objective has none: leave compile at 'auto'.")
        if self.optimizer.balance and not (self.weights.class_nll and self.weights.generative):
            raise ConfigError("optimizer.balance weighs generative terms against the class term: switch both on.")
        between("ema", self.ema, 0, 0.99999)
        if self.weights.generative and self.chains.kernel == "mala" and self.precision == "bf16-mixed":
            raise ConfigError("The acceptance test of kernel mala needs exact energies: set precision 32-true or auto.")
        if self.weights.generative and self.chains.buffer_size < self.real_batch_size:
            raise ConfigError(
                f"chains.buffer_size {self.chains.buffer_size} is smaller than real_batch_size {self.real_batch_size}: "
                "every step draws that many different chains. Enlarge the buffer or shrink the batch."
            )

    def total_steps(self, examples: int, ranks: int = 1) -> int:
        """Optimiser steps of the whole run over `examples` labelled training examples, on `ranks` ranks."""
        if self.steps is not None:
            return self.steps
        return max(1, round(self.epochs * examples / (self.batch_size * ranks)))

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
