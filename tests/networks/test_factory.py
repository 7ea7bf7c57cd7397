import re

import pytest
import torch
from torch import nn

from jemstone.errors import ConfigError
from jemstone.networks import MLP, NETWORKS, ConvNet, ResNet9, WideResNet, build_network
from jemstone.networks.layers import STATISTICS, SeparateBatchNorm2d


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("wrn-10-1", (3, 32, 32), WideResNet),
        ("wrn-16-2", (1, 28, 28), WideResNet),
        ("resnet9-4", (3, 17, 32), ResNet9),
        ("conv-8", (1, 8, 8), ConvNet),
        ("conv-8-4", (3, 33, 47), ConvNet),
        ("mlp-16", (5,), MLP),
        ("mlp-16-3", (1, 8, 8), MLP),
    ],
)
def test_a_name_builds_its_network_for_the_input(name, shape, kind):
    network = build_network(name, shape, 7)
    assert type(network) is kind
    assert network(torch.zeros(2, *shape)).shape == (2, 7)


def same_shapes(a: nn.Module, b: nn.Module) -> bool:
    return {k: v.shape for k, v in a.state_dict().items()} == {k: v.shape for k, v in b.state_dict().items()}


def test_the_numbers_in_a_name_are_depth_and_width():
    assert same_shapes(build_network("wrn-16-2", (5, 8, 8), 3), WideResNet(16, 2, 3, in_channels=5))
    assert same_shapes(build_network("resnet9-4", (1, 16, 16), 3), ResNet9((1, 16, 16), 3, width=4))
    assert same_shapes(build_network("conv-8", (1, 8, 8), 3), ConvNet((1, 8, 8), 3, width=8, depth=3))
    assert same_shapes(build_network("conv-8-2", (1, 8, 8), 3), ConvNet((1, 8, 8), 3, width=8, depth=2))
    assert same_shapes(build_network("mlp-8", (4,), 3), MLP(4, 3, width=8, depth=2))
    assert same_shapes(build_network("mlp-8-1", (1, 2, 2), 3), MLP(4, 3, width=8, depth=1))


@pytest.mark.parametrize("name", ["wrn-10-1", "resnet9-8", "conv-8", "mlp-8"])
def test_settings_reach_the_network(name):
    norm = "none" if name.startswith("mlp") else "group"
    network = build_network(name, (1, 16, 16), 2, norm=norm, dropout=0.25, activation="relu")
    modules = list(network.modules())
    assert {m.p for m in modules if isinstance(m, nn.Dropout)} == {0.25}
    assert any(isinstance(m, nn.ReLU) for m in modules)
    assert not any(isinstance(m, nn.LeakyReLU | nn.SiLU) for m in modules)
    assert any(isinstance(m, nn.GroupNorm) for m in modules) is (norm == "group")
    plain = list(build_network(name, (1, 16, 16), 2).modules())
    assert {m.negative_slope for m in plain if isinstance(m, nn.LeakyReLU)} == {0.2}
    assert not any(isinstance(m, nn.Dropout | nn.GroupNorm) for m in plain)


@pytest.mark.parametrize("name", ["wrn-10-1", "resnet9-8", "conv-8"])
@pytest.mark.parametrize("statistics", STATISTICS)
def test_the_choice_of_statistics_reaches_every_norm(name, statistics):
    network = build_network(name, (1, 16, 16), 2, norm="batch", statistics=statistics)
    plain = build_network(name, (1, 16, 16), 2, norm="batch")
    kind = SeparateBatchNorm2d if statistics == "separate" else nn.BatchNorm2d
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {type(m) for m in norms} == {kind}
    assert len(norms) == sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    assert same_shapes(network, plain) is (statistics != "separate")


def test_spectral_normalisation_is_off_unless_asked_for():
    assert not any("parametrizations" in key for key in build_network("conv-8", (1, 8, 8), 2).state_dict())
    normalised = build_network("conv-8", (1, 8, 8), 2, spectral_norm=True, norm="batch", statistics="separate")
    assert sum(key.endswith("weight.original") for key in normalised.state_dict()) == 4
    assert not any(key.endswith("1.parametrizations.weight.original") for key in normalised.state_dict())  # the norms


def test_every_documented_name_builds():
    sizes = {"DEPTH": "10", "WIDTH": "4"}
    for pattern in NETWORKS:
        full = re.sub(r"[A-Z]+", lambda word: sizes[word[0]], pattern)
        for name in {re.sub(r"\[.*\]", "", full), full.replace("[", "").replace("]", "")}:
            assert build_network(name, (1, 16, 16), 2)(torch.zeros(1, 1, 16, 16)).shape == (1, 2)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "resnet-18",
        "resnet9",
        "resnet9-8-2",
        "wrn",
        "wrn-28",
        "wrn-28-10-3",
        "conv",
        "conv-",
        "conv-8-3-1",
        "mlp-x",
        "WRN-10-1",
        "wrn-10-1\n",
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(name):
    with pytest.raises(ConfigError) as caught:
        build_network(name, (1, 8, 8), 2)
    assert repr(name) in str(caught.value)
    assert all(pattern in str(caught.value) for pattern in NETWORKS)


@pytest.mark.parametrize(
    ("name", "shape", "settings", "named"),
    [
        ("wrn-27-2", (3, 32, 32), {}, "6n.*27"),
        ("wrn-10-0", (3, 32, 32), {}, "width is 0"),
        ("wrn-10-1", (64,), {}, r"'wrn-10-1'.*\(64,\).*mlp"),
        ("wrn-10-1", (3, 4, 4), {"norm": "instance"}, "'wrn-10-1'.*norm='instance'.*norm='group'"),
        ("conv-8", (64,), {}, r"\(64,\).*mlp"),
        ("conv-0", (1, 8, 8), {}, "width is 0"),
        ("resnet9-8", (1, 8, 8), {}, "at least 16x16 pixels, got 8x8"),
        ("mlp-8", (4,), {"norm": "batch"}, "'mlp-8'.*norm='batch'.*norm='none'"),
        ("mlp-8", (), {}, r"\(\)"),
        ("mlp-8", (0,), {}, "input_dim is 0"),
        ("mlp-8", (4,), {"dropout": -0.5}, r"-0\.5.*\[0, 1\)"),
        ("conv-8", (1, 8, 8), {"activation": "swish"}, "'swish'.*silu"),
        ("wrn-10-1", (1, 8, 8), {"norm": "layer"}, "'layer'.*group"),
        ("wrn-10-1", (1, 8, 8), {"statistics": "frozen"}, "statistics='frozen'.*norm='none'.*norm='batch'"),
        ("conv-8", (1, 8, 8), {"statistics": "shared", "norm": "group"}, "statistics='shared'.*norm='group'"),
        ("conv-8", (1, 8, 8), {"statistics": "both", "norm": "batch"}, "'both'.*batch, shared, separate, frozen"),
        ("mlp-8", (4,), {"statistics": "separate"}, "statistics='separate'.*norm='none'.*statistics='batch'"),
        ("mlp-8", (4,), {"statistics": "both"}, "'both'.*separate"),
    ],
)
def test_impossible_combinations_are_named(name, shape, settings, named):
    with pytest.raises(ConfigError, match=named):
        build_network(name, shape, 3, **settings)


def test_instance_norm_on_the_smallest_images_that_it_allows():
    network = build_network("wrn-10-1", (3, 4, 5), 3, norm="instance")
    assert network(torch.zeros(2, 3, 4, 5)).shape == (2, 3)
