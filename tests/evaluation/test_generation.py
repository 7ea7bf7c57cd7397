"""The section on samplers built for the purpose: one that copies, one that is honest, one that leaves the box, ..."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import jemstone
from jemstone.data import Dataset, Split, to_box
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError
from jemstone.evaluation.distances import frechet, prdc
from jemstone.evaluation.extractors import Extractor, Features, make_extractor
from jemstone.evaluation.features import features_of, merged, moments_of
from jemstone.evaluation.generation import FULL, QUICK, GenerationSettings, generation_section
from jemstone.evaluation.section import WARNINGS, Chains, Common, Subject, Work
from jemstone.sampling import ChainInfo, ChainState, Sampler, from_data

SETTINGS = GenerationSettings(samples=120, by_class_samples=250, kid_subsets=20, fid_resamples=5, grid=20)
COMMON = Common(resamples=30)
PARTS = ("fid", "kid", "precision", "recall", "density", "coverage")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JEMSTONE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def digits():
    return jemstone.load_dataset("digits")


class Nearest(nn.Module):
    """Logits = minus the squared distance to each class mean: a classifier that needs no training."""

    def __init__(self, data):
        super().__init__()
        x = to_box(data.train.inputs).flatten(1)
        means = torch.stack([x[data.train.labels == c].mean(dim=0) for c in range(data.num_classes)])
        self.means = nn.Parameter(means)

    def forward(self, x):
        return -((x.flatten(1)[:, None] - self.means) ** 2).sum(dim=2)


def moved(change):
    """A kernel that leaves every chain where `change` puts it."""

    def step(state, energy_grad, rng):
        zero = torch.zeros(len(state.x))
        return ChainState(change(state.x)), ChainInfo(zero, zero, zero, zero)

    return Sampler(lambda x, _: ChainState(x), step)


def subject(data, split, *, change=lambda x: x, buffer=None):
    """Chains that start at inputs of `split` and end where `change` puts them."""
    initial = from_data(to_box(split.inputs), split.labels, data.num_classes)
    chains = Chains(initial, moved(change), 1, 1, buffer, "data")
    return Subject(EnergyClassifier(Nearest(data)).eval(), data, chains=chains)


def by_name(section):
    return {result.name: result for result in section.results}


@pytest.fixture(scope="module")
def honest(digits, tmp_path_factory):
    """Samples that are new data: draws from the test split."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JEMSTONE_CACHE", str(tmp_path_factory.mktemp("cache")))
        chains = subject(digits, digits.test, buffer=to_box(digits.validation.inputs))
        return generation_section(chains, SETTINGS, COMMON, Work())


def test_settings_are_checked():
    for wrong in (
        {"samples": 3},
        {"neighbours": 0},
        {"kid_subsets": 1},
        {"extractor": "vgg"},
        {"neighbours": 200, "samples": 150},
    ):
        with pytest.raises(ConfigError):
            GenerationSettings(**wrong)
    assert (QUICK.samples, QUICK.by_class_samples, FULL.samples, FULL.by_class_samples) == (200, 200, 50_000, 50_000)


def test_every_result_is_there_with_an_interval_and_its_n(honest):
    results = by_name(honest)
    expected = {f"{part}/{name}" for part in ("generation", "by_class", "real") for name in PARTS}
    assert set(results) == expected | {"generation/memorised", "by_class/consistent", "legacy/fid"}
    assert all(r.low <= r.value <= r.high and r.low < r.high for r in results.values())
    assert [results[f"{part}/fid"].n for part in ("generation", "by_class", "real")] == [120, 250, 120]
    assert honest.notes == []


def test_new_data_are_as_good_as_new_data_and_raise_no_warning(honest):
    results = by_name(honest)
    assert results["generation/fid"].value == pytest.approx(results["real/fid"].value, rel=0.5)
    assert results["generation/precision"].low > 0.8
    assert results["by_class/consistent"].value > 0.8
    assert honest.warnings == []


def test_figures_are_plain_and_complete(honest):
    figures = honest.figures
    assert json.loads(json.dumps(figures)) == figures
    assert figures["extractor"]["dimension"] == 64
    assert figures["extractor"]["name"].startswith("pixels-64-")
    assert figures["extractor"]["logits"] is False
    assert (figures["samples"], figures["life"]) == (120, 1)
    assert (sum(figures["nearest"]["samples"]), sum(figures["nearest"]["test"])) == (120, 360)
    assert len(figures["nearest"]["edges"]) == len(figures["nearest"]["test"]) + 1
    assert figures["per_class_fid"] == {}  # 25 samples a class do not fill 64 dimensions


