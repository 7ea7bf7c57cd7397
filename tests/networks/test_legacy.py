"""The layouts of the releases, written down a second time: names, shapes, and what their forward pass computes."""

import pickle
import re

import pytest
import torch
from torch.nn import functional as F

from jemstone.errors import CheckpointError
from jemstone.networks import WideResNet, load_jem_checkpoint
from jemstone.networks.layers import with_spectral_norm
from jemstone.networks.legacy import load_release, read_release
from jemstone.networks.release_layouts import LAYOUTS

WRN_10_1_WEIGHTS = {
    "f.conv1.weight": (16, 3, 3, 3),
    "f.layer1.0.conv1.weight": (16, 16, 3, 3),
    "f.layer1.0.conv2.weight": (16, 16, 3, 3),
    "f.layer2.0.conv1.weight": (32, 16, 3, 3),
    "f.layer2.0.conv2.weight": (32, 32, 3, 3),
    "f.layer2.0.shortcut.0.weight": (32, 16, 1, 1),
    "f.layer3.0.conv1.weight": (64, 32, 3, 3),
    "f.layer3.0.conv2.weight": (64, 64, 3, 3),
    "f.layer3.0.shortcut.0.weight": (64, 32, 1, 1),
    "f.linear.weight": (10, 64),
    "energy_output.weight": (1, 64),
    "class_output.weight": (10, 64),
}


def release_shapes(depth: int, width: int, norm: str = "none", classes: int = 10) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the release's CCF network."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, after: int, before: int, side: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (after, before, side, side), (after,)

    def normalisation(name: str, channels: int) -> None:
        leaves = {"none": [], "instance": ["weight", "bias"], "act": ["loc", "scale"]}
        leaves["batch"] = ["weight", "bias", "running_mean", "running_var"]
        for leaf in leaves[norm]:
            shapes[f"{name}.{leaf}"] = (1, channels, 1, 1) if norm == "act" else (channels,)
        if norm in ("batch", "act"):
            shapes[f"{name}." + {"batch": "num_batches_tracked", "act": "initialized"}[norm]] = ()

    conv("f.conv1", 16, 3, 3)
    before = 16
    for layer, after in enumerate((16 * width, 32 * width, 64 * width), start=1):
        for block in range((depth - 4) // 6):
            name = f"f.layer{layer}.{block}"
            normalisation(f"{name}.bn1", before)
            conv(f"{name}.conv1", after, before, 3)
            normalisation(f"{name}.bn2", after)
            conv(f"{name}.conv2", after, after, 3)
            if before != after or (layer > 1 and block == 0):
                conv(f"{name}.shortcut.0", after, before, 1)
            before = after
    normalisation("f.bn1", before)
    for head, outputs in {"f.linear": 10, "energy_output": 1, "class_output": classes}.items():
        shapes[f"{head}.weight"], shapes[f"{head}.bias"] = (outputs, before), (outputs,)
    return shapes


def release_state(*args, **kwargs) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    state = {}
    for key, shape in release_shapes(*args, **kwargs).items():
        if key.endswith(("num_batches_tracked", "initialized")):
            state[key] = torch.tensor(5)
        elif key.endswith("running_var"):
            state[key] = 0.5 + torch.rand(shape, generator=generator)
        else:
            state[key] = torch.randn(shape, generator=generator) / max(1, torch.Size(shape[1:]).numel()) ** 0.5
    return state


def release_logits(state: dict[str, torch.Tensor], x: torch.Tensor, norm: str = "none") -> torch.Tensor:
    """What the release's `classify` computes in evaluation mode, from the names alone."""

    def activated(name: str, h: torch.Tensor) -> torch.Tensor:
        if norm == "batch":
            mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
            h = F.batch_norm(h, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])
        if norm == "instance":
            h = F.instance_norm(h, weight=state[f"{name}.weight"], bias=state[f"{name}.bias"])
        return F.leaky_relu(h, 0.2)

    def conv(name: str, h: torch.Tensor, stride: int = 1, padding: int = 1) -> torch.Tensor:
        return F.conv2d(h, state[f"{name}.weight"], state[f"{name}.bias"], stride=stride, padding=padding)

    h = conv("f.conv1", x)
    for block in sorted({match[0] for key in state if (match := re.match(r"f\.layer\d\.\d+", key))}):
        stride = 2 if block in ("f.layer2.0", "f.layer3.0") else 1
        residual = conv(f"{block}.conv1", activated(f"{block}.bn1", h))
        residual = conv(f"{block}.conv2", activated(f"{block}.bn2", residual), stride)
        if f"{block}.shortcut.0.weight" in state:
            h = conv(f"{block}.shortcut.0", h, stride, padding=0)
        h = h + residual
    pooled = F.avg_pool2d(activated("f.bn1", h), 8).flatten(1)
    return F.linear(pooled, state["class_output.weight"], state["class_output.bias"])


