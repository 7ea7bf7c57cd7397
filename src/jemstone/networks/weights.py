"""A file of somebody's weights, read without running code from it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from jemstone.errors import CheckpointError
from jemstone.networks.adapters import Adapted

INSIDE = ("state_dict", "model_state_dict", "model", "state_dict_ema")
"""Where training scripts keep the weights among other things, in the order in which they are looked for."""


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """The named tensors of a .safetensors file, or of what `torch.save` wrote: a state dict, or a dict that holds one.

    Prefixes that wrappers left (`module.` of DataParallel, `_orig_mod.` of torch.compile) are taken off. Raises
    CheckpointError where the file cannot be read or holds anything but tensors.
    """
    path = Path(file)
    found: Any
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise CheckpointError(
            f"{path} cannot be read as weights: {reason}. It must be "
            "a .safetensors file, or a state dict that torch.save wrote: torch.save(network.state_dict(), FILE)."
        ) from error
    key = next((key for key in INSIDE if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)), None)
    found = found if key is None else found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path} holds no state dict. Save it with torch.save(network.state_dict(), FILE).")
    state = {str(name): value for name, value in found.items()}
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def load_weights(network: nn.Module, state: Mapping[str, Tensor], origin: object) -> None:
    """Load `state` into `network`, or into the network inside where it is `Adapted`; CheckpointError if it differs."""
    target = network.network if isinstance(network, Adapted) else network
    try:
        target.load_state_dict(dict(state))
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {origin} do not fit the network: {error}") from error
