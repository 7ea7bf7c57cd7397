"""What is measured, frozen under a version name: a trained model and a data set in, numbers with intervals out.

Two runs compare only where their protocols are equal, so the protocol travels with the figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from jemstone.data.dataset import Dataset, to_box
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError, DataError, MissingExtra
from jemstone.evaluation.calibration import ece, reliability
from jemstone.evaluation.classification import accuracy, brier, nll
from jemstone.evaluation.forward import frozen, in_batches
from jemstone.evaluation.intervals import Result
from jemstone.evaluation.ood import SCORES, builtin_ood_sets, detection
from jemstone.evaluation.robustness import Norm, pgd_accuracy
from jemstone.rng import generator

SCORE_BINS = 40
"""Bins of the score histograms in `figures`."""

HIGHER_IS_BETTER = {
    "accuracy": True,
    "nll": False,
    "brier": False,
    "ece": False,
    "ood/*/auroc": True,
    "ood/*/aupr": True,
    "ood/*/fpr95": False,
    "pgd_*": True,
}
"""Direction of every metric, by shell-style pattern of its result's name; the first match counts."""


@dataclass(frozen=True)
class Protocol:
    """Everything that moves a number. `linf` and `l2` are radii in [0, 1] pixels; images beyond a limit are left out
    by a seeded draw (`attack_images` of the test images, `ood_images` of each out-of-distribution set).
    """

    name: str = "v0"
    bins: int = 15
    resamples: int = 1000
    attack_images: int = 300
    attack_steps: int = 40
    linf: tuple[float, ...] = (0.01, 0.03, 0.05, 0.1, 0.15, 0.2)
    l2: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5, 2.0)
    ood_images: int = 10_000
    seed: int = 0
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Raises ConfigError for a count below its minimum or a radius that is not positive."""
        least = {"bins": 1, "resamples": 1, "attack_images": 1, "attack_steps": 1, "ood_images": 2, "batch_size": 1}
        for field, minimum in least.items():
            if not getattr(self, field) >= minimum:
                raise ConfigError(f"Protocol.{field} must be at least {minimum}, got {getattr(self, field)}.")
        if not all(eps > 0 for eps in (*self.linf, *self.l2)):
            raise ConfigError(f"Protocol.linf and .l2 are positive radii; got {self.linf} and {self.l2}.")


class Evaluation(NamedTuple):
    """`results`, one per measured number; `figures`, plain lists and numbers that a plot needs (JSON-serialisable)."""

    results: list[Result]
    figures: dict[str, Any]


class Row(NamedTuple):
    """One metric over several runs. `better` is "higher", "lower" or "" (unknown); a missing cell is None."""

    name: str
    better: str
    cells: list[Result | None]


def evaluate(
    model: EnergyClassifier,
    data: Dataset,
    *,
    ood: Mapping[str, Tensor] | None = None,
    protocol: Protocol = Protocol(),
    on_progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measure `model` on `data.test`: classification, calibration, out-of-distribution detection, robustness.

    `ood` adds named sets (n, ...) of the data's input shape, uint8 images or floats in model units, to those made from
    the test inputs. Every score of `SCORES` is measured on every set. Attacks need a box and foolbox; what could not
    be measured is said in `figures["notes"]`. The model is left as it was found: modes, gradients, random state.

    Raises DataError where the data do not fit the model or are not usable, ConfigError for a set's name.
    """
    say = on_progress or (lambda _: None)
    notes: list[str] = []
    with frozen(model):
        say(f"logits of {len(data.test)} test inputs")
        labels = data.test.labels
        logits = _logits(model, data, protocol.batch_size)
        results, diagram = _predictions(logits, labels.numpy(), protocol)
        detections, scores, sizes = _detection(model, data, ood or {}, protocol, notes, say)
        attacks, robustness, attacked = _robustness(model, data, protocol, notes, say)
    fields = json.loads(json.dumps(asdict(protocol)))  # tuples become lists, as they will when read back
    figures = {
        "protocol": fields,
        "notes": notes,
        "reliability": diagram,
        "scores": scores,
        "robustness": robustness,
        "sizes": {"test": len(data.test), "attack": attacked, "ood": sizes},
    }
    return Evaluation([*results, *detections, *attacks], figures)


