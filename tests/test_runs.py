"""The run directory: made once, read back, rewound, never half written."""

import json
import math

import pytest

from jemstone import runs
from jemstone.errors import RunError
from jemstone.runs import Run, write_atomically


def test_created_logged_and_read_back(tmp_path):
    run = Run.create(tmp_path / "deep" / "run", {"config": {"seed": 3}})
    run.log({"step": 1, "loss": 0.5})
    run.event("started", 0, reason="test")
    run.write_json("results.json", [1, 2])
    again = Run(run.path)
    assert again.info["config"] == {"seed": 3}
    assert again.rows("metrics.jsonl") == [{"step": 1, "loss": 0.5}]
    assert again.rows("events.jsonl") == [{"event": "started", "step": 0, "reason": "test"}]
    assert again.read_json("results.json") == [1, 2]
    assert again.rows("nothing.jsonl") == []


def test_rewind_forgets_what_lies_after_the_checkpoint(tmp_path):
    run = Run.create(tmp_path / "run", {})
    for step in (10, 20, 30):
        run.log({"step": step})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')
    assert [row["step"] for row in run.rows("metrics.jsonl")] == [10, 20, 30]
    for event in ("validation", "diverged"):
        run.event(event, 25)
    run.rewind(20)
    assert [row["event"] for row in run.rows("events.jsonl")] == ["diverged"]
    assert (run.path / "metrics.jsonl").read_text() == '{"step": 10}\n{"step": 20}\n'


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(RunError, match="no run directory"):
        Run(tmp_path / "missing")
    with pytest.raises(RunError, match=r"no config\.json"):
        Run(tmp_path)
    (tmp_path / "config.json").write_text('{"format": 99}')
    with pytest.raises(RunError, match="format 99"):
        Run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config\.json"):
        Run(tmp_path)


def test_an_existing_directory_is_never_overwritten(tmp_path):
    (tmp_path / "precious.txt").write_text("data")
    with pytest.raises(RunError, match="not empty"):
        Run.create(tmp_path, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Cannot make"):
        Run.create(tmp_path / "file" / "run", {})
    assert (tmp_path / "precious.txt").read_text() == "data"


def test_a_failed_write_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs.os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        write_atomically(path, json.dumps("new").encode())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_line_costs_itself_alone(tmp_path):
    run = Run.create(tmp_path / "run", {})
    run.log({"step": 10})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2\n')  # cut short by a kill; the resumed run went on below it
    run.log({"step": 30})
    assert run.rows("metrics.jsonl") == [{"step": 10}, {"step": 30}]
    run.rewind(30)
    assert (run.path / "metrics.jsonl").read_text() == '{"step": 10}\n{"step": 30}\n'


def test_the_leftovers_of_a_start_that_was_killed_do_not_make_a_directory_taken(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".config.json.4242.tmp").write_text('{"form')
    runs.require_free(folder)
    assert Run.create(folder, {"config": 1}).info["config"] == 1
    with pytest.raises(RunError, match="not empty"):
        runs.require_free(folder)


def test_what_is_not_finite_is_null_in_a_row_for_json_knows_neither(tmp_path):
    run = Run.create(tmp_path / "run", {})
    run.log({"step": 1, "loss": math.nan, "gap": -math.inf})
    run.event("diverged", 1, metrics={"loss": math.inf}, evidence={"loss": [0.5, math.nan]})
    for file in ("metrics.jsonl", "events.jsonl"):
        assert not {"NaN", "Infinity"} & set((run.path / file).read_text().replace(",", " ").split())
    assert run.rows("metrics.jsonl") == [{"step": 1, "loss": None, "gap": None}]
    (event,) = run.rows("events.jsonl")
    assert (event["metrics"], event["evidence"]) == ({"loss": None}, {"loss": [0.5, None]})


def test_a_full_disk_is_named_with_what_to_do(tmp_path, monkeypatch):
    run = Run.create(tmp_path / "run", {})

    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(run.path), "open", full)
    with pytest.raises(RunError, match=r"metrics\.jsonl: No space left on device\. Make room.*--resume .*run"):
        run.log({"step": 1})
    with pytest.raises(RunError, match=r"events\.jsonl"):
        run.event("started", 0)
