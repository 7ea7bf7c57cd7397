"""What would make this 3 an 8? Ten digits moved toward every class, by a JEM and by a plain classifier.

What one learns: `counterfactual` descends E(x', y) + ||x' - x||^2 / (2 radius^2). Both networks end convinced. Whether
a digit was drawn is judged without a network, by the nearest training image: is it of the class, and how far away? From
a real test image it is 2.1. In the figures the left column is the image, the others go toward 0 to 9.
"""

import sys
from pathlib import Path

import torch

from jemstone import Session, generator, langevin, load_dataset, recipe
from jemstone.data import grid
from jemstone.sampling import counterfactual

RADIUS, CHAIN = 4.0, 100


def main(steps=1200, folder="runs/examples"):
    data = load_dataset("digits")
    ten = torch.stack([data.test.inputs[data.test.labels == label][0] for label in range(10)])
    x, toward = ten.repeat_interleave(10, dim=0), torch.arange(10).repeat(10)
    sampler = langevin(1.0, 0.01, box=data.box)
    found = {}
    for name in ("classifier-small", "jem-small"):
        session = Session.start(recipe(name).with_values(steps=steps), data)
        for _ in session.train():
            pass
        moved = counterfactual(session.model, sampler, x, toward, CHAIN, generator(0, "toward"), radius=RADIUS)
        with torch.no_grad():
            own = session.model.eval()(moved).softmax(dim=1)[torch.arange(100), toward]
        nearest = torch.cdist(moved.flatten(1), data.train.inputs.flatten(1)).min(dim=1)
        found[name] = {
            "own probability": float(own.mean()),
            "moved": float((moved - x).flatten(1).norm(dim=1).mean()),
            "nearest agrees": float((data.train.labels[nearest.indices] == toward).float().mean()),
            "nearest at": float(nearest.values.mean()),
        }
        print(f"{name:17}", "  ".join(f"{what} {value:.2f}" for what, value in found[name].items()))
        sheet = torch.cat([torch.cat([ten[row : row + 1], moved[10 * row : 10 * row + 10]]) for row in range(10)])
        Path(folder).mkdir(parents=True, exist_ok=True)
        grid(sheet, columns=11).save(Path(folder) / f"counterfactuals-{name}.png")
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
