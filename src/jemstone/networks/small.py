"""Networks for small inputs: 8x8 digits, 28x28 images, vectors."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn

from jemstone.networks.layers import (
    Head,
    check_normalisable,
    check_positive,
    image_shape,
    make_activation,
    make_dropout,
    make_norm,
)

MAX_POOLED_SIDE = 4


class ConvNet(nn.Module):
    """Images (b, c, h, w) of the one size `input_shape` = (c, h, w) -> logits (b, num_classes).

    `depth` times 3x3 convolution, norm, activation, dropout. The first keeps the resolution and has `width` channels;
    each further one has 2 * `width` and halves the resolution while the shorter side exceeds 2. The feature maps,
    averaged down to at most 4x4 positions, are flattened: where something is matters for a density on tiny images.

    Raises ConfigError for an input that is not an image, and for unknown or out of range settings.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        width: int = 32,
        depth: int = 3,
        *,
        norm: str = "none",
        statistics: str = "batch",
        dropout: float = 0.0,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        channels, *sides = image_shape("A ConvNet", input_shape)
        check_positive(num_classes=num_classes, width=width, depth=depth)
        self.stages = nn.Sequential()
        for stage in range(depth):
            out_channels = width if stage == 0 else 2 * width
            stride = 2 if stage > 0 and min(sides) > 2 else 1
            sides = [math.ceil(side / stride) for side in sides]
            check_normalisable("The ConvNet", norm, *sides)
            self.stages.append(
                nn.Sequential(
                    nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1),
                    make_norm(norm, out_channels, statistics),
                    make_activation(activation),
                    make_dropout(dropout),
                )
            )
            channels = out_channels
        # Equal windows, cut off at the border, and not AdaptiveAvgPool2d: its backward pass is not deterministic on
        # CUDA, and a resumed run should be the run that was never stopped.
        window = (math.ceil(sides[0] / MAX_POOLED_SIDE), math.ceil(sides[1] / MAX_POOLED_SIDE))
        self.pool = nn.AvgPool2d(window, ceil_mode=True)
        positions = math.ceil(sides[0] / window[0]) * math.ceil(sides[1] / window[1])
        self.head = Head(channels * positions, num_classes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits (b, k)."""
        logits: Tensor = self.head(self.pool(self.stages(x)).flatten(1))
        return logits


class MLP(nn.Module):
    """Inputs (b, ...), flattened to (b, input_dim), -> logits (b, num_classes).

    `depth` hidden layers of `width` units, each linear, activation, dropout. Raises ConfigError for unknown or out of
    range settings.
    """

    def __init__(
        self,
        input_dim: int,
        num_classes: int,
        width: int = 256,
        depth: int = 2,
        *,
        dropout: float = 0.0,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        check_positive(input_dim=input_dim, num_classes=num_classes, width=width, depth=depth)
        self.hidden = nn.Sequential()
        for layer in range(depth):
            self.hidden.append(
                nn.Sequential(
                    nn.Linear(input_dim if layer == 0 else width, width),
                    make_activation(activation),
                    make_dropout(dropout),
                )
            )
        self.head = Head(width, num_classes)

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b k"]:
        """Logits (b, k)."""
        logits: Tensor = self.head(self.hidden(x.flatten(1)))
        return logits
