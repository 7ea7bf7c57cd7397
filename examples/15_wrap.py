"""A classifier of your own, at work without training it again; then trained on as a JEM.

What one learns: `wrap` makes a run of any module: what held-out data teach about it gives calibrated probabilities and
an 'I don't know'; `starting_from` trains on from its weights. `Adapted` puts its preprocessing inside the network.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from jemstone import Adapted, Predictor, Session, load_dataset, recipe, starting_from, wrap


def classifier(data, steps):
    """What an engineer may have: a network that was trained on RGB pixels in [0, 1], by plain torch."""
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 32, 3, padding=1), nn.SiLU())
    net = nn.Sequential(*conv, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(steps):
        rows = torch.randint(len(data.train), (64,))
        pixels = ((data.train.inputs[rows] + 1) / 2).expand(-1, 3, -1, -1)
        loss = nn.functional.cross_entropy(net(pixels), data.train.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


def score(predictor, data):
    """Accuracy, and the shares of digits and of their negatives (which nothing was told of) that are refused."""
    inside, negatives = predictor.predict(data.test.inputs), predictor.predict(-data.test.inputs)
    noise = predictor.predict(2 * torch.rand(data.test.inputs.shape, generator=torch.Generator().manual_seed(0)) - 1)
    right = torch.from_numpy(inside.index) == data.test.labels
    refused = {"digits": inside, "negatives": negatives, "noise": noise}
    return {"accuracy": right.float().mean().item()} | {k: 1 - v.accepted.mean() for k, v in refused.items()}


def main(steps=300):
    data = load_dataset("digits", validation=0.5)
    network = Adapted(classifier(data, steps), mean=(0.0,), std=(1.0,))  # pixels in [0, 1], as it was trained
    with tempfile.TemporaryDirectory() as folder:
        wrapped = wrap(network, "digits", Path(folder) / "wrapped").path
        config = starting_from(recipe("jemstone-small"), wrapped).with_values(steps=steps, validate_every=0)
        config = config.with_values(optimizer={"warmup_steps": 5})  # chains find the holes of a classifier at once
        list(Session.start(config, network=network, run=Path(folder) / "jem").train())
        found = {run: score(Predictor.load(Path(folder) / run, network=network), data) for run in ("wrapped", "jem")}
    for run, numbers in found.items():
        print(f"{run:8}", "  ".join(f"{name} {value:.3f}" for name, value in numbers.items()))
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
