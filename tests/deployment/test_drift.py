"""Drift against its definitions, by hand and by simulation."""

import json
import math
import threading

import numpy as np
import pytest
from scipy.special import kolmogorov

from jemstone.cli import main
from jemstone.deployment.drift import (
    DriftMonitor,
    drift,
    population_stability,
    stability_by_chance,
    verdict,
    verdicts,
    windows,
)
from jemstone.errors import ConfigError, DataError

REFERENCE, SAMPLE = np.arange(100.0), np.r_[np.full(30, -5.0), np.arange(50.0, 100.0), np.full(20, 200.0)]


def test_psi_by_hand():
    # Nine edges at 9.9, 19.8, ..., 89.1: ten of the reference in each bin; of the sample 30 in the first, none in the
    # second to fifth, ten in each of the others, and 20 more in the last.
    q = np.array([30, 0, 0, 0, 0, 10, 10, 10, 10, 30]) + 0.5
    p = np.full(10, 10.5)
    expected = sum((a - b) / 105 * math.log(a / b) for a, b in zip(q, p, strict=True))
    assert population_stability(REFERENCE, SAMPLE) == pytest.approx(expected)
    assert population_stability(REFERENCE, REFERENCE) == 0
    assert population_stability(np.zeros(10), -np.ones(10)) == pytest.approx(2 * (10 / 11) * math.log(10.5 / 0.5))


def test_ks_by_its_definition():
    found = drift(REFERENCE, SAMPLE, threshold=55)
    at = np.union1d(REFERENCE, SAMPLE)
    distance = max(abs(np.mean(x >= REFERENCE) - np.mean(x >= SAMPLE)) for x in at)
    assert found.ks == pytest.approx(distance)
    assert found.p_value == pytest.approx(kolmogorov(math.sqrt(50) * distance), rel=0.5)  # the limit law, en = 50
    assert found.foreign == 0.35
    assert (found.n, found.median) == (100, 69)


def test_what_is_not_a_number_is_as_foreign_as_can_be():
    found = drift(REFERENCE, np.array([np.nan, -np.inf, 50.0, 60.0]), threshold=10)
    assert found.foreign == 0.5
    assert found.ks == pytest.approx(0.5)
    assert np.isfinite(found.psi)
    for reference in (np.array([]), np.array([0.0, np.nan]), np.array([0.0, -np.inf])):
        with pytest.raises(DataError, match="cannot be compared"):
            drift(reference, SAMPLE)
    with pytest.raises(DataError, match="a sample of 0"):
        drift(REFERENCE, np.array([]))


@pytest.mark.parametrize(("m", "n"), [(72, 100), (500, 200)])
def test_no_false_alarms_beyond_the_level_and_psi_as_chance_has_it(m, n):
    rng = np.random.default_rng(0)
    times, level = 500, 0.05
    found = [drift(rng.gumbel(size=m), rng.gumbel(size=n)) for _ in range(times)]
    alarms = np.mean([one.p_value < level for one in found])
    assert alarms < level + 3 * math.sqrt(level * (1 - level) / times)
    assert alarms > 0.02  # not far below either, which would cost power
    psi = np.array([one.psi for one in found])
    expected = stability_by_chance(np.arange(float(m)), n)
    assert expected == pytest.approx(9 * (1 / m + 1 / n))
    assert abs(psi.mean() / expected - 1) < 0.12  # smoothing takes some off where bins are small
    assert psi.std() == pytest.approx(expected * math.sqrt(2 / 9), rel=0.2)


def test_a_shift_is_found():
    rng = np.random.default_rng(1)
    shifted = [drift(rng.normal(size=500), rng.normal(0.5, size=300)) for _ in range(100)]
    assert np.mean([one.p_value < 0.05 for one in shifted]) > 0.95
    # Jeffreys' divergence of two unit normals half a unit apart is 1/4; bins lose some of it, chance adds some.
    mean = np.mean([one.psi - one.psi_by_chance for one in shifted])
    assert 0.2 < mean < 0.27
    assert "drift" in verdict(shifted[0], 0.05)


