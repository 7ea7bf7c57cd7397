"""How a trained model is asked: in evaluation mode, in batches, on its own device, and left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jemstone.data.dataset import to_box
from jemstone.energy import EnergyClassifier
from jemstone.networks.modes import in_mode


@contextmanager
def frozen(model: EnergyClassifier) -> Iterator[None]:
    """Inside, every module is in evaluation mode and no parameter can receive a gradient; afterwards as before."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        with in_mode(model, training=False):
            yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


def in_batches(
    function: Callable[[EnergyClassifier, Tensor], Tensor], model: EnergyClassifier, inputs: Tensor, batch_size: int
) -> Float[np.ndarray, "n ..."]:
    """`function(model, x)` over all inputs, stored ones (uint8) included, as float64 on the CPU."""
    device = model.device
    with torch.no_grad():
        starts = range(0, len(inputs), batch_size)
        parts = [function(model, to_box(inputs[i : i + batch_size].to(device))).cpu().double() for i in starts]
    return torch.cat(parts).numpy()
