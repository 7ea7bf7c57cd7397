"""Two runs in one table: the same network with and without noise on its inputs, each difference tested.

What one learns: runs are compared on the same test examples, so that a difference can be significant although the
intervals overlap; a mark is about these two trained models, and one seed of each proves nothing about the recipe.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from jemstone import Augment, Session, evaluate_run, load_dataset, recipe
from jemstone.evaluation import BUDGETS
from jemstone.evaluation.compare import compare_runs
from jemstone.evaluation.table_text import as_markdown


def protocol():
    """A small part of the quick budget: 100 images, two radii. Tables for others to read keep a budget as it is."""
    quick = BUDGETS["quick"].only("calibration", "robustness")
    attacks = replace(quick.robustness, images=100, steps=10, linf=(0.05, 0.1), l2=(), black_box_images=0)
    return replace(quick, resamples=200, robustness=attacks)


def main(steps=200):
    data = load_dataset("digits")
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for name, noise in (("plain", 0.0), ("noisy", 0.3)):
            config = recipe("classifier-small").with_values(
                steps=steps, network={"name": "conv-8"}, augment=Augment(noise=noise), device="cpu"
            )
            paths.append(Path(folder) / name)
            for _ in Session.start(config, data, run=paths[-1]).train():
                pass
            evaluate_run(paths[-1], data=data, protocol=protocol())
        table = compare_runs(paths, metrics=["accuracy", "nll", "ece", "pgd_linf/*"])
    print(as_markdown(table))
    return table


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
