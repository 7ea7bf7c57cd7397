"""Progressive resolution: the first steps of a run on averaged-down images, all others on whole ones.

After Karras et al. (2018) for GANs and Zhao, Xie & Li (2021) for energy-based models, but without new layers: the
network is one that takes images of any size. Which phase a step is in follows from its number alone, so the chains of
a state always have the size that its next step needs.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError
from jemstone.networks.modes import dry_run
from jemstone.training.config import ProgressiveConfig, TrainConfig


def low_steps(config: TrainConfig, total: int) -> int:
    """How many steps of `total`, at the beginning, are at low resolution; always fewer than all."""
    return int(config.progressive.share * total)


def reduced_shape(input_shape: tuple[int, ...], factor: int) -> tuple[int, ...]:
    """The shape of an image (c, h, w) averaged over squares of `factor` pixels a side; at factor 1 any shape itself."""
    return input_shape if factor == 1 else (input_shape[0], *(side // factor for side in input_shape[1:]))


def enlarged(x: Float[Tensor, "n c h w"], factor: int) -> Float[Tensor, "n c h2 w2"]:
    """Images in full resolution: bilinear between the centres of the pixels, so no value leaves the range it was in.

    Nearer to the image before averaging than repeated pixels are, which also leave blocks that no image has.
    """
    return interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def check_progressive(model: EnergyClassifier, settings: ProgressiveConfig, input_shape: tuple[int, ...]) -> None:
    """Raise ConfigError where the low phase does not fit the inputs, or the network does not take both sizes."""
    if not settings.share:
        return
    off = "or set progressive.share to 0"
    if len(input_shape) != 3:
        raise ConfigError(
            f"progressive.share is for images (c, h, w), and inputs have shape {input_shape}: set it to 0."
        )
    full = "x".join(map(str, input_shape[1:]))
    if any(side % settings.factor for side in input_shape[1:]):
        raise ConfigError(
            f"progressive.factor {settings.factor} does not divide the sides of images of {full}. Choose a factor that "
            f"does, resize the images beforehand, {off}."
        )
    shape = reduced_shape(input_shape, settings.factor)
    try:
        dry_run(model, shape)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"progressive.share trains on images of {'x'.join(map(str, shape[1:]))} at first, and this network takes "
            f"{full} only ({str(error).splitlines()[0]}). A ConvNet or MLP has weights for each position: choose "
            f"wrn-DEPTH-WIDTH, resnet9-WIDTH or a network of your own that takes any size, {off}."
        ) from error
