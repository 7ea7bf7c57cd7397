"""Energy fine-tuning: outliers that are not of the data, margins that are measured, and a run that resumes bitwise."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from jemstone.data import Dataset, Split, load_dataset, load_inputs, to_box
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError, DataError, Diverged
from jemstone.runs import Run
from jemstone.training.config import TrainConfig
from jemstone.training.outliers import APART, measured_margins
from jemstone.training.recipes import recipe
from jemstone.training.requeue import start_or_resume
from jemstone.training.session import Session
from jemstone.training.start_from import starting_from
from jemstone.training.trained import load_trained

PLAIN = {"precision": "32-true", "layout": "contiguous", "compile": "off", "device": "cpu"}


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained classifier of digits, and outliers: digits upside down in negative, in a file of their own."""
    home = tmp_path_factory.mktemp("outliers")
    config = recipe("classifier-small").with_values(
        network={"name": "conv-8", "norm": "batch"},
        steps=150,
        validate_every=0,
        optimizer={"warmup_steps": 10},
        **PLAIN,
    )
    list(Session.start(config, run=home / "classifier").train())
    data = load_dataset("digits")
    images = (1 - (to_box(data.train.inputs).flip(2) + 1) / 2).numpy()
    np.savez(
        home / "out.npz",
        train_images=images[:600],
        train_labels=np.zeros(600, np.int64),
        test_images=images[600:900],
        test_labels=np.zeros(300, np.int64),
    )
    return home


def finetune(folder, **changes) -> TrainConfig:
    config = recipe("energy-finetune").with_values(
        steps=40,
        validate_every=0,
        batch_size=32,
        optimizer={"learning_rate": 0.01},
        data={"outliers": str(folder / "out.npz")},
        log_every=1,
        checkpoint_every=20,
        **PLAIN,
    )
    return starting_from(config, folder / "classifier").with_values(**changes)


def gap(trained, data, folder) -> float:
    """Mean log density of data minus that of outliers, both unseen."""
    inside, outside = data.test.inputs, load_inputs(str(folder / "out.npz"), (1, 8, 8))
    return (trained.log_density(inside).mean() - trained.log_density(outside).mean()).item()


@pytest.fixture(scope="module")
def tuned(folder):
    session = Session.start(finetune(folder), run=folder / "tuned")
    return session, list(session.train())


def test_fine_tuning_drives_the_energies_apart_and_keeps_the_accuracy(folder, digits, tuned):
    session, rows = tuned
    before, after = load_trained(folder / "classifier"), load_trained(folder / "tuned")
    assert gap(after, digits, folder) > gap(before, digits, folder) + 2
    right = [(t.logits(digits.test.inputs).argmax(1) == digits.test.labels).float().mean() for t in (before, after)]
    assert right[1] > right[0] - 0.02
    assert np.mean([row["margin"] for row in rows[-5:]]) < 0.6 * np.mean([row["margin"] for row in rows[:5]])
    assert {"energy_labelled", "energy_outliers", "grad_class", "grad_outliers"} <= rows[0].keys()
    low, high = session.config.data.margins
    assert load_trained(folder / "tuned").config.data.margins == (low, high)
    # Frozen: energies while training are those in use.
    frozen = [m for m in session.model.modules() if isinstance(m, nn.BatchNorm2d)]
    first = {k: v for k, v in before.model.state_dict().items() if "running" in k}
    assert frozen
    assert all(torch.equal(v, session.model.state_dict()[k]) for k, v in first.items())


def test_a_resumed_run_is_bitwise_the_one_that_was_never_stopped(folder, tuned):
    whole = torch.cat([p.flatten() for p in tuned[0].model.parameters()])
    stopped = Session.start(finetune(folder), run=folder / "stopped")
    for _ in zip(range(30), stopped.train(), strict=False):
        pass
    resumed = Session.resume(folder / "stopped")
    assert resumed.state.step == 20
    list(resumed.train())
    assert torch.equal(torch.cat([p.flatten() for p in resumed.model.parameters()]), whole)


def test_a_resume_knows_its_outliers(folder, tmp_path):
    (tmp_path / "out.npz").write_bytes((folder / "out.npz").read_bytes())
    config = finetune(folder, data={"outliers": str(tmp_path / "out.npz")}, steps=2)
    Session.start(config, run=tmp_path / "run")
    assert len(Run(tmp_path / "run").info["data"]["outliers"]) == 64
    arrays = dict(np.load(tmp_path / "out.npz"))
    arrays["train_images"][0] = 0
    np.savez(tmp_path / "out.npz", **arrays)
    with pytest.raises(DataError, match="are not those that"):
        Session.resume(tmp_path / "run")