def higher_is_better(name: str) -> bool | None:
    """Whether a larger value of the result `name` is the better one; None for a name that no pattern knows."""
    return next((up for pattern, up in HIGHER_IS_BETTER.items() if fnmatchcase(name, pattern)), None)


def comparison(runs: Mapping[str, Sequence[Result]]) -> list[Row]:
    """One row per result name, in first-seen order; its cells follow the order of `runs`."""
    by_name = [{result.name: result for result in results} for results in runs.values()]
    names = dict.fromkeys(name for results in by_name for name in results)
    words = {True: "higher", False: "lower", None: ""}
    return [Row(name, words[higher_is_better(name)], [run.get(name) for run in by_name]) for name in names]


def _logits(model: EnergyClassifier, data: Dataset, batch_size: int) -> Float[np.ndarray, "n k"]:
    """Logits of the test split, after making sure that they mean something."""
    labels = data.test.labels
    if len(labels) == 0:
        raise DataError(f"Data set {data.name!r} has no test examples; there is nothing to evaluate on.")
    if not bool(((labels >= 0) & (labels < data.num_classes)).all()):
        raise DataError(
            f"Test labels of {data.name!r} must lie in [0, {data.num_classes}), found {int(labels.min())} to "
            f"{int(labels.max())}. Unlabelled examples (-1) belong in the training split."
        )
    logits = in_batches(lambda model, x: model(x), model, data.test.inputs, batch_size)
    if logits.shape[1] != data.num_classes:
        raise DataError(
            f"The model has {logits.shape[1]} classes and data set {data.name!r} has {data.num_classes}; "
            "evaluate it on the data set that it was trained for."
        )
    bad = int((~np.isfinite(logits).all(axis=1)).sum())
    if bad:
        raise DataError(f"The model's logits are not finite on {bad} of {len(labels)} test inputs of {data.name!r}.")
    return logits


def _predictions(
    logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], protocol: Protocol
) -> tuple[list[Result], dict[str, Any]]:
    seed, resamples = protocol.seed, protocol.resamples
    results = [
        accuracy(logits, labels),
        nll(logits, labels, seed=seed, resamples=resamples),
        brier(logits, labels, seed=seed, resamples=resamples),
        ece(logits, labels, bins=protocol.bins, seed=seed, resamples=resamples),
    ]
    return results, dict(reliability(logits, labels, protocol.bins))


def _detection(
    model: EnergyClassifier,
    data: Dataset,
    extra: Mapping[str, Tensor],
    protocol: Protocol,
    notes: list[str],
    say: Callable[[str], None],
) -> tuple[list[Result], dict[str, Any], dict[str, int]]:
    sets = _ood_sets(data, extra, protocol, notes)
    results, figures = [], {}
    for score_name, score in SCORES.items():
        say(f"scores: {score_name}")
        inside = in_batches(score, model, data.test.inputs, protocol.batch_size)
        outside = {name: in_batches(score, model, x, protocol.batch_size) for name, x in sets.items()}
        for name, values in outside.items():
            prefix = f"ood/{name}/{score_name}"
            results += detection(prefix, inside, values, seed=protocol.seed, resamples=protocol.resamples)
        figures[score_name] = _histogram(inside, outside)
    # Grouped by set, as a table is read; figures stay grouped by score, as they are plotted.
    order = {name: i for i, name in enumerate(sets)}
    results.sort(key=lambda result: order[result.name.split("/")[1]])
    return results, figures, {name: len(x) for name, x in sets.items()}


