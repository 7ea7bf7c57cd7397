"""Published checkpoints become runs: their logits, kernels and chains, and every file that is refused."""

import hashlib
import json
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jemstone.cli import main
from jemstone.data import Dataset, Split, load_dataset, to_box
from jemstone.errors import CheckpointError, ConfigError, RunError
from jemstone.report import write_report
from jemstone.rng import generator
from jemstone.sampling import ClassGaussian, run_chains
from jemstone.training.imported import import_checkpoint
from jemstone.training.session import Session
from jemstone.training.trained import load_trained

LAYOUTS = {"jem": "none", "jem++": "batch", "sada-jem": "batch"}
"""The normalisation with which each release trains."""


class Block(nn.Module):
    """A residual block under the names of the releases."""

    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        super().__init__()
        make = nn.BatchNorm2d if norm == "batch" else lambda channels: nn.Identity()
        self.bn1, self.bn2 = make(before), make(after)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, stride, 1)
        changes = stride > 1 or before != after
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride)) if changes else nn.Sequential()

    def forward(self, x):
        inner = self.conv1(F.leaky_relu(self.bn1(x), 0.2))
        return self.shortcut(x) + self.conv2(F.leaky_relu(self.bn2(inner), 0.2))


class Source(nn.Module):
    """A network of depth 10 that saves what the network of a release saves."""

    def __init__(self, layout: str, norm: str, width: int = 1, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.f = nn.Module()
        self.f.conv1 = nn.Conv2d(channels, 16, 3, padding=1)
        self.f.layer1 = nn.Sequential(Block(16, 16 * width, 1, norm))
        self.f.layer2 = nn.Sequential(Block(16 * width, 32 * width, 2, norm))
        self.f.layer3 = nn.Sequential(Block(32 * width, 64 * width, 2, norm))
        self.f.bn1 = nn.BatchNorm2d(64 * width) if norm == "batch" else nn.Identity()
        if layout == "jem":
            self.f.linear = nn.Linear(64 * width, 10)
        if layout == "jem++":
            self.f.layer_one = self.f.conv1
            self.f.other_layers = nn.ModuleList([self.f.layer1, self.f.layer2, self.f.layer3, self.f.bn1])
        self.energy_output = nn.Linear(64 * width, 1)
        self.class_output = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)

    def forward(self, x):
        h = self.f.layer3(self.f.layer2(self.f.layer1(self.f.conv1(x))))
        return self.class_output(F.leaky_relu(self.f.bn1(h), 0.2).mean(dim=(2, 3)))


def source(layout: str, norm: str | None = None, **sizes: int) -> Source:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return Source(layout, norm or LAYOUTS[layout], **sizes).eval()


def chains(n: int = 40, shape: tuple[int, ...] = (1, 8, 8)) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(5)) * 2 - 1


def colours(n: int = 60, side: int = 32, classes: int = 3) -> Dataset:
    def split(seed: int) -> Split:
        rng = torch.Generator().manual_seed(seed)
        inputs = torch.randint(0, 256, (n, 3, side, side), generator=rng, dtype=torch.uint8)
        return Split(inputs, torch.arange(n) % classes)

    return Dataset("colours", split(0), split(1), split(2), tuple("abc"[:classes]))


