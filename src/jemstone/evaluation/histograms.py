"""Values in bins: [low, high), the last one closed, and whatever lies beyond the edges in the bin at that end."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def bins_of(values: Float[np.ndarray, "*shape"], edges: Float[np.ndarray, " e"]) -> Int[np.ndarray, "*shape"]:
    """The bin of each value. By clipped index, not clipped value: no value is ever dropped."""
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)


def counts(values: Float[np.ndarray, " n"], edges: Float[np.ndarray, " e"]) -> list[int]:
    """How many values each bin holds; they add up to n."""
    held: list[int] = np.bincount(bins_of(values, edges), minlength=len(edges) - 1).tolist()
    return held
