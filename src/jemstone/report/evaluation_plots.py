"""The figures of an evaluation, one panel each, as SVG text. Colour is the run; all that is no run's own is grey."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jemstone.report.plots import GREY, INK, PERCENT, Array, plain_log, render
from jemstone.report.read_figures import Curve, Reliability, ScoreHistogram

FILL = "#c9cdd2"


Bins = tuple[Sequence[float], Sequence[float]]
"""b + 1 edges, and b counts."""


class Line(NamedTuple):
    """A curve of one run's colour; `style` is a key of `STYLES`, and is what the legend says."""

    colour: str
    curve: Curve
    style: str


STYLES: dict[str, dict[str, Any]] = {
    "PGD": {"marker": "o", "markersize": 4},
    "adaptive": {"marker": "o", "markersize": 4},
    "transferred": {"marker": "v", "markersize": 5, "linestyle": (0, (1.5, 1.5)), "mfc": "white"},
    "worst of both": {"marker": "s", "markersize": 3.5, "linestyle": (0, (5, 1.5))},
    "AutoAttack": {"marker": "D", "markersize": 6.5, "linestyle": "none", "mfc": "white", "mew": 1.6},
    "black box": {"marker": "X", "markersize": 7, "linestyle": "none"},
    "": {"marker": "o", "markersize": 4},
}
"""Curves and points; a style without a line has whiskers for its intervals, one with a line a band."""


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
        span = (edges.min(), edges.max()) if edges.max() > edges.min() else (0, 1)
        top.set(ylabel="right, in fact", xlim=span, ylim=(0, 1.03))
        top.yaxis.set_major_formatter(PERCENT)
        top.grid(axis="y")
        filled = np.nan_to_num(count) > 0
        bottom.bar(left[filled], count[filled], width[filled], align="edge", color=colour, edgecolor="white")
        bottom.set_yscale("log")
        bottom.set_ylim(0.6, max(10.0, 1.6 * float(np.nanmax(count, initial=1.0))))
        plain_log(bottom, ticks=3)
        bottom.xaxis.set_major_locator(MaxNLocator(5))
        bottom.xaxis.set_major_formatter(PERCENT)
        bottom.set(xlabel="confidence stated", ylabel="count")
        figure.align_ylabels()

    return render(draw, height=3.75)


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
            _filled(ax, test, edges)
            _outlined(ax, share, edges, colour)
            ax.set(yticks=[], ylim=(0, 1.45 * max(test.max(initial=0), share.max(initial=0), 1e-9)))
            ax.set(xlim=(edges[0], edges[-1]))
            ax.spines["left"].set_visible(False)
            ax.tick_params(axis="x", length=2.5)
            note = f"{auroc[name]:.3f}" if name in auroc else ""
            for x, text, side in ((0.0, _short(name), "left"), (1.0, note, "right")):
                ax.text(x, 0.97, text, transform=ax.transAxes, ha=side, va="top", color=INK, fontsize=9.5)
        axes[-1].xaxis.set_major_locator(MaxNLocator(5))
        if auroc:
            axes[0].set_title("AUROC", loc="right", fontsize=8.5, color="#666b72", pad=2)

    return render(draw, height=0.55 + 0.62 * rows)


def histogram(shown: Bins, colour: str, xlabel: str, *, beside: Bins | None = None, names: Sequence[str] = ()) -> str:
    """Shares of each bin in the run's colour, over those of `beside` in grey; `names` are both in the legend."""

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        top, ends = 1e-9, [*shown[0], *(beside[0] if beside is not None else ())]
        if beside is not None:
            share = _share(beside[1])
            _filled(ax, share, beside[0])
            top = max(top, share.max(initial=0))
        share = _share(shown[1])
        _outlined(ax, share, shown[0], colour)
        top = max(top, share.max(initial=0))
        ax.set(ylim=(0, 1.08 * top), xlim=(min(ends), max(ends)), xlabel=xlabel, ylabel="share")
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_formatter(PERCENT)
        if names:
            patches = [Patch(fc=_pale(colour), ec=colour, label=names[0]), Patch(fc=FILL, label=names[1])]
            _legend(figure, patches)

    return render(draw, height=2.6)


def attack_curves(lines: Sequence[Line], chance: float | None) -> str:
    """Accuracy against the radius of the attack, all runs in one panel; the legend tells attacks apart, not runs."""

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for line in lines:
            _curve(ax, line)
        radii = {x for line in lines for x in line.curve.x}
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
        if len(styles := dict.fromkeys(line.style for line in lines)) > 1:
            _legend(figure, [Line2D([], [], color="#5d646d", label=style, **STYLES[style]) for style in styles])

    return render(draw, height=3.0)


