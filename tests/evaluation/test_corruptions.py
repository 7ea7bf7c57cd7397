"""The section on corruptions: its definition, by hand, and models whose answers are known."""

import json

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import roc_auc_score
from torch import nn

from jemstone.data.dataset import Dataset, Split, to_box
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError, DataError
from jemstone.evaluation.calibration import ece
from jemstone.evaluation.corruption_kinds import STRENGTHS, corrupt
from jemstone.evaluation.corruptions import CorruptionSettings, corruptions_section
from jemstone.evaluation.intervals import exact_proportion
from jemstone.evaluation.section import Common, Subject, Work, subset
from jemstone.rng import generator

COMMON = Common(resamples=30, batch_size=7)


def stored(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def subject(network, images=None, labels=None):
    images = stored(40, 1, 8, 8) if images is None else images
    split = Split(images, torch.arange(len(images)) % 3 if labels is None else labels)
    return Subject(EnergyClassifier(network).eval(), Dataset("toy", split, split, split, ("a", "b", "c")))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.SiLU(), nn.Linear(16, 3))


@pytest.fixture(scope="module")
def measured():
    asked = subject(network())
    return asked, corruptions_section(asked, CorruptionSettings(images=30), COMMON, Work())


def test_every_number_is_the_definition(measured):
    asked, section = measured
    chosen = subset(40, 30, 0, "corruption")
    images, labels = asked.data.test.inputs[chosen], asked.data.test.labels[chosen].numpy()

    def logits(x):
        return asked.model(to_box(x)).detach().double().numpy()

    def score(x):
        return asked.model.log_density(to_box(x)).detach().numpy()

    clean = logits(images)
    figures = section.figures
    assert figures["clean"]["accuracy"] == (clean.argmax(axis=1) == labels).mean()
    assert figures["clean"]["ece"] == pytest.approx(ece(clean, labels, resamples=1).value)
    found = {result.name: result.value for result in section.results}
    table = []
    for kind in STRENGTHS:
        rows = []
        for s in (1, 2, 3, 4, 5):
            x = corrupt(images, kind, s)
            truth = np.repeat([1, 0], 30)
            area = roc_auc_score(truth, np.concatenate([score(images), score(x)]))
            right = (logits(x).argmax(axis=1) == labels).mean()
            rows.append([right, ece(logits(x), labels, resamples=1).value, area])
        for m, metric in enumerate(("accuracy", "ece", "auroc")):
            column = [row[m] for row in rows]
            assert figures["kinds"][kind][metric]["value"] == pytest.approx(column)
            assert found[f"corruption/{kind}/{metric}"] == pytest.approx(np.mean(column))
        table.append(rows)
    for m, metric in enumerate(("accuracy", "ece", "auroc")):
        assert found[f"corruption/mean/{metric}"] == pytest.approx(np.array(table)[..., m].mean())


def test_intervals_are_quantiles_over_resamples_of_images(measured):
    asked, section = measured
    chosen = subset(40, 30, 0, "corruption")
    images, labels = asked.data.test.inputs[chosen], asked.data.test.labels[chosen].numpy()
    versions = [corrupt(images, "blur", s) for s in (1, 2, 3, 4, 5)]
    logits = [asked.model(x).detach().double().numpy() for x in versions]
    clean, *scores = [asked.model.log_density(to_box(x)).detach().numpy() for x in (images, *versions)]
    rng = generator(0, "bootstrap", "corruption")
    resamples = []
    for _ in range(30):
        i = torch.randint(30, (30,), generator=rng).numpy()
        right = [(z[i].argmax(axis=1) == labels[i]).mean() for z in logits]
        error = [ece(z[i], labels[i], resamples=1).value for z in logits]
        truth = np.repeat([1, 0], 30)
        area = [roc_auc_score(truth, np.concatenate([clean[i], score[i]])) for score in scores]
        resamples.append([right, error, area])
    low, high = np.quantile(np.mean(resamples, axis=2), (0.025, 0.975), axis=0)
    found = {result.name: result for result in section.results}
    for m, metric in enumerate(("accuracy", "ece", "auroc")):
        assert found[f"corruption/blur/{metric}"].high == pytest.approx(high[m])
        if metric != "ece":
            assert found[f"corruption/blur/{metric}"].low == pytest.approx(low[m])
    low, high = np.quantile(np.array(resamples)[:, 2], (0.025, 0.975), axis=0)
    curve = section.figures["kinds"]["blur"]["auroc"]
    assert (curve["low"], curve["high"]) == (pytest.approx(low), pytest.approx(high))


