"""The command line: parse, call, print; nothing else lives here."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jsonargparse import Namespace
from lightning_fabric import Fabric
from rich.console import Console
from rich.text import Text

from jemstone import commands
from jemstone.console import explain, plain_console, results_table, show_diagnosis, show_training, show_warning, stage
from jemstone.data import grid
from jemstone.demo import demo
from jemstone.doctor import draw, open_case
from jemstone.errors import ConfigError, Diverged, JemstoneError, RunError
from jemstone.evaluation.compare import HEADLINE, compare_runs
from jemstone.evaluation.evaluate_run import evaluate_run
from jemstone.evaluation.protocol import BUDGETS
from jemstone.evaluation.published import METRICS, add_published
from jemstone.evaluation.table_text import as_json, as_latex, as_markdown
from jemstone.parsers import make_parser, parse
from jemstone.report import write_report
from jemstone.runs import write_atomically
from jemstone.training.config import TrainConfig
from jemstone.training.imported import import_checkpoint
from jemstone.training.ranks import rank, restarts, world_size
from jemstone.training.recipes import RECIPES, recipe
from jemstone.training.requeue import start_or_resume
from jemstone.training.session import Session
from jemstone.training.setup import join_ranks
from jemstone.training.trained import load_trained

RANKED = ("train", "evaluate", "sample")
"""Commands that several ranks share; every other one is for a process by itself."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 1 after an error that was explained on standard error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    console = plain_console()
    console.quiet = rank() > 0
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        return _run(arguments, console)


def _run(arguments: list[str], console: Console) -> int:
    try:
        parsed = parse(arguments)
        if parsed.subcommand is None:
            make_parser(arguments).print_help()
            return 0
        if world_size() > 1 and parsed.subcommand not in RANKED:
            raise ConfigError(f"`jemstone {parsed.subcommand}` is one process: start it without torchrun.")
        COMMANDS[parsed.subcommand](parsed[parsed.subcommand], console)
    except JemstoneError as error:
        return explain(str(error))
    except OSError as error:  # a path that cannot be written, a full disk: the user's to mend, and no bug of ours
        return explain(f"{error.filename}: {error.strerror}." if error.filename else str(error))
    except KeyboardInterrupt:
        if rank() == 0:
            plain_console(stderr=True).print("Stopped.")
        return 130
    return 0


def _ranks() -> Fabric | None:
    """All ranks, where torchrun started several."""
    return join_ranks(TrainConfig()) if world_size() > 1 else None


def _train(options: Namespace, console: Console) -> None:
    if options.resume is not None:
        if options.recipe or options.run or options.auto_resume or _config(options) != TrainConfig():
            raise ConfigError(
                "--resume goes on with the settings that the run was started with: leave out the recipe, --run and "
                "every other setting, or start a new run with them."
            )
        session = Session.resume(options.resume)
    else:
        if options.recipe is None:
            raise ConfigError(f"Name a recipe ({', '.join(RECIPES)}), or a run to go on with: --resume DIR.")
        recipe(options.recipe)
        config = _config(options)
        run = options.run or Path("runs") / f"{config.recipe}-{Path(config.data.source).stem}-{config.seed}"
        again = options.auto_resume or restarts() > 0
        session = start_or_resume(config, run) if again else Session.start(config, run=run)
    assert session.run is not None, "a session of the command line has a run directory"
    path = session.run.path
    if session.resumed:
        console.print(f"Resuming {path} at step {session.state.step} of {session.total_steps}.")
    fabric = session.trainer.fabric
    where = f"device {fabric.device}" + (f", {fabric.world_size} ranks" if fabric.world_size > 1 else "")
    console.print(f"{session.config.recipe} on {session.data.name}, {where}, run {path}")
    console.print(f"Computed in {session.trainer.execution}{_because(session)}.")
    try:
        show_training(console, session.config.recipe, session)
    except Diverged:
        console.print(f"What happened, why, and what to change: jemstone doctor {path}")
        raise
    except KeyboardInterrupt:
        console.print(f"Stopped. Go on from the last checkpoint with: jemstone train --resume {path}")
        raise
    if failures := len(session.state.treatment.failures):
        times = "once" if failures == 1 else f"{failures} times"
        console.print(f"Recovered {times} on the way; why, and what to change: jemstone doctor {path}")
    console.print(f"Finished. Next: jemstone evaluate {path}")


