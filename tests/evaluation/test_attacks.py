"""PGD and its book-keeping on linear models of several classes, where the strongest attack is known in closed form."""

import sys

import pytest
import torch
from torch import nn

from jemstone.data import to_box_radius
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError, MissingExtra
from jemstone.evaluation.attacks import broken, judged, pgd, pgd_breaks, right, standing_under

pytest.importorskip("foolbox")
BOX = (-1.0, 1.0)
EPS = {"linf": [0.01, 0.03, 0.05], "l2": [0.05, 0.1, 0.2]}


def linear(weight):
    """f(x) = W x on flattened images."""
    classes, size = weight.shape
    network = nn.Sequential(nn.Flatten(), nn.Linear(size, classes, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(weight)
    return EnergyClassifier(network).eval().requires_grad_(False)


def random_weight(classes, size=25):
    return torch.randn(classes, size, generator=torch.Generator().manual_seed(0))


def block_weight(classes, size=25):
    """Each class looks at pixels of its own, +-30: all boundaries are equally steep, so that the nearest one is that of
    the runner-up, to which the log-odds lead. In L2 a start nearer to another one ends there: it takes restarts."""
    signs = torch.randint(2, (classes, size), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    return 30 * signs * (torch.arange(size) * classes // size == torch.arange(classes)[:, None])


def breaking_radius(weight, x, y, norm):
    """In [0, 1] pixels: min over j of the margin to class j over the dual norm of w_y - w_j; box [-1, 1] is 2 wide."""
    own = weight[y]
    margins = (own * x.flatten(1)).sum(1, keepdim=True) - x.flatten(1) @ weight.T
    slopes = (own[:, None] - weight[None]).norm(p=1 if norm == "linf" else 2, dim=2)
    radius = margins / slopes
    radius[torch.arange(len(y)), y] = float("inf")
    return radius.amin(dim=1) / 2


def images(n, size=5, seed=1):
    """Away from the edges of the box, so that it does not bind."""
    return (torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) - 0.5) * 0.8


def cases(weight, norm, n=400):
    """Images of which none lies within 3 % of a radius of its boundary: the slack of an attack of so many steps."""
    x = images(n)
    y = (x.flatten(1) @ weight.T).argmax(dim=1)
    y[::7] = (y[::7] + 1) % len(weight)  # some are wrong from the start
    exact = breaking_radius(weight, x, y, norm)
    clear = torch.stack([(exact / eps - 1).abs() > 0.03 for eps in EPS[norm]]).all(dim=0)
    return x[clear], y[clear], exact[clear]


@pytest.mark.parametrize("weight", [random_weight(2), block_weight(2), block_weight(5)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_breaks_exactly_what_can_be_broken(norm, weight):
    x, y, exact = cases(weight, norm)
    assert float(x.abs().max()) + to_box_radius(max(EPS[norm]), BOX) < 1
    model = linear(weight)
    breaks = pgd_breaks(model, norm, box=BOX, steps=40, restarts=5)
    standing = standing_under(breaks, right(model, x, y, 64), x, y, EPS[norm])
    expected = torch.stack([exact > eps for eps in [0, *EPS[norm]]])
    shares = expected.float().mean(dim=1)
    assert bool((shares[1:] < shares[:-1] - 0.05).all())  # every radius breaks some more
    assert torch.equal(standing, expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_never_breaks_what_cannot_be_broken(norm):
    """Five classes with boundaries of different slopes: the steepest ascent need not lead to the nearest of them."""
    x, y, exact = cases(random_weight(5), norm)
    breaks = pgd_breaks(linear(random_weight(5)), norm, box=BOX, steps=40)
    for eps in EPS[norm]:
        hit = breaks(x, y, eps)
        assert not bool((hit & (exact > eps)).any())
        assert float((~hit & (exact < eps)).float().mean()) < 0.05


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_claim_is_checked(norm):
    """Points on either side of every bound; the model calls everything wrong that is not x itself."""
    x = torch.zeros(5, 1, 2, 2)
    x[3:] = 0.9
    length = 1.0 if norm == "linf" else 2.0  # of a vector of four ones
    moved = x + torch.tensor([0.2, 0.2002, 0.0, 0.2, 0.0999])[:, None, None, None] / length
    eps = 0.1  # 0.2 in the box
    if norm == "l2":
        moved[3, 0, 0, 0] = 1.1
        moved[3, 0, 1:] = 0.9
        moved[3, 0, 0, 1] = 0.9

    class Wrong(nn.Module):
        def forward(self, z):
            same = (z == 0).flatten(1).all(dim=1).float()
            return torch.stack([same, 0.5 * torch.ones(len(z))], dim=1)

    verdict = broken(
        EnergyClassifier(Wrong()), x, torch.zeros(5, dtype=torch.long), moved, norm=norm, eps=eps, box=BOX, batch_size=2
    )
    # Within; just outside the ball; not misclassified; outside the box; within both.
    assert verdict.tolist() == [True, False, False, False, True]


def test_a_point_that_is_not_finite_breaks_nothing():
    model = linear(random_weight(2, 4))
    x = torch.zeros(1, 1, 2, 2)
    for y in (0, 1):
        moved = torch.full_like(x, float("nan"))
        label = torch.tensor([y])
        assert not broken(model, x, label, moved, norm="linf", eps=1.0, box=BOX, batch_size=1).any()


def test_a_gradient_that_is_not_finite_leaves_the_image():
    class Sharp(nn.Module):
        def forward(self, z):
            z = z.flatten(1).sum(1)
            return torch.stack([(z * 0).sqrt() * z + 1, torch.zeros_like(z)], dim=1)

    model, x, y = EnergyClassifier(Sharp()).eval(), images(3), torch.zeros(3, dtype=torch.long)
    for norm in ("linf", "l2"):
        moved = pgd(model, x, y, norm=norm, eps=0.1, box=BOX, steps=3, seed=0, position=("test",))
        assert bool(((moved - x).abs() <= 0.2 + 1e-6).all())
        assert not pgd_breaks(model, norm, box=BOX, steps=3)(x, y, 0.1).any()


def lottery(calls):
    """Class 1 at points that a hash of the input picks: which start wins is chance, and gradients are 0."""

    class Lottery(nn.Module):
        def forward(self, z):
            calls.append(len(z))
            hit = ((z.flatten(1).double() * 1e4).sum(1) % 1 < 0.2).float()
            return torch.stack([0.5 * torch.ones(len(z)), hit], dim=1)

    return EnergyClassifier(Lottery()).eval()


def test_restarts_are_independent_and_only_survivors_are_attacked_again():
    x, y = images(1000), torch.zeros(1000, dtype=torch.long)
    counts, work = {}, {}
    for restarts in (1, 2, 4):
        calls = []
        breaks = pgd_breaks(lottery(calls), "linf", box=BOX, steps=1, restarts=restarts, batch_size=1000)
        hit = breaks(x, y, 0.1)
        counts[restarts], work[restarts] = hit, calls
    # Each start wins a fifth of what is left: 0.8 ** restarts stand; 4 standard deviations of a proportion.
    for restarts, hit in counts.items():
        share = 0.8**restarts
        assert abs(float((~hit).float().mean()) - share) < 4 * (share * (1 - share) / 1000) ** 0.5
    assert bool((counts[2] >= counts[1]).all())
    assert bool((counts[4] >= counts[2]).all())
    alive = [1000, int((~counts[1]).sum()), int((~counts[2]).sum())]
    assert sorted(set(work[2]), reverse=True) == alive[:2]


def test_what_breaks_once_stays_broken():
    seen = []

    def breaks(x, y, eps):
        seen.append((x[:, 0].tolist(), eps))
        return x[:, 0] == {0.1: 1.0, 0.2: 3.0}.get(eps, -1.0)

    x, y = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.zeros(4, dtype=torch.long)
    clean = torch.tensor([True, True, False, True])
    standing = standing_under(breaks, clean, x, y, [0.1, 0.2, 0.3])
    assert seen == [([0, 1, 3], 0.1), ([0, 3], 0.2), ([0], 0.3)]
    after = [[True, False, False, True], [True, False, False, False], [True, False, False, False]]
    assert standing.tolist() == [clean.tolist(), *after]


def test_batches_of_attacks_have_their_own_starts():
    """The same image in two batches: with one shared stream both would start at the same point."""
    x, y = images(1).repeat(2, 1, 1, 1), torch.zeros(2, dtype=torch.long)
    points = []

    def spy(model, *args, **settings):
        points.append(pgd(model, *args, **settings))
        return points[-1]

    model = lottery([])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jemstone.evaluation.attacks.pgd", spy)
        pgd_breaks(model, "linf", box=BOX, steps=1, batch_size=1)(x, y, 0.1)
    assert len(points) == 2
    assert not torch.equal(points[0], points[1])


def test_judged_believes_no_claim():
    weight = random_weight(2)
    model, x = linear(weight), images(20)
    y = (x.flatten(1) @ weight.T).argmax(dim=1)

    def liar(model, x, y, *, eps, box, seed, batch_size):
        return -x  # flips the class, and is far away

    assert not judged(liar, model, "linf", box=BOX, seed=0, batch_size=8)(x, y, 0.01).any()
    assert judged(liar, model, "linf", box=BOX, seed=0, batch_size=8)(x, y, 0.9).all()


def test_mistakes_are_named(monkeypatch):
    model = linear(random_weight(2))
    for settings in ({"steps": 0}, {"steps": 1, "restarts": 0}):
        with pytest.raises(ConfigError, match="at least one step and one start"):
            pgd_breaks(model, "linf", box=BOX, **settings)
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(MissingExtra, match=r"jemstone\[attacks\]"):
        pgd_breaks(model, "linf", box=BOX, steps=1)(images(1), torch.tensor([0]), 0.1)
