"""Climbs whose end is a known corner of the box, and how their convincing and their density are counted."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from jemstone.data import Dataset, Split
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError, DataError
from jemstone.evaluation.distal import DistalSettings, climb, distal_section
from jemstone.evaluation.intervals import exact_proportion
from jemstone.evaluation.section import Common, Subject, Work

SETTINGS = DistalSettings(images=12, steps=60, step_size=0.03)
COMMON = Common(batch_size=5, resamples=50)


class Logits(nn.Module):
    """Any function of x as a network."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def subject_of(function, classes=2, shape=(1, 3, 3), n=40):
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    split = Split(x, torch.arange(n) % classes)
    data = Dataset("made", split, split, split, tuple(f"c{i}" for i in range(classes)))
    return Subject(EnergyClassifier(Logits(function)).eval(), data)


def linear(scale=1.0, shift=0.0):
    """f_1 - f_0 = scale * w.x + shift; class 1 is surest at sign(w)."""
    w = torch.randn(9, generator=torch.Generator().manual_seed(0))

    def logits(x):
        margin = scale * (x.flatten(1) @ w) + shift
        return torch.stack([-margin / 2, margin / 2], dim=1)

    return logits, w


@pytest.mark.parametrize("scale", [1.0, 2000.0])  # at 2000 the softmax saturates in float32
def test_on_a_linear_model_the_climb_ends_in_the_corner_of_its_class(scale):
    logits, w = linear(scale)
    section = distal_section(subject_of(logits), SETTINGS, COMMON, Work())
    picture = section.pictures["distal"]
    assert picture.columns == 2
    assert picture.images.shape == (10, 1, 3, 3)
    sides = torch.tensor([-1.0, 1.0]).repeat(5)
    torch.testing.assert_close(picture.images.flatten(1), sides[:, None] * w.sign())
    assert section.warnings == []
    assert section.notes == []


def test_convinced_counts_the_classes_whose_corner_is_sure_enough():
    # p(1 | sign w) = sigmoid(margin + shift) and p(0 | -sign w) = sigmoid(margin - shift)
    _, w = linear()
    total = float(w.abs().sum())
    for shift, expected in [(0.0, 12), (total - 1.0, 6), (1.0 - total, 6)]:
        logits, _ = linear(1.0, shift)
        sure = [torch.sigmoid(torch.tensor(total + side * shift)) > 0.9 for side in (-1, 1)]
        assert 6 * sum(map(int, sure)) == expected
        section = distal_section(subject_of(logits), SETTINGS, COMMON, Work())
        assert section.results[0] == exact_proportion("distal/convinced", expected, 12)
        assert sum(section.figures["probability"]["counts"]) == 12
    assert section.figures["probability"]["edges"][0] == 0
    assert section.figures["probability"]["edges"][-1] == 1


def test_the_confidence_asked_for_counts():
    _, w = linear()
    shift = float(w.abs().sum()) - 1.0  # class 0 ends at sigmoid(1) = 0.73
    subject = subject_of(linear(1.0, shift)[0])
    for confidence, expected in [(0.72, 1.0), (0.74, 0.5)]:
        settings = DistalSettings(images=12, steps=60, step_size=0.03, confidence=confidence)
        assert distal_section(subject, settings, COMMON, Work()).results[0].value == expected


def test_auroc_is_that_of_scikit_learn_on_the_known_ends():
    logits, w = linear(0.3, 0.4)
    subject = subject_of(logits)
    section = distal_section(subject, SETTINGS, COMMON, Work())
    inside = logits(subject.data.test.inputs).logsumexp(dim=1)
    corners = torch.stack([-w.sign(), w.sign()]).view(2, 1, 3, 3)
    outside = logits(corners).logsumexp(dim=1).repeat(6)
    truth = roc_auc_score([1] * 40 + [0] * 12, torch.cat([inside, outside]))
    area = section.results[1]
    assert area.name == "distal/auroc"
    assert area.value == pytest.approx(truth)
    assert area.n == 52
    figure = section.figures["log_density"]
    assert sum(figure["test"]) == 40
    assert sum(figure["distal"]) == 12
    assert len(figure["edges"]) == len(figure["test"]) + 1


def test_samples_that_do_not_overlap_get_an_exact_bound():
    # E grows with |x|: corners are the least likely of all.
    def logits(x):
        return linear()[0](x) - 10 * x.flatten(1).abs().sum(dim=1, keepdim=True)

    subject = subject_of(logits)
    start = subject.data.test.inputs
    start.mul_(0.1)
    settings = DistalSettings(images=12, steps=1, step_size=0.5)
    section = distal_section(subject, settings, COMMON, Work())
    assert section.results[1][1:4] == exact_proportion("", 12, 12)[1:4]


def test_every_class_gets_the_column_of_its_own():
    subject = subject_of(lambda x: 5 * x.flatten(1)[:, :3], classes=3)
    picture = distal_section(subject, SETTINGS, COMMON, Work()).pictures["distal"]
    assert picture.columns == 3
    pixels = picture.images.flatten(1)[:, :3].view(4, 3, 3)  # row, column = class, pixel
    assert torch.equal(pixels, (2 * torch.eye(3) - 1).expand(4, 3, 3))
    assert picture.caption.count("1.00") == 3


