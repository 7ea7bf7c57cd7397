"""Tables of run directories made by hand, against exact tests and against what must not be tested."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from jemstone.errors import ConfigError, RunError
from jemstone.evaluation.compare import HEADLINE, compare_runs
from jemstone.runs import labels

N, M = 200, 120
PROTOCOL = {"name": "v1", "common": {"seed": 0}, "calibration": {"bins": 15}, "robustness": {"images": 60}, "ood": {}}


def ece(correct, confidence, bins=15):
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(which, weights=correct - confidence, minlength=bins)).sum() / len(correct))


def model(seed, *, skill=0.7, detects=1.0, robust=0.4):
    """Arrays per example of a made-up model; the examples' difficulty is the same for all models."""
    hard = np.random.default_rng(0).random(N)
    rng = np.random.default_rng(seed)
    correct = (0.8 * hard + 0.2 * rng.random(N)) < skill
    calibration = {"correct": correct, "confidence": rng.uniform(0.3, 1, N), "nll": rng.exponential(3 - 2.5 * skill, N)}
    scores = {"log_density/test": rng.normal(detects, 1, N)}
    scores |= {f"log_density/ood/{name}": rng.normal(shift, 1, M) for name, shift in (("near", 0.5), ("far", 0.0))}
    return {"calibration": calibration, "ood": scores, "robustness": {"pgd_linf/0.03": rng.random(60) < robust}}


def results_of(sections):
    c, s = sections["calibration"], sections["ood"]
    values = {"accuracy": c["correct"].mean(), "nll": c["nll"].mean(), "ece": ece(c["correct"], c["confidence"])}
    inside, areas = s["log_density/test"], {}
    for name in ("near", "far"):
        scores = np.concatenate([inside, s[f"log_density/ood/{name}"]])
        areas[name] = roc_auc_score([1] * N + [0] * M, scores)
        values[f"ood/{name}/log_density/auroc"] = areas[name]
    values["ood_mean/far/log_density/auroc"] = np.mean(list(areas.values()))
    values["pgd_linf/0.03"] = sections["robustness"]["pgd_linf/0.03"].mean()
    values |= {"generation/fid": 30.0 + c["nll"][0], "temperature": 1.5, "likelihood/test": -100.0 - c["nll"][0]}
    return {name: float(value) for name, value in values.items()}


def write(path, sections, *, digest="d", protocol=PROTOCOL, results=None, seed=0, data="digits"):
    path.mkdir(parents=True)
    config = {"recipe": "jem-small", "seed": seed}
    info = {"format": 1, "config": config, "data": {"name": data, "digest": digest}}
    rows = [
        {"name": name, "value": value, "low": value - 0.1, "high": value + 0.1, "n": N}
        for name, value in (results or results_of(sections)).items()
    ]
    figures = {"protocol": protocol, "step": 10, "sections": {"ood": {"near": [], "far": ["near", "far"]}}}
    for name, content in (("config", info), ("results", rows), ("figures", figures)):
        (path / f"{name}.json").write_text(json.dumps(content))
    (path / "evaluation").mkdir()
    for name, arrays in sections.items():
        np.savez(path / "evaluation" / f"{name}.npz", **arrays)
    return path


def compare(*paths, metrics=("*",), resamples=999, **more):
    return compare_runs(paths, metrics=metrics, resamples=resamples, **more)


def cells(comparison, row):
    return {c.name: cell for c, cell in zip(comparison.columns, comparison.rows[row].cells, strict=True)}


TESTED = {
    "accuracy", "nll", "ece", "ood/near/log_density/auroc", "ood/far/log_density/auroc",
    "ood_mean/far/log_density/auroc", "pgd_linf/0.03",
}  # fmt: skip


