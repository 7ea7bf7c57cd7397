"""Stored arrays -> tensors that the rest of jemstone can trust. What is wrong is a DataError that names the array."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jemstone.data.dataset import UNLABELLED, Moments
from jemstone.errors import DataError

IMAGE_CHANNELS = (1, 3)


def channel_axis(shape: tuple[int, ...]) -> int:
    """Which axis of images (n, a, b, c) holds the channels: 3 (NHWC) or 1 (NCHW).

    The last axis if its size is 1 or 3; otherwise the second if its size is 1 or 3; otherwise the smaller of the two.
    Raises DataError where those are equal.
    """
    for axis in (3, 1):
        if shape[axis] in IMAGE_CHANNELS:
            return axis
    if shape[1] == shape[3]:
        raise DataError(
            f"Which axis of shape {shape} holds the channels cannot be told: neither the second nor the last has size "
            "1 or 3, and they are equal. Store the images as (n, height, width, channels) with 1 or 3 channels."
        )
    return 3 if shape[3] < shape[1] else 1


def check_inputs(array: NDArray[Any], where: str) -> Tensor:
    """Images as (n, c, h, w), uint8 as stored or float32 in [-1, 1]; vectors as float64 (n, d), not yet standardised.

    Images are uint8, or floats in [0, 1], shaped (n, h, w), (n, h, w, c) or (n, c, h, w), see `channel_axis`; vectors
    are floats shaped (n, d). Raises DataError for any other type or shape, for no examples, and for values that are
    not finite or out of range.
    """
    floating = np.issubdtype(array.dtype, np.floating)
    if not floating and array.dtype != np.uint8:
        raise DataError(
            f"{where} has type {array.dtype}. Images must be uint8 in [0, 255] or floats in [0, 1], vectors floats: "
            "convert the array with .astype(...)."
        )
    if array.ndim not in (2, 3, 4):
        raise DataError(
            f"{where} has shape {array.shape}. Images must have 3 or 4 axes, (n, h, w), (n, h, w, c) or (n, c, h, w), "
            "and vectors 2, (n, d): reshape the array."
        )
    if array.size == 0:
        raise DataError(f"{where} is empty: its shape is {array.shape}. It needs at least one example.")
    if floating:
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(array.astype(np.float32))
        if bad.any():
            raise DataError(
                f"{where} holds {int(bad.sum())} values that are NaN or infinite (as float32), the first in example "
                f"{int(np.argwhere(bad)[0][0])}. Remove or replace them."
            )
    if array.ndim == 2:
        if not floating:
            raise DataError(
                f"{where} has shape {array.shape} and type {array.dtype}. If each row is a vector, convert the array "
                "with .astype('float32'); if each row is an image, reshape it to (n, height, width)."
            )
        return torch.from_numpy(array.astype(np.float64))
    if array.ndim == 3:
        array = array[:, None]
    else:
        try:
            array = np.moveaxis(array, channel_axis(array.shape), 1)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    if not floating:
        return torch.from_numpy(np.array(array, order="C"))
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise DataError(
            f"{where} holds floats from {low:.6g} to {high:.6g}, and float images must lie in [0, 1]. Divide by 255 if "
            "they are in [0, 255], take (x + 1) / 2 if they are in [-1, 1], or store uint8."
        )
    return torch.from_numpy(np.array(array, dtype=np.float32, order="C")).mul_(2).sub_(1)


def check_labels(array: NDArray[Any] | None, count: int, where: str, *, unlabelled: bool) -> NDArray[np.int64]:
    """Labels (n,) as int64, integers from 0, or from -1 where `unlabelled` examples are allowed.

    Raises DataError where labels are missing, not integers, of the wrong shape or count, or negative.
    """
    if array is None:
        raise DataError(f"{where} is missing. Labels are needed here, one integer for each of the {count} examples.")
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"{where} has type {array.dtype}. Labels must be integers, one class index for each example: convert them "
            "with .astype('int64')."
        )
    if array.ndim != 1:
        raise DataError(f"{where} has shape {array.shape}. Labels must have one axis, (n,): use .reshape(-1).")
    if len(array) != count:
        raise DataError(f"{where} holds {len(array)} labels for {count} inputs. There must be one label for each.")
    lowest = UNLABELLED if unlabelled else 0
    if (array < lowest).any():
        rule = "-1 (unlabelled) or a class index from 0" if unlabelled else "a class index from 0 (no unlabelled here)"
        raise DataError(f"{where} holds the label {int(array.min())}. Every label must be {rule}.")
    if (array > np.iinfo(np.int64).max).any():
        raise DataError(f"{where} holds the label {int(array.max())}. Class indices must be small, counted from 0.")
    return array.astype(np.int64)


def check_range(labels: NDArray[np.int64], num_classes: int, where: str) -> None:
    """Raises DataError where a label is not below `num_classes`."""
    if labels.max() >= num_classes:
        raise DataError(
            f"{where} holds the label {labels.max()}, and there are {num_classes} classes: every label must be below "
            f"{num_classes}. Correct the labels, or add the missing class to the training set and the class names."
        )


def check_classes(labels: NDArray[np.int64], names: tuple[str, ...] | None, where: str) -> tuple[str, ...]:
    """The names of all classes; without `names` they are the indices up to the largest training label.

    Raises DataError where all training examples are unlabelled, a label has no class name, names repeat, or a class
    has no training example.
    """
    present = np.unique(labels[labels != UNLABELLED])
    if len(present) == 0:
        raise DataError(
            f"{where}: every training example is unlabelled (-1). A classifier needs labelled examples of every class."
        )
    if names is not None:
        check_range(labels, len(names), where)
        if len(set(names)) < len(names):
            raise DataError(f"{where}: class names repeat: {', '.join(names)}. Give every class its own name.")
    count = int(present[-1]) + 1 if names is None else len(names)
    if len(present) < count:
        empty = next(index for index in range(count) if index >= len(present) or present[index] != index)
        raise DataError(
            f"{where}: class {empty if names is None else names[empty]!r} has no training example "
            f"({count - len(present)} of {count} classes have none). Number the classes from 0 without gaps, or add "
            "examples."
        )
    return names or tuple(str(index) for index in range(count))


def check_same_shape(train: Tensor, test: Tensor, train_at: str, test_at: str) -> None:
    """Raises DataError where training and test inputs differ in shape."""
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"{train_at} holds inputs of shape {tuple(train.shape[1:])}, {test_at} of shape {tuple(test.shape[1:])}. "
            "Both must be the same: resize or convert one of them."
        )


def column_moments(vectors: Tensor) -> Moments:
    """Mean and standard deviation of each column of (n, d); 1 stands for the deviation of a constant column."""
    mean, std = vectors.mean(0), vectors.std(0, correction=0)
    constant = vectors.amax(0) == vectors.amin(0)
    return torch.where(constant, vectors[0], mean), torch.where(constant | (std == 0), 1.0, std)
