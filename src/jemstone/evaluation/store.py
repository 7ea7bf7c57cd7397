"""What an evaluation keeps on disk, so that nothing is measured twice and a kill costs little.

    SECTION.json     results, figures, warnings and notes of a finished section, with the key that it belongs to
    SECTION.npz      its values per test example
    parts/SECTION-KEY/   pieces of a section that is under way; removed when it is finished

A section's key is a digest of all that its numbers depend on: the model, the data, the settings, the version.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jemstone.data import grid
from jemstone.errors import RunError
from jemstone.evaluation.arrays import DAMAGED, read_arrays, write_arrays
from jemstone.evaluation.intervals import Result
from jemstone.evaluation.section import Arrays, Memo, Picture, Section, Subject, Warned
from jemstone.runs import strict, write_atomically


class Key(NamedTuple):
    """What a section's numbers depend on: `subject` (model, data, chains, version) and `settings`, as digests."""

    subject: str
    settings: str


class Stored(NamedTuple):
    """A finished section as it lies on disk: everything but its pictures, which are files of their own."""

    key: Key
    settings: dict[str, Any]
    section: Section
    seconds: float


class Store:
    """Finished sections and pieces of unfinished ones in `folder`; pictures in `pictures`."""

    def __init__(self, folder: Path, pictures: Path) -> None:
        self.folder = folder
        self.pictures = pictures
        for directory in (folder, pictures):
            directory.mkdir(parents=True, exist_ok=True)

    def load(self, name: str) -> Stored | None:
        """The section `name` as it was last measured, whatever its key; None where there is none, or a damaged one."""
        try:
            content = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
            examples = read_arrays(self.folder / f"{name}.npz")
            section = Section(
                [Result(**row) for row in content["results"]],
                content["figures"],
                examples,
                [Warned(**row) for row in content["warnings"]],
                content["notes"],
                {},
            )
            missing = [shown for shown in content["pictures"] if not (self.pictures / f"{shown}.png").is_file()]
            stored = Stored(Key(**content["key"]), content["settings"], section, content["seconds"])
        except DAMAGED:
            return None
        return None if missing else stored

    def save(self, name: str, stored: Stored) -> None:
        """Write a finished section, its JSON last: a kill before that leaves the section unfinished."""
        section = stored.section
        for shown, picture in section.pictures.items():
            self._draw(shown, picture)
        (self.folder / f"{name}.json").unlink(missing_ok=True)  # or old numbers would lie beside new examples
        write_arrays(self.folder / f"{name}.npz", section.examples, compress=True)
        content = {
            "key": stored.key._asdict(),
            "settings": stored.settings,
            "seconds": stored.seconds,
            "results": [result._asdict() for result in section.results],
            "figures": section.figures,
            "warnings": [warning._asdict() for warning in section.warnings],
            "notes": section.notes,
            "pictures": list(section.pictures),
        }
        text = json.dumps(strict(content), indent=1, allow_nan=False) + "\n"
        write_atomically(self.folder / f"{name}.json", text.encode())
        self._drop_pieces(name)

    def forget(self, name: str) -> None:
        """Drop the section `name`, its pictures and its pieces, so that it is measured again."""
        path = self.folder / f"{name}.json"
        try:
            shown = json.loads(path.read_text(encoding="utf-8"))["pictures"]
        except DAMAGED:
            shown = []
        path.unlink(missing_ok=True)
        for picture in shown:
            for suffix in (".png", ".json"):
                (self.pictures / f"{picture}{suffix}").unlink(missing_ok=True)
        self._drop_pieces(name)

    def memo(self, name: str, key: Key) -> Memo:
        """Keeps the pieces of the section `name` that has this key."""
        folder = self.folder / "parts" / f"{name}-{digest(key)[:16]}"

        def remember(piece: str, make: Callable[[], Arrays]) -> Arrays:
            path = folder / f"{_file_name(piece)}.npz"
            try:
                return read_arrays(path)
            except DAMAGED:
                arrays = make()
            folder.mkdir(parents=True, exist_ok=True)
            write_arrays(path, arrays)
            return arrays

        return remember

    def _drop_pieces(self, name: str) -> None:
        for pieces in (self.folder / "parts").glob(f"{name}-*"):
            shutil.rmtree(pieces, ignore_errors=True)

    def _draw(self, name: str, picture: Picture) -> None:
        grid(picture.images.clamp(-1, 1).cpu(), picture.columns).save(self.pictures / f"{name}.png")
        caption = json.dumps({"caption": picture.caption}, indent=1) + "\n"
        write_atomically(self.pictures / f"{name}.json", caption.encode())


def read_examples(folder: Path, name: str) -> Arrays:
    """The values per test example of section `name`, from its .npz in `folder`; empty where there are none."""
    path = folder / f"{name}.npz"
    if not path.is_file():
        return {}
    try:
        return read_arrays(path)
    except DAMAGED as error:
        raise RunError(f"{path} is damaged ({error}): delete it and evaluate the run again.") from error


def digest(content: Any) -> str:
    """SHA-256 of plain content (mappings, lists, numbers, text), in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def subject_digest(subject: Subject, identity: Mapping[str, Any]) -> str:
    """A digest of the model's weights and structure, of the data, and of `identity`: how its chains were run."""
    sha = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    sha.update(repr(subject.model).encode())
    for name, value in subject.model.state_dict().items():
        sha.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        sha.update(_bytes_of(value))
    sha.update(subject.data.digest().encode())
    if subject.chains is not None:
        sha.update(f"{subject.chains.start} {subject.chains.steps} {subject.chains.life}".encode())
        if subject.chains.buffer is not None:
            sha.update(_bytes_of(subject.chains.buffer))
    return sha.hexdigest()


def foreign_digests(subject: Subject) -> dict[str, str]:
    """A digest of each further out-of-distribution set, by name."""
    return {
        name: hashlib.sha256(f"{tuple(inputs.shape)} {inputs.dtype}".encode() + _bytes_of(inputs)).hexdigest()
        for name, inputs in subject.foreign.items()
    }


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return bytes(flat.view(torch.uint8).numpy().tobytes()) if flat.numel() else b""


def _file_name(name: str) -> str:
    """A file name for any text: what a file system may refuse is replaced, and a digest keeps names apart."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', name)[:60]}-{digest(name)[:8]}"