def test_a_better_run_is_marked_and_its_copy_is_not(tmp_path):
    first = write(tmp_path / "first", model(1))
    good = write(tmp_path / "good", model(2, skill=0.95, detects=3.0, robust=0.95), seed=4)
    copy = write(tmp_path / "copy", model(1))
    table = compare(first, good, copy)
    better, same, reference = cells(table, 1), cells(table, 2), cells(table, 0)
    assert table.tests == 2 * len(TESTED)
    assert {name for name, cell in better.items() if cell.p is not None} == TESTED
    for name in TESTED - {"ece"}:
        assert better[name].significant, name
        assert better[name].better is True, name
    for name, cell in same.items():
        assert not cell.significant
        assert cell.p == (1.0 if name in TESTED else None)
        assert cell.better is None
        assert reference[name].p is None
    assert better["accuracy"].value == pytest.approx(model(2, skill=0.95)["calibration"]["correct"].mean())
    assert (better["accuracy"].low, better["accuracy"].n) == (better["accuracy"].value - 0.1, N)
    assert (table.rows[1].label, table.rows[1].recipe, table.rows[1].seed) == ("good", "jem-small", 4)
    assert (table.reference, table.data, table.protocol) == ("first", "digits", "v1")


def test_seen_from_the_better_run_the_other_is_worse(tmp_path):
    good = write(tmp_path / "good", model(2, skill=0.95, detects=3.0, robust=0.95))
    poor = write(tmp_path / "poor", model(1))
    worse = cells(compare(good, poor), 1)
    for name in TESTED - {"ece"}:
        assert worse[name].significant
        assert worse[name].better is False, name


def test_p_of_accuracy_is_near_mcnemars(tmp_path):
    a, b = model(1, skill=0.7), model(2, skill=0.76)
    right = [m["calibration"]["correct"] for m in (a, b)]
    only = [int((right[i] & ~right[1 - i]).sum()) for i in (0, 1)]
    exact = binomtest(only[0], sum(only)).pvalue
    table = compare(write(tmp_path / "a", a), write(tmp_path / "b", b), metrics=["accuracy"], resamples=4000)
    assert 0.001 < exact < 0.1
    assert cells(table, 1)["accuracy"].p == pytest.approx(exact, abs=0.03)


def test_holm_counts_all_cells_of_the_table(tmp_path):
    runs = [write(tmp_path / str(i), model(i, skill=0.7 + 0.05 * i)) for i in range(4)]
    one = compare(*runs[:2], metrics=["nll"])
    many = compare(*runs)
    p, adjusted = zip(*((c.p, c.p_adjusted) for row in many.rows for c in row.cells if c.p is not None), strict=True)
    assert cells(one, 1)["nll"].p == cells(one, 1)["nll"].p_adjusted == cells(many, 1)["nll"].p
    assert len(p) == many.tests == 3 * len(TESTED)
    assert min(adjusted) == pytest.approx(min(1.0, len(p) * min(p)))
    flags = [c.significant for row in many.rows for c in row.cells if c.p is not None]
    assert flags == [value <= many.alpha for value in adjusted]


def test_a_mean_over_sets_resamples_its_sets_jointly(tmp_path):
    a, b = model(1), model(2, detects=1.2)
    for arrays in (a["ood"], b["ood"]):  # outside examples all alike: only the inside draw, which is shared, matters
        arrays["log_density/ood/far"] = arrays["log_density/ood/near"] = np.zeros(M)
    table = compare(write(tmp_path / "a", a), write(tmp_path / "b", b), metrics=["ood*"])
    got = cells(table, 1)
    near, far, mean = (got[f"{which}/log_density/auroc"].p for which in ("ood/near", "ood/far", "ood_mean/far"))
    assert near == far == mean
    assert 0.01 < mean < 0.9


def why(comparison, name):
    return [note for note in comparison.notes if note.startswith("Not tested") and name in note]


def test_what_cannot_be_tested_is_said(tmp_path):
    table = compare(write(tmp_path / "a", model(1)), write(tmp_path / "b", model(2)), write(tmp_path / "c", model(3)))
    assert why(table, "generation/fid") == [
        "Not tested: generation/fid. Reason: there is no paired test for such a number."
    ]
    assert "neither direction" in why(table, "temperature")[0]
    assert "log Z" in why(table, "likelihood/test")[0]
    assert len(table.notes) == 3


