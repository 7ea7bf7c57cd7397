"""Chains run far longer than in training: do the samples survive, and do the chains agree with each other?

Training chains are short and start anew now and then. Where the model is a density that its chains sample, running on
changes nothing; where samples are an artefact of the start and of the length of the run, energies drift away from those
of the data, samples become alike, or each chain stays where it fell (Nijkamp et al., AAAI 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from jemstone.data.dataset import to_box
from jemstone.energy import energy_gradient, marginal_energy
from jemstone.errors import ConfigError
from jemstone.evaluation.forward import in_batches
from jemstone.evaluation.intervals import Result, bootstrap, bootstrap_two, exact_proportion
from jemstone.evaluation.section import Arrays, Chains, Common, Picture, Section, Subject, Warned, Work, subset
from jemstone.networks.modes import in_mode, statistics_of_negatives
from jemstone.rng import seeded

SEGMENTS = 20
"""Parts of the run that are kept when an evaluation is killed."""
TRACE = 500
"""Draws of each chain's energy, at most, that R-hat is computed from."""
SHOWN = 10
"""Chains in the picture."""
REFERENCE = 256
"""Test inputs, at most, whose mean distance is the unit of diversity."""
BAND = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class LongRunSettings:
    """`chains` run for `factor` times the life of a training chain, and looked at about `points` times on the way."""

    chains: int = 64
    factor: int = 10
    points: int = 41

    def __post_init__(self) -> None:
        """Raises ConfigError for a count below its minimum."""
        for field, minimum in {"chains": 4, "factor": 1, "points": 2}.items():
            if not getattr(self, field) >= minimum:
                raise ConfigError(f"LongRunSettings.{field} must be at least {minimum}, got {getattr(self, field)}.")


QUICK = LongRunSettings(chains=20, factor=2)
FULL = LongRunSettings(chains=256, factor=10)


class _Plan(NamedTuple):
    """When what is recorded; all in kernel steps since the start."""

    life: int
    bounds: list[int]
    times: list[int]
    shown: list[int]
    traced: range

    @classmethod
    def make(cls, life: int, settings: LongRunSettings) -> _Plan:
        total = life * settings.factor
        shown = sorted({t for t in (0, life, 2 * life, 5 * life, total) if t <= total})
        spaced = np.geomspace(1, total, settings.points).round().astype(int).tolist()
        half = total // 2
        traced = range(half, total, math.ceil((total - half) / TRACE))
        bounds = np.linspace(0, total, min(SEGMENTS, total) + 1).round().astype(int).tolist()
        return cls(life, bounds, sorted({*shown, *spaced}), shown, traced)


def long_run_section(subject: Subject, settings: LongRunSettings, common: Common, work: Work) -> Section:
    """Fresh chains on E(x), run for `factor` x `life` steps of the training kernel from the training start.

    Results: `long_run/energy_drift`, mean energy at the end minus at `life` (nats; bootstrap over chains);
    `long_run/diversity`, mean distance (L2) between two chains at the end over that between two test inputs
    (bootstrap over both); `long_run/survived`, share of chains that end with an energy within the 0.5 % and 99.5 %
    quantiles of the test inputs' energies (exact interval). Chains that ended in numbers that are not finite have not
    survived, and where there is one the other two results are left out.

    Where a network keeps separate statistics of negatives, chains see these, as in training, and test inputs those of
    data. The randomness of a chain is derived anew for each segment, so a resumed run is bitwise the uninterrupted one.
    """
    if subject.chains is None:
        return Section([], {}, {}, [], ["No long-run chains: the model has no sampler."], {})
    plan = _Plan.make(subject.chains.life, settings)
    inputs = subject.data.test.inputs
    of_data = in_batches(lambda model, x: model.energy(x), subject.model, inputs, common.batch_size)
    if not np.isfinite(of_data).all():
        return Section([], {}, {}, [], ["No long-run chains: energies of test inputs are not finite."], {})
    x, recorded = _chains(subject, subject.chains, plan, settings, common, work)
    reference = distances(to_box(inputs[subset(len(inputs), REFERENCE, common.seed, "long run", "reference")]))
    unit = mean_distance(reference)

    energy, notes = recorded["energy"], []
    finite = np.isfinite(energy).all(axis=1)
    fine = len(energy) if finite.all() else int(finite.argmin())
    if fine < len(energy):
        lost = int((~np.isfinite(energy[-1])).sum())
        where = f"after step {plan.times[fine - 1]}" if fine else "from the start"
        notes.append(f"Energies are not finite {where}: {lost} of {settings.chains} chains end so. Figures stop there.")
    if not unit > 0:
        notes.append("Diversity not measured: it needs test inputs that differ.")
    r_hat = split_r_hat(recorded["trace"].T)
    results = _results(energy, energy[plan.times.index(plan.life)], x, of_data, reference, common)
    figures = {
        "steps": plan.times[:fine],
        "life": plan.life,
        "energy": _band(energy[:fine]),
        "data_energy": {name: values[0] for name, values in _band(of_data[None]).items()},
        "diversity": [float(value) / unit if unit > 0 else None for value in recorded["distance"][:fine]],
        "confidence": recorded["confidence"][:fine].mean(axis=1).tolist(),
        "classes": [len(set(row)) for row in recorded["label"][:fine].tolist()],
        "r_hat": r_hat if math.isfinite(r_hat) else None,
    }
    warnings = _warnings(r_hat, settings.chains, x, subject.data.box)
    pictures = {} if subject.data.box is None else {"long_run": _picture(recorded["shown"], subject.data.box, plan)}
    return Section(results, figures, {}, warnings, notes, pictures)


