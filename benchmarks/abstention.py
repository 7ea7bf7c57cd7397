"""Saying "I don't know": who orders its mistakes best, and do the guarantees hold?

    python benchmarks/abstention.py --pair NAME CLASSIFIER JEM [--pair ...] [--foreign NAME SET SOURCE ...]

A pair is two run directories, trained on the same data. Each model is judged on its test split:

    ranking   risk-coverage curves and AURC, ordered by max p(y|x) and by log p(x), on the test split alone and mixed
              with foreign inputs, as many as there are test inputs at most, each of them a mistake if accepted;
              without --foreign, test inputs turned by 90 degrees are foreign
    splits    the three thresholds set on one random half of the test split and judged on the other, 200 times; the
              selective error, whose law asks for independent draws, on as many drawn with replacement instead, and
              judged on the whole test split, which is their population
    rule      accept = log-density and confidence both reach their thresholds: shares accepted and errors among them

Writes benchmarks/results/abstention.json and docs/images/risk_coverage.svg. `--toy` trains two tiny runs on digits.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from common import write
from scipy.special import logsumexp, softmax
from scipy.stats import betabinom, binom

from jemstone import Session, generator, load_dataset, load_inputs, load_trained, recipe
from jemstone.deployment.abstention import (
    aurc,
    confidence_threshold,
    density_threshold,
    risk_coverage,
    set_threshold,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

plt.rcParams["svg.hashsalt"] = "risk_coverage"  # the same picture is the same file

COVERAGE, REJECTION, ERROR, DELTA = 0.9, 0.05, 0.05, 0.05
MODELS = ("classifier", "jem")
ORDERS = {"max probability": "solid", "log density": "dotted"}
COLOURS = {"classifier": "#777777", "jem": "#0b6e99"}
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "risk_coverage.svg"
Scored = dict[str, np.ndarray]


def scored(logits: np.ndarray, labels: np.ndarray | None) -> Scored:
    """What the thresholds see of each input; an input without a label is foreign, and never right."""
    logits = logits.astype(np.float64)
    probability = softmax(logits, axis=1)
    right = np.zeros(len(logits), dtype=bool) if labels is None else logits.argmax(axis=1) == labels
    found = {
        "max probability": probability.max(axis=1),
        "log density": logsumexp(logits, axis=1),
        "correct": right,
    }
    if labels is None:
        return found
    return found | {"probability": probability, "of true label": probability[np.arange(len(labels)), labels]}


def mixed(test: Scored, foreign: Scored) -> Scored:
    """The test inputs and the foreign ones as one stream."""
    return {name: np.concatenate([test[name], foreign[name]]) for name in foreign}


def shuffled(n: int, seed: int, *, replace: bool = False) -> np.ndarray:
    """A random order of n, or n draws with replacement."""
    rng = generator(seed, "split", "drawn" if replace else "order")
    return (torch.randint(n, (n,), generator=rng) if replace else torch.randperm(n, generator=rng)).numpy()


def proportion_law(counts: list[int], n: int, m: int, k: int) -> dict[str, float]:
    """How often an example of the other half fell below, beside its exact law without ties: beta-binomial."""
    law = betabinom(m, k, n + 1 - k)
    low, high = law.ppf(0.025), law.ppf(0.975)
    return {
        "mean": round(float(np.mean(counts)) / m, 5),
        "exact_mean": round(k / (n + 1), 5),
        "z": round(float((np.mean(counts) - law.mean()) / (law.std() / np.sqrt(len(counts)))), 2),
        "splits_inside_95": int(sum(low <= count <= high for count in counts)),
        "splits_expected_inside": round(len(counts) * float(law.cdf(high) - law.cdf(low - 1)), 1),
    }


def guarantees(test: Scored, foreign: dict[str, Scored], splits: int) -> dict[str, Any]:
    """All three laws over random splits of one test set, and what the rule that joins two of them lets through."""
    size = len(test["correct"])
    n = size // 2
    below: dict[str, list[int]] = {"of true label": [], "log density": []}
    labels_in_set, empty, risks, coverages = [], [], [], []
    rule: dict[str, list[float]] = {"test accepted": [], "error": [], **{f"{name} accepted": [] for name in foreign}}
    for split in range(splits):
        order = shuffled(size, split)
        here, there = order[:n], order[n:]
        for name, threshold in (
            ("of true label", set_threshold(test["of true label"][here], COVERAGE)),
            ("log density", density_threshold(test["log density"][here], REJECTION)),
        ):
            below[name].append(int((test[name][there] < threshold).sum()))
        sizes = (test["probability"][there] >= set_threshold(test["of true label"][here], COVERAGE)).sum(axis=1)
        labels_in_set.append(float(sizes.mean()))
        empty.append(float((sizes == 0).mean()))

        drawn = shuffled(size, split, replace=True)[:n]
        limit = confidence_threshold(test["max probability"][drawn], test["correct"][drawn], ERROR, DELTA)
        accepted = test["max probability"] >= limit
        coverages.append(float(accepted.mean()))
        risks.append(float((~test["correct"][accepted]).mean()) if accepted.any() else 0.0)

        floor = density_threshold(test["log density"][drawn], REJECTION)
        passing = drawn[test["log density"][drawn] > floor]
        limit = confidence_threshold(test["max probability"][passing], test["correct"][passing], ERROR, DELTA)
        both = {
            name: (part["log density"] >= floor) & (part["max probability"] >= limit)
            for name, part in {"test": test, **foreign}.items()
        }
        for name, kept in both.items():
            rule[f"{name} accepted"].append(float(kept.mean()))
        rule["error"].append(float((~test["correct"][both["test"]]).mean()) if both["test"].any() else 0.0)
    broken, joint = (int(sum(risk > ERROR for risk in found)) for found in (risks, rule["error"]))
    k = {name: int((n + 1) * share + 1e-9) for name, share in (("sets", 1 - COVERAGE), ("density", REJECTION))}
    return {
        "held_out": n,
        "sets": proportion_law(below["of true label"], n, size - n, k["sets"])
        | {"labels_in_set": round(float(np.mean(labels_in_set)), 3), "empty": round(float(np.mean(empty)), 4)},
        "density": proportion_law(below["log density"], n, size - n, k["density"]),
        "selective": {
            "broken": broken,
            "broken_97.5_if_delta": int(binom.ppf(0.975, splits, DELTA)),
            "mean_error": round(float(np.mean(risks)), 5),
            "mean_coverage": round(float(np.mean(coverages)), 4),
        },
        "rule": {"broken": joint} | {name: round(float(np.mean(values)), 4) for name, values in rule.items()},
    }


def judge(run: Path, sets: dict[str, str], splits: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """One model's numbers and its curves."""
    trained = load_trained(run)
    data = load_dataset(trained.config.data.source).test
    inputs = {name: load_inputs(source, trained.input_shape)[: len(data)] for name, source in sets.items()}
    inputs = inputs or {"turned by 90 degrees": data.inputs.rot90(dims=(2, 3))}
    test = scored(trained.logits(data.inputs).numpy(), data.labels.numpy())
    foreign = {name: scored(trained.logits(x).numpy(), None) for name, x in inputs.items()}
    streams = {"test": test, **{f"test + {name}": mixed(test, part) for name, part in foreign.items()}}
    curves = {
        name: {order: risk_coverage(part[order], part["correct"]) for order in ORDERS} for name, part in streams.items()
    }
    numbers = {
        "error_rate": round(float(1 - test["correct"].mean()), 5),
        "aurc": {
            name: {order: round(aurc(part[order], part["correct"]), 5) for order in ORDERS}
            | {"best possible": round(aurc(part["correct"].astype(float), part["correct"]), 5)}
            for name, part in streams.items()
        },
    }
    return numbers | guarantees(test, foreign, splits), curves


