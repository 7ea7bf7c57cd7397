"""Run directories as training and evaluation leave them, made up from a few numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SCORES = ("log_density", "max_probability", "approximate_mass")
Builder = Callable[..., Path]


def result(name: str, value: float, spread: float = 0.02, n: int = 360) -> dict[str, Any]:
    return {"name": name, "value": value, "low": max(value - spread, 0.0), "high": min(value + spread, 1.0), "n": n}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def results(accuracy: float, ood: dict[str, float], robust: dict[str, float]) -> list[dict[str, Any]]:
    rows = [result("accuracy", accuracy), result("nll", 0.1234, 0.03), result("brier", 0.0456, 0.01)]
    rows += [result("ece", 0.0271, 0.009)]
    for name, auroc in ood.items():
        for shift, score in enumerate(SCORES):
            rows += [result(f"ood/{name}/{score}/auroc", auroc - 0.05 * shift, n=720)]
            rows += [result(f"ood/{name}/{score}/aupr", auroc - 0.01, n=720)]
            rows += [result(f"ood/{name}/{score}/fpr95", 1 - auroc, n=720)]
    return rows + [result(name, value, 0.05, n=100) for name, value in robust.items()]


def figures(rng: np.random.Generator, sets: list[str], drop: float) -> dict[str, Any]:
    count = [0, 0, 2, 3, 5, 8, 12, 20, 60, 250]
    middle = np.linspace(0.05, 0.95, 10)
    accuracy = [None if c == 0 else float(np.clip(m + drop / 5, 0, 1)) for c, m in zip(count, middle, strict=True)]
    edges = np.linspace(-10, 12, 41)
    eps = [0.0, 0.02, 0.05, 0.1, 0.2]
    curve = [float(0.97 * np.exp(-drop * 12 * e)) for e in eps]

    def histogram(centre: float, n: int) -> list[int]:
        return [int(c) for c in np.histogram(rng.normal(centre, 2.0, n), edges)[0]]

    return {
        "protocol": {
            "version": "v1",
            "interval": "95 % bootstrap, 1,000 resamples",
            "bins": 10,
            "attack": {"steps": 40},
        },
        "notes": ["Attacks ran on 100 test images."],
        "reliability": {
            "edges": [i / 10 for i in range(11)],
            "count": count,
            "confidence": [None if c == 0 else float(m) for c, m in zip(count, middle, strict=True)],
            "accuracy": accuracy,
            "low": [None if a is None else max(a - 0.4 / c**0.5, 0) for a, c in zip(accuracy, count, strict=True)],
            "high": [None if a is None else min(a + 0.4 / c**0.5, 1) for a, c in zip(accuracy, count, strict=True)],
        },
        "scores": {
            score: {
                "edges": edges.tolist(),
                "test": histogram(6, 360),
                "ood": {name: histogram(5 - 1.5 * i * (1 - drop), 360) for i, name in enumerate(sets)},
            }
            for score in SCORES
        },
        "robustness": {
            norm: {
                "eps": [scale * e for e in eps],
                "accuracy": curve,
                "low": [max(c - 0.06, 0) for c in curve],
                "high": [min(c + 0.06, 1) for c in curve],
            }
            for norm, scale in (("linf", 1.0), ("l2", 8.0))
        },
        "sizes": {"test": 360, "attack": 100, "ood": dict.fromkeys(sets, 360)},
    }


def metrics(rng: np.random.Generator, steps: int, jem: bool) -> list[dict[str, Any]]:
    rows = []
    for step in range(10, steps + 1, 10):
        wobble = float(rng.normal())
        row = {
            "step": step,
            "epoch": step / 20,
            "class_nll": 2.3 * float(np.exp(-step / 150)) + 0.02 + 0.01 * abs(wobble),
            "energy_real": -3 - step / 300 + 0.2 * wobble,
            "train_accuracy": 1 - 0.9 * float(np.exp(-step / 100)),
            "learning_rate": 1e-3,
            "seconds": 0.1 * step,
        }
        if jem:
            gap = 0.4 * float(np.exp(-step / 200)) + 0.1 * float(rng.normal())
            row |= {"energy_gap": gap, "energy_negatives": row["energy_real"] - gap, "clipped": 0.02}
            row |= {"chain_grad_norm": 0.5 + 0.05 * abs(wobble), "saturated": 0.3 + 0.02 * wobble}
        rows.append(row)
    return rows


@pytest.fixture(scope="session", name="build_run")
def run_builder() -> Builder:
    return build_run


@pytest.fixture
def make_run(tmp_path: Path) -> Builder:
    return lambda name="jem", **changes: build_run(tmp_path / name, **changes)


def build_run(
    path: Path,
    *,
    jem: bool = True,
    accuracy: float = 0.9722,
    ood: dict[str, float] | None = None,
    robust: dict[str, float] | None = None,
    network: str = "small",
    class_names: list[str] | None = None,
    steps: int = 600,
    missing: tuple[str, ...] = (),
) -> Path:
    """One run directory; `missing` names the parts that it shall lack: metrics, results, figures, samples."""
    rng = np.random.default_rng(7)
    ood = ood if ood is not None else {"letters": 0.912, "noise": 0.987}
    config = {"recipe": "jem-small" if jem else "classifier", "seed": 0, "network": {"kind": network, "width": 32}}
    if jem:
        config["chains"] = {"steps": 20, "step_size": 1.0, "noise": 0.01}
    data = {"name": "digits", "source": "digits", "input_shape": [1, 8, 8], "num_classes": 10, "digest": "a1b2"}
    data |= {"class_names": class_names or [str(i) for i in range(10)], "sizes": {"train": 1293, "test": 360}}
    environment = {"jemstone": "0.1.0", "torch": "2.13.0", "python": "3.11", "device": "cpu"}
    write(path / "config.json", {"format": 1, "config": config, "data": data, "environment": environment})
    events: list[dict[str, Any]] = [{"event": "started", "step": 0}]
    events += [
        {"event": "validation", "step": s, "accuracy": 0.97 - 0.8 * float(np.exp(-s / 120)), "nll": 0.2}
        for s in range(100, steps + 1, 100)
    ]
    write_lines(path / "events.jsonl", [*events, {"event": "finished", "step": steps}])
    if "metrics" not in missing:
        write_lines(path / "metrics.jsonl", metrics(rng, steps, jem))
    if "results" not in missing:
        robust = robust if robust is not None else {"pgd_linf/0.05": 0.52, "pgd_linf/0.1": 0.31, "pgd_l2/0.5": 0.61}
        write(path / "results.json", results(accuracy, ood, robust))
    if "figures" not in missing:
        write(path / "figures.json", figures(rng, list(ood), drop=0.4 if jem else 0.9))
    if "samples" not in missing:
        (path / "samples").mkdir()
        for name in ("data", "fresh"):
            pixels = rng.integers(0, 255, (80, 80), dtype=np.uint8)
            Image.fromarray(pixels).save(path / "samples" / f"{name}.png")
        write(path / "samples" / "fresh.json", {"caption": "One class per row, 20 steps."})
    return path
