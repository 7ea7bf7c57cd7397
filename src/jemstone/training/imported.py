"""A published checkpoint becomes a run directory, which evaluation, sampling and the report take like any other."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jemstone.data import Dataset, load_dataset
from jemstone.data.sources import absolute_source
from jemstone.energy import EnergyClassifier
from jemstone.errors import CheckpointError, ConfigError
from jemstone.networks.legacy import ReleaseFile, load_release, read_release
from jemstone.networks.release_layouts import LAYOUTS
from jemstone.networks.wide_resnet import WideResNet
from jemstone.runs import Run, require_free
from jemstone.training.checkpoint import Checkpoint, save_checkpoint
from jemstone.training.config import TrainConfig
from jemstone.training.environment import facts
from jemstone.training.initial_file import save_initial
from jemstone.training.inputs import CUSTOM, check_dataset, make_model
from jemstone.training.recipes import recipe
from jemstone.training.setup import make_fabric, make_initial

SLACK = 1e-3
"""How far a chain of a release that clamps may lie outside the box: rounding, in input units."""
_BLOCK = 1 << 20


def import_checkpoint(file: str | Path, layout: str, network: str, data: Dataset | str, out: str | Path) -> Run:
    """Make the run directory `out` from `file`, a checkpoint of a public release, and return it.

    `layout` names the release: jem (Grathwohl et al., ICLR 2020), jem++ (Yang & Ji, ICCV 2021) or sada-jem (Yang, Su &
    Ji, CVPR 2023). The run has the settings of the recipe of that name, with which its chains move and start; the
    normalisation is what the file has. `network` is wrn-DEPTH-WIDTH, as it was trained. `data` is the set it was
    trained on, as a source (`load_dataset`) or loaded: the run is evaluated on its test split, and class Gaussians,
    where the release starts chains from them, are estimated from its training split. The file's replay buffer, if it
    has one, keeps its order; no release stores the ages of its chains.

    The checkpoint is of step 0: no release says how long it trained. Nor does one store the optimiser, so the run
    cannot be resumed. The file is read without running code from it; which heads of it are dropped:
    `load_jem_checkpoint`.

    Raises CheckpointError where the file cannot be read or does not fit `layout`, `network` or `data`; ConfigError for
    an unknown layout or network; RunError where `out` is not free; DataError as `load_dataset` does. Whatever is
    raised, nothing is left at `out`, unless writing itself failed.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"There is no layout {layout!r}. Choose one of: {', '.join(LAYOUTS)}.")
    require_free(out)
    release = read_release(file, LAYOUTS[layout])
    config = _config(release, layout, network)
    if isinstance(data, str):
        config = config.with_values(data={"source": absolute_source(data)})
        data = load_dataset(data, validation=config.data.validation, seed=config.seed)
    else:
        config = config.with_values(data={"source": CUSTOM})
        data = check_dataset(data)
    _check_data(release, config, data)
    model = make_model(config, data.input_shape, data.num_classes)
    assert isinstance(model.network, WideResNet), "the name of the network was compared with the file's"
    load_release(release, model.network)
    chains = 0 if release.buffer is None else len(release.buffer)
    origin = {"file": Path(file).name, "sha256": sha256_of(Path(file)), "layout": layout, "chains": chains}
    return write_untrained(out, config, data, model, origin, release.buffer)


def write_untrained(
    out: str | Path,
    config: TrainConfig,
    data: Dataset,
    model: EnergyClassifier,
    origin: dict[str, Any],
    buffer: Tensor | None = None,
) -> Run:
    """The run directory `out` of a model that was trained elsewhere: of step 0, without an optimiser's state.

    `origin` says in config.json, under "imported", where the weights come from; `buffer` are its chains, if any.
    """
    initial = make_initial(data, config, torch.device("cpu"))
    fabric = make_fabric(config.with_values(device="cpu"))
    run = Run.create(out, {**facts(config, data, fabric), "imported": origin})
    save_initial(run, initial)
    tensors: dict[str, Tensor] = {f"model/{name}": value for name, value in model.network.state_dict().items()}
    if buffer is not None:
        tensors["buffer/x"] = buffer
    save_checkpoint(run.path / "checkpoints", Checkpoint(tensors, {"step": 0}), keep=None)
    run.event("imported", 0, **origin)
    return run


def _config(release: ReleaseFile, layout: str, network: str) -> TrainConfig:
    """The settings of the release's recipe, with the network that the file holds, known to be `network`."""
    name, title, found = release.name, release.layout.title, release.found()
    if found is None:
        raise CheckpointError(
            f"{name}: it does not hold a wide residual network of the {title} release, or not all of one. Get the file "
            f"again, or try another --layout: {', '.join(other for other in LAYOUTS if other != layout)}."
        )
    held = f"wrn-{found.depth}-{found.width}"
    if network != held:
        raise CheckpointError(f"{name}: it holds a {held}, not a {network}. Use --network {held}.")
    if found.norm == "instance":
        raise CheckpointError(
            f"{name}: it has 'instance' or 'layer' normalisation, which differ in what they compute and not in what "
            "they store, so no run can be made of the file alone. Its params.txt or command line says which; for "
            "'instance', load_jem_checkpoint loads it into a network of your own."
        )
    if found.norm == "act":
        raise CheckpointError(
            f"{name}: it was trained with activation normalisation (ActNorm), which jemstone's WideResNet does not "
            "have. Take a checkpoint that was trained with 'batch' or without normalisation."
        )
    return recipe(layout).with_values(network={"name": network, "norm": found.norm})


def _check_data(release: ReleaseFile, config: TrainConfig, data: Dataset) -> None:
    """Raise CheckpointError unless the network and the buffer of `release` are of inputs and classes like those of
    `data`, and the buffer of images in model units."""
    found, buffer = release.found(), release.buffer
    assert found is not None, "its settings were read before"
    remedy = "Give as --data the set that the checkpoint was trained on."
    if len(data.input_shape) != 3 or data.input_shape[0] != found.in_channels:
        raise CheckpointError(
            f"{release.name}: its network takes images of {found.in_channels} channels, and the inputs of {data.name} "
            f"have the shape {data.input_shape}. {remedy}"
        )
    if data.num_classes != found.num_classes:
        raise CheckpointError(
            f"{release.name}: its network has {found.num_classes} classes, and {data.name} has {data.num_classes}. "
            f"{remedy}"
        )
    if buffer is None:
        return
    without = "Save the file again without `replay_buffer` if you only need the weights."
    if tuple(buffer.shape[1:]) != data.input_shape:
        raise CheckpointError(
            f"{release.name}: its replay buffer holds images of shape {tuple(buffer.shape[1:])}, and those of "
            f"{data.name} have {data.input_shape}. {remedy}"
        )
    if not bool(buffer.isfinite().all()):
        raise CheckpointError(f"{release.name}: its replay buffer has values that are not finite. {without}")
    low, high = data.box or (-1.0, 1.0)
    outside = ((buffer < low - SLACK) | (buffer > high + SLACK)).float().mean().item()
    # Chains that are not clamped leave the box a little; a buffer in other units lies outside for the most part.
    if outside > (0.0 if config.chains.clamp else 0.5):
        least, most = (bound.item() for bound in buffer.aminmax())
        raise CheckpointError(
            f"{release.name}: its replay buffer lies in [{least:.4g}, {most:.4g}], and the {release.layout.title} "
            f"release keeps its chains in [{low:g}, {high:g}]. Rescale it, or save the file again without "
            "`replay_buffer`."
        )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()
