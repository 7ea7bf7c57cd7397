"""The models that come with jemstone: small, documented, and as good as they say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jemstone import load_dataset
from jemstone.deployment.locate import PRETRAINED, locate
from jemstone.deployment.predictor import Predictor


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_model_is_small_documented_and_tells_noise(name):
    folder = locate(name)
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 2_000_000
    assert {row["name"] for row in json.loads((folder / "results.json").read_text())} >= {"accuracy", "ece"}
    card = (folder / "README.md").read_text()
    assert "jemstone train" in card
    assert "license: apache-2.0" in card
    predictor = Predictor.load(name)
    noise = torch.rand(50, *predictor.trained.input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert predictor.predict(noise).foreign.all()
    sample = predictor.trained.sample(torch.arange(2), steps=2)
    assert sample.shape == (2, *predictor.trained.input_shape)


def test_digits_are_known_and_what_they_are_not_is_refused():
    predictor, test = Predictor.load("digits"), load_dataset("digits").test
    known = predictor.predict(test.inputs)
    saved = json.loads((locate("digits") / "results.json").read_text())
    accuracy = next(row["value"] for row in saved if row["name"] == "accuracy")
    assert np.isclose((known.index == test.labels.numpy()).mean(), accuracy)
    assert known.accepted.mean() > 0.9
    assert (known.index == test.labels.numpy())[known.accepted].mean() > 0.99
    turned = predictor.predict(torch.rot90(test.inputs, 1, (2, 3)))
    assert turned.foreign.mean() > 0.99


def test_a_folder_of_data_does_not_hide_a_model_and_a_run_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert locate("digits").parent.name == "pretrained"
    (tmp_path / "digits" / "config.json").write_text("{}")
    assert locate("digits") == Path("digits")
    assert locate(tmp_path / "digits") == tmp_path / "digits"
