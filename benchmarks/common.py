"""What every benchmark writes beside its numbers: the machine, the versions, the date."""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import jemstone

Cell = tuple[Any, ...]
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """The hardware and software that a number was measured on."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "jemstone": jemstone.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def seconds_of(call: Callable[[], object]) -> float:
    """The time of one call, all of it: a GPU has finished, too."""
    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, A B A B, so that a busy moment of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(seconds_of(call))
    return seconds


def peak_memory_gib() -> float:
    """Largest resident memory of this process so far, in GiB.

    Linux keeps it under /proc; getrusage there counts what the parent held when it started this process.
    """
    for line in _lines("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def write(name: str, content: dict[str, Any], path: Path | None = None) -> Path:
    """Keep a benchmark's numbers under results/, or at `path`."""
    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **content}, indent=1) + "\n")
    return path


def cell_options(description: str | None, rows: Path) -> argparse.Namespace:
    """What is asked of a benchmark whose cells `run_all` runs, on digits and, where given, on Fashion-MNIST."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0")
    parser.add_argument("--steps", type=int, help="optimiser steps, for a toy run")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--fashion", type=Path, help="Fashion-MNIST as .npz")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--rows", type=Path, default=rows, help="finished cells, never run again")
    return parser.parse_args()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def run_all(
    cells: Sequence[Cell], run: Callable[[Cell], dict[str, Any]], rows: Path, workers: int
) -> list[dict[str, Any]]:
    """`run` of every cell, in parallel processes; finished ones stay in the .jsonl file `rows`, never run again."""
    rows.parent.mkdir(parents=True, exist_ok=True)
    done = {}
    if rows.exists():
        for line in rows.read_text().splitlines():
            row = json.loads(line)
            done[tuple(row["cell"])] = row
    left = [cell for cell in cells if cell not in done]
    with multiprocessing.get_context("spawn").Pool(workers, _one_thread) as pool, rows.open("a") as file:
        for number, (cell, row) in enumerate(zip(left, pool.imap(run, left), strict=True), 1):
            done[cell] = {"cell": list(cell), **row}
            file.write(json.dumps(done[cell]) + "\n")
            file.flush()
            print(f"{number}/{len(left)} {done[cell]}", flush=True)
    return [done[cell] for cell in cells]


def _one_thread() -> None:
    torch.set_num_threads(1)
