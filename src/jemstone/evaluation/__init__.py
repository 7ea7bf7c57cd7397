"""A trained model goes in, numbers with intervals come out."""

from jemstone.evaluation.calibration import Reliability, classwise_ece, ece, ece_equal_mass, mce, reliability
from jemstone.evaluation.classification import accuracy, brier, nll
from jemstone.evaluation.corruption_kinds import corrupt
from jemstone.evaluation.detection import aupr_in, aupr_out, auroc, detections, fpr95
from jemstone.evaluation.detectors import detector
from jemstone.evaluation.directions import HIGHER_IS_BETTER, higher_is_better
from jemstone.evaluation.extractors import Extractor, make_extractor
from jemstone.evaluation.foreign import builtin_ood_sets
from jemstone.evaluation.intervals import Result, bootstrap, bootstrap_two, exact_proportion
from jemstone.evaluation.measure import Evaluation, Row, comparison, evaluate
from jemstone.evaluation.protocol import BUDGETS, SECTIONS, Protocol
from jemstone.evaluation.robustness import Curve, pgd_accuracy
from jemstone.evaluation.scores import SCORES, Score, approximate_mass, log_density, max_probability
from jemstone.evaluation.section import WARNINGS, Chains, Picture, Section, Subject, Warned

__all__ = [
    "BUDGETS",
    "HIGHER_IS_BETTER",
    "SCORES",
    "SECTIONS",
    "WARNINGS",
    "Chains",
    "Curve",
    "Evaluation",
    "Extractor",
    "Picture",
    "Protocol",
    "Reliability",
    "Result",
    "Row",
    "Score",
    "Section",
    "Subject",
    "Warned",
    "accuracy",
    "approximate_mass",
    "aupr_in",
    "aupr_out",
    "auroc",
    "bootstrap",
    "bootstrap_two",
    "brier",
    "builtin_ood_sets",
    "classwise_ece",
    "comparison",
    "corrupt",
    "detections",
    "detector",
    "ece",
    "ece_equal_mass",
    "evaluate",
    "exact_proportion",
    "fpr95",
    "higher_is_better",
    "log_density",
    "make_extractor",
    "max_probability",
    "mce",
    "nll",
    "pgd_accuracy",
    "reliability",
]
