"""The section on small models: what comes out, what a kill leaves, what is warned of and refused."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from jemstone.data import Dataset
from jemstone.data.dataset import Split, to_box
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError, DataError
from jemstone.evaluation.detection import METRICS, aupr_out, auroc
from jemstone.evaluation.forward import frozen
from jemstone.evaluation.ood import FULL, QUICK, OodSettings, ood_section
from jemstone.evaluation.scores import SCORES, max_logit, refined_density
from jemstone.evaluation.section import Chains, Common, Subject, Work
from jemstone.sampling import langevin, uniform

COMMON = Common(batch_size=17, resamples=10)
SETTINGS = OodSettings(refinement_steps=2)
EVERY = [*SCORES, "refined_density"]


def dataset(inputs, labels):
    split = Split(inputs, labels)
    return Dataset("toy", split, split, split, ("a", "b", "c"))


def stored_images(n=40, width=4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, 4, width), dtype=torch.uint8, generator=rng)


def chains(shape, sampler=None):
    return Chains(uniform(shape, None), sampler or langevin(0.05, 0.1), steps=2, life=4)


def network(features):
    torch.manual_seed(0)
    return EnergyClassifier(nn.Sequential(nn.Flatten(), nn.Linear(features, 16), nn.SiLU(), nn.Linear(16, 3)))


@pytest.fixture
def subject():
    data = dataset(stored_images(), torch.arange(40) % 3)
    return Subject(network(16), data, {"mine": stored_images(25, seed=1)}, chains((1, 4, 4)))


@pytest.fixture
def vectors():
    rng = torch.Generator().manual_seed(0)
    return Subject(network(5), dataset(torch.randn(50, 5, generator=rng), torch.arange(50) % 3))


def section(subject, settings=SETTINGS, common=COMMON, work=Work()):  # noqa: B008
    with frozen(subject.model):
        return ood_section(subject, settings, common, work)


def test_all_scores_on_all_sets(subject):
    found = section(subject)
    sets = ["noise", "constant", "inverted", "rotated", "interpolated", "mine"]
    prefixes = [*(f"ood/{name}" for name in sets), "ood_mean/near", "ood_mean/far"]
    assert [r.name for r in found.results] == [f"{p}/{s}/{m}" for p in prefixes for s in EVERY for m in METRICS]
    assert found.notes == []
    assert found.figures["near"] == ["rotated", "interpolated"]
    assert found.figures["far"] == ["noise", "constant", "inverted", "mine"]
    assert found.figures["sizes"] == {**dict.fromkeys(sets[:-1], 40), "mine": 25}
    assert json.loads(json.dumps(found.figures)) == found.figures
    assert {name: (len(v), v.dtype) for name, v in found.examples.items()} == {
        f"{score}/{part}": (n, np.float64)
        for score in EVERY
        for part, n in {"test": 40, **{f"ood/{s}": k for s, k in found.figures["sizes"].items()}}.items()
    }


def test_values_are_those_of_the_scores(subject):
    """Batches of 17 against one batch; each batch of refined chains has noise of its own."""
    found = section(subject, replace(SETTINGS, near=("mine",)))
    test, mine = (to_box(x) for x in (subject.data.test.inputs, subject.foreign["mine"]))
    results = {r.name: r for r in found.results}
    with torch.no_grad():
        inside, outside = (max_logit(subject.model, x).double().numpy() for x in (test, mine))
        starts = range(0, 40, 17)
        refined = torch.cat([
            refined_density(subject.chains.sampler, 2, 0, "test", start)(subject.model, test[start : start + 17])
            for start in starts
        ])  # fmt: skip
    np.testing.assert_allclose(found.examples["max_logit/test"], inside, atol=1e-6)
    np.testing.assert_allclose(found.examples["max_logit/ood/mine"], outside, atol=1e-6)
    assert results["ood/mine/max_logit/auroc"].value == pytest.approx(auroc(inside, outside), abs=2e-3)
    assert results["ood_mean/near/max_logit/aupr_out"].value == pytest.approx(aupr_out(inside, outside), abs=1e-2)
    np.testing.assert_allclose(found.examples["refined_density/test"], refined.double().numpy(), atol=1e-5)


def test_a_section_repeats_itself_and_follows_its_seed(subject):
    state = torch.get_rng_state()
    first, again = section(subject), section(subject)
    assert first.results == again.results
    assert first.figures == again.figures
    assert torch.equal(torch.get_rng_state(), state)
    other = {r.name: r for r in section(subject, common=replace(COMMON, seed=1)).results}
    (same,) = [r for r in first.results if r.name == "ood/rotated/log_density/auroc"]  # the set itself has no seed
    assert other[same.name].value == same.value
    assert other[same.name] != same


def test_a_sets_result_does_not_depend_on_the_others(subject):
    alone = replace(subject, foreign={})
    found = {r.name: r for r in section(subject).results}
    assert all(found[r.name] == r for r in section(alone).results if r.name.startswith("ood/"))


def test_what_was_stored_is_not_measured_again(subject):
    stored = {}

    def memo(name, make):
        if name not in stored:
            stored[name] = make()
        return {key: values.copy() for key, values in stored[name].items()}

    first = section(subject, work=Work(memo=memo))
    assert set(stored) == {f"ood-{what}-{score}" for what in ("scores", "detections") for score in EVERY}
    assert all(isinstance(v, np.ndarray) and v.dtype == np.float64 for found in stored.values() for v in found.values())

    def refuse(x):
        raise AssertionError("asked again")

    subject.model.network.register_forward_pre_hook(lambda module, x: refuse(x))
    again = section(subject, work=Work(memo=memo))
    assert again.results == first.results
    assert again.figures == first.figures
    assert first.results == section(replace(subject, model=network(16))).results


def test_histograms_count_every_input(subject):
    found = section(subject)
    assert list(found.figures["scores"]) == EVERY
    for histogram in found.figures["scores"].values():
        assert len(histogram["edges"]) == 41
        assert sum(histogram["test"]) == 40
        assert {name: sum(counts) for name, counts in histogram["ood"].items()} == found.figures["sizes"]


def test_histograms_agree_with_numpy_within_their_range(vectors):
    found = section(replace(vectors, foreign={"far": torch.full((500, 5), 30.0)}))
    histogram, scores = found.figures["scores"]["log_density"], found.examples["log_density/test"].astype(np.float64)
    edges = np.array(histogram["edges"])
    inner = np.histogram(scores, edges)[0]
    assert histogram["test"][1:-1] == inner[1:-1].tolist()
    everything = np.concatenate([v for k, v in found.examples.items() if k.startswith("log_density/")])
    np.testing.assert_allclose(edges[[0, -1]], np.quantile(everything, (0.005, 0.995)), rtol=1e-5)


def test_a_score_that_says_nothing_is_measured_too(subject):
    class Constant(nn.Module):
        def forward(self, x):
            return 0 * x.flatten(1)[:, :3]

    results = {r.name: r for r in section(replace(subject, model=EnergyClassifier(Constant()))).results}
    assert results["ood/noise/log_density/auroc"][1:4] == (0.5, 0.5, 0.5)
    assert results["ood_mean/far/negative_entropy/auroc"].value == 0.5
    assert results["ood/noise/log_density/fpr95"].value == 1
    assert results["ood/noise/approximate_mass/aupr_out"].value == 0.5


def test_without_chains_nothing_is_refined(vectors):
    found = section(vectors)
    assert list(found.figures["scores"]) == list(SCORES)
    assert len(found.notes) == 1
    assert "'refined_density' left out" in found.notes[0]
    assert found.figures["near"] == ["interpolated"]
    assert found.pictures == {}


def test_chains_that_explode_are_left_out_and_said(subject):
    class Steep(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] ** 4

    exploding = replace(subject, model=EnergyClassifier(Steep()), chains=chains((1, 4, 4), langevin(1e6, 0.0)))
    found = section(exploding, replace(SETTINGS, refinement_steps=10))
    assert list(found.figures["scores"]) == list(SCORES)
    assert not [r for r in found.results if "refined" in r.name]
    assert not [name for name in found.examples if "refined" in name]
    assert len(found.notes) == 1
    assert "do not end in finite energies" in found.notes[0]


def test_scores_that_are_not_finite_are_refused(vectors):
    with pytest.raises(DataError, match="ood/x/log_density: scores must be finite"):
        section(replace(vectors, foreign={"x": torch.full((5, 5), float("nan"))}))


def test_few_inputs_are_warned_of_and_many_are_not(subject):
    (warned,) = section(subject).warnings
    assert warned.name == "small-n"
    assert "40 inputs in the test split" in warned.text
    assert "25 inputs in 'mine'" in warned.text
    many = Subject(subject.model, dataset(stored_images(100), torch.arange(100) % 3))
    assert section(many).warnings == []
    (warned,) = section(replace(many, foreign={"few": stored_images(99)})).warnings
    assert warned.text == "Out-of-distribution detection has only 99 inputs in 'few'."


def test_the_limit_holds_for_the_sets_and_not_for_the_test_split(subject):
    found = section(subject, replace(SETTINGS, images=10))
    assert set(found.figures["sizes"].values()) == {10}
    assert len(found.examples["log_density/test"]) == 40
    assert found.results[0].n == 50


def test_near_takes_foreign_names_and_no_unknown_ones(subject):
    assert section(subject, replace(SETTINGS, near=("mine", "shuffled"))).figures["near"] == ["mine"]
    with pytest.raises(ConfigError, match=r"\['svhn'\].*There are: noise, .*, mine"):
        section(subject, replace(SETTINGS, near=("rotated", "svhn")))
    found = section(subject, replace(SETTINGS, near=()))
    assert found.figures["near"] == []
    assert not [r for r in found.results if r.name.startswith("ood_mean/near")]


def test_the_picture_has_one_row_per_set(subject):
    few = replace(subject, foreign={"mine": stored_images(3, seed=1)})
    picture = section(few).pictures["foreign"]
    assert picture.columns == 10
    assert picture.images.shape == (60, 1, 4, 4)
    assert picture.caption.endswith("noise, constant, inverted, rotated, interpolated, mine.")
    assert torch.equal(picture.images[20:30], -to_box(subject.data.test.inputs[:10]))
    assert torch.equal(picture.images[50:53], to_box(few.foreign["mine"]))
    assert torch.equal(picture.images[53:], torch.zeros(7, 1, 4, 4))


def test_settings_are_checked_and_survive_json():
    for settings in (OodSettings(), QUICK, FULL):
        fields = json.loads(json.dumps(asdict(settings)))
        assert OodSettings(**{**fields, "near": tuple(fields["near"])}) == settings
    assert (QUICK.images, QUICK.refinement_steps, FULL.images, FULL.refinement_steps) == (2000, 5, 100_000, 20)
    with pytest.raises(ConfigError, match=r"OodSettings\.images must be at least 2, got 1"):
        OodSettings(images=1)
    with pytest.raises(ConfigError, match=r"OodSettings\.refinement_steps must be at least 1, got 0"):
        OodSettings(refinement_steps=0)