def _because(session: Session) -> str:
    """Why a run is computed as it is; resumed, it is as it was."""
    if session.run is None or session.state.step or rank():
        return ""
    return "".join(f": {row['reason']}" for row in session.run.rows("events.jsonl")[:1] if "reason" in row)


def _config(options: Namespace) -> TrainConfig:
    settings = options.as_dict()
    values = {name: settings[name] for name in TrainConfig.__dataclass_fields__}
    return TrainConfig.from_dict({**values, "recipe": options.recipe or TrainConfig.recipe})


def _evaluate(options: Namespace, console: Console) -> None:
    pairs = [_named_source(text) for text in (*options.ood, *options.near)]
    ood = dict(pairs)
    if len(ood) < len(pairs):
        raise ConfigError("--ood and --near name two sets alike: give each a name of its own.")
    protocol = BUDGETS[options.budget]
    if options.only:
        protocol = protocol.only(*options.only)
    near = tuple(_named_source(text)[0] for text in options.near)
    protocol = replace(protocol, ood=replace(protocol.ood, near=(*protocol.ood.near, *near)))
    if options.extractor is not None:
        protocol = replace(protocol, generation=replace(protocol.generation, extractor=options.extractor))
    run, other, fabric = options.run, options.against, _ranks()
    results = {}
    for path in [run] if other is None else [other, run]:
        with stage(console, f"Evaluating {path}"):
            results[_name(path, run, other)] = evaluate_run(
                path,
                ood=ood,
                protocol=protocol,
                fresh=options.fresh,
                fabric=fabric,
                on_progress=lambda text: console.print(f"  {text}"),
            )
    console.print(results_table(results, full=options.full))
    both = f"{run}" if other is None else f"{run} {other}"
    hint = "" if options.full else " All results: --full."
    console.print(f"Written to {run / 'results.json'}.{hint} Next: jemstone report {both}")


def _name(path: Path, run: Path, other: Path | None) -> str:
    """The folder's name, or the whole path where both are called alike, as runs/a/jem and runs/b/jem."""
    alike = other is not None and run.resolve().name == other.resolve().name
    return str(path) if alike else path.resolve().name


def _named_source(text: str) -> tuple[str, str]:
    name, _, source = text.partition("=")
    if not name or not source:
        raise ConfigError(f"--ood and --near take NAME=SOURCE, for example mnist=mnist.npz; got {text!r}.")
    return name, source


def _compare(options: Namespace, console: Console) -> None:
    writers = {".md": as_markdown, ".tex": as_latex, ".json": as_json}
    unknown = [str(out) for out in options.out if out.suffix not in writers]
    if unknown:
        raise ConfigError(f"--out takes files that end in {', '.join(writers)}; got {', '.join(unknown)}.")
    metrics = options.metrics or [*HEADLINE, *(METRICS if options.published else ())]
    table = compare_runs(options.runs, metrics=["*"] if options.full else metrics)
    if options.published:
        table = add_published(table)
    console.print(as_markdown(table))
    for out in options.out:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, writers[out.suffix](table).encode())
        console.print(f"Written to {out}.")


def _import(options: Namespace, console: Console) -> None:
    run = import_checkpoint(options.file, options.layout, options.network, options.data, options.out)
    console.print(f"Imported {options.file} into {run.path}. Next: jemstone evaluate {run.path}")