def test_layout(measured):
    asked, section = measured
    figures = section.figures
    assert json.loads(json.dumps(figures)) == figures
    assert (figures["severities"], figures["images"], list(figures["kinds"])) == ([1, 2, 3, 4, 5], 30, list(STRENGTHS))
    names = [f"corruption/{kind}/{m}" for kind in (*STRENGTHS, "mean") for m in ("accuracy", "ece", "auroc")]
    assert [r.name for r in section.results] == names
    assert all(r.low <= r.value <= r.high and r.n == 30 for r in section.results)
    for curves in figures["kinds"].values():
        for curve in curves.values():
            columns = zip(curve["low"], curve["value"], curve["high"], strict=True)
            assert all(low <= value <= high for low, value, high in columns)
        ends = exact_proportion("", round(30 * curves["accuracy"]["value"][2]), 30)[2:4]
        assert (curves["accuracy"]["low"][2], curves["accuracy"]["high"][2]) == ends
    picture = section.pictures["corruptions"]
    assert (tuple(picture.images.shape), picture.columns) == ((36, 1, 8, 8), 6)
    assert (section.examples, section.warnings, section.notes) == ({}, [], [])
    originals = to_box(asked.data.test.inputs)
    for row, kind in enumerate(STRENGTHS):
        first = picture.images[6 * row]
        assert any(torch.equal(first, original) for original in originals)
        if kind != "noise":
            assert torch.equal(picture.images[6 * row + 5], corrupt(first[None], kind, 5)[0])


def test_the_same_images_are_resampled_everywhere():
    """log p(x) and labels that do not see the corruption: every resample has accuracy w / n and AUROC 1/2, paired."""

    class Blind(nn.Module):
        """Right where the mean is high: contrast moves nothing."""

        def forward(self, x):
            high = (x.mean(dim=(1, 2, 3)) > 0).float()
            return torch.stack([high, 0 * high, 0.5 + 0 * high], dim=1)

    images = torch.full((60, 1, 4, 4), 40, dtype=torch.uint8)
    images[:20] = 200
    asked = subject(Blind(), images, torch.zeros(60, dtype=torch.int64))
    section = corruptions_section(asked, CorruptionSettings(kinds=("contrast",)), Common(resamples=400), Work())
    found = {result.name: result for result in section.results}
    # Clean and corrupted scores are equal image by image, so that a paired resample always gives one half.
    area = found["corruption/contrast/auroc"]
    assert (area.value, area.low, area.high) == (0.5, 0.5, 0.5)
    # Five severities of one image are one draw: the interval is as wide as for 60 images, not for 300.
    right = found["corruption/contrast/accuracy"]
    assert right.value == pytest.approx(1 / 3)
    assert right.high - right.low == pytest.approx(2 * 1.96 * np.sqrt(2 / 9 / 60), rel=0.15)


def test_a_value_that_no_resample_moves_gets_an_exact_bound():
    class Contrast(nn.Module):
        """Always right, and log p(x) is the spread of the image: lower after each loss of contrast."""

        def forward(self, x):
            spread = x.flatten(1).std(dim=1)
            return torch.stack([10 + spread, 0 * spread, 0 * spread], dim=1)

    asked = subject(Contrast(), stored(50, 1, 8, 8), torch.zeros(50, dtype=torch.int64))
    section = corruptions_section(asked, CorruptionSettings(kinds=("contrast",)), COMMON, Work())
    bound = exact_proportion("", 50, 50)[1:4]
    found = {result.name: tuple(result[1:4]) for result in section.results}
    assert found["corruption/contrast/auroc"] == found["corruption/contrast/accuracy"] == bound


