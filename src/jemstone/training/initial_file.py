"""Where chains start, on disk: the class Gaussian of a run is estimated once."""

from __future__ import annotations

import torch
from safetensors import safe_open
from safetensors.torch import save

from jemstone.errors import RunError
from jemstone.runs import Run, write_atomically
from jemstone.sampling import ClassGaussian, Initial
from jemstone.training.config import TrainConfig

INITIAL = "initial.safetensors"
INITIAL_TENSORS = ("mean", "factor", "residual")


def save_initial(run: Run, initial: Initial | None) -> None:
    """Write the class Gaussian into the run directory, once; other starts need no file."""
    path = run.path / INITIAL
    if isinstance(initial, ClassGaussian) and not path.exists():
        write_atomically(path, save({name: getattr(initial, name).cpu() for name in INITIAL_TENSORS}))


def load_initial(
    run: Run, config: TrainConfig, box: tuple[float, float] | None, device: torch.device
) -> ClassGaussian | None:
    """The class Gaussian that a run's chains start from, if it has one on disk."""
    path = run.path / INITIAL
    if config.chains.start != "gaussian" or not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            mean, factor, residual = (file.get_tensor(name) for name in INITIAL_TENSORS)
    except Exception as error:
        raise RunError(
            f"{path}, where the run's chains start, cannot be read: {error}. Delete it and resume."
        ) from error
    return ClassGaussian(mean, factor, residual, tuple(run.info["data"]["input_shape"]), box).to(device)
