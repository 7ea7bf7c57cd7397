"""Whether an exported file computes what the predictor computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from jemstone.data.dataset import standardise
from jemstone.deployment.deployed import SURE, odds_of
from jemstone.deployment.predictor import Predictor
from jemstone.energy import EnergyClassifier
from jemstone.errors import RunError
from jemstone.rng import generator

TOLERANCE = 1e-4
"""A file whose numbers are further from torch's than this, relative where they exceed 1, is not kept."""
BATCH_SIZES = (1, 2, 7, 64)
"""With which every written file is tried."""
Answer = Callable[[Tensor], Mapping[str, NDArray[Any]]]
"""What a file makes of inputs: its outputs by their names."""
ROUNDING = 1e-5
"""Of an energy, relative where it exceeds 1: what float32 may decide about otherwise than float64."""


def compare(predictor: Predictor, model: EnergyClassifier, answer: Answer, path: Path) -> float:
    """How far the `answer` of the file at `path` is from `predictor`, whose `model` this is on the CPU, in float32.

    The largest difference in logits, probabilities and energies over several batches, relative where they exceed 1.
    Raises RunError where it is above `TOLERANCE` or not a number, or where the file decides otherwise than its own
    logits say, unless rounding decides.
    """
    largest = 0.0
    for count in BATCH_SIZES:
        inputs = inputs_to_try(predictor, count)
        x = inputs * 2 - 1 if predictor.moments is None else standardise(inputs, predictor.moments)
        with torch.no_grad():
            logits = model(x)
        truth = predictor.predictions(logits)
        try:
            found = answer(inputs)
        except Exception as error:  # the kinds are those of the runtime
            raise RunError(
                f"The export to {path} does not take a batch of {count}. A network must not make the size of its batch "
                f"a Python number, as len(x) and int(...) do: x.shape[0] stays open. ({error})"
            ) from error
        pairs = (
            (logits.double().numpy(), found["logits"]),
            (truth.probabilities, found["probabilities"]),
            (-truth.log_density, found["energy"]),
        )
        for ours, theirs in pairs:
            if ours.shape != theirs.shape:
                raise RunError(
                    f"The export to {path} returns {theirs.shape} for a batch of {count}: {ours.shape} is due."
                )
            difference = float((np.abs(ours - theirs) / np.maximum(np.abs(ours), 1)).max())
            if not difference <= TOLERANCE:
                raise RunError(
                    f"The export to {path} is not what torch computes: on a batch of {count} they differ by "
                    f"{difference:.3g}, and {TOLERANCE:g} is allowed. Export it in another format."
                )
            largest = max(largest, difference)
        _check_decisions(predictor, found, path)
    return largest


def inputs_to_try(predictor: Predictor, count: int) -> Float[Tensor, "n ..."]:
    """Inputs as the user of a file gives them: noise of any contrast, and every other one a chain where any is kept."""
    trained = predictor.trained
    rng = generator(0, "export", count)
    shape = (count, *trained.input_shape)
    if predictor.moments is None:
        level, contrast = torch.rand((2, count, *[1] * len(trained.input_shape)), generator=rng)
        x = (level + contrast * (torch.rand(shape, generator=rng) - 0.5)).clamp(0, 1) * 2 - 1
    else:
        x = torch.randn(shape, generator=rng)
    if trained.buffer is not None:
        x[::2] = trained.buffer[torch.randint(len(trained.buffer), (len(x[::2]),), generator=rng)]
    mean, std = (0.5, 0.5) if predictor.moments is None else predictor.moments
    inputs: Tensor = mean + std * (x.clamp(-1, 1) if predictor.moments is None else x)
    return inputs.float()


def _check_decisions(predictor: Predictor, found: Mapping[str, NDArray[Any]], path: Path) -> None:
    due = predictor.predictions(torch.from_numpy(found["logits"]))
    lines, scale = predictor.thresholds, np.maximum(np.abs(due.log_density), 1)
    odds, limit = (1 - due.confidence) / due.confidence, odds_of(lines.confidence)
    rounding = ROUNDING * scale / predictor.calibration.temperature * np.maximum(odds, limit) + 2 * SURE
    dense = np.abs(due.log_density - lines.density) > ROUNDING * scale
    sure = (np.abs(odds - limit) > rounding) | (limit == math.inf)
    clear = {
        "foreign": (due.foreign, dense),
        "ambiguous": (due.ambiguous, sure),
        "accept": (due.accepted, dense & sure),
    }
    for name, (decided, certain) in clear.items():
        if (found[name] != decided)[certain].any():
            raise RunError(
                f"The export to {path} says {name!r} of other inputs than the predictor: a bug, please report it."
            )