def _ood_sets(data: Dataset, extra: Mapping[str, Tensor], protocol: Protocol, notes: list[str]) -> dict[str, Tensor]:
    chosen = _subset(len(data.test), protocol.ood_images, protocol.seed, "ood")
    sets: dict[str, Tensor] = {}
    if len(chosen) >= 2:
        sets = builtin_ood_sets(data.test.inputs[chosen], data.test.labels[chosen], data.box, protocol.seed)
    if data.box is not None and "rotated" not in sets:
        notes.append("Out-of-distribution set 'rotated' left out: the images are not square.")
    if "interpolated" not in sets:
        notes.append("Out-of-distribution set 'interpolated' left out: it needs test inputs of two classes.")
    for name, x in extra.items():
        if name in sets or not name or "/" in name:
            raise ConfigError(f"An out-of-distribution set cannot be called {name!r}: taken, empty, or with a slash.")
        if tuple(x.shape[1:]) != data.input_shape or len(x) == 0:
            raise DataError(
                f"Out-of-distribution set {name!r} has shape {tuple(x.shape)}; it needs (n, ...) with n >= 1 inputs of "
                f"shape {data.input_shape}. Resize or crop it first."
            )
        x = to_box(x[_subset(len(x), protocol.ood_images, protocol.seed, "ood", name)])
        if data.box is not None and not bool(((x >= data.box[0]) & (x <= data.box[1])).all()):
            raise DataError(f"Out-of-distribution set {name!r} leaves the range {data.box} of images; pass uint8.")
        sets[name] = x
    return sets


def _histogram(inside: Float[np.ndarray, " n"], outside: Mapping[str, Float[np.ndarray, " m"]]) -> dict[str, Any]:
    """Counts over shared edges between the union's 0.5 % and 99.5 % quantiles; the end bins hold what lies beyond."""
    low, high = np.quantile(np.concatenate([inside, *outside.values()]), (0.005, 0.995))
    if not high > low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, SCORE_BINS + 1)

    def counts(values: Float[np.ndarray, " n"]) -> list[int]:
        # By clipped index, not clipped value: the counts then always add up to n.
        which = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, SCORE_BINS - 1)
        return [int(count) for count in np.bincount(which, minlength=SCORE_BINS)]

    return {"edges": edges.tolist(), "test": counts(inside), "ood": {n: counts(v) for n, v in outside.items()}}


def _robustness(
    model: EnergyClassifier, data: Dataset, protocol: Protocol, notes: list[str], say: Callable[[str], None]
) -> tuple[list[Result], dict[str, Any], int]:
    if data.box is None:
        notes.append("Robustness not measured: the inputs are vectors without a box, so radii in pixels mean nothing.")
        return [], {}, 0
    chosen = _subset(len(data.test), protocol.attack_images, protocol.seed, "attack")
    norms: dict[Norm, tuple[float, ...]] = {"linf": protocol.linf, "l2": protocol.l2}
    results: list[Result] = []
    curves: dict[str, Any] = {}
    for norm, radii in norms.items():
        if not radii:
            continue
        say(f"attack: {norm} at {len(radii)} radii on {len(chosen)} images")
        try:
            measured, curve = pgd_accuracy(
                model, data.test.inputs[chosen], data.test.labels[chosen], norm=norm, eps=radii, box=data.box,
                steps=protocol.attack_steps, seed=protocol.seed, batch_size=protocol.batch_size,
            )  # fmt: skip
        except MissingExtra as missing:
            notes.append(f"Robustness not measured. {missing}")
            return [], {}, 0
        results += measured
        curves[norm] = curve._asdict()
    return results, curves, len(chosen) if curves else 0


def _subset(n: int, limit: int, seed: int, *purpose: str) -> Int[Tensor, " m"]:
    """Indices of at most `limit` of n examples, drawn without replacement, in ascending order."""
    return torch.randperm(n, generator=generator(seed, "subset", *purpose))[:limit].sort().values
