"""Configurations: round trip, and every impossible value named."""

import json

import pytest

from jemstone.errors import ConfigError
from jemstone.training.config import ChainConfig, OptimizerConfig, TrainConfig
from jemstone.training.recipes import RECIPES, recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name):
    config = recipe(name)
    assert config.recipe == name
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_with_values_reaches_nested_fields_and_leaves_the_original():
    config = recipe("jem")
    changed = config.with_values(seed=3, chains={"steps": 5})
    assert (changed.seed, changed.chains.steps, changed.chains.noise) == (3, 5, 0.01)
    assert (config.seed, config.chains.steps) == (0, 20)


def test_published_settings():
    """The numbers of the papers, typed in again: a recipe that drifts from them is caught."""
    jem, jempp, sada = recipe("jem"), recipe("jem++"), recipe("sada-jem")
    assert (jem.chains.steps, jem.chains.step_size, jem.chains.noise) == (20, 1.0, 0.01)
    assert (jem.chains.buffer_size, jem.chains.restart_rate, jem.chains.clamp) == (10_000, 0.05, False)
    assert (jem.network.name, jem.network.norm, jem.network.activation) == ("wrn-28-10", "none", "leaky_relu")
    assert (jem.optimizer.name, jem.optimizer.learning_rate, jem.optimizer.warmup_steps) == ("adam", 1e-4, 1000)
    assert (jem.batch_size, jem.epochs, jem.augment.noise, jem.chains.mode) == (64, 150, 0.03, "eval")
    assert (jempp.chains.kernel, jempp.chains.noise, jempp.chains.start) == ("clipped", 0.0, "gaussian")
    assert (jempp.chains.mode, jempp.network.norm, jempp.optimizer.name) == ("train", "batch", "sgd")
    assert (sada.chains.steps, sada.batch_size, sada.real_batch_size) == (5, 128, 64)
    assert (sada.optimizer.sam_rho, sada.optimizer.sam_adaptive, sada.augment_real.crop_padding) == (2.0, True, 0)
    assert not recipe("classifier").weights.generative


def test_total_steps():
    config = TrainConfig(epochs=3.0, batch_size=10)
    assert config.total_steps(105) == 32
    assert config.with_values(steps=7).total_steps(105) == 7


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ChainConfig(steps=0), "chains.steps"),
        (lambda: ChainConfig(step_size=0.0), "chains.step_size"),
        (lambda: ChainConfig(noise=-1.0), "chains.noise"),
        (lambda: ChainConfig(kernel="mala", noise=0.0), "kernel mala"),
        (lambda: ChainConfig(restart_rate=1.5), "restart_rate"),
        (lambda: ChainConfig(buffer_size=0), "buffer_size"),
        (lambda: OptimizerConfig(learning_rate=float("nan")), "learning_rate"),
        (lambda: OptimizerConfig(schedule="step"), "milestones"),
        (lambda: OptimizerConfig(milestones=(2.0,)), "milestones"),
        (lambda: TrainConfig(epochs=0.0), "epochs"),
        (lambda: TrainConfig(steps=0), "steps"),
        (lambda: TrainConfig(ema=1.0), "ema"),
        (lambda: recipe("jem").with_values(chains={"buffer_size": 10}), "Enlarge the buffer"),
        (lambda: recipe("resnet"), "Choose one of: classifier"),
        (lambda: TrainConfig.from_dict({"no_such_field": 1}), "no_such_field"),
        (lambda: TrainConfig.from_dict({"chains": {"kernel": "hmc"}}), "hmc"),
    ],
)
def test_impossible_values_are_named(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
