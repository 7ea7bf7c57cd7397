"""What a speedrun is measured by at its end, and the published numbers that it is held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from jemstone import Session, generate, generator
from jemstone.data import grid
from jemstone.evaluation import Extractor, accuracy, ece, nll
from jemstone.evaluation.distances import fid
from jemstone.evaluation.features import features_of, moments_of
from jemstone.evaluation.forward import frozen, in_batches
from jemstone.networks.modes import statistics_of_negatives

MINUTES = 25.0
TARGETS = {
    "jem": {"accuracy": 0.929, "fid": 38.4},
    "sada-jem": {"accuracy": 0.955, "fid": 17.4},
}
"""JEM (Grathwohl et al. 2020, 101 GPU hours) and SADA-JEM (2023): its FID of 9.4 is by a protocol of its own,
17.4 is what others measured."""
PUBLISHED = 50_000
"""Samples behind a published FID."""
RESAMPLES = 10


def final(session: Session, extractor: Extractor, count: int, picture: Path) -> dict[str, Any]:
    """How good the model is at the end, and how good its samples are."""
    model, data, device = session.model, session.data, session.trainer.fabric.device
    with frozen(model):
        logits = in_batches(lambda m, x: m(x), model, data.test.inputs, 512)
    labels = data.test.labels.numpy()
    found: dict[str, Any] = {one.name: one._asdict() for one in (f(logits, labels) for f in (accuracy, ece, nll))}
    print({name: round(value["value"], 4) for name, value in found.items()}, flush=True)

    assert session.initial is not None, "every preset has chains"
    chains = session.config.chains
    life = round(session.state.chain_steps / chains.restart_rate)
    with statistics_of_negatives(model):
        samples = generate(
            model,
            session.initial,
            session.sampler,
            (torch.arange(count) % data.num_classes).to(device),
            life,
            generator(session.config.seed, "speedrun", device=device),
            by_class=False,
            batch_size=session.config.real_batch_size,  # as in training: a compiled gradient is for one size
            execution=session.trainer.execution,
        ).cpu()
    picture.parent.mkdir(parents=True, exist_ok=True)
    grid(samples[:100], 10).save(picture)

    reference = moments_of(features_of(extractor, data.train.inputs).pool)
    distance = fid(features_of(extractor, samples).pool, reference, seed=0, resamples=RESAMPLES)
    found["fid"] = {"name": "fid", **distance._asdict(), "n": count}
    print(f"FID {distance.value:.2f} in {extractor.name}", flush=True)
    comparable = extractor.name.startswith("inception") and count == PUBLISHED
    return {**found, "samples": count, "chain_life": life, "features": extractor.name, "comparable": comparable}


def judged(measured: dict[str, Any], seconds: float, toy: bool) -> dict[str, dict[str, float | bool | None]]:
    """What of each target was met; None where it was not measured as published."""
    found: dict[str, dict[str, float | bool | None]] = {}
    for name, target in TARGETS.items():
        parts: dict[str, bool | None] = {
            "accuracy": None if toy else measured["accuracy"]["value"] >= target["accuracy"],
            "fid": measured["fid"]["value"] <= target["fid"] if measured["comparable"] and not toy else None,
            "minutes": None if toy else seconds <= 60 * MINUTES,
        }
        met = False if False in parts.values() else None if None in parts.values() else True
        found[name] = {**{f"target_{key}": value for key, value in target.items()}, **parts, "met": met}
    return found
