"""Runs from start to finish: what lands on disk, what comes back, what is refused."""

import pytest
import torch
from torch import nn

from jemstone.data import Dataset, Split, load_dataset
from jemstone.errors import CheckpointError, ConfigError, DataError, Diverged, RunError
from jemstone.evaluation.evaluate_run import buffer_chains
from jemstone.runs import Run
from jemstone.training.checkpoint import list_checkpoints
from jemstone.training.recipes import RECIPES, recipe
from jemstone.training.session import Session
from jemstone.training.trained import load_trained

SMALL = {"batch_size": 16, "real_batch_size": 16, "checkpoint_every": 4, "validate_every": 5, "log_every": 2}


def tiny(name: str = "jem-small", **changes):
    config = recipe(name).with_values(steps=10, network={"name": "conv-8"}, **SMALL)
    return config.with_values(chains={"steps": 2, "buffer_size": 40}).with_values(**changes)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", seed=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits):
    session = Session.start(tiny(chains={"start": "gaussian"}), digits, run=tmp_path_factory.mktemp("runs") / "run")
    for _ in session.train():
        pass
    return session


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(name, digits):
    session = Session.start(tiny(name, steps=3, augment={"crop_padding": 2}), digits)
    rows = list(session.train())
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert {"validation_accuracy", "validation_nll"} <= rows[-1].keys()


def test_a_run_leaves_what_it_promises(finished):
    run = Run(finished.run.path)
    assert run.info["data"]["sizes"] == {"train": 1293, "validation": 144, "test": 360}
    assert run.info["data"]["input_shape"] == [1, 8, 8]
    assert run.info["config"]["recipe"] == "jem-small"
    assert [row["step"] for row in run.rows("metrics.jsonl")] == [2, 4, 5, 6, 8, 10]
    assert [row["event"] for row in run.rows("events.jsonl")] == ["started", "validation", "validation", "finished"]
    names = [path.name for path in list_checkpoints(run.path / "checkpoints")]
    assert names == ["step-00000008.safetensors", "step-00000010.safetensors"]


def test_what_was_trained_comes_back(finished):
    trained = load_trained(finished.run.path)
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    finished.model.eval()
    assert torch.equal(trained.model(x), finished.model(x))
    assert trained.step == 10
    assert trained.chain_life == 40
    assert torch.equal(trained.buffer, finished.state.buffer.x)
    labels = torch.arange(10)
    a, b = (
        finished.initial(labels, torch.Generator().manual_seed(0)),
        trained.initial()(labels, torch.Generator().manual_seed(0)),
    )
    assert torch.equal(a, b)


def test_samples_are_reproducible_and_stay_in_the_box(finished):
    trained = load_trained(finished.run.path)
    labels = torch.arange(6)
    first = trained.sample(labels, by_class=True, steps=5)
    assert first.shape == (6, 1, 8, 8)
    assert first.abs().max() <= 1
    assert torch.equal(first, trained.sample(labels, by_class=True, steps=5))
    assert not torch.equal(first, trained.sample(labels, by_class=False, steps=5))
    assert not torch.equal(first, trained.sample(labels, by_class=True, steps=5, seed=1))


def test_buffer_chains_by_class_are_those_that_the_model_sees_as_it(finished):
    trained = load_trained(finished.run.path)
    label = int(trained.model(trained.buffer).argmax(dim=1).mode().values)
    chains = buffer_chains(trained, 5, label=label)
    assert len(chains) > 0
    assert (trained.model(chains).argmax(dim=1) == label).all()


@pytest.mark.parametrize("start", ["uniform", "data"])
def test_other_starts_come_back_too(tmp_path, start):
    session = Session.start(tiny(steps=1, chains={"start": start}), run=tmp_path / "run")
    list(session.train())
    trained = load_trained(tmp_path / "run")
    labels = torch.arange(10)
    x = trained.initial()(labels, torch.Generator().manual_seed(0))
    assert x.shape == (10, 1, 8, 8)
    assert torch.equal(x, session.initial(labels, torch.Generator().manual_seed(0)))


def test_a_network_of_ones_own(tmp_path, digits):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.SiLU(), nn.Dropout(0.1), nn.Linear(20, 10)
        )

    own = network()
    session = Session.start(tiny(), digits, own, run=tmp_path / "run")
    assert session.state.model.network is own
    rows = list(session.train())
    assert rows[-1]["step"] == 10
    again = Session.resume(tmp_path / "run", digits, network())
    assert again.state.step == 10
    assert load_trained(tmp_path / "run", network()).step == 10
    with pytest.raises(ConfigError, match="network of your own"):
        load_trained(tmp_path / "run")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_trained(tmp_path / "run", nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))


def test_a_network_that_does_not_fit_the_data_is_refused(digits):
    with pytest.raises(ConfigError, match="returns 7 logits and the data has 10"):
        Session.start(tiny(), digits, nn.Sequential(nn.Flatten(), nn.Linear(64, 7)))


def test_divergence_is_noted_and_the_last_checkpoint_stays(tmp_path, digits):
    session = Session.start(tiny(limits={"gap": 1e-9}), digits, run=tmp_path / "run")
    with pytest.raises(Diverged, match="gap"):
        list(session.train())
    events = Run(tmp_path / "run").rows("events.jsonl")
    assert events[-1]["event"] == "diverged"
    assert "energy_gap" in events[-1]["metrics"]
    assert load_trained(tmp_path / "run").step == session.state.step


def test_resume_refuses_other_data(tmp_path, digits):
    Session.start(tiny(), digits, run=tmp_path / "run")
    changed = Dataset(
        "digits",
        Split(digits.train.inputs + 0.01, digits.train.labels),
        *(digits.validation, digits.test, digits.class_names),
    )
    with pytest.raises(DataError, match="digest differs"):
        Session.resume(tmp_path / "run", changed)
    with pytest.raises(ConfigError, match="data given in Python"):
        Session.resume(tmp_path / "run")


def test_no_validation_split_means_no_validation():
    session = Session.start(tiny(steps=5, data={"validation": 0.0}))
    assert all("validation_nll" not in row for row in session.train())


def test_start_refuses_an_existing_directory(finished, digits):
    with pytest.raises(RunError, match="--resume"):
        Session.start(tiny(), digits, run=finished.run.path)


def test_a_plain_classifier_has_nothing_to_sample(tmp_path, digits):
    list(Session.start(tiny("classifier-small", steps=1), digits, run=tmp_path / "run").train())
    trained = load_trained(tmp_path / "run")
    with pytest.raises(ConfigError, match="plain classifier"):
        trained.sample(torch.arange(2))
    with pytest.raises(DataError, match="no replay buffer"):
        buffer_chains(trained, 2)


def test_without_a_directory_nothing_is_written(tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    list(Session.start(tiny(steps=2), digits).train())
    assert not any(tmp_path.iterdir())
