"""Refinement where it is known in closed form: an energy that is exactly quadratic, under a linear classifier."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from jemstone.data import Dataset, Split
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError
from jemstone.evaluation.intervals import exact_proportion
from jemstone.evaluation.refined_logits import refined_logits
from jemstone.evaluation.refinement import RefinementSettings, refinement_section
from jemstone.evaluation.section import Chains, Common, Subject, Work
from jemstone.networks.layers import SeparateBatchNorm2d
from jemstone.sampling.initial import uniform
from jemstone.sampling.kernels import ChainInfo, ChainState, Sampler, clipped, langevin, mala, normalized

BOX = (-1.0, 1.0)
CENTRE = 0.1
SHAPE = (1, 3, 3)
SETTINGS = RefinementSettings(images=100, steps=(0, 1, 2), linf=(0.02, 0.05), attack_steps=10, expectation=2, votes=3)
COMMON = Common(batch_size=64)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


W = torch.randn(9, generator=stream())


class Quadratic(nn.Module):
    """Logits log p(y|x) - |x - CENTRE|^2 / 2, so that E(x) = |x - CENTRE|^2 / 2 and f_1 - f_0 = w.x + bias."""

    def __init__(self, bias=0.0, curvature=1.0):
        super().__init__()
        self.bias, self.curvature = bias, curvature

    def forward(self, x):
        x = x.flatten(1)
        margin = x @ W.to(x.dtype) + self.bias
        energy = self.curvature * (x - CENTRE).square().sum(dim=1, keepdim=True) / 2
        return torch.stack([-margin / 2, margin / 2], dim=1).log_softmax(dim=1) - energy


def refined(x, shrink):
    """The end of noiseless Langevin steps on Quadratic that shrink the distance to the centre by `shrink` in all."""
    return CENTRE + shrink * (x - CENTRE)


def subject_of(network, sampler, x, y, shape=SHAPE):
    split = Split(x, y)
    data = Dataset("made", split, split, split, ("a", "b"))
    chains = None if sampler is None else Chains(uniform(shape, data.box), sampler, 2, 10)
    return Subject(EnergyClassifier(network).eval(), data, chains=chains)


def points(n=60, scale=0.3):
    """Inputs well inside the box, with the labels of the sign of w.x, a few of them wrong."""
    x = (torch.rand(n, *SHAPE, generator=stream(1)) * 2 - 1) * scale
    y = (x.flatten(1) @ W > 0).long()
    y[:5] = 1 - y[:5]
    return x, y


class Curved(nn.Module):
    def __init__(self, activation=nn.Tanh):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(9, 16), activation(), nn.Linear(16, 3))

    def forward(self, x):
        return self.layers(3 * x)


# The refined point and its Jacobian


@pytest.mark.parametrize("gradient", ["none", "exact", "straight"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_refined_logits_are_those_of_the_refined_point(steps, gradient):
    network = Quadratic(0.2)
    x = points()[0].double()
    got = refined_logits(
        EnergyClassifier(network),
        langevin(0.3, 0.0, box=BOX),
        x.requires_grad_(),
        steps,
        2,
        stream(),
        gradient=gradient,
    )
    torch.testing.assert_close(got, network(refined(x, 0.7**steps)))


def test_noise_is_averaged_over_the_draws():
    """The margin is linear, so the mean over draws is the margin at the mean of the refined points."""
    x, sampler = points()[0].double(), langevin(0.5, 0.2)
    logits = refined_logits(EnergyClassifier(Quadratic()), sampler, x, 1, 3, stream(5))
    noise = torch.randn(3 * len(x), *SHAPE, generator=stream(5), dtype=torch.float64)
    ends = refined(x, 0.5) + 0.2 * noise.view(len(x), 3, *SHAPE).mean(dim=1)
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], ends.flatten(1) @ W.double())


def gradient_of(model, sampler, x, steps, kind):
    x = x.clone().requires_grad_()
    margins = refined_logits(model, sampler, x, steps, 3, stream(7), gradient=kind)
    return torch.autograd.grad((margins[:, 1] - margins[:, 0]).sum(), x)[0]


@pytest.mark.parametrize(
    "sampler",
    [
        langevin(0.3, 0.05),
        langevin(0.3, 0.05, box=BOX),
        clipped(0.3, clip=0.2, noise=0.02, box=BOX),
        normalized(0.2, noise=0.01),
        mala(0.01, temperature=0.5),
    ],
    ids=["langevin", "box", "clipped", "normalized", "mala"],
)
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_the_gradient_through_the_sampling_is_that_of_finite_differences(sampler, activation):
    model = EnergyClassifier(Curved(activation)).double()
    x = points(4)[0].double()
    grad = gradient_of(model, sampler, x, 2, "exact").flatten(1)

    def margin(x):
        logits = refined_logits(model, sampler, x, 2, 3, stream(7))
        return (logits[:, 1] - logits[:, 0]).detach()

    for i in range(9):
        step = 1e-6 * torch.eye(9, dtype=torch.float64)[i].view(SHAPE)
        difference = (margin(x + step) - margin(x - step)) / 2e-6
        torch.testing.assert_close(grad[:, i], difference, rtol=1e-4, atol=1e-6)


def test_jacobians_in_closed_form():
    x = points(6)[0].double()
    w = W.double().view(SHAPE).expand_as(x)
    model = EnergyClassifier(Quadratic())
    torch.testing.assert_close(gradient_of(model, langevin(0.3, 0.1), x, 2, "exact"), 0.7**2 * w)
    torch.testing.assert_close(gradient_of(model, langevin(0.3, 0.1), x, 2, "straight"), w)
    held = clipped(0.3, clip=1e-6)  # every entry of the gradient is clipped: only the identity path is left
    torch.testing.assert_close(gradient_of(model, held, x, 2, "exact"), w)
    outside = langevin(0.1, 0.0, box=(0.9, 1.0))  # every pixel is clamped: the exact gradient is blind
    assert not gradient_of(model, outside, x, 2, "exact").any()
    torch.testing.assert_close(gradient_of(model, outside, x, 2, "straight"), w)


def test_chains_use_the_statistics_of_negatives_and_the_decision_those_of_data():
    layer, seen = SeparateBatchNorm2d(1), []
    layer.register_forward_pre_hook(lambda layer, _: seen.append(layer.of_negatives))
    model = EnergyClassifier(nn.Sequential(layer, nn.Flatten(), nn.Linear(9, 2))).eval()
    for kind in ("none", "exact", "straight"):
        seen.clear()
        x = points(2)[0].requires_grad_()
        refined_logits(model, langevin(0.1, 0.1), x, 2, 1, stream(), gradient=kind)
        assert seen == [True, True, False]


# Accuracy in closed form


def robust(x, y, bias, shrink, eps):
    """Standing where the margin of the refined point exceeds what a step of 2 eps in every pixel can take from it."""
    margin = (refined(x, shrink).flatten(1) @ W + bias) * (2 * y - 1)
    return (margin > abs(shrink) * 2 * eps * W.abs().sum()).numpy()


@pytest.mark.parametrize("step_size", [0.3, 1.5])  # at 1.5 one step mirrors x at the centre, and gradients turn round
def test_accuracy_is_that_of_the_closed_form(step_size):
    x, y = points()
    bias = -0.2
    subject = subject_of(Quadratic(bias), langevin(step_size, 0.0, box=BOX), x, y)
    section = refinement_section(subject, SETTINGS, COMMON, Work())
    values = {result.name: result for result in section.results}
    adaptive = ["accuracy", "pgd_linf/0.02", "pgd_linf/0.05"]
    transfer = ["transfer_linf/0.02", "transfer_linf/0.05"]
    worst = ["worst_linf/0.02", "worst_linf/0.05"]
    names = {0: adaptive, 1: adaptive + transfer + worst, 2: adaptive + transfer + worst}
    assert list(values) == list(section.examples) == [f"refined/{k}/{name}" for k in names for name in names[k]]
    different = set()
    for k in (0, 1, 2):
        stood = robust(x, y, bias, (1 - step_size) ** k, 0)
        for eps, name in [(0, "accuracy"), (0.02, "pgd_linf/0.02"), (0.05, "pgd_linf/0.05")]:
            truth = robust(x, y, bias, (1 - step_size) ** k, eps)
            assert (truth <= stood).all()
            np.testing.assert_array_equal(section.examples[f"refined/{k}/{name}"], truth)
            assert values[f"refined/{k}/{name}"] == exact_proportion(f"refined/{k}/{name}", int(truth.sum()), 60)
            different.add(int(truth.sum()))
    assert len(different) > 5
    assert section.notes == []
    assert section.warnings == []


def test_transfer_is_the_plain_attack_on_the_refined_classifier():
    """The plain attack ends at x - 2 eps sign(w); one step of 1.5 mirrors it, so what was to harm helps."""
    x, y = points()
    subject = subject_of(Quadratic(), langevin(1.5, 0.0), x, y)
    section = refinement_section(subject, SETTINGS, COMMON, Work())
    side = (2 * y - 1)[:, None]
    for k in (1, 2):
        standing = robust(x, y, 0.0, (-0.5) ** k, 0)
        for eps in SETTINGS.linf:
            moved = x.flatten(1) - 2 * eps * side * W.sign()
            margin = (refined(moved, (-0.5) ** k) @ W) * side.squeeze(1)
            standing = standing & (margin > 0).numpy()
            np.testing.assert_array_equal(section.examples[f"refined/{k}/transfer_linf/{eps:g}"], standing)


def test_no_steps_is_plain_classification_whatever_the_noise():
    x, y = points()
    settings = RefinementSettings(images=60, steps=(0,), linf=(0.02,), attack_steps=5)
    section = refinement_section(subject_of(Quadratic(), langevin(1.0, 9.0, box=BOX), x, y), settings, COMMON, Work())
    np.testing.assert_array_equal(section.examples["refined/0/accuracy"], (Quadratic()(x).argmax(1) == y).numpy())
    np.testing.assert_array_equal(section.examples["refined/0/pgd_linf/0.02"], robust(x, y, 0.0, 1.0, 0.02))
    assert section.figures["transfer"] == {}


def test_figures_are_plain_and_begin_with_the_clean_accuracy():
    x, y = points()
    subject = subject_of(Quadratic(), langevin(0.3, 0.1, box=BOX), x, y)
    section = refinement_section(subject, SETTINGS, COMMON, Work())
    figures = json.loads(json.dumps(section.figures))
    assert figures["steps"] == [0, 1, 2]
    assert figures["images"] == 60
    assert set(figures["curves"]) == {"0", "1", "2"}
    assert set(figures["transfer"]) == {"1", "2"}
    values = {result.name: result for result in section.results}
    for kind, name in [("curves", "pgd_linf"), ("transfer", "transfer_linf")]:
        curve = figures[kind]["1"]
        assert curve["eps"] == [0.0, 0.02, 0.05]
        names = ["refined/1/accuracy", f"refined/1/{name}/0.02", f"refined/1/{name}/0.05"]
        for field in ("low", "high"):
            assert curve[field] == [getattr(values[n], field) for n in names]
        assert curve["accuracy"] == [values[n].value for n in names]


def test_perturbations_stay_in_the_ball_and_in_the_box():
    x, y = points(30, scale=1.0)
    kept = {}
    subject = subject_of(Quadratic(), langevin(0.3, 0.1, box=BOX), x, y)
    refinement_section(subject, SETTINGS, COMMON, Work(memo=lambda name, make: kept.setdefault(name, make())))
    for eps in SETTINGS.linf:
        moved = kept[f"refinement-0-{eps:g}"]["moved"]
        assert float(np.abs(moved).max()) <= 1
        assert float(np.abs(moved - x.numpy()).max()) == pytest.approx(2 * eps, rel=1e-4)


def test_where_a_clamp_hides_the_gradient_the_straight_one_finds_the_way():
    """x_1 = clamp(x, -0.3, 0.3), and all pixels lie at 0.45: the exact gradient sees those alone that start below."""
    x, y = 0.45 * W.sign().view(SHAPE).expand(20, *SHAPE), torch.ones(20).long()
    settings = RefinementSettings(images=20, steps=(0, 1), linf=(0.05, 0.1), attack_steps=10)
    network = Quadratic(bias=-0.26 * float(W.abs().sum()), curvature=1e-6)
    section = refinement_section(
        subject_of(network, langevin(1e-6, 0.0, box=(-0.3, 0.3)), x, y), settings, COMMON, Work()
    )
    # Radii are 0.1 and 0.2 in the box: from 0.45 pixels come down to 0.35, clamped to 0.3, and to 0.25.
    assert [result.value for result in section.results if "refined/1" in result.name][:3] == [1.0, 1.0, 0.0]


def test_what_a_smaller_radius_breaks_stays_broken():
    """A model that errs within a band of mean pixels, which the attack at the larger radius steps over."""

    class Band(nn.Module):
        def forward(self, x):
            mean = x.flatten(1).mean(dim=1)
            margin = 0.001 * mean + torch.where((mean > -0.07) & (mean < -0.03), -1.0, 1.0)
            return torch.stack([-margin / 2, margin / 2], dim=1)

    x, y = torch.zeros(10, *SHAPE), torch.ones(10).long()
    subject = subject_of(Band(), custom(lambda x: x * 1), x, y)
    section = refinement_section(subject, SETTINGS, COMMON, Work())
    for name in ("refined/0/pgd_linf", "refined/1/pgd_linf", "refined/1/transfer_linf"):
        assert not section.examples[f"{name}/0.02"].any()
        assert not section.examples[f"{name}/0.05"].any()


# Distrust


def custom(move):
    """A kernel that sees no energy: x' = move(x)."""

    def step(state, energy_grad, rng):
        x = move(state.x)
        nothing = torch.zeros(len(x))
        return ChainState(x), ChainInfo(nothing, nothing, nothing, nothing)

    return Sampler(lambda x, energy_grad: ChainState(x), step)


