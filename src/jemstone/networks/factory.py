"""From a network's name, as a configuration file or command line gives it, to the network."""

from __future__ import annotations

import math
import re

from torch import nn

from jemstone.errors import ConfigError
from jemstone.networks.foreign import FOREIGN, build_foreign, is_foreign
from jemstone.networks.layers import check_normalisable, check_statistics, image_shape, with_spectral_norm
from jemstone.networks.resnet9 import ResNet9
from jemstone.networks.small import MLP, ConvNet
from jemstone.networks.wide_resnet import WideResNet

NETWORKS: dict[str, str] = {
    "wrn-DEPTH-WIDTH": "wide residual network for images of any size, depth 6n + 4, for example wrn-28-10",
    "resnet9-WIDTH": "residual network of nine layers for images of 16x16 and more, resnet9-64 as published",
    "conv-WIDTH[-DEPTH]": "small ConvNet for small images, 3 convolutions unless DEPTH says otherwise",
    "mlp-WIDTH[-DEPTH]": "perceptron for vectors and tiny images, 2 hidden layers unless DEPTH says otherwise",
}
"""The names of jemstone's own networks, with words in capitals for whole numbers; `build_network` knows FOREIGN too."""


def build_network(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    norm: str = "none",
    statistics: str = "batch",
    spectral_norm: bool = False,
    dropout: float = 0.0,
    activation: str = "leaky_relu",
    definition: str = "",
) -> nn.Module:
    """The network called `name` (NETWORKS, FOREIGN) for inputs of `input_shape`, (c, h, w) or (d,), with fresh weights.

    It maps a batch (b, *input_shape) to logits (b, num_classes). Weights come from torch's global generator; seed it,
    or fork it, for a reproducible start. `statistics` is for norm='batch': with 'separate' its layers keep running
    statistics of negatives beside those of data (SeparateBatchNorm2d); 'shared' and 'frozen' are ways to train and
    build the same network as 'batch'. `spectral_norm` divides all weights by their spectral norms, see
    `with_spectral_norm`. Networks of other libraries (`jemstone.networks.foreign`) have their own normalisation,
    dropout and activations, and are built from their `definition` where it is known. Raises ConfigError for an unknown
    name and for settings that contradict each other or the input.
    """
    if is_foreign(name):
        network = build_foreign(name, num_classes, definition)
    else:
        network = _plain_network(
            name, input_shape, num_classes, norm=norm, statistics=statistics, dropout=dropout, activation=activation
        )
    return with_spectral_norm(network) if spectral_norm else network


def _plain_network(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    norm: str,
    statistics: str,
    dropout: float,
    activation: str,
) -> nn.Module:
    match = re.fullmatch(r"(wrn)-(\d+)-(\d+)|(resnet9)-(\d+)|(conv|mlp)-(\d+)(?:-(\d+))?", name, re.ASCII)
    if match is None:
        known = "; ".join(f"{pattern}: {text}" for pattern, text in (NETWORKS | FOREIGN).items())
        raise ConfigError(f"Unknown network {name!r}. Known names: {known}.")
    kind, *numbers = (group for group in match.groups() if group is not None)
    sizes = [int(number) for number in numbers]

    if kind == "wrn":
        channels, *sides = image_shape(f"Network {name!r}", input_shape)
        check_normalisable(f"Network {name!r}", norm, *(math.ceil(side / 4) for side in sides))
        depth, width = sizes
        return WideResNet(
            depth,
            width,
            num_classes,
            in_channels=channels,
            norm=norm,
            statistics=statistics,
            dropout=dropout,
            activation=activation,
        )
    if kind in ("resnet9", "conv"):
        network = ResNet9 if kind == "resnet9" else ConvNet
        return network(
            input_shape, num_classes, *sizes, norm=norm, statistics=statistics, dropout=dropout, activation=activation
        )
    if norm != "none":
        raise ConfigError(f"Network {name!r} has no normalisation, got norm={norm!r}. Use norm='none'.")
    check_statistics(norm, statistics)
    if not input_shape:
        raise ConfigError(f"Network {name!r} needs inputs with at least one axis, got the empty shape ().")
    return MLP(math.prod(input_shape), num_classes, *sizes, dropout=dropout, activation=activation)
