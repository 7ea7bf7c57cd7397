"""From what a user calls a model to its run directory."""

from __future__ import annotations

import re
from pathlib import Path

from jemstone.errors import RunError

PRETRAINED = ("digits", "fashion-mnist")
"""Small models that come with jemstone; how each was made is in its README.md."""
_FOLDER = Path(__file__).parent.parent / "pretrained"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def locate(source: str | Path) -> Path:
    """The run directory that `source` names.

    A run directory at that path comes first; then the models of `PRETRAINED`, by name, though a folder of data may be
    called alike; then any other path; then OWNER/NAME, a model that was pushed to the Hugging Face hub, which is
    downloaded and kept in its cache.
    """
    path = Path(source).expanduser()
    if str(source) in PRETRAINED and not (path / "config.json").exists():
        return _FOLDER / str(source)
    if path.exists():
        return path
    if _HUB_ID.fullmatch(str(source)):
        from jemstone.deployment.hub import download

        try:
            return download(str(source))
        except RunError as error:
            raise RunError(f"There is no folder {source}, and as a model of the hub: {error}") from error
    raise RunError(
        f"{str(source)!r} is neither a run directory nor a model that comes with jemstone "
        f"({', '.join(PRETRAINED)}) nor OWNER/NAME of the Hugging Face hub."
    )
