"""What the name of a result means: its group, its words, which way is better, and how its value is printed.

The report imports no torch and so nothing of the evaluation, which knows the directions too: a test holds both
together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Measure:
    """What a result's name means. `better` is +1 where higher is better, -1 where lower is, 0 where neither is."""

    group: str
    label: str
    better: int = 0
    percent: bool = False
    decimals: int = 3


CLASSIFICATION, CALIBRATION, SCALED = "Classification", "Calibration", "Calibration after temperature scaling"
DETECTION, CORRUPTIONS, ATTACKS = "Out-of-distribution detection", "Corruptions", "Accuracy under attack"
REFINEMENT, DISTAL, GENERATION = "Refinement defence", "Distal adversarials", "Samples"
LONG_RUN, LIKELIHOOD, OTHER = "Long-run chains", "Likelihood", "Other measurements"
GROUPS = (
    *(CLASSIFICATION, CALIBRATION, SCALED, DETECTION, CORRUPTIONS, ATTACKS, REFINEMENT, DISTAL, GENERATION),
    *(LONG_RUN, LIKELIHOOD, OTHER),
)

SCORE_NAMES = {
    "log_density": "log p(x)",
    "max_logit": "max logit",
    "max_probability": "max p(y|x)",
    "negative_entropy": "−entropy",
    "approximate_mass": "approximate mass",
    "refined_density": "refined log p(x)",
}
SCORE_MEANINGS = {
    "log_density": (
        "the model's log-density up to a constant, which is the logsumexp of the logits. On a plain classifier, "
        "where nothing was trained to make it a density, this is the post-hoc energy score (Liu et al. 2020)"
    ),
    "max_logit": (
        "the largest logit (Hendrycks et al. 2022), which is the joint log-density log p(x, y) of the predicted class "
        "up to the same constant"
    ),
    "max_probability": "the probability of the likeliest class, the usual baseline (Hendrycks and Gimpel 2017)",
    "negative_entropy": "minus the entropy of p(y|x) in nats: 0 where the classifier is sure",
    "approximate_mass": (
        "minus the norm of the gradient of log p(x): near 0 where probability mass is flat and typical, "
        "strongly negative on slopes (Grathwohl et al. 2020)"
    ),
    "refined_density": "log p(x) at the place to which a few steps of the model's own sampler carry the input",
}
OOD_METRICS = {"auroc": +1, "aupr_in": +1, "aupr_out": +1, "fpr95": -1}
OOD_NAMES = {
    "auroc": "AUROC",
    "aupr_in": "AUPR, test as positive",
    "aupr_out": "AUPR, other set as positive",
    "fpr95": "FPR at 95 % TPR",
}

_PREDICTIONS = {
    "accuracy": Measure(CLASSIFICATION, "Accuracy, %", +1, percent=True),
    "nll": Measure(CLASSIFICATION, "Negative log-likelihood, nats", -1),
    "brier": Measure(CLASSIFICATION, "Brier score", -1),
    "ece": Measure(CALIBRATION, "Expected calibration error (ECE), %", -1, percent=True),
    "ece_equal_mass": Measure(CALIBRATION, "ECE in bins of equal count, %", -1, percent=True),
    "mce": Measure(CALIBRATION, "Largest error of a bin (MCE), %", -1, percent=True),
    "classwise_ece": Measure(CALIBRATION, "ECE of all classes (classwise), %", -1, percent=True),
}
_FIXED = {
    **_PREDICTIONS,
    "temperature": Measure(CALIBRATION, "Temperature T, fitted on validation"),
    "distal/convinced": Measure(DISTAL, "Starts from noise that end convincing, %", -1, percent=True),
    "distal/auroc": Measure(DISTAL, "AUROC of log p(x), test against these", +1),
    "legacy/fid": Measure(GENERATION, "FID by the legacy protocol", -1),
    "long_run/energy_drift": Measure(LONG_RUN, "Energy drift after one chain life, nats"),
    "long_run/diversity": Measure(LONG_RUN, "Diversity at the end, that of data = 1"),
    "long_run/survived": Measure(LONG_RUN, "Chains that end among energies of data, %", +1, percent=True),
    "likelihood/log_z": Measure(LIKELIHOOD, "log Z, nats"),
    "likelihood/train": Measure(LIKELIHOOD, "log p(x) of training inputs, nats", +1),
    "likelihood/test": Measure(LIKELIHOOD, "log p(x) of test inputs, nats", +1),
    "likelihood/bits_per_dim": Measure(LIKELIHOOD, "Bits per dimension, test inputs", -1),
}
SAMPLES = {
    "fid": Measure(GENERATION, "FID", -1),
    "kid": Measure(GENERATION, "KID", -1, decimals=4),
    "precision": Measure(GENERATION, "Precision, %", +1, percent=True),
    "recall": Measure(GENERATION, "Recall, %", +1, percent=True),
    "density": Measure(GENERATION, "Density"),
    "coverage": Measure(GENERATION, "Coverage, %", +1, percent=True),
    "inception_score": Measure(GENERATION, "Inception Score", +1, decimals=2),
    "memorised": Measure(GENERATION, "Memorised samples, %", -1, percent=True),
    "consistent": Measure(GENERATION, "Assigned to the class asked for, %", +1, percent=True),
}
"""Metrics of samples, wherever these come from."""
SOURCES = {"generation": "samples of p(x)", "by_class": "samples of p(x|y)", "real": "test inputs: the floor"}
_ATTACKS = {
    "pgd_linf": ("PGD", "L∞"),
    "pgd_l2": ("PGD", "L2"),
    "autoattack_linf": ("AutoAttack", "L∞"),
    "autoattack_l2": ("AutoAttack", "L2"),
    "black_box_linf": ("a black-box attack", "L∞"),
    "transfer_linf": ("PGD on the plain classifier", "L∞"),
    "worst_linf": ("the worst of both attacks", "L∞"),
}
_CORRUPTED = {
    "accuracy": ("accuracy, %", +1, True),
    "ece": ("ECE, %", -1, True),
    "auroc": ("AUROC of log p(x)", 0, False),
}


