"""A trained classifier becomes a run that computes what it computed, and loads without where it came from."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from jemstone.cli import main
from jemstone.data import Dataset, Split, load_dataset, to_box
from jemstone.deployment.predictor import Predictor
from jemstone.deployment.wrap import wrap
from jemstone.errors import CheckpointError, ConfigError, RunError
from jemstone.networks import Adapted
from jemstone.networks.weights import read_weights
from jemstone.training.config import TrainConfig
from jemstone.training.recipes import recipe
from jemstone.training.session import Session
from jemstone.training.start_from import starting_from
from jemstone.training.trained import load_trained

NETS = """
from torch import nn
from jemstone.networks import Adapted

def plain(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

def own_units():
    return Adapted(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), channels=1, mean=(0.0,), std=(1 / 16,))
"""
HOW = "needs the extra: pip install 'jemstone[{}]'"


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", validation=0.5)


@pytest.fixture(scope="module")
def weights(digits):
    """A linear classifier of digits, by plain torch, on the half that wrap leaves."""
    x, y = to_box(digits.train.inputs).flatten(1), digits.train.labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network


def accuracy(trained, split):
    return (trained.logits(split.inputs).argmax(1) == split.labels).float().mean().item()


def test_a_module_of_your_own_becomes_a_run(weights, digits, tmp_path):
    before = {name: value.clone() for name, value in weights.state_dict().items()}
    run = wrap(weights, "digits", tmp_path / "run")
    trained = load_trained(run.path, network=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    torch.testing.assert_close(trained.logits(digits.test.inputs), weights(to_box(digits.test.inputs)).detach())
    assert accuracy(trained, digits.test) > 0.9
    assert all(torch.equal(before[name], value) for name, value in weights.state_dict().items())
    assert trained.step == 0
    assert trained.buffer is None
    assert trained.config.recipe == "classifier"
    assert run.info["imported"] == {"file": "a Sequential given in Python", "layout": "wrapped", "chains": 0}
    assert run.info["data"]["sizes"]["validation"] == len(digits.validation) == pytest.approx(0.4 * 1797, abs=2)
    with pytest.raises(ConfigError, match="network of your own"):
        load_trained(run.path)


@pytest.mark.parametrize("kind", ["pt", "safetensors", "inside", "parallel"])
def test_a_checkpoint_file_is_loaded_into_a_network_by_name(weights, digits, tmp_path, kind):
    from safetensors.torch import save_file

    (tmp_path / "nets.py").write_text(NETS)
    state, file = weights.state_dict(), tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file(state, file)
    elif kind == "pt":
        torch.save(state, file)
    else:
        named = {f"module.{name}": value for name, value in state.items()} if kind == "parallel" else state
        torch.save({"epoch": 3, "optimizer": {}, "state_dict": named}, file)
    run = wrap(f"py:{tmp_path / 'nets.py'}:plain", "digits", tmp_path / "run", weights=file)
    logits = load_trained(run.path).logits(digits.test.inputs)
    torch.testing.assert_close(logits, weights(to_box(digits.test.inputs)).detach())
    assert run.info["imported"]["file"] == file.name
    assert len(run.info["imported"]["sha256"]) == 64


def test_a_network_in_its_own_units_gets_them(digits, tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    run = wrap(f"py:{tmp_path / 'nets.py'}:own_units", digits, tmp_path / "run", weights=tmp_path / "weights.pt")
    raw = (to_box(digits.test.inputs) + 1) * 8  # scikit-learn's units, 0 to 16
    found = load_trained(run.path, data=digits).logits(digits.test.inputs)
    torch.testing.assert_close(found, network(raw).detach(), rtol=1e-4, atol=1e-5)


def rgb(classes=3, side=20, n=60):
    def split(seed):
        inputs = torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(seed)).byte()
        return Split(inputs, torch.arange(n) % classes)

    return Dataset("colours", split(0), split(1), split(2), tuple("abcdef"[:classes]))


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason=HOW.format("timm"))


@pytest.fixture
def resnet(timm):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = timm.create_model("resnet10t", num_classes=3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def through_timm(network, x, size=None):
    """Logits by timm's own settings of the model, with torchvision-like steps written out."""
    found = network.pretrained_cfg
    x = (x.float() / 255 - torch.tensor(found["mean"])[:, None, None]) / torch.tensor(found["std"])[:, None, None]
    size = list(size or found["input_size"][1:])
    with torch.no_grad():
        return network(nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True))


