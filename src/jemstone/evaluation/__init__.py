"""A trained model goes in, numbers with intervals come out."""

from jemstone.evaluation.calibration import Reliability, ece, reliability
from jemstone.evaluation.classification import accuracy, brier, nll
from jemstone.evaluation.intervals import Result, bootstrap, bootstrap_two, exact_proportion
from jemstone.evaluation.ood import (
    SCORES,
    Score,
    approximate_mass,
    aupr,
    auroc,
    builtin_ood_sets,
    detection,
    fpr95,
    log_density,
    max_probability,
)
from jemstone.evaluation.protocol import (
    HIGHER_IS_BETTER,
    Evaluation,
    Protocol,
    Row,
    comparison,
    evaluate,
    higher_is_better,
)
from jemstone.evaluation.robustness import Curve, pgd_accuracy

__all__ = [
    "HIGHER_IS_BETTER",
    "SCORES",
    "Curve",
    "Evaluation",
    "Protocol",
    "Reliability",
    "Result",
    "Row",
    "Score",
    "accuracy",
    "approximate_mass",
    "aupr",
    "auroc",
    "bootstrap",
    "bootstrap_two",
    "brier",
    "builtin_ood_sets",
    "comparison",
    "detection",
    "ece",
    "evaluate",
    "exact_proportion",
    "fpr95",
    "higher_is_better",
    "log_density",
    "max_probability",
    "nll",
    "pgd_accuracy",
    "reliability",
]
