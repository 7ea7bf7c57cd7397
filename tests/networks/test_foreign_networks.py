"""Networks of timm and transformers: built from names, from definitions alone, and with their own preprocessing."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from jemstone.data import load_dataset
from jemstone.errors import ConfigError, MissingExtra
from jemstone.networks import build_network
from jemstone.networks.foreign import Definition, define, definition_of, fetch
from jemstone.training.config import TrainConfig
from jemstone.training.recipes import recipe
from jemstone.training.session import Session
from jemstone.training.trained import load_trained

TINY = {
    "vit": {
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 1,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "hidden_dropout_prob": 0.1,
    },
    "convnext": {"num_stages": 2, "hidden_sizes": [8, 8], "depths": [1, 1], "patch_size": 2},
}
HOW = "needs the extra: pip install 'jemstone[{}]'"


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason=HOW.format("timm"))


@pytest.fixture
def hf_folder(tmp_path):
    """A folder with the config.json of a tiny model, and, if asked, the weights and the processor's settings."""
    transformers = pytest.importorskip("transformers", reason=HOW.format("hf"))

    def make(kind: str = "vit", *, weights: bool = False, processor: dict | None = None, **fields):
        folder = tmp_path / f"{kind}-model"
        config = transformers.AutoConfig.for_model(kind, **TINY[kind], **fields)
        config.save_pretrained(folder)
        if weights:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(3)
                transformers.AutoModelForImageClassification.from_config(config).save_pretrained(folder)
        if processor is not None:
            (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        return folder

    return make


def few_steps(recipe_name: str, network: str, run=None, **changes) -> Session:
    plain = {"precision": "32-true", "layout": "contiguous", "compile": "off", "device": "cpu"}
    settings = {**plain, "steps": 3, "batch_size": 8, "real_batch_size": 8, "validate_every": 0, **changes}
    config = recipe(recipe_name).with_values(network={"name": network}, chains={"steps": 2}, **settings)
    return Session.start(config, run=run)


def trains(session: Session, parameters: int) -> None:
    """A few JEM steps move every weight, and chains leave the mode as it was."""
    before = [p.detach().clone() for p in session.state.model.parameters()]
    rows = list(session.train())
    assert len(rows) == 3
    assert {"energy_gap", "class_nll", "chain_moved"} <= rows[-1].keys()
    assert all(row["chain_grad_norm"] > 0 for row in rows)
    moved = [not torch.equal(p, q) for p, q in zip(before, session.state.model.parameters(), strict=True)]
    assert sum(moved) >= parameters


def test_a_timm_network_trains_as_a_jem_and_loads_from_its_definition(timm, tmp_path, monkeypatch):
    session = few_steps("jem-small", "timm:resnet10t", tmp_path / "run")
    trains(session, 30)
    assert any(isinstance(m, nn.BatchNorm2d) for m in session.model.modules())
    x = session.data.test.inputs[:5]
    logits = load_trained(tmp_path / "run").logits(x)
    # timm's settings of this model may change; those of the run may not.
    monkeypatch.setattr("jemstone.networks.foreign.definition_of", None)
    torch.testing.assert_close(load_trained(tmp_path / "run").logits(x), logits)
    found = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["network"]["definition"]
    assert json.loads(found)["mean"] == [0.485, 0.456, 0.406]
    assert Session.resume(tmp_path / "run").state.step == 3


@pytest.mark.parametrize("kind", TINY)
def test_a_transformers_network_trains_as_a_jem_and_outlives_its_folder(hf_folder, tmp_path, kind):
    folder = hf_folder(kind)
    session = few_steps("jem-small", f"hf:{folder}", tmp_path / "run")
    trains(session, 10)
    (folder / "config.json").unlink()
    trained = load_trained(tmp_path / "run")
    x = session.data.test.inputs[:5]
    torch.testing.assert_close(trained.logits(x), session.model(x).detach(), rtol=1e-4, atol=1e-5)
    assert str(tmp_path) not in trained.config.network.definition


def test_a_network_of_your_own_is_called_with_or_without_the_classes(tmp_path):
    file = tmp_path / "nets.py"
    file.write_text(
        "from torch import nn\n"
        "def sized(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
        "def fixed(width=10):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, width))\n"
        "def wrong():\n    return 3\n"
    )
    x = torch.zeros(2, 1, 8, 8)
    assert build_network(f"py:{file}:sized", (1, 8, 8), 4)(x).shape == (2, 4)
    assert build_network(f"py:{file}:fixed", (1, 8, 8), 4)(x).shape == (2, 10)
    for name, message in {
        f"py:{file}:wrong": "returns a int, and must return an nn.Module",
        f"py:{file}:none": "has no function none",
        f"py:{tmp_path}/no.py:f": "there is no file",
        "py:nothing": "is py:FILE.py:FUNCTION",
    }.items():
        with pytest.raises(ConfigError, match=message):
            build_network(name, (1, 8, 8), 4)


def test_a_run_names_the_file_of_your_own_network_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\ndef net(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    session = few_steps("classifier-small", "py:nets.py:net", "run")
    list(session.train())
    monkeypatch.chdir(tmp_path.parent)
    assert load_trained(tmp_path / "run").step == 3


def test_untrained_networks_take_images_as_they_are_and_trained_ones_as_they_were(timm):
    module = timm.create_model("resnet10t", num_classes=3)
    fresh, trained = define(module, trained=False), define(module, trained=True)
    config = timm.data.resolve_model_data_config(module)
    assert fresh.size is None
    assert trained.size == config["input_size"][1:]
    assert (trained.mean, trained.std) == (config["mean"], config["std"])
    fixed = Definition.from_text(definition_of("timm:vit_tiny_patch16_224", 3))
    assert fixed.size == (224, 224)
    assert define(module, trained=True, size=(9, 9), mean=(0.1,)).mean == (0.1,)


def test_a_definition_survives_being_text(timm):
    definition = define(timm.create_model("resnet10t", num_classes=3), trained=True, classes=[2, 0])
    assert Definition.from_text(definition.to_text()) == definition
    for text in ("{", "{}", "3", '{"library": "timm"}'):
        with pytest.raises(ConfigError, match=r"network.definition is none that jemstone wrote"):
            Definition.from_text(text)


PROCESSORS = {
    "as it is": ({"do_rescale": True, "rescale_factor": 1 / 255, "image_mean": [0.5], "image_std": [0.25]}, 1),
    "another scale": ({"rescale_factor": 1 / 127.5, "image_mean": [1.0], "image_std": [0.5]}, 2),
    "bytes": ({"do_rescale": False, "image_mean": [127.5], "image_std": [63.75]}, 255),
    "no moments": ({"do_normalize": False, "rescale_factor": 1 / 255}, 1),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors_are_read_as_transformers_applies_them(hf_folder, name):
    settings, scale = PROCESSORS[name]
    folder = hf_folder(weights=True, processor={**settings, "size": {"height": 8, "width": 8}})
    definition = define(fetch(f"hf:{folder}", 2, trained=True), trained=True)
    pixels = torch.rand(2, 1, 8, 8)
    found = (pixels - torch.tensor(definition.mean)) / torch.tensor(definition.std)
    mean, std = settings.get("image_mean", [0.0])[0], settings.get("image_std", [1.0])[0]
    torch.testing.assert_close(found, (pixels * scale - mean) / std)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"size": {"height": 8, "width": 6}}, (8, 6)),
        ({"size": {"shortest_edge": 8}}, (8, 8)),
        ({"size": 8}, (8, 8)),
        ({"size": {"shortest_edge": 12}, "do_center_crop": True, "crop_size": {"height": 8, "width": 8}}, (8, 8)),
        ({}, (8, 8)),  # of config.json
    ],
)
def test_the_size_is_what_the_network_gets_to_see(hf_folder, settings, size):
    folder = hf_folder(weights=True, processor={"image_mean": [0.5], "image_std": [0.5], **settings})
    assert define(fetch(f"hf:{folder}", 2, trained=True), trained=True).size == size


