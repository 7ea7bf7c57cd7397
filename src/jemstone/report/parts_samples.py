"""The parts of the page about the density itself: samples, chains that run on, likelihood."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from jemstone.report import evaluation_plots as plots
from jemstone.report.evaluation_plots import Line
from jemstone.report.measures import GENERATION, measure, number
from jemstone.report.parts import Block, Figures, Grid, Hint, Numbers, Panel, Part, coloured, hints, panel, pictures
from jemstone.report.read import RunRecord
from jemstone.report.read_figures import Curve, Likelihood, LongRun
from jemstone.report.tables import Cell, Row, row, samples_matrix

ELSEWHERE = ("corruptions", "attacked", "distal", "foreign", "long_run")
"""Pictures that belong to other parts of the page."""
TITLES = {
    "data": "Training images",
    "fresh": "Fresh samples of p(x)",
    "by_class": "Fresh samples of p(x|y)",
    "buffer": "Replay buffer",
    "neighbours": "Samples and their nearest training images",
}
HOW = {
    "neighbours": "a sample that equals an image below it is a copy, and one that lies between them is new.",
    "data": "the truth, with which samples compare.",
    "buffer": "these chains went on all through training, and may look better than what the model draws afresh.",
}


def samples(runs: Sequence[RunRecord], names: Sequence[str]) -> Part:
    """Are samples like the data, as varied, and new: numbers with their floor, and the pictures."""
    blocks: list[Block] = []
    wanted = list(dict.fromkeys(s.name for run in runs for s in run.samples if s.name not in ELSEWHERE))
    shown = pictures(runs, names, wanted, TITLES)
    single = [replace(images[0], how=_how(name)) for name, images in shown if len(images) == 1]
    blocks += [Figures(single, titled=True, columns="grid" if len(single) > 2 else "wide")] if single else []
    blocks += [Figures(images, _how(name), TITLES.get(name, name)) for name, images in shown if len(images) > 1]
    if (matrix := samples_matrix(runs)) is not None:
        used = list(dict.fromkeys(run.evaluation.extractor for run in runs if run.evaluation.extractor))
        text = (
            f"Distances are taken in features of {' / '.join(used) or 'an extractor that is not on record'}, and "
            "compare at equal extractor and equal n only. Real test inputs in the place of samples are the floor that "
            "new data reach: samples that come as close to it as this are as good as new data, to this extractor."
        )
        blocks.append(Grid(matrix, "", matrix.columns, "How like the data, how varied, how new", text))
    if legacy := _legacy(runs):
        text = (
            "The protocol of earlier papers, for comparison with those alone: the more confident half of the replay "
            "buffer, against train and test data together. It selects, and so it flatters."
        )
        blocks.append(Numbers({"": legacy}, "Legacy", text))
    if panels := _nearest(runs, names):
        how = "colour to the left of grey means samples nearer to training data than new data are, that is, copies."
        blocks.append(Figures(panels, how, "Distance to the nearest training input"))
    if per_class := _per_class(runs):
        blocks.append(Numbers({"": per_class}, "FID class by class", "Lower is better.", folded=True))
    found = hints(runs, names, "generation", "numbers of samples")
    found += [
        Hint(f"{name} has no pictures of samples yet. To draw some:", f"jemstone sample {shlex.quote(str(run.path))}")
        for run, name in zip(runs, names, strict=True)
        if not any(s.name in wanted for s in run.samples) and "generation" not in run.evaluation.empty
    ]
    lead = "What the model draws when nobody gives it an input. All draws are unselected."
    return Part("samples", "Samples", "Samples", blocks, lead, found)


def long_run(runs: Sequence[RunRecord], names: Sequence[str]) -> Part:
    """What becomes of samples when chains run on, far beyond the training life of a chain."""
    found = [(i, colour, run.evaluation.long_run) for i, colour, run in coloured(runs)]
    there = [(i, colour, chains) for i, colour, chains in found if chains is not None and len(chains.steps)]
    energies, others = [], []
    for i, colour, chains in there:
        drawing = plots.over_steps([Line(colour, chains.energy, "")], [(colour, chains.life)], band=chains.data)
        caption = "energy in nats" + (f", split R-hat {chains.r_hat:.3g}" if chains.r_hat is not None else "")
        alt = f"Energies of long chains of {names[i]} over kernel steps, with those of test inputs."
        energies.append(panel(names[i], drawing, alt, i, caption))
    if there:
        others = [
            _together("Diversity, that of test inputs = 1", "diversity", there, level=1.0),
            _together("Confidence of the classifier", "confidence", there, percent=True),
        ]
    blocks: list[Block] = []
    if energies:
        how = (
            "a line that leaves the grey (median and 80 % of test inputs) beyond the dotted mark, the training life of "
            "a chain, shows samples that owe their likeness to where chains start and stop."
        )
        blocks.append(Figures(energies, how, "Energy"))
        how = "falling diversity means that chains become alike, and a line that stays flat beyond the mark is stable."
        blocks.append(Figures(others, how, "Variety and confidence", key=[i for i, _, _ in there]))
    for _, images in pictures(runs, names, ["long_run"], {"long_run": "The same chains as they run on"}):
        blocks.append(Figures(images, "read down a column to see what becomes of one sample.", "The chains"))
    lead = "Chains run for many times the life of a training chain: where they sample a density, nothing changes."
    return Part(
        "long_run", "Long-run chains", "Long run", blocks, lead, hints(runs, names, "long_run", "long-run chains")
    )


def likelihood(runs: Sequence[RunRecord], names: Sequence[str]) -> Part:
    """log p(x) in absolute terms, and how far its constant can be relied on."""
    values, weights, acceptance = [], [], []
    for i, colour, run in coloured(runs):
        found = run.evaluation.likelihood
        if found is None:
            continue
        values.append(_log_p(i, colour, names[i], found))
        if found.log_weights is not None:
            drawing = plots.histogram(found.log_weights.bins("counts"), colour, "log weight, nats")
            size = found.effective_sample_size
            caption = "" if size is None else f"worth {size:.3g} equal weights"
            weights.append(panel(names[i], drawing, f"Histogram of the log weights of {names[i]}.", i, caption))
        if found.acceptance:
            alt = f"Acceptance of the annealed chains of {names[i]} over temperatures."
            acceptance.append(panel(names[i], plots.temperatures(found.acceptance, colour), alt, i))
    blocks: list[Block] = []
    if values:
        how = "colour (test) to the left of grey (training) means that the density favours what it was trained on."
        blocks.append(Figures(values, how, "log p(x) of test and training inputs"))
    if weights:
        how = "the mean weight is the estimate of Z, so that a long tail to the right means that few chains decide it."
        blocks.append(Figures(weights, how, "Weights of the annealed chains", folded=True))
    if acceptance:
        how = "where acceptance falls towards 0 the chains stand still and the estimate of log Z is too low."
        blocks.append(Figures(acceptance, how, "Acceptance of the annealed chains", folded=True))
    lead = "log p(x) = −E(x) − log Z, with log Z on the domain of the data; only with it are likelihoods comparable."
    return Part("likelihood", "Likelihood", "Likelihood", blocks, lead, hints(runs, names, "likelihood", "likelihood"))


def _how(name: str) -> str:
    """How to read the picture `name`."""
    return HOW.get(name, "look for variety as much as for likeness, and for repetitions.")


def _legacy(runs: Sequence[RunRecord]) -> list[Row]:
    shown = dict.fromkeys(
        r.name
        for run in runs
        for r in run.results
        if measure(r.name).group == GENERATION and r.name.startswith("legacy/")
    )
    return [row(measure(name).label, measure(name), [run.result(name) for run in runs]) for name in shown]


def _nearest(runs: Sequence[RunRecord], names: Sequence[str]) -> list[Panel]:
    panels = []
    for i, colour, run in coloured(runs):
        if run.evaluation.nearest is not None:
            drawn, test = run.evaluation.nearest.bins("samples"), run.evaluation.nearest.bins("test")
            axis = "distance in features"
            drawing = plots.histogram(drawn, colour, axis, beside=test, names=("samples", "test inputs"))
            alt = f"Distances of samples of {names[i]} and of test inputs to the nearest training input."
            copies = run.result("generation/memorised")
            caption = (
                "" if copies is None else f"{number(copies.value, percent=True)}\u00a0% of samples count as copies"
            )
            panels.append(panel(names[i], drawing, alt, i, caption))
    return panels


def _per_class(runs: Sequence[RunRecord]) -> list[Row]:
    found = [run.evaluation.per_class_fid for run in runs]
    classes = dict.fromkeys(name for one in found for name in one)

    def cell(value: float | None) -> Cell:
        return Cell() if value is None else Cell(number(value, decimals=2), "", repr(value))

    return [Row(name, -1, tuple(cell(one.get(name)) for one in found), "") for name in classes]


def _together(
    heading: str,
    what: str,
    found: Sequence[tuple[int, str, LongRun]],
    *,
    percent: bool = False,
    level: float | None = None,
) -> Panel:
    """One panel for all runs of a value that has no band."""
    lines = [Line(c, Curve(r.steps, *[getattr(r, what)] * 3), "") for _, c, r in found]
    drawing = plots.over_steps(lines, [(c, r.life) for _, c, r in found], percent=percent, level=level)
    return panel(heading, drawing, f"{heading}, of long chains over kernel steps, one line per run.")


def _log_p(i: int, colour: str, name: str, found: Likelihood) -> Panel:
    exact = found.method == "quadrature"
    how = "log Z by a sum over a grid" if exact else "log Z by annealed importance sampling"
    test, train = found.test.bins("counts"), found.train.bins("counts")
    drawing = plots.histogram(test, colour, "log p(x), nats", beside=train, names=("test", "training"))
    caption = f"{how} on [{found.domain[0]:g}, {found.domain[1]:g}] along every axis"
    return panel(name, drawing, f"Histograms of log p(x) of {name}: test against training inputs.", i, caption)
