"""Inputs of a request, none of them trusted, as what the model takes."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import python_multipart
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from python_multipart.exceptions import FormParserError
from torch import Tensor

from jemstone.data.decode import FORMATS
from jemstone.deployment.predictor import Predictor
from jemstone.deployment.serve.refusal import Refused
from jemstone.deployment.serve.settings import ServeSettings
from jemstone.errors import DataError


def files_of_form(body: bytes, content_type: str, settings: ServeSettings) -> list[bytes]:
    """The files of a multipart form, in their order, whatever their fields are called, named or not."""
    files: list[bytes] = []

    def keep(content: bytes) -> None:
        _check_count(len(files) + 1, settings)
        files.append(content)

    def keep_file(file: Any) -> None:
        file.file_object.seek(0)
        keep(file.file_object.read())

    def keep_field(field: Any) -> None:
        keep(field.value or b"")

    headers = {"Content-Type": content_type.encode("latin-1", "replace"), "Content-Length": str(len(body)).encode()}
    config = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
    try:
        parser = python_multipart.create_form_parser(headers, keep_field, keep_file, config=config)
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise Refused("malformed", f"The body is not a multipart form: {str(error)[:200]}.") from None
    if not files:
        raise Refused("malformed", "The form holds no file, or ends before its last boundary.")
    return files


def read(
    inputs: Sequence[Any], scale: int | None, predictor: Predictor, settings: ServeSettings
) -> Float[Tensor, "n ..."]:
    """Bytes of image files, base64 of them, or nested numbers, in the units of the model.

    Raises Refused that says which input is wrong and how. Sizes that files claim are added up before any is decoded.
    """
    _check_count(len(inputs), settings)
    shape = predictor.trained.input_shape
    images = len(shape) == 3
    parts: list[Any] = []
    pixels = 0
    for i, value in enumerate(inputs):
        part = _from_base64(value, i) if isinstance(value, str) else value
        if isinstance(part, bytes):
            pixels += _claimed(part, i)
            if pixels > settings.max_pixels:
                raise Refused(
                    "too_large",
                    f"With input {i} the images have {pixels:,} pixels; at most {settings.max_pixels:,} are taken at "
                    "once. Make them smaller, or send them one by one.",
                )
        else:
            part = _image(part, scale, i, shape) if images else _vector(part, i, shape)
        parts.append(part)
    try:
        return predictor.read(parts)
    except DataError as error:
        raise Refused("invalid_input", str(error)) from None


def _check_count(count: int, settings: ServeSettings) -> None:
    if count > settings.max_inputs:
        raise Refused("invalid_input", f"There are more than {settings.max_inputs} inputs. Divide them among requests.")


def _from_base64(text: str, i: int) -> bytes:
    head, comma, tail = text.partition(",")
    if comma and not (head.startswith("data:") and head.endswith(";base64")):
        raise Refused("invalid_input", f"input {i} must begin with data:image/...;base64, or be base64 alone.")
    try:
        return base64.b64decode(tail if comma else text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused("invalid_input", f"input {i} is not base64 of an image file.") from None


def _claimed(file: bytes, i: int) -> int:
    """Pixels, by the head of an image file; 0 where it has none that can be read, which decoding will say."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pillow's own, on sizes that are checked here
            with Image.open(io.BytesIO(file), formats=FORMATS) as image:
                return int(image.width * image.height)
    except Exception:  # of a damaged file, whatever its decoder likes
        return 0


def _image(value: Any, scale: int | None, i: int, input_shape: tuple[int, ...]) -> NDArray[Any]:
    """One image of numbers, as bytes (0 to 255) or as float32 (0 to 1)."""
    array = _numbers(value, i)
    single = array.ndim == 2 or (array.ndim == 3 and (array.shape[2] in (1, 3) or array.shape[0] == input_shape[0]))
    if not single:
        raise Refused(
            "invalid_input",
            f"input {i} has shape {array.shape}: an image is (h, w), (h, w, c) or (c, h, w) with c = {input_shape[0]}; "
            "`inputs` is a list of them.",
        )
    low, high = float(array.min()), float(array.max())
    white = scale or (255 if high > 1 else 1)
    if not 0 <= low <= high <= white or (white == 255 and bool((array % 1).any())):
        kind = "whole numbers from 0 to 255" if white == 255 else "numbers from 0 to 1"
        raise Refused(
            "invalid_input", f"input {i} goes from {low:g} to {high:g}: with scale {white}, pixels are {kind}."
        )

    return array.astype(np.uint8 if white == 255 else np.float32)


def _vector(value: Any, i: int, input_shape: tuple[int, ...]) -> NDArray[np.float64]:
    array = _numbers(value, i)
    if array.shape != input_shape:
        raise Refused("invalid_input", f"input {i} has shape {array.shape}: the model takes vectors, {input_shape}.")
    return array


def _numbers(value: Any, i: int) -> NDArray[np.float64]:
    try:
        return np.asarray(value, dtype=np.float64)
    except ValueError:
        raise Refused("invalid_input", f"input {i} has rows of different lengths.") from None
