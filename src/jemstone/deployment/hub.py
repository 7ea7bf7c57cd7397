"""Models on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path


def download(repo_id: str) -> Path:
    """The run directory of the hub's repository OWNER/NAME, in the local cache."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo_id))
