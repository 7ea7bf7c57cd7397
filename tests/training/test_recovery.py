"""Faults of every kind in the middle of a run, and what is left of it: it goes on, explains itself, or stops loudly."""

import errno
import json
import math

import pytest
import torch
from torch import nn

from jemstone import runs
from jemstone.data import load_dataset
from jemstone.data.batches import Stream
from jemstone.energy import EnergyClassifier
from jemstone.errors import CheckpointError, Diverged, RunError
from jemstone.runs import Run
from jemstone.sampling import ReplayBuffer
from jemstone.training import durable
from jemstone.training import session as session_module
from jemstone.training.checkpoint import Checkpoint, list_checkpoints, load_checkpoint
from jemstone.training.recipes import RECIPES, recipe
from jemstone.training.recovery import Recovery, poisoned_chains
from jemstone.training.session import Session
from jemstone.training.setup import learning_rate
from jemstone.training.state import FAR_APART, TrainState
from jemstone.training.trained import load_trained
from jemstone.training.treatment import Treatment, remedy_at

STEPS = 16
TINY = {
    "steps": STEPS,
    "network": {"name": "conv-4"},
    "batch_size": 8,
    "real_batch_size": 8,
    "log_every": 1,
    "validate_every": 6,
    "checkpoint_every": 4,
    "keep_checkpoints": 3,
    "recovery": {"snapshot_every": 3, "snapshots": 2, "probation": 50},
}


def tiny(**changes):
    config = recipe("jem-small").with_values(**TINY).with_values(chains={"steps": 2, "buffer_size": 40})
    return config.with_values(**changes)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", seed=0)


@pytest.fixture
def spoil(monkeypatch):
    """Put NaN into the labelled batches at some positions of the random streams, now and in every resumed run."""
    call, positions = Stream.__call__, set()

    def spoiled(self, step):
        batch = call(self, step)
        if self.name == "labelled" and step in positions:
            batch.x[3] = math.nan
        return batch

    monkeypatch.setattr(Stream, "__call__", spoiled)
    return positions.update


def relapses(index, count):
    """The positions at which step `index` fails in each of its first `count` attempts."""
    return [index + FAR_APART * attempt for attempt in range(count)]


def train(session, planted=None):
    """Train to the end; `planted(state)` is called after step 10, when that is reached for the first time."""
    rows = []
    for metrics in session.train():
        rows.append(metrics)
        if planted is not None and metrics["step"] == 10:
            planted(session.state)
            planted = None
    return rows


def events(session, name=None):
    rows = session.run.rows("events.jsonl")
    return [row for row in rows if name in (None, row["event"])]


def lines(session, file):
    """Rows as text, because NaN is not equal to itself; without the time that they took."""
    rows = session.run.rows(file)
    return [json.dumps({key: value for key, value in row.items() if key != "seconds"}) for row in rows]


def bits(session):
    tensors, header = session.state.checkpoint()
    return {name: value.detach().clone() for name, value in tensors.items()}, json.loads(json.dumps(header))


def assert_same_state(one, other):
    (tensors, header), (others, other_header) = bits(one), bits(other)
    assert header == other_header
    assert tensors.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in tensors.items())


def assert_healthy(session):
    assert session.state.step == session.total_steps
    tensors, _ = session.state.checkpoint()
    assert all(bool(value.isfinite().all()) for value in tensors.values())
    saved = load_checkpoint(list_checkpoints(session.run.path / "checkpoints")[-1])
    assert saved.step == session.total_steps
    assert all(bool(value.isfinite().all()) for value in saved.tensors.values())
    assert [row["step"] for row in session.run.rows("metrics.jsonl")] == list(range(1, session.total_steps + 1))
    assert events(session)[-1]["event"] == "finished"


# --- Faults in what a step computes with ---


def test_a_batch_that_is_not_a_number_costs_the_steps_since_the_last_snapshot(tmp_path, digits, spoil):
    spoil([10])
    session = Session.start(tiny(), digits, run=tmp_path / "run")
    rows = train(session)
    assert [row["step"] for row in rows] == [*range(1, 11), *range(10, STEPS + 1)]
    assert_healthy(session)
    (event,) = events(session, "recovered")
    assert (event["step"], event["failed_step"], event["verdict"], event["attempt"]) == (9, 11, "non_finite", 1)
    assert "first in the labelled batch, rows [3]" in event["reason"]
    assert event["remedy"] == remedy_at(2, "non_finite").in_words()
    assert (event["rung"], event["probation"], event["poisoned_chains"]) == (2, 50, 0)
    assert event["evidence"]["step"] == list(range(1, 11))
    assert [row["event"] for row in events(session)] == ["started", "validation", "recovered", "validation",
                                                         "validation", "finished"]  # fmt: skip


