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


def test_step_compares_the_original_with_ours(tmp_path):
    out = tmp_path / "step.json"
    cells = ["--network", "mlp-8@6", "conv-4-2@1x8x8", "--chain-steps", "2", "--batch", "4", "--rounds", "2"]
    done = subprocess.run(
        [sys.executable, FOLDER / "step.py", *cells, "--memory", "--json", out],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text())
    assert written["convolution_peak_gflops"].keys() == {"float32", "bfloat16"}
    assert [row["network"] for row in written["rows"]] == ["mlp-8@6", "conv-4-2@1x8x8"]
    for row in written["rows"]:
        assert row["chain_steps"] == 2
        assert abs(row["ratio"] - row["plain_s"] / row["fast_s"]) < 0.2 * row["ratio"]  # both are rounded
        assert min(row["plain_gib"], row["fast_gib"]) > 0.05
