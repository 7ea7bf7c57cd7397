"""Langevin and MALA on a Gaussian, where every answer is known.

What one learns: a sampler sees a model only as x -> (E(x), grad E(x)), so a formula will do. Unadjusted Langevin,
x' = x - alpha grad E(x) + sigma xi, is biased: on E(x) = lambda x^2 / 2 its stationary variance is
sigma^2 / (1 - (1 - alpha lambda)^2), not T / lambda with T = sigma^2 / (2 alpha). MALA corrects that by a test.
"""

import math
import sys

import torch

from jemstone import generator, langevin, langevin_temperature, mala, run_chains

STIFFNESS = 2.0
CHAINS = 20_000


def gaussian(x):
    """E(x) = STIFFNESS x^2 / 2 in nats, and its gradient: at T = 1 a Gaussian of variance 1 / STIFFNESS."""
    return 0.5 * STIFFNESS * x.square().sum(dim=1), STIFFNESS * x


def main(steps=300):
    print(f"exact variance {1 / STIFFNESS:.4f}")
    print("step size  langevin  its formula  mala    accepted")
    rows = []
    for step_size in (0.05, 0.2, 0.5, 0.8):
        noise = math.sqrt(2 * step_size)
        assert math.isclose(langevin_temperature(step_size, noise), 1.0)
        formula = noise**2 / (1 - (1 - step_size * STIFFNESS) ** 2)
        variances, accepted = {}, 0.0
        for name, sampler in (("langevin", langevin(step_size, noise)), ("mala", mala(step_size))):
            rng = generator(0, name)
            start = torch.randn(CHAINS, 1, generator=rng)
            x, info = run_chains(sampler, start, gaussian, steps, rng)
            variances[name] = x.var().item()
            accepted = info.accepted.mean().item()
        rows.append({"step_size": step_size, **variances, "formula": formula, "accepted": accepted})
        print(f"{step_size:9} {variances['langevin']:9.4f} {formula:12.4f} {variances['mala']:7.4f} {accepted:9.2f}")
    return rows


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
