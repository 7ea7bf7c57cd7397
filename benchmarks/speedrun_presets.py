"""What speedrun.py trains: three configurations for some twenty minutes of one H200-class GPU, chosen on paper.

The arithmetic is `forwards_per_step` times the FLOPs of a forward pass, at 35 to 50 % of 790 TFLOP/s in bfloat16; the
numbers are in docs/scaling.md. None of the three has been trained yet.

All have persistent chains that start from class Gaussians and live K / restart_rate = 400 steps on average, as in the
original: with fewer steps K between two updates, fewer chains start anew. Learning rates are for the larger batch: in
proportion to it for SGD, to its root for AdamW.
"""

from __future__ import annotations

from jemstone.data import Augment
from jemstone.training.config import TrainConfig
from jemstone.training.recipes import recipe

_QUIET = {"data": {"validation": 0.0}, "validate_every": 0, "checkpoint_every": 1_000_000, "log_every": 50}
"""Nothing is selected, so nothing is held out; and a run of minutes keeps only its end."""

# The original objective and kernel: log p(y|x) + log p(x), Langevin steps with noise, two augmented streams, Adam. The
# network is one that fits, with a norm that treats each image alone, so that a step's three batches are one pass.
_ORIGINAL = recipe("jem").with_values(
    **_QUIET,
    recipe="speedrun-original",
    network={"name": "resnet9-64", "norm": "group", "activation": "silu"},
    chains={"steps": 10, "restart_rate": 0.025, "start": "gaussian", "clamp": True},
    # Not 1e-4, which is for 100 hours: as in cifar10_hour.py.
    optimizer={"learning_rate": 1e-3, "warmup_steps": 500, "schedule": "cosine", "clip_norm": 1.0},
    batch_size=256,
    real_batch_size=256,
    ema=0.999,
    epochs=150,
)

# log p(x, y) on one batch of real images: two batches pass the network in an outer step instead of three. The one
# stream has to be augmented, for accuracy, and samples will look augmented too.
_SHARED = recipe("jemstone").with_values(
    **_QUIET,
    recipe="speedrun-shared",
    network={"name": "wrn-16-8"},
    weights={"class_nll": 0.0, "marginal": 0.0, "joint": 1.0},
    chains={"steps": 5, "restart_rate": 0.0125},
    optimizer={"learning_rate": 1.4e-3, "warmup_steps": 500},
    batch_size=256,
    real_batch_size=256,
    augment_real=Augment(crop_padding=4, flip=True),
    epochs=150,
)

# SADA-JEM as published, but for network, batches, averaged weights and the life of chains.
_SADA = recipe("sada-jem").with_values(
    **_QUIET,
    recipe="speedrun-sada",
    network={"name": "wrn-16-8"},
    chains={"restart_rate": 0.0125},
    optimizer={"learning_rate": 0.2, "warmup_steps": 500},
    batch_size=256,
    real_batch_size=128,
    ema=0.999,
)

PRESETS = {"original": _ORIGINAL, "shared": _SHARED, "sada": _SADA}


def toy(config: TrainConfig) -> TrainConfig:
    """The same algorithm on a tiny network: 15 steps for 320 images, on a CPU in seconds."""
    return config.with_values(
        network={"name": "wrn-10-1"},
        chains={"steps": 2, "restart_rate": 0.2, "buffer_size": 100},
        batch_size=16,
        real_batch_size=16,
        epochs=0.75,
        precision="32-true",
        layout="contiguous",
        compile="off",
        device="cpu",
    )


def forwards_per_step(config: TrainConfig) -> int:
    """Forward passes of one image that a step costs: 2 in a chain step, 3 in the outer step, which SAM doubles."""
    outer = 2 * config.real_batch_size + (config.batch_size if config.weights.class_nll else 0)
    passes = 6 if config.optimizer.sam_rho else 3
    return 2 * config.chains.steps * config.real_batch_size + passes * outer
