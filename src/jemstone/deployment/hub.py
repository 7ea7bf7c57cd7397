"""Models on the Hugging Face hub: a repository is a run directory that `Predictor.save` made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jemstone.errors import ConfigError, RunError

FILES = (
    "config.json",
    "checkpoints/step-*.safetensors",
    "calibration.safetensors",
    "initial.safetensors",
    "results.json",
    "README.md",
)
"""What is sent and what is fetched: data alone, nothing that is executed when it is loaded."""


def download(repo_id: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """The run directory of the hub's repository OWNER/NAME at `revision`, in the local cache.

    Without a network the cached copy will do. `token` is for private repositories; the default is that of
    `hf auth login`. Raises RunError where there is no such repository, no way to it and no copy, or no jemstone model
    in it, and ConfigError for a model whose network is code of its maker.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        found = snapshot_download(repo_id, revision=revision, token=token, allow_patterns=list(FILES))
    except RepositoryNotFoundError as error:
        raise RunError(
            f"There is no model {repo_id} on the Hugging Face hub, or it is private or gated and needs a token: "
            "`hf auth login`, or token=..."
        ) from error
    except RevisionNotFoundError as error:
        raise RunError(f"The model {repo_id} has no revision {revision!r}.") from error
    except Exception as error:  # the kinds of transport errors vary with the hub client's version
        raise RunError(
            f"Cannot fetch {repo_id} from the Hugging Face hub, and no whole copy is in the cache: {error}"
        ) from error
    folder = Path(found)
    _check(folder, repo_id)
    return folder


def upload(folder: Path, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Make the repository OWNER/NAME hold what the run directory at `folder` holds of `FILES`. Returns its address.

    It is made if there is none, `private` or as its owner's default is. Raises RunError where the hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    patterns = list(FILES)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        # Files of an earlier push would be taken for this model's: a checkpoint of a later step, another start.
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=patterns,
            delete_patterns=patterns,
            commit_message="Upload of a jemstone model",
        )
    except Exception as error:  # as above
        raise RunError(
            f"Cannot push to {repo_id}: {error} Pushing needs a name OWNER/NAME and a token that may write there: "
            "`hf auth login`, or token=..."
        ) from error
    return str(url)


def _check(folder: Path, repo_id: str) -> None:
    try:
        info: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        network = info["config"]["network"]["name"]
        ours = "format" in info and (folder / "checkpoints").is_dir()
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise RunError(f"{repo_id} holds no jemstone model: `jemstone publish RUN --hub OWNER/NAME` makes one.")
    if str(network).startswith("py:"):
        raise ConfigError(
            f"The network of {repo_id} is {network!r}, a file that would be executed: jemstone runs no code that a "
            f"downloaded model names. If you trust it, load {folder} with network=MODULE."
        )
