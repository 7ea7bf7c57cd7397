"""The margin term against numbers worked out by hand, alone and inside the objective."""

import math

import pytest
import torch
from torch import nn

from jemstone.data import Batch
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError
from jemstone.margins import Margins, Outliers, excess
from jemstone.objective import LossWeights, Negatives, jem_loss


def test_the_terms_are_those_of_the_paper():
    """Two classes with equal logits f have E = -f - log 2."""
    log2 = math.log(2)
    inside = torch.tensor([[3.0, 3.0], [1.0, 1.0], [9.0, 9.0]]) - log2  # energies -3, -1, -9
    outside = torch.tensor([[2.0, 2.0], [-5.0, -5.0]]) - log2  # energies -2, 5
    above, below = excess(inside, outside, Margins(-4.0, 1.0))
    assert above.item() == pytest.approx((1 + 9 + 0) / 3, rel=1e-5)
    assert below.item() == pytest.approx((9 + 0) / 2, rel=1e-5)


class Line(nn.Module):
    """Logits (x w, 0) of scalars."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, x):
        return torch.cat([x * self.w, torch.zeros_like(x)], dim=1)


def by_hand(w: float, x: list[float], out: list[float], margins: Margins, weight: float) -> float:
    def energy(v: float) -> float:
        return -math.log(math.exp(v * w) + 1)

    nll = -sum(math.log(math.exp(v * w) / (math.exp(v * w) + 1)) for v in x) / len(x)
    above = sum(max(0.0, energy(v) - margins.inside) ** 2 for v in x) / len(x)
    below = sum(max(0.0, margins.outside - energy(v)) ** 2 for v in out) / len(out)
    return nll + weight * (above + below)


@pytest.mark.parametrize("statistics", ["batch", "shared", "frozen"])
def test_the_objective_and_its_gradient_are_those_worked_out_by_hand(statistics):
    w, x, out, margins, weight = 0.7, [1.0, -2.0, 0.5], [3.0, -1.0], Margins(-1.5, -0.9), 0.3
    model = EnergyClassifier(Line(w)).double()
    loss = jem_loss(
        model,
        Batch(torch.tensor(x)[:, None].double(), torch.zeros(3, dtype=torch.int64)),
        None,
        Negatives(),
        LossWeights(margin=weight),
        outliers=Outliers(torch.tensor(out)[:, None].double(), margins),
        statistics=statistics,
    )
    assert loss.total.item() == pytest.approx(by_hand(w, x, out, margins, weight), rel=1e-6)
    for part in loss.parts.values():
        part.backward()
    eps = 1e-6
    slope = (by_hand(w + eps, x, out, margins, weight) - by_hand(w - eps, x, out, margins, weight)) / (2 * eps)
    assert model.network.w.grad.item() == pytest.approx(slope, rel=1e-6)
    assert loss.parts.keys() == ({"class"} if statistics == "shared" else {"class", "outliers"})
    assert loss.energy_outliers.item() == pytest.approx(-sum(math.log(math.exp(v * w) + 1) for v in out) / 2, rel=1e-6)


def test_it_needs_outliers_and_a_class_term():
    batch = Batch(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ConfigError, match="no outliers were given"):
        jem_loss(EnergyClassifier(Line(1.0)), batch, None, Negatives(), LossWeights(margin=1.0))
    with pytest.raises(ConfigError, match=r"set weights.class_nll too"):
        LossWeights(class_nll=0.0, marginal=1.0, margin=1.0)


def test_outliers_do_not_move_running_averages_unless_shared():
    """As negatives: each batch is normalised by itself, and only data moves the averages."""
    x, out = torch.randn(8, 3), torch.randn(8, 3) + 5
    moved = {}
    for statistics in ("batch", "shared"):
        model = EnergyClassifier(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)))
        outliers = Outliers(out, Margins(-2.0, 0.0))
        batch = Batch(x, torch.zeros(8, dtype=torch.int64))
        jem_loss(model, batch, None, Negatives(), LossWeights(margin=1.0), outliers=outliers, statistics=statistics)
        moved[statistics] = model.network[0].running_mean.clone()
    torch.testing.assert_close(moved["batch"], 0.1 * x.mean(0))
    torch.testing.assert_close(moved["shared"], 0.1 * torch.cat([x, out]).mean(0))
