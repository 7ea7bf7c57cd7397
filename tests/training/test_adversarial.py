"""Adversarial examples against closed forms: on a linear model the strongest one within a ball is known."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from jemstone.data import to_box_radius
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError
from jemstone.rng import generator
from jemstone.training.adversarial import adversarial_examples

BOX = (-1.0, 1.0)


def linear(weight, scale=1.0):
    """f(x) = scale W x on flattened inputs."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(len(weight[0]), len(weight), bias=False))
    with torch.no_grad():
        network[1].weight.copy_(scale * torch.as_tensor(weight))
    return EnergyClassifier(network)


def random_linear(classes=2, size=12):
    return linear(torch.randn(classes, size, generator=generator(1, "weight")))


def attack(model, x, y, *, position="attack", **settings):
    settings = {"radius": 0.1, "steps": 5, "box": None} | settings
    return adversarial_examples(model, x, torch.tensor(y), rng=generator(0, position), **settings)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize(("box", "length"), [(None, 0.1), (BOX, 0.2), ((0.0, 1.0), 0.1)])
def test_attack_on_a_linear_model_is_the_strongest(scale, box, length):
    """At scale 10^4 every softmax is saturated and the gradient of the cross-entropy itself is 0."""
    weight = torch.randn(2, 12, generator=generator(1, "weight"))
    direction = (weight[1] - weight[0]) / (weight[1] - weight[0]).norm()
    x = 0.3 + 0.4 * torch.rand(6, 3, 2, 2, generator=generator(1, "x"))
    y = [0, 0, 0, 1, 1, 1]
    moved = attack(linear(weight, scale), x, y, box=box, steps=60, step_size=0.1)
    assert moved.shape == x.shape
    sign = torch.tensor([1.0 if label == 0 else -1.0 for label in y])[:, None]
    assert torch.allclose((moved - x).flatten(1), sign * length * direction, atol=1e-5)


def test_attack_ascends_against_all_other_classes():
    """With three classes the gradient of log sum_{j != y} exp f_j - f_y weighs the others by their softmax."""
    weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    x = torch.tensor([[0.0, 0.3, -0.7]])
    moved = attack(linear(weight), x, [0], radius=1e-3, steps=60, step_size=1e-3)
    share = torch.softmax(x[0, 1:], dim=0)
    direction = torch.tensor([-1.0, share[0], share[1]])
    assert torch.allclose((moved - x)[0] / 1e-3, direction / direction.norm(), atol=2e-3)


def test_radius_belongs_to_pixels_and_vectors_keep_their_units():
    assert to_box_radius(0.5, BOX) == 1.0
    assert to_box_radius(0.5, (0.0, 1.0)) == 0.5
    assert to_box_radius(0.5, None) == 0.5


def test_start_is_uniform_in_the_ball():
    """A model without a gradient leaves the start where it is. In three dimensions each coordinate of a uniform point
    of the unit ball has the distribution function (2 + 3 t - t^3) / 4, and its distance cubed is uniform."""
    model, x = linear(torch.zeros(2, 3)), torch.full((4000, 3), 2.0)
    start = (attack(model, x, [0] * len(x), radius=0.5) - x) / 0.5
    assert stats.kstest(start.norm(dim=1).numpy() ** 3, stats.uniform.cdf).pvalue > 1e-3
    for axis in range(3):
        assert stats.kstest(start[:, axis].numpy(), lambda t: (2 + 3 * t - t**3) / 4).pvalue > 1e-3
    assert abs(start.mean(dim=0)).max() < 4 / math.sqrt(5 * len(x))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_default_step_size(steps):
    model, x = random_linear(), torch.zeros(3, 12)
    default, doubled = (
        attack(model, x, [0, 1, 0], steps=steps, step_size=s) for s in (2.5 * 0.1 / steps, 5 * 0.1 / steps)
    )
    assert torch.equal(attack(model, x, [0, 1, 0], steps=steps), default)
    assert not torch.equal(default, doubled)


@pytest.mark.parametrize(("box", "unit"), [(None, 1.0), (BOX, 0.5)])
def test_single_step_against_its_formula(box, unit):
    """In model units the radius is 0.5 and the step 0.1, with and without a box."""
    weight = torch.randn(2, 3, generator=generator(1, "weight"))
    x = torch.zeros(5, 3)
    start = attack(linear(torch.zeros(2, 3)), x, [0] * 5, radius=0.5, steps=1)
    direction = (weight[1] - weight[0]) / (weight[1] - weight[0]).norm()
    moved = attack(linear(weight), x, [0] * 5, radius=0.5 * unit, steps=1, step_size=0.1 * unit, box=box)
    expected = start + 0.1 * direction
    assert (expected.norm(dim=1) > 0.5).any(), "no row needs the projection"
    assert (expected.norm(dim=1) < 0.5).any(), "every row needs the projection"
    assert torch.allclose(moved, expected * (0.5 / expected.norm(dim=1, keepdim=True)).clamp(max=1), atol=1e-6)