def test_many_windows_raise_no_more_alarms_than_one():
    rng = np.random.default_rng(2)
    times, alarms = 40, 0
    for _ in range(times):
        reference, stream = rng.normal(size=300), rng.normal(size=1000)
        found = [drift(reference, part) for part in windows(stream, 100)]
        assert len(found) == 10
        alarms += any(word != "no drift seen" for word in verdicts(found))
    assert alarms / times < 0.05 + 3 * math.sqrt(0.05 * 0.95 / times)
    late = np.r_[rng.normal(size=1000), rng.normal(2, size=500)]
    words = verdicts([drift(rng.normal(size=300), part) for part in windows(late, 250)])
    assert words == ["no drift seen"] * 4 + ["large drift"] * 2


def test_words():
    one = drift(REFERENCE, REFERENCE)._replace(p_value=0.01, psi=0.2, psi_by_chance=0.05)
    assert verdict(one, 0.05) == "moderate drift"
    assert verdict(one._replace(psi=0.31), 0.05) == "large drift"
    assert verdict(one._replace(psi=0.1), 0.05) == "small drift"
    assert verdict(one, 0.01) == "no drift seen"
    assert verdict(one._replace(p_value=math.nan), 0.05) == "no drift seen"
    assert verdicts([one] * 5) == ["no drift seen"] * 5


def test_windows_follow_each_other_and_the_last_takes_what_is_left():
    parts = windows(np.arange(11.0), 3)
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9, 10]]
    assert [len(part) for part in windows(np.arange(2.0), 3)] == [2]
    with pytest.raises(ConfigError, match="at least one"):
        windows(np.arange(2.0), 0)


def test_a_monitor_looks_at_the_last_window():
    monitor = DriftMonitor(REFERENCE[::-1], window=4, threshold=10)
    assert monitor.statistics() == {"n": 0}
    monitor.update(np.array([1.0, 2.0, 3.0]), np.array([True, True, True]))
    monitor.update(np.array([70.0, 80.0, 90.0]), np.array([False, False, False]))
    found = monitor.statistics()
    assert found.pop("accepted") == 0.25
    assert found == pytest.approx(drift(REFERENCE, np.array([3.0, 70.0, 80.0, 90.0]), 10)._asdict())
    assert "accepted" not in _updated(DriftMonitor(REFERENCE, window=2)).statistics()
    with pytest.raises(ConfigError, match="window=0"):
        DriftMonitor(REFERENCE, window=0)


def _updated(monitor):
    monitor.update(np.array([1.0]))
    return monitor


def test_threads_may_share_a_monitor():
    monitor, problems = DriftMonitor(REFERENCE, window=300), []

    def work(value):
        try:
            for _ in range(50):
                monitor.update(np.full(10, value), np.ones(10, bool))
                assert monitor.statistics()["n"] <= 300
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert monitor.statistics()["n"] == 300


def test_the_command(digits_run, tmp_path, capsys):
    def run(*arguments):
        status = main(["drift", str(digits_run.path), *map(str, arguments)])
        return status, capsys.readouterr()

    out = tmp_path / "new" / "drift.json"
    status, printed = run("--current", "digits", "--json", out)
    assert status == 0
    assert "no drift seen" in printed.out
    same = json.loads(out.read_text())
    assert same["drift"] is False
    assert same["windows"][0]["n"] == 360  # the test split
    assert same["reference"]["count"] == 72

    noise = tmp_path / "noise.npz"
    np.savez(noise, test_images=np.random.default_rng(0).integers(0, 256, (120, 8, 8), dtype=np.uint8))
    figure = tmp_path / "drift.png"
    window = ("--window", 40, "--json", out, "--figure", figure)
    status, printed = run("--reference", "digits", "--current", noise, *window)
    assert status == 0
    assert printed.out.count("large drift") == 3
    found = json.loads(out.read_text())
    assert (found["drift"], found["reference"]["count"], len(found["windows"])) == (True, 360, 3)
    assert all(one["foreign"] > same["windows"][0]["foreign"] for one in found["windows"])
    assert figure.read_bytes().startswith(b"\x89PNG")

    status, printed = run("--current", "digits", "--figure", "drift.jpg")
    assert status == 1
    assert "ends in .png" in printed.err
    pytest.importorskip("pyarrow")
    status, printed = run("--current", tmp_path / "nothing.parquet")
    assert status == 1
    assert "cannot be read" in printed.err