def test_pictures(honest, digits):
    counts = {name: (len(p.images), p.columns) for name, p in honest.pictures.items()}
    assert counts == {
        "data": (20, 10),
        "fresh": (20, 10),
        "by_class": (20, 10),
        "buffer": (20, 10),
        "neighbours": (40, 10),
    }
    for picture in honest.pictures.values():
        assert picture.images.min() >= -1
        assert picture.images.max() <= 1
    fresh, *near = honest.pictures["neighbours"].images.split(10)
    assert torch.equal(fresh, honest.pictures["fresh"].images[:10])
    train = to_box(digits.train.inputs).flatten(1)
    distance = torch.cdist(fresh.flatten(1), train).sort(dim=1).values  # 64 components keep all distances of 8x8 images
    for rank, row in enumerate(near):
        torch.testing.assert_close((row - fresh).flatten(1).norm(dim=1), distance[:, rank], atol=1e-3, rtol=1e-3)
    model = Nearest(digits)
    columns = model(honest.pictures["by_class"].images).argmax(dim=1).view(2, 10)
    assert (columns == torch.arange(10)).float().mean() > 0.7


def test_fid_and_prdc_are_of_the_samples_against_all_training_data(digits):
    """Chains that give the test split back in turn: the same numbers from arrays, without the section."""
    order = iter(range(10**6))
    inputs = to_box(digits.test.inputs)

    def initial(labels, rng):
        return torch.stack([inputs[next(order) % len(inputs)] for _ in labels])

    chains = Chains(initial, moved(lambda x: x), 1, 1)
    found = generation_section(
        Subject(EnergyClassifier(Nearest(digits)).eval(), digits, chains=chains), SETTINGS, COMMON, Work()
    )
    extractor = make_extractor("pixels", digits, torch.device("cpu"))
    train, test = (features_of(extractor, s.inputs).pool for s in (digits.train, digits.test))
    results = by_name(found)
    assert results["generation/fid"].value == pytest.approx(
        frechet(moments_of(test[:120]), moments_of(train)), rel=1e-6
    )
    expected = prdc(train, test[:120], 5, resamples=2)
    for name in ("precision", "recall", "density", "coverage"):
        assert results[f"generation/{name}"].value == pytest.approx(expected[name].value, abs=1e-12)
    assert found.notes == ["legacy/fid not measured: the buffer was not kept, or its chains are not finite."]


def test_a_copier_is_found_out(digits):
    copies = generation_section(subject(digits, digits.train), SETTINGS, COMMON, Work())
    assert "memorised-samples" in [warned.name for warned in copies.warnings]
    assert by_name(copies)["generation/memorised"].value == 1
    fresh, nearest = copies.pictures["neighbours"].images.split(10)[:2]
    torch.testing.assert_close(nearest, fresh)


def test_copies_are_looked_for_among_the_kept_rows_and_this_is_said(digits):
    few = GenerationSettings(samples=120, by_class_samples=120, references=200, kid_subsets=5, fid_resamples=2)
    found = generation_section(subject(digits, digits.train), few, COMMON, Work())
    assert 0.05 < by_name(found)["generation/memorised"].value < 0.4
    assert any("200 of" in note for note in found.notes)


def test_chains_that_leave_the_box_are_clamped_and_told_of(digits):
    beyond = subject(digits, digits.test, change=lambda x: x * 1.5)
    found = generation_section(beyond, SETTINGS, COMMON, Work())
    texts = [warned.text for warned in found.warnings if warned.name == "chains-left-box"]
    assert len(texts) == 2
    assert all("largest |x| is 1.5" in text for text in texts)
    assert found.pictures["fresh"].images.abs().max() == 1
    rounding = subject(digits, digits.test, change=lambda x: x * (1 + 1e-7))
    names = [w.name for w in generation_section(rounding, SETTINGS, COMMON, Work()).warnings]
    assert "chains-left-box" not in names


def test_chains_that_are_not_finite_leave_a_note_and_no_result(digits):
    broken = subject(
        digits, digits.test, change=lambda x: x * float("nan"), buffer=torch.full((9, 1, 8, 8), float("nan"))
    )
    found = generation_section(broken, SETTINGS, COMMON, Work())
    assert {name.split("/")[0] for name in by_name(found)} == {"real"}
    assert len(found.notes) == 3
    assert set(found.pictures) == {"data"}
    assert found.figures["nearest"] is None


def test_few_samples_are_warned_of(digits):
    few = GenerationSettings(samples=50, by_class_samples=120, kid_subsets=5, fid_resamples=2)
    found = generation_section(subject(digits, digits.test), few, COMMON, Work())
    names = [warned.name for warned in found.warnings]
    assert {"small-n", "rank-deficient"} <= set(names) <= set(WARNINGS)
    texts = {warned.name: warned.text for warned in found.warnings}
    assert texts["small-n"].startswith("generation n = 50, real n = 50;")
    assert "64 dimensions" in texts["rank-deficient"]


