"""The parts of the page about what is predicted: calibration, out-of-distribution detection, corruptions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

from jemstone.report import evaluation_plots as plots
from jemstone.report.evaluation_plots import Line
from jemstone.report.measures import OOD_METRICS, OOD_NAMES, SCORE_MEANINGS, SCORE_NAMES, number
from jemstone.report.parts import Block, Figures, Grid, Meanings, Panel, Part, coloured, hints, panel, pictures
from jemstone.report.read import RunRecord
from jemstone.report.read_figures import Curve, Reliability
from jemstone.report.tables import ood_matrix, set_aurocs

DIAGRAM = (
    "a bar that ends below the diagonal is overconfident and one above it underconfident; dots stand at the mean "
    "confidence of a bin, whiskers are 95 % intervals, and the bars beneath count the examples."
)
RIDGES = (
    "the further the colour (other set) lies to the left of the grey (test set), the better the two can be told apart; "
    "heights are shares of each set, the outermost steps hold what lies beyond, and scales of two runs do not compare."
)


def calibration(runs: Sequence[RunRecord], names: Sequence[str]) -> Part:
    """Reliability diagrams: of each run as it is, and beside it after temperature scaling, the baseline to beat."""

    def diagram(i: int, colour: str, bins: Reliability | None, what: str, caption: str) -> list[Panel]:
        if bins is None:
            return []
        alt = f"Reliability diagram of {names[i]}, {what}: accuracy against stated confidence, with counts beneath."
        return [panel(what, plots.reliability_diagram(bins, colour), alt, i, caption)]

    def error(run: RunRecord, name: str) -> str:
        result = run.result(name)
        return "" if result is None else f", ECE {number(result.value, percent=True)}\u00a0%"

    plain, folded = [], []
    for i, colour, run in coloured(runs):
        found = run.evaluation
        cooled = (
            f"after temperature scaling, T = {found.temperature:.3g}" if found.temperature is not None else "scaled"
        )
        plain += diagram(i, colour, found.reliability, "as trained", f"as trained{error(run, 'ece')}")
        plain += diagram(i, colour, found.scaled, "temperature-scaled", f"{cooled}{error(run, 'scaled/ece')}")
        folded += diagram(i, colour, found.equal_mass, "bins of equal count", "as trained, bins of equal count")
    columns = "pair" if any(run.evaluation.scaled for run in runs) else "wide"
    blocks: list[Block] = [Figures(plain, DIAGRAM, columns=columns)] if plain else []
    if folded:
        how = "as above, where every bin holds the same number of examples and so the same weight of evidence."
        blocks.append(Figures(folded, how, "Bins of equal count", folded=True, columns=columns))
    lead = (
        "Whether a stated probability comes true as often as it says. Dividing all logits by one number fitted on the "
        "validation split, temperature scaling, costs nothing and is the baseline that a model should beat untouched."
    )
    return Part(
        "calibration",
        "Calibration",
        "Calibration",
        blocks,
        lead,
        hints(runs, names, "calibration", "reliability diagram"),
    )


def ood(runs: Sequence[RunRecord], names: Sequence[str]) -> Part:
    """How well each score tells foreign inputs from the test set, near and far ones apart."""
    blocks: list[Block] = []
    scores: dict[str, None] = {}
    for metric in OOD_METRICS:
        matrix = ood_matrix(runs, metric)
        if matrix is None:
            continue
        scores |= dict.fromkeys(matrix.columns)
        columns = [SCORE_NAMES.get(score, score) for score in matrix.columns]
        title = "" if metric == "auroc" else OOD_NAMES[metric]
        blocks.append(Grid(matrix, OOD_NAMES[metric], columns, title, folded=metric != "auroc"))
    if scores:
        unknown = "a score that this version of the report has no words for"
        entries = [(SCORE_NAMES.get(s, s), f"{SCORE_MEANINGS.get(s, unknown)}.") for s in scores]
        blocks.append(Meanings(entries, "What the scores are"))
    for k, score in enumerate(dict.fromkeys(chain.from_iterable(run.evaluation.scores for run in runs))):
        shown, panels = SCORE_NAMES.get(score, score), []
        for i, colour, run in coloured(runs):
            bins = run.evaluation.scores.get(score)
            if bins is not None and bins.ood:
                alt = f"Histograms of {shown} for {names[i]}: test set against {', '.join(bins.ood)}."
                drawing = plots.score_ridges(bins, colour, set_aurocs(run, score))
                panels.append(panel(names[i], drawing, alt, i))
        if panels:
            blocks.append(Figures(panels, RIDGES, f"Where the values of {shown} lie", folded=k > 0))
    for _, images in pictures(runs, names, ["foreign"], {"foreign": "The other sets"}):
        blocks.append(Figures(images, "one set per row, from the top, as the caption names them.", folded=True,
                              heading="What the other sets look like"))  # fmt: skip
    lead = (
        "How well a score tells inputs of other sets from the test set, without having seen the other sets. AUROC is "
        "the chance that a test input scores higher: 1 is always, 0.5 is guessing, and below 0.5 the score prefers the "
        "other set. Near sets resemble the data in meaning, far ones do not. Bold follows the rule above."
    )
    return Part(
        "ood",
        "Out-of-distribution detection",
        "Detection",
        blocks,
        lead,
        hints(runs, names, "ood", "detection results"),
    )


def corruptions(runs: Sequence[RunRecord], names: Sequence[str]) -> Part:
    """Accuracy, calibration and detection over the severity of each kind of corruption."""
    found = [(i, colour, run.evaluation.corruptions) for i, colour, run in coloured(runs)]
    kinds = dict.fromkeys(kind for _, _, c in found if c is not None for kind in c.kinds)

    def panels(metric: str, what: str, chance: float | None, top: float | None) -> list[Panel]:
        drawn = []
        for kind in kinds:
            lines = [
                Line(colour, _from_clean(c.kinds[kind][metric], c.clean.get(metric)), "")
                for _, colour, c in found
                if c is not None and metric in c.kinds.get(kind, {})
            ]
            if lines:
                drawing = plots.severity_curves(lines, top=top, percent=metric != "auroc", chance=chance)
                alt = f"{what} over the severity of {kind}, one line per run."
                drawn.append(panel(kind, drawing, alt))
        return drawn

    errors = [m["ece"].high for _, _, c in found if c is not None for m in c.kinds.values() if "ece" in m]
    worst = max((value for row in errors for value in row if math.isfinite(value)), default=0.0)
    key = [i for i, _, c in found if c is not None]
    metrics = [
        ("accuracy", "Accuracy", "the earlier and the deeper a line falls, the less of the corruption the model "
         "withstands; bands are 95 % intervals.", None, 1.0),
        ("ece", "Expected calibration error", "a line that rises means that confidence does not fall as fast as "
         "accuracy does; bands are 95 % intervals.", None, worst or None),
        ("auroc", "AUROC of log p(x), clean against corrupted", "0.5, the dotted line, means that the density does not "
         "notice the corruption, and 1 that it always does, which is not better by itself.", 0.5, 1.0),
    ]  # fmt: skip
    blocks: list[Block] = [
        Figures(shown, how, heading, folded=metric != "accuracy", key=key, columns="grid")
        for metric, heading, how, chance, top in metrics
        if (shown := panels(metric, heading, chance, top))
    ]
    for _, images in pictures(runs, names, ["corruptions"], {"corruptions": "What the corruptions do"}):
        blocks.append(Figures(images, "one kind per row, growing from left to right.", folded=True,
                              heading="What the corruptions look like"))  # fmt: skip
    lead = "What common corruptions of the test images, in five severities, do to a run. Means are among the results."
    return Part(
        "corruptions",
        "Corruptions",
        "Corruptions",
        blocks,
        lead,
        hints(runs, names, "corruptions", "corruption curves"),
    )


def _from_clean(curve: Curve, clean: float | None) -> Curve:
    """The curve with the clean images as severity 0, where their value is known."""
    if clean is None:
        return curve
    return Curve((0.0, *curve.x), *((clean, *part) for part in (curve.value, curve.low, curve.high)))