def images(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def save(tmp_path):
    def write(contents: object, **kwargs) -> str:
        torch.save(contents, tmp_path / "ckpt.pt", **kwargs)
        return str(tmp_path / "ckpt.pt")

    return write


def test_the_restatement_agrees_with_the_list_written_by_hand():
    biases = {key.replace("weight", "bias"): shape[:1] for key, shape in WRN_10_1_WEIGHTS.items()}
    assert release_shapes(10, 1) == WRN_10_1_WEIGHTS | biases


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 2)])
@pytest.mark.parametrize("norm", ["none", "batch", "instance"])
def test_logits_are_those_of_the_release(save, depth, width, norm):
    state = release_state(depth, width, norm)
    network = WideResNet(depth, width, norm=norm).eval()
    buffer = torch.rand(20, 3, 32, 32, dtype=torch.float64)
    loaded = load_jem_checkpoint(save({"model_state_dict": state, "replay_buffer": buffer}), network)
    assert loaded is not None
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, buffer.float())
    torch.testing.assert_close(network(images()), release_logits(state, images(), norm), rtol=1e-4, atol=1e-5)


def test_every_tensor_of_the_release_lands_in_one_place(save):
    state = release_state(16, 2, "batch")
    network = WideResNet(16, 2, norm="batch")
    load_jem_checkpoint(save({"model_state_dict": state}), network)
    dropped = {"f.linear.weight", "f.linear.bias", "energy_output.weight", "energy_output.bias"}
    own = list(network.state_dict().values())
    assert len(own) == len(state) - len(dropped)
    for key, tensor in state.items():
        places = sum(tensor.shape == other.shape and torch.equal(tensor, other) for other in own)
        if tensor.ndim > 0:
            assert places == (0 if key in dropped else 1), key


def test_other_class_counts_and_files_without_the_unused_heads(save):
    state = release_state(10, 1, classes=100)
    assert state["f.linear.weight"].shape[0] == 10
    kept = {key: value for key, value in state.items() if not key.startswith(("f.linear", "energy_output"))}
    for contents in (state, kept):
        network = WideResNet(10, 1, num_classes=100).eval()
        assert load_jem_checkpoint(save({"model_state_dict": contents}), network) is None
        torch.testing.assert_close(network(images()), release_logits(state, images()), rtol=1e-4, atol=1e-5)


def test_prefixes_of_data_parallel_and_the_old_file_format(save):
    state = release_state(10, 1)
    contents = {"model_state_dict": {f"module.{key}": value for key, value in state.items()}, "replay_buffer": []}
    network = WideResNet(10, 1).eval()
    assert load_jem_checkpoint(save(contents, _use_new_zipfile_serialization=False), network) is None
    torch.testing.assert_close(network(images()), release_logits(state, images()), rtol=1e-4, atol=1e-5)


