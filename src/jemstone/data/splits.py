"""Splits that keep the proportions of the classes, determined by a generator and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jemstone.data.dataset import UNLABELLED
from jemstone.errors import DataError

Indices = NDArray[np.int64]


def stratified_order(labels: NDArray[Any], rng: torch.Generator) -> Indices:
    """A random order of all examples in which every prefix has about the class proportions of the whole.

    The first prefix of k examples, for k classes, holds one of each.
    """
    shuffled = torch.randperm(len(labels), generator=rng).numpy()
    by_class = np.argsort(labels[shuffled], kind="stable")
    _, first, counts = np.unique(labels[shuffled][by_class], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(first, counts)
    share = rank / np.repeat(counts, counts)
    return np.asarray(shuffled[by_class[np.lexsort((by_class, share))]], dtype=np.int64)


def hold_out(
    labels: NDArray[np.int64], count: int, rng: torch.Generator, *, what: str, remedy: str
) -> tuple[Indices, Indices]:
    """(kept, held out): sorted, disjoint indices that together are all; `count` labelled examples are held out.

    Unlabelled examples are always kept. Raises DataError where a class would be missing on either side; `what` names
    the split that was wanted, `remedy` says what the user can do.
    """
    labelled = np.flatnonzero(labels != UNLABELLED)
    classes = np.unique(labels[labelled])
    held = labelled[stratified_order(labels[labelled], rng)[:count]]
    kept = np.setdiff1d(np.arange(len(labels)), held)
    for side in (kept, held):
        missing = np.setdiff1d(classes, labels[side])
        if len(missing):
            raise DataError(
                f"There are too few examples for {what}: {count} of {len(labelled)} labelled examples, in "
                f"{len(classes)} classes, would leave class {missing[0]} without an example on one side. {remedy}"
            )
    return kept, np.sort(held)
