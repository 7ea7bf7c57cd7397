"""Reading the checkpoints of the public releases of JEM, JEM++ and SADA-JEM (see `release_layouts`)."""

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
from jemstone.networks.release_layouts import LAYOUTS, ReleaseLayout
from jemstone.networks.wide_resnet import STEM_CHANNELS, WideResNet


class Found(NamedTuple):
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


class ReleaseFile(NamedTuple):
    """What a release's checkpoint holds, read and known to be tensors."""

    name: str
    """Of the file, for messages."""
    layout: ReleaseLayout
    state: dict[str, Tensor]
    """The network by the release's names, without DataParallel's prefix, second names and unused heads."""
    buffer: Tensor | None
    """Its replay buffer, float32 (n, c, h, w), on the CPU; None where it has none."""

    def found(self) -> Found | None:
        """The settings of the network, or None where it is not a wide residual network of the release."""
        key, state = self.layout.key, self.state
        ends = {key("stem.weight"): 4, key("stages.0.0.conv1.weight"): 4, key("head.weight"): 2}
        if any(name not in state or state[name].ndim != ndim for name, ndim in ends.items()):
            return None
        stem, first, head = (state[name] for name in ends)
        if key("final_norm.running_mean") in state:
            norm = "batch"
        elif key("final_norm.loc") in state:
            norm = "act"
        else:
            norm = "instance" if key("final_norm.weight") in state else "none"
        begin = re.escape(self.layout.stage.format(1))
        blocks = {match[1] for match in (re.match(rf"{begin}\.(\d+)\.", name) for name in state) if match}
        return Found(
            depth=6 * len(blocks) + 4,
            width=first.shape[0] // STEM_CHANNELS,
            num_classes=head.shape[0],
            in_channels=stem.shape[1],
            norm=norm,
        )


def load_jem_checkpoint(path: str | PathLike[str], network: WideResNet) -> Tensor | None:
    """Load the weights of a file of the JEM release into `network`; return its replay buffer, if it has one.

    The file is what the release wrote with `torch.save`: a dict with `model_state_dict` and perhaps `replay_buffer`;
    or a state dict alone. It is read with `weights_only=True`, so no code in it is executed. The buffer comes back as
    float32 (n, c, h, w) on the CPU, in the release's range [-1, 1]; chains that were drawn by class lie in equal
    blocks, class 0 first.

    The logits are the release's `class_output` head. Two further heads of the release, which its logits never use, are
    dropped: `f.linear`, always of 10 outputs, and `energy_output`. The second did define the energy of runs with the
    release's `--uncond`; nothing in a file tells those, and their density does not carry over. Nor does a file tell
    the release's 'layer' norm from 'instance': look at the `params.txt` that lies beside it, and load only 'instance'.

    Raises CheckpointError, and leaves `network` as it was, if the file cannot be read or does not fit.
    """
    release = read_release(path, LAYOUTS["jem"])
    load_release(release, network)
    return release.buffer


def read_release(path: str | PathLike[str], layout: ReleaseLayout) -> ReleaseFile:
    """Read a checkpoint that a release wrote in its `layout`, as `load_jem_checkpoint` describes it.

    Raises CheckpointError where the file cannot be read, holds anything but tensors, or is of another release.
    """
    name = fspath(path)
    contents = _read(name)
    stored = contents.get("model_state_dict", contents)  # a state dict alone is its own
    if not isinstance(stored, Mapping):
        raise CheckpointError(
            f"{name}: `model_state_dict` is {type(stored).__name__}, so the file holds no network. Take the release's "
            "checkpoint with the weights in it."
        )
    buffer = None if stored is contents else _replay_buffer(name, contents)
    return ReleaseFile(name, layout, _model_state(name, stored, layout), buffer)


