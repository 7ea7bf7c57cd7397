"""What would make this 3 an 8? Digits moved toward every class, by a JEM and by a plain classifier.

What one learns: `counterfactual` descends E(x', y) + ||x' - x||^2 / (2 radius^2). A plain classifier is convinced by
changes that nobody sees a digit in; a JEM has to draw the digit, because E(x', y) asks for density, too. A network that
took part in neither judges.
"""

import sys
from pathlib import Path

import torch

from jemstone import Session, generator, langevin, load_dataset, recipe
from jemstone.data import grid
from jemstone.sampling import counterfactual

RADIUS, CHAIN = 4.0, 100


def trained(name, data, steps, seed=0):
    session = Session.start(recipe(name).with_values(steps=steps, seed=seed), data)
    for _ in session.train():
        pass
    return session.model.eval()


def main(steps=1200, folder="runs/examples"):
    data = load_dataset("digits")
    judge = trained("classifier-small", data, steps, seed=1)
    ten = torch.stack([data.test.inputs[data.test.labels == label][0] for label in range(10)])
    x, toward = ten.repeat_interleave(10, dim=0), torch.arange(10).repeat(10)
    sampler = langevin(1.0, 0.01, box=data.box)
    found, rows = {}, torch.arange(100)
    for name in ("classifier-small", "jem-small"):
        model = trained(name, data, steps)
        moved = counterfactual(model, sampler, x, toward, CHAIN, generator(0, "toward"), radius=RADIUS)
        with torch.no_grad():
            own, judged = model(moved).softmax(dim=1), judge(moved).argmax(dim=1)
        found[name] = {
            "own probability": float(own[rows, toward].mean()),
            "another network agrees": float((judged == toward).float().mean()),
            "distance": float((moved - x).flatten(1).norm(dim=1).mean()),
        }
        print(f"{name:17}", "  ".join(f"{what} {value:.2f}" for what, value in found[name].items()))
        Path(folder).mkdir(parents=True, exist_ok=True)
        sheet = torch.cat([torch.cat([ten[row : row + 1], moved[10 * row : 10 * row + 10]]) for row in range(10)])
        grid(sheet, columns=11).save(Path(folder) / f"counterfactuals-{name}.png")  # left the image, then toward 0 to 9
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
