"""How far samples are from data, from feature vectors alone: FID, KID, precision and recall, Inception score.

Everything in float64. Each value comes with a 95 % interval for the draw of the samples; the reference data are taken
as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from scipy.special import log_softmax
from scipy.stats import t as student

from jemstone.errors import ConfigError
from jemstone.evaluation.features import Moments
from jemstone.evaluation.histograms import counts
from jemstone.evaluation.intervals import bootstrap, exact_proportion
from jemstone.rng import generator

CHUNK = 256
"""Rows whose distances to all others are held at a time."""
TWO_SIDED = 1.96
"""Standard deviations from the middle of a normal distribution to the ends of its 95 % interval."""


class Interval(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def frechet(a: Moments, b: Moments) -> float:
    """Squared Frechet (2-Wasserstein) distance of N(mean_a, C_a) and N(mean_b, C_b): the FID of Heusel et al. (2017).

    |mean_a - mean_b|^2 + tr C_a + tr C_b - 2 tr (R C_b R)^(1/2) with R = C_a^(1/2), all roots symmetric and by
    eigenvalues, rounding below zero cut off: real and defined for singular covariances too. Symmetric in a and b.
    """
    root = _root(a.covariance)
    inner = root @ b.covariance @ root
    overlap = np.sqrt(np.linalg.eigvalsh((inner + inner.T) / 2).clip(min=0)).sum()
    gap = ((a.mean - b.mean) ** 2).sum()
    return max(float(gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap), 0.0)


def fid(rows: Float[np.ndarray, "n d"], reference: Moments, *, seed: int, resamples: int) -> Interval:
    """`frechet` of the moments of `rows`, n >= 2, to the reference; value +- 1.96 bootstrap standard deviations.

    Not the percentile interval: a resample repeats rows, its covariance is that of about 0.63 n distinct ones, and its
    distance is biased upwards by an amount of the size of the value's own bias, so that the percentiles would lie
    above the value. The spread of resamples is usable nevertheless. The bias of the value itself, upwards and about as
    1 / n, is not in the interval (Chong and Forsyth, CVPR 2020): compare at equal n only.
    """
    if len(rows) < 2:
        raise ConfigError(f"A covariance needs two rows or more, got {len(rows)}.")
    rows = rows.astype(np.float64)
    turned = rows @ _root(reference.covariance)  # once: every resample takes rows of it
    value = _from_rows(reference, rows, turned)
    rng = generator(seed, "fid")
    picks = (torch.randint(len(rows), (len(rows),), generator=rng).numpy() for _ in range(resamples))
    half = TWO_SIDED * float(np.std([_from_rows(reference, rows[i], turned[i]) for i in picks], ddof=1))
    return Interval(value, max(value - half, 0.0), value + half)


def _from_rows(reference: Moments, rows: Float[np.ndarray, "n d"], turned: Float[np.ndarray, "n d"]) -> float:
    """`frechet` to the moments of `rows`; `turned` are the rows times the root of the reference's covariance.

    The overlap is the sum of the singular values of the centred `turned`, found in whichever Gram matrix is smaller:
    a few hundred samples in 2048 dimensions cost a hundredth of an eigenvalue problem of that size.
    """
    mean, n = rows.mean(axis=0), len(rows)
    centred = (turned - turned.mean(axis=0)) / math.sqrt(n - 1)
    gram = centred @ centred.T if n < centred.shape[1] else centred.T @ centred
    overlap = np.sqrt(np.linalg.eigvalsh(gram).clip(min=0)).sum()
    spread = ((rows - mean) ** 2).sum() / (n - 1)
    gap = ((reference.mean - mean) ** 2).sum()
    return max(float(gap + np.trace(reference.covariance) + spread - 2 * overlap), 0.0)


def _root(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    values, vectors = np.linalg.eigh(covariance)
    root: Float[np.ndarray, "d d"] = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root


def kid(
    a: Float[np.ndarray, "m d"], b: Float[np.ndarray, "n d"], *, subsets: int, subset_size: int, seed: int
) -> Interval:
    """Kernel Inception distance (Binkowski et al., ICLR 2018): `polynomial_mmd`, averaged over `subsets` subsets.

    Unbiased at every n, and so negative at times. Each subset draws s = min(subset_size, half of the smaller sample)
    rows of both without replacement. Draws of that kind vary by (1/s - 1/n) of the variance of a row, the mean over all
    rows by 1/n: the interval is +- 1.96 SD sqrt(s / (n - s) + 1 / subsets), the last term for the finite number of
    subsets. (At s = n all subsets would be the same and SD zero.)
    """
    n = min(len(a), len(b))
    size = min(subset_size, n // 2)
    if size < 2 or subsets < 2:
        raise ConfigError(f"KID needs 2 subsets of 2 rows or more, half of a sample at most; got {subsets} of {size}.")
    rng = generator(seed, "kid")
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    values = [
        polynomial_mmd(
            wide_a[torch.randperm(len(a), generator=rng)[:size].numpy()],
            wide_b[torch.randperm(len(b), generator=rng)[:size].numpy()],
        )
        for _ in range(subsets)
    ]
    value = float(np.mean(values))
    half = TWO_SIDED * float(np.std(values, ddof=1)) * (size / (n - size) + 1 / subsets) ** 0.5
    return Interval(value, value - half, value + half)


def polynomial_mmd(a: Float[np.ndarray, "m d"], b: Float[np.ndarray, "n d"]) -> float:
    """The unbiased estimate of MMD^2 with kernel (x.y/d + 1)^3: no row is paired with itself (Gretton et al. 2012)."""
    return _within(a) + _within(b) - 2 * float(_kernel(a, b).mean())


def _within(x: Float[np.ndarray, "n d"]) -> float:
    pairs = _kernel(x, x)
    return float((pairs.sum() - np.trace(pairs)) / (len(x) * (len(x) - 1)))


def _kernel(x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "m n"]:
    kernel: Float[np.ndarray, "m n"] = x @ y.T / x.shape[1] + 1
    kernel **= 3
    return kernel


def inception_score(logits: Float[np.ndarray, "n k"], splits: int = 10) -> Interval:
    """exp of the mean KL(p(y|x) || p(y)) (Salimans et al., NeurIPS 2016): mean over `splits` pieces, in order.

    Between 1 and k, and below n / splits: pieces of few rows bias it downwards. Interval: Student's t over the pieces.
    """
    if not 2 <= splits <= len(logits):
        raise ConfigError(f"The Inception score needs 2 to n = {len(logits)} splits, got {splits}.")
    scores = []
    for part in np.array_split(logits.astype(np.float64), splits):
        log_p = log_softmax(part, axis=1)
        p = np.exp(log_p)
        marginal = p.mean(axis=0)
        # 0 log 0 = 0: a class that no row allows adds nothing.
        log_marginal = np.log(np.where(marginal > 0, marginal, 1))
        scores.append(np.exp((p * (log_p.clip(min=-1e300) - log_marginal)).sum(axis=1).mean()))
    half = float(student.ppf(0.975, splits - 1) * np.std(scores, ddof=1) / splits**0.5)
    value = float(np.mean(scores))
    return Interval(value, min(value, max(value - half, 1.0)), value + half)


def prdc(
    real: Float[np.ndarray, "m d"], fake: Float[np.ndarray, "n d"], k: int, *, seed: int = 0, resamples: int = 1000
) -> dict[str, Interval]:
    """`precision`, `recall` (Kynkaanniemi et al., NeurIPS 2019), `density`, `coverage` (Naeem et al., ICML 2020).

    A row's ball reaches to its k-th nearest neighbour of its own kind. Precision: share of fake rows in a ball of a
    real one; recall: share of real rows in a ball of a fake one; density: balls of real rows around a fake one, / k;
    coverage: share of real balls that hold a fake row. Ties count as inside. Memory grows as m n / 8 bytes.

    Intervals are for the draw of fake rows with all balls fixed: exact for precision, bootstrap for density. A
    resample holds fewer distinct rows and covers less, so recall and coverage get value +- 1.96 bootstrap standard
    deviations; where no resample moves them, the exact interval of a share of m real rows.
    """
    if not 1 <= k < min(len(real), len(fake)):
        raise ConfigError(f"Neighbours k must be >= 1 and below both sample sizes {len(real)}, {len(fake)}; got {k}.")
    real_radii, fake_radii = _radii(real, k), _radii(fake, k)
    inside = np.zeros(len(fake), dtype=np.int64)  # in how many real balls each fake row lies
    holds, reached = [], []  # per real row, one bit per fake row: in my ball; I am in its ball
    for start, squared in _squared(real, fake):
        own = squared <= real_radii[start : start + len(squared), None]
        inside += own.sum(axis=0)
        holds.append(np.packbits(own, axis=1))
        reached.append(np.packbits(squared <= fake_radii, axis=1))
    precision = exact_proportion("precision", int((inside > 0).sum()), len(fake))
    density = bootstrap("density", np.mean, inside / k, seed=seed, resamples=resamples)
    return {
        "precision": Interval(*precision[1:4]),
        "recall": _share_met("recall", np.concatenate(reached), len(fake), seed, resamples),
        "density": Interval(*density[1:4]),
        "coverage": _share_met("coverage", np.concatenate(holds), len(fake), seed, resamples),
    }


def _share_met(name: str, met: UInt8[np.ndarray, "m bytes"], n: int, seed: int, resamples: int) -> Interval:
    """Share of rows with a bit set among n, and its spread when the n are drawn anew with replacement."""
    hits = int(met.any(axis=1).sum())
    value = hits / len(met)
    rng = generator(seed, "prdc", name)
    shares = []
    for _ in range(resamples):
        drawn = np.zeros(n, dtype=bool)
        drawn[torch.randint(n, (n,), generator=rng).numpy()] = True
        shares.append((met & np.packbits(drawn)).any(axis=1).mean())
    half = TWO_SIDED * float(np.std(shares))
    if half == 0:
        return Interval(*exact_proportion(name, hits, len(met))[1:4])
    return Interval(value, max(value - half, 0.0), min(value + half, 1.0))


def nearest(
    queries: Float[np.ndarray, "n d"], rows: Float[np.ndarray, "m d"], count: int = 1
) -> tuple[Float[np.ndarray, "n count"], Int[np.ndarray, "n count"]]:
    """Euclidean distances to, and indices of, the `count` nearest of `rows`, nearest first."""
    distances, indices = [], []
    for _, squared in _squared(queries, rows):
        order = np.argsort(squared, axis=1, kind="stable")[:, :count]
        indices.append(order)
        distances.append(np.sqrt(np.take_along_axis(squared, order, axis=1)))
    return np.concatenate(distances), np.concatenate(indices)


def histogram(distances: Mapping[str, Float[np.ndarray, " _"]], bins: int) -> dict[str, Any]:
    """Counts by name over shared `edges` from 0 to the 99.5 % quantile of all; the last bin holds what lies beyond."""
    top = float(np.quantile(np.concatenate(list(distances.values())), 0.995))
    edges = np.linspace(0, top if top > 0 else 1.0, bins + 1)
    return {"edges": edges.tolist(), **{name: counts(values, edges) for name, values in distances.items()}}


def _radii(rows: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, " n"]:
    """Squared distance of each row to its k-th nearest other row."""
    radii = []
    for start, squared in _squared(rows, rows):
        own = np.arange(len(squared))
        squared[own, start + own] = np.inf
        radii.append(np.partition(squared, k - 1, axis=1)[:, k - 1])
    return np.concatenate(radii)


def _squared(
    a: Shaped[np.ndarray, "m d"], b: Shaped[np.ndarray, "n d"]
) -> Iterator[tuple[int, Float[np.ndarray, "chunk n"]]]:
    """Squared distances of CHUNK rows of `a` at a time to all of `b`: |x|^2 + |y|^2 - 2 x.y about a common centre."""
    centre = b.mean(axis=0, dtype=np.float64)
    wide_a, wide_b = a - centre, b - centre
    squares = (wide_b**2).sum(axis=1)
    for start in range(0, len(a), CHUNK):
        part = wide_a[start : start + CHUNK]
        yield start, ((part**2).sum(axis=1)[:, None] + squares - 2 * part @ wide_b.T).clip(min=0)