class Wiggling(nn.Module):
    """Plain, the margin is w.x. After the kernel, pixels are on a grid, where the same margin slopes the wrong way."""

    def forward(self, x):
        gridded = (x * 10 - (x * 10).round()).flatten(1).abs().amax(dim=1) < 1e-4
        x = x.flatten(1)
        wiggle = x - 0.15 / math.pi * torch.sin(20 * math.pi * x)  # equal to x on the grid, of slope 1 - 3
        margin = torch.where(gridded[:, None], wiggle, x) @ W
        return torch.stack([-margin / 2, margin / 2], dim=1)


def test_a_kernel_that_misleads_gradients_is_seen_through():
    x, y = points()
    subject = subject_of(Wiggling(), custom(lambda x: x + (x.mul(10).round() / 10 - x).detach()), x, y)
    section = refinement_section(subject, SETTINGS, COMMON, Work())
    named = [warned for warned in section.warnings if warned.name == "black-box-beats-white-box"]
    assert any(warned.text.startswith("refined/1 at 0.05") for warned in named)
    adaptive, transfer = (section.examples[f"refined/1/{kind}/0.05"] for kind in ("pgd_linf", "transfer_linf"))
    missed, own = int((adaptive & ~transfer).sum()), int((transfer & ~adaptive).sum())
    p = sum(math.comb(missed + own, i) for i in range(missed, missed + own + 1)) / 2 ** (missed + own)
    assert p < 0.01
    text = next(warned.text for warned in named if warned.text.startswith("refined/1 at 0.05"))
    assert f"{missed} images" in text
    assert f"p = {p:.2g}" in text