def test_a_timm_model_is_self_contained(resnet, tmp_path):
    data = rgb()
    run = wrap(resnet, data, tmp_path / "run")
    found = load_trained(run.path, data=data)  # and no network
    x = data.test.inputs[:8]
    torch.testing.assert_close(found.logits(x), through_timm(resnet, x), rtol=1e-3, atol=1e-3)
    assert found.config.network.name == "timm:resnet10t"
    assert run.info["imported"]["file"] == "timm:resnet10t"


def test_timm_by_name_with_a_file_of_weights(resnet, tmp_path):
    torch.save(resnet.state_dict(), tmp_path / "mine.pth")
    data = rgb()
    x = data.test.inputs[:8]
    run = wrap("timm:resnet10t", data, tmp_path / "run", weights=tmp_path / "mine.pth", size=20)
    wanted = through_timm(resnet, x, (20, 20))
    torch.testing.assert_close(load_trained(run.path).logits(x), wanted, rtol=1e-3, atol=1e-3)
    two = rgb(classes=2)
    run = wrap("timm:resnet10t", two, tmp_path / "two", weights=tmp_path / "mine.pth", size=20, classes=[2, 0])
    torch.testing.assert_close(load_trained(run.path).logits(x), wanted[:, [2, 0]], rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match=r"returns 3 logits and the data has 2 classes.*--classes"):
        wrap("timm:resnet10t", two, tmp_path / "not", weights=tmp_path / "mine.pth", size=20)


def test_timm_from_a_folder_that_goes_away(timm, resnet, tmp_path):
    from timm.models import save_for_hf

    save_for_hf(resnet, tmp_path / "model", model_config={"num_classes": 3})
    data = rgb()
    run = wrap(f"timm:local-dir:{tmp_path / 'model'}", data, tmp_path / "run", size=20)
    shutil.rmtree(tmp_path / "model")
    x = data.test.inputs[:8]
    wanted = through_timm(resnet, x, (20, 20))
    torch.testing.assert_close(load_trained(run.path).logits(x), wanted, rtol=1e-3, atol=1e-3)


def test_a_model_that_was_changed_after_it_was_made_is_refused(resnet, tmp_path):
    resnet.fc = nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ConfigError, match=r"(?s)differs from timm:resnet10t.*Adapted\(network"):
        wrap(resnet, rgb(), tmp_path / "run", size=20)
    resnet.fc = nn.Linear(512, 3)
    resnet.bn1.eps = 10.0
    with pytest.raises(ConfigError, match="does not compute what timm:resnet10t does"):
        wrap(resnet, rgb(), tmp_path / "run", size=20)
    assert not (tmp_path / "run").exists()
    run = wrap(Adapted(resnet, size=20), rgb(), tmp_path / "run")  # but so it is a module like any
    assert run.info["config"]["network"]["name"] == "custom"


@pytest.fixture
def vit(tmp_path):
    transformers = pytest.importorskip("transformers", reason=HOW.format("hf"))
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=10,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "vit")
    processor = {"image_mean": [0.3] * 3, "image_std": [0.2] * 3, "size": {"height": 8, "width": 8}}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def test_a_transformers_model_outlives_its_folder(vit, digits, tmp_path):
    run = wrap(f"hf:{tmp_path / 'vit'}", "digits", tmp_path / "run")
    shutil.rmtree(tmp_path / "vit")
    x = digits.test.inputs[:8]
    pixels = ((to_box(x) + 1) / 2).expand(-1, 3, -1, -1)
    with torch.no_grad():
        wanted = vit(pixel_values=(pixels - 0.3) / 0.2).logits
    torch.testing.assert_close(load_trained(run.path).logits(x), wanted, rtol=1e-4, atol=1e-5)
    assert load_trained(run.path).config.network.name == "hf:vit"
    assert str(tmp_path) not in json.dumps([run.info["config"]["network"], run.info["imported"]])
    with pytest.raises(ConfigError, match="give mean and std"):
        wrap(vit, "digits", tmp_path / "object")
    wrap(vit, "digits", tmp_path / "object", mean=[0.3], std=[0.2])
    torch.testing.assert_close(load_trained(tmp_path / "object").logits(x), wanted, rtol=1e-4, atol=1e-5)


