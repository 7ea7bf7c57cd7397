"""Images at the edges: model units out to bytes and pictures."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image
from torch import Tensor

from jemstone.data.dataset import to_box
from jemstone.errors import ConfigError, DataError

CELL = 48
"""Pixels that the shorter side of an image has at least in a grid, unless a scale is given."""


def to_uint8(x: Num[Tensor, "b c h w"]) -> UInt8[np.ndarray, "b h w c"]:
    """Images (b, c, h, w) in [-1, 1] as bytes (b, h, w, c), rounded to the nearest, clamped outside the range.

    The inverse of `to_box` on whole bytes; uint8 images only change their layout. Raises DataError where a value is
    NaN.
    """
    x = to_box(x.detach())
    if bool(x.isnan().any()):
        raise DataError("Images that hold NaN cannot be shown or stored. Look for the step that made them.")
    scaled = ((x + 1) * 127.5).round().clamp(0, 255).byte()
    return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).cpu().numpy())


def grid(images: Num[Tensor, "b c h w"], columns: int, *, scale: int | None = None, padding: int = 2) -> Image.Image:
    """Images (b, c, h, w), in [-1, 1] or uint8, row by row on white, `padding` pixels apart and around.

    Each is enlarged `scale` times without smoothing; by default just so often that its shorter side has 48 pixels.
    One channel is shown grey and three as RGB; of two channels only the first is shown, of four or more three.
    """
    b, c, h, w = images.shape
    if b == 0 or columns < 1 or padding < 0 or (scale is not None and scale < 1):
        raise ConfigError(
            f"A grid of {b} images with columns={columns}, scale={scale}, padding={padding} cannot be drawn: there "
            "must be an image, a column and a scale of at least 1, and no negative padding."
        )
    factor = scale or math.ceil(CELL / min(h, w))
    shown = to_uint8(images[:, : 3 if c >= 3 else 1])
    cells = shown.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = cells.shape[1] + padding, cells.shape[2] + padding
    rows = math.ceil(b / columns)
    canvas = np.full((rows * height + padding, columns * width + padding, cells.shape[3]), 255, np.uint8)
    for index, cell in enumerate(cells):
        top, left = index // columns * height + padding, index % columns * width + padding
        canvas[top : top + cells.shape[1], left : left + cells.shape[2]] = cell
    return Image.fromarray(canvas if canvas.shape[2] == 3 else canvas[:, :, 0])
