"""The groups of settings that a training run is made of, as frozen values. Every default is off or neutral."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from jemstone.errors import ConfigError


@dataclass(frozen=True)
class DataConfig:
    """Where the data comes from.

    Attributes:
        source: `digits`, a .npz file, a folder of class folders, a CIFAR folder, or `hf:NAME`.
        validation: share of the training set held out for every selection.
        limit: use this many training examples only.
        outliers: a source of inputs that are not of the data, for weights.margin; its training split is used, labels
            are not.
        margins: energies, in nats, that data should lie below and outliers above. Left empty, the two are measured on
            the network that training starts from (`measured_margins`), and kept here.
    """

    source: str = "digits"
    validation: float = 0.1
    limit: int | None = None
    outliers: str = ""
    margins: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "margins", tuple(self.margins))
        if self.margins and not (len(self.margins) == 2 and -math.inf < self.margins[0] < self.margins[1] < math.inf):
            raise ConfigError(f"data.margins are two energies, the lower one first; got {list(self.margins)}.")


@dataclass(frozen=True)
class NetworkConfig:
    """Which network gives the logits.

    Attributes:
        name: `wrn-DEPTH-WIDTH`, `resnet9-WIDTH`, `conv-WIDTH[-DEPTH]`, `mlp-WIDTH[-DEPTH]`; `timm:NAME`,
            `hf:FOLDER_OR_ID` or `py:FILE.py:FUNCTION`, for which norm, dropout and activation say nothing; or `custom`
            for a module of your own.
        norm: normalisation layers.
        dropout: probability of dropping a unit, in train mode only.
        activation: the nonlinearity.
        spectral_norm: hold the largest singular value of every layer at 1 (Miyato et al. 2018).
        statistics: which statistics BatchNorm uses while weights are trained. `batch`: each batch its own, and only
            data moves the running averages (JEM++). `shared`: real images and negatives are one batch. `separate`:
            each its own, with a second set of running averages for negatives and chains. `frozen`: the running
            averages of the classifier phase, which `classifier_steps`, `start_from` or your own network brings (DAT).
        definition: of a network of timm or transformers, as JSON: found when the run starts, so that it can be loaded
            though its source has gone.
    """

    name: str = "conv-32"
    norm: Literal["none", "batch", "group", "instance"] = "none"
    dropout: float = 0.0
    activation: Literal["leaky_relu", "silu", "relu"] = "leaky_relu"
    spectral_norm: bool = False
    statistics: Literal["batch", "shared", "separate", "frozen"] = "batch"
    definition: str = ""


@dataclass(frozen=True)
class ChainConfig:
    """How negatives are drawn.

    Attributes:
        kernel: `langevin` (step_size, noise), `clipped` (step_size, clip, noise), `normalized` (step_size, noise)
            or `mala` (step_size and the temperature noise^2 / (2 step_size)).
        steps: kernel steps per training step (K).
        max_steps: let K grow by one, up to this, after a step whose negatives were told from data too easily
            (energy_auc at least 0.8), and shrink again at 0.5; 0 keeps K at `steps`.
        step_size: alpha, in input units squared per nat; for `normalized` the L2 length of a step, in input units.
        noise: standard deviation of the noise of one step, in input units.
        clip: bound on each entry of the energy gradient (kernel `clipped` only).
        clamp: keep chains inside the box of the data; vectors have none.
        start: `uniform` noise, class-conditional `gaussian` estimated from the training split, or `data`.
        restart_rate: probability that a chain drawn from the buffer starts anew.
        buffer_size: number of persistent chains, of all ranks together.
        mode: the network's mode while chains run. In `train`, as in JEM++, BatchNorm uses the statistics of the
            chains' own batch; its running averages are moved by data alone.
    """

    kernel: Literal["langevin", "clipped", "normalized", "mala"] = "langevin"
    steps: int = 20
    max_steps: int = 0
    step_size: float = 1.0
    noise: float = 0.01
    clip: float = 1.0
    clamp: bool = False
    start: Literal["uniform", "gaussian", "data"] = "uniform"
    restart_rate: float = 0.05
    buffer_size: int = 10_000
    mode: Literal["eval", "train"] = "eval"

    def __post_init__(self) -> None:
        check_choices(self, "chains.")
        at_least("chains.steps", self.steps, 1)
        if self.max_steps:
            at_least("chains.max_steps (0 is off)", self.max_steps, self.steps)
        at_least("chains.buffer_size", self.buffer_size, 1)
        above("chains.step_size", self.step_size, 0)
        above("chains.clip", self.clip, 0)
        between("chains.restart_rate", self.restart_rate, 0, 1)
        at_least("chains.noise", self.noise, 0)
        if self.kernel == "mala":
            above("chains.noise (kernel mala)", self.noise, 0)


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move.

    Attributes:
        name: `adam`, `adamw`, `sgd`, or `muon`: orthogonalised momentum for the weights between the first and the last
            layer, AdamW for all else (Jordan et al. 2024), at learning rates as for adamw.
        learning_rate: peak learning rate.
        momentum: of sgd, and of muon, which was published with 0.95.
        weight_decay: L2 for adam and sgd, decoupled for adamw and muon.
        warmup_steps: linear warm-up from 0.
        schedule: after warm-up: `constant`, `step` (times `decay_factor` at each milestone) or `cosine` (to 0).
        milestones: shares of the whole training at which `step` decays.
        decay_factor: factor of each milestone.
        clip_norm: bound on the L2 norm of the gradient; 0 is off.
        balance: bound on the gradient norm of the generative terms, as a multiple of that of the class term: where
            it is exceeded, the generative gradient is scaled down to it; 0 is off (after the balancing of ST-JEM).
        sam_rho: radius of sharpness-aware minimisation; 0 is off.
        sam_adaptive: measure the radius relative to each weight (ASAM).
    """

    name: Literal["adam", "adamw", "sgd", "muon"] = "adam"
    learning_rate: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["constant", "step", "cosine"] = "constant"
    milestones: tuple[float, ...] = ()
    decay_factor: float = 0.1
    clip_norm: float = 0.0
    balance: float = 0.0
    sam_rho: float = 0.0
    sam_adaptive: bool = False

    def __post_init__(self) -> None:
        check_choices(self, "optimizer.")
        above("optimizer.learning_rate", self.learning_rate, 0)
        above("optimizer.decay_factor", self.decay_factor, 0)
        at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        for name in ("momentum", "weight_decay", "clip_norm", "balance", "sam_rho"):
            at_least(f"optimizer.{name}", getattr(self, name), 0)
        if self.name == "muon" and self.momentum >= 1:
            raise ConfigError(f"optimizer.momentum must be below 1 with muon, got {self.momentum}. Use 0.9 or 0.95.")
        object.__setattr__(self, "milestones", tuple(self.milestones))  # a list has no hash, and settings are keys
        if self.schedule == "step" and not self.milestones:
            raise ConfigError("optimizer.schedule 'step' needs optimizer.milestones, as shares of training in (0, 1).")
        for milestone in self.milestones:
            between("optimizer.milestones", milestone, 0, 1)