@pytest.fixture
def file(tmp_path):
    def write(contents: object) -> str:
        torch.save(contents, tmp_path / "ckpt_40.pt")
        return str(tmp_path / "ckpt_40.pt")

    return write


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", seed=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_has_the_logits_the_chains_and_the_kernel_of_its_file(file, tmp_path, layout):
    network, buffer = source(layout), chains()
    path = file({"model_state_dict": network.state_dict(), "replay_buffer": buffer})
    run = import_checkpoint(path, layout, "wrn-10-1", "digits", tmp_path / "run")
    trained = load_trained(run.path)
    x = chains(7)
    torch.testing.assert_close(trained.logits(x), network(x).detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(trained.buffer, buffer)
    assert trained.step == 0

    # One step of the kernel, down an energy so steep that clipping and clamping matter.
    steep = 3 * chains(7)
    moved, _ = run_chains(trained.sampler, x, lambda at: (at.sum((1, 2, 3)), steep), 1, generator(0))
    if layout == "jem":
        assert (moved - (x - steep)).std().item() == pytest.approx(0.01, rel=0.15)
        assert trained.chain_life == 20 / 0.05
    else:
        assert torch.equal(moved, (x - steep.clamp(-1, 1)).clamp(-1, 1))
        assert trained.chain_life == {"jem++": 10, "sada-jem": 5}[layout] / 0.05
    samples = trained.sample(torch.arange(10), steps=3)
    assert samples.shape == (10, 1, 8, 8)
    assert bool(samples.isfinite().all())


def test_colour_images_of_a_dataset_in_hand_and_weights_saved_in_parallel(file, tmp_path):
    network, data = source("sada-jem", width=2, channels=3, classes=3), colours()
    path = file({f"module.{key}": value for key, value in network.state_dict().items()})
    run = import_checkpoint(path, "sada-jem", "wrn-10-2", data, tmp_path / "run")
    trained = load_trained(run.path, data=data)
    x = data.test.inputs[:5]
    torch.testing.assert_close(trained.logits(x), network(to_box(x)).detach(), rtol=1e-5, atol=1e-6)
    assert trained.buffer is None
    assert run.info["config"]["data"]["source"] == "custom"
    assert run.info["data"]["class_names"] == ["a", "b", "c"]


def test_class_gaussians_are_estimated_from_the_training_split(file, tmp_path, digits):
    path = file({"model_state_dict": source("jem++").state_dict()})
    run = import_checkpoint(path, "jem++", "wrn-10-1", digits, tmp_path / "run")
    initial = load_trained(run.path).initial()  # without the data: it is in the file
    assert isinstance(initial, ClassGaussian)
    threes = to_box(digits.train.inputs[digits.train.labels == 3]).flatten(1).double()
    torch.testing.assert_close(initial.mean[3].double(), threes.mean(dim=0), rtol=0, atol=1e-5)
    covariance = initial.factor[3].double() @ initial.factor[3].double().T
    torch.testing.assert_close(covariance, threes.T.cov() + 1e-4 * torch.eye(64), rtol=0, atol=1e-5)
    import_checkpoint(file(source("jem").state_dict()), "jem", "wrn-10-1", digits, tmp_path / "other")
    assert not (tmp_path / "other" / "initial.safetensors").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_directory_says_where_it_comes_from(file, tmp_path, layout):
    path = file({"model_state_dict": source(layout).state_dict(), "replay_buffer": chains()})
    run = import_checkpoint(path, layout, "wrn-10-1", "digits", tmp_path / "run")
    digest = hashlib.sha256((tmp_path / "ckpt_40.pt").read_bytes()).hexdigest()
    origin = {"file": "ckpt_40.pt", "sha256": digest, "layout": layout, "chains": 40}
    assert run.rows("events.jsonl") == [{"event": "imported", "step": 0, **origin}]
    assert run.info["imported"] == origin
    assert run.info["config"]["recipe"] == layout
    network = run.info["config"]["network"]
    assert (network["name"], network["norm"]) == ("wrn-10-1", LAYOUTS[layout])
    assert run.info["data"]["input_shape"] == [1, 8, 8]
    assert run.info["data"]["sizes"] == {"train": 1293, "validation": 144, "test": 360}
    assert run.info["environment"]["device"] == "cpu"
    assert str(tmp_path) not in json.dumps({key: run.info[key] for key in ("config", "data", "imported")})


def test_the_normalisation_is_that_of_the_file(file, tmp_path):
    network = source("jem", norm="batch")
    run = import_checkpoint(file(network.state_dict()), "jem", "wrn-10-1", "digits", tmp_path / "run")
    assert run.info["config"]["network"]["norm"] == "batch"
    torch.testing.assert_close(
        load_trained(run.path).logits(chains()), network(chains()).detach(), rtol=1e-5, atol=1e-6
    )


def test_the_commands_take_it_like_any_run(file, tmp_path, capsys):
    path = file({"model_state_dict": source("jem++").state_dict(), "replay_buffer": chains()})
    run = str(import_checkpoint(path, "jem++", "wrn-10-1", "digits", tmp_path / "run").path)
    assert main(["sample", run, "--count", "4", "--steps", "2"]) == 0
    assert main(["sample", run, "--buffer", "--count", "4"]) == 0
    assert main(["doctor", run]) == 0
    assert "verdict: unknown" in capsys.readouterr().out
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "no training on record" in page


def test_it_cannot_be_resumed_but_trained_on_from(file, tmp_path, digits):
    path = file({"model_state_dict": source("jem").state_dict()})
    run = import_checkpoint(path, "jem", "wrn-10-1", digits, tmp_path / "run").path
    with pytest.raises(CheckpointError, match=r"was imported from ckpt_40.pt.*no optimiser state.*train RECIPE --from"):
        Session.resume(run, digits)
    assert [row["event"] for row in load_trained(run).run.rows("events.jsonl")] == ["imported"]
    trained = load_trained(run)
    config = trained.config.with_values(steps=1, batch_size=4, real_batch_size=4, validate_every=0, epochs=1.0)
    config = config.with_values(chains={"steps": 1, "buffer_size": 40}, augment={"crop_padding": 0})
    session = Session.start(config, digits, trained.model.network)
    assert [row["step"] for row in session.train()] == [1]


def refused(path: str, out, error=CheckpointError, layout="jem", network="wrn-10-1", data="digits") -> str:
    """The message of the refusal, after which nothing lies at `out`."""
    with pytest.raises(error) as caught:
        import_checkpoint(path, layout, network, data, out)
    assert not out.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"network": "wrn-28-10"}, r"holds a wrn-10-1, not a wrn-28-10. Use --network wrn-10-1"),
        ({"network": "conv-32"}, r"not a conv-32. Use --network wrn-10-1"),
        ({"layout": "jem++"}, r"the JEM release, not of JEM\+\+.*--layout jem`"),
        ({"layout": "sada-jem"}, r"the JEM release, not of SADA-JEM.*--layout jem`"),
        ({"data": colours(n=20)}, r"images of 1 channels, and the inputs of colours .*\(3, 32, 32\).*--data"),
    ],
)
def test_what_does_not_fit_is_told_how_to_fit(file, tmp_path, settings, remedy):
    path = file({"model_state_dict": source("jem").state_dict(), "replay_buffer": chains()})
    message = refused(path, tmp_path / "run", **settings)
    assert path in message
    assert re.search(remedy, message)


