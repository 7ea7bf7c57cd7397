"""What a trained model takes to use: images scored and chains moved per second, and the memory of many of them.

    python benchmarks/throughput.py [--json OUT] [--quick]

Two networks on random images, after two steps of training: a Wide ResNet 16-2 on 3x32x32 and a ConvNet with group
normalisation on 1x28x28. `plain` is load_trained(run), `fast` is load_trained(run, execution="fast"). They are timed in
turns, plain, fast, plain, fast, and medians are compared, so that a busy moment of the machine hits both.

Writes benchmarks/results/throughput.json: `machine`, and under `networks` for each of them

    execution, reason   what `fast` is here, and why
    scoring             images per second of log_density: plain, fast, and ratio, how many times as fast that is
    sampling            of sample(), with `count` chains of `steps` steps: `chain_steps_per_second`: plain, fast, ratio;
                        `samples_per_second`: plain, fast, of 400 steps each, the life of a chain in JEM (20 / 0.05)
    memory              for plain and for fast; each number is the peak of a process of its own, GiB resident
        score           by number of images, stored as uint8: `peak`; `beyond_input`, without the images themselves
        sample          with `count` chains of `steps` steps: `peak`; `beyond_output`, without the samples themselves
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import in_turns, peak_memory_gib, write

from jemstone import Dataset, Session, generator, load_trained, recipe
from jemstone.data import Split
from jemstone.execution import PLAIN, Execution

LIFE = 400
NETWORKS = {
    "wrn-16-2": ((3, 32, 32), {"name": "wrn-16-2", "norm": "none"}),
    "conv-32, group norm": ((1, 28, 28), {"name": "conv-32", "norm": "group"}),
}


class Size(NamedTuple):
    """How much is measured."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    rounds: int = 5
    scored: int = 2048
    chains: int = 128
    steps: int = 5
    memory_of: tuple[str, ...] = ("plain", "fast")
    many_scored: tuple[int, ...] = (10_000, 100_000)
    many_sampled: int = 10_000
    sample_steps: int = 2


QUICK = Size(("conv-32, group norm",), 1, 64, 16, 1, ("fast",), (64, 256), 64, 1)


def random_images(count: int, shape: tuple[int, ...]) -> torch.Tensor:
    """uint8 images (count, c, h, w), as a data set stores them."""
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator(0, "images"))


def make_run(name: str, folder: Path) -> Path:
    """A run of two steps."""
    shape, network = NETWORKS[name]
    split = Split(random_images(256, shape), torch.arange(256) % 10)
    data = Dataset("random images", split, split, split, tuple("0123456789"))
    config = recipe("jem").with_values(
        steps=2,
        validate_every=0,
        network=network,
        chains={"steps": 2, "buffer_size": 256},
        precision="32-true",
        layout="contiguous",
        compile="off",
    )
    for _ in Session.start(config, data, run=folder).train():
        pass
    return folder


def medians(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, in turns, after one call of each that does not count."""
    return {name: statistics.median(seconds[1:]) for name, seconds in in_turns(calls, 1 + rounds).items()}


def per_second(work: int, seconds: dict[str, float]) -> dict[str, float]:
    """Rates of `plain` and `fast`, and how many times as fast the latter is."""
    rates = {name: round(work / value, 3) for name, value in seconds.items()}
    return {**rates, "ratio": round(seconds["plain"] / seconds["fast"], 3)}


def peak(run: Path, execution: Execution, count: int, steps: int | None) -> float:
    """Peak memory of this process after it has scored `count` images, or sampled them in `steps`; in GiB."""
    trained = load_trained(run, execution=execution)
    if steps is None:
        trained.log_density(random_images(count, trained.input_shape))
    else:
        trained.sample(torch.arange(count) % 10, steps=steps)
    return peak_memory_gib()


def memory(run: Path, execution: Execution, shape: tuple[int, ...], size: Size) -> dict[str, Any]:
    """Peaks, each in a process of its own."""

    def alone(count: int, steps: int | None) -> float:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(peak, (run, execution, count, steps))

    def without(whole: float, count: int, bytes_per_value: int) -> float:
        return round(whole - count * bytes_per_value * math.prod(shape) / 2**30, 3)

    score = {}
    for count in size.many_scored:
        whole = alone(count, None)
        score[str(count)] = {"peak": round(whole, 3), "beyond_input": without(whole, count, 1)}
    count, steps = size.many_sampled, size.sample_steps
    whole = alone(count, steps)
    sample = {"count": count, "steps": steps, "peak": round(whole, 3), "beyond_output": without(whole, count, 4)}
    return {"score": score, "sample": sample}


def measure(name: str, run: Path, size: Size) -> dict[str, Any]:
    """All numbers of one network."""
    shape, _ = NETWORKS[name]
    plain, fast = load_trained(run), load_trained(run, execution="fast")
    x, labels = random_images(size.scored, shape), torch.arange(size.chains) % 10
    both = {"plain": plain, "fast": fast}
    scoring = medians({key: lambda t=t: t.log_density(x) for key, t in both.items()}, size.rounds)
    sampling = medians({key: lambda t=t: t.sample(labels, steps=size.steps) for key, t in both.items()}, size.rounds)
    steps = per_second(size.chains * size.steps, sampling)
    executions = {"plain": PLAIN, "fast": fast.execution}
    found = {
        "execution": str(fast.execution),
        "reason": fast.reason,
        "scoring": per_second(size.scored, scoring),
        "sampling": {
            "count": size.chains,
            "steps": size.steps,
            "chain_steps_per_second": steps,
            "samples_per_second": {key: round(steps[key] / LIFE, 4) for key in both},
        },
    }
    print(f"{name}: fast is {fast.execution}: {fast.reason}")
    print(f"  images scored per second: {found['scoring']}")
    print(f"  chain steps per second: {steps}; samples of {LIFE} steps: {found['sampling']['samples_per_second']}")
    found["memory"] = {key: memory(run, executions[key], shape, size) for key in size.memory_of}
    for key, value in found["memory"].items():
        print(f"  peak GiB, {key}: {value}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write (default: benchmarks/results/throughput.json)")
    parser.add_argument("--quick", action="store_true", help="a toy size: one network, few images")
    options = parser.parse_args()
    size = QUICK if options.quick else Size()
    with tempfile.TemporaryDirectory() as folder:
        networks = {
            name: measure(name, make_run(name, Path(folder) / str(number)), size)
            for number, name in enumerate(size.networks)
        }
    print(f"Written to {write('throughput', {'networks': networks}, options.json)}.")


if __name__ == "__main__":
    main()
