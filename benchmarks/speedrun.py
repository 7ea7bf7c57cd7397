"""CIFAR-10 to a quality target on one GPU: accuracy and samples for so many minutes, everything counted.

    python benchmarks/speedrun.py --data cifar10.npz [--minutes 25] [--preset original|shared|sada] [--inception FILE]
        [--json OUT] [--out RUNDIR] [--samples 50000] [--every 1] [--toy]

A few steps are timed first, in a session that is thrown away, so that the schedule of the real one ends within the
minutes. The clock runs from the start of the process to the end of training: imports, data, the choice of the
execution, compilation and timing count. Evaluations do not, and are reported apart. Test accuracy is a curve to look
at: nothing is selected by it, and nothing stops early. A speedrun that is killed starts again from nothing.

FID is that of fresh, unselected samples against the training set, in the features of --inception FILE (TorchScript, see
docs/evaluation.md); without it in pixel features, which compare with nothing published. --toy runs the whole command at
toy size on a CPU, on random images unless there is --data, and judges no target.

Writes benchmarks/results/speedrun-PRESET.json (for a toy: runs/speedrun-toy.json), and a grid of samples beside it:

    machine
    preset, toy, config     what was trained; `config` holds every setting
    parameters, gflop       of the network, and of its forward pass for one image
    execution               how it was computed
    minutes                 the limit that was asked for
    steps, epochs           of the real session, known before its first step
    epochs_wanted           of the preset, had there been time
    step_ms, tflops         the time of a step as measured beforehand, and the speed of the real session that the FLOPs
                            on paper make of it
    seconds                 `total` from process start to end of training, the sum of `loading` (imports, data, feature
                            extractor), `measuring` (the session that is thrown away, with the choice of its execution),
                            `starting` the real session and `training` it; beside the total `evaluating` in between, and
                            `final` after it
    within_minutes          whether `total` kept the limit
    recoveries              what the guard found wrong and recovery treated
    curve                   rows of `seconds`, `step`, `accuracy` and `nll` on the test set, `energy_gap` (median since
                            the row before, nats)
    final                   `accuracy`, `ece`, `nll`, `fid`, each with its interval; `samples`, `chain_life`; `features`
                            of FID, and `comparable`: whether it is of the kind that is published
    targets                 for each whether `accuracy`, `fid` and `minutes` were met, and `met` for all; null where
                            that was not measured
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import common
import torch
from speedrun_presets import PRESETS, forwards_per_step, toy
from speedrun_quality import MINUTES, PUBLISHED, final, judged

from jemstone import Dataset, Session, generator, load_dataset
from jemstone.data import Split
from jemstone.evaluation import make_extractor
from jemstone.runs import require_free
from jemstone.training.choose import forward_flops
from jemstone.training.config import TrainConfig
from jemstone.training.validation import validate

WARM, TIMED = 10, 50
"""Steps before and under the timing: two of the snapshots that recovery takes are among them."""
MARGIN = 0.95
ENDLESS = 1_000_000
"""Steps of the timed session on paper, so that `compile` tries a compilation whatever the length of the run."""


def _age() -> float:
    """Seconds that this process has lived, where Linux tells."""
    if not Path("/proc/self/stat").exists():
        return 0.0
    ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


BEGAN = time.monotonic() - _age()


def clock() -> float:
    """Seconds since the start of the process, with all that the device still had to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - BEGAN


class Timing(NamedTuple):
    """What the session that is thrown away taught: seconds to start one, seconds of one step."""

    starting: float
    step: float


def timed(config: TrainConfig, data: Dataset, warm: int, count: int) -> tuple[Timing, TrainConfig]:
    """Time `config`, and return it with the execution that was chosen for it."""
    began = clock()
    session = Session.start(config.with_values(steps=ENDLESS), data)
    started = clock()
    steps = session.train()
    for _ in itertools.islice(steps, warm):
        pass
    before = clock()
    for _ in itertools.islice(steps, count):
        pass
    chosen = session.trainer.execution
    fixed = config.with_values(
        precision=chosen.precision,
        layout="channels_last" if chosen.channels_last else "contiguous",
        compile="on" if chosen.compiled else "off",
    )
    return Timing(started - began, (clock() - before) / count), fixed


def affordable(limit: float, elapsed: float, timing: Timing, wanted: int) -> int:
    """Steps of the real session: what fits into `limit` seconds, and no more than the preset wants."""
    left = limit - elapsed - timing.starting
    steps = min(wanted, int(MARGIN * left / timing.step))
    if steps < 1:
        raise SystemExit(
            f"{elapsed:.0f} s have passed, a session takes {timing.starting:.0f} s to start and {timing.step:.3f} s a "
            f"step: {limit / 60:g} minutes leave no time to train. Give --minutes more."
        )
    return steps


