"""jemstone publish: a slim copy of a run, for others."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from jemstone.commands.policy import USAGE, add_policy, load_predictor
from jemstone.errors import ConfigError

NAME = "publish"
HELP = "a slim copy of a run with a model card, into a folder or to the Hugging Face hub"


def parser() -> ArgumentParser:
    """Its arguments."""
    parser = ArgumentParser(
        usage="jemstone publish RUN --out FOLDER [--license ID] [--buffer]\n"
        "       jemstone publish RUN --hub OWNER/NAME [--private] [--license ID] [--buffer]\n"
        f"                        {USAGE}",
        description="Make a slim copy of a run to hand on, with a model card: into a folder, or as a repository of the "
        "Hugging Face hub. Predictor.load and every command that takes a run take it.",
    )
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--out", type=Path | None, metavar="FOLDER", help="folder to make")
    parser.add_argument("--hub", type=str | None, metavar="OWNER/NAME", help="repository to make, or to replace")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--license", type=str | None, metavar="ID", help="of the model, as the hub writes it: mit, ...")
    parser.add_argument("--buffer", action="store_true", help="with the replay buffer, from which samples are shown")
    add_policy(parser)
    return parser


def run(options: Namespace, console: Console) -> None:
    """Hand a run on, and print where it is."""
    if (options.out is None) == (options.hub is None):
        raise ConfigError("Say where to: either --out FOLDER or --hub OWNER/NAME.")
    if options.private and options.hub is None:
        raise ConfigError("--private is about a repository of the hub: leave it out with --out.")
    predictor = load_predictor(options.run, options, device="cpu")
    if options.out is not None:
        where = predictor.save(options.out, buffer=options.buffer, license=options.license)
        size = sum(file.stat().st_size for file in where.rglob("*") if file.is_file())
        console.print(f"Written to {where}: {size / 1e6:.2f} MB. Its model card: {where / 'README.md'}")
        return
    private = True if options.private else None  # else as the owner's default is
    url = predictor.push_to_hub(options.hub, private=private, buffer=options.buffer, license=options.license)
    console.print(f"Pushed to {url}. Next: jemstone predict {options.hub} IMAGE")
