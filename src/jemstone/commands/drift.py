"""jemstone drift: has what a model is asked changed?"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from jsonargparse import ArgumentParser, Namespace
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jemstone.data import load_inputs
from jemstone.deployment.bulk_parts import read_log_density
from jemstone.deployment.drift import Drift, drift, verdicts, windows
from jemstone.deployment.predictor import Predictor
from jemstone.errors import ConfigError
from jemstone.report.plots import COLOURS, GREY, STYLE
from jemstone.runs import strict, write_atomically

LEVEL = 0.05
"""The chance that any window is called drifted where nothing has changed."""


NAME = "drift"
HELP = "has what the model is asked changed?"


def parser() -> ArgumentParser:
    """Its arguments."""
    parser = ArgumentParser(
        usage="jemstone drift RUN --current SOURCE [--reference SOURCE] [--window N]\n"
        "                      [--json FILE.json] [--figure FILE.png]",
        description="Compare the log densities of a source with those of a reference. A SOURCE is a data set as for "
        "`jemstone evaluate --ood`, or a scores.parquet of `jemstone score`, whose order is that of time. The status "
        "is 0 whatever the verdict, which --json keeps as `drift`.",
    )
    parser.add_argument("run", metavar="RUN", help="run directory, or another name of a model")
    parser.add_argument("--reference", metavar="SOURCE", help="what was (default: the run's held-out data)")
    parser.add_argument("--current", metavar="SOURCE", required=True, help="what is")
    parser.add_argument("--window", type=int | None, help="inputs compared at a time (default: all at once)")
    parser.add_argument("--json", type=Path | None, help="file to write the numbers to")
    parser.add_argument("--figure", type=Path | None, help="PNG to write")
    return parser


def run(options: Namespace, console: Console) -> None:
    """Print a table with a line for each window."""
    if options.figure is not None and options.figure.suffix.lower() != ".png":
        raise ConfigError(f"--figure is the PNG file to write, with a name that ends in .png; got {options.figure}.")
    predictor = Predictor.load(options.run)
    threshold = predictor.thresholds.density
    reference = predictor.calibration.reference
    name = f"held-out data ({predictor.calibration.source})"
    if options.reference is not None:
        reference, name = log_densities(predictor, options.reference), options.reference
    current = log_densities(predictor, options.current)
    parts = windows(current, len(current) if options.window is None else options.window)
    found = [drift(reference, part, threshold) for part in parts]
    words = verdicts(found, LEVEL)
    console.print(f"{options.current} against {len(reference)} inputs, {name}")
    console.print(_table(found, words))
    drifted = sum(word != "no drift seen" for word in words)
    console.print(
        f"Drift in {drifted} of {len(found)} windows, judged at {LEVEL:g} / {len(found)}: the chance of any "
        f"false alarm is {LEVEL:g} at most."
    )
    content = {
        "reference": {"source": name, "count": len(reference), "foreign": float((reference < threshold).mean())},
        "current": options.current,
        "threshold": threshold,
        "policy": asdict(predictor.policy),
        "level": LEVEL,
        "drift": drifted > 0,
        "windows": [{**one._asdict(), "verdict": word} for one, word in zip(found, words, strict=True)],
    }
    if options.json is not None:
        _write(options.json, (json.dumps(strict(content), indent=1) + "\n").encode(), console)
    if options.figure is not None:
        _write(options.figure, draw(reference, parts, words, threshold), console)


def log_densities(predictor: Predictor, source: str) -> Float[np.ndarray, " n"]:
    """Of the inputs of `source`, in nats: from a file of scores, or computed."""
    if source.endswith(".parquet"):
        return read_log_density(Path(source), predictor)
    inputs = load_inputs(source, predictor.trained.input_shape, moments=predictor.moments)
    return predictor.predict(inputs).log_density


def _table(found: Sequence[Drift], words: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("inputs", "median", "foreign", "KS", "p-value", "PSI", "by chance"):
        table.add_column(title, justify="right")
    table.add_column("verdict", no_wrap=True)
    first = 0
    for one, word in zip(found, words, strict=True):
        rows = f"{first}-{first + one.n - 1}"
        numbers = (f"{one.median:.2f}", f"{100 * one.foreign:.1f} %", f"{one.ks:.3f}", f"{one.p_value:.2g}")
        table.add_row(rows, *numbers, f"{one.psi:.3f}", f"{one.psi_by_chance:.3f}", word)
        first += one.n
    return table


def draw(
    reference: Float[np.ndarray, " m"],
    parts: Sequence[Float[np.ndarray, " _"]],
    words: Sequence[str],
    threshold: float,
) -> bytes:
    """A PNG: both distributions, and below them, where there are several windows, how their quantiles moved."""
    current = np.concatenate(parts)
    shown = np.concatenate([reference, current[np.isfinite(current)]])
    low, high = np.quantile(shown, (0.001, 0.999))
    style: Any = STYLE
    with mpl.rc_context(style):
        rows = 1 + (len(parts) > 1)
        figure = Figure(figsize=(7.5, 2.9 * rows), layout="constrained", dpi=130)
        axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
        bins = np.linspace(low, high, 41)
        for values, colour, label in ((reference, GREY, "reference"), (current, COLOURS[0], "current")):
            inside = np.clip(values, low, high)
            weights = np.full(len(values), 100 / len(values))
            axes[0].hist(inside, bins, weights=weights, color=colour, alpha=0.55, label=f"{label} ({len(values)})")
        if np.isfinite(threshold):
            axes[0].axvline(threshold, color=COLOURS[1], linestyle="--", label="foreign below")
        axes[0].set(xlabel="log p(x) + log Z, nats", ylabel="% of inputs")
        axes[0].legend(frameon=False)
        if len(parts) > 1:
            _quantiles(axes[1], reference, parts, words)
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
    return picture.getvalue()


def _quantiles(
    ax: Any, reference: Float[np.ndarray, " m"], parts: Sequence[Float[np.ndarray, " _"]], words: Sequence[str]
) -> None:
    low, middle, high = np.quantile(reference, (0.05, 0.5, 0.95))
    ax.axhspan(low, high, color=GREY, alpha=0.25, label="reference, 5 % to 95 %")
    ax.axhline(middle, color=GREY)
    for number, (part, word) in enumerate(zip(parts, words, strict=True), start=1):
        bottom, centre, top = np.quantile(np.nan_to_num(part, nan=-np.inf), (0.05, 0.5, 0.95), method="lower")
        colour = COLOURS[0] if word == "no drift seen" else COLOURS[1]
        ax.plot([number, number], [bottom, top], color=colour, linewidth=1.5)
        ax.plot(number, centre, "o", color=colour, markersize=4)
    for colour, label in ((COLOURS[0], "window, no drift seen"), (COLOURS[1], "window, drift")):
        ax.plot([], [], "o-", color=colour, markersize=4, linewidth=1.5, label=label)
    ax.set(xlabel="window", ylabel="log p(x) + log Z, nats")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))


def _write(path: Path, content: bytes, console: Console) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    console.print(f"Written to {path}.")
