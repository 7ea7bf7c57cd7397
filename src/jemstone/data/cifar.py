"""The official python version of CIFAR-10 and CIFAR-100, read without running what its pickles could ask for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jemstone.data.raw import Examples, Source
from jemstone.errors import DataError


class Layout(NamedTuple):
    """What the files of one of the two sets are called."""

    name: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    class_names: str


LAYOUTS = (
    Layout(
        "cifar-10",
        "cifar-10-batches-py",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test_batch",
        "batches.meta",
        "labels",
        "label_names",
    ),
    Layout("cifar-100", "cifar-100-python", ("train",), "test", "meta", "fine_labels", "fine_label_names"),
)
PIXELS = 3 * 32 * 32


def find_cifar(root: Path) -> tuple[Path, Layout] | None:
    """The CIFAR folder that `root` is or contains; None where there is none, DataError where there are two."""
    found = []
    for layout in LAYOUTS:
        own = root.name == layout.folder or (root / layout.meta).is_file()
        folders = ([root] if own else []) + [root / layout.folder]
        found += [(folder, layout) for folder in folders if folder.is_dir()]
    if len(found) > 1:
        raise DataError(f"{root} holds {' and '.join(str(f) for f, _ in found)}. Name the one that you mean.")
    return found[0] if found else None


def read_cifar(folder: Path, layout: Layout, *, test_only: bool) -> Source:
    """All images as uint8 (n, 3, 32, 32), with CIFAR-100's fine labels. With `test_only`, the test file only."""
    wanted = (layout.test,) if test_only else (*layout.train, layout.test, layout.meta)
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}. Unpack the official archive of {layout.name} again.")
    test = _batch(folder / layout.test, layout)
    if test_only:
        return Source(layout.name, None, test)
    batches = [_batch(folder / name, layout) for name in layout.train]
    labels = [batch.labels for batch in batches if batch.labels is not None]
    where = f"{folder}: {', '.join(layout.train)}"
    train = Examples(np.concatenate([batch.inputs for batch in batches]), np.concatenate(labels), where, where)
    names = _entry(_unpickle(folder / layout.meta), layout.class_names, folder / layout.meta)
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise DataError(f"{folder / layout.meta}: {layout.class_names} must be a list of strings.")
    return Source(layout.name, train, test, tuple(n if isinstance(n, str) else n.decode("latin1") for n in names))


def _batch(path: Path, layout: Layout) -> Examples:
    content = _unpickle(path)
    labels = _entry(content, layout.labels, path)
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{path}: {layout.labels} must be a list of integers. Unpack the official archive again.")
    pixels = _pixels(_entry(content, "data", path), path)
    if len(pixels) != len(labels):
        raise DataError(f"{path} holds {len(labels)} labels for {len(pixels)} images. Unpack the archive again.")
    return Examples(pixels, np.array(labels, dtype=np.int64), f"{path}: data", f"{path}: {layout.labels}")


def _entry(content: dict[str, Any], key: str, path: Path) -> Any:
    if key not in content:
        raise DataError(f"{path} has no entry {key!r}, only: {', '.join(content)}. Unpack the official archive again.")
    return content[key]


def _pixels(stored: Any, path: Path) -> NDArray[np.uint8]:
    """The uint8 array (n, 3, 32, 32) from the pickled state of an array (n, 3072)."""
    try:
        _version, shape, dtype, fortran, data = stored.state
        if dtype.args[0] not in ("u1", b"u1") or shape != (shape[0], PIXELS):
            raise ValueError(f"type {dtype.args[0]!r} and shape {shape!r}")
        flat: NDArray[np.uint8] = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"{path}: data is not a uint8 array of shape (n, {PIXELS}) ({error}). Unpack the official archive again."
        ) from error
    return flat.reshape(-1, 3, 32, 32)


def _unpickle(path: Path) -> dict[str, Any]:
    """The dict in a pickle of plain values and numpy arrays, keys as str; arrays come as records of their state.

    Every global that the file names is looked up in a table of inert stand-ins, made anew for each file, so that no
    function of numpy or of anything else is ever called. Any other global is a DataError.
    """

    class Record:
        def __init__(self, *args: Any) -> None:
            self.args = args
            self.state: Any = None

        def __setstate__(self, state: Any) -> None:
            self.state = state

    def to_bytes(text: str = "", _encoding: object = None) -> bytes:
        return str.encode(text, "latin1")

    stand_ins: dict[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): Record,
        ("numpy._core.multiarray", "_reconstruct"): Record,
        ("numpy", "ndarray"): Record,
        ("numpy", "dtype"): Record,
        # How Python 3 writes bytes in protocol 2, filled and empty.
        ("_codecs", "encode"): to_bytes,
        ("__builtin__", "bytes"): to_bytes,
    }

    class Plain(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in stand_ins:
                raise pickle.UnpicklingError(f"it asks for {module}.{name}, which image files have no use for")
            return stand_ins[module, name]

    try:
        with path.open("rb") as file:
            content = Plain(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(
            f"{path} was not loaded: {error}. It is damaged or not the official file; unpack the archive again."
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {type(content).__name__}, not a dict. Unpack the official archive again.")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}
