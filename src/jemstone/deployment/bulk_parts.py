"""What bulk scoring leaves: part files that appear whole or not at all, and one Parquet file made of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from jemstone.deployment.bulk_sources import Source, Span, require_pyarrow
from jemstone.deployment.predictor import AMBIGUOUS, FOREIGN, Predictions, Predictor
from jemstone.errors import ConfigError, DataError, RunError
from jemstone.runs import write_atomically

FORMAT = 1
UNREADABLE = "unreadable"
"""The reason of a row whose input could not be scored; `error` says why."""
_KEY = b"jemstone"


class Summary(NamedTuple):
    """How many inputs there are of each kind; one that is ambiguous and foreign counts for both."""

    rows: int
    accepted: int
    ambiguous: int
    foreign: int
    errors: int


def manifest_of(predictor: Predictor, source: Source, part_rows: int) -> dict[str, Any]:
    """All that the scores follow from, up to rounding; another one gives other scores."""
    calibration = predictor.calibration
    return {
        "format": FORMAT,
        "model": model_digest(predictor),
        "calibration": _digest({"reference": calibration.reference, "temperature": np.array(calibration.temperature)}),
        "execution": str(predictor.trained.execution),
        "policy": {**asdict(predictor.policy), "thresholds": [str(value) for value in predictor.thresholds]},
        "source": {"fingerprint": source.fingerprint, "rows": source.rows},
        "part_rows": part_rows,
    }


def model_digest(predictor: Predictor) -> str:
    """SHA-256 of the weights."""
    weights = predictor.trained.model.state_dict()
    return _digest({name: value.detach().cpu().float().numpy() for name, value in weights.items()})


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    sha = hashlib.sha256()
    for name, array in arrays.items():
        sha.update(f"{name} {array.shape} {array.dtype}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def span_of(number: int, manifest: dict[str, Any]) -> Span:
    """The rows of a part."""
    size, rows = manifest["part_rows"], manifest["source"]["rows"]
    return number * size, min((number + 1) * size, rows)


def changes(found: dict[str, Any], manifest: dict[str, Any]) -> str:
    """In words, what differs between two manifests; empty where nothing does."""
    return " and ".join(f"another {name}" for name in manifest if found.get(name) != manifest[name])


class Parts:
    """The folder OUT.parts of a scoring that is under way: manifest.json and a numbered file for each part."""

    def __init__(self, out: Path, manifest: dict[str, Any], *, fresh: bool) -> None:
        """Go on with the parts that are there, or begin. ConfigError where something else is there and not `fresh`."""
        self.out, self.manifest = out, manifest
        self.folder = out.with_name(f"{out.name}.parts")
        self.finished = False
        begun = None if fresh else _manifest_of_parts(self.folder)
        if begun is not None:
            _same(begun, manifest, self.folder)
        else:
            if out.exists() and not fresh:
                _same(_manifest_of_file(out), manifest, out)
                self.finished = True
            if self.folder.exists():  # parts without a manifest are of nobody: a kill came while they were removed
                shutil.rmtree(self.folder)
        if not self.finished:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "manifest.json", json.dumps(manifest, indent=1).encode())

    @property
    def count(self) -> int:
        """How many parts the whole has."""
        return -(-int(self.manifest["source"]["rows"]) // int(self.manifest["part_rows"]))

    def span(self, number: int) -> Span:
        """The rows of a part."""
        return span_of(number, self.manifest)

    def missing(self) -> list[int]:
        """The parts that are still to be scored."""
        return [number for number in range(self.count) if not self._whole(number)]

    def write(self, number: int, content: bytes) -> None:
        """Keep a part, whole or not at all."""
        write_atomically(self._path(number), content)

    def assemble(self) -> None:
        """Write OUT, whole or not at all, and remove the parts."""
        parquet = require_pyarrow().parquet
        schema = _schema().with_metadata({_KEY: json.dumps(self.manifest).encode()})
        unfinished = self.folder / "whole.tmp"
        with parquet.ParquetWriter(unfinished, schema) as writer:
            for number in range(self.count):
                writer.write_table(parquet.read_table(self._path(number)).cast(schema))
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(self.out)
        shutil.rmtree(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.parquet"

    def _whole(self, number: int) -> bool:
        pa, (start, stop) = require_pyarrow(), self.span(number)
        try:
            rows: int = pa.parquet.read_metadata(self._path(number)).num_rows
        except (OSError, pa.ArrowException):  # not there, or damaged: it is scored again
            return False
        return rows == stop - start


def encode(ids: list[str], errors: list[str | None], found: Predictions | None) -> bytes:
    """Rows as a Parquet file: of each id its error, or the next one of the predictions."""
    pa = require_pyarrow()
    readable = np.array([error is None for error in errors])
    places = np.cumsum(readable) - 1
    take = pa.array(places, mask=~readable)

    def spread(values: Any, kind: Any) -> Any:
        """Of readable rows their values, in order; null for the others."""
        return pa.array(values, kind).take(take)

    if found is None:
        columns = {field.name: pa.nulls(len(ids), field.type) for field in _schema()}
    else:
        foreign, ambiguous = found.foreign, found.ambiguous
        reasons = np.array(["", AMBIGUOUS, FOREIGN, f"{AMBIGUOUS}, {FOREIGN}"])[ambiguous + 2 * foreign]
        owners, classes = np.nonzero(found.candidates)
        bounds = np.searchsorted(owners, np.arange(len(found) + 1))
        names = pa.array(found.class_names, pa.string()).take(pa.array(classes))
        columns = {
            "label": spread(found.labels, pa.string()),
            "index": spread(found.index, pa.int32()),
            "probability": spread(found.confidence, pa.float64()),
            "log_density": spread(found.log_density, pa.float64()),
            "typicality": spread(found.typicality, pa.float64()),
            "accepted": spread(found.accepted, pa.bool_()),
            "reason": spread(reasons, pa.string()),
            "candidates": pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), names).take(take),
        }
    columns |= {"id": pa.array(ids, pa.string()), "error": pa.array(errors, pa.string())}
    columns["accepted"] = columns["accepted"].fill_null(False)
    columns["reason"] = columns["reason"].fill_null(UNREADABLE)
    schema = _schema()
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table([columns[name] for name in schema.names], schema=schema), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def summarise(out: Path) -> Summary:
    """Count the rows of a scored file."""
    counts = np.zeros(5, np.int64)
    with require_pyarrow().parquet.ParquetFile(out) as file:
        for batch in file.iter_batches(columns=["reason"]):
            reasons = batch.column(0).to_pylist()
            kinds = [sum(name in reason for reason in reasons) for name in (AMBIGUOUS, FOREIGN, UNREADABLE)]
            counts += [len(reasons), reasons.count(""), *kinds]
    return Summary(*counts.tolist())


def read_log_density(path: Path, predictor: Predictor) -> Float[np.ndarray, " n"]:
    """The log densities of a scored file, in its order, without the inputs that could not be read.

    DataError where it is no such file, or one of another model than `predictor`'s: two models have two unknown log Z.
    """
    pa = require_pyarrow()
    try:
        with pa.parquet.ParquetFile(path) as file:
            if "log_density" not in file.schema_arrow.names:
                raise DataError(f"{path} has no column log_density: it is not what `jemstone score` writes.")
            kind = file.schema_arrow.field("log_density").type
            if not pa.types.is_floating(kind):
                raise DataError(f"{path} has a column log_density of {kind}: it is not what `jemstone score` writes.")
            manifest = json.loads((file.schema_arrow.metadata or {}).get(_KEY, b"{}"))
            if manifest.get("model", model_digest(predictor)) != model_digest(predictor):
                raise DataError(
                    f"{path} holds scores of another model than {predictor.trained.run.path}, and log densities of two "
                    "models cannot be compared: score it again with this one."
                )
            values = file.read(columns=["log_density"]).column(0).drop_null().to_numpy()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error}).") from error
    return np.asarray(values, np.float64)


def _schema() -> Any:
    pa = require_pyarrow()
    return pa.schema(
        {
            "id": pa.string(),
            "label": pa.string(),
            "index": pa.int32(),
            "probability": pa.float64(),
            "log_density": pa.float64(),
            "typicality": pa.float64(),
            "accepted": pa.bool_(),
            "reason": pa.string(),
            "candidates": pa.list_(pa.string()),
            "error": pa.string(),
        }
    )


def _manifest_of_parts(folder: Path) -> dict[str, Any] | None:
    """None where nothing was begun, or not even its manifest was written."""
    try:
        found: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{folder}/manifest.json cannot be read ({error}). Start afresh with --fresh.") from error
    return found


def _manifest_of_file(out: Path) -> dict[str, Any]:
    pa = require_pyarrow()
    try:
        metadata = pa.parquet.read_schema(out).metadata or {}
    except (OSError, pa.ArrowException):
        metadata = {}
    found: dict[str, Any] = json.loads(metadata.get(_KEY, b"{}"))
    return found


def _same(found: dict[str, Any], manifest: dict[str, Any], place: Path) -> None:
    if not found:
        raise ConfigError(f"{place} exists and does not hold scores. Choose another --out, or replace it with --fresh.")
    if other := changes(found, manifest):
        raise ConfigError(f"{place} holds scores of {other}. Choose another --out, or replace them with --fresh.")
