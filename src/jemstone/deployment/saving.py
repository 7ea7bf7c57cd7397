"""A slim copy of a run directory: what it takes to predict, evaluate and sample, and nothing about the machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from jemstone.deployment.calibration import Saved, save_calibration
from jemstone.deployment.card import model_card
from jemstone.errors import ConfigError, RunError
from jemstone.runs import Run, is_free
from jemstone.sampling import ClassGaussian
from jemstone.training.checkpoint import Checkpoint, save_checkpoint
from jemstone.training.initial_file import save_initial
from jemstone.training.trained import Trained
from jemstone.version import __version__

SMALLEST_START = 1 << 20
"""Bytes that the class Gaussian where chains start may take, however small the model is."""
_PATH = re.compile(r"(^|[\s=:,'\"])(?:~|\.{1,2}|[A-Za-z]:)?[/\\][^\s=,'\":]*")


def save_model(
    trained: Trained, saved: Saved, folder: str | Path, *, buffer: bool, license: str | None, name: str | None
) -> Run:
    """Write `trained` with its calibration, `saved`, as a run directory at `folder`: see `Predictor.save`."""
    folder = Path(folder)
    if not is_free(folder):
        raise RunError(f"{folder} exists and is not empty: choose another folder, or delete it.")
    if buffer and trained.buffer is None:
        raise ConfigError(f"{trained.run.path} has no replay buffer to save: leave out `buffer`.")
    start = _start(trained)  # may need the run's data: asked for before anything is written
    info = without_paths(trained.run.info)
    info["data"]["class_names"] = list(trained.class_names)  # no paths, whatever they look like
    run = Run.create(folder, {**info, "published": {"jemstone": __version__}})
    tensors = {f"model/{key}": value for key, value in trained.model.network.state_dict().items()}
    if buffer and trained.buffer is not None:
        tensors["buffer/x"] = trained.buffer
    header = {"step": trained.step, "chain_steps": trained.chain_steps}
    save_checkpoint(run.path / "checkpoints", Checkpoint(tensors, header), keep=None)
    save_initial(run, start)
    save_calibration(run.path, saved.calibration, saved.policy, saved.moments, saved.step)
    results: list[dict[str, Any]] = []
    if (trained.run.path / "results.json").exists():
        results = trained.run.read_json("results.json")
        run.write_json("results.json", results)
    card = model_card(run, results, saved, license=license, name=name or folder.name)
    (run.path / "README.md").write_text(card, encoding="utf-8")
    return run


def without_paths(info: Any, found: tuple[str, ...] | None = None) -> Any:
    """The content of a config.json with the last part alone of every path in it: `mnist.npz` of `/home/me/mnist.npz`.

    A file of that name is found again in the working directory; whether it is the same, its digest says.
    """
    if found is None:  # whole values first: in a command line, a path with a space is no longer seen as one
        found = tuple(sorted(filter(_is_path, _texts(info)), key=len, reverse=True))
    if isinstance(info, dict):
        return {
            # A definition is JSON, whose escapes look like paths of Windows.
            key: json.dumps(without_paths(json.loads(value)))
            if key == "definition" and value
            else without_paths(value, found)
            for key, value in info.items()
        }
    if isinstance(info, list):
        return [without_paths(value, found) for value in info]
    if not isinstance(info, str):
        return info
    for path in found:
        info = info.replace(path, _last(path))
    return _PATH.sub(lambda match: match[1] + _last(match[0]), info)


def _texts(info: Any) -> list[str]:
    if isinstance(info, dict | list):
        return [text for part in (info.values() if isinstance(info, dict) else info) for text in _texts(part)]
    return [info] if isinstance(info, str) else []


def _is_path(text: str) -> bool:
    return text.startswith(("/", "~", "\\")) or text[1:3] in (":\\", ":/")


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _start(trained: Trained) -> ClassGaussian | None:
    """Where the chains start, if that is a class Gaussian, with as many directions as weigh no more than the model."""
    if not trained.config.weights.generative or trained.config.chains.start != "gaussian":
        return None
    start = trained.initial()
    assert isinstance(start, ClassGaussian), "the run's start is a Gaussian"
    weights = sum(value.nbytes for value in trained.model.network.state_dict().values())
    per_direction = start.mean.nbytes
    return start.reduced(max(max(weights, SMALLEST_START) // per_direction, 1)).to(torch.device("cpu"))
