"""Does sampling before deciding defend a model? Accuracy of the refined classifier, attacked through its sampling.

JEM's defence (Grathwohl et al., ICLR 2020, section 5.3): classify not x but x_k, the end of k sampling steps of E(x)
that start at x, the logits averaged over draws of the noise. Such a defence hides gradients twice: an attacker who
differentiates only the classifier does not see the sampling, and one draw of the noise is not the mean of many. So
the attack measured here differentiates the sampling too, and averages over its noise (expectation over
transformation; Athalye, Carlini and Wagner, ICML 2018).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from jemstone.data.dataset import to_box, to_box_radius
from jemstone.energy import energy_gradient
from jemstone.errors import ConfigError
from jemstone.evaluation.distal import climb
from jemstone.evaluation.intervals import exact_proportion
from jemstone.evaluation.refined_logits import Gradient, refined_logits
from jemstone.evaluation.robustness import Curve
from jemstone.evaluation.section import Arrays, Common, Section, Subject, Warned, Work, subset
from jemstone.sampling.kernels import Box, Sampler
from jemstone.training.adversarial import STEP, log_odds_loss

SIGNIFICANT = 0.01


@dataclass(frozen=True)
class RefinementSettings:
    """`images` of the test split are refined by each count in `steps` and attacked at each radius in `linf`.

    `steps` ascends from 0, the plain classifier. Radii belong to [0, 1] pixels. The attacker takes `attack_steps`
    steps and averages over `expectation` draws of the sampling noise, the defender over `votes` fresh ones.
    """

    images: int = 100
    steps: tuple[int, ...] = (0, 1, 5)
    linf: tuple[float, ...] = (0.05, 0.1)
    attack_steps: int = 20
    expectation: int = 4
    votes: int = 8

    def __post_init__(self) -> None:
        """Raises ConfigError for a count below 1, steps that do not ascend from 0, or radii that do not from > 0."""
        for field in ("images", "attack_steps", "expectation", "votes"):
            if not getattr(self, field) >= 1:
                raise ConfigError(f"RefinementSettings.{field} must be at least 1, got {getattr(self, field)}.")
        if not (self.steps and self.steps[0] == 0 and (np.diff(self.steps) > 0).all()):
            raise ConfigError(
                f"RefinementSettings.steps must ascend from 0, the plain classifier that attacks are transferred "
                f"from, as (0, 1, 5); got {self.steps}."
            )
        if not (self.linf and self.linf[0] > 0 and self.linf[-1] < math.inf and (np.diff(self.linf) > 0).all()):
            raise ConfigError(
                f"RefinementSettings.linf must be positive, ascending radii in [0, 1] pixels, as (0.05, 0.1); "
                f"got {self.linf}."
            )


QUICK = RefinementSettings(images=30, steps=(0, 1), linf=(0.05,), attack_steps=10, expectation=2, votes=4)
FULL = RefinementSettings(images=300, steps=(0, 1, 5, 10), attack_steps=40, expectation=10)


def refinement_section(subject: Subject, settings: RefinementSettings, common: Common, work: Work) -> Section:
    """Accuracy after k sampling steps: on clean images, under the adaptive attack, under attacks on the plain model.

    For each K of `steps`: `refined/K/accuracy`; `refined/K/pgd_linf/EPS`, projected gradient descent through the
    sampling; and, but for K = 0, `refined/K/transfer_linf/EPS`, the attack on the plain classifier carried over, which
    is part of what the paper measured, and `refined/K/worst_linf/EPS`, the share that withstands both: each is an upper
    bound, and this lowest one is the number to quote. Where transfer alone breaks significantly more images than the
    attack that knows of the sampling, gradients mislead that attack, and `black-box-beats-white-box` says so.

    The attack ascends log sum_{j != y} exp f_j - f_y of the averaged logits, which does not saturate, from a uniform
    start in the ball, by sign steps of 2.5 eps / attack_steps (Madry et al., ICLR 2018): once by the exact gradient
    through the sampling, which a kernel that clamps to the box masks, and once straight through (`refined_logits`). Of
    the two last iterates the one that is worse under the attacker's noise counts, and is classified with fresh noise.
    An image wrong at one radius, 0 included, is broken at every larger one.

    The kernel is the model's own, from `subject.chains`. Without chains or a box the section is empty.
    """
    box = subject.data.box
    if subject.chains is None or box is None:
        lacks = "the model has no sampler" if subject.chains is None else "the inputs are vectors without a box"
        return Section([], {}, {}, [], [f"Refinement not measured: {lacks}."], {})
    chosen = subset(len(subject.data.test), settings.images, common.seed, "refinement")
    x = to_box(subject.data.test.inputs[chosen]).to(subject.device)
    y = subject.data.test.labels[chosen].to(subject.device)
    if not _noisy(subject, subject.chains.sampler, x[: common.batch_size], common.seed):
        settings = replace(settings, expectation=1, votes=1)  # one draw stands for all
    task = _Task(subject, settings, common, subject.chains.sampler, box, x, y)
    section = Section([], {"steps": list(settings.steps), "images": len(x)}, {}, [], [], {})
    if reason := _second_derivative(task):
        task = task._replace(gradients=("straight",))
        section.notes.append(f"Refinement: attacked straight through alone; there is no second derivative: {reason}")
    if task.sampler.init(x[:1], energy_gradient(subject.model)).grad is not None:  # kept for a Metropolis test
        section.notes.append("Refinement: the attack's gradient holds what the sampler accepted and rejected fixed.")
    plain: dict[float, Float[np.ndarray, "n ..."]] = {}
    curves: dict[str, dict[str, Any]] = {"curves": {}, "transfer": {}, "worst": {}}
    for k in settings.steps:
        work.say(f"refinement: {k} steps, {len(settings.linf)} radii, {len(x)} images")
        clean = work.memo(f"refinement-{k}", partial(_right, task, k, x, y, "clean"))["right"]
        right, carried = [clean], [clean]
        for eps in settings.linf:
            found = work.memo(f"refinement-{k}-{eps:g}", partial(_attacked, task, k, eps, right[-1], plain.get(eps)))
            right.append(right[-1] & found["right"])
            if k == 0:
                plain[eps] = found["moved"]
            else:
                carried.append(carried[-1] & found["transfer"])
                section.warnings.extend(_beaten(f"refined/{k} at {eps:g}", right[-1], carried[-1]))
            if (stuck := int((right[-1] & found["blind"]).sum())) > 0:
                seen = f"{stuck} of the {len(x)} images stand where the attack met a gradient of zero (or none)."
                section.warnings.append(Warned("zero-gradient", f"refined/{k} at {eps:g}: {seen}"))
        curves["curves"][str(k)] = _report(section, f"refined/{k}", "pgd_linf", settings.linf, right)
        if k > 0:
            worst = [own & other for own, other in zip(right, carried, strict=True)]
            curves["transfer"][str(k)] = _report(section, f"refined/{k}", "transfer_linf", settings.linf, carried)
            curves["worst"][str(k)] = _report(section, f"refined/{k}", "worst_linf", settings.linf, worst)
    section.figures.update(curves)
    return section


class _Task(NamedTuple):
    """What every measurement needs; x (n, ...) and y (n,) are the chosen images, on the model's device."""

    subject: Subject
    settings: RefinementSettings
    common: Common
    sampler: Sampler
    box: Box
    x: Tensor
    y: Tensor
    gradients: tuple[Gradient, ...] = ("exact", "straight")


