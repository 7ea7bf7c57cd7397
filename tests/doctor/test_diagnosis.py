"""The doctor on hand-made runs: each verdict, health, recoveries, and advice that can be followed."""

import json
import math

import pytest

from jemstone.doctor import diagnose, open_case
from jemstone.doctor.causes import MEANINGS, changes, why
from jemstone.doctor.trends import window_rows
from jemstone.errors import VERDICTS, ConfigError, RunError
from jemstone.parsers import expand, make_parser
from jemstone.runs import Run
from jemstone.training.config import TrainConfig
from jemstone.training.recipes import RECIPES, recipe

HEALTHY = {
    "loss": 0.4,
    "class_nll": 0.3,
    "train_accuracy": 0.95,
    "energy_real": -3.0,
    "energy_negatives": -3.1,
    "energy_gap": 0.1,
    "energy_auc": 0.5,
    "grad_ratio": 1.0,
    "chain_grad_norm": 0.5,
    "class_coverage": 0.9,
    "distinct": 1.0,
    "saturated": 0.3,
    "saturated_real": 0.3,
}
FAILURES = {
    "non_finite": lambda k: {"loss": math.nan},
    "energy_runaway": lambda k: {"energy_real": -300.0 - 40 * k, "energy_negatives": -300.0 - 40 * k},
    "gap_explosion": lambda k: {"energy_gap": -6.0 - k, "energy_auc": 0.9},
    "dead_sampler": lambda k: {"energy_gap": -6.0 - k, "energy_auc": 1.0},
    "saturated_chains": lambda k: {"saturated": 0.95},
    "buffer_collapse": lambda k: {"distinct": 0.01},
    "accuracy_collapse": lambda k: {"train_accuracy": 0.3},
}
JEM = recipe("jem").with_values(network={"norm": "group"}, chains={"steps": 5})


def log(verdict=None, *, rows=60, at=40, every=10, **changes):
    """Logged rows, healthy up to row `at` and failing as `verdict` from there on."""
    made = []
    for i in range(rows):
        row = HEALTHY | {"step": every * (i + 1), "energy_gap": 0.1 * math.sin(i)} | changes
        made.append(row | FAILURES[verdict](i - at) if verdict is not None and i >= at else row)
    return made


def recovered(step=50, failed=66, verdict="gap_explosion", attempt=1, **changes):
    event = {"event": "recovered", "step": step, "failed_step": failed, "onset": failed - 12, "verdict": verdict}
    event |= {"reason": "the median energy_gap over 25 steps is -6.69 nats", "metrics": {"energy_gap": -62.9}}
    event |= {"evidence": {"step": [64, 65], "energy_gap": [-40.0, -50.0]}, "attempt": attempt, "rung": 1}
    return event | {"remedy": ["learning rate x 0.3"], "poisoned_chains": 3, "probation": 100} | changes


def test_every_verdict_of_the_guard_is_tried():
    assert set(FAILURES) == set(VERDICTS)


@pytest.mark.parametrize("window", [50, 0])
@pytest.mark.parametrize("verdict", FAILURES)
def test_every_verdict_is_found_in_logged_rows(verdict, window):
    config = JEM.with_values(limits={"window": window, "gap": 1e9, "energy": 1e9})
    found = diagnose(log(verdict), config=config)
    assert not found.healthy
    assert found.state == "unhealthy"
    first = found.findings[0]
    assert first.verdict == verdict
    assert first.onset <= first.failed
    assert abs(first.onset - 410) <= 50  # a median of five rows decides on the onset
    assert 410 <= first.failed <= 470
    assert found.headline.startswith(f"unhealthy: {verdict} at step {first.failed}")
    assert first.meaning == VERDICTS[verdict]
    assert first.why
    assert any("--" in change for change in found.change)


@pytest.mark.parametrize("every", [1, 10, 100])
def test_a_healthy_log_has_a_clean_bill_with_its_numbers(every):
    found = diagnose(log(every=every), [{"event": "started", "step": 0}, {"event": "finished", "step": 600}], JEM)
    assert found.healthy
    assert (found.headline, found.findings, found.advice, found.notes, found.change) == ("healthy", (), (), (), ())
    assert found.numbers["last step"] == str(60 * every)
    assert found.numbers["train_accuracy"] == "95.0%"


def test_a_spike_is_no_trend_and_a_bound_is_one():
    rows = log()
    rows[30] |= {"energy_gap": -50.0, "train_accuracy": 0.1, "saturated": 1.0}
    assert diagnose(rows, config=JEM).healthy
    rows[30]["energy_gap"] = -150.0
    (finding,) = diagnose(rows, config=JEM).findings
    assert (finding.verdict, finding.spans) == ("gap_explosion", ((310, 310),))
    assert "beyond limits.gap = 100" in finding.what


