"""The short suite by which benchmarks compare recipes: accuracy, calibration, foreign inputs, attack, samples, cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from jemstone import Dataset, EnergyClassifier, Session, TrainConfig, evaluate, generate, generator
from jemstone.data import to_box
from jemstone.evaluation import BUDGETS
from jemstone.evaluation.distances import frechet
from jemstone.evaluation.features import moments_of
from jemstone.networks.modes import in_mode, statistics_of_negatives

QUICK = BUDGETS["quick"]
PROTOCOL = replace(
    QUICK,
    name="suite",
    resamples=200,
    robustness=replace(QUICK.robustness, images=200, steps=20, linf=(0.05,), l2=(), black_box_images=0),
).only("calibration", "ood", "robustness")
SAMPLES, COMPONENTS = 1000, 64


def score(session: Session, ood: Mapping[str, Tensor] | None = None) -> dict[str, float]:
    """The numbers of one trained session on its test split; AUROC is that of log p(x), averaged and the worst set."""
    model, data = session.model, session.data
    with in_mode(model, training=False):
        results = {r.name: r.value for r in evaluate(model, data, ood=ood, protocol=PROTOCOL).results}
    aurocs = {n.split("/")[1]: v for n, v in results.items() if fnmatchcase(n, "ood/*/log_density/auroc")}
    scores = {
        "accuracy": results["accuracy"],
        "nll": results["nll"],
        "ece": results["ece"],
        "pgd": results["pgd_linf/0.05"],
        "auroc": statistics.fmean(aurocs.values()),
        **{f"auroc/{name}": value for name, value in aurocs.items()},
    }
    if session.config.weights.generative:
        scores["frechet"] = sample_distance(session, model, data)
    return {name: round(value, 5) for name, value in scores.items()}


def sample_distance(session: Session, model: EnergyClassifier, data: Dataset) -> float:
    """Frechet distance of fresh samples to the test images: Gaussian fits in their leading principal components.

    Pixels, not features of a network: 64 components hold nearly all of such small images, and favour no model.
    """
    chains = session.config.chains
    labels = torch.arange(SAMPLES) % data.num_classes
    steps = min(round(chains.steps / chains.restart_rate), 20 * chains.steps)
    assert session.initial is not None
    with in_mode(model, training=False), statistics_of_negatives(model):
        x = generate(model, session.initial, session.sampler, labels, steps, generator(0, "suite"))
    real = to_box(data.test.inputs).flatten(1).double().numpy()
    mean = real.mean(axis=0)
    _, _, axes = np.linalg.svd(real - mean, full_matrices=False)
    project = axes[:COMPONENTS].T
    samples = x.flatten(1).double().numpy()
    return frechet(moments_of((real - mean) @ project), moments_of((samples - mean) @ project))


def step_cost(config: TrainConfig) -> float:
    """Cost of a step in forward passes of one image: 2 per chain step, 3 per image in the loss, twice that with SAM."""
    real = config.real_batch_size if config.weights.generative else 0
    labelled = config.batch_size if config.weights.class_nll else 0
    chains = 2 * config.chains.steps * real if config.weights.generative else 0
    passes = 2 if config.optimizer.sam_rho else 1
    attack = 2 * config.attack.steps * labelled if config.attack.radius else 0
    return chains + 3 * passes * (labelled + 2 * real) + attack


def at_equal_cost(config: TrainConfig, budget: float) -> TrainConfig:
    """`config` with as many steps as `budget`, in forward passes of one image, pays for."""
    return config.with_values(steps=max(1, round(budget / step_cost(config))))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of the 95 % t interval over seeds."""
    if len(values) < 2:
        return values[0], math.nan
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), float(half)