@dataclass(frozen=True)
class AttackConfig:
    """Adversarial training of the class term: each labelled batch is replaced by adversarial examples of itself.

    Attributes:
        radius: L2 radius, in [0, 1] pixel units; 0 is off.
        steps: projected gradient steps.
    """

    radius: float = 0.0
    steps: int = 10

    def __post_init__(self) -> None:
        at_least("attack.radius", self.radius, 0)
        at_least("attack.steps", self.steps, 1)


@dataclass(frozen=True)
class Limits:
    """Where the guard draws the line. What each verdict means, and where its bounds come from: docs/stability.md.

    Attributes:
        energy: largest |mean E| of a batch, nats; judged at every step.
        gap: largest |mean E(real) - mean E(negatives)|, nats; judged at every step.
        window: steps over which trends are judged; 0 leaves the judgement to the two bounds above and to NaN.
        median_energy: largest median |mean E| over half a window that still grows, nats.
        median_gap: largest median |gap| over half a window, nats.
        saturated: how much larger a share of the chains' pixels may sit at the border of the box than of data's.
        distinct: smallest typical distance between negatives, relative to that between real inputs.
        class_coverage: smallest share of the classes that negatives cover, relative to that of the real batch.
        accuracy_drop: how far accuracy may fall, as a share of examples: on training batches below its best, and in
            evaluation mode, on training examples, below training batches.
    """

    energy: float = 1e4
    gap: float = 100.0
    window: int = 50
    median_energy: float = 200.0
    median_gap: float = 5.0
    saturated: float = 0.5
    distinct: float = 0.1
    class_coverage: float = 0.05
    accuracy_drop: float = 0.35

    def __post_init__(self) -> None:
        for name in ("energy", "gap", "median_energy", "median_gap"):
            above(f"limits.{name}", getattr(self, name), 0)
        for name in ("window", "saturated", "distinct", "class_coverage", "accuracy_drop"):
            at_least(f"limits.{name}", getattr(self, name), 0)