def test_an_unknown_normalisation_is_asked_for(hf_folder):
    module = fetch(f"hf:{hf_folder(weights=True)}", 2, trained=True)
    with pytest.raises(ConfigError, match=r"no preprocessor_config.json at .*give mean and std"):
        define(module, trained=True)
    assert define(module, trained=True, mean=(0.1,), std=(0.2,)).mean == (0.1,)
    assert define(module, trained=False).mean == (0.5,)


def test_other_modules_have_no_definition():
    assert define(nn.Linear(2, 2), trained=True) is None
    assert definition_of("conv-8", 3) == ""


def test_names_that_lead_nowhere_are_refused(timm, hf_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="'timm:resnet10xx' cannot be made: Unknown model"):
        build_network("timm:resnet10xx", (1, 8, 8), 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty' cannot be made"):
        build_network(f"hf:{tmp_path / 'empty'}", (1, 8, 8), 3)
    with pytest.raises(ConfigError, match=r"cannot be made with its weights.*--weights FILE"):
        fetch(f"hf:{hf_folder()}", 3, trained=True)


@pytest.mark.parametrize(
    "arguments", [{"model_name": "resnet18", "checkpoint_path": "x.pt"}, {"model_name": "hf-hub:owner/name"}]
)
def test_a_definition_makes_timm_read_nothing(timm, arguments):
    definition = Definition("timm", arguments, channels=3, size=None, mean=(0.5,), std=(0.5,))
    with pytest.raises(ConfigError, match="more than a model"):
        definition.build()


def test_a_definition_names_no_code(hf_folder):
    definition = Definition.from_text(definition_of(f"hf:{hf_folder()}", 10))
    names = ("auto_map", "attn_implementation", "_attn_implementation", "_experts_implementation")
    arguments = {**definition.arguments, **dict.fromkeys(names, "owner/kernel")}
    config = replace(definition, arguments=arguments).build().network.config
    assert "owner/kernel" not in str(vars(config))


@pytest.mark.parametrize(("name", "package"), [("timm:resnet10t", "timm"), ("hf:x", "transformers")])
def test_a_missing_library_is_named_with_its_extra(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingExtra, match=rf"{package}.*pip install 'jemstone\[{'timm' if package == 'timm' else 'hf'}"
    ):
        build_network(name, (1, 8, 8), 3)


def test_the_names_are_among_those_that_an_error_lists():
    with pytest.raises(ConfigError, match=r"timm:NAME: .*hf:FOLDER_OR_ID: .*py:FILE"):
        build_network("renset", (1, 8, 8), 3)


def test_building_takes_nothing_from_the_global_stream(hf_folder):
    folder = hf_folder()
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    few_steps("classifier-small", f"hf:{folder}")
    assert torch.equal(torch.rand(1), wanted)


def test_the_same_seed_gives_the_same_network(hf_folder):
    folder = hf_folder("convnext")
    one, two = (few_steps("classifier-small", f"hf:{folder}").model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_settings_of_our_own_networks_say_nothing_here(hf_folder):
    data = load_dataset("digits")
    config = TrainConfig().with_values(network={"name": f"hf:{hf_folder()}", "norm": "batch"}, device="cpu", steps=1)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in Session.start(config, data).model.modules())
