"""A run directory in; its results.json, figures.json and sample grids out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from jemstone.data import Dataset, grid, load_inputs, to_box
from jemstone.errors import DataError, RunError
from jemstone.evaluation.intervals import Result
from jemstone.evaluation.protocol import Protocol, evaluate
from jemstone.rng import generator
from jemstone.runs import Run
from jemstone.training.inputs import data_of_run
from jemstone.training.trained import Trained, load_trained

COLUMNS = 10
ROWS = 5
PROTOCOL = Protocol()


def evaluate_run(
    path: str | Path,
    *,
    data: Dataset | None = None,
    network: nn.Module | None = None,
    ood: Mapping[str, str] | None = None,
    protocol: Protocol = PROTOCOL,
    on_progress: Callable[[str], None] | None = None,
) -> list[Result]:
    """Evaluate the run at `path` on its test split and write what was found into it.

    `data` and `network` are needed where the run was started with objects of your own. `ood` names further
    out-of-distribution sources (see `load_inputs`), converted to the size of the run's inputs.
    """
    say = on_progress or (lambda _: None)
    trained = load_trained(path, network, data=data)
    say(f"data: {trained.config.data.source}")
    data = data_of_run(trained.run, trained.config, data)
    trained = replace(trained, data=data)  # chains that start from data need not load it again
    sets = {name: load_inputs(source, data.input_shape, moments=data.moments) for name, source in (ood or {}).items()}
    results, figures = evaluate(trained.model, data, ood=sets, protocol=protocol, on_progress=say)
    figures["step"] = trained.step
    trained.run.write_json("figures.json", figures)
    trained.run.write_json("results.json", [result._asdict() for result in results])
    say("samples")
    try:
        write_sample_grids(trained, data)
    except DataError as error:  # chains that left the numbers: the measurements stand without the pictures
        figures["notes"].append(f"No samples: {error}")
        trained.run.write_json("figures.json", figures)
    for note in figures["notes"]:
        say(f"note: {note}")
    return results


def read_results(path: str | Path) -> list[Result]:
    """The results of an evaluated run; empty where it has not been evaluated."""
    run = Run(path)
    if not (run.path / "results.json").exists():
        return []
    try:
        return [Result(**row) for row in run.read_json("results.json")]
    except TypeError as error:
        raise RunError(f"{run.path / 'results.json'} is malformed ({error}): evaluate the run again.") from error


def write_sample_grids(trained: Trained, data: Dataset) -> None:
    """Pictures for the report under samples/: training images and, for a generative run, fresh and buffer chains."""
    if len(trained.input_shape) != 3:
        return
    count = COLUMNS * ROWS
    _write_grid(trained.run, "data", to_box(data.train.inputs[:count]), "Training images, for comparison.")
    if not trained.config.weights.generative:
        return
    classes = torch.arange(count) % len(trained.class_names)
    steps = trained.chain_life
    origin = f"{trained.config.chains.start} start, {steps} steps of the training kernel"
    _write_grid(trained.run, "fresh", trained.sample(classes), f"Fresh chains on E(x): {origin}.")
    columns = min(len(trained.class_names), COLUMNS)
    by_class = trained.sample(torch.arange(columns * ROWS) % columns, by_class=True)
    caption = f"Fresh chains on E(x, y), one class per column, {columns} classes: {origin}."
    _write_grid(trained.run, "by_class", by_class, caption, columns=columns)
    caption = "Replay buffer: a random draw, not selected."
    _write_grid(trained.run, "buffer", buffer_chains(trained, count), caption)


def buffer_chains(trained: Trained, count: int, *, label: int | None = None, seed: int = 0) -> Tensor:
    """`count` random chains of the run's buffer, of those alone that the model assigns to class `label` if given."""
    chains = trained.buffer
    if chains is None:
        raise DataError(f"{trained.run.path} has no replay buffer: it is a plain classifier.")
    if label is not None:
        chains = chains[trained.logits(chains).argmax(dim=1) == label]
    return chains[torch.randperm(len(chains), generator=generator(seed, "buffer chains"))[:count]]


def _write_grid(run: Run, name: str, images: Tensor, caption: str, columns: int = COLUMNS) -> None:
    folder = run.path / "samples"
    folder.mkdir(exist_ok=True)
    grid(images.clamp(-1, 1).cpu(), columns).save(folder / f"{name}.png")
    run.write_json(f"samples/{name}.json", {"caption": caption})
