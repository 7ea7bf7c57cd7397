"""Every result has a direction on purpose, or none on purpose."""

import pytest

from jemstone.evaluation.directions import higher_is_better

UP = [
    "accuracy",
    "ood/cifar100/log_density/auroc",
    "ood/a/b/aupr_in",
    "ood/a/b/aupr_out",
    "ood_mean/near/log_density/auroc",
    "corruption/mean/accuracy",
    "pgd_linf/0.03",
    "pgd_l2/0.5",
    "autoattack_linf/0.03",
    "autoattack_l2/0.5",
    "black_box_linf/0.1",
    "refined/5/accuracy",
    "refined/5/pgd_linf/0.1",
    "refined/5/transfer_linf/0.1",
    "distal/auroc",
    "generation/precision",
    "generation/recall",
    "generation/coverage",
    "generation/inception_score",
    "long_run/survived",
    "likelihood/train",
    "likelihood/test",
    "by_class/consistent",
]
DOWN = [
    "nll",
    "brier",
    "ece",
    "ece_equal_mass",
    "mce",
    "classwise_ece",
    "scaled/nll",
    "scaled/ece",
    "scaled/classwise_ece",
    "ood/a/b/fpr95",
    "ood_mean/far/b/fpr95",
    "corruption/blur/ece",
    "distal/convinced",
    "generation/fid",
    "generation/kid",
    "generation/memorised",
    "by_class/fid",
    "legacy/fid",
    "likelihood/bits_per_dim",
]
NEITHER = [
    "temperature",
    "corruption/blur/auroc",
    "generation/density",
    "real/fid",
    "real/precision",
    "long_run/energy_drift",
    "long_run/diversity",
    "likelihood/log_z",
    "unknown",
    "scaled/unknown",
]


@pytest.mark.parametrize(
    ("name", "expected"), [(n, True) for n in UP] + [(n, False) for n in DOWN] + [(n, None) for n in NEITHER]
)
def test_direction(name, expected):
    assert higher_is_better(name) is expected
