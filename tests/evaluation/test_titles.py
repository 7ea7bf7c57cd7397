"""Names as a table's head prints them, and their digits."""

import pytest

from jemstone.evaluation.titles import number, title


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", "Accuracy (%)"),
        ("nll", "NLL"),
        ("scaled/ece", "ECE, scaled (%)"),
        ("ood/cifar100/log_density/auroc", "AUROC, cifar100, log p(x) (%)"),
        ("ood_mean/near/mahalanobis/fpr95", "FPR95, near OOD, mahalanobis (%)"),
        ("corruption/mean/ece", "Corrupted (mean): ECE (%)"),
        ("pgd_linf/0.03", "PGD, L∞ ≤ 0.03 (%)"),
        ("refined/5/pgd_linf/0.1", "PGD, L∞ ≤ 0.1, after 5 steps (%)"),
        ("refined/5/accuracy", "Accuracy, after 5 steps (%)"),
        ("generation/fid", "FID"),
        ("real/fid", "FID, real"),
        ("by_class/recall", "Recall, by class (%)"),
        ("something/new", "something/new"),
    ],
)
def test_title(name, expected):
    assert title(name) == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("accuracy", 0.93149, "93.1"),
        ("nll", 0.21349, "0.213"),
        ("legacy/fid", 9.4, "9.40"),
        ("generation/kid", 0.01234, "0.0123"),
        ("likelihood/test", -12345.67, "-12345.7"),
        ("nll", float("nan"), "not finite"),
    ],
)
def test_number(name, value, expected):
    assert number(name, value) == expected
