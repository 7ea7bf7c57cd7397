"""Runs from start to finish: what lands on disk, what comes back, what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

from jemstone.data import Dataset, Split, load_dataset, to_box
from jemstone.data.sources import absolute_source
from jemstone.errors import CheckpointError, ConfigError, DataError, Diverged, RunError
from jemstone.networks.layers import SeparateBatchNorm2d
from jemstone.networks.modes import in_mode
from jemstone.rng import generator
from jemstone.runs import Run
from jemstone.sampling import ClassGaussian
from jemstone.training import diagnostics
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


FROM_NOTHING = [name for name in RECIPES if not recipe(name).weights.margin]  # test_outliers.py has the rest


@pytest.mark.parametrize("name", FROM_NOTHING)
def test_every_recipe_trains(name, digits):
    session = Session.start(tiny(name, steps=3, augment={"crop_padding": 2}), digits)
    rows = list(session.train())
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert {"validation_accuracy", "validation_nll", "evaluation_accuracy"} <= rows[-1].keys()
    assert "evaluation_accuracy" not in rows[0]


def test_a_run_leaves_what_it_promises(finished):
    run = Run(finished.run.path)
    assert run.info["data"]["sizes"] == {"train": 1293, "validation": 144, "test": 360}
    assert run.info["data"]["input_shape"] == [1, 8, 8]
    assert run.info["config"]["recipe"] == "jem-small"
    assert [row["step"] for row in run.rows("metrics.jsonl")] == [2, 4, 5, 6, 8, 10]
    assert [row["event"] for row in run.rows("events.jsonl")] == ["started", "validation", "validation", "finished"]
    names = [path.name for path in list_checkpoints(run.path / "checkpoints")]
    assert names == [f"step-000000{step}.safetensors" for step in ("00", "04", "08", "10")]  # two windows back


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


def test_evaluation_accuracy_is_that_of_the_model_to_use_on_training_examples(finished, digits):
    few = digits.train.spread(512)
    assert len(few) == 512
    with torch.no_grad(), in_mode(finished.model, training=False):
        correct = finished.model(to_box(few.inputs)).argmax(dim=1) == few.labels
    rows = {row["step"]: row for row in finished.run.rows("metrics.jsonl")}
    assert rows[10]["evaluation_accuracy"] == pytest.approx(correct.double().mean().item())
    assert [step for step, row in rows.items() if "evaluation_accuracy" in row] == [5, 10]


def test_fresh_chains_live_as_long_as_those_at_the_end_of_training(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(diagnostics, "energy_auc", lambda real, negatives: torch.tensor(1.0))
    config = tiny(steps=3, chains={"max_steps": 4})
    list(Session.start(config, digits, run=tmp_path / "run").train())
    trained = load_trained(tmp_path / "run")
    assert (config.chains.steps, trained.chain_steps) == (2, 4)
    assert trained.chain_life == 4 / config.chains.restart_rate == 80


def flat(norm):
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), nn.Flatten(), nn.Linear(144, 10))


def test_statistics_that_a_network_cannot_have_are_refused(digits):
    frozen = tiny(network={"norm": "batch", "statistics": "frozen"})
    with pytest.raises(ConfigError, match=r"there is none: set classifier_steps"):
        Session.start(frozen, digits)
    Session.start(frozen.with_values(classifier_steps=2), digits)
    Session.start(frozen, digits, flat(nn.BatchNorm2d))  # it may have been trained
    separate = tiny(network={"norm": "batch", "statistics": "separate"})
    with pytest.raises(ConfigError, match=r"two sets of running averages.*SeparateBatchNorm2d"):
        Session.start(separate, digits, flat(nn.BatchNorm2d))
    Session.start(separate, digits, flat(SeparateBatchNorm2d))
    Session.start(separate, digits)


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
    chains = trained.buffer_chains(5, label=label)
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
    config = tiny(limits={"gap": 1e-9}, recovery={"attempts": 0})
    session = Session.start(config, digits, run=tmp_path / "run")
    with pytest.raises(Diverged, match="gap"):
        list(session.train())
    events = Run(tmp_path / "run").rows("events.jsonl")
    assert [row["event"] for row in events] == ["started", "diverged"]
    assert (events[-1]["verdict"], events[-1]["failed_step"]) == ("gap_explosion", 1)
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
        trained.buffer_chains(2)


def test_without_a_directory_nothing_is_written(tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    list(Session.start(tiny(steps=2), digits).train())
    assert not any(tmp_path.iterdir())


def test_logits_and_log_density_take_what_is_stored_batch_by_batch(tmp_path):
    """uint8 images as a data set holds them are the floats that the model was trained on."""
    stored = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=generator(0, "stored"))
    split = Split(stored, torch.arange(40) % 3)
    data = Dataset("stored", split, split, split, ("a", "b", "c"))
    list(Session.start(tiny(steps=2), data, run=tmp_path / "run").train())
    trained = load_trained(tmp_path / "run", data=data, device="cpu")
    x = to_box(stored)
    with torch.no_grad():
        expected = trained.model(x)
    logits = trained.logits(stored, batch_size=7)  # six batches, the last one smaller
    assert logits.shape == (40, 3)
    assert logits.device.type == "cpu"
    assert not logits.requires_grad
    assert torch.allclose(logits, expected, atol=1e-6)
    assert torch.equal(trained.logits(stored), trained.logits(x))
    assert torch.allclose(trained.log_density(stored), expected.logsumexp(dim=1), atol=1e-6)
    assert trained.log_density(stored).shape == (40,)


def test_loading_leaves_the_network_that_it_is_given_alone(tmp_path, digits):
    def network():
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    list(Session.start(tiny(steps=2), digits, network(), run=tmp_path / "run").train())
    own = network().train()
    trained = load_trained(tmp_path / "run", own, device="cpu")
    assert trained.model.network is not own
    assert own.training
    assert torch.equal(own[1].weight, network()[1].weight)
    assert not torch.equal(own[1].weight, trained.model.network[1].weight)
    twice = load_trained(tmp_path / "run", own)  # of one object, two models
    assert twice.model.network is not trained.model.network


@pytest.mark.parametrize("labels", [[0, 10], [-1, 3]])
def test_labels_to_sample_are_classes(finished, labels):
    with pytest.raises(ConfigError, match=r"must lie in \[0, 10\)"):
        load_trained(finished.run.path).sample(torch.tensor(labels), steps=1)


def test_samples_are_on_the_cpu(finished):
    samples = load_trained(finished.run.path, device="cpu").sample(torch.arange(2), steps=1)
    assert samples.device.type == "cpu"
    assert not samples.requires_grad


def state_of(session):
    state = session.state
    tensors = [*state.model.state_dict().values(), *state.ema.state_dict().values(), state.buffer.x, state.buffer.age]
    return [tensor.clone() for tensor in tensors]


def all_equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_run_killed_at_its_very_beginning_resumes_with_no_checkpoint(tmp_path, digits, monkeypatch):
    """config.json is first on disk, and the state before the first step follows from it."""

    def killed(session):
        names = {path.name for path in session.run.path.iterdir()}
        assert names == {"config.json", "events.jsonl"}
        raise KeyboardInterrupt

    config = tiny(chains={"start": "gaussian"}, ema=0.9)
    whole = Session.start(config, digits)
    first = state_of(whole)
    list(whole.train())
    with monkeypatch.context() as patch:
        patch.setattr(Session, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            Session.start(config, digits, run=tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*\n?.*--resume"):
        load_trained(tmp_path / "run")
    resumed = Session.resume(tmp_path / "run", digits)
    assert resumed.state.step == 0
    assert all_equal(state_of(resumed), first)
    list(resumed.train())
    assert all_equal(state_of(resumed), state_of(whole))
    assert load_trained(tmp_path / "run").step == 10
    assert (tmp_path / "run" / "initial.safetensors").exists()  # written late rather than never


def test_resume_takes_the_start_of_its_chains_from_the_run_and_does_not_estimate_it_again(
    tmp_path, digits, monkeypatch
):
    session = Session.start(tiny(chains={"start": "gaussian"}), digits, run=tmp_path / "run")

    def again(*arguments, **settings):
        raise AssertionError("estimated again")

    monkeypatch.setattr(ClassGaussian, "fit", again)
    resumed = Session.resume(tmp_path / "run", digits)
    for name in ("mean", "factor", "residual"):
        assert torch.equal(getattr(resumed.initial, name), getattr(session.initial, name))
    path = tmp_path / "run" / "initial.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(RunError, match="Delete it and resume"):
        Session.resume(tmp_path / "run", digits)


def test_a_start_that_left_half_a_file_can_be_made_again(tmp_path, digits):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".config.json.4242.tmp").write_text('{"form')
    assert Session.start(tiny(), digits, run=folder).run.path == folder


def test_a_finished_run_is_finished_once(tmp_path, digits):
    list(Session.start(tiny(steps=2), digits, run=tmp_path / "run").train())
    for _ in range(2):
        assert list(Session.resume(tmp_path / "run", digits).train()) == []
    events = [row["event"] for row in Run(tmp_path / "run").rows("events.jsonl")]
    assert events.count("finished") == 1
    assert events.count("resumed") == 2


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x.flatten(1))))))


def test_a_network_with_tied_weights_is_saved_resumed_and_loaded(tmp_path, digits):
    config = tiny(ema=0.9)
    whole = Session.start(config, digits, Tied())
    list(whole.train())
    session = Session.start(config, digits, Tied(), run=tmp_path / "run")
    for metrics in session.train():
        if metrics["step"] == 6:
            break
    resumed = Session.resume(tmp_path / "run", digits, Tied())
    assert resumed.state.step == 4
    list(resumed.train())
    assert all_equal(state_of(resumed), state_of(whole))
    network = load_trained(tmp_path / "run", Tied()).model.network
    assert network.first.weight is network.second.weight


@pytest.mark.parametrize("name", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_several_processes_are_refused_before_anything_is_made(tmp_path, digits, monkeypatch, name):
    monkeypatch.setenv(name, "4")
    with pytest.raises(ConfigError, match="4 processes"):
        Session.start(tiny(), digits, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_buffer_too_small_for_its_classes_is_refused_at_the_start(tmp_path, digits):
    """Batches of 16 may all be of one class, and 40 chains hold 4 of each of ten."""
    config = tiny(weights={"marginal": 0.0, "conditional": 1.0})
    with pytest.raises(ConfigError, match=r"chains\.buffer_size to at least 160"):
        Session.start(config, digits, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    Session.start(config.with_values(chains={"buffer_size": 160}), digits)


def test_a_batch_without_labels_is_no_error_where_log_p_of_x_given_y_is_all_there_is(digits):
    labels = digits.train.labels.clone()
    labels[torch.arange(len(labels)) >= 10] = -1
    train = Split(digits.train.inputs, labels)
    data = Dataset("few", train, digits.validation, digits.test, digits.class_names)
    weights = {"class_nll": 0.0, "marginal": 0.0, "conditional": 1.0}
    config = tiny(steps=6, weights=weights, real_batch_size=4, batch_size=4)
    session = Session.start(config, data)
    known = [bool((session.trainer.streams.real(step).y >= 0).any()) for step in range(6)]
    assert False in known
    rows = list(session.train())
    assert [row["conditional_gap"] != 0 for row in rows] == known
    assert [row["grad_norm"] > 0 for row in rows] == known


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("train", torch.tensor([0, 1, 2]), r"data.train must lie in \[-1, 2\), found 0 to 2"),
        ("train", torch.tensor([0, -2, 1]), r"data.train must lie in \[-1, 2\), found -2"),
        ("validation", torch.tensor([0, 1, -1]), r"data.validation must lie in \[0, 2\)"),
        ("test", torch.tensor([0, 1, 5]), r"data.test must lie in \[0, 2\)"),
        ("train", torch.tensor([0, 1, 1], dtype=torch.int32), "data.train needs one int64 label per input"),
        ("test", torch.tensor([0, 1]), "data.test needs one int64 label per input, got torch.int64 for 3"),
    ],
)
def test_labels_of_a_data_set_made_by_hand_are_checked(tmp_path, name, labels, message):
    inputs = torch.zeros(3, 1, 8, 8)
    good = Split(inputs, torch.tensor([0, 1, 1]))
    splits = {"train": good, "validation": good, "test": good, name: Split(inputs, labels)}
    with pytest.raises(DataError, match=message):
        Session.start(tiny(), Dataset("hand", **splits, class_names=("a", "b")), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_for_inputs_of_another_size_is_refused(tmp_path, digits):
    with pytest.raises(ConfigError, match=r"inputs of shape \(batch, 1, 8, 8\), which the data has"):
        Session.start(tiny(), digits, nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), run=tmp_path / "run")
    with pytest.raises(ConfigError, match="inputs of shape"):
        Session.start(tiny(), digits, nn.Conv2d(3, 10, 3))
    assert not (tmp_path / "run").exists()


def test_a_run_can_be_resumed_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    labels = np.arange(60) % 3
    np.savez("set.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    config = tiny(data={"source": "set.npz"}, steps=2)
    Session.start(config, run=tmp_path / "run")
    source = Run(tmp_path / "run").info["config"]["data"]["source"]
    assert source == str(tmp_path / "here" / "set.npz")
    monkeypatch.chdir(tmp_path / "there")
    assert len(list(Session.resume(tmp_path / "run").train())) == 2


def test_a_source_that_is_no_path_keeps_its_name(tmp_path):
    session = Session.start(tiny(), run=tmp_path / "run")
    assert session.config.data.source == Run(tmp_path / "run").info["data"]["source"] == "digits"


def test_a_source_is_kept_so_that_it_reads_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()  # a folder of the embedded set's name is not the embedded set
    monkeypatch.chdir(tmp_path)
    assert Session.start(tiny(steps=1)).config.data.source == "digits"
    assert absolute_source("hf:mnist") == "hf:mnist"
    assert absolute_source("folder/set.npz") == str(tmp_path / "folder" / "set.npz")


def test_resuming_with_other_threads_is_said(tmp_path):
    Session.start(tiny(steps=2), run=tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"threads": 1', '"threads": 64'))
    with pytest.warns(UserWarning, match="OMP_NUM_THREADS=64"):
        Session.resume(tmp_path / "run")
