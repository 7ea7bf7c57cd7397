"""Scoring very many images: how fast beside a bare loop, in how much memory, and whether a kill changes anything.

    python benchmarks/bulk.py RUN --images FILE.npz [--count N] [--files N] [--rounds N] [--json OUT]
    python benchmarks/bulk.py --quick [--json OUT]

RUN takes images of the kind of FILE's `test_images`, which are repeated until there are --count of them (default
100,000, compressed .npz), and --files of them as a folder of PNG files. The bare loop reads the same files (of the .npz
the array whole), makes batches of 128 and runs the model on them under torch.no_grad, in one thread of Python and as
many of torch as the scoring has; its logits are all that it keeps. They take turns, loop, score, loop, score, both with
`keep_freed_memory`, as `jemstone score` has it: without, either takes up to twice as long, now the one, now the other.

Writes benchmarks/results/bulk.json: `machine`, `network`, and under `npz` and `folder`

    images              how many
    per_second          `bare` and `score`: images, medians over rounds, whose `seconds` are listed
    cpu_seconds         of both, medians: what they cost on a machine that is busy with other things
    ratio               score over bare: how many times as fast
    peak_gib            resident memory of a process that scores them and does nothing else
    killed_at           rows that were done when such a process got SIGKILL
    same_after_kill     whether starting it again ended in the same file, byte for byte
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import in_turns, peak_memory_gib, write
from PIL import Image
from throughput import make_run

from jemstone import load_trained
from jemstone.data import to_box
from jemstone.deployment.bulk import PART_ROWS, score
from jemstone.deployment.calibration import Calibration
from jemstone.deployment.predictor import Predictor
from jemstone.execution import keep_freed_memory

BATCH = 128


def bare_npz(model: torch.nn.Module, source: Path) -> torch.Tensor:
    """The loop that one writes by hand."""
    images = np.load(source)["images"]
    with torch.no_grad():
        return torch.cat([model(_box(images[i : i + BATCH])) for i in range(0, len(images), BATCH)])


def bare_folder(model: torch.nn.Module, source: Path) -> torch.Tensor:
    """The same for files."""
    files = sorted(source.iterdir())
    logits = []
    with torch.no_grad():
        for i in range(0, len(files), BATCH):
            logits.append(model(_box(np.stack([np.asarray(Image.open(file)) for file in files[i : i + BATCH]]))))
    return torch.cat(logits)


def _box(images: np.ndarray) -> torch.Tensor:
    x = torch.from_numpy(images)
    return to_box(x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2))


def alone(run: Path, source: Path, out: Path, part_rows: int, die_at: int | None, peak: Any) -> None:
    """A process that scores, and dies where `die_at` rows are done."""

    def progress(done: int, rows: int) -> None:
        if die_at is not None and done >= die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    keep_freed_memory()
    score(Predictor.load(run, device="cpu"), source, out, part_rows=part_rows, on_progress=progress)
    peak.value = peak_memory_gib()


def measure(run: Path, source: Path, count: int, rounds: int, part_rows: int) -> dict[str, Any]:
    """All numbers of one source."""
    out = source.parent / "scores.parquet"
    predictor = Predictor.load(run, device="cpu")
    bare = bare_folder if source.is_dir() else bare_npz
    cpu: dict[str, list[float]] = {"bare": [], "score": []}

    def counted(name: str, call: Callable[[], object]) -> Callable[[], None]:
        def run_it() -> None:
            began = time.process_time()
            call()
            cpu[name].append(time.process_time() - began)

        return run_it

    calls = {
        "bare": lambda: bare(predictor.trained.model, source),
        "score": lambda: score(predictor, source, out, fresh=True, part_rows=part_rows),
    }
    seconds = in_turns({name: counted(name, call) for name, call in calls.items()}, rounds)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    whole = out.read_bytes()
    out.unlink()
    spawn = multiprocessing.get_context("spawn")
    peak = spawn.Value("d", 0.0)
    half = count // 2
    for die_at, ending in ((half, -signal.SIGKILL), (None, 0)):
        process = spawn.Process(target=alone, args=(run, source, out, part_rows, die_at, peak))
        process.start()
        process.join()
        assert process.exitcode == ending, process.exitcode
    found = {
        "images": count,
        "per_second": {name: round(count / value, 1) for name, value in median.items()},
        "seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
        "cpu_seconds": {name: round(statistics.median(values), 2) for name, values in cpu.items()},
        "ratio": round(median["bare"] / median["score"], 3),
        "peak_gib": round(peak.value, 3),
        "killed_at": half,
        "same_after_kill": out.read_bytes() == whole,
    }
    out.unlink()
    print(f"{source.name}: {found}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="run directory")
    parser.add_argument("--images", type=Path, help=".npz with test_images that the run takes")
    parser.add_argument("--count", type=int, default=100_000, help="images of the .npz")
    parser.add_argument("--files", type=int, default=10_000, help="images of the folder")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--json", type=Path, help="file to write (default: benchmarks/results/bulk.json)")
    parser.add_argument("--quick", action="store_true", help="a toy size, on random images")
    options = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.quick:
            run = make_run("conv-32, group norm", folder / "run")
            images = np.random.default_rng(0).integers(0, 256, (100, 28, 28), dtype=np.uint8)
            calibrate(run, images)
            count, files, rounds, part_rows = 300, 40, 1, 100
        else:
            if options.run is None or options.images is None:
                parser.error("give RUN and --images, or --quick")
            run, images = options.run, np.load(options.images)["test_images"].squeeze()
            count, files, rounds, part_rows = options.count, options.files, options.rounds, PART_ROWS
        many = np.tile(images, (-(-count // len(images)), *[1] * (images.ndim - 1)))[:count]
        np.savez_compressed(folder / "images.npz", images=many)
        (folder / "files").mkdir()
        for i, pixels in enumerate(many[:files]):
            Image.fromarray(pixels).save(folder / "files" / f"{i:06d}.png")
        del many
        content = {
            "network": load_trained(run).config.network.name,
            "npz": measure(run, folder / "images.npz", count, rounds, part_rows),
            "folder": measure(run, folder / "files", files, rounds, part_rows),
        }
    print(f"Written to {write('bulk', content, options.json)}.")


def calibrate(run: Path, images: np.ndarray) -> None:
    """A calibration by made-up labels: the toy run's own data is gone."""
    trained = load_trained(run, device="cpu")
    logits = trained.logits(torch.from_numpy(images)[:, None])
    Predictor(trained, Calibration.measure(logits, torch.arange(len(images)) % 10)).save_calibration()


if __name__ == "__main__":
    main()