def test_other_data_are_not_tested(tmp_path):
    a, b = write(tmp_path / "a", model(1)), write(tmp_path / "b", model(2, skill=1.0), digest="other", data="letters")
    table = compare(a, b)
    assert table.tests == 0
    assert any("b was measured on other data (letters) than a (digits)" in note for note in table.notes)
    assert "Reason: different data." in why(table, "accuracy")[0]


def test_data_without_a_digest_are_not_known_to_be_the_same(tmp_path):
    paths = [write(tmp_path / str(i), model(i), digest="") for i in range(2)]
    assert compare(*paths).tests == 0


def test_another_subset_is_not_tested_and_the_rest_is(tmp_path):
    protocol = PROTOCOL | {"robustness": {"images": 61}}
    table = compare(write(tmp_path / "a", model(1)), write(tmp_path / "b", model(2), protocol=protocol))
    tested = {name for name, cell in cells(table, 1).items() if cell.p is not None}
    assert tested == TESTED - {"pgd_linf/0.03"}
    assert "Not tested of b against a: pgd_linf/0.03. Reason: different protocols." in table.notes
    assert any("another protocol than a; it differs in robustness.images" in note for note in table.notes)


def test_another_seed_of_the_protocol_draws_other_subsets(tmp_path):
    protocol = PROTOCOL | {"common": {"seed": 1}}
    table = compare(write(tmp_path / "a", model(1)), write(tmp_path / "b", model(2), protocol=protocol))
    assert {name for name, cell in cells(table, 1).items() if cell.p is not None} == {"accuracy", "nll", "ece"}


def test_other_bins_make_another_error(tmp_path):
    protocol = PROTOCOL | {"calibration": {"bins": 10}}
    table = compare(write(tmp_path / "a", model(1)), write(tmp_path / "b", model(2), protocol=protocol))
    assert "different bins" in why(table, "ece")[0]
    assert cells(table, 1)["nll"].p is not None


def test_resamples_and_batch_size_of_a_protocol_do_not_hinder_a_test(tmp_path):
    flat = [{"name": "v0", "seed": 0, "resamples": 10 + i, "batch_size": 8 + i} for i in (0, 1)]
    paths = [write(tmp_path / str(i), model(i), protocol=flat[i]) for i in (0, 1)]
    assert compare(*paths).tests == len(TESTED)


def test_runs_without_values_per_example_are_named_with_the_remedy(tmp_path):
    old = model(2)
    results = results_of(old)
    a, b = write(tmp_path / "a", model(1)), write(tmp_path / "b", {}, results=results)
    table = compare(a, b)
    assert table.tests == 0
    assert f"jemstone evaluate {b}" in why(table, "accuracy")[0]


def test_arrays_that_belong_to_other_numbers_are_not_used(tmp_path):
    results = results_of(model(2)) | {"nll": 0.5}
    table = compare(write(tmp_path / "a", model(1)), write(tmp_path / "b", model(2), results=results))
    assert cells(table, 1)["nll"].p is None
    assert "evaluate both runs again" in why(table, "nll")[0]
    assert cells(table, 1)["accuracy"].p is not None


def test_arrays_of_another_length_are_not_paired(tmp_path):
    other = model(2)
    other["calibration"] = {name: values[:-1] for name, values in other["calibration"].items()}
    table = compare(write(tmp_path / "a", model(1)), write(tmp_path / "b", other))
    assert "different numbers of examples" in why(table, "accuracy")[0]
    assert "different numbers of examples" in why(table, "ece")[0]


def test_a_table_is_deterministic_and_depends_on_its_seed(tmp_path):
    paths = [write(tmp_path / str(i), model(i)) for i in (1, 2)]
    assert compare(*paths) == compare(*paths)
    assert cells(compare(*paths), 1)["nll"].p != cells(compare(*paths, seed=1), 1)["nll"].p


