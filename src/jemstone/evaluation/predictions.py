"""How well p(y|x) predicts, and how far its confidence can be trusted, before and after temperature scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax

from jemstone.data import Dataset
from jemstone.data.dataset import Split
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError, DataError
from jemstone.evaluation.calibration import (
    classwise_ece,
    ece,
    ece_equal_mass,
    mce,
    reliability,
    reliability_equal_mass,
)
from jemstone.evaluation.classification import accuracy, brier, nll
from jemstone.evaluation.forward import in_batches
from jemstone.evaluation.intervals import Result
from jemstone.evaluation.sanity import require_classes, require_test_split, sanity_warnings
from jemstone.evaluation.section import Arrays, Common, Section, Subject, Work
from jemstone.evaluation.temperature import temperature
from jemstone.temperature import BOUNDS


@dataclass(frozen=True)
class CalibrationSettings:
    """`bins` of every binned error; `temperature_resamples`, the fits behind the interval of T."""

    bins: int = 15
    temperature_resamples: int = 200

    def __post_init__(self) -> None:
        """Raises ConfigError for a count below 1."""
        for name in ("bins", "temperature_resamples"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"CalibrationSettings.{name} must be at least 1, got {getattr(self, name)}.")


QUICK = CalibrationSettings(temperature_resamples=50)
FULL = CalibrationSettings()


def calibration_section(subject: Subject, settings: CalibrationSettings, common: Common, work: Work) -> Section:
    """Results `accuracy`, `nll`, `brier`, `ece`, `ece_equal_mass`, `mce`, `classwise_ece` of the whole test split; then
    `temperature`, fitted on the validation split, and what it makes of the test split, `scaled/nll` and so on.

    Per test example: `correct`, `confidence`, `nll`, `brier`, and `scaled/confidence`, `scaled/nll`, `scaled/brier`.
    Raises DataError as `test_logits` does, and for logits that are not finite on the validation split.
    """
    model, data = subject.model, subject.data
    work.say(f"logits of {len(data.test)} test inputs")
    logits = work.memo("calibration-test", lambda: {"logits": test_logits(model, data, common.batch_size)})["logits"]
    labels = data.test.labels.cpu().numpy()
    results = [accuracy(logits, labels), *_scores(logits, labels, settings, common)]
    examples = _examples(logits, labels)
    figures: dict[str, Any] = {
        "reliability": dict(reliability(logits, labels, settings.bins)),
        "reliability_equal_mass": dict(reliability_equal_mass(logits, labels, settings.bins)),
        "scaled": None,
        "temperature": None,
    }
    fitted, notes = _temperature(subject, settings, common, work)
    if fitted is not None:
        scaled = logits / fitted.value
        results.append(fitted)
        results += [
            result._replace(name=f"scaled/{result.name}") for result in _scores(scaled, labels, settings, common)
        ]
        cooled = _examples(scaled, labels)
        examples |= {f"scaled/{name}": cooled[name] for name in ("confidence", "nll", "brier")}
        figures["scaled"] = dict(reliability(scaled, labels, settings.bins))
        figures["temperature"] = fitted.value
    return Section(results, figures, examples, sanity_warnings(subject), notes, {})


def test_logits(model: EnergyClassifier, data: Dataset, batch_size: int) -> Float[np.ndarray, "n k"]:
    """Logits of the test split, after making sure that they mean something.

    Raises DataError for a test split that is empty or not labelled throughout, a model with another number of classes,
    and logits that are not finite.
    """
    require_test_split(data)
    return _logits(model, data, data.test, "test", batch_size)


test_logits.__test__ = False  # type: ignore[attr-defined]  # by its name, pytest would take it for a test


def _logits(
    model: EnergyClassifier, data: Dataset, split: Split, name: str, batch_size: int
) -> Float[np.ndarray, "n k"]:
    logits = in_batches(lambda model, x: model(x), model, split.inputs, batch_size)
    require_classes(logits.shape[1], data)
    bad = int((~np.isfinite(logits).all(axis=1)).sum())
    if bad:
        raise DataError(f"The model's logits are not finite on {bad} of {len(split)} {name} inputs of {data.name!r}.")
    return logits


def _scores(
    logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], settings: CalibrationSettings, common: Common
) -> list[Result]:
    seed, resamples = common.seed, common.resamples
    proper = [measure(logits, labels, seed=seed, resamples=resamples) for measure in (nll, brier)]
    binned = [
        measure(logits, labels, bins=settings.bins, seed=seed, resamples=resamples)
        for measure in (ece, ece_equal_mass, mce, classwise_ece)
    ]
    return [*proper, *binned]


def _examples(logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"]) -> Arrays:
    """What `nll` and `brier` are means of, and what accuracy and calibration error are made from."""
    log_p = log_softmax(logits, axis=1)
    p = np.exp(log_p)
    hit = np.arange(p.shape[1]) == labels[:, None]
    return {
        "correct": logits.argmax(axis=1) == labels,
        "confidence": p.max(axis=1),
        "nll": -log_p[hit],
        "brier": ((p - hit) ** 2).sum(axis=1),
    }


def _temperature(
    subject: Subject, settings: CalibrationSettings, common: Common, work: Work
) -> tuple[Result | None, list[str]]:
    """T with its interval, or a note that says why there is none."""
    data, split = subject.data, subject.data.validation
    without = "Temperature scaling left out: "
    if len(split) == 0:
        return None, [f"{without}there is no validation split to fit T on."]
    if not bool(((split.labels >= 0) & (split.labels < data.num_classes)).all()):
        return None, [f"{without}the validation split is not labelled throughout."]
    work.say(f"temperature on {len(split)} validation inputs")

    def make() -> Arrays:
        logits = _logits(subject.model, data, split, "validation", common.batch_size)
        labels = split.labels.cpu().numpy()
        fitted = temperature(logits, labels, seed=common.seed, resamples=settings.temperature_resamples)
        return {"temperature": np.array([fitted.value, fitted.low, fitted.high])}

    value, low, high = work.memo("calibration-temperature", make)["temperature"].tolist()
    if value in BOUNDS:
        better = "colder" if value == BOUNDS[0] else "hotter"
        return None, [
            f"{without}the likelihood of the {len(split)} validation examples has no maximum in T; {better} is always "
            f"better, up to the bound {value:g} of the search."
        ]
    fitted = Result("temperature", value, low, high, len(split))
    ends = [f"{end:g}" for end in (low, high) if end in BOUNDS]
    if not ends:
        return fitted, []
    return fitted, [
        "Temperature: a resample of validation examples without an error has no best T; the interval ends at "
        f"{' and '.join(ends)} only because the search does."
    ]
