"""Named arrays as one .npz: written whole or not at all, read without running code, damaged files known as such."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from jemstone.runs import write_atomically

DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, NotImplementedError)
"""What reading a file that was cut short or edited may raise; such a file counts as missing."""


def read_arrays(path: Path) -> dict[str, Shaped[np.ndarray, ...]]:
    """The arrays in `path`; raises one of `DAMAGED` where it is missing or damaged."""
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def write_arrays(path: Path, arrays: Mapping[str, Shaped[np.ndarray, ...]], *, compress: bool = False) -> None:
    """Write `arrays` to `path`; RunError where that cannot be done."""
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())
