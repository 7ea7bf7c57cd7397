import pytest
import torch

from jemstone.networks.layers import NORMS, group_count, make_activation, make_norm


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
