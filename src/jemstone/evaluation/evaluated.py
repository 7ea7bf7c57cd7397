"""An evaluated run as a comparison reads it: numbers, protocol, and values per example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jemstone.errors import RunError
from jemstone.evaluation.intervals import Result
from jemstone.evaluation.section import Arrays
from jemstone.evaluation.store import read_examples
from jemstone.runs import Run, labels

SECTIONS = ("calibration", "ood", "robustness", "refinement")
"""The sections whose values per example a paired test can use."""


@dataclass(frozen=True)
class Evaluated:
    """What one evaluated run left behind. `examples` holds the arrays of each section by its name.

    `digest` is that of its data; `protocol` are the settings of the evaluation; `sections` what each found, for plots.
    """

    label: str
    path: Path
    recipe: str
    seed: int | None
    step: int | None
    data: str
    digest: str
    results: Mapping[str, Result]
    protocol: Mapping[str, Any]
    sections: Mapping[str, Any]
    examples: Mapping[str, Arrays]

    def settings(self, section: str) -> dict[str, Any]:
        """The part of the protocol that `section` depends on, with the seed: where it differs, so do the subsets."""
        block = self.protocol.get(section)
        common = self.protocol.get("common", {})
        own = block if isinstance(block, dict) else {k: v for k, v in self.protocol.items() if not isinstance(v, dict)}
        own = {key: value for key, value in own.items() if key not in ("name", "resamples", "batch_size")}
        return {"seed": self.protocol.get("seed", common.get("seed")), **own}


def read_evaluated(paths: Sequence[str | Path]) -> list[Evaluated]:
    """The evaluated runs at `paths`, labelled by their folders; RunError where one was not evaluated."""
    folders = [Path(path) for path in paths]
    return [_read(path, label) for path, label in zip(folders, labels(folders), strict=True)]


def _read(path: Path, label: str) -> Evaluated:
    run = Run(path)
    if not all((path / name).is_file() for name in ("results.json", "figures.json")):
        raise RunError(f"{path} has not been evaluated. Do it first: jemstone evaluate {path}")
    rows, figures = run.read_json("results.json"), run.read_json("figures.json")
    try:
        results = [Result(**row) for row in rows]
        protocol, sections = dict(figures["protocol"]), dict(figures.get("sections", {}))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise RunError(
            f"results.json or figures.json of {path} is malformed ({error!r}). Evaluate the run again: "
            f"jemstone evaluate {path}"
        ) from error
    config, data = run.info.get("config", {}), run.info.get("data", {})
    return Evaluated(
        label=label,
        path=path,
        recipe=str(config.get("recipe", "")),
        seed=config.get("seed"),
        step=figures.get("step"),
        data=str(data.get("name", "")),
        digest=str(data.get("digest", "")),
        results={result.name: result for result in results if result.value is not None},
        protocol=protocol,
        sections=sections,
        examples={name: read_examples(path / "evaluation", name) for name in SECTIONS},
    )
