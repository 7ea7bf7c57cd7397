"""The temperature that calibrates a model, with its interval."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from jemstone.evaluation.intervals import Result, bootstrap
from jemstone.temperature import fit_gaps, label_gaps


def temperature(
    logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], *, seed: int = 0, resamples: int = 200
) -> Result:
    """`fit_temperature` with its bootstrap interval, as result `temperature`; one fit per resample."""
    return bootstrap("temperature", fit_gaps, label_gaps(logits, labels), seed=seed, resamples=resamples)
