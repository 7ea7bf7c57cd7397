"""jemstone audit: a table and a contact sheet of a source's most suspicious training images."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from jemstone.data.sources import load_training
from jemstone.deployment.audit import audit
from jemstone.deployment.contact_sheet import contact_sheet
from jemstone.deployment.locate import locate
from jemstone.errors import ConfigError, DataError
from jemstone.runs import write_atomically
from jemstone.training.trained import load_trained

NAME = "audit"
HELP = "training images that deserve a second look"


def parser() -> ArgumentParser:
    """Its arguments."""
    parser = ArgumentParser(
        usage="jemstone audit RUN SOURCE --out DIR [--top N]",
        description="Rank a source's training images by suspicion: a wrong label, an outlier, a near-duplicate. Writes "
        "audit.csv, a line per image, and audit.png, the most suspicious of each kind. Its indices count the training "
        "images from 0 in the order in which the source holds them: class folder by class folder, files sorted.",
    )
    parser.add_argument("run", metavar="RUN", help="run directory, name, or hub id; best a JEM trained on this source")
    parser.add_argument("source", metavar="SOURCE", help="data set, as for train --data")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--top", type=int, default=24, help="images of each kind on the sheet")
    return parser


def run(options: Namespace, console: Console) -> None:
    """Write audit.csv and audit.png into --out."""
    if options.top < 1:
        raise ConfigError(f"--top counts images on the sheet, and is {options.top}: use at least 1.")
    trained = load_trained(locate(options.run))
    if len(trained.input_shape) != 3:
        raise ConfigError(
            f"{options.run} models vectors, and the sheet shows images: use jemstone.deployment.audit.audit(trained, "
            "split), with the split that the run standardised."
        )
    split, names = load_training(options.source)
    if names != trained.class_names:
        raise DataError(
            f"{options.source} has the classes {', '.join(names)}, and {options.run} knows "
            f"{', '.join(trained.class_names)}: labels mean the same only where names and order are the same."
        )
    found = audit(trained, split)
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "audit.csv", found.as_csv(trained.class_names).encode())
    sheet = contact_sheet(found, split.inputs, trained.class_names, top=options.top)
    sheet.save(options.out / "audit.png")
    for name, flags in found.reasons().items():
        console.print(f"{name}: {int(flags.sum())} of {len(flags)}")
    console.print(f"Written to {options.out / 'audit.csv'} and {options.out / 'audit.png'}.")
