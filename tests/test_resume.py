"""A run that is killed and resumed is, bit for bit, the run that was never stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from jemstone import Session, TrainConfig, recipe
from jemstone.errors import RunError
from jemstone.training.checkpoint import list_checkpoints
from jemstone.training.state import FAR_APART

STEPS = 22
# BatchNorm, dropout, adaptive SAM, averaged weights, augmentation of both streams, and chains in train mode.
TRAIN = [
    *(
        "sada-jem-small",
        "--network",
        "conv-4",
        "--network.norm",
        "batch",
        "--chains.mode",
        "train",
        "--network.dropout",
        "0.1",
        "--steps",
        str(STEPS),
    ),
    *("--batch_size", "16", "--real_batch_size", "16", "--chains.steps", "2", "--chains.buffer_size", "50"),
    *("--augment.crop_padding", "1", "--augment.flip", "true", "--augment_real.noise", "0.03"),
    *("--checkpoint_every", "5", "--log_every", "1", "--validate_every", "7", "--keep_checkpoints", "3"),
    *("--device", "cpu", "--limits.window", "5"),  # two windows are two checkpoints and the one before: old ones go
]
# Where a run dies, see `killed.py`, and from which step it then goes on; None where there is no run yet.
PLANS = {
    "while config.json is written": [(("writing config", 0), None)],
    "while the start of its chains is written": [(("writing initial", 0), 0)],
    "before its first checkpoint is renamed": [(("before rename", 0), 0)],
    "in its first step": [(("optimiser", 1), 0)],
    "while a checkpoint is half written": [(("half written", 15), 10)],
    "before a checkpoint is renamed": [(("before rename", 15), 10)],
    "after a checkpoint is renamed": [(("after rename", 15), 15)],
    "between a row and its checkpoint": [(("row", 15), 10)],
    "in the middle of a row": [(("half a row", 13), 10)],
    "in the middle of an optimiser step": [(("optimiser", 13), 10)],
    "between weights and chains": [(("buffer", 13), 10)],
    "before its last checkpoint is renamed": [(("before rename", STEPS), 20)],
    "after its last checkpoint is renamed": [(("after rename", STEPS), STEPS)],
    # The counts of the second and third process begin anew: the fourth optimiser step after 15 is step 19.
    "four times": [
        (("before rename", 0), 0),
        (("half a row", 12), 10),
        (("after rename", 15), 15),
        (("optimiser", 4), 15),
    ],
}


def rows(run, name="metrics.jsonl"):
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def without_time(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def contents(path):
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["jemstone"])
        return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118


def assert_same_checkpoint(one, other):
    (tensors, header), (other_tensors, other_header) = contents(one), contents(other)
    assert tensors.keys() == other_tensors.keys()
    assert header == other_header
    for name, value in tensors.items():
        assert value.dtype == other_tensors[name].dtype, name
        bits, other_bits = (t.flatten().view(torch.uint8) for t in (value, other_tensors[name]))  # NaN and -0 too
        assert value.shape == other_tensors[name].shape, name
        assert torch.equal(bits, other_bits), name


def carried_out(folder, plans, faults, arguments):
    """Every plan carried out, and the run that was never stopped; what each process left behind."""
    plans = {"whole": [], **{name: [place for place, _ in plan] for name, plan in plans.items()}}
    script = Path(__file__).with_name("killed.py")
    command = [sys.executable, script, folder, json.dumps(plans), json.dumps(faults), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads((folder / "outcomes.json").read_text())
    assert outcomes["whole"][0][0] == 0, done.stderr
    return folder, outcomes


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    return carried_out(tmp_path_factory.mktemp("resume"), PLANS, [], TRAIN)


@pytest.fixture(scope="module")
def never_stopped(killed):
    return killed[0] / "whole"


@pytest.mark.parametrize("name", PLANS)
def test_killed_and_resumed_is_bitwise_the_run_never_stopped(name, killed, never_stopped):
    folder, outcomes = killed
    run, plan = folder / name, PLANS[name]
    statuses = [status for status, _, _ in outcomes[name]]
    assert statuses == [-signal.SIGKILL] * len(plan) + [0], "every process but the last died where it was meant to"

    files, expected = list_checkpoints(run / "checkpoints"), list_checkpoints(never_stopped / "checkpoints")
    last = name == "after its last checkpoint is renamed"  # nothing is saved any more, so nothing is cleaned up either
    assert len(expected) == 3
    assert len(files) == 3 + last
    files = files[-3:]
    assert [path.name for path in files] == [path.name for path in expected]
    for one, other in zip(files, expected, strict=True):
        assert_same_checkpoint(one, other)
    assert contents(files[-1])[1]["step"] == STEPS
    assert (run / "initial.safetensors").read_bytes() == (never_stopped / "initial.safetensors").read_bytes()
    assert without_time(rows(run)) == without_time(rows(never_stopped))
    assert [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))
    events = rows(run, "events.jsonl")
    assert [row["step"] for row in events if row["event"] == "resumed"] == [s for _, s in plan if s is not None]
    kept = [row for row in events if row["event"] != "resumed"]
    assert not list((run / "checkpoints").glob("*.tmp"))
    assert kept == rows(never_stopped, "events.jsonl")


# A run whose eleventh step fails three times over, and which each time goes further back: to its last snapshot, of step
# 9; to the checkpoint of step 8, deleting that of step 9; to that of step 4, deleting that of step 8. Later on it fails
# under a treatment that has been eased.
RECOVERING = [
    *("jem-small", "--network", "conv-4", "--network.dropout", "0.1", "--steps", str(STEPS), "--device", "cpu"),
    *("--batch_size", "8", "--real_batch_size", "8", "--chains.steps", "2", "--chains.buffer_size", "40"),
    *("--chains.max_steps", "4", "--checkpoint_every", "4", "--log_every", "1", "--validate_every", "6"),
    *("--keep_checkpoints", "3", "--recovery.snapshot_every", "3", "--recovery.snapshots", "2"),
    *("--recovery.probation", "2", "--optimizer.warmup_steps", "0", "--optimizer.learning_rate", "0.01"),
    *("--chains.step_size", "0.01"),
]
FAULTS = [10, 10 + FAR_APART, 10 + 2 * FAR_APART, 16 + 3 * FAR_APART]
# As above; the number is that of the recovery, in the process that dies.
KILLED_IN_RECOVERY = {
    "rolled back, in memory only": [(("recovery: state rolled back", 1), 8)],
    "rows forgotten": [(("recovery: rows forgotten", 1), 8)],
    "before the event": [(("recovery: before its event", 1), 8)],
    "after the event": [(("recovery: after its event", 1), 8)],
    "treated state half saved": [(("recovery: half saved", 1), 8)],
    "treated state not yet renamed": [(("recovery: before rename", 1), 8)],
    "treated state saved": [(("recovery: after rename", 1), 9)],
    "relapse, rolled back": [(("recovery: state rolled back", 2), 9)],
    "relapse, newer checkpoint deleted": [(("recovery: checkpoint deleted", 2), 8)],
    "relapse, after the event": [(("recovery: after its event", 2), 8)],
    "relapse, not yet renamed": [(("recovery: before rename", 2), 8)],
    "relapse, saved over the old checkpoint": [(("recovery: after rename", 2), 8)],
    "second relapse, newer checkpoint deleted": [(("recovery: checkpoint deleted", 3), 4)],
    "second relapse, after the event": [(("recovery: after its event", 3), 4)],
    "second relapse, saved": [(("recovery: after rename", 3), 4)],
    "between recoveries": [(("row", 10), 8)],
    "four times": [
        (("recovery: after its event", 1), 8),
        (("recovery: before rename", 2), 8),
        (("recovery: after rename", 3), 4),
        (("recovery: after its event", 1), None),
    ],
}


@pytest.fixture(scope="module")
def recovering(tmp_path_factory):
    return carried_out(tmp_path_factory.mktemp("recovering"), KILLED_IN_RECOVERY, FAULTS, RECOVERING)


def test_the_recovering_run_holds_all_that_is_to_be_killed(recovering):
    events = rows(recovering[0] / "whole", "events.jsonl")
    recovered = [(row["step"], row["failed_step"], row["rung"]) for row in events if row["event"] == "recovered"]
    assert recovered[:3] == [(9, 11, 2), (8, 11, 3), (4, 11, 4)]
    assert len(recovered) == 4
    assert any(row["event"] == "eased" for row in events)
    assert len({row["chain_steps"] for row in rows(recovering[0] / "whole")}) > 1


@pytest.mark.parametrize("name", KILLED_IN_RECOVERY)
def test_killed_in_a_recovery_and_resumed_is_bitwise_the_run_never_stopped(name, recovering):
    folder, outcomes = recovering
    run, whole, plan = folder / name, folder / "whole", KILLED_IN_RECOVERY[name]
    statuses = [status for status, _, _ in outcomes[name]]
    assert statuses == [-signal.SIGKILL] * len(plan) + [0], "every process but the last died where it was meant to"
    files, expected = list_checkpoints(run / "checkpoints"), list_checkpoints(whole / "checkpoints")
    assert [path.name for path in files] == [path.name for path in expected]
    for one, other in zip(files, expected, strict=True):
        assert_same_checkpoint(one, other)
    assert contents(files[-1])[1]["step"] == STEPS
    assert without_time(rows(run)) == without_time(rows(whole))
    assert [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))
    events = rows(run, "events.jsonl")
    for row, (_, step) in zip((row for row in events if row["event"] == "resumed"), plan, strict=True):
        assert step is None or row["step"] == step
    kept = [json.dumps(row) for row in events if row["event"] != "resumed"]  # as text: NaN is not equal to itself
    assert kept == (whole / "events.jsonl").read_text().splitlines()
    assert not list((run / "checkpoints").glob(".*.tmp"))


LEFT = {  # a file that tells where a run died, whether it is there, and how many rows were logged, whole or not
    "while config.json is written": ("config.json", False, 0),
    "while the start of its chains is written": ("initial.safetensors", False, 0),
    "before its first checkpoint is renamed": ("checkpoints/step-00000000.safetensors", False, 0),
    "in its first step": ("checkpoints/step-00000000.safetensors", True, 0),
    "while a checkpoint is half written": ("checkpoints/step-00000015.safetensors", False, 15),
    "before a checkpoint is renamed": ("checkpoints/step-00000015.safetensors", False, 15),
    "after a checkpoint is renamed": ("checkpoints/step-00000015.safetensors", True, 15),
    "between a row and its checkpoint": ("checkpoints/step-00000015.safetensors", False, 15),
    "in the middle of a row": ("checkpoints/step-00000010.safetensors", True, 13),
    "in the middle of an optimiser step": ("checkpoints/step-00000010.safetensors", True, 12),
    "between weights and chains": ("checkpoints/step-00000010.safetensors", True, 12),
    "after its last checkpoint is renamed": (f"checkpoints/step-{STEPS:08d}.safetensors", True, STEPS),
    "before its last checkpoint is renamed": (f"checkpoints/step-{STEPS:08d}.safetensors", False, STEPS),
}


@pytest.mark.parametrize("name", LEFT)
def test_the_kills_were_where_they_were_meant_to_be(name, killed):
    file, there, logged = LEFT[name]
    _, files, lines = killed[1][name][0]
    assert (file in files) is there
    assert len(lines) == logged
    temporary = [path for path in files if path.endswith(".tmp")]
    written = file.rpartition("/")[2]
    assert all(f".{written}." in path for path in temporary)
    assert len(temporary) == ("renamed" in name and "after" not in name) + ("written" in name)
    if name == "in the middle of a row":
        with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
            json.loads(lines[-1])


def test_the_run_holds_all_that_was_to_be_tested(never_stopped):
    """Otherwise the test above could pass with BatchNorm, dropout, SAM, averaging or augmentation switched off."""
    tensors, _ = contents(list_checkpoints(never_stopped / "checkpoints")[-1])
    assert {name.split("/")[0] for name in tensors} == {"model", "ema", "optimizer", "buffer"}
    assert any("running_mean" in name for name in tensors)
    assert any("exp_avg_sq" in name for name in tensors)
    config = json.loads((never_stopped / "config.json").read_text())["config"]
    assert config["network"]["dropout"] > 0
    assert config["optimizer"]["sam_rho"] > 0
    assert config["chains"]["mode"] == "train"
    assert config["ema"] > 0
    assert config["augment"]["crop_padding"] > 0
    assert config["augment"]["flip"]
    assert config["augment_real"]["noise"] > 0
    assert all(row["event"] != "recovered" for row in rows(never_stopped, "events.jsonl"))


def test_another_seed_is_another_run(never_stopped, tmp_path):
    """The comparison above can fail: it is not equal whatever was trained."""
    config = json.loads((never_stopped / "config.json").read_text())["config"]
    session = Session.start(TrainConfig.from_dict({**config, "seed": 1, "steps": 5}), run=tmp_path / "other")
    for _ in session.train():
        pass
    assert without_time(rows(tmp_path / "other"))[:5] != without_time(rows(never_stopped))[:5]


TINY = {
    "network": {"name": "conv-4"},
    "chains": {"steps": 2, "buffer_size": 40},
    "batch_size": 8,
    "real_batch_size": 8,
    "log_every": 1,
    "validate_every": 5,
    "checkpoint_every": 4,
    "keep_checkpoints": 9,
    "steps": 11,
}


@pytest.fixture
def partly_labelled(tmp_path):
    """Four classes of 6x6 images; most training labels are -1, so that some batches hold no label at all."""
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 4
    images = (rng.random((240, 6, 6)) * 0.3 + labels[:, None, None] * 0.2).astype(np.float32)
    hidden = np.where(rng.random(240) < 0.85, -1, labels)
    path = tmp_path / "partly.npz"
    np.savez(path, train_images=images, train_labels=hidden, test_images=images[:40], test_labels=labels[:40])
    return str(path)


def exhausted(session, steps=None):
    return [metrics for metrics, _ in zip(session.train(), range(steps or 10**9), strict=False)]


@pytest.mark.parametrize("weights", [{"conditional": 0.5}, {"marginal": 0.0, "conditional": 1.0, "joint": 0.3}])
def test_resume_in_process_with_conditional_chains_and_unlabelled_data(partly_labelled, tmp_path, weights):
    config = recipe("jem-small").with_values(
        **TINY, data={"source": partly_labelled, "validation": 0.25}, weights=weights
    )
    whole = Session.start(config, run=tmp_path / "whole")
    expected = exhausted(whole)
    assert {metrics["conditional_gap"] == 0 for metrics in expected} == {True, False}  # 0 without any label
    assert bool((whole.data.train.labels == -1).any())

    stopped = Session.start(config, run=tmp_path / "stopped")
    first = exhausted(stopped, 6)
    resumed = Session.resume(tmp_path / "stopped")
    assert resumed.state.step == 4  # steps 5 and 6 came after the last checkpoint: they are done again
    rest = exhausted(resumed)
    assert without_time(first[:4] + rest) == without_time(expected)
    assert without_time(rows(tmp_path / "stopped")) == without_time(rows(tmp_path / "whole"))
    last = "checkpoints/step-00000011.safetensors"
    assert_same_checkpoint(tmp_path / "stopped" / last, tmp_path / "whole" / last)


def test_a_finished_run_resumed_stays_as_it_is(partly_labelled, tmp_path):
    config = recipe("jem-small").with_values(**TINY, data={"source": partly_labelled, "validation": 0.25})
    exhausted(Session.start(config, run=tmp_path / "run"))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    again = Session.resume(tmp_path / "run")
    assert exhausted(again) == []
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_the_leftover_of_a_killed_save_is_no_checkpoint_and_is_cleaned_up(partly_labelled, tmp_path):
    config = recipe("jem-small").with_values(**TINY, data={"source": partly_labelled, "validation": 0.25})
    exhausted(Session.start(config, run=tmp_path / "run"), 6)
    folder = tmp_path / "run" / "checkpoints"
    content = list_checkpoints(folder)[-1].read_bytes()
    leftover = folder / ".step-00000099.safetensors.4242.tmp"  # as `write_atomically` names it, of another process
    leftover.write_bytes(content[: len(content) // 2])
    assert [path.name for path in list_checkpoints(folder)] == [
        "step-00000000.safetensors",
        "step-00000004.safetensors",
    ]
    resumed = Session.resume(tmp_path / "run")
    assert resumed.state.step == 4
    exhausted(resumed, 4)  # to step 8, where the next checkpoint is written
    assert not leftover.exists()
    assert list_checkpoints(folder)[-1].name == "step-00000008.safetensors"


def test_a_row_cut_short_by_a_kill_is_forgotten(partly_labelled, tmp_path):
    config = recipe("jem-small").with_values(**TINY, data={"source": partly_labelled, "validation": 0.25})
    exhausted(Session.start(config, run=tmp_path / "whole"))
    exhausted(Session.start(config, run=tmp_path / "run"), 6)
    for name in ("metrics.jsonl", "events.jsonl"):
        with (tmp_path / "run" / name).open("a") as file:
            file.write('{"step": 7, "lo')
    exhausted(Session.resume(tmp_path / "run"))
    assert without_time(rows(tmp_path / "run")) == without_time(rows(tmp_path / "whole"))


def test_a_run_killed_while_it_was_being_made_starts_at_step_0(partly_labelled, tmp_path):
    config = recipe("jem-small").with_values(**TINY, data={"source": partly_labelled, "validation": 0.25})
    Session.start(config, run=tmp_path / "run")
    assert Session.resume(tmp_path / "run").state.step == 0


@pytest.mark.parametrize("write", ["log", "checkpoint"])
def test_a_step_whose_writing_fails_is_done_again(partly_labelled, tmp_path, monkeypatch, write):
    """The disk is full at step 6, or while the checkpoint of step 8 is written; a resume makes up for it."""
    config = recipe("jem-small").with_values(**TINY, data={"source": partly_labelled, "validation": 0.25})
    exhausted(Session.start(config, run=tmp_path / "whole"))
    session = Session.start(config, run=tmp_path / "run")
    exhausted(session, 5)

    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("jemstone.runs.Run.log" if write == "log" else "jemstone.runs.os.fsync", full)
        with pytest.raises(OSError if write == "log" else RunError, match="No space left on device"):
            exhausted(session)
    resumed = Session.resume(tmp_path / "run")
    assert resumed.state.step == 4
    exhausted(resumed)
    assert without_time(rows(tmp_path / "run")) == without_time(rows(tmp_path / "whole"))
    last = "checkpoints/step-00000011.safetensors"
    assert_same_checkpoint(tmp_path / "run" / last, tmp_path / "whole" / last)