def _noisy(subject: Subject, sampler: Sampler, x: Float[Tensor, "b ..."], seed: int) -> bool:
    """Whether two streams lead to different points."""
    streams = [subject.generator(seed, "refinement", "noisy", i) for i in range(2)]
    with torch.no_grad():
        first, second = (refined_logits(subject.model, sampler, x, 1, 1, rng) for rng in streams)
    return not torch.equal(first, second)


def _attacked(
    task: _Task, k: int, eps: float, standing: Bool[np.ndarray, " n"], plain: Float[np.ndarray, "n ..."] | None
) -> Arrays:
    """Attack what is `standing`; on the plain classifier everything, because transfer is tried on all images."""
    rows = np.flatnonzero(standing if k > 0 else np.ones_like(standing))
    moved, stuck = _attack(task, k, eps, task.x[rows], task.y[rows])
    right, blind = np.zeros_like(standing), np.zeros_like(standing)
    right[rows] = _right(task, k, moved, task.y[rows], f"{eps:g}")["right"]
    blind[rows] = stuck.cpu().numpy()
    found: Arrays = {"right": right, "blind": blind}
    if plain is None:
        return {**found, "moved": moved.cpu().numpy()}
    carried = torch.from_numpy(plain).to(task.x.device)
    return {**found, "transfer": _right(task, k, carried, task.y, f"transfer {eps:g}")["right"]}


