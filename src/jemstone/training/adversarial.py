"""Adversarial examples to train on: projected gradient ascent in an L2 ball (Madry et al., ICLR 2018)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jemstone.data.dataset import to_box_radius
from jemstone.energy import EnergyClassifier, joint_energy, marginal_energy
from jemstone.errors import ConfigError
from jemstone.sampling.kernels import Box, unit_vectors

STEP = 2.5
"""Step size times steps, in units of the radius: enough to reach any point of the ball from any start in it."""


def adversarial_examples(
    model: EnergyClassifier,
    x: Float[Tensor, "b ..."],
    y: Int[Tensor, " b"],
    *,
    radius: float,
    steps: int,
    rng: torch.Generator,
    box: Box | None,
    step_size: float | None = None,
) -> Float[Tensor, "b ..."]:
    """Inputs within `radius` of `x` (b, ...) that `model` takes for another class than `y` (b,): x', detached.

    Starts uniformly in the ball ||x' - x||_2 <= radius, then `steps` times: ascend the cross-entropy at y by a step of
    length `step_size` along its gradient, project onto the ball, clamp to the box. `radius` and `step_size` (2.5 radius
    / steps if not given) belong to [0, 1] pixels where there is a box, and are in the data's own units where there is
    none. Augmentation noise may have carried a pixel of x off the box: it may stay where it is, but move no further
    out. Rows with y < 0, unlabelled, come back as they are.

    Only x is differentiated: parameters receive no gradient. The model is attacked in the mode it is in, and in train
    mode BatchNorm counts these passes: wrap the call in `running_statistics_held`. Randomness comes from `rng`, on the
    device of x. A gradient that is not finite makes its row NaN.

    The loss ascended is log sum_{j != y} exp f_j - f_y. Cross-entropy is log(1 + exp(.)) of it, so normalised steps are
    the same, except that this one does not vanish where the softmax saturates, as large logits make it do. (Where rows
    see one another, in BatchNorm's train mode, the losses of a batch also weigh alike in it instead of by 1 - p(y|x).)

    Raises ConfigError for a radius or a step size that is not positive and finite, and for fewer than one step.
    """
    if steps < 1:
        raise ConfigError(
            f"An attack needs at least one step, got steps={steps}. To train on clean inputs, leave it out."
        )
    step_size = STEP * radius / steps if step_size is None else step_size
    for name, value in (("radius", radius), ("step_size", step_size)):
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} of an attack must be positive and finite, in [0, 1] pixels; got {value}.")
    x = x.detach()
    radius, step_size = to_box_radius(radius, box), to_box_radius(step_size, box)
    known = (y >= 0).view(-1, *[1] * (x.ndim - 1))

    def admissible(moved: Tensor) -> Tensor:
        moved = x + _projected(moved - x, radius)
        if box is not None:
            moved = moved.clamp(x.clamp(max=box[0]), x.clamp(min=box[1]))
        return torch.where(known, moved, x)

    moved = admissible(x + radius * _uniform_in_ball(x, rng))
    for _ in range(steps):
        moved = admissible(moved + step_size * unit_vectors(_loss_gradient(model, moved, y)))
    return moved


def log_odds_loss(logits: Float[Tensor, "b k"], y: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """log sum_{j != y} exp f_j - f_y per row, nats: the log odds against class y, which an attack ascends."""
    rest = -marginal_energy(logits.scatter(1, y[:, None], -math.inf))
    return rest + joint_energy(logits, y)


def _loss_gradient(model: EnergyClassifier, x: Tensor, y: Int[Tensor, " b"]) -> Tensor:
    """Gradient in x of log sum_{j != y} exp f_j - f_y, summed over the rows that have a label."""
    label = y.clamp(min=0)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        # With BatchNorm in train mode every row has a say in every loss: those of unlabelled rows must not count.
        loss = torch.where(y >= 0, log_odds_loss(model(x), label), 0).sum()
        (grad,) = torch.autograd.grad(loss, x)
    return grad


def _uniform_in_ball(x: Tensor, rng: torch.Generator) -> Tensor:
    """One point of the unit ball per row of x: a Gaussian's direction, at distance u^(1/d)."""
    direction = unit_vectors(torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype))
    u = torch.rand(len(x), *[1] * (x.ndim - 1), generator=rng, device=x.device, dtype=x.dtype)
    return direction * u ** (1 / math.prod(x.shape[1:]))


def _projected(v: Tensor, radius: float) -> Tensor:
    """The nearest point to v (b, ...) of the ball of `radius` around 0, row by row."""
    norm: Tensor = torch.linalg.vector_norm(v.flatten(1), dim=1).view(-1, *[1] * (v.ndim - 1))
    return v * (radius / norm).clamp(max=1)  # radius / 0 is inf: such a row stays