def test_overconfidence_is_seen():
    """Right two times out of three, at a confidence near 1."""

    class Sure(nn.Module):
        def forward(self, x):
            mean = x.mean(dim=(1, 2, 3))
            return torch.stack([9 + mean, 0 * mean, 0 * mean], dim=1)

    asked = subject(Sure(), stored(120, 1, 8, 8), (torch.arange(120) % 3 == 0).long())
    found = corruptions_section(asked, CorruptionSettings(kinds=("contrast",)), Common(resamples=80), Work()).results
    error = next(result for result in found if result.name == "corruption/contrast/ece")
    assert 0.2 < error.low < 1 / 3 < error.high < 0.5


def test_a_calibrated_model_is_not_called_miscalibrated():
    """Labels drawn from p(y|x): the true error is 0, and the interval of the mean over severities begins there."""

    class Mean(nn.Module):
        """Contrast leaves the mean alone, so p(y|x) is the same at all severities."""

        def forward(self, x):
            mean = x.mean(dim=(1, 2, 3))
            return torch.stack([2 * mean, -2 * mean, 0 * mean], dim=1)

    zeros = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        images = torch.tensor(rng.integers(0, 256, size=(80, 1, 1, 1)), dtype=torch.uint8).expand(80, 1, 4, 4)
        p = softmax(Mean()(to_box(images)).double().numpy(), axis=1)
        labels = torch.tensor((p.cumsum(axis=1) < rng.random((80, 1))).sum(axis=1))
        asked = subject(Mean(), images, labels)
        settings = CorruptionSettings(kinds=("contrast",))
        found = corruptions_section(asked, settings, Common(resamples=80), Work()).results
        error = next(result for result in found if result.name == "corruption/mean/ece")
        zeros += error.low == 0
    assert zeros >= 17


def test_deterministic_whatever_was_stored(measured):
    stored = {}

    def memo(name, make):
        if name not in stored:
            stored[name] = make()
        return stored[name]

    asked, section = measured
    for _ in range(2):
        again = corruptions_section(asked, CorruptionSettings(images=30), COMMON, Work(memo=memo))
        assert (again.results, again.figures) == (section.results, section.figures)
    assert len(stored) == 7


def test_vectors_and_channels_that_jpeg_cannot_hold_are_notes():
    vectors = subject(nn.Linear(5, 3), torch.randn(9, 5))
    section = corruptions_section(vectors, CorruptionSettings(), COMMON, Work())
    assert (section.results, section.figures, section.pictures, len(section.notes)) == ([], {}, {}, 1)
    two = subject(nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), stored(9, 2, 4, 4))
    section = corruptions_section(two, CorruptionSettings(kinds=("jpeg", "blur")), COMMON, Work())
    assert list(section.figures["kinds"]) == ["blur"]
    assert "jpeg" in section.notes[0]


def test_logits_must_be_finite():
    class Fragile(nn.Module):
        def forward(self, x):
            dark = x.flatten(1).amax(dim=1) < 0
            return torch.stack([torch.where(dark, torch.inf, 0.0)] * 3, dim=1)

    images = torch.full((10, 1, 4, 4), 250, dtype=torch.uint8)
    images[:3, :, 1:] = 0  # lose their only light row where the contrast is 0.3 or 0.15
    with pytest.raises(DataError, match="6 images of corruption 'contrast'"):
        corruptions_section(subject(Fragile(), images), CorruptionSettings(kinds=("contrast",)), COMMON, Work())


@pytest.mark.parametrize(
    ("field", "value"), [("images", 0), ("bins", 0), ("kinds", ()), ("kinds", ("fog",)), ("kinds", ("blur", "blur"))]
)
def test_settings_are_checked(field, value):
    with pytest.raises(ConfigError, match=field):
        CorruptionSettings(**{field: value})
