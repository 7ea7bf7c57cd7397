"""JEMClassifier: a JEM as a scikit-learn estimator, for tables and small images.

It trains by the same sessions, guard and recovery as `jemstone train`, in memory alone.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from jemstone.data import Dataset, Split
from jemstone.data.validate import column_moments
from jemstone.deployment.progress import Progress
from jemstone.energy import marginal_energy
from jemstone.errors import DataError
from jemstone.training.config import TrainConfig
from jemstone.training.recipes import recipe
from jemstone.training.session import Session
from jemstone.training.settings import at_least

SCORED = 1024
"""Rows that pass through the network at a time."""


class JEMClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier whose logits are a density as well: `predict_proba` is p(y|x), `score_samples` is log p(x).

    Rows of X are vectors, or flattened images of shape `image_shape`. Columns of vectors are standardised here, by the
    mean and standard deviation of X in `fit`, or in the first `partial_fit`; images are mapped so that the least and
    the largest value of that X become -1 and 1. Later inputs are mapped by the same numbers, whatever their range.

    Training is in float32 and predictions are in float64, so that a row's do not depend on the rows beside it.

    Parameters
    ----------
    recipe : str, default=None
        A name of `jemstone.RECIPES`; None is "jem-vectors", or "jem-small" for images. Chains of the recipe must start
        from uniform noise or class Gaussians.
    network : str, default=None
        As "mlp-128" or "conv-32"; None is the recipe's.
    steps : int, default=400
        Optimiser steps of `fit`, whatever the number of rows.
    batch_size : int, default=64
        Rows, and chains, per step.
    learning_rate : float, default=None
        Its peak; None is the recipe's.
    generative_weight : float, default=1.0
        Factor of the recipe's weights of log p(x): higher is a better density, lower a better classifier, and 0 a
        classifier alone.
    image_shape : tuple of int, default=None
        (height, width) or (channels, height, width) of a row; None for vectors.
    random_state : int, RandomState instance or None, default=0
        The same int gives the same model, and moves no global random state. None draws from numpy's.
    device : {"cpu", "cuda", "auto"}, default="cpu"
        Where to train and predict.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels; of one class, the estimator is a density without a classifier.
    offset_, scale_ : ndarrays of shape (n_features,)
        A row enters the network as (x - offset_) / scale_.
    model_ : EnergyClassifier
        The trained model, in float64; the averaged one where the recipe keeps one.
    n_steps_ : int
        Optimiser steps behind it.
    n_recoveries_ : int
        How often the guard rejected a step and training went back.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.

    Source: Grathwohl et al., ICLR 2020.
    """

    # Any, because scikit-learn sets parameters to anything and expects `fit` to judge them.
    def __init__(
        self,
        *,
        recipe: Any = None,
        network: Any = None,
        steps: Any = 400,
        batch_size: Any = 64,
        learning_rate: Any = None,
        generative_weight: Any = 1.0,
        image_shape: Any = None,
        random_state: Any = 0,
        device: Any = "cpu",
    ) -> None:
        self.recipe = recipe
        self.network = network
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.generative_weight = generative_weight
        self.image_shape = image_shape
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any) -> JEMClassifier:
        """Train anew on rows X (n, d) and labels y (n,) of any kind.

        Raises ValueError for data that is not that, ConfigError (a ValueError) for settings that do not fit it, and
        Diverged where training failed in spite of recovery.
        """
        X, y = self._checked(X, y, reset=True)
        self.classes_ = np.unique(y)
        self._set_scale(X)
        session = Session.start(self._config(self.steps), self._dataset(X, y))
        return self._train(session)

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> JEMClassifier:
        """Train on for one pass over X, from the present weights and chains, at a constant learning rate.

        The first call needs all `classes`, and its X fixes `offset_` and `scale_`: let it be a typical part of the
        data. It starts chains from uniform noise, as no part need hold every class; after a `fit` they start as there.
        """
        first = not hasattr(self, "_progress")
        X, y = self._checked(X, y, reset=first)
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit: all labels that will ever come.")
        if classes is not None:
            classes = np.unique(classes)
            if not first and not np.array_equal(classes, self.classes_):
                raise ValueError(f"classes={classes} differs from the first call's, {self.classes_}.")
        known = classes if first else self.classes_
        unknown = np.setdiff1d(y, known)
        if len(unknown):
            raise ValueError(f"y holds labels that are not among the classes {known}: {unknown}. Name all at first.")
        at_least("batch_size", self.batch_size, 1)
        passes = max(1, round(len(X) / self.batch_size))
        if first:
            self.classes_ = known
            self._set_scale(X)
            config = self._config(passes).with_values(optimizer={"schedule": "constant"}, chains={"start": "uniform"})
            return self._train(Session.start(config, self._dataset(X, y)))
        return self._train(self._progress.carried_on(self._dataset(X, y), passes))

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable label of each row, (n,)."""
        logits = self._logits(X)
        return np.asarray(self.classes_[logits.argmax(dim=1).numpy()])

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """p(y|x), (n, n_classes), in the order of `classes_`."""
        return np.asarray(self._logits(X).softmax(dim=1).numpy())

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Log-odds of the second class where there are two, (n,); otherwise the logits, (n, n_classes)."""
        logits = self._logits(X).numpy()
        return np.asarray(logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits)

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """log p(x) = logsumexp of the logits, up to the constant log Z of this model, (n,): higher is more typical.

        It ranks rows under one model. Values of two models have two unknown constants, so that they choose neither.
        Its unit is that of the chains, at whose temperature T = noise^2 / (2 step_size) the density is learnt:
        in nats of the distribution of the samples, differences are 1 / T as large.
        """
        return np.asarray(-marginal_energy(self._logits(X)).numpy())

    def sample(
        self,
        n_samples: int = 1,
        y: Any = None,
        *,
        random_state: int | np.random.RandomState | None = None,
    ) -> NDArray[np.float64]:
        """Fresh rows, (n_samples, n_features), in the units of X: chains run as long as they live in training.

        With `y`, a label or one for each row, they are drawn from p(x|y); otherwise from p(x). `random_state` defaults
        to the estimator's own, so that the same call gives the same rows.
        """
        check_is_fitted(self)
        at_least("n_samples", n_samples, 1)
        if y is None:
            index = np.arange(n_samples) % len(self.classes_)
        else:
            index = self._indices(np.broadcast_to(np.asarray(y), (n_samples,)))
        seed = self._seed(self.random_state if random_state is None else random_state)
        x = self._progress.sample(torch.from_numpy(index), self._shape, seed, by_class=y is not None)
        return np.asarray(x.double().flatten(1).numpy() * self.scale_ + self.offset_)

    def _config(self, steps: int) -> TrainConfig:
        """The recipe with the estimator's settings in it; what depends on timings is switched off."""
        at_least("steps", self.steps, 1)
        at_least("generative_weight", self.generative_weight, 0)
        name = self.recipe or ("jem-vectors" if self.image_shape is None else "jem-small")
        config = recipe(name)
        generative = ("marginal", "joint", "conditional", "discrimination", "energy_l2")
        weights = {term: getattr(config.weights, term) * self.generative_weight for term in generative}
        return config.with_values(
            seed=self._seed(self.random_state),
            network={"name": self.network or config.network.name},
            weights=weights,
            chains={"buffer_size": max(config.chains.buffer_size, self.batch_size)},
            optimizer={
                "learning_rate": config.optimizer.learning_rate if self.learning_rate is None else self.learning_rate,
                "warmup_steps": min(config.optimizer.warmup_steps, steps // 4),
            },
            steps=steps,
            batch_size=self.batch_size,
            real_batch_size=self.batch_size,
            precision="32-true",
            layout="contiguous",
            compile="off",
            device=self.device,
            validate_every=0,
            log_every=steps,
        )

    def _train(self, session: Session) -> JEMClassifier:
        for _ in session.train():
            pass
        self._progress = Progress.of(session)
        self.model_ = copy.deepcopy(session.model).double().eval()
        self.n_steps_ = session.state.step
        self.n_recoveries_ = len(session.state.treatment.failures)
        return self

    def _checked(self, X: Any, y: Any, *, reset: bool) -> tuple[NDArray[np.float64], NDArray[Any]]:
        X, y = validate_data(self, X, y, reset=reset, dtype=np.float64)
        check_classification_targets(y)
        return X, column_or_1d(y, warn=True)

    def _set_scale(self, X: NDArray[np.float64]) -> None:
        if self.image_shape is None:
            self.offset_, self.scale_ = (moment.numpy() for moment in column_moments(torch.from_numpy(X.copy())))
            return
        if int(np.prod(self.image_shape)) != X.shape[1] or len(self.image_shape) not in (2, 3):
            raise DataError(
                f"image_shape {self.image_shape} does not fit rows of {X.shape[1]} values. It must be (height, width) "
                "or (channels, height, width), and their product the length of a row."
            )
        low, high = X.min(), X.max()
        self.offset_ = np.full(X.shape[1], (low + high) / 2)
        self.scale_ = np.full(X.shape[1], (high - low) / 2 or 1.0)

    @property
    def _shape(self) -> tuple[int, ...]:
        """The shape in which a row enters the network."""
        shape = (self.n_features_in_,) if self.image_shape is None else tuple(self.image_shape)
        return (1, *shape) if len(shape) == 2 else shape

    def _inputs(self, X: NDArray[np.float64]) -> Tensor:
        """Rows as the network sees them, float64, (n, ...)."""
        return torch.from_numpy((X - self.offset_) / self.scale_).reshape(-1, *self._shape)

    def _indices(self, y: NDArray[Any]) -> NDArray[np.int64]:
        index = np.searchsorted(self.classes_, y)
        if not np.array_equal(self.classes_[index.clip(max=len(self.classes_) - 1)], y):
            raise ValueError(f"y holds labels that the estimator was not trained on: its classes are {self.classes_}.")
        return np.asarray(index, dtype=np.int64)

    def _dataset(self, X: NDArray[np.float64], y: NDArray[Any]) -> Dataset:
        inputs = self._inputs(X).float()
        nothing = Split(inputs[:0], torch.zeros(0, dtype=torch.int64))
        names = tuple(str(label) for label in self.classes_)
        return Dataset("rows", Split(inputs, torch.from_numpy(self._indices(y))), nothing, nothing, names)

    @torch.no_grad()
    def _logits(self, X: Any) -> Tensor:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return torch.cat(
            [self.model_(part.to(self.model_.device)).cpu() for part in torch.split(self._inputs(X), SCORED)]
        )

    @staticmethod
    def _seed(random_state: int | np.random.RandomState | None) -> int:
        return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