def draw(curves: dict[str, dict[str, Any]], path: Path) -> None:
    """One row of panels per pair: the test split alone, then mixed with each foreign set."""
    columns = max(len(pair["jem"]) for pair in curves.values())
    figure, axes = plt.subplots(
        len(curves), columns, figsize=(3.4 * columns, 2.8 * len(curves)), squeeze=False, layout="constrained"
    )
    for row, (pair, models) in zip(axes, curves.items(), strict=True):
        for axis in row[len(models["jem"]) :]:
            axis.axis("off")
        for axis, stream in zip(row, models["jem"], strict=False):
            for model in MODELS:
                for order, style in ORDERS.items():
                    coverage, risk = models[model][stream][order]
                    rows = np.unique(np.linspace(0, len(risk) - 1, 150).astype(int))
                    axis.plot(coverage[rows], risk[rows], color=COLOURS[model], linestyle=style, linewidth=1.3)
            axis.set_title(f"{pair}: {stream}", fontsize=9)
            axis.set(xlim=(0, 1), ylim=(0, None))
            axis.tick_params(labelsize=7)
            axis.grid(color="#dddddd", linewidth=0.5)
        row[0].set_ylabel("share wrong among accepted", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("share accepted", fontsize=8)
    lines = [
        plt.Line2D([], [], color=COLOURS[model], linestyle=style, label=f"{model}, by {order}")
        for model in MODELS
        for order, style in ORDERS.items()
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def toy(folder: Path) -> list[list[str]]:
    """A tiny classifier and a tiny JEM on digits, as one pair."""
    for name in MODELS:
        config = recipe(f"{name}-small").with_values(steps=40, network={"name": "conv-4"}, batch_size=16, device="cpu")
        for _ in Session.start(config, run=folder / name).train():
            pass
    return [["digits", *(str(folder / name) for name in MODELS)]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", action="append", nargs=3, default=[], metavar=("NAME", "CLASSIFIER", "JEM"))
    parser.add_argument("--foreign", action="append", nargs=3, default=[], metavar=("NAME", "SET", "SOURCE"))
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pairs = toy(Path(folder)) if options.toy else options.pair
        if not pairs:
            parser.error("give a --pair of runs, or --toy")
        found: dict[str, Any] = {}
        curves: dict[str, dict[str, Any]] = {}
        for name, *runs in pairs:
            sets = {kind: source for pair, kind, source in options.foreign if pair == name}
            judged = [judge(Path(run), sets, options.splits) for run in runs]
            found[name] = {model: numbers for model, (numbers, _) in zip(MODELS, judged, strict=True)}
            curves[name] = {model: lines for model, (_, lines) in zip(MODELS, judged, strict=True)}
            for model in MODELS:
                print(name, model, found[name][model])
    draw(curves, options.figure)
    asked = {"coverage": COVERAGE, "rejection": REJECTION, "error": ERROR, "delta": DELTA, "splits": options.splits}
    path = write("abstention", {"asked": asked, "pairs": found}, options.json)
    print(f"Written to {path} and {options.figure}.")


if __name__ == "__main__":
    main()
