"""Grey and RGB into each other, and another size: one rule for data, for networks made elsewhere, and for use."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601, as pillow has them)."""


def with_channels(images: Float[Tensor, "n c h w"], channels: int) -> Float[Tensor, "n _ h w"] | None:
    """Grey becomes RGB by repetition, RGB becomes grey by luminance; None where `channels` is neither."""
    if images.shape[1] == channels:
        return images
    if (images.shape[1], channels) == (1, 3):
        return images.expand(-1, 3, -1, -1)
    if (images.shape[1], channels) == (3, 1):
        return (images * images.new_tensor(LUMINANCE)[:, None, None]).sum(dim=1, keepdim=True)
    return None


def resized(images: Float[Tensor, "n c h w"], size: Sequence[int]) -> Float[Tensor, "n c _ _"]:
    """Bilinear with antialiasing, which does not keep the aspect ratio; images of `size` (h, w) stay as they are."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return F.interpolate(images, size=list(size), mode="bilinear", antialias=True)
