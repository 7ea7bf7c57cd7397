"""Values out of JSON that may hold anything: a number, a row of numbers, a mapping; else NaN, an error, or nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Floats = tuple[float, ...]


def mapping(value: Any) -> dict[str, Any]:
    """`value` where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def texts(value: Any) -> tuple[str, ...]:
    """The entries of a list as text; none where `value` is no list."""
    return tuple(map(str, value)) if isinstance(value, list) else ()


def number(value: Any) -> float:
    """A float; NaN for anything that is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """A row of numbers by name, NaN where there is none."""
    return {key: number(value) for key, value in row.items()}


def finite(value: Any) -> float | None:
    """A finite float, or None for everything else."""
    found = number(value)
    return found if math.isfinite(found) else None


def floats(values: Any, length: int | None = None, *, finite: bool = False) -> Floats:
    """A list of `length` numbers, NaN where an entry is none. Raises ValueError for another length or no list."""
    if not isinstance(values, list):
        raise ValueError("expected a list of numbers")
    found = tuple(number(value) for value in values)
    if (length is not None and len(found) != length) or (finite and not all(map(math.isfinite, found))):
        raise ValueError(f"expected {length} numbers")
    return found