def test_a_model_without_a_gradient_is_named_and_leaves_the_attack_at_its_uniform_start():
    x, y = points()
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    nn.init.zeros_(network[1].weight)
    kept = {}
    memo = Work(memo=lambda name, make: kept.setdefault(name, make()))
    section = refinement_section(subject_of(network, langevin(0.1, 0.0), x, y), SETTINGS, COMMON, memo)
    assert {warned.name for warned in section.warnings} == {"zero-gradient"}
    right = int(section.examples["refined/1/accuracy"].sum())
    assert f"refined/1 at 0.02: {right} of the 60 images" in "\n".join(warned.text for warned in section.warnings)
    start = kept["refinement-0-0.05"]["moved"] - x.numpy()
    assert np.abs(start).max() <= 0.1 + 1e-6
    assert abs(start.mean()) < 0.01
    assert abs(start.var() - 0.1**2 / 3) < 3e-4


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad):
        return grad.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("not written yet")


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return Backward.apply(grad)


class Opaque(Quadratic):
    def forward(self, x):
        return super().forward(OnceOnly.apply(x))


def test_without_second_derivatives_the_attack_goes_straight_through():
    x, y = points()
    section = refinement_section(subject_of(Opaque(), langevin(0.3, 0.0, box=BOX), x, y), SETTINGS, COMMON, Work())
    assert section.notes[0].endswith("there is no second derivative: not written yet")
    np.testing.assert_array_equal(section.examples["refined/2/pgd_linf/0.05"], robust(x, y, 0.0, 0.49, 0.05))


