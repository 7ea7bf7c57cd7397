"""jemstone predict: a few images, labelled on the command line."""

from __future__ import annotations

import json
from dataclasses import asdict

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from jemstone.commands.policy import USAGE, add_policy, load_predictor
from jemstone.runs import strict

NAME = "predict"
HELP = "label images, or say 'I don't know' and why"


def parser() -> ArgumentParser:
    """Its arguments."""
    parser = ArgumentParser(
        usage=f"jemstone predict MODEL IMAGE [IMAGE ...] {USAGE} [--json]",
        description="Label images with calibrated probabilities, or say 'I don't know' and why. MODEL is a run "
        "directory, digits, fashion-mnist, or OWNER/NAME of the Hugging Face hub. For many images: jemstone score.",
    )
    parser.add_argument("model", metavar="MODEL", help="run directory, name, or hub id")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    add_policy(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def run(options: Namespace, console: Console) -> None:
    """Print one row per image."""
    predictor = load_predictor(options.model, options)
    found = predictor(list(options.images))
    if options.json:
        rows = [{"image": name, **asdict(one)} for name, one in zip(options.images, found, strict=True)]
        console.print(json.dumps(strict(rows), indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("image", "label", "probability", "typicality", "verdict"):
        table.add_column(
            title,
            justify="right" if title in ("probability", "typicality") else "left",
            overflow="fold" if title == "image" else "ellipsis",  # a path must be whole to be of use
        )
    for name, one in zip(options.images, found, strict=True):
        verdict = "accepted" if one.accepted else f"I don't know: {one.reason}"
        table.add_row(name, one.label, f"{one.probability:.3f}", f"{one.typicality:.1f} %", verdict)
    console.print(table)
