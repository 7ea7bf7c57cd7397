"""A protocol carried out: section by section, each kept as soon as it is finished, then gathered into one table."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any, NamedTuple

from torch import Tensor

from jemstone.data.dataset import Dataset
from jemstone.energy import EnergyClassifier
from jemstone.evaluation.directions import higher_is_better
from jemstone.evaluation.extractors import Extractor, file_digest
from jemstone.evaluation.forward import frozen
from jemstone.evaluation.intervals import Result
from jemstone.evaluation.protocol import BUDGETS, SECTIONS, Protocol
from jemstone.evaluation.sanity import require_sound
from jemstone.evaluation.section import WARNINGS, Arrays, Chains, Memo, Section, Subject, Warned, Work
from jemstone.evaluation.store import Key, Store, Stored, digest, foreign_digests, subject_digest
from jemstone.rng import seeded
from jemstone.runs import strict
from jemstone.version import __version__

Say = Callable[[str], None]
LIBRARIES = ("foolbox", "pyautoattack")
"""Without them attacks are left out."""


class Evaluation(NamedTuple):
    """`results`, one per measured number; `figures`, plain lists and numbers that a plot needs (JSON-serialisable);
    `sections`, the same by section, with values per test example and pictures.
    """

    results: list[Result]
    figures: dict[str, Any]
    sections: dict[str, Section]


class Row(NamedTuple):
    """One metric over several runs. `better` is "higher", "lower" or "" (unknown); a missing cell is None."""

    name: str
    better: str
    cells: list[Result | None]


def evaluate(
    model: EnergyClassifier,
    data: Dataset,
    *,
    ood: Mapping[str, Tensor] | None = None,
    chains: Chains | None = None,
    extractor: Extractor | None = None,
    protocol: Protocol = BUDGETS["standard"],
    on_progress: Say | None = None,
) -> Evaluation:
    """Measure any model on the test split of `data`; nothing is written.

    `ood` adds out-of-distribution sets by name, inputs (n, ...) of the data's shape, uint8 or in the box. `chains` says
    how the model is sampled; without it what is about samples is left out and noted. `extractor` is the feature
    extractor of the generation section, in place of the one that its settings name. The model is left as it was found:
    modes, gradients, random state.

    Raises DataError where the data do not fit the model or are not usable, ConfigError for a set's name.
    """
    subject = Subject(model, data, ood or {}, chains, extractor)
    training = sum(module.training for module in model.modules())
    measured = dict(measure(subject, protocol, say=on_progress or (lambda _: None)))
    results, figures = gather(measured, protocol)
    if training:
        figures["warnings"].insert(
            0, _told("model", Warned("train-mode", f"{training} modules were in training mode."))
        )
    return Evaluation(results, figures, {name: stored.section for name, stored in measured.items()})


def measure(
    subject: Subject,
    protocol: Protocol,
    *,
    store: Store | None = None,
    identity: Mapping[str, Any] | None = None,
    say: Say = lambda _: None,
) -> Iterator[tuple[str, Stored]]:
    """The sections of `protocol`, one after the other, by name.

    With a `store`, a section that was measured before on the same subject with the same settings is read from it, and
    one that was interrupted goes on; `identity` holds what else tells subjects apart, such as how chains were run.
    """
    require_sound(subject)
    origin = _origin(subject, protocol, identity or {}) if store is not None else ""
    for number, name in enumerate(protocol.sections, start=1):
        settings = getattr(protocol, name)
        described = {**asdict(settings), **_further_inputs(subject, protocol, name)}
        key = Key(origin, digest(described))
        place = f"[{number}/{len(protocol.sections)}] {name}"
        before = store.load(name) if store is not None else None
        if before is not None and before.key == key:
            say(f"{place}: measured before, in {before.seconds:.0f} s")
            yield name, before
            continue
        say(place)
        began = time.monotonic()
        memo = Work().memo if store is None else store.memo(name, key)
        work = Work(lambda text: say(f"  {text}"), _seeded_pieces(memo, subject, protocol, name))
        # A model that draws random numbers in its forward pass gives the same ones again, and global state stays.
        with frozen(subject.model), seeded(protocol.seed, "section", name, device=subject.device):
            section = SECTIONS[name](subject, settings, protocol.common, work)
        stored = Stored(key, described, section, round(time.monotonic() - began, 1))
        if store is not None:
            store.save(name, stored)
        yield name, stored


def kept(subject: Subject, protocol: Protocol, store: Store, identity: Mapping[str, Any]) -> dict[str, Stored]:
    """The sections in `store` that are about this very subject, whatever their settings were.

    Those about another state of it are forgotten: their pictures would pass for pictures of this one.
    """
    origin = _origin(subject, protocol, identity)
    found = {}
    for name in SECTIONS:
        stored = store.load(name)
        if stored is not None and stored.key.subject == origin:
            found[name] = stored
        elif stored is not None:
            store.forget(name)
    return found


def gather(measured: Mapping[str, Stored], protocol: Protocol) -> tuple[list[Result], dict[str, Any]]:
    """All sections as one list of results and one mapping of figures, in the order of SECTIONS."""
    ordered = {name: measured[name] for name in SECTIONS if name in measured}
    sections = [stored.section for stored in ordered.values()]
    figures = {
        "protocol": {
            "name": protocol.name,
            **asdict(protocol.common),
            **{name: stored.settings for name, stored in ordered.items()},
        },
        "warnings": [_told(name, warned) for name, stored in ordered.items() for warned in stored.section.warnings],
        "notes": [note for section in sections for note in section.notes],
        "sections": {name: stored.section.figures for name, stored in ordered.items()},
        "seconds": {name: stored.seconds for name, stored in ordered.items()},
    }
    plain: dict[str, Any] = json.loads(json.dumps(strict(figures)))  # tuples become lists, as when they are read back
    return [result for section in sections for result in section.results], plain


def comparison(runs: Mapping[str, Sequence[Result]]) -> list[Row]:
    """One row per result name, in first-seen order; its cells follow the order of `runs`."""
    by_name = [{result.name: result for result in results} for results in runs.values()]
    names = dict.fromkeys(name for results in by_name for name in results)
    words = {True: "higher", False: "lower", None: ""}
    return [Row(name, words[higher_is_better(name)], [run.get(name) for run in by_name]) for name in names]


def _told(section: str, warned: Warned) -> dict[str, str]:
    return {"section": section, "name": warned.name, "text": warned.text, "meaning": WARNINGS[warned.name]}


def _origin(subject: Subject, protocol: Protocol, identity: Mapping[str, Any]) -> str:
    """What all sections depend on, as a digest."""
    return digest([__version__, protocol.name, asdict(protocol.common), subject_digest(subject, identity)])


def _seeded_pieces(memo: Memo, subject: Subject, protocol: Protocol, section: str) -> Memo:
    """`memo`, with every piece on a random stream of its own: a piece read from disk draws nothing."""

    def remember(piece: str, make: Callable[[], Arrays]) -> Arrays:
        def alone() -> Arrays:
            with seeded(protocol.seed, "piece", section, piece, device=subject.device):
                return make()

        return memo(piece, alone)

    return remember


def _further_inputs(subject: Subject, protocol: Protocol, section: str) -> dict[str, Any]:
    """What this section alone depends on, beside its settings."""
    if section == "ood":
        return {"foreign": foreign_digests(subject)}
    if section == "robustness":
        return {"libraries": [name for name in LIBRARIES if find_spec(name) is not None]}
    if section == "generation":
        given = subject.extractor
        return {"features": file_digest(protocol.generation.extractor) if given is None else given.name}
    return {}
