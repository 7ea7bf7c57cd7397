"""A model leaves home: exported to ONNX, it labels and abstains where neither torch nor jemstone is installed.

What one learns: calibration and thresholds travel inside the file, whose metadata names the classes, so that whoever
runs it gets the same labels and the same 'I don't know'. It was compared with torch before it was kept.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from jemstone import Predictor, Session, load_dataset, recipe
from jemstone.deployment.calibration import Policy
from jemstone.deployment.export import export_onnx

ELSEWHERE = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
logits, probabilities, energy, accept, *_ = session.run(None, {"inputs": np.load("inputs.npy")})
names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
labels = np.array(names)[probabilities.argmax(axis=1)]
np.savez("answers.npz", labels=labels, probabilities=probabilities, energy=energy, accept=accept)
assert "torch" not in sys.modules
"""


def main(steps=400):
    data = load_dataset("digits", validation=0.25)
    config = recipe("jem-small").with_values(steps=steps, network={"name": "conv-16"}, real_batch_size=32)
    digits = (data.test.inputs[:100].numpy() + 1) / 2  # whoever uses the file has pixels in [0, 1]
    inputs = np.concatenate([digits, np.random.default_rng(0).random(digits.shape, np.float32)])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in Session.start(config, data, run=folder / "run").train():
            pass
        predictor = Predictor.load(folder / "run", data=data, policy=Policy(error=0.1))
        exported = export_onnx(predictor, folder / "model.onnx")
        np.save(folder / "inputs.npy", inputs)
        subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=folder, check=True)
        with np.load(folder / "answers.npz") as file:
            answers = dict(file)
    here = predictor(inputs)
    print(f"{exported.size / 1e3:.0f} kB; largest difference from torch on trial inputs {exported.parity:.0e}")
    for what, part in (("digits", slice(0, 100)), ("noise", slice(100, None))):
        print(f"{what}: accepted {answers['accept'][part].mean():.2f} there, {here.accepted[part].mean():.2f} here")
    return {"here": here, "there": answers, "exported": exported}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
