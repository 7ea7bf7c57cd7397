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


@contextmanager
def frozen(model: EnergyClassifier) -> Iterator[None]:
    """Inside, every module is in evaluation mode and no parameter can receive a gradient; afterwards all is as before.

    Modes are kept per module, because a network may train with some of its layers frozen.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        model.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


def device_of(model: EnergyClassifier) -> torch.device:
    """Where the model's parameters are; the CPU for a model without parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def in_batches(
    function: Callable[[EnergyClassifier, Tensor], Tensor], model: EnergyClassifier, inputs: Tensor, batch_size: int
) -> Float[np.ndarray, "n ..."]:
    """`function(model, x)` over all inputs, stored ones (uint8) included, as float64 on the CPU."""
    device = device_of(model)
    with torch.no_grad():
        starts = range(0, len(inputs), batch_size)
        parts = [function(model, to_box(inputs[i : i + batch_size].to(device))).cpu().double() for i in starts]
    return torch.cat(parts).numpy()
