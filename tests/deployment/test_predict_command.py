"""jemstone predict, as it is typed."""

import json

import numpy as np
from PIL import Image

from jemstone import load_dataset
from jemstone.cli import main


def test_predict_prints_a_row_per_image_and_as_json_the_same(tmp_path, capsys, monkeypatch, digits_run):
    monkeypatch.chdir(tmp_path)
    paths = []
    for i, digit in enumerate(load_dataset("digits").test.inputs[:2]):
        paths.append(f"{i}.png")
        Image.fromarray(((digit[0] + 1) * 127.5).round().byte().numpy()).save(paths[-1])
    assert main(["predict", str(digits_run.path), *paths]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["image", "label", "probability", "typicality", "verdict"]
    assert main(["predict", str(digits_run.path), *paths, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in rows] == paths
    for line, row in zip(table[1:], rows, strict=True):
        assert line.split()[:3] == [row["image"], row["label"], f"{row['probability']:.3f}"]
        assert ("I don't know" in line) == (not row["accepted"])
    assert main(["predict", str(digits_run.path), *paths, "--rejection", "0.9", "--json"]) == 0
    strict = json.loads(capsys.readouterr().out)
    assert sum(row["accepted"] for row in strict) <= sum(row["accepted"] for row in rows)
    assert np.isclose(strict[0]["log_density"], rows[0]["log_density"])


def test_what_cannot_be_predicted_is_named(tmp_path, capsys, digits_run):
    (tmp_path / "text.png").write_text("no image")
    assert main(["predict", str(digits_run.path), str(tmp_path / "text.png")]) == 1
    assert "text.png cannot be read as an image" in capsys.readouterr().err
    assert main(["predict", str(digits_run.path), str(tmp_path / "text.png"), "--error", "2"]) == 1
    assert "policy.error is 2" in capsys.readouterr().err