def split_r_hat(traces: Float[np.ndarray, "chains draws"]) -> float:
    """Split R-hat: sqrt of the pooled over the within-chain variance (Vehtari et al., Bayesian Analysis 2021, eq. 1-4).

    Each chain is cut into halves, so that a common drift counts as well; an odd draw in the middle is left out. Close
    to 1 where chains have forgotten where they started. NaN where all draws are equal or one is not finite, infinite
    where every chain stands still at a value of its own.
    """
    n = traces.shape[1] // 2
    if n < 2 or not np.isfinite(traces).all():
        return math.nan
    halves = np.concatenate([traces[:, :n], traces[:, -n:]])
    if (halves == halves[:, :1]).all():  # asked of the draws, since rounding can leave constants with a variance
        return math.nan if (halves == halves[0, 0]).all() else math.inf
    within = float(halves.var(axis=1, ddof=1).mean())
    between = n * float(halves.mean(axis=1).var(ddof=1))
    return math.sqrt(((n - 1) / n * within + between / n) / within)


def distances(x: Float[Tensor, "n ..."]) -> Float[np.ndarray, "n n"]:
    """L2 distances between all inputs, float64."""
    flat = x.flatten(1)
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").cpu().double().numpy()


def mean_distance(table: Float[np.ndarray, "n n"], rows: Int[np.ndarray, " m"] | None = None) -> float:
    """Mean of a table of distances over pairs of different inputs, among `rows` (default all), which may repeat.

    A resample meets the same input twice; such a pair says nothing about how far two inputs lie apart.
    """
    n = len(table)
    times = np.ones(n) if rows is None else np.bincount(rows, minlength=n)
    pairs = times.sum() ** 2 - np.square(times).sum()
    return float((times[:, None] * times * table).sum() / max(pairs, 1))


def _chains(
    subject: Subject, chains: Chains, plan: _Plan, settings: LongRunSettings, common: Common, work: Work
) -> tuple[Float[Tensor, "n ..."], Arrays]:
    """The end points and everything that was recorded, time first."""
    labels = torch.arange(settings.chains, device=subject.device) % subject.data.num_classes
    x = chains.initial(labels, subject.generator(common.seed, "long run", "start"))
    parts: list[Arrays] = []
    for segment, end in enumerate(plan.bounds[1:]):

        def make(x: Tensor = x, segment: int = segment, end: int = end) -> Arrays:
            work.say(f"long run: {settings.chains} chains to step {end} of {plan.bounds[-1]}")
            return _segment(subject, chains, x, segment, plan, common)

        parts.append(work.memo(f"long-run-segment-{segment:02d}", make))
        x = torch.from_numpy(parts[-1]["x"]).to(subject.device)
    return x.cpu(), {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if key != "x"}


def _segment(
    subject: Subject, chains: Chains, x: Float[Tensor, "n ..."], segment: int, plan: _Plan, common: Common
) -> Arrays:
    begin, end = plan.bounds[segment : segment + 2]
    times = [t for t in plan.times if begin < t <= end or t == begin == 0]
    blocks = []
    with (
        in_mode(subject.model, training=False),
        statistics_of_negatives(subject.model),
        seeded(common.seed, "long run", segment, device=subject.device),
    ):
        for number, block in enumerate(torch.split(x, common.batch_size)):
            rng = subject.generator(common.seed, "long run", segment, number)
            blocks.append(_advance(subject, chains, block, range(begin, end), times, plan.traced, rng))
    found = {key: torch.cat([block[key] for block in blocks], dim=int(key != "x")) for key in blocks[0]}
    seen = found.pop("seen")
    found["shown"] = seen[[t in plan.shown for t in times], :SHOWN]
    arrays = {key: values.numpy() for key, values in found.items()}
    arrays["distance"] = np.array([mean_distance(distances(each)) for each in seen])
    return arrays


