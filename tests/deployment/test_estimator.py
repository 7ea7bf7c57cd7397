"""JEMClassifier keeps scikit-learn's contract, and its density is one."""

import pickle

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits, load_iris, make_moons
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.utils.estimator_checks import parametrize_with_checks

from jemstone.deployment.estimator import JEMClassifier
from jemstone.errors import ConfigError, DataError
from jemstone.training.recipes import recipe
from jemstone.training.session import Session


def quick(**settings):
    return JEMClassifier(**{"steps": 20, "network": "mlp-16", "batch_size": 32, "learning_rate": 0.01} | settings)


@parametrize_with_checks([quick(steps=12)])
def test_scikit_learn_s_own_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return X, np.array(["setosa", "versicolor", "virginica"])[y]


@pytest.fixture(scope="module")
def fitted(iris):
    return JEMClassifier(steps=150, network="mlp-32", learning_rate=0.01).fit(*iris)


def same_weights(a, b):
    pairs = zip(a.model_.state_dict().values(), b.model_.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


def test_it_learns_and_its_outputs_agree_with_each_other(fitted, iris):
    X, y = iris
    assert fitted.score(X, y) > 0.93
    logits = fitted.decision_function(X)
    np.testing.assert_allclose(fitted.score_samples(X), logsumexp(logits, axis=1))
    np.testing.assert_allclose(fitted.predict_proba(X), np.exp(logits - logsumexp(logits, axis=1)[:, None]))
    assert (fitted.predict(X) == fitted.classes_[logits.argmax(axis=1)]).all()
    assert fitted.n_steps_ == 150


def test_two_classes_have_log_odds():
    X, y = make_moons(100, noise=0.1, random_state=0)
    model = quick().fit(X, y)
    odds, p = model.decision_function(X), model.predict_proba(X)
    np.testing.assert_allclose(odds, np.log(p[:, 1] / p[:, 0]), atol=1e-9)


def test_columns_are_standardised_and_units_do_not_matter(iris):
    X, y = iris
    model, other = quick().fit(X, y), quick().fit(1000 * X + 5, y)
    np.testing.assert_allclose(model.offset_, X.mean(axis=0))
    np.testing.assert_allclose(model.scale_, X.std(axis=0))
    np.testing.assert_allclose(model.score_samples(X), other.score_samples(1000 * X + 5), rtol=1e-3)


def test_outliers_score_lower(fitted, iris):
    X, _ = iris
    rng = np.random.default_rng(0)
    noise = rng.uniform(X.min(axis=0) - 2, X.max(axis=0) + 2, size=(200, 4))
    scores = np.r_[fitted.score_samples(X), fitted.score_samples(noise)]
    assert roc_auc_score([1] * len(X) + [0] * len(noise), scores) > 0.9


def test_one_class_is_a_density():
    """Its scores rank as the closed form does, -(x - mean)^2 / 2 of a Gaussian, and its samples are that Gaussian's."""
    X = np.random.default_rng(0).normal(3.0, 2.0, size=(500, 1))
    model = JEMClassifier(steps=200, network="mlp-32").fit(X, np.zeros(500))
    grid = np.linspace(-2, 8, 41)[:, None]
    exact = -((grid[:, 0] - 3.0) ** 2)
    assert spearmanr(model.score_samples(grid), exact).statistic > 0.95
    samples = model.sample(1000)
    assert abs(samples.mean() - 3.0) < 0.6
    assert 0.7 < samples.std() / 2.0 < 1.4


def test_samples_are_rows_like_those_of_training(fitted, iris):
    X, y = iris
    rows = fitted.sample(60, "setosa")
    assert rows.shape == (60, 4)
    assert (fitted.predict(rows) == "setosa").mean() > 0.9
    assert np.abs(np.median(rows, axis=0) - X[y == "setosa"].mean(axis=0)).max() < 0.5 * X.std(axis=0).max()
    each = fitted.sample(3, ["virginica", "setosa", "virginica"])
    assert each.shape == (3, 4)
    assert (fitted.sample(5) == fitted.sample(5)).all()
    assert (fitted.sample(5) != fitted.sample(5, random_state=1)).any()
    with pytest.raises(ValueError, match="not trained on"):
        fitted.sample(1, "rosa")
    with pytest.raises(ConfigError, match="n_samples"):
        fitted.sample(0)


def test_a_classifier_alone_has_no_samples_and_is_what_plain_training_gives(iris):
    model = quick(generative_weight=0.0).fit(*iris)
    with pytest.raises(ConfigError, match="generative_weight"):
        model.sample()
    assert not model._progress.config.weights.generative


def test_every_parameter_is_read(iris):
    config = JEMClassifier(
        recipe="jemstone-small",
        network="conv-4",
        steps=7,
        batch_size=9,
        learning_rate=0.5,
        generative_weight=0.5,
        image_shape=(8, 8),
        random_state=3,
        device="auto",
    )._config(7)
    assert (config.recipe, config.network.name, config.steps) == ("jemstone-small", "conv-4", 7)
    assert (config.batch_size, config.real_batch_size, config.optimizer.learning_rate) == (9, 9, 0.5)
    assert (config.weights.marginal, config.weights.energy_l2, config.weights.class_nll) == (0.5, 0.05, 5.0)
    assert config.device == "auto"
    assert config.seed == np.random.RandomState(3).randint(np.iinfo(np.int32).max)
    assert JEMClassifier()._config(5).network == recipe("jem-vectors").network
    assert JEMClassifier(image_shape=(2, 2))._config(5).recipe == "jem-small"
    with pytest.raises(ConfigError, match="steps"):
        quick(steps=0).fit(*iris)
    with pytest.raises(ValueError, match="There is no recipe"):
        quick(recipe="none").fit(*iris)


def test_the_same_seed_gives_the_same_model_and_moves_no_global_state(iris):
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    model = quick(random_state=5).fit(*iris)
    model.sample(2)
    assert (np.random.get_state()[1] == before).all()
    assert torch.equal(torch.get_rng_state(), torch_before)
    torch.rand(3)
    assert same_weights(model, quick(random_state=5).fit(*iris))
    assert not same_weights(model, quick(random_state=6).fit(*iris))


def test_fit_is_a_session_of_the_same_configuration(iris):
    """The estimator adds nothing to training."""
    X, y = iris
    model = quick().fit(X, y)
    session = Session.start(model._config(20), model._dataset(X, y))
    for _ in session.train():
        pass
    inputs = torch.from_numpy((X - X.mean(axis=0)) / X.std(axis=0))
    expected = session.model.double().log_density(inputs)
    np.testing.assert_allclose(model.score_samples(X), expected.detach().numpy(), rtol=1e-9)


def test_partial_fit_goes_on_from_weights_chains_and_moments(iris):
    X, y = iris
    model = quick(batch_size=30)
    with pytest.raises(ValueError, match="classes must be passed"):
        model.partial_fit(X, y)
    model.partial_fit(X[:50], y[:50], classes=np.unique(y))  # of one class only
    offset, before = model.offset_.copy(), clone_of(model)
    assert model.n_steps_ == 2
    model.partial_fit(X, y)
    assert model.n_steps_ == 2 + 5
    assert (model.offset_ == offset).all()
    assert not same_weights(model, before)
    ages = model._progress.state.buffer.age
    assert int(ages.max()) > 10, "chains were kept"
    with pytest.raises(ValueError, match="differs from the first"):
        model.partial_fit(X, y, classes=["a"])
    with pytest.raises(ValueError, match="not among the classes"):
        model.partial_fit(X, np.array(["new"] * len(y)))
    for _ in range(20):
        model.partial_fit(X, y)
    assert model.score(X, y) > 0.85


def clone_of(model):
    return pickle.loads(pickle.dumps(model))


def test_a_pickled_estimator_predicts_samples_and_goes_on_alike(iris):
    model = quick().fit(*iris)
    other = clone_of(model)
    assert (model.sample(4) == other.sample(4)).all()
    assert (model.score_samples(iris[0]) == other.score_samples(iris[0])).all()
    assert same_weights(model.partial_fit(*iris), other.partial_fit(*iris))
    assert not hasattr(clone(model), "model_")


def test_a_partial_fit_that_fails_leaves_the_estimator_as_it_was(iris, monkeypatch):
    model = quick().fit(*iris)
    before = model._progress.state.snapshot()

    def fail(session):
        session.state.step += 1
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "train", fail)
    with pytest.raises(KeyboardInterrupt):
        model.partial_fit(*iris)
    after = model._progress.state.snapshot()
    assert before.header == after.header
    assert all(torch.equal(after.tensors[name], value) for name, value in before.tensors.items())


