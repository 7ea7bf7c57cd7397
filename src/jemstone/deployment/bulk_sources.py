"""Where bulk scoring reads from: folders of images, .npz and Parquet, block by block, so that memory stays flat."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from jemstone.data.folders import SUFFIXES
from jemstone.data.npz import DAMAGE
from jemstone.errors import DataError, MissingExtra

NPZ_NAMES = ("images", "test_images")
"""The array that is read, in order of preference; an only one may have any name."""
PARQUET_NAMES = ("image", "bytes", "img")

Span = tuple[int, int]
"""Rows from, and before."""


class Unreadable(NamedTuple):
    """In the place of an input that is none."""

    reason: str


class Block(NamedTuple):
    """Inputs that follow each other: rows of one array, or encoded images."""

    ids: list[str]
    inputs: NDArray[Any] | list[Path | bytes | Unreadable]


class Source(NamedTuple):
    """An opened source."""

    rows: int
    fingerprint: str
    """SHA-256 of names, sizes and times of change: what tells another source, without reading it all."""
    blocks: Callable[[Sequence[Span]], Iterator[Block]]
    """The inputs of ascending spans, a block for each; read on demand."""
    example: NDArray[Any] | None
    """An input of the kind, all zero, where all are of one shape and type."""


def open_source(source: str | Path) -> Source:
    """A folder of images, with all folders in it, in the order of their paths; a .npz; a .parquet, or a folder of them.

    Of a .npz the array `images`, else `test_images`, else its only one: images or vectors, as `read_inputs` has them.
    Of Parquet the column `image`, `bytes` or `img`: encoded images, or structs {bytes, path} of them, as Hugging Face
    datasets have. An input is called by its path in the folder, or by its row. Raises DataError for anything else, and
    for a source without inputs.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = _files(path, SUFFIXES)
        if files:
            return _folder(path, files)
        shards = _files(path, (".parquet",))
        if shards:
            return _parquet(path, [path / name for name in shards])
        raise DataError(f"{path} holds no images ({', '.join(SUFFIXES)}) and no .parquet files.")
    if not path.is_file():
        raise DataError(f"There is no {path}. Give a folder of images, a .npz or a .parquet.")
    if path.suffix == ".npz":
        return _npz(path)
    if path.suffix == ".parquet":
        return _parquet(path.parent, [path])
    raise DataError(f"{path} is a file of an unknown kind. Give a folder of images, a .npz or a .parquet.")


