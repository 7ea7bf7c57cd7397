"""PGD on linear models, where the best attack is known in closed form."""

import sys

import pytest
import torch
from torch import nn

from jemstone.data import to_box_radius
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError, DataError, MissingExtra
from jemstone.evaluation import exact_proportion, pgd_accuracy

pytest.importorskip("foolbox")
BOX = (-1.0, 1.0)
EPS = [0.02, 0.05, 0.1]


def linear_model(scale=1.0, shape=(1, 4, 4)):
    """f_1 - f_0 = scale * w.x, and w."""
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(w.numel(), 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([-w.flatten(), w.flatten()]) * scale / 2)
    return EnergyClassifier(nn.Sequential(nn.Flatten(), layer)).eval(), w


def points(w, distances, dual):
    """Points right by `distances` (in [0, 1] pixels, negative = wrong) of the boundary, well inside the box."""
    rng = torch.Generator().manual_seed(1)
    labels = torch.randint(2, (len(distances),), generator=rng)
    x = (torch.rand(len(distances), *w.shape, generator=rng) - 0.5) * 0.4
    x = x - (x.flatten(1) @ w.flatten() / w.norm() ** 2)[:, None, None, None] * w  # onto the boundary
    # Moving by r in the norm changes w.x by r * |w|_dual; r in the box is 2 times r among pixels.
    direction = w.sign() if dual == 1 else w / w.norm()
    side = (2.0 * labels - 1) * 2 * torch.tensor(distances)
    return x + side[:, None, None, None] * direction, labels


@pytest.mark.parametrize("scale", [1.0, 2000.0])  # at 2000 the softmax saturates: cross-entropy has no gradient left
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_accuracy_under_attack_is_the_closed_form_count(norm, dual, scale):
    model, w = linear_model(scale)
    # Per radius: points just closer than it (broken) and just farther (standing). 3 % is the attack's slack in L2.
    distances = [-0.01] + [f * e for e in EPS for f in (0.97, 1.02)] + [0.9 * EPS[0], 1.2 * EPS[2]]
    x, y = points(w, distances, dual)
    assert float(x.abs().max()) + to_box_radius(EPS[-1], BOX) < 1  # the box does not bind
    results, curve = pgd_accuracy(model, x, y, norm=norm, eps=EPS, box=BOX)
    expected = [sum(d > e for d in distances) for e in [0.0, *EPS]]
    assert [r.name for r in results] == [f"pgd_{norm}/{e:g}" for e in EPS]
    assert [round(a * len(x)) for a in curve.accuracy] == expected
    assert curve.eps == [0.0, *EPS]
    for result, k in zip(results, expected[1:], strict=True):
        assert result == exact_proportion(result.name, k, len(x))
    assert [r[1:4] for r in results] == list(zip(curve.accuracy[1:], curve.low[1:], curve.high[1:], strict=True))


def test_attacks_stay_in_the_box():
    """The only way across the boundary is out of the box, so the box must be what saves the point."""
    x = torch.full((1, 1, 4, 4), 0.9)

    class Edge(nn.Module):
        def forward(self, x):
            return torch.stack([torch.zeros(len(x)), 1.1 - x.flatten(1).amax(1)], dim=1)  # class 0 beyond 1.1

    edge = EnergyClassifier(Edge())
    assert pgd_accuracy(edge, x, torch.tensor([1]), norm="linf", eps=[0.4], box=BOX)[1].accuracy == [1, 1]
    assert pgd_accuracy(edge, x, torch.tensor([1]), norm="linf", eps=[0.4], box=(-1.0, 1.5))[1].accuracy == [1, 0]


def test_radii_are_converted_once():
    assert to_box_radius(8 / 255, BOX) == 16 / 255
    assert to_box_radius(0.3, (0.0, 1.0)) == 0.3


def curved_model():
    torch.manual_seed(0)
    return EnergyClassifier(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Dropout(0.5), nn.Tanh(), nn.Linear(32, 3))
    )


def curved_case(n=60):
    rng = torch.Generator().manual_seed(2)
    model = curved_model()
    x = torch.rand(n, 1, 4, 4, generator=rng) * 2 - 1
    with torch.no_grad():
        return model, x, model.eval()(x).argmax(dim=1)


def test_the_curve_cannot_rise_and_batches_join():
    model, x, y = curved_case()
    results, curve = pgd_accuracy(model, x, y, norm="l2", eps=[0.3, 0.01, 0.1], box=BOX, steps=5, batch_size=16)
    assert curve.eps == [0, 0.01, 0.1, 0.3]
    assert curve.accuracy[0] == 1
    assert curve.accuracy == sorted(curve.accuracy, reverse=True)
    assert curve.accuracy[-1] < curve.accuracy[1]
    assert all(r.n == 60 for r in results)


def test_an_input_broken_once_stays_broken():
    """A network right near the centre and right again far out: only a smaller perturbation breaks it."""

    class Ring(nn.Module):
        def forward(self, x):
            r = x.flatten(1).norm(dim=1)
            return torch.stack([torch.zeros_like(r), torch.where(r > 1.2, 100.0 + r, 0.9 - r)], dim=1)

    x = torch.tensor([0.7, 0.0])[None, None, None]
    _, curve = pgd_accuracy(
        EnergyClassifier(Ring()), x, torch.tensor([1]), norm="l2", eps=[0.15, 0.4], box=BOX, steps=20
    )
    assert curve.accuracy == [1, 0, 0]


def test_the_same_seed_gives_the_same_numbers_and_leaves_global_randomness_alone():
    model, x, y = curved_case()

    def run(seed):
        # One short step from a random start: what breaks depends on the start.
        return pgd_accuracy(model, x, y, norm="linf", eps=[0.05, 0.1, 0.2], box=BOX, steps=1, seed=seed)

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = run(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert run(0) == first
    assert any(run(seed) != first for seed in range(1, 6))


def test_the_model_is_left_as_it_was():
    model, x, y = curved_case(8)
    model.train()
    model.network[1].eval()
    model.network[4].bias.requires_grad_(False)
    model.network[4].weight.grad = torch.ones_like(model.network[4].weight)
    modes = [m.training for m in model.modules()]
    pgd_accuracy(model, x, y, norm="linf", eps=[0.05], box=BOX, steps=2)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]
    assert model.network[1].weight.grad is None
    assert bool((model.network[4].weight.grad == 1).all())


def test_mistakes_are_named(monkeypatch):
    model, x, y = curved_case(4)
    for eps in ([0.0], [-0.1], [float("nan")]):
        with pytest.raises(ConfigError, match="radii must be positive"):
            pgd_accuracy(model, x, y, norm="linf", eps=eps, box=BOX)
    with pytest.raises(DataError, match="must lie in"):
        pgd_accuracy(model, x * 2, y, norm="linf", eps=[0.1], box=BOX)
    with pytest.raises(DataError, match="one label each"):
        pgd_accuracy(model, x[:3], y, norm="linf", eps=[0.1], box=BOX)
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(MissingExtra, match=r"jemstone\[attacks\]"):
        pgd_accuracy(model, x, y, norm="linf", eps=[0.1], box=BOX)