def test_classes_and_chains_of_another_data_set(file, tmp_path):
    out = tmp_path / "run"
    seven = file(source("jem", classes=7).state_dict())
    assert "has 7 classes, and digits has 10" in refused(seven, out)
    state = source("jem", channels=3, classes=3).state_dict()
    other = file({"model_state_dict": state, "replay_buffer": chains(9, (3, 32, 32))})
    message = refused(other, out, data=colours(n=20, side=16))
    assert "holds images of shape (3, 32, 32), and those of colours have (3, 16, 16)" in message


@pytest.mark.parametrize(
    ("layout", "buffer", "remedy"),
    [
        ("sada-jem", chains() * 1.01, r"lies in \[-1.0\d*, 1.0\d*\], and the SADA-JEM release keeps .* \[-1, 1\]"),
        ("jem++", (chains() + 1) * 127.5, r"lies in \[.*25\d.*Rescale it"),
        ("jem", (chains() + 1) * 127.5, r"lies in \[.*25\d.*Rescale it"),
        ("jem", chains() * math.nan, r"not finite.*without `replay_buffer`"),
        ("jem", [chains()], r"`replay_buffer` must be a float tensor"),
        ("jem", chains().to(torch.uint8), r"`replay_buffer` must be a float tensor"),
    ],
)
def test_chains_in_other_units(file, tmp_path, layout, buffer, remedy):
    path = file({"model_state_dict": source(layout).state_dict(), "replay_buffer": buffer})
    assert re.search(remedy, refused(path, tmp_path / "run", layout=layout))


def test_chains_of_the_original_release_may_leave_the_box_a_little(file, tmp_path):
    buffer = chains() * 1.3
    path = file({"model_state_dict": source("jem").state_dict(), "replay_buffer": buffer})
    run = import_checkpoint(path, "jem", "wrn-10-1", "digits", tmp_path / "run")
    assert torch.equal(load_trained(run.path).buffer, buffer)


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a checkpoint ran')",))


def test_bad_files(file, tmp_path):
    out, state = tmp_path / "run", source("jem").state_dict()
    path = file({"model_state_dict": state, "optimizer": Payload()})
    assert "never executed" in refused(path, out)
    whole = file({"model_state_dict": state})
    content = (tmp_path / "ckpt_40.pt").read_bytes()
    (tmp_path / "ckpt_40.pt").write_bytes(content[: len(content) // 2])
    assert "damaged, truncated" in refused(whole, out)
    assert "no such file" in refused(str(tmp_path / "absent.pt"), out)
    assert "not a checkpoint of a release" in refused(file([1]), out)
    assert "does not hold a wide residual network" in refused(file({"conv.weight": torch.zeros(3)}), out)
    del state["f.layer2.0.conv2.bias"]
    assert "missing: f.layer2.0.conv2.bias" in refused(file(state), out)


def test_normalisations_that_cannot_be_told_or_built(file, tmp_path):
    state = source("jem").state_dict()
    scales = {f"f.bn1.{leaf}": torch.ones(64) for leaf in ("weight", "bias")}
    assert "'instance' or 'layer' normalisation" in refused(file({**state, **scales}), tmp_path / "run")
    scales = {f"f.bn1.{leaf}": torch.ones(1, 64, 1, 1) for leaf in ("loc", "scale")}
    assert "ActNorm" in refused(file({**state, **scales}), tmp_path / "run")


def test_unknown_layouts_and_places_that_are_taken(file, tmp_path):
    path = file(source("jem").state_dict())
    assert "Choose one of: jem, jem++, sada-jem" in refused(path, tmp_path / "run", ConfigError, layout="jempp")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match="is not empty"):
        import_checkpoint(path, "jem", "wrn-10-1", "digits", tmp_path / "taken")
    assert [entry.name for entry in (tmp_path / "taken").iterdir()] == ["notes.txt"]
