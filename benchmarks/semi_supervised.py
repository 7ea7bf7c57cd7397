"""Ten labels per class and all other images without: JEM against the supervised net.

    python benchmarks/semi_supervised.py [--seeds 5] [--workers 2] [--fashion FILE.npz] [--json FILE] [--rows FILE]

The network, the number of optimiser steps and the labels are the same. The classifier sees the labelled images alone,
also with the JEM's input noise (`noise 0.3`), and the JEM learns p(x) from all images beside. `label spreading` is
scikit-learn's, over nearest neighbours in pixels: what unlabelled images are worth without a network. The recipes are
as they stand but for the number of steps; numbers are of the test split. --fashion adds Fashion-MNIST, 6,000 training
images and three seeds.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import suite
import torch
from sklearn.semi_supervised import LabelSpreading

from jemstone.data import UNLABELLED, Dataset, Split, load_dataset, to_box
from jemstone.networks.modes import in_mode
from jemstone.rng import generator
from jemstone.training.config import TrainConfig
from jemstone.training.recipes import recipe
from jemstone.training.session import Session

PER_CLASS = 10
NAMES = ("classifier", "classifier, noise 0.3", "jem", "label spreading")
STEPS = {"digits": 800, "fashion_mnist": 1000}


def configuration(name: str, source: str) -> TrainConfig:
    jem = recipe("jem-small")
    config = {
        "classifier": recipe("classifier-small"),
        "classifier, noise 0.3": recipe("classifier-small").with_values(augment={"noise": jem.augment.noise}),
        "jem": jem,
    }[name]
    if source != "digits":
        near = {"optimizer": {"learning_rate": 1e-3, "warmup_steps": 200}, "chains": {"start": "gaussian"}}
        config = config.with_values(network={"name": "conv-16"}, **(near if name == "jem" else {}))
    return config.with_values(steps=STEPS[Path(source).stem])


def with_few_labels(split: Split, classes: int, seed: int) -> Split:
    """The split with PER_CLASS labels of each class, chosen at random; the rest is unlabelled."""
    order = torch.randperm(len(split), generator=generator(seed, "labels"))
    kept = torch.cat([order[split.labels[order] == label][:PER_CLASS] for label in range(classes)])
    labels = torch.full_like(split.labels, UNLABELLED)
    labels[kept] = split.labels[kept]
    return Split(split.inputs, labels)


def accuracies(name: str, source: str, seed: int, data: Dataset, steps: int | None) -> dict[str, float]:
    parts = {"validation": data.validation, "test": data.test}
    inputs = {part: to_box(split.inputs) for part, split in parts.items()}
    if name == "label spreading":
        spreading = LabelSpreading(kernel="knn", n_neighbors=7, max_iter=200)
        spreading.fit(to_box(data.train.inputs).flatten(1).numpy(), data.train.labels.numpy())
        found = {part: torch.from_numpy(spreading.predict(x.flatten(1).numpy())) for part, x in inputs.items()}
    else:
        config = configuration(name, source).with_values(seed=seed, validate_every=10_000)
        session = Session.start(config.with_values(steps=steps) if steps else config, data)
        for _ in session.train():
            pass
        with in_mode(session.model, training=False), torch.no_grad():
            found = {
                part: torch.cat([session.model(rows) for rows in torch.split(x, 512)]).argmax(1)
                for part, x in inputs.items()
            }
    return {part: round((found[part] == split.labels).float().mean().item(), 4) for part, split in parts.items()}


def run(cell: common.Cell) -> dict[str, Any]:
    source, name, seed, steps = cell
    data = load_dataset(source, limit=None if source == "digits" else 6000)
    data = replace(data, train=with_few_labels(data.train, data.num_classes, seed))
    began = time.process_time()
    found = accuracies(name, source, seed, data, steps)
    return {"images": len(data.train), **found, "cpu_s": round(time.process_time() - began, 1)}


def main() -> None:
    options = common.cell_options(__doc__, Path("runs/semi-supervised.jsonl"))
    cells = [("digits", name, seed, options.steps) for seed in range(options.seeds) for name in NAMES]
    if options.fashion:
        cells += [(str(options.fashion), name, seed, options.steps) for seed in range(3) for name in NAMES]
    rows = common.run_all(cells, run, options.rows, options.workers)
    summary = []
    for source in dict.fromkeys(cell[0] for cell in cells):
        for name in NAMES:
            values = [row["test"] for row in rows if row["cell"][:2] == [source, name]]
            mean, half = suite.interval(values)
            accuracy = [round(mean, 4), None if math.isnan(half) else round(half, 4)]
            line = {"data": Path(source).stem, "model": name, "seeds": len(values), "accuracy": accuracy}
            summary.append({**line, "lowest": min(values), "highest": max(values)})
            print(summary[-1])
    for row in rows:
        row["cell"][0] = Path(row["cell"][0]).stem
    print(f"Written to {common.write('semi_supervised', {'summary': summary, 'rows': rows}, options.json)}.")


if __name__ == "__main__":
    main()