def test_killed_before_its_first_checkpoint_it_begins_at_its_start_again(folder, tmp_path):
    begun = Session.start(finetune(folder), run=tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000000.safetensors").unlink()
    again = Session.resume(tmp_path / "run")
    for ours, theirs in zip(again.model.parameters(), begun.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_requeued_command_knows_the_margins_that_it_measured(folder, tmp_path):
    config = finetune(folder, steps=2)
    list(start_or_resume(config, tmp_path / "run").train())
    assert start_or_resume(config, tmp_path / "run").resumed
    with pytest.raises(ConfigError, match=r"other settings \(data\)"):
        start_or_resume(config.with_values(data={"margins": (-3.0, 3.0)}), tmp_path / "run")


def test_a_network_without_batch_norm_is_fine_tuned_too(folder, tmp_path):
    config = recipe("classifier-small").with_values(network={"name": "conv-4"}, steps=1, validate_every=0, **PLAIN)
    list(Session.start(config, run=tmp_path / "plain").train())
    begun = starting_from(finetune(folder, steps=1), tmp_path / "plain")
    assert (begun.network.norm, begun.network.statistics) == ("none", "batch")
    assert len(list(Session.start(begun).train())) == 1


def test_examples_held_out_anew_that_the_start_was_trained_on_are_told(folder, recwarn):
    Session.start(finetune(folder, steps=1))
    assert not [warning for warning in recwarn if "held out" in str(warning.message)]
    with pytest.warns(UserWarning, match=r"held out other examples of digits \(seed 0, .*0.1\) than this run \(seed 1"):
        Session.start(finetune(folder, steps=1, seed=1))


def test_the_guard_stops_it_like_any_run(folder):
    config = finetune(folder, limits={"energy": 1e-3}, recovery={"attempts": 0})
    with pytest.raises(Diverged, match=r"energy_runaway: \|energy_labelled\|") as stopped:
        list(Session.start(config).train())
    assert stopped.value.step == 1


class Energies(nn.Module):
    """One class of logit x: the energy is -x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.w * x.flatten(1)[:, :1]


def test_margins_are_quartiles_of_the_energies_and_apart():
    split = Split(torch.arange(101.0)[:, None] / 100 + 20, torch.zeros(101, dtype=torch.int64))
    data = Dataset("line", split, split, split, ("only",))
    model = EnergyClassifier(Energies())
    far = measured_margins(model, data, torch.arange(101.0)[:, None] / 100)
    assert far == pytest.approx((-20.75, -0.25), abs=1e-4)
    near = measured_margins(model, data, torch.arange(101.0)[:, None] / 100 + 20)
    assert near.outside - near.inside == pytest.approx(APART)
    assert sum(near) / 2 == pytest.approx(-20.5, abs=1e-4)


def test_margins_that_are_given_stay(folder):
    session = Session.start(finetune(folder, data={"margins": (-12.0, -3.0)}))
    assert session.config.data.margins == (-12.0, -3.0)
    for wrong in ((1.0,), (3.0, 2.0), (0.0, float("nan"))):
        with pytest.raises(ConfigError, match="two energies, the lower one first"):
            finetune(folder, data={"margins": wrong})


def test_what_is_missing_is_asked_for(folder):
    with pytest.raises(ConfigError, match=r"--data.outliers SOURCE"):
        Session.start(finetune(folder, data={"outliers": ""}))
    with pytest.raises(ConfigError, match=r"--from RUN"):
        Session.start(finetune(folder, start_from=""))


def test_training_inputs_of_a_source_are_not_its_test_inputs(folder, tmp_path):
    source, shape = str(folder / "out.npz"), (1, 8, 8)
    train, test = load_inputs(source, shape, training=True), load_inputs(source, shape)
    assert (len(train), len(test)) == (600, 300)
    both = {x.numpy().tobytes() for x in load_inputs("digits", shape, training=True)}
    assert not both & {x.numpy().tobytes() for x in load_inputs("digits", shape)}
    arrays = np.load(source)
    np.savez(tmp_path / "test.npz", test_images=arrays["test_images"])
    assert torch.equal(load_inputs(str(tmp_path / "test.npz"), shape, training=True), test)
    (tmp_path / "flat").mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(tmp_path / "flat" / f"{i}.png")
    assert len(load_inputs(str(tmp_path / "flat"), shape, training=True)) == 3
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"bad.npz"):
        load_inputs(str(tmp_path / "bad.npz"), shape, training=True)


def test_each_step_is_the_loss_of_the_batches_of_its_position(folder):
    """The metrics of the first two steps, worked out again from the streams."""
    session = Session.start(finetune(folder))
    low, high = session.config.data.margins
    steps = session.train()
    for position in range(2):
        batch, out = session.trainer.streams.labelled(position), session.trainer.streams.outliers(position)
        model = session.model.eval()
        with torch.no_grad():
            inside, outside = model.energy(batch.x), model.energy(out.x)
        wanted = (inside - low).clamp(min=0).square().mean() + (high - outside).clamp(min=0).square().mean()
        found = next(steps)
        assert found["margin"] == pytest.approx(wanted.item(), rel=1e-4)
        assert found["energy_outliers"] == pytest.approx(outside.mean().item(), rel=1e-4)
        assert found["loss"] == pytest.approx(found["class_nll"] + 0.1 * found["margin"], rel=1e-4)
