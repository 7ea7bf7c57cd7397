"""The choices that all networks share: normalisation, activation, dropout, and the checks of their settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from jemstone.errors import ConfigError

MAX_GROUPS = 32
MIN_GROUP_CHANNELS = 4

STATISTICS = ("batch", "shared", "separate", "frozen")
"""Whose statistics batch normalisation uses in training and keeps. Only 'separate' changes the network itself."""

Network = TypeVar("Network", bound=nn.Module)


def group_count(channels: int) -> int:
    """The number of groups for group normalisation: the largest divisor of `channels` that is at most 32 and leaves
    at least 4 channels in a group (Wu & He 2018 use 32). One channel per group would be instance normalisation.
    """
    limit = max(1, min(MAX_GROUPS, channels // MIN_GROUP_CHANNELS))
    return next(groups for groups in range(limit, 0, -1) if channels % groups == 0)


class SeparateBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of feature maps (b, channels, h, w) with running statistics for two kinds of input.

    `running_mean` and `running_var` (channels,) belong to data, `negatives_mean` and `negatives_var` (channels,) to
    negatives. `of_negatives`, which `statistics_of_negatives` in `modes` sets, says which pair a forward moves in train
    mode and is normalised by in evaluation mode. In train mode the batch itself normalises, as in BatchNorm2d, whose
    momentum and eps hold for both. Data and negatives share one scale and shift; AdvProp (Xie et al., CVPR 2020), from
    where the two sets come, separates these too. Here both are arguments of one energy function, and weights of their
    own would make it two.
    """

    negatives_mean: Tensor
    negatives_var: Tensor
    negatives_batches_tracked: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("negatives_mean", torch.zeros(channels))
        self.register_buffer("negatives_var", torch.ones(channels))
        self.register_buffer("negatives_batches_tracked", torch.tensor(0))
        self.of_negatives = False

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalised feature maps, (b, channels, h, w)."""
        if not self.of_negatives:
            return super().forward(x)
        momentum = self.momentum
        if self.training:
            self.negatives_batches_tracked.add_(1)
            if momentum is None:  # torch's word for a cumulative average
                momentum = 1 / int(self.negatives_batches_tracked)
        return functional.batch_norm(
            x,
            self.negatives_mean,
            self.negatives_var,
            self.weight,
            self.bias,
            self.training,
            momentum or 0.0,
            self.eps,
        )


class Head(nn.Linear):
    """The last layer, features (b, d) -> logits (b, k), in the precision of its weights whatever autocast says.

    bfloat16 has eight bits: of logits near 100 it tells apart what differs by half a nat, and energies are logits.
    """

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Logits (b, k)."""
        if not torch.is_autocast_enabled(features.device.type):
            return super().forward(features)
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.to(self.weight.dtype))


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


def make_norm(kind: str, channels: int, statistics: str = "batch") -> nn.Module:
    """Normalisation of feature maps (b, channels, h, w). 'none' is the identity.

    'batch' makes the energy of one input depend on its batch in training mode; the others never do. With `statistics`
    'separate' it is a SeparateBatchNorm2d. Raises ConfigError for an unknown kind, and as `check_statistics` does.
    """
    if kind not in NORMS:
        raise ConfigError(f"Unknown norm {kind!r}. Choose one of: {', '.join(NORMS)}.")
    check_statistics(kind, statistics)
    return SeparateBatchNorm2d(channels) if statistics == "separate" else NORMS[kind](channels)


def check_statistics(norm: str, statistics: str) -> None:
    """Raises ConfigError for unknown `statistics`, and for any but 'batch' where `norm` is not batch normalisation."""
    if statistics not in STATISTICS:
        raise ConfigError(f"Unknown statistics {statistics!r}. Choose one of: {', '.join(STATISTICS)}.")
    if statistics != "batch" and norm != "batch":
        raise ConfigError(
            f"statistics={statistics!r} is about batch normalisation, and norm={norm!r} has none. "
            "Use norm='batch', or leave statistics='batch'."
        )


def with_spectral_norm(network: Network) -> Network:
    """`network` itself, in which the weight of every convolution and linear layer now has a spectral norm close to 1.

    A weight, as a matrix (out, in * kernel), is divided by an estimate of its largest singular value (Miyato et al.,
    ICLR 2018; Du & Mordatch, NeurIPS 2019, train energy-based models so). A forward in train mode improves the estimate
    by one power iteration, which moves buffers; in evaluation mode nothing moves. The start of the iteration is drawn
    from torch's global generator. What is bounded is this matrix: the convolution's own norm can be larger, by at most
    the square root of its kernel's positions, and scales of normalisation layers are left free.

    In `state_dict` and `parameters` the weights are now `parametrizations.weight.original`, before the division.
    """
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            spectral_norm(layer)
    return network


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
