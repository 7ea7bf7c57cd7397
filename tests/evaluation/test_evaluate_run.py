"""A run directory in; results, figures and grids out, in an order that loses nothing."""

import copy
import json
import sys

import pytest
import torch
from PIL import Image
from torch import nn

from jemstone import recipe
from jemstone.data import Dataset, Split
from jemstone.errors import ConfigError, DataError
from jemstone.evaluation import Protocol
from jemstone.evaluation.evaluate_run import evaluate_run, read_results, write_sample_grids
from jemstone.rng import generator
from jemstone.training.session import Session
from jemstone.training.trained import Trained, load_trained

CLASSES = 12
CHEAP = Protocol(name="test", resamples=5, attack_images=4, attack_steps=1, linf=(0.1,), l2=(1.0,), ood_images=20)


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
    results = evaluate_run(run, data=data, network=network, protocol=CHEAP)
    assert results == read_results(run)
    assert {result.name for result in results} >= {"accuracy", "nll", "ece", "ood/noise/log_density/auroc"}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(ConfigError, match="network of your own"):
        evaluate_run(run, data=data, protocol=CHEAP)
    with pytest.raises(ConfigError, match="data given in Python"):
        evaluate_run(run, network=network, protocol=CHEAP)
    other = Split(data.test.inputs.flip(0), data.test.labels)
    with pytest.raises(DataError, match="digest differs"):
        evaluate_run(run, data=Dataset("other", other, other, other, data.class_names), network=network)


def test_figures_name_the_step_that_was_measured(run, data):
    evaluate_run(run, data=data, network=own_network(), protocol=CHEAP)
    figures = json.loads((run / "figures.json").read_text())
    assert figures["step"] == 3
    assert figures["protocol"]["name"] == "test"
    assert figures["notes"] == []


def test_results_are_on_disk_before_the_pictures_are_drawn(run, data, monkeypatch):
    seen = []

    def interrupted(trained, data):
        seen.extend(sorted(path.name for path in run.iterdir()))
        raise KeyboardInterrupt

    monkeypatch.setattr("jemstone.evaluation.evaluate_run.write_sample_grids", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, data=data, network=own_network(), protocol=CHEAP)
    assert {"figures.json", "results.json"} <= set(seen)
    assert len(read_results(run)) > 10


def test_pictures_that_cannot_be_drawn_are_a_note(run, data, monkeypatch):
    """Chains that left the numbers cost the pictures, not the measurements."""
    monkeypatch.setattr(Trained, "sample", lambda self, labels, **_: torch.full((len(labels), 1, 6, 6), torch.nan))
    said = []
    results = evaluate_run(run, data=data, network=own_network(), protocol=CHEAP, on_progress=said.append)
    assert results == read_results(run)
    (note,) = json.loads((run / "figures.json").read_text())["notes"]
    assert note.startswith("No samples: ")
    assert said[-1] == f"note: {note}"
    assert said[0] == "data: custom"


def test_every_note_is_said(run, data, monkeypatch):
    """Without foolbox there is no attack, and whoever watches is told so."""
    monkeypatch.setitem(sys.modules, "foolbox", None)
    said = []
    evaluate_run(run, data=data, network=own_network(), protocol=CHEAP, on_progress=said.append)
    notes = json.loads((run / "figures.json").read_text())["notes"]
    assert any("foolbox" in note for note in notes)
    assert [text for text in said if text.startswith("note: ")] == [f"note: {note}" for note in notes]


def test_the_grid_by_class_shows_the_first_ten_classes_in_columns(run, data, monkeypatch):
    asked = []
    sample = Trained.sample

    def recorded(self, labels, **options):
        asked.append((labels.tolist(), options))
        return sample(self, labels, **options)

    monkeypatch.setattr(Trained, "sample", recorded)
    trained = load_trained(run, own_network(), device="cpu")
    write_sample_grids(trained, data)
    (fresh, _), (by_class, options) = asked
    assert set(fresh) == set(range(CLASSES))  # chains on E(x) start from every class
    assert by_class == [i % 10 for i in range(50)]
    assert options == {"by_class": True}
    pictures = {path.name for path in (run / "samples").glob("*.png")}
    assert pictures == {"data.png", "fresh.png", "by_class.png", "buffer.png"}
    assert Image.open(run / "samples" / "by_class.png").size == (10 * 50 + 2, 5 * 50 + 2)
    caption = json.loads((run / "samples" / "by_class.json").read_text())["caption"]
    assert "one class per column, 10 classes" in caption
