"""Outlier scores in the other convention, against scikit-learn and, where it is installed, pytorch-ood itself."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from sklearn.metrics import auc as trapezoids
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError
from jemstone.evaluation.detection import aupr_in, aupr_out, auroc, fpr95
from jemstone.evaluation.detectors import detector
from jemstone.evaluation.scores import SCORES, refined_density
from jemstone.sampling import langevin


@pytest.fixture
def model():
    torch.manual_seed(0)
    return EnergyClassifier(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.SiLU(), nn.Linear(8, 3)))


@pytest.fixture
def inputs():
    rng = torch.Generator().manual_seed(0)
    return torch.randn(60, 4, generator=rng), torch.randn(45, 4, generator=rng) * 2 + 1


@pytest.fixture(scope="module")
def library():
    """pytorch-ood imports torchvision, which does not load beside a torch of another build unless nms is declared."""
    reason = (
        "needs pytorch-ood: in an environment of its own, pip install pytorch-ood==0.4.0 torchvision==0.28.0 -c "
        "constraints.txt and run this file"
    )
    if find_spec("pytorch_ood") is None:
        pytest.skip(reason)
    declared = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    pytest.importorskip("pytorch_ood.api", reason=reason)
    metrics = pytest.importorskip("pytorch_ood.metrics", reason=reason)
    yield metrics
    del declared


@pytest.mark.parametrize("name", list(SCORES))
def test_a_detector_is_the_negative_score_of_the_model_in_evaluation_mode(model, inputs, name):
    x = inputs[0]
    outlier = detector(model, SCORES[name])(x)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not outlier.requires_grad
    torch.testing.assert_close(outlier, -SCORES[name](model.eval(), x).detach())


def test_a_detector_works_inside_no_grad_and_inference_mode(model, inputs):
    outlier = detector(model, SCORES["approximate_mass"])
    expected = outlier.predict(inputs[0])
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(outlier.predict(inputs[0] + 0), expected)


def test_a_detector_takes_stored_images_and_the_refined_score(inputs):
    model = EnergyClassifier(nn.Flatten())
    stored = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    expected = -np.log(np.exp(-1) + np.exp(1))
    assert float(detector(model)(stored)) == pytest.approx(expected, abs=1e-6)
    refined = detector(model, refined_density(langevin(0.1, 0.1), 3, 0))
    torch.testing.assert_close(refined(stored), refined(stored), rtol=0, atol=0)


def test_the_interface_of_a_detector_without_anything_to_fit(model, inputs):
    outlier = detector(model)
    assert outlier.to("cpu") is outlier
    assert outlier.device == torch.device("cpu")
    assert outlier.fit([(inputs[0], torch.zeros(60))]) is outlier
    assert (outlier.requires_fit, outlier.info, outlier.hyperparameter_space) == (False, None, {})
    assert outlier.get_hyperparameters() == {}
    assert outlier.set_hyperparameters() is outlier
    with pytest.raises(ConfigError, match="no hyperparameters"):
        outlier.set_hyperparameters(t=1.0)


@pytest.mark.parametrize("name", ["log_density", "rounded"])
def test_metrics_with_outliers_as_positive_are_the_same_metrics(model, inputs, name):
    """The convention of pytorch-ood in scikit-learn's terms: label 1 and a larger score for outliers."""

    def rounded(model, x):
        return (2 * model.log_density(x)).round()  # with ties

    score = {"rounded": rounded, "log_density": SCORES["log_density"]}[name]
    inside, outside = (detector(model, score)(x).double().numpy() for x in inputs)
    outlier, scores = np.r_[np.zeros(60), np.ones(45)], np.r_[inside, outside]
    assert auroc(-inside, -outside) == pytest.approx(roc_auc_score(outlier, scores), abs=1e-12)
    assert aupr_out(-inside, -outside) == pytest.approx(average_precision_score(outlier, scores), abs=1e-12)
    assert aupr_in(-inside, -outside) == pytest.approx(average_precision_score(1 - outlier, -scores), abs=1e-12)
    fpr, tpr, _ = roc_curve(outlier, scores, drop_intermediate=False)
    assert fpr95(outside, inside) == pytest.approx(fpr[tpr >= 0.95].min(), abs=1e-12)


def test_it_works_where_pytorch_ood_is_not_installed_or_broken(model, inputs, monkeypatch):
    expected = detector(model)(inputs[0])
    monkeypatch.setitem(sys.modules, "pytorch_ood", None)
    monkeypatch.setitem(sys.modules, "pytorch_ood.api", None)
    torch.testing.assert_close(detector(model)(inputs[0]), expected)

    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("jemstone.evaluation.detectors.import_module", broken)
    torch.testing.assert_close(detector(model)(inputs[0]), expected)


@pytest.mark.parametrize("name", list(SCORES))
def test_pytorch_ood_computes_the_same_metrics(library, model, inputs, name):
    outlier = detector(model, SCORES[name])
    metrics = library.OODMetrics()
    labels = [torch.zeros(60), -torch.ones(45)]
    for x, y in zip(inputs, labels, strict=True):
        metrics.update(scores=outlier(x), labels=y.long())
    theirs = metrics.compute()
    inside, outside = (-outlier(x).double().numpy() for x in inputs)
    assert theirs["AUROC"] == pytest.approx(auroc(inside, outside), abs=1e-12)
    assert theirs["FPR95TPR"] == pytest.approx(fpr95(-outside, -inside), abs=1e-12)  # with outliers as positive
    assert theirs["AUPR-OUT"] == pytest.approx(aupr_out(inside, outside), abs=0.01)
    assert theirs["AUPR-IN"] == pytest.approx(aupr_in(inside, outside), abs=0.01)
    positive, scores = np.r_[np.zeros(60), np.ones(45)], np.r_[-inside, -outside]
    precision, recall, _ = precision_recall_curve(positive, scores)
    assert theirs["AUPR-OUT"] == pytest.approx(trapezoids(recall, precision), abs=1e-12)


def test_pytorch_ood_takes_a_detector_as_one_of_its_own(library, model, inputs):
    from pytorch_ood.api import Detector
    from pytorch_ood.benchmark.base import Benchmark
    from pytorch_ood.detector import EnergyBased

    outlier = detector(model)
    assert isinstance(outlier, Detector)
    torch.testing.assert_close(outlier(inputs[0]), EnergyBased(model.eval())(inputs[0]).detach())
    loader = DataLoader(TensorDataset(torch.cat(inputs), torch.tensor([0] * 60 + [-1] * 45)), batch_size=16)
    result = Benchmark._evaluate_raw(outlier, loader, "cpu")
    assert Benchmark._normalize_detectors([outlier]) == ([outlier], True)
    inside, outside = (-outlier(x).double().numpy() for x in inputs)
    assert result["AUROC"] == pytest.approx(auroc(inside, outside), abs=1e-12)
