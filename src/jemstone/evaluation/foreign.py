"""Inputs that are not from the distribution of the data: made from the test split itself, or handed in and checked."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jemstone.data import Dataset
from jemstone.data.dataset import to_box
from jemstone.errors import ConfigError, DataError
from jemstone.evaluation.section import subset
from jemstone.rng import generator

BUILTIN = ("noise", "constant", "inverted", "rotated", "shuffled", "interpolated")
"""The names of all sets that `builtin_ood_sets` can make; none makes all of them."""


def foreign_sets(
    data: Dataset, extra: Mapping[str, Tensor], limit: int, seed: int = 0
) -> tuple[dict[str, Tensor], list[str]]:
    """The built-in sets and those of `extra`, by name, in model units on the CPU; and what had to be left out, and why.

    Each has at most `limit` inputs, chosen by a seeded draw. Raises ConfigError for a name that is taken, empty or has
    a slash, DataError for inputs of another shape than the data's or out of the range of images.
    """
    test, notes = data.test, []
    chosen = subset(len(test), limit, seed, "ood")
    sets: dict[str, Tensor] = {}
    if len(chosen) >= 2:
        rows = chosen.to(test.inputs.device)
        sets = builtin_ood_sets(test.inputs[rows].cpu(), test.labels[rows].cpu(), data.box, seed)
    else:
        notes.append("Built-in out-of-distribution sets left out: they are made from two or more test inputs.")
    if sets and data.box is not None and "rotated" not in sets:
        notes.append("Out-of-distribution set 'rotated' left out: the images are not square.")
    if sets and data.box is None and "shuffled" not in sets:
        notes.append("Out-of-distribution set 'shuffled' left out: inputs of one column have nothing to shuffle.")
    if sets and "interpolated" not in sets:
        notes.append("Out-of-distribution set 'interpolated' left out: it needs test inputs of two classes.")
    for name, x in extra.items():
        if name in sets or not name or "/" in name:
            raise ConfigError(f"An out-of-distribution set cannot be called {name!r}: taken, empty, or with a slash.")
        if tuple(x.shape[1:]) != data.input_shape or len(x) == 0:
            raise DataError(
                f"Out-of-distribution set {name!r} has shape {tuple(x.shape)}; it needs (n, ...) with n >= 1 inputs of "
                f"shape {data.input_shape}. Resize or crop it first."
            )
        x = to_box(x[subset(len(x), limit, seed, "ood", name).to(x.device)].cpu())
        if data.box is not None and not bool(((x >= data.box[0]) & (x <= data.box[1])).all()):
            raise DataError(f"Out-of-distribution set {name!r} leaves the range {data.box} of images; pass uint8.")
        sets[name] = x
    return sets, notes


def builtin_ood_sets(
    test_inputs: Tensor, labels: Int[Tensor, " n"], box: tuple[float, float] | None, seed: int = 0
) -> dict[str, Tensor]:
    """Foreign inputs made from the data itself, each of the shape of `test_inputs` (n, ...), in model units.

    In a box: `noise` uniform in it; `constant`, one uniform value per channel and image; `inverted`, reflected in the
    box's centre; `rotated` by 90 degrees, for square images only; `interpolated`. Vectors have no box: `noise` uniform
    within 4 standard deviations of each column's mean; `shuffled`, each column permuted over the examples, which keeps
    every marginal and destroys all dependence (left out for a single column); `interpolated`.

    `interpolated` is the mean of a test input and a random one of a different class; left out when all labels agree.
    """
    x = to_box(test_inputs)
    if len(x) < 2 or len(labels) != len(x):
        raise ConfigError(f"Needs two or more inputs with one label each, got {len(x)} and {len(labels)} labels.")

    def uniform(name: str, shape: torch.Size | list[int]) -> Tensor:
        return torch.rand(shape, generator=generator(seed, "ood", name))

    sets: dict[str, Tensor] = {}
    if box is not None:
        low, high = box
        sets["noise"] = low + (high - low) * uniform("noise", x.shape)
        flat = low + (high - low) * uniform("constant", [*x.shape[:2]] + [1] * (x.ndim - 2))
        sets["constant"] = flat.expand(x.shape).contiguous()
        sets["inverted"] = low + high - x
        if x.shape[-2] == x.shape[-1]:
            sets["rotated"] = x.rot90(dims=(-2, -1)).contiguous()
    else:
        mean, deviation = x.mean(dim=0), x.std(dim=0)
        sets["noise"] = mean + 4 * deviation * (2 * uniform("noise", x.shape) - 1)
        if x[0].numel() > 1:
            columns = x.flatten(1)
            order = uniform("shuffled", columns.shape).argsort(dim=0)
            sets["shuffled"] = columns.gather(0, order).reshape(x.shape)
    partner = _of_another_class(labels, uniform("interpolated", labels.shape))
    if partner is not None:
        sets["interpolated"] = (x + x[partner]) / 2
    return sets


def _of_another_class(labels: Int[Tensor, " n"], u: Float[Tensor, " n"]) -> Int[Tensor, " n"] | None:
    """For each example the index of one drawn uniformly from all other classes; None if there is one class only."""
    ordered, order = labels.sort(stable=True)
    first = torch.searchsorted(ordered, labels)
    size = torch.searchsorted(ordered, labels, right=True) - first
    others = len(labels) - size
    if (others == 0).any():
        return None
    position = torch.minimum((u * others).long(), others - 1)
    return order[torch.where(position < first, position, position + size)]
