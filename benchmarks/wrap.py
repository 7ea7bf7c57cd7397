"""A pretrained network from a wheel, wrapped, then fine-tuned as a JEM and with outliers.

    pip install --no-deps facenet-pytorch scikit-image
    python benchmarks/wrap.py [--outside textures=textures.npz mnist=mnist.npz] [--outliers SOURCE] [--steps 300]

The network is RNet of MTCNN (Zhang et al. 2016): faces of 24x24 pixels, its weights in the wheel of facenet-pytorch.
The data are the 200 grey patches of 25x25 pixels, half of them faces (Labeled Faces in the Wild), in the wheel of
scikit-image: 40 to test on, 80 to calibrate on, 80 to fine-tune on. RNet was trained on other pictures. For each of
wrapped, JEM and energy fine-tuning: accuracy, ECE before and after its temperature, the error among what is accepted,
and the AUROC of log density and of the largest probability against each set outside. Writes results/wrap.json.

The function `rnet` is what `jemstone wrap py:benchmarks/wrap.py:rnet` calls.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jemstone import Adapted, Session, load_dataset, load_inputs, recipe, starting_from, wrap
from jemstone.deployment.calibration import Policy
from jemstone.deployment.predictor import Predictor
from jemstone.evaluation.calibration import ece
from jemstone.evaluation.detection import auroc
from jemstone.networks.torchvision_ops import make_importable

SHAPE = (1, 25, 25)


def rnet() -> nn.Module:
    """RNet as a classifier of [other, face]: logits in the place of its softmax, bytes scaled as in its pipeline."""
    make_importable()
    from facenet_pytorch.models.mtcnn import RNet

    network = RNet()
    network.softmax5_1 = nn.Identity()
    # (byte - 127.5) / 128, of pixels in [0, 1]; it returns boxes, and then what were probabilities.
    return Adapted(network, size=24, mean=(0.5,), std=(128 / 255,), output=1)


def write_faces(path: Path) -> Path:
    """The patches as a .npz: every fifth is for the test split."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit("The patches are in the wheel of scikit-image: pip install --no-deps scikit-image")
    images = np.load(Path(spec.origin).parent / "data" / "lfw_subset.npy").astype(np.float32)
    labels = np.repeat([1, 0], 100)  # the first hundred are faces
    test = np.arange(200) % 5 == 0
    np.savez(
        path,
        train_images=images[~test],
        train_labels=labels[~test],
        test_images=images[test],
        test_labels=labels[test],
        class_names=np.array(["other", "face"]),
    )
    return path


def log_density(logits: Tensor) -> np.ndarray:
    """logsumexp of the logits, nats."""
    return logits.double().logsumexp(dim=1).numpy()


def confidence(logits: Tensor) -> np.ndarray:
    """The largest probability, as the network has it: at temperature 1."""
    return logits.double().softmax(dim=1).amax(dim=1).numpy()


def measured(run: Path, outside: dict[str, Tensor]) -> dict[str, Any]:
    """What the table says of one run."""
    # Of 40 examples without a mistake no smaller error can be promised: 0.95 is 1 - 0.9^29.
    predictor = Predictor.load(run, policy=Policy(error=0.1))
    data = load_dataset(predictor.trained.config.data.source, validation=0.5)
    logits, labels = predictor.trained.logits(data.test.inputs), data.test.labels.numpy()
    inside = predictor.predictions(logits)
    accepted, wrong = inside.accepted, inside.index != labels
    far = {name: predictor.trained.logits(x) for name, x in outside.items()}
    temperature = predictor.calibration.temperature
    return {
        "accuracy": round(float(1 - wrong.mean()), 4),
        "temperature": round(temperature, 4),
        "ece": round(ece(logits.numpy(), labels).value, 4),
        "ece_scaled": round(ece(logits.numpy() / temperature, labels).value, 4),
        "accepted": round(float(accepted.mean()), 4),
        "error_of_accepted": round(float(wrong[accepted].mean()) if accepted.any() else 0.0, 4),
        "outside": {
            name: {
                "auroc_log_density": round(auroc(*map(log_density, (logits, found))), 4),
                "auroc_confidence": round(auroc(*map(confidence, (logits, found))), 4),
                "refused": round(float(1 - predictor.predictions(found).accepted.mean()), 4),
            }
            for name, found in far.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outside", nargs="*", default=[], metavar="NAME=SOURCE", help="sets to tell from faces")
    parser.add_argument("--outliers", default="digits", metavar="SOURCE", help="of energy fine-tuning; not among those")
    parser.add_argument("--steps", type=int, default=300, help="of each fine-tuning")
    parser.add_argument("--json", type=Path, help="where to write (default: results/wrap.json)")
    options = parser.parse_args()

    sets = {"digits": "digits", **dict(pair.split("=", 1) for pair in options.outside)}
    outside = {name: load_inputs(source, SHAPE)[:1000] for name, source in sets.items()}
    noise = torch.rand(500, *SHAPE, generator=torch.Generator().manual_seed(0))
    outside["noise"] = 2 * noise - 1
    few = {"steps": options.steps, "batch_size": 32, "real_batch_size": 32, "validate_every": 0, "device": "cpu"}
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        wrapped = wrap(f"py:{Path(__file__)}:rnet", str(write_faces(home / "faces.npz")), home / "wrapped").path
        recipes = {
            "jem": recipe("jemstone-small").with_values(optimizer={"learning_rate": 1e-3, "warmup_steps": 5}, **few),
            "energy-finetune": recipe("energy-finetune").with_values(data={"outliers": options.outliers}, **few),
        }
        rows["wrapped"] = measured(wrapped, outside)
        for name, config in recipes.items():
            session = Session.start(starting_from(config, wrapped), run=home / name)
            list(session.train())
            failures = len(session.state.treatment.failures)
            rows[name] = {"recoveries": failures, "margins": session.config.data.margins}
            rows[name] |= measured(home / name, outside)
    for name, row in rows.items():
        print(name, row)
    sys.path.insert(0, str(Path(__file__).parent))
    import common

    content = {"steps": options.steps, "outliers": options.outliers, "runs": rows}
    print(f"Written to {common.write('wrap', content, options.json)}.")


if __name__ == "__main__":
    main()
