"""The state of a network that is not its weights: modes, and the statistics of BatchNorm, kept and of the moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from jemstone.networks.layers import SeparateBatchNorm2d


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


def train_mode(model: nn.Module, *, frozen_norms: bool) -> None:
    """Train mode for every module, except, if `frozen_norms`, the BatchNorm layers.

    These are then in evaluation mode, as in fine-tuning: their running averages normalise and do not move, and the
    energy of one input does not depend on its batch. Their scales and shifts are trained all the same.
    """
    model.train()
    if frozen_norms:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def moving_statistics(model: nn.Module) -> list[Tensor]:
    """The running averages (not the counts) that a forward pass of `model` moves in its present modes."""
    return [
        buffer
        for layer in model.modules()
        if isinstance(layer, _NormBase) and layer.track_running_stats and layer.training
        for buffer in layer.buffers(recurse=False)
        if buffer.is_floating_point()
    ]


@torch.no_grad()
def dry_run(model: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """What `model` makes of two inputs of zeros where it is, in evaluation mode: to see whether it can, and what of."""
    parameter = next(model.parameters(), None)
    with in_mode(model, training=False):
        out: Tensor = model(torch.zeros(2, *input_shape, device=None if parameter is None else parameter.device))
    return out


@contextmanager
def running_statistics_held(model: nn.Module) -> Iterator[None]:
    """Forward passes inside use statistics as the mode says, and leave the running averages as they are.

    Data moves these averages, chains and negatives do not: in eval mode a network is normalised by them, and what it
    is evaluated on is data. Averages that had also seen negatives would belong to neither. Layers that keep two sets
    (SeparateBatchNorm2d) hold both.
    """
    layers = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    tracked = [
        buffer
        for layer in layers
        for name, buffer in layer.named_buffers(recurse=False)
        if name.endswith("batches_tracked")
    ]
    counts = [buffer.clone() for buffer in tracked]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for buffer, count in zip(tracked, counts, strict=True):
            buffer.copy_(count)


@contextmanager
def statistics_of_negatives(model: nn.Module) -> Iterator[None]:
    """Forward passes inside use and move the running statistics of negatives, where `model` keeps them apart.

    Afterwards every SeparateBatchNorm2d is as it was. For a model without such layers nothing changes.
    """
    layers = [module for module in model.modules() if isinstance(module, SeparateBatchNorm2d)]
    before = [layer.of_negatives for layer in layers]
    for layer in layers:
        layer.of_negatives = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.of_negatives = value


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


class ChannelStatistics(NamedTuple):
    """What one batch looked like where it entered one layer, channel by channel: over all inputs and positions."""

    mean: Float[Tensor, " c"]
    variance: Float[Tensor, " c"]
    """Divided by `size`, not by `size` - 1: what BatchNorm normalises by in train mode."""
    size: int
    """The number of values in each channel."""


FeatureStatistics = dict[str, list[ChannelStatistics]]
"""By the name of a BatchNorm layer in its model, one entry for each forward pass."""


@contextmanager
def statistics_recorded(model: nn.Module) -> Iterator[FeatureStatistics]:
    """Record the statistics of what enters each BatchNorm layer of `model`, in every forward pass inside.

    The dictionary fills as the passes are made; it stays empty for a model without BatchNorm. Float32, no gradient,
    no device synchronisation; one pass over the features of each layer.
    """
    recorded: FeatureStatistics = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        @torch.no_grad()
        def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].float()  # under autocast features have 8 bits of mantissa
            axes = [axis for axis in range(x.ndim) if axis != 1]
            variance, mean = torch.var_mean(x, dim=axes, correction=0)
            entry = ChannelStatistics(mean, variance, x.numel() // x.shape[1])
            recorded.setdefault(name, []).append(entry)

        return record

    layers = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    handles = [layer.register_forward_pre_hook(recorder(name)) for name, layer in layers.items()]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def statistics_distance(a: FeatureStatistics, b: FeatureStatistics, eps: float = 1e-5) -> Float[Tensor, ""]:
    """How far apart two batches lie in the features that BatchNorm normalises; a scalar without gradient, >= 0.

    The mean over all channels of all layers of (mean_a - mean_b)^2 / (variance_a + variance_b + eps): squared,
    symmetric, and free of the features' units. The forward passes of one side count as one batch. Two large batches of
    one distribution are close to 0; at 1, the means of a typical channel lie apart by as much as two values differ by
    chance. Zero, on the CPU, for a model without BatchNorm. Layers that only one side passed through (stochastic
    depth) are left out.
    """
    both = [name for name in a if name in b]
    if not both:
        return torch.zeros(())
    mean_a, variance_a = _pooled({name: a[name] for name in both})
    mean_b, variance_b = _pooled({name: b[name] for name in both})
    return ((mean_a - mean_b).square() / (variance_a + variance_b + eps)).mean()


def _pooled(statistics: FeatureStatistics) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Mean and variance of all forward passes together, the channels of all layers in one vector."""
    means, variances = [], []
    for name in sorted(statistics):
        parts = statistics[name]
        total = sum(part.size for part in parts)
        # Shares are numbers of the host: as a tensor they would have to be sent to the device.
        mean = torch.stack([part.size / total * part.mean for part in parts]).sum(dim=0)
        spread = [part.size / total * (part.variance + (part.mean - mean).square()) for part in parts]
        means.append(mean)
        variances.append(torch.stack(spread).sum(dim=0))
    return torch.cat(means), torch.cat(variances)
