"""Metrics against scikit-learn and brute force, intervals against a second bootstrap and closed forms."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from jemstone.errors import ConfigError, DataError
from jemstone.evaluation.detection import METRICS, aupr_in, aupr_out, auroc, detections, fpr95
from jemstone.evaluation.intervals import Result
from jemstone.rng import generator

ALL = {"auroc": auroc, "aupr_in": aupr_in, "aupr_out": aupr_out, "fpr95": fpr95}


def scores_with_ties():
    rng = np.random.default_rng(0)
    return rng.integers(0, 12, size=137) / 3 + 1.0, rng.integers(0, 12, size=80) / 3


def three_sets():
    rng = np.random.default_rng(1)
    outside = {"a": rng.normal(size=40) - 1, "b": rng.normal(size=70), "c": rng.integers(0, 3, size=55) - 2.0}
    return rng.normal(size=60), outside


def by_name(results: list[Result]) -> dict[str, Result]:
    return {result.name: result for result in results}


@pytest.mark.parametrize("shift", [0.0, 0.5, -5.0])
def test_the_areas_are_scikit_learns(shift):
    rng = np.random.default_rng(0)
    pairs = [scores_with_ties(), (rng.normal(size=60) + shift, rng.normal(size=90) * 1000), (np.ones(4), np.ones(3))]
    for inside, outside in pairs:
        truth = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
        scores = np.r_[inside, outside]
        assert auroc(inside, outside) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
        assert aupr_in(inside, outside) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
        assert aupr_out(inside, outside) == pytest.approx(average_precision_score(1 - truth, -scores), abs=1e-12)


def test_two_areas_on_paper():
    """Inside 3, 1; outside 2, 0. Out as positive, on negated scores: 0 first (hit), then 1, 2 (hit), 3."""
    inside, outside = np.array([3.0, 1.0]), np.array([2.0, 0.0])
    assert auroc(inside, outside) == 3 / 4
    assert aupr_in(inside, outside) == pytest.approx((1 + 2 / 3) / 2)
    assert aupr_out(inside, outside) == pytest.approx((1 + 2 / 3) / 2)
    assert aupr_out(np.array([3.0, 2.0, 1.0]), np.array([0.5])) == 1
    assert aupr_in(np.array([0.5]), np.array([3.0, 2.0, 1.0])) == 1 / 4


@pytest.mark.parametrize("m", [1, 7, 20, 60, 137])
def test_fpr95_is_its_definition(m):
    inside, outside = scores_with_ties()
    inside = inside[:m]
    threshold = max(t for t in inside if 100 * (inside >= t).sum() >= 95 * m)
    assert fpr95(inside, outside) == (outside >= threshold).mean()


@pytest.mark.parametrize("m", [7, 33, 137])
def test_fpr95_is_where_scikit_learns_curve_first_reaches_it(m):
    inside, outside = scores_with_ties()
    inside = inside[:m]
    truth = np.r_[np.ones(m), np.zeros(len(outside))]
    fpr, tpr, _ = roc_curve(truth, np.r_[inside, outside], drop_intermediate=False)
    assert fpr95(inside, outside) == pytest.approx(fpr[tpr >= 0.95].min(), abs=1e-12)


def test_fpr95_never_splits_a_tie():
    assert fpr95(np.array([1.0] * 99 + [0.0]), np.array([1.0, 0.5, 0.0, 0.0])) == 0.25
    assert fpr95(np.zeros(10), np.zeros(10)) == 1
    assert fpr95(np.arange(20.0), np.array([0.0, 0.5, 1.0, 30.0])) == 0.5  # 19 of 20 accepted: threshold 1


def test_fpr95_rounds_the_number_of_accepted_up():
    assert fpr95(np.arange(7.0), np.array([0.5])) == 1  # 95 % of 7 is 6.65, so all 7 are accepted: threshold 0
    assert fpr95(np.arange(20.0), np.array([0.5])) == 0  # 95 % of 20 is 19, exactly


def test_detections_reports_the_same_values_inside_their_intervals():
    inside, outside = scores_with_ties()
    results = detections("y", inside, {"x": outside}, resamples=200)
    metrics = ["auroc", "aupr_in", "aupr_out", "fpr95"]
    assert list(METRICS) == metrics
    assert [r.name for r in results] == [f"{p}/y/{m}" for p in ("ood/x", "ood_mean/far") for m in metrics]
    assert [r.value for r in results] == [ALL[m](inside, outside) for m in metrics] * 2
    assert all(r.low < r.value < r.high and r.n == 217 for r in results)
    assert results == detections("y", inside, {"x": outside}, resamples=200)
    assert results != detections("y", inside, {"x": outside}, seed=1, resamples=200)


def test_averages_are_of_their_groups():
    inside, outside = three_sets()
    found = by_name(detections("s", inside, outside, near=("b", "rotated"), resamples=20))
    for metric, function in ALL.items():
        values = {name: function(inside, scores) for name, scores in outside.items()}
        assert found[f"ood_mean/near/s/{metric}"].value == values["b"]
        assert found[f"ood_mean/far/s/{metric}"].value == pytest.approx((values["a"] + values["c"]) / 2, abs=1e-15)
    assert found["ood_mean/near/s/auroc"].n == 60 + 70
    assert found["ood_mean/far/s/auroc"].n == 60 + 40 + 55
    assert found["ood_mean/near/s/auroc"][1:] == found["ood/b/s/auroc"][1:]


def test_a_group_without_sets_has_no_average():
    inside, outside = three_sets()
    assert not [r for r in detections("s", inside, outside, resamples=2) if r.name.startswith("ood_mean/near")]
    everything = detections("s", inside, outside, near=list(outside), resamples=2)
    assert not [r for r in everything if r.name.startswith("ood_mean/far")]
    assert detections("s", inside, {}, resamples=2) == []


def test_joint_intervals_are_those_of_averages_over_the_same_draws():
    inside, outside = three_sets()
    resamples, seed = 80, 3
    shared = generator(seed, "bootstrap", "ood", "inside")
    streams = {name: generator(seed, "bootstrap", "ood", "outside", name) for name in outside}

    def draw(values, rng):
        return values[torch.randint(len(values), (len(values),), generator=rng).numpy()]

    drawn = []
    for _ in range(resamples):
        a = draw(inside, shared)
        others = [draw(scores, streams[name]) for name, scores in outside.items()]
        drawn.append([[metric(a, b) for metric in ALL.values()] for b in others])
    drawn = np.array(drawn)
    found = by_name(detections("s", inside, outside, near=("a", "b"), seed=seed, resamples=resamples))
    for i, metric in enumerate(ALL):
        for prefix, sets in {"ood/c": [2], "ood_mean/near": [0, 1], "ood_mean/far": [2]}.items():
            low, high = np.quantile(drawn[:, sets, i].mean(axis=1), (0.025, 0.975))
            result = found[f"{prefix}/s/{metric}"]
            assert (result.low, result.high) == (
                pytest.approx(min(low, result.value), abs=1e-12),
                pytest.approx(max(high, result.value), abs=1e-12),
            )


def test_an_average_is_less_certain_than_independent_sets_would_be():
    """Sets share the inside sample: where it is the small one, averaging over sets gains next to nothing."""
    rng = np.random.default_rng(0)
    inside = rng.normal(size=40)
    outside = {f"set {i}": rng.normal(size=4000) - 1 for i in range(4)}
    found = by_name(detections("s", inside, outside, resamples=400))
    width = {name: r.high - r.low for name, r in found.items()}
    alone = np.mean([width[f"ood/{name}/s/auroc"] for name in outside])
    assert width["ood_mean/far/s/auroc"] == pytest.approx(alone, rel=0.1)


def test_a_sets_result_does_not_depend_on_the_others():
    inside, outside = three_sets()
    together = by_name(detections("s", inside, outside, near=("c",), resamples=30))
    reordered = by_name(detections("s", inside, dict(reversed(outside.items())), resamples=30))
    for name, scores in outside.items():
        alone = by_name(detections("s", inside, {name: scores}, resamples=30))
        for metric in METRICS:
            key = f"ood/{name}/s/{metric}"
            assert together[key] == alone[key] == reordered[key]


def test_the_interval_of_auroc_has_the_width_of_hanley_and_mcneil():
    rng = np.random.default_rng(0)
    inside, outside = rng.exponential(2.0, size=500), rng.exponential(1.0, size=500)
    area = detections("s", inside, {"x": outside}, resamples=1000)[0]
    a, q1, q2 = area.value, area.value / (2 - area.value), 2 * area.value**2 / (1 + area.value)
    error = np.sqrt((a * (1 - a) + 499 * (q1 - a**2) + 499 * (q2 - a**2)) / 500**2)  # exact for exponentials
    assert area.high - area.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_a_perfect_separation_is_not_reported_as_certain():
    low, high = np.arange(30.0), np.arange(40.0) + 100
    found = by_name(detections("s", high, {"x": low, "y": low[:20]}, near=("x",), resamples=20))
    area, accepted = found["ood/x/s/auroc"], found["ood/x/s/fpr95"]
    assert (area.value, area.high, found["ood/x/s/aupr_in"].value, accepted.value, accepted.low) == (1, 1, 1, 0, 0)
    assert area.low == pytest.approx(0.025 ** (1 / 30))
    assert accepted.high == pytest.approx(1 - 0.025 ** (1 / 30))
    assert area.n == accepted.n == 70
    found = by_name(detections("s", low, {"x": high}, resamples=20))
    area, accepted = found["ood/x/s/auroc"], found["ood/x/s/fpr95"]
    assert (area.value, area.low, accepted.value, accepted.high) == (0, 0, 1, 1)
    assert area.high == pytest.approx(1 - 0.025 ** (1 / 30))
    assert accepted.low == pytest.approx(0.025 ** (1 / 40))


def test_an_average_of_perfect_separations_is_bounded_by_its_smallest_set():
    low, high = np.arange(30.0), np.arange(40.0) + 100
    found = by_name(detections("s", high, {"x": low, "y": low[:20]}, resamples=20))
    area, accepted = found["ood_mean/far/s/auroc"], found["ood_mean/far/s/fpr95"]
    assert (area.value, area.low, area.n) == (1, pytest.approx(0.025 ** (1 / 20)), 90)
    assert (accepted.value, accepted.high) == (0, pytest.approx(1 - 0.025 ** (1 / 20)))


@pytest.mark.parametrize("bad", [np.array([np.nan, 1.0]), np.array([np.inf]), np.array([])])
def test_scores_that_cannot_be_ranked_are_refused(bad):
    with pytest.raises(DataError, match="ood/x/s: scores must be finite and not empty"):
        detections("s", np.ones(3), {"fine": np.ones(2), "x": bad})
    with pytest.raises(DataError, match="ood/x/s: scores must be finite and not empty"):
        detections("s", bad, {"x": np.ones(3)})


def test_no_resamples_are_refused():
    with pytest.raises(ConfigError, match="at least one resample"):
        detections("s", np.ones(3), {"x": np.ones(3)}, resamples=0)


def test_a_value_lies_in_its_interval_even_after_one_resample():
    inside, outside = scores_with_ties()
    for seed in range(5):
        results = detections("s", inside, {"x": outside}, seed=seed, resamples=1)
        assert all(r.low <= r.value <= r.high for r in results)
