"""What a server answers, as types: OpenAPI shows them. A number that is none becomes null."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from jemstone.data.images import to_uint8
from jemstone.deployment.predictor import Predictions


@dataclass(frozen=True)
class ModelName:
    """Which model answered."""

    name: str
    step: int
    """Optimiser steps behind it."""


@dataclass(frozen=True)
class PredictionAnswer:
    """What the model says of one input."""

    label: str
    index: int
    probability: float | None
    """Of the label, calibrated."""
    probabilities: dict[str, float | None]
    """By class."""
    log_density: float | None
    """log p(x) + log Z, nats."""
    typicality: float | None
    """The percentile of the log density among held-out data, 0 to 100."""
    accepted: bool
    reason: str
    """Why it is not accepted, empty where it is."""
    candidates: list[str]


@dataclass(frozen=True)
class PredictAnswer:
    """One prediction for each input, in their order."""

    model: ModelName
    predictions: list[PredictionAnswer]
    images: list[str] | None = None
    """As the model sees them, where that was asked: PNG, as data:image/png;base64,..."""


@dataclass(frozen=True)
class ImageAnswer:
    """An image of the model's own size, and what the model says of it."""

    image: str
    """PNG, as data:image/png;base64,..."""
    label: str | None
    """The class that it was made for."""
    prediction: PredictionAnswer


@dataclass(frozen=True)
class SampleAnswer:
    """Fresh samples."""

    model: ModelName
    steps: int
    seed: int
    samples: list[ImageAnswer]


@dataclass(frozen=True)
class CounterfactualAnswer:
    """An image as the model sees it, and what the model made of it, one for each label that was asked for."""

    model: ModelName
    steps: int
    radius: float
    seed: int
    original: ImageAnswer
    changed: list[ImageAnswer]


@dataclass(frozen=True)
class HealthAnswer:
    """The server is there."""

    status: str


@dataclass(frozen=True)
class ErrorAnswer:
    """Why a request was not served."""

    error: str
    """A code, one of refusal.STATUS."""
    message: str
    request_id: str
    """As in the header X-Request-Id and in the server's log."""


def prediction_answers(found: Predictions) -> list[PredictionAnswer]:
    """Each of them, as it is sent."""
    return [
        PredictionAnswer(
            label=one.label,
            index=one.index,
            probability=finite(one.probability),
            probabilities=dict(zip(found.class_names, map(finite, row.tolist()), strict=True)),
            log_density=finite(one.log_density),
            typicality=finite(one.typicality) if math.isfinite(one.log_density) else None,
            accepted=one.accepted,
            reason=one.reason,
            candidates=list(one.candidates),
        )
        for one, row in zip(found, found.probabilities, strict=True)
    ]


def image_answers(
    images: Float[Tensor, "n c h w"], labels: Sequence[str | None], found: Predictions
) -> list[ImageAnswer]:
    """Images in [-1, 1] with what they were made for and what the model says of them."""
    return [
        ImageAnswer(image, label, prediction)
        for image, label, prediction in zip(encoded(images), labels, prediction_answers(found), strict=True)
    ]


def encoded(images: Float[Tensor, "n c h w"]) -> list[str]:
    """Images in [-1, 1] as data:image/png;base64,..."""
    return [_encoded(picture) for picture in to_uint8(images.clamp(-1, 1))]


def png(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _encoded(picture: np.ndarray) -> str:
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def finite(value: float) -> float | None:
    """A number that JSON has, or None."""
    return value if math.isfinite(value) else None
