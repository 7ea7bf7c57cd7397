"""A run directory in; results, figures, grids and cached sections out, in an order that loses nothing."""

import copy
import json
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from jemstone import recipe
from jemstone.data import Dataset, Split
from jemstone.errors import ConfigError, DataError, RunError
from jemstone.evaluation import BUDGETS
from jemstone.evaluation.evaluate_run import evaluate_run, read_results
from jemstone.evaluation.store import Store
from jemstone.rng import generator
from jemstone.training.session import Session
from jemstone.training.trained import load_trained

CLASSES = 12
QUICK = BUDGETS["quick"]
CHEAP = replace(
    QUICK,
    resamples=5,
    ood=replace(QUICK.ood, images=20),
    robustness=replace(QUICK.robustness, images=4, steps=1, linf=(0.1,), l2=(1.0,), black_box_images=0),
    generation=replace(QUICK.generation, samples=20, by_class_samples=24, fid_resamples=2, kid_subsets=2),
)
FEW = CHEAP.only("calibration", "ood", "robustness")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JEMSTONE_CACHE", str(tmp_path / "cache"))


def made_by_hand(n: int = 60) -> Dataset:
    """Twelve classes of 6x6 stored images."""
    labels = torch.arange(n) % CLASSES
    images = torch.randint(0, 256, (n, 1, 6, 6), dtype=torch.uint8, generator=generator(0, "images"))
    split = Split(images, labels)
    return Dataset("by hand", split, split, split, tuple(f"class {i}" for i in range(CLASSES)))


def own_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.SiLU(), nn.Linear(16, CLASSES))


@pytest.fixture
def data():
    return made_by_hand()


@pytest.fixture
def run(tmp_path, data):
    small = {"steps": 3, "batch_size": 8, "real_batch_size": 8, "validate_every": 0, "device": "cpu"}
    config = recipe("jem-small").with_values(**small, chains={"steps": 1, "buffer_size": 24, "restart_rate": 0.5})
    for _ in Session.start(config, data, own_network(), run=tmp_path / "run").train():
        pass
    return tmp_path / "run"


def test_objects_of_ones_own_are_given_again(run, data):
    network = own_network()
    before = copy.deepcopy(network.state_dict())
    results = evaluate_run(run, data=data, network=network, protocol=FEW)
    assert results == read_results(run)
    assert {result.name for result in results} >= {"accuracy", "nll", "ece", "ood/noise/log_density/auroc"}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(ConfigError, match="network of your own"):
        evaluate_run(run, data=data, protocol=FEW)
    with pytest.raises(ConfigError, match="data given in Python"):
        evaluate_run(run, network=network, protocol=FEW)
    other = Split(data.test.inputs.flip(0), data.test.labels)
    with pytest.raises(DataError, match="digest differs"):
        evaluate_run(run, data=Dataset("other", other, other, other, data.class_names), network=network)


def test_figures_name_the_step_and_the_machine(run, data):
    evaluate_run(run, data=data, network=own_network(), protocol=FEW)
    figures = json.loads((run / "figures.json").read_text())
    assert figures["step"] == 3
    assert figures["protocol"]["name"] == "v1"
    assert figures["protocol"]["robustness"]["linf"] == [0.1]
    assert set(figures["environment"]) == {"jemstone", "torch", "python", "device", "threads", "date"}
    assert list(figures["sections"]) == ["calibration", "ood", "robustness"]
    # Twelve classes of which train, validation and test are one: the evaluation distrusts it.
    assert {"test-selected", "train-test-overlap", "small-n"} <= {w["name"] for w in figures["warnings"]}


def test_a_kill_keeps_what_was_measured(run, data, monkeypatch):
    save = Store.save

    def killed(self, name, stored):
        if name == "robustness":
            raise KeyboardInterrupt
        save(self, name, stored)

    monkeypatch.setattr(Store, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, data=data, network=own_network(), protocol=FEW)
    partial = read_results(run)
    assert {r.name.split("/")[0] for r in partial} >= {"accuracy", "ood"}
    assert not [r for r in partial if r.name.startswith("pgd")]
    monkeypatch.setattr(Store, "save", save)
    said = []
    whole = evaluate_run(run, data=data, network=own_network(), protocol=FEW, on_progress=said.append)
    assert whole[: len(partial)] == partial
    assert [r.name for r in whole[len(partial) :]] == ["pgd_linf/0.1", "pgd_l2/1"]
    assert sum("measured before" in text for text in said) == 2


