"""The public names: this list is the promise. A change here is a change of the interface."""

import importlib.resources
import inspect

import pytest

import jemstone

PUBLIC = [
    "Adapted",
    "Augment",
    "Batch",
    "CheckpointError",
    "ClassGaussian",
    "ConfigError",
    "ConvNet",
    "DataError",
    "Dataset",
    "Diverged",
    "EnergyClassifier",
    "EnergyGrad",
    "JEMClassifier",
    "JemstoneError",
    "Loss",
    "LossWeights",
    "MLP",
    "MissingExtra",
    "Negatives",
    "Policy",
    "Prediction",
    "Predictions",
    "Predictor",
    "Protocol",
    "RECIPES",
    "ReplayBuffer",
    "Result",
    "RunError",
    "Sampler",
    "Session",
    "Split",
    "TrainConfig",
    "Trained",
    "WideResNet",
    "__version__",
    "build_network",
    "clipped",
    "counterfactual",
    "denoise",
    "energy_gradient",
    "evaluate",
    "evaluate_run",
    "from_data",
    "generate",
    "generator",
    "inpaint",
    "jem_loss",
    "langevin",
    "langevin_temperature",
    "load_dataset",
    "load_inputs",
    "load_jem_checkpoint",
    "load_trained",
    "mala",
    "recipe",
    "run_chains",
    "starting_from",
    "uniform",
    "wrap",
    "write_report",
]
WITHOUT_DOCSTRING = {"RECIPES", "EnergyGrad", "__version__"}
"""Values and an alias: they have no place for one."""


def test_the_list_is_held():
    assert sorted(jemstone.__all__) == PUBLIC


def test_no_name_is_given_twice():
    assert len(set(jemstone.__all__)) == len(jemstone.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_there_and_explained(name):
    value = getattr(jemstone, name)
    if name in WITHOUT_DOCSTRING:
        return
    text = inspect.getdoc(value) or ""
    assert len(text) > 20
    assert not text.startswith(f"{name}("), "that is the signature which Python writes by itself"
    assert value.__doc__ is not None, "inherited, not its own"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_method_of_a_public_class_is_explained(name):
    value = getattr(jemstone, name)
    if not inspect.isclass(value) or not value.__module__.startswith("jemstone"):
        return
    own = {key: member for key, member in vars(value).items() if not key.startswith("_")}
    methods = [key for key, m in own.items() if inspect.isfunction(m) or isinstance(m, (classmethod, property))]
    assert [key for key in methods if not inspect.getdoc(own[key])] == []


def test_star_import_gives_exactly_the_names():
    space: dict[str, object] = {}
    exec("from jemstone import *", space)
    assert set(space) - {"__builtins__"} == set(PUBLIC)


def test_types_ship():
    assert importlib.resources.files("jemstone").joinpath("py.typed").is_file()