def test_of_many_classes_the_first_ten_are_shown():
    shape = (1, 4, 4)
    subject = subject_of(lambda x: 5 * x.flatten(1)[:, :12], classes=12, shape=shape)
    settings = DistalSettings(images=24, steps=60, step_size=0.03)
    picture = distal_section(subject, settings, COMMON, Work()).pictures["distal"]
    assert picture.columns == 10
    pixels = picture.images.flatten(1)[:, :12].view(2, 10, 12)
    assert torch.equal(pixels.argmax(dim=2), torch.arange(10).expand(2, 10))
    few = distal_section(subject, DistalSettings(images=4), COMMON, Work()).pictures["distal"]
    assert few.columns == len(few.images) == 4


def test_a_constant_model_is_not_convinced_and_its_gradient_is_missed():
    section = distal_section(subject_of(lambda x: 0 * x.flatten(1)[:, :2]), SETTINGS, COMMON, Work())
    assert section.results[0].value == 0
    assert section.results[1].value == 0.5  # all densities are equal
    assert [warned.name for warned in section.warnings] == ["zero-gradient"]
    assert "12 of 12" in section.warnings[0].text
    json.dumps(section.figures, allow_nan=False)


def test_a_start_that_convinces_without_a_gradient_is_no_warning():
    subject = subject_of(lambda x: 0 * x.flatten(1)[:, :1] + torch.tensor([[20.0, 0.0]]))
    section = distal_section(subject, DistalSettings(images=1), COMMON, Work())  # class 0 alone
    assert section.results[0].value == 1
    assert section.warnings == []


def test_a_step_is_in_pixels_and_the_climb_starts_uniformly():
    logits, w = linear()
    subject = subject_of(logits, n=10)
    ends = [
        distal_section(subject, DistalSettings(10, steps, 0.01), Common(batch_size=100), Work())
        .pictures["distal"]
        .images
        for steps in (1, 2)
    ]
    sides = torch.tensor([-1.0, 1.0]).repeat(5)[:, None] * w.sign()
    moved = (ends[1] - ends[0]).flatten(1)
    inside = ends[1].flatten(1).abs() < 1
    torch.testing.assert_close(moved[inside], 0.02 * sides[inside])  # 0.01 among [0, 1] pixels
    start = ends[0].flatten(1) - 0.02 * sides
    assert abs(float(start.mean())) < 0.2
    assert abs(float(start.var()) - 1 / 3) < 0.1


def test_climbing_keeps_its_bounds_and_stands_where_there_is_no_gradient():
    x = torch.zeros(4, 3)
    lower, upper = torch.full_like(x, -0.25), torch.tensor([0.5, 1.0, 0.1]).expand(4, 3)

    def score(x):  # rows: ascend, no gradient, a gradient of NaN, ascend in one column
        return torch.stack([x[0].sum(), 0 * x[1].sum(), (x[2] - 1).sqrt().sum(), x[3, 0] - x[3, 1]])

    end, blind = climb(score, x, lower, upper, steps=5, step_size=0.15)
    assert blind.tolist() == [False, True, True, False]
    torch.testing.assert_close(end[0], torch.tensor([0.5, 0.75, 0.1]))
    assert torch.equal(end[1:3], torch.zeros(2, 3))
    torch.testing.assert_close(end[3], torch.tensor([0.5, -0.25, 0.0]))
    assert not end.requires_grad


def test_a_gradient_that_was_missed_once_is_remembered():
    calls = []

    def score(x):
        calls.append(x)
        return (0.0 if len(calls) == 1 else 1.0) * x.sum(dim=1)

    x = torch.zeros(1, 2)
    end, blind = climb(score, x, x - 1, x + 1, steps=3, step_size=0.25)
    assert blind.all()
    assert torch.equal(end, torch.full((1, 2), 0.5))


def test_vectors_stay_within_four_deviations_and_have_no_picture():
    seen = []

    def logits(x):
        seen.append(x.detach())
        return torch.stack([-x.sum(dim=1), x.sum(dim=1)], dim=1)

    section = distal_section(subject_of(logits, shape=(3,)), SETTINGS, Common(batch_size=12, resamples=5), Work())
    assert section.pictures == {}
    assert "4" in section.notes[0]
    assert section.results[0].value == 1
    climbed = [x for x in seen if len(x) == 12 and float(x.abs().max()) > 1]
    assert float(climbed[-1].abs().min()) == 4  # from anywhere in the box to its corner
    assert max(float(x.abs().max()) for x in climbed) == 4


def test_what_was_made_is_not_made_again_and_the_global_stream_stands():
    kept = {}

    def memo(name, make):
        if name not in kept:
            kept[name] = make()
        return kept[name]

    calls = []

    def logits(x):
        calls.append(len(x))
        return linear()[0](x)

    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = distal_section(subject_of(logits), SETTINGS, COMMON, Work(memo=memo))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert calls
    calls.clear()
    second = distal_section(subject_of(logits), SETTINGS, COMMON, Work(memo=memo))
    assert calls == []
    assert first.results == second.results == distal_section(subject_of(logits), SETTINGS, COMMON, Work()).results
    assert first.figures == second.figures
    assert all(isinstance(value, np.ndarray) for arrays in kept.values() for value in arrays.values())


def test_a_density_that_is_not_finite_is_refused():
    subject = subject_of(lambda x: torch.cat([x.flatten(1)[:, :2] * 0, x.flatten(1)[:, :1] * 0 + torch.inf], dim=1), 3)
    with pytest.raises(DataError, match="not finite"):
        distal_section(subject, SETTINGS, COMMON, Work())


@pytest.mark.parametrize(
    "wrong", [{"images": 0}, {"steps": 0}, {"step_size": 0.0}, {"step_size": 2.0}, {"confidence": 1.0}]
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ConfigError, match=f"DistalSettings.{next(iter(wrong))}"):
        DistalSettings(**wrong)
