"""JEMClassifier against scikit-learn's own on small tables: accuracy, calibration, and telling outliers.

    python benchmarks/estimator.py [--seeds 5] [--workers 2] [--quick] [--json FILE]

Iris, wine, breast cancer, digits and a synthetic table; for each seed a stratified 70 / 30 split. The settings of the
JEM are the defaults of the estimator, for all tables alike. They were chosen on seeds 0 to 4 of the first four and of
two moons; seeds here begin at 10, so the splits are others, but only the synthetic table was not looked at.

Classifiers (JEM, logistic regression, random forest, all at their defaults but for max_iter) are judged by accuracy and
expected calibration error (ten equal bins of the top probability). Densities (JEM, isolation forest at its default, a
Gaussian mixture of one full-covariance component for each class, reg_covar 0.01) are judged by the AUROC of test rows
against three kinds of outliers, none of which any of them has seen:

- held-out class: trained without class seed mod k; its test rows against the other test rows.
- shuffled: test rows whose every column is permuted on its own: columns keep their laws and lose their relations.
- uniform: between the least and the largest training value of each column.

All of them get the same columns, standardised by the training rows. Writes results/estimator.json and prints the table
of docs/deployment.md, mean and standard deviation over seeds; seconds are CPU seconds of one fit.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import common
import numpy as np
from sklearn import datasets
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from jemstone.deployment.estimator import JEMClassifier

FIRST_SEED = 10
TABLES = ("iris", "wine", "breast_cancer", "digits", "synthetic")
CLASSIFIERS = ("JEM", "logistic regression", "random forest")
DENSITIES = ("JEM", "isolation forest", "Gaussian mixture")
KINDS = ("held-out class", "shuffled", "uniform")


def table(name: str) -> tuple[np.ndarray, np.ndarray]:
    if name == "synthetic":
        return datasets.make_classification(
            1000, 20, n_informative=8, n_redundant=4, n_classes=4, class_sep=1.5, random_state=0
        )
    return getattr(datasets, f"load_{name}")(return_X_y=True)


def ece(probabilities: np.ndarray, y: np.ndarray, bins: int = 10) -> float:
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    place = np.minimum((top * bins).astype(int), bins - 1)
    parts = [(place == b) for b in range(bins) if (place == b).any()]
    return float(sum(part.mean() * abs(top[part].mean() - right[part].mean()) for part in parts))


def models(seed: int, classes: int, steps: int) -> dict[str, Any]:
    return {
        "JEM": JEMClassifier(random_state=seed, steps=steps),
        "logistic regression": LogisticRegression(max_iter=2000),
        "random forest": RandomForestClassifier(random_state=seed),
        "isolation forest": IsolationForest(random_state=seed),
        "Gaussian mixture": GaussianMixture(classes, reg_covar=0.01, random_state=seed),
    }


def auroc(density: Any, inside: np.ndarray, outside: np.ndarray) -> float:
    scores = density.score_samples(np.concatenate([inside, outside]))
    return float(roc_auc_score([1] * len(inside) + [0] * len(outside), scores))


def run(cell: common.Cell) -> dict[str, Any]:
    """One table, one seed: every number of every model."""
    name, seed, steps = cell
    warnings.simplefilter("ignore")  # of classes missing from a bin, and the like
    X, y = table(name)
    train, test, y_train, y_test = train_test_split(X, y, test_size=0.3, stratify=y, random_state=seed)
    scaler = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    classes = len(np.unique(y))
    found: dict[str, Any] = {}
    fitted = models(seed, classes, steps)
    for model in fitted:
        began = time.process_time()
        fitted[model].fit(train, y_train)
        found[f"{model}/seconds"] = round(time.process_time() - began, 3)
    for model in CLASSIFIERS:
        probabilities = fitted[model].predict_proba(test)
        found[f"{model}/accuracy"] = float((probabilities.argmax(axis=1) == y_test).mean())
        found[f"{model}/ece"] = ece(probabilities, y_test)
    rng = np.random.default_rng(seed)
    outliers = {
        "shuffled": np.stack([rng.permutation(column) for column in test.T], axis=1),
        "uniform": rng.uniform(train.min(axis=0), train.max(axis=0), test.shape),
    }
    for model in DENSITIES:
        found |= {f"{model}/{kind}": auroc(fitted[model], test, rows) for kind, rows in outliers.items()}
    left_out = seed % classes
    keep = y_train != left_out
    scaler = StandardScaler().fit(train[keep])
    known, rest = scaler.transform(train[keep]), scaler.transform(test)
    without = models(seed, classes - 1, steps)
    for model in DENSITIES:
        without[model].fit(known, y_train[keep])
        found[f"{model}/held-out class"] = auroc(without[model], rest[y_test != left_out], rest[y_test == left_out])
    found["recoveries"] = fitted["JEM"].n_recoveries_ + without["JEM"].n_recoveries_
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard deviation over seeds of every number, by table."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for name in dict.fromkeys(row["cell"][0] for row in rows):
        mine = [row for row in rows if row["cell"][0] == name]
        found[name] = {}
        for key in mine[0].keys() - {"cell"}:
            values = [row[key] for row in mine]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            found[name][key] = (round(statistics.mean(values), 4), round(spread, 4))
    return found


def print_tables(found: dict[str, dict[str, tuple[float, float]]]) -> None:
    for who, numbers in ((CLASSIFIERS, ("accuracy", "ece", "seconds")), (DENSITIES, KINDS)):
        print(f"\n| | | {' | '.join(found)} |\n| --- | --- |{' ---: |' * len(found)}")
        for number in numbers:
            for model in who:
                cells = ["{:.3f} ± {:.3f}".format(*found[name][f"{model}/{number}"]) for name in found]
                print(f"| {number} | {model} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help=f"how many seeds, from {FIRST_SEED}")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a toy size, whose numbers mean nothing")
    parser.add_argument("--rows", type=Path, default=Path("runs/estimator.jsonl"), help="finished rows; kept")
    parser.add_argument("--json", type=Path, help="where the result goes")
    options = parser.parse_args()
    steps = 20 if options.quick else JEMClassifier().steps
    names, seeds = (("iris",), 2) if options.quick else (TABLES, options.seeds)
    cells = [(name, FIRST_SEED + seed, steps) for name in names for seed in range(seeds)]
    rows = common.run_all(cells, run, options.rows, options.workers)
    found = summary(rows)
    print_tables(found)
    print(f"\nWritten to {common.write('estimator', {'steps': steps, 'summary': found, 'rows': rows}, options.json)}.")


if __name__ == "__main__":
    main()
