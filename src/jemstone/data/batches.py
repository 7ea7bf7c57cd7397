"""Batches whose order and augmentation follow from the step alone, so that a resume repeats and skips nothing."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jemstone.data.dataset import UNLABELLED, Split, to_box
from jemstone.errors import ConfigError, DataError
from jemstone.rng import generator


@dataclass(frozen=True)
class Augment:
    """Random changes of a batch. The default changes nothing.

    `crop_padding`: reflect-pad by that many pixels, then crop at random to the old size. `flip`: mirror left to right
    with probability 1/2. `noise`: standard deviation of Gaussian noise in model units ([-1, 1] for images), added last
    and not clamped, as published (Grathwohl et al. 2020 use 0.03).
    """

    crop_padding: int = 0
    flip: bool = False
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ConfigError(f"crop_padding is {self.crop_padding}. It is a number of pixels: use 0 for none.")
        if not 0 <= self.noise < float("inf"):
            raise ConfigError(f"noise is {self.noise}. It is a standard deviation: use 0 for none.")


class Batch(NamedTuple):
    """Inputs as float32 in model units, (b, ...), and labels (b,), -1 where unlabelled."""

    x: Float[Tensor, "b ..."]
    y: Int[Tensor, " b"]


def labelled(split: Split) -> Split:
    """The labelled examples of `split`; `split` itself, not a copy, where all are."""
    keep = split.labels != UNLABELLED
    return split if bool(keep.all()) else Split(split.inputs[keep], split.labels[keep])


def pooled(x: Float[Tensor, "b ..."], factor: int) -> Float[Tensor, "b ..."]:
    """Images (b, c, h, w) averaged over squares of `factor` x `factor` pixels; at factor 1 `x` itself, of any shape."""
    return x if factor == 1 else torch.nn.functional.avg_pool2d(x, factor)


def augment(
    x: Float[Tensor, "b ..."], settings: Augment, rng: torch.Generator, factor: int = 1
) -> Float[Tensor, "b ..."]:
    """Images (b, c, h, w), or vectors (b, d), changed as `settings` says; `x` itself stays as it is.

    Images are `pooled` by `factor` after crop and flip and before noise: noise has its full standard deviation in every
    pixel at any resolution, where averaging would leave 1 / `factor` of it.
    All draws are made on the device of `rng` and then moved to that of `x`, so a CPU generator gives the same crops,
    flips and noise for a batch on any device. Raises ConfigError where `settings` do not fit the shape.
    """
    check_augment(settings, tuple(x.shape[1:]))
    b = len(x)
    if settings.crop_padding or settings.flip:
        h, w = x.shape[2:]
        rows = torch.arange(h, device=x.device).expand(b, h)
        columns = torch.arange(w, device=x.device).expand(b, w)
        if settings.crop_padding:
            reach = settings.crop_padding
            offset = torch.randint(-reach, reach + 1, (2, b, 1), generator=rng, device=rng.device).to(x.device)
            rows, columns = _reflect(rows + offset[0], h), _reflect(columns + offset[1], w)
        if settings.flip:
            mirrored = torch.rand((b, 1), generator=rng, device=rng.device).to(x.device) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        place = (rows[:, :, None] * w + columns[:, None, :]).reshape(b, 1, h * w).expand(b, x.shape[1], h * w)
        x = x.flatten(2).gather(2, place).reshape(x.shape)
    x = pooled(x, factor)
    if settings.noise:
        x = x + settings.noise * torch.randn(x.shape, generator=rng, device=rng.device).to(x.device)
    return x


def check_augment(settings: Augment, input_shape: tuple[int, ...]) -> None:
    """Raises ConfigError where `settings` do not fit inputs of `input_shape`."""
    if len(input_shape) != 3:
        if settings.crop_padding or settings.flip:
            raise ConfigError(
                f"crop_padding and flip are for images (c, h, w), and the inputs have shape {input_shape}. Set "
                "crop_padding=0 and flip=False; noise works for any input."
            )
    elif settings.crop_padding >= min(input_shape[1:]):
        raise ConfigError(
            f"crop_padding is {settings.crop_padding}, and reflection works only below the height and width of the "
            f"image, {input_shape[1]}x{input_shape[2]}. Use at most {min(input_shape[1:]) - 1}."
        )


def _reflect(index: Int[Tensor, "b n"], size: int) -> Int[Tensor, "b n"]:
    """Positions outside [0, size) mirrored at the first and last pixel, which are not repeated."""
    return (size - 1) - ((size - 1) - index.abs()).abs()


class Stream:
    """One endless stream of batches over a split, a pure function of the step.

    Epoch e is a permutation from generator(seed, name, "order", e), and the epochs follow each other without a gap:
    with n examples, position p is element p % n of epoch p // n. Step s on rank r of w takes the positions from
    s * b * w + r * b to b further, so every example appears exactly once in every epoch, whatever the batch size, and
    a batch may span epochs. Augmentation comes from generator(seed, name, "augment", s, r).

    All generators live on the CPU, so every device sees the same batches. The split is kept on `device` as it is
    stored, uint8 as uint8; of two streams over one split, `split.to(device)` beforehand lets both share its memory.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        augment: Augment,
        *,
        seed: int,
        name: str,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if len(split) == 0:
            raise DataError(f"The stream {name!r} has no examples to draw from. Give it a split that is not empty.")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}. It must be at least 1.")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank} with world_size {world_size}. It must satisfy 0 <= rank < world_size.")
        check_augment(augment, tuple(split.inputs.shape[1:]))
        self.split = split.to(device)
        self.batch_size = batch_size
        self.augment = augment
        self.seed = seed
        self.name = name
        self.rank = rank
        self.world_size = world_size
        self.factor = 1
        self._orders: dict[int, Int[Tensor, " n"]] = {}

    def reduced(self, factor: int) -> Stream:
        """This stream, over the same examples in memory, with images `pooled` by `factor`."""
        stream = copy.copy(self)
        stream.factor = factor
        return stream

    @property
    def steps_per_epoch(self) -> float:
        """Steps, of all ranks together, that use every example once; not whole where the batch does not divide n."""
        return len(self.split) / (self.batch_size * self.world_size)

    def __call__(self, step: int) -> Batch:
        """The batch of `step`, counted from 0."""
        if step < 0:
            raise ConfigError(f"step is {step}. Steps are counted from 0.")
        index = self._indices(step).to(self.split.labels.device)
        x = to_box(self.split.inputs.index_select(0, index))
        rng = generator(self.seed, self.name, "augment", step, self.rank)
        return Batch(augment(x, self.augment, rng, self.factor), self.split.labels[index])

    def _indices(self, step: int) -> Int[Tensor, " b"]:
        n = len(self.split)
        start = (step * self.world_size + self.rank) * self.batch_size
        stop = start + self.batch_size
        epochs = range(start // n, (stop - 1) // n + 1)
        # Only the epochs that this batch touches are kept: one, or two at a boundary.
        self._orders = {epoch: self._orders[epoch] if epoch in self._orders else self._order(epoch) for epoch in epochs}
        parts = [order[max(start - e * n, 0) : stop - e * n] for e, order in self._orders.items()]
        return torch.cat(parts)

    def _order(self, epoch: int) -> Int[Tensor, " n"]:
        return torch.randperm(len(self.split), generator=generator(self.seed, self.name, "order", epoch))
