"""Benchmarks that have a toy size run at it, and write what they say."""

import importlib
import json
import re
import sys

import pytest

from benchmarked import FOLDER, run


def test_throughput_writes_its_numbers(tmp_path):
    out = tmp_path / "new" / "throughput.json"
    printed = run("throughput.py", "--quick", "--json", out)
    assert printed.endswith(f"Written to {out}.\n")
    written = json.loads(out.read_text())
    assert written["machine"]["threads"] == 1
    (found,) = written["networks"].values()
    assert found.keys() == {"execution", "reason", "scoring", "sampling", "memory"}
    steps = found["sampling"]["chain_steps_per_second"]
    for rates in (found["scoring"], steps):
        assert rates.keys() == {"plain", "fast", "ratio"}
        assert abs(rates["ratio"] - rates["fast"] / rates["plain"]) < 0.01
    for name, rate in found["sampling"]["samples_per_second"].items():
        assert abs(rate - steps[name] / 400) < 1e-3
    memory = found["memory"]["fast"]
    assert memory["score"].keys() == {"64", "256"}
    for peaks in memory["score"].values():
        assert 0.05 < peaks["beyond_input"] <= peaks["peak"] < 2
    assert 0.05 < memory["sample"]["beyond_output"] <= memory["sample"]["peak"] < 2


def test_step_compares_the_original_with_ours(tmp_path):
    out = tmp_path / "step.json"
    cells = ["--network", "mlp-8@6", "conv-4-2@1x8x8", "--chain-steps", "2", "--batch", "4", "--rounds", "2"]
    run("step.py", *cells, "--memory", "--json", out)
    written = json.loads(out.read_text())
    assert written["convolution_peak_gflops"].keys() == {"float32", "bfloat16"}
    assert [row["network"] for row in written["rows"]] == ["mlp-8@6", "conv-4-2@1x8x8"]
    for row in written["rows"]:
        assert row["chain_steps"] == 2
        assert abs(row["ratio"] - row["plain_s"] / row["fast_s"]) < 0.2 * row["ratio"]  # both are rounded
        assert min(row["plain_gib"], row["fast_gib"]) > 0.05


def test_speedrun_writes_what_its_docstring_says(tmp_path):
    out = tmp_path / "new" / "speedrun.json"
    printed = run("speedrun.py", "--toy", "--preset", "shared", "--every", "0", "--json", out)
    assert printed.endswith(f"Written to {out}.\n")
    written = json.loads(out.read_text())
    documented = (FOLDER / "speedrun.py").read_text().split('"""')[1].split("\n    machine\n")[1]
    names = re.findall(r"^    ([a-z][a-z_, ]*?)  ", documented, re.MULTILINE)
    assert written.keys() == {"machine", *", ".join(names).split(", ")}
    assert written["config"]["weights"]["joint"] == 1
    assert written["config"]["weights"]["class_nll"] == 0
    assert written["steps"] == written["config"]["steps"] == 15
    assert written["epochs"] == written["epochs_wanted"] == 0.75
    seconds = written["seconds"]
    parts = sum(seconds[name] for name in ("loading", "measuring", "starting", "training"))
    assert abs(seconds["total"] - parts) < 0.03
    assert min(seconds.values()) > 0
    assert written["within_minutes"] is True
    assert len(written["curve"]) == 15, "an evaluation after every step"
    for row in written["curve"]:
        assert row.keys() == {"seconds", "step", "accuracy", "nll", "energy_gap"}
    last = written["curve"][-1]
    assert (last["step"], last["seconds"]) == (15, seconds["total"])
    final = written["final"]
    assert last["accuracy"] == pytest.approx(final["accuracy"]["value"])
    assert final.keys() == {"accuracy", "ece", "nll", "fid", "samples", "chain_life", "features", "comparable"}
    assert (final["samples"], final["fid"]["n"], final["chain_life"], final["comparable"]) == (40, 40, 10, False)
    for target in written["targets"].values():
        assert {target[name] for name in ("accuracy", "fid", "minutes", "met")} == {None}
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_speedrun_has_no_more_steps_than_fit():
    sys.path.insert(0, str(FOLDER))
    try:
        speedrun, quality, presets = map(importlib.import_module, ("speedrun", "speedrun_quality", "speedrun_presets"))
    finally:
        sys.path.remove(str(FOLDER))
    timing = speedrun.Timing(starting=20.0, step=0.1)
    assert speedrun.affordable(200, 80, timing, 10_000) == 950  # 100 seconds are left, and 5 of them are a reserve
    assert speedrun.affordable(200, 80, timing, 300) == 300
    with pytest.raises(SystemExit, match="--minutes"):
        speedrun.affordable(200, 180, timing, 300)

    # 5 chain steps of two passes for 256 chains; real images and negatives forward, and back at twice the price.
    assert presets.forwards_per_step(presets.PRESETS["shared"]) == 5 * 2 * 256 + 3 * 2 * 256
    assert presets.forwards_per_step(presets.PRESETS["original"]) == 10 * 2 * 256 + 3 * 3 * 256
    assert presets.forwards_per_step(presets.PRESETS["sada"]) == 5 * 2 * 128 + 2 * 3 * (256 + 2 * 128)
    for config in presets.PRESETS.values():
        assert config.chains.steps / config.chains.restart_rate == 400

    def judged(accuracy, fid, comparable, minutes, toy=False):
        measured = {"accuracy": {"value": accuracy}, "fid": {"value": fid}, "comparable": comparable}
        return {name: target["met"] for name, target in quality.judged(measured, 60 * minutes, toy).items()}

    assert judged(0.93, 30.0, True, 24) == {"jem": True, "sada-jem": False}
    assert judged(0.96, 10.0, True, 24) == {"jem": True, "sada-jem": True}
    assert judged(0.96, 10.0, True, 26) == {"jem": False, "sada-jem": False}
    assert judged(0.96, 10.0, False, 24) == {"jem": None, "sada-jem": None}
    assert judged(0.96, 10.0, True, 24, toy=True) == {"jem": None, "sada-jem": None}
    assert judged(0.93, 39.0, True, 24) == {"jem": False, "sada-jem": False}


def test_fewer_steps_gives_every_run_the_same_work(tmp_path):
    out = tmp_path / "fewer.json"
    run("fewer_steps.py", "--quick", "--json", out, "--rows", tmp_path / "rows.jsonl")
    written = json.loads(out.read_text())
    assert written["summary"].keys() == {"K 5, rho 0.05", "K 5, rho 0.0125"}
    for row in written["rows"]:
        assert row["finished"]
        assert row["recoveries"] == 0
        last = row["curve"][-1]
        assert (last["step"], last["work"]) == (9, 9 * (6 + 5))  # the first to reach 90
        assert last["seconds"] > 0
        assert [point["step"] for point in row["sampled"]] == [3, 6, 9]
        assert row["to_accuracy"] is None  # nobody learns digits in nine steps
