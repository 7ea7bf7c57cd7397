"""The figures of the report: each function draws one panel and returns it as SVG text.

Panels are small and many, not large and few: the page lays them out in a grid, so that on a phone each one fills the
width and its text stays legible. Figures are drawn on white; the page gives them a white card in dark mode. Colour
always means the run, in every figure; what else must be told apart is told by line style or by place.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from jemstone.report.read import Reliability, RobustnessCurve, ScoreHistogram

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B04A8B", "#B58900", "#2F9BD6", "#444444")
"""Okabe and Ito's palette for all kinds of colour vision, its light colours darkened for thin lines on white."""
DASHES = ("solid", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
MARKERS = "osD^vPX"

Array = npt.NDArray[np.float64]

Series = tuple[str, Sequence[float], Sequence[float], bool]
"""Colour, x, y, dashed."""

GREY, INK, _WIDTH, _POINTS = "#9aa0a6", "#30343a", 4.0, 240
_DECIMALS = re.compile(r"(-?\d+\.\d\d)\d+(?=[ \n])(?=[^<>]*/>)")
"""Digits of a coordinate that no eye can see, inside a tag: never in the text of a label."""
PERCENT = FuncFormatter(lambda v, _: f"{100 * v:.4g} %")
STYLE: Any = {
    "svg.fonttype": "none",  # real text: small files, and every script that the reader's machine can show
    "svg.hashsalt": "jemstone",  # the same run gives the same bytes
    "text.parse_math": False,  # names are the user's, and may hold a dollar
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.unicode_minus": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def run_colour(index: int) -> str:
    """The colour of the run at this position, the same in all figures."""
    return COLOURS[index % len(COLOURS)]


def reliability_diagram(bins: Reliability, colour: str) -> str:
    """Accuracy against stated confidence per bin, with 95 % intervals, and the number of examples beneath."""

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.6, 1))
        edges, accuracy, count = np.array(bins.edges), np.array(bins.accuracy), np.array(bins.count)
        left, width, used = edges[:-1], np.diff(edges), np.isfinite(accuracy)
        top.bar(left[used], accuracy[used], width[used], align="edge", color=colour, alpha=0.28, edgecolor="white")
        top.plot([0, 1], [0, 1], color=GREY, linewidth=1.1, linestyle=(0, (4, 2)))
        for x, y, low, high in zip(bins.confidence, bins.accuracy, bins.low, bins.high, strict=True):
            if math.isfinite(x) and math.isfinite(y):
                top.plot([x, x], [low, high], color=colour, linewidth=1.4, solid_capstyle="butt")
                top.plot([x], [y], marker="o", markersize=4, color=colour)
        top.set(ylabel="right, in fact", xlim=(edges.min(), edges.max()), ylim=(0, 1.03))
        top.yaxis.set_major_formatter(PERCENT)
        top.grid(axis="y")
        filled = np.nan_to_num(count) > 0
        bottom.bar(left[filled], count[filled], width[filled], align="edge", color=colour, edgecolor="white")
        bottom.set_yscale("log")
        bottom.set_ylim(0.6, max(10.0, 1.6 * float(np.nanmax(count, initial=1.0))))
        _plain_log(bottom, ticks=3)
        bottom.xaxis.set_major_formatter(PERCENT)
        bottom.set(xlabel="confidence stated", ylabel="count")
        figure.align_ylabels()

    return _render(draw, height=3.75)


def score_ridges(histogram: ScoreHistogram, colour: str, auroc: Mapping[str, float]) -> str:
    """One row per out-of-distribution set: its scores in the run's colour over those of the test set in grey."""
    used = np.flatnonzero(np.sum([histogram.test, *histogram.ood.values()], axis=0))
    first, last = (int(used[0]), int(used[-1]) + 1) if used.size else (0, len(histogram.test))
    edges = histogram.edges[first : last + 1]
    test = _share(histogram.test)[first:last]
    rows = len(histogram.ood)

    def draw(figure: Figure) -> None:
        axes = np.atleast_1d(np.asarray(figure.subplots(rows, 1, sharex=True)))
        for ax, (name, counts) in zip(axes, histogram.ood.items(), strict=True):
            share = _share(counts)[first:last]
            ax.stairs(test, edges, fill=True, color="#c9cdd2")
            ax.stairs(share, edges, fill=True, color=colour, alpha=0.35)
            ax.stairs(share, edges, color=colour, linewidth=1.2)
            ax.set(yticks=[], ylim=(0, 1.45 * max(test.max(initial=0), share.max(initial=0), 1e-9)))
            ax.set(xlim=(edges[0], edges[-1]))
            ax.spines["left"].set_visible(False)
            ax.tick_params(axis="x", length=2.5)
            note = f"{auroc[name]:.3f}" if name in auroc else ""
            for x, text, side in ((0.0, _short(name), "left"), (1.0, note, "right")):
                ax.text(x, 0.97, text, transform=ax.transAxes, ha=side, va="top", color=INK, fontsize=9.5)
        axes[-1].xaxis.set_major_locator(MaxNLocator(5))
        axes[0].set_title("AUROC", loc="right", fontsize=8.5, color="#666b72", pad=2)

    return _render(draw, height=0.55 + 0.62 * rows)