def _advance(
    subject: Subject,
    chains: Chains,
    x: Float[Tensor, "b ..."],
    steps: range,
    times: list[int],
    traced: range,
    rng: torch.Generator,
) -> dict[str, Tensor]:
    """Move `x` through `steps`; `x` at the end, the rest (time, chain, ...), on the CPU."""
    energy_grad = energy_gradient(subject.model)
    state = chains.sampler.init(x, energy_grad)
    seen, trace = ([x.cpu()] if 0 in times else []), []
    for step in steps:
        state, info = chains.sampler.step(state, energy_grad, rng)
        if step in traced:  # the info of a step is about the point that it left
            trace.append(info.energy.cpu().double())
        if step + 1 in times:
            seen.append(state.x.cpu())
    with torch.no_grad():
        logits = [subject.model(each.to(subject.device)).cpu() for each in seen]

    def stacked(values: list[Tensor], *shape: int) -> Tensor:
        return torch.stack(values) if values else torch.zeros(0, len(x), *shape)

    return {
        "x": state.x.cpu(),
        "trace": stacked(trace).double(),
        "seen": stacked(seen, *x.shape[1:]),
        "energy": stacked([marginal_energy(each).double() for each in logits]).double(),
        "confidence": stacked([each.double().softmax(dim=1).amax(dim=1) for each in logits]).double(),
        "label": stacked([each.argmax(dim=1) for each in logits]).long(),
    }


def _results(
    energy: Float[np.ndarray, "t n"],
    at_life: Float[np.ndarray, " n"],
    x: Float[Tensor, "n ..."],
    of_data: Float[np.ndarray, " m"],
    reference: Float[np.ndarray, "r r"],
    common: Common,
) -> list[Result]:
    end = energy[-1]
    low, high = np.quantile(of_data, (0.005, 0.995))
    survived = exact_proportion("long_run/survived", int(((end >= low) & (end <= high)).sum()), len(end))
    if not np.isfinite(energy).all():
        return [survived]
    seed, resamples = common.seed, common.resamples
    results = [bootstrap("long_run/energy_drift", np.mean, end - at_life, seed=seed, resamples=resamples)]
    if mean_distance(reference) > 0:
        table = distances(x)

        def ratio(chains: Int[np.ndarray, " n"], inputs: Int[np.ndarray, " r"]) -> float:
            return mean_distance(table, chains) / mean_distance(reference, inputs)

        rows = np.arange(len(table)), np.arange(len(reference))
        diversity = bootstrap_two("long_run/diversity", ratio, *rows, seed=seed, resamples=resamples)
        results.append(diversity._replace(n=len(table)))
    return [*results, survived]


def _band(values: Float[np.ndarray, "t n"]) -> dict[str, list[float]]:
    low, median, high = np.quantile(values, BAND, axis=1)
    return {"median": median.tolist(), "low": low.tolist(), "high": high.tolist()}


def _warnings(r_hat: float, chains: int, x: Float[Tensor, "n ..."], box: tuple[float, float] | None) -> list[Warned]:
    found = []
    if not r_hat <= 1.1:
        if math.isfinite(r_hat):
            seen = f"split R-hat of the energies of {chains} chains over the second half of the run is {r_hat:.3g}"
        else:
            seen = f"the energies of {chains} chains do not move, or are not finite, in the second half of the run"
        found.append(Warned("chains-not-mixed", f"Long run: {seen}."))
    if box is not None:
        outside = float((~((x >= box[0]) & (x <= box[1]))).double().mean())
        if outside > 0.001:
            text = f"Long run: {outside:.1%} of the entries of the end points lie outside {list(box)}."
            found.append(Warned("chains-left-box", text))
    return found


def _picture(shown: Float[np.ndarray, "t n c h w"], box: tuple[float, float], plan: _Plan) -> Picture:
    images = torch.from_numpy(shown).nan_to_num(box[0]).clamp(*box)
    caption = f"The same chains (columns) after {', '.join(map(str, plan.shown))} steps (rows)."
    return Picture(images.flatten(0, 1), caption, columns=shown.shape[1])
