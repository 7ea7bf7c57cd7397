"""What does the classifier find convincing? Inputs made from noise until the model is sure of a class.

Distal adversarials (Schott et al., ICLR 2019; JEM, Grathwohl et al., ICLR 2020, section 5.3): a climb up p(y|x) that
starts far from all data. A model that knows what it has not seen either stays unsure or ends at something that shows
the class; in any case log p(x) should tell the result from test inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from jemstone.data.dataset import to_box_radius
from jemstone.errors import ConfigError, DataError
from jemstone.evaluation.detection import auroc
from jemstone.evaluation.forward import in_batches
from jemstone.evaluation.histograms import counts
from jemstone.evaluation.intervals import Result, bootstrap_two, bounded, exact_proportion
from jemstone.evaluation.section import Arrays, Common, Picture, Section, Subject, Warned, Work
from jemstone.sampling.initial import STANDARDISED_BOX, uniform
from jemstone.training.adversarial import log_odds_loss

BINS = 20
COLUMNS = 10
ROWS = 5


@dataclass(frozen=True)
class DistalSettings:
    """`images` starts, spread evenly over the classes; `steps` of `step_size` in every pixel, among [0, 1] pixels.

    An input is convincing where p(y|x) > `confidence`. `steps` * `step_size` should be well above 1: then any start
    can reach any point of the box.
    """

    images: int = 100
    steps: int = 200
    step_size: float = 0.01
    confidence: float = 0.9

    def __post_init__(self) -> None:
        """Raises ConfigError for a count below 1, a step that is not in (0, 1], or a confidence not in (0, 1)."""
        for field in ("images", "steps"):
            if not getattr(self, field) >= 1:
                raise ConfigError(f"DistalSettings.{field} must be at least 1, got {getattr(self, field)}.")
        if not 0 < self.step_size <= 1:
            raise ConfigError(
                f"DistalSettings.step_size belongs to [0, 1] pixels and must be in (0, 1], got {self.step_size}; "
                "0.01 crosses the range of a pixel in 100 steps."
            )
        if not 0 < self.confidence < 1:
            raise ConfigError(f"DistalSettings.confidence is a probability in (0, 1), got {self.confidence}; try 0.9.")


QUICK = DistalSettings(images=50, steps=50, step_size=0.04)
FULL = replace(DistalSettings(), images=1000)


def climb(
    score: Callable[[Tensor], Tensor],
    x: Float[Tensor, "b ..."],
    lower: Float[Tensor, "b ..."],
    upper: Float[Tensor, "b ..."],
    *,
    steps: int,
    step_size: float,
) -> tuple[Float[Tensor, "b ..."], Bool[Tensor, " b"]]:
    """`steps` times x' = clamp(x + step_size sign(grad score(x)), lower, upper), all in the units of x.

    `score` maps (b, ...) to (b,), each row of its own. Returns the last iterate, detached, and which rows had at some
    step a gradient that was exactly zero or not finite: there they stood still.
    """
    blind = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for _ in range(steps):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            # A model that cuts the path from its input has gradient 0; without the last term it would be an error.
            (grad,) = torch.autograd.grad(score(x).sum() + 0 * x.sum(), x)
        rows = grad.flatten(1)
        stuck = (rows == 0).all(dim=1) | ~rows.isfinite().all(dim=1)
        direction = grad.sign().masked_fill(stuck.view(-1, *[1] * (x.ndim - 1)), 0)
        x = (x.detach() + step_size * direction).clamp(lower, upper)
        blind |= stuck
    return x.detach(), blind


def distal_section(subject: Subject, settings: DistalSettings, common: Common, work: Work) -> Section:
    """Climb from uniform noise in the box to p(y|x); how often it convinces, and whether log p(x) sees through it.

    Results: `distal/convinced`, the share of starts that end with p(y|x) above `confidence`; `distal/auroc`, log p(x)
    of all test inputs (the positives) against that of the inputs made. A plain classifier is measured the same way.

    The climb ascends the log-odds of y by sign steps. Their length means the same in every dimension: `steps` *
    `step_size` is the distance that every single pixel can go, whereas an L2 step would run out of budget as images
    grow. The price is in the pictures: pixels that hardly matter move as far as those that do.

    Vectors have no box: they start in, and are kept within, `STANDARDISED_BOX`, four standard deviations around the
    mean, `step_size` being a share of its width. They get no picture.

    Raises DataError where log p(x) is not finite.
    """
    work.say(f"distal: {settings.images} starts from noise, {settings.steps} steps")
    data = subject.data
    labels = torch.arange(settings.images) % data.num_classes
    starts = range(0, settings.images, common.batch_size)
    made = [
        work.memo(f"distal-{i}", partial(_climbed, subject, settings, common, labels[i : i + common.batch_size], i))
        for i in starts
    ]
    x, probability, blind, outside = (
        np.concatenate([part[key] for part in made]) for key in ("x", "probability", "blind", "log_density")
    )
    test = work.memo("distal-test", partial(_log_density, subject, data.test.inputs, common))["log_density"]
    if not (np.isfinite(test).all() and np.isfinite(outside).all()):
        raise DataError("distal: log p(x) is not finite on a test input or on one made from noise; check the logits.")

    convinced = probability > settings.confidence
    results = [
        exact_proportion("distal/convinced", int(convinced.sum()), len(convinced)),
        _area(test, outside, common),
    ]
    figures = {
        "probability": _histogram(np.linspace(0, 1, BINS + 1), {"counts": probability}),
        "log_density": _histogram(_edges(test, outside), {"test": test, "distal": outside}),
    }
    warnings, notes, pictures = [], [], {}
    if (stuck := int((blind & ~convinced).sum())) > 0:
        text = f"distal: {stuck} of {len(blind)} starts met a gradient of zero (or none) and did not convince."
        warnings.append(Warned("zero-gradient", text))
    if data.box is None:
        low, high = STANDARDISED_BOX
        notes.append(f"Distal inputs: vectors have no box; they were kept within [{low:g}, {high:g}] deviations.")
    elif len(data.input_shape) == 3:
        pictures["distal"] = _picture(torch.from_numpy(x), probability, data.class_names, settings)
    return Section(results, figures, {}, warnings, notes, pictures)


def _climbed(
    subject: Subject, settings: DistalSettings, common: Common, labels: Int[Tensor, " b"], position: int
) -> Arrays:
    box = subject.data.box or STANDARDISED_BOX
    y = labels.to(subject.device)
    x = uniform(subject.data.input_shape, box)(y, subject.generator(common.seed, "distal", position))
    x, blind = climb(
        lambda x: -log_odds_loss(subject.model(x), y),
        x,
        torch.full_like(x, box[0]),
        torch.full_like(x, box[1]),
        steps=settings.steps,
        step_size=to_box_radius(settings.step_size, box),
    )
    with torch.no_grad():
        logits = subject.model(x).cpu().double()
    probability = logits.softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
    made = {"x": x.cpu().numpy(), "probability": probability.numpy(), "blind": blind.cpu().numpy()}
    return {**made, **_log_density(subject, x, common)}


def _log_density(subject: Subject, inputs: Shaped[Tensor, "n ..."], common: Common) -> Arrays:
    """In the model's precision on both sides: rounding must not tell apart what is equal."""
    return {"log_density": in_batches(lambda model, x: model.log_density(x), subject.model, inputs, common.batch_size)}


