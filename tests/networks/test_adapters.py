"""A network that was made elsewhere gets what it would get from its own pipeline, and its gradient comes back."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from jemstone.data.fit import fit_images
from jemstone.errors import ConfigError
from jemstone.networks import Adapted


class Seen(nn.Module):
    """Keeps what it is given; its logits are sums over channels."""

    def forward(self, x):
        self.x = x
        return x.sum((2, 3))


def images(channels: int, side: int = 6, n: int = 3) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_pixels_are_normalised_as_by_the_formula():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    network = Seen()
    x = images(3)
    Adapted(network, mean=mean, std=std)(x)
    pixels = ((x + 1) / 2).numpy()
    for channel in range(3):
        wanted = (pixels[:, channel] - mean[channel]) / std[channel]
        np.testing.assert_allclose(network.x[:, channel].numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_by_default_nothing_changes():
    network = Seen()
    x = images(3)
    adapted = Adapted(network)
    torch.testing.assert_close(adapted(x), x.sum((2, 3)))
    torch.testing.assert_close(network.x, x)
    assert list(adapted.state_dict()) == []


@pytest.mark.parametrize(("of_data", "of_network"), [(1, 3), (3, 1), (3, 3), (1, 1)])
def test_grey_and_rgb_are_converted_as_data_is(of_data, of_network):
    network = Seen()
    x = images(of_data)
    Adapted(network, channels=of_network)(x)
    torch.testing.assert_close(network.x, fit_images(x, (of_network, 6, 6), ""))
    for image, seen in zip(((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy(), network.x, strict=True):
        picture = Image.fromarray(image if of_data == 3 else image[:, :, 0])
        wanted = np.asarray(picture.convert("RGB" if of_network == 3 else "L")).reshape(6, 6, of_network)
        np.testing.assert_allclose((seen.permute(1, 2, 0).numpy() + 1) * 127.5, wanted, atol=1.01)


@pytest.mark.parametrize("side", [4, 17])
def test_another_size_is_resized_as_pillow_does(side):
    network = Seen()
    x = images(1, side=9, n=1)
    Adapted(network, channels=1, size=(side, side + 1))(x)
    picture = Image.fromarray(x[0, 0].numpy())
    wanted = np.asarray(picture.resize((side + 1, side), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(network.x[0, 0].numpy(), wanted, atol=2e-3)


def test_the_gradient_reaches_the_image():
    x = images(1).double().requires_grad_()
    adapted = Adapted(nn.Sequential(nn.Conv2d(3, 2, 3), nn.SiLU(), nn.Flatten(), nn.Linear(18, 2)), size=5).double()
    assert torch.autograd.gradcheck(adapted, (x[:1],))


class Returning(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x.flatten(1))


class Output(dict):
    """As the outputs of transformers are: a dict with attributes."""

    @property
    def logits(self):
        return self["logits"]


def test_logits_are_taken_out_of_what_is_returned():
    x = images(3)
    flat = x.flatten(1)
    torch.testing.assert_close(Adapted(Returning(lambda f: Output(loss=None, logits=f)))(x), flat)
    torch.testing.assert_close(Adapted(Returning(lambda f: (f[:, :4], f)), output=1)(x), flat)
    torch.testing.assert_close(Adapted(Returning(lambda f: {"boxes": f[:, :4], "scores": f}), output="scores")(x), flat)
    torch.testing.assert_close(Adapted(Returning(lambda f: f), output=1)(x), flat)  # in train mode some return tuples


def test_what_has_no_logits_is_refused_with_what_it_has():
    with pytest.raises(ConfigError, match=r"returns a tuple of \(3, 4\), \(3, 108\).*output=1"):
        Adapted(Returning(lambda f: (f[:, :4], f)))(images(3))
    with pytest.raises(ConfigError, match="nothing under output=7"):
        Adapted(Returning(lambda f: (f, f)), output=7)(images(3))
    with pytest.raises(ConfigError, match="returns a dict and not logits"):
        Adapted(Returning(lambda f: {"a": f}))(images(3))


def test_classes_choose_and_order_the_outputs():
    x = images(3)
    logits = Adapted(Seen())(x)
    torch.testing.assert_close(Adapted(Seen(), classes=(2, 0))(x), logits[:, [2, 0]])
    with pytest.raises(ConfigError, match="classes name the output 3, and the network has 3"):
        Adapted(Seen(), classes=(0, 3))(x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "channels must be at least 1"),
        ({"size": (3, 0)}, "size is"),
        ({"size": (3, 3, 3)}, "size is"),
        ({"mean": (0.1, 0.2)}, "mean needs one number, or one for each of 3 channels"),
        ({"std": (0.5, 0.5, 0.0)}, "std divides"),
        ({"classes": (1, 1)}, "classes are different outputs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Adapted(Seen(), **settings)


def test_inputs_that_are_no_images_are_refused():
    with pytest.raises(ConfigError, match=r"takes images \(b, c, h, w\)"):
        Adapted(Seen())(torch.zeros(2, 5))
    with pytest.raises(ConfigError, match="Only grey"):
        Adapted(Seen())(torch.zeros(2, 2, 4, 4))