class Attention(nn.Module):
    def forward(self, x):
        x = x.view(len(x), 1, 9, 1)  # one head: without that axis no fused kernel is chosen
        x = nn.functional.scaled_dot_product_attention(x, x, x).sum(dim=(1, 2))
        return torch.cat([x, -x], dim=1)


@pytest.mark.parametrize(
    ("network", "sampler", "count"), [(Attention(), langevin(0.1, 0.1), 0), (Curved(), mala(0.1), 1)]
)
def test_attention_can_be_differentiated_and_a_metropolis_test_is_noted(network, sampler, count):
    x, y = points(10)
    settings = RefinementSettings(images=10, steps=(0, 1), linf=(0.05,), attack_steps=2)
    section = refinement_section(subject_of(network, sampler, x, y), settings, COMMON, Work())
    assert len(section.notes) == count
    assert all("accepted" in note for note in section.notes)


def test_what_cannot_be_refined_is_said():
    x, y = points(6)
    for subject in (
        subject_of(Quadratic(), None, x, y),
        subject_of(Quadratic(), langevin(0.1, 0.1), x.flatten(1), y, shape=(9,)),
    ):
        section = refinement_section(subject, SETTINGS, COMMON, Work())
        assert section.results == []
        assert section.figures == {}
        assert len(section.notes) == 1


