"""Bulk scoring on Ray: the parts of the work are shared out among actors, each with the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jemstone.deployment.bulk_blocks import Scored, open_for, score_spans
from jemstone.deployment.bulk_parts import Parts, changes, manifest_of, span_of
from jemstone.deployment.calibration import Policy
from jemstone.deployment.predictor import Predictor
from jemstone.errors import ConfigError, JemstoneError, MissingExtra, RunError
from jemstone.execution import Execution, keep_freed_memory
from jemstone.training.inputs import CUSTOM


def scored_parts(
    predictor: Predictor, source: str | Path, parts: Parts, left: list[int], batch_size: int, workers: int | None
) -> Iterator[Scored]:
    """The parts `left`, in the order in which they become ready.

    Starts Ray where it is not running, and then stops it. Each actor computes in as many threads as this process, and
    reserves one CPU, or one GPU where `predictor` is on one.
    """
    if predictor.trained.config.network.name == CUSTOM:
        raise ConfigError(
            "engine='ray' loads the run in other processes, which do not have your own network: use local."
        )
    try:
        import ray
        import ray.data
        from ray.exceptions import RayError
    except ImportError as error:
        raise MissingExtra("ray[data]", "ray") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="warning")
        ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        gpu = predictor.trained.device.type == "cuda"
        actors = workers or max(1, int(ray.cluster_resources().get("GPU" if gpu else "CPU", 1)))
        # Handed over as they are, one part a block: reading a list takes no CPU away from the actors.
        work = ray.data.from_items([{"part": number} for number in left], override_num_blocks=len(left))
        scored = work.map_batches(
            Scorer,
            fn_constructor_kwargs={
                "run": str(predictor.trained.run.path.resolve()),
                "policy": predictor.policy,
                "execution": predictor.trained.execution,
                "device": "cuda" if gpu else "cpu",
                "source": str(Path(source).expanduser().resolve()),
                "manifest": parts.manifest,
                "batch_size": batch_size,
                "threads": torch.get_num_threads(),
            },
            batch_size=1,
            num_cpus=0 if gpu else 1,
            num_gpus=1 if gpu else 0,
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(left))),
        )
        for row in scored.iter_rows():
            start, stop = parts.span(int(row["part"]))
            yield Scored(int(row["part"]), stop - start, row["content"])
    except RayError as error:
        raise _cause(error) from error
    finally:
        if ours:
            ray.shutdown()


class Scorer:
    """An actor: loads the model once, then scores the parts that it is given."""

    def __init__(
        self,
        run: str,
        policy: Policy,
        execution: Execution,
        device: Any,
        source: str,
        manifest: dict[str, Any],
        batch_size: int,
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()
        self.predictor = Predictor.load(run, policy=policy, device=device, execution=execution)
        self.source = open_for(self.predictor, source)
        self.manifest, self.batch_size = manifest, batch_size
        found = manifest_of(self.predictor, self.source, manifest["part_rows"])
        if other := changes(found, manifest):
            raise RunError(
                f"A worker finds {other} at {run} and {source} than the process that "
                "started it. Share them among the machines, and save the predictor's calibration."
            )

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        number = int(batch["part"][0])
        span = span_of(number, self.manifest)
        *_, last = score_spans(self.predictor, self.source, {number: span}, self.batch_size, threads=1)
        return {"part": batch["part"], "content": np.array([last.content], dtype=object)}


def _cause(error: BaseException) -> Exception:
    """The error of ours that an actor ended in, or one that quotes it."""
    seen: BaseException | None = error
    while seen is not None:
        inner = getattr(seen, "cause", None)
        if isinstance(inner, JemstoneError):
            return inner
        seen = seen.__cause__
    return RunError(f"Ray stopped: {error}")
