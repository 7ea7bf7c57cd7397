"""The parts of the page about how runs came about and how they were measured: training, settings, protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jemstone.report import plots
from jemstone.report.history import happenings
from jemstone.report.parts import (
    Block,
    Configs,
    Figures,
    Happened,
    Hint,
    Panel,
    Part,
    Settings,
    coloured,
    evaluate_command,
)
from jemstone.report.parts import panel as drawn
from jemstone.report.read import RunRecord
from jemstone.report.tables import settings_table
from jemstone.report.values import mapping

GENERAL = "All sections"


def training(runs: Sequence[RunRecord], names: Sequence[str]) -> Part:
    """The curves of training, and what happened on the way."""
    blocks: list[Block] = []
    if panels := _curves(runs):
        how = (
            "✕ marks a divergence and ◁ a step that recovery went back to, steps that were rolled back are not shown, "
            "and of an energy only differences have a meaning."
        )
        blocks.append(Figures(panels, how, key=range(len(runs)), columns="grid"))
    if happened := happenings(runs):
        blocks.append(Happened(happened))
    found = [
        Hint(f"{name} has no training on record: its metrics.jsonl is missing or empty. `jemstone train` writes it.")
        for run, name in zip(runs, names, strict=True)
        if not run.metrics and not run.imported
    ]
    found += [
        Hint(f"{name} has no training on record: {imported_in_words(run)}.")
        for run, name in zip(runs, names, strict=True)
        if run.imported
    ]
    return Part("training", "Training", "Training", blocks, "", found)


def imported_in_words(run: RunRecord) -> str:
    """Where the weights of an imported run come from."""
    origin = run.imported
    chains, digest = origin.get("chains"), str(origin.get("sha256") or "")
    words = (
        f"it was imported from {origin.get('file', 'a file without a name')}, layout {origin.get('layout', 'unknown')}"
    )
    words += f", with {chains:,} chains" if isinstance(chains, int) and chains else ", without chains"
    return words + (f" (SHA-256 {digest[:12]}…)" if digest else "")


def settings(runs: Sequence[RunRecord], names: Sequence[str]) -> Part:
    """What differs between the runs, their whole configurations, data and environment."""
    blocks: list[Block] = []
    if len(runs) > 1:
        differing = settings_table([run.config for run in runs], differing=True)
        text = "" if differing else "Nothing: the configurations are equal."
        blocks.append(Settings({"": differing} if differing else {}, "What differs between the runs", text))
    configs = [json.dumps(run.config, indent=2, ensure_ascii=False) for run in runs]
    blocks.append(Configs([(f"Full configuration of {n}", c) for n, c in zip(names, configs, strict=True)]))
    blocks.append(Settings({"": settings_table([_without_names(run.data) for run in runs])}, "Data"))
    blocks.append(Settings({"": settings_table([run.environment for run in runs])}, "Environment of training"))
    return Part("settings", "Settings", "Settings", blocks)


def protocol(runs: Sequence[RunRecord], names: Sequence[str]) -> Part:
    """The settings of each section, what it cost, where it was measured, and what was left out."""
    if not any(run.evaluation.measured or run.evaluation.protocol for run in runs):
        return Part("protocol", "Protocol and hardware", "Protocol", [])
    plain = [{k: v for k, v in r.evaluation.protocol.items() if not isinstance(v, dict)} for r in runs]
    groups = {GENERAL: settings_table(plain)}
    sections = dict.fromkeys(k for r in runs for k, v in r.evaluation.protocol.items() if isinstance(v, dict))
    sections |= dict.fromkeys(name for run in runs for name in run.evaluation.measured)
    for section in sections:
        cost = tuple(_seconds(run.evaluation.seconds.get(section)) for run in runs)
        rows = [("time taken", cost)] if any(cost) else []
        rows += settings_table([mapping(run.evaluation.protocol.get(section)) for run in runs])
        groups[section] = rows
    text = "How the numbers above were measured; where a setting differs between runs, so do the images drawn."
    blocks: list[Block] = [Settings({k: v for k, v in groups.items() if v}, "", text)]
    blocks.append(
        Settings({"": settings_table([r.evaluation.environment for r in runs])}, "Hardware of the evaluation")
    )
    notes = [(names[i], note) for i, _, run in coloured(runs) for note in run.evaluation.notes]
    found = [
        Hint(f"{name} has no evaluation on record. To evaluate:", evaluate_command(run))
        for run, name in zip(runs, names, strict=True)
        if not run.evaluation.measured
    ]
    return Part(
        "protocol", "Protocol and hardware", "Protocol", blocks, "", [*(Hint(f"{n}: {t}") for n, t in notes), *found]
    )


def _curves(runs: Sequence[RunRecord]) -> list[Panel]:
    marks = [(colour, step) for _, colour, run in coloured(runs) for step in run.event_steps("diverged")]
    back = [(colour, step) for _, colour, run in coloured(runs) for step in run.event_steps("recovered")]
    panels: list[Panel] = []

    def panel(heading: str, *keys: str, how: str, validation: bool = False, **style: bool) -> None:
        series: list[plots.Series] = []
        for _, colour, run in coloured(runs):
            curve: Callable[[str], tuple[list[float], list[float]]] = run.validation if validation else run.curve
            for dashed, key in enumerate(keys):
                x, y = curve(key)
                if x:
                    series.append((colour, x, y, bool(dashed)))
        if series:
            picture = plots.training_curves(series, marks, recoveries=back, **style)
            panels.append(drawn(heading, picture, f"{heading} over the training step, one colour per run.", how=how))

    panel("Class negative log-likelihood, nats", "class_nll", log=True, how="it falls as in any classifier.")
    panel(
        "Validation accuracy", "accuracy", percent=True, validation=True,
        how="a line that has become flat has little left to gain.",
    )  # fmt: skip
    panel(
        "Energy of data (solid) and negatives (dotted), nats", "energy_real", "energy_negatives",
        how="the two should stay close to each other, wherever they wander together.",
    )  # fmt: skip
    panel(
        "Energy gap, data minus negatives, nats", "energy_gap",
        how="near 0 chains reach samples as probable as the data; growth without end is how a divergence begins.",
    )  # fmt: skip
    panel(
        "Share of negatives above data in energy", "energy_auc", percent=True,
        how="near 50 % energies do not tell them apart; at 100 % negatives are too easy, at 0 % chains overshoot.",
    )  # fmt: skip
    panel(
        "Pull of the generative terms over that of the class term", "grad_ratio", log=True,
        how="norms of their parameter gradients: far above 1 the classes are outvoted, far below 1 the density is.",
    )  # fmt: skip
    panel(
        "Gradient norm seen by the chains", "chain_grad_norm", log=True,
        how="growth without end means an energy that becomes ever steeper.",
    )  # fmt: skip
    panel(
        "Chain pixels at the edge of the box (solid), gradients clipped (dotted)", "saturated", "clipped", percent=True,
        how="near 100 % either limit decides where chains go, and not the energy.",
    )  # fmt: skip
    return panels


def _without_names(data: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the data in one readable line per key: long lists of class names are cut."""
    described = dict(data)
    names = described.get("class_names")
    if isinstance(names, list) and len(names) > 12:
        described["class_names"] = [*names[:12], f"and {len(names) - 12} more"]
    return described


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"
