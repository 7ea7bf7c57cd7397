"""Sets stored as folders of image files."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jemstone.data.decode import decode
from jemstone.data.raw import Examples, Source
from jemstone.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
TEST_NAMES = ("test", "validation", "val")
"""The names of a test split in order of preference: a validation split serves where no test split exists."""


def read_folder(root: Path, *, test_only: bool) -> Source:
    """Class folders: `root/train/CLASS/*` and `root/test/CLASS/*`, or `root/CLASS/*` with no test split of its own.

    `root/validation` or `root/val` serves as test where there is no `root/test`. Classes are the folder names in
    sorted order. Only files with the suffix of an image count, hidden files do not. With `test_only`, images that lie
    directly in the test folder, or in a root without folders, are read too, unlabelled.
    """
    test_root = next((root / name for name in TEST_NAMES if (root / name).is_dir()), None)
    train_root = root / "train" if (root / "train").is_dir() else root
    if test_root is not None and train_root == root and not test_only:
        raise DataError(f"{root} has a folder {test_root.name} and no folder train. Add train/CLASS/*.")
    if test_only:
        folder = test_root or root
        files = [] if _folders(folder) else _image_files(folder)
        if test_root is not None and not files:
            files = [file for _, files in _class_files(test_root) for file in files]
        if files or test_root is not None:
            return Source(root.name, None, Examples(read_images((str(f), f) for f in files), None, str(folder), ""))

    train = _class_files(train_root)
    names = tuple(name for name, _ in train)
    index = {name: number for number, name in enumerate(names)}
    for name, files in train:
        if not files:
            raise DataError(
                f"{train_root / name} holds no images ({', '.join(SUFFIXES)}), so class {name!r} would be empty. Add "
                "images or remove the folder."
            )
    test = _class_files(test_root) if test_root is not None else []
    for name, _ in test:
        if name not in names:
            raise DataError(
                f"{test_root}/{name} is a class that {train_root} does not have ({', '.join(names)}). Rename it, or "
                "add training images of this class."
            )
    files = [file for _, files in train + test for file in files]
    # All in one array: whether the set is grey or RGB, and its size, are properties of the whole set.
    images = read_images((str(file), file) for file in files)
    labels = np.array([index[name] for name, files in train + test for _ in files], dtype=np.int64)
    cut = sum(len(files) for _, files in train)

    def part(folder: Path, which: slice) -> Examples:
        return Examples(images[which], labels[which], str(folder), f"{folder}: class folders")

    held_out = part(test_root, slice(cut, None)) if test_root is not None else None
    return Source(root.name, part(train_root, slice(0, cut)), held_out, names)


def read_images(files: Iterable[tuple[str, Path | io.BytesIO]]) -> NDArray[np.uint8]:
    """Decoded images (n, h, w, c), from (name, file) pairs; the names are for error messages.

    One channel if every image is grey; otherwise all are RGB, grey ones by repetition. Transparency is dropped. Raises
    DataError where a file cannot be decoded, has more than 8 bits a channel, or differs in size from the first.
    """
    arrays: list[NDArray[np.uint8]] = []
    first = ""
    for name, file in files:
        array = decode(name, file)
        if arrays and array.shape[:2] != arrays[0].shape[:2]:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (arrays[0].shape, array.shape)]
            raise DataError(
                f"All images must have the same size: {first} is {sizes[0]} and {name} is {sizes[1]} (width x height). "
                "Resize or crop them to one size first."
            )
        first = first or name
        arrays.append(array)
    if not arrays:
        return np.zeros((0, 1, 1, 1), np.uint8)
    channels = max(array.shape[2] for array in arrays)
    stacked = np.empty((len(arrays), *arrays[0].shape[:2], channels), np.uint8)
    for row, array in zip(stacked, arrays, strict=True):
        row[:] = array
    return stacked


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def _class_files(root: Path) -> list[tuple[str, list[Path]]]:
    """(class name, image files) of every class folder."""
    classes = [(folder.name, _image_files(folder)) for folder in _folders(root)]
    if not classes:
        raise DataError(
            f"{root} holds no class folders. Put the images of each class in a folder of its own, as in "
            "train/CLASS/image.png and test/CLASS/image.png."
        )
    return classes