def test_before_a_failure_nothing_is_different_and_after_it_the_streams_are_new(digits, spoil):
    plain = train(Session.start(tiny(), digits))
    spoil([10])
    rows = train(Session.start(tiny(), digits))

    def losses(rows):
        return [row["loss"] for row in rows]

    assert losses(rows)[:10] == losses(plain)[:10]
    assert losses(rows)[10] != losses(plain)[9]  # the same step from the same state, with other batches and chains
    untreated, treated = plain[11]["learning_rate"], rows[12]["learning_rate"]
    assert rows[12]["step"] == plain[11]["step"] == 12
    assert treated == pytest.approx(0.1 * untreated)


def test_a_weight_that_is_not_a_number(tmp_path, digits):
    def planted(state):
        with torch.no_grad():
            next(state.model.parameters()).view(-1)[0] = math.nan

    session = Session.start(tiny(), digits, run=tmp_path / "run")
    train(session, planted)
    assert_healthy(session)
    (event,) = events(session, "recovered")
    assert "first in the weights network." in event["reason"]


def test_a_weight_that_is_not_a_number_when_a_snapshot_is_due_is_never_gone_back_to(tmp_path, digits, monkeypatch):
    """The update of step 9 spoils it, of which a snapshot would have been taken."""
    train_step, failed = session_module.train_step, []

    def spoiling(state, trainer):
        metrics = train_step(state, trainer)
        if state.step == 9 and not failed:
            failed.append(9)
            with torch.no_grad():
                next(state.model.parameters()).view(-1)[0] = math.inf
        return metrics

    monkeypatch.setattr(session_module, "train_step", spoiling)
    session = Session.start(tiny(), digits, run=tmp_path / "run")
    train(session)
    assert_healthy(session)
    assert [(row["failed_step"], row["step"]) for row in events(session, "recovered")] == [(9, 8)]


@pytest.mark.parametrize("step", [8, STEPS])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, digits, monkeypatch, step):
    train_step, failed = session_module.train_step, []

    def spoiling(state, trainer):
        metrics = train_step(state, trainer)
        if state.step == step and not failed:
            failed.append(step)
            with torch.no_grad():
                next(state.model.parameters()).view(-1)[0] = math.nan
        return metrics

    monkeypatch.setattr(session_module, "train_step", spoiling)
    session = Session.start(tiny(), digits, run=tmp_path / "run")
    train(session)
    assert_healthy(session)
    assert [row["failed_step"] for row in events(session, "recovered")] == [step]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_chain_that_is_not_a_number_is_discarded_even_if_a_snapshot_holds_it(tmp_path, digits, value):
    def planted(state):
        state.buffer.x[[7, 8, 21]] = value
        session.recovery.snapshots.append(state.snapshot())

    session = Session.start(tiny(chains={"clamp": False, "restart_rate": 0.0}), digits, run=tmp_path / "run")
    train(session, planted)
    assert_healthy(session)
    (event,) = events(session, "recovered")
    assert event["step"] >= 10  # where they were in the buffer already
    assert event["poisoned_chains"] == 3
    assert "first in the buffer, slots [" in event["reason"]


def test_a_buffer_that_is_not_finite_as_a_whole_is_started_anew(tmp_path, digits):
    def planted(state):
        state.buffer.x[:] = math.inf
        session.recovery.snapshots.append(state.snapshot())

    session = Session.start(tiny(chains={"clamp": False}), digits, run=tmp_path / "run")
    train(session, planted)
    assert_healthy(session)
    (event,) = events(session, "recovered")
    assert event["poisoned_chains"] == 40


def test_chains_in_deep_holes_are_discarded_and_the_others_kept(tmp_path, digits):
    """Far off the box the energy of this network falls without end."""
    kept = {}

    def planted(state):
        with torch.no_grad():
            state.buffer.x[:30] = state.buffer.x[:30].sign() * 3e6
            energies = state.model.energy(state.buffer.x)
        assert (energies[:30] < -1e4).all()
        kept["x"] = state.buffer.x[30:].clone()
        session.recovery.snapshots.append(state.snapshot())

    session = Session.start(tiny(chains={"clamp": False}), digits, run=tmp_path / "run")
    recover = session.recovery.recover

    def noted(state, problem):
        result = recover(state, problem)
        kept["after"] = state.buffer.x.clone()
        return result

    session.recovery.recover = noted
    train(session, planted)
    assert_healthy(session)
    (event,) = events(session, "recovered")
    assert event["verdict"] in ("energy_runaway", "gap_explosion")
    assert event["poisoned_chains"] == 30
    assert torch.equal(kept["after"][30:], kept["x"])
    assert kept["after"][:30].abs().max() <= 1  # fresh starts lie in the box