class Gadget:
    def __reduce__(self):
        return (print, ("code ran",))


def test_files_that_are_no_weights_are_refused_and_never_run(tmp_path, capsys, weights):
    (tmp_path / "nets.py").write_text(NETS)
    name = f"py:{tmp_path / 'nets.py'}:plain"
    torch.save({"state_dict": Gadget()}, tmp_path / "evil.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"0.weight": torch.zeros(3)}, tmp_path / "other.pt")
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 9)
    for file, message in {
        "evil.pt": "cannot be read as weights",
        "none.pt": "cannot be read as weights",
        "junk.safetensors": "cannot be read as weights",
        "list.pt": "holds no state dict",
        "other.pt": "do not fit the network",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            wrap(name, "digits", tmp_path / "run", weights=tmp_path / file)
    assert "code ran" not in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    torch.save({f"_orig_mod.{k}": v for k, v in weights.state_dict().items()}, tmp_path / "compiled.pt")
    assert read_weights(tmp_path / "compiled.pt").keys() == weights.state_dict().keys()


def test_what_does_not_fit_is_refused(weights, digits, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    no_validation = Dataset(
        "d", digits.train, Split(digits.train.inputs[:0], digits.train.labels[:0]), digits.test, digits.class_names
    )
    for arguments, message, kind in [
        ((weights, "digits", tmp_path / "full"), "exists and is not empty", RunError),
        (("conv-8", "digits", tmp_path / "run"), "names no network to wrap.*timm:NAME", ConfigError),
        ((nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), "digits", tmp_path / "run"), "returns 4 logits", ConfigError),
        ((nn.Linear(3, 10), "digits", tmp_path / "run"), "does not take", ConfigError),
        ((weights, no_validation, tmp_path / "run"), "no validation split", ConfigError),
    ]:
        with pytest.raises(kind, match=message):
            wrap(*arguments)
    with pytest.raises(ConfigError, match="leave `weights` out"):
        wrap(weights, "digits", tmp_path / "run", weights="w.pt")
    with pytest.raises(ConfigError, match=r"Adapted\(network, size="):
        wrap(weights, "digits", tmp_path / "run", mean=[0.5])
    with pytest.raises(ConfigError, match="keep `validation` above 0"):
        wrap(weights, "digits", tmp_path / "run", validation=0.0)
    with pytest.raises(ConfigError, match="give hf:FOLDER"):
        wrap("hf:folder", "digits", tmp_path / "run", weights="w.pt")
    assert not (tmp_path / "run").exists()


def test_the_command(weights, tmp_path, capsys):
    (tmp_path / "nets.py").write_text(NETS)
    torch.save(weights.state_dict(), tmp_path / "w.pt")
    name, run = f"py:{tmp_path / 'nets.py'}:plain", str(tmp_path / "run")
    assert main(["wrap", name, "--data", "digits", "--out", run, "--weights", str(tmp_path / "w.pt")]) == 0
    told = capsys.readouterr().out
    assert "Next: jemstone evaluate" in told
    rows = dict(re.findall(r"^  (\S.*?)  +(\S.*)$", told, re.MULTILINE))
    predictor = Predictor.load(run)
    split = load_dataset("digits", validation=0.5).validation
    assert int(rows["calibration examples"]) == len(split)
    assert float(rows["accuracy on them"]) == pytest.approx(accuracy(predictor.trained, split), abs=6e-4)
    assert float(rows["temperature"]) == pytest.approx(predictor.calibration.temperature, abs=6e-4)
    assert float(rows["AUROC against uniform noise: energy"]) <= 1
    assert predictor.predict(split.inputs[:50]).accepted.mean() > 0.5
    assert accuracy(load_trained(run), load_dataset("digits").test) > 0.9
    torch.save({k: v.roll(1, 0) for k, v in weights.state_dict().items()}, tmp_path / "rolled.pt")
    rolled = ["--weights", str(tmp_path / "rolled.pt"), "--ood", "digits"]
    assert main(["wrap", name, "--data", "digits", "--out", run + "rolled", *rolled]) == 0
    assert "Hardly better than chance: is output i" in capsys.readouterr().out
    assert main(["wrap", name, "--data", "digits", "--out", run + "2", "--classes", "1,x"]) == 1
    assert "--classes takes numbers" in capsys.readouterr().err
    assert main(["train", "--resume", run]) == 1
    assert "train RECIPE --from" in capsys.readouterr().err
    assert main(["doctor", run]) == 0


SMALL = ["--steps", "3", "--batch_size", "8", "--real_batch_size", "8", "--device", "cpu", "--chains.steps", "2"]


def test_a_wrapped_network_is_trained_on_as_a_jem(weights, digits, tmp_path, monkeypatch, capsys):
    (tmp_path / "nets.py").write_text(NETS)
    torch.save(weights.state_dict(), tmp_path / "w.pt")
    wrapped = wrap(f"py:{tmp_path / 'nets.py'}:plain", "digits", tmp_path / "run", weights=tmp_path / "w.pt")
    monkeypatch.chdir(tmp_path)
    steps = ["--optimizer.warmup_steps", "0", "--validate_every", "0", "--checkpoint_every", "2"]
    assert main(["train", "jem-small", "--from", "run", "--run", "jem", *SMALL, *steps]) == 0
    shutil.rmtree(wrapped.path)  # what start reads is not needed at resume
    trained = load_trained("jem")
    assert trained.config.start_from == str(tmp_path / "run")
    assert trained.config.recipe == "jem-small"
    assert trained.config.data == TrainConfig.from_dict(wrapped.info["config"]).data
    assert trained.run.info["data"]["digest"] == digits.digest()
    assert accuracy(trained, digits.test) > 0.9  # three steps from random weights would not do
    whole = torch.cat([p.flatten() for p in trained.model.parameters()])
    (tmp_path / "jem" / "checkpoints" / "step-00000003.safetensors").unlink()
    assert main(["train", "--resume", "jem"]) == 0
    assert torch.equal(torch.cat([p.flatten() for p in load_trained("jem").model.parameters()]), whole)
    assert main(["train", "jem-small", "--from", "gone"]) == 1
    assert "no run directory at gone" in capsys.readouterr().err


def test_settings_that_are_given_win_over_those_of_the_run(tmp_path, capsys):
    base = ["train", "classifier-small", "--network", "conv-4", "--network.norm", "group", *SMALL]
    assert main([*base, "--run", str(tmp_path / "a"), "--data.validation", "0.3"]) == 0
    run = str(tmp_path / "a")
    # Another share for validation; all else, and the network, as it was.
    again = ["train", "jem-small", "--from", run, "--data.validation", "0.2", "--run", str(tmp_path / "b"), *SMALL]
    assert main(again) == 0
    config = load_trained(tmp_path / "b").config
    assert (config.network.name, config.network.norm, config.data.validation) == ("conv-4", "group", 0.2)
    assert main([*again[: -len(SMALL) - 1], str(tmp_path / "c"), "--network", "conv-8", *SMALL]) == 1
    assert "does not fit this network" in capsys.readouterr().err


def test_the_first_weights_are_those_of_the_run_averaged_ones_where_it_has_them(tmp_path):
    tiny = {"steps": 3, "batch_size": 8, "real_batch_size": 8, "device": "cpu", "validate_every": 0}
    first = Session.start(recipe("classifier-small").with_values(**tiny), run=tmp_path / "a")
    list(first.train())
    config = starting_from(recipe("jem-small").with_values(**tiny), tmp_path / "a")
    second = Session.start(config)
    for model in (second.state.model, second.state.ema):
        for name, value in first.state.ema.state_dict().items():
            assert torch.equal(model.state_dict()[name], value)
    own = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(CheckpointError, match="does not fit this network"):
        Session.start(config, network=own)
    assert np.isfinite(next(second.train())["loss"])
