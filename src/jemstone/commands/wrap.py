"""jemstone wrap: a trained classifier becomes a run, and what held-out data say of it is shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from scipy.special import softmax

from jemstone.data import load_inputs
from jemstone.deployment.predictor import Predictor
from jemstone.deployment.wrap import VALIDATION, wrap
from jemstone.errors import ConfigError
from jemstone.evaluation.calibration import ece
from jemstone.evaluation.detection import auroc
from jemstone.evaluation.intervals import Result
from jemstone.rng import generator
from jemstone.training.inputs import data_of_run

NAME = "wrap"
HELP = "a trained classifier becomes a run, without training"

T = TypeVar("T", int, float)


def parser() -> ArgumentParser:
    """Its arguments."""
    parser = ArgumentParser(
        usage="jemstone wrap NETWORK --data SOURCE --out RUN [--weights FILE] [--classes N,N,...] [--size PIXELS]\n"
        "                     [--mean X,X,X] [--std X,X,X] [--validation SHARE] [--ood SOURCE]",
        description="Make a run directory of a trained classifier, without training: to be calibrated, evaluated and "
        "served like any run. NETWORK is timm:NAME, hf:FOLDER_OR_ID or py:FILE.py:FUNCTION. Output i of the network is "
        "class i of the data, unless --classes says otherwise.",
    )
    parser.add_argument("network", metavar="NETWORK", help="timm:NAME, hf:FOLDER_OR_ID or py:FILE.py:FUNCTION")
    parser.add_argument("--data", required=True, metavar="SOURCE", help="labelled data that it was not trained on")
    parser.add_argument("--out", required=True, type=Path, metavar="RUN", help="run directory to make")
    parser.add_argument("--weights", type=Path | None, metavar="FILE", help="safetensors or state dict to load into it")
    parser.add_argument("--classes", type=str, default="", help="the output for each class of the data, as 281,207")
    parser.add_argument("--size", type=int | None, help="side of the images that it takes (default: as it was trained)")
    parser.add_argument("--mean", type=str, default="", help="of pixels in [0, 1], where its source does not say")
    parser.add_argument("--std", type=str, default="", help="of pixels in [0, 1]")
    parser.add_argument("--ood", type=str | None, metavar="SOURCE", help="what to tell it from (default: noise)")
    parser.add_argument("--validation", type=float, default=VALIDATION, help="share of the examples to calibrate on")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    return parser


def run(options: Namespace, console: Console) -> None:
    """Make the run, and print what its held-out data say."""
    wrapped = wrap(
        options.network,
        options.data,
        options.out,
        weights=options.weights,
        size=options.size,
        mean=_numbers("--mean", options.mean, float),
        std=_numbers("--std", options.std, float),
        classes=_numbers("--classes", options.classes, int),
        validation=options.validation,
        seed=options.seed,
    )
    console.print(f"Wrapped {options.network} into {wrapped.path}.")
    predictor = Predictor.load(wrapped.path)
    for name, value in found(predictor, options.ood).items():
        console.print(f"  {name:<52} {value}")
    if predictor.calibration.correct.mean() < 1.5 / len(predictor.trained.class_names):
        console.print("Hardly better than chance: is output i of the network class i of the data? If not, --classes.")
    console.print(f"Next: jemstone evaluate {wrapped.path}")


def found(predictor: Predictor, ood: str | None = None) -> dict[str, str]:
    """What the held-out examples of a run say of its network, in words and numbers.

    The energy score is set against that of the largest probability, on `ood`, a source, or on uniform noise.
    """
    trained, thresholds = predictor.trained, predictor.thresholds
    data = data_of_run(trained.run, trained.config, trained.data)
    logits, labels = trained.logits(data.validation.inputs), data.validation.labels.numpy()
    if ood is None:
        low, high = trained.box or (-1.0, 1.0)
        rng = generator(0, "noise")
        outside = low + (high - low) * torch.rand(len(labels), *trained.input_shape, generator=rng)
    else:
        outside = load_inputs(ood, trained.input_shape, moments=data.moments)
    outer = trained.logits(outside).numpy()
    inside, beyond = predictor.predictions(logits), predictor.predictions(torch.from_numpy(outer))
    raw, scaled = logits.numpy(), logits.numpy() / predictor.calibration.temperature
    against = f"AUROC against {ood or 'uniform noise'}"
    return {
        "calibration examples": str(len(labels)),
        "accuracy on them": f"{(inside.index == labels).mean():.3f}",
        "temperature": f"{predictor.calibration.temperature:.3f}",
        "ECE": _with_interval(ece(raw, labels)),
        "ECE at that temperature": _with_interval(ece(scaled, labels)),
        "accepted from log density, nats": f"{thresholds.density:.3f}",
        "accepted from confidence": f"{thresholds.confidence:.3f}",
        f"{against}: energy": f"{auroc(inside.log_density, beyond.log_density):.3f}",
        f"{against}: largest probability": f"{auroc(*map(_largest, (raw, outer))):.3f}",
    }


def _largest(logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """The largest probability as the network has it: a small temperature makes all alike."""
    found: Float[np.ndarray, " n"] = softmax(logits.astype(np.float64), axis=1).max(axis=1)
    return found


def _with_interval(result: Result) -> str:
    return f"{result.value:.3f} [{result.low:.3f}, {result.high:.3f}]"


def _numbers(option: str, text: str, kind: Callable[[str], T]) -> list[T] | None:
    try:
        return [kind(part) for part in text.split(",")] if text else None
    except ValueError as error:
        raise ConfigError(f"{option} takes numbers divided by commas; got {text!r}.") from error
