"""AutoAttack on linear models, where what can be broken is known in closed form, and its manners."""

import logging
import sys

import numpy as np
import pytest
import torch
from test_attacks import BOX, EPS, block_weight, cases, images, linear, random_weight
from torch import nn

from jemstone.energy import EnergyClassifier
from jemstone.errors import MissingExtra
from jemstone.evaluation.attacks import broken, judged
from jemstone.evaluation.autoattack import STANDARD, autoattack, in_pixels, library, members, square

pytest.importorskip("pyautoattack")
HOW = {"box": BOX, "seed": 0, "batch_size": 64}


def short_square(monkeypatch):
    """The last of the ensemble spends 5000 queries on every image that cannot be broken: 20 do here."""
    made = library().AutoAttack.__init__

    def init(self, *args, **settings):
        made(self, *args, **settings)
        self.square.n_queries = 20

    monkeypatch.setattr(library().AutoAttack, "__init__", init)


@pytest.mark.parametrize(("norm", "classes"), [("linf", 5), ("l2", 5), ("linf", 2), ("l2", 3)])
def test_autoattack_breaks_exactly_what_can_be_broken(norm, classes, monkeypatch):
    """Boundaries of different slopes: targeted attacks find the nearest. A radius in wrong units would be half or twice
    as long, and miscount."""
    short_square(monkeypatch)
    x, y, exact = cases(random_weight(classes), norm, 40)
    model = linear(random_weight(classes))
    eps = EPS[norm][0]
    moved = autoattack(model, x, y, norm=norm, eps=eps, classes=classes, **HOW)
    hit = broken(model, x, y, moved, norm=norm, eps=eps, box=BOX, batch_size=64)
    assert 0.1 < float((exact > eps).float().mean()) < 0.9
    assert torch.equal(hit, exact < eps)


def test_square_finds_what_can_be_broken_and_no_more():
    """Signs vary from pixel to pixel, so that squares larger than one pixel serve badly: it takes queries."""
    weight = block_weight(2)
    x, y, exact = cases(weight, "linf", 100)
    model = linear(weight)
    hit = judged(lambda *a, **s: square(*a, queries=300, **s), model, "linf", **HOW)(x, y, 0.03)
    assert not bool((hit & (exact > 0.03)).any())
    assert float(hit[(exact > 0) & (exact < 0.03)].float().mean()) > 0.5
    few = judged(lambda *a, **s: square(*a, queries=2, **s), model, "linf", **HOW)(x, y, 0.03)
    assert int(few.sum()) < int(hit.sum())


@pytest.mark.parametrize(("classes", "targets"), [(2, 1), (4, 3), (10, 9), (100, 9)])
def test_it_aims_at_nine_other_classes_or_at_all(classes, targets, monkeypatch):
    seen = []

    def run(self, x, y, *, batch_size):
        seen.append((self.apgd_targeted.n_target_classes, self.fab.n_target_classes, self.attacks_to_run))
        return x, y

    monkeypatch.setattr(library().AutoAttack, "run_standard_evaluation", run)
    x, y = images(1), torch.tensor([0])
    autoattack(linear(random_weight(classes)), x, y, norm="linf", eps=0.1, classes=classes, **HOW)
    assert seen == [(targets, targets, members(classes, "linf", (5, 5)))]


@pytest.mark.parametrize("box", [(-1.0, 1.0), (0.0, 1.0), (-2.0, 3.0)])
def test_the_library_sees_images_in_the_unit_interval(box, monkeypatch):
    seen = []
    low, high = box
    x = torch.tensor([low, (low + high) / 2, high]).reshape(3, 1, 1, 1).expand(3, 1, 5, 5)

    class Fake:
        def __init__(self, model, **settings):
            self.model, self.settings = model, settings
            self.apgd_targeted = self.fab = self

        def run_standard_evaluation(self, x, y, *, batch_size):
            seen.append((x, self.settings["eps"], self.settings["norm"]))
            return x + 0.25, y

    monkeypatch.setattr(library(), "AutoAttack", Fake)
    model, y = linear(random_weight(4)), torch.zeros(3, dtype=torch.long)
    moved = autoattack(model, x, y, norm="l2", eps=0.5, classes=4, box=box, seed=0, batch_size=2)
    pixels, eps, norm = seen[0]
    assert torch.allclose(pixels[:, 0, 0, 0], torch.tensor([0.0, 0.5, 1.0]))
    assert (eps, norm) == (0.5, "L2")
    assert torch.allclose(moved, x + 0.25 * (high - low))
    assert torch.allclose(in_pixels(model, box)(pixels), model(x), atol=1e-4)


