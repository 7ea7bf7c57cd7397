"""The parts of the page about adversaries: robustness, the refinement defence, distal adversarials."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jemstone.report import evaluation_plots as plots
from jemstone.report.evaluation_plots import Line
from jemstone.report.measures import number
from jemstone.report.parts import Block, Figures, Numbers, Part, coloured, hints, panel, pictures
from jemstone.report.read import RunRecord
from jemstone.report.read_figures import Curve
from jemstone.report.tables import Cell, Row

NORMS = {"linf": "L∞", "l2": "L2"}


def robustness(runs: Sequence[RunRecord], names: Sequence[str]) -> Part:
    """Accuracy under PGD, with AutoAttack and a black box at single radii, and whether the attacks can be believed."""
    panels = []
    for norm in dict.fromkeys(norm for run in runs for norm in (*run.evaluation.attacks, *run.evaluation.autoattack)):
        lines = []
        for _, colour, run in coloured(runs):
            found = run.evaluation
            by_style = {"PGD": found.attacks.get(norm), "AutoAttack": _attacked(found.autoattack.get(norm))}
            by_style["black box"] = found.black_box if norm == "linf" else None
            lines += [Line(colour, curve, style) for style, curve in by_style.items() if curve is not None]
        lines = [line for style in ("PGD", "AutoAttack", "black box") for line in lines if line.style == style]
        shown = NORMS.get(norm, norm)
        alt = f"Accuracy under {shown} attack against its radius, one line per run."
        panels.append(panel(f"{shown} attack", plots.attack_curves(lines, _chance(runs)), alt))
    how = (
        "the share of images still classified rightly after an attacker moved each by at most ε, with 95 % intervals, "
        "is an upper bound of the truth, so that where several attacks stand at one radius the lowest counts."
    )
    blocks: list[Block] = (
        [Figures(panels, how, key=[i for i, _, run in coloured(runs) if run.evaluation.attacks])] if panels else []
    )
    if checks := _checks(runs):
        text = (
            "An attack whose gradient is exactly zero stands still, and no model survives a radius within which every "
            "image can be turned grey: where either number is large, the curves above flatter the model."
        )
        blocks.append(Numbers({"": checks}, "Can the attacks be believed?", text))
    for _, images in pictures(runs, names, ["attacked"], {"attacked": "Attacked images"}):
        blocks.append(Figures(images, "the less the second row shows that it was attacked, the stronger the attack.",
                              "Attacked images"))  # fmt: skip
    lead = "Attackers that know the model move each image so that it is misclassified."
    return Part(
        "robustness", "Robustness", "Robustness", blocks, lead, hints(runs, names, "robustness", "robustness curves")
    )


def refinement(runs: Sequence[RunRecord], names: Sequence[str]) -> Part:
    """Accuracy when the model's sampler cleans an input first, by the number of its steps."""
    panels = []
    counts = dict.fromkeys(k for run in runs for k in run.evaluation.refined)
    for k in sorted(counts, key=lambda k: float(k) if k.isdigit() else math.inf):
        lines = []
        for style, of in (("adaptive", "refined"), ("transferred", "transferred"), ("worst of both", "worst")):
            for _, colour, run in coloured(runs):
                curve = getattr(run.evaluation, of).get(k)
                lines += [Line(colour, curve, style)] if curve is not None else []
        heading = "No refinement" if k == "0" else f"{k} step{'s' if k != '1' else ''} of refinement"
        alt = f"Accuracy after {k} sampling steps against the radius of the attack, one colour per run."
        panels.append(panel(heading, plots.attack_curves(lines, _chance(runs)), alt))
    how = (
        "an image counts as withstanding the worst of both if neither the attack that differentiates the sampling too "
        "nor the one carried over from the plain classifier breaks it, and this is the line to quote."
    )
    blocks: list[Block] = (
        [Figures(panels, how, key=[i for i, _, run in coloured(runs) if run.evaluation.refined])] if panels else []
    )
    lead = (
        "Each input is moved by a few steps of the model's own sampler before it is classified, in the hope that this "
        "undoes an attack (Grathwohl et al. 2020)."
    )
    return Part(
        "refinement",
        "Refinement defence",
        "Refinement",
        blocks,
        lead,
        hints(runs, names, "refinement", "refinement curves"),
    )