def _attack(
    task: _Task, k: int, eps: float, x: Float[Tensor, "b ..."], y: Int[Tensor, " b"]
) -> tuple[Float[Tensor, "b ..."], Bool[Tensor, " b"]]:
    """Where the attack ends, and which images had on the way a gradient of zero, whichever way it was taken."""
    draws = task.settings.expectation if k > 0 else 1
    found = [(x[:0], y[:0] > 0)]
    # The graph of k steps is kept at once, for every draw.
    for position, part in _parts(len(x), task.common.batch_size // (draws * (k + 1))):
        rng = task.subject.generator(task.common.seed, "refinement", "attack", k, f"{eps:g}", position)
        found.append(_strongest(task, k, eps, x[part], draws, y[part], rng))
    moved, blind = zip(*found, strict=True)
    return torch.cat(moved), torch.cat(blind)


def _strongest(
    task: _Task, k: int, eps: float, x: Float[Tensor, "b ..."], draws: int, y: Int[Tensor, " b"], rng: torch.Generator
) -> tuple[Float[Tensor, "b ..."], Bool[Tensor, " b"]]:
    """Climb by each kind of gradient from one start; of each image keep the end that the attacker thinks is worst."""
    radius, steps = to_box_radius(eps, task.box), task.settings.attack_steps
    lower, upper = ((x + side * radius).clamp(*task.box) for side in (-1, 1))
    unit = torch.rand(x.shape, generator=rng, device=x.device, dtype=x.dtype)
    start = (x + radius * (2 * unit - 1)).clamp(lower, upper)
    best, highest, blind = start, torch.full(y.shape, -math.inf, device=x.device), torch.ones_like(y, dtype=torch.bool)
    for gradient in task.gradients if k > 0 else task.gradients[:1]:
        against = partial(_odds_against, task, k, draws, y, rng, gradient)
        end, stuck = climb(against, start, lower, upper, steps=steps, step_size=STEP * radius / steps)
        with torch.no_grad():
            reached = _odds_against(task, k, draws, y, rng, "none", end)
        best = torch.where((reached > highest).view(-1, *[1] * (x.ndim - 1)), end, best)
        highest, blind = torch.maximum(highest, reached), blind & stuck
    return best, blind


def _odds_against(
    task: _Task, k: int, draws: int, y: Int[Tensor, " b"], rng: torch.Generator, gradient: Gradient, x: Tensor
) -> Float[Tensor, " b"]:
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
        return log_odds_loss(refined_logits(task.subject.model, task.sampler, x, k, draws, rng, gradient=gradient), y)


def _right(task: _Task, k: int, x: Float[Tensor, "b ..."], y: Int[Tensor, " b"], purpose: str) -> Arrays:
    """Which inputs the refined classifier gets right, with noise that no attacker has seen."""
    votes = task.settings.votes if k > 0 else 1
    right = [y[:0] > 0]
    with torch.no_grad():
        for position, part in _parts(len(x), task.common.batch_size // votes):
            rng = task.subject.generator(task.common.seed, "refinement", "votes", k, purpose, position)
            logits = refined_logits(task.subject.model, task.sampler, x[part], k, votes, rng)
            right.append(logits.argmax(dim=1) == y[part])
    return {"right": torch.cat(right).cpu().numpy()}


def _second_derivative(task: _Task) -> str:
    """Why the network cannot be differentiated twice, as compiled ones cannot; empty where it can."""
    rng = task.subject.generator(task.common.seed, "refinement", "probe")
    x, y = task.x[:1], task.y[:1]
    try:
        climb(partial(_odds_against, task, 1, 1, y, rng, "exact"), x, x, x, steps=1, step_size=1.0)
    except RuntimeError as error:
        return str(error).partition("\n")[0] or type(error).__name__
    return ""


def _beaten(where: str, adaptive: Bool[np.ndarray, " n"], transfer: Bool[np.ndarray, " n"]) -> Iterator[Warned]:
    """One-sided exact sign test on the images that one of the attacks breaks and the other does not."""
    missed, own = int((adaptive & ~transfer).sum()), int((transfer & ~adaptive).sum())
    p = binomtest(missed, max(missed + own, 1), 0.5, alternative="greater").pvalue
    if p < SIGNIFICANT:
        text = f"{where}: {missed} images fall to the transferred attack alone, {own} to the adaptive one alone"
        yield Warned("black-box-beats-white-box", f"{text} (exact sign test, p = {p:.2g}).")


def _report(
    section: Section, prefix: str, kind: str, radii: Sequence[float], right: list[Bool[np.ndarray, " n"]]
) -> dict[str, list[float]]:
    """Add one result and its examples per radius; returns the curve, clean accuracy first."""
    names = [f"{prefix}/accuracy", *(f"{prefix}/{kind}/{eps:g}" for eps in radii)]
    every = [exact_proportion(name, int(row.sum()), len(row)) for name, row in zip(names, right, strict=True)]
    section.results.extend(result for result in every if result.name not in section.examples)
    section.examples.update(zip(names, right, strict=True))
    return Curve([0.0, *radii], [r.value for r in every], [r.low for r in every], [r.high for r in every])._asdict()


def _parts(n: int, size: int) -> list[tuple[int, slice]]:
    size = max(size, 1)
    return [(start, slice(start, start + size)) for start in range(0, n, size)]
