"""What is exported computes what the predictor computes: the files are run here, apart from jemstone's own check."""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import logsumexp, softmax
from torch import nn

from jemstone import Adapted, build_network
from jemstone.cli import main
from jemstone.deployment.calibration import Policy, Thresholds
from jemstone.deployment.deployed import OUTPUTS, odds_of
from jemstone.deployment.export import export_onnx, export_program, export_weights
from jemstone.deployment.parity import BATCH_SIZES, TOLERANCE
from jemstone.deployment.predictor import Predictor
from jemstone.deployment.wrap import wrap
from jemstone.energy import EnergyClassifier
from jemstone.errors import MissingExtra, RunError
from jemstone.rng import seeded

onnx = pytest.importorskip("onnx", reason="Exports need the extra onnx: pip install 'jemstone[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="Exports need the extra onnx: pip install 'jemstone[onnx]'")

IMAGES, VECTORS = (3, 16, 16), (5,)


def of_network(predictor, name, shape, **settings):
    """The predictor with another network, untrained, its running averages moved."""
    with seeded(0, "test"):
        network = build_network(name, shape, 10, **settings)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    config = predictor.trained.config.with_values(network={"name": name, "activation": "leaky_relu", **settings})
    model = EnergyClassifier(network).eval()
    trained = replace(predictor.trained, model=model, config=config, input_shape=shape, buffer=None)
    moments = None
    if len(shape) == 1:
        moments = (torch.full(shape, 2020.3, dtype=torch.float64), torch.full(shape, 0.1, dtype=torch.float64))
    return Predictor(trained, predictor.calibration, predictor.policy, moments)


def run_onnx(path, inputs):
    session = onnxruntime.InferenceSession(path)
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"inputs": inputs}), strict=True))


def pixels(count, shape=(1, 8, 8), seed=0):
    return np.random.default_rng(seed).random((count, *shape), np.float32)


@pytest.fixture(scope="module")
def exported(predictor, tmp_path_factory):
    return export_onnx(predictor, tmp_path_factory.mktemp("export") / "new" / "model.onnx")


def test_onnx_is_the_predictor(predictor, exported):
    assert exported.parity <= 1e-5
    assert exported.size == exported.path.stat().st_size
    for count in (1, 3, 130):
        inputs = pixels(count, seed=count)
        inputs[::2] = (
            (predictor.trained.buffer[: len(inputs[::2])].numpy() + 1)[: len(inputs)] / 2 if count < 100 else 0
        )
        found, here = run_onnx(exported.path, inputs), predictor(inputs)
        logits = found["logits"].astype(np.float64)
        np.testing.assert_allclose(found["probabilities"], here.probabilities, atol=1e-5)
        np.testing.assert_allclose(
            found["probabilities"], softmax(logits / predictor.calibration.temperature, axis=1), atol=1e-6
        )
        np.testing.assert_allclose(found["energy"], -logsumexp(logits, axis=1), atol=1e-5)
        for ours, theirs in (("accepted", "accept"), ("foreign", "foreign"), ("ambiguous", "ambiguous")):
            np.testing.assert_array_equal(found[theirs], getattr(here, ours))


def test_onnx_suffices_alone(predictor, exported):
    kept = {name: json.loads(text) for name, text in metadata(exported.path).items()}
    assert tuple(kept["class_names"]) == predictor.trained.class_names
    assert kept["policy"] == {"error": 0.05, "rejection": 0.05, "coverage": 0.95, "delta": 0.05}
    assert kept["thresholds"]["density"] == predictor.thresholds.density
    assert kept["temperature"] == predictor.calibration.temperature
    assert "[0, 1]" in kept["preprocessing"]["inputs"]
    assert [path.name for path in exported.path.parent.iterdir()] == ["model.onnx"]  # no weights beside it
    for trace in (b".py", b"/src/", b"site-packages"):
        assert trace not in exported.path.read_bytes()


def metadata(path):
    return {part.key: part.value for part in onnx.load(path).metadata_props}


