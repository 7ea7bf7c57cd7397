"""The demo, part by part: seconds, chain steps per second, peak memory.

    python benchmarks/demo.py [--json NAME]

One machine is noisy and two differ: compare the parts with each other, or two versions of jemstone interleaved on one
machine, never seconds from two places.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import common

from jemstone.demo import RECIPES
from jemstone.evaluation import BUDGETS
from jemstone.evaluation.evaluate_run import evaluate_run
from jemstone.report import write_report
from jemstone.training.recipes import recipe
from jemstone.training.session import Session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="demo", help="name of the file under benchmarks/results/")
    options = parser.parse_args()
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for name in RECIPES:
            began = time.perf_counter()
            session = Session.start(recipe(name), run=out / name)
            steps = sum(1 for _ in session.train())
            seconds[f"{name}: training"] = time.perf_counter() - began
            if session.config.weights.generative:
                moves = steps * session.config.chains.steps * session.config.real_batch_size
                rate = moves / seconds[f"{name}: training"]
            began = time.perf_counter()
            evaluate_run(out / name, protocol=BUDGETS["quick"])
            seconds[f"{name}: evaluation"] = time.perf_counter() - began
        began = time.perf_counter()
        write_report([out / name for name in RECIPES], out / "report.html")
        seconds["report"] = time.perf_counter() - began
    total = sum(seconds.values())
    for part, value in seconds.items():
        print(f"{part:32s} {value:7.1f} s  {value / total:6.1%}")
    memory = common.peak_memory_gib()
    print(f"{'total':32s} {total:7.1f} s")
    print(f"chain steps per second, training included: {rate:,.0f}\npeak memory: {memory:.2f} GiB")
    rounded = {part: round(value, 2) for part, value in seconds.items()}
    content = {
        "seconds": rounded,
        "total_s": round(total, 1),
        "chain_steps_per_s": round(rate),
        "peak_gib": round(memory, 2),
    }
    print(f"written to {common.write(options.json, content)}")


if __name__ == "__main__":
    main()
