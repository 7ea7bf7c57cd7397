"""Are samples of the model like the data, as varied as they are, and new?"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from scipy.special import softmax
from torch import Tensor

from jemstone.data.dataset import to_box
from jemstone.errors import ConfigError, DataError
from jemstone.evaluation.distances import Interval, fid, frechet, histogram, inception_score, kid, nearest, prdc
from jemstone.evaluation.extractors import Extractor, make_extractor, parse_spec
from jemstone.evaluation.features import (
    CHUNK,
    Drawn,
    Moments,
    Reference,
    Rows,
    drawn,
    merged,
    moments_of,
    reference,
    rows_through,
)
from jemstone.evaluation.forward import in_batches
from jemstone.evaluation.intervals import Result, exact_proportion
from jemstone.evaluation.section import Arrays, Common, Picture, Section, Subject, Warned, Work, subset

COLUMNS = 10
BINS = 40
OUTSIDE = 1e-3
"""Share of entries outside the box from which on it is a warning."""
LEGACY_IMAGES = 10_000
NEAR, TOLERATED, SAME = 0.01, 0.05, 1e-3
"""Quantile of test distances that is near; share of samples that may be nearer; distance that is but rounding."""


@dataclass(frozen=True)
class GenerationSettings:
    """`samples` fresh chains from p(x) and `by_class_samples` from p(x|y), compared in the features of `extractor`.

    `references` training rows, drawn once, and as many samples at most, enter KID, precision and recall; all samples
    are searched for copies of those rows; FID uses all of both. `neighbours` is k of precision and recall; `grid` the
    number of images in a picture.
    """

    extractor: str = "pixels"
    samples: int = 1000
    by_class_samples: int = 1000
    references: int = 10_000
    neighbours: int = 5
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    fid_resamples: int = 20
    grid: int = 50

    def __post_init__(self) -> None:
        """Raises ConfigError for an unknown extractor, a count below its minimum, or too many neighbours."""
        parse_spec(self.extractor)
        least = {
            "samples": 10, "by_class_samples": 10, "references": 10, "neighbours": 1, "kid_subsets": 2,
            "kid_subset_size": 2, "fid_resamples": 2, "grid": 1,
        }  # fmt: skip
        for name, minimum in least.items():
            if not getattr(self, name) >= minimum:
                raise ConfigError(f"GenerationSettings.{name} must be at least {minimum}, got {getattr(self, name)}.")
        if not self.neighbours < min(self.samples, self.by_class_samples, self.references):
            raise ConfigError(
                f"GenerationSettings.neighbours must be below samples, by_class_samples and references, got "
                f"{self.neighbours}; 5 is the usual choice."
            )


QUICK = GenerationSettings(samples=200, by_class_samples=200)
FULL = replace(GenerationSettings(), samples=50_000, by_class_samples=50_000)


@dataclass(frozen=True)
class _Task:
    """What every step below needs, and the lists that they add to."""

    subject: Subject
    settings: GenerationSettings
    common: Common
    work: Work
    extractor: Extractor
    results: list[Result] = field(default_factory=list)
    warnings: list[Warned] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def generation_section(subject: Subject, settings: GenerationSettings, common: Common, work: Work) -> Section:
    """Fresh chains against the training data, in features: likeness, variety, novelty.

    `generation/...` is about samples of p(x): `fid`, `kid`, `precision`, `recall`, `density`, `coverage`, where the
    extractor classifies `inception_score`, and `memorised`, the share of samples nearer to a training input than all
    but 1 % of the test inputs are. Average, featureless samples lie near many inputs too: look at the picture
    `neighbours` before calling them copies. `by_class/...` is about samples of p(x|y), with `consistent`, the share
    that the model itself assigns to the class asked for.

    `real/...` is the floor: test inputs in the place of samples, as many as these where the split has them. Samples
    no further from the training data than that are as good as new data to this extractor. FID depends on n, so
    distances compare at equal n and equal extractor only. `legacy/fid` is the protocol of the JEM++ and SADA-JEM
    papers, for comparison with those alone: up to 10,000 chains of the buffer, of each predicted class the more
    confident half, against train and test data together. It flatters: it selects, and it knows the test data.

    Samples outside the box are clamped for features and pictures. Statistics of data are cached (`features.reference`).
    """
    pictures: dict[str, Picture] = {}
    data, chains = subject.data, subject.chains
    if data.box is not None:
        pictures["data"] = Picture(to_box(data.train.spread(settings.grid).inputs).cpu(), "Training images.", COLUMNS)
    if chains is None:
        note = "Generation not measured: the model has no chains, it is a plain classifier."
        return Section([], {}, {}, [], [note], pictures)
    extractor = subject.extractor or make_extractor(settings.extractor, data, subject.device)
    task = _Task(subject, settings, common, work, extractor)
    train = reference(task.extractor, data, "train", settings.references, work=work)
    test = reference(task.extractor, data, "test", settings.references, work=work)
    fresh = _samples(task, settings.samples, by_class=False)
    by_class = _samples(task, settings.by_class_samples, by_class=True)
    chosen = subset(len(test.pool), settings.samples, common.seed, "generation", "real").numpy()
    work.say("distances of samples from data")
    shown, closest, per_class = None, np.zeros((0, 0), dtype=np.int64), {}
    if fresh is not None:
        _distances(task, "generation", fresh.rows, train)
        shown, closest = _memorised(task, fresh.rows, train, test)
    if by_class is not None:
        _distances(task, "by_class", Rows(by_class.rows.pool), train)
        right = int((by_class.predicted == by_class.labels).sum())
        task.results.append(exact_proportion("by_class/consistent", right, len(by_class.labels)))
        per_class = _per_class(task, by_class, train)
    _distances(task, "real", Rows(test.pool[chosen]), train)
    _legacy(task, merged(train.moments, test.moments))
    dimension = train.pool.shape[1]
    _warn_of_size(task, dimension, len(chosen))
    if data.box is not None:
        pictures |= _pictures(task, fresh, by_class, train.chosen[closest[:COLUMNS]])
    logits = fresh is not None and fresh.rows.logits is not None
    figures = {
        "extractor": {"name": task.extractor.name, "dimension": dimension, "logits": logits},
        "samples": settings.samples, "nearest": shown, "per_class_fid": per_class, "life": chains.life,
    }  # fmt: skip
    return Section(task.results, figures, {}, task.warnings, task.notes, pictures)


def _samples(task: _Task, n: int, *, by_class: bool) -> Drawn | None:
    """n samples; None, and a note, where their chains are not finite."""
    kind = "by_class" if by_class else "generation"
    task.work.say(f"{kind}: {n} chains")
    try:
        found = drawn(task.extractor, task.subject, n, task.common, task.work, by_class=by_class)
    except DataError as error:
        task.notes.append(f"{kind}/... not measured: {error}")
        return None
    if found.outside > OUTSIDE:
        text = (
            f"{kind}: {100 * found.outside:.2f} % of the entries of {n} samples lie outside {task.subject.data.box}; "
            f"the largest |x| is {found.largest:.3g}."
        )
        task.warnings.append(Warned("chains-left-box", text))
    return found


def _distances(task: _Task, prefix: str, rows: Rows, train: Reference) -> None:
    """Add what `rows` measure against the training data to the results, under `prefix`."""
    settings, seed = task.settings, task.common.seed
    few = rows.pool[: settings.references]
    if min(len(few), len(train.pool)) <= max(settings.neighbours, 3):
        task.notes.append(f"{prefix}/... not measured: {len(few)} inputs against {len(train.pool)} are too few.")
        return

    def make() -> Arrays:
        found: dict[str, Interval] = {
            "fid": fid(rows.pool, train.moments, seed=seed, resamples=settings.fid_resamples),
            "kid": kid(few, train.pool, subsets=settings.kid_subsets, subset_size=settings.kid_subset_size, seed=seed),
            **prdc(train.pool, few, settings.neighbours, seed=seed, resamples=task.common.resamples),
        }
        if rows.logits is not None:
            found["inception_score"] = inception_score(rows.logits)
        return {name: np.array(interval) for name, interval in found.items()}

    for name, values in task.work.memo(f"generation-{prefix}-distances", make).items():
        value, low, high = values.tolist()
        n = len(few) if name not in ("fid", "inception_score") else len(rows.pool)
        task.results.append(Result(f"{prefix}/{name}", value, low, high, n))


def _memorised(
    task: _Task, rows: Rows, train: Reference, test: Reference
) -> tuple[dict[str, Any], Int[np.ndarray, "n near"]]:
    """Add the share of copies; return distances to the nearest training input as a histogram, and the three nearest."""

    def make() -> Arrays:
        samples, indices = nearest(rows.pool, train.pool, 3)
        return {"samples": samples[:, 0], "test": nearest(test.pool, train.pool)[0][:, 0], "indices": indices}

    found = task.work.memo("generation-nearest", make)
    new = found["test"][found["test"] > SAME]  # a test input that is a training input too says nothing about copies
    limit = max(float(np.quantile(new, NEAR)) if len(new) else 0.0, SAME)
    copies = exact_proportion("generation/memorised", int((found["samples"] < limit).sum()), len(rows.pool))
    task.results.append(copies)
    if copies.low > TOLERATED:
        text = (
            f"{100 * copies.value:.1f} % of {copies.n} samples lie nearer to a training input than {limit:.3g}; 1 % of "
            "test inputs do."
        )
        task.warnings.append(Warned("memorised-samples", text))
    if len(train.pool) < train.moments.n:
        task.notes.append(
            f"Copies were looked for among {len(train.pool)} of {train.moments.n} training inputs: the share of "
            "memorised samples may be larger. Raise GenerationSettings.references to look among all."
        )
    return histogram({name: found[name] for name in ("samples", "test")}, BINS), found["indices"]


def _per_class(task: _Task, samples: Drawn, train: Reference) -> dict[str, float]:
    """FID class by class, where samples and kept training rows of the class outnumber the dimensions."""
    labels = task.subject.data.train.labels.cpu().numpy()[train.chosen]
    pairs = {
        name: (train.pool[labels == c], samples.rows.pool[samples.labels == c])
        for c, name in enumerate(task.subject.data.class_names)
    }
    full = {name: pair for name, pair in pairs.items() if min(map(len, pair)) > train.pool.shape[1]}
    return {name: frechet(moments_of(real), moments_of(fake)) for name, (real, fake) in full.items()}


def _legacy(task: _Task, everything: Moments) -> None:
    """Add `legacy/fid`, or say why not."""
    subject, work = task.subject, task.work
    buffer = _buffer(subject)
    if buffer is None:
        task.notes.append("legacy/fid not measured: the buffer was not kept, or its chains are not finite.")
        return
    work.say("legacy FID of the replay buffer")
    logits = in_batches(lambda model, x: model(x), subject.model, buffer, task.common.batch_size)
    confidence, predicted = softmax(logits, axis=1).max(axis=1), logits.argmax(axis=1)
    best = np.argsort(-confidence, kind="stable")
    members = [best[predicted[best] == c] for c in range(logits.shape[1])]
    limit = max(LEGACY_IMAGES // logits.shape[1], 1)
    picked = torch.from_numpy(np.concatenate([rows[: min((len(rows) + 1) // 2, limit)] for rows in members]))
    if len(picked) < 2:
        task.notes.append("legacy/fid not measured: the buffer has fewer than two chains to choose.")
        return
    pools = [
        rows_through(work, f"generation-buffer-features-{i}", task.extractor, buffer[part.to(buffer.device)]).pool
        for i, part in enumerate(torch.split(picked, CHUNK))
    ]
    rows = np.concatenate(pools)
    interval = fid(rows, everything, seed=task.common.seed, resamples=task.settings.fid_resamples)
    task.results.append(Result("legacy/fid", *interval, len(rows)))


def _buffer(subject: Subject) -> Tensor | None:
    """The persistent chains in the box; None where there are none, or one is not finite."""
    assert subject.chains is not None, "only a subject with chains has a buffer"
    buffer = subject.chains.buffer
    if buffer is None or not len(buffer) or not bool(buffer.isfinite().all()):
        return None
    buffer = to_box(buffer)
    return buffer if subject.data.box is None else buffer.clamp(*subject.data.box)


def _warn_of_size(task: _Task, dimension: int, real: int) -> None:
    counts = {"generation": task.settings.samples, "by_class": task.settings.by_class_samples, "real": real}
    bounds = {"rank-deficient": (dimension, f"the features have {dimension} dimensions"), "small-n": (99, "below 100")}
    for name, (limit, what) in bounds.items():
        short = [f"{part} n = {n}" for part, n in counts.items() if n <= limit]
        if short:
            task.warnings.append(Warned(name, f"{', '.join(short)}; {what}."))


def _pictures(
    task: _Task, fresh: Drawn | None, by_class: Drawn | None, closest: Int[np.ndarray, "m near"]
) -> dict[str, Picture]:
    data, chains = task.subject.data, task.subject.chains
    assert chains is not None, "only chains make pictures"
    grid, origin = task.settings.grid, f"{chains.start} start, {chains.life} steps of the training kernel"
    pictures = {}
    if fresh is not None:
        pictures["fresh"] = Picture(fresh.first[:grid], f"Fresh chains on E(x): {origin}.", COLUMNS)
        near = to_box(data.train.inputs[torch.from_numpy(closest.T.reshape(-1))].cpu())
        caption = "Fresh chains (first row) and, below each, its three nearest training images in features."
        pictures["neighbours"] = Picture(torch.cat([fresh.first[: len(closest)], near]), caption, len(closest))
    if by_class is not None:
        columns = min(data.num_classes, COLUMNS)
        shown = torch.from_numpy(by_class.labels[: len(by_class.first)] < columns)
        first = by_class.first[shown][: max(grid // COLUMNS, 1) * columns]
        caption = f"Fresh chains on E(x, y), one class per column, {columns} classes: {origin}."
        pictures["by_class"] = Picture(first, caption, columns)
    buffer = _buffer(task.subject)
    if buffer is not None:
        picked = subset(len(buffer), grid, task.common.seed, "generation", "buffer").to(buffer.device)
        pictures["buffer"] = Picture(buffer[picked].cpu(), "Replay buffer: a random draw, not selected.", COLUMNS)
    return pictures
