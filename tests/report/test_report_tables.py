"""Names, directions and the rule of who is marked."""

import pytest

from jemstone.report.read import Result, read_run
from jemstone.report.summary import in_short, labels, title
from jemstone.report.tables import clearly_ahead, measure, number, ood_matrix, radius_text, settings_table


def interval(low: float, high: float) -> Result:
    return Result("x", (low + high) / 2, low, high, 10)


@pytest.mark.parametrize(
    ("intervals", "better", "ahead"),
    [
        ([(0.1, 0.2), (0.3, 0.4)], +1, (False, True)),
        ([(0.1, 0.2), (0.3, 0.4)], -1, (True, False)),
        ([(0.1, 0.2), (0.3, 0.4)], 0, (False, False)),
        ([(0.1, 0.3), (0.2, 0.4)], +1, (False, False)),
        ([(0.1, 0.2), (0.2, 0.4)], +1, (False, False)),
        ([(0.1, 0.2)], +1, (False,)),
        ([(0.5, 0.7), (0.6, 0.8), (0.1, 0.2)], +1, (True, True, False)),
        ([(0.1, 0.2), (0.3, 0.4), (0.5, 0.6)], +1, (False, False, True)),
    ],
)
def test_only_disjoint_intervals_put_a_run_ahead(intervals, better, ahead):
    assert clearly_ahead([interval(*i) for i in intervals], better) == ahead


def test_a_missing_result_or_interval_is_never_compared():
    bare = Result("x", 0.9, None, None, None)
    assert clearly_ahead([None, bare, interval(0.1, 0.2)], +1) == (False, False, False)


def test_directions_and_groups():
    assert [measure(n).better for n in ("accuracy", "nll", "brier", "ece", "pgd_l2/0.5", "fid")] == [
        1,
        -1,
        -1,
        -1,
        1,
        0,
    ]
    assert measure("fid").label == "fid"
    assert measure("pgd_linf/0.1").label == "Under PGD, L∞\u00a0≤\u00a00.1, %"


@pytest.mark.parametrize(
    ("value", "percent", "text"),
    [(0.9722, True, "97.2"), (0.1234, False, "0.123"), (-1.5, False, "−1.500"), (12345.678, False, "12346")],
)
def test_numbers_as_printed(value, percent, text):
    assert number(value, percent) == text


def test_numbers_that_are_not_finite_have_words():
    assert number(float("nan")) == "not a number"
    assert number(float("inf")) == "∞"


def test_grey_levels_are_named():
    assert radius_text("0.031373") == "0.031373 (8/255)"
    assert radius_text("0.1") == "0.1"
    assert radius_text("0.2") == "0.2"
    assert radius_text("adaptive") == "adaptive"


def test_mean_and_worst_are_over_the_sets_and_worst_is_highest_for_fpr(make_run):
    run = read_run(make_run(ood={"letters": 0.9, "noise": 0.7}))
    auroc, fpr = (ood_matrix([run], metric) for metric in ("auroc", "fpr95"))
    assert (auroc.means[0], auroc.worst[0]) == ("0.800", "0.700")
    assert (fpr.means[0], fpr.worst[0]) == ("0.200", "0.300")


def test_a_set_that_one_run_lacks_leaves_its_mean_empty(make_run):
    runs = [read_run(make_run("a")), read_run(make_run("b", ood={"letters": 0.9}))]
    means = ood_matrix(runs, "auroc").means
    assert means[0]
    assert means[1] == ""


def test_differing_settings_are_found_at_any_depth(make_run):
    runs = [read_run(make_run("a", network="small")), read_run(make_run("b", network="wide"))]
    table = settings_table([run.config for run in runs], differing=True)
    assert table == [("network.kind", ("small", "wide"))]


def test_the_sentence_holds_the_main_numbers(make_run):
    paths = [make_run("jem"), make_run("plain", jem=False, accuracy=0.981, ood={"letters": 0.8, "noise": 0.6})]
    runs = [read_run(path) for path in paths]
    assert in_short(runs, labels(runs)).replace("\u00a0", " ") == (
        "In the order jem and plain: accuracy 97.2 % and 98.1 %; expected calibration error 2.7 % and 2.7 %; "
        "AUROC of log p(x) 0.950 and 0.700 on average over 2 out-of-distribution sets, "
        "0.912 (letters) and 0.600 (noise) on the worst; accuracy 52.0 % and 52.0 % under L∞ attack of radius 0.05."
    )
    assert title(runs, labels(runs)) == "jem and plain, compared on digits"


def test_of_many_runs_the_sentence_gives_the_range(make_run):
    runs = [read_run(make_run(f"run-{i}", accuracy=0.9 + i / 100, missing=("figures",))) for i in range(4)]
    text = in_short(runs, labels(runs)).replace("\u00a0", " ")
    assert text.startswith("Over 4 runs, from the lowest value to the highest: accuracy 90.0 to 93.0 %;")
    assert "AUROC of log p(x) 0.950 to 0.950 on average" in text
    assert title(runs, labels(runs)) == "4 runs, compared on digits"


def test_runs_of_one_name_are_told_apart(make_run):
    runs = [read_run(make_run("first/jem")), read_run(make_run("second/jem"))]
    assert labels(runs) == ["first/jem", "second/jem"]
    assert labels([runs[0], runs[0]]) == ["first/jem (1)", "first/jem (2)"]
