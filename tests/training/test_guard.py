"""The guard, verdict by verdict: a series that it must stop, where that began, and the nearest one that it must not."""

import copy
import json
import math
import random

import pytest

from jemstone.errors import VERDICTS, Diverged
from jemstone.training.guard import WATCHED, check, check_evaluation, judge
from jemstone.training.settings import Limits
from jemstone.training.treatment import TOP_RUNG, remedy_at

LIMITS = Limits()
START = 120
"""The step from which on a series is ill: by then the window is full."""


def healthy(step):
    """Noisy numbers as healthy small runs have them."""
    rng = random.Random(step)
    real, negatives = rng.gauss(-3, 0.5), rng.gauss(-2.6, 0.5)
    return {
        "step": step,
        "loss": 1.0,
        "energy_real": real,
        "energy_negatives": negatives,
        "energy_gap": real - negatives,
        "energy_auc": rng.uniform(0.4, 0.85),
        "class_coverage": rng.uniform(0.5, 0.9),
        "chain_grad_norm": rng.uniform(0.5, 2.0),
        "distinct": rng.uniform(0.6, 1.1),
        "saturated": rng.uniform(0.3, 0.5),
        "saturated_real": rng.uniform(0.3, 0.4),
        "train_accuracy": rng.uniform(0.85, 1.0),
    }


def series(changes=None, steps=240):
    """Healthy numbers, and from START on with what `changes(steps since)` puts in their place."""
    for step in range(1, steps + 1):
        row = healthy(step)
        if changes is not None and step >= START:
            row |= changes(step - START)
        yield row


def failure(rows, limits=LIMITS):
    """The failure that a series ends in, or None."""
    history = ()
    try:
        for row in rows:
            history = check(row["step"], row, history, limits)
    except Diverged as problem:
        return problem
    return None


def energies(slope):
    return lambda t: {"energy_real": -3 - slope * t, "energy_negatives": -2.6 - slope * t}


ILL = {
    "energies that grow by 10 nats a step": ("energy_runaway", energies(10.0), START + 5),  # where they pass 50
    "energies of data alone": ("energy_runaway", lambda t: {"energy_real": 12.0 * t}, START + 4),
    "negatives in holes": ("gap_explosion", lambda t: {"energy_gap": 2.0 * t, "energy_auc": 0.1}, START + 1),
    "pushed apart": ("gap_explosion", lambda t: {"energy_gap": -8.0, "energy_auc": 0.9}, START),
    "conditional chains alone": ("gap_explosion", lambda t: {"conditional_gap": 9.0}, START),
    "chains that cannot follow": ("dead_sampler", lambda t: {"energy_gap": -8.0, "energy_auc": 1.0}, START),
    "a flat energy": ("dead_sampler", lambda t: {"chain_grad_norm": 1e-9}, START),
    "chains in the corners": ("saturated_chains", lambda t: {"saturated": 0.97}, START),
    "one image": ("buffer_collapse", lambda t: {"distinct": 0.02}, START),
    "one class": ("buffer_collapse", lambda t: {"class_coverage": 0.01}, START),
    "forgotten classes": ("accuracy_collapse", lambda t: {"train_accuracy": 0.3}, START),
}
WELL = {
    "nothing": lambda t: {},
    "energies that grow slowly and stop": lambda t: {"energy_real": -min(3 + 10 * t, 150)},
    "a gap below its limit": lambda t: {"energy_gap": 4.5, "energy_auc": 0.1},
    "a negative gap below its limit": lambda t: {"energy_gap": -4.5, "energy_auc": 1.0},
    "chains that are told from data, by little": lambda t: {"energy_auc": 1.0},
    "single large gaps": lambda t: {"energy_gap": 90.0} if t % 3 == 0 else {},
    "a single large energy": lambda t: {"energy_real": 9e3} if t == 5 else {},
    "a small slope": lambda t: {"chain_grad_norm": 1e-4},
    "as saturated as data": lambda t: {"saturated": 0.97, "saturated_real": 0.9},
    "somewhat saturated": lambda t: {"saturated": 0.7},
    "somewhat alike": lambda t: {"distinct": 0.2},
    "few classes": lambda t: {"class_coverage": 0.1},
    "somewhat worse": lambda t: {"train_accuracy": 0.7},
    "a bad batch": lambda t: {"train_accuracy": 0.1} if t % 7 == 0 else {},
}