def test_sections_asked_for_alone_join_what_is_there(run, data):
    given = {"data": data, "network": own_network()}
    first = evaluate_run(run, **given, protocol=FEW.only("calibration"))
    second = evaluate_run(run, **given, protocol=FEW.only("robustness"))
    assert second[: len(first)] == first
    assert [r.name for r in second[len(first) :]] == ["pgd_linf/0.1", "pgd_l2/1"]
    said = []
    evaluate_run(run, **given, protocol=FEW.only("calibration"), fresh=True, on_progress=said.append)
    assert not [text for text in said if "measured before" in text]


def test_numbers_of_an_earlier_state_do_not_stay(run, data):
    given = {"data": data, "network": own_network()}
    evaluate_run(run, **given, protocol=FEW.only("calibration", "robustness"))
    config = json.loads((run / "config.json").read_text())
    assert config["config"]["steps"] == 3
    (checkpoint,) = (run / "checkpoints").glob("step-00000003*")
    older = sorted((run / "checkpoints").glob("*"))[0]
    if older != checkpoint:
        checkpoint.unlink()
    else:
        pytest.fail("the run keeps one checkpoint only: nothing to compare")
    results = evaluate_run(run, **given, protocol=FEW.only("calibration"))
    assert not [r for r in results if r.name.startswith("pgd")]


def test_chains_that_left_the_numbers_cost_their_section_only(run, data, monkeypatch):
    def lost(self, labels, rng, **_):
        return torch.full((len(labels), 1, 6, 6), torch.nan)

    monkeypatch.setattr("jemstone.evaluation.section.Subject.sample", lost)
    said = []
    protocol = CHEAP.only("calibration", "generation")
    results = evaluate_run(run, data=data, network=own_network(), protocol=protocol, on_progress=said.append)
    assert results == read_results(run)
    assert "accuracy" in {r.name for r in results}
    assert not [r for r in results if r.name.startswith("generation/")]
    notes = json.loads((run / "figures.json").read_text())["notes"]
    assert any("not finite" in note for note in notes)
    assert said[0] == "data: custom"


def test_every_note_and_warning_is_said(run, data, monkeypatch):
    """Without foolbox there is no attack, and whoever watches is told so."""
    monkeypatch.setitem(sys.modules, "foolbox", None)
    monkeypatch.setattr("jemstone.evaluation.robustness.find_spec", lambda name: None)
    said = []
    evaluate_run(run, data=data, network=own_network(), protocol=FEW, on_progress=said.append)
    figures = json.loads((run / "figures.json").read_text())
    assert any("foolbox" in note for note in figures["notes"])
    assert [text for text in said if text.startswith("note: ")] == [f"note: {note}" for note in figures["notes"]]
    warned = [text for text in said if text.startswith("warning (")]
    assert warned == [f"warning ({w['section']}): {w['name']}: {w['text']}" for w in figures["warnings"]]
    assert warned


def test_pictures_are_grids_with_captions(run, data):
    evaluate_run(run, data=data, network=own_network(), protocol=CHEAP.only("generation"))
    pictures = {path.stem for path in (run / "samples").glob("*.png")}
    assert pictures == {"data", "fresh", "by_class", "buffer", "neighbours"}
    with Image.open(run / "samples" / "by_class.png") as image:
        assert image.width > image.height  # twelve classes are shown in ten columns, 24 samples
    caption = json.loads((run / "samples" / "by_class.json").read_text())["caption"]
    assert "one class per column" in caption


def test_results_that_are_none_are_refused(run):
    assert read_results(run) == []
    (run / "results.json").write_text('[{"name": "accuracy"}]')
    with pytest.raises(RunError, match="evaluate the run again"):
        read_results(run)


def test_the_buffer_is_drawn_from_at_random_and_by_class(run):
    trained = load_trained(run, own_network(), device="cpu")
    few = trained.buffer_chains(5, seed=1)
    assert len(few) == 5
    assert torch.equal(few, trained.buffer_chains(5, seed=1))
    assert not torch.equal(few, trained.buffer_chains(5, seed=2))
    predicted = trained.logits(trained.buffer).argmax(dim=1)
    label = int(predicted[0])
    of_class = trained.buffer_chains(1000, label=label)
    assert len(of_class) == int((predicted == label).sum())
    assert (trained.logits(of_class).argmax(dim=1) == label).all()
    with pytest.raises(DataError, match="no replay buffer"):
        replace(trained, buffer=None).buffer_chains(5)
