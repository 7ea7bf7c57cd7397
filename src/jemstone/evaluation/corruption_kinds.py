"""Common corruptions of images at five severities, after Hendrycks and Dietterich (ICLR 2019).

The strengths are those of its ladder for small images (CIFAR-10-C). Images are computed in [0, 1] and not rounded to
8 bits afterwards, as the published files are; JPEG alone starts from 8 bits and ends there.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from jemstone.data.dataset import BOX, to_box
from jemstone.errors import ConfigError, DataError
from jemstone.rng import generator

STRENGTHS: dict[str, tuple[float, float, float, float, float]] = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "pixelation": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg": (80, 65, 58, 50, 40),
}
"""By severity: noise, standard deviation in [0, 1] pixels; blur, standard deviation of the Gaussian in pixels;
contrast, factor on the distance to each channel's mean; brightness, what is added to the largest channel of a pixel;
pixelation, blocks per pixel in both directions; JPEG, quality."""


def corrupt(images: Tensor, kind: str, severity: int, seed: int = 0) -> Float[Tensor, "n c h w"]:
    """`images` (n, c, h, w), uint8 or in the box, corrupted: float32 in the box, on the CPU.

    `kind` is one of `STRENGTHS`, `severity` 1 to 5. Deterministic; noise is drawn for the batch as a whole, from a
    stream of its own per severity. JPEG takes one or three channels.
    """
    if kind not in STRENGTHS or severity not in range(1, 6):
        raise ConfigError(f"No corruption {kind!r} of severity {severity}; choose of {list(STRENGTHS)}, 1 to 5.")
    if images.ndim != 4:
        raise DataError(f"Corruptions are for images (n, c, h, w), got shape {tuple(images.shape)}.")
    low, high = BOX
    x = (to_box(images.cpu()) - low) / (high - low)
    rng = generator(seed, "corruption", kind, severity)
    return _KINDS[kind](x, STRENGTHS[kind][severity - 1], rng).clamp(0, 1) * (high - low) + low


def _noise(x: Tensor, deviation: float, rng: torch.Generator) -> Tensor:
    return x + deviation * torch.randn(x.shape, generator=rng)


def _blur(x: Tensor, deviation: float, _: torch.Generator) -> Tensor:
    return torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, deviation, deviation), mode="nearest"))


def _contrast(x: Tensor, factor: float, _: torch.Generator) -> Tensor:
    mean = x.mean(dim=(2, 3), keepdim=True)
    return mean + factor * (x - mean)


def _brightness(x: Tensor, shift: float, _: torch.Generator) -> Tensor:
    """V of HSV: hue and saturation stay. A grey image is shifted."""
    value = x.amax(dim=1, keepdim=True)
    brighter = (value + shift).clamp(max=1)
    return torch.where(value > 0, x * (brighter / value), brighter)  # black has no hue: it becomes grey


def _pixelation(x: Tensor, factor: float, _: torch.Generator) -> Tensor:
    height, width = x.shape[2:]
    return _block_means(height, int(factor * height)) @ x @ _block_means(width, int(factor * width)).T


def _block_means(size: int, blocks: int) -> Float[Tensor, "size size"]:
    """Each of `size` pixels becomes the mean of its block, which is the one of `blocks` that its centre falls in.

    That is a box filter down and the nearest pixel up.
    """
    block = (2 * torch.arange(size) + 1) * blocks // (2 * size)
    together = (block[:, None] == block).float()
    return together / together.sum(dim=1, keepdim=True)


def _jpeg(x: Tensor, quality: float, _: torch.Generator) -> Tensor:
    if x.shape[1] not in (1, 3):
        raise DataError(f"JPEG takes one or three channels, these images have {x.shape[1]}; leave 'jpeg' out.")
    pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    decoded = []
    for picture in pixels:
        file = io.BytesIO()
        Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(
            file, "JPEG", quality=int(quality)
        )
        decoded.append(np.asarray(Image.open(file)).reshape(picture.shape))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2) / 255


_KINDS: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "brightness": _brightness,
    "pixelation": _pixelation,
    "jpeg": _jpeg,
}
