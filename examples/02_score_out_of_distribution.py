"""Which inputs are unlike the training data? AUROC of log p(x) between digits and digits turned by 90 degrees.

What one learns: any classifier has the score log p(x) = logsumexp of its logits; training the density makes it mean
something. 0.5 is guessing, 1 is perfect. One run of one seed: for claims with intervals see `jemstone evaluate`.
"""

import sys
import tempfile
from pathlib import Path

import torch
from sklearn.metrics import roc_auc_score

from jemstone import Session, load_dataset, load_trained, recipe


def auroc(trained, inside, outside):
    """Probability that a random inside input scores higher than a random outside one."""
    scores = trained.log_density(torch.cat([inside, outside]))
    return float(roc_auc_score([1] * len(inside) + [0] * len(outside), scores.numpy()))


def main(steps=400):
    data = load_dataset("digits")
    digits, labels = data.test.inputs, data.test.labels
    unlike = {"rotated": digits.rot90(dims=(2, 3)), "inverted": -digits}
    results = {}
    for name in ("classifier-small", "jem-small"):
        config = recipe(name).with_values(steps=steps, network={"name": "conv-16"}, batch_size=32, real_batch_size=32)
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / name
            for _ in Session.start(config, data, run=run).train():
                pass
            trained = load_trained(run)
        accuracy = (trained.logits(digits).argmax(dim=1) == labels).float().mean().item()
        results[name] = {"accuracy": accuracy} | {kind: auroc(trained, digits, x) for kind, x in unlike.items()}
        print(f"{name:17}", "  ".join(f"{kind} {value:.3f}" for kind, value in results[name].items()))
    return results


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
