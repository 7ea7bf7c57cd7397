"""Projected gradient descent (Madry et al., ICLR 2018) in L-infinity and L2, by foolbox; and what counts as broken.

Radii belong to images in [0, 1], whatever range the model works in; `to_box_radius` is the only place that converts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jemstone.data.dataset import to_box, to_box_radius
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError, DataError, MissingExtra
from jemstone.evaluation.forward import in_batches
from jemstone.rng import seeded
from jemstone.training.adversarial import STEP, log_odds_loss

Norm = Literal["linf", "l2"]
Breaks = Callable[[Tensor, Tensor, float], Tensor]
"""(x (b, ...), y (b,), radius in [0, 1] pixels) -> which inputs an attack breaks, bool (b,) on the CPU."""

TOLERANCE = 1e-5
"""How far beyond the ball and the box rounding may carry an attack, in [0, 1] pixels."""


def to_attack(inputs: Tensor, labels: Int[Tensor, " n"], box: tuple[float, float]) -> Float[Tensor, "n ..."]:
    """Inputs (n, ...), stored ones included, in model units on the CPU; DataError where they cannot be attacked."""
    x = to_box(inputs).cpu()
    if len(x) == 0 or len(x) != len(labels):
        raise DataError(f"An attack needs inputs with one label each, got {len(x)} inputs and {len(labels)} labels.")
    if not bool(((x >= box[0]) & (x <= box[1])).all()):
        raise DataError(f"Inputs to attack must lie in {box}; found values from {float(x.min())} to {float(x.max())}.")
    return x


def ascending(eps: Sequence[float]) -> list[float]:
    """Radii in the order in which they are attacked, each once; ConfigError for one that is not positive and finite."""
    if not all(0 < e < math.inf for e in eps):
        raise ConfigError(f"Attack radii must be positive (0 is always measured), in [0, 1] pixels; got {list(eps)}.")
    return sorted({float(e) for e in eps})


def right(
    model: EnergyClassifier, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], batch_size: int
) -> Bool[Tensor, " n"]:
    """Which inputs the model classifies correctly, on the CPU."""
    predicted = in_batches(lambda model, x: model(x).argmax(dim=1), model, x, batch_size)
    return torch.from_numpy(predicted) == y.cpu()


def broken(
    model: EnergyClassifier,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    moved: Float[Tensor, "n ..."],
    *,
    norm: Norm,
    eps: float,
    box: tuple[float, float],
    batch_size: int,
) -> Bool[Tensor, " n"]:
    """Which of `moved` are misclassified and admissible: within `eps` of x and in the box, up to `TOLERANCE`.

    Nothing that an attack says of itself is believed. A point that is not finite breaks nothing.
    """
    far = (moved.double() - x.double()).flatten(1)
    size = far.abs().amax(dim=1) if norm == "linf" else torch.linalg.vector_norm(far, dim=1)
    slack = to_box_radius(TOLERANCE, box)
    within = ((moved >= box[0] - slack) & (moved <= box[1] + slack)).flatten(1).all(dim=1)
    near: Tensor = size <= to_box_radius(eps, box) + slack
    return near & within & ~right(model, moved, y, batch_size)


def judged(
    attack: Callable[..., Tensor],
    model: EnergyClassifier,
    norm: Norm,
    *,
    box: tuple[float, float],
    seed: int,
    batch_size: int,
) -> Breaks:
    """An attack that returns points, as the function that tells which of them really break their inputs."""

    def breaks(x: Tensor, y: Tensor, eps: float) -> Tensor:
        moved = attack(model, x, y, eps=eps, box=box, seed=seed, batch_size=batch_size)
        return broken(model, x, y, moved, norm=norm, eps=eps, box=box, batch_size=batch_size)

    return breaks


def standing_under(
    breaks: Breaks,
    clean: Bool[Tensor, " n"],
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    radii: Sequence[float],
) -> Bool[Tensor, "rows n"]:
    """Which inputs still stand: the row `clean` first, then one row per radius, in ascending order.

    What is broken at one radius counts as broken at every larger one, where the same perturbation is admissible: only
    those that stood before are attacked again.
    """
    alive = clean.clone()
    rows = [clean]
    for eps in radii:
        if alive.any():
            alive[alive.clone()] = ~breaks(x[alive], y[alive], eps)
        rows.append(alive.clone())
    return torch.stack(rows)


def pgd_breaks(
    model: EnergyClassifier,
    norm: Norm,
    *,
    box: tuple[float, float],
    steps: int,
    restarts: int = 1,
    seed: int = 0,
    batch_size: int = 256,
) -> Breaks:
    """PGD with `restarts` independent random starts. An input that any of them breaks is broken and left alone."""
    if steps < 1 or restarts < 1:
        raise ConfigError(f"PGD needs at least one step and one start, got steps={steps}, restarts={restarts}.")

    def breaks(x: Tensor, y: Tensor, eps: float) -> Tensor:
        alive = torch.ones(len(x), dtype=torch.bool)
        for restart in range(restarts):
            rows = alive.nonzero().flatten()
            for start in range(0, len(rows), batch_size):
                part = rows[start : start + batch_size]
                position = ("attack", norm, str(eps), restart, start)
                moved = pgd(
                    model, x[part], y[part], norm=norm, eps=eps, box=box, steps=steps, seed=seed, position=position
                )
                alive[part] = ~broken(
                    model, x[part], y[part], moved, norm=norm, eps=eps, box=box, batch_size=batch_size
                )
        return ~alive

    return breaks


def pgd(
    model: EnergyClassifier,
    x: Float[Tensor, "b ..."],
    y: Int[Tensor, " b"],
    *,
    norm: Norm,
    eps: float,
    box: tuple[float, float],
    steps: int,
    seed: int,
    position: tuple[str | int, ...],
) -> Float[Tensor, "b ..."]:
    """The last iterate of PGD from one random start within `eps` of `x`, as one batch; on the CPU.

    `steps` steps of 2.5 eps / steps, projected onto the ball and the box. The start is drawn from the stream at
    `position`; global random state is left alone.

    The loss ascended is log sum_{j != y} exp f_j - f_y. Cross-entropy is log(1 + exp(.)) of it, so the gradients have
    the same direction and the steps are the same, except that this one does not vanish where the softmax saturates:
    energy-based models have large logits, which would otherwise pass for robustness.

    Raises MissingExtra without foolbox.
    """
    try:
        import foolbox
    except ImportError as error:
        raise MissingExtra("foolbox", "attacks") from error
    from eagerpy.astensor import astensor

    kinds = {
        "linf": foolbox.attacks.LinfProjectedGradientDescentAttack,
        "l2": foolbox.attacks.L2ProjectedGradientDescentAttack,
    }
    attack = kinds[norm](rel_stepsize=STEP / steps, steps=steps, random_start=True)
    device = model.device
    target = foolbox.PyTorchModel(model, bounds=box, device=device)  # without a device it would move the model to cuda

    def loss_of(target: Any, labels: Any) -> Callable[[Any], Any]:
        def loss(inputs: Any) -> Any:
            # A model that cuts the path from its input has gradient 0; without the last term it would be an error.
            return astensor(log_odds_loss(target(inputs).raw, labels.raw).sum() + 0 * inputs.raw.sum())

        return loss

    attack.get_loss_fn = loss_of
    # foolbox draws its random starts from torch's global generators.
    with seeded(seed, *position, device=device):
        _, moved, _ = attack(target, x.to(device), y.to(device), epsilons=to_box_radius(eps, box))
    # Along a gradient that is not finite there is nowhere to go.
    return torch.where(moved.isfinite(), moved, x.to(device)).cpu()