def test_attack_stays_in_the_ball_and_the_box():
    x = 2 * torch.rand(20, 3, 4, 4, generator=generator(2, "x")) - 1
    x[:10] = x[:10].sign()
    moved = attack(random_linear(5, 48), x, [0, 1, 2, 3, 4] * 4, radius=0.5, box=BOX)
    assert moved.abs().max() <= 1
    length = (moved - x).flatten(1).norm(dim=1)
    assert length.max() <= 1 + 1e-5
    assert length[10:].min() > 0.5


def test_pixel_off_the_box_is_not_clamped_by_the_attack():
    weight = torch.tensor(
        [[0.0, 0.0, 0.0, 0.0], [1.0, -1.0, -1.0, 1.0]]
    )  # the attack on class 0 ascends the second row
    x = torch.tensor([[1.1, 1.1, -1.1, -1.1]])
    moved = attack(linear(weight), x, [0], radius=0.01, steps=40, box=BOX)[0]
    assert moved[0] == x[0, 0]  # pushed further out: stays, and is not pulled to 1 either
    assert moved[2] == x[0, 2]
    assert 1.08 < moved[1] < 1.1  # pushed in: moves by no more than the attack
    assert -1.1 < moved[3] < -1.08


def test_unlabelled_rows_come_back_as_they_are():
    x = torch.randn(4, 12, generator=generator(3, "x"))
    moved = attack(random_linear(), x, [-1, 0, -1, 1], box=BOX)
    assert torch.equal(moved[[0, 2]], x[[0, 2]])
    assert (moved[[1, 3]] != x[[1, 3]]).any(dim=1).all()
    assert torch.equal(attack(random_linear(), x, [-1] * 4), x)


class Coupled(nn.Module):
    """Logits of x minus the mean of the batch: rows see one another, as they do in BatchNorm."""

    def forward(self, x):
        margin = (x - x.mean(dim=0)).sum(dim=1)
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


def test_loss_of_an_unlabelled_row_does_not_count():
    """Were it counted, at any label, the two gradients on row 0 would be equal or cancel."""
    x = torch.zeros(2, 3)
    for label, sign in ((0, 1.0), (1, -1.0)):
        moved = attack(EnergyClassifier(Coupled()), x, [label, -1], steps=60, step_size=0.1)
        assert torch.allclose(moved[0], torch.full((3,), sign * 0.1 / math.sqrt(3)), atol=1e-5)


def test_parameters_and_inputs_are_left_alone():
    model = random_linear()
    weight = next(model.parameters())
    before, kept = weight.detach().clone(), torch.ones_like(weight)
    x = torch.randn(3, 12, generator=generator(4, "x")).requires_grad_()
    original = x.detach().clone()
    for gradient in (None, kept.clone()):
        weight.grad = gradient
        moved = attack(model, x, [0, 1, -1], box=BOX)
        assert weight.grad is None if gradient is None else torch.equal(weight.grad, kept)
    assert weight.requires_grad
    assert torch.equal(weight, before)
    assert torch.equal(x, original)
    assert x.grad is None
    assert not moved.requires_grad


def test_attack_works_where_gradients_are_off():
    x = torch.zeros(2, 12)
    with torch.no_grad():
        moved = attack(random_linear(), x, [0, 1])
    assert torch.equal(moved, attack(random_linear(), x, [0, 1]))


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_that_of_the_caller(training):
    seen = []
    model = random_linear().train(training)
    model.network.register_forward_hook(lambda module, *_: seen.append(module.training))
    attack(model, torch.zeros(2, 12), [0, 1], steps=3)
    assert seen == [training] * 3
    assert model.training is training


def test_same_stream_same_attack():
    model, x = random_linear(), torch.zeros(3, 12)
    state = torch.get_rng_state()
    first = attack(model, x, [0, 1, 1], steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(attack(model, x, [0, 1, 1], steps=2), first)
    assert not torch.equal(attack(model, x, [0, 1, 1], steps=2, position="other"), first)


class Broken(nn.Module):
    """Logits whose gradient is not a number in the first row."""

    def forward(self, x):
        logits = torch.stack([x.sum(dim=1), -x.sum(dim=1)], dim=1)
        return logits * torch.tensor([math.nan] + [1.0] * (len(x) - 1))[:, None]


def test_gradient_that_is_not_finite_stays_visible():
    moved = attack(EnergyClassifier(Broken()), torch.zeros(2, 3), [0, 0], box=BOX)
    assert moved[0].isnan().all()
    assert moved[1].isfinite().all()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"radius": 0.0}, "radius"),
        ({"radius": -1.0}, "radius"),
        ({"radius": math.nan}, "radius"),
        ({"radius": math.inf}, "radius"),
        ({"steps": 0}, "steps=0"),
        ({"step_size": 0.0}, "step_size"),
    ],
)
def test_impossible_settings_are_named(settings, name):
    with pytest.raises(ConfigError, match=name):
        attack(random_linear(), torch.zeros(1, 12), [0], **settings)
