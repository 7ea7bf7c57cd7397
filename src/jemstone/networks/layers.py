"""The choices that all networks share: normalisation, activation, dropout, and the checks of their settings."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from jemstone.errors import ConfigError

MAX_GROUPS = 32
MIN_GROUP_CHANNELS = 4


def group_count(channels: int) -> int:
    """The number of groups for group normalisation: the largest divisor of `channels` that is at most 32 and leaves
    at least 4 channels in a group (Wu & He 2018 use 32). One channel per group would be instance normalisation.
    """
    limit = max(1, min(MAX_GROUPS, channels // MIN_GROUP_CHANNELS))
    return next(groups for groups in range(limit, 0, -1) if channels % groups == 0)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(group_count(channels), channels),
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
}

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


def make_norm(kind: str, channels: int) -> nn.Module:
    """Normalisation of feature maps (b, channels, h, w). 'none' is the identity.

    'batch' makes the energy of one input depend on its batch in training mode; the others never do.
    Raises ConfigError for an unknown kind.
    """
    if kind not in NORMS:
        raise ConfigError(f"Unknown norm {kind!r}. Choose one of: {', '.join(NORMS)}.")
    return NORMS[kind](channels)


def make_activation(name: str) -> nn.Module:
    """An elementwise nonlinearity; the slope of 'leaky_relu' is 0.2, as in JEM. Raises ConfigError if unknown."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"Unknown activation {name!r}. Choose one of: {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]()


def make_dropout(probability: float) -> nn.Module:
    """Elementwise dropout, the identity for 0. Raises ConfigError outside [0, 1)."""
    if not 0 <= probability < 1:
        raise ConfigError(f"dropout is {probability}; it must lie in [0, 1). Use 0 for none.")
    return nn.Dropout(probability) if probability > 0 else nn.Identity()


def check_positive(**settings: int) -> None:
    """Raises ConfigError naming the first setting that is below 1."""
    for name, value in settings.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1.")


def image_shape(network: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """`input_shape` as (channels, height, width). Raises ConfigError, naming `network`, for anything else."""
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ConfigError(
            f"{network} needs images of shape (channels, height, width), got an input of shape {input_shape}. "
            "Use a multilayer perceptron, for example 'mlp-256', for vectors."
        )
    channels, height, width = input_shape
    return channels, height, width


def check_normalisable(network: str, norm: str, height: int, width: int) -> None:
    """Raises ConfigError where instance normalisation would see a feature map of one position, which it sets to 0."""
    if norm == "instance" and height * width == 1:
        raise ConfigError(
            f"{network} shrinks its feature maps to one position, on which norm='instance' is undefined. "
            "Use norm='group' or norm='none', larger images, or a shallower network."
        )
