"""What a run directory says, whole, half there, or damaged."""

import json
from pathlib import Path

import pytest

from jemstone.errors import RunError
from jemstone.report.read import read_run


def test_a_whole_run_is_read_as_it_was_written(make_run):
    run = read_run(make_run(steps=100, accuracy=0.9))
    assert run.config["recipe"] == "jem-small"
    assert run.result("accuracy").value == 0.9
    assert (run.result("accuracy").low, run.result("accuracy").n) == (0.9 - 0.02, 360)
    assert [row["step"] for row in run.metrics] == list(range(10, 101, 10))
    assert run.validation("accuracy")[0] == [100.0]
    assert run.evaluation.step == 100
    assert run.imported == {}
    assert [s.name for s in run.samples] == ["fresh", "attacked", "long_run", "data"]
    assert run.samples[0].caption == "One class per row, 20 steps."
    assert run.problems == ()


def test_a_truncated_last_line_is_passed_over_in_silence(make_run):
    path = make_run(steps=100)
    file = path / "metrics.jsonl"
    file.write_text(file.read_text()[:-30])
    run = read_run(path)
    assert [row["step"] for row in run.metrics] == list(range(10, 91, 10))
    assert run.problems == ()


def test_a_damaged_line_in_the_middle_is_named(make_run):
    path = make_run(steps=100)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    lines[3] = lines[3][:20]
    (path / "metrics.jsonl").write_text("\n".join(lines))
    run = read_run(path)
    assert len(run.metrics) == 9
    assert "metrics.jsonl has 1 damaged line" in run.problems[0]


def test_rolled_back_steps_give_way_to_those_that_replaced_them(make_run):
    path = make_run(missing=("metrics",))
    steps = [(10, 1.0), (20, 2.0), (30, 99.0), (20, 2.5), (30, 3.0)]
    (path / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "class_nll": v}) + "\n" for s, v in steps))
    assert read_run(path).curve("class_nll") == ([10, 20, 30], [1.0, 2.5, 3.0])


def test_numbers_that_are_none_or_nan_are_no_points(make_run):
    path = make_run(missing=("metrics",))
    (path / "metrics.jsonl").write_text('{"step": 1, "a": null}\n{"step": 2, "a": NaN}\n{"step": 3, "a": 1}\n[1]\n')
    assert read_run(path).curve("a") == ([3], [1])


@pytest.mark.parametrize("name", ["results.json", "figures.json"])
@pytest.mark.parametrize("content", ["{broken", '"a string"', ""])
def test_a_damaged_optional_file_counts_as_missing_and_is_named(make_run, name, content):
    path = make_run()
    (path / name).write_text(content)
    run = read_run(path)
    assert name in run.problems[0]
    assert run.config


def test_what_is_no_run_is_refused_with_its_path_and_a_remedy(tmp_path: Path, make_run):
    with pytest.raises(RunError, match=r"nowhere does not exist\. .*jemstone train"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"empty is no run directory.*config\.json.*jemstone train"):
        read_run(tmp_path / "empty")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 1, "conf', r"config\.json cannot be read .*Restore it"),
        ("[1, 2]", r"config\.json holds no configuration"),
        ('{"format": 1}', r"config\.json holds no configuration"),
        ('{"format": 9, "config": {}}', r"config\.json has format 9, .*reads format 1"),
    ],
)
def test_a_damaged_config_is_refused(make_run, content, message):
    path = make_run()
    (path / "config.json").write_text(content)
    with pytest.raises(RunError, match=message) as caught:
        read_run(path)
    assert str(path) in str(caught.value)
