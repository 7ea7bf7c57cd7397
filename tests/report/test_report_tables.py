"""Names, directions and the rule of who is marked."""

import pytest

from jemstone.report.measures import measure, number, radius_text
from jemstone.report.read import Result, read_run
from jemstone.report.summary import in_short, title
from jemstone.report.tables import (
    clearly_ahead,
    comparison,
    headline,
    headline_radius,
    ood_matrix,
    samples_matrix,
    settings_table,
)
from jemstone.runs import labels


def names_of(records):
    return labels([record.path for record in records])


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


LABELS = {
    "pgd_linf/0.1": ("Accuracy under attack", "Under PGD, L∞\u00a0≤\u00a00.1, %", 1, True),
    "autoattack_l2/0.5": ("Accuracy under attack", "Under AutoAttack, L2\u00a0≤\u00a00.5, %", 1, True),
    "scaled/ece": ("Calibration after temperature scaling", "Expected calibration error (ECE), %", -1, True),
    "refined/5/transfer_linf/0.1": (
        *("Refinement defence", "After 5 steps, under PGD on the plain classifier, L∞\u00a0≤\u00a00.1, %", 1, True),
    ),
    "corruption/mean/ece": ("Corruptions", "Mean of kinds: ECE, %", -1, True),
    "by_class/fid": ("Samples", "FID, samples of p(x|y)", -1, False),
    "real/fid": ("Samples", "FID, test inputs: the floor", 0, False),
    "ood_mean/far/log_density/fpr95": (
        *("Out-of-distribution detection", "FPR at 95 % TPR of log p(x), mean over far sets", -1, False),
    ),
    "ood/a/b/max_logit/auroc": ("Out-of-distribution detection", "AUROC of max logit against a/b", 1, False),
    "fid": ("Other measurements", "fid", 0, False),
    "scaled/fid": ("Other measurements", "scaled/fid", 0, False),
}


@pytest.mark.parametrize("name", LABELS)
def test_a_name_has_a_group_words_and_a_direction(name):
    found = measure(name)
    assert (found.group, found.label, found.better, found.percent) == LABELS[name]


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


def rows_of(matrix):
    return {title: [row.label for row in rows] for title, rows in matrix.groups}


def test_near_and_far_sets_stand_apart_with_their_means_as_measured(make_run):
    run = read_run(make_run(ood={"letters": 0.9, "noise": 0.7, "svhn": 0.8}))
    matrix = ood_matrix([run], "auroc")
    assert rows_of(matrix) == {"Near sets": ["letters", "mean of near"], "Far sets": ["noise", "svhn", "mean of far"]}
    means = [row.cells[0].exact for _, rows in matrix.groups for row in rows if row.mean]
    assert [float(mean) for mean in means] == [0.9, 0.75]
    assert matrix.columns == ("log_density", "max_probability", "approximate_mass")


def test_a_set_that_is_near_to_one_run_and_far_to_another_stands_once(make_run, edit):
    paths = [make_run("a"), make_run("b")]
    edit(
        paths[1] / "figures.json", lambda figures: figures["sections"]["ood"].update(near=[], far=["letters", "noise"])
    )
    matrix = ood_matrix([read_run(path) for path in paths], "auroc")
    assert rows_of(matrix) == {"Near sets": ["letters", "mean of near"], "Far sets": ["noise", "mean of far"]}


def test_worst_is_over_all_sets_and_highest_for_fpr(make_run):
    run = read_run(make_run(ood={"letters": 0.9, "noise": 0.7}))
    assert [ood_matrix([run], metric).worst[0] for metric in ("auroc", "fpr95")] == ["0.700", "0.300"]


def test_a_set_that_one_run_lacks_leaves_its_worst_empty(make_run):
    runs = [read_run(make_run("a")), read_run(make_run("b", ood={"letters": 0.9}))]
    worst = ood_matrix(runs, "auroc").worst
    assert worst[0]
    assert worst[1] == ""


def test_without_figures_sets_are_neither_near_nor_far(make_run):
    run = read_run(make_run(missing=("figures",)))
    assert rows_of(ood_matrix([run], "auroc")) == {"": ["letters", "noise"]}


