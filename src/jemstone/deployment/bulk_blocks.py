"""From the blocks of a source to scored parts: what every engine of bulk scoring does with its share."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from jemstone.deployment.bulk_parts import encode
from jemstone.deployment.bulk_sources import Block, Source, Span, Unreadable, open_source
from jemstone.deployment.images import image_tensor
from jemstone.deployment.predictor import Predictor
from jemstone.errors import DataError


def open_for(predictor: Predictor, source: str | Path) -> Source:
    """`open_source`, and DataError where nothing in it could fit the model."""
    opened = open_source(source)
    shape = predictor.trained.input_shape
    axes = 4 if opened.example is None else opened.example.ndim
    if axes != len(shape) + 1:
        held = "vectors" if axes == 2 else "images"
        raise DataError(f"{source} holds {held}, and the model takes inputs of shape {shape}.")
    if opened.example is not None:
        predictor.read(opened.example)
    return opened


class Scored(NamedTuple):
    """A block has been scored; the last one of a part brings the part's content."""

    part: int
    rows: int
    content: bytes | None


class Ready(NamedTuple):
    """A block as the model takes it: an error, or None, for each id, and the inputs of those without, in order."""

    ids: list[str]
    errors: list[str | None]
    inputs: Tensor


def score_spans(
    predictor: Predictor, source: Source, parts: Mapping[int, Span], batch_size: int, threads: int
) -> Iterator[Scored]:
    """Score parts, given by their rows, in blocks that depend on nothing but their place: so do the bits."""
    owners = [
        (number, start, min(start + batch_size, last))
        for number, (first, last) in parts.items()
        for start in range(first, last, batch_size)
    ]
    blocks = source.blocks([(start, stop) for _, start, stop in owners])
    ids: list[str] = []
    errors: list[str | None] = []
    logits: list[Tensor] = []
    for (number, _, stop), ready in zip(owners, _ahead(predictor, blocks, threads), strict=True):
        ids += ready.ids
        found = _logits(predictor, ready.inputs, batch_size)
        finite = found.isfinite().all(dim=1).tolist()
        verdicts = iter(finite)
        errors += [
            error if error is not None or next(verdicts) else "the model's logits of it are not finite"
            for error in ready.errors
        ]
        logits.append(found[finite])
        content = None
        if stop == parts[number][1]:
            readable = torch.cat(logits)
            content = encode(ids, errors, predictor.predictions(readable) if len(readable) else None)
            ids, errors, logits = [], [], []
        yield Scored(number, len(ready.ids), content)


def _logits(predictor: Predictor, x: Float[Tensor, "n ..."], batch_size: int) -> Float[Tensor, "n k"]:
    if len(x) == 0:  # none of a block could be read
        return torch.empty(0, len(predictor.trained.class_names))
    return predictor.trained.logits(x, batch_size=batch_size)


def _ahead(predictor: Predictor, blocks: Iterator[Block], threads: int) -> Iterator[Ready]:
    """The blocks in order: read in one thread, prepared in several, a few in advance."""
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(threads) as others:
        waiting: deque[Future[Ready | None]] = deque()

        def begin() -> None:
            block = reader.submit(next, blocks, None)
            waiting.append(others.submit(lambda: _prepared(predictor, block.result())))

        for _ in range(threads + 1):
            begin()
        while (ready := waiting.popleft().result()) is not None:
            begin()
            yield ready


def _prepared(predictor: Predictor, block: Block | None) -> Ready | None:
    if block is None:
        return None
    ids, inputs = block
    if isinstance(inputs, np.ndarray):
        try:
            return Ready(ids, [None] * len(ids), predictor.read(inputs))
        except DataError:  # of one row, and which is to be found
            pass
    errors: list[str | None] = []
    tensors = []
    for number, name in enumerate(ids):
        try:
            tensors.append(_read(predictor, name, inputs[number : number + 1]))
            errors.append(None)
        except DataError as error:
            errors.append(str(error))
    shape = predictor.trained.input_shape
    return Ready(ids, errors, torch.cat(tensors) if tensors else torch.empty(0, *shape))


def _read(predictor: Predictor, name: str, one: NDArray[Any] | Sequence[Path | bytes | Unreadable]) -> Tensor:
    if isinstance(one, np.ndarray):
        return predictor.read(one)
    (encoded,) = one
    if isinstance(encoded, Unreadable):
        raise DataError(f"{encoded.reason}.")
    return image_tensor(encoded, predictor.trained.input_shape, name)
