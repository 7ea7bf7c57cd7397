"""The state of a network that is not its weights: modes, and the running averages of BatchNorm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Inside, every module is in train or in evaluation mode; afterwards each is as it was.

    Modes are kept per module, because a network may be used with some of its layers frozen.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def running_statistics_held(model: nn.Module) -> Iterator[None]:
    """Forward passes inside use statistics as the mode says, and leave the running averages as they are.

    Data moves these averages, chains and negatives do not: in eval mode a network is normalised by them, and what it
    is evaluated on is data. Averages that had also seen negatives would belong to neither.
    """
    layers = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    counts = [None if layer.num_batches_tracked is None else layer.num_batches_tracked.clone() for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum, count in zip(layers, momenta, counts, strict=True):
            layer.momentum = momentum
            if layer.num_batches_tracked is not None and count is not None:
                layer.num_batches_tracked.copy_(count)


@contextmanager
def buffers_restored_on_error(model: nn.Module) -> Iterator[None]:
    """A step that fails takes back what its forward passes did to the model's buffers."""
    before = [buffer.detach().clone() for buffer in model.buffers()]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), before, strict=True):
                buffer.copy_(value)
        raise
