"""Where chains start: uniform noise, a Gaussian per class, or the data itself.

A start is a function (labels (n,), rng) -> x (n, ...): one starting point per label, on the labels' device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jemstone.errors import DataError
from jemstone.sampling.kernels import Box

Initial = Callable[[Tensor, torch.Generator], Tensor]

EXACT_DIMENSION = 1024
"""Up to this many input dimensions a class Gaussian keeps its whole covariance; beyond, a low-rank one."""

STANDARDISED_BOX: Box = (-4.0, 4.0)
"""Where uniform starts lie for inputs without a box of their own (vectors in standardised units)."""


def uniform(input_shape: tuple[int, ...], box: Box | None) -> Initial:
    """Uniform noise in the box, whatever the label (JEM section 4). Without a box: within four standard deviations."""
    low, high = box or STANDARDISED_BOX

    def start(labels: Tensor, rng: torch.Generator) -> Tensor:
        unit = torch.rand((len(labels), *input_shape), generator=rng, device=labels.device)
        return unit * (high - low) + low

    return start


def from_data(inputs: Float[Tensor, "n ..."], labels: Int[Tensor, " n"], num_classes: int) -> Initial:
    """A random training example of each label's class: the start of contrastive divergence (Hinton 2002)."""
    members = [torch.nonzero(labels == label).squeeze(1) for label in range(num_classes)]
    _require_members(members)

    def start(labels: Tensor, rng: torch.Generator) -> Tensor:
        position = torch.rand(len(labels), generator=rng, device=labels.device)
        chosen = [members[label][int(u * len(members[label]))] for label, u in zip(labels.tolist(), position.tolist())]  # noqa: B905
        return inputs[torch.stack(chosen)].to(labels.device, copy=True)

    return start


@dataclass(frozen=True)
class ClassGaussian:
    """The informative start of JEM++: N(mu_c, Sigma_c) for each class c, clamped to the box.

    x = mean_c + factor_c z + residual_c * e with z, e standard normal, so Sigma_c = factor factor^T + residual^2.
    """

    mean: Float[Tensor, "k d"]
    factor: Float[Tensor, "k d r"]
    residual: Float[Tensor, "k d"]
    input_shape: tuple[int, ...]
    box: Box | None

    @classmethod
    def fit(
        cls,
        inputs: Float[Tensor, "n ..."],
        labels: Int[Tensor, " n"],
        num_classes: int,
        *,
        box: Box | None,
        rank: int = 128,
        ridge: float = 1e-4,
    ) -> ClassGaussian:
        """Estimate mean and covariance of every class; `ridge` is added to each variance, as in JEM++.

        Inputs of at most EXACT_DIMENSION dimensions keep the whole covariance. Beyond, the `rank` leading
        directions are kept and what they leave of each pixel's variance is added back independently.
        """
        flat = inputs.flatten(1).float()
        dimension = flat.shape[1]
        members = [flat[labels == label] for label in range(num_classes)]
        _require_members(members)
        means, factors, residuals = [], [], []
        for x in members:
            mean = x.mean(dim=0)
            centred = (x - mean) / max(len(x) - 1, 1) ** 0.5
            if dimension <= EXACT_DIMENSION:
                covariance = centred.T.double() @ centred.double()
                covariance.diagonal().add_(ridge)
                factor = torch.linalg.cholesky(covariance).float()
                residual = torch.zeros(dimension)
            else:
                factor, residual = _low_rank(centred, rank, ridge)
            means.append(mean)
            factors.append(factor)
            residuals.append(residual)
        shape = tuple(inputs.shape[1:])
        return cls(torch.stack(means), torch.stack(factors), torch.stack(residuals), shape, box)

    def __call__(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """One draw per label, (n, *input_shape)."""
        z = torch.randn(len(labels), self.factor.shape[2], generator=rng, device=labels.device)
        e = torch.randn(len(labels), self.mean.shape[1], generator=rng, device=labels.device)
        x = self.mean[labels] + self.residual[labels] * e
        for label in set(labels.tolist()):  # class by class: gathering a factor per chain would copy it n times
            rows = labels == label
            x[rows] += z[rows] @ self.factor[label].T
        x = x.view(len(labels), *self.input_shape)
        return x if self.box is None else x.clamp(*self.box)

    def reduced(self, rank: int) -> ClassGaussian:
        """The same variances of every entry, with covariances of the `rank` leading directions alone; exact if few."""
        if self.factor.shape[2] <= rank:
            return self
        directions, scale, _ = torch.linalg.svd(self.factor.double(), full_matrices=False)
        factor = directions[:, :, :rank] * scale[:, None, :rank]
        left = self.factor.double().square().sum(dim=2) - factor.square().sum(dim=2)
        residual = (self.residual.double().square() + left.clamp(min=0)).sqrt()
        return ClassGaussian(self.mean, factor.float().contiguous(), residual.float(), self.input_shape, self.box)

    def to(self, device: torch.device) -> ClassGaussian:
        """The same distribution with its tensors on `device`."""
        tensors = (self.mean.to(device), self.factor.to(device), self.residual.to(device))
        return ClassGaussian(*tensors, self.input_shape, self.box)


def _low_rank(centred: Tensor, rank: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Leading directions of centred^T centred, scaled, and the standard deviation that they leave to each entry."""
    with torch.random.fork_rng(devices=[]):  # svd_lowrank draws from the global generator
        torch.manual_seed(0)
        _, scale, directions = torch.svd_lowrank(centred, q=min(rank, *centred.shape), niter=4)
    factor = directions * scale
    if factor.shape[1] < rank:  # a class with few examples: pad, so that all classes stack
        factor = torch.nn.functional.pad(factor, (0, rank - factor.shape[1]))
    left = (centred.square().sum(dim=0) - factor.square().sum(dim=1)).clamp(min=0)
    return factor, (left + ridge).sqrt()


def _require_members(members: list[Tensor]) -> None:
    for label, x in enumerate(members):
        if len(x) == 0:
            raise DataError(f"Class {label} has no labelled training example to start chains from.")
