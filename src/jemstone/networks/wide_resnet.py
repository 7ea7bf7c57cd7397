"""Wide residual networks (Zagoruyko & Komodakis, BMVC 2016), in the form in which JEM trained them."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from jemstone.errors import ConfigError
from jemstone.networks.layers import Head, check_positive, make_activation, make_dropout, make_norm

STEM_CHANNELS = 16


class ResidualBlock(nn.Module):
    """x (b, c, h, w) -> shortcut(x) + f(x), (b, c', h/stride, w/stride), sides rounded up.

    f is norm, activation, conv, dropout, norm, activation, conv. As in the JEM release, the second convolution
    carries the stride, and the shortcut sees x itself: a 1x1 convolution where the shape changes, else the identity.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        norm: str,
        statistics: str,
        dropout: float,
        activation: str,
    ) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, in_channels, statistics)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.dropout = make_dropout(dropout)
        self.norm2 = make_norm(norm, out_channels, statistics)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride=stride, padding=1)
        self.activation = make_activation(activation)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """The sum of the shortcut and the residual, (b, c', h', w')."""
        residual = self.dropout(self.conv1(self.activation(self.norm1(x))))
        residual = self.conv2(self.activation(self.norm2(residual)))
        out: Tensor = self.shortcut(x) + residual
        return out


class WideResNet(nn.Module):
    """Images (b, in_channels, h, w), of any size, -> logits (b, num_classes).

    A 3x3 convolution to 16 channels, three stages of (depth - 4) / 6 pre-activation blocks with 16, 32 and 64 times
    `width` channels at full, half and quarter resolution, global average pooling, one linear head.

    The defaults are the network of JEM (Grathwohl et al., ICLR 2020): no normalisation, biases in all convolutions,
    LeakyReLU with slope 0.2, torch's default initialisation. Every parameter has its counterpart of equal shape in a
    checkpoint of that release; see `load_jem_checkpoint`. One difference matters for training with norm="batch" only:
    running statistics move with torch's momentum of 0.1, in the release with 0.9, almost the last batch alone.

    Raises ConfigError if `depth` is not 6n + 4 with n >= 1, or another setting is unknown or out of range.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        norm: str = "none",
        statistics: str = "batch",
        dropout: float = 0.0,
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ConfigError(
                f"The depth of a wide residual network is 6n + 4 (10, 16, 22, 28, 34, 40, ...), got {depth}."
            )
        check_positive(width=width, num_classes=num_classes, in_channels=in_channels)
        self.depth = depth
        self.width = width
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.norm = norm
        self.statistics = statistics
        self.activation = activation

        self.stem = nn.Conv2d(in_channels, STEM_CHANNELS, 3, padding=1)
        self.stages = nn.Sequential()
        channels = STEM_CHANNELS
        for multiple, first_stride in ((1, 1), (2, 2), (4, 2)):
            out_channels = STEM_CHANNELS * multiple * width
            stage = nn.Sequential()
            for block in range((depth - 4) // 6):
                stride = first_stride if block == 0 else 1
                stage.append(
                    ResidualBlock(
                        channels,
                        out_channels,
                        stride,
                        norm=norm,
                        statistics=statistics,
                        dropout=dropout,
                        activation=activation,
                    )
                )
                channels = out_channels
            self.stages.append(stage)
        self.final_norm = make_norm(norm, channels, statistics)
        self.final_activation = make_activation(activation)
        self.head = Head(channels, num_classes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits (b, k). At 32x32 the average over all positions is the release's 8x8 pooling."""
        features = self.final_activation(self.final_norm(self.stages(self.stem(x))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits
