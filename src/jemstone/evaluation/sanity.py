"""What makes every number of an evaluation doubtful, and can be seen before the first one is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jemstone.data import Dataset
from jemstone.data.dataset import to_box
from jemstone.errors import ConfigError, DataError
from jemstone.evaluation.forward import in_batches
from jemstone.evaluation.section import Subject, Warned
from jemstone.networks.modes import in_mode
from jemstone.rng import seeded

FEW = 100
"""Test examples below which no interval is narrow enough for a claim."""
PROBES = 16
"""Inputs that the forward pass is tried on."""
DEPENDENT = 1e-3
"""What the other inputs of a batch may move a logit by, in standard deviations of the logits over the probes."""
RANDOM = 1e-5
"""What a second pass may move a logit by, in the same unit: kernels may sum in another order, noise is larger."""
SELECTED = 1e-3
"""Share of validation examples that may be test examples (one always may)."""
OVERLAP = 1e-2
"""Share of test examples that may be training examples: real data sets hold some inputs twice."""


def require_test_split(data: Dataset) -> None:
    """DataError for a test split that is empty, not labelled throughout, or with values outside the box."""
    labels, inputs = data.test.labels, data.test.inputs
    if len(labels) == 0:
        raise DataError(f"Data set {data.name!r} has no test examples; there is nothing to evaluate on.")
    if not bool(((labels >= 0) & (labels < data.num_classes)).all()):
        raise DataError(
            f"Test labels of {data.name!r} must lie in [0, {data.num_classes}), found {int(labels.min())} to "
            f"{int(labels.max())}. Unlabelled examples (-1) belong in the training split."
        )
    if data.box is not None and inputs.is_floating_point():
        low, high = float(inputs.min()), float(inputs.max())
        if not data.box[0] <= low <= high <= data.box[1]:
            raise DataError(
                f"Test images of {data.name!r} must lie in {data.box}, found {low:g} to {high:g}. Pass uint8, or "
                "floats in that range."
            )


def require_classes(classes: int, data: Dataset) -> None:
    """DataError unless a model of so many classes fits the data."""
    if classes != data.num_classes:
        raise DataError(
            f"The model has {classes} classes and data set {data.name!r} has {data.num_classes}; "
            "evaluate it on the data set that it was trained for."
        )


def require_sound(subject: Subject) -> None:
    """Raise where no section could mean anything: the test split, the model's precision, the number of classes."""
    require_test_split(subject.data)
    for name, parameter in subject.model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ConfigError(
                f"Evaluation asks models in float32, and {name} is {parameter.dtype}: pass model.float()."
            )
    probe = to_box(subject.data.test.inputs[:2]).to(subject.device)
    with torch.no_grad(), in_mode(subject.model, training=False), seeded(0, "probe", device=subject.device):
        classes = subject.model(probe).shape[1]
    require_classes(classes, subject.data)


def sanity_warnings(subject: Subject) -> list[Warned]:
    """Doubts about the data (`small-n`, `test-selected`, `train-test-overlap`) and about the forward pass
    (`batch-dependence`, `random-logits`); what they mean is in `section.WARNINGS`.

    Inputs are the same where all their values are. The model is asked in the mode that it is in, under a seeded global
    stream that is given back as it was.
    """
    return [*_of_data(subject.data), *_of_forward(subject)]


def _of_data(data: Dataset) -> list[Warned]:
    found = []
    n, held_out = len(data.test), len(data.validation)
    if n < FEW:
        found.append(Warned("small-n", f"The test split has {n} examples."))
    shared = _shared(data.validation.inputs, data.test.inputs)
    if shared > max(1, SELECTED * held_out):
        found.append(Warned("test-selected", f"{shared} of {held_out} validation inputs are test inputs."))
    shared = _shared(data.test.inputs, data.train.inputs)
    if shared > OVERLAP * n:
        found.append(Warned("train-test-overlap", f"{shared} of {n} test inputs are training inputs."))
    return found


def _shared(inputs: Tensor, others: Tensor) -> int:
    """How many of `inputs` are among `others`."""
    if inputs.dtype != others.dtype:
        inputs, others = to_box(inputs), to_box(others)
    known = set(_digests(others))
    return sum(digest in known for digest in _digests(inputs))


def _digests(inputs: Tensor) -> Iterator[bytes]:
    return (hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in inputs.cpu().numpy())


def _of_forward(subject: Subject) -> list[Warned]:
    probes = subject.data.test.spread(PROBES).inputs
    n = len(probes)

    def logits(x: Tensor) -> Float[np.ndarray, "n k"]:
        return in_batches(lambda model, x: model(x), subject.model, x, n)

    with seeded(0, "sanity", device=subject.device):
        together, again = logits(probes), logits(probes)
    # Alone means in company of its own copies: a batch of another size may be computed by another kernel, whose
    # rounding is no dependence. The stream is rewound, so that noise is no dependence either.
    alone = np.empty_like(together)
    for i in range(n):
        with seeded(0, "sanity", device=subject.device):
            alone[i] = logits(probes[i : i + 1].repeat(n, *[1] * (probes.ndim - 1)))[i]

    spread = float(together.std(axis=0).max())
    found = []
    for name, values, limit, what in [
        ("batch-dependence", alone, DEPENDENT, "with the other inputs of the batch"),
        ("random-logits", again, RANDOM, "between two passes of the same batch"),
    ]:
        moved = float(np.abs(values - together).max())
        if not moved <= limit * spread:
            text = (
                f"Logits of {n} test inputs move by up to {moved:.2g} {what}; their standard deviation is {spread:.2g}."
            )
            found.append(Warned(name, text))
    return found
