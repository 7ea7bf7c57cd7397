"""What common corruptions do to accuracy and calibration, and whether log p(x) notices them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import softmax
from torch import Tensor

from jemstone.data.dataset import to_box
from jemstone.energy import EnergyClassifier, marginal_energy
from jemstone.errors import ConfigError, DataError
from jemstone.evaluation.calibration import equal_width, error_interval
from jemstone.evaluation.corruption_kinds import STRENGTHS, corrupt
from jemstone.evaluation.forward import in_batches
from jemstone.evaluation.intervals import TAILS, Result, bounded, containing, exact_proportion
from jemstone.evaluation.section import Arrays, Common, Picture, Section, Subject, Work, subset
from jemstone.rng import generator

SEVERITIES = (1, 2, 3, 4, 5)
METRICS = ("accuracy", "ece", "auroc")

Measure = Callable[[Int[np.ndarray, " n"]], Float[np.ndarray, "3 5"]]
"""How often each image counts -> `METRICS` at each severity."""


@dataclass(frozen=True)
class CorruptionSettings:
    """`images` of the test split at most, by a seeded draw; `kinds` of `STRENGTHS`; `bins` of the calibration error."""

    images: int = 2000
    kinds: tuple[str, ...] = tuple(STRENGTHS)
    bins: int = 15

    def __post_init__(self) -> None:
        """Raises ConfigError for a count below 1, and for kinds that are unknown, repeated, or none."""
        for name in ("images", "bins"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"CorruptionSettings.{name} must be at least 1, got {getattr(self, name)}.")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds) or not set(self.kinds) <= set(STRENGTHS):
            raise ConfigError(
                f"CorruptionSettings.kinds must be one or more of {list(STRENGTHS)}, each once, got {list(self.kinds)}."
            )


QUICK = CorruptionSettings(images=200)
FULL = CorruptionSettings(images=10_000)


def corruptions_section(subject: Subject, settings: CorruptionSettings, common: Common, work: Work) -> Section:
    """Results `corruption/KIND/METRIC`, means over the five severities, and `corruption/mean/METRIC`, over kinds too.

    METRIC is `accuracy`, `ece` (equal widths), or `auroc`, of log p(x) of the clean against the corrupted images.
    Intervals are for the draw of images: a resample takes the same images at all severities of all kinds, clean ones
    included. Raises DataError where logits are not finite.
    """
    kinds, notes = _measurable(subject, settings)
    if not kinds:
        return Section([], {}, {}, [], notes, {})
    chosen = subset(len(subject.data.test), settings.images, common.seed, "corruption")
    images, labels = subject.data.test.inputs[chosen], subject.data.test.labels[chosen].cpu().numpy()
    n = len(images)

    def seen(name: str) -> Arrays:
        def make() -> Arrays:
            corrupted = (corrupt(images, name, severity, common.seed) for severity in SEVERITIES)
            return _seen(subject.model, [images] if name == "clean" else corrupted, labels, name, common.batch_size)

        work.say(f"corruptions: {name}, {n} images")
        return work.memo(f"corruption-{name}", make)

    clean = seen("clean")
    damaged = [seen(kind) for kind in kinds]
    measures = [_measure(clean, arrays, settings.bins) for arrays in damaged]
    values = np.stack([measure(np.ones(n, dtype=np.int64)) for measure in measures])
    again = _resampled(measures, n, common)
    by_chance = _by_chance(damaged, settings.bins, common)

    results, curves = [], {}
    for i, kind in enumerate(kinds):
        of_kind = values[i].mean(axis=1), again[:, i].mean(axis=2), by_chance[:, i].mean(axis=1)
        results += _claims(f"corruption/{kind}", *of_kind, n)
        claims = []
        for s in range(len(SEVERITIES)):
            right = exact_proportion("accuracy", int(damaged[i]["correct"][s].sum()), n)
            claims.append([right, *_claims(kind, values[i, :, s], again[:, i, :, s], by_chance[:, i, s], n)[1:]])
        curves[kind] = {
            metric: {end: [getattr(claim[m], end) for claim in claims] for end in ("value", "low", "high")}
            for m, metric in enumerate(METRICS)
        }
    overall = values.mean(axis=(0, 2)), again.mean(axis=(1, 3)), by_chance.mean(axis=(1, 2))
    results += _claims("corruption/mean", *overall, n)
    sure = clean["confidence"]
    figures: dict[str, Any] = {
        "severities": list(SEVERITIES),
        "images": n,
        "clean": {
            "accuracy": float(clean["correct"].mean()),
            "ece": float(_errors(_cells(sure, settings.bins), sure - clean["correct"], settings.bins)[0]),
        },
        "kinds": curves,
    }
    return Section(results, figures, {}, [], notes, {"corruptions": _picture(images, kinds, common.seed)})


def _measurable(subject: Subject, settings: CorruptionSettings) -> tuple[list[str], list[str]]:
    """The kinds that fit the data, and notes on those that do not."""
    if subject.data.box is None:
        return [], ["Corruptions not measured: the inputs are vectors, and these corruptions are for images."]
    channels = subject.data.input_shape[0]
    if "jpeg" in settings.kinds and channels not in (1, 3):
        left = [kind for kind in settings.kinds if kind != "jpeg"]
        return left, [f"Corruption 'jpeg' left out: it takes one or three channels, the images have {channels}."]
    return list(settings.kinds), []


def _seen(
    model: EnergyClassifier, versions: Iterable[Tensor], labels: Int[np.ndarray, " n"], name: str, batch_size: int
) -> Arrays:
    """`correct`, `confidence` and `score` = log p(x) + log Z, each (versions, n)."""

    def logits_and_score(model: EnergyClassifier, x: Tensor) -> Float[Tensor, "b c"]:
        logits: Tensor = model(x)  # one pass for both; the score is scores.log_density
        return torch.cat([logits, -marginal_energy(logits)[:, None]], dim=1)

    both = np.stack([in_batches(logits_and_score, model, x, batch_size) for x in versions])
    bad = int((~np.isfinite(both).all(axis=2)).sum())
    if bad:
        raise DataError(f"The model's logits are not finite on {bad} images of corruption {name!r}.")
    logits = both[..., :-1]
    return {
        "correct": logits.argmax(axis=2) == labels,
        "confidence": softmax(logits, axis=2).max(axis=2),
        "score": both[..., -1],
    }


def _measure(clean: Arrays, damaged: Arrays, bins: int) -> Measure:
    """One sort here, and each resample is a matter of counting: an image counts w times."""
    inside, outside = clean["score"][0], damaged["score"]
    n = len(inside)
    cells, gap = _cells(damaged["confidence"], bins), damaged["confidence"] - damaged["correct"]
    order = outside.argsort(axis=1)
    ascending = np.take_along_axis(outside, order, axis=1)
    below = np.stack([np.searchsorted(row, inside, side="left") for row in ascending])
    not_above = np.stack([np.searchsorted(row, inside, side="right") for row in ascending])

    def measure(w: Int[np.ndarray, " n"]) -> Float[np.ndarray, "3 5"]:
        accuracy = (damaged["correct"] * w).sum(axis=1) / n
        error = _errors(cells, gap * w, bins)
        # detection.auroc: pairs where clean scores higher, equal ones by half; in integers, and each pair twice: exact.
        rank = np.pad(w[order].cumsum(axis=1), ((0, 0), (1, 0)))
        wins = np.take_along_axis(rank, below, axis=1) + np.take_along_axis(rank, not_above, axis=1)
        return np.stack([accuracy, error, (wins * w).sum(axis=1) / (2 * n**2)])

    return measure


def _cells(confidence: Float[np.ndarray, "s n"], bins: int) -> Int[np.ndarray, "s n"]:
    """The bin of each confidence, numbered on from row to row."""
    return equal_width(confidence, bins) + bins * np.arange(len(confidence))[:, None]


def _errors(cells: Int[np.ndarray, "s n"], gap: Float[np.ndarray, "s n"], bins: int) -> Float[np.ndarray, " s"]:
    """`calibration.ece` of every row, from confidence - correct."""
    rows, n = gap.shape
    sums = np.bincount(cells.ravel(), weights=gap.ravel(), minlength=bins * rows).reshape(rows, bins)
    error: Float[np.ndarray, " s"] = np.abs(sums).sum(axis=1) / n
    return error


def _resampled(measures: Sequence[Measure], n: int, common: Common) -> Float[np.ndarray, "r kinds 3 5"]:
    rng = generator(common.seed, "bootstrap", "corruption")
    counts = (torch.randint(n, (n,), generator=rng).bincount(minlength=n).numpy() for _ in range(common.resamples))
    return np.stack([np.stack([measure(w) for measure in measures]) for w in counts])


def _by_chance(damaged: Sequence[Arrays], bins: int, common: Common) -> Float[np.ndarray, "r kinds 5"]:
    """Calibration errors of a perfectly calibrated classifier with these confidences.

    One coin decides an image everywhere. So its labels agree between severities as much as they can, means over
    severities vary as much as they can, and it takes the most to call a mean miscalibrated.
    """
    coins = np.random.default_rng(generator(common.seed, "calibrated", "corruption").initial_seed())
    confidences = [arrays["confidence"] for arrays in damaged]
    cells = [_cells(confidence, bins) for confidence in confidences]

    def draw() -> Float[np.ndarray, "kinds 5"]:
        u = coins.random(confidences[0].shape[1])
        return np.stack([_errors(which, c - (u < c), bins) for which, c in zip(cells, confidences, strict=True)])

    return np.stack([draw() for _ in range(common.resamples)])


def _claims(
    prefix: str,
    values: Float[np.ndarray, " 3"],
    again: Float[np.ndarray, "r 3"],
    by_chance: Float[np.ndarray, " r"],
    n: int,
) -> list[Result]:
    """One result per metric. Where no resample can move a value, 0 or 1 out of n images bounds it."""
    results = []
    for metric, value, column in zip(METRICS, values.tolist(), again.T, strict=True):
        name = f"{prefix}/{metric}"
        if metric == "ece":
            results.append(Result(name, value, *error_interval(value, column, by_chance), n))
        else:
            low, high = np.quantile(column, TAILS)
            results.append(bounded(containing(name, value, low, high, n), n))
    return results


def _picture(images: Tensor, kinds: Sequence[str], seed: int) -> Picture:
    rows = []
    for kind, i in zip(kinds, torch.linspace(0, len(images) - 1, len(kinds)).long().tolist(), strict=True):
        image = images[i : i + 1]
        rows += [to_box(image.cpu()), *(corrupt(image, kind, severity, seed) for severity in SEVERITIES)]
    caption = f"Rows: {', '.join(kinds)}. Columns: the test image, then severities 1 to 5."
    return Picture(torch.cat(rows), caption, columns=1 + len(SEVERITIES))
