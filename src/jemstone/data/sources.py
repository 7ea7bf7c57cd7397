"""A SOURCE, as named on the command line -> a checked data set.

SOURCE is one of

- `digits`: scikit-learn's 1,797 handwritten digits, 8x8, grey; nothing is downloaded.
- a `.npz` file with `train_images`, `train_labels`, `test_images`, `test_labels` and, optional, `class_names`. Images
  are uint8 or floats in [0, 1], (n, h, w), (n, h, w, c) or (n, c, h, w): the last axis holds the channels if its size
  is 1 or 3, else the second if its size is 1 or 3, else the smaller of the two. Floats (n, d) are vectors.
- a folder of images, `train/CLASS/*` and `test/CLASS/*`, or `CLASS/*` only.
- the folder of the official python version of CIFAR-10 or CIFAR-100, or the folder that contains it.
- `hf:NAME`: a data set of the Hugging Face hub, or a local folder in its formats.

Training labels may be -1: such examples are unlabelled, train log p(x) only, and never go to validation or test.
Where a source has no test split of its own, a fifth of its labelled examples, rounded up, is held out, stratified
and always the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jemstone.data.cifar import find_cifar, read_cifar
from jemstone.data.dataset import UNLABELLED, Dataset, Moments, Split, standardise
from jemstone.data.fit import fit_images
from jemstone.data.folders import read_folder
from jemstone.data.huggingface import read_huggingface
from jemstone.data.npz import read_npz
from jemstone.data.raw import Examples, Source
from jemstone.data.splits import Indices, hold_out, stratified_order
from jemstone.data.validate import (
    check_classes,
    check_inputs,
    check_labels,
    check_range,
    check_same_shape,
    column_moments,
)
from jemstone.errors import ConfigError, DataError
from jemstone.rng import generator

POSSIBLE = (
    "digits, a .npz file, a folder of class folders, the CIFAR-10 or CIFAR-100 python folder, or hf:NAME for a set of "
    "the Hugging Face hub"
)


def load_dataset(source: str, *, validation: float = 0.1, seed: int = 0, limit: int | None = None) -> Dataset:
    """The data set that `source` names (see the module's docstring), checked and split.

    The share `validation` of the labelled training examples, in [0, 1), is held out, stratified by class, as the
    validation split; it depends on `seed`, the test split does not. `limit` keeps the first `limit` training examples
    of a stratified order that depends on `seed`, so a smaller limit keeps a subset of a larger one.

    Images stay uint8 where they were stored so and are float32 in [-1, 1] otherwise. Vectors are standardised by the
    mean and standard deviation of the training split that remains; a constant column is only centred.

    Raises DataError where the data is missing or malformed, ConfigError where an argument is out of range,
    MissingExtra where `hf:` is asked for without its package.
    """
    if not 0 <= validation < 1:
        raise ConfigError(f"validation is {validation}. It is a share of the training examples: use 0 <= share < 1.")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}. It counts training examples: use at least 1, or None for all.")
    raw = _read(source, test_only=False)
    assert raw.train is not None  # a reader that was not asked for the test split alone gives this one
    inputs = check_inputs(raw.train.inputs, raw.train.inputs_at)
    labels = check_labels(raw.train.labels, len(inputs), raw.train.labels_at, unlabelled=True)
    names = check_classes(labels, raw.class_names, raw.train.labels_at)

    keep = np.arange(len(labels))
    if raw.test is None:
        keep, held = _test_split(labels, raw.train)
        test_inputs, test_labels = inputs[held], labels[held]
    else:
        test_inputs = check_inputs(raw.test.inputs, raw.test.inputs_at)
        check_same_shape(inputs, test_inputs, raw.train.inputs_at, raw.test.inputs_at)
        test_labels = check_labels(raw.test.labels, len(test_inputs), raw.test.labels_at, unlabelled=False)
        check_range(test_labels, len(names), raw.test.labels_at)

    held = keep[:0]
    if validation > 0:
        count = round(validation * int((labels[keep] != UNLABELLED).sum()))
        rest, chosen = hold_out(
            labels[keep],
            count,
            generator(seed, "validation split"),
            what=f"a validation split of {validation:g} of {raw.train.labels_at}",
            remedy="Add examples, change the share, or set validation to 0 for none.",
        )
        keep, held = keep[rest], keep[chosen]
    if limit is not None:
        keep = np.sort(keep[stratified_order(labels[keep], generator(seed, "limit"))[:limit]])
        if len(np.setdiff1d(labels[labels != UNLABELLED], labels[keep])):
            raise DataError(
                f"limit={limit} leaves a class of {raw.train.labels_at} without a training example: there are "
                f"{len(names)} classes. Raise the limit."
            )

    moments = column_moments(inputs[keep]) if inputs.ndim == 2 else None
    if moments is not None:
        inputs, test_inputs = standardise(inputs, moments), standardise(test_inputs, moments)
    targets = torch.from_numpy(labels)
    return Dataset(
        name=raw.name,
        train=Split(inputs[keep], targets[keep]),
        validation=Split(inputs[held], targets[held]),
        test=Split(test_inputs, torch.from_numpy(test_labels)),
        class_names=names,
        moments=moments,
    )


def load_training(source: str) -> tuple[Split, tuple[str, ...]]:
    """All training examples of `source` in the order in which it stores them, none held out, and the class names.

    Folders are stored class by class, files sorted. Vectors are raw, not standardised. Raises DataError as
    `load_dataset` does.
    """
    raw = _read(source, test_only=False)
    assert raw.train is not None  # as above
    inputs = check_inputs(raw.train.inputs, raw.train.inputs_at)
    labels = check_labels(raw.train.labels, len(inputs), raw.train.labels_at, unlabelled=True)
    names = check_classes(labels, raw.class_names, raw.train.labels_at)
    return Split(inputs, torch.from_numpy(labels)), names


def load_inputs(
    source: str, input_shape: tuple[int, ...], *, moments: Moments | None = None, training: bool = False
) -> Tensor:
    """The test inputs of `source`, made to fit a model of inputs `input_shape`: float32, (n, *input_shape).

    Meant for out-of-distribution sets, so the test split is enough: a .npz with `test_images` alone, or a folder of
    images without classes, will do. Images are in [-1, 1]. Grey becomes RGB by repetition, RGB becomes grey by
    luminance (BT.601); another size is resized bilinearly with antialiasing, which does not keep the aspect ratio.
    Vectors (d,) are standardised by `moments`, those of the data set that the model was trained on. With `training`
    they are the training inputs, labelled or not, so that its test inputs stay unseen; all, where it has but one split.

    Raises DataError as `load_dataset` does, and where the inputs cannot be made to fit.
    """
    if len(input_shape) not in (1, 3):
        raise ConfigError(f"input_shape is {input_shape}. It must be (channels, height, width), or (d,) for vectors.")
    raw = _read(source, test_only=not training or _only_test(source))
    part = raw.train or raw.test if training else raw.test or raw.train
    assert part is not None
    inputs = check_inputs(part.inputs, part.inputs_at)
    if raw.test is None:
        labels = check_labels(part.labels, len(inputs), part.labels_at, unlabelled=True)
        inputs = inputs[_test_split(labels, part)[0 if training else 1]]
    where = f"{part.inputs_at} holds inputs of shape {tuple(inputs.shape[1:])}, and the model takes {input_shape}"
    if inputs.ndim != len(input_shape) + 1:
        raise DataError(f"{where}. Images cannot be compared with vectors: choose another set.")
    if inputs.ndim == 2:
        if inputs.shape[1:] != input_shape:
            raise DataError(f"{where}. Vectors must have the same columns as the training data.")
        if moments is None:
            raise ConfigError("Vectors need `moments`, the mean and deviation of the training data: dataset.moments.")
        return standardise(inputs, moments)
    return fit_images(inputs, input_shape, where)


def _only_test(source: str) -> bool:
    """Whether `source` is a folder of images without classes, or a .npz without a training split."""
    path = Path(source).expanduser()
    if source.endswith(".npz") and path.is_file():
        try:
            with np.load(path) as arrays:
                return "train_images" not in arrays
        except (OSError, ValueError, EOFError):
            return False  # and the reader says what is wrong with it
    flat = path.is_dir() and not any(entry.is_dir() for entry in path.iterdir())
    return flat and find_cifar(path.resolve()) is None


def _test_split(labels: NDArray[np.int64], part: Examples) -> tuple[Indices, Indices]:
    return hold_out(
        labels,
        -(-int((labels != UNLABELLED).sum()) // 5),
        generator(0, "test split"),
        what=f"a test split of 20 % of {part.labels_at}",
        remedy="Add examples (five of each class are enough), or a test split of your own.",
    )


def absolute_source(source: str) -> str:
    """`source` as it reads from any folder: files and folders by their whole path, names as they are."""
    return source if source == "digits" or source.startswith("hf:") else str(Path(source).expanduser().resolve())


def _read(source: str, *, test_only: bool) -> Source:
    if source == "digits":
        return _digits()
    if source.startswith("hf:") and len(source) > 3:
        return read_huggingface(source[3:], test_only=test_only)
    path = Path(source).expanduser()
    if source.endswith(".npz"):
        return read_npz(path, test_only=test_only)
    if not path.is_dir() or not source:
        problem = "is a file of an unknown kind" if path.is_file() else "is neither a known name nor an existing path"
        raise DataError(f"The source {source!r} {problem}. Possible are: {POSSIBLE}.")
    path = path.resolve()  # so that "." has a name
    cifar = find_cifar(path)
    return read_cifar(*cifar, test_only=test_only) if cifar else read_folder(path, test_only=test_only)


def _digits() -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    train = Examples(digits.images / 16, digits.target, "digits: images", "digits: labels")
    return Source("digits", train, None, tuple(str(name) for name in digits.target_names))
