"""The normaliser of a density in few dimensions: a sum over a grid that is refined until that changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jemstone.errors import ConfigError

ORDER = 6
"""Gauss-Legendre nodes in a panel."""

LogFunction = Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, " n"]]
"""Points (n, d) -> logarithm of the integrand (n,), float64."""


class Quadrature(NamedTuple):
    """`log_z` with the finest rule that was used, of `points` nodes; `change`, by how much the one before differs."""

    log_z: float
    change: float
    points: int


def log_integral(
    log_f: LogFunction,
    domain: tuple[float, float],
    dimension: int,
    *,
    budget: int = 200_000,
    tolerance: float = 1e-3,
    batch_size: int = 4096,
) -> Quadrature:
    """log of the integral of exp(log_f) over [low, high]^dimension, in nats.

    A tensor product of composite Gauss-Legendre rules: 2^p panels of 6 nodes along each axis. Panels are halved until
    that changes the result by less than `tolerance`, or until another halving would need more than `budget` nodes. It
    starts two halvings from there, and not from one panel: two coarse rules agree as well where both overlook a peak.

    Exponentials are summed in float64 relative to the largest (log-sum-exp), `batch_size` points at a time. The result
    is NaN where the integrand is. Raises ConfigError for a budget that does not hold two rules, or an empty domain.
    """
    low, high = domain
    if not high > low or dimension < 1:
        raise ConfigError(f"Nothing to integrate over: domain [{low}, {high}] in {dimension} dimensions.")
    least = (2 * ORDER) ** dimension
    if budget < least:
        raise ConfigError(
            f"A grid in {dimension} dimensions needs at least {least} points, got {budget}: raise grid_points."
        )
    finest = int(math.log2(round(budget ** (1 / dimension), 6) / ORDER))
    level = max(0, finest - 2)
    log_z, change = _rule(log_f, low, high, dimension, 2**level, batch_size), math.inf
    while level < finest and not change < tolerance:
        level += 1
        finer = _rule(log_f, low, high, dimension, 2**level, batch_size)
        log_z, change = finer, abs(finer - log_z)
    return Quadrature(log_z, change, (ORDER * 2**level) ** dimension)


def _rule(log_f: LogFunction, low: float, high: float, dimension: int, panels: int, batch_size: int) -> float:
    place, weight = np.polynomial.legendre.leggauss(ORDER)
    half = (high - low) / (2 * panels)
    centres = low + half * (2 * np.arange(panels) + 1)
    nodes = (centres[:, None] + half * place).ravel()
    log_weights = np.tile(np.log(half * weight), panels)
    count = len(nodes)
    total = -np.inf
    for start in range(0, count**dimension, batch_size):
        flat = np.arange(start, min(start + batch_size, count**dimension))
        index = np.stack(np.unravel_index(flat, (count,) * dimension), axis=1)
        terms = log_f(nodes[index]) + log_weights[index].sum(axis=1)
        with np.errstate(invalid="ignore"):  # what is not finite is handed on, and needs no warning of numpy's
            total = np.logaddexp(total, np.logaddexp.reduce(terms))
    return float(total)
