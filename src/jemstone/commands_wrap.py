"""`jemstone wrap`: a trained classifier becomes a run, and what held-out data say of it is shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from jemstone.deployment.wrap import VALIDATION, wrap
from jemstone.errors import ConfigError

T = TypeVar("T", int, float)


def wrap_parser() -> ArgumentParser:
    """What the command takes."""
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
    parser.add_argument("--validation", type=float, default=VALIDATION, help="share of the examples to calibrate on")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    return parser


def show_wrap(options: Namespace, console: Console) -> None:
    """Run the command."""
    run = wrap(
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
    console.print(f"Wrapped {options.network} into {run.path}. Next: jemstone evaluate {run.path}")


def _numbers(option: str, text: str, kind: Callable[[str], T]) -> list[T] | None:
    try:
        return [kind(part) for part in text.split(",")] if text else None
    except ValueError as error:
        raise ConfigError(f"{option} takes numbers divided by commas; got {text!r}.") from error
