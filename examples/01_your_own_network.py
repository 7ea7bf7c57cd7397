"""Your own network as an energy-based model: train it with a recipe, score inputs by log p(x), draw samples.

What one learns: any module from inputs to logits will do; a recipe is a value that one changes; the trained model is
a classifier, a density (up to a constant) and a sampler at once.
"""

import sys

import torch
from torch import nn

from jemstone import Session, generate, generator, load_dataset, recipe


class MyNetwork(nn.Module):
    """8x8 grey digits (b, 1, 8, 8) -> logits (b, 10). No batch norm and a smooth activation make stable energies."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 64, 4, stride=2), nn.SiLU()
        )
        self.head = nn.Linear(64 * 3 * 3, 10)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


def main(steps=300):
    data = load_dataset("digits")
    settings = {"steps": steps, "optimizer": {"warmup_steps": steps // 10}, "device": "cpu"}
    config = recipe("jem-small").with_values(**settings)
    torch.manual_seed(0)  # your module, so your weights
    session = Session.start(config, data, MyNetwork())
    for metrics in session.train():
        if metrics["step"] % 100 == 0:
            print(f"step {metrics['step']}: accuracy {metrics['train_accuracy']:.2f}, gap {metrics['energy_gap']:+.2f}")

    model, test = session.model, data.test
    noise = torch.rand(test.inputs.shape, generator=generator(0, "noise")) * 2 - 1
    with torch.no_grad():
        accuracy = (model(test.inputs).argmax(dim=1) == test.labels).float().mean().item()
        digits, uniform = model.log_density(test.inputs).mean().item(), model.log_density(noise).mean().item()
    print(f"test accuracy {accuracy:.3f}; mean log p(x) + constant: digits {digits:.1f}, noise {uniform:.1f}")

    labels = torch.arange(10)
    samples = generate(model, session.initial, session.sampler, labels, steps=200, rng=generator(0, "samples"))
    with torch.no_grad():
        recognised = (model(samples).argmax(dim=1) == labels).float().mean().item()
    print(f"one sample per class from p(x|y): {recognised:.0%} recognised by the model itself")
    return {"accuracy": accuracy, "digits": digits, "noise": uniform, "samples": samples, "recognised": recognised}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