@pytest.mark.parametrize("name", ILL)
def test_an_ill_series_is_stopped_with_its_verdict_and_where_it_began(name):
    verdict, changes, onset = ILL[name]
    problem = failure(series(changes))
    assert problem is not None
    assert problem.verdict == verdict
    assert problem.verdict in VERDICTS
    assert START < problem.step < START + 2 * LIMITS.window
    assert abs(problem.onset - onset) <= 4
    assert problem.metrics["step"] == problem.step
    assert problem.evidence["step"][-1] == problem.step
    assert verdict in str(problem)


@pytest.mark.parametrize("name", WELL)
def test_its_healthy_neighbour_is_not(name):
    assert failure(series(WELL[name])) is None


@pytest.mark.parametrize("name", ILL)
def test_without_a_window_trends_are_not_judged(name):
    _, changes, _ = ILL[name]
    assert failure(series(changes, steps=160), Limits(window=0)) is None
    assert check(5, healthy(5), (), Limits(window=0)) == ()


def test_large_energies_that_do_not_grow_are_an_offset_and_no_runaway():
    rows = [row | {"energy_real": -500.0, "energy_negatives": -499.6} for row in series()]
    assert failure(rows) is None


def test_a_run_that_never_learnt_has_not_forgotten():
    assert failure([row | {"train_accuracy": 0.1} for row in series()]) is None


def test_a_slow_decline_is_measured_from_the_best_ever_and_not_from_the_window():
    """Accuracy falls by less than the limit within any window."""
    problem = failure(series(lambda t: {"train_accuracy": max(0.0, 0.95 - 0.002 * t)}, steps=600))
    assert problem is not None
    assert problem.verdict == "accuracy_collapse"
    assert problem.step > START + 2 * LIMITS.window


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({"loss": math.nan}, "non_finite", "loss is not finite"),
        ({"grad_norm": math.inf}, "non_finite", "grad_norm is not finite"),
        ({"energy_real": -math.inf}, "non_finite", "energy_real is not finite"),
        ({"energy_real": 1.01e4}, "energy_runaway", "energy_real"),
        ({"energy_negatives": -1.01e4}, "energy_runaway", "energy_negatives"),
        ({"energy_gap": 101.0}, "gap_explosion", "energy_gap"),
        ({"conditional_gap": -101.0}, "gap_explosion", "conditional_gap"),
    ],
)
def test_the_bounds_of_every_step_hold_in_the_first_one_and_with_numbers(changes, verdict, reason):
    metrics = healthy(1) | changes
    for limits in (LIMITS, Limits(window=0)):
        with pytest.raises(Diverged, match=reason) as caught:
            check(1, metrics, (), limits)
        assert caught.value.verdict == verdict
        assert (caught.value.step, caught.value.onset) == (1, 1)
        assert caught.value.metrics.keys() == metrics.keys()
        assert "energy_real=" in str(caught.value)
        assert "distinct=" not in str(caught.value)  # of the rest only `metrics` tells


@pytest.mark.parametrize("name", WATCHED)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_may_be_infinite_or_none(name, value):
    with pytest.raises(Diverged, match=f"{name} is not finite"):
        check(1, healthy(1) | {name: value}, (), LIMITS)


def test_a_bound_that_is_passed_after_a_trend_names_where_the_trend_began():
    """Gaps double from step to step: the bound of one step is passed before any median is."""
    problem = failure(series(lambda t: {"energy_gap": 0.5 * 2.0**t}))
    assert (problem.verdict, problem.step) == ("gap_explosion", START + 8)
    assert abs(problem.onset - (START + 2)) <= 4


def test_memory_is_bounded_by_two_windows():
    history = ()
    for row in series():
        history = check(row["step"], row, history, LIMITS)
        assert len(history) == min(row["step"], 2 * LIMITS.window)
    assert [row["step"] for row in history] == list(range(141, 241))


@pytest.mark.parametrize("name", ["nothing", "pushed apart", "forgotten classes"])
def test_judging_depends_on_its_arguments_alone_and_leaves_them(name):
    changes = WELL[name] if name in WELL else ILL[name][1]
    rows = [{key: row[key] for key in ("step", *WATCHED) if key in row} | {"best_accuracy": 1.0} for row in
            series(changes, steps=150)][-100:]  # fmt: skip
    before = copy.deepcopy(rows)
    first = judge(rows, LIMITS)
    assert judge(json.loads(json.dumps(rows)), LIMITS) == first == judge(tuple(rows), LIMITS)
    assert rows == before
    assert (first is None) is (name in WELL)


