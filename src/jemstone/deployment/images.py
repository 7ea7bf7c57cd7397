"""Whatever a user holds, arrays, tensors, PIL images, paths or bytes, as what a model takes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from jemstone.data.dataset import Moments, standardise
from jemstone.data.decode import MAX_PIXELS, decode, pixels
from jemstone.data.fit import fit_images
from jemstone.data.validate import check_inputs
from jemstone.errors import DataError


def read_inputs(inputs: Any, input_shape: tuple[int, ...], moments: Moments | None = None) -> Float[Tensor, "n ..."]:
    """One input or many, in the units of their maker, as (n, *input_shape) in those of the model.

    Images: arrays and tensors, uint8 or floats in [0, 1], as (h, w), (h, w, c), (c, h, w), (n, h, w), (n, h, w, c) or
    (n, c, h, w); PIL images; paths of image files; their bytes; or a list of any of these, of different sizes if need
    be. They end in [-1, 1], at the model's size and channels (`fit_images`). Three axes are one image where the last
    has 1 or 3 entries, or the first as many as the model has channels, and grey images otherwise.

    Vectors: (d,) or (n, d), in raw units; `moments` standardise them.

    Raises DataError that says which input is wrong and how.
    """
    if isinstance(inputs, list | tuple):
        if not inputs:
            raise DataError("There is nothing to predict: the list of inputs is empty.")
        if len(input_shape) != 3 and not any(isinstance(part, np.ndarray | Tensor) for part in inputs):
            return _vectors(np.asarray(inputs), input_shape, moments, "the list of inputs")
        return torch.cat([_read(part, input_shape, moments, f"input {i}") for i, part in enumerate(inputs)])
    return _read(inputs, input_shape, moments, "the input")


def image_tensor(
    source: str | Path | bytes, input_shape: tuple[int, ...], name: str, *, max_pixels: int = MAX_PIXELS
) -> Float[Tensor, "1 c h w"]:
    """One encoded image, a file or its bytes, called `name` in errors; nothing in it is trusted (`decode`)."""
    if len(input_shape) != 3:
        raise DataError(f"{name} is an image, and the model takes vectors of {input_shape[0]} numbers.")
    file = io.BytesIO(source) if isinstance(source, bytes) else Path(source).expanduser()
    pixels = torch.from_numpy(np.array(np.moveaxis(decode(name, file, max_pixels=max_pixels), 2, 0), order="C"))
    return fit_images(pixels[None], input_shape, name)


def _read(part: Any, input_shape: tuple[int, ...], moments: Moments | None, where: str) -> Float[Tensor, "n ..."]:
    if isinstance(part, str | Path):
        return image_tensor(part, input_shape, str(part))
    if isinstance(part, bytes | bytearray | memoryview):
        return image_tensor(bytes(part), input_shape, where)
    if isinstance(part, Image.Image):
        part = pixels(where, part)
    array = part.detach().cpu().numpy() if isinstance(part, Tensor) else np.asarray(part)
    if len(input_shape) != 3:
        return _vectors(array, input_shape, moments, where)
    images = check_inputs(_batch(array, input_shape[0], where), where)
    return fit_images(images, input_shape, f"{where} has {images.shape[1]} channels, the model {input_shape[0]}")


def _batch(array: NDArray[Any], channels: int, where: str) -> NDArray[Any]:
    """An array of images (n, h, w), (n, h, w, c) or (n, c, h, w)."""
    if array.ndim == 2:
        return array[None]
    if array.ndim == 3 and (array.shape[2] in (1, 3) or array.shape[0] == channels):
        return array[None]
    if array.ndim not in (3, 4):
        raise DataError(f"{where} has shape {array.shape}, and the model takes images: give 2, 3 or 4 axes.")
    return array


def _vectors(
    array: NDArray[Any], input_shape: tuple[int, ...], moments: Moments | None, where: str
) -> Float[Tensor, "n d"]:
    rows = array[None] if array.ndim == 1 else array
    if rows.ndim != 2 or rows.shape[1:] != input_shape or not np.issubdtype(rows.dtype, np.number):
        raise DataError(
            f"{where} has shape {array.shape} and type {array.dtype}, and the model takes vectors of {input_shape[0]} "
            "numbers: one (d,), or many (n, d)."
        )
    if moments is None:
        raise DataError("This model has no moments to standardise vectors by: calibrate it on the data it learnt from.")
    return standardise(check_inputs(rows.astype(np.float64), where), moments)
