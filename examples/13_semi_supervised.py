"""Ten labels per class, a thousand images without: the JEM learns p(x) from all of them, the classifier cannot.

What one learns: a label of -1 says that there is none, and nothing else changes; such images train log p(x). With few
labels that is where a density pays. The figure shows the test digits that only one of the two gets right. One seed:
benchmarks/semi_supervised.py has several, and scikit-learn's label spreading on the same images.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from jemstone import Session, Split, generator, load_dataset, recipe
from jemstone.data import grid

PER_CLASS = 10


def main(steps=800, folder="runs/examples"):
    data = load_dataset("digits")
    images, truth = data.train.inputs, data.train.labels
    order = torch.randperm(len(truth), generator=generator(0, "labels"))
    kept = torch.cat([order[truth[order] == label][:PER_CLASS] for label in range(10)])
    labels = torch.full_like(truth, -1)
    labels[kept] = truth[kept]
    few = replace(data, train=Split(images, labels))

    found, wrong = {}, {}
    for name in ("classifier-small", "jem-small"):
        session = Session.start(recipe(name).with_values(steps=steps), few)
        for _ in session.train():
            pass
        with torch.no_grad():
            guess = session.model.eval()(data.test.inputs).argmax(dim=1)
        wrong[name] = guess != data.test.labels
        found[name] = 1 - float(wrong[name].float().mean())
        print(f"{name:17} {PER_CLASS} labels per class: accuracy {found[name]:.3f}")
    # Top row: wrong by the classifier and right by the JEM; bottom row: the other way round.
    mended = data.test.inputs[wrong["classifier-small"] & ~wrong["jem-small"]][:16]
    spoilt = data.test.inputs[wrong["jem-small"] & ~wrong["classifier-small"]][:16]
    blank = torch.ones(16, *data.input_shape)
    rows = [torch.cat([row, blank[len(row) :]]) for row in (mended, spoilt)]
    Path(folder).mkdir(parents=True, exist_ok=True)
    grid(torch.cat(rows), columns=16).save(Path(folder) / "semi_supervised.png")
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
