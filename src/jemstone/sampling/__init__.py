"""Moving points down an energy: kernels, starts, persistent chains, samples."""

from jemstone.sampling.buffer import Draw, ReplayBuffer
from jemstone.sampling.conditioned import anchored, counterfactual, denoise, inpaint
from jemstone.sampling.generate import generate
from jemstone.sampling.initial import ClassGaussian, Initial, from_data, uniform
from jemstone.sampling.kernels import (
    ChainInfo,
    ChainState,
    Sampler,
    clipped,
    langevin,
    langevin_temperature,
    mala,
    normalized,
    run_chains,
)

__all__ = [
    "ChainInfo",
    "ChainState",
    "ClassGaussian",
    "Draw",
    "Initial",
    "ReplayBuffer",
    "Sampler",
    "anchored",
    "clipped",
    "counterfactual",
    "denoise",
    "from_data",
    "generate",
    "inpaint",
    "langevin",
    "langevin_temperature",
    "mala",
    "normalized",
    "run_chains",
    "uniform",
]
