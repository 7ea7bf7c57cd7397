"""Why training fails, and which settings change it: one cause and one list of changes for each verdict of the guard.

The mechanisms and the published remedies are those of docs/stability.md; the remedies that recovery itself applies are
in `jemstone.training.treatment`, and where both speak of the same thing they agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jemstone.errors import VERDICTS
from jemstone.training.config import TrainConfig
from jemstone.training.treatment import remedy_at

MEANINGS = {**VERDICTS, "loss_runaway": "the loss grows without bound"}
"""What each verdict says; the last one is the doctor's own, for logs that hold nothing but a loss."""
EARLY = 200
"""Failures up to this step are those of a learning rate that is too large from the start."""


class Change(NamedTuple):
    """Settings of jemstone, without their dashes, and what they do, in words that fit other code too."""

    settings: dict[str, str]
    words: str


WHYS = {
    "non_finite": "A number overflowed, and from then on every weight that it touches is lost. The usual path: the "
    "energy grows steep, chain gradients without a bound throw chains far out of the data's range, and the energy of "
    "such a point is larger than a float can hold. A damaged input or too large a step of the weights do the same.",
    "energy_runaway": "Only the difference of two energies enters the loss, so nothing holds their level. Without an "
    "anchor both drift together, the network's outputs grow, and with them all gradients.",
    "gap_explosion": "The loss rewards pushing the energy of negatives above that of data without a limit; only chains "
    "that run down to where the energy is low set one. When the weights move faster than the chains can follow, "
    "each step makes negatives easier to tell apart, and both energies run away from each other.",
    "gap_explosion, holes": "Chains have found regions of very low energy that hold no data. The loss lifts them, the "
    "network answers with holes elsewhere, and chains fall into those: with too large steps of the weights the holes "
    "grow deeper instead of fewer.",
    "dead_sampler": "Negatives teach something only while chains reach low energies. Too few or too short steps leave "
    "them far above the data: telling them apart is easy, the generative gradient says nothing about the data, and the "
    "energies run apart.",
    "dead_sampler, flat": "The gradient of the energy with respect to the input has vanished: the network is flat "
    "where the chains are (dead units after too large a step, or outputs shrunk to a constant), so they stand still "
    "and the negatives no longer depend on the model.",
    "saturated_chains": "The energy falls towards the border of the box, so chains slide there and stay: they are "
    "extreme pixels and no images, and the model spends its capacity on keeping them away.",
    "buffer_collapse": "All chains have run into the same few low-energy images (or one class). The loss lifts those "
    "few points only, everywhere else the density is unchecked, and the next holes open beside them.",
    "accuracy_collapse": "The generative gradient has outweighed that of the classes, or one step was so large that "
    "what had been learnt is gone. The energies may look well the whole time: they depend on the sum over "
    "classes only.",
    "accuracy_collapse, held out": "The network is right on training batches and wrong in evaluation mode. BatchNorm "
    "in train mode uses the statistics of each batch and hides that its running averages no longer fit; without "
    "BatchNorm it has learnt its training data by heart, or the averaged weights lag behind.",
    "loss_runaway": "The loss of an energy-based model contains the difference of two energies, which has no bound: "
    "growth without end, to either sign, is how energies that run apart or run away look from outside.",
}


def why(verdict: str, reason: str, failed: int, config: TrainConfig | None) -> tuple[str, ...]:
    """The mechanism behind a verdict, then what in the settings points to it. `reason` is the guard's evidence."""
    text = WHYS.get(_variant(verdict, reason), f"This version of jemstone has no words for {verdict!r}.")
    if config is None:
        return (text,)
    weights, chains, optimizer, norm = config.weights, config.chains, config.optimizer, config.network.norm
    hints = []
    if verdict in ("gap_explosion", "energy_runaway", "dead_sampler") and weights.generative and not weights.energy_l2:
        hints.append("Here nothing anchors the energies (weights.energy_l2 is 0).")
        if norm != "none":
            few = f"few chain steps ({chains.steps} here)"
            hints.append(f"Networks with {norm} normalisation and {few} let them run apart readily.")
    if failed <= EARLY and verdict != "buffer_collapse":
        clip = "no clipping" if optimizer.clip_norm == 0 else f"the gradient norm clipped at {optimizer.clip_norm:g}"
        rate = f"{optimizer.name} at {optimizer.learning_rate:g} with {clip}"
        hints.append(f"It came within {EARLY} steps, which points to the learning rate: {rate}.")
    if verdict == "non_finite" and chains.kernel == "langevin" and weights.generative:
        hints.append("Here chain gradients have no bound (chains.kernel langevin).")
    return (text, *hints)


def changes(verdict: str, reason: str, config: TrainConfig | None) -> list[Change]:
    """What to change, the first thing to try first; what the settings have already is left out."""
    found = [make(verdict, config) for make in _CHANGES.get(_variant(verdict, reason), ())]
    kept = []
    for change in found:
        settings = {} if change is None else {k: v for k, v in change.settings.items() if not _set(config, k, v)}
        if change is not None and (settings or not change.settings):
            kept.append(change._replace(settings=settings))
    return kept


def _set(config: TrainConfig | None, name: str, value: str) -> bool:
    """Whether a setting already has this value."""
    group, _, field = name.partition(".")
    given = getattr(getattr(config, group), field) if config is not None else None
    same_number = isinstance(given, int | float) and not isinstance(given, bool) and float(value) == given
    return same_number or str(given).lower() == value


