"""Runs in, one self-contained HTML file out: numbers with intervals, figures, samples, settings.

The page needs no network, no script and no other file. Everything on it is read from the runs; nothing is measured
here, and no word of praise is written here.
"""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from jemstone.errors import RunError
from jemstone.report import plots, tables
from jemstone.report.history import happenings
from jemstone.report.read import RunRecord, SampleImage, read_run
from jemstone.report.summary import in_short, labels, notices, title
from jemstone.runs import write_atomically

_LARGEST_PNG = 300_000
_WIDEST = 1000


class Panel(NamedTuple):
    """One picture: `uri` holds it as data (empty: damaged file), `alt` describes it, `run` owns it (None: all runs)."""

    heading: str
    uri: str
    alt: str
    run: int | None = None
    caption: str = ""
    width: int = 0


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write one HTML file that compares the run directories `runs`, and return its path.

    The file appears whole or not at all. Raises RunError where a directory is no run, or where none is given.
    """
    if not runs:
        raise RunError("There is nothing to report on: give at least one run directory, as in `jemstone report RUN`.")
    records = [read_run(Path(path)) for path in runs]
    page = render(records)
    if out.is_dir():
        raise RunError(f"The report is one file, and {out} is a folder: name a file, such as {out / 'report.html'}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page.encode())
    return out


def render(runs: Sequence[RunRecord]) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = labels(runs)
    score_names = list(dict.fromkeys(score for run in runs for score in run.scores))
    return environment.get_template("page.html.j2").render(
        title=title(runs, names),
        in_short=in_short(runs, names),
        notices=notices(runs, names),
        runs=[_card(index, run, name) for index, (run, name) in enumerate(zip(runs, names, strict=True))],
        groups=tables.comparison(runs),
        matrices=[m for key in ("auroc", "aupr", "fpr95") if (m := tables.ood_matrix(runs, key)) is not None],
        metric_names={"auroc": "AUROC", "aupr": "AUPR", "fpr95": "FPR at 95 % TPR"},
        score_names=tables.SCORE_NAMES,
        score_meanings=tables.SCORE_MEANINGS,
        reliability=_reliability(runs, names),
        ridges=[(score, _ridges(runs, names, score)) for score in score_names],
        robustness=_robustness(runs),
        training=_training(runs),
        happenings=happenings(runs),
        samples=_samples(runs, names),
        differing=tables.settings_table([run.config for run in runs], differing=True),
        configs=[json.dumps(run.config, indent=2, ensure_ascii=False) for run in runs],
        data=tables.settings_table([_without_names(run.data) for run in runs]),
        environment=tables.settings_table([run.environment for run in runs]),
        protocol=tables.settings_table([run.protocol for run in runs]),
        protocol_notes=[(names[i], note) for i, run in enumerate(runs) for note in run.notes],
    )


def _card(index: int, run: RunRecord, name: str) -> dict[str, Any]:
    """Who a run is, and the commands that would fill its gaps."""
    last = run.metrics[-1] if run.metrics else {}
    facts = [str(run.config[key]) for key in ("recipe",) if key in run.config]
    facts += [f"seed {run.config['seed']}"] if "seed" in run.config else []
    facts += [f"{int(last['step']):,} steps"] if last else ["no training on record"]
    facts += [f"{last['epoch']:.3g} epochs"] if last.get("epoch", 0) > 0 else []
    path = shlex.quote(str(run.path))
    return {
        "name": name,
        "colour": plots.run_colour(index),
        "facts": facts,
        "path": str(run.path),
        "evaluated": bool(run.results),
        "figures": bool(run.reliability or run.scores or run.robustness),
        "sampled": bool(run.samples),
        "trained": bool(run.metrics),
        "reliability": run.reliability is not None,
        "scores": bool(run.scores),
        "robustness": bool(run.robustness),
        "evaluate": f"jemstone evaluate {path}",
        "sample": f"jemstone sample {path}",
        "doctor": f"jemstone doctor {path}",
    }


def _without_names(data: Any) -> dict[str, Any]:
    """The description of the data in one readable line per key: long lists of class names are cut."""
    described = dict(data)
    names = described.get("class_names")
    if isinstance(names, list) and len(names) > 12:
        described["class_names"] = [*names[:12], f"and {len(names) - 12} more"]
    return described


def _svg(drawing: str) -> str:
    # A data URI, not inline SVG: ids inside one picture cannot meet those of another.
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.encode()).decode("ascii")


def _reliability(runs: Sequence[RunRecord], names: Sequence[str]) -> list[Panel]:
    return [
        Panel(
            names[i],
            _svg(plots.reliability_diagram(run.reliability, plots.run_colour(i))),
            f"Reliability diagram of {names[i]}: accuracy against stated confidence, with counts beneath.",
            run=i,
        )
        for i, run in enumerate(runs)
        if run.reliability is not None
    ]


def _ridges(runs: Sequence[RunRecord], names: Sequence[str], score: str) -> list[Panel]:
    panels = []
    for i, run in enumerate(runs):
        histogram = run.scores.get(score)
        if histogram is not None and histogram.ood:
            shown = tables.SCORE_NAMES.get(score, score)
            picture = plots.score_ridges(histogram, plots.run_colour(i), tables.set_aurocs(run, score))
            alt = f"Histograms of {shown} for {names[i]}: test set against {', '.join(histogram.ood)}."
            panels.append(Panel(names[i], _svg(picture), alt, run=i))
    return panels


def _robustness(runs: Sequence[RunRecord]) -> list[Panel]:
    classes = [run.data.get("num_classes") for run in runs]
    chance = 1 / classes[0] if isinstance(classes[0], int) and classes[0] > 0 and len(set(classes)) == 1 else None
    panels = []
    for norm in dict.fromkeys(norm for run in runs for norm in run.robustness):
        shown = {"linf": "L∞", "l2": "L2"}.get(norm, norm)
        curves = [(i, run.robustness[norm]) for i, run in enumerate(runs) if norm in run.robustness]
        alt = f"Accuracy under {shown} attack against its radius, one line per run."
        panels.append(Panel(f"{shown} attack", _svg(plots.robustness_curves(curves, chance)), alt))
    return panels


def _training(runs: Sequence[RunRecord]) -> list[Panel]:
    marks = [(plots.run_colour(i), step) for i, run in enumerate(runs) for step in run.event_steps("diverged")]
    back = [(plots.run_colour(i), step) for i, run in enumerate(runs) for step in run.event_steps("recovered")]

    def panel(heading: str, *keys: str, caption: str = "", validation: bool = False, **style: bool) -> None:
        series: list[plots.Series] = []
        for i, run in enumerate(runs):
            curve: Callable[[str], tuple[list[float], list[float]]] = run.validation if validation else run.curve
            for dashed, key in enumerate(keys):
                x, y = curve(key)
                if x:
                    series.append((plots.run_colour(i), x, y, bool(dashed)))
        if series:
            picture = plots.training_curves(series, marks, recoveries=back, **style)
            alt = f"{heading} over the training step, one colour per run."
            panels.append(Panel(heading, _svg(picture), alt, caption=caption))

    panels: list[Panel] = []
    panel("Class negative log-likelihood, nats", "class_nll", log=True)
    panel("Validation accuracy", "accuracy", percent=True, validation=True)
    panel("Energy of data (solid) and negatives (dotted), nats", "energy_real", "energy_negatives")
    panel("Energy gap, data minus negatives, nats", "energy_gap")
    panel(
        "Share of negatives above data in energy",
        "energy_auc",
        percent=True,
        caption="Near 50 % energies do not tell them apart; at 100 % negatives are too easy, at 0 % chains overshoot.",
    )
    panel(
        "Pull of the generative terms over that of the class term",
        "grad_ratio",
        log=True,
        caption="Norms of their parameter gradients: far above 1 the classes are outvoted, far below 1 the density is.",
    )
    panel("Gradient norm seen by the chains", "chain_grad_norm", log=True)
    panel(
        "Chain pixels at the edge of the box (solid), gradients clipped (dotted)", "saturated", "clipped", percent=True
    )
    return panels


def _samples(runs: Sequence[RunRecord], names: Sequence[str]) -> list[tuple[str, list[Panel]]]:
    """The sample pictures, grouped by name over the runs."""
    groups: dict[str, list[Panel]] = {}
    for i, run in enumerate(runs):
        for sample in run.samples:
            uri, width = _picture(sample)
            alt = f"Images from {names[i]}: {sample.name}. {sample.caption}".strip()
            groups.setdefault(sample.name, []).append(Panel(sample.name, uri, alt, i, sample.caption, width))
    return list(groups.items())


def _picture(sample: SampleImage) -> tuple[str, int]:
    """The picture as a data URI and its width; large ones are shrunk. Both empty where the file is no picture."""
    try:
        content = sample.path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            width, kind = image.width, "png"
            if len(content) > _LARGEST_PNG:
                small, buffer = image.convert("RGB"), io.BytesIO()
                small.thumbnail((_WIDEST, 4 * _WIDEST))
                small.save(buffer, "JPEG", quality=86)
                content, width, kind = buffer.getvalue(), small.width, "jpeg"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "", 0
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}", width
