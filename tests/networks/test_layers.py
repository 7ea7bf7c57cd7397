import copy

import pytest
import torch
from torch import nn

from jemstone.errors import ConfigError
from jemstone.networks import WideResNet, build_network
from jemstone.networks.layers import (
    NORMS,
    STATISTICS,
    SeparateBatchNorm2d,
    group_count,
    make_activation,
    make_norm,
    with_spectral_norm,
)
from jemstone.networks.modes import in_mode, statistics_of_negatives


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (3, 1), (5, 1), (16, 4), (48, 12), (100, 25), (128, 32), (160, 32), (640, 32)]
)
def test_groups_divide_the_channels_and_hold_several(channels, groups):
    assert group_count(channels) == groups


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("channels", [1, 6, 37, 160])
def test_every_norm_keeps_the_shape_for_any_channel_count(kind, channels):
    x = torch.randn(3, channels, 4, 5, generator=torch.Generator().manual_seed(0))
    assert make_norm(kind, channels)(x).shape == x.shape


@pytest.mark.parametrize(
    ("kind", "axes"),
    [("batch", (0, 2, 3)), ("instance", (2, 3)), ("group", (1, 2, 3))],
    ids=["batch", "instance", "group"],
)
def test_each_norm_standardises_over_its_own_axes(kind, axes):
    # Five channels make one group, so that the group is the whole image.
    x = 3 + 2 * torch.randn(4, 5, 6, 6, generator=torch.Generator().manual_seed(0))
    out = make_norm(kind, 5)(x)
    torch.testing.assert_close(out.mean(dim=axes), torch.zeros_like(out.mean(dim=axes)), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(dim=axes, correction=0), torch.ones_like(out.std(dim=axes)), atol=1e-4, rtol=0)


def test_no_norm_is_the_identity():
    x = torch.randn(2, 3, 4, 4)
    assert make_norm("none", 3)(x) is x


@pytest.mark.parametrize(("name", "at_minus_one"), [("leaky_relu", -0.2), ("relu", 0.0), ("silu", -0.2689414)])
def test_activations_at_minus_one(name, at_minus_one):
    assert make_activation(name)(torch.tensor(-1.0)).item() == pytest.approx(at_minus_one, abs=1e-6)


def feature_maps(seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(6, 5, 4, 3, generator=torch.Generator().manual_seed(seed)) + scale


def plain_twin(layer: SeparateBatchNorm2d, mean: torch.Tensor, var: torch.Tensor) -> nn.BatchNorm2d:
    """A BatchNorm2d with the layer's scale and shift and these running statistics."""
    twin = nn.BatchNorm2d(5)
    twin.load_state_dict(
        {"weight": layer.weight, "bias": layer.bias, "running_mean": mean, "running_var": var}, strict=False
    )
    return twin


@pytest.fixture
def separate() -> SeparateBatchNorm2d:
    """A layer with a scale and shift of its own."""
    layer = make_norm("batch", 5, "separate")
    assert isinstance(layer, SeparateBatchNorm2d)
    torch.manual_seed(0)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_each_set_is_a_batch_norm_of_its_own(separate, momentum):
    """Exact: alternating passes are those of two BatchNorm2d, one that saw the data and one that saw the negatives."""
    separate.momentum = momentum
    data, negatives = (copy.deepcopy(plain_twin(separate, torch.zeros(5), torch.ones(5))) for _ in range(2))
    data.momentum = negatives.momentum = momentum
    for seed in range(3):
        assert torch.equal(separate(feature_maps(seed)), data(feature_maps(seed)))
        with statistics_of_negatives(separate):
            for extra in (10, 20):
                x = feature_maps(seed + extra, scale=2.0)
                assert torch.equal(separate(x), negatives(x))
    state = separate.state_dict()
    for ours, theirs in {
        "running_mean": "mean",
        "running_var": "var",
        "num_batches_tracked": "batches_tracked",
    }.items():
        assert torch.equal(state[ours], data.state_dict()[ours])
        assert torch.equal(state[f"negatives_{theirs}"], negatives.state_dict()[ours])
    assert [int(separate.num_batches_tracked), int(separate.negatives_batches_tracked)] == [3, 6]


def test_evaluation_uses_the_set_in_force_and_moves_neither(separate):
    for name, value in separate.named_buffers():
        value.copy_(torch.rand(5) + len(name) if value.ndim else torch.tensor(3))
    separate.eval()
    before = {name: value.clone() for name, value in separate.state_dict().items()}
    x = feature_maps(0)
    of_data = plain_twin(separate, separate.running_mean, separate.running_var).eval()
    of_negatives = plain_twin(separate, separate.negatives_mean, separate.negatives_var).eval()
    assert not torch.allclose(of_data(x), of_negatives(x), atol=0.1)
    assert torch.equal(separate(x), of_data(x))
    with statistics_of_negatives(separate):
        assert torch.equal(separate(x), of_negatives(x))
    assert torch.equal(separate(x), of_data(x))
    assert all(torch.equal(value, before[name]) for name, value in separate.state_dict().items())


def test_a_state_dict_carries_both_sets(separate):
    separate(feature_maps(0))
    with statistics_of_negatives(separate):
        separate(feature_maps(1, scale=3.0))
        separate(feature_maps(2, scale=3.0))
    other = make_norm("batch", 5, "separate")
    other.load_state_dict(separate.state_dict())
    for layer in (separate.eval(), other.eval(), copy.deepcopy(separate)):
        assert [int(layer.num_batches_tracked), int(layer.negatives_batches_tracked)] == [1, 2]
        assert torch.equal(layer(feature_maps(3)), separate(feature_maps(3)))
        with statistics_of_negatives(layer), statistics_of_negatives(separate):
            assert torch.equal(layer(feature_maps(3)), separate(feature_maps(3)))


@pytest.mark.parametrize("statistics", STATISTICS)
def test_only_separate_statistics_change_the_layer(statistics):
    kind = SeparateBatchNorm2d if statistics == "separate" else nn.BatchNorm2d
    assert type(make_norm("batch", 5, statistics)) is kind


@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm != "batch"])
@pytest.mark.parametrize("statistics", [s for s in STATISTICS if s != "batch"])
def test_statistics_without_batch_norm_are_refused(norm, statistics):
    with pytest.raises(ConfigError, match=f"statistics='{statistics}'.*norm='{norm}'.*norm='batch'"):
        make_norm(norm, 5, statistics)


