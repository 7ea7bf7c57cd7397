import pytest
import torch
from torch import nn

from jemstone.errors import ConfigError
from jemstone.networks import MLP, ConvNet
from jemstone.networks.layers import NORMS


def values(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def shapes_after_stages(network: ConvNet, x: torch.Tensor) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []
    for module in (*network.stages, network.pool):
        module.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    network(x)
    return seen


@pytest.mark.parametrize(
    ("shape", "depth", "expected"),
    [
        ((1, 8, 8), 3, [(6, 8, 8), (12, 4, 4), (12, 2, 2), (12, 2, 2)]),
        ((1, 8, 8), 5, [(6, 8, 8), (12, 4, 4), (12, 2, 2), (12, 2, 2), (12, 2, 2), (12, 2, 2)]),
        ((1, 28, 28), 3, [(6, 28, 28), (12, 14, 14), (12, 7, 7), (12, 4, 4)]),
        ((3, 32, 32), 3, [(6, 32, 32), (12, 16, 16), (12, 8, 8), (12, 4, 4)]),
        ((5, 33, 47), 3, [(6, 33, 47), (12, 17, 24), (12, 9, 12), (12, 3, 4)]),
        ((2, 2, 9), 2, [(6, 2, 9), (12, 2, 9), (12, 2, 3)]),
    ],
)
def test_the_feature_maps_of_a_convnet(shape, depth, expected):
    network = ConvNet(shape, 4, width=6, depth=depth)
    assert shapes_after_stages(network, values(2, *shape)) == expected
    assert network(values(2, *shape)).shape == (2, 4)


def test_pooling_takes_true_averages_at_the_border():
    network = ConvNet((1, 7, 7), 2, width=1, depth=1)
    x = values(1, 1, 7, 7)
    expected = torch.stack([window.mean() for row in x[0, 0].split(2) for window in row.split(2, dim=1)])
    torch.testing.assert_close(network.pool(x).flatten(), expected)


def test_a_convnet_sees_where_things_are():
    torch.manual_seed(0)
    network = ConvNet((1, 8, 8), 3, width=8)
    x = torch.full((1, 1, 8, 8), -1.0)
    x[..., 2, 2] = 1
    assert (network(x) - network(x.roll(4, dims=3))).abs().max() > 1e-3


@pytest.mark.parametrize("norm", NORMS)
def test_the_gradient_reaches_all_parameters_of_a_convnet(norm):
    torch.manual_seed(0)
    network = ConvNet((3, 8, 8), 4, width=8, norm=norm)
    network(values(4, 3, 8, 8)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if norm == "none" or parameter.ndim > 1:
            assert parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize(
    ("network", "shape", "classes"),
    [
        (lambda **s: ConvNet((1, 8, 8), 3, width=8, **s), (1, 8, 8), 3),
        (lambda **s: MLP(64, 3, width=16, **s), (1, 8, 8), 3),
        (lambda **s: MLP(5, 2, width=16, depth=3, **s), (5,), 2),
    ],
    ids=["conv", "mlp-image", "mlp-vector"],
)
class TestBoth:
    def test_logits_have_their_shape_and_depend_on_the_input(self, network, shape, classes):
        logits = network()(values(3, *shape))
        assert logits.shape == (3, classes)
        assert (logits[0] != logits[1]).all()

    def test_each_input_is_treated_alone(self, network, shape, classes):
        model, x = network(), values(3, *shape)
        torch.testing.assert_close(model(x[:1]), model(x)[:1])

    def test_dropout_acts_in_training_only(self, network, shape, classes):
        model, x = network(dropout=0.5), values(3, *shape)
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))

    def test_activation_is_the_one_asked_for(self, network, shape, classes):
        for name, kind in (("relu", nn.ReLU), ("silu", nn.SiLU), ("leaky_relu", nn.LeakyReLU)):
            found = {type(m) for m in network(activation=name).modules()} & {nn.ReLU, nn.SiLU, nn.LeakyReLU}
            assert found == {kind}
        assert any(isinstance(m, nn.SiLU) for m in network().modules())


def test_a_perceptron_is_its_formula():
    torch.manual_seed(0)
    network = MLP(4, 3, width=5, depth=2)
    x = values(2, 4)
    w1, b1, w2, b2, w3, b3 = network.parameters()
    hidden = nn.functional.silu(nn.functional.silu(x @ w1.T + b1) @ w2.T + b2)
    torch.testing.assert_close(network(x), hidden @ w3.T + b3)


def test_the_gradient_reaches_all_parameters_of_a_perceptron():
    torch.manual_seed(0)
    network = MLP(6, 3, width=8, depth=3)
    network(values(4, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: ConvNet((64,), 10), r"\(64,\).*mlp"),
        (lambda: ConvNet((1, 0, 8), 10), r"\(1, 0, 8\)"),
        (lambda: ConvNet((1, 8, 8), 10, width=0), "width is 0"),
        (lambda: ConvNet((1, 8, 8), 10, depth=0), "depth is 0"),
        (lambda: ConvNet((1, 8, 8), 0), "num_classes is 0"),
        (lambda: ConvNet((1, 8, 8), 10, dropout=1.0), r"1\.0.*\[0, 1\)"),
        (lambda: ConvNet((1, 8, 8), 10, norm="layer"), "'layer'"),
        (lambda: ConvNet((4, 1, 1), 10, norm="instance"), "norm='instance'"),
        (lambda: MLP(0, 10), "input_dim is 0"),
        (lambda: MLP(4, 10, depth=0), "depth is 0"),
        (lambda: MLP(4, 10, activation="tanh"), "'tanh'"),
    ],
)
def test_impossible_settings_are_named(build, named):
    with pytest.raises(ConfigError, match=named):
        build()