def severity_curves(lines: Sequence[Line], *, top: float | None, percent: bool, chance: float | None = None) -> str:
    """One metric over the severity of a corruption, where 0 is the clean image; `top` fixes the axis' upper end."""

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for line in lines:
            _curve(ax, line)
        if chance is not None:
            ax.axhline(chance, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
        ticks = sorted({x for line in lines for x in line.curve.x})
        ax.set_xticks(ticks, ["clean" if x == 0 else f"{x:g}" for x in ticks])
        ax.set(xlabel="severity")
        ax.set_ylim(bottom=0)
        if top is not None:
            ax.set_ylim(top=1.02 * top)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        if percent:
            ax.yaxis.set_major_formatter(PERCENT)
        ax.grid(axis="y")

    return render(draw, height=2.4)


def over_steps(
    lines: Sequence[Line],
    lives: Sequence[tuple[str, float]],
    *,
    percent: bool = False,
    level: float | None = None,
    band: tuple[float, float, float] | None = None,
) -> str:
    """Values of long chains over kernel steps, whose axis is logarithmic beyond 1, with the life of a chain marked.

    `lives` are (colour, step); `level` is a reference line; `band` is the low, middle and high end of the data's.
    """

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        if band is not None:
            ax.axhspan(band[0], band[2], color=FILL, alpha=0.55, linewidth=0)
            ax.axhline(band[1], color="#7b828a", linewidth=1)
            _legend(
                figure, [Line2D([], [], color=lines[0].colour, label="chains"), Patch(fc=FILL, label="test inputs")]
            )
        if level is not None:
            ax.axhline(level, color=GREY, linewidth=1, linestyle=(0, (4, 2)))
        for line in lines:
            x, value, low, high = map(np.array, rows(line.curve))
            ax.fill_between(x, low, high, color=line.colour, alpha=0.16, linewidth=0)
            ax.plot(x, value, color=line.colour, linewidth=1.5)
        for colour, life in lives:
            ax.axvline(life, color=colour, linewidth=0.9, linestyle=(0, (1.2, 1.8)))
        last = max((x for line in lines for x in line.curve.x), default=1.0)
        ax.set_xscale("symlog", linthresh=1, linscale=0.4)
        powers = [10.0**k for k in range(math.ceil(math.log10(max(last, 1))) + 1) if 10.0**k <= last]
        ax.set_xticks(
            [0, *powers], ["0", *(f"{p / 1000:g}k" if p >= 10_000 else f"{p:g}" for p in powers)], minor=False
        )
        ax.set_xticks([], minor=True)
        ax.set(xlabel="kernel steps", xlim=(0, 1.05 * max(last, 1)))
        if percent:
            ax.set_ylim(0, 1.03)
            ax.yaxis.set_major_formatter(PERCENT)
        ax.grid(axis="y")

    return render(draw, height=2.6)


def temperatures(acceptance: Sequence[float], colour: str) -> str:
    """Acceptance of annealed chains, from the base on the left to the model on the right."""

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ax.plot(np.linspace(0, 1, len(acceptance)), acceptance, color=colour, linewidth=1.5)
        ax.set(ylim=(0, 1.03), xlim=(0, 1), xlabel="share of the temperatures passed", ylabel="accepted")
        ax.yaxis.set_major_formatter(PERCENT)
        ax.grid(axis="y")

    return render(draw, height=2.4)


def rows(curve: Curve) -> tuple[Sequence[float], ...]:
    """x, value, low and high."""
    return curve.x, curve.value, curve.low, curve.high


def _curve(ax: Axes, line: Line) -> None:
    style = STYLES[line.style]
    order = np.argsort(line.curve.x)
    x, value, low, high = (np.array(part)[order] for part in rows(line.curve))
    ends = np.stack([value - low, high - value])
    if style.get("linestyle") == "none":
        ax.errorbar(
            x, value, np.nan_to_num(ends).clip(0), color=line.colour, capsize=0, elinewidth=1.3, zorder=3, **style
        )
        return
    ax.fill_between(x, low, high, color=line.colour, alpha=0.13, linewidth=0)
    ax.plot(x, value, color=line.colour, **style)


def _legend(figure: Figure, handles: list[Any]) -> None:
    figure.legend(
        handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=9.5, borderpad=0, columnspacing=1.2
    )


def _filled(ax: Axes, share: Array, edges: Sequence[float]) -> None:
    ax.stairs(share, edges, fill=True, color=FILL)


def _outlined(ax: Axes, share: Array, edges: Sequence[float], colour: str) -> None:
    ax.stairs(share, edges, fill=True, color=colour, alpha=0.35)
    ax.stairs(share, edges, color=colour, linewidth=1.2)


def _pale(colour: str) -> str:
    return f"{colour}59"


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