# Noise, memory, settings


def test_a_kernel_without_noise_is_run_once_per_image():
    sizes = []

    def move(x):
        sizes.append(len(x))
        return x * 0.9

    x, y = points(20)
    settings = RefinementSettings(images=20, steps=(0, 1), linf=(0.05,), attack_steps=2, expectation=6, votes=7)
    refinement_section(subject_of(Quadratic(), custom(move), x, y), settings, Common(batch_size=1000), Work())
    assert max(sizes) == 20

    def noisy(x):
        return move(x) + 0.01 * torch.rand(x.shape)

    with torch.random.fork_rng():
        refinement_section(subject_of(Quadratic(), custom(noisy), x, y), settings, Common(batch_size=1000), Work())
    assert {20 * 7, 15 * 6} <= set(sizes)  # votes on all images; draws on the 15 that were right


def test_what_was_measured_is_not_measured_again_and_the_global_stream_stands():
    x, y = points()
    subject = subject_of(Curved(), langevin(0.1, 0.05, box=BOX), x, y)
    kept, made = {}, []

    def memo(name, make):
        if name not in kept:
            kept[name] = make()
            made.append(name)
        return kept[name]

    settings = RefinementSettings(images=40, steps=(0, 1), linf=(0.05, 0.1), attack_steps=3)
    before = torch.random.get_rng_state()
    first = refinement_section(subject, settings, COMMON, Work(memo=memo))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(made) == len(set(made)) == 6
    made.clear()
    del kept["refinement-1-0.1"]  # killed before the last piece
    second = refinement_section(subject, settings, COMMON, Work(memo=memo))
    assert made == ["refinement-1-0.1"]
    third = refinement_section(subject, settings, COMMON, Work())
    assert first.results == second.results == third.results
    assert first.figures == second.figures == third.figures
    assert all(result.n == 40 for result in first.results)


def test_the_images_that_fall_at_one_radius_are_broken_at_the_next():
    x, y = points()
    subject = subject_of(Curved(), langevin(0.3, 0.5, box=BOX), x, y)  # so noisy that votes change their mind
    examples = refinement_section(subject, SETTINGS, COMMON, Work()).examples
    for kind in ("pgd_linf", "transfer_linf"):
        rows = [examples[f"refined/1/{name}"] for name in ("accuracy", f"{kind}/0.02", f"{kind}/0.05")]
        assert (rows[1] <= rows[0]).all()
        assert (rows[2] <= rows[1]).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": 0},
        {"attack_steps": 0},
        {"expectation": 0},
        {"votes": 0},
        {"steps": ()},
        {"steps": (1, 5)},
        {"steps": (0, 5, 5)},
        {"linf": ()},
        {"linf": (0.0, 0.1)},
        {"linf": (0.1, 0.05)},
        {"linf": (0.1, math.inf)},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ConfigError, match=f"RefinementSettings.{next(iter(wrong))}"):
        RefinementSettings(**wrong)


def test_the_worst_counts_what_withstands_both_attacks():
    x, y = points()
    section = refinement_section(
        subject_of(Quadratic(-0.2), langevin(0.3, 0.0, box=BOX), x, y), SETTINGS, COMMON, Work()
    )
    for k in (1, 2):
        for eps in (0.02, 0.05):
            own, carried, worst = (
                section.examples[f"refined/{k}/{a}_linf/{eps}"] for a in ("pgd", "transfer", "worst")
            )
            assert (worst == (own & carried)).all()
    assert section.figures["worst"].keys() == section.figures["transfer"].keys() == {"1", "2"}