def distal(runs: Sequence[RunRecord], names: Sequence[str]) -> Part:
    """Inputs climbed from noise to a confident class: do they convince, and does the density see through them?"""
    confidence, density = [], []
    for i, colour, run in coloured(runs):
        found = run.evaluation
        if found.distal_probability is not None:
            drawing = plots.histogram(found.distal_probability.bins("counts"), colour, "p(y|x) reached")
            caption = _share(run, "distal/convinced", "convincing", percent=True)
            alt = f"Histogram of the probability that {names[i]} ends with on inputs made from noise."
            confidence.append(panel(names[i], drawing, alt, i, caption))
        if found.distal_density is not None:
            made, test = found.distal_density.bins("distal"), found.distal_density.bins("test")
            names_of = ("made from noise", "test inputs")
            drawing = plots.histogram(made, colour, "log p(x) + log Z, nats", beside=test, names=names_of)
            alt = f"Histogram of log p(x) of {names[i]}: inputs made from noise against test inputs."
            density.append(panel(names[i], drawing, alt, i, _share(run, "distal/auroc", "AUROC")))
    blocks: list[Block] = []
    if confidence:
        how = "the more of the starts pile up on the right, the more often noise can be made to convince the model."
        blocks.append(Figures(confidence, how, "How sure the model becomes"))
    if density:
        how = "the further colour lies to the left of grey, the better the density sees that these are no images."
        blocks.append(Figures(density, how, "Whether the density sees through it"))
    for _, images in pictures(runs, names, ["distal"], {"distal": "What convinces"}):
        how = "a model that knows its classes has to draw something like them; any other is convinced by noise."
        blocks.append(Figures(images, how, "What convinces"))
    lead = "Inputs that start as noise and climb until the classifier is sure of a class, far from all data."
    return Part(
        "distal", "Distal adversarials", "Distal", blocks, lead, hints(runs, names, "distal", "distal adversarials")
    )


def _attacked(curve: Curve | None) -> Curve | None:
    """Without the radius 0, at which there is no attack; None where nothing is left."""
    kept = [row for row in zip(*plots.rows(curve), strict=True) if row[0] > 0] if curve is not None else []
    return Curve(*map(tuple, zip(*kept, strict=True))) if kept else None


def _chance(runs: Sequence[RunRecord]) -> float | None:
    """Accuracy of guessing, where all runs have the same number of classes."""
    classes = [run.data.get("num_classes") for run in runs]
    k = classes[0]
    same = isinstance(k, int) and k > 1 and all(other == k for other in classes)
    return 1 / k if same and isinstance(k, int) else None


def _checks(runs: Sequence[RunRecord]) -> list[Row]:
    zero = [run.evaluation.zero_gradient for run in runs]
    huge = [run.evaluation.huge for run in runs]
    rows = []
    if any(share is not None for share in zero):
        cells = tuple(_cell(share) for share in zero)
        rows.append(Row("Images with a gradient of exactly zero, %", -1, cells, ""))
    if radii := list(dict.fromkeys(f"{curve.x[0]:g}" for curve in huge if curve is not None)):
        cells = tuple(
            Cell()
            if c is None
            else _cell(c.value[0], f"{number(c.low[0], percent=True)} – {number(c.high[0], percent=True)}")
            for c in huge
        )
        rows.append(
            Row(f"Accuracy under PGD, L∞\u00a0≤\u00a0{' / '.join(radii)}, where none should be left, %", -1, cells, "")
        )
    return rows


def _cell(share: float | None, interval: str = "") -> Cell:
    return Cell() if share is None else Cell(number(share, percent=True), interval, repr(share))


def _share(run: RunRecord, name: str, what: str, percent: bool = False) -> str:
    result = run.result(name)
    if result is None:
        return ""
    return f"{number(result.value, percent)}\u00a0% {what}" if percent else f"{what} {number(result.value)}"
