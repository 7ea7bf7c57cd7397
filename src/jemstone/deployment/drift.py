"""Has what a model is asked changed? The log densities of now against those of a reference.

Three looks at two samples of scores. Kolmogorov and Smirnov's distance says whether they differ, with a p-value; the
population stability index says how much, on a scale that banks made a habit of; the share of foreign inputs says what
it costs. Labels are not needed, and a change of p(y|x) that leaves the inputs as they were is not seen.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import ks_2samp

from jemstone.errors import ConfigError, DataError

BINS = 10
MODERATE, LARGE = 0.1, 0.25
"""From where on a population stability index is usually read as a moderate change, and as a large one."""


class Drift(NamedTuple):
    """One sample of log densities against a reference."""

    n: int
    """Inputs of the sample."""
    ks: float
    """The largest distance between the two distribution functions, in [0, 1]."""
    p_value: float
    """The chance of such a distance, or a larger one, where nothing has changed."""
    psi: float
    """Population stability index, nats."""
    psi_by_chance: float
    """What it comes to on average where nothing has changed."""
    median: float
    """Of the sample, nats."""
    foreign: float
    """The share of the sample that lies below the density threshold."""


def drift(
    reference: Float[np.ndarray, " m"], log_density: Float[np.ndarray, " n"], threshold: float = -math.inf
) -> Drift:
    """`log_density` (n,) against `reference` (m,), in any order; foreign is what lies below `threshold`, nats.

    A NaN of the sample counts as -inf, as foreign as can be. The p-value is that of Kolmogorov's law at the effective
    sample size mn / (m + n); ties make it larger than it need be, never smaller. The law asks for independent inputs:
    frames of one video are not. Raises DataError where either is empty or the reference is
    not finite.
    """
    wrong = int((~np.isfinite(reference)).sum())
    if not len(reference) or not len(log_density) or wrong:
        raise DataError(
            f"A reference of {len(reference)} log densities, {wrong} of them not finite, and a sample of "
            f"{len(log_density)} cannot be compared: neither may be empty, and the reference must be finite."
        )
    sample = np.where(np.isnan(log_density), -np.inf, log_density)
    test = ks_2samp(reference, sample, method="asymp")
    foreign = np.logical_not(sample >= threshold)
    return Drift(
        n=len(sample),
        ks=float(test.statistic),
        p_value=float(test.pvalue),
        psi=population_stability(reference, sample),
        psi_by_chance=stability_by_chance(reference, len(sample)),
        median=float(np.quantile(sample, 0.5, method="lower")),
        foreign=float(foreign.mean()),
    )


def bin_edges(reference: Float[np.ndarray, " m"]) -> Float[np.ndarray, " _"]:
    """The inner edges of `BINS` bins of equal shares of the reference; fewer where it repeats a value too often."""
    return np.unique(np.quantile(reference, np.arange(1, BINS) / BINS))


def population_stability(reference: Float[np.ndarray, " m"], sample: Float[np.ndarray, " n"]) -> float:
    """sum_i (q_i - p_i) log(q_i / p_i), nats, over bins of equal shares of the reference (`bin_edges`).

    p_i = (count_i + 1/2) / (m + bins / 2) of the reference, q_i the same of the sample: half an example more in each
    bin, so that an empty one gives no infinity. It is Jeffreys' divergence of two histograms. Read, by habit and not by
    any law, as no change below 0.1, a large one above 0.25; on small samples chance alone exceeds that
    (`stability_by_chance`).
    """
    edges = bin_edges(reference)
    p, q = (_shares(values, edges) for values in (reference, sample))
    return float(((q - p) * np.log(q / p)).sum())


def stability_by_chance(reference: Float[np.ndarray, " m"], count: int) -> float:
    """What the index of `count` inputs like the reference comes to on average: (bins - 1) (1 / m + 1 / n).

    The index is then chi squared with bins - 1 degrees of freedom, times 1 / m + 1 / n (Yurdakul and Naranjo, 2020).
    """
    return len(bin_edges(reference)) * (1 / len(reference) + 1 / count)


def windows(log_density: Float[np.ndarray, " n"], size: int) -> list[Float[np.ndarray, " _"]]:
    """The sample in windows of `size` that follow each other; what is left at the end joins the last one."""
    if size < 1:
        raise ConfigError(f"A window holds at least one input, not {size}.")
    count = max(1, len(log_density) // size)
    return np.split(log_density, [size * i for i in range(1, count)])


def verdict(found: Drift, level: float) -> str:
    """In words: whether (p-value below `level`), then how much (the index less what chance gives) and to where."""
    if not found.p_value < level:
        return "no drift seen"
    excess = found.psi - found.psi_by_chance
    size = "large" if excess >= LARGE else "moderate" if excess >= MODERATE else "small"
    return f"{size} drift"


def verdicts(found: Sequence[Drift], level: float = 0.05) -> list[str]:
    """The verdict on each of several windows, with a chance of at most `level` that any of them is a false alarm.

    Each is judged at level / their number (Bonferroni), which holds whatever the windows have in common, a reference
    for one. Who looks again and again asks more often than that, and must lower `level` accordingly.
    """
    return [verdict(one, level / len(found)) for one in found]


class DriftMonitor:
    """The last `window` inputs of a service against a reference. Threads may share it.

    `statistics` are made to be watched, not to ring by themselves: the same window is looked at time and again, and so
    its p-value falls below any level some day. Ring when it has been low for as long as it takes to fill the window.
    """

    def __init__(self, reference: Float[np.ndarray, " m"], *, window: int = 1000, threshold: float = -math.inf) -> None:
        if window < 1:
            raise ConfigError(f"window={window}: it must hold at least one input.")
        self.reference = np.sort(reference)
        self.threshold = threshold
        self._density: deque[float] = deque(maxlen=window)
        self._accepted: deque[bool] = deque(maxlen=window)
        self._lock = threading.Lock()

    def update(self, log_density: Float[np.ndarray, " n"], accepted: Bool[np.ndarray, " n"] | None = None) -> None:
        """Take in the log densities of inputs just answered, and whether they were accepted, in nats, oldest first."""
        with self._lock:
            self._density.extend(log_density.tolist())
            if accepted is not None:
                self._accepted.extend(accepted.tolist())

    def statistics(self) -> dict[str, float]:
        """The fields of `Drift` by name, and `accepted`, a share, where that was told; without any input `n` = 0.

        Some milliseconds for a window of a thousand.
        """
        with self._lock:
            density, accepted = np.array(self._density), np.array(self._accepted)
        if not len(density):
            return {"n": 0.0}
        found = {name: float(value) for name, value in drift(self.reference, density, self.threshold)._asdict().items()}
        return found | ({"accepted": float(accepted.mean())} if len(accepted) else {})


def _shares(values: Float[np.ndarray, " n"], edges: Float[np.ndarray, " _"]) -> Float[np.ndarray, " _"]:
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    shares: Float[np.ndarray, " _"] = (counts + 0.5) / (len(values) + 0.5 * (len(edges) + 1))
    return shares
