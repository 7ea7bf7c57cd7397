"""Scores for tools that hold the opposite convention, larger = outlier, as pytorch-ood does."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jemstone.data.dataset import to_box
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError
from jemstone.evaluation.forward import frozen
from jemstone.evaluation.scores import Score, log_density


class ScoreDetector:
    """A model and a score with the interface of `pytorch_ood.api.Detector` (pytorch-ood 0.4); made by `detector`.

    `hyperparameter_space` is empty and nothing is fitted: a score of jemstone has nothing to choose.
    """

    requires_fit = False
    info = None

    def __init__(self, model: EnergyClassifier, score: Score) -> None:
        self.model = model
        self.score = score
        self.hyperparameter_space: dict[str, list[Any]] = {}

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return self.model.device

    def to(self, device: torch.device | str) -> ScoreDetector:
        """Moves the model, and returns itself."""
        self.model.to(device)
        return self

    def predict(self, x: Tensor) -> Float[Tensor, " b"]:
        """-score(model, x): larger = more likely an outlier. x (b, ...) in model units, or stored as uint8.

        Images in model units lie in [-1, 1]: a loader that ends in ToTensor yields [0, 1], which is another range. The
        model is asked in evaluation mode and is left as it was found.
        """
        with torch.inference_mode(False), torch.no_grad(), frozen(self.model):
            x = to_box(x.to(self.device))
            # Some scores differentiate with respect to x, and a tensor made in inference mode refuses.
            return -self.score(self.model, x.clone() if x.is_inference() else x)

    __call__ = predict

    def fit(self, data_loader: Iterable[Any]) -> ScoreDetector:
        """Returns itself: nothing has to be fitted."""
        return self

    def get_hyperparameters(self) -> dict[str, Any]:
        """There are none."""
        return {}

    def set_hyperparameters(self, **values: Any) -> ScoreDetector:
        """Returns itself; raises ConfigError for any value, as there is nothing to set."""
        if values:
            raise ConfigError(f"A score has no hyperparameters, got {sorted(values)}. Make another score instead.")
        return self


def detector(model: EnergyClassifier, score: Score = log_density) -> ScoreDetector:
    """`score` of `model` as an outlier detector; pytorch-ood, where it is installed, takes it as one of its own.

    Its benchmarks and metrics then apply. `OODMetrics` counts outliers as positive and integrates precision over
    recall by trapezoids: its AUROC is `auroc` of `jemstone.evaluation`, its AUPR-OUT differs a little from `aupr_out`
    (a sum without interpolation), and its FPR95TPR is another number than `fpr95`.
    """
    try:
        api = import_module("pytorch_ood.api")
    except (ImportError, RuntimeError):  # RuntimeError: a torchvision that does not fit torch
        pass
    else:
        api.Detector.register(ScoreDetector)
    return ScoreDetector(model, score)
