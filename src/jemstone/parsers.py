"""What the commands take: a parser for each, and the shorthands that are spelt out before parsing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from jemstone import commands as deployed
from jemstone.evaluation.protocol import BUDGETS, SECTIONS
from jemstone.networks.release_layouts import LAYOUTS
from jemstone.training.config import TrainConfig
from jemstone.training.ranks import let_first_speak, rank
from jemstone.training.recipes import RECIPES, recipe
from jemstone.training.start_from import starting_from
from jemstone.version import __version__

# `--data SOURCE` and `--network NAME` are what one types; the settings behind them have fields of their own.
SHORTHANDS = {"--data": "--data.source", "--network": "--network.name", "--from": "--start_from"}
SETS = ("--ood", "--near")
"""Options that take any number of NAME=SOURCE."""


def make_parser(arguments: Sequence[str]) -> ArgumentParser:
    """The parser of every command. `arguments` name the recipe whose settings are the defaults of `train`."""
    parser = ArgumentParser(prog="jemstone", version=__version__, description="Classifiers as energy-based models.")
    commands = parser.add_subcommands(required=False)

    train = ArgumentParser(
        usage="jemstone train RECIPE [--data SOURCE] [--network NAME] [--run DIR] [--config FILE] [--SETTING VALUE]\n"
        "       jemstone train RECIPE --from RUN [--run DIR] [--SETTING VALUE]\n"
        "       jemstone train --resume DIR\n"
        "       torchrun --nproc-per-node N -m -- jemstone train ...",
        description="Train a recipe into a run directory, or go on with a run that was stopped. `--from RUN` starts a "
        "new run from the weights of RUN, on its data. `--data SOURCE` and "
        "`--network NAME` are short for --data.source and --network.name.",
    )
    train.add_argument("recipe", nargs="?", help="a preset; see `jemstone recipes`")
    train.add_argument("--run", type=Path | None, help="run directory to make (default: runs/RECIPE-DATA-SEED)")
    train.add_argument("--resume", type=Path | None, help="run directory to go on with")
    train.add_argument("--auto_resume", action="store_true", help="go on with --run where it is there, else start it")
    train.add_argument("--config", action="config", help="YAML file of settings")
    train.add_class_arguments(TrainConfig, skip={"recipe"})
    named = _named_recipe(arguments)
    begin = _option(arguments, "--from") or _option(arguments, "--start_from")
    if named is not None and begin is not None:
        train.set_defaults(_given(starting_from(recipe(named), begin), "recipe", "start_from"))
    elif named is not None:
        train.set_defaults(_given(recipe(named), "recipe"))
    commands.add_subcommand("train", train, help="train a recipe, or resume a run")

    evaluate = ArgumentParser(
        usage="jemstone evaluate RUN [--budget quick|standard|full] [--only SECTION ...] [--ood NAME=SOURCE ...]\n"
        "                         [--near NAME=SOURCE ...] [--extractor SPEC] [--against RUN] [--fresh] [--full]",
        description="Measure a run on its test data; writes results.json into it. Sections are kept as they are "
        f"finished, so an evaluation that was stopped goes on where it was. Sections: {', '.join(SECTIONS)}.",
    )
    evaluate.add_argument("run", metavar="RUN", type=Path, help="run directory")
    evaluate.add_argument("--protocol", choices=["v1"], default="v1", help="version of what is measured, and how")
    evaluate.add_argument(
        "--budget",
        choices=list(BUDGETS),
        default="standard",
        help="a look, a claim or a paper: how many images, steps, restarts and samples",
    )
    evaluate.add_argument("--only", nargs="*", default=[], metavar="SECTION", help="measure these sections alone")
    evaluate.add_argument(
        "--ood", nargs="*", default=[], metavar="NAME=SOURCE", help="further out-of-distribution sets"
    )
    evaluate.add_argument(
        "--near", nargs="*", default=[], metavar="NAME=SOURCE", help="the same, for sets that are close to the data"
    )
    evaluate.add_argument(
        "--extractor",
        metavar="SPEC",
        help="features that samples are compared in: pixels (default), inception=FILE, torch-fidelity",
    )
    evaluate.add_argument("--against", type=Path | None, help="another run to show beside it")
    evaluate.add_argument("--fresh", action="store_true", help="measure again what has been measured before")
    evaluate.add_argument("--full", action="store_true", help="print every result")
    commands.add_subcommand("evaluate", evaluate, help="measure a run: calibration, detection, attacks, samples")

    compare = ArgumentParser(
        usage="jemstone compare RUN [RUN ...] [--full] [--metrics PATTERN ...] [--published]\n"
        "                        [--out FILE.md|FILE.tex|FILE.json ...]",
        description="One table over evaluated runs. Differences from the first run are tested on the same examples "
        "(paired bootstrap, Holm's correction), and significant ones are marked.",
    )
    compare.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="run directories; the first is the reference"
    )
    compare.add_argument(
        "--metrics", nargs="*", default=[], metavar="PATTERN", help="results to show, as 'ood/*/auroc'"
    )
    compare.add_argument("--full", action="store_true", help="show every result")
    compare.add_argument("--published", action="store_true", help="add what papers report on the same data set")
    compare.add_argument(
        "--out", nargs="*", default=[], type=Path, metavar="FILE", help="files to write: .md, .tex or .json"
    )
    commands.add_subcommand("compare", compare, help="one table over runs, with tested differences")

    imported = ArgumentParser(
        usage="jemstone import FILE --layout jem|jem++|sada-jem --network NAME --data SOURCE --out RUN",
        description="Make a run directory of a checkpoint of a public release, to be evaluated and sampled like any.",
    )
    imported.add_argument("file", metavar="FILE", type=Path, help="what the release wrote with torch.save")
    imported.add_argument("--layout", choices=list(LAYOUTS), default="jem", help="the release that wrote it")
    imported.add_argument("--network", default="wrn-28-10", help="the network that it holds")
    imported.add_argument("--data", required=True, metavar="SOURCE", help="the data that it was trained on")
    imported.add_argument("--out", required=True, type=Path, metavar="RUN", help="run directory to make")
    commands.add_subcommand("import", imported, help="a public checkpoint becomes a run")

    sample = ArgumentParser(
        usage="jemstone sample RUN [--label N] [--count N] [--steps N] [--fast] [--buffer]\n"
        "                       [--seed N] [--out FILE.png]",
        description="Draw samples from a run's density as a picture.",
    )
    sample.add_argument("run", metavar="RUN", type=Path, help="run directory")
    sample.add_argument("--label", type=int | None, help="samples of this class, from p(x|y); default: from p(x)")
    sample.add_argument("--count", type=int, default=50, help="how many")
    sample.add_argument("--steps", type=int | None, help="kernel steps (default: a training chain's expected life)")
    sample.add_argument("--fast", action="store_true", help="in the precision and layout that prove fastest here")
    sample.add_argument("--buffer", action="store_true", help="take them from the replay buffer, not fresh")
    sample.add_argument("--seed", type=int, default=0, help="of the chains")
    sample.add_argument("--out", type=Path | None, help="PNG to write (default: in RUN/samples)")
    commands.add_subcommand("sample", sample, help="sample from a run as a grid of images")

    report = ArgumentParser(
        usage="jemstone report RUN [RUN ...] [--out FILE.html]",
        description="One self-contained HTML file about one or several runs.",
    )
    report.add_argument("runs", metavar="RUN", nargs="+", help="run directories")
    report.add_argument("--out", type=Path | None, help="file to write (default: RUN/report.html of the first run)")
    commands.add_subcommand("report", report, help="compare runs in one HTML file")

    doctor = ArgumentParser(
        usage="jemstone doctor RUN [--figure FILE.png]\n"
        "       jemstone doctor LOSSES.csv [--columns energy_real=NAME,energy_negatives=NAME] [--figure FILE.png]",
        description="Say what happened to a run, why, and what to change, with the figure that shows it. The first "
        "line is the verdict. The status is 0 whatever the verdict, and 1 where the input cannot be read.",
    )
    doctor.add_argument("run", metavar="RUN", type=Path, help="run directory, or a CSV of another project's losses")
    doctor.add_argument("--columns", default="", help="columns of a CSV: OURS=THEIRS, divided by commas")
    doctor.add_argument(
        "--figure", type=Path | None, help="PNG to write (default: RUN/doctor.png, or LOSSES-doctor.png)"
    )
    commands.add_subcommand("doctor", doctor, help="what went wrong in a run, why, and what to change")

    recipes = ArgumentParser(usage="jemstone recipes", description="The presets: what each is, and from which paper.")
    commands.add_subcommand("recipes", recipes, help="list the presets")

    show = ArgumentParser(
        usage="jemstone demo [--out DIR] [--seed N]",
        description="A plain classifier and a JEM on digits, both evaluated, one report.",
    )
    show.add_argument("--out", type=Path, default=Path("runs/demo"), help="directory to make")
    show.add_argument("--seed", type=int, default=0, help="of both runs")
    commands.add_subcommand("demo", show, help="the whole idea in three minutes on a CPU")
    for command in deployed.COMMANDS:
        commands.add_subcommand(command.NAME, command.parser(), help=command.HELP)
    return parser


def parse(arguments: Sequence[str]) -> Namespace:
    """The settings of the command that `arguments` name. Of several ranks, the first says what is wrong with them."""
    if rank() == 0:
        return make_parser(arguments).parse_args(expand(arguments))
    with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        try:
            return make_parser(arguments).parse_args(expand(arguments))
        except SystemExit as ending:
            if ending.code:
                let_first_speak()
            raise


def expand(arguments: Sequence[str]) -> list[str]:
    """Spell out train's `--data X` and `--network X`; gather every NAME=SOURCE of `--ood` and `--near` at the end."""
    shorthands = SHORTHANDS if arguments[:1] == ["train"] else {}
    expanded: list[str] = []
    sets: dict[str, list[str]] = {}
    within = ""
    for argument, following in zip(arguments, (*arguments[1:], ""), strict=False):
        name, equals, value = argument.partition("=")
        if name in SETS and arguments[:1] == ["evaluate"]:
            within = name
            alone = "=" not in following or following.startswith("-")
            # An option without a set must not pass for none.
            sets.setdefault(name, []).extend([value] if equals or alone else [])
        elif within and equals and not name.startswith("-"):
            sets[within].append(argument)
        else:
            within = ""
            expanded.append(shorthands.get(name, name) + equals + value)
    return [*expanded, *(word for name, values in sets.items() for word in (name, *values))]


def _given(config: TrainConfig, *without: str) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in without}


def _option(arguments: Sequence[str], name: str) -> str | None:
    """The value of an option, before anything is parsed."""
    for argument, following in zip_longest(arguments, arguments[1:]):
        if argument == name or argument.startswith(name + "="):
            return argument.partition("=")[2] or following
    return None


def _named_recipe(arguments: Sequence[str]) -> str | None:
    """The recipe among the arguments, whose settings are the defaults of the others; a value of an option is none."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        takes_value = before.startswith("--") and "=" not in before and before != "--print_config"
        if argument in RECIPES and not takes_value:
            return argument
    return None
