"""Scoring very many inputs: in streams, in parts that survive a kill, to one Parquet file with a row for each input."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from jemstone.deployment.bulk_blocks import open_for, score_spans
from jemstone.deployment.bulk_parts import Parts, Summary, manifest_of, summarise
from jemstone.deployment.bulk_ray import scored_parts
from jemstone.deployment.bulk_sources import require_pyarrow
from jemstone.deployment.predictor import Predictor
from jemstone.errors import ConfigError
from jemstone.training.trained import SCORED, SCORED_ON_CPU

PART_ROWS = 4096
"""Inputs of a part: what a kill loses at most."""
OnProgress = Callable[[int, int], None]


def score(
    predictor: Predictor,
    source: str | Path,
    out: str | Path,
    *,
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
    batch_size: int | None = None,
    fresh: bool = False,
    part_rows: int = PART_ROWS,
    on_progress: OnProgress | None = None,
) -> Summary:
    """Predictions for every input of `source` (`open_source`), a row each in its order, in the Parquet file `out`.

    Columns: id (path in the folder, or row), label, index, probability, log_density (nats), typicality (percentile),
    accepted, reason, candidates, error. An input that cannot be read has accepted false, reason "unreadable" and its
    error; everything else of it is null. No input stops the others.

    Memory does not grow with the number of inputs. Of `workers` (default: the cores, up to 4) threads, each prepares a
    block of `batch_size` inputs (default: as `Trained.logits`) while the model works on one before. Parts of
    `part_rows` inputs are written whole or not at all into OUT.parts, and become `out` in the end. Stopped at any
    moment and called again with the same arguments, it goes on, and ends in the same content, bit for bit. Where
    `out` is finished already it is only counted.

    `engine="ray"` scores the parts in `workers` (default: as many as the cluster has GPUs, or CPUs) actors of Ray, on
    the local machine or on the cluster that RAY_ADDRESS names; run and source must be found there under the same path.

    `on_progress(done, rows)` is called now and then. Raises DataError for a source that cannot be opened, ConfigError
    where `out` holds scores of another model, policy or source and `fresh` does not say to replace them, MissingExtra
    without pyarrow (extra parquet), or Ray (extra ray).
    """
    for name, value in {"workers": workers, "batch_size": batch_size, "part_rows": part_rows}.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}, and must be at least 1.")
    if engine not in ("local", "ray"):
        raise ConfigError(f"engine must be 'local' or 'ray', got {engine!r}.")
    require_pyarrow()
    out = Path(out)
    if out.is_dir():
        raise ConfigError(f"{out} is a folder. --out is the Parquet file to write.")
    opened = open_for(predictor, source)
    parts = Parts(out, manifest_of(predictor, opened, part_rows), fresh=fresh)
    if not parts.finished:
        left = parts.missing()
        size = batch_size or (SCORED_ON_CPU if predictor.trained.device.type == "cpu" else SCORED)
        done = opened.rows - sum(stop - start for start, stop in map(parts.span, left))
        if engine == "ray" and left:
            coming = scored_parts(predictor, source, parts, left, size, workers)
        else:
            threads = workers or min(4, os.cpu_count() or 1)
            coming = score_spans(predictor, opened, {number: parts.span(number) for number in left}, size, threads)
        for scored in coming:
            done += scored.rows
            if scored.content is not None:
                parts.write(scored.part, scored.content)
            if on_progress is not None:
                on_progress(done, opened.rows)
        parts.assemble()
    return summarise(out)