def test_a_spike_of_the_learning_rate_is_survived(tmp_path, digits, monkeypatch):
    base, spikes = tiny().optimizer.learning_rate, []

    def spiking(config, step, total):
        rate = learning_rate(config, step, total)
        if config.learning_rate == base and 9 <= step < 12:  # untreated
            spikes.append(step)
            return 30.0
        return rate

    monkeypatch.setattr("jemstone.training.loop.learning_rate", spiking)
    session = Session.start(tiny(steps=40), digits, run=tmp_path / "run")
    rows = train(session)
    assert_healthy(session)
    assert 1 <= len(spikes) <= 3
    recovered = events(session, "recovered")
    assert recovered[-1]["step"] <= 9
    assert {row["verdict"] for row in recovered} <= {"energy_runaway", "gap_explosion", "non_finite"}
    assert abs(rows[-1]["energy_gap"]) < 5
    assert rows[-1]["class_nll"] < 3


def test_a_failure_in_the_first_step_goes_back_to_the_beginning(tmp_path, digits, spoil):
    spoil(relapses(0, 2))
    session = Session.start(tiny(), digits, run=tmp_path / "run")
    train(session)
    assert_healthy(session)
    assert [row["step"] for row in events(session, "recovered")] == [0, 0]


def test_a_plain_classifier_recovers_too(tmp_path, digits, spoil):
    spoil(relapses(10, 2))
    config = recipe("classifier-small").with_values(**TINY)
    session = Session.start(config, digits, run=tmp_path / "run")
    train(session)
    assert_healthy(session)
    assert all("poisoned_chains" not in row for row in events(session, "recovered"))
    assert len(events(session, "recovered")) == 2


# --- Where recovery goes back to, and when it stops ---


def test_each_relapse_goes_back_further_and_climbs(tmp_path, digits, spoil):
    """To the last snapshot, to the last checkpoint before it, and to the one before that; what came later is gone."""
    spoil(relapses(10, 3))
    session = Session.start(tiny(), digits, run=tmp_path / "run")
    left = []
    for row in session.train():
        if len(session.state.treatment.failures) > len(left):
            names = [path.stem[-2:] for path in list_checkpoints(session.run.path / "checkpoints")]
            left.append((row["step"], names))
    assert left == [(10, ["00", "04", "08", "09"]), (9, ["00", "04", "08"]), (5, ["00", "04"])]
    assert_healthy(session)
    recovered = events(session, "recovered")
    assert [row["step"] for row in recovered] == [9, 8, 4]
    assert [row["rung"] for row in recovered] == [2, 3, 4]
    assert [row["probation"] for row in recovered] == [50, 100, 200]
    assert [row["attempt"] for row in recovered] == [1, 2, 3]
    assert session.state.treatment.failures == (11, 11, 11)
    rates = [row["learning_rate"] for row in session.run.rows("metrics.jsonl")]
    assert rates[4] == pytest.approx(0.01 * rates[3] * 5 / 4)  # in warm-up


def test_with_and_without_a_run_directory_the_result_is_the_same(tmp_path, digits, spoil):
    spoil([*relapses(10, 3), 14 + 3 * FAR_APART, 5 + 4 * FAR_APART])
    on_disk = Session.start(tiny(), digits, run=tmp_path / "run")
    rows = train(on_disk)
    in_memory = Session.start(tiny(), digits)
    others = train(in_memory)
    assert [row["step"] for row in events(on_disk, "recovered")][:3] == [9, 8, 4]
    assert len(on_disk.state.treatment.failures) >= 4
    assert_same_state(on_disk, in_memory)
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in r] for r in (rows, others)]
    assert timeless[0] == timeless[1]