def test_samples_are_told_by_source_and_the_floor_is_never_ahead(make_run):
    runs = [read_run(make_run("a")), read_run(make_run("b"))]
    matrix = samples_matrix(runs)
    assert matrix.columns == ("samples of p(x)", "test inputs: the floor")
    fid, memorised = matrix.groups[0][1]
    assert [cell.text for cell in fid.cells] == ["12.345", "12.345", "3.500", "3.500"]
    assert [cell.text for cell in memorised.cells] == ["1.0", "1.0", "", ""]
    assert samples_matrix([read_run(make_run("c", missing=("results",)))]) is None


def test_detection_and_samples_are_not_told_twice(make_run):
    groups = comparison([read_run(make_run())])
    assert list(groups) == [
        *("Classification", "Calibration", "Calibration after temperature scaling", "Corruptions"),
        *("Accuracy under attack", "Refinement defence", "Distal adversarials", "Long-run chains", "Likelihood"),
    ]


@pytest.mark.parametrize(
    ("robust", "pgd", "auto"),
    [
        ({"pgd_linf/0.01": 1, "pgd_linf/0.1": 1, "pgd_linf/0.03": 1}, "0.03", ""),
        ({"pgd_linf/0.01": 1, "pgd_linf/0.1": 1, "autoattack_linf/0.1": 1, "pgd_linf/0.03": 1}, "0.1", "0.1"),
        ({"pgd_linf/0.01": 1, "autoattack_linf/0.2": 1}, "0.01", "0.2"),
        ({"pgd_linf/0": 1, "pgd_linf/x": 1}, "", ""),
    ],
)
def test_the_headline_radius_is_the_middle_one_that_both_attacks_share(make_run, robust, pgd, auto):
    runs = [read_run(make_run(robust=robust)), read_run(make_run("unattacked", robust={}))]
    assert headline_radius(runs, "pgd_linf") == pgd
    assert headline_radius(runs, "autoattack_linf") == auto


def test_the_headline_leaves_out_what_was_not_measured(make_run):
    run = read_run(make_run(robust={"pgd_linf/0.05": 0.52, "autoattack_linf/0.05": 0.31}))
    labels = [row.label for row in headline([run])]
    assert "Under AutoAttack, L∞\u00a0≤\u00a00.05, %" in labels
    assert "Bits per dimension, test inputs" not in labels
    assert headline([read_run(make_run("bare", missing=("results",)))]) == []


def test_differing_settings_are_found_at_any_depth(make_run):
    runs = [read_run(make_run("a", network="small")), read_run(make_run("b", network="wide"))]
    table = settings_table([run.config for run in runs], differing=True)
    assert table == [("network.kind", ("small", "wide"))]


def test_the_sentence_holds_the_main_numbers(make_run):
    paths = [make_run("jem"), make_run("plain", jem=False, accuracy=0.981, ood={"letters": 0.8, "noise": 0.6})]
    runs = [read_run(path) for path in paths]
    assert in_short(runs, names_of(runs)).replace("\u00a0", " ") == (
        "In the order jem and plain: accuracy 97.2 % and 98.1 %; expected calibration error 2.7 % and 2.7 % "
        "(1.2 % and 1.2 % after temperature scaling); mean AUROC of log p(x) 0.912 and 0.800 over near sets, "
        "0.987 and 0.600 over far sets; accuracy 52.0 % and 52.0 % under L∞ attack of radius 0.05; "
        "FID of samples 12.345 and 12.345."
    )
    assert title(runs, names_of(runs)) == "jem and plain, compared on digits"


def test_of_many_runs_the_sentence_gives_the_range(make_run):
    runs = [read_run(make_run(f"run-{i}", accuracy=0.9 + i / 100, missing=("figures",))) for i in range(4)]
    text = in_short(runs, names_of(runs)).replace("\u00a0", " ")
    assert text.startswith("Over 4 runs, from the lowest value to the highest: accuracy 90.0 to 93.0 %;")
    assert "mean AUROC of log p(x) 0.912 to 0.912 over near sets" in text
    assert title(runs, names_of(runs)) == "4 runs, compared on digits"


def test_runs_of_one_name_are_told_apart(make_run):
    runs = [read_run(make_run("first/jem")), read_run(make_run("second/jem"))]
    assert names_of(runs) == ["first/jem", "second/jem"]
    assert names_of([runs[0], runs[0]]) == ["first/jem (1)", "first/jem (2)"]
