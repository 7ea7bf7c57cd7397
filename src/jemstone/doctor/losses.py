"""The log of another project as rows under our names: a CSV of any delimiter, or the text log of the JEM release."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jemstone.errors import ConfigError, RunError

Row = Mapping[str, float]

NAMES: dict[str, tuple[str, ...]] = {
    "step": ("step", "globalstep", "iter", "iteration", "iterations", "curiter", "it", "batch", "update", "epoch"),
    "loss": ("loss", "trainloss", "totalloss", "lossepoch", "lossstep", "l"),
    "class_nll": ("classnll", "lpygivenx", "ce", "celoss", "crossentropy", "nll", "clfloss", "lossclf"),
    "energy_real": (
        *("energyreal", "realenergy", "energypos", "posenergy", "positiveenergy", "positiveenergyavg", "epos", "ereal"),
        *("energydata", "dataenergy", "energyplus", "efp", "posenergies"),
    ),
    "energy_negatives": (
        *("energynegatives", "energyneg", "negenergy", "energynegative", "negativeenergy", "negativeenergyavg", "eneg"),
        *("energyfake", "fakeenergy", "energysamples", "energyq", "energyminus", "efake", "negenergies"),
    ),
    "f_real": ("freal", "fxp", "fxpd", "fp", "fpall", "fpmean", "metricsavgreal", "realout", "fpos"),
    "f_negatives": ("fnegatives", "fxq", "fq", "fqall", "fqmean", "metricsavgfake", "fakeout", "fneg"),
    "energy_gap": ("energygap", "egap"),
    "energy_auc": ("energyauc",),
    "chain_grad_norm": ("chaingradnorm", "sgldgradnorm", "samplergradnorm"),
    "saturated": ("saturated",),
    "grad_norm": ("gradnorm", "gradientnorm"),
    "train_accuracy": ("trainaccuracy", "acc", "accuracy", "trainacc", "accuracytrain", "acctrain"),
    "validation_accuracy": (
        *("validationaccuracy", "valacc", "validacc", "valaccuracy", "validaccuracy", "testacc", "testaccuracy"),
        *("accval", "accuracyval", "acctest", "validationacc"),
    ),
}
"""What a column may be called, without case and without anything but letters and digits."""
ACCURACIES = ("train_accuracy", "validation_accuracy")
_EMPTY = {"", "-", "none", "null", "na", "n/a"}
_NUMBER = r"\s*([-+]?(?:nan|inf|[\d.]+(?:e[-+]?\d+)?))"
_JEM_ENERGY = re.compile(rf"P\(x\) \| (\d+):(\d+) f\(x_p_d\)={_NUMBER} f\(x_q\)={_NUMBER}", re.IGNORECASE)
_JEM_CLASS = re.compile(rf"P\(y\|x\) (\d+):(\d+) loss={_NUMBER}, acc={_NUMBER}", re.IGNORECASE)


class Losses(NamedTuple):
    """Rows under our names, and how they were read, one sentence each."""

    rows: tuple[Row, ...]
    reading: tuple[str, ...]


def read_losses(path: Path, columns: Mapping[str, str]) -> Losses:
    """The log at `path`. `columns` (our name: theirs) goes before what is guessed from the names.

    Energies follow our sign, low for likely inputs: f_real and f_negatives, the logsumexp that the JEM release logs,
    are turned. Raises RunError where the file holds no table, ConfigError where no column is known.
    """
    if unknown := sorted(set(columns) - set(NAMES)):
        raise ConfigError(f"--columns knows no {', '.join(unknown)}. Known: {', '.join(NAMES)}.")
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror}.") from error
    if _JEM_ENERGY.search(text) and not columns:
        return _finish(*_jem_release(text), path)
    header, cells, how = _table(text, path)
    chosen = _choose(header, columns, path)
    told = ", ".join(f"{theirs} as {ours}" for ours, theirs in chosen.items())
    rows, skipped = [], 0
    for line in cells:
        row = {}
        for ours, theirs in chosen.items():
            position = header.index(theirs)
            cell = line[position].strip() if position < len(line) else ""
            if cell.lower() in _EMPTY:
                continue
            try:
                row[ours] = float(cell.removesuffix("%"))
            except ValueError:
                skipped += 1
        rows.append(row)
    reading = [f"{how}. Read: {told}."]
    reading += [f"{skipped} cells are no numbers and were left out."] if skipped else []
    return _finish(rows, reading, path)


def _table(text: str, path: Path) -> tuple[list[str], list[list[str]], str]:
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        raise RunError(f"{path} holds no table: a line of column names and at least one row are needed.")
    sample = "\n".join(lines[:20])
    delimiter = ","
    for allowed in (",;\t|", None):
        try:
            found = csv.Sniffer().sniff(sample, allowed).delimiter
        except csv.Error:
            continue
        if not found.isalnum() and found in lines[0]:
            delimiter = found
            break
    rows = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter, skipinitialspace=True))
    header = [name.strip() for name in rows[0]]
    if all(_is_number(name) for name in header if name):
        raise RunError(
            f"{path} has no line of column names: its first line is {lines[0][:60]!r}. Put one above it, "
            "such as step,loss,energy_real,energy_negatives."
        )
    shown = {"\t": "tab", " ": "space"}.get(delimiter, delimiter)
    return header, rows[1:], f"{len(rows) - 1} rows, columns divided by {shown!r}"


def _choose(header: Sequence[str], columns: Mapping[str, str], path: Path) -> dict[str, str]:
    """Our names of the columns that can be used, with theirs."""
    syntax = f"--columns OURS=THEIRS,...; OURS is one of {', '.join(NAMES)}"
    for ours, theirs in columns.items():
        if theirs not in header:
            raise ConfigError(
                f"{path} has no column {theirs!r}, which --columns names for {ours}. It has: {', '.join(header)}."
            )
    chosen = dict(columns)
    plain: dict[str, str] = {}
    for name in header:
        plain.setdefault(re.sub(r"[^a-z0-9]", "", name.lower()), name)
    for ours, names in NAMES.items():
        free = [plain[name] for name in names if name in plain and plain[name] not in chosen.values()]
        if ours not in chosen and free:
            chosen[ours] = free[0]
    for energy, f in (("energy_real", "f_real"), ("energy_negatives", "f_negatives")):
        if energy in chosen and f in chosen:
            del chosen[energy if f in columns else f]
    if not set(chosen) - {"step"}:
        raise ConfigError(
            f"No column of {path} is known. It has: {', '.join(header)}. Say which is which: {syntax}. "
            "For example: --columns energy_real=e_pos,energy_negatives=e_neg"
        )
    return {ours: chosen[ours] for ours in NAMES if ours in chosen}


def _jem_release(text: str) -> tuple[list[dict[str, float]], list[str]]:
    """The lines that the release of Grathwohl et al. prints: energies by batch, the class term by iteration."""
    rows: list[dict[str, float]] = []
    for line in text.splitlines():
        if match := _JEM_ENERGY.search(line):
            rows.append({"f_real": float(match[3]), "f_negatives": float(match[4])})
        elif match := _JEM_CLASS.search(line):
            if not rows or "step" in rows[-1]:
                rows.append({})
            rows[-1] |= {"step": float(match[2]), "class_nll": float(match[3]), "train_accuracy": float(match[4])}
    return rows, [f"The text log of the JEM release, {len(rows)} printed steps."]


def _finish(rows: Sequence[dict[str, float]], reading: list[str], path: Path) -> Losses:
    """Our sign of the energy, accuracy as a share, steps that rise, and what cannot be judged."""
    rows = [row for row in rows if set(row) - {"step"}]
    if not rows:
        raise RunError(f"{path} has no row with a number in the columns that were read. {' '.join(reading)}")
    for ours, f in (("energy_real", "f_real"), ("energy_negatives", "f_negatives")):
        for row in rows:
            if f in row:
                row[ours] = -row.pop(f)
                told = "f = logsumexp of the logits was read as -E, as in the JEM release: energy = -f."
                reading += [told] if told not in reading else []
    for name in ACCURACIES:
        values = [row[name] for row in rows if math.isfinite(row.get(name, math.nan))]
        if values and max(values) > 1.5:
            reading.append(f"{name} exceeds 1 and was read as per cent.")
            for row in rows:
                row |= {name: row[name] / 100} if name in row else {}
    for row in rows:
        if "energy_real" in row and "energy_negatives" in row:
            row["energy_gap"] = row["energy_real"] - row["energy_negatives"]
    steps = [row.get("step", math.nan) for row in rows]
    if not all(b > a for a, b in itertools.pairwise(steps)) or not math.isfinite(steps[0]):
        if any(math.isfinite(step) for step in steps):
            reading.append("The steps do not rise from row to row: rows are counted instead.")
        else:
            reading.append("There is no column of steps: rows are counted.")
        rows = [row | {"step": float(i)} for i, row in enumerate(rows, start=1)]
    return Losses(tuple(rows), (*reading, *_not_judged(rows)))


def _not_judged(rows: Sequence[Row]) -> list[str]:
    there = {name for row in rows for name in row}
    missing = []
    if not {"energy_real", "energy_gap"} & there:
        missing.append("whether energies run away or apart (no energies)")
    if "train_accuracy" not in there:
        missing.append("a collapse of accuracy (no accuracy)")
    if "chain_grad_norm" not in there:
        missing.append("the sampler itself: chains that stand still, saturate, or become few images")
    return [f"Could not be judged from these columns: {'; '.join(missing)}."] if missing else []


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