NETWORKS = {
    "wide residual, batch, separate": ("wrn-10-1", IMAGES, {"norm": "batch", "statistics": "separate"}),
    "residual of nine, batch": ("resnet9-4", IMAGES, {"norm": "batch"}),
    "convolutions, group, spectral norm, dropout": (
        "conv-4",
        IMAGES,
        {"norm": "group", "spectral_norm": True, "dropout": 0.3},
    ),
    "perceptron of vectors": ("mlp-8", VECTORS, {}),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_as_program_and_weights(predictor, tmp_path, kind):
    name, shape, settings = NETWORKS[kind]
    other = of_network(predictor, name, shape, **settings)
    inputs = pixels(3, shape) if len(shape) == 3 else (2020 + 0.1 * pixels(3, shape)).astype(np.float32)
    here = other(inputs)
    assert export_program(other, tmp_path / "model.pt2").parity < 1e-5
    found = dict(
        zip(OUTPUTS, torch.export.load(tmp_path / "model.pt2").module()(torch.from_numpy(inputs)), strict=True)
    )
    np.testing.assert_allclose(found["energy"].numpy(), -here.log_density, atol=1e-5)
    np.testing.assert_array_equal(found["accept"].numpy(), here.accepted)

    assert export_weights(other, tmp_path / "weights").parity < 1e-5
    config = json.loads((tmp_path / "weights" / "config.json").read_text())
    network = build_network(input_shape=tuple(config["input_shape"]), num_classes=10, **config["network"]).eval()
    network.load_state_dict(load_file(tmp_path / "weights" / "model.safetensors"))
    prepared = config["preprocessing"]
    if len(shape) == 3:
        x = inputs * prepared["scale"] + prepared["shift"]
    else:
        x = (inputs - np.array(prepared["mean"])) / np.array(prepared["std"])
    with torch.no_grad():
        energy = -torch.logsumexp(network(torch.from_numpy(x).float()), dim=1)
    np.testing.assert_allclose(energy.numpy(), -here.log_density, atol=1e-5)


def test_another_network_as_onnx(predictor, tmp_path):
    name, shape, settings = NETWORKS["convolutions, group, spectral norm, dropout"]
    other = of_network(predictor, name, shape, **settings)
    export_onnx(other, tmp_path / "model.onnx")
    inputs = pixels(5, shape)
    found = run_onnx(tmp_path / "model.onnx", inputs)
    np.testing.assert_allclose(found["energy"], -other(inputs).log_density, atol=1e-5)


def test_vectors_and_infinite_thresholds_as_onnx(predictor, tmp_path):
    """An unreachable error accepts nothing, a rejection too small for the reference refuses nothing."""
    other = of_network(predictor, "mlp-8", VECTORS).with_policy(Policy(error=1e-6, rejection=1e-6))
    assert other.thresholds.confidence == math.inf
    assert other.thresholds.density == -math.inf
    export_onnx(other, tmp_path / "model.onnx")
    inputs = (2020 + 0.1 * pixels(4, VECTORS)).astype(np.float32)  # that far out, float32 has few digits left
    found = run_onnx(tmp_path / "model.onnx", inputs)
    np.testing.assert_allclose(found["energy"], -other(inputs).log_density, atol=1e-5)
    assert found["ambiguous"].all()
    assert not found["foreign"].any()
    assert not found["accept"].any()
    kept = {name: json.loads(text) for name, text in metadata(tmp_path / "model.onnx").items()}
    assert kept["thresholds"]["confidence"] is None
    assert kept["thresholds"]["density"] is None
    np.testing.assert_allclose(kept["preprocessing"]["mean"], 2020.3)


def test_a_number_that_is_none_is_never_accepted(predictor, exported):
    inputs = pixels(3)
    inputs[1] = np.nan
    found = run_onnx(exported.path, inputs)
    assert found["foreign"].tolist()[1] is True
    assert not found["accept"][1]
    assert np.isfinite(found["energy"][[0, 2]]).all()


def test_odds_tell_apart_what_float32_probabilities_do_not():
    confident = [1 - 1e-9, 1 - 1e-10]
    assert np.float32(confident[0]) == np.float32(confident[1])
    assert np.float32(odds_of(confident[0])) > np.float32(odds_of(confident[1])) > 0
    assert odds_of(0.5) == 1
    assert odds_of(1.0) > 0  # probabilities that are 1 in float64 reach it
    assert odds_of(0.0) == math.inf
    assert odds_of(math.inf) < 0


def test_a_confidence_beyond_float32_decides_as_the_predictor_does(predictor, tmp_path):
    """Logits of a hundred nats: between these thresholds float32 sees no difference."""

    class Sharp(nn.Module):
        def forward(self, x):
            margin = x.flatten(1)[:, :1] + 1  # [0, 2], the first pixel twice
            return torch.cat([margin * 20, torch.zeros(x.shape[0], 9)], dim=1) + 0 * self.weight

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    config = predictor.trained.config.with_values(network={"name": "custom"})
    trained = replace(predictor.trained, model=EnergyClassifier(Sharp()).eval(), config=config, buffer=None)
    other = Predictor(trained, replace(predictor.calibration, temperature=1.0))
    other.thresholds = Thresholds(density=-math.inf, confidence=1 - 9 * math.exp(-26), candidate=0.5)
    inputs = np.zeros((2, 1, 8, 8), np.float32)
    inputs[:, 0, 0, 0] = 25.9 / 40, 26.1 / 40
    assert other(inputs).accepted.tolist() == [False, True]
    export_onnx(other, tmp_path / "model.onnx")
    found = run_onnx(tmp_path / "model.onnx", inputs)
    assert (found["probabilities"].max(axis=1) == 1).all()
    assert found["accept"].tolist() == [False, True]
    assert export_weights(other, tmp_path / "weights").parity < 1e-5


def test_an_adapted_network_with_chosen_classes(predictor, tmp_path):
    """Grey images enlarged for a network of colour images, of whose outputs ten are the classes."""
    with seeded(0, "test"):
        network = build_network("conv-4", (3, 12, 12), 20)
    adapted = Adapted(network, size=12, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3), classes=range(19, 9, -1))
    config = predictor.trained.config.with_values(network={"name": "custom"})
    trained = replace(predictor.trained, model=EnergyClassifier(adapted).eval(), config=config)
    other = Predictor(trained, predictor.calibration)
    assert export_program(other, tmp_path / "model.pt2").parity < 1e-5
    assert export_onnx(other, tmp_path / "model.onnx").parity < 1e-5


