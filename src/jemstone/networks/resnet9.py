"""The nine-layer residual network of the DAWNBench CIFAR-10 entries (David Page, 2018), pooled by averages."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from jemstone.errors import ConfigError
from jemstone.networks.layers import Head, check_positive, image_shape, make_activation, make_dropout, make_norm

MIN_SIDE = 16
"""Three halvings then leave at least 2x2 positions, so that every norm is defined."""


class ResNet9(nn.Module):
    """Images (b, c, h, w) of 16x16 and more -> logits (b, num_classes).

    Eight 3x3 convolutions, each with norm, activation and dropout, and a linear head. The first has `width` channels at
    full resolution; three more double the channels and end in 2x2 average pooling; the first and the last of these are
    followed by a residual of two convolutions. Then the average over all positions. 6.6 million parameters at width 64,
    as in David Page, "How to train your ResNet", 2018 (github.com/davidcpage/cifar10-fast).

    Page pools by maxima. Averages are a choice of ours: Langevin chains follow the gradient of the energy with respect
    to the image, which a maximum passes to one position of a window and lets jump where another one takes over. With
    `activation` silu the energy is then smooth. The other differences: a bias in every convolution, which an energy
    without normalisation needs, no factor of 1/8 on the logits, which are energies in nats, and convolutions that start
    as He et al. (ICCV 2015) propose, so that the network can be trained without normalisation.

    A last row or column of an odd side falls out of the pooling, not out of the convolutions' sight. Raises ConfigError
    for an input that is not an image or too small, and for unknown or out of range settings.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        width: int = 64,
        *,
        norm: str = "none",
        statistics: str = "batch",
        dropout: float = 0.0,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        channels, *sides = image_shape("A ResNet-9", input_shape)
        check_positive(num_classes=num_classes, width=width)
        if min(sides) < MIN_SIDE:
            raise ConfigError(
                f"A ResNet-9 needs images of at least {MIN_SIDE}x{MIN_SIDE} pixels, got {sides[0]}x{sides[1]}. "
                "Use a small ConvNet, for example 'conv-32', or larger images."
            )

        def layer(in_channels: int, out_channels: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 3, padding=1),
                make_norm(norm, out_channels, statistics),
                make_activation(activation),
                make_dropout(dropout),
            )

        self.stem = layer(channels, width)
        self.down1 = layer(width, 2 * width)
        self.residual1 = nn.Sequential(layer(2 * width, 2 * width), layer(2 * width, 2 * width))
        self.down2 = layer(2 * width, 4 * width)
        self.down3 = layer(4 * width, 8 * width)
        self.residual3 = nn.Sequential(layer(8 * width, 8 * width), layer(8 * width, 8 * width))
        # Whole windows of one size, not AdaptiveAvgPool2d: the backward pass is then deterministic on CUDA.
        self.pool = nn.AvgPool2d(2)
        self.head = Head(8 * width, num_classes)
        # Torch's default shrinks a signal by more than half per layer; without norms, hardly any would arrive.
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits (b, k)."""
        x = self.pool(self.down1(self.stem(x)))
        x = x + self.residual1(x)
        x = self.pool(self.down3(self.pool(self.down2(x))))
        x = x + self.residual3(x)
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits
