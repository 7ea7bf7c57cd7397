"""figures.json, read part by part: a part that is damaged is left out and named, and does not cost the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

from jemstone.report.values import Floats, finite, floats, mapping, number, texts

T = TypeVar("T")

BANDS = ("value", "low", "high")


class Doubt(NamedTuple):
    """A warning of the evaluation: the section that raised it, its name, what was seen, and what that means."""

    section: str
    name: str
    text: str
    meaning: str


@dataclass(frozen=True)
class Reliability:
    """Confidence bins: b + 1 edges, and b counts, mean confidences, accuracies with intervals (NaN: empty bin)."""

    edges: Floats
    count: Floats
    confidence: Floats
    accuracy: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Histogram:
    """Counts by name in shared bins (b + 1 edges)."""

    edges: Floats
    counts: Mapping[str, Floats]

    def bins(self, name: str) -> tuple[Floats, Floats]:
        """The edges, and the counts called `name`."""
        return self.edges, self.counts[name]


@dataclass(frozen=True)
class ScoreHistogram:
    """Counts of one score in shared bins (b + 1 edges), for the test set and for each out-of-distribution set."""

    edges: Floats
    test: Floats
    ood: Mapping[str, Floats]


@dataclass(frozen=True)
class Curve:
    """Values with intervals over `x`: accuracy under attack over the radius in [0, 1] pixels, or over severities."""

    x: Floats
    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Corruptions:
    """By kind and metric the values at each severity; `clean` by metric, where it was measured."""

    kinds: Mapping[str, Mapping[str, Curve]]
    clean: Mapping[str, float]


@dataclass(frozen=True)
class LongRun:
    """Chains over kernel steps: energies with their 80 % band, those of data, and what else was looked at."""

    steps: Floats
    life: float
    energy: Curve
    data: tuple[float, float, float]
    diversity: Floats
    confidence: Floats
    r_hat: float | None


@dataclass(frozen=True)
class Likelihood:
    """How log Z was found, and log p(x) of both splits; the last three for annealed importance sampling only."""

    method: str
    domain: tuple[float, float]
    test: Histogram
    train: Histogram
    effective_sample_size: float | None = None
    acceptance: Floats = ()
    log_weights: Histogram | None = None


@dataclass(frozen=True)
class Evaluation:
    """What figures.json says. `measured` are the sections that were run, `empty` those that had nothing to measure."""

    measured: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    step: float | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    doubts: tuple[Doubt, ...] = ()
    notes: tuple[str, ...] = ()
    reliability: Reliability | None = None
    equal_mass: Reliability | None = None
    scaled: Reliability | None = None
    temperature: float | None = None
    scores: Mapping[str, ScoreHistogram] = field(default_factory=dict)
    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    corruptions: Corruptions | None = None
    attacks: Mapping[str, Curve] = field(default_factory=dict)
    autoattack: Mapping[str, Curve] = field(default_factory=dict)
    black_box: Curve | None = None
    huge: Curve | None = None
    zero_gradient: float | None = None
    refined: Mapping[str, Curve] = field(default_factory=dict)
    transferred: Mapping[str, Curve] = field(default_factory=dict)
    worst: Mapping[str, Curve] = field(default_factory=dict)
    distal_probability: Histogram | None = None
    distal_density: Histogram | None = None
    nearest: Histogram | None = None
    extractor: str = ""
    per_class_fid: Mapping[str, float] = field(default_factory=dict)
    long_run: LongRun | None = None
    likelihood: Likelihood | None = None


def read_evaluation(content: Mapping[str, Any], problems: list[str]) -> Evaluation:
    """The parts of figures.json, each checked on its own; what is damaged is named in `problems` and left out."""
    if "sections" not in content:
        problems.append(
            "figures.json holds no sections, as of an earlier version, and its figures are not shown. Evaluate again."
        )
    sections = mapping(content.get("sections"))

    def built(name: str, build: Callable[[Any], T], source: Any) -> T | None:
        try:
            return build(source)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            problems.append(f"figures.json: the part {name!r} does not have the expected form and is left out.")
            return None

    def part(section: str, key: str, build: Callable[[Any], T], *, optional: bool = False) -> T | None:
        """One key of a section; None where the section was not run, had nothing to measure, or the key may lack."""
        figures = sections.get(section)
        if not figures or not isinstance(figures, dict) or (optional and figures.get(key) is None):
            return None
        return built(f"{section}/{key}", build, figures.get(key))

    def parts(section: str, key: str, build: Callable[[Any], T], *, optional: bool = False) -> dict[str, T]:
        """All entries of an object, each on its own."""
        entries = part(section, key, lambda source: source.items(), optional=optional) or ()
        found = {str(k): built(f"{section}/{key}/{k}", build, v) for k, v in entries}
        return {k: v for k, v in found.items() if v is not None}

    def whole(section: str, build: Callable[[Any], T]) -> T | None:
        figures = sections.get(section)
        return built(section, build, figures) if figures and isinstance(figures, dict) else None

    for name, figures in sections.items():
        if not isinstance(figures, dict):
            problems.append(f"figures.json: the section {name!r} does not have the expected form and is left out.")
    known = {name: figures for name, figures in sections.items() if isinstance(figures, dict)}
    seconds = {name: finite(value) for name, value in mapping(content.get("seconds")).items()}
    return Evaluation(
        measured=tuple(known),
        empty=tuple(name for name, figures in known.items() if not figures),
        step=finite(content.get("step")),
        protocol=mapping(content.get("protocol")),
        environment=mapping(content.get("environment")),
        seconds={name: value for name, value in seconds.items() if value is not None},
        doubts=_doubts(content.get("warnings"), problems),
        notes=texts(content.get("notes")),
        reliability=part("calibration", "reliability", _reliability),
        equal_mass=part("calibration", "reliability_equal_mass", _reliability, optional=True),
        scaled=part("calibration", "scaled", _reliability, optional=True),
        temperature=part("calibration", "temperature", finite, optional=True),
        scores=parts("ood", "scores", _scores),
        near=part("ood", "near", texts) or (),
        far=part("ood", "far", texts) or (),
        corruptions=whole("corruptions", _corruptions),
        attacks=parts("robustness", "curves", _curve),
        autoattack=parts("robustness", "autoattack", _curve, optional=True),
        black_box=part("robustness", "black_box", _point, optional=True),
        huge=part("robustness", "huge", _point, optional=True),
        zero_gradient=part("robustness", "zero_gradient", finite, optional=True),
        refined=parts("refinement", "curves", _curve),
        transferred=parts("refinement", "transfer", _curve, optional=True),
        worst=parts("refinement", "worst", _curve, optional=True),
        distal_probability=part("distal", "probability", _histogram),
        distal_density=part("distal", "log_density", partial(_histogram, names=("test", "distal"))),
        nearest=part("generation", "nearest", partial(_histogram, names=("samples", "test")), optional=True),
        extractor=part("generation", "extractor", _extractor, optional=True) or "",
        per_class_fid=parts("generation", "per_class_fid", float, optional=True),
        long_run=whole("long_run", _long_run),
        likelihood=whole("likelihood", _likelihood),
    )


def _doubts(rows: Any, problems: list[str]) -> tuple[Doubt, ...]:
    listed = rows if isinstance(rows, list) else [rows] if rows else []
    doubts = [Doubt(*(str(mapping(row).get(key) or "") for key in Doubt._fields)) for row in listed]
    kept = [doubt for doubt in doubts if doubt.name]
    if len(kept) < len(listed):
        problems.append("figures.json has a warning of the evaluation that cannot be read; evaluate the run again.")
    return tuple(kept)


def _reliability(source: Mapping[str, Any]) -> Reliability:
    bins = len(source["edges"]) - 1
    names = ("count", "confidence", "accuracy", "low", "high")
    return Reliability(floats(source["edges"], bins + 1, finite=True), *(floats(source[name], bins) for name in names))


def _scores(source: Mapping[str, Any]) -> ScoreHistogram:
    bins = len(source["edges"]) - 1
    ood = {str(name): floats(counts, bins) for name, counts in source["ood"].items()}
    return ScoreHistogram(floats(source["edges"], bins + 1, finite=True), floats(source["test"], bins), ood)


def _histogram(source: Mapping[str, Any], names: tuple[str, ...] = ("counts",)) -> Histogram:
    bins = len(source["edges"]) - 1
    counts = {name: floats(source[name], bins) for name in names}
    return Histogram(floats(source["edges"], bins + 1, finite=True), counts)


def _curve(source: Mapping[str, Any]) -> Curve:
    n = len(source["eps"])
    return Curve(
        floats(source["eps"], n, finite=True), *(floats(source[name], n) for name in ("accuracy", "low", "high"))
    )


def _point(source: Mapping[str, Any]) -> Curve:
    return Curve(*(floats([source[name]], 1, finite=True) for name in ("eps", "accuracy", "low", "high")))


def _corruptions(source: Mapping[str, Any]) -> Corruptions:
    severities = floats(source["severities"], finite=True)
    kinds = {
        str(kind): {
            str(metric): Curve(severities, *(floats(bands[band], len(severities)) for band in BANDS))
            for metric, bands in metrics.items()
        }
        for kind, metrics in source["kinds"].items()
    }
    return Corruptions(kinds, {name: number(value) for name, value in mapping(source.get("clean")).items()})


def _extractor(source: Mapping[str, Any]) -> str:
    return str(source["name"])


def _long_run(source: Mapping[str, Any]) -> LongRun:
    steps = floats(source["steps"], finite=True)
    energy, data = source["energy"], source["data_energy"]
    low, median, high = (floats([data[name]], 1, finite=True)[0] for name in ("low", "median", "high"))
    return LongRun(
        steps,
        floats([source["life"]], 1, finite=True)[0],
        Curve(steps, *(floats(energy[name], len(steps)) for name in ("median", "low", "high"))),
        (low, median, high),
        floats(source["diversity"], len(steps)),
        floats(source["confidence"], len(steps)),
        finite(source.get("r_hat")),
    )


def _likelihood(source: Mapping[str, Any]) -> Likelihood:
    low, high = floats(source["domain"], 2, finite=True)
    weights = source.get("log_weights")
    return Likelihood(
        str(source["method"]),
        (low, high),
        _histogram(source["test"]),
        _histogram(source["train"]),
        finite(source.get("effective_sample_size")),
        floats(source.get("acceptance") or [], finite=True),
        _histogram(weights) if weights else None,
    )
