"""Does the model know what it has not seen?  Scores, ready-made foreign inputs, and how well the one tells the other.

A score is higher for in-distribution inputs, always, and so the positive class of every metric here is
"in-distribution". Scores are ranked as they are: squashing energies through a sigmoid would tie most of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from jemstone.data.dataset import to_box
from jemstone.energy import EnergyClassifier, energy_gradient
from jemstone.errors import ConfigError, DataError
from jemstone.evaluation.intervals import Result, bootstrap_two, exact_proportion
from jemstone.rng import generator

Score = Callable[[EnergyClassifier, Tensor], Tensor]
"""(model, x (b, ...)) -> (b,), higher = more in-distribution."""


def log_density(model: EnergyClassifier, x: Tensor) -> Float[Tensor, " b"]:
    """log p(x) + log Z = logsumexp_y f_y(x), nats. On a plain classifier: the energy score (Liu et al., 2020)."""
    return model.log_density(x)


def max_probability(model: EnergyClassifier, x: Tensor) -> Float[Tensor, " b"]:
    """max_y p(y|x) (Hendrycks and Gimpel, ICLR 2017), in float64: in float32 all confident inputs tie at 1."""
    logits: Tensor = model(x)
    return logits.cpu().double().softmax(dim=1).amax(dim=1)


def approximate_mass(model: EnergyClassifier, x: Tensor) -> Float[Tensor, " b"]:
    """-||grad_x log p(x)||_2 (JEM, Grathwohl et al., ICLR 2020, eq. 10), nats per unit of x.

    A typical point lies in a region of high mass, where the density is flat; an isolated mode is dense and steep.
    """
    _, grad = energy_gradient(model)(x)
    steepness: Tensor = torch.linalg.vector_norm(grad.flatten(1), dim=1)
    return -steepness


SCORES: dict[str, Score] = {
    "log_density": log_density,
    "max_probability": max_probability,
    "approximate_mass": approximate_mass,
}


def detection(
    prefix: str,
    inside: Float[np.ndarray, " m"],
    outside: Float[np.ndarray, " n"],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> list[Result]:
    """AUROC, AUPR and FPR at 95 % TPR of in- against out-of-distribution scores, named `prefix/auroc` and so on.

    Bootstrap intervals, the two samples resampled independently, also where one was made from the other. Where no
    resample can move a value, the exact bound of a proportion stands in: an FPR of 0 or 1 is one of n, and samples
    that do not overlap order min(m, n) disjoint pairs correctly. AUPR has no such bound, so a perfect one has an
    interval of zero width.
    """
    if not (len(inside) and len(outside) and np.isfinite(inside).all() and np.isfinite(outside).all()):
        raise DataError(f"{prefix}: scores must be finite and not empty; check the inputs and the model's logits.")
    # All three metrics depend on the scores through their order only. One sort, and every resample is two histograms.
    distinct, rank = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    a, b = rank[: len(inside)], rank[len(inside) :]

    def measured(name: str, metric: Callable[..., float]) -> Result:
        def statistic(a: Int[np.ndarray, " m"], b: Int[np.ndarray, " n"]) -> float:
            return metric(np.bincount(a, minlength=len(distinct)), np.bincount(b, minlength=len(distinct)))

        return bootstrap_two(f"{prefix}/{name}", statistic, a, b, seed=seed, resamples=resamples)

    area = measured("auroc", _auroc)
    if area.value in (0.0, 1.0):
        pairs = min(len(a), len(b))
        area = exact_proportion(area.name, int(area.value) * pairs, pairs)._replace(n=area.n)
    accepted = measured("fpr95", _fpr95)
    if accepted.value in (0.0, 1.0):
        accepted = exact_proportion(accepted.name, int(accepted.value) * len(b), len(b))._replace(n=accepted.n)
    return [area, measured("aupr", _aupr), accepted]


def auroc(inside: Float[np.ndarray, " m"], outside: Float[np.ndarray, " n"]) -> float:
    """P(a random inside score > a random outside score) + P(equal) / 2."""
    return _auroc(*_histograms(inside, outside))


def aupr(inside: Float[np.ndarray, " m"], outside: Float[np.ndarray, " n"]) -> float:
    """Average precision, sum_t (recall_t - recall_{t-1}) precision_t over thresholds, in-distribution as positive.

    Unlike AUROC it depends on the sizes of the two samples: a score that knows nothing gets m / (m + n).
    """
    return _aupr(*_histograms(inside, outside))


def fpr95(inside: Float[np.ndarray, " m"], outside: Float[np.ndarray, " n"]) -> float:
    """Share of outside inputs accepted when at least 95 % of inside inputs are.

    Accepted means score >= t, where t is the largest inside score for which at least ceil(0.95 m) of the m inside
    scores are >= t. Ties are never split: whatever equals t is accepted on both sides.
    """
    return _fpr95(*_histograms(inside, outside))


def _histograms(
    inside: Float[np.ndarray, " m"], outside: Float[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " u"], Int[np.ndarray, " u"]]:
    distinct, rank = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    counts = [np.bincount(part, minlength=len(distinct)) for part in (rank[: len(inside)], rank[len(inside) :])]
    return counts[0], counts[1]


def _auroc(positive: Int[np.ndarray, " u"], negative: Int[np.ndarray, " u"]) -> float:
    below = np.cumsum(negative) - negative
    wins = int(positive @ (2 * below + negative))  # twice the Mann-Whitney U, in integers: exact
    return wins / (2 * int(positive.sum()) * int(negative.sum()))


def _aupr(positive: Int[np.ndarray, " u"], negative: Int[np.ndarray, " u"]) -> float:
    accepted, hits = np.cumsum((positive + negative)[::-1]), np.cumsum(positive[::-1])
    # Not a dot product: BLAS would start threads for it, thousands of times.
    return float((positive[::-1] * (hits / np.maximum(accepted, 1))).sum() / positive.sum())


def _fpr95(positive: Int[np.ndarray, " u"], negative: Int[np.ndarray, " u"]) -> float:
    needed = -(-95 * int(positive.sum()) // 100)  # ceil in integers: 0.95 * n is not exact in binary
    threshold = int(np.searchsorted(np.cumsum(positive[::-1]), needed))
    return int(negative[::-1][: threshold + 1].sum()) / int(negative.sum())


def builtin_ood_sets(
    test_inputs: Tensor, labels: Int[Tensor, " n"], box: tuple[float, float] | None, seed: int = 0
) -> dict[str, Tensor]:
    """Foreign inputs made from the data itself, each of the shape of `test_inputs` (n, ...), in model units.

    In a box: `noise` uniform in it; `constant`, one uniform value per channel and image; `inverted`, reflected in the
    box's centre; `rotated` by 90 degrees, for square images only; `interpolated`. Vectors have no box: `noise` uniform
    within 4 standard deviations of each column's mean; `shuffled`, each column permuted over the examples, which keeps
    every marginal and destroys all dependence (left out for a single column); `interpolated`.

    `interpolated` is the mean of a test input and a random one of a different class; left out when all labels agree.
    """
    x = to_box(test_inputs)
    if len(x) < 2 or len(labels) != len(x):
        raise ConfigError(f"Needs two or more inputs with one label each, got {len(x)} and {len(labels)} labels.")

    def uniform(name: str, shape: torch.Size | list[int]) -> Tensor:
        return torch.rand(shape, generator=generator(seed, "ood", name))

    sets: dict[str, Tensor] = {}
    if box is not None:
        low, high = box
        sets["noise"] = low + (high - low) * uniform("noise", x.shape)
        flat = low + (high - low) * uniform("constant", [*x.shape[:2]] + [1] * (x.ndim - 2))
        sets["constant"] = flat.expand(x.shape).contiguous()
        sets["inverted"] = low + high - x
        if x.shape[-2] == x.shape[-1]:
            sets["rotated"] = x.rot90(dims=(-2, -1)).contiguous()
    else:
        mean, deviation = x.mean(dim=0), x.std(dim=0)
        sets["noise"] = mean + 4 * deviation * (2 * uniform("noise", x.shape) - 1)
        if x[0].numel() > 1:
            columns = x.flatten(1)
            order = uniform("shuffled", columns.shape).argsort(dim=0)
            sets["shuffled"] = columns.gather(0, order).reshape(x.shape)
    partner = _of_another_class(labels, uniform("interpolated", labels.shape))
    if partner is not None:
        sets["interpolated"] = (x + x[partner]) / 2
    return sets


def _of_another_class(labels: Int[Tensor, " n"], u: Float[Tensor, " n"]) -> Int[Tensor, " n"] | None:
    """For each example the index of one drawn uniformly from all other classes; None if there is one class only."""
    ordered, order = labels.sort(stable=True)
    first = torch.searchsorted(ordered, labels)
    size = torch.searchsorted(ordered, labels, right=True) - first
    others = len(labels) - size
    if (others == 0).any():
        return None
    position = torch.minimum((u * others).long(), others - 1)
    return order[torch.where(position < first, position, position + size)]
