"""The command line: parse, call, print; nothing else lives here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.text import Text

from jemstone.console import plain_console, results_table, show_training, stage
from jemstone.data import grid
from jemstone.demo import demo
from jemstone.errors import ConfigError, JemstoneError
from jemstone.evaluation.evaluate_run import buffer_chains, evaluate_run
from jemstone.report import write_report
from jemstone.training.config import TrainConfig
from jemstone.training.recipes import RECIPES, recipe
from jemstone.training.session import Session
from jemstone.training.trained import load_trained
from jemstone.version import __version__

# `--data SOURCE` and `--network NAME` are what one types; the settings behind them have fields of their own.
SHORTHANDS = {"--data": "--data.source", "--network": "--network.name"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 1 after an error that was explained on standard error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    console = plain_console()
    try:
        parsed = _parser(arguments).parse_args(_expand(arguments))
        if parsed.subcommand is None:
            _parser(arguments).print_help()
            return 0
        COMMANDS[parsed.subcommand](parsed[parsed.subcommand], console)
    except JemstoneError as error:
        return _explain(str(error))
    except OSError as error:  # a path that cannot be written, a full disk: the user's to mend, and no bug of ours
        return _explain(f"{error.filename}: {error.strerror}." if error.filename else str(error))
    except KeyboardInterrupt:
        plain_console(stderr=True).print("Stopped.")
        return 130
    return 0


def _train(options: Namespace, console: Console) -> None:
    if options.resume is not None:
        if options.recipe or options.run or _config(options) != TrainConfig():
            raise ConfigError(
                "--resume goes on with the settings that the run was started with: leave out the recipe, --run and "
                "every other setting, or start a new run with them."
            )
        session = Session.resume(options.resume)
        console.print(f"Resuming {options.resume} at step {session.state.step} of {session.total_steps}.")
    else:
        if options.recipe is None:
            raise ConfigError(f"Name a recipe ({', '.join(RECIPES)}), or a run to go on with: --resume DIR.")
        recipe(options.recipe)
        config = _config(options)
        run = options.run or Path("runs") / f"{config.recipe}-{Path(config.data.source).stem}-{config.seed}"
        session = Session.start(config, run=run)
    assert session.run is not None, "a session of the command line has a run directory"
    path = session.run.path
    console.print(f"{session.config.recipe} on {session.data.name}, device {session.trainer.fabric.device}, run {path}")
    try:
        show_training(console, session.config.recipe, session.train(), session.state.step, session.total_steps)
    except KeyboardInterrupt:
        console.print(f"Stopped. Go on from the last checkpoint with: jemstone train --resume {path}")
        raise
    console.print(f"Finished. Next: jemstone evaluate {path}")


def _config(options: Namespace) -> TrainConfig:
    settings = options.as_dict()
    values = {name: settings[name] for name in TrainConfig.__dataclass_fields__}
    return TrainConfig.from_dict({**values, "recipe": options.recipe or TrainConfig.recipe})


def _evaluate(options: Namespace, console: Console) -> None:
    pairs = [_named_source(text) for text in options.ood]
    ood = dict(pairs)
    if len(ood) < len(pairs):
        raise ConfigError("--ood names two sets alike: give each a name of its own.")
    run, other = options.run, options.against
    results = {}
    name, other_name = run.resolve().name, "" if other is None else other.resolve().name
    if name == other_name:  # runs/a/jem and runs/b/jem
        name, other_name = str(run), str(other)
    if other is not None:
        results[other_name] = _evaluate_one(other, ood, console)
    results[name] = _evaluate_one(run, ood, console)
    console.print(results_table(results, full=options.full))
    both = f"{run}" if other is None else f"{run} {other}"
    console.print(f"Written to {run / 'results.json'}. Next: jemstone report {both}")


def _evaluate_one(path: Path, ood: dict[str, str], console: Console) -> Any:
    with stage(console, f"Evaluating {path}"):
        return evaluate_run(path, ood=ood, on_progress=lambda text: console.print(f"  {text}"))


def _named_source(text: str) -> tuple[str, str]:
    name, _, source = text.partition("=")
    if not name or not source:
        raise ConfigError(f"--ood takes NAME=SOURCE, for example mnist=mnist.npz; got {text!r}.")
    return name, source


def _sample(options: Namespace, console: Console) -> None:
    if options.out is not None and options.out.suffix.lower() != ".png":
        raise ConfigError(f"--out is the PNG file to write, with a name that ends in .png; got {options.out}.")
    if options.buffer and options.steps is not None:
        raise ConfigError("--buffer shows chains as training left them: leave out --steps.")
    trained = load_trained(options.run)
    classes = len(trained.class_names)
    label, count = options.label, options.count
    if label is not None and not 0 <= label < classes:
        raise ConfigError(f"--label must lie in 0 to {classes - 1}, got {label}.")
    if count < 1:
        raise ConfigError(f"--count must be at least 1, got {count}.")
    if len(trained.input_shape) != 3:
        raise ConfigError(f"{options.run} models vectors, and a grid shows images: use load_trained(...).sample().")
    if options.buffer:
        images = buffer_chains(trained, count, label=label, seed=options.seed)
        if len(images) == 0:
            raise ConfigError(f"No chain of the buffer is assigned to class {label}. Leave out --buffer.")
    else:
        labels = torch.arange(count) % classes if label is None else torch.full((count,), label)
        by_class = label is not None
        images = trained.sample(labels, by_class=by_class, steps=options.steps, seed=options.seed)
    name = ("buffer" if options.buffer else "grid") + ("" if label is None else f"-{label}")
    out = options.out or trained.run.path / "samples" / f"{name}.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    grid(images.clamp(-1, 1), columns=min(10, len(images))).save(out)
    console.print(f"{len(images)} samples in {out}")


def _report(options: Namespace, console: Console) -> None:
    out = options.out or Path(options.runs[0]) / "report.html"
    console.print(f"Report: {write_report([Path(path) for path in options.runs], out)}")


def _recipes(options: Namespace, console: Console) -> None:
    for name, (config, summary, source) in RECIPES.items():
        chains, optimizer = config.chains, config.optimizer
        moves = (
            f"{chains.steps} {chains.kernel} steps from {chains.start} starts" if config.weights.generative else "none"
        )
        descent = f"{optimizer.name} {optimizer.learning_rate:g}" + (" with ASAM" if optimizer.sam_adaptive else "")
        console.print(Text.assemble((name, "bold"), f"  ({source})\n  {summary}"))
        details = (
            f"  {config.network.name}, norm {config.network.norm}; chains: {moves}; {descent}; {config.epochs:g} epochs"
        )
        console.print(details, style="dim")
    console.print("\nEvery setting of a recipe: jemstone train RECIPE --print_config")


def _demo(options: Namespace, console: Console) -> None:
    report = demo(options.out, seed=options.seed, console=console)
    console.print(f"Report: {report}")


COMMANDS: dict[str, Callable[[Namespace, Console], None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "sample": _sample,
    "report": _report,
    "recipes": _recipes,
    "demo": _demo,
}


def _parser(arguments: Sequence[str]) -> ArgumentParser:
    parser = ArgumentParser(prog="jemstone", version=__version__, description="Classifiers as energy-based models.")
    commands = parser.add_subcommands(required=False)

    train = ArgumentParser(
        usage="jemstone train RECIPE [--data SOURCE] [--network NAME] [--run DIR] [--config FILE] [--SETTING VALUE]\n"
        "       jemstone train --resume DIR",
        description="Train a recipe into a run directory, or go on with a run that was stopped. `--data SOURCE` and "
        "`--network NAME` are short for --data.source and --network.name.",
    )
    train.add_argument("recipe", nargs="?", help="a preset; see `jemstone recipes`")
    train.add_argument("--run", type=Path | None, help="run directory to make (default: runs/RECIPE-DATA-SEED)")
    train.add_argument("--resume", type=Path | None, help="run directory to go on with")
    train.add_argument("--config", action="config", help="YAML file of settings")
    train.add_class_arguments(TrainConfig, skip={"recipe"})
    named = _named_recipe(arguments)
    if named is not None:
        train.set_defaults({key: value for key, value in recipe(named).to_dict().items() if key != "recipe"})
    commands.add_subcommand("train", train, help="train a recipe, or resume a run")

    evaluate = ArgumentParser(
        usage="jemstone evaluate RUN [--ood NAME=SOURCE ...] [--against RUN] [--full]",
        description="Measure a run on its test data; writes results.json into it.",
    )
    evaluate.add_argument("run", metavar="RUN", type=Path, help="run directory")
    evaluate.add_argument(
        "--ood", nargs="*", default=[], metavar="NAME=SOURCE", help="further out-of-distribution sets"
    )
    evaluate.add_argument("--against", type=Path | None, help="another run to show beside it")
    evaluate.add_argument("--full", action="store_true", help="print AUPR and FPR95 too")
    commands.add_subcommand("evaluate", evaluate, help="accuracy, calibration, out-of-distribution, robustness")

    sample = ArgumentParser(
        usage="jemstone sample RUN [--label N] [--count N] [--steps N] [--buffer] [--seed N] [--out FILE.png]",
        description="Draw samples from a run's density as a picture.",
    )
    sample.add_argument("run", metavar="RUN", type=Path, help="run directory")
    sample.add_argument("--label", type=int | None, help="samples of this class, from p(x|y); default: from p(x)")
    sample.add_argument("--count", type=int, default=50, help="how many")
    sample.add_argument("--steps", type=int | None, help="kernel steps (default: a training chain's expected life)")
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

    recipes = ArgumentParser(usage="jemstone recipes", description="The presets: what each is, and from which paper.")
    commands.add_subcommand("recipes", recipes, help="list the presets")

    show = ArgumentParser(
        usage="jemstone demo [--out DIR] [--seed N]",
        description="A plain classifier and a JEM on digits, both evaluated, one report.",
    )
    show.add_argument("--out", type=Path, default=Path("runs/demo"), help="directory to make")
    show.add_argument("--seed", type=int, default=0, help="of both runs")
    commands.add_subcommand("demo", show, help="the whole idea in three minutes on a CPU")
    return parser


def _expand(arguments: Sequence[str]) -> list[str]:
    """Spell out `--data X` and `--network X`, and gather every NAME=SOURCE of `--ood` at the end, wherever it stood."""
    expanded: list[str] = []
    sets: list[str] = []
    within_ood = False
    for argument, following in zip(arguments, (*arguments[1:], ""), strict=False):
        name, equals, value = argument.partition("=")
        if name == "--ood":
            within_ood = True
            alone = "=" not in following or following.startswith("-")
            sets += [value] if equals or alone else []  # an --ood without a set must not pass for none
        elif within_ood and equals and not name.startswith("-"):
            sets.append(argument)
        else:
            within_ood = False
            expanded.append(SHORTHANDS.get(name, name) + equals + value)
    return [*expanded, "--ood", *sets] if sets else expanded


def _named_recipe(arguments: Sequence[str]) -> str | None:
    """The recipe among the arguments, whose settings are the defaults of the others; a value of an option is none."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        takes_value = before.startswith("--") and "=" not in before and before != "--print_config"
        if argument in RECIPES and not takes_value:
            return argument
    return None


def _explain(text: str) -> int:
    plain_console(stderr=True).print(Text.assemble(("error:", "bold red"), f" {text}"))
    return 1
