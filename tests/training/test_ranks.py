"""Two ranks train one model: what they hold together, what each has for itself, and what happens when one dies.

The ranks are processes, started by torchrun in `ranked.py`; what they found is compared here.
"""

import inspect
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ranked import BATCH, TRAIN, VARIANTS, weights_after_training

from jemstone import cli, load_dataset, load_trained
from jemstone.errors import CheckpointError, ConfigError, RunError
from jemstone.report import write_report
from jemstone.runs import Run
from jemstone.training import ranks
from jemstone.training.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint
from jemstone.training.config import TrainConfig
from jemstone.training.requeue import start_or_resume
from jemstone.training.session import Session
from jemstone.training.setup import make_fabric
from jemstone.training.validation import validate

SCRIPT = Path(__file__).with_name("ranked.py")
LAST = "step-00000012.safetensors"


def torchrun(*arguments, options=()):
    """A process that runs the script on two ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    return subprocess.Popen(
        [*command, SCRIPT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder):
    """What each of two ranks found; (out, err) of the job is the third."""
    job = torchrun(folder)
    said = job.communicate(timeout=300)
    assert job.returncode == 0, said
    return [*(torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in (0, 1)), said]


def rows(run):
    kept = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in kept]


def assert_same_state(one, other, but=()):
    (tensors, header), (others, other_header) = one, other
    assert header == other_header
    assert tensors.keys() == others.keys()
    differing = {name for name in tensors if not torch.equal(tensors[name], others[name])}
    assert differing == set(but)


def assert_same_run(one, other):
    """The same rows, and bitwise the same last checkpoint, chains of all ranks included."""
    assert rows(one) == rows(other)
    (a, head), (b, other_head) = (load_checkpoint(run / "checkpoints" / LAST) for run in (one, other))
    assert head == other_head
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert a.keys() == b.keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_take_the_step_of_one_with_the_doubled_batch(found, variant):
    alone, rows = weights_after_training(VARIANTS[variant], 2 * BATCH)
    for weights, _ in (found[0][variant], found[1][variant]):
        for ours, theirs in zip(weights, alone, strict=True):
            assert (ours - theirs).abs().max() < 1e-12
    moved = max(float((w - v).abs().max()) for w, v in zip(alone, weights_after_training({}, BATCH)[0], strict=True))
    assert moved > 1e-3, "one rank's own batch leads elsewhere"
    for name in ("loss", "class_nll", "train_accuracy", "energy_real", "energy_gap", "grad_norm"):
        means = [row[name] for row in found[0][variant][1]]
        assert means == pytest.approx([row[name] for row in rows], rel=1e-6, abs=1e-7)
    assert found[0][variant][1] == found[1][variant][1]


def test_all_but_the_chains_is_bitwise_the_same_on_both_ranks(found):
    """BatchNorm's running averages are moved by each rank's own batches, dropout draws on each rank for itself."""
    assert_same_state(found[0]["ordinary"], found[1]["ordinary"], but={"buffer/x", "buffer/age"})
    assert any("running_var" in name for name in found[0]["ordinary"][0])
    x, other = (found[rank]["ordinary"][0]["buffer/x"] for rank in (0, 1))
    assert len(x) == len(other) == 30


def test_no_chain_begins_on_both_ranks(found):
    x, other = (found[rank]["spoiled"]["first chains"].flatten(1) for rank in (0, 1))
    assert torch.cdist(x, other).min() > 0.1


def test_a_run_of_two_ranks_reads_like_any(found, folder):
    assert found[0]["statuses"] == found[1]["statuses"] == [0, 130, 130, 0, 0, 0]
    out, err = found[2]
    assert "Traceback" not in err
    assert out.count("jem-small on digits, device cpu, 2 ranks") == 4  # once for each run, and by rank 0 alone
    run = folder / "whole"
    assert [row["step"] for row in rows(run)] == list(range(1, 13))
    assert [row["event"] for row in Run(run).rows("events.jsonl")] == [
        *("started", "validation", "validation", "finished")
    ]
    assert Run(run).info["environment"]["ranks"] == 2
    trained = load_trained(run)
    chains = torch.cat([found[rank]["ordinary"][0]["buffer/x"] for rank in (0, 1)])
    assert torch.equal(trained.buffer, chains)
    assert trained.step == 12
    split = load_dataset("digits", seed=0).validation
    scores = validate(trained.model, split, make_fabric(TrainConfig(device="cpu")))
    assert rows(run)[-1]["validation_nll"] == pytest.approx(scores["nll"], rel=1e-6)
    assert rows(run)[-1]["validation_accuracy"] == pytest.approx(scores["accuracy"])
    report = write_report([run], run / "report.html")
    assert report.stat().st_size > 10_000
    assert (run / "samples" / "grid.png").is_file()
    names = {result["name"] for result in Run(run).read_json("results.json")}
    assert {"accuracy", "long_run/energy_drift"} <= names
    assert {path.stem for path in (run / "evaluation").glob("*.json")} == {"calibration", "distal", "long_run"}


def test_epochs_count_the_examples_of_all_ranks(found, folder):
    assert rows(folder / "whole")[-1]["epoch"] == pytest.approx(12 * 2 * 8 / 1293, abs=1e-4)
    assert TrainConfig(epochs=10, batch_size=8).total_steps(100, ranks=2) == 62


def test_a_resume_on_as_many_ranks_is_bitwise_the_run_that_was_never_stopped(found, folder):
    assert_same_run(folder / "stopped", folder / "whole")
    assert "resumed" in [row["event"] for row in Run(folder / "stopped").rows("events.jsonl")]


def test_a_resume_on_one_rank_goes_on_with_all_chains(found, folder):
    run = folder / "fewer"
    before = load_checkpoint(latest_checkpoint(run / "checkpoints"))
    assert before.step == 5
    with pytest.warns(UserWarning, match="ran on 2 ranks and goes on on 1"):
        session = Session.resume(run)
    assert torch.equal(session.state.buffer.x, before.tensors["buffer/x"])
    assert len(session.state.buffer) == 60
    list(session.train())
    assert [row["step"] for row in rows(run)] == list(range(1, 13))
    assert load_trained(run).step == 12


def test_a_number_on_one_rank_that_is_not_finite_sends_both_back_to_the_same_state(found):
    first, second = found[0]["spoiled"], found[1]["spoiled"]
    assert len(first["failures"]) == 1
    assert first["failures"] == second["failures"]  # words, verdict, step, and the guard's memory
    text, verdict, step, *_ = first["failures"][0]
    assert verdict == "non_finite"
    assert "first in the labelled batch, rows [2] of rank 1" in text
    assert step == 4
    assert first["steps"] == second["steps"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert_same_state(first["state"], second["state"], but={"buffer/x", "buffer/age"})


def test_a_killed_rank_ends_the_job_and_torchrun_takes_it_up_again(found, folder):
    """Without restarts the job fails soon; with one it ends bitwise as if nothing had been."""
    failing = torchrun(folder / "failing", 7)
    _, err = failing.communicate(timeout=120)
    assert failing.returncode != 0
    assert "SIGKILL" in err
    assert time.time() - (folder / "failing.died").stat().st_mtime < 60  # or a rank would have waited in vain
    assert latest_checkpoint(folder / "failing" / "checkpoints").name == "step-00000005.safetensors"

    again = torchrun(folder / "again", 7, options=("--max-restarts", "1"))
    out, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    assert "Resuming" in out
    assert_same_run(folder / "again", folder / "whole")


def test_a_requeued_command_goes_on_and_refuses_other_settings(tmp_path, capsys):
    arguments = [*TRAIN, "--steps", "3", "--run", str(tmp_path / "run")]
    assert cli.main(["train", *arguments, "--auto_resume"]) == 0
    assert cli.main(["train", *arguments, "--auto_resume"]) == 0
    out = capsys.readouterr().out
    assert out.count("Resuming") == 1
    assert [row["event"] for row in Run(tmp_path / "run").rows("events.jsonl")].count("started") == 1
    assert cli.main(["train", *arguments]) == 1
    assert cli.main(["train", *arguments, "--auto_resume", "--batch_size", "4"]) == 1
    assert "started with other settings (batch_size)" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(RunError, match="not empty"):
        start_or_resume(TrainConfig(), tmp_path / "other")


class Place:
    """What ranks know of each other, as far as cutting a buffer goes."""

    def __init__(self, rank, world):
        self.global_rank, self.world_size = rank, world


def test_shares_of_the_buffer_are_equal_and_keep_the_classes_of_slots():
    x = torch.arange(60.0)[:, None]
    whole = Checkpoint({"buffer/x": x, "buffer/age": torch.arange(60), "model/w": torch.ones(2)}, {"step": 3})
    cut = inspect.unwrap(ranks.shard)  # of the checks of its types
    parts = [cut(whole, 10, 8, Place(rank, 3)) for rank in range(3)]
    assert torch.equal(torch.cat([part.tensors["buffer/x"] for part in parts]), x)
    for part in parts:
        assert torch.equal(part.tensors["buffer/age"] % 10, torch.arange(20) % 10)
        assert part.tensors["model/w"] is whole.tensors["model/w"]
    for world, least in ((4, 8), (7, 1), (6, 11)):  # no multiple of the classes; no division; smaller than a batch
        with pytest.raises(CheckpointError, match=f"60 chains, which do not divide into {world} shares"):
            cut(whole, 10, least, Place(0, world))


def test_a_command_for_one_process_is_refused_on_several_ranks(monkeypatch, capsys):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["recipes"]) == 1
    assert "`jemstone recipes` is one process" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(ranks, "GRACE", 0.0)
    assert cli.main(["recipes"]) == 1
    assert capsys.readouterr().err.startswith("error: rank 1: ")
    with pytest.raises(SystemExit):
        cli.main(["train", "--no-such-setting", "1"])
    assert capsys.readouterr().err == ""


def test_a_timeout_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("JEMSTONE_TIMEOUT", "soon")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="JEMSTONE_TIMEOUT is 'soon'"):
        ranks.launch("cpu")