def _files(root: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Paths below `root`, relative to it, sorted; hidden files and folders are left out."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(folder).relative_to(root)
        found += [
            (inside / name).as_posix() for name in names if name.lower().endswith(suffixes) and not name.startswith(".")
        ]
    return sorted(found)


def _fingerprint(root: Path, names: Sequence[str]) -> str:
    sha = hashlib.sha256()
    for name in names:
        try:
            facts = (root / name).stat()
            known = [facts.st_size, facts.st_mtime_ns]
        except OSError:  # a link to nowhere: an unreadable input like others
            known = []
        sha.update((json.dumps([name, *known]) + "\n").encode())
    return sha.hexdigest()


def _folder(root: Path, names: list[str]) -> Source:
    def blocks(spans: Sequence[Span]) -> Iterator[Block]:
        for start, stop in spans:
            part = names[start:stop]
            yield Block([_printable(name) for name in part], [root / name for name in part])

    return Source(len(names), _fingerprint(root, names), blocks, None)


def _printable(name: str) -> str:
    """Paths may hold bytes that are no text, and a column of text may not."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _npz(path: Path) -> Source:
    try:
        with zipfile.ZipFile(path) as archive:
            member = _member(path, [name[:-4] for name in archive.namelist() if name.endswith(".npy")]) + ".npy"
            with archive.open(member) as file:
                shape, dtype = _header(file)
                held = archive.getinfo(member).file_size - file.tell()
    except DAMAGE as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as .npz ({error}). Write or copy it again.") from error
    if len(shape) < 2 or min(shape) < 1 or dtype.hasobject:
        raise DataError(f"{path}: {member[:-4]} has shape {shape} and type {dtype}, and is not an array of inputs.")
    if held < dtype.itemsize * math.prod(shape):  # before memory is set aside for what it claims
        raise DataError(
            f"{path}: {member[:-4]} has shape {shape} and type {dtype}, and holds only {held} bytes. Copy it again."
        )
    # Grey images (n, h, w) get their axis of channels here: a block of three would pass for one image in colour.
    one = (*shape[1:], 1) if len(shape) == 3 else shape[1:]

    def blocks(spans: Sequence[Span]) -> Iterator[Block]:
        problem = ""
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            _header(file)
            first, size = file.tell(), dtype.itemsize * int(np.prod(one))
            for start, stop in spans:
                ids = [str(row) for row in range(start, stop)]
                content = b""
                try:
                    if not problem:
                        file.seek(first + start * size)
                        content = file.read((stop - start) * size)
                except DAMAGE as error:  # what follows in a compressed stream is lost, too
                    # Its one checksum is compared at the very end, when the harm may long be done.
                    problem = f"the file is damaged, here or at a row before it ({error})"
                if len(content) == (stop - start) * size:
                    yield Block(ids, np.frombuffer(content, dtype).reshape(-1, *one))
                else:
                    yield Block(ids, [Unreadable(problem or "the file ends before it")] * len(ids))

    return Source(shape[0], _fingerprint(path.parent, [path.name]), blocks, np.zeros((1, *one), dtype))


def _member(path: Path, names: list[str]) -> str:
    for name in NPZ_NAMES:
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    raise DataError(
        f"{path} holds the arrays {', '.join(names) or 'none'}, and which of them is meant cannot be told. Call it "
        f"{NPZ_NAMES[0]!r}."
    )


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:  # mypy and beartype agree on no type of zipfile's
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in read:
        raise ValueError(f"version {version} of its format is unknown")
    shape, fortran, dtype = read[version](file)
    if fortran:
        raise ValueError("it is stored column by column; store numpy.ascontiguousarray(images)")
    return shape, dtype


def _parquet(root: Path, files: list[Path]) -> Source:
    pa = require_pyarrow()
    counts = []
    columns = []
    for file in files:
        try:
            with pa.parquet.ParquetFile(file) as opened:
                counts.append(opened.metadata.num_rows)
                columns.append(_column(file, opened.schema_arrow))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file} cannot be read as Parquet ({error}). Write or copy it again.") from error
    if not sum(counts):
        raise DataError(f"{root if len(files) > 1 else files[0]} holds no rows.")

    def rows(start: int, size: int) -> Iterator[Path | bytes | Unreadable]:
        """The inputs from row `start` on, `size` decoded at a time."""
        before = 0
        for file, column, count in zip(files, columns, counts, strict=True):
            if start < before + count:
                # Not all of a column at once: row groups may be as large as the file.
                with pa.parquet.ParquetFile(file, pre_buffer=False) as opened:
                    for group in range(opened.num_row_groups):
                        length = opened.metadata.row_group(group).num_rows
                        if start < before + length:
                            yield from islice(group_rows(opened, group, column, size), max(0, start - before), None)
                        before += length
            else:
                before += count

    def group_rows(opened: Any, group: int, column: str, size: int) -> Iterator[Path | bytes | Unreadable]:
        read, length = 0, opened.metadata.row_group(group).num_rows
        try:
            for batch in opened.iter_batches(batch_size=size, row_groups=[group], columns=[column]):
                for value in batch.column(0).to_pylist():
                    content = value.get("bytes") if isinstance(value, dict) else value
                    yield Unreadable("it holds no bytes of an image") if content is None else content
                    read += 1
        except (pa.ArrowException, OSError) as error:
            yield from [Unreadable(f"its row group is damaged ({error})")] * (length - read)

    def blocks(spans: Sequence[Span]) -> Iterator[Block]:
        position = -1
        coming: Iterator[Path | bytes | Unreadable] = iter(())
        for start, stop in spans:
            if start != position:
                coming = rows(start, stop - start)
            yield Block([str(row) for row in range(start, stop)], list(islice(coming, stop - start)))
            position = stop

    return Source(sum(counts), _fingerprint(root, [str(file.relative_to(root)) for file in files]), blocks, None)


def _column(file: Path, schema: Any) -> str:
    types = require_pyarrow().types
    for name in PARQUET_NAMES:
        index = schema.get_field_index(name)
        if index < 0:
            continue
        kind = schema.field(index).type
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if types.is_binary(kind) or types.is_large_binary(kind):
            return name
    raise DataError(
        f"{file} has no column of encoded images called {', '.join(PARQUET_NAMES)}; it has {', '.join(schema.names)}."
    )


def require_pyarrow() -> Any:
    """pyarrow, with its `parquet`, or MissingExtra."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet") from error
    return pyarrow
