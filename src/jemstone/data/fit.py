"""Images of any size, grey or RGB, made to fit a model."""

from __future__ import annotations

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.nn import functional as F

from jemstone.data.dataset import BOX, to_box
from jemstone.errors import DataError

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601, as pillow has them)."""


def fit_images(images: Num[Tensor, "n _ _ _"], input_shape: tuple[int, ...], where: str) -> Float[Tensor, "n c h w"]:
    """Images (n, c, h, w), uint8 or in [-1, 1], as float32 in [-1, 1] of `input_shape`, (c, h, w).

    Grey becomes RGB by repetition, RGB becomes grey by luminance (BT.601); another size is resized bilinearly with
    antialiasing, which does not keep the aspect ratio. Raises DataError, which begins with `where`, for other channels.
    """
    fitted = to_channels(to_box(images), input_shape[0], where)
    if fitted.shape[2:] != input_shape[1:]:
        size = list(input_shape[1:])
        fitted = F.interpolate(fitted, size=size, mode="bilinear", antialias=True).clamp_(*BOX)
    return fitted


def to_channels(images: Float[Tensor, "n c h w"], channels: int, where: str) -> Float[Tensor, "n _ h w"]:
    """Grey becomes RGB by repetition, RGB grey by luminance; DataError, which begins with `where`, for others."""
    if images.shape[1] == channels:
        return images
    if (images.shape[1], channels) == (1, 3):
        return images.repeat(1, 3, 1, 1)
    if (images.shape[1], channels) == (3, 1):
        return (images * torch.tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True)
    raise DataError(f"{where}. Only grey (1 channel) and RGB (3) are converted: store the images with {channels}.")
