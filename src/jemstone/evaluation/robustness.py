"""Accuracy under attack: projected gradient descent (Madry et al., ICLR 2018) in L-infinity and L2, through foolbox.

Radii belong to images in [0, 1], whatever range the model works in; `to_box_radius` is the only place that converts.
This is an upper bound on robust accuracy: a stronger attack can only lower it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from jemstone.data.dataset import to_box, to_box_radius
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError, DataError, MissingExtra
from jemstone.evaluation.forward import device_of, frozen
from jemstone.evaluation.intervals import Result, exact_proportion
from jemstone.rng import generator
from jemstone.training.adversarial import STEP

Norm = Literal["linf", "l2"]


class Curve(NamedTuple):
    """Accuracy over radius: `eps` in [0, 1] pixels, starting with the clean 0; exact 95 % interval [`low`, `high`]."""

    eps: list[float]
    accuracy: list[float]
    low: list[float]
    high: list[float]


def pgd_accuracy(
    model: EnergyClassifier,
    inputs: Tensor,
    labels: Int[Tensor, " n"],
    *,
    norm: Norm,
    eps: Sequence[float],
    box: tuple[float, float],
    steps: int = 40,
    seed: int = 0,
    batch_size: int = 256,
) -> tuple[list[Result], Curve]:
    """Share of inputs (n, ...) still classified correctly under PGD, per radius: results `pgd_NORM/EPS` and the curve.

    One random start, `steps` steps of 2.5 eps / steps (Madry et al.), projected onto the ball and the box; the last
    iterate counts. An input that is misclassified at one radius, 0 included, counts as broken at every larger one,
    where the same perturbation is admissible: the curve cannot rise. Deterministic given seed and batch size; the
    global random state is left alone. The model is attacked in evaluation mode and keeps its gradients and modes.

    The loss ascended is log sum_{j != y} exp f_j - f_y. Cross-entropy is log(1 + exp(.)) of it, so the gradients have
    the same direction and the steps are the same, except that this one does not vanish where the softmax saturates:
    energy-based models have large logits, which would otherwise pass for robustness.

    Raises MissingExtra without foolbox, ConfigError for a radius that is not positive, DataError for inputs off the
    box or labels that do not fit.
    """
    if not all(0 < e < math.inf for e in eps):
        raise ConfigError(f"Attack radii must be positive (0 is always measured), in [0, 1] pixels; got {list(eps)}.")
    x = to_box(inputs)
    if len(x) == 0 or len(x) != len(labels):
        raise DataError(f"An attack needs inputs with one label each, got {len(x)} inputs and {len(labels)} labels.")
    if not bool(((x >= box[0]) & (x <= box[1])).all()):
        raise DataError(f"Inputs to attack must lie in {box}; found values from {float(x.min())} to {float(x.max())}.")
    radii = sorted({float(e) for e in eps})
    with frozen(model):
        breaks = _attack(model, norm, box, steps)
        parts = []
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            rng = generator(seed, "attack", norm, start)
            parts.append(_standing(breaks, x[part], labels[part], radii, box, rng))
    standing = torch.cat(parts, dim=1)
    counts = standing.sum(dim=1).tolist()
    every = [exact_proportion(f"pgd_{norm}/{e:g}", int(k), len(x)) for e, k in zip([0.0, *radii], counts, strict=True)]
    curve = Curve([0.0, *radii], [r.value for r in every], [r.low for r in every], [r.high for r in every])
    return every[1:], curve


def _standing(
    breaks: Callable[[Tensor, Tensor, float, int], Tensor],
    x: Tensor,
    y: Int[Tensor, " b"],
    radii: list[float],
    box: tuple[float, float],
    rng: torch.Generator,
) -> Bool[Tensor, "radii b"]:
    """Per radius, 0 first: which examples are still right. Only those that stood before are attacked again."""
    alive = torch.ones(len(y), dtype=torch.bool)
    rows = []
    for eps in [0.0, *radii]:
        seed = int(torch.randint(2**62, (), generator=rng))
        if alive.any():
            alive[alive.clone()] = ~breaks(x[alive], y[alive], to_box_radius(eps, box), seed)
        rows.append(alive.clone())
    return torch.stack(rows)


def _attack(
    model: EnergyClassifier, norm: Norm, box: tuple[float, float], steps: int
) -> Callable[[Tensor, Tensor, float, int], Tensor]:
    """(x, y, radius in box units, seed) -> which of the inputs are misclassified after the attack, on the CPU."""
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
    device = device_of(model)
    target = foolbox.PyTorchModel(model, bounds=box, device=device)  # without a device it would move the model to cuda

    def log_odds_loss(target: Any, labels: Any) -> Callable[[Any], Any]:
        def loss(inputs: Any) -> Any:
            logits, y = target(inputs).raw, labels.raw[:, None]
            rest = logits.scatter(1, y, -math.inf).logsumexp(dim=1)
            return astensor((rest - logits.gather(1, y).squeeze(1)).sum())

        return loss

    attack.get_loss_fn = log_odds_loss

    def breaks(x: Tensor, y: Tensor, radius: float, seed: int) -> Tensor:
        x, y = x.to(device), y.to(device)
        if radius == 0:
            with torch.no_grad():
                predicted: Tensor = model(x).argmax(dim=1)
            return (predicted != y).cpu()
        # foolbox draws its random starts from torch's global generators.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            _, _, success = attack(target, x, y, epsilons=radius)
        broken: Tensor = success.cpu()
        return broken

    return breaks
