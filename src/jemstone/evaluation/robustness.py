"""Accuracy under attack, white-box and black-box, and whether the attacks can be believed.

Radii belong to images in [0, 1], whatever range the model works in. Accuracy under an attack is an upper bound on
robust accuracy: a stronger attack can only lower it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from jemstone.data.dataset import to_box_radius
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError, MissingExtra
from jemstone.evaluation import attacks, masking
from jemstone.evaluation.attacks import Breaks, Norm, ascending, pgd_breaks, right, to_attack
from jemstone.evaluation.autoattack import STANDARD, autoattack, members, square
from jemstone.evaluation.forward import frozen
from jemstone.evaluation.intervals import Result, exact_proportion
from jemstone.evaluation.section import Arrays, Common, Picture, Section, Subject, Work, subset
from jemstone.rng import generator

NAMES: dict[Norm, str] = {"linf": "L-infinity", "l2": "L2"}
SHOWN = 10
"""Images in the picture."""
LEFT_OUT = {
    "foolbox": "Robustness not measured.",
    "pyautoattack": "AutoAttack not measured, and the black box is random noise in place of Square.",
}


class Curve(NamedTuple):
    """Accuracy over radius: `eps` in [0, 1] pixels, starting with the clean 0; exact 95 % interval [`low`, `high`]."""

    eps: list[float]
    accuracy: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class RobustnessSettings:
    """What is attacked, how hard, and how far; radii in [0, 1] pixels, and any tuple of them may be empty.

    Attributes:
        images: test images that PGD attacks, drawn by the seed; AutoAttack and the black box take the first of them.
        steps: PGD steps.
        restarts: independent random starts of PGD; an image that one of them breaks is broken.
        linf: radii of PGD in L-infinity.
        l2: radii of PGD in L2.
        autoattack_images: at most so many images for AutoAttack; 0 leaves it out.
        autoattack_linf: its radii in L-infinity.
        autoattack_l2: its radii in L2.
        black_box_images: at most so many images for the black box; 0 leaves it out.
        black_box_queries: forward passes that it has per image.
        black_box_linf: its radius, at which it is compared with PGD.
        huge_linf: a radius that no model survives: 0.5 turns every image grey.
    """

    images: int = 300
    steps: int = 40
    restarts: int = 5
    linf: tuple[float, ...] = (0.01, 0.03, 0.05, 0.1, 0.15, 0.2)
    l2: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5, 2.0)
    autoattack_images: int = 100
    autoattack_linf: tuple[float, ...] = (0.03,)
    autoattack_l2: tuple[float, ...] = (0.5,)
    black_box_images: int = 100
    black_box_queries: int = 1000
    black_box_linf: float = 0.1
    huge_linf: float = 0.5

    def __post_init__(self) -> None:
        """Raises ConfigError for a count below its minimum or a radius that is not positive and finite."""
        least = {"images": 1, "steps": 1, "restarts": 1, "autoattack_images": 0, "black_box_images": 0}
        for field, minimum in (least | {"black_box_queries": 1}).items():
            if not getattr(self, field) >= minimum:
                raise ConfigError(f"RobustnessSettings.{field} must be at least {minimum}, got {getattr(self, field)}.")
        for field in ("linf", "l2", "autoattack_linf", "autoattack_l2", "black_box_linf", "huge_linf"):
            value = getattr(self, field)
            try:
                ascending(value if isinstance(value, tuple) else (value,))
            except ConfigError as error:
                raise ConfigError(f"RobustnessSettings.{field}: {error}") from None


QUICK = RobustnessSettings(restarts=1, autoattack_images=0, black_box_images=50, black_box_queries=200)
FULL = RobustnessSettings(images=1000, steps=100, restarts=10, autoattack_images=1000, black_box_queries=5000)


def pgd_accuracy(
    model: EnergyClassifier,
    inputs: Tensor,
    labels: Int[Tensor, " n"],
    *,
    norm: Norm,
    eps: Sequence[float],
    box: tuple[float, float],
    steps: int = 40,
    restarts: int = 1,
    seed: int = 0,
    batch_size: int = 256,
) -> tuple[list[Result], Curve]:
    """Share of inputs (n, ...) still classified correctly under PGD, per radius: results `pgd_NORM/EPS` and the curve.

    `restarts` random starts, each with `steps` steps of 2.5 eps / steps (Madry et al.), projected onto the ball and
    the box; the last iterates count. An input that is misclassified at one radius, 0 included, counts as broken at
    every larger one, where the same perturbation is admissible: the curve cannot rise. Deterministic given seed and
    batch size; the global random state is left alone. The model is attacked in evaluation mode and keeps its gradients
    and modes. What is ascended is `training.adversarial.log_odds_loss`.

    Raises MissingExtra without foolbox, ConfigError for a radius that is not positive, DataError for inputs off the
    box or labels that do not fit.
    """
    radii = ascending(eps)
    x, y = to_attack(inputs, labels, box), labels.cpu()
    with frozen(model):
        breaks = pgd_breaks(model, norm, box=box, steps=steps, restarts=restarts, seed=seed, batch_size=batch_size)
        standing = attacks.standing_under(breaks, right(model, x, y, batch_size), x, y, radii)
    return measured(f"pgd_{norm}", radii, standing)


def measured(prefix: str, radii: Sequence[float], standing: Bool[Tensor, "rows n"]) -> tuple[list[Result], Curve]:
    """Results `prefix/EPS` and the curve, of which inputs stand: row 0 clean, then one row per radius."""
    every = [
        exact_proportion(f"{prefix}/{eps:g}", int(row.sum()), len(row))
        for eps, row in zip([0.0, *radii], standing, strict=True)
    ]
    curve = Curve([0.0, *radii], [r.value for r in every], [r.low for r in every], [r.high for r in every])
    return every[1:], curve


def robustness_section(subject: Subject, settings: RobustnessSettings, common: Common, work: Work) -> Section:
    """PGD, AutoAttack and a black box on the same test images, and the checks of `masking`.

    Results `pgd_NORM/EPS`, `autoattack_NORM/EPS`, `black_box_linf/EPS`: shares of images that stand, with exact
    intervals; examples of the same names say which, in an order that data and seed decide. What an attack breaks at one
    radius is broken at every larger one of the same attack. Vectors have no pixels: nothing is measured, and noted.
    """
    section = Section([], {}, {}, [], [], {})
    if subject.data.box is None:
        section.notes.append("Robustness not measured: the inputs are vectors, and radii in pixels mean nothing.")
        return section
    for name in ("foolbox", "pyautoattack"):
        if find_spec(name) is None:
            section.notes.append(f"{LEFT_OUT[name]} {MissingExtra(name, 'attacks')}")
    if find_spec("foolbox") is None:
        return section
    chosen = subset(len(subject.data.test), settings.images, common.seed, "attack")
    # Out of order: the first images, which the dearest attacks are tried on, would be of one class in a sorted file.
    chosen = chosen[torch.randperm(len(chosen), generator=generator(common.seed, "attack", "order"))]
    y = subject.data.test.labels[chosen].cpu()
    x = to_attack(subject.data.test.inputs[chosen], y, subject.data.box)
    clean = right(subject.model, x, y, common.batch_size)
    case = _Case(subject.model, x, y, clean, subject.data.box, settings, common, work)

    missing = masking.gradient_missing(subject.model, x[clean], y[clean], common.batch_size)
    linf = _curves(case, section)
    autoattacked = _autoattacks(case, section, subject.data.num_classes)
    black_box = _black_box(case, section, linf)
    left = _pgd_at(case, "huge", settings.huge_linf, linf, len(x))
    huge = exact_proportion("huge", int(left.sum()), len(x))
    section.warnings.extend(masking.zero_gradient(int(missing.sum()), len(missing)))
    section.warnings.extend(masking.survives_huge_eps(huge, settings.huge_linf))
    section.warnings.extend(masking.small_n({"PGD": len(x), "AutoAttack": autoattacked}))
    section.figures.update(
        black_box=black_box,
        huge=_point(huge, settings.huge_linf),
        zero_gradient=float(missing.float().mean()) if len(missing) else None,
        images=len(x),
    )
    if settings.linf:
        section.pictures["attacked"] = _picture(case)
    return section


class _Case(NamedTuple):
    """The images under attack, on the CPU; `clean` says which are right before any attack."""

    model: EnergyClassifier
    x: Tensor
    y: Tensor
    clean: Tensor
    box: tuple[float, float]
    settings: RobustnessSettings
    common: Common
    work: Work

    def standing(self, name: str, breaks: Breaks, radii: Sequence[float], start: Tensor) -> Tensor:
        """Which of the first len(start) images stand, kept by work.memo: `start`, then one row per radius."""
        n = len(start)
        self.work.say(f"attack: {name} on {n} images")

        def make() -> Arrays:
            return {"standing": attacks.standing_under(breaks, start, self.x[:n], self.y[:n], radii).numpy()}

        return torch.from_numpy(self.work.memo(f"robustness-{name}", make)["standing"])

    @property
    def how(self) -> dict[str, Any]:
        return {"box": self.box, "seed": self.common.seed, "batch_size": self.common.batch_size}

    def pgd(self, norm: Norm) -> Breaks:
        return pgd_breaks(self.model, norm, steps=self.settings.steps, restarts=self.settings.restarts, **self.how)


def _norms(linf: tuple[float, ...], l2: tuple[float, ...]) -> list[tuple[Norm, list[float]]]:
    wanted: dict[Norm, tuple[float, ...]] = {"linf": linf, "l2": l2}
    return [(norm, ascending(radii)) for norm, radii in wanted.items() if radii]


def _add(section: Section, prefix: str, radii: Sequence[float], standing: Bool[Tensor, "rows n"]) -> Curve:
    results, curve = measured(prefix, radii, standing)
    section.results.extend(results)
    section.examples.update({r.name: row.numpy() for r, row in zip(results, standing[1:], strict=True)})
    return curve


def _curves(case: _Case, section: Section) -> dict[float, Tensor]:
    """PGD in both norms; which images stand by L-infinity radius, 0 included."""
    figures = section.figures["curves"] = {}
    linf = {0.0: case.clean}
    for norm, radii in _norms(case.settings.linf, case.settings.l2):
        standing = case.standing(f"pgd-{norm}", case.pgd(norm), radii, case.clean)
        figures[norm] = _add(section, f"pgd_{norm}", radii, standing)._asdict()
        if norm == "linf":
            linf |= dict(zip(radii, standing[1:], strict=True))
    return linf


def _autoattacks(case: _Case, section: Section, classes: int) -> int:
    """AutoAttack in both norms; the number of images that it attacks."""
    figures = section.figures["autoattack"] = {}
    n = min(case.settings.autoattack_images, len(case.x))
    wanted = _norms(case.settings.autoattack_linf, case.settings.autoattack_l2)
    if n == 0 or not wanted:
        section.notes.append(f"AutoAttack left out: {'autoattack_images = 0' if n == 0 else 'no radii'}.")
        return 0
    if find_spec("pyautoattack") is None:
        return 0
    for norm, radii in wanted:
        run = members(classes, norm, (case.x.shape[2], case.x.shape[3]))
        if run != STANDARD:
            section.notes.append(f"AutoAttack in {NAMES[norm]}: the classes or the image size allow {run} only.")
        breaks = attacks.judged(partial(autoattack, norm=norm, classes=classes), case.model, norm, **case.how)
        standing = case.standing(f"autoattack-{norm}", breaks, radii, case.clean[:n])
        figures[norm] = _add(section, f"autoattack_{norm}", radii, standing)._asdict()
    return n


def _black_box(case: _Case, section: Section, linf: dict[float, Tensor]) -> dict[str, float] | None:
    """Square, or random noise where it is missing, on the first images, and PGD at the same radius beside it."""
    s = case.settings
    n = min(s.black_box_images, len(case.x))
    if n == 0:
        section.notes.append("Black-box check left out: black_box_images = 0.")
        return None
    attack = masking.random_search if find_spec("pyautoattack") is None else square
    breaks = attacks.judged(partial(attack, queries=s.black_box_queries), case.model, "linf", **case.how)
    standing = case.standing("black-box", breaks, [s.black_box_linf], case.clean[:n])
    _add(section, "black_box_linf", [s.black_box_linf], standing)
    white = _pgd_at(case, "pgd-beside-black-box", s.black_box_linf, linf, n)
    beaten = masking.black_box_beats_white_box(white, standing[-1], s.black_box_linf, s.black_box_queries)
    section.warnings.extend(beaten)
    return _point(section.results[-1], s.black_box_linf)


def _pgd_at(case: _Case, name: str, eps: float, linf: dict[float, Tensor], n: int) -> Tensor:
    """Which of the first `n` images stand under PGD at L-infinity `eps`; from the curve where it has that radius."""
    below = max(radius for radius in linf if radius <= eps)
    start = linf[below][:n]
    return start if below == eps else case.standing(name, case.pgd("linf"), [eps], start)[-1]


def _point(result: Result, eps: float) -> dict[str, float]:
    return {"eps": eps, "accuracy": result.value, "low": result.low, "high": result.high}


def _picture(case: _Case) -> Picture:
    """Images, the same after PGD, and what was added to them, row by row."""
    radii = ascending(case.settings.linf)
    eps, (low, high) = radii[len(radii) // 2], case.box
    x, y = case.x[:SHOWN], case.y[:SHOWN]
    moved = attacks.pgd(
        case.model, x, y, norm="linf", eps=eps, box=case.box, steps=case.settings.steps, seed=case.common.seed,
        position=("picture",),
    )  # fmt: skip
    added = (low + high) / 2 + (moved - x) / to_box_radius(eps, case.box) * (high - low) / 2
    caption = (
        f"Row 1: test images. Row 2: after PGD within L-infinity {eps:g} of [0, 1] pixels. Row 3: what was added, "
        f"black for -{eps:g}, mid-grey for 0, white for +{eps:g}."
    )
    return Picture(torch.cat([x, moved, added.clamp(low, high)]), caption, columns=len(x))