def test_the_ensemble_fits_the_classes():
    assert members(10, "linf", (8, 8)) == members(4, "l2", (32, 32)) == STANDARD
    assert members(3, "linf", (8, 8)) == ["apgd-ce", "apgd-dlr", "fab-t", "square"]
    assert members(2, "linf", (8, 8)) == ["apgd-ce", "fab-t", "square"]
    assert members(10, "linf", (4, 4)) == STANDARD


def test_square_is_left_out_exactly_where_the_library_fails():
    from pyautoattack.square import SquareAttack

    def runs(size):
        x, y = torch.rand(2, 1, *size), torch.zeros(2, dtype=torch.long)

        def model(x):
            return torch.tensor([[2.0, 1.0]]).repeat(len(x), 1)

        with torch.random.fork_rng():
            try:
                SquareAttack(model, norm="L2", n_queries=1, eps=0.5, seed=0, device="cpu").perturb(x, y)
            except (RuntimeError, ZeroDivisionError):
                return False
        return True

    sizes = (
        [(side, side) for side in range(3, 34)] + [(28, w) for w in (1, 4, 5, 6, 8, 14)] + [(5, 9), (14, 28), (7, 3)]
    )
    expected = {size: runs(size) for size in sizes}
    assert {size: "square" in members(10, "l2", size) for size in sizes} == expected
    assert True in expected.values()
    assert False in expected.values()


def test_it_leaves_no_trace(monkeypatch, caplog, capfd):
    """A randomised, saturated model, of which the library warns; nothing is printed, logged, traced or drawn."""
    short_square(monkeypatch)

    class Warned(nn.Module):
        def forward(self, x):
            noise = torch.randn(len(x), 4)
            return (x.flatten(1)[:, :4] + 0.1 * noise).softmax(dim=1)

    x, y = images(6), torch.zeros(6, dtype=torch.long)

    def tracer(*_):
        return None

    logger = logging.getLogger("auto-attack")
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        with caplog.at_level(logging.DEBUG):
            autoattack(EnergyClassifier(Warned()), x, y, norm="linf", eps=0.1, classes=4, **HOW)
            square(EnergyClassifier(Warned()), x, y, eps=0.1, queries=3, **HOW)
        traced = sys.gettrace()
    finally:
        sys.settrace(before)
    assert traced is tracer
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert not logger.disabled
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_the_seed_decides():
    """Short runs of Square, of which chance decides what they find."""
    weight = block_weight(2)
    x, y, _ = cases(weight, "linf", 60)

    def run(seed):
        torch.rand(1)  # the global stream moves on between runs
        return square(linear(weight), x, y, eps=0.03, queries=3, box=BOX, seed=seed, batch_size=16)

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_a_model_without_a_gradient_is_attacked_all_the_same(monkeypatch):
    short_square(monkeypatch)

    class Cut(nn.Module):
        def forward(self, x):
            return x.detach().flatten(1)[:, :4]

    x, y = images(4), torch.zeros(4, dtype=torch.long)
    moved = autoattack(EnergyClassifier(Cut()), x, y, norm="linf", eps=0.5, classes=4, **HOW)
    assert moved.shape == x.shape


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    x, y = images(1), torch.tensor([0])
    model = linear(random_weight(4))
    with pytest.raises(MissingExtra, match=r"pyautoattack.*jemstone\[attacks\]"):
        autoattack(model, x, y, norm="linf", eps=0.1, classes=4, **HOW)
    with pytest.raises(MissingExtra, match="pyautoattack"):
        square(model, x, y, eps=0.1, queries=1, **HOW)
