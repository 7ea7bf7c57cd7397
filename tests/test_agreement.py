"""The report imports no torch, and so says a few things a second time: both places must say the same."""

from fnmatch import fnmatchcase

import pytest

from jemstone.evaluation.directions import HIGHER_IS_BETTER, higher_is_better
from jemstone.evaluation.intervals import Result
from jemstone.evaluation.ood import REFINED
from jemstone.evaluation.protocol import SECTIONS
from jemstone.evaluation.scores import SCORES
from jemstone.report.measures import OTHER, SCORE_MEANINGS, SCORE_NAMES, measure
from jemstone.report.read import Result as ReadResult
from jemstone.report.report import SECTIONS as SHOWN

NAMES = [
    *(f"{prefix}{name}" for prefix in ("", "scaled/") for name in HIGHER_IS_BETTER if "/" not in name),
    *(f"ood/noise/log_density/{metric}" for metric in ("auroc", "aupr_in", "aupr_out", "fpr95")),
    *(f"ood_mean/{r}/max_logit/{m}" for r in ("near", "far") for m in ("auroc", "aupr_in", "aupr_out", "fpr95")),
    *(f"corruption/{kind}/{metric}" for kind in ("blur", "mean") for metric in ("accuracy", "ece", "auroc")),
    *("pgd_linf/0.1", "pgd_l2/0.5", "autoattack_linf/0.03", "autoattack_l2/0.5", "black_box_linf/0.1"),
    *(f"refined/5/{name}" for name in ("accuracy", "pgd_linf/0.1", "transfer_linf/0.1", "worst_linf/0.1")),
    *("distal/convinced", "distal/auroc"),
    *(f"{source}/{metric}" for source in ("generation", "by_class", "real") for metric in
      ("fid", "kid", "precision", "recall", "density", "coverage")),
    *("generation/inception_score", "generation/memorised", "by_class/consistent", "legacy/fid"),
    *(f"long_run/{name}" for name in ("energy_drift", "diversity", "survived")),
    *(f"likelihood/{name}" for name in ("log_z", "train", "test", "bits_per_dim")),
]  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, "temperature", "never_heard_of"])
def test_direction_of_every_metric(name):
    assert {1: True, -1: False, 0: None}[measure(name).better] is higher_is_better(name)


@pytest.mark.parametrize("name", [*NAMES, "temperature"])
def test_every_metric_has_words(name):
    assert measure(name).group != OTHER


def test_every_direction_is_looked_at():
    names = [*NAMES, *(name.removeprefix("refined/5/") for name in NAMES)]
    assert [pattern for pattern in HIGHER_IS_BETTER if not any(fnmatchcase(name, pattern) for name in names)] == []


def test_every_score_is_explained():
    assert SCORE_NAMES.keys() == {*SCORES, REFINED} == SCORE_MEANINGS.keys()


def test_every_section_is_known():
    assert tuple(SHOWN) == tuple(SECTIONS)


def test_results_have_the_same_fields():
    assert tuple(ReadResult.__dataclass_fields__) == Result._fields
