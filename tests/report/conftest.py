"""Run directories as training and evaluation leave them, made up from a few numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jemstone.report import evaluation_plots, plots

SCORES = ("log_density", "max_probability", "approximate_mass")
METRICS = {"accuracy": 0.71, "ece": 0.061, "auroc": 0.81}
EDGES = np.linspace(-10, 12, 23).tolist()
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
    rows += [result("ece", 0.0271, 0.009), result("temperature", 1.7, 0.2), result("scaled/ece", 0.0123, 0.009)]
    for name, auroc in ood.items():
        for shift, score in enumerate(SCORES):
            rows += [result(f"ood/{name}/{score}/auroc", auroc - 0.05 * shift, n=720)]
            rows += [result(f"ood/{name}/{score}/aupr_in", auroc - 0.01, n=720)]
            rows += [result(f"ood/{name}/{score}/fpr95", 1 - auroc, n=720)]
    for regime, names in regimes(list(ood)).items():
        mean = float(np.mean([ood[name] for name in names])) if names else 0.5
        rows += [result(f"ood_mean/{regime}/{s}/auroc", mean - 0.05 * i, n=1080) for i, s in enumerate(SCORES) if names]
    rows += [result(name, value, 0.05, n=100) for name, value in robust.items()]
    for kind in ("noise", "blur", "mean"):
        rows += [result(f"corruption/{kind}/{metric}", value) for metric, value in METRICS.items()]
    rows += [result("refined/1/accuracy", 0.9, 0.05), result("refined/1/pgd_linf/0.1", 0.4, 0.05)]
    rows += [result("distal/convinced", 0.6, 0.1), result("distal/auroc", 0.88)]
    rows += [{"name": "generation/fid", "value": 12.345, "low": 11.0, "high": 14.0, "n": 200}]
    rows += [{"name": "real/fid", "value": 3.5, "low": 3.0, "high": 4.0, "n": 200}]
    rows += [{"name": "legacy/fid", "value": 7.25, "low": 7.0, "high": 7.5, "n": 500}]
    rows += [result("generation/memorised", 0.01), result("long_run/survived", 0.9, 0.1)]
    return [*rows, {"name": "likelihood/test", "value": -38.5, "low": -39.0, "high": -38.0, "n": 360}]


def regimes(sets: list[str]) -> dict[str, list[str]]:
    return {"near": sets[:1], "far": sets[1:]}


def bins(rng: np.random.Generator, centre: float, n: int = 200) -> list[int]:
    return [int(c) for c in np.histogram(rng.normal(centre, 2.0, n), EDGES)[0]]


def reliability(drop: float) -> dict[str, Any]:
    count = [0, 0, 2, 3, 5, 8, 12, 20, 60, 250]
    middle = np.linspace(0.05, 0.95, 10)
    accuracy = [None if c == 0 else float(np.clip(m + drop / 5, 0, 1)) for c, m in zip(count, middle, strict=True)]
    return {
        "edges": [i / 10 for i in range(11)],
        "count": count,
        "confidence": [None if c == 0 else float(m) for c, m in zip(count, middle, strict=True)],
        "accuracy": accuracy,
        "low": [None if a is None else max(a - 0.4 / c**0.5, 0) for a, c in zip(accuracy, count, strict=True)],
        "high": [None if a is None else min(a + 0.4 / c**0.5, 1) for a, c in zip(accuracy, count, strict=True)],
    }


def curve(eps: list[float], drop: float) -> dict[str, Any]:
    accuracy = [float(0.97 * np.exp(-drop * e)) for e in eps]
    low, high = [max(a - 0.06, 0) for a in accuracy], [min(a + 0.06, 1) for a in accuracy]
    return {"eps": eps, "accuracy": accuracy, "low": low, "high": high}


def sections(rng: np.random.Generator, sets: list[str], drop: float) -> dict[str, Any]:
    """The figures of every section, laid out as the sections of the evaluation do."""
    linf = [0.0, 0.02, 0.05, 0.1, 0.2]
    band = {
        "value": [0.9, 0.8, 0.7, 0.6, 0.5],
        "low": [0.85, 0.75, 0.65, 0.55, 0.45],
        "high": [0.95, 0.9, 0.8, 0.7, 0.6],
    }
    scores = {
        score: {
            "edges": EDGES,
            "test": bins(rng, 6),
            "ood": {name: bins(rng, 5 - 1.5 * i * (1 - drop)) for i, name in enumerate(sets)},
        }
        for score in SCORES
    }
    steps = [0, 1, 10, 100, 1000]
    energy = {"median": [3, 2, 0, -1, -1], "low": [2, 1, -1, -2, -2], "high": [4, 3, 1, 0, 0]}
    point = {"eps": 0.1, "accuracy": 0.3, "low": 0.2, "high": 0.4}
    counts = {"edges": EDGES, "counts": bins(rng, 0)}
    return {
        "calibration": {
            "reliability": reliability(drop),
            "reliability_equal_mass": reliability(drop),
            "scaled": reliability(drop / 3),
            "temperature": 1.7,
        },
        "ood": {"scores": scores, **regimes(sets), "sizes": dict.fromkeys(sets, 360)},
        "corruptions": {
            "severities": [1, 2, 3, 4, 5],
            "images": 100,
            "clean": {"accuracy": 0.97, "ece": 0.02},
            "kinds": {kind: dict.fromkeys(METRICS, band) for kind in ("noise", "blur")},
        },
        "robustness": {
            "curves": {"linf": curve(linf, 12 * drop), "l2": curve([8 * e for e in linf], 2 * drop)},
            "autoattack": {"linf": curve([0.0, 0.05], 14 * drop), "l2": curve([0.0, 0.4], 3 * drop)},
            "black_box": point,
            "huge": {**point, "eps": 0.5, "accuracy": 0.0, "low": 0.0},
            "zero_gradient": 0.125,
            "images": 100,
        },
        "refinement": {
            "steps": [0, 1],
            "images": 30,
            "curves": {"0": curve([0.0, 0.1], 4.0), "1": curve([0.0, 0.1], 3.0)},
            "transfer": {"1": curve([0.0, 0.1], 2.0)},
            "worst": {"1": curve([0.0, 0.1], 3.5)},
        },
        "distal": {
            "probability": counts,
            "log_density": {"edges": EDGES, "test": bins(rng, 5), "distal": bins(rng, 0)},
        },
        "generation": {
            "extractor": {"name": "pixels", "dimension": 64, "logits": False},
            "samples": 200,
            "nearest": {"edges": EDGES, "samples": bins(rng, 2), "test": bins(rng, 3)},
            "per_class_fid": {"0": 21.5, "1": 23.5},
            "life": 100,
        },
        "long_run": {
            "steps": steps,
            "life": 100,
            "energy": energy,
            "data_energy": {"median": -0.5, "low": -1.5, "high": 0.5},
            "diversity": [1.2, 1.1, 1.0, 0.9, None],
            "confidence": [0.2, 0.4, 0.6, 0.8, 0.9],
            "classes": [1, 2, 3, 4, 5],
            "r_hat": 1.04,
        },
        "likelihood": {
            "method": "ais",
            "domain": [-1.0, 1.0],
            "log_z": 45.6,
            "effective_sample_size": 51.2,
            "acceptance": [0.9, 0.8, 0.7],
            "log_weights": counts,
            "test": counts,
            "train": counts,
        },
    }


WARNING = {
    "section": "long_run",
    "name": "chains-not-mixed",
    "text": "split R-hat of 64 chains is 36.8",
    "meaning": "Samples reflect the start.",
}


def figures(rng: np.random.Generator, sets: list[str], drop: float, steps: int) -> dict[str, Any]:
    found = sections(rng, sets, drop)
    settings = {name: {"images": 100, "radii": [0.05, 0.1]} for name in found}
    return {
        "protocol": {"name": "v1", "seed": 0, "batch_size": 256, "resamples": 1000, **settings},
        "warnings": [],
        "notes": ["Attacks ran on 100 test images."],
        "step": steps,
        "environment": {"jemstone": "0.1.0", "device": "cpu (some processor)", "date": "2026-01-02"},
        "seconds": {name: 1.5 + i for i, name in enumerate(found)},
        "sections": found,
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
def doubt() -> dict[str, str]:
    """One warning, as an evaluation writes it."""
    return dict(WARNING)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures cost most of the time of a page, and few tests look at them."""
    for module in (plots, evaluation_plots):
        monkeypatch.setattr(module, "render", lambda draw, height: "<svg/>")


@pytest.fixture
def edit() -> Callable[..., None]:
    """Change a JSON file of a run: edit(path, lambda content: ...), in place."""

    def change(file: Path, how: Callable[[Any], Any]) -> None:
        content = json.loads(file.read_text(encoding="utf-8"))
        how(content)
        write(file, content)

    return change


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
        write(path / "figures.json", figures(rng, list(ood), 0.4 if jem else 0.9, steps))
    if "samples" not in missing:
        (path / "samples").mkdir()
        for name in ("data", "fresh", "attacked", "long_run"):
            pixels = rng.integers(0, 255, (80, 80), dtype=np.uint8)
            Image.fromarray(pixels).save(path / "samples" / f"{name}.png")
        write(path / "samples" / "fresh.json", {"caption": "One class per row, 20 steps."})
    return path
