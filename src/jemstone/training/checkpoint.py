"""Checkpoints: complete, atomic, versioned, checked, and loaded without running code.

One safetensors file holds the tensors of the model, the averaged model, the optimiser and the buffer; its header holds
the step, the optimiser's scalars and a digest of everything else. There is no random state to save: every stream is
derived from the step.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from jemstone.errors import CheckpointError
from jemstone.runs import write_atomically

VERSION = 1
_NAME = re.compile(r"step-(\d{8})\.safetensors")


class Checkpoint(NamedTuple):
    """What a file holds: named tensors ("model/...", "ema/...", "optimizer/...", "buffer/...") and the rest."""

    tensors: dict[str, Tensor]
    header: dict[str, Any]

    @property
    def step(self) -> int:
        """How many optimiser steps lie behind this state."""
        return int(self.header["step"])

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors under `name`/, without the prefix."""
        prefix = name + "/"
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int | None) -> Path:
    """Write step-XXXXXXXX.safetensors into `folder`, whole or not at all, then drop all but the newest `keep`."""
    # Copies, because tied weights share their memory and safetensors refuses that.
    tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in checkpoint.tensors.items()}
    header = {**checkpoint.header, "version": VERSION}
    header["digest"] = _digest(tensors, header)
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{checkpoint.step:08d}.safetensors"
    write_atomically(path, save(tensors, metadata={"jemstone": json.dumps(header)}))
    for leftover in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)
    for old in list_checkpoints(folder)[: -keep if keep else 0]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(metadata.get("jemstone", "{}"))
        digest = header.pop("digest", None)
    except Exception as error:  # safetensors raises errors of many kinds on a damaged file
        raise CheckpointError(
            f"{path} cannot be read ({error}). It is missing, truncated, damaged or no checkpoint."
        ) from error
    if "jemstone" not in metadata:
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of jemstone.")
    if header.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has version {header.get('version')}; this jemstone reads version {VERSION}. "
            "Install the release of jemstone that wrote it."
        )
    if digest != _digest(tensors, header):
        raise CheckpointError(
            f"{path} is damaged: its content does not match its digest. Delete it to go on from the checkpoint before."
        )
    return Checkpoint(tensors, header)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name))


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint file."""
    return int(path.stem.removeprefix("step-"))


def latest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint file in `folder`."""
    found = list_checkpoints(folder)
    if not found:
        raise CheckpointError(
            f"There is no checkpoint in {folder}: the run was stopped before its first one. "
            f"Go on with it first: jemstone train --resume {folder.parent}"
        )
    return found[-1]


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors and JSON scalars."""
    state = optimizer.state_dict()
    tensors, scalars = {}, {}
    for index, values in state["state"].items():
        for name, value in values.items():
            key = f"{index}/{name}"
            if isinstance(value, Tensor):
                tensors[key] = value
            else:
                scalars[key] = value
    return tensors, {"scalars": scalars, "groups": state["param_groups"]}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Restore what `pack_optimizer` took."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *rest["scalars"].items()):
        index, name = key.split("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": rest["groups"]})
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                # Files hold no memory layout, and fused optimisers go through weights and moments side by side.
                values[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], origin: object) -> None:
    """Load a state dict, naming what does not fit."""
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise CheckpointError(
            f"{origin} does not fit this network. For a network of your own, pass the same architecture that was "
            f"trained. {error}"
        ) from error


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        sha.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        sha.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()
