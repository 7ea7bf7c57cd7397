"""Which way is better, for every result that an evaluation can write."""

from __future__ import annotations

from fnmatch import fnmatchcase

HIGHER_IS_BETTER: dict[str, bool] = {
    "accuracy": True,
    "nll": False,
    "brier": False,
    "ece": False,
    "ece_equal_mass": False,
    "mce": False,
    "classwise_ece": False,
    "ood/*/auroc": True,
    "ood/*/aupr_in": True,
    "ood/*/aupr_out": True,
    "ood/*/fpr95": False,
    "ood_mean/*/auroc": True,
    "ood_mean/*/aupr_in": True,
    "ood_mean/*/aupr_out": True,
    "ood_mean/*/fpr95": False,
    "corruption/*/accuracy": True,
    "corruption/*/ece": False,
    "pgd_linf/*": True,
    "pgd_l2/*": True,
    "autoattack_linf/*": True,
    "autoattack_l2/*": True,
    "black_box_linf/*": True,
    "transfer_linf/*": True,
    "worst_linf/*": True,
    "distal/convinced": False,
    "distal/auroc": True,
    "generation/fid": False,
    "generation/kid": False,
    "generation/precision": True,
    "generation/recall": True,
    "generation/coverage": True,
    "generation/inception_score": True,
    "generation/memorised": False,
    "by_class/fid": False,
    "by_class/kid": False,
    "by_class/precision": True,
    "by_class/recall": True,
    "by_class/coverage": True,
    "by_class/consistent": True,
    "legacy/fid": False,
    "long_run/survived": True,
    "likelihood/train": True,
    "likelihood/test": True,
    "likelihood/bits_per_dim": False,
}
"""Direction by shell-style pattern of a result's name; the first match counts.

Absent on purpose, because neither direction is better by itself:
`temperature` (1 is ideal); `corruption/*/auroc` (what is still classified well need not be rejected);
`generation/density`, `by_class/density` (above 1 where samples crowd the modes: more is not truer); `likelihood/log_z`;
`long_run/energy_drift` (0 is ideal) and `long_run/diversity` (that of the data is ideal, noise has more);
`real/*` (the floors of the generation metrics, measured on real images).
"""


def higher_is_better(name: str) -> bool | None:
    """Whether a larger value of the result `name` is the better one; None where neither is, or the name is unknown.

    `scaled/NAME` (after temperature scaling) goes the way of NAME, and so does `refined/K/NAME` (after K kernel steps).
    """
    head, _, rest = name.partition("/")
    if head == "scaled":
        name = rest
    elif head == "refined":
        name = rest.partition("/")[2]
    return next((up for pattern, up in HIGHER_IS_BETTER.items() if fnmatchcase(name, pattern)), None)
