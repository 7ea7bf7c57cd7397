"""A stream of digits that begins to lose contrast half-way: scored in bulk, and compared with what was held out.

What one learns: every input gets a row, those that cannot be read one with an error; the log densities of a stream tell
when it stops being what the model was trained on, without a label, and in which window.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from jemstone import Predictor, Session, load_dataset, recipe
from jemstone.deployment.bulk import score
from jemstone.deployment.bulk_parts import read_log_density
from jemstone.deployment.calibration import Policy
from jemstone.deployment.drift import drift, verdicts, windows


def main(steps=300):
    data = load_dataset("digits")
    images = (data.test.inputs.squeeze(1).numpy() + 1) / 2  # as others would have them, in [0, 1]
    stream = images.copy()
    stream[len(stream) // 2 :] *= 0.5
    stream[7] = np.nan
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = recipe("jem-small").with_values(steps=steps, network={"name": "conv-16"}, batch_size=32)
        for _ in Session.start(config, run=folder / "run").train():
            pass
        predictor = Predictor.load(folder / "run", policy=Policy(error=0.1))
        np.savez_compressed(folder / "stream.npz", images=stream)
        summary = score(predictor, folder / "stream.npz", folder / "scores.parquet")
        density = read_log_density(folder / "scores.parquet", predictor)
    print(summary)

    parts = windows(density, 60)
    found = [drift(predictor.calibration.reference, part, predictor.thresholds.density) for part in parts]
    words = verdicts(found)
    for one, word in zip(found, words, strict=True):
        print(f"{one.n} inputs: median {one.median:6.2f} nats, PSI {one.psi:.2f}, p-value {one.p_value:.1g}: {word}")
    return {"summary": summary, "words": words}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
