"""Is this step healthy? Judges before anything moves, raises the numbers, never repairs anything."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jemstone.errors import Diverged
from jemstone.training.config import Limits

ENERGIES = ("energy_real", "energy_negatives")
GAPS = ("energy_gap", "conditional_gap")


def check(step: int, metrics: Mapping[str, float], limits: Limits) -> None:
    """Raise `Diverged` where a metric is not finite or an energy or a gap is beyond its limit.

    Conditions are written as `not (good)`: NaN compares false with everything, and so fails.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise Diverged(step, f"{name} is not finite", metrics)
    for names, limit, what in ((ENERGIES, limits.energy, "energy"), (GAPS, limits.gap, "gap")):
        for name in names:
            if name in metrics and not abs(metrics[name]) <= limit:
                raise Diverged(step, f"|{name}| is beyond limits.{what} = {limit:g} nats", metrics)