def train(session: Session, every: float) -> tuple[list[dict[str, float]], float]:
    """Train to the end, with an evaluation every so many seconds of training; its rows, and the seconds they took."""
    rows: list[dict[str, float]] = []
    gaps: list[float] = []
    evaluating = 0.0
    due = clock() + every
    for metrics in session.train():
        gaps.append(metrics["energy_gap"])
        if metrics["step"] < session.total_steps and time.monotonic() - BEGAN - evaluating < due:
            continue
        began = clock()
        found = validate(session.model, session.data.test, session.trainer.fabric)
        place = {"seconds": round(began - evaluating, 2), "step": metrics["step"]}
        rows.append({**place, **found, "energy_gap": statistics.median(gaps)})
        print(rows[-1], flush=True)
        gaps.clear()
        due += every
        evaluating += clock() - began
    return rows, evaluating


def random_images() -> Dataset:
    """320 images of noise to train on, and 100 to test on, in ten classes."""
    rng = generator(0, "toy images")
    images, labels = torch.randint(0, 256, (420, 3, 16, 16), dtype=torch.uint8, generator=rng), torch.arange(420) % 10
    train, validation, test = (Split(images[a:b], labels[a:b]) for a, b in ((0, 320), (0, 0), (320, 420)))
    return Dataset("random images", train, validation, test, tuple("0123456789"))


def load(source: str | None, small: bool) -> Dataset:
    """All of the training set to train on: nothing is selected, so nothing is held out."""
    if source is None:
        return random_images()
    data = load_dataset(source, validation=0.0, limit=320 if small else None)
    return replace(data, test=data.test.spread(100)) if small else data


def speedrun(options: argparse.Namespace, path: Path) -> None:
    """All of it. What is known after training is on disk before samples are drawn."""
    preset = toy(PRESETS[options.preset]) if options.toy else PRESETS[options.preset]
    if options.out:
        require_free(options.out)
    data = load(options.data, options.toy)
    device = torch.device("cuda" if torch.cuda.is_available() and not options.toy else "cpu")
    # Before training: a file that does not load is found out now.
    extractor = make_extractor(f"inception={options.inception}" if options.inception else "pixels", data, device)
    loaded = clock()
    timing, config = timed(preset, data, *((1, 2) if options.toy else (WARM, TIMED)))
    measured = clock()
    wanted = config.total_steps(len(data.train))
    steps = affordable(60 * options.minutes, measured, timing, wanted)
    warmup = min(config.optimizer.warmup_steps, steps // 10)
    session = Session.start(config.with_values(steps=steps, optimizer={"warmup_steps": warmup}), data, run=options.out)
    started = clock()
    print(f"{steps} of {wanted} steps, {1000 * timing.step:.1f} ms each: {session.trainer.execution}", flush=True)
    curve, evaluating = train(session, 60 * options.every)
    ended = clock()
    total = ended - evaluating
    training = total - started
    gflop = forward_flops(session.state.model, data.input_shape) / 1e9
    seconds = {
        "total": total, "loading": loaded, "measuring": measured - loaded, "starting": started - measured,
        "training": training, "evaluating": evaluating, "final": None,
    }  # fmt: skip
    content: dict[str, Any] = {
        "preset": options.preset,
        "toy": options.toy,
        "config": session.config.to_dict(),
        "parameters": sum(p.numel() for p in session.state.model.parameters()),
        "gflop": round(gflop, 4),
        "execution": str(session.trainer.execution),
        "minutes": options.minutes,
        "steps": steps,
        "epochs": round(steps * config.batch_size / len(data.train), 2),
        "epochs_wanted": round(wanted * config.batch_size / len(data.train), 2),
        "step_ms": round(1000 * timing.step, 3),
        "tflops": round(forwards_per_step(config) * gflop * steps / training / 1000, 4),
        "seconds": {name: value and round(value, 2) for name, value in seconds.items()},
        "within_minutes": total <= 60 * options.minutes,
        "recoveries": len(session.state.treatment.failures),
        "curve": curve,
        "final": None,
        "targets": None,
    }
    common.write("speedrun", content, path)
    content["final"] = final(session, extractor, options.samples, path.with_suffix(".png"))
    content["targets"] = judged(content["final"], total, options.toy)
    content["seconds"]["final"] = round(clock() - ended, 2)
    print(f"Written to {common.write('speedrun', content, path)}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="an .npz file or the official python folder")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="from process start to the end of training")
    parser.add_argument("--preset", choices=PRESETS, default="original")
    parser.add_argument("--inception", type=Path, help="TorchScript file of the network that FID is defined in")
    parser.add_argument("--json", type=Path, help="file to write; samples go beside it")
    parser.add_argument("--out", type=Path, help="run directory to make (default: none, nothing else is written)")
    parser.add_argument("--samples", type=int, default=None, help=f"fresh samples for FID (default {PUBLISHED})")
    parser.add_argument("--every", type=float, default=1.0, help="minutes of training between evaluations")
    parser.add_argument("--toy", action="store_true", help="everything at toy size, on a CPU")
    options = parser.parse_args()
    if not (options.data or options.toy):
        parser.error("--data is needed, unless there is --toy")
    if options.samples is None:
        options.samples = 40 if options.toy else PUBLISHED
    default = Path("runs/speedrun-toy.json") if options.toy else common.RESULTS / f"speedrun-{options.preset}.json"
    speedrun(options, options.json or default)


if __name__ == "__main__":
    main()