@dataclass(frozen=True)
class RecoveryConfig:
    """What happens after a verdict of the guard: roll back, discard poisoned chains, reseed, treat, and go on.

    Attributes:
        attempts: give up after more than this many failures within `within` steps; 0 stops at the first.
        within: see `attempts`.
        snapshots: states kept in memory to roll back to.
        snapshot_every: steps between them.
        probation: healthy steps after which a treatment is eased by one rung; doubled by every relapse.
    """

    attempts: int = 10
    within: int = 1000
    snapshots: int = 4
    snapshot_every: int = 25
    probation: int = 100

    def __post_init__(self) -> None:
        at_least("recovery.attempts", self.attempts, 0)
        for name in ("within", "snapshots", "snapshot_every", "probation"):
            at_least(f"recovery.{name}", getattr(self, name), 1)


@dataclass(frozen=True)
class ProgressiveConfig:
    """Progressive resolution: the beginning of a run trains on images of `factor`^2 times fewer pixels.

    Attributes:
        share: of the run's steps, at the beginning, that train on averaged-down images; 0 is off.
        factor: side of the squares of pixels that are averaged; it divides height and width.
    """

    share: float = 0.0
    factor: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(
                f"progressive.share must be at least 0 (off) and below 1, got {self.share}: the last steps of a run "
                "are at full resolution."
            )
        at_least("progressive.factor (to switch it off, set progressive.share 0)", self.factor, 2)


def check_choices(settings: object, prefix: str = "") -> None:
    """Raise ConfigError where a field annotated as a Literal holds something else."""
    for name, annotation in get_type_hints(type(settings)).items():
        choices = get_args(annotation)
        if get_origin(annotation) is Literal and getattr(settings, name) not in choices:
            raise ConfigError(f"{prefix}{name} must be one of {', '.join(choices)}; got {getattr(settings, name)!r}.")


def above(name: str, value: float, bound: float) -> None:
    """Raise ConfigError unless `value` is above `bound` and finite."""
    if not bound < value < math.inf:
        raise ConfigError(f"{name} must be above {bound} and finite, got {value}.")


def at_least(name: str, value: float, bound: float) -> None:
    """Raise ConfigError unless `value` is at least `bound` and finite."""
    if not bound <= value < math.inf:
        raise ConfigError(f"{name} must be at least {bound} and finite, got {value}.")


def between(name: str, value: float, low: float, high: float) -> None:
    """Raise ConfigError unless `value` lies in [low, high]."""
    if not low <= value <= high:
        raise ConfigError(f"{name} must lie between {low} and {high}, got {value}.")
