"""What the name of a result reads as in a table's head, and with how many digits its value is printed."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

TITLES = {
    "accuracy": "Accuracy",
    "nll": "NLL",
    "brier": "Brier score",
    "ece": "ECE",
    "ece_equal_mass": "ECE, equal mass",
    "mce": "MCE",
    "classwise_ece": "Classwise ECE",
    "temperature": "Temperature",
    "generation/fid": "FID",
    "generation/kid": "KID",
    "generation/precision": "Precision",
    "generation/recall": "Recall",
    "generation/density": "Density",
    "generation/coverage": "Coverage",
    "generation/inception_score": "Inception Score",
    "generation/memorised": "Memorised samples",
    "by_class/consistent": "Consistent, by class",
    "legacy/fid": "FID, legacy protocol",
    "distal/convinced": "Distal: convinced",
    "distal/auroc": "Distal: AUROC",
    "likelihood/log_z": "log Z, nats",
    "likelihood/train": "log p(x), train, nats",
    "likelihood/test": "log p(x), test, nats",
    "likelihood/bits_per_dim": "Bits per dimension",
    "long_run/energy_drift": "Long run: energy drift",
    "long_run/diversity": "Long run: diversity",
    "long_run/survived": "Long run: survived",
}
METRICS = {
    "auroc": "AUROC",
    "aupr": "AUPR",
    "aupr_in": "AUPR-in",
    "aupr_out": "AUPR-out",
    "fpr95": "FPR95",
    "accuracy": "accuracy",
    "ece": "ECE",
}
SCORES = {
    "log_density": "log p(x)",
    "max_logit": "max logit",
    "max_probability": "max p(y|x)",
    "negative_entropy": "negative entropy",
    "approximate_mass": "approximate mass",
    "refined_density": "refined log p(x)",
}
ATTACKS = {
    "pgd_linf": "PGD, L∞",
    "pgd_l2": "PGD, L2",
    "autoattack_linf": "AutoAttack, L∞",
    "autoattack_l2": "AutoAttack, L2",
    "black_box_linf": "Black box, L∞",
    "transfer_linf": "Transferred PGD, L∞",
    "worst_linf": "Worst of both attacks, L∞",
}

SHARES = (
    "accuracy",
    "ece",
    "ece_equal_mass",
    "mce",
    "classwise_ece",
    "ood/*",
    "ood_mean/*",
    "corruption/*",
    "pgd_*",
    "autoattack_*",
    "black_box_*",
    "refined/*",
    "distal/*",
    "*/precision",
    "*/recall",
    "*/coverage",
    "generation/memorised",
    "by_class/consistent",
    "long_run/survived",
)
"""Patterns of the results that are shares of 1, and printed as per cents."""

DECIMALS = {"*fid": 2, "*inception_score": 2, "*kid": 4}
"""Digits after the point where it is not 1 (per cents) or 3 (all else, as nats)."""


def is_share(name: str) -> bool:
    """Whether the result `name` is a share of 1, which tables print as a per cent."""
    return any(fnmatchcase(name.removeprefix("scaled/"), pattern) for pattern in SHARES)


def title(name: str) -> str:
    """The result `name` in the field's words, with its unit where it has one; a name not known stays as it is."""
    words = _words(name)
    return f"{words} (%)" if is_share(name) else words


def number(name: str, value: float) -> str:
    """A value of the result `name` as tables print it."""
    if not math.isfinite(value):
        return "not finite"
    if is_share(name):
        return f"{100 * value:.1f}"
    decimals = next((digits for pattern, digits in DECIMALS.items() if fnmatchcase(name, pattern)), 3)
    return f"{value:.{decimals}f}" if abs(value) < 1000 else f"{value:.1f}"


def _words(name: str) -> str:
    if name in TITLES:
        return TITLES[name]
    match name.split("/"):
        case ["scaled", *rest]:
            return f"{_words('/'.join(rest))}, scaled"
        case ["by_class" | "real" as whose, what] if f"generation/{what}" in TITLES:
            return f"{TITLES[f'generation/{what}']}, {whose.replace('_', ' ')}"
        case ["refined", steps, *rest]:
            return f"{_words('/'.join(rest))}, after {steps} steps"
        case [attack, eps] if attack in ATTACKS:
            return f"{ATTACKS[attack]} ≤ {eps}"
        case ["ood", foreign, score, metric] if metric in METRICS:
            return f"{METRICS[metric]}, {foreign}, {SCORES.get(score, score)}"
        case ["ood_mean", regime, score, metric] if metric in METRICS:
            return f"{METRICS[metric]}, {regime} OOD, {SCORES.get(score, score)}"
        case ["corruption", kind, metric] if metric in METRICS:
            return f"Corrupted ({kind}): {METRICS[metric]}"
    return name
