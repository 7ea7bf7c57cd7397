"""Does the model know what it has not seen?  Every score against every foreign set, near and far ones apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jemstone.errors import ConfigError
from jemstone.evaluation.detection import detections
from jemstone.evaluation.foreign import BUILTIN, foreign_sets
from jemstone.evaluation.forward import in_batches
from jemstone.evaluation.histograms import counts
from jemstone.evaluation.intervals import Result
from jemstone.evaluation.scores import SCORES, refined_density
from jemstone.evaluation.section import Arrays, Common, Picture, Section, Subject, Warned, Work

SCORE_BINS = 40
"""Bins of the score histograms in `figures`."""

FEW = 100
"""Below this many inputs on either side, a detection metric is mostly its interval."""

COLUMNS = 10
"""Images shown of each set."""

REFINED = "refined_density"


@dataclass(frozen=True)
class OodSettings:
    """`images`, the most inputs of each foreign set; `near`, the names of the sets that resemble the data in meaning,
    all others being far; `refinement_steps`, how far the model's own sampler runs for `refined_density`.
    """

    images: int = 10_000
    near: tuple[str, ...] = ("interpolated", "rotated")
    refinement_steps: int = 20

    def __post_init__(self) -> None:
        """Raises ConfigError for a count below its minimum."""
        for field, minimum in {"images": 2, "refinement_steps": 1}.items():
            if not getattr(self, field) >= minimum:
                raise ConfigError(f"OodSettings.{field} must be at least {minimum}, got {getattr(self, field)}.")


QUICK = OodSettings(images=2000, refinement_steps=5)
FULL = OodSettings(images=100_000)


def ood_section(subject: Subject, settings: OodSettings, common: Common, work: Work) -> Section:
    """Detection of foreign inputs, built-in and `subject.foreign`, by every score; the whole test split is inside.

    The scores are those of `SCORES` and, for a subject with chains, `refined_density`. Raises ConfigError for a name
    in `near` that is no set's, DataError for sets that do not fit the data and for scores that are not finite.
    """
    data = subject.data
    sets, notes = foreign_sets(data, subject.foreign, settings.images, common.seed)
    unknown = sorted(set(settings.near) - set(sets) - set(BUILTIN))
    if unknown:
        raise ConfigError(f"OodSettings.near names {unknown}, which no set is called. There are: {', '.join(sets)}.")
    names = list(SCORES) if subject.chains is None else [*SCORES, REFINED]
    if subject.chains is None:
        notes.append(f"Score {REFINED!r} left out: it runs the model's own sampler, and the subject has no chains.")
    found = {}
    results: list[Result] = []
    for name in names:
        work.say(f"out-of-distribution inputs: {name}")
        scores = work.memo(f"ood-scores-{name}", partial(_scores, subject, sets, name, settings, common))
        lost = sum(int((~np.isfinite(values)).sum()) for values in scores.values())
        if name == REFINED and lost:
            notes.append(
                f"Score {REFINED!r} left out: {lost} of {sum(map(len, scores.values()))} chains that start from inputs "
                f"do not end in finite energies within {settings.refinement_steps} steps of the sampler."
            )
            continue
        found[name] = scores
        results += _detections(name, scores, list(sets), settings, common, work)
    # Grouped by set, as a table is read; figures stay grouped by score, as they are plotted.
    order = {name: i for i, name in enumerate([*(f"ood/{s}" for s in sets), "ood_mean/near", "ood_mean/far"])}
    results.sort(key=lambda result: order["/".join(result.name.split("/")[:2])])
    figures = {
        "scores": {name: _histogram(scores, list(sets)) for name, scores in found.items()},
        "near": [name for name in sets if name in settings.near],
        "far": [name for name in sets if name not in settings.near],
        "sizes": {name: len(x) for name, x in sets.items()},
    }
    examples = {f"{name}/{part}": v for name, s in found.items() for part, v in s.items()}
    warnings = _small({"the test split": len(data.test), **{repr(name): len(x) for name, x in sets.items()}})
    pictures = {"foreign": _picture(sets, data.box)} if data.box is not None and sets else {}
    return Section(results, figures, examples, warnings, notes, pictures)


def _scores(subject: Subject, sets: Mapping[str, Tensor], name: str, settings: OodSettings, common: Common) -> Arrays:
    """One score of every input, float64: "test" and "ood/SET"."""
    parts = {"test": subject.data.test.inputs, **{f"ood/{s}": x for s, x in sets.items()}}
    return {part: _score(subject, part, x, name, settings, common) for part, x in parts.items()}


def _score(
    subject: Subject, part: str, x: Tensor, name: str, settings: OodSettings, common: Common
) -> Float[np.ndarray, " n"]:
    size = common.batch_size
    if name != REFINED:
        return in_batches(SCORES[name], subject.model, x, size)
    assert subject.chains is not None, "only a subject with chains can be refined"
    batches = []
    for start in range(0, len(x), size):
        score = refined_density(subject.chains.sampler, settings.refinement_steps, common.seed, part, start)
        batches.append(in_batches(score, subject.model, x[start : start + size], size))
    return np.concatenate(batches)


def _detections(
    name: str, scores: Arrays, sets: list[str], settings: OodSettings, common: Common, work: Work
) -> list[Result]:
    def make() -> Arrays:
        outside = {s: scores[f"ood/{s}"] for s in sets}
        results = detections(
            name, scores["test"], outside, near=settings.near, seed=common.seed, resamples=common.resamples
        )
        return {result.name: np.array(result[1:]) for result in results}

    stored = work.memo(f"ood-detections-{name}", make)
    return [Result(key, float(v), float(low), float(high), int(n)) for key, (v, low, high, n) in stored.items()]


def _histogram(scores: Arrays, sets: list[str]) -> dict[str, Any]:
    """Counts over shared edges between the union's 0.5 % and 99.5 % quantiles; the end bins hold what lies beyond."""
    low, high = np.quantile(np.concatenate(list(scores.values())), (0.005, 0.995))
    if not high > low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, SCORE_BINS + 1)
    return {
        "edges": edges.tolist(),
        "test": counts(scores["test"], edges),
        "ood": {name: counts(scores[f"ood/{name}"], edges) for name in sets},
    }


def _small(sizes: Mapping[str, int]) -> list[Warned]:
    small = [f"{n} inputs in {name}" for name, n in sizes.items() if n < FEW]
    return [Warned("small-n", f"Out-of-distribution detection has only {', '.join(small)}.")] if small else []


def _picture(sets: Mapping[str, Tensor], box: tuple[float, float]) -> Picture:
    """The first images of each set, one row per set; grey where a set has fewer."""
    rows = []
    for x in sets.values():
        row = torch.full((COLUMNS, *x.shape[1:]), sum(box) / 2)
        row[: len(x)] = x[:COLUMNS]
        rows.append(row)
    caption = f"Foreign inputs, one set per row, from top to bottom: {', '.join(sets)}."
    return Picture(torch.cat(rows), caption, COLUMNS)
