"""Named presets as values: each after its paper, and a small-budget variant of each for tiny images on a CPU.

What differs from the publications is listed in docs/recipes.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from jemstone.data.batches import Augment
from jemstone.errors import ConfigError
from jemstone.objective import LossWeights
from jemstone.training.config import AttackConfig, ChainConfig, NetworkConfig, OptimizerConfig, TrainConfig


class Recipe(NamedTuple):
    """A preset: its configuration, one line on what it is, and where it comes from."""

    config: TrainConfig
    summary: str
    source: str


_CROP_FLIP = Augment(crop_padding=4, flip=True)
_CROP_FLIP_NOISE = Augment(crop_padding=4, flip=True, noise=0.03)
_PLAIN = Augment()

_CLASSIFIER = TrainConfig(
    recipe="classifier",
    network=NetworkConfig("wrn-28-10", norm="batch", activation="relu"),
    optimizer=OptimizerConfig(
        "sgd", 0.1, weight_decay=5e-4, schedule="step", milestones=(0.3, 0.6, 0.8), decay_factor=0.2
    ),
    epochs=200,
    batch_size=128,
    augment=_CROP_FLIP,
    validate_every=1000,
    checkpoint_every=1000,
)

_JEM = TrainConfig(
    recipe="jem",
    network=NetworkConfig("wrn-28-10"),
    weights=LossWeights(class_nll=1.0, marginal=1.0),
    chains=ChainConfig("langevin", steps=20, step_size=1.0, noise=0.01, restart_rate=0.05, buffer_size=10_000),
    optimizer=OptimizerConfig(
        "adam", 1e-4, warmup_steps=1000, schedule="step", milestones=(1 / 3, 2 / 3), decay_factor=0.3
    ),
    epochs=150,
    augment=_CROP_FLIP_NOISE,
    augment_real=_CROP_FLIP_NOISE,
    validate_every=1000,
    checkpoint_every=1000,
)

_JEMPP = _JEM.with_values(
    recipe="jem++",
    network={"norm": "batch"},
    chains=ChainConfig("clipped", steps=10, noise=0.0, clamp=True, start="gaussian", mode="train"),
    optimizer=OptimizerConfig(
        "sgd",
        0.1,
        weight_decay=4e-4,
        warmup_steps=1000,
        schedule="step",
        milestones=(50 / 150, 100 / 150, 125 / 150),
        decay_factor=0.2,
    ),
)

_SADA_JEM = _JEMPP.with_values(
    recipe="sada-jem",
    chains={"steps": 5},
    optimizer=OptimizerConfig(
        "sgd",
        0.1,
        weight_decay=5e-4,
        warmup_steps=1000,
        schedule="step",
        milestones=(0.3, 0.6, 0.9),
        decay_factor=0.2,
        sam_rho=2.0,
        sam_adaptive=True,
    ),
    epochs=200,
    batch_size=128,
    augment=_CROP_FLIP,
    augment_real=_PLAIN,
)

# DAT trains the adversarial classifier to its end first, and freezes its BatchNorm; its negatives start from an
# auxiliary data set and are never kept. Ours start from uniform noise. Steps are in model units: 0.1 in pixels is 0.2.
_DAT = _CLASSIFIER.with_values(
    recipe="dat",
    network=NetworkConfig("wrn-28-10", norm="batch", activation="silu", statistics="frozen"),
    weights=LossWeights(class_nll=1.0, discrimination=1.0),
    chains=ChainConfig(
        "normalized",
        steps=5,
        max_steps=50,
        step_size=0.2,
        noise=0.0,
        clamp=True,
        restart_rate=1.0,
        buffer_size=1000,
    ),
    # The learning rate falls to 8e-4 as the generative phase begins; DAT's is 1e-3.
    optimizer=OptimizerConfig(
        "sgd", 0.1, weight_decay=5e-4, schedule="step", milestones=(0.2, 0.35, 0.5), decay_factor=0.2
    ),
    attack=AttackConfig(radius=0.5, steps=10),
    augment_real=_CROP_FLIP,
    classifier_steps=40_000,
    ema=0.999,
)

# Our own: group normalisation, an anchor for the energies, a clipped gradient. On small images it is measured against
# the others in docs/stability.md; at this size it has not been trained.
_JEMSTONE = _SADA_JEM.with_values(
    recipe="jemstone",
    network={"norm": "group", "activation": "silu"},
    weights={"energy_l2": 0.1},
    chains={"steps": 10, "mode": "eval"},
    optimizer=OptimizerConfig("adamw", 1e-3, weight_decay=0.05, warmup_steps=1000, schedule="cosine", clip_norm=1.0),
    ema=0.999,
)

_SMALL_ADAM = OptimizerConfig("adam", 2e-3, warmup_steps=100, schedule="cosine")

_CLASSIFIER_SMALL = TrainConfig(
    recipe="classifier-small",
    network=NetworkConfig("conv-32", activation="silu"),
    optimizer=_SMALL_ADAM,
    epochs=60,
    augment=Augment(noise=0.03),
    ema=0.995,
)

_JEM_SMALL = _CLASSIFIER_SMALL.with_values(
    recipe="jem-small",
    weights=LossWeights(class_nll=5.0, marginal=1.0),
    optimizer={"clip_norm": 5.0},
    chains=ChainConfig("langevin", steps=10, noise=0.01, clamp=True, buffer_size=2000),
    augment=Augment(noise=0.3),
    augment_real=Augment(noise=0.03),
)

# Without BatchNorm: in train mode, at this size, it lets the energies of data and negatives run apart (docs/log.md).
_JEMPP_SMALL = _JEM_SMALL.with_values(
    recipe="jem++-small",
    chains={"kernel": "clipped", "noise": 0.0, "start": "gaussian"},
    optimizer={"learning_rate": 1e-3},
    augment_real=_PLAIN,
)

_JEMSTONE_SMALL = _JEM_SMALL.with_values(
    recipe="jemstone-small",
    network={"norm": "group"},
    weights={"energy_l2": 0.1},
    chains={"start": "gaussian"},
    optimizer={"learning_rate": 3e-3, "clip_norm": 1.0},
    augment={"noise": 0.1},
)

_DAT_SMALL = _CLASSIFIER_SMALL.with_values(
    recipe="dat-small",
    weights=_DAT.weights,
    chains=replace(_DAT.chains, max_steps=20),
    attack=AttackConfig(radius=0.5, steps=5),
    classifier_steps=600,
)

# Standardised vectors have no box and few dimensions, so that chains can be warmer and mix: T = 0.1 and not 5e-5. Noise
# on what is real gives a width of 0.1 to directions in which data hardly vary; the curvature of the energy there is
# T / 0.1^2 = 10, and Langevin is stable for steps below 2 / 10.
_JEM_VECTORS = TrainConfig(
    recipe="jem-vectors",
    network=NetworkConfig("mlp-128", activation="silu"),
    weights=LossWeights(class_nll=2.0, marginal=1.0, energy_l2=0.03),
    chains=ChainConfig("langevin", steps=10, step_size=0.1, noise=0.14, start="gaussian", buffer_size=1000),
    optimizer=OptimizerConfig("adam", 3e-3, warmup_steps=20, schedule="cosine", clip_norm=1.0),
    augment=Augment(noise=0.1),
    augment_real=Augment(noise=0.1),
    steps=400,
    ema=0.99,
)

_SADA_JEM_SMALL = _JEMPP_SMALL.with_values(
    recipe="sada-jem-small",
    chains={"steps": 5},
    optimizer={"sam_rho": 0.5, "sam_adaptive": True},
)

# Liu et al. fine-tune a trained classifier for 10 epochs at 1e-3 with a cosine, and let BatchNorm see data and outliers
# as one batch. Frozen, as here, its energies while training are those that it will have in use.
_ENERGY_FINETUNE = TrainConfig(
    recipe="energy-finetune",
    network=NetworkConfig(statistics="frozen"),
    weights=LossWeights(class_nll=1.0, margin=0.1),
    optimizer=OptimizerConfig("sgd", 1e-3, weight_decay=5e-4, schedule="cosine"),
    epochs=10,
    batch_size=128,
)

# The class term leads, so that a few hundred steps teach where data end and unteach no class. A classifier's energies
# are tens of nats apart to begin with, so that the limit of the gap is wider than for a start from nothing.
_JEM_FINETUNE = _JEMSTONE_SMALL.with_values(
    recipe="jem-finetune",
    weights={"class_nll": 80.0, "energy_l2": 0.01},
    optimizer={"learning_rate": 5e-4, "warmup_steps": 50},
    limits={"median_gap": 60.0},
    augment={"noise": 0.03},
    steps=300,
)

RECIPES: dict[str, Recipe] = {
    "classifier": Recipe(
        _CLASSIFIER,
        "Plain cross-entropy on a Wide ResNet: the baseline that every JEM must be shown beside.",
        "Zagoruyko & Komodakis, BMVC 2016",
    ),
    "jem": Recipe(
        _JEM,
        "log p(y|x) + log p(x); 20 Langevin steps from a buffer of noise starts; no normalisation.",
        "Grathwohl et al., ICLR 2020",
    ),
    "jem++": Recipe(
        _JEMPP,
        "Clipped steps without noise, class-conditional Gaussian starts, BatchNorm in train mode, SGD.",
        "Yang & Ji, ICCV 2021",
    ),
    "sada-jem": Recipe(
        _SADA_JEM,
        "Five clipped steps, adaptive SAM, augmented stream for p(y|x) and plain stream for p(x).",
        "Yang, Su & Ji, 2023",
    ),
    "dat": Recipe(
        _DAT,
        "An adversarially trained classifier, then energy as a discriminator between images and ascended noise.",
        "dual adversarial training, 2025",
    ),
    "jemstone": Recipe(
        _JEMSTONE,
        "Our own: group normalisation, SiLU, energies anchored, gradient clipped, 10 clipped steps, two streams, EMA.",
        "jemstone",
    ),
    "classifier-small": Recipe(
        _CLASSIFIER_SMALL, "The baseline for tiny images on a CPU: small ConvNet, Adam, cosine decay.", "jemstone"
    ),
    "jem-small": Recipe(
        _JEM_SMALL,
        "JEM for tiny images on a CPU: 10 Langevin steps in the box, SiLU, EMA, noisier labelled stream.",
        "jemstone, after Grathwohl et al. 2020",
    ),
    "jem++-small": Recipe(
        _JEMPP_SMALL, "JEM++'s chains on the small network, without BatchNorm.", "jemstone, after Yang & Ji 2021"
    ),
    "sada-jem-small": Recipe(
        _SADA_JEM_SMALL,
        "SADA-JEM's five steps and adaptive SAM on the small network.",
        "jemstone, after Yang et al. 2023",
    ),
    "jemstone-small": Recipe(
        _JEMSTONE_SMALL,
        "Our own for tiny images: JEM with group normalisation, energies anchored, gradient clipped at 1.",
        "jemstone",
    ),
    "jem-vectors": Recipe(
        _JEM_VECTORS,
        "JEM for tables on a CPU: 10 Langevin steps at T = 0.1 from class Gaussians, on standardised columns.",
        "jemstone",
    ),
    "jem-finetune": Recipe(
        _JEM_FINETUNE,
        "Starts from a trained classifier of small images (--from RUN); a few hundred steps make a JEM of it.",
        "jemstone",
    ),
    "energy-finetune": Recipe(
        _ENERGY_FINETUNE,
        "Starts from a trained network (--from RUN); pushes outliers' energies up, with --data.outliers SOURCE.",
        "Liu et al., NeurIPS 2020",
    ),
    "dat-small": Recipe(
        _DAT_SMALL, "Dual adversarial training on the small network, without BatchNorm.", "jemstone, after DAT 2025"
    ),
}


def recipe(name: str) -> TrainConfig:
    """The configuration of a named preset."""
    if name not in RECIPES:
        raise ConfigError(f"There is no recipe {name!r}. Choose one of: {', '.join(RECIPES)}.")
    return RECIPES[name].config
