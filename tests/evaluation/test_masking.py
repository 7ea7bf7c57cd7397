"""Each sign of masked gradients is raised by a model that masks them, and not by the same model unmasked."""

import math

import pytest
import torch
from test_attacks import BOX, images, linear, random_weight
from torch import nn

from jemstone.energy import EnergyClassifier
from jemstone.evaluation import exact_proportion
from jemstone.evaluation.masking import (
    black_box_beats_white_box,
    gradient_missing,
    random_search,
    small_n,
    survives_huge_eps,
    zero_gradient,
)


class Cut(nn.Module):
    def __init__(self, network, how):
        super().__init__()
        self.network, self.how = network, how

    def forward(self, x):
        return self.network(self.how(x))


def masked(how):
    return EnergyClassifier(Cut(linear(random_weight(4)), how)).eval().requires_grad_(False)


def not_finite(x):
    """The gradient of sqrt at 0 is infinite, for images whose first pixel is positive."""
    return x + (x - x).clamp(min=0).sqrt() * (x[:, :, :1, :1] > 0)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (lambda x: x, lambda x: torch.zeros(len(x), dtype=torch.bool)),
        (lambda x: x * torch.eye(5), lambda x: torch.zeros(len(x), dtype=torch.bool)),  # 0 in part of the pixels
        (lambda x: (x * 4).round() / 4, lambda x: torch.ones(len(x), dtype=torch.bool)),
        (lambda x: x.detach(), lambda x: torch.ones(len(x), dtype=torch.bool)),
        (lambda x: torch.where(x[:, :, :1, :1] > 0, x, x.detach()), lambda x: ~(x[:, 0, 0, 0] > 0)),
    ],
)
def test_missing_gradients_are_found_image_by_image(how, expected):
    x, y = images(30), torch.arange(30) % 4
    assert torch.equal(gradient_missing(masked(how), x, y, 8), expected(x))


def test_gradients_that_are_not_finite_are_missing():
    model, x = masked(not_finite), images(30)
    at = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(at)[:, 0].sum(), at)
    bad = ~grad.flatten(1).isfinite().all(dim=1)
    assert torch.equal(gradient_missing(model, x, torch.arange(30) % 4, 8), bad)
    assert bad.any()


def test_saturation_of_the_softmax_is_no_missing_gradient():
    """Cross-entropy has gradient 0 on most images here; the log-odds, which the attack ascends, have not."""
    x = images(20)
    model = linear(1e4 * random_weight(4))
    y = model(x).argmax(dim=1)
    at = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(at), y), at)
    assert float((grad == 0).flatten(1).all(dim=1).float().mean()) > 0.8
    assert not gradient_missing(model, x, y, 8).any()


def test_nothing_attacked_has_nothing_missing():
    assert gradient_missing(masked(lambda x: x), images(0), torch.zeros(0, dtype=torch.long), 8).shape == (0,)


@pytest.mark.parametrize(("missing", "n", "warned"), [(0, 0, 0), (0, 300, 0), (3, 300, 0), (4, 300, 1), (1, 50, 1)])
def test_zero_gradient_is_warned_of_above_one_percent(missing, n, warned):
    found = zero_gradient(missing, n)
    assert [w.name for w in found] == ["zero-gradient"] * warned
    assert all(f"{missing} of {n}" in w.text for w in found)


def standing(both, only_black, only_white, neither):
    """`white` and `black`, where "only_black" counts the images that the black box alone breaks."""
    white = torch.tensor([True] * (both + only_black) + [False] * (only_white + neither))
    black = torch.tensor([True] * both + [False] * only_black + [True] * only_white + [False] * neither)
    return white, black


@pytest.mark.parametrize("only_black", range(0, 16))
@pytest.mark.parametrize("only_white", [0, 1, 4])
def test_the_sign_test_is_the_binomial_tail(only_black, only_white):
    found = black_box_beats_white_box(*standing(40, only_black, only_white, 9), 0.1, 500)
    n = only_black + only_white
    p = sum(math.comb(n, k) for k in range(only_black, n + 1)) / 2**n
    assert [w.name for w in found] == ["black-box-beats-white-box"] * (p < 0.01)
    for warned in found:
        for number in (f"{only_black} of {n + 49}", f"PGD breaks {only_white}", "500 queries", "0.1,", f"p = {p:.2g}"):
            assert number in warned.text


@pytest.mark.parametrize("k", range(0, 30))
def test_survival_is_warned_of_when_the_lower_bound_exceeds_five_percent(k):
    """Clopper and Pearson: the bound exceeds p exactly where P(X >= k | n, p) < 2.5 %."""
    found = survives_huge_eps(exact_proportion("huge", k, 150), 0.5)
    tail = sum(math.comb(150, i) * 0.05**i * 0.95 ** (150 - i) for i in range(k, 151))
    assert [w.name for w in found] == ["survives-huge-eps"] * (tail < 0.025)
    assert all(f"{k / 150:.1%}" in w.text and "0.5" in w.text and "n = 150" in w.text for w in found)


def test_few_images_are_named():
    assert small_n({"PGD": 300, "AutoAttack": 0}) == []
    assert small_n({"PGD": 100, "AutoAttack": 100}) == []
    ((name, text),) = small_n({"PGD": 300, "AutoAttack": 99})
    assert name == "small-n"
    assert "AutoAttack on 99 images" in text
    assert "PGD" not in text
    ((_, text),) = small_n({"PGD": 40, "AutoAttack": 20})
    assert "PGD on 40 images" in text
    assert "AutoAttack on 20 images" in text


def test_random_search_finds_corners_within_ball_and_box():
    """Class 1 where the first pixel has moved up by 0.15 or more: half of the corners, until the box is in the way."""

    class Step(nn.Module):
        def forward(self, x):
            first = x[:, 0, 0, 0]
            return torch.stack([torch.zeros_like(first), (first - 0.15).sign()], dim=1)

    n = 600
    x, y = torch.zeros(n, 1, 2, 2), torch.zeros(n, dtype=torch.long)
    x[:, 0, 1] = 0.95
    shares = []
    for queries in (1, 2, 4):
        how = {"queries": queries, "seed": 0, "batch_size": 256}
        moved = random_search(EnergyClassifier(Step()), x, y, eps=0.1, box=BOX, **how)
        changed = (moved != x).flatten(1).any(dim=1)
        assert float((moved - x).abs().max()) <= 0.2 + 1e-6
        assert float(moved.max()) <= 1
        assert torch.equal(changed, moved[:, 0, 0, 0] > 0.15)
        shares.append(float(changed.float().mean()))
        assert torch.equal(random_search(EnergyClassifier(Step()), x, y, eps=0.1, box=BOX, **how), moved)
    for queries, share in zip((1, 2, 4), shares, strict=True):
        expected = 1 - 0.5**queries
        assert abs(share - expected) < 4 * (expected * (1 - expected) / n) ** 0.5
    short = random_search(EnergyClassifier(Step()), x, y, eps=0.07, queries=9, box=BOX, seed=0, batch_size=256)
    assert torch.equal(short, x)
