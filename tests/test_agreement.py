"""The report imports no torch, and so says a few things a second time: both places must say the same."""

import pytest

from jemstone.evaluation import SCORES, Result, higher_is_better
from jemstone.report.read import Result as ReadResult
from jemstone.report.tables import OOD_METRICS, SCORE_MEANINGS, SCORE_NAMES, measure

NAMES = ["accuracy", "nll", "brier", "ece", "pgd_linf/0.1", "pgd_l2/0.5", "never_heard_of"]


@pytest.mark.parametrize("name", NAMES)
def test_direction_of_every_metric(name):
    assert {1: True, -1: False, 0: None}[measure(name).better] is higher_is_better(name)


@pytest.mark.parametrize("metric", ["auroc", "aupr", "fpr95"])
def test_direction_of_every_detection_metric(metric):
    assert {1: True, -1: False}[OOD_METRICS[metric]] is higher_is_better(f"ood/noise/log_density/{metric}")


def test_every_score_is_explained():
    assert SCORE_NAMES.keys() == SCORES.keys() == SCORE_MEANINGS.keys()


def test_results_have_the_same_fields():
    assert tuple(ReadResult.__dataclass_fields__) == Result._fields
