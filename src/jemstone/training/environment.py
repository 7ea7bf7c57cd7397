"""What a run was made of and where it ran: the content of config.json."""

from __future__ import annotations

import datetime
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from jemstone.data import Dataset
from jemstone.runs import Run
from jemstone.training.config import TrainConfig
from jemstone.version import __version__


def warn_of_changes(run: Run, ranks: int) -> None:
    """Warn where a run goes on with another number of threads, or of ranks, than it was started with."""
    before, now = run.info["environment"].get("threads"), torch.get_num_threads()
    if before != now:
        warnings.warn(
            f"{run.path} ran with {before} threads and goes on with {now}: sums may round differently, so the result "
            f"need not be bitwise that of a run never stopped. Set OMP_NUM_THREADS={before} to have it so.",
            stacklevel=3,
        )
    if ranks_of(run) != ranks:
        warnings.warn(
            f"{run.path} ran on {ranks_of(run)} ranks and goes on on {ranks}. The number of steps and the learning "
            "rates stay; batch sizes are per rank, so a step now sees another number of examples and chains, and the "
            "result is not that of a run never stopped.",
            stacklevel=3,
        )


def ranks_of(run: Run) -> int:
    """The number of ranks that a run was started on."""
    return int(run.info["environment"].get("ranks", 1))


def facts(config: TrainConfig, data: Dataset, fabric: Fabric) -> dict[str, Any]:
    """What config.json holds."""
    return {
        "config": config.to_dict(),
        "data": {
            "name": data.name,
            "source": config.data.source,
            "input_shape": list(data.input_shape),
            "num_classes": data.num_classes,
            "class_names": list(data.class_names),
            "sizes": {name: len(getattr(data, name)) for name in ("train", "validation", "test")},
            "digest": data.digest(),
        },
        "environment": {
            "jemstone": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": str(fabric.device),
            "ranks": fabric.world_size,
            "threads": torch.get_num_threads(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": " ".join([Path(sys.argv[0]).name.replace("__main__.py", "jemstone"), *sys.argv[1:]]),
        },
    }
