"""Configurations: round trip, and every impossible value named."""

import json
from dataclasses import replace

import pytest

from jemstone.errors import ConfigError
from jemstone.training.config import ChainConfig, NetworkConfig, OptimizerConfig, TrainConfig
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


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_starts_with_the_guard_or_recovery_switched_off(name):
    config = recipe(name)
    assert config.limits.window > 0
    assert config.recovery.attempts > 0


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
        (lambda: recipe("jem").with_values(colour="red"), "no such setting.*colour"),
        (lambda: recipe("jem").with_values(chains={"colour": "red"}), "no such setting.*colour"),
        (lambda: recipe("jem").with_values(seed={"chains": 1}), "no such setting"),
        (lambda: recipe("jem").with_values(colour={"red": 1}), "no such setting.*colour"),
        (
            lambda: recipe("jem").with_values(chains={"max_steps": 5}),
            r"chains.max_steps \(0 is off\) must be at least 20",
        ),
        (lambda: recipe("jem").with_values(attack={"steps": 0}), "attack.steps must be at least 1"),
        (lambda: recipe("jem").with_values(recovery={"attempts": -1}), "recovery.attempts must be at least 0"),
        (lambda: recipe("jem").with_values(classifier_steps=-1), "classifier_steps must be at least 0"),
        (
            lambda: recipe("jem").with_values(classifier_steps=5, weights={"class_nll": 0.0}),
            "train the class term alone",
        ),
        (
            lambda: recipe("jem").with_values(attack={"radius": 0.5}, weights={"class_nll": 0.0}),
            "class term adversarial",
        ),
        (lambda: recipe("classifier").with_values(optimizer={"balance": 1.0}), "switch both on"),
        (lambda: recipe("jem").with_values(optimizer={"balance": 1.0}, weights={"class_nll": 0.0}), "switch both on"),
        (lambda: TrainConfig.from_dict({"no_such_field": 1}), "no_such_field"),
        (lambda: TrainConfig.from_dict({"chains": {"kernel": "hmc"}}), "hmc"),
    ],
)
def test_impossible_values_are_named(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def unchecked(kind, **values):
    """A settings object as it is built where no type checker runs; under pytest one does, and speaks first."""
    settings = object.__new__(kind)
    vars(settings).update(vars(kind()) | values)
    return settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (unchecked(TrainConfig, precision="bf16"), "^precision must be one of auto, 32-true, bf16-mixed; got 'bf16'"),
        (unchecked(TrainConfig, device="gpu"), "^device must be one of auto, cpu, cuda; got 'gpu'"),
        (
            unchecked(TrainConfig, network=unchecked(NetworkConfig, norm="layer")),
            "^network.norm must be one of none, batch, group, instance; got 'layer'",
        ),
        (
            unchecked(TrainConfig, network=unchecked(NetworkConfig, activation="gelu")),
            "^network.activation must be one of leaky_relu, silu, relu; got 'gelu'",
        ),
        (
            unchecked(TrainConfig, network=unchecked(NetworkConfig, statistics="none")),
            "^network.statistics must be one of batch, shared, separate, frozen; got 'none'",
        ),
        (
            unchecked(ChainConfig, kernel="hmc"),
            "^chains.kernel must be one of langevin, clipped, normalized, mala; got 'hmc'",
        ),
        (unchecked(ChainConfig, start="noise"), "^chains.start must be one of uniform, gaussian, data; got 'noise'"),
        (unchecked(ChainConfig, mode="test"), "^chains.mode must be one of eval, train; got 'test'"),
        (unchecked(OptimizerConfig, name="lion"), "^optimizer.name must be one of adam, adamw, sgd, muon; got 'lion'"),
        (unchecked(OptimizerConfig, schedule="linear"), "^optimizer.schedule must be one of constant, step, cosine"),
    ],
)
def test_a_word_that_is_no_choice_is_named_with_the_choices(settings, message):
    with pytest.raises(ConfigError, match=message):
        settings.__post_init__()


def test_milestones_that_came_as_a_list_are_a_tuple_and_settings_have_a_hash():
    optimizer = unchecked(OptimizerConfig, schedule="step", milestones=[0.3, 0.6])
    optimizer.__post_init__()
    assert optimizer == OptimizerConfig(schedule="step", milestones=(0.3, 0.6))
    assert hash(TrainConfig(optimizer=optimizer)) == hash(TrainConfig(optimizer=replace(optimizer)))


BAD = (float("inf"), float("-inf"), float("nan"), -1.0)
AT_LEAST_ZERO = (
    *("chains.noise", "chains.clip", "chains.step_size", "limits.energy", "limits.gap", "epochs"),
    *("optimizer.learning_rate", "optimizer.momentum", "optimizer.weight_decay", "optimizer.clip_norm"),
    *("optimizer.sam_rho", "optimizer.decay_factor", "chains.restart_rate", "ema", "augment.noise"),
    *("weights.class_nll", "weights.marginal", "weights.joint", "weights.conditional", "weights.energy_l2"),
    *("weights.discrimination", "optimizer.balance", "attack.radius", "limits.median_energy", "limits.median_gap"),
    *("limits.window", "limits.saturated", "limits.distinct", "limits.class_coverage", "limits.accuracy_drop"),
)


@pytest.mark.parametrize("name", AT_LEAST_ZERO)
@pytest.mark.parametrize("value", BAD)
def test_numbers_are_finite_and_not_negative(name, value):
    group, _, field = name.rpartition(".")
    with pytest.raises(ConfigError, match=field):
        recipe("jem").with_values(**({group: {field: value}} if group else {field: value}))


COUNTS = ("steps", "batch_size", "real_batch_size", "log_every", "checkpoint_every", "keep_checkpoints")


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_at_least_one(name):
    for value in (0, -3):
        with pytest.raises(ConfigError, match=f"^{name} must be at least 1"):
            recipe("jem").with_values(**{name: value})
    with pytest.raises(ConfigError, match=r"^validate_every must be at least 0"):
        recipe("jem").with_values(validate_every=-1)
    for name in ("within", "snapshots", "snapshot_every", "probation"):
        with pytest.raises(ConfigError, match=f"^recovery.{name} must be at least 1"):
            recipe("jem").with_values(recovery={name: 0})