def test_the_same_seed_has_the_same_recoveries_and_another_seed_others(tmp_path, digits, spoil):
    spoil(relapses(10, 2))
    config = tiny(recovery={"probation": 2}, network={"dropout": 0.1})
    one, two = (Session.start(config, digits, run=tmp_path / name) for name in "ab")
    other = Session.start(config.with_values(seed=1), digits, run=tmp_path / "c")
    for session in (one, two, other):
        train(session)
    assert_same_state(one, two)
    for file in ("events.jsonl", "metrics.jsonl"):
        assert lines(one, file) == lines(two, file)
    assert len(events(one, "recovered")) == 2
    assert not torch.equal(one.state.buffer.x, other.state.buffer.x)


def test_a_treatment_is_eased_and_the_recipe_returns(tmp_path, digits, spoil):
    spoil(relapses(10, 2))
    session = Session.start(tiny(steps=36, recovery={"probation": 4}), digits, run=tmp_path / "run")
    train(session)
    assert_healthy(session)
    assert [(row["step"], row["rung"]) for row in events(session, "eased")] == [(16, 2), (24, 1), (32, 0)]
    assert events(session, "eased")[-1]["remedy"] == []
    rates = [row["learning_rate"] for row in session.run.rows("metrics.jsonl")]
    config = session.config.optimizer
    factors = [rate / learning_rate(config, step, 36) for step, rate in enumerate(rates)]
    assert factors == pytest.approx([1.0] * 8 + [0.03] * 8 + [0.1] * 8 + [0.3] * 8 + [1.0] * 4)
    assert session.state.treatment.rung == 0
    assert session.state.treatment.failures == (11, 11)


def test_nothing_is_eased_where_no_steps_are_left_to_judge_it(digits, spoil):
    spoil(relapses(10, 2))
    session = Session.start(tiny(steps=35, recovery={"probation": 4}), digits)
    train(session)
    assert (session.state.treatment.rung, session.state.treatment.since) == (1, 24)  # step 32 is among the last four


def test_giving_up_names_failures_and_remedies(tmp_path, digits, spoil):
    spoil(relapses(10, 9))
    session = Session.start(tiny(recovery={"attempts": 3}), digits, run=tmp_path / "run")
    with pytest.raises(Diverged) as caught:
        train(session)
    message = str(caught.value)
    assert "Gave up: 3 earlier failures within 1000 steps (at 11, 11, 11; tried: " in message
    assert "learning rate x 0.01," in message
    assert "jemstone doctor" in message
    assert "first in the labelled batch" in message
    assert (caught.value.verdict, caught.value.step) == ("non_finite", 11)
    names = [row["event"] for row in events(session)]
    assert names.count("recovered") == 3
    assert names[-1] == "diverged"
    assert events(session, "diverged")[0]["reason"] == caught.value.reason
    assert load_trained(session.run.path, data=digits).step == 8  # the last state that was healthy


def test_old_failures_do_not_count(tmp_path, digits, spoil):
    spoil([3, 6 + FAR_APART, 9 + 2 * FAR_APART, 12 + 3 * FAR_APART])
    patient = {"attempts": 1, "within": 3}
    session = Session.start(tiny(recovery=patient), digits, run=tmp_path / "run")
    train(session)
    assert_healthy(session)
    assert len(events(session, "recovered")) == 4
    with pytest.raises(Diverged, match="Gave up: 1 earlier failures within 4 steps"):
        train(Session.start(tiny(recovery=patient | {"within": 4}), digits))


def test_without_attempts_the_first_failure_is_raised_as_it_is(tmp_path, digits, spoil):
    spoil([10])
    session = Session.start(tiny(recovery={"attempts": 0}), digits, run=tmp_path / "run")
    with pytest.raises(Diverged, match="first in the labelled batch") as caught:
        train(session)
    assert "Gave up" not in str(caught.value)
    assert session.state.step == 10
    assert [row["event"] for row in events(session)] == ["started", "validation", "diverged"]
    assert session.recovery.snapshots == []  # nothing is kept that nothing asks for


