"""Find wrong labels in the data that a model was trained on: 5 % are flipped, and the audit ranks all by suspicion.

What one learns: trained for long on wrong labels, a classifier knows them by heart and finds them right; a JEM trained
as long still doubts them. With 300 steps instead of 1200 both do. The sheet shows the JEM's most suspicious. On the
command line: `jemstone audit RUN SOURCE --out DIR`. One seed: benchmarks/audit.py has five, and networks that did not
see what they rank.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from jemstone import Session, Split, generator, load_dataset, load_trained, recipe
from jemstone.deployment.audit import audit
from jemstone.deployment.contact_sheet import contact_sheet


def main(steps=1200, folder="runs/examples"):
    data = load_dataset("digits")
    rng, true = generator(0, "flips"), data.train.labels
    flipped = torch.randperm(len(true), generator=rng)[: len(true) // 20]
    labels = true.clone()
    labels[flipped] = (true[flipped] + torch.randint(1, 10, (len(flipped),), generator=rng)) % 10
    noisy = replace(data, train=Split(data.train.inputs, labels))

    results = {}
    for name in ("classifier-small", "jem-small"):
        with tempfile.TemporaryDirectory() as temporary:
            for _ in Session.start(recipe(name).with_values(steps=steps), noisy, run=Path(temporary) / name).train():
                pass
            found = audit(load_trained(Path(temporary) / name), noisy.train)
        wrong = labels != true
        first = found.orders()["mislabelled"][: len(flipped)]
        flagged = found.reasons()["mislabelled"]
        results[name] = {
            "precision of the first": float(wrong[first].float().mean()),
            "flagged": int(flagged.sum()),
            "of them wrong": int((flagged & wrong).sum()),
        }
        print(f"{name:17} {len(flipped)} flips:", results[name])
    Path(folder).mkdir(parents=True, exist_ok=True)
    contact_sheet(found, noisy.train.inputs, data.class_names).save(Path(folder) / "audit.png")
    return results


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
