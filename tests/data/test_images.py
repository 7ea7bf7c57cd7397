import numpy as np
import pytest
import torch
from PIL import Image

from jemstone.data import grid, to_box, to_uint8
from jemstone.errors import ConfigError, DataError


def test_to_uint8_inverts_to_box():
    stored = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert (to_uint8(to_box(stored)) == stored.permute(0, 2, 3, 1).numpy()).all()
    assert (to_uint8(stored) == stored.permute(0, 2, 3, 1).numpy()).all()


def test_to_uint8_layout_rounding_and_clamping():
    x = torch.tensor([-5.0, -1.0, -1 + 0.9 / 127.5, -1 + 0.4 / 127.5, 1.0, float("inf")]).reshape(1, 3, 1, 2)
    out = to_uint8(x)
    assert out.shape == (1, 1, 2, 3)
    assert out.dtype == np.uint8
    assert out[0, 0].tolist() == [[0, 1, 255], [0, 0, 255]]


def test_to_uint8_needs_no_detach():
    assert to_uint8(torch.zeros(1, 1, 1, 1, requires_grad=True)).item() == 128


def test_nan_is_not_shown():
    with pytest.raises(DataError, match="NaN"):
        to_uint8(torch.full((1, 1, 2, 2), float("nan")))


def test_grid_places_every_image():
    images = torch.linspace(-1, 1, 5).reshape(5, 1, 1, 1).expand(5, 3, 8, 8)
    picture = grid(images, 3)
    assert isinstance(picture, Image.Image)
    assert picture.mode == "RGB"
    assert picture.size == (3 * 50 + 2, 2 * 50 + 2)  # 8 pixels at 6 times, 2 apart
    pixels = np.asarray(picture)
    values = to_uint8(images)[:, 0, 0, 0]
    for index, value in enumerate(values):
        top, left = index // 3 * 50 + 2, index % 3 * 50 + 2
        assert (pixels[top : top + 48, left : left + 48] == value).all()
    assert (pixels[54:100, 102:] == 255).all()  # the place of a sixth
    assert (pixels[:2] == 255).all()


def test_grid_enlarges_without_smoothing():
    x = torch.rand(1, 1, 3, 2) * 2 - 1
    pixels = np.asarray(grid(x, 1, scale=4, padding=0))
    assert (pixels == to_uint8(x)[0, :, :, 0].repeat(4, 0).repeat(4, 1)).all()


@pytest.mark.parametrize(("side", "scale"), [(8, 6), (28, 2), (32, 2), (48, 1), (224, 1)])
def test_grid_scale(side, scale):
    assert grid(torch.zeros(1, 1, side, side + 1), 1, padding=0).size == ((side + 1) * scale, side * scale)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (5, "RGB")])
def test_grid_channels(channels, mode):
    x = torch.rand(2, channels, 4, 4) * 2 - 1
    picture = grid(x, 2, scale=1, padding=0)
    assert picture.mode == mode
    shown = to_uint8(x)[0, :, :, : 1 if mode == "L" else 3]
    assert (np.asarray(picture)[:, :4].reshape(shown.shape) == shown).all()


@pytest.mark.parametrize("change", [{"columns": 0}, {"scale": 0}, {"padding": -1}, {"images": torch.zeros(0, 1, 4, 4)}])
def test_grid_errors(change):
    with pytest.raises(ConfigError, match="cannot be drawn"):
        grid(**({"images": torch.zeros(1, 1, 4, 4), "columns": 1} | change))