def test_unknown_statistics_are_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'both'.*batch, shared, separate, frozen"):
        make_norm("batch", 5, "both")


NAMES = ["conv-6-2", "mlp-12-1", "wrn-10-1"]


def normalised(name: str, **settings) -> nn.Module:
    torch.manual_seed(0)
    return build_network(name, (1, 8, 8), 3, spectral_norm=True, **settings)


def images(n: int = 4) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def weighted(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def state_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_singular_value_of_every_weight_is_one(name):
    torch.manual_seed(0)
    plain = build_network(name, (1, 8, 8), 3)
    network = normalised(name)
    with torch.no_grad():
        for layer in weighted(network):
            layer.parametrizations.weight.original.mul_(5)  # one scale for all: a norm of 1 is not there to start with
        for _ in range(300):
            network(images(1))
    network.eval()
    assert len(weighted(network)) == len(weighted(plain)) > 1
    for layer, before in zip(weighted(network), weighted(plain), strict=True):
        assert torch.linalg.svdvals(layer.weight.flatten(1))[0].item() == pytest.approx(1, abs=1e-3)
        sigma = torch.linalg.svdvals(before.weight.flatten(1))[0]
        torch.testing.assert_close(layer.weight, before.weight / sigma, rtol=2e-3, atol=1e-5)


def test_the_estimate_follows_weights_that_move():
    network = normalised("mlp-12-1")
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in weighted(network):
            layer.parametrizations.weight.original.copy_(torch.randn_like(layer.weight))
        stale = [torch.linalg.svdvals(layer.weight)[0].item() for layer in weighted(network.eval())]
        network.train()
        for _ in range(100):
            network(images(1))
        network.eval()
    assert min(abs(value - 1) for value in stale) > 0.1
    for layer in weighted(network):
        assert torch.linalg.svdvals(layer.weight)[0].item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_spectral_normalisation_is_a_function_of_the_seed(name):
    assert same(state_of(normalised(name)), state_of(normalised(name)))
    torch.manual_seed(0)
    plain = build_network(name, (1, 8, 8), 3)
    originals = [layer.parametrizations.weight.original for layer in weighted(normalised(name))]
    assert all(torch.equal(a, b.weight) for a, b in zip(originals, weighted(plain), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_spectral_norms_move_in_train_mode_alone(name):
    network = normalised(name).eval()
    before = state_of(network)
    first = network(images())
    assert torch.equal(network(images()), first)
    assert same(state_of(network), before)
    with in_mode(network, training=True):
        network(images())
    moved = state_of(network)
    assert not same(moved, before)
    network(images())
    assert same(state_of(network), moved)


@pytest.mark.parametrize("name", NAMES)
def test_a_spectrally_normalised_network_survives_copies_and_state_dicts(name):
    network = normalised(name)
    network(images())
    torch.manual_seed(5)
    loaded = build_network(name, (1, 8, 8), 3, spectral_norm=True)
    assert not torch.equal(copy.deepcopy(loaded).eval()(images()), copy.deepcopy(network).eval()(images()))
    loaded.load_state_dict(network.state_dict())
    twin = copy.deepcopy(network)
    before = state_of(network)
    for other in (loaded, twin):
        other.eval()
        network.eval()
        assert torch.equal(other(images()), network(images()))
        other.train()(images())
        assert not same(state_of(other), before)
    assert same(state_of(network), before)  # the copies share nothing with it


def test_a_step_moves_the_weights_through_their_normalisation():
    """Exact: the loss does not change with the scale of a weight, so its gradient is orthogonal to the weight."""
    network = normalised("conv-6-2", norm="group")
    with torch.no_grad():
        for _ in range(300):
            network(images(1))
    network.eval()(images()).square().sum().backward()
    for layer in weighted(network):
        weight = layer.parametrizations.weight.original
        cosine = torch.nn.functional.cosine_similarity(weight.flatten(), weight.grad.flatten(), dim=0)
        assert weight.grad.abs().max() > 0
        assert cosine.abs() < 1e-4


def test_spectral_normalisation_is_of_the_network_given():
    network = WideResNet(10, 1)
    assert with_spectral_norm(network) is network