def _area(inside: Float[np.ndarray, " m"], outside: Float[np.ndarray, " n"], common: Common) -> Result:
    area = bootstrap_two("distal/auroc", auroc, inside, outside, seed=common.seed, resamples=common.resamples)
    # Samples that do not overlap order min(m, n) disjoint pairs in the same way.
    return bounded(area, min(len(inside), len(outside)))


def _edges(inside: Float[np.ndarray, " m"], outside: Float[np.ndarray, " n"]) -> Float[np.ndarray, " e"]:
    """From the 0.5 % to the 99.5 % quantile of each sample; the end bins hold what lies beyond."""
    ends = np.concatenate([np.quantile(values, (0.005, 0.995)) for values in (inside, outside)])
    low, high = float(ends.min()), float(ends.max())
    return np.linspace(low, high, BINS + 1) if high > low else np.linspace(low - 0.5, low + 0.5, BINS + 1)


def _histogram(edges: Float[np.ndarray, " e"], samples: dict[str, Float[np.ndarray, " _"]]) -> dict[str, Any]:
    return {"edges": edges.tolist(), **{name: counts(values, edges) for name, values in samples.items()}}


def _picture(
    x: Float[Tensor, "n c h w"],
    probability: Float[np.ndarray, " n"],
    class_names: Sequence[str],
    settings: DistalSettings,
) -> Picture:
    """One class per column; example i is of class i modulo the number of classes."""
    classes = len(class_names)
    columns = min(classes, COLUMNS, len(x))
    rows = max(1, min(len(x) // classes, ROWS))
    shown = [row * classes + column for row in range(rows) for column in range(columns)]
    reached = probability[shown].reshape(rows, columns).mean(axis=0)
    means = ", ".join(f"{name} {value:.2f}" for name, value in zip(class_names[:columns], reached, strict=True))
    caption = (
        f"Starts from noise: uniform, then {settings.steps} sign steps of {settings.step_size:g} up p(y|x), one class "
        f"per column. p(y|x) reached, mean of the column: {means}."
    )
    return Picture(x[shown], caption, columns)