def test_a_history_that_went_through_json_gives_the_same_verdict_at_the_same_step():
    def step_by_step(rows):
        history = ()
        for row in rows:
            history = tuple(json.loads(json.dumps(history)))
            history = check(row["step"], row, history, LIMITS)

    expected = failure(series(ILL["forgotten classes"][1]))
    with pytest.raises(Diverged) as caught:
        step_by_step(series(ILL["forgotten classes"][1]))
    assert caught.value.details() == expected.details()


def evaluated(accuracy, steps, limits=LIMITS):
    history = ()
    for row in series(steps=steps):
        history = check(row["step"], row, history, limits)
    return check_evaluation(steps, row | {"evaluation_accuracy": accuracy}, history, limits)


def test_a_model_that_fails_in_evaluation_mode_alone_is_found():
    reason = r"on training examples is 9\d\.\d% in training and 40\.0% in evaluation mode"
    with pytest.raises(Diverged, match=reason) as caught:
        evaluated(0.4, 100)
    assert (caught.value.verdict, caught.value.step, caught.value.onset) == ("accuracy_collapse", 100, 76)
    assert evaluated(0.7, 100)[-1]["evaluation_accuracy"] == 0.7


def test_evaluation_before_half_a_window_is_no_judgement():
    assert evaluated(0.0, 20)[-1]["evaluation_accuracy"] == 0.0
    assert evaluated(0.0, 100, Limits(window=0)) == ()


def test_accuracy_on_held_out_data_is_generalisation_and_no_verdict():
    history = evaluated(0.9, 100)
    assert check_evaluation(100, healthy(100) | {"validation_accuracy": 0.1}, history, LIMITS) == history
    assert "validation_accuracy" not in WATCHED


def test_an_average_that_lags_behind_is_judged_once_and_not_for_ever():
    """The row of an evaluation is in the history of later steps, which have none of their own."""
    history = evaluated(0.7, 100)
    ill = (*history[:-1], {**history[-1], "evaluation_accuracy": 0.1})
    check(101, healthy(101), ill, LIMITS)


def test_every_verdict_has_a_remedy_on_every_rung():
    for verdict in VERDICTS:
        for rung in range(1, TOP_RUNG + 1):
            assert remedy_at(rung, verdict).in_words(), (verdict, rung)


def test_a_column_that_has_just_begun_is_no_trend_yet():
    """As after `classifier_steps`: the first chains of a run are told from data easily, and one row is no median."""
    generative = ("energy_gap", "energy_auc", "chain_grad_norm", "distinct", "saturated", "class_coverage")

    def begun(settled):
        for row in series(steps=240):
            if row["step"] < START:
                row = {name: value for name, value in row.items() if name not in generative}
            elif row["step"] < settled:
                row |= {"energy_gap": -20.0, "energy_auc": 1.0}
            yield row

    assert failure(begun(START + 12)) is None
    problem = failure(begun(400))
    assert (problem.verdict, problem.step) == ("dead_sampler", START + LIMITS.window // 2 - 1)
    assert abs(problem.onset - START) <= 4


@pytest.mark.parametrize(("rate", "verdict"), [(0.97, None), (0.99, "dead_sampler")])
def test_a_gap_that_closes_by_itself_is_no_verdict_and_one_that_hardly_does_is(rate, verdict):
    """As after `classifier_steps`: over half a window, 0.97 leaves two thirds and 0.99 most of it."""
    generative = ("energy_gap", "energy_auc")
    rows = [
        row | {"energy_gap": -20 * rate ** (row["step"] - START), "energy_auc": 1.0}
        if row["step"] >= START
        else {name: value for name, value in row.items() if name not in generative}
        for row in series()
    ]
    assert abs(rows[START + LIMITS.window // 2]["energy_gap"]) > LIMITS.median_gap
    problem = failure(rows)
    assert (problem and problem.verdict) == verdict


def test_a_gap_is_what_discrimination_is_for():
    def apart(t):
        return {"energy_gap": -20.0, "energy_auc": 1.0}

    assert failure(series(apart)).verdict == "dead_sampler"
    assert failure(series(lambda t: apart(t) | {"discrimination": 0.1})) is None
    beyond = failure(series(lambda t: {"energy_gap": -101.0, "discrimination": 0.1}))
    assert (beyond.verdict, beyond.step) == ("gap_explosion", START)
