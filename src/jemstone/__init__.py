"""jemstone: train any classifier as the energy-based model that it already is."""

from jemstone.data import Augment, Batch, Dataset, Split, load_dataset, load_inputs
from jemstone.deployment.calibration import Policy
from jemstone.deployment.estimator import JEMClassifier
from jemstone.deployment.predictor import Prediction, Predictions, Predictor
from jemstone.deployment.wrap import wrap
from jemstone.energy import EnergyClassifier, EnergyGrad, energy_gradient
from jemstone.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Diverged,
    JemstoneError,
    MissingExtra,
    RunError,
)
from jemstone.evaluation import Protocol, Result, evaluate
from jemstone.evaluation.evaluate_run import evaluate_run
from jemstone.networks import MLP, Adapted, ConvNet, WideResNet, build_network, load_jem_checkpoint
from jemstone.objective import Loss, LossWeights, Negatives, jem_loss
from jemstone.report import write_report
from jemstone.rng import generator
from jemstone.sampling import (
    ClassGaussian,
    ReplayBuffer,
    Sampler,
    clipped,
    counterfactual,
    denoise,
    from_data,
    generate,
    inpaint,
    langevin,
    langevin_temperature,
    mala,
    run_chains,
    uniform,
)
from jemstone.training.config import TrainConfig
from jemstone.training.recipes import RECIPES, recipe
from jemstone.training.session import Session
from jemstone.training.start_from import starting_from
from jemstone.training.trained import Trained, load_trained
from jemstone.version import __version__

__all__ = [
    "MLP",
    "RECIPES",
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
    "MissingExtra",
    "Negatives",
    "Policy",
    "Prediction",
    "Predictions",
    "Predictor",
    "Protocol",
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
