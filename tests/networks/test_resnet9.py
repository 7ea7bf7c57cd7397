import pytest
import torch
from torch import nn

from jemstone.errors import ConfigError
from jemstone.networks import ResNet9
from jemstone.networks.layers import ACTIVATIONS, NORMS


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def built(shape=(3, 16, 16), num_classes=10, width=4, **settings) -> ResNet9:
    torch.manual_seed(0)
    return ResNet9(shape, num_classes, width, **settings)


def test_pages_own_network_has_6_573_120_parameters():
    # His convolutions and his head have no bias, and every convolution a norm with scale and shift.
    weights = 9 * (3 * 64 + 64 * 128 + 2 * 128**2 + 128 * 256 + 256 * 512 + 2 * 512**2)
    scales = 2 * (64 + 3 * 128 + 256 + 3 * 512)
    assert weights + scales + 512 * 10 == 6_573_120
    with torch.device("meta"):
        network = ResNet9((3, 32, 32), 10, norm="batch")
    biases = sum(m.bias.numel() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert biases == scales / 2 + 10
    assert sum(p.numel() for p in network.parameters()) - biases == 6_573_120


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(("channels", "width", "classes"), [(1, 4, 3), (3, 16, 10), (5, 6, 7)])
def test_the_parameter_count_follows_width_and_channels(channels, width, classes, norm):
    with torch.device("meta"):
        network = ResNet9((channels, 16, 16), classes, width, norm=norm)
    sizes = [(channels, 1), (1, 2), (2, 2), (2, 2), (2, 4), (4, 8), (8, 8), (8, 8)]
    total = 8 * width * classes + classes
    for number, (before, after) in enumerate(sizes):
        before = before if number == 0 else before * width
        total += 9 * before * after * width + after * width * (3 if norm == "batch" else 1)
    assert sum(p.numel() for p in network.parameters()) == total


@pytest.mark.parametrize("size", [(16, 16), (28, 28), (32, 32), (33, 47)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_from_16_and_any_channel_count(size, channels):
    network = built((channels, *size), num_classes=7)
    logits = network(images(2, channels, *size))
    assert logits.shape == (2, 7)
    assert (logits[0] != logits[1]).all()


def test_resolution_falls_to_an_eighth_and_channels_rise_eightfold():
    network = built((3, 32, 32))
    seen: dict[str, tuple[int, ...]] = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda m, inputs, output, name=name: seen.update({name: tuple(output.shape[1:])}))
    network(images(1, 3, 32, 32))
    assert seen == {
        "stem": (4, 32, 32),
        "down1": (8, 32, 32),
        "residual1": (8, 16, 16),
        "down2": (16, 16, 16),
        "down3": (32, 8, 8),
        "pool": (32, 4, 4),
        "residual3": (32, 4, 4),
        "head": (10,),
    }


def test_the_forward_pass_is_that_of_the_figure():
    """Written out with functions, for a network without norms; both residuals count, and averages are averages."""
    network = built((3, 18, 18), activation="relu")
    x = images(2, 3, 18, 18)

    def layer(h, sequence):
        return nn.functional.conv2d(h, sequence[0].weight, sequence[0].bias, padding=1).clamp(min=0)

    def halved(h):
        side = h.shape[-1] // 2
        return h[..., : 2 * side, : 2 * side].unflatten(3, (side, 2)).unflatten(2, (side, 2)).mean(dim=(3, 5))

    h = halved(layer(layer(x, network.stem), network.down1))
    h = h + layer(layer(h, network.residual1[0]), network.residual1[1])
    h = halved(layer(halved(layer(h, network.down2)), network.down3))
    h = h + layer(layer(h, network.residual3[0]), network.residual3[1])
    expected = h.flatten(2).mean(dim=2) @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(x), expected)


def test_nothing_takes_a_maximum_or_pools_adaptively():
    kinds = {type(m).__name__ for m in built((3, 32, 32), norm="batch").modules()}
    assert not [kind for kind in kinds if "Max" in kind or "Adaptive" in kind]
    pools = [m for m in built().modules() if isinstance(m, nn.AvgPool2d)]
    assert pools
    assert not any(pool.ceil_mode for pool in pools)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_reaches_all_parameters_and_the_input(norm, activation):
    network = built(norm=norm, activation=activation)
    x = images(4, 3, 16, 16).requires_grad_()
    network(x).square().sum().backward()
    assert (x.grad.flatten(1).norm(dim=1) > 1e-4).all()
    cancelled = {  # by the norm that follows
        f"{name}.bias" for name, module in network.named_modules() if isinstance(module, nn.Conv2d) and norm != "none"
    }
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name not in cancelled:
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("norm", NORMS)
def test_a_fresh_network_neither_explodes_nor_vanishes(norm):
    network = built((3, 32, 32), width=16, norm=norm)
    x = nn.functional.interpolate(images(4, 3, 4, 4), size=32, mode="bilinear").requires_grad_()
    logits = network(x)
    (grad,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
    assert 0.02 < logits.std().item() < 1
    assert logits.std(dim=0).mean() > 1e-3
    assert (grad.flatten(1).norm(dim=1) > 5e-4).all()
    assert (grad.flatten(1).norm(dim=1) < 1).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_few_steps_fit_a_few_images(norm):
    network = built(num_classes=2, norm=norm)
    x, y = images(6, 3, 16, 16), torch.tensor([0, 1, 0, 1, 0, 1])
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("norm", NORMS)
def test_evaluation_is_deterministic_and_treats_each_image_alone(norm):
    network = built(norm=norm, dropout=0.5)
    network(images(4, 3, 16, 16))
    network.eval()
    x = images(4, 3, 16, 16)
    together = network(x)
    assert torch.equal(together, network(x))
    torch.testing.assert_close(network(x[:1]), together[:1], rtol=1e-4, atol=1e-6)


def test_dropout_acts_in_training_only_and_only_if_asked():
    x = images(4, 3, 16, 16)
    with_dropout, without = built(dropout=0.3), built()
    assert not torch.equal(with_dropout(x), with_dropout(x))
    assert torch.equal(without(x), without(x))
    assert torch.equal(with_dropout.eval()(x), without(x))


@pytest.mark.parametrize("statistics", ["batch", "separate"])
def test_weights_and_statistics_come_back_from_a_state_dict(statistics):
    network = built(norm="batch", statistics=statistics)
    network(images(4, 3, 16, 16))
    torch.manual_seed(5)
    other = ResNet9((3, 16, 16), 10, 4, norm="batch", statistics=statistics)
    x = images(4, 3, 16, 16)
    assert not torch.equal(network.eval()(x), other.eval()(x))
    other.load_state_dict(network.state_dict())
    assert torch.equal(network(x), other(x))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"width": 0}, "width is 0"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"shape": (64,)}, r"ResNet-9.*\(64,\).*mlp"),
        ({"shape": (3, 15, 40)}, r"at least 16x16 pixels, got 15x40.*conv-32"),
        ({"norm": "layer"}, "'layer'.*none, batch, group, instance"),
        ({"activation": "gelu"}, "'gelu'.*leaky_relu"),
        ({"dropout": -0.1}, r"-0\.1.*\[0, 1\)"),
        ({"statistics": "shared"}, "statistics='shared'.*norm='none'"),
    ],
)
def test_impossible_settings_are_named(settings, named):
    with pytest.raises(ConfigError, match=named):
        built(**settings)
