"""The benchmark of serving, at its toy size, writes what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "serving.py"


def test_it_loads_attacks_and_counts(digits_run, tmp_path):
    out = tmp_path / "serving.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--toy", "--run", digits_run.path, "--json", out],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text())
    for name in ("micro_batching", "one_by_one"):
        assert written[name]["lost"] == 0
        assert set(written[name]["statuses"]) == {"200"}
        assert written[name]["p50_ms"] <= written[name]["p99_ms"] <= written[name]["slowest_ms"]
    assert written["one_by_one"]["inputs_a_batch"] == 1
    assert written["micro_batching"]["inputs_a_batch"] >= 1
    assert written["fuzz"]["server_errors"] == 0
    assert sum(written["fuzz"]["statuses"].values()) == written["fuzz"]["uploads"] == 42
    assert written["openapi"]["failures"] == 0
    assert written["healthy"] is True