def test_one_run_is_a_table_without_tests(tmp_path):
    table = compare(write(tmp_path / "only", model(1)))
    assert (table.tests, len(table.rows), table.notes) == (0, 1, ())


def test_columns_are_those_asked_for_in_their_order(tmp_path):
    run = write(tmp_path / "run", model(1))
    assert [c.name for c in compare(run, metrics=["nll", "acc*"]).columns] == ["nll", "accuracy"]
    table = compare_runs([run], resamples=1)
    assert [c.name for c in table.columns] == [name for name in HEADLINE if name in results_of(model(1))]
    assert [c.better for c in table.columns][:3] == ["higher", "lower", "lower"]
    with pytest.raises(ConfigError, match="None of these runs has a result that fits 'bleu'"):
        compare(run, metrics=["bleu"])


def test_a_number_that_a_run_lacks_leaves_its_cell_empty(tmp_path):
    few = results_of(model(2))
    del few["nll"]
    table = compare(write(tmp_path / "a", model(1)), write(tmp_path / "b", model(2), results=few))
    assert cells(table, 1)["nll"] is None
    assert table.tests == len(TESTED) - 1


def test_runs_of_one_name_are_told_apart_by_their_parents(tmp_path):
    paths = [write(tmp_path / name, model(i)) for i, name in enumerate(("x/run", "y/run", "z/other"))]
    assert [row.label for row in compare(*paths).rows] == ["x/run", "y/run", "other"]


def test_too_few_resamples_for_the_number_of_tests_are_said(tmp_path):
    paths = [write(tmp_path / str(i), model(i)) for i in range(2)]
    assert any("resamples" in note for note in compare(*paths, resamples=50).notes)
    assert not any("resamples" in note for note in compare(*paths, resamples=999).notes)


def test_a_run_that_was_not_evaluated_names_the_command(tmp_path):
    path = write(tmp_path / "run", model(1))
    (path / "results.json").unlink()
    with pytest.raises(RunError, match=f"jemstone evaluate {path}"):
        compare(path)
    with pytest.raises(RunError, match="no run directory"):
        compare(tmp_path / "nowhere")


@pytest.mark.parametrize("broken", ["results", "figures"])
def test_a_malformed_file_names_the_command(tmp_path, broken):
    path = write(tmp_path / "run", model(1))
    (path / f"{broken}.json").write_text('[{"nonsense": 1}]')
    with pytest.raises(RunError, match=f"jemstone evaluate {path}"):
        compare(path)


@pytest.mark.parametrize(("settings", "message"), [({"alpha": 0.0}, "alpha"), ({"resamples": 0}, "resamples")])
def test_settings_out_of_range_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        compare(write(tmp_path / "run", model(1)), **settings)


def test_no_runs_are_refused():
    with pytest.raises(ConfigError, match="at least one"):
        compare()


def test_labels_take_as_many_parents_as_tell_runs_apart(tmp_path):
    paths = [tmp_path / part for part in ("A/x/run", "B/x/run", "C/run")]
    assert labels(paths) == ["A/x/run", "B/x/run", "C/run"]
    assert labels([paths[0], paths[0]]) == ["x/run (1)", "x/run (2)"]
    assert labels([paths[0], paths[0], paths[1]]) == ["A/x/run (1)", "A/x/run (2)", "B/x/run"]


def test_the_features_behind_a_fid_are_named(tmp_path):
    path = write(tmp_path / "run", model(1))
    figures = json.loads((path / "figures.json").read_text())
    figures["sections"]["generation"] = {"extractor": {"name": "pixels-64-ab", "dimension": 64, "logits": False}}
    (path / "figures.json").write_text(json.dumps(figures))
    told = "Samples of run were compared in the features pixels-64-ab."
    assert told in compare(path).notes
    assert told not in compare(path, metrics=("accuracy",)).notes
