"""Any classifier, measured: calibration before and after temperature scaling, and the energy score it has for free.

What one learns: `evaluate` takes a module that knows nothing of jemstone; every number comes with a 95 % interval, and
what makes numbers doubtful is said as a warning. This network is handed over in training mode, as it is easily done.
"""

import sys
from dataclasses import replace

import torch
from torch import nn

from jemstone import EnergyClassifier, evaluate, load_dataset
from jemstone.evaluation import BUDGETS


def trained(data, steps):
    """A plain classifier of 8x8 digits, by plain torch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(data.train), (64,))
        loss = nn.functional.cross_entropy(net(data.train.inputs[rows]), data.train.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


def main(steps=500):
    data = load_dataset("digits")
    protocol = replace(BUDGETS["quick"].only("calibration", "ood"), resamples=200)
    found = evaluate(EnergyClassifier(trained(data, steps)), data, protocol=protocol)
    results = {result.name: result for result in found.results}

    print(f"accuracy {results['accuracy'].value:.3f}, T = {results['temperature'].value:.2f}")
    for name in ("ece", "scaled/ece"):
        print(f"{name:10} {results[name].value:.3f} [{results[name].low:.3f}, {results[name].high:.3f}]")
    end = "/log_density/auroc"
    aurocs = {name.removesuffix(end): result for name, result in results.items() if name.endswith(end)}
    print("AUROC of the energy score, log p(x) of a network that was never trained to be a density:")
    for name, area in aurocs.items():
        print(f"  {name:16} {area.value:.3f} [{area.low:.3f}, {area.high:.3f}]")
    for warning in found.figures["warnings"]:
        print(f"warning, {warning['name']}: {warning['text']} {warning['meaning']}")
    return {"results": results, "aurocs": aurocs, "warnings": found.figures["warnings"]}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
