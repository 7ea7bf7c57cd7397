"""Sets stored as .npz files."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jemstone.data.raw import Examples, Source
from jemstone.errors import DataError

TRAIN = ("train_images", "train_labels")
TEST = ("test_images", "test_labels")
DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
)


def read_npz(path: Path, *, test_only: bool) -> Source:
    """The arrays `train_images`, `train_labels`, `test_images`, `test_labels` and, optional, `class_names`.

    With `test_only`, only `test_images` is needed and read. Nothing is unpickled. Raises DataError where the file
    cannot be read or lacks an array.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}. Check the path.")
    try:
        archive = np.load(path, allow_pickle=False)
    except DAMAGE as error:
        raise _damaged(path, error) from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"{path} holds a single array, not several. Write it with numpy.savez_compressed.")
    with archive:
        wanted = TEST[:1] if test_only else TRAIN + TEST
        missing = [name for name in wanted if name not in archive.files]
        if missing:
            raise DataError(
                f"{path} has no array {', '.join(missing)}; it holds: {', '.join(archive.files) or 'nothing'}. Rename "
                f"or add arrays so that it holds {', '.join(wanted)}."
            )
        arrays = {name: _array(archive, name, path) for name in wanted}
        names = None
        if not test_only and "class_names" in archive.files:
            names = _names(_array(archive, "class_names", path), path)
    parts = [
        Examples(arrays[images], arrays.get(labels), f"{path}: {images}", f"{path}: {labels}")
        for images, labels in ((TRAIN, TEST) if not test_only else (TEST,))
    ]
    return Source(path.stem, None if test_only else parts[0], parts[-1], names)


def _array(archive: np.lib.npyio.NpzFile, name: str, path: Path) -> NDArray[Any]:
    try:
        array = archive[name]
    except DAMAGE as error:
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path}: {name} holds Python objects, and those are not loaded because unpickling runs code. Store "
                "an array of numbers (of strings for class_names)."
            ) from error
        raise _damaged(path, error) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {name} is not a numpy array. Write the file with numpy.savez_compressed.")
    return array


def _names(array: NDArray[Any], path: Path) -> tuple[str, ...]:
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise DataError(
            f"{path}: class_names has shape {array.shape} and type {array.dtype}. It must be a list of strings."
        )
    return tuple(item.decode(errors="replace") if isinstance(item, bytes) else str(item) for item in array)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read as .npz, it is truncated or damaged ({error}). Write or copy it again.")
