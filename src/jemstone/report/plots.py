"""How the report draws: one panel at a time, returned as SVG text; here also the curves of training.

Panels are small and many, not large and few: the page lays them out in a grid, so that on a phone each one fills the
width and its text stays legible. Figures are drawn on white; the page gives them a white card in dark mode. Colour
always means the run, in every figure; what else must be told apart is told by line style or by place.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B04A8B", "#B58900", "#2F9BD6", "#444444")
"""Okabe and Ito's palette for all kinds of colour vision, its light colours darkened for thin lines on white."""

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
            plain_log(ax, ticks=5)
        else:
            _cut(ax, values)
        if percent:
            ax.yaxis.set_major_formatter(PERCENT)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1000:g}k" if abs(v) >= 10_000 else f"{v:g}"))
        ax.set_xlabel("step")
        ax.grid(axis="y")

    return render(draw, height=2.5)


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


def plain_log(ax: Axes, ticks: int) -> None:
    """A logarithmic axis labelled 1, 10, 100 where matplotlib would set powers as mathematics."""
    ax.yaxis.set_major_locator(LogLocator(numticks=ticks))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def render(draw: Callable[[Figure], None], height: float) -> str:
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