def test_the_bounds_of_the_run_hold_unless_its_guard_was_off():
    rows = log("gap_explosion")
    generous = {"gap": 1e6, "median_gap": 1e6}
    assert diagnose(rows, config=JEM.with_values(limits=generous)).healthy
    found = diagnose(rows, config=JEM.with_values(limits={"window": 0, **generous}))
    assert found.findings[0].verdict == "gap_explosion"
    assert any("--limits.window 50" in note for note in found.notes)


def test_the_window_spans_as_many_steps_as_the_guards_where_rows_allow_it():
    assert window_rows(log(rows=400, every=1), 50) == 50
    assert window_rows(log(rows=400, every=10), 50) == 10
    assert window_rows(log(rows=60, every=1), 50) == 15


def test_accuracy_of_evaluation_mode_is_a_collapse_of_its_own():
    rows = log()
    rows[50]["evaluation_accuracy"] = 0.2
    found = diagnose(rows, config=JEM.with_values(network={"norm": "batch"}))
    assert found.findings[0].verdict == "accuracy_collapse"
    assert "running averages" in found.findings[0].why[0]
    assert found.change[0].startswith("--network.norm group")


def test_chains_that_stand_still_are_told_from_those_that_are_behind():
    rows = log()
    for row in rows[40:]:
        row["chain_grad_norm"] = 0.0
    found = diagnose(rows, config=JEM)
    assert found.findings[0].verdict == "dead_sampler"
    assert "vanished" in found.findings[0].why[0]
    assert not any("chains.steps" in change for change in found.change)


def test_holes_are_told_from_energies_pushed_apart():
    rows = log()
    for row in rows[40:]:
        row["energy_gap"] = 30.0
    assert "no data" in diagnose(rows).findings[0].why[0]


def test_recorded_recoveries_say_when_why_and_what_was_done():
    finish = {"event": "finished", "step": 600}
    found = diagnose(log(), [{"event": "started", "step": 0}, recovered(), finish], JEM)
    assert found.state == "recovered"
    assert not found.healthy
    assert found.headline == "recovered: gap_explosion at step 66, trend from step 54"
    (finding,) = found.findings
    assert finding.spans == ((54, 66),)
    assert finding.what == "The median energy_gap over 25 steps is -6.69 nats. Step 66 had energy_gap -62.9."
    (done,) = finding.done
    assert done == "step 66: back to step 50, then learning rate x 0.3; 3 poisoned chains discarded (attempt 1)"
    text = " ".join(finding.why)
    for words in ("weights.energy_l2 is 0", "group normalisation and few chain steps (5 here)", "within 200 steps"):
        assert words in text
    assert found.change[0].startswith("--weights.energy_l2 0.3 --optimizer.clip_norm 1 ")
    assert f"--optimizer.learning_rate {0.3 * JEM.optimizer.learning_rate:.2g} " in found.change[1]
    (advice,) = found.advice
    assert advice.topic == "still under treatment"
    assert "learning rate x 0.3" in advice.what


def test_an_eased_treatment_is_over():
    events = [recovered(), {"event": "eased", "step": 160, "rung": 0, "remedy": []}, {"event": "finished", "step": 600}]
    assert diagnose(log(), events, JEM).advice == ()


def test_recoveries_of_one_verdict_are_one_finding():
    events = [recovered(), recovered(0, 84, attempt=2), {"event": "finished", "step": 600}]
    found = diagnose(log(), events, JEM)
    (finding,) = found.findings
    assert finding.spans == ((54, 66), (72, 84))
    assert len(finding.done) == 2
    assert "2 times, at steps 66, 84" in finding.what
    assert "2 times, last at step 84" in found.headline


def test_what_stopped_a_run_is_its_verdict():
    final = {"event": "diverged", "step": 99, "failed_step": 100, "onset": 90, "verdict": "accuracy_collapse"}
    final["reason"] = "training accuracy fell from 90.0% to 20.0%. Gave up. `jemstone doctor RUN` says what to change"
    found = diagnose(log(rows=9), [{"event": "started", "step": 0}, recovered(), final], JEM)
    assert found.headline == "diverged: accuracy_collapse at step 100, trend from step 90"
    assert "jemstone doctor" not in found.findings[-1].what
    assert not any("not finished" in note for note in found.notes)
    assert diagnose(log(rows=9), [final, {"event": "resumed", "step": 50}], JEM).state == "recovered"


def test_a_divergence_from_before_verdicts_had_names():
    event = {"event": "diverged", "step": 21, "reason": "|energy_gap| exceeds limits.gap", "metrics": {}}
    assert diagnose([], [event]).headline == "diverged: gap_explosion at step 21"


