"""What one training iteration costs: as the original algorithm reads, and as jemstone runs it, measured in turns.

    python benchmarks/step.py --network wrn-16-2 --chain-steps 20 --json OUT

Both take the same batches of random images. Ours is the whole product: diagnostics, guard, snapshots for recovery.
FLOPs are counted: 2 forward passes' worth for a chain step, 3 for each image of the three batches; `share_of_peak` is
against the fastest convolution that this machine could be brought to, in the precision used. `--memory` measures the
peak resident memory of both in processes of their own, `--sweep` how the cost grows with K, batch and width.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, in_turns, machine, peak_memory_gib, seconds_of
from plain import PlainJEM

from jemstone import Dataset, Session, recipe
from jemstone.data import Split
from jemstone.networks import build_network
from jemstone.training.choose import forward_flops
from jemstone.training.config import TrainConfig

DEFAULTS = ("mlp-256", "conv-32", "conv-32@1x28x28", "wrn-16-2", "wrn-28-10")
SWEEP = (
    *(("wrn-16-2", k, 64) for k in (1, 5, 10, 20, 40)),
    *(("wrn-16-2", 5, batch) for batch in (16, 32, 128)),
    *((f"wrn-16-{width}", 5, 64) for width in (1, 4)),
)


def network_and_shape(name: str) -> tuple[str, tuple[int, ...]]:
    """`wrn-16-2`, or `conv-32@1x28x28` where the input is not the network's usual one."""
    network, _, shape = name.partition("@")
    if shape:
        return network, tuple(map(int, shape.split("x")))
    return network, {"wrn": (3, 32, 32), "con": (1, 8, 8), "mlp": (64,)}.get(network[:3], (3, 32, 32))


def images(shape: tuple[int, ...], count: int = 512) -> Dataset:
    """Random inputs: what a step costs does not depend on what is on them."""
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(count, *shape, generator=rng) * 2 - 1
    split = Split(x, torch.arange(count) % 10)
    return Dataset("random", split, split, split, tuple("0123456789"))


def configuration(name: str, chain_steps: int, batch: int, options: argparse.Namespace) -> TrainConfig:
    """The original recipe on this network, without its augmentation, which the plain step is not charged for either."""
    network, _ = network_and_shape(name)
    return recipe("jem").with_values(
        network={"name": network},
        chains={"steps": chain_steps, "buffer_size": 10_000},
        augment={"crop_padding": 0, "flip": False, "noise": 0.0},
        augment_real={"crop_padding": 0, "flip": False, "noise": 0.0},
        optimizer={"warmup_steps": 0, "schedule": "constant"},
        batch_size=batch,
        real_batch_size=batch,
        steps=10_000,
        validate_every=0,
        checkpoint_every=10_000,
        precision=options.precision,
        compile=options.compile,
    )


def plain_step(name: str, chain_steps: int, batch: int) -> Callable[[], object]:
    """One iteration of the baseline on a fixed batch."""
    network, shape = network_and_shape(name)
    torch.manual_seed(0)
    jem = PlainJEM(build_network(network, shape, 10), shape, chain_steps=chain_steps)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    jem.network.to(device)
    jem.device = torch.device(device)
    data = images(shape).train
    x, y = data.inputs.to(device), data.labels.to(device)
    return lambda: jem.step(x[:batch], y[:batch], x[batch : 2 * batch])


def fast_step(config: TrainConfig, shape: tuple[int, ...]) -> tuple[Callable[[], object], Session]:
    """One iteration of ours."""
    session = Session.start(config, images(shape))
    iterator = session.train()
    return lambda: next(iterator), session


def convolution_peak(dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of a few convolutions, as a wide residual network has them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    best = 0.0
    for channels, side in ((160, 32), (320, 16), (640, 8)):
        x = torch.randn(64, channels, side, side, device=device).to(dtype).to(memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype).to(memory_format=torch.channels_last)
        times = [seconds_of(lambda x=x, weight=weight: torch.conv2d(x, weight, padding=1)) for _ in range(20)]
        best = max(best, 2 * 64 * channels**2 * 9 * side**2 / min(times))  # a peak: the best moment counts
    return best


def row(name: str, chain_steps: int, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Plain, ours, plain, ours, ...: medians and their ratio."""
    config = configuration(name, chain_steps, batch, options)
    shape = network_and_shape(name)[1]
    plain = plain_step(name, chain_steps, batch)
    fast, session = fast_step(config, shape)
    plain_first, fast_first = seconds_of(plain), seconds_of(fast)
    # Enough repetitions for a tenth of a second each: small steps are shorter than the machine's other business.
    repeat = max(1, round(0.1 / max(1e-4, min(plain_first, fast_first))))
    steps = {"plain": plain, "fast": fast}
    times = in_turns(
        {key: lambda step=step: [step() for _ in range(repeat)] for key, step in steps.items()}, options.rounds
    )
    plain_s, fast_s = (statistics.median(times[key]) / repeat for key in steps)
    flops = forward_flops(session.state.model, shape) * batch
    flops *= 2 * chain_steps + 9
    execution = session.trainer.execution
    half = execution.precision == "bf16-mixed"
    return {
        "network": name,
        "chain_steps": chain_steps,
        "batch": batch,
        "plain_s": round(plain_s, 5),
        "fast_s": round(fast_s, 5),
        "ratio": round(plain_s / fast_s, 3),
        "ratios": [round(a / b, 3) for a, b in zip(times["plain"], times["fast"], strict=True)],
        "execution": str(execution),
        "gflop": round(flops / 1e9, 3),
        "share_of_peak": round(flops / fast_s / options.peaks["bfloat16" if half else "float32"], 3),
        "plain_share_of_float32_peak": round(flops / plain_s / options.peaks["float32"], 3),
    }


def peak_of(arguments: tuple[str, str, int, argparse.Namespace]) -> float:
    """Peak resident memory, GiB, of a process that takes three iterations of two chain steps: K adds nothing to it."""
    kind, name, batch, options = arguments
    torch.set_num_threads(options.threads)
    if kind == "plain":
        step = plain_step(name, 2, batch)
    else:
        step, _ = fast_step(configuration(name, 2, batch, options), network_and_shape(name)[1])
    for _ in range(3):
        step()
    return round(peak_memory_gib(), 3)


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="*", default=list(DEFAULTS), help="for example wrn-16-2, conv-32@1x28x28")
    parser.add_argument("--chain-steps", type=int, nargs="*", default=[20])
    parser.add_argument("--batch", type=int, nargs="*", default=[64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="auto", choices=["auto", "32-true", "bf16-mixed"])
    parser.add_argument("--compile", default="off", choices=["auto", "on", "off"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", action="store_true", help="also the peak memory of both")
    parser.add_argument("--sweep", action="store_true", help="the cost against K, batch and width, instead")
    parser.add_argument("--json", type=Path, default=RESULTS / "step.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.peaks = {"float32": convolution_peak(torch.float32), "bfloat16": convolution_peak(torch.bfloat16)}
    cells = [(n, k, b) for n in options.network for k in options.chain_steps for b in options.batch]
    rows = []
    for name, chain_steps, batch in SWEEP if options.sweep else cells:
        found = row(name, chain_steps, batch, options)
        if options.memory:
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                jobs = [(kind, name, batch, options) for kind in ("plain", "fast")]
                found["plain_gib"], found["fast_gib"] = pool.map(peak_of, jobs, chunksize=1)
        rows.append(found)
        print(json.dumps(found), flush=True)
        peaks = {name: round(value / 1e9, 1) for name, value in options.peaks.items()}
        content = {"machine": machine(), "convolution_peak_gflops": peaks, "rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
