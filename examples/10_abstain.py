"""A classifier that may say "I don't know", with guarantees: thresholds from held-out data, judged on new data.

What one learns: which promise each threshold makes and which error it bounds, that promises hold for data like the
held-out data alone, and that a log-density refuses other inputs, which confidence may not.
"""

import sys
import tempfile
from pathlib import Path

import torch

from jemstone import Session, load_dataset, load_trained, recipe
from jemstone.deployment.abstention import confidence_threshold, density_threshold, set_threshold


def scores(trained, inputs):
    """Probabilities (n, k) and log-densities (n,)."""
    logits = trained.logits(inputs)
    return logits.softmax(dim=1).double().numpy(), logits.logsumexp(dim=1).double().numpy()


def main(steps=400):
    data = load_dataset("digits")
    config = recipe("jem-small").with_values(
        steps=steps, network={"name": "conv-16"}, batch_size=32, real_batch_size=32, device="cpu"
    )
    with tempfile.TemporaryDirectory() as folder:
        for _ in Session.start(config, data, run=Path(folder) / "jem").train():
            pass
        trained = load_trained(Path(folder) / "jem")

    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
    here, there = order[:180], order[180:]
    p, density = scores(trained, data.test.inputs[here])
    y = data.test.labels[here].numpy()
    floor = density_threshold(density, rejection=0.1)
    inside = density > floor  # strictly: the one at the threshold is no random draw of those that pass
    own, confidence, correct = p[range(len(y)), y], p.max(axis=1), p.argmax(axis=1) == y
    in_set = set_threshold(own[inside], coverage=0.95)
    enough = confidence_threshold(confidence[inside], correct[inside], error=0.05)

    results = {}
    for name, x in {"digits": data.test.inputs[there], "turned": data.test.inputs[there].rot90(dims=(2, 3))}.items():
        p, density = scores(trained, x)
        inside = density >= floor
        accepted = inside & (p.max(axis=1) >= enough)
        results[name] = {"refused as unlike": float((~inside).mean()), "accepted": float(accepted.mean())}
        print(f"{name:7}", "  ".join(f"{kind} {value:.3f}" for kind, value in results[name].items()))
        if name == "digits":
            y = data.test.labels[there].numpy()
            results["error"] = float((p.argmax(axis=1) != y)[accepted].mean())
            results["coverage"] = float((p[range(len(y)), y] >= in_set)[inside].mean())
    print(f"among accepted digits {results['error']:.3f} are wrong; sets hold the label of {results['coverage']:.3f}")
    return results


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
