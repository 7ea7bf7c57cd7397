"""Temperature scaling: p(y|x) = softmax(f(x) / T)_y, with one number T > 0 for all inputs (Guo et al., ICML 2017).

T moves no decision, only confidences. As energies it is the temperature of the joint density exp(-E(x, y) / T).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar

BOUNDS = (1e-3, 1e3)
"""Where T is looked for. A fit that ends at a bound has no minimum in between."""


def fit_temperature(
    logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], *, smoothing: float = 0.0
) -> float:
    """The T in `BOUNDS` of the smallest mean of -log softmax(f(x) / T)_y.

    The mean is convex in 1 / T, so there is one minimum at most. There is none where every label has the largest logit
    (T = 0 would be best), nor where labels and logits are unrelated (T = infinity): T is then the bound.

    With `smoothing` s, the label counts for 1 - s and all classes share s: then T = 0 is never best. A model that made
    no mistake on n examples may still make one on the next, and s = 1 / (n + 2) says so (Platt, 1999).
    """
    return fit_gaps(label_gaps(logits, labels), smoothing)


def label_gaps(logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n k"]:
    """f_c - f_y: all that the likelihood depends on."""
    wide = logits.astype(np.float64)
    gaps: Float[np.ndarray, "n k"] = wide - wide[np.arange(len(labels)), labels][:, None]
    return gaps


def fit_gaps(gaps: Float[np.ndarray, "n k"], smoothing: float = 0.0) -> float:
    """`fit_temperature`, given `label_gaps`."""
    largest = gaps.max(axis=1)
    rest = gaps - largest[:, None]

    pull = smoothing * float(gaps.mean())

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float((largest * scale + np.log(np.exp(rest * scale).sum(axis=1))).mean()) - pull * scale

    low, high = math.log(BOUNDS[0]), math.log(BOUNDS[1])
    inside = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x
    # The search never tries the bounds themselves; they come first, so that they win on a plateau.
    candidates = {BOUNDS[0]: loss(low), BOUNDS[1]: loss(high), math.exp(inside): loss(inside)}
    return min(candidates, key=candidates.__getitem__)