def test_a_network_from_a_file_of_ones_own_is_exported_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\ndef net(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    wrapped = wrap(f"py:{tmp_path / 'nets.py'}:net", "digits", tmp_path / "run")
    monkeypatch.chdir(tmp_path.parent)
    assert export_weights(Predictor.load(wrapped.path), tmp_path / "weights").parity < 1e-5
    assert str(tmp_path) not in (tmp_path / "weights" / "config.json").read_text()


def test_a_file_that_computes_something_else_is_not_kept(predictor, tmp_path):
    class Moody(nn.Module):
        """Its trace is of a batch of two: what it does to others is not exported."""

        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            logits = self.network(x)
            return logits if torch.compiler.is_exporting() else logits * 1.001

    trained = replace(predictor.trained, model=EnergyClassifier(Moody(predictor.trained.model.network)).eval())
    other = Predictor(trained, predictor.calibration)
    with pytest.raises(RunError, match=r"is not what torch computes.*on a batch of 1 they differ by 0\.00"):
        export_program(other, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
    wrong = replace(predictor.trained, config=predictor.trained.config.with_values(network={"activation": "relu"}))
    with pytest.raises(RunError, match="is not what torch computes"):
        export_weights(Predictor(wrong, predictor.calibration), tmp_path / "weights")
    assert list(tmp_path.iterdir()) == []
    assert min(BATCH_SIZES) == 1
    assert TOLERANCE == 1e-4


def test_a_network_that_cannot_be_exported_says_so(predictor, tmp_path):
    class Branching(nn.Module):
        def forward(self, x):
            logits = x.flatten(1)[:, :10]
            return logits if float(logits.sum()) > 0 else -logits

    trained = replace(predictor.trained, model=EnergyClassifier(Branching()).eval())
    with pytest.raises(RunError, match="cannot be exported: "):
        export_program(Predictor(trained, predictor.calibration), tmp_path / "model.pt2")


def test_a_network_that_makes_its_batch_a_constant_says_so(predictor, tmp_path):
    class Counting(nn.Module):
        def forward(self, x):
            return torch.cat([x.flatten(1)[:, :1], torch.zeros(len(x), 9)], dim=1)

    trained = replace(predictor.trained, model=EnergyClassifier(Counting()).eval())
    with pytest.raises(RunError, match=r"does not take a batch of 1.*shape\[0\]"):
        export_onnx(Predictor(trained, predictor.calibration), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_what_is_missing_is_named(predictor, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"'{package}'.*jemstone\[onnx\]"):
        export_onnx(predictor, tmp_path / "model.onnx")


def test_the_command(digits_run, tmp_path, capsys):
    out = tmp_path / "model.pt2"
    assert main(["export", str(digits_run.path), "--format", "program", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    for part in (str(out), "MB", "float32 (n, 1, 8, 8)", "accept", "Largest difference from torch: "):
        assert part in text
    example = text[text.index("import torch") :]
    names: dict[str, object] = {"inputs": torch.rand(2, 1, 8, 8)}
    exec(example, names)  # what it prints runs
    assert names["accept"].shape == (2,)
    folder = tmp_path / "weights"
    assert main(["export", str(digits_run.path), "--format", "safetensors", "--out", str(folder)]) == 0
    text = capsys.readouterr().out
    exec(text[text.index("import json") :], names)
    assert isinstance(names["network"], nn.Module)
