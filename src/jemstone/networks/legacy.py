"""Reading the checkpoints of the original JEM release (Grathwohl et al., ICLR 2020; github.com/wgrathwohl/JEM)."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from jemstone.errors import CheckpointError
from jemstone.networks.wide_resnet import STEM_CHANNELS, WideResNet

BLOCK_NAMES = {"norm1": "bn1", "conv1": "conv1", "norm2": "bn2", "conv2": "conv2", "shortcut": "shortcut.0"}
OUTER_NAMES = {"stem": "f.conv1", "final_norm": "f.bn1", "head": "class_output"}
UNUSED_HEADS = ("energy_output.", "f.linear.")


class Layout(NamedTuple):
    """The settings of a WideResNet that a checkpoint's keys and shapes reveal."""

    depth: int
    width: int
    num_classes: int
    in_channels: int
    norm: str

    def __str__(self) -> str:
        return (
            f"WideResNet({self.depth}, {self.width}, num_classes={self.num_classes}, "
            f'in_channels={self.in_channels}, norm="{self.norm}")'
        )


def release_key(key: str) -> str:
    """The name in the release of the parameter or buffer that a WideResNet calls `key`."""
    if key.startswith("stages."):
        _, stage, block, module, leaf = key.split(".")
        return f"f.layer{int(stage) + 1}.{block}.{BLOCK_NAMES[module]}.{leaf}"
    module, leaf = key.split(".")
    return f"{OUTER_NAMES[module]}.{leaf}"


def load_jem_checkpoint(path: str | PathLike[str], network: WideResNet) -> Tensor | None:
    """Load the weights of a file of the JEM release into `network`; return its replay buffer, if it has one.

    The file is what the release wrote with `torch.save`: a dict with `model_state_dict` and perhaps `replay_buffer`.
    It is read with `weights_only=True`, so no code in it is executed. The buffer comes back as float32 (n, c, h, w) on
    the CPU, in the release's range [-1, 1]; chains that were drawn by class lie in equal blocks, class 0 first.

    The logits are the release's `class_output` head. Two further heads of the release, which its logits never use, are
    dropped: `f.linear`, always of 10 outputs, and `energy_output`. The second did define the energy of runs with the
    release's `--uncond`; nothing in a file tells those, and their density does not carry over. Nor does a file tell
    the release's 'layer' norm from 'instance': look at the `params.txt` that lies beside it, and load only 'instance'.

    Raises CheckpointError, and leaves `network` as it was, if the file cannot be read or does not fit.
    """
    name = fspath(path)
    contents = _read(name)
    state = _model_state(name, contents)
    buffer = _replay_buffer(name, contents)

    if network.norm == "group":
        raise CheckpointError(
            f"{name}: the JEM release has no networks with group normalisation. "
            'Build the network with norm="none", "batch" or "instance", as in training.'
        )
    if network.activation != "leaky_relu":
        raise CheckpointError(
            f"{name}: the JEM release trained with LeakyReLU, the network has activation={network.activation!r}. "
            'Build it with activation="leaky_relu".'
        )
    if network.statistics == "separate":
        raise CheckpointError(
            f"{name}: the JEM release kept one set of running statistics, the network has two. "
            'Build it with statistics="batch".'
        )
    if any(is_parametrized(module) for module in network.modules()):
        raise CheckpointError(
            f"{name}: the JEM release trained without spectral normalisation. Build the network with "
            "spectral_norm=False."
        )
    wanted = {release_key(key): tensor for key, tensor in network.state_dict().items()}
    _check_fit(name, state, wanted, network)
    network.load_state_dict({key: state[release_key(key)] for key in network.state_dict()})
    return buffer