def refused(path: str, network: WideResNet) -> str:
    """The message of the refusal, which must name the file and leave the network alone."""
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_jem_checkpoint(path, network)
    assert path in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "norm", "remedy"),
    [
        ({"depth": 16, "width": 2}, "batch", r'has normalisation parameters: build the network with norm="batch".*bn1'),
        ({"depth": 16, "width": 2}, "instance", 'has normalisation parameters: build the network with norm="instance"'),
        ({"depth": 16, "width": 2, "norm": "batch"}, "none", 'has no normalisation .*norm="none".*missing: f.layer1.0'),
        ({"depth": 16, "width": 2, "norm": "instance"}, "batch", 'norm="batch".*unexpected: .*running_mean'),
        ({"depth": 16, "width": 2, "norm": "batch"}, "act", "ActNorm"),
        ({"depth": 10, "width": 2}, "none", r"checkpoint is WideResNet\(16, 2, .*unexpected: f.layer1.1"),
        ({"depth": 22, "width": 2}, "none", r"checkpoint is WideResNet\(16, 2, .*missing: f.layer1.2"),
        ({"depth": 16, "width": 3}, "none", r"WideResNet\(16, 2, .*network is WideResNet\(16, 3, .*\(32, 16, 3, 3\)"),
        ({"depth": 16, "width": 2, "num_classes": 5}, "none", r"num_classes=10.*class_output.weight \(10, 128\)"),
        ({"depth": 16, "width": 2, "in_channels": 1}, "none", r"in_channels=3.*f.conv1.weight \(16, 3, 3, 3\)"),
        ({"depth": 16, "width": 2, "norm": "group"}, "instance", "no networks with group normalisation"),
        ({"depth": 16, "width": 2, "activation": "silu"}, "none", 'activation="leaky_relu"'),
    ],
)
def test_a_network_that_does_not_fit_is_told_how_to_fit(save, settings, norm, remedy):
    path = save({"model_state_dict": release_state(16, 2, norm)})
    assert re.search(remedy, refused(path, WideResNet(**settings)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("f.layer2.0.conv2.bias"), "incomplete or changed.*missing: f.layer2.0.conv2.bias"),
        (lambda s: s.update({"f.extra": torch.zeros(1)}), "unexpected: f.extra"),
        (lambda s: s.pop("class_output.weight"), "does not hold a wide residual network"),
        (lambda s: s["f.conv1.bias"].fill_(float("nan")), "not finite in f.conv1.bias.*diverged"),
        (lambda s: s.update({"f.conv1.bias": [1.0]}), "'f.conv1.bias'.*not a named tensor"),
    ],
)
def test_a_changed_file_is_refused_with_the_key(save, change, named):
    state = release_state(10, 1)
    change(state)
    assert re.search(named, refused(save({"model_state_dict": state}), WideResNet(10, 1)))


@pytest.mark.parametrize(
    "buffer", [torch.zeros(4, 3, 32), torch.zeros(4, 3, 8, 8, dtype=torch.uint8), {"images": 1}, [1.0]]
)
def test_a_strange_replay_buffer_is_refused(save, buffer):
    path = save({"model_state_dict": release_state(10, 1), "replay_buffer": buffer})
    assert "replay_buffer" in refused(path, WideResNet(10, 1))


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a checkpoint ran')",))


def test_code_in_a_file_is_not_executed(save):
    path = save({"model_state_dict": release_state(10, 1), "replay_buffer": Payload()})
    assert "never executed" in refused(path, WideResNet(10, 1))


def test_files_that_are_no_checkpoints(save, tmp_path):
    network = WideResNet(10, 1)
    assert "no such file" in refused(str(tmp_path / "absent.pt"), network)
    refused(str(tmp_path), network)
    whole = save({"model_state_dict": release_state(10, 1)})
    data = (tmp_path / "ckpt.pt").read_bytes()
    junk = (
        b"",
        b"junk",
        b"\x80\x02",
        data[: len(data) // 2],
        data[:40],
        pickle.dumps({"a": 1}, 2),
        pickle.dumps([1], 2)[:-1],
    )
    for content in junk:
        (tmp_path / "ckpt.pt").write_bytes(content)
        refused(whole, network)
    assert "found list" in refused(save([1, 2]), network)
    assert "found ['epoch', 'f.conv1.bias']" in refused(save({"f.conv1.bias": torch.zeros(1), "epoch": 3}), network)
    assert "found []" in refused(save({}), network)
    assert "is NoneType, so the file holds no network" in refused(save({"model_state_dict": None}), network)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (lambda: WideResNet(10, 1, norm="batch", statistics="separate"), 'two. Build it with statistics="batch"'),
        (lambda: with_spectral_norm(WideResNet(10, 1, norm="batch")), "spectral_norm=False"),
    ],
    ids=["separate", "spectral"],
)
def test_networks_that_the_release_did_not_have_are_refused(save, change, remedy):
    assert remedy in refused(save({"model_state_dict": release_state(10, 1, "batch")}), change())


SECOND_NAMES = {"f.conv1.": "f.layer_one.", "f.bn1.": "f.other_layers.3."}
SECOND_NAMES |= {f"f.layer{number}.": f"f.other_layers.{number - 1}." for number in (1, 2, 3)}


