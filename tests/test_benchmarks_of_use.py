"""Benchmarks of models at work, at toy size: they write what they say."""

import json

import pytest

from benchmarked import run


def test_bulk_survives_a_kill_in_little_memory(tmp_path):
    pytest.importorskip("pyarrow")
    out = tmp_path / "bulk.json"
    run("bulk.py", "--quick", "--json", out)
    written = json.loads(out.read_text())
    assert written["network"] == "conv-32"
    for name, images in (("npz", 300), ("folder", 40)):
        found = written[name]
        assert (found["images"], found["killed_at"]) == (images, images // 2)
        assert found["same_after_kill"] is True
        assert 0.05 < found["peak_gib"] < 2
        rates = found["per_second"]
        assert found["ratio"] == pytest.approx(rates["score"] / rates["bare"], rel=0.02)  # all are rounded


def test_abstention_measures_rankings_and_laws(tmp_path):
    out, figure = tmp_path / "abstention.json", tmp_path / "new" / "risk_coverage.svg"
    printed = run("abstention.py", "--toy", "--splits", "20", "--json", out, "--figure", figure)
    assert printed.endswith(f"Written to {out} and {figure}.\n")
    written = json.loads(out.read_text())
    assert written["asked"]["splits"] == 20
    (pair,) = written["pairs"].values()
    assert pair.keys() == {"classifier", "jem"}
    for found in pair.values():
        assert found["held_out"] == 180
        assert found["sets"]["exact_mean"] == pytest.approx(18 / 181, abs=1e-5)
        assert found["density"]["exact_mean"] == pytest.approx(9 / 181, abs=1e-5)
        for law in (found["sets"], found["density"]):
            assert abs(law["z"]) < 5
            assert law["splits_inside_95"] <= 20
        assert found["aurc"].keys() == {"test", "test + turned by 90 degrees"}
        for area in found["aurc"].values():
            assert 0 <= area["best possible"] <= min(area["max probability"], area["log density"]) < 1
        assert found["aurc"]["test"]["best possible"] < found["error_rate"]
        assert {"test accepted", "error", "turned by 90 degrees accepted"} < found["rule"].keys()
    assert "<svg" in figure.read_text()


def test_estimator_compares_every_model_on_the_same_rows(tmp_path):
    out = tmp_path / "estimator.json"
    printed = run("estimator.py", "--quick", "--workers", "1", "--rows", tmp_path / "rows.jsonl", "--json", out)
    assert "| accuracy | random forest | " in printed
    written = json.loads(out.read_text())
    assert written["steps"] == 20
    found = written["summary"]["iris"]
    for model in ("JEM", "logistic regression", "random forest"):
        assert found[f"{model}/accuracy"][0] > 0.6
        assert 0 <= found[f"{model}/ece"][0] < 0.7
    for model in ("JEM", "isolation forest", "Gaussian mixture"):
        for kind in ("held-out class", "shuffled", "uniform"):
            mean, spread = found[f"{model}/{kind}"]
            values = [row[f"{model}/{kind}"] for row in written["rows"]]
            assert mean == pytest.approx(sum(values) / 2, abs=1e-4)
            assert spread == pytest.approx(abs(values[0] - values[1]) / 2**0.5, abs=1e-4)
    assert found["Gaussian mixture/uniform"][0] > 0.9


def test_audit_ranks_flipped_labels(tmp_path):
    out = tmp_path / "audit.json"
    toy = ["--seeds", "1", "--steps", "3", "--workers", "1", "--json", out, "--rows", tmp_path / "rows.jsonl"]
    run("audit.py", *toy)
    written = json.loads(out.read_text())
    assert {(row["model"], row["sample"]) for row in written["summary"]} == {
        (name, sample)
        for name in ("classifier", "classifier, noise 0.3", "classifier, 15 epochs", "jem")
        for sample in ("in", "out")
    }
    assert all(row["flips"] == 65 for row in written["rows"])


def test_semi_supervised_scores_every_model(tmp_path):
    out = tmp_path / "semi.json"
    toy = ["--seeds", "2", "--steps", "3", "--workers", "1", "--json", out, "--rows", tmp_path / "rows.jsonl"]
    run("semi_supervised.py", *toy)
    found = {row["model"]: row for row in json.loads(out.read_text())["summary"]}
    assert found["label spreading"]["accuracy"][0] > 0.85
    assert found["jem"]["seeds"] == 2
