"""The training loop by hand, on two interleaved half moons: the four parts of a JEM, and no Session.

What one learns: a step is draw chains, move them, compare, descend. EnergyClassifier, ReplayBuffer, run_chains and
jem_loss need nothing from each other but tensors, so each can be replaced by your own.
"""

import sys

import torch
from sklearn.datasets import make_moons
from sklearn.metrics import roc_auc_score

import jemstone as jem


def main(steps=600):
    points, classes = make_moons(2000, noise=0.08, random_state=0)
    x = torch.tensor(points).float()
    x, y = (x - x.mean(dim=0)) / x.std(dim=0), torch.tensor(classes)
    torch.manual_seed(0)
    model = jem.EnergyClassifier(jem.MLP(2, 2, width=64))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    start = jem.uniform((2,), None)  # vectors have no box: within four standard deviations
    sampler = jem.langevin(step_size=0.02, noise=0.2)  # T = noise^2 / (2 step_size) = 1: the density itself
    buffer = jem.ReplayBuffer.create(1000, start, 2, jem.generator(0, "buffer"))
    weights = jem.LossWeights(class_nll=1.0, marginal=1.0, energy_l2=0.001)

    for step in range(steps):
        rng = jem.generator(0, "step", step)
        rows = torch.randint(len(x), (100,), generator=rng)
        batch = jem.Batch(x[rows], y[rows])
        draw = buffer.draw(100, rng, initial=start, restart_rate=0.05)
        negatives, _ = jem.run_chains(sampler, draw.x, jem.energy_gradient(model), 20, rng)
        loss = jem.jem_loss(model, batch, batch, jem.Negatives(negatives), weights)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        buffer.store(draw, negatives, 20)
        if step % 100 == 0:
            print(f"step {step}: class NLL {loss.class_nll:.3f}, energy gap {loss.energy_gap:+.3f}")

    elsewhere = start(torch.zeros(2000, dtype=torch.int64), jem.generator(0, "elsewhere"))
    with torch.no_grad():
        accuracy = (model(x).argmax(dim=1) == y).float().mean().item()
        scores = torch.cat([model.log_density(x), model.log_density(elsewhere)])
    auroc = float(roc_auc_score([1] * len(x) + [0] * len(elsewhere), scores.numpy()))
    print(f"accuracy {accuracy:.3f}; AUROC of log p(x), moons against uniform points: {auroc:.3f}")
    return {"accuracy": accuracy, "auroc": auroc, "chains": buffer.x}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