def _sample(options: Namespace, console: Console) -> None:
    if options.out is not None and options.out.suffix.lower() != ".png":
        raise ConfigError(f"--out is the PNG file to write, with a name that ends in .png; got {options.out}.")
    if options.buffer and (options.steps is not None or options.fast):
        raise ConfigError("--buffer shows chains as training left them: leave out --steps and --fast.")
    if options.fast and world_size() > 1:
        raise ConfigError(
            "--fast is measured, and each rank would find its own: leave it out, or sample on one device."
        )
    trained = load_trained(options.run, execution="fast" if options.fast else "plain")
    classes = len(trained.class_names)
    label, count = options.label, options.count
    if label is not None and not 0 <= label < classes:
        raise ConfigError(f"--label must lie in 0 to {classes - 1}, got {label}.")
    if count < 1:
        raise ConfigError(f"--count must be at least 1, got {count}.")
    if len(trained.input_shape) != 3:
        raise ConfigError(f"{options.run} models vectors, and a grid shows images: use load_trained(...).sample().")
    if options.buffer:
        images = trained.buffer_chains(count, label=label, seed=options.seed)
        if len(images) == 0:
            raise ConfigError(f"No chain of the buffer is assigned to class {label}. Leave out --buffer.")
    else:
        labels = torch.arange(count) % classes if label is None else torch.full((count,), label)
        by_class = label is not None
        if options.fast:
            console.print(f"Computed in {trained.execution}: {trained.reason}.")
        images = trained.sample(labels, by_class=by_class, steps=options.steps, seed=options.seed, fabric=_ranks())
    name = ("buffer" if options.buffer else "grid") + ("" if label is None else f"-{label}")
    out = options.out or trained.run.path / "samples" / f"{name}.png"
    if rank():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    grid(images.clamp(-1, 1), columns=min(10, len(images))).save(out)
    console.print(f"{len(images)} samples in {out}")


def _report(options: Namespace, console: Console) -> None:
    out = options.out or Path(options.runs[0]) / "report.html"
    console.print(f"Report: {write_report([Path(path) for path in options.runs], out)}")


def _doctor(options: Namespace, console: Console) -> None:
    if options.figure is not None and options.figure.suffix.lower() != ".png":
        raise ConfigError(f"--figure is the PNG file to write, with a name that ends in .png; got {options.figure}.")
    case = open_case(options.run, dict(_column(text) for text in options.columns.split(",") if text.strip()))
    diagnosis = case.diagnosis()
    show_diagnosis(console, case, diagnosis)
    picture = draw(case.rows, case.events, diagnosis)
    if picture is None:
        console.print("\nNo figure: nothing that could be drawn is logged.")
        return
    out = options.figure or case.figure
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, picture)
    except (OSError, RunError) as error:
        if options.figure is not None:
            raise
        console.print(f"\nNo figure: {error} Choose another place with --figure FILE.png.")  # a run that is read-only
        return
    console.print(f"\nFigure: {out}")


def _column(text: str) -> tuple[str, str]:
    ours, _, theirs = text.partition("=")
    if not ours.strip() or not theirs.strip():
        raise ConfigError(f"--columns takes OURS=THEIRS,..., for example energy_real=e_pos,step=iter; got {text!r}.")
    return ours.strip(), theirs.strip()


def _recipes(options: Namespace, console: Console) -> None:
    for name, (config, summary, source) in RECIPES.items():
        chains, optimizer = config.chains, config.optimizer
        steps = f"{chains.steps} to {chains.max_steps}" if chains.max_steps else str(chains.steps)
        moves = f"{steps} {chains.kernel} steps from {chains.start} starts" if config.weights.generative else "none"
        moves += f" after {config.classifier_steps} steps as a classifier" if config.classifier_steps else ""
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
    "compare": _compare,
    "import": _import,
    "sample": _sample,
    "report": _report,
    "doctor": _doctor,
    "recipes": _recipes,
    "demo": _demo,
    **{command.NAME: command.run for command in commands.COMMANDS},
}
