"""Flipped labels, found again: JEM against plain classifiers, by precision among the most suspicious.

    python benchmarks/audit.py [--seeds 5] [--workers 2] [--fashion FILE.npz] [--json FILE] [--rows FILE]

A twentieth of the training labels become another class at random. Networks train on the flipped labels; every training
example is then ranked, by networks that saw it (`in`, what `jemstone audit RUN` does with one run) and, two-fold, by
networks that did not (`out`, what confident learning asks for). `noise 0.3` is the classifier with the JEM's input
noise, so that nothing is credited to the density that augmentation buys, and `15 epochs` one that was stopped after a
quarter of the 60 that the others have, before it knows the flips by heart. Scores:

    margin           log p(y'|x) - log p(y|x), y given and y' the best other class: of `jemstone audit`
    self-confidence  -log p(y|x)
    joint            -log p(x, y) = -f_y(x): what only a model of both can ask

Precision at k, the number of flips, is recall at k too. Recall at 2k and average precision say how the rest is ranked.
--fashion adds rows for 6,000 training images of Fashion-MNIST and a sixth of the epochs, one seed, in-sample.
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
from sklearn.metrics import average_precision_score

from jemstone.data import Dataset, Split, load_dataset
from jemstone.deployment.audit import margins
from jemstone.networks.modes import in_mode
from jemstone.rng import generator
from jemstone.training.config import TrainConfig
from jemstone.training.recipes import recipe
from jemstone.training.session import Session

FLIPPED = 0.05
NAMES = ("classifier", "classifier, noise 0.3", "classifier, 15 epochs", "jem")


def configuration(name: str, source: str) -> TrainConfig:
    jem = recipe("jem-small")
    config = {
        "classifier": recipe("classifier-small"),
        "classifier, noise 0.3": recipe("classifier-small").with_values(augment={"noise": jem.augment.noise}),
        "classifier, 15 epochs": recipe("classifier-small").with_values(epochs=15),
        "jem": jem,
    }[name]
    if source != "digits":
        near = {"optimizer": {"learning_rate": 1e-3, "warmup_steps": 200}, "chains": {"start": "gaussian"}}
        config = config.with_values(epochs=config.epochs / 6, network={"name": "conv-16"})
        config = config.with_values(**(near if name == "jem" else {}))
    return config


def flipped(labels: torch.Tensor, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(labels with a share of FLIPPED moved to another class, which ones)."""
    rng = generator(seed, "flips")
    chosen = torch.randperm(len(labels), generator=rng)[: round(FLIPPED * len(labels))]
    moved = labels.clone()
    moved[chosen] = (labels[chosen] + torch.randint(1, classes, (len(chosen),), generator=rng)) % classes
    return moved, moved != labels


def logits_of(name: str, source: str, data: Dataset, seen: Split, seed: int, asked: torch.Tensor, steps: int | None):
    config = configuration(name, source).with_values(seed=seed, validate_every=10_000)
    session = Session.start(config.with_values(steps=steps) if steps else config, replace(data, train=seen))
    for _ in session.train():
        pass
    with in_mode(session.model, training=False), torch.no_grad():
        return torch.cat([session.model(part) for part in torch.split(asked, 512)])


def found_by(score: torch.Tensor, wrong: torch.Tensor) -> dict[str, float]:
    order, k = score.argsort(descending=True), int(wrong.sum())
    return {
        "precision": wrong[order[:k]].float().mean().item(),
        "recall_2k": wrong[order[: 2 * k]].sum().item() / k,
        "average_precision": float(average_precision_score(wrong.numpy(), score.numpy())),
    }


def run(cell: common.Cell) -> dict[str, Any]:
    source, name, seed, folds, steps = cell
    data = load_dataset(source, limit=None if source == "digits" else 6000)
    x = data.train.inputs.float() if data.train.inputs.dtype != torch.uint8 else data.train.inputs * (2 / 255) - 1
    labels, wrong = flipped(data.train.labels, data.num_classes, seed)
    began = time.process_time()
    logits = torch.empty(len(x), data.num_classes)
    fold = torch.randperm(len(x), generator=generator(seed, "folds")) % max(folds, 1)
    for number in range(folds):
        held = fold == number
        seen = ~held if folds > 1 else held
        logits[held] = logits_of(name, source, data, Split(x[seen], labels[seen]), seed, x[held], steps)
    given = logits.gather(1, labels[:, None]).squeeze(1)
    scores = {"margin": margins(logits, labels), "self-confidence": logits.logsumexp(1) - given, "joint": -given}
    found = {key: found_by(score, wrong) for key, score in scores.items()}
    accuracy = (logits.argmax(1) == data.train.labels).float().mean().item()
    rounded = {key: {kind: round(value, 4) for kind, value in row.items()} for key, row in found.items()}
    return {
        "flips": int(wrong.sum()),
        "examples": len(x),
        "accuracy_true": round(accuracy, 4),
        "cpu_s": round(time.process_time() - began, 1),
        **rounded,
    }


def main() -> None:
    options = common.cell_options(__doc__, Path("runs/audit.jsonl"))
    cells = [
        ("digits", name, seed, folds, options.steps)
        for seed in range(options.seeds)
        for folds in (1, 2)
        for name in NAMES
    ]
    if options.fashion:
        cells += [(str(options.fashion), name, 0, 1, options.steps) for name in NAMES]
    rows = common.run_all(cells, run, options.rows, options.workers)
    summary = []
    for source, folds in dict.fromkeys((cell[0], cell[3]) for cell in cells):
        for name in NAMES:
            group = [row for row in rows if (row["cell"][0], row["cell"][3], row["cell"][1]) == (source, folds, name)]
            for score in ("margin", "self-confidence", "joint"):
                line: dict[str, Any] = {
                    "data": Path(source).stem,
                    "sample": "in" if folds == 1 else "out",
                    "model": name,
                    "score": score,
                    "seeds": len(group),
                }
                for kind in ("precision", "recall_2k", "average_precision"):
                    mean, half = suite.interval([row[score][kind] for row in group])
                    line[kind] = [round(mean, 4), None if math.isnan(half) else round(half, 4)]
                summary.append(line)
                print(line)
    for row in rows:
        row["cell"][0] = Path(row["cell"][0]).stem
    print(f"Written to {common.write('audit', {'summary': summary, 'rows': rows}, options.json)}.")


if __name__ == "__main__":
    main()
