"""The figure of a diagnosis: what was logged against the step, failures shaded, recoveries marked."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jemstone.doctor.diagnosis import Diagnosis
from jemstone.report.plots import COLOURS, GREY, INK, PERCENT, STYLE

Rows = Sequence[Mapping[str, float]]

PANELS = (
    ("energy, nats", {"energy_real": "data", "energy_negatives": "negatives"}),
    ("energy gap, nats", {"energy_gap": "data minus negatives", "conditional_gap": "of E(x, y)"}),
    ("loss", {"loss": "loss"}),
    ("negatives above data", {"energy_auc": "energy_auc (0.5: not told apart, 1: too easy)"}),
    ("accuracy", {"train_accuracy": "training batches", "validation_accuracy": "validation"}),
)
MOST_NAMES = 6
_FAILED, _BACK = "#C62828", "#2E7D32"


def draw(rows: Rows, events: Sequence[Mapping[str, Any]], diagnosis: Diagnosis) -> bytes | None:
    """A PNG of the panels that there are numbers for; None where there are none.

    Steps that were rolled back are drawn from the evidence of their event, thin and dotted.
    """
    lost = [(event, _rows_of(event)) for event in events if event.get("event") in ("recovered", "diverged")]
    everything = [*rows, *(row for _, evidence in lost for row in evidence)]
    there = {name for row in everything for name in row if math.isfinite(row[name])}
    panels = [(title, lines) for title, lines in PANELS if set(lines) & there and not (title == "loss" and _gap(there))]
    if not panels:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 0.9 + 1.75 * len(panels)), layout="constrained", dpi=130)
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for ax, (title, lines) in zip(axes, panels, strict=True):
            for colour, (name, label) in zip((COLOURS[0], COLOURS[1]), lines.items(), strict=False):
                _line(ax, rows, name, colour=colour, label=label if name in there else "")
                for _, evidence in lost:
                    _line(ax, evidence, name, colour=colour, alone=True)
            _mark(ax, events, diagnosis)
            if ax is axes[0]:
                _name(ax, diagnosis)
            _scale(ax, [row[name] for row in everything for name in lines if math.isfinite(row.get(name, math.nan))])
            ax.set_ylabel(title)
            ax.grid(axis="y")
            if len(ax.get_legend_handles_labels()[1]) > 1 or "auc" in "".join(lines):
                ax.legend(loc="best", fontsize=8, frameon=False, ncols=2)
            if title in ("accuracy", "negatives above data"):
                ax.set_ylim(-0.04, 1.04)
                ax.yaxis.set_major_formatter(PERCENT)
        axes[-1].set_xlabel("step")
        axes[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
        figure.suptitle("\n".join(textwrap.wrap(diagnosis.headline, 96)), x=0.01, ha="left", fontsize=11, color=INK)
        if handles := _key(events, diagnosis, bool(lost and any(evidence for _, evidence in lost))):
            figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), fontsize=8, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _gap(names: set[str]) -> bool:
    return bool(names & {"energy_real", "energy_gap", "conditional_gap"})


def _rows_of(event: Mapping[str, Any]) -> list[dict[str, float]]:
    """The columns of an event's evidence as rows, with the failed step itself at the end."""
    columns = event.get("evidence")
    columns = columns if isinstance(columns, dict) and isinstance(columns.get("step"), list) else {"step": []}
    metrics, failed = event.get("metrics"), event.get("failed_step")
    rows = [
        {name: float(column[i]) for name, column in columns.items() if i < len(column) and _is_number(column[i])}
        for i in range(len(columns["step"]))
    ]
    if isinstance(metrics, dict) and _is_number(failed) and not (rows and rows[-1].get("step") == failed):
        rows.append({"step": float(failed or 0), **{n: float(v) for n, v in metrics.items() if _is_number(v)}})
    return [row for row in rows if "step" in row]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _line(ax: Axes, rows: Rows, name: str, *, colour: str, label: str = "", alone: bool = False) -> None:
    points = [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
    if not points:
        return
    x, y = zip(*points, strict=True)
    few = "o" if len(points) <= 12 else ""
    if alone:
        ax.plot(x, y, color=colour, linewidth=0.9, linestyle=(0, (1.2, 1.2)), alpha=0.85)
    else:
        ax.plot(x, y, color=colour, linewidth=1.5, marker=few, markersize=3, label=label)


def _mark(ax: Axes, events: Sequence[Mapping[str, Any]], diagnosis: Diagnosis) -> None:
    for finding in diagnosis.findings:
        for onset, failed in finding.spans:
            ax.axvspan(onset, max(failed, onset + 0.4), color=_FAILED, alpha=0.13, linewidth=0)
            ax.axvline(failed, color=_FAILED, linewidth=1)
    for event in events:
        if event.get("event") == "recovered" and _is_number(event.get("step")):
            ax.axvline(event["step"], color=_BACK, linewidth=1.2, linestyle=(0, (4, 2)))


def _name(ax: Axes, diagnosis: Diagnosis) -> None:
    """Verdicts beside their lines, where there is room for them."""
    places = [(failed, finding.verdict) for finding in diagnosis.findings for _, failed in finding.spans]
    if len(places) > MOST_NAMES:
        return
    for failed, verdict in places:
        # On top of each other they would not read: verdicts of one step take turns at the top and the bottom.
        first = next(name for step, name in places if step == failed) == verdict
        y, va = (0.97, "top") if first else (0.03, "bottom")
        across = ax.get_xaxis_transform()
        ax.text(failed, y, f" {verdict}", transform=across, rotation=90, va=va, ha="left", fontsize=7, color=_FAILED)


def _scale(ax: Axes, values: Sequence[float]) -> None:
    """A symmetric logarithmic axis where a few values would flatten all the others."""
    sizes = np.abs(np.asarray(values, dtype=float))
    if sizes.size and sizes.max() > 50 * max(1.0, float(np.median(sizes))):
        linear = max(1.0, float(np.median(sizes)))
        ax.set_yscale("symlog", linthresh=linear)
        # Labels of small values would lie on that of zero.
        ax.yaxis.set_major_formatter(
            FuncFormatter(lambda v, _: "" if 0 < abs(v) < linear else f"{v:g}".replace("-", "−"))
        )


def _key(events: Sequence[Mapping[str, Any]], diagnosis: Diagnosis, lost: bool) -> list[Any]:
    handles: list[Any] = []
    if diagnosis.findings:
        handles += [Patch(color=_FAILED, alpha=0.3, label="from the onset of a failure to its verdict")]
    if any(event.get("event") == "recovered" for event in events):
        handles += [Line2D([], [], color=_BACK, linestyle=(0, (4, 2)), label="step that recovery went back to")]
    if lost:
        handles += [Line2D([], [], color=GREY, linestyle=(0, (1.2, 1.2)), label="steps that were rolled back")]
    return handles
