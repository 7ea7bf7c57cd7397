"""What a loaded data set is: three splits of tensors and what a network must know about them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

BOX = (-1.0, 1.0)
"""The range of image values inside jemstone."""

UNLABELLED = -1
"""The label of an example that trains log p(x) only."""


def to_box(images: Tensor) -> Tensor:
    """Stored images as float32: uint8 in [0, 255] is mapped to [-1, 1]; floats are in model units already."""
    if images.dtype == torch.uint8:
        return images.float().mul_(2 / 255).sub_(1)
    return images.float()


def to_box_radius(radius: float, box: tuple[float, float] | None) -> float:
    """A radius among [0, 1] pixels as one in the box: radius * (high - low), for every norm, since all scale alike.

    Without a box the units are the data's own, and stay.
    """
    return radius if box is None else radius * (box[1] - box[0])


def box_of(input_shape: tuple[int, ...]) -> tuple[float, float] | None:
    """Where inputs of this shape live: images (c, h, w) in [-1, 1]; vectors have no box."""
    return BOX if len(input_shape) == 3 else None


@dataclass(frozen=True)
class Split:
    """Inputs (n, ...), images as (n, c, h, w) in uint8 or as float32 in [-1, 1]; labels (n,) int64, -1 = unlabelled."""

    inputs: Tensor
    labels: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`; nothing is copied where it is there already."""
        return Split(self.inputs.to(device), self.labels.to(device))

    def spread(self, count: int) -> Split:
        """`count` examples, evenly spread over the split; all of them where there are fewer."""
        rows = torch.linspace(0, len(self) - 1, min(count, len(self))).long().to(self.labels.device)
        return Split(self.inputs[rows], self.labels[rows])


Moments = tuple[Tensor, Tensor]
"""Mean and standard deviation of each column of a training split of vectors, float64 (d,); no deviation is zero."""


def standardise(vectors: Float[Tensor, "n d"], moments: Moments) -> Float[Tensor, "n d"]:
    """Raw vectors in the units that a model works in, (x - mean) / std, as float32."""
    mean, std = moments
    return ((vectors.double() - mean) / std).float()


@dataclass(frozen=True)
class Dataset:
    """A named data set. Selection of any kind uses `validation`; `test` is for the final numbers only.

    `moments` are those that vectors were standardised by; None for images.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    moments: Moments | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, (c, h, w) for images."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def num_classes(self) -> int:
        """One class per name."""
        return len(self.class_names)

    @property
    def box(self) -> tuple[float, float] | None:
        """Where inputs live: [-1, 1] for images; vectors, in standardised units, have no box."""
        return box_of(self.input_shape)

    def digest(self) -> str:
        """SHA-256 over all three splits: the same data, in the same order, has the same digest."""
        sha = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            sha.update(repr((tuple(split.inputs.shape), split.inputs.dtype)).encode())
            sha.update(split.inputs.contiguous().cpu().numpy().tobytes())
            sha.update(split.labels.cpu().numpy().tobytes())
        return sha.hexdigest()