@pytest.mark.parametrize(
    ("onset", "treatment", "target", "asked"),
    [
        (31, Treatment(), 30, 0),
        (30, Treatment(), 25, 0),
        (22, Treatment(), 20, 1),  # memory begins at 20: files are read, and no more of them than needed
        (20, Treatment(), 10, 2),  # the one before is read to compare
        (10, Treatment(), 5, 3),
        (3, Treatment(), 0, 3),
        (0, Treatment(), 0, 3),  # nothing is older: the oldest there is
        (7, Treatment((9,), (), 0, restored=5, since=25), 25, 0),  # cured at 25: not back into the illness
        (7, Treatment((9,), ("non_finite",), 1, restored=5, since=25), 25, 0),  # eased at 25: healthy until then
        (31, Treatment((9,), ("non_finite",), 1, restored=25, since=25), 20, 1),  # relapse: behind the last target
        (31, Treatment((9,), ("non_finite",), 2, restored=10, since=10), 5, 3),
        (125, Treatment((9,), ("non_finite",), 1, restored=25, since=25), 20, 1),
        (126, Treatment((9,), ("non_finite",), 1, restored=25, since=25), 30, 0),  # two windows later: no relapse
    ],
)
def test_the_target_is_the_newest_state_from_before_the_trend(digits, monkeypatch, onset, treatment, target, asked):
    found, read = target_among(dict.fromkeys(range(0, 31, 5), 1.0), digits, monkeypatch, onset, treatment)
    assert found == target
    assert len(read) == asked


def target_among(losses, digits, monkeypatch, onset, treatment):
    """The target and the files read for it: states at 30, 25 and 20 are in memory, of 10, 5 and 0 on disk."""
    session = Session.start(tiny(), digits)
    read, restored = [], []

    def older():
        for step in (10, 5, 0):
            read.append(step)
            yield Checkpoint({}, {"step": step})

    monkeypatch.setattr(TrainState, "restore", lambda state, checkpoint: restored.append(checkpoint.step))
    recovery = Recovery(session.trainer, older)
    monkeypatch.setattr(recovery, "_class_nll", lambda state, factor: losses[restored[-1]])
    recovery.snapshots = [Checkpoint({}, {"step": step}) for step in (20, 25, 30)]
    problem = Diverged(32, "", {}, onset=onset)
    return recovery._target(session.state, problem, treatment).step, read


@pytest.mark.parametrize(
    ("onset", "losses", "target", "asked"),
    [
        (31, {30: 1.0, 25: 0.96, 20: 0.5}, 30, 0),  # no better by more than noise, whatever came before
        (31, {30: 1.0, 25: 0.94, 20: 0.90}, 25, 0),
        (31, {30: 1.0, 25: 0.9, 20: 0.8, 10: 0.7, 5: 0.7, 0: 0.1}, 10, 2),  # into the files
        (31, {30: 1.0, 25: 0.9, 20: 0.8, 10: 0.7, 5: 0.6, 0: 0.5}, 0, 3),
        (31, {30: 1.0, 25: math.inf}, 30, 0),
        (30, {25: math.inf, 20: 1.0, 10: 1.0}, 20, 1),
        (30, {30: 9.0, 25: 1.0, 20: 1.0}, 25, 0),  # what lies behind the onset is compared with nothing
    ],
)
def test_the_target_steps_back_while_the_state_before_classifies_better(
    digits, monkeypatch, onset, losses, target, asked
):
    found, read = target_among(losses, digits, monkeypatch, onset, Treatment())
    assert found == target
    assert len(read) == asked


def test_a_state_is_judged_on_labelled_training_examples_and_left_as_it_was(digits):
    session = Session.start(tiny(network={"norm": "batch", "dropout": 0.1}), digits)
    before = bits(session)
    random = torch.get_rng_state()
    loss = session.recovery._class_nll(session.state)
    assert 0.5 < loss < 5
    assert session.recovery._class_nll(session.state) == loss
    assert torch.equal(torch.get_rng_state(), random)
    after = bits(session)
    assert before[1] == after[1]
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    with torch.no_grad():
        for p in session.state.model.parameters():
            p.mul_(math.nan)
    assert session.recovery._class_nll(session.state) == math.inf
    unsupervised = Session.start(tiny(weights={"class_nll": 0.0, "marginal": 1.0}), digits)
    assert unsupervised.recovery._class_nll(unsupervised.state) == 0


@pytest.mark.parametrize(("onset", "rung"), [(40, 2), (31, 2), (30, 1), (3, 1)])
def test_a_failure_whose_trend_took_less_than_a_fifth_of_a_window_is_sudden(digits, onset, rung):
    session = Session.start(tiny(), digits)
    assert session.config.limits.window == 50
    details = session.recovery.recover(
        session.state, Diverged(40, "", {}, verdict="gap_explosion", onset=onset)
    ).details
    assert details["rung"] == session.state.treatment.rung == rung
    assert details["remedy"] == remedy_at(rung, "gap_explosion").in_words()


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, 26),  # two windows of 50 steps, and the state at their beginning
        ({"keep_checkpoints": 40}, 40),
        ({"checkpoint_every": 1000}, 3),
        ({"limits": {"window": 0}}, 3),
        ({"recovery": {"attempts": 0}}, 3),
    ],
)
def test_checkpoints_reach_two_windows_back_where_recovery_may_need_them(tmp_path, digits, monkeypatch, changes, kept):
    asked = []
    monkeypatch.setattr(durable, "save_checkpoint", lambda folder, checkpoint, *, keep: asked.append(keep))
    Session.start(tiny(**changes), digits, run=tmp_path / "run")
    assert asked == [kept]


