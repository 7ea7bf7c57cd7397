"""The validation split: what is watched during training."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from torch import nn

from jemstone.data import Split, to_box
from jemstone.data.batches import pooled
from jemstone.energy import EnergyClassifier
from jemstone.networks.modes import in_mode
from jemstone.training.ranks import averaged


@torch.no_grad()
def validate(
    model: EnergyClassifier, split: Split, fabric: Fabric, batch_size: int = 512, factor: int = 1
) -> dict[str, float]:
    """Accuracy and NLL (nats) on a split, in eval mode, on images averaged over `factor` x `factor` pixels.

    Each rank takes its share of the examples.
    """
    inputs, labels = (part[fabric.global_rank :: fabric.world_size] for part in (split.inputs, split.labels))
    right, nll = 0.0, 0.0
    with in_mode(model, training=False):
        for x, y in zip(torch.split(inputs, batch_size), torch.split(labels, batch_size), strict=True):
            if len(x) == 0:  # more ranks than examples
                continue
            logits = model(pooled(fabric.to_device(to_box(x)), factor))
            y = fabric.to_device(y)
            nll += nn.functional.cross_entropy(logits, y, reduction="sum").item()
            right += (logits.argmax(dim=1) == y).sum().item()
    if fabric.world_size > 1:
        sums = averaged(torch.tensor([right, nll], dtype=torch.float64, device=fabric.device), fabric)
        right, nll = (sums * fabric.world_size).tolist()
    return {"accuracy": right / len(split), "nll": nll / len(split)}
