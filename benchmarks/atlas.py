"""The failures of docs/stability.md, each as its command, its remedy, and their curves side by side.

    python benchmarks/atlas.py [--out runs/atlas] [--only NAME ...]

Runs every command pair of ENTRIES as a user would, judges the failed run by `jemstone doctor`, draws
docs/images/stability-NAME.png and writes benchmarks/results/atlas.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from common import RESULTS, write
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jemstone.doctor import diagnose
from jemstone.runs import Run
from jemstone.training.inputs import read_config

ROOT = Path(__file__).parents[1]
COMMON = "--config docs/atlas.yaml"


class Entry(NamedTuple):
    """A failure: the recipe and settings that bring it about, and the settings that mend it."""

    recipe: str
    failing: str
    remedy: str


ENTRIES = {
    "non-finite": Entry(
        "jem++",
        "--network.norm none --network.activation leaky_relu --chains.mode eval --chains.steps 5 "
        "--optimizer.learning_rate 0.9",
        "--optimizer.learning_rate 0.1 --optimizer.clip_norm 1",
    ),
    "energy-runaway": Entry(
        "jem",
        "--chains.steps 1 --optimizer.learning_rate 0.02",
        "--chains.steps 20",
    ),
    "told-apart": Entry(
        "jem",
        "--network.norm group --chains.steps 5 --optimizer.learning_rate 0.02",
        "--weights.energy_l2 0.3 --optimizer.clip_norm 1",
    ),
    "flat": Entry(
        "jem++",
        "--network.norm none --chains.mode eval --chains.steps 20 --optimizer.learning_rate 0.9",
        "--optimizer.clip_norm 1",
    ),
    "batch-norm": Entry(
        "jem",
        "--network.norm batch --network.activation relu --chains.steps 5 --optimizer.learning_rate 0.02",
        "--weights.energy_l2 0.3 --optimizer.clip_norm 1",
    ),
    "few-images": Entry(
        "jem++",
        "--network.name mlp-32 --network.norm none --chains.mode eval --chains.steps 60 --chains.step_size 20 "
        "--optimizer.learning_rate 0.1",
        "--chains.step_size 1",
    ),
    "accuracy": Entry(
        "jem++",
        "--network.norm batch --network.activation relu --chains.mode train --chains.steps 20 "
        "--optimizer.learning_rate 0.9",
        "--optimizer.learning_rate 0.1 --optimizer.clip_norm 1",
    ),
}
PANELS = (
    ("energies, nats", ("energy_real", "energy_negatives")),
    ("negatives above data", ("energy_auc",)),
    ("at the box", ("saturated", "saturated_real")),
    ("variety", ("distinct", "class_coverage")),
    ("accuracy", ("train_accuracy", "validation_accuracy")),
)


def command(entry: Entry, run: Path, *, mended: bool) -> list[str]:
    """The command line of a failure, or of its remedy."""
    settings = f"{COMMON} {entry.failing} {entry.remedy if mended else ''}".split()
    return ["train", entry.recipe, *settings, "--run", str(run)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/atlas"))
    parser.add_argument("--only", nargs="*", default=list(ENTRIES), choices=list(ENTRIES))
    options = parser.parse_args()
    kept = RESULTS / "atlas.json"
    before = json.loads(kept.read_text()) if kept.exists() else {}
    results = {name: before[name] for name in ENTRIES if name in before}
    for name in options.only:
        entry = ENTRIES[name]
        rows, content = [], {}
        for mended in (False, True):
            run = options.out / f"{name}{'-mended' if mended else ''}"
            shutil.rmtree(run, ignore_errors=True)
            began = time.monotonic()
            arguments = command(entry, run, mended=mended)
            subprocess.run([sys.executable, "-m", "jemstone", *arguments], cwd=ROOT, check=False)
            rows.append(Run(run).rows("metrics.jsonl"))
            last = [row for row in rows[-1] if "validation_accuracy" in row][-1:]
            found = diagnose(rows[-1], Run(run).rows("events.jsonl"), read_config(Run(run))[0])
            content["mended" if mended else "failing"] = {
                "command": "jemstone " + " ".join(arguments),
                "seconds": round(time.monotonic() - began, 1),
                "steps": len(rows[-1]),
                "validation_accuracy": last[0]["validation_accuracy"] if last else None,
                "verdicts": [f"{f.verdict} at step {f.failed}" for f in found.findings],
            }
        draw(rows, ROOT / "docs" / "images" / f"stability-{name}.png")
        results[name] = content
        print(json.dumps({name: content}, indent=1), flush=True)
    write("atlas", {name: results[name] for name in ENTRIES if name in results})


def draw(runs: list[list[dict[str, Any]]], out: Path) -> None:
    """Failing on the left, mended on the right, one row per panel that either run has."""
    panels = [panel for panel in PANELS if any(panel[1][0] in row for rows in runs for row in rows)]
    figure = Figure(figsize=(8.5, 1.9 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 2, sharex=True, squeeze=False)
    for column, (rows, title) in enumerate(zip(runs, ("as the command has it", "with the remedy"), strict=True)):
        axes[0, column].set_title(title)
        for (label, names), ax in zip(panels, axes[:, column], strict=True):
            panel(ax, rows, names, label if column == 0 else "")
        axes[-1, column].set_xlabel("step")
    out.parent.mkdir(exist_ok=True)
    figure.savefig(out, dpi=110)


def panel(ax: Axes, rows: list[dict[str, Any]], names: tuple[str, ...], label: str) -> None:
    for name, colour in zip(names, ("#0072B2", "#D55E00"), strict=False):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            ax.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, label=name.replace("_", " "))
    if "energy_real" in names and rows and max(abs(row["energy_gap"]) for row in rows) > 1e3:
        ax.set_yscale("symlog", linthresh=10)
    ax.set_ylabel(label, fontsize=8)
    ax.grid(color="#e6e8eb")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=7, frameon=False)


if __name__ == "__main__":
    main()
