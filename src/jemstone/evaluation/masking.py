"""Is the model robust, or does the attack fail?  Three signs of masked gradients (Athalye, Carlini and Wagner, 2018).

None of them proves that gradients are fine; each of them shows that they are not.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest
from torch import Tensor

from jemstone.data.dataset import to_box_radius
from jemstone.energy import EnergyClassifier
from jemstone.evaluation.intervals import Result
from jemstone.evaluation.section import Warned
from jemstone.rng import generator
from jemstone.training.adversarial import log_odds_loss

ZERO_SHARE = 0.01
"""Share of inputs without a usable gradient from which on the attack is not to be trusted."""
LEVEL = 0.01
"""One-sided p-value below which the black box beats the white box."""
FEW = 100
"""Attacked images below which an interval is too wide for a claim."""
HUGE_FLOOR = 0.05
"""Accuracy that a working attack stays below at a huge radius."""


def gradient_missing(
    model: EnergyClassifier, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], batch_size: int
) -> Bool[Tensor, " n"]:
    """Where the gradient in x of the attack's loss is zero in every entry, or not finite in some; on the CPU."""
    device = model.device
    parts = [torch.zeros(0, dtype=torch.bool)]
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        at = x[part].detach().to(device).requires_grad_()
        with torch.enable_grad():
            # A model that cuts the path from its input has gradient 0; without the last term it would be an error.
            loss = log_odds_loss(model(at), y[part].to(device)).sum() + 0 * at.sum()
            (grad,) = torch.autograd.grad(loss, at)
        grad = grad.flatten(1)
        parts.append(((grad == 0).all(dim=1) | ~grad.isfinite().all(dim=1)).cpu())
    return torch.cat(parts)


def random_search(
    model: EnergyClassifier,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    eps: float,
    queries: int,
    box: tuple[float, float],
    seed: int,
    batch_size: int,
) -> Float[Tensor, "n ..."]:
    """The weakest black box: `queries` random corners of the L-infinity ball, cut off at the box; the first that
    breaks an input, or the input itself.
    """
    device, radius = model.device, to_box_radius(eps, box)
    moved = x.clone()
    for start in range(0, len(x), batch_size):
        rng = generator(seed, "random-search", str(eps), start)
        alive = torch.arange(start, min(start + batch_size, len(x)))
        for _ in range(queries):
            signs = torch.randint(2, x[alive].shape, generator=rng) * 2.0 - 1
            tried = (x[alive] + radius * signs).clamp(*box)
            with torch.no_grad():
                hit = (model(tried.to(device)).argmax(dim=1).cpu() != y[alive]).nonzero().flatten()
            moved[alive[hit]] = tried[hit]
            keep = torch.ones(len(alive), dtype=torch.bool)
            keep[hit] = False
            alive = alive[keep]
            if len(alive) == 0:
                break
    return moved


def zero_gradient(missing: int, n: int) -> list[Warned]:
    """A warning where more than `ZERO_SHARE` of `n` correctly classified inputs lack a gradient."""
    if n == 0 or not missing / n > ZERO_SHARE:
        return []
    text = (
        f"The gradient of the attack's loss is exactly 0 or not finite on {missing} of {n} correctly classified inputs "
        f"({missing / n:.1%})."
    )
    return [Warned("zero-gradient", text)]


def black_box_beats_white_box(
    white: Bool[Tensor, " n"], black: Bool[Tensor, " n"], eps: float, queries: int
) -> list[Warned]:
    """A warning where the black box alone breaks more inputs than PGD alone: `white` and `black` say what stands.

    Exact sign test on the inputs that exactly one of them breaks (McNemar 1947), one-sided, p < `LEVEL`.
    """
    only_black, only_white = int((white & ~black).sum()), int((black & ~white).sum())
    if only_black == 0:
        return []
    p = float(binomtest(only_black, only_black + only_white, 0.5, alternative="greater").pvalue)
    if not p < LEVEL:
        return []
    text = (
        f"At L-infinity {eps:g}, {queries} queries without gradients break {only_black} of {len(white)} images that "
        f"PGD does not break, and PGD breaks {only_white} that they do not (sign test, p = {p:.2g})."
    )
    return [Warned("black-box-beats-white-box", text)]


def survives_huge_eps(accuracy: Result, eps: float) -> list[Warned]:
    """A warning where the exact lower bound of the accuracy under PGD at a huge radius is above `HUGE_FLOOR`."""
    if not accuracy.low > HUGE_FLOOR:
        return []
    text = (
        f"PGD at L-infinity {eps:g} leaves an accuracy of {accuracy.value:.1%} (95 % interval {accuracy.low:.1%} to "
        f"{accuracy.high:.1%}, n = {accuracy.n}); a working attack leaves next to nothing."
    )
    return [Warned("survives-huge-eps", text)]


def small_n(images: Mapping[str, int]) -> list[Warned]:
    """A warning where an attack, by its name, is made on fewer than `FEW` images; 0 stands for none made."""
    few = [f"{name} on {n} images" for name, n in images.items() if 0 < n < FEW]
    return [Warned("small-n", f"{', '.join(few)}: fewer than {FEW}.")] if few else []