def test_a_state_saved_because_of_a_failure_drives_no_older_one_out(tmp_path, digits, spoil):
    spoil([10])
    config = tiny(keep_checkpoints=1, limits={"window": 0})
    on_disk, in_memory = Session.start(config, digits, run=tmp_path / "run"), Session.start(config, digits)
    folder = on_disk.run.path / "checkpoints"
    held = [
        {row["step"]: [int(path.stem[-2:]) for path in list_checkpoints(folder)] for row in on_disk.train()},
        {row["step"]: [saved.step for saved in in_memory._saved] for row in in_memory.train()},
    ]
    for steps in held:
        assert (steps[9], steps[10], steps[11], steps[13]) == ([8], [8, 9], [8, 9], [12])


def test_memory_holds_the_last_snapshots_since_the_last_checkpoint(digits):
    session = Session.start(tiny(checkpoint_every=9, recovery={"snapshots": 2, "snapshot_every": 2}), digits)
    held = [[s.step for s in session.recovery.snapshots] for _ in session.train()]
    assert held[:10] == [[0], [0, 2], [0, 2], [2, 4], [2, 4], [4, 6], [4, 6], [6, 8], [9], [9, 10]]
    single = Session.start(tiny(checkpoint_every=9, recovery={"snapshots": 1, "snapshot_every": 2}), digits)
    assert [[s.step for s in single.recovery.snapshots] for _ in single.train()][:4] == [[0], [2], [2], [4]]


def test_a_snapshot_is_a_copy_and_restoring_leaves_it(digits):
    session = Session.start(tiny(), digits)
    first = bits(session)
    (snapshot,) = session.recovery.snapshots
    train(session)
    session.state.restore(snapshot)
    for _ in range(2):
        for name, value in bits(session)[0].items():
            assert torch.equal(value, first[0][name]), name
        assert bits(session)[1] == first[1]
        # Training on moves the state and not the snapshot.
        session.state.buffer.x.add_(1.0)
        with torch.no_grad():
            for p in session.state.model.parameters():
                p.add_(1.0)
        session.state.restore(snapshot)


def test_poisoned_is_what_lies_far_below_all_data_or_is_not_finite():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            return -self.scale * x.sum(dim=1, keepdim=True)  # one class: E(x) = sum(x)

    real = torch.linspace(-2, 2, 401)[:, None]  # median 0, interquartile range 2: the floor is at -20
    x = torch.tensor([[0.0], [-19.9], [-20.1], [-1e9], [1e9], [math.nan], [math.inf], [-math.inf]])
    model = EnergyClassifier(Sum()).train()
    buffer = ReplayBuffer(x, torch.zeros(8, dtype=torch.int64), 2)
    poisoned = poisoned_chains(model, buffer, real)
    assert poisoned.tolist() == [False, False, True, True, False, True, True, True]
    assert model.training
    # The spread counts as a nat at least: the floor of data that all have one energy is 10 nats below it.
    narrow = poisoned_chains(model, ReplayBuffer(x[:2] / 2, torch.zeros(2, dtype=torch.int64), 2), real * 1e-3)
    assert narrow.tolist() == [False, False]
    assert poisoned_chains(model, buffer, real, batch_size=3).tolist() == poisoned.tolist()


def test_a_share_of_the_buffer_is_refreshed_where_the_remedy_says_so(digits):
    session = Session.start(tiny(chains={"buffer_size": 1000}), digits)
    before = session.state.buffer.x.clone()
    problem = Diverged(1, "", {}, verdict="buffer_collapse", onset=1)
    session.recovery.recover(session.state, problem)
    fresh = (session.state.buffer.x != before).flatten(1).any(dim=1)
    assert abs(int(fresh.sum()) - 500) < 4 * 250**0.5
    again = Session.start(tiny(chains={"buffer_size": 1000}), digits)
    again.recovery.recover(again.state, problem)
    assert torch.equal(session.state.buffer.x, again.state.buffer.x)