def test_legacy_takes_the_confident_half_of_each_predicted_class(digits):
    """Chosen by a loop over sorted lists, against train and test together."""
    buffer = to_box(digits.validation.inputs)
    chosen_subject = subject(digits, digits.test, buffer=buffer)
    p = chosen_subject.model(buffer).double().softmax(dim=1)
    confidence, predicted = (part.tolist() for part in p.max(dim=1))
    keep = []
    for c in range(10):
        rows = sorted((i for i in range(len(buffer)) if predicted[i] == c), key=lambda i: -confidence[i])
        keep += rows[: (len(rows) + 1) // 2]
    extractor = make_extractor("pixels", digits, torch.device("cpu"))
    train, test = (moments_of(features_of(extractor, s.inputs).pool) for s in (digits.train, digits.test))
    expected = frechet(moments_of(features_of(extractor, buffer[keep]).pool), merged(train, test))
    legacy = by_name(generation_section(chosen_subject, SETTINGS, COMMON, Work()))["legacy/fid"]
    assert (legacy.value, legacy.n) == (pytest.approx(expected, rel=1e-6), len(keep))


def test_an_extractor_of_ones_own_with_logits(digits):
    """Two features: FID by class appears where samples fill them, and the Inception score of the logits."""
    model = Nearest(digits)

    def function(images):
        return Features(images.flatten(1)[:, 20:22], model(images * 2 - 1))

    own = subject(digits, digits.test)
    object.__setattr__(own, "extractor", Extractor("own", function))
    found = generation_section(own, SETTINGS, COMMON, Work())
    results = by_name(found)
    assert 5 < results["generation/inception_score"].value <= 10
    assert "by_class/inception_score" not in results
    assert found.figures["extractor"] == {"name": "own", "dimension": 2, "logits": True}
    assert set(found.figures["per_class_fid"]) == set(digits.class_names)
    labels = torch.arange(SETTINGS.by_class_samples) % 10
    x = own.sample(labels, own.generator(COMMON.seed, "generation", "by_class", 0), by_class=True)[labels == 3]
    real, fake = (
        moments_of(function(images / 2 + 0.5).pool.numpy())
        for images in (to_box(digits.train.inputs[digits.train.labels == 3]), x)
    )
    assert found.figures["per_class_fid"][digits.class_names[3]] == pytest.approx(frechet(real, fake), rel=1e-5)


def test_a_plain_classifier_leaves_a_note_and_the_data(digits):
    found = generation_section(Subject(EnergyClassifier(Nearest(digits)), digits), SETTINGS, COMMON, Work())
    assert (found.results, found.figures, list(found.pictures)) == ([], {}, ["data"])
    assert "no chains" in found.notes[0]


def test_vectors_have_numbers_and_no_pictures():
    x = torch.randn(700, 3, generator=torch.Generator().manual_seed(0))
    labels = (x[:, 0] > 0).long()
    splits = [Split(x[i : i + n], labels[i : i + n]) for i, n in ((0, 400), (400, 100), (500, 200))]
    data = Dataset("vectors", *splits, ("left", "right"))
    found = generation_section(subject(data, data.test, buffer=x[400:500]), SETTINGS, COMMON, Work())
    assert set(by_name(found)) >= {"generation/fid", "by_class/consistent", "real/kid", "legacy/fid"}
    assert found.pictures == {}
    assert found.warnings == []
    assert set(found.figures["per_class_fid"]) == {"left", "right"}


def test_the_same_seed_gives_the_same_and_a_killed_one_goes_on(digits):
    settings = GenerationSettings(samples=1100, by_class_samples=120, kid_subsets=5, fid_resamples=2)
    chains = subject(digits, digits.test, buffer=to_box(digits.validation.inputs))
    kept, calls = {}, []

    def keep(name, make):
        calls.append(name)
        if name not in kept:
            kept[name] = make()
        return kept[name]

    first = generation_section(chains, settings, COMMON, Work(memo=keep))
    assert len(set(calls)) == len(calls)
    assert [name for name in calls if name.startswith("generation-fresh-") and "features" not in name] == [
        "generation-fresh-0",
        "generation-fresh-1",
    ]
    assert len(kept["generation-fresh-1"]["x"]) == 100
    assert not np.array_equal(kept["generation-fresh-0"]["x"][:100], kept["generation-fresh-1"]["x"])

    def remember(name, make):
        return kept[name] if name != "generation-fresh-1" else make()

    again = generation_section(chains, settings, COMMON, Work(memo=remember))
    assert again.results == first.results
    assert again.results == generation_section(chains, settings, COMMON, Work()).results
    other = generation_section(chains, settings, Common(seed=1, resamples=30), Work())
    assert by_name(other)["generation/fid"] != by_name(first)["generation/fid"]


def test_global_random_state_is_left_alone(digits):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    generation_section(subject(digits, digits.test), QUICK, COMMON, Work())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
