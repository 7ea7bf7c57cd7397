"""Energies kept apart by margins: energy fine-tuning (Liu, Wang, Owens & Li, NeurIPS 2020, eq. 7-8).

A classifier that was trained by cross-entropy gives data and other images whatever energies come about. With examples
of what is not of the data, the outliers, it learns to tell the two by their energy: cross-entropy + weight times

    mean max(0, E(x_in) - m_in)^2 + mean max(0, m_out - E(x_out))^2,    m_in < m_out, nats.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from jemstone.energy import marginal_energy


class Margins(NamedTuple):
    """Energies, in nats, that data should lie below and outliers above; between the two nothing is asked for."""

    inside: float
    outside: float


class Outliers(NamedTuple):
    """Inputs (b, ...) that are not of the data, and the margins that they and the data should keep."""

    x: Tensor
    margins: Margins


def excess(
    inside: Float[Tensor, "b k"], outside: Float[Tensor, "c k"], margins: Margins
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The two terms, nats squared, from the logits of data and of outliers."""
    above = (marginal_energy(inside) - margins.inside).relu().square().mean()
    below = (margins.outside - marginal_energy(outside)).relu().square().mean()
    return above, below