def test_damage_resumption_and_an_open_end_are_on_record():
    events = [{"event": "started", "step": 0}, {"event": "resumed", "step": 30}]
    events += [{"event": "damaged", "step": 30, "checkpoint": "step-00000040.safetensors", "error": "is torn."}]
    notes = diagnose(log(), events, JEM, name="runs/a", total_steps=900).notes
    assert "A checkpoint step-00000040.safetensors was damaged (is torn); training used the one before it." in notes
    assert "Resumed at step 30." in notes
    assert any("ends at step 600 of 900" in note and "jemstone train --resume runs/a" in note for note in notes)


ADVICE = {
    "easy negatives": ({"energy_auc": 0.97}, "--chains.steps 10"),
    "overshooting chains": ({"energy_auc": 0.02}, "--chains.steps 2"),
    "unbalanced gradients": ({"grad_ratio": 40.0}, "--optimizer.balance 3"),
    "clipped chains": ({"clipped": 0.99}, "--weights.energy_l2 0.3"),
    "different statistics": ({"norm_distance": 2.0}, "--network.norm group"),
    "accuracy held out": ({"validation_accuracy": 0.8}, "more augmentation"),
}


@pytest.mark.parametrize("topic", ADVICE)
def test_advice_is_no_verdict(topic):
    numbers, change = ADVICE[topic]
    found = diagnose(log(**numbers), config=JEM)
    assert found.healthy
    assert [advice.topic for advice in found.advice] == [topic]
    assert change in found.advice[0].change
    (foreign,) = diagnose(log(**numbers)).advice
    assert "--" not in foreign.change


def test_a_generative_term_that_hardly_pulls():
    assert [advice.topic for advice in diagnose(log(grad_ratio=0.01)).advice] == ["unbalanced gradients"]


def test_too_few_rows_are_not_called_healthy():
    found = diagnose(log(rows=3), config=JEM)
    assert not found.healthy
    assert found.headline == "unknown: too little is logged to judge"


REASONS = ("", "the energy is flat, and chains stand still", "in evaluation mode", "negatives lie in holes")


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_that_is_named_can_be_given(name):
    """The command line takes what the doctor says, and it changes something."""
    config, parser = recipe(name), make_parser(["train", name])
    advised = {
        (key, value)
        for verdict in VERDICTS
        for reason in REASONS
        for change in changes(verdict, reason, config)
        for key, value in change.settings.items()
    }
    assert advised
    for key, value in advised:
        given = parser.parse_args(expand(["train", name, f"--{key}", value])).train[key]
        group, _, field = key.partition(".")
        assert str(given).lower() in (value, f"{value}.0"), key
        assert given != getattr(getattr(config, group), field), key


@pytest.mark.parametrize("verdict", MEANINGS)
def test_every_verdict_has_its_mechanism_and_a_change(verdict):
    assert "no words" not in why(verdict, "", 1000, None)[0]
    assert changes(verdict, "", None)


def test_what_the_settings_have_already_is_not_advised():
    treated = JEM.with_values(weights={"energy_l2": 0.3}, optimizer={"clip_norm": 1.0})
    found = diagnose(log("gap_explosion"), config=treated)
    assert not any("energy_l2" in change or "clip_norm" in change for change in found.change)
    assert not any("energy_l2" in sentence for finding in found.findings for sentence in finding.why)


# Run directories


@pytest.fixture
def run(tmp_path):
    info = {"config": JEM.to_dict(), "data": {"sizes": {"train": 640}}, "environment": {}}
    made = Run.create(tmp_path / "run", info)
    made.event("started", 0)
    for row in log():
        made.log(row)
    return made


def test_a_run_directory_is_read_whole(run):
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 610, "loss"')  # a line cut short by a kill
    run.event(**recovered())
    case = open_case(run.path)
    assert case.config == JEM
    assert case.total_steps == 1500
    assert case.figure == run.path / "doctor.png"
    assert case.rows[-1]["step"] == 600
    assert case.diagnosis().headline == "recovered: gap_explosion at step 66, trend from step 54"


def test_rows_that_were_written_again_count_once(run):
    for row in log("gap_explosion", at=20)[20:30]:
        run.log(row)
    for row in log()[20:]:
        run.log(row)
    assert open_case(run.path).diagnosis().healthy


def test_settings_of_another_version_cost_only_their_names(run):
    info = json.loads((run.path / "config.json").read_text())
    info["config"]["from_the_future"] = 1
    (run.path / "config.json").write_text(json.dumps(info))
    case = open_case(run.path)
    assert case.config is None
    assert "another version" in case.reading[0]
    assert case.diagnosis().healthy


def test_what_cannot_be_opened_is_refused(tmp_path, run):
    with pytest.raises(RunError, match=r"nothing at .*gone"):
        open_case(tmp_path / "gone")
    with pytest.raises(RunError, match="not a run directory"):
        open_case(tmp_path)
    with pytest.raises(ConfigError, match="is a directory"):
        open_case(run.path, {"step": "iter"})


def test_the_default_configuration_has_no_guard_off_note():
    assert not any("were off" in note for note in diagnose(log("gap_explosion"), config=TrainConfig()).notes)
