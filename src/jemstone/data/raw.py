"""What a reader hands over: arrays as they were stored, unchecked, with the names that error messages give them."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray


class Examples(NamedTuple):
    """Stored inputs (n, ...) and labels (n,), None where there are none.

    `inputs_at` and `labels_at` say where they came from, in words that a user can act on.
    """

    inputs: NDArray[Any]
    labels: NDArray[Any] | None
    inputs_at: str
    labels_at: str


class Source(NamedTuple):
    """A read source. Where `test` is None, a test split is to be cut from `train`.

    `class_names` is None where the source has no names for its classes.
    """

    name: str
    train: Examples | None
    test: Examples | None
    class_names: tuple[str, ...] | None = None