def test_images_are_mapped_to_the_box_and_convolved():
    X, y = load_digits(n_class=3, return_X_y=True)
    model = quick(image_shape=(8, 8), network="conv-4", steps=40).fit(X, y)
    assert (model.offset_, model.scale_) == (pytest.approx(8), pytest.approx(8))
    samples = model.sample(3, 2)
    assert samples.shape == (3, 64)
    assert samples.min() >= 0
    assert samples.max() <= 16
    assert model.score(X, y) > 0.7
    with pytest.raises(DataError, match="does not fit rows of 64"):
        JEMClassifier(image_shape=(8, 9)).fit(X, y)
    colour = quick(image_shape=(1, 8, 8), network="conv-4", steps=40).fit(X, y)
    assert same_weights(model, colour)


def test_it_works_inside_scikit_learn_s_tools(iris):
    X, y = iris
    pipeline = make_pipeline(PolynomialFeatures(2, include_bias=False), quick())
    search = GridSearchCV(pipeline, {"jemclassifier__generative_weight": [0.5, 1.0]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.6
    assert search.best_estimator_.score_samples(X).shape == (150,)
    out_of_fold = cross_val_predict(quick(), X, y, cv=2, method="predict_proba")
    assert out_of_fold.shape == (150, 3)
    for method in ("sigmoid", "isotonic"):
        calibrated = CalibratedClassifierCV(quick(), method=method, cv=2).fit(X, y)
        np.testing.assert_allclose(calibrated.predict_proba(X).sum(axis=1), 1)
