"""A run put to work."""

import json
import shutil

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax

from jemstone import load_dataset, load_trained
from jemstone.deployment.calibration import FILE, Policy
from jemstone.deployment.predictor import Predictor
from jemstone.errors import DataError, RunError

DIGITS = load_dataset("digits")


def test_predictions_are_what_the_logits_say(digits_run, predictor):
    x = DIGITS.test.inputs[:50]
    logits = load_trained(digits_run.path).logits(x).double().numpy()
    found = predictor.predict(x)
    np.testing.assert_allclose(found.probabilities, softmax(logits / predictor.calibration.temperature, axis=1))
    np.testing.assert_allclose(found.log_density, logsumexp(logits, axis=1), rtol=1e-5)
    assert (found.index == logits.argmax(axis=1)).all()
    held_out = DIGITS.validation.inputs
    reference = predictor.calibration.reference
    densities = logsumexp(load_trained(digits_run.path).logits(held_out).double().numpy(), axis=1)
    assert len(reference) == len(held_out) // 2
    assert all(np.abs(densities - value).min() < 1e-4 for value in reference)
    ranks = [100 * (1 + (reference <= value).sum()) / (1 + len(reference)) for value in found.log_density]
    np.testing.assert_allclose(found.typicality, ranks)


def test_one_prediction_says_why(predictor):
    digit, noise = DIGITS.test.inputs[:1], torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = predictor.predict(torch.cat([digit, noise, digit]))
    assert [p.reason for p in found] == [found[i].reason for i in (0, 1, -1)]
    assert found[0] == found[2] == found[-1]
    for i, one in enumerate(found):
        assert one.label == DIGITS.class_names[one.index] == found.labels[i]
        assert one.accepted == (not one.reason) == bool(found.accepted[i])
        assert ("out of distribution" in one.reason) == (one.log_density < predictor.thresholds.density)
        assert ("ambiguous" in one.reason) == (one.probability < predictor.thresholds.confidence)
        assert set(one.candidates) <= set(DIGITS.class_names)
    with pytest.raises(IndexError, match="3 predictions"):
        found[3]


def test_a_number_that_is_none_is_never_accepted(predictor):
    found = predictor.predictions(torch.full((1, 10), torch.nan))
    assert found.foreign[0]
    assert found.ambiguous[0]
    assert not found[0].accepted


def test_inputs_in_the_units_of_their_maker(predictor):
    x = DIGITS.test.inputs[:3]
    found = predictor(list(((x[:, 0] + 1) / 2).numpy()))
    np.testing.assert_allclose(found.log_density, predictor.predict(x).log_density, atol=1e-4)


def test_a_policy_moves_the_lines(digits_run):
    strict = Predictor.load(digits_run.path, policy=Policy(rejection=0.3, coverage=0.99))
    loose = Predictor.load(digits_run.path, policy=Policy(rejection=0.02, coverage=0.5))
    assert strict.thresholds.density > loose.thresholds.density
    assert strict.thresholds.candidate < loose.thresholds.candidate
    assert Predictor.load(digits_run.path).policy == Policy()


def test_calibration_is_kept_beside_the_run_and_belongs_to_its_step(digits_run, predictor, tmp_path, monkeypatch):
    copy = tmp_path / "run"
    shutil.copytree(digits_run.path, copy)
    assert (copy / FILE).is_file()
    monkeypatch.setattr("jemstone.deployment.predictor.data_of_run", lambda *_: pytest.fail("its data is not needed"))
    again = Predictor.load(copy)
    assert again.thresholds == predictor.thresholds
    assert again.calibration.source == "144 validation examples of digits"
    monkeypatch.undo()
    (copy / FILE).unlink()
    assert Predictor.load(copy).thresholds == predictor.thresholds


def test_a_policy_given_at_the_first_load_is_not_kept(digits_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(digits_run.path, copy)
    (copy / FILE).unlink()
    assert Predictor.load(copy, policy=Policy(error=0.2)).policy == Policy(error=0.2)
    assert Predictor.load(copy).policy == Policy()


def test_examples_that_an_import_may_have_been_trained_on_are_named_so(digits_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(digits_run.path, copy)
    (copy / FILE).unlink()
    info = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**info, "imported": {"file": "a.pt", "layout": "jem"}}))
    assert "may have been trained on" in Predictor.load(copy).calibration.source


def test_a_run_that_cannot_be_written_to_is_predicted_from(digits_run, predictor, tmp_path, monkeypatch):
    copy = tmp_path / "run"
    shutil.copytree(digits_run.path, copy)
    (copy / FILE).unlink()

    def full(*_):
        raise RunError("Cannot write.")

    monkeypatch.setattr("jemstone.deployment.predictor.save_calibration", full)
    assert Predictor.load(copy).thresholds == predictor.thresholds
    assert not (copy / FILE).exists()


def test_a_damaged_calibration_says_so(digits_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(digits_run.path, copy)
    (copy / FILE).write_bytes(b"nothing of use")
    with pytest.raises(RunError, match="Delete it"):
        Predictor.load(copy)


def test_what_is_no_model(tmp_path, monkeypatch):
    def nothing(repo_id):
        raise RunError(f"There is no model {repo_id}.")

    monkeypatch.setattr("jemstone.deployment.hub.download", nothing)
    with pytest.raises(RunError, match="digits, fashion-mnist"):
        Predictor.load("nothing")
    with pytest.raises(RunError, match="no folder runs/typo"):
        Predictor.load("runs/typo")
    with pytest.raises(RunError, match="not a run directory"):
        Predictor.load(tmp_path)


def test_too_few_held_out_examples(predictor):
    from jemstone.deployment.calibration import Calibration

    with pytest.raises(DataError, match="19 held-out examples"):
        Calibration.measure(torch.zeros(19, 10), torch.zeros(19, dtype=torch.int64), source="here")
