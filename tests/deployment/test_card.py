"""The model card says what the files say, and its header is what the hub understands."""

import json
import math
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard

from jemstone.deployment.calibration import Policy
from jemstone.deployment.predictor import Predictor

RESULTS = [
    {"name": "accuracy", "value": 0.9125, "low": 0.9, "high": 0.92, "n": 360},
    {"name": "nll", "value": 0.25, "low": 0.2, "high": 0.3, "n": 360},
    {"name": "ood/street signs/log_density/auroc", "value": 0.75, "low": 0.7, "high": 0.8, "n": 720},
    {"name": "ood/street signs/max_logit/auroc", "value": 0.11, "low": 0.1, "high": 0.12, "n": 720},
    {"name": "pgd_linf/0.03", "value": 0.5, "low": 0.4, "high": None, "n": 100},
]


@pytest.fixture
def evaluated(digits_run, predictor, tmp_path):
    """The run, with results."""
    shutil.copytree(digits_run.path, tmp_path / "run")
    (tmp_path / "run" / "results.json").write_text(json.dumps(RESULTS))
    return tmp_path / "run"


def test_the_header_is_the_hubs(evaluated, tmp_path):
    card = ModelCard.load(Predictor.load(evaluated).save(tmp_path / "mine", license="apache-2.0") / "README.md")
    header = card.data.to_dict()
    assert header["license"] == "apache-2.0"
    assert header["pipeline_tag"] == "image-classification"
    assert header["library_name"] == "jemstone"
    assert header["metrics"] == ["accuracy"]
    assert "energy-based-model" in header["tags"]
    assert card.data.eval_results[0].metric_value == 0.9125
    assert card.data.eval_results[0].dataset_name == "digits"


def test_a_license_is_its_makers_to_give(predictor, tmp_path):
    text = (predictor.save(tmp_path / "mine") / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert "license" not in header
    assert "model-index" not in header  # nothing was evaluated
    assert "Not evaluated" in text


def test_results_with_their_intervals(evaluated, tmp_path):
    text = (Predictor.load(evaluated).save(tmp_path / "mine") / "README.md").read_text()
    assert "| Accuracy, % | 91.2 | 90.0 to 92.0 | 360 |" in text
    assert "| Negative log-likelihood, nats | 0.250 | 0.200 to 0.300 | 360 |" in text
    assert "| AUROC of log p(x) against street signs, % | 75.0 | 70.0 to 80.0 | 720 |" in text
    assert "| Accuracy under PGD, L∞ ≤ 0.03, % | 50.0 | 40.0 to not finite | 100 |" in text
    assert "11.0" not in text
    assert json.loads((tmp_path / "mine" / "results.json").read_text()) == RESULTS


def test_how_it_was_made_what_it_promises_and_how_to_use_it(predictor, tmp_path):
    policy = Policy(error=0.2, rejection=0.1, coverage=0.9)
    text = (predictor.with_policy(policy).save(tmp_path / "mine") / "README.md").read_text()
    assert "1293 training, 144 validation and 360 test" in text
    assert "Recipe `jem-small`, seed 0, 60 steps" in text
    assert "`conv-8`, inputs 1x8x8, 10 classes: 0, 1, 2" in text
    assert 'Predictor.load("mine")' in text
    assert "144 validation examples of digits" in text
    for promise in ("at most 10 % are refused", "at most 20 % of the accepted", "probability 95 %", "at least 90 %"):
        assert promise in text
    assert "## Intended use and limits" in text
    assert "Samples show" in text


def test_a_model_that_accepts_nothing_says_so(predictor, tmp_path):
    hopeless = predictor.with_policy(Policy(error=1e-6))
    assert hopeless.thresholds.confidence == math.inf
    assert "It accepts nothing" in (hopeless.save(tmp_path / "hopeless") / "README.md").read_text()