# --- Faults of the disk ---


def full(*arguments, **settings):
    raise OSError(errno.ENOSPC, "No space left on device")


def undisturbed(tmp_path, digits):
    session = Session.start(tiny(), digits, run=tmp_path / "undisturbed")
    train(session)
    return session


def assert_same_run(one, other):
    assert_same_state(one, other)
    assert lines(one, "metrics.jsonl") == lines(other, "metrics.jsonl")
    passing = ("resumed", "damaged")
    kept = [[json.dumps(row) for row in events(s) if row["event"] not in passing] for s in (one, other)]
    assert kept[0] == kept[1]
    files = [list_checkpoints(s.run.path / "checkpoints") for s in (one, other)]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert not list((one.run.path / "checkpoints").glob("*.tmp"))


def test_a_full_disk_while_a_checkpoint_is_saved(tmp_path, digits, monkeypatch):
    whole = undisturbed(tmp_path, digits)
    session = Session.start(tiny(), digits, run=tmp_path / "run")
    rows = session.train()
    for _ in range(7):
        next(rows)
    folder = session.run.path / "checkpoints"
    before = {path: path.read_bytes() for path in list_checkpoints(folder)}
    with monkeypatch.context() as patch:
        patch.setattr(runs.os, "fsync", full)
        with pytest.raises(RunError, match=r"Cannot write .*step-00000008.*No space left on device.*untouched"):
            next(rows)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    resumed = Session.resume(tmp_path / "run", digits)
    assert resumed.state.step == 4
    train(resumed)
    assert_same_run(resumed, whole)


@pytest.mark.parametrize("half", [False, True])
def test_a_full_disk_while_a_row_is_logged(tmp_path, digits, monkeypatch, half):
    whole = undisturbed(tmp_path, digits)
    session = Session.start(tiny(), digits, run=tmp_path / "run")
    rows = session.train()
    for _ in range(6):
        next(rows)

    def cut_short(self, name, row):
        with (self.path / name).open("a") as file:
            file.write(json.dumps(row)[:20] if half else "")
        full()

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_append", cut_short)
        with pytest.raises((RunError, OSError), match="No space left on device"):
            next(rows)
    resumed = Session.resume(tmp_path / "run", digits)
    assert resumed.state.step == 4
    train(resumed)
    assert_same_run(resumed, whole)


@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_a_full_disk_while_a_recovery_is_saved(tmp_path, digits, monkeypatch, spoil, attempt):
    spoil(relapses(10, 3))
    whole = undisturbed(tmp_path, digits)
    session = Session.start(tiny(), digits, run=tmp_path / "run")
    save, calls = durable.save_checkpoint, []

    def save_or_fail(folder, checkpoint, *, keep):
        treatment = checkpoint.header["treatment"]
        if len(treatment["failures"]) == attempt and not calls:
            calls.append(attempt)
            monkeypatch.setattr(runs.os, "fsync", full)
        return save(folder, checkpoint, keep=keep)

    fsync = runs.os.fsync
    monkeypatch.setattr(durable, "save_checkpoint", save_or_fail)
    with pytest.raises(RunError, match="No space left on device"):
        train(session)
    monkeypatch.setattr(runs.os, "fsync", fsync)
    resumed = Session.resume(tmp_path / "run", digits)
    train(resumed)
    assert_same_run(resumed, whole)


def truncated(content):
    return content[: len(content) // 2]


def flipped(content):
    return content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]


@pytest.mark.parametrize("damage", [truncated, flipped, lambda content: b""], ids=["truncated", "flipped", "empty"])
def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(tmp_path, digits, damage):
    whole = undisturbed(tmp_path, digits)
    session = Session.start(tiny(), digits, run=tmp_path / "run")
    for row in session.train():
        if row["step"] == 14:
            break
    newest = list_checkpoints(session.run.path / "checkpoints")[-1]
    assert newest.name == "step-00000012.safetensors"
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(
        UserWarning, match=r"step-00000012.*Going on from step-00000008.safetensors, the one before"
    ) as w:
        resumed = Session.resume(tmp_path / "run", digits)
    assert len(w) == 1
    assert resumed.state.step == 8
    (event,) = events(resumed, "damaged")
    assert event["step"] == 8
    assert newest.name in event["error"]
    train(resumed)
    assert_same_run(resumed, whole)
    assert Session.resume(tmp_path / "run", digits).state.step == STEPS  # what was damaged has been written again


