"""Features of many inputs, batch by batch: of data, summed up as moments and kept for all runs, and of samples."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import partial, reduce
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from jemstone.data.dataset import Dataset
from jemstone.errors import DataError, RunError
from jemstone.evaluation.arrays import DAMAGED, read_arrays, write_arrays
from jemstone.evaluation.extractors import Extractor, unit_images
from jemstone.evaluation.forward import in_batches
from jemstone.evaluation.section import Arrays, Common, Subject, Work, subset

CHUNK = 1000
"""Inputs whose features are made, and chains that are run, in one piece: minutes of Inception on a CPU."""
OFF = 1e-6
"""How far beyond the box an entry counts as outside: not rounding."""


class Rows(NamedTuple):
    """Features of n inputs: `pool` (n, d), and `logits` (n, k) or None."""

    pool: Float[np.ndarray, "n d"]
    logits: Float[np.ndarray, "n k"] | None = None


class Moments(NamedTuple):
    """Number of rows, their mean, and their covariance with divisor n - 1 (zero for one row); float64."""

    n: int
    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]


class Reference(NamedTuple):
    """A split in features: moments of all of it, and the rows `pool` of the examples `chosen`, ascending."""

    moments: Moments
    pool: Float[np.ndarray, "m d"]
    chosen: Int[np.ndarray, " m"]


class Drawn(NamedTuple):
    """n samples of one kind, one per label: their features, the class that the model gives them, the first CHUNK.

    `outside` is the share of entries beyond the box, `largest` their largest |x|; everything else is of the samples
    clamped to the box.
    """

    rows: Rows
    labels: Int[np.ndarray, " n"]
    predicted: Int[np.ndarray, " n"]
    first: Float[Tensor, "m ..."]
    outside: float
    largest: float


def features_of(extractor: Extractor, images: Tensor, batch_size: int | None = None) -> Rows:
    """Features of stored images, uint8 or in the box (clamped to it), or of vectors; on the CPU, float32 or float64.

    `batch_size` defaults to the extractor's own. Raises DataError where features are not one finite vector per input.
    """
    size = batch_size or extractor.batch_size
    pools, logits = [], []
    with torch.no_grad():
        for start in range(0, len(images), size):
            part = images[start : start + size].to(extractor.device)
            found = extractor.function(unit_images(part))
            if found.pool.ndim != 2 or len(found.pool) != len(part) or not bool(found.pool.isfinite().all()):
                raise DataError(
                    f"Extractor {extractor.name!r} must return finite features (b, d); for {len(part)} inputs of shape "
                    f"{tuple(part.shape[1:])} it returned {tuple(found.pool.shape)}, perhaps with NaN."
                )
            pools.append(_floats(found.pool))
            if found.logits is not None:
                logits.append(_floats(found.logits))
    if not pools:
        raise DataError(f"No images to extract features {extractor.name!r} from.")
    return Rows(np.concatenate(pools), np.concatenate(logits) if logits else None)


def _floats(x: Tensor) -> Float[np.ndarray, "b d"]:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32)).cpu().numpy()


def moments_of(rows: Float[np.ndarray, "n d"]) -> Moments:
    """Moments of rows, n >= 1, summed in float64 about their own mean."""
    wide = rows.astype(np.float64)
    mean = wide.mean(axis=0)
    centred = wide - mean
    return Moments(len(rows), mean, centred.T @ centred / max(len(rows) - 1, 1))


def merged(a: Moments, b: Moments) -> Moments:
    """The moments of the rows of both together, exactly: scatters add, and so does that of the two means.

    Chan, Golub and LeVeque (1983): unlike sums of squares it loses no digits where the mean is large.
    """
    n = a.n + b.n
    gap = b.mean - a.mean
    scatter = (a.n - 1) * a.covariance + (b.n - 1) * b.covariance + a.n * b.n / n * np.outer(gap, gap)
    return Moments(n, a.mean + gap * b.n / n, scatter / max(n - 1, 1))


def cache_folder() -> Path:
    """Where statistics of data are kept: $JEMSTONE_CACHE, else ~/.cache/jemstone."""
    return Path(os.environ.get("JEMSTONE_CACHE") or Path.home() / ".cache" / "jemstone")


def reference(
    extractor: Extractor,
    data: Dataset,
    split: Literal["train", "test"],
    count: int,
    *,
    folder: Path | None = None,
    work: Work,
) -> Reference:
    """Features of a split of `data`, of which `count` rows are kept: drawn without replacement, for all runs alike.

    Computed once per extractor, data, split and count, and kept in `folder` (default `cache_folder()`); a damaged
    file is made anew, and where nothing can be written nothing is kept.
    """
    key = "\n".join([extractor.name, data.digest(), split, str(count)])
    path = (folder or cache_folder()) / f"features-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    found = _read(path, key)
    if found is not None:
        return found
    inputs = data.train.inputs if split == "train" else data.test.inputs
    work.say(f"features of {len(inputs)} {split} inputs: {extractor.name}")
    chosen = subset(len(inputs), count, 0, "references").numpy()
    moments: list[Moments] = []
    kept = []
    for start, pool in _chunks(extractor, inputs, split, work):
        moments = [reduce(merged, [*moments, moments_of(pool)])]
        inside = chosen[(chosen >= start) & (chosen < start + len(pool))]
        kept.append(pool[inside - start])
    if not moments:
        raise DataError(f"Data set {data.name!r} has no {split} inputs to compare samples with.")
    made = Reference(moments[0], np.concatenate(kept), chosen)
    _write(path, key, made, work)
    return made


def rows_through(work: Work, name: str, extractor: Extractor, images: Tensor) -> Rows:
    """`features_of` a chunk, stored by `work` under `name` and the extractor."""

    def make() -> Arrays:
        rows = features_of(extractor, images)
        return {"pool": rows.pool} | ({} if rows.logits is None else {"logits": rows.logits})

    # A user's name may hold anything; a digest of it fits every place that work is stored in.
    stored = work.memo(f"{name}-{hashlib.sha256(extractor.name.encode()).hexdigest()[:12]}", make)
    return Rows(stored["pool"], stored.get("logits"))


def drawn(extractor: Extractor, subject: Subject, n: int, common: Common, work: Work, *, by_class: bool) -> Drawn:
    """n fresh chains with the classes in turn, on E(x) or E(x, y), and their features.

    Raises DataError where a chain is not finite.
    """
    kind = "by_class" if by_class else "fresh"
    box, outside, largest = subject.data.box, 0, 0.0
    pools, logits, predicted, first = [], [], [], torch.empty(0)
    labels = torch.arange(n) % subject.data.num_classes

    def run(chunk: int, part: Int[Tensor, " b"]) -> Arrays:
        rng = subject.generator(common.seed, "generation", kind, chunk)
        return {"x": subject.sample(part, rng, by_class=by_class).numpy()}

    for i, part in enumerate(torch.split(labels, CHUNK)):
        x = torch.from_numpy(work.memo(f"generation-{kind}-{i}", partial(run, i, part))["x"])
        bad = int((~x.isfinite().flatten(1).all(dim=1)).sum())
        if bad:
            raise DataError(
                f"{bad} of {len(x)} chains ({kind}) are not finite. Train with a smaller step size or the clipped "
                "sampler."
            )
        largest = max(largest, float(x.abs().max()))
        if box is not None:
            beyond = (x < box[0] - OFF) | (x > box[1] + OFF)
            outside += int(beyond.sum())
            x = x.clamp(*box)
        rows = rows_through(work, f"generation-{kind}-features-{i}", extractor, x)
        pools.append(rows.pool)
        logits += [] if rows.logits is None else [rows.logits]
        predicted.append(in_batches(lambda model, x: model(x), subject.model, x, common.batch_size).argmax(axis=1))
        first = x if i == 0 else first
    entries = n * first[0].numel()
    rows = Rows(np.concatenate(pools), np.concatenate(logits) if logits else None)
    return Drawn(rows, labels.numpy(), np.concatenate(predicted), first, outside / entries, largest)


def _chunks(
    extractor: Extractor, inputs: Tensor, split: str, work: Work
) -> Iterator[tuple[int, Float[np.ndarray, "b d"]]]:
    for start in range(0, len(inputs), CHUNK):
        name = f"generation-{split}-features-{start // CHUNK}"
        yield start, rows_through(work, name, extractor, inputs[start : start + CHUNK]).pool


def _read(path: Path, key: str) -> Reference | None:
    try:
        found = read_arrays(path)
        moments = Moments(int(found["n"]), found["mean"], found["covariance"])
        return Reference(moments, found["pool"], found["chosen"]) if str(found["key"]) == key else None
    except DAMAGED:
        return None


def _write(path: Path, key: str, made: Reference, work: Work) -> None:
    moments = made.moments
    arrays = {
        "key": np.array(key), "n": np.array(moments.n), "mean": moments.mean, "covariance": moments.covariance,
        "pool": made.pool, "chosen": made.chosen,
    }  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, arrays)
    except (OSError, RunError) as error:
        work.say(f"statistics of the data are not kept for the next evaluation: {error}")