def state_of(layout: str, *args, **kwargs) -> dict[str, torch.Tensor]:
    """What the network of each release saves: JEM++ stores its layers twice, and only JEM has `f.linear`."""
    state = release_state(*args, **kwargs)
    if layout != "jem":
        state = {key: value for key, value in state.items() if not key.startswith("f.linear")}
    if layout == "jem++":
        for key, value in list(state.items()):
            for first, second in SECOND_NAMES.items():
                if key.startswith(first):
                    state[key.replace(first, second, 1)] = value
    return state


def test_the_second_names_of_jempp_are_those_written_by_hand():
    block = [f"{unit}.{leaf}" for unit in ("conv1", "conv2") for leaf in ("weight", "bias")]
    expected = {"f.layer_one.weight", "f.layer_one.bias"}
    for number in (0, 1, 2):
        expected |= {f"f.other_layers.{number}.0.{name}" for name in block}
        expected |= {f"f.other_layers.{number}.0.shortcut.0.{leaf}" for leaf in ("weight", "bias") if number}
    assert state_of("jem++", 10, 1).keys() - state_of("sada-jem", 10, 1).keys() == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("bare", [False, True])
def test_every_layout_gives_the_logits_of_its_release(save, layout, norm, prefix, bare):
    state = {prefix + key: value for key, value in state_of(layout, 10, 2, norm).items()}
    buffer = torch.rand(20, 3, 32, 32) * 2 - 1
    path = save(state if bare else {"model_state_dict": state, "replay_buffer": buffer})
    release = read_release(path, LAYOUTS[layout])
    assert str(release.found()) == f'WideResNet(10, 2, num_classes=10, in_channels=3, norm="{norm}")'
    assert (release.buffer is None) if bare else torch.equal(release.buffer, buffer)
    network = WideResNet(10, 2, norm=norm).eval()
    load_release(release, network)
    expected = release_logits(release_state(10, 2, norm), images(), norm)
    torch.testing.assert_close(network(images()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("asked", LAYOUTS)
def test_a_file_of_another_release_is_told_which(save, layout, asked):
    path = save({"model_state_dict": state_of(layout, 10, 1, "batch")})
    if layout == asked:
        read_release(path, LAYOUTS[asked])
        return
    with pytest.raises(CheckpointError) as caught:
        read_release(path, LAYOUTS[asked])
    assert f"those of the {LAYOUTS[layout].title} release, not of {LAYOUTS[asked].title}." in str(caught.value)
    assert f"`jemstone import {path} --layout {layout}`" in str(caught.value)


def test_a_file_of_one_head_alone_may_be_of_any_release(save):
    state = state_of("sada-jem", 10, 1)
    path = save({key: value for key, value in state.items() if not key.startswith("energy_output")})
    for layout in LAYOUTS.values():
        load_release(read_release(path, layout), WideResNet(10, 1))


def test_second_names_alone_will_do_and_must_not_contradict_the_first(save):
    state = state_of("jem++", 10, 1, "batch")
    seconds = {key: value for key, value in state.items() if not key.startswith(tuple(SECOND_NAMES))}
    network = WideResNet(10, 1, norm="batch").eval()
    load_release(read_release(save(seconds), LAYOUTS["jem++"]), network)
    expected = release_logits(release_state(10, 1, "batch"), images(), "batch")
    torch.testing.assert_close(network(images()), expected, rtol=1e-4, atol=1e-5)
    state["f.other_layers.1.0.conv1.bias"] = state["f.other_layers.1.0.conv1.bias"] + 1
    with pytest.raises(CheckpointError, match=r"f.other_layers.1.0.conv1.bias and f.layer2.0.conv1.bias .* differ"):
        read_release(save(state), LAYOUTS["jem++"])


def test_the_fourth_stage_of_large_images_is_named(save):
    state = state_of("sada-jem", 10, 1)
    for key in [key for key in state if key.startswith("f.layer3.0.")]:
        state[key.replace("layer3", "layer4")] = state[key]
    release = read_release(save(state), LAYOUTS["sada-jem"])
    with pytest.raises(CheckpointError, match=r"fourth stage, which SADA-JEM adds .* 64 pixels"):
        load_release(release, WideResNet(10, 1))