def robustness_curves(runs: Iterable[tuple[int, RobustnessCurve]], chance: float | None) -> str:
    """Accuracy against the radius of the attack, every run in one panel, each with its 95 % band."""

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        radii: set[float] = set()
        for index, curve in runs:
            eps, accuracy, low, high = (np.array(v) for v in (curve.eps, curve.accuracy, curve.low, curve.high))
            order = np.argsort(eps)
            colour, dashes, marker = run_colour(index), DASHES[index % len(DASHES)], MARKERS[index % len(MARKERS)]
            ax.fill_between(eps[order], low[order], high[order], color=colour, alpha=0.16, linewidth=0)
            ax.plot(eps[order], accuracy[order], color=colour, linestyle=dashes, marker=marker, markersize=4.5)
            radii |= set(curve.eps)
        if chance:
            ax.axhline(chance, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
            ax.text(0.01, chance + 0.012, "guessing", transform=ax.get_yaxis_transform(), fontsize=8.5)
        if radii and all(abs(255 * e - round(255 * e)) < 0.02 for e in radii):
            ax.xaxis.set_major_locator(MaxNLocator(5))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{255 * v:.3g}/255" if v else "0"))
            ax.set_xticks(_spread(sorted(radii), 6))
        ax.set(ylim=(-0.02, 1.02), xlabel="radius ε, where pixels lie in [0, 1]")
        ax.yaxis.set_major_formatter(PERCENT)
        ax.grid(axis="y")

    return _render(draw, height=2.9)


def training_curves(
    series: Sequence[Series],
    marks: Sequence[tuple[str, int]] = (),
    *,
    recoveries: Sequence[tuple[str, int]] = (),
    log: bool = False,
    percent: bool = False,
) -> str:
    """Lines over the training step. Long runs are shown as the median of a few steps inside their range.

    `marks` are (colour, step) of divergences, `recoveries` those that recovery went back to. `log` asks for a
    logarithmic axis where the values span it.
    """

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for colour, x, y, dashed in series:
            middle, low, high, centre = _thin(x, y)
            if len(x) > _POINTS:
                ax.fill_between(centre, low, high, color=colour, alpha=0.15, linewidth=0)
            few = len(centre) <= 12
            style = (0, (1.5, 1.2)) if dashed else "solid"
            ax.plot(centre, middle, color=colour, linewidth=1.5, linestyle=style, marker="o" if few else "", ms=3)
        for colour, step in marks:
            ax.plot([step], [0.03], marker="x", color=colour, transform=ax.get_xaxis_transform(), mew=2, ms=7)
        for colour, step in recoveries:
            across = ax.get_xaxis_transform()
            ax.axvline(step, color=colour, linewidth=0.8, linestyle=(0, (1.2, 1.8)), alpha=0.8)
            ax.plot([step], [0.05], marker="<", color=colour, mfc="white", transform=across, mew=1.4, ms=7, zorder=3)
        values = np.concatenate([np.asarray(y, dtype=float) for _, _, y, _ in series])
        positive = bool(values.min() > 0)
        if log and positive and values.max() / values.min() > 50:
            ax.set_yscale("log")
            _plain_log(ax, ticks=5)
        else:
            _cut(ax, values)
        if percent:
            ax.yaxis.set_major_formatter(PERCENT)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1000:g}k" if abs(v) >= 10_000 else f"{v:g}"))
        ax.set_xlabel("step")
        ax.grid(axis="y")

    return _render(draw, height=2.5)


def _cut(ax: Axes, values: Array) -> None:
    """Keep a few extreme steps from flattening everything else, and say so in the panel."""
    low, high = np.quantile(values, [0.02, 0.98])
    if values.size > 50 and high > low and np.ptp(values) > 8 * (high - low):
        margin = 0.15 * (high - low)
        ax.set_ylim(low - margin, high + margin)
        ax.set_title("axis leaves out the extreme 2 % on each side", fontsize=8.5, color="#666b72", loc="right")


def _thin(x: Sequence[float], y: Sequence[float]) -> tuple[Array, Array, Array, Array]:
    """Median, minimum and maximum of y, and mean x, in at most `_POINTS` consecutive groups."""
    groups = min(len(x), _POINTS)
    xs, ys = np.array_split(np.asarray(x, dtype=float), groups), np.array_split(np.asarray(y, dtype=float), groups)
    middle, low, high = (np.array([f(g) for g in ys]) for f in (np.median, np.min, np.max))
    return middle, low, high, np.array([g.mean() for g in xs])


def _plain_log(ax: Axes, ticks: int) -> None:
    """A logarithmic axis labelled 1, 10, 100 where matplotlib would set powers as mathematics."""
    ax.yaxis.set_major_locator(LogLocator(numticks=ticks))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _share(counts: Sequence[float]) -> Array:
    """Counts as fractions of their sum, so that sets of different size compare."""
    values: Array = np.nan_to_num(np.asarray(counts, dtype=np.float64))
    share: Array = values / max(float(values.sum()), 1.0)
    return share


def _spread(values: list[float], most: int) -> list[float]:
    """Tick positions with room for their labels: as many of the values as stay apart, the last one always."""
    room, kept = values[-1] / most, values[-1:]
    for value in reversed(values[:-1]):
        if kept[-1] - value >= room:
            kept.append(value)
    return kept


def _short(name: str, limit: int = 34) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _render(draw: Callable[[Figure], None], height: float) -> str:
    """Draw on a fresh figure, without pyplot and its global list of figures; return SVG without a date."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A script that matplotlib's font lacks is measured with a stand-in; the browser draws the true letters.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=metadata, facecolor="white")
    return _DECIMALS.sub(r"\1", buffer.getvalue())
