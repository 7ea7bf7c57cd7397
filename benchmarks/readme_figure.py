"""The picture at the top of the README, from the runs of `jemstone demo`.

python benchmarks/readme_figure.py DEMO_DIR [--out docs/images/demo.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from jemstone import load_dataset, load_trained
from jemstone.data import grid

TITLES = {"classifier-small": "Trained as a classifier", "jem-small": "Trained as a JEM"}
IN, OUT = "#4c78a8", "#e45756"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="directory that `jemstone demo --out` made")
    parser.add_argument("--out", type=Path, default=Path("docs/images/demo.png"), help="PNG to write")
    options = parser.parse_args()
    test = load_dataset("digits").test.inputs
    figure = Figure(figsize=(11, 3.3), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=[1, 1, 1.25])
    for ax, (name, title) in zip(axes, TITLES.items(), strict=False):
        trained = load_trained(options.demo / name)
        inside = trained.log_density(test).numpy()
        rotated = trained.log_density(test.rot90(1, (2, 3))).numpy()
        bins = np.linspace(*np.quantile(np.concatenate([inside, rotated]), (0.002, 0.998)), 40)
        for values, label, colour in ((inside, "test digits", IN), (rotated, "turned by 90°", OUT)):
            ax.hist(values.clip(bins[0], bins[-1]), bins, label=label, color=colour, alpha=0.75)
        ax.set_title(title)
        ax.set_xlabel("log p(x) + constant, nats")
        ax.set_yticks([])
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.legend(frameon=False, loc="best")
    trained = load_trained(options.demo / "jem-small")
    samples = trained.sample(torch.arange(50) % 10, by_class=True)
    axes[2].imshow(grid(samples, columns=10, scale=6), cmap="gray", interpolation="nearest")
    axes[2].set_title("Samples of the JEM, one class per column")
    axes[2].axis("off")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110, facecolor="white")
    print(options.out)


if __name__ == "__main__":
    main()
