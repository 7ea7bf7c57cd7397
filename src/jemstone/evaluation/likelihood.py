"""log Z, and with it what the model says of the data in absolute terms: log p(x) = -E(x) - log Z on a bounded domain.

Any logits define such a density, those of a plain classifier included. The domain is part of the claim: the box for
images; for vectors the cube that holds all data and one standard unit more. Up to three dimensions log Z is a sum over
a grid. Beyond, it is estimated by annealed importance sampling, which is too low in general, never systematically too
high: likelihoods err upwards (Neal 2001; Grosse et al. 2015).

The energy is the one that data meet in evaluation mode, everywhere: where a network normalises data and negatives by
separate statistics, those of data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from jemstone.data.dataset import to_box
from jemstone.energy import EnergyClassifier, energy_gradient
from jemstone.errors import ConfigError
from jemstone.evaluation.forward import in_batches
from jemstone.evaluation.histograms import counts
from jemstone.evaluation.intervals import Result, bootstrap
from jemstone.evaluation.quadrature import log_integral
from jemstone.evaluation.section import Common, Section, Subject, Warned, Work, subset
from jemstone.rng import seeded
from jemstone.sampling.annealed import annealed_importance, sigmoid_schedule, truncated_mixture, tuned_steps

EXACT_DIMENSION = 3
"""Up to this many dimensions log Z is a sum over a grid."""
BLOCK = 64
"""Chains that anneal together, and are kept together when an evaluation is killed."""
BINS = 40
POINTS = 100
"""Acceptance is averaged over neighbouring temperatures down to this many numbers."""


@dataclass(frozen=True)
class LikelihoodSettings:
    """The budget of log Z: `grid_points` and `tolerance` (nats) up to three dimensions; beyond, `chains` that pass
    through `temperatures` with `steps` kernel steps at each. At most `train_examples` stand for the training split.
    """

    grid_points: int = 200_000
    tolerance: float = 1e-3
    chains: int = 64
    temperatures: int = 1000
    steps: int = 1
    train_examples: int = 10_000

    def __post_init__(self) -> None:
        """Raises ConfigError for a count below its minimum or a tolerance that is not positive."""
        least = {"grid_points": 1728, "chains": 2, "temperatures": 1, "steps": 1, "train_examples": 1}
        for field, minimum in least.items():
            if not getattr(self, field) >= minimum:
                raise ConfigError(f"LikelihoodSettings.{field} must be at least {minimum}, got {getattr(self, field)}.")
        if not self.tolerance > 0:
            raise ConfigError(f"LikelihoodSettings.tolerance must be positive nats, got {self.tolerance}.")


QUICK = LikelihoodSettings(chains=32, temperatures=200, train_examples=2000)
FULL = LikelihoodSettings(chains=256, temperatures=10_000, train_examples=100_000)


class Partition(NamedTuple):
    """log Z with its interval, and how it was found."""

    log_z: Result
    figures: dict[str, Any]
    warnings: list[Warned]
    notes: list[str]


def likelihood_section(subject: Subject, settings: LikelihoodSettings, common: Common, work: Work) -> Section:
    """log Z, mean log p(x) of the training and test splits, and for images bits per dimension of the test split.

    Results `likelihood/log_z`, `/train`, `/test` (nats) and `/bits_per_dim`. The interval of a mean has two independent
    sources, the draw of the examples (bootstrap) and log Z (bootstrap over chains; for a grid, the change that the last
    refinement made, to both sides); their half-widths are combined as the root of the sum of squares, side by side.
    Examples: `likelihood/test`, log p(x) of each test input. Nothing is claimed where log Z or an energy is not finite.
    """
    data, shape = subject.data, subject.data.input_shape
    dimension, domain = math.prod(shape), domain_of(subject)
    rows = subset(len(data.train), settings.train_examples, common.seed, "likelihood", "train")

    work.say(f"likelihood: energies of {len(data.test)} test and {len(rows)} training inputs")
    log_f = {
        "test": in_batches(_log_density, subject.model, data.test.inputs, common.batch_size),
        "train": in_batches(_log_density, subject.model, data.train.inputs[rows], common.batch_size),
    }
    partition = (
        _by_quadrature(subject, settings, common, domain)
        if dimension <= EXACT_DIMENSION
        else _by_annealing(subject, settings, common, work, domain, to_box(data.train.inputs[rows]), rows)
    )
    notes = list(partition.notes)
    log_z = partition.log_z
    if not all(np.isfinite(values).all() for values in (log_f["test"], log_f["train"], [log_z.value])):
        notes.append("No likelihood: log Z or the energy of a test or training input is not finite.")
        return Section([], {}, {}, partition.warnings, notes, {})

    log_p = {split: values - log_z.value for split, values in log_f.items()}
    results = [log_z]
    for split in ("train", "test"):
        mean = bootstrap(f"likelihood/{split}", np.mean, log_p[split], seed=common.seed, resamples=common.resamples)
        results.append(_with_uncertain_constant(mean, log_z))
    if data.box is not None:
        results.append(bits_per_dimension(results[-1], dimension, data.box))
        notes.append(
            "Bits per dimension turn the density into probabilities of grey levels by the width of a level; images "
            "are not dequantised, so that a density with peaks on the grey levels can undercut an honest code length."
        )
    edges = _edges(np.concatenate(list(log_p.values())))
    figures = {
        **partition.figures,
        "domain": list(domain),
        "log_z": log_z.value,
        "test": _histogram(log_p["test"], edges),
        "train": _histogram(log_p["train"], edges),
    }
    return Section(results, figures, {"likelihood/test": log_p["test"]}, partition.warnings, notes, {})


def domain_of(subject: Subject) -> tuple[float, float]:
    """[low, high] along every axis: the box, or the cube of all three splits and one unit more, rounded up."""
    data = subject.data
    if data.box is not None:
        return data.box
    splits = [split.inputs for split in (data.train, data.validation, data.test) if len(split)]
    bound = math.ceil(max(float(inputs.abs().max()) for inputs in splits) + 1)
    return (-float(bound), float(bound))


def bits_per_dimension(log_p: Result, dimension: int, box: tuple[float, float]) -> Result:
    """Mean log p(x) in nats, of a density in the box, as `likelihood/bits_per_dim` of images of 256 grey levels."""
    # A level is a cell of width h = (high - low) / 255 in each dimension, of probability p(x) h^d. Its code has
    # -log2(p(x) h^d) / d = -log p(x) / (d log 2) - log2(h) bits per dimension; in [-1, 1], -log2(h) = log2(127.5).
    offset = math.log2(255 / (box[1] - box[0]))
    value, high, low = (offset - nats / (dimension * math.log(2)) for nats in (log_p.value, log_p.low, log_p.high))
    return Result("likelihood/bits_per_dim", value, low, high, log_p.n)


def _log_density(model: EnergyClassifier, x: torch.Tensor) -> torch.Tensor:
    return model.log_density(x)


def _by_quadrature(
    subject: Subject, settings: LikelihoodSettings, common: Common, domain: tuple[float, float]
) -> Partition:
    shape = subject.data.input_shape

    def log_f(points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        x = torch.from_numpy(points).float().view(-1, *shape)
        return in_batches(_log_density, subject.model, x, common.batch_size)

    value, change, points = log_integral(
        log_f, domain, math.prod(shape), budget=settings.grid_points, tolerance=settings.tolerance
    )
    warnings = []
    if not change < settings.tolerance:
        text = f"{points} grid points are too few: the last refinement changed log Z by {change:.2g} nats."
        warnings.append(Warned("unreliable-partition", text))
    figures = {"method": "quadrature", "effective_sample_size": None, "acceptance": None, "log_weights": None}
    return Partition(Result("likelihood/log_z", value, value - change, value + change, points), figures, warnings, [])


def _by_annealing(
    subject: Subject,
    settings: LikelihoodSettings,
    common: Common,
    work: Work,
    domain: tuple[float, float],
    train: Float[torch.Tensor, "n ..."],
    rows: torch.Tensor,
) -> Partition:
    base = truncated_mixture(train, subject.data.train.labels[rows], domain, device=subject.device)
    energy_grad, betas = energy_gradient(subject.model), sigmoid_schedule(settings.temperatures)
    block = min(BLOCK, common.batch_size, settings.chains)

    def pilot() -> dict[str, np.ndarray]:
        work.say(f"likelihood: pilot run of {block} chains through {settings.temperatures} temperatures")
        with seeded(common.seed, "likelihood", "pilot", device=subject.device):
            rng = subject.generator(common.seed, "likelihood", "pilot")
            sizes = tuned_steps(base, energy_grad, betas, block, rng, steps=settings.steps, box=domain)
        return {"sizes": np.array(sizes, dtype=np.float64)}

    sizes = work.memo("likelihood-pilot", pilot)["sizes"].tolist()
    blocks = []
    for start in range(0, settings.chains, block):
        count = min(block, settings.chains - start)

        def weights(start: int = start, count: int = count) -> dict[str, np.ndarray]:
            work.say(f"likelihood: annealed chains {start + 1} to {start + count} of {settings.chains}")
            with seeded(common.seed, "likelihood", start, device=subject.device):
                rng = subject.generator(common.seed, "likelihood", start)
                found = annealed_importance(
                    base, energy_grad, betas, count, rng, step_sizes=sizes, steps=settings.steps, box=domain
                )
            return {"log_weights": found.log_weights.numpy(), "acceptance": found.acceptance.numpy() * count}

        blocks.append(work.memo(f"likelihood-chains-{start:04d}", weights))
    log_weights = np.concatenate([part["log_weights"] for part in blocks])
    acceptance = np.sum([part["acceptance"] for part in blocks], axis=0) / settings.chains
    return annealed_partition(log_weights, acceptance, common)


def annealed_partition(
    log_weights: Float[np.ndarray, " n"], acceptance: Float[np.ndarray, " t"], common: Common
) -> Partition:
    """log Z as the logarithm of the mean weight, bootstrap interval over chains, and whether it can be relied on."""
    n = len(log_weights)
    shares = [float(part.mean()) for part in np.array_split(acceptance, min(POINTS, len(acceptance)) or 1) if len(part)]
    size = effective_sample_size(log_weights)
    figures: dict[str, Any] = {"method": "ais", "effective_sample_size": size, "acceptance": shares}
    notes = [
        "log Z is estimated by annealed importance sampling, which underestimates it in general (the logarithm of an "
        "unbiased estimate of Z): log-likelihoods err upwards, bits per dimension downwards."
    ]
    reasons = []
    if not size >= max(5, 0.05 * n):
        reasons.append(f"{n} weights are worth {size:.1f} equal ones")
    if shares and not min(shares) >= 0.1:
        reasons.append(f"acceptance falls to {min(shares):.0%}")
    warnings = (
        [Warned("unreliable-partition", f"Annealed importance sampling: {'; '.join(reasons)}.")] if reasons else []
    )
    if not np.isfinite(log_weights).all():
        return Partition(Result("likelihood/log_z", math.nan, math.nan, math.nan, n), figures, warnings, notes)
    figures["log_weights"] = _histogram(log_weights, _edges(log_weights))
    log_z = bootstrap("likelihood/log_z", _log_mean_exp, log_weights, seed=common.seed, resamples=common.resamples)
    return Partition(log_z, figures, warnings, notes)


def effective_sample_size(log_weights: Float[np.ndarray, " n"]) -> float:
    """(sum w)^2 / sum w^2: how many equal weights would be as good. Between 1 and n; NaN where a weight is."""
    w = np.exp(log_weights - log_weights.max())
    return float(w.sum() ** 2 / np.square(w).sum())


def _log_mean_exp(log_weights: Float[np.ndarray, " n"]) -> float:
    return float(np.logaddexp.reduce(log_weights) - math.log(len(log_weights)))


def _with_uncertain_constant(mean: Result, log_z: Result) -> Result:
    down = math.hypot(mean.value - mean.low, log_z.high - log_z.value)
    up = math.hypot(mean.high - mean.value, log_z.value - log_z.low)
    return mean._replace(low=mean.value - down, high=mean.value + up)


def _edges(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " edges"]:
    low, high = np.quantile(values, (0.005, 0.995))
    return np.linspace(low, high, BINS + 1) if high > low else np.linspace(low - 0.5, high + 0.5, BINS + 1)


def _histogram(values: Float[np.ndarray, " n"], edges: Float[np.ndarray, " edges"]) -> dict[str, Any]:
    return {"edges": edges.tolist(), "counts": counts(values, edges)}
