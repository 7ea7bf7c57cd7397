"""One image file, trusted or not, to an array of bytes."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from jemstone.errors import DataError

GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
"""What is decoded; every other decoder of pillow is left out of reach of files from elsewhere."""
MAX_PIXELS = 50_000_000
"""Of one image: what a file of a few kilobytes can claim to hold fills the memory before anybody sees it."""

MOST_SCANS = 100
"""Of a progressive JPEG. Each goes over the whole image: a file of a few megabytes can ask for hours of them."""


def decode(name: str, file: Path | io.BytesIO, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The first image of a file as (h, w, 1), if it is grey, or (h, w, 3); turned as its EXIF orientation says.

    Transparency is dropped. Raises DataError, which calls the file `name`, where it cannot be decoded, has more than
    8 bits a channel, or claims more than `max_pixels`, which is known before its pixels are read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pillow's own, on odd metadata and on sizes that are checked here
            with Image.open(file, formats=FORMATS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise DataError(
                        f"{name} has {width}x{height} pixels, and at most {max_pixels:,} are read. Make it smaller."
                    )
                if image.format == "JPEG" and _scans(file) > MOST_SCANS:
                    raise DataError(f"{name} is a JPEG of more than {MOST_SCANS} scans. Save it anew.")
                return pixels(name, image)
    except DataError:
        raise
    except Exception as error:  # decoders of damaged files raise whatever they like
        raise DataError(f"{name} cannot be read as an image ({_reason(error)}). Replace or remove the file.") from error


def pixels(name: str, image: Image.Image) -> NDArray[np.uint8]:
    """An opened image as `decode` returns it."""
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise DataError(f"{name} has the pixel format {image.mode}. Convert it to 8 bits a channel.")
    grey = image.mode in GREY_MODES
    array = np.asarray(ImageOps.exif_transpose(image).convert("L" if grey else "RGB"))
    return array[:, :, None] if grey else array


def _scans(file: Path | io.BytesIO) -> int:
    """How often a JPEG's marker of a scan occurs, which no compressed data holds."""
    content = file.getvalue() if isinstance(file, io.BytesIO) else file.read_bytes()
    return content.count(b"\xff\xda")


def _reason(error: Exception) -> str:
    """In words, without the address of an object or the path of a file that pillow would put there."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    if isinstance(error, Image.DecompressionBombError):
        return "it claims to have more pixels than fit into memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, SyntaxError | struct.error | EOFError | OSError | ValueError):
        return str(error)
    return type(error).__name__
