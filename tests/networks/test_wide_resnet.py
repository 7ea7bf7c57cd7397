import pytest
import torch
from torch import nn

from jemstone.errors import ConfigError
from jemstone.networks import WideResNet
from jemstone.networks.layers import ACTIVATIONS, NORMS


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def built(*args, **kwargs) -> WideResNet:
    torch.manual_seed(0)
    return WideResNet(*args, **kwargs)


def expected_parameters(depth: int, width: int, classes: int, *, conv_bias: bool, norm: bool) -> int:
    """Counted from the table in the paper, not from the code."""
    blocks = (depth - 4) // 6
    bias, scale_shift = int(conv_bias), 2 * int(norm)
    total = 3 * 16 * 9 + 16 * bias
    before = 16
    for after in (16 * width, 32 * width, 64 * width):
        total += before * after * 9 + after * bias  # first convolution of the first block
        total += after * after * 9 + after * bias  # its second
        if before != after:
            total += before * after + after * bias  # its shortcut
        total += (before + after) * scale_shift
        total += (blocks - 1) * (2 * (after * after * 9 + after * bias) + 2 * after * scale_shift)
        before = after
    return total + before * scale_shift + before * classes + classes


@pytest.mark.parametrize(("depth", "width"), [(28, 10), (16, 4), (10, 1)])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_parameter_count_is_the_papers_arithmetic(depth, width, norm):
    with torch.device("meta"):
        network = WideResNet(depth, width, norm=norm)
    count = sum(p.numel() for p in network.parameters())
    assert count == expected_parameters(depth, width, 10, conv_bias=True, norm=norm == "batch")


def test_the_papers_own_wrn_28_10_has_36_5_million_parameters():
    # The paper's convolutions have no bias and are normalised; ours differ by exactly the biases.
    assert expected_parameters(28, 10, 10, conv_bias=False, norm=True) == 36_479_194
    with torch.device("meta"):
        network = WideResNet(28, 10, norm="batch")
    biases = sum(m.bias.numel() for m in network.modules() if isinstance(m, nn.Conv2d) and m.bias is not None)
    assert sum(p.numel() for p in network.parameters()) - biases == 36_479_194


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (33, 47)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_size_and_any_channel_count(size, channels):
    network = built(10, 1, num_classes=7, in_channels=channels)
    logits = network(images(2, channels, *size))
    assert logits.shape == (2, 7)
    assert (logits[0] != logits[1]).all()


def test_resolution_falls_to_a_quarter_and_channels_rise_fourfold():
    network = built(16, 2)
    seen: list[tuple[int, ...]] = []
    for stage in network.stages:
        stage.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    network(images(1, 3, 32, 32))
    assert seen == [(32, 32, 32), (64, 16, 16), (128, 8, 8)]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_reaches_all_parameters(norm, activation):
    network = built(16, 1, norm=norm, activation=activation)
    network(images(4, 3, 8, 8)).square().sum().backward()
    # A normalisation that follows takes a convolution's bias away again, so that only the weights are judged there.
    cancelled = {
        f"{name}.bias" for name, module in network.named_modules() if isinstance(module, nn.Conv2d) and norm != "none"
    }
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name not in cancelled:
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("norm", NORMS)
def test_a_few_steps_fit_a_few_images(norm):
    network = built(10, 1, num_classes=2, norm=norm)
    x, y = images(6, 3, 8, 8), torch.tensor([0, 1, 0, 1, 0, 1])
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
    network = built(10, 1, norm=norm, dropout=0.5)
    network(images(4, 3, 8, 8))  # moves the running statistics, where there are any
    network.eval()
    x = images(4, 3, 8, 8)
    together = network(x)
    assert torch.equal(together, network(x))
    torch.testing.assert_close(network(x[:1]), together[:1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "independent"), [("none", True), ("group", True), ("instance", True), ("batch", False)]
)
def test_in_training_only_batch_norm_mixes_the_batch(norm, independent):
    network = built(10, 1, norm=norm)
    x = images(4, 3, 8, 8)
    other = torch.cat([x[:1], -2 * x[1:]])
    gap = (network(x)[0] - network(other)[0]).abs().max()
    assert bool(gap < 1e-5) is independent


def test_dropout_acts_in_training_only_and_only_if_asked():
    x = images(4, 3, 8, 8)
    with_dropout, without = built(10, 1, dropout=0.3), built(10, 1)
    assert not torch.equal(with_dropout(x), with_dropout(x))
    assert torch.equal(without(x), without(x))
    assert torch.equal(with_dropout.eval()(x), without(x))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("depth", "width"), [(28, 2), (16, 4)])
def test_fresh_deep_networks_neither_explode_nor_vanish(depth, width, norm):
    network = built(depth, width, norm=norm)
    x = nn.functional.interpolate(images(4, 3, 4, 4), size=32, mode="bilinear").requires_grad_()
    logits = network(x)
    (grad,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
    assert logits.isfinite().all()
    assert 0.02 < logits.std() < 1
    assert logits.std(dim=0).mean() > 1e-3  # between images: the input still reaches the logits
    assert (grad.flatten(1).norm(dim=1) > 5e-4).all()
    assert (grad.flatten(1).norm(dim=1) < 1).all()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"depth": 27, "width": 2}, "6n.*27"),
        ({"depth": 4, "width": 2}, "6n.*4"),
        ({"depth": 10, "width": 0}, "width is 0"),
        ({"depth": 10, "width": 1, "num_classes": 0}, "num_classes is 0"),
        ({"depth": 10, "width": 1, "in_channels": 0}, "in_channels is 0"),
        ({"depth": 10, "width": 1, "norm": "layer"}, "'layer'.*none, batch, group, instance"),
        ({"depth": 10, "width": 1, "activation": "gelu"}, "'gelu'.*leaky_relu"),
        ({"depth": 10, "width": 1, "dropout": -0.1}, r"-0\.1.*\[0, 1\)"),
        ({"depth": 10, "width": 1, "dropout": float("nan")}, "nan"),
    ],
)
def test_impossible_settings_are_named(settings, named):
    with pytest.raises(ConfigError, match=named):
        WideResNet(**settings)