def _read(name: str) -> Mapping[str, object]:
    try:
        contents = torch.load(name, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{name}: there is no such file.") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{name}: not a file of tensors alone, or damaged; code in checkpoints is never executed. If you trust it, "
            f"load it elsewhere and save its `model_state_dict` again. torch says: {error}"
        ) from error
    except Exception as error:  # torch's readers answer damaged bytes with any error there is, struct.error included
        raise CheckpointError(f"{name}: damaged, truncated, or not written by torch.save ({error}).") from error
    if not isinstance(contents, Mapping) or not isinstance(contents.get("model_state_dict"), Mapping):
        found = sorted(map(str, contents))[:5] if isinstance(contents, Mapping) else type(contents).__name__
        raise CheckpointError(
            f"{name}: not a checkpoint of the JEM release, which is a dict with `model_state_dict`; found {found}. "
            'If it is a bare state dict, save it again as {"model_state_dict": state}.'
        )
    return contents


def _model_state(name: str, contents: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of the network by the release's names, without DataParallel's prefix and the unused heads."""
    stored = contents["model_state_dict"]
    assert isinstance(stored, Mapping)
    state: dict[str, Tensor] = {}
    for key, value in stored.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{name}: entry {key!r} of `model_state_dict` is not a named tensor.")
        key = key.removeprefix("module.")
        if not key.startswith(UNUSED_HEADS):
            state[key] = value
    broken = [key for key, value in state.items() if not bool(value.isfinite().all())]
    if broken:
        raise CheckpointError(f"{name}: values that are not finite in {_some(broken)}. The run that wrote it diverged.")
    return state


def _replay_buffer(name: str, contents: Mapping[str, object]) -> Tensor | None:
    buffer = contents.get("replay_buffer")
    # The release keeps an empty list where a run has no buffer.
    if buffer is None or (isinstance(buffer, list) and not buffer):
        return None
    if not isinstance(buffer, Tensor) or buffer.ndim != 4 or not buffer.is_floating_point():
        found = f"{buffer.dtype} {tuple(buffer.shape)}" if isinstance(buffer, Tensor) else type(buffer).__name__
        raise CheckpointError(
            f"{name}: `replay_buffer` must be a float tensor (n, c, h, w), found {found}. "
            "Save the file again without it if you only need the weights."
        )
    return buffer.float()


def _check_fit(name: str, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], network: WideResNet) -> None:
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if not (missing or unexpected or misshapen):
        return
    problems = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    listed = "; ".join(f"{word}: {_some(keys)}" for word, keys in problems.items() if keys)
    raise CheckpointError(f"{name}: the checkpoint does not fit the network. {_remedy(state, network)} ({listed})")


def _remedy(state: Mapping[str, Tensor], network: WideResNet) -> str:
    """What to do about a checkpoint that does not fit, from what its keys and shapes say about how it was trained."""
    found = _layout(state)
    if found is None:
        return "It does not hold a wide residual network of the JEM release, or not all of one."
    built = Layout(network.depth, network.width, network.num_classes, network.in_channels, network.norm)
    if found.norm == "act":
        return "It was trained with activation normalisation (ActNorm), which jemstone's WideResNet does not have."
    if found == built:
        return "The settings agree, so the file is incomplete or changed: get it again."
    norm = ""
    if found.norm != built.norm:
        has = "no normalisation" if found.norm == "none" else "normalisation"
        norm = f'The checkpoint has {has} parameters: build the network with norm="{found.norm}". '
    return f"{norm}The checkpoint is {found}, the network is {built}: build it with the checkpoint's settings."


def _layout(state: Mapping[str, Tensor]) -> Layout | None:
    ends = {"f.conv1.weight": 4, "f.layer1.0.conv1.weight": 4, "class_output.weight": 2}
    if any(key not in state or state[key].ndim != ndim for key, ndim in ends.items()):
        return None
    stem, first, head = (state[key] for key in ends)
    if "f.bn1.running_mean" in state:
        norm = "batch"
    elif "f.bn1.loc" in state:
        norm = "act"
    else:
        norm = "instance" if "f.bn1.weight" in state else "none"
    blocks = {match[1] for match in (re.match(r"f\.layer1\.(\d+)\.", key) for key in state) if match}
    return Layout(
        depth=6 * len(blocks) + 4,
        width=first.shape[0] // STEM_CHANNELS,
        num_classes=head.shape[0],
        in_channels=stem.shape[1],
        norm=norm,
    )


def _some(keys: Iterable[str], limit: int = 3) -> str:
    listed = list(keys)
    rest = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + rest
