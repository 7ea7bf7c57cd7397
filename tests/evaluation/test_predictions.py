"""The section on p(y|x): against scikit-learn, on logits that are the inputs themselves."""

import json

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import log_loss
from torch import nn

from jemstone.data.dataset import Dataset, Split
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError, DataError
from jemstone.evaluation.calibration import reliability
from jemstone.evaluation.predictions import CalibrationSettings, calibration_section
from jemstone.evaluation.predictions import test_logits as logits_of
from jemstone.evaluation.section import Common, Subject, Work

COMMON = Common(resamples=20, batch_size=33)
SETTINGS = CalibrationSettings(temperature_resamples=10)
BINNED = ("ece", "ece_equal_mass", "mce", "classwise_ece")
SCALED = ("nll", "brier", *BINNED)


def split(n, seed, overconfidence=3.0):
    """Inputs are the logits, too large by the factor `overconfidence`."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(n, 3))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return Split(torch.tensor(overconfidence * logits, dtype=torch.float32), torch.tensor(labels))


def subject(train=None, validation=None, test=None, network=None):
    given = {"train": train, "validation": validation, "test": test}
    default = {"train": split(10, 0), "validation": split(400, 1), "test": split(500, 2)}
    splits = {name: default[name] if given[name] is None else given[name] for name in default}
    data = Dataset("toy", **splits, class_names=("a", "b", "c"))
    return Subject(EnergyClassifier(network or nn.Identity()).eval(), data)


def measured(*args, work=None, **kwargs):
    return calibration_section(subject(*args, **kwargs), SETTINGS, COMMON, work or Work())


@pytest.fixture(scope="module")
def section():
    return measured()


def values(section):
    return {result.name: result.value for result in section.results}


def test_names_and_intervals(section):
    scaled = [f"scaled/{name}" for name in SCALED]
    assert [r.name for r in section.results] == ["accuracy", *SCALED, "temperature", *scaled]
    assert all(r.low <= r.value <= r.high for r in section.results)
    assert {r.n for r in section.results if r.name != "temperature"} == {500}
    assert (section.warnings, section.notes, section.pictures) == ([], [], {})


def test_proper_scores_before_and_after_are_those_of_scikit_learn(section):
    test = split(500, 2)
    found = values(section)
    for prefix, t in (("", 1), ("scaled/", found["temperature"])):
        p = softmax(test.inputs.double().numpy() / t, axis=1)
        assert found[f"{prefix}nll"] == pytest.approx(log_loss(test.labels, p))
        squares = ((p - np.eye(3)[test.labels]) ** 2).sum(axis=1)
        assert found[f"{prefix}brier"] == pytest.approx(squares.mean())
    assert found["accuracy"] == (test.inputs.argmax(dim=1) == test.labels).double().mean()


def test_the_temperature_is_fitted_on_the_validation_split_and_repairs_the_test_split(section):
    found = values(section)
    assert found["temperature"] == pytest.approx(3, rel=0.2)
    assert [r.n for r in section.results if r.name == "temperature"] == [400]
    assert all(found[f"scaled/{name}"] < found[name] for name in ("nll", "brier", "ece", "ece_equal_mass"))
    assert values(measured(validation=split(400, 1, 6.0)))["temperature"] == pytest.approx(
        2 * found["temperature"], rel=1e-4
    )


def test_figures(section):
    figures = section.figures
    assert json.loads(json.dumps(figures)) == figures
    assert figures["temperature"] == values(section)["temperature"]
    test = split(500, 2)
    logits, labels = test.inputs.double().numpy(), test.labels.numpy()
    assert figures["reliability"] == reliability(logits, labels)
    assert figures["scaled"] == reliability(logits / figures["temperature"], labels)
    assert list(figures["reliability_equal_mass"]) == list(figures["reliability"])
    assert max(figures["reliability_equal_mass"]["count"]) <= 34


def test_examples_are_what_the_results_are_means_of(section):
    found, examples = values(section), section.examples
    assert {array.shape for array in examples.values()} == {(500,)}
    assert examples["correct"].dtype == bool
    assert examples["correct"].mean() == found["accuracy"]
    for name in ("nll", "brier", "scaled/nll", "scaled/brier"):
        assert examples[name].mean() == pytest.approx(found[name])
    p = softmax(split(500, 2).inputs.double().numpy(), axis=1)
    assert np.allclose(examples["confidence"], p.max(axis=1))
    assert np.allclose(examples["scaled/confidence"], softmax(np.log(p) / found["temperature"], axis=1).max(axis=1))


@pytest.mark.parametrize("kind", ["none", "unlabelled", "certain"])
def test_without_a_usable_validation_split_nothing_is_scaled(kind):
    validation = split(0 if kind == "none" else 50, 1)
    if kind == "unlabelled":
        validation.labels[3] = -1
    if kind == "certain":
        validation = Split(validation.inputs, validation.inputs.argmax(dim=1))
    section = measured(validation=validation)
    assert [r.name for r in section.results] == ["accuracy", *SCALED]
    assert section.figures["scaled"] is section.figures["temperature"] is None
    assert set(section.examples) == {"correct", "confidence", "nll", "brier"}
    assert len(section.notes) == 1
    assert "Temperature scaling left out" in section.notes[0]


def test_doubts_are_passed_on():
    assert [w.name for w in measured(test=split(60, 2)).warnings] == ["small-n"]


def test_what_was_done_is_not_done_again(section):
    stored = {}

    def memo(name, make):
        return stored.setdefault(name, None) or stored.__setitem__(name, make()) or stored[name]

    work = Work(memo=memo)
    assert measured(work=work).results == section.results
    asked = []

    class Broken(nn.Module):
        def forward(self, x):
            asked.append(len(x))
            return x

    assert measured(work=work, network=Broken()).results == section.results
    assert set(asked) == {16}  # the sanity checks alone


@pytest.mark.parametrize(
    ("labels", "message"), [([0, -1], "Unlabelled"), ([0, 3], r"\[0, 3\)"), ([], "no test examples")]
)
def test_a_test_split_must_be_labelled(labels, message):
    test = Split(torch.zeros(len(labels), 3), torch.tensor(labels, dtype=torch.int64))
    with pytest.raises(DataError, match=message):
        logits_of(subject(test=test).model, subject(test=test).data, 10)


def test_logits_must_fit_and_be_finite():
    test = split(20, 2)
    with pytest.raises(DataError, match="2 classes"):
        measured(test=Split(test.inputs[:, :2], test.labels))
    test.inputs[3, 1] = torch.inf
    with pytest.raises(DataError, match="1 of 20 test inputs"):
        measured(test=test)
    validation = split(20, 1)
    validation.inputs[3, 1] = torch.nan
    with pytest.raises(DataError, match="1 of 20 validation inputs"):
        measured(validation=validation)


@pytest.mark.parametrize("field", ["bins", "temperature_resamples"])
def test_settings_are_checked(field):
    with pytest.raises(ConfigError, match=field):
        CalibrationSettings(**{field: 0})
