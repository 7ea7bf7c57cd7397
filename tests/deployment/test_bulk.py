"""Bulk scoring: the rows are what the predictor says of each input, whatever the inputs."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from jemstone import load_dataset
from jemstone.cli import main
from jemstone.data.images import to_uint8
from jemstone.deployment import bulk, bulk_blocks
from jemstone.deployment.bulk import score
from jemstone.deployment.bulk_parts import read_log_density
from jemstone.deployment.calibration import Policy
from jemstone.deployment.predictor import Predictor
from jemstone.errors import ConfigError, DataError, MissingExtra

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
IMAGES = to_uint8(load_dataset("digits").test.inputs)[..., 0][:130]
SMALL = {"part_rows": 50, "batch_size": 16}


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "images.npz"
    np.savez_compressed(path, images=IMAGES, labels=np.zeros(130))
    return path


def rows(path):
    return parquet.read_table(path).to_pylist()


def assert_says(row, expected, error=None):
    """A row is one prediction; numbers may differ by the rounding that another batch size brings."""
    if expected is None:
        assert error in row["error"]
        assert (row["accepted"], row["reason"]) == (False, "unreadable")
        assert {row[name] for name in ("label", "index", "probability", "log_density", "typicality")} == {None}
        assert row["candidates"] is None
        return
    assert row["error"] is None
    for name in ("label", "index", "accepted", "reason"):
        assert row[name] == getattr(expected, name), name
    assert row["candidates"] == list(expected.candidates)
    for name in ("probability", "log_density", "typicality"):
        assert row[name] == pytest.approx(getattr(expected, name), rel=1e-5, abs=1e-4), name


def test_rows_are_predictions_in_order(predictor, npz, tmp_path):
    out = tmp_path / "new" / "scores.parquet"
    told = []
    summary = score(predictor, npz, out, on_progress=lambda *numbers: told.append(numbers), **SMALL)
    found, expected = rows(out), predictor(IMAGES)
    assert [row["id"] for row in found] == [str(i) for i in range(130)]
    for row, one in zip(found, expected, strict=True):
        assert_says(row, one)
    assert len({row["reason"] for row in found}) > 1
    assert any(len(row["candidates"]) != 1 for row in found)
    kinds = (expected.accepted.sum(), expected.ambiguous.sum(), expected.foreign.sum())
    assert summary == (130, *kinds, 0)
    # blocks of 16, 16, 16 and 2 in each part of 50
    assert told == [(n, 130) for n in (16, 32, 48, 50, 66, 82, 98, 100, 116, 130)]
    assert sorted(path.name for path in out.parent.iterdir()) == ["scores.parquet"]
    assert parquet.ParquetFile(out).num_row_groups == 3


def test_scores_do_not_depend_on_threads_or_on_how_often_one_asks(predictor, npz, tmp_path, monkeypatch):
    one, other = tmp_path / "one.parquet", tmp_path / "other.parquet"
    score(predictor, npz, one, workers=1, **SMALL)
    summary = score(predictor, npz, other, workers=5, **SMALL)
    assert one.read_bytes() == other.read_bytes()
    monkeypatch.setattr(bulk, "score_spans", lambda *_: pytest.fail("it is finished"))
    assert score(predictor, npz, other, **SMALL) == summary


def test_an_image_that_is_none_is_a_row(predictor, tmp_path):
    root = tmp_path / "images"
    (root / "b" / "deep").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for name in ("z.png", "b/deep/a.PNG", "b/c.bmp", ".hidden/x.png", "b/.x.png"):
        Image.fromarray(IMAGES[len(name)]).save(root / name)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(root / "b/b.jpg")
    (root / "a.png").write_bytes(b"no image")
    (root / "b/d.png").write_bytes((root / "z.png").read_bytes()[:60])
    (root / "gone.png").symlink_to(root / "nowhere.png")
    (root / "notes.txt").write_text("not an input")
    out = tmp_path / "scores.parquet"
    summary = score(predictor, root, out, part_rows=3, batch_size=2)
    names = ["a.png", "b/b.jpg", "b/c.bmp", "b/d.png", "b/deep/a.PNG", "gone.png", "z.png"]
    errors = {"a.png": "it is none of", "b/d.png": "b/d.png cannot be read", "gone.png": "No such file"}
    found = rows(out)
    assert [row["id"] for row in found] == names
    for row, name in zip(found, names, strict=True):
        assert_says(row, None if name in errors else predictor(root / name)[0], errors.get(name))
        assert str(tmp_path) not in (row["error"] or "")
    assert (summary.rows, summary.errors) == (7, 3)


def test_rows_of_an_array_that_are_no_images(predictor, tmp_path):
    images = (IMAGES / 255).astype(np.float32)
    images[3, 0, 0], images[20, 0, 0] = np.nan, 7
    np.savez(tmp_path / "images.npz", anything=images)
    score(predictor, tmp_path / "images.npz", tmp_path / "scores.parquet", **SMALL)
    expected = iter(predictor(np.delete(images, [3, 20], axis=0)))
    for i, row in enumerate(rows(tmp_path / "scores.parquet")):
        error = {3: "NaN", 20: "must lie in [0, 1]"}.get(i)
        assert_says(row, None if error else next(expected), error)


def test_nothing_can_be_read(predictor, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    assert score(predictor, tmp_path / "images", tmp_path / "scores.parquet") == (1, 0, 0, 0, 1)
    assert_says(rows(tmp_path / "scores.parquet")[0], None, "a.png")


def test_logits_that_are_no_numbers(predictor, npz, tmp_path, monkeypatch):
    logits = bulk_blocks._logits

    def spoilt(*arguments):
        found = logits(*arguments)
        found[1] = torch.nan
        return found

    monkeypatch.setattr(bulk_blocks, "_logits", spoilt)
    score(predictor, npz, tmp_path / "scores.parquet", part_rows=65, batch_size=65)
    expected = predictor(IMAGES)
    for i, row in enumerate(rows(tmp_path / "scores.parquet")):
        assert_says(row, None if i in (1, 66) else expected[i], "not finite")


def test_other_scores_are_not_mixed_in(digits_run, predictor, npz, tmp_path):
    out = tmp_path / "scores.parquet"
    score(predictor, npz, out, **SMALL)
    old = out.read_bytes()
    strict = Predictor.load(digits_run.path, policy=Policy(rejection=0.3))
    model = Predictor.load(digits_run.path)
    with torch.no_grad():
        next(model.trained.model.parameters()).mul_(1.5)
    warmer = Predictor.load(digits_run.path)
    warmer.calibration = replace(warmer.calibration, temperature=3.0)
    for other, changed in ((strict, "another policy"), (model, "another model"), (warmer, "another calibration")):
        with pytest.raises(ConfigError, match=changed):
            score(other, npz, out, **SMALL)
    with pytest.raises(ConfigError, match="another part_rows"):
        score(predictor, npz, out, part_rows=49, batch_size=16)
    np.savez(npz, images=IMAGES[::-1])
    with pytest.raises(ConfigError, match=r"another source\. .*--fresh"):
        score(predictor, npz, out, **SMALL)
    assert out.read_bytes() == old
    score(predictor, npz, out, fresh=True, **SMALL)
    assert [row["label"] for row in rows(out)] == predictor(IMAGES[::-1]).labels
    out.write_text("mine")
    with pytest.raises(ConfigError, match="does not hold scores"):
        score(predictor, npz, out, **SMALL)
    assert out.read_text() == "mine"


def test_what_cannot_be_scored(predictor, npz, tmp_path, monkeypatch):
    out = tmp_path / "scores.parquet"
    np.savez(tmp_path / "vectors.npz", x=np.zeros((4, 5)))
    with pytest.raises(DataError, match="holds vectors"):
        score(predictor, tmp_path / "vectors.npz", out)
    np.savez(tmp_path / "long.npz", x=np.zeros((4, 8, 8), np.int64))
    with pytest.raises(DataError, match="int64"):
        score(predictor, tmp_path / "long.npz", out)
    for wrong in ({"workers": 0}, {"batch_size": -1}, {"part_rows": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            score(predictor, npz, out, **wrong)
    with pytest.raises(ConfigError, match="is a folder"):
        score(predictor, npz, tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"jemstone\[ray\]"):
        score(predictor, npz, out, engine="ray")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"jemstone\[parquet\]"):
        score(predictor, npz, out)
    assert not out.exists()


def test_the_command_and_drift_of_what_it_wrote(digits_run, predictor, npz, tmp_path, capsys):
    out = tmp_path / "scores.parquet"
    assert main(["score", str(digits_run.path), str(npz), "--out", str(out), "--batch_size", "64"]) == 0
    accepted = int(predictor(IMAGES).accepted.sum())
    assert f"130 inputs in {out}: {accepted} accepted" in capsys.readouterr().out
    assert main(["drift", str(digits_run.path), "--reference", "digits", "--current", str(out), "--window", "65"]) == 0
    printed = capsys.readouterr().out
    assert "65-129" in printed
    assert "0 of 2 windows" in printed
    assert main(["drift", "digits", "--current", str(out)]) == 1
    assert "scores of another model" in capsys.readouterr().err
    assert main(["score", str(digits_run.path), str(tmp_path / "nothing"), "--out", str(out)]) == 1
    assert "There is no" in capsys.readouterr().err


@pytest.mark.parametrize("column", [["1.0", "2.0"], [[1.0], [2.0]], [1, 2]])
def test_a_table_that_only_looks_like_scores_is_refused_in_words(tmp_path, predictor, column):
    path = tmp_path / "scores.parquet"
    parquet.write_table(pa.table({"log_density": column}), path)
    with pytest.raises(DataError, match=r"not what `jemstone score` writes"):
        read_log_density(path, predictor)
