"""A run directory in; its results.json, figures.json, sample grids and cached sections out."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from jemstone.data import Dataset, load_inputs
from jemstone.errors import RunError
from jemstone.evaluation.extractors import Extractor
from jemstone.evaluation.intervals import Result
from jemstone.evaluation.measure import gather, kept, measure
from jemstone.evaluation.protocol import BUDGETS, Protocol
from jemstone.evaluation.section import Chains, Subject
from jemstone.evaluation.store import Store
from jemstone.runs import Run
from jemstone.training.inputs import data_of_run
from jemstone.training.ranks import from_first, wait
from jemstone.training.trained import Trained, load_trained
from jemstone.version import __version__


def evaluate_run(
    path: str | Path,
    *,
    data: Dataset | None = None,
    network: nn.Module | None = None,
    ood: Mapping[str, str] | None = None,
    extractor: Extractor | None = None,
    protocol: Protocol = BUDGETS["standard"],
    fresh: bool = False,
    on_progress: Callable[[str], None] | None = None,
    fabric: Fabric | None = None,
) -> list[Result]:
    """Evaluate the run at `path` on its test split and write what was found into it.

    `data` and `network` are needed where the run was started with objects of your own. `ood` names further
    out-of-distribution sources (see `load_inputs`), converted to the size of the run's inputs. `extractor` replaces
    the feature extractor that the protocol names.

    Every section is kept as soon as it is finished, and read again where nothing that it depends on has changed; with
    `fresh` it is measured again. results.json holds all sections that are about this state of the run, also those that
    `protocol` does not ask for now.

    With the `fabric` of several ranks, each of which calls this, every rank measures its share of the sections, and
    rank 0 makes the tables of what all have kept.
    """
    say = on_progress or (lambda _: None)
    trained = load_trained(path, network, data=data)
    say(f"data: {trained.config.data.source}")
    data = data_of_run(trained.run, trained.config, data)
    trained = replace(trained, data=data)  # chains that start from data need not load it again
    sets = {name: load_inputs(source, data.input_shape, moments=data.moments) for name, source in (ood or {}).items()}
    subject = Subject(trained.model, data, sets, chains_of(trained), extractor)
    store = Store(trained.run.path / "evaluation", trained.run.path / "samples")
    # What the weights do not say: how chains were run, and the averages that they were run with.
    identity = {"chains": asdict(trained.config.chains), "statistics": trained.config.network.statistics}

    if fresh and (fabric is None or fabric.is_global_zero):
        for name in protocol.sections:
            store.forget(name)

    def tables() -> list[Result]:
        return _tables(trained, subject, protocol, store, identity, say)

    if fabric is None or fabric.world_size == 1:
        return tables()
    if fabric.is_global_zero:
        kept(subject, protocol, store, identity)  # forgets what is about another state of the run
    wait(fabric)
    if mine := protocol.sections[fabric.global_rank :: fabric.world_size]:
        for _ in measure(subject, protocol.only(*mine), store=store, identity=identity, say=say):
            pass
    wait(fabric)
    return from_first(tables, fabric)


def _tables(
    trained: Trained,
    subject: Subject,
    protocol: Protocol,
    store: Store,
    identity: Mapping[str, Any],
    say: Callable[[str], None],
) -> list[Result]:
    """Measure what is not kept yet, and write the tables after each section."""
    sections = kept(subject, protocol, store, identity)
    for name, stored in measure(subject, protocol, store=store, identity=identity, say=say):
        sections[name] = stored
        results, figures = gather(sections, protocol)
        figures |= {"step": trained.step, "environment": _environment(trained)}
        trained.run.write_json("figures.json", figures)
        trained.run.write_json("results.json", [result._asdict() for result in results])
    for warning in figures["warnings"]:
        say(f"warning ({warning['section']}): {warning['name']}: {warning['text']}")
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


def chains_of(trained: Trained) -> Chains | None:
    """How a run's model is sampled; None for a plain classifier, which was trained without chains."""
    if not trained.config.weights.generative:
        return None
    return Chains(
        initial=trained.initial(),
        sampler=trained.sampler,
        steps=trained.chain_steps,
        life=trained.chain_life,
        buffer=trained.buffer,
        start=trained.config.chains.start,
    )


def _environment(trained: Trained) -> dict[str, Any]:
    """Where and with what the numbers were measured."""
    device = trained.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "jemstone": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
