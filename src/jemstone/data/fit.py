"""Images of any size, grey or RGB, made to fit a model."""

from __future__ import annotations

from jaxtyping import Float, Num
from torch import Tensor

from jemstone.data.dataset import BOX, to_box
from jemstone.errors import DataError
from jemstone.pixels import resized, with_channels


def fit_images(images: Num[Tensor, "n _ _ _"], input_shape: tuple[int, ...], where: str) -> Float[Tensor, "n c h w"]:
    """Images (n, c, h, w), uint8 or in [-1, 1], as float32 in [-1, 1] of `input_shape`, (c, h, w).

    Grey becomes RGB by repetition, RGB becomes grey by luminance (BT.601); another size is resized bilinearly with
    antialiasing, which does not keep the aspect ratio. Raises DataError, which begins with `where`, for other channels.
    """
    fitted = with_channels(to_box(images), input_shape[0])
    if fitted is None:
        raise DataError(
            f"{where}. Only grey (1 channel) and RGB (3) are converted: store the images with {input_shape[0]}."
        )
    return resized(fitted, input_shape[1:]).clamp(*BOX).contiguous()