def load_release(release: ReleaseFile, network: WideResNet) -> None:
    """Load the weights of `release` into `network`. Raises CheckpointError, and changes nothing, if they do not fit."""
    name, layout = release.name, release.layout
    if network.norm == "group":
        raise CheckpointError(
            f"{name}: the {layout.title} release has no networks with group normalisation. "
            'Build the network with norm="none", "batch" or "instance", as in training.'
        )
    if network.activation != "leaky_relu":
        raise CheckpointError(
            f"{name}: the {layout.title} release trained with LeakyReLU, the network has "
            f'activation={network.activation!r}. Build it with activation="leaky_relu".'
        )
    if network.statistics == "separate":
        raise CheckpointError(
            f"{name}: the {layout.title} release kept one set of running statistics, the network has two. "
            'Build it with statistics="batch".'
        )
    if any(is_parametrized(module) for module in network.modules()):
        raise CheckpointError(
            f"{name}: the {layout.title} release trained without spectral normalisation. Build the network with "
            "spectral_norm=False."
        )
    _check_fit(release, {layout.key(key): tensor for key, tensor in network.state_dict().items()}, network)
    network.load_state_dict({key: release.state[layout.key(key)] for key in network.state_dict()})


def _read(name: str) -> Mapping[object, object]:
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
    if isinstance(contents, Mapping) and "model_state_dict" in contents:
        return contents
    if isinstance(contents, Mapping) and contents and all(isinstance(value, Tensor) for value in contents.values()):
        return contents
    found = sorted(map(str, contents))[:5] if isinstance(contents, Mapping) else type(contents).__name__
    raise CheckpointError(
        f"{name}: not a checkpoint of a release, which is a dict with `model_state_dict`, nor a state dict alone; "
        f"found {found}."
    )


def _model_state(name: str, stored: Mapping[object, object], layout: ReleaseLayout) -> dict[str, Tensor]:
    """The tensors of the network by the release's first names, without the unused heads."""
    _check_release(name, [key for key in stored if isinstance(key, str)], layout)
    state: dict[str, Tensor] = {}
    for key, value in stored.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{name}: entry {key!r} of `model_state_dict` is not a named tensor.")
        first = layout.first_name(key)
        if first.startswith(layout.unused):
            continue
        if first in state and not torch.equal(state[first], value):
            raise CheckpointError(
                f"{name}: {key} and {first} are two names for one tensor, and their values differ: the file was "
                "changed. Get it again."
            )
        state[first] = value
    broken = [key for key, value in state.items() if not bool(value.isfinite().all())]
    if broken:
        raise CheckpointError(f"{name}: values that are not finite in {_some(broken)}. The run that wrote it diverged.")
    return state


def _check_release(name: str, keys: list[str], layout: ReleaseLayout) -> None:
    """Raise CheckpointError where `keys` are not names of the release of `layout`, but of another one."""
    others = [other for other, names in LAYOUTS.items() if names.fits(keys)]
    if others and layout not in (LAYOUTS[other] for other in others):
        titles = " or ".join(LAYOUTS[other].title for other in others)
        raise CheckpointError(
            f"{name}: its names are those of the {titles} release, not of {layout.title}. Import it as that: "
            f"`jemstone import {name} --layout {others[0]}`."
        )


def _replay_buffer(name: str, contents: Mapping[object, object]) -> Tensor | None:
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


def _check_fit(release: ReleaseFile, wanted: Mapping[str, Tensor], network: WideResNet) -> None:
    state = release.state
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
    raise CheckpointError(
        f"{release.name}: the checkpoint does not fit the network. {_remedy(release, network)} ({listed})"
    )


def _remedy(release: ReleaseFile, network: WideResNet) -> str:
    """What to do about a checkpoint that does not fit, from what its keys and shapes say about how it was trained."""
    found = release.found()
    if found is None:
        return f"It does not hold a wide residual network of the {release.layout.title} release, or not all of one."
    built = Found(network.depth, network.width, network.num_classes, network.in_channels, network.norm)
    if any(key.startswith(release.layout.stage.format(4) + ".") for key in release.state):
        return (
            "It has a fourth stage, which SADA-JEM adds for images of 64 pixels and more, and jemstone's WideResNet "
            "has three."
        )
    if found.norm == "act":
        return "It was trained with activation normalisation (ActNorm), which jemstone's WideResNet does not have."
    if found == built:
        return "The settings agree, so the file is incomplete or changed: get it again."
    norm = ""
    if found.norm != built.norm:
        has = "no normalisation" if found.norm == "none" else "normalisation"
        norm = f'The checkpoint has {has} parameters: build the network with norm="{found.norm}". '
    return f"{norm}The checkpoint is {found}, the network is {built}: build it with the checkpoint's settings."


def _some(keys: Iterable[str], limit: int = 3) -> str:
    listed = list(keys)
    rest = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + rest