def measure(name: str) -> Measure:
    """The meaning of a result's name; a name not known is shown as it is, without a better direction."""
    if name in _FIXED:
        return _FIXED[name]
    match name.split("/"):
        case ["scaled", what] if what in _PREDICTIONS:
            return replace(_PREDICTIONS[what], group=SCALED)
        case [source, what] if source in SOURCES and what in SAMPLES:
            known = SAMPLES[what]
            return replace(known, label=f"{known.label}, {SOURCES[source]}", better=known.better * (source != "real"))
        case [attack, radius] if attack in _ATTACKS:
            return attacked(attack, radius)
        case ["refined", steps, "accuracy"]:
            return Measure(REFINEMENT, f"After {steps} steps, not attacked, %", +1, percent=True)
        case ["refined", steps, attack, radius] if attack in _ATTACKS:
            under = attacked(attack, radius)
            return replace(
                under, group=REFINEMENT, label=f"After {steps} steps, {under.label[0].lower()}{under.label[1:]}"
            )
        case ["corruption", kind, what] if what in _CORRUPTED:
            label, better, percent = _CORRUPTED[what]
            return Measure(CORRUPTIONS, f"{'Mean of kinds' if kind == 'mean' else kind}: {label}", better, percent)
        case ["ood_mean", regime, score, metric] if metric in OOD_METRICS:
            label = f"{OOD_NAMES[metric]} of {SCORE_NAMES.get(score, score)}, mean over {regime} sets"
            return Measure(DETECTION, label, OOD_METRICS[metric])
        case ["ood", *foreign, score, metric] if foreign and metric in OOD_METRICS:
            label = f"{OOD_NAMES[metric]} of {SCORE_NAMES.get(score, score)} against {'/'.join(foreign)}"
            return Measure(DETECTION, label, OOD_METRICS[metric])
    return Measure(OTHER, name)


def attacked(attack: str, radius: str) -> Measure:
    """Accuracy under one attack at one radius."""
    who, norm = _ATTACKS[attack]
    shown = radius_text(radius) if norm == "L∞" else radius
    return Measure(ATTACKS, f"Under {who}, {norm}\u00a0≤\u00a0{shown}, %", +1, percent=True)


def number(value: float, percent: bool = False, decimals: int = 3) -> str:
    """A value as the page prints it: one decimal for per cents, `decimals` for other small numbers."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    text = f"{100 * value:.1f}" if percent else f"{value:.{decimals}f}" if abs(value) < 1000 else f"{value:.5g}"
    return text.replace("-", "−")


def radius_text(radius: str) -> str:
    """An L-infinity radius as the field writes it, 8/255, where it is a small whole number of grey levels."""
    try:
        levels = 255 * float(radius)
    except ValueError:
        return radius
    return f"{radius} ({levels:.0f}/255)" if 0.5 < levels < 32.5 and abs(levels - round(levels)) < 0.02 else radius