def in_words(change: Change, config: TrainConfig | None) -> str:
    """Flags of jemstone and their meaning where the run is ours, else the meaning alone."""
    if config is None or not change.settings:
        return change.words
    return f"{' '.join(f'--{name} {value}' for name, value in change.settings.items())}  ({change.words})"


def _variant(verdict: str, reason: str) -> str:
    if verdict == "dead_sampler" and "stand still" in reason:
        return "dead_sampler, flat"
    if verdict == "gap_explosion" and "in holes" in reason:
        return "gap_explosion, holes"
    if verdict == "accuracy_collapse" and "evaluation mode" in reason:
        return "accuracy_collapse, held out"
    return verdict


def _anchor(verdict: str, config: TrainConfig | None) -> Change | None:
    generative = config is None or config.weights.generative
    settings = {}
    if generative and (config is None or config.weights.energy_l2 < 0.3):
        settings["weights.energy_l2"] = "0.3"
    settings |= {} if config is not None and 0 < config.optimizer.clip_norm <= 1 else {"optimizer.clip_norm": "1"}
    parts = {
        "weights.energy_l2": "an L2 penalty on the energies as their anchor",
        "optimizer.clip_norm": "the gradient norm clipped at 1",
    }
    words = " and ".join(parts[name] for name in settings)
    both = "; on digits this mended such runs at the full learning rate" if len(settings) == 2 else ""
    return Change(settings, words + both) if settings else None


def _slower(verdict: str, config: TrainConfig | None) -> Change | None:
    factor = remedy_at(1, verdict if verdict in VERDICTS else "gap_explosion").learning_rate
    factor = factor if factor < 1 else 0.3
    settings = {"optimizer.learning_rate": f"{factor * config.optimizer.learning_rate:.2g}"} if config else {}
    return Change(settings, f"{factor:g} times the learning rate")


def _clip_weights(verdict: str, config: TrainConfig | None) -> Change | None:
    if config is not None and 0 < config.optimizer.clip_norm <= 1:
        return None
    return Change({"optimizer.clip_norm": "1"}, "the gradient norm clipped at 1: a bad batch then costs one small step")


def _longer_chains(verdict: str, config: TrainConfig | None) -> Change | None:
    if config is None:
        return Change({}, "twice the chain steps, so that negatives can follow")
    if not config.weights.generative:
        return None
    settings = {"chains.steps": str(2 * config.chains.steps)}
    if config.chains.max_steps:
        settings["chains.max_steps"] = str(max(config.chains.max_steps, 2 * config.chains.steps))
    return Change(settings, "twice the chain steps, so that negatives can follow; a step of training costs about twice")


def _informed_start(verdict: str, config: TrainConfig | None) -> Change | None:
    if config is not None and (not config.weights.generative or config.chains.start != "uniform"):
        return None
    return Change({"chains.start": "gaussian"}, "start chains from class Gaussians of the data instead of noise")


def _bound_chains(verdict: str, config: TrainConfig | None) -> Change | None:
    words = "chain gradients clipped at 1 and chains kept inside the box of the data"
    if config is None:
        return Change({}, words)
    chains = config.chains
    if not config.weights.generative or chains.kernel not in ("langevin", "clipped"):
        return None
    bounded = chains.kernel == "clipped" and chains.clip <= 1
    settings = {} if bounded else {"chains.kernel": "clipped", "chains.clip": "1"}
    settings |= {} if chains.clamp else {"chains.clamp": "true"}
    return Change(settings, words) if settings else None


def _fresh_chains(verdict: str, config: TrainConfig | None) -> Change | None:
    words = "start chains anew more often, so that the buffer forgets"
    if config is None:
        return Change({}, words)
    rate = max(0.1, min(1.0, 2 * config.chains.restart_rate))
    return Change({"chains.restart_rate": f"{rate:.3g}"}, words) if config.weights.generative else None


def _balance(verdict: str, config: TrainConfig | None) -> Change | None:
    words = "scale the generative gradient down to the norm of the class term's"
    if config is None:
        return Change({}, words)
    if not (config.weights.class_nll and config.weights.generative) or 0 < config.optimizer.balance <= 1:
        return None
    return Change({"optimizer.balance": "1"}, words)


def _no_batch_norm(verdict: str, config: TrainConfig | None) -> Change | None:
    if config is not None and config.network.norm != "batch":
        return None
    return Change({"network.norm": "group"}, "normalise without statistics of the batch")


def _less_fitting(verdict: str, config: TrainConfig | None) -> Change | None:
    if config is None or config.network.norm == "batch":
        return None
    return Change({"optimizer.weight_decay": "0.0005"}, "weight decay, and augmentation of the labelled stream")


_CHANGES: dict[str, tuple[Callable[[str, TrainConfig | None], Change | None], ...]] = {
    "non_finite": (_bound_chains, _clip_weights, _slower),
    "energy_runaway": (_anchor, _slower),
    "gap_explosion": (_anchor, _slower, _longer_chains),
    "gap_explosion, holes": (_anchor, _slower, _fresh_chains),
    "dead_sampler": (_longer_chains, _anchor, _informed_start, _slower),
    "dead_sampler, flat": (_clip_weights, _slower),
    "saturated_chains": (_bound_chains, _anchor, _slower),
    "buffer_collapse": (_fresh_chains, _slower, _longer_chains),
    "accuracy_collapse": (_clip_weights, _slower, _balance),
    "accuracy_collapse, held out": (_no_batch_norm, _less_fitting),
    "loss_runaway": (_anchor, _slower, _longer_chains),
}
