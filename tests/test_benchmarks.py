"""Benchmarks that have a toy size run at it, and write what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks"


def test_throughput_writes_its_numbers(tmp_path):
    out = tmp_path / "new" / "throughput.json"
    done = subprocess.run(
        [sys.executable, FOLDER / "throughput.py", "--quick", "--json", out],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"Written to {out}.\n")
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


def test_fewer_steps_gives_every_run_the_same_work(tmp_path):
    out = tmp_path / "fewer.json"
    done = subprocess.run(
        [sys.executable, FOLDER / "fewer_steps.py", "--quick", "--json", out, "--rows", tmp_path / "rows.jsonl"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
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