def test_two_damaged_checkpoints_are_both_named(tmp_path, digits):
    session = Session.start(tiny(), digits, run=tmp_path / "run")
    train(session)
    files = list_checkpoints(session.run.path / "checkpoints")[-3:]
    for path in files[1:]:
        path.write_bytes(truncated(path.read_bytes()))
    with pytest.warns(UserWarning, match="Going on from") as caught:
        resumed = Session.resume(tmp_path / "run", digits)
    assert [files[i].name in str(w.message) for i, w in zip((2, 1), caught, strict=True)] == [True, True]
    assert resumed.state.step == 8


def test_when_all_are_damaged_it_is_an_error_that_leaves_everything_as_it_is(tmp_path, digits):
    session = Session.start(tiny(), digits, run=tmp_path / "run")
    train(session)
    for path in list_checkpoints(session.run.path / "checkpoints"):
        path.write_bytes(flipped(path.read_bytes()))
    before = {path: path.read_bytes() for path in session.run.path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"step-00000016\.safetensors"):
        Session.resume(tmp_path / "run", digits)
    assert {path: path.read_bytes() for path in session.run.path.rglob("*") if path.is_file()} == before


def test_a_recovery_steps_over_a_damaged_checkpoint_and_says_so(tmp_path, digits, spoil):
    """The second relapse needs the checkpoint of step 8, which is damaged by then: it takes that of step 4."""
    spoil(relapses(10, 2))
    session = Session.start(tiny(), digits, run=tmp_path / "run")
    for row in session.train():
        path = session.run.path / "checkpoints" / "step-00000008.safetensors"
        if row["step"] == 10 and len(session.state.treatment.failures) == 1:
            path.write_bytes(truncated(path.read_bytes()))
    assert [row["step"] for row in events(session, "recovered")] == [9, 4]
    (event,) = events(session, "damaged")
    assert event["checkpoint"] == path.name
    assert_healthy(session)


def test_files_that_a_recovery_does_not_need_are_not_read(tmp_path, digits, spoil):
    spoil([10])
    session = Session.start(tiny(), digits, run=tmp_path / "run")
    for row in session.train():
        if row["step"] == 10 and not session.state.treatment.failures:
            old = session.run.path / "checkpoints" / "step-00000004.safetensors"
            old.write_bytes(b"damaged")
    assert [row["step"] for row in events(session, "recovered")] == [9]
    assert events(session, "damaged") == []


class Killed(BaseException):
    """What a kill is to a process that goes on."""


def test_a_kill_while_checkpoints_are_deleted_loses_no_row_of_what_is_left(tmp_path, digits, monkeypatch):
    """A failure that does not come again, whose recovery goes far back: a run that goes on as if it had not been."""
    whole = undisturbed(tmp_path, digits)
    train_step, unlink = session_module.train_step, type(tmp_path).unlink

    def failing(state, trainer):
        if state.step == 10:
            raise Diverged(11, "made up", {}, verdict="gap_explosion", onset=2)
        return train_step(state, trainer)

    def unlink_and_die(self, missing_ok=False):
        unlink(self, missing_ok=missing_ok)
        if dying and self.name.startswith("step-"):
            raise Killed

    dying = []
    session = Session.start(tiny(keep_checkpoints=9), digits, run=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(session_module, "train_step", failing)
        patch.setattr(type(tmp_path), "unlink", unlink_and_die)
        dying.append(True)
        with pytest.raises(Killed):
            train(session)
    resumed = Session.resume(tmp_path / "run", digits)
    assert resumed.state.step in (4, 8)
    train(resumed)
    assert_same_state(resumed, whole)
    assert lines(resumed, "metrics.jsonl") == lines(whole, "metrics.jsonl")
    assert events(resumed, "recovered") == []


# --- No false alarm ---

HEALTHY = [name for name in RECIPES if name.endswith("-small") or name == "jemstone"]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_is_left_alone(tmp_path, digits, name):
    """Long enough for a window to be full; the batch's size is the recipe's own."""
    steps = 2 * recipe(name).limits.window + 20
    config = recipe(name).with_values(steps=steps, network={"name": "conv-8"}, validate_every=30)
    if config.classifier_steps:
        config = config.with_values(classifier_steps=40)
    session = Session.start(config, digits, run=tmp_path / "run")
    rows = train(session)
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert {row["event"] for row in events(session)} == {"started", "validation", "finished"}
    assert len(session.state.history) == 2 * config.limits.window
